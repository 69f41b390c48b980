/** Retention: for how many days the org's records are kept. */

import { builder } from './builder.ts';
import type { Retention } from './context.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

/** For how many days records are kept. */
const RetentionType = builder.objectRef<Retention>('Retention');

const READ = { type: 'Int', action: 'retention.read', nullable: true } as const;

builder.objectType(RetentionType, {
  description: 'For how many days records are kept: runs, bodies, events, deliveries and audit.',
  fields: (t) => ({
    days: t.expose('days', {
      ...READ,
      description: 'For how many days they are kept; null for good.',
    }),
    planDays: t.expose('planDays', {
      ...READ,
      description: 'The most that the plan keeps them; null for as long as is wanted.',
    }),
    wantedDays: t.expose('wantedDays', {
      ...READ,
      description: 'What the org has set; null for as long as the plan keeps them.',
    }),
  }),
});

builder.queryField('retention', (t) =>
  t.field({
    ...{ type: RetentionType, action: 'retention.read', nullable: true },
    description: 'For how many days records are kept.',
    resolve: (_root, _args, { org, store, retentionDays }) =>
      store.retention.readRetention(org, retentionDays),
  }),
);

builder.relayMutationField(
  'retentionUpdate',
  {
    inputFields: (t) => ({
      days: t.int({
        description: 'For how many days records are to be kept; null for as long as the plan does.',
      }),
    }),
  },
  {
    action: 'retention.update',
    description: 'Changes for how long records are kept; what is older is deleted within minutes.',
    resolve: (_root, { input: { days } }, context) =>
      attempt(context, async ({ org, actor, store, retentionDays }) => {
        const wanted = days ?? null;
        const changed = store.retention.changeRetention(org, actor, wanted, retentionDays);
        return { retention: await changed };
      }),
  },
  payloadOf('retentionUpdate', {
    retention: [RetentionType, 'For how long records are kept now.'],
  }),
);
