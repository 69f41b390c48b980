/** However a call ends, it is settled: at what the upstream reports, else at an upper estimate. */

import { describe, expect, test } from 'bun:test';
import { connect } from 'node:net';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';
import { CLIENTS } from './clients.ts';
import { readSettled, readTrail } from './rungate.ts';
import { ALL_KINDS, call, KINDS, type Kind, type Stage, stages } from './runtimes.ts';
import type { Received, Script } from './upstream.ts';

/** Far more than the second in which a caller's leaving has to reach the upstream. */
const LEFT_LIMIT_MS = 5_000;

/** More than all buffers of sockets and runtimes on the way. */
const UNREAD_LIMIT_BYTES = 64 * 1024 * 1024;
/** How long nothing has to move to be at a standstill. */
const STANDSTILL_MS = 150;

const slug = (...names: string[]) => names.join(' ').replaceAll(/\W+/g, '-');

/** Fails when the upstream does not see the caller leave. */
async function expectCancelled(received: Received): Promise<void> {
  const outcome = await Promise.race([received.outcome, Bun.sleep(LEFT_LIMIT_MS)]);
  expect(outcome).toBe('cancelled');
}

/** The call that the upstream receives next. */
function upcoming({ upstream }: Stage): Promise<Received> {
  return upstream.received(upstream.requests.length);
}

/**
 * The most that a least call of the test model can cost in nanos: a token per byte at $1 per
 * million with a margin, and the output limit at $4. Anthropic may bill a region at a tenth more.
 */
function boundNanos(kind: Kind, members: object = {}): number {
  const { length } = JSON.stringify({ ...KINDS[kind].body, ...members });
  const messages = kind === 'responses' ? 0 : 1;
  const nanos = (length + 256 + 16 * messages) * 1_000 + 50 * 4_000;
  return kind === 'messages' ? (nanos * 11) / 10 : nanos;
}

async function heldNanos({ rungate }: Stage, run: string): Promise<number> {
  const headers = { authorization: `Bearer ${rungate.token}` };
  const response = await fetch(`${rungate.url}/v1/runs/${run}`, { headers });
  return ((await response.json()) as { heldNanos: number }).heldNanos;
}

// Usage that is no usage

const ODD_USAGE: Readonly<Record<string, Script>> = {
  missing: { usage: null },
  'a string': { rawUsage: '"many"' },
  'a list': { rawUsage: '[1,2]' },
  null: { rawUsage: 'null' },
  'not JSON': { rawUsage: '{"prompt_tokens":NaN}' },
  negative: {
    usage: { prompt_tokens: -5, completion_tokens: -5, input_tokens: -5, output_tokens: -5 },
  },
  'a fraction': { usage: { prompt_tokens: 0.5, input_tokens: 0.5 } },
  'a number in a string': { usage: { completion_tokens: '5', output_tokens: '5' } },
  'no tokens at all': {
    usage: {
      ...{ prompt_tokens: 0, completion_tokens: 0, total_tokens: 0 },
      ...{ input_tokens: 0, output_tokens: 0 },
    },
  },
  'beyond all numbers': { usage: { prompt_tokens: 1e300, input_tokens: 1e300 } },
  ...impossible('a million millions', 1e12),
  ...impossible('as large as a number can be', Number.MAX_SAFE_INTEGER),
};

/** Counts of each kind that no call can have, under the names that all endpoints have for them. */
function impossible(name: string, count: number): Record<string, Script> {
  const details = { cached_tokens: count };
  const kinds = {
    input: { prompt_tokens: count, input_tokens: count },
    output: { completion_tokens: count, output_tokens: count },
    cached: {
      ...{ prompt_tokens_details: details, input_tokens_details: details },
      cache_read_input_tokens: count,
    },
  };
  const named = Object.entries(kinds).map(([kind, usage]) => [`${name}, ${kind},`, { usage }]);
  return Object.fromEntries(named);
}

// Usage with parts that have prices of their own

/** An answer's report and what it costs. */
interface Metered {
  readonly kind: Kind;
  readonly model: string;
  readonly script: Script;
  /** Only where answers of one of the two forms can hold the report. */
  readonly streams?: readonly boolean[];
  readonly spentNanos: number;
}

