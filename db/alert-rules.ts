/** Rules of alerts: kept, looked at by the scheduled function, and told once when they fire. */

import type { AlertRuleInput, Channel, Firing, Metric } from '../schema/alert-rule.ts';
import { shownTarget } from '../schema/alert-rule.ts';
import { Refusal } from '../schema/errors.ts';
import { type AlertRuleId, leastId, type OrgId } from '../schema/ids.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import { type Actor, actorName, auditEntry } from './audit.ts';
import type { Database, Row, Statement } from './client.ts';
import { forOrg, type Org } from './org.ts';
import { announce } from './outbox.ts';
import { type Page, readPage, type Window } from './page.ts';
import { type MasterKeys, newId } from './seal.ts';
import { openVault } from './vault.ts';

/** A rule as people see it; times in Unix milliseconds. */
export interface AlertRule extends Omit<AlertRuleInput, 'target'> {
  readonly id: AlertRuleId;
  /** The address, or the host of the chat. */
  readonly target: string | null;
  /** Whether the value was at the threshold or above it when it was looked at last. */
  readonly isOver: boolean;
  readonly firedAt: number | null;
  readonly firedValue: number | null;
  /** When the last firing was told by mail or in the chat. */
  readonly toldAt: number | null;
  readonly createdBy: string;
  readonly createdAt: number;
  readonly updatedAt: number;
}

/** The most rules of an org. */
const MAX_ALERT_RULES = 100;

const shelfOf = (id: AlertRuleId) => ({ table: 'alert_rules', column: 'target', row: id });

/** An org's rules by name. */
export async function pageAlertRules(org: Org, window: Window): Promise<Page<AlertRule>> {
  const sql = 'select * from alert_rules where org_id = ?1';
  return await readPage(org, { sql, args: [], order: 'name' }, window, toRule);
}

/** The rules of some ids. */
export async function readAlertRules(org: Org, ids: readonly AlertRuleId[]): Promise<AlertRule[]> {
  const rows = await org.read(
    'select * from alert_rules where org_id = ?1 and id in (select value from json_each(?2))',
    JSON.stringify(ids),
  );
  return rows.map(toRule);
}

function toRule(row: Row): AlertRule {
  return {
    id: row.id as AlertRuleId,
    name: String(row.name),
    metric: row.metric as Metric,
    threshold: Number(row.threshold),
    windowS: Number(row.window_s),
    channel: row.channel as Channel,
    target: row.target_shown as string | null,
    isEnabled: row.enabled === 1,
    isOver: row.is_over === 1,
    firedAt: row.fired_at as number | null,
    firedValue: row.fired_value as number | null,
    toldAt: row.told_at as number | null,
    createdBy: String(row.created_by),
    createdAt: Number(row.created_at),
    updatedAt: Number(row.updated_at),
  };
}

/** What the audit trail has of a rule: the URL of a chat is a secret. */
function told(rule: AlertRuleInput): object {
  return { ...rule, target: shownTarget(rule) };
}

/** A target as it is stored, and what else its transaction needs. */
async function storable(
  org: Org,
  master: MasterKeys,
  id: AlertRuleId,
  { channel, target }: AlertRuleInput,
): Promise<{ stored: string | null; counts: Statement[] }> {
  if (channel !== 'chat' || target === null) return { stored: target, counts: [] };
  const vault = await openVault(org, master);
  return { stored: await vault.seal(shelfOf(id), target), counts: [vault.count()] };
}

/**
 * Makes a rule.
 *
 * @throws {Refusal} `invalid_request` when the org has too many.
 * @throws {DatabaseError} a conflict, when it has one of this name.
 */
export async function createAlertRule(
  org: Org,
  master: MasterKeys,
  actor: Actor,
  rule: AlertRuleInput,
): Promise<AlertRuleId> {
  const id = newId('alertRule');
  const { stored, counts } = await storable(org, master, id, rule);
  const [made] = await org.write(
    org.statement(
      `insert into alert_rules (
         org_id, id, name, metric, threshold, window_s, channel, target, target_shown, enabled,
         created_by, created_at, updated_at
       ) select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12
       where (select count(*) from alert_rules where org_id = ?1) < ${MAX_ALERT_RULES}`,
      id,
      ...columnsOf(rule, stored),
      actorName(actor),
      Date.now(),
    ),
    auditEntry(org, actor, 'alert_rule.create', id, told(rule), { ifChanged: true }),
    ...counts,
  );
  if (made!.changes > 0) return id;
  throw new Refusal('invalid_request', `An org has at most ${MAX_ALERT_RULES} rules of alerts.`);
}

