/** Roles and tokens: the table of actions, and that no token may do more than its member. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { join } from 'node:path';
import fc from 'fast-check';
import { listAudit, type Principal } from '../db/audit.ts';
import { invite, resendInvitation, revokeInvitation } from '../db/invitations.ts';
import { changeRole, type Member, removeMember } from '../db/members.ts';
import type { Org } from '../db/org.ts';
import { hashToken } from '../db/seal.ts';
import {
  createAdminToken,
  findCredential,
  listTokens,
  mintToken,
  readStoredToken,
  revokeToken,
  rotateToken,
  updateAdminToken,
} from '../db/tokens.ts';
import { Refusal } from '../schema/errors.ts';
import type { AgentId, TokenId } from '../schema/ids.ts';
import {
  ACTIONS,
  ADMIN_ACTIONS,
  type AdminAction,
  AGENT_ACTIONS,
  actionsOf,
  mayDo,
  outranks,
  ROLES,
  type Role,
} from '../schema/roles.ts';
import { addMember, as, type Ground, makeGround, makeOrg } from './orgs.ts';
import { finish } from './process.ts';

setDefaultTimeout(60_000);

let ground: Ground;
beforeAll(async () => {
  ground = await makeGround();
});
afterAll(() => ground.clear());

describe('the table', () => {
  test('has at least 57 actions, each with a sentence, named noun.verb', () => {
    expect(ADMIN_ACTIONS.length).toBeGreaterThanOrEqual(57);
    for (const [action, { about }] of Object.entries(ACTIONS)) {
      expect(action).toMatch(/^[a-z_]+\.[a-z_]+$/);
      expect(about).toMatch(/^[A-Z].{8,}\.$/);
    }
  });

  test('gives each role all that the roles below it have', () => {
    for (const role of ROLES) {
      for (const below of ROLES.filter((other) => outranks(role, other))) {
        expect(actionsOf(role)).toEqual(expect.arrayContaining([...actionsOf(below)]));
      }
    }
  });

  test('gives the owner everything', () => {
    expect(actionsOf('owner')).toEqual(ADMIN_ACTIONS);
  });

  test('keeps billing, plan, transfer and deletion from everyone else', () => {
    const owned = /^(billing|plan)\.|^org\.(transfer|delete|cancel_deletion)$/;
    const actions = ADMIN_ACTIONS.filter((action) => owned.test(action));
    expect(actions.length).toBeGreaterThanOrEqual(6);
    for (const action of actions)
      expect(ACTIONS[action].roles as readonly Role[]).toEqual(['owner']);
  });

  test('lets admins do everything to agents, policies, provider keys, webhooks and members', () => {
    const theirs = /^(agent|policy|provider_key|webhook|member|invitation)\./;
    for (const action of ADMIN_ACTIONS.filter((each) => theirs.test(each))) {
      expect({ action, may: mayDo('admin', action) }).toEqual({ action, may: true });
    }
  });

  test('lets members see analytics and runs and decide on gates, and write no agents or policies', () => {
    const theirs = ['analytics.read', 'run.read', 'gate.approve', 'gate.reject'] as const;
    for (const action of theirs) expect(mayDo('member', action)).toBe(true);
    const others =
      /^(agent|policy|provider_key|webhook|member|token|invitation)\.(?!read|simulate)/;
    for (const action of ADMIN_ACTIONS.filter((each) => others.test(each))) {
      expect({ action, may: mayDo('member', action) }).toEqual({ action, may: false });
    }
  });

  test('lets viewers only read', () => {
    for (const action of actionsOf('viewer')) expect(action).toMatch(/\.(read|simulate)$/);
  });

  test('is printed by a command, cell by cell', async () => {
    const main = join(import.meta.dir, '../web/cli/main.ts');
    const run = (...args: string[]) =>
      finish(
        Bun.spawn([process.execPath, main, 'roles', ...args], { stdout: 'pipe', stderr: 'pipe' }),
      );
    const { actions } = JSON.parse((await run('--json')).stdout) as {
      actions: { action: AdminAction; roles: Role[] }[];
    };
    expect(actions.map(({ action }) => action)).toEqual([...ADMIN_ACTIONS]);
    for (const { action, roles } of actions) expect(roles).toEqual([...ACTIONS[action].roles]);
    const lines = (await run()).stdout.trim().split('\n').slice(1);
    const cells = lines.map((line) => line.split(/ {2,}/).slice(0, 5));
    expect(cells).toEqual(
      ADMIN_ACTIONS.map((action) => [
        action,
        ...ROLES.map((role) => (mayDo(role, action) ? 'yes' : '-')),
      ]),
    );
  });
});

const subset = fc.subarray([...ADMIN_ACTIONS], { minLength: 1 });

/** A member of a role with a token of some actions, given by the operator while he held them. */
async function tokenOf(org: Org, member: Member, actions: readonly AdminAction[]) {
  const wanted = { name: 'test', actions, expiresAt: null };
  return await createAdminToken(org, 'operator', member.id, wanted);
}

