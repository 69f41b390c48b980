/** Promises under attack: a hostile call is refused clearly, goes nowhere, and harms no other. */

import {
  afterAll,
  afterEach,
  beforeAll,
  describe,
  expect,
  setDefaultTimeout,
  test,
} from 'bun:test';
import { connect } from 'node:net';
import { constants, gzipSync, zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import { type Deployment, deploy } from './rungate.ts';
import { startUpstream, type Upstream } from './upstream.ts';

setDefaultTimeout(30_000);

type Dialect = 'openai' | 'anthropic';

const MODEL = 'test-model';
const CHAT = '/v1/chat/completions';
const MESSAGES = [{ role: 'user', content: 'hello' }];

/** A body that each endpoint serves, and its format. */
const SERVED: Readonly<Record<string, readonly [Dialect, Readonly<Record<string, unknown>>]>> = {
  [CHAT]: ['openai', { model: MODEL, max_tokens: 5, messages: MESSAGES }],
  '/v1/completions': ['openai', { model: MODEL, max_tokens: 5, prompt: 'hello' }],
  '/v1/responses': ['openai', { model: MODEL, max_output_tokens: 5, input: 'hello' }],
  '/v1/embeddings': ['openai', { model: MODEL, input: 'hello' }],
  '/v1/messages': ['anthropic', { model: MODEL, max_tokens: 5, messages: MESSAGES }],
};
const PATHS = Object.keys(SERVED);
const dialectOf = (path: string): Dialect => SERVED[path]?.[0] ?? 'openai';
const bodyOf = (path: string, more: object = {}): string =>
  JSON.stringify({ ...SERVED[path]?.[1], ...more });

let upstream: Upstream;
let deployment: Deployment;
/** Connections of strangers that say no more after their first words, until they are closed. */
let idle: Promise<string[]>;

beforeAll(async () => {
  upstream = await startUpstream();
  deployment = await deploy({
    upstreamUrl: upstream.url,
    policy: { budget: { run: '50.00' }, tools: { deny: ['crm/*'] } },
    agents: ['tester', 'other'],
  });
  const words = ['', 'GET', 'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n', LATE_BODY];
  idle = Promise.all(words.map((bytes) => exchange(bytes, NEVER_MS)));
}, 60_000);

afterAll(async () => {
  await deployment.stop();
  await upstream.stop();
});

/** Whatever a test did, the process goes on to serve, and logged no fault of its own. */
afterEach(async () => {
  const { status } = await ask(CHAT, bodyOf(CHAT), { 'x-rungate-run-id': 'after' });
  expect(status).toBe(200);
  expect(deployment.logs()).not.toContain('"level":"error"');
});

interface Told {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  /** How many calls reached the upstream meanwhile. */
  readonly forwarded: number;
}

async function send(path: string, init: RequestInit): Promise<Told> {
  const before = upstream.requests.length;
  const response = await fetch(deployment.url + path, { redirect: 'manual', ...init });
  const text = await response.text();
  const forwarded = upstream.requests.length - before;
  return { status: response.status, headers: response.headers, text, forwarded };
}

function ask(
  path: string,
  body: BodyInit | null,
  headers: Record<string, string> = {},
  method = 'POST',
): Promise<Told> {
  const version = dialectOf(path) === 'anthropic' ? { 'anthropic-version': '2023-06-01' } : {};
  const auth = { authorization: `Bearer ${deployment.token}` };
  return send(path, {
    method,
    body,
    headers: { 'content-type': 'application/json', ...auth, ...version, ...headers },
  });
}

/** A refusal of ours: a 4xx in the caller's dialect that says what to do and not to retry. */
function expectRefused(told: Told, dialect: Dialect, ...statuses: number[]): void {
  const { status, text, headers, forwarded } = told;
  expect(statuses.length > 0 ? statuses : [400, 401, 402, 403, 404, 413]).toContain(status);
  const body = JSON.parse(text) as { type?: string; error: Record<string, unknown> };
  expect(body.type).toBe(dialect === 'anthropic' ? 'error' : undefined);
  expect(body.error).toMatchObject({ type: expect.any(String), message: expect.any(String) });
  expect(body.error.rungate).toMatchObject({ code: expect.any(String) });
  expect(headers.get('x-should-retry')).toBe('false');
  expect(text).not.toMatch(/\bat .+:\d+:\d+|node_modules|SQLITE|\.ts\b/);
  expect(forwarded).toBe(0);
}

const LATE_BODY = `POST ${CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{`;
const NEVER_MS = 600_000;

/** Writes bytes to a fresh connection and reads until it closes or falls silent. */
function exchange(bytes: string | Uint8Array, silenceMs = 250): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect(Number(new URL(deployment.url).port), '127.0.0.1');
    let answer = '';
    const done = () => {
      socket.destroy();
      resolve(answer);
    };
    socket.setTimeout(silenceMs, done);
    socket.on('data', (chunk) => {
      answer += chunk.toString('latin1');
    });
    socket.on('error', done).on('close', done);
    socket.write(typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes);
  });
}

const statusesIn = (answer: string): number[] =>
  [...answer.matchAll(/HTTP\/1\.\d (\d{3})/g)].map((match) => Number(match[1]));

interface RawCall {
  method?: string;
  target?: string;
  host?: string;
  /** Further header lines, each with its line end. */
  headers?: string;
  body?: string;
  framing?: string;
}

function rawCall({ method = 'POST', target = CHAT, host = 'Host: x\r\n', ...more }: RawCall = {}) {
  const {
    headers = '',
    body = bodyOf(CHAT),
    framing = `Content-Length: ${body.length}\r\n`,
  } = more;
  const auth = `Authorization: Bearer ${deployment.token}\r\n`;
  const close = headers.includes('Connection:') ? '' : 'Connection: close\r\n';
  return `${method} ${target} HTTP/1.1\r\n${host}${auth}${close}${headers}${framing}\r\n${body}`;
}

/** Refused on a bare connection; 505 is the runtime's word for a line that is not HTTP/1.1. */
async function expectStopped(bytes: string | Uint8Array): Promise<string> {
  const before = upstream.requests.length;
  const answer = await exchange(bytes);
  for (const status of statusesIn(answer)) {
    if (status !== 505) expect([400, 401, 403, 404, 405, 413, 414, 431]).toContain(status);
  }
  expect(upstream.requests.length).toBe(before);
  return answer;
}

const bytesOf = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text);
const join = (...parts: Uint8Array[]): Uint8Array<ArrayBuffer> =>
  new Uint8Array(Buffer.concat(parts));

