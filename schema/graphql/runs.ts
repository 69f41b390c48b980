/** Runs: found, read with their trails, cancelled, and given another ceiling. */

import type { RunId } from '../ids.ts';
import { AgentType } from './agents.ts';
import { builder } from './builder.ts';
import { connect, costOf, windowOf } from './connection.ts';
import type { Context, Run, RunOrder, RunStatus } from './context.ts';
import { notFound, UserError } from './errors.ts';
import { OrderDirection } from './order.ts';
import { attempt, payloadOf } from './payload.ts';
import { PolicyVersionType } from './policies.ts';
import './scalars.ts';
import { Money } from './scalars.ts';
import { StepKindType, StepType } from './steps.ts';

const READ = { action: 'run.read', nullable: true } as const;
/** How an input names a run. */
export const RUN = { type: 'RunID', required: true, description: 'The run.' } as const;

/** The whole unit of an agent's work. */
export const RunType = builder.objectRef<Run>('Run');

const STATUSES = {
  OPEN: { value: 'open', description: 'It may make calls.' },
  COMPLETED: { value: 'completed', description: 'Its agent completed it, or it was idle.' },
  BLOCKED: { value: 'blocked', description: 'A rule stopped it.' },
  CANCELLED: { value: 'cancelled', description: 'A person ended it for good.' },
} as const satisfies Record<string, { value: RunStatus; description: string }>;

const RunStatusType = builder.enumType('RunStatus', {
  description: 'How a run stands.',
  values: STATUSES,
});

builder.objectType(RunType, {
  description: 'The whole unit of an agent’s work, from its first call to its last.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'RunID', action: 'public', nullable: false },
      description: 'Its id.',
    }),
    name: t.exposeString('name', {
      ...READ,
      description: 'What its caller named it, or its id where the caller gave no name.',
    }),
    source: t.exposeString('source', { ...READ, description: 'Where its name was found.' }),
    agent: t.field({
      ...{ ...READ, type: AgentType },
      description: 'The agent whose run it is.',
      resolve: ({ agentId }, _args, { loaders }) => loaders.agents.load(agentId),
    }),
    policyVersion: t.field({
      ...{ ...READ, type: PolicyVersionType },
      description: 'The version of a policy that it opened with and keeps.',
      resolve: ({ policyVersionId }, _args, { loaders }) =>
        loaders.policyVersions.load(policyVersionId),
    }),
    status: t.expose('status', { ...READ, type: RunStatusType, description: 'How it stands.' }),
    ceiling: t.expose('ceilingNanos', {
      ...{ ...READ, type: Money },
      description: 'The most it may spend; null where only others’ ceilings bound it.',
    }),
    spent: t.expose('spentNanos', { ...READ, type: Money, description: 'What it has spent.' }),
    held: t.expose('heldNanos', {
      ...{ ...READ, type: Money },
      description: 'What is held for its calls in flight.',
    }),
    stepCount: t.expose('stepCount', {
      ...{ ...READ, type: 'Count' },
      description: 'How many steps its trail has.',
    }),
  }),
});

builder.objectFields(RunType, (t) => ({
  openedAt: t.expose('openedAt', {
    ...{ ...READ, type: 'DateTime' },
    description: 'When it opened.',
  }),
  activeAt: t.expose('activeAt', {
    ...{ ...READ, type: 'DateTime' },
    description: 'When it was last active, or until when a person may decide for it.',
  }),
  closedAt: t.expose('closedAt', {
    ...{ ...READ, type: 'DateTime' },
    description: 'When it closed; null while it is open.',
  }),
  closedReason: t.exposeString('closedReason', {
    ...READ,
    description: 'Why it closed: completed, idle, cancelled, or the rule that stopped it.',
  }),
  blockedUntil: t.expose('blockedUntil', {
    ...{ ...READ, type: 'DateTime' },
    description: 'When it may go on by itself, of one that is blocked for a while.',
  }),
  step: t.field({
    ...{ ...READ, type: StepType },
    description: 'One of its steps.',
    args: { id: t.arg({ type: 'StepID', required: true, description: 'The step.' }) },
    resolve: (run, { id }, { loaders }) => loaders.steps.load(`${run.id}/${id}`),
  }),
  steps: t.connection({
    type: StepType,
    action: 'run.read',
    description: 'Its trail, in the order of time.',
    complexity: costOf,
    args: {
      kinds: t.arg({ type: [StepKindType], description: 'Only steps of these kinds.' }),
    },
    resolve: ({ id }, { kinds = null, ...page }, { loaders }) => {
      const window = windowOf(page);
      return connect(page, () => loaders.stepsOfRun.load(id, { kinds }, window));
    },
  }),
}));

