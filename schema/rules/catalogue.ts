/** Price lists: the pinned catalogue or a newer one, by exact model id; an org's own; the demo's. */

import { findProvider, type ModelInfo, type ModelPrice } from '@pydantic/genai-prices';
import manifest from '../../package.json' with { type: 'json' };
import { nanos } from '../money.ts';
import { LARGEST_WINDOW_TOKENS } from './bound.ts';

/** Nanos per million tokens, dearer from some size of the input on. */
export interface TokenPrice {
  readonly base: number;
  /** In ascending order: the price of all tokens when the input is larger than `aboveTokens`. */
  readonly tiers: readonly { readonly aboveTokens: number; readonly nanosPerMillion: number }[];
}

/** The prices of one model at one time. A kind that has no price of its own has the base kind's. */
export interface Rates {
  /** Where the prices come from: the version of a catalogue, `override` or `demo`. */
  readonly catalogue: string;
  readonly model: string;
  /** Tokens. */
  readonly contextWindow?: number;
  readonly input: TokenPrice;
  readonly cacheRead: TokenPrice;
  /** Cache reads of input that holds audio or images. */
  readonly cacheReadMedia: TokenPrice;
  readonly cacheWrite: TokenPrice;
  readonly cacheWrite1h: TokenPrice;
  readonly inputAudio: TokenPrice;
  readonly inputImage: TokenPrice;
  readonly output: TokenPrice;
  readonly reasoning: TokenPrice;
  readonly outputAudio: TokenPrice;
  readonly outputImage: TokenPrice;
  /** Nanos per thousand web searches. */
  readonly webSearchNanosPerThousand?: number;
  /** Nanos per thousand searches in stored files. */
  readonly fileSearchNanosPerThousand?: number;
}

/** Prices that an org sets itself: nanos per million tokens, non-negative safe integers. */
export interface PriceOverride {
  readonly model?: string;
  readonly inputNanosPerMillion: number;
  readonly outputNanosPerMillion: number;
  readonly cacheReadNanosPerMillion?: number;
  readonly cacheWriteNanosPerMillion?: number;
  readonly cacheWrite1hNanosPerMillion?: number;
  readonly contextWindow?: number | undefined;
}

/** What a price list says of a model. */
export interface Listing {
  /** The list's id of the provider. */
  readonly provider: string;
  /** The ids by which calls name the model. */
  readonly ids: readonly string[];
  /** The list's own id of the model. */
  readonly model: string;
  /** Tokens. */
  readonly contextWindow?: number | undefined;
  /** Dollars per million tokens or per thousand searches. */
  readonly prices: ModelInfo['prices'];
}

/** What is told of a catalogue. */
export interface Edition {
  /** Its name and version, as they are stored with each step. */
  readonly version: string;
  /** Where it is from: a package, or a URL without its query. */
  readonly source: string;
  /** Unix milliseconds; null for the pinned one. */
  readonly fetchedAt: number | null;
}

/** Prices that are in force together. */
export interface Catalogue extends Edition {
  /** What it lists itself. What it doesn't list has the price of {@link PINNED}, if any. */
  readonly listings: readonly Listing[];
  readonly layers: readonly Layer[];
}

/** The models of a provider by the ids that calls name them by; empty for an unknown provider. */
type Layer = (provider: string) => Index;

/** Name and version of the pinned catalogue. */
export const CATALOGUE = `genai-prices@${manifest.dependencies['@pydantic/genai-prices']}`;

const DEMO_WINDOW_TOKENS = 32_768;
const DAY_SECONDS = 86_400;
/** The longest name of a model, in characters: it goes on the trail and into the answer. */
export const MAX_MODEL_LENGTH = 256;
/** `-YYYY-MM-DD` or `-YYYYMMDD`. */
const DATE_SUFFIX = /-20\d{2}(?:-\d{2}-\d{2}|\d{4})$/;

/** The units we can meter; a model that is priced in any other is not priced for us. */
const METERED = new Set([
  'input_mtok',
  'cache_read_mtok',
  'cache_write_mtok',
  'cache_write_1h_mtok',
  'input_audio_mtok',
  'cache_audio_read_mtok',
  'input_image_mtok',
  'cache_image_read_mtok',
  'output_mtok',
  'output_reasoning_mtok',
  'output_audio_mtok',
  'output_image_mtok',
  'web_searches_kcount',
  'storage_searches_kcount',
]);

