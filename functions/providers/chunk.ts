/** What a chunk of a chat completion looks like, as clients check it that drop all others. */

import { z } from 'zod';
import type { JsonObject } from '../../schema/json.ts';

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

const call = z.object({
  index: z.number(),
  id: text,
  type: z.literal('function').nullish(),
  function: z.object({ name: text, arguments: text }),
});

const delta = z.object({
  role: z.literal('assistant').nullish(),
  content: text,
  refusal: text,
  tool_calls: z.array(call).nullish(),
  annotations: z.array(citation).nullish(),
});

const chunk = z.object({
  id: text,
  created: count,
  model: text,
  error: z.null().optional(),
  choices: z.array(
    z.object({
      delta: delta.nullish(),
      logprobs: z.object({ content: tokens, refusal: tokens }).nullish(),
      finish_reason: text,
      index: z.number(),
    }),
  ),
  usage: z
    .object({
      ...{ prompt_tokens: count, completion_tokens: count, total_tokens: count },
      prompt_tokens_details: counts('cached_tokens', 'cache_write_tokens'),
      completion_tokens_details: counts(
        ...['reasoning_tokens', 'accepted_prediction_tokens', 'rejected_prediction_tokens'],
      ),
    })
    .nullish(),
});

/** Whether no client drops a chunk for what it looks like. */
export function isUsualChunk(value: JsonObject): boolean {
  return chunk.safeParse(value).success;
}
