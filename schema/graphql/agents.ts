/** Agents: read, made, changed, suspended, deleted. */

import type { AgentId, PolicyId } from '../ids.ts';
import { nameSchema } from '../names.ts';
import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { Agent, Context } from './context.ts';
import { notFound, UserError } from './errors.ts';
import { parseInput } from './input.ts';
import { OrderDirection } from './order.ts';
import { attempt, payloadOf } from './payload.ts';
import { PolicyType } from './policies.ts';
import { Money } from './scalars.ts';
import {
  ChoiceInput,
  ChoiceType,
  type ChosenInput,
  checkPin,
  checkTerms,
  toChoices,
} from './terms.ts';
import { TokenType } from './tokens.ts';

const READ = { action: 'agent.read', nullable: true } as const;

/** How an input names an agent. */
export const AGENT = { type: 'AgentID', required: true, description: 'The agent.' } as const;

/** A workload with a default policy. */
export const AgentType = builder.objectRef<Agent>('Agent');

builder.objectType(AgentType, {
  description: 'A workload that calls the proxy, with a default policy.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'AgentID', action: 'public', nullable: false },
      description: 'Its id.',
    }),
    name: t.exposeString('name', { ...READ, description: 'Its name in the org.' }),
    policy: t.field({
      ...{ type: PolicyType, action: 'policy.read', nullable: true },
      description: 'The policy that its runs open with.',
      resolve: ({ policyId }, _args, { loaders }) => loaders.policies.load(policyId),
    }),
    pinnedVersion: t.exposeInt('pinned', {
      ...READ,
      description: 'The version of the policy that it keeps to; null when it follows the newest.',
    }),
    choices: t.field({
      ...{ ...READ, type: [ChoiceType] },
      description: 'What callers may choose instead with x-rungate-policy.',
      resolve: async ({ id }, _args, { loaders }) => (await loaders.choicesOfAgent.load(id)) ?? [],
    }),
    createdAt: t.expose('createdAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was made.',
    }),
    suspendedAt: t.expose('suspendedAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'Since when all its calls are refused.',
    }),
    spentToday: t.field({
      ...{ type: Money, action: 'usage.read', nullable: true },
      description: 'What it has spent since midnight, UTC.',
      resolve: async ({ id }, _args, { loaders }) =>
        (await loaders.agentSpend.load(id))?.todayNanos,
    }),
    spentThisMonth: t.field({
      ...{ type: Money, action: 'usage.read', nullable: true },
      description: 'What it has spent since the first of the month, UTC.',
      resolve: async ({ id }, _args, { loaders }) =>
        (await loaders.agentSpend.load(id))?.monthNanos,
    }),
  }),
});

builder.objectFields(PolicyType, (t) => ({
  agents: t.connection({
    type: AgentType,
    action: 'agent.read',
    description: 'The agents that have it for their own, by name.',
    complexity: costOf,
    resolve: ({ id }, page, { loaders }) =>
      connect(page, (window) => loaders.agentsOfPolicy.load(id, window)),
  }),
}));

const AgentFilter = builder.inputType('AgentFilter', {
  description: 'Which agents are listed; all of what is given must hold.',
  fields: (t) => ({
    name: t.string({ description: 'Whose name contains this, in any case.' }),
    isSuspended: t.boolean({ description: 'That are suspended, or that are not.' }),
  }),
});

const AgentOrderField = builder.enumType('AgentOrderField', {
  description: 'What agents are listed by.',
  values: {
    NAME: { value: 'name', description: 'Their names.' },
    CREATED_AT: { value: 'created_at', description: 'When they were made.' },
  } as const,
});

const AgentOrder = builder.inputType('AgentOrder', {
  description: 'The order of agents.',
  fields: (t) => ({
    field: t.field({ type: AgentOrderField, required: true, description: 'What they go by.' }),
    direction: t.field({
      ...{ type: OrderDirection, required: true },
      description: 'Which end comes first.',
    }),
  }),
});

builder.queryFields((t) => ({
  agents: t.connection({
    type: AgentType,
    action: 'agent.read',
    description: 'The agents of the org, by name unless told otherwise.',
    complexity: costOf,
    args: {
      filter: t.arg({ type: AgentFilter, description: 'Which of them.' }),
      orderBy: t.arg({ type: AgentOrder, description: 'In which order.' }),
    },
    resolve: (_root, { filter, orderBy, ...page }, { org, store }) => {
      const order = orderBy
        ? { orderBy: orderBy.field, isDescending: orderBy.direction === 'desc' }
        : {};
      return connect(page, (window) =>
        store.agents.listAgents(org, { ...filter, ...order }, window),
      );
    },
  }),
  agent: t.field({
    ...{ ...READ, type: AgentType },
    description: 'The agent of an id.',
    args: { id: t.arg(AGENT) },
    resolve: (_root, { id }, { loaders }) => loaders.agents.load(id),
  }),
  agentByName: t.field({
    ...{ ...READ, type: AgentType },
    description: 'The agent of a name.',
    args: { name: t.arg.string({ required: true, description: 'The name.' }) },
    resolve: (_root, { name }, { org, store }) => store.agents.findAgent(org, name),
  }),
}));

/**
 * The agent as it is now.
 *
 * @throws {UserError} `NOT_FOUND` at `agentId`.
 */
export async function presentAgent({ org, store }: Context, id: AgentId): Promise<Agent> {
  const agent = await store.agents.readAgent(org, id);
  if (!agent) throw notFound('agentId');
  return agent;
}

