/** Agents: workloads with a default policy. */

import type { AgentId, PolicyId } from '../schema/ids.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Row, Statement } from './client.ts';
import type { Org } from './org.ts';
import { announce } from './outbox.ts';
import { type Page, readPage, type Window } from './page.ts';
import { newId } from './seal.ts';
import { mintToken } from './tokens.ts';

/** Which versions of which policies an agent's runs may open with. */
export interface Assignment {
  readonly policyId: PolicyId;
  /** The version that runs open with; `null` follows the newest. */
  readonly pinned: number | null;
  /** What a caller may choose instead with `x-rungate-policy`. */
  readonly choices: readonly Choice[];
}

/** A policy that may be chosen: one version of it, or with `null` its newest. */
export interface Choice {
  readonly policyId: PolicyId;
  readonly number: number | null;
}

/** An agent as it is configured. */
export interface Agent {
  readonly id: AgentId;
  readonly name: string;
  readonly policyId: PolicyId;
  readonly pinned: number | null;
  readonly suspendedAt: number | null;
  readonly createdAt: number;
}

/** Which agents of an org are listed. */
export interface AgentFilter {
  /** Part of the name, in any case. */
  readonly name?: string | null | undefined;
  readonly isSuspended?: boolean | null | undefined;
}

/** The agents of an org by name. */
export function listAgents(
  org: Org,
  { name = null, isSuspended = null }: AgentFilter,
  window: Window,
): Promise<Page<Agent>> {
  const sql = `select * from agents where org_id = ?1
    and (?2 is null or instr(lower(name), lower(?2)) > 0)
    and (?3 is null or (suspended_at is not null) = ?3)`;
  const args = [name, isSuspended === null ? null : Number(isSuspended)];
  return readPage(org, { sql, args, order: 'name' }, window, toAgent);
}

/** The agent of an id. */
export async function readAgent(org: Org, id: AgentId): Promise<Agent | undefined> {
  const row = await org.first('select * from agents where org_id = ?1 and id = ?2', id);
  return row && toAgent(row);
}

/** The agents of these ids. */
export async function readAgents(org: Org, ids: readonly AgentId[]): Promise<Agent[]> {
  const rows = await org.read(
    'select * from agents where org_id = ?1 and id in (select value from json_each(?2))',
    JSON.stringify(ids),
  );
  return rows.map(toAgent);
}

function toAgent(row: Row): Agent {
  return {
    id: row.id as AgentId,
    name: String(row.name),
    policyId: row.policy_id as PolicyId,
    pinned: row.policy_version as number | null,
    suspendedAt: row.suspended_at as number | null,
    createdAt: Number(row.created_at),
  };
}

/** The agent of this name. */
export async function findAgent(org: Org, name: string): Promise<Agent | undefined> {
  const row = await org.first('select * from agents where org_id = ?1 and name = ?2', name);
  return row && toAgent(row);
}

/** What the callers of an agent may choose beside its own policy. */
export async function readAgentChoices(org: Org, agent: AgentId): Promise<Choice[]> {
  const rows = await org.read(
    `select policy_id, number from agent_policies where org_id = ?1 and agent_id = ?2
     order by policy_id, number`,
    agent,
  );
  return rows.map(({ policy_id, number }) => ({
    policyId: policy_id as PolicyId,
    number: number === 0 ? null : Number(number),
  }));
}

/** The names of an org's agents by id. */
export async function agentNames(org: Org): Promise<Map<string, string>> {
  const rows = await org.read('select id, name from agents where org_id = ?1');
  return new Map(rows.map((row) => [String(row.id), String(row.name)]));
}

/** An agent follows the newest version of its policy, and its callers choose nothing. */
const PLAIN: Omit<Assignment, 'policyId'> = { pinned: null, choices: [] };

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
  { pinned, choices } = PLAIN,
): Promise<{ id: AgentId; token: string }> {
  const id = newId('agent');
  const minted = mintToken(org, actor, id, null);
  await org.write(
    org.statement(
      `insert into agents (org_id, id, name, policy_id, policy_version, created_at)
       values (?1, ?2, ?3, ?4, ?5, ?6)`,
      id,
      name,
      policy,
      pinned,
      Date.now(),
    ),
    ...choices.map((choice) => insertChoice(org, id, choice)),
    minted.statement,
    auditEntry(org, actor, 'agent.create', id, {
      name,
      policy,
      pinned,
      choices,
      token: minted.id,
    }),
    announce(org, 'agent.created', { agentId: id, name }, Date.now()),
  );
  return { id, token: minted.text };
}

/** Gives an agent another policy, version or choice of policies; open runs keep theirs. */
export async function assignPolicy(
  org: Org,
  actor: Actor,
  agent: AgentId,
  policy: PolicyId,
  { pinned, choices } = PLAIN,
): Promise<void> {
  await org.write(
    org.statement(
      'update agents set policy_id = ?3, policy_version = ?4 where org_id = ?1 and id = ?2',
      agent,
      policy,
      pinned,
    ),
    org.statement('delete from agent_policies where org_id = ?1 and agent_id = ?2', agent),
    ...choices.map((choice) => insertChoice(org, agent, choice)),
    auditEntry(org, actor, 'agent.update', agent, { policy, pinned, choices }),
  );
}

function insertChoice(org: Org, agent: AgentId, { policyId, number }: Choice): Statement {
  return org.statement(
    `insert into agent_policies (org_id, agent_id, policy_id, number, created_at)
     values (?1, ?2, ?3, ?4, ?5) on conflict do nothing`,
    agent,
    policyId,
    number ?? 0,
    Date.now(),
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
