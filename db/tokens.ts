/** Tokens: stored by hash, looked up on every call, revoked at once. */

import { Refusal } from '../schema/errors.ts';
import type { AgentId, MemberId, OrgId, PolicyId, RunId, TokenId, UserId } from '../schema/ids.ts';
import {
  type Action,
  type AdminAction,
  AGENT_ACTIONS,
  type AgentAction,
  isAdminAction,
  mayDo,
  type Role,
} from '../schema/roles.ts';
import { type Acting, judgeGrant, judgeTokenChange } from '../schema/rules/membership.ts';
import { lastFour } from '../schema/token.ts';
import { type Actor, acting, actorName, auditEntry, refuse } from './audit.ts';
import type { Database, Row, Statement } from './client.ts';
import type { Org } from './org.ts';
import { announce } from './outbox.ts';
import { type Page, readPage, readPages, type Window } from './page.ts';
import { hashToken, newId, newToken } from './seal.ts';

/** What a call needs to know of its token, read anew on every call. */
export interface Credential {
  readonly tokenId: TokenId;
  readonly orgId: OrgId;
  /** Rises whenever the org's keys or prices change. */
  readonly revision: number;
  readonly kind: 'agent' | 'admin';
  /** What it may do now: an admin token never more than its member, and nothing without one. */
  readonly actions: readonly Action[];
  /** Which policies its runs may be under, by name or label; null for all that its agent may use. */
  readonly policies: readonly string[] | null;
  readonly expiresAt: number | null;
  readonly revokedAt: number | null;
  readonly lastUsedAt: number | null;
  readonly orgSuspendedAt: number | null;
  readonly agent: CredentialAgent | undefined;
  /** The member whose token it is. */
  readonly member: CredentialMember | undefined;
}

/** The agent that a token speaks for. */
export interface CredentialAgent {
  readonly id: AgentId;
  readonly name: string;
  readonly policyId: PolicyId;
  readonly suspendedAt: number | null;
  readonly windowRunId: RunId | null;
}

/** The member that an admin token belongs to. */
export interface CredentialMember {
  readonly id: MemberId;
  readonly userId: UserId;
  readonly role: Role;
}

/** Finds a token by its hash. This is how a request finds its org, so it is not scoped to one. */
export async function findCredential(
  db: Database,
  tokenHash: string,
): Promise<Credential | undefined> {
  const row = await db.first(
    `select t.id, t.org_id, t.kind, t.actions, t.policies, t.expires_at, t.revoked_at,
       t.last_used_at,
       o.revision, o.suspended_at as org_suspended_at, o.deletion_requested_at as org_leaves_at,
       a.id as agent_id, a.name, a.policy_id, a.suspended_at, a.window_run_id,
       m.id as member_id, m.user_id, m.role
     from tokens t
     join orgs o on o.id = t.org_id
     left join agents a on a.id = t.agent_id and a.org_id = t.org_id
     left join members m on t.kind = 'admin' and m.id = t.created_by and m.org_id = t.org_id
     where t.hash = ?1`,
    [tokenHash],
  );
  if (!row) return undefined;
  const member = toMember(row);
  return {
    tokenId: row.id as TokenId,
    orgId: row.org_id as OrgId,
    revision: row.revision as number,
    kind: row.kind as Credential['kind'],
    ...standingOf(row, row.kind === 'agent' ? agentActions(row) : heldActions(row, member?.role)),
    policies: toPolicies(row),
    expiresAt: row.expires_at as number | null,
    revokedAt: row.revoked_at as number | null,
    lastUsedAt: row.last_used_at as number | null,
    agent: toAgent(row),
    member,
  };
}

/** What a token may still do once the deletion of its org is asked for: see that, and stop it. */
const LEAVING: readonly Action[] = ['org.read', 'org.cancel_deletion'];

