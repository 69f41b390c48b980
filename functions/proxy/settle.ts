/** Step 7: the answer goes to the caller; its real cost is durable before its last byte. */

import { digest } from '../../db/seal.ts';
import { readStep } from '../../db/steps.ts';
import { Refusal } from '../../schema/errors.ts';
import type { Json, JsonObject } from '../../schema/json.ts';
import { isObject } from '../../schema/rules/bound.ts';
import { SseTooLarge } from '../../schema/sse.ts';
import { respond } from '../edge.ts';
import { EgressError } from '../egress.ts';
import type { Meter, Reading } from '../providers/contract.ts';
import type { Answer } from './forward.ts';
import { downstreamHeaders, holds, withoutSecret } from './headers.ts';
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
  const isStream = upstream.status < 300 && type.startsWith('text/event-stream');
  const body = isStream ? upstream.body : null;
  return body ? stream(answer, meter, body) : whole(answer, meter);
}

/** The upstream's own words on the org's credential are not the agent's to read. */
async function refuseCredential(answer: Answer): Promise<never> {
  answer.detach();
  await answer.upstream.body?.cancel().catch(() => {});
  await settleHold(answer, { ...beginning(answer), outcome: 'upstream_401', isFree: true });
  throw new Refusal(
    'upstream_failed',
    `The upstream refused the org's provider key "${answer.key.name}"; an admin must replace it.`,
    { rule: 'provider_keys', asked: answer.key.name, runId: answer.run.name },
  );
}

async function whole(answer: Answer, meter: Meter): Promise<Response> {
  const { status } = answer.upstream;
  const isError = status >= 300;
  const received = await readAnswer(answer);
  const bytes = isError ? withoutSecret(received, answer.secret) : received;
  answer.detach();
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
  return respond(hasBody ? bytes : null, status, headersFor(answer));
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
  let closing: Promise<void> | undefined;
  const close = (outcome: string): Promise<void> => {
    closing ??= finish(answer, end(outcome));
    return closing;
  };
  const relayed = relay(body, {
    chunk: (bytes) => metered.push(bytes),
    async end() {
      const rest = metered.end();
      // A clean end too early reads as success in every client: it has to look broken instead.
      if (!meter.reading().complete) throw new EgressError('broken', 'the stream ended too early');
      await close('ok');
      return rest;
    },
    broken: (error) => close(outcomeOf(error, answer)),
  });
  // A caller who has stopped reading would not notice that the call was ended.
  const { flight } = answer;
  const leave = () => void (flight.ended && close(flight.ended));
  flight.signal.addEventListener('abort', leave, { once: true });
  const headers = {
    ...headersFor(answer),
    'cache-control': 'no-cache, no-transform',
    'x-accel-buffering': 'no',
  };
  return respond(relayed, answer.upstream.status, headers);
}

function outcomeOf(error: unknown, { flight }: Answer): string {
  if (flight.ended) return flight.ended;
  if (error instanceof SseTooLarge) return 'too_large';
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
  // The call itself must settle even so; the maker's hold is then left to its lease.
  const reads = isFetched && readStep(org, kept.runId, kept.stepId).catch(() => undefined);
  const maker = (await reads) || undefined;
  await settleHold(answer, end, ...bound, ...(maker ? settleKept(answer, maker, end) : []));
}

function isPending({ body, rates }: Answer, { status, responseId }: Reading): boolean {
  const isUnfinished = status === 'queued' || status === 'in_progress';
  return rates !== null && body?.value.background === true && isUnfinished && !!responseId;
}

/** Reads an answer to its end; of one that breaks, nothing has been sent to the caller yet. */
async function readAnswer(answer: Answer): Promise<Uint8Array<ArrayBuffer>> {
  try {
    return await answer.upstream.bytes(MAX_ANSWER_BYTES);
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

const decoder = new TextDecoder();

function parseObject(bytes: Uint8Array): JsonObject | undefined {
  try {
    const value = JSON.parse(decoder.decode(bytes)) as Json;
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** What is known of an answer from its first byte on. */
function beginning({ upstream, firstByteMs, secret }: Answer) {
  const { headers, status } = upstream;
  const upstreamRequestId = headers.get('x-request-id') ?? headers.get('request-id');
  const isSafe = upstreamRequestId !== null && !holds(upstreamRequestId, secret);
  return { httpStatus: status, firstByteMs, ...(isSafe ? { upstreamRequestId } : {}) };
}

function headersFor({ upstream, requestId, run, outputLimit, stepId, secret }: Answer) {
  const headers = downstreamHeaders(upstream.headers, secret);
  headers['x-request-id'] = requestId;
  headers['request-id'] = requestId;
  headers['x-rungate-run-id'] = encodeURI(run.name);
  headers['x-rungate-step-id'] = stepId;
  if (outputLimit !== null) headers['x-rungate-output-limit'] = String(outputLimit);
  return headers;
}
