/** Reading the tool calls of an answer so that no client can read another call than was judged. */

import {
  fold,
  InvalidJson,
  type Json,
  type JsonObject,
  parseStrict,
  type StrictBody,
} from '../../schema/json.ts';
import { isObject } from '../../schema/rules/bound.ts';
import type { SseEvent } from '../../schema/sse.ts';
import type { CallReader, ProposedCall } from './contract.ts';
import { mendHalves } from './halves.ts';
import { parseEvent } from './reading.ts';
import { sourcesOf } from './source.ts';

/** An answer that clients could read as different calls. */
export class Unreadable extends Error {
  override readonly name = 'Unreadable';
}

/** The most calls, each of its versions counted, of one answer. */
const MAX_CALLS = 4_096;
/** The most characters of arguments that are put together from the events of one answer. */
export const MAX_ARGS_CHARS = 16 * 1024 * 1024;

/** One checked JSON object: an event's data or a whole answer. */
export interface Passage {
  readonly value: JsonObject;
  /** The event's name where it has one that tells anything. */
  readonly event: string | undefined;
  /** The source text of an object or array in it. */
  source(part: JsonObject | Json[]): string;
  /** How a number among the members of an object in it is written. */
  digits(part: JsonObject, key: string): string;
}

/** What a dialect knows of calls. */
export interface Gatherer {
  /**
   * What a text holds that has to do with a call, whatever its JSON looks like otherwise; in any
   * case, for some decoders ignore the case of keys.
   */
  readonly hint: RegExp;
  /** What an event holds that may change how clients read the calls of others. */
  readonly nearby?: RegExp;
  /**
   * Looks at such an event; what is wrong with it counts where there are calls.
   *
   * @throws {Unreadable}
   */
  glance?(passage: Passage): void;
  /**
   * Takes a passage; returns names as {@link CallReader.event} does.
   *
   * @throws {Unreadable}
   */
  take(passage: Passage): string[];
  /** @throws {Unreadable} */
  calls(): ProposedCall[];
  /**
   * Looks at what only a whole answer can show.
   *
   * @throws {Unreadable}
   */
  finish?(): void;
}

/** Keys by which calls are found and put together. */
const KEYS = new Set([
  ...['type', 'id', 'index', 'name', 'arguments', 'input', 'delta', 'message', 'content'],
  ...['choices', 'tool_calls', 'function_call', 'function', 'custom'],
  ...['response', 'output', 'item', 'data', 'output_index', 'item_id', 'call_id', 'namespace'],
  ...['server_label', 'action', 'actions', 'operation', 'execution', 'command_index'],
  ...['content_block', 'partial_json'],
]);
const LONGEST_KEY = 16;
/** Those of them that hold plain text too, where no call is near. */
const TEXTS = new Set(['content', 'delta']);

/**
 * Turns away keys that are spelled almost like those by which calls are found: some decoders take
 * them for the same.
 *
 * @throws {Unreadable}
 */
export function refuseVariants(value: JsonObject): void {
  for (const key in value) {
    if (KEYS.has(key) || key.length > LONGEST_KEY || !KEYS.has(fold(key))) continue;
    throw new Unreadable('a key differs from a known one in case only');
  }
}

/** What a call does, whichever its id is. */
export function saidBy({ kind, name, argsText }: ProposedCall): string {
  return JSON.stringify([kind, name, argsText]);
}

/** Arguments as an object; undefined where two readers could read them as two things. */
export function parseArgs(text: string): JsonObject | undefined {
  try {
    return parseStrict(encoder.encode(text), NO_KEYS).value;
  } catch (error) {
    if (error instanceof InvalidJson) return undefined;
    throw error;
  }
}

/** The arguments of a tool that takes free text. */
export function freeText(input: string): Pick<ProposedCall, 'args' | 'argsText'> {
  return { args: { input }, argsText: JSON.stringify({ input }) };
}

