/** Translation between chat completions and messages: what is carried comes back as it was. */

import { describe, expect, test } from 'bun:test';
import Anthropic from '@anthropic-ai/sdk';
import fc from 'fast-check';
import OpenAI from 'openai';
import { findEndpoint } from '../functions/providers/endpoints.ts';
import { type Translation, Untranslatable } from '../functions/providers/translate/contract.ts';
import { readExact, writeText } from '../functions/providers/translate/exact.ts';
import { translate } from '../functions/providers/translate/translate.ts';
import { type Json, type JsonObject, parseStrict } from '../schema/json.ts';
import { SseParser } from '../schema/sse.ts';

const chat = findEndpoint('POST', '/v1/chat/completions')!.endpoint;
const messages = findEndpoint('POST', '/v1/messages')!.endpoint;
const encoder = new TextEncoder();
const decoder = new TextDecoder();

const WISHES = {
  model: 'other',
  limitKey: 'max_completion_tokens',
  streamsUsage: false,
  maxTokens: 777,
  createdS: 1_800_000_000,
};

function say(from: typeof chat, text: string, wishes: Partial<typeof WISHES> = {}) {
  const to = from === chat ? messages : chat;
  const body = parseStrict(encoder.encode(text), from.readKeys);
  return translate(from, body, { ...WISHES, endpoint: to, ...wishes });
}

const over = (from: typeof chat, value: JsonObject, wishes = {}): JsonObject =>
  say(from, JSON.stringify(value), wishes).body.value;

// What a person or a model may say

const text = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 12 });
const name = fc.stringMatching(/^[A-Za-z0-9_-]{1,12}$/);
const args = fc.dictionary(
  fc.string({ maxLength: 6 }).filter((key) => key !== '__proto__' && !/^\d+$/.test(key)),
  fc.jsonValue({ maxDepth: 2 }) as fc.Arbitrary<Json>,
  { maxKeys: 4 },
);
const schema = args.map((properties): JsonObject => ({ type: 'object', properties }));
const url = fc.constantFrom(
  'https://example.com/a.png',
  'data:image/png;base64,iVBORw0KGgo=',
  'data:image/webp;base64,UklGRg==',
);
const textPart = text.map((said): JsonObject => ({ type: 'text', text: said }));
const imagePart = url.map((at): JsonObject => ({ type: 'image_url', image_url: { url: at } }));
const spoken = fc.oneof(
  text,
  fc.array(fc.oneof(textPart, imagePart), { minLength: 1, maxLength: 3 }),
);
const optional = <T>(value: fc.Arbitrary<T>) => fc.option(value, { nil: undefined });

/** Without members that are undefined, so that what is compared is what was written. */
const tidy = (value: object): JsonObject => JSON.parse(JSON.stringify(value));

const call = fc.record({ id: name, name, args });
const round = fc.record({
  said: optional(text),
  calls: fc.array(call, { minLength: 1, maxLength: 3 }),
  results: text,
});

function chatRound({
  said,
  calls,
  results,
}: typeof round extends fc.Arbitrary<infer T> ? T : never): JsonObject[] {
  const tool_calls = calls.map(({ id, name, args }) => ({
    ...{ id, type: 'function' },
    function: { name, arguments: JSON.stringify(args) },
  }));
  const answers = calls.map(({ id }) => ({ role: 'tool', tool_call_id: id, content: results }));
  return [{ role: 'assistant', content: said ?? null, tool_calls }, ...answers];
}

const chatTurns = fc
  .tuple(
    spoken,
    fc.array(
      fc.oneof(
        round.map(chatRound),
        fc.tuple(text, spoken).map(([answer, next]) => [
          { role: 'assistant', content: answer },
          { role: 'user', content: next },
        ]),
      ),
      { maxLength: 3 },
    ),
  )
  .map(([first, rest]) => [{ role: 'user', content: first }, ...rest.flat()]);

const choice = fc.oneof(
  fc.constantFrom('auto', 'none', 'required'),
  name.map((chosen) => ({ type: 'function', function: { name: chosen } })),
);
const tools = fc
  .array(
    fc.record({
      name,
      description: optional(text),
      parameters: schema,
      strict: optional(fc.constant(true)),
    }),
    {
      minLength: 1,
      maxLength: 3,
    },
  )
  .map((list) => list.map((declared) => ({ type: 'function', function: declared })));

const chatRequest = fc
  .record({
    system: optional(text),
    turns: chatTurns,
    max_completion_tokens: fc.integer({ min: 1, max: 4_000 }),
    tools: optional(tools),
    tool_choice: choice,
    isSingle: fc.boolean(),
    stop: optional(fc.array(text, { minLength: 1, maxLength: 4 })),
    temperature: optional(fc.double({ min: 0, max: 1, noNaN: true })),
    top_p: optional(fc.double({ min: 0, max: 1, noNaN: true })),
    user: optional(name),
    service_tier: optional(fc.constant('default')),
  })
  .map(({ system, turns, tools: declared, tool_choice, isSingle, ...rest }) => {
    const isChosen = declared !== undefined;
    return tidy({
      model: 'asked',
      messages: [...(system === undefined ? [] : [{ role: 'system', content: system }]), ...turns],
      ...(isChosen ? { tools: declared, tool_choice } : {}),
      ...(isChosen && isSingle && tool_choice !== 'none' ? { parallel_tool_calls: false } : {}),
      ...rest,
    });
  });

