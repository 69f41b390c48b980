/** Tool calls of chat completions: `tool_calls`, and the former `function_call`. */

import type { Json, JsonObject } from '../../schema/json.ts';
import { isGiven, isObject } from '../../schema/rules/bound.ts';
import {
  freeText,
  type Gatherer,
  MAX_ARGS_CHARS,
  type Passage,
  parseArgs,
  plainIndex,
  plainText,
  refuseVariants,
  StrictReader,
  Unreadable,
  Ways,
} from './calls.ts';
import { isUsualChunk } from './chunk.ts';
import type { Asked, CallKind, CallReader, ProposedCall } from './contract.ts';

/** The member that holds a call's name and arguments; `bare` where the call itself does. */
type Form = 'function' | 'custom' | 'bare';

/** What one id said of a call. */
interface Segment {
  id: string | null;
  readonly names: string[];
  args: string;
}

/** What one form says of a call. */
interface Part {
  readonly segments: Segment[];
  /** What came without an id after a second one, which some clients add to the first. */
  readonly strays: Segment;
  /** What came with a name and without an index: to some clients, a call by itself. */
  readonly alone: Segment[];
  /** Whether the arguments are an object, which can't go on. */
  isObject: boolean;
}

/** Whether a call stands in one piece, or else by what its pieces are put together. */
type Binding = 'whole' | 'index' | 'choice';

interface Slot {
  readonly kind: CallKind;
  readonly binding: Binding;
  readonly parts: Map<Form, Part>;
  /** The ids that it was given, in their order. */
  readonly ids: string[];
}

/** Where calls stand. */
type Place = { readonly choice: number } | 'message' | 'elsewhere';

/** More pieces of a name, or ids of one call, than anything but an attack has. */
const MAX_PIECES = 64;
const MAX_SLOTS = 4_096;

/**
 * A reader of chat completions, whole or streamed.
 *
 * A call of a stream is what stands at one index of one choice. Its name may come in pieces that
 * some clients join and others replace, and an index may come back with another id: each way to
 * read that is a call of its own.
 */
export function readChatCalls({ choices = 1 }: Asked = {}): CallReader {
  return new StrictReader(new ChatGatherer(choices));
}

class ChatGatherer implements Gatherer {
  readonly hint = /_call/i;
  readonly #choices: number;
  readonly #slots = new Set<Slot>();
  readonly #byPlace = new Map<string, Slot>();
  readonly #ways = new Ways();
  #chars = 0;
  #passage!: Passage;
  /** What decides which clients look at it, once that is known. */
  #way: readonly [event: string, isUsual: boolean] | undefined;
  #names: string[] = [];

  /** @param choices The most choices that were asked for. */
  constructor(choices: number) {
    this.#choices = choices;
  }

  take(passage: Passage): string[] {
    this.#passage = passage;
    this.#way = undefined;
    this.#names = [];
    this.#walk(passage.value, []);
    return this.#names;
  }

  calls(): ProposedCall[] {
    return [...this.#slots].flatMap(versionsOf);
  }

  /** Calls count wherever they stand: only what a client reads of them is known, not where. */
  #walk(value: JsonObject, trail: readonly (string | number)[]): void {
    refuseVariants(value);
    for (const [key, member] of Object.entries(value)) {
      if (key !== 'tool_calls' && key !== 'function_call') this.#within(member, [...trail, key]);
      else if (isGiven(member)) this.#propose(key, member, this.#placeOf(trail));
    }
  }

