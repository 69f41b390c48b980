/** Webhooks: endpoints that are told of events, their secrets, and sending events again. */

import { subscriptionSchema } from '../events.ts';
import type { WebhookId } from '../ids.ts';
import { DEFAULT_GRACE_S, descriptionSchema, judgeEndpoint, rotationSchema } from '../webhook.ts';
import { builder } from './builder.ts';
import { connect, costOf, windowOf } from './connection.ts';
import type { Context, Webhook } from './context.ts';
import { DeliveryFilter, DeliveryType, searchOf } from './deliveries.ts';
import { notFound, UserError } from './errors.ts';
import { EventObject, eventTypeOf } from './events.ts';
import { parseInput } from './input.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

/** An endpoint that is told of events. */
const WebhookType = builder.objectRef<Webhook>('Webhook');

const WebhookStatus = builder.enumType('WebhookStatus', {
  description: 'Whether events are delivered to a webhook.',
  values: {
    ENABLED: { value: 'enabled', description: 'They are.' },
    DISABLED: { value: 'disabled', description: 'They are not, by hand or for its failures.' },
  } as const,
});

const READ = { action: 'webhook.read', nullable: true } as const;
const WEBHOOK = { type: 'WebhookID', required: true, description: 'The webhook.' } as const;

builder.objectType(WebhookType, {
  description: 'An endpoint that is told of events.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'WebhookID', action: 'public', nullable: false },
      description: 'Its id.',
    }),
    url: t.exposeString('url', { ...READ, description: 'Where events go.' }),
    description: t.exposeString('description', { ...READ, description: 'What it is for.' }),
    events: t.exposeStringList('events', {
      ...READ,
      description: 'The types of events that it gets, or * alone for all.',
    }),
    status: t.expose('status', {
      ...{ ...READ, type: WebhookStatus },
      description: 'Whether events are delivered to it.',
    }),
    disabledReason: t.exposeString('disabledReason', {
      ...READ,
      description: 'by_hand; gone: it answered 410; failing: nothing got through for days.',
    }),
    failingSince: t.expose('failingSince', {
      ...{ ...READ, type: 'DateTime' },
      description: 'Since when nothing has got through; null after a success.',
    }),
    previousSecretUntil: t.expose('previousUntil', {
      ...{ ...READ, type: 'DateTime' },
      description: 'Until when the secret before the last rotation signs too.',
    }),
    createdBy: t.exposeString('createdBy', {
      ...READ,
      description: 'Who made it: the id of a member or token, or operator.',
    }),
    createdAt: t.expose('createdAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was made.',
    }),
    updatedAt: t.expose('updatedAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was last changed.',
    }),
    deliveries: t.connection({
      type: DeliveryType,
      action: 'delivery.read',
      description: 'The deliveries to it, the newest first.',
      complexity: costOf,
      args: { filter: t.arg({ type: DeliveryFilter, description: 'Which of them.' }) },
      resolve: ({ id }, { filter, ...page }, { loaders }) => {
        const { webhookId, ...search } = searchOf(filter);
        const isOther = webhookId !== undefined && webhookId !== null && webhookId !== id;
        const window = windowOf(page);
        return connect(page, () =>
          isOther ? NO_PAGE : loaders.deliveriesOf.load(id, search, window),
        );
      },
    }),
  }),
});

const NO_PAGE = Promise.resolve({ items: [], hasMore: false });

const WebhookFilter = builder.inputType('WebhookFilter', {
  description: 'Which webhooks are listed; all of what is given must hold.',
  fields: (t) => ({
    status: t.field({ type: WebhookStatus, description: 'That are enabled, or disabled.' }),
    event: t.string({ description: 'That get events of this type.' }),
  }),
});

