/** Hosts that the operator allows, called with the runtime's own `fetch`. */

import { connect } from 'node:net';
import { literalAddress } from '../../schema/address.ts';
import { answer } from './answer.ts';
import { callerOf, Deadline } from './deadline.ts';
import type { EgressInit, EgressResponse } from './exchange.ts';
import { frameHeaders } from './headers.ts';

/** What is known of a host that is called directly. */
export interface Host {
  /** When it last began to answer, as `performance.now()` counts. */
  answeredAt: number;
}

/** How long a host that has answered is trusted to accept connections. */
const TRUSTED_MS = 1_000;

/**
 * Sends with `fetch`, which tells no phase from another: a host that has not answered just now is
 * knocked at first, or a call to one that accepts no connection would wait for as long as the
 * system does. With a host that is trusted, connecting and the first byte share their time.
 */
export async function sendDirect(
  url: URL,
  init: EgressInit,
  maxBytes: number,
  host: Host,
): Promise<EgressResponse> {
  const deadline = new Deadline(callerOf(init), init.controller !== undefined);
  const controller = init.controller ?? new AbortController();
  deadline.onEnd((reason) => controller.abort(reason));
  const { connectMs, firstByteMs } = init.timeouts;
  let isSent = false;
  try {
    if (performance.now() - host.answeredAt > TRUSTED_MS) {
      deadline.expect('timeout_connect', connectMs);
      await knock(url, controller.signal);
    }
    deadline.expect('timeout_first_byte', connectMs + firstByteMs);
    isSent = true;
    const response = await fetch(url, {
      method: init.method,
      headers: frameHeaders(init.headers),
      body: init.body ?? null,
      signal: controller.signal,
      redirect: 'manual',
      decompress: false,
    });
    host.answeredAt = performance.now();
    return answer(response, deadline, init.timeouts, maxBytes, () => response.bytes());
  } catch (error) {
    // First, or the abort of our own making would count as the caller's.
    const failure = deadline.fail(error, isSent && !isUnsent(error) ? 'broken' : 'connect_failed');
    controller.abort(failure);
    throw failure;
  }
}

/** Opens a connection and closes it: rejects where the host accepts none, or the signal aborts. */
function knock(url: URL, signal: AbortSignal): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const port = Number(url.port) || (url.protocol === 'https:' ? 443 : 80);
  const host = literalAddress(url) ?? url.hostname;
  const socket = connect({ host, port, autoSelectFamily: true });
  const leave = () => reject(signal.reason);
  signal.addEventListener('abort', leave, { once: true });
  socket.once('connect', resolve).on('error', reject);
  return promise.finally(() => {
    signal.removeEventListener('abort', leave);
    socket.destroy();
  });
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
