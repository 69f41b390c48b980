/** What a call cost in the end: as the upstream reported, else the most it can have cost. */

import type { Body } from '../../db/captures.ts';
import type { Statement } from '../../db/client.ts';
import { returnApprovals } from '../../db/released.ts';
import { keptResponse } from '../../db/responses.ts';
import type { Settings } from '../../db/settings.ts';
import { type Settlement, settlement } from '../../db/settlements.ts';
import type { Answered, Maker } from '../../db/steps.ts';
import type { StepId } from '../../schema/ids.ts';
import { type Nanos, ZERO } from '../../schema/money.ts';
import { isObject, isPossible, NO_COST } from '../../schema/rules/bound.ts';
import { findRates, type Rates, undated } from '../../schema/rules/catalogue.ts';
import { costOf, pricesSearches } from '../../schema/rules/price.ts';
import { governsTools } from '../../schema/rules/tools.ts';
import type { Usage } from '../../schema/usage.ts';
import { type EgressErrorCode, NOT_SENT } from '../egress.ts';
import type { Reading } from '../providers/contract.ts';
import { serversOf } from './approved.ts';
import { captured, keepsBodies, keepsDigests } from './capture.ts';
import type { Held } from './reserve.ts';

/** How a call ended. */
export interface End {
  /** `ok`, or what went wrong. */
  readonly outcome: string;
  /** Whether nothing can have been charged, because nothing was sent or the upstream refused. */
  readonly isFree?: boolean;
  readonly reading?: Reading;
  /** Bytes of a stream that reached us. */
  readonly streamedBytes?: number;
  readonly httpStatus?: number;
  readonly firstByteMs?: number;
  readonly responseDigest?: string;
  /** What came from upstream, where the policy keeps it. */
  readonly response?: Body;
  readonly upstreamRequestId?: string | undefined;
}

/** What a call is charged. */
interface Charge {
  readonly spentNanos: Nanos;
  readonly estimated: boolean;
  readonly usage?: Usage;
  /** Where the price is from; absent where the hold is charged. */
  readonly catalogue?: string;
  /** What was reported and can't be true. */
  readonly disbelieved?: Usage;
}

/** Settles a call's hold, durably, together with what else the answer changes. */
export function settleHold(call: Held, end: End, ...also: Statement[]): Promise<void> {
  const charge = chargeFor(call, end);
  const final = settlementOf(call, end, charge, call.startedAt, call.rates?.catalogue);
  tell(call, end, final);
  tellOdd(call, call, charge);
  if (call.approving && isUnrun(end))
    also.push(returnApprovals(call.org, call.run.id, call.stepId));
  if (!keepsBodies(call.version.policy)) return call.flight.settle(final, ...also);
  const keeping = captured(call, end.response);
  return keeping.then((kept) => call.flight.settle(final, ...kept, ...also));
}

/** Ends that are for the operator to look at: the upstream, or the way to it, is out of order. */
const FAULTS: ReadonlySet<string> = new Set<EgressErrorCode | 'upstream_401'>([
  ...NOT_SENT,
  ...(['timeout_first_byte', 'timeout_idle', 'too_large', 'broken', 'upstream_401'] as const),
]);

/** Puts the end of a call into the log: a fault always, any other where everything is told. */
function tell(call: Held, { outcome }: End, { spentNanos, answered }: Settlement): void {
  const { log, config } = call.services;
  const isFault = FAULTS.has(outcome);
  // Looked at here, so that a busy process makes no fields for nothing.
  if (!isFault && config.logLevel !== 'debug') return;
  const { latencyMs } = answered;
  const ids = { requestId: call.requestId, run: call.run.id, step: call.stepId };
  const fields = { ...ids, upstream: call.key.name, outcome, latencyMs, spentNanos };
  if (isFault) log.warn('an upstream gave no whole answer', fields);
  else log.debug('a call has ended', fields);
}

/** A step and what it held. */
type Holding = { readonly stepId: StepId; readonly heldNanos: number };

/** Puts a report that can't be true into the log, and a cost that no hold has kept under a ceiling. */
function tellOdd({ services, key }: Held, { stepId, heldNanos }: Holding, charge: Charge): void {
  const { disbelieved, spentNanos } = charge;
  const fields = { step: stepId, upstream: key.name };
  if (disbelieved) {
    const message =
      'an upstream reported more than a call can use; the call is charged at its bound';
    services.log.warn(message, { ...fields, usage: withoutZeros(disbelieved) });
  }
  if (spentNanos > heldNanos) {
    const message = 'a call cost more than was held for it; a ceiling may be passed';
    services.log.warn(message, { ...fields, heldNanos, spentNanos });
  }
}

