/** Signing in through an identity provider: a certified one, and one that lies in every way. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { exportJWK, generateKeyPair, type JWTPayload, SignJWT, UnsecuredJWT } from 'jose';
import Provider from 'oidc-provider';
import { listAudit } from '../db/audit.ts';
import { invite } from '../db/invitations.ts';
import { findMember } from '../db/members.ts';
import { ATTEMPT_MS, putOidc } from '../db/signin.ts';
import { makeApp } from '../functions/app.ts';
import type { Services } from '../functions/services.ts';
import { Browser } from './browser.ts';
import {
  enrol,
  HERE,
  makeTown,
  newEmail,
  type Place,
  pageOf,
  settle,
  type Town,
} from './people.ts';
import { freePort } from './process.ts';
import { deploy } from './rungate.ts';

setDefaultTimeout(60_000);

const CALLBACK = `${HERE}/sign-in/oidc/callback`;
const CLIENT = { clientId: 'rungate', secret: 'canary-of-the-client', domains: ['example.com'] };
const isBack = (url: URL) => url.href.startsWith(CALLBACK);

let town: Town;
beforeAll(async () => {
  town = await makeTown({ RUNGATE_EGRESS_ALLOW: '127.0.0.1/32' });
});
afterAll(() => town.clear());

let visitors = 0;

/** A browser that reaches Rungate in this process, and everybody else over the network. */
function visitBoth(services: Services = town.services): Browser {
  const address = `127.9.${(++visitors >> 8) & 255}.${visitors & 255}`;
  const app = makeApp(services);
  return new Browser((request) =>
    request.url.startsWith(HERE) ? app(request, { address }) : fetch(request),
  );
}

/** An org that signs in through an issuer. */
async function orgAt(issuer: string, owner = newEmail()): Promise<Place> {
  const place = await settle(town, owner);
  const { master } = town.services;
  await putOidc(place.org, master, 'operator', { ...CLIENT, issuer }, Date.now());
  return place;
}

/** The last thing that the audit trail says of signing in. */
async function lastEntry({ org }: Place) {
  const [entry] = await listAudit(org, { limit: 1, action: 'session.create' });
  const { after } = JSON.parse(entry!.payload!.text) as { after?: { rule?: string } };
  return [entry!.outcome, after?.rule];
}

/** What the certified provider says of its accounts, by what is typed as the login. */
const accounts = new Map<string, object>();

async function listen(handle: Parameters<typeof createServer>[1], port = 0): Promise<Server> {
  const server = createServer(handle as never).listen(port, '127.0.0.1');
  await once(server, 'listening');
  return server;
}

const urlOf = (server: Server) => `http://127.0.0.1:${(server.address() as AddressInfo).port}`;

function configure(conformIdTokenClaims: boolean): object {
  return {
    clients: [
      {
        client_id: CLIENT.clientId,
        client_secret: CLIENT.secret,
        redirect_uris: [CALLBACK],
        response_types: ['code'],
        grant_types: ['authorization_code'],
      },
    ],
    claims: { openid: ['sub'], email: ['email', 'email_verified'] },
    conformIdTokenClaims,
    pkce: { required: () => true },
    cookies: { keys: ['a key of the test'] },
    findAccount: (_context: unknown, id: string) => ({
      accountId: id,
      claims: () => ({ sub: id, ...accounts.get(id) }),
    }),
  };
}

/** Types the login into the provider's pages, agrees, and stops before coming back. */
async function passProvider(browser: Browser, slug: string, login: string): Promise<string> {
  let page = await browser.open(`${HERE}/sign-in/oidc/${slug}`);
  for (const prompt of ['login', 'consent']) {
    const text = await page.text();
    const action = /action="(?<url>[^"]+)"/.exec(text)?.groups?.url;
    if (!action) throw new Error(`no form to ${prompt}: ${text}`);
    const body = new URLSearchParams({ prompt, login, password: 'any' });
    const answered = await browser.ask(action, { method: 'POST', body });
    page = await browser.follow(answered, action, isBack);
  }
  return page.headers.get('location') ?? '';
}

