/** Bounds: no call consumes more than its bound says, whatever its body holds. */

import { describe, expect, test } from 'bun:test';
import fc from 'fast-check';
import { ENDPOINTS } from '../functions/providers/endpoints.ts';
import { Refusal } from '../schema/errors.ts';
import type { Json, JsonObject } from '../schema/json.ts';
import { type Bound, isPossible, NO_COST } from '../schema/rules/bound.ts';
import { findRates, overrideRates, type Rates } from '../schema/rules/catalogue.ts';
import { NO_USAGE, type Usage } from '../schema/usage.ts';

const NOW = Date.UTC(2026, 10, 23);
const OWN_PRICE = { inputNanosPerMillion: 1, outputNanosPerMillion: 1 };
const RATES: Record<string, Rates> = {
  chat: findRates('openai', 'gpt-4o', NOW)!,
  responses: findRates('openai', 'gpt-5', NOW)!,
  messages: findRates('anthropic', 'claude-opus-5', NOW)!,
  local: overrideRates(OWN_PRICE),
};
const widened = (tokens: number) => tokens + Math.ceil(tokens / 16);
const WINDOW = {
  chat: widened(128_000),
  responses: widened(400_000),
  messages: widened(1_000_000),
};

const bytesOf = (body: JsonObject) => new TextEncoder().encode(JSON.stringify(body)).length;

function bound(name: string, body: JsonObject, rates: Rates): Bound {
  const endpoint = ENDPOINTS.find((row) => row.name === name);
  if (!endpoint) throw new Error(`no endpoint ${name}`);
  return endpoint.bound(body, bytesOf(body), rates);
}
const chat = (body: JsonObject, rates = RATES.chat!) => bound('chat.completions', body, rates);
const responses = (body: JsonObject, rates = RATES.responses!) =>
  bound('responses.create', body, rates);
const messages = (body: JsonObject, rates = RATES.messages!) => bound('messages', body, rates);

const user = (content: Json): JsonObject => ({ messages: [{ role: 'user', content }] });

/** Each generating endpoint with the member that limits its output and a plain body. */
const LIMITS = [
  ['chat.completions', 'max_completion_tokens', user('hi')],
  ['chat.completions', 'max_tokens', user('hi')],
  ['chat.completions', 'n', user('hi')],
  ['completions', 'max_tokens', { prompt: 'hi' }],
  ['completions', 'n', { prompt: 'hi' }],
  ['completions', 'best_of', { prompt: 'hi' }],
  ['responses.create', 'max_output_tokens', { input: 'hi' }],
  ['responses.create', 'max_tool_calls', { input: 'hi' }],
  ['messages', 'max_tokens', user('hi')],
] as const;

describe('limits', () => {
  const bad = [-1, 0.5, JSON.parse('1e309'), Number.NaN, 2 ** 53, '16', '', true, [], {}, [16]];
  for (const [name, field, body] of LIMITS) {
    test(`${name} refuses a ${field} that is not a whole number`, () => {
      for (const value of bad as Json[]) {
        let refusal: unknown;
        try {
          bound(name, { ...body, [field]: value }, RATES.chat!);
        } catch (error) {
          refusal = error;
        }
        expect(refusal).toBeInstanceOf(Refusal);
        expect(refusal).toMatchObject({ code: 'invalid_body', detail: { field } });
      }
    });
    test(`${name} takes a ${field} of null as absent`, () => {
      const absent = bound(name, body, RATES.chat!);
      expect(bound(name, { ...body, [field]: null }, RATES.chat!)).toMatchObject({
        outputTokens: absent.outputTokens,
        choices: absent.choices,
      });
    });
  }

  test('refuses lists, flags and tiers of the wrong type', () => {
    for (const field of ['messages', 'tools', 'functions']) {
      expect(() => chat({ ...user('hi'), [field]: 'x' })).toThrow(Refusal);
      expect(() => chat({ ...user('hi'), [field]: { length: 9 } })).toThrow(Refusal);
    }
    expect(() => chat({ ...user('hi'), service_tier: 7 })).toThrow(Refusal);
    expect(() => chat({ ...user('hi'), n: 1e9 })).toThrow(Refusal);
  });
});

