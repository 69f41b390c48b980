/** Money is held before anything leaves; what doesn't fit is lowered, or stops the run. */

import { drawLines } from '../../db/alerts.ts';
import { type Reservation, reserve, stands } from '../../db/holds.ts';
import { blockRun, readRun } from '../../db/runs.ts';
import { type Ceilings, readScopes } from '../../db/scopes.ts';
import type { Hold } from '../../db/settlements.ts';
import type { Asked, Terms } from '../../db/steps.ts';
import { expireHolds } from '../../db/system.ts';
import type { LimitState } from '../../schema/errors.ts';
import type { StepId } from '../../schema/ids.ts';
import { type Edit, type JsonObject, splice } from '../../schema/json.ts';
import { formatDollars, type Nanos, ZERO } from '../../schema/money.ts';
import type { Policy } from '../../schema/policy.ts';
import { type Bound, isGiven, NO_COST } from '../../schema/rules/bound.ts';
import {
  roomOf,
  type Scope,
  tightest,
  type Windows,
  windowsOf,
} from '../../schema/rules/budget.ts';
import { outputUnset } from '../../schema/rules/output.ts';
import { fitOutput, pricesSearches, worstCaseOf } from '../../schema/rules/price.ts';
import { Outdated } from './authenticate.ts';
import { extend } from './call.ts';
import { keepsDigests } from './capture.ts';
import { deny } from './deny.ts';
import { type Flight, LEASE_MS } from './flight.ts';
import { chargesOf, denyPace, type Pace, type Paced, statesOf, unfitOf } from './pace.ts';
import { refuseClosed } from './run.ts';
import { deadlineOf, denyRequest, stopRun } from './stop.ts';

/** A call whose money is held, and the very bytes that go upstream. */
export interface Held extends Paced {
  readonly flight: Flight;
  readonly stepId: StepId;
  readonly bound: Bound;
  readonly heldNanos: Nanos;
  readonly outgoing: Uint8Array<ArrayBuffer>;
  readonly askedUsage: boolean;
  /** How the limits stand that the call counts against, for the caller. */
  readonly limitStates: readonly LimitState[];
  /** The output limit sent upstream where it was lowered, tokens per choice. */
  readonly outputLimit: number | null;
}

/** Others may take what was just seen to fit; after so many turns the caller waits instead. */
const TRIES = 8;
const RETRY_AFTER_S = 2;

/** What is tried: a bound, and the output limit per choice that it stands for where lowered. */
interface Trial {
  readonly bound: Bound;
  readonly outputLimit: number | null;
}

/**
 * Holds the most that the call can cost in every scope that has a ceiling, and counts the call
 * against its limits, in one write.
 *
 * @throws {Refusal} `budget_exceeded` when nothing useful fits, `money_held` when it might once
 *   calls in flight have ended, `rate_limited` when a limit is used up, `run_closed` when the run
 *   has reached a bound of its own, `permission_denied` for a call whose cost has no bound,
 *   `invalid_body` for one whose limits can't be read.
 */
export async function reserveBudget(call: Paced): Promise<Held> {
  let trial = await firstTrial(call);
  const windows = windowsOf(call.startedAt);
  const ceilings = ceilingsOf(call.version.policy);
  const drawing = drawLines(call.org, call.agent.id, call.version, windows);
  if (drawing) await drawing;
  for (let turn = 0; turn < TRIES; turn++) {
    const tried = await hold(call, trial, windows, ceilings);
    if (tried.held) return tried.held;
    if (call.isRemembered) throw new Outdated();
    trial = await refit(call, trial, windows, ceilings, tried.pace);
  }
  return denyHeld(call, await readTightest(call, windows, ceilings));
}

function firstTrial(call: Paced): Trial | Promise<never> {
  const { endpoint, body, rates } = call;
  if (!rates || !body) return { bound: NO_COST, outputLimit: null };
  const asked = endpoint.bound(body.value, call.bytes.length, rates);
  const bound = inTierOf(call.key, asked);
  if (bound.unbounded !== undefined || !pricesSearches(bound, rates)) {
    const field = bound.unbounded ?? 'tools';
    return denyRequest(
      call,
      'permission_denied',
      `What this call may cost has no bound because of "${field}"; limit it or leave it out.`,
      { rule: 'budget.bound', field },
    );
  }
  return { bound, outputLimit: null };
}

/** Which tier a call gets that leaves it open is set at the provider, and known by the key. */
function inTierOf({ serviceTier }: Paced['key'], bound: Bound): Bound {
  const isOpen = (bound.serviceTier ?? 'auto') === 'auto';
  return isOpen && serviceTier !== 'default' ? { ...bound, serviceTier } : bound;
}

/** The ceilings of a policy beside the run's own. */
export function ceilingsOf({ budget }: Policy): Ceilings {
  const { agentPerDay, agentPerMonth, orgPerMonth } = budget;
  return { agentPerDay, agentPerMonth, orgPerMonth };
}