  #within(member: Json, trail: readonly (string | number)[]): void {
    if (isObject(member)) this.#walk(member, trail);
    else if (Array.isArray(member)) {
      for (const [at, element] of member.entries()) this.#within(element, [...trail, at]);
    }
  }

  /** Parts of calls stand where all clients find them, or who knows which of them join which. */
  #placeOf(trail: readonly (string | number)[]): Place {
    const [root, at, holder] = trail;
    const isOfChoice = trail.length === 3 && root === 'choices' && typeof at === 'number';
    if (isOfChoice && holder === 'message') return 'message';
    if (isOfChoice && holder === 'delta') return { choice: this.#choiceAt(at) };
    if (!trail.includes('delta')) return 'elsewhere';
    throw new Unreadable('a part of a call is not in the delta of a choice');
  }

  /**
   * Clients tell choices apart by their index, or read the first of each list alone: where one
   * choice was asked for, both have to find the same.
   */
  #choiceAt(at: number): number {
    const choices = this.#passage.value.choices as JsonObject[];
    const indexes = choices.map((each) => isObject(each) && plainIndex(this.#passage, each));
    const { index } = choices[at]!;
    this.#ways.require('choices', typeof index, index === null);
    const isFirst = indexes.length === 1 && !indexes[0];
    const isKnown = typeof index === 'number' && index < this.#choices;
    const isOneOfSeveral = isKnown && new Set(indexes).size === indexes.length;
    if (this.#choices > 1 ? isOneOfSeveral : isFirst) return indexes[at] || 0;
    throw new Unreadable('its choices are not those that were asked for');
  }

  #propose(key: string, member: Json, place: Place): void {
    const list = Array.isArray(member) ? member : [member];
    const isDocumented = key === 'function_call' ? isObject(member) : list === member;
    if (place !== 'elsewhere' && !(isDocumented && list.every(isObject))) {
      throw new Unreadable('its calls are no objects');
    }
    for (const call of list.filter(isObject)) {
      if (key === 'function_call') this.#addPart(this.#slotOf('function_call', place), call);
      else this.#add(this.#slotOf('tool_call', place, call), call);
    }
  }

  #slotOf(kind: CallKind, place: Place, call?: JsonObject): Slot {
    if (typeof place === 'string') return this.#newSlot(kind, 'whole');
    const index = call && plainIndex(this.#passage, call);
    // Without an index, most clients take the calls of a choice for parts of one.
    if (call) this.#ways.require(place.choice, typeof call.index, call.index === null);
    const key = JSON.stringify([kind, place.choice, index]);
    const isIndexed = !call || index !== undefined;
    const slot = this.#byPlace.get(key) ?? this.#newSlot(kind, isIndexed ? 'index' : 'choice');
    this.#byPlace.set(key, slot);
    // Some clients pass over an event for its name, or for a member that tells nothing of calls.
    this.#way ??= [this.#passage.event ?? '', isUsualChunk(this.#passage.value)];
    this.#ways.require(slot, ...this.#way);
    return slot;
  }

  #newSlot(kind: CallKind, binding: Binding): Slot {
    if (this.#slots.size >= MAX_SLOTS) throw new Unreadable('it proposes too many calls');
    const slot = { kind, binding, parts: new Map(), ids: [] };
    this.#slots.add(slot);
    return slot;
  }

  #add(slot: Slot, call: JsonObject): void {
    refuseVariants(call);
    plainText(call, 'type');
    const id = plainText(call, 'id');
    if (id !== '' && slot.ids.at(-1) !== id) {
      if (slot.ids.includes(id)) throw new Unreadable('a call goes on after another of its index');
      slot.ids.push(id);
    }
    for (const form of ['function', 'custom'] as const) {
      const holder = call[form] ?? null;
      if (isObject(holder)) this.#addPart(slot, holder, form, id);
      else if (holder !== null) throw new Unreadable(`the member "${form}" of a call is no object`);
    }
    const isBare = ['name', 'arguments', 'input'].some((key) => isGiven(call[key]));
    if (isBare) this.#addPart(slot, call, 'bare', id);
    if (slot.parts.size === 0) this.#names.push('');
  }

  #addPart(slot: Slot, holder: JsonObject, form: Form = 'function', id = ''): void {
    refuseVariants(holder);
    const part = slot.parts.get(form) ?? newPart();
    slot.parts.set(form, part);
    const { segments, strays, alone } = part;
    const name = plainText(holder, 'name');
    const args = this.#argsOf(holder, form, part);
    const isStray = id === '' && segments.length > 1;
    const segment = segmentFor(segments, slot.ids.at(-1) ?? null);
    for (const each of isStray ? [segment, strays] : [segment]) {
      if (name !== '') each.names.push(name);
      each.args += args;
    }
    if (slot.binding === 'choice' && name !== '') alone.push({ id, names: [name], args });
    this.#count(slot, part, name.length + args.length);
    const joined = namesOf(segments).join('');
    this.#names.push(joined, name || joined);
  }

  #count({ binding }: Slot, { segments }: Part, chars: number): void {
    this.#chars += chars;
    const names = namesOf(segments);
    if (this.#chars > MAX_ARGS_CHARS || segments.length + names.length > MAX_PIECES) {
      throw new Unreadable('its calls are too long');
    }
    // A client that doesn't tell the choices apart would add it to a call of another.
    if (this.#choices > 1 && binding !== 'whole' && names.length === 0) {
      throw new Unreadable('a call of a choice begins without a name');
    }
  }

  #argsOf(holder: JsonObject, form: Form, part: Part): string {
    const said = form === 'custom' ? [] : [holder.arguments ?? ''];
    const [args = '', more] = [...said, holder.input ?? ''].filter((each) => each !== '');
    const isWhole = isObject(args) && form !== 'custom';
    const isFirst = part.segments.every((segment) => segment.args === '');
    const isPlain = typeof args === 'string' || (isWhole && isFirst);
    if (!isPlain || more !== undefined || (part.isObject && args !== '')) {
      throw new Unreadable('the arguments of a call are no text');
    }
    part.isObject ||= isWhole;
    // Some hosts send the object itself in place of its text.
    return typeof args === 'string' ? args : this.#passage.source(args);
  }
}

function newPart(): Part {
  return {
    segments: [],
    strays: { id: null, names: [], args: '' },
    alone: [],
    isObject: false,
  };
}

function namesOf(segments: readonly Segment[]): string[] {
  return segments.flatMap(({ names }) => names);
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
  const { kind, ids, parts } = slot;
  const [id = null] = ids;
  if (parts.size === 0) return [{ kind, id, name: '', args: undefined, argsText: '' }];
  return [...parts].flatMap(([form, part]) => {
    const { segments, strays, alone } = part;
    const whole = join(id, segments);
    const hasStrays = strays.names.length > 0 || strays.args !== '';
    const first = hasStrays ? [join(id, [segments[0]!, strays])] : [];
    const several = segments.length > 1 ? [...segments, ...first] : [];
    return [whole, ...several, ...alone].flatMap((segment) => {
      const names = segment.names.length > 0 ? segment.names : whole.names;
      return proposals(kind, form, { ...segment, names });
    });
  });
}

function join(id: string | null, segments: readonly Segment[]): Segment {
  return { id, names: namesOf(segments), args: segments.map(({ args }) => args).join('') };
}

function proposals(kind: CallKind, form: Form, { id, names, args }: Segment): ProposedCall[] {
  const read = form === 'custom' ? freeText(args) : { args: parseArgs(args), argsText: args };
  return [...new Set([names.join(''), ...names])].map((name) => {
    return { kind, id: kind === 'function_call' ? name : id, name, ...read };
  });
}
