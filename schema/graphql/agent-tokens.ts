/** The tokens of an agent: listed, made, replaced and ended together. Never their text again. */

import { z } from 'zod';
import type { AgentId } from '../ids.ts';
import { choiceSchema } from '../names.ts';
import { AGENT_ACTIONS, type AgentAction } from '../roles.ts';
import { findUnusable } from '../rules/choice.ts';
import { AGENT, AgentType, presentAgent } from './agents.ts';
import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { Context } from './context.ts';
import { notFound, UserError, UserErrors } from './errors.ts';
import { parseInput } from './input.ts';
import { attempt, payloadOf } from './payload.ts';
import { checkExpiry, overlap, TokenType } from './tokens.ts';

const MAX_PERMITTED = 50;

builder.objectField(AgentType, 'tokens', (t) =>
  t.connection({
    type: TokenType,
    action: 'token.read',
    description: 'Its tokens, the newest first.',
    complexity: costOf,
    resolve: ({ id }, page, { loaders }) =>
      connect(page, (window) => loaders.tokensOfAgent.load(id, window)),
  }),
);

builder.objectFields(TokenType, (t) => ({
  agent: t.field({
    ...{ type: AgentType, action: 'agent.read', nullable: true },
    description: 'The agent whose token it is; null for an admin token.',
    resolve: ({ agentId }, _args, { loaders }) => agentId && loaders.agents.load(agentId),
  }),
}));

const agentActions = z.array(z.enum(AGENT_ACTIONS)).min(1, 'must name at least one action').max(50);

const permittedPolicies = z
  .array(choiceSchema)
  .min(1, 'must name at least one policy')
  .max(MAX_PERMITTED);

/** Checks that a token is to permit nothing but what its agent may use. */
async function checkPermitted(
  { org, store }: Context,
  agentId: AgentId,
  given: readonly string[] | null,
): Promise<readonly string[] | null> {
  if (given === null) return null;
  const wanted = [...new Set(parseInput(permittedPolicies, given, 'policies'))];
  const own = await store.policies.readAgentPolicy(org, agentId);
  if (!own) throw notFound('agentId');
  const usable = [own.label, ...(await store.policies.readChoices(org, agentId)).keys()];
  const faults = findUnusable(given, usable).map((at) => {
    const message = `The agent may not use the policy "${given[at]}"; it may use: ${usable.join(', ')}.`;
    return new UserError('INVALID', ['policies', String(at)], message);
  });
  if (faults.length > 0) throw new UserErrors(faults);
  return wanted;
}

builder.relayMutationField(
  'agentTokenCreate',
  {
    inputFields: (t) => ({
      agentId: t.field(AGENT),
      actions: t.stringList({
        description: `What it may do, of ${AGENT_ACTIONS.join(', ')}; all of them unless given.`,
      }),
      policies: t.stringList({
        description:
          'The policies that its runs may be under, of those that the agent may use: strict for any version, strict/v2 for one; all of them unless given. It stays so for good.',
      }),
      expiresAt: t.field({ type: 'DateTime', description: 'When it ends; never unless given.' }),
    }),
  },
  {
    action: 'token.create',
    description: 'Makes a further token of an agent and shows its text this once.',
    resolve: (_root, { input: { agentId, actions, policies, expiresAt } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const granted: AgentAction[] = parseInput(
          agentActions,
          actions ?? [...AGENT_ACTIONS],
          'actions',
        );
        const wanted = {
          actions: granted,
          policies: await checkPermitted(context, agentId, policies ?? null),
          expiresAt: checkExpiry(context, expiresAt),
        };
        const made = await store.tokens.createAgentToken(org, actor, agentId, wanted);
        if (!made) throw notFound('agentId');
        return { token: await store.tokens.readStoredToken(org, made.id), secret: made.token };
      }),
  },
  payloadOf('agentTokenCreate', {
    token: [TokenType, 'The token.'],
    secret: ['String', 'Its text, which is shown this once.'],
  }),
);

builder.relayMutationField(
  'agentTokensRotate',
  {
    inputFields: (t) => ({
      agentId: t.field(AGENT),
      overlapS: t.int({
        description: 'Seconds that its present tokens still work, up to 30 days; 0 unless given.',
      }),
    }),
  },
  {
    action: 'token.rotate',
    description: 'Gives an agent one new token, shown this once, in place of all its present ones.',
    resolve: (_root, { input: { agentId, overlapS } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const agent = await presentAgent(context, agentId);
        const overlapMs = parseInput(overlap, overlapS ?? 0, 'overlapS') * 1_000;
        const made = await store.tokens.rotateAgentTokens(org, actor, agentId, overlapMs);
        const token = await store.tokens.readStoredToken(org, made.id);
        return { agent, token, secret: made.token };
      }),
  },
  payloadOf('agentTokensRotate', {
    agent: [AgentType, 'The agent.'],
    token: [TokenType, 'The new token.'],
    secret: ['String', "The new token's text, which is shown this once."],
  }),
);

builder.relayMutationField(
  'agentTokensRevoke',
  { inputFields: (t) => ({ agentId: t.field(AGENT) }) },
  {
    action: 'token.revoke',
    description: 'Ends all tokens of an agent, from the next request on.',
    resolve: (_root, { input: { agentId } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const agent = await presentAgent(context, agentId);
        return { agent, revoked: await store.tokens.revokeAgentTokens(org, actor, agentId) };
      }),
  },
  payloadOf('agentTokensRevoke', {
    agent: [AgentType, 'The agent.'],
    revoked: ['Count', 'How many tokens ended.'],
  }),
);
