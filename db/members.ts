/** Members: who belongs to an org, in which role, and how that changes. */

import { Refusal } from '../schema/errors.ts';
import type { MemberId, UserId } from '../schema/ids.ts';
import type { Role } from '../schema/roles.ts';
import { judgeRemoval, judgeRoleChange } from '../schema/rules/membership.ts';
import { type Actor, acting, auditEntry, refuse } from './audit.ts';
import type { Row, Statement, Value } from './client.ts';
import type { Org } from './org.ts';
import { confirmSlug } from './orgs.ts';
import { announce } from './outbox.ts';
import { type Page, readPage, type Window } from './page.ts';
import { forgetting } from './users.ts';

/** A person's role in an org. */
export interface Member {
  readonly id: MemberId;
  readonly userId: UserId;
  readonly email: string;
  readonly name: string | null;
  readonly role: Role;
  readonly createdAt: number;
}

const SELECT = `
  select m.id, m.user_id, m.role, m.created_at, u.email, u.name
  from members m join users u on u.id = m.user_id`;

/** Which members of an org are listed, and in which order. */
export interface MemberFilter {
  readonly role?: Role | null | undefined;
  /** Part of the name or of the address, in any case. */
  readonly search?: string | null | undefined;
  readonly order?: 'created_at' | 'email' | undefined;
  readonly isDescending?: boolean | undefined;
}

/** The members of an org, in the order in which they came unless told otherwise. */
export function listMembers(
  org: Org,
  { role = null, search = null, order = 'created_at', isDescending = false }: MemberFilter,
  window: Window,
): Promise<Page<Member>> {
  const sql = `${SELECT} where m.org_id = ?1 and (?2 is null or m.role = ?2)
    and (?3 is null or instr(lower(u.email || ' ' || coalesce(u.name, '')), lower(?3)) > 0)`;
  return readPage(org, { sql, args: [role, search], order, isDescending }, window, toMember);
}

/** The members of these ids. */
export async function readMembers(org: Org, ids: readonly MemberId[]): Promise<Member[]> {
  const rows = await org.read(
    `${SELECT} where m.org_id = ?1 and m.id in (select value from json_each(?2))`,
    JSON.stringify(ids),
  );
  return rows.map(toMember);
}

/** The member of an id. */
export async function readMember(org: Org, id: MemberId): Promise<Member | undefined> {
  const row = await org.first(`${SELECT} where m.org_id = ?1 and m.id = ?2`, id);
  return row && toMember(row);
}

/** The member with an address in its one spelling. */
export async function findMember(org: Org, email: string): Promise<Member | undefined> {
  const row = await org.first(`${SELECT} where m.org_id = ?1 and u.email = ?2`, email);
  return row && toMember(row);
}

function toMember(row: Row): Member {
  return {
    id: row.id as MemberId,
    userId: row.user_id as UserId,
    email: String(row.email),
    name: row.name as string | null,
    role: row.role as Role,
    createdAt: Number(row.created_at),
  };
}

/**
 * What must still hold when a member changes: his role is the one that was judged, who acts still
 * has his, and an owner remains. `?3` is the judged role, `?4` and `?5` who acts and his role.
 */
const STILL = `
  role = ?3
  and (?4 is null or exists (
    select 1 from members a where a.org_id = ?1 and a.id = ?4 and a.role = ?5
  ))`;
const OWNER_REMAINS = `(
  select count(*) from members o where o.org_id = ?1 and o.role = 'owner' and o.id <> ?2
) > 0`;

/**
 * Gives a member another role and ends his sessions; what his tokens may do follows his role. Of
 * two owners who demote each other at the same time one stays.
 *
 * @throws {Refusal} `not_found`, `permission_denied`, or `invalid_request` for the last owner.
 */
export async function changeRole(org: Org, actor: Actor, id: MemberId, role: Role): Promise<void> {
  const member = await present(org, actor, 'member.update_role', id);
  const standing = { member: id, role: member.role };
  const refusal = judgeRoleChange(acting(actor), standing, role, await countOwners(org));
  if (refusal) return await refuse(org, actor, 'member.update_role', id, refusal);
  const [changed] = await org.write(
    org.statement(
      `update members set role = ?6
       where org_id = ?1 and id = ?2 and ${STILL}
         and (role <> 'owner' or ?6 = 'owner' or ${OWNER_REMAINS})`,
      id,
      member.role,
      ...actingArgs(actor),
      role,
    ),
    auditEntry(
      org,
      actor,
      'member.update_role',
      id,
      { role },
      { before: { role: member.role }, ifChanged: true },
    ),
    endSessions(org, id),
  );
  if (changed!.changes === 0) await outrun(org, actor, 'member.update_role', id);
}

