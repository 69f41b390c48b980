/** The upstream call; where the policy names other upstreams, as many attempts as it takes. */

import type { Endpoint } from '../providers/contract.ts';
import type { Translation } from '../providers/translate/contract.ts';
import { attempt, type Exchange, endOf, failureOf, refusalOf, type Unanswered } from './attempt.ts';
import { onFacts } from './authenticate.ts';
import { extend } from './call.ts';
import { begin, type Journey, type Leg, plan, renew } from './failover.ts';
import { interruption } from './interrupt.ts';
import { type Held, reserveBudget } from './reserve.ts';
import { settleHold } from './settlement.ts';

/**
 * A call whose upstream has begun to answer. `endpoint`, `body` and `bytes` are the caller's own;
 * key, model, rates and step are those of the attempt that was answered.
 */
export interface Answer extends Held, Exchange {
  /** The endpoint that was called upstream, whose meter reads the answer's own bytes. */
  readonly upstreamEndpoint: Endpoint;
  /** What turns the answer into the caller's dialect, where the upstream speaks another one. */
  readonly translation?: Translation;
  /** How many attempts it took, this one included. */
  readonly attempts: number;
}

/**
 * Sends the call and waits for the upstream's headers. A failure that can have cost nothing is
 * tried again as the policy's `failover` says, each time as a step with money of its own.
 *
 * @throws {Refusal} `upstream_failed`, the hold being settled; `permission_denied` for an upstream
 *   that the operator forbids, or an approval that is used up; as {@link interruption} tells of a
 *   call that was ended; and as {@link reserveBudget} does where the money for another attempt is
 *   not there.
 */
export async function forward(first: Held): Promise<Answer> {
  const journey = begin(first);
  let leg: Leg = { call: first };
  let held = first;
  for (;;) {
    const outcome = await attempt(held, leg.translation !== undefined);
    // Without a list of upstreams nothing is tried again: clients do that by themselves.
    const failure = first.fallbacks.length > 0 ? failureOf(held, outcome) : undefined;
    const next = failure && (await plan(journey, leg, held, outcome, failure));
    if (!next) return conclude(journey, leg, held, outcome);
    [leg, held] = await onFacts(
      next,
      (leg) => renew(journey, leg),
      async (leg) => [leg, await reserveBudget(leg.call)] as const,
    );
  }
}

/** Hands the answer on, or gives up. */
function conclude(
  { first, attempts }: Journey,
  { translation }: Leg,
  held: Held,
  outcome: Exchange | Unanswered,
): Answer | Promise<never> {
  if ('error' in outcome) return giveUp(held, outcome);
  const { endpoint, body, bytes } = first;
  const upstreamEndpoint = held.endpoint;
  const own = { endpoint, body, bytes, upstreamEndpoint, attempts, ...outcome };
  const answer = extend(held, own);
  return translation ? extend(answer, { translation }) : answer;
}

/** Settles a call without an answer and refuses. */
async function giveUp(held: Held, outcome: Unanswered): Promise<never> {
  await settleHold(held, endOf(held, outcome));
  throw interruption(held.flight.ended, held.run.name) ?? refusalOf(held, outcome.error);
}