/** A token that can't stop the deletion of its org is suspended by it. */
function standingOf(
  row: Row,
  held: readonly Action[],
): Pick<Credential, 'actions' | 'orgSuspendedAt'> {
  const orgSuspendedAt = row.org_suspended_at as number | null;
  const leavesAt = row.org_leaves_at as number | null;
  if (leavesAt === null) return { actions: held, orgSuspendedAt };
  const canStop = held.includes('org.cancel_deletion');
  return {
    actions: held.filter((action) => LEAVING.includes(action)),
    orgSuspendedAt: orgSuspendedAt ?? (canStop ? null : leavesAt),
  };
}

function toAgent(row: Row): CredentialAgent | undefined {
  if (row.agent_id === null) return undefined;
  return {
    id: row.agent_id as AgentId,
    name: row.name as string,
    policyId: row.policy_id as PolicyId,
    suspendedAt: row.suspended_at as number | null,
    windowRunId: row.window_run_id as RunId | null,
  };
}

function toMember(row: Row): CredentialMember | undefined {
  if (row.member_id === null) return undefined;
  return {
    id: row.member_id as MemberId,
    userId: row.user_id as UserId,
    role: row.role as Role,
  };
}

function agentActions(row: Row): AgentAction[] {
  return String(row.actions).split(' ') as AgentAction[];
}

function toPolicies({ policies }: Row): readonly string[] | null {
  return policies === null ? null : String(policies).split(' ');
}

/** Of what was granted, what the member holds himself by now. */
function heldActions(row: Row, role: Role | undefined): AdminAction[] {
  if (!role) return [];
  const granted = String(row.actions).split(' ').filter(isAdminAction);
  return granted.filter((action) => mayDo(role, action));
}

const HOUR_MS = 3_600_000;

/** Whether this hour's use of a token has been noted. */
export function isTouched({ lastUsedAt }: Credential, now: number): boolean {
  return lastUsedAt !== null && lastUsedAt >= now - (now % HOUR_MS);
}

/** Notes that a token is in use, to the hour. */
export async function touchToken(org: Org, credential: Credential, now: number): Promise<void> {
  if (isTouched(credential, now)) return;
  const hour = now - (now % HOUR_MS);
  await org.write(
    org.statement(
      'update tokens set last_used_at = ?3 where org_id = ?1 and id = ?2',
      credential.tokenId,
      hour,
    ),
  );
}

/** A token just made: the only time its text is known. */
export interface MintedToken {
  readonly id: TokenId;
  readonly text: string;
  readonly statement: Statement;
}

/** What a token is made with. */
interface Minting {
  readonly agent: AgentId | null;
  readonly name: string | null;
  readonly actions: readonly Action[];
  readonly policies: readonly string[] | null;
  /** The member whose token it is, or who made it for an agent. */
  readonly maker: string;
  /** The role that an admin token's maker must still have when it is written. */
  readonly role: Role | null;
  readonly expiresAt: number | null;
}

/**
 * Makes a token of an agent. Commit its statement.
 *
 * @param actions What it may do, of all that an agent's token can be allowed.
 * @param policies Which policies its runs may be under: names of policies, and labels of versions
 *   such as `prod-agents/v4`; null for all that the agent may use. It stays so for good.
 */
export function mintToken(
  org: Org,
  actor: Actor,
  agent: AgentId,
  expiresAt: number | null,
  actions: readonly AgentAction[] = AGENT_ACTIONS,
  policies: readonly string[] | null = null,
): MintedToken {
  const maker = actorName(actor);
  return mint(org, { agent, name: null, actions, policies, maker, role: null, expiresAt });
}

/**
 * Makes an admin token of a member. Commit its statement, which writes nothing when the member has
 * another role by then.
 */
export function mintAdminToken(
  org: Org,
  { id, role }: { readonly id: MemberId; readonly role: Role },
  { name, actions, expiresAt }: NewAdminToken,
): MintedToken {
  return mint(org, {
    ...{ agent: null, name, actions, policies: null },
    ...{ maker: id, role, expiresAt },
  });
}

