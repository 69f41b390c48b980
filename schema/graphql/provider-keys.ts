/** Provider keys: read without their secrets, added, replaced, deleted. */

import type { ProviderKeyId } from '../ids.ts';
import { nameSchema } from '../names.ts';
import { provider as findProvider, PROVIDERS } from '../providers.ts';
import { SERVICE_TIERS } from '../rules/price.ts';
import { baseUrlOf, judgeBaseUrl, judgeSecret, judgeServiceTier } from '../rules/provider-key.ts';
import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { Context, ShownKey } from './context.ts';
import { notFound } from './errors.ts';
import { parseInput, rejectProblems } from './input.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

const READ = { action: 'provider_key.read', nullable: true } as const;
const KEY = { type: 'ProviderKeyID', required: true, description: 'The key.' } as const;

const SERVICE_TIER =
  'The tier of service that calls get which ask for none, or for auto: their money is held at its price.';

/** A sealed credential of a provider. */
const ProviderKeyType = builder.objectRef<ShownKey>('ProviderKey');

builder.objectType(ProviderKeyType, {
  description: 'A sealed credential of a provider; its secret is never shown.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'ProviderKeyID', action: 'public', nullable: false },
      description: 'Its id.',
    }),
    name: t.exposeString('name', {
      ...READ,
      description: 'Its name, which stands before the model: openai/gpt-5.',
    }),
    provider: t.exposeString('provider', { ...READ, description: 'Whose key it is.' }),
    baseUrl: t.exposeString('baseUrl', {
      ...READ,
      description: 'Where calls go; empty for a provider that is built in.',
    }),
    serviceTier: t.exposeString('serviceTier', { ...READ, description: SERVICE_TIER }),
    lastFour: t.exposeString('lastFour', {
      ...READ,
      description: 'The end of its secret; empty for a short one.',
    }),
    createdAt: t.expose('createdAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was added.',
    }),
  }),
});

const ProviderKeyFilter = builder.inputType('ProviderKeyFilter', {
  description: 'Which provider keys are listed.',
  fields: (t) => ({ provider: t.string({ description: 'Of this provider.' }) }),
});

builder.queryFields((t) => ({
  providerKeys: t.connection({
    type: ProviderKeyType,
    action: 'provider_key.read',
    description: 'The provider keys of the org, by name.',
    complexity: costOf,
    args: { filter: t.arg({ type: ProviderKeyFilter, description: 'Which of them.' }) },
    resolve: (_root, { filter, ...page }, { org, store }) =>
      connect(page, (window) => store.providerKeys.listProviderKeys(org, filter ?? {}, window)),
  }),
  providerKey: t.field({
    ...{ ...READ, type: ProviderKeyType },
    description: 'The provider key of an id.',
    args: { id: t.arg(KEY) },
    resolve: (_root, { id }, { org, store }) => store.providerKeys.showProviderKey(org, id),
  }),
  providerKeyByName: t.field({
    ...{ ...READ, type: ProviderKeyType },
    description: 'The provider key of a name.',
    args: { name: t.arg.string({ required: true, description: 'The name.' }) },
    resolve: (_root, { name }, { org, store }) => store.providerKeys.findShownKey(org, name),
  }),
}));

async function present({ org, store }: Context, id: ProviderKeyId): Promise<ShownKey> {
  const key = await store.providerKeys.showProviderKey(org, id);
  if (!key) throw notFound('providerKeyId');
  return key;
}

/** What a key goes to and is opened with, as the input of a mutation has it. */
interface TermsInput {
  readonly provider: string;
  readonly baseUrl: string | undefined;
  readonly serviceTier: string;
  readonly secret: string | undefined;
}

/** Checks and completes what a key is to be. */
function checkTerms({ egressAllow }: Context, input: TermsInput) {
  const { provider: name, baseUrl, serviceTier, secret } = input;
  const provider = findProvider(name);
  if (!provider) {
    const known = PROVIDERS.map((row) => row.name).join(', ');
    rejectProblems([{ path: [], message: `must be one of ${known}` }], 'provider');
  }
  const wrong = (field: string, message: string | undefined) =>
    rejectProblems(message === undefined ? [] : [{ path: [], message }], field);
  wrong('baseUrl', provider && judgeBaseUrl(provider, baseUrl, egressAllow));
  wrong('serviceTier', judgeServiceTier(serviceTier));
  wrong('secret', provider && judgeSecret(provider, secret));
  const url = baseUrlOf(provider, baseUrl);
  return { provider: name, baseUrl: url, serviceTier, secret: secret ?? '' };
}

