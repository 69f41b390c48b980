/** Parked answers: the same request waits for the decision on its answer, then gets its bytes. */

import { expireGate, readGate } from '../../db/gates.ts';
import {
  endParked,
  findParked,
  openParked,
  type Parked,
  type ParkedAnswer,
  type ParkedRequest,
  readParked,
  release,
} from '../../db/parked.ts';
import { digestText } from '../../db/seal.ts';
import { openVault } from '../../db/vault.ts';
import { type ErrorCode, Refusal } from '../../schema/errors.ts';
import type { GateId, ParkedId } from '../../schema/ids.ts';
import {
  appliedOf,
  asksPeople,
  type GateStand,
  type Preference,
  readPrefer,
  standOf,
  statusAt,
  waitOf,
} from '../../schema/rules/gate.ts';
import { respond, respondJson } from '../edge.ts';
import { baseUrl } from '../links.ts';
import { pause, pollUntil } from '../waiting.ts';
import { Outdated } from './authenticate.ts';
import { extend } from './call.ts';
import type { Permitted } from './decide.ts';
import { deny } from './deny.ts';
import { errorEvent } from './interrupt.ts';
import { isOverdue, refuseOverdue } from './stop.ts';

/** How long a release waits for identical requests under way, so that they share it. */
const GATHER_MS = 250;
/** How often a stream that waits says so. */
const COMMENT_MS = 5_000;
const COMMENT = new TextEncoder().encode(': waiting\n\n');
const RETRY_AFTER_S = 5;
const NOTHING = new Uint8Array(0);

/** The request that an answer is parked for: what reaches the upstream, wherever it is sent. */
export function placeOf(call: Permitted): ParkedRequest {
  const { agent, run, endpoint, resourceId = '', query, requestDigest } = call;
  const text = JSON.stringify([endpoint.name, resourceId, query, requestDigest]);
  return { agentId: agent.id, runId: run.id, requestDigest: digestText(text) };
}

/** A request that waits for a parked answer. */
export interface Waiting {
  readonly call: Permitted;
  readonly parkedId: ParkedId;
  /** Bytes of the answer that the caller has got already; empty for a replay. */
  readonly passed: Uint8Array;
}

/** A call that no answer is parked for, or none as far as is remembered. */
export interface Unparked extends Permitted {
  /** As {@link Standing} has it: for the write that holds the call's money to confirm. */
  readonly unparkedSince: number | null;
}

/** How a parked answer stands for a request. */
type Stand =
  | { readonly kind: 'released'; readonly answer: ParkedAnswer }
  | { readonly kind: 'pending'; readonly gates: readonly GateStand[] }
  | {
      readonly kind: 'refused';
      readonly code: ErrorCode;
      readonly message: string;
      readonly gates: readonly GateStand[];
    };

/**
 * Finds the answer that is parked for the same request of the same run. That no answer of a run is
 * parked may be remembered too: then the write that holds the call's money confirms it.
 */
export function findWaiting(call: Permitted): Unparked | Promise<Waiting | Unparked> {
  if (!asksPeople(call.version.policy)) return extend(call, { unparkedSince: null });
  const { parked } = call.services.memory;
  const isUnparked = call.isRemembered && parked.get(call.run.id) === false;
  return isUnparked ? extend(call, { unparkedSince: call.startedAt }) : findOwn(call);
}

async function findOwn(call: Permitted): Promise<Waiting | Unparked> {
  const { id, isAny } = await findParked(call.org, placeOf(call), call.startedAt);
  call.services.memory.parked.set(call.run.id, isAny);
  if (id === undefined) return extend(call, { unparkedSince: null });
  // Nothing is held that would confirm remembered facts: they are read anew.
  if (call.isRemembered) throw new Outdated();
  return { call, parkedId: id, passed: NOTHING };
}

/**
 * The answer that a call waits for whose own was to be parked: its own, or that of an identical
 * request which was parked before.
 *
 * @param passed Bytes of its own answer that the caller has got already.
 * @throws {Refusal} `unavailable` where nothing could be parked; `approval_pending` for a caller
 *   who has got the beginning of another answer than the one that is parked.
 */
export async function joinParked(
  call: Permitted,
  own: ParkedId | undefined,
  passed: Uint8Array = NOTHING,
): Promise<Waiting> {
  const isOwn = own !== undefined && (await read(call, own)) !== undefined;
  const parkedId = isOwn ? own : (await findParked(call.org, placeOf(call), call.startedAt)).id;
  if (parkedId === undefined) {
    throw new Refusal('unavailable', 'The answer could not be kept for approval; try again.');
  }
  const waiting = { call, parkedId, passed };
  if (isOwn || passed.length === 0) return waiting;
  const { bytes } = await openAnswer(call, parkedId);
  if (!startsWith(bytes, passed)) return refuse(call, await pendingOf(call, parkedId));
  return waiting;
}

async function pendingOf(call: Permitted, id: ParkedId): Promise<Stand & { kind: 'pending' }> {
  return { kind: 'pending', gates: (await read(call, id))?.gates ?? [] };
}

