/** Tool calls of chat completions: `tool_calls`, and the former `function_call`. */

import type { Json, JsonObject } from '../../schema/json.ts';
import { isGiven, isObject } from '../../schema/rules/bound.ts';
import {
  freeText,
  type Gatherer,
  MAX_ARGS_CHARS,
  objectsOf,
  type Passage,
  parseArgs,
  plainIndex,
  plainText,
  refuseVariants,
  StrictReader,
  saidBy,
  Unreadable,
  Ways,
} from './calls.ts';
import { oddsOf } from './chunk.ts';
import type { Asked, CallKind, CallReader, ProposedCall } from './contract.ts';
import { memberOf } from './reading.ts';

/** The member that holds a call's name and arguments; `bare` where the call itself does. */
type Form = 'function' | 'custom' | 'bare';

/** One part of a call, or several that one client after another reads alike. */
interface Piece {
  /** Undefined for one that tells an id alone. */
  readonly form: Form | undefined;
  readonly id: string;
  readonly name: string;
  args: string;
  /** Which of the call's signatures its chunk has: what a client may drop that for. */
  readonly signature: number;
}

/** What one id said of a call. */
interface Segment {
  id: string | null;
  /**
   * All names as one, for some clients join them, until that is too long to be one; others go by
   * one of them.
   */
  joined: string;
  /** What that was after each of them: some clients pass over all that comes behind something. */
  readonly heads: Set<string>;
  readonly names: Set<string>;
  args: string;
}

/** What one form says of a call. */
interface Part {
  readonly segments: Segment[];
  /** What came without an id after a second one, which some clients add to the first. */
  readonly strays: Segment;
  /** What is a call by itself to some clients. */
  readonly alone: Segment[];
}

/** What is made of the pieces of a call, or of some of them. */
interface Reading {
  /** The ids that it was given, in their order. */
  readonly ids: string[];
  readonly parts: Map<Form, Part>;
}

/** Whether a call stands in one piece, or else by what its pieces are put together. */
type Binding = 'whole' | 'index' | 'choice';

interface Slot {
  readonly kind: CallKind;
  readonly binding: Binding;
  readonly pieces: Piece[];
  /** By the JSON of each: for what a client may drop a chunk. */
  readonly signatures: Map<string, readonly string[]>;
  /** By the signatures whose pieces it lacks, as bits. */
  readings: ReadonlyMap<number, Reading>;
  /** Whether the arguments are an object, which can't go on. */
  isObject: boolean;
}

/** Where calls stand. */
type Place = { readonly choice: number } | 'message' | 'elsewhere';

/** More names, or ids, of one call than anything but an attack has. */
const MAX_PIECES = 64;
/** The longest name that a tool may have. */
const MAX_NAME_CHARS = 512;
/** The most kinds of chunks that one call may come in, for each client may drop some. */
const MAX_SIGNATURES = 4;
const MAX_SLOTS = 4_096;

/**
 * A reader of chat completions, whole or streamed.
 *
 * A call of a stream is what stands at one index of one choice. Its name may come in pieces that
 * some clients join and others replace, an index may come back with another id, and clients drop
 * chunks for what they don't expect there: each way to read that is a call of its own.
 */
export function readChatCalls({ choices = 1 }: Asked = {}): CallReader {
  return new StrictReader(new ChatGatherer(choices));
}

class ChatGatherer implements Gatherer {
  readonly hint = /_call/i;
  readonly nearby = /"(?:message|role)"/i;
  readonly #choices: number;
  readonly #slots = new Set<Slot>();
  readonly #byPlace = new Map<string, Slot>();
  readonly #ways = new Ways();
  #chars = 0;
  #passage!: Passage;
  /** For what clients may drop it, once that is known. */
  #odds: readonly string[] | undefined;
  #names: string[] = [];
  /** Whose words the chunks are, which one says for those after it. */
  #role: Json = null;
  #hasMessage = false;
  /** Calls of messages. */
  readonly #held: Slot[] = [];

  /** @param choices The most choices that were asked for. */
  constructor(choices: number) {
    this.#choices = choices;
  }

  take(passage: Passage): string[] {
    this.#passage = passage;
    this.#odds = undefined;
    this.#names = [];
    this.glance(passage);
    this.#walk(passage.value, []);
    this.#requireRepeats();
    return this.#names;
  }