/** What is no host, and in part would make another path of whatever comes after it. */
const HOSTS = [
  ...['a/v1/models?', 'a/v1/chat/completions?', 'a/graphql?', 'a#', 'a/..', 'a\\b', 'a b'],
  ...['u:p@evil', 'u@x', '[::1', '%00', 'a:99999'],
];

/** Probes of HTTP/1.0 name no host. */
async function expectProbed(): Promise<void> {
  for (const request of ['GET /healthz HTTP/1.0\r\n', 'GET /healthz HTTP/1.1\r\nHost:\r\n']) {
    expect(statusesIn(await exchange(`${request}\r\n`))).toEqual([200]);
    const forged = request.replace('/healthz', '/v1/models');
    expect(statusesIn(await exchange(`${forged}\r\n`))).toEqual([400]);
  }
}

/** Each is refused where its target is a route, where it would become one, and where neither is. */
async function expectHostsStopped(): Promise<void> {
  for (const host of HOSTS) {
    for (const target of [
      CHAT,
      '/healthz',
      '/graphql',
      '/v1/files',
      `/x${CHAT}`,
      '/r/a/v1/models',
    ]) {
      for (const method of ['POST', 'GET']) {
        await expectStopped(rawCall({ method, target, host: `Host: ${host}\r\n` }));
      }
    }
  }
}

/** Bodies that two readers could read as two, by what is wrong with them; `good` is served. */
const BODIES: Readonly<Record<string, (good: string) => string | Uint8Array<ArrayBuffer>>> = {
  'no bytes': () => '',
  'only spaces': () => ' \r\n\t',
  'a repeated key': (good) => good.replace('{', `{"model":"dear",`),
  'a repeated key, escaped': (good) => good.replace('{', `{"m\\u006fdel":"dear",`),
  'a repeated key, deep': (good) => good.replace('{', `{"metadata":{"a":{"b":1,"\\u0062":2}},`),
  'a key in other case': (good) => good.replace('{', `{"Model":"dear",`),
  'a key in full width': (good) => good.replace('{', `{"ｍodel":"dear",`),
  'a key with a long s': (good) => good.replace('{', `{"\u017ftream":true,`),
  'a key with an invisible character': (good) => good.replace('{', `{"mo\u200bdel":"dear",`),
  'a byte order mark': (good) => `\ufeff${good}`,
  'UTF-16': (good) => new Uint8Array(Buffer.from(good, 'utf16le')),
  'bytes that are no UTF-8': (good) => join(bytesOf(good.slice(0, -1)), Uint8Array.of(0xff, 0x7d)),
  'an overlong slash': (good) =>
    join(bytesOf(good.replace(/\}$/, ',"a":"')), Uint8Array.of(0xc0, 0xaf), bytesOf('"}')),
  'an encoded surrogate': (good) =>
    join(bytesOf(good.replace(/\}$/, ',"a":"')), Uint8Array.of(0xed, 0xa0, 0x80), bytesOf('"}')),
  'half a surrogate pair': (good) => good.replace('{', '{"a":"\\ud800",'),
  'a NUL in a string': (good) => good.replace('{', '{"a":"\u0000",'),
  'a line feed in a string': (good) => good.replace('{', '{"a":"\n",'),
  'two objects': (good) => good + good,
  'something after the end': (good) => `${good}\u0000`,
  'a comment': (good) => good.replace('{', '{/* */'),
  'a comma too many': (good) => good.replace(/\}$/, ',}'),
  'single quotes': (good) => good.replaceAll('"', "'"),
  'an array': (good) => `[${good}]`,
  'a string': (good) => JSON.stringify(good),
  null: () => 'null',
  'a form': () => 'model=dear&max_tokens=100000',
  'its first half': (good) => good.slice(0, good.length / 2),
  'a million levels': (good) => good.replace('{', `{"a":${'['.repeat(1e6)}${']'.repeat(1e6)},`),
  'a million open levels': () => '{"a":'.repeat(1e6),
  'a million members': (good) => good.replace('{', `{"a":[${'0,'.repeat(1e6)}0],`),
  NaN: (good) => good.replace('{', '{"temperature":NaN,'),
  Infinity: (good) => good.replace('{', '{"temperature":-Infinity,'),
  '1e309': (good) => good.replace('{', '{"temperature":1e309,'),
  'a number of 400 digits': (good) => good.replace('{', `{"seed":${'9'.repeat(400)},`),
  hexadecimal: (good) => good.replace('{', '{"seed":0x10,'),
  'a leading zero': (good) => good.replace('{', '{"seed":010,'),
};

/** JSON of which `String` can't make a text: what should convert it is no function. */
const NO_TEXT = { toString: 0, valueOf: 0 };

/** Members by whose type, name or id calls are told apart. */
const TYPED: readonly (readonly [path: string, members: object])[] = [
  [CHAT, { tools: [{ type: 'function', function: { name: 'f' } }] }],
  [CHAT, { messages: [{ role: 'user', content: [{ type: 'text', text: 'x' }] }] }],
  [CHAT, { messages: [{ role: 'tool', tool_call_id: 'c', content: 'x' }] }],
  ['/v1/responses', { tools: [{ type: 'function', name: 'f' }] }],
  ['/v1/responses', { tools: [{ type: 'namespace', tools: [{ type: 'function', name: 'f' }] }] }],
  ['/v1/responses', { tools: [{ type: 'mcp', server_label: 'crm', require_approval: 'never' }] }],
  ['/v1/responses', { input: [{ role: 'user', content: [{ type: 'input_text', text: 'x' }] }] }],
  ['/v1/responses', { input: [{ type: 'function_call_output', call_id: 'c', output: 'x' }] }],
  ['/v1/responses', { input: [{ type: 'item_reference', id: 'item_1' }] }],
  [
    '/v1/responses',
    {
      input: [
        { type: 'mcp_approval_request', id: 'r', server_label: 'a', name: 'b', arguments: '{}' },
        { type: 'mcp_approval_response', approval_request_id: 'r', approve: true },
      ],
    },
  ],
  [CHAT, { tool_choice: { type: 'function', function: { name: 'f' } } }],
  [CHAT, { functions: [{ name: 'f' }], function_call: { name: 'f' } }],
  [CHAT, { stream: true, stream_options: { include_usage: true } }],
  ['/v1/responses', { tool_choice: { type: 'allowed_tools', tools: [{ type: 'mcp' }] } }],
  ['/v1/responses', { tools: [{ type: 'shell', environment: { type: 'local' } }] }],
  ['/v1/responses', { reasoning: { mode: 'standard' } }],
  [
    '/v1/responses',
    {
      tools: [{ type: 'mcp', server_url: 'https://a.example', allowed_tools: { tool_names: [] } }],
    },
  ],
  ['/v1/messages', { tools: [{ type: 'web_search_20250305', name: 'web_search', max_uses: 1 }] }],
  ['/v1/messages', { mcp_servers: [{ type: 'url', name: 'a', url: 'https://a.example' }] }],
  ['/v1/messages', { tool_choice: { type: 'tool', name: 'f' } }],
  [
    '/v1/messages',
    { messages: [{ role: 'user', content: [{ type: 'image', source: { type: 'url' } }] }] },
  ],
  ['/v1/messages', { tools: [{ type: 'custom', name: 'f' }] }],
  ['/v1/messages', { system: [{ type: 'text', text: 'x' }] }],
  ['/v1/messages', { context_management: { edits: [{ type: 'clear_tool_uses_20250919' }] } }],
  ['/v1/messages', { messages: [{ role: 'user', content: [{ type: 'text', text: 'x' }] }] }],
];

