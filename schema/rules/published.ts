/** The published price list (genai-prices, data format v2): read strictly, and as it is kept. */

import type { ModelInfo } from '@pydantic/genai-prices';
import { z } from 'zod';
import { concat } from '../bytes.ts';
import { InvalidJson, parseStrict } from '../json.ts';
import { PROVIDERS } from '../providers.ts';
import { type Listing, listModels } from './catalogue.ts';

/** The most bytes that a published list may have: ten times what the original has. */
export const MAX_PUBLISHED_BYTES = 4 * 1024 * 1024;

const MAX_PROVIDERS = 500;
const MAX_MODELS = 5_000;
const MAX_IDS = 200;
const MAX_ALL_IDS = 20_000;
const MAX_OFFERS = 8;
const MAX_TIERS = 8;
const MAX_KINDS = 40;
const MAX_TOKENS = 1_000_000_000;
/** Dollars per million tokens: a dollar a token, a thousand times what any model costs. */
const MAX_DOLLARS = 1_000_000;
const JSON_LIMITS = { maxDepth: 24, maxMembers: 500_000 };

/** A document that is no price list; the message says where it isn't. */
export class InvalidPrices extends Error {
  override readonly name = 'InvalidPrices';
}

type Match = ModelInfo['match'];

const id = z.string().regex(/^[^\p{Cc}]{1,256}$/u, 'must be 1 to 256 characters');
const pattern = z.string().max(1_000);
const matches = z.array(z.lazy(() => match)).max(MAX_IDS);
/** Only ids that are told apart from all others are used, but a rule of another kind is no fault. */
const match: z.ZodType<Match> = z.union([
  z.object({ equals: id }),
  z.object({ or: matches }),
  z.object({ and: matches }),
  z.object({ contains: pattern }),
  z.object({ starts_with: pattern }),
  z.object({ ends_with: pattern }),
  z.object({ regex: pattern }),
]);

// Adding zero turns the zero that is negative into the other one.
const dollars = z
  .number()
  .min(0)
  .max(MAX_DOLLARS)
  .transform((amount) => amount + 0);

const price = z.union([
  dollars,
  z.object({
    base: dollars,
    tiers: z
      .array(z.object({ start: z.int().min(0).max(MAX_TOKENS), price: dollars }))
      .max(MAX_TIERS),
  }),
]);

/** A record leaves `__proto__` out, and a kind of price that is left out would cost nothing. */
const prices = z
  .custom<object>(isPlain, 'must be an object with names of prices')
  .pipe(z.record(z.string().regex(/^[a-z][a-z0-9_]{0,63}$/), price))
  .refine((kinds) => Object.keys(kinds).length <= MAX_KINDS, `must be at most ${MAX_KINDS} prices`);

function isPlain(value: unknown): value is object {
  return typeof value === 'object' && value !== null && !Object.hasOwn(value, '__proto__');
}

const time = z.string().regex(/^([01]\d|2[0-3]):[0-5]\d:[0-5]\d(Z|[+-](0\d|1[0-4]):[0-5]\d)$/);

/** The original says by its members which constraint it is; the package names it, too. */
const constraint = z.union([
  z
    .strictObject({ start_date: z.iso.date(), type: z.literal('start_date').optional() })
    .transform(({ start_date }) => ({ type: 'start_date' as const, start_date })),
  z
    .strictObject({ start_time: time, end_time: time, type: z.literal('time_of_date').optional() })
    .transform(({ start_time, end_time }) => ({
      ...{ type: 'time_of_date' as const, start_time, end_time },
    })),
]);

const offer = z
  .object({ constraint: constraint.optional(), prices })
  .transform(({ constraint: limit, prices: list }) => ({
    ...(limit ? { constraint: limit } : {}),
    prices: list,
  }));

const priceList = z.union([z.array(offer).min(1).max(MAX_OFFERS), prices]);
const contextWindow = z.int().min(1).max(MAX_TOKENS);

const published = z
  .array(
    z.object({
      id,
      models: z
        .array(z.object({ id, match, context_window: contextWindow.optional(), prices: priceList }))
        .max(MAX_MODELS),
    }),
  )
  .max(MAX_PROVIDERS);

const kept = z.array(
  z.object({
    provider: id,
    ids: z.array(id),
    model: id,
    contextWindow: contextWindow.optional(),
    prices: priceList,
  }),
);

/** The providers that calls go to; the demo's prices are its own. */
const KNOWN = new Set(
  PROVIDERS.flatMap(({ catalogue }) => (catalogue && catalogue !== 'demo' ? [catalogue] : [])),
);

/**
 * Reads a published list, as `prices/new_data/v2/data.json` of pydantic/genai-prices has it: an
 * array of providers with their models. What of it is not about prices, and providers that no
 * calls go to, are passed over.
 *
 * @param bytes UTF-8, at most {@link MAX_PUBLISHED_BYTES}.
 * @returns In an order that doesn't depend on the document's.
 * @throws {InvalidPrices} for anything that could be read in two ways, or is not in the format.
 */
export function readPublished(bytes: Uint8Array): Listing[] {
  if (bytes.length > MAX_PUBLISHED_BYTES) {
    throw new InvalidPrices(`The price list is larger than ${MAX_PUBLISHED_BYTES} bytes.`);
  }
  const providers = check(published, parseArray(bytes));
  const listings = providers
    .filter((provider) => KNOWN.has(provider.id))
    .flatMap((provider) => listModels(provider.id, provider.models))
    .filter(({ ids }) => ids.length > 0);
  if (listings.flatMap(({ ids }) => ids).length > MAX_ALL_IDS) {
    throw new InvalidPrices(`The price list has more than ${MAX_ALL_IDS} ids of models.`);
  }
  if (listings.length === 0) throw new InvalidPrices('The price list has no model that is known.');
  return listings.sort((one, other) => compare(keyOf(one), keyOf(other)));
}

/**
 * Reads listings as {@link JSON.stringify} writes them.
 *
 * @throws {InvalidPrices}
 */
export function readListings(text: string): Listing[] {
  return check(kept, parseArray(new TextEncoder().encode(text)));
}

/** The strict reader takes objects only. */
function parseArray(bytes: Uint8Array): unknown {
  const ascii = (text: string) => new TextEncoder().encode(text);
  try {
    const wrapped = concat([ascii('{"list":'), bytes, ascii('}')]);
    const { value, members } = parseStrict(wrapped, new Set(), JSON_LIMITS);
    return members.size === 1 ? value.list : undefined;
  } catch (error) {
    if (!(error instanceof InvalidJson)) throw error;
    throw new InvalidPrices(`The price list is not acceptable JSON near byte ${error.at}.`);
  }
}

function check<T>(schema: z.ZodType<T>, value: unknown): T {
  const { data, error } = schema.safeParse(value);
  if (!error) return data;
  const [issue] = error.issues;
  const path = issue?.path.map(String).join('.').slice(0, 200) ?? '';
  throw new InvalidPrices(`The price list is not in the format at "${path}": ${issue?.message}.`);
}

const keyOf = ({ provider, model, ids }: Listing) => `${provider}\n${model}\n${ids[0]}`;

function compare(one: string, other: string): number {
  if (one === other) return 0;
  return one < other ? -1 : 1;
}
