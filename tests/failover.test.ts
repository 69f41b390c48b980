/** Failover: what is tried again, what never is, and that each attempt is on the books. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';
import { findAgent, resumeAgent, suspendAgent } from '../db/agents.ts';
import type { Database } from '../db/client.ts';
import type { Org } from '../db/org.ts';
import { findOrg } from '../db/orgs.ts';
import { deletePrice, setPrice } from '../db/prices.ts';
import { nanos } from '../schema/money.ts';
import { decideRetry, type Failure, MAX_ATTEMPTS, readRetryAfter } from '../schema/rules/retry.ts';
import { type Deployment, deploy, readSettled, readTrail } from './rungate.ts';
import { type Script, startUpstream, UPSTREAM_KEY, type Upstream } from './upstream.ts';

setDefaultTimeout(60_000);

const PRICE = { inputPerMillion: '1.00', outputPerMillion: '4.00' };
/** So dear that a call's least output doesn't fit the run's budget. */
const DEAR = { model: 'openai/dear-model', inputPerMillion: '1.00', outputPerMillion: '500000' };
const MODELS = [
  'openai/other-model',
  'openai/far-model',
  'anthropic/far-model',
  'openai/only-model',
  'openai/near-model',
  'openai/small-model',
  'openai/listed-model',
  'openai/gone-model',
];

/** The first upstream, and where its calls go when it fails: the same dialect or the other one. */
const FAILOVER = [
  { model: 'openai/test-model', to: ['openai/other-model'] },
  { model: 'openai/far-model', to: ['anthropic/test-model'] },
  { model: 'anthropic/far-model', to: ['openai/test-model'] },
  { model: 'openai/near-model', to: [DEAR.model] },
  { model: 'openai/small-model', to: ['anthropic/claude-3-haiku-20240307'] },
  { model: 'openai/listed-model', to: ['openai/gone-model', 'anthropic/test-model'] },
];

const ROUTES = {
  'chat to chat': { path: 'chat/completions', model: 'openai/test-model', to: 'other-model' },
  'chat to messages': { path: 'chat/completions', model: 'openai/far-model', to: 'test-model' },
  'messages to chat': { path: 'messages', model: 'anthropic/far-model', to: 'test-model' },
} as const;

interface Route {
  readonly path: string;
  readonly model: string;
  /** The model that answers in the end. */
  readonly to: string;
}

const SAFE: Readonly<Record<string, Script>> = {
  'status 401': { error: 401 },
  'status 429': { error: 429, retryAfterS: 30 },
  'status 500': { error: 500 },
  'status 502': { error: 502 },
  'status 503': { error: 503 },
  'status 529': { error: 529 },
};
const UNSAFE: Readonly<Record<string, Script>> = {
  'breaks without an answer': { stall: 'socket' },
  'breaks in its answer': { breakAfterBytes: 40 },
  'answers 400': { error: 400 },
  'answers 403': { error: 403 },
  'answers 404': { error: 404 },
};

let upstream: Upstream;
let rungate: Deployment;
let runs = 0;

beforeAll(async () => {
  upstream = await startUpstream();
  rungate = await deploy({
    upstreamUrl: upstream.url,
    policy: { failover: FAILOVER, budget: { run: '5.00' } },
    prices: [...MODELS.map((model) => ({ model, ...PRICE })), DEAR],
  });
});
afterAll(async () => {
  await rungate?.stop();
  await upstream?.stop();
});

const HELLO = { max_tokens: 50, messages: [{ role: 'user', content: 'Say hello.' }] };

function ask(route: Route, members: object = {}, run = `run-${++runs}`, signal?: AbortSignal) {
  const headers = {
    authorization: `Bearer ${rungate.token}`,
    'anthropic-version': '2023-06-01',
    'x-rungate-run-id': run,
  };
  const body = JSON.stringify({ ...HELLO, model: route.model, ...members });
  const sent = fetch(`${rungate.url}/v1/${route.path}`, {
    method: 'POST',
    headers,
    body,
    ...(signal && { signal }),
  });
  return { run, sent };
}