function columnsOf(rule: AlertRuleInput, stored: string | null) {
  const { name, metric, threshold, windowS, channel, isEnabled } = rule;
  const shown = shownTarget(rule);
  return [name, metric, threshold, windowS, channel, stored, shown, isEnabled ? 1 : 0] as const;
}

/**
 * Changes a rule, which is then looked at as a new one.
 *
 * @param change What changes; a target that is not given stays, unless the channel changes.
 * @param judge Checks the whole rule.
 * @returns false when there is no such rule.
 * @throws {DatabaseError} a conflict, when the org has another one of this name.
 */
export async function updateAlertRule(
  org: Org,
  master: MasterKeys,
  actor: Actor,
  id: AlertRuleId,
  change: Partial<AlertRuleInput>,
  judge: (rule: AlertRuleInput) => AlertRuleInput,
): Promise<boolean> {
  const row = await org.first('select * from alert_rules where org_id = ?1 and id = ?2', id);
  if (!row) return false;
  const before = toRule(row);
  const target = await openTarget(org, master, row);
  const { name, metric, threshold, windowS, channel, isEnabled } = before;
  const present = { name, metric, threshold, windowS, channel, isEnabled };
  const kept = change.channel === undefined || change.channel === channel ? target : null;
  const rule = judge({ ...present, target: kept, ...change });
  const { stored, counts } = await storable(org, master, id, rule);
  const [changed] = await org.write(
    org.statement(
      `update alert_rules set name = ?3, metric = ?4, threshold = ?5, window_s = ?6, channel = ?7,
         target = ?8, target_shown = ?9, enabled = ?10, is_over = 0, fired_at = null,
         fired_value = null, told_at = null, tries = 0, checked_at = 0, updated_at = ?11
       where org_id = ?1 and id = ?2`,
      id,
      ...columnsOf(rule, stored),
      Date.now(),
    ),
    auditEntry(org, actor, 'alert_rule.update', id, told(rule), {
      before: { ...present, target: before.target },
      ifChanged: true,
    }),
    ...counts,
  );
  return changed!.changes > 0;
}

async function openTarget(org: Org, master: MasterKeys, row: Row): Promise<string | null> {
  if (row.channel !== 'chat' || row.target === null) return row.target as string | null;
  const vault = await openVault(org, master);
  return await vault.open(shelfOf(row.id as AlertRuleId), String(row.target));
}

/** Deletes a rule. @returns false when there is none. */
export async function deleteAlertRule(org: Org, actor: Actor, id: AlertRuleId): Promise<boolean> {
  const [deleted] = await org.write(
    org.statement('delete from alert_rules where org_id = ?1 and id = ?2', id),
    auditEntry(org, actor, 'alert_rule.delete', id, undefined, { ifChanged: true }),
  );
  return deleted!.changes > 0;
}

/** A rule that is due to be looked at. */
export interface DueRule {
  readonly org: Org;
  readonly rule: AlertRule;
  readonly checkedAt: number;
}

/** How coarsely it is noted that a rule was looked at, where it came to nothing new. */
const NOTED_MS = 60_000;

/** Rules on steps with windows of this length and longer are looked at less than at every tick. */
const LONG_WINDOW_S = 3_600;
/** How much of such a window may pass between two looks, though never less than a minute. */
const LOOKS_PER_WINDOW = 1_440;

/**
 * Enabled rules of all orgs that nobody has looked at since a time, the longest ago first. Those
 * that read the steps of a long window wait for a small part of it longer.
 */
export async function findDueRules(db: Database, sinceMs: number, limit: number) {
  const rows = await db.read(
    `select * from alert_rules
     where enabled = 1 and checked_at < ?1 and checked_at < ?1 - iif(
       metric in ('spend', 'error_rate') and window_s >= ${LONG_WINDOW_S},
       max(${NOTED_MS}, window_s * 1000 / ${LOOKS_PER_WINDOW}), 0
     )
     order by checked_at limit ?2`,
    [sinceMs, limit],
  );
  return rows.map(
    (row): DueRule => ({
      org: forOrg(db, row.org_id as OrgId),
      rule: toRule(row),
      checkedAt: Number(row.checked_at),
    }),
  );
}

