/** The benchmark's own parts: framing of answers, medians and the sharing of cores. */

import { describe, expect, test } from 'bun:test';
import fc from 'fast-check';
import { parseCores, shareCores } from './cores.ts';
import { type Answer, ResponseReader } from './framing.ts';
import { PAYLOADS } from './payloads.ts';
import { compare, spread } from './report.ts';

const body = fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes));
const framed = fc
  .record({ status: fc.constantFrom(200, 402, 503), parts: fc.array(body, { maxLength: 5 }) })
  .chain(({ status, parts }) => fc.boolean().map((chunked) => ({ status, parts, chunked })));

interface Framed {
  readonly status: number;
  readonly parts: readonly Buffer[];
  readonly chunked: boolean;
}

function onTheWire({ status, parts, chunked }: Framed): Buffer {
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const head = (field: string) => Buffer.from(`HTTP/1.1 ${status} Any\r\n${field}\r\n\r\n`);
  if (!chunked) return Buffer.concat([head(`Content-Length: ${length}`), ...parts]);
  const chunks = parts
    .filter((part) => part.length > 0)
    .flatMap((part) => [Buffer.from(`${part.length.toString(16)}\r\n`), part, Buffer.from('\r\n')]);
  return Buffer.concat([head('Transfer-Encoding: chunked'), ...chunks, Buffer.from('0\r\n\r\n')]);
}

function read(bytes: Buffer, cuts: readonly number[]): Answer[] {
  const reader = new ResponseReader();
  const answers: Answer[] = [];
  const edges = [0, ...cuts.map((cut) => cut % (bytes.length + 1)), bytes.length].sort(
    (a, b) => a - b,
  );
  for (const [index, edge] of edges.entries()) {
    reader.push(bytes.subarray(edges[index - 1] ?? 0, edge), (answer) => answers.push(answer));
  }
  return answers;
}

describe('ResponseReader', () => {
  test('finds every answer, wherever the bytes are cut', () => {
    fc.assert(
      fc.property(fc.array(framed), fc.array(fc.nat(5_000)), (answers, cuts) => {
        const expected = answers.map(({ status, parts }) => ({
          status,
          bytes: parts.reduce((sum, part) => sum + part.length, 0),
          keepAlive: true,
        }));
        expect(read(Buffer.concat(answers.map(onTheWire)), cuts)).toEqual(expected);
      }),
    );
  });

  test('says when the server closes the connection afterwards', () => {
    const bytes = Buffer.from('HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
    expect(read(bytes, [])).toEqual([{ status: 200, bytes: 0, keepAlive: false }]);
  });

  test('refuses what it cannot find the end of', () => {
    const heads = ['HTTP/1.0 200 OK\r\n\r\n', 'HTTP/1.1 200 OK\r\n\r\n', 'x'.repeat(20_000)];
    for (const head of heads) expect(() => read(Buffer.from(head), [])).toThrow();
    const long = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n';
    expect(() => read(Buffer.from(long), [])).toThrow('longer');
  });
});

describe('a report', () => {
  test('gives the median between the smallest and the largest', () => {
    expect(spread([3, 1, 2])).toEqual({ median: 2, min: 1, max: 3 });
    expect(spread([4, 1, 2, 3])).toEqual({ median: 2.5, min: 1, max: 4 });
  });

  test('compares each round with the same round of the yardstick', () => {
    const outcome = (requests: number, p50Micros: number) => ({
      ...{ requests, p50Micros, p99Micros: 2 * p50Micros, seconds: 1, errors: 1 },
    });
    const row = compare(
      { payload: 'json1k', connections: 1, target: 'a' },
      [outcome(50, 20), outcome(900, 15)],
      [outcome(100, 10), outcome(1_000, 10)],
    );
    expect(row.ratio).toEqual({ median: 0.7, min: 0.5, max: 0.9 });
    expect(row.addedP50Micros).toEqual({ median: 7.5, min: 5, max: 10 });
    expect(row.p50Ratio).toEqual({ median: 1.75, min: 1.5, max: 2 });
    expect(row.addedP99Micros).toEqual({ median: 15, min: 10, max: 20 });
    expect(row.errors).toBe(2);
  });
});

describe('cores', () => {
  test('are read from the list that taskset prints', () => {
    expect(parseCores(' 0-2,5\n')).toEqual([0, 1, 2, 5]);
    expect(parseCores('none')).toEqual([]);
  });

  test('are never shared by two processes, and each role has one from three cores on', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 16 }),
        fc.integer({ min: 1, max: 8 }),
        (cores, want) => {
          const { upstream, server, load } = shareCores([...Array(cores).keys()], want);
          const used = [...upstream, ...server, ...load];
          expect(new Set(used).size).toBe(used.length);
          for (const role of [upstream, server, load]) expect(role.length > 0).toBe(cores >= 3);
        },
      ),
    );
  });
});

test('every payload asks for a small, known model with a bound on the answer', () => {
  for (const { requestBody, model } of PAYLOADS) {
    expect(JSON.parse(requestBody)).toMatchObject({ model, max_tokens: expect.any(Number) });
  }
});
