/** Metering a stream of server-sent events on the side, while its bytes pass. */

import { Digest } from '../../db/seal.ts';
import { concat } from '../../schema/bytes.ts';
import { type SseEvent, SseParser } from '../../schema/sse.ts';
import type { Meter } from '../providers/contract.ts';

/** The longest event of a stream, in bytes. */
const MAX_EVENT_BYTES = 32 * 1024 * 1024;

/**
 * Reads a stream's events; the bytes pass as they are, but for events that only we asked for. Only
 * whole events go on: after half of one, no client could read the error that ends the stream. From
 * the event on that ends the stream, nothing does: callers act on it before its transport ends.
 */
export class StreamMeter {
  readonly #meter: Meter;
  readonly #parser = new SseParser(MAX_EVENT_BYTES);
  readonly #digest = new Digest();
  #kept: Uint8Array[] = [];
  /** Where the kept bytes begin in the stream. */
  #keptAt = 0;
  /** Where the event begins that ends the stream, once it is there. */
  #lastAt: number | undefined;
  bytes = 0;

  constructor(meter: Meter) {
    this.#meter = meter;
  }

  /** Whether the event is there that ends the stream. */
  get isOver(): boolean {
    return this.#lastAt !== undefined;
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
    const swallowed = events.filter((event) => !this.#read(event));
    const until = this.#lastAt ?? this.bytes - this.#parser.pendingBytes;
    // Mostly chunks end where events do.
    const isPlain = until === this.bytes && this.#kept.length === 0 && swallowed.length === 0;
    if (!isPlain) return this.#take(chunk, until, swallowed);
    this.#keptAt = until;
    return chunk;
  }

  /** Whether an event is to go on. */
  #read(event: SseEvent): boolean {
    const read = this.#meter.event(event);
    if (read === 'last') this.#lastAt ??= event.start;
    return this.isOver || read !== 'swallow';
  }

  /** Lets go what stands before an offset of the stream but for some events, and keeps the rest. */
  #take(chunk: Uint8Array, until: number, swallowed: readonly SseEvent[]): Uint8Array {
    this.#kept.push(chunk);
    // An event may come in very many chunks, which are joined once.
    if (until === this.#keptAt) return EMPTY;
    const at = this.#keptAt;
    const bytes = concat(this.#kept);
    const length = until - at;
    // A slice, since whoever reads the stream may use its buffers again.
    this.#kept = length < bytes.length ? [bytes.slice(length)] : [];
    this.#keptAt = until;
    if (swallowed.length === 0) return bytes.subarray(0, length);
    // What stands before an event, such as a comment, is no part of it and passes.
    const starts = [0, ...swallowed.map(({ end }) => end - at)];
    const ends = [...swallowed.map(({ start }) => start - at), length];
    return concat(starts.map((start, nth) => bytes.subarray(start, ends[nth])));
  }

  /** SHA-256 of what came from upstream. Ends the meter. */
  digest(): string {
    return this.#digest.end();
  }
}

const EMPTY = new Uint8Array(0);
