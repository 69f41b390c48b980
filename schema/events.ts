/** Events: what other systems are told, one schema each. */

import { z } from 'zod';

const id = z.string().min(1).max(300);
const at = z.iso.datetime();
const nanos = z.int();

const run = z.object({ runId: id, run: z.string(), agentId: id, policy: z.string() });
const gate = z.object({
  gateId: id,
  runId: id,
  agentId: id,
  tool: z.string(),
  rule: z.string(),
  expiresAt: at,
});
const money = z.object({
  scope: z.enum(['run', 'agent_per_day', 'agent_per_month', 'org_per_month']),
  runId: id,
  agentId: id,
  spentNanos: nanos,
  ceilingNanos: nanos,
});

/** The data of every type of event. */
export const EVENTS = {
  'run.started': run,
  'run.completed': run.extend({ reason: z.string(), spentNanos: nanos }),
  'run.blocked': run.extend({ reason: z.string(), spentNanos: nanos }),
  'step.failed_over': z.object({ runId: id, stepId: id, from: z.string(), to: z.string() }),
  'approval.pending': gate.extend({ url: z.string().optional() }),
  'approval.approved': gate.extend({ decidedBy: z.string() }),
  'approval.rejected': gate.extend({ decidedBy: z.string() }),
  'approval.expired': gate,
  'budget.alert': money.extend({ alertAt: z.number() }),
  'budget.exceeded': money,
  'policy.drift': z.object({
    runId: id,
    agentId: id,
    policy: z.string(),
    kind: z.string(),
    rule: z.string(),
    asked: z.string(),
  }),
  'account.updated': z.object({ change: z.string() }),
  'admin_token.created': z.object({ tokenId: id, actions: z.array(z.string()) }),
  'agent.created': z.object({ agentId: id, name: z.string() }),
  'webhook.disabled': z.object({ webhookId: id, reason: z.string() }),
} as const;

/** The name of a type of event. */
export type EventType = keyof typeof EVENTS;

/** The data of an event. */
export type EventData<T extends EventType> = z.output<(typeof EVENTS)[T]>;