/** Whether nothing of a call can have run: it was not sent, or refused for what it is. */
function isUnrun({ isFree = false, httpStatus }: End): boolean {
  return isFree && (httpStatus === undefined || httpStatus < 500);
}

/** Binds a response that the upstream keeps to the agent that made it. */
export function bindResponse(call: Held, reading: Reading): Statement[] {
  const { endpoint, org, agent } = call;
  // One made in the background has its items only once it is fetched.
  const isMaker = endpoint.name === 'responses.create' || endpoint.name === 'responses.get';
  if (!isMaker || reading.responseId === undefined) return [];
  const isGoverned = governsTools(call.version.policy) && call.body !== undefined;
  const made = {
    ...{ runId: call.run.id, stepId: call.stepId, providerKey: call.key.name },
    ...(isGoverned ? { servers: serversOf(endpoint.name, call.body.value) } : {}),
  };
  const ids = [reading.responseId, ...(reading.itemIds ?? [])];
  const kept = endpoint.name === 'responses.get' ? (call.kept ?? made) : made;
  return [keptResponse(org, agent.id, ids, kept, call.services.now())];
}

/**
 * Settles the step that made a kept response in the background, from an answer that fetched it.
 * The step's own guard makes a second fetch change nothing.
 */
export async function settleKept(call: Held, maker: Maker, end: End): Promise<Statement[]> {
  const { kept, org } = call;
  if (!kept || maker.settledAt !== null || end.isFree || !end.reading?.complete) return [];
  const charge = await chargeForKept(call, maker, end.reading);
  tellOdd(call, { stepId: kept.stepId, heldNanos: maker.heldNanos }, charge);
  const final = settlementOf(call, end, charge, maker.startedAt, maker.catalogue);
  return [settlement(org, kept.runId, kept.stepId, final)];
}

/**
 * As if whoever made the response had waited for it; its hold where that can't be known any more,
 * and never more than that where an earlier version of Rungate has made it, which kept no terms.
 */
async function chargeForKept(call: Held, maker: Maker, reading: Reading): Promise<Charge> {
  const { provider, key, services, settings } = call;
  const { model, startedAt, terms } = maker;
  const heldNanos = maker.heldNanos as Nanos;
  const version = terms?.catalogue ?? maker.catalogue ?? '';
  const kept = UNDATED.has(version) ? call.catalogue : await services.catalogues.find(version);
  if (!kept && !terms?.rates) return { spentNanos: heldNanos, estimated: true };
  const name = `${key.name}/${model}`;
  const prices = terms ? pricesAt(call, name, terms.rates) : settings.prices;
  const catalogue = kept ?? call.catalogue;
  const bound = terms?.bound ?? NO_COST;
  const common = { provider, key, model, startedAt, heldNanos, catalogue, bound };
  const rates = terms?.rates ?? prices.get(name)?.rates ?? findListed(common, model ?? '') ?? null;
  const charge = chargeAt({ ...common, settings: { prices }, rates }, reading, 0);
  if (terms) return charge;
  return { ...charge, spentNanos: Math.min(charge.spentNanos, heldNanos) as Nanos };
}

/** Prices that are in no catalogue. */
const UNDATED: ReadonlySet<string> = new Set(['', 'override', 'demo']);

/** The org's own prices, but that of one model as it was when a call was held by it, if it was. */
function pricesAt({ settings }: Held, name: string, rates: Rates | undefined): Settings['prices'] {
  const prices = new Map(settings.prices);
  prices.delete(name);
  const isOwn = rates?.catalogue === 'override';
  return isOwn ? prices.set(name, { rates, hasWindow: true }) : prices;
}

/** @param heldBy Where the price is from that the hold was made by, as the step has it. */
function settlementOf(
  call: Held,
  end: End,
  charge: Charge,
  startedAt: number,
  heldBy: string | null | undefined,
): Settlement {
  const { reading } = end;
  const isTold = end.responseDigest !== undefined && keepsDigests(call.version.policy);
  const now = call.services.now();
  const answered: Answered = {
    httpStatus: end.httpStatus,
    servedModel: reading?.model,
    serviceTier: reading?.serviceTier,
    usage: charge.usage && withoutZeros(charge.usage),
    catalogue: charge.catalogue === heldBy ? undefined : charge.catalogue,
    estimated: charge.estimated || undefined,
    firstByteMs: end.firstByteMs,
    latencyMs: now - startedAt,
    responseDigest: isTold ? end.responseDigest : undefined,
    upstreamRequestId: end.upstreamRequestId?.slice(0, 200) || undefined,
  };
  return { now, spentNanos: charge.spentNanos, outcome: end.outcome, answered };
}

