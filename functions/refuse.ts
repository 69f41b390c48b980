/** The one place where an error becomes a response, in the caller's dialect. */

import { DatabaseError } from '../db/client.ts';
import { type Dialect, errorBody, Refusal } from '../schema/errors.ts';
import { findEndpoint } from './providers/endpoints.ts';
import { dialectOf, requestIdOf } from './proxy/authenticate.ts';
import type { Services } from './services.ts';

/** Codes after which the same request may succeed; all others tell clients not to retry. */
const RETRYABLE = new Set([429, 500, 502, 503]);

/** Turns whatever was thrown into the response that the caller's SDK understands. */
export function refuse(services: Services, request: Request, error: unknown): Response {
  const refusal = error instanceof Refusal ? error : unexpected(services, request, error);
  const requestId = requestIdOf(request);
  const headers = new Headers({
    'content-type': 'application/json',
    'x-request-id': requestId,
    'request-id': requestId,
  });
  const { retryAfterS, runId } = refusal.detail;
  if (!RETRYABLE.has(refusal.status)) headers.set('x-should-retry', 'false');
  if (retryAfterS !== undefined) headers.set('retry-after', String(retryAfterS));
  if (runId !== undefined) headers.set('x-rungate-run-id', encodeURI(runId));
  const body = JSON.stringify(errorBody(refusal, dialectFor(request), requestId));
  return new Response(body, { status: refusal.status, headers });
}

/** What nobody meant to happen: logged with its cause, told without it. */
function unexpected({ log }: Services, request: Request, error: unknown): Refusal {
  const requestId = requestIdOf(request);
  if (error instanceof DatabaseError) {
    log.error('the database failed', { requestId, error });
    return new Refusal('unavailable', 'Rungate cannot reach its database; try again shortly.');
  }
  log.error('a request failed', { requestId, error });
  return new Refusal('internal', `Rungate failed on this request; its log names ${requestId}.`);
}

function dialectFor(request: Request): Dialect {
  const guess = dialectOf(request);
  const { pathname } = new URL(request.url);
  const path = pathname.replace(/^\/r\/[^/]+(?=\/)/, '');
  return findEndpoint(request.method, path, guess)?.endpoint.dialect ?? guess;
}