const ANTHROPIC_USAGE = {
  input_tokens: 100,
  cache_read_input_tokens: 1_000,
  cache_creation_input_tokens: 500,
  cache_creation: { ephemeral_5m_input_tokens: 200, ephemeral_1h_input_tokens: 300 },
  output_tokens: 40,
};

/** Per million: $3 in, $15 out, $0.30 read from the cache, $3.75 and $6 written to it. */
const ANTHROPIC_NANOS = 100 * 3_000 + 1_000 * 300 + 200 * 3_750 + 300 * 6_000 + 40 * 15_000;

const METERED: Readonly<Record<string, Metered>> = {
  "Anthropic's cache reads and both kinds of cache writes": {
    ...{ kind: 'messages', model: 'claude-sonnet-4-5', spentNanos: ANTHROPIC_NANOS },
    script: { usage: ANTHROPIC_USAGE },
  },
  'the last of cumulative counts, not their sum': {
    ...{ kind: 'messages', model: 'claude-sonnet-4-5', streams: [true] },
    ...{
      script: {
        startUsage: { ...ANTHROPIC_USAGE, output_tokens: 7 },
        usage: {
          input_tokens: 100,
          output_tokens: 40,
          cache_read_input_tokens: 1_000,
          cache_creation_input_tokens: 500,
        },
      },
    },
    spentNanos: ANTHROPIC_NANOS,
  },
  'iterations beyond the message itself': {
    ...{ kind: 'messages', model: 'claude-sonnet-4-5' },
    script: {
      usage: {
        ...{ input_tokens: 100, output_tokens: 40 },
        iterations: [
          { type: 'compaction', input_tokens: 1_000, output_tokens: 10 },
          { type: 'message', input_tokens: 100, output_tokens: 40 },
        ],
      },
    },
    spentNanos: 1_100 * 3_000 + 50 * 15_000,
  },
  'fast inference at its surcharge': {
    ...{ kind: 'messages', model: 'claude-sonnet-4-5', streams: [false] },
    script: { usage: { input_tokens: 100, output_tokens: 40, speed: 'fast' } },
    spentNanos: (100 * 3_000 + 40 * 15_000) * 6,
  },
  'cached input of a chat': {
    ...{ kind: 'chat', model: 'gpt-4o', spentNanos: 200 * 2_500 + 800 * 1_250 + 50 * 10_000 },
    script: {
      usage: {
        ...{ prompt_tokens: 1_000, completion_tokens: 50, total_tokens: 1_050 },
        prompt_tokens_details: { cached_tokens: 800 },
      },
    },
  },
  'reasoning of a chat that only the total counts': {
    ...{ kind: 'chat', model: 'gpt-4o', spentNanos: 1_000 * 2_500 + 90 * 10_000 },
    script: { usage: { prompt_tokens: 1_000, completion_tokens: 50, total_tokens: 1_090 } },
  },
  'cached input of a response': {
    ...{ kind: 'responses', model: 'gpt-4o', spentNanos: 200 * 2_500 + 800 * 1_250 + 50 * 10_000 },
    script: {
      usage: {
        ...{ input_tokens: 1_000, output_tokens: 50, total_tokens: 1_050 },
        input_tokens_details: { cached_tokens: 800 },
      },
    },
  },
  'the model that answered rather than the one asked for': {
    ...{ kind: 'chat', model: 'gpt-4o', spentNanos: 1_000 * 150 + 50 * 600 },
    script: {
      model: 'gpt-4o-mini-2024-07-18',
      usage: { prompt_tokens: 1_000, completion_tokens: 50, total_tokens: 1_050 },
    },
  },
};

// Answers by another model than the one asked for

/** The org's own prices, in dollars per million tokens. */
const OWN_PRICES = {
  'gpt-4.1': [7, 9],
  'gpt-4': [3, 5],
  'gpt-4o-2024-08-06': [2, 4],
  'local-small': [1, 2],
  'local-large': [30, 4_000],
  'local-large-2025-01-01': [20, 40],
} as const;

/** A model that is asked for, the one that the answer names, and the price that counts. */
interface Serving {
  readonly asked: string;
  readonly served: string;
  /** Dollars per million tokens. */
  readonly price: readonly [input: number, output: number];
  readonly catalogue: 'override' | 'listed';
  readonly isEstimated?: boolean;
}

