/** Promises about secrets: whatever happens, neither a key nor a token nor a prompt is left behind. */

import { Database as Sqlite } from 'bun:sqlite';
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Deployment, deploy } from './rungate.ts';
import { type Script, startUpstream, type Upstream } from './upstream.ts';

setDefaultTimeout(60_000);

/** Of no known shape, so that only care keeps it out of what is written. */
const KEY = 'canarykeyQ7vX2mZk9LpR4tWs8YbN3cJf';
const PROMPT = 'canaryprompt the owl flies at midnight';
const CHAT = '/v1/chat/completions';

let upstream: Upstream;
let deployment: Deployment;
/** What callers were told by Rungate itself, and what the CLI printed. */
const told: string[] = [];
const printed: string[] = [];

beforeAll(async () => {
  upstream = await startUpstream({ keys: [KEY] });
  deployment = await deploy({
    upstreamUrl: upstream.url,
    processes: 2,
    env: { RUNGATE_LOG: 'debug', UPSTREAM_KEY: KEY },
    policy: { budget: { run: '5.00' } },
  });
  await addUpstreams();
});

afterAll(async () => {
  await deployment.stop();
  await upstream.stop();
});

/** Upstreams that can't be reached: TLS that is none, a name that is none, a port that is closed. */
async function addUpstreams(): Promise<void> {
  const urls = {
    tls: `${upstream.url.replace('http:', 'https:')}/v1`,
    unknown: 'https://canary.invalid/v1',
    closed: 'http://127.0.0.1:1/v1',
  };
  const providerKeys = Object.entries(urls).map(([name, baseUrl]) => ({
    ...{ name, baseUrl, provider: 'openai-compatible' },
    secret: { env: 'UPSTREAM_KEY' },
  }));
  const prices = Object.keys(urls).map((name) => ({
    ...{ model: `${name}/test-model`, inputPerMillion: '1.00', outputPerMillion: '4.00' },
  }));
  const path = join(deployment.folder, 'more.json');
  await Bun.write(path, JSON.stringify({ providerKeys, prices }));
  expect(await run('apply', path, '--org', 'acme', '--json')).toContain('"created"');
}

async function run(...args: string[]): Promise<string> {
  const { stdout, stderr } = await deployment.cli(...args);
  printed.push(stdout, stderr);
  return stdout + stderr;
}

interface Asked {
  readonly path?: string;
  readonly body?: string;
  readonly more?: object;
  readonly headers?: Record<string, string>;
  readonly url?: string;
}

/** Calls with the prompt in it; keeps what came back unless it is an answer, which may quote. */
async function call({ path = CHAT, url = deployment.url, ...asked }: Asked = {}): Promise<number> {
  const messages = [{ role: 'user', content: PROMPT }];
  const body = { model: 'test-model', max_tokens: 50, messages, ...asked.more };
  const response = await fetch(url + path, {
    redirect: 'manual',
    method: 'POST',
    body: asked.body ?? JSON.stringify(body),
    headers: {
      'content-type': 'application/json',
      authorization: `Bearer ${deployment.token}`,
      'anthropic-version': '2023-06-01',
      ...asked.headers,
    },
  });
  const text = await response.text().catch(String);
  const head = JSON.stringify([...response.headers]);
  told.push(head, ...(response.ok ? [] : [text]));
  return response.status;
}

/** A secret as it stands and as it might be written down. */
function formsOf(secret: string): string[] {
  const bytes = Buffer.from(secret);
  const base64 = [0, 1, 2].map((cut) => bytes.subarray(cut).toString('base64').slice(0, 24));
  return [
    secret,
    secret.slice(8, 28),
    bytes.toString('hex'),
    encodeURIComponent(secret),
    ...base64,
  ];
}

/** Where any of the secrets stands in a text: its first characters, so that failures tell none. */
function found(text: string, secrets: readonly string[]): string[] {
  return secrets.filter((secret) => formsOf(secret).some((form) => text.includes(form)));
}

async function stored(): Promise<[file: string, text: string][]> {
  const names = await readdir(deployment.folder, { recursive: true });
  const files = names.filter((name) => /rungate\.db/.test(name));
  return await Promise.all(
    files.map(async (name): Promise<[string, string]> => {
      return [name, (await readFile(join(deployment.folder, name))).toString('latin1')];
    }),
  );
}