  glance({ value, event = '' }: Passage): void {
    const choices = value.choices ?? [];
    if (!Array.isArray(choices)) throw new Unreadable('its choices are no list');
    const [first = null] = choices;
    const role = isObject(first) ? (memberOf(first, 'delta').role ?? null) : null;
    const hasMessage = objectsOf(choices).some(({ message }) => (message ?? null) !== null);
    if (role !== null || hasMessage) this.#ways.require('choices', event);
    this.#role = role ?? this.#role;
    this.#hasMessage ||= hasMessage;
  }

  calls(): ProposedCall[] {
    return [...this.#slots].flatMap(versionsOf);
  }

  /** A message takes the place of what the deltas made, to some clients: it may say that again. */
  #requireRepeats(): void {
    if (this.#held.length === 0 || this.#byPlace.size === 0) return;
    const told = new Set([...this.#byPlace.values()].flatMap(versionsOf).map(saidBy));
    if (this.#held.flatMap(versionsOf).every((call) => told.has(saidBy(call)))) return;
    throw new Unreadable('its calls stand in deltas, beside a message that differs');
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
    this.#ways.require('indexes', typeof index, index === null);
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
      if (key === 'function_call') this.#tell(this.#slotOf('function_call', place), call);
      else this.#add(this.#slotOf('tool_call', place, call), call);
    }
  }

  #slotOf(kind: CallKind, place: Place, call?: JsonObject): Slot {
    if (typeof place === 'string') return this.#newWhole(kind, place);
    // To some clients, it goes on with a call of the message.
    if (this.#hasMessage) throw new Unreadable('its calls stand in deltas, behind a message');
    const index = call && plainIndex(this.#passage, call);
    // Without an index, most clients take the calls of a choice for parts of one.
    if (call) this.#ways.require(place.choice, typeof call.index, call.index === null);
    const key = JSON.stringify([kind, place.choice, index]);
    const isIndexed = !call || index !== undefined;
    const slot = this.#byPlace.get(key) ?? this.#newSlot(kind, isIndexed ? 'index' : 'choice');
    this.#byPlace.set(key, slot);
    // Some clients pass over an event for its name.
    this.#ways.require(slot, this.#passage.event ?? '');
    return slot;
  }

  #newWhole(kind: CallKind, place: 'message' | 'elsewhere'): Slot {
    const slot = this.#newSlot(kind, 'whole');
    if (place === 'message') this.#held.push(slot);
    return slot;
  }

  #newSlot(kind: CallKind, binding: Binding): Slot {
    if (this.#slots.size >= MAX_SLOTS) throw new Unreadable('it proposes too many calls');
    const slot = {
      ...{ kind, binding, pieces: [], signatures: new Map(), isObject: false },
      readings: new Map([[0, newReading()]]),
    };
    this.#slots.add(slot);
    return slot;
  }

  #add(slot: Slot, call: JsonObject): void {
    refuseVariants(call);
    plainText(call, 'type');
    const id = plainText(call, 'id');
    const { ids } = wholeOf(slot);
    if (ids.includes(id) && ids.at(-1) !== id) {
      throw new Unreadable('a call goes on after another of its index');
    }
    if (id !== '' && ids.at(-1) !== id) this.#push(slot, { form: undefined, id });
    for (const form of ['function', 'custom'] as const) {
      const holder = call[form] ?? null;
      if (isObject(holder)) this.#tell(slot, holder, form, id);
      else if (holder !== null) throw new Unreadable(`the member "${form}" of a call is no object`);
    }
    const isBare = ['name', 'arguments', 'input'].some((key) => isGiven(call[key]));
    if (isBare) this.#tell(slot, call, 'bare', id);
    if (wholeOf(slot).parts.size === 0) this.#names.push('');
  }

  #tell(slot: Slot, holder: JsonObject, form: Form = 'function', id = ''): void {
    refuseVariants(holder);
    const name = plainText(holder, 'name');
    const args = this.#argsOf(holder, form, slot);
    if (name !== '' || args !== '') this.#push(slot, { form, id, name, args });
    const part = wholeOf(slot).parts.get(form);
    if (!part) return;
    const { joined, names } = join(null, part.segments);
    this.#count(slot, part.segments.length + names.size, name.length + args.length);
    this.#names.push(name || joined);
    if (name !== '') this.#names.push(...namesSoFar(slot, form));
  }

  #push(slot: Slot, { form, id, name = '', args = '' }: Partial<Piece> & { id: string }): void {
    const { pieces, binding } = slot;
    const signature = this.#signatureNow(slot);
    const piece = { form, id, name, args, signature };
    for (const [without, reading] of slot.readings) {
      if (isAmong(piece, without)) tell(reading, piece, binding);
    }
    const last = pieces.at(-1);
    const isMore = last && [last, piece].every((each) => each.id === '' && each.name === '');
    if (isMore && last.form === form && last.signature === signature) last.args += args;
    else pieces.push(piece);
  }

