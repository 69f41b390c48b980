/** Members: who may change whom, what follows from it, and that an owner always remains. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import fc from 'fast-check';
import { type Actor, listAudit } from '../db/audit.ts';
import { verifyOrg } from '../db/checkpoints.ts';
import {
  acceptInvitation,
  INVITATION_MS,
  invite,
  listInvitations,
  MAX_OPEN_INVITATIONS,
  resendInvitation,
  revokeInvitation,
} from '../db/invitations.ts';
import {
  acceptOwnership,
  changeRole,
  leaveOrg,
  listMembers,
  type Member,
  offerOwnership,
  readMember,
  readOffer,
  removeMember,
  withdrawOffer,
} from '../db/members.ts';
import { forOrg, type Org } from '../db/org.ts';
import { cancelDeletion, readAccount, requestDeletion } from '../db/orgs.ts';
import { findSession, openSession } from '../db/sessions.ts';
import { makeLink } from '../db/signin.ts';
import { membershipsOf } from '../db/users.ts';
import { normalizeEmail } from '../schema/email.ts';
import { Refusal } from '../schema/errors.ts';
import type { InvitationId, MemberId } from '../schema/ids.ts';
import { outranks, ROLES, type Role } from '../schema/roles.ts';
import { addMember, as, type Ground, makeGround, makeOrg } from './orgs.ts';

setDefaultTimeout(60_000);

let ground: Ground;
beforeAll(async () => {
  ground = await makeGround();
});
afterAll(() => ground.clear());

/** What became of an attempt: its refusal's code, or `done`. */
async function codeOf(attempt: Promise<unknown>): Promise<string> {
  try {
    await attempt;
    return 'done';
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return error.code;
  }
}

async function roleOf(org: Org, { id }: Member): Promise<Role | undefined> {
  return (await readMember(org, id))?.role;
}

async function membersOf(org: Org): Promise<Member[]> {
  const { items } = await listMembers(org, {}, { limit: 1_000, isBackward: false });
  return items.map(({ node }) => node);
}

async function ownersOf(org: Org): Promise<number> {
  return (await membersOf(org)).filter(({ role }) => role === 'owner').length;
}

const mayManage = (role: Role) => role === 'owner' || role === 'admin';

describe('changing a role', () => {
  for (const own of ROLES) {
    for (const target of ROLES) {
      for (const to of ROLES) {
        const may = mayManage(own) && !outranks(target, own) && to !== 'owner';
        test(`of a ${target} to ${to} by a ${own} is ${may ? 'done' : 'refused'}`, async () => {
          const { org } = await makeOrg(ground);
          const actor = await addMember(ground, org, own);
          const member = await addMember(ground, org, target);
          const code = await codeOf(changeRole(org, as(actor), member.id, to));
          expect(code).toBe(may ? 'done' : 'permission_denied');
          expect(await roleOf(org, member)).toBe(may ? to : target);
          const [entry] = await listAudit(org, { limit: 1 });
          expect(entry).toMatchObject({
            action: 'member.update_role',
            outcome: may ? 'allowed' : 'refused',
          });
        });
      }
    }
  }

  test('makes nobody an owner, and says what does', async () => {
    const { org, owner } = await makeOrg(ground);
    for (const from of ROLES) {
      const member = await addMember(ground, org, from);
      const refused = changeRole(org, as(owner), member.id, 'owner').catch((error) => error);
      expect(await refused).toMatchObject({
        code: 'permission_denied',
        message: expect.stringContaining('offer him the ownership'),
        detail: { rule: 'membership.ownership', field: 'role' },
      });
      const invited = invite(org, as(owner), `${from}@owners.example`, 'owner', Date.now());
      expect(await codeOf(invited)).toBe('permission_denied');
    }
    expect(await ownersOf(org)).toBe(2);
    const left = await addMember(ground, org, 'viewer');
    await changeRole(org, 'operator', left.id, 'owner');
    expect(await roleOf(org, left)).toBe('owner');
  });

  test('of oneself upwards is refused', async () => {
    const { org } = await makeOrg(ground);
    for (const own of ROLES) {
      const member = await addMember(ground, org, own);
      for (const to of ROLES.filter((role) => outranks(role, own))) {
        expect(await codeOf(changeRole(org, as(member), member.id, to))).toBe('permission_denied');
      }
      expect(await roleOf(org, member)).toBe(own);
    }
  });

  test('ends the sessions of that member, and of no other', async () => {
    const { org, owner } = await makeOrg(ground);
    const [member, other] = [
      await addMember(ground, org, 'admin'),
      await addMember(ground, org, 'admin'),
    ];
    const now = Date.now();
    const secrets = await Promise.all(
      [member, other].map(({ id }) => openSession(org, id, { method: 'link' }, now)),
    );
    await changeRole(org, as(owner), member.id, 'viewer');
    const live = await Promise.all(
      secrets.map((made) => findSession(ground.db, made!.secret, now)),
    );
    expect(live.map((session) => session?.memberId)).toEqual([undefined, other.id]);
    await changeRole(org, as(owner), member.id, 'admin');
    expect(await findSession(ground.db, secrets[0]!.secret, now)).toBeUndefined();
  });

  test('ends them by itself, whoever changed it: a session has the role it was opened with', async () => {
    const { org } = await makeOrg(ground);
    const { id } = await addMember(ground, org, 'admin');
    const { secret } = (await openSession(org, id, { method: 'link' }, Date.now()))!;
    await org.write(
      org.statement("update members set role = 'owner' where org_id = ?1 and id = ?2", id),
    );
    expect(await findSession(ground.db, secret, Date.now())).toBeUndefined();
  });

  test('by one who was demoted a moment before is refused', async () => {
    const { org, owner } = await makeOrg(ground);
    const admin = await addMember(ground, org, 'admin');
    const member = await addMember(ground, org, 'viewer');
    const stale = as(admin);
    await changeRole(org, as(owner), admin.id, 'viewer');
    expect(await codeOf(changeRole(org, stale, member.id, 'admin'))).toBe('permission_denied');
    expect(await roleOf(org, member)).toBe('viewer');
  });
});

