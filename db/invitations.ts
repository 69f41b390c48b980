/** Invitations: an offer of membership by mail, accepted once by who reads that mail. */

import { Refusal } from '../schema/errors.ts';
import type { InvitationId, MemberId, OrgId, UserId } from '../schema/ids.ts';
import type { Role } from '../schema/roles.ts';
import { judgeInvitation, judgeTakingBack } from '../schema/rules/membership.ts';
import { type Actor, acting, actorName, auditEntry, refuse } from './audit.ts';
import { type Database, DatabaseError, type Row, type Statement } from './client.ts';
import { forOrg, type Org } from './org.ts';
import { type Page, readPage, type Window } from './page.ts';
import { hashToken, newId, newSecret } from './seal.ts';
import { findUser, userStatement } from './users.ts';

/** How long an invitation can be accepted. */
export const INVITATION_MS = 7 * 86_400_000;
/** The most open invitations of an org. */
export const MAX_OPEN_INVITATIONS = 200;

/** An invitation; who was invited is known, the link's secret is not. */
export interface Invitation {
  readonly id: InvitationId;
  readonly email: string;
  readonly role: Role;
  /** The member who invited, or `operator`. */
  readonly invitedBy: string;
  readonly createdAt: number;
  readonly expiresAt: number;
}

/** An invitation just made or renewed: the only time the secret of its link is known. */
export interface SentInvitation {
  readonly id: InvitationId;
  readonly secret: string;
}

/**
 * Invites a person to a role not above one's own.
 *
 * @param email In its one spelling.
 * @throws {Refusal} `permission_denied`, or `invalid_request` for a member, an address that is
 *   invited already, or too many open invitations.
 */
export async function invite(
  org: Org,
  actor: Actor,
  email: string,
  role: Role,
  now: number,
): Promise<SentInvitation> {
  const id = newId('invitation', now);
  const refusal = judgeInvitation(acting(actor), role);
  if (refusal) return await refuse(org, actor, 'invitation.create', id, refusal);
  const secret = newSecret();
  const [, made] = await unlessInvited(
    org.write(
      org.statement(
        `update invitations set revoked_at = ?3
         where org_id = ?1 and email = ?2 and expires_at <= ?3
           and accepted_at is null and revoked_at is null`,
        email,
        now,
      ),
      insertion(org, actor, { id, email, role, secret, now }),
      auditEntry(org, actor, 'invitation.create', id, { email, role }, { ifChanged: true }),
    ),
  );
  if (made!.changes === 0) throw invitedInVain();
  return { id, secret };
}

/** What an invitation is written with. */
interface NewInvitation {
  readonly id: InvitationId;
  readonly email: string;
  readonly role: Role;
  readonly secret: string;
  readonly now: number;
}

function insertion(
  org: Org,
  actor: Actor,
  { id, email, role, secret, now }: NewInvitation,
): Statement {
  return org.statement(
    `insert into invitations (
       org_id, id, email, role, hash, invited_by, created_at, expires_at
     ) select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8
     where not exists (
       select 1 from members m join users u on u.id = m.user_id
       where m.org_id = ?1 and u.email = ?3
     ) and (
       select count(*) from invitations
       where org_id = ?1 and accepted_at is null and revoked_at is null
     ) < ${MAX_OPEN_INVITATIONS}`,
    id,
    email,
    role,
    hashToken(secret),
    actorName(actor),
    now,
    now + INVITATION_MS,
  );
}

async function unlessInvited<T>(writing: Promise<T>): Promise<T> {
  try {
    return await writing;
  } catch (error) {
    if (!(error instanceof DatabaseError && error.conflict)) throw error;
    throw invitedInVain();
  }
}

function invitedInVain(): Refusal {
  return new Refusal(
    'invalid_request',
    'That person is a member or invited already, or too many invitations are open.',
    { field: 'email' },
  );
}

const OPEN = `select id, email, role, invited_by, created_at, expires_at from invitations
  where org_id = ?1 and accepted_at is null and revoked_at is null and expires_at > ?2`;

/** Invitations that can still be accepted, the newest first. */
export function listInvitations(org: Org, now: number, window: Window): Promise<Page<Invitation>> {
  const listing = { sql: OPEN, args: [now], order: 'created_at', isDescending: true };
  return readPage(org, listing, window, toInvitation);
}

/** The invitation of an id, while it can be accepted. */
export async function readInvitation(
  org: Org,
  id: InvitationId,
  now: number,
): Promise<Invitation | undefined> {
  const row = await org.first(`${OPEN} and id = ?3`, now, id);
  return row && toInvitation(row);
}

function toInvitation(row: Row): Invitation {
  return {
    id: row.id as InvitationId,
    email: String(row.email),
    role: row.role as Role,
    invitedBy: String(row.invited_by),
    createdAt: Number(row.created_at),
    expiresAt: Number(row.expires_at),
  };
}

/**
 * Renews an invitation: a new link for another seven days, and the old one is good no more.
 *
 * @throws {Refusal} `not_found` when it is accepted or revoked, `permission_denied` when it is to
 *   more than one's own role.
 */
export async function resendInvitation(
  org: Org,
  actor: Actor,
  id: InvitationId,
  now: number,
): Promise<SentInvitation> {
  const secret = newSecret();
  await change(org, actor, 'invitation.resend', id, [
    `update invitations set hash = ?3, expires_at = ?4, invited_by = ?5
     where org_id = ?1 and id = ?2 and accepted_at is null and revoked_at is null`,
    hashToken(secret),
    now + INVITATION_MS,
    actorName(actor),
  ]);
  return { id, secret };
}