const secrets = () => [KEY, deployment.token, PROMPT];

/** Looks at every byte that was written or said until now. */
async function expectSilence(): Promise<void> {
  expect(found(deployment.logs(), secrets())).toEqual([]);
  expect(found(told.join('\n'), secrets())).toEqual([]);
  expect(found(printed.join('\n'), secrets())).toEqual([]);
  const files = await stored();
  expect(files.length).toBeGreaterThan(0);
  for (const [name, text] of files) expect([name, found(text, secrets())]).toEqual([name, []]);
}

const ECHO = `Incorrect API key provided: Bearer ${KEY}. Sent: x-api-key=${KEY}`;

/** An upstream that repeats its credential wherever it can. */
const echoing = (status: number): Script => ({
  status,
  body: JSON.stringify({ error: { message: ECHO, type: 'server_error', param: KEY } }),
  headers: {
    'x-echo': `Bearer ${KEY}`,
    'x-request-id': `req-${KEY}`,
    'request-id': KEY,
    'www-authenticate': `Bearer realm="${KEY}"`,
    'set-cookie': `key=${KEY}`,
    location: `https://evil.example/?key=${KEY}`,
  },
});

describe('neither the key nor a token nor a prompt is written or told', () => {
  test('when calls succeed, streamed and not', async () => {
    for (const stream of [false, true]) {
      expect(await call({ more: { stream } })).toBe(200);
      expect(await call({ path: '/v1/messages', more: { stream } })).toBe(200);
    }
    const [sent] = upstream.requests;
    expect(sent?.header('authorization')).toBe(`Bearer ${KEY}`);
    expect(sent?.text()).toContain(PROMPT);
    expect(JSON.stringify(upstream.requests.map(({ headers }) => headers))).not.toContain(
      deployment.token,
    );
    await expectSilence();
  });

  test('when calls are refused', async () => {
    const refused = [
      await call({ more: { model: 'no-such-model' } }),
      await call({ more: { max_tokens: 'many' } }),
      await call({ more: { stream: 'yes' } }),
      await call({ path: '/v1/files' }),
      await call({ body: `{"model":"test-model","messages":"${PROMPT}","messages":[]}` }),
      await call({ body: `{"model":"test-model","messages":"${PROMPT}` }),
      await call({ body: `{"${PROMPT}":1,"${PROMPT}":2}`.replaceAll(PROMPT, 'x') }),
      await call({ headers: { authorization: `Bearer ${deployment.token}x` } }),
      await call({ headers: { 'content-encoding': 'gzip' } }),
      await call({ headers: { 'x-rungate-run-id': 'x'.repeat(300) } }),
      await call({ more: { model: PROMPT.repeat(100) } }),
    ];
    for (const status of refused) expect([400, 401, 403]).toContain(status);
    await expectSilence();
  });

  test('when the upstream repeats its credential in errors and headers', async () => {
    for (const status of [200, 302, 400, 401, 403, 404, 409, 422, 429, 500, 503, 529]) {
      for (const path of [CHAT, '/v1/messages']) {
        upstream.script(echoing(status));
        const answered = await call({ path });
        expect(answered).toBe(status === 401 ? 502 : status);
      }
    }
    await expectSilence();
  });

  test('when the upstream breaks, in its headers, its body or its stream', async () => {
    const scripts: Script[] = [
      { stall: 'socket' },
      { ...echoing(400), breakAfterBytes: 40 },
      { ...echoing(400), chunkBytes: 7 },
      { breakAfterBytes: 40 },
      { endAfterChunks: 2 },
    ];
    for (const script of scripts) {
      for (const stream of [false, true]) {
        upstream.script(script);
        await call({ more: { stream } }).catch((error) => told.push(String(error)));
      }
    }
    await expectSilence();
  });

  test('when the upstream cannot be reached', async () => {
    for (const name of ['tls', 'unknown', 'closed']) {
      expect(await call({ more: { model: `${name}/test-model` } })).toBe(502);
    }
    await expectSilence();
  });

  test('when the database is locked', async () => {
    const blocker = new Sqlite(join(deployment.folder, 'rungate.db'));
    blocker.run('begin immediate');
    try {
      expect(await call({ url: deployment.urls[1] ?? '' })).toBe(503);
    } finally {
      blocker.run('rollback');
      blocker.close();
    }
    expect(deployment.logs()).toContain('the database failed');
    await expectSilence();
  });

  test('when a process crashes in the middle of a call', async () => {
    const arrived = upstream.requests.length;
    upstream.script({ stall: 'headers' });
    const lost = call({ url: deployment.urls[1] ?? '' }).catch(() => 0);
    await upstream.received(arrived);
    await deployment.servers[1]?.stop('SIGKILL');
    expect(await lost).toBe(0);
    await expectSilence();
  });

  test('when the operator looks', async () => {
    const headers = { 'x-rungate-run-id': 'looked-at' };
    upstream.script(echoing(400));
    await call({ headers });
    await call({ headers });
    const shown = await run('run', 'show', 'looked-at', '--org', 'acme', '--json');
    expect(shown).toContain('upstream_400');
    await run('run', 'show', 'looked-at', '--org', 'acme');
    await run('doctor', '--json');
    await run('apply', join(deployment.folder, 'more.json'), '--org', 'acme');
    await run('apply', join(deployment.folder, 'none.json'), '--org', 'acme');
    await run('run', 'show', 'none', '--org', 'none');
    await run('keys', 'rotate', '--json');
    await run('agent', 'suspend', 'tester', '--org', 'acme');
    expect(await call()).toBe(403);
    await expectSilence();
  });
});

