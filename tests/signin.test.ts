/** Signing in by letter: who gets a link, that it works once, and what the session's cookie is. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import fc from 'fast-check';
import { listAudit } from '../db/audit.ts';
import { removeMember } from '../db/members.ts';
import { IDLE_MS } from '../db/sessions.ts';
import { LINK_MS, MAX_LINKS } from '../db/signin.ts';
import type { Config } from '../functions/config.ts';
import { makeLog } from '../functions/log.ts';
import { Mailer } from '../functions/mail.ts';
import type { Services } from '../functions/services.ts';
import { Browser } from './browser.ts';
import { startMailbox } from './mailbox.ts';
import {
  enrol,
  HERE,
  linkFor,
  makeTown,
  newEmail,
  pageOf,
  query,
  settle,
  signIn,
  type Town,
  visit,
} from './people.ts';
import { deploy } from './rungate.ts';

setDefaultTimeout(60_000);

let town: Town;
beforeAll(async () => {
  town = await makeTown();
});
afterAll(() => town.clear());

function configured(config: Partial<Config>): Services {
  return { ...town.services, config: { ...town.services.config, ...config } };
}

const later = (millis: number): Services => ({
  ...town.services,
  now: () => Date.now() + millis,
});

describe('a link to sign in', () => {
  test('is mailed to a member, and opens one session in his org however often it is used', async () => {
    const { org, owner, name } = await settle(town);
    const browser = visit(town.services);
    const link = await linkFor(town, browser, owner);
    const tries = await Promise.all(
      Array.from({ length: 8 }, async () => {
        const one = visit(town.services);
        const { status } = await one.submit(link, { org: org.id });
        return { one, status };
      }),
    );
    const won = tries.filter(({ status }) => status === 200);
    expect(won).toHaveLength(1);
    expect(tries.map(({ status }) => status).filter((status) => status === 404)).toHaveLength(7);
    const page = await pageOf(won[0]!.one);
    expect(page).toContain(owner);
    expect(page).toContain(Bun.escapeHTML(name));
    expect((await browser.submit(link, { org: org.id })).status).toBe(404);
  });

  test('is not used up by whoever opens it, such as a scanner of mail', async () => {
    const { org, owner } = await settle(town);
    const link = await linkFor(town, visit(town.services), owner);
    for (let count = 0; count < 5; count++) {
      const scanner = visit(town.services);
      const opened = await scanner.open(link);
      expect(opened.status).toBe(200);
      expect(opened.headers.get('cache-control')).toBe('no-store');
      expect(scanner.cookies(new URL(HERE).host).size).toBe(0);
    }
    expect((await visit(town.services).submit(link, { org: org.id })).status).toBe(200);
  });

  test('is dead after fifteen minutes, and when it is mistyped', async () => {
    const { org, owner } = await settle(town);
    const link = await linkFor(town, visit(town.services), owner);
    const late = visit(later(LINK_MS));
    expect((await late.open(link)).status).toBe(404);
    expect((await late.submit(link, { org: org.id })).status).toBe(404);
    for (const bad of [`${link}a`, link.slice(0, -1), `${link.slice(0, -43)}${'A'.repeat(43)}`]) {
      expect((await visit(town.services).open(bad)).status).toBe(404);
      expect((await visit(town.services).submit(bad)).status).toBe(404);
    }
  });

  test('signs in to the org that is chosen, and to none that one is no member of', async () => {
    const email = newEmail();
    const [first, second] = [await settle(town, email), await settle(town, email)];
    const other = await settle(town);
    const link = await linkFor(town, visit(town.services), email);
    const page = await (await visit(town.services).open(link)).text();
    for (const { name } of [first, second]) expect(page).toContain(Bun.escapeHTML(name));
    expect(page).not.toContain(other.org.id);
    for (const fields of [{}, { org: '' }, { org: other.org.id }, { org: second.slug }]) {
      expect((await visit(town.services).submit(link, fields)).status).toBe(400);
    }
    const browser = visit(town.services);
    await browser.submit(link, { org: second.org.id });
    expect(await pageOf(browser)).toContain(Bun.escapeHTML(second.name));
  });

  test('is of no use to who has been removed meanwhile', async () => {
    const { org } = await settle(town);
    const { email, memberId } = await enrol(town, org, 'admin');
    const link = await linkFor(town, visit(town.services), email);
    await removeMember(org, 'operator', memberId);
    expect((await visit(town.services).submit(link, { org: org.id })).status).toBe(404);
  });
});

describe('asking for a link', () => {
  test('is answered alike for members, strangers and those who asked too often', async () => {
    const { owner } = await settle(town);
    const answers: string[] = [];
    for (const email of [newEmail(), ...Array<string>(MAX_LINKS + 2).fill(owner), newEmail()]) {
      const { status, headers, ...rest } = await visit(town.services)
        .submit(`${HERE}/sign-in`, { email })
        .then(async (response) => ({
          status: response.status,
          headers: [...response.headers],
          text: await response.text(),
        }));
      answers.push(JSON.stringify([status, headers, rest]));
    }
    expect(new Set(answers).size).toBe(1);
    await town.services.mailer.drain();
    expect(town.mailbox.received.filter(({ to }) => to === owner)).toHaveLength(MAX_LINKS);
  });

  test('writes to no address but that of a member, in whatever spelling it is asked for', async () => {
    const { owner } = await settle(town);
    const before = town.mailbox.received.length;
    const spelling = fc.constantFrom(owner, owner.toUpperCase(), ` ${owner} `);
    const asked = fc.oneof(
      spelling,
      fc.emailAddress(),
      fc.string(),
      fc.constantFrom(`${owner}, x@example.org`, `${owner}\r\nBcc: x@example.org`),
    );
    await fc.assert(
      fc.asyncProperty(asked, async (email) => {
        const { status } = await visit(town.services).submit(`${HERE}/sign-in`, { email });
        expect([200, 400]).toContain(status);
      }),
      { numRuns: 60 },
    );
    await town.services.mailer.drain();
    const letters = town.mailbox.received.slice(before);
    expect(letters.map(({ to }) => to).filter((to) => to !== owner)).toEqual([]);
  });

  test('is limited by the address it comes from, which is told when to try again', async () => {
    const browser = visit(town.services);
    const statuses: number[] = [];
    for (let count = 0; count < 33; count++) {
      const answer = await browser.submit(`${HERE}/sign-in`, { email: newEmail() });
      statuses.push(answer.status);
      if (answer.status === 429) {
        expect(Number(answer.headers.get('retry-after'))).toBeGreaterThan(0);
      }
    }
    expect(statuses).toEqual([...Array<number>(30).fill(200), 429, 429, 429]);
    const other = await visit(town.services).submit(`${HERE}/sign-in`, { email: newEmail() });
    expect(other.status).toBe(200);
  });

  test('tells nobody that the mail server is away', async () => {
    const gone = await startMailbox();
    const config = { ...town.services.config, mail: { smtpUrl: gone.url, from: 'a@example.com' } };
    await gone.stop();
    const lines: string[] = [];
    const mailer = new Mailer(
      config,
      makeLog('error', (line) => lines.push(line)),
    );
    const { owner } = await settle(town);
    const browser = visit({ ...town.services, mailer });
    expect((await browser.submit(`${HERE}/sign-in`, { email: owner })).status).toBe(200);
    await mailer.drain();
    expect(lines).toHaveLength(1);
    expect(lines[0]).not.toContain('mail-passw0rd-canary');
    expect(lines[0]).not.toContain('/sign-in/link/');
  });

  test('without a mail server shows the link in the log of development, and never in production', async () => {
    const { owner } = await settle(town);
    for (const isProduction of [false, true]) {
      const lines: string[] = [];
      const config = { ...town.services.config, mail: undefined, isProduction };
      const mailer = new Mailer(
        config,
        makeLog('debug', (line) => lines.push(line)),
      );
      const browser = visit({ ...town.services, config, mailer });
      const answer = await browser.submit(`${HERE}/sign-in`, { email: owner });
      expect(answer.status).toBe(isProduction ? 503 : 200);
      await mailer.drain();
      expect(/\/sign-in\/link\/[\w-]{43}\b/.test(lines.join())).toBe(!isProduction);
    }
  });
});

describe('a form', () => {
  const foreign = fc.constantFrom<Record<string, string>>(
    { origin: 'https://evil.example' },
    { origin: 'null' },
    { origin: 'http://127.0.0.1:8788' },
    { 'sec-fetch-site': 'cross-site' },
    { 'sec-fetch-site': 'same-site' },
    { origin: HERE, 'sec-fetch-site': 'cross-site' },
    { origin: 'https://evil.example', 'sec-fetch-site': 'same-origin' },
  );

  test('of another site signs nobody in or out, accepts nothing, and asks the API nothing', async () => {
    const { org, owner } = await settle(town);
    const browser = await signIn(town, org, owner);
    const link = await linkFor(town, visit(town.services), owner);
    const targets = fc.constantFrom(
      [`${HERE}/sign-in`, `email=${owner}`],
      [link, `org=${org.id}`],
      [`${HERE}/sign-out`, ''],
      [`${HERE}/invitations/${'A'.repeat(43)}`, ''],
      [`${HERE}/graphql`, JSON.stringify({ query: '{me{role}}' })],
      [`${HERE}/api/webhooks/whk_${'0'.repeat(26)}/rotate-secret`, ''],
    );
    const property = fc.asyncProperty(targets, foreign, async ([url, body], headers) => {
      const type = url?.endsWith('/graphql')
        ? 'application/json'
        : 'application/x-www-form-urlencoded';
      const response = await browser.ask(url!, {
        method: 'POST',
        headers: { 'content-type': type, ...headers },
        body: body!,
      });
      expect(response.status).toBe(403);
    });
    await fc.assert(property, { numRuns: 100 });
    expect(await pageOf(browser)).toContain(owner);
    expect((await visit(town.services).submit(link, { org: org.id })).status).toBe(200);
  });

  test('of another site is no matter for a token, which no browser sends by itself', async () => {
    const { adminToken } = await settle(town);
    const answer = await query(
      visit(town.services),
      '{ me { role } }',
      {},
      {
        authorization: `Bearer ${adminToken}`,
        origin: 'https://console.example',
        'sec-fetch-site': 'cross-site',
      },
    );
    expect(answer.status).toBe(200);
  });

  test('of another content type, or too large, is refused', async () => {
    for (const [type, body, status] of [
      ['text/plain', 'email=a@example.com', 400],
      ['multipart/form-data; boundary=x', '--x--', 400],
      ['application/x-www-form-urlencoded', `email=${'a'.repeat(20_000)}`, 413],
    ] as const) {
      const headers = { 'content-type': type };
      const asked = visit(town.services).ask(`${HERE}/sign-in`, { method: 'POST', headers, body });
      expect((await asked).status).toBe(status);
    }
  });
});

describe('a session', () => {
  test('is a cookie that scripts, plain http and other hosts can’t read or set', async () => {
    const { org, owner } = await settle(town);
    const grid = [
      [{}, /^rungate=[\w-]{43}; Path=\/; Max-Age=2592000; HttpOnly; SameSite=Lax$/],
      [{ publicUrl: 'https://gate.example.com' }, /^__Host-rungate=[\w-]{43}; Path=\/; .*Secure$/],
      [{ isProduction: true }, /^__Host-rungate=[\w-]{43}; Path=\/; .*HttpOnly.*Secure$/],
    ] as const;
    for (const [config, wanted] of grid) {
      const link = await linkFor(town, visit(town.services), owner);
      const browser = visit(configured(config));
      const body = new URLSearchParams({ org: org.id });
      const response = await browser.ask(link, { method: 'POST', body });
      expect(response.headers.getSetCookie()[0]).toMatch(wanted);
    }
  });

  test('on https is not taken from a cookie that another host could have set', async () => {
    const { org, owner } = await settle(town);
    const browser = await signIn(town, org, owner);
    const secret = browser.cookies(new URL(HERE).host).get('rungate')!;
    const secure = visit(configured({ publicUrl: 'https://gate.example.com' }));
    const jar = secure.cookies(new URL(HERE).host);
    jar.set('rungate', secret);
    expect((await query(secure, '{ me { role } }')).status).toBe(401);
    jar.set('__Host-rungate', secret);
    expect((await query(secure, '{ me { role } }')).status).toBe(200);
  });

  test('ends with signing out at once, for its cookie too, and the trail has both', async () => {
    const { org, owner } = await settle(town);
    const browser = await signIn(town, org, owner);
    const secret = browser.cookies(new URL(HERE).host).get('rungate')!;
    expect((await query(browser, '{ me { role } }')).status).toBe(200);
    expect((await browser.submit(`${HERE}/sign-out`)).status).toBe(200);
    expect(browser.cookies(new URL(HERE).host).size).toBe(0);
    browser.cookies(new URL(HERE).host).set('rungate', secret);
    expect((await query(browser, '{ me { role } }')).status).toBe(401);
    const actions = (await listAudit(org, { limit: 10 })).map(({ action }) => action);
    expect(actions.slice(0, 2)).toEqual(['session.revoke', 'session.create']);
  });

  test('ends after twelve hours without a request, and leads to signing in again', async () => {
    const { org, owner } = await settle(town);
    const browser = await signIn(town, org, owner);
    const late = visit(later(IDLE_MS));
    const host = new URL(HERE).host;
    late.cookies(host).set('rungate', browser.cookies(host).get('rungate')!);
    expect(await pageOf(late)).toContain('Send me a link');
    expect(await pageOf(browser)).toContain(owner);
  });
});

describe.each(['bun', 'deno'] as const)('on %s', (runtime) => {
  test('a person signs in by letter and out again, and the log knows no secret', async () => {
    const mailbox = await startMailbox();
    const env = { RUNGATE_SMTP_URL: mailbox.url, RUNGATE_MAIL_FROM: 'rungate@example.com' };
    const rungate = await deploy({ runtime, env });
    try {
      const browser = new Browser();
      const asked = await browser.submit(`${rungate.url}/sign-in`, { email: 'owner@example.com' });
      expect(asked.status).toBe(200);
      const letter = await mailbox.next('owner@example.com');
      const path = /\/sign-in\/link\/(?<secret>[\w-]{43})\b/.exec(letter.text)!;
      const page = await browser.submit(rungate.url + path[0]);
      expect(await page.text()).toContain('owner@example.com');
      const secret = browser.cookies(new URL(rungate.url).host).get('rungate')!;
      await browser.submit(`${rungate.url}/sign-out`);
      for (const canary of [secret, path.groups!.secret!, 'mail-passw0rd-canary']) {
        expect(rungate.logs()).not.toContain(canary);
      }
    } finally {
      await rungate.stop();
      await mailbox.stop();
    }
  });
});
