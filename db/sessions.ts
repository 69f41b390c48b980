/** Sessions: opaque ids, kept by hash on the server, each for one member of one org. */

import type { MemberId, OrgId, SessionId, UserId } from '../schema/ids.ts';
import type { Role } from '../schema/roles.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Database, Row } from './client.ts';
import { forOrg, type Org } from './org.ts';
import { type Page, readPage, type Window } from './page.ts';
import { hashToken, newId, newSecret } from './seal.ts';

/** How long a session lives without a request, and at most. */
export const IDLE_MS = 12 * 3_600_000;
export const MAX_SESSION_MS = 30 * 86_400_000;
/** How coarsely its last use is noted. */
const TOUCH_MS = 300_000;
/** The most sessions of a member at once; the oldest ends for a new one. */
export const MAX_SESSIONS = 20;
const MAX_AGENT_CHARS = 300;

/** How somebody proved who he is. */
export type SignInMethod = 'link' | 'oidc' | 'invitation';

/** What a request needs to know of its session, read anew on every request. */
export interface Session {
  readonly id: SessionId;
  readonly orgId: OrgId;
  readonly memberId: MemberId;
  readonly userId: UserId;
  readonly email: string;
  readonly role: Role;
  readonly expiresAt: number;
  readonly orgSuspendedAt: number | null;
}

/** Where a session was opened. */
export interface Origin {
  readonly method: SignInMethod;
  readonly address?: string | undefined;
  readonly userAgent?: string | undefined;
}

/**
 * Opens a session for a member who has proven who he is.
 *
 * @returns its secret for the cookie, shown once: 256 random bits; undefined without such a member.
 */
export async function openSession(
  org: Org,
  member: MemberId,
  { method, address, userAgent }: Origin,
  now: number,
): Promise<{ id: SessionId; secret: string } | undefined> {
  const user = await org.first(
    'select user_id, role from members where org_id = ?1 and id = ?2',
    member,
  );
  if (!user) return undefined;
  const id = newId('session', now);
  const secret = newSecret();
  const [opened] = await org.write(
    org.statement(
      `insert into sessions (
         org_id, id, member_id, hash, role, method, address, user_agent, created_at, active_at,
         expires_at
       ) select ?1, ?2, ?3, ?4, role, ?5, ?6, ?7, ?8, ?8, ?9
       from members where org_id = ?1 and id = ?3`,
      id,
      member,
      hashToken(secret),
      method,
      address ?? null,
      userAgent?.slice(0, MAX_AGENT_CHARS) ?? null,
      now,
      now + MAX_SESSION_MS,
    ),
    auditEntry(
      org,
      {
        ...{ kind: 'user', id: String(user.user_id), memberId: member, role: user.role as Role },
        ...seenFrom(address, userAgent),
      },
      'session.create',
      id,
      { method },
      { ifChanged: true },
    ),
    org.statement(
      `delete from sessions where org_id = ?1 and member_id = ?2 and id in (
         select id from sessions where org_id = ?1 and member_id = ?2 and id <> ?3
         order by active_at desc, id desc limit -1 offset ${MAX_SESSIONS - 1}
       )`,
      member,
      id,
    ),
  );
  return opened!.changes > 0 ? { id, secret } : undefined;
}

function seenFrom(address: string | undefined, userAgent: string | undefined) {
  return { ...(address ? { address } : {}), ...(userAgent ? { userAgent } : {}) };
}

/**
 * Finds a session by its secret, with the role as it is now. This is how a request finds its org,
 * so it is not scoped to one. A session that was idle for too long, is too old, or was opened with
 * another role than its member has now is none.
 */
export async function findSession(
  db: Database,
  secret: string,
  now: number,
): Promise<Session | undefined> {
  const row = await db.first(
    `select s.id, s.org_id, s.member_id, s.active_at, s.expires_at, m.user_id, m.role, u.email,
       o.suspended_at
     from sessions s
     join members m on m.id = s.member_id and m.org_id = s.org_id and m.role = s.role
     join users u on u.id = m.user_id
     join orgs o on o.id = s.org_id
     where s.hash = ?1 and s.expires_at > ?2 and s.active_at > ?3`,
    [hashToken(secret), now, now - IDLE_MS],
  );
  if (!row) return undefined;
  const session = toSession(row);
  if (Number(row.active_at) <= now - TOUCH_MS) await touch(forOrg(db, session.orgId), session, now);
  return session;
}