describe('an owner remains', () => {
  test('when the last one is demoted or removed, by himself or by the operator', async () => {
    const { org, owner } = await makeOrg(ground);
    for (const actor of [as(owner), 'operator'] as const) {
      expect(await codeOf(changeRole(org, actor, owner.id, 'admin'))).toBe('invalid_request');
      expect(await codeOf(removeMember(org, actor, owner.id))).toBe('invalid_request');
    }
    expect(await ownersOf(org)).toBe(1);
  });

  test('however many owners demote and remove each other at the same moment', async () => {
    const step = fc.record({
      actor: fc.nat(3),
      target: fc.nat(3),
      removes: fc.boolean(),
      byOperator: fc.boolean(),
    });
    const property = fc.asyncProperty(
      fc.array(step, { minLength: 2, maxLength: 12 }),
      async (steps) => {
        const { org, owner } = await makeOrg(ground);
        const owners = [owner];
        for (let count = 0; count < 3; count++) owners.push(await addMember(ground, org, 'owner'));
        const doors = [org, forOrg(second, org.id)];
        const attempts = steps.map(({ actor, target, removes, byOperator }, at) => {
          const who: Actor = byOperator ? 'operator' : as(owners[actor]!);
          const { id } = owners[target]!;
          const door = doors[at % 2]!;
          return codeOf(
            removes ? removeMember(door, who, id) : changeRole(door, who, id, 'viewer'),
          );
        });
        await Promise.all(attempts);
        expect(await ownersOf(org)).toBeGreaterThanOrEqual(1);
        expect((await verifyOrg(org, [])).ok).toBe(true);
      },
    );
    const second = await ground.connect();
    await fc.assert(property, { numRuns: 40 });
  });

  test('of two who demote each other at once, exactly one', async () => {
    const second = await ground.connect();
    for (let round = 0; round < 20; round++) {
      const { org, owner } = await makeOrg(ground);
      const other = await addMember(ground, org, 'owner');
      await Promise.all([
        codeOf(changeRole(org, as(owner), other.id, 'viewer')),
        codeOf(changeRole(forOrg(second, org.id), as(other), owner.id, 'viewer')),
      ]);
      expect(await ownersOf(org)).toBe(1);
    }
  });
});