const SERVINGS: Readonly<Record<string, Serving>> = {
  "a listed model in another one's place": {
    ...{ asked: 'gpt-4.1-mini', served: 'gpt-4.1-nano' },
    ...{ price: [0.1, 0.4], catalogue: 'listed' },
  },
  "a listed model in place of one with the org's price": {
    ...{ asked: 'gpt-4.1', served: 'gpt-4o-mini-2024-07-18' },
    ...{ price: [0.15, 0.6], catalogue: 'listed' },
  },
  "a listed snapshot in place of another that has the org's price": {
    ...{ asked: 'gpt-4o-2024-08-06', served: 'gpt-4o-2024-05-13' },
    ...{ price: [5, 15], catalogue: 'listed' },
  },
  "a model with the org's price in place of a listed one": {
    ...{ asked: 'gpt-4.1-mini', served: 'gpt-4.1' },
    ...{ price: OWN_PRICES['gpt-4.1'], catalogue: 'override' },
  },
  "a snapshot of a model with the org's price in place of a listed one": {
    ...{ asked: 'gpt-4.1-mini', served: 'gpt-4.1-2025-04-14' },
    ...{ price: OWN_PRICES['gpt-4.1'], catalogue: 'override' },
  },
  "one of the org's prices in another one's place, above the hold": {
    ...{ asked: 'local-small', served: 'local-large' },
    ...{ price: OWN_PRICES['local-large'], catalogue: 'override' },
  },
  'a snapshot of it, whose price the org has set by itself': {
    ...{ asked: 'local-large', served: 'local-large-2025-01-01' },
    ...{ price: OWN_PRICES['local-large-2025-01-01'], catalogue: 'override' },
  },
  'a snapshot of the model asked for, at the price of the org': {
    ...{ asked: 'gpt-4.1', served: 'gpt-4.1-2025-04-14' },
    ...{ price: OWN_PRICES['gpt-4.1'], catalogue: 'override' },
  },
  "what the catalogue equals with the model asked for, at the org's price": {
    ...{ asked: 'gpt-4', served: 'gpt-4-0613' },
    ...{ price: OWN_PRICES['gpt-4'], catalogue: 'override' },
  },
  "a name that nobody knows, at the org's price of the model asked for": {
    ...{ asked: 'local-small', served: '/models/small-q4.gguf' },
    ...{ price: OWN_PRICES['local-small'], catalogue: 'override' },
  },
  'a name that nobody knows, as an estimate by the listed model asked for': {
    ...{ asked: 'gpt-4.1-mini', served: 'mystery' },
    ...{ price: [0.4, 1.6], catalogue: 'listed', isEstimated: true },
  },
};

/** The model of a first upstream that fails. */
const failing = (model: string) => `failing-${model}`;

const ASKED = [...new Set(Object.values(SERVINGS).map(({ asked }) => asked))];

const priceOf = (model: string, [input, output]: readonly [number, number]) => ({
  ...{ model: `openai/${model}`, inputPerMillion: `${input}`, outputPerMillion: `${output}` },
});

const WANTED = {
  prices: [
    ...Object.entries(OWN_PRICES).map(([model, price]) => priceOf(model, price)),
    ...ASKED.map((model) => priceOf(failing(model), [1, 1])),
  ],
  policy: {
    failover: ASKED.map((model) => ({
      ...{ model: `openai/${failing(model)}`, to: [`openai/${model}`] },
    })),
  },
};

const SERVED_TOKENS = { input: 30, output: 20 };

/** Under the names that both kinds of endpoints have for them. */
const SERVED_USAGE = {
  ...{ prompt_tokens: SERVED_TOKENS.input, completion_tokens: SERVED_TOKENS.output },
  ...{ input_tokens: SERVED_TOKENS.input, output_tokens: SERVED_TOKENS.output, total_tokens: 50 },
};

/** A way on which an answer comes: asks for a model, and reads the answer to its end. */
type Way = (stage: Stage, run: string, model: string, script: Script) => Promise<void>;

