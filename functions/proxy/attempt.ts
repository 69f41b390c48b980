/** One attempt: the call goes to one upstream, with the provider's credential in place of the caller's. */

import { Memo } from '../../db/memo.ts';
import { secretContext } from '../../db/provider-keys.ts';
import { useApprovals } from '../../db/released.ts';
import { Refusal } from '../../schema/errors.ts';
import { authHeaders } from '../../schema/providers.ts';
import { type Failure, readRetryAfter } from '../../schema/rules/retry.ts';
import { demo } from '../demo.ts';
import { EgressError, type EgressErrorCode, type EgressResponse, NOT_SENT } from '../egress.ts';
import { upstreamPath } from '../providers/endpoints.ts';
import { usedUp } from './approved.ts';
import { upstreamHeaders, upstreamRequestIdOf } from './headers.ts';
import type { Held } from './reserve.ts';
import type { End } from './settlement.ts';

/** An upstream that has begun to answer. */
export interface Exchange {
  readonly upstream: EgressResponse;
  readonly firstByteMs: number;
  /** The provider's credential, which nothing that reaches the caller may repeat. */
  readonly secret: string;
}

/** An attempt that got no answer, and why. */
export interface Unanswered {
  readonly error: unknown;
  /** Whether it may have reached the upstream, and be charged. */
  readonly isSent: boolean;
}

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

const TIMEOUTS = { connectMs: 10_000, firstByteMs: 600_000, idleMs: 300_000 };

/** Upstreams of Anthropic's dialect need a version, which callers of the other one don't send. */
const MESSAGES_VERSION = '2023-06-01';

/**
 * Sends the call and waits for the upstream's headers. Settles nothing.
 *
 * @param isTranslated Whether the caller speaks another dialect than the upstream.
 */
export async function attempt(call: Held, isTranslated: boolean): Promise<Exchange | Unanswered> {
  const started = performance.now();
  call.flight.watch(call.request);
  let isSending = false;
  try {
    const opened = openSecret(call);
    const secret = typeof opened === 'string' ? opened : await opened;
    if (call.approving) await takeApprovals(call, call.approving);
    isSending = true;
    const upstream = await send(call, secret, isTranslated);
    return { upstream, secret, firstByteMs: Math.round(performance.now() - started) };
  } catch (error) {
    call.flight.unwatch();
    const isUnsent = error instanceof EgressError && NOT_SENT.has(error.code);
    return { error, isSent: isSending && !isUnsent };
  }
}

/**
 * Takes the approvals that a call brings for its step, right before it is sent.
 *
 * @throws {Refusal} `permission_denied` where another call was sent with one of them meanwhile.
 */
async function takeApprovals({ org, run, stepId }: Held, ids: readonly string[]): Promise<void> {
  if (await useApprovals(org, run.id, stepId, ids)) return;
  const [id = ''] = ids;
  throw new Refusal('permission_denied', usedUp(id), { asked: id.slice(0, 256) });
}

function openSecret({ services, settings, org, key }: Held): string | Promise<string> {
  const context = secretContext(org.id, key);
  return services.secrets.open(settings.wrappedKey ?? '', context, key.secret);
}

function send(call: Held, secret: string, isTranslated: boolean): Promise<EgressResponse> {
  const { provider, services, endpoint, outgoing } = call;
  const headers = headersOf(call, isTranslated);
  const query = isTranslated ? '' : upstreamQuery(call.query);
  if (provider.name === 'demo') return sendToDemo(call, headers);
  for (const [name, value] of authHeaders(provider, secret)) headers[name] = value;
  // Another type or charset would have the upstream read another body than the one decided on.
  if (outgoing.length > 0) headers['content-type'] = 'application/json';
  return services.egress(upstreamUrl(call, query), {
    method: endpoint.method,
    headers,
    ...(outgoing.length > 0 ? { body: outgoing } : {}),
    controller: call.flight.controller,
    timeouts: TIMEOUTS,
  });
}

