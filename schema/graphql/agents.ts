/** Agents: read, made, changed, suspended. */

import type { Agent } from '../../db/agents.ts';
import { builder } from './builder.ts';
import { connect, sizeOf } from './connection.ts';
import { notFound } from './errors.ts';
import { attempt, errorsField } from './payload.ts';
import './scalars.ts';

/** A workload with a default policy. */
export const AgentType = builder.objectRef<Agent>('Agent');

builder.objectType(AgentType, {
  description: 'A workload that calls the proxy, with a default policy.',
  fields: (t) => ({
    id: t.expose('id', {
      type: 'AgentID',
      action: 'public',
      nullable: false,
      description: 'Its id.',
    }),
    name: t.exposeString('name', { action: 'agent.read', description: 'Its name in the org.' }),
    suspendedAt: t.expose('suspendedAt', {
      ...{ type: 'DateTime', action: 'agent.read', nullable: true },
      description: 'Since when all its calls are refused.',
    }),
  }),
});

builder.queryFields((t) => ({
  agents: t.connection({
    type: AgentType,
    action: 'agent.read',
    description: 'The agents of the org, by name.',
    complexity: (page) => ({ field: 1, multiplier: sizeOf(page) }),
    args: { name: t.arg.string({ description: 'Only those whose name contains this.' }) },
    resolve: (_root, { name, ...page }, { org, store }) =>
      connect(page, (window) => store.agents.listAgents(org, { name: name ?? null }, window)),
  }),
}));

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
        const agent = await store.agents.readAgent(org, agentId);
        if (!agent) throw notFound('agentId');
        return { agent };
      }),
  },
  {
    description: 'What agentSuspend brought about.',
    outputFields: (t) => ({
      agent: t.field({
        ...{ type: AgentType, action: 'public', nullable: true },
        description: 'The agent as it is now.',
        resolve: ({ agent }) => agent,
      }),
      errors: errorsField(t),
    }),
  },
);
