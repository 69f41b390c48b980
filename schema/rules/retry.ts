/** Whether a failed attempt is tried again, and where: data in, decision out. */

/** How an attempt failed, as far as it matters for another one. */
export interface Failure {
  /** Whether anything of the call may have reached the upstream. */
  readonly isSent: boolean;
  /** The status of the upstream's answer; undefined where it gave none. */
  readonly status?: number;
  /** How long the upstream asks to wait, milliseconds. */
  readonly retryAfterMs?: number;
}

/** What has been tried so far. */
export interface Tried {
  /** All attempts of the call, the failed one included. */
  readonly attempts: number;
  /** Those at the upstream that failed last. */
  readonly here: number;
  /** Whether another upstream is left. */
  readonly hasNext: boolean;
}

/** What to do about a failure. */
export type RetryDecision =
  | { readonly verdict: 'next' }
  | { readonly verdict: 'retry'; readonly afterMs: number }
  | { readonly verdict: 'give_up'; readonly isSafe: boolean };

/** More than any list of upstreams tried twice each would be worth the caller's time. */
export const MAX_ATTEMPTS = 10;
/** Attempts at one upstream. */
const MAX_HERE = 2;
/** A pause this short costs the caller less than another model would. */
const SHORT_WAIT_MS = 1_000;
/** A longer wait is better left to the caller, who is told of it. */
const LONGEST_WAIT_MS = 5_000;
const USUAL_WAIT_MS = 500;

/** The upstream has no use for the org's account: another try there would fail alike. */
const ACCOUNT_STATUSES = new Set([401, 402]);
/** It took no work on, or dropped it before there was anything to charge. */
const PASSING_STATUSES = new Set([408, 429, 500, 502, 503, 529]);

/**
 * Decides what follows a failed attempt of which nothing has reached the caller.
 *
 * Only a failure that can have cost nothing is tried again: one before anything was sent, or an
 * error that the upstream answered itself. An upstream that fell silent or broke off, and a gateway
 * that gave up on it (504), may have done the work and charge for it: those are never repeated.
 */
export function decideRetry(failure: Failure, tried: Tried): RetryDecision {
  if (!isSafe(failure)) return { verdict: 'give_up', isSafe: false };
  if (tried.attempts >= MAX_ATTEMPTS) return { verdict: 'give_up', isSafe: true };
  const afterMs = failure.retryAfterMs ?? USUAL_WAIT_MS;
  const longestMs = tried.hasNext ? SHORT_WAIT_MS : LONGEST_WAIT_MS;
  const isAsked = failure.retryAfterMs !== undefined || !tried.hasNext;
  const isAccount = ACCOUNT_STATUSES.has(failure.status ?? 0);
  if (isAsked && !isAccount && tried.here < MAX_HERE && afterMs <= longestMs) {
    return { verdict: 'retry', afterMs };
  }
  return tried.hasNext ? { verdict: 'next' } : { verdict: 'give_up', isSafe: true };
}

function isSafe({ isSent, status }: Failure): boolean {
  if (!isSent) return true;
  return status !== undefined && (PASSING_STATUSES.has(status) || ACCOUNT_STATUSES.has(status));
}

/** A date as senders must write it: IMF-fixdate of RFC 9110, 5.6.7. Others, runtimes read apart. */
const DATE = /^[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT$/;

/**
 * Reads how long a server asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date
 * (RFC 9110, 10.2.3). Providers also send fractions of them.
 *
 * @param now Unix milliseconds.
 * @returns Milliseconds, 0 for a date that is over; undefined where neither says anything.
 */
export function readRetryAfter(headers: Headers, now: number): number | undefined {
  const exact = headers.get('retry-after-ms')?.trim() ?? '';
  if (isNumber(exact)) return Math.ceil(Number(exact));
  const given = headers.get('retry-after')?.trim() ?? '';
  if (isNumber(given)) return Math.ceil(Number(given) * 1_000);
  const at = DATE.test(given) ? Date.parse(given) : Number.NaN;
  return Number.isNaN(at) ? undefined : Math.max(0, at - now);
}

function isNumber(text: string): boolean {
  return /^\d{1,9}(?:\.\d{1,9})?$/.test(text);
}
