/** Failover: after a failed attempt, where the call goes next, and in whose words. */

import type { Statement } from '../../db/client.ts';
import { announce } from '../../db/outbox.ts';
import { recordRemark } from '../../db/steps.ts';
import { Refusal } from '../../schema/errors.ts';
import { windowsOf } from '../../schema/rules/budget.ts';
import { decideRetry, type Failure } from '../../schema/rules/retry.ts';
import { EgressError } from '../egress.ts';
import { referredItems } from '../providers/responses.ts';
import { type Translation, Untranslatable } from '../providers/translate/contract.ts';
import { refuseBetas } from '../providers/translate/headers.ts';
import { translate } from '../providers/translate/translate.ts';
import { pause } from '../waiting.ts';
import { type Exchange, endOf, refusalOf, type Unanswered } from './attempt.ts';
import { authenticate } from './authenticate.ts';
import { decide, type Target } from './decide.ts';
import { limitRate, type Paced } from './pace.ts';
import { type Held, mostOutput } from './reserve.ts';
import { settleHold } from './settlement.ts';

/** A call on its way to one upstream. */
export interface Leg {
  readonly call: Paced;
  readonly translation?: Translation;
}

/** A call with all its upstreams. */
export interface Journey {
  /** The call as it was first held, for the upstream that the caller asked for. */
  first: Held;
  rest: Target[];
  /** Upstreams that were passed over, and why. */
  readonly passedOver: { readonly target: Target; readonly reason: Untranslatable }[];
  attempts: number;
  /** Attempts at the current upstream. */
  here: number;
}

/** A call at its first upstream. */
export function begin(first: Held): Journey {
  return { first, rest: restOf(first), passedOver: [], attempts: 1, here: 1 };
}

/** What an upstream keeps, no other one knows. */
function restOf({ fallbacks, kept, body }: Held): Target[] {
  if (fallbacks.length === 0) return [];
  const isBound = kept !== undefined || (body && referredItems(body.value).length > 0);
  return isBound ? [] : [...fallbacks];
}

/** Settles a failed attempt and says what is tried next; undefined where nothing is. */
export async function plan(
  journey: Journey,
  leg: Leg,
  held: Held,
  outcome: Exchange | Unanswered,
  failure: Failure,
): Promise<Leg | undefined> {
  const { attempts, here, first } = journey;
  const next = nextLeg(journey);
  const decision = decideRetry(failure, { attempts, here, hasNext: next !== undefined });
  if (decision.verdict === 'give_up') {
    if (decision.isSafe && journey.passedOver.length > 0)
      await refuseUnsaid(journey, held, outcome);
    return undefined;
  }
  const chosen = decision.verdict === 'next' ? next! : leg;
  await drop(held, outcome, decision.verdict === 'next' ? told(held, chosen) : []);
  if (decision.verdict === 'retry') await pause(decision.afterMs, first.request.signal);
  if (first.request.signal.aborted)
    throw refusalOf(held, new EgressError('aborted', 'the caller has left'));
  journey.attempts += 1;
  journey.here = decision.verdict === 'next' ? 1 : here + 1;
  if (decision.verdict === 'next') journey.rest.shift();
  const stepKind = decision.verdict === 'next' ? 'failover' : 'retry';
  return departing(chosen, { stepKind, startedAt: first.services.now() });
}

/** What has been sent once is not taken up again from its first upstream on. */
function departing(
  leg: Leg,
  how: { readonly stepKind: 'retry' | 'failover'; readonly startedAt: number },
): Leg {
  const own = { isRemembered: false, unparkedSince: null } as const;
  return { ...leg, call: limitRate({ ...leg.call, ...how, ...own }) };
}

/**
 * A leg on facts read anew, as are those that may come after it.
 *
 * @throws {Refusal} where the call may not go on, or not to this upstream.
 */
