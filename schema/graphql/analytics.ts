/** Analytics: what was spent, refused and asked, and how long calls took. */

import { AgentType } from './agents.ts';
import { builder } from './builder.ts';
import type { AskedAbout, Days, ModelLatency, Refused, SpendKey, SpendShare } from './context.ts';
import { PolicyType } from './policies.ts';
import { daysOf } from './range.ts';
import './scalars.ts';
import { Money } from './scalars.ts';

const READ = { action: 'analytics.read', nullable: true } as const;
/** As many rows as the store gives cost one statement. */
const SUMMED = { field: 50, multiplier: 10 } as const;

const SpendBy = builder.enumType('SpendBy', {
  description: 'What spending is summed by.',
  values: {
    DAY: { value: 'day', description: 'UTC days, in their order.' },
    AGENT: { value: 'agent', description: 'Agents, the largest spenders first.' },
    MODEL: { value: 'model', description: 'Models as key/model, the most expensive first.' },
    POLICY: { value: 'policy', description: 'Policies, the most expensive first.' },
  } as const satisfies Record<string, { value: SpendKey; description: string }>,
});

const SpendType = builder.objectRef<SpendShare>('Spend');

builder.objectType(SpendType, {
  description: 'The spending of one day, agent, model or policy; what is not asked by is null.',
  fields: (t) => ({
    day: t.exposeString('day', { ...READ, description: 'The UTC day, as YYYY-MM-DD.' }),
    agent: t.field({
      ...{ type: AgentType, action: 'agent.read', nullable: true },
      description: 'The agent; null for one that was deleted.',
      resolve: ({ agentId }, _args, { loaders }) =>
        agentId === null ? null : loaders.agents.load(agentId),
    }),
    policy: t.field({
      ...{ type: PolicyType, action: 'policy.read', nullable: true },
      description: 'The policy; null for one that was deleted.',
      resolve: ({ policyId }, _args, { loaders }) =>
        policyId === null ? null : loaders.policies.load(policyId),
    }),
    model: t.exposeString('model', {
      ...READ,
      description: 'The model as key/model; null for tools that were reported.',
    }),
    calls: t.expose('calls', {
      ...{ ...READ, type: 'Count' },
      description: 'Calls that were settled, and tools that were reported.',
    }),
    spent: t.expose('spentNanos', { ...READ, type: Money, description: 'What they cost.' }),
  }),
});

const RefusedType = builder.objectRef<Refused>('RefusedCalls');

builder.objectType(RefusedType, {
  description: 'The calls that a rule refused.',
  fields: (t) => ({
    rule: t.exposeString('rule', {
      ...READ,
      description: 'A path in the policy document, or a built-in rule.',
    }),
    code: t.exposeString('code', { ...READ, description: 'The code of the error answered.' }),
    count: t.expose('count', { ...READ, type: 'Count', description: 'How many.' }),
  }),
});

const AskedType = builder.objectRef<AskedAbout>('AskedCalls');

builder.objectType(AskedType, {
  description: 'The calls that a rule asked people about.',
  fields: (t) => ({
    rule: t.exposeString('rule', { ...READ, description: 'A path in the policy document.' }),
    ruleName: t.exposeString('ruleName', { ...READ, description: 'What the rule is called.' }),
    asked: t.expose('asked', { ...READ, type: 'Count', description: 'How many gates.' }),
    approved: t.expose('approved', {
      ...{ ...READ, type: 'Count' },
      description: 'How many of them were approved.',
    }),
    rejected: t.expose('rejected', {
      ...{ ...READ, type: 'Count' },
      description: 'How many of them were rejected.',
    }),
    expired: t.expose('expired', {
      ...{ ...READ, type: 'Count' },
      description: 'How many of them nobody used in time.',
    }),
  }),
});

const LatencyType = builder.objectRef<ModelLatency>('ModelLatency');

builder.objectType(LatencyType, {
  description: 'How long the calls of a model took, to two digits.',
  fields: (t) => ({
    model: t.exposeString('model', { ...READ, description: 'The model, as key/model.' }),
    calls: t.expose('calls', {
      ...{ ...READ, type: 'Count' },
      description: 'The calls whose latency is known.',
    }),
    p50Ms: t.expose('p50Ms', {
      ...{ ...READ, type: 'Count' },
      description: 'Half of them took at most this, in milliseconds.',
    }),
    p95Ms: t.expose('p95Ms', {
      ...{ ...READ, type: 'Count' },
      description: '95 % of them took at most this, in milliseconds.',
    }),
    p99Ms: t.expose('p99Ms', {
      ...{ ...READ, type: 'Count' },
      description: '99 % of them took at most this, in milliseconds.',
    }),
  }),
});

const AnalyticsType = builder.objectRef<Days>('Analytics');

builder.objectType(AnalyticsType, {
  description: 'Sums over UTC days; a list has at most 500 rows.',
  fields: (t) => ({
    spend: t.field({
      ...{ ...READ, type: [SpendType], complexity: SUMMED },
      description: 'What was spent.',
      args: { by: t.arg({ type: SpendBy, required: true, description: 'Summed by what.' }) },
      resolve: (days, { by }, { org, store }) => store.analytics.readSpend(org, by, days),
    }),
    refused: t.field({
      ...{ ...READ, type: [RefusedType], complexity: SUMMED },
      description: 'The calls that were refused, by rule; the most frequent first.',
      resolve: (days, _args, { org, store }) => store.analytics.readRefused(org, days),
    }),
    asked: t.field({
      ...{ ...READ, type: [AskedType], complexity: SUMMED },
      description: 'The calls that people were asked about, by rule; the most frequent first.',
      resolve: (days, _args, { org, now, store }) => store.analytics.readAskedAbout(org, days, now),
    }),
    latencies: t.field({
      ...{ ...READ, type: [LatencyType], complexity: SUMMED },
      description: 'How long calls took, by model; the most used first.',
      resolve: (days, _args, { org, store }) => store.analytics.readLatencies(org, days),
    }),
  }),
});

builder.queryField('analytics', (t) =>
  t.field({
    ...{ ...READ, type: AnalyticsType },
    description: 'What was spent, refused and asked, and how long calls took.',
    args: {
      from: t.arg({
        type: 'DateTime',
        required: true,
        description: 'From the UTC day of this on.',
      }),
      to: t.arg({
        type: 'DateTime',
        required: true,
        description: 'To the UTC day of the moment before this; at most 366 days later.',
      }),
    },
    resolve: (_root, { from, to }) => daysOf(from, to),
  }),
);