describe('a request', () => {
  test('of chat comes back from messages as it was', () => {
    fc.assert(
      fc.property(chatRequest, (request) => {
        const there = over(chat, request);
        const back = over(messages, there, { model: 'asked' });
        expect(back).toEqual(request);
        // And what messages make of it again is the same message.
        expect(over(chat, back)).toEqual(there);
      }),
      { numRuns: 300 },
    );
  });

  test('that chooses from no tools is refused, or chooses nothing', () => {
    fc.assert(
      fc.property(chatRequest, choice, fc.boolean(), (request, tool_choice, isEmpty) => {
        const { tools: _, tool_choice: __, parallel_tool_calls: ___, ...rest } = request;
        const asked = tidy({ ...rest, tool_choice, ...(isEmpty ? { tools: [] } : {}) });
        const there = () => over(chat, asked);
        if (tool_choice === 'auto' || tool_choice === 'none') {
          expect(over(messages, there(), { model: 'asked' })).toEqual(rest);
        } else expect(there).toThrow(expect.objectContaining({ field: 'tool_choice' }));
      }),
    );
  });

  test('keeps every digit of numbers in arguments and schemas', () => {
    const exact = '{"id":12345678901234567890,"share":0.10,"tiny":1e-400,"zero":-0}';
    const said = JSON.stringify(exact);
    const request = `{"model":"m","messages":[{"role":"user","content":"a"},
      {"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":${said}}}]},
      {"role":"tool","tool_call_id":"c","content":"b"}],
      "tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","maximum":12345678901234567890}}}]}`;
    const there = say(chat, request);
    expect(decoder.decode(there.bytes)).toContain(`"input":${exact}`);
    expect(decoder.decode(there.bytes)).toContain('"maximum":12345678901234567890');
    const back = say(messages, decoder.decode(there.bytes));
    expect(decoder.decode(back.bytes)).toContain(`"arguments":${said}`);
    expect(decoder.decode(back.bytes)).toContain('"maximum":12345678901234567890');
  });

  test('without a limit is given one, since messages need it', () => {
    const asked = { model: 'm', messages: [{ role: 'user', content: 'a' }] };
    expect(over(chat, asked).max_tokens).toBe(777);
  });

  test('that streams asks chat for its usage, but not a host that reports it unasked', () => {
    const asked = {
      model: 'm',
      max_tokens: 9,
      stream: true,
      messages: [{ role: 'user', content: 'a' }],
    };
    expect(over(messages, asked).stream_options).toEqual({ include_usage: true });
    expect(over(messages, asked, { streamsUsage: true })).not.toHaveProperty('stream_options');
  });

  test('passes with labels, hints and members that say nothing', () => {
    const asked = { messages: [{ role: 'user', content: 'a' }], model: 'm', max_tokens: 9 };
    const labels = {
      metadata: { a: 'b' },
      prompt_cache_key: 'k',
      store: false,
      n: 1,
      logprobs: null,
    };
    const neutral = { response_format: { type: 'text' }, frequency_penalty: 0, logit_bias: {} };
    expect(over(chat, { ...asked, ...labels, ...neutral })).toEqual(over(chat, asked));
    const hints = { thinking: { type: 'disabled' }, service_tier: 'auto' };
    expect(over(messages, { ...asked, ...hints })).toEqual(over(messages, asked));
    const [tool] = CUSTOM_TOOLS.tools;
    const hinted = { ...tool!, eager_input_streaming: true, cache_control: { type: 'ephemeral' } };
    const plain = over(messages, { ...asked, ...CUSTOM_TOOLS });
    expect(over(messages, { ...asked, tools: [hinted] })).toEqual(plain);
  });
});

const chatCall = (id: string, args: string): JsonObject => ({
  ...{ id, type: 'function' },
  function: { name: 'f', arguments: args },
});

const USER = [{ role: 'user', content: 'a' }];
const withPart = (part: object) => ({ messages: [{ role: 'user', content: [part] }] });

const CHAT_TOOLS = { tools: [{ type: 'function', function: { name: 'f' } }] };
const CUSTOM_TOOLS = { tools: [{ name: 'f', input_schema: { type: 'object' } }] };
const withParameters = (parameters: Json) => ({
  tools: [{ type: 'function', function: { name: 'f', parameters } }],
});
const withCall = (args: string): JsonObject[] => [
  ...USER,
  { role: 'assistant', content: null, tool_calls: [chatCall('c', args)] },
  { role: 'tool', tool_call_id: 'c', content: 'b' },
];

