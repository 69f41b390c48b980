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
  refuseVariants,
  StrictReader,
  stringOf,
  typeOf,
  Unreadable,
} from './calls.ts';
import type { CallKind, CallReader, ProposedCall } from './contract.ts';
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
  readonly names: readonly string[];
  readonly isFreeText: boolean;
  /** The text of `arguments` or `input`; undefined where the call has other members for them. */
  readonly text: string | undefined;
  /** JSON of those other members. */
  readonly members: string;
  readonly isFinal: boolean;
  readonly strings: readonly string[];
}

/** What is known of the item at one place of the output. */
interface Slot {
  readonly seen: Seen[];
  isHosted: boolean;
  /** Arguments as their deltas make them, and as an event said they were in the end. */
  deltas: string | undefined;
  readonly done: string[];
  /** Other texts that came in deltas, such as the commands of a shell, by what they belong to. */
  readonly others: Map<string, string>;
}

const MAX_SLOTS = 4_096;

/**
 * A reader of responses, whole or streamed.
 *
 * A stream tells each call several times: as it begins, in deltas, as it ends, and in the finished
 * response. Clients go by any of these, so those that differ are calls of their own.
 */
export function readResponseCalls(): CallReader {
  return new StrictReader(new ResponseGatherer());
}

class ResponseGatherer implements Gatherer {
  readonly hint = /_call|mcp_approval/i;
  readonly #slots = new Set<Slot>();
  readonly #byPlace = new Map<string, Slot>();
  #chars = 0;