/** A value once for each place in it, with something else there. */
function replaced(value: unknown, other: unknown): unknown[] {
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([key, member]) =>
    [other, ...replaced(member, other)].map((put) =>
      Array.isArray(value) ? value.with(Number(key), put) : { ...value, [key]: put },
    ),
  );
}

/** Spellings of a key that readers who fold it would take for it. */
const SPELLINGS: readonly ((key: string) => string)[] = [
  (key) => key.toUpperCase(),
  (key) => key.replace(/^./, (letter) => letter.toUpperCase()),
  (key) => key.replace(/^./, (letter) => String.fromCharCode(letter.charCodeAt(0) + 0xfee0)),
  (key) => `${key}\u200b`,
];

/** A value once for each key below its top and each spelling, with that beside the key. */
function respelled(value: unknown, isTop = true): unknown[] {
  if (typeof value !== 'object' || value === null) return [];
  if (Array.isArray(value)) {
    return value.flatMap((item, at) => respelled(item, false).map((put) => value.with(at, put)));
  }
  return Object.entries(value).flatMap(([key, member]) => [
    ...(isTop || key === 'text' ? [] : SPELLINGS.map((to) => ({ ...value, [to(key)]: member }))),
    ...respelled(member, false).map((put) => ({ ...value, [key]: put })),
  ]);
}

/** Objects whose keys are the caller's own. */
const OWN = { name: 1, Name: 2, TYPE: 3, Content: { Type: 4 } };
const SCHEMA = { type: 'object', properties: OWN };
const FREE: readonly (readonly [path: string, members: object])[] = [
  [CHAT, { metadata: { a: 'x', A: 'y' }, response_format: OWN }],
  [CHAT, { tools: [{ type: 'function', function: { name: 'f', parameters: SCHEMA } }] }],
  [CHAT, { functions: [{ name: 'f', parameters: SCHEMA }] }],
  ['/v1/responses', { tools: [{ type: 'function', name: 'f', parameters: SCHEMA }] }],
  ['/v1/responses', { text: { format: OWN }, metadata: OWN }],
  ['/v1/responses', { input: [{ type: 'computer_call', call_id: 'c', action: OWN }] }],
  ['/v1/messages', { tools: [{ name: 'f', input_schema: SCHEMA, Description: 'x' }] }],
  [
    '/v1/messages',
    {
      messages: [
        { role: 'assistant', content: [{ type: 'tool_use', id: 't', name: 'f', input: OWN }] },
        { role: 'user', content: [{ type: 'tool_result', tool_use_id: 't', content: 'x' }] },
      ],
    },
  ],
];

describe('bodies', () => {
  for (const [path, members] of TYPED) {
    test(`are refused with a variant of any key of ${path} ${JSON.stringify(members)}`, async () => {
      for (const more of respelled(members)) {
        const told = await ask(path, bodyOf(path, more as object));
        expectRefused(told, dialectOf(path), 400);
        expect([more, told.text]).toEqual([more, expect.stringContaining('must be spelled')]);
      }
    });
  }

  test('may have any keys in what is their own', async () => {
    for (const [path, members] of FREE) {
      const { status, text } = await ask(path, bodyOf(path, members));
      expect([members, status, text]).toEqual([members, 200, text]);
    }
  });

  test('with members that no text can be made of are judged like any other', async () => {
    for (const [path, members] of TYPED) {
      for (const more of [...replaced(members, NO_TEXT), ...replaced(members, [NO_TEXT])]) {
        const { status } = await ask(path, bodyOf(path, more as object));
        expect(status, JSON.stringify(more)).toBeLessThan(500);
      }
    }
  });

  for (const [what, make] of Object.entries(BODIES)) {
    test(`with ${what} are refused everywhere`, async () => {
      for (const path of PATHS) {
        const told = await ask(path, make(bodyOf(path)));
        expectRefused(told, dialectOf(path), 400);
      }
    });
  }

  test('of any bytes are refused', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...PATHS),
        fc.uint8Array({ maxLength: 300 }),
        async (path, bytes) => expectRefused(await ask(path, join(bytes)), dialectOf(path), 400),
      ),
      { numRuns: 60 },
    );
  });

  test('of any JSON that names no model are refused', async () => {
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...PATHS), fc.jsonValue(), async (path, value) => {
        fc.pre(typeof (value as { model?: unknown } | null)?.model !== 'string');
        expectRefused(await ask(path, JSON.stringify(value)), dialectOf(path), 400);
      }),
      { numRuns: 60 },
    );
  });

  test('that end anywhere before their end are refused', async () => {
    const whole = bodyOf(CHAT);
    for (let length = 0; length < whole.length; length += 3) {
      expectRefused(await ask(CHAT, whole.slice(0, length)), 'openai', 400);
    }
  });
});

const LIMITS: readonly (readonly [path: string, field: string])[] = [
  [CHAT, 'max_tokens'],
  [CHAT, 'max_completion_tokens'],
  [CHAT, 'n'],
  ['/v1/completions', 'max_tokens'],
  ['/v1/completions', 'n'],
  ['/v1/completions', 'best_of'],
  ['/v1/responses', 'max_output_tokens'],
  ['/v1/responses', 'max_tool_calls'],
  ['/v1/messages', 'max_tokens'],
];
const NO_LIMITS = ['-1', '-0.5', '1.5', '1e-3', '1e21', '1e309', '-1e309', 'NaN', 'Infinity'];
const NO_NUMBERS = ['9007199254740993', '"5"', '""', 'true', '[]', '[5]', '{}', '"1e309"'];

