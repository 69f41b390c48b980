/** The public pages, what they claim, and the edge that every answer passes. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { openDatabase } from '../db/client.ts';
import { newToken } from '../db/seal.ts';
import { makeApp } from '../functions/app.ts';
import { boot, shutDown } from '../functions/boot.ts';
import { listen } from '../functions/bun.ts';
import { RECORDS, TOPICS } from '../functions/claims.ts';
import { type Config, ConfigError, readConfig } from '../functions/config.ts';
import { makeLog } from '../functions/log.ts';
import { tellContact } from '../functions/pages.ts';
import type { Services } from '../functions/services.ts';
import manifest from '../package.json' with { type: 'json' };
import { parseCidrList } from '../schema/address.ts';
import { type Deployment, deploy } from './rungate.ts';
import { stages } from './runtimes.ts';
import { startUpstream, UPSTREAM_KEY, type Upstream } from './upstream.ts';

setDefaultTimeout(60_000);

const ROOT = join(import.meta.dir, '..');
const LOCAL = { address: '127.0.0.1' };
const CONTACT = 'mailto:security@example.com';
const PUBLIC_URL = 'https://gate.example.com';

let upstream: Upstream;
let deployment: Deployment;
let services: Services;
/** The same process after its database has gone. */
let stranded: Services;

beforeAll(async () => {
  upstream = await startUpstream();
  deployment = await deploy({ upstreamUrl: upstream.url, processes: 0 });
  const url = `file:${deployment.folder}/rungate.db`;
  services = await boot({
    RUNGATE_DATABASE_URL: url,
    RUNGATE_EGRESS_ALLOW: '127.0.0.1/32',
    RUNGATE_LOG: 'silent',
    RUNGATE_SECURITY_CONTACT: CONTACT,
    UPSTREAM_KEY,
  });
  const db = await openDatabase({ url });
  await db.close();
  stranded = { ...services, db };
});

afterAll(async () => {
  await shutDown(services, 0);
  await deployment.stop();
  await upstream.stop();
});

function configured(config: Partial<Config>): Services {
  return { ...services, config: { ...services.config, ...config } };
}

/** Asks for a path over the loopback, in this process. */
async function get(
  path: string,
  headers: Record<string, string> = {},
  on = services,
): Promise<Response> {
  return await makeApp(on)(new Request(`http://rungate${path}`, { headers }), LOCAL);
}

const readFile = (path: string) => readFileSync(join(ROOT, path), 'utf8');