/** One entry of a model's price list: its prices, if they are known, and when they apply. */
export interface Offer {
  readonly rates: Rates | undefined;
  readonly fromMillis?: number;
  /** Seconds of the UTC day; `from` after `to` goes over midnight. */
  readonly daily?: { readonly fromSeconds: number; readonly toSeconds: number };
}

/**
 * The prices of a model at a time.
 *
 * Only exact ids count: the model's own, one that the catalogue says it equals, or either of them
 * followed by a date. The catalogue's prefixes are never used, so a model it does not name has no
 * price; nor has one whose price list lacks something it bills for.
 *
 * @param provider The catalogue's id of the provider: `openai`, `anthropic`, …; or `demo`.
 * @param atMillis Unix time at which the call was admitted: hold and settlement use the same.
 * @param catalogue Of a call, the one that was in force when it was admitted.
 * @returns undefined when the price is unknown.
 */
export function findRates(
  provider: string,
  model: string,
  atMillis: number,
  catalogue: Catalogue = PINNED,
): Rates | undefined {
  const offers = findOffers(provider, model, catalogue);
  return offers && ratesAt(offers, atMillis);
}

/** As {@link findRates}, at any time: the last offer that applies is the one that counts. */
export function findOffers(
  provider: string,
  model: string,
  { layers }: Catalogue,
): readonly Offer[] | undefined {
  if (model.length > MAX_MODEL_LENGTH) return undefined;
  return lookUp(layers, provider, model) ?? lookUp(layers, provider, undated(model));
}

/** The name of a model without the date that a snapshot's name ends with. */
export function undated(model: string): string {
  return model.replace(DATE_SUFFIX, '');
}

function lookUp(layers: readonly Layer[], provider: string, id: string) {
  for (const layer of layers) {
    const offers = layer(provider).get(id);
    if (offers) return offers;
  }
  return undefined;
}

/** The prices that offers come to at a time, Unix milliseconds. */
export function ratesAt(offers: readonly Offer[], atMillis: number): Rates | undefined {
  return offers.findLast((offer) => applies(offer, atMillis))?.rates;
}

/** A catalogue of listings; where two list an id of a provider, the first one counts. */
export function makeCatalogue(edition: Edition, listings: readonly Listing[]): Catalogue {
  const byProvider = Map.groupBy(listings, ({ provider }) => provider);
  const indexes = new Map<string, Index>();
  const layer: Layer = (provider) => {
    const known = indexes.get(provider);
    if (known) return known;
    const listed = byProvider.get(provider);
    if (!listed) return NOTHING;
    const index = indexListings(listed, edition.version);
    indexes.set(provider, index);
    return index;
  };
  return { ...edition, listings, layers: [layer, ...PINNED.layers] };
}

/** Rates from an org's own prices. What is not given costs as much as plain input. */
export function overrideRates(override: PriceOverride): Rates {
  const input = flat(override.inputNanosPerMillion);
  const read = flat(override.cacheReadNanosPerMillion ?? input.base);
  const write = flat(override.cacheWriteNanosPerMillion ?? input.base);
  return {
    ...textRates('override', override.model ?? '', input, flat(override.outputNanosPerMillion)),
    cacheRead: read,
    cacheReadMedia: read,
    cacheWrite: write,
    cacheWrite1h: flat(override.cacheWrite1hNanosPerMillion ?? write.base),
    contextWindow: override.contextWindow ?? LARGEST_WINDOW_TOKENS,
  };
}

type Index = ReadonlyMap<string, readonly Offer[]>;

const NOTHING: Index = new Map();
/** Bounded by the catalogue: only providers that it knows are kept. */
const pinned = new Map<string, Index>([['demo', demoIndex()]]);

/** The catalogue that this version of Rungate comes with. */
export const PINNED: Catalogue = {
  ...{ version: CATALOGUE, source: 'npm:@pydantic/genai-prices', fetchedAt: null },
  ...{ listings: [], layers: [indexPinned] },
};