const RunFilter = builder.inputType('RunFilter', {
  description: 'Which runs are listed; all of what is given must hold.',
  fields: (t) => ({
    status: t.field({ type: RunStatusType, description: 'Those that stand so.' }),
    agentId: t.field({ type: 'AgentID', description: 'Those of an agent.' }),
    policyId: t.field({ type: 'PolicyID', description: 'Those under any version of a policy.' }),
    openedAfter: t.field({ type: 'DateTime', description: 'Opened then or later.' }),
    openedBefore: t.field({ type: 'DateTime', description: 'Opened before then.' }),
    name: t.string({ description: 'Those whose name contains this, in any case.' }),
  }),
});

const ORDERS = {
  OPENED_AT: { value: 'opened_at', description: 'When they opened.' },
  ACTIVE_AT: { value: 'active_at', description: 'When they were last active.' },
  SPENT: { value: 'spent_nanos', description: 'What they have spent.' },
} as const satisfies Record<string, { value: RunOrder['by']; description: string }>;

const RunOrderField = builder.enumType('RunOrderField', {
  description: 'What runs are listed by.',
  values: ORDERS,
});

const RunOrderInput = builder.inputType('RunOrder', {
  description: 'The order of runs.',
  fields: (t) => ({
    field: t.field({ type: RunOrderField, required: true, description: 'What they go by.' }),
    direction: t.field({
      ...{ type: OrderDirection, required: true },
      description: 'Which end comes first.',
    }),
  }),
});

/** What an order adds to the cost of a query in which every run has to be looked at. */
const SORTING = 2_000;

builder.queryFields((t) => ({
  runs: t.connection({
    type: RunType,
    action: 'run.read',
    description: 'The runs of the org, the newest first unless ordered otherwise.',
    complexity({ orderBy, ...page }) {
      const { field, multiplier } = costOf(page);
      const isSorted = (orderBy?.field ?? 'opened_at') !== 'opened_at';
      return { field: field + (isSorted ? SORTING : 0), multiplier };
    },
    args: {
      filter: t.arg({ type: RunFilter, description: 'Which of them.' }),
      orderBy: t.arg({ type: RunOrderInput, description: 'In which order.' }),
    },
    resolve: (_root, { filter, orderBy, ...page }, { org, store }) => {
      const { field: by = 'opened_at', direction } = orderBy ?? {};
      const order = { by, isDescending: direction !== 'asc' };
      return connect(page, (window) => store.runs.listRuns(org, filter ?? {}, order, window));
    },
  }),
  run: t.field({
    ...{ ...READ, type: RunType },
    description: 'The run of an id.',
    args: { id: t.arg(RUN) },
    resolve: (_root, { id }, { loaders }) => loaders.runs.load(id),
  }),
  runsByName: t.field({
    ...{ ...READ, type: [RunType] },
    description:
      'The runs that go by exactly this name or id, the newest first, at most ten: several agents may use one name.',
    complexity: 10,
    args: {
      name: t.arg.string({ required: true, description: 'The name or the id.' }),
      agentId: t.arg({ type: 'AgentID', description: 'Only that of an agent.' }),
    },
    resolve: (_root, { name, agentId }, { org, store }) =>
      store.runs.searchRuns(org, name, agentId ?? null),
  }),
}));

/** The run as it is now. */
async function present({ org, store }: Context, id: RunId): Promise<Run> {
  const run = await store.runs.readRun(org, id);
  if (!run) throw notFound('runId');
  return run;
}

builder.relayMutationField(
  'runCancel',
  { inputFields: (t) => ({ runId: t.field(RUN) }) },
  {
    action: 'run.cancel',
    description: 'Ends a run for good, with its calls in flight.',
    resolve: (_root, { input: { runId } }, context) =>
      attempt(context, async ({ org, actor, now, store }) => {
        const isCancelled = await store.runs.cancelRun(org, actor, runId, now);
        const run = await present(context, runId);
        if (isCancelled) return { run };
        throw new UserError('CONFLICT', ['runId'], `The run is ${run.status} already.`);
      }),
  },
  payloadOf('runCancel', { run: [RunType, 'The run as it is now.'] }),
);

builder.relayMutationField(
  'runSetCeiling',
  {
    inputFields: (t) => ({
      runId: t.field(RUN),
      ceiling: t.field({
        type: 'Dollars',
        required: true,
        description: 'The most that the run may spend.',
      }),
    }),
  },
  {
    action: 'run.set_ceiling',
    description:
      'Sets the ceiling of a run, at the least to what it has spent and holds; a run that its ceiling had blocked re-opens.',
    resolve: (_root, { input: { runId, ceiling } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        if (!(await store.runs.setCeiling(org, actor, runId, ceiling))) throw notFound('runId');
        return { run: await present(context, runId) };
      }),
  },
  payloadOf('runSetCeiling', { run: [RunType, 'The run as it is now.'] }),
);
