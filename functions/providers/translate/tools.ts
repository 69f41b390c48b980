/** Tools that the caller runs, and which of them a model may choose. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isGiven, isObject } from '../../../schema/rules/bound.ts';
import { Untranslatable } from './contract.ts';
import { allowOnly, flagOf, nameOf, noCounterpart, objectOf, present } from './members.ts';

const CHAT_TOOL = new Set(['type', 'function']);
const CHAT_FUNCTION = new Set(['name', 'description', 'parameters', 'strict']);
/** The last two are hints: for the upstream's own cache, and on how a stream cuts arguments. */
const CUSTOM_TOOL = new Set([
  ...['type', 'name', 'description', 'input_schema', 'strict'],
  ...['cache_control', 'eager_input_streaming'],
]);
const CHAT_CHOICE = new Set(['type', 'function']);
const CHAT_CHOICE_NAME = new Set(['name']);
const MESSAGE_CHOICE = new Set(['type', 'name', 'disable_parallel_tool_use']);

const NO_PARAMETERS: JsonObject = { type: 'object', properties: {} };

/** A function tool of chat as a custom tool of messages. @throws {Untranslatable} */
export function customTool(tool: Json): JsonObject {
  const value = objectOf(tool, 'tools[]');
  if (value.type !== 'function') throw noCounterpart('tools[].type');
  allowOnly(value, CHAT_TOOL, 'tools[].');
  const declared = objectOf(value.function, 'tools[].function');
  allowOnly(declared, CHAT_FUNCTION, 'tools[].function.');
  const parameters = objectOf(declared.parameters ?? {}, 'tools[].function.parameters');
  const isBare = Object.keys(parameters).length === 0;
  const schema = isBare ? NO_PARAMETERS : parameters;
  if (schema.type !== 'object') throw noCounterpart('tools[].function.parameters.type');
  return present({
    name: nameOf(declared.name, 'tools[].function.name'),
    description: declared.description,
    input_schema: schema,
    strict: flagOf(declared.strict, 'tools[].function.strict') || undefined,
  });
}

/** A custom tool of messages as a function tool of chat. @throws {Untranslatable} */
export function functionTool(tool: Json): JsonObject {
  const value = objectOf(tool, 'tools[]');
  if (isGiven(value.type) && value.type !== 'custom') throw noCounterpart('tools[].type');
  allowOnly(value, CUSTOM_TOOL, 'tools[].');
  const declared = present({
    name: nameOf(value.name, 'tools[].name'),
    description: value.description,
    parameters: objectOf(value.input_schema, 'tools[].input_schema'),
    strict: flagOf(value.strict, 'tools[].strict') || undefined,
  });
  return { type: 'function', function: declared };
}

const TO_MESSAGES: Readonly<Record<string, string>> = {
  none: 'none',
  auto: 'auto',
  required: 'any',
};

/**
 * Chat's choice of tools as that of messages; undefined where neither member says anything.
 *
 * @param parallel Chat's `parallel_tool_calls`.
 * @throws {Untranslatable}
 */
export function messageChoice(
  choice: Json | undefined,
  parallel: Json | undefined,
): JsonObject | undefined {
  const isParallel = flagOf(parallel ?? true, 'parallel_tool_calls');
  if (!isGiven(choice) && isParallel) return undefined;
  const chosen = isGiven(choice) ? messageChoiceOf(choice) : { type: 'auto' };
  const isSingle = !isParallel && chosen.type !== 'none';
  return isSingle ? { ...chosen, disable_parallel_tool_use: true } : chosen;
}

function messageChoiceOf(choice: Json | undefined): JsonObject {
  if (typeof choice === 'string') {
    const type = TO_MESSAGES[choice];
    if (type === undefined) throw noCounterpart('tool_choice');
    return { type };
  }
  const value = objectOf(choice, 'tool_choice');
  if (value.type !== 'function') throw noCounterpart('tool_choice.type');
  allowOnly(value, CHAT_CHOICE, 'tool_choice.');
  const named = objectOf(value.function, 'tool_choice.function');
  allowOnly(named, CHAT_CHOICE_NAME, 'tool_choice.function.');
  return { type: 'tool', name: nameOf(named.name, 'tool_choice.function.name') };
}

/** The choice of tools of messages as chat's members for it. @throws {Untranslatable} */
export function chatChoice(choice: Json | undefined): JsonObject {
  if (!isGiven(choice)) return {};
  const value = objectOf(choice, 'tool_choice');
  allowOnly(value, MESSAGE_CHOICE, 'tool_choice.');
  const field = 'tool_choice.disable_parallel_tool_use';
  const isSingle = flagOf(value.disable_parallel_tool_use, field) && value.type !== 'none';
  return {
    tool_choice: chatChoiceOf(value),
    ...(isSingle ? { parallel_tool_calls: false } : {}),
  };
}

function chatChoiceOf({ type, name }: JsonObject): Json {
  if (type === 'tool') {
    return { type: 'function', function: { name: nameOf(name, 'tool_choice.name') } };
  }
  const known = Object.entries(TO_MESSAGES).find(([, other]) => other === type);
  if (!known) throw noCounterpart('tool_choice.type');
  return known[0];
}

/**
 * Refuses a choice, as messages have it, that makes the model call one of no tools: it would be
 * lost with them.
 *
 * @throws {Untranslatable}
 */
export function refuseForced(choice: Json | undefined): void {
  if (isObject(choice) && (choice.type === 'any' || choice.type === 'tool')) {
    throw new Untranslatable('tool_choice', 'asks for a call where there are no tools');
  }
}
