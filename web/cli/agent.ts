/** `rungate agent`: tokens of agents, and their suspension. */

import type { Command } from 'commander';
import { type Agent, findAgent, resumeAgent, suspendAgent } from '../../db/agents.ts';
import type { Org } from '../../db/org.ts';
import { revokeAgentTokens, rotateAgentTokens } from '../../db/tokens.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { addGroup, addOrgCommand, integerBetween, parseName } from './options.ts';
import { type OutputOptions, printResult } from './output.ts';
import { OPERATOR, withOrg } from './session.ts';

interface AgentOptions extends OutputOptions {
  readonly org: string;
}

interface RotateOptions extends AgentOptions {
  /** Seconds. */
  readonly overlap: number;
}

const MAX_OVERLAP_S = 30 * 86_400;

/** Adds `agent token rotate`, `agent token revoke`, `agent suspend` and `agent resume`. */
export function addAgentCommands(program: Command): void {
  const agent = addGroup(program, 'agent', 'agents and their tokens');
  const token = addGroup(agent, 'token', "an agent's tokens");
  const add = (parent: Command, name: string, description: string) =>
    addOrgCommand(parent, name, description).argument('<name>', 'the agent', parseName);
  add(token, 'rotate', 'print a new token once and end the present ones')
    .option(
      '--overlap <seconds>',
      'how long the present tokens still work',
      integerBetween(0, MAX_OVERLAP_S),
      0,
    )
    .action(rotate);
  add(token, 'revoke', 'end all tokens, from the next request on').action(revoke);
  add(agent, 'suspend', 'refuse all further calls').action(suspend);
  add(agent, 'resume', 'let a suspended agent call again').action(resume);
}

async function rotate(name: string, options: RotateOptions): Promise<void> {
  const token = await withAgent(name, options, (org, agent) =>
    rotateAgentTokens(org, OPERATOR, agent.id, options.overlap * 1_000),
  );
  printResult({ agent: name, token }, [token], options);
}

async function revoke(name: string, options: AgentOptions): Promise<void> {
  const revoked = await withAgent(name, options, (org, agent) =>
    revokeAgentTokens(org, OPERATOR, agent.id),
  );
  printResult({ agent: name, revoked }, [`${name}: ${revoked} token(s) revoked`], options);
}

async function suspend(name: string, options: AgentOptions): Promise<void> {
  await withAgent(name, options, (org, agent) => suspendAgent(org, OPERATOR, agent.id));
  printResult({ agent: name, suspended: true }, [`${name}: suspended`], options);
}

async function resume(name: string, options: AgentOptions): Promise<void> {
  await withAgent(name, options, (org, agent) => resumeAgent(org, OPERATOR, agent.id));
  printResult({ agent: name, suspended: false }, [`${name}: resumed`], options);
}

async function withAgent<T>(
  name: string,
  options: AgentOptions,
  work: (org: Org, agent: Agent) => Promise<T>,
): Promise<T> {
  return await withOrg(options.org, async (org) => {
    const agent = await findAgent(org, name);
    if (!agent) throw new Failure(EXIT_FAILED, `There is no agent "${name}" in ${options.org}.`);
    return await work(org, agent);
  });
}
