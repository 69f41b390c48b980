/** What a policy would have decided on steps that are on record, as far as the trail tells. */

import type { Nanos } from '../money.ts';
import type { Policy } from '../policy.ts';
import { decideModel } from './decide.ts';
import { decideTool } from './tools.ts';

/** What is decided of a step. */
export type Effect = 'allow' | 'deny' | 'ask';

/** A step of a trail, as far as a policy can be asked about it. */
export interface Recorded {
  readonly runId: string;
  /** Whether it counts among the steps that a run may have. */
  readonly isCall: boolean;
  readonly happened: Effect;
  /** The model as `key/model`; null where the trail has none. */
  readonly model: string | null;
  /** The name of the tool; null where the trail has none. Arguments are not on the trail. */
  readonly tool: string | null;
  /** Unix milliseconds. */
  readonly startedAt: number;
  readonly runOpenedAt: number;
  readonly spentNanos: Nanos;
}

/** What a policy would have decided. */
export interface Verdict {
  /** Null where the trail doesn't hold what it would go by. */
  readonly effect: Effect | null;
  /** The rule that would have decided, as a path in the document; null where none would. */
  readonly rule: string | null;
  /** One sentence; null where nothing would have stood in the way. */
  readonly reason: string | null;
}

/**
 * Asks a policy about recorded steps, each run's in the order of time.
 *
 * Judged are the model, the tool by its name, the run's ceiling, its most steps and its most time.
 * A rule with a condition on arguments counts as one that applies, since a trail has none. Not
 * judged are ceilings of days and months, limits, loops, hosted tools and failover. What a run has
 * spent counts as it was settled, for the steps that the policy would have let through.
 *
 * @returns a verdict for each step, in their order.
 */
export function simulate(policy: Policy, steps: readonly Recorded[]): Verdict[] {
  const runs = new Map<string, Progress>();
  return steps.map((step) => {
    const run = runs.get(step.runId) ?? { calls: 0, spentNanos: 0, stop: undefined };
    runs.set(step.runId, run);
    const verdict = run.stop ?? judge(policy, step, run);
    if (verdict.effect === 'allow') run.spentNanos += step.spentNanos;
    if (verdict.effect === 'allow' && step.isCall) run.calls++;
    if (verdict.effect === 'deny' && STOPS.has(verdict.rule ?? '')) run.stop = verdict;
    return verdict;
  });
}

/** How far a run would have come. */
interface Progress {
  calls: number;
  spentNanos: number;
  /** What would have stopped it. */
  stop: Verdict | undefined;
}

/** The rules that stop a run for good, in their words. */
const STOPS: ReadonlyMap<string, string> = new Map([
  ['budget.run', 'The run would have passed its ceiling.'],
  ['run.maxSteps', 'The run would have had its most steps.'],
  ['run.maxDurationS', 'The run would have lasted its longest.'],
]);

const ALLOW: Verdict = { effect: 'allow', rule: null, reason: null };
const UNKNOWN: Verdict = { effect: null, rule: null, reason: null };

function judge(policy: Policy, step: Recorded, run: Progress): Verdict {
  const decision =
    step.tool !== null
      ? decideTool(policy, { name: step.tool, args: undefined })
      : step.model !== null
        ? decideModel(policy, step.model)
        : undefined;
  if (decision && decision.effect !== 'allow') {
    const { effect, rule, reason } = decision;
    return { effect, rule, reason };
  }
  const stop = step.isCall ? stopOf(policy, step, run) : undefined;
  if (stop !== undefined) return { effect: 'deny', rule: stop, reason: STOPS.get(stop) ?? null };
  return decision || step.isCall ? ALLOW : UNKNOWN;
}

function stopOf({ budget, run: terms }: Policy, step: Recorded, run: Progress): string | undefined {
  const { maxSteps, maxDurationS } = terms;
  const lastedMs = step.startedAt - step.runOpenedAt;
  if (budget.run !== undefined && run.spentNanos + step.spentNanos > budget.run)
    return 'budget.run';
  if (maxSteps !== undefined && run.calls >= maxSteps) return 'run.maxSteps';
  if (maxDurationS !== undefined && lastedMs > maxDurationS * 1_000) return 'run.maxDurationS';
  return undefined;
}