/** Where a title stands that is certain to run: neither skipped nor in a comment. */
const TITLE =
  /^( *)(?:(?:test|describe)(?:\.each\(.*\))?\(|\]?(?: as const)?\)\(|promise: )\s*(['"`])((?:\\.|(?!\2).)*)\2,/gm;

/** The titles of a test file, each with those around it, joined by ` › `; biome indents them. */
function titlesOf(text: string): string[] {
  const around: { indent: number; title: string }[] = [];
  return [...text.matchAll(TITLE)].map(([, { length: indent } = '', , title = '']) => {
    while (around.length > 0 && around.at(-1)!.indent >= indent) around.pop();
    around.push({ indent, title });
    return around.map((one) => one.title).join(' › ');
  });
}

/** Whether a file has exactly one test at the end of this path of titles. */
function hasTest(text: string, path: string): boolean {
  const found = titlesOf(text).filter((title) => title === path || title.endsWith(` › ${path}`));
  return found.length === 1;
}

describe('a claim', () => {
  const claims = TOPICS.flatMap((topic) => topic.claims);

  test.each(claims.map((one) => [one.promise, one] as const))('is backed: %s', (_, one) => {
    expect([one.module, existsSync(join(ROOT, one.module))]).toEqual([one.module, true]);
    expect(one.testFile).toMatch(/^tests\/[\w-]+\.test\.ts$/);
    expect([one.test, hasTest(readFile(one.testFile), one.test)]).toEqual([one.test, true]);
  });

  test('is made once, and as a sentence', () => {
    const promises = claims.map(({ promise }) => promise);
    expect(new Set(promises).size).toBe(promises.length);
    for (const promise of promises) expect(promise).toMatch(/^[A-Z].*\.$/);
  });

  test('needs its test to be there, by its whole path, once, and not skipped', () => {
    const text = [
      `describe('a', () => {`,
      `  test('b', () => {});`,
      `  // test('gone', () => {});`,
      `  test.skip('left out', () => {});`,
      `  test.each([1])('c %d', () => {});`,
      `});`,
      `test('d', () => call('e', 1));`,
      `test('d', () => {});`,
    ].join('\n');
    expect(['a › b', 'b', 'a › c %d'].filter((path) => !hasTest(text, path))).toEqual([]);
    const wrong = ['a › d', 'x › b', 'gone', 'left out', 'd', 'e', ''];
    expect(wrong.filter((path) => hasTest(text, path))).toEqual([]);
  });
});

describe('the privacy page', () => {
  test('accounts for every table of the database, once', async () => {
    const made = await services.db.read(
      `select name from sqlite_master
       where type = 'table' and name <> 'migrations' and name not like '%sql%' order by name`,
      [],
    );
    const named = RECORDS.flatMap(({ tables }) => tables);
    expect(made.length).toBeGreaterThan(10);
    expect(named.toSorted()).toEqual(made.map(({ name }) => String(name)));
  });
});

/** What every answer carries, and nothing weaker. */
function expectEdge({ headers }: Response): void {
  const carried = Object.fromEntries(headers);
  expect(carried).toMatchObject({
    'strict-transport-security': 'max-age=31536000; includeSubDomains',
    'x-frame-options': 'DENY',
    'x-content-type-options': 'nosniff',
    'referrer-policy': 'strict-origin-when-cross-origin',
    'permissions-policy': expect.stringContaining('camera=()'),
  });
  const policy = String(carried['content-security-policy']).split('; ');
  expect(policy).toContain("default-src 'none'");
  expect(policy).toContain("frame-ancestors 'none'");
  const loosened = policy.filter((directive) => !/ 'none'$|^style-src 'self'$/.test(directive));
  expect(loosened).toEqual([]);
  const leaky = /^(access-control-|set-cookie$|server$|x-powered-by$)/;
  expect(Object.keys(carried).filter((name) => leaky.test(name))).toEqual([]);
}

const CHAT = '/v1/chat/completions';

function chat(members: object = {}): RequestInit {
  const messages = [{ role: 'user', content: 'hello' }];
  return {
    method: 'POST',
    headers: { authorization: `Bearer ${deployment.token}`, 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'test-model', max_tokens: 20, messages, ...members }),
  };
}

const authorized = () => ({ headers: { authorization: `Bearer ${deployment.token}` } });

/** A way to an answer: the path, what it answers with, and what is special about it. */
interface Way {
  readonly init?: () => RequestInit;
  readonly on?: () => Services;
  readonly from?: string;
}

const ways: readonly (readonly [path: string, status: number, what: string, way?: Way])[] = [
  ['/healthz', 200, 'plainly'],
  ['/healthz', 200, 'to HEAD', { init: () => ({ method: 'HEAD' }) }],
  ['/healthz', 503, 'without a database', { on: () => stranded }],
  ['/security', 200, 'plainly'],
  ['/security', 401, 'to POST', { init: () => ({ method: 'POST' }) }],
  ['/privacy', 200, 'plainly'],
  ['/status', 200, 'as a page'],
  ['/status', 200, 'as JSON', { init: () => ({ headers: { accept: 'application/json' } }) }],
  ['/status', 503, 'without a database', { on: () => stranded }],
  ['/pages.css', 200, 'plainly'],
  ['/.well-known/security.txt', 200, 'plainly'],
  [
    ...(['/.well-known/security.txt', 404, 'without a contact'] as const),
    { on: () => configured({ securityContact: undefined }) },
  ],
  ['/nowhere', 401, 'to strangers'],
  ['/v1/files', 403, 'to agents', { init: authorized }],
  ['/v1/models', 200, 'proxied', { init: authorized }],
  ['/v1/runs/none', 401, 'to strangers'],
  ['/v1/runs/none', 404, 'to agents', { init: authorized }],
  ['/v1/runs/none/steps', 404, 'to agents', { init: authorized }],
  ['/v1/runs/none/complete', 401, 'to strangers', { init: () => ({ method: 'POST' }) }],
  ['/demo/v1/models', 200, 'from the built-in upstream'],
  ['/demo/v1/none', 404, 'from the built-in upstream'],
  [CHAT, 200, 'proxied', { init: () => chat() }],
  [CHAT, 200, 'streamed', { init: () => chat({ stream: true }) }],
  [CHAT, 400, 'to what is no JSON', { init: () => ({ ...chat(), body: '{' }) }],
  [CHAT, 429, 'with an error of the upstream', { init: limited }],
  [CHAT, 401, 'to a preflight', { init: () => ({ method: 'OPTIONS' }) }],
  [
    ...(['/v1/runs/none', 500, 'where Rungate itself fails'] as const),
    { init: authorized, on: () => ({ ...services, now: broken }) },
  ],
  [
    ...(['/v1/models?a=1', 308, 'over plain http'] as const),
    { from: '203.0.113.5', on: () => configured({ publicUrl: PUBLIC_URL }) },
  ],
  [CHAT, 403, 'over plain http', { from: '203.0.113.5', init: () => chat() }],
];

function limited(): RequestInit {
  upstream.script({ error: 429 });
  return chat();
}

function broken(): never {
  throw new Error('broken');
}

describe('every answer', () => {
  test('carries the headers of the edge', async () => {
    for (const [path, status, what, { init, on, from = LOCAL.address } = {}] of ways) {
      const app = makeApp(on?.() ?? services);
      const response = await app(new Request(`http://rungate${path}`, init?.()), { address: from });
      await response.text();
      expect([path, what, response.status]).toEqual([path, what, status]);
      expectEdge(response);
    }
  });

  test('carries them where the Host is none', async () => {
    const request = { url: 'http://a b/security' } as Request;
    const response = await makeApp(services)(request, LOCAL);
    expect(response.status).toBe(400);
    expectEdge(response);
  });

  test('forbids even a stylesheet, unless it is a page', async () => {
    for (const [path, , , { on } = {}] of ways.filter(([, status]) => status === 200)) {
      const { headers } = await get(path, authorized().headers, on?.() ?? services);
      const isPage = headers.get('content-type')?.startsWith('text/html') ?? false;
      expect([path, headers.get('content-security-policy')?.includes('style-src')]).toEqual([
        path,
        isPage,
      ]);
    }
  });
});

describe('an error outside the application', () => {
  test('is logged by its place, and neither its text nor the request is told to anybody', async () => {
    const lines: string[] = [];
    const log = makeLog('info', (line) => lines.push(line));
    const told = 'canary-text';
    const other = await boot({
      RUNGATE_DATABASE_URL: `file:${deployment.folder}/other.db`,
      ...{ PORT: '0', RUNGATE_LOG: 'silent' },
    });
    const config = {
      ...other.config,
      get trustedProxies(): never {
        throw new TypeError(told);
      },
    };
    const listening = listen({ ...other, config, log });
    try {
      const response = await fetch(`${listening.url}/v1/${told}`);
      expect([response.status, await response.text()]).toEqual([500, 'internal error']);
      expectEdge(response);
      const [line] = lines.filter((each) => each.includes('"error"'));
      expect(JSON.parse(line ?? '{}')).toMatchObject({ level: 'error', error: 'TypeError' });
      expect(line).toContain('pages.test.ts');
      expect(lines.join('')).not.toContain(told);
    } finally {
      await listening.stop(0);
    }
  });
});

const PAGES = ['/security', '/privacy', '/status'];

describe.each(PAGES)('the page %s', (path) => {
  test('is whole HTML that loads nothing but our stylesheet and runs nothing', async () => {
    const response = await get(path);
    const text = await response.text();
    expect(response.headers.get('content-type')).toBe('text/html; charset=utf-8');
    expect(text).toStartWith('<!doctype html>\n<html lang="en">\n');
    expect(text).toContain('<meta name="viewport" content="width=device-width, initial-scale=1">');
    expect(text).not.toMatch(
      /<script|<style|<img|<iframe|<form|\s(style|on\w+|src)=|@import|url\(/i,
    );
    const loaded = [...text.matchAll(/<link ([^>]*)>/g)].map(([, attributes]) => attributes);
    expect(loaded).toEqual(['rel="stylesheet" href="pages.css"']);
    for (const once of [/<title>[^<]+ · Rungate<\/title>/g, /<h1>/g, /<main>/g, /aria-current/g]) {
      expect(text.match(once)).toHaveLength(1);
    }
  });

  test('leads to places that are there', async () => {
    const text = await (await get(path)).text();
    const places = [...text.matchAll(/href="([^"]*)"/g)].map(([, place = '']) => place);
    expect(places.length).toBeGreaterThan(3);
    for (const place of places.filter((one) => one !== CONTACT)) {
      // Relative, since a proxy may serve all of it under a path of its own.
      expect(place).toMatch(/^[a-z.]+$/);
      expect([place, (await get(`/${place}`)).status]).toEqual([place, 200]);
    }
  });
});

describe('/security', () => {
  test('shows every claim with its module and its test', async () => {
    const text = await (await get('/security')).text();
    const shown = text.replaceAll('&#39;', "'").replaceAll('&quot;', '"');
    for (const { title, claims } of TOPICS) {
      expect(shown).toContain(`<h2>${title}</h2>`);
      for (const { promise, module, testFile } of claims) {
        for (const part of [promise, module, testFile]) expect(shown).toContain(part);
      }
    }
  });

  test('escapes the contact that it shows', async () => {
    const securityContact = 'https://example.com/?a="><script>&b';
    const text = await (await get('/security', {}, configured({ securityContact }))).text();
    expect(text).not.toContain('<script>');
    expect(text).toContain('href="https://example.com/?a=&quot;&gt;&lt;script&gt;&amp;b"');
  });
});

describe('/status', () => {
  test.each([
    [undefined, 'text/html'],
    ['*/*', 'text/html'],
    ['text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8', 'text/html'],
    ['application/json;q=0.5, text/html', 'text/html'],
    ['application/json', 'application/json'],
    ['application/json, text/plain, */*', 'application/json'],
    ['text/html;q=0.5, application/json', 'application/json'],
  ])('asked for %s answers with %s', async (accept, type) => {
    const { headers } = await get('/status', accept === undefined ? {} : { accept });
    expect(headers.get('content-type')?.split(';')[0]).toBe(type);
    expect(headers.get('vary')).toBe('accept');
    expect(headers.get('cache-control')).toBe('no-store');
  });

  test.each([
    [() => services, 200, { status: 'ok', database: 'reachable' }],
    [() => stranded, 503, { status: 'unavailable', database: 'unreachable' }],
  ])('tells in both forms how it stands (%#)', async (on, status, told) => {
    const asData = await get('/status', { accept: 'application/json' }, on());
    expect([asData.status, await asData.json()]).toEqual([
      status,
      { ...told, version: manifest.version },
    ]);
    const asPage = await get('/status', {}, on());
    const text = await asPage.text();
    expect(asPage.status).toBe(status);
    for (const part of [`<dd>${told.database}</dd>`, manifest.version])
      expect(text).toContain(part);
  });
});

const label = fc.stringMatching(/^[a-z0-9]{1,20}$/);
const contacts = fc.oneof(
  fc.tuple(label, label).map(([user, host]) => `mailto:${user}%2Bsecurity@${host}.example`),
  fc.webUrl({ validSchemes: ['https'], withQueryParameters: true, withFragments: true }),
);

describe('security.txt', () => {
  /** The fields of a file as RFC 9116, section 4, has them: `name: value` on a line of its own. */
  function fieldsOf(text: string): Map<string, string[]> {
    expect(text).toMatch(/^([A-Za-z-]+: [\x21-\x7e]+\n)+$/);
    const fields = new Map<string, string[]>();
    for (const line of text.trimEnd().split('\n')) {
      const [name = '', value = ''] = line.split(': ');
      fields.set(name, [...(fields.get(name) ?? []), value]);
    }
    return fields;
  }

  test('is valid by RFC 9116, at any time and for any contact', async () => {
    const times = fc.integer({ min: Date.UTC(2024), max: Date.UTC(2200) });
    await fc.assert(
      fc.asyncProperty(contacts, times, async (contact, now) => {
        const { securityContact } = readConfig({ RUNGATE_SECURITY_CONTACT: contact });
        const on = { ...configured({ securityContact, publicUrl: PUBLIC_URL }), now: () => now };
        const response = tellContact(on);
        expect(response.headers.get('content-type')).toBe('text/plain; charset=utf-8');
        const { Expires, ...rest } = Object.fromEntries(fieldsOf(await response.text()));
        expect(rest).toEqual({
          Contact: [new URL(contact).href],
          'Preferred-Languages': ['en'],
          Canonical: [`${PUBLIC_URL}/.well-known/security.txt`],
          Policy: [`${PUBLIC_URL}/security`],
        });
        expect(Expires).toEqual([expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/)]);
        const aheadDays = (Date.parse(Expires![0]!) - now) / 86_400_000;
        expect(aheadDays).toBeGreaterThan(178);
        expect(aheadDays).toBeLessThan(365);
      }),
    );
  });

  test.each([undefined, 'http://gate.example.com'])(
    'has no links where the public URL is %s',
    async (publicUrl) => {
      const fields = fieldsOf(await tellContact(configured({ publicUrl })).text());
      expect([...fields.keys()]).toEqual(['Contact', 'Expires', 'Preferred-Languages']);
    },
  );

  test('is not there without a contact, in the words of an API', async () => {
    const on = configured({ securityContact: undefined });
    const response = await get('/.well-known/security.txt', {}, on);
    expect(response.status).toBe(404);
    expect(await response.json()).toMatchObject({ error: { code: 'rungate_not_found' } });
  });

  test.each([
    ...['security@example.com', 'mailto:', 'mailto:a', 'mailto:a@b@c', 'mailto:a@b?subject=x'],
    ...['mailto:a@b,c@d', 'mailto:a@b\nExpires: never', 'http://example.com', 'https://', 'tel:+1'],
    ...['https://u@example.com', 'https://u:p@example.com', 'https://a.example/\nContact: x'],
    ...[
      'https://a.example/ b',
      'javascript:alert(1)',
      'https:a.example',
      `https://a.example/${'x'.repeat(512)}`,
    ],
  ])('takes no contact such as %j', (contact) => {
    expect(() => readConfig({ RUNGATE_SECURITY_CONTACT: contact })).toThrow(ConfigError);
  });
});

describe('plain http', () => {
  const loopback = parseCidrList('127.0.0.0/8, ::1');
  const strangers = fc
    .oneof(fc.ipV4(), fc.ipV6())
    .filter((address) => !/(^|:)127\.|^[0:.]+1$|^[0:]+(ffff|7f[0-9a-f]{2}):/.test(address));
  const ask = async (address: string, init: RequestInit, config: Partial<Config>) =>
    await makeApp(configured(config))(new Request('http://rungate/privacy?a=1', init), { address });
  const asked = (proto?: string): RequestInit =>
    proto === undefined ? {} : { headers: { 'x-forwarded-proto': proto } };

  test('from any address but the loopback is refused, or redirected where it is safe', async () => {
    const methods = fc.constantFrom('GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS');
    const urls = fc.constantFrom(PUBLIC_URL, 'http://gate.example.com', undefined);
    await fc.assert(
      fc.asyncProperty(strangers, methods, urls, async (address, method, publicUrl) => {
        const response = await ask(address, { method }, { publicUrl });
        const isMoved = publicUrl === PUBLIC_URL && /^(GET|HEAD)$/.test(method);
        expect(response.status).toBe(isMoved ? 308 : 403);
        const target = isMoved ? `${PUBLIC_URL}/privacy?a=1` : null;
        expect(response.headers.get('location')).toBe(target);
        expectEdge(response);
      }),
    );
  });

  test.each(['127.0.0.1', '127.9.9.9', '::1', '::ffff:127.0.0.1'])(
    'from the loopback, %s, is answered',
    async (address) => {
      expect((await ask(address, {}, {})).status).toBe(200);
      const trustedProxies = parseCidrList('10.0.0.0/8');
      expect((await ask(address, {}, { trustedProxies })).status).toBe(200);
    },
  );

  test.each(['', 'unix', '127.0.0.1.evil', '127.0.0.256', '10.0.0.1, 127.0.0.1'])(
    'from what is no address, %j, is refused',
    async (address) => expect((await ask(address, {}, {})).status).toBe(403),
  );

  test('asks of whoever probes for health nothing, and tells it nothing else', async () => {
    const body = { run: () => services, text: '{"status":"ok"}', status: 200 };
    const away = { run: () => stranded, text: null, status: 503 };
    const probes = fc.record({
      address: fc.oneof(strangers, fc.constantFrom('', '10.0.0.7')),
      method: fc.constantFrom('GET', 'HEAD'),
      headers: fc.constantFrom<Record<string, string>>({}, { 'x-forwarded-proto': 'http' }),
      trustedProxies: fc.constantFrom([], parseCidrList('10.0.0.0/8')),
      publicUrl: fc.constantFrom(PUBLIC_URL, undefined),
      state: fc.constantFrom(body, away),
    });
    await fc.assert(
      fc.asyncProperty(probes, async ({ address, method, headers, state, ...config }) => {
        const on = { ...state.run(), config: { ...services.config, ...config } };
        const request = new Request('http://rungate/healthz', { method, headers });
        const response = await makeApp(on)(request, { address });
        expect(response.status).toBe(state.status);
        const text = await response.text();
        if (method === 'GET' && state.text !== null) expect(text).toBe(state.text);
        expect(text).not.toMatch(/rungate\.db|file:|SQLITE|\d\.\d\.\d/);
        expectEdge(response);
      }),
    );
    for (const [method, path] of [
      ...[
        ['POST', '/healthz'],
        ['DELETE', '/healthz'],
        ['GET', '/healthz/'],
        ['GET', '//healthz'],
      ],
      ...[
        ['GET', '/healthz/x'],
        ['GET', '/v1/models?/healthz'],
        ['GET', '/%68ealthz'],
      ],
    ] as const) {
      const request = new Request(`http://rungate${path}`, { method });
      const response = await makeApp(services)(request, { address: '203.0.113.5' });
      expect([method, path, response.status]).toEqual([method, path, 403]);
    }
  });

  test('is not made TLS by a header of a stranger', async () => {
    const proxies = fc.constantFrom('10.0.0.0/8', '10.0.0.0/8, ::1', '127.0.0.0/8');
    const sayings = fc.constantFrom(
      { 'x-forwarded-proto': 'https' },
      { 'x-forwarded-proto': 'https', 'x-forwarded-for': '127.0.0.1' },
      { forwarded: 'proto=https;for=127.0.0.1', 'x-forwarded-ssl': 'on' },
      { 'x-real-ip': '127.0.0.1', host: 'localhost' },
    );
    await fc.assert(
      fc.asyncProperty(strangers, proxies, sayings, async (address, list, headers) => {
        fc.pre(!/^10\./.test(address));
        const trustedProxies = parseCidrList(list);
        expect((await ask(address, { headers }, { trustedProxies })).status).toBe(403);
        expect((await ask(address, { headers }, {})).status).toBe(403);
      }),
    );
  });

  test.each([
    ['https', 200],
    ['http', 403],
    ['HTTPS, http', 403],
    ['https, http', 403],
    ['', 403],
    [undefined, 403],
  ] as const)('before a trusted proxy that says %j answers %d', async (proto, status) => {
    const trustedProxies = parseCidrList('10.0.0.0/8, 2001:db8::/32');
    for (const address of ['10.0.0.1', '::ffff:10.1.2.3', '2001:db8::7']) {
      expect((await ask(address, asked(proto), { trustedProxies })).status).toBe(status);
    }
  });

  test('that a proxy on the loopback tells of is refused too', async () => {
    const config = { trustedProxies: loopback };
    expect((await ask('127.0.0.1', asked('http'), config)).status).toBe(403);
    expect((await ask('127.0.0.1', asked('https'), config)).status).toBe(200);
  });
});

describe('tokens', () => {
  test('that are mistyped are refused while the database is away; well-formed ones need it', async () => {
    const status = async (token: string) =>
      (await get('/v1/models', { authorization: `Bearer ${token}` }, stranded)).status;
    const token = newToken('agent');
    expect(await status(token)).toBe(503);
    for (let at = 'rg_agt_'.length; at < token.length; at++) {
      const other = token[at] === 'a' ? 'b' : 'a';
      expect(await status(token.slice(0, at) + other + token.slice(at + 1))).toBe(401);
    }
  });
});

describe.each(stages({ env: { RUNGATE_SECURITY_CONTACT: CONTACT } }))('on $runtime', (stage) => {
  test('the pages are served, with the headers of the edge', async () => {
    for (const path of [...PAGES, '/pages.css', '/.well-known/security.txt']) {
      const response = await fetch(stage.rungate.url + path);
      expect([path, response.status]).toEqual([path, 200]);
      expect(await response.text()).toContain('\n');
      expectEdge(response);
    }
  });
});