/** What would be lost, and the member that the refusal names. */
const LOST: readonly (readonly [from: 'chat' | 'messages', members: object, field: string])[] = [
  ['chat', { n: 2 }, 'n'],
  ['chat', { logprobs: true }, 'logprobs'],
  ['chat', { logit_bias: { 5: 1 } }, 'logit_bias'],
  ['chat', { seed: 0 }, 'seed'],
  ['chat', { store: true }, 'store'],
  ['chat', { frequency_penalty: 0.5 }, 'frequency_penalty'],
  ['chat', { response_format: { type: 'json_schema' } }, 'response_format'],
  ['chat', { reasoning_effort: 'high' }, 'reasoning_effort'],
  ['chat', { modalities: ['text', 'audio'] }, 'modalities'],
  ['chat', { temperature: 1.5 }, 'temperature'],
  ['chat', { service_tier: 'flex' }, 'service_tier'],
  ['chat', { functions: [{ name: 'f' }] }, 'functions'],
  ['chat', { tool_choice: { type: 'function', function: { name: 'f' } } }, 'tool_choice'],
  ['chat', { tool_choice: 'required', tools: [] }, 'tool_choice'],
  ['chat', { tools: [{ type: 'custom', custom: { name: 'f' } }] }, 'tools[].type'],
  ['chat', withPart({ type: 'input_audio', input_audio: {} }), 'messages[].content[].type'],
  ['chat', withPart({ type: 'file', file: {} }), 'messages[].content[].type'],
  [
    'chat',
    withPart({ type: 'image_url', image_url: { url: 'https://a.example/', detail: 'low' } }),
    'messages[].content[].image_url.detail',
  ],
  [
    'chat',
    withPart({ type: 'image_url', image_url: { url: 'data:image/bmp;base64,AA==' } }),
    'messages[].content[].image_url.url',
  ],
  ['chat', { messages: [...USER, { role: 'assistant', content: 'b' }] }, 'messages'],
  ['chat', { messages: [...USER, { role: 'system', content: 'b' }] }, 'messages[].role'],
  ['chat', { messages: [{ role: 'user', content: 'a', name: 'Ann' }] }, 'messages[].name'],
  ['chat', { messages: [{ role: 'user', content: [] }] }, 'messages[].content'],
  ['chat', withParameters('x'), 'tools[].function.parameters'],
  ['chat', withParameters(['x']), 'tools[].function.parameters'],
  ['chat', { ...CHAT_TOOLS, parallel_tool_calls: 'no' }, 'parallel_tool_calls'],
  ['chat', { stream: true, stream_options: { more: 1 } }, 'stream_options.more'],
  ['chat', { stream: true, stream_options: ['more'] }, 'stream_options'],
  ['chat', { messages: withCall('{"a":1,"a":2}') }, 'messages[].tool_calls[].function.arguments'],
  [
    'chat',
    { messages: withCall('{"b":[{"a":1,"\\u0061":1}]}') },
    'messages[].tool_calls[].function.arguments',
  ],
  ['messages', { messages: [...USER, { role: 'user', content: [] }] }, 'messages[].content'],
  [
    'messages',
    { ...CUSTOM_TOOLS, tool_choice: { type: 'any', disable_parallel_tool_use: 'yes' } },
    'tool_choice.disable_parallel_tool_use',
  ],
  ['messages', { tool_choice: { type: 'tool', name: 'f' } }, 'tool_choice'],
  ['messages', { tool_choice: { type: 'any' }, tools: [] }, 'tool_choice'],
  ['messages', { top_k: 5 }, 'top_k'],
  ['messages', { thinking: { type: 'enabled', budget_tokens: 1024 } }, 'thinking'],
  ['messages', { mcp_servers: [{}] }, 'mcp_servers'],
  ['messages', { container: 'c' }, 'container'],
  ['messages', { stop_sequences: ['1', '2', '3', '4', '5'] }, 'stop_sequences'],
  ['messages', { tools: [{ type: 'web_search_20250305', name: 'web_search' }] }, 'tools[].type'],
  ['messages', withPart({ type: 'document', source: {} }), 'messages[].content[].type'],
  [
    'messages',
    withPart({ type: 'tool_result', tool_use_id: 'c', is_error: true }),
    'messages[].content[].is_error',
  ],
  ['messages', { messages: [...USER, { role: 'assistant', content: '{' }] }, 'messages'],
  [
    'messages',
    { messages: [{ role: 'assistant', content: [{ type: 'thinking', thinking: 'x' }] }, ...USER] },
    'messages[].content[].type',
  ],
];

describe('what would be lost is refused:', () => {
  for (const [from, members, field] of LOST) {
    test(`${from} ${JSON.stringify(members)}`, () => {
      const body = { model: 'm', max_tokens: 9, messages: USER, ...members };
      const act = () => over(from === 'chat' ? chat : messages, tidy(body));
      expect(act).toThrow(Untranslatable);
      expect(act).toThrow(expect.objectContaining({ field }));
    });
  }

  test('any other pair of endpoints', () => {
    const { endpoint } = findEndpoint('POST', '/v1/responses')!;
    const body = parseStrict(encoder.encode('{"model":"m","input":"a"}'), endpoint.readKeys);
    const to = { ...WISHES, endpoint: messages };
    expect(() => translate(endpoint, body, to)).toThrow(Untranslatable);
  });
});

// Answers and streams

const answer = fc.record({
  said: fc.array(text, { maxLength: 4 }),
  calls: fc.array(call, { maxLength: 3 }),
  input: fc.nat(5_000),
  output: fc.nat(5_000),
  cached: fc.nat(100),
  cut: fc.boolean(),
});
type Said = typeof answer extends fc.Arbitrary<infer T> ? T : never;

const fromMessages = (asksUsage = false): Translation => {
  const options = asksUsage ? { stream: true, stream_options: { include_usage: true } } : {};
  return say(chat, JSON.stringify({ model: 'm', messages: USER, ...options })).translation;
};
const fromChat = (): Translation =>
  say(messages, JSON.stringify({ model: 'm', max_tokens: 5, messages: USER })).translation;

function messageOf({ said, calls, input, output, cached, cut }: Said): JsonObject {
  const uses = calls.map(({ id, name, args }) => ({ type: 'tool_use', id, name, input: args }));
  const blocks = said.length > 0 ? [{ type: 'text', text: said.join('') }] : [];
  return tidy({
    ...{ id: 'msg_1', type: 'message', role: 'assistant', model: 'served' },
    content: [...blocks, ...uses],
    stop_reason: cut ? 'max_tokens' : calls.length > 0 ? 'tool_use' : 'end_turn',
    stop_sequence: null,
    usage: {
      ...{ input_tokens: input, cache_creation_input_tokens: 0 },
      ...{ cache_read_input_tokens: cached, output_tokens: output },
    },
  });
}

const MESSAGE = {
  ...{ id: 'm', type: 'message', role: 'assistant', model: 'served', content: [] },
  ...{ stop_reason: 'end_turn', usage: { input_tokens: 1, output_tokens: 1 } },
};

function completionOf(calls: readonly JsonObject[], finish_reason: Json): JsonObject {
  const message = { role: 'assistant', content: 'a', tool_calls: [...calls] };
  return {
    ...{ id: 'c', object: 'chat.completion', created: 1, model: 'served' },
    choices: [{ index: 0, message, finish_reason }],
    usage: { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 },
  };
}

/** The same completion with other members in its message. */
function withMembers(completion: JsonObject, members: object): JsonObject {
  const [first] = completion.choices as JsonObject[];
  const message = { ...(first!.message as JsonObject), ...members };
  return tidy({ ...completion, choices: [{ ...first!, message }] });
}

function withCalls(completion: JsonObject, change: (calls: JsonObject[]) => JsonObject[]) {
  const [first] = completion.choices as JsonObject[];
  const { tool_calls = [] } = first!.message as JsonObject;
  return withMembers(completion, { tool_calls: change(tool_calls as JsonObject[]) });
}

