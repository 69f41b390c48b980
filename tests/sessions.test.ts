/** Sessions and signing in: what is kept of them, when they end, and that each link works once. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import fc from 'fast-check';
import { removeMember } from '../db/members.ts';
import { hashToken } from '../db/seal.ts';
import {
  endSession,
  findSession,
  IDLE_MS,
  listSessions,
  MAX_SESSION_MS,
  MAX_SESSIONS,
  openSession,
  purgeSessions,
} from '../db/sessions.ts';
import {
  ATTEMPT_MS,
  beginOidc,
  deleteOidc,
  identify,
  LINK_MS,
  MAX_LINKS,
  makeLink,
  openOidcSecret,
  putOidc,
  readOidc,
  takeLink,
  takeOidc,
} from '../db/signin.ts';
import type { MemberId } from '../schema/ids.ts';
import { addMember, as, type Ground, makeGround, makeOrg } from './orgs.ts';

setDefaultTimeout(60_000);

let ground: Ground;
beforeAll(async () => {
  ground = await makeGround();
});
afterAll(() => ground.clear());

const NOW = Date.UTC(2026, 10, 5, 12);
const ORIGIN = { method: 'link', address: '192.0.2.7', userAgent: 'Browser/1.0' } as const;

async function everything(): Promise<string> {
  const tables = await ground.db.read(`select name from sqlite_master where type = 'table'`, []);
  const rows = tables.map(({ name }) => ground.db.read(`select * from ${name}`, []));
  return JSON.stringify(await Promise.all(rows));
}

describe('a session', () => {
  test('speaks for its member, and is kept by the hash of its id only', async () => {
    const { org, owner } = await makeOrg(ground);
    const { id, secret } = (await openSession(org, owner.id, ORIGIN, NOW))!;
    expect(Uint8Array.fromBase64(secret, { alphabet: 'base64url' })).toHaveLength(32);
    expect(await findSession(ground.db, secret, NOW)).toMatchObject({
      ...{ id, orgId: org.id, memberId: owner.id, role: 'owner', email: owner.email },
    });
    const kept = await everything();
    expect(kept).not.toContain(secret);
    expect(kept).toContain(hashToken(secret));
  });

  test('ends when it was idle for twelve hours or is thirty days old, whatever its use', async () => {
    const { org, owner } = await makeOrg(ground);
    const pauses = fc.array(fc.integer({ min: 1, max: 20 * 3_600_000 }), { maxLength: 60 });
    const property = fc.asyncProperty(pauses, async (list) => {
      const { secret } = (await openSession(org, owner.id, ORIGIN, NOW))!;
      let now = NOW;
      let idleMs = 0;
      let live = true;
      for (const pause of list) {
        now += pause;
        idleMs = pause;
        live &&= idleMs < IDLE_MS && now < NOW + MAX_SESSION_MS;
        const found = (await findSession(ground.db, secret, now)) !== undefined;
        // Its use is noted every five minutes only.
        const isClose = Math.abs(idleMs - IDLE_MS) < 300_000;
        if (isClose) return;
        expect(found).toBe(live);
      }
    });
    await fc.assert(property, { numRuns: 30 });
  });

  test('ends with its member, and no id of another org or member ends it', async () => {
    const [one, other] = [await makeOrg(ground), await makeOrg(ground)];
    const member = await addMember(ground, one.org, 'viewer');
    const made = (await openSession(one.org, member.id, ORIGIN, NOW))!;
    expect(await endSession(other.org, as(other.owner), made.id, null)).toBe(false);
    expect(await endSession(one.org, as(one.owner), made.id, one.owner.id)).toBe(false);
    expect(await findSession(ground.db, made.secret, NOW)).toBeDefined();
    await removeMember(one.org, as(one.owner), member.id);
    expect(await findSession(ground.db, made.secret, NOW)).toBeUndefined();
  });

  test('of an owner is ended by owners only; of others by admins, too', async () => {
    const { org, owner } = await makeOrg(ground);
    const admin = await addMember(ground, org, 'admin');
    const member = await addMember(ground, org, 'member');
    const open = async (id: MemberId) => (await openSession(org, id, ORIGIN, NOW))!.id;
    expect(await endSession(org, as(admin), await open(owner.id), null)).toBe(false);
    expect(await endSession(org, as(admin), await open(member.id), null)).toBe(true);
    expect(await endSession(org, as(owner), await open(owner.id), null)).toBe(true);
  });

  test('is listed with where it was opened, and never more than so many are kept', async () => {
    const { org, owner } = await makeOrg(ground);
    for (let at = 0; at < MAX_SESSIONS + 3; at++) {
      await openSession(org, owner.id, ORIGIN, NOW + at);
    }
    const window = { limit: 1_000, isBackward: false };
    const { items } = await listSessions(org, owner.id, NOW + 100, window);
    expect(items).toHaveLength(MAX_SESSIONS);
    expect(items[0]?.node).toMatchObject({
      createdAt: NOW + MAX_SESSIONS + 2,
      address: ORIGIN.address,
      userAgent: ORIGIN.userAgent,
    });
  });

  test('is not opened for who is no member of the org', async () => {
    const [one, other] = [await makeOrg(ground), await makeOrg(ground)];
    expect(await openSession(one.org, other.owner.id, ORIGIN, NOW)).toBeUndefined();
  });

  test('that is over is deleted by the sweep, and no other', async () => {
    const { org, owner } = await makeOrg(ground);
    await purgeSessions(ground.db, NOW + MAX_SESSION_MS * 2, 100);
    await openSession(org, owner.id, ORIGIN, NOW);
    const { secret } = (await openSession(org, owner.id, ORIGIN, NOW + IDLE_MS))!;
    expect(await purgeSessions(ground.db, NOW + IDLE_MS + 1, 0)).toBe(0);
    expect(await purgeSessions(ground.db, NOW + IDLE_MS + 1, 100)).toBe(1);
    expect(await findSession(ground.db, secret, NOW + IDLE_MS + 1)).toBeDefined();
  });
});

describe('a link by mail', () => {
  test('works once, however often it is used at the same moment', async () => {
    const secret = (await makeLink(ground.db, 'a@example.com', 'sign_in', NOW))!;
    const uses = Array.from({ length: 8 }, () => takeLink(ground.db, secret, 'sign_in', NOW));
    const taken = (await Promise.all(uses)).filter((email) => email !== undefined);
    expect(taken).toEqual(['a@example.com']);
  });

  test('works for fifteen minutes, for its purpose only', async () => {
    const make = async () => (await makeLink(ground.db, 'b@example.com', 'sign_in', NOW))!;
    const secret = await make();
    expect(await takeLink(ground.db, secret, 'confirm_email', NOW)).toBeUndefined();
    expect(await takeLink(ground.db, secret, 'sign_in', NOW + LINK_MS)).toBeUndefined();
    expect(await takeLink(ground.db, secret, 'sign_in', NOW + LINK_MS - 1)).toBe('b@example.com');
  });

  test('ends the others of its address when it is used, and none of another', async () => {
    const make = async (email: string) => (await makeLink(ground.db, email, 'sign_in', NOW))!;
    const [first, second] = [await make('c@example.com'), await make('c@example.com')];
    const other = await make('d@example.com');
    expect(await takeLink(ground.db, second, 'sign_in', NOW)).toBe('c@example.com');
    expect(await takeLink(ground.db, first, 'sign_in', NOW)).toBeUndefined();
    expect(await takeLink(ground.db, other, 'sign_in', NOW)).toBe('d@example.com');
  });

  test('is made so many times at once for an address, then again after their time', async () => {
    const make = (now: number) => makeLink(ground.db, 'e@example.com', 'sign_in', now);
    const made = await Promise.all(Array.from({ length: MAX_LINKS + 4 }, () => make(NOW)));
    expect(made.filter((secret) => secret !== undefined)).toHaveLength(MAX_LINKS);
    expect(await make(NOW + LINK_MS)).toBeDefined();
  });

  test('is kept by hash only', async () => {
    const secret = (await makeLink(ground.db, 'f@example.com', 'sign_in', NOW))!;
    expect(await everything()).not.toContain(secret);
  });
});

describe('an identity provider', () => {
  const settings = {
    issuer: 'https://id.example.com/',
    clientId: 'client',
    secret: 'canary-of-the-client',
    domains: ['example.com'],
  };

  test('has its client’s secret sealed, bound to org and issuer', async () => {
    const [one, other] = [await makeOrg(ground), await makeOrg(ground)];
    for (const { org, owner } of [one, other]) {
      await putOidc(org, ground.master, as(owner), settings, NOW);
    }
    const stored = (await readOidc(one.org))!;
    expect(await openOidcSecret(one.org, ground.master, stored)).toBe(settings.secret);
    expect(await everything()).not.toContain(settings.secret);
    const moved = { ...stored, issuer: 'https://evil.example.net/' };
    await expect(openOidcSecret(one.org, ground.master, moved)).rejects.toThrow();
    await expect(openOidcSecret(other.org, ground.master, stored)).rejects.toThrow();
    expect(await deleteOidc(one.org, as(one.owner), settings.issuer)).toBe(true);
    expect(await readOidc(one.org)).toBeUndefined();
  });

  test('answers an attempt once, within ten minutes, and to the org that began it', async () => {
    const { org } = await makeOrg(ground);
    const attempt = { state: 'state-1', nonce: 'nonce-1', verifier: 'verifier-1' };
    await beginOidc(org, attempt, NOW);
    expect(await takeOidc(ground.db, 'state-2', NOW)).toBeUndefined();
    const takes = await Promise.all([1, 2, 3].map(() => takeOidc(ground.db, 'state-1', NOW)));
    expect(takes.filter(Boolean)).toEqual([{ ...attempt, orgId: org.id }]);
    await beginOidc(org, attempt, NOW);
    expect(await takeOidc(ground.db, 'state-1', NOW + ATTEMPT_MS)).toBeUndefined();
  });

  test('links a subject to the member of its verified address, for good and for its org only', async () => {
    const [one, other] = [await makeOrg(ground), await makeOrg(ground)];
    const member = await addMember(ground, one.org, 'viewer');
    const { issuer } = settings;
    expect(await identify(one.org, issuer, 's', null, NOW)).toBeUndefined();
    expect(await identify(one.org, issuer, 's', 'nobody@example.com', NOW)).toBeUndefined();
    expect(await identify(other.org, issuer, 's', member.email, NOW)).toBeUndefined();
    expect(await identify(one.org, issuer, 's', member.email, NOW)).toBe(member.id);
    expect(await identify(one.org, issuer, 's', one.owner.email, NOW)).toBe(member.id);
    await removeMember(one.org, 'operator', member.id);
    expect(await identify(one.org, issuer, 's', null, NOW)).toBeUndefined();
  });
});
