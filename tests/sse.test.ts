/** Promises of the parser of server-sent events. */

import { describe, expect, test } from 'bun:test';
import fc from 'fast-check';
import { type SseEvent, SseParser, SseTooLarge } from '../schema/sse.ts';

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
const ROOMY_BYTES = 1_000_000;

type Outcome =
  | { events: SseEvent[]; pendingBytes: number }
  | { events: SseEvent[]; largeAt: number };

/** Everything that a parser says of a stream that arrives in these chunks. */
const parse = (chunks: readonly Uint8Array[], maxEventBytes = ROOMY_BYTES): Outcome => {
  const parser = new SseParser(maxEventBytes);
  const events: SseEvent[] = [];
  try {
    for (const chunk of chunks) {
      const reused = chunk.slice();
      events.push(...parser.push(reused));
      reused.fill(0x0a);
    }
    events.push(...parser.end());
    return { events, pendingBytes: parser.pendingBytes };
  } catch (error) {
    if (!(error instanceof SseTooLarge)) throw error;
    return { events: [...events, ...error.events], largeAt: error.start };
  }
};
const parseText = (text: string): [string, string][] =>
  parse([encoder.encode(text)]).events.map(({ event, data }) => [event, data]);

/** The standard's algorithm, word by word, over a whole text. */
const interpret = (text: string): [string, string][] => {
  const lines = text.replace(/^\ufeff/, '').split(/\r\n|\r|\n/);
  lines.pop();
  const events: [string, string][] = [];
  let [event, data] = ['', ''];
  for (const line of lines) {
    const colon = line.indexOf(':');
    const name = colon === -1 ? line : line.slice(0, colon);
    const value = colon === -1 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (line === '') {
      if (data !== '') events.push([event, data.slice(0, -1)]);
      [event, data] = ['', ''];
    } else if (name === 'data') data += `${value}\n`;
    else if (name === 'event') event = value;
  }
  return events;
};

const piece = fc.oneof(
  { weight: 3, arbitrary: fc.constantFrom('\n', '\r', '\r\n', '\n\n', '\r\n\r\n', '\r\r') },
  {
    weight: 3,
    arbitrary: fc.constantFrom('data: ', 'data:', 'data', 'event: ', 'event:', 'event'),
  },
  fc.constantFrom(':', ' ', ': ping', 'id: 7', 'retry: 1', 'datax: 1', 'dat', '\ufeff', '\0'),
  fc.constantFrom(
    '{"a":"é"}',
    '😀',
    '[DONE]',
    'message_stop',
    '\u2028',
    'x'.repeat(300),
    'y'.repeat(3000),
  ),
);
const stream = fc.array(piece, { maxLength: 40 }).map((pieces) => pieces.join(''));
const cuts = fc.oneof(
  fc.array(fc.nat(30), { minLength: 1, maxLength: 30 }),
  fc.array(fc.nat(1500), { minLength: 1, maxLength: 5 }),
);

const cut = (bytes: Uint8Array, lengths: readonly number[]): Uint8Array[] => {
  const chunks: Uint8Array[] = [];
  let at = 0;
  for (let turn = 0; at < bytes.length; turn++) {
    const length = lengths.every((one) => one === 0) ? 1 : lengths[turn % lengths.length]!;
    chunks.push(bytes.subarray(at, at + length));
    at += length;
  }
  return chunks;
};

