/** The trail: what a run did, step by step. */

import type { AgentId, RunId, StepId, TokenId } from '../schema/ids.ts';
import type { Bound } from '../schema/rules/bound.ts';
import type { Windows } from '../schema/rules/budget.ts';
import type { Rates } from '../schema/rules/catalogue.ts';
import type { Usage } from '../schema/usage.ts';
import type { Row, Statement } from './client.ts';
import { type Charge, countCharges, fitsSql, writeCharges } from './limits.ts';
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

/** What was asked, as far as the trail keeps it. */
export interface Asked {
  readonly endpoint: string;
  readonly tokenId: TokenId;
  readonly provider?: string | undefined;
  /** The name of the provider key that the call goes out with. */
  readonly providerKey?: string | undefined;
  /** The model as the upstream is asked for it. */
  readonly model?: string | undefined;
  readonly requestDigest?: string | undefined;
  /** The output limit sent upstream where it was lowered, tokens per choice. */
  readonly outputLimit?: number | undefined;
  /** Where the price is from that the hold was made by: a version of the catalogue, or `override`. */
  readonly catalogue?: string | undefined;
  /** Only of a response that is made in the background. */
  readonly terms?: Terms | undefined;
}

/** What a response is charged by that ends when the call that made it is long over. */
export interface Terms {
  readonly bound: Bound;
  /** The version of the catalogue that was in force. */
  readonly catalogue: string;
  /** The price that it was held by, which no catalogue may have any more by then. */
  readonly rates?: Rates | undefined;
}

/** What was answered, as far as the trail keeps it. */
export interface Answered {
  readonly httpStatus?: number | undefined;
  readonly servedModel?: string | undefined;
  readonly serviceTier?: string | undefined;
  /** Counts that are not zero. */
  readonly usage?: Partial<Usage> | undefined;
  /** Where the price is from that was charged, if not from where that of the hold was. */
  readonly catalogue?: string | undefined;
  /** Whether the cost is an upper estimate, because the upstream did not report the usage. */
  readonly estimated?: boolean | undefined;
  readonly firstByteMs?: number | undefined;
  readonly latencyMs?: number | undefined;
  readonly responseDigest?: string | undefined;
  readonly upstreamRequestId?: string | undefined;
  /** Of a denial: what was decided, and why. */
  readonly detail?: object | undefined;
}

/** A step that costs nothing and is over at once: a denial, a note. */
export interface Remark extends Place {
  readonly kind: 'denial' | 'note';
  readonly outcome: string;
  readonly asked: Asked;
  readonly answered: Answered;
  /** What it counts against; it is written only where they fit. */
  readonly charges?: readonly Charge[];
  /** Whether it counts among the steps that the run's policy limits. */
  readonly isCounted?: boolean;
}

/**
 * Writes a remark on a run's trail.
 *
 * @param also What else belongs into the transaction, whether the remark is written or not.
 * @returns undefined where it was not written, since a charge doesn't fit its limit.
 */
export async function recordRemark(
  org: Org,
  remark: Remark,
  ...also: readonly Statement[]
): Promise<StepId | undefined> {
  const { runId, charges = [], now, isCounted = false } = remark;
  const id = newId('step');
  const taken = charges.length > 0 ? writeCharges(charges, now) : undefined;
  const [written] = await org.write(
    insertion(org, id, remark, taken),
    ...(isCounted ? [countStep(org, runId)] : []),
    ...(taken === undefined ? [] : [countCharges(org, runId, id, taken, now)]),
    ...also,
  );
  return written!.changes > 0 ? id : undefined;
}

function insertion(org: Org, id: StepId, remark: Remark, taken: string | undefined): Statement {
  return org.statement(
    taken === undefined ? INSERT : INSERT_FITTING,
    id,
    remark.runId,
    remark.kind,
    remark.windows.day,
    remark.now,
    remark.outcome,
    JSON.stringify(remark.asked),
    JSON.stringify(remark.answered),
    ...(taken === undefined ? [] : [taken]),
  );
}

const INSERT = `insert into steps (
    org_id, id, run_id, agent_id, kind, day, started_at, settled_at, outcome, asked, answered
  ) select ?1, ?2, id, agent_id, ?4, ?5, ?6, ?6, ?7, ?8, ?9 from runs
  where org_id = ?1 and id = ?3`;

const INSERT_FITTING = `${INSERT} and ${fitsSql('?10', '?6', false)}`;

/**
 * The statement that counts a step among those that a run's policy limits, if the statement before
 * it in the transaction changed a row: for steps whose kind alone doesn't say that they count.
 */
export function countStep(org: Org, run: RunId): Statement {
  return org.statement(
    'update runs set call_count = call_count + 1 where org_id = ?1 and id = ?2 and changes() > 0',
    run,
  );
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
  const row = await findStep(org, run, id);
  return row && toStep(row);
}

/** A step that made a response; its terms are there if that was in the background. */
export interface Maker extends Step {
  readonly terms: Terms | undefined;
}

/** The step that made a response. */
export async function readMaker(org: Org, run: RunId, id: StepId): Promise<Maker | undefined> {
  const row = await findStep(org, run, id);
  return row && { ...toStep(row), terms: (JSON.parse(String(row.asked)) as Asked).terms };
}

function findStep(org: Org, run: RunId, id: StepId): Promise<Row | undefined> {
  return org.first('select * from steps where org_id = ?1 and run_id = ?2 and id = ?3', run, id);
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
    catalogue: answered.catalogue ?? asked.catalogue ?? null,
    outputLimit: asked.outputLimit ?? null,
    firstByteMs: answered.firstByteMs ?? null,
    latencyMs: answered.latencyMs ?? null,
    requestDigest: asked.requestDigest ?? null,
    responseDigest: answered.responseDigest ?? null,
    upstreamRequestId: answered.upstreamRequestId ?? null,
    detail: answered.detail ?? null,
  };
}
