/** What a request says of calls: results and approvals have to be of calls its run was given. */

import {
  findReleased,
  findReleasedBefore,
  findUnreleased,
  flagResults,
  type ReleasedBefore,
  type ReleasedCall,
} from '../../db/released.ts';
import { Inquiry } from '../../schema/rules/condition.ts';
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
import { digestOf, serverOf, usedUp } from './approved.ts';
import { Outdated } from './authenticate.ts';
import { extend } from './call.ts';
import type { Permitted } from './decide.ts';
import type { Unparked } from './park.ts';
import { denyRequest } from './stop.ts';

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
  return check(checked, results, rule);
}

declare const checked: unique symbol;

/** A call that brings no results and no approvals but those that may pass. */
export interface Checked extends Unparked {
  readonly [checked]: true;
  /** The calls that people approved and that this one has run, by their ids; absent for none. */
  readonly approving?: readonly string[];
}

/** @param rule The rule by which approvals are looked at; undefined where they need not be. */
async function check(
  call: Checked,
  results: ReturnType<typeof toolResults>,
  rule: string | undefined,
): Promise<Checked> {
  const approvals = rule === undefined ? [] : givenApprovals(call.body!.value);
  const approving = approvals.length > 0 ? await checkApprovals(call, rule!, approvals) : [];
  if (results.length > 0) await checkReleased(call, results);
  return approving.length > 0 ? extend(call, { approving }) : call;
}

/** Returns the ids of the calls that people approved and that are now to run. */
async function checkApprovals(
  call: Permitted,
  rule: string,
  approvals: readonly Approval[],
): Promise<string[]> {
  const given = await findGiven(
    call,
    approvals.map(({ id }) => id),
  );
  const inquiry = new Inquiry();
  for (const approval of approvals) {
    const denial = judgeApproval(call, rule, approval, given, inquiry);
    if (!denial) continue;
    const { reason, field, asked } = denial;
    await denyRequest(call, 'permission_denied', reason, { rule: denial.rule, field, asked });
  }
  return approvals.filter((approval) => isToRun(approval, given)).map(({ id }) => id);
}

/** Whether people approved a call for the run and it is not shown as one that has run since. */
function isToRun({ id, hasRun }: Approval, { here }: Given): boolean {
  const released = here.get(id);
  const isApproved = released !== undefined && released.digest !== null;
  return isApproved && !(hasRun && released.isUsed);
}

/** The calls that were given, by their ids. */
interface Given {
  /** To the run. */
  readonly here: ReadonlyMap<string, ReleasedCall>;
  /** To other runs of its agent. */
  readonly before: ReadonlyMap<string, ReleasedBefore>;
}

async function findGiven({ org, agent, run }: Permitted, ids: readonly string[]): Promise<Given> {
  const here = await findReleased(org, run.id, ids);
  const others = ids.filter((id) => !here.has(id));
  if (others.length === 0) return { here, before: new Map() };
  return { here, before: await findReleasedBefore(org, agent.id, others) };
}

/** The upstream may go by what the request shows, or by what it has kept: both have to be right. */
function judgeApproval(
  call: Permitted,
  rule: string,
  approval: Approval,
  given: Given,
  inquiry: Inquiry,
): Denial | undefined {
  const { id, field } = approval;
  for (const shown of approval.calls) {
    const decision = decideTool(call.version.policy, shown, inquiry);
    if (decision.effect === 'deny') return { ...decision, field: shown.field };
    if (decision.effect === 'ask' && !isApproved(call, shown, approval, given)) {
      const reason = `${decision.reason} Nobody has approved this call of it for the run; leave the approval out and let the call be proposed.`;
      return { ...decision, effect: 'deny', reason, field: shown.field };
    }
  }
  const refused = isToRun(approval, given) ? whyNotRun(call, id, given.here.get(id)!) : undefined;
  if (refused) return { effect: 'deny', rule, field, asked: id.slice(0, 256), reason: refused };
  if (!approval.isReferring || isKnown(call, id, given)) return undefined;
  const reason = `This run was given no call "${id.slice(0, 100)}" to approve; leave the approval out and let the call be proposed.`;
  return { effect: 'deny', rule, field, asked: id.slice(0, 256), reason };
}

/** Why a call that people approved may not run: it has before, or elsewhere than they were shown. */
function whyNotRun(
  call: Permitted,
  id: string,
  { isUsed, tool, server }: ReleasedCall,
): string | undefined {
  if (isUsed) return usedUp(id);
  const approved = `People approved "${(tool ?? '').slice(0, 100)}"`;
  // A conversation may bring tools of its own, and each one others under the same label.
  if (server === null) {
    return `${approved} without being shown where its server is; declare that and let the call be proposed again.`;
  }
  if (server === serverOf(call, tool ?? '')) return undefined;
  return `${approved} of the server at ${server.slice(0, 200)}, which this request doesn't declare under that label; declare it as it was.`;
}

/** What another run had approved may be shown where it has run, but does not run again. */
function isApproved(
  call: Permitted,
  { id, name, argsText }: ShownCall,
  { hasRun }: Approval,
  { here, before }: Given,
): boolean {
  if (argsText === undefined) return false;
  const earlier = hasRun ? before.get(id) : undefined;
  const { digest, server = null } = here.get(id) ?? earlier ?? {};
  return digest === digestOf({ ...call, ...earlier }, { name, argsText, server });
}

/** Whether the policy has let the call pass under its id: for the run, or without asking. */
function isKnown({ version }: Permitted, id: string, { here, before }: Given): boolean {
  const earlier = before.get(id);
  const isUnasked = earlier?.digest === null && earlier.version.id === version.id;
  return here.has(id) || isUnasked;
}

/** In no id at any provider; a database may tell only what comes before one. */
const NUL = '\0';

async function checkReleased(
  call: Permitted,
  results: ReturnType<typeof toolResults>,
): Promise<void> {
  const unclear = results.find(({ id }) => id.includes(NUL));
  if (unclear) {
    const { field } = unclear;
    const message = `The id at ${field} holds a NUL, as that of no call does.`;
    return denyRequest(call, 'invalid_body', message, { rule: 'tools.unreleasedResults', field });
  }
  const { org, run, version, credential, services } = call;
  const ids = [...new Set(results.map(({ id }) => id))];
  const unreleased = await findUnreleased(org, run.id, ids);
  const [first] = unreleased;
  if (!first) return;
  if (version.policy.tools?.unreleasedResults === 'deny') {
    const { id, field } = results.find((result) => result.id === first.callId)!;
    const message = `This run was given no tool call "${id.slice(0, 100)}" through Rungate; leave its result out.`;
    const detail = { rule: 'tools.unreleasedResults', field, asked: id.slice(0, 256) };
    return denyRequest(call, 'permission_denied', message, detail);
  }
  const unknown = unreleased.filter(({ isKnown }) => !isKnown).map(({ callId }) => callId);
  if (unknown.length === 0) return;
  if (call.isRemembered) throw new Outdated();
  await flagResults(org, run.id, credential.tokenId, unknown, services.now());
}
