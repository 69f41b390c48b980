/** Local tools: an agent asks before it runs one, and reports what came of it. */

import { z } from 'zod';
import { drawLines, driftEvents } from '../db/alerts.ts';
import {
  type Gate,
  MAX_ARGS_CHARS,
  MAX_OPEN_ASKS,
  openAsk,
  readAwaited,
  tellExpiry,
  useGate,
} from '../db/gates.ts';
import type { Charge } from '../db/limits.ts';
import { readPolicyVersion } from '../db/policies.ts';
import { recordReport } from '../db/reports.ts';
import { blockRun, findRun } from '../db/runs.ts';
import { readScopes } from '../db/scopes.ts';
import { digest } from '../db/seal.ts';
import { type Remark, recordRemark } from '../db/steps.ts';
import { openVault } from '../db/vault.ts';
import { Refusal } from '../schema/errors.ts';
import { InvalidJson, type JsonObject, parseStrict, type StrictBody } from '../schema/json.ts';
import { formatDollars, MAX_NANOS } from '../schema/money.ts';
import { wordSchema } from '../schema/names.ts';
import { dollars } from '../schema/policy.ts';
import { formatPlace, problemsOf } from '../schema/problems.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import type { Denial } from '../schema/rules/decide.ts';
import { type GateSubject, MAX_WAIT_S, readPrefer, statusAt } from '../schema/rules/gate.ts';
import { nameRun } from '../schema/rules/identity.ts';
import { type Ask, decideTool } from '../schema/rules/tools.ts';
import { respondJson } from './edge.ts';
import { authenticate, type Caller } from './proxy/authenticate.ts';
import { readBody, strictBody } from './proxy/body.ts';
import type { Call } from './proxy/call.ts';
import type { Governed } from './proxy/deny.ts';
import { gateUrl } from './proxy/park.ts';
import { blockedUntil, ceilingsOf } from './proxy/reserve.ts';
import { refuseUnpermitted, resolveRun } from './proxy/run.ts';
import { isOverdue, refuseStopped, stopRun, takenOf } from './proxy/stop.ts';
import { markOf } from './reports.ts';
import type { Services } from './services.ts';
import { pollUntil } from './waiting.ts';

const BODY_LIMITS = { maxEncodedBytes: 1024 * 1024, maxDecodedBytes: 1024 * 1024 };
const MAX_NAME_CHARS = 512;
const MAX_DETAIL_CHARS = 16_384;
const MAX_KEY_CHARS = 255;
const DAY_MS = 86_400_000;
/** People take their time. */
const RETRY_AFTER_S = 60;
/** How far a caller's clock may be ahead. */
const SKEW_MS = 60_000;

/** The body of a question about a tool. */
export const asking = z.strictObject({
  name: wordSchema(MAX_NAME_CHARS),
  /** An object, or its JSON as models give it. */
  arguments: z
    .union([z.record(z.string(), z.unknown()), z.string()])
    .optional()
    .describe('The arguments, as an object or as its JSON.'),
});

/** The body of a report of a tool that was run. */
export const reporting = z.strictObject({
  kind: z.literal('tool_call'),
  name: wordSchema(MAX_NAME_CHARS),
  callId: wordSchema(256).optional(),
  outcome: z.string().regex(/^[a-z0-9_]{1,64}$/, 'must be of a-z, 0-9 and _, such as ok or error'),
  latencyMs: z
    .int()
    .min(0)
    .max(31 * DAY_MS),
  costUsd: dollars.default('0' as never),
  startedAt: z.iso.datetime({ offset: true }).optional(),
  /** In place of the header `Idempotency-Key`. */
  id: wordSchema(MAX_KEY_CHARS).optional(),
  detail: z.unknown().optional(),
});

/** The body of a request, checked; every fault is told with its place. */
function parseBody<T>(bytes: Uint8Array, schema: z.ZodType<T>): { body: StrictBody; value: T } {
  const body = strictBody(bytes, new Set(Object.keys((schema as unknown as z.ZodObject).shape)));
  const parsed = schema.safeParse(body.value);
  if (parsed.success) return { body, value: parsed.data };
  const [problem] = problemsOf(parsed.error.issues);
  const field = formatPlace(problem?.path ?? []) || 'body';
  throw new Refusal('invalid_request', `${field}: ${problem?.message ?? 'is not valid'}.`, {
    field,
  });
}

