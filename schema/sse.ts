/** An incremental parser of server-sent events (`text/event-stream`, WHATWG HTML 9.2.6). */

/** Whether headers tell of a stream of events; media types have no case (RFC 9110, 8.3.1). */
export function isEventStream(headers: Headers): boolean {
  return /^text\/event-stream\b/i.test(headers.get('content-type') ?? '');
}

/** One event that the standard dispatches, with where its bytes stand. */
export interface SseEvent {
  /** The `event` field; empty where there is none. */
  readonly event: string;
  /** The `data` fields, joined by line feeds. */
  readonly data: string;
  /** Byte offset into the whole stream of the event's first field line. */
  readonly start: number;
  /** Byte offset into the whole stream after the blank line. */
  readonly end: number;
}

/** An event that has more bytes than the parser may hold. */
export class SseTooLarge extends Error {
  override readonly name = 'SseTooLarge';
  /** Events completed before it by the same call. */
  readonly events: readonly SseEvent[];
  /** Byte offset of the large event's start in the whole stream. */
  readonly start: number;

  constructor(events: readonly SseEvent[], start: number, maxEventBytes: number) {
    super(`The event at byte ${start} of the stream has more than ${maxEventBytes} bytes.`);
    this.events = events;
    this.start = start;
  }
}

const LF = 0x0a;
const CR = 0x0d;
const SPACE = 0x20;
const COLON = 0x3a;
const FIELD_DATA = [0x64, 0x61, 0x74, 0x61];
const FIELD_EVENT = [0x65, 0x76, 0x65, 0x6e, 0x74];
const BYTE_ORDER_MARK = [0xef, 0xbb, 0xbf];
const SMALLEST_ROOM_BYTES = 1024;

// A mark inside the stream is text, so the parser itself passes the one at the start.
const decoder = new TextDecoder('utf-8', { ignoreBOM: true });

/**
 * Reads events as bytes arrive, however these are cut. Comments, `id` and `retry` are passed over;
 * bytes that are not UTF-8 read as U+FFFD. The memory held is at most one event and one chunk.
 */
export class SseParser {
  private readonly maxEventBytes: number;
  /** Room for the line not ended yet; its first `heldLength` bytes are taken. */
  private held: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  private heldLength = 0;
  /** How many of the held bytes have no line end. */
  private searched = 0;
  /** Stream offset of the first byte after the last line. */
  private lineStart = 0;
  private eventStart = 0;
  private hasFields = false;
  private event = '';
  private data: string | undefined;
  private failure: SseTooLarge | undefined;

  /** @param maxEventBytes The most bytes of one event, field names and line ends included. */
  constructor(maxEventBytes: number) {
    this.maxEventBytes = maxEventBytes;
  }

  /** Bytes of an event that is not complete yet. */
  get pendingBytes(): number {
    return this.lineStart + this.heldLength - this.eventStart;
  }

  /**
   * Takes the next bytes of the stream, which may be cut anywhere, and keeps none of the array.
   *
   * @returns The events that they complete, in order.
   * @throws {SseTooLarge} when an event is over the cap; so does every call after that.
   */
  push(chunk: Uint8Array): SseEvent[] {
    if (this.failure) throw this.failure;
    const events: SseEvent[] = [];
    if (this.heldLength === 0) {
      const read = this.readLines(chunk, events, false);
      if (read < chunk.length) this.hold(chunk.subarray(read));
    } else {
      this.hold(chunk);
      this.readHeld(events, false);
    }
    this.checkSize(this.pendingBytes, events);
    return events;
  }

  /**
   * Ends the stream. An event without its blank line is dropped, as the standard says;
   * {@link pendingBytes} then tells how much of it there was.
   *
   * @returns The event, if any, whose blank line is a last CR that might have been half a CRLF.
   * @throws {SseTooLarge} as {@link push} does.
   */
  end(): SseEvent[] {
    if (this.failure) throw this.failure;
    const events: SseEvent[] = [];
    this.readHeld(events, true);
    return events;
  }

  private hold(bytes: Uint8Array): void {
    const length = this.heldLength + bytes.length;
    if (length > this.held.length) {
      const room = new Uint8Array(Math.max(length, 2 * this.held.length, SMALLEST_ROOM_BYTES));
      room.set(this.held.subarray(0, this.heldLength));
      this.held = room;
    }
    this.held.set(bytes, this.heldLength);
    this.heldLength = length;
  }

