/** Tokens: what is written can be read, what is mistyped can't, and no character is likelier. */

import { expect, test } from 'bun:test';
import { createHash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import fc from 'fast-check';
import {
  formatToken,
  lastFour,
  readToken,
  TOKEN_ENTROPY_BYTES,
  type TokenKind,
} from '../schema/token.ts';

const KINDS: TokenKind[] = ['agent', 'admin', 'platform'];
const PREFIX = { agent: 'rg_agt_', admin: 'rg_adm_', platform: 'rg_platform_' };
const BASE62 = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';

/** The same bytes for the same number, as good as random: a fixed seed that never flakes. */
function entropy(number: number): Uint8Array {
  return createHash('sha512').update(`seed ${number}`).digest();
}

const samples = KINDS.flatMap((kind) =>
  Array.from({ length: 12 }, (_, number) => ({ kind, text: formatToken(kind, entropy(number)) })),
);

test('a token that was written is read back, with its kind and last four characters', () => {
  const bytes = fc.uint8Array({
    minLength: TOKEN_ENTROPY_BYTES,
    maxLength: TOKEN_ENTROPY_BYTES,
    max: 250,
  });
  fc.assert(
    fc.property(fc.constantFrom(...KINDS), bytes, (kind, random) => {
      const text = formatToken(kind, random);
      expect(text).toMatch(new RegExp(`^${PREFIX[kind]}[0-9A-Za-z]{36}$`));
      expect(readToken(text)).toEqual({ kind, lastFour: text.slice(-4) });
      expect(lastFour(text)).toBe(text.slice(-4));
    }),
  );
});

test('the last six characters are the CRC-32 of zlib in base62, most significant digit first', () => {
  for (const { text } of samples) {
    const digits = [...text.slice(-6)].map((char) => BASE62.indexOf(char));
    const value = digits.reduce((sum, digit) => sum * 62 + digit, 0);
    expect(value).toBe(crc32(text.slice(-36, -6)));
  }
});

test('every change of a single character is refused', () => {
  for (const { text } of samples) {
    for (let at = 0; at < text.length; at++) {
      const lookalike = String.fromCharCode(text.charCodeAt(at) + 256);
      for (const char of [...BASE62, '_', '-', '+', ' ', '\0', 'é', '\ud800', lookalike]) {
        if (char === text[at]) continue;
        expect(readToken(text.slice(0, at) + char + text.slice(at + 1))).toBeUndefined();
      }
    }
  }
});

test('every transposition of two characters is refused', () => {
  for (const { text } of samples) {
    for (let i = text.length - 36; i < text.length; i++) {
      for (let j = i + 1; j < text.length; j++) {
        const chars = [...text];
        [chars[i], chars[j]] = [chars[j] ?? '', chars[i] ?? ''];
        if (chars[i] !== chars[j]) expect(readToken(chars.join(''))).toBeUndefined();
      }
    }
  }
});

test('a token that is cut, lengthened, padded or in the wrong case is refused', () => {
  for (const { text } of samples) {
    for (let length = 0; length < text.length; length++) {
      expect(readToken(text.slice(0, length))).toBeUndefined();
    }
    for (const wrong of [`${text}0`, ` ${text}`, `${text}\n`, text + text, `Bearer ${text}`]) {
      expect(readToken(wrong)).toBeUndefined();
    }
    expect(readToken(text.toUpperCase())).toBeUndefined();
    expect(readToken(text.toLowerCase())).toBeUndefined();
  }
});

test('what is read is only ever what formatToken could have written', () => {
  const tail = fc.string({ unit: fc.constantFrom(...BASE62), minLength: 34, maxLength: 38 });
  const anything = fc.oneof(
    fc.string(),
    fc.tuple(fc.constantFrom(...Object.values(PREFIX)), fc.oneof(tail, fc.string())),
  );
  fc.assert(
    fc.property(anything, (parts) => {
      const text = typeof parts === 'string' ? parts : parts.join('');
      expect(readToken(text)).toBeUndefined();
    }),
    { seed: 1, numRuns: 2000 },
  );
  expect(readToken('rg_agt_'.padEnd(50_000_000, 'a'))).toBeUndefined();
});

test('the 248 fair bytes give each of the 62 characters four times, and the other 8 none', () => {
  const seen = new Map<string, number>();
  for (let byte = 0; byte < 256; byte++) {
    const random = new Uint8Array(TOKEN_ENTROPY_BYTES).fill(0);
    random[0] = byte;
    random[1] = 1;
    const [first = '', second] = formatToken('agent', random).slice(PREFIX.agent.length);
    if (byte < 248) expect(second).toBe('1');
    else expect([first, second]).toEqual(['1', '0']);
    if (byte < 248) seen.set(first, (seen.get(first) ?? 0) + 1);
  }
  expect([...seen.keys()].sort().join('')).toBe(BASE62);
  expect(new Set(seen.values())).toEqual(new Set([4]));
});

test('the random characters are evenly spread (chi-square, 61 degrees of freedom)', () => {
  const counts = new Map<string, number>();
  const tokens = 3000;
  for (let number = 0; number < tokens; number++) {
    const random = formatToken('agent', entropy(number)).slice(PREFIX.agent.length, -6);
    for (const char of random) counts.set(char, (counts.get(char) ?? 0) + 1);
  }
  const expected = (tokens * 30) / 62;
  const chiSquare = [...counts.values()].reduce(
    (sum, n) => sum + (n - expected) ** 2 / expected,
    0,
  );
  expect(counts.size).toBe(62);
  expect(chiSquare).toBeLessThan(100.9);
});

test('too little entropy is an error, never a shorter or a weaker token', () => {
  expect(() => formatToken('agent', new Uint8Array(29))).toThrow(RangeError);
  expect(() => formatToken('agent', new Uint8Array(64).fill(255))).toThrow(RangeError);
  expect(formatToken('agent', new Uint8Array(30))).toHaveLength(43);
});
