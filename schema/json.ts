/** Strict JSON: one reading of a body for whoever checks it and whoever receives it. */

export type Json = null | boolean | number | string | Json[] | JsonObject;

/** An object as `JSON.parse` makes it: a key `__proto__` is a property like any other. */
export interface JsonObject {
  [key: string]: Json;
}

/** What a text may hold at most. */
export interface JsonLimits {
  /** Objects and arrays inside each other; `{}` is 1 deep. */
  readonly maxDepth: number;
  /** Members of objects and elements of arrays, summed over the whole text. */
  readonly maxMembers: number;
}

export const JSON_LIMITS: JsonLimits = { maxDepth: 128, maxMembers: 1_000_000 };

/** A part of a text: UTF-16 offsets, the end not included. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

/** A checked JSON object and where the values of its top-level members stand in the text. */
export interface StrictBody {
  readonly text: string;
  readonly value: JsonObject;
  readonly members: ReadonlyMap<string, Span>;
}

/** A text that is not JSON, or that two readers could read as two things. */
export class InvalidJson extends Error {
  override readonly name = 'InvalidJson';
  /** UTF-16 offset of the fault in the text; 0 where the bytes are not text. */
  readonly at: number;

  /** @param what The fault as a clause, such as `"a string is not closed"`. */
  constructor(what: string, at: number) {
    super(`The body is not acceptable JSON: ${what}, at offset ${at}.`);
    this.at = at;
  }
}

/** For texts that were checked before. */
const UNLIMITED: JsonLimits = {
  maxDepth: Number.POSITIVE_INFINITY,
  maxMembers: Number.POSITIVE_INFINITY,
};

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

/**
 * Reads a JSON object (RFC 8259, narrowed as RFC 7493 does) that every reader reads alike.
 *
 * Refused beyond what is not JSON: invalid UTF-8, a byte order mark, anything but an object at the
 * top, a repeated key at any depth (compared as decoded), escapes of lone surrogates, numbers
 * beyond a double, and texts over the limits. Takes linear time and no stack, whatever the bytes.
 *
 * @param caseSensitive Keys that policy reads: a top-level key that equals one but for case or
 *   compatibility forms (Unicode NFKC_Casefold) is refused. The set must not change after its
 *   first use.
 * @throws {InvalidJson}
 */
export function parseStrict(
  bytes: Uint8Array,
  caseSensitive: ReadonlySet<string>,
  limits: JsonLimits = JSON_LIMITS,
): StrictBody {
  const text = decode(bytes);
  const start = skipSpace(text, 0);
  if (text.charCodeAt(start) !== OPEN_BRACE) throw new InvalidJson('it is not an object', start);
  const scan = new Scan(text, start, limits);
  scan.run();
  const end = skipSpace(text, scan.at);
  if (end < text.length) throw new InvalidJson('something follows the object', end);
  const members = nameMembers(text, scan.top);
  refuseVariants(members, caseSensitive);
  return { text, value: parse(text, start, limits), members };
}

/** A replacement of a part of a text; `start` equal to `end` inserts. UTF-16 offsets. */
export interface Edit {
  readonly start: number;
  readonly end: number;
  readonly text: string;
}

/**
 * The smallest edit that gives a member a value: replaces the value, or inserts the member,
 * together with those of its parents that are missing or null.
 *
 * Several edits of one body may be spliced together unless two of them create the same parent.
 *
 * @param path Keys from the top, at least one, such as `['stream_options', 'include_usage']`.
 * @throws {InvalidJson} when a parent is there and is not an object.
 * @throws {RangeError} for an empty path.
 */
export function setMember(body: StrictBody, path: readonly string[], value: Json): Edit {
  const { text } = body;
  let parentStart = skipSpace(text, 0);
  let members = body.members;
  for (let depth = 0; depth < path.length; depth++) {
    const rest = nest(path.slice(depth + 1), value);
    const span = members.get(path[depth]!);
    if (span === undefined) return insert(text, parentStart, members, path[depth]!, rest);
    if (depth === path.length - 1 || text.startsWith('null', span.start)) {
      return { start: span.start, end: span.end, text: rest };
    }
    parentStart = span.start;
    members = membersAt(text, parentStart);
  }
  throw new RangeError('a path has at least one key');
}

