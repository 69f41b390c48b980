/** Usage: what the org used and spent, by month. */

import { builder } from './builder.ts';
import type { MonthlyUsage } from './context.ts';
import { daysOf } from './range.ts';
import './scalars.ts';
import { Money } from './scalars.ts';

const READ = { action: 'usage.read', nullable: true } as const;
const MONTH_CHARS = 'YYYY-MM'.length;

const UsageType = builder.objectRef<MonthlyUsage>('MonthlyUsage');

builder.objectType(UsageType, {
  description: 'What the org used in a UTC month.',
  fields: (t) => ({
    month: t.exposeString('month', { ...READ, description: 'The month, as YYYY-MM.' }),
    steps: t.expose('steps', {
      ...{ ...READ, type: 'Count' },
      description: 'Steps of every kind, which is what plans meter.',
    }),
    spent: t.expose('spentNanos', { ...READ, type: Money, description: 'What was spent.' }),
    held: t.expose('heldNanos', {
      ...{ ...READ, type: Money },
      description: 'What is held for calls in flight.',
    }),
  }),
});

builder.queryField('usage', (t) =>
  t.field({
    ...{ ...READ, type: [UsageType] },
    description: 'What the org used, by month; months in which nothing happened are left out.',
    args: {
      from: t.arg({ type: 'DateTime', required: true, description: 'From the month of this on.' }),
      to: t.arg({
        type: 'DateTime',
        required: true,
        description: 'To the month of the moment before this; at most 366 days later.',
      }),
    },
    resolve: (_root, { from, to }, { org, store }) => {
      const { first, last } = daysOf(from, to);
      const [begin, end] = [first.slice(0, MONTH_CHARS), last.slice(0, MONTH_CHARS)];
      return store.analytics.readUsage(org, begin, end);
    },
  }),
);
