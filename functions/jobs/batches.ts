/** Batches: long work in short transactions, with pauses that leave the process to its calls. */

/** The most rows of a transaction: it takes a few milliseconds, in which no call can go on. */
export const BATCH_ROWS = 40;
/** Calls get this many times as long as a batch took. */
const SHARE = 9;
const LEAST_PAUSE_MS = 2;
/** However long a batch took: the lease of a job goes on while it pauses. */
const MOST_PAUSE_MS = 250;

/** How long a piece of work may take in a tick; the next tick goes on with it. */
export class Budget {
  readonly #untilMs: number;

  /** @param limitMs From now on. */
  constructor(limitMs: number) {
    this.#untilMs = performance.now() + limitMs;
  }

  get isSpent(): boolean {
    return performance.now() >= this.#untilMs;
  }

  /**
   * Does work until there is none left or the time is over, pausing after each batch.
   *
   * @param work Does a batch and tells how much that was.
   * @returns how much was done.
   */
  async drain(work: () => Promise<number>): Promise<number> {
    let total = 0;
    while (!this.isSpent) {
      const done = await this.take(work);
      if (done === 0) break;
      total += done;
    }
    return total;
  }

  /** Does one batch, and pauses after it if it did anything. */
  async take(work: () => Promise<number>): Promise<number> {
    const startedMs = performance.now();
    const done = await work();
    const pauseMs = Math.max(LEAST_PAUSE_MS, SHARE * (performance.now() - startedMs));
    if (done > 0) await pause(Math.min(MOST_PAUSE_MS, pauseMs));
    return done;
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
