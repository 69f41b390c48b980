/** Agents: workloads with a default policy. */

import type { AgentId, PolicyId, TokenId } from '../schema/ids.ts';
import { type Nanos, ZERO } from '../schema/money.ts';
import type { Windows } from '../schema/rules/budget.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Row, Statement } from './client.ts';
import type { Org } from './org.ts';
import { announce } from './outbox.ts';
import { type Page, readPage, readPages, type Window } from './page.ts';
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
  /** The version that runs open with; `null` follows the newest. */
  readonly pinned: number | null;
  readonly suspendedAt: number | null;
  readonly createdAt: number;
}

/** Which agents of an org are listed. */
export interface AgentFilter {
  /** Part of the name, in any case. */
  readonly name?: string | null | undefined;
  readonly isSuspended?: boolean | null | undefined;
  /** By name unless told otherwise. */
  readonly orderBy?: AgentOrder | undefined;
  readonly isDescending?: boolean | undefined;
}

/** What agents are listed by. */
export type AgentOrder = 'name' | 'created_at';

/** The agents of an org. */
export function listAgents(
  org: Org,
  { name = null, isSuspended = null, orderBy = 'name', isDescending = false }: AgentFilter,
  window: Window,
): Promise<Page<Agent>> {
  const sql = `select * from agents where org_id = ?1
    and (?2 is null or instr(lower(name), lower(?2)) > 0)
    and (?3 is null or (suspended_at is not null) = ?3)`;
  const args = [name, isSuspended === null ? null : Number(isSuspended)];
  return readPage(org, { sql, args, order: orderBy, isDescending }, window, toAgent);
}

/** The agents that have each of these policies for their own, by name. */
export function listAgentsOfPolicies(
  org: Org,
  policies: readonly PolicyId[],
  window: Window,
): Promise<Map<PolicyId, Page<Agent>>> {
  const listings = {
    sql: (policy: string) => `select * from agents where org_id = ?1 and policy_id = ${policy}`,
    ...{ args: [], order: 'name' },
  };
  return readPages(org, listings, policies, window, toAgent);
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
  return [...((await readChoicesOfAgents(org, [agent])).get(agent) ?? [])];
}

/** What the callers of each of these agents may choose; an agent without choices is left out. */
export async function readChoicesOfAgents(
  org: Org,
  agents: readonly AgentId[],
): Promise<Map<AgentId, Choice[]>> {
  const rows = await org.read(
    `select agent_id, policy_id, number from agent_policies
     where org_id = ?1 and agent_id in (select value from json_each(?2))
     order by policy_id, number`,
    JSON.stringify(agents),
  );
  const byAgent = Map.groupBy(rows, (row) => row.agent_id as AgentId);
  return new Map([...byAgent].map(([agent, chosen]) => [agent, chosen.map(toChoice)]));
}

function toChoice({ policy_id, number }: Row): Choice {
  return { policyId: policy_id as PolicyId, number: number === 0 ? null : Number(number) };
}

/** What an agent has spent. */
export interface AgentSpend {
  readonly agentId: AgentId;
  readonly todayNanos: Nanos;
  readonly monthNanos: Nanos;
}

/** What each of these agents has spent in the day and month of a moment. */
export async function readAgentSpend(
  org: Org,
  agents: readonly AgentId[],
  { day, month }: Windows,
): Promise<Map<AgentId, AgentSpend>> {
  const rows = await org.read(
    `select subject, sum(iif(window = ?3, spent_nanos, 0)) as today, sum(spent_nanos) as month
     from spend where org_id = ?1 and subject in (select value from json_each(?2))
       and window between ?4 and ?4 || '-31'
     group by subject`,
    JSON.stringify(agents),
    day,
    month,
  );
  const spent = new Map(rows.map((row) => [row.subject as AgentId, row]));
  return new Map(
    agents.map((agentId) => {
      const { today = ZERO, month: whole = ZERO } = spent.get(agentId) ?? {};
      return [agentId, { agentId, todayNanos: today as Nanos, monthNanos: whole as Nanos }];
    }),
  );
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
): Promise<{ id: AgentId; tokenId: TokenId; token: string }> {
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
  return { id, tokenId: minted.id, token: minted.text };
}

