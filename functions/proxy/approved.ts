/** Calls that people have approved for a run: of this tool, with these arguments, by this id. */

import { findReleased } from '../../db/released.ts';
import { digestText } from '../../db/seal.ts';
import { type GateSubject, subjectText } from '../../schema/rules/gate.ts';
import { judgeName } from '../../schema/rules/tools.ts';
import type { ProposedCall } from '../providers/contract.ts';
import type { Permitted } from './decide.ts';

/** The call that a run is on, as far as gates are bound to it. */
interface Place extends Pick<Permitted, 'org' | 'agent'> {
  readonly run: Pick<Permitted['run'], 'id'>;
  readonly version: Pick<Permitted['version'], 'id'>;
}

/** What a gate on a proposed call is bound to. */
export function subjectOf(
  { org, agent, run, version }: Place,
  { name, argsText }: Pick<ProposedCall, 'name' | 'argsText'>,
): GateSubject {
  return {
    ...{ orgId: org.id, agentId: agent.id, runId: run.id, policyVersionId: version.id },
    ...{ tool: name, argsText },
  };
}

/** The digest that such a gate has. */
export function digestOf(place: Place, call: Pick<ProposedCall, 'name' | 'argsText'>): string {
  return digestText(subjectText(subjectOf(place, call)));
}

/** What a caller is told who would have an approved call run a second time. */
export function usedUp(id: string): string {
  return `The call "${id.slice(0, 100)}" was sent to run when people had approved it, and that is good for once; let it be proposed again.`;
}

/**
 * Of the calls of an answer those that ran upstream as people had approved them: each names the
 * request that its run was given, and has the tool and the arguments of that.
 */
export async function findApproved(
  place: Pick<Permitted, 'org' | 'agent' | 'run' | 'version'>,
  calls: readonly ProposedCall[],
): Promise<ReadonlySet<ProposedCall>> {
  const { policy } = place.version;
  const asking = calls.filter(
    ({ name, approvalId }) => approvalId !== undefined && judgeName(policy, name) === 'depends',
  );
  if (asking.length === 0) return NONE;
  const ids = [...new Set(asking.map(({ approvalId }) => approvalId!))];
  const released = await findReleased(place.org, place.run.id, ids);
  return new Set(
    asking.filter((call) => released.get(call.approvalId!)?.digest === digestOf(place, call)),
  );
}

const NONE: ReadonlySet<ProposedCall> = new Set();