/** A request about a run, as a call of it: the run is joined or opened just so. */
function callOn(caller: Caller, name: string, bytes: Uint8Array<ArrayBuffer>): Call {
  const path = new URL(caller.request.url).pathname;
  return {
    ...caller,
    ...{ path, query: '', endpoint: undefined, resourceId: undefined, bytes, body: undefined },
    requestDigest: digest(bytes),
    runName: nameRun(new Headers(), name, undefined),
  };
}

/** A tool call that is asked about. */
interface Question {
  readonly call: Governed;
  readonly name: string;
  readonly subject: GateSubject;
}

/**
 * `POST /v1/runs/{id}/tools`: whether a tool may be run with these arguments. Answers 200 with
 * `allow`, `deny`, or `ask` and the gate that a person has to decide; the same question finds the
 * same gate, and its approval allows one call. `Prefer: wait=N` (RFC 7240) waits for the decision.
 *
 * @throws {Refusal} `invalid_body`, `invalid_request`, `run_closed`, `budget_exceeded`, `rate_limited`.
 */
export async function askTool(
  services: Services,
  request: Request,
  run: string,
): Promise<Response> {
  const caller = await authenticate(services, request, 'tool.ask');
  const bytes = await readBody(request, BODY_LIMITS, services.stopping.signal);
  const { body, value } = parseBody(bytes, asking);
  const { args, argsText } = argumentsOf(body, value.arguments);
  const call = await resolveRun(callOn(caller, run, bytes));
  await refuseStopped(call);
  const { name } = value;
  const subject = {
    ...{ orgId: call.org.id, agentId: call.agent.id, runId: call.run.id },
    ...{ policyVersionId: call.version.id, tool: name, argsText, server: null },
  };
  const question = { call, name, subject };
  const decision = decideTool(call.version.policy, { name, args, argsText });
  if (decision.effect === 'ask') return askPeople(question, decision);
  return decision.effect === 'deny' ? denyTool(question, decision) : allowTool(question);
}

/** The arguments, and the exact text that an approval is bound to. */
function argumentsOf(body: StrictBody, given: object | string | undefined) {
  const span = body.members.get('arguments');
  const argsText = typeof given === 'string' ? given : span ? slice(body.text, span) : '';
  if (argsText.length > MAX_ARGS_CHARS) {
    const message = `arguments: must have at most ${MAX_ARGS_CHARS} characters.`;
    throw new Refusal('invalid_request', message, { field: 'arguments' });
  }
  return {
    args: typeof given === 'string' ? parseArguments(given) : given && parseArguments(argsText),
    argsText,
  };
}

const slice = (text: string, span: { start: number; end: number }) =>
  text.slice(span.start, span.end);

/** What can't be read in one way only is for a person to read. */
function parseArguments(text: string): JsonObject | undefined {
  try {
    return parseStrict(new TextEncoder().encode(text), new Set()).value;
  } catch (error) {
    if (error instanceof InvalidJson) return undefined;
    throw error;
  }
}

/** A tool that may be run is a step of its run, whose bounds it has to fit. */
async function allowTool(question: Question): Promise<Response> {
  const { call } = question;
  const allowed = { kind: 'note', outcome: 'tool_allowed', isCounted: true } as const;
  const charges = boundsOf(call);
  if (await note(question, { ...allowed, charges })) return answer(question, { decision: 'allow' });
  await refuseStopped(call);
  throw new Refusal('unavailable', 'The run has changed meanwhile; ask again.');
}

/** What running a tool takes of the bounds of its run. */
function boundsOf(call: Governed): Charge[] {
  return takenOf(call, 'steps', 'duration');
}

async function denyTool(question: Question, denial: Denial): Promise<Response> {
  const { call } = question;
  const { rule, reason, asked, allowed } = denial;
  const drift = {
    ...{ runId: call.run.id, agentId: call.agent.id, policy: call.version.label },
    ...{ rule, asked, now: call.services.now() },
  };
  const detail = { rule, message: reason, asked, allowed };
  const charges = takenOf(call, 'same_request');
  const denied = { kind: 'denial', outcome: 'permission_denied', detail, charges } as const;
  const isNoted = await note(question, denied, ...driftEvents(call.org, drift));
  if (charges[0] && !isNoted) return stopRun(call, charges[0].limit);
  return answer(question, { decision: 'deny', rule, reason });
}

/** What is put on the trail of an answer. */
interface Noted extends Pick<Remark, 'kind' | 'outcome' | 'charges' | 'isCounted'> {
  readonly detail?: object;
}

