/** Proposed calls are read alike in every dialect, kind and number, streamed or not. */

import { describe, expect, test } from 'bun:test';
import fc from 'fast-check';
import type { Asked, Endpoint, ProposedCall } from '../functions/providers/contract.ts';
import { ENDPOINTS } from '../functions/providers/endpoints.ts';
import { mendHalves } from '../functions/providers/halves.ts';
import { toolResults } from '../functions/providers/results.ts';
import { sourcesOf } from '../functions/providers/source.ts';
import type { Answer } from '../functions/proxy/forward.ts';
import { judge } from '../functions/proxy/gate.ts';
import { Screen } from '../functions/proxy/screen.ts';
import type { Json, JsonObject } from '../schema/json.ts';
import { type Policy, policySchema } from '../schema/policy.ts';
import { decideTool, judgeName } from '../schema/rules/tools.ts';
import { coerced, type Told } from './coercing.ts';
import {
  bodyOf,
  FORMS,
  type Form,
  framesOf,
  type Proposal,
  proposalsOf,
  RULES,
} from './proposals.ts';

// biome-ignore lint/suspicious/noExplicitAny: chunks are spoilt wherever that matters.
type Loose = any;

const encoder = new TextEncoder();
const decoder = new TextDecoder();
const endpointOf = (name: string): Endpoint => ENDPOINTS.find((each) => each.name === name)!;
const readerOf = (name: string, asked?: Asked) => endpointOf(name).calls!(asked);
const effectsOf = (policy: Policy, calls: readonly ProposedCall[]) =>
  new Set(calls.map((call) => decideTool(policy, call).effect));

function expected(proposals: readonly Proposal[], isStream = false): string[] {
  return proposals
    .flatMap(([form, call]) =>
      form.names(call.name).flatMap((name) => {
        const texts = [form.argsText(call.args), ...((isStream && form.alsoStreamed) || [])];
        return texts.map((argsText) =>
          JSON.stringify([form.kind, form.id(call), name, argsText, JSON.parse(argsText)]),
        );
      }),
    )
    .sort();
}

const told = (calls: readonly ProposedCall[]) =>
  calls
    .map(({ kind, id, name, argsText, args }) => JSON.stringify([kind, id, name, argsText, args]))
    .sort();

const cells = FORMS.flatMap((form) =>
  [1, 2, 3].flatMap((count) => Array.from({ length: count }, (_, at) => ({ form, count, at }))),
);

for (const [rule, [effect, toolsOf]] of Object.entries(RULES)) {
  describe(`a call that is ${rule}`, () => {
    test.each(cells)('$form.endpoint $form.label, $at of $count', ({ form, count, at }) => {
      const proposals = proposalsOf(form, count, at);
      const policy = policySchema.parse({ tools: toolsOf(form.names('drop_table')) });
      const reader = readerOf(form.endpoint, { choices: count });
      const calls = reader.body(encoder.encode(bodyOf(form.endpoint, proposals)));
      expect(reader.fault).toBeUndefined();
      expect(told(calls)).toEqual(expected(proposals));
      expect(effectsOf(policy, calls).has(effect as 'allow')).toBe(true);

      const frames = framesOf(form.endpoint, proposals);
      const streamed = readerOf(form.endpoint, { choices: count });
      const screen = new Screen(streamed, (name) => judgeName(policy, name));
      const passed = frames.map(({ text }) => decoder.decode(screen.push(encoder.encode(text))));
      const { withheld, calls: found } = screen.end();
      const first = frames.findIndex(({ calls: [...numbers] }) => numbers.includes(at));
      const open = rule === 'allowed by a list' ? frames : frames.slice(0, first);
      expect(passed.join('')).toBe(open.map(({ text }) => text).join(''));
      expect(passed.join('') + decoder.decode(withheld)).toBe(
        frames.map(({ text }) => text).join(''),
      );
      expect(screen.fault).toBeUndefined();
      expect(told(found)).toEqual(expected(proposals, true));
      expect(effectsOf(policy, found).has(effect as 'allow')).toBe(true);
    });
  });
}

