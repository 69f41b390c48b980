/** Rules of alerts: thresholds on what happens, told as an event, by mail or in a chat. */

import { type AlertRuleInput, alertRuleSchema } from '../alert-rule.ts';
import type { AlertRuleId } from '../ids.ts';
import { formatPlace, problemsOf } from '../problems.ts';
import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { AlertRule, Context } from './context.ts';
import { notFound, UserError, UserErrors } from './errors.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

/** A threshold, and where it is told that it was reached. */
export const AlertRuleType = builder.objectRef<AlertRule>('AlertRule');

const AlertMetric = builder.enumType('AlertMetric', {
  description: 'What a rule of alerts watches.',
  values: {
    SPEND: { value: 'spend', description: 'Nano-dollars that were spent in the window.' },
    BLOCKED_RUNS: { value: 'blocked_runs', description: 'Runs that were blocked in the window.' },
    PENDING_GATES: { value: 'pending_gates', description: 'Gates that wait for a decision now.' },
    ERROR_RATE: {
      value: 'error_rate',
      description: 'Percentage of the calls settled in the window that have failed.',
    },
  } as const,
});

const AlertChannel = builder.enumType('AlertChannel', {
  description: 'Where a rule tells that it has fired; there is always an alert.fired event.',
  values: {
    EVENT: { value: 'event', description: 'As an event alone.' },
    MAIL: { value: 'mail', description: 'Also by mail.' },
    CHAT: { value: 'chat', description: 'Also by POST of {"text": …}, as chats take it.' },
  } as const,
});

const READ = { action: 'alert_rule.read', nullable: true } as const;
const RULE = { type: 'AlertRuleID', required: true, description: 'The rule.' } as const;

builder.objectType(AlertRuleType, {
  description: 'A threshold, and where it is told that it was reached.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'AlertRuleID', action: 'public', nullable: false },
      description: 'Its id.',
    }),
    name: t.exposeString('name', { ...READ, description: 'Its name in the org.' }),
    metric: t.expose('metric', { ...READ, type: AlertMetric, description: 'What it watches.' }),
    threshold: t.expose('threshold', {
      ...{ ...READ, type: 'Count' },
      description: 'From which value on it fires: nano-dollars, a count, or a percentage.',
    }),
    windowS: t.exposeInt('windowS', { ...READ, description: 'How many seconds it looks back.' }),
    channel: t.expose('channel', { ...READ, type: AlertChannel, description: 'Where it tells.' }),
    target: t.exposeString('target', {
      ...READ,
      description: 'The e-mail address, or the host of the chat, whose URL is a secret.',
    }),
    isEnabled: t.exposeBoolean('isEnabled', { ...READ, description: 'Whether it is looked at.' }),
    isOver: t.exposeBoolean('isOver', {
      ...READ,
      description: 'Whether it has fired and the value has stayed at the threshold since.',
    }),
    firedAt: t.expose('firedAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it fired last.',
    }),
    firedValue: t.expose('firedValue', {
      ...{ ...READ, type: 'Count' },
      description: 'What it came to when it fired last.',
    }),
    toldAt: t.expose('toldAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When the last firing was told; null while that has not succeeded.',
    }),
    createdAt: t.expose('createdAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was made.',
    }),
    updatedAt: t.expose('updatedAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was last changed.',
    }),
  }),
});

builder.queryFields((t) => ({
  alertRules: t.connection({
    type: AlertRuleType,
    action: 'alert_rule.read',
    description: 'The rules of alerts of the org, by name.',
    complexity: costOf,
    resolve: (_root, page, { org, store }) =>
      connect(page, (window) => store.alertRules.pageAlertRules(org, window)),
  }),
  alertRule: t.field({
    ...{ type: AlertRuleType, action: 'alert_rule.read', nullable: true },
    description: 'The rule of alerts of an id.',
    args: { id: t.arg(RULE) },
    resolve: (_root, { id }, { loaders }) => loaders.alertRules.load(id),
  }),
}));

/** The rule as it is now. */
async function present({ org, store }: Context, id: AlertRuleId): Promise<AlertRule> {
  const [rule] = await store.alertRules.readAlertRules(org, [id]);
  if (!rule) throw notFound('alertRuleId');
  return rule;
}

