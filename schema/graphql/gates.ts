/** Gates: the decisions that people have to make, listed, shown and decided. */

import type { GateId } from '../ids.ts';
import { type GateStatus, statusAt } from '../rules/gate.ts';
import { AgentType } from './agents.ts';
import { builder } from './builder.ts';
import { connect, costOf, windowOf } from './connection.ts';
import type { Context, Decided, Gate, GateDecision } from './context.ts';
import { notFound, UserError } from './errors.ts';
import { attempt, payloadOf } from './payload.ts';
import { PolicyVersionType } from './policies.ts';
import { RunType } from './runs.ts';
import './scalars.ts';
import { StepType } from './steps.ts';

const READ = { action: 'gate.read', nullable: true } as const;
const GATE = { type: 'GateID', required: true, description: 'The gate.' } as const;

/** One pending human decision, bound to one proposed call. */
const GateType = builder.objectRef<Gate>('Gate');

const STATUSES = {
  PENDING: { value: 'pending', description: 'It waits for people.' },
  APPROVED: { value: 'approved', description: 'The call may be made, once.' },
  REJECTED: { value: 'rejected', description: 'The call is refused for good.' },
  EXPIRED: { value: 'expired', description: 'Nobody used it in time.' },
  RELEASED: { value: 'released', description: 'The approved call was handed to its agent.' },
} as const satisfies Record<string, { value: GateStatus; description: string }>;

const GateStatusType = builder.enumType('GateStatus', {
  description: 'How a gate stands.',
  values: STATUSES,
});

const DecisionKind = builder.enumType('GateDecisionKind', {
  description: 'What was decided.',
  values: {
    APPROVE: { value: 'approve', description: 'The call may be made.' },
    REJECT: { value: 'reject', description: 'The call is refused.' },
  } as const,
});

const DecisionType = builder.objectRef<GateDecision>('GateDecision');

builder.objectType(DecisionType, {
  description: 'What one person decided on a gate.',
  fields: (t) => ({
    decider: t.exposeString('decider', {
      ...READ,
      description: 'Who: the id of a member, operator, or link for whoever held a signed link.',
    }),
    decision: t.expose('decision', { ...READ, type: DecisionKind, description: 'What.' }),
    reason: t.exposeString('reason', { ...READ, description: 'Why, if that was said.' }),
    decidedAt: t.expose('decidedAt', { ...READ, type: 'DateTime', description: 'When.' }),
  }),
});

builder.objectType(GateType, {
  description: 'A decision that people have to make, bound to one proposed call and used once.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'GateID', action: 'public', nullable: false },
      description: 'Its id.',
    }),
    status: t.field({
      ...{ ...READ, type: GateStatusType },
      description: 'How it stands now.',
      resolve: (gate, _args, { now }) => statusAt(gate, now),
    }),
    tool: t.exposeString('tool', { ...READ, description: 'The tool that is to be called.' }),
    server: t.exposeString('server', {
      ...READ,
      description:
        'Where the MCP server of the tool is: its host, with the SHA-256 of a URL that says more, or the id of a connector or tunnel.',
    }),
    args: t.string({
      ...READ,
      description: 'The exact text of the arguments that an approval lets through.',
      complexity: 2,
      resolve: ({ id }, _args, { loaders }) => loaders.gateArgs.load(id),
    }),
    rule: t.exposeString('rule', {
      ...READ,
      description: 'The rule that asks, as a path in the policy document.',
    }),
    ruleName: t.exposeString('ruleName', { ...READ, description: 'What the rule is called.' }),
    reason: t.exposeString('reason', { ...READ, description: 'Why the rule asks.' }),
  }),
});

builder.objectFields(GateType, (t) => ({
  run: t.field({
    ...{ type: RunType, action: 'run.read', nullable: true },
    description: 'The run that the call belongs to.',
    resolve: ({ runId }, _args, { loaders }) => loaders.runs.load(runId),
  }),
  step: t.field({
    ...{ type: StepType, action: 'run.read', nullable: true },
    description: 'The call that proposed it; null for a local tool that was asked about.',
    resolve: ({ runId, stepId }, _args, { loaders }) =>
      stepId === null ? null : loaders.steps.load(`${runId}/${stepId}`),
  }),
  agent: t.field({
    ...{ type: AgentType, action: 'agent.read', nullable: true },
    description: 'The agent that wants to make the call.',
    resolve: ({ agentId }, _args, { loaders }) => loaders.agents.load(agentId),
  }),
  policyVersion: t.field({
    ...{ type: PolicyVersionType, action: 'policy.read', nullable: true },
    description: 'The version of a policy that asks.',
    resolve: ({ policyVersionId }, _args, { loaders }) =>
      loaders.policyVersions.load(policyVersionId),
  }),
  approvalsNeeded: t.exposeInt('approvals', {
    ...READ,
    description: 'How many people must approve.',
  }),
  approvalsGiven: t.exposeInt('given', {
    ...READ,
    description: 'How many have approved that may approve by now.',
  }),
  digest: t.exposeString('digest', {
    ...READ,
    description: 'SHA-256 of what a decision is bound to, in hex.',
  }),
  decisions: t.field({
    ...{ ...READ, type: [DecisionType] },
    description: 'What was decided by whom, in the order of time.',
    resolve: ({ id }, _args, { loaders }) => loaders.decisionsOfGate.load(id),
  }),
  createdAt: t.expose('createdAt', {
    ...{ ...READ, type: 'DateTime' },
    description: 'When it was opened.',
  }),
  expiresAt: t.expose('expiresAt', {
    ...{ ...READ, type: 'DateTime' },
    description: 'When it closes by itself, which counts as a rejection.',
  }),
  decidedAt: t.expose('decidedAt', {
    ...{ ...READ, type: 'DateTime' },
    description: 'When it was approved or rejected.',
  }),
  decidedBy: t.exposeString('decidedBy', {
    ...READ,
    description: 'Whose decision was the last one, as GateDecision.decider has it.',
  }),
}));

