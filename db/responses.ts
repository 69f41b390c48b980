/** Responses that an upstream keeps: bound to the agent that made them. */

import type { AgentId, RunId, StepId } from '../schema/ids.ts';
import type { Statement } from './client.ts';
import type { Org } from './org.ts';

/** Where a kept response came from. */
export interface KeptResponse {
  readonly runId: RunId;
  readonly stepId: StepId;
  /** The name of the provider key that it was made with. */
  readonly providerKey: string;
  /**
   * Where the MCP servers are that its request declared, by their labels; absent where its policy
   * governed no tools, and for what an earlier version of Rungate has bound.
   */
  readonly servers?: ReadonlyMap<string, string>;
}

/**
 * The statement that binds a response and its items to their agent; put it into the settling
 * transaction.
 *
 * @param ids The response's id, first, and those of its output items, all of which can be named
 *   again.
 */
export function keptResponse(
  org: Org,
  agent: AgentId,
  ids: readonly string[],
  kept: KeptResponse,
  now: number,
): Statement {
  return org.statement(
    `insert into responses (
       org_id, agent_id, response_id, run_id, step_id, provider_key, created_at, servers
     ) select ?1, ?2, value, ?4, ?5, ?6, ?7, iif(key = 0, ?8, null) from json_each(?3)
     where true
     on conflict do nothing`,
    agent,
    JSON.stringify(ids),
    kept.runId,
    kept.stepId,
    kept.providerKey,
    now,
    kept.servers ? JSON.stringify([...kept.servers]) : null,
  );
}

/** The first of these ids that no response of this agent has brought about. */
export async function findForeignId(
  org: Org,
  agent: AgentId,
  ids: readonly string[],
): Promise<string | undefined> {
  const row = await org.first(
    `select value as id from json_each(?3) where not exists (
       select 1 from responses where org_id = ?1 and agent_id = ?2 and response_id = value
     ) limit 1`,
    agent,
    JSON.stringify(ids),
  );
  return row && String(row.id);
}

/** A response that this agent made; another agent's answers like one that doesn't exist. */
export async function findResponse(
  org: Org,
  agent: AgentId,
  responseId: string,
): Promise<KeptResponse | undefined> {
  const row = await org.first(
    `select run_id, step_id, provider_key, servers from responses
     where org_id = ?1 and agent_id = ?2 and response_id = ?3`,
    agent,
    responseId,
  );
  if (!row) return undefined;
  const { servers } = row;
  return {
    runId: row.run_id as RunId,
    stepId: row.step_id as StepId,
    providerKey: String(row.provider_key),
    ...(servers === null ? {} : { servers: new Map(JSON.parse(String(servers))) }),
  };
}