describe('hosted calls', () => {
  const hosted = ['code_interpreter', 'web_search', 'file_search', 'image_generation'];
  test.each(hosted)('%s is no proposal of a response', (kind) => {
    const policy = policySchema.parse({ tools: { allow: [] } });
    const item = `{"id":"i1","type":"${kind}_call","status":"completed","code":"x"}`;
    const events = [
      `data: {"type":"response.output_item.added","output_index":0,"item":${item}}\n\n`,
      `data: {"type":"response.${kind}_call.in_progress","output_index":0,"item_id":"i1"}\n\n`,
      `data: {"type":"response.${kind}_call_code.delta","output_index":0,"item_id":"i1","delta":"x"}\n\n`,
      `data: {"type":"response.output_item.done","output_index":0,"item":${item}}\n\n`,
    ];
    const screen = new Screen(readerOf('responses.create'), (name) => judgeName(policy, name));
    const passed = events.map((text) => decoder.decode(screen.push(encoder.encode(text))));
    expect(passed).toEqual(events);
    expect(screen.end().calls).toEqual([]);
  });

  test.each(['server_tool_use', 'mcp_tool_use'])('%s is no proposal of a message', (type) => {
    const policy = policySchema.parse({ tools: { allow: [] } });
    const input = '"delta":{"type":"input_json_delta","partial_json":"{}"}';
    const events = [
      `data: {"type":"content_block_start","index":0,"content_block":{"type":"${type}","id":"s","name":"bash","input":{}}}\n\n`,
      `data: {"type":"content_block_delta","index":0,${input}}\n\n`,
    ];
    const screen = new Screen(readerOf('messages'), (name) => judgeName(policy, name));
    const passed = events.map((text) => decoder.decode(screen.push(encoder.encode(text))));
    expect(passed).toEqual(events);
    expect(screen.end().calls).toEqual([]);
  });
});

test('the calls of every answer that may hold a response are read', () => {
  const rows = ENDPOINTS.filter(({ path }) => /^responses(?:$|\/\{id\})/.test(path));
  expect(rows.map(({ name }) => name)).toContain('responses.delete');
  expect(rows.filter(({ calls }) => !calls)).toEqual([]);
});

describe('a search for tools', () => {
  test.each([
    ['server', []],
    ['client', ['tool_search']],
  ])('that the %s runs', (execution, names) => {
    const item = { type: 'tool_search_call', id: 'a', execution, arguments: { q: 1 } };
    const body = encoder.encode(JSON.stringify({ output: [item] }));
    expect(
      readerOf('responses.create')
        .body(body)
        .map(({ name }) => name),
    ).toEqual(names);
  });
});

const differing: readonly (readonly [why: string, Form['endpoint'], string[], string[]])[] = [
  [
    'deltas of a response differ from what is done',
    'responses.create',
    [
      '{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","id":"i","call_id":"c","name":"pay","arguments":"","status":"in_progress"}}',
      '{"type":"response.function_call_arguments.delta","output_index":0,"item_id":"i","delta":"{\\"n\\":9}"}',
      '{"type":"response.function_call_arguments.done","output_index":0,"item_id":"i","arguments":"{\\"n\\":1}"}',
      '{"type":"response.output_item.done","output_index":0,"item":{"type":"function_call","id":"i","call_id":"c","name":"pay","arguments":"{\\"n\\":2}","status":"completed"}}',
      '{"type":"response.completed","response":{"output":[{"type":"function_call","id":"i","call_id":"c","name":"give","arguments":"{\\"n\\":3}","status":"completed"}]}}',
    ],
    ['give 1', 'give 2', 'give 3', 'give 9', 'pay 1', 'pay 2', 'pay 3', 'pay 9'],
  ],
  [
    'a block begins with another input than its deltas make',
    'messages',
    [
      '{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"c","name":"pay","input":{"n":1}}}',
      '{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\\"n\\":9}"}}',
    ],
    ['pay 1', 'pay 9'],
  ],
  [
    'a name comes in pieces, and the index back with another id',
    'chat.completions',
    [
      '{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"drop","arguments":"{\\"n\\":1}"}}]}}]}',
      '{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"b","function":{"name":"_all","arguments":"{\\"n\\":2}"}}]}}]}',
    ],
    ['_all 2', '_all ?', 'drop 1', 'drop ?', 'drop_all ?'],
  ],
];

