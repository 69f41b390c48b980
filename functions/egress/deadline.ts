/** The time that an exchange is given, and its end before that. */

import { clearInterval, setInterval } from 'node:timers';
import { EgressError, type EgressErrorCode, type EgressInit } from './exchange.ts';

/** From how far off a time-out has no timer of its own, and how often those are looked at. */
const FAR_MS = 1_000;
const LOOK_MS = 500;
const GAVE_UP = 'The caller gave up.';

const gaveUp = (): EgressError => new EgressError('aborted', GAVE_UP);

/**
 * Deadlines that are far off, looked at together: a timer set and cleared for each exchange would
 * cost more than all else that times it.
 */
const far = new Set<Deadline>();
let looking: ReturnType<typeof setInterval> | undefined;

function look(): void {
  const now = performance.now();
  for (const deadline of far) deadline.approach(now);
  if (far.size > 0) return;
  clearInterval(looking);
  looking = undefined;
}

/** The time of an exchange, counted anew from phase to phase, and the way to end it early. */
export class Deadline {
  reason: EgressError | undefined;
  readonly #stops: ((reason: EgressError) => void)[] = [];
  readonly #caller: AbortSignal | undefined;
  readonly #isHeard: boolean;
  #code: EgressErrorCode = 'timeout_connect';
  #dueMs = 0;
  #isOver = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** @param isHeard Whether the transport hears the caller by itself, and fails when he gives up. */
  constructor(caller: AbortSignal | undefined, isHeard = false) {
    if (caller?.aborted) throw gaveUp();
    this.#caller = caller;
    this.#isHeard = isHeard;
    if (!isHeard) caller?.addEventListener('abort', this.abandon);
  }

  /** Gives the exchange this long until the next call. */
  expect(code: EgressErrorCode, timeoutMs: number): void {
    if (this.#isOver) return;
    const now = performance.now();
    this.#code = code;
    this.#dueMs = now + timeoutMs;
    this.approach(now);
  }

  /** Lets time pass uncounted until the next {@link expect}. */
  rest(): void {
    far.delete(this);
    clearTimeout(this.#timer);
  }

  /** Sets the timer where the time-out has come near; else it is left to be looked at. */
  approach(now: number): void {
    const waitMs = this.#dueMs - now;
    clearTimeout(this.#timer);
    if (waitMs > FAR_MS) {
      far.add(this);
      looking ??= setInterval(look, LOOK_MS).unref();
      return;
    }
    far.delete(this);
    this.#timer = setTimeout(() => {
      this.end(this.#code, `Gave up waiting: ${this.#code.replace('timeout_', '')} time-out.`);
    }, waitMs);
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
    this.#isOver = true;
    this.rest();
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
}

/** By what the caller ends the exchange. */
export function callerOf({ controller, signal }: EgressInit): AbortSignal | undefined {
  return controller?.signal ?? signal;
}
