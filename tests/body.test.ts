/** Promises of reading request bodies: whole, decoded, and never beyond their caps. */

import { describe, expect, test } from 'bun:test';
import { connect } from 'node:net';
import { constants, gzipSync, type ZstdOptions, zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import { type BodyLimits, readBody } from '../functions/proxy/body.ts';
import { type ErrorCode, Refusal } from '../schema/errors.ts';

const LIMITS: BodyLimits = { maxEncodedBytes: 10_000, maxDecodedBytes: 20_000 };
const URL = 'http://localhost/';
const encoder = new TextEncoder();

const post = (body: BodyInit, encoding?: string): Request => {
  const headers: HeadersInit = encoding === undefined ? {} : { 'content-encoding': encoding };
  return new Request(URL, { method: 'POST', body, headers });
};
const codeOf = async (
  request: Request,
  limits = LIMITS,
  stopping?: AbortSignal,
): Promise<ErrorCode | 'read'> => {
  try {
    await readBody(request, limits, stopping);
  } catch (error) {
    if (error instanceof Refusal) return error.code;
    throw error;
  }
  return 'read';
};
const noise = (length: number): Uint8Array<ArrayBuffer> =>
  Uint8Array.from({ length }, (_, at) => (Math.imul(at + 1, 2654435761) >>> 13) & 255);
const compressZstd = (bytes: Uint8Array, params: ZstdOptions['params'] = {}) =>
  new Uint8Array(zstdCompressSync(bytes, { params }));
const compressGzip = (bytes: Uint8Array) => new Uint8Array(gzipSync(bytes));
const checksummed = { [constants.ZSTD_c_checksumFlag]: 1 };
const join = (...parts: Uint8Array[]) => new Uint8Array(parts.flatMap((part) => [...part]));

const ENCODINGS = [
  ['gzip', compressGzip],
  ['X-GZip', compressGzip],
  [' zstd ', compressZstd],
  ['zstd', (bytes: Uint8Array) => compressZstd(bytes, checksummed)],
] as const;

describe('readBody()', () => {
  test('returns what was sent, in every encoding and however it is cut', async () => {
    const cutting = fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1, maxLength: 5 });
    const plain = fc
      .tuple(fc.nat(5000), fc.boolean())
      .map(([length, isNoise]) => (isNoise ? noise(length) : new Uint8Array(length).fill(97)));
    await fc.assert(
      fc.asyncProperty(plain, fc.nat(4), cutting, async (bytes, choice, lengths) => {
        const [encoding, compress] = ENCODINGS[choice] ?? ['identity', (same: Uint8Array) => same];
        const sent = compress(bytes);
        let [at, turn] = [0, 0];
        const body = new ReadableStream<Uint8Array>({
          pull(controller) {
            const end = at + lengths[turn++ % lengths.length]!;
            if (at < sent.length) controller.enqueue(sent.slice(at, end));
            else controller.close();
            at = end;
          },
        });
        expect(await readBody(post(body, encoding), LIMITS)).toEqual(bytes);
        expect(await readBody(post(new Blob([sent as BlobPart]), encoding), LIMITS)).toEqual(bytes);
      }),
      { numRuns: 150 },
    );
  });

  test('returns no bytes for a request without a body', async () => {
    expect(await readBody(new Request(URL), LIMITS)).toHaveLength(0);
    expect(await readBody(post(''), LIMITS)).toHaveLength(0);
  });

  test('accepts a body of exactly each cap and refuses one byte more', async () => {
    expect(await codeOf(post(noise(10_000)))).toBe('read');
    expect(await codeOf(post(noise(10_001)))).toBe('body_too_large');
    const small = { maxEncodedBytes: 10_000, maxDecodedBytes: 100 };
    expect(await codeOf(post(noise(101)), small)).toBe('body_too_large');
    for (const [encoding, compress] of ENCODINGS) {
      const limits = { maxEncodedBytes: 200, maxDecodedBytes: 20_000 };
      expect(await codeOf(post(compress(new Uint8Array(20_000)), encoding), limits)).toBe('read');
      const over = post(compress(new Uint8Array(20_001)), encoding);
      expect(await codeOf(over, limits)).toBe('body_too_large');
      const incompressible = post(compress(noise(300)), encoding);
      expect(await codeOf(incompressible, limits)).toBe('body_too_large');
    }
  });

  test('stops a stream without end at the cap and cancels it', async () => {
    let sentBytes = 0;
    const cancelled = Promise.withResolvers<void>();
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        sentBytes += 1000;
        controller.enqueue(new Uint8Array(1000));
      },
      cancel: () => cancelled.resolve(),
    });
    expect(await codeOf(post(body))).toBe('body_too_large');
    await cancelled.promise;
    expect(sentBytes).toBeLessThan(LIMITS.maxEncodedBytes + 5000);
  });

  test('refuses a declared length over the cap without reading a byte', async () => {
    let pulls = 0;
    const pull = () => {
      pulls++;
    };
    const body = new ReadableStream<Uint8Array>({ pull }, { highWaterMark: 0 });
    const request = post(body);
    request.headers.set('content-length', '10001');
    expect(await codeOf(request)).toBe('body_too_large');
    expect(pulls).toBe(0);
  });

  test('stops decompression bombs at the cap', async () => {
    const zeros = new Uint8Array(64_000_000);
    const roomy = { maxEncodedBytes: 1_000_000, maxDecodedBytes: 20_000 };
    for (const [encoding, compress] of ENCODINGS.slice(1, 3)) {
      expect(await codeOf(post(compress(zeros), encoding), roomy)).toBe('body_too_large');
    }
    const damaged = [compressGzip(zeros), compressZstd(zeros, checksummed)] as const;
    for (const [index, encoding] of ['gzip', 'zstd'].entries()) {
      const bytes = damaged[index]!;
      bytes[bytes.length - (index === 0 ? 8 : 1)]! ^= 1;
      // A wrong checksum at the end shows that nobody came that far.
      expect(await codeOf(post(bytes, encoding), roomy)).toBe('body_too_large');
    }
    const frame = compressZstd(new Uint8Array(1000));
    const frames = (count: number) => post(join(...Array<Uint8Array>(count).fill(frame)), 'zstd');
    expect(await codeOf(frames(20))).toBe('read');
    expect(await codeOf(frames(21))).toBe('body_too_large');
    const oneMore = join(...Array<Uint8Array>(20).fill(frame), compressZstd(new Uint8Array(1)));
    expect(await codeOf(post(oneMore, 'zstd'))).toBe('body_too_large');
    const empty = compressZstd(new Uint8Array(0));
    const many = join(...Array<Uint8Array>(1025).fill(empty));
    expect(await codeOf(post(many, 'zstd'), roomy)).toBe('invalid_body');
  });

  test('refuses compressed data cut short at any byte', async () => {
    const text = encoder.encode(
      JSON.stringify({ words: 'one two three '.repeat(9), n: [1, 2, 3] }),
    );
    for (const [encoding, compress] of ENCODINGS) {
      const whole = compress(text);
      for (let length = 0; length < whole.length; length++) {
        expect(await codeOf(post(whole.slice(0, length), encoding))).toBe('invalid_body');
      }
    }
  });

  test('refuses compressed data that is corrupt, under a checksum always', async () => {
    const text = encoder.encode('one two three '.repeat(9));
    for (const [encoding, compress] of [ENCODINGS[0], ENCODINGS[3]]) {
      const whole = compress(text);
      for (let at = encoding === 'gzip' ? 10 : 0; at < whole.length; at++) {
        const corrupt = whole.slice();
        corrupt[at]! ^= 0x10;
        const outcome = await readBody(post(corrupt, encoding), LIMITS).catch((error) => error);
        if (outcome instanceof Refusal) expect(outcome.code).toMatch(/invalid_body|body_too_large/);
        else expect(outcome).toEqual(text);
      }
    }
  });

  test('refuses what follows compressed data and reads several members or frames', async () => {
    const [a, b] = [noise(100), noise(50)];
    for (const [encoding, compress] of ENCODINGS) {
      const both = join(compress(a), compress(b));
      expect(await readBody(post(both, encoding), LIMITS)).toEqual(join(a, b));
      const trailing = join(compress(a), encoder.encode('{"a":1}'));
      expect(await codeOf(post(trailing, encoding))).toBe('invalid_body');
    }
    const skippable = new Uint8Array([0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
    const mixed = join(skippable, compressZstd(a), skippable, compressZstd(b));
    expect(await readBody(post(mixed, 'zstd'), LIMITS)).toEqual(join(a, b));
    expect(await codeOf(post(skippable.slice(0, -1), 'zstd'))).toBe('invalid_body');
  });

  test('refuses a Zstandard window over 8 MB', async () => {
    const window = (log: number) => ({
      [constants.ZSTD_c_windowLog]: log,
      [constants.ZSTD_c_contentSizeFlag]: 0,
    });
    const bytes = new Uint8Array(17_000_000);
    const limits = { maxEncodedBytes: 1_000_000, maxDecodedBytes: 20_000_000 };
    expect(await codeOf(post(compressZstd(bytes, window(23)), 'zstd'), limits)).toBe('read');
    expect(await codeOf(post(compressZstd(bytes, window(24)), 'zstd'), limits)).toBe(
      'invalid_body',
    );
  });

  test('refuses every other encoding, and more than one', async () => {
    for (const encoding of [
      'br',
      'deflate',
      'compress',
      'gzip, gzip',
      'identity, gzip',
      'gzip;q=1',
      '*',
    ]) {
      expect(await codeOf(post('{}', encoding))).toBe('invalid_body');
    }
    expect(await codeOf(post('{}', ''))).toBe('read');
  });

  const breaking = () =>
    new ReadableStream<Uint8Array>({
      start(controller) {
        controller.enqueue(new Uint8Array(10));
        controller.error(new Error('gone'));
      },
    });

  test('refuses a body that breaks off', async () => {
    expect(await codeOf(post(breaking()))).toBe('invalid_body');
  });

  test('has a caller come back whose body breaks off because the process ends', async () => {
    const { signal } = new AbortController();
    expect(await codeOf(post(breaking()), LIMITS, signal)).toBe('invalid_body');
    const ended = AbortSignal.abort();
    expect(await codeOf(post(breaking()), LIMITS, ended)).toBe('unavailable');
    expect(await codeOf(post('whole'), LIMITS, ended)).toBe('read');
  });

  test('holds over HTTP, with a length and in chunks', async () => {
    using server = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      fetch: async (request) => {
        try {
          return new Response(String((await readBody(request, LIMITS)).length));
        } catch (error) {
          return new Response(error instanceof Refusal ? error.code : 'failed');
        }
      },
    });
    const send = async (head: string, body: string): Promise<string> => {
      const { promise, resolve, reject } = Promise.withResolvers<string>();
      const socket = connect(server.port!, '127.0.0.1');
      let answer = '';
      socket.on('data', (data) => {
        answer += data;
      });
      socket.on('close', () => resolve(answer.split('\r\n\r\n')[1] ?? ''));
      socket.on('error', reject);
      socket.write(`POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${head}\r\n\r\n${body}`);
      return promise;
    };
    const chunk = `3e8\r\n${'x'.repeat(1000)}\r\n`;
    expect(await send('Content-Length: 5', 'hello')).toBe('5');
    expect(await send('Content-Length: 10001', 'x'.repeat(10_001))).toBe('body_too_large');
    expect(await send('Transfer-Encoding: chunked', `${chunk.repeat(10)}0\r\n\r\n`)).toBe('10000');
    expect(await send('Transfer-Encoding: chunked', `${chunk.repeat(11)}0\r\n\r\n`)).toBe(
      'body_too_large',
    );
  });
});
