/** Leaving: taking everything along, asking for the deletion of the org, and taking that back. */

import { builder } from './builder.ts';
import type { Account, Context } from './context.ts';
import { UserError } from './errors.ts';
import { attempt, errorsField, payloadOf } from './payload.ts';
import './scalars.ts';

/** A deletion that was asked for. */
const OrgDeletionType = builder.objectRef<Account>('OrgDeletion');

builder.objectType(OrgDeletionType, {
  description: 'A deletion of the org that was asked for: until it is due, tokens are suspended.',
  fields: (t) => ({
    requestedAt: t.expose('deletionRequestedAt', {
      ...{ type: 'DateTime', action: 'org.read', nullable: true },
      description: 'When it was asked for.',
    }),
    deletesAt: t.expose('deletesAt', {
      ...{ type: 'DateTime', action: 'org.read', nullable: true },
      description: 'Until when it can be taken back; then everything of the org is deleted.',
    }),
  }),
});

async function deletionOf({ org, store }: Context): Promise<Account | undefined> {
  const account = await store.orgs.readAccount(org);
  return account && account.deletionRequestedAt !== null ? account : undefined;
}

builder.queryField('orgDeletion', (t) =>
  t.field({
    ...{ type: OrgDeletionType, action: 'org.read', nullable: true },
    description: 'The deletion of the org that was asked for; null when none was.',
    resolve: (_root, _args, context) => deletionOf(context),
  }),
);

builder.queryField('orgExportUrl', (t) =>
  t.field({
    ...{ type: 'String', action: 'org.export', nullable: true },
    description:
      'Where an archive of everything that the org owns is downloaded, as whoever asks here: ' +
      'it is streamed, which an answer of GraphQL can not be.',
    resolve: (_root, _args, { publicUrl }) => `${publicUrl}/api/export`,
  }),
);

builder.relayMutationField(
  'orgDelete',
  {
    inputFields: (t) => ({
      confirmation: t.string({ required: true, description: 'The slug of the org, typed.' }),
    }),
  },
  {
    action: 'org.delete',
    description:
      'Asks for the deletion of the org: its tokens are suspended at once, and after 24 hours ' +
      'everything of it is deleted for good.',
    resolve: (_root, { input: { confirmation } }, context) =>
      attempt(context, async ({ org, actor, store, now }) => {
        await store.orgs.requestDeletion(org, actor, confirmation, now);
        return { deletion: await deletionOf(context) };
      }),
  },
  payloadOf('orgDelete', { deletion: [OrgDeletionType, 'The deletion that was asked for.'] }),
);

builder.relayMutationField(
  'orgDeletionCancel',
  {
    inputFields: (t) => ({
      confirmation: t.string({ required: true, description: 'The slug of the org, typed.' }),
    }),
  },
  {
    action: 'org.cancel_deletion',
    description: 'Takes the request for deletion back; tokens are good again.',
    resolve: (_root, { input: { confirmation } }, context) =>
      attempt(context, async ({ org, actor, store, now }) => {
        await store.orgs.confirmSlug(org, actor, 'org.cancel_deletion', confirmation);
        if (!(await store.orgs.cancelDeletion(org, actor, now))) {
          throw new UserError('NOT_FOUND', [], 'There is no request for deletion to take back.');
        }
        return { isCancelled: true };
      }),
  },
  {
    description: 'What orgDeletionCancel brought about.',
    outputFields: (t) => ({
      isCancelled: t.boolean({
        ...{ action: 'public', nullable: false },
        description: 'Whether the org stays.',
        resolve: ({ isCancelled }) => isCancelled ?? false,
      }),
      errors: errorsField(t),
    }),
  },
);