describe('limits', () => {
  for (const [path, field] of LIMITS) {
    test(`${field} of ${path} is a whole number or nothing`, async () => {
      for (const value of [...NO_LIMITS, ...NO_NUMBERS]) {
        const members: Record<string, unknown> = { ...SERVED[path]?.[1] };
        delete members[field];
        const body = JSON.stringify(members).replace('{', `{"${field}":${value},`);
        expectRefused(await ask(path, body), dialectOf(path), 400);
      }
    });
  }

  test('more answers than anybody wants are refused', async () => {
    expectRefused(await ask(CHAT, bodyOf(CHAT, { n: 100_001 })), 'openai', 400);
    expectRefused(await ask(CHAT, bodyOf(CHAT, { n: 2 ** 53 - 1 })), 'openai', 400);
  });

  test('what is refused for its shape leaves no money held', async () => {
    const wrong = ['yes', 1, 0, [], {}, 'true'];
    const run = { 'x-rungate-run-id': 'shapes' };
    for (const value of wrong) {
      expectRefused(await ask(CHAT, bodyOf(CHAT, { stream: value }), run), 'openai', 400);
      expectRefused(
        await ask('/v1/completions', bodyOf('/v1/completions', { stream: value }), run),
        'openai',
        400,
      );
      const options = { include_usage: value };
      const nested = bodyOf(CHAT, { stream: true, stream_options: options });
      expectRefused(await ask(CHAT, nested, run), 'openai', 400);
    }
    for (const value of ['x', 1, true, [], [{}]]) {
      const body = bodyOf(CHAT, { stream: true, stream_options: value });
      expectRefused(await ask(CHAT, body, run), 'openai', 400);
    }
    const { text } = await ask('/v1/runs/shapes', null, {}, 'GET');
    expect(JSON.parse(text)).toMatchObject({ heldNanos: 0, spentNanos: 0 });
  });

  test('a tool, a server or a model that no price covers is refused', async () => {
    const unbounded: (readonly [string, object])[] = [
      [CHAT, { tools: [{ type: 'web_search' }] }],
      [CHAT, { web_search_options: {} }],
      [CHAT, { models: ['dear'] }],
      [CHAT, { plugins: [{ id: 'web' }] }],
      ['/v1/responses', { tools: [{ type: 'code_interpreter', container: { type: 'auto' } }] }],
      ['/v1/responses', { tools: [{ type: 'mcp', server_url: 'https://evil.example' }] }],
      ['/v1/responses', { prompt: { id: 'pmpt_1' } }],
      ['/v1/messages', { mcp_servers: [{ type: 'url', url: 'https://evil.example' }] }],
      ['/v1/messages', { tools: [{ type: 'code_execution_20250825', name: 'x' }] }],
    ];
    for (const [path, more] of unbounded) {
      expectRefused(await ask(path, bodyOf(path, more)), dialectOf(path), 403);
    }
  });
});

describe('encodings', () => {
  const zeros = Buffer.alloc(100 * 1024 * 1024);
  const good = bytesOf(bodyOf(CHAT));
  const gzip = (bytes: Uint8Array) => new Uint8Array(gzipSync(bytes));
  const zstd = (bytes: Uint8Array) => new Uint8Array(zstdCompressSync(bytes));
  const wide = { params: { [constants.ZSTD_c_windowLog]: 27 } };

  test('bombs are refused by what they decode to', async () => {
    for (const [encoding, bomb] of [
      ['gzip', gzip(zeros)],
      ['zstd', zstd(zeros)],
      ['zstd', new Uint8Array(zstdCompressSync(zeros, wide))],
      ['gzip', join(...Array.from({ length: 40 }, () => gzip(zeros.subarray(0, 2 ** 21))))],
    ] as const) {
      const told = await ask(CHAT, bomb, { 'content-encoding': encoding });
      expectRefused(told, 'openai', 400, 413);
    }
  });

  test('data that is cut short, wrapped twice or not what it says is refused', async () => {
    const cases: (readonly [string, Uint8Array<ArrayBuffer>])[] = [
      ['gzip', good],
      ['zstd', good],
      ['gzip', gzip(gzip(good))],
      ['zstd', zstd(zstd(good))],
      ['gzip', zstd(good)],
      ['gzip, gzip', gzip(gzip(good))],
      ['gzip,identity', gzip(good)],
      ['identity, identity', good],
      ['br', good],
      ['deflate', good],
      ['\u00ff', good],
      ['constructor', good],
      ...[1, 5, 9, 20].map((cut) => ['gzip', gzip(good).slice(0, -cut)] as const),
      ...[1, 5, 9, 20].map((cut) => ['zstd', zstd(good).slice(0, -cut)] as const),
    ];
    for (const [encoding, bytes] of cases) {
      expectRefused(await ask(CHAT, bytes, { 'content-encoding': encoding }), 'openai', 400);
    }
  });

  const MIB = 1024 * 1024;
  test.each([33, 129, 300])(
    'a body of %d MiB is refused in the dialect, its length told or not',
    async (mebibytes) => {
      for (const path of PATHS) {
        const framing = `Content-Length: ${mebibytes * MIB}\r\n`;
        const answer = await expectStopped(rawCall({ target: path, framing }));
        expect(statusesIn(answer)).toEqual([413]);
        expect(answer).toContain('"rungate":{"code":"body_too_large"');
      }
      const told = await ask(CHAT, new Uint8Array(mebibytes * MIB).fill(0x20));
      expectRefused(told, 'openai', 413);
      expectRefused(await ask(CHAT, inChunks(mebibytes)), 'openai', 413);
    },
  );

  const inChunks = (mebibytes: number) => {
    const chunk = new Uint8Array(MIB).fill(0x20);
    let left = mebibytes;
    return new ReadableStream<Uint8Array>({
      pull(controller) {
        if (left-- > 0) controller.enqueue(chunk);
        else controller.close();
      },
    });
  };

  test('the upstream is told the very type that was read', async () => {
    for (const type of [
      'application/x-www-form-urlencoded',
      'application/json; charset=utf-7',
      'application/json; charset=utf-16le',
      'multipart/form-data; boundary=model',
      'text/plain',
    ]) {
      const told = await ask(CHAT, bodyOf(CHAT), { 'content-type': type });
      if (told.status === 200) {
        expect(upstream.requests.at(-1)?.header('content-type')).toBe('application/json');
      } else expectRefused(told, 'openai', 400);
    }
  });
});