function read({ org, credential, services }: Permitted, id: ParkedId): Promise<Parked | undefined> {
  return readParked(org, id, credential.tokenId, services.now());
}

function startsWith(bytes: Uint8Array, beginning: Uint8Array): boolean {
  return bytes.length >= beginning.length && beginning.every((byte, at) => byte === bytes[at]);
}

/** What the caller prefers, and how long it waits, seconds. */
function patienceOf({ request, version, body }: Permitted): {
  preference: Preference;
  waitS: number;
  isStream: boolean;
} {
  const preference = readPrefer(request.headers.get('prefer'));
  const isStream = body?.value.stream === true;
  const holdS = version.policy.tools?.holdS ?? 0;
  return { preference, isStream, waitS: waitOf(preference, holdS, isStream) };
}

/** Whether the caller would rather be told 202 than be kept or refused. */
export function prefersAsync({ request }: Permitted): boolean {
  return readPrefer(request.headers.get('prefer')).isAsync;
}

/** `Preference-Applied`, where the caller prefers anything. */
export function preferenceHeaders(call: Permitted): Record<string, string> {
  const { preference, waitS } = patienceOf(call);
  const applied = appliedOf(preference, waitS);
  return applied === '' ? {} : { 'preference-applied': applied };
}

/**
 * Answers a request whose answer is parked: with its bytes once every gate is approved, else after
 * waiting as long as the caller prefers with 202 or a refusal.
 *
 * @throws {Refusal} `approval_pending`, `approval_rejected`, `approval_expired`, `run_closed`,
 *   `agent_suspended`.
 */
export async function answerParked(waiting: Waiting): Promise<Response> {
  const { call } = waiting;
  const { preference, waitS, isStream } = patienceOf(call);
  const untilMs = Date.now() + waitS * 1_000;
  const signal = AbortSignal.any([call.request.signal, call.services.stopping.signal]);
  const first = await look(waiting, signal);
  if (first.kind === 'pending' && isStream && waitS > 0 && !preference.isAsync) {
    return streamParked(waiting);
  }
  const stand =
    first.kind === 'pending' && waitS > 0
      ? await pollUntil(() => look(waiting, signal), isSettled, untilMs, signal)
      : first;
  if (stand.kind === 'released') return respondParked(call, stand.answer);
  if (stand.kind === 'pending' && preference.isAsync) return accept(call, stand.gates);
  return refuse(call, stand);
}

function isSettled({ kind }: Stand): boolean {
  return kind !== 'pending';
}

function respondParked(call: Permitted, { status, headers, bytes }: ParkedAnswer): Response {
  return respond(bytes, status, { ...headers, ...ownHeaders(call) });
}

function ownHeaders(call: Permitted): Record<string, string> {
  return {
    ...{ 'x-request-id': call.requestId, 'request-id': call.requestId },
    'x-rungate-run-id': encodeURI(call.run.name),
    ...preferenceHeaders(call),
  };
}

/** A stream begins at once and says that it waits, so that nobody on the way gives it up. */
function streamParked(waiting: Waiting): Response {
  const left = new AbortController();
  const steps = waitInStream(waiting, left.signal);
  const stream = new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { done, value } = await steps.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    cancel: () => left.abort(),
  });
  return respond(stream, 200, {
    ...{ 'content-type': 'text/event-stream; charset=utf-8' },
    ...{ 'cache-control': 'no-cache, no-transform', 'x-accel-buffering': 'no' },
    ...ownHeaders(waiting.call),
  });
}

/**
 * Waits within a stream: yields comments, then what the caller has not got of the released answer,
 * or an error.
 *
 * @param left Aborts when the caller has left.
 */
export async function* waitInStream(
  waiting: Waiting,
  left: AbortSignal,
): AsyncGenerator<Uint8Array, void, void> {
  const { call } = waiting;
  const { waitS } = patienceOf(call);
  const untilMs = Date.now() + waitS * 1_000;
  const signal = AbortSignal.any([left, call.services.stopping.signal]);
  try {
    for (;;) {
      const nextMs = Math.min(untilMs, Date.now() + COMMENT_MS);
      const stand = await pollUntil(() => look(waiting, signal), isSettled, nextMs, signal);
      if (stand.kind === 'released') return yield restOf(waiting, stand.answer);
      const isOver = signal.aborted || Date.now() >= untilMs;
      if (stand.kind === 'refused' || isOver) return await refuse(call, stand);
      yield COMMENT;
    }
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    yield errorEvent(error, call.endpoint, call.requestId);
  }
}

/** What the caller has not got yet. */
function restOf({ passed }: Waiting, { bytes }: ParkedAnswer): Uint8Array {
  return bytes.subarray(passed.length);
}

/** Looks how the answer stands; the first to find it approved releases it. */
async function look(waiting: Waiting, signal: AbortSignal): Promise<Stand> {
  const { call, parkedId } = waiting;
  const { org, services } = call;
  for (let isFirst = true; ; isFirst = false) {
    const parked = await read(call, parkedId);
    if (!parked) throw new Refusal('unavailable', 'The parked answer is gone; try again.');
    const stand = await standFor(call, parked);
    if (stand !== 'approved') return stand;
    if (isFirst) await pause(GATHER_MS, signal);
    // Released to a caller who has left, the answer would be lost.
    if (signal.aborted) return { kind: 'pending', gates: parked.gates };
    const { callIds, digests } = await openAnswer(call, parkedId);
    // Gathering takes its time; the next turn says so.
    if (!isOverdue(call)) await release(org, parked, callIds, services.now(), digests);
  }
}

