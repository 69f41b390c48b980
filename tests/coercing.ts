/** Readers of streams that make something of whatever stands there, as clients do. */

import type { Json, JsonObject } from '../schema/json.ts';

/** A call that such a reader would run. */
export interface Coerced {
  readonly name: string;
  readonly args: Json;
}

/** One event of a stream: its name, where it has one, and its data. */
export interface Told {
  readonly event: string | undefined;
  readonly data: JsonObject;
}

interface Pieces {
  readonly id?: string | undefined;
  readonly key?: string;
  name: string;
  args: string;
}

// biome-ignore lint/suspicious/noExplicitAny: such readers look at nothing before they read it.
type Loose = any;

const text = (value: Loose) => (value === undefined || value === null ? '' : String(value));
const listOf = (value: Loose): Loose[] =>
  value !== null && typeof value === 'object' ? Object.values(value) : [];

/** Those that have a name and arguments that are an object. */
function finished(pieces: Iterable<Pieces>): Coerced[] {
  return [...pieces].flatMap(({ name, args }) => {
    try {
      const read = JSON.parse(args) as Json;
      const isObject = typeof read === 'object' && read !== null && !Array.isArray(read);
      return name !== '' && isObject ? [{ name, args: read }] : [];
    } catch {
      return [];
    }
  });
}

/** How a reader of chunks tells choices and calls apart. */
interface ChatWay {
  readonly choice: (choice: Loose, position: number) => string | undefined;
  /** Whether the first of several names counts. */
  readonly isFirstName: boolean;
  /** Whether another id is another call. */
  readonly byId: boolean;
  /** What chunks are passed over, by themselves and by whose words they are. */
  readonly isDropped: (chunk: Loose, role: Loose) => boolean;
  /** Whether a message takes the place of what the deltas made. */
  readonly isReplaced: boolean;
}

const isTextOrNone = (value: Loose) =>
  value === undefined || value === null || text(value) === value;

/** What a schema of chunks says of those members that the calls of a chunk don't depend on. */
function fits(chunk: Loose): boolean {
  const isCountOrNone = typeof (chunk.created ?? 0) === 'number';
  const texts = listOf(chunk.choices).flatMap((choice) => [
    choice?.finish_reason,
    choice?.delta?.content,
    ...listOf(choice?.delta?.tool_calls).flatMap((call) => [call?.id, call?.function?.name]),
  ]);
  return isCountOrNone && [chunk.id, chunk.model, ...texts].every(isTextOrNone);
}

const deltasOf = (chunk: Loose) => listOf(chunk.choices).map((choice) => choice?.delta ?? {});
const isNone = (value: Loose) => (value ?? null) === null;

/** What some client looks at, beside calls, before it takes a chunk. */
const DROPS: readonly ChatWay['isDropped'][] = [
  () => false,
  (chunk) => !fits(chunk),
  ({ object }) => object !== 'chat.completion.chunk',
  (chunk, role) =>
    role !== 'assistant' || deltasOf(chunk).some(({ content }) => !isTextOrNone(content)),
  (chunk) => deltasOf(chunk).some(({ role }) => !isNone(role) && role !== 'assistant'),
  (chunk) => deltasOf(chunk).some(({ reasoning }) => !isTextOrNone(reasoning)),
  (chunk) => deltasOf(chunk).some(({ reasoning_content }) => !isTextOrNone(reasoning_content)),
  ...['', null, 'custom'].map(
    (type) => (chunk: Loose) =>
      deltasOf(chunk).some(({ tool_calls }) =>
        listOf(tool_calls).some((call) => call?.type === type),
      ),
  ),
  (chunk) =>
    deltasOf(chunk).some(({ tool_calls }) =>
      listOf(tool_calls).some((call) => Number(call?.extra_content) > 0),
    ),
  ({ x_groq }) =>
    !isNone(x_groq) &&
    !listOf([x_groq]).every(({ usage }) => isNone(usage) || usage === Object(usage)),
  ({ x_groq }) => !isNone(x_groq) && x_groq !== Object(x_groq),
  ({ usage }) => !isTextOrNone(usage) && typeof (usage.prompt_cache_hit_tokens ?? 0) !== 'number',
  ({ usage }) => !isNone(usage) && typeof usage.total_tokens !== 'number',
  ({ usage }) => !isNone(usage?.cost) && typeof usage.cost !== 'number',
];

