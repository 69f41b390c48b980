/** What passes through Rungate stays as it was, byte for byte, but for what has to change. */

import { describe, expect, test } from 'bun:test';
import { connect } from 'node:net';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import { readTrail } from './rungate.ts';
import { ALL_KINDS, call, KINDS, type Kind, type Stage, stages } from './runtimes.ts';
import { type Received, type Script, startUpstream, UPSTREAM_KEY } from './upstream.ts';

const encoder = new TextEncoder();

/** The newest call that the upstream has received. */
function newest({ upstream }: Stage): Received {
  const received = upstream.requests.at(-1);
  if (!received) throw new Error('nothing was received');
  return received;
}

/** What the runtimes add by themselves to all that they send, each some of it. */
const RUNTIME_OWN = new Set(['accept', 'accept-language', 'connection']);

/** The names of a call's headers in lower case, in the order of the alphabet. */
function namesOf({ headers }: Received): string[] {
  const names = headers.map(([name]) => name.toLowerCase());
  return names.filter((name) => !RUNTIME_OWN.has(name)).sort();
}

// Bodies

/** JSON text of any value in a spelling that a parser would not write again. */
const spelling: fc.Arbitrary<string> = fc.letrec<{ value: string }>((tie) => ({
  value: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    fc.constantFrom('1.0', '12345678901234567890', '-0', '1e300', '0.10', 'null', 'true'),
    fc.constantFrom('"\\u0061"', '"\\/"', '"\\ud83d\\ude00"', '"é😀"', '"\\u00e9"', '"a\\nb"'),
    fc.array(tie('value'), { maxLength: 3 }).map((items) => `[ ${items.join(' ,\t')}]`),
    fc
      .array(tie('value'), { maxLength: 3 })
      .map((items) => `{${items.map((item, at) => `\n "k${at}" :${item}`).join(',')} }`),
  ),
})).value;

const space = fc.stringMatching(/^[ \t\r\n]{0,3}$/);

/** A body with a member that no one reads, and white space between all members. */
function spell(kind: Kind, unread: string, gap: string, members: object): string {
  const all = Object.entries({ ...KINDS[kind].body, ...members });
  const written = all.map(([name, value]) => `${gap}"${name}"${gap}:${JSON.stringify(value)}`);
  return `${gap}{${written.join(`${gap},`)},"unread":${unread}${gap}}${gap}`;
}

/** Calls whose body needs no edit. */
const UNEDITED: readonly (readonly [Kind, object])[] = [
  ['chat', {}],
  ['chat', { stream: true, stream_options: { include_usage: true } }],
  ['responses', {}],
  ['responses', { stream: true }],
  ['messages', {}],
  ['messages', { stream: true }],
];

/** Bodies that need one edit: what the caller sent, and what the upstream must get. */
const EDITED: Readonly<Record<string, readonly [Kind, before: string, after: string]>> = {
  'usage is asked for in a stream': [
    'chat',
    '{ "model":"test-model", "max_tokens" : 50,"messages":[{"role":"user","content":"\\u0068i 1.0"}],"stream":true,"seed":12345678901234567890}',
    '{"stream_options":{"include_usage":true}, "model":"test-model", "max_tokens" : 50,"messages":[{"role":"user","content":"\\u0068i 1.0"}],"stream":true,"seed":12345678901234567890}',
  ],
  'usage is asked for beside other options': [
    'chat',
    '{"stream_options":{ "x":1.0 ,"include_usage":false},"model":"test-model","max_tokens":50,"messages":[],"stream":true}',
    '{"stream_options":{ "x":1.0 ,"include_usage":true},"model":"test-model","max_tokens":50,"messages":[],"stream":true}',
  ],
  'the name of the key is taken off the model': [
    'messages',
    '{"model" : "anthropic/test-\\u006dodel","max_tokens":50.0,"messages":[{"role":"user","content":"hi"}]}',
    '{"model" : "test-model","max_tokens":50.0,"messages":[{"role":"user","content":"hi"}]}',
  ],
};

/** The member that limits the output of each kind. */
const LIMITS: Readonly<Record<Kind, string>> = {
  chat: 'max_tokens',
  responses: 'max_output_tokens',
  messages: 'max_tokens',
};

// Headers

