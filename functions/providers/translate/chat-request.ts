/** A request of chat completions as one of messages. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isGiven } from '../../../schema/rules/bound.ts';
import { Untranslatable } from './contract.ts';
import { numberOf, readExact } from './exact.ts';
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
import { blockOf } from './parts.ts';
import { customTool, messageChoice, refuseForced } from './tools.ts';

/** What is said over. */
const CARRIED = [
  ...['model', 'messages', 'max_tokens', 'max_completion_tokens', 'stop', 'temperature', 'top_p'],
  ...['stream', 'stream_options', 'tools', 'tool_choice', 'parallel_tool_calls'],
  ...['user', 'safety_identifier', 'service_tier'],
];
/** What says nothing of the answer: labels, and hints for the upstream's own cache. */
const LEFT_BEHIND = ['metadata', 'prompt_cache_key', 'prompt_cache_retention'];
/** What says nothing where it has this value. */
const NEUTRAL: Readonly<Record<string, string>> = {
  n: '1',
  frequency_penalty: '0',
  presence_penalty: '0',
  logit_bias: '{}',
  modalities: '["text"]',
  response_format: '{"type":"text"}',
};
const KNOWN = new Set([...CARRIED, ...LEFT_BEHIND]);
const STREAM_OPTIONS = new Set(['include_usage']);

const SYSTEM_MESSAGE = new Set(['role', 'content']);
const TOOL_MESSAGE = new Set(['role', 'content', 'tool_call_id']);
const ASSISTANT_MESSAGE = new Set(['role', 'content', 'tool_calls']);
const TOOL_CALL = new Set(['id', 'type', 'function']);
const CALLED_FUNCTION = new Set(['name', 'arguments']);

const TIERS: Readonly<Record<string, string | undefined>> = {
  auto: undefined,
  default: 'standard_only',
};

/**
 * Says a chat completion's request over.
 *
 * @param body As `readExact` read it.
 * @param model The model to ask for.
 * @param maxTokens The output limit where the body sets none: messages must have one.
 * @throws {Untranslatable} for whatever messages can't say.
 */
export function toMessagesRequest(body: JsonObject, model: string, maxTokens: number): JsonObject {
  allowOnly(withoutNeutral(body), KNOWN);
  const options = objectOf(body.stream_options ?? {}, 'stream_options');
  allowOnly(options, STREAM_OPTIONS, 'stream_options.');
  const { system, messages } = turnsOf(listOf(body.messages, 'messages'));
  const tools = listOf(body.tools, 'tools').map(customTool);
  const choice = messageChoice(body.tool_choice, body.parallel_tool_calls);
  if (tools.length === 0) refuseForced(choice);
  return present({
    model,
    max_tokens: [body.max_completion_tokens, body.max_tokens].find(isGiven) ?? maxTokens,
    system: system.length > 0 ? systemOf(system) : undefined,
    messages,
    tools: tools.length > 0 ? tools : undefined,
    tool_choice: tools.length > 0 ? choice : undefined,
    stop_sequences: stopsOf(body.stop),
    temperature: temperatureOf(body.temperature),
    top_p: body.top_p,
    stream: body.stream,
    metadata: personOf(body),
    service_tier: tierOf(body.service_tier),
  });
}

function withoutNeutral(body: JsonObject): JsonObject {
  const kept = Object.entries(body).filter(([key, value]) => {
    return NEUTRAL[key] === undefined || NEUTRAL[key] !== JSON.stringify(numberOf(value) ?? value);
  });
  return Object.fromEntries(kept);
}

function stopsOf(stop: Json | undefined): Json | undefined {
  return typeof stop === 'string' ? [stop] : stop;
}

function temperatureOf(value: Json | undefined): Json | undefined {
  if ((numberOf(value) ?? 0) <= 1) return value;
  throw new Untranslatable('temperature', 'is over 1, the most that messages take');
}

function personOf({ user, safety_identifier: safe }: JsonObject): JsonObject | undefined {
  if (isGiven(user) && isGiven(safe) && user !== safe) throw noCounterpart('safety_identifier');
  const person = isGiven(safe) ? safe : user;
  return isGiven(person) ? { user_id: stringOf(person, 'user') } : undefined;
}