describe('tokens', () => {
  const call = (headers: Record<string, string>) =>
    send(CHAT, { method: 'POST', body: bodyOf(CHAT), headers });

  test('that are not ours are refused', async () => {
    const { token } = deployment;
    const swapped = token.slice(0, -1) + (token.endsWith('a') ? 'b' : 'a');
    const hostile = [
      '',
      'rg_agt_',
      'sk-upstream',
      swapped,
      token.slice(0, -1),
      `${token}x`,
      token.toUpperCase(),
      token.replace('rg_agt_', 'rg_adm_'),
      token.replace('rg_agt_', 'rg_platform_'),
      `rg_agt_${'0'.repeat(36)}`,
      `rg_agt_${'a'.repeat(8_000)}`,
      "rg_agt_' or '1'='1",
      'rg_agt_%00',
      `rg_agt_${'\u00e9'.repeat(36)}`,
      `${token}, ${token}`,
      `${token};`,
      '__proto__',
      'undefined',
      'null',
    ];
    for (const text of hostile) {
      expectRefused(await call({ authorization: `Bearer ${text}` }), 'openai', 401);
      expectRefused(await call({ 'x-api-key': text }), 'openai', 401);
      expectRefused(await call({ authorization: text }), 'openai', 401);
    }
    expectRefused(await call({}), 'openai', 401);
    expectRefused(await call({ authorization: `Basic ${token}` }), 'openai', 401);
  });

  test('of any characters are refused', async () => {
    const character = fc.integer({ min: 0x21, max: 0xff }).filter((code) => code !== 0x7f);
    await fc.assert(
      fc.asyncProperty(fc.array(character, { maxLength: 60 }), async (codes) => {
        const text = `rg_agt_${String.fromCharCode(...codes)}`;
        expectRefused(await call({ authorization: `Bearer ${text}` }), 'openai', 401);
      }),
      { numRuns: 40 },
    );
  });

  test('with a NUL or a line end in them never become another header', async () => {
    for (const inner of ['\0', '\r', '\n', '\r\n x-api-key: ']) {
      const line = `Authorization: Bearer ${inner}${deployment.token}\r\n`;
      const headers = `Host: x\r\n${line}Content-Length: 2\r\n`;
      await expectStopped(`POST ${CHAT} HTTP/1.1\r\n${headers}\r\n{}`);
    }
  });

  test('two different ones are refused rather than chosen from', async () => {
    const { tester = '', other = '' } = deployment.tokens;
    const told = await call({ authorization: `Bearer ${tester}`, 'x-api-key': other });
    expectRefused(told, 'openai', 401);
    const twice = `Authorization: Bearer ${other}\r\n`;
    await expectStopped(rawCall({ headers: twice }));
  });

  test('of admins, revoked and expired ones are refused', async () => {
    const made = await deployment.cli(
      'init',
      '--org',
      'Beta',
      '--email',
      'b@example.com',
      '--json',
    );
    const { adminToken } = JSON.parse(made.stdout) as { adminToken: string };
    expectRefused(await call({ authorization: `Bearer ${adminToken}` }), 'openai', 403);

    const rotate = ['agent', 'token', 'rotate', 'other', '--org', 'acme', '--json'];
    const first = JSON.parse((await deployment.cli(...rotate)).stdout) as { token: string };
    expect((await call({ authorization: `Bearer ${first.token}` })).status).toBe(200);
    expectRefused(
      await call({ authorization: `Bearer ${deployment.tokens.other}` }),
      'openai',
      401,
    );
    const overlap = [...rotate.slice(0, -1), '--overlap', '86400', '--json'];
    const second = JSON.parse((await deployment.cli(...overlap)).stdout) as { token: string };
    expect((await call({ authorization: `Bearer ${first.token}` })).status).toBe(200);
    const database = await deployment.database();
    const sql = 'update tokens set expires_at = ?1 where expires_at is not null';
    await database.write([{ sql, args: [Date.now() - 1] }]);
    await database.close();
    expectRefused(await call({ authorization: `Bearer ${first.token}` }), 'openai', 401);
    expect((await call({ authorization: `Bearer ${second.token}` })).status).toBe(200);
  });
});

/** Targets that no two servers may read as two routes. */
const TARGETS = [
  '//v1/chat/completions',
  '/v1//chat/completions',
  '/v1/%63hat/completions',
  '/v1/chat%2fcompletions',
  '/v1/chat%5ccompletions',
  '/v1/chat/completions/',
  '/v1/chat/completions/.',
  '/v1/chat/completions%20',
  '/v1/chat/completions%00',
  '/v1/chat/completions;x=1',
  '/v1/chat/completions%3fx',
  '/v1/chat/completions%23',
  '/..;/v1/chat/completions',
  '/V1/chat/completions',
  '/v1/CHAT/completions',
  '/v1/v1/v1/chat/completions',
  '/r/a/r/b/v1/chat/completions',
  '/r//v1/chat/completions',
  '/r/%00/v1/chat/completions',
  '/r/%0d%0aX-Evil:%201/v1/chat/completions',
  '/r/%7f/v1/chat/completions',
  '/r/%ff/v1/chat/completions',
  '/r/%c0%af/v1/chat/completions',
  '/r/%ed%a0%80/v1/chat/completions',
  '/r/%/v1/chat/completions',
  `/r/${'a'.repeat(257)}/v1/chat/completions`,
  `/r/${'%41'.repeat(2_000)}/v1/chat/completions`,
  `/${'a'.repeat(5_000)}`,
  '/v1/responses/..%2f..%2fmodels/cancel',
  '/v1/responses/%2e%2e%2fmodels/cancel',
  '/v1/responses/resp_1%3fx/cancel',
  '/v1/responses/resp_1%00/cancel',
  '/v1/responses/.../cancel',
  '/v1/responses/__proto__/cancel',
  `/v1/responses/${'a'.repeat(257)}/cancel`,
  '/v1/files',
  '/v1/batches',
  '/v1/realtime',
  '/v1/conversations',
  '/v1/vector_stores',
  '/v1/containers',
  '/v1/messages/batches',
  '/agents',
  '/sessions',
  '/admin',
  '/graphql',
  '/.env',
  '/constructor',
  'http://evil.example//v1/chat/completions',
  'http://evil.example/v1/files',
] as const;