/** Sends a request as it is written and returns the response as it is received. */
function sendRaw(url: string, lines: readonly string[], body: string): Promise<string> {
  const { hostname, port } = new URL(url);
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const chunks: Uint8Array[] = [];
  const socket = connect(Number(port), hostname);
  socket.on('data', (chunk) => chunks.push(Buffer.from(chunk))).on('error', reject);
  socket.on('close', () => resolve(Buffer.concat(chunks).toString('utf8')));
  socket.write([...lines, `content-length: ${encoder.encode(body).length}`, '', body].join('\r\n'));
  return promise;
}

/** The body of a response as it was received, by the one header that frames it. */
function bodiesOf(response: string): string[] {
  const [head = '', ...rest] = response.split('\r\n\r\n');
  const bytes = Buffer.from(rest.join('\r\n\r\n'));
  expect(head).toStartWith('HTTP/1.1 200');
  const framings = head.match(/^(content-length|transfer-encoding):/gim);
  expect(framings).toHaveLength(1);
  const length = /^content-length: (\d+)$/im.exec(head)?.[1];
  if (length !== undefined) {
    expect(bytes.length).toBe(Number(length));
    return [bytes.toString()];
  }
  const parts: Buffer[] = [];
  for (let at = 0; ; ) {
    const end = bytes.indexOf('\r\n', at);
    const size = Number.parseInt(bytes.toString('latin1', at, end), 16);
    at = end + 2;
    if (size === 0) {
      expect(bytes.toString('latin1', at)).toBe('\r\n');
      return [Buffer.concat(parts).toString()];
    }
    parts.push(bytes.subarray(at, at + size));
    at += size + 2;
  }
}

/** Headers that must not reach any upstream, with what they could do there. */
const PRIVATE = [
  'OpenAI-Organization: org-other',
  'OpenAI-Project: proj-other',
  'Cookie: session=1',
  'Forwarded: for=10.0.0.1',
  'X-Forwarded-For: 10.0.0.1',
  'X-Forwarded-Host: elsewhere',
  'X-Forwarded-Proto: https',
  'X-Real-IP: 10.0.0.1',
  'X-Forwarded: for=10.0.0.1',
  'X-Original-Forwarded-For: 10.0.0.1',
  'X-Client-IP: 10.0.0.1',
  'Client-IP: 10.0.0.1',
  'X-Cluster-Client-IP: 10.0.0.1',
  'Fastly-Client-IP: 10.0.0.1',
  'X-Remote-Addr: 10.0.0.1',
  'X-Envoy-External-Address: 10.0.0.1',
  'X-Envoy-Original-Path: /v1/files',
  'Cookie2: $Version=1',
  'Via: 1.1 proxy',
  'X-Rungate-Run-Id: headers',
  'X-Rungate-Anything: 1',
  'api-key: sk-azure',
  'Proxy-Authorization: Basic x',
  'TE: trailers',
  'Prefer: wait=5',
  'Accept-Encoding: gzip, br',
  'x-hop: 1',
];

const CALLERS: Readonly<Record<string, (token: string) => string[]>> = {
  'a bearer token': (token) => [`Authorization: Bearer ${token}`],
  'an API key': (token) => [`x-api-key: ${token}`],
  "a provider's key beside the token": (token) => [
    'Authorization: Bearer sk-other',
    `x-api-key: ${token}`,
  ],
};

/** What an upstream says of itself to its own customer. */
const UPSTREAM_OWN = {
  'set-cookie': 'session=1',
  'openai-organization': 'org-ours',
  'openai-project': 'proj-ours',
  'anthropic-organization-id': 'org-ours',
  'x-request-id': 'upstream-1',
  'request-id': 'upstream-1',
  'x-should-retry': 'true',
  'x-rungate-run-id': 'forged',
  'access-control-allow-origin': '*',
  'alt-svc': 'h3=":443"',
  'x-accel-redirect': '/internal/secret',
  'x-accel-charset': 'utf-7',
  'x-sendfile': '/etc/passwd',
  'x-lighttpd-send-file': '/etc/passwd',
  'x-reproxy-url': 'http://10.0.0.1/',
  'clear-site-data': '"*"',
  refresh: '0; url=https://elsewhere.example',
  'set-cookie2': 'session=1',
  'x-api-key': 'sk-other',
  'api-key': 'sk-other',
  authorization: 'Bearer sk-other',
};

const UPSTREAM_SHARED = {
  'openai-processing-ms': '12',
  'openai-version': '2020-10-01',
  'x-ratelimit-remaining-tokens': '149984',
  'anthropic-ratelimit-requests-remaining': '99',
};

// Streams

const CHAT_HEAD =
  ': hello\n\nevent: upstream.unknown\ndata: {"type":"é😀"}\n\nid: 7\nretry: 1000\n\n';