describe('where readers could read several calls', () => {
  test.each(differing)('%s: each is one', (_, endpoint, events, calls) => {
    const reader = readerOf(endpoint);
    for (const data of events) reader.event({ event: '', data, start: 0, end: 0 });
    const found = reader.calls().map(({ name, args }) => `${name} ${args?.n ?? '?'}`);
    expect(found.sort()).toEqual(calls);
  });

  const ADDED = 'response.output_item.added';
  const DONE = 'response.output_item.done';
  const item = (type: string, more: object) => ({
    type,
    id: 'i',
    call_id: 'c',
    name: 'p',
    ...more,
  });
  test.each([
    [
      'another item goes on between its parts',
      [
        { type: ADDED, output_index: 1, item: item('function_call', { arguments: '' }) },
        { type: 'response.output_text.delta', output_index: 0, delta: 'so' },
        { type: 'response.function_call_arguments.delta', output_index: 1, delta: '{}' },
      ],
    ],
    [
      'it is told whole twice',
      [1, 2].map(() => ({ type: DONE, output_index: 0, item: item('custom_tool_call', {}) })),
    ],
  ])('a call keeps the answer from passing where %s', (_, events) => {
    const reader = readerOf('responses.create');
    for (const { type: event, ...rest } of events) {
      const data = JSON.stringify({ type: event, ...rest });
      reader.event({ event, data, start: 0, end: 0 });
    }
    reader.end();
    expect(reader.fault).toBeDefined();
  });

  test('a call of a finished response repeats one that events told, whichever its id is, once', () => {
    const call = (id: string) => item('function_call', { id, call_id: id, arguments: '{}' });
    const done = (id: string, at: number) => ({ type: DONE, output_index: at, item: call(id) });
    const ended = (...ids: string[]) => {
      return { type: 'response.completed', response: { output: ids.map(call) } };
    };
    const asked = (...events: { type: string }[]) => {
      const told = events.map((data) => ({
        event: data.type,
        data: data as unknown as JsonObject,
      }));
      const { calls, fault } = judgedBy('responses.create', told);
      expect(fault).toBeUndefined();
      return calls.filter(({ isRepeat }) => !isRepeat).map(({ id }) => id);
    };
    expect(asked(done('a', 0), done('b', 1), ended('x', 'y'))).toEqual(['a', 'b']);
    expect(asked(done('a', 0), ended('x', 'y'))).toEqual(['a', 'y']);
    expect(asked(done('a', 0), ended('a', 'x'))).toEqual(['a', 'x']);
    expect(asked(ended('x', 'y'))).toEqual(['x', 'y']);
    const { id: _, ...unplaced } = call('a');
    const named = { type: 'response.completed', response: { output: [unplaced] } };
    expect(asked(done('a', 1), named)).toEqual(['a']);
    expect(asked({ ...named, type: 'response.in_progress' }, done('a', 1))).toEqual(['a']);
  });

  test('people are asked once about a call that is repeated, and each of its ids is given out', async () => {
    const call = { kind: 'function_call', name: 'pay', args: {}, argsText: '{}' } as const;
    const calls = [
      { ...call, id: 'a' },
      { ...call, id: 'x', isRepeat: true },
    ];
    const policy = policySchema.parse({ tools: { requireApproval: [{ tool: 'pay' }] } });
    const answer = { version: { policy }, endpoint: endpointOf('responses.create') } as Answer;
    const verdict = await judge(answer, { calls, fault: undefined, lengthBytes: 1 });
    if (verdict.effect !== 'ask') throw new Error(verdict.effect);
    expect(verdict.asked.map((each) => each.call.id)).toEqual(['a']);
    expect(verdict.callIds).toEqual(['a', 'x']);
  });

  test('a call is one where no event of the answer says a place, as at some hosts', () => {
    const reader = readerOf('responses.create');
    const told = { type: 'response.function_call_arguments.delta', item_id: 'i', delta: '{"n":1}' };
    for (const { type: event, ...rest } of [
      { type: ADDED, item: item('function_call', { arguments: '', status: 'in_progress' }) },
      told,
      { type: DONE, item: item('function_call', { arguments: '{"n":1}' }) },
    ]) {
      reader.event({ event, data: JSON.stringify({ type: event, ...rest }), start: 0, end: 0 });
    }
    expect(reader.end().map(({ argsText }) => argsText)).toEqual(['{"n":1}']);
    expect(reader.fault).toBeUndefined();
  });

  test('arguments that are not strict JSON are none', () => {
    const bad = ['{"a":1,"a":2}', '{"a":1} ', '', '[]', '{"a":"\\ud800"}', '{"a":1', '1e999'];
    for (const args of bad) {
      const body = { choices: [{ message: { function_call: { name: 'f', arguments: args } } }] };
      const [call] = readerOf('chat.completions').body(encoder.encode(JSON.stringify(body)));
      const isStrict = args === '{"a":1} ';
      expect([call!.args === undefined, call!.argsText]).toEqual([!isStrict, args]);
    }
  });

  test('numbers stand in the text of an object as the model wrote them', () => {
    const content =
      '[{"type":"tool_use","id":"t","name":"f","input":{ "n" : 12345678901234567890}}]';
    const [call] = readerOf('messages').body(encoder.encode(`{"content":${content}}`));
    expect(call!.argsText).toBe('{ "n" : 12345678901234567890}');
  });
});

// What clients make of members of other types, and of places that are none

const STREAMED = FORMS.filter(({ label }) =>
  ['function', 'former', 'function_call', 'tool_use', 'tool_use begun whole'].includes(label),
);

/** The events of a stream, each as its name and its data; what is no JSON is left out. */
function eventsOf(frames: readonly { text: string }[]): Told[] {
  return frames.flatMap(({ text }) => {
    const [, event, data = ''] = /^(?:event: (\S+)\n)?data: (.*)/.exec(text) ?? [];
    return data.startsWith('{') ? [{ event, data: JSON.parse(data) as JsonObject }] : [];
  });
}