builder.relayMutationField(
  'agentCreate',
  {
    inputFields: (t) => ({
      name: t.string({ required: true, description: '1 to 64 of A-Z a-z 0-9 . _ -' }),
      policyId: t.field({ type: 'PolicyID', required: true, description: 'Its policy.' }),
      pinnedVersion: t.int({
        description: 'The version to keep to, which takes policy.pin; the newest unless given.',
      }),
      choices: t.field({
        type: [ChoiceInput],
        description: 'What callers may choose instead; nothing unless given.',
      }),
    }),
  },
  {
    action: 'agent.create',
    description: 'Makes an agent and its first token, whose text is shown this once.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const name = parseInput(nameSchema, input.name, 'name');
        const pinned = input.pinnedVersion ?? null;
        const terms = { policyId: input.policyId, pinned, choices: toChoices(input.choices ?? []) };
        checkPin(context, 'agentCreate', pinned);
        await checkTerms(context, terms);
        const made = await store.agents.createAgent(org, actor, name, terms.policyId, terms);
        const [agent, token] = await Promise.all([
          presentAgent(context, made.id),
          store.tokens.readStoredToken(org, made.tokenId),
        ]);
        return { agent, token, secret: made.token };
      }),
  },
  payloadOf('agentCreate', {
    agent: [AgentType, 'The agent.'],
    token: [TokenType, 'Its first token.'],
    secret: ['String', "The token's text, which is shown this once."],
  }),
);

builder.relayMutationField(
  'agentUpdate',
  {
    inputFields: (t) => ({
      agentId: t.field(AGENT),
      name: t.string({ description: 'Its name; as it is unless given.' }),
      policyId: t.field({
        type: 'PolicyID',
        description: 'Its policy; as it is unless given. Another one ends a pin.',
      }),
      pinnedVersion: t.int({
        description:
          'The version to keep to, which takes policy.pin; null to follow the newest, as it is unless given.',
      }),
      choices: t.field({
        type: [ChoiceInput],
        description: 'All that callers may choose instead; as it is unless given.',
      }),
    }),
  },
  {
    action: 'agent.update',
    description: 'Renames an agent or changes what its runs open with; open runs keep theirs.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const agent = await presentAgent(context, input.agentId);
        const change = await changeOf(context, agent, input);
        if (change.pinned !== agent.pinned) checkPin(context, 'agentUpdate', change.pinned);
        await checkTerms(context, change);
        const changed = await store.agents.updateAgent(org, actor, agent.id, change);
        return { agent: await presentAgent(context, agent.id), changed };
      }),
  },
  payloadOf('agentUpdate', {
    agent: [AgentType, 'The agent as it is now.'],
    changed: ['Boolean', 'Whether there was anything to change.'],
  }),
);

/** What of an agent a mutation names. */
interface AgentInput {
  readonly name?: string | null | undefined;
  readonly policyId?: PolicyId | null | undefined;
  readonly pinnedVersion?: number | null | undefined;
  readonly choices?: readonly ChosenInput[] | null | undefined;
}

async function changeOf({ org, store }: Context, agent: Agent, input: AgentInput) {
  const isSamePolicy = (input.policyId ?? agent.policyId) === agent.policyId;
  const kept = isSamePolicy ? agent.pinned : null;
  return {
    name: parseInput(nameSchema, input.name ?? agent.name, 'name'),
    policyId: input.policyId ?? agent.policyId,
    pinned: input.pinnedVersion === undefined ? kept : input.pinnedVersion,
    choices: input.choices
      ? toChoices(input.choices)
      : await store.agents.readAgentChoices(org, agent.id),
  };
}

builder.relayMutationField(
  'agentSuspend',
  { inputFields: (t) => ({ agentId: t.field(AGENT) }) },
  {
    action: 'agent.suspend',
    description: 'Refuses all further calls of an agent and ends those in flight.',
    resolve: (_root, { input: { agentId } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        await store.agents.suspendAgent(org, actor, agentId);
        return { agent: await presentAgent(context, agentId) };
      }),
  },
  payloadOf('agentSuspend', { agent: [AgentType, 'The agent as it is now.'] }),
);

builder.relayMutationField(
  'agentResume',
  { inputFields: (t) => ({ agentId: t.field(AGENT) }) },
  {
    action: 'agent.resume',
    description: 'Lets a suspended agent call again.',
    resolve: (_root, { input: { agentId } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        await store.agents.resumeAgent(org, actor, agentId);
        return { agent: await presentAgent(context, agentId) };
      }),
  },
  payloadOf('agentResume', { agent: [AgentType, 'The agent as it is now.'] }),
);

builder.relayMutationField(
  'agentDelete',
  { inputFields: (t) => ({ agentId: t.field(AGENT) }) },
  {
    action: 'agent.delete',
    description:
      'Deletes an agent that has no open run, with its tokens. Its runs and what it has spent stay on record under its id.',
    resolve: (_root, { input: { agentId } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const agent = await presentAgent(context, agentId);
        if (!(await store.agents.deleteAgent(org, actor, agent))) throw hasOpenRuns();
        return { deletedId: agentId };
      }),
  },
  payloadOf('agentDelete', { deletedId: ['AgentID', 'The id that was deleted.'] }),
);

function hasOpenRuns(): UserError {
  const message = 'A run of the agent is open; cancel it first, or wait until it is idle.';
  return new UserError('CONFLICT', ['agentId'], message);
}
