/** The audit trail: who did what, checkpoints to hold elsewhere, its check and its erasure. */

import { z } from 'zod';
import {
  type AuditActor,
  type AuditEntry,
  type ChainFault,
  type ChainReport,
  storyOf,
} from '../audit.ts';
import type { MemberId, TokenId } from '../ids.ts';
import { builder } from './builder.ts';
import { connect, sizeOf } from './connection.ts';
import type { KeptCheckpoint } from './context.ts';
import { UserError } from './errors.ts';
import { parseInput } from './input.ts';
import { attempt, errorsField } from './payload.ts';
import './scalars.ts';

const MAX_NOTE_CHARS = 500;

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

const CheckpointPurpose = builder.enumType('AuditCheckpointPurpose', {
  description: 'What a checkpoint is for.',
  values: {
    HEAD: { value: 'head', description: 'The trail was at this entry.' },
    PRUNED: { value: 'pruned', description: 'All up to this entry was rightly deleted.' },
  } as const,
});

const CheckpointType = builder.objectRef<KeptCheckpoint>('AuditCheckpoint');

builder.objectType(CheckpointType, {
  description: 'A state of the audit trail that was signed.',
  fields: (t) => ({
    seq: t.expose('seq', {
      ...{ ...READ, type: 'Count' },
      description: 'The number of the entry that the trail was at.',
    }),
    at: t.expose('at', { ...{ ...READ, type: 'DateTime' }, description: 'When it was signed.' }),
    purpose: t.expose('purpose', {
      ...{ ...READ, type: CheckpointPurpose },
      description: 'What it is for.',
    }),
    jws: t.exposeString('jws', {
      ...READ,
      description: 'The signed state as compact JWS (EdDSA), to be held elsewhere.',
    }),
  }),
});

builder.queryFields((t) => ({
  auditEntries: t.connection({
    type: AuditEntryType,
    action: 'audit.read',
    description: 'The audit trail of the org, the newest first.',
    complexity: (page) => ({ field: 1, multiplier: sizeOf(page) }),
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
  auditCheckpoints: t.connection({
    type: CheckpointType,
    action: 'audit.read',
    description: 'The checkpoints of the audit trail that are kept, the newest first.',
    complexity: (page) => ({ field: 1, multiplier: sizeOf(page) }),
    resolve: (_root, page, { org, store }) =>
      connect(page, (window) => store.checkpoints.pageCheckpoints(org, window)),
  }),
}));

const noteSchema = z.string().max(MAX_NOTE_CHARS).optional();

builder.relayMutationField(
  'auditCheckpointCreate',
  {
    inputFields: (t) => ({
      note: t.string({ description: 'What it is for, as the trail has it.' }),
    }),
  },
  {
    action: 'audit.verify',
    description: 'Signs the audit trail as it stands: hold the result elsewhere.',
    resolve: (_root, { input }, context) =>
      attempt(context, async () => {
        const { org, actor, store, signing, now } = context;
        const signer = await signing.signer();
        const note = parseInput(noteSchema, input.note ?? undefined, 'note');
        const signed = await store.checkpoints.signHead(org, signer, now, { actor, note });
        if (!signed) throw new UserError('INVALID', [], 'The audit trail has no entry yet.');
        const { checkpoint, jws } = signed;
        return { checkpoint: { ...checkpoint, jws }, publicKey: signer.publicKey };
      }),
  },
  {
    description: 'What auditCheckpointCreate brought about.',
    outputFields: (t) => ({
      checkpoint: t.field({
        ...{ type: CheckpointType, action: 'public', nullable: true },
        description: 'The checkpoint.',
        resolve: ({ checkpoint }) => checkpoint,
      }),
      publicKey: t.field({
        ...{ type: 'JSON', action: 'public', nullable: true },
        description: 'The key that verifies it, as JSON Web Key.',
        resolve: ({ publicKey }) => publicKey,
      }),
      errors: errorsField(t),
    }),
  },
);

const FaultType = builder.objectRef<ChainFault>('AuditFault');

builder.objectType(FaultType, {
  description: 'What is wrong with the audit trail.',
  fields: (t) => ({
    seq: t.expose('seq', {
      ...{ type: 'Count', action: 'public', nullable: false },
      description: 'The number of the entry where it shows.',
    }),
    fault: t.exposeString('fault', {
      ...{ action: 'public', nullable: false },
      description: 'sequence, link, content, payload, erased, checkpoint, truncated or signature.',
    }),
    message: t.exposeString('message', {
      ...{ action: 'public', nullable: false },
      description: 'What it is, in a sentence.',
    }),
  }),
});

const ReportType = builder.objectRef<ChainReport>('AuditReport');

builder.objectType(ReportType, {
  description: 'What a check of the audit trail has found.',
  fields: (t) => ({
    ok: t.exposeBoolean('ok', {
      ...{ action: 'public', nullable: false },
      description: 'Whether everything is as it was written.',
    }),
    entries: t.expose('entries', {
      ...{ type: 'Count', action: 'public', nullable: false },
      description: 'How many entries there are.',
    }),
    erased: t.expose('erased', {
      ...{ type: 'Count', action: 'public', nullable: false },
      description: 'How many of them were erased, and are said to be.',
    }),
    headSeq: t.field({
      ...{ type: 'Count', action: 'public', nullable: true },
      description: 'The number of the newest entry.',
      resolve: ({ head }) => head?.seq,
    }),
    headHash: t.string({
      ...{ action: 'public', nullable: true },
      description: 'The hash of the newest entry, in hex.',
      resolve: ({ head }) => head?.hash,
    }),
    faults: t.expose('faults', {
      ...{ type: [FaultType], action: 'public', nullable: false },
      description: 'What is wrong, at most a hundred faults.',
    }),
  }),
});

builder.relayMutationField(
  'auditVerify',
  {
    inputFields: (t) => ({
      checkpoint: t.string({ description: 'A checkpoint that was held elsewhere, as JWS.' }),
    }),
  },
  {
    action: 'audit.verify',
    description: 'Checks the whole audit trail against itself and every checkpoint.',
    resolve: (_root, { input: { checkpoint } }, context) =>
      attempt(context, async () => {
        const { org, actor, store, signing } = context;
        const keys = await signing.publicKeys();
        const held = checkpoint ?? undefined;
        return { report: await store.checkpoints.verifyAs(org, actor, keys, held) };
      }),
  },
  {
    description: 'What auditVerify has found.',
    outputFields: (t) => ({
      report: t.field({
        ...{ type: ReportType, action: 'public', nullable: true },
        description: 'The findings.',
        resolve: ({ report }) => report,
      }),
      errors: errorsField(t),
    }),
  },
);

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
      attempt(context, async () => {
        const { org, actor, store } = context;
        const erased = await store.audit.eraseActor(org, actor, input.actor);
        return { erased, hasMore: erased === store.audit.MAX_ERASED };
      }),
  },
  {
    description: 'What auditErase brought about.',
    outputFields: (t) => ({
      erased: t.field({
        ...{ type: 'Count', action: 'public', nullable: true },
        description: 'How many entries were erased.',
        resolve: ({ erased }) => erased,
      }),
      hasMore: t.boolean({
        ...{ action: 'public', nullable: true },
        description: 'Whether there may be more: then ask again.',
        resolve: ({ hasMore }) => hasMore,
      }),
      errors: errorsField(t),
    }),
  },
);
