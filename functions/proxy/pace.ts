/** Which limits the call counts against; the write that holds its money enforces them. */

import type { Charge } from '../../db/limits.ts';
import type { LimitState } from '../../schema/errors.ts';
import type { Bound } from '../../schema/rules/bound.ts';
import {
  countsAttempts,
  fits,
  type Limit,
  limitsOf,
  refusedStateOf,
  retryAfterSOf,
  type Standing,
  type StopReason,
  stateOf,
  stopReasonOf,
  tightestFirst,
} from '../../schema/rules/limit.ts';
import { extend } from './call.ts';
import { deny } from './deny.ts';
import type { Checked } from './results.ts';
import { subjectsOf } from './stop.ts';

/** A call, and the limits that it has to fit into. */
export interface Paced extends Checked {
  readonly limits: readonly Limit[];
}

/** Finds the limits of the policy, of the run and of the operator that apply to a call. */
export function limitRate(call: Checked): Paced {
  const { policy } = call.version;
  const { caps } = call.services.config;
  return extend(call, { limits: limitsOf(policy, caps, subjectsOf(call), call.settings.counters) });
}

/**
 * How much of each of its limits a call takes that can consume so much. A further attempt of a call
 * is no further request.
 */
export function chargesOf(
  { limits, stepKind = 'model_call' }: Paced,
  { inputTokens, outputTokens }: Bound,
): Charge[] {
  return limits.map((limit) => {
    if (stepKind !== 'model_call' && !countsAttempts(limit)) return { limit, amount: 0 };
    return { limit, amount: limit.kind === 'tokens' ? inputTokens + outputTokens : 1 };
  });
}

/** The limits as callers are told of them, the tightest first. */
export function statesOf(
  charges: readonly Charge[],
  standings: readonly Standing[],
  nowMillis: number,
): LimitState[] {
  return tightestFirst(
    charges.flatMap(({ limit }, at) => stateOf(limit, standings[at]!, nowMillis) ?? []),
  );
}

/** What a call took of its limits, and how they stood at that moment. */
export interface Pace {
  readonly charges: readonly Charge[];
  readonly standings: readonly Standing[];
  /** Unix milliseconds. */
  readonly now: number;
}

/** The limit that a call did not fit into, and what follows. */
export interface Unfit {
  readonly charge: Charge;
  /** How long it lasts; absent where no waiting helps. */
  readonly refused: LimitState | undefined;
  /** Why the run has to be stopped; absent where waiting helps. */
  readonly stop: StopReason | undefined;
}

/** The limit that keeps a call out the longest; one that stops the run before all others. */
export function unfitOf(pace: Pace): Unfit | undefined {
  return unfitsOf(pace)[0];
}

/** Who waits for less than the longest of several waits is refused again. */
function unfitsOf({ charges, standings, now }: Pace): Unfit[] {
  const unfits = charges.flatMap((charge, at) => {
    const { limit, amount } = charge;
    const standing = standings[at]!;
    if (fits(limit, amount, standing)) return [];
    const refused = refusedStateOf(limit, amount, standing, now);
    return [{ charge, refused, stop: stopReasonOf(limit) }];
  });
  const waitS = ({ refused }: Unfit) => refused?.resetS ?? Number.MAX_SAFE_INTEGER;
  return unfits.sort((one, other) => waitS(other) - waitS(one));
}

/**
 * Refuses a call that has to wait.
 *
 * @throws {Refusal} `rate_limited`, with the state of all limits; those that refuse come first.
 */
export function denyPace(
  call: Paced,
  { charge: { limit }, refused: longest }: Unfit,
  pace: Pace,
): Promise<never> {
  const refused = unfitsOf(pace).flatMap((unfit) => unfit.refused ?? []);
  const names = new Set(refused.map(({ name }) => name));
  const states = statesOf(pace.charges, pace.standings, pace.now);
  return deny(call, 'rate_limited', sentence(limit, longest!), {
    rule: limit.rule,
    limits: [...refused, ...states.filter(({ name }) => !names.has(name))],
    retryAfterS: retryAfterSOf(longest!),
  });
}

const WHOSE = { token: 'this token', agent: 'this agent', policy: 'this policy', org: 'this org' };

function sentence({ kind, per, most }: Limit, { windowS, resetS }: LimitState): string {
  const whose = per === 'deployment' || per === 'run' ? 'all callers' : WHOSE[per];
  if (kind === 'concurrent') {
    return `${most} calls of ${whose} are in flight, as many as may be; try again when one has ended.`;
  }
  return `The limit of ${most} ${kind} per ${windowS} s for ${whose} is used up; try again in ${resetS} s.`;
}
