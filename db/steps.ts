/** The trail: a step is written before its call leaves, holds its money, and is settled once. */

import type { AgentId, RunId, StepId, TokenId } from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import type { Scope, Windows } from '../schema/rules/budget.ts';
import { type Standing as LimitStanding, slotOf } from '../schema/rules/limit.ts';
import type { Usage } from '../schema/usage.ts';
import type { Row, Statement, Value } from './client.ts';
import {
  type Charge,
  countCharges,
  fitsSql,
  readStandings,
  showStandings,
  writeCharges,
} from './limits.ts';
import type { Org } from './org.ts';
import { type Page, readPages, type Window } from './page.ts';
import { newId } from './seal.ts';

export type StepKind =
  | 'model_call'
  | 'tool_call'
  | 'retry'
  | 'failover'
  | 'gate'
  | 'denial'
  | 'note';

/** Where a step belongs, and when. */
export interface Place {
  readonly runId: RunId;
  readonly windows: Windows;
  readonly now: number;
}

/** The ceilings of a policy beside the run's own; `undefined` where there is none. */
export interface Ceilings {
  readonly agentPerDay: Nanos | undefined;
  readonly agentPerMonth: Nanos | undefined;
  readonly orgPerMonth: Nanos | undefined;
}

/** What was asked, as far as the trail keeps it. */
export interface Asked {
  readonly endpoint: string;
  readonly tokenId: TokenId;
  readonly provider?: string;
  /** The name of the provider key that the call goes out with. */
  readonly providerKey?: string;
  /** The model as the upstream is asked for it. */
  readonly model?: string;
  readonly requestDigest?: string;
  /** The output limit sent upstream where it was lowered, tokens per choice. */
  readonly outputLimit?: number;
  /** The version of the price catalogue that the call is charged by. */
  readonly catalogue?: string;
}

/** What was answered, as far as the trail keeps it. */
export interface Answered {
  readonly httpStatus?: number;
  readonly servedModel?: string;
  readonly serviceTier?: string;
  /** Counts that are not zero. */
  readonly usage?: Partial<Usage>;
  /** Whether the cost is an upper estimate, because the upstream did not report the usage. */
  readonly estimated?: boolean;
  readonly firstByteMs?: number;
  readonly latencyMs?: number;
  readonly responseDigest?: string;
  readonly upstreamRequestId?: string;
  /** Of a denial: what was decided, and why. */
  readonly detail?: object;
}

/** A call about to leave, and the most it can cost. */
export interface Reservation extends Place {
  readonly kind: StepKind;
  readonly heldNanos: Nanos;
  readonly leaseExpiresAt: number;
  readonly asked: Asked;
  readonly ceilings: Ceilings;
  readonly standing: Standing;
}

/** What the decision to let a call out was based on, beside the run. */
export interface Standing {
  readonly tokenId: TokenId;
  /** Of the org's row: its provider keys and prices. */
  readonly revision: number;
  /**
   * For a run that is the agent's window: since when it must have been active, Unix milliseconds.
   * `null` for a run with a name.
   */
  readonly windowSince: number | null;
}

/**
 * Writes the step and holds its money, in one conditional write: only while the run is open,
 * `spent + held + bound <= ceiling` in every scope, and what the decision was based on still
 * stands. The scopes follow by triggers.
 *
 * @returns the step, durable; or `undefined` when nothing was written.
 */
export async function reserve(org: Org, call: Reservation): Promise<StepId | undefined> {
  const id = newId('step');
  const [result] = await org.write(reservation(org, id, call, false));
  return result!.changes > 0 ? id : undefined;
}

/** What came of a call that limits apply to. */
export interface LimitedReservation {
  /** The step, durable; `undefined` when nothing was written. */
  readonly stepId: StepId | undefined;
  /** How the limits stand: with the call, or as they were when it was not let in. */
  readonly standings: readonly LimitStanding[];
}

/**
 * As {@link reserve}, and only if every charge fits its limit. The charges are counted in the same
 * transaction; a call that is not let in counts nothing.
 *
 * @param nowMillis The moment that windows end at: the present one, since a body may take long.
 */
