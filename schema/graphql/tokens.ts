/** Tokens of agents and of admins: read, made, changed, rotated, revoked. Never their text again. */

import { z } from 'zod';
import type { TokenId } from '../ids.ts';
import { titleSchema } from '../names.ts';
import { type AdminAction, isAdminAction } from '../roles.ts';
import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { Context, StoredToken } from './context.ts';
import { notFound, UserError } from './errors.ts';
import { parseInput } from './input.ts';
import { attempt, payloadOf } from './payload.ts';
import './scalars.ts';

const READ = { action: 'token.read', nullable: true } as const;
const TOKEN = { type: 'TokenID', required: true, description: 'The token.' } as const;
const MAX_OVERLAP_S = 30 * 86_400;

/** A token as people see it. */
export const TokenType = builder.objectRef<StoredToken>('Token');

/** Whose token it is. */
const TokenKind = builder.enumType('TokenKind', {
  description: 'What a token is for.',
  values: {
    AGENT: { value: 'agent', description: 'Calls of an agent through the proxy.' },
    ADMIN: { value: 'admin', description: 'This API, in the name of a member.' },
  } as const,
});

builder.objectType(TokenType, {
  description: 'A token as it can be shown: its text is known to whoever it was given to alone.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'TokenID', action: 'public', nullable: false },
      description: 'Its id.',
    }),
    kind: t.expose('kind', { ...{ ...READ, type: TokenKind }, description: 'What it is for.' }),
    name: t.exposeString('name', { ...READ, description: 'What people call it.' }),
    lastFour: t.exposeString('lastFour', { ...READ, description: 'The end of its text.' }),
    actions: t.exposeStringList('actions', { ...READ, description: 'What it was granted.' }),
    effectiveActions: t.exposeStringList('effective', {
      ...READ,
      description: 'What of it holds now: an admin token never does more than its member.',
    }),
    policies: t.exposeStringList('policies', {
      ...READ,
      description:
        "Of an agent's token: the policies that its runs may be under, by name or as name/v2; null for all that the agent may use.",
    }),
    createdBy: t.exposeString('createdBy', {
      ...READ,
      description: 'The id of the member whose it is or who made it for an agent, or operator.',
    }),
    createdAt: t.expose('createdAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was made.',
    }),
    expiresAt: t.expose('expiresAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it ends; null for one that stays.',
    }),
    revokedAt: t.expose('revokedAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was ended.',
    }),
    lastUsedAt: t.expose('lastUsedAt', {
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was last used, to the hour.',
    }),
  }),
});

const TokenFilter = builder.inputType('TokenFilter', {
  description: 'Which tokens are listed; all of what is given must hold.',
  fields: (t) => ({
    kind: t.field({ type: TokenKind, description: 'Of agents, or of admins.' }),
    isActive: t.boolean({ description: 'Only those that are neither revoked nor expired.' }),
  }),
});

builder.queryFields((t) => ({
  tokens: t.connection({
    type: TokenType,
    action: 'token.read',
    description: 'The tokens of the org, the newest first.',
    complexity: costOf,
    args: { filter: t.arg({ type: TokenFilter, description: 'Which of them.' }) },
    resolve: (_root, { filter, ...page }, { org, store, now }) => {
      const activeAt = filter?.isActive ? now : null;
      return connect(page, (window) =>
        store.tokens.listTokens(org, { kind: filter?.kind, activeAt }, window),
      );
    },
  }),
  token: t.field({
    ...{ ...READ, type: TokenType },
    description: 'The token of an id.',
    args: { id: t.arg(TOKEN) },
    resolve: (_root, { id }, { loaders }) => loaders.tokens.load(id),
  }),
}));

const adminActions = z
  .array(
    z.custom<AdminAction>(
      (text) => typeof text === 'string' && isAdminAction(text),
      'is no action',
    ),
  )
  .min(1, 'must name at least one action')
  .max(200);

/** When a token ends, in Unix milliseconds; null for one that stays. */
export function checkExpiry({ now }: Context, expiresAt: number | null | undefined): number | null {
  if (expiresAt !== null && expiresAt !== undefined && expiresAt <= now) {
    throw new UserError('INVALID', ['expiresAt'], 'The token would have ended already.');
  }
  return expiresAt ?? null;
}

