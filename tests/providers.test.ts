/** Providers: which paths exist, how bodies are edited, and what answers are read to have used. */

import { describe, expect, test } from 'bun:test';
import fc from 'fast-check';
import type { Meter, Reading } from '../functions/providers/contract.ts';
import { ENDPOINTS, findEndpoint, upstreamPath } from '../functions/providers/endpoints.ts';
import { type Json, type JsonObject, parseStrict, splice } from '../schema/json.ts';
import { authHeaders, PROVIDERS, provider } from '../schema/providers.ts';
import { findRates } from '../schema/rules/catalogue.ts';
import { NO_USAGE, type Usage } from '../schema/usage.ts';

const row = (name: string) => ENDPOINTS.find((endpoint) => endpoint.name === name)!;
const strict = (text: string) => parseStrict(new TextEncoder().encode(text), new Set());
const decoder = new TextDecoder();
const event = (data: Json | string, name = '') => ({
  event: name,
  data: typeof data === 'string' ? data : JSON.stringify(data),
  start: 0,
  end: 0,
});

/** Feeds a meter: values as a body, or events as [name, data]. */
function read(name: string, answer: JsonObject): Reading {
  const meter = row(name).meter({ askedUsage: false });
  meter.body(answer);
  return meter.reading();
}
function feed(meter: Meter, events: readonly (readonly [string, Json | string])[]) {
  return events.map(([name, data]) => meter.event(event(data, name)));
}

describe('paths', () => {
  const served: [string, string, string][] = [
    ['POST', '/chat/completions', 'chat.completions'],
    ['POST', '/completions', 'completions'],
    ['POST', '/embeddings', 'embeddings'],
    ['POST', '/moderations', 'moderations'],
    ['GET', '/models', 'models.list'],
    ['GET', '/models/gpt-4o', 'models.get'],
    ['POST', '/responses', 'responses.create'],
    ['GET', '/responses/resp_1', 'responses.get'],
    ['DELETE', '/responses/resp_1', 'responses.delete'],
    ['POST', '/responses/resp_1/cancel', 'responses.cancel'],
    ['GET', '/responses/resp_1/input_items', 'responses.input_items'],
    ['POST', '/messages', 'messages'],
    ['POST', '/messages/count_tokens', 'messages.count_tokens'],
  ];

  test('are found with none, one and two of the version, and with their own method only', () => {
    for (const [method, path, name] of served) {
      for (const prefix of ['', '/v1', '/v1/v1']) {
        const route = findEndpoint(method, prefix + path)!;
        expect(route.endpoint.name).toBe(name);
        expect(`/${upstreamPath(route)}`).toBe(path);
      }
      expect(findEndpoint('PUT', path)).toBeUndefined();
      expect(findEndpoint(method.toLowerCase(), path)).toBeUndefined();
      expect(findEndpoint(method, `/v1/v1/v1${path}`)).toBeUndefined();
    }
  });

  test('that both dialects have belong to the one that is asked for', () => {
    expect(findEndpoint('GET', '/v1/models')?.endpoint.dialect).toBe('openai');
    expect(findEndpoint('GET', '/v1/models', 'anthropic')?.endpoint.dialect).toBe('anthropic');
    expect(findEndpoint('GET', '/v1/models/x', 'anthropic')?.endpoint.dialect).toBe('anthropic');
    expect(findEndpoint('POST', '/v1/messages', 'openai')?.endpoint.dialect).toBe('anthropic');
  });

  test('that let spend or tools escape are denied', () => {
    const names = ['files', 'batches', 'realtime', 'conversations', 'vector_stores', 'containers'];
    const more = ['messages/batches', 'agents', 'sessions', 'images/generations', 'audio/speech'];
    for (const name of [
      ...names,
      ...more,
      '',
      'v1',
      'chat',
      'responses/a/b',
      'responses/compact/x',
    ]) {
      for (const method of ['GET', 'POST', 'DELETE']) {
        expect(findEndpoint(method, `/v1/${name}`)).toBeUndefined();
      }
    }
  });

  test('in any other spelling find nothing', () => {
    const edits: ((path: string) => string)[] = [
      (path) => `${path}/`,
      (path) => path.replace('/', '//'),
      (path) => path.toUpperCase(),
      (path) => path.replace('o', '%6f').replace('e', '%65'),
      (path) => `/x/..${path}`,
      (path) => `/.${path}`,
      (path) => `${path}?`,
      (path) => `${path};a`,
      (path) => `${path}\u0000`,
      (path) => path.replaceAll('/', '\\'),
      (path) => path.slice(1),
    ];
    for (const [method, path] of served) {
      for (const edit of edits) expect(findEndpoint(method, edit(path))).toBeUndefined();
    }
    for (const id of ['..', '.', '', '%2e%2e', 'a b', 'a/../b', 'a%2fb', 'x'.repeat(300)]) {
      expect(findEndpoint('GET', `/v1/responses/${id}`)).toBeUndefined();
    }
  });

  test('never reach the upstream with a separator or an escape in the parameter', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 30 }), (id) => {
        const route = findEndpoint('GET', `/v1/responses/${id}`);
        if (!route) return;
        const url = new URL(`https://x.test/v1/${upstreamPath(route)}`);
        expect(url.href).toBe(`https://x.test/v1/responses/${id}`);
      }),
    );
  });
});

