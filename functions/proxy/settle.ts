/** The answer goes to the caller; its real cost is durable before its last byte. */

import { capture } from '../../db/captures.ts';
import type { Statement } from '../../db/client.ts';
import type { KeptResponse } from '../../db/responses.ts';
import { digest } from '../../db/seal.ts';
import { readMaker } from '../../db/steps.ts';
import { concat } from '../../schema/bytes.ts';
import { Refusal } from '../../schema/errors.ts';
import type { Json, JsonObject } from '../../schema/json.ts';
import { isObject } from '../../schema/rules/bound.ts';
import type { Denial } from '../../schema/rules/decide.ts';
import { asksPeople } from '../../schema/rules/gate.ts';
import { limitHeaders } from '../../schema/rules/limit.ts';
import { governsTools } from '../../schema/rules/tools.ts';
import { isEventStream, SseTooLarge } from '../../schema/sse.ts';
import { respond } from '../edge.ts';
import { EgressError } from '../egress.ts';
import type { CallReader, Meter, Reading } from '../providers/contract.ts';
import { type Translation, Untranslatable } from '../providers/translate/contract.ts';
import { captured, keepsBodies } from './capture.ts';
import { Course } from './course.ts';
import { deny } from './deny.ts';
import type { Answer } from './forward.ts';
import {
  type Consequence,
  consequenceOf,
  judge,
  type Proposals,
  parkingOf,
  type Verdict,
} from './gate.ts';
import { downstreamHeaders, upstreamRequestIdOf, withoutSecret } from './headers.ts';
import { errorEvent, interruption } from './interrupt.ts';
import { answerParked, joinParked, preferenceHeaders, prefersAsync, waitInStream } from './park.ts';
import { isBackground } from './reserve.ts';
import { bindResponse, type End, settleHold, settleKept } from './settlement.ts';
import { chunksOf, relay } from './stream.ts';

/** The longest answer that is read whole, in bytes. */
const MAX_ANSWER_BYTES = 64 * 1024 * 1024;
/** How long a background response may take before it is charged at its bound. */
const BACKGROUND_LEASE_MS = 24 * 3_600_000;

/**
 * Turns the upstream's answer into the caller's. Always settles: a JSON answer before it is sent,
 * a stream before it ends, and either when it breaks or the caller leaves. Where the policy
 * governs tools, the calls that the answer proposes are decided before any of them is sent.
 *
 * @throws {Refusal} `upstream_failed` for an answer that broke before anything of it was sent;
 *   `not_translatable` for one that can't be said over; `permission_denied`, `approval_pending` and
 *   the like for one that may not be sent.
 */
export async function settle(answer: Answer): Promise<Response> {
  const { upstream, upstreamEndpoint, askedUsage } = answer;
  if (upstream.status === 401) return refuseCredential(answer);
  if (!isStatus(upstream.status)) return refuseStatus(answer);
  const meter = upstreamEndpoint.meter({ askedUsage });
  const isStream = upstream.status < 300 && isEventStream(upstream.headers);
  const body = isStream ? upstream.body : null;
  if (!body) return whole(answer, meter);
  const isWanted = asksPeople(answer.version.policy) && prefersAsync(answer);
  return isWanted ? buffer(answer, meter, body) : stream(answer, meter, body);
}

/** Whether the calls of this answer are decided on. */
function isGoverned({ endpoint, version }: Answer): boolean {
  return endpoint.calls !== undefined && governsTools(version.policy);
}

function readerOf({ endpoint, body, query }: Answer): CallReader {
  const n = body?.value.n;
  return endpoint.calls!({
    choices: typeof n === 'number' ? n : 1,
    isResumed: new URLSearchParams(query).has('starting_after'),
  });
}

/** The upstream's own words on the org's credential are not the agent's to read. */
function refuseCredential(answer: Answer): Promise<never> {
  const { name } = answer.key;
  const message = `The upstream refused the org's provider key "${name}"; an admin must replace it.`;
  return discard(answer, true, 'provider_keys', message);
}

