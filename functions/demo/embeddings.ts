/** Embeddings of the built-in upstream, OpenAI's `POST /v1/embeddings`. */

import { z } from 'zod';
import { keyOf, readBody } from './body.ts';
import { requireModel } from './reply.ts';
import { countTokens } from './text.ts';

const MAX_INPUTS = 2048;
const MAX_WORDS = 64;
const DEFAULT_DIMENSIONS = 256;

const tokens = z.array(z.int().min(0)).min(1);
const schema = z.looseObject({
  model: z.string(),
  input: z
    .union([z.string().min(1), z.array(z.string()).min(1).max(MAX_INPUTS), tokens])
    .or(z.array(tokens).min(1).max(MAX_INPUTS)),
  encoding_format: z.enum(['float', 'base64']).nullish(),
  dimensions: z.int().min(1).max(1024).nullish(),
});

/**
 * Answers with one vector of length 1 per input, `float` or `base64` (little-endian float32).
 * Texts that share words (of their first 64) have vectors
 * that are near.
 *
 * @throws {Fault} 400 for a body that does not fit, 404 for an unknown model.
 */
export async function embeddings(request: Request): Promise<Response> {
  const { members, key } = await readBody(request, schema);
  requireModel(members.model);
  const { input, encoding_format: format } = members;
  const inputs = Array.isArray(input) && typeof input[0] !== 'number' ? input : [input];
  const data = inputs.map((each, index) => {
    const vector = embed(wordsOf(each), members.dimensions ?? DEFAULT_DIMENSIONS);
    const embedding = format === 'base64' ? base64(vector) : [...vector];
    return { object: 'embedding', index, embedding };
  });
  const count = inputs.reduce<number>((sum, each) => sum + tokensIn(each), 0);
  const usage = { prompt_tokens: count, total_tokens: count };
  const headers = { 'x-request-id': `req_demo${key}` };
  return Response.json({ object: 'list', data, model: members.model, usage }, { headers });
}

/** Token ids count as they are; only words are estimated. */
function tokensIn(input: unknown): number {
  return Array.isArray(input) ? input.length : countTokens(input);
}

function wordsOf(input: unknown): string[] {
  return Array.isArray(input)
    ? input.map(String)
    : String(input)
        .toLowerCase()
        .split(/[^\p{L}\p{N}]+/u);
}

/** Feature hashing: each word adds its own pseudo-random signs; the sum is scaled to length 1. */
function embed(words: readonly string[], dimensions: number): Float32Array {
  const vector = new Float32Array(dimensions);
  const encoder = new TextEncoder();
  for (const word of words.slice(0, MAX_WORDS)) {
    let state = Number.parseInt(keyOf(encoder.encode(word)).slice(8), 16) || 1;
    for (let at = 0; at < dimensions; at++) {
      state = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9;
      vector[at] = (vector[at] ?? 0) + (state & 0x10000 ? 1 : -1);
    }
  }
  const length = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0)) || 1;
  return vector.map((value) => value / length);
}

function base64(vector: Float32Array): string {
  const view = new DataView(new ArrayBuffer(vector.length * 4));
  for (const [at, value] of vector.entries()) view.setFloat32(at * 4, value, true);
  return btoa(String.fromCharCode(...new Uint8Array(view.buffer)));
}
