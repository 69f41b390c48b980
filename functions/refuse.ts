/** The one place where an error becomes a response, in the caller's dialect. */

import { DatabaseError } from '../db/client.ts';
import { type Dialect, errorBody, Refusal } from '../schema/errors.ts';
import { limitHeaders } from '../schema/rules/limit.ts';
import { respond, respondJson } from './edge.ts';
import { findEndpoint } from './providers/endpoints.ts';
import { dialectOf, requestIdOf } from './proxy/authenticate.ts';
import { splitUrl } from './proxy/call.ts';
import type { Services } from './services.ts';

/** Codes after which the same request may succeed; all others tell clients not to retry. */
const RETRYABLE = new Set([429, 500, 502, 503]);

/** Turns whatever was thrown into the response that the caller's SDK understands. */
export function refuse(services: Services, request: Request, error: unknown): Response {
  const refusal = error instanceof Refusal ? error : unexpected(services, request, error);
  const body = errorBody(refusal, dialectFor(request), requestIdOf(request));
  return respondJson(body, refusal.status, refusalHeaders(request, refusal));
}

/** The headers that tell of a refusal: of which request, and whether and when to try again. */
export function refusalHeaders(
  request: Request,
  { status, detail: { retryAfterS, runId, limits = [] } }: Refusal,
): Record<string, string> {
  const requestId = requestIdOf(request);
  return {
    'x-request-id': requestId,
    'request-id': requestId,
    ...(RETRYABLE.has(status) ? {} : { 'x-should-retry': 'false' }),
    ...(retryAfterS === undefined ? {} : { 'retry-after': String(retryAfterS) }),
    ...limitHeaders(limits),
    ...(runId === undefined ? {} : { 'x-rungate-run-id': encodeURI(runId) }),
  };
}

/** What the author of a text is told that can't be looked up or kept. */
export const HOLDS_NUL = 'A text of the request holds a NUL character; leave it out.';

/** What nobody meant to happen: logged with its cause, told without it. */
function unexpected({ log }: Services, request: Request, error: unknown): Refusal {
  const requestId = requestIdOf(request);
  if (error instanceof DatabaseError && error.isUnfit) {
    return new Refusal('invalid_request', HOLDS_NUL);
  }
  if (error instanceof DatabaseError) {
    log.error('the database failed', { requestId, error });
    return new Refusal('unavailable', 'Rungate cannot reach its database; try again shortly.');
  }
  log.error('a request failed', { requestId, error });
  return new Refusal('internal', `Rungate failed on this request; its log names ${requestId}.`);
}

/**
 * The last resort of an entry: an error from outside the application. Its message, which may quote
 * the request, is neither told nor logged; where it came from is.
 */
export function failOutside({ log }: Services, error: unknown): Response {
  const { name = typeof error, message = '', stack = '' } = error instanceof Error ? error : {};
  const lines = stack.replace(message, '').split('\n');
  const at = lines.filter((line) => /^ +at /.test(line)).map((line) => line.trim());
  log.error('a request failed outside the application', { error: name, at });
  return respond('internal error', 500);
}

function dialectFor(request: Request): Dialect {
  const guess = dialectOf(request);
  const { path } = splitUrl(request.url);
  return findEndpoint(request.method, path, guess)?.endpoint.dialect ?? guess;
}