describe('removing', () => {
  for (const own of ROLES) {
    for (const target of ROLES) {
      const may = mayManage(own) && !outranks(target, own);
      test(`a ${target} by a ${own} is ${may ? 'done' : 'refused'}`, async () => {
        const { org } = await makeOrg(ground);
        const actor = await addMember(ground, org, own);
        const member = await addMember(ground, org, target);
        const code = await codeOf(removeMember(org, as(actor), member.id));
        expect(code).toBe(may ? 'done' : 'permission_denied');
        expect(await roleOf(org, member)).toBe(may ? undefined : target);
      });
    }
  }

  test('oneself is leaving, which everybody may', async () => {
    const { org } = await makeOrg(ground);
    for (const role of ROLES) {
      const member = await addMember(ground, org, role);
      expect(await codeOf(removeMember(org, as(member), member.id))).toBe('done');
    }
  });

  test('leaves the person in his other orgs', async () => {
    const [one, other] = [await makeOrg(ground), await makeOrg(ground)];
    const member = await addMember(ground, one.org, 'viewer');
    const { secret } = await invite(other.org, 'operator', member.email, 'admin', Date.now());
    await acceptInvitation(ground.db, secret, Date.now());
    await removeMember(one.org, 'operator', member.id);
    const left = await membershipsOf(ground.db, member.email);
    expect(left).toMatchObject([{ slug: other.slug, role: 'admin' }]);
    expect(await knowns(member.email)).toEqual({ users: 1, links: 0 });
  });

  test('forgets who is in no other org, his address and his links, and only once he is gone', async () => {
    const { org, owner, slug } = await makeOrg(ground);
    const [removed, leaver] = [
      await addMember(ground, org, 'viewer'),
      await addMember(ground, org, 'member'),
    ];
    for (const { email } of [owner, removed, leaver]) {
      await makeLink(ground.db, email, 'sign_in', Date.now());
      expect(await knowns(email)).toEqual({ users: 1, links: 1 });
    }
    expect(await codeOf(removeMember(org, as(leaver), removed.id))).toBe('permission_denied');
    expect(await codeOf(removeMember(org, as(owner), owner.id))).toBe('invalid_request');
    expect(await knowns(removed.email)).toEqual({ users: 1, links: 1 });
    await removeMember(org, as(owner), removed.id);
    await leaveOrg(org, as(leaver), slug);
    for (const { email } of [removed, leaver]) {
      expect(await knowns(email)).toEqual({ users: 0, links: 0 });
    }
    expect(await knowns(owner.email)).toEqual({ users: 1, links: 1 });
  });

  test('lets a person who was forgotten join again', async () => {
    const { org, owner } = await makeOrg(ground);
    const { id, email } = await addMember(ground, org, 'viewer');
    await removeMember(org, as(owner), id);
    const { secret } = await invite(org, as(owner), email, 'member', Date.now());
    await acceptInvitation(ground.db, secret, Date.now());
    expect(await membershipsOf(ground.db, email)).toMatchObject([{ role: 'member' }]);
  });
});

/** In how many rows an address is known beside its memberships. */
async function knowns(email: string): Promise<object | undefined> {
  return await ground.db.first(
    `select (select count(*) from users where email = ?1) as users,
       (select count(*) from sign_in_links where email = ?1) as links`,
    [email],
  );
}

test('a member of another org answers like one that does not exist', async () => {
  const [one, other] = [await makeOrg(ground), await makeOrg(ground)];
  const foreign = await addMember(ground, other.org, 'viewer');
  const answers = async (id: MemberId) => {
    const attempts = [
      changeRole(one.org, as(one.owner), id, 'admin'),
      removeMember(one.org, as(one.owner), id),
      offerOwnership(one.org, as(one.owner), one.owner.id, id, Date.now()),
    ];
    return await Promise.all(attempts.map(codeOf));
  };
  expect(await answers(foreign.id)).toEqual(await answers('mem_missing' as MemberId));
  expect(await roleOf(other.org, foreign)).toBe('viewer');
});