describe('routes', () => {
  test('by a name that holds a NUL are refused as what they are, and no outage', async () => {
    for (const [method, path] of [
      ['GET', '/v1/runs/a%00b'],
      ['GET', '/v1/runs/a%00b/steps'],
      ['POST', '/v1/runs/a%00b/complete'],
      ['GET', '/v1/responses/resp_%00'],
    ] as const) {
      const { status } = await ask(path, null, {}, method);
      expect([path, [400, 403, 404].includes(status)]).toEqual([path, true]);
    }
    const body = bodyOf('/v1/responses', { previous_response_id: 'resp_\0' });
    expect((await ask('/v1/responses', body)).status).toBe(400);
    expect(deployment.logs()).not.toContain('the database failed');
  });

  test('that are not served as they stand are refused in the right dialect', async () => {
    for (const target of TARGETS) {
      const answer = await expectStopped(rawCall({ target }));
      expect([...statusesIn(answer), target]).toContainEqual(expect.any(Number));
      expect([target, answer]).toEqual([target, expect.stringMatching(/"rungate":\{"code":"\w+/)]);
      expect(answer.toLowerCase()).not.toContain('x-evil');
    }
  });

  test('targets that are no path, and methods that are none of ours, are refused', async () => {
    for (const target of ['*', '?', 'evil.example:80', '@evil/v1', 'v1/models', '', `${CHAT} x`]) {
      await expectStopped(rawCall({ target }));
    }
    const methods = ['TRACE', 'CONNECT', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'HEAD', 'PROPFIND'];
    for (const method of [...methods, 'GET', 'BREW', 'post', 'POST\t', 'PO ST', '\0']) {
      await expectStopped(rawCall({ method }));
    }
    await expectStopped('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
    await expectStopped(rawCall().replace('HTTP/1.1', 'HTTP/3.7'));
    await expectStopped(`CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n`);
  });

  test('a Host that is none is refused, whatever the target', async () => {
    await expectHostsStopped();
    await expectProbed();
    await expectStopped(rawCall({ host: '' }));
  });

  test('an upgrade is never taken', async () => {
    const socket = 'Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n';
    const key = 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n';
    for (const target of ['/v1/realtime', '/v1/responses', '/', '/healthz/x']) {
      const call = rawCall({ method: 'GET', target, headers: socket + key, framing: '', body: '' });
      expect(await expectStopped(call)).toContain(' 403 ');
    }
    const h2c = 'Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n';
    const call = rawCall({
      method: 'GET',
      target: '/v1/files',
      headers: h2c,
      framing: '',
      body: '',
    });
    expect(await expectStopped(call)).toContain(' 403 ');
  });
});

describe('framing', () => {
  const body = bodyOf(CHAT);
  const chunk = `${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`;
  const framings: Readonly<Record<string, readonly [framing: string, body: string]>> = {
    'both lengths': ['Content-Length: 6\r\nTransfer-Encoding: chunked\r\n', chunk],
    'both lengths, turned': ['Transfer-Encoding: chunked\r\nContent-Length: 4\r\n', chunk],
    'two lengths': [`Content-Length: ${body.length}\r\nContent-Length: 3\r\n`, body],
    'a list of lengths': [`Content-Length: ${body.length}, 3\r\n`, body],
    'a signed length': [`Content-Length: +${body.length}\r\n`, body],
    'a negative length': ['Content-Length: -1\r\n', body],
    'a hexadecimal length': ['Content-Length: 0x50\r\n', body],
    'a length over 2^64': ['Content-Length: 18446744073709551617\r\n', body],
    'a length over any limit': ['Content-Length: 99999999999\r\n', body],
    'an unknown coding': ['Transfer-Encoding: xchunked\r\n', chunk],
    'chunked twice': ['Transfer-Encoding: chunked, chunked\r\n', chunk],
    'identity coding': ['Transfer-Encoding: identity\r\n', body],
    'a space before the colon': ['Transfer-Encoding : chunked\r\n', chunk],
    'a folded coding': ['Transfer-Encoding:\r\n chunked\r\n', chunk],
    'a chunk size that is none': ['Transfer-Encoding: chunked\r\n', chunk.replace(/^\w+/, 'zz')],
    'a chunk size over 2^64': [
      'Transfer-Encoding: chunked\r\n',
      chunk.replace(/^\w+/, 'ffffffffffffffffff'),
    ],
    'a negative chunk size': ['Transfer-Encoding: chunked\r\n', chunk.replace(/^\w+/, '-1')],
    'a length that is longer': [`Content-Length: ${body.length + 9}\r\n`, body],
    'a length that is shorter': [`Content-Length: ${body.length - 9}\r\n`, body],
    'a last chunk that is missing': ['Transfer-Encoding: chunked\r\n', chunk.slice(0, -5)],
  };
  for (const [what, [framing, content]] of Object.entries(framings)) {
    test(`with ${what} is refused, and what follows is no second request`, async () => {
      const inner = rawCall({ target: '/r/smuggled/v1/chat/completions' });
      for (const rest of ['', inner]) {
        const before = upstream.requests.length;
        const answer = await exchange(rawCall({ framing, body: content + rest }));
        expect(statusesIn(answer).filter((status) => status !== 400 && status !== 413)).toEqual([]);
        expect(upstream.requests.length).toBe(before);
      }
      expect((await ask('/v1/runs/smuggled', null, {}, 'GET')).status).toBe(404);
    });
  }

  test.each([33_000, 100_000, 200_000])(
    'of %d characters are refused in the dialect',
    async (length) => {
      const value = 'a'.repeat(length / 4);
      const headers = Object.fromEntries(['a', 'b', 'c', 'd'].map((name) => [`x-${name}`, value]));
      const told = await ask(CHAT, bodyOf(CHAT), headers);
      expect(told.status).toBe(400);
      expect(JSON.parse(told.text).error.rungate).toMatchObject({
        ...{ code: 'invalid_request', field: 'headers' },
      });
      expect(told.forwarded).toBe(0);
    },
  );

  test('folded, bare and endless header lines are refused', async () => {
    const { token } = deployment;
    const rest = `Content-Length: ${body.length}\r\n\r\n${body}`;
    await expectStopped(
      `POST ${CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer\r\n ${token}\r\n${rest}`,
    );
    await expectStopped(rawCall().replaceAll('\r\n', '\n'));
    await expectStopped(rawCall({ headers: `x-large: ${'a'.repeat(300_000)}\r\n` }));
    const many = Array.from({ length: 3_000 }, (_, at) => `x-${at}: 1\r\n`).join('');
    await expectStopped(rawCall({ headers: many }));
    for (const line of ['no colon\r\n', ': no name\r\n', 'a\0b: c\r\n', 'a b: c\r\n', 'é: c\r\n']) {
      await expectStopped(rawCall({ headers: line }));
    }
  });

  test('calls sent before their turn are answered in order or dropped, never mixed', async () => {
    const keep = { headers: 'Connection: keep-alive\r\n' };
    const refused = rawCall({ body: '{"model":1}', ...keep });
    const before = upstream.requests.length;
    const answer = await exchange(refused + rawCall(keep));
    const answered = statusesIn(answer);
    expect([400, 200].slice(0, answered.length)).toEqual(answered);
    expect(upstream.requests.length - before).toBeLessThanOrEqual(1);
  });

  test('connections of strangers are closed when they fall silent', async () => {
    expect((await idle).map(statusesIn)).toEqual([[], [], [200], [401]]);
  });

  test('any bytes at all reach no upstream', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ minLength: 1, maxLength: 200 }), async (bytes) => {
        await expectStopped(join(bytes, bytesOf('\r\n\r\n')));
      }),
      { numRuns: 25 },
    );
  });
});