async function effective(token: string) {
  return (await findCredential(ground.db, hashToken(token)))?.actions;
}

async function refusalOf(work: Promise<unknown>): Promise<Refusal> {
  const error = await work.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(Refusal);
  return error as Refusal;
}

describe('an admin token', () => {
  test('may do what was granted and its member holds by now, through every change of his role', async () => {
    const { org } = await makeOrg(ground);
    const roles = fc.array(fc.constantFrom(...ROLES), { minLength: 1, maxLength: 4 });
    const property = fc.asyncProperty(subset, roles, async (actions, changes) => {
      const member = await addMember(ground, org, 'owner');
      const { token } = await tokenOf(org, member, actions);
      for (const role of changes) {
        await changeRole(org, 'operator', member.id, role);
        expect(await effective(token)).toEqual(actions.filter((action) => mayDo(role, action)));
      }
    });
    await fc.assert(property, { numRuns: 25 });
  });

  test('may do nothing once its member is removed', async () => {
    const { org } = await makeOrg(ground);
    const member = await addMember(ground, org, 'admin');
    const { token } = await tokenOf(org, member, ['agent.read']);
    await removeMember(org, 'operator', member.id);
    expect(await effective(token)).toEqual([]);
    const credential = await findCredential(ground.db, hashToken(token));
    expect(credential).toMatchObject({ member: undefined, revokedAt: expect.any(Number) });
  });

  test('is made with exactly what its maker holds, by role and by the token he came with', async () => {
    const { org } = await makeOrg(ground);
    const role = fc.constantFrom(...ROLES);
    const property = fc.asyncProperty(role, subset, subset, async (held, own, asked) => {
      const member = await addMember(ground, org, held);
      const actor = { ...as(member), actions: own.filter((action) => mayDo(held, action)) };
      const may = asked.every((action) => actor.actions.includes(action));
      const making = createAdminToken(org, actor, member.id, {
        name: 't',
        actions: asked,
        expiresAt: null,
      });
      if (may) expect(await effective((await making).token)).toEqual(asked);
      else expect((await refusalOf(making)).code).toBe('permission_denied');
    });
    await fc.assert(property, { numRuns: 60 });
  });

  test('is made for oneself only, and a refused attempt is on the audit trail', async () => {
    const { org, owner } = await makeOrg(ground);
    const admin = await addMember(ground, org, 'admin');
    const wanted = { name: 't', actions: ['org.delete'] as const, expiresAt: null };
    const refusal = await refusalOf(createAdminToken(org, as(admin), owner.id, wanted));
    expect(refusal).toMatchObject({ code: 'permission_denied', detail: { field: 'member' } });
    const [entry] = await listAudit(org, { limit: 1 });
    expect(entry).toMatchObject({ action: 'token.create', outcome: 'refused' });
  });

  test('of someone above is neither changed nor rotated nor revoked', async () => {
    const { org, owner } = await makeOrg(ground);
    const admin = as(await addMember(ground, org, 'admin'));
    const { id, token } = await tokenOf(org, owner, ['agent.read']);
    const change = { name: 'x', actions: ['agent.read'] as const };
    for (const attempt of [
      () => updateAdminToken(org, admin, id, change),
      () => rotateToken(org, admin, id, 0),
      () => revokeToken(org, admin, id),
    ]) {
      expect((await refusalOf(attempt())).code).toBe('permission_denied');
    }
    expect(await effective(token)).toEqual(['agent.read']);
  });

  test('with more than one came with is not received by rotating it', async () => {
    const { org, owner } = await makeOrg(ground);
    const { id } = await tokenOf(org, owner, ['org.delete', 'token.rotate']);
    const actor: Principal = { ...as(owner), kind: 'token', actions: ['token.rotate'] };
    expect((await refusalOf(rotateToken(org, actor, id, 0))).code).toBe('permission_denied');
  });

  test('of another member of the same role is not received by rotating it, but can be ended', async () => {
    const { org } = await makeOrg(ground);
    for (const role of ROLES.filter((each) => mayDo(each, 'token.rotate'))) {
      const [one, other] = [await addMember(ground, org, role), await addMember(ground, org, role)];
      const { id, token } = await tokenOf(org, one, ['agent.read']);
      const refusal = await refusalOf(rotateToken(org, as(other), id, 0));
      expect(refusal).toMatchObject({
        code: 'permission_denied',
        detail: { rule: 'token.member' },
      });
      expect(await effective(token)).toEqual(['agent.read']);
      expect(await revokeToken(org, as(other), id)).toBe(true);
    }
  });

  test('makes and receives no token that ends later than it does itself', async () => {
    const { org, owner } = await makeOrg(ground);
    const now = Date.now();
    const ends = fc.option(fc.integer({ min: 1, max: 1_000 }), { nil: null });
    const property = fc.asyncProperty(ends, ends, async (own, asked) => {
      const [endsAt, expiresAt] = [own, asked].map((each) => each && now + 60_000 + each);
      const until = endsAt ? { endsAt } : {};
      const actor: Principal = { ...as(owner), kind: 'token', ...until };
      const wanted = { name: 't', actions: ['agent.read'] as const, expiresAt: expiresAt ?? null };
      const { id } = await createAdminToken(org, 'operator', owner.id, wanted);
      const attempts = [
        () => createAdminToken(org, actor, owner.id, wanted),
        () => rotateToken(org, actor, id, 0),
      ];
      for (const attempt of attempts) {
        if (!endsAt || (expiresAt && expiresAt <= endsAt)) await attempt();
        else expect((await refusalOf(attempt())).detail.rule).toBe('token.expires_at');
      }
    });
    await fc.assert(property, { numRuns: 25 });
  });

  test('gives nobody a role with more actions than its own, by changing it or by inviting', async () => {
    const { org, owner } = await makeOrg(ground);
    const roles = fc.constantFrom(...ROLES);
    const given = fc.constantFrom('admin', 'member', 'viewer');
    let count = 0;
    const property = fc.asyncProperty(subset, roles, given, async (actions, from, to) => {
      const actor: Principal = { ...as(owner), kind: 'token', actions };
      const member = await addMember(ground, org, from);
      const gained = actionsOf(to).filter((action) => !mayDo(from, action));
      const isWithin = (wanted: readonly AdminAction[]) =>
        wanted.every((action) => actions.includes(action));
      const change = changeRole(org, actor, member.id, to);
      if (isWithin(gained)) await change;
      else expect((await refusalOf(change)).detail.rule).toBe('membership.grant');
      const invitation = invite(org, actor, `invited${++count}@example.com`, to, Date.now());
      if (isWithin(actionsOf(to))) await invitation;
      else expect((await refusalOf(invitation)).detail.rule).toBe('membership.grant');
    });
    const wide = [actionsOf('viewer'), actionsOf('member'), actionsOf('admin')].flatMap((actions) =>
      ROLES.map((from): [AdminAction[], Role, 'admin' | 'member' | 'viewer'] => {
        return [[...actions], from, 'member'];
      }),
    );
    await fc.assert(property, { numRuns: 40, examples: wide });
  });

  test('takes back an invitation to more than it may itself, and renews none', async () => {
    const { org, owner } = await makeOrg(ground);
    const actor: Principal = { ...as(owner), kind: 'token', actions: ['invitation.revoke'] };
    const { id } = await invite(org, as(owner), 'renewed@example.com', 'admin', Date.now());
    const refusal = await refusalOf(resendInvitation(org, actor, id, Date.now()));
    expect(refusal.detail.rule).toBe('membership.grant');
    await revokeInvitation(org, actor, id, Date.now());
  });

  test('of another org answers like one that does not exist', async () => {
    const [one, other] = [await makeOrg(ground), await makeOrg(ground)];
    const { id } = await tokenOf(other.org, other.owner, ['agent.read']);
    const actor = as(one.owner);
    const change = { name: 'x', actions: ['agent.read'] as const };
    const answers = async (token: TokenId) => {
      const attempts = [
        updateAdminToken(one.org, actor, token, change),
        rotateToken(one.org, actor, token, 0),
        revokeToken(one.org, actor, token),
      ];
      const refusals = await Promise.all(attempts.map(refusalOf));
      return refusals.map(({ code, message, detail }) => ({ code, message, detail }));
    };
    expect(await answers(id)).toEqual(await answers('tok_missing' as TokenId));
    expect(await readStoredToken(one.org, id)).toBeUndefined();
  });

  test('that is rotated ends now or after the overlap, and never lives longer than it would have', async () => {
    const { org, owner } = await makeOrg(ground);
    const property = fc.asyncProperty(
      fc.option(fc.integer({ min: 1, max: 1_000 }), { nil: null }),
      fc.integer({ min: 0, max: 1_000 }),
      async (lifeS, overlapS) => {
        const now = Date.now();
        const expiresAt = lifeS === null ? null : now + lifeS * 1_000 + 60_000;
        const wanted = { name: 't', actions: ['agent.read'] as const, expiresAt };
        const old = await createAdminToken(org, 'operator', owner.id, wanted);
        const made = await rotateToken(org, as(owner), old.id, overlapS * 1_000);
        const [before, after] = [
          (await findCredential(ground.db, hashToken(old.token)))!,
          (await findCredential(ground.db, hashToken(made.token)))!,
        ];
        expect(after).toMatchObject({ expiresAt, actions: ['agent.read'], revokedAt: null });
        if (overlapS === 0) expect(before.revokedAt).not.toBeNull();
        else expect(before.expiresAt!).toBeLessThanOrEqual(expiresAt ?? Number.POSITIVE_INFINITY);
        expect(before.revokedAt === null).toBe(overlapS > 0);
      },
    );
    await fc.assert(property, { numRuns: 20 });
  });

  test('is listed without its text and its hash', async () => {
    const { org, adminToken } = await makeOrg(ground);
    const page = { limit: 10, isBackward: false };
    const listed = (await listTokens(org, { kind: 'admin' }, page)).items[0]?.node;
    expect(listed).toMatchObject({ name: 'init', role: 'owner', effective: ADMIN_ACTIONS });
    const text = JSON.stringify(listed);
    expect(text).not.toContain(adminToken);
    expect(text).not.toContain(hashToken(adminToken));
  });

  test('tells its making to other systems, without its text', async () => {
    const { org, owner } = await makeOrg(ground);
    const { id, token } = await tokenOf(org, owner, ['agent.read']);
    const rows = await org.read(
      "select data from events where org_id = ?1 and type = 'admin_token.created'",
    );
    expect(rows.map(({ data }) => JSON.parse(String(data)))).toEqual([
      { tokenId: id, actions: ['agent.read'] },
    ]);
    expect(JSON.stringify(rows)).not.toContain(token);
  });
});

