/** Simulations: what a policy would have decided on steps that are on record. */

import type { PolicyId, RunId } from '../ids.ts';
import { judgePolicy, type Policy, policySchema } from '../policy.ts';
import { simulate, type Verdict } from '../rules/simulate.ts';
import { builder } from './builder.ts';
import type { Context, RecordedStep } from './context.ts';
import { notFound, UserError } from './errors.ts';
import { rejectProblems } from './input.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

const READ = { action: 'policy.simulate', nullable: true } as const;
const MAX_RUNS = 50;
const DEFAULT_RUNS = 20;
const MAX_STEPS = 2_000;

/** A step, and what the policy would have decided of it. */
interface Simulated {
  readonly step: RecordedStep;
  readonly verdict: Verdict;
}

/** What a simulation found. */
interface Simulation {
  readonly runs: readonly RunId[];
  readonly steps: readonly Simulated[];
  readonly isTruncated: boolean;
}

const EffectType = builder.enumType('DecisionEffect', {
  description: 'What a policy decides.',
  values: {
    ALLOW: { value: 'allow', description: 'It goes through.' },
    DENY: { value: 'deny', description: 'It is refused.' },
    ASK: { value: 'ask', description: 'A person is asked.' },
  } as const,
});

const SimulatedType = builder.objectRef<Simulated>('SimulatedStep');

builder.objectType(SimulatedType, {
  description: 'A recorded step, and what the policy would have decided of it.',
  fields: (t) => ({
    stepId: t.field({
      ...{ ...READ, type: 'StepID' },
      description: 'The step.',
      resolve: ({ step }) => step.stepId,
    }),
    runId: t.field({
      ...{ ...READ, type: 'RunID' },
      description: 'The run of the step.',
      resolve: ({ step }) => step.runId,
    }),
    model: t.field({
      ...{ ...READ, type: 'String' },
      description: 'The model as key/model, where the trail has it.',
      resolve: ({ step }) => step.model,
    }),
    tool: t.field({
      ...{ ...READ, type: 'String' },
      description: 'The tool, where the trail has it.',
      resolve: ({ step }) => step.tool,
    }),
    happened: t.field({
      ...{ ...READ, type: EffectType },
      description: 'What was decided then.',
      resolve: ({ step }) => step.happened,
    }),
    would: t.field({
      ...{ ...READ, type: EffectType },
      description: 'What the policy would have decided; null where the trail does not tell.',
      resolve: ({ verdict }) => verdict.effect,
    }),
    differs: t.field({
      ...{ ...READ, type: 'Boolean' },
      description: 'Whether it would have been decided otherwise.',
      resolve: differs,
    }),
    rule: t.field({
      ...{ ...READ, type: 'String' },
      description: 'The rule that would have decided, as a path in the document.',
      resolve: ({ verdict }) => verdict.rule,
    }),
    reason: t.field({
      ...{ ...READ, type: 'String' },
      description: 'Why, in a sentence.',
      resolve: ({ verdict }) => verdict.reason,
    }),
  }),
});

function differs({ step, verdict }: Simulated): boolean {
  return verdict.effect !== null && verdict.effect !== step.happened;
}

const SimulationType = builder.objectRef<Simulation>('Simulation');

builder.objectType(SimulationType, {
  description: 'What a policy would have decided on recorded runs.',
  fields: (t) => ({
    runIds: t.field({
      ...{ ...READ, type: ['RunID'] },
      description: 'The runs that were looked at.',
      resolve: ({ runs }) => [...runs],
    }),
    steps: t.field({
      ...{ ...READ, type: [SimulatedType] },
      description: `Their steps, each run's in the order of time; at most ${MAX_STEPS}.`,
      resolve: ({ steps }) => [...steps],
    }),
    isTruncated: t.field({
      ...{ ...READ, type: 'Boolean' },
      description: 'Whether there are more steps than were looked at.',
      resolve: ({ isTruncated }) => isTruncated,
    }),
    allowed: countField(
      t,
      'that would have gone through',
      ({ verdict }) => verdict.effect === 'allow',
    ),
    denied: countField(
      t,
      'that would have been refused',
      ({ verdict }) => verdict.effect === 'deny',
    ),
    asked: countField(
      t,
      'that a person would have decided',
      ({ verdict }) => verdict.effect === 'ask',
    ),
    unknown: countField(
      t,
      'of which the trail does not tell',
      ({ verdict }) => verdict.effect === null,
    ),
    differing: countField(t, 'that would have been decided otherwise', differs),
  }),
});

