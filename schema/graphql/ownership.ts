/** The handing over of the ownership: offered, taken back, accepted. */

import { builder } from './builder.ts';
import type { OwnershipOffer } from './context.ts';
import { notFound } from './errors.ts';
import { MEMBER, MemberType } from './members.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

const READ = { action: 'member.read', nullable: true } as const;

const OwnershipOfferType = builder.objectRef<OwnershipOffer>('OwnershipOffer');

builder.objectType(OwnershipOfferType, {
  description: 'An offer of the ownership that waits to be accepted.',
  fields: (t) => ({
    from: t.field({
      ...{ ...READ, type: MemberType },
      description: 'The owner, who becomes an admin.',
      resolve: ({ from }, _args, { loaders }) => loaders.members.load(from),
    }),
    to: t.field({
      ...{ ...READ, type: MemberType },
      description: 'The member who becomes an owner.',
      resolve: ({ to }, _args, { loaders }) => loaders.members.load(to),
    }),
    offeredAt: t.expose('offeredAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was made.',
    }),
    expiresAt: t.expose('expiresAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'Until when it can be accepted.',
    }),
  }),
});

builder.queryField('ownershipOffer', (t) =>
  t.field({
    ...{ type: OwnershipOfferType, action: 'member.read', nullable: true },
    description: 'The open offer of the ownership.',
    resolve: (_root, _args, { org, store, now }) => store.members.readOffer(org, now),
  }),
);

builder.relayMutationField(
  'ownershipOffer',
  {
    inputFields: (t) => ({
      memberId: t.field({ ...MEMBER, description: 'Who is to become an owner in one’s place.' }),
    }),
  },
  {
    action: 'org.transfer',
    description: 'Offers one’s ownership to another member for seven days.',
    resolve: (_root, { input: { memberId } }, context) =>
      attempt(context, async ({ org, actor, viewer, store, now }) => {
        if (!viewer.memberId) throw notFound('memberId');
        await store.members.offerOwnership(org, actor, viewer.memberId, memberId, now);
        return { offer: await store.members.readOffer(org, now) };
      }),
  },
  payloadOf('ownershipOffer', {
    offer: [OwnershipOfferType, 'The offer, which waits to be accepted.'],
  }),
);

builder.relayMutationField(
  'ownershipWithdraw',
  {
    inputFields: (t) => ({
      memberId: t.field({ ...MEMBER, description: 'To whom the ownership is offered.' }),
    }),
  },
  {
    action: 'org.transfer',
    description: 'Takes the offer of the ownership back.',
    resolve: (_root, { input: { memberId } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const isGone = await store.members.withdrawOffer(org, actor, memberId);
        if (!isGone) throw notFound('memberId');
        return { memberId };
      }),
  },
  payloadOf('ownershipWithdraw', {
    memberId: ['MemberID', 'To whom nothing is offered any more.'],
  }),
);

builder.relayMutationField(
  'ownershipAccept',
  {
    inputFields: (t) => ({
      confirmation: t.string({ required: true, description: 'The slug of the org, typed.' }),
    }),
  },
  {
    action: 'public',
    description:
      'Accepts the ownership that is offered to the viewer, who must be signed in himself: he becomes an owner, who offered it an admin, and the sessions of both end.',
    resolve: (_root, { input: { confirmation } }, context) =>
      attempt(context, async ({ org, actor, viewer, store, loaders, now }) => {
        if (!viewer.memberId) throw notFound('input');
        await store.members.acceptOwnership(org, actor, viewer.memberId, confirmation, now);
        return { member: await loaders.members.load(viewer.memberId) };
      }),
  },
  payloadOf('ownershipAccept', { member: [MemberType, 'The new owner.'] }),
);