/**
 * Removes a member: his sessions end and his tokens may do nothing any more. The user remains in
 * his other orgs; who has none is forgotten, since no deletion of an org would find him later.
 *
 * @throws {Refusal} `not_found`, `permission_denied`, or `invalid_request` for the last owner.
 */
export async function removeMember(org: Org, actor: Actor, id: MemberId): Promise<void> {
  const member = await present(org, actor, 'member.remove', id);
  const standing = { member: id, role: member.role };
  const refusal = judgeRemoval(acting(actor), standing, await countOwners(org));
  if (refusal) return await refuse(org, actor, 'member.remove', id, refusal);
  const now = Date.now();
  const [removed] = await org.write(
    org.statement(
      `delete from members
       where org_id = ?1 and id = ?2 and ${STILL} and (role <> 'owner' or ${OWNER_REMAINS})`,
      id,
      member.role,
      ...actingArgs(actor),
    ),
    auditEntry(org, actor, 'member.remove', id, undefined, {
      before: { role: member.role, userId: member.userId },
      ifChanged: true,
    }),
    org.statement(
      `update tokens set revoked_at = ?3
       where org_id = ?1 and created_by = ?2 and kind = 'admin' and revoked_at is null
         and changes() > 0`,
      id,
      now,
    ),
    ...forgetting('id', [member.userId]),
  );
  if (removed!.changes === 0) await outrun(org, actor, 'member.remove', id);
}

/**
 * Lets a member go by himself, signed in; as {@link removeMember}.
 *
 * @param confirmation The org's slug, typed by him.
 * @returns who has left; undefined for who acts by a token.
 * @throws {Refusal} `invalid_request` when it is not the slug, or for the last owner.
 */
export async function leaveOrg(
  org: Org,
  actor: Actor,
  confirmation: string,
): Promise<MemberId | undefined> {
  if (typeof actor === 'string' || actor.kind !== 'user' || !actor.memberId) return undefined;
  await confirmSlug(org, actor, 'member.remove', confirmation);
  await removeMember(org, actor, actor.memberId);
  return actor.memberId;
}

function actingArgs(actor: Actor): [Value, Value] {
  const principal = acting(actor);
  return [principal ? (principal.memberId ?? '') : null, principal?.role ?? null];
}

function endSessions(org: Org, member: MemberId): Statement {
  return org.statement(
    'delete from sessions where org_id = ?1 and member_id = ?2 and changes() > 0',
    member,
  );
}

async function present(org: Org, actor: Actor, action: string, id: MemberId): Promise<Member> {
  const missing = new Refusal('not_found', 'The org has no such member.', {
    field: 'memberId',
  });
  return (await readMember(org, id)) ?? (await refuse(org, actor, action, id, missing));
}

/** Somebody else's change came first, and with it what was judged no longer holds. */
async function outrun(org: Org, actor: Actor, action: string, id: MemberId): Promise<never> {
  const refusal = new Refusal('permission_denied', 'Somebody changed the roles meanwhile.', {
    rule: 'membership.changed',
  });
  return await refuse(org, actor, action, id, refusal);
}

async function countOwners(org: Org): Promise<number> {
  const row = await org.first(
    `select count(*) as owners from members where org_id = ?1 and role = 'owner'`,
  );
  return Number(row?.owners);
}

const OFFER_MS = 7 * 86_400_000;

/** An offer of the ownership that is open. */
export interface OwnershipOffer {
  readonly from: MemberId;
  readonly to: MemberId;
  readonly offeredAt: number;
  readonly expiresAt: number;
}

/** The open offer of the ownership. */
export async function readOffer(org: Org, now: number): Promise<OwnershipOffer | undefined> {
  const row = await org.first(
    `select from_member, to_member, offered_at, expires_at from ownership_offers
     where org_id = ?1 and expires_at > ?2`,
    now,
  );
  return (
    row && {
      from: row.from_member as MemberId,
      to: row.to_member as MemberId,
      offeredAt: Number(row.offered_at),
      expiresAt: Number(row.expires_at),
    }
  );
}