async function expectSound(): Promise<void> {
  const { stdout } = await rungate.cli('doctor', '--json');
  expect(JSON.parse(stdout)).toMatchObject({ ok: true, heldNanos: 0, liveHolds: 0 });
}

describe('a call whose first upstream', () => {
  for (const [what, script] of Object.entries(SAFE)) {
    for (const [name, route] of Object.entries(ROUTES)) {
      for (const stream of [false, true]) {
        test(`fails with ${what} is answered by the next, ${name}, stream ${stream}`, async () => {
          upstream.script(script);
          const { run, sent } = ask(route, { stream });
          const response = await sent;
          const text = await response.text();
          expect([response.status, text]).toEqual([200, expect.stringContaining('"')]);
          const isMessage = route.path === 'messages';
          if (stream) expect(text).toContain(isMessage ? 'event: message_stop' : 'data: [DONE]');
          else expect(JSON.parse(text)).toHaveProperty(isMessage ? 'content' : 'choices');
          const steps = await readSettled(rungate, run, 2);
          expect(steps.map(({ kind }) => kind)).toEqual(['model_call', 'failover']);
          expect(steps[0]).toMatchObject({ spentNanos: 0, estimated: false });
          expect(steps[0]?.outcome).toBe(`upstream_${steps[0]?.httpStatus}`);
          expect(steps[1]).toMatchObject({ outcome: 'ok', estimated: false, model: route.to });
          expect(steps[1]?.spentNanos).toBeGreaterThan(0);
          expect(response.headers.get('x-rungate-attempts')).toBe('2');
          expect(response.headers.get('x-rungate-step-id')).toBe(steps[1]!.id);
        });
      }
    }
  }

  for (const [what, script] of Object.entries(UNSAFE)) {
    test(`${what} is not asked again, nor is another`, async () => {
      upstream.script(script);
      const before = upstream.requests.length;
      const { run, sent } = ask(ROUTES['chat to chat']);
      expect((await sent).status).toBeGreaterThanOrEqual(400);
      expect((await readSettled(rungate, run)).map(({ kind }) => kind)).toEqual(['model_call']);
      expect(upstream.requests.length).toBe(before + 1);
    });
  }

  test('breaks a stream after its first byte is not asked again, nor is another', async () => {
    upstream.script({ breakAfterChunks: 2 });
    const before = upstream.requests.length;
    const { run, sent } = ask(ROUTES['chat to messages'], { stream: true });
    await expect(sent.then((response) => response.text())).rejects.toThrow();
    expect(await readSettled(rungate, run)).toMatchObject([{ outcome: 'broken', estimated: true }]);
    expect(upstream.requests.length).toBe(before + 1);
  });

  test('asks for a short pause is asked again itself', async () => {
    upstream.script({ error: 429, retryAfterS: 1 });
    const { run, sent } = ask(ROUTES['chat to messages']);
    expect((await sent).status).toBe(200);
    const steps = await readSettled(rungate, run, 2);
    expect(steps.map(({ kind, model }) => [kind, model])).toEqual([
      ['model_call', 'far-model'],
      ['retry', 'far-model'],
    ]);
  });

  describe('fails while an admin changes', () => {
    let db: Database;
    let org: Org;
    beforeAll(async () => {
      db = await rungate.database();
      org = (await findOrg(db, 'acme'))!;
    });
    afterAll(() => db.close());
    const price = (model: string, dollars = 1) =>
      setPrice(org, 'operator', model, {
        inputNanosPerMillion: nanos(dollars * 1_000_000_000),
        outputNanosPerMillion: nanos(4_000_000_000),
      });
    const suspend = async (isSuspended: boolean) => {
      const { id } = (await findAgent(org, 'tester'))!;
      await (isSuspended ? suspendAgent : resumeAgent)(org, 'operator', id);
    };
    /** Asks, and changes something once the first upstream has the call. */
    const changing = async (script: Script, change: () => Promise<unknown>, route: Route) => {
      const before = upstream.requests.length;
      upstream.script({ ...script, delayMs: 200 });
      const { run, sent } = ask(route);
      while (upstream.requests.length === before) await Bun.sleep(1);
      await change();
      return { run, response: await sent };
    };

    for (const [name, route] of Object.entries(ROUTES)) {
      test(`what has nothing to do with it goes to the next as ever, ${name}`, async () => {
        const change = () => price('openai/unheard-of');
        const { run, response } = await changing({ error: 503 }, change, route);
        expect(response.status).toBe(200);
        const steps = await readSettled(rungate, run, 2);
        expect(steps.map(({ kind }) => kind)).toEqual(['model_call', 'failover']);
      });
    }

    test('a price is asked again at the new one', async () => {
      const change = () => price('openai/far-model', 1_000);
      const script = { error: 429, retryAfterS: 1 } as const;
      const { run, response } = await changing(script, change, ROUTES['chat to messages']);
      await price('openai/far-model');
      expect(response.status).toBe(200);
      const steps = await readSettled(rungate, run, 2);
      expect(steps.map(({ kind }) => kind)).toEqual(['model_call', 'retry']);
      expect(steps[1]?.spentNanos).toBeGreaterThan(5_000_000);
    });

    test('the next one’s price, which is gone, goes to the one after that', async () => {
      const change = () => deletePrice(org, 'operator', 'openai/gone-model');
      const route = { ...ROUTES['chat to messages'], model: 'openai/listed-model' };
      const { run, response } = await changing({ error: 503 }, change, route);
      expect(response.status).toBe(200);
      const steps = await readSettled(rungate, run, 2);
      expect(steps.map(({ kind, model }) => [kind, model])).toEqual([
        ['model_call', 'listed-model'],
        ['failover', 'test-model'],
      ]);
    });

    test('the price of the last one, which is gone, is to be asked again', async () => {
      const change = () => deletePrice(org, 'operator', 'openai/other-model');
      const { response } = await changing({ error: 503 }, change, ROUTES['chat to chat']);
      await price('openai/other-model');
      expect(response.status).toBe(503);
      expect(await response.text()).toContain('openai/other-model');
      await expectSound();
    });

    test('its window, is to be asked again and not for a run that it has named', async () => {
      const headers = { authorization: `Bearer ${rungate.token}` };
      const body = JSON.stringify({ ...HELLO, model: 'openai/test-model' });
      const send = (more = {}) =>
        fetch(`${rungate.url}/v1/chat/completions`, {
          method: 'POST',
          headers: { ...headers, ...more },
          body,
        });
      const before = upstream.requests.length;
      upstream.script({ error: 503, delayMs: 200 });
      const going = send();
      while (upstream.requests.length === before) await Bun.sleep(1);
      expect((await send({ 'x-rungate-new-run': 'true' })).status).toBe(200);
      expect((await going).status).toBe(503);
      expect((await send()).status).toBe(200);
      await expectSound();
    });

    test('the agent, which is suspended, is told so and not that money is held', async () => {
      const change = () => suspend(true);
      const { response } = await changing({ error: 503 }, change, ROUTES['chat to chat']);
      await suspend(false);
      expect(response.status).toBe(403);
      expect(await response.text()).toContain('is suspended');
      await expectSound();
    });
  });

  test('asks for a pause in which the caller leaves is not asked again', async () => {
    upstream.script({ error: 429, retryAfterS: 1 });
    const before = upstream.requests.length;
    const left = new AbortController();
    const { run, sent } = ask(ROUTES['chat to messages'], {}, 'left', left.signal);
    await readSettled(rungate, run);
    left.abort();
    await expect(sent).rejects.toThrow();
    await Bun.sleep(1_500);
    expect(await readTrail(rungate, run)).toMatchObject([{ outcome: 'upstream_429' }]);
    expect(upstream.requests.length).toBe(before + 1);
    await expectSound();
  });

  test('fails keeps its id of the call on the trail, unless that repeats the credential', async () => {
    for (const id of ['upstream-1', `req-${UPSTREAM_KEY}`]) {
      upstream.script({ error: 503, headers: { 'x-request-id': id } });
      const { run, sent } = ask(ROUTES['chat to chat']);
      expect((await sent).status).toBe(200);
      const [failed] = await readSettled(rungate, run, 2);
      expect(failed?.upstreamRequestId).toBe(id === 'upstream-1' ? id : null);
    }
  });

  test('fails and which sets no limit is given one that the next model takes', async () => {
    for (const [model, limit] of [
      ['openai/small-model', 4_096],
      ['openai/far-model', 4_096],
    ] as const) {
      upstream.script({ error: 503 });
      const { sent } = ask({ ...ROUTES['chat to messages'], model }, { max_tokens: undefined });
      expect((await sent).status).toBe(200);
      expect(upstream.requests.at(-1)?.json().max_tokens).toBe(limit);
    }
  });

  test('fails and whose next one is too dear for the run is not asked once more', async () => {
    await (await ask(ROUTES['chat to chat']).sent).text();
    upstream.script({ error: 503 });
    const before = upstream.requests.length;
    const { run, sent } = ask({ ...ROUTES['chat to chat'], model: 'openai/near-model' });
    expect((await sent).status).toBe(402);
    expect(upstream.requests.length).toBe(before + 1);
    const steps = await readSettled(rungate, run, 2);
    expect(steps.map(({ kind }) => kind)).toEqual(['model_call', 'denial']);
  });

  test('fails as all others do gets the last error in its own dialect', async () => {
    upstream.script({ error: 503 }, 3);
    const { run, sent } = ask(ROUTES['messages to chat']);
    const response = await sent;
    expect(response.status).toBe(503);
    expect(await response.json()).toMatchObject({ type: 'error', error: { type: 'api_error' } });
    const steps = await readSettled(rungate, run, 3);
    expect(steps.map(({ kind }) => kind)).toEqual(['model_call', 'failover', 'retry']);
    expect(steps.reduce((sum, { spentNanos }) => sum + spentNanos, 0)).toBe(0);
  });

  test('fails where no list names its model is passed on as it is', async () => {
    upstream.script({ error: 503 });
    const { run, sent } = ask({
      path: 'chat/completions',
      model: 'openai/only-model',
      to: 'test-model',
    });
    expect((await sent).status).toBe(503);
    expect(await readTrail(rungate, run)).toHaveLength(1);
  });

  test('fails with what the next one can’t be told is refused with the reason', async () => {
    upstream.script({ error: 503 }, 2);
    const { run, sent } = ask(ROUTES['chat to messages'], { seed: 7 });
    const response = await sent;
    expect(response.status).toBe(502);
    const { error } = (await response.json()) as { error: Record<string, unknown> };
    expect(error.message).toContain('seed has no counterpart in the other dialect');
    expect(error.rungate).toMatchObject({ rule: 'failover', field: 'seed' });
    const kinds = (await readTrail(rungate, run)).map(({ kind, outcome }) => [kind, outcome]);
    expect(kinds).toEqual([
      ['model_call', 'upstream_503'],
      ['retry', 'upstream_503'],
      ['note', 'not_translatable'],
    ]);
  });
});