/** Takes an invitation back. @throws {Refusal} as {@link resendInvitation} does. */
export async function revokeInvitation(
  org: Org,
  actor: Actor,
  id: InvitationId,
  now: number,
): Promise<void> {
  await change(org, actor, 'invitation.revoke', id, [
    `update invitations set revoked_at = ?3
     where org_id = ?1 and id = ?2 and accepted_at is null and revoked_at is null`,
    now,
  ]);
}

async function change(
  org: Org,
  actor: Actor,
  action: 'invitation.resend' | 'invitation.revoke',
  id: InvitationId,
  [sql, ...args]: [string, ...(string | number)[]],
): Promise<void> {
  const missing = new Refusal('not_found', 'The org has no such open invitation.', {
    field: 'invitationId',
  });
  const row = await org.first('select role from invitations where org_id = ?1 and id = ?2', id);
  if (!row) return await refuse(org, actor, action, id, missing);
  const judge = action === 'invitation.revoke' ? judgeTakingBack : judgeInvitation;
  const refusal = judge(acting(actor), row.role as Role);
  if (refusal) return await refuse(org, actor, action, id, refusal);
  const [changed] = await org.write(
    org.statement(sql, id, ...args),
    auditEntry(org, actor, action, id, undefined, { ifChanged: true }),
  );
  if (changed!.changes === 0) await refuse(org, actor, action, id, missing);
}

/** What accepting an invitation has made. */
export interface Joined {
  readonly orgId: OrgId;
  readonly memberId: MemberId;
  readonly userId: UserId;
  readonly role: Role;
}

/** What who holds an invitation's link may know of it. */
export interface Offer {
  readonly orgName: string;
  readonly email: string;
  readonly role: Role;
}

/** What the link of an invitation offers, while it can be accepted; it is not used up. */
export async function peekInvitation(
  db: Database,
  secret: string,
  now: number,
): Promise<Offer | undefined> {
  const row = await db.first(
    `select o.name, i.email, i.role from invitations i join orgs o on o.id = i.org_id
     where i.hash = ?1 and i.accepted_at is null and i.revoked_at is null and i.expires_at > ?2`,
    [hashToken(secret), now],
  );
  return row && { orgName: String(row.name), email: String(row.email), role: row.role as Role };
}

/**
 * Accepts an invitation by the secret of its link, once. The role is that of the invitation, as
 * long as who invited could still give it.
 *
 * @throws {Refusal} `not_found` for a link that is unknown, expired, revoked or used.
 */
export async function acceptInvitation(db: Database, secret: string, now: number): Promise<Joined> {
  const row = await db.first(
    `select id, org_id, email, role, hash from invitations
     where hash = ?1 and accepted_at is null and revoked_at is null and expires_at > ?2`,
    [hashToken(secret), now],
  );
  if (!row) throw closed();
  return await join(db, forOrg(db, row.org_id as OrgId), row, now);
}

/**
 * Accepts the org's invitation of an address, for who has proven that it is his.
 *
 * @param email In its one spelling.
 * @returns undefined when there is none that can be accepted.
 * @throws {Refusal} `not_found` when it was taken back or used meanwhile.
 */
export async function acceptInvitationOf(
  db: Database,
  org: Org,
  email: string,
  now: number,
): Promise<Joined | undefined> {
  const row = await org.first(
    `select id, email, role, hash from invitations
     where org_id = ?1 and email = ?2
       and accepted_at is null and revoked_at is null and expires_at > ?3`,
    email,
    now,
  );
  return row && (await join(db, org, row, now));
}

function closed(): Refusal {
  return new Refusal('not_found', 'The invitation is used, expired or taken back.');
}

/** @param row The invitation: its `id`, `email`, `role`, and the `hash` of its link. */
async function join(db: Database, org: Org, row: Row, now: number): Promise<Joined> {
  const email = String(row.email);
  const memberId = newId('member', now);
  const role = row.role as Role;
  const [, accepted, joined] = await org.write(
    userStatement(email, now),
    org.statement(
      `update invitations set accepted_at = ?4
       where org_id = ?1 and id = ?2 and hash = ?3
         and accepted_at is null and revoked_at is null and expires_at > ?4
         and ${INVITER_STILL_MAY}`,
      row.id!,
      row.hash!,
      now,
    ),
    org.statement(
      `insert into members (org_id, id, user_id, role, created_at)
       select ?1, ?2, id, ?4, ?5 from users where email = ?3 and changes() > 0
       on conflict do nothing`,
      memberId,
      email,
      role,
      now,
    ),
    auditEntry(
      org,
      { kind: 'link', id: String(row.id), memberId },
      'invitation.accept',
      String(row.id),
      { member: memberId, role },
      { ifChanged: true },
    ),
  );
  const user = await findUser(db, email);
  if (accepted!.changes === 0 || joined!.changes === 0 || !user) throw closed();
  return { orgId: org.id, memberId, userId: user.id, role };
}

/** The operator, or a member who still holds a role that may invite to this one. */
const INVITER_STILL_MAY = `(
  invited_by = 'operator' or exists (
    select 1 from members i where i.org_id = ?1 and i.id = invited_by
      and (i.role = 'owner' or i.role = 'admin' and invitations.role <> 'owner')
  )
)`;