  take(passage: Passage): string[] {
    const { value } = passage;
    const type = typeOf(passage);
    const response = memberOf(value, 'response');
    refuseVariants(response);
    const names = [value.output, response.output, value.data].flatMap((list) =>
      objectsOf(list).flatMap((item, at) => this.#see(item, `o${at}`, false, passage)),
    );
    if (isObject(value.item)) {
      names.push(...this.#see(value.item, placeOf(value), true, passage));
    } else if (/_call|mcp_approval/i.test(type)) names.push(...this.#continue(value, type));
    return names;
  }

  calls(): ProposedCall[] {
    return [...this.#slots].flatMap(versionsOf);
  }

  #see(item: JsonObject, place: string | undefined, isOwn: boolean, passage: Passage): string[] {
    refuseVariants(item);
    const type = stringOf(item, 'type');
    if (!CALL.test(type)) return [];
    const id = stringOf(item, 'id');
    const slot = this.#slotOf(place, id === '' ? undefined : `i${id}`, isOwn);
    slot.isHosted ||= isHosted(item, type);
    if (isHosted(item, type)) return [];
    const seen = read(item, type, passage);
    this.#count(seen.members.length + (seen.text?.length ?? 0));
    slot.seen.push(seen);
    return [...seen.names];
  }

  /** The place of an item in a list says less than its id, for a list may leave items out. */
  #slotOf(place: string | undefined, id: string | undefined, isPlaceSure: boolean): Slot {
    const atPlace = place === undefined ? undefined : this.#byPlace.get(place);
    const withId = id === undefined ? undefined : this.#byPlace.get(id);
    if (isPlaceSure && atPlace && withId && atPlace !== withId) {
      throw new Unreadable('its calls change their places');
    }
    const isSure = isPlaceSure || id === undefined;
    const slot = withId ?? (isSure ? atPlace : undefined) ?? this.#newSlot();
    if (place !== undefined && isSure) this.#byPlace.set(place, slot);
    if (id !== undefined) this.#byPlace.set(id, slot);
    return slot;
  }

  #newSlot(): Slot {
    if (this.#slots.size >= MAX_SLOTS) throw new Unreadable('it proposes too many calls');
    const slot = { seen: [], isHosted: false, deltas: undefined, done: [], others: new Map() };
    this.#slots.add(slot);
    return slot;
  }

  #continue(event: JsonObject, type: string): string[] {
    const places = [placeOf(event), stringOf(event, 'item_id') && `i${event.item_id}`];
    const slots = places.map((place) => place && this.#byPlace.get(place)).filter((slot) => !!slot);
    if (slots.length === 0) return HOSTED_EVENT.test(type) ? [] : [''];
    if (new Set(slots).size > 1) throw new Unreadable('its calls change their places');
    const slot = slots[0]!;
    this.#addText(slot, event, type);
    return slot.seen.flatMap(({ names }) => names);
  }

  #addText(slot: Slot, event: JsonObject, type: string): void {
    const delta = stringOf(event, 'delta');
    const done = stringOf(event, 'arguments') || stringOf(event, 'input');
    this.#count(delta.length + done.length);
    if (/_call_(?:arguments|input)\./i.test(type)) {
      if (delta !== '') slot.deltas = (slot.deltas ?? '') + delta;
      if (done !== '') slot.done.push(done);
      return;
    }
    if (delta === '' || slot.isHosted) return;
    const key = JSON.stringify([type, event.command_index]);
    slot.others.set(key, (slot.others.get(key) ?? '') + delta);
  }

  #count(chars: number): void {
    this.#chars += chars;
    if (this.#chars > MAX_ARGS_CHARS) throw new Unreadable('its calls are too long');
  }
}

function placeOf({ output_index: index }: JsonObject): string | undefined {
  return typeof index === 'number' ? `o${index}` : undefined;
}

/** A search for tools is the caller's where it says so. */
function isHosted(item: JsonObject, type: string): boolean {
  return HOSTED.has(type) || (type === 'tool_search_call' && item.execution !== 'client');
}

function read(item: JsonObject, type: string, passage: Passage): Seen {
  const text = type === 'custom_tool_call' ? item.input : item.arguments;
  const known = ARGUMENTS[type];
  const keys = known ?? Object.keys(item).filter((key) => !COMMON.has(key));
  const isText = typeof text === 'string' && !known;
  return {
    kind: type as CallKind,
    id: stringOf(item, 'call_id') || stringOf(item, 'id') || null,
    approvalId: type === 'mcp_call' ? stringOf(item, 'approval_request_id') : '',
    names: namesOf(item, type),
    isFreeText: type === 'custom_tool_call',
    text: isText ? text : undefined,
    members: isText ? '' : membersOf(item, keys, passage),
    isFinal: item.status !== 'in_progress',
    strings: isText ? [] : stringsIn(keys.map((key) => item[key] ?? null)),
  };
}

function namesOf(item: JsonObject, type: string): readonly string[] {
  const name = stringOf(item, 'name');
  if (type.startsWith('mcp_')) return [`${stringOf(item, 'server_label')}/${name}`];
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
  const { seen, done, others } = slot;
  const isStarted = slot.deltas !== undefined || done.length > 0 || others.size > 0;
  if (seen.length === 0) return isStarted && !slot.isHosted ? [NAMELESS] : [];
  requireAgreement(seen, others);
  const texts = textsOf(slot);
  const approvalId = approvalOf(seen);
  const textCalls = seen
    .filter(({ text }) => text !== undefined)
    .flatMap((call) => texts.flatMap((text) => proposals(call, text, approvalId)));
  const whole = seen.filter(({ text }) => text === undefined);
  const final = whole.filter(({ isFinal }) => isFinal);
  // What was in progress is only a part of what came to be.
  const shown = final.length > 0 ? final : whole;
  return [...textCalls, ...shown.flatMap((call) => proposals(call, call.members, approvalId))];
}

/** What was approved for a call: its first events may not tell, but those that do have to agree. */
function approvalOf(seen: readonly Seen[]): string | undefined {
  const told = new Set(seen.map(({ approvalId }) => approvalId).filter((id) => id !== ''));
  return told.size === 1 ? [...told][0] : undefined;
}

const NAMELESS: ProposedCall = {
  ...{ kind: 'function_call', id: null, name: '', args: undefined, argsText: '' },
};

/** Every text that a client could take for the arguments. */
function textsOf({ seen, deltas, done }: Slot): readonly string[] {
  const started = seen.find(({ text }) => text !== undefined)?.text ?? '';
  const said = seen.filter(({ text, isFinal }) => text !== undefined && (isFinal || text !== ''));
  const texts = new Set([...said.map(({ text }) => text!), ...done]);
  if (deltas !== undefined) texts.add(deltas);
  // A call that begins with its arguments is whole, unless deltas follow.
  if (deltas !== undefined && started !== '' && !seen[0]!.isFinal) texts.add(started + deltas);
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

/** What came in deltas has to be found in the item, or a client could run something else. */
function requireAgreement(seen: readonly Seen[], others: ReadonlyMap<string, string>): void {
  const strings = seen.filter(({ isFinal }) => isFinal).flatMap((call) => call.strings);
  for (const text of others.values()) {
    if (text !== '' && strings.length > 0 && !strings.includes(text)) {
      throw new Unreadable('the parts of a call differ from the whole');
    }
  }
}