/**
 * Applies edits to a text and encodes the result.
 *
 * @param edits In any order; those that insert at one offset keep theirs.
 * @returns UTF-8.
 * @throws {RangeError} for edits that overlap or lie outside the text.
 */
export function splice(text: string, edits: readonly Edit[]): Uint8Array<ArrayBuffer> {
  let edited = '';
  let at = 0;
  for (const edit of edits.toSorted((a, b) => a.start - b.start || a.end - b.end)) {
    if (!(edit.start >= at && edit.end >= edit.start && edit.end <= text.length)) {
      throw new RangeError(`an edit overlaps another or the text's end: ${edit.start}`);
    }
    edited += text.slice(at, edit.start) + edit.text;
    at = edit.end;
  }
  return encoder.encode(edited + text.slice(at));
}

function decode(bytes: Uint8Array): string {
  let text: string;
  try {
    text = decoder.decode(bytes);
  } catch {
    throw new InvalidJson('it is not UTF-8', 0);
  }
  if (text.charCodeAt(0) === 0xfeff) throw new InvalidJson('it begins with a byte order mark', 0);
  return text;
}

/** The native parser has the last word; a second scan finds out where it disagreed. */
function parse(text: string, start: number, limits: JsonLimits): JsonObject {
  try {
    return JSON.parse(text) as JsonObject;
  } catch {
    const scan = new Scan(text, start, limits, true);
    scan.run();
    throw new InvalidJson('it cannot be parsed', 0);
  }
}

/** Where a member's key and value stand: start and end of the key between its quotes, then both. */
type TopMembers = readonly number[];
const TOP_WIDTH = 4;

function nameMembers(text: string, top: TopMembers): Map<string, Span> {
  const members = new Map<string, Span>();
  for (let at = 0; at < top.length; at += TOP_WIDTH) {
    const key = decodeKey(text, top[at]!, top[at + 1]!);
    members.set(key, { start: top[at + 2]!, end: top[at + 3]! });
  }
  return members;
}

function decodeKey(text: string, start: number, end: number): string {
  const raw = text.slice(start, end);
  return raw.includes('\\') ? parseString(text, start, end) : raw;
}

function parseString(text: string, start: number, end: number): string {
  try {
    return JSON.parse(text.slice(start - 1, end + 1)) as string;
  } catch {
    throw new InvalidJson('a key has a control character that is not escaped', start);
  }
}

const foldings = new WeakMap<ReadonlySet<string>, ReadonlyMap<string, string>>();

function refuseVariants(members: ReadonlyMap<string, Span>, names: ReadonlySet<string>): void {
  let folded = foldings.get(names);
  if (folded === undefined) {
    folded = new Map([...names].map((name) => [fold(name), name]));
    foldings.set(names, folded);
  }
  for (const [key, span] of members) {
    if (names.has(key)) continue;
    const name = folded.get(fold(key));
    if (name === undefined) continue;
    throw new InvalidJson(`the key ${quote(key)} could be read as ${quote(name)}`, span.start);
  }
}

/**
 * What texts that differ only in case or compatibility forms have in common. Near to
 * toNFKC_Casefold (Unicode Standard 3.13, R5); by way of upper case because `toLowerCase` alone
 * leaves letters such as U+017F apart from their ASCII form.
 */
export function fold(key: string): string {
  if (/^[\0-\x7f]*$/.test(key)) return key.toLowerCase();
  const compatible = key.normalize('NFKC').replace(/\p{Default_Ignorable_Code_Point}/gu, '');
  return compatible.toUpperCase().toLowerCase().normalize('NFKC');
}

function quote(key: string): string {
  return JSON.stringify(key.length > 40 ? `${key.slice(0, 40)}…` : key);
}

function nest(path: readonly string[], value: Json): string {
  return path.reduceRight(
    (inner, key) => `{${JSON.stringify(key)}:${inner}}`,
    JSON.stringify(value),
  );
}

function insert(
  text: string,
  start: number,
  members: ReadonlyMap<string, Span>,
  key: string,
  value: string,
): Edit {
  const member = `${JSON.stringify(key)}:${value}`;
  if (members.size > 0) return { start: start + 1, end: start + 1, text: `${member},` };
  // Covering both braces makes a second insertion here overlap, where a comma would be missing.
  return { start, end: text.indexOf('}', start) + 1, text: `{${member}}` };
}