function readChat(events: readonly Told[], way: ChatWay): Coerced[] {
  const calls: Pieces[] = [];
  const add = (key: string, id: string | undefined, holder: Loose) => {
    const isSame = (each: Pieces) =>
      each.key === key && (!way.byId || !each.id || !id || each.id === id);
    let call = calls.find(isSame);
    if (!call) {
      call = { key, id, name: '', args: '' };
      calls.push(call);
    }
    if (!way.isFirstName || call.name === '') call.name += text(holder?.name);
    call.args += text(holder?.arguments);
  };
  // Some run a call as soon as another begins or a chunk says that it ends, or stop reading it.
  const early: Coerced[] = [];
  const isEarly = way.choice === byIndex && !way.byId && !way.isReplaced;
  let role: Loose;
  for (const { data } of events) {
    if (isEarly) early.push(...finished(calls));
    role = deltasOf(data)[0]?.role ?? role;
    if (way.isDropped(data, role)) continue;
    for (const [position, choice] of listOf(data.choices).entries()) {
      const key = way.choice(choice, position);
      if (key === undefined) continue;
      if (way.isReplaced && !isNone(choice?.message)) {
        calls.splice(0, calls.length, ...calls.filter((call) => !call.key?.startsWith(`${key}/`)));
        for (const [at, call] of listOf(choice.message.tool_calls).entries()) {
          add(`${key}/${at}`, text(call?.id), call?.function);
        }
      }
      for (const call of listOf(choice?.delta?.tool_calls)) {
        add(`${key}/${call?.index}`, text(call?.id), call?.function);
      }
      const former = choice?.delta?.function_call;
      if (former) add(`${key}/former`, undefined, former);
    }
  }
  return [...early, ...finished(calls)];
}

const CHOICES: readonly ChatWay['choice'][] = [
  (choice) => String(choice?.index),
  (_, position) => String(position),
  (_, position) => (position === 0 ? '0' : undefined),
  () => 'all',
];
const FLAGS = [true, false];
const [byIndex] = CHOICES;
const CHAT_WAYS = FLAGS.flatMap((isFirstName) => [
  ...CHOICES.flatMap((choice) =>
    FLAGS.flatMap((byId) =>
      DROPS.slice(0, 2).map(
        (isDropped): ChatWay => ({ choice, isFirstName, byId, isDropped, isReplaced: false }),
      ),
    ),
  ),
  ...DROPS.flatMap((isDropped) =>
    FLAGS.map(
      (isReplaced): ChatWay => ({
        ...{ choice: byIndex!, isFirstName, byId: false, isDropped, isReplaced },
      }),
    ),
  ),
]);

/** How a reader of a message finds the block that a delta belongs to. */
interface MessageWay {
  readonly isByPlace: boolean;
  readonly isNamed: boolean;
  readonly endsAtStop: boolean;
  /** Whether an input is what the deltas make, whatever its block began with. */
  readonly isFromDeltas: boolean;
}

/** JSON whose end is still to come, as readers of such take it. */
function closed(text: string): string {
  const whole = [text || '{}', `${text.replace(/,\s*$/, '')}}`].find((each) => {
    try {
      return Boolean(JSON.parse(each));
    } catch {
      return false;
    }
  });
  return whole ?? text;
}

function readMessage(events: readonly Told[], way: MessageWay): Coerced[] {
  const blocks: { block: Loose; key: string; deltas: string; isOver: boolean }[] = [];
  const blockAt = (index: Loose) =>
    way.isByPlace ? blocks.at(Number(index)) : blocks.findLast(({ key }) => key === String(index));
  const begin = (block: Loose, index: Loose) => {
    blocks.push({ block, key: String(index), deltas: '', isOver: false });
  };
  const early: Coerced[] = [];
  const argsOf = ({ block, deltas }: (typeof blocks)[number]) =>
    deltas === '' && !way.isFromDeltas ? JSON.stringify(block.input) : deltas || '{}';
  for (const { event, data } of events) {
    const { type, index, delta, message, content_block }: Loose = data;
    if (way.isNamed && event === undefined) continue;
    if (type === 'message_start') listOf(message?.content).forEach(begin);
    if (type === 'content_block_start') begin(content_block, index);
    const at = blockAt(index);
    const last = blocks.at(-1);
    if (type === 'content_block_stop' && last?.block?.type === 'tool_use') {
      early.push(...finished([{ name: text(last.block.name), args: closed(argsOf(last)) }]));
    }
    if (type === 'content_block_stop' && at && way.endsAtStop) at.isOver = true;
    const isInput = type === 'content_block_delta' && delta?.type === 'input_json_delta';
    if (isInput && at && !at.isOver) at.deltas += text(delta.partial_json);
  }
  const uses = blocks.filter(({ block }) => block?.type === 'tool_use');
  const all = uses.map((use) => ({ name: text(use.block.name), args: argsOf(use) }));
  return [...early, ...finished(all)];
}