  /** Of a kind of chunk that is new to a call, clients may drop all, so that it reads anew. */
  #signatureNow(slot: Slot): number {
    const { signatures, pieces, binding } = slot;
    const odds = binding === 'whole' ? [] : this.#oddsNow();
    const key = JSON.stringify(odds);
    if (!signatures.has(key)) {
      signatures.set(key, odds);
      if (signatures.size > MAX_SIGNATURES) {
        throw new Unreadable('the parts of its calls come in several ways');
      }
      slot.readings = readingsOf(pieces, binding, [...signatures.values()]);
    }
    return [...signatures.keys()].indexOf(key);
  }

  /** A chunk that doesn't say whose words it is has the role of those before it. */
  #oddsNow(): readonly string[] {
    this.#odds ??= [
      ...oddsOf(this.#passage.value),
      ...(this.#role === 'assistant' ? [] : [`by ${JSON.stringify(this.#role)}`]),
    ];
    return this.#odds;
  }

  #count(slot: Slot, pieces: number, chars: number): void {
    this.#chars += chars;
    if (this.#chars > MAX_ARGS_CHARS || pieces > MAX_PIECES) {
      throw new Unreadable('its calls are too long');
    }
    // A client that doesn't tell the choices apart would add it to a call of another.
    const isNamed = slot.pieces.some(({ name }) => name !== '');
    if (this.#choices > 1 && slot.binding !== 'whole' && !isNamed) {
      throw new Unreadable('a call of a choice begins without a name');
    }
  }

  #argsOf(holder: JsonObject, form: Form, slot: Slot): string {
    const said = form === 'custom' ? [] : [holder.arguments ?? ''];
    const [args = '', more] = [...said, holder.input ?? ''].filter((each) => each !== '');
    const isWhole = isObject(args) && form !== 'custom';
    const isFirst = slot.pieces.every((piece) => piece.args === '');
    const isPlain = typeof args === 'string' || (isWhole && isFirst);
    if (!isPlain || more !== undefined || (slot.isObject && args !== '')) {
      throw new Unreadable('the arguments of a call are no text');
    }
    slot.isObject ||= isWhole;
    // Some hosts send the object itself in place of its text.
    return typeof args === 'string' ? args : this.#passage.source(args);
  }
}

function newReading(): Reading {
  return { ids: [], parts: new Map() };
}

function wholeOf({ readings }: Slot): Reading {
  return readings.get(0)!;
}

function newSegment(id: string | null): Segment {
  return { id, joined: '', heads: new Set(), names: new Set(), args: '' };
}

function add(segment: Segment, { name, args }: Piece): void {
  if (segment.joined.length <= MAX_NAME_CHARS) segment.joined += name;
  if (name !== '') segment.names.add(name);
  if (segment.joined !== '') segment.heads.add(segment.joined);
  segment.args += args;
}

/** Adds a piece to what was made of those before it. */
function tell({ ids, parts }: Reading, piece: Piece, binding: Binding): void {
  const { form, id, name, args } = piece;
  if (id !== '' && ids.at(-1) !== id) ids.push(id);
  if (form === undefined) return;
  const part = parts.get(form) ?? { segments: [], strays: newSegment(null), alone: [] };
  parts.set(form, part);
  const { segments, strays, alone } = part;
  const isStray = id === '' && segments.length > 1;
  add(segmentFor(segments, ids.at(-1) ?? null), piece);
  if (isStray) add(strays, piece);
  // Some clients take whatever has a name for a whole call, and all that have no index for one.
  if (name === '' || !(binding === 'choice' || isWholeText(args))) return;
  const single = newSegment(id || null);
  add(single, piece);
  alone.push(single);
}

function isWholeText(args: string): boolean {
  const text = args.trim();
  return text.startsWith('{') && text.endsWith('}');
}