function membersAt(text: string, start: number): ReadonlyMap<string, Span> {
  if (text.charCodeAt(start) !== OPEN_BRACE) {
    throw new InvalidJson('an object is needed here', start);
  }
  const scan = new Scan(text, start, UNLIMITED);
  scan.run();
  return nameMembers(text, scan.top);
}

const QUOTE = 0x22;
const PLUS = 0x2b;
const COMMA = 0x2c;
const MINUS = 0x2d;
const DOT = 0x2e;
const SLASH = 0x2f;
const DIGIT_0 = 0x30;
const DIGIT_9 = 0x39;
const COLON = 0x3a;
const OPEN_BRACKET = 0x5b;
const BACKSLASH = 0x5c;
const CLOSE_BRACKET = 0x5d;
const LETTER_A = 0x61;
const LETTER_B = 0x62;
const LETTER_E = 0x65;
const LETTER_F = 0x66;
const LETTER_N = 0x6e;
const LETTER_R = 0x72;
const LETTER_T = 0x74;
const LETTER_U = 0x75;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
const LOWER_CASE = 0x20;

/** Keys of one object up to which comparing each pair in place beats a set. */
const FEW_KEYS = 8;
/** Characters of a string looked at one by one before searching. */
const NEAR = 24;
/** Length from which comparing in place could cost more than hashing. */
const LONG_KEY = 64;
/** The container on the stack is an array; for objects the index of their first key stands there. */
const ARRAY = -1;

/** One pass over a JSON value: its structure, limits, keys and escapes, but not string contents. */
class Scan {
  readonly text: string;
  readonly limits: JsonLimits;
  /** Whether to look for control characters in strings, which only the native parser else does. */
  readonly thorough: boolean;
  /** Key start, key end, value start and value end of each member of the outermost object. */
  readonly top: number[] = [];
  at: number;
  /** A quote and a backslash with none of their kind before them from where they were sought. */
  private quoteAt = -1;
  private escapeAt = -1;
  private memberCount = 0;
  private readonly containers: number[] = [];
  private readonly keyStarts: number[] = [];
  private readonly keyEnds: number[] = [];
  /** Keys of the object at this depth, where comparing in place does not serve. */
  private readonly keySets: (Set<string> | undefined)[] = [];

  constructor(text: string, at: number, limits: JsonLimits, thorough = false) {
    this.text = text;
    this.at = at;
    this.limits = limits;
    this.thorough = thorough;
  }

  /** Moves from the start of a value to its end. */
  run(): void {
    while (this.enterValue() || this.leaveValue());
  }

  /** Whether a container was entered and has a member, whose value comes next. */
  private enterValue(): boolean {
    const code = this.text.charCodeAt(this.at);
    if (code === OPEN_BRACE) return this.enterObject();
    if (code === OPEN_BRACKET) return this.enterArray();
    if (code === QUOTE) this.passString();
    else this.passScalar(code);
    return false;
  }

  private enterObject(): boolean {
    this.push(this.keyStarts.length);
    if (this.text.charCodeAt(this.at) === CLOSE_BRACE) return this.pop();
    this.passKey();
    return true;
  }

  private enterArray(): boolean {
    this.push(ARRAY);
    if (this.text.charCodeAt(this.at) === CLOSE_BRACKET) return this.pop();
    this.countMember();
    return true;
  }

  private push(container: number): void {
    if (this.containers.length >= this.limits.maxDepth) {
      throw new InvalidJson(`it is more than ${this.limits.maxDepth} deep`, this.at);
    }
    this.containers.push(container);
    this.at = skipSpace(this.text, this.at + 1);
  }

  private pop(): false {
    const firstKey = this.containers.pop()!;
    if (firstKey !== ARRAY) {
      this.keyStarts.length = firstKey;
      this.keyEnds.length = firstKey;
      // Arrays leave no set, so more than one may be past its object.
      if (this.keySets.length > this.containers.length)
        this.keySets.length = this.containers.length;
    }
    this.at++;
    return false;
  }

