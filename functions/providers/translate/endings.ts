/** Why an answer ended, and what it consumed, in the words of either dialect. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { readCount } from '../../../schema/usage.ts';
import { memberOf } from '../reading.ts';

const FINISHES: ReadonlyMap<Json | undefined, string> = new Map([
  ['end_turn', 'stop'],
  ['stop_sequence', 'stop'],
  ['max_tokens', 'length'],
  ['model_context_window_exceeded', 'length'],
  ['tool_use', 'tool_calls'],
  ['refusal', 'content_filter'],
]);

const STOPS: ReadonlyMap<Json | undefined, string> = new Map([
  ['stop', 'end_turn'],
  ['length', 'max_tokens'],
  ['tool_calls', 'tool_use'],
  ['content_filter', 'refusal'],
]);

/** Chat's `finish_reason` for a `stop_reason`; `stop` for one that is not known. */
export function finishOf(reason: Json | undefined): string {
  return FINISHES.get(reason) ?? 'stop';
}

/** The `stop_reason` for chat's `finish_reason`; `end_turn` for one that is not known. */
export function stopReasonOf(reason: Json | undefined): string {
  return STOPS.get(reason) ?? 'end_turn';
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