export async function reserveLimited(
  org: Org,
  call: Reservation,
  charges: readonly Charge[],
  nowMillis: number,
): Promise<LimitedReservation> {
  const id = newId('step');
  const written = writeCharges(charges, nowMillis);
  const [result, , shown] = await org.write(
    reservation(org, id, call, true, tokensOf(charges, nowMillis), written, nowMillis),
    countCharges(org, call.runId, id, written, nowMillis),
    showStandings(org, call.runId, id, written, nowMillis),
  );
  const standings = readStandings(shown!.rows);
  return { stepId: result!.changes > 0 ? id : undefined, standings };
}

/** Where tokens are reserved, for the trigger that replaces them by those used. */
function tokensOf(charges: readonly Charge[], nowMillis: number): string | null {
  const charged = charges.filter(({ limit, amount }) => limit.kind === 'tokens' && amount > 0);
  const [first] = charged;
  if (!first) return null;
  const slots = charged.map(({ limit: { subject, windowMs } }) => {
    return [subject, windowMs, slotOf(nowMillis, windowMs)];
  });
  return JSON.stringify({ tokens: first.amount, slots });
}

function reservation(
  org: Org,
  id: StepId,
  call: Reservation,
  isLimited: boolean,
  ...limits: Value[]
): Statement {
  const ceilings = SCOPES.map(({ name }) => call.ceilings[name]);
  return org.statement(
    reservationSql(
      ceilings.map((ceiling) => ceiling !== undefined),
      isLimited,
    ),
    id,
    call.runId,
    call.kind,
    call.windows.day,
    call.now,
    call.heldNanos,
    call.leaseExpiresAt,
    JSON.stringify(call.asked),
    call.standing.tokenId,
    call.standing.revision,
    call.standing.windowSince,
    ...ceilings.filter((ceiling) => ceiling !== undefined),
    ...limits,
  );
}

/**
 * The scopes beside the run, and the amount that counts against each one's ceiling. A month is all
 * of its days: a call that began before midnight may reserve after one of the next day.
 */
const SCOPES = [
  {
    name: 'agentPerDay',
    amount: `coalesce((select spent_nanos + held_nanos from spend
      where org_id = ?1 and subject = runs.agent_id and window = ?5), 0)`,
  },
  {
    name: 'agentPerMonth',
    amount: `(select coalesce(sum(spent_nanos + held_nanos), 0) from spend
      where org_id = ?1 and subject = runs.agent_id
        and window between substr(?5, 1, 7) and substr(?5, 1, 7) || '-31')`,
  },
  {
    name: 'orgPerMonth',
    amount: `coalesce((select spent_nanos + held_nanos from spend
      where org_id = ?1 and subject = ?1 and window = substr(?5, 1, 7)), 0)`,
  },
] as const;

const FIRST_CEILING = 13;
const reservations = new Map<string, string>();

/**
 * The statement for the scopes that have a ceiling, and for limits where there are any: binding is
 * what a short statement costs.
 */
function reservationSql(hasCeiling: readonly boolean[], isLimited: boolean): string {
  const key = `${hasCeiling.join()} ${isLimited}`;
  let sql = reservations.get(key);
  if (sql === undefined) {
    const present = SCOPES.filter((_, at) => hasCeiling[at]);
    const conditions = present.map(
      ({ amount }, at) => `and ?7 + ${amount} <= ?${FIRST_CEILING + at}`,
    );
    const charged = FIRST_CEILING + present.length;
    if (isLimited) conditions.push(`and ${fitsSql(`?${charged + 1}`, `?${charged + 2}`)}`);
    sql = `insert into steps (
        org_id, id, run_id, agent_id, kind, day, started_at, held_nanos, lease_expires_at, asked
        ${isLimited ? ', charged' : ''}
      )
      select ?1, ?2, id, agent_id, ?4, ?5, ?6, ?7, ?8, ?9 ${isLimited ? `, ?${charged}` : ''}
      from runs
      where org_id = ?1 and id = ?3 and status = 'open'
        and (ceiling_nanos is null or spent_nanos + held_nanos + ?7 <= ceiling_nanos)
        and exists (
          select 1 from tokens t
          join agents a on a.id = t.agent_id
          join orgs o on o.id = t.org_id
          where t.org_id = ?1 and t.id = ?10 and t.agent_id = runs.agent_id
            and t.revoked_at is null and (t.expires_at is null or t.expires_at > ?6)
            and a.suspended_at is null and o.revision = ?11
            and (?12 is null or a.window_run_id = runs.id and runs.active_at >= ?12)
        )
        ${conditions.join('\n        ')}`;
    reservations.set(key, sql);
  }
  return sql;
}

