/** Sessions: where people are signed in, and ending that. */

import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { ListedSession } from './context.ts';
import { notFound } from './errors.ts';
import { MemberType } from './members.ts';
import { ViewerType } from './org.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

const SignInMethodType = builder.enumType('SignInMethod', {
  description: 'How somebody proved who he is.',
  values: {
    LINK: { value: 'link', description: 'By a link in a letter to his address.' },
    OIDC: { value: 'oidc', description: 'At the org’s identity provider.' },
    INVITATION: { value: 'invitation', description: 'By the link of his invitation.' },
  } as const,
});

/** A session of a person. */
const SessionType = builder.objectRef<ListedSession>('Session');

/** One’s own sessions are for everybody to see; those of others are behind fields that ask. */
const SEEN = { action: 'public', nullable: false } as const;

builder.objectType(SessionType, {
  description: 'A browser in which a member is signed in.',
  fields: (t) => ({
    id: t.expose('id', { ...{ ...SEEN, type: 'SessionID' }, description: 'Its id.' }),
    method: t.expose('method', {
      ...{ ...SEEN, type: SignInMethodType },
      description: 'How he proved who he is.',
    }),
    address: t.exposeString('address', {
      ...{ ...SEEN, nullable: true },
      description: 'The address it was opened from.',
    }),
    userAgent: t.exposeString('userAgent', {
      ...{ ...SEEN, nullable: true },
      description: 'What the browser said it is.',
    }),
    createdAt: t.expose('createdAt', {
      ...{ ...SEEN, type: 'DateTime' },
      description: 'When it was opened.',
    }),
    activeAt: t.expose('activeAt', {
      ...{ ...SEEN, type: 'DateTime' },
      description: 'When it was last used, to five minutes.',
    }),
    expiresAt: t.expose('expiresAt', {
      ...{ ...SEEN, type: 'DateTime' },
      description: 'When it ends, however much it is used.',
    }),
    isCurrent: t.boolean({
      ...SEEN,
      description: 'Whether it is the one that asks.',
      resolve: ({ id }, _args, { viewer }) => viewer.sessionId === id,
    }),
    member: t.field({
      ...{ type: MemberType, action: 'member.read', nullable: true },
      description: 'Whose it is.',
      resolve: ({ memberId }, _args, { loaders }) => loaders.members.load(memberId),
    }),
  }),
});

builder.objectField(MemberType, 'sessions', (t) =>
  t.field({
    ...{ type: [SessionType], action: 'session.read', nullable: true },
    description: 'Where he is signed in, at most twenty; the latest used first.',
    resolve: async ({ id }, _args, { loaders }) => (await loaders.sessionsOfMember.load(id)) ?? [],
  }),
);

builder.objectField(ViewerType, 'sessions', (t) =>
  t.field({
    ...{ type: [SessionType], action: 'public', nullable: false },
    description: 'Where he is signed in himself; none for a token.',
    resolve: async ({ memberId, sessionId }, _args, { loaders }) =>
      (memberId && sessionId && (await loaders.sessionsOfMember.load(memberId))) || [],
  }),
);

builder.queryField('sessions', (t) =>
  t.connection({
    type: SessionType,
    action: 'session.read',
    description: 'The sessions of all members, the latest used first.',
    complexity: costOf,
    args: { memberId: t.arg({ type: 'MemberID', description: 'Only those of this member.' }) },
    resolve: (_root, { memberId, ...page }, { org, store, now }) =>
      connect(page, (window) => store.sessions.listSessions(org, memberId ?? null, now, window)),
  }),
);

builder.relayMutationField(
  'sessionRevoke',
  {
    inputFields: (t) => ({
      sessionId: t.field({ type: 'SessionID', required: true, description: 'The session.' }),
    }),
  },
  {
    action: 'public',
    description:
      'Ends a session from the next request on: one’s own, or with session.revoke that of another member, never of an owner unless one is one.',
    resolve: (_root, { input: { sessionId } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        if (!(await store.sessions.revokeSession(org, actor, sessionId))) {
          throw notFound('sessionId');
        }
        return { sessionId };
      }),
  },
  payloadOf('sessionRevoke', { sessionId: ['SessionID', 'The session that has ended.'] }),
);
