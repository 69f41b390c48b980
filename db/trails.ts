/** Trails: the steps of a run that has ended are anchored by an entry in the audit trail. */

import type { z } from 'zod';
import type { AuditEntry } from '../schema/audit.ts';
import { leastId, type OrgId, type RunId } from '../schema/ids.ts';
import {
  ANCHOR,
  ANCHORED_RUNS,
  PRUNED_RUNS,
  PRUNING,
  TrailCheck,
  type TrailPoint,
  type TrailReport,
  type TrailStep,
  trailAfter,
  trailStart,
} from '../schema/trail.ts';
import { auditEntry } from './audit.ts';
import type { Database, Row, Statement } from './client.ts';
import type { Org } from './org.ts';
import { digestText } from './seal.ts';

/** Late answers may correct a call whose lease ran out; nobody's takes longer than this. */
export const ANCHOR_AFTER_MS = 15 * 60_000;
/** What ends meanwhile is anchored together. */
const ANCHOR_WITHIN_MS = 60 * 60_000;
/** Steps of one moment are committed in no order of their ids: what is younger is not anchored yet. */
export const STEP_AGE_MS = 30_000;
const ORGS_PER_PAGE = 1_000;
const RUNS_PER_ANCHOR = 50;
const STEPS_PER_PAGE = 500;
/** The most steps that are hashed at once, in which no call can go on; the next time goes on with them. */
const STEPS_PER_ANCHOR = 500;

const DUE = `status <> 'open' and anchored_at is null and held_nanos = 0`;

/** The orgs with runs that should have been anchored by now. */
export async function findUnanchored(db: Database, now: number): Promise<OrgId[]> {
  const rows = await db.read(
    `select distinct org_id from runs
     where ${DUE} and closed_at < ?1 and coalesce(grown_at, 0) < ?1 limit ${ORGS_PER_PAGE}`,
    [now - ANCHOR_WITHIN_MS],
  );
  return rows.map(({ org_id }) => org_id as OrgId);
}

/** A run that is being anchored, and how far that has come. */
interface Anchoring extends TrailPoint {
  readonly runId: RunId;
  /** The id of the last step; empty where there is none. */
  readonly last: string;
  /** What was the last step before. */
  readonly before: string | null;
  /** The steps among the new ones that a late answer might correct until they are anchored. */
  readonly guessed: readonly string[];
  /** `left`: there are more to hash; `waiting`: a call has not ended; `growing`: the rest is young. */
  readonly state: 'whole' | 'left' | 'waiting' | 'growing';
}

/**
 * Anchors some runs that have ended: the head of each one's trail is written into an audit entry, so
 * that whatever vouches for the audit trail vouches for the steps.
 *
 * @returns how many runs were looked at; 0 when none is left.
 */
export async function anchorRuns(org: Org, now: number): Promise<number> {
  const rows = await org.read(
    `select id, step_count, anchored_steps, anchored_head, anchored_last from runs
     where org_id = ?1 and ${DUE} and closed_at < ?2 and coalesce(grown_at, 0) < ?2 and ${READY}
     order by closed_at limit ${RUNS_PER_ANCHOR}`,
    now - ANCHOR_AFTER_MS,
    leastId('step', now - STEP_AGE_MS),
    leastId('step', now - ANCHOR_WITHIN_MS),
  );
  const statements: Statement[] = [];
  const anchored: { id: RunId; steps: number; head: string }[] = [];
  let left = STEPS_PER_ANCHOR;
  for (const row of rows) {
    const anchoring = await fold(org, row, left, leastId('step', now - STEP_AGE_MS));
    left -= anchoring.steps - Number(row.anchored_steps);
    statements.push(progress(org, anchoring, Number(row.step_count), now));
    const { runId: id, steps, head, state } = anchoring;
    if (state === 'whole' || state === 'growing') anchored.push({ id, steps, head });
    if (left <= 0) break;
  }
  if (anchored.length > 0) {
    statements.push(auditEntry(org, 'system', ANCHOR, 'runs', { runs: anchored }));
  }
  if (statements.length > 0) await org.write(...statements);
  return rows.length;
}

/** A run that nobody adds to any more, or that somebody never stops adding to. */
const READY = `(
  not exists (select 1 from steps s where s.org_id = ?1 and s.run_id = runs.id and s.id >= ?3)
  or exists (
    select 1 from steps s where s.org_id = ?1 and s.run_id = runs.id
      and s.id > coalesce(runs.anchored_last, '') and s.id < ?4
  )
)`;

/** @param young The least id of the steps that are too young. */
async function fold(org: Org, row: Row, left: number, young: string): Promise<Anchoring> {
  const runId = row.id as RunId;
  const before = row.anchored_last as string | null;
  const guessed: string[] = [];
  let head =
    row.anchored_head === null ? trailStart(org.id, runId, digestText) : `${row.anchored_head}`;
  let last = before ?? '';
  let steps = Number(row.anchored_steps);
  const most = steps + left;
  const told = (state: Anchoring['state']) => ({
    ...{ runId, steps, head, last, before, guessed, state },
  });
  for await (const step of readTrail(org, runId, last)) {
    if (step.settled_at === null) return told('waiting');
    if (step.id >= young) return told('growing');
    if (steps >= most) return told('left');
    if (step.outcome === 'lease_expired') guessed.push(step.id);
    head = trailAfter(head, step, digestText);
    last = step.id;
    steps++;
  }
  return told('whole');
}