builder.objectField(RunType, 'gates', (t) =>
  t.connection({
    type: GateType,
    action: 'gate.read',
    description: 'The gates of its calls, the newest first.',
    complexity: costOf,
    args: { status: t.arg({ type: GateStatusType, description: 'Only those that stand so.' }) },
    resolve: ({ id }, { status = null, ...page }, { loaders }) => {
      const window = windowOf(page);
      return connect(page, () => loaders.gatesOfRun.load(id, { status }, window));
    },
  }),
);

const GateFilter = builder.inputType('GateFilter', {
  description: 'Which gates are listed; all of what is given must hold.',
  fields: (t) => ({
    status: t.field({ type: GateStatusType, description: 'Those that stand so now.' }),
    agentId: t.field({ type: 'AgentID', description: 'Those of an agent.' }),
    runId: t.field({ type: 'RunID', description: 'Those of a run.' }),
    isDecidable: t.boolean({
      description: 'Only those that people can decide on now: their run may still use them.',
    }),
  }),
});

builder.queryFields((t) => ({
  gates: t.connection({
    type: GateType,
    action: 'gate.read',
    description: 'The gates of the org, the newest first.',
    complexity: costOf,
    args: { filter: t.arg({ type: GateFilter, description: 'Which of them.' }) },
    resolve: (_root, { filter, ...page }, { org, now, store }) =>
      connect(page, (window) => store.gates.searchGates(org, filter ?? {}, now, window)),
  }),
  gate: t.field({
    ...{ ...READ, type: GateType },
    description: 'The gate of an id.',
    args: { id: t.arg(GATE) },
    resolve: (_root, { id }, { loaders }) => loaders.gates.load(id),
  }),
}));

const MAX_REASON_CHARS = 500;

/** Why a decision was none. */
const REFUSALS: Readonly<Record<Exclude<Decided, 'decided' | 'counted'>, () => UserError>> = {
  missing: () => notFound('gateId'),
  own: () =>
    new UserError('FORBIDDEN', ['gateId'], 'Who caused the call can’t decide on it; ask another.'),
  repeated: () =>
    new UserError('CONFLICT', ['gateId'], 'You have decided on this gate before; ask another.'),
  closed: () =>
    new UserError('CONFLICT', ['gateId'], 'The gate is decided or expired, or its run is over.'),
};

async function decide(
  { org, actor, now, store, viewer: { memberId } }: Context,
  decision: GateDecision['decision'],
  { gateId, reason }: { readonly gateId: GateId; readonly reason?: string | null | undefined },
): Promise<{ gate: Gate }> {
  if (reason && reason.length > MAX_REASON_CHARS) {
    const message = `A reason has at most ${MAX_REASON_CHARS} characters.`;
    throw new UserError('INVALID', ['reason'], message);
  }
  const verdict = { actor, decision, ...(memberId && { memberId }), ...(reason && { reason }) };
  const { outcome, gate } = await store.gates.decideGate(org, gateId, verdict, now);
  if (outcome !== 'decided' && outcome !== 'counted') throw REFUSALS[outcome]();
  if (!gate) throw notFound('gateId');
  return { gate };
}

const DECISIONS = {
  gateApprove: {
    decision: 'approve',
    action: 'gate.approve',
    about: 'Approves a call, which is released once enough people have; each counts once.',
  },
  gateReject: {
    decision: 'reject',
    action: 'gate.reject',
    about: 'Rejects a call, and with it the others of the same answer.',
  },
} as const;

for (const [name, { decision, action, about }] of Object.entries(DECISIONS)) {
  builder.relayMutationField(
    name,
    {
      inputFields: (t) => ({
        gateId: t.field(GATE),
        reason: t.string({ description: 'Why; at most 500 characters.' }),
      }),
    },
    {
      action,
      description: `${about} Who caused the call can’t decide on it.`,
      resolve: (_root, { input }, context) =>
        attempt(context, () => decide(context, decision, input)),
    },
    payloadOf(name, { gate: [GateType, 'The gate as it is now.'] }),
  );
}
