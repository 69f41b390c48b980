/** Runs: opened, joined, closed, blocked, and their ceilings. */

import {
  type AgentId,
  isId,
  type PolicyId,
  type PolicyVersionId,
  type RunId,
} from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import type { Scope } from '../schema/rules/budget.ts';
import type { RunName } from '../schema/rules/identity.ts';
import { exceededEvent } from './alerts.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Row, Statement } from './client.ts';
import { inFlightSql } from './idle.ts';
import type { Org } from './org.ts';
import { announce } from './outbox.ts';
import { type Page, readPage, type Window } from './page.ts';
import { readPolicyVersion } from './policies.ts';
import { newId } from './seal.ts';

export type RunStatus = 'open' | 'completed' | 'blocked' | 'cancelled';

/** A run as it stands. */
export interface Run {
  readonly id: RunId;
  readonly agentId: AgentId;
  /** The caller's own string, or the id where the caller gave none. */
  readonly name: string;
  readonly source: string;
  readonly policyVersionId: PolicyVersionId;
  readonly status: RunStatus;
  readonly ceilingNanos: Nanos | null;
  readonly spentNanos: Nanos;
  readonly heldNanos: Nanos;
  readonly stepCount: number;
  /** How many of them count among those that its policy limits. */
  readonly callCount: number;
  /** Unix milliseconds, as are all times here. */
  readonly openedAt: number;
  readonly activeAt: number;
  readonly closedAt: number | null;
  /** Why it is no longer open: `completed`, `idle`, `cancelled`, or the rule that stopped it. */
  readonly closedReason: string | null;
  readonly blockedUntil: number | null;
}

/** What a run is opened with. */
export interface NewRun {
  readonly agentId: AgentId;
  readonly policyVersionId: PolicyVersionId;
  readonly ceilingNanos: Nanos | null;
  readonly now: number;
}

/** The run of an agent with this name, or with this id: an id that Rungate told joins its run. */
export async function findRun(org: Org, agent: AgentId, name: string): Promise<Run | undefined> {
  const own = isId('run', name) ? await readRun(org, name) : undefined;
  if (own?.agentId === agent) return own;
  return maybe(
    await org.first(
      'select * from runs where org_id = ?1 and agent_id = ?2 and name = ?3',
      agent,
      name,
    ),
  );
}

/** A run by its own id. */
export async function readRun(org: Org, id: RunId): Promise<Run | undefined> {
  return maybe(await org.first('select * from runs where org_id = ?1 and id = ?2', id));
}

/**
 * The runs of these ids. The plus has them found by these: by an index of the org, all that it has
 * would be read.
 */
export async function readRuns(org: Org, ids: readonly RunId[]): Promise<Run[]> {
  const rows = await org.read(
    'select * from runs where +org_id = ?1 and id in (select value from json_each(?2))',
    JSON.stringify(ids),
  );
  return rows.map(toRun);
}

/** Which runs of an org are listed; all of what is given must hold. */
export interface RunFilter {
  readonly status?: RunStatus | null | undefined;
  readonly agentId?: AgentId | null | undefined;
  /** Of any version of this policy. */
  readonly policyId?: PolicyId | null | undefined;
  /** Unix milliseconds, the first included and the last not. */
  readonly openedAfter?: number | null | undefined;
  readonly openedBefore?: number | null | undefined;
  /** Part of the name, in any case. */
  readonly name?: string | null | undefined;
}

/** In which order runs are listed. */
export interface RunOrder {
  readonly by: 'opened_at' | 'active_at' | 'spent_nanos';
  readonly isDescending: boolean;
}

/** The runs of an org. */
export function listRuns(
  org: Org,
  filter: RunFilter,
  { by, isDescending }: RunOrder,
  window: Window,
): Promise<Page<Run>> {
  const { status, agentId, policyId, openedAfter, openedBefore, name } = filter;
  const sql = `select * from runs where org_id = ?1
    and (?2 is null or status = ?2) and (?3 is null or agent_id = ?3)
    and (?4 is null or policy_version_id in (
      select id from policy_versions where org_id = ?1 and policy_id = ?4
    ))
    and opened_at >= ?5 and opened_at < ?6
    and (?7 is null or instr(lower(name), lower(?7)) > 0)`;
  const args = [
    ...[status ?? null, agentId ?? null, policyId ?? null],
    ...[openedAfter ?? 0, openedBefore ?? Number.MAX_SAFE_INTEGER, name ?? null],
  ];
  return readPage(org, { sql, args, order: by, isDescending }, window, toRun);
}

/** The runs that go by a name or an id, of one agent or of all, the newest first; at most ten. */
export async function searchRuns(
  org: Org,
  nameOrId: string,
  agent: AgentId | null = null,
): Promise<Run[]> {
  const rows = await org.read(
    `select * from (
       select * from runs where org_id = ?1 and name = ?2
       union select * from runs where org_id = ?1 and id = ?2
     ) where ?3 is null or agent_id = ?3
     order by opened_at desc limit 10`,
    nameOrId,
    agent,
  );
  return rows.map(toRun);
}

