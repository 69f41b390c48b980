/** Step 7: the answer goes to the caller; its real cost is durable before its last byte. */

import { digest } from '../../db/seal.ts';
import { readStep } from '../../db/steps.ts';
import { Refusal } from '../../schema/errors.ts';
import type { Json, JsonObject } from '../../schema/json.ts';
import { isObject } from '../../schema/rules/bound.ts';
import { EgressError } from '../egress.ts';
import type { Meter, Reading } from '../providers/contract.ts';
import type { Answer } from './forward.ts';
import { downstreamHeaders } from './headers.ts';
import { StreamMeter } from './meter.ts';
import { bindResponse, type End, settleHold, settleKept } from './settlement.ts';
import { relay } from './stream.ts';

/** The longest answer that is read whole, in bytes. */
const MAX_ANSWER_BYTES = 64 * 1024 * 1024;
/** How long a background response may take before it is charged at its bound. */
const BACKGROUND_LEASE_MS = 24 * 3_600_000;

/**
 * Turns the upstream's answer into the caller's. Always settles: a JSON answer before it is sent,
 * a stream before it ends, and either when it breaks or the caller leaves.
 *
 * @throws {Refusal} `upstream_failed` for an answer that broke before anything of it was sent.
 */
export async function settle(answer: Answer): Promise<Response> {
  const { upstream, endpoint, askedUsage } = answer;
  if (upstream.status === 401) return refuseCredential(answer);
  const meter = endpoint.meter({ askedUsage });
  const type = upstream.headers.get('content-type') ?? '';
  const isStream = upstream.body && upstream.status < 300 && type.startsWith('text/event-stream');
  return isStream ? stream(answer, meter, upstream.body) : whole(answer, meter);
}

/** The upstream's own words on the org's credential are not the agent's to read. */
async function refuseCredential(answer: Answer): Promise<never> {
  answer.detach();
  await answer.upstream.body?.cancel();
  await settleHold(answer, { ...beginning(answer), outcome: 'upstream_401', isFree: true });
  throw new Refusal(
    'upstream_failed',
    `The upstream refused the org's provider key "${answer.key.name}"; an admin must replace it.`,
    { rule: 'provider_keys', asked: answer.key.name, runId: answer.run.name },
  );
}

async function whole(answer: Answer, meter: Meter): Promise<Response> {
  const bytes = await readAnswer(answer);
  answer.detach();
  const { status } = answer.upstream;
  const isError = status >= 300;
  const value = isError ? undefined : parseObject(bytes);
  if (value) meter.body(value);
  await finish(answer, {
    ...beginning(answer),
    outcome: isError ? `upstream_${status}` : 'ok',
    isFree: isError,
    reading: meter.reading(),
    responseDigest: digest(bytes),
  });
  const hasBody = bytes.length > 0 && status !== 204;
  return new Response(hasBody ? bytes : null, { status, headers: headersFor(answer) });
}

function stream(answer: Answer, meter: Meter, body: ReadableStream<Uint8Array>): Response {
  answer.detach();
  const metered = new StreamMeter(meter, answer.askedUsage);
  const end = (outcome: string): End => ({
    ...beginning(answer),
    outcome,
    reading: meter.reading(),
    streamedBytes: metered.bytes,
    responseDigest: metered.digest(),
  });
  const relayed = relay(body, {
    chunk: (bytes) => metered.push(bytes),
    async end() {
      const rest = metered.end();
      // A clean end too early reads as success in every client: it has to look broken instead.
      if (!meter.reading().complete) throw new EgressError('broken', 'the stream ended too early');
      await finish(answer, end('ok'));
      return rest;
    },
    broken: (error) => finish(answer, end(outcomeOf(error, answer))),
  });
  const headers = headersFor(answer);
  headers.set('cache-control', 'no-cache, no-transform');
  headers.set('x-accel-buffering', 'no');
  return new Response(relayed, { status: answer.upstream.status, headers });
}

function outcomeOf(error: unknown, { flight }: Answer): string {
  if (flight.signal.aborted) return String(flight.signal.reason);
  return error instanceof EgressError ? error.code : 'client_left';
}

/**
 * Settles, or leaves the hold of a response still being made in the background to whoever fetches
 * it; one that was fetched settles the step that made it.
 */
async function finish(answer: Answer, end: End): Promise<void> {
  const { flight, services, kept, org, endpoint } = answer;
  const reading = end.reading!;
  const bound = bindResponse(answer, reading);
  if (isPending(answer, reading)) {
    return flight.handOver(BACKGROUND_LEASE_MS, services.now(), ...bound);
  }
  const isFetched = kept && endpoint.name !== 'responses.create';
  const maker = isFetched ? await readStep(org, kept.runId, kept.stepId) : undefined;
  await settleHold(answer, end, ...bound, ...(maker ? settleKept(answer, maker, end) : []));
}

function isPending({ body, rates }: Answer, { status, responseId }: Reading): boolean {
  const isUnfinished = status === 'queued' || status === 'in_progress';
  return rates !== null && body?.value.background === true && isUnfinished && !!responseId;
}

/** Reads an answer to its end; of one that breaks, nothing has been sent to the caller yet. */
async function readAnswer(answer: Answer): Promise<Uint8Array<ArrayBuffer>> {
  try {
    return await readWhole(answer.upstream.body);
  } catch (error) {
    answer.detach();
    await settleHold(answer, { ...beginning(answer), outcome: outcomeOf(error, answer) });
    throw new Refusal(
      'upstream_failed',
      `The answer of the upstream "${answer.key.name}" broke off; the call is charged at its bound.`,
      { rule: 'upstream', asked: answer.key.name, runId: answer.run.name },
    );
  }
}

async function readWhole(
  body: ReadableStream<Uint8Array> | null,
): Promise<Uint8Array<ArrayBuffer>> {
  if (!body) return new Uint8Array(0);
  const parts: Uint8Array[] = [];
  let length = 0;
  for await (const part of body) {
    length += part.length;
    if (length > MAX_ANSWER_BYTES) throw new EgressError('too_large', 'the answer is too large');
    parts.push(part);
  }
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

function parseObject(bytes: Uint8Array): JsonObject | undefined {
  try {
    const value = JSON.parse(new TextDecoder().decode(bytes)) as Json;
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** What is known of an answer from its first byte on. */
function beginning({ upstream, firstByteMs }: Answer) {
  const { headers, status } = upstream;
  return {
    httpStatus: status,
    firstByteMs,
    upstreamRequestId: headers.get('x-request-id') ?? headers.get('request-id'),
  };
}

function headersFor({ upstream, requestId, run, outputLimit, stepId }: Answer): Headers {
  const headers = downstreamHeaders(upstream.headers);
  headers.set('x-request-id', requestId);
  headers.set('request-id', requestId);
  headers.set('x-rungate-run-id', encodeURI(run.name));
  headers.set('x-rungate-step-id', stepId);
  if (outputLimit !== null) headers.set('x-rungate-output-limit', String(outputLimit));
  return headers;
}
