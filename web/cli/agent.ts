/** `rungate agent`: tokens of agents, and their suspension. */

import type { Command } from 'commander';
import type { AgentId } from '../../schema/ids.ts';
import { type Api, type ApiOptions, withApi } from './api.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { addApiCommand, addGroup, integerBetween, parseName } from './options.ts';
import { printResult } from './output.ts';

interface RotateOptions extends ApiOptions {
  /** Seconds. */
  readonly overlap: number;
}

const MAX_OVERLAP_S = 30 * 86_400;

/** Adds `agent token rotate`, `agent token revoke`, `agent suspend` and `agent resume`. */
export function addAgentCommands(program: Command): void {
  const agent = addGroup(program, 'agent', 'agents and their tokens');
  const token = addGroup(agent, 'token', "an agent's tokens");
  const add = (parent: Command, name: string, description: string) =>
    addApiCommand(parent, name, description).argument('<name>', 'the agent', parseName);
  add(token, 'rotate', 'print a new token once and end the present ones')
    .option(
      '--overlap <seconds>',
      'how long the present tokens still work',
      integerBetween(0, MAX_OVERLAP_S),
      0,
    )
    .action(rotate);
  add(token, 'revoke', 'end all tokens, from the next request on').action(revoke);
  add(agent, 'suspend', 'refuse all further calls').action(setSuspended('agentSuspend', true));
  add(agent, 'resume', 'let a suspended agent call again').action(
    setSuspended('agentResume', false),
  );
}

const ROTATE = `mutation Rotate($agentId: AgentID!, $overlapS: Int) {
  agentTokensRotate(input: { agentId: $agentId, overlapS: $overlapS }) {
    secret errors { code field message }
  }
}`;

async function rotate(name: string, options: RotateOptions): Promise<void> {
  const { overlap: overlapS } = options;
  const { agentTokensRotate } = await withAgent(name, options, (api, agentId) =>
    api.run<{ agentTokensRotate: { secret: string } }>(ROTATE, { agentId, overlapS }),
  );
  const { secret: token } = agentTokensRotate;
  printResult({ agent: name, token }, [token], options);
}

const REVOKE = `mutation Revoke($agentId: AgentID!) {
  agentTokensRevoke(input: { agentId: $agentId }) {
    revoked errors { code field message }
  }
}`;

async function revoke(name: string, options: ApiOptions): Promise<void> {
  const { agentTokensRevoke } = await withAgent(name, options, (api, agentId) =>
    api.run<{ agentTokensRevoke: { revoked: number } }>(REVOKE, { agentId }),
  );
  const { revoked } = agentTokensRevoke;
  printResult({ agent: name, revoked }, [`${name}: ${revoked} token(s) revoked`], options);
}

function setSuspended(mutation: 'agentSuspend' | 'agentResume', suspended: boolean) {
  const document = `mutation Set($agentId: AgentID!) {
    ${mutation}(input: { agentId: $agentId }) { errors { code field message } }
  }`;
  return async (name: string, options: ApiOptions): Promise<void> => {
    await withAgent(name, options, (api, agentId) => api.run(document, { agentId }));
    const line = `${name}: ${suspended ? 'suspended' : 'resumed'}`;
    printResult({ agent: name, suspended }, [line], options);
  };
}

async function withAgent<T>(
  name: string,
  options: ApiOptions,
  work: (api: Api, agent: AgentId) => Promise<T>,
): Promise<T> {
  return await withApi(options, async (api) => await work(api, await findAgent(api, name)));
}

const FIND = 'query Agent($name: String!) { agentByName(name: $name) { id } }';

/**
 * The id of an agent.
 *
 * @throws {Failure} when the org has none of this name.
 */
export async function findAgent(api: Api, name: string): Promise<AgentId> {
  const { agentByName } = await api.run<{ agentByName: { id: AgentId } | null }>(FIND, { name });
  if (agentByName) return agentByName.id;
  throw new Failure(EXIT_FAILED, `There is no agent "${name}" in this org.`);
}