function mint(org: Org, minting: Minting): MintedToken {
  const { agent, name, actions, policies, maker, role, expiresAt } = minting;
  const kind = agent ? 'agent' : 'admin';
  const text = newToken(kind);
  const id = newId('token');
  return {
    id,
    text,
    statement: org.statement(
      `insert into tokens (
         org_id, id, agent_id, kind, hash, last_four, actions, created_by, created_at, expires_at,
         name, policies
       ) select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12
       where (?13 is null or exists (
         select 1 from members where org_id = ?1 and id = ?8 and role = ?13
       ))`,
      id,
      agent,
      kind,
      hashToken(text),
      lastFour(text),
      actions.join(' '),
      maker,
      Date.now(),
      expiresAt,
      name,
      policies?.join(' ') ?? null,
      role,
    ),
  };
}

/**
 * Gives an agent a new token that can do what its present ones can together. These end now, or
 * after an overlap, but never later than they would have ended anyway.
 *
 * @returns the new token's id and its text, shown once.
 * @throws {Refusal} `invalid_request` where no single token stands for them all.
 */
export async function rotateAgentTokens(
  org: Org,
  actor: Actor,
  agent: AgentId,
  overlapMs: number,
): Promise<{ id: TokenId; token: string }> {
  const now = Date.now();
  const rows = await org.read(
    `select actions, policies, expires_at from tokens
     where org_id = ?1 and agent_id = ?2 and revoked_at is null
       and coalesce(expires_at, ?3 + 1) > ?3`,
    agent,
    now,
  );
  const held = rows.flatMap(agentActions);
  const actions = AGENT_ACTIONS.filter((action) => rows.length === 0 || held.includes(action));
  const ends = rows.map(({ expires_at }) => expires_at as number | null);
  const minted = mintToken(org, actor, agent, latestOf(ends), actions, jointPolicies(rows));
  await org.write(
    overlapMs > 0
      ? org.statement(
          `update tokens set expires_at = min(coalesce(expires_at, ?3), ?3)
           where org_id = ?1 and agent_id = ?2 and revoked_at is null`,
          agent,
          now + overlapMs,
        )
      : revocation(org, agent, now),
    minted.statement,
    auditEntry(org, actor, 'token.rotate', agent, { token: minted.id, overlapMs }),
  );
  return { id: minted.id, token: minted.text };
}

/**
 * What tokens permit together. One that can do all of it could do more than any of them where they
 * differ in both: an action of the one under a policy of the other.
 *
 * @returns null where one of them, or none at all, leaves it to the agent.
 * @throws {Refusal} `invalid_request` where they do.
 */
function jointPolicies(rows: readonly Row[]): readonly string[] | null {
  const lists = new Set(rows.map(({ policies }) => policies));
  const actions = new Set(rows.map((row) => agentActions(row).sort().join(' ')));
  if (lists.size > 1 && actions.size > 1) {
    throw new Refusal(
      'invalid_request',
      'The tokens of the agent differ in what they may do and in the policies they permit; replace each by itself.',
      { field: 'agentId' },
    );
  }
  const all = rows.map(toPolicies);
  const each = all.filter((policies) => policies !== null);
  return rows.length === 0 || each.length < all.length ? null : [...new Set(each.flat())];
}

/** The latest of some ends; null where there is none, or one of them never comes. */
function latestOf(ends: readonly (number | null)[]): number | null {
  return ends.reduce<number | null>(
    (latest, end, at) =>
      at === 0 ? end : latest === null || end === null ? null : Math.max(latest, end),
    null,
  );
}

/**
 * Ends all tokens of an agent, from the next request on.
 *
 * @returns how many ended.
 */
export async function revokeAgentTokens(org: Org, actor: Actor, agent: AgentId): Promise<number> {
  const [ended] = await org.write(
    revocation(org, agent, Date.now()),
    auditEntry(org, actor, 'token.revoke', agent, undefined, { ifChanged: true }),
  );
  return ended!.changes;
}

function revocation(org: Org, agent: AgentId, now: number): Statement {
  return org.statement(
    `update tokens set revoked_at = ?3
     where org_id = ?1 and agent_id = ?2 and revoked_at is null`,
    agent,
    now,
  );
}