type StepMetric = 'spend' | 'error_rate';

/** Whether a rule is about steps, and so takes as long to measure as they are many. */
export function readsSteps(metric: Metric): metric is StepMetric {
  return metric === 'spend' || metric === 'error_rate';
}

/** A run whose steps may be in a window. */
export interface ActiveRun {
  readonly id: string;
  readonly stepCount: number;
  readonly openedAt: number;
}

/** Runs that are open, by their org. */
export type OpenRuns = ReadonlyMap<OrgId, readonly ActiveRun[]>;

/** Each takes a millisecond or a few, in which no call can go on. */
const RUNS_AT_ONCE = 1_000;
const STEPS_AT_ONCE = 2_000;

/**
 * Finds the open runs of some orgs. The index of open runs is that of all orgs, so that it is walked
 * once for all rules.
 *
 * @returns a walk that pauses after each page.
 */
export async function* findOpenRuns(
  db: Database,
  orgs: ReadonlySet<OrgId>,
): AsyncGenerator<void, OpenRuns> {
  const open = new Map<OrgId, ActiveRun[]>();
  for (let last: Row | undefined; ; ) {
    const rows: readonly Row[] = await db.read(
      `select org_id, id, step_count, opened_at from runs
       where status = 'open' and opened_at >= ?1 and (opened_at, id) > (?1, ?2)
       order by opened_at, id limit ?3`,
      [last?.opened_at ?? 0, last?.id ?? '', RUNS_AT_ONCE],
    );
    for (const row of rows) {
      const org = row.org_id as OrgId;
      if (!orgs.has(org)) continue;
      if (!open.has(org)) open.set(org, []);
      open.get(org)!.push(toActive(row));
    }
    if (rows.length < RUNS_AT_ONCE) return open;
    last = rows.at(-1);
    yield;
  }
}

function toActive(row: Row): ActiveRun {
  return {
    id: String(row.id),
    stepCount: Number(row.step_count),
    openedAt: Number(row.opened_at),
  };
}

/** What is read of an org's steps: those from a time on, until another one. */
interface Stretch {
  readonly org: Org;
  readonly since: number;
  readonly until: number;
  /** The first UTC day whose money is taken from its sum instead. */
  readonly wholeFrom: string;
}

/** What was added up of steps. */
interface Sums {
  readonly spent: number;
  readonly calls: number;
  readonly failed: number;
}

/** Ended by whoever called or governs, which is no failure. */
const INTENDED = `'ok', 'client_left', 'shutdown', 'run_cancelled', 'agent_suspended', 'token_revoked'`;

const IS_CALL = `settled_at is not null and kind in ('model_call', 'retry', 'failover')`;
const SUMS = `coalesce(sum(iif(day < ?5, spent_nanos, 0)), 0) as spent,
  coalesce(sum(${IS_CALL}), 0) as calls,
  coalesce(sum(${IS_CALL} and outcome not in (${INTENDED})), 0) as failed`;

/** Steps of a few runs. */
const OF_RUNS = `select ${SUMS} from json_each(?2) r
  cross join steps s on s.org_id = ?1 and s.run_id = r.value and s.id >= ?3 and s.id < ?4`;

/** A part of the steps of one run, and where the next one begins. */
const OF_RUN = `select max(id) || ' ' as next, ${SUMS} from (
    select * from steps where org_id = ?1 and run_id = ?2 and id >= ?3 and id < ?4
    order by id limit ${STEPS_AT_ONCE}
  )`;

const COUNTS: Readonly<Record<Exclude<Metric, StepMetric>, string>> = {
  blocked_runs: `select count(*) as value from runs
    where org_id = ?1 and closed_at >= ?2 and (
      status = 'blocked' or status = 'completed' and closed_reason not in ('completed', 'idle')
    )`,
  pending_gates: `select count(*) as value from gates
    where org_id = ?1 and status = 'pending' and ?2 is not null`,
};

/**
 * Measures what a rule comes to, in parts: a million steps take a second to read, in which no call
 * could go on.
 *
 * @param open The org's runs that are open; those that end meanwhile are read once all the same.
 * @returns a reading that pauses after each part.
 */
