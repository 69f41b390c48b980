/** Events: what happened, as webhooks are told of it. */

import { EVENT_TYPES, type EventData, type EventType, isEventType } from '../events.ts';
import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { Event } from './context.ts';
import { UserError } from './errors.ts';
import './scalars.ts';

/** What happened, once, in the org. */
export const EventObject = builder.objectRef<Event>('Event');

/** What an event tells. Whoever holds the link of a gate decides on it, and readers may not. */
export function dataOf({ type, data }: Event): object {
  if (type !== 'approval.pending') return data;
  const { url: _, ...shown } = data as EventData<'approval.pending'>;
  return shown;
}

builder.objectType(EventObject, {
  description: 'What happened, once, in the org.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'EventID', action: 'public', nullable: false },
      description: 'Its id, the same in every delivery of it.',
    }),
    type: t.exposeString('type', {
      action: 'event.read',
      description: 'What happened, such as run.blocked.',
    }),
    data: t.field({
      ...{ type: 'JSON', action: 'event.read', nullable: true },
      description: 'What it tells, as /schemas/events.json has it for the type; no link of a gate.',
      resolve: dataOf,
    }),
    isTest: t.exposeBoolean('isTest', {
      action: 'event.read',
      description: 'Whether it tells of nothing and was made to try a webhook.',
    }),
    createdAt: t.expose('createdAt', {
      ...{ type: 'DateTime', action: 'event.read', nullable: true },
      description: 'When it happened.',
    }),
  }),
});

/**
 * The type of event that an input names.
 *
 * @throws {UserError} `INVALID` where there is none of the name.
 */
export function eventTypeOf(text: string, field: string): EventType {
  if (isEventType(text)) return text;
  throw new UserError('INVALID', [field], `${field} must be one of ${EVENT_TYPES.join(', ')}.`);
}

const EventFilter = builder.inputType('EventFilter', {
  description: 'Which events are listed; all of what is given must hold.',
  fields: (t) => ({
    types: t.stringList({ description: 'Of these types only, such as run.blocked.' }),
    from: t.field({ type: 'DateTime', description: 'Not before this.' }),
    to: t.field({ type: 'DateTime', description: 'Before this.' }),
    hasTests: t.boolean({ description: 'Whether test events are listed too; else they are not.' }),
  }),
});

builder.queryFields((t) => ({
  events: t.connection({
    type: EventObject,
    action: 'event.read',
    description: 'What happened in the org, the newest first.',
    complexity: costOf,
    args: { filter: t.arg({ type: EventFilter, description: 'Which of them.' }) },
    resolve: (_root, { filter, ...page }, { org, store }) => {
      const types = filter?.types?.map((type) => eventTypeOf(type, 'types')) ?? null;
      return connect(page, (window) => store.events.listEvents(org, { ...filter, types }, window));
    },
  }),
  event: t.field({
    ...{ type: EventObject, action: 'event.read', nullable: true },
    description: 'The event of an id.',
    args: { id: t.arg({ type: 'EventID', required: true, description: 'The event.' }) },
    resolve: (_root, { id }, { loaders }) => loaders.events.load(id),
  }),
}));
