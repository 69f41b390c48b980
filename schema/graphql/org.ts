/** The org and the viewer: where a client begins. */

import { builder } from './builder.ts';
import type { Viewer } from './context.ts';
import './scalars.ts';

/** The roles of people. */
export const RoleType = builder.enumType('Role', {
  description: 'What a person is in an org.',
  values: {
    OWNER: { value: 'owner', description: 'May do everything.' },
    ADMIN: { value: 'admin', description: 'Configures the org; no billing and no deletion.' },
    MEMBER: { value: 'member', description: 'Watches runs, approves and rejects.' },
    VIEWER: { value: 'viewer', description: 'Reads.' },
  } as const,
});

/** Whoever asks. */
export const ViewerType = builder.objectRef<Viewer>('Viewer');

builder.objectType(ViewerType, {
  description: 'Whoever asks.',
  fields: (t) => ({
    role: t.field({
      ...{ type: 'String', action: 'public' },
      description: 'His role in the org.',
      resolve: ({ role }) => role,
    }),
    actions: t.field({
      ...{ type: ['String'], action: 'public', nullable: false },
      description: 'What he may do; nothing else is shown or done for him.',
      resolve: ({ actions }) => [...actions],
    }),
  }),
});

builder.queryField('me', (t) =>
  t.field({
    ...{ type: ViewerType, action: 'public', nullable: false },
    description: 'Whoever asks, and what he may do.',
    resolve: (_root, _args, { viewer }) => viewer,
  }),
);
