/** The kill switch: what is cancelled, suspended or revoked ends in flight, on every instance. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';
import { type Deployment, deploy, readSettled } from './rungate.ts';
import { startUpstream, type Upstream } from './upstream.ts';

let upstream: Upstream;
let rungate: Deployment;

beforeAll(async () => {
  upstream = await startUpstream();
  rungate = await deploy({
    upstreamUrl: upstream.url,
    processes: 2,
    agents: ['first', 'second', 'third'],
    policy: {
      budget: { run: '100.00', unpriced: { inputPerMillion: '1', outputPerMillion: '4' } },
    },
  });
});

afterAll(async () => {
  await rungate.stop();
  await upstream.stop();
});

/** Routes that stream, and how each tells an error in its stream. */
const DIALECTS = [
  { path: '/v1/chat/completions', error: /^data: \{"error":/m },
  { path: '/v1/responses', error: /^event: error\ndata: /m },
  { path: '/v1/messages', error: /^event: error\ndata: /m },
] as const;

const MESSAGES = [{ role: 'user', content: 'Hello' }];

function call(url: string, agent: string, run: string, path: string, model: string, stream = true) {
  const input = path === '/v1/responses' ? { input: 'Hello' } : { messages: MESSAGES };
  const limit = path === '/v1/responses' ? {} : { max_tokens: 100 };
  return fetch(`${url}${path}`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${rungate.tokens[agent]}`,
      'content-type': 'application/json',
      'x-rungate-run-id': run,
      'anthropic-version': '2023-06-01',
    },
    body: JSON.stringify({ model, ...input, ...limit, stream }),
  });
}

/** A stream under way: its text so far, and the whole of it once it has ended. */
async function follow(response: Response) {
  const reader = response.body!.getReader();
  const decoder = new TextDecoder();
  const { value } = await reader.read();
  const first = decoder.decode(value, { stream: true });
  const whole = (async () => {
    let text = first;
    for (;;) {
      const { done, value: chunk } = await reader.read();
      if (done) return text;
      text += decoder.decode(chunk, { stream: true });
    }
  })();
  return { first, whole };
}

/** An endless stream of each dialect on each instance. */
async function startStreams(agent: string, run: string) {
  const pairs = rungate.urls.flatMap((url) => DIALECTS.map((dialect) => ({ url, dialect })));
  return Promise.all(
    pairs.map(async ({ url, dialect }) => {
      const response = await call(url, agent, run, dialect.path, 'demo-small~endless');
      expect(response.status).toBe(200);
      return { ...(await follow(response)), dialect };
    }),
  );
}

const SWITCHES = [
  {
    what: 'cancelling its run',
    agent: 'first',
    outcome: 'run_cancelled',
    code: 'run_closed',
    status: 403,
    turn: (run: string) => ['run', 'cancel', run],
  },
  {
    what: 'suspending its agent',
    agent: 'second',
    outcome: 'agent_suspended',
    code: 'agent_suspended',
    status: 403,
    turn: () => ['agent', 'suspend', 'second'],
  },
  {
    what: 'revoking its token',
    agent: 'third',
    outcome: 'token_revoked',
    code: 'invalid_token',
    status: 401,
    turn: () => ['agent', 'token', 'revoke', 'third'],
  },
] as const;

describe('a call in flight', () => {
  for (const { what, agent, outcome, code, status, turn } of SWITCHES) {
    test(`ends on every instance by ${what}, with an error that says so`, async () => {
      const run = `stopped-${agent}`;
      const streams = await startStreams(agent, run);
      const waiting = call(
        rungate.urls[1]!,
        agent,
        run,
        '/v1/chat/completions',
        'demo-small~silent',
        false,
      );
      await Bun.sleep(200);
      const { code: exit, stderr } = await rungate.cli(...turn(run), '--org', 'acme');
      expect(stderr + exit).toBe('0');
      for (const { whole, dialect } of streams) {
        const text = await whole;
        expect(text).toMatch(dialect.error);
        expect(text).toContain(`"code":"${code}"`);
      }
      const refused = await waiting;
      expect(refused.status).toBe(status);
      expect(await refused.text()).toContain(code);
      for (const url of rungate.urls) {
        const next = await call(url, agent, run, '/v1/chat/completions', 'demo-small', false);
        expect(next.status).toBe(status);
      }
      await expectSettled(run, streams.length + 1, outcome);
    }, 60_000);
  }

  test('of another run and agent goes on', async () => {
    const response = await call(
      rungate.url,
      'first',
      'going-on',
      '/v1/chat/completions',
      'demo-small~slow',
    );
    const { whole } = await follow(response);
    await rungate.cli('run', 'cancel', 'stopped-first', '--org', 'acme');
    expect(await whole).toContain('[DONE]');
  }, 60_000);
});

/** Every step of a run is settled: the money of those that were stopped is an estimate. */
async function expectSettled(run: string, count: number, outcome: string): Promise<void> {
  const db = await rungate.database();
  try {
    for (let left = 200; left > 0; left--) {
      const rows = await db.read(
        `select s.outcome, s.settled_at, s.answered, r.held_nanos from steps s
         join runs r on r.id = s.run_id where r.name = ?1 and s.kind = 'model_call'`,
        [run],
      );
      if (rows.length >= count && rows.every((row) => row.settled_at !== null)) {
        expect(rows.map((row) => row.outcome)).toEqual(Array(count).fill(outcome));
        for (const row of rows) expect(String(row.answered)).toContain('"estimated":true');
        expect(rows[0]!.held_nanos).toBe(0);
        return;
      }
      await Bun.sleep(20);
    }
    throw new Error(`${run} has not settled`);
  } finally {
    await db.close();
  }
}

/** The first event of a stream of each dialect, and half of the next. */
const HALVES = {
  chat: [
    'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n',
    'data: {"id":"c","object":"chat.comple',
  ],
  responses: [
    'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":1,"item_id":"i","output_index":0,"content_index":0,"delta":"Hi","logprobs":[]}\n\n',
    'event: response.output_text.delta\ndata: {"type":"response.out',
  ],
  messages: [
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}\n\n',
    'event: content_block_delta\ndata: {"type":"content_bl',
  ],
};

const WITH_USAGE = { stream_options: { include_usage: true } };

describe('a stream that is ended within an event', () => {
  const clientsOf = (run: string) => {
    const common = { apiKey: rungate.tokens.first!, maxRetries: 0 };
    const base = `${rungate.url}/r/${run}`;
    const openai = new OpenAI({ ...common, baseURL: `${base}/v1` });
    const anthropic = new Anthropic({ ...common, baseURL: base });
    const model = 'test-model';
    const messages = [{ role: 'user' as const, content: 'Hello' }];
    const asked = { model, messages, max_tokens: 50, stream: true as const };
    return {
      // With its usage asked for, nothing of the stream has to be left out.
      chat: () => openai.chat.completions.create({ ...asked, ...WITH_USAGE }),
      responses: () => openai.responses.create({ model, input: 'Hello', stream: true }),
      messages: () => anthropic.messages.create(asked),
    };
  };

  test.each(['chat', 'responses', 'messages'] as const)(
    'tells the official client of %s why, in place of half an event',
    async (kind) => {
      const run = `half-${kind}`;
      upstream.script({ chunks: [...HALVES[kind], 'x'], chunkDelayMs: 20, stallAfterChunks: 2 });
      const stream: AsyncIterable<unknown> = await clientsOf(run)[kind]();
      const seen: unknown[] = [];
      const reading = (async () => {
        for await (const event of stream) seen.push(event);
      })();
      const ended = reading.then(
        () => undefined,
        (error: unknown) => error,
      );
      while (seen.length === 0) await Bun.sleep(5);
      await Bun.sleep(200);
      await rungate.cli('run', 'cancel', run, '--org', 'acme');
      const error = await ended;
      expect(error).toBeInstanceOf(kind === 'messages' ? Anthropic.APIError : OpenAI.APIError);
      const { message } = error as Error;
      expect(message.replaceAll('\\', '')).toContain(`The run "${run}" was cancelled`);
      expect(seen).toHaveLength(1);
    },
    60_000,
  );
});

describe('cancelling a run', () => {
  test('is told as an event and on the audit trail, and doing it again changes nothing', async () => {
    const path = '/v1/chat/completions';
    await call(rungate.url, 'first', 'once', path, 'demo-small', false);
    await readSettled(rungate, 'once');
    for (let time = 0; time < 2; time++) {
      const { stdout } = await rungate.cli('run', 'cancel', 'once', '--org', 'acme', '--json');
      expect(JSON.parse(stdout).run.status).toBe('cancelled');
    }
    const db = await rungate.database();
    const [row] = await db.read(
      `select r.id,
         (select count(*) from events where json_extract(data, '$.runId') = r.id
           and type = 'run.completed' and json_extract(data, '$.reason') = 'cancelled') as events,
         (select count(*) from events where json_extract(data, '$.runId') = r.id
           and type = 'run.started') as starts,
         (select count(*) from audit_entries where target = r.id and action = 'run.cancel') as audit
       from runs r where r.name = 'once'`,
      [],
    );
    await db.close();
    expect(row).toMatchObject({ events: 1, starts: 1, audit: 1 });
  }, 60_000);
});