/**
 * Offers an owner's ownership to another member for seven days, in place of an earlier offer.
 *
 * @param from The owner, who acts himself or in whose name the operator does.
 * @throws {Refusal} `permission_denied` when it is not an owner's own, or `not_found`.
 */
export async function offerOwnership(
  org: Org,
  actor: Actor,
  from: MemberId,
  to: MemberId,
  now: number,
): Promise<void> {
  const principal = acting(actor);
  const refusal = new Refusal('permission_denied', 'Only an owner can offer his ownership.', {
    rule: 'membership.ownership',
  });
  if (principal && principal.memberId !== from) {
    return await refuse(org, actor, 'org.transfer', to, refusal);
  }
  const heir = await present(org, actor, 'org.transfer', to);
  const [offered] = await org.write(
    org.statement(
      `insert into ownership_offers (org_id, from_member, to_member, offered_at, expires_at)
       select ?1, ?2, ?3, ?4, ?5
       where ?2 <> ?3
         and exists (select 1 from members where org_id = ?1 and id = ?2 and role = 'owner')
         and exists (select 1 from members where org_id = ?1 and id = ?3)
       on conflict do update set from_member = excluded.from_member,
         to_member = excluded.to_member, offered_at = excluded.offered_at,
         expires_at = excluded.expires_at`,
      from,
      heir.id,
      now,
      now + OFFER_MS,
    ),
    auditEntry(org, actor, 'org.transfer', to, { offered: true, from }, { ifChanged: true }),
  );
  if (offered!.changes === 0) await refuse(org, actor, 'org.transfer', to, refusal);
}

/** Takes the offer to a member back. @returns false when there is none. */
export async function withdrawOffer(org: Org, actor: Actor, to: MemberId): Promise<boolean> {
  const [withdrawn] = await org.write(
    org.statement('delete from ownership_offers where org_id = ?1 and to_member = ?2', to),
    auditEntry(org, actor, 'org.transfer', to, { withdrawn: true }, { ifChanged: true }),
  );
  return withdrawn!.changes > 0;
}

/**
 * Accepts the ownership: who accepts becomes an owner, who offered it an admin, and the sessions of
 * both end.
 *
 * @param member Who accepts, as himself, signed in.
 * @param confirmation The org's slug, typed by him.
 * @throws {Refusal} `invalid_request` when it is not the slug, `not_found` without an open offer.
 */
export async function acceptOwnership(
  org: Org,
  actor: Actor,
  member: MemberId,
  confirmation: string,
  now: number,
): Promise<void> {
  await confirmSlug(org, actor, 'org.transfer', confirmation);
  const offer = await readOffer(org, now);
  const refusal = new Refusal('not_found', 'There is no open offer of the ownership to you.');
  const principal = acting(actor);
  // A token can do less than its member; it must not make him more.
  const own = !principal || (principal.kind === 'user' && principal.memberId === member);
  if (!offer || offer.to !== member || !own) {
    return await refuse(org, actor, 'org.transfer', member, refusal);
  }
  const [accepted] = await org.write(...transfer(org, actor, offer, now));
  if (accepted!.changes === 0) await refuse(org, actor, 'org.transfer', member, refusal);
}

function transfer(org: Org, actor: Actor, { from, to }: OwnershipOffer, now: number): Statement[] {
  return [
    // The trigger of the rest: the very offer, by one who is still an owner.
    org.statement(
      `delete from ownership_offers
       where org_id = ?1 and from_member = ?2 and to_member = ?3 and expires_at > ?4
         and exists (select 1 from members where org_id = ?1 and id = ?2 and role = 'owner')`,
      from,
      to,
      now,
    ),
    org.statement(
      `update members set role = iif(id = ?3, 'owner', 'admin')
       where org_id = ?1 and id in (?2, ?3) and changes() > 0`,
      from,
      to,
    ),
    auditEntry(org, actor, 'org.transfer', to, { accepted: true, from }, { ifChanged: true }),
    announce(org, 'account.updated', { change: 'ownership_transferred' }, now, { ifChanged: true }),
    org.statement(
      `delete from sessions
       where org_id = ?1 and member_id in (?2, ?3)
         and role <> (select role from members where org_id = ?1 and id = member_id)`,
      from,
      to,
    ),
  ];
}