type Holder = Record<string | number, Json>;

/** Every member of a value, at any depth, with what holds it. */
function membersIn(value: Json): (readonly [holder: Holder, key: string])[] {
  if (typeof value !== 'object' || value === null) return [];
  const holder = value as Holder;
  return Object.keys(value).flatMap((key) => [[holder, key] as const, ...membersIn(holder[key]!)]);
}

const INDEXES = ['index', 'output_index'];

function judgedBy(endpoint: string, events: readonly Told[]) {
  const reader = readerOf(endpoint);
  for (const { event = '', data } of events) {
    reader.event({ event, data: JSON.stringify(data), start: 0, end: 0 });
  }
  return { calls: reader.end(), fault: reader.fault };
}

/** Calls that some client would run, though nobody decided on them. */
function unjudged(endpoint: string, events: readonly Told[]): object[] {
  const { calls, fault } = judgedBy(endpoint, events);
  if (fault !== undefined) return [];
  return coerced(endpoint, events).filter(
    ({ name, args }) =>
      !calls.some((call) => {
        return call.name === name && (!call.args || Bun.deepEquals(call.args, args));
      }),
  );
}

describe('whatever stands in place of a member of a stream', () => {
  const numbers = [-1, 0, 1, 2, 0.5, '0', '1', false, true, [0], null] as Json[];
  const others = [555, '5', '', true, null, ['drop_table'], ['5'], { 0: 'x' }, {}, []] as Json[];
  const change = fc.record({ event: fc.nat(), member: fc.nat(), value: fc.nat() });

  test('is decided on as clients read it, or keeps the answer from passing', () => {
    let read = 0;
    fc.assert(
      fc.property(
        ...[fc.constantFrom(...STREAMED), fc.integer({ min: 1, max: 2 })],
        ...[fc.array(change, { maxLength: 3 }), fc.array(fc.nat(), { maxLength: 2 })],
        fc.array(fc.tuple(fc.nat(), fc.nat()), { maxLength: 2 }),
        (form, count, changes, repeats, moves) => {
          const one = form.label === 'former' ? 1 : count;
          const events = eventsOf(framesOf(form.endpoint, proposalsOf(form, one, 0)));
          for (const { event, member, value } of changes) {
            const members = membersIn(events[event % events.length]!.data);
            const [holder, key] = members[member % members.length] ?? [{}, ''];
            const values = INDEXES.includes(key) ? numbers : others;
            holder[key] = structuredClone(values[value % values.length]!);
          }
          for (const repeat of repeats) {
            const at = repeat % events.length;
            events.splice(at, 0, structuredClone(events[at]!));
          }
          for (const [from, to] of moves) {
            const [moved] = events.splice(from % events.length, 1);
            events.splice(to % (events.length + 1), 0, moved!);
          }
          expect(unjudged(form.endpoint, events)).toEqual([]);
          if (judgedBy(form.endpoint, events).fault === undefined) read += 1;
        },
      ),
      { numRuns: 6_000 },
    );
    expect(read).toBeGreaterThan(1_000);
  });

  const cells = STREAMED.flatMap((form) => {
    const events = eventsOf(framesOf(form.endpoint, proposalsOf(form, 1, 0)));
    return events.flatMap(({ data }, at) =>
      membersIn(data).map(([, key], member) => ({ form, at, member, key })),
    );
  });
  const OF_CALLS = ['name', 'arguments', 'partial_json', 'index', 'output_index', 'delta'];

  test.each(cells.filter(({ key }) => OF_CALLS.includes(key)))(
    '$form.endpoint $form.label: event $at, member $member ($key)',
    ({ form, at, member, key }) => {
      for (const value of [...numbers, ...others]) {
        const events = eventsOf(framesOf(form.endpoint, proposalsOf(form, 1, 0)));
        const [holder] = membersIn(events[at]!.data)[member]!;
        holder[key] = value;
        expect(unjudged(form.endpoint, events)).toEqual([]);
      }
    },
  );

  test.each([[undefined], [null], [false], [''], [[]]])(
    'a block that begins as %p is a block',
    (nothing) => {
      const form = STREAMED.find(({ endpoint }) => endpoint === 'messages')!;
      const events = eventsOf(framesOf(form.endpoint, proposalsOf(form, 1, 0)));
      const at = events.findIndex(({ event }) => event === 'content_block_start');
      const { event, data } = structuredClone(events[at]!);
      delete data.content_block;
      if (nothing !== undefined) data.content_block = nothing;
      expect(unjudged(form.endpoint, events.toSpliced(at, 0, { event, data }))).toEqual([]);
      expect(judgedBy(form.endpoint, events.toSpliced(at, 1, { event, data })).fault).toBeDefined();
    },
  );
});