describe.each([
  ['in the ID token', false],
  ['at its userinfo endpoint', true],
])('a certified provider that tells addresses %s', (_where, conforms) => {
  let server: Server;
  beforeAll(async () => {
    let handle: ReturnType<Provider['callback']> | undefined;
    server = await listen((request, response) => void handle?.(request, response));
    handle = new Provider(urlOf(server), configure(conforms)).callback();
  });
  afterAll(() => {
    server.closeAllConnections();
    server.close();
  });

  const account = (email: string, claims: object = {}): string => {
    const login = `account${accounts.size}`;
    accounts.set(login, { email, email_verified: true, ...claims });
    return login;
  };

  test('is not begun by another site, which could sign a visitor in to an org of its own', async () => {
    const place = await orgAt(urlOf(server));
    const browser = visitBoth();
    const url = `${HERE}/sign-in/oidc/${place.slug}`;
    for (const site of ['cross-site', 'same-site']) {
      const page = await browser.ask(url, { headers: { 'sec-fetch-site': site } });
      expect([page.status, page.headers.get('location')]).toEqual([200, null]);
      expect(page.headers.getSetCookie()).toEqual([]);
      const link = /<a href="(?<path>[^"]+)">Go on/.exec(await page.text())?.groups?.path ?? '';
      expect(new URL(link, url).href).toBe(url);
    }
    for (const site of ['same-origin', 'none']) {
      const page = await browser.ask(url, { headers: { 'sec-fetch-site': site } });
      expect(page.status).toBe(303);
    }
  });

  async function attempt(place: Place, login: string, browser = visitBoth()) {
    const back = await passProvider(browser, place.slug, login);
    const response = await browser.open(back);
    return { browser, status: response.status, text: await response.text() };
  }

  test('signs a member in, by his address at first and by his subject from then on', async () => {
    const place = await orgAt(urlOf(server));
    const login = account(place.owner.toUpperCase());
    for (let count = 0; count < 2; count++) {
      const { browser, status, text } = await attempt(place, login);
      expect([status, text.includes(place.owner)]).toEqual([200, true]);
      expect([...browser.cookies(new URL(HERE).host).keys()]).toEqual(['rungate']);
    }
    expect(await lastEntry(place)).toEqual(['allowed', undefined]);
    const { email } = await enrol(town, place.org, 'viewer');
    accounts.set(login, { email, email_verified: true });
    expect((await attempt(place, login)).text).toContain(place.owner);
  });

  test('lets the invited join in the role that was offered, and nobody else', async () => {
    const place = await orgAt(urlOf(server));
    const email = newEmail();
    const refused = await attempt(place, account(email));
    expect(refused.status).toBe(403);
    expect(await lastEntry(place)).toEqual(['refused', 'sign_in.member']);
    await invite(place.org, 'operator', email, 'member', Date.now());
    const { status, text } = await attempt(place, account(email));
    expect([status, text.includes(email), text.includes('member')]).toEqual([200, true, true]);
    expect((await findMember(place.org, email))?.role).toBe('member');
  });

  test.each([
    ['unverified', { email_verified: false }, 'sign_in.email_verified'],
    ['verified by a word only', { email_verified: 'true' }, 'sign_in.email_verified'],
    ['missing', { email: undefined }, 'sign_in.email_verified'],
    ['of another domain', { email: 'owner@example.com.evil.example' }, 'sign_in.domain'],
    ['of a domain below', { email: 'owner@sub.example.com' }, 'sign_in.domain'],
  ])('signs nobody in whose address is %s', async (_what, claims, rule) => {
    const place = await orgAt(urlOf(server));
    const { browser, status } = await attempt(place, account(place.owner, claims));
    expect(status).toBe(403);
    expect(await lastEntry(place)).toEqual(['refused', rule]);
    expect(await pageOf(browser)).toContain('Send me a link');
  });

  test('signs in to the org that asked, however its answer is bent', async () => {
    const place = await orgAt(urlOf(server));
    const login = account(place.owner);
    const statusOf = async (bend: (url: URL, browser: Browser) => string | Promise<string>) => {
      const browser = visitBoth();
      const back = new URL(await passProvider(browser, place.slug, login));
      return (await browser.open(await bend(back, browser))).status;
    };
    const set = (name: string, value: string) => (url: URL) => {
      url.searchParams.set(name, value);
      return url.href;
    };
    expect(await statusOf(({ href }) => href)).toBe(200);
    expect(await statusOf(set('state', 'another'))).toBe(403);
    expect(await statusOf(set('state', ''))).toBe(403);
    expect(await statusOf(set('code', 'another'))).toBe(403);
    expect(await statusOf(set('iss', 'https://evil.example'))).toBe(403);
    expect(await statusOf(set('error', 'access_denied'))).toBe(403);
    const twice = await statusOf(async ({ href }, browser) => {
      await browser.open(href);
      return href;
    });
    expect(twice).toBe(403);
  });

  test('answers the browser that asked, within ten minutes, and no other', async () => {
    const place = await orgAt(urlOf(server));
    const login = account(place.owner);
    const back = await passProvider(visitBoth(), place.slug, login);
    expect((await visitBoth().open(back)).status).toBe(403);
    const now = () => Date.now() + ATTEMPT_MS;
    const slow = visitBoth();
    const late = await passProvider(slow, place.slug, login);
    const other = visitBoth({ ...town.services, now });
    for (const [name, value] of slow.cookies(new URL(HERE).host)) {
      other.cookies(new URL(HERE).host).set(name, value);
    }
    expect((await other.open(late)).status).toBe(403);
  });
});