/** Signs of a text that an escape or a lenient decoder could turn into a key or a name. */
const DISGUISE = /\\u|\0|\ufffd/;
const NO_KEYS: ReadonlySet<string> = new Set();
const NONE: readonly string[] = [];
/** Clients of some dialects stop at an event of this data; others read on. */
const DONE = '[DONE]';
/** A number that is more than digits, as the value of some member. */
const ODD_NUMBER = /:\s*(?:-|\d+[.e])/i;
const SPLIT = 'an event has several lines, one of which is an event by itself';
const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { ignoreBOM: true });

/** Reads the calls of one answer by what a dialect knows of them. */
export class StrictReader implements CallReader {
  readonly #gatherer: Gatherer;
  #fault: string | undefined;
  /** A fault if there are calls. */
  #doubt: string | undefined;
  #hasCalls = false;
  #isDone = false;

  constructor(gatherer: Gatherer) {
    this.#gatherer = gatherer;
  }

  get fault(): string | undefined {
    return this.#fault ?? (this.#hasCalls ? this.#doubt : undefined);
  }

  body(bytes: Uint8Array): readonly ProposedCall[] {
    const text = decoder.decode(bytes);
    if (this.#mayHold(text)) this.#take(bytes, undefined);
    return this.end();
  }

  event({ event, data }: SseEvent): readonly string[] {
    if (data.startsWith(DONE)) this.#isDone = true;
    const name = event === 'message' || event === '' ? undefined : event;
    if (!this.#mayHold(data) && !(name && this.#gatherer.hint.test(name))) {
      this.#glance(data, name);
      return NONE;
    }
    if (isSplit(data, (line) => this.#mayHold(line))) this.#fault ??= SPLIT;
    const names = this.#take(encoder.encode(data), name);
    this.#hasCalls ||= names.length > 0;
    if (this.#isDone && names.length > 0) this.#fault ??= 'a call goes on after the end';
    return names;
  }

  calls(): readonly ProposedCall[] {
    const known = new Map<string, ProposedCall>();
    this.#attempt(() => {
      for (const call of this.#gatherer.calls()) {
        const { kind, id, name, argsText, approvalId } = call;
        const key = JSON.stringify([kind, id, name, argsText, approvalId]);
        if (!call.isRepeat || !known.has(key)) known.set(key, call);
        if (known.size > MAX_CALLS) throw new Unreadable('it proposes too many calls');
      }
    });
    return [...known.values()];
  }

  end(): readonly ProposedCall[] {
    this.#attempt(() => this.#gatherer.finish?.());
    const calls = this.calls();
    if (calls.some(({ name }) => name === '')) this.#fault ??= 'a call has no name';
    return calls;
  }

  #mayHold(text: string): boolean {
    return this.#gatherer.hint.test(text) || DISGUISE.test(text);
  }

  #take(bytes: Uint8Array, event: string | undefined): readonly string[] {
    const { hint } = this.#gatherer;
    return this.#attempt(() => this.#gatherer.take(readPassage(bytes, event, hint))) ?? NONE;
  }

  #glance(data: string, event: string | undefined): void {
    const { hint, nearby } = this.#gatherer;
    if (!nearby?.test(data)) return;
    try {
      if (isSplit(data, (line) => nearby.test(line))) throw new Unreadable(SPLIT);
      this.#gatherer.glance?.(readPassage(encoder.encode(data), event, hint));
    } catch (error) {
      if (!(error instanceof Unreadable)) throw error;
      this.#doubt ??= error.message;
    }
  }

  #attempt<Result>(read: () => Result): Result | undefined {
    try {
      return read();
    } catch (error) {
      if (!(error instanceof Unreadable)) throw error;
      this.#fault ??= error.message;
      return undefined;
    }
  }
}

/** Whether some clients, which take each `data` line for an event of its own, look at one. */
function isSplit(data: string, isLookedAt: (line: string) => boolean): boolean {
  if (!data.includes('\n')) return false;
  return data.split('\n').some((line) => isLookedAt(line) && parseEvent(line) !== undefined);
}