export async function renew(journey: Journey, { call }: Leg): Promise<Leg> {
  const { services, request } = journey.first;
  const stepKind = call.stepKind === 'failover' ? 'failover' : 'retry';
  const { startedAt } = call;
  const caller = await authenticate(services, request, 'call.create');
  const decided = await decide({ ...journey.first, ...caller, startedAt });
  const targets: readonly Target[] = [decided, ...decided.fallbacks];
  const find = ({ key, model }: Target) =>
    targets.find((target) => target.key.name === key.name && target.model === model);
  journey.first = { ...journey.first, ...caller, settings: decided.settings };
  journey.rest = journey.rest.flatMap((next) => find(next) ?? []);
  const target = find(call);
  if (target) return departing(legTo(journey.first, target), { stepKind, startedAt });
  const next = nextLeg(journey);
  if (!next) {
    const asked = `${call.key.name}/${call.model}`;
    const message = `The upstream "${asked}" was taken away meanwhile; try again.`;
    throw new Refusal('unavailable', message, { rule: 'failover', asked });
  }
  journey.rest.shift();
  return departing(next, { stepKind: 'failover', startedAt });
}

/** The next upstream that the call can be said to; those before it are passed over. */
function nextLeg(journey: Journey): Leg | undefined {
  const { first, rest, passedOver } = journey;
  for (let target = rest[0]; target; target = rest[0]) {
    try {
      return legTo(first, target);
    } catch (reason) {
      if (!(reason instanceof Untranslatable)) throw reason;
      passedOver.push({ target, reason });
      rest.shift();
    }
  }
  return undefined;
}

function legTo(first: Held, target: Target): Leg {
  const { endpoint, key, provider, model, rates } = target;
  const call = { ...first, endpoint, key, provider, model, rates };
  if (endpoint === first.endpoint) return { call };
  if (!first.body || model === null) throw new Untranslatable('body', 'is missing');
  refuseBetas(first.request.headers);
  const { translation, body, bytes } = translate(first.endpoint, first.body, {
    ...{ endpoint, model, limitKey: provider.limitKey, streamsUsage: provider.streamsUsage },
    maxTokens: mostOutput(call, first.bound),
    createdS: Math.floor(first.services.now() / 1_000),
  });
  return { call: { ...call, body, bytes }, translation };
}

/** Settles an attempt that is not the last, and lets go of its answer. */
async function drop(
  held: Held,
  outcome: Exchange | Unanswered,
  also: readonly Statement[],
): Promise<void> {
  if ('upstream' in outcome) {
    held.flight.unwatch();
    // Not awaited: an upstream that is slow to end must not hold the next one up.
    outcome.upstream.body?.cancel().catch(() => {});
  }
  await settleHold(held, endOf(held, outcome), ...also);
}

function told({ org, run, stepId, key, model, services }: Held, { call }: Leg): Statement[] {
  const [from, to] = [`${key.name}/${model}`, `${call.key.name}/${call.model}`];
  return [announce(org, 'step.failed_over', { runId: run.id, stepId, from, to }, services.now())];
}

/** Puts on the trail, and tells the caller, why the upstreams that are left can't be asked. */
async function refuseUnsaid(
  { first, passedOver }: Journey,
  held: Held,
  outcome: Exchange | Unanswered,
): Promise<never> {
  await drop(held, outcome, []);
  const { target, reason } = passedOver[0]!;
  const to = `${target.key.name}/${target.model}`;
  const why = 'error' in outcome ? 'gave no answer' : `answered ${outcome.upstream.status}`;
  const message = `The upstream "${held.key.name}" ${why}, and the call can't go to "${to}": ${reason.message}.`;
  const detail = { rule: 'failover', field: reason.field, asked: to, runId: first.run.name };
  const now = first.services.now();
  await recordRemark(first.org, {
    ...{ kind: 'note', runId: first.run.id, windows: windowsOf(now), now },
    outcome: 'not_translatable',
    asked: { endpoint: first.endpoint.name, tokenId: first.credential.tokenId },
    answered: { detail: { message, ...detail } },
  });
  throw new Refusal('upstream_failed', message, detail);
}