type Fields = PothosSchemaTypes.ObjectFieldBuilder<Types, Simulation>;
type Types = typeof builder extends PothosSchemaTypes.SchemaBuilder<infer T> ? T : never;

function countField(t: Fields, which: string, isCounted: (step: Simulated) => boolean) {
  return t.field({
    ...{ ...READ, type: 'Count' },
    description: `How many steps there are ${which}.`,
    resolve: ({ steps }) => steps.filter(isCounted).length,
  });
}

/** What a simulation is asked for. */
interface Wanted {
  readonly policyId?: PolicyId | null | undefined;
  readonly version?: number | null | undefined;
  readonly document?: unknown;
  readonly runIds?: readonly RunId[] | null | undefined;
  readonly lastRuns?: number | null | undefined;
}

builder.relayMutationField(
  'policySimulate',
  {
    inputFields: (t) => ({
      policyId: t.field({ type: 'PolicyID', description: 'A policy; or else give a document.' }),
      version: t.int({ description: 'The version of the policy; the newest unless given.' }),
      document: t.field({ type: 'JSON', description: 'A draft, as /schemas/policy.json has it.' }),
      runIds: t.field({ type: ['RunID'], description: `Runs to look at, at most ${MAX_RUNS}.` }),
      lastRuns: t.int({
        description: `How many of the newest runs to look at instead, at most ${MAX_RUNS}; ${DEFAULT_RUNS} unless given.`,
      }),
    }),
  },
  {
    action: 'policy.simulate',
    description:
      "Asks what a policy would have decided on recorded runs; nothing is changed. It judges models, tools by name, the run's ceiling, its most steps and its most time. A trail has no arguments of tools, so that a rule with a condition counts as one that applies; ceilings of days and months, limits, loops, hosted tools and failover are not judged.",
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, store }) => {
        const policy = await findPolicy(context, input);
        const runs = await findRuns(context, input);
        const read = await store.simulations.readRecorded(org, runs, MAX_STEPS + 1);
        const steps = read.slice(0, MAX_STEPS);
        const verdicts = simulate(policy, steps);
        const simulated = steps.map((step, at) => ({ step, verdict: verdicts[at]! }));
        return { simulation: { runs, steps: simulated, isTruncated: read.length > MAX_STEPS } };
      }),
  },
  {
    ...payloadOf('policySimulate', { simulation: [SimulationType, 'The simulation.'] }),
    description: 'What policySimulate found.',
  },
);

async function findPolicy({ org, store }: Context, wanted: Wanted): Promise<Policy> {
  const { policyId, version, document } = wanted;
  const hasDocument = document !== undefined && document !== null;
  if (hasDocument === Boolean(policyId)) {
    throw new UserError('INVALID', ['document'], 'Give either a policy or a document.');
  }
  if (!policyId) {
    rejectProblems(judgePolicy(document), 'document');
    return policySchema.parse(document);
  }
  const [newest] = await store.policies.readNewestVersions(org, [policyId]);
  if (!newest) throw notFound('policyId');
  const number = version ?? newest.number;
  const key = `${policyId}/${number}` as const;
  const chosen = (await store.policies.readNumberedVersions(org, [key])).get(key);
  if (!chosen) {
    const message = `The policy has no version ${number}; its newest is ${newest.number}.`;
    throw new UserError('INVALID', ['version'], message);
  }
  return policySchema.parse(chosen.document);
}

async function findRuns({ org, store }: Context, { runIds, lastRuns }: Wanted): Promise<RunId[]> {
  const many = `must be 1 to ${MAX_RUNS}`;
  if (!runIds) {
    const count = lastRuns ?? DEFAULT_RUNS;
    const isFine = count >= 1 && count <= MAX_RUNS;
    rejectProblems(isFine ? [] : [{ path: [], message: many }], 'lastRuns');
    return await store.simulations.newestRuns(org, count);
  }
  const isFine = runIds.length >= 1 && runIds.length <= MAX_RUNS;
  rejectProblems(isFine ? [] : [{ path: [], message: many }], 'runIds');
  const known = await store.simulations.knownRuns(org, runIds);
  const missing = runIds.findIndex((id) => !known.has(id));
  if (missing >= 0) throw notFound('runIds', String(missing));
  return [...known];
}