/** What an agent is to be. */
export interface AgentChange extends Assignment {
  readonly name: string;
}

/**
 * Gives an agent another name, policy, version or choice of policies; open runs keep theirs.
 *
 * @returns whether there was anything to change.
 * @throws {DatabaseError} a conflict, when the name is taken.
 */
export async function updateAgent(
  org: Org,
  actor: Actor,
  id: AgentId,
  { name, policyId, pinned, choices }: AgentChange,
): Promise<boolean> {
  const agent = await readAgent(org, id);
  const chosen = await readAgentChoices(org, id);
  const before = agent && { ...termsOf(agent), choices: chosen };
  const after = { name, policyId, pinned, choices };
  if (!before || isSame(before, after)) return false;
  const [changed] = await org.write(
    org.statement(
      `update agents set name = ?3, policy_id = ?4, policy_version = ?5
       where org_id = ?1 and id = ?2`,
      id,
      name,
      policyId,
      pinned,
    ),
    auditEntry(org, actor, 'agent.update', id, after, { before, ifChanged: true }),
    org.statement('delete from agent_policies where org_id = ?1 and agent_id = ?2', id),
    ...choices.map((choice) => insertChoice(org, id, choice)),
  );
  return changed!.changes > 0;
}

function termsOf({ name, policyId, pinned }: Agent) {
  return { name, policyId, pinned };
}

function isSame(one: AgentChange, other: AgentChange): boolean {
  const textOf = ({ name, policyId, pinned, choices }: AgentChange) => {
    const chosen = new Set(choices.map((choice) => `${choice.policyId}/${choice.number}`));
    return JSON.stringify([name, policyId, pinned, [...chosen].sort()]);
  };
  return textOf(one) === textOf(other);
}

function insertChoice(org: Org, agent: AgentId, { policyId, number }: Choice): Statement {
  return org.statement(
    `insert into agent_policies (org_id, agent_id, policy_id, number, created_at)
     select ?1, id, ?3, ?4, ?5 from agents where org_id = ?1 and id = ?2 on conflict do nothing`,
    agent,
    policyId,
    number ?? 0,
    Date.now(),
  );
}

/**
 * Suspends an agent: its next call is refused, and those in flight end.
 *
 * @returns false for one that was suspended already, or isn't there.
 */
export async function suspendAgent(org: Org, actor: Actor, agent: AgentId): Promise<boolean> {
  const [suspended] = await org.write(
    org.statement(
      `update agents set suspended_at = ?3
       where org_id = ?1 and id = ?2 and suspended_at is null`,
      agent,
      Date.now(),
    ),
    auditEntry(org, actor, 'agent.suspend', agent, undefined, { ifChanged: true }),
  );
  return suspended!.changes > 0;
}

/**
 * Lets a suspended agent call again.
 *
 * @returns false for one that was not suspended, or isn't there.
 */
export async function resumeAgent(org: Org, actor: Actor, agent: AgentId): Promise<boolean> {
  const [resumed] = await org.write(
    org.statement(
      `update agents set suspended_at = null
       where org_id = ?1 and id = ?2 and suspended_at is not null`,
      agent,
    ),
    auditEntry(org, actor, 'agent.resume', agent, undefined, { ifChanged: true }),
  );
  return resumed!.changes > 0;
}

/**
 * Deletes an agent with its tokens, unless a run of it is open. Its runs and what it has spent
 * stay on record under its id, and its name in the audit trail.
 *
 * @returns whether it was deleted.
 */
export async function deleteAgent(org: Org, actor: Actor, agent: Agent): Promise<boolean> {
  const [deleted] = await org.write(
    org.statement(
      `delete from agents where org_id = ?1 and id = ?2 and not exists (
         select 1 from runs where org_id = ?1 and agent_id = ?2 and status = 'open'
       )`,
      agent.id,
    ),
    auditEntry(org, actor, 'agent.delete', agent.id, undefined, {
      before: termsOf(agent),
      ifChanged: true,
    }),
  );
  return deleted!.changes > 0;
}
