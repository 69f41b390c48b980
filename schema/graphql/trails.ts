/** Trails: whether the steps of a run are what they were when it was anchored. */

import type { TrailReport, TrailState } from '../trail.ts';
import { builder } from './builder.ts';
import { RUN } from './runs.ts';
import './scalars.ts';

const READ = { action: 'run.read', nullable: true } as const;

const StateType = builder.enumType('RunTrailState', {
  description: 'How the steps of a run compare with what was anchored of them.',
  values: {
    UNANCHORED: { value: 'unanchored', description: 'The run has not been anchored yet.' },
    ANCHORED: { value: 'anchored', description: 'All steps are as they were anchored.' },
    GROWN: { value: 'grown', description: 'As anchored, and steps were added since.' },
    BROKEN: { value: 'broken', description: 'Steps were changed, removed or put in between.' },
  } as const satisfies Record<string, { value: TrailState; description: string }>,
});

const RunTrailType = builder.objectRef<TrailReport>('RunTrail');

builder.objectType(RunTrailType, {
  description: 'The steps of a run, checked against the audit entries that anchored it.',
  fields: (t) => ({
    state: t.expose('state', { ...READ, type: StateType, description: 'What was found.' }),
    message: t.exposeString('message', { ...READ, description: 'The same in a sentence.' }),
    steps: t.expose('steps', { ...READ, type: 'Count', description: 'How many steps there are.' }),
    head: t.exposeString('head', {
      ...READ,
      description: 'The SHA-256 of the last step, which stands for all of them; in hex.',
    }),
  }),
});

builder.queryField('runTrail', (t) =>
  t.field({
    ...{ ...READ, type: RunTrailType },
    description: 'Checks the steps of a run; null for a run that is not there.',
    complexity: 50,
    args: { id: t.arg(RUN) },
    resolve: (_root, { id }, { org, store }) => store.trails.checkTrail(org, id),
  }),
);
