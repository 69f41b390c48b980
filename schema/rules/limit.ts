/** Limits: what a call counts against, how a sliding window counts it, and what callers are told. */

import type { LimitState } from '../errors.ts';
import type { Policy } from '../policy.ts';

/** What is counted; the last three are the bounds of a run, which stop it. */
export type LimitKind =
  | 'requests'
  | 'tokens'
  | 'concurrent'
  | 'same_request'
  | 'steps'
  | 'duration';

/** A bound that a call has to fit into. */
export interface Limit {
  readonly kind: LimitKind;
  readonly per: 'token' | 'agent' | 'policy' | 'org' | 'deployment' | 'run';
  /** The rule, as a path in the policy document or the name of the operator's variable. */
  readonly rule: string;
  /** The id of what is counted. */
  readonly subject: string;
  /** Milliseconds; 0 where no window slides. */
  readonly windowMs: number;
  /** The most that fits: of the kind's unit, which for `duration` is the millisecond. */
  readonly most: number;
}

/** How often something may happen that is no call: a failed sign-in, a request of an admin. */
export interface Quota {
  readonly kind: 'failures' | 'admin_requests';
  /** Whom it counts and over which window, as callers are told: `address-failures-60s`. */
  readonly name: string;
  readonly windowMs: number;
  readonly most: number;
}

/**
 * What a window holds in one slot: an amount, and when the last of it came. All of it leaves the
 * window when the last of it does, so that what is counted is never less than what was used.
 */
export interface Slot {
  readonly lastAt: number;
  readonly used: number;
}

/** How a limit stands at a moment. */
export interface Standing {
  readonly used: number;
  /** The slots of a window that slides. */
  readonly slots: readonly Slot[];
  /** Calls of the subject that are in flight, where that matters. */
  readonly live: number;
}

/** Into how many slots a window is cut; a use may count for up to a slot longer than its window. */
const SLOTS_PER_WINDOW = 60;
const MAX_RETRY_AFTER_S = 60;
const UNITS = { requests: 'requests', tokens: 'tokens', concurrent: 'concurrent-requests' };

/** The slot that a moment belongs to. Both in milliseconds, whole numbers. */
export function slotOf(atMillis: number, windowMs: number): number {
  return Math.floor(atMillis / Math.ceil(windowMs / SLOTS_PER_WINDOW));
}

/** What of these slots still counts at a moment. */
export function usedOf(slots: readonly Slot[], windowMs: number, nowMillis: number): number {
  let used = 0;
  for (const slot of slots) if (slot.lastAt > nowMillis - windowMs) used += slot.used;
  return used;
}

/** Milliseconds until no more than `most` of what counts now still counts. */
export function waitMsOf(
  slots: readonly Slot[],
  windowMs: number,
  nowMillis: number,
  most: number,
): number {
  let left = usedOf(slots, windowMs, nowMillis);
  let freeAt = nowMillis;
  for (const { lastAt, used } of slots.toSorted((one, other) => one.lastAt - other.lastAt)) {
    if (left <= most) break;
    if (lastAt <= nowMillis - windowMs) continue;
    left -= used;
    freeAt = lastAt + windowMs;
  }
  return freeAt - nowMillis;
}

/**
 * Whether an amount fits. What a call will use of tokens is known only afterwards: a caller that is
 * alone is let in as long as anything is left, and of several at once all fit at their bounds.
 */
export function fits({ kind, most }: Limit, amount: number, { used, live }: Standing): boolean {
  if (used + amount <= most) return true;
  return kind === 'tokens' && used < most && live === 0;
}

/** What of a call's facts its limits depend on. */
export interface Subjects {
  readonly token: string;
  readonly agent: string;
  readonly policy: string;
  readonly org: string;
  readonly run: string;
  /** Of the body; `null` for a call without one. */
  readonly requestDigest: string | null;
}

/** The operator's caps over all orgs; `undefined` where there is none. */
export interface Caps {
  readonly requestsPerMinute: number | undefined;
  readonly concurrentCalls: number | undefined;
}

const NONE: readonly Limit[] = [];
/** The most that fits where a call is only counted, for the limits of other policies. */
const UNLIMITED = Number.MAX_SAFE_INTEGER;

/** A limit before it is known whom it counts. */
type Planned = Omit<Limit, 'subject'>;

/** A window that a policy limits: it counts every call of its subject, whatever their policies. */
export interface Counter extends Pick<Limit, 'kind' | 'per' | 'windowMs'> {
  /** The id of the policy; whom a limit per policy counts. */
  readonly policy: string;
}

const NO_COUNTERS: readonly Counter[] = [];

/** The windows that a policy limits. What is in flight is counted as it is, and needs none. */
export function countersOf(id: string, policy: Policy): Counter[] {
  const windows = policyLimits(policy).filter(({ windowMs }) => windowMs > 0);
  return windows.map(({ kind, per, windowMs }) => ({ kind, per, windowMs, policy: id }));
}

/**
 * The limits that a call counts against; each counter once, by its lowest limit.
 *
 * @param counters Those of the org's policies, which count the call even where its own has no such
 *   limit; the same list as long as nothing changes.
 */