async function standFor(call: Permitted, parked: Parked): Promise<Stand | 'approved'> {
  const { gates } = parked;
  const now = call.services.now();
  const status = standOf(gates, now);
  if (parked.isRevoked)
    return refused('invalid_token', 'The Rungate token was revoked or has expired.', gates);
  if (parked.isSuspended) {
    const message = `The agent "${call.agent.name}" or its org is suspended.`;
    return refused('agent_suspended', message, gates);
  }
  if (parked.endedAt !== null && status === 'released') {
    return { kind: 'released', answer: await openAnswer(call, parked.id) };
  }
  await refuseOverdue({ ...call, isRemembered: false });
  if (parked.runStatus !== 'open') {
    const message = `The run "${call.run.name}" is ${parked.runStatus}; use a new run id.`;
    return refused('run_closed', message, gates);
  }
  if (status === 'rejected') {
    const { tool, id } = gates.find((gate) => gate.status === 'rejected')!;
    const message = `A person has rejected the call of "${tool}" (${id}); the same request is refused for the rest of the run.`;
    return refused('approval_rejected', message, gates);
  }
  if (status === 'expired') return expire(call, parked, now);
  return status === 'approved' ? status : { kind: 'pending', gates };
}

async function openAnswer({ org, services }: Permitted, id: ParkedId): Promise<ParkedAnswer> {
  return openParked(org, await openVault(org, services.master), id);
}

/** Nobody decided in time: that is told once, to all who waited, and is the end of the answer. */
async function expire({ org }: Permitted, parked: Parked, now: number): Promise<Stand> {
  const due = parked.gates.filter((gate) => statusAt(gate, now) === 'expired');
  for (const { id } of due) {
    const gate = await readGate(org, id);
    if (gate) await expireGate(org, gate, now);
  }
  await endParked(org, parked, now);
  const { tool, id } = due[0]!;
  const message = `Nobody approved the call of "${tool}" (${id}) in time; send the request again to ask anew.`;
  return refused('approval_expired', message, parked.gates);
}

function refused(code: ErrorCode, message: string, gates: readonly GateStand[]): Stand {
  return { kind: 'refused', code, message, gates };
}

/** A refusal that is final goes on the trail; one that is pending has its gates there already. */
async function refuse(
  call: Permitted,
  stand: Exclude<Stand, { kind: 'released' }>,
): Promise<never> {
  const gates = stand.gates.map(({ id, tool, rule }) => {
    return { id, tool, rule, url: gateUrl(call, id) };
  });
  const about = { rule: 'tools.requireApproval', field: 'tool', asked: askedOf(stand.gates) };
  const detail = { ...about, runId: call.run.name, gates };
  if (stand.kind === 'refused') {
    return deny({ ...call, isRemembered: false }, stand.code, stand.message, detail);
  }
  throw new Refusal('approval_pending', pendingSentence(stand.gates), {
    ...detail,
    policy: call.version.label,
  });
}

/** The tools that people are asked about: one, or all of them. */
function askedOf(gates: readonly GateStand[]): unknown {
  const tools = [...new Set(gates.map(({ tool }) => tool))];
  return tools.length === 1 ? tools[0] : tools;
}

function pendingSentence(gates: readonly GateStand[]): string {
  const open = gates.filter(({ status }) => status === 'pending');
  if (open.length === 0) return 'The call has been decided on; send the same request again.';
  const tools = open.map(({ tool }) => `"${tool.slice(0, 100)}"`).join(', ');
  const commands = open
    .map(({ id }) => `npx bun run rungate gates approve ${id} --org ORG`)
    .join('` and `');
  return `A person has to approve the call of ${tools} first, for instance with \`${commands}\`; then send the same request again.`;
}

/** Where an agent reads how its gate stands. */
export function gateUrl(
  { services, request }: Pick<Permitted, 'services' | 'request'>,
  id: GateId,
): string {
  const { config } = services;
  const base =
    config.publicUrl ?? (config.port === 0 ? new URL(request.url).origin : baseUrl(config));
  return `${base}/v1/gates/${id}`;
}

/** 202 (RFC 7240, section 4.1): the answer is not ready, and where to look. */
function accept(call: Permitted, gates: readonly GateStand[]): Response {
  const shown = gates.map(({ id, tool, rule, status, expiresAt }) => ({
    ...{ id, tool, rule, status, url: gateUrl(call, id) },
    expiresAt: new Date(expiresAt).toISOString(),
  }));
  const body = { status: 'approval_pending', message: pendingSentence(gates), gates: shown };
  return respondJson(body, 202, {
    ...ownHeaders(call),
    ...{ 'retry-after': String(RETRY_AFTER_S), location: shown[0]?.url ?? '' },
  });
}