/** An id that comes late belongs to what had none; another id begins something new. */
function segmentFor(segments: Segment[], id: string | null): Segment {
  const last = segments.at(-1);
  if (last && (last.id === id || last.id === null)) {
    last.id = id;
    return last;
  }
  const segment = newSegment(id);
  segments.push(segment);
  return segment;
}

function versionsOf(slot: Slot): ProposedCall[] {
  const { kind, readings } = slot;
  const whole = wholeOf(slot);
  const [id = null] = whole.ids;
  if (whole.parts.size > 0) {
    return [...readings.values()].flatMap((reading) => callsOf(kind, reading, whole));
  }
  // Some hosts put an empty one of the former kind beside whatever they say.
  return kind === 'function_call' ? [] : [{ kind, id, name: '', args: undefined, argsText: '' }];
}

/** What clients read that each drop the chunks with some of the odds. */
function readingsOf(
  pieces: readonly Piece[],
  binding: Binding,
  signatures: readonly (readonly string[])[],
): ReadonlyMap<number, Reading> {
  const drops = new Set([0]);
  for (const odd of new Set(signatures.flat())) {
    const bits = signatures.map((odds, at) => (odds.includes(odd) ? 1 << at : 0));
    const drop = bits.reduce((all, bit) => all | bit, 0);
    for (const known of [...drops]) drops.add(known | drop);
  }
  const readings = [...drops].map((without) => {
    const reading = newReading();
    for (const piece of pieces) if (isAmong(piece, without)) tell(reading, piece, binding);
    return [without, reading] as const;
  });
  return new Map(readings);
}

function isAmong({ signature }: Piece, without: number): boolean {
  return ((without >> signature) & 1) === 0;
}

/** The names that a call may have by now, whoever reads it. */
function namesSoFar({ readings }: Slot, form: Form): string[] {
  return [...readings.values()].flatMap(({ parts }) => {
    const { segments, strays } = parts.get(form) ?? { segments: [], strays: newSegment(null) };
    const several = [segments, segments.slice(-1), [...segments.slice(0, 1), strays]];
    return several.map((each) => joinedOf(join(null, each))).filter((name) => name !== '');
  });
}

/** What repeats one name until it is too long for any tool's is that name, or nobody's. */
function joinedOf({ joined, names: [name = '', ...others] }: Segment): string {
  return others.length === 0 && joined.length > MAX_NAME_CHARS ? name : joined;
}

/** @param all What all pieces make, for one that lacks its name may have any of those. */
function callsOf(kind: CallKind, { ids, parts }: Reading, all: Reading): ProposedCall[] {
  const [id = null] = ids;
  return [...parts].flatMap(([form, { segments, strays, alone }]) => {
    const whole = join(id, segments);
    const hasStrays = strays.joined !== '' || strays.args !== '';
    const first = hasStrays ? [join(id, [segments[0]!, strays])] : [];
    const several = segments.length > 1 ? [...segments, ...first] : [];
    const named = [whole, join(null, all.parts.get(form)!.segments)];
    return [whole, ...several, ...alone].flatMap((segment) => {
      const namer = [segment, ...named].find(({ joined }) => joined !== '') ?? segment;
      return proposals(kind, form, { ...namer, id: segment.id, args: segment.args });
    });
  });
}

function join(id: string | null, segments: readonly Segment[]): Segment {
  return {
    id,
    joined: segments.map(({ joined }) => joined).join(''),
    heads: headsOf(segments),
    names: new Set(segments.flatMap(({ names }) => [...names])),
    args: segments.map(({ args }) => args).join(''),
  };
}

function headsOf(segments: readonly Segment[]): Set<string> {
  let before = '';
  const all = segments.flatMap(({ joined, heads }) => {
    const longer = [...heads].map((head) => before + head);
    before += joined;
    return longer;
  });
  return new Set(all);
}

function proposals(kind: CallKind, form: Form, segment: Segment) {
  const { id, heads, names, args } = segment;
  const read = form === 'custom' ? freeText(args) : { args: parseArgs(args), argsText: args };
  const joined = joinedOf(segment);
  const begun = joined === segment.joined ? heads : [];
  return [...new Set([joined, ...begun, ...names])].map((name): ProposedCall => {
    return { kind, id: kind === 'function_call' ? name : id, name, ...read };
  });
}
