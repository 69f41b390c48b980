/** Prices: what a usage costs, and the most that a bounded call can cost, in whole nano-dollars. */

import { MAX_NANOS, type Nanos, nanos } from '../money.ts';
import type { Usage } from '../usage.ts';
import type { Bound } from './bound.ts';
import type { Rates, TokenPrice } from './catalogue.ts';

/**
 * Factors on token prices by service tier, in percent of the standard price. The catalogue knows
 * standard prices only. Cheaper tiers are charged as standard, which is an upper bound. OpenAI's
 * priority (fast) tier lists at 1.67 to 2.5 times standard and ultrafast at 6 times; Anthropic's
 * fast mode at 2 to 6 times, and inference kept in the US at 1.1 times.
 */
const TIER_PERCENT: ReadonlyMap<string, number> = new Map([
  ['auto', 100],
  ['default', 100],
  ['standard', 100],
  ['standard_only', 100],
  ['flex', 100],
  ['batch', 100],
  ['scale', 100],
  ['on_demand', 100],
  ['committed', 100],
  ['priority', 250],
  ['fast', 250],
  ['ultrafast', 600],
  ['fast_mode', 600],
  ['regional', 110],
]);

/** Tiers of service that a provider may give to a call by itself. */
export const SERVICE_TIERS: readonly string[] = ['default', 'priority', 'fast', 'ultrafast'];

/** For a tier nobody has heard of: the dearest one known. */
const UNKNOWN_TIER_PERCENT = 600;

const MILLION = 1_000_000;
const THOUSAND = 1_000;

/**
 * What a usage costs, rounded up once. Where counts contradict each other (more cached tokens than
 * input, more reasoning than output) the parts are charged, never less than the whole.
 *
 * @param serviceTier The tier that served the call; names joined by `+`, such as
 *   `fast_mode+regional`. A name nobody has heard of is charged as the dearest.
 * @returns At most {@link MAX_NANOS}.
 */
export function costOf(usage: Usage, rates: Rates, serviceTier?: string): Nanos {
  const tokens: Product[] = [];
  addInput(tokens, usage, rates);
  addOutput(tokens, usage, rates);
  return charge(tokens, tierPercent(serviceTier), searchFees(usage, rates));
}

/**
 * The most that a call within a bound can cost: every token of the dearest kind that the call can
 * hold, at the dearest price tier that the input can reach, in the tier of service asked for.
 *
 * @throws {RangeError} for a call that has no bound; refuse it instead.
 */
export function worstCaseOf(bound: Bound, rates: Rates): Nanos {
  if (bound.unbounded !== undefined) {
    throw new RangeError(`a call without a bound has no worst case: ${bound.unbounded}`);
  }
  const tokens: Product[] = [
    [bound.inputTokens, dearestInput(bound, rates)],
    [bound.outputTokens, dearestOutput(bound, rates)],
  ];
  return charge(tokens, tierPercent(bound.serviceTier), searchFees(bound, rates));
}

/**
 * The most output tokens per choice with which a call still fits an amount.
 *
 * @returns A whole number of tokens, at most what the bound already allows; -1 when the input
 *   alone does not fit or the call has no bound.
 */
export function fitOutput(bound: Bound, rates: Rates, available: Nanos): number {
  if (bound.unbounded !== undefined) return -1;
  const left = available - worstCaseOf({ ...bound, outputTokens: 0 }, rates);
  if (left < 0) return -1;
  const perToken = BigInt(dearestOutput(bound, rates)) * BigInt(tierPercent(bound.serviceTier));
  const most = Math.floor(bound.outputTokens / bound.choices);
  if (perToken === 0n) return most;
  const tokens = (BigInt(left) * BigInt(MILLION) * 100n) / (perToken * BigInt(bound.choices));
  return Math.min(most, Number(tokens));
}

/** Whether the rates hold the price of each kind of search that the call may run. */
export function pricesSearches(
  searches: Pick<Bound, 'webSearches' | 'fileSearches'>,
  rates: Rates,
): boolean {
  const web = searches.webSearches === 0 || rates.webSearchNanosPerThousand !== undefined;
  return web && (searches.fileSearches === 0 || rates.fileSearchNanosPerThousand !== undefined);
}

/** A number of units and the price of a million (tokens) or a thousand (searches) of them. */
type Product = readonly [units: number, nanosPer: number];