const asking =
  (kind: Kind, members: object = {}): Way =>
  async (stage, run, model, script) => {
    stage.upstream.script(script);
    const response = await call(stage, kind, { run, members: { model, ...members } });
    expect(response.status).toBe(200);
    await response.bytes();
  };

const fetching =
  (query: string): Way =>
  async (stage, run, model, script) => {
    stage.upstream.script(script);
    const members = { model, background: true };
    const made = await call(stage, 'responses', { run, members });
    const { id, status } = (await made.json()) as { id: string; status: string };
    expect(status).toBe('queued');
    const headers = { authorization: `Bearer ${stage.rungate.token}` };
    // The first look may be too early.
    for (let look = 0; look < 2; look++) {
      const url = `${stage.rungate.url}/r/${run}-looks/v1/responses/${id}${query}`;
      await (await fetch(url, { headers })).bytes();
    }
  };

const WAYS: Readonly<Record<string, Way>> = {
  'a chat': asking('chat'),
  'a chat that streams': asking('chat', { stream: true }),
  'a response': asking('responses'),
  'a response that streams': asking('responses', { stream: true }),
  'a response made in the background': fetching(''),
  'a response made in the background and fetched as a stream': fetching('?stream=true'),
  async 'a chat that another upstream has failed'(stage, run, model, script) {
    stage.upstream.script({ error: 503 });
    await asking('chat')(stage, run, failing(model), script);
  },
};

/** More than any SDK makes. */
const ATTEMPTS = 10;

/** What tells clients of each dialect that a stream is over. */
const LAST_EVENT = /^data: (?:\[DONE\]|.*"(?:response\.completed|message_stop)".*)\n\n/m;

/** How an answer is cut short once it speaks: by a broken connection, by a clean but early end. */
const CUTS: Readonly<Record<string, Script>> = {
  breaks: { breakAfterChunks: 5, chunkDelayMs: 5 },
  'ends too early': { endAfterChunks: 5, chunkDelayMs: 5 },
};