/** What an admin token is asked to be. */
export interface NewAdminToken {
  readonly name: string;
  readonly actions: readonly AdminAction[];
  /** Unix milliseconds; null for one that stays. */
  readonly expiresAt: number | null;
}

/**
 * Makes an admin token of the member who acts, with no more actions than he holds, be it by his
 * role or by the token he came with. The operator makes one in a member's name.
 *
 * @param member Whose token it will be.
 * @returns the token's id and its text, shown once.
 * @throws {Refusal} `permission_denied` for more than one's own, `not_found` without such a member.
 */
export async function createAdminToken(
  org: Org,
  actor: Actor,
  member: MemberId,
  wanted: NewAdminToken,
): Promise<{ id: TokenId; token: string }> {
  const role = await roleOf(org, member);
  const refusal = role ? judgeGrant(acting(actor), { member, role }, wanted) : noMember();
  if (refusal || !role) return await refuse(org, actor, 'token.create', member, refusal!);
  const minted = mintAdminToken(org, { id: member, role }, wanted);
  const now = Date.now();
  const { name, actions, expiresAt } = wanted;
  const [made] = await org.write(
    minted.statement,
    auditEntry(
      org,
      actor,
      'token.create',
      minted.id,
      { name, actions, expiresAt, member },
      { ifChanged: true },
    ),
    announce(org, 'admin_token.created', { tokenId: minted.id, actions: [...actions] }, now, {
      ifChanged: true,
    }),
  );
  if (made!.changes === 0) return await refuse(org, actor, 'token.create', member, noMember());
  return { id: minted.id, token: minted.text };
}

function noMember(): Refusal {
  return new Refusal('not_found', 'The org has no such member.');
}

function noToken(): Refusal {
  return new Refusal('not_found', 'The org has no such token.', { field: 'tokenId' });
}

async function roleOf(org: Org, member: MemberId): Promise<Role | undefined> {
  const row = await org.first('select role from members where org_id = ?1 and id = ?2', member);
  return row?.role as Role | undefined;
}

/** A token as people see it; its text is not known. */
export interface StoredToken {
  readonly id: TokenId;
  readonly kind: Credential['kind'];
  readonly name: string | null;
  readonly agentId: AgentId | null;
  readonly lastFour: string;
  /** What was granted; what it may do now is `effective`. */
  readonly actions: readonly string[];
  readonly effective: readonly Action[];
  /** Which policies its runs may be under, by name or label; null for all that its agent may use. */
  readonly policies: readonly string[] | null;
  /** The member, or `operator`. */
  readonly createdBy: string;
  /** The role of the member whose admin token it is; undefined when he is gone. */
  readonly role: Role | undefined;
  readonly createdAt: number;
  readonly expiresAt: number | null;
  readonly revokedAt: number | null;
  readonly lastUsedAt: number | null;
}

const STORED = `
  select t.id, t.kind, t.name, t.agent_id, t.last_four, t.actions, t.policies, t.created_by,
    t.created_at, t.expires_at, t.revoked_at, t.last_used_at, m.role
  from tokens t
  left join members m on t.kind = 'admin' and m.id = t.created_by and m.org_id = t.org_id`;

/** Which tokens of an org are listed. */
export interface TokenFilter {
  readonly kind?: Credential['kind'] | null | undefined;
  /** Only those that are neither revoked nor expired at this time, in Unix milliseconds. */
  readonly activeAt?: number | null | undefined;
}

/** Tokens of an org, the newest first. */
export function listTokens(
  org: Org,
  { kind = null, activeAt = null }: TokenFilter,
  window: Window,
): Promise<Page<StoredToken>> {
  const sql = `${STORED} where t.org_id = ?1 and (?2 is null or t.kind = ?2)
    and (?3 is null or t.revoked_at is null and coalesce(t.expires_at, ?3 + 1) > ?3)`;
  const listing = { sql, args: [kind, activeAt], order: 'created_at', isDescending: true };
  return readPage(org, listing, window, toStored);
}