builder.queryFields((t) => ({
  webhooks: t.connection({
    type: WebhookType,
    action: 'webhook.read',
    description: 'The webhooks of the org, the oldest first.',
    complexity: costOf,
    args: { filter: t.arg({ type: WebhookFilter, description: 'Which of them.' }) },
    resolve: (_root, { filter, ...page }, { org, store }) =>
      connect(page, (window) => store.webhooks.pageWebhooks(org, filter ?? {}, window)),
  }),
  webhook: t.field({
    ...{ type: WebhookType, action: 'webhook.read', nullable: true },
    description: 'The webhook of an id.',
    args: { id: t.arg(WEBHOOK) },
    resolve: (_root, { id }, { loaders }) => loaders.webhooks.load(id),
  }),
  webhookBy: t.field({
    ...{ type: WebhookType, action: 'webhook.read', nullable: true },
    description: 'The webhook that has this id, URL or secret.',
    args: {
      reference: t.arg.string({
        required: true,
        description: 'The id, the URL or the secret, be it the one before a rotation.',
      }),
    },
    resolve: (_root, { reference }, { org, store }) => store.webhooks.findWebhook(org, reference),
  }),
}));

/** The webhook as it is now. */
async function present({ org, store }: Context, id: WebhookId): Promise<Webhook> {
  const [webhook] = await store.webhooks.readWebhooks(org, [id]);
  if (!webhook) throw notFound('webhookId');
  return webhook;
}

function checkUrl({ egressAllow }: Context, url: string): string {
  const wrong = judgeEndpoint(url, egressAllow);
  if (wrong) throw new UserError('INVALID', ['url'], `The URL ${wrong}.`);
  return url;
}

builder.relayMutationField(
  'webhookCreate',
  {
    inputFields: (t) => ({
      url: t.string({ required: true, description: 'Where events go, by https.' }),
      events: t.stringList({ description: 'The types of events it gets; all unless given.' }),
      description: t.string({ description: 'What it is for.' }),
    }),
  },
  {
    action: 'webhook.create',
    description: 'Adds a webhook and shows its secret this once.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, master, store }) => {
        const { id, secret } = await store.webhooks.createWebhook(org, master, actor, {
          url: checkUrl(context, input.url),
          events: parseInput(subscriptionSchema, input.events ?? ['*'], 'events'),
          description: parseInput(descriptionSchema, input.description ?? '', 'description'),
        });
        return { webhook: await present(context, id), secret };
      }),
  },
  payloadOf('webhookCreate', {
    webhook: [WebhookType, 'The new webhook.'],
    secret: ['String', 'What its events are signed with; it is not shown again.'],
  }),
);

builder.relayMutationField(
  'webhookUpdate',
  {
    inputFields: (t) => ({
      webhookId: t.field(WEBHOOK),
      url: t.string({ description: 'Where events go from now on.' }),
      events: t.stringList({ description: 'The types of events it gets from now on.' }),
      description: t.string({ description: 'What it is for.' }),
      status: t.field({
        type: WebhookStatus,
        description: 'Enabled, it starts anew; disabled, all that is due to it is given up.',
      }),
    }),
  },
  {
    action: 'webhook.update',
    description: 'Changes what is given of a webhook, and leaves the rest.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const { webhookId: id, url, events, description, status } = input;
        const isFound = await store.webhooks.updateWebhook(org, actor, id, {
          ...(url && { url: checkUrl(context, url) }),
          ...(events && { events: parseInput(subscriptionSchema, events, 'events') }),
          ...(typeof description === 'string' && {
            description: parseInput(descriptionSchema, description, 'description'),
          }),
          ...(status && { status }),
        });
        if (!isFound) throw notFound('webhookId');
        return { webhook: await present(context, id) };
      }),
  },
  payloadOf('webhookUpdate', { webhook: [WebhookType, 'The webhook as it is now.'] }),
);

