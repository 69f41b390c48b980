/** Metering a stream of server-sent events on the side, while its bytes pass. */

import { Digest } from '../../db/seal.ts';
import { concat } from '../../schema/bytes.ts';
import { type SseEvent, SseParser } from '../../schema/sse.ts';
import type { Meter } from '../providers/contract.ts';

/** The longest event of a stream, in bytes. */
const MAX_EVENT_BYTES = 32 * 1024 * 1024;

/** Reads a stream's events; the bytes pass as they are, but for events that only we asked for. */
export class StreamMeter {
  readonly #meter: Meter;
  readonly #parser = new SseParser(MAX_EVENT_BYTES);
  readonly #digest = new Digest();
  /** Whether an event may have to be left out, so that only whole events can be let go. */
  readonly #swallows: boolean;
  #kept: Uint8Array = EMPTY;
  /** Where the kept bytes begin in the stream. */
  #keptAt = 0;
  bytes = 0;

  constructor(meter: Meter, swallows: boolean) {
    this.#meter = meter;
    this.#swallows = swallows;
  }

  /**
   * Takes a chunk and returns the bytes that go on.
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
    return concat([passed, this.#kept]);
  }

  /** Whether the bytes so far end within an event. */
  get isMidEvent(): boolean {
    return this.#parser.pendingBytes > 0;
  }

  #pass(chunk: Uint8Array, events: readonly SseEvent[]): Uint8Array {
    if (!this.#swallows) {
      for (const event of events) this.#meter.event(event);
      return chunk;
    }
    const bytes = this.#kept.length > 0 ? concat([this.#kept, chunk]) : chunk;
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
    this.#kept = bytes.subarray(from);
    return concat(passed);
  }

  /** SHA-256 of what came from upstream. Ends the meter. */
  digest(): string {
    return this.#digest.end();
  }
}

const EMPTY = new Uint8Array(0);
