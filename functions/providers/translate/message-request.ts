/** A request of messages as one of chat completions. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isGiven, isObject } from '../../../schema/rules/bound.ts';
import { Untranslatable } from './contract.ts';
import { numberOf, writeText } from './exact.ts';
import {
  allowOnly,
  callIdOf,
  listOf,
  nameOf,
  noCounterpart,
  objectOf,
  present,
  stringOf,
} from './members.ts';
import { partOf } from './parts.ts';
import { chatChoice, functionTool, refuseForced } from './tools.ts';

/** What is said over. */
const CARRIED = [
  ...['model', 'messages', 'system', 'max_tokens', 'stop_sequences', 'temperature', 'top_p'],
  ...['stream', 'tools', 'tool_choice', 'metadata', 'service_tier'],
];
/** A hint for the upstream's own cache, which says nothing of the answer. */
const LEFT_BEHIND = ['cache_control'];
const KNOWN = new Set([...CARRIED, ...LEFT_BEHIND]);

const MESSAGE = new Set(['role', 'content']);
const METADATA = new Set(['user_id']);
const TOOL_USE = new Set(['type', 'id', 'name', 'input', 'cache_control', 'caller']);
const TOOL_RESULT = new Set(['type', 'tool_use_id', 'content', 'cache_control']);

/** The most stop sequences that chat takes. */
const MAX_STOPS = 4;

/** How the upstream wants to be asked. */
export interface ChatWishes {
  /** The member that limits the output. */
  readonly limitKey: string;
  /** Whether streams report usage unasked, and asking is an error. */
  readonly streamsUsage: boolean;
}

/**
 * Says a message's request over.
 *
 * @param body As `readExact` read it.
 * @param model The model to ask for.
 * @throws {Untranslatable} for whatever chat can't say.
 */
export function toChatRequest(body: JsonObject, model: string, wishes: ChatWishes): JsonObject {
  const { thinking, ...rest } = body;
  const isOff = isObject(thinking) && thinking.type === 'disabled';
  if (isGiven(thinking) && !isOff) throw noCounterpart('thinking');
  allowOnly(rest, KNOWN);
  const tools = listOf(body.tools, 'tools').map(functionTool);
  const choice = chatChoice(body.tool_choice);
  if (tools.length === 0) refuseForced(body.tool_choice);
  const asksUsage = body.stream === true && !wishes.streamsUsage;
  return present({
    model,
    [wishes.limitKey]: body.max_tokens,
    messages: [...systemOf(body.system), ...turnsOf(listOf(body.messages, 'messages'))],
    ...(tools.length > 0 ? { tools, ...choice } : {}),
    stop: stopOf(body.stop_sequences),
    temperature: body.temperature,
    top_p: body.top_p,
    stream: body.stream,
    stream_options: asksUsage ? { include_usage: true } : undefined,
    user: personOf(body.metadata),
    service_tier: tierOf(body.service_tier),
  });
}

function stopOf(stops: Json | undefined): Json | undefined {
  const list = listOf(stops, 'stop_sequences');
  if (list.length <= MAX_STOPS) return list.length > 0 ? [...list] : undefined;
  throw new Untranslatable('stop_sequences', `are more than the ${MAX_STOPS} that chat takes`);
}

function personOf(metadata: Json | undefined): Json | undefined {
  if (!isGiven(metadata)) return undefined;
  const value = objectOf(metadata, 'metadata');
  allowOnly(value, METADATA, 'metadata.');
  return value.user_id;
}

function tierOf(tier: Json | undefined): string | undefined {
  if (!isGiven(tier) || tier === 'auto') return undefined;
  if (tier === 'standard_only') return 'default';
  throw noCounterpart('service_tier');
}

function systemOf(system: Json | undefined): JsonObject[] {
  if (!isGiven(system)) return [];
  return [{ role: 'system', content: contentOf(system, 'system', true) }];
}

function contentOf(content: Json | undefined, field: string, texts = false): Json {
  if (Array.isArray(content)) return content.map((block) => partOf(block, `${field}[]`, texts));
  return stringOf(content, field);
}

function turnsOf(messages: readonly Json[]): JsonObject[] {
  const values = messages.map((message) => objectOf(message, 'messages[]'));
  for (const message of values) allowOnly(message, MESSAGE, 'messages[].');
  if (values.at(-1)?.role === 'assistant') {
    throw new Untranslatable('messages', 'end with the beginning of an answer');
  }
  return values.flatMap((message) => {
    if (message.role === 'user') return userOf(message.content);
    if (message.role === 'assistant') return [assistantOf(message.content)];
    throw noCounterpart('messages[].role');
  });
}

const hasType = (type: string) => (block: Json) => isObject(block) && block.type === type;
const isResult = hasType('tool_result');
const isUse = hasType('tool_use');

function userOf(content: Json | undefined): JsonObject[] {
  const field = 'messages[].content';
  if (!Array.isArray(content)) return [{ role: 'user', content: stringOf(content, field) }];
  if (content.length === 0) throw new Untranslatable(field, 'is empty');
  const firstOther = content.findIndex((block) => !isResult(block));
  const split = firstOther < 0 ? content.length : firstOther;
  const rest = content.slice(split);
  if (rest.some(isResult)) {
    throw new Untranslatable(`${field}[]`, 'has results after other blocks');
  }
  const results = content.slice(0, split).map(toolMessage);
  return rest.length > 0
    ? [...results, { role: 'user', content: contentOf(rest, field) }]
    : results;
}

function toolMessage(block: Json): JsonObject {
  const field = 'messages[].content[]';
  const result = objectOf(block, field);
  allowOnly(result, TOOL_RESULT, `${field}.`);
  return {
    role: 'tool',
    tool_call_id: callIdOf(result.tool_use_id, `${field}.tool_use_id`),
    content: isGiven(result.content) ? contentOf(result.content, `${field}.content`, true) : '',
  };
}

function assistantOf(content: Json | undefined): JsonObject {
  const field = 'messages[].content';
  if (!Array.isArray(content)) return { role: 'assistant', content: stringOf(content, field) };
  const firstUse = content.findIndex(isUse);
  const split = firstUse < 0 ? content.length : firstUse;
  const said = content.slice(0, split).map((block) => partOf(block, `${field}[]`, true));
  const calls = content.slice(split).map((block) => toolCall(block, `${field}[]`));
  if (said.length + calls.length === 0) throw new Untranslatable(field, 'is empty');
  const text = said.length === 1 ? said[0]!.text! : said;
  return {
    role: 'assistant',
    content: said.length === 0 ? null : text,
    ...(calls.length > 0 ? { tool_calls: calls } : {}),
  };
}

/** A block that uses a tool as chat's call of a function. @throws {Untranslatable} */
export function toolCall(block: Json, field: string): JsonObject {
  const use = objectOf(block, field);
  if (use.type !== 'tool_use') {
    throw new Untranslatable(`${field}.type`, 'stands after the use of a tool');
  }
  const { caller, ...rest } = use;
  const isDirect = !isGiven(caller) || (isObject(caller) && caller.type === 'direct');
  if (!isDirect) throw noCounterpart(`${field}.caller`);
  allowOnly(rest, TOOL_USE, `${field}.`);
  const name = nameOf(use.name, `${field}.name`);
  const input = objectOf(use.input, `${field}.input`);
  if (numberOf(input) !== undefined) throw noCounterpart(`${field}.input`);
  return {
    id: callIdOf(use.id, `${field}.id`),
    type: 'function',
    function: { name, arguments: writeText(input) },
  };
}