  private readHeld(events: SseEvent[], isLast: boolean): void {
    const read = this.readLines(this.held.subarray(0, this.heldLength), events, isLast);
    this.held.copyWithin(0, read, this.heldLength);
    this.heldLength -= read;
  }

  /**
   * Reads the lines that are complete.
   *
   * @param isLast Whether no bytes follow these: a CR at the end then ends its line.
   * @returns How many bytes these lines have.
   */
  private readLines(bytes: Uint8Array, events: SseEvent[], isLast: boolean): number {
    let read = 0;
    let feed = find(bytes, LF, this.searched);
    let carriageReturn = find(bytes, CR, this.searched);
    for (;;) {
      const end = Math.min(feed, carriageReturn);
      const isOpen = end === carriageReturn && end + 1 === bytes.length && !isLast;
      if (end === bytes.length || isOpen) {
        this.searched = end - read;
        return read;
      }
      const next = end === carriageReturn && bytes[end + 1] === LF ? end + 2 : end + 1;
      this.readLine(bytes, read, end, next - read, events);
      read = next;
      if (feed < next) feed = find(bytes, LF, next);
      if (carriageReturn < next) carriageReturn = find(bytes, CR, next);
    }
  }

  private readLine(
    bytes: Uint8Array,
    start: number,
    end: number,
    lineBytes: number,
    events: SseEvent[],
  ): void {
    const isFirst = this.lineStart === 0;
    this.lineStart += lineBytes;
    this.checkSize(this.lineStart - this.eventStart, events);
    const from = isFirst && startsWith(bytes, start, BYTE_ORDER_MARK) ? start + 3 : start;
    if (from === end) this.dispatch(events);
    else if (bytes[from] !== COLON) this.readField(bytes, from, end);
    // A comment before any field is no part of an event, so that it can pass on its own.
    else if (!this.hasFields) this.eventStart = this.lineStart;
  }

  private readField(bytes: Uint8Array, start: number, end: number): void {
    this.hasFields = true;
    if (isField(bytes, start, end, FIELD_DATA)) {
      const value = decodeValue(bytes, start + FIELD_DATA.length, end);
      this.data = this.data === undefined ? value : `${this.data}\n${value}`;
    } else if (isField(bytes, start, end, FIELD_EVENT)) {
      this.event = decodeValue(bytes, start + FIELD_EVENT.length, end);
    }
  }

  private dispatch(events: SseEvent[]): void {
    const { event, data, eventStart: start, lineStart: end } = this;
    if (data !== undefined) events.push({ event, data, start, end });
    this.event = '';
    this.data = undefined;
    this.hasFields = false;
    this.eventStart = end;
  }

  private checkSize(eventBytes: number, events: readonly SseEvent[]): void {
    if (eventBytes <= this.maxEventBytes) return;
    this.failure = new SseTooLarge(events, this.eventStart, this.maxEventBytes);
    throw this.failure;
  }
}

/** The offset of a byte, or the array's length. */
function find(bytes: Uint8Array, byte: number, from: number): number {
  const at = bytes.indexOf(byte, from);
  return at === -1 ? bytes.length : at;
}

function startsWith(bytes: Uint8Array, start: number, expected: readonly number[]): boolean {
  for (let at = 0; at < expected.length; at++) {
    if (bytes[start + at] !== expected[at]) return false;
  }
  return true;
}

/** Whether the line from `start` to `end` gives this field; a line without a colon is all name. */
function isField(bytes: Uint8Array, start: number, end: number, name: readonly number[]): boolean {
  const nameEnd = start + name.length;
  if (nameEnd > end || !startsWith(bytes, start, name)) return false;
  return nameEnd === end || bytes[nameEnd] === COLON;
}

/** The value after a field's name, without its colon and one space. */
function decodeValue(bytes: Uint8Array, nameEnd: number, end: number): string {
  const start = bytes[nameEnd + 1] === SPACE ? nameEnd + 2 : nameEnd + 1;
  return start < end ? decoder.decode(bytes.subarray(start, end)) : '';
}