function readPassage(bytes: Uint8Array, event: string | undefined, hint: RegExp): Passage {
  const { value, text } = parse(bytes, event, hint);
  let sources: ReadonlyMap<Json, string> | undefined;
  const isOdd = ODD_NUMBER.test(text);
  const source = (part: JsonObject | Json[]): string => {
    sources ??= sourcesOf(text, value);
    return sources.get(part) ?? JSON.stringify(part);
  };
  return {
    ...{ value, event, source },
    digits: (part, key) => (isOdd ? literalOf(source(part), key) : String(part[key])),
  };
}

function literalOf(source: string, key: string): string {
  const { text, members } = parseStrict(encoder.encode(source), NO_KEYS);
  const { start, end } = members.get(key)!;
  return text.slice(start, end).trim();
}

function parse(bytes: Uint8Array, event: string | undefined, hint: RegExp): StrictBody {
  try {
    return parseStrict(bytes, KEYS);
  } catch (error) {
    if (!(error instanceof InvalidJson)) throw error;
    const mended = event !== undefined && hint.test(event) ? undefined : mend(bytes, hint);
    if (mended) return mended;
    throw new Unreadable('its JSON can be read in several ways');
  }
}

/**
 * Reads what is strict JSON but for halves of characters in its plain text, where a delta ends or
 * a limit cut it. Clients read such a text in several ways or drop the event, so that nothing in
 * it may have to do with a call.
 */
function mend(bytes: Uint8Array, hint: RegExp): StrictBody | undefined {
  const mended = mendHalves(bytes, (key) => !KEYS.has(key) || TEXTS.has(key));
  if (!mended) return undefined;
  try {
    const body = parseStrict(mended, KEYS);
    return hint.test(JSON.stringify(body.value, given)) ? undefined : body;
  } catch (error) {
    if (error instanceof InvalidJson) return undefined;
    throw error;
  }
}

/** Leaves out what proposes nothing, such as `"tool_calls":null`. */
function given(_key: string, value: Json): Json | undefined {
  return value === null || (Array.isArray(value) && value.length === 0) ? undefined : value;
}

/**
 * What a passage says it is; empty where it doesn't.
 *
 * @throws {Unreadable} where the name of its event differs, for clients go by either.
 */
export function typeOf({ value, event }: Passage): string {
  const type = plainText(value, 'type');
  if (event !== undefined && type !== event) {
    throw new Unreadable('the name of an event differs from its type');
  }
  return type;
}

/** The objects of a member that is a list. */
export function objectsOf(value: Json | undefined): JsonObject[] {
  return Array.isArray(value) ? value.filter(isObject) : [];
}

/** A member that is a string; empty where it is not. */
export function stringOf(value: JsonObject, key: string): string {
  const member = value[key];
  return typeof member === 'string' ? member : '';
}

/**
 * A member that is text; empty where there is none.
 *
 * @throws {Unreadable} where it is something else, of which some clients make text.
 */
export function plainText(value: JsonObject, key: string): string {
  const member = value[key] ?? '';
  if (typeof member === 'string') return member;
  throw new Unreadable(`a member "${key}" is no text`);
}

/**
 * A member that says where something stands; undefined where it is absent or null.
 *
 * @throws {Unreadable} where it is anything but digits: clients count back from the end, take `"0"`
 *   or `false` for 0, or `0.0` for another place than 0.
 */
export function plainIndex(passage: Passage, value: JsonObject, key = 'index'): number | undefined {
  const member = value[key] ?? undefined;
  if (member === undefined) return undefined;
  const isPlace = Number.isSafeInteger(member) && /^\d+$/.test(passage.digits(value, key));
  if (isPlace) return member as number;
  throw new Unreadable(`a member "${key}" is no place in a list`);
}

/**
 * Ways in which parts of an answer are told, of which clients may pass over one and not the other:
 * what belongs together has to come in one.
 */
export class Ways {
  readonly #ways = new Map<unknown, string>();

  /** @throws {Unreadable} */
  require(whole: unknown, ...told: readonly (string | boolean | undefined)[]): void {
    const way = JSON.stringify(told);
    if ((this.#ways.get(whole) ?? way) !== way) {
      throw new Unreadable('the parts of its calls come in several ways');
    }
    this.#ways.set(whole, way);
  }
}