describe('ownership', () => {
  test('goes over when it is accepted with the slug typed, and sessions of both end', async () => {
    const { org, owner, slug } = await makeOrg(ground);
    const heir = await addMember(ground, org, 'member');
    const now = Date.now();
    const sessions = await Promise.all(
      [owner, heir].map(({ id }) => openSession(org, id, { method: 'link' }, now)),
    );
    await offerOwnership(org, as(owner), owner.id, heir.id, now);
    expect(await roleOf(org, heir)).toBe('member');
    const wrong = acceptOwnership(org, as(heir), heir.id, `${slug}x`, now);
    expect(await codeOf(wrong)).toBe('invalid_request');
    await acceptOwnership(org, as(heir), heir.id, slug, now);
    expect([await roleOf(org, owner), await roleOf(org, heir)]).toEqual(['admin', 'owner']);
    for (const made of sessions) {
      expect(await findSession(ground.db, made!.secret, now)).toBeUndefined();
    }
    expect(await readOffer(org, now)).toBeUndefined();
  });

  test('is offered by an owner as his own, and by nobody else', async () => {
    const { org, owner } = await makeOrg(ground);
    const [admin, heir] = [
      await addMember(ground, org, 'admin'),
      await addMember(ground, org, 'member'),
    ];
    const now = Date.now();
    for (const from of [owner.id, admin.id]) {
      const offering = offerOwnership(org, as(admin), from, heir.id, now);
      expect(await codeOf(offering)).toBe('permission_denied');
    }
    const toHimself = offerOwnership(org, as(owner), owner.id, owner.id, now);
    expect(await codeOf(toHimself)).toBe('permission_denied');
    expect(await readOffer(org, now)).toBeUndefined();
  });

  test('is not accepted by another, late, after it was taken back, or from who is no owner any more', async () => {
    const { org, owner, slug } = await makeOrg(ground);
    const heir = await addMember(ground, org, 'member');
    const other = await addMember(ground, org, 'admin');
    const now = Date.now();
    const accept = (by: Member, at = now) =>
      codeOf(acceptOwnership(org, as(by), heir.id, slug, at));
    await offerOwnership(org, as(owner), owner.id, heir.id, now);
    expect(await accept(other)).toBe('not_found');
    expect(await accept(heir, now + 8 * 86_400_000)).toBe('not_found');
    expect(await withdrawOffer(org, as(owner), heir.id)).toBe(true);
    expect(await accept(heir)).toBe('not_found');
    await offerOwnership(org, as(owner), owner.id, heir.id, now);
    await changeRole(org, 'operator', other.id, 'owner');
    await changeRole(org, 'operator', owner.id, 'viewer');
    expect(await accept(heir)).toBe('not_found');
    expect(await roleOf(org, heir)).toBe('member');
  });

  test('is accepted once, however often at the same moment', async () => {
    const { org, owner, slug } = await makeOrg(ground);
    const heir = await addMember(ground, org, 'member');
    const now = Date.now();
    await offerOwnership(org, as(owner), owner.id, heir.id, now);
    const codes = await Promise.all(
      Array.from({ length: 5 }, () => codeOf(acceptOwnership(org, as(heir), heir.id, slug, now))),
    );
    expect(codes.filter((code) => code === 'done')).toHaveLength(1);
    expect(await ownersOf(org)).toBe(1);
  });
});