/** The tokens of agents, the newest first. */
export function listTokensOfAgents(
  org: Org,
  agents: readonly AgentId[],
  window: Window,
): Promise<Map<AgentId, Page<StoredToken>>> {
  const listings = {
    sql: (agent: string) => `${STORED} where t.org_id = ?1 and t.agent_id = ${agent}`,
    ...{ args: [], order: 'created_at', isDescending: true },
  };
  return readPages(org, listings, agents, window, toStored);
}

/** The tokens of these ids. */
export async function readTokens(org: Org, ids: readonly TokenId[]): Promise<StoredToken[]> {
  const rows = await org.read(
    `${STORED} where t.org_id = ?1 and t.id in (select value from json_each(?2))`,
    JSON.stringify(ids),
  );
  return rows.map(toStored);
}

/** The token of an id. */
export async function readStoredToken(org: Org, id: TokenId): Promise<StoredToken | undefined> {
  const row = await org.first(`${STORED} where t.org_id = ?1 and t.id = ?2`, id);
  return row && toStored(row);
}

function toStored(row: Row): StoredToken {
  const role = (row.role ?? undefined) as Role | undefined;
  return {
    id: row.id as TokenId,
    kind: row.kind as StoredToken['kind'],
    name: row.name as string | null,
    agentId: row.agent_id as AgentId | null,
    lastFour: String(row.last_four),
    actions: String(row.actions).split(' '),
    effective: row.kind === 'agent' ? agentActions(row) : heldActions(row, role),
    policies: toPolicies(row),
    createdBy: String(row.created_by),
    role,
    createdAt: Number(row.created_at),
    expiresAt: row.expires_at as number | null,
    revokedAt: row.revoked_at as number | null,
    lastUsedAt: row.last_used_at as number | null,
  };
}

/**
 * Renames an admin token or changes its actions, within those of who acts.
 *
 * @throws {Refusal} `not_found`, or `permission_denied` for more than one's own.
 */
export async function updateAdminToken(
  org: Org,
  actor: Actor,
  id: TokenId,
  { name, actions }: Pick<NewAdminToken, 'name' | 'actions'>,
): Promise<void> {
  const present = await judged(org, actor, 'token.update', id, (acting, token) =>
    judgeTokenChange(acting, token, actions),
  );
  const [changed] = await org.write(
    org.statement(
      `update tokens set name = ?3, actions = ?4
       where org_id = ?1 and id = ?2 and kind = 'admin' and revoked_at is null`,
      id,
      name,
      actions.join(' '),
    ),
    auditEntry(
      org,
      actor,
      'token.update',
      id,
      { name, actions },
      { before: { name: present.name, actions: present.actions }, ifChanged: true },
    ),
  );
  if (changed!.changes === 0) throw noToken();
}

/**
 * Ends a token from the next request on.
 *
 * @returns false when it had ended before.
 * @throws {Refusal} `not_found`, or `permission_denied` for the token of someone above.
 */
export async function revokeToken(org: Org, actor: Actor, id: TokenId): Promise<boolean> {
  await judged(org, actor, 'token.revoke', id, (acting, token) =>
    judgeTokenChange(acting, token, []),
  );
  const [ended] = await org.write(
    org.statement(
      'update tokens set revoked_at = ?3 where org_id = ?1 and id = ?2 and revoked_at is null',
      id,
      Date.now(),
    ),
    auditEntry(org, actor, 'token.revoke', id, undefined, { ifChanged: true }),
  );
  return ended!.changes > 0;
}

/**
 * Replaces a token by a new one with the same owner, name, actions, policies and end. The present one ends
 * now, or after an overlap, but never later than it would have ended anyway.
 *
 * @returns the new token's id and its text, shown once.
 * @throws {Refusal} `not_found`, or `permission_denied` for an admin token that is another's or may
 *   more than who acts.
 */
