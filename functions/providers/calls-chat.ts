/** Tool calls of chat completions: `tool_calls`, and the former `function_call`. */

import type { Json, JsonObject } from '../../schema/json.ts';
import { isObject } from '../../schema/rules/bound.ts';
import {
  freeText,
  type Gatherer,
  MAX_ARGS_CHARS,
  type Passage,
  parseArgs,
  refuseVariants,
  StrictReader,
  stringOf,
  Unreadable,
} from './calls.ts';
import type { CallKind, CallReader, ProposedCall } from './contract.ts';

/** The member that holds a call's name and arguments; `bare` where the call itself does. */
type Form = 'function' | 'custom' | 'bare';

/** What one id said of a call. */
interface Segment {
  id: string | null;
  readonly names: string[];
  args: string;
}

interface Slot {
  readonly kind: CallKind;
  readonly parts: Map<Form, Segment[]>;
  /** The ids that it was given, in their order. */
  readonly ids: string[];
  type: string;
}

/** More pieces of a name, or ids of one call, than anything but an attack has. */
const MAX_PIECES = 64;
const MAX_SLOTS = 4_096;

/**
 * A reader of chat completions, whole or streamed.
 *
 * A call is what stands at one index of one choice. Its name may come in pieces that some clients
 * join and others replace, and an index may come back with another id: each way to read that is a
 * call of its own.
 */
export function readChatCalls(): CallReader {
  return new StrictReader(new ChatGatherer());
}

class ChatGatherer implements Gatherer {
  readonly hint = /_call/i;
  readonly #slots = new Map<string, Slot>();
  #chars = 0;
  #passage!: Passage;
  #names: string[] = [];

  take(passage: Passage): string[] {
    this.#passage = passage;
    this.#names = [];
    this.#walk(passage.value, '');
    return this.#names;
  }

  calls(): ProposedCall[] {
    return [...this.#slots.values()].flatMap(versionsOf);
  }

  /** Calls count wherever they stand: only what a client reads of them is known, not where. */
  #walk(value: JsonObject, path: string): void {
    refuseVariants(value);
    for (const [key, member] of Object.entries(value)) {
      if (key === 'tool_calls') this.#toolCalls(member, path);
      else if (key === 'function_call') this.#functionCall(member, path);
      else if (isObject(member)) this.#walk(member, `${path}.${key}`);
      else if (Array.isArray(member)) this.#walkList(member, `${path}.${key}`);
    }
  }

  #walkList(list: readonly Json[], path: string): void {
    for (const [position, element] of list.entries()) {
      if (Array.isArray(element)) this.#walkList(element, `${path}[${position}]`);
      else if (isObject(element)) {
        this.#walk(element, `${path}[${indexOf(element) ?? position}]`);
      }
    }
  }

  #toolCalls(member: Json, path: string): void {
    const list = Array.isArray(member) ? member : [member];
    const isDelta = path.endsWith('.delta');
    for (const [position, call] of list.entries()) {
      if (!isObject(call)) continue;
      const index = indexOf(call);
      if (isDelta) this.#requireOneWay(path, index);
      // Without an index, clients take the calls of a delta for parts of one.
      const place = index ?? (isDelta ? 'none' : `at ${position}`);
      this.#add(this.#slot(`${path}[${place}]`, 'tool_call'), call);
    }
  }

  #functionCall(member: Json, path: string): void {
    if (!isObject(member)) return;
    const slot = this.#slot(`${path}.function_call`, 'function_call');
    this.#addPart(slot, 'function', member);
  }

  readonly #indexed = new Map<string, boolean>();

  #requireOneWay(path: string, index: number | undefined): void {
    const isIndexed = index !== undefined;
    if ((this.#indexed.get(path) ?? isIndexed) !== isIndexed) {
      throw new Unreadable('some parts of its calls have an index and others none');
    }
    this.#indexed.set(path, isIndexed);
  }

  #slot(key: string, kind: CallKind): Slot {
    let slot = this.#slots.get(key);
    if (!slot) {
      if (this.#slots.size >= MAX_SLOTS) throw new Unreadable('it proposes too many calls');
      slot = { kind, parts: new Map(), ids: [], type: '' };
      this.#slots.set(key, slot);
    }
    return slot;
  }

  #add(slot: Slot, call: JsonObject): void {
    refuseVariants(call);
    const id = stringOf(call, 'id');
    if (id !== '' && slot.ids.at(-1) !== id) slot.ids.push(id);
    slot.type ||= stringOf(call, 'type');
    const isBare = 'name' in call || 'arguments' in call || 'input' in call;
    if (isObject(call.function)) this.#addPart(slot, 'function', call.function);
    if (isObject(call.custom)) this.#addPart(slot, 'custom', call.custom);
    if (isBare) this.#addPart(slot, 'bare', call);
    if (slot.parts.size === 0) this.#names.push('');
  }

  #addPart(slot: Slot, form: Form, holder: JsonObject): void {
    refuseVariants(holder);
    const segments = slot.parts.get(form) ?? [];
    slot.parts.set(form, segments);
    const segment = segmentFor(segments, slot.ids.at(-1) ?? null);
    const name = stringOf(holder, 'name');
    if (name !== '') segment.names.push(name);
    const args = this.#text(holder, form === 'custom' ? 'input' : 'arguments');
    segment.args += args;
    this.#chars += args.length + name.length;
    if (this.#chars > MAX_ARGS_CHARS || segments.length + segment.names.length > MAX_PIECES) {
      throw new Unreadable('its calls are too long');
    }
    const joined = segments.flatMap(({ names }) => names).join('');
    this.#names.push(joined, name || joined);
  }

  #text(holder: JsonObject, key: string): string {
    const member = holder[key] ?? (key in holder ? '' : holder.input);
    if (typeof member === 'string') return member;
    // Some hosts send the object itself in place of its text.
    return typeof member === 'object' && member !== null ? this.#passage.source(member) : '';
  }
}

function indexOf({ index }: JsonObject): number | undefined {
  return typeof index === 'number' ? index : undefined;
}

/** An id that comes late belongs to what had none; another id begins something new. */
function segmentFor(segments: Segment[], id: string | null): Segment {
  const last = segments.at(-1);
  if (last && (last.id === id || last.id === null)) {
    last.id = id;
    return last;
  }
  const segment = { id, names: [], args: '' };
  segments.push(segment);
  return segment;
}

function versionsOf(slot: Slot): ProposedCall[] {
  const calls = [...slot.parts].flatMap(([form, segments]) => {
    const whole = {
      id: slot.ids[0] ?? null,
      names: segments.flatMap(({ names }) => names),
      args: segments.map(({ args }) => args).join(''),
    };
    const all = segments.length > 1 ? [whole, ...segments] : [whole];
    return all.flatMap((segment) => proposals(slot, form, segment));
  });
  const [id = null] = slot.ids;
  return calls.length > 0 ? calls : [{ ...UNKNOWN, kind: slot.kind, id, name: slot.type }];
}

const UNKNOWN = { args: undefined, argsText: '' };

function proposals({ kind, type }: Slot, form: Form, { id, names, args }: Segment): ProposedCall[] {
  const read = form === 'custom' ? freeText(args) : { args: parseArgs(args), argsText: args };
  const readings = names.length > 0 ? new Set([names.join(''), ...names]) : [type];
  return [...readings].map((name) => {
    return { kind, id: kind === 'function_call' ? name : id, name, ...read };
  });
}
