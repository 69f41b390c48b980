/** Hosts that the operator allows, called with the runtime's own `fetch`. */

import { answer } from './answer.ts';
import { callerOf, Deadline } from './deadline.ts';
import type { EgressInit, EgressResponse } from './exchange.ts';
import { frameHeaders } from './headers.ts';

/** `fetch` tells no phase from another, so that connecting and the first byte share their time. */
export async function sendDirect(
  url: URL,
  init: EgressInit,
  maxBytes: number,
): Promise<EgressResponse> {
  const deadline = new Deadline(callerOf(init), init.controller !== undefined);
  const controller = init.controller ?? new AbortController();
  deadline.onEnd((reason) => controller.abort(reason));
  deadline.expect('timeout_first_byte', init.timeouts.connectMs + init.timeouts.firstByteMs);
  try {
    const response = await fetch(url, {
      method: init.method,
      headers: frameHeaders(init.headers),
      body: init.body ?? null,
      signal: controller.signal,
      redirect: 'manual',
      decompress: false,
    });
    return answer(response, deadline, init.timeouts, maxBytes, () => response.bytes());
  } catch (error) {
    // First, or the abort of our own making would count as the caller's.
    const failure = deadline.fail(error, isUnsent(error) ? 'connect_failed' : 'broken');
    controller.abort(failure);
    throw failure;
  }
}

const UNSENT_CODES =
  /^(ConnectionRefused|FailedToOpenSocket|ECONNREFUSED|ENOTFOUND|EAI_\w+|E(HOST|NET)UNREACH|UNABLE_TO_\w+|\w*CERT\w*)$/;

/** Bun says by a code, Deno only in the words of the cause, that `fetch` got no connection. */
function isUnsent(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const code = 'code' in error ? String(error.code) : '';
  const cause = error.cause instanceof Error ? error.cause.message : '';
  return UNSENT_CODES.test(code) || cause.includes('client error (Connect)');
}
