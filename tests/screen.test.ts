/** No call that is denied or asked about passes the screen, whatever the stream looks like. */

import { describe, expect, test } from 'bun:test';
import Anthropic from '@anthropic-ai/sdk';
import fc from 'fast-check';
import OpenAI from 'openai';
import type { Asked } from '../functions/providers/contract.ts';
import { ENDPOINTS } from '../functions/providers/endpoints.ts';
import { Screen } from '../functions/proxy/screen.ts';
import type { JsonObject } from '../schema/json.ts';
import { policySchema } from '../schema/policy.ts';
import { decideTool, judgeName } from '../schema/rules/tools.ts';
import { SseTooLarge } from '../schema/sse.ts';
import { FORMS, type Form, type Frame, framesOf, type Proposal, usualForm } from './proposals.ts';

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { ignoreBOM: true });

const POLICIES = {
  deny: policySchema.parse({ tools: { deny: ['drop_*', '*/drop_*', 'shell', 'apply_patch'] } }),
  ask: policySchema.parse({ tools: { requireApproval: [{ tool: '*drop*' }, { tool: '*l*' }] } }),
  list: policySchema.parse({ tools: { allow: ['lookup'] } }),
  open: policySchema.parse({ tools: { allow: ['*'] } }),
};

const readerOf = (endpoint: string, asked?: Asked) =>
  ENDPOINTS.find(({ name }) => name === endpoint)!.calls!(asked);

/** What a screen makes of a stream that arrives in these chunks. */
function run(endpoint: string, chunks: readonly Uint8Array[], policy = POLICIES.list, choices = 1) {
  const screen = new Screen(readerOf(endpoint, { choices }), (name) => judgeName(policy, name));
  const passed = Buffer.concat(chunks.map((chunk) => screen.push(chunk)));
  const { withheld, calls } = screen.end();
  const effects = calls.map((call) => decideTool(policy, call).effect);
  const isStopped = screen.fault !== undefined || effects.some((effect) => effect !== 'allow');
  return { passed, withheld, calls, isStopped, fault: screen.fault };
}

const runText = (endpoint: string, text: string, policy = POLICIES.list) =>
  run(endpoint, [encoder.encode(text)], policy);

// Streams, and ways to write the same in other bytes

const endpoints = ['chat.completions', 'responses.create', 'messages'] as const;
const sql = fc.constantFrom('{"sql":"DROP é😀"}', '{}', '{"a":{"b":[1,2,"\\u0041"]}}');
const gatedCall = fc.record({
  form: fc.constantFrom(...FORMS),
  args: sql,
  count: fc.integer({ min: 1, max: 3 }),
  at: fc.nat(2),
});

function proposalsOf(form: Form, name: string, args: string, count: number, at: number) {
  const usual = usualForm(form.endpoint, form.label === 'former' ? 'former' : 'function');
  return Array.from({ length: count }, (_, number): Proposal => {
    if (number === at % count) return [form, { id: `c${number}`, name, args }];
    return [usual, { id: `c${number}`, name: 'lookup', args: '{"q":1}' }];
  });
}

interface Dress {
  readonly newline: string;
  readonly noise: readonly number[];
  readonly escapes: readonly number[];
  readonly splits: readonly number[];
  readonly repeats: readonly number[];
  readonly mark: boolean;
  readonly order: readonly number[];
  readonly cuts: readonly number[];
}

const turns = fc.array(fc.nat(9), { minLength: 1, maxLength: 12 });
const dress: fc.Arbitrary<Dress> = fc.record({
  newline: fc.constantFrom('\n', '\r\n', '\r'),
  ...{ noise: turns, escapes: turns, splits: turns, repeats: turns, order: turns },
  mark: fc.boolean(),
  cuts: fc.oneof(turns, fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 9 })),
});

const NOISE = ['', '', ': ping\n\n', ':\n', 'id: 7\n', 'retry: 10\n', 'x-more: 1\n', ': é\n: b\n'];

/** Writes a letter of some strings as an escape, be they keys or values. */
function escapeSome(text: string, numbers: readonly number[]): string {
  let turn = 0;
  return text.replace(/"(?:[^"\\]|\\.)*"/g, (string) => {
    const at = numbers[turn++ % numbers.length]!;
    const letter = string[at];
    if (at < 1 || !letter || !/[a-z_]/.test(letter) || string.includes('\\')) return string;
    const code = letter.charCodeAt(0).toString(16).padStart(4, '0');
    return `${string.slice(0, at)}\\u${code}${string.slice(at + 1)}`;
  });
}

/** Says some members twice, the harmless reading first or last. */
function repeatSome(text: string, numbers: readonly number[]): string {
  let turn = 0;
  const harmless = { name: '"lookup"', tool_calls: '[]', type: '"text"', item: '{}' };
  return text.replace(/(?<!\\)"(name|tool_calls|type|item)":/g, (member, key) => {
    if (numbers[turn++ % numbers.length]! < 6) return member;
    return `${member}${harmless[key as keyof typeof harmless]},${member}`;
  });
}

