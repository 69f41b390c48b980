/** When a delivery that failed is tried again, and when it is given up. */

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;

/** How long after each failed attempt the next one follows; after the last, none does. */
export const RETRY_DELAYS_MS: readonly number[] = [
  5 * SECOND_MS,
  30 * SECOND_MS,
  2 * MINUTE_MS,
  10 * MINUTE_MS,
  30 * MINUTE_MS,
  HOUR_MS,
  3 * HOUR_MS,
  6 * HOUR_MS,
  12 * HOUR_MS,
  24 * HOUR_MS,
];

/** How far a delay may be off, either way, so that many that failed at once don't return at once. */
export const JITTER = 0.2;
/** The longest that an endpoint can have us wait by `Retry-After`. */
export const MAX_RETRY_AFTER_MS = 24 * HOUR_MS;

/** A failed attempt. */
export interface Failed {
  /** Counted from 1. */
  readonly attempt: number;
  /** What the endpoint asked for by `Retry-After`. */
  readonly retryAfterMs?: number | undefined;
  /** From 0 to less than 1. */
  readonly random: number;
}

/**
 * How long to wait for the next attempt: the schedule's delay with its jitter, or what the
 * endpoint asked for where that is longer, but never more than {@link MAX_RETRY_AFTER_MS} for that.
 *
 * @returns undefined when the schedule is at its end.
 */
export function retryDelay({ attempt, retryAfterMs = 0, random }: Failed): number | undefined {
  const delayMs = RETRY_DELAYS_MS[attempt - 1];
  if (delayMs === undefined) return undefined;
  const jittered = Math.round(delayMs * (1 - JITTER + 2 * JITTER * random));
  return Math.max(jittered, Math.min(retryAfterMs, MAX_RETRY_AFTER_MS));
}
