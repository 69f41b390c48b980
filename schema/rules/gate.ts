/** Gates: what a person is asked, how several decisions add up, and how long a caller waits. */

import type { AgentId, GateId, OrgId, PolicyVersionId, RunId } from '../ids.ts';
import type { Policy } from '../policy.ts';

export type GateStatus = 'pending' | 'approved' | 'rejected' | 'expired' | 'released';

/** Whether answers may have to be kept until a person has decided. */
export function asksPeople({ tools }: Policy): boolean {
  return Boolean(tools?.requireApproval?.length);
}

/** What a gate is bound to. */
export interface GateSubject {
  readonly orgId: OrgId;
  readonly agentId: AgentId;
  readonly runId: RunId;
  readonly policyVersionId: PolicyVersionId;
  readonly tool: string;
  /** The exact text of the arguments. */
  readonly argsText: string;
  /**
   * Where the tool's MCP server is, by its host and a digest of the rest, or by the id of a
   * connector; `null` for other tools.
   */
  readonly server: string | null;
}

/** The text whose SHA-256 a gate is bound to; no two subjects share one. */
export function subjectText(subject: GateSubject): string {
  const { orgId, agentId, runId, policyVersionId, tool, argsText, server } = subject;
  const place = server === null ? [] : [server];
  return JSON.stringify([orgId, agentId, runId, policyVersionId, tool, argsText, ...place]);
}

/** What of a gate decides on the answer behind it. */
export interface GateStand {
  readonly id: GateId;
  readonly tool: string;
  /** The rule that asks, as a path in the policy document. */
  readonly rule: string;
  readonly status: GateStatus;
  /** Unix milliseconds. */
  readonly expiresAt: number;
}

/** A gate's status at a moment: one that nobody used in time has expired, approved or not. */
export function statusAt(
  { status, expiresAt }: Pick<GateStand, 'status' | 'expiresAt'>,
  now: number,
) {
  const isOpen = status === 'pending' || status === 'approved';
  return isOpen && expiresAt <= now ? 'expired' : status;
}

/**
 * What several gates come to: one rejection rejects all, then one expiry ends all, and only when
 * each is approved may what is behind them pass.
 */
export function standOf(gates: readonly GateStand[], now: number): GateStatus {
  const statuses = new Set(gates.map((gate) => statusAt(gate, now)));
  for (const status of ['rejected', 'expired', 'pending', 'released'] as const) {
    if (statuses.has(status)) return status;
  }
  return 'approved';
}

/** The longest that a call waits for a person, seconds. */
export const MAX_WAIT_S = 240;
export const MAX_STREAM_WAIT_S = 3_600;

/** What a caller prefers while a person decides (RFC 7240). */
export interface Preference {
  /** How long to wait, seconds; `undefined` where the caller doesn't say. */
  readonly waitS: number | undefined;
  /** Whether a pending answer is told as 202 instead of a refusal. */
  readonly isAsync: boolean;
}

const NO_PREFERENCE: Preference = { waitS: undefined, isAsync: false };

/**
 * Reads a `Prefer` header (RFC 7240, section 2): of a preference given twice the first counts, and
 * what is not understood is passed over.
 */
export function readPrefer(header: string | null): Preference {
  if (header === null) return NO_PREFERENCE;
  const given = new Map<string, string>();
  for (const part of header.slice(0, 1_000).split(',')) {
    const [name = '', value = ''] = (part.split(';')[0] ?? '').split('=');
    const key = name.trim().toLowerCase();
    if (!given.has(key)) given.set(key, value.trim().replace(/^"(.*)"$/, '$1'));
  }
  const wait = given.get('wait') ?? '';
  return {
    waitS: /^\d{1,9}$/.test(wait) ? Number(wait) : undefined,
    isAsync: given.has('respond-async'),
  };
}

/**
 * How long a call may wait, seconds: as it prefers, else as its policy says, within the cap. One
 * that asks for a 202 and names no wait doesn't want to be kept.
 */
export function waitOf({ waitS, isAsync }: Preference, holdS: number, isStream: boolean): number {
  return Math.min(waitS ?? (isAsync ? 0 : holdS), isStream ? MAX_STREAM_WAIT_S : MAX_WAIT_S);
}

/** `Preference-Applied` (RFC 7240, section 3) for the preferences that were heeded. */
export function appliedOf(preference: Preference, waitedS: number): string {
  const wait = preference.waitS === undefined ? [] : [`wait=${waitedS}`];
  return [...(preference.isAsync ? ['respond-async'] : []), ...wait].join(', ');
}
