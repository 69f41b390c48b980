/** Alerts: what happened that somebody should look at. */

import type { EventData, EventType } from '../events.ts';
import type { AgentId, AlertRuleId, RunId } from '../ids.ts';
import type { Nanos } from '../money.ts';
import { AgentType } from './agents.ts';
import { AlertRuleType } from './alert-rules.ts';
import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { Event } from './context.ts';
import { RunType } from './runs.ts';
import './scalars.ts';
import { Money } from './scalars.ts';

const READ = { action: 'alert.read', nullable: true } as const;

const KINDS = {
  BUDGET_ALERT: { value: 'budget.alert', description: 'Spending came near a ceiling.' },
  BUDGET_EXCEEDED: { value: 'budget.exceeded', description: 'A ceiling stopped a run.' },
  POLICY_DRIFT: { value: 'policy.drift', description: 'An agent tried what its policy denies.' },
  ALERT_FIRED: { value: 'alert.fired', description: 'A rule of alerts reached its threshold.' },
  RUN_BLOCKED: { value: 'run.blocked', description: 'A run was stopped.' },
} as const satisfies Record<string, { value: EventType; description: string }>;

type Kind = (typeof KINDS)[keyof typeof KINDS]['value'];

const ALL_KINDS = Object.values(KINDS).map(({ value }) => value);

/** The facts of any of the kinds. */
type Facts = Partial<
  EventData<'budget.alert'> &
    EventData<'alert.fired'> &
    EventData<'policy.drift'> &
    EventData<'run.blocked'>
>;

const AlertKind = builder.enumType('AlertKind', {
  description: 'What an alert tells of.',
  values: KINDS,
});

const AlertType = builder.objectRef<Event>('Alert');

const factsOf = ({ data }: Event): Facts => data;

builder.objectType(AlertType, {
  description: 'Something that happened and that somebody should look at.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'EventID', action: 'public', nullable: false },
      description: 'The id of the event.',
    }),
    kind: t.field({
      ...{ ...READ, type: AlertKind },
      description: 'What it tells of.',
      resolve: ({ type }) => type as Kind,
    }),
    at: t.expose('createdAt', { ...READ, type: 'DateTime', description: 'When it happened.' }),
    run: t.field({
      ...{ type: RunType, action: 'run.read', nullable: true },
      description: 'The run that it happened in.',
      resolve: (event, _args, { loaders }) => {
        const { runId } = factsOf(event);
        return runId === undefined ? null : loaders.runs.load(runId as RunId);
      },
    }),
    agent: t.field({
      ...{ type: AgentType, action: 'agent.read', nullable: true },
      description: 'The agent of the run.',
      resolve: (event, _args, { loaders }) => {
        const { agentId } = factsOf(event);
        return agentId === undefined ? null : loaders.agents.load(agentId as AgentId);
      },
    }),
    scope: t.string({
      ...READ,
      description: 'Of a budget, whose it is: run, agent_per_day, agent_per_month, org_per_month.',
      resolve: (event) => factsOf(event).scope,
    }),
    spent: t.field({
      ...{ ...READ, type: Money },
      description: 'What had been spent in the scope.',
      resolve: (event) => factsOf(event).spentNanos as Nanos | undefined,
    }),
    ceiling: t.field({
      ...{ ...READ, type: Money },
      description: 'The ceiling of the scope.',
      resolve: (event) => factsOf(event).ceilingNanos as Nanos | undefined,
    }),
    policy: t.string({
      ...READ,
      description: 'The policy and its version, such as prod-agents/v4, where that matters.',
      resolve: (event) => factsOf(event).policy,
    }),
    rule: t.string({
      ...READ,
      description: 'The rule that denied what was tried, or that stopped the run.',
      resolve: (event) => factsOf(event).rule ?? factsOf(event).reason,
    }),
    asked: t.string({
      ...READ,
      description: 'What the agent tried.',
      resolve: (event) => factsOf(event).asked,
    }),
  }),
});

/** What only an alert of a rule has. */
builder.objectFields(AlertType, (t) => ({
  alertRule: t.field({
    ...{ type: AlertRuleType, action: 'alert_rule.read', nullable: true },
    description: 'The rule of alerts that fired, unless it is deleted.',
    resolve: (event, _args, { loaders }) => {
      const { ruleId } = factsOf(event);
      return ruleId === undefined ? null : loaders.alertRules.load(ruleId as AlertRuleId);
    },
  }),
  value: t.field({
    ...{ ...READ, type: 'Count' },
    description: 'What it came to when a rule of alerts fired: as the threshold counts.',
    resolve: (event) => factsOf(event).value,
  }),
  threshold: t.field({
    ...{ ...READ, type: 'Count' },
    description: 'From which value on the rule of alerts fired, by then.',
    resolve: (event) => factsOf(event).threshold,
  }),
}));

builder.queryField('alerts', (t) =>
  t.connection({
    type: AlertType,
    action: 'alert.read',
    description: 'The alerts of the org, the newest first.',
    complexity: costOf,
    args: {
      kinds: t.arg({ type: [AlertKind], description: 'Only those of these kinds.' }),
      from: t.arg({ type: 'DateTime', description: 'Not before this.' }),
      to: t.arg({ type: 'DateTime', description: 'Before this.' }),
    },
    resolve: (_root, { kinds, from, to, ...page }, { org, store }) => {
      const types = kinds ?? ALL_KINDS;
      return connect(page, (window) => store.events.listEvents(org, { types, from, to }, window));
    },
  }),
);