describe('edits', () => {
  const edited = (text: string, edits: Parameters<typeof splice>[1]) =>
    decoder.decode(splice(text, edits));

  test('ask for usage in streams only, and only where the caller did not', () => {
    const ask = (text: string, name = 'chat.completions') =>
      edited(text, row(name).askUsage(strict(text)));
    const on = '"stream_options":{"include_usage":true}';
    expect(JSON.parse(ask('{"stream":true}'))).toEqual(JSON.parse(`{"stream":true,${on}}`));
    expect(ask('{"stream":true,"stream_options":{"include_usage":false}}')).toBe(
      `{"stream":true,${on}}`,
    );
    expect(JSON.parse(ask('{"stream":true}', 'completions')).stream_options.include_usage).toBe(
      true,
    );
    for (const text of ['{}', '{"stream":false}', '{"stream":null}', `{"stream":true,${on}}`]) {
      expect(ask(text)).toBe(text);
    }
    for (const text of ['{"stream":1}', '{"stream":true,"stream_options":{"include_usage":1}}']) {
      expect(() => ask(text)).toThrow('must be true or false');
    }
  });

  test('lower the output to what was asked, and leave a lower one and every other byte alone', () => {
    const limit = (name: string, text: string, tokens: number, key?: string) =>
      edited(text, row(name).limitOutput(strict(text), tokens, key));
    const big = '{ "seed":12345678901234567890,"max_tokens":100 }';
    expect(limit('chat.completions', big, 16)).toBe(big.replace('100', '16'));
    expect(limit('chat.completions', big, 200)).toBe(big);
    const both = '{"max_tokens":100,"max_completion_tokens":20}';
    expect(limit('chat.completions', both, 50)).toBe(both.replace('100', '50'));
    expect(JSON.parse(limit('chat.completions', '{"n":2}', 5))).toEqual({
      n: 2,
      max_completion_tokens: 5,
    });
    expect(JSON.parse(limit('chat.completions', '{"n":2}', 5, 'max_tokens')).max_tokens).toBe(5);
    expect(JSON.parse(limit('responses.create', '{}', 5))).toEqual({ max_output_tokens: 5 });
    expect(limit('messages', '{"max_tokens":9}', 5)).toBe('{"max_tokens":5}');
    expect(limit('messages', '{"max_tokens":null}', 5)).toBe('{"max_tokens":5}');
    expect(limit('embeddings', '{"input":"x"}', 5)).toBe('{"input":"x"}');
  });

  test('make the bound of every generating endpoint fit', () => {
    const rates = findRates('openai', 'gpt-4o', 0)!;
    const spending = ENDPOINTS.filter(({ spends, name }) => spends && name !== 'embeddings');
    const limits = fc.option(fc.nat(5_000), { nil: undefined });
    fc.assert(
      fc.property(
        fc.constantFrom(...spending),
        limits,
        limits,
        fc.nat(500),
        (endpoint, a, b, to) => {
          const keys = endpoint.name.startsWith('responses')
            ? ['max_output_tokens']
            : ['max_tokens'];
          if (endpoint.name === 'chat.completions') keys.push('max_completion_tokens');
          const text = JSON.stringify({ [keys[0]!]: a, ...(keys[1] ? { [keys[1]]: b } : {}) });
          const after = edited(text, endpoint.limitOutput(strict(text), to));
          const found = endpoint.bound(JSON.parse(after) as JsonObject, 10, rates);
          expect(found.outputTokens).toBeLessThanOrEqual(to);
        },
      ),
    );
  });
});