test('the first token belongs to the owner and may do all that he may', async () => {
  const { adminToken, owner } = await makeOrg(ground);
  const credential = await findCredential(ground.db, hashToken(adminToken));
  expect(credential).toMatchObject({
    kind: 'admin',
    actions: ADMIN_ACTIONS,
    member: { id: owner.id, userId: owner.userId, role: 'owner' },
  });
});

test('the operator makes a token in a member’s name, within his role, when one was lost', async () => {
  const { org, slug } = await makeOrg(ground);
  const { email } = await addMember(ground, org, 'viewer');
  const main = join(import.meta.dir, '../web/cli/main.ts');
  const create = (...args: string[]) =>
    finish(
      Bun.spawn(
        [process.execPath, main, 'token', 'create', '--org', slug, '--member', email, ...args],
        {
          cwd: ground.folder,
          env: {
            PATH: process.env.PATH ?? '',
            RUNGATE_DATABASE_URL: ground.url,
            RUNGATE_MASTER_KEYS: ground.masterText,
          },
          stdout: 'pipe',
          stderr: 'pipe',
        },
      ),
    );
  const { stdout } = await create('--expires', '30d');
  expect(await effective(stdout.trim())).toEqual([...actionsOf('viewer')]);
  expect((await create('--actions', 'org.delete')).code).toBe(1);
  expect((await create('--actions', 'org.destroy')).code).toBe(2);
});

test("an agent's token may do the actions it was made with, and none of people's", async () => {
  const { org, owner } = await makeOrg(ground);
  const property = fc.asyncProperty(
    fc.subarray([...AGENT_ACTIONS], { minLength: 1 }),
    async (actions) => {
      const agent = await anAgent(org);
      const minted = mintToken(org, as(owner), agent, null, actions);
      await org.write(minted.statement);
      expect(await effective(minted.text)).toEqual(actions);
    },
  );
  await fc.assert(property, { numRuns: 10 });
});

let agents = 0;

async function anAgent(org: Org): Promise<AgentId> {
  const id = `agt_${++agents}` as AgentId;
  await org.write(
    org.statement(
      'insert into policies (org_id, id, name, created_at) values (?1, ?2, ?2, 0)',
      `pol_${id}`,
    ),
    org.statement(
      'insert into agents (org_id, id, name, policy_id, created_at) values (?1, ?2, ?2, ?3, 0)',
      id,
      `pol_${id}`,
    ),
  );
  return id;
}
