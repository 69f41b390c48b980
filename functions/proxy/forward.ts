/** Step 6: the upstream call, with the provider's credential in place of the caller's. */

import { secretContext } from '../../db/provider-keys.ts';
import { Refusal } from '../../schema/errors.ts';
import { demo } from '../demo.ts';
import { EgressError, type EgressErrorCode, type EgressResponse } from '../egress.ts';
import { authHeaders } from '../providers/compatible.ts';
import { upstreamPath } from '../providers/endpoints.ts';
import { upstreamHeaders } from './headers.ts';
import type { Held } from './reserve.ts';
import { type End, settleHold } from './settlement.ts';

/** A call whose upstream has begun to answer. */
export interface Answer extends Held {
  readonly upstream: EgressResponse;
  readonly firstByteMs: number;
  /** The provider's credential, which nothing that reaches the caller may repeat. */
  readonly secret: string;
  /** Stops listening for the caller's leaving; from here on the response's own stream tells. */
  readonly detach: () => void;
}

const TIMEOUTS = { connectMs: 10_000, firstByteMs: 600_000, idleMs: 300_000 };

/** What the caller is told; the runtime's own words may name hosts and addresses. */
const FAILURES: Readonly<Record<EgressErrorCode, string>> = {
  forbidden_url: 'has a URL that the operator does not allow',
  forbidden_address: 'is at an address that the operator does not allow',
  unresolved: 'has a host name that does not resolve',
  connect_failed: 'could not be reached',
  timeout_connect: 'did not accept the connection in time',
  timeout_first_byte: 'did not begin to answer in time',
  timeout_idle: 'stopped answering',
  aborted: 'was left because the caller gave up',
  too_large: 'answered with more than is allowed',
  broken: 'broke off the connection',
};

/** Failures before anything was sent: nothing can have been charged. */
const NOT_SENT = new Set<string>([
  'forbidden_url',
  'forbidden_address',
  'unresolved',
  'connect_failed',
  'timeout_connect',
]);

/**
 * Sends the call and waits for the upstream's headers.
 *
 * @throws {Refusal} `upstream_failed`; the hold is settled first.
 */
export async function forward(call: Held): Promise<Answer> {
  const started = performance.now();
  const { signal } = call.request;
  const leave = () => call.flight.abort('client_left');
  signal.addEventListener('abort', leave, { once: true });
  if (signal.aborted) leave();
  const detach = () => signal.removeEventListener('abort', leave);
  try {
    const opened = openSecret(call);
    const secret = typeof opened === 'string' ? opened : await opened;
    const upstream = await send(call, secret);
    const firstByteMs = Math.round(performance.now() - started);
    return { ...call, upstream, secret, firstByteMs, detach };
  } catch (error) {
    detach();
    throw await failed(call, error);
  }
}

function openSecret({ services, settings, org, key }: Held): string | Promise<string> {
  const context = secretContext(org.id, key);
  return services.secrets.open(settings.wrappedKey ?? '', context, key.secret);
}

function send(call: Held, secret: string): Promise<EgressResponse> {
  const { provider, services, endpoint, outgoing } = call;
  if (provider.name === 'demo') return sendToDemo(call);
  const headers = upstreamHeaders(call.request.headers);
  for (const [name, value] of authHeaders(provider, secret)) headers[name] = value;
  // Another type or charset would have the upstream read another body than the one decided on.
  if (outgoing.length > 0) headers['content-type'] = 'application/json';
  return services.egress(upstreamUrl(call), {
    method: endpoint.method,
    headers,
    ...(outgoing.length > 0 ? { body: outgoing } : {}),
    controller: call.flight.controller,
    timeouts: TIMEOUTS,
  });
}

/** What a query may say upstream; anything else could change the answer or carry a credential. */
const QUERY = new Set([
  ...['beta', 'api-version', 'include', 'include[]', 'include_obfuscation', 'stream'],
  ...['starting_after', 'limit', 'order', 'after', 'before', 'after_id', 'before_id'],
]);

function upstreamQuery(query: string): string {
  if (query === '') return query;
  const kept = [...new URLSearchParams(query)].filter(([name]) => QUERY.has(name));
  return kept.length > 0 ? `?${new URLSearchParams(kept)}` : '';
}

function upstreamUrl({ key, endpoint, resourceId, query }: Held): URL {
  const path = upstreamPath({
    endpoint,
    params: resourceId === undefined ? {} : { id: resourceId },
  });
  return new URL(`${key.baseUrl.replace(/\/+$/, '')}/${path}${upstreamQuery(query)}`);
}

/** The built-in upstream is in this very process: nothing leaves. */
async function sendToDemo(call: Held): Promise<EgressResponse> {
  if (!call.services.config.isDemo) {
    throw new EgressError('forbidden_url', 'the demo upstream is off; RUNGATE_DEMO=on turns it on');
  }
  const { endpoint, resourceId } = call;
  const path = upstreamPath({
    endpoint,
    params: resourceId === undefined ? {} : { id: resourceId },
  });
  const body = call.outgoing.length > 0 ? { body: call.outgoing } : {};
  const response = await demo(
    new Request(`http://demo/demo/v1/${path}`, {
      method: endpoint.method,
      headers: upstreamHeaders(call.request.headers),
      ...body,
    }),
  );
  const { status, headers } = response;
  return { status, headers, body: response.body, bytes: () => response.bytes() };
}

/** Settles a call that got no answer: free if nothing was sent, else at the most it could cost. */
async function failed(call: Held, error: unknown): Promise<unknown> {
  const code = error instanceof EgressError ? error.code : 'internal';
  const isUnsent = NOT_SENT.has(code) || code === 'internal';
  const end: End = { outcome: call.flight.ended ?? code, isFree: isUnsent };
  await settleHold(call, end);
  if (!(error instanceof EgressError)) return error;
  const message = `The upstream "${call.key.name}" ${FAILURES[error.code]}.`;
  return new Refusal('upstream_failed', message, {
    rule: 'upstream',
    asked: call.key.name,
    runId: call.run.name,
  });
}