/** Opens a run under a name, with its event, or does nothing where the name is taken. */
export async function openRun(org: Org, run: NewRun, { name, source }: RunName): Promise<void> {
  const id = newId('run');
  const policy = await policyOf(org, run);
  await org.write(
    org.statement(
      `insert into runs (
         org_id, id, agent_id, name, source, policy_version_id, ceiling_nanos, alert_at,
         opened_at, active_at
       ) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9) on conflict do nothing`,
      id,
      run.agentId,
      name,
      source,
      run.policyVersionId,
      run.ceilingNanos,
      policy.alertAt,
      run.now,
    ),
    started(org, id, name, run, policy.label),
  );
}

/** What of a run's policy its row and its events tell. */
async function policyOf(org: Org, { policyVersionId }: Pick<NewRun, 'policyVersionId'>) {
  const version = await readPolicyVersion(org, policyVersionId);
  const alertAt = version?.policy.budget.alertAt ?? DEFAULT_ALERT_AT;
  return { label: version?.label ?? policyVersionId, alertAt };
}

/** Of the schema. */
const DEFAULT_ALERT_AT = 0.8;

function started(org: Org, id: RunId, name: string, run: NewRun, policy: string): Statement {
  const data = { runId: id, run: name, agentId: run.agentId, policy };
  return announce(org, 'run.started', data, run.now, { ifChanged: true });
}

/** The statement that tells that a run is over, if the statement before it changed a row. */
async function ended(
  org: Org,
  type: 'run.completed' | 'run.blocked',
  run: Run,
  reason: string,
  now: number,
): Promise<Statement> {
  const { id: runId, name, agentId, spentNanos } = run;
  const { label: policy } = await policyOf(org, run);
  const data = { runId, run: name, agentId, policy, reason, spentNanos };
  return announce(org, type, data, now, { ifChanged: true });
}

/**
 * Opens a run for calls without a run id and makes it the agent's window; the window before it is
 * completed. Of several callers at once only the first to replace `previous` succeeds.
 *
 * @returns the new run's id, or `undefined` when another caller was first.
 */
export async function openWindow(
  org: Org,
  run: NewRun,
  previous: RunId | null,
): Promise<RunId | undefined> {
  const id = newId('run');
  const before = previous === null ? undefined : await readRun(org, previous);
  const policy = await policyOf(org, run);
  const [moved] = await org.write(
    org.statement(
      `update agents set window_run_id = ?2
       where org_id = ?1 and id = ?3 and window_run_id is ?4`,
      id,
      run.agentId,
      previous,
    ),
    org.statement(
      `insert into runs (
         org_id, id, agent_id, name, source, policy_version_id, ceiling_nanos, alert_at,
         opened_at, active_at
       ) select ?1, ?2, ?3, ?2, 'idle_window', ?4, ?5, ?6, ?7, ?7
       from agents where org_id = ?1 and id = ?3 and window_run_id = ?2`,
      id,
      run.agentId,
      run.policyVersionId,
      run.ceilingNanos,
      policy.alertAt,
      run.now,
    ),
    started(org, id, id, run, policy.label),
    org.statement(
      `update runs set status = 'completed', closed_at = ?3, closed_reason = 'idle'
       where org_id = ?1 and id = ?2 and status = 'open'
         and exists (select 1 from runs where org_id = ?1 and id = ?4)`,
      previous,
      run.now,
      id,
    ),
    ...(before ? [await ended(org, 'run.completed', before, 'idle', run.now)] : []),
  );
  return moved!.changes > 0 ? id : undefined;
}

/** The run that an agent's calls without a run id belong to at present. */
export async function readWindow(org: Org, agent: AgentId): Promise<RunId | null> {
  const row = await org.first(
    'select window_run_id from agents where org_id = ?1 and id = ?2',
    agent,
  );
  return (row?.window_run_id ?? null) as RunId | null;
}

/** Whether a run was active at a moment, Unix milliseconds, or later, or has a call in flight. */
export async function isActiveSince(org: Org, run: Run, since: number): Promise<boolean> {
  if (run.activeAt >= since) return true;
  const row = await org.first(
    `select 1 from runs where org_id = ?1 and id = ?2 and ${inFlightSql('runs', '?3')}`,
    run.id,
    since,
  );
  return row !== undefined;
}

/**
 * Whether a run is open or could be taken up again, as one that was blocked or idle can.
 *
 * @param run What the row of the run goes by.
 */
export function mayGoOnSql(run: string): string {
  return `(${run}.status in ('open', 'blocked') or ${run}.closed_reason = 'idle')`;
}

/**
 * Completes a run for good, with its event; one that can't go on anyway stays as it is. What has
 * stopped a run stays known.
 */
export async function completeRun(org: Org, id: RunId, now: number): Promise<void> {
  const run = await readRun(org, id);
  if (!run) return;
  await org.write(
    org.statement(
      `update runs set
         closed_reason = iif(status = 'blocked', closed_reason, 'completed'),
         status = 'completed', closed_at = ?3, blocked_until = null
       where org_id = ?1 and id = ?2 and ${mayGoOnSql('runs')}`,
      id,
      now,
    ),
    await ended(org, 'run.completed', run, 'completed', now),
  );
}

