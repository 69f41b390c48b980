/** HTTP/1.1 response framing (RFC 9112 §6): finds where each answer ends, and keeps nothing else. */

const HEAD_BYTES_MAX = 16_384;
const [CR, LF] = [13, 10];

/** A finished answer. */
export interface Answer {
  readonly status: number;
  /** Bytes of the content, chunk framing not counted. */
  readonly bytes: number;
  /** Whether the server will take another request on the same connection. */
  readonly keepAlive: boolean;
}

type Part = 'head' | 'counted' | 'size' | 'data' | 'dataEnd' | 'trailer';

/** Reads one answer after another from the bytes of a connection, however they are cut. */
export class ResponseReader {
  #part: Part = 'head';
  /** Bytes of a head or of a chunk's size line that has not come whole. */
  #rest: Buffer | undefined;
  /** Bytes of content that are still to come in this part. */
  #left = 0;
  #status = 0;
  #bytes = 0;
  #keepAlive = true;

  /** Whether an answer has begun and not ended. */
  get partial(): boolean {
    return this.#part !== 'head' || this.#rest !== undefined;
  }

  /**
   * Takes the next bytes of the connection.
   *
   * @param onAnswer Called at the end of each answer.
   * @throws {Error} for what is not an answer with a length or in chunks.
   */
  push(data: Buffer, onAnswer: (answer: Answer) => void): void {
    const bytes = this.#rest ? Buffer.concat([this.#rest, data]) : data;
    this.#rest = undefined;
    for (let at = 0; at < bytes.length; ) {
      const next = this.#step(bytes, at, onAnswer);
      if (next < 0) {
        this.#rest = Buffer.from(bytes.subarray(at));
        if (this.#rest.length > HEAD_BYTES_MAX) throw new Error('a head or size line without end');
        return;
      }
      at = next;
    }
  }

  /** Reads on from `at`; returns where to go on, or -1 when a line is not there yet. */
  #step(bytes: Buffer, at: number, onAnswer: (answer: Answer) => void): number {
    switch (this.#part) {
      case 'head':
        return this.#head(bytes, at, onAnswer);
      case 'size':
        return this.#size(bytes, at);
      case 'trailer':
        return this.#trailer(bytes, at, onAnswer);
      default:
        return this.#content(bytes, at, onAnswer);
    }
  }

  #head(bytes: Buffer, at: number, onAnswer: (answer: Answer) => void): number {
    const end = bytes.indexOf('\r\n\r\n', at, 'latin1');
    if (end < 0) return -1;
    const head = bytes.toString('latin1', at, end).toLowerCase();
    if (!head.startsWith('http/1.1 ')) throw new Error('not an HTTP/1.1 answer');
    this.#status = Number(head.slice(9, 12));
    this.#bytes = 0;
    this.#keepAlive = !head.includes('\r\nconnection: close');
    const length = /\r\ncontent-length: *(\d+)/.exec(head)?.[1];
    if (head.includes('\r\ntransfer-encoding: chunked')) {
      this.#part = 'size';
    } else if (length !== undefined) {
      this.#part = 'counted';
      this.#left = Number(length);
      if (this.#left === 0) this.#finish(onAnswer);
    } else {
      throw new Error(`an answer of unknown length: ${head.slice(0, 200)}`);
    }
    return end + 4;
  }

  #size(bytes: Buffer, at: number): number {
    const end = bytes.indexOf(LF, at);
    if (end < 0) return -1;
    const size = Number.parseInt(bytes.toString('latin1', at, end), 16);
    if (!(size >= 0)) throw new Error('a chunk without its size');
    this.#left = size;
    this.#part = size === 0 ? 'trailer' : 'data';
    return end + 1;
  }

  #content(bytes: Buffer, at: number, onAnswer: (answer: Answer) => void): number {
    if (this.#part === 'dataEnd') return this.#lineEnd(bytes, at);
    const taken = Math.min(this.#left, bytes.length - at);
    this.#left -= taken;
    this.#bytes += taken;
    if (this.#left === 0) {
      if (this.#part === 'counted') this.#finish(onAnswer);
      else this.#part = 'dataEnd';
    }
    return at + taken;
  }

  #lineEnd(bytes: Buffer, at: number): number {
    if (bytes.length - at < 2) return -1;
    if (bytes[at] !== CR || bytes[at + 1] !== LF) throw new Error('a chunk longer than its size');
    this.#part = 'size';
    return at + 2;
  }

  #trailer(bytes: Buffer, at: number, onAnswer: (answer: Answer) => void): number {
    const end = bytes.indexOf(LF, at);
    if (end < 0) return -1;
    if (end - at <= 1) this.#finish(onAnswer);
    return end + 1;
  }

  #finish(onAnswer: (answer: Answer) => void): void {
    this.#part = 'head';
    onAnswer({ status: this.#status, bytes: this.#bytes, keepAlive: this.#keepAlive });
  }
}