/** The lines of the log about one run. */
async function linesOf(name: string): Promise<Record<string, unknown>[]> {
  const { id } = (JSON.parse(await run('run', 'show', name, '--org', 'acme', '--json')) as Shown)
    .run;
  const lines = deployment
    .logs()
    .split('\n')
    .filter((line) => line.startsWith('{'));
  return lines.map((line) => JSON.parse(line)).filter(({ run }) => run === id);
}

interface Shown {
  readonly run: { readonly id: string };
}

describe('the log', () => {
  beforeAll(async () => void (await run('agent', 'resume', 'tester', '--org', 'acme')));

  test('warns of each attempt that gets no answer, and says at which upstream', async () => {
    for (const name of ['closed', 'unknown']) {
      const headers = { 'x-rungate-run-id': `away-${name}` };
      expect(await call({ headers, more: { model: `${name}/test-model` } })).toBe(502);
      const lines = await linesOf(`away-${name}`);
      const outcome = name === 'closed' ? 'connect_failed' : 'unresolved';
      expect(lines.filter(({ level }) => level === 'warn')).toMatchObject([
        { upstream: name, outcome, requestId: expect.stringMatching(/^req_/) },
      ]);
    }
    upstream.script(echoing(401));
    expect(await call({ headers: { 'x-rungate-run-id': 'away-key' } })).toBe(502);
    expect(await linesOf('away-key')).toMatchObject([{ level: 'warn', outcome: 'upstream_401' }]);
    await expectSilence();
  });

  test('tells of each call how it ended, where it is asked to', async () => {
    for (const stream of [false, true]) {
      const headers = { 'x-rungate-run-id': `told-${stream}` };
      expect(await call({ headers, more: { stream } })).toBe(200);
      const lines = await linesOf(`told-${stream}`);
      expect(lines).toMatchObject([
        { level: 'debug', upstream: 'openai', outcome: 'ok', latencyMs: expect.any(Number) },
      ]);
      expect(lines[0]?.spentNanos).toBeGreaterThan(0);
    }
    await expectSilence();
  });

  test('is lines of JSON and nothing beside, also when streams break off', async () => {
    const headers = { 'x-rungate-run-id': 'torn' };
    upstream.script({ breakAfterBytes: 40 });
    await call({ headers, more: { stream: true } }).catch(() => 0);
    expect(await linesOf('torn')).toMatchObject([{ level: 'warn', outcome: 'broken' }]);
    const others = deployment.logs().split('\n');
    expect(others.filter((line) => line !== '' && !line.startsWith('{'))).toEqual([]);
  });
});

describe('the search itself', () => {
  test('finds a secret however it is written', () => {
    for (const form of formsOf(KEY)) expect(found(`a${form}b`, [KEY])).toEqual([KEY]);
    expect(found(Buffer.from(`key=${KEY}`).toString('base64'), [KEY])).toEqual([KEY]);
    expect(found('nothing', secrets())).toEqual([]);
  });
});