/** How an answer says that it ended, in either dialect; calls are told even where it doesn't. */
const ENDINGS = [
  ...(['stop', 'tool_calls', 'odd', null] as const).flatMap((reason) => [
    ['chat', reason, 0, 'end_turn'] as const,
    ['chat', reason, 1, 'tool_use'] as const,
    ['chat', reason, 2, 'tool_use'] as const,
  ]),
  ...[0, 2].flatMap((count) => [
    ['chat', 'length', count, 'max_tokens'] as const,
    ['chat', 'content_filter', count, 'refusal'] as const,
  ]),
  ...(['end_turn', 'stop_sequence', 'tool_use', 'odd', null] as const).flatMap((reason) => [
    ['messages', reason, 0, 'stop'] as const,
    ['messages', reason, 1, 'tool_calls'] as const,
    ['messages', reason, 2, 'tool_calls'] as const,
  ]),
  ...[0, 2].flatMap((count) => [
    ['messages', 'max_tokens', count, 'length'] as const,
    ['messages', 'model_context_window_exceeded', count, 'length'] as const,
    ['messages', 'refusal', count, 'content_filter'] as const,
  ]),
];

/** What upstreams have answered 200 with, which is no answer. */
const NO_ANSWERS: readonly (readonly ['chat' | 'messages', object, string])[] = [
  ['messages', { type: 'error', error: { type: 'overloaded_error', message: 'Busy.' } }, 'type'],
  ['messages', { type: 'error', content: [] }, 'type'],
  ['messages', { error: { message: 'Busy.' } }, 'content'],
  ['messages', { ...MESSAGE, content: null }, 'content'],
  ['messages', { ...MESSAGE, content: 'a' }, 'content'],
  ['messages', { ...MESSAGE, content: ['a'] }, 'content[]'],
  ['messages', {}, 'content'],
  ['chat', { error: { message: 'Busy.' } }, 'choices[0]'],
  ['chat', { choices: [] }, 'choices[0]'],
  ['chat', { choices: [{ finish_reason: 'stop' }] }, 'choices[0].message'],
  ['chat', {}, 'choices[0]'],
];

const AUDIO = { audio: { id: 'a', data: 'AA==', transcript: 'hi' } };
const IMAGE = { type: 'image_url', image_url: { url: 'https://example.com/a.png' } };

const UNSAID: readonly (readonly ['chat' | 'messages', object, string])[] = [
  ['chat', AUDIO, 'audio'],
  ['chat', { images: [IMAGE] }, 'images'],
  ['chat', { content: [{ type: 'text', text: 'a' }, IMAGE] }, 'content[].type'],
  ['chat', { content: [{ type: 'text', text: 7 }] }, 'content[].text'],
  ['chat', { content: { text: 'a' } }, 'content'],
  ['messages', { content: [{ type: 'server_tool_use' }] }, 'content[].type'],
  ['messages', { content: [{ type: 'text', text: 7 }] }, 'content[].text'],
];

const UNSAID_EVENTS: readonly (readonly ['chat' | 'messages', object, string])[] = [
  ...UNSAID.filter(([from]) => from === 'chat'),
  ['chat', { tool_calls: [null] }, 'tool_calls[]'],
  [
    'chat',
    { tool_calls: [{ index: 0, id: 'c', function: { name: 'f', arguments: {} } }] },
    'tool_calls[].function.arguments',
  ],
  ['messages', { type: 'content_block_start', content_block: { type: 'image' } }, 'type'],
  ['messages', { type: 'content_block_delta', delta: { type: 'image_delta' } }, 'delta.type'],
  [
    'messages',
    { type: 'content_block_delta', index: 3, delta: { type: 'input_json_delta' } },
    'index',
  ],
  [
    'messages',
    { type: 'message_start', message: { ...MESSAGE, content: [{ type: 'text', text: 'a' }] } },
    'message.content',
  ],
];

const block: fc.Arbitrary<JsonObject> = fc.oneof(
  textPart,
  call.map(({ id, name, args }) => ({ type: 'tool_use', id, name, input: args })),
);

/** Blocks with texts that follow one another put together, for chat has one text. */
function joined(blocks: readonly JsonObject[]): JsonObject[] {
  const said = blocks.flatMap(({ text: part }) => part ?? []).join('');
  const uses = blocks.filter(({ type }) => type === 'tool_use');
  return said === '' ? uses : [{ type: 'text', text: said }, ...uses];
}

/** A completion whose message calls a function as chat did before `tool_calls`. */
function withFormerCall(
  completion: JsonObject,
  { name, args }: { name: string; args: JsonObject },
) {
  const [first] = completion.choices as JsonObject[];
  const function_call = { name, arguments: JSON.stringify(args) };
  const message = { ...(first!.message as JsonObject), function_call };
  return { ...completion, choices: [{ ...first!, message }] };
}

const data = (value: object, event?: string) =>
  `${event ? `event: ${event}\n` : ''}data: ${JSON.stringify(value)}\n\n`;

/** Cuts a text into pieces of at most three characters, none of them empty. */
const pieces = (whole: string): string[] => whole.match(/[\s\S]{1,3}/gu) ?? [];

function messageEvents(message: JsonObject): string {
  const { usage, stop_reason } = message as { usage: JsonObject; stop_reason: string };
  const events: object[] = [
    {
      type: 'message_start',
      message: {
        ...message,
        content: [],
        stop_reason: null,
        usage: { ...usage, output_tokens: 1 },
      },
    },
    { type: 'ping' },
  ];
  (message.content as JsonObject[]).forEach((block, index) => {
    const isText = block.type === 'text';
    const content_block = isText ? { type: 'text', text: '' } : { ...block, input: {} };
    events.push({ type: 'content_block_start', index, content_block });
    const whole = isText ? String(block.text) : JSON.stringify(block.input);
    for (const piece of whole === '{}' && !isText ? [] : pieces(whole)) {
      const delta = isText
        ? { type: 'text_delta', text: piece }
        : { type: 'input_json_delta', partial_json: piece };
      events.push({ type: 'content_block_delta', index, delta });
    }
    events.push({ type: 'content_block_stop', index });
  });
  const { output_tokens } = usage;
  events.push({
    type: 'message_delta',
    delta: { stop_reason, stop_sequence: null },
    usage: { output_tokens },
  });
  events.push({ type: 'message_stop' });
  return events.map((event) => data(event, (event as { type: string }).type)).join('');
}