  /** Passes the ends of containers up to the next value; false when the outermost one ended. */
  private leaveValue(): boolean {
    const { text, containers } = this;
    for (let depth = containers.length; depth > 0; depth--) {
      const isArray = containers[depth - 1] === ARRAY;
      if (depth === 1 && !isArray) this.top.push(this.at);
      const at = skipSpace(text, this.at);
      const code = text.charCodeAt(at);
      if (code === COMMA) {
        this.at = skipSpace(text, at + 1);
        if (isArray) this.countMember();
        else this.passKey();
        return true;
      }
      this.at = at;
      if (code !== (isArray ? CLOSE_BRACKET : CLOSE_BRACE)) throw this.missing('a comma or an end');
      this.pop();
    }
    return false;
  }

  private countMember(): void {
    if (++this.memberCount > this.limits.maxMembers) {
      throw new InvalidJson(`it has more than ${this.limits.maxMembers} members`, this.at);
    }
  }

  private passKey(): void {
    this.countMember();
    if (this.text.charCodeAt(this.at) !== QUOTE) throw this.missing('a key');
    const start = this.at + 1;
    const isEscaped = this.passString();
    const end = this.at - 1;
    this.claimKey(start, end, isEscaped);
    this.at = skipSpace(this.text, this.at);
    if (this.text.charCodeAt(this.at) !== COLON) throw this.missing('a colon');
    this.at = skipSpace(this.text, this.at + 1);
    if (this.containers.length === 1) this.top.push(start, end, this.at);
  }

  private claimKey(start: number, end: number, isEscaped: boolean): void {
    const depth = this.containers.length - 1;
    const first = this.containers[depth]!;
    const count = this.keyStarts.length - first;
    const set = this.keySets[depth];
    if (set || isEscaped || count >= FEW_KEYS || end - start >= LONG_KEY) {
      this.addKey(set ?? this.makeSet(depth, first), start, end);
      return;
    }
    for (let index = first; index < first + count; index++) {
      if (this.isSameKey(index, start, end)) throw this.repeated(start, end);
    }
    this.keyStarts.push(start);
    this.keyEnds.push(end);
  }

  private isSameKey(index: number, start: number, end: number): boolean {
    const other = this.keyStarts[index]!;
    const length = end - start;
    if (this.keyEnds[index]! - other !== length) return false;
    for (let at = 0; at < length; at++) {
      if (this.text.charCodeAt(other + at) !== this.text.charCodeAt(start + at)) return false;
    }
    return true;
  }

  private makeSet(depth: number, first: number): Set<string> {
    const keys = new Set<string>();
    for (let index = first; index < this.keyStarts.length; index++) {
      keys.add(this.text.slice(this.keyStarts[index], this.keyEnds[index]));
    }
    this.keySets[depth] = keys;
    return keys;
  }

  private addKey(keys: Set<string>, start: number, end: number): void {
    const size = keys.size;
    if (keys.add(decodeKey(this.text, start, end)).size === size) throw this.repeated(start, end);
  }

  /** @returns Whether the string has escapes. */
  private passString(): boolean {
    const start = this.at + 1;
    let isEscaped = false;
    let at = this.nextMark(start);
    while (this.text.charCodeAt(at) !== QUOTE) {
      isEscaped = true;
      at = this.nextMark(this.passEscape(at));
    }
    if (this.thorough) this.refuseControls(start, at);
    this.at = at + 1;
    return isEscaped;
  }

  /** The next quote or backslash: near ones one by one, far ones by the runtime's own search. */
  private nextMark(from: number): number {
    const { text } = this;
    for (let at = from; at < from + NEAR; at++) {
      const code = text.charCodeAt(at);
      if (code === QUOTE || code === BACKSLASH) return at;
    }
    if (this.quoteAt < from) this.quoteAt = find(text, '"', from);
    if (this.escapeAt < from) this.escapeAt = find(text, '\\', from);
    const at = Math.min(this.quoteAt, this.escapeAt);
    if (at >= text.length) throw new InvalidJson('a string is not closed', from);
    return at;
  }

