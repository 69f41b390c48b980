/** Retention: how long an org's records are kept, and their deletion in small transactions. */

import { Refusal } from '../schema/errors.ts';
import { leastId, type OrgId } from '../schema/ids.ts';
import { DAY_MS, judgeDays, keptDays, type PlanName, planDays } from '../schema/rules/retention.ts';
import { PRUNING } from '../schema/trail.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Database, Row, Statement } from './client.ts';
import { forOrg, type Org } from './org.ts';
import { announce } from './outbox.ts';

/** How long an org's records are kept; null is for good. */
export interface Retention {
  /** What holds: the org's own wish within its plan. */
  readonly days: number | null;
  /** The most that the plan keeps. */
  readonly planDays: number | null;
  /** What the org wants; null for as long as the plan keeps them. */
  readonly wantedDays: number | null;
}

/**
 * How long the org's records are kept.
 *
 * @param operatorDays As {@link planDays} has it.
 */
export async function readRetention(org: Org, operatorDays: number | null): Promise<Retention> {
  const row = await org.first(
    `select o.plan, o.retention_days from (select ?1 as org_id) t join orgs o on o.id = t.org_id
     where t.org_id = ?1`,
  );
  const ofPlan = planDays(operatorDays)[(row?.plan ?? 'enterprise') as PlanName];
  const wantedDays = (row?.retention_days ?? null) as number | null;
  return { days: keptDays(ofPlan, wantedDays), planDays: ofPlan, wantedDays };
}

/**
 * Changes how long the org's records are kept; what is older goes with the next tick.
 *
 * @param days Null for as long as the plan keeps them.
 * @throws {Refusal} `invalid_request` for more than the plan keeps, or no whole number of days.
 */
export async function changeRetention(
  org: Org,
  actor: Actor,
  days: number | null,
  operatorDays: number | null,
): Promise<Retention> {
  const before = await readRetention(org, operatorDays);
  const problem = days === null ? undefined : judgeDays(days, before.planDays);
  if (problem) throw new Refusal('invalid_request', problem, { field: 'days' });
  await org.write(
    {
      sql: 'update orgs set retention_days = ?2 where id = ?1 and retention_days is not ?2',
      args: [org.id, days],
    },
    announce(org, 'account.updated', { change: 'retention' }, Date.now(), { ifChanged: true }),
    auditEntry(
      org,
      actor,
      'retention.update',
      org.id,
      { days },
      { before: { days: before.wantedDays }, ifChanged: true },
    ),
  );
  return await readRetention(org, operatorDays);
}

/** An org with records that are too old. */
export interface Overdue {
  readonly org: Org;
  /** Records from before are deleted; Unix milliseconds. */
  readonly beforeMs: number;
  /** Whether the audit trail's turn has come: that is noted on it, and so done once a day. */
  readonly isAuditDue: boolean;
}

/** A part of all orgs, and where the next one begins. */
export interface OverduePage {
  readonly overdue: readonly Overdue[];
  /** The last org that was looked at; undefined once that was the last of all. */
  readonly next: OrgId | undefined;
}

const ORGS_PER_PAGE = 200;

/** Orgs with retention, and from when on their records are kept. */
const KEPT = `
  select id, ?1 - ${DAY_MS} * coalesce(
    min(retention_days, json_extract(?2, '$.' || plan)),
    retention_days, json_extract(?2, '$.' || plan)
  ) as before, deletes_at
  from (select * from orgs where id > ?3 order by id limit ?4)`;

/** Finds orgs with records that are too old, in pages; each org costs a few look-ups in indices. */
export async function findOverdue(
  db: Database,
  operatorDays: number | null,
  now: number,
  after = '',
): Promise<OverduePage> {
  const args = [now, JSON.stringify(planDays(operatorDays)), after, ORGS_PER_PAGE];
  const rows = await db.read(
    `select id, before, coalesce(deletes_at, ?1 + 1) > ?1 as stays, (
         exists (select 1 from runs where org_id = o.id and closed_at < before)
         or exists (
           select 1 from runs where status = 'open' and opened_at < before and org_id = o.id
         )
         or exists (select 1 from events where org_id = o.id and created_at < before)
         or exists (select 1 from responses where org_id = o.id and created_at < before)
         or exists (select 1 from invitations where org_id = o.id and expires_at < before)
       ) as is_overdue,
       before - iif(
         exists (
           select 1 from audit_checkpoints
           where org_id = o.id and purpose = 'pruned' and at > ?1 - ${DAY_MS}
         ), ${DAY_MS}, 0
       ) > (select at from audit_entries where org_id = o.id order by seq limit 1) as is_audit_due
     from (${KEPT}) o order by id`,
    args,
  );
  const overdue = rows
    .filter((row) => row.stays === 1 && (row.is_overdue === 1 || row.is_audit_due === 1))
    .map((row) => ({
      org: forOrg(db, row.id as OrgId),
      beforeMs: Number(row.before),
      isAuditDue: row.is_audit_due === 1,
    }));
  const isWhole = rows.length === ORGS_PER_PAGE;
  return { overdue, next: isWhole ? (rows.at(-1)?.id as OrgId) : undefined };
}

