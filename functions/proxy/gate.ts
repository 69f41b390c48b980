/** Proposed tool calls are decided before the caller sees them: they pass, or not, or wait. */

import type { Statement } from '../../db/client.ts';
import { gateOpening, MAX_ARGS_CHARS, sealArgs } from '../../db/gates.ts';
import { MAX_PARKED_BYTES, newParkedId, type ParkedAnswer, parking } from '../../db/parked.ts';
import { approvedCalls, releasedCalls } from '../../db/released.ts';
import { newId } from '../../db/seal.ts';
import { openVault, type Vault } from '../../db/vault.ts';
import type { ParkedId } from '../../schema/ids.ts';
import { Inquiry } from '../../schema/rules/condition.ts';
import type { Denial } from '../../schema/rules/decide.ts';
import { type Ask, decideTool } from '../../schema/rules/tools.ts';
import type { ProposedCall } from '../providers/contract.ts';
import { digestOf, findApproved, serverOf, subjectOf } from './approved.ts';
import type { Answer } from './forward.ts';
import { placeOf } from './park.ts';

/** A call that a person is asked about. */
export interface AskedCall {
  readonly call: ProposedCall;
  readonly ask: Ask;
}

/** The calls of an answer, as they were read. */
export interface Proposals {
  readonly calls: readonly ProposedCall[];
  /** Why readers could read the answer as different calls, if they could. */
  readonly fault: string | undefined;
  /** Of the answer, as far as it is there to be kept. */
  readonly lengthBytes: number;
}

/** The calls that an answer gives out. */
interface Given {
  readonly callIds: readonly string[];
  /** Those that a rule asks about, and that ran since people had approved them. */
  readonly approved: readonly ProposedCall[];
}

/** What becomes of an answer with its calls. */
export type Verdict =
  | ({ readonly effect: 'allow' } & Given)
  | Denial
  | ({ readonly effect: 'ask'; readonly asked: readonly AskedCall[] } & Given);

/** The most calls of one answer that people are asked about. */
const MAX_ASKED = 64;

const ALLOWED: Verdict = { effect: 'allow', callIds: [], approved: [] };

/** Decides on the calls of an answer; there are none to decide on without proposals. */
export async function judge(answer: Answer, proposals: Proposals | undefined): Promise<Verdict> {
  if (!proposals) return ALLOWED;
  const { calls, fault, lengthBytes } = proposals;
  if (fault !== undefined) return unreadable(fault);
  const approved = await findApproved(answer, calls);
  return judgeKept(judgeCalls(answer, calls, approved), lengthBytes);
}

/**
 * One call that is denied stops all, else one that is asked about holds all.
 *
 * @param approved Those of which people are not asked again.
 */
function judgeCalls(
  { version, endpoint }: Answer,
  calls: readonly ProposedCall[],
  approved: ReadonlySet<ProposedCall>,
): Verdict {
  const asked: AskedCall[] = [];
  const inquiry = new Inquiry();
  for (const call of calls) {
    const decision = decideTool(version.policy, call, inquiry);
    if (decision.effect === 'deny') return decision;
    const isNew = !call.isRepeat && !approved.has(call);
    if (decision.effect === 'ask' && isNew) asked.push({ call, ask: decision });
  }
  // A list of inputs has the agent's own words, and gives it nothing.
  const isGiven = endpoint.name !== 'responses.input_items';
  const callIds = isGiven ? calls.flatMap(({ id }) => id ?? []) : [];
  const given = { callIds, approved: [...approved] };
  return asked.length === 0 ? { effect: 'allow', ...given } : withinLimits(given, asked);
}

function withinLimits(given: Given, asked: readonly AskedCall[]): Verdict {
  const long = asked.find(({ call }) => call.argsText.length > MAX_ARGS_CHARS);
  if (long) return unaskable(long, `its arguments are longer than ${MAX_ARGS_CHARS} characters`);
  const [first] = asked;
  if (asked.length > MAX_ASKED) {
    return unaskable(first!, `more than ${MAX_ASKED} calls of one answer need approval`);
  }
  return { effect: 'ask', ...given, asked };
}

function unaskable({ call, ask }: AskedCall, why: string): Denial {
  return {
    ...{ effect: 'deny', rule: ask.rule, field: ask.field, asked: call.name.slice(0, 256) },
    reason: `Nobody can be asked to approve "${call.name.slice(0, 200)}": ${why}.`,
  };
}

function unreadable(fault: string): Denial {
  return {
    ...{ effect: 'deny', rule: 'tools.readable', field: 'response', asked: fault },
    reason: `The upstream's answer is withheld because readers could read its tool calls in two ways: ${fault}.`,
  };
}

