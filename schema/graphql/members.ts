/** Members: the people of the org and their roles. */

import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { Member } from './context.ts';
import { notFound } from './errors.ts';
import { OrderDirection } from './order.ts';
import { RoleType, ViewerType } from './org.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';
import { UserType } from './users.ts';

/** A person's place in the org. */
export const MemberType = builder.objectRef<Member>('Member');

const READ = { action: 'member.read', nullable: true } as const;

/** How an input names a member. */
export const MEMBER = { type: 'MemberID', required: true, description: 'The member.' } as const;

builder.objectType(MemberType, {
  description: 'A person’s place in the org.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'MemberID', action: 'public', nullable: false },
      description: 'Its id.',
    }),
    user: t.field({
      ...{ ...READ, type: UserType },
      description: 'Who it is.',
      resolve: (member) => member,
    }),
    role: t.expose('role', { ...{ ...READ, type: RoleType }, description: 'His role.' }),
    createdAt: t.expose('createdAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'Since when he is a member.',
    }),
  }),
});

const MemberOrderField = builder.enumType('MemberOrderField', {
  description: 'What members are listed by.',
  values: {
    CREATED_AT: { value: 'created_at', description: 'When they became members.' },
    EMAIL: { value: 'email', description: 'Their e-mail addresses.' },
  } as const,
});

const MemberOrder = builder.inputType('MemberOrder', {
  description: 'The order of members.',
  fields: (t) => ({
    field: t.field({ type: MemberOrderField, required: true, description: 'What they go by.' }),
    direction: t.field({
      ...{ type: OrderDirection, required: true },
      description: 'Which end comes first.',
    }),
  }),
});

const MemberFilter = builder.inputType('MemberFilter', {
  description: 'Which members are listed; all of what is given must hold.',
  fields: (t) => ({
    role: t.field({ type: RoleType, description: 'Those with this role.' }),
    search: t.string({ description: 'Those whose address or name contains this.' }),
  }),
});

builder.queryFields((t) => ({
  members: t.connection({
    type: MemberType,
    action: 'member.read',
    description: 'The members of the org.',
    complexity: costOf,
    args: {
      filter: t.arg({ type: MemberFilter, description: 'Which of them.' }),
      orderBy: t.arg({
        type: MemberOrder,
        description: 'By when they came unless told otherwise.',
      }),
    },
    resolve: (_root, { filter, orderBy, ...page }, { org, store }) => {
      const order = orderBy && {
        order: orderBy.field,
        isDescending: orderBy.direction === 'desc',
      };
      return connect(page, (window) =>
        store.members.listMembers(org, { ...filter, ...order }, window),
      );
    },
  }),
  member: t.field({
    ...{ type: MemberType, action: 'member.read', nullable: true },
    description: 'The member of an id.',
    args: { id: t.arg(MEMBER) },
    resolve: (_root, { id }, { loaders }) => loaders.members.load(id),
  }),
}));

builder.objectField(ViewerType, 'member', (t) =>
  t.field({
    ...{ type: MemberType, action: 'public', nullable: true },
    description: 'Who he is in the org; with a token, whose it is.',
    resolve: ({ memberId }, _args, { loaders }) => memberId && loaders.members.load(memberId),
  }),
);

builder.relayMutationField(
  'memberUpdateRole',
  {
    inputFields: (t) => ({
      memberId: t.field(MEMBER),
      role: t.field({
        type: RoleType,
        required: true,
        description: 'The role he gets; not OWNER.',
      }),
    }),
  },
  {
    action: 'member.update_role',
    description:
      'Gives a member another role and ends his sessions. The last owner stays one, and nobody becomes one by it: see ownershipOffer.',
    resolve: (_root, { input: { memberId, role } }, context) =>
      attempt(context, async ({ org, actor, store, loaders }) => {
        await store.members.changeRole(org, actor, memberId, role);
        const member = await loaders.members.load(memberId);
        if (!member) throw notFound('memberId');
        return { member };
      }),
  },
  payloadOf('memberUpdateRole', { member: [MemberType, 'The member as he is now.'] }),
);

builder.relayMutationField(
  'memberRemove',
  { inputFields: (t) => ({ memberId: t.field(MEMBER) }) },
  {
    action: 'member.remove',
    description: 'Removes a member: his sessions and admin tokens end. The last owner stays.',
    resolve: (_root, { input: { memberId } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        await store.members.removeMember(org, actor, memberId);
        return { memberId };
      }),
  },
  payloadOf('memberRemove', { memberId: ['MemberID', 'Who is no member any more.'] }),
);

builder.relayMutationField(
  'memberLeave',
  {
    inputFields: (t) => ({
      confirmation: t.string({ required: true, description: 'The slug of the org, typed.' }),
    }),
  },
  {
    action: 'public',
    description:
      'Leaves the org, as whoever is signed in: his sessions and admin tokens end. The last owner stays.',
    resolve: (_root, { input: { confirmation } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const memberId = await store.members.leaveOrg(org, actor, confirmation);
        if (!memberId) throw notFound('input');
        return { memberId };
      }),
  },
  payloadOf('memberLeave', { memberId: ['MemberID', 'Who is no member any more.'] }),
);