export function limitsOf(
  policy: Policy,
  caps: Caps,
  subjects: Subjects,
  counters: readonly Counter[] = NO_COUNTERS,
): readonly Limit[] {
  const plan = planOf(policy, caps, subjects.policy, counters);
  return plan.length === 0 ? NONE : withSubjects(plan, subjects);
}

/** The limits of a policy, and what they were planned by. */
interface Plan {
  readonly caps: Caps;
  readonly counters: readonly Counter[];
  readonly plan: readonly Planned[];
}

/** The newest of each policy: few, and asked for with every call. */
const plans = new WeakMap<Policy, Plan>();

function planOf(
  policy: Policy,
  caps: Caps,
  id: string,
  counters: readonly Counter[],
): readonly Planned[] {
  const known = plans.get(policy);
  if (known?.caps === caps && known.counters === counters) return known.plan;
  const own = [...runLimits(policy), ...policyLimits(policy), ...operatorLimits(caps)];
  const plan = lowest([...own, ...counting(counters, id)]);
  plans.set(policy, { caps, counters, plan });
  return plan;
}

function counting(counters: readonly Counter[], id: string): Planned[] {
  const counted = counters.filter(({ per, policy }) => per !== 'policy' || policy === id);
  return counted.map(({ kind, per, windowMs }) => {
    return { kind, per, windowMs, rule: 'limits', most: UNLIMITED };
  });
}

/** Whom a limit counts; `undefined` where it doesn't apply to the call. */
function subjectOf({ kind, per }: Planned, subjects: Subjects): string | undefined {
  if (per === 'deployment') return '*';
  if (kind !== 'same_request') return subjects[per];
  const { run, requestDigest } = subjects;
  return requestDigest === null ? undefined : `${run}/${requestDigest}`;
}

/** The limits of a call that bound its run alone. */
export function runBoundsOf(policy: Policy, subjects: Subjects): readonly Limit[] {
  return withSubjects(runLimits(policy), subjects);
}

function withSubjects(plan: readonly Planned[], subjects: Subjects): readonly Limit[] {
  return plan.flatMap((limit) => {
    const subject = subjectOf(limit, subjects);
    return subject === undefined ? [] : { ...limit, subject };
  });
}

/** Whether each attempt of a call counts, and not the call once. */
export function countsAttempts({ kind }: Limit): boolean {
  return kind !== 'requests' && kind !== 'same_request';
}

function runLimits({ loop, run }: Policy): Planned[] {
  const common = { per: 'run', windowMs: 0 } as const;
  const { maxSteps, maxDurationS } = run;
  const limits: Planned[] = [];
  if (maxSteps !== undefined) {
    limits.push({ ...common, kind: 'steps', rule: 'run.maxSteps', most: maxSteps });
  }
  if (maxDurationS !== undefined) {
    const most = maxDurationS * 1_000;
    limits.push({ ...common, kind: 'duration', rule: 'run.maxDurationS', most });
  }
  if (loop) {
    limits.push({
      ...{ kind: 'same_request', per: 'run', rule: 'loop.sameRequest' },
      windowMs: loop.windowS * 1_000,
      // The request that would make it so many is the one that stops the run.
      most: loop.sameRequest - 1,
    });
  }
  return limits;
}

function policyLimits({ limits = [] }: Policy): Planned[] {
  return limits.map((limit, at) => {
    const common = { per: limit.per, rule: `limits[${at}]` };
    if ('concurrent' in limit) {
      return { ...common, kind: 'concurrent', windowMs: 0, most: limit.concurrent };
    }
    const windowMs = limit.windowS * 1_000;
    return 'tokens' in limit
      ? { ...common, kind: 'tokens', windowMs, most: limit.tokens }
      : { ...common, kind: 'requests', windowMs, most: limit.requests };
  });
}

function operatorLimits({ requestsPerMinute, concurrentCalls }: Caps): Planned[] {
  const per = 'deployment';
  const limits: Planned[] = [];
  if (requestsPerMinute !== undefined) {
    const rule = 'RUNGATE_MAX_REQUESTS_PER_MINUTE';
    limits.push({ per, kind: 'requests', rule, windowMs: 60_000, most: requestsPerMinute });
  }
  if (concurrentCalls !== undefined) {
    const rule = 'RUNGATE_MAX_CONCURRENT_CALLS';
    limits.push({ per, kind: 'concurrent', rule, windowMs: 0, most: concurrentCalls });
  }
  return limits;
}

/** Two limits on one counter must not count a call twice. */
function lowest(limits: readonly Planned[]): Planned[] {
  const byCounter = new Map<string, Planned>();
  for (const limit of limits) {
    const counter = `${limit.kind} ${limit.per} ${limit.windowMs}`;
    const other = byCounter.get(counter);
    if (!other || limit.most < other.most) byCounter.set(counter, limit);
  }
  return [...byCounter.values()];
}

/** Why a run was stopped, as `closedReason` has it. */
export type StopReason = 'loop.same_request' | 'run.max_steps' | 'run.max_duration';