const CHAT_TEXT =
  'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","model":"test-model","choices":[{"index":0,"delta":{"content":"h\\u00e9 — é😀"},"finish_reason":null}],"usage":null}\n\n: ping\n\n';
const CHAT_USAGE =
  'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","model":"test-model","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}\n\n';
const CHAT_DONE = 'data: [DONE]\n\n';

const RESPONSE = '{"id":"resp_1","object":"response","model":"test-model","status":';
const MESSAGE =
  '{"id":"msg_1","type":"message","role":"assistant","model":"test-model","content":[],';

/** A whole stream of each kind, with everything that the format allows. */
const STREAMS: Readonly<Record<Kind, readonly string[]>> = {
  chat: [CHAT_HEAD, CHAT_TEXT, CHAT_USAGE, CHAT_DONE],
  responses: [
    `event: response.created\ndata: {"type":"response.created","response":${RESPONSE}"in_progress","usage":null}}\n\n`,
    ': comment é😀\n\nevent: response.novelty\ndata: {"type":"response.novelty"}\ndata: "second line"\n\n',
    `event: response.completed\ndata: {"type":"response.completed","response":${RESPONSE}"completed","usage":{"input_tokens":10,"output_tokens":5,"total_tokens":15}}}\n\n`,
  ],
  messages: [
    `event: message_start\ndata: {"type":"message_start","message":${MESSAGE}"usage":{"input_tokens":10,"output_tokens":1}}}\n\n`,
    'event: ping\ndata: {"type": "ping"}\n\n: é😀\n\nevent: novelty\ndata: {}\n\n',
    'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}\n\n',
    'event: message_stop\ndata: {"type":"message_stop"}\n\n',
  ],
};

const CUTS: readonly Script[] = [{}, { chunkBytes: 1 }, { chunkBytes: 7 }, { chunkBytes: 64 }];

const toCrlf = (text: string) => text.replaceAll('\n', '\r\n');

/** $1 for 1000 × 1000 tokens of input, $4 of output: 10 and 5 of them. */
const STREAM_NANOS = 10 * 1_000 + 5 * 4_000;