  /** The end of the escape at an offset; of both halves where it is a surrogate pair. */
  private passEscape(at: number): number {
    const code = this.text.charCodeAt(at + 1);
    if (code !== LETTER_U) {
      if (!isShortEscape(code)) throw new InvalidJson('an escape is not one of JSON', at);
      return at + 2;
    }
    const unit = this.readUnit(at);
    if (unit < 0) throw new InvalidJson('an escape has fewer than four hexadecimal digits', at);
    if ((unit & 0xf800) !== 0xd800) return at + 6;
    // The bytes were UTF-8, so the other half of a pair can only be an escape too.
    if (unit >= 0xdc00 || (this.readUnit(at + 6) & 0xfc00) !== 0xdc00) {
      throw new InvalidJson('an escape is half of a surrogate pair', at);
    }
    return at + 12;
  }

  /** The code unit of the escape `\uXXXX` at an offset; negative where there is none. */
  private readUnit(at: number): number {
    const { text } = this;
    if (text.charCodeAt(at) !== BACKSLASH || text.charCodeAt(at + 1) !== LETTER_U) return -1;
    let unit = 0;
    for (let digit = at + 2; digit < at + 6; digit++) {
      const value = hexValue(text.charCodeAt(digit));
      if (value < 0) return -1;
      unit = unit * 16 + value;
    }
    return unit;
  }

  private refuseControls(start: number, end: number): void {
    for (let at = start; at < end; at++) {
      if (this.text.charCodeAt(at) < 0x20) {
        throw new InvalidJson('a string has a control character that is not escaped', at);
      }
    }
  }

  private passScalar(code: number): void {
    if (code === MINUS || isDigit(code)) {
      this.passNumber(code);
      return;
    }
    const literal = LITERALS.find((word) => this.text.startsWith(word, this.at));
    if (literal === undefined) throw this.missing('a value');
    this.at += literal.length;
  }

  private passNumber(first: number): void {
    const { text, at: start } = this;
    const whole = first === MINUS ? start + 1 : start;
    let at = text.charCodeAt(whole) === DIGIT_0 ? whole + 1 : passDigits(text, whole);
    if (text.charCodeAt(at) === DOT) at = passDigits(text, at + 1);
    const isExponential = (text.charCodeAt(at) | LOWER_CASE) === LETTER_E;
    if (isExponential) at = passDigits(text, at + (isSign(text.charCodeAt(at + 1)) ? 2 : 1));
    // Without an exponent, it takes more than 308 digits to leave the doubles.
    if ((isExponential || at - start > 308) && !Number.isFinite(Number(text.slice(start, at)))) {
      throw new InvalidJson('a number is too large', start);
    }
    this.at = at;
  }

  private missing(what: string): InvalidJson {
    const isOver = this.at >= this.text.length;
    return new InvalidJson(isOver ? `it ends where ${what} is due` : `${what} is due`, this.at);
  }

  private repeated(start: number, end: number): InvalidJson {
    return new InvalidJson(`the key ${quote(decodeKey(this.text, start, end))} repeats`, start);
  }
}

const LITERALS = ['true', 'false', 'null'];

/** The offset of a character, or the text's length. */
function find(text: string, character: string, from: number): number {
  const at = text.indexOf(character, from);
  return at === -1 ? text.length : at;
}

function skipSpace(text: string, from: number): number {
  for (let at = from; ; at++) {
    const code = text.charCodeAt(at);
    if (code > 0x20 || !isSpace(code)) return at;
  }
}

function passDigits(text: string, from: number): number {
  let at = from;
  while (isDigit(text.charCodeAt(at))) at++;
  if (at === from) throw new InvalidJson('a digit is due', at);
  return at;
}

function isSpace(code: number): boolean {
  return code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09;
}

function isDigit(code: number): boolean {
  return code >= DIGIT_0 && code <= DIGIT_9;
}

function isSign(code: number): boolean {
  return code === PLUS || code === MINUS;
}

function isShortEscape(code: number): boolean {
  switch (code) {
    case QUOTE:
    case BACKSLASH:
    case SLASH:
    case LETTER_B:
    case LETTER_F:
    case LETTER_N:
    case LETTER_R:
    case LETTER_T:
      return true;
    default:
      return false;
  }
}

/** The value of a hexadecimal digit, or -1. */
function hexValue(code: number): number {
  if (isDigit(code)) return code - DIGIT_0;
  const letter = code | LOWER_CASE;
  return letter >= LETTER_A && letter <= LETTER_F ? letter - LETTER_A + 10 : -1;
}
