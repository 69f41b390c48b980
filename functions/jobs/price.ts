/** Prices: fetches the configured list when it is due, and takes over what may be. */

import {
  noteAttempt,
  readOldest,
  replaceCatalogue,
  type SourceState,
} from '../../db/catalogues.ts';
import { PINNED } from '../../schema/rules/catalogue.ts';
import { InvalidPrices, MAX_PUBLISHED_BYTES, readPublished } from '../../schema/rules/published.ts';
import { takeOver } from '../../schema/rules/refresh.ts';
import { EgressError } from '../egress.ts';
import type { Services } from '../services.ts';

/** How long a list may take in all: the tick waits for it. */
export const FETCH_MS = 10_000;
const TIMEOUTS = { connectMs: 5_000, firstByteMs: FETCH_MS, idleMs: 5_000 };
const EVERY_MS = 24 * 3_600_000;
const RETRY_MS = 15 * 60_000;
const MAX_ETAG_CHARS = 200;
const MAX_LOGGED = 20;

/** How many ids got a price, another price, and which were left as they were. */
export interface Refreshed {
  readonly added: number;
  readonly changed: number;
  /** Ids that the list has no more. */
  readonly kept: number;
  /** Ids whose price falls too far to be taken over. */
  readonly heldBack: number;
}

/** A person's wish beside what is due. */
export interface RefreshWish {
  /** Whether the list is fetched although it is not due. */
  readonly isUrgent?: boolean;
  /** Whether lower prices are taken over, too. */
  readonly isAccepted?: boolean;
}

/** A source that did not answer with a list; the message names no part of the URL's query. */
export class PriceSourceError extends Error {
  override readonly name = 'PriceSourceError';
}

/**
 * Fetches the list of `RUNGATE_PRICES_URL` once a day, or {@link RETRY_MS} after a failure, and
 * puts in force what {@link takeOver} makes of it.
 *
 * @returns undefined where nothing was due, is configured or has changed.
 * @throws {PriceSourceError} when the source gives no list; what is in force stays so.
 */
export async function refreshPrices(
  services: Services,
  { isUrgent = false, isAccepted = false }: RefreshWish = {},
): Promise<Refreshed | undefined> {
  const { db, catalogues, stopping, now } = services;
  const { source } = catalogues;
  if (source === undefined) return undefined;
  const state = await catalogues.look(now());
  if (state && state.nextAt > now() && !isUrgent) return undefined;
  try {
    // A list that has not changed is read all the same where a person accepts what it says.
    const list = await fetchList(services, isAccepted ? null : (state?.etag ?? null));
    if (list) return await putInForce(services, source, state, list, isAccepted);
    await noteAttempt(db, source, null, now() + EVERY_MS);
    return undefined;
  } catch (error) {
    const failure = failureOf(error);
    if (!failure) throw error;
    // A process that ends has not learnt anything of the source.
    if (!stopping.signal.aborted) {
      await noteAttempt(db, source, failure.message, now() + RETRY_MS);
    }
    throw failure;
  }
}

/** A runtime's own words on a request may hold the whole URL, so that only the code is told. */
function failureOf(error: unknown): PriceSourceError | undefined {
  if (error instanceof PriceSourceError) return error;
  if (error instanceof InvalidPrices) return new PriceSourceError(error.message);
  if (!(error instanceof EgressError)) return undefined;
  const reason = error.code.replaceAll('_', ' ');
  return new PriceSourceError(`The source of prices gave no list: ${reason}.`);
}

/** A list that was fetched. */
interface Fetched {
  readonly bytes: Uint8Array;
  readonly etag: string | null;
}

/**
 * Fetches the list, unless the source still has what it had (RFC 9110, 13.1.2). Redirects are not
 * followed: whom the operator trusts is whom he named.
 *
 * @returns undefined when it has not changed.
 */
async function fetchList(
  { config, egress, stopping }: Services,
  etag: string | null,
): Promise<Fetched | undefined> {
  const answer = await egress(new URL(config.pricesUrl ?? ''), {
    method: 'GET',
    headers: {
      accept: 'application/json',
      'user-agent': 'Rungate',
      ...(etag === null ? {} : { 'if-none-match': etag }),
    },
    signal: AbortSignal.any([stopping.signal, AbortSignal.timeout(FETCH_MS)]),
    timeouts: TIMEOUTS,
  });
  if (answer.status === 200) {
    const sent = answer.headers.get('etag');
    const isUsable = sent !== null && sent.length <= MAX_ETAG_CHARS;
    return { bytes: await answer.bytes(MAX_PUBLISHED_BYTES), etag: isUsable ? sent : null };
  }
  await answer.body?.cancel();
  if (answer.status === 304 && etag !== null) return undefined;
  throw new PriceSourceError(`The source of prices answered ${answer.status}.`);
}

async function putInForce(
  services: Services,
  source: string,
  state: SourceState | undefined,
  { bytes, etag }: Fetched,
  isAccepted: boolean,
): Promise<Refreshed | undefined> {
  const { db, catalogues, log } = services;
  const now = services.now();
  const replaces = state?.version ?? null;
  const before = (replaces === null ? undefined : await catalogues.find(replaces)) ?? PINNED;
  const oldest = await readOldest(db, source);
  const earlier = oldest === undefined ? undefined : await catalogues.find(oldest);
  const published = readPublished(bytes);
  const { listings, heldBack, ...counts } = takeOver(before, published, now, isAccepted, earlier);
  const replacement = { source, replaces, listings, heldBack, etag, now, nextAt: now + EVERY_MS };
  // Whoever was quicker has put in force what the same list comes to.
  if ((await replaceCatalogue(db, replacement)) === undefined) return undefined;
  await catalogues.look(now);
  if (heldBack.length > 0) {
    log.warn('prices that fall by more than a half were not taken over', {
      count: heldBack.length,
      models: heldBack.slice(0, MAX_LOGGED),
    });
  }
  return { ...counts, heldBack: heldBack.length };
}