/** Rows that hold bodies are large, so that few of them are deleted at once. */
const MAX_BODIES = 20;
const RUNS_AT_ONCE = 8;

/** What belongs to runs, with the keys of its rows; bodies cost more to delete than other rows. */
const OF_RUNS = [
  { table: 'steps', key: 'org_id, run_id, id', owner: 'run_id', most: Number.MAX_SAFE_INTEGER },
  { table: 'captures', key: 'org_id, run_id, step_id, kind, number', owner: 'run_id', most: 20 },
  { table: 'reports', key: 'org_id, run_id, key', owner: 'run_id', most: 100 },
  { table: 'released_calls', key: 'org_id, run_id, call_id', owner: 'run_id', most: 100 },
  { table: 'gates', key: 'id', owner: 'run_id', most: MAX_BODIES },
  { table: 'parked', key: 'id', owner: 'run_id', most: 1 },
  {
    table: 'alerts',
    key: 'org_id, subject, window, ceiling_nanos, alert_at',
    owner: 'subject',
    most: 100,
  },
] as const;

/**
 * Deletes what a few runs that have ended before a time have left, and the runs of which nothing is
 * left. Money stays in the sums of its windows.
 *
 * @param limit The most steps of one transaction.
 * @returns how many rows were deleted; 0 when there is nothing more to do.
 */
export async function pruneEndedRuns(org: Org, beforeMs: number, limit: number): Promise<number> {
  const rows = await org.read(
    `select id, agent_id, anchored_head from runs where org_id = ?1 and closed_at < ?2 and held_nanos = 0
     order by closed_at limit ${RUNS_AT_ONCE}`,
    beforeMs,
  );
  if (rows.length === 0) return 0;
  const runs = JSON.stringify(rows.map(({ id, agent_id: agent }) => [id, agent]));
  const told = disclosure(org, rows);
  const results = await org.write(
    ...told,
    ...OF_RUNS.map(({ table, key, owner, most }) =>
      deletion(org, table, key, matchOf(table, owner), [Math.min(limit, most), runs]),
    ),
    emptied(org, runs),
  );
  return results.slice(told.length).reduce((sum, { changes }) => sum + changes, 0);
}

/**
 * Steps that are anchored go with an entry in the audit trail, or else they would be missed. The plus
 * has the few runs found by their ids: an index of the org would have all of its runs read.
 */
function disclosure(org: Org, rows: readonly Row[]): Statement[] {
  const runs = rows.filter((row) => row.anchored_head !== null).map(({ id }) => id);
  if (runs.length === 0) return [];
  return [
    org.statement(
      `update runs set anchored_steps = 0, anchored_head = null, anchored_last = null
       where +org_id = ?1 and id in (select value from json_each(?2)) and anchored_head is not null`,
      JSON.stringify(runs),
    ),
    auditEntry(org, 'system', PRUNING, 'runs', { runs }, { ifChanged: true }),
  ];
}

/** Parked answers are found by their agent first. */
function matchOf(table: string, owner: string): string {
  const isOwned = `${owner} in (select value ->> 0 from json_each(?3))`;
  if (table !== 'parked') return isOwned;
  return `agent_id in (select value ->> 1 from json_each(?3)) and ${isOwned}`;
}

/** Runs of which nothing is left, found by their ids as in {@link disclosure}. */
function emptied(org: Org, runs: string): Statement {
  const left = OF_RUNS.map(({ table, owner }) => {
    const isAgents = table === 'parked' ? ' and t.agent_id = runs.agent_id' : '';
    return `and not exists (
      select 1 from ${table} t where t.org_id = ?1 and t.${owner} = runs.id${isAgents}
    )`;
  });
  return org.statement(
    `delete from runs where +org_id = ?1 and +closed_at is not null
     and id in (select value ->> 0 from json_each(?2)) ${left.join(' ')}`,
    runs,
  );
}

