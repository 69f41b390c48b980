/** Tool calls of OpenAI's Responses: items of the output, and the events that build them. */

import type { Json, JsonObject } from '../../schema/json.ts';
import { isObject } from '../../schema/rules/bound.ts';
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
  typeOf,
  Unreadable,
  Ways,
} from './calls.ts';
import type { Asked, CallKind, CallReader, ProposedCall } from './contract.ts';
import { memberOf } from './reading.ts';

/** Calls that ran upstream: what a request may declare decides on those. */
const HOSTED = new Set([
  'code_interpreter_call',
  'web_search_call',
  'file_search_call',
  'image_generation_call',
]);
const HOSTED_EVENT = /^response\.(?:code_interpreter|web_search|file_search|image_generation)_call/;
const CALL = /(?:_call|^mcp_approval_request)$/i;

/** Calls whose arguments are a text, in the member of this name. */
const TEXTS: Readonly<Record<string, string>> = {
  function_call: 'arguments',
  custom_tool_call: 'input',
  mcp_call: 'arguments',
  mcp_approval_request: 'arguments',
};

/** The members that hold a call's arguments, where it has no `arguments` and no `input`. */
const ARGUMENTS: Readonly<Record<string, readonly string[]>> = {
  shell_call: ['action'],
  local_shell_call: ['action'],
  apply_patch_call: ['operation'],
  computer_call: ['action', 'actions'],
};
/** What tells nothing of what an unknown call does. */
const COMMON = new Set(['id', 'call_id', 'type', 'status', 'created_by']);

/** One item as one event showed it. */
interface Seen {
  readonly kind: CallKind;
  readonly id: string | null;
  /** Of a call of an MCP server: the request that was approved; empty where none was. */
  readonly approvalId: string;
  /** As the item says it. */
  readonly name: string;
  readonly names: readonly string[];
  readonly isFreeText: boolean;
  /** The text of `arguments` or `input`; undefined where the call has other members for them. */
  readonly text: string | undefined;
  /** JSON of those other members. */
  readonly members: string;
  /** Whether its beginning showed it. */
  readonly isStart: boolean;
  readonly isFinal: boolean;
  readonly strings: readonly string[];
}

/** What is known of the item at one place of the output. */
interface Slot {
  readonly seen: Seen[];
  isHosted: boolean;
  /** Whether it is a call of free text that an event has told whole. */
  isEnded: boolean;
  /** Whether events told it by itself, and whether a list of items has it. */
  isStreamed: boolean;
  isListed: boolean;
  /** In which turn of the places its parts come. */
  readonly turn: number;
  /** Whether its events say where it stands, or none of the answer do, as at some hosts. */
  isPlaced: boolean;
  /** Whether its beginning stands in what was read before this answer. */
  readonly isResumed: boolean;
  /** Arguments as the deltas of each type make them, and as events said they were in the end. */
  readonly deltas: Map<string, string>;
  readonly done: string[];
  /** Names that other events gave the call. */
  readonly told: Set<string>;
  /** Other texts that came in deltas, such as the commands of a shell, by what they belong to. */
  readonly others: Map<string, string>;
}

/** Where an item stands. */
interface Standing {
  readonly place: string | undefined;
  /** Of an item of a list: the slots of those before it. */
  readonly others?: Set<Slot>;
  /** Whether the event says that the item begins. */
  readonly isStart?: boolean;
  /** Whether it says that the item is whole. */
  readonly isEnd?: boolean;
}

const MAX_SLOTS = 4_096;
/** The events that end a stream. */
const END = /^response\.(?:completed|failed|incomplete)$/;

/**
 * A reader of responses, whole or streamed.
 *
 * A stream tells each call several times: as it begins, in deltas, as it ends, and in the finished
 * response. Clients go by any of these, so those that differ are calls of their own.
 */
export function readResponseCalls({ isResumed = false }: Asked = {}): CallReader {
  return new StrictReader(new ResponseGatherer(isResumed));
}