/** What one dialect's headers ask for has no meaning in the other. */
function headersOf({ request, endpoint }: Held, isTranslated: boolean): Record<string, string> {
  const headers = upstreamHeaders(request.headers);
  if (!isTranslated) return headers;
  for (const name in headers) if (/^(?:anthropic|openai)-/.test(name)) delete headers[name];
  if (endpoint.dialect === 'anthropic') headers['anthropic-version'] = MESSAGES_VERSION;
  return headers;
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

function upstreamUrl({ key, endpoint, resourceId }: Held, query: string): URL {
  const path = upstreamPath({
    endpoint,
    params: resourceId === undefined ? {} : { id: resourceId },
  });
  const href = `${key.baseUrl.replace(/\/+$/, '')}/${path}${query}`;
  const isFixed = query === '' && resourceId === undefined;
  return isFixed ? (urls.get(href) ?? urls.set(href, new URL(href))) : new URL(href);
}

/** Those that say nothing of one call: few, and each is called over and over. */
const urls = new Memo<URL>(1_000);

/** The built-in upstream is in this very process: nothing leaves. */
async function sendToDemo(call: Held, headers: Record<string, string>): Promise<EgressResponse> {
  const { endpoint, resourceId } = call;
  const path = upstreamPath({
    endpoint,
    params: resourceId === undefined ? {} : { id: resourceId },
  });
  const body = call.outgoing.length > 0 ? { body: call.outgoing } : {};
  const response = await demo(
    new Request(`http://demo/demo/v1/${path}`, {
      method: endpoint.method,
      headers,
      ...body,
    }),
  );
  const { status, body: answer } = response;
  return { status, headers: response.headers, body: answer, bytes: () => response.bytes() };
}

/**
 * How an attempt failed; undefined for one that was answered, or that failed in here, which another
 * one would do alike.
 */
export function failureOf(held: Held, outcome: Exchange | Unanswered): Failure | undefined {
  if ('error' in outcome) {
    if (!(outcome.error instanceof EgressError)) return undefined;
    return { isSent: outcome.isSent || held.flight.ended !== undefined };
  }
  const { status, headers } = outcome.upstream;
  if (status < 400) return undefined;
  const retryAfterMs = readRetryAfter(headers, held.services.now());
  return { isSent: true, status, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) };
}

/** How an attempt ends that hands no answer on: free unless it may have been charged. */
export function endOf(call: Held, outcome: Exchange | Unanswered): End {
  return 'error' in outcome ? unanswered(call, outcome) : refused(outcome);
}

/** An error that the upstream answered, for which nobody charges. */
function refused({ upstream, firstByteMs, secret }: Exchange): End {
  const { status, headers } = upstream;
  const upstreamRequestId = upstreamRequestIdOf(headers, secret);
  const outcome = `upstream_${status}`;
  return { outcome, isFree: true, httpStatus: status, firstByteMs, upstreamRequestId };
}

/** Free if nothing was sent, else the most it can cost. */
function unanswered({ flight }: Held, { error, isSent }: Unanswered): End {
  const isKnown = error instanceof EgressError || error instanceof Refusal;
  const code = isKnown ? error.code : 'internal';
  return { outcome: flight.ended ?? code, isFree: !isSent };
}

/** What an attempt without an answer is to the caller. */
export function refusalOf({ key, run }: Held, error: unknown): unknown {
  if (!(error instanceof EgressError)) return error;
  const message = `The upstream "${key.name}" ${FAILURES[error.code]}.`;
  // What the operator does not allow stays so: to try again, as SDKs do after a 502, changes nothing.
  const isForbidden = error.code === 'forbidden_url' || error.code === 'forbidden_address';
  return new Refusal(isForbidden ? 'permission_denied' : 'upstream_failed', message, {
    rule: 'upstream',
    asked: key.name,
    runId: run.name,
  });
}