async function touch(org: Org, { id }: Session, now: number): Promise<void> {
  await org.write(
    org.statement(
      'update sessions set active_at = max(active_at, ?3) where org_id = ?1 and id = ?2',
      id,
      now,
    ),
  );
}

function toSession(row: Row): Session {
  return {
    id: row.id as SessionId,
    orgId: row.org_id as OrgId,
    memberId: row.member_id as MemberId,
    userId: row.user_id as UserId,
    email: String(row.email),
    role: row.role as Role,
    expiresAt: Number(row.expires_at),
    orgSuspendedAt: row.suspended_at as number | null,
  };
}

/** A session as people see it in a list. */
export interface ListedSession {
  readonly id: SessionId;
  readonly memberId: MemberId;
  readonly method: SignInMethod;
  readonly address: string | null;
  readonly userAgent: string | null;
  readonly createdAt: number;
  readonly activeAt: number;
  readonly expiresAt: number;
}

const LIVE = `select s.id, s.member_id, s.method, s.address, s.user_agent, s.created_at,
    s.active_at, s.expires_at
  from sessions s join members m on m.id = s.member_id and m.org_id = ?1 and m.role = s.role
  where s.org_id = ?1 and s.expires_at > ?2 and s.active_at > ?3`;

/** The live sessions of a member, or with null of all members; the latest used first. */
export function listSessions(
  org: Org,
  member: MemberId | null,
  now: number,
  window: Window,
): Promise<Page<ListedSession>> {
  const sql = `${LIVE} and (?4 is null or s.member_id = ?4)`;
  const args = [now, now - IDLE_MS, member];
  return readPage(org, { sql, args, order: 'active_at', isDescending: true }, window, toListed);
}

/** The live sessions of each of these members, the latest used first. */
export async function sessionsOf(
  org: Org,
  members: readonly MemberId[],
  now: number,
): Promise<ReadonlyMap<MemberId, readonly ListedSession[]>> {
  const rows = await org.read(
    `${LIVE} and s.member_id in (select value from json_each(?4))
     order by s.active_at desc, s.id desc`,
    now,
    now - IDLE_MS,
    JSON.stringify(members),
  );
  return Map.groupBy(rows.map(toListed), ({ memberId }) => memberId);
}

function toListed(row: Row): ListedSession {
  return {
    id: row.id as SessionId,
    memberId: row.member_id as MemberId,
    method: row.method as SignInMethod,
    address: row.address as string | null,
    userAgent: row.user_agent as string | null,
    createdAt: Number(row.created_at),
    activeAt: Number(row.active_at),
    expiresAt: Number(row.expires_at),
  };
}

/**
 * Ends a session: a person's own, or anyone's for whom may end those of others.
 *
 * @returns false when there is no session that who acts may end.
 */
export async function revokeSession(org: Org, actor: Actor, id: SessionId): Promise<boolean> {
  if (typeof actor === 'string' || actor.actions?.includes('session.revoke')) {
    return await endSession(org, actor, id, null);
  }
  const isOwn = actor.kind === 'user' && actor.memberId !== undefined;
  return isOwn && (await endSession(org, actor, id, actor.memberId));
}

/**
 * Ends a session, from the next request on.
 *
 * @param member Whose it must be; null for anyone's but an owner's, unless an owner acts.
 * @returns false when there is no such session.
 */
export async function endSession(
  org: Org,
  actor: Actor,
  id: SessionId,
  member: MemberId | null,
): Promise<boolean> {
  const byOwner = typeof actor === 'string' || actor.role === 'owner';
  const [ended] = await org.write(
    org.statement(
      `delete from sessions
       where org_id = ?1 and id = ?2 and iif(?3 is null, ?4 or exists (
         select 1 from members m where m.org_id = ?1 and m.id = member_id and m.role <> 'owner'
       ), member_id = ?3)`,
      id,
      member,
      byOwner ? 1 : 0,
    ),
    auditEntry(org, actor, 'session.revoke', id, undefined, { ifChanged: true }),
  );
  return ended!.changes > 0;
}

/** Deletes sessions that are over, in all orgs. @returns how many, at most `limit`; 0 when none is left. */
export async function purgeSessions(db: Database, now: number, limit: number): Promise<number> {
  const [purged] = await db.write([
    {
      sql: `delete from sessions where id in (
          select id from sessions where expires_at <= ?1 or active_at <= ?2 limit ?3
        )`,
      args: [now, now - IDLE_MS, limit],
    },
  ]);
  return purged!.changes;
}