describe('output', () => {
  test('is the limit times the choices', () => {
    expect(chat({ ...user('hi'), max_completion_tokens: 50, n: 3 }).outputTokens).toBe(150);
    expect(chat({ ...user('hi'), max_tokens: 50 }).outputTokens).toBe(50);
    expect(chat({ ...user('hi'), max_tokens: 90, max_completion_tokens: 50 }).outputTokens).toBe(
      90,
    );
    expect(responses({ input: 'hi', max_output_tokens: 70 }).outputTokens).toBe(70);
    expect(messages({ ...user('hi'), max_tokens: 7 }).outputTokens).toBe(7);
    const many = { prompt: ['a', 'b'], max_tokens: 10, n: 2, best_of: 3 };
    expect(bound('completions', many, RATES.chat!)).toMatchObject({ outputTokens: 60, choices: 6 });
    const ids = { prompt: [1, 2, 3], max_tokens: 10 };
    expect(bound('completions', ids, RATES.chat!)).toMatchObject({ outputTokens: 10, choices: 1 });
  });

  test('without a limit is the context window, one of the largest where nobody told it', () => {
    expect(chat({ ...user('hi'), n: 2 }).outputTokens).toBe(2 * WINDOW.chat);
    for (const found of [
      chat(user('hi'), RATES.local!),
      responses({ input: 'hi' }, RATES.local!),
      messages(user('hi'), RATES.local!),
    ]) {
      expect(found.outputTokens).toBeGreaterThanOrEqual(1_048_576);
      expect(found.unbounded).toBeUndefined();
    }
    const told = overrideRates({ ...OWN_PRICE, contextWindow: 8_192 });
    expect(chat(user('hi'), told).outputTokens).toBeLessThan(10_000);
  });

  test('of embeddings is nothing, and their input is not capped by the window of one text', () => {
    const input = Array.from({ length: 100 }, () => 'x'.repeat(1_000));
    const found = bound(
      'embeddings',
      { input },
      findRates('openai', 'text-embedding-3-small', NOW)!,
    );
    expect(found.outputTokens).toBe(0);
    expect(found.inputTokens).toBeGreaterThan(100_000);
    expect(bound('embeddings', { input: [{ image: 'x' }] }, RATES.local!).unbounded).toBe('input');
  });
});

