/** Proposed tool calls are decided before the caller sees them: they pass, or not, or wait. */

import type { Statement } from '../../db/client.ts';
import { gateOpening, MAX_ARGS_CHARS, sealArgs } from '../../db/gates.ts';
import { MAX_PARKED_BYTES, newParkedId, type ParkedAnswer, parking } from '../../db/parked.ts';
import { releasedCalls } from '../../db/released.ts';
import { newId } from '../../db/seal.ts';
import { openVault, type Vault } from '../../db/vault.ts';
import type { ParkedId } from '../../schema/ids.ts';
import type { Policy } from '../../schema/policy.ts';
import type { Denial } from '../../schema/rules/decide.ts';
import { type Ask, decideTool } from '../../schema/rules/tools.ts';
import type { ProposedCall } from '../providers/contract.ts';
import type { Answer } from './forward.ts';
import { placeOf } from './park.ts';

/** A call that a person is asked about. */
export interface AskedCall {
  readonly call: ProposedCall;
  readonly ask: Ask;
}

/** What becomes of an answer with its calls. */
export type Verdict =
  | { readonly effect: 'allow'; readonly callIds: readonly string[] }
  | Denial
  | {
      readonly effect: 'ask';
      readonly callIds: readonly string[];
      readonly asked: readonly AskedCall[];
    };

/** The most calls of one answer that people are asked about. */
const MAX_ASKED = 64;

/**
 * Decides on the calls that an answer proposes: one that is denied stops all, else one that is
 * asked about holds all.
 *
 * @param fault Why readers could read the answer as different calls, if they could.
 */
export function judgeCalls(
  policy: Policy,
  calls: readonly ProposedCall[],
  fault: string | undefined,
): Verdict {
  if (fault !== undefined) return unreadable(fault);
  const asked: AskedCall[] = [];
  for (const call of calls) {
    const decision = decideTool(policy, call);
    if (decision.effect === 'deny') return decision;
    if (decision.effect === 'ask') asked.push({ call, ask: decision });
  }
  const callIds = calls.flatMap(({ id }) => id ?? []);
  return asked.length === 0 ? { effect: 'allow', callIds } : withinLimits(callIds, asked);
}

function withinLimits(callIds: readonly string[], asked: readonly AskedCall[]): Verdict {
  const long = asked.find(({ call }) => call.argsText.length > MAX_ARGS_CHARS);
  if (long) return unaskable(long, `its arguments are longer than ${MAX_ARGS_CHARS} characters`);
  const [first] = asked;
  if (asked.length > MAX_ASKED) {
    return unaskable(first!, `more than ${MAX_ASKED} calls of one answer need approval`);
  }
  return { effect: 'ask', callIds, asked };
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

/** As {@link judgeCalls}, for an answer that can only wait while it can be kept whole. */
export function judgeKept(verdict: Verdict, lengthBytes: number): Verdict {
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
  { org, run, services }: Answer,
  verdict: Exclude<Verdict, { effect: 'ask' }>,
): Consequence {
  if (verdict.effect === 'deny' || verdict.callIds.length === 0) return NOTHING;
  return { statements: releasedCalls(org, { runId: run.id }, verdict.callIds, services.now()) };
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
  { asked, callIds }: Extract<Verdict, { effect: 'ask' }>,
  parked: Omit<ParkedAnswer, 'callIds'>,
): Promise<Consequence> {
  const { org, services } = answer;
  const now = services.now();
  const vault = await openVault(org, services.master);
  const parkedId = newParkedId(now);
  const expiresAt = Math.min(...asked.map(({ ask }) => now + ask.expiresAfterS * 1_000));
  const place = { ...placeOf(answer), stepId: answer.stepId, expiresAt };
  const { headers, ...answered } = parked;
  const kept = { ...answered, headers: lastingHeaders(headers), callIds };
  const statements = await parking(org, vault, parkedId, place, kept, now);
  for (const one of asked) statements.push(...(await opening(answer, vault, parkedId, one, now)));
  return { statements: [vault.count(), ...statements], parkedId };
}

/** What is true of the moment alone is told anew when the answer is released. */
function lastingHeaders(headers: Readonly<Record<string, string>>): Record<string, string> {
  const isLasting = ([name]: readonly [string, string]) =>
    !/ratelimit|request-id|prefer/.test(name);
  return Object.fromEntries(Object.entries(headers).filter(isLasting));
}

async function opening(
  { org, agent, run, version, credential, stepId }: Answer,
  vault: Vault,
  parkedId: ParkedId,
  { call, ask }: AskedCall,
  now: number,
): Promise<Statement[]> {
  const id = newId('gate', now);
  const { name: tool, argsText } = call;
  const expiresAt = now + ask.expiresAfterS * 1_000;
  const gate = {
    ...{ id, stepId, parkedId, expiresAt, tokenId: credential.tokenId },
    subject: {
      ...{ orgId: org.id, agentId: agent.id, runId: run.id, policyVersionId: version.id },
      ...{ tool, argsText },
    },
    ...{ rule: ask.rule, ruleName: ask.ruleName, reason: ask.reason, approvals: ask.approvals },
    args: await sealArgs(vault, id, argsText),
  };
  return gateOpening(org, gate, now);
}