const chatUsage = (more: JsonObject = {}): JsonObject => ({
  prompt_tokens: 100,
  completion_tokens: 20,
  total_tokens: 120,
  prompt_tokens_details: { cached_tokens: 60, audio_tokens: 0 },
  completion_tokens_details: { reasoning_tokens: 5 },
  ...more,
});
const chatRead: Usage = {
  ...NO_USAGE,
  inputTokens: 100,
  cacheReadTokens: 60,
  outputTokens: 20,
  reasoningTokens: 5,
};

describe('chat usage', () => {
  const chunk = (more: JsonObject): JsonObject => ({
    id: 'chatcmpl-1',
    model: 'gpt-4o-2024-08-06',
    service_tier: 'default',
    choices: [{ index: 0, delta: { content: 'x' } }],
    ...more,
  });
  const last = chunk({ choices: [], usage: chatUsage() });
  const stream = [chunk({ usage: null }), chunk({ usage: null }), last, '[DONE]'] as const;

  test('is read from a whole answer', () => {
    expect(read('chat.completions', chunk({ usage: chatUsage() }))).toEqual({
      model: 'gpt-4o-2024-08-06',
      serviceTier: 'default',
      responseId: 'chatcmpl-1',
      usage: chatRead,
      complete: true,
    });
    const embedding = { model: 'e', usage: { prompt_tokens: 8, total_tokens: 8 } };
    expect(read('embeddings', embedding).usage).toEqual({ ...NO_USAGE, inputTokens: 8 });
  });

  test('is read from the last chunk, which is swallowed only if we asked for it', () => {
    for (const askedUsage of [true, false]) {
      const meter = row('chat.completions').meter({ askedUsage });
      const passed = stream.map((data) => meter.event(event(data)));
      expect(passed).toEqual(['pass', 'pass', askedUsage ? 'swallow' : 'pass', 'last']);
      expect(meter.reading()).toMatchObject({ usage: chatRead, complete: true });
    }
  });

  test('with choices in its chunk is passed on, and so is an empty chunk without usage', () => {
    const meter = row('chat.completions').meter({ askedUsage: true });
    const filter = chunk({ choices: [], prompt_filter_results: [] });
    expect(meter.event(event(filter))).toBe('pass');
    expect(meter.event(event(chunk({ usage: chatUsage() })))).toBe('pass');
    expect(meter.reading()).toMatchObject({ usage: chatRead, complete: false });
  });

  test('is found however the upstream writes its key, and not in the text', () => {
    const spellings = ['"usage"', '"us\\u0061ge"', '"usage" ', '"usage"\\n'.replace('\\n', '\n')];
    for (const key of spellings) {
      const meter = row('chat.completions').meter({ askedUsage: true });
      meter.event(event(chunk({})));
      const data = `{"choices":[],${key}:${JSON.stringify(chatUsage())}}`;
      expect(meter.event(event(data))).toBe('swallow');
      expect(meter.reading().usage).toEqual(chatRead);
    }
    const text = chunk({ choices: [{ delta: { content: '{"usage":{"prompt_tokens":1}}' } }] });
    const meter = row('chat.completions').meter({ askedUsage: true });
    expect([meter.event(event(text)), meter.event(event(text))]).toEqual(['pass', 'pass']);
    expect(meter.reading().usage).toBeUndefined();
  });

  test('includes reasoning that a host counts in the total alone', () => {
    const usage = chatUsage({ completion_tokens: 5, total_tokens: 150 });
    expect(read('chat.completions', { usage }).usage?.outputTokens).toBe(50);
  });

  test('that is not made of counts is absent, never credit', () => {
    const bad = [-1, 0.5, '100', null, Number.NaN, 1e300, [], {}] as Json[];
    for (const value of bad) {
      expect(read('chat.completions', { usage: chatUsage({ prompt_tokens: value }) }).usage).toBe(
        undefined,
      );
      expect(
        read('chat.completions', { usage: chatUsage({ completion_tokens: value }) }).usage,
      ).toBe(undefined);
      const details = { prompt_tokens_details: { cached_tokens: value } };
      const found = read('chat.completions', { usage: chatUsage(details) }).usage;
      expect(found).toEqual({ ...chatRead, cacheReadTokens: 0 });
    }
  });
});

