/** Parked answers: an upstream answer, sealed, that waits for people to decide on its calls. */

import type { AgentId, GateId, ParkedId, RunId, StepId, TokenId } from '../schema/ids.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import type { GateStand, GateStatus } from '../schema/rules/gate.ts';
import type { Database, Row, Statement } from './client.ts';
import { settledActivity } from './gates.ts';
import type { Org } from './org.ts';
import { type Digests, releasedCalls } from './released.ts';
import { newId } from './seal.ts';
import type { Shelf, Vault } from './vault.ts';

/** The request whose answer is parked. */
export interface ParkedRequest {
  readonly agentId: AgentId;
  readonly runId: RunId;
  /** SHA-256 of the request, in hex. */
  readonly requestDigest: string;
}

/** An answer as the caller's client would have got it. */
export interface ParkedAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The ids of the tool calls that it gives to the run. */
  readonly callIds: readonly string[];
  /** Of those that people are asked about and that run upstream once they are approved. */
  readonly digests?: Digests | undefined;
}

/** A parked answer as it stands, without its bytes. */
export interface Parked {
  readonly id: ParkedId;
  readonly runId: RunId;
  /** When it was released, or its expiry told; `null` while it waits. */
  readonly endedAt: number | null;
  readonly gates: readonly GateStand[];
  readonly runStatus: string;
  /** Whether its agent is suspended, or its org, or the org is leaving. */
  readonly isSuspended: boolean;
  /** Whether the token of who waits has been revoked, or has expired. */
  readonly isRevoked: boolean;
}

const shelfOf = (id: string): Shelf => ({ table: 'parked_parts', column: 'sealed', row: id });

/** The longest answer that can be parked, in bytes. */
export const MAX_PARKED_BYTES = 16 * 1024 * 1024;

/** A new parked answer's id. */
export function newParkedId(now: number): ParkedId {
  return newId('parked', now);
}

/**
 * Seals an answer for parking.
 *
 * @returns the statements to commit together with those that open its gates; they do nothing
 *   where an answer to the same request is parked already.
 * @throws {SealError}
 */
export async function parking(
  org: Org,
  vault: Vault,
  id: ParkedId,
  place: ParkedRequest & { readonly stepId: StepId; readonly expiresAt: number },
  answer: ParkedAnswer,
  now: number,
): Promise<Statement[]> {
  const { bytes, ...head } = answer;
  const sealedHead = await vault.sealBytes(
    shelfOf(`${id}/head`),
    new TextEncoder().encode(JSON.stringify(head)),
  );
  const sealed = await vault.sealBytes(shelfOf(id), bytes);
  const parts = [...sealedHead, ...sealed];
  return [
    org.statement(
      `insert into parked (
         org_id, id, agent_id, run_id, step_id, request_digest, head_parts,
         created_at, expires_at
       ) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) on conflict do nothing`,
      id,
      place.agentId,
      place.runId,
      place.stepId,
      place.requestDigest,
      sealedHead.length,
      now,
      place.expiresAt,
    ),
    ...parts.map((part, number) =>
      org.statement(
        `insert into parked_parts (org_id, parked_id, number, sealed)
         select ?1, ?2, ?3, ?4 from parked where org_id = ?1 and id = ?2`,
        id,
        number,
        part,
      ),
    ),
  ];
}

/** What is parked in a run. */
export interface FoundParked {
  /** The answer for the request. */
  readonly id: ParkedId | undefined;
  /** Whether there is any, of whichever request. */
  readonly isAny: boolean;
}

/**
 * The answer parked for a request that began at `startedAt`: one that waits, or one that has ended
 * since, so that requests under way at that moment share it.
 */
export async function findParked(
  org: Org,
  request: ParkedRequest,
  startedAt: number,
): Promise<FoundParked> {
  const row = await org.first(
    `select (
         select id from parked
         where org_id = ?1 and agent_id = ?2 and run_id = ?3 and request_digest = ?4
           and ifnull(ended_at, ?5 + 1) > ?5
         order by created_at limit 1
       ) as id,
       ${anyParkedSql('?3', '?5')} as is_any`,
    request.agentId,
    request.runId,
    request.requestDigest,
    startedAt,
  );
  return { id: (row?.id as ParkedId | null) ?? undefined, isAny: row?.is_any === 1 };
}

/** Whether any answer of a run waits, or has ended since a moment; `?1` is the org. */
export function anyParkedSql(run: string, since: string): string {
  return `exists (
    select 1 from parked where org_id = ?1 and run_id = ${run} and ended_at is null
    union all
    select 1 from parked where org_id = ?1 and run_id = ${run} and ended_at > ${since}
  )`;
}

/** A parked answer with its gates, and whether who waits for it with this token still may. */
export async function readParked(
  org: Org,
  id: ParkedId,
  tokenId: TokenId,
  now: number,
): Promise<Parked | undefined> {
  const rows = await org.read(
    `select p.id, p.run_id, p.ended_at, r.status as run_status,
       coalesce(a.suspended_at, o.suspended_at, o.deletion_requested_at) as suspended_at,
       exists (
         select 1 from tokens where org_id = ?1 and id = ?3
           and (revoked_at is not null or expires_at <= ?4)
       ) as is_revoked, g.id as gate_id, g.tool, g.rule, g.status, g.expires_at as gate_expires_at
     from parked p
     join gates g on g.org_id = ?1 and g.parked_id = p.id
     join runs r on r.org_id = ?1 and r.id = p.run_id
     join agents a on a.org_id = ?1 and a.id = p.agent_id
     join orgs o on o.id = ?1
     where p.org_id = ?1 and p.id = ?2 order by g.id`,
    id,
    tokenId,
    now,
  );
  return rows[0] && toParked(rows[0], rows);
}