describe('a client may run a call', () => {
  const streamOf = (endpoint: Form['endpoint'], label: string) => {
    const form = FORMS.find((each) => each.endpoint === endpoint && each.label === label)!;
    return eventsOf(framesOf(endpoint, proposalsOf(form, 1, 0)));
  };

  test('by what its name was before a part that ends it for some', () => {
    const part = (call: object): Told => {
      const choice = {
        index: 0,
        delta: { role: 'assistant', tool_calls: [{ index: 0, ...call }] },
      };
      return { event: undefined, data: { choices: [choice] } as unknown as JsonObject };
    };
    const named = (name: string, args = '') => ({ function: { name, arguments: args } });
    const begun = [part({ id: 'a', ...named('drop_') }), part(named('table', '{}'))];
    const other = part({ ...named('lookup', '{}'), index: 1, id: 'b' });
    for (const rest of [[part({ type: 'custom', ...named('x') })], [other]]) {
      const events = [...begun, ...rest, part(named('y'))];
      expect(unjudged('chat.completions', events)).toEqual([]);
      const { calls, fault } = judgedBy('chat.completions', events);
      expect(fault).toBeUndefined();
      expect(calls.map(({ name }) => name)).toContain('drop_table');
    }
  });

  test('of a message as it is when any of its blocks ends', () => {
    const events = streamOf('messages', 'tool_use');
    const at = events.findLastIndex(({ event }) => event === 'content_block_stop') - 1;
    const stop = { type: 'content_block_stop', index: 0 };
    for (const early of [stop, { type: 'content_block_stop' }]) {
      const told = { event: 'content_block_stop', data: early as JsonObject };
      expect(judgedBy('messages', events.toSpliced(at, 0, told)).fault).toBeDefined();
    }
    expect(judgedBy('messages', events).fault).toBeUndefined();
  });

  test('without the input that its block began with', () => {
    const events = streamOf('messages', 'tool_use begun whole');
    const at = events.findLastIndex(({ event }) => event === 'content_block_stop');
    const delta = { type: 'input_json_delta', partial_json: '' };
    const data = { type: 'content_block_delta', index: 1, delta };
    for (const all of [events, events.toSpliced(at, 0, { event: data.type, data })]) {
      expect(judgedBy('messages', all).calls.map(({ argsText }) => argsText)).toContain('{}');
    }
  });

  test.each([
    ['function_call', '{}'],
    ['custom_tool_call', '{"input":""}'],
  ])('of a response without the arguments that no delta told: %s', (label, nothing) => {
    const events = streamOf('responses.create', label);
    const untold = events.filter(({ event }) => !/_call_\w+\.delta$/.test(event ?? ''));
    const texts = (all: readonly Told[]) =>
      judgedBy('responses.create', all).calls.map(({ argsText }) => argsText);
    const unplaced = events.map(({ event, data }): Told => {
      const { output_index: _, ...rest } = data;
      return { event, data: /_call_/.test(event ?? '') ? rest : data };
    });
    for (const all of [untold, unplaced]) expect(texts(all)).toContain(nothing);
    expect(texts(events)).not.toContain(nothing);
  });

  test.each(['function_call', 'custom_tool_call'])(
    'of a response by the name that the end of its arguments has, or with what comes behind its end: %s',
    (label) => {
      const events = streamOf('responses.create', label);
      const done = events.findIndex(({ event }) => /_call_\w+\.done$/.test(event ?? ''));
      const named = (name: string) => {
        const { event, data } = events[done]!;
        return events.with(done, { event, data: { ...data, name } });
      };
      expect(judgedBy('responses.create', named('drop_table')).fault).toBeUndefined();
      expect(judgedBy('responses.create', named('lookup')).fault).toBeDefined();
      const [delta] = events.splice(done - 1, 1);
      const end = events.findLastIndex(({ event }) => event === 'response.output_item.done');
      events.splice(end + 1, 0, delta!);
      expect(judgedBy('responses.create', events).fault).toBeDefined();
    },
  );
});

/** Members for which some client drops a chunk, and its calls with it. */
const ODDS: readonly (readonly [at: 'chunk' | 'delta' | 'call', members: JsonObject])[] = [
  ...['', 'x', null].map((object) => ['chunk', { object }] as const),
  ['chunk', { created: 'x' }],
  ['chunk', { usage: { prompt_tokens: 1 } }],
  ['chunk', { usage: { prompt_cache_hit_tokens: 'x' } }],
  ['chunk', { usage: { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2, cost: 'x' } }],
  ...[5, { usage: 5 }].map((x_groq) => ['chunk', { x_groq }] as const),
  ...['user', ''].map((role) => ['delta', { role }] as const),
  ['delta', { content: [{ type: 'text', text: 'x' }] }],
  ['delta', { reasoning: 5 }],
  ['delta', { reasoning_content: 5 }],
  ...['', null, 'custom'].map((type) => ['call', { type }] as const),
  ['call', { extra_content: 5 }],
];