/** Chunks of a completion; calls come in turns, a piece each, where `mixed`. */
function chatChunks(completion: JsonObject, mixed: boolean): string {
  const { choices, usage, ...head } = completion as JsonObject & { choices: JsonObject[] };
  const { message, finish_reason } = choices[0] as { message: JsonObject; finish_reason: string };
  const chunk = (delta: object, finish: string | null = null) =>
    data({
      ...head,
      object: 'chat.completion.chunk',
      choices: [{ index: 0, delta, finish_reason: finish }],
    });
  const calls = ((message.tool_calls ?? []) as JsonObject[]).map(
    ({ id, function: called }, index) => {
      const { name, arguments: whole } = called as { name: string; arguments: string };
      const start = { index, id, type: 'function', function: { name, arguments: '' } };
      return [start, ...pieces(whole).map((piece) => ({ index, function: { arguments: piece } }))];
    },
  );
  const longest = Math.max(0, ...calls.map(({ length }) => length));
  const turns = Array.from({ length: longest }, (_, at) =>
    calls.flatMap((parts) => parts[at] ?? []),
  );
  const ordered = mixed ? turns.flat() : calls.flat();
  return [
    chunk({ role: 'assistant', content: '' }),
    ...pieces(String(message.content ?? '')).map((content) => chunk({ content })),
    ...ordered.map((part) => chunk({ tool_calls: [part] })),
    ...(message.function_call ? [chunk({ function_call: message.function_call })] : []),
    chunk({}, finish_reason),
    data({ ...head, object: 'chat.completion.chunk', choices: [], usage }),
    'data: [DONE]\n\n',
  ].join('');
}

/** Sends a stream through in chunks cut at the given places, characters divided. */
function pass(translation: Translation, whole: string, cuts: readonly number[]): string {
  const stage = translation.stream();
  const bytes = encoder.encode(whole);
  const places = [0, ...cuts.map((cut) => cut % bytes.length).sort((a, b) => a - b), bytes.length];
  const parts = places.slice(1).map((end, at) => stage.push(bytes.slice(places[at], end)));
  return [...parts, stage.end()].map((part) => decoder.decode(part)).join('');
}

const cuts = fc.array(fc.nat(), { maxLength: 30 });
const whole = (translation: Translation, value: JsonObject): JsonObject =>
  JSON.parse(decoder.decode(translation.answer(encoder.encode(JSON.stringify(value)))));

function respondWith(stream: string): typeof fetch {
  const answerIt = async () =>
    new Response(stream, { headers: { 'content-type': 'text/event-stream' } });
  return answerIt as unknown as typeof fetch;
}

async function readByOpenAi(stream: string): Promise<OpenAI.ChatCompletion> {
  const client = new OpenAI({
    apiKey: 'k',
    baseURL: 'http://localhost/v1',
    fetch: respondWith(stream),
  });
  const asked = { model: 'm', messages: [{ role: 'user' as const, content: 'a' }] };
  return client.chat.completions.stream(asked).finalChatCompletion();
}

async function readByAnthropic(stream: string): Promise<Anthropic.Message> {
  const client = new Anthropic({
    apiKey: 'k',
    baseURL: 'http://localhost',
    fetch: respondWith(stream),
  });
  const asked = { model: 'm', max_tokens: 5, messages: [{ role: 'user' as const, content: 'a' }] };
  return client.messages.stream(asked).finalMessage();
}

