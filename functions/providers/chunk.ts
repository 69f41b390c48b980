/** What a chunk of a chat completion looks like, as clients check it that drop all others. */

import { z } from 'zod';
import type { Json, JsonObject } from '../../schema/json.ts';
import { isObject } from '../../schema/rules/bound.ts';

const token = z.object({ token: z.string(), logprob: z.number() });
const tokens = z.array(token.extend({ top_logprobs: z.array(token) })).nullish();
const count = z.number().nullish();
const text = z.string().nullish();
const counts = (...keys: string[]) =>
  z.object(Object.fromEntries(keys.map((key) => [key, count]))).nullish();

const citation = z.object({
  type: z.literal('url_citation'),
  url_citation: z.object({
    ...{ start_index: z.number(), end_index: z.number() },
    ...{ url: z.string(), title: z.string() },
  }),
});

const signature = z.object({ google: z.object({ thought_signature: text }).nullish() });

const call = z.object({
  index: z.number(),
  id: text,
  type: z.literal('function').optional(),
  function: z.object({ name: text, arguments: text }),
  extra_content: signature.nullish(),
});

const delta = z.object({
  role: z.literal('assistant').nullish(),
  ...{ content: text, refusal: text, reasoning: text, reasoning_content: text },
  reasoning_details: z.array(z.unknown()).nullish(),
  tool_calls: z.array(call).nullish(),
  annotations: z.array(citation).nullish(),
});

const details = counts(
  ...['cached_tokens', 'cache_write_tokens', 'text_tokens', 'audio_tokens', 'image_tokens'],
  ...['reasoning_tokens', 'accepted_prediction_tokens', 'rejected_prediction_tokens'],
);
const used = {
  ...{ prompt_tokens_details: details, completion_tokens_details: details },
  ...{ prompt_cache_hit_tokens: count, prompt_cache_miss_tokens: count, num_cached_tokens: count },
  cost: count,
};
const total = z.number();
const usage = z.object({
  ...{ prompt_tokens: total, completion_tokens: total, total_tokens: total },
  ...used,
});

const chunk = z.object({
  object: z.literal('chat.completion.chunk'),
  ...{ id: text, created: count, model: text },
  error: z.null().optional(),
  citations: z.array(z.string()).nullish(),
  choices: z.array(
    z.object({
      delta: delta.nullish(),
      logprobs: z.object({ content: tokens, refusal: tokens }).nullish(),
      finish_reason: text,
      index: z.number(),
    }),
  ),
  usage: usage.nullish(),
  x_groq: z.object({ id: text, usage: usage.partial().nullish() }).nullish(),
});

/**
 * For what a client may drop a chunk: each member that some don't expect as it is, and what stands
 * there. Two chunks that have the same of these are both dropped by a client, or neither is.
 */
export function oddsOf(value: JsonObject): readonly string[] {
  const { error } = chunk.safeParse(value);
  const odds = (error?.issues ?? []).flatMap(({ code, path }) => {
    const trail = path as (string | number)[];
    if (trail.at(-1) === 'type' && isCustom(memberAt(value, trail.slice(0, -1)))) return [];
    const told = memberAt(value, trail) ?? null;
    const keys = trail.filter((key) => typeof key === 'string').join('.');
    return [JSON.stringify([keys, code === 'invalid_value' ? told : shapeOf(told)])];
  });
  return [...new Set(odds)].sort();
}

/** Whoever drops a call for its other type drops all its parts, for they hold no function. */
function isCustom(value: Json | undefined): boolean {
  return isObject(value) && isObject(value.custom) && value.function === undefined;
}

function memberAt(value: JsonObject, trail: readonly (string | number)[]): Json | undefined {
  let member: Json | undefined = value;
  for (const key of trail) member = (member as Record<string | number, Json> | undefined)?.[key];
  return member;
}

/** A value without what no client looks at before it drops something: its texts and numbers. */
function shapeOf(value: Json): Json {
  if (typeof value === 'string') return value && 'text';
  if (typeof value === 'number') return value && 1;
  if (Array.isArray(value)) {
    return [...new Set(value.map((each) => JSON.stringify(shapeOf(each))))].sort();
  }
  if (!isObject(value)) return value;
  const members = Object.entries(value).sort(([one], [other]) => (one < other ? -1 : 1));
  return members.map(([key, member]) => [key, key === 'type' ? member : shapeOf(member)]);
}
