/** Waiting for a person: looking again and again, for as long as the caller waits along. */

/** How often what is waited for is looked at: a read of a few rows each. */
const POLL_MS = 300;

/**
 * Looks until something is settled, time is up or nobody waits any longer.
 *
 * @param look What is looked at, once at least.
 * @param isSettled Whether it has come to an end.
 * @param untilMs Unix milliseconds.
 * @param signal Aborts when nobody waits any longer.
 * @returns what was seen last.
 */
export async function pollUntil<T>(
  look: () => Promise<T>,
  isSettled: (seen: T) => boolean,
  untilMs: number,
  signal: AbortSignal,
): Promise<T> {
  for (;;) {
    const seen = await look();
    const leftMs = untilMs - Date.now();
    if (isSettled(seen) || leftMs <= 0 || signal.aborted) return seen;
    await pause(Math.min(POLL_MS, leftMs), signal);
  }
}

/** Waits, but no longer than until the signal aborts. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener('abort', done, { once: true });
    if (signal.aborted) done();
  });
}