describe('input', () => {
  test('is at least the UTF-8 bytes of all text, in every dialect', () => {
    fc.assert(
      fc.property(fc.array(fc.string({ unit: 'grapheme', maxLength: 60 })), (texts) => {
        const bytes = new TextEncoder().encode(texts.join('')).length;
        const turns = { messages: texts.map((content) => ({ role: 'user', content })) };
        const input = texts.map((text) => ({
          role: 'user',
          content: [{ type: 'input_text', text }],
        }));
        for (const found of [chat(turns), messages(turns), responses({ input })]) {
          expect(found.inputTokens).toBeGreaterThanOrEqual(bytes + texts.length * 4);
        }
      }),
    );
  });

  test('grows with each message and each tool', () => {
    const tool = { type: 'function', function: { name: 'f' } };
    const one = chat(user('hi')).inputTokens;
    expect(chat({ ...user('hi'), tools: [tool] }).inputTokens).toBeGreaterThan(one + 300);
    expect(chat({ ...user('hi'), functions: [{ name: 'f' }] }).inputTokens).toBeGreaterThan(
      one + 300,
    );
  });

  test('is never more than the window, with room for windows that the catalogue rounds', () => {
    expect(chat(user('x'.repeat(900_000))).inputTokens).toBe(WINDOW.chat);
    expect(WINDOW.messages).toBeGreaterThanOrEqual(1_047_576);
  });

  test('counts an image inside the body by its cap, not by its base64', () => {
    const data = 'A'.repeat(400_000);
    const url = `data:image/png;base64,${data}`;
    const inline = chat(user([{ type: 'image_url', image_url: { url } }]));
    expect(inline.inputTokens).toBeLessThan(6_000);
    expect(inline.images).toBe(true);
    const remote = chat(user([{ type: 'image_url', image_url: { url: 'https://x.test/a.png' } }]));
    expect(remote.inputTokens).toBeGreaterThan(4_096);
    const source = { type: 'base64', media_type: 'image/png', data };
    const nested = [
      { type: 'tool_result', tool_use_id: 't', content: [{ type: 'image', source }] },
    ];
    for (const content of [[{ type: 'image', source }], nested]) {
      expect(messages(user(content)).inputTokens).toBeWithin(5_000, 7_000);
    }
    const input = [{ role: 'user', content: [{ type: 'input_image', image_url: url }] }];
    expect(responses({ input }).inputTokens).toBeWithin(4_096, 6_000);
    const newer = findRates('openai', 'gpt-6-astra', NOW)!;
    expect(responses({ input }, newer).inputTokens).toBeGreaterThan(65_000);
  });

  test('still counts base64 as text where the upstream would read it as text', () => {
    const data = `data:image/png;base64,${'A'.repeat(50_000)}`;
    const part = { type: 'image_url', image_url: { url: data } };
    const hiding = [
      user(data),
      user([{ type: 'text', text: data }]),
      { ...user('hi'), tools: [{ type: 'function', function: { parameters: { part } } }] },
      user([{ type: 'image_url', image_url: { url: `${data.slice(5)}` } }]),
    ];
    for (const body of hiding) expect(chat(body).inputTokens).toBeGreaterThan(50_000);
    const use = [{ type: 'tool_use', input: { type: 'image', source: { type: 'base64', data } } }];
    expect(messages(user(use)).inputTokens).toBeGreaterThan(50_000);
  });

  test('that the body does not show fills the window, and may be of any kind', () => {
    const file = { type: 'file', file: { file_id: 'file_1' } };
    const pdf = { type: 'document', source: { type: 'base64', data: 'AA' } };
    const full: [Bound, number][] = [
      [chat(user([file])), WINDOW.chat],
      [chat({ messages: [{ role: 'assistant', audio: { id: 'a' } }] }), WINDOW.chat],
      [responses({ input: 'hi', previous_response_id: 'resp_1' }), WINDOW.responses],
      [responses({ input: 'hi', conversation: { id: 'conv_1' } }), WINDOW.responses],
      [responses({ input: [{ type: 'item_reference', id: 'x' }] }), WINDOW.responses],
      [responses({ input: [{ type: 'reasoning', id: 'x', summary: [] }] }), WINDOW.responses],
      [
        responses({ input: [{ content: [{ type: 'input_file', file_id: 'f' }] }] }),
        WINDOW.responses,
      ],
      [messages(user([pdf])), WINDOW.messages],
      [messages(user([{ type: 'container_upload', file_id: 'f' }])), WINDOW.messages],
      [messages({ ...user('hi'), thread: { type: 'continue' } }), WINDOW.messages],
      [messages(user([{ type: 'a_block_of_next_year' }])), WINDOW.messages],
    ];
    for (const [found, window] of full) {
      expect(found).toMatchObject({ inputTokens: window, audio: true, images: true });
      expect(found.unbounded).toBeUndefined();
    }
    const local = chat({ ...user([file]), max_tokens: 5 }, RATES.local!);
    expect(local.inputTokens).toBeGreaterThanOrEqual(1_048_576);
  });

  test('shown in full is not taken for hidden', () => {
    const encrypted = { type: 'reasoning', summary: [], encrypted_content: 'x'.repeat(90) };
    const output = { type: 'function_call_output', call_id: 'c', output: 'done' };
    expect(responses({ input: [encrypted, output] }).inputTokens).toBeLessThan(1_000);
  });

  test('nested as deep as a body may be does not overflow the stack', () => {
    let content: Json = [{ type: 'text', text: 'x' }];
    for (let depth = 0; depth < 20_000; depth++) content = [{ type: 'tool_result', content }];
    const row = ENDPOINTS.find(({ name }) => name === 'messages')!;
    expect(row.bound(user(content), 10, RATES.messages!).inputTokens).toBeGreaterThan(0);
  });
});

