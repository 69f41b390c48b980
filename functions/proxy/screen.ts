/** The screen of a stream: text passes, and from the first call not plainly allowed on, nothing. */

import { concat } from '../../schema/bytes.ts';
import type { NameJudgement } from '../../schema/rules/tools.ts';
import { type SseEvent, SseParser, SseTooLarge } from '../../schema/sse.ts';
import type { CallReader, ProposedCall } from '../providers/contract.ts';

/** The most that is held back, and so the longest event, in bytes. */
const MAX_WITHHELD_BYTES = 32 * 1024 * 1024;

/**
 * Lets events pass, byte for byte and only whole ones, until one belongs to a call that has to be
 * decided on first. What else stands in the stream passes too, unless a client could take it for
 * an event that the standard does not see.
 */
export class Screen {
  readonly #reader: CallReader;
  readonly #judgeName: (name: string) => NameJudgement;
  readonly #maxBytes: number;
  readonly #parser: SseParser;
  /** Bytes that have not gone on, and where they begin in the stream. */
  #kept: Uint8Array[] = [];
  #keptAt = 0;
  #receivedBytes = 0;
  /** Whether everything is held back until the end. */
  #isHolding = false;
  #mayBeInvalid = false;
  #fault: string | undefined;
  /** The calls before the event from which on nothing passes, once there is one. */
  #callsBefore: readonly ProposedCall[] | undefined;

  /** @param maxBytes The most that is held back. */
  constructor(
    reader: CallReader,
    judge: (name: string) => NameJudgement,
    maxBytes: number = MAX_WITHHELD_BYTES,
  ) {
    this.#reader = reader;
    this.#judgeName = judge;
    this.#maxBytes = maxBytes;
    this.#parser = new SseParser(maxBytes);
  }

  /** As {@link CallReader.fault}: with one, what is held back must not go on. */
  get fault(): string | undefined {
    return this.#fault ?? this.#reader.fault;
  }

  /**
   * Takes a chunk, which must not change afterwards; returns what may go on now.
   *
   * @throws {SseTooLarge} when more would have to be held back than may be.
   */
  push(chunk: Uint8Array): Uint8Array {
    this.#kept.push(chunk);
    this.#receivedBytes += chunk.length;
    const events = this.#parser.push(chunk);
    if (this.#isHolding) this.#judge(events);
    const passed = this.#isHolding ? EMPTY : this.#pass(events);
    if (this.#receivedBytes - this.#keptAt > this.#maxBytes) {
      throw new SseTooLarge([], this.#keptAt, this.#maxBytes);
    }
    return passed;
  }

  /**
   * Takes the end.
   *
   * @returns what was held back, and the calls to decide on before it goes on.
   */
  end(): { withheld: Uint8Array; calls: readonly ProposedCall[] } {
    // Some clients take an event for one that lacks its blank line, or a line its end.
    this.#judge([...this.#parser.push(BLANK_LINES), ...this.#parser.end()]);
    const withheld = concat(this.#kept);
    this.#check(withheld);
    return { withheld, calls: this.#reader.end() };
  }

  /**
   * The calls that have gone on so far, if only in part; none of an answer that can't be read. One
   * whose name the event has that stopped the stream may not have, and is left out.
   */
  passedCalls(): readonly ProposedCall[] {
    if (this.fault !== undefined) return [];
    return this.#callsBefore ?? this.#reader.calls();
  }

  /** Lets go what is whole: events, and the comments between them. */
  #pass(events: readonly SseEvent[]): Uint8Array {
    const whole = this.#receivedBytes - this.#parser.pendingBytes - this.#keptAt;
    if (whole === 0) return EMPTY;
    const bytes = concat(this.#kept);
    const stop = this.#judge(events);
    this.#check(bytes.subarray(0, whole));
    if (this.#fault !== undefined) this.#isHolding = true;
    const stopAt = stop ? stop.start - this.#keptAt : whole;
    const until = this.#fault === undefined ? stopAt : 0;
    this.#kept = [bytes.subarray(until)];
    this.#keptAt += until;
    return bytes.subarray(0, until);
  }

  /** Reads events and returns the first, if any, from which on nothing passes. */
  #judge(events: readonly SseEvent[]): SseEvent | undefined {
    let stop: SseEvent | undefined;
    for (const event of events) {
      if (event.data.includes('\ufffd') || event.event.includes('\ufffd')) {
        this.#mayBeInvalid = true;
      }
      const names = this.#reader.event(event);
      if (this.#isHolding) continue;
      const isPlain = names.every((name) => name !== '' && this.#judgeName(name) === 'allow');
      if (isPlain && this.#reader.fault === undefined) continue;
      this.#isHolding = true;
      this.#callsBefore = this.#reader.calls().filter(({ name }) => {
        return !names.includes(name) && this.#judgeName(name) === 'allow';
      });
      stop = event;
    }
    return stop;
  }

  /** Looks for what clients read in different ways before it comes to JSON. */
  #check(bytes: Uint8Array): void {
    if (this.#mayBeInvalid && !isUtf8(bytes)) this.#fault ??= 'it is not UTF-8';
    this.#mayBeInvalid = this.#isHolding && this.#mayBeInvalid;
    if (!hasKnownLines(bytes, this.#keptAt === 0)) {
      this.#fault ??= 'a line of it is no field of an event';
    }
  }
}

const EMPTY = new Uint8Array(0);
const BLANK_LINES = new Uint8Array([0x0a, 0x0a]);
const LF = 0x0a;
const CR = 0x0d;
const COLON = 0x3a;
const BYTE_ORDER_MARK = [0xef, 0xbb, 0xbf];
const NAMES = [new TextEncoder().encode('data'), new TextEncoder().encode('event')];
const LONGEST_NAME = 32;

function isUtf8(bytes: Uint8Array): boolean {
  try {
    new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}

/**
 * Whether every line is empty, a comment or a field, of whatever name. Clients that trim lines,
 * drop a byte order mark from each, ignore case or end lines elsewhere would read the others as
 * events of their own.
 */
function hasKnownLines(bytes: Uint8Array, isStart: boolean): boolean {
  let at = isStart && startsWith(bytes, 0, BYTE_ORDER_MARK) ? BYTE_ORDER_MARK.length : 0;
  let feed = -1;
  let carriageReturn = -1;
  while (at < bytes.length) {
    if (feed < at) feed = find(bytes, LF, at);
    if (carriageReturn < at) carriageReturn = find(bytes, CR, at);
    const end = Math.min(feed, carriageReturn);
    if (end > at && bytes[at] !== COLON && !isField(bytes, at, end)) return false;
    at = end + 1;
  }
  return true;
}

function isField(bytes: Uint8Array, start: number, end: number): boolean {
  for (const name of NAMES) {
    const nameEnd = start + name.length;
    if (nameEnd <= end && startsWith(bytes, start, name)) {
      if (nameEnd === end || bytes[nameEnd] === COLON) return true;
    }
  }
  const line = bytes.subarray(start, Math.min(end, start + LONGEST_NAME + 1));
  const [name = ''] = String.fromCharCode(...line).split(':');
  return /^[\w-]{1,32}$/.test(name) && !/^(?:data|event)$/i.test(name);
}

function startsWith(bytes: Uint8Array, at: number, expected: ArrayLike<number>): boolean {
  for (let offset = 0; offset < expected.length; offset++) {
    if (bytes[at + offset] !== expected[offset]) return false;
  }
  return true;
}

/** The offset of a byte, or the array's length. */
function find(bytes: Uint8Array, byte: number, from: number): number {
  const at = bytes.indexOf(byte, from);
  return at === -1 ? bytes.length : at;
}
