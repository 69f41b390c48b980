/** Taking over a newer price list: dearer prices at once, much lower ones only when a person says so. */

import {
  type Catalogue,
  findOffers,
  isFree,
  type Listing,
  type Offer,
  PINNED,
  type Rates,
  ratesAt,
  readOffers,
  type TokenPrice,
} from './catalogue.ts';
import { priceAt } from './price.ts';

/** What taking a list over comes to. */
export interface Takeover {
  /** What the next catalogue lists. */
  readonly listings: readonly Listing[];
  /** How many ids have a price that had none, or another one than before. */
  readonly added: number;
  readonly changed: number;
  /** How many ids the list has no more; they keep their price. */
  readonly kept: number;
  /** Ids as `provider/id`, in their order, whose lower price was not taken over. */
  readonly heldBack: readonly string[];
}

/** A price that falls to less than a half of what it was is held back. */
const LEAST_SHARE = 2;
const DAY_MS = 86_400_000;

/**
 * Decides id by id what is taken over from a published list.
 *
 * What is charged decides what a ceiling lets through, so that a list which is wrong or was
 * tampered with must not make calls cheap: an id keeps its price where the list would charge less
 * than half of it, of the pinned price or of an earlier one at any time to come, kind of token or
 * size of input, where
 * it halves the context window, by which calls are bounded, and where the list has the id no more.
 * An id without a price gets none that is zero.
 *
 * @param inForce What calls are charged by until then.
 * @param published As it was read.
 * @param nowMillis Unix time.
 * @param isAccepted Whether a person has said that lower prices are right.
 * @param earlier What was in force some weeks ago: many small steps must not lead far either.
 */
export function takeOver(
  inForce: Catalogue,
  published: readonly Listing[],
  nowMillis: number,
  isAccepted: boolean,
  earlier: Catalogue = inForce,
): Takeover {
  const kept = new Kept(inForce.listings);
  const counts = { added: 0, changed: 0 };
  const heldBack: string[] = [];
  const listings = published.flatMap((listing) => {
    const offers = readOffers(listing, '');
    const sign = signOf(offers);
    const ids = listing.ids.filter((id) => {
      const before = findOffers(listing.provider, id, inForce);
      const isSame = before !== undefined && signOf(before) === sign;
      const marks = [inForce, PINNED, earlier]
        .map((each) => findOffers(listing.provider, id, each))
        .filter((each) => each !== undefined);
      if (!isSame && !isAccepted && isHeldBack(offers, marks, nowMillis)) {
        heldBack.push(`${listing.provider}/${id}`);
        return false;
      }
      kept.drop(listing.provider, id);
      if (!isSame) counts[before ? 'changed' : 'added']++;
      return true;
    });
    return ids.length > 0 ? [{ ...listing, ids }] : [];
  });
  const rest = kept.listings();
  const held = new Set(heldBack);
  const missing = rest.flatMap(({ provider, ids }) =>
    ids.filter((id) => !held.has(`${provider}/${id}`)),
  );
  return { ...counts, kept: missing.length, heldBack, listings: [...listings, ...rest] };
}

/** What of a catalogue's own listings has not been replaced. */
class Kept {
  readonly #listings: readonly Listing[];
  readonly #dropped = new Set<string>();

  constructor(listings: readonly Listing[]) {
    this.#listings = listings;
  }

  drop(provider: string, id: string): void {
    this.#dropped.add(`${provider}/${id}`);
  }

  listings(): Listing[] {
    return this.#listings.flatMap((listing) => {
      const ids = listing.ids.filter((id) => !this.#dropped.has(`${listing.provider}/${id}`));
      return ids.length > 0 ? [{ ...listing, ids }] : [];
    });
  }
}

/** Equal for offers that charge the same, whatever they are called. */
function signOf(offers: readonly Offer[]): string {
  return JSON.stringify(offers, (key, value: unknown) =>
    key === 'catalogue' || key === 'model' ? undefined : value,
  );
}

function isHeldBack(
  offers: readonly Offer[],
  marks: readonly (readonly Offer[])[],
  nowMillis: number,
): boolean {
  return timesOf([offers, ...marks], nowMillis).some((atMillis) => {
    const rates = ratesAt(offers, atMillis);
    if (!rates) return false;
    const known = marks.flatMap((each) => ratesAt(each, atMillis) ?? []);
    return known.length > 0 ? known.some((mark) => isLower(rates, mark)) : isGratis(rates);
  });
}

/** A time of each stretch from now on in which all offers charge by the same entry. */
function timesOf(all: readonly (readonly Offer[])[], nowMillis: number): number[] {
  const entries = all.flat();
  const starts = entries.flatMap(({ fromMillis = 0 }) =>
    fromMillis > nowMillis ? fromMillis : [],
  );
  const seconds = entries.flatMap(({ daily }) =>
    daily ? [daily.fromSeconds, daily.toSeconds] : [],
  );
  return [nowMillis, ...starts].flatMap((start) => [
    start,
    ...seconds.map((second) => start + ((second * 1_000 - (start % DAY_MS) + DAY_MS) % DAY_MS)),
  ]);
}

function isGratis({ input, output, model }: Rates): boolean {
  return input.base === 0 && output.base === 0 && !isFree(model);
}

const KINDS = [
  'input',
  'cacheRead',
  'cacheReadMedia',
  'cacheWrite',
  'cacheWrite1h',
  'inputAudio',
  'inputImage',
  'output',
  'reasoning',
  'outputAudio',
  'outputImage',
] as const satisfies readonly (keyof Rates)[];

const NUMBERS = [
  'contextWindow',
  'webSearchNanosPerThousand',
  'fileSearchNanosPerThousand',
] as const satisfies readonly (keyof Rates)[];

/** A number that is not there makes no call cheap: what would need it is refused. */
function isLower(rates: Rates, mark: Rates): boolean {
  return (
    KINDS.some((kind) => isLowerPrice(rates[kind], mark[kind])) ||
    NUMBERS.some((name) => isLess(rates[name] ?? Number.POSITIVE_INFINITY, mark[name] ?? 0))
  );
}

function isLowerPrice(price: TokenPrice, mark: TokenPrice): boolean {
  const sizes = [0, ...[...price.tiers, ...mark.tiers].map(({ aboveTokens }) => aboveTokens + 1)];
  return sizes.some((size) => isLess(priceAt(price, size), priceAt(mark, size)));
}

function isLess(amount: number, mark: number): boolean {
  return amount * LEAST_SHARE < mark;
}
