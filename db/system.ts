/** Work across all orgs: what the scheduled function and the operator do, never a request. */

import type { OrgId, RunId, TokenId } from '../schema/ids.ts';
import type { Database } from './client.ts';
import { type MasterKeys, rewrapOrgKey, takesShare } from './seal.ts';
import { rewrapSigningKeys } from './signing.ts';

/** Proves that the database answers. @throws {DatabaseError} when it doesn't. */
export async function ping(db: Database): Promise<void> {
  await db.first('select 1 as alive', []);
}

const BATCH = 500;

/**
 * Settles all holds whose lease has run out, however many they are, for who waits for their money.
 *
 * @returns how many were settled.
 */
export async function expireHolds(db: Database, now: number): Promise<number> {
  let total = 0;
  for (;;) {
    const settled = await expireSomeHolds(db, now, BATCH);
    total += settled;
    if (settled < BATCH) return total;
  }
}

/**
 * Settles holds whose lease has run out at the most they could have cost, marked estimated: their
 * process is gone, and the upstream may have been paid.
 *
 * @returns how many were settled, at most `limit`.
 */
export async function expireSomeHolds(db: Database, now: number, limit: number): Promise<number> {
  const [result] = await db.write([
    {
      sql: `update steps set
          settled_at = ?1, spent_nanos = held_nanos, outcome = 'lease_expired',
          answered = '{"estimated":true}'
        where (org_id, run_id, id) in (
          select org_id, run_id, id from steps
          where settled_at is null and lease_expires_at < ?1 limit ?2
        )`,
      args: [now, limit],
    },
  ]);
  return result!.changes;
}

/** A call in flight, by what may end it from outside. */
export interface Flying {
  readonly runId: RunId;
  /** The token that it came with, where that is known. */
  readonly tokenId: TokenId | null;
}

/** Why a call in flight may not go on. */
export type EndReason = 'run_cancelled' | 'agent_suspended' | 'token_revoked';

/**
 * Finds which calls may not go on: their run was cancelled, their agent or its org suspended, or
 * their token revoked. One read for all of them.
 *
 * @returns the reasons by the index of the call.
 */
export async function findEnded(
  db: Database,
  flying: readonly Flying[],
): Promise<ReadonlyMap<number, EndReason>> {
  const pairs = flying.map(({ runId, tokenId }) => [runId, tokenId]);
  const rows = await db.read(
    `select f.key as at, iif(r.status = 'cancelled', 'run_cancelled',
         iif(t.revoked_at is null, 'agent_suspended', 'token_revoked')) as reason
     from json_each(?1) f
     join runs r on r.id = f.value ->> 0
     join agents a on a.id = r.agent_id
     join orgs o on o.id = r.org_id
     left join tokens t on t.id = f.value ->> 1
     where r.status = 'cancelled' or a.suspended_at is not null or o.suspended_at is not null
       or o.deletion_requested_at is not null or t.revoked_at is not null`,
    [JSON.stringify(pairs)],
  );
  return new Map(rows.map((row) => [row.at as number, row.reason as EndReason]));
}

/** The ids of the master keys that something is wrapped with and that are not configured. */
export async function missingMasterKeys(db: Database, { keys }: MasterKeys): Promise<string[]> {
  const rows = await db.read(
    `with wraps as (
       select substr(wrapped, instr(wrapped, '.') + 1) as rest from org_keys
       union all select substr(wrapped, instr(wrapped, '.') + 1) from signing_keys
     )
     select distinct substr(rest, 1, instr(rest, '.') - 1) as id from wraps order by id`,
    [],
  );
  return rows.map(({ id }) => String(id)).filter((id) => !keys.has(id));
}

/**
 * The orgs whose key is wrapped under a share that isn't there. One that is leaving is served no
 * more, and can go without it.
 */
export async function missingShares(db: Database, { shares }: MasterKeys): Promise<OrgId[]> {
  const rows = await db.read(
    `select k.org_id, k.wrapped from org_keys k join orgs o on o.id = k.org_id
     where o.deletion_requested_at is null order by k.org_id`,
    [],
  );
  const sharing = rows.filter(({ wrapped }) => takesShare(String(wrapped)));
  const kept = await shares?.list();
  return sharing.map((row) => row.org_id as OrgId).filter((org) => !kept?.has(org));
}

/** How far a rotation has come. */
export interface RotationProgress {
  readonly done: number;
  readonly total: number;
  readonly rewrapped: number;
}

/**
 * Wraps every org's key, and the key that signs, under the current master key. Each org is a
 * transaction of its own, and those already done are skipped, so it may be interrupted and run again.
 *
 * @throws {SealError} `unknown_key` when a master key that is still needed is not configured.
 */
export async function rotateOrgKeys(
  db: Database,
  master: MasterKeys,
  onProgress: (progress: RotationProgress) => void,
): Promise<RotationProgress> {
  const orgs = await db.read('select org_id from org_keys order by org_id', []);
  let progress: RotationProgress = { done: 0, total: orgs.length, rewrapped: 0 };
  for (const { org_id: org } of orgs) {
    const rewrapped = await rotateOrgKey(db, master, org as OrgId);
    progress = {
      done: progress.done + 1,
      total: orgs.length,
      rewrapped: progress.rewrapped + (rewrapped ? 1 : 0),
    };
    onProgress(progress);
  }
  await rewrapSigningKeys(db, master);
  return progress;
}

async function rotateOrgKey(db: Database, master: MasterKeys, org: OrgId): Promise<boolean> {
  const row = await db.first('select wrapped from org_keys where org_id = ?1', [org]);
  const wrapped = row && String(row.wrapped);
  const rewrapped = wrapped && (await rewrapOrgKey(master, org, wrapped));
  if (!rewrapped) return false;
  const [result] = await db.write([
    {
      // Compared, so that two rotations at once can't undo each other's work.
      sql: `update org_keys set wrapped = ?2, rotated_at = ?4 where org_id = ?1 and wrapped = ?3`,
      args: [org, rewrapped, wrapped, Date.now()],
    },
  ]);
  return result!.changes > 0;
}