/** Puts an answer on the run's trail; returns whether its charges fit. */
async function note(
  { call, name }: Question,
  { detail, ...noted }: Noted,
  ...also: Parameters<typeof recordRemark>[2][]
): Promise<boolean> {
  const now = call.services.now();
  const remark = {
    ...{ ...noted, now, runId: call.run.id, windows: windowsOf(now) },
    asked: { endpoint: 'runs.tools', tokenId: call.credential.tokenId },
    answered: { detail: { tool: name, ...detail } },
  };
  return (await recordRemark(call.org, remark, ...also)) !== undefined;
}

function answer({ call }: Question, decided: object, headers = {}): Response {
  const { requestId, run, version } = call;
  const body = { rule: null, reason: null, ...decided, runId: run.name, policy: version.label };
  return respondJson(body, 200, {
    ...{ 'x-request-id': requestId, 'x-rungate-run-id': encodeURI(run.name) },
    ...headers,
  });
}

/** Asks once: the same question finds the gate that is open, or the refusal that it has met. */
async function askPeople(question: Question, ask: Ask): Promise<Response> {
  const { call, subject } = question;
  const { org, services } = call;
  const vault = await openVault(org, services.master);
  const now = services.now();
  const expiresAt = now + ask.expiresAfterS * 1_000;
  const { rule, ruleName, reason, approvals } = ask;
  const gate = await openAsk(
    org,
    vault,
    { subject, rule, ruleName, reason, approvals, expiresAt, tokenId: call.credential.tokenId },
    now,
  );
  if (!gate) throw tooMany();
  return tell(question, ask, await awaitDecision(call, gate));
}

function tooMany(): Refusal {
  const message = `${MAX_OPEN_ASKS} gates of this agent wait for people, as many as may; try again when some are decided.`;
  return new Refusal('rate_limited', message, { rule: 'gates.open', retryAfterS: RETRY_AFTER_S });
}

/** Waits along as the caller prefers; who has been stopped meanwhile is refused, at once. */
async function awaitDecision(call: Governed, gate: Gate): Promise<Gate> {
  const { org, services, request, credential } = call;
  const waitS = waitSecondsOf(request);
  if (waitS === 0) return gate;
  const signal = AbortSignal.any([request.signal, services.stopping.signal]);
  const read = () => readAwaited(org, gate.id, credential.tokenId, services.now());
  const seen = await pollUntil(
    async () => (await read()) ?? { gate, isOver: true },
    ({ gate, isOver }) => isOver || isOverdue(call) || statusAt(gate, services.now()) !== 'pending',
    Date.now() + waitS * 1_000,
    signal,
  );
  await authenticate(services, request, 'tool.ask');
  await refuseStopped(call);
  return seen.gate;
}

function waitSecondsOf({ headers }: Request): number {
  return Math.min(readPrefer(headers.get('prefer')).waitS ?? 0, MAX_WAIT_S);
}

/** Answers as the gate stands; the first to learn of an approval uses it up. */
async function tell(question: Question, ask: Ask, gate: Gate): Promise<Response> {
  const { call } = question;
  const { org, services, request } = call;
  const now = services.now();
  const status = statusAt(gate, now);
  const { rule } = ask;
  const shown = {
    ...{ id: gate.id, status, url: gateUrl(call, gate.id) },
    expiresAt: new Date(gate.expiresAt).toISOString(),
  };
  const waitS = waitSecondsOf(request);
  const headers = waitS > 0 ? { 'preference-applied': `wait=${waitS}` } : {};
  if (status === 'approved' && (await useGate(org, gate, now, boundsOf(call)))) {
    const used = { ...shown, status: 'released' };
    const reason = `A person has approved this call of "${gate.tool}".`;
    return answer(
      question,
      { decision: 'allow', released: true, rule, reason, gate: used },
      headers,
    );
  }
  if (status === 'rejected' || status === 'expired') {
    if (status === 'expired') await tellExpiry(org, gate, now);
    const reason =
      status === 'rejected'
        ? `A person has rejected the call of "${gate.tool}"; it stays so for the rest of the run.`
        : `Nobody approved the call of "${gate.tool}" in time; ask again to open another gate.`;
    const detail = { rule, message: reason, gate: gate.id };
    await note(question, { kind: 'denial', outcome: `approval_${status}`, detail });
    return answer(question, { decision: 'deny', rule, reason, gate: shown }, headers);
  }
  if (status === 'approved') await refuseStopped(call);
  // Someone else has used the approval: this call needs one of its own.
  if (status !== 'pending') return askPeople(question, ask);
  return answer(question, { decision: 'ask', rule, reason: ask.reason, gate: shown }, headers);
}