/** What came of a try: the hold, or how the limits stood that may have been in the way. */
interface Tried {
  readonly held?: Held;
  readonly pace: Pace | undefined;
}

async function hold(
  call: Paced,
  trial: Trial,
  windows: Windows,
  ceilings: Ceilings,
): Promise<Tried> {
  const { bound, outputLimit } = trial;
  // Before anything is held: what a body is refused for here must leave no hold behind.
  const prepared = prepare(call, trial);
  const now = call.services.now();
  const charges = chargesOf(call, bound);
  const reservation = reservationOf(call, trial, windows, ceilings, now + LEASE_MS);
  const { stepId, standings, tokens } = await reserve(call.org, reservation, charges, now);
  const pace = charges.length > 0 ? { charges, standings, now } : undefined;
  if (!stepId) return { pace };
  const flight = takeOff(call, stepId, reservation, tokens);
  const { heldNanos } = reservation;
  const limitStates = pace ? statesOf(pace.charges, pace.standings, now) : NO_STATES;
  const own = { flight, stepId, bound, heldNanos, outputLimit, limitStates, ...prepared };
  return { held: extend(call, own), pace };
}

function reservationOf(
  call: Paced,
  { bound, outputLimit }: Trial,
  windows: Windows,
  ceilings: Ceilings,
  leaseExpiresAt: number,
): Reservation {
  const { credential, windowSince, unparkedSince } = call;
  const { tokenId, revision } = credential;
  return {
    kind: call.stepKind ?? 'model_call',
    runId: call.run.id,
    agentId: call.agent.id,
    windows,
    now: call.startedAt,
    heldNanos: call.rates ? worstCaseOf(bound, call.rates) : ZERO,
    leaseExpiresAt,
    asked: askedOf(call, bound, outputLimit),
    standing: { tokenId, revision, windowSince, unparkedSince },
    ceilings,
  };
}

/** From here on the hold's lease is renewed, until the call is settled. */
function takeOff(
  call: Paced,
  stepId: StepId,
  { windows, heldNanos, leaseExpiresAt }: Reservation,
  tokens: Hold['tokens'],
): Flight {
  const { org, run, agent, version, key, model, services, credential } = call;
  const held = {
    runId: run.id,
    stepId,
    agentId: agent.id,
    policyVersionId: version.id,
    day: windows.day,
    heldNanos,
    providerKey: key.name,
    model,
    tokens,
  };
  const ties = { tokenId: credential.tokenId, deadline: deadlineOf(call) };
  return services.flights.start(org, held, leaseExpiresAt, ties);
}

const NO_STATES: readonly LimitState[] = [];

function askedOf(call: Paced, bound: Bound, outputLimit: number | null): Asked {
  const { credential, endpoint, key, model, requestDigest, rates } = call;
  const isTold = requestDigest !== null && keepsDigests(call.version.policy);
  return {
    endpoint: endpoint.name,
    tokenId: credential.tokenId,
    provider: key.provider,
    providerKey: key.name,
    model: model ?? undefined,
    requestDigest: isTold ? requestDigest : undefined,
    outputLimit: outputLimit ?? undefined,
    catalogue: rates?.catalogue,
    terms: termsOf(call, bound),
  };
}

function termsOf(call: Paced, bound: Bound): Terms | undefined {
  if (!isBackground(call)) return undefined;
  return { bound, catalogue: call.catalogue.version, rates: call.rates ?? undefined };
}

/** Whether the answer may come before what it tells of is done. */
export function isBackground({ body, rates }: Pick<Paced, 'body' | 'rates'>): boolean {
  return rates !== null && body?.value.background === true;
}

/** The bytes that go upstream: the caller's own, with as few edits as can be. */
function prepare(call: Paced, { bound, outputLimit }: Trial) {
  const { body, endpoint, provider } = call;
  if (!body) return { outgoing: call.bytes, askedUsage: false };
  const usage = provider.streamsUsage ? [] : endpoint.askUsage(body);
  const most = outputLimit ?? Math.floor(bound.outputTokens / bound.choices);
  const edits: Edit[] = [...usage];
  // Also unlowered: the limit that was reserved for must be the one that the host reads.
  if (outputLimit !== null || isLimited(body.value)) {
    edits.push(...endpoint.limitOutput(body, most, provider.limitKey));
  }
  if (call.model !== null && body.value.model !== call.model) {
    edits.push({ ...body.members.get('model')!, text: JSON.stringify(call.model) });
  }
  return {
    outgoing: edits.length > 0 ? splice(body.text, edits) : call.bytes,
    askedUsage: usage.length > 0,
  };
}

function isLimited(body: JsonObject): boolean {
  return isGiven(body.max_completion_tokens) && !isGiven(body.max_tokens);
}