/** The scopes of a run that have a ceiling, as they stand. */
export async function readScopes(
  org: Org,
  place: Pick<Place, 'runId' | 'windows'> & { readonly agentId: AgentId },
  ceilings: Ceilings,
): Promise<Scope[]> {
  const { day, month } = place.windows;
  const rows = await org.read(
    `select 'run' as name, ceiling_nanos, spent_nanos, held_nanos
       from runs where org_id = ?1 and id = ?2
     union all select 'agent_per_day', ?6, coalesce(sum(spent_nanos), 0), coalesce(sum(held_nanos), 0)
       from spend where org_id = ?1 and subject = ?3 and window = ?4
     union all select 'agent_per_month', ?7, coalesce(sum(spent_nanos), 0), coalesce(sum(held_nanos), 0)
       from spend where org_id = ?1 and subject = ?3 and window between ?5 and ?5 || '-31'
     union all select 'org_per_month', ?8, coalesce(sum(spent_nanos), 0), coalesce(sum(held_nanos), 0)
       from spend where org_id = ?1 and subject = ?1 and window = ?5`,
    place.runId,
    place.agentId,
    day,
    month,
    ceilings.agentPerDay ?? null,
    ceilings.agentPerMonth ?? null,
    ceilings.orgPerMonth ?? null,
  );
  return rows
    .filter((row) => row.ceiling_nanos !== null)
    .map((row) => ({
      name: row.name as Scope['name'],
      ceilingNanos: Number(row.ceiling_nanos) as Nanos,
      spentNanos: Number(row.spent_nanos),
      heldNanos: Number(row.held_nanos),
    }));
}

/** How a call ended. */
export interface Settlement {
  readonly now: number;
  readonly spentNanos: Nanos;
  /** `ok`, or what went wrong. */
  readonly outcome: string;
  readonly answered: Answered;
}

/**
 * Replaces a hold by the real cost. A step that has been settled stays as it is, unless its lease
 * had run out while the call was still going: then what is known now replaces the estimate.
 */
export function settlement(org: Org, run: RunId, step: StepId, end: Settlement): Statement {
  return org.statement(
    `update steps set settled_at = ?4, spent_nanos = ?5, outcome = ?6, answered = ?7
     where org_id = ?1 and run_id = ?2 and id = ?3
       and (settled_at is null or outcome = 'lease_expired')`,
    run,
    step,
    end.now,
    end.spentNanos,
    end.outcome,
    JSON.stringify(end.answered),
  );
}

/** Keeps a hold alive. */
export function leaseRenewal(org: Org, run: RunId, step: StepId, expiresAt: number): Statement {
  return org.statement(
    `update steps set lease_expires_at = ?4
     where org_id = ?1 and run_id = ?2 and id = ?3 and settled_at is null`,
    run,
    step,
    expiresAt,
  );
}

/** A step that costs nothing and is over at once: a denial, a note. */
export interface Remark extends Place {
  readonly kind: 'denial' | 'note';
  readonly outcome: string;
  readonly asked: Asked;
  readonly answered: Answered;
}

/**
 * Writes a remark on a run's trail.
 *
 * @param also What else belongs into the transaction.
 */
export async function recordRemark(
  org: Org,
  remark: Remark,
  ...also: readonly Statement[]
): Promise<StepId> {
  const id = newId('step');
  await org.write(
    org.statement(
      `insert into steps (
         org_id, id, run_id, agent_id, kind, day, started_at, settled_at, outcome, asked, answered
       ) select ?1, ?2, id, agent_id, ?4, ?5, ?6, ?6, ?7, ?8, ?9 from runs
       where org_id = ?1 and id = ?3`,
      id,
      remark.runId,
      remark.kind,
      remark.windows.day,
      remark.now,
      remark.outcome,
      JSON.stringify(remark.asked),
      JSON.stringify(remark.answered),
    ),
    ...also,
  );
  return id;
}