export async function* measuring(
  { org, rule }: Pick<DueRule, 'org' | 'rule'>,
  now: number,
  open: readonly ActiveRun[],
): AsyncGenerator<void, number> {
  const { metric, windowS } = rule;
  const since = now - windowS * 1_000;
  if (!readsSteps(metric)) {
    return Number((await org.first(COUNTS[metric], since))?.value ?? 0);
  }
  const stretch = stretchOf(org, metric, since, now);
  const sums = { spent: 0, calls: 0, failed: 0 };
  for await (const runs of activeRuns(stretch, open)) {
    for await (const part of readSteps(stretch, runs)) {
      sums.spent += part.spent;
      sums.calls += part.calls;
      sums.failed += part.failed;
      yield;
    }
    yield;
  }
  if (metric === 'spend') return sums.spent + (await spentFrom(org, stretch.wholeFrom));
  return sums.calls === 0 ? 0 : Math.floor((100 * sums.failed) / sums.calls);
}

/** A step's id may be made a little after the time by which its day was told. */
const LATE_MS = 3_600_000;

/** Of money, only the rest of the first day is read: days that are whole have their sums. */
function stretchOf(org: Org, metric: Metric, since: number, now: number): Stretch {
  const { dayEnds } = windowsOf(since);
  const until = (metric === 'spend' ? dayEnds : now) + LATE_MS;
  return { org, since, until, wholeFrom: windowsOf(dayEnds).day };
}

/** What the org's agents spent from a UTC day on; what retention has deleted since counts, too. */
async function spentFrom(org: Org, day: string): Promise<number> {
  const row = await org.first(
    `select coalesce(sum(p.spent_nanos), 0) as spent from agents a
     cross join spend p on p.org_id = ?1 and p.subject = a.id
     where a.org_id = ?1 and p.window >= ?2 and length(p.window) = 10`,
    day,
  );
  return Number(row?.spent);
}

/** Runs that were active in a stretch, page by page: those that are open, and that ended in it. */
async function* activeRuns(
  { org, since, until }: Stretch,
  open: readonly ActiveRun[],
): AsyncGenerator<readonly ActiveRun[]> {
  const known = new Set(open.map(({ id }) => id));
  const isInside = ({ openedAt }: ActiveRun) => openedAt < until;
  yield open.filter(isInside);
  for (let last: Row | undefined; ; ) {
    const rows: readonly Row[] = await org.read(
      `select id, step_count, opened_at, closed_at from runs
       where org_id = ?1 and closed_at >= ?2 and (closed_at, id) > (?2, ?3)
       order by closed_at, id limit ?4`,
      last?.closed_at ?? since,
      last?.id ?? '',
      RUNS_AT_ONCE,
    );
    yield rows.map(toActive).filter((run) => isInside(run) && !known.has(run.id));
    if (rows.length < RUNS_AT_ONCE) return;
    last = rows.at(-1);
  }
}

/** Adds up the steps of some runs, some thousands at a time. */
async function* readSteps(
  { org, since, until, wholeFrom }: Stretch,
  runs: readonly ActiveRun[],
): AsyncGenerator<Sums> {
  const end = leastId('step', until);
  for (const { ids, isLong } of batchesOf(runs)) {
    let next: string = leastId('step', since);
    let isOver = false;
    while (!isOver) {
      const subject = isLong ? ids[0]! : JSON.stringify(ids);
      const row = await org.first(isLong ? OF_RUN : OF_RUNS, subject, next, end, wholeFrom);
      yield toSums(row);
      isOver = !row?.next;
      next = String(row?.next);
    }
  }
}

function toSums(row: Row | undefined): Sums {
  const { spent, calls, failed } = row ?? {};
  return { spent: Number(spent), calls: Number(calls), failed: Number(failed) };
}

/** Runs that are read together; one with many steps is read by itself, in parts. */
function* batchesOf(runs: readonly ActiveRun[]): Generator<{ ids: string[]; isLong: boolean }> {
  let ids: string[] = [];
  let stepCount = 0;
  for (const run of runs) {
    if (run.stepCount > STEPS_AT_ONCE) {
      yield { ids: [run.id], isLong: true };
      continue;
    }
    if (stepCount + run.stepCount > STEPS_AT_ONCE) {
      yield { ids, isLong: false };
      [ids, stepCount] = [[], 0];
    }
    ids.push(run.id);
    stepCount += run.stepCount;
  }
  if (ids.length > 0) yield { ids, isLong: false };
}