describe('chat usage of no tokens at all', () => {
  const nothing = { prompt_tokens: 0, completion_tokens: 0, total_tokens: 0 };

  test('is none: an answer has read something', () => {
    for (const name of ['chat.completions', 'completions', 'embeddings']) {
      expect(read(name, { usage: nothing }).usage).toBeUndefined();
      const other = { usage: nothing, x_groq: { usage: { ...nothing, prompt_tokens: 7 } } };
      expect(read(name, other).usage).toEqual({ ...NO_USAGE, inputTokens: 7 });
    }
  });

  test('never takes the place of what a chunk before it reported', () => {
    const meter = row('chat.completions').meter({ askedUsage: false });
    for (const usage of [nothing, chatUsage(), nothing]) {
      meter.event(event({ choices: [], usage }));
    }
    expect(meter.reading().usage).toEqual(chatRead);
  });
});

describe('responses usage', () => {
  const usage = {
    input_tokens: 50,
    input_tokens_details: { cached_tokens: 10, cache_write_tokens: 4 },
    output_tokens: 30,
    output_tokens_details: { reasoning_tokens: 12 },
    total_tokens: 80,
  };
  const output = [{ type: 'web_search_call' }, { type: 'file_search_call' }, { type: 'message' }];
  const response = (status: string, more: JsonObject = {}): JsonObject => ({
    id: 'resp_1',
    model: 'gpt-5',
    status,
    service_tier: 'default',
    output,
    ...more,
  });
  const expected = {
    ...NO_USAGE,
    inputTokens: 50,
    cacheReadTokens: 10,
    cacheWriteTokens: 4,
    outputTokens: 30,
    reasoningTokens: 12,
    webSearches: 1,
    fileSearches: 1,
  };

  for (const status of ['completed', 'incomplete', 'failed']) {
    test(`is read from the terminal event response.${status}`, () => {
      for (const named of [true, false]) {
        const meter = row('responses.create').meter({ askedUsage: false });
        const name = (type: string) => (named ? type : '');
        const created = { type: 'response.created', response: response('in_progress') };
        const delta = { type: 'response.output_text.delta', delta: '"response" {"usage":1}' };
        const type = `response.${status}`;
        feed(meter, [
          [name(created.type), created],
          [name(delta.type), delta],
        ]);
        expect(meter.reading()).toMatchObject({ responseId: 'resp_1', complete: false });
        feed(meter, [[name(type), { type, response: response(status, { usage }) }]]);
        expect(meter.reading()).toMatchObject({ usage: expected, status, complete: true });
      }
    });
  }

  test('of one that runs in the background is not there until it is final', () => {
    for (const name of ['responses.create', 'responses.get', 'responses.cancel']) {
      const queued = read(name, response('queued', { usage: null }));
      expect(queued).toMatchObject({ status: 'queued', complete: false });
      expect(queued.usage).toBeUndefined();
      const done = read(name, response('completed', { usage }));
      expect(done).toMatchObject({ usage: expected, complete: true, responseId: 'resp_1' });
    }
  });

  test('counts the searches that were billed, else those that were made: opening pages is free', () => {
    const actions = fc.array(fc.constantFrom('search', 'open_page', 'find_in_page', undefined));
    const billed = fc.option(fc.nat(20), { nil: undefined });
    fc.assert(
      fc.property(actions, billed, (types, num_requests) => {
        const calls = types.map((type) => ({
          type: 'web_search_call',
          ...(type && { action: { type } }),
        }));
        const tool_usage = num_requests === undefined ? {} : { web_search: { num_requests } };
        const answer = response('completed', { usage, output: calls, tool_usage });
        const searches = types.filter((type) => type === undefined || type === 'search');
        const found = read('responses.create', answer).usage;
        expect(found?.webSearches).toBe(num_requests ?? searches.length);
      }),
    );
  });

  test('of no tokens at all is none', () => {
    const nothing = { input_tokens: 0, output_tokens: 0, total_tokens: 0 };
    expect(read('responses.create', response('completed', { usage: nothing })).usage).toBe(
      undefined,
    );
  });
});

