/** What a call cost in the end: as the upstream reported, else the most it can have cost. */

import type { Body } from '../../db/captures.ts';
import type { Statement } from '../../db/client.ts';
import { returnApprovals } from '../../db/released.ts';
import { keptResponse } from '../../db/responses.ts';
import { type Settlement, settlement } from '../../db/settlements.ts';
import type { Answered, Step } from '../../db/steps.ts';
import { type Nanos, ZERO } from '../../schema/money.ts';
import { isObject } from '../../schema/rules/bound.ts';
import { type Catalogue, findRates, type Rates } from '../../schema/rules/catalogue.ts';
import { costOf } from '../../schema/rules/price.ts';
import { NO_USAGE, type Usage } from '../../schema/usage.ts';
import type { Reading } from '../providers/contract.ts';
import { captured, keepsBodies, keepsDigests } from './capture.ts';
import { type Permitted, ratesOf } from './decide.ts';
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
  readonly upstreamRequestId?: string | null;
}

/** What a call is charged. */
interface Charge {
  readonly spentNanos: Nanos;
  readonly estimated: boolean;
  readonly usage?: Usage;
}

/** Settles a call's hold, durably, together with what else the answer changes. */
export function settleHold(call: Held, end: End, ...also: Statement[]): Promise<void> {
  const final = settlementOf(call, end, chargeFor(call, end), call.startedAt);
  if (call.approving && isUnrun(end))
    also.push(returnApprovals(call.org, call.run.id, call.stepId));
  if (!keepsBodies(call.version.policy)) return call.flight.settle(final, ...also);
  const keeping = captured(call, end.response);
  return keeping.then((kept) => call.flight.settle(final, ...kept, ...also));
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
  const made = { runId: call.run.id, stepId: call.stepId, providerKey: call.key.name };
  const ids = [reading.responseId, ...(reading.itemIds ?? [])];
  const kept = endpoint.name === 'responses.get' ? (call.kept ?? made) : made;
  return [keptResponse(org, agent.id, ids, kept, call.services.now())];
}

/**
 * Settles the step that made a kept response in the background, from an answer that fetched it.
 * The step's own guard makes a second fetch change nothing.
 */
export async function settleKept(call: Held, maker: Step, end: End): Promise<Statement[]> {
  const { kept, org, settings, provider, key } = call;
  if (!kept || maker.settledAt !== null || end.isFree || !end.reading?.complete) return [];
  const catalogue = await catalogueOf(call, maker);
  const model = maker.model ?? '';
  const rates = catalogue && ratesOf(catalogue, settings, provider, key, model, maker.startedAt);
  const { usage, serviceTier } = end.reading;
  const charge: Charge =
    usage && rates
      ? { spentNanos: costOf(usage, rates, serviceTier), estimated: false, usage }
      : { spentNanos: maker.heldNanos as Nanos, estimated: true };
  const final = settlementOf(call, end, charge, maker.startedAt);
  return [settlement(org, kept.runId, kept.stepId, final)];
}

/** By which the step's hold was made; undefined where it is not kept, so that the hold is charged. */
async function catalogueOf(call: Held, { catalogue }: Step): Promise<Catalogue | undefined> {
  if (catalogue === null || UNDATED.has(catalogue)) return call.catalogue;
  return call.services.catalogues.find(catalogue);
}

/** Prices that are in no catalogue. */
const UNDATED: ReadonlySet<string> = new Set(['override', 'demo']);

function settlementOf(call: Held, end: End, charge: Charge, startedAt: number): Settlement {
  const { reading } = end;
  const isTold = end.responseDigest !== undefined && keepsDigests(call.version.policy);
  const now = call.services.now();
  const answered: Answered = {
    httpStatus: end.httpStatus,
    servedModel: reading?.model,
    serviceTier: reading?.serviceTier,
    usage: charge.usage && withoutZeros(charge.usage),
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
  const { rates } = call;
  const { reading } = end;
  if (!rates || end.isFree) return { spentNanos: ZERO, estimated: false };
  if (!reading?.usage) return { spentNanos: call.heldNanos, estimated: true };
  const served = servedRates(call, rates, reading.model);
  if (reading.complete && served) {
    const spentNanos = costOf(reading.usage, served, reading.serviceTier);
    return { spentNanos, estimated: false, usage: reading.usage };
  }
  return estimate(call, served ?? rates, reading, end.streamedBytes ?? 0);
}

/** The price of the model that answered, which may not be the one that was asked for. */
function servedRates(call: Permitted, rates: Rates, served: string | undefined): Rates | undefined {
  if (served === undefined || served === call.model || served === rates.model) return rates;
  if (rates.catalogue === 'override') return rates;
  return findRates(call.provider.catalogue ?? '', served, call.startedAt, call.catalogue);
}

/**
 * A stream that broke has reported less than it consumed. A token is at least a byte, so what
 * reached us bounds the visible output; the call's own hold caps it.
 */
function estimate(call: Held, rates: Rates, reading: Reading, streamedBytes: number): Charge {
  const seen: Usage = reading.usage ?? NO_USAGE;
  const { outputTokens } = call.bound;
  const mostOutput = isHidden(call, reading) ? outputTokens : Math.min(outputTokens, streamedBytes);
  const usage = { ...seen, outputTokens: Math.max(seen.outputTokens, mostOutput) };
  const cost = costOf(usage, rates, reading.serviceTier);
  const spentNanos = Math.min(cost, call.heldNanos) as Nanos;
  return { spentNanos, estimated: true, usage };
}

/** What a model thinks may be sent as a summary or not at all, so no bytes of it bound it. */
function isHidden({ body }: Held, { complete }: Reading): boolean {
  const thinking = body?.value.thinking;
  return !complete && isObject(thinking) && thinking.type !== 'disabled';
}