/** A step as the trail shows it; `null` where a part of it is not known. */
export interface Step {
  readonly id: StepId;
  readonly kind: StepKind;
  readonly tokenId: TokenId;
  readonly endpoint: string;
  readonly provider: string | null;
  readonly providerKey: string | null;
  readonly model: string | null;
  readonly servedModel: string | null;
  readonly serviceTier: string | null;
  readonly outcome: string | null;
  readonly httpStatus: number | null;
  readonly startedAt: number;
  readonly settledAt: number | null;
  readonly heldNanos: number;
  readonly spentNanos: number;
  readonly estimated: boolean;
  readonly usage: Partial<Usage> | null;
  readonly catalogue: string | null;
  readonly outputLimit: number | null;
  readonly firstByteMs: number | null;
  readonly latencyMs: number | null;
  readonly requestDigest: string | null;
  readonly responseDigest: string | null;
  readonly upstreamRequestId: string | null;
  readonly detail: object | null;
}

/** A page of a run's trail in the order of time, after the step `after`. */
export async function listSteps(
  org: Org,
  run: RunId,
  limit: number,
  after: string,
): Promise<Step[]> {
  const rows = await org.read(
    'select * from steps where org_id = ?1 and run_id = ?2 and id > ?3 order by id limit ?4',
    run,
    after,
    limit,
  );
  return rows.map(toStep);
}

/** A step by its id. */
export async function readStep(org: Org, run: RunId, id: StepId): Promise<Step | undefined> {
  const row = await org.first(
    'select * from steps where org_id = ?1 and run_id = ?2 and id = ?3',
    run,
    id,
  );
  return row && toStep(row);
}

/** A step, and where it belongs. */
export interface RunStep extends Step {
  readonly runId: RunId;
  readonly agentId: AgentId;
}

/** Which steps of a run are listed. */
export interface StepFilter {
  readonly kinds?: readonly StepKind[] | null | undefined;
}

/** The same part of the trails of several runs, each in the order of time. */
export function listStepsOfRuns(
  org: Org,
  runs: readonly RunId[],
  { kinds = null }: StepFilter,
  window: Window,
): Promise<Map<RunId, Page<RunStep>>> {
  const sql = (run: string) => `select * from steps where org_id = ?1 and run_id = ${run}
    and (?2 is null or kind in (select value from json_each(?2)))`;
  const listings = { sql, args: [kinds && JSON.stringify(kinds)], order: 'id' };
  return readPages(org, listings, runs, window, toRunStep);
}

/** Where a step is found: `run_…/stp_…`. */
export type StepKey = `${RunId}/${StepId}`;

/** The steps of several runs, by their keys. */
export async function readSteps(
  org: Org,
  keys: readonly StepKey[],
): Promise<Map<StepKey, RunStep>> {
  const rows = await org.read(
    `select steps.* from json_each(?2) k join steps
       on steps.run_id = k.value ->> 0 and steps.id = k.value ->> 1
     where org_id = ?1`,
    JSON.stringify(keys.map((key) => key.split('/'))),
  );
  const steps = rows.map(toRunStep);
  return new Map(steps.map((step) => [`${step.runId}/${step.id}`, step]));
}

function toRunStep(row: Row): RunStep {
  return { ...toStep(row), runId: row.run_id as RunId, agentId: row.agent_id as AgentId };
}

function toStep(row: Row): Step {
  const asked = JSON.parse(String(row.asked)) as Asked;
  const answered = JSON.parse(String(row.answered ?? '{}')) as Answered;
  return {
    id: row.id as StepId,
    kind: row.kind as StepKind,
    tokenId: asked.tokenId,
    endpoint: asked.endpoint,
    provider: asked.provider ?? null,
    providerKey: asked.providerKey ?? null,
    model: asked.model ?? null,
    servedModel: answered.servedModel ?? null,
    serviceTier: answered.serviceTier ?? null,
    outcome: row.outcome as string | null,
    httpStatus: answered.httpStatus ?? null,
    startedAt: row.started_at as number,
    settledAt: row.settled_at as number | null,
    heldNanos: row.settled_at === null ? (row.held_nanos as number) : 0,
    spentNanos: row.spent_nanos as number,
    estimated: answered.estimated ?? false,
    usage: answered.usage ?? null,
    catalogue: asked.catalogue ?? null,
    outputLimit: asked.outputLimit ?? null,
    firstByteMs: answered.firstByteMs ?? null,
    latencyMs: answered.latencyMs ?? null,
    requestDigest: asked.requestDigest ?? null,
    responseDigest: answered.responseDigest ?? null,
    upstreamRequestId: answered.upstreamRequestId ?? null,
    detail: answered.detail ?? null,
  };
}