test('each change of upstream is told once, with the attempt that failed', async () => {
  upstream.script({ error: 500 });
  const { run, sent } = ask(ROUTES['chat to messages']);
  await (await sent).text();
  const [failed] = await readSettled(rungate, run, 2);
  const db = await rungate.database();
  const rows = await db.read(
    `select data from events where type = 'step.failed_over' and data like '%' || ?1 || '%'`,
    [failed!.id],
  );
  await db.close();
  expect(rows.map(({ data }) => JSON.parse(String(data)))).toEqual([
    expect.objectContaining({
      stepId: failed!.id,
      from: 'openai/far-model',
      to: 'anthropic/test-model',
    }),
  ]);
});

const TOOL = { type: 'object' as const, properties: { city: { type: 'string' } } };

test('the openai client gets tools from an upstream of messages', async () => {
  const client = new OpenAI({ apiKey: rungate.token, baseURL: `${rungate.url}/v1`, maxRetries: 0 });
  const asked = {
    model: 'openai/far-model',
    messages: [{ role: 'user' as const, content: 'Use the tool weather.' }],
    tools: [{ type: 'function' as const, function: { name: 'weather', parameters: TOOL } }],
    tool_choice: 'required' as const,
  };
  upstream.script({ error: 503 });
  const whole = await client.chat.completions.create({ ...asked, max_tokens: 60 });
  upstream.script({ error: 503 });
  const runner = client.chat.completions.stream({ ...asked, max_tokens: 60 });
  for (const { message, finish_reason } of [
    whole.choices[0]!,
    (await runner.finalChatCompletion()).choices[0]!,
  ]) {
    expect(finish_reason).toBe('tool_calls');
    const [call] = message.tool_calls ?? [];
    expect(call).toMatchObject({ type: 'function', function: { name: 'weather' } });
    if (call?.type === 'function') JSON.parse(call.function.arguments);
  }
  await expectSound();
});

