/** Reports of tools that agents ran themselves: which of them nothing had let run. */

import type { Org } from '../db/org.ts';
import { readPassage } from '../db/released.ts';
import type { RunId } from '../schema/ids.ts';
import type { Policy } from '../schema/policy.ts';
import { decideName } from '../schema/rules/tools.ts';

/**
 * Why a report is marked on the trail: its tool is denied or asked about whatever the arguments are,
 * or was in this run, and no call of it was let pass. A report doesn't tell the arguments, so that
 * one of a tool that may pass is not marked for a rule with a condition alone.
 *
 * @returns undefined for a report that is not marked.
 */
export async function markOf(
  org: Org,
  run: { readonly id: RunId; readonly version: { readonly policy: Policy } },
  { name, callId }: { readonly name: string; readonly callId?: string | undefined },
): Promise<object | undefined> {
  const { decision, isSure } = decideName(run.version.policy, name);
  if (decision.effect === 'allow') return undefined;
  const mark = { tool: name, callId, rule: decision.rule, message: decision.reason };
  if (isSure && decision.effect === 'deny') return mark;
  const { isLet, isStopped } = await readPassage(org, run.id, name, callId);
  return !isLet && (isSure || isStopped) ? mark : undefined;
}