/**
 * Notes what a rule came to. It fires when the value reaches the threshold, at most once within
 * its window and, while the value stays there, once.
 *
 * @returns whether it has fired; not when another process was faster.
 */
export async function noteValue(due: DueRule, value: number, now: number): Promise<boolean> {
  const { org, rule, checkedAt } = due;
  const isOver = value >= rule.threshold;
  const wasLong = rule.firedAt === null || rule.firedAt <= now - rule.windowS * 1_000;
  const fires = isOver && !rule.isOver && wasLong;
  const isStale = checkedAt < now - NOTED_MS;
  if (!isStale && !fires && (isOver || !rule.isOver)) return false;
  const { id, name, metric, threshold, windowS } = rule;
  const [noted] = await org.write(
    org.statement(
      `update alert_rules set checked_at = ?3, is_over = ?4,
         fired_at = iif(?5, ?3, fired_at), fired_value = iif(?5, ?6, fired_value),
         told_at = iif(?5, iif(channel = 'event', ?3, null), told_at), tries = iif(?5, 0, tries)
       where org_id = ?1 and id = ?2 and checked_at = ?7 and updated_at = ?8`,
      id,
      now,
      isOver && (rule.isOver || fires) ? 1 : 0,
      fires ? 1 : 0,
      value,
      checkedAt,
      rule.updatedAt,
    ),
    ...(fires
      ? [
          announce(
            org,
            'alert.fired',
            { ruleId: id, name, metric, value, threshold, windowS },
            now,
            { ifChanged: true },
          ),
        ]
      : []),
  );
  return fires && noted!.changes > 0;
}

/** A firing that is still to be told by mail or in a chat. */
export interface Untold {
  readonly org: Org;
  readonly orgName: string;
  readonly id: AlertRuleId;
  readonly channel: Channel;
  readonly firing: Firing;
  readonly firedAt: number;
  /** Opened by {@link openUntold}. */
  readonly row: Row;
}

const MAX_TRIES = 5;
/** After the n-th try, the next one waits n² times as long. */
const RETRY_MS = 30_000;

/** Takes firings that are to be told now; each counts as tried. */
export async function takeUntold(db: Database, now: number, limit: number): Promise<Untold[]> {
  const rows = await db.read(
    `select r.*, o.name as org_name from alert_rules r join orgs o on o.id = r.org_id
     where r.fired_at is not null and r.told_at is null and r.tries < ${MAX_TRIES}
       and r.fired_at + ${RETRY_MS} * r.tries * r.tries <= ?1 and r.enabled = 1
     order by r.fired_at limit ?2`,
    [now, limit],
  );
  const taken: Untold[] = [];
  for (const row of rows) {
    const org = forOrg(db, row.org_id as OrgId);
    const [isOurs] = await org.write(
      org.statement(
        `update alert_rules set tries = tries + 1
         where org_id = ?1 and id = ?2 and tries = ?3 and fired_at = ?4 and told_at is null`,
        row.id!,
        row.tries!,
        row.fired_at!,
      ),
    );
    if (isOurs!.changes > 0) taken.push(toUntold(org, row));
  }
  return taken;
}

function toUntold(org: Org, row: Row): Untold {
  const { id, channel, name, metric, threshold, windowS } = toRule(row);
  return {
    ...{ org, id, channel, row },
    orgName: String(row.org_name),
    firing: { name, metric, threshold, windowS, value: Number(row.fired_value) },
    firedAt: Number(row.fired_at),
  };
}

/** Where a firing is told: an e-mail address or a URL. @throws {SealError} */
export async function openUntold({ org, row }: Untold, master: MasterKeys): Promise<string> {
  return (await openTarget(org, master, row)) ?? '';
}

/** Notes that a firing was told. */
export async function noteTold({ org, id, firedAt }: Untold, now: number): Promise<void> {
  await org.write(
    org.statement(
      'update alert_rules set told_at = ?4 where org_id = ?1 and id = ?2 and fired_at = ?3',
      id,
      firedAt,
      now,
    ),
  );
}