describe('names', () => {
  const NAMES = ['__proto__', 'constructor', 'prototype', 'toString', 'hasOwnProperty', 'null'];

  test('of the language itself are run ids like any other', async () => {
    for (const name of NAMES) {
      const told = await ask(CHAT, bodyOf(CHAT), { 'x-rungate-run-id': name });
      expect([told.status, told.headers.get('x-rungate-run-id')]).toEqual([200, name]);
      const shown = JSON.parse((await ask(`/v1/runs/${name}`, null, {}, 'GET')).text);
      expect([shown.name, shown.stepCount]).toEqual([name, 1]);
    }
  });

  test('of the language itself are no models, responses or members', async () => {
    for (const name of NAMES) {
      for (const model of [name, `openai/${name}`, `${name}/${MODEL}`]) {
        expectRefused(await ask(CHAT, bodyOf(CHAT, { model })), 'openai', 403);
      }
      expectRefused(await ask(`/v1/responses/${name}`, null, {}, 'GET'), 'openai', 404);
      const previous = bodyOf('/v1/responses', { previous_response_id: name });
      expectRefused(await ask('/v1/responses', previous), 'openai', 403);
    }
    const polluted = bodyOf(CHAT).replace(
      /"model":"[^"]+",/,
      '"__proto__":{"model":"test-model"},',
    );
    expectRefused(await ask(CHAT, polluted), 'openai', 400);
  });

  test('of runs never become a header, however they are written', async () => {
    const name = fc.string({ unit: 'binary', minLength: 1, maxLength: 40 });
    await fc.assert(
      fc.asyncProperty(name, async (text) => {
        const segment = encodeURIComponent(text.toWellFormed());
        fc.pre(!/^(?:\.|%2e){1,2}$/i.test(segment));
        const told = await ask(`/r/${segment}${CHAT}`, bodyOf(CHAT));
        expect(told.headers.get('x-evil')).toBeNull();
        if (told.status !== 200) return expectRefused(told, 'openai', 400);
        expect(decodeURI(told.headers.get('x-rungate-run-id') ?? '')).toBe(text.toWellFormed());
      }),
      { numRuns: 60 },
    );
    for (const evil of ['a\r\nx-evil: 1', 'a\u0000', 'a\u007f', 'x'.repeat(257)]) {
      const body = bodyOf(CHAT, { metadata: { session_id: evil } });
      expectRefused(await ask(CHAT, body), 'openai', 400);
      expectRefused(await ask(CHAT, bodyOf(CHAT, { prompt_cache_key: evil })), 'openai', 400);
    }
  });

  test('of models that are too long are refused and kept nowhere', async () => {
    const model = 'm'.repeat(1_000_000);
    for (const path of PATHS) {
      const told = await ask(path, bodyOf(path, { model }));
      expectRefused(told, dialectOf(path), 400);
      expect(told.text.length).toBeLessThan(2_000);
    }
    const counted = await ask('/v1/messages/count_tokens', bodyOf('/v1/messages', { model }));
    expectRefused(counted, 'anthropic', 400);
    const [row] = await withDatabase((database) =>
      database.read('select max(length(asked) + length(answered)) as longest from steps', []),
    );
    expect(Number(row?.longest)).toBeLessThan(5_000);
  });
});

async function withDatabase<T>(
  work: (database: Awaited<ReturnType<Deployment['database']>>) => Promise<T>,
): Promise<T> {
  const database = await deployment.database();
  try {
    return await work(database);
  } finally {
    await database.close();
  }
}

describe('hops', () => {
  test("what would have an upstream serve another route, host or account isn't passed on", async () => {
    const headers = {
      'x-http-method-override': 'DELETE',
      'x-method-override': 'DELETE',
      'x-original-url': '/v1/files',
      'x-rewrite-url': '/v1/files',
      'x-original-host': 'evil.example',
      'x-forwarded-host': 'evil.example',
      'x-host': 'evil.example',
      'x-portkey-custom-host': 'https://evil.example',
      'helicone-target-url': 'https://evil.example',
      'x-litellm-api-base': 'https://evil.example',
      'openai-organization': 'org-evil',
      'openai-project': 'evil',
      'api-key': 'evil',
      'x-goog-api-key': 'evil',
      cookie: 'evil=1',
      'proxy-authorization': 'Basic evil',
      'x-rungate-anything': 'evil',
    };
    const told = await ask(CHAT, bodyOf(CHAT), headers);
    expect([told.status, told.forwarded]).toEqual([200, 1]);
    const received = upstream.requests.at(-1);
    const passed = Object.keys(headers).filter((name) => received?.header(name) !== undefined);
    expect(passed).toEqual([]);
    expect(received?.path).toBe(CHAT);
  });

  test("the caller's token isn't passed on, whatever header it stands in too", async () => {
    const headers = {
      'x-auth-token': deployment.token,
      'x-access-key': `Token ${deployment.token}`,
      'x-trace': 'rg_agt_ is how tokens begin',
    };
    const told = await ask(CHAT, bodyOf(CHAT), headers);
    expect([told.status, told.forwarded]).toEqual([200, 1]);
    const received = upstream.requests.at(-1);
    const passed = Object.keys(headers).filter((name) => received?.header(name) !== undefined);
    expect(passed).toEqual(['x-trace']);
  });

  test('a Connection that names our own headers takes none of them away', async () => {
    const named =
      'Connection: close, Authorization, Content-Length, Accept-Encoding, X-Api-Key\r\n';
    const answer = await exchange(rawCall({ headers: named }), 2_000);
    expect(statusesIn(answer)).toEqual([200]);
    const received = upstream.requests.at(-1);
    expect(received?.header('authorization')).toBe('Bearer sk-upstream');
    expect(received?.header('accept-encoding')).toBe('identity');
    expect(received?.text()).toBe(bodyOf(CHAT));
  });
});