/** Whether a status can be that of an answer: runtimes pass on others, and make no answer of them. */
function isStatus(status: number): boolean {
  return status >= 200 && status <= 599;
}

/** What is above all statuses is to be read as an error (RFC 9110, 15), and costs as much. */
function refuseStatus(answer: Answer): Promise<never> {
  const { status } = answer.upstream;
  const message = `The upstream "${answer.key.name}" answered ${status}, which is no status of an answer.`;
  return discard(answer, status > 599, 'upstream', message);
}

/** Settles an answer of which nothing is told but that it came. */
async function discard(
  answer: Answer,
  isFree: boolean,
  rule: string,
  message: string,
): Promise<never> {
  const { flight, upstream, key, run } = answer;
  flight.unwatch();
  await upstream.body?.cancel().catch(() => {});
  await settleHold(answer, {
    ...beginning(answer),
    outcome: `upstream_${upstream.status}`,
    isFree,
  });
  throw new Refusal('upstream_failed', message, { rule, asked: key.name, runId: run.name });
}

async function whole(answer: Answer, meter: Meter): Promise<Response> {
  const { status } = answer.upstream;
  const isFree = isError(answer);
  const received = await readAnswer(answer);
  const known = isFree ? withoutSecret(received, answer.secret) : received;
  answer.flight.unwatch();
  const value = isFree ? undefined : parseObject(known);
  if (value) meter.body(value);
  const end: End = {
    ...beginning(answer),
    outcome: isFree ? `upstream_${status}` : 'ok',
    isFree,
    reading: meter.reading(),
    responseDigest: digest(known),
    ...(keepsBodies(answer.version.policy) ? { response: capture(known) } : {}),
  };
  const bytes = answer.translation
    ? await translated(answer, answer.translation, end, known)
    : known;
  // Errors too: not every client looks at the status before it looks for calls.
  const isJudged = isGoverned(answer) && !(isFree && isPage(answer, bytes));
  const proposals = isJudged ? readWhole(answer, bytes) : undefined;
  return conclude(answer, end, proposals, { status, headers: headersFor(answer), bytes });
}

/** Gateways answer with pages, in any encoding, in which no client looks for calls. */
function isPage({ upstream }: Answer, bytes: Uint8Array): boolean {
  const isCalledOne = /^text\/html\b/i.test(upstream.headers.get('content-type') ?? '');
  return isCalledOne && bytes.find((byte) => !BEFORE_PAGE.has(byte)) === LESS_THAN;
}

const LESS_THAN = 0x3c;
/** White space, and what the marks of byte orders and wider encodings put beside it. */
const BEFORE_PAGE = new Set([0x09, 0x0a, 0x0c, 0x0d, 0x20, 0x00, 0xef, 0xbb, 0xbf, 0xfe, 0xff]);

/** The answer in the caller's dialect; one that can't be said in it is settled and refused. */
async function translated(
  answer: Answer,
  translation: Translation,
  end: End,
  bytes: Uint8Array<ArrayBuffer>,
): Promise<Uint8Array<ArrayBuffer>> {
  const { status } = answer.upstream;
  try {
    return end.isFree ? translation.error(status, bytes) : translation.answer(bytes);
  } catch (error) {
    const isUnsayable = error instanceof Untranslatable;
    await finish(answer, isUnsayable ? { ...end, outcome: 'not_translatable' } : end);
    throw isUnsayable ? unsayable(answer, error) : error;
  }
}

function unsayable({ key, run }: Answer, { field, message }: Untranslatable): Refusal {
  const text = `The answer of the upstream "${key.name}" can't be said in the caller's dialect: ${message}.`;
  return new Refusal('not_translatable', text, { rule: 'failover', field, runId: run.name });
}

function readWhole(answer: Answer, bytes: Uint8Array): Proposals | undefined {
  if (bytes.length === 0) return undefined;
  const reader = readerOf(answer);
  const calls = reader.body(bytes);
  return { calls, fault: reader.fault, lengthBytes: bytes.length };
}