function spoil(chunk: Loose, [at, members]: (typeof ODDS)[number]): void {
  const { delta } = chunk.choices[0];
  Object.assign({ chunk, delta, call: delta.tool_calls[0] }[at], members);
}

/** Chunks without a call that change how some client reads those after them, or before. */
const BETWEEN: readonly object[] = [
  ...['user', 'assistant', ''].map((role) => ({ delta: { role } })),
  { delta: {}, message: { role: 'assistant', content: null } },
  {
    delta: {},
    message: { tool_calls: [{ id: 'a', function: { name: 'b', arguments: '{"n":1' } }] },
  },
  {
    delta: {},
    message: { tool_calls: [{ id: 'a', function: { name: 'b', arguments: '{"n":5}' } }] },
  },
  { delta: { content: 'hi' } },
];

describe('the parts of a call', () => {
  const chunkOf = (choice: object): Loose => ({
    ...{ id: 'c', object: 'chat.completion.chunk', created: 1, model: 'm' },
    choices: [{ index: 0, finish_reason: null, ...choice }],
  });
  const part = fc.record({
    name: fc.constantFrom(undefined, '', 'a', 'b'),
    id: fc.constantFrom(undefined, '', 'a'),
    args: fc.constantFrom('', '{"n":1', '0', 'e-9', ',"x":1', '}', '{"n":5}'),
    odds: fc.array(fc.nat(ODDS.length - 1), { maxLength: 2 }),
    between: fc.option(fc.nat(BETWEEN.length - 1), { freq: 3 }),
  });

  test('are decided on as clients put them together that drop other chunks, or keep the answer from passing', () => {
    let read = 0;
    fc.assert(
      fc.property(
        fc.boolean(),
        fc.array(part, { minLength: 1, maxLength: 5 }),
        fc.option(fc.constantFrom(...BETWEEN)),
        (hasRole, parts, last) => {
          const told = parts.flatMap(({ name, id, args, odds, between }) => {
            const call = { index: 0, ...(id !== undefined && { id }) };
            const holder = { ...(name !== undefined && { name }), arguments: args };
            const chunk = chunkOf({ delta: { tool_calls: [{ ...call, function: holder }] } });
            for (const odd of odds) spoil(chunk, ODDS[odd]!);
            return between === null ? [chunk] : [chunkOf(BETWEEN[between]!), chunk];
          });
          const lead = hasRole ? [chunkOf({ delta: { role: 'assistant', content: null } })] : [];
          const end = last === null ? [] : [chunkOf(last)];
          const events = [...lead, ...told, ...end].map((data) => ({ event: undefined, data }));
          expect(unjudged('chat.completions', events)).toEqual([]);
          if (judgedBy('chat.completions', events).fault === undefined) read += 1;
        },
      ),
      { numRuns: 5_000 },
    );
    expect(read).toBeGreaterThan(1_000);
  });

  test('may be said again by a message that ends their stream, which says nothing else', () => {
    const call = (args: string, name = 'b') => {
      return { index: 0, id: 'a', function: { name, arguments: args } };
    };
    const parts = ['', '{"n":', '1}'].map((args) => {
      return chunkOf({ delta: { tool_calls: [call(args, args === '' ? 'b' : '')] } });
    });
    const ended = (args: string, delta?: object) =>
      chunkOf({
        ...(delta && { delta }),
        message: { role: 'assistant', tool_calls: [call(args)] },
      });
    const judged = (...chunks: Loose[]) =>
      judgedBy(
        'chat.completions',
        chunks.map((data) => ({ event: undefined, data })),
      );
    const { calls, fault } = judged(...parts, ended('{"n":1}'));
    expect(fault).toBeUndefined();
    expect(calls.map(({ name, argsText }) => [name, argsText])).toEqual([['b', '{"n":1}']]);
    expect(judged(...parts, ended('{"n":9}')).fault).toBeDefined();
    expect(judged(...parts.slice(0, 2), ended('{"n":'), parts[2]).fault).toBeDefined();
    const more = { tool_calls: [call('1}', '')] };
    expect(judged(...parts.slice(0, 2), ended('{"n":', more)).fault).toBeDefined();
    const silent = chunkOf({ message: { role: 'assistant', content: 'so' } });
    expect(judged(...parts, silent).fault).toBeUndefined();
  });

  test('are held back as soon as some client could have a name of them that is not allowed', () => {
    const policy = policySchema.parse({ tools: { deny: ['drop_table'] } });
    for (const odd of ODDS) {
      const chunks = ['drop_', 'x_', 'table'].map((name, at) => {
        const call = { index: 0, id: 'a', function: { name, arguments: '' } };
        const chunk = chunkOf({ delta: { role: 'assistant', tool_calls: [call] } });
        if (at === 1) spoil(chunk, odd);
        return `data: ${JSON.stringify(chunk)}\n\n`;
      });
      const screen = new Screen(readerOf('chat.completions'), (name) => judgeName(policy, name));
      const passed = chunks.map((text) => decoder.decode(screen.push(encoder.encode(text))));
      expect(passed).toEqual([...chunks.slice(0, 2), '']);
    }
  });
});

