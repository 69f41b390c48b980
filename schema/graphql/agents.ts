/** Agents: read, made, changed, pinned, suspended, deleted; and their tokens. */

import { z } from 'zod';
import type { AgentId, PolicyId } from '../ids.ts';
import { choiceSchema, nameSchema } from '../names.ts';
import { AGENT_ACTIONS, type AgentAction } from '../roles.ts';
import { findUnusable } from '../rules/choice.ts';
import { builder } from './builder.ts';
import { connect, sizeOf } from './connection.ts';
import type { Agent, Choice, Context } from './context.ts';
import { notFound, UserError, UserErrors } from './errors.ts';
import { parseInput } from './input.ts';
import { OrderDirection } from './order.ts';
import { attempt, errorsField, payloadOf } from './payload.ts';
import { PolicyType } from './policies.ts';
import { Money } from './scalars.ts';
import { checkExpiry, overlap, TokenType } from './tokens.ts';

const READ = { action: 'agent.read', nullable: true } as const;
const MAX_CHOICES = 50;
const MAX_PERMITTED = 50;

/** A workload with a default policy. */
export const AgentType = builder.objectRef<Agent>('Agent');

const ChoiceType = builder.objectRef<Choice>('PolicyChoice');

builder.objectType(ChoiceType, {
  description: 'A policy that callers may choose with x-rungate-policy.',
  fields: (t) => ({
    policy: t.field({
      ...{ type: PolicyType, action: 'policy.read', nullable: true },
      description: 'The policy.',
      resolve: ({ policyId }, _args, { loaders }) => loaders.policies.load(policyId),
    }),
    version: t.exposeInt('number', {
      ...READ,
      description: 'The version that may be chosen; null for the newest, whichever that is.',
    }),
  }),
});