test('the Anthropic client gets tools from an upstream of chat', async () => {
  const client = new Anthropic({ apiKey: rungate.token, baseURL: rungate.url, maxRetries: 0 });
  const asked: Anthropic.MessageCreateParamsNonStreaming = {
    model: 'anthropic/far-model',
    max_tokens: 60,
    messages: [{ role: 'user', content: 'Use the tool weather.' }],
    tools: [{ name: 'weather', input_schema: TOOL }],
    tool_choice: { type: 'any' },
  };
  upstream.script({ error: 503 });
  const whole = await client.messages.create(asked);
  upstream.script({ error: 503 });
  const streamed = await client.messages.stream(asked).finalMessage();
  for (const message of [whole, streamed]) {
    expect(message.stop_reason).toBe('tool_use');
    expect(message.usage.input_tokens).toBeGreaterThan(0);
    const uses = message.content.filter(({ type }) => type === 'tool_use');
    expect(uses).toMatchObject([{ name: 'weather', input: expect.any(Object) }]);
  }
  await expectSound();
});

/** Arguments that a limit cut, and arguments that are none. */
const CUT = '{"city":"Par';

function completionWith(finish_reason: string): string {
  const called = { id: 'c1', type: 'function', function: { name: 'weather', arguments: CUT } };
  return JSON.stringify({
    ...{ id: 'chatcmpl-1', object: 'chat.completion', created: 1, model: 'test-model' },
    choices: [
      {
        index: 0,
        message: { role: 'assistant', content: 'Hm.', tool_calls: [called] },
        finish_reason,
      },
    ],
    usage: { prompt_tokens: 10, completion_tokens: 5, total_tokens: 15 },
  });
}

