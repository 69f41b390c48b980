/** Users: what is known of a person, and what he is called. */

import { titleSchema } from '../names.ts';
import { builder } from './builder.ts';
import type { Member } from './context.ts';
import { notFound } from './errors.ts';
import { parseInput } from './input.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

const READ = { action: 'member.read', nullable: true } as const;

/** A person, known by his membership. */
export const UserType = builder.objectRef<Member>('User');

builder.objectType(UserType, {
  description: 'A person, the same one in all orgs.',
  fields: (t) => ({
    id: t.expose('userId', {
      ...{ type: 'UserID', action: 'public', nullable: false },
      description: 'His id.',
    }),
    email: t.exposeString('email', { ...READ, description: 'His e-mail address.' }),
    name: t.exposeString('name', { ...READ, description: 'What he is called.' }),
  }),
});

builder.relayMutationField(
  'userRename',
  {
    inputFields: (t) => ({
      name: t.string({ required: true, description: 'What to be called, on one line.' }),
    }),
  },
  {
    action: 'public',
    description: 'Changes what whoever is signed in is called, in all his orgs.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, viewer, store, loaders }) => {
        const name = parseInput(titleSchema, input.name, 'name');
        const isRenamed = await store.users.renameUser(org, actor, name);
        if (!isRenamed || !viewer.memberId) throw notFound('input');
        return { user: await loaders.members.load(viewer.memberId) };
      }),
  },
  payloadOf('userRename', { user: [UserType, 'The person as he is called now.'] }),
);
