/** Policies and their versions: read, written, deleted. */

import type { PolicyId } from '../ids.ts';
import { nameSchema } from '../names.ts';
import { judgePolicy } from '../policy.ts';
import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { Context, NamedPolicy, WrittenVersion } from './context.ts';
import { notFound, UserError } from './errors.ts';
import { parseInput, rejectProblems } from './input.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

const READ = { action: 'policy.read', nullable: true } as const;

/** How an input names a policy. */
export const POLICY = { type: 'PolicyID', required: true, description: 'The policy.' } as const;

/** An immutable version of a policy. */
export const PolicyVersionType = builder.objectRef<WrittenVersion>('PolicyVersion');

/** A named set of rules, in versions. */
export const PolicyType = builder.objectRef<NamedPolicy>('Policy');

builder.objectType(PolicyVersionType, {
  description: 'A version of a policy; it never changes.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'PolicyVersionID', action: 'public', nullable: false },
      description: 'Its id.',
    }),
    number: t.exposeInt('number', { ...READ, description: 'Its number, from 1 on.' }),
    label: t.exposeString('label', {
      ...READ,
      description: "The policy's name and the version, as in prod-agents/v4.",
    }),
    document: t.expose('document', {
      ...{ ...READ, type: 'JSON' },
      description: 'The rules as they were written; their JSON Schema is at /schemas/policy.json.',
    }),
    createdAt: t.expose('createdAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was written.',
    }),
    createdBy: t.exposeString('createdBy', {
      ...READ,
      description: 'Who wrote it: the id of a member or token, or operator.',
    }),
    policy: t.field({
      ...{ ...READ, type: PolicyType },
      description: 'The policy that it is a version of.',
      resolve: ({ policyId }, _args, { loaders }) => loaders.policies.load(policyId),
    }),
  }),
});

builder.objectType(PolicyType, {
  description: 'A named set of rules that agents run under, in immutable versions.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'PolicyID', action: 'public', nullable: false },
      description: 'Its id.',
    }),
    name: t.exposeString('name', { ...READ, description: 'Its name in the org.' }),
    createdAt: t.expose('createdAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was made.',
    }),
    newest: t.field({
      ...{ ...READ, type: PolicyVersionType },
      description: 'Its newest version, which agents follow unless they are pinned.',
      resolve: ({ id }, _args, { loaders }) => loaders.newestVersions.load(id),
    }),
    version: t.field({
      ...{ ...READ, type: PolicyVersionType },
      description: 'One of its versions.',
      complexity: 2,
      args: { number: t.arg.int({ required: true, description: 'The number of the version.' }) },
      resolve: ({ id }, { number }, { loaders }) =>
        loaders.versionsByNumber.load(`${id}/${number}`),
    }),
    versions: t.connection({
      type: PolicyVersionType,
      action: 'policy.read',
      description: 'Its versions, the newest first.',
      complexity: costOf,
      resolve: ({ id }, page, { loaders }) =>
        connect(page, (window) => loaders.versionsOfPolicy.load(id, window)),
    }),
  }),
});

const PolicyFilter = builder.inputType('PolicyFilter', {
  description: 'Which policies are listed.',
  fields: (t) => ({
    name: t.string({ description: 'Whose name contains this, in any case.' }),
  }),
});

builder.queryFields((t) => ({
  policies: t.connection({
    type: PolicyType,
    action: 'policy.read',
    description: 'The policies of the org, by name.',
    complexity: costOf,
    args: { filter: t.arg({ type: PolicyFilter, description: 'Which of them.' }) },
    resolve: (_root, { filter, ...page }, { org, store }) =>
      connect(page, (window) => store.policies.listPolicies(org, filter ?? {}, window)),
  }),
  policy: t.field({
    ...{ ...READ, type: PolicyType },
    description: 'The policy of an id.',
    args: { id: t.arg(POLICY) },
    resolve: (_root, { id }, { loaders }) => loaders.policies.load(id),
  }),
  policyByName: t.field({
    ...{ ...READ, type: PolicyType },
    description: 'The policy of a name.',
    args: { name: t.arg.string({ required: true, description: 'The name.' }) },
    resolve: (_root, { name }, { org, store }) => store.policies.findNamedPolicy(org, name),
  }),
}));

/** The policy of an id, as it is now. */
async function present({ org, store }: Context, id: PolicyId): Promise<NamedPolicy> {
  const [policy] = await store.policies.readPolicies(org, [id]);
  if (!policy) throw notFound('policyId');
  return policy;
}

/** The JSON of a document that can be a version. */
function checkDocument(document: unknown): string {
  rejectProblems(judgePolicy(document), 'document');
  return JSON.stringify(document);
}

builder.relayMutationField(
  'policyCreate',
  {
    inputFields: (t) => ({
      name: t.string({ required: true, description: '1 to 64 of A-Z a-z 0-9 . _ -' }),
      document: t.field({
        ...{ type: 'JSON', required: true },
        description: 'The rules, as /schemas/policy.json has them.',
      }),
    }),
  },
  {
    action: 'policy.create',
    description: 'Makes a policy with its first version.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const name = parseInput(nameSchema, input.name, 'name');
        const text = checkDocument(input.document);
        const { id } = await store.policies.addPolicyVersion(org, actor, name, text);
        return { policy: await present(context, id) };
      }),
  },
  payloadOf('policyCreate', { policy: [PolicyType, 'The policy.'] }),
);

builder.relayMutationField(
  'policyUpdate',
  {
    inputFields: (t) => ({
      policyId: t.field(POLICY),
      document: t.field({
        ...{ type: 'JSON', required: true },
        description: 'The rules of the new version, in whole.',
      }),
    }),
  },
  {
    action: 'policy.update',
    description:
      'Writes a new version of a policy. Agents that follow it open their next runs with it; a document that says the same as the newest version makes none.',
    resolve: (_root, { input: { policyId, document } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const { name } = await present(context, policyId);
        const text = checkDocument(document);
        const changed = await store.policies.publishVersion(org, actor, policyId, name, text);
        return { policy: await present(context, policyId), changed };
      }),
  },
  payloadOf('policyUpdate', {
    policy: [PolicyType, 'The policy as it is now.'],
    changed: ['Boolean', 'Whether a version was written.'],
  }),
);

builder.relayMutationField(
  'policyDelete',
  { inputFields: (t) => ({ policyId: t.field(POLICY) }) },
  {
    action: 'policy.delete',
    description:
      'Deletes a policy that no agent has or may choose, that no good token names, and that no run was opened with that is still kept.',
    resolve: (_root, { input: { policyId } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const policy = await present(context, policyId);
        if (!(await store.policies.deletePolicy(org, actor, policy))) throw inUse();
        return { deletedId: policyId };
      }),
  },
  payloadOf('policyDelete', { deletedId: ['PolicyID', 'The id that was deleted.'] }),
);

function inUse(): UserError {
  const message =
    'An agent has the policy or may choose it, a token names it, or a run was opened with it that is still kept.';
  return new UserError('CONFLICT', ['policyId'], message);
}