/** An event of each dialect that says a piece of text, given as the JSON of a string. */
const SAYING: Readonly<Record<Form['endpoint'], (text: string) => string>> = {
  'chat.completions': (text) =>
    `{"choices":[{"index":0,"delta":{"content":${text},"tool_calls":null,"function_call":null}}]}`,
  'responses.create': (text) =>
    `{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":${text}}`,
  messages: (text) =>
    `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":${text}}}`,
};
const DIALECTS = Object.entries(SAYING) as [Form['endpoint'], (text: string) => string][];

/** Answers that are text alone, or nearly. */
const WHOLE: Readonly<Record<Form['endpoint'], (text: string) => string>> = {
  'chat.completions': (text) => `{"choices":[{"message":{"content":${text},"tool_calls":[]}}]}`,
  'responses.create': (text) =>
    `{"output":[{"type":"message","content":[{"type":"output_text","text":${text}}]}]}`,
  messages: (text) => `{"content":[{"type":"text","text":${text}}]}`,
};

/** Half of a character where what stands there finds a call, or belongs to one. */
const HALVED: readonly (readonly [what: string, Form['endpoint'], data: string])[] = [
  ['a key', 'chat.completions', '{"choices":[{"delta":{"tool_\\ud83dcalls":[]}}]}'],
  ['a key of a text', 'messages', '{"type":"a","delta":{"\\ud83d":"text"}}'],
  ['a type', 'messages', '{"type":"a","content":[{"type":"tool_\\ud83duse"}]}'],
  ['an id', 'responses.create', '{"type":"response.output_text.delta","item_id":"\\ud83d"}'],
  [
    'a name',
    'chat.completions',
    '{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f\\ud83d"}}]}}]}',
  ],
  [
    'arguments',
    'chat.completions',
    '{"choices":[{"delta":{"function_call":{"arguments":"\\ud83d"}}}]}',
  ],
  [
    'arguments of a response',
    'responses.create',
    '{"type":"response.function_call_arguments.delta","delta":"\\ud83d"}',
  ],
  [
    'the input of a block',
    'messages',
    '{"type":"content_block_delta","index":0,"delta":{"partial_json":"\\ud83d"}}',
  ],
  [
    'a text beside a call',
    'chat.completions',
    '{"choices":[{"delta":{"content":"\\ud83d","tool_calls":[{"index":0}]}}]}',
  ],
  [
    'a text beside a call whose key is escaped',
    'chat.completions',
    '{"choices":[{"delta":{"content":"\\ud83d","tool\\u005fcalls":[{"index":0}]}}]}',
  ],
  ['a text that speaks of calls', 'messages', '{"delta":{"text":"\\ud83d tool_use"}}'],
  ['a text of an object that repeats', 'messages', '{"delta":{"text":"\\ud83d"},"delta":{}}'],
];

