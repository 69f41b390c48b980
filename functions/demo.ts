/**
 * The built-in upstream: two models that answer in OpenAI's and Anthropic's wire formats, so that
 * a first call works with no provider's account. It keeps nothing, and the same request always
 * gets the same bytes.
 */

import type { Dialect } from '../schema/errors.ts';
import { chat } from './demo/chat.ts';
import { embeddings } from './demo/embeddings.ts';
import { Fault, refuse } from './demo/fault.ts';
import { countMessage, messages } from './demo/messages.ts';
import { findModel, listModels } from './demo/models.ts';
import { responses, storedResponse } from './demo/responses.ts';

const POSTS: ReadonlyMap<string, (request: Request) => Promise<Response>> = new Map([
  ['/chat/completions', chat],
  ['/responses', responses],
  ['/embeddings', embeddings],
  ['/messages', messages],
  ['/messages/count_tokens', countMessage],
]);

/**
 * Answers one call to the built-in upstream, whatever its credentials: chat completions, responses,
 * embeddings, messages, their token count and the models.
 *
 * @param request Its path ends as a provider's would, such as `/demo/v1/chat/completions`; what
 *   stands before `/v1` does not matter.
 * @returns The provider's answer, errors (400, 404, 405, 413) included; it never rejects for what
 *   a request holds.
 */
export async function demo(request: Request): Promise<Response> {
  const path = /\/v1(\/.*)$/.exec(new URL(request.url).pathname)?.[1] ?? '';
  const dialect = dialectOf(path, request.headers);
  try {
    return await answer(path, dialect, request);
  } catch (error) {
    if (error instanceof Fault) return refuse(error, dialect);
    throw error;
  }
}

/** The models' path is the same at both providers; only Anthropic's callers name a version. */
function dialectOf(path: string, headers: Headers): Dialect {
  const models = path === '/models' || path.startsWith('/models/');
  const anthropic = path.startsWith('/messages') || (models && headers.has('anthropic-version'));
  return anthropic ? 'anthropic' : 'openai';
}

async function answer(path: string, dialect: Dialect, request: Request): Promise<Response> {
  const post = POSTS.get(path);
  if (post) {
    if (request.method === 'POST') return post(request);
    throw new Fault(405, `Not allowed to ${request.method} on ${path}: use POST.`);
  }
  const [, noun, id] = path.split('/');
  if (noun === 'responses' && id) storedResponse(id);
  if (noun === 'models' && request.method === 'GET') {
    return id === undefined ? listModels(dialect) : findModel(id, dialect);
  }
  throw new Fault(404, `Unknown request URL: ${request.method} ${path.slice(0, 200)}.`);
}