const MESSAGE_WAYS = FLAGS.flatMap((isByPlace) =>
  FLAGS.flatMap((isNamed) =>
    FLAGS.flatMap((endsAtStop) =>
      FLAGS.map((isFromDeltas): MessageWay => ({ isByPlace, isNamed, endsAtStop, isFromDeltas })),
    ),
  ),
);

const EVENT = 'response.function_call_arguments';

/** @param keys The members by which the events of a call find each other. */
function readResponse(events: readonly Told[], keys: readonly [string, string]): Coerced[] {
  const [ofEvent, ofItem] = keys;
  const calls = new Map<string, Pieces>();
  const items: Pieces[] = [];
  const see = (item: Loose) => {
    if (item?.type !== 'function_call') return;
    items.push({ name: text(item.name), args: text(item.arguments) });
  };
  for (const { data } of events) {
    const { type, item, response, delta, arguments: whole }: Loose = data;
    const call = calls.get(String(data[ofEvent]));
    if (type === 'response.output_item.added' && item?.type === 'function_call') {
      const key = String(ofItem === 'id' ? item.id : data[ofItem]);
      const begun = calls.get(key) ?? { name: '', args: '' };
      begun.name += text(item.name);
      begun.args += text(item.arguments);
      calls.set(key, begun);
    }
    if (type === `${EVENT}.delta` && call) call.args += text(delta);
    if (type === `${EVENT}.done` && call) items.push({ name: call.name, args: text(whole) });
    if (type === `${EVENT}.done`) items.push({ name: text(data.name), args: text(whole) });
    if (type === 'response.output_item.done') see(item);
    listOf(response?.output).forEach(see);
  }
  // To some, which go by places, a call of which no delta came has no arguments.
  const nothing = ofEvent === 'output_index' ? '{}' : '';
  const begun = [...calls.values()].map(({ name, args }) => ({ name, args: args || nothing }));
  return finished([...begun, ...items]);
}

/** Takes whatever comes after an event of another place for another call. */
function readResponseInTurn(events: readonly Told[]): Coerced[] {
  const calls: Pieces[] = [];
  let place: Loose;
  for (const { data } of events) {
    const { type, item, delta, output_index: index }: Loose = data;
    if (index !== undefined && index !== place) calls.push({ name: '', args: '' });
    place = index ?? place;
    const isCall = /^(?:function|custom_tool)_call$/.test(item?.type);
    const isWhole = type === 'response.output_item.done' && item?.type === 'custom_tool_call';
    const isBegun = type === 'response.output_item.added' && item?.type === 'function_call';
    const call = calls.at(-1);
    if (call && isCall && (isBegun || isWhole)) call.name += text(item.name);
    if (call && isWhole) call.args += JSON.stringify({ input: text(item.input) });
    if (type === `${EVENT}.delta` && call) call.args += text(delta);
  }
  return finished(calls.map(({ name, args }) => ({ name, args: closed(args) })));
}

const RESPONSE_WAYS = [
  ['output_index', 'output_index'],
  ['item_id', 'id'],
] as const;

/** All calls that any of the readers of a dialect would run. */
export function coerced(endpoint: string, events: readonly Told[]): Coerced[] {
  if (endpoint === 'messages') return MESSAGE_WAYS.flatMap((way) => readMessage(events, way));
  if (endpoint === 'chat.completions') return CHAT_WAYS.flatMap((way) => readChat(events, way));
  return [
    ...RESPONSE_WAYS.flatMap((way) => readResponse(events, way)),
    ...readResponseInTurn(events),
  ];
}
