/** The audit trail: who did what, and its erasure. */

import { type AuditActor, type AuditEntry, storyOf } from '../audit.ts';
import type { MemberId, TokenId } from '../ids.ts';
import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

const READ = { action: 'audit.read', nullable: true } as const;

const AuditOutcomeType = builder.enumType('AuditOutcome', {
  description: 'Whether what was asked for was done.',
  values: {
    ALLOWED: { value: 'allowed', description: 'It was.' },
    REFUSED: { value: 'refused', description: 'It was not.' },
  } as const,
});

interface Acted extends Partial<AuditActor> {
  readonly kind: string;
}

const AuditActorType = builder.objectRef<Acted>('AuditActor');

builder.objectType(AuditActorType, {
  description: 'Who acted, and from where; all but the kind is null once it is erased.',
  fields: (t) => ({
    kind: t.exposeString('kind', {
      ...READ,
      description: 'operator, user, token, platform, system or link.',
    }),
    id: t.exposeString('id', {
      ...READ,
      description: 'The id of the user, token or link, or operator or system.',
    }),
    memberId: t.field({
      ...{ ...READ, type: 'MemberID' },
      description: 'The member who acted.',
      resolve: ({ memberId }) => memberId as MemberId | undefined,
    }),
    role: t.exposeString('role', { ...READ, description: 'His role at the time.' }),
    tokenId: t.field({
      ...{ ...READ, type: 'TokenID' },
      description: 'The token that he used.',
      resolve: ({ tokenId }) => tokenId as TokenId | undefined,
    }),
    address: t.exposeString('address', { ...READ, description: 'The address he came from.' }),
    userAgent: t.exposeString('userAgent', { ...READ, description: 'What his client said it is.' }),
    requestId: t.exposeString('requestId', {
      ...READ,
      description: 'The request, as logs have it.',
    }),
  }),
});

const AuditEntryType = builder.objectRef<AuditEntry>('AuditEntry');

builder.objectType(AuditEntryType, {
  description: 'Something that was done or refused.',
  fields: (t) => ({
    id: t.field({
      ...{ type: 'AuditEntryID', action: 'public', nullable: false },
      description: 'Its id.',
      resolve: ({ id }) => id,
    }),
    seq: t.expose('seq', {
      ...{ ...READ, type: 'Count' },
      description: 'Its number in the chain of the org, from 1 without gaps.',
    }),
    at: t.expose('at', { ...{ ...READ, type: 'DateTime' }, description: 'When it was.' }),
    actor: t.field({
      ...{ ...READ, type: AuditActorType },
      description: 'Who acted.',
      resolve: (entry) => ({ kind: entry.actorKind, ...storyOf(entry)?.actor }),
    }),
    action: t.exposeString('action', { ...READ, description: 'What was done, as noun.verb.' }),
    target: t.exposeString('target', {
      ...READ,
      description: 'The id of what it was done to, or its name where it has none.',
    }),
    outcome: t.expose('outcome', {
      ...{ ...READ, type: AuditOutcomeType },
      description: 'Whether it was done.',
    }),
    before: t.field({
      ...{ ...READ, type: 'JSON' },
      description: 'The state before; null where there was none.',
      resolve: (entry) => storyOf(entry)?.before ?? null,
    }),
    after: t.field({
      ...{ ...READ, type: 'JSON' },
      description: 'The state after, or what was asked for; secrets are left out.',
      resolve: (entry) => storyOf(entry)?.after ?? null,
    }),
    isErased: t.boolean({
      ...READ,
      description: 'Whether it was erased who acted and what changed.',
      resolve: ({ payload }) => payload === undefined,
    }),
    hash: t.exposeString('hash', {
      ...READ,
      description: 'The hash over it and the entry before, in hex.',
    }),
  }),
});

const AuditFilter = builder.inputType('AuditFilter', {
  description: 'Which entries are listed; all of what is given must hold.',
  fields: (t) => ({
    action: t.string({ description: 'Of this action, such as agent.suspend.' }),
    target: t.string({ description: 'On what has this id or name.' }),
    actor: t.string({ description: 'Of whom has this id: a user, token or link, or operator.' }),
    outcome: t.field({ type: AuditOutcomeType, description: 'That were allowed, or refused.' }),
    from: t.field({ type: 'DateTime', description: 'Not before this.' }),
    to: t.field({ type: 'DateTime', description: 'Before this.' }),
  }),
});

builder.queryFields((t) => ({
  auditEntries: t.connection({
    type: AuditEntryType,
    action: 'audit.read',
    description: 'The audit trail of the org, the newest first.',
    complexity: costOf,
    args: { filter: t.arg({ type: AuditFilter, description: 'Which entries.' }) },
    resolve: (_root, { filter, ...page }, { org, store }) =>
      connect(page, (window) => store.audit.pageAudit(org, filter ?? {}, window)),
  }),
  auditEntry: t.field({
    ...{ type: AuditEntryType, action: 'audit.read', nullable: true },
    description: 'The entry of an id.',
    args: { id: t.arg({ type: 'AuditEntryID', required: true, description: 'The entry.' }) },
    resolve: (_root, { id }, { org, store }) => store.audit.readAuditEntry(org, id),
  }),
}));

builder.relayMutationField(
  'auditErase',
  {
    inputFields: (t) => ({
      actor: t.string({
        required: true,
        description: 'The id of the user, token or link whose traces are erased.',
      }),
    }),
  },
  {
    action: 'audit.erase',
    description:
      'Erases what the oldest entries in which someone acted say; the trail still verifies.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const erased = await store.audit.eraseActor(org, actor, input.actor);
        return { erased, hasMore: erased === store.audit.MAX_ERASED };
      }),
  },
  payloadOf('auditErase', {
    erased: ['Count', 'How many entries were erased.'],
    hasMore: ['Boolean', 'Whether there may be more: then ask again.'],
  }),
);