describe('an invitation', () => {
  test('makes exactly one member of its role, however often it is accepted at once', async () => {
    const { org } = await makeOrg(ground);
    const { secret } = await invite(org, 'operator', 'new@example.com', 'member', Date.now());
    const codes = await Promise.all(
      Array.from({ length: 6 }, () => codeOf(acceptInvitation(ground.db, secret, Date.now()))),
    );
    expect(codes.filter((code) => code === 'done')).toHaveLength(1);
    const joined = (await membersOf(org)).filter(({ email }) => email === 'new@example.com');
    expect(joined.map(({ role }) => role)).toEqual(['member']);
  });

  test('goes to no role above one’s own, and to ownership from nobody', async () => {
    const { org } = await makeOrg(ground);
    for (const own of ROLES) {
      const actor = as(await addMember(ground, org, own));
      for (const role of ROLES) {
        const may = mayManage(own) && role !== 'owner' && !outranks(role, own);
        const inviting = invite(org, actor, `${own}-${role}@example.com`, role, Date.now());
        expect(await codeOf(inviting)).toBe(may ? 'done' : 'permission_denied');
      }
    }
  });

  test('is good until it expires, is revoked, or is sent again', async () => {
    const { org, owner } = await makeOrg(ground);
    const now = Date.now();
    const accept = (secret: string, at = now) => codeOf(acceptInvitation(ground.db, secret, at));
    const first = await invite(org, as(owner), 'a@example.com', 'viewer', now);
    expect(await accept(first.secret, now + INVITATION_MS)).toBe('not_found');
    const again = await resendInvitation(org, as(owner), first.id, now);
    expect(await accept(first.secret)).toBe('not_found');
    await revokeInvitation(org, as(owner), first.id, now);
    expect(await accept(again.secret)).toBe('not_found');
    expect(await codeOf(resendInvitation(org, as(owner), first.id, now))).toBe('not_found');
    const anew = await invite(org, as(owner), 'a@example.com', 'viewer', now);
    expect(await accept(anew.secret)).toBe('done');
  });

  test('dies with the role of who sent it', async () => {
    const { org } = await makeOrg(ground);
    const admin = await addMember(ground, org, 'admin');
    const { secret } = await invite(org, as(admin), 'b@example.com', 'admin', Date.now());
    await changeRole(org, 'operator', admin.id, 'viewer');
    expect(await codeOf(acceptInvitation(ground.db, secret, Date.now()))).toBe('not_found');
  });

  test('is one per address, none for a member, and so many per org', async () => {
    const { org, owner } = await makeOrg(ground);
    const now = Date.now();
    const sending = (email: string) => codeOf(invite(org, 'operator', email, 'viewer', now));
    expect(await sending(owner.email)).toBe('invalid_request');
    for (let at = 0; at < MAX_OPEN_INVITATIONS; at++) {
      expect(await sending(`n${at}@example.com`)).toBe('done');
    }
    expect(await sending('one-more@example.com')).toBe('invalid_request');
    const { items } = await listInvitations(org, now, { limit: 1_000, isBackward: false });
    expect(items).toHaveLength(MAX_OPEN_INVITATIONS);
    const expired = now + INVITATION_MS + 1;
    expect(await codeOf(invite(org, 'operator', 'n0@example.com', 'viewer', expired))).toBe('done');
  });

  test('of another org answers like one that does not exist', async () => {
    const [one, other] = [await makeOrg(ground), await makeOrg(ground)];
    const { id, secret } = await invite(
      other.org,
      'operator',
      'c@example.com',
      'viewer',
      Date.now(),
    );
    const answers = async (invitation: InvitationId) =>
      await Promise.all([
        codeOf(resendInvitation(one.org, as(one.owner), invitation, Date.now())),
        codeOf(revokeInvitation(one.org, as(one.owner), invitation, Date.now())),
      ]);
    expect(await answers(id)).toEqual(await answers('inv_missing' as InvitationId));
    expect(await codeOf(acceptInvitation(ground.db, secret, Date.now()))).toBe('done');
  });

  test('keeps its secret nowhere', async () => {
    const { org } = await makeOrg(ground);
    const { secret } = await invite(org, 'operator', 'd@example.com', 'viewer', Date.now());
    for (const table of ['invitations', 'audit_entries', 'events']) {
      const rows = await ground.db.read(`select * from ${table}`, []);
      expect(JSON.stringify(rows)).not.toContain(secret);
    }
  });
});

test('the deletion of an org is asked for with its slug typed, and may be taken back', async () => {
  const { org, owner, slug } = await makeOrg(ground);
  const now = Date.now();
  expect(await codeOf(requestDeletion(org, as(owner), 'other', now))).toBe('invalid_request');
  await requestDeletion(org, as(owner), slug, now);
  expect(await readAccount(org)).toMatchObject({
    deletionRequestedAt: now,
    deletesAt: now + 86_400_000,
  });
  expect(await cancelDeletion(org, as(owner), now)).toBe(true);
  expect(await cancelDeletion(org, as(owner), now)).toBe(false);
  expect(await readAccount(org)).toMatchObject({ deletesAt: null });
});

test('an e-mail address has one spelling', () => {
  const property = fc.property(fc.emailAddress(), (email) => {
    const normal = normalizeEmail(email);
    if (normal === undefined) return;
    expect(normalizeEmail(` ${email.toUpperCase()} `)).toBe(normal);
    expect(normalizeEmail(normal)).toBe(normal);
  });
  fc.assert(property);
  for (const text of ['', 'a', 'a@', '@b.c', 'a@b', 'a b@c.de', `${'a'.repeat(250)}@b.de`]) {
    expect(normalizeEmail(text)).toBeUndefined();
  }
});

test('an e-mail address is not that of another person by folding the case of its letters', () => {
  const letters = Array.from({ length: 0xffff }, (_, at) => String.fromCharCode(at));
  for (const letter of letters.filter((each) => each > '\x7f')) {
    for (const email of [`a${letter}b@example.com`, `ab@exa${letter}mple.com`]) {
      expect(normalizeEmail(email)).toBeUndefined();
    }
  }
});
