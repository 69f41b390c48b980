/** How far a run may go: what has gone that far is stopped, and says why. */

import type { Charge } from '../../db/limits.ts';
import { blockRun, type Run, readRun } from '../../db/runs.ts';
import type { ErrorCode, RefusalDetail } from '../../schema/errors.ts';
import {
  fits,
  type Limit,
  type LimitKind,
  runBoundsOf,
  type Subjects,
  stopReasonOf,
  stopSentence,
} from '../../schema/rules/limit.ts';
import { deny, type Governed, recordDenial, refusalOf } from './deny.ts';
import { refuseClosed } from './run.ts';

/** What the limits of a call depend on. */
export function subjectsOf(call: Governed): Subjects {
  return {
    token: call.credential.tokenId,
    agent: call.agent.id,
    policy: call.version.policyId,
    org: call.org.id,
    run: call.run.id,
    requestDigest: call.requestDigest,
  };
}

/** What a call takes of those of its run's bounds that are of some kinds. */
export function takenOf(call: Governed, ...kinds: readonly LimitKind[]): Charge[] {
  const bounds = runBoundsOf(call.version.policy, subjectsOf(call));
  const limits = bounds.filter(({ kind }) => kinds.includes(kind));
  return limits.map((limit) => ({ limit, amount: 1 }));
}

/** When a run has lasted as long as it may, Unix milliseconds; `Infinity` for one that may go on. */
export function deadlineOf({ run, version }: Pick<Governed, 'run' | 'version'>): number {
  const { maxDurationS = Number.POSITIVE_INFINITY } = version.policy.run;
  return run.openedAt + maxDurationS * 1_000;
}

/** Whether a call's run has lasted as long as it may. */
export function isOverdue(call: Governed): boolean {
  return call.services.now() >= deadlineOf(call);
}

/**
 * Stops the run of a call that no longer fits one of its run's bounds; calls in flight may still
 * end.
 *
 * @throws {Refusal} `run_closed`.
 */
export async function stopRun(call: Governed, limit: Limit): Promise<never> {
  const { org, run, services } = call;
  const { kind, rule, most } = limit;
  const reason = stopReasonOf(limit)!;
  await blockRun(org, run.id, reason, null, services.now(), { whileHeld: true });
  const message = stopSentence(run.name, reason)!;
  const allowed = kind === 'duration' ? most / 1_000 : most;
  return deny(call, 'run_closed', message, { rule, asked: run.name, allowed });
}

/** Stops the run of a call that has waited until it had lasted as long as it may. */
export async function refuseOverdue(call: Governed): Promise<void> {
  if (!isOverdue(call)) return;
  const [taken] = takenOf(call, 'duration');
  await stopRun(call, taken!.limit);
}

/**
 * Refuses what is asked on a run that is no longer open, or has gone as far as it may: it is
 * stopped then, as by a call that no longer fits.
 *
 * @throws {Refusal} `run_closed`, `budget_exceeded`.
 */
export async function refuseStopped(call: Governed): Promise<void> {
  const run = await readRun(call.org, call.run.id);
  if (!run) return;
  if (run.status !== 'open') return refuseClosed(call, run);
  const reached = reachedBy(call, run);
  if (reached) await stopRun(call, reached);
}

/** The bound that a run has reached. */
function reachedBy(call: Governed, { callCount, openedAt }: Run): Limit | undefined {
  const lastedMs = call.services.now() - openedAt;
  const taken = takenOf(call, 'steps', 'duration');
  return taken.find(({ limit, amount }) => {
    const used = limit.kind === 'steps' ? callCount : lastedMs;
    return !fits(limit, amount, { used, slots: [], live: 0 });
  })?.limit;
}

/**
 * Refuses a call for what it asks, which asking again won't change: it counts among the same
 * requests of its run, and stops the run where it is one too many.
 *
 * @throws {Refusal} always; see {@link deny}.
 */
export async function denyRequest(
  call: Governed,
  code: ErrorCode,
  message: string,
  detail: RefusalDetail,
): Promise<never> {
  const taken = takenOf(call, 'same_request');
  const isRecorded = await recordDenial(call, code, message, detail, taken);
  if (taken[0] && !isRecorded) return stopRun(call, taken[0].limit);
  throw refusalOf(call, code, message, detail);
}