function splitSome(text: string, numbers: readonly number[]): string {
  let turn = 0;
  return text.replace(/(?<=["\]}]),(?=")/g, () =>
    numbers[turn++ % numbers.length]! > 7 ? ',\ndata: ' : ',',
  );
}

/** A frame in other bytes; what stands before it is no part of it. */
function dressFrame({ text }: Frame, number: number, how: Dress, isHostile: boolean) {
  const before = NOISE[how.noise[number % how.noise.length]!] ?? '';
  const escaped = escapeSome(text, how.escapes);
  const repeated = isHostile ? repeatSome(escaped, how.repeats) : escaped;
  const written = splitSome(repeated, how.splits);
  return [before, written].map((part) => part.replaceAll('\n', how.newline));
}

/** The same frames with those of several calls taking turns; each call keeps its own order. */
function interleave(frames: readonly Frame[], order: readonly number[]): Frame[] {
  const own = frames.filter(({ calls }) => calls.length === 1);
  const queues = Map.groupBy(own, ({ calls }) => calls[0]!);
  const mixed = own.map((_, turn) => {
    const open = [...queues.values()].filter((queue) => queue.length > 0);
    return open[order[turn % order.length]! % open.length]!.shift()!;
  });
  let next = 0;
  return frames.map((frame) => (frame.calls.length === 1 ? mixed[next++]! : frame));
}

function cut(bytes: Uint8Array, lengths: readonly number[]): Uint8Array[] {
  const chunks: Uint8Array[] = [];
  let at = 0;
  for (let turn = 0; at < bytes.length; turn++) {
    const length = lengths[turn % lengths.length]! || 1;
    chunks.push(bytes.slice(at, at + length));
    at += length;
  }
  return chunks;
}

/** A whole stream and the offset of the first frame of one of its calls. */
function write(frames: readonly Frame[], at: number, how: Dress, isHostile: boolean) {
  const first = frames.findIndex(({ calls }) => calls.includes(at));
  let text = how.mark ? '\ufeff' : '';
  let limit = 0;
  for (const [number, frame] of frames.entries()) {
    const [before = '', written = ''] = dressFrame(frame, number, how, isHostile);
    text += before;
    if (number === first) limit = encoder.encode(text).length;
    text += written;
  }
  return { bytes: encoder.encode(text), limit };
}

const isOneByOne = (form: Form) => form.endpoint === 'messages';

describe('a stream, however it is written and cut', () => {
  test('does not give out a byte of a call that is denied or asked about', () => {
    const policies = fc.constantFrom(POLICIES.list, POLICIES.deny, POLICIES.ask);
    fc.assert(
      fc.property(gatedCall, dress, policies, ({ form, args, count, at }, how, policy) => {
        const target = at % count;
        const plain = framesOf(form.endpoint, proposalsOf(form, 'drop_table', args, count, at));
        const frames = isOneByOne(form) ? plain : interleave(plain, how.order);
        const names = form.names('drop_table');
        fc.pre(names.some((name) => judgeName(policy, name) !== 'allow'));
        const { bytes, limit } = write(frames, target, how, true);
        const out = run(form.endpoint, cut(bytes, how.cuts), policy, count);
        const { passed, withheld, isStopped } = out;
        expect(passed.length).toBeLessThanOrEqual(limit);
        expect(isStopped).toBe(true);
        expect(Buffer.concat([passed, withheld]).equals(bytes)).toBe(true);
      }),
      { numRuns: 1_500 },
    );
  });

  test('comes out byte for byte when its calls are allowed', () => {
    fc.assert(
      fc.property(gatedCall, dress, ({ form, args, count, at }, how) => {
        const plain = framesOf(form.endpoint, proposalsOf(form, 'read_table', args, count, at));
        const isOrdered = isOneByOne(form) || form.endpoint === 'responses.create';
        const frames = isOrdered ? plain : interleave(plain, how.order);
        const { bytes } = write(frames, 0, how, false);
        const out = run(form.endpoint, cut(bytes, how.cuts), POLICIES.open, count);
        const { passed, withheld, calls } = out;
        expect(out.fault).toBeUndefined();
        // A CR at the very end may be half of a line end.
        if (how.newline !== '\r') expect(withheld.length).toBe(0);
        expect(Buffer.concat([passed, withheld]).equals(bytes)).toBe(true);
        expect(new Set(calls.map(({ id }) => id)).size).toBeGreaterThan(0);
      }),
      { numRuns: 1_000 },
    );
  });

  test('gives text out event by event as it comes', () => {
    for (const endpoint of endpoints) {
      const screen = new Screen(readerOf(endpoint), () => 'deny');
      for (const { text } of framesOf(endpoint, [])) {
        expect(decoder.decode(screen.push(encoder.encode(text)))).toBe(text);
        expect(decoder.decode(screen.push(encoder.encode(': alive\n')))).toBe(': alive\n');
      }
    }
  });

  test('knows the calls that went out before the one that it stops at, and no other', () => {
    for (const endpoint of endpoints) {
      const form = usualForm(endpoint, endpoint === 'messages' ? 'tool_use' : 'function');
      const proposals = proposalsOf(form, 'drop_table', '{}', 3, 1);
      const screen = new Screen(readerOf(endpoint), (name) => judgeName(POLICIES.list, name));
      for (const { text } of framesOf(endpoint, proposals)) screen.push(encoder.encode(text));
      expect(screen.push(encoder.encode(': alive\n')).length).toBe(0);
      expect(screen.passedCalls().map(({ id }) => id)).toEqual(['c0']);
    }
  });

  test('knows no calls of a stream that can be read in two ways', () => {
    const screen = new Screen(readerOf('chat.completions'), () => 'allow');
    const [usual] = proposalsOf(usualForm('chat.completions', 'function'), 'lookup', '{}', 1, 0);
    for (const { text } of framesOf('chat.completions', [usual!])) {
      screen.push(encoder.encode(text));
    }
    expect(screen.passedCalls()).toHaveLength(1);
    screen.push(encoder.encode('data {}\n\n'));
    expect(screen.passedCalls()).toEqual([]);
  });

  test('is cut off when more would have to be held back than may be', () => {
    const screen = new Screen(readerOf('messages'), () => 'deny', 2_000);
    const [form] = FORMS.filter(({ endpoint }) => endpoint === 'messages');
    const call = { id: 'a', name: 'drop_table', args: `{"a":"${'x'.repeat(4_000)}"}` };
    const frames = framesOf('messages', [[form!, call]]);
    expect(() => {
      for (const { text } of frames) screen.push(encoder.encode(text));
    }).toThrow(SseTooLarge);
  });
});

// What clients read that the standard does not see

const fn = (members: string) => `{"choices":[{"index":0,"delta":{"tool_calls":[${members}]}}]}`;
const EVIL = fn('{"index":0,"id":"a","function":{"name":"drop_table","arguments":"{}"}}');
const TEXT = '{"choices":[{"index":0,"delta":{"content":"hi"}}]}';
const piece = (name: string, more = '"index":0,') => fn(`{${more}"function":{"name":"${name}"}}`);

const TRICKS: Readonly<Record<string, string>> = {
  'no blank line at the end': `data: ${EVIL}\n`,
  'no line end at the end': `data: ${EVIL}`,
  'a lone CR before the value': `data:\r${EVIL}\n\n`,
  'white space before the field': ` data: ${EVIL}\n\n`,
  'a mark before the field': `data: ${TEXT}\n\n\ufeffdata: ${EVIL}\n\n`,
  'two marks at the start': `\ufeff\ufeffdata: ${EVIL}\n\n`,
  'the field in capitals': `Data: ${EVIL}\n\n`,
  'white space after the field': `data : ${EVIL}\n\n`,
  'no field at all': `${EVIL}\n\n`,
  'one of several lines': `data: {"a":\ndata: ${EVIL}\ndata: }\n\n`,
  'another name of the event': `event: ping\ndata: ${EVIL}\n\n`,
  'a list of chunks': `data: [${EVIL}]\n\n`,
  'a case variant': `data: ${EVIL.replace('tool_calls', 'Tool_Calls')}\n\n`,
  'a letter that folds': `data: ${EVIL.replace('tool_calls', 'tool_call\u017f')}\n\n`,
  'a case variant of the delta': `data: ${EVIL.replace('delta', 'Delta')}\n\n`,
  'a key that is cut by a NUL': `data: ${EVIL.replace('tool_calls', 'tool_c\0alls')}\n\n`,
  'another place': `data: {"choices":[{"message":{"x":${EVIL}}}]}\n\n`,
  'an object in place of a list': `data: ${EVIL.replace(/\[(\{"index":0,"id".*\})\]\}\}\]\}/, '$1}}]}')}\n\n`,
  'a name in pieces': `data: ${piece('drop_')}\n\ndata: ${piece('table')}\n\n`,
  'a name in pieces without an index': `data: ${piece('drop_', '')}\n\ndata: ${piece('table', '')}\n\n`,
  'a name in pieces under several ids': `data: ${piece('drop_', '"index":0,"id":"a",')}\n\ndata: ${piece('table', '"index":0,"id":"b",')}\n\n`,
  'a name in pieces with and without an index': `data: ${piece('drop_')}\n\ndata: ${piece('table', '')}\n\n`,
  'a call that only begins': `data: ${fn('{"index":0,"id":"table","type":"function"}')}\n\ndata: ${piece('drop_table')}\n\n`,
  'a name that changes': `data: ${piece('lookup')}\n\ndata: ${piece('drop_table')}\n\n`,
  'a name that comes last': `data: ${fn('{"index":0,"function":{"arguments":"{table"}}')}\n\ndata: ${piece('drop_table')}\n\n`,
  'a name beside the function': `data: ${fn('{"index":0,"name":"drop_table","function":{"name":"lookup"}}')}\n\n`,
  'a second choice': `data: ${piece('lookup')}\n\ndata: ${piece('drop_table').replace('"index":0', '"index":1')}\n\n`,
};

describe('a call is not given out by', () => {
  const deny = policySchema.parse({ tools: { deny: ['drop_table'] } });
  test.each(Object.entries(TRICKS))('%s', (_, text) => {
    const whole = encoder.encode(`data: ${TEXT}\n\n: alive\n\n${text}`);
    const marked = text.startsWith('\ufeff') ? encoder.encode(text) : whole;
    for (const lengths of [[1], [7], [100_000]]) {
      const { passed, isStopped } = run('chat.completions', cut(marked, lengths), deny);
      const given = decoder.decode(passed);
      expect(given).not.toContain('table');
      expect(isStopped).toBe(true);
    }
  });

  test('bytes that are not UTF-8, which some clients drop', () => {
    const bytes = encoder.encode(`data: ${EVIL.replace('drop_', 'drop\u0001')}\n\n`);
    bytes[bytes.indexOf(1)] = 0xff;
    const { passed, isStopped } = run('chat.completions', [bytes], deny);
    expect([passed.length, isStopped]).toEqual([0, true]);
    const kept = encoder.encode(`data: ${TEXT.replace('hi', '\ufffd \ufeff')}\n\n`);
    expect(run('chat.completions', [kept], deny).passed.equals(kept)).toBe(true);
  });

  test('lines and bytes behind a call that is held back but allowed', () => {
    const when = policySchema.parse({
      tools: { deny: [{ tool: 'pay', when: 'args.n > 5' }, 'drop_table'] },
    });
    const pay = fn('{"index":0,"function":{"name":"pay","arguments":"{\\"n\\":1}"}}');
    const held = `data: ${pay}\n\n`;
    expect(runText('chat.completions', held, when)).toMatchObject({ isStopped: false });
    for (const text of [` data: ${EVIL}\n\n`, `\ufeffdata: ${EVIL}\n\n`, `data: ${EVIL}`]) {
      const chunks = [encoder.encode(held), encoder.encode(text)];
      const { passed, isStopped } = run('chat.completions', chunks, when);
      expect([passed.length, isStopped]).toEqual([0, true]);
    }
  });

  test('blocks of a message out of order', () => {
    const block = (index: number, name: string) =>
      `data: {"type":"content_block_start","index":${index},"content_block":{"type":"tool_use","id":"a","name":"${name}","input":{}}}\n\n`;
    const { isStopped, passed } = runText('messages', block(1, 'lookup'));
    expect([isStopped, passed.length]).toEqual([true, 0]);
  });

  test('arguments of a call that nothing has begun', () => {
    const block = '"index":3,"delta":{"type":"input_json_delta","partial_json":"{}"}';
    const item = '"output_index":3,"item_id":"i","delta":"{}"';
    const texts = {
      messages: `data: {"type":"content_block_delta",${block}}\n\n`,
      'responses.create': `data: {"type":"response.function_call_arguments.delta",${item}}\n\n`,
    };
    for (const [endpoint, text] of Object.entries(texts)) {
      const screen = new Screen(readerOf(endpoint), () => 'allow');
      expect(screen.push(encoder.encode(text)).length).toBe(0);
      expect(screen.push(encoder.encode(': alive\n')).length).toBe(0);
    }
  });

  test('an item of a response that changes its place, or is one line of several', () => {
    const item = (id: string, index: number) =>
      `{"type":"response.output_item.done","output_index":${index},"item":{"type":"function_call","id":"${id}","call_id":"${id}","name":"lookup","arguments":"{}"}}`;
    const lines = `data: {"x":\ndata: ${item('a', 0)}\ndata: }\n\n`;
    const moved = [item('a', 0), item('b', 1), item('b', 0)].map((data) => `data: ${data}\n\n`);
    expect(runText('responses.create', lines).fault).toContain('several lines');
    expect(runText('responses.create', moved.join('')).fault).toContain('places');
    const delta =
      '{"type":"response.function_call_arguments.delta","output_index":0,"item_id":"b"}';
    const mixed = [...moved.slice(0, 2), `data: ${delta}\n\n`].join('');
    expect(runText('responses.create', mixed).fault).toContain('places');
  });

  test('an event of a response whose name and type differ', () => {
    const item = '{"type":"function_call","id":"a","call_id":"c","name":"lookup","arguments":"{}"}';
    const text = `event: response.output_text.delta\ndata: {"type":"response.output_item.added","output_index":0,"item":${item}}\n\n`;
    expect(runText('responses.create', text).fault).toContain('differs');
  });

  test('commands of a shell that differ from those it ends with', () => {
    const open = policySchema.parse({ tools: { allow: ['shell'], deny: ['x'] } });
    const item = (command: string, status: string) =>
      `{"type":"shell_call","id":"i","call_id":"c","status":"${status}","action":{"commands":["${command}"]}}`;
    const events = (delta: string) =>
      [
        `{"type":"response.output_item.added","output_index":0,"item":${item('', 'in_progress')}}`,
        `{"type":"response.shell_call_command.delta","output_index":0,"command_index":0,"delta":"${delta}"}`,
        `{"type":"response.output_item.done","output_index":0,"item":${item('ls', 'completed')}}`,
      ]
        .map((data) => `data: ${data}\n\n`)
        .join('');
    const { isStopped, calls } = runText('responses.create', events('ls'), open);
    expect([isStopped, calls.length]).toEqual([false, 1]);
    expect(runText('responses.create', events('rm -rf /'), open).isStopped).toBe(true);
  });
});

// What clients put together in other ways than the documents say

const data = (value: object) => `data: ${JSON.stringify(value)}\n\n`;
const chunkOf = (choices: object, more = {}) => data({ choices, ...more });
const delta = (index: unknown, ...tool_calls: object[]) => ({ index, delta: { tool_calls } });
const part = (index: unknown, args: string, { name, ...more }: JsonObject = {}) => ({
  ...{ index, ...more },
  function: { ...(name === undefined ? {} : { name }), arguments: args },
});
const pay = (index: unknown, args: string) => part(index, args, { id: 'a', name: 'pay' });
const one = (...parts: object[]) => chunkOf([delta(0, ...parts)]);
const BEGUN = one(pay(0, '{"n":1'));
const ENDED = one(part(0, '}'));

const block = (index: unknown, content_block: object) =>
  data({ type: 'content_block_start', index, content_block });
const use = (input: object) => ({ type: 'tool_use', id: 't', name: 'pay', input });
const input = (index: unknown, partial_json: unknown) =>
  data({
    type: 'content_block_delta',
    index,
    delta: { type: 'input_json_delta', partial_json },
  });
const begin = (...content: unknown[]) => data({ type: 'message_start', message: { content } });
const PLAIN = { type: 'text', text: '' };
const hosted = { type: 'server_tool_use', id: 's', name: 'web_search', input: {} };

const item = (more: object) => ({ type: 'function_call', id: 'i', name: 'pay', ...more });
const added = (more: object, at: object = { output_index: 0 }) =>
  data({
    type: 'response.output_item.added',
    ...at,
    item: item({ status: 'in_progress', ...more }),
  });
const goesOn = (text: string, at: object = { output_index: 0, item_id: 'i' }) =>
  data({ type: 'response.function_call_arguments.delta', ...at, delta: text });
const completed = (...output: object[]) =>
  data({ type: 'response.completed', response: { output } });
const WHOLE_ITEM = item({ arguments: '{"n":1}', status: 'completed' });

const ODD_MEMBERS = [{ created: 'x' }, { object: 'x' }, { x_groq: 5 }, { usage: 5 }];
const MESSAGE = chunkOf([{ index: 0, delta: {}, message: { role: 'assistant', content: null } }]);
const ROLE = chunkOf([{ index: 0, delta: { role: 'user' } }]);

const AMBIGUOUS: readonly (readonly [what: string, Form['endpoint'], ...string[]])[] = [
  ['a choice nobody asked for', 'chat.completions', BEGUN, chunkOf([delta(1, part(0, '0'))])],
  ['one with a call', 'chat.completions', BEGUN, chunkOf([delta(1, pay(0, '00'))]), ENDED],
  [
    ...(['two choices of one index', 'chat.completions', BEGUN] as const),
    ...[chunkOf([delta(0, part(0, '0')), delta(0, part(0, '.5'))]), ENDED],
  ],
  [
    ...(['a choice behind another', 'chat.completions', BEGUN] as const),
    ...[chunkOf([{ index: 0, delta: {} }, delta(0, part(0, '0'))]), ENDED],
  ],
  ['choices that are no list', 'chat.completions', BEGUN, chunkOf({ 0: delta(0, part(0, '0')) })],
  ['a delta in a list', 'chat.completions', chunkOf([{ delta: [{ tool_calls: [pay(0, '')] }] }])],
  ['calls that are no list', 'chat.completions', chunkOf([{ delta: { tool_calls: pay(0, '') } }])],
  [
    'a choice without its index',
    'chat.completions',
    BEGUN,
    chunkOf([{ ...delta(0, part(0, '0')), index: null }]),
  ],
  ['a call without its index', 'chat.completions', BEGUN, one(part(null, '0')), ENDED],
  [
    ...(['an index that is no digits', 'chat.completions', BEGUN] as const),
    ...[one(part(0, '0')).replace('[{"index":0,"f', '[{"ind\\u0065x":0.0,"f'), ENDED],
  ],
  [
    ...(['an id that comes back', 'chat.completions', one(part(0, '{"x":', { id: 'a' }))] as const),
    ...[one(part(0, '', { id: 'b', name: 'lookup' })), one(pay(0, '{"n":1}'))],
  ],
  [
    'an object that goes on',
    'chat.completions',
    BEGUN,
    chunkOf([delta(0, { index: 0, function: { arguments: {} } })]),
  ],
  [
    'arguments in two places',
    'chat.completions',
    chunkOf([delta(0, { index: 0, function: { name: 'pay', arguments: '{}', input: '{}' } })]),
  ],
  [
    'chunks that clients drop for many things',
    'chat.completions',
    BEGUN,
    ...ODD_MEMBERS.map((more) => chunkOf([delta(0, part(0, '0'))], more)),
    ENDED,
  ],
  ['a message behind its deltas', 'chat.completions', BEGUN, MESSAGE, ENDED],
  ['a message before its deltas', 'chat.completions', MESSAGE, BEGUN, ENDED],
  [
    'a role in an event that some clients skip',
    'chat.completions',
    BEGUN,
    `event: thread.x\n${chunkOf([{ index: 0, delta: { role: 'assistant' } }])}`,
    ROLE,
    ENDED,
  ],
  [
    'a role in a line of an event',
    'chat.completions',
    BEGUN,
    `data: {"x":\n${ROLE.trim()}\ndata: }\n\n`,
    ENDED,
  ],
  [
    'an event that some clients skip',
    'chat.completions',
    BEGUN,
    `event: thread.x\n${one(part(0, '0'))}`,
    ENDED,
  ],
  ['a call after the end', 'chat.completions', BEGUN, 'data: [DONE]\n\n', ENDED],
  ['a call without a name', 'chat.completions', one(part(0, '{}', { id: 'a', type: 'function' }))],

  ['a block that takes the place of a call', 'messages', block(0, use({ n: 1 })), block(0, PLAIN)],
  ['a call that takes the place of a block', 'messages', block(0, PLAIN), block(0, use({}))],
  ['an input that text goes on with', 'messages', block(0, PLAIN), input(0, '{}')],
  ['an input of a call before the first', 'messages', block(0, use({})), input(-1, '{}')],
  ['an input without an index', 'messages', block(0, use({})), input(null, '{}')],
  [
    'an input after its block',
    'messages',
    block(0, use({})),
    data({ type: 'content_block_stop', index: 0 }),
    input(0, '{"n":9}'),
  ],
  [
    'an input after its message',
    'messages',
    block(0, use({})),
    data({ type: 'message_stop' }),
    input(0, '{"n":9}'),
  ],
  ['an input of a call that stood there', 'messages', begin(use({ n: 1 })), input(0, '{"n":9}')],
  ['a call behind a text that stood there', 'messages', begin(PLAIN), block(0, use({}))],
  ['a message that begins again', 'messages', begin(), block(0, use({})), begin()],
  ['a message that begins again before a call', 'messages', begin(), begin(), block(0, use({}))],
  [
    'a call behind an index that came back',
    'messages',
    ...[begin(), block(0, hosted), block(1, PLAIN), block(1, PLAIN), block(2, use({}))],
  ],
  [
    'a block in an event of another type',
    'messages',
    block(0, use({})).replace('content_block_start', 'ping'),
  ],
  [
    'an input in an event of another type',
    'messages',
    block(0, use({})),
    input(0, '{}').replace('content_block_delta', 'ping'),
  ],
  [
    'an event that some clients skip',
    'messages',
    block(0, use({})),
    `event: content_block_delta\n${input(0, '{}')}`,
  ],
  [
    'an event without its type',
    'messages',
    `event: content_block_start\n${block(0, use({})).replace('"type":"content_block_start",', '')}`,
  ],

  [
    'a delta without its place',
    'responses.create',
    added({ arguments: '' }),
    goesOn('{'),
    goesOn('}', { item_id: 'i' }),
  ],
  [
    'a delta of the place of a text',
    'responses.create',
    added({ arguments: '' }, { output_index: 1 }),
    goesOn('{}'),
  ],
  [
    'a delta of an id that nothing has',
    'responses.create',
    added({ arguments: '' }),
    goesOn('{'),
    goesOn('}', { output_index: 0, item_id: 'j' }),
  ],
  ['a delta of nothing', 'responses.create', goesOn('{}'), completed(WHOLE_ITEM)],
  [
    'a call that begins twice',
    'responses.create',
    added({ name: 'drop_' }),
    added({ name: 'table', id: null }),
  ],
  ['a call after the end', 'responses.create', added({}), completed(WHOLE_ITEM), goesOn('{}')],
  ['arguments that are no text', 'responses.create', completed(item({ arguments: { n: 1 } }))],
  ['a call without a name', 'responses.create', completed(item({ name: '', arguments: '{}' }))],
  [
    'items that are no list',
    'responses.create',
    data({ type: 'response.completed', response: { output: { 0: WHOLE_ITEM } } }),
  ],
];

describe('an answer is withheld for', () => {
  test.each(AMBIGUOUS)('%s (%s)', (_, endpoint, ...events) => {
    const { fault, withheld } = runText(endpoint, events.join(''), POLICIES.open);
    expect(fault).toBeString();
    expect(withheld.length).toBeGreaterThan(0);
  });
});

/** What hosts send that keep to the documents, or nearly. */
const USUAL: readonly (readonly [
  what: string,
  choices: number,
  events: string[],
  calls: string[],
])[] = [
  [
    'null and empty members where nothing is added',
    1,
    [
      BEGUN,
      one({ ...part(0, ''), id: null, type: null, function: { name: null, arguments: null } }),
      one({ ...part(0, '}'), id: '', function: { name: '', arguments: '}' } }),
    ],
    ['pay {"n":1}'],
  ],
  [
    'whole calls without an index',
    1,
    [one({ id: 'a', function: { name: 'pay', arguments: '{}' } })],
    ['pay {}'],
  ],
  [
    'the object of arguments itself',
    1,
    [one({ index: 0, function: { name: 'pay', arguments: {} } })],
    ['pay {}'],
  ],
  [
    'several choices, one in each chunk',
    2,
    [BEGUN, chunkOf([delta(1, pay(0, '{"n":'))]), ENDED, chunkOf([delta(1, part(0, '2}'))])],
    ['pay {"n":1}', 'pay {"n":2}'],
  ],
  [
    'several choices in one chunk',
    2,
    [
      chunkOf([delta(1, pay(0, '{"n":')), delta(0, pay(0, '{'))]),
      chunkOf([delta(1, part(0, '2}')), delta(0, part(0, '}'))]),
    ],
    ['pay {"n":2}', 'pay {}'],
  ],
];

const go = (members: object, more: object = {}) =>
  chunkOf([{ index: 0, delta: members, finish_reason: null }], {
    ...{ id: 'c', object: 'chat.completion.chunk', created: 1, model: 'm', ...more },
  });
const calling = (call: object, more: object = {}, top: object = {}) =>
  go({ tool_calls: [{ index: 0, ...call }], ...more }, top);
const fun = (args: string, name?: string) => ({
  function: { ...(name !== undefined && { name }), arguments: args },
});
const LED = go({ role: 'assistant', content: null });
const START = calling({ id: 'a', type: 'function', ...fun('{"n":', 'pay') });
const REST = calling(fun('1}'));
const SIGNED = { extra_content: { google: { thought_signature: 'x' } } };
const NO_FORMER = [{}, { name: '', arguments: '' }, { name: null, arguments: null }];
const llama = { type: 'function_call', call_id: 'fc_x', name: 'pay', status: 'in_progress' };

/** Forms of hosts that a client reads as they were meant. */
const HONEST: readonly (readonly [what: string, Form['endpoint'], ...string[]])[] = [
  [
    'an empty type, id and name in every later part',
    'chat.completions',
    ...[LED, START, calling({ id: '', type: '', ...fun('1', '') })],
    calling({ id: '', type: '', ...fun('}', '') }),
  ],
  [
    'an empty role in some chunks',
    'chat.completions',
    ...[LED, START, calling(fun('1'), { role: '', content: '' }), calling(fun('}'))],
  ],
  ['a signature alone behind a call', 'chat.completions', LED, START, REST, calling(SIGNED)],
  [
    'a signature alone before a call',
    'chat.completions',
    ...[calling({ id: 'a', ...SIGNED }), LED, START, REST],
  ],
  [
    'a name in each of many parts',
    'chat.completions',
    ...[LED, START, ...Array.from({ length: 200 }, () => calling(fun('1', 'pay')))],
    calling(fun('}', 'pay')),
  ],
  ...NO_FORMER.map((function_call) => {
    const text = go({ content: 'hi', function_call });
    return [`no former call: ${JSON.stringify(function_call)}`, 'chat.completions', text] as const;
  }),
  ...NO_FORMER.map((function_call) => {
    const parts = [LED, START, calling(fun('1}'), { function_call })];
    const what = `no former call beside one: ${JSON.stringify(function_call)}`;
    return [what, 'chat.completions', ...parts] as const;
  }),
  ...[{ usage: [] }, { error: '' }, { usage: { total_tokens: '1' } }].map((top) => {
    const parts = [LED, START, calling(fun('1}'), {}, top)];
    return [`${JSON.stringify(top)} in one chunk`, 'chat.completions', ...parts] as const;
  }),
  [
    'a part without its function',
    'chat.completions',
    LED,
    START,
    REST,
    calling({ function: null }),
  ],
  ['an empty list of content', 'chat.completions', LED, START, calling(fun('1}'), { content: [] })],
  [
    'a message in chunks of text alone',
    'chat.completions',
    chunkOf([{ index: 0, delta: { content: 'hi' }, message: { content: 'hi' } }]),
  ],
  [
    'an item that its deltas name by the id of its call',
    'responses.create',
    data({ type: 'response.output_item.added', item: { ...llama, arguments: '' } }),
    ...['{"n":', '1}'].map((text) => goesOn(text, { item_id: 'fc_x' })),
    data({ type: 'response.output_item.done', item: { ...llama, arguments: '{"n":1}' } }),
    completed({ ...llama, arguments: '{"n":1}', status: 'completed' }),
  ],
  ['a message of text that begins twice', 'messages', begin(), begin(), block(0, PLAIN)],
  [
    'an index that comes back behind what ran upstream',
    'messages',
    ...[begin(), block(0, hosted), input(0, '{}'), data({ type: 'content_block_stop', index: 0 })],
    ...[block(1, { type: 'web_search_tool_result', content: [] }), block(1, PLAIN)],
  ],
];

describe('what hosts send passes:', () => {
  test.each(HONEST)('%s (%s)', (_, endpoint, ...events) => {
    const text = events.join('');
    const asked = policySchema.parse({
      tools: { allow: ['*'], requireApproval: [{ tool: 'drop_table' }] },
    });
    const { fault, passed, withheld, isStopped, calls } = runText(endpoint, text, asked);
    expect([fault, isStopped]).toEqual([undefined, false]);
    expect(decoder.decode(Buffer.concat([passed, withheld]))).toBe(text);
    const said = events.length > 3 && endpoint !== 'messages' ? ['pay'] : [];
    expect([...new Set(calls.map(({ name }) => name))]).toEqual(expect.arrayContaining(said));
  });

  test('whole answers with an empty former call', () => {
    for (const function_call of NO_FORMER) {
      const tool_calls = [{ id: 'a', type: 'function', ...fun('{}', 'pay') }];
      for (const [message, names] of [
        [{ content: 'hi', function_call }, []],
        [{ content: null, function_call, tool_calls }, ['pay']],
      ] as const) {
        const reader = readerOf('chat.completions');
        const calls = reader.body(encoder.encode(JSON.stringify({ choices: [{ message }] })));
        expect([reader.fault, calls.map(({ name }) => name)]).toEqual([undefined, [...names]]);
      }
    }
  });

  test.each(USUAL)('%s', (_, choices, events, told) => {
    const chunks = [encoder.encode(events.join(''))];
    const { fault, calls, withheld } = run('chat.completions', chunks, POLICIES.open, choices);
    expect([fault, withheld.length]).toEqual([undefined, 0]);
    expect(calls.map(({ name, argsText }) => `${name} ${argsText}`).sort()).toEqual(told);
  });

  test('the parts of one call go on in the choice that began it alone', () => {
    const chunks = [BEGUN, chunkOf([delta(1, part(0, '000'))]), ENDED].map((text) =>
      encoder.encode(text),
    );
    expect(run('chat.completions', chunks, POLICIES.open, 2).fault).toBeString();
  });
});

describe('a call is decided on in each way that clients read it:', () => {
  const odd = (more: object, of: object = {}) =>
    chunkOf([{ index: 0, delta: { tool_calls: [part(0, '0', more as JsonObject)] } }], of);
  const PAY = part(0, '0');
  const ways: readonly (readonly [what: string, events: string[], args: string[]])[] = [
    ['a chunk that some drop', [odd({}, { created: 'x' })], ['{"n":10}', '{"n":1}']],
    ['a call of a type that some drop', [odd({ type: '' })], ['{"n":10}', '{"n":1}']],
    [
      'a role that holds for the chunks after it',
      [ROLE, one(PAY), chunkOf([{ index: 0, delta: { role: 'assistant' } }])],
      ['{"n":10}', '{"n":1}'],
    ],
    [
      'chunks that are dropped for two things',
      [odd({}, { created: 'x' }), odd({ type: '' }, { created: 'x' })],
      ['{"n":100}', '{"n":10}', '{"n":1}'],
    ],
  ];
  test.each(ways)('%s', (_, events, args) => {
    const lead = chunkOf([{ index: 0, delta: { role: 'assistant' } }]);
    const text = [lead, BEGUN, ...events, ENDED].join('');
    const { calls, fault } = runText('chat.completions', text, POLICIES.open);
    expect(fault).toBeUndefined();
    const told = calls.map(({ name, argsText }) => `${name} ${argsText}`);
    expect(told.sort()).toEqual(args.map((each) => `pay ${each}`).sort());
  });

  test('a part that is a call by itself', () => {
    const parts = ['{"x":', '{"n":9}', '}'].map((args) => one(pay(0, args)));
    const { calls } = runText('chat.completions', parts.join(''), POLICIES.open);
    expect(calls.map(({ argsText }) => argsText)).toContain('{"n":9}');
  });

  test('a name in pieces under the second id of an index', () => {
    const names = [
      part(0, '', { id: 'a', name: 'lookup' }),
      part(0, '', { id: 'b', name: 'drop_' }),
      part(0, '', { id: 'b', name: 'table' }),
    ].map((each) => one(each));
    const deny = policySchema.parse({ tools: { deny: ['drop_table'] } });
    const { passed, isStopped } = runText('chat.completions', names.join(''), deny);
    expect([decoder.decode(passed).includes('"table"'), isStopped]).toEqual([false, true]);
  });
});

describe('parts of a call that share an index', () => {
  const callsOf = (...events: string[]) =>
    runText('chat.completions', events.join(''), POLICIES.open).calls.map(
      ({ name, argsText }) => `${name} ${argsText}`,
    );

  test('and have no id belong to the last one, or to the first', () => {
    const second = one(part(0, '{"n":1}', { id: 'b', name: 'lookup' }));
    const calls = callsOf(one(part(0, '', { id: 'a', name: 'pay' })), second, one(part(0, ' ')));
    expect(calls).toEqual(expect.arrayContaining(['lookup {"n":1} ', 'pay  ']));
  });

  test('and have an id but no name may have any of the names', () => {
    const first = one(part(0, '{"n":1}', { id: 'a' }));
    const calls = callsOf(first, one(part(0, '{}', { id: 'b', name: 'pay' })));
    expect(calls).toEqual(['pay {"n":1}{}', 'pay {"n":1}', 'pay {}']);
  });
});

describe('items of a response', () => {
  const shell = (status: string, command: string) => ({
    ...{ type: 'shell_call', id: 'i', call_id: command, status },
    action: { commands: [command] },
  });
  const commands = (text: string) =>
    runText('responses.create', text, POLICIES.open).calls.map(({ argsText }) => argsText);

  test('are decided on though they are in progress, unless they only begin', () => {
    const both = ['{"commands":["ls"]}', '{"commands":["rm"]}'];
    const list = completed(shell('completed', 'ls'), shell('in_progress', 'rm'));
    expect(commands(list)).toEqual(both);
    const done = {
      type: 'response.output_item.done',
      output_index: 0,
      item: shell('in_progress', 'ls'),
    };
    expect(commands(data(done) + completed(shell('completed', 'rm')))).toEqual(both);
    const start = { ...done, type: 'response.output_item.added' };
    expect(commands(data(start) + completed(shell('completed', 'rm')))).toEqual([both[1]!]);
  });

  test('are joined by the deltas of one type', () => {
    const other = goesOn('e-9').replace('function_call_arguments', 'mcp_call_arguments');
    const text = added({ arguments: '' }) + goesOn('{"n":1') + other + goesOn('000}');
    const { calls } = runText('responses.create', text, POLICIES.open);
    expect(calls.map(({ argsText }) => argsText)).toContain('{"n":1000}');
  });

  test('may have begun before a stream that was taken up again, if they end as it says', () => {
    const read = (...events: string[]) => {
      const screen = new Screen(readerOf('responses.get', { isResumed: true }), () => 'allow');
      screen.push(encoder.encode(events.join('')));
      return [screen.end().calls.map(({ argsText }) => argsText), screen.fault === undefined];
    };
    expect(read(goesOn(':1}'), completed(WHOLE_ITEM))).toEqual([['{"n":1}'], true]);
    expect(read(goesOn(':2}'), completed(WHOLE_ITEM))[1]).toBe(false);
    expect(read(goesOn(':1}'))[1]).toBe(false);
  });
});

// The SDKs themselves on what passes

const gated = (endpoint: Form['endpoint']): Response => {
  const form = usualForm(endpoint, endpoint === 'messages' ? 'tool_use' : 'function');
  const proposals = proposalsOf(form, 'drop_table', '{"sql":"DROP"}', 2, 1);
  const text = framesOf(endpoint, proposals)
    .map((frame) => frame.text)
    .join('');
  const { passed } = runText(endpoint, text);
  return new Response(new Uint8Array(passed), {
    headers: { 'content-type': 'text/event-stream' },
  });
};

describe('an SDK sees the calls before one that is held back, and never that one', () => {
  const keys = { apiKey: 'k', maxRetries: 0 };

  test('openai, chat', async () => {
    const client = new OpenAI({ ...keys, fetch: async () => gated('chat.completions') });
    const seen: string[] = [];
    const stream = await client.chat.completions.create({ model: 'm', messages: [], stream: true });
    for await (const { choices } of stream) {
      for (const call of choices[0]?.delta.tool_calls ?? []) seen.push(JSON.stringify(call));
    }
    expect(seen.join()).toContain('lookup');
    expect(seen.join()).not.toMatch(/drop_table|DROP/);
  });

  test('openai, responses', async () => {
    const client = new OpenAI({ ...keys, fetch: async () => gated('responses.create') });
    const seen: string[] = [];
    const stream = await client.responses.create({ model: 'm', input: 'x', stream: true });
    for await (const event of stream) if ('item' in event) seen.push(JSON.stringify(event.item));
    expect(seen.join()).toContain('lookup');
    expect(seen.join()).not.toMatch(/drop_table|DROP/);
  });

  test('@anthropic-ai/sdk, messages', async () => {
    const client = new Anthropic({ ...keys, fetch: async () => gated('messages') });
    const seen: string[] = [];
    const stream = client.messages.stream({ model: 'm', max_tokens: 9, messages: [] });
    stream.on('streamEvent', (_, snapshot) => void seen.push(JSON.stringify(snapshot.content)));
    await stream.done().catch(() => {});
    expect(seen.join()).toContain('lookup');
    expect(seen.join()).not.toMatch(/drop_table|DROP/);
  });
});
