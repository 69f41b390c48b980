/** Reads request bodies whole, decoded, and never beyond their caps. */

import { constants, gunzip, type ZlibOptions, type ZstdOptions, zstdDecompress } from 'node:zlib';
import { concat } from '../../schema/bytes.ts';
import { Refusal } from '../../schema/errors.ts';
import { InvalidJson, parseStrict, type StrictBody } from '../../schema/json.ts';

type Bytes = Uint8Array<ArrayBuffer>;

/** The most bytes of a body, as sent and as decoded. */
export interface BodyLimits {
  readonly maxEncodedBytes: number;
  readonly maxDecodedBytes: number;
}

/**
 * Reads a request's body to its end and undoes its `Content-Encoding` (RFC 9110, 8.4): `gzip`,
 * `x-gzip`, `zstd` (RFC 8878, with the 8 MB window of RFC 9659) or `identity`, one at most.
 *
 * Bytes are counted as they arrive and as they inflate; reading stops at a cap.
 *
 * @param stopping Aborts when the process is told to end, on which Deno breaks off what is not read.
 * @returns The decoded bytes; none for a request without a body.
 * @throws {Refusal} `body_too_large` over a cap; `invalid_body` for another encoding, for
 *   compressed data that is cut short or corrupt, and for a body that breaks off; `unavailable` for
 *   one that breaks off while the process ends.
 */
export function readBody(
  request: Request,
  limits: BodyLimits,
  stopping?: AbortSignal,
): Promise<Bytes> {
  const encoding = request.headers.get('content-encoding')?.trim().toLowerCase() || 'identity';
  const isPlain = encoding === 'identity';
  const decode = DECODERS.get(encoding);
  if (!isPlain && decode === undefined) throw unsupported(encoding);
  const { maxEncodedBytes, maxDecodedBytes } = limits;
  const cap = isPlain ? Math.min(maxEncodedBytes, maxDecodedBytes) : maxEncodedBytes;
  const reading = readWhole(request, cap, stopping);
  return decode ? reading.then((bytes) => decode(bytes, maxDecodedBytes)) : reading;
}

/**
 * Reads the JSON object of a body, which every reader reads alike.
 *
 * @param keys As {@link parseStrict} takes them: those that mean something here.
 * @throws {Refusal} `invalid_body`.
 */
export function strictBody(bytes: Uint8Array, keys: ReadonlySet<string>): StrictBody {
  try {
    return parseStrict(bytes, keys);
  } catch (error) {
    if (error instanceof InvalidJson) throw new Refusal('invalid_body', error.message);
    throw error;
  }
}

type Decode = (bytes: Bytes, maxBytes: number) => Bytes | Promise<Bytes>;

const DECODERS: ReadonlyMap<string, Decode> = new Map<string, Decode>([
  ['gzip', decodeGzip],
  ['x-gzip', decodeGzip],
  ['zstd', decodeZstd],
]);

async function readWhole(
  request: Request,
  maxBytes: number,
  stopping: AbortSignal | undefined,
): Promise<Bytes> {
  const declared = declaredBytes(request.headers);
  if (declared !== undefined && declared > maxBytes) throw tooLarge(maxBytes);
  try {
    // Asking for the stream first would cost the runtimes their short way to the bytes.
    const isCounted = declared === undefined && request.body !== null;
    const bytes = await (isCounted ? readCounted(request.body, maxBytes) : request.bytes());
    if (bytes.length > maxBytes) throw tooLarge(maxBytes);
    return bytes;
  } catch (cause) {
    if (cause instanceof Refusal) throw cause;
    if (stopping?.aborted) throw new Refusal('unavailable', 'This server is ending; try again.');
    throw new Refusal('invalid_body', 'The request body broke off before its end.');
  }
}

/** The declared length in bytes, where the server holds the body to it (RFC 9112, 6.3). */
function declaredBytes(headers: Headers): number | undefined {
  const length = headers.get('content-length');
  if (length === null || headers.has('transfer-encoding')) return undefined;
  return /^\d{1,15}$/.test(length) ? Number(length) : undefined;
}

async function readCounted(body: ReadableStream<Bytes>, maxBytes: number): Promise<Bytes> {
  const reader = body.getReader();
  const chunks: Bytes[] = [];
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return concat(chunks);
    length += value.length;
    if (length > maxBytes) {
      // Not awaited: a sender that does not listen must not hold up the refusal.
      reader.cancel().catch(() => {});
      throw tooLarge(maxBytes);
    }
    chunks.push(value);
  }
}

function decodeGzip(bytes: Bytes, maxBytes: number): Promise<Bytes> {
  return inflate(gunzip, bytes, {}, maxBytes);
}