/** A provider that answers as it is told. */
interface Liar {
  readonly url: string;
  /** Changes the claims of the next ID token. */
  claims: (claims: JWTPayload) => JWTPayload;
  /** Makes the ID token of claims. */
  sign: (claims: JWTPayload) => Promise<string>;
  /** Changes what it says of itself. */
  metadata: (metadata: Record<string, unknown>) => object;
  stop(): Promise<void>;
}

async function startLiar(email: string): Promise<Liar & { key: CryptoKey }> {
  const { privateKey, publicKey } = await generateKeyPair('RS256');
  const jwk = { ...(await exportJWK(publicKey)), kid: 'one', alg: 'RS256', use: 'sig' };
  let asked = new URLSearchParams();
  const answer = async ({ url: target, method }: Request): Promise<Response> => {
    const { pathname, searchParams } = new URL(target);
    if (pathname === '/.well-known/openid-configuration') return Response.json(describeSelf());
    if (pathname === '/jwks') return Response.json({ keys: [jwk] });
    if (pathname === '/authorize') {
      asked = searchParams;
      const back = new URL(asked.get('redirect_uri')!);
      back.searchParams.set('code', 'a-code');
      back.searchParams.set('state', asked.get('state')!);
      return Response.redirect(back.href, 302);
    }
    if (pathname !== '/token' || method !== 'POST') return new Response('', { status: 404 });
    const token = { access_token: 'x', token_type: 'bearer', expires_in: 60 };
    return Response.json({ ...token, id_token: await liar.sign(liar.claims(honest())) });
  };
  const server = Bun.serve({ hostname: '127.0.0.1', port: 0, fetch: answer });
  const url = `http://127.0.0.1:${server.port}`;
  const describeSelf = () =>
    liar.metadata({
      ...{ issuer: url, authorization_endpoint: `${url}/authorize`, jwks_uri: `${url}/jwks` },
      ...{ token_endpoint: `${url}/token`, response_types_supported: ['code'] },
      ...{ subject_types_supported: ['public'] },
      id_token_signing_alg_values_supported: ['RS256', 'HS256', 'none'],
    });
  const honest = (): JWTPayload => {
    const now = Math.floor(Date.now() / 1_000);
    const who = { iss: url, aud: CLIENT.clientId, sub: 'one', email, email_verified: true };
    return { ...who, nonce: asked.get('nonce')!, iat: now, exp: now + 60 };
  };
  const liar = {
    ...{ url, key: privateKey },
    claims: (claims: JWTPayload) => claims,
    sign: (claims: JWTPayload) =>
      new SignJWT(claims).setProtectedHeader({ alg: 'RS256', kid: 'one' }).sign(privateKey),
    metadata: (metadata: Record<string, unknown>): object => metadata,
    stop: () => server.stop(true),
  };
  return liar;
}