describe('tools that run upstream', () => {
  test('multiply the input by the calls they may take, and add their fees', () => {
    const tools = [{ type: 'web_search' }, { type: 'function', name: 'f' }];
    const found = responses({ input: 'hi', tools, max_tool_calls: 4, max_output_tokens: 9 });
    expect(found).toMatchObject({
      inputTokens: 5 * WINDOW.responses,
      outputTokens: 9,
      webSearches: 4,
      fileSearches: 0,
    });
    expect(found.unbounded).toBeUndefined();
    const search = { type: 'web_search_20250305', name: 'web_search', max_uses: 3 };
    expect(messages({ ...user('hi'), max_tokens: 1, tools: [search] })).toMatchObject({
      inputTokens: 4 * WINDOW.messages,
      webSearches: 3,
    });
  });

  test('without a limit, or of a kind or a price that is not known, have no bound', () => {
    const hosted = (tool: JsonObject, more: JsonObject = {}) =>
      responses({ input: 'hi', tools: [tool], ...more }).unbounded;
    expect(hosted({ type: 'web_search' })).toBe('max_tool_calls');
    expect(responses({ prompt: { id: 'pmpt_1' } }).unbounded).toBe('max_tool_calls');
    for (const type of ['code_interpreter', 'image_generation', 'web_search_preview', 'new', '']) {
      expect(hosted({ type }, { max_tool_calls: 1 })).toBe('tools');
    }
    expect(hosted({ type: 'shell', environment: { type: 'container_auto' } })).toBe('tools');
    expect(hosted({ type: 'namespace', tools: [{ type: 'code_interpreter' }] })).toBe('tools');
    const unpriced = findRates('demo', 'demo-small', NOW)!;
    const body = { input: 'hi', max_tool_calls: 1, tools: [{ type: 'file_search' }] };
    expect(responses(body, unpriced).unbounded).toBe('tools');
    const anthropic = (tool: JsonObject) => messages({ ...user('hi'), tools: [tool] }).unbounded;
    expect(anthropic({ type: 'web_search_20250305' })).toBe('tools[].max_uses');
    expect(anthropic({ type: 'code_execution_20250825' })).toBe('tools');
    expect(anthropic({ type: 'advisor_20260301', model: 'x', max_uses: 1 })).toBe('tools');
    expect(chat({ ...user('hi'), tools: [{ type: 'browser_search' }] }).unbounded).toBe('tools');
  });

  test('that the caller runs change nothing but the overhead', () => {
    const tools = ['function', 'custom', 'local_shell', 'apply_patch'].map((type) => ({ type }));
    expect(responses({ input: 'hi', tools }).inputTokens).toBeLessThan(3_000);
    const own = [
      { name: 'f', input_schema: {} },
      { type: 'bash_20250124', name: 'bash' },
    ];
    const found = messages({ ...user('hi'), tools: own });
    expect(found.unbounded).toBeUndefined();
    expect(found.inputTokens).toBeWithin(1_000, 5_000);
  });

  test('members that choose other models or add fees have no bound', () => {
    const keys = ['web_search_options', 'plugins', 'models', 'search_parameters', 'mcp_servers'];
    for (const key of keys) {
      expect(chat({ ...user('hi'), [key]: { a: 1 } }).unbounded).toBe(key);
      expect(chat({ ...user('hi'), [key]: null }).unbounded).toBeUndefined();
    }
    expect(messages({ ...user('hi'), fallbacks: 'default' }).unbounded).toBe('fallbacks');
    expect(messages({ ...user('hi'), mcp_servers: [{}] }).unbounded).toBe('mcp_servers');
    expect(responses({ input: 'x', mcp_servers: [{}] }).unbounded).toBe('mcp_servers');
    expect(responses({ input: 'x', reasoning: { mode: 'pro' } }).unbounded).toBe('reasoning.mode');
  });

  test('compacting counts as a turn with an answer of its own', () => {
    const edits = (type: string) => ({ context_management: { edits: [{ type }] }, max_tokens: 10 });
    expect(messages({ ...user('hi'), ...edits('compact_20260112') })).toMatchObject({
      inputTokens: 2 * WINDOW.messages,
      outputTokens: 20,
    });
    expect(messages({ ...user('hi'), ...edits('clear_thinking_20251015') }).outputTokens).toBe(10);
  });
});