function indexPinned(provider: string): Index {
  const known = pinned.get(provider);
  if (known) return known;
  const found = findProvider({ providerId: provider });
  // The catalogue also matches names loosely.
  if (found?.id !== provider) return NOTHING;
  const index = indexListings(listModels(provider, found.models), CATALOGUE);
  pinned.set(provider, index);
  return index;
}

function indexListings(listings: readonly Listing[], version: string): Index {
  const index = new Map<string, readonly Offer[]>();
  for (const listing of listings) {
    const offers = readOffers(listing, version);
    for (const id of listing.ids) if (!index.has(id)) index.set(id, offers);
  }
  return index;
}

/** A model as the catalogue's own format has it. */
export interface ListedModel extends Pick<ModelInfo, 'id' | 'match' | 'prices'> {
  /** Tokens. */
  readonly context_window?: number | undefined;
}

/**
 * Lists the models of a provider, each under the ids that the list says it equals, and under its
 * own id unless another one equals that.
 */
export function listModels(provider: string, models: readonly ListedModel[]): Listing[] {
  const taken = new Set<string>();
  const take = (id: string) => !taken.has(id) && taken.add(id);
  const equal = models.map(({ match }) => equalIds(match).filter(take));
  return models.map(({ id, context_window: contextWindow, prices }, at) => {
    const ids = take(id) ? [...equal[at]!, id] : equal[at]!;
    return { provider, ids, model: id, ...(contextWindow ? { contextWindow } : {}), prices };
  });
}

function equalIds(match: ModelInfo['match']): readonly string[] {
  if ('equals' in match) return [match.equals];
  return 'or' in match ? match.or.flatMap(equalIds) : [];
}

/** Reads what a listing says, as rates that name the version of the catalogue. */
export function readOffers(listing: Listing, version: string): readonly Offer[] {
  if (!Array.isArray(listing.prices)) {
    return [{ rates: readRates(listing, listing.prices, version) }];
  }
  return listing.prices.map(({ constraint, prices }) => {
    const rates = readRates(listing, prices, version);
    if (constraint === undefined) return { rates };
    if (constraint.type === 'start_date') {
      return { rates, fromMillis: Date.parse(`${constraint.start_date}T00:00:00Z`) };
    }
    const { start_time, end_time } = constraint;
    const daily = { fromSeconds: secondOfDay(start_time), toSeconds: secondOfDay(end_time) };
    return { rates, daily };
  });
}

function applies(offer: Offer, atMillis: number): boolean {
  if (offer.fromMillis !== undefined) return atMillis >= offer.fromMillis;
  if (offer.daily === undefined) return true;
  const { fromSeconds, toSeconds } = offer.daily;
  const now = Math.floor(atMillis / 1000) % DAY_SECONDS;
  return fromSeconds <= toSeconds
    ? now >= fromSeconds && now < toSeconds
    : now >= fromSeconds || now < toSeconds;
}

/** `HH:MM:SS` with `Z` or an offset such as `+08:00`, as seconds of the UTC day. */
function secondOfDay(time: string): number {
  const parts = /^(\d{2}):(\d{2}):(\d{2})(?:Z|([+-])(\d{2}):(\d{2}))$/.exec(time);
  if (!parts) throw new RangeError(`not a time of day: ${time}`);
  const [, hour, minute, second, sign, offsetHour = '0', offsetMinute = '0'] = parts;
  const local = Number(hour) * 3600 + Number(minute) * 60 + Number(second);
  const offset = Number(offsetHour) * 3600 + Number(offsetMinute) * 60;
  return (local + (sign === '-' ? offset : -offset) + DAY_SECONDS) % DAY_SECONDS;
}