/** Frame by frame, because runtimes pass over what a frame lacks and what follows it. */
async function decodeZstd(bytes: Bytes, maxBytes: number): Promise<Bytes> {
  const decoded: Bytes[] = [];
  let length = 0;
  for (const frame of splitFrames(bytes)) {
    const part = await inflate(zstdDecompress, frame, ZSTD_OPTIONS, maxBytes, length);
    decoded.push(part);
    length += part.length;
  }
  return concat(decoded);
}

/** 2^23 bytes: RFC 9659, 3. */
const ZSTD_OPTIONS: ZstdOptions = { params: { [constants.ZSTD_d_windowLogMax]: 23 } };

type Inflate = (
  bytes: Bytes,
  options: ZlibOptions & ZstdOptions,
  done: (error: Error | null, decoded: Bytes) => void,
) => void;

/** @param usedBytes How much of the cap other parts have taken. */
function inflate(
  run: Inflate,
  bytes: Bytes,
  options: ZlibOptions & ZstdOptions,
  maxBytes: number,
  usedBytes = 0,
): Promise<Bytes> {
  const room = maxBytes - usedBytes;
  return new Promise((resolve, reject) => {
    // The runtimes take no cap under 1, so an output of one byte over 0 is caught here.
    run(bytes, { ...options, maxOutputLength: Math.max(1, room) }, (error, decoded) => {
      if (error) reject(isOverCap(error) ? tooLarge(maxBytes) : corrupt());
      else if (decoded.length > room) reject(tooLarge(maxBytes));
      else resolve(decoded);
    });
  });
}

function isOverCap(error: Error): boolean {
  return 'code' in error && error.code === 'ERR_BUFFER_TOO_LARGE';
}

const ZSTD_MAGIC = 0xfd2fb528;
const SKIPPABLE_MAGIC = 0x184d2a50;
/** Far more than any client sends; each costs a call of the decoder. */
const MAX_FRAMES = 1024;

/** The data frames of a Zstandard stream (RFC 8878, 3.1), each of them whole. */
function splitFrames(bytes: Bytes): Bytes[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const frames: Bytes[] = [];
  let at = 0;
  let count = 0;
  try {
    do {
      const magic = view.getUint32(at, true);
      const isSkippable = (magic & ~15) >>> 0 === SKIPPABLE_MAGIC;
      if (++count > MAX_FRAMES || (!isSkippable && magic !== ZSTD_MAGIC)) throw corrupt();
      const end = isSkippable ? at + 8 + view.getUint32(at + 4, true) : findFrameEnd(view, at);
      if (end > bytes.length) throw corrupt();
      if (!isSkippable) frames.push(bytes.subarray(at, end));
      at = end;
    } while (at < bytes.length);
  } catch {
    // Reading past the view is a RangeError: the stream is cut short.
    throw corrupt();
  }
  return frames;
}

const DICTIONARY_ID_BYTES = [0, 1, 2, 4];
const CONTENT_SIZE_BYTES = [0, 2, 4, 8];
const RLE_BLOCK = 1;
const RESERVED_BLOCK = 3;

/** @throws {RangeError} when a header is cut short; the end may still lie outside the view. */
function findFrameEnd(view: DataView, start: number): number {
  const descriptor = view.getUint8(start + 4);
  const isSingleSegment = (descriptor & 0x20) !== 0;
  const sizeBytes = CONTENT_SIZE_BYTES[descriptor >> 6]!;
  let at = start + 5 + DICTIONARY_ID_BYTES[descriptor & 3]!;
  at += isSingleSegment ? Math.max(1, sizeBytes) : 1 + sizeBytes;
  for (let isLast = false; !isLast; ) {
    const header = view.getUint16(at, true) | (view.getUint8(at + 2) << 16);
    const type = (header >> 1) & 3;
    if (type === RESERVED_BLOCK) throw corrupt();
    isLast = (header & 1) === 1;
    at += 3 + (type === RLE_BLOCK ? 1 : header >> 3);
  }
  const hasChecksum = (descriptor & 4) !== 0;
  return hasChecksum ? at + 4 : at;
}

function tooLarge(maxBytes: number): Refusal {
  const message = `The request body is larger than the ${maxBytes} bytes allowed.`;
  return new Refusal('body_too_large', message, { allowed: maxBytes });
}

function corrupt(): Refusal {
  const message = 'The request body is cut short or is not what its Content-Encoding says.';
  return new Refusal('invalid_body', message, { field: 'content-encoding' });
}

function unsupported(encoding: string): Refusal {
  const message = 'Send the request body plain, or with one Content-Encoding: gzip or zstd.';
  const asked = encoding.slice(0, 100);
  return new Refusal('invalid_body', message, { field: 'content-encoding', asked });
}