/** A delete of at most `?2` rows; further arguments bind from `?3` on. */
function deletion(
  org: Org,
  table: string,
  key: string,
  condition: string,
  args: readonly (string | number)[],
): Statement {
  return org.statement(
    `delete from ${table} where (${key}) in (
       select ${key} from ${table} where org_id = ?1 and ${condition} limit ?2
     )`,
    ...args,
  );
}

/**
 * Deletes old steps, with their bodies, of runs that are still open; what they spent stays in the
 * run's sums.
 *
 * @param limit The most steps of one transaction.
 * @returns how many rows were deleted; 0 when there is nothing more to do.
 */
export async function pruneOpenRuns(org: Org, beforeMs: number, limit: number): Promise<number> {
  const least = leastId('step', beforeMs);
  const rows = await org.read(
    `select r.id, r.anchored_head from runs r indexed by open_runs
     where r.org_id = ?1 and r.status = 'open' and r.opened_at < ?2
       and exists (
         select 1 from steps s where s.org_id = ?1 and s.run_id = r.id and s.id < ?3
           and s.settled_at is not null
       )
     limit ${RUNS_AT_ONCE}`,
    beforeMs,
    least,
  );
  if (rows.length === 0) return 0;
  const args = [JSON.stringify(rows.map(({ id }) => id)), least];
  const within = 'run_id in (select value from json_each(?3))';
  const told = disclosure(org, rows);
  const results = await org.write(
    ...told,
    deletion(
      org,
      'captures',
      'org_id, run_id, step_id, kind, number',
      `${within} and step_id < ?4`,
      [MAX_BODIES, ...args],
    ),
    deletion(
      org,
      'steps',
      'org_id, run_id, id',
      `${within} and id < ?4 and settled_at is not null and not exists (
         select 1 from captures c
         where c.org_id = steps.org_id and c.run_id = steps.run_id and c.step_id = steps.id
       )`,
      [limit, ...args],
    ),
  );
  return results.slice(told.length).reduce((sum, { changes }) => sum + changes, 0);
}

/**
 * Events go after their deliveries, and these after their attempts: what goes along with a row is
 * counted by nobody, and may be a hundred times as much.
 */
function eventDeletions(org: Org, events: string, limit: number): Statement[] {
  const delivered = `json_each(?3) e
    cross join deliveries d on d.event_id = e.value and +d.org_id = ?1 and d.status <> 'pending'`;
  return [
    org.statement(
      `delete from delivery_attempts where (delivery_id, number) in (
         select a.delivery_id, a.number from ${delivered}
         cross join delivery_attempts a on a.delivery_id = d.id limit ?2
       )`,
      limit,
      events,
    ),
    org.statement(
      `delete from deliveries where id in (
         select d.id from ${delivered}
         where not exists (select 1 from delivery_attempts a where a.delivery_id = d.id) limit ?2
       )`,
      limit,
      events,
    ),
    org.statement(
      `delete from events where +org_id = ?1 and id in (select value from json_each(?2))
       and not exists (select 1 from deliveries d where d.event_id = events.id)`,
      events,
    ),
  ];
}

/**
 * Deletes what stands for itself: events with their deliveries, responses, gates that were decided
 * in runs that go on, alerts of windows that are over, invitations that have ended.
 *
 * @param limit The most rows of each kind in one transaction.
 * @returns how many rows were deleted; 0 when there is nothing more to do.
 */
export async function pruneRecords(org: Org, beforeMs: number, limit: number): Promise<number> {
  const events = await org.read(
    `select id from events where org_id = ?1 and created_at < ?2 and not exists (
       select 1 from deliveries d where d.event_id = events.id and d.status = 'pending'
     ) order by created_at limit ?3`,
    beforeMs,
    limit,
  );
  const decided = `status in ('rejected', 'expired', 'released') and id < ?3`;
  const month = new Date(beforeMs).toISOString().slice(0, 7);
  const results = await org.write(
    ...eventDeletions(org, JSON.stringify(events.map(({ id }) => id)), limit),
    deletion(org, 'responses', 'org_id, agent_id, response_id', 'created_at < ?3', [
      limit,
      beforeMs,
    ]),
    deletion(org, 'gates', 'id', decided, [MAX_BODIES, leastId('gate', beforeMs)]),
    deletion(
      org,
      'alerts',
      'org_id, subject, window, ceiling_nanos, alert_at',
      `window > '' and window < ?3`,
      [limit, month],
    ),
    deletion(
      org,
      'invitations',
      'id',
      'coalesce(accepted_at, revoked_at, expires_at) < ?3 and expires_at < ?3',
      [limit, beforeMs],
    ),
  );
  return results.reduce((sum, { changes }) => sum + changes, 0);
}
