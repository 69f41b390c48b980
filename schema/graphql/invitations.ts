/** Invitations: who is asked to join in which role, by letter. */

import { EMAIL } from '../email.ts';
import { isId } from '../ids.ts';
import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { Context, Invitation, SentInvitation } from './context.ts';
import { notFound, UserError } from './errors.ts';
import { parseInput } from './input.ts';
import { MemberType } from './members.ts';
import { RoleType } from './org.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

/** An offer of membership. */
const InvitationType = builder.objectRef<Invitation>('Invitation');

const READ = { action: 'invitation.read', nullable: true } as const;

builder.objectType(InvitationType, {
  description: 'An offer of membership that can still be accepted.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'InvitationID', action: 'public', nullable: false },
      description: 'Its id.',
    }),
    email: t.exposeString('email', { ...READ, description: 'Whom it was written to.' }),
    role: t.expose('role', { ...{ ...READ, type: RoleType }, description: 'The role offered.' }),
    inviter: t.field({
      ...{ ...READ, type: MemberType },
      description: 'Who invited; null for the operator and for who has left.',
      resolve: ({ invitedBy }, _args, { loaders }) =>
        isId('member', invitedBy) ? loaders.members.load(invitedBy) : null,
    }),
    createdAt: t.expose('createdAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was made.',
    }),
    expiresAt: t.expose('expiresAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'Until when it can be accepted.',
    }),
  }),
});

builder.queryField('invitations', (t) =>
  t.connection({
    type: InvitationType,
    action: 'invitation.read',
    description: 'The invitations that can still be accepted, the newest first.',
    complexity: costOf,
    resolve: (_root, page, { org, store, now }) =>
      connect(page, (window) => store.invitations.listInvitations(org, now, window)),
  }),
);

/** What nobody could receive is not made. */
function requireMail({ letters }: Context): void {
  if (letters.isOpen) return;
  const message = 'This deployment sends no mail; its operator can set RUNGATE_SMTP_URL.';
  throw new UserError('INVALID', ['input'], message);
}

/** Writes to who is invited, and tells what there is to tell. */
async function send(context: Context, { id, secret }: SentInvitation) {
  const { org, store, now, letters } = context;
  const invitation = await store.invitations.readInvitation(org, id, now);
  if (!invitation) throw notFound('invitationId');
  return { invitation, link: await letters.invite(invitation, secret) };
}

const LINK =
  'The link of the letter, in development where there is no mail server; else null, since it is for the invited alone.';

builder.relayMutationField(
  'invitationCreate',
  {
    inputFields: (t) => ({
      email: t.string({ required: true, description: 'Whom to invite.' }),
      role: t.field({ type: RoleType, required: true, description: 'As what; not as an owner.' }),
    }),
  },
  {
    action: 'invitation.create',
    description: 'Invites a person by letter, to a role not above one’s own, for seven days.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, store, now }) => {
        const email = parseInput(EMAIL, input.email, 'email');
        requireMail(context);
        return await send(
          context,
          await store.invitations.invite(org, actor, email, input.role, now),
        );
      }),
  },
  payloadOf('invitationCreate', {
    invitation: [InvitationType, 'The invitation.'],
    link: ['String', LINK],
  }),
);

const INVITATION = {
  type: 'InvitationID',
  required: true,
  description: 'The invitation.',
} as const;

builder.relayMutationField(
  'invitationResend',
  { inputFields: (t) => ({ invitationId: t.field(INVITATION) }) },
  {
    action: 'invitation.resend',
    description: 'Writes again, with a new link for another seven days; the old one is dead.',
    resolve: (_root, { input: { invitationId } }, context) =>
      attempt(context, async ({ org, actor, store, now }) => {
        requireMail(context);
        return await send(
          context,
          await store.invitations.resendInvitation(org, actor, invitationId, now),
        );
      }),
  },
  payloadOf('invitationResend', {
    invitation: [InvitationType, 'The invitation as it is now.'],
    link: ['String', LINK],
  }),
);

builder.relayMutationField(
  'invitationRevoke',
  { inputFields: (t) => ({ invitationId: t.field(INVITATION) }) },
  {
    action: 'invitation.revoke',
    description: 'Takes an invitation back.',
    resolve: (_root, { input: { invitationId } }, context) =>
      attempt(context, async ({ org, actor, store, now }) => {
        await store.invitations.revokeInvitation(org, actor, invitationId, now);
        return { invitationId };
      }),
  },
  payloadOf('invitationRevoke', {
    invitationId: ['InvitationID', 'The invitation that can be accepted no more.'],
  }),
);
