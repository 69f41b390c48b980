/** Deliveries of events to webhooks: how they stand, every attempt, and sending one again. */

import { formatEnvelope } from '../events.ts';
import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { Delivery, DeliveryLog } from './context.ts';
import { notFound } from './errors.ts';
import { dataOf, EventObject, eventTypeOf } from './events.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

const READ = { action: 'delivery.read', nullable: true } as const;
const DELIVERY = { type: 'DeliveryID', required: true, description: 'The delivery.' } as const;

/** One event on its way to one endpoint. */
export const DeliveryType = builder.objectRef<Delivery>('Delivery');

const DeliveryStatus = builder.enumType('DeliveryStatus', {
  description: 'How a delivery stands.',
  values: {
    PENDING: { value: 'pending', description: 'It is due, at once or after a failure.' },
    DELIVERED: { value: 'delivered', description: 'The endpoint has taken it.' },
    DEAD: { value: 'dead', description: 'It was given up.' },
  } as const,
});

const DeliveryCause = builder.enumType('DeliveryCause', {
  description: 'Why there is a delivery.',
  values: {
    EVENT: { value: 'event', description: 'The event happened.' },
    TEST: { value: 'test', description: 'The endpoint is tried.' },
    REDELIVERY: { value: 'redelivery', description: 'A delivery was sent again.' },
    REPLAY: { value: 'replay', description: 'A window of events was sent again.' },
  } as const,
});

const AttemptType = builder.objectRef<DeliveryLog['log'][number]>('DeliveryAttempt');

builder.objectType(AttemptType, {
  description: 'One attempt to deliver.',
  fields: (t) => ({
    number: t.exposeInt('number', { ...READ, description: 'Counted from 1.' }),
    at: t.expose('startedAt', { ...READ, type: 'DateTime', description: 'When it began.' }),
    durationMs: t.expose('durationMs', {
      ...READ,
      type: 'Count',
      description: 'How long it took, in milliseconds.',
    }),
    outcome: t.exposeString('outcome', {
      ...READ,
      description: 'delivered, http_ and the status, or why there was no answer.',
    }),
    requestHeaders: t.expose('requestHeaders', {
      ...READ,
      type: 'JSON',
      description: 'The headers that were sent.',
    }),
    status: t.exposeInt('responseStatus', {
      ...READ,
      description: 'The HTTP status of the answer, if there was one.',
    }),
    responseHeaders: t.expose('responseHeaders', {
      ...READ,
      type: 'JSON',
      description: 'The headers of the answer.',
    }),
    responseBody: t.exposeString('responseBody', {
      ...READ,
      description: 'The beginning of the answer.',
    }),
  }),
});

builder.objectType(DeliveryType, {
  description: 'One event on its way to one webhook.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'DeliveryID', action: 'public', nullable: false },
      description: 'Its id.',
    }),
    webhookId: t.expose('webhookId', {
      ...READ,
      type: 'WebhookID',
      description: 'The id of the webhook that it goes to.',
    }),
    eventId: t.expose('eventId', {
      ...READ,
      type: 'EventID',
      description: 'The id of the event, the same in every delivery of it.',
    }),
    event: t.field({
      ...{ type: EventObject, action: 'event.read', nullable: true },
      description: 'What is told.',
      resolve: ({ eventId }, _args, { loaders }) => loaders.events.load(eventId),
    }),
    body: t.field({
      ...{ type: 'String', action: 'event.read', nullable: true },
      description: 'The text that is sent; of an approval.pending without the link of its gate.',
      resolve: async ({ eventId }, _args, { org, loaders }) => {
        const event = await loaders.events.load(eventId);
        if (!event) return null;
        const data = JSON.stringify(dataOf(event));
        return formatEnvelope({ ...event, orgId: org.id, data });
      },
    }),
    eventType: t.exposeString('eventType', { ...READ, description: 'The type of the event.' }),
    status: t.expose('status', { ...READ, type: DeliveryStatus, description: 'How it stands.' }),
    cause: t.expose('cause', { ...READ, type: DeliveryCause, description: 'Why it is there.' }),
    reason: t.exposeString('reason', {
      ...READ,
      description: 'Why it was given up: the last outcome, or webhook_disabled.',
    }),
    attemptCount: t.exposeInt('attempts', { ...READ, description: 'How often it was tried.' }),
    attempts: t.field({
      ...READ,
      type: [AttemptType],
      description: 'Every attempt, the first one first.',
      resolve: ({ id }, _args, { loaders }) => loaders.attempts.load(id),
    }),
    nextAt: t.expose('nextAt', {
      ...READ,
      type: 'DateTime',
      description: 'When the next attempt is due; null when there is none.',
    }),
    createdAt: t.expose('createdAt', {
      ...READ,
      type: 'DateTime',
      description: 'Since when it is due.',
    }),
    endedAt: t.expose('endedAt', {
      ...READ,
      type: 'DateTime',
      description: 'When it was delivered or given up.',
    }),
  }),
});

/** Which deliveries of one webhook are listed. */
export const DeliveryFilter = builder.inputType('DeliveryFilter', {
  description: 'Which deliveries are listed; all of what is given must hold.',
  fields: (t) => ({
    webhookId: t.field({ type: 'WebhookID', description: 'To this webhook.' }),
    eventId: t.field({ type: 'EventID', description: 'Of this event.' }),
    eventType: t.string({ description: 'Of events of this type, such as run.blocked.' }),
    status: t.field({ type: DeliveryStatus, description: 'That stand so.' }),
    cause: t.field({ type: DeliveryCause, description: 'That are there for this.' }),
    from: t.field({ type: 'DateTime', description: 'Due since this or later.' }),
    to: t.field({ type: 'DateTime', description: 'Due since before this.' }),
  }),
});

/** A filter with its type of event checked. */
export function searchOf(filter: typeof DeliveryFilter.$inferInput | null | undefined) {
  const { eventType, ...search } = filter ?? {};
  return { ...search, eventType: eventType ? eventTypeOf(eventType, 'eventType') : null };
}

builder.queryFields((t) => ({
  deliveries: t.connection({
    type: DeliveryType,
    action: 'delivery.read',
    description: 'The deliveries to all webhooks of the org, the newest first.',
    complexity: costOf,
    args: { filter: t.arg({ type: DeliveryFilter, description: 'Which of them.' }) },
    resolve: (_root, { filter, ...page }, { org, store }) =>
      connect(page, (window) => store.deliveries.pageDeliveries(org, searchOf(filter), window)),
  }),
  delivery: t.field({
    ...{ ...READ, type: DeliveryType },
    description: 'The delivery of an id.',
    args: { id: t.arg(DELIVERY) },
    resolve: (_root, { id }, { loaders }) => loaders.deliveries.load(id),
  }),
}));

builder.relayMutationField(
  'deliveryRedeliver',
  { inputFields: (t) => ({ deliveryId: t.field(DELIVERY) }) },
  {
    action: 'webhook.redeliver',
    description: 'Sends an event to its webhook again, as a delivery of its own.',
    resolve: (_root, { input: { deliveryId } }, context) =>
      attempt(context, async ({ org, actor, store, loaders }) => {
        const id = await store.deliveries.redeliver(org, actor, deliveryId);
        if (!id) throw notFound('deliveryId');
        return { delivery: await loaders.deliveries.load(id) };
      }),
  },
  payloadOf('deliveryRedeliver', { delivery: [DeliveryType, 'The new delivery.'] }),
);