describe('what others own', () => {
  test('answers like what does not exist', async () => {
    await withNewToken('other', async (other) => {
      const run = { 'x-rungate-run-id': 'private' };
      const made = await ask('/v1/responses', bodyOf('/v1/responses'), run);
      const { id } = JSON.parse(made.text) as { id: string };
      const runId = (await withDatabase((database) =>
        database.first('select id from runs where name = ?1', ['private']),
      ))!.id;
      const auth = { authorization: `Bearer ${other}` };
      const missing = await ask('/v1/responses/resp_none', null, auth, 'GET');
      for (const [method, path] of [
        ['GET', `/v1/responses/${id}`],
        ['DELETE', `/v1/responses/${id}`],
        ['POST', `/v1/responses/${id}/cancel`],
        ['GET', `/v1/responses/${id}/input_items`],
      ] as const) {
        const told = await ask(path, null, auth, method);
        expectRefused(told, 'openai', 404);
        expect(told.text).toBe(missing.text);
      }
      const none = await ask('/v1/runs/none', null, auth, 'GET');
      for (const name of ['private', String(runId)]) {
        for (const path of [`/v1/runs/${name}`, `/v1/runs/${name}/steps`]) {
          const told = await ask(path, null, auth, 'GET');
          expectRefused(told, 'openai', 404);
          expect(told.text).toBe(none.text);
        }
        expectRefused(await ask(`/v1/runs/${name}/complete`, null, auth), 'openai', 404);
      }
      const body = bodyOf('/v1/responses', { previous_response_id: id });
      expectRefused(await ask('/v1/responses', body, auth), 'openai', 403);
    });
  });

  test('is not reached by way of a conversation, which nobody here can have made', async () => {
    for (const conversation of ['conv_1', { id: 'conv_1' }, ['conv_1'], 1, true]) {
      const body = bodyOf('/v1/responses', { model: 'gpt-4.1-nano', conversation });
      expectRefused(await ask('/v1/responses', body), 'openai', 403);
    }
  });

  test('is not reached by an id of another type', async () => {
    // Of a model whose window is known, hidden input alone is no reason to refuse.
    const model = 'gpt-4.1-nano';
    for (const previous of [['resp_1'], { id: 'resp_1' }, 1, true, false, '']) {
      const body = bodyOf('/v1/responses', { model, previous_response_id: previous });
      expectRefused(await ask('/v1/responses', body), 'openai', previous === '' ? 403 : 400);
    }
  });
});

async function withNewToken(agent: string, work: (token: string) => Promise<void>): Promise<void> {
  const rotate = ['agent', 'token', 'rotate', agent, '--org', 'acme', '--json'];
  await work((JSON.parse((await deployment.cli(...rotate)).stdout) as { token: string }).token);
}

interface ShownStep {
  readonly kind: string;
  readonly outcome: string | null;
  readonly heldNanos: number;
  readonly spentNanos: number;
  readonly settledAt: number | null;
}

async function stepsOf(run: string): Promise<readonly ShownStep[]> {
  const { text } = await ask(`/v1/runs/${run}/steps`, null, {}, 'GET');
  return (JSON.parse(text) as { steps: ShownStep[] }).steps;
}

async function settledSteps(run: string): Promise<readonly ShownStep[]> {
  for (let turn = 0; turn < 200; turn++) {
    const steps = await stepsOf(run);
    if (steps.length > 0 && steps.every(({ settledAt }) => settledAt !== null)) return steps;
    await Bun.sleep(20);
  }
  throw new Error(`the steps of ${run} were not settled`);
}

describe('money', () => {
  test('a response in the making keeps its hold while it is listed, or failed to be read', async () => {
    const run = { 'x-rungate-run-id': 'making' };
    const body = bodyOf('/v1/responses', { background: true });
    const { id } = JSON.parse((await ask('/v1/responses', body, run)).text) as { id: string };
    const listing = { 'x-rungate-run-id': 'listing' };
    const listed = await ask(`/v1/responses/${id}/input_items`, null, listing, 'GET');
    expect(listed.status).toBe(200);
    upstream.script({ error: 500 });
    await ask(`/v1/responses/${id}`, null, listing, 'GET');
    upstream.script({ error: 500 });
    await ask(`/v1/responses/${id}`, null, listing, 'DELETE');
    const [made] = await stepsOf('making');
    expect(made).toMatchObject({ settledAt: null });
    expect(made?.heldNanos).toBeGreaterThan(0);
    for (let turn = 0; turn < 2; turn++) await ask(`/v1/responses/${id}`, null, listing, 'GET');
    const [settled] = await settledSteps('making');
    expect(settled?.outcome).toBe('ok');
  });

  test('leaving before the end does not make thinking free', async () => {
    upstream.script({ chunkDelayMs: 20, endless: true });
    const more = { max_tokens: 4_000, stream: true, thinking: { type: 'adaptive' } };
    const leaving = new AbortController();
    const response = await fetch(`${deployment.url}/v1/messages`, {
      method: 'POST',
      body: bodyOf('/v1/messages', more),
      headers: {
        'x-api-key': deployment.token,
        'anthropic-version': '2023-06-01',
        'x-rungate-run-id': 'thinking',
      },
      signal: leaving.signal,
    });
    await response.body?.getReader().read();
    leaving.abort();
    const [step] = await settledSteps('thinking');
    // 4,000 tokens of output at $4 a million.
    expect(step?.spentNanos).toBeGreaterThanOrEqual(16_000_000);
  });
});

describe('on Deno', () => {
  test('hostile calls are refused all the same', async () => {
    const deno = await deploy({ runtime: 'deno', upstreamUrl: upstream.url });
    const before = upstream.requests.length;
    const bun = deployment;
    deployment = deno;
    try {
      for (const [what, make] of Object.entries(BODIES)) {
        if (what.includes('million')) continue;
        expectRefused(await ask(CHAT, make(bodyOf(CHAT))), 'openai', 400);
      }
      for (const target of TARGETS) await expectStopped(rawCall({ target }));
      await expectHostsStopped();
      await expectStopped(rawCall({ target: '/v1/files', host: 'Host: \r\n' }));
      for (const framing of [
        'Content-Length: 6\r\nTransfer-Encoding: chunked\r\n',
        'Transfer-Encoding: xchunked\r\n',
        'Content-Length: -1\r\n',
      ]) {
        await expectStopped(rawCall({ framing }));
      }
      const held = bodyOf(CHAT, { stream: 'yes' });
      expectRefused(await ask(CHAT, held, { 'x-rungate-run-id': 'd' }), 'openai', 400);
      const run = await ask('/v1/runs/d', null, {}, 'GET');
      expect(JSON.parse(run.text)).toMatchObject({ heldNanos: 0 });
      expect(upstream.requests.length).toBe(before);
      expect((await ask(CHAT, bodyOf(CHAT))).status).toBe(200);
      expect(deno.logs()).not.toContain('"level":"error"');
    } finally {
      deployment = bun;
      await deno.stop();
    }
  }, 60_000);
});