async function present({ org, store }: Context, id: TokenId): Promise<StoredToken> {
  const token = await store.tokens.readStoredToken(org, id);
  if (!token) throw notFound('tokenId');
  return token;
}

builder.relayMutationField(
  'tokenCreate',
  {
    inputFields: (t) => ({
      name: t.string({ required: true, description: 'What people call it, on one line.' }),
      actions: t.stringList({
        required: true,
        description: "What it may do, of the viewer's own actions.",
      }),
      expiresAt: t.field({ type: 'DateTime', description: 'When it ends; never unless given.' }),
    }),
  },
  {
    action: 'token.create',
    description: 'Makes an admin token of the viewer and shows its text this once.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, store, viewer }) => {
        const wanted = {
          name: parseInput(titleSchema, input.name, 'name'),
          actions: parseInput(adminActions, input.actions, 'actions'),
          expiresAt: checkExpiry(context, input.expiresAt),
        };
        if (!viewer.memberId)
          throw new UserError('FORBIDDEN', ['input'], 'Only a member has tokens.');
        const made = await store.tokens.createAdminToken(org, actor, viewer.memberId, wanted);
        return { token: await present(context, made.id), secret: made.token };
      }),
  },
  payloadOf('tokenCreate', {
    token: [TokenType, 'The token.'],
    secret: ['String', 'Its text, which is shown this once.'],
  }),
);

builder.relayMutationField(
  'tokenUpdate',
  {
    inputFields: (t) => ({
      tokenId: t.field({ type: 'TokenID', required: true, description: 'The admin token.' }),
      name: t.string({ description: 'What people call it; as it is unless given.' }),
      actions: t.stringList({
        description: "What it may do, of the viewer's own actions; as it is unless given.",
      }),
    }),
  },
  {
    action: 'token.update',
    description: 'Renames an admin token or changes what it may do.',
    resolve: (_root, { input }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const before = await present(context, input.tokenId);
        await store.tokens.updateAdminToken(org, actor, input.tokenId, {
          name: parseInput(titleSchema, input.name ?? before.name ?? before.lastFour, 'name'),
          actions: input.actions
            ? parseInput(adminActions, input.actions, 'actions')
            : before.actions.filter(isAdminAction),
        });
        return { token: await present(context, input.tokenId) };
      }),
  },
  payloadOf('tokenUpdate', { token: [TokenType, 'The token as it is now.'] }),
);

builder.relayMutationField(
  'tokenRotate',
  {
    inputFields: (t) => ({
      tokenId: t.field({ type: 'TokenID', required: true, description: 'The present token.' }),
      overlapS: t.int({
        description: 'Seconds that the present one still works, up to 30 days; 0 unless given.',
      }),
    }),
  },
  {
    action: 'token.rotate',
    description:
      'Replaces a token by a new one with the same owner, actions, policies and end, and shows its text this once.',
    resolve: (_root, { input: { tokenId, overlapS } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        const seconds = parseInput(overlap, overlapS ?? 0, 'overlapS');
        const made = await store.tokens.rotateToken(org, actor, tokenId, seconds * 1_000);
        return { token: await present(context, made.id), secret: made.token };
      }),
  },
  payloadOf('tokenRotate', {
    token: [TokenType, 'The new token.'],
    secret: ['String', 'Its text, which is shown this once.'],
  }),
);

/** Seconds that a token which is replaced still works. */
export const overlap = z.int().min(0).max(MAX_OVERLAP_S);

builder.relayMutationField(
  'tokenRevoke',
  { inputFields: (t) => ({ tokenId: t.field(TOKEN) }) },
  {
    action: 'token.revoke',
    description: 'Ends a token from the next request on; one that has ended stays so.',
    resolve: (_root, { input: { tokenId } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        await store.tokens.revokeToken(org, actor, tokenId);
        return { token: await present(context, tokenId) };
      }),
  },
  payloadOf('tokenRevoke', { token: [TokenType, 'The token as it is now.'] }),
);
