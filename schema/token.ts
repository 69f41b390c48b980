/** Access tokens as text: a prefix per kind, 30 random characters, and a checksum against typos. */

const PREFIXES = { agent: 'rg_agt_', admin: 'rg_adm_', platform: 'rg_platform_' } as const;

/** Whom a token speaks for: an agent, the admins of an org, or the operator of the platform. */
export type TokenKind = keyof typeof PREFIXES;

/** What a well-formed token says about itself; it may still be unknown, revoked or expired. */
export interface Token {
  readonly kind: TokenKind;
  readonly lastFour: string;
}

const KINDS = Object.keys(PREFIXES) as TokenKind[];
const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const BASE = ALPHABET.length;
const RANDOM_CHARS = 30;
const CHECK_CHARS = 6;
const NOT_A_DIGIT = 0xff;

/** Bytes at or above the largest multiple of 62 would favour the first digits, so they are left. */
const FAIR_BYTES = 256 - (256 % BASE);

/** Random bytes that suffice for a token in all but one of 10^34 draws; 31 are used on average. */
export const TOKEN_ENTROPY_BYTES = 64;

const DIGITS = new Uint8Array(128).fill(NOT_A_DIGIT);
for (let digit = 0; digit < BASE; digit++) DIGITS[ALPHABET.charCodeAt(digit)] = digit;

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let rest = byte;
  for (let bit = 0; bit < 8; bit++) rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
  return rest;
});

/**
 * Writes a new token of about 178 bits: prefix, 30 base62 characters, and the CRC-32 (of zlib,
 * RFC 1952) of these 30 as six base62 digits, most significant first, padded with zeros.
 *
 * @param entropy Bytes from a cryptographic source, {@link TOKEN_ENTROPY_BYTES} of them. Those that
 * would bias the alphabet are skipped (one in 32); what is left over is not looked at.
 * @throws {RangeError} when the bytes run out before the 30th character.
 */
export function formatToken(kind: TokenKind, entropy: Uint8Array): string {
  let random = '';
  for (let at = 0; random.length < RANDOM_CHARS; at++) {
    const byte = entropy[at];
    if (byte === undefined) throw new RangeError(`too little entropy: ${entropy.length} bytes`);
    if (byte < FAIR_BYTES) random += ALPHABET[byte % BASE];
  }
  return PREFIXES[kind] + random + formatCheck(checksum(random, 0));
}

/**
 * Reads a token's kind from its shape and checksum, so that a mistyped one costs no look-up. All
 * 36 characters are looked at, whichever is wrong.
 *
 * @returns undefined for anything that {@link formatToken} cannot have written.
 */
export function readToken(text: string): Token | undefined {
  const kind = KINDS.find((each) => text.startsWith(PREFIXES[each]));
  if (kind === undefined) return undefined;
  const start = PREFIXES[kind].length;
  if (text.length !== start + RANDOM_CHARS + CHECK_CHARS) return undefined;
  let check = 0;
  let worst = 0;
  for (let at = start; at < text.length; at++) {
    const digit = DIGITS[text.charCodeAt(at)] ?? NOT_A_DIGIT;
    worst = Math.max(worst, digit);
    if (at >= start + RANDOM_CHARS) check = check * BASE + digit;
  }
  const sound = check === checksum(text, start);
  return sound && worst < BASE ? { kind, lastFour: lastFour(text) } : undefined;
}

const ANYWHERE = new RegExp(
  `(?:${Object.values(PREFIXES).join('|')})[0-9A-Za-z]{${RANDOM_CHARS + CHECK_CHARS}}`,
);

/** Whether what looks like a token stands anywhere in a text. */
export function holdsToken(text: string): boolean {
  return ANYWHERE.test(text);
}

/** The four characters by which people tell tokens apart, taken from the checksum. */
export function lastFour(token: string): string {
  return token.slice(-4);
}

/** The CRC-32 of the 30 characters from `start` on, as an unsigned number. */
function checksum(text: string, start: number): number {
  let crc = 0xffffffff;
  for (let at = start; at < start + RANDOM_CHARS; at++) {
    crc = (CRC_TABLE[(crc ^ text.charCodeAt(at)) & 0xff] ?? 0) ^ (crc >>> 8);
  }
  return ~crc >>> 0;
}

function formatCheck(crc: number): string {
  let digits = '';
  for (let left = crc; digits.length < CHECK_CHARS; left = Math.floor(left / BASE)) {
    digits = ALPHABET[left % BASE] + digits;
  }
  return digits;
}