function judge({ egressAllow }: Context, rule: AlertRuleInput): AlertRuleInput {
  const parsed = alertRuleSchema(egressAllow).safeParse(rule);
  if (parsed.success) return parsed.data;
  const faults = problemsOf(parsed.error.issues).map(({ path, message }) => {
    return new UserError('INVALID', path.map(String), `${formatPlace(path)} ${message}.`);
  });
  throw new UserErrors(faults);
}

const TARGET =
  'The e-mail address for MAIL, the https URL of the webhook for CHAT, nothing for EVENT.';

builder.relayMutationField(
  'alertRuleCreate',
  {
    inputFields: (t) => ({
      name: t.string({ required: true, description: 'Its name in the org.' }),
      metric: t.field({ type: AlertMetric, required: true, description: 'What it watches.' }),
      threshold: t.field({
        ...{ type: 'Count', required: true },
        description: 'From which value on it fires: nano-dollars, a count, or a percentage.',
      }),
      windowS: t.int({ required: true, description: 'How many seconds it looks back.' }),
      channel: t.field({ type: AlertChannel, required: true, description: 'Where it tells.' }),
      target: t.string({ description: TARGET }),
      isEnabled: t.boolean({
        description: 'Whether it is looked at; it is unless told otherwise.',
      }),
    }),
  },
  {
    action: 'alert_rule.create',
    description: 'Adds a rule of alerts.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, master, store }) => {
        const { name, metric, threshold, windowS, channel, target, isEnabled } = input;
        const asked = { name, metric, threshold, windowS, channel };
        const rule = { ...asked, target: target ?? null, isEnabled: isEnabled ?? true };
        const judged = judge(context, rule);
        const id = await store.alertRules.createAlertRule(org, master, actor, judged);
        return { alertRule: await present(context, id) };
      }),
  },
  payloadOf('alertRuleCreate', { alertRule: [AlertRuleType, 'The new rule.'] }),
);

builder.relayMutationField(
  'alertRuleUpdate',
  {
    inputFields: (t) => ({
      alertRuleId: t.field(RULE),
      name: t.string({ description: 'Its name from now on.' }),
      metric: t.field({ type: AlertMetric, description: 'What it watches from now on.' }),
      threshold: t.field({ type: 'Count', description: 'From which value on it fires.' }),
      windowS: t.int({ description: 'How many seconds it looks back.' }),
      channel: t.field({ type: AlertChannel, description: 'Where it tells from now on.' }),
      target: t.string({ description: `${TARGET} What is not given stays with its channel.` }),
      isEnabled: t.boolean({ description: 'Whether it is looked at.' }),
    }),
  },
  {
    action: 'alert_rule.update',
    description: 'Changes what is given of a rule, which is then looked at as a new one.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, master, store }) => {
        const { alertRuleId: id, ...given } = input;
        const change = Object.fromEntries(
          Object.entries(given).filter(([, value]) => value !== null && value !== undefined),
        ) as Partial<AlertRuleInput>;
        const isFound = await store.alertRules.updateAlertRule(
          ...([org, master, actor, id, change] as const),
          (rule) => judge(context, rule),
        );
        if (!isFound) throw notFound('alertRuleId');
        return { alertRule: await present(context, id) };
      }),
  },
  payloadOf('alertRuleUpdate', { alertRule: [AlertRuleType, 'The rule as it is now.'] }),
);

builder.relayMutationField(
  'alertRuleDelete',
  { inputFields: (t) => ({ alertRuleId: t.field(RULE) }) },
  {
    action: 'alert_rule.delete',
    description: 'Deletes a rule of alerts.',
    resolve: (_root, { input: { alertRuleId } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const isFound = await store.alertRules.deleteAlertRule(org, actor, alertRuleId);
        if (!isFound) throw notFound('alertRuleId');
        return { deletedAlertRuleId: alertRuleId };
      }),
  },
  payloadOf('alertRuleDelete', {
    deletedAlertRuleId: ['AlertRuleID', 'The rule that is no more.'],
  }),
);