builder.relayMutationField(
  'webhookDelete',
  { inputFields: (t) => ({ webhookId: t.field(WEBHOOK) }) },
  {
    action: 'webhook.delete',
    description: 'Deletes a webhook with everything that was delivered to it.',
    resolve: (_root, { input: { webhookId } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const isFound = await store.webhooks.deleteWebhook(org, actor, webhookId);
        if (!isFound) throw notFound('webhookId');
        return { deletedWebhookId: webhookId };
      }),
  },
  payloadOf('webhookDelete', { deletedWebhookId: ['WebhookID', 'The webhook that is no more.'] }),
);

builder.relayMutationField(
  'webhookRotateSecret',
  {
    inputFields: (t) => ({
      webhookId: t.field(WEBHOOK),
      graceS: t.field({
        ...{ type: 'Count', defaultValue: DEFAULT_GRACE_S },
        description: 'For how many seconds the present secret signs too, at most seven days.',
      }),
    }),
  },
  {
    action: 'webhook.rotate_secret',
    description:
      'Makes a new secret and shows it this once; the present one signs too for a while.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, master, store }) => {
        const { webhookId: id } = input;
        const graceMs = graceOf(input.graceS) * 1_000;
        const rotated = await store.webhooks.rotateWebhookSecret(org, master, actor, id, graceMs);
        if (!rotated) throw notFound('webhookId');
        const { secret, previousUntil } = rotated;
        return { webhook: await present(context, id), secret, previousUntil };
      }),
  },
  payloadOf('webhookRotateSecret', {
    webhook: [WebhookType, 'The webhook.'],
    secret: ['String', 'What its events are signed with from now on; it is not shown again.'],
    previousUntil: [
      'DateTime',
      'Until when the secret before it signs too; null when it no longer does.',
    ],
  }),
);

function graceOf(graceS: number | null | undefined): number {
  return parseInput(rotationSchema.shape.graceS, graceS ?? undefined, 'graceS');
}

builder.relayMutationField(
  'webhookTest',
  {
    inputFields: (t) => ({
      webhookId: t.field(WEBHOOK),
      type: t.string({
        ...{ required: true, defaultValue: 'run.started' },
        description: 'The type of the event, whatever is subscribed to.',
      }),
    }),
  },
  {
    action: 'webhook.test',
    description: 'Sends a webhook an event that tells of nothing and says so.',
    resolve: (_root, { input: { webhookId, type } }, context) =>
      attempt(context, async ({ org, actor, store, loaders }) => {
        const eventType = eventTypeOf(type, 'type');
        const webhook = await present(context, webhookId);
        const id = await store.deliveries.sendTestEvent(org, actor, webhook, eventType);
        return { event: await loaders.events.load(id) };
      }),
  },
  payloadOf('webhookTest', { event: [EventObject, 'The event that is sent.'] }),
);

builder.relayMutationField(
  'webhookReplay',
  {
    inputFields: (t) => ({
      webhookId: t.field(WEBHOOK),
      from: t.field({ type: 'DateTime', required: true, description: 'The first moment.' }),
      to: t.field({ type: 'DateTime', description: 'The end, not included; now unless given.' }),
    }),
  },
  {
    action: 'webhook.redeliver',
    description: 'Sends what happened in a window of time again, as far as it is subscribed to.',
    resolve: (_root, { input: { webhookId, from, to } }, context) =>
      attempt(context, async ({ org, actor, store, now }) => {
        const stretch = { from, to: to ?? now };
        if (from >= stretch.to) {
          throw new UserError('INVALID', ['from'], 'The window must begin before its end.');
        }
        const webhook = await present(context, webhookId);
        const replay = await store.deliveries.replayEvents(org, actor, webhook, stretch);
        const { count: replayed, nextFrom } = replay;
        return { replayed, hasMore: nextFrom !== null, nextFrom };
      }),
  },
  payloadOf('webhookReplay', {
    replayed: ['Count', 'How many events are due again.'],
    hasMore: ['Boolean', 'Whether there may be more: then replay the rest of the window too.'],
    nextFrom: ['DateTime', 'From when on to replay the rest; null when there is no more.'],
  }),
);