describe('a provider that lies', () => {
  const owner = newEmail();
  let liar: Awaited<ReturnType<typeof startLiar>>;
  let place: Place;
  let usual: Pick<Liar, 'claims' | 'sign' | 'metadata'>;
  beforeAll(async () => {
    liar = await startLiar(owner);
    usual = { claims: liar.claims, sign: liar.sign, metadata: liar.metadata };
    place = await orgAt(liar.url, owner);
  });
  afterAll(() => liar.stop());

  async function statusWith(lie: Partial<Liar>): Promise<number> {
    Object.assign(liar, usual, lie);
    const response = await visitBoth().open(`${HERE}/sign-in/oidc/${place.slug}`);
    return response.status;
  }

  const now = () => Math.floor(Date.now() / 1_000);

  const TOKENS: Record<string, Partial<Liar>> = {
    'is for another client': { claims: (claims) => ({ ...claims, aud: 'another' }) },
    'is for several, and another is authorized': {
      claims: (claims) => ({ ...claims, aud: [CLIENT.clientId, 'another'], azp: 'another' }),
    },
    'is of another issuer': { claims: (claims) => ({ ...claims, iss: 'https://evil.example' }) },
    'has expired': { claims: (claims) => ({ ...claims, iat: now() - 900, exp: now() - 600 }) },
    'has no expiry': { claims: ({ exp: _, ...claims }) => claims },
    'has no subject': { claims: ({ sub: _, ...claims }) => claims },
    'carries another nonce': { claims: (claims) => ({ ...claims, nonce: 'another' }) },
    'carries no nonce': { claims: ({ nonce: _, ...claims }) => claims },
    'is not signed': { sign: async (claims) => new UnsecuredJWT(claims).encode() },
    'is signed with the client’s secret': {
      sign: (claims) =>
        new SignJWT(claims)
          .setProtectedHeader({ alg: 'HS256', kid: 'one' })
          .sign(new TextEncoder().encode(CLIENT.secret.padEnd(32, '.'))),
    },
    'is signed with a key that the provider does not publish': {
      sign: async (claims) => {
        const { privateKey } = await generateKeyPair('RS256');
        return new SignJWT(claims)
          .setProtectedHeader({ alg: 'RS256', kid: 'one' })
          .sign(privateKey);
      },
    },
    'was altered after it was signed': {
      async sign(claims) {
        const [head, , signature] = (await usual.sign(claims)).split('.');
        const altered = { ...claims, sub: 'another' };
        const body = Buffer.from(JSON.stringify(altered)).toString('base64url');
        return [head, body, signature].join('.');
      },
    },
    'is none': { sign: async () => 'no token' },
  };

  test('is believed as long as it does not', async () => {
    expect(await statusWith({})).toBe(200);
  });

  test.each(Object.entries(TOKENS))('is refused when its token %s', async (_what, lie) => {
    expect(await statusWith(lie)).toBe(403);
    expect(await lastEntry(place)).toEqual(['refused', 'sign_in.token']);
  });

  test('replays no token: the nonce of one sign-in is of no use to the next', async () => {
    let first = '';
    await statusWith({
      async sign(claims) {
        first = await usual.sign(claims);
        return first;
      },
    });
    expect(await statusWith({ sign: async () => first })).toBe(403);
  });

  const METADATA: Record<string, (metadata: Record<string, unknown>) => object> = {
    'is another issuer': (metadata) => ({ ...metadata, issuer: 'https://evil.example' }),
    'wants people to go where nobody may': (metadata) => ({
      ...metadata,
      authorization_endpoint: 'http://169.254.169.254/authorize',
    }),
    'wants people to run a script': (metadata) => ({
      ...metadata,
      authorization_endpoint: 'javascript:alert(1)',
    }),
    'has no page': ({ authorization_endpoint: _, ...metadata }) => metadata,
    'is huge': (metadata) => ({ ...metadata, filler: 'x'.repeat(600_000) }),
  };

  test.each(Object.entries(METADATA))('is refused when it says it %s', async (_what, metadata) => {
    expect(await statusWith({ metadata })).toBe(502);
  });

  test.each([
    ['token_endpoint', 'http://10.0.0.1/token'],
    ['jwks_uri', 'http://169.254.169.254/jwks'],
  ])('can’t have Rungate call a private address as its %s', async (name, url) => {
    expect(await statusWith({ metadata: (metadata) => ({ ...metadata, [name]: url }) })).toBe(403);
  });
});

test('an org without a provider answers like one that does not exist', async () => {
  const { slug } = await settle(town);
  const texts = await Promise.all(
    [slug, 'nobody', '%00', 'a b', 'x'.repeat(500)].map(async (name) => {
      const response = await visitBoth().open(`${HERE}/sign-in/oidc/${encodeURIComponent(name)}`);
      return [response.status, await response.text()];
    }),
  );
  expect(new Set(texts.map(String)).size).toBe(1);
  expect(texts[0]?.[0]).toBe(404);
});

test('a provider at a private address that the operator has not allowed is not called', async () => {
  const place = await orgAt('https://10.0.0.1');
  const response = await visitBoth().open(`${HERE}/sign-in/oidc/${place.slug}`);
  expect(response.status).toBe(502);
});

describe.each(['bun', 'deno'] as const)('on %s', (runtime) => {
  test('an owner signs in by the link of the log, sets the provider, and comes back through it', async () => {
    const liar = await startLiar('owner@example.com');
    const rungate = await deploy({ runtime, env: { PORT: String(await freePort()) } });
    try {
      const browser = new Browser();
      await browser.submit(`${rungate.url}/sign-in`, { email: 'owner@example.com' });
      const shown = await rungate.servers[0]!.next(
        /(?<link>http:[^\s"\\]+\/sign-in\/link\/[\w-]{43})/,
      );
      expect((await browser.submit(shown.groups!.link!)).status).toBe(200);
      const { secret: clientSecret, ...rest } = CLIENT;
      const input = { ...rest, clientSecret, issuer: liar.url };
      const query =
        'mutation M($input: SignInConfigSetInput!) { signInConfigSet(input: $input) { errors { message } } }';
      const set = await browser.ask(`${rungate.url}/graphql`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ query, variables: { input } }),
      });
      expect(await set.json()).toEqual({ data: { signInConfigSet: { errors: [] } } });
      await browser.submit(`${rungate.url}/sign-out`);
      const back = await browser.open(`${rungate.url}/sign-in/oidc/acme`);
      expect(await back.text()).toContain('owner@example.com');
      expect(rungate.logs()).not.toContain(clientSecret);
    } finally {
      await rungate.stop();
      await liar.stop();
    }
  });
});