/**
 * A run that has grown meanwhile stays unanchored, and is gone on with from here later. Where what
 * was hashed is no longer so, null is refused and nothing of all is written.
 */
function progress(
  org: Org,
  { runId, steps, head, last, before, guessed, state }: Anchoring,
  stepCount: number,
  now: number,
): Statement {
  return org.statement(
    `update runs set anchored_steps = iif(anchored_last is ?9 and json_array_length(?10) = (
         select count(*) from steps s where s.org_id = ?1 and s.run_id = ?2
           and s.id in (select value from json_each(?10)) and s.outcome = 'lease_expired'
       ), ?3, null),
       anchored_head = ?4, anchored_last = ?5,
       anchored_at = iif(?6 = 'whole' and step_count = ?7, ?8, null),
       grown_at = iif(?6 = 'left' or ?6 = 'whole' and step_count = ?7, grown_at, ?8)
     where org_id = ?1 and id = ?2 and ${DUE}`,
    runId,
    steps,
    head,
    last,
    state,
    stepCount,
    now,
    before,
    JSON.stringify(guessed),
  );
}

/** The steps of a run in the order of their ids, from the one after `after` on. */
export async function* readTrail(org: Org, run: RunId, after = ''): AsyncGenerator<TrailStep> {
  for (let last = after; ; ) {
    const rows = await org.read(
      `select run_id, id, agent_id, kind, day, started_at, settled_at, held_nanos, spent_nanos,
         outcome, asked, answered
       from steps where org_id = ?1 and run_id = ?2 and id > ?3 order by id limit ?4`,
      run,
      last,
      STEPS_PER_PAGE,
    );
    yield* rows as unknown as TrailStep[];
    if (rows.length < STEPS_PER_PAGE) return;
    last = String(rows.at(-1)!.id);
  }
}

/**
 * Checks a run's trail against the entries that anchored it; what its own row says does not count.
 *
 * @returns undefined for a run that isn't there.
 */
export async function checkTrail(org: Org, run: RunId): Promise<TrailReport | undefined> {
  const isThere = await org.first('select 1 as found from runs where org_id = ?1 and id = ?2', run);
  if (!isThere) return undefined;
  const check = new TrailCheck(org.id, run, await readAnchors(org, run), digestText);
  for await (const step of readTrail(org, run)) check.add(step);
  return check.report();
}

async function readAnchors(org: Org, run: RunId): Promise<TrailPoint[]> {
  const rows = await org.read(
    `select action, payload from audit_entries
     where org_id = ?1 and action in ('${ANCHOR}', '${PRUNING}') and instr(payload, ?2) > 0
     order by seq`,
    JSON.stringify(run),
  );
  const anchors = new Map<string, TrailPoint[]>();
  for (const { action, payload } of rows) take(anchors, String(action), String(payload));
  return anchors.get(run) ?? [];
}

/** Takes what an entry says of anchors, by run; pruning takes away those that were there. */
function take(anchors: Map<string, TrailPoint[]>, action: string, payload: string): void {
  if (action === ANCHOR) {
    for (const anchor of read(ANCHORED_RUNS, payload)?.after.runs ?? []) {
      const known = anchors.get(anchor.id);
      if (known) known.push(anchor);
      else anchors.set(anchor.id, [anchor]);
    }
  }
  if (action === PRUNING) {
    for (const run of read(PRUNED_RUNS, payload)?.after.runs ?? []) anchors.delete(run);
  }
}

/** A forged payload may be any text; that it is forged is the chain's to tell. */
function read<T>(schema: z.ZodType<T>, payload: string): T | undefined {
  try {
    return schema.parse(JSON.parse(payload));
  } catch {
    return undefined;
  }
}

/** Checks the steps of an export against the audit entries that came with it. */
export class TrailAudit {
  readonly #org: string;
  readonly #anchors = new Map<string, TrailPoint[]>();
  readonly #checks = new Map<string, TrailCheck>();

  constructor(org: string) {
    this.#org = org;
  }

  /** Takes the anchors of an entry. All entries come before the first step. */
  addEntry({ action, payload }: AuditEntry): void {
    if (payload) take(this.#anchors, action, payload.text);
  }

  /** Takes a step; those of a run come in the order of their ids. */
  addStep(step: TrailStep): void {
    this.#check(step.run_id).add(step);
  }

  #check(run: string): TrailCheck {
    let check = this.#checks.get(run);
    if (!check) {
      check = new TrailCheck(this.#org, run, this.#anchors.get(run) ?? [], digestText);
      this.#checks.set(run, check);
    }
    return check;
  }

  /** What was found of each run that has steps, or had some when it was anchored. */
  report(): Map<string, TrailReport> {
    for (const run of this.#anchors.keys()) this.#check(run);
    return new Map(Array.from(this.#checks, ([run, check]) => [run, check.report()]));
  }
}
