/** Agents: workloads with a default policy. */

import type { AgentId, PolicyId } from '../schema/ids.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Org } from './org.ts';
import { newId } from './seal.ts';
import { mintToken } from './tokens.ts';

/** An agent as it is configured. */
export interface Agent {
  readonly id: AgentId;
  readonly name: string;
  readonly policyId: PolicyId;
  readonly suspendedAt: number | null;
}

/** The agent of this name. */
export async function findAgent(org: Org, name: string): Promise<Agent | undefined> {
  const row = await org.first('select * from agents where org_id = ?1 and name = ?2', name);
  return (
    row && {
      id: row.id as AgentId,
      name: String(row.name),
      policyId: row.policy_id as PolicyId,
      suspendedAt: row.suspended_at as number | null,
    }
  );
}

/** The names of an org's agents by id. */
export async function agentNames(org: Org): Promise<Map<string, string>> {
  const rows = await org.read('select id, name from agents where org_id = ?1');
  return new Map(rows.map((row) => [String(row.id), String(row.name)]));
}

/**
 * Makes an agent and its first token.
 *
 * @returns the token's text, shown once.
 */
export async function createAgent(
  org: Org,
  actor: Actor,
  name: string,
  policy: PolicyId,
): Promise<{ id: AgentId; token: string }> {
  const id = newId('agent');
  const minted = mintToken(org, actor, id, null);
  await org.write(
    org.statement(
      `insert into agents (org_id, id, name, policy_id, created_at) values (?1, ?2, ?3, ?4, ?5)`,
      id,
      name,
      policy,
      Date.now(),
    ),
    minted.statement,
    auditEntry(org, actor, 'agent.create', id, { name, policy, token: minted.id }),
  );
  return { id, token: minted.text };
}

/** Gives an agent another default policy; open runs keep theirs. */
export async function assignPolicy(
  org: Org,
  actor: Actor,
  agent: AgentId,
  policy: PolicyId,
): Promise<void> {
  await org.write(
    org.statement('update agents set policy_id = ?3 where org_id = ?1 and id = ?2', agent, policy),
    auditEntry(org, actor, 'agent.update', agent, { policy }),
  );
}

/** Suspends an agent: its next call is refused. One that is suspended already stays as it is. */
export async function suspendAgent(org: Org, actor: Actor, agent: AgentId): Promise<void> {
  await org.write(
    org.statement(
      'update agents set suspended_at = coalesce(suspended_at, ?3) where org_id = ?1 and id = ?2',
      agent,
      Date.now(),
    ),
    auditEntry(org, actor, 'agent.suspend', agent),
  );
}

/** Lets a suspended agent call again. */
export async function resumeAgent(org: Org, actor: Actor, agent: AgentId): Promise<void> {
  await org.write(
    org.statement('update agents set suspended_at = null where org_id = ?1 and id = ?2', agent),
    auditEntry(org, actor, 'agent.resume', agent),
  );
}