test('an answer that its limit cut in a call is one, and is asked for once', async () => {
  const run = `run-${++runs}`;
  const defaultHeaders = { 'x-rungate-run-id': run };
  const client = new Anthropic({ apiKey: rungate.token, baseURL: rungate.url, defaultHeaders });
  const before = upstream.requests.length;
  upstream.script({ error: 503 });
  upstream.script({ body: completionWith('length') });
  const message = await client.messages.create({
    ...{ model: 'anthropic/far-model', max_tokens: 60, messages: [{ role: 'user', content: 'a' }] },
    tools: [{ name: 'weather', input_schema: TOOL }],
  });
  expect(message).toMatchObject({ stop_reason: 'max_tokens', content: [{ text: 'Hm.' }] });
  expect(upstream.requests.length).toBe(before + 2);
  expect(await readSettled(rungate, run, 2)).toMatchObject([
    {},
    { outcome: 'ok', estimated: false },
  ]);
});

const UNSAYABLE = {
  'messages to chat': {
    body: completionWith('tool_calls'),
    field: 'tool_calls[].function.arguments',
  },
  'chat to messages': {
    body: JSON.stringify({ type: 'error', error: { type: 'overloaded_error', message: 'Busy.' } }),
    field: 'type',
  },
} as const;

for (const [name, { body, field }] of Object.entries(UNSAYABLE)) {
  test(`an answer that can’t be said over is paid and refused once, ${name}`, async () => {
    const run = `run-${++runs}`;
    const defaultHeaders = { 'x-rungate-run-id': run };
    const before = upstream.requests.length;
    upstream.script({ error: 503 });
    upstream.script({ body });
    const asked = { max_tokens: 60, messages: [{ role: 'user' as const, content: 'a' }] };
    const connection = { apiKey: rungate.token, defaultHeaders };
    const sent =
      name === 'messages to chat'
        ? new Anthropic({ ...connection, baseURL: rungate.url }).messages.create({
            ...{ ...asked, model: 'anthropic/far-model' },
          })
        : new OpenAI({ ...connection, baseURL: `${rungate.url}/v1` }).chat.completions.create({
            ...{ ...asked, model: 'openai/far-model' },
          });
    const error = await sent.then(
      () => undefined,
      (thrown) => thrown,
    );
    expect(error).toMatchObject({ status: 400 });
    expect(JSON.stringify(error.error)).toContain(`"code":"not_translatable","rule":"failover"`);
    expect(JSON.stringify(error.error)).toContain(`"field":${JSON.stringify(field)}`);
    expect(upstream.requests.length).toBe(before + 2);
    const steps = await readSettled(rungate, run, 2);
    expect(steps[1]).toMatchObject({ outcome: 'not_translatable', httpStatus: 200 });
    expect(steps[1]?.spentNanos).toBeGreaterThan(0);
  });
}