describe('an answer', () => {
  test('of messages comes back from chat as it was', () => {
    fc.assert(
      fc.property(answer, (said) => {
        const message = messageOf(said);
        expect(whole(fromChat(), whole(fromMessages(), message))).toEqual(message);
      }),
      { numRuns: 300 },
    );
  });

  test('of messages is the same blocks in the same order, or is refused, whole or streamed', () => {
    fc.assert(
      fc.property(answer, fc.array(block, { maxLength: 5 }), cuts, (said, blocks, at) => {
        const isCalling = blocks.some(({ type }) => type === 'tool_use');
        const stop_reason = said.cut ? 'max_tokens' : isCalling ? 'tool_use' : 'end_turn';
        const message = tidy({ ...messageOf(said), content: blocks, stop_reason });
        const content = message.content as JsonObject[];
        const there = () => whole(fromMessages(), message);
        const streamed = () => pass(fromMessages(), messageEvents(message), at);
        const firstUse = content.findIndex(({ type }) => type === 'tool_use');
        if (firstUse >= 0 && content.slice(firstUse).some(({ type }) => type === 'text')) {
          expect(there).toThrow(Untranslatable);
          expect(streamed).toThrow(Untranslatable);
          return;
        }
        expect(streamed).not.toThrow();
        expect(whole(fromChat(), there())).toEqual({ ...message, content: joined(content) });
      }),
      { numRuns: 300 },
    );
  });

  test('of chat comes back from messages as it was, or is refused, whole or streamed', () => {
    fc.assert(
      fc.property(answer, optional(call), cuts, fc.boolean(), (said, former, at, mixed) => {
        const completion = whole(fromMessages(), messageOf(said));
        const asked = former === undefined ? completion : withFormerCall(completion, former);
        const there = () => whole(fromChat(), asked);
        const streamed = () => pass(fromChat(), chatChunks(asked, mixed), at);
        if (former !== undefined) {
          expect(there).toThrow(Untranslatable);
          expect(streamed).toThrow(Untranslatable);
          return;
        }
        expect(streamed).not.toThrow();
        expect(whole(fromMessages(), there())).toEqual(completion);
      }),
      { numRuns: 200 },
    );
  });

  test('keeps every digit of numbers in arguments, either way', () => {
    const input = '{"id":12345678901234567890,"share":0.10}';
    const message = `{"id":"m","model":"s","content":[{"type":"tool_use","id":"c","name":"f","input":${input}}]}`;
    const completion = decoder.decode(fromMessages().answer(encoder.encode(message)));
    expect(completion).toContain(`"arguments":${JSON.stringify(input)}`);
    expect(decoder.decode(fromChat().answer(encoder.encode(completion)))).toContain(
      `"input":${input}`,
    );
  });

  test('whose arguments are no object can’t be said as a message', () => {
    for (const argument of ['{', '[]', '7', '1.0', 'null', '"a"']) {
      const called = { name: 'f', arguments: argument };
      const message = {
        content: null,
        tool_calls: [{ id: 'c', type: 'function', function: called }],
      };
      const act = () =>
        whole(fromChat(), tidy({ choices: [{ message, finish_reason: 'tool_calls' }] }));
      expect(act).toThrow(Untranslatable);
    }
  });

  test.each(ENDINGS)('of %s that ends with %p and proposes %d calls ends with %p', (...row) => {
    const [from, reason, count, expected] = row;
    const calls = ['a', 'b'].slice(0, count);
    if (from === 'chat') {
      const completion = completionOf(
        calls.map((id) => chatCall(id, '{}')),
        reason,
      );
      expect(whole(fromChat(), completion).stop_reason).toBe(expected);
      const streamed = pass(fromChat(), chatChunks(completion, false), []);
      expect(streamed).toContain(`"stop_reason":"${expected}"`);
      return;
    }
    const uses = calls.map((id) => ({ type: 'tool_use', id, name: 'f', input: {} }));
    const message = { ...MESSAGE, content: uses, stop_reason: reason };
    const { choices } = whole(fromMessages(), message) as { choices: JsonObject[] };
    expect(choices[0]!.finish_reason).toBe(expected);
    const streamed = pass(fromMessages(), messageEvents(message), []);
    expect(streamed).toContain(`"finish_reason":"${expected}"`);
  });

  test('of chat cut in its last call keeps the text and the calls before, whole or streamed', () => {
    fc.assert(
      fc.property(answer, call, fc.nat(), cuts, (said, last, length, at) => {
        const message = messageOf({ ...said, cut: true });
        const completion = whole(fromMessages(), message);
        const args = JSON.stringify(last.args);
        const partial = args.slice(0, length % args.length);
        const cut = withCalls(completion, (calls) => [...calls, chatCall('last', partial)]);
        expect(whole(fromChat(), cut)).toEqual(message);
        const streamed = pass(fromChat(), chatChunks(cut, false), at);
        expect(streamed).toContain('"stop_reason":"max_tokens"');
        expect(streamed).toContain('"id":"last"');
      }),
    );
  });

  test('of chat that is cut elsewhere than in its last call is refused', () => {
    const calls = [chatCall('a', '{"a":'), chatCall('b', '{}')];
    const field = 'tool_calls[].function.arguments';
    for (const reason of ['length', 'tool_calls', 'stop']) {
      const ordered = reason === 'length' ? calls : calls.toReversed();
      const act = () => whole(fromChat(), completionOf(ordered, reason));
      expect(act).toThrow(expect.objectContaining({ field }));
    }
  });

  for (const [from, body, field] of NO_ANSWERS) {
    test(`of ${from} that is none is refused: ${JSON.stringify(body)}`, () => {
      const act = () => whole(from === 'chat' ? fromChat() : fromMessages(), tidy(body));
      expect(act).toThrow(Untranslatable);
      expect(act).toThrow(expect.objectContaining({ field }));
    });
  }

  for (const [from, said, field] of UNSAID) {
    test(`of ${from} with what the other can’t say is refused: ${JSON.stringify(said)}`, () => {
      const act = () =>
        from === 'chat'
          ? whole(fromChat(), withMembers(completionOf([], 'stop'), said))
          : whole(fromMessages(), tidy({ ...MESSAGE, ...said }));
      expect(act).toThrow(expect.objectContaining({ field: expect.stringContaining(field) }));
    });
  }

  for (const [from, said, field] of UNSAID_EVENTS) {
    test(`streamed by ${from} with it is refused: ${JSON.stringify(said)}`, () => {
      const translation = from === 'chat' ? fromChat() : fromMessages();
      const event = from === 'chat' ? { choices: [{ index: 0, delta: said }] } : said;
      const act = () => pass(translation, data(event), []);
      expect(act).toThrow(expect.objectContaining({ field: expect.stringContaining(field) }));
    });
  }

  test('leaves out where its text was found and what was thought, and keeps the text', () => {
    const blocks = [
      { type: 'thinking', thinking: 'hm', signature: 's' },
      { type: 'text', text: 'a', citations: [{ type: 'char_location', cited_text: 'b' }] },
    ];
    const { choices } = whole(fromMessages(), tidy({ ...MESSAGE, content: blocks }));
    expect(choices).toMatchObject([{ message: { content: 'a' } }]);
    const content = [
      { type: 'thinking', thinking: [] },
      { type: 'text', text: 'a' },
    ];
    const found = withMembers(completionOf([], 'stop'), { content, annotations: [{}] });
    expect(whole(fromChat(), found).content).toEqual([{ type: 'text', text: 'a' }]);
  });

  test('with a key that repeats in arguments is refused, whole; streamed, its text is kept', () => {
    const args = fc.constantFrom(
      '{"a":1,"a":2}',
      '{"b":{"a":":","\\u0061":[]}}',
      '[{"a":1,"a":1}]',
    );
    fc.assert(
      fc.property(args, (repeated) => {
        const completion = completionOf([chatCall('c', repeated)], 'tool_calls');
        expect(() => whole(fromChat(), completion)).toThrow(Untranslatable);
        const streamed = pass(fromChat(), chatChunks(completion, false), []);
        const told = [...streamed.matchAll(/"partial_json":("(?:[^"\\]|\\.)*")/g)];
        expect(told.map(([, piece]) => JSON.parse(piece!)).join('')).toBe(repeated);
        const message = `{"content":[{"type":"tool_use","id":"c","name":"f","input":${repeated}}]}`;
        expect(() => fromMessages().answer(encoder.encode(message))).toThrow(Untranslatable);
        const block = `{"type":"tool_use","id":"c","name":"f","input":{"n":${repeated}}}`;
        const start = `data: {"type":"content_block_start","index":0,"content_block":${block}}\n\n`;
        expect(() => pass(fromMessages(), start, [])).toThrow(Untranslatable);
      }),
    );
  });

  test('that is an error is one in the other dialect, whatever it is', () => {
    fc.assert(
      fc.property(
        fc.oneof(fc.json(), fc.string()),
        fc.integer({ min: 300, max: 599 }),
        (body, status) => {
          const bytes = encoder.encode(body);
          const error = JSON.parse(decoder.decode(fromMessages().error(status, bytes)));
          expect(error.error.message).toBeString();
          const other = JSON.parse(decoder.decode(fromChat().error(status, bytes)));
          expect(other).toMatchObject({ type: 'error', error: { message: expect.any(String) } });
        },
      ),
    );
  });
});

describe('a stream', () => {
  test('of messages is to the openai client what the whole answer is, however it is cut', async () => {
    await fc.assert(
      fc.asyncProperty(answer, cuts, fc.boolean(), async (said, at, isAsked) => {
        const uncut = { ...said, cut: false };
        const translated = pass(fromMessages(isAsked), messageEvents(messageOf(uncut)), at);
        const read = await readByOpenAi(translated);
        const expected = whole(
          fromMessages(),
          messageOf(uncut),
        ) as unknown as OpenAI.ChatCompletion;
        expect(read.choices[0]!.message.tool_calls ?? []).toMatchObject(
          expected.choices[0]!.message.tool_calls ?? [],
        );
        expect(read.choices[0]!.message.content ?? '').toBe(
          expected.choices[0]!.message.content ?? '',
        );
        expect(read.choices[0]!.finish_reason).toBe(expected.choices[0]!.finish_reason);
        expect([read.id, read.created]).toEqual([expected.id, expected.created]);
        if (isAsked) expect(read.usage).toEqual(expected.usage!);
        expect(translated).toEndWith('data: [DONE]\n\n');
        expect(translated.includes('"prompt_tokens"')).toBe(isAsked);
      }),
      { numRuns: 60 },
    );
  });

  test('of chat is to the Anthropic client what the whole answer is, however it is cut', async () => {
    await fc.assert(
      fc.asyncProperty(answer, cuts, fc.boolean(), async (said, at, mixed) => {
        const completion = whole(fromMessages(), messageOf(said));
        const read = await readByAnthropic(pass(fromChat(), chatChunks(completion, mixed), at));
        expect(tidy(read)).toMatchObject(whole(fromChat(), completion));
      }),
      { numRuns: 60 },
    );
  });

  test('of chat opens, fills and ends its blocks one after another', () => {
    fc.assert(
      fc.property(answer, cuts, fc.boolean(), (said, at, mixed) => {
        const completion = whole(fromMessages(), messageOf(said));
        const events = pass(fromChat(), chatChunks(completion, mixed), at)
          .split('\n\n')
          // Not by `.` and `$`, for which U+2028 ends a line too.
          .flatMap((event) => /\ndata: ([^\n]*)/.exec(event)?.[1] ?? [])
          .map((json) => JSON.parse(json) as { type: string; index?: number })
          .filter(({ type }) => type !== 'ping');
        const order = events.map(({ type, index }) => `${type[8]}${index ?? ''}`);
        let open = -1;
        for (const { type, index } of events.slice(1, -2)) {
          if (type === 'content_block_start') open += 1;
          expect([type, index]).toEqual([type, open]);
        }
        expect(order.length).toBeGreaterThan(2);
        expect(events[0]?.type).toBe('message_start');
        expect(events.slice(-2).map(({ type }) => type)).toEqual(['message_delta', 'message_stop']);
      }),
    );
  });

  test('of messages keeps the usage it began with where its end has none', () => {
    const usage = { input_tokens: 11, cache_read_input_tokens: 7, output_tokens: 1 };
    const unsaid = { input_tokens: null, cache_read_input_tokens: null, output_tokens: 9 };
    const ended = { delta: { stop_reason: 'end_turn' }, usage: unsaid };
    const events = [
      data({ type: 'message_start', message: { ...MESSAGE, usage } }),
      data({ type: 'message_delta', ...ended }),
      data({ type: 'message_stop' }),
    ].join('');
    const streamed = pass(fromMessages(true), events, []);
    expect(streamed).toContain('"prompt_tokens":18,"completion_tokens":9,');
  });

  test('tells an error as the other dialect does', () => {
    const failed = data(
      { type: 'error', error: { type: 'overloaded_error', message: 'Busy.' } },
      'error',
    );
    expect(pass(fromMessages(), failed, [])).toBe(
      'data: {"error":{"message":"Busy.","type":"server_error","param":null,"code":null}}\n\n',
    );
    const broken = data({ error: { message: 'Busy.', type: 'server_error' } });
    expect(pass(fromChat(), broken, [])).toBe(
      'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"Busy."}}\n\n',
    );
  });

  test('never sends a chat client an event that is no chunk', () => {
    const noise = `: comment\n\n${data({ type: 'ping' }, 'ping')}${data({ type: 'other' }, 'other')}`;
    expect(pass(fromMessages(), noise, [])).toBe(': ping\n\n');
  });
});

/** One part of a call in a chunk. */
interface Part {
  readonly index?: number | undefined;
  readonly id?: string | undefined;
  readonly name?: string | undefined;
  readonly args?: string | undefined;
}

const deltaOf = ({ index, id, name: called, args: text }: Part): JsonObject =>
  tidy({ tool_calls: [{ index, id, function: { name: called, arguments: text } }] });
const chunked = (deltas: readonly object[]): string =>
  [
    ...deltas.map((delta) => data({ choices: [{ index: 0, delta }] })),
    data({ choices: [{ index: 0, delta: {}, finish_reason: 'tool_calls' }] }),
    'data: [DONE]\n\n',
  ].join('');

/** The calls that the screening of an endpoint reads in a stream; undefined where it can't. */
function screened(endpoint: typeof chat, stream: string): string[] | undefined {
  const reader = endpoint.calls!();
  for (const event of new SseParser(1_000_000).push(encoder.encode(stream))) reader.event(event);
  const calls = reader.calls();
  if (reader.fault !== undefined) return undefined;
  return calls.map(({ id, name: called, argsText }) => `${id} ${called} ${argsText || '{}'}`);
}

const INDEXES = {
  'of its own': (at: number) => at,
  'that all share': () => 0,
  'that is missing': () => undefined,
};

describe('a call in a stream of messages', () => {
  const start = (index: number, input: object) =>
    data({
      ...{ type: 'content_block_start', index },
      content_block: { type: 'tool_use', id: 'a', name: 'f', input },
    });
  const delta = { type: 'input_json_delta', partial_json: '{}' };
  const more = data({ type: 'content_block_delta', index: 0, delta });

  test.each([
    ['its index is that of another', start(0, {}) + start(0, {}), 'index'],
    ['its input comes twice', start(0, { a: 1 }) + more, 'delta.partial_json'],
  ])('is refused where %s', (_, events, field) => {
    const act = () => pass(fromMessages(), events, []);
    expect(act).toThrow(expect.objectContaining({ field }));
  });

  test('keeps every digit of an input that stands in its beginning', () => {
    const event = start(0, { id: 1 }).replace('"id":1', '"id":12345678901234567890');
    expect(pass(fromMessages(), event, [])).toContain('\\"id\\":12345678901234567890');
  });
});

describe('a call in a stream of chat', () => {
  for (const [how, indexOf] of Object.entries(INDEXES)) {
    test(`with an index ${how} is one block, and what the screening reads`, async () => {
      await fc.assert(
        fc.asyncProperty(
          fc.uniqueArray(call, { selector: ({ id }) => id, minLength: 1, maxLength: 3 }),
          fc.boolean(),
          async (calls, repeatsId) => {
            const parts = calls.flatMap(({ id, name: called, args: input }, at): Part[] => {
              const index = indexOf(at);
              const [first, ...rest] = pieces(JSON.stringify(input));
              const further = { index, ...(repeatsId ? { id } : {}) };
              const start = { index, id, name: called, args: first };
              return [start, ...rest.map((piece) => ({ ...further, args: piece }))];
            });
            const stream = chunked(parts.map(deltaOf));
            const translated = pass(fromChat(), stream, []);
            const read = await readByAnthropic(translated);
            const uses = calls.map(({ args: input, ...rest }) => ({
              ...{ type: 'tool_use', input: tidy(input) },
              ...rest,
            }));
            expect(read.content).toMatchObject(uses);
            expect(screened(chat, stream)).toEqual(
              expect.arrayContaining(screened(messages, translated)!),
            );
          },
        ),
        { numRuns: 60 },
      );
    });
  }

  test('is one that the screening reads too, or is refused, and no argument is lost', () => {
    const part: fc.Arbitrary<Part> = fc.record({
      index: fc.constantFrom(0, 0, 1, undefined),
      id: fc.constantFrom('a', 'b', '', undefined),
      name: fc.constantFrom('f', 'g', '', undefined),
      args: fc.constantFrom('{}', '[1]', ' ', undefined),
    });
    const said = fc.constant({ content: 'x' });
    const deltas = fc.array(fc.oneof(part, part, part, said), { maxLength: 5 });
    let passed = 0;
    fc.assert(
      fc.property(deltas, (given) => {
        const stream = chunked(given.map((one) => ('content' in one ? one : deltaOf(one))));
        let translated: string;
        try {
          translated = pass(fromChat(), stream, []);
        } catch (error) {
          expect(error).toBeInstanceOf(Untranslatable);
          return;
        }
        passed += 1;
        const read = screened(chat, stream);
        expect(read).toEqual(expect.arrayContaining(screened(messages, translated)!));
        const sent = given.map((one) => ('content' in one ? '' : (one.args ?? ''))).join('');
        const told = [...translated.matchAll(/"partial_json":"([^"]*)"/g)];
        expect(told.map(([, piece]) => piece).join('')).toHaveLength(sent.length);
      }),
      { numRuns: 3_000 },
    );
    expect(passed).toBeGreaterThan(100);
  });

  const start = { index: 0, id: 'a', name: 'f', args: '{' };
  test.each([
    ['its name comes in pieces', [start, { index: 0, name: 'g' }], 'name'],
    ['its index is that of a nameless one', [start, { index: 0, id: 'b', args: '}' }], 'name'],
    ['its id comes back', [start, { ...start, id: 'b' }, start], 'id'],
    ['only some have an index', [start, { id: 'b', name: 'f' }], 'index'],
  ])('is refused where %s', (_, parts, field) => {
    const act = () => pass(fromChat(), chunked(parts.map(deltaOf)), []);
    expect(act).toThrow(
      expect.objectContaining({ field: expect.stringMatching(new RegExp(`${field}$`)) }),
    );
  });

  test('is refused where it goes on after text', () => {
    const deltas = [deltaOf(start), { content: 'a' }, deltaOf({ index: 0, args: '}' })];
    const field = 'tool_calls[].function.arguments';
    const act = () => pass(fromChat(), chunked(deltas), []);
    expect(act).toThrow(expect.objectContaining({ field }));
  });

  test('stands in the one choice that was asked for', () => {
    const other = data({ choices: [{ index: 1, delta: { content: 'a' } }] });
    const both = { ...completionOf([], 'stop') };
    const [first] = both.choices as JsonObject[];
    const act = () => whole(fromChat(), { ...both, choices: [first!, first!] });
    for (const one of [act, () => pass(fromChat(), other, [])]) {
      expect(one).toThrow(expect.objectContaining({ field: 'choices' }));
    }
  });
});

test('readExact() gives back every number as it stood', () => {
  fc.assert(
    fc.property(
      fc.stringMatching(/^-?(?:0|[1-9]\d{0,30})(?:\.\d{1,30})?(?:[eE][+-]?\d{1,3})?$/),
      (digits) => {
        expect(writeText(readExact(`{"n":${digits}}`, 'body'))).toBe(`{"n":${digits}}`);
      },
    ),
    { numRuns: 500 },
  );
});
