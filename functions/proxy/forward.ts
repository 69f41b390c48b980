/** Step 6: the upstream call, with the provider's credential in place of the caller's. */

import { secretContext } from '../../db/provider-keys.ts';
import { Refusal } from '../../schema/errors.ts';
import { demo } from '../demo.ts';
import { EgressError, type EgressResponse } from '../egress.ts';
import { authHeaders } from '../providers/compatible.ts';
import { upstreamPath } from '../providers/endpoints.ts';
import { upstreamHeaders } from './headers.ts';
import type { Held } from './reserve.ts';
import { type End, settleHold } from './settlement.ts';

/** A call whose upstream has begun to answer. */
export interface Answer extends Held {
  readonly upstream: EgressResponse;
  readonly firstByteMs: number;
  /** Stops listening for the caller's leaving; from here on the response's own stream tells. */
  readonly detach: () => void;
}

const TIMEOUTS = { connectMs: 10_000, firstByteMs: 600_000, idleMs: 300_000 };

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
  const leave = () => call.flight.abort('client_left');
  call.request.signal.addEventListener('abort', leave, { once: true });
  const detach = () => call.request.signal.removeEventListener('abort', leave);
  try {
    const upstream = await send(call);
    return { ...call, upstream, firstByteMs: Math.round(performance.now() - started), detach };
  } catch (error) {
    detach();
    throw await failed(call, error);
  }
}

async function send(call: Held): Promise<EgressResponse> {
  const { key, provider, services, settings, org, endpoint } = call;
  if (provider.name === 'demo') return sendToDemo(call);
  const secret = await services.secrets.open(
    settings.wrappedKey ?? '',
    secretContext(org.id, key),
    key.secret,
  );
  const headers = upstreamHeaders(call.request.headers);
  for (const [name, value] of authHeaders(provider, secret)) headers.set(name, value);
  return services.egress(upstreamUrl(call), {
    method: endpoint.method,
    headers,
    ...(call.outgoing.length > 0 ? { body: call.outgoing } : {}),
    signal: call.flight.signal,
    timeouts: TIMEOUTS,
  });
}

function upstreamUrl({ key, endpoint, resourceId, query }: Held): URL {
  const path = upstreamPath({
    endpoint,
    params: resourceId === undefined ? {} : { id: resourceId },
  });
  return new URL(`${key.baseUrl.replace(/\/+$/, '')}/${path}${query}`);
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
  return demo(
    new Request(`http://demo/demo/v1/${path}`, {
      method: endpoint.method,
      headers: upstreamHeaders(call.request.headers),
      ...body,
    }),
  );
}

/** Settles a call that got no answer: free if nothing was sent, else at the most it could cost. */
async function failed(call: Held, error: unknown): Promise<unknown> {
  const code = error instanceof EgressError ? error.code : 'internal';
  const isUnsent = NOT_SENT.has(code) || code === 'internal';
  const end: End = { outcome: code, isFree: isUnsent };
  await settleHold(call, end);
  if (!(error instanceof EgressError)) return error;
  return new Refusal(
    'upstream_failed',
    `The upstream "${call.key.name}" failed: ${error.message}`,
    {
      rule: 'upstream',
      asked: call.key.name,
      runId: call.run.name,
    },
  );
}