/** An answer can only wait while it can be kept whole. */
function judgeKept(verdict: Verdict, lengthBytes: number): Verdict {
  if (verdict.effect !== 'ask' || lengthBytes <= MAX_PARKED_BYTES) return verdict;
  return unaskable(verdict.asked[0]!, `the answer is longer than ${MAX_PARKED_BYTES} bytes`);
}

/** What is written with the settlement of an answer, and where the answer is parked by it. */
export interface Consequence {
  readonly statements: readonly Statement[];
  readonly parkedId?: ParkedId;
}

/** What follows where nobody is asked: allowed calls are remembered as the run's. */
export function consequenceOf(
  answer: Answer,
  verdict: Exclude<Verdict, { effect: 'ask' }>,
): Consequence {
  if (verdict.effect === 'deny' || verdict.callIds.length === 0) return NOTHING;
  const { org, run, services } = answer;
  const now = services.now();
  const released = releasedCalls(org, { runId: run.id }, verdict.callIds, now);
  return { statements: [...released, ...noteOf(answer, verdict, now)] };
}

/** What ran upstream goes on the trail, as it was approved. */
function noteOf(
  { org, run, credential }: Answer,
  { approved }: Given,
  now: number,
): readonly Statement[] {
  if (approved.length === 0) return [];
  const calls = approved.map(({ id, name, approvalId }) => {
    return { callId: id, tool: name, approvalId: approvalId! };
  });
  return [approvedCalls(org, run.id, credential.tokenId, calls, now)];
}

const NOTHING: Consequence = { statements: [] };

/**
 * What follows where people are asked: the answer is parked, with a gate for each call that they are
 * asked about.
 *
 * @throws {SealError}
 */
export async function parkingOf(
  answer: Answer,
  verdict: Extract<Verdict, { effect: 'ask' }>,
  parked: Omit<ParkedAnswer, 'callIds' | 'digests'>,
): Promise<Consequence> {
  const { asked, callIds } = verdict;
  const { org, services } = answer;
  const now = services.now();
  const vault = await openVault(org, services.master);
  const parkedId = newParkedId(now);
  // The answer ends with the first of its gates, so that none may seem to be open for longer.
  const expiresAt = now + Math.min(...asked.map(({ ask }) => ask.expiresAfterS)) * 1_000;
  const request = { ...placeOf(answer), stepId: answer.stepId, expiresAt };
  const { headers, ...answered } = parked;
  const placed = asked.map(({ call, ask }) => ({ call: withServer(answer, call), ask }));
  const digests = placed.flatMap(({ call }) => approvable(answer, call));
  const kept = { ...answered, headers: lastingHeaders(headers), callIds, digests };
  const statements = await parking(org, vault, parkedId, request, kept, now);
  const place = { parkedId, expiresAt };
  for (const one of placed) statements.push(...(await opening(answer, vault, place, one, now)));
  statements.push(...noteOf(answer, verdict, now));
  return { statements: [vault.count(), ...statements], parkedId };
}

/** A call that comes back as one that ran, and is known by its digest then. */
function approvable(answer: Answer, call: PlacedCall): (readonly [id: string, digest: string])[] {
  if (call.kind !== 'mcp_approval_request' || call.id === null) return [];
  return [[call.id, digestOf(answer, call)]];
}

/** A call with where its MCP server is, if it is of one. */
type PlacedCall = ReturnType<typeof withServer>;

function withServer(answer: Answer, call: ProposedCall) {
  const isOfServer = call.kind.startsWith('mcp_');
  return { ...call, server: isOfServer ? serverOf(answer, call.name) : null };
}

/** What is true of the moment alone is told anew when the answer is released. */
function lastingHeaders(headers: Readonly<Record<string, string>>): Record<string, string> {
  const isLasting = ([name]: readonly [string, string]) =>
    !/ratelimit|request-id|prefer/.test(name);
  return Object.fromEntries(Object.entries(headers).filter(isLasting));
}

async function opening(
  answer: Answer,
  vault: Vault,
  place: { readonly parkedId: ParkedId; readonly expiresAt: number },
  { call, ask }: AskedCall & { readonly call: PlacedCall },
  now: number,
): Promise<Statement[]> {
  const { stepId, credential } = answer;
  const id = newId('gate', now);
  const gate = {
    ...{ id, stepId, ...place, tokenId: credential.tokenId },
    subject: subjectOf(answer, call),
    ...{ rule: ask.rule, ruleName: ask.ruleName, reason: ask.reason, approvals: ask.approvals },
    args: await sealArgs(vault, id, call.argsText),
  };
  return gateOpening(answer.org, gate, now);
}