describe('messages usage', () => {
  const start = (usage: JsonObject) => ({
    type: 'message_start',
    message: { id: 'msg_1', model: 'claude-opus-5', usage },
  });
  const delta = (usage: JsonObject) => ({ type: 'message_delta', delta: {}, usage });
  const first = {
    input_tokens: 10,
    cache_read_input_tokens: 100,
    cache_creation_input_tokens: 50,
    cache_creation: { ephemeral_5m_input_tokens: 20, ephemeral_1h_input_tokens: 30 },
    output_tokens: 1,
    service_tier: 'standard',
  };
  const expected = {
    ...NO_USAGE,
    inputTokens: 160,
    cacheReadTokens: 100,
    cacheWriteTokens: 20,
    cacheWrite1hTokens: 30,
    outputTokens: 1,
  };
  const meterOf = (...events: JsonObject[]) => {
    const meter = row('messages').meter({ askedUsage: false });
    feed(
      meter,
      events.map((data) => [String(data.type), data] as const),
    );
    return meter;
  };

  test('includes the cache in the input, and tells the lifetimes of writes apart', () => {
    const answer = { id: 'msg_1', model: 'claude-opus-5', usage: first };
    expect(read('messages', answer)).toEqual({
      model: 'claude-opus-5',
      responseId: 'msg_1',
      serviceTier: 'standard',
      usage: expected,
      complete: true,
    });
  });

  test('of a stream is overwritten by each cumulative event, never summed', () => {
    const meter = meterOf(start(first), delta({ output_tokens: 5 }), delta({ output_tokens: 9 }));
    expect(meter.reading()).toMatchObject({ usage: { ...expected, outputTokens: 9 } });
    feed(meter, [['message_stop', { type: 'message_stop' }]]);
    expect(meter.reading().complete).toBe(true);
  });

  test('of no tokens at all is none', () => {
    const nothing = { input_tokens: 0, output_tokens: 0 };
    expect(read('messages', { usage: nothing }).usage).toBeUndefined();
    expect(meterOf(start(nothing), delta(nothing)).reading().usage).toBeUndefined();
  });

  test('of a stream never falls back to zero', () => {
    const counts = fc.record({
      input_tokens: fc.nat(3),
      cache_read_input_tokens: fc.nat(3),
      output_tokens: fc.nat(3),
    });
    fc.assert(
      fc.property(counts, fc.array(counts, { maxLength: 3 }), (began, later) => {
        const all = [began, ...later];
        const last = (key: keyof typeof began) =>
          all.findLast((usage) => usage[key] > 0)?.[key] ?? 0;
        const inputTokens = last('input_tokens') + last('cache_read_input_tokens');
        const usage = meterOf(start(began), ...later.map(delta)).reading().usage;
        const outputTokens = last('output_tokens');
        if (inputTokens + outputTokens === 0) expect(usage).toBeUndefined();
        else expect(usage).toMatchObject({ inputTokens, outputTokens });
      }),
    );
  });

  test('of a stream that broke is what had been reported', () => {
    expect(meterOf(start(first)).reading()).toMatchObject({ usage: expected, complete: false });
    expect(meterOf().reading()).toEqual({ complete: false });
  });

  test('grows by cache writes that come after the breakdown, at the dearer lifetime', () => {
    const meter = meterOf(
      start(first),
      delta({ cache_creation_input_tokens: 90, output_tokens: 1, input_tokens: 12 }),
    );
    expect(meter.reading().usage).toMatchObject({
      inputTokens: 202,
      cacheWriteTokens: 20,
      cacheWrite1hTokens: 70,
    });
  });

  test('adds the passes that the totals leave out, and only those', () => {
    const iterations = [
      { type: 'message', input_tokens: 10, output_tokens: 1 },
      { type: 'compaction', input_tokens: 1000, output_tokens: 40, cache_read_input_tokens: 7 },
    ];
    const meter = meterOf(start(first), delta({ output_tokens: 9, iterations }));
    expect(meter.reading().usage).toMatchObject({
      inputTokens: 160 + 1007,
      cacheReadTokens: 107,
      outputTokens: 49,
    });
  });

  test('names the surcharges of speed and region, and web searches', () => {
    const usage = {
      ...first,
      speed: 'fast',
      inference_geo: 'us',
      server_tool_use: { web_search_requests: 2 },
    };
    expect(read('messages', { usage })).toMatchObject({
      serviceTier: 'standard+fast_mode+regional',
      usage: { webSearches: 2 },
    });
    expect(read('messages', { usage: { ...first, service_tier: 'priority' } }).serviceTier).toBe(
      'committed',
    );
  });

  test('is not looked for in text', () => {
    const text = { type: 'content_block_delta', delta: { text: '{"type":"message_stop"}' } };
    const meter = row('messages').meter({ askedUsage: false });
    feed(meter, [
      ['content_block_delta', text],
      ['', text],
    ]);
    expect(meter.reading()).toEqual({ complete: false });
  });
});

