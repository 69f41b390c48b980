/** Tokens: stored by hash, looked up on every call, revoked at once. */

import type { AgentId, OrgId, PolicyId, RunId, TokenId } from '../schema/ids.ts';
import type { Action } from '../schema/roles.ts';
import { ADMIN_ACTIONS, AGENT_ACTIONS } from '../schema/roles.ts';
import { lastFour } from '../schema/token.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Database, Statement } from './client.ts';
import type { Org } from './org.ts';
import { hashToken, newId, newToken } from './seal.ts';

/** What a call needs to know of its token, read anew on every call. */
export interface Credential {
  readonly tokenId: TokenId;
  readonly orgId: OrgId;
  /** Rises whenever the org's keys or prices change. */
  readonly revision: number;
  readonly kind: 'agent' | 'admin';
  readonly actions: readonly Action[];
  readonly expiresAt: number | null;
  readonly revokedAt: number | null;
  readonly lastUsedAt: number | null;
  readonly agent: CredentialAgent | undefined;
}

/** The agent that a token speaks for. */
export interface CredentialAgent {
  readonly id: AgentId;
  readonly name: string;
  readonly policyId: PolicyId;
  readonly suspendedAt: number | null;
  readonly windowRunId: RunId | null;
}

/** Finds a token by its hash. This is how a request finds its org, so it is not scoped to one. */
export async function findCredential(
  db: Database,
  tokenHash: string,
): Promise<Credential | undefined> {
  const row = await db.first(
    `select t.id, t.org_id, t.kind, t.actions, t.expires_at, t.revoked_at, t.last_used_at,
       o.revision, a.id as agent_id, a.name, a.policy_id, a.suspended_at, a.window_run_id
     from tokens t
     join orgs o on o.id = t.org_id
     left join agents a on a.id = t.agent_id and a.org_id = t.org_id
     where t.hash = ?1`,
    [tokenHash],
  );
  return (
    row && {
      tokenId: row.id as TokenId,
      orgId: row.org_id as OrgId,
      revision: row.revision as number,
      kind: row.kind as Credential['kind'],
      actions: String(row.actions).split(' ') as Action[],
      expiresAt: row.expires_at as number | null,
      revokedAt: row.revoked_at as number | null,
      lastUsedAt: row.last_used_at as number | null,
      agent:
        row.agent_id === null
          ? undefined
          : {
              id: row.agent_id as AgentId,
              name: row.name as string,
              policyId: row.policy_id as PolicyId,
              suspendedAt: row.suspended_at as number | null,
              windowRunId: row.window_run_id as RunId | null,
            },
    }
  );
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

/** Makes a token of an agent, or of the org where `agent` is null. Commit its statement. */
export function mintToken(
  org: Org,
  actor: Actor,
  agent: AgentId | null,
  expiresAt: number | null,
): MintedToken {
  const kind = agent ? 'agent' : 'admin';
  const text = newToken(kind);
  const id = newId('token');
  return {
    id,
    text,
    statement: org.statement(
      `insert into tokens (
         org_id, id, agent_id, kind, hash, last_four, actions, created_by, created_at, expires_at
       ) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)`,
      id,
      agent,
      kind,
      hashToken(text),
      lastFour(text),
      (agent ? AGENT_ACTIONS : ADMIN_ACTIONS).join(' '),
      actor,
      Date.now(),
      expiresAt,
    ),
  };
}

/**
 * Gives an agent a new token. Its present tokens end now, or after an overlap, but never later
 * than they would have ended anyway.
 *
 * @returns the new token's text, shown once.
 */
export async function rotateAgentTokens(
  org: Org,
  actor: Actor,
  agent: AgentId,
  overlapMs: number,
): Promise<string> {
  const now = Date.now();
  const [present] = await org.read(
    `select max(coalesce(expires_at, 9e15)) as expires_at from tokens
     where org_id = ?1 and agent_id = ?2 and revoked_at is null`,
    agent,
  );
  const until = Number(present?.expires_at ?? 9e15);
  const minted = mintToken(org, actor, agent, until < 9e15 ? until : null);
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
  return minted.text;
}

/**
 * Ends all tokens of an agent, from the next request on.
 *
 * @returns how many ended.
 */
export async function revokeAgentTokens(org: Org, actor: Actor, agent: AgentId): Promise<number> {
  const [ended] = await org.write(
    revocation(org, agent, Date.now()),
    auditEntry(org, actor, 'token.revoke', agent),
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