export async function rotateToken(
  org: Org,
  actor: Actor,
  id: TokenId,
  overlapMs: number,
): Promise<{ id: TokenId; token: string }> {
  const present = await judged(org, actor, 'token.rotate', id, judgeRotation);
  const minted = remint(org, actor, present);
  const [ended] = await org.write(
    org.statement(
      `update tokens set
         expires_at = iif(?4 > 0, min(coalesce(expires_at, ?3 + ?4), ?3 + ?4), expires_at),
         revoked_at = iif(?4 > 0, null, ?3)
       where org_id = ?1 and id = ?2 and revoked_at is null and coalesce(expires_at, ?3 + 1) > ?3
         and (?5 is null or exists (
           select 1 from members where org_id = ?1 and id = created_by and role = ?5
         ))`,
      id,
      Date.now(),
      overlapMs,
      present.kind === 'admin' ? (present.role ?? '') : null,
    ),
    { ...minted.statement, sql: `${minted.statement.sql} and changes() > 0` },
    auditEntry(
      org,
      actor,
      'token.rotate',
      id,
      { replacedBy: minted.id, overlapMs },
      { ifChanged: true },
    ),
  );
  if (ended!.changes === 0) throw noToken();
  return { id: minted.id, token: minted.text };
}

/** What takes the place of a token: an agent's for the agent, a member's for the member. */
function remint(org: Org, actor: Actor, present: StoredToken): MintedToken {
  const { agentId, effective, expiresAt, name, policies, role } = present;
  if (agentId) {
    const actions = AGENT_ACTIONS.filter((action) => effective.includes(action));
    return mintToken(org, actor, agentId, expiresAt, actions, policies);
  }
  if (!role) throw noToken();
  return mintAdminToken(
    org,
    { id: present.createdBy as MemberId, role },
    { name: name ?? '', actions: effective.filter(isAdminAction), expiresAt },
  );
}

/** What a further token of an agent is to be. */
export interface NewAgentToken {
  /** What it may do, at least one. */
  readonly actions: readonly AgentAction[];
  /** As {@link mintToken} has them, at least one. */
  readonly policies: readonly string[] | null;
  /** Unix milliseconds; null for one that stays. */
  readonly expiresAt: number | null;
}

/**
 * Makes a further token of an agent.
 *
 * @returns the token's id and its text, shown once; undefined without such an agent.
 */
export async function createAgentToken(
  org: Org,
  actor: Actor,
  agent: AgentId,
  { actions, policies, expiresAt }: NewAgentToken,
): Promise<{ id: TokenId; token: string } | undefined> {
  const minted = mintToken(org, actor, agent, expiresAt, actions, policies);
  const isThere = 'and exists (select 1 from agents where org_id = ?1 and id = ?3)';
  const [made] = await org.write(
    { ...minted.statement, sql: `${minted.statement.sql} ${isThere}` },
    auditEntry(
      org,
      actor,
      'token.create',
      minted.id,
      { agent, actions, policies, expiresAt },
      { ifChanged: true },
    ),
  );
  return made!.changes > 0 ? { id: minted.id, token: minted.text } : undefined;
}

/** Who receives another's admin token could act in his name, and beyond his own removal. */
function judgeRotation(actor: Acting | undefined, token: StoredToken): Refusal | undefined {
  const { createdBy, effective, expiresAt, role } = token;
  const actions = effective.filter(isAdminAction);
  const refusal = judgeTokenChange(actor, token, []);
  if (refusal || token.kind === 'agent' || !role) return refusal;
  return judgeGrant(actor, { member: createdBy, role }, { actions, expiresAt });
}

/** The token, if who acts may do that to it; a refused attempt is recorded. */
async function judged(
  org: Org,
  actor: Actor,
  action: AdminAction,
  id: TokenId,
  judge: (acting: Acting | undefined, token: StoredToken) => Refusal | undefined,
): Promise<StoredToken> {
  const present = await readStoredToken(org, id);
  if (!present) return await refuse(org, actor, action, id, noToken());
  const refusal = judge(acting(actor), present);
  return refusal ? await refuse(org, actor, action, id, refusal) : present;
}
