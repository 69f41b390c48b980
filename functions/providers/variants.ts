/** Keys below the top of a request that readers who fold the case of keys could read as others. */

import { fold, type Json, type JsonObject } from '../../schema/json.ts';
import { invalid, isObject } from '../../schema/rules/bound.ts';
import type { Endpoint } from './contract.ts';

/**
 * The keys that are read of an object, and what is read of the objects that they hold. What stands
 * under any other key is the caller's own: schemas, arguments and metadata have keys of any kind.
 */
interface Shape extends ReadonlyMap<string, Shape | null> {}

/** @param nested Keys that hold objects of the same shape; a list stands for what is in it. */
function shapeOf(keys: readonly string[], nested: readonly string[] = []): Shape {
  const shape = new Map<string, Shape | null>(keys.map((key) => [key, null]));
  for (const key of nested) shape.set(key, shape);
  return shape;
}

/** A tool as any dialect declares or chooses it, and a server of tools. */
const TOOL = shapeOf(
  [
    ...['type', 'name', 'max_uses', 'mcp_server_name', 'url'],
    ...['server_label', 'server_url', 'connector_id', 'tunnel_id', 'tool_names'],
  ],
  [
    ...['function', 'custom', 'tools', 'environment'],
    ...['allowed_tools', 'require_approval', 'always', 'never'],
  ],
);

/** A message of a chat, and a part of one. */
const MESSAGE = shapeOf(
  ['role', 'name', 'tool_call_id', 'audio', 'type', 'url', 'detail'],
  ['content', 'image_url'],
);

/** An item of a response's input, and a part of one. */
const ITEM = new Map(
  shapeOf(
    [
      ...['type', 'role', 'id', 'call_id', 'status', 'encrypted_content'],
      ...['server_label', 'name', 'arguments', 'approval_request_id', 'approve'],
      ...['image_url', 'file_id', 'detail'],
    ],
    ['content', 'output'],
  ),
).set('tools', TOOL);

/** A message of Anthropic's, a block of one, and what a block is made from. */
const BLOCK = shapeOf(['role', 'type', 'data', 'tool_use_id'], ['content', 'source']);

const MESSAGES: Shape = new Map([
  ...['tools', 'tool_choice', 'mcp_servers'].map((key) => [key, TOOL] as const),
  ...['system', 'messages'].map((key) => [key, BLOCK] as const),
  ['context_management', shapeOf(['type'], ['edits'])],
]);

/** What is read of the body of an endpoint, by its name; no more than the top of all others. */
const BODIES: ReadonlyMap<string, Shape> = new Map([
  [
    'chat.completions',
    new Map([
      ...['tools', 'functions', 'tool_choice', 'function_call'].map((key) => [key, TOOL] as const),
      ['messages', MESSAGE],
      ['stream_options', shapeOf(['include_usage'])],
    ]),
  ],
  ['completions', new Map([['stream_options', shapeOf(['include_usage'])]])],
  [
    'responses.create',
    new Map([
      ...['tools', 'tool_choice'].map((key) => [key, TOOL] as const),
      ['input', ITEM],
      ['reasoning', shapeOf(['mode'])],
    ]),
  ],
  ['messages', MESSAGES],
  ['messages.count_tokens', MESSAGES],
]);

const NONE: Shape = new Map();

/**
 * Refuses a body in which a key below the top equals one that is read there but for case or
 * compatibility forms, as `parseStrict` does for those at the top.
 *
 * @throws {Refusal} `invalid_body`.
 */
export function refuseVariants({ name }: Endpoint, body: JsonObject): void {
  const place = findVariant(body, BODIES.get(name) ?? NONE);
  if (place !== undefined) throw invalid(place.slice(1), 'must be spelled exactly like this');
}

/** Nearly all keys are of these characters, which are folded already. */
const FOLDED = /^[a-z0-9_]*$/;

/** Where a variant stands below a value, spelled as the key that it could be read as. */
function findVariant(value: Json | undefined, shape: Shape): string | undefined {
  if (Array.isArray(value)) return findInList(value, shape);
  if (!isObject(value)) return undefined;
  for (const key in value) {
    const below = shape.get(key);
    if (below) {
      const place = findVariant(value[key], below);
      if (place !== undefined) return `.${key}${place}`;
    } else if (below === undefined && !FOLDED.test(key) && shape.has(fold(key))) {
      return `.${fold(key)}`;
    }
  }
  return undefined;
}

function findInList(list: readonly Json[], shape: Shape): string | undefined {
  for (let at = 0; at < list.length; at++) {
    const place = findVariant(list[at], shape);
    if (place !== undefined) return `[${at}]${place}`;
  }
  return undefined;
}
