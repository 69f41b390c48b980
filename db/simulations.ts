/** Recorded steps as a policy can be asked about them. */

import type { RunId, StepId } from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import type { Effect, Recorded } from '../schema/rules/simulate.ts';
import type { Row } from './client.ts';
import type { Org } from './org.ts';
import type { Asked } from './steps.ts';

/** A recorded step that a policy can be asked about, by its id. */
export interface RecordedStep extends Recorded {
  readonly runId: RunId;
  readonly stepId: StepId;
}

/** The ids of an org's newest runs. */
export async function newestRuns(org: Org, limit: number): Promise<RunId[]> {
  const rows = await org.read(
    'select id from runs where org_id = ?1 order by opened_at desc, id desc limit ?2',
    limit,
  );
  return rows.map(({ id }) => id as RunId);
}

/** Those of these runs that are the org's. */
export async function knownRuns(org: Org, ids: readonly RunId[]): Promise<Set<RunId>> {
  const rows = await org.read(
    'select id from runs where +org_id = ?1 and id in (select value from json_each(?2))',
    JSON.stringify(ids),
  );
  return new Set(rows.map(({ id }) => id as RunId));
}

/** The steps of runs that were calls, asked about, or denied by a policy; each run's in order. */
export async function readRecorded(
  org: Org,
  runs: readonly RunId[],
  limit: number,
): Promise<RecordedStep[]> {
  const rows = await org.read(
    `select s.id, s.run_id, s.kind, s.outcome, s.started_at, s.spent_nanos, s.asked,
       s.answered -> '$.detail' as detail, r.opened_at
     from steps s join runs r on r.id = s.run_id and r.org_id = s.org_id
     where s.org_id = ?1 and s.run_id in (select value from json_each(?2))
       and (s.kind in ('model_call', 'retry', 'failover', 'tool_call')
         or s.kind = 'gate' and s.outcome = 'approval_pending'
         or s.kind = 'note' and s.outcome = 'tool_allowed'
         or s.kind = 'denial' and s.outcome not in ('approval_rejected', 'approval_expired'))
     order by s.run_id, s.id limit ?3`,
    JSON.stringify(runs),
    limit,
  );
  return rows.map(toRecorded);
}

/** What a step says of a tool or a denial. */
interface Detail {
  readonly tool?: unknown;
  readonly rule?: unknown;
  readonly asked?: unknown;
}

const HAPPENED: Readonly<Record<string, Effect>> = { gate: 'ask', denial: 'deny' };
/** What counts among the steps of a run: of its notes, only tools that were allowed are read. */
const CALLS = new Set<unknown>(['model_call', 'retry', 'failover', 'tool_call', 'note']);

function toRecorded(row: Row): RecordedStep {
  const asked = JSON.parse(String(row.asked)) as Asked;
  const detail = JSON.parse(String(row.detail ?? '{}')) as Detail;
  return {
    stepId: row.id as StepId,
    runId: row.run_id as RunId,
    isCall: CALLS.has(row.kind),
    happened: HAPPENED[String(row.kind)] ?? 'allow',
    model: modelOf(asked, detail),
    tool: toolOf(detail),
    startedAt: Number(row.started_at),
    runOpenedAt: Number(row.opened_at),
    spentNanos: row.spent_nanos as Nanos,
  };
}

/** A denied model is told with its key; of other denials only the caller's own words are kept. */
function modelOf({ model, providerKey }: Asked, { rule, asked }: Detail): string | null {
  if (model !== undefined && providerKey !== undefined) return `${providerKey}/${model}`;
  return isOf(rule, 'models.') && typeof asked === 'string' ? asked : null;
}

function toolOf({ tool, rule, asked }: Detail): string | null {
  if (typeof tool === 'string') return tool;
  return isOf(rule, 'tools.') && typeof asked === 'string' ? asked : null;
}

function isOf(rule: unknown, section: string): boolean {
  return typeof rule === 'string' && rule.startsWith(section);
}
