/** What came back, made ready for whoever asked: decoded, timed, and an error when it is cut short. */

import type { IncomingMessage } from 'node:http';
import { type Duplex, pipeline, Readable } from 'node:stream';
import type { ReadableStream as NodeWebStream } from 'node:stream/web';
import {
  createBrotliDecompress,
  createGunzip,
  createInflate,
  createZstdDecompress,
} from 'node:zlib';
import { concat } from '../../schema/bytes.ts';
import type { Valve } from './agent.ts';
import { openSource, streamBody } from './body.ts';
import type { Deadline } from './deadline.ts';
import { EgressError, type EgressResponse, type EgressTimeouts } from './exchange.ts';

/** A response of either transport, before its body is made ready. */
export interface Received {
  readonly status: number;
  readonly headers: Headers;
  readonly body: ReadableStream<Uint8Array> | IncomingMessage | null;
  readonly valve?: Valve | undefined;
}

const DECODERS = new Map<string, () => Duplex>([
  ['gzip', createGunzip],
  ['x-gzip', createGunzip],
  ['deflate', createInflate],
  ['br', createBrotliDecompress],
  ['zstd', createZstdDecompress],
]);

/**
 * Makes the body ready: decoded, timed between chunks, and an error when it is cut short.
 *
 * @param readPlain The transport's own way to the whole of a plain body, where it has one.
 */
export function answer(
  { status, headers, body, valve }: Received,
  deadline: Deadline,
  timeouts: EgressTimeouts,
  maxDecodedBytes: number,
  readPlain?: () => Promise<Uint8Array<ArrayBuffer>>,
): EgressResponse {
  if (body === null) {
    deadline.close();
    return { status, headers, body, bytes: async () => new Uint8Array(0) };
  }
  const encoding = (headers.get('content-encoding') ?? 'identity').trim().toLowerCase();
  const isPlain = encoding === 'identity' || encoding === '';
  if (!isPlain && !DECODERS.has(encoding)) {
    throw new EgressError('broken', `The content-encoding ${encoding.slice(0, 40)} is not known.`);
  }
  deadline.rest();
  const maxBytes = isPlain ? Number.POSITIVE_INFINITY : maxDecodedBytes;
  let stream: ReadableStream<Uint8Array> | undefined;
  const open = () => {
    const source = openSource(isPlain ? body : decode(body, encoding), body, valve);
    return streamBody(source, deadline, timeouts.idleMs, maxBytes);
  };
  return {
    status,
    headers: isPlain ? headers : withoutEncoding(headers),
    get body() {
      stream ??= open();
      return stream;
    },
    bytes(limit) {
      const isShort = readPlain && isPlain && declaredBytes(headers) <= limit;
      return isShort ? readAtOnce(readPlain, deadline, timeouts) : readAll(open(), limit);
    },
  };
}

/** The length that the transport holds the body to; more than any limit where it isn't told. */
function declaredBytes(headers: Headers): number {
  const length = headers.get('content-length');
  return length === null ? Number.POSITIVE_INFINITY : Number(length);
}

/** A stream of chunks costs more than the rest of a call; a short body is read without one. */
async function readAtOnce(
  read: () => Promise<Uint8Array<ArrayBuffer>>,
  deadline: Deadline,
  { idleMs }: EgressTimeouts,
): Promise<Uint8Array<ArrayBuffer>> {
  deadline.expect('timeout_idle', idleMs);
  try {
    const bytes = await read();
    deadline.close();
    return bytes;
  } catch (error) {
    throw deadline.fail(error, 'broken');
  }
}

async function readAll(
  body: ReadableStream<Uint8Array>,
  maxBytes: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  let length = 0;
  for await (const part of body as ReadableStream<Uint8Array<ArrayBuffer>>) {
    length += part.byteLength;
    if (length > maxBytes) throw new EgressError('too_large', 'The answer is too large.');
    parts.push(part);
  }
  return concat(parts);
}

/** The header names what is no longer so: RFC 9110 sections 8.4 and 8.6. */
function withoutEncoding(headers: Headers): Headers {
  const decoded = new Headers(headers);
  decoded.delete('content-encoding');
  decoded.delete('content-length');
  return decoded;
}

function decode(body: ReadableStream<Uint8Array> | IncomingMessage, encoding: string): Readable {
  const decoder = DECODERS.get(encoding)!();
  const input =
    body instanceof Readable ? body : Readable.fromWeb(body as unknown as NodeWebStream);
  return pipeline(input, decoder, () => {});
}