/**
 * Cancels a run that is open or blocked, with its event and its audit entry: its calls in flight
 * are ended by whichever process they are in, and its next call is refused.
 *
 * @returns whether there was such a run.
 */
export async function cancelRun(
  org: Org,
  actor: Actor,
  id: RunId,
  now: number = Date.now(),
): Promise<boolean> {
  const run = await readRun(org, id);
  if (!run) return false;
  const [cancelled] = await org.write(
    org.statement(
      `update runs set
         status = 'cancelled', closed_at = ?3, closed_reason = 'cancelled', blocked_until = null
       where org_id = ?1 and id = ?2 and ${mayGoOnSql('runs')}`,
      id,
      now,
    ),
    await ended(org, 'run.completed', run, 'cancelled', now),
    auditEntry(
      org,
      actor,
      'run.cancel',
      id,
      { status: 'cancelled' },
      { before: { status: run.status }, ifChanged: true },
    ),
  );
  return cancelled!.changes > 0;
}

/** Why a run is stopped beside the rule. */
export interface StopOptions {
  /** Whether it is stopped even while money is held: for what no settlement can undo. */
  readonly whileHeld?: boolean;
  /** The ceiling that is used up, which is told as an event of its own. */
  readonly scope?: Scope;
}

/**
 * Stops a run, with its events, unless a hold is in flight that may give some money back.
 *
 * @param reason The rule that stops it.
 * @param until When it may go on, Unix milliseconds; `null` for not by itself.
 */
export async function blockRun(
  org: Org,
  id: RunId,
  reason: string,
  until: number | null,
  now: number,
  { whileHeld = false, scope }: StopOptions = {},
): Promise<boolean> {
  const run = await readRun(org, id);
  if (!run) return false;
  const [result] = await org.write(
    org.statement(
      `update runs set status = 'blocked', closed_at = ?5, closed_reason = ?3, blocked_until = ?4
       where org_id = ?1 and id = ?2 and status = 'open' and (held_nanos = 0 or ?6)`,
      id,
      reason,
      until,
      now,
      whileHeld ? 1 : 0,
    ),
    await ended(org, 'run.blocked', run, reason, now),
    ...(scope ? [exceededEvent(org, run, scope, now)] : []),
  );
  return result!.changes > 0;
}

/** Re-opens a run that was blocked until a moment that has passed, or that was only idle. */
export async function reopenRun(org: Org, id: RunId, now: number): Promise<boolean> {
  const [result] = await org.write(
    org.statement(
      `update runs set
         status = 'open', closed_at = null, closed_reason = null, blocked_until = null
       where org_id = ?1 and id = ?2 and (
         status = 'blocked' and blocked_until <= ?3
         or status = 'completed' and closed_reason = 'idle'
       )`,
      id,
      now,
    ),
  );
  return result!.changes > 0;
}

/**
 * Sets a run's ceiling, but never below what is spent and held: money that is gone can't be
 * forbidden. A run that its own ceiling had blocked re-opens when there is room again.
 *
 * @returns whether there is such a run.
 */
export async function setCeiling(
  org: Org,
  actor: Actor,
  id: RunId,
  ceilingNanos: Nanos,
): Promise<boolean> {
  const run = await readRun(org, id);
  if (!run) return false;
  const reopens = `status = 'blocked' and closed_reason = 'budget.run'
    and ?3 > spent_nanos + held_nanos`;
  const before = { ceilingNanos: run.ceilingNanos, status: run.status };
  const [changed] = await org.write(
    org.statement(
      `update runs set
         ceiling_nanos = max(?3, spent_nanos + held_nanos),
         closed_at = iif(${reopens}, null, closed_at),
         closed_reason = iif(${reopens}, null, closed_reason),
         blocked_until = iif(${reopens}, null, blocked_until),
         status = iif(${reopens}, 'open', status)
       where org_id = ?1 and id = ?2`,
      id,
      ceilingNanos,
    ),
    auditEntry(org, actor, 'run.set_ceiling', id, { ceilingNanos }, { before, ifChanged: true }),
  );
  return changed!.changes > 0;
}

function maybe(row: Row | undefined): Run | undefined {
  return row && toRun(row);
}

function toRun(row: Row): Run {
  return {
    id: row.id as RunId,
    agentId: row.agent_id as AgentId,
    name: row.name as string,
    source: row.source as string,
    policyVersionId: row.policy_version_id as PolicyVersionId,
    status: row.status as RunStatus,
    ceilingNanos: row.ceiling_nanos as Nanos | null,
    spentNanos: row.spent_nanos as Nanos,
    heldNanos: row.held_nanos as Nanos,
    stepCount: row.step_count as number,
    callCount: row.call_count as number,
    openedAt: row.opened_at as number,
    activeAt: row.active_at as number,
    closedAt: row.closed_at as number | null,
    closedReason: row.closed_reason as string | null,
    blockedUntil: row.blocked_until as number | null,
  };
}
