/** Sign-in: the identity provider of the org. */

import { judgeUrl } from '../address.ts';
import { clientIdSchema, clientSecretSchema, domainsSchema, MAX_ISSUER_CHARS } from '../sign-in.ts';
import { builder } from './builder.ts';
import type { Context, OidcSettings } from './context.ts';
import { notFound, UserError } from './errors.ts';
import { parseInput } from './input.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

const SignInConfigType = builder.objectRef<OidcSettings>('SignInConfig');

const READ = { action: 'sign_in.read', nullable: true } as const;

builder.objectType(SignInConfigType, {
  description: 'How the org signs in through its identity provider (OpenID Connect).',
  fields: (t) => ({
    issuer: t.exposeString('issuer', { ...READ, description: 'The provider’s issuer.' }),
    clientId: t.exposeString('clientId', {
      ...READ,
      description: 'What the provider calls Rungate; its secret is never shown.',
    }),
    domains: t.exposeStringList('domains', {
      ...READ,
      description: 'The domains of the addresses that the provider may speak for.',
    }),
    redirectUri: t.string({
      ...READ,
      description: 'Where the provider is to send people back to.',
      resolve: (_config, _args, { publicUrl }) => `${publicUrl}/sign-in/oidc/callback`,
    }),
  }),
});

builder.queryField('signInConfig', (t) =>
  t.field({
    ...{ type: SignInConfigType, action: 'sign_in.read', nullable: true },
    description: 'How the org signs in; null without an identity provider.',
    resolve: (_root, _args, { org, store }) => store.signin.readOidc(org),
  }),
);

function checkIssuer({ egressAllow }: Context, issuer: string): string {
  const isShort = issuer.length <= MAX_ISSUER_CHARS && !issuer.includes('?');
  const wrong = isShort ? judgeUrl(issuer, egressAllow) : 'must be a short URL without a query';
  if (wrong) throw new UserError('INVALID', ['issuer'], `The issuer ${wrong}.`);
  return issuer;
}

builder.relayMutationField(
  'signInConfigSet',
  {
    inputFields: (t) => ({
      issuer: t.string({ required: true, description: 'The provider’s issuer, by https.' }),
      clientId: t.string({ required: true, description: 'What the provider calls Rungate.' }),
      clientSecret: t.string({
        description: 'The secret beside it; kept unless given, which takes the same issuer.',
      }),
      domains: t.stringList({
        required: true,
        description: 'The domains of the addresses that the provider may speak for.',
      }),
    }),
  },
  {
    action: 'sign_in.update',
    description: 'Sets the identity provider that the members sign in through.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, master, store, now }) => {
        const { issuer, clientId, clientSecret, domains } = input;
        const secret = clientSecret ?? undefined;
        await store.signin.putOidc(
          org,
          master,
          actor,
          {
            issuer: checkIssuer(context, issuer),
            clientId: parseInput(clientIdSchema, clientId, 'clientId'),
            secret: parseInput(clientSecretSchema.optional(), secret, 'clientSecret'),
            domains: parseInput(domainsSchema, domains, 'domains'),
          },
          now,
        );
        return { config: await store.signin.readOidc(org) };
      }),
  },
  payloadOf('signInConfigSet', { config: [SignInConfigType, 'How the org signs in now.'] }),
);

builder.relayMutationField(
  'signInConfigDelete',
  {
    inputFields: (t) => ({
      issuer: t.string({ required: true, description: 'The provider’s issuer, to confirm.' }),
    }),
  },
  {
    action: 'sign_in.update',
    description: 'Takes the identity provider away; members sign in by mail.',
    resolve: (_root, { input: { issuer } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        if (!(await store.signin.deleteOidc(org, actor, issuer))) throw notFound('issuer');
        return { issuer };
      }),
  },
  payloadOf('signInConfigDelete', {
    issuer: ['String', 'The issuer that nobody signs in through any more.'],
  }),
);
