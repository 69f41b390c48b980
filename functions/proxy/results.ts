/** What a request says of calls: results and approvals have to be of calls its run was given. */

import { findReleased, findUnreleased, flagResults } from '../../db/released.ts';
import type { Denial } from '../../schema/rules/decide.ts';
import { ruleOfServers } from '../../schema/rules/hosted.ts';
import { decideTool, governsTools } from '../../schema/rules/tools.ts';
import {
  type Approval,
  givenApprovals,
  mayApprove,
  type ShownCall,
} from '../providers/approvals.ts';
import { toolResults } from '../providers/results.ts';
import { digestOf } from './approved.ts';
import { Outdated } from './authenticate.ts';
import type { Permitted } from './decide.ts';
import { deny } from './deny.ts';
import type { Unparked } from './park.ts';

/**
 * Refuses approvals by which the upstream would run what nobody has approved. Flags results of
 * calls that the run was never given on its trail, once each; or refuses them, where the policy
 * says so. A policy that governs no tools knows no calls, and is passed over.
 *
 * @throws {Refusal} `permission_denied`, `invalid_body`.
 */
export function checkResults(call: Unparked): Checked | Promise<Checked> {
  const { endpoint, body, version } = call;
  const checked = call as Checked;
  if (!body || !governsTools(version.policy)) return checked;
  const results = toolResults(endpoint, body.value);
  const rule = mayApprove(endpoint, body.value) ? ruleOfServers(version.policy) : undefined;
  if (results.length === 0 && rule === undefined) return checked;
  return check(call, results, rule).then(() => checked);
}

declare const checked: unique symbol;

/** A call that brings no results and no approvals but those that may pass. */
export interface Checked extends Unparked {
  readonly [checked]: true;
}

/** @param rule The rule by which approvals are looked at; undefined where they need not be. */
async function check(
  call: Permitted,
  results: ReturnType<typeof toolResults>,
  rule: string | undefined,
): Promise<void> {
  if (rule !== undefined) await checkApprovals(call, rule, givenApprovals(call.body!.value));
  if (results.length > 0) await checkReleased(call, results);
}

async function checkApprovals(
  call: Permitted,
  rule: string,
  approvals: readonly Approval[],
): Promise<void> {
  if (approvals.length === 0) return;
  const ids = approvals.map(({ id }) => id);
  const released = await findReleased(call.org, call.run.id, ids);
  for (const approval of approvals) {
    const denial = judgeApproval(call, rule, approval, released);
    if (!denial) continue;
    const { reason, field, asked } = denial;
    await deny(call, 'permission_denied', reason, { rule: denial.rule, field, asked });
  }
}

/** The upstream may go by what the request shows, or by what it has kept: both have to be right. */
function judgeApproval(
  call: Permitted,
  rule: string,
  { id, field, calls, isReferring }: Approval,
  released: ReadonlyMap<string, string | null>,
): Denial | undefined {
  for (const shown of calls) {
    const decision = decideTool(call.version.policy, shown);
    if (decision.effect === 'deny') return { ...decision, field: shown.field };
    if (decision.effect === 'ask' && !isApproved(call, shown, released)) {
      const reason = `${decision.reason} Nobody has approved this call of it for the run; leave the approval out and let the call be proposed.`;
      return { ...decision, effect: 'deny', reason, field: shown.field };
    }
  }
  if (!isReferring || released.has(id)) return undefined;
  const reason = `This run was given no call "${id.slice(0, 100)}" to approve; leave the approval out and let the call be proposed.`;
  return { effect: 'deny', rule, field, asked: id.slice(0, 256), reason };
}

function isApproved(
  call: Permitted,
  { id, name, argsText }: ShownCall,
  released: ReadonlyMap<string, string | null>,
): boolean {
  return argsText !== undefined && released.get(id) === digestOf(call, { name, argsText });
}

async function checkReleased(
  call: Permitted,
  results: ReturnType<typeof toolResults>,
): Promise<void> {
  const { org, run, version, credential, services } = call;
  const ids = [...new Set(results.map(({ id }) => id))];
  const unreleased = await findUnreleased(org, run.id, ids);
  const [first] = unreleased;
  if (!first) return;
  if (version.policy.tools?.unreleasedResults === 'deny') {
    const { id, field } = results.find((result) => result.id === first.callId)!;
    const message = `This run was given no tool call "${id.slice(0, 100)}" through Rungate; leave its result out.`;
    const detail = { rule: 'tools.unreleasedResults', field, asked: id.slice(0, 256) };
    return deny(call, 'permission_denied', message, detail);
  }
  const unknown = unreleased.filter(({ isKnown }) => !isKnown).map(({ callId }) => callId);
  if (unknown.length === 0) return;
  if (call.isRemembered) throw new Outdated();
  await flagResults(org, run.id, credential.tokenId, unknown, services.now());
}