describe('half of a character', () => {
  test.each(DIALECTS)('%s: may end and begin texts, whatever follows', (endpoint, say) => {
    const [form] = FORMS.filter((each) => each.endpoint === endpoint);
    const text = fc.string({ unit: fc.constantFrom('😀', 'é', 'a', '\\', '"', '\ufffd') });
    fc.assert(
      fc.property(text, (whole) => {
        const units = Array.from({ length: whole.length }, (_, at) => JSON.stringify(whole[at]));
        const said = units.map((unit) => `data: ${say(unit)}\n\n`).join('');
        const calls = proposalsOf(form!, 1, 0);
        const policy = policySchema.parse({ tools: { deny: form!.names('drop_table') } });
        const screen = new Screen(readerOf(endpoint), (name) => judgeName(policy, name));
        expect(decoder.decode(screen.push(encoder.encode(said)))).toBe(said);
        for (const { text } of framesOf(endpoint, calls)) screen.push(encoder.encode(text));
        const found = screen.end().calls;
        expect(screen.fault).toBeUndefined();
        expect(told(found)).toEqual(expected(calls));
      }),
    );
  });

  test.each(DIALECTS)('%s: may end a text of an answer without calls', (endpoint) => {
    const reader = readerOf(endpoint);
    expect(reader.body(encoder.encode(WHOLE[endpoint]('"cut \\ud83d"')))).toEqual([]);
    expect(reader.fault).toBeUndefined();
  });

  test.each(HALVED)('in %s keeps an answer of %s from passing', (_, endpoint, data) => {
    const reader = readerOf(endpoint);
    reader.event({ event: '', data, start: 0, end: data.length });
    expect(reader.fault).toBeString();
    const whole = readerOf(endpoint);
    whole.body(encoder.encode(data));
    expect(whole.fault).toBeString();
  });

  test('in an event that its name gives to a call keeps an answer from passing', () => {
    const reader = readerOf('responses.create');
    const data = '{"delta":"\\ud83d"}';
    const event = 'response.function_call_arguments.delta';
    reader.event({ event, data, start: 0, end: data.length });
    expect(reader.fault).toBeString();
  });

  test('in bytes that are not UTF-8 keeps an answer from passing', () => {
    const reader = readerOf('messages');
    reader.body(Uint8Array.from([...encoder.encode('{"a":"\\ud83d'), 0xff, 0x22, 0x7d]));
    expect(reader.fault).toBeString();
  });

  test('becomes U+FFFD, and nothing else changes', () => {
    const unit = fc.constantFrom('\ud83d', '\ude00', '\\', 'u', '"', 'é', '\n', '\ud800\udc00');
    fc.assert(
      fc.property(fc.array(fc.string({ unit })), (texts) => {
        const mended = mendHalves(encoder.encode(JSON.stringify({ texts })), () => true);
        const whole = texts.map((text) => text.replace(/\p{Surrogate}/gu, '\ufffd'));
        const isWhole = texts.every((text, at) => text === whole[at]);
        expect(mended && JSON.parse(decoder.decode(mended))).toEqual(
          isWhole ? undefined : { texts: whole },
        );
      }),
      { numRuns: 500 },
    );
  });
});

test('the source of every part of a JSON text is what stands there', () => {
  const value = fc.jsonValue({ maxDepth: 4 }).filter((each) => each?.constructor === Object);
  fc.assert(
    fc.property(value, fc.constantFrom(0, 1, '\t'), (made, space) => {
      const text = JSON.stringify(made, null, space);
      const parsed = JSON.parse(text) as JsonObject;
      const sources = sourcesOf(text, parsed);
      for (const [part, source] of sources) {
        expect(text).toContain(source);
        expect(JSON.parse(source)).toEqual(part);
      }
      expect(sources.get(parsed)).toBe(text);
      expect(sources.size).toBe(countParts(parsed));
    }),
  );
});

function countParts(value: Json): number {
  if (typeof value !== 'object' || value === null) return 0;
  return 1 + Object.values(value).reduce<number>((sum, each) => sum + countParts(each), 0);
}

describe('tool results', () => {
  const bodies: readonly (readonly [string, JsonObject, string[], string[]])[] = [
    [
      'chat.completions',
      {
        messages: [
          { role: 'assistant', tool_calls: [{ id: 'c0' }] },
          { role: 'tool', tool_call_id: 'c0', content: '' },
          { role: 'function', name: 'f', content: '' },
          { role: 'user', tool_call_id: 'x' },
          { role: 'tool', content: '' },
        ],
      },
      ['c0', 'f', ''],
      ['messages[1].tool_call_id', 'messages[2].name', 'messages[4].tool_call_id'],
    ],
    [
      'responses.create',
      {
        input: [
          { type: 'function_call_output', call_id: 'c0', output: '' },
          { type: 'shell_call_output', call_id: 'c1', output: [] },
          { type: 'mcp_approval_response', approval_request_id: 'r', approve: true },
          { role: 'user', content: 'call_id' },
          { type: 'tool_search_output', call_id: null, tools: [] },
          { type: 'local_shell_call_output', id: 'c2', output: '' },
          { type: 'function_call_output', output: '' },
        ],
      },
      ['c0', 'c1', 'r', 'c2', ''],
      [
        ...['input[0].call_id', 'input[1].call_id', 'input[2].approval_request_id'],
        ...['input[5].id', 'input[6].call_id'],
      ],
    ],
    [
      'messages',
      {
        messages: [
          { role: 'user', content: 'text' },
          { role: 'user', content: [{ type: 'text' }, { type: 'tool_result', tool_use_id: 'u' }] },
        ],
      },
      ['u'],
      ['messages[1].content[1].tool_use_id'],
    ],
    ['embeddings', { input: [] }, [], []],
  ];
  test.each(bodies)('%s: each is found with its place', (name, body, ids, fields) => {
    const results = toolResults(endpointOf(name), body);
    expect(results.map(({ id }) => id)).toEqual(ids);
    expect(results.map(({ field }) => field)).toEqual(fields);
  });
});