/** An answer that has been received whole. */
interface Complete {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** Settles, and does as the verdict on the proposed calls says. */
async function conclude(
  answer: Answer,
  end: End,
  proposals: Proposals | undefined,
  complete: Complete,
): Promise<Response> {
  const { verdict, parkedId } = await finishWith(answer, end, proposals, () => complete);
  if (verdict.effect === 'deny') return denyCalls(answer, verdict);
  if (verdict.effect === 'ask') return answerParked(await joinParked(answer, parkedId));
  const { status, headers, bytes } = complete;
  const hasBody = bytes.length > 0 && status !== 204;
  return respond(hasBody ? bytes : null, status, { ...headers, ...preferred(answer) });
}

/** Settles together with what follows from the verdict; settles even where that can't be had. */
async function finishWith(
  answer: Answer,
  end: End,
  proposals: Proposals | undefined,
  complete: () => Complete,
): Promise<{ verdict: Verdict; parkedId: Consequence['parkedId'] }> {
  try {
    const verdict = await judge(answer, proposals);
    const consequence =
      verdict.effect === 'ask'
        ? await parkingOf(answer, verdict, complete())
        : consequenceOf(answer, verdict);
    await finish(answer, end, ...consequence.statements);
    return { verdict, parkedId: consequence.parkedId };
  } catch (error) {
    await finish(answer, end);
    throw error;
  }
}

/** The model's work is paid for; the calls it proposed are not given out. */
function denyCalls(answer: Answer, { rule, field, asked, allowed, reason }: Denial) {
  const call = { ...answer, isRemembered: false };
  return deny(call, 'permission_denied', reason, { rule, field, asked, allowed });
}

function preferred(answer: Answer): Record<string, string> {
  return asksPeople(answer.version.policy) ? preferenceHeaders(answer) : {};
}

/** Reads a stream to its end before anything of it is sent, so that it can still be told 202. */
async function buffer(
  answer: Answer,
  meter: Meter,
  body: ReadableStream<Uint8Array>,
): Promise<Response> {
  const course = courseOf(answer, meter);
  const parts: Uint8Array[] = [];
  const reader = body.getReader();
  try {
    const next = chunksOf(reader, () => course.isOver);
    for (let chunk = await next(); chunk; chunk = await next()) {
      parts.push(course.push(chunk));
      if (course.receivedBytes > MAX_ANSWER_BYTES) {
        throw new EgressError('too_large', 'the stream is too long');
      }
    }
    if (answer.flight.ended) throw new EgressError('aborted', 'the call was ended');
    parts.push(course.end(), course.withheld);
    if (!meter.reading().complete) throw new EgressError('broken', 'the stream ended too early');
  } catch (error) {
    answer.flight.unwatch();
    void reader.cancel(error).catch(() => {});
    await finish(answer, endOf(answer, meter, course, outcomeOf(error, answer)));
    throw interruptionOf(answer, error) ?? brokenOff(answer);
  }
  answer.flight.unwatch();
  const end = endOf(answer, meter, course, 'ok');
  const headers = { ...headersFor(answer), ...STREAM_HEADERS };
  const bytes = new Uint8Array(concat(parts));
  const complete = { status: answer.upstream.status, headers, bytes };
  return conclude(answer, end, course.proposals(), complete);
}

const STREAM_HEADERS = { 'cache-control': 'no-cache, no-transform', 'x-accel-buffering': 'no' };

function courseOf(answer: Answer, meter: Meter): Course {
  const { translation, version } = answer;
  return new Course(meter, {
    copies: keepsBodies(version.policy),
    ...(translation ? { translator: translation.stream() } : {}),
    ...(isGoverned(answer) ? { policy: version.policy, reader: readerOf(answer) } : {}),
  });
}

function endOf(answer: Answer, meter: Meter, course: Course, outcome: string): End {
  return {
    ...beginning(answer),
    outcome,
    reading: meter.reading(),
    streamedBytes: course.receivedBytes,
    responseDigest: course.digest(),
    ...(course.copy ? { response: course.copy.body() } : {}),
  };
}

function stream(answer: Answer, meter: Meter, body: ReadableStream<Uint8Array>): Response {
  answer.flight.unwatch();
  const course = courseOf(answer, meter);
  const left = new AbortController();
  const headers = { ...headersFor(answer), ...STREAM_HEADERS, ...preferred(answer) };
  let closing: Promise<unknown> | undefined;
  const close = (outcome: string): Promise<unknown> => {
    // What has gone out may be acted on, whatever becomes of the rest.
    const also = () => consequenceOf(answer, course.passedVerdict()).statements;
    closing ??= finish(answer, endOf(answer, meter, course, outcome), ...also());
    return closing;
  };
  const { flight, upstream } = answer;
  const relayed = relay(body, {
    chunk: (bytes) => course.push(bytes),
    isOver: () => course.isOver,
    async *end() {
      const rest = course.end();
      // A clean end too early reads as success in every client: it has to look broken instead.
      if (!meter.reading().complete) throw new EgressError('broken', 'the stream ended too early');
      if (closing) throw new EgressError('aborted', 'the call was ended');
      const proposals = course.proposals();
      const complete = () => ({ status: upstream.status, headers, bytes: course.whole() });
      const settled = finishWith(answer, endOf(answer, meter, course, 'ok'), proposals, complete);
      closing ??= settled;
      const { verdict, parkedId } = await settled;
      yield rest;
      if (verdict.effect === 'allow') yield course.withheld;
      else yield* afterward(answer, course, verdict, parkedId, left.signal);
    },
    async broken(error) {
      left.abort();
      await close(outcomeOf(error, answer));
      const refusal = interruptionOf(answer, error);
      return refusal && errorEvent(refusal, answer.endpoint, answer.requestId);
    },
  });
  // A caller who has stopped reading would not notice that the call was ended.
  const leave = () => {
    if (flight.ended) void close(flight.ended).finally(relayed.stop);
  };
  flight.signal.addEventListener('abort', leave, { once: true });
  return respond(relayed.stream, upstream.status, headers);
}

/** What a stream's caller gets after the part of it that could pass at once. */
async function* afterward(
  answer: Answer,
  course: Course,
  verdict: Exclude<Verdict, { effect: 'allow' }>,
  parkedId: Consequence['parkedId'],
  left: AbortSignal,
): AsyncGenerator<Uint8Array, void, void> {
  try {
    if (verdict.effect === 'deny') await denyCalls(answer, verdict);
    else yield* waitInStream(await joinParked(answer, parkedId, course.passed()), left);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    yield errorEvent(error, answer.endpoint, answer.requestId);
  }
}

/** What a caller is told of an answer that was ended, where there is anything to tell. */
function interruptionOf(answer: Answer, error: unknown): Refusal | undefined {
  const { flight, run } = answer;
  if (error instanceof Untranslatable) return unsayable(answer, error);
  return interruption(flight.ended, run.name);
}

function outcomeOf(error: unknown, { flight }: Answer): string {
  if (flight.ended) return flight.ended;
  if (error instanceof SseTooLarge) return 'too_large';
  if (error instanceof Untranslatable) return 'not_translatable';
  return error instanceof EgressError ? error.code : 'client_left';
}

/**
 * Settles, or leaves the hold of a response still being made in the background to whoever fetches
 * it; one that was fetched settles the step that made it.
 */
function finish(answer: Answer, end: End, ...also: Statement[]): Promise<void> {
  const { kept, endpoint } = answer;
  const reading = end.reading!;
  const bound = [...bindResponse(answer, reading), ...also];
  if (isPending(answer, reading)) return handOver(answer, end, bound);
  const isFetched = kept && endpoint.name !== 'responses.create';
  return isFetched ? finishFetched(answer, kept, end, bound) : settleHold(answer, end, ...bound);
}

async function handOver(answer: Answer, end: End, also: readonly Statement[]): Promise<void> {
  const { flight, services, version } = answer;
  const bodies = keepsBodies(version.policy) ? await captured(answer, end.response) : [];
  return flight.handOver(BACKGROUND_LEASE_MS, services.now(), ...bodies, ...also);
}

async function finishFetched(
  answer: Answer,
  kept: KeptResponse,
  end: End,
  also: readonly Statement[],
): Promise<void> {
  const made = await settleMaker(answer, kept, end);
  await settleHold(answer, end, ...also, ...made);
}

/** A call that fetches must settle even where the maker of what it fetches can't be. */
async function settleMaker(
  answer: Answer,
  { runId, stepId }: KeptResponse,
  end: End,
): Promise<Statement[]> {
  try {
    const maker = await readMaker(answer.org, runId, stepId);
    return maker ? await settleKept(answer, maker, end) : [];
  } catch (error) {
    const message = 'a background response could not be settled; its lease will settle it';
    answer.services.log.warn(message, { step: stepId, error });
    return [];
  }
}

function isPending(answer: Answer, { status, responseId }: Reading): boolean {
  const isUnfinished = status === 'queued' || status === 'in_progress';
  return isBackground(answer) && isUnfinished && !!responseId;
}

/** Reads an answer to its end; of one that breaks, nothing has been sent to the caller yet. */
async function readAnswer(answer: Answer): Promise<Uint8Array<ArrayBuffer>> {
  try {
    const bytes = await answer.upstream.bytes(MAX_ANSWER_BYTES);
    if (isCut(answer, bytes)) throw new EgressError('broken', 'the answer ended too early');
    return bytes;
  } catch (error) {
    answer.flight.unwatch();
    const outcome = outcomeOf(error, answer);
    await settleHold(answer, { ...beginning(answer), outcome, isFree: isError(answer) });
    throw interruptionOf(answer, error) ?? brokenOff(answer);
  }
}

/**
 * Whether a JSON answer that nothing but its connection ends was cut short: no length tells that,
 * and Bun takes a reset for an end.
 */
function isCut({ upstream: { status, headers } }: Answer, bytes: Uint8Array): boolean {
  const isFramed = headers.has('content-length') || headers.has('transfer-encoding');
  const isJson = /^application\/(?:\S+\+)?json\b/i.test(headers.get('content-type') ?? '');
  return status < 300 && isJson && !isFramed && parseJson(bytes) === undefined;
}

function brokenOff(answer: Answer): Refusal {
  const { key, run, upstream } = answer;
  const message = isError(answer)
    ? `The upstream "${key.name}" answered ${upstream.status}, and its answer broke off; the call costs nothing.`
    : `The answer of the upstream "${key.name}" broke off; the call is charged at its bound.`;
  const detail = { rule: 'upstream', asked: key.name, runId: run.name };
  return new Refusal('upstream_failed', message, detail);
}

/** Whether an answer has a status for which nobody charges. */
const isError = ({ upstream }: Answer): boolean => upstream.status >= 300;

const decoder = new TextDecoder();

function parseObject(bytes: Uint8Array): JsonObject | undefined {
  const value = parseJson(bytes);
  return isObject(value) ? value : undefined;
}

function parseJson(bytes: Uint8Array): Json | undefined {
  try {
    return JSON.parse(decoder.decode(bytes)) as Json;
  } catch {
    return undefined;
  }
}

/** What is known of an answer from its first byte on. */
function beginning({ upstream, firstByteMs, secret }: Answer) {
  const { headers, status } = upstream;
  const upstreamRequestId = upstreamRequestIdOf(headers, secret);
  return { httpStatus: status, firstByteMs, upstreamRequestId };
}

function headersFor(answer: Answer) {
  const { upstream, requestId, run, outputLimit, stepId, secret } = answer;
  const headers = downstreamHeaders(upstream.headers, secret);
  headers['x-request-id'] = requestId;
  headers['request-id'] = requestId;
  headers['x-rungate-run-id'] = encodeURI(run.name);
  headers['x-rungate-step-id'] = stepId;
  if (answer.attempts > 1) {
    headers['x-rungate-attempts'] = String(answer.attempts);
    headers['x-rungate-served-by'] = encodeURI(`${answer.key.name}/${answer.model}`);
  }
  if (outputLimit !== null) headers['x-rungate-output-limit'] = String(outputLimit);
  Object.assign(headers, limitHeaders(answer.limitStates));
  return headers;
}
