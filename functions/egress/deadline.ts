/** The time that an exchange is given, and its end before that. */

import { EgressError, type EgressErrorCode, type EgressInit } from './exchange.ts';

const MAX_TIMER_MS = 2 ** 31 - 1;
const GAVE_UP = 'The caller gave up.';

const gaveUp = (): EgressError => new EgressError('aborted', GAVE_UP);

/** The one timer of an exchange, moved forward from phase to phase, and the way to end it early. */
export class Deadline {
  reason: EgressError | undefined;
  readonly #stops: ((reason: EgressError) => void)[] = [];
  readonly #caller: AbortSignal | undefined;
  readonly #isHeard: boolean;
  #code: EgressErrorCode = 'timeout_connect';
  #dueMs = Number.POSITIVE_INFINITY;
  #timerDueMs = Number.POSITIVE_INFINITY;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** @param isHeard Whether the transport hears the caller by itself, and fails when he gives up. */
  constructor(caller: AbortSignal | undefined, isHeard = false) {
    if (caller?.aborted) throw gaveUp();
    this.#caller = caller;
    this.#isHeard = isHeard;
    if (!isHeard) caller?.addEventListener('abort', this.abandon);
  }

  /** Gives the exchange this long until the next call; a running timer is kept if it fits. */
  expect(code: EgressErrorCode, timeoutMs: number): void {
    this.#code = code;
    this.#dueMs = performance.now() + Math.min(timeoutMs, MAX_TIMER_MS);
    if (this.#dueMs < this.#timerDueMs) this.#schedule();
  }

  /** Lets time pass uncounted until the next {@link expect}. */
  rest(): void {
    this.#dueMs = Number.POSITIVE_INFINITY;
  }

  onEnd(stop: (reason: EgressError) => void): void {
    this.#stops.push(stop);
  }

  /** Ends the exchange early; the first reason is the one that counts. */
  end(code: EgressErrorCode, message: string): void {
    if (this.reason !== undefined) return;
    this.reason = new EgressError(code, message);
    this.close();
    for (const stop of this.#stops) stop(this.reason);
  }

  readonly abandon = (): void => this.end('aborted', GAVE_UP);

  /** The exchange is over: nothing is left to time or to listen to. */
  close(): void {
    clearTimeout(this.#timer);
    this.#dueMs = Number.POSITIVE_INFINITY;
    this.#timerDueMs = Number.NEGATIVE_INFINITY;
    if (!this.#isHeard) this.#caller?.removeEventListener('abort', this.abandon);
  }

  /** Closes, and says why: a runtime's own error only counts when there was no reason of ours. */
  fail(error: unknown, code: EgressErrorCode): EgressError {
    this.close();
    if (this.reason !== undefined) return this.reason;
    if (error instanceof EgressError) return error;
    if (this.#caller?.aborted) return gaveUp();
    const message = error instanceof Error ? error.message : String(error);
    return new EgressError(code, message, { cause: error });
  }

  #schedule(): void {
    clearTimeout(this.#timer);
    this.#timerDueMs = this.#dueMs;
    this.#timer = setTimeout(() => this.#fire(), Math.max(0, this.#dueMs - performance.now()));
  }

  #fire(): void {
    this.#timerDueMs = Number.POSITIVE_INFINITY;
    if (this.#dueMs - performance.now() < 1) {
      this.end(this.#code, `Gave up waiting: ${this.#code.replace('timeout_', '')} time-out.`);
    } else if (Number.isFinite(this.#dueMs)) this.#schedule();
  }
}

/** By what the caller ends the exchange. */
export function callerOf({ controller, signal }: EgressInit): AbortSignal | undefined {
  return controller?.signal ?? signal;
}