class ResponseGatherer implements Gatherer {
  readonly hint = /_call|mcp_approval|response\.(?:completed|failed|incomplete)/i;
  readonly nearby = /"output_index"/i;
  readonly #isResumed: boolean;
  readonly #slots = new Set<Slot>();
  readonly #byPlace = new Map<string, Slot>();
  readonly #ways = new Ways();
  /** Where the event before it stands, of those that stand somewhere. */
  #place: string | undefined;
  /** How often that has changed. */
  #turn = 0;
  #isOver = false;
  #chars = 0;

  /** @param isResumed Whether calls may have begun in another answer. */
  constructor(isResumed: boolean) {
    this.#isResumed = isResumed;
  }

  take(passage: Passage): string[] {
    const { value } = passage;
    const type = typeOf(passage);
    this.glance(passage);
    const response = memberOf(value, 'response');
    refuseVariants(response);
    const names = [value.output, response.output, value.data].flatMap((list) =>
      this.#seeAll(list, passage),
    );
    if (isObject(value.item)) {
      const isStart = type === 'response.output_item.added';
      const isEnd = type === 'response.output_item.done';
      names.push(...this.#see(value.item, passage, { place: placeOf(passage), isStart, isEnd }));
    } else if (/_call|mcp_approval/i.test(type)) names.push(...this.#continue(type, passage));
    if (this.#isOver && names.length > 0) throw new Unreadable('a call goes on after the end');
    this.#isOver ||= END.test(type);
    return names;
  }

  /** Some clients take what comes after events of another place for something new. */
  glance(passage: Passage): void {
    if (!('output_index' in passage.value)) return;
    // To those clients, no place is one too.
    const place = placeOf(passage) ?? 'none';
    if (place !== this.#place) this.#turn++;
    this.#place = place;
  }

  calls(): ProposedCall[] {
    const told = [...this.#slots].map((slot) => ({ slot, calls: versionsOf(slot) }));
    const untold = new Repeats(told.filter(({ slot }) => slot.isStreamed && !slot.isListed));
    return told.flatMap(({ slot, calls }) => (slot.isStreamed ? calls : untold.mark(calls)));
  }

  finish(): void {
    for (const slot of this.#slots) requireWhole(slot);
  }

  #seeAll(list: Json | undefined, passage: Passage): string[] {
    if (isObject(list)) throw new Unreadable('its items are no list');
    const others = new Set<Slot>();
    return objectsOf(list).flatMap((item, at) => {
      return this.#see(item, passage, { place: `o${at}`, others });
    });
  }

  #see(item: JsonObject, passage: Passage, at: Standing): string[] {
    refuseVariants(item);
    const type = plainText(item, 'type');
    if (!CALL.test(type)) return [];
    const slot = this.#slotOf(item, at);
    if (at.others) slot.isListed = true;
    else slot.isStreamed = true;
    slot.isHosted ||= isHosted(item, type);
    if (isHosted(item, type)) return [];
    const seen = read(item, type, passage, at.isStart ?? false);
    if (seen.isStart && slot.seen.some(({ isStart }) => isStart)) {
      throw new Unreadable('a call begins twice');
    }
    // Some clients join what both say.
    if (at.isEnd && slot.isEnded) throw new Unreadable('a call ends twice');
    slot.isEnded ||= (at.isEnd ?? false) && seen.isFreeText;
    this.#count(seen.members.length + (seen.text?.length ?? 0));
    slot.seen.push(seen);
    return [...seen.names];
  }

  /**
   * The place of an item in a list says less than its id, for a list may leave items out. Two of
   * one list are never the same, whatever their ids say. What streams without either goes by its
   * call's id, which the events after it name as the item's.
   */
  #slotOf(item: JsonObject, { place, others }: Standing): Slot {
    const id = plainText(item, 'id') || (place === undefined ? plainText(item, 'call_id') : '');
    const key = id === '' ? undefined : `i${id}`;
    const atPlace = place === undefined ? undefined : this.#byPlace.get(place);
    const withId = key === undefined ? undefined : this.#byPlace.get(key);
    if (!others && atPlace && withId && atPlace !== withId) {
      throw new Unreadable('its calls change their places');
    }
    const isSure = !others || key === undefined;
    const known = withId ?? (isSure ? atPlace : undefined);
    if (known && others?.has(known)) return this.#newSlot();
    const slot = known ?? this.#newSlot();
    others?.add(slot);
    if (place !== undefined && isSure) this.#byPlace.set(place, slot);
    if (key !== undefined) this.#byPlace.set(key, slot);
    return slot;
  }

  #newSlot(isResumed = false): Slot {
    if (this.#slots.size >= MAX_SLOTS) throw new Unreadable('it proposes too many calls');
    const slot = {
      ...{ seen: [], isHosted: false, isEnded: false, isPlaced: true, isResumed },
      ...{ isStreamed: false, isListed: false },
      turn: this.#turn,
      ...{ deltas: new Map(), done: [], told: new Set<string>(), others: new Map() },
    };
    this.#slots.add(slot);
    return slot;
  }

  #continue(type: string, passage: Passage): string[] {
    const { value } = passage;
    const id = plainText(value, 'item_id');
    const keys = [placeOf(passage), id === '' ? undefined : `i${id}`];
    const [atPlace, withId] = keys.map((key) => key && this.#byPlace.get(key));
    const slot = atPlace || withId || this.#begunBefore(type, keys);
    if (!slot) return [];
    const isMoved = (withId && withId !== slot) || (keys[0] !== undefined && !atPlace && withId);
    if (isMoved) throw new Unreadable('its calls change their places');
    // Some clients go by the place, others by the id, and pass over what they don't find by it.
    const isFound = keys.map((key) => this.#byPlace.get(key ?? '') === slot);
    this.#ways.require(slot, passage.event === undefined, ...isFound);
    slot.isPlaced = isFound[0]! || this.#place === undefined;
    this.#addText(slot, type, passage);
    const name = plainText(value, 'name');
    if (name !== '') slot.told.add(name);
    requireOneName(slot);
    return slot.isHosted || slot.seen.length > 0 ? slot.seen.flatMap(({ names }) => names) : [''];
  }

  /** The slot of a call that began in what came before a stream that was taken up again. */
  #begunBefore(type: string, keys: readonly (string | undefined)[]): Slot | undefined {
    if (HOSTED_EVENT.test(type)) return undefined;
    if (!this.#isResumed) throw new Unreadable('a call goes on that has not begun');
    const slot = this.#newSlot(true);
    slot.isStreamed = true;
    for (const key of keys) if (key !== undefined) this.#byPlace.set(key, slot);
    return slot;
  }

  #addText(slot: Slot, type: string, passage: Passage): void {
    const { value } = passage;
    const delta = plainText(value, 'delta');
    const done = [plainText(value, 'arguments'), plainText(value, 'input')].filter(
      (text) => text !== '',
    );
    this.#count(delta.length + done.join('').length);
    // Some clients add it to what the item ended with.
    if (delta !== '' && slot.seen.some(({ isStart }) => !isStart)) {
      throw new Unreadable('a call goes on after its end');
    }
    if (/_call_(?:arguments|input)\./i.test(type)) {
      if (delta !== '' && slot.turn !== this.#turn) {
        throw new Unreadable('the parts of its calls take turns');
      }
      // A client goes by one type of events: it joins those, and no others to them.
      if (delta !== '') slot.deltas.set(type, (slot.deltas.get(type) ?? '') + delta);
      slot.done.push(...done);
      return;
    }
    if (delta === '' || slot.isHosted) return;
    const key = JSON.stringify([type, plainIndex(passage, value, 'command_index')]);
    slot.others.set(key, (slot.others.get(key) ?? '') + delta);
  }

  #count(chars: number): void {
    this.#chars += chars;
    if (this.#chars > MAX_ARGS_CHARS) throw new Unreadable('its calls are too long');
  }
}

/**
 * Calls that events told and no list has. Some hosts give each call another id in the finished
 * response: a client goes by the events or by that, so that one of each is one call.
 */
class Repeats {
  readonly #slots: ReadonlyMap<string, { readonly slot: Slot }[]>;
  readonly #taken = new Set<Slot>();

  constructor(told: readonly { readonly slot: Slot; readonly calls: readonly ProposedCall[] }[]) {
    const said = told.flatMap(({ slot, calls }) => {
      return calls.map((call) => ({ slot, key: saidBy(call) }));
    });
    this.#slots = Map.groupBy(said, ({ key }) => key);
  }

  /** Marks what a list says of a call, if it is one of those that no other has been found to be. */
  mark(calls: readonly ProposedCall[]): readonly ProposedCall[] {
    const [call] = calls;
    if (!call || calls.length > 1 || !(call.kind in NOTHING)) return calls;
    const { slot } =
      this.#slots.get(saidBy(call))?.find((each) => !this.#taken.has(each.slot)) ?? {};
    if (!slot) return calls;
    this.#taken.add(slot);
    return [{ ...call, isRepeat: true }];
  }
}

function placeOf(passage: Passage): string | undefined {
  const index = plainIndex(passage, passage.value, 'output_index');
  return index === undefined ? undefined : `o${index}`;
}

/** A search for tools is the caller's where it says so. */
function isHosted(item: JsonObject, type: string): boolean {
  return HOSTED.has(type) || (type === 'tool_search_call' && item.execution !== 'client');
}

function read(item: JsonObject, type: string, passage: Passage, isStart: boolean): Seen {
  const key = TEXTS[type];
  // What an unknown call does may be told in any of its members.
  const isText = key !== undefined || (!(type in ARGUMENTS) && typeof item.arguments === 'string');
  const keys = ARGUMENTS[type] ?? Object.keys(item).filter((each) => !COMMON.has(each));
  return {
    kind: type as CallKind,
    id: plainText(item, 'call_id') || plainText(item, 'id') || null,
    approvalId: type === 'mcp_call' ? plainText(item, 'approval_request_id') : '',
    name: plainText(item, 'name'),
    names: namesOf(item, type),
    isFreeText: type === 'custom_tool_call',
    text: isText ? plainText(item, key ?? 'arguments') : undefined,
    members: isText ? '' : membersOf(item, keys, passage),
    isStart,
    isFinal: !isStart || plainText(item, 'status') !== 'in_progress',
    strings: isText ? [] : stringsIn(keys.map((each) => item[each] ?? null)),
  };
}

function namesOf(item: JsonObject, type: string): readonly string[] {
  const name = plainText(item, 'name');
  if (type.startsWith('mcp_')) return [name && `${plainText(item, 'server_label')}/${name}`];
  if (type === 'function_call' || type === 'custom_tool_call') return [name];
  const tool = type.slice(0, -'_call'.length);
  // What a client makes of a kind unknown here may go by either.
  return type in ARGUMENTS || name === '' ? [tool] : [tool, name];
}

function membersOf(item: JsonObject, keys: readonly string[], passage: Passage): string {
  const sourceOf = (member: Json) =>
    typeof member === 'object' && member !== null ? passage.source(member) : JSON.stringify(member);
  const [only] = keys;
  if (keys.length === 1 && isObject(item[only!])) return sourceOf(item[only!]!);
  const given = keys.filter((key) => item[key] !== undefined);
  return `{${given.map((key) => `${JSON.stringify(key)}:${sourceOf(item[key]!)}`).join(',')}}`;
}

function stringsIn(values: readonly Json[]): string[] {
  return values.flatMap((value) => {
    if (typeof value === 'string') return [value];
    return typeof value === 'object' && value !== null ? stringsIn(Object.values(value)) : [];
  });
}

function versionsOf(slot: Slot): ProposedCall[] {
  const { seen, done, deltas, others, isHosted } = slot;
  const isStarted = deltas.size > 0 || done.length > 0 || others.size > 0;
  if (seen.length === 0) return isStarted && !isHosted ? [NAMELESS] : [];
  requireAgreement(seen, others);
  requireOneName(slot);
  const texts = textsOf(slot);
  const approvalId = approvalOf(seen);
  const textCalls = seen
    .filter(({ text }) => text !== undefined)
    .flatMap((call) => texts.flatMap((text) => proposals(call, text, approvalId)));
  const whole = seen.filter(({ text }) => text === undefined);
  const final = whole.filter(({ isFinal }) => isFinal);
  // What was in progress as it began is only a part of what came to be.
  const shown = final.length > 0 ? final : whole;
  const calls = [
    ...textCalls,
    ...shown.flatMap((call) => proposals(call, call.members, approvalId)),
  ];
  // A beginning may leave out the name that the end has.
  const named = calls.filter(({ name }) => name !== '');
  return named.length > 0 ? named : calls;
}

/** Of a call that began before, the end has to come, and to end as its deltas did. */
function requireWhole({ isResumed, seen, done, deltas }: Slot): void {
  if (!isResumed) return;
  const said = [...done, ...seen.flatMap(({ text }) => text ?? [])];
  const isSaid = [...deltas.values()].every((rest) => said.every((text) => text.endsWith(rest)));
  if (seen.length > 0 && isSaid) return;
  throw new Unreadable('the end of a call differs from its parts');
}

/** What was approved for a call: its first events may not tell, but those that do have to agree. */
function approvalOf(seen: readonly Seen[]): string | undefined {
  const told = new Set(seen.map(({ approvalId }) => approvalId).filter((id) => id !== ''));
  return told.size === 1 ? [...told][0] : undefined;
}

const NAMELESS: ProposedCall = {
  ...{ kind: 'function_call', id: null, name: '', args: undefined, argsText: '' },
};

/** What the arguments of a call are to a client that found none. */
const NOTHING: Readonly<Record<string, string>> = { function_call: '{}', custom_tool_call: '' };

const deltaOf = ({ kind }: Seen) => `response.${kind}_${TEXTS[kind]}.delta`;

/** Every text that a client could take for the arguments. */
function textsOf({ seen, deltas, done, isPlaced, isResumed }: Slot): readonly string[] {
  const begun = seen.find(({ isStart }) => isStart);
  const started = begun?.text ?? '';
  const said = seen.filter(({ text, isFinal }) => text !== undefined && (isFinal || text !== ''));
  const joined = isResumed ? [] : [...deltas.values()];
  // A call that begins with its arguments is whole, unless deltas follow.
  const continued = started === '' ? [] : joined.map((text) => started + text);
  const texts = new Set([...said.map(({ text }) => text!), ...done, ...joined, ...continued]);
  // Some clients know arguments from deltas at its place alone, and run the call without any.
  const isUntold = begun && started === '' && !(isPlaced && deltas.has(deltaOf(begun)));
  const nothing = isUntold ? NOTHING[begun.kind] : undefined;
  if (texts.size > 0 && !texts.has('') && nothing !== undefined) texts.add(nothing);
  return texts.size > 0 ? [...texts] : [''];
}

function proposals(
  { kind, id, names, isFreeText }: Seen,
  text: string,
  approvalId: string | undefined,
): ProposedCall[] {
  const read = isFreeText ? freeText(text) : { args: parseArgs(text), argsText: text };
  const approved = approvalId === undefined ? {} : { approvalId };
  return names.map((name) => ({ kind, id, name, ...read, ...approved }));
}

/** The end of the arguments says whose they are, and some clients go by that. */
function requireOneName({ seen, told }: Slot): void {
  const names = new Set(seen.map(({ name }) => name).filter((name) => name !== ''));
  if (names.size === 0 || [...told].every((name) => names.has(name))) return;
  throw new Unreadable('the parts of a call differ from the whole');
}

/** What came in deltas has to be found in the item, or a client could run something else. */
function requireAgreement(seen: readonly Seen[], others: ReadonlyMap<string, string>): void {
  const strings = seen.filter(({ isFinal }) => isFinal).flatMap((call) => call.strings);
  for (const text of others.values()) {
    if (text !== '' && strings.length > 0 && !strings.includes(text)) {
      throw new Unreadable('the parts of a call differ from the whole');
    }
  }
}