test('a stream that can’t be said over ends with the reason', async () => {
  upstream.script({ error: 503 });
  const delta = { function_call: { name: 'weather', arguments: '{}' } };
  upstream.script({ chunks: [`data: ${JSON.stringify({ choices: [{ index: 0, delta }] })}\n\n`] });
  const { run, sent } = ask(ROUTES['messages to chat'], { stream: true });
  const text = await (await sent).text();
  expect(text).toContain('"code":"not_translatable"');
  const steps = await readSettled(rungate, run, 2);
  expect(steps[1]).toMatchObject({ outcome: 'not_translatable' });
});

const BETAS = { 'context-1m-2025-08-07': false, 'prompt-caching-2024-07-31': true };

for (const [beta, isHint] of Object.entries(BETAS)) {
  test(`a call with the beta ${beta} ${isHint ? 'is' : 'can’t be'} said over`, async () => {
    upstream.script({ error: 503 }, isHint ? 1 : 2);
    const client = new Anthropic({ apiKey: rungate.token, baseURL: rungate.url, maxRetries: 0 });
    const call = async () =>
      client.messages.create(
        {
          ...{ model: 'anthropic/far-model', max_tokens: 60 },
          messages: [{ role: 'user', content: 'Say hello.' }],
        },
        { headers: { 'anthropic-beta': `extended-cache-ttl-2025-04-11, ${beta}` } },
      );
    if (isHint) expect((await call()).type).toBe('message');
    else await expect(call()).rejects.toThrow(new RegExp(`anthropic-beta asks for .*${beta}`));
  });
}