describe.each(stages(WANTED))('on $runtime', (stage) => {
  describe('a caller that leaves', () => {
    for (const kind of ALL_KINDS) {
      test(`in the middle of a ${kind} stream ends the upstream call, and the step is settled`, async () => {
        const run = `left-${kind}`;
        stage.upstream.script({ endless: true, chunkDelayMs: 10 });
        const arrival = upcoming(stage);
        const leaving = new AbortController();
        const { signal } = leaving;
        const response = await call(stage, kind, { run, signal, members: { stream: true } });
        const reader = response.body!.getReader();
        await reader.read();
        expect(await heldNanos(stage, run)).toBe(boundNanos(kind, { stream: true }));
        leaving.abort();
        await expectCancelled(await arrival);
        const [step] = await readSettled(stage.rungate, run);
        expect(step).toMatchObject({ outcome: 'client_left', estimated: true, httpStatus: 200 });
        expect(step?.spentNanos).toBeWithin(1, boundNanos(kind, { stream: true }) + 1);
        expect(await heldNanos(stage, run)).toBe(0);
      });

      // A caller is listened to once a call takes a while; who leaves before that is noticed then.
      for (const [stream, afterMs] of [
        [false, 0],
        [true, 0],
        [false, 300],
      ] as const) {
        test(`before the headers of ${kind}, stream ${stream}, after ${afterMs} ms, is charged at the bound`, async () => {
          const run = `left-early-${kind}-${stream}-${afterMs}`;
          stage.upstream.script({ stall: 'headers' });
          const arrival = upcoming(stage);
          const leaving = new AbortController();
          const { signal } = leaving;
          const response = call(stage, kind, { run, signal, members: { stream } });
          const received = await arrival;
          await Bun.sleep(afterMs);
          leaving.abort();
          expect(response).rejects.toThrow();
          await expectCancelled(received);
          const [step] = await readSettled(stage.rungate, run);
          expect(step).toMatchObject({ outcome: 'client_left', estimated: true });
          expect(step?.spentNanos).toBe(boundNanos(kind, { stream }));
        });
      }
    }

    test('in the middle of a JSON answer ends the upstream call, charged at the bound', async () => {
      stage.upstream.script({ chunkBytes: 50, stallAfterChunks: 2 });
      const arrival = upcoming(stage);
      const leaving = new AbortController();
      const response = call(stage, 'chat', { run: 'left-json', signal: leaving.signal });
      const received = await arrival;
      while (received.sentBytes < 100) await Bun.sleep(1);
      leaving.abort();
      expect(response).rejects.toThrow();
      await expectCancelled(received);
      const [step] = await readSettled(stage.rungate, 'left-json');
      expect(step).toMatchObject({ outcome: 'client_left', estimated: true });
      expect(step?.spentNanos).toBe(boundNanos('chat'));
    });
  });

  test('a caller that does not read holds the upstream back', async () => {
    stage.upstream.script({ endless: true });
    const arrival = upcoming(stage);
    const { hostname, port } = new URL(stage.rungate.url);
    const socket = connect(Number(port), hostname).pause();
    const body = JSON.stringify({ ...KINDS.chat.body, stream: true });
    const lines = [
      ...['POST /r/unread/v1/chat/completions HTTP/1.1', 'Host: rungate'],
      ...[`Authorization: Bearer ${stage.rungate.token}`, `Content-Length: ${body.length}`],
    ];
    socket.write([...lines, '', body].join('\r\n'));
    const received = await arrival;
    let sentBytes = -1;
    while (sentBytes < received.sentBytes) {
      sentBytes = received.sentBytes;
      expect(sentBytes).toBeLessThan(UNREAD_LIMIT_BYTES);
      await Bun.sleep(STANDSTILL_MS);
    }
    socket.destroy();
    await expectCancelled(received);
    const [step] = await readSettled(stage.rungate, 'unread');
    expect(step).toMatchObject({ outcome: 'client_left', estimated: true });
  });

  describe('a stream whose connection outlasts it', () => {
    for (const kind of ALL_KINDS) {
      // Clients leave as soon as they have the last event, and may call again at once.
      test.each([
        ['in silence', { lingers: true }],
        ['with comments without end', { lingers: 'noisily' }],
      ] as const)(
        `of ${kind}, %s, is settled when its last event is there, and ends`,
        async (way, script) => {
          const run = slug('lingering', kind, way);
          stage.upstream.script(script);
          const arrival = upcoming(stage);
          const response = await call(stage, kind, { run, members: { stream: true } });
          const reader = response.body!.getReader();
          const decoder = new TextDecoder();
          let text = '';
          while (!LAST_EVENT.test(text)) {
            const { value, done } = await reader.read();
            expect(done).toBe(false);
            text += decoder.decode(value, { stream: true });
          }
          const [step] = await readTrail(stage.rungate, run);
          expect(step).toMatchObject({ outcome: 'ok', estimated: false });
          expect(step?.settledAt).not.toBeNull();
          while (!(await reader.read()).done);
          await expectCancelled(await arrival);
        },
      );

      test(`of ${kind}, and breaks after it, is whole`, async () => {
        const run = `late-break-${kind}`;
        stage.upstream.script({ breaksLate: true });
        const response = await call(stage, kind, { run, members: { stream: true } });
        expect(await response.text()).toMatch(LAST_EVENT);
        const [step] = await readTrail(stage.rungate, run);
        expect(step).toMatchObject({ outcome: 'ok', estimated: false });
      });
    }

    test('of a response is not over by a status that its first event has', async () => {
      const response = { id: 'resp_early', object: 'response', model: 'test-model', output: [] };
      const event = (type: string, more: object) =>
        `event: ${type}\ndata: ${JSON.stringify({ type, ...more })}\n\n`;
      const usage = { input_tokens: 5, output_tokens: 5, total_tokens: 10 };
      const chunks = [
        event('response.created', { response: { ...response, status: 'completed' } }),
        event('response.output_text.delta', { delta: 'late' }),
        event('response.completed', { response: { ...response, status: 'completed', usage } }),
      ];
      stage.upstream.script({ chunks, chunkDelayMs: 250 });
      const answer = await call(stage, 'responses', { run: 'early', members: { stream: true } });
      expect(await answer.text()).toBe(chunks.join(''));
    });
  });

  test('a stream is one whatever the case of its media type', async () => {
    stage.upstream.script({ headers: { 'content-type': 'Text/Event-Stream;Charset=UTF-8' } });
    const response = await call(stage, 'chat', { run: 'cased', members: { stream: true } });
    expect(await response.text()).not.toContain('"usage":{');
    const [step] = await readTrail(stage.rungate, 'cased');
    expect(step).toMatchObject({ outcome: 'ok', estimated: false });
  });

  for (const includesUsage of [false, true]) {
    test(`a comment passes before any event does, include_usage ${includesUsage}`, async () => {
      const run = `comment-${includesUsage}`;
      stage.upstream.script({ chunks: [': PROCESSING\n\n'], lingers: true });
      const leaving = new AbortController();
      const options = includesUsage ? { stream_options: { include_usage: true } } : {};
      const members = { stream: true, ...options };
      const response = await call(stage, 'chat', { run, members, signal: leaving.signal });
      const { value } = await response.body!.getReader().read();
      expect(new TextDecoder().decode(value)).toBe(': PROCESSING\n\n');
      leaving.abort();
      await readSettled(stage.rungate, run);
    });
  }

  test('what has come of a stream that ends too early reaches the caller, however fast it came', async () => {
    const text = 'data: {"choices":[]}\n\ndata: {"error":{"message":"overloaded"}}\n\n';
    for (let time = 0; time < 10; time++) {
      stage.upstream.script({ chunks: [text] });
      const options = { run: `burst-${time}`, members: { stream: true } };
      const reader = (await call(stage, 'chat', options)).body!.getReader();
      expect(new TextDecoder().decode((await reader.read()).value)).toBe(text);
      await expect((async () => await reader.read())()).rejects.toThrow();
    }
  });

  for (const [way, script] of Object.entries(CUTS)) {
    describe(`a stream that ${way}`, () => {
      for (const client of CLIENTS.filter(({ isStream }) => isStream)) {
        test(`is an error to ${client.name}, and is settled at an estimate`, async () => {
          const run = slug(way, client.name);
          // An SDK may try again where it has seen nothing of an answer yet.
          stage.upstream.script(script, ATTEMPTS);
          const base = `${stage.rungate.url}/r/${run}`;
          const answer = client.ask({ base, token: stage.rungate.token });
          await expect(answer).rejects.toThrow();
          stage.upstream.unscript();
          for (const step of await readSettled(stage.rungate, run)) {
            expect(step).toMatchObject({ outcome: 'broken', estimated: true, httpStatus: 200 });
            expect(step.spentNanos).toBeGreaterThan(0);
          }
        });
      }
    });
  }

  test('a stream that breaks after it reported more than was held is charged what was held', async () => {
    const startUsage = { input_tokens: 1_000_000, output_tokens: 1_000_000 };
    stage.upstream.script({ startUsage, breakAfterChunks: 3, chunkDelayMs: 5 });
    const members = { stream: true };
    const response = await call(stage, 'messages', { run: 'capped', members });
    await expect(response.text()).rejects.toThrow();
    const [step] = await readSettled(stage.rungate, 'capped');
    expect(step).toMatchObject({ outcome: 'broken', estimated: true });
    expect(step?.usage).toMatchObject({ inputTokens: 1_000_000 });
    expect(step?.spentNanos).toBe(boundNanos('messages', members));
  });

  describe('a JSON answer that breaks', () => {
    for (const kind of ALL_KINDS) {
      test(`is 502 to ${kind}, charged at the bound`, async () => {
        const run = `broken-${kind}`;
        stage.upstream.script({ breakAfterBytes: 100 });
        const response = await call(stage, kind, { run });
        expect(response.status).toBe(502);
        expect(await response.text()).toContain('broke off; the call is charged at its bound');
        const [step] = await readTrail(stage.rungate, run);
        expect(step).toMatchObject({ outcome: 'broken', estimated: true });
        expect(step?.spentNanos).toBe(boundNanos(kind));
      });

      test(`is 502 to ${kind}, and free, where its status is that of an error`, async () => {
        for (const error of [400, 429, 500, 503] as const) {
          const run = `error-${kind}-${error}`;
          stage.upstream.script({ error, breakAfterBytes: 10 });
          const response = await call(stage, kind, { run });
          expect(response.status).toBe(502);
          expect(await response.text()).toContain(`answered ${error}, and its answer broke off`);
          const [step] = await readTrail(stage.rungate, run);
          expect(step).toMatchObject({ outcome: 'broken', estimated: false, httpStatus: error });
          expect(step?.spentNanos).toBe(0);
        }
      });

      test(`is 502 to ${kind} where only the end of the connection tells its length`, async () => {
        const run = `unframed-${kind}`;
        stage.upstream.script({ isUnframed: true });
        expect((await call(stage, kind, { run })).status).toBe(200);
        stage.upstream.script({ isUnframed: true, breakAfterBytes: 100 });
        expect((await call(stage, kind, { run })).status).toBe(502);
        const outcomes = (await readTrail(stage.rungate, run)).map(({ outcome }) => outcome);
        expect(outcomes).toEqual(['ok', 'broken']);
      });

      test(`without any answer is 502 to ${kind}, charged at the bound`, async () => {
        const run = `unanswered-${kind}`;
        stage.upstream.script({ stall: 'socket' });
        const response = await call(stage, kind, { run });
        expect(response.status).toBe(502);
        const [step] = await readTrail(stage.rungate, run);
        expect(step).toMatchObject({ outcome: 'broken', estimated: true });
        expect(step?.spentNanos).toBe(boundNanos(kind));
      });
    }

    test('where its declared length has cut it is no success to the SDKs', async () => {
      const options = { apiKey: stage.rungate.token, maxRetries: 0 };
      const base = `${stage.rungate.url}/r/short`;
      const openai = new OpenAI({ ...options, baseURL: `${base}/v1` });
      const anthropic = new Anthropic({ ...options, baseURL: base });
      stage.upstream.script({ headers: { 'content-length': '100' } }, 2);
      const messages = [{ role: 'user' as const, content: 'hello' }];
      const asked = { model: 'test-model', max_tokens: 50, messages };
      const calls = [
        () => openai.chat.completions.create(asked),
        () => anthropic.messages.create(asked),
      ];
      // What the SDKs return is not quite a promise.
      for (const act of calls) await expect((async () => await act())()).rejects.toThrow();
      const steps = await readTrail(stage.rungate, 'short');
      expect(steps.map(({ estimated }) => estimated)).toEqual([true, true]);
    });
  });

  describe('usage that is', () => {
    for (const [name, script] of Object.entries(ODD_USAGE)) {
      // The last event of a response that is not JSON is as good as no end at all.
      const kinds = ALL_KINDS.filter((kind) => name !== 'not JSON' || kind !== 'responses');
      for (const kind of kinds) {
        test(`${name} charges ${kind} at the bound, estimated, and the answer passes`, async () => {
          for (const stream of [false, true]) {
            const run = slug('odd', name, kind, String(stream));
            stage.upstream.script({ startUsage: script.usage ?? {}, ...script });
            const response = await call(stage, kind, { run, members: { stream } });
            expect(response.status).toBe(200);
            await response.bytes();
            const [step] = await readTrail(stage.rungate, run);
            const spentNanos = boundNanos(kind, { stream });
            expect(step).toMatchObject({ estimated: true, spentNanos, outcome: 'ok' });
          }
        });
      }
    }
  });

  test('usage that no call can have is told in the log', async () => {
    const usage = { prompt_tokens: 1e12, completion_tokens: 5 };
    stage.upstream.script({ usage });
    await (await call(stage, 'chat', { run: 'impossible' })).bytes();
    const [step] = await readTrail(stage.rungate, 'impossible');
    expect(step?.usage).toBeNull();
    const told = stage.rungate
      .logs()
      .split('\n')
      .find((line) => line.includes(step!.id));
    expect(told).toMatch(/"level":"warn","message":"an upstream reported more than a call can use/);
    expect(told).toContain('"inputTokens":1000000000000');
  });

  test('a cost above what was held, by which a ceiling may be passed, is told in the log', async () => {
    for (const [run, tokens] of [
      ['costlier', 1_000_000],
      ['as-costly', 1],
    ] as const) {
      stage.upstream.script({ usage: { prompt_tokens: tokens, completion_tokens: 1 } });
      await (await call(stage, 'chat', { run })).bytes();
      const [step] = await readTrail(stage.rungate, run);
      const told = stage.rungate
        .logs()
        .split('\n')
        .filter((line) => line.includes(step!.id) && line.includes('"level":"warn"'));
      expect(told.length).toBe(tokens > 1 ? 1 : 0);
      for (const line of told) {
        expect(JSON.parse(line)).toMatchObject({
          message: 'a call cost more than was held for it; a ceiling may be passed',
          ...{ heldNanos: boundNanos('chat', {}), spentNanos: step!.spentNanos },
        });
      }
    }
  });

  test('usage above the bound is charged as it is while a call can have it', async () => {
    const usage = { prompt_tokens: 1_000_000, completion_tokens: 200_000 };
    stage.upstream.script({ usage });
    await (await call(stage, 'chat', { run: 'above' })).bytes();
    const [step] = await readTrail(stage.rungate, 'above');
    const spentNanos = 1_000_000 * 1_000 + 200_000 * 4_000;
    expect(step).toMatchObject({ estimated: false, spentNanos });
  });

  describe('the price is that of', () => {
    for (const [name, metered] of Object.entries(METERED)) {
      const { kind, model, script, spentNanos, streams = [false, true] } = metered;
      for (const stream of streams) {
        test(`${name}, stream ${stream}`, async () => {
          const run = slug('price', name, String(stream));
          stage.upstream.script(script);
          const response = await call(stage, kind, { run, members: { model, stream } });
          expect(response.status).toBe(200);
          await response.bytes();
          const [step] = await readTrail(stage.rungate, run);
          expect(step).toMatchObject({ estimated: false, spentNanos });
          expect(step?.catalogue).toMatch(/^genai-prices@\d/);
        });
      }
    }

    test('an upper estimate where the model that answered has none', async () => {
      stage.upstream.script({ model: 'mystery' });
      const members = { model: 'gpt-4o' };
      await (await call(stage, 'chat', { run: 'mystery', members })).bytes();
      const [step] = await readTrail(stage.rungate, 'mystery');
      expect(step).toMatchObject({ servedModel: 'mystery', estimated: true });
      expect(step?.spentNanos).toBeGreaterThan(0);
    });
  });

  for (const [way, ask] of Object.entries(WAYS)) {
    describe(`${way} is charged`, () => {
      for (const [what, serving] of Object.entries(SERVINGS)) {
        test(`by the model that answered: ${what}`, async () => {
          const { asked, served, price, catalogue, isEstimated = false } = serving;
          const run = slug('served', way, what);
          await ask(stage, run, asked, { model: served, usage: SERVED_USAGE });
          const step = (await readSettled(stage.rungate, run)).at(-1)!;
          const spentNanos =
            1_000 * (SERVED_TOKENS.input * price[0] + SERVED_TOKENS.output * price[1]);
          const told = { model: asked, servedModel: served, estimated: isEstimated };
          expect(step).toMatchObject({ ...told, outcome: 'ok' });
          // Of a stream, an estimate counts the bytes too.
          if (isEstimated) expect(step.spentNanos).toBeWithin(spentNanos, 3 * spentNanos);
          else expect(step.spentNanos).toBe(spentNanos);
          expect(step.catalogue!.replace(/^genai-prices@.*/, 'listed')).toBe(catalogue);
        });
      }
    });
  }

  test('searches that the model that answered has no price of are estimated by the one asked for', async () => {
    const run = 'searched';
    const output = [{ type: 'web_search_call', id: 'ws_1', action: { type: 'search' } }];
    const answer = { id: 'resp_searched', object: 'response', status: 'completed', output };
    const body = JSON.stringify({ ...answer, model: 'gpt-4.1', usage: SERVED_USAGE });
    const members = { tools: [{ type: 'web_search' }], max_tool_calls: 1 };
    await asking('responses', members)(stage, run, 'gpt-4.1-mini', { body });
    const [step] = await readTrail(stage.rungate, run);
    const tokenNanos = 1_000 * (SERVED_TOKENS.input * 0.4 + SERVED_TOKENS.output * 1.6);
    expect(step).toMatchObject({ estimated: true, spentNanos: tokenNanos + 10_000_000 });
  });
});
