/** What tokens and people may do: one table of actions. */

/** What an agent's token can be allowed. */
export const AGENT_ACTIONS = ['call.create', 'run.read', 'run.complete'] as const;

/** What an org's admin token can be allowed. */
export const ADMIN_ACTIONS = [
  'org.read',
  'agent.read',
  'agent.write',
  'token.read',
  'token.write',
  'policy.read',
  'policy.write',
  'provider_key.read',
  'provider_key.write',
  'price.read',
  'price.write',
  'run.read',
  'run.write',
] as const;

export type AgentAction = (typeof AGENT_ACTIONS)[number];
export type AdminAction = (typeof ADMIN_ACTIONS)[number];
export type Action = AgentAction | AdminAction;
