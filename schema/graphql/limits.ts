/** Limits: what still is left to an agent of its limits and budgets. */

import type { Nanos } from '../money.ts';
import { roomOf, type Scope } from '../rules/budget.ts';
import { stateOf } from '../rules/limit.ts';
import { AGENT, AgentType } from './agents.ts';
import { builder } from './builder.ts';
import type { Allowances } from './context.ts';
import { PolicyVersionType } from './policies.ts';
import './scalars.ts';
import { Money } from './scalars.ts';

const READ = { action: 'limit.read', nullable: true } as const;

/** A limit of calls, requests or tokens as it stands. */
interface RateLimit {
  readonly name: string;
  readonly rule: string;
  readonly per: string;
  readonly kind: string;
  readonly limit: number;
  readonly used: number;
  readonly remaining: number;
  readonly windowS: number | null;
  readonly resetsAt: number | null;
}

function rateLimitsOf({ limits, now }: Allowances): RateLimit[] {
  return limits.flatMap(({ limit, standing }) => {
    const state = stateOf(limit, standing, now);
    if (!state) return [];
    const { name, remaining, resetS, windowS } = state;
    const resetsAt = windowS === undefined ? null : now + resetS * 1_000;
    return {
      ...{ name, remaining, windowS: windowS ?? null, resetsAt },
      ...{ rule: limit.rule, per: limit.per, kind: limit.kind },
      ...{ limit: limit.most, used: standing.used },
    };
  });
}

const RateLimitType = builder.objectRef<RateLimit>('RateLimit');

builder.objectType(RateLimitType, {
  description: 'A limit of requests, tokens or concurrent calls, as it stands.',
  fields: (t) => ({
    name: t.exposeString('name', {
      ...READ,
      description: 'As the header RateLimit names it, such as agent-requests-60s.',
    }),
    rule: t.exposeString('rule', { ...READ, description: 'Its place in the policy document.' }),
    per: t.exposeString('per', { ...READ, description: 'Whose it is: agent, policy or org.' }),
    kind: t.exposeString('kind', {
      ...READ,
      description: 'What it counts: requests, tokens or concurrent.',
    }),
    limit: t.expose('limit', { ...READ, type: 'Count', description: 'The most that fits.' }),
    used: t.expose('used', { ...READ, type: 'Count', description: 'What counts now.' }),
    remaining: t.expose('remaining', { ...READ, type: 'Count', description: 'What is left.' }),
    windowS: t.expose('windowS', {
      ...{ ...READ, type: 'Count' },
      description: 'The window in seconds; null for concurrent calls.',
    }),
    resetsAt: t.expose('resetsAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When more will be left; null for concurrent calls.',
    }),
  }),
});

/** A ceiling over a window, with the end of that. */
type Budget = Scope & { readonly resetsAt: number };

function budgetsOf({ scopes, windows }: Allowances): Budget[] {
  return scopes.map((scope) => {
    const isDay = scope.name === 'agent_per_day';
    return { ...scope, resetsAt: isDay ? windows.dayEnds : windows.monthEnds };
  });
}

const BudgetType = builder.objectRef<Budget>('Budget');

builder.objectType(BudgetType, {
  description: 'A ceiling on the spending of a UTC day or month, as it stands.',
  fields: (t) => ({
    scope: t.exposeString('name', {
      ...READ,
      description: 'Whose it is: agent_per_day, agent_per_month or org_per_month.',
    }),
    ceiling: t.expose('ceilingNanos', {
      ...{ ...READ, type: Money },
      description: 'The most that may be spent.',
    }),
    spent: t.field({
      ...{ ...READ, type: Money },
      description: 'What has been spent.',
      resolve: ({ spentNanos }) => spentNanos as Nanos,
    }),
    held: t.field({
      ...{ ...READ, type: Money },
      description: 'What is held for calls in flight.',
      resolve: ({ heldNanos }) => heldNanos as Nanos,
    }),
    remaining: t.field({
      ...{ ...READ, type: Money },
      description: 'What is left.',
      resolve: (scope) => roomOf(scope),
    }),
    resetsAt: t.expose('resetsAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When the day or the month ends.',
    }),
  }),
});

const LimitsType = builder.objectRef<Allowances>('Limits');

builder.objectType(LimitsType, {
  description: 'What applies to an agent now, and how much of it is used.',
  fields: (t) => ({
    agent: t.field({
      ...{ type: AgentType, action: 'agent.read', nullable: true },
      description: 'The agent.',
      resolve: ({ agentId }, _args, { loaders }) => loaders.agents.load(agentId),
    }),
    policyVersion: t.field({
      ...{ type: PolicyVersionType, action: 'policy.read', nullable: true },
      description: 'The version of a policy that its next run opens with.',
      resolve: ({ policyVersionId }, _args, { loaders }) =>
        loaders.policyVersions.load(policyVersionId),
    }),
    rates: t.field({
      ...{ ...READ, type: [RateLimitType] },
      description: 'The limits of requests, tokens and concurrent calls.',
      resolve: rateLimitsOf,
    }),
    budgets: t.field({
      ...{ ...READ, type: [BudgetType] },
      description: 'The ceilings beside those of runs.',
      resolve: budgetsOf,
    }),
  }),
});

builder.queryField('limits', (t) =>
  t.field({
    ...{ ...READ, type: LimitsType },
    description: 'What applies to an agent, of itself, its policy and its org.',
    complexity: 5,
    args: { agentId: t.arg(AGENT) },
    resolve: (_root, { agentId }, { org, now, store }) =>
      store.allowances.readAllowances(org, agentId, now),
  }),
);