describe.each(stages({ policy: { budget: { run: '1.00' } } }))('on $runtime', (stage) => {
  describe('the body', () => {
    test('goes upstream in the original bytes, however it is spelled', async () => {
      await fc.assert(
        fc.asyncProperty(
          fc.constantFrom(...UNEDITED),
          spelling,
          space,
          async ([kind, members], unread, gap) => {
            const body = spell(kind, unread, gap, members);
            const response = await call(stage, kind, { body, run: 'bytes' });
            await response.bytes();
            expect(response.status).toBe(200);
            expect(newest(stage).text()).toBe(body);
          },
        ),
        { numRuns: 60 },
      );
    });

    for (const [name, [kind, before, after]] of Object.entries(EDITED)) {
      test(`changes in one place where ${name}`, async () => {
        const response = await call(stage, kind, { body: before, run: 'edits' });
        await response.bytes();
        expect(Bun.deepEquals(JSON.parse(newest(stage).text()), JSON.parse(after))).toBe(true);
        expect(newest(stage).text()).toBe(after);
      });
    }

    for (const kind of ALL_KINDS) {
      test(`of ${kind} has its output limit lowered to what fits, and nothing else`, async () => {
        const run = `limit-${kind}`;
        const members = { [LIMITS[kind]]: 1_000_000 };
        const body = spell(kind, '[1.0, 12345678901234567890]', ' ', members);
        const response = await call(stage, kind, { body, run });
        expect(response.status).toBe(200);
        const limit = response.headers.get('x-rungate-output-limit');
        expect(Number(limit)).toBeWithin(100_000, 250_000);
        expect(newest(stage).text()).toBe(body.replace('1000000', limit ?? ''));
        const [step] = await readTrail(stage.rungate, run);
        expect(step?.outputLimit).toBe(Number(limit));
      });
    }

    for (const [encoding, compress] of [
      ['gzip', gzipSync],
      ['zstd', zstdCompressSync],
    ] as const) {
      test(`in ${encoding} goes upstream decoded`, async () => {
        const text = spell('chat', '1.0', '\n', {});
        const body = new Uint8Array(compress(text));
        const headers = { 'content-encoding': encoding };
        const response = await call(stage, 'chat', { body, headers, run: 'encoded' });
        expect(response.status).toBe(200);
        expect(newest(stage).text()).toBe(text);
        expect(newest(stage).header('content-encoding')).toBeUndefined();
        expect(newest(stage).header('content-length')).toBe(String(encoder.encode(text).length));
      });
    }
  });

  describe('request headers', () => {
    for (const [name, authorize] of Object.entries(CALLERS)) {
      for (const kind of ALL_KINDS) {
        test(`of ${kind} with ${name} carry the org's credential and nothing private`, async () => {
          const { path, body } = KINDS[kind];
          const { host } = new URL(stage.rungate.url);
          const beta = 'a-2025-01-01,b ,c;d=1';
          const lines = [
            ...[`POST ${path} HTTP/1.1`, `Host: ${host}`, 'Connection: close, x-hop'],
            ...['Content-Type: application/json', 'User-Agent: tester/1', 'X-Trace: passes'],
            ...['Anthropic-Version: 2023-06-01', `Anthropic-Beta: ${beta}`],
            ...[...PRIVATE, ...authorize(stage.rungate.token)],
          ];
          const response = await sendRaw(stage.rungate.url, lines, JSON.stringify(body));
          expect(response).toStartWith('HTTP/1.1 200');
          const received = newest(stage);
          const credential = kind === 'messages' ? 'x-api-key' : 'authorization';
          expect(namesOf(received)).toEqual(
            [
              ...['accept-encoding', 'anthropic-beta', 'anthropic-version', credential],
              ...['content-length', 'content-type', 'host', 'user-agent', 'x-trace'],
            ].sort(),
          );
          expect(received.header('host')).toBe(new URL(stage.upstream.url).host);
          expect(received.header('accept-encoding')).toBe('identity');
          expect(received.header('anthropic-version')).toBe('2023-06-01');
          expect(received.header('anthropic-beta')).toBe(beta);
          expect(received.header('user-agent')).toBe('tester/1');
          expect(received.header('x-api-key') ?? received.header('authorization')).toBe(
            kind === 'messages' ? UPSTREAM_KEY : `Bearer ${UPSTREAM_KEY}`,
          );
        });
      }
    }

    test('never get an anthropic-version that the caller did not send', async () => {
      const headers = { authorization: `Bearer ${stage.rungate.token}` };
      const body = JSON.stringify(KINDS.messages.body);
      const url = `${stage.rungate.url}/v1/messages`;
      const response = await fetch(url, { method: 'POST', headers, body });
      expect(response.status).toBe(400);
      expect(await response.text()).toContain('anthropic-version: header is required');
      expect(newest(stage).header('anthropic-version')).toBeUndefined();
      expect(newest(stage).header('anthropic-beta')).toBeUndefined();
    });

    test('with two different tokens are refused', async () => {
      const headers = { 'x-api-key': `${stage.rungate.token.slice(0, -1)}~` };
      const response = await call(stage, 'chat', { headers });
      expect(response.status).toBe(401);
    });
  });

  test('a query goes upstream with what is known to be harmless, and carries no credential', async () => {
    const passes = 'beta=true&api-version=2025-01-01';
    const query = `key=${stage.rungate.token}&${passes}&api_key=sk-other&Beta=1&model=other`;
    const url = `${stage.rungate.url}/v1/messages?${query}`;
    const headers = { 'x-api-key': stage.rungate.token, 'anthropic-version': '2023-06-01' };
    const body = JSON.stringify(KINDS.messages.body);
    const response = await fetch(url, { method: 'POST', headers, body });
    expect(response.status).toBe(200);
    expect(newest(stage).path).toBe(`/v1/messages?${passes}`);
  });

  describe('response headers', () => {
    for (const stream of [false, true]) {
      test(`keep what is the org's own from the caller, stream ${stream}`, async () => {
        stage.upstream.script({ headers: { ...UPSTREAM_OWN, ...UPSTREAM_SHARED } });
        const response = await call(stage, 'chat', { members: { stream }, run: 'own' });
        await response.bytes();
        const got = Object.fromEntries(response.headers);
        expect(got).toMatchObject({ ...UPSTREAM_SHARED, 'x-rungate-run-id': 'own' });
        for (const [name, value] of Object.entries(UPSTREAM_OWN)) {
          expect(response.headers.get(name)).not.toBe(value);
        }
        expect(response.headers.getSetCookie()).toEqual([]);
        const step = (await readTrail(stage.rungate, 'own')).at(-1);
        expect(step?.upstreamRequestId).toBe('upstream-1');
      });
    }

    test('of a stream forbid to buffer and to change it', async () => {
      const response = await call(stage, 'chat', { members: { stream: true }, run: 'buffer' });
      await response.bytes();
      expect(response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
      expect(response.headers.get('cache-control')).toBe('no-cache, no-transform');
      expect(response.headers.get('x-accel-buffering')).toBe('no');
    });
  });

  describe('a stream', () => {
    for (const kind of ALL_KINDS) {
      for (const cut of CUTS) {
        for (const crlf of [false, true]) {
          const script = { ...cut, crlf };
          test(`of ${kind} passes byte for byte, cut and ended as ${JSON.stringify(script)}`, async () => {
            const run = `sse-${kind}-${cut.chunkBytes}-${crlf}`;
            stage.upstream.script({ ...script, chunks: [...STREAMS[kind]] });
            const stream_options = kind === 'chat' && { include_usage: true };
            const members = { stream: true, ...(stream_options && { stream_options }) };
            const response = await call(stage, kind, { members, run });
            const sent = STREAMS[kind].join('');
            expect(await response.text()).toBe(crlf ? toCrlf(sent) : sent);
            expect(await readTrail(stage.rungate, run)).toMatchObject([
              { outcome: 'ok', estimated: false, spentNanos: STREAM_NANOS },
            ]);
          });
        }
      }
    }

    for (const cut of CUTS) {
      for (const crlf of [false, true]) {
        const script = { ...cut, crlf };
        test(`without the usage that only we asked for is otherwise whole: ${JSON.stringify(script)}`, async () => {
          const run = `swallow-${cut.chunkBytes}-${crlf}`;
          stage.upstream.script({ ...script, chunks: [...STREAMS.chat] });
          const response = await call(stage, 'chat', { members: { stream: true }, run });
          const left = CHAT_HEAD + CHAT_TEXT + CHAT_DONE;
          expect(await response.text()).toBe(crlf ? toCrlf(left) : left);
          expect(await readTrail(stage.rungate, run)).toMatchObject([
            { outcome: 'ok', estimated: false, spentNanos: STREAM_NANOS },
          ]);
        });
      }
    }

    test('in gzip, though identity was asked for, reaches the caller decoded', async () => {
      stage.upstream.script({ gzip: true, chunks: [...STREAMS.messages] });
      const response = await call(stage, 'messages', { members: { stream: true }, run: 'zipped' });
      expect(response.headers.get('content-encoding')).toBeNull();
      expect(await response.text()).toBe(STREAMS.messages.join(''));
      const [step] = await readTrail(stage.rungate, 'zipped');
      expect(step?.spentNanos).toBe(STREAM_NANOS);
    });
  });

  describe('a JSON answer', () => {
    for (const kind of ALL_KINDS) {
      test(`of ${kind} keeps its bytes`, async () => {
        const usage = { prompt_tokens: 1, completion_tokens: 1, input_tokens: 1, output_tokens: 1 };
        const body = ` {"model":"test-model", "status":"completed","n":12345678901234567890,\n"m":1.0,"s":"\\u00e9é","usage":${JSON.stringify(usage)}}\n`;
        stage.upstream.script({ body });
        const response = await call(stage, kind, { run: `json-${kind}` });
        expect(await response.text()).toBe(body);
        const [step] = await readTrail(stage.rungate, `json-${kind}`);
        expect(step).toMatchObject({ estimated: false, spentNanos: 5_000 });
      });
    }

    test.each([15_359, 15_360, 100_000])(
      'of %d bytes is framed once and whole, on Bun in chunks from 15 KiB on',
      async (bytes) => {
        const { path, body } = KINDS.chat;
        const answer = (content: string) => JSON.stringify({ id: 'x', choices: [], content });
        const text = answer('€'.repeat(Math.floor((bytes - answer('').length) / 3)));
        const padded = text + ' '.repeat(bytes - encoder.encode(text).length);
        stage.upstream.script({ body: padded });
        const response = await sendRaw(
          stage.rungate.url,
          [
            ...[`POST ${path} HTTP/1.1`, `Host: ${new URL(stage.rungate.url).host}`],
            ...[`Authorization: Bearer ${stage.rungate.token}`, 'Connection: close'],
          ],
          JSON.stringify(body),
        );
        expect(bodiesOf(response)).toEqual([padded]);
        const framing = /^(?:transfer-encoding|content-length): .*$/im.exec(response)?.[0];
        const isChunked = stage.runtime === 'bun' && bytes >= 15 * 1024;
        expect(framing?.toLowerCase()).toBe(
          isChunked ? 'transfer-encoding: chunked' : `content-length: ${bytes}`,
        );
      },
    );

    test('to HEAD is one head, and leaves the connection to what follows', async () => {
      const host = `Host: ${new URL(stage.rungate.url).host}`;
      const head = ['HEAD /openapi.json HTTP/1.1', host, '', ''].join('\r\n');
      const get = [`${head}GET /openapi.json HTTP/1.1`, host, 'Connection: close'];
      const response = await sendRaw(stage.rungate.url, get, '');
      const [first, ...rest] = response.split('\r\n\r\n');
      expect(first).toStartWith('HTTP/1.1 200');
      const shown = await fetch(`${stage.rungate.url}/openapi.json`);
      expect(bodiesOf(rest.join('\r\n\r\n'))).toEqual([await shown.text()]);
    });

    test('in gzip, though identity was asked for, reaches the caller decoded', async () => {
      stage.upstream.script({ gzip: true });
      const response = await call(stage, 'chat', { run: 'zipped-json' });
      const text = await response.text();
      expect(response.headers.get('content-encoding')).toBeNull();
      expect(JSON.parse(text)).toMatchObject({ object: 'chat.completion' });
      const [step] = await readTrail(stage.rungate, 'zipped-json');
      expect(step).toMatchObject({ outcome: 'ok', estimated: false });
    });

    test('that redirects is not followed and its target not told', async () => {
      const trap = await startUpstream();
      try {
        stage.upstream.script({ redirect: `${trap.url}/v1/chat/completions` });
        const response = await call(stage, 'chat', { run: 'redirect' });
        expect(response.status).toBe(302);
        expect(response.headers.get('location')).toBeNull();
        expect(trap.requests).toBeEmpty();
        const [step] = await readTrail(stage.rungate, 'redirect');
        expect(step).toMatchObject({ outcome: 'upstream_302', spentNanos: 0 });
      } finally {
        await trap.stop();
      }
    });
  });

  describe('an error of the upstream', () => {
    for (const error of [400, 403, 404, 429, 500, 502, 503, 529] as const) {
      for (const kind of ALL_KINDS) {
        test(`${error} passes through to ${kind} in its own words, free of charge`, async () => {
          const run = `error-${error}-${kind}`;
          for (const stream of [false, true]) {
            stage.upstream.script({ error, retryAfterS: 7 });
            const response = await call(stage, kind, { members: { stream }, run });
            expect(response.status).toBe(error);
            expect(response.headers.get('retry-after')).toBe('7');
            expect(response.headers.get('x-rungate-run-id')).toBe(run);
            const body = await response.json();
            expect(body).toMatchObject({ error: { message: `Scripted ${error}.` } });
            expect(body.type).toBe(kind === 'messages' ? 'error' : undefined);
          }
          const steps = await readTrail(stage.rungate, run);
          expect(steps.map((step) => [step.outcome, step.httpStatus, step.spentNanos])).toEqual([
            [`upstream_${error}`, error, 0],
            [`upstream_${error}`, error, 0],
          ]);
        });
      }
    }

    for (const status of [600, 799, 999]) {
      for (const kind of ALL_KINDS) {
        test(`${status}, which is no status, is a 502 to ${kind}, free of charge`, async () => {
          const run = `error-${status}-${kind}`;
          for (const stream of [false, true]) {
            stage.upstream.script({ status, body: 'odd' });
            const response = await call(stage, kind, { members: { stream }, run });
            expect(response.status).toBe(502);
            expect(response.headers.get('x-rungate-run-id')).toBe(run);
            const body = await response.json();
            expect(body).toMatchObject({ error: { rungate: { code: 'upstream_failed' } } });
            expect(body.type).toBe(kind === 'messages' ? 'error' : undefined);
          }
          const steps = await readTrail(stage.rungate, run);
          const outcome = { outcome: `upstream_${status}`, httpStatus: status, spentNanos: 0 };
          expect(steps).toMatchObject([outcome, outcome]);
        });
      }
    }

    for (const kind of ALL_KINDS) {
      test(`401 tells ${kind} of the org's key, and not what the upstream said of it`, async () => {
        stage.upstream.script({ error: 401 });
        const response = await call(stage, kind, { run: `error-401-${kind}` });
        expect(response.status).toBe(502);
        const text = await response.text();
        expect(text).toContain('an admin must replace it');
        expect(text).not.toContain('Scripted');
        const [step] = await readTrail(stage.rungate, `error-401-${kind}`);
        expect(step).toMatchObject({ outcome: 'upstream_401', spentNanos: 0 });
      });
    }
  });
});