/** Finds what to try next, or refuses. */
async function refit(
  call: Paced,
  trial: Trial,
  windows: Windows,
  ceilings: Ceilings,
  pace: Pace | undefined,
): Promise<Trial> {
  const run = await readRun(call.org, call.run.id);
  // Who has named no run goes on in the window that comes after it.
  if (run?.status === 'completed' && call.windowSince !== null) throw new Outdated();
  if (run && run.status !== 'open') return refuseClosed(call, run);
  const unfit = pace && unfitOf(pace);
  if (unfit?.stop) return stopRun(call, unfit.charge.limit);
  if (unfit) return denyPace(call, unfit, pace);
  const scope = await readTightest(call, windows, ceilings);
  // Something else than money has changed since it was read.
  if (!scope || !call.rates) throw new Outdated();
  const room = roomOf(scope);
  if (worstCaseOf(trial.bound, call.rates) <= room) {
    const reservation = reservationOf(call, trial, windows, ceilings, 0);
    if (!(await stands(call.org, reservation))) throw new Outdated();
    return trial;
  }
  const most = mostOutput(call, trial.bound);
  const fits = Math.min(most, fitOutput(trial.bound, call.rates, room));
  const least = Math.min(call.version.policy.budget.minOutputTokens, most);
  if (most > 0 && fits >= Math.max(least, trial.bound.leastOutput ?? 1)) {
    const outputTokens = fits * trial.bound.choices;
    return { bound: { ...trial.bound, outputTokens }, outputLimit: fits };
  }
  if (scope.heldNanos > 0) {
    const now = call.services.now();
    const freed = await expireHolds(call.services.db, now);
    return freed > 0 ? trial : denyHeld(call, scope);
  }
  return stop(call, scope, windows, trial);
}

/** What a completion without a limit gets at OpenAI, so that a lowered limit raises none. */
const COMPLETION_TOKENS = 16;

/** The highest output limit that can be sent, tokens per choice. */
export function mostOutput(
  { endpoint, model, rates, version }: Pick<Paced, 'endpoint' | 'model' | 'rates' | 'version'>,
  bound: Bound,
): number {
  const most = Math.floor(bound.outputTokens / bound.choices);
  if (!bound.isOutputUnset) return most;
  if (endpoint.name === 'completions') return Math.min(most, COMPLETION_TOKENS);
  const { minOutputTokens } = version.policy.budget;
  return Math.min(most, outputUnset(model ?? '', rates?.contextWindow, minOutputTokens));
}

async function readTightest(
  { org, run, agent }: Paced,
  windows: Windows,
  ceilings: Ceilings,
): Promise<Scope | undefined> {
  return tightest(await readScopes(org, { runId: run.id, agentId: agent.id, windows }, ceilings));
}

/** Stops the run, unless a hold has appeared meanwhile: then the next turn looks again. */
async function stop(call: Paced, scope: Scope, windows: Windows, trial: Trial): Promise<Trial> {
  const until = blockedUntil(scope, windows);
  const now = call.services.now();
  const reason = `budget.${scope.name}`;
  const blocked = await blockRun(call.org, call.run.id, reason, until, now, { scope });
  if (!blocked) return trial;
  const left = `${dollars(scope.spentNanos)} of ${dollars(scope.ceilingNanos)} are spent`;
  return deny(
    call,
    'budget_exceeded',
    `The budget "${scope.name}" has no room for this call: ${left}. ${remedy(until)}`,
    moneyOf(scope),
  );
}

/** When a run that a ceiling stops may go on, Unix milliseconds; `null` for not by itself. */
export function blockedUntil(scope: Scope, windows: Windows): number | null {
  if (scope.name === 'run') return null;
  return scope.name === 'agent_per_day' ? windows.dayEnds : windows.monthEnds;
}

function remedy(until: number | null): string {
  return until === null
    ? 'Raise the ceiling of the run or start a new run.'
    : `The run can go on at ${new Date(until).toISOString()}.`;
}

function denyHeld(call: Paced, scope: Scope | undefined): Promise<never> {
  return deny(
    call,
    'money_held',
    'What is left of the budget is held by calls in flight; try again when they have ended.',
    {
      ...(scope ? { ...moneyOf(scope), limits: [heldStateOf(scope)] } : {}),
      retryAfterS: RETRY_AFTER_S,
    },
  );
}

/** As of a limit that is used up: nothing remains for this call until others have ended. */
function heldStateOf({ name, ceilingNanos }: Scope): LimitState {
  return {
    ...{ name: `budget-${name.replaceAll('_', '-')}`, unit: 'nanodollars' },
    ...{ limit: ceilingNanos, remaining: 0, resetS: RETRY_AFTER_S },
  };
}

function moneyOf(scope: Scope) {
  return {
    rule: `budget.${scope.name}`,
    scope: scope.name,
    spentNanos: scope.spentNanos,
    heldNanos: scope.heldNanos,
    ceilingNanos: scope.ceilingNanos,
  };
}

const dollars = (amount: number): string => `$${formatDollars(amount)}`;