const SECRET = "The provider's own key, 1 to 4096 visible ASCII characters. It is sealed at once.";
const BASE_URL =
  "Where calls go, with its version and by https; the provider's own unless given. A host that is not public takes the operator's leave.";

const TIERS = SERVICE_TIERS.join(', ');

builder.relayMutationField(
  'providerKeyCreate',
  {
    inputFields: (t) => ({
      name: t.string({ required: true, description: '1 to 64 of A-Z a-z 0-9 . _ -' }),
      provider: t.string({
        required: true,
        description: `Whose key it is, of ${PROVIDERS.map((row) => row.name).join(', ')}.`,
      }),
      baseUrl: t.string({ description: BASE_URL }),
      serviceTier: t.string({ description: `${SERVICE_TIER} One of ${TIERS}.` }),
      secret: t.string({ description: `${SECRET} Only the provider demo takes none.` }),
    }),
  },
  {
    action: 'provider_key.create',
    description: 'Adds a provider key.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, master, store }) => {
        const name = parseInput(nameSchema, input.name, 'name');
        const { provider, baseUrl, serviceTier, secret } = input;
        const terms = checkTerms(context, {
          ...{ provider, baseUrl: baseUrl ?? undefined, secret: secret ?? undefined },
          serviceTier: serviceTier ?? 'default',
        });
        const id = await store.providerKeys.createProviderKey(org, master, actor, {
          name,
          ...terms,
        });
        return { providerKey: await present(context, id) };
      }),
  },
  payloadOf('providerKeyCreate', {
    providerKey: [ProviderKeyType, 'The key, without its secret.'],
  }),
);

builder.relayMutationField(
  'providerKeyUpdate',
  {
    inputFields: (t) => ({
      providerKeyId: t.field(KEY),
      provider: t.string({ description: 'Whose key it is; as it is unless given.' }),
      baseUrl: t.string({ description: 'Where calls go; as it is unless given.' }),
      serviceTier: t.string({
        description: `The tier of calls that ask for none, of ${TIERS}; as it is unless given.`,
      }),
      secret: t.string({
        description: `${SECRET} Always given: a stored secret never follows to another host.`,
      }),
    }),
  },
  {
    action: 'provider_key.update',
    description:
      'Replaces a provider key: its secret, and with it its provider, URL or tier. Where all of them are the same, nothing changes.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, master, store }) => {
        const key = await store.providerKeys.readProviderKey(org, input.providerKeyId);
        if (!key) throw notFound('providerKeyId');
        const provider = input.provider ?? key.provider;
        const kept = provider === key.provider && key.baseUrl !== '' ? key.baseUrl : undefined;
        const terms = checkTerms(context, {
          ...{ provider, baseUrl: input.baseUrl ?? kept, secret: input.secret ?? undefined },
          serviceTier: input.serviceTier ?? key.serviceTier,
        });
        const changed = await store.providerKeys.replaceProviderKey(org, master, actor, key, terms);
        return { providerKey: await present(context, key.id), changed };
      }),
  },
  payloadOf('providerKeyUpdate', {
    providerKey: [ProviderKeyType, 'The key as it is now, without its secret.'],
    changed: ['Boolean', 'Whether there was anything to change.'],
  }),
);

builder.relayMutationField(
  'providerKeyDelete',
  { inputFields: (t) => ({ providerKeyId: t.field(KEY) }) },
  {
    action: 'provider_key.delete',
    description:
      'Deletes a provider key; calls that would go out with it are refused from then on.',
    resolve: (_root, { input: { providerKeyId } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const key = await present(context, providerKeyId);
        if (!(await store.providerKeys.deleteProviderKey(org, actor, key))) {
          throw notFound('providerKeyId');
        }
        return { deletedId: providerKeyId };
      }),
  },
  payloadOf('providerKeyDelete', { deletedId: ['ProviderKeyID', 'The id that was deleted.'] }),
);