function tierOf(tier: Json | undefined): string | undefined {
  if (!isGiven(tier)) return undefined;
  const name = stringOf(tier, 'service_tier');
  if (!Object.hasOwn(TIERS, name)) throw noCounterpart('service_tier');
  return TIERS[name];
}

interface Turns {
  readonly system: Json[];
  readonly messages: JsonObject[];
  /** The results that the last message holds, if it holds nothing else. */
  results: Json[] | undefined;
}

function turnsOf(messages: readonly Json[]): Turns {
  const turns: Turns = { system: [], messages: [], results: undefined };
  for (const message of messages) addMessage(turns, objectOf(message, 'messages[]'));
  const ends = [turns.messages[0], turns.messages.at(-1)];
  if (ends.some((message) => message?.role !== 'user')) {
    const reason = 'must begin and end with what is not the assistant’s';
    throw new Untranslatable('messages', reason);
  }
  return turns;
}

function addMessage(turns: Turns, message: JsonObject): void {
  const results = turns.results;
  turns.results = undefined;
  if (message.role === 'system' || message.role === 'developer') addSystem(turns, message);
  else if (message.role === 'user') {
    allowOnly(message, SYSTEM_MESSAGE, 'messages[].');
    turns.messages.push({ role: 'user', content: contentOf(message.content) });
  } else if (message.role === 'assistant') turns.messages.push(assistantOf(message));
  else if (message.role === 'tool') addResult(turns, message, results);
  else throw noCounterpart('messages[].role');
}

function addSystem({ system, messages }: Turns, message: JsonObject): void {
  allowOnly(message, SYSTEM_MESSAGE, 'messages[].');
  if (messages.length > 0) {
    throw new Untranslatable('messages[].role', 'is the system’s after the conversation began');
  }
  system.push(contentOf(message.content, true));
}

function systemOf(contents: readonly Json[]): Json {
  if (contents.length === 1) return contents[0]!;
  return contents.flatMap((content) => {
    return typeof content === 'string' ? [{ type: 'text', text: content }] : content;
  });
}

function contentOf(content: Json | undefined, texts = false): Json {
  if (!isGiven(content)) throw new Untranslatable('messages[].content', 'is empty');
  if (!Array.isArray(content)) return stringOf(content, 'messages[].content');
  return content.map((part) => blockOf(part, 'messages[].content[]', texts));
}

function assistantOf(message: JsonObject): JsonObject {
  allowOnly(message, ASSISTANT_MESSAGE, 'messages[].');
  const calls = listOf(message.tool_calls, 'messages[].tool_calls').map(toolUse);
  if (calls.length === 0) return { role: 'assistant', content: contentOf(message.content, true) };
  const said = isGiven(message.content) ? contentOf(message.content, true) : [];
  const text = typeof said === 'string' ? [{ type: 'text', text: said }] : (said as Json[]);
  return { role: 'assistant', content: [...text, ...calls] };
}

function toolUse(call: Json): JsonObject {
  const field = 'messages[].tool_calls[]';
  const value = objectOf(call, field);
  if (value.type !== 'function') throw noCounterpart(`${field}.type`);
  allowOnly(value, TOOL_CALL, `${field}.`);
  const called = objectOf(value.function, `${field}.function`);
  allowOnly(called, CALLED_FUNCTION, `${field}.function.`);
  return toolUseOf(value.id, called, field);
}

/** A call of a function as a block. @throws {Untranslatable} */
export function toolUseOf(id: Json | undefined, called: JsonObject, field: string): JsonObject {
  const text = stringOf(called.arguments, `${field}.function.arguments`);
  return {
    type: 'tool_use',
    id: callIdOf(id, `${field}.id`),
    name: nameOf(called.name, `${field}.function.name`),
    input: text.trim() === '' ? {} : readExact(text, `${field}.function.arguments`),
  };
}

function addResult(turns: Turns, message: JsonObject, before: Json[] | undefined): void {
  allowOnly(message, TOOL_MESSAGE, 'messages[].');
  const result = {
    type: 'tool_result',
    tool_use_id: callIdOf(message.tool_call_id, 'messages[].tool_call_id'),
    content: message.content === '' ? '' : contentOf(message.content, true),
  };
  turns.results = before ?? [];
  turns.results.push(result);
  // Results of parallel calls belong into one message.
  if (!before) turns.messages.push({ role: 'user', content: turns.results });
}
