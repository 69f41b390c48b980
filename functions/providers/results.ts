/** The tool results that a request brings, and which calls they answer. */

import type { Json, JsonObject } from '../../schema/json.ts';
import { isGiven, isObject } from '../../schema/rules/bound.ts';
import { stringOf } from './calls.ts';
import type { Endpoint } from './contract.ts';

/** A tool result of a request. */
export interface ToolResult {
  /** The id of the call, as in `ProposedCall`; empty where the result names none. */
  readonly id: string;
  /** Where it stands: `messages[2].tool_call_id`. */
  readonly field: string;
}

/**
 * The tool results of a request, of earlier turns too, in their order.
 *
 * @param body A body that was checked before.
 */
export function toolResults({ name }: Endpoint, body: JsonObject): readonly ToolResult[] {
  if (name === 'chat.completions') return chatResults(body);
  if (name === 'messages') return messageResults(body);
  return name === 'responses.create' ? responseResults(body) : [];
}

function chatResults({ messages }: JsonObject): ToolResult[] {
  return collect(messages, 'messages', (message, field) => {
    if (message.role === 'function') return result(message, 'name', field);
    return message.role === 'tool' ? result(message, 'tool_call_id', field) : [];
  });
}

function responseResults({ input }: JsonObject): ToolResult[] {
  return collect(input, 'input', (item, field) => {
    const type = stringOf(item, 'type');
    if (type === 'mcp_approval_response') return result(item, 'approval_request_id', field);
    // A search that ran upstream was nobody's call.
    if (type === 'tool_search_output' && !isGiven(item.call_id)) return [];
    const key = type === 'local_shell_call_output' && !isGiven(item.call_id) ? 'id' : 'call_id';
    return type.endsWith('_output') ? result(item, key, field) : [];
  });
}

function messageResults({ messages }: JsonObject): ToolResult[] {
  return collect(messages, 'messages', ({ content }, field) =>
    collect(content, `${field}.content`, (block, place) =>
      block.type === 'tool_result' ? result(block, 'tool_use_id', place) : [],
    ),
  );
}

function collect(
  list: Json | undefined,
  field: string,
  read: (value: JsonObject, field: string) => ToolResult[],
): ToolResult[] {
  if (!Array.isArray(list)) return [];
  return list.flatMap((value, at) => (isObject(value) ? read(value, `${field}[${at}]`) : []));
}

function result(value: JsonObject, key: string, field: string): ToolResult[] {
  const id = value[key];
  // Some hosts take a result without an id for that of the last call.
  return [{ id: typeof id === 'string' ? id : '', field: `${field}.${key}` }];
}