builder.objectType(AgentType, {
  description: 'A workload that calls the proxy, with a default policy.',
  fields: (t) => ({
    id: t.expose('id', {
      type: 'AgentID',
      action: 'public',
      nullable: false,
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
    tokens: t.connection({
      type: TokenType,
      action: 'token.read',
      description: 'Its tokens, the newest first.',
      complexity: (page) => ({ field: 1, multiplier: sizeOf(page) }),
      resolve: ({ id }, page, { loaders }) =>
        connect(page, (window) => loaders.tokensOfAgent.load(id, window)),
    }),
  }),
});

builder.objectFields(TokenType, (t) => ({
  agent: t.field({
    ...{ ...READ, type: AgentType },
    description: 'The agent whose token it is; null for an admin token.',
    resolve: ({ agentId }, _args, { loaders }) => agentId && loaders.agents.load(agentId),
  }),
}));

builder.objectFields(PolicyType, (t) => ({
  agents: t.connection({
    type: AgentType,
    action: 'agent.read',
    description: 'The agents that have it for their own, by name.',
    complexity: (page) => ({ field: 1, multiplier: sizeOf(page) }),
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
    complexity: (page) => ({ field: 1, multiplier: sizeOf(page) }),
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
    args: { id: t.arg({ type: 'AgentID', required: true, description: 'The agent.' }) },
    resolve: (_root, { id }, { loaders }) => loaders.agents.load(id),
  }),
  agentByName: t.field({
    ...{ ...READ, type: AgentType },
    description: 'The agent of a name.',
    args: { name: t.arg.string({ required: true, description: 'The name.' }) },
    resolve: (_root, { name }, { org, store }) => store.agents.findAgent(org, name),
  }),
}));

async function present({ org, store }: Context, id: AgentId): Promise<Agent> {
  const agent = await store.agents.readAgent(org, id);
  if (!agent) throw notFound('agentId');
  return agent;
}

/** A reference to a policy, and where in the input it stands. */
interface Reference {
  readonly policyId: PolicyId;
  readonly number: number | null;
  readonly policyField: readonly string[];
  readonly versionField: readonly string[];
}

/** Checks that all policies and versions are the org's and there. */
async function checkReferences({ org, store }: Context, references: readonly Reference[]) {
  const ids = [...new Set(references.map(({ policyId }) => policyId))];
  const newest = await store.policies.readNewestVersions(org, ids);
  const numbers = new Map(newest.map(({ policyId, number }) => [policyId, number]));
  for (const { policyId, number, policyField, versionField } of references) {
    const last = numbers.get(policyId);
    if (last === undefined) throw notFound(...policyField);
    if (number === null || (number >= 1 && number <= last)) continue;
    const message = `The policy has no version ${number}; its newest is ${last}.`;
    throw new UserError('INVALID', versionField, message);
  }
}

/** What an agent's runs may open with, as the input of a mutation has it. */
interface Terms {
  readonly policyId: PolicyId;
  readonly pinned: number | null;
  readonly choices: readonly Choice[];
}

async function checkTerms(context: Context, { policyId, pinned, choices }: Terms): Promise<void> {
  if (choices.length > MAX_CHOICES) {
    throw new UserError('INVALID', ['choices'], `At most ${MAX_CHOICES} may be chosen from.`);
  }
  await checkReferences(context, [
    {
      ...{ policyId, number: pinned },
      ...{ policyField: ['policyId'], versionField: ['pinnedVersion'] },
    },
    ...choices.map((choice, at) => ({
      ...choice,
      policyField: ['choices', String(at), 'policyId'],
      versionField: ['choices', String(at), 'version'],
    })),
  ]);
}

/** Pinning is an action of its own, also where it comes with others. */
function checkPin(context: Context, field: string, pinned: number | null): void {
  if (pinned === null || context.viewer.actions.has('policy.pin')) return;
  context.refused.push({ field, action: 'policy.pin' });
  const message = 'This takes the action policy.pin, which the viewer may not do.';
  throw new UserError('FORBIDDEN', ['pinnedVersion'], message);
}

const ChoiceInput = builder.inputType('PolicyChoiceInput', {
  description: 'A policy that callers may choose.',
  fields: (t) => ({
    policyId: t.field({ type: 'PolicyID', required: true, description: 'The policy.' }),
    version: t.int({
      description: 'One version of it; the newest, whichever that is, unless given.',
    }),
  }),
});

interface ChosenInput {
  readonly policyId: PolicyId;
  readonly version?: number | null | undefined;
}

function toChoices(given: readonly ChosenInput[]): Choice[] {
  return given.map(({ policyId, version }) => ({ policyId, number: version ?? null }));
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
      attempt(context, async () => {
        const { org, actor, store } = context;
        const name = parseInput(nameSchema, input.name, 'name');
        const pinned = input.pinnedVersion ?? null;
        const terms = { policyId: input.policyId, pinned, choices: toChoices(input.choices ?? []) };
        checkPin(context, 'agentCreate', pinned);
        await checkTerms(context, terms);
        const made = await store.agents.createAgent(org, actor, name, terms.policyId, terms);
        const [agent, token] = await Promise.all([
          present(context, made.id),
          store.tokens.readStoredToken(org, made.tokenId),
        ]);
        return { agent, token, secret: made.token };
      }),
  },
  {
    description: 'What agentCreate brought about.',
    outputFields: (t) => ({
      agent: t.field({
        ...{ type: AgentType, action: 'public', nullable: true },
        description: 'The agent.',
        resolve: ({ agent }) => agent,
      }),
      token: t.field({
        ...{ type: TokenType, action: 'public', nullable: true },
        description: 'Its first token.',
        resolve: ({ token }) => token,
      }),
      secret: t.string({
        ...{ action: 'public', nullable: true },
        description: "The token's text, which is shown this once.",
        resolve: ({ secret }) => secret,
      }),
      errors: errorsField(t),
    }),
  },
);

builder.relayMutationField(
  'agentUpdate',
  {
    inputFields: (t) => ({
      agentId: t.field({ type: 'AgentID', required: true, description: 'The agent.' }),
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
      attempt(context, async () => {
        const { org, actor, store } = context;
        const agent = await present(context, input.agentId);
        const change = await changeOf(context, agent, input);
        if (change.pinned !== agent.pinned) checkPin(context, 'agentUpdate', change.pinned);
        await checkTerms(context, change);
        const changed = await store.agents.updateAgent(org, actor, agent.id, change);
        return { agent: await present(context, agent.id), changed };
      }),
  },
  {
    description: 'What agentUpdate brought about.',
    outputFields: (t) => ({
      agent: t.field({
        ...{ type: AgentType, action: 'public', nullable: true },
        description: 'The agent as it is now.',
        resolve: ({ agent }) => agent,
      }),
      changed: t.boolean({
        ...{ action: 'public', nullable: true },
        description: 'Whether there was anything to change.',
        resolve: ({ changed }) => changed,
      }),
      errors: errorsField(t),
    }),
  },
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
  'policyPin',
  {
    inputFields: (t) => ({
      agentId: t.field({ type: 'AgentID', required: true, description: 'The agent.' }),
      version: t.int({
        description: 'The version of its policy to keep to; the newest unless given.',
      }),
    }),
  },
  {
    action: 'policy.pin',
    description: 'Pins an agent to a version of its policy, or lets it follow the newest again.',
    resolve: (_root, { input: { agentId, version } }, context) =>
      attempt(context, async () => {
        const { org, actor, store } = context;
        const agent = await present(context, agentId);
        const change = await changeOf(context, agent, { pinnedVersion: version ?? null });
        const fields = { policyField: ['agentId'], versionField: ['version'] };
        await checkReferences(context, [{ ...agent, number: change.pinned, ...fields }]);
        const changed = await store.agents.updateAgent(org, actor, agentId, change);
        return { agent: await present(context, agentId), changed };
      }),
  },
  {
    description: 'What policyPin brought about.',
    outputFields: (t) => ({
      agent: t.field({
        ...{ type: AgentType, action: 'public', nullable: true },
        description: 'The agent as it is now.',
        resolve: ({ agent }) => agent,
      }),
      changed: t.boolean({
        ...{ action: 'public', nullable: true },
        description: 'Whether it was pinned otherwise before.',
        resolve: ({ changed }) => changed,
      }),
      errors: errorsField(t),
    }),
  },
);

builder.relayMutationField(
  'agentSuspend',
  {
    inputFields: (t) => ({
      agentId: t.field({ type: 'AgentID', required: true, description: 'The agent.' }),
    }),
  },
  {
    action: 'agent.suspend',
    description: 'Refuses all further calls of an agent and ends those in flight.',
    resolve: (_root, { input: { agentId } }, context) =>
      attempt(context, async () => {
        const { org, actor, store } = context;
        await store.agents.suspendAgent(org, actor, agentId);
        return { agent: await present(context, agentId) };
      }),
  },
  payloadOf('agentSuspend', 'agent', AgentType, 'The agent as it is now.'),
);

builder.relayMutationField(
  'agentResume',
  {
    inputFields: (t) => ({
      agentId: t.field({ type: 'AgentID', required: true, description: 'The agent.' }),
    }),
  },
  {
    action: 'agent.resume',
    description: 'Lets a suspended agent call again.',
    resolve: (_root, { input: { agentId } }, context) =>
      attempt(context, async () => {
        const { org, actor, store } = context;
        await store.agents.resumeAgent(org, actor, agentId);
        return { agent: await present(context, agentId) };
      }),
  },
  payloadOf('agentResume', 'agent', AgentType, 'The agent as it is now.'),
);

builder.relayMutationField(
  'agentDelete',
  {
    inputFields: (t) => ({
      agentId: t.field({ type: 'AgentID', required: true, description: 'The agent.' }),
    }),
  },
  {
    action: 'agent.delete',
    description:
      'Deletes an agent that has no open run, with its tokens. Its runs and what it has spent stay on record under its id.',
    resolve: (_root, { input: { agentId } }, context) =>
      attempt(context, async () => {
        const { org, actor, store } = context;
        const agent = await present(context, agentId);
        if (!(await store.agents.deleteAgent(org, actor, agent))) throw hasOpenRuns();
        return { deletedId: agentId };
      }),
  },
  payloadOf('agentDelete', 'deletedId', 'AgentID', 'The id that was deleted.'),
);

function hasOpenRuns(): UserError {
  const message = 'A run of the agent is open; cancel it first, or wait until it is idle.';
  return new UserError('CONFLICT', ['agentId'], message);
}

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
      agentId: t.field({ type: 'AgentID', required: true, description: 'The agent.' }),
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
      attempt(context, async () => {
        const { org, actor, store } = context;
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
  {
    description: 'What agentTokenCreate brought about.',
    outputFields: (t) => ({
      token: t.field({
        ...{ type: TokenType, action: 'public', nullable: true },
        description: 'The token.',
        resolve: ({ token }) => token,
      }),
      secret: t.string({
        ...{ action: 'public', nullable: true },
        description: 'Its text, which is shown this once.',
        resolve: ({ secret }) => secret,
      }),
      errors: errorsField(t),
    }),
  },
);

builder.relayMutationField(
  'agentTokensRotate',
  {
    inputFields: (t) => ({
      agentId: t.field({ type: 'AgentID', required: true, description: 'The agent.' }),
      overlapS: t.int({
        description: 'Seconds that its present tokens still work, up to 30 days; 0 unless given.',
      }),
    }),
  },
  {
    action: 'token.rotate',
    description: 'Gives an agent one new token, shown this once, in place of all its present ones.',
    resolve: (_root, { input: { agentId, overlapS } }, context) =>
      attempt(context, async () => {
        const { org, actor, store } = context;
        const agent = await present(context, agentId);
        const overlapMs = parseInput(overlap, overlapS ?? 0, 'overlapS') * 1_000;
        const made = await store.tokens.rotateAgentTokens(org, actor, agentId, overlapMs);
        const token = await store.tokens.readStoredToken(org, made.id);
        return { agent, token, secret: made.token };
      }),
  },
  {
    description: 'What agentTokensRotate brought about.',
    outputFields: (t) => ({
      agent: t.field({
        ...{ type: AgentType, action: 'public', nullable: true },
        description: 'The agent.',
        resolve: ({ agent }) => agent,
      }),
      token: t.field({
        ...{ type: TokenType, action: 'public', nullable: true },
        description: 'The new token.',
        resolve: ({ token }) => token,
      }),
      secret: t.string({
        ...{ action: 'public', nullable: true },
        description: "The new token's text, which is shown this once.",
        resolve: ({ secret }) => secret,
      }),
      errors: errorsField(t),
    }),
  },
);

builder.relayMutationField(
  'agentTokensRevoke',
  {
    inputFields: (t) => ({
      agentId: t.field({ type: 'AgentID', required: true, description: 'The agent.' }),
    }),
  },
  {
    action: 'token.revoke',
    description: 'Ends all tokens of an agent, from the next request on.',
    resolve: (_root, { input: { agentId } }, context) =>
      attempt(context, async () => {
        const { org, actor, store } = context;
        const agent = await present(context, agentId);
        return { agent, revoked: await store.tokens.revokeAgentTokens(org, actor, agentId) };
      }),
  },
  {
    description: 'What agentTokensRevoke brought about.',
    outputFields: (t) => ({
      agent: t.field({
        ...{ type: AgentType, action: 'public', nullable: true },
        description: 'The agent.',
        resolve: ({ agent }) => agent,
      }),
      revoked: t.field({
        ...{ type: 'Count', action: 'public', nullable: true },
        description: 'How many tokens ended.',
        resolve: ({ revoked }) => revoked,
      }),
      errors: errorsField(t),
    }),
  },
);