/**
 * `POST /v1/runs/{id}/steps`: what came of a tool that the agent ran itself. Its cost counts in the
 * run and in every window, also where it passes a ceiling: the run is stopped then. A repeated
 * `Idempotency-Key` answers 200 with the step that is there, a new one 201.
 *
 * @throws {Refusal} `invalid_body`, `invalid_request`.
 */
export async function reportTool(
  services: Services,
  request: Request,
  name: string,
): Promise<Response> {
  const caller = await authenticate(services, request, 'step.report');
  const bytes = await readBody(request, BODY_LIMITS, services.stopping.signal);
  const { value } = parseBody(bytes, reporting);
  const run = await runFor(caller, name, bytes);
  const now = services.now();
  const windows = windowsOf(now);
  const place = { runId: run.id, windows, now };
  await drawLines(caller.org, caller.agent.id, run.version, windows);
  const reported = await recordReport(caller.org, {
    ...place,
    ...{ tokenId: caller.credential.tokenId, key: keyOf(request, value.id) },
    ...{ outcome: value.outcome, latencyMs: value.latencyMs, spentNanos: value.costUsd },
    ...{ startedAt: startOf(value, now), detail: detailOf(value) },
    mark: await markOf(caller.org, run, value),
  });
  if (!reported) {
    const message = `costUsd: the costs of a run or a month come to at most $${formatDollars(MAX_NANOS)}.`;
    throw new Refusal('invalid_request', message, { field: 'costUsd' });
  }
  if (reported.outcome === 'other') {
    throw new Refusal('invalid_request', 'This idempotency key stands for another report.', {
      field: 'Idempotency-Key',
    });
  }
  if (value.costUsd > 0) await stopSpent(caller, run, now);
  const { step } = reported;
  return respondJson({ runId: run.name, step }, reported.outcome === 'recorded' ? 201 : 200);
}

type Run = Pick<Governed, 'version'> & Governed['run'];

/** The run in any status, or a new one: what has happened on the token's own runs is not refused. */
async function runFor(caller: Caller, name: string, bytes: Uint8Array<ArrayBuffer>): Promise<Run> {
  const { org, agent } = caller;
  const call = callOn(caller, name, bytes);
  const present = await findRun(org, agent.id, call.runName?.name ?? name);
  const version = present && (await readPolicyVersion(org, present.policyVersionId));
  if (present && version) {
    await refuseUnpermitted({ ...call, run: present, version, windowSince: null });
    return { ...present, version };
  }
  const { run, version: opened } = await resolveRun(call);
  return { ...run, version: opened };
}

function keyOf({ headers }: Request, id: string | undefined): string | null {
  const key = id ?? headers.get('idempotency-key');
  if (key !== null && (key === '' || key.length > MAX_KEY_CHARS)) {
    const message = `The header must have 1 to ${MAX_KEY_CHARS} characters.`;
    throw new Refusal('invalid_request', message, { field: 'Idempotency-Key' });
  }
  return key;
}

function startOf(value: z.output<typeof reporting>, now: number): number {
  if (value.startedAt === undefined) return Math.max(0, now - value.latencyMs);
  const at = Date.parse(value.startedAt);
  if (at >= now - 31 * DAY_MS && at <= now + SKEW_MS) return Math.min(at, now);
  throw new Refusal('invalid_request', 'startedAt: must be within the last 31 days.', {
    field: 'startedAt',
  });
}

function detailOf({ name, callId, detail }: z.output<typeof reporting>): object {
  const told = { tool: name, ...(callId === undefined ? {} : { callId }) };
  if (detail === undefined) return told;
  if (JSON.stringify(detail).length <= MAX_DETAIL_CHARS) return { ...told, detail };
  const message = `detail: must have at most ${MAX_DETAIL_CHARS} characters of JSON.`;
  throw new Refusal('invalid_request', message, { field: 'detail' });
}

/** Stops a run whose reported costs have passed a ceiling. */
async function stopSpent({ org, agent }: Caller, run: Run, now: number): Promise<void> {
  const windows = windowsOf(now);
  const place = { runId: run.id, agentId: agent.id, windows };
  const scopes = await readScopes(org, place, ceilingsOf(run.version.policy));
  const scope = scopes.find(({ spentNanos, ceilingNanos }) => spentNanos > ceilingNanos);
  if (!scope) return;
  const until = blockedUntil(scope, windows);
  const options = { whileHeld: true, scope };
  await blockRun(org, run.id, `budget.${scope.name}`, until, now, options);
}
