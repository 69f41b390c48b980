/** Pins: an agent keeps to a version of its policy, or follows the newest. */

import { AGENT, AgentType, presentAgent } from './agents.ts';
import { builder } from './builder.ts';
import { attempt, payloadOf } from './payload.ts';
import { checkReferences } from './terms.ts';

builder.relayMutationField(
  'policyPin',
  {
    inputFields: (t) => ({
      agentId: t.field(AGENT),
      version: t.int({
        description: 'The version of its policy to keep to; the newest unless given.',
      }),
    }),
  },
  {
    action: 'policy.pin',
    description: 'Pins an agent to a version of its policy, or lets it follow the newest again.',
    resolve: (_root, { input: { agentId, version } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const agent = await presentAgent(context, agentId);
        const pinned = version ?? null;
        const fields = { policyField: ['agentId'], versionField: ['version'] };
        await checkReferences(context, [{ ...agent, number: pinned, ...fields }]);
        const choices = await store.agents.readAgentChoices(org, agentId);
        const change = { ...agent, pinned, choices };
        const changed = await store.agents.updateAgent(org, actor, agentId, change);
        return { agent: await presentAgent(context, agentId), changed };
      }),
  },
  payloadOf('policyPin', {
    agent: [AgentType, 'The agent as it is now.'],
    changed: ['Boolean', 'Whether it was pinned otherwise before.'],
  }),
);
