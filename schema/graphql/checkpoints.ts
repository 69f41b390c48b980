/** Checkpoints of the audit trail, to be held elsewhere, and its check against them. */

import { z } from 'zod';
import type { ChainFault, ChainReport } from '../audit.ts';
import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { KeptCheckpoint } from './context.ts';
import { UserError } from './errors.ts';
import { parseInput } from './input.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

const MAX_NOTE_CHARS = 500;

const READ = { action: 'audit.read', nullable: true } as const;

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

builder.queryField('auditCheckpoints', (t) =>
  t.connection({
    type: CheckpointType,
    action: 'audit.read',
    description: 'The checkpoints of the audit trail that are kept, the newest first.',
    complexity: costOf,
    resolve: (_root, page, { org, store }) =>
      connect(page, (window) => store.checkpoints.pageCheckpoints(org, window)),
  }),
);

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
      attempt(context, async ({ org, actor, store, signing, now }) => {
        const signer = await signing.signer();
        const note = parseInput(noteSchema, input.note ?? undefined, 'note');
        const signed = await store.checkpoints.signHead(org, signer, now, { actor, note });
        if (!signed) throw new UserError('INVALID', [], 'The audit trail has no entry yet.');
        const { checkpoint, jws } = signed;
        return { checkpoint: { ...checkpoint, jws }, publicKey: signer.publicKey };
      }),
  },
  payloadOf('auditCheckpointCreate', {
    checkpoint: [CheckpointType, 'The checkpoint.'],
    publicKey: ['JSON', 'The key that verifies it, as JSON Web Key.'],
  }),
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
      attempt(context, async ({ org, actor, store, signing }) => {
        const keys = await signing.publicKeys();
        const held = checkpoint ?? undefined;
        return { report: await store.checkpoints.verifyAs(org, actor, keys, held) };
      }),
  },
  {
    ...payloadOf('auditVerify', { report: [ReportType, 'The findings.'] }),
    description: 'What auditVerify has found.',
  },
);