function toParked(row: Row, rows: readonly Row[]): Parked {
  return {
    id: row.id as ParkedId,
    runId: row.run_id as RunId,
    endedAt: row.ended_at as number | null,
    runStatus: String(row.run_status),
    isSuspended: row.suspended_at !== null,
    isRevoked: row.is_revoked === 1,
    gates: rows.map((gate) => ({
      id: gate.gate_id as GateId,
      tool: String(gate.tool),
      rule: String(gate.rule),
      status: gate.status as GateStatus,
      expiresAt: gate.gate_expires_at as number,
    })),
  };
}

/** Opens a parked answer. @throws {SealError} */
export async function openParked(org: Org, vault: Vault, id: ParkedId): Promise<ParkedAnswer> {
  const rows = await org.read(
    `select q.sealed, p.head_parts from parked p
     join parked_parts q on q.org_id = ?1 and q.parked_id = p.id
     where p.org_id = ?1 and p.id = ?2 order by q.number`,
    id,
  );
  const sealed = rows.map((row) => String(row.sealed));
  const headParts = Number(rows[0]?.head_parts);
  const head = await vault.openBytes(shelfOf(`${id}/head`), sealed.slice(0, headParts));
  const body = await vault.openBytes(shelfOf(id), sealed.slice(headParts));
  const text = await new Blob(head).text();
  return { ...JSON.parse(text), bytes: await new Blob(body).bytes() };
}

/**
 * Releases a parked answer whose gates are all approved, once: its gates are used up, its calls are
 * the run's, and the trail says so.
 *
 * @returns whether this was the release; otherwise another was before it, or it may not be.
 */
export async function release(
  org: Org,
  { id, runId }: Pick<Parked, 'id' | 'runId'>,
  callIds: readonly string[],
  now: number,
  digests?: Digests,
): Promise<boolean> {
  const results = await org.write(
    org.statement(
      `update parked set ended_at = ?3
       where org_id = ?1 and id = ?2 and ended_at is null and not exists (
         select 1 from gates
         where org_id = ?1 and parked_id = ?2 and (status <> 'approved' or expires_at <= ?3)
       ) and exists (
         select 1 from runs where org_id = ?1 and id = parked.run_id and status = 'open'
       )`,
      id,
      now,
    ),
    releaseStep(org, id, now),
    ...releasedCalls(org, { parkedId: id }, callIds, now, digests),
    org.statement(
      `update gates set status = 'released'
       where org_id = ?1 and parked_id = ?2 and status = 'approved' and exists (
         select 1 from parked where org_id = ?1 and id = ?2 and ended_at is not null
       )`,
      id,
    ),
    settledActivity(org, runId, now),
  );
  return results[0]!.changes > 0;
}

function releaseStep(org: Org, id: ParkedId, now: number): Statement {
  return org.statement(
    `insert into steps (
       org_id, id, run_id, agent_id, kind, day, started_at, settled_at, outcome, asked, answered
     ) select ?1, ?3, p.run_id, p.agent_id, 'gate', ?4, ?5, ?5, 'released',
       json_object('endpoint', 'gate', 'tokenId', g.token_id, 'requestDigest', p.request_digest),
       json_object('detail', json_object('step', p.step_id))
     from parked p join gates g on g.org_id = ?1 and g.parked_id = p.id
     where p.org_id = ?1 and p.id = ?2 and changes() > 0 limit 1`,
    id,
    newId('step', now),
    windowsOf(now).day,
    now,
  );
}

/** Ends a parked answer whose expiry has been told; the same request is a new one from then on. */
export async function endParked(
  org: Org,
  { id, runId }: Pick<Parked, 'id' | 'runId'>,
  now: number,
): Promise<void> {
  await org.write(
    org.statement(
      'update parked set ended_at = ?3 where org_id = ?1 and id = ?2 and ended_at is null',
      id,
      now,
    ),
    settledActivity(org, runId, now),
  );
}

/** How long the bytes of an answer outlive its end, for requests that are just getting them. */
const KEPT_MS = 3_600_000;

/**
 * Deletes bytes of answers that have ended or expired, in every org; that they were parked stays
 * known.
 *
 * @returns how many parts, at most `limit`; 0 when none is left.
 */
export async function pruneParked(db: Database, now: number, limit: number): Promise<number> {
  const [result] = await db.write([
    {
      sql: `delete from parked_parts where (org_id, parked_id, number) in (
          select q.org_id, q.parked_id, q.number
          from parked_parts q cross join parked p on p.id = q.parked_id
          where p.expires_at < ?1 or p.ended_at < ?1 limit ?2
        )`,
      args: [now - KEPT_MS, limit],
    },
  ]);
  return result!.changes;
}