/** Rounds up once; exact whatever the size, in floating point only where that is exact too. */
function charge(tokens: readonly Product[], percent: number, searches: readonly Product[]): Nanos {
  const scale = (MILLION * 100) / THOUSAND;
  let sum = 0;
  for (const [units, price] of tokens) sum += units * price * percent;
  for (const [units, price] of searches) sum += units * price * scale;
  if (sum < Number.MAX_SAFE_INTEGER) return cap(Math.ceil(sum / (MILLION * 100)));
  let exact = 0n;
  for (const [units, price] of tokens) exact += BigInt(units) * BigInt(price) * BigInt(percent);
  for (const [units, price] of searches) exact += BigInt(units) * BigInt(price) * BigInt(scale);
  const unit = BigInt(MILLION * 100);
  return cap(Number((exact + unit - 1n) / unit));
}

function addInput(products: Product[], usage: Usage, rates: Rates): void {
  const all = usage.inputTokens;
  const { cacheReadTokens, cacheWriteTokens, cacheWrite1hTokens } = usage;
  // Cached audio is counted both as cached and as audio: what is cached is not charged again.
  const fresh = rest(all, cacheReadTokens + cacheWriteTokens + cacheWrite1hTokens);
  const audio = Math.min(usage.inputAudioTokens, fresh);
  const images = Math.min(usage.inputImageTokens, fresh - audio);
  const hasMedia = usage.inputAudioTokens > 0 || usage.inputImageTokens > 0;
  const add = (units: number, price: TokenPrice) => addProduct(products, units, price, all);
  add(fresh - audio - images, rates.input);
  add(audio, rates.inputAudio);
  add(images, rates.inputImage);
  add(cacheReadTokens, hasMedia ? rates.cacheReadMedia : rates.cacheRead);
  add(cacheWriteTokens, rates.cacheWrite);
  add(cacheWrite1hTokens, rates.cacheWrite1h);
}

function addOutput(products: Product[], usage: Usage, rates: Rates): void {
  const { inputTokens, reasoningTokens, outputAudioTokens, outputImageTokens } = usage;
  const special = reasoningTokens + outputAudioTokens + outputImageTokens;
  const add = (units: number, price: TokenPrice) => addProduct(products, units, price, inputTokens);
  add(rest(usage.outputTokens, special), rates.output);
  add(reasoningTokens, rates.reasoning);
  add(outputAudioTokens, rates.outputAudio);
  add(outputImageTokens, rates.outputImage);
}

/** Of most kinds of tokens a call has none. */
function addProduct(products: Product[], units: number, price: TokenPrice, size: number): void {
  if (units !== 0) products.push([units, priceAt(price, size)]);
}

function cap(amount: number): Nanos {
  return nanos(Math.min(amount, MAX_NANOS));
}

function rest(whole: number, parts: number): number {
  return Math.max(0, whole - parts);
}

function searchFees(
  counts: Pick<Usage, 'webSearches' | 'fileSearches'>,
  rates: Rates,
): readonly Product[] {
  if (counts.webSearches === 0 && counts.fileSearches === 0) return [];
  return [
    [counts.webSearches, rates.webSearchNanosPerThousand ?? 0],
    [counts.fileSearches, rates.fileSearchNanosPerThousand ?? 0],
  ];
}

function tierPercent(serviceTier: string | undefined): number {
  if (serviceTier === undefined) return 100;
  const known = TIER_PERCENT.get(serviceTier);
  if (known !== undefined) return known;
  let percent = 100;
  for (const part of serviceTier.split('+', 4)) {
    percent = Math.ceil((percent * (TIER_PERCENT.get(part) ?? UNKNOWN_TIER_PERCENT)) / 100);
  }
  return percent;
}

/** What a million tokens cost, in nanos, of a call with an input of this size. */
export function priceAt(price: TokenPrice, inputTokens: number): number {
  let found = price.base;
  for (const tier of price.tiers) if (inputTokens > tier.aboveTokens) found = tier.nanosPerMillion;
  return found;
}

/** The highest price at any size up to this one: a larger input may also be the cheaper one. */
function highest(price: TokenPrice, inputTokens: number): number {
  let found = price.base;
  for (const tier of price.tiers) {
    if (inputTokens > tier.aboveTokens) found = Math.max(found, tier.nanosPerMillion);
  }
  return found;
}

function dearestInput(bound: Bound, rates: Rates): number {
  const size = bound.inputTokens;
  return Math.max(
    highest(rates.input, size),
    highest(rates.cacheRead, size),
    highest(rates.cacheWrite, size),
    highest(rates.cacheWrite1h, size),
    bound.audio || bound.images ? highest(rates.cacheReadMedia, size) : 0,
    bound.audio ? highest(rates.inputAudio, size) : 0,
    bound.images ? highest(rates.inputImage, size) : 0,
  );
}

function dearestOutput(bound: Bound, rates: Rates): number {
  const size = bound.inputTokens;
  return Math.max(
    highest(rates.output, size),
    highest(rates.reasoning, size),
    highest(rates.outputAudio, size),
    highest(rates.outputImage, size),
  );
}