test('the tier of service asked for is part of the bound', () => {
  expect(chat({ ...user('hi'), service_tier: 'priority' }).serviceTier).toBe('priority');
  expect(messages({ ...user('hi'), speed: 'fast' }).serviceTier).toBe('fast_mode+regional');
  expect(messages({ ...user('hi'), inference_geo: 'global' }).serviceTier).toBe('standard');
});

test('every number of a bound is a safe integer, and its bound is found, for any JSON', () => {
  const json = fc.jsonValue({ maxDepth: 4 }) as fc.Arbitrary<Json>;
  const keys = [...new Set(ENDPOINTS.flatMap(({ readKeys }) => [...readKeys]))];
  const bodies = fc.dictionary(fc.constantFrom(...keys), json) as fc.Arbitrary<JsonObject>;
  fc.assert(
    fc.property(fc.constantFrom(...ENDPOINTS), bodies, fc.nat(), (endpoint, body, bytes) => {
      let found: Bound;
      try {
        found = endpoint.bound(body, bytes, RATES.messages!);
      } catch (error) {
        expect(error).toMatchObject({ name: 'Refusal', code: 'invalid_body' });
        return;
      }
      for (const value of Object.values(found)) {
        if (typeof value === 'number') expect(Number.isSafeInteger(value)).toBe(true);
      }
      expect(found.choices).toBeGreaterThanOrEqual(1);
    }),
    { numRuns: 1_000 },
  );
});

describe('a report', () => {
  const COUNTS = Object.keys(NO_USAGE) as (keyof Usage)[];
  const limits = fc.record({
    inputTokens: fc.nat(100_000_000),
    outputTokens: fc.nat(100_000_000),
    webSearches: fc.nat(1_000),
    fileSearches: fc.nat(1_000),
  });
  const windows = fc.option(fc.nat(10_000_000), { nil: undefined });
  const mostOf = (bound: Bound, window = 0, name: keyof Usage = 'inputTokens') => {
    if (name.endsWith('Searches')) return Math.max(bound.webSearches, bound.fileSearches, 100);
    return Math.max(bound.inputTokens, bound.outputTokens, window, 1_048_576);
  };

  test('of what a bound, a window or the largest known model allows is possible, and twice that', () => {
    fc.assert(
      fc.property(
        limits,
        windows,
        fc.double({ min: 0, max: 2, noNaN: true }),
        (drawn, window, part) => {
          const bound = { ...NO_COST, ...drawn };
          const counts = COUNTS.map((name) => [
            name,
            Math.floor(mostOf(bound, window, name) * part),
          ]);
          expect(isPossible(Object.fromEntries(counts), bound, window)).toBe(true);
        },
      ),
    );
  });

  test('of more than twice that, of whatever kind, is not', () => {
    const names = fc.constantFrom(...COUNTS);
    fc.assert(
      fc.property(limits, windows, names, fc.maxSafeNat(), (drawn, window, name, more) => {
        const bound = { ...NO_COST, ...drawn };
        const count = Math.min(Number.MAX_SAFE_INTEGER, 2 * mostOf(bound, window, name) + 1 + more);
        expect(isPossible({ ...NO_USAGE, [name]: count }, bound, window)).toBe(false);
      }),
    );
  });
});