/** undefined where the price list does not say all that a call would cost. */
function readRates(listing: Listing, prices: ModelPrice, version: string): Rates | undefined {
  const { model, contextWindow } = listing;
  const keys = Object.keys(prices);
  const window = contextWindow === undefined ? {} : { contextWindow };
  if (keys.length === 0) {
    const nothing = flat(0);
    return isFree(model)
      ? { ...textRates(version, model, nothing, nothing), ...window }
      : undefined;
  }
  if (keys.some((key) => !METERED.has(key)) || isIncomplete(model, prices)) {
    return undefined;
  }
  const input = readPrice(prices.input_mtok) ?? flat(0);
  const output = readPrice(prices.output_mtok) ?? input;
  const read = readPrice(prices.cache_read_mtok) ?? input;
  const write = readPrice(prices.cache_write_mtok) ?? input;
  const web = prices.web_searches_kcount;
  const files = prices.storage_searches_kcount;
  return {
    ...textRates(version, model, input, output),
    ...window,
    cacheRead: read,
    cacheReadMedia: dearer(read, prices.cache_audio_read_mtok, prices.cache_image_read_mtok),
    cacheWrite: write,
    cacheWrite1h: readPrice(prices.cache_write_1h_mtok) ?? write,
    inputAudio: readPrice(prices.input_audio_mtok) ?? input,
    inputImage: readPrice(prices.input_image_mtok) ?? input,
    reasoning: readPrice(prices.output_reasoning_mtok) ?? output,
    outputAudio: readPrice(prices.output_audio_mtok) ?? output,
    outputImage: readPrice(prices.output_image_mtok) ?? output,
    ...(typeof web === 'number' ? { webSearchNanosPerThousand: toNanos(web) } : {}),
    ...(typeof files === 'number' ? { fileSearchNanosPerThousand: toNanos(files) } : {}),
  };
}

/**
 * Models that bill for more than the catalogue lists: audio models without an audio price, and
 * those that search the web on every call, for a fee.
 */
function isIncomplete(model: string, prices: ModelPrice): boolean {
  if (prices.input_mtok === undefined) return true;
  if (/-search-(?:preview|api)/.test(model)) return true;
  return model.includes('audio') && prices.input_audio_mtok === undefined;
}

/** Whether the list's id of a model says that it costs nothing. */
export function isFree(model: string): boolean {
  return model.endsWith(':free');
}

function readPrice(price: ModelPrice[string]): TokenPrice | undefined {
  if (price === undefined) return undefined;
  if (typeof price === 'number') return flat(toNanos(price));
  const tiers = price.tiers.map((tier) => ({
    aboveTokens: tier.start,
    nanosPerMillion: toNanos(tier.price),
  }));
  tiers.sort((a, b) => a.aboveTokens - b.aboveTokens);
  return { base: toNanos(price.base), tiers };
}

/** The price with the highest base; prices of media have no tiers in the catalogue. */
function dearer(price: TokenPrice, ...others: readonly ModelPrice[string][]): TokenPrice {
  return others
    .map(readPrice)
    .reduce<TokenPrice>((top, next) => (next && next.base > top.base ? next : top), price);
}

/** Dollars as the catalogue writes them, to whole nanos: up where there is more than nine digits. */
function toNanos(dollars: number): number {
  const scaled = dollars * 1e9;
  const near = Math.round(scaled);
  // A decimal such as 0.003625 is not a double: what is off by less than this is its rounding.
  return Math.abs(scaled - near) <= near * Number.EPSILON * 2 ? near : Math.ceil(scaled);
}

function flat(nanosPerMillion: number): TokenPrice {
  return { base: nanos(nanosPerMillion), tiers: [] };
}

function textRates(catalogue: string, model: string, input: TokenPrice, output: TokenPrice): Rates {
  return {
    catalogue,
    model,
    input,
    cacheRead: input,
    cacheReadMedia: input,
    cacheWrite: input,
    cacheWrite1h: input,
    inputAudio: input,
    inputImage: input,
    output,
    reasoning: output,
    outputAudio: output,
    outputImage: output,
  };
}

function demoIndex(): Index {
  const offer = (model: string, inputDollars: number, outputDollars: number) => {
    const input = flat(toNanos(inputDollars));
    const rates = textRates('demo', model, input, flat(toNanos(outputDollars)));
    return [model, [{ rates: { ...rates, contextWindow: DEMO_WINDOW_TOKENS } }]] as const;
  };
  return new Map([offer('demo-small', 1, 4), offer('demo-large', 10, 40)]);
}
