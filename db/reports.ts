/** Reports: what agents tell of tools that they ran themselves, as steps with a cost of their own. */

import type { RunId, StepId, TokenId } from '../schema/ids.ts';
import { MAX_NANOS, type Nanos } from '../schema/money.ts';
import type { Statement } from './client.ts';
import type { Org } from './org.ts';
import { digestText, newId } from './seal.ts';
import { settlement } from './settlements.ts';
import { type Asked, type Place, readStep, type Step } from './steps.ts';

/** A tool that was run. */
export interface Report extends Place {
  readonly tokenId: TokenId;
  /** What makes the same report known when it comes again; `null` for none. */
  readonly key: string | null;
  /** `ok`, or what went wrong. */
  readonly outcome: string;
  /** Unix milliseconds. */
  readonly startedAt: number;
  readonly latencyMs: number;
  readonly spentNanos: Nanos;
  /** The tool's name, and whatever else is told of it. */
  readonly detail: object;
  /** Why nothing let the tool run, as the trail says it beside the report. */
  readonly mark?: object | undefined;
}

/** What became of a report. */
export interface Reported {
  readonly step: Step;
  /**
   * - `recorded`: it is on the trail, and its money counts.
   * - `repeated`: it was there before; nothing changed.
   * - `other`: its key stands for another report.
   */
  readonly outcome: 'recorded' | 'repeated' | 'other';
}

/**
 * Writes a report on a run's trail, whatever the run's status and ceilings: the money is gone.
 *
 * @returns undefined for a run that isn't there, or when its sums or the month's could not hold the
 *   cost and stay whole numbers.
 */
export async function recordReport(org: Org, report: Report): Promise<Reported | undefined> {
  const { runId, key } = report;
  const id = newId('step');
  const digest = digestText(
    JSON.stringify([report.outcome, report.latencyMs, report.spentNanos, report.detail]),
  );
  await org.write(...(key === null ? [] : [claimKey(org, id, report, key, digest)]), ...writing());
  const kept = key === null ? undefined : await readKey(org, runId, key);
  const step = await readStep(org, runId, kept?.stepId ?? id);
  if (!step) return undefined;
  if (!kept || kept.stepId === id) return { step, outcome: 'recorded' };
  return { step, outcome: kept.digest === digest ? 'repeated' : 'other' };

  /** In two steps, since only what is settled is looked at for alerts. */
  function writing(): Statement[] {
    return [
      insertion(org, id, report),
      settlement(org, runId, id, {
        now: report.now,
        spentNanos: report.spentNanos,
        outcome: report.outcome,
        answered: { latencyMs: report.latencyMs, detail: report.detail },
      }),
      ...(report.mark ? [marking(org, id, report)] : []),
    ];
  }
}

/** Whether the sums of a run, and of the org's month with all agents and days, can hold a cost. */
const hasRoom = (cost: string, month: string): string => `(
  runs.spent_nanos + ${cost} <= ${MAX_NANOS} and ${cost} + coalesce((
    select spent_nanos from spend where org_id = ?1 and subject = ?1 and window = ${month}
  ), 0) <= ${MAX_NANOS}
)`;

function claimKey(org: Org, id: StepId, report: Report, key: string, digest: string): Statement {
  return org.statement(
    `insert into reports (org_id, run_id, key, step_id, digest)
     select ?1, ?2, ?3, ?4, ?5 from runs
     where org_id = ?1 and id = ?2 and ${hasRoom('?6', '?7')} on conflict do nothing`,
    report.runId,
    key,
    id,
    digest,
    report.spentNanos,
    report.windows.month,
  );
}

async function readKey(org: Org, run: RunId, key: string) {
  const row = await org.first(
    'select step_id, digest from reports where org_id = ?1 and run_id = ?2 and key = ?3',
    run,
    key,
  );
  return row && { stepId: row.step_id as StepId, digest: String(row.digest) };
}

/** With a key only where the statement before it has claimed that. */
function insertion(org: Org, id: StepId, report: Report): Statement {
  const asked: Asked = { endpoint: 'runs.steps', tokenId: report.tokenId };
  return org.statement(
    `insert into steps (
       org_id, id, run_id, agent_id, kind, day, started_at, held_nanos, asked
     ) select ?1, ?2, id, agent_id, 'tool_call', ?4, ?5, 0, ?6 from runs
     where org_id = ?1 and id = ?3 and (?7 or changes() > 0) and ${hasRoom('?8', '?9')}`,
    id,
    report.runId,
    report.windows.day,
    report.startedAt,
    JSON.stringify(asked),
    report.key === null ? 1 : 0,
    report.spentNanos,
    report.windows.month,
  );
}

/** The note beside a report that has just been written. */
function marking(org: Org, id: StepId, { now, windows, tokenId, mark }: Report): Statement {
  const asked: Asked = { endpoint: 'runs.steps', tokenId };
  return org.statement(
    `insert into steps (
       org_id, id, run_id, agent_id, kind, day, started_at, settled_at, outcome, asked, answered
     ) select ?1, ?3, run_id, agent_id, 'note', ?4, ?5, ?5, 'unreleased_report', ?6, ?7
     from steps where org_id = ?1 and id = ?2`,
    id,
    newId('step'),
    windows.day,
    now,
    JSON.stringify(asked),
    JSON.stringify({ detail: { ...mark, step: id } }),
  );
}
