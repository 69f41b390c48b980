/** Allowances: what limits and budgets still leave to an agent. */

import type { AgentId, PolicyVersionId, RunId } from '../schema/ids.ts';
import { type Scope, type Windows, windowsOf } from '../schema/rules/budget.ts';
import { type Limit, limitsOf, type Standing } from '../schema/rules/limit.ts';
import { readLimits } from './limits.ts';
import type { Org } from './org.ts';
import { readAgentPolicy } from './policies.ts';
import { readScopes } from './scopes.ts';

/** What the policy that an agent's next run opens with allows, and how much of it is used. */
export interface Allowances {
  readonly agentId: AgentId;
  readonly policyVersionId: PolicyVersionId;
  readonly limits: readonly { readonly limit: Limit; readonly standing: Standing }[];
  /** The ceilings beside a run's own. */
  readonly scopes: readonly Scope[];
  readonly windows: Windows;
  /** Unix milliseconds. */
  readonly now: number;
}

/** What the operator caps is his own affair. */
const NO_CAPS = { requestsPerMinute: undefined, concurrentCalls: undefined };
/** A run that is not there has nothing used. */
const NO_RUN = '' as RunId;
const NO_TOKEN = '';

/**
 * Reads the allowances of an agent.
 *
 * @param now Unix milliseconds.
 * @returns `undefined` for an agent that isn't there.
 */
export async function readAllowances(
  org: Org,
  agentId: AgentId,
  now: number,
): Promise<Allowances | undefined> {
  const version = await readAgentPolicy(org, agentId);
  if (!version) return undefined;
  const { id: policyVersionId, policyId, policy } = version;
  const subjects = {
    ...{ token: NO_TOKEN, agent: agentId, policy: policyId, org: org.id, run: NO_RUN },
    requestDigest: null,
  };
  const limits = limitsOf(policy, NO_CAPS, subjects).filter(
    ({ per }) => per !== 'run' && per !== 'token',
  );
  const windows = windowsOf(now);
  const { agentPerDay, agentPerMonth, orgPerMonth } = policy.budget;
  const ceilings = { agentPerDay, agentPerMonth, orgPerMonth };
  const [standings, scopes] = await Promise.all([
    readLimits(org, limits, now),
    readScopes(org, { runId: NO_RUN, windows, agentId }, ceilings),
  ]);
  const standing = limits.map((limit, at) => ({ limit, standing: standings[at]! }));
  return { agentId, policyVersionId, limits: standing, scopes, windows, now };
}