test('meters never throw, whatever an upstream sends', () => {
  const json = fc.jsonValue() as fc.Arbitrary<Json>;
  const names = fc.constantFrom('', 'message_start', 'message_delta', 'response.completed', 'x');
  fc.assert(
    fc.property(
      fc.constantFrom(...ENDPOINTS),
      names,
      fc.oneof(json, fc.string()),
      (row, name, data) => {
        const meter = row.meter({ askedUsage: true });
        const type = { type: name, response: data, message: data, usage: data };
        feed(meter, [
          [name, data],
          [name, type],
        ]);
        meter.body(type);
        meter.reading();
      },
    ),
    { numRuns: 1_000 },
  );
});

describe('providers', () => {
  test('are found by name, and nothing else is', () => {
    expect(provider('openai')?.baseUrl).toBe('https://api.openai.com/v1');
    expect(provider('openai-compatible')?.baseUrl).toBeUndefined();
    for (const name of ['', 'OpenAI', 'constructor', '__proto__']) {
      expect(provider(name)).toBeUndefined();
    }
    expect(new Set(PROVIDERS.map(({ name }) => name)).size).toBe(PROVIDERS.length);
  });

  test('have https base URLs without a slash at the end, and prices where they say so', () => {
    const known: Record<string, string> = { google: 'gemini-2.5-pro', 'x-ai': 'grok-3' };
    for (const { baseUrl, catalogue } of PROVIDERS) {
      if (baseUrl) expect(new URL(baseUrl).href).toBe(baseUrl);
      if (baseUrl) expect(baseUrl).toMatch(/^https:.*[^/]$/);
      const model = catalogue && known[catalogue];
      if (model) expect(findRates(catalogue, model, Date.UTC(2026, 10, 1))).toBeDefined();
    }
  });

  test('get the credential in the one header that they read', () => {
    expect(authHeaders(provider('groq')!, 'k')).toEqual([['authorization', 'Bearer k']]);
    expect(authHeaders(provider('anthropic')!, 'k')).toEqual([['x-api-key', 'k']]);
    expect(authHeaders(provider('demo')!, '')).toEqual([]);
    for (const secret of ['', 'a b', 'a\r\nhost: x', 'é', 'x'.repeat(5_000)]) {
      expect(() => authHeaders(provider('openai')!, secret)).toThrow(RangeError);
    }
  });
});
