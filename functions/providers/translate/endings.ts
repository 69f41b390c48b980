/** Why an answer ended, and what it consumed, in the words of either dialect. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { readCount } from '../../../schema/usage.ts';
import { memberOf } from '../reading.ts';

const FINISHES: ReadonlyMap<Json | undefined, string> = new Map([
  ['max_tokens', 'length'],
  ['model_context_window_exceeded', 'length'],
  ['refusal', 'content_filter'],
]);

const STOPS: ReadonlyMap<Json | undefined, string> = new Map([
  ['length', 'max_tokens'],
  ['content_filter', 'refusal'],
]);

/**
 * Chat's `finish_reason` for a `stop_reason`. Unless the answer was cut or refused, its calls decide:
 * clients run them where they are told to, and hosts don't always tell.
 */
export function finishOf(reason: Json | undefined, hasCalls: boolean): string {
  return FINISHES.get(reason) ?? (hasCalls ? 'tool_calls' : 'stop');
}

/** The `stop_reason` for chat's `finish_reason`, which is `stop` where a call was forced. */
export function stopReasonOf(reason: Json | undefined, hasCalls: boolean): string {
  return STOPS.get(reason) ?? (hasCalls ? 'tool_use' : 'end_turn');
}

/** The usage of messages as chat's; its input includes what the cache read and wrote. */
export function chatUsage(usage: JsonObject): JsonObject {
  const cached = readCount(usage.cache_read_input_tokens) ?? 0;
  const written = readCount(usage.cache_creation_input_tokens) ?? 0;
  const input = (readCount(usage.input_tokens) ?? 0) + cached + written;
  const output = readCount(usage.output_tokens) ?? 0;
  return {
    prompt_tokens: input,
    completion_tokens: output,
    total_tokens: input + output,
    prompt_tokens_details: { cached_tokens: cached },
  };
}

/** Chat's usage as that of messages; its input excludes what the cache read. */
export function messageUsage(usage: JsonObject): JsonObject {
  const all = readCount(usage.prompt_tokens) ?? 0;
  const details = memberOf(usage, 'prompt_tokens_details');
  const cached = Math.min(readCount(details.cached_tokens) ?? 0, all);
  return {
    input_tokens: all - cached,
    cache_creation_input_tokens: 0,
    cache_read_input_tokens: cached,
    output_tokens: readCount(usage.completion_tokens) ?? 0,
  };
}