test('the calls of a translated answer are governed as those of any other', async () => {
  const strict = await deploy({
    upstreamUrl: upstream.url,
    runtime: 'deno',
    policy: { failover: FAILOVER, tools: { deny: [{ tool: 'weather', when: 'true' }] } },
    prices: MODELS.map((model) => ({ model, ...PRICE })),
  });
  try {
    for (const stream of [false, true]) {
      upstream.script({ error: 503 });
      const headers = { authorization: `Bearer ${strict.token}` };
      const body = JSON.stringify({
        ...{ model: 'openai/far-model', max_tokens: 60, stream, tool_choice: 'required' },
        messages: [{ role: 'user', content: 'Use the tool weather.' }],
        tools: [{ type: 'function', function: { name: 'weather', parameters: TOOL } }],
      });
      const init = { method: 'POST', headers, body };
      const text = await (await fetch(`${strict.url}/v1/chat/completions`, init)).text();
      expect(text).toContain('rungate_permission_denied');
      expect(text).not.toContain('tool_calls');
    }
    expect(upstream.requests.slice(-4).map(({ path }) => path)).toEqual([
      ...['/v1/chat/completions', '/v1/messages', '/v1/chat/completions', '/v1/messages'],
    ]);
  } finally {
    await strict.stop();
  }
});

describe('decideRetry()', () => {
  const failures: Failure[] = [undefined, 200, 400, 403, 404, 409, 422, 504].map((status) => ({
    isSent: true,
    ...(status === undefined ? {} : { status }),
  }));

  test('gives up on what may have been charged, and on what would fail alike', () => {
    for (const failure of failures) {
      for (const hasNext of [false, true]) {
        const decision = decideRetry(failure, { attempts: 1, here: 1, hasNext });
        expect(decision).toEqual({ verdict: 'give_up', isSafe: false });
      }
    }
  });

  test('ends, whatever fails and however often', () => {
    for (const status of [401, 402, 408, 429, 500, 502, 503, 529]) {
      for (const retryAfterMs of [0, 900, 4_000, 60_000]) {
        const tried = { attempts: MAX_ATTEMPTS, here: 1, hasNext: true };
        const decision = decideRetry({ isSent: true, status, retryAfterMs }, tried);
        expect(decision).toEqual({ verdict: 'give_up', isSafe: true });
        const last = decideRetry(
          { isSent: true, status, retryAfterMs },
          { attempts: 2, here: 2, hasNext: false },
        );
        expect(last.verdict).toBe('give_up');
      }
    }
  });

  test('waits no longer than is worth it', () => {
    const wait = (retryAfterMs: number, hasNext: boolean) =>
      decideRetry({ isSent: true, status: 429, retryAfterMs }, { attempts: 1, here: 1, hasNext });
    expect(wait(1_000, true)).toEqual({ verdict: 'retry', afterMs: 1_000 });
    expect(wait(1_001, true)).toEqual({ verdict: 'next' });
    expect(wait(5_000, false)).toEqual({ verdict: 'retry', afterMs: 5_000 });
    expect(wait(5_001, false)).toEqual({ verdict: 'give_up', isSafe: true });
  });
});

test('readRetryAfter() reads milliseconds, seconds and dates, and nothing else', () => {
  const now = Date.UTC(2030, 0, 1);
  const read = (headers: Record<string, string>) => readRetryAfter(new Headers(headers), now);
  expect(read({ 'retry-after-ms': '250', 'retry-after': '9' })).toBe(250);
  expect(read({ 'retry-after': '2' })).toBe(2_000);
  expect(read({ 'retry-after': 'Tue, 01 Jan 2030 00:00:07 GMT' })).toBe(7_000);
  expect(read({ 'retry-after': 'Mon, 31 Dec 2029 00:00:00 GMT' })).toBe(0);
  expect(read({ 'retry-after': ' 0.25 ' })).toBe(250);
  const dates = [
    '2030-01-01',
    '1 Jan 2030',
    'Tue Jan  1 00:00:07 2030',
    'Tue, 99 Foo 2030 00:00:07 GMT',
  ];
  const numbers = ['', '-1', '1e9', 'Infinity', '0x10', '1.', '.5', '1,5', '9'.repeat(10), '5 GMT'];
  for (const text of [...dates, ...numbers, 'soon']) {
    expect(read({ 'retry-after': text })).toBeUndefined();
    expect(read({ 'retry-after-ms': text })).toBeUndefined();
  }
});