const STOPS: Partial<Record<LimitKind, StopReason>> = {
  same_request: 'loop.same_request',
  steps: 'run.max_steps',
  duration: 'run.max_duration',
};

const STOP_SENTENCES: Readonly<Record<StopReason, string>> = {
  'loop.same_request': 'it repeated the same request too often',
  'run.max_steps': 'it has taken as many steps as its policy allows',
  'run.max_duration': 'it has lasted as long as its policy allows',
};

/** The reason for which a run is stopped that no longer fits a limit; `undefined` for a pause. */
export function stopReasonOf({ kind }: Limit): StopReason | undefined {
  return STOPS[kind];
}

/**
 * The sentence for calls on a run that was stopped.
 *
 * @returns `undefined` for a run that was closed for another reason.
 */
export function stopSentence(runName: string, closedReason: string | null): string | undefined {
  if (closedReason === null || !Object.hasOwn(STOP_SENTENCES, closedReason)) return undefined;
  const why = STOP_SENTENCES[closedReason as StopReason];
  return `The run "${runName}" is stopped: ${why}; use a new run id.`;
}

/**
 * What is told of a limit: what remains of it and when more will. `undefined` for the bounds of a
 * run, which no waiting lifts, and where a call is only counted.
 */
export function stateOf(
  limit: Limit,
  { slots, used }: Standing,
  nowMillis: number,
): LimitState | undefined {
  const { kind, per, windowMs, most } = limit;
  if (kind !== 'requests' && kind !== 'tokens' && kind !== 'concurrent') return undefined;
  if (most === UNLIMITED) return undefined;
  const remaining = Math.max(0, most - used);
  const enough = remaining > 0 ? used - 1 : most - 1;
  const waitMs = windowMs > 0 ? waitMsOf(slots, windowMs, nowMillis, enough) : 0;
  return {
    name: windowMs > 0 ? `${per}-${kind}-${windowMs / 1_000}s` : `${per}-${kind}`,
    unit: UNITS[kind],
    limit: most,
    remaining,
    resetS: Math.max(1, Math.ceil(waitMs / 1_000)),
    ...(windowMs > 0 ? { windowS: windowMs / 1_000 } : {}),
  };
}

/** The state of a limit that a call did not fit into: nothing remains for it, and for how long. */
export function refusedStateOf(
  limit: Limit,
  amount: number,
  standing: Standing,
  nowMillis: number,
): LimitState | undefined {
  const state = stateOf(limit, standing, nowMillis);
  // What fits into no empty window waits until anything is left, as one that is alone may.
  const enough = amount > limit.most ? limit.most - 1 : limit.most - amount;
  const waitMs = waitMsOf(standing.slots, limit.windowMs, nowMillis, enough);
  const resetS = Math.max(1, Math.ceil(waitMs / 1_000));
  return state && { ...state, remaining: 0, resetS };
}

/** The state of a quota that is used up, for so many milliseconds. */
export function usedUpStateOf({ name, windowMs, most }: Quota, waitMs: number): LimitState {
  return {
    ...{ name, unit: UNITS.requests, limit: most, remaining: 0 },
    resetS: Math.ceil(waitMs / 1_000),
    windowS: windowMs / 1_000,
  };
}

/** Seconds after which a refused call may be tried again; at most a minute, whatever the limit. */
export function retryAfterSOf({ resetS }: LimitState): number {
  return Math.min(resetS, MAX_RETRY_AFTER_S);
}

/**
 * The limits in the order in which they will stop a caller: by the share that is left. What only
 * lasts as long as a call comes last, since a caller that is alone will find it free.
 */
export function tightestFirst(states: readonly LimitState[]): LimitState[] {
  const passes = ({ windowS }: LimitState) => (windowS === undefined ? 1 : 0);
  const share = ({ remaining, limit }: LimitState) => remaining / limit;
  return states.toSorted((one, other) => passes(one) - passes(other) || share(one) - share(other));
}

/**
 * The headers that tell of limits: `X-RateLimit-*` of the first, in whole numbers with the reset
 * in seconds from now, and all of them as the IETF draft `RateLimit header fields for HTTP` has it
 * (structured fields, RFC 9651).
 *
 * @returns names in lower case; none for no limits.
 */
export function limitHeaders(states: readonly LimitState[]): Record<string, string> {
  const [first] = states;
  if (!first) return {};
  return {
    'x-ratelimit-limit': String(first.limit),
    'x-ratelimit-remaining': String(first.remaining),
    'x-ratelimit-reset': String(first.resetS),
    ratelimit: states
      .map(({ name, remaining, resetS }) => `"${name}";r=${remaining};t=${resetS}`)
      .join(', '),
    'ratelimit-policy': states.map(describe).join(', '),
  };
}

function describe({ name, limit, windowS, unit }: LimitState): string {
  const window = windowS === undefined ? '' : `;w=${windowS}`;
  return `"${name}";q=${limit}${window}${unit === 'requests' ? '' : `;qu="${unit}"`}`;
}
