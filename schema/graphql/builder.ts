/** The schema's builder: scalars, authorization and connections, the same for every noun. */

import SchemaBuilder from '@pothos/core';
import ComplexityPlugin from '@pothos/plugin-complexity';
import RelayPlugin from '@pothos/plugin-relay';
import ScopeAuthPlugin from '@pothos/plugin-scope-auth';
import { GraphQLError } from 'graphql';
import './access.ts';
import type {
  AgentId,
  AlertRuleId,
  DeliveryId,
  EventId,
  GateId,
  InvitationId,
  MemberId,
  Noun,
  OrgId,
  PolicyId,
  PolicyVersionId,
  ProviderKeyId,
  RunId,
  SessionId,
  StepId,
  TokenId,
  UserId,
  WebhookId,
} from '../ids.ts';
import type { Nanos } from '../money.ts';
import type { AdminAction } from '../roles.ts';
import type { Context } from './context.ts';
import { forbidden } from './errors.ts';

/** The TypeScript type of each scalar; ids of two nouns are two scalars. */
export interface Scalars {
  readonly AgentID: AgentId;
  readonly AlertRuleID: AlertRuleId;
  readonly AuditEntryID: string;
  readonly DeliveryID: DeliveryId;
  readonly EventID: EventId;
  readonly GateID: GateId;
  readonly InvitationID: InvitationId;
  readonly MemberID: MemberId;
  readonly OrgID: OrgId;
  readonly PolicyID: PolicyId;
  readonly PolicyVersionID: PolicyVersionId;
  readonly ProviderKeyID: ProviderKeyId;
  readonly RunID: RunId;
  readonly SessionID: SessionId;
  readonly StepID: StepId;
  readonly TokenID: TokenId;
  readonly UserID: UserId;
  readonly WebhookID: WebhookId;
  /** Unix milliseconds inside, RFC 3339 outside. */
  readonly DateTime: number;
  /** Integer nano-dollars. */
  readonly Nanos: Nanos;
  /** Nano-dollars inside, a decimal string of dollars outside. */
  readonly Dollars: Nanos;
  /** An integer up to 2^53. */
  readonly Count: number;
  readonly JSON: unknown;
}

/** The nouns whose ids are scalars, by the scalar's name. */
export const ID_SCALARS = {
  AgentID: 'agent',
  AlertRuleID: 'alertRule',
  AuditEntryID: 'audit',
  DeliveryID: 'delivery',
  EventID: 'event',
  GateID: 'gate',
  InvitationID: 'invitation',
  MemberID: 'member',
  OrgID: 'org',
  PolicyID: 'policy',
  PolicyVersionID: 'policyVersion',
  ProviderKeyID: 'providerKey',
  RunID: 'run',
  SessionID: 'session',
  StepID: 'step',
  TokenID: 'token',
  UserID: 'user',
  WebhookID: 'webhook',
} as const satisfies Partial<Record<keyof Scalars, Noun>>;

type ScalarTypes = {
  [Name in keyof Scalars]: { Input: Scalars[Name]; Output: Scalars[Name] };
};

/** What one query may ask for. */
const MAX_COMPLEXITY = 20_000;
const MAX_DEPTH = 14;
const MAX_BREADTH = 300;

const PUBLIC = { action: 'public' } as const;

/** Builds every type; a noun's file adds its own to it. */
export const builder = new SchemaBuilder<{
  Context: Context;
  Scalars: ScalarTypes & { ID: { Input: string; Output: string } };
  AuthScopes: { may: AdminAction };
  DefaultAuthStrategy: 'all';
}>({
  plugins: ['access', ScopeAuthPlugin, ComplexityPlugin, RelayPlugin],
  complexity: {
    defaultComplexity: 1,
    // A list that is no connection is short; a connection multiplies by its own page size.
    defaultListMultiplier: 5,
    limit: { complexity: MAX_COMPLEXITY, depth: MAX_DEPTH, breadth: MAX_BREADTH },
    complexityError: () =>
      new GraphQLError('The query is too large; ask for less at once.', {
        extensions: { code: 'QUERY_TOO_LARGE' },
      }),
  },
  scopeAuth: {
    defaultStrategy: 'all',
    treatErrorsAsUnauthorized: true,
    authScopes: ({ viewer }) => ({ may: (action) => viewer.actions.has(action) }),
    unauthorizedError: (_parent, context, info) => forbidden(context, info),
  },
  relay: {
    clientMutationId: 'omit',
    cursorType: 'String',
    nodeQueryOptions: false,
    nodesQueryOptions: false,
    nodesOnConnection: {
      ...{ ...PUBLIC, complexity: { field: 0, multiplier: 1 } },
      description: 'The nodes of the edges.',
    },
    clientMutationIdFieldOptions: PUBLIC,
    // Their connection has been multiplied already.
    nodesFieldOptions: {
      ...{ ...PUBLIC, complexity: { field: 0, multiplier: 1 } },
      description: 'The nodes of the edges.',
    },
    edgesFieldOptions: {
      ...{ ...PUBLIC, complexity: { field: 0, multiplier: 1 } },
      description: 'The nodes with their places in the list.',
    },
    nodeFieldOptions: { ...PUBLIC, description: 'The node.' },
    cursorFieldOptions: { ...PUBLIC, description: 'Its place in the list.' },
    pageInfoFieldOptions: { ...PUBLIC, description: 'Where the page stands in the list.' },
    hasNextPageFieldOptions: { ...PUBLIC, description: 'Whether more follows.' },
    hasPreviousPageFieldOptions: { ...PUBLIC, description: 'Whether there is more before it.' },
    startCursorFieldOptions: { ...PUBLIC, description: 'The place of its first node.' },
    endCursorFieldOptions: { ...PUBLIC, description: 'The place of its last node.' },
    firstArgOptions: { description: 'The most nodes from the beginning: 1 to 100.' },
    lastArgOptions: { description: 'The most nodes from the end: 1 to 100.' },
    afterArgOptions: { description: 'Only those behind this cursor.' },
    beforeArgOptions: { description: 'Only those before this cursor.' },
    mutationInputArgOptions: { description: 'What it is to do.' },
    defaultConnectionTypeOptions: { description: 'A page of a list.' },
    defaultEdgeTypeOptions: { description: 'A node with its place in the list.' },
    defaultMutationInputTypeOptions: { description: 'What a mutation is to do.' },
    pageInfoTypeOptions: { description: 'Where a page stands in its list.' },
  },
});

builder.queryType({ description: 'What can be read.' });
builder.mutationType({ description: 'What can be changed.' });
