/** The org and the viewer: where a client begins. */

import { titleSchema } from '../names.ts';
import { builder } from './builder.ts';
import type { Account, Viewer } from './context.ts';
import { parseInput } from './input.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';
import { TokenType } from './tokens.ts';

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

const READ = { action: 'org.read', nullable: true } as const;

/** The org of the viewer. */
const OrgType = builder.objectRef<Account>('Org');

builder.objectType(OrgType, {
  description: 'The org of the viewer; there is no way to another one.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'OrgID', action: 'public', nullable: false },
      description: 'Its id.',
    }),
    slug: t.exposeString('slug', { ...READ, description: 'Its name in URLs, which stays.' }),
    name: t.exposeString('name', { ...READ, description: 'What it is called.' }),
    plan: t.exposeString('plan', { ...READ, description: 'free, pro, growth or enterprise.' }),
    createdAt: t.expose('createdAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was made.',
    }),
    suspendedAt: t.expose('suspendedAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'Since when the operator has suspended it.',
    }),
    deletionRequestedAt: t.expose('deletionRequestedAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When its deletion was asked for.',
    }),
    deletesAt: t.expose('deletesAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'From when on it may be deleted; until then that can be taken back.',
    }),
  }),
});

const ViewerVia = builder.enumType('ViewerVia', {
  description: 'What the viewer came with.',
  values: {
    TOKEN: { value: 'token', description: 'An admin token.' },
    SESSION: { value: 'session', description: 'The session of a person who has signed in.' },
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
    via: t.field({
      ...{ type: ViewerVia, action: 'public' },
      description: 'What he came with.',
      resolve: ({ tokenId }) => (tokenId ? 'token' : 'session'),
    }),
    memberId: t.field({
      ...{ type: 'MemberID', action: 'public' },
      description: 'The member that he is, or whose token it is.',
      resolve: ({ memberId }) => memberId,
    }),
    email: t.field({
      ...{ type: 'String', action: 'public' },
      description: "The member's address.",
      resolve: async ({ memberId }, _args, { loaders }) =>
        memberId && (await loaders.members.load(memberId))?.email,
    }),
    token: t.field({
      ...{ type: TokenType, action: 'public' },
      description: 'The token that he came with.',
      resolve: ({ tokenId }, _args, { loaders }) => tokenId && loaders.tokens.load(tokenId),
    }),
    org: t.field({
      ...{ type: OrgType, ...READ },
      description: 'His org.',
      resolve: (_viewer, _args, { org, store }) => store.orgs.readAccount(org),
    }),
  }),
});

builder.queryFields((t) => ({
  me: t.field({
    ...{ type: ViewerType, action: 'public', nullable: false },
    description: 'Whoever asks, and what he may do.',
    resolve: (_root, _args, { viewer }) => viewer,
  }),
  org: t.field({
    ...{ type: OrgType, ...READ },
    description: 'The org of the viewer.',
    resolve: (_root, _args, { org, store }) => store.orgs.readAccount(org),
  }),
}));

builder.relayMutationField(
  'orgUpdate',
  {
    inputFields: (t) => ({
      name: t.string({ required: true, description: '1 to 100 characters on one line.' }),
    }),
  },
  {
    action: 'org.update',
    description: 'Renames the org; its slug stays.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const name = parseInput(titleSchema, input.name, 'name');
        await store.orgs.renameOrg(org, actor, name);
        return { org: await store.orgs.readAccount(org) };
      }),
  },
  payloadOf('orgUpdate', { org: [OrgType, 'The org as it is now.'] }),
);
