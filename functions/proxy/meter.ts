/** Metering a stream of server-sent events on the side, while its bytes pass. */

import { Digest } from '../../db/seal.ts';
import { concat } from '../../schema/bytes.ts';
import { type SseEvent, SseParser } from '../../schema/sse.ts';
import type { Meter } from '../providers/contract.ts';

/** The longest event of a stream, in bytes. */
const MAX_EVENT_BYTES = 32 * 1024 * 1024;

/**
 * Reads a stream's events; the bytes pass as they are, but for events that only we asked for. Only
 * whole events go on: after half of one, no client could read the error that ends the stream.
 */
export class StreamMeter {
  readonly #meter: Meter;
  readonly #parser = new SseParser(MAX_EVENT_BYTES);
  readonly #digest = new Digest();
  /** Whether an event may have to be left out. */
  readonly #swallows: boolean;
  #kept: Uint8Array[] = [];
  /** Where the kept bytes begin in the stream. */
  #keptAt = 0;
  bytes = 0;

  constructor(meter: Meter, swallows: boolean) {
    this.#meter = meter;
    this.#swallows = swallows;
  }

  /**
   * Takes a chunk, which must not change afterwards, and returns the bytes that go on.
   *
   * @throws {SseTooLarge}
   */
  push(chunk: Uint8Array): Uint8Array {
    this.#digest.update(chunk);
    this.bytes += chunk.length;
    return this.#pass(chunk, this.#parser.push(chunk));
  }

  /** Takes the end of the stream and returns what was kept back. */
  end(): Uint8Array {
    const passed = this.#pass(EMPTY, this.#parser.end());
    return concat([passed, ...this.#kept]);
  }

  #pass(chunk: Uint8Array, events: readonly SseEvent[]): Uint8Array {
    if (this.#swallows) return this.#select(chunk, events);
    for (const event of events) this.#meter.event(event);
    const until = this.bytes - this.#parser.pendingBytes;
    // Mostly chunks end where events do.
    if (until === this.bytes && this.#kept.length === 0) {
      this.#keptAt = until;
      return chunk;
    }
    return this.#take(chunk, until);
  }

  /** Lets go what stands before an offset of the stream, and keeps the rest. */
  #take(chunk: Uint8Array, until: number): Uint8Array {
    this.#kept.push(chunk);
    // An event may come in very many chunks, which are joined once.
    if (until === this.#keptAt) return EMPTY;
    const bytes = concat(this.#kept);
    const length = until - this.#keptAt;
    // A slice, since whoever reads the stream may use its buffers again.
    this.#kept = length < bytes.length ? [bytes.slice(length)] : [];
    this.#keptAt = until;
    return bytes.subarray(0, length);
  }

  #select(chunk: Uint8Array, events: readonly SseEvent[]): Uint8Array {
    this.#kept.push(chunk);
    if (events.length === 0) return EMPTY;
    const bytes = concat(this.#kept);
    const passed: Uint8Array[] = [];
    let from = 0;
    for (const event of events) {
      const until = event.end - this.#keptAt;
      // What stands before an event, such as a comment, is no part of it and passes either way.
      const isPassed = this.#meter.event(event) === 'pass';
      passed.push(bytes.subarray(from, isPassed ? until : event.start - this.#keptAt));
      from = until;
    }
    this.#keptAt += from;
    this.#kept = [bytes.subarray(from)];
    return concat(passed);
  }

  /** SHA-256 of what came from upstream. Ends the meter. */
  digest(): string {
    return this.#digest.end();
  }
}

const EMPTY = new Uint8Array(0);
