/** Idle runs: completed once nobody has called in them for as long as their policy says. */

import type { AgentId, OrgId, RunId } from '../schema/ids.ts';
import type { Database, Row } from './client.ts';
import { forOrg } from './org.ts';
import { announce } from './outbox.ts';

/**
 * Whether a call of a run is in flight whose process was there at a moment, Unix milliseconds, or
 * later. A call that costs nothing holds no money, but has a lease.
 *
 * @param run What the row of the run goes by.
 */
export function inFlightSql(run: string, since: string): string {
  return `exists (
    select 1 from steps s where s.org_id = ${run}.org_id and s.agent_id = ${run}.agent_id
      and s.lease_expires_at >= ${since} and s.settled_at is null and s.run_id = ${run}.id
  )`;
}

/**
 * Completes open runs that have been idle for as long as their policy's `run.idleTimeoutS` says. A
 * run with a call in flight, or with a gate that waits, is not idle. Those that are younger than the
 * shortest of these times can't be, and are not looked at: there may be tens of thousands.
 *
 * @param defaultIdleS For policies that don't say.
 * @returns how many, at most `limit`; 0 when none is left.
 */
export async function closeIdleRuns(
  db: Database,
  now: number,
  defaultIdleS: number,
  limit: number,
): Promise<number> {
  const rows = await db.read(
    `with lives as materialized (
         select org_id, id, policy_id, number,
           1000 * coalesce(json_extract(document, '$.run.idleTimeoutS'), ?2) as idle_ms
         from policy_versions
       )
       select r.org_id, r.id, r.name, r.agent_id, r.active_at, r.spent_nanos,
         p.name || '/v' || v.number as policy
       from runs r
       join lives v on v.id = r.policy_version_id and v.org_id = r.org_id
       join policies p on p.id = v.policy_id and p.org_id = v.org_id
       where r.status = 'open' and r.opened_at <= ?1 - (select min(idle_ms) from lives)
         and r.held_nanos = 0 and r.active_at + v.idle_ms <= ?1
         and not ${inFlightSql('r', '0')}
         and not exists (
           select 1 from gates g where g.org_id = r.org_id and g.run_id = r.id
             and g.status in ('pending', 'approved') and g.expires_at > ?1
         )
       limit ?3`,
    [now, defaultIdleS, limit],
  );
  let closed = 0;
  for (const row of rows) closed += await closeRun(db, row, now);
  return closed;
}

/** Nothing happens to a run that somebody has called in meanwhile. */
async function closeRun(db: Database, row: Row, now: number): Promise<number> {
  const org = forOrg(db, row.org_id as OrgId);
  const told = {
    runId: row.id as RunId,
    run: String(row.name),
    agentId: row.agent_id as AgentId,
    policy: String(row.policy),
    reason: 'idle',
    spentNanos: Number(row.spent_nanos),
  };
  const [closed] = await org.write(
    org.statement(
      `update runs set status = 'completed', closed_at = ?3, closed_reason = 'idle'
       where org_id = ?1 and id = ?2 and status = 'open' and active_at = ?4 and held_nanos = 0
         and not ${inFlightSql('runs', '0')}`,
      told.runId,
      now,
      row.active_at!,
    ),
    announce(org, 'run.completed', told, now, { ifChanged: true }),
  );
  return closed!.changes;
}