function withoutZeros(usage: Usage): Partial<Usage> {
  const counts: Partial<Record<keyof Usage, number>> = {};
  for (const key in usage) {
    const count = usage[key as keyof Usage];
    if (count !== 0) counts[key as keyof Usage] = count;
  }
  return counts;
}

function chargeFor(call: Held, end: End): Charge {
  if (!call.rates || end.isFree) return { spentNanos: ZERO, estimated: false };
  return chargeAt(call, end.reading, unreportedOutput(call, end));
}

/** What was asked for and what was held for it, by which an answer is charged. */
type Sale = Pick<Held, 'provider' | 'key' | 'catalogue' | 'startedAt' | 'model' | 'bound'> &
  Pick<Held, 'rates' | 'heldNanos'> & { readonly settings: Pick<Settings, 'prices'> };

/** By what the published price of a model is found. */
type Listed = Pick<Sale, 'provider' | 'startedAt' | 'catalogue'>;

/**
 * What an answer costs at the price of the model that gave it. Where that is not known, or the
 * answer broke, it is an estimate that the hold caps; without any report that can be true, the hold.
 *
 * @param mostOutput Tokens that an answer may have had, whatever it reports.
 */
function chargeAt(sale: Sale, reading: Reading | undefined, mostOutput: number): Charge {
  const { heldNanos, rates: asked, bound } = sale;
  const usage = reading?.usage;
  if (usage && !isPossible(usage, bound, asked?.contextWindow)) {
    return { spentNanos: heldNanos, estimated: true, disbelieved: usage };
  }
  const served = reading && usage && servedRates(sale, reading.model, usage);
  const rates = served ?? asked;
  if (!usage || !rates) return { spentNanos: heldNanos, estimated: true };
  const { catalogue } = rates;
  if (reading.complete && served) {
    const spentNanos = costOf(usage, served, reading.serviceTier);
    return { spentNanos, estimated: false, usage, catalogue };
  }
  const most = { ...usage, outputTokens: Math.max(usage.outputTokens, mostOutput) };
  const cost = costOf(most, rates, reading.serviceTier);
  const spentNanos = Math.min(cost, heldNanos) as Nanos;
  return { spentNanos, estimated: true, usage: most, catalogue };
}

/**
 * The price of the model that answered, which may not be the one that was asked for. The org's own
 * prices go first, as they do for what is asked. A name that nobody knows, or that is just another
 * one of the model asked for, leaves that model's own price in force: hosts name models at will.
 *
 * @returns undefined where it isn't known, or has no price of the searches that were made.
 */
function servedRates(sale: Sale, served: string | undefined, usage: Usage): Rates | undefined {
  const { settings, key, model, rates } = sale;
  if (served === undefined || served === model) return rates ?? undefined;
  const found = ownRates(settings, key.name, served) ?? listedRates(sale, served);
  return found && (found === rates || pricesSearches(usage, found)) ? found : undefined;
}

/** The org's own price of a model, or of the one that it is a dated snapshot of. */
function ownRates(
  { prices }: Pick<Settings, 'prices'>,
  key: string,
  served: string,
): Rates | undefined {
  if (prices.size === 0) return undefined;
  return (prices.get(`${key}/${served}`) ?? prices.get(`${key}/${undated(served)}`))?.rates;
}

function listedRates(sale: Sale, served: string): Rates | undefined {
  const { model, rates: asked } = sale;
  const listed = findListed(sale, served);
  if (asked?.catalogue !== 'override') return listed;
  const isRenamed = !listed || listed.model === findListed(sale, model ?? '')?.model;
  return isRenamed ? asked : listed;
}

function findListed({ provider, startedAt, catalogue }: Listed, model: string): Rates | undefined {
  const list = provider.catalogue;
  return list === undefined ? undefined : findRates(list, model, startedAt, catalogue);
}

/**
 * A stream that broke has reported less than it consumed. A token is at least a byte, so what
 * reached us bounds the visible output.
 */
function unreportedOutput(call: Held, { reading, streamedBytes = 0 }: End): number {
  const { outputTokens } = call.bound;
  const isHidden = !reading?.complete && isThinking(call);
  return isHidden ? outputTokens : Math.min(outputTokens, streamedBytes);
}

/** What a model thinks may be sent as a summary or not at all, so no bytes of it bound it. */
function isThinking({ body }: Held): boolean {
  const thinking = body?.value.thinking;
  return isObject(thinking) && thinking.type !== 'disabled';
}