describe('SseParser', () => {
  test('reads every stream as the standard says', () => {
    fc.assert(
      fc.property(stream, (text) => {
        expect(parseText(text)).toEqual(interpret(text));
      }),
      { numRuns: 3000 },
    );
  });

  test('says the same of a stream however its bytes are cut', () => {
    fc.assert(
      fc.property(stream, cuts, (text, lengths) => {
        const bytes = encoder.encode(text);
        const whole = parse([bytes]);
        expect(parse(cut(bytes, lengths))).toEqual(whole);
        expect(parse(cut(bytes, [1]))).toEqual(whole);
      }),
      { numRuns: 1500 },
    );
  });

  test('says the same of bytes that are not UTF-8 however they are cut', () => {
    const byte = fc.oneof(fc.constantFrom(...encoder.encode('data:\n\r \n')), fc.nat(255));
    fc.assert(
      fc.property(fc.array(byte, { maxLength: 80 }), cuts, (numbers, lengths) => {
        const bytes = new Uint8Array([...encoder.encode('data:'), ...numbers, 10, 10]);
        expect(parse(cut(bytes, lengths))).toEqual(parse([bytes]));
      }),
      { numRuns: 1000 },
    );
  });

  test('says the same of streams with events over the cap however they are cut', () => {
    fc.assert(
      fc.property(stream, cuts, fc.integer({ min: 1, max: 60 }), (text, lengths, cap) => {
        const bytes = encoder.encode(text);
        const whole = parse([bytes], cap);
        expect(parse(cut(bytes, lengths), cap)).toEqual(whole);
        for (const { start, end } of whole.events) expect(end - start).toBeLessThanOrEqual(cap);
      }),
      { numRuns: 1500 },
    );
  });

  test('gives spans in order whose bytes are the event and nothing else', () => {
    fc.assert(
      fc.property(stream, (text) => {
        const bytes = encoder.encode(text);
        let previous = 0;
        for (const { event, data, start, end } of parse([bytes]).events) {
          expect(start).toBeGreaterThanOrEqual(previous);
          const part = decoder.decode(bytes.subarray(start, end));
          expect(part).not.toMatch(/^:/);
          if (start > 0 && part.startsWith('\ufeff')) return;
          expect(interpret(part)).toEqual([[event, data]]);
          previous = end;
        }
      }),
      { numRuns: 1500 },
    );
  });

  test('returns an event with the chunk that completes it', () => {
    const parser = new SseParser(ROOMY_BYTES);
    const push = (text: string) => parser.push(encoder.encode(text)).map(({ data }) => data);
    expect(push('data: a\n\n')).toEqual(['a']);
    expect(push('data: b\r\n\r')).toEqual([]);
    expect(parser.pendingBytes).toBe(10);
    expect(push('\ndata: c')).toEqual(['b']);
    expect(push('\n')).toEqual([]);
    expect(push('\ndata: d\n\ndata: e\n\n: x')).toEqual(['c', 'd', 'e']);
    expect(push('\n')).toEqual([]);
    expect(parser.pendingBytes).toBe(0);
  });

  test('drops an event that the stream breaks off and tells its size', () => {
    expect(parse([encoder.encode('data: a\n\ndata: b\n')])).toEqual({
      events: [{ event: '', data: 'a', start: 0, end: 9 }],
      pendingBytes: 8,
    });
    expect(parse([encoder.encode('data: a\r\r')]).events).toHaveLength(1);
  });

  test('takes comments without end but no event over the cap', () => {
    const parser = new SseParser(100);
    const comment = encoder.encode(': waiting\n');
    for (let turn = 0; turn < 1000; turn++) expect(parser.push(comment)).toEqual([]);
    expect(parser.push(encoder.encode(`data: ${'x'.repeat(92)}\n\n`))).toHaveLength(1);
    const tooLong = encoder.encode(`data: a\n\ndata: ${'x'.repeat(93)}\n\n`);
    let error: unknown;
    try {
      parser.push(tooLong);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(SseTooLarge);
    expect((error as SseTooLarge).events.map(({ data }) => data)).toEqual(['a']);
    expect((error as SseTooLarge).start).toBe(10_100 + 9);
    expect(() => parser.push(comment)).toThrow(SseTooLarge);
    expect(() => parser.end()).toThrow(SseTooLarge);
  });

  test('refuses a line without end as soon as it passes the cap', () => {
    const parser = new SseParser(1000);
    const chunk = encoder.encode('x'.repeat(100));
    for (let turn = 0; turn < 10; turn++) parser.push(chunk);
    expect(() => parser.push(chunk)).toThrow(SseTooLarge);
  });
});
