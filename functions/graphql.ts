/** The admin API: GraphQL at `/graphql`, for admin tokens and for the sessions of people. */

import { blockFieldSuggestionsPlugin } from '@escape.tech/graphql-armor-block-field-suggestions';
import { maxAliasesPlugin } from '@escape.tech/graphql-armor-max-aliases';
import { maxDepthPlugin } from '@escape.tech/graphql-armor-max-depth';
import { maxDirectivesPlugin } from '@escape.tech/graphql-armor-max-directives';
import { maxTokensPlugin } from '@escape.tech/graphql-armor-max-tokens';
import { type ExecutionResult, GraphQLError, graphql, type ValidationRule } from 'graphql';
import { createYoga, type Plugin } from 'graphql-yoga';
import { type Actor, auditEntry } from '../db/audit.ts';
import { DatabaseError } from '../db/client.ts';
import { InvalidCursor } from '../db/page.ts';
import { openSigner, readPublicKeys } from '../db/signing.ts';
import { type ErrorCode, Refusal } from '../schema/errors.ts';
import type { Context } from '../schema/graphql/context.ts';
import { UserError, type UserErrorCode } from '../schema/graphql/errors.ts';
import { schema } from '../schema/graphql/index.ts';
import { type Admin, identifyAdmin } from './admin.ts';
import { respond, respondJson } from './edge.ts';
import { sendInvitation } from './invitations.ts';
import { baseUrl } from './links.ts';
import { requestIdOf } from './proxy/authenticate.ts';
import { readBody, strictBody } from './proxy/body.ts';
import { HOLDS_NUL, refusalHeaders } from './refuse.ts';
import type { Services } from './services.ts';
import { loadersFor, store } from './store.ts';
import { takeTurns } from './turns.ts';

/** What a request and its document may amount to. */
const BODY_LIMITS = { maxEncodedBytes: 256 * 1024, maxDecodedBytes: 256 * 1024 };
const MAX_TOKENS = 2_000;
const MAX_DEPTH = 14;
const MAX_ALIASES = 30;
const MAX_DIRECTIVES = 30;
const MAX_REPEATS = 20;

/** A request's own context, beside what is the same for all. */
interface ServerContext {
  readonly context: Context;
}

/** Makes the endpoint's handler. */
export function makeGraphql(services: Services): (request: Request) => Promise<Response> {
  const yoga = createYoga<ServerContext, Context>({
    schema,
    graphqlEndpoint: '/graphql',
    context: ({ context }) => context,
    graphiql: false,
    landingPage: false,
    batching: false,
    multipart: false,
    cors: false,
    logging: false,
    maskedErrors: { maskError: (error) => mask(services, error) },
    plugins: [
      maxTokensPlugin({ n: MAX_TOKENS, exposeLimits: false }),
      maxDepthPlugin({ n: MAX_DEPTH, exposeLimits: false }),
      maxAliasesPlugin({ n: MAX_ALIASES, exposeLimits: false, allowList: [] }),
      maxDirectivesPlugin({ n: MAX_DIRECTIVES, exposeLimits: false }),
      blockFieldSuggestionsPlugin(),
      validateWith(limitRepeats),
      ...(services.config.isIntrospected ? [] : [validateWith(refuseIntrospection)]),
    ],
  });
  // A server reads for several at once, and far away.
  const isFile = services.config.database.url.startsWith('file:');
  const answer = async (request: Request) => {
    const db = isFile ? takeTurns(services.db) : services.db;
    const admin = await identifyAdmin({ ...services, db }, request);
    refuseOtherKinds(request);
    const context = contextOf(services, admin);
    const body = await readBody(request, BODY_LIMITS, services.stopping.signal);
    // A key that repeats would have a document saved that lacks what its author reads in it.
    strictBody(body, BODY_KEYS);
    const { headers, url } = request;
    const response = await yoga.fetch(
      new Request(url, { method: 'POST', headers: plain(headers), body }),
      { context },
    );
    await recordRefused(context);
    return respond(await response.text(), response.status, {
      'content-type': response.headers.get('content-type') ?? 'application/json',
      'cache-control': 'no-store',
      'x-request-id': requestIdOf(request),
    });
  };
  return (request) => answer(request).catch((error) => tell(request, error));
}

/** What is refused of a whole request, as errors of GraphQL call it. */
const WHOLE: Partial<Record<ErrorCode, string>> = {
  rate_limited: 'RATE_LIMITED',
  invalid_body: 'INVALID',
};

/** Who asks too often or unclearly is told so as GraphQL tells errors; its clients read nothing else. */
function tell(request: Request, error: unknown): Response {
  const code = error instanceof Refusal ? WHOLE[error.code] : undefined;
  if (!code || !(error instanceof Refusal)) throw error;
  const { rule, retryAfterS } = error.detail;
  const body = { errors: [{ message: error.message, extensions: { code, rule, retryAfterS } }] };
  return respondJson(body, error.status, refusalHeaders(request, error));
}

const BODY_KEYS: ReadonlySet<string> = new Set(['query', 'variables', 'operationName']);

/** Only JSON by POST: a form or a link on another site can send neither with a session's cookie. */
function refuseOtherKinds(request: Request): void {
  const type = request.headers.get('content-type')?.split(';')[0]?.trim().toLowerCase();
  if (request.method === 'POST' && type === 'application/json') return;
  throw new Refusal('invalid_request', 'Send GraphQL as POST with content-type application/json.', {
    field: request.method === 'POST' ? 'content-type' : 'method',
  });
}

function plain(headers: Headers): Record<string, string> {
  const accept = headers.get('accept') ?? 'application/json';
  return { 'content-type': 'application/json', accept };
}

/** Whoever asks: an admin, or the operator at the command line. */
export interface Asker extends Omit<Admin, 'actor'> {
  readonly actor: Actor;
}

/** What the API needs of a process that need not be a server. */
export type Means = Pick<
  Services,
  'catalogues' | 'config' | 'db' | 'log' | 'mailer' | 'master' | 'now'
>;

/**
 * Runs a document in this process, with the resolvers of the endpoint but without HTTP and the
 * bounds on what strangers send.
 *
 * @returns what a client would read.
 * @throws whatever a resolver threw that is not the document's fault, as it stands.
 */
export async function runDocument(
  means: Means,
  asker: Asker,
  source: string,
  variableValues: Record<string, unknown>,
): Promise<ExecutionResult> {
  const contextValue = contextOf(means, asker);
  const { data, errors } = await graphql({ schema, source, variableValues, contextValue });
  await recordRefused(contextValue);
  for (const { originalError } of errors ?? []) {
    if (originalError && !(originalError instanceof GraphQLError) && !explain(originalError)) {
      throw originalError;
    }
  }
  const told = errors && { errors: errors.map((error) => mask(means, error)) };
  return JSON.parse(JSON.stringify({ data, ...told })) as ExecutionResult;
}

function contextOf(services: Means, { org, actor, viewer }: Asker): Context {
  const { config, db, master } = services;
  return {
    signing: {
      signer: () => openSigner(db, master),
      publicKeys: () => readPublicKeys(db, master),
    },
    ...{ org, actor, viewer, store, master },
    loaders: loadersFor(org, master, services.now()),
    letters: {
      isOpen: services.mailer.route !== 'none',
      invite: (invitation, secret) => sendInvitation(services, org, invitation, secret),
    },
    egressAllow: config.egressAllow,
    retentionDays: config.retentionDays,
    publicUrl: baseUrl(config),
    catalogue: services.catalogues.inForce(services.now()),
    now: services.now(),
    explain,
    refused: [],
  };
}

const CODES: Partial<Record<ErrorCode, UserErrorCode>> = {
  invalid_body: 'INVALID',
  invalid_request: 'INVALID',
  not_found: 'NOT_FOUND',
  permission_denied: 'FORBIDDEN',
};

/** What the store refuses because of a mutation's input, as the payload tells it. */
function explain(error: unknown): UserError | undefined {
  if (error instanceof UserError) return error;
  if (error instanceof InvalidCursor) return new UserError('INVALID', ['after'], error.message);
  if (error instanceof DatabaseError && error.conflict) {
    return new UserError('CONFLICT', ['input'], 'The name is taken, or it was changed meanwhile.');
  }
  if (error instanceof DatabaseError && error.isUnfit) {
    return new UserError('INVALID', ['input'], HOLDS_NUL);
  }
  const code = error instanceof Refusal ? CODES[error.code] : undefined;
  if (!code || !(error instanceof Refusal)) return undefined;
  return new UserError(code, [error.detail.field ?? 'input'], error.message);
}

/** Nothing internal is named in an error: what was not meant for the caller is logged instead. */
function mask({ log }: Pick<Services, 'log'>, error: unknown): GraphQLError {
  const original = error instanceof GraphQLError ? error.originalError : error;
  if (error instanceof GraphQLError && !original) return error;
  const explained = explain(original);
  if (explained) {
    const { code, field, message } = explained;
    return new GraphQLError(message, { ...located(error), extensions: { code, field } });
  }
  if (error instanceof GraphQLError && original instanceof GraphQLError) return error;
  log.error('a GraphQL field failed', { error: original });
  const message = 'Rungate failed on this field; its log tells why.';
  return new GraphQLError(message, { ...located(error), extensions: { code: 'INTERNAL' } });
}

function located(error: unknown): { path?: readonly (string | number)[] } {
  const path = error instanceof GraphQLError ? error.path : undefined;
  return path ? { path } : {};
}

/** What was refused is on the audit trail before the caller hears of it. */
async function recordRefused({ org, actor, refused }: Context): Promise<void> {
  if (refused.length === 0) return;
  await org.write(
    ...refused.map(({ field, action }) =>
      auditEntry(org, actor, action, field, undefined, { outcome: 'refused' }),
    ),
  );
}

function validateWith(rule: ValidationRule): Plugin {
  return {
    onValidate({ addValidationRule }) {
      addValidationRule(rule);
    },
  };
}

/** Merging one field that is asked for many times costs the square of how often. */
const limitRepeats: ValidationRule = (context) => ({
  SelectionSet({ selections }) {
    const counts = new Map<string, number>();
    for (const selection of selections) {
      if (selection.kind !== 'Field') continue;
      const name = selection.alias?.value ?? selection.name.value;
      const count = (counts.get(name) ?? 0) + 1;
      counts.set(name, count);
      if (count === MAX_REPEATS) {
        context.reportError(new GraphQLError('A field is repeated too often.'));
      }
    }
  },
});

const refuseIntrospection: ValidationRule = (context) => ({
  Field({ name }) {
    if (name.value !== '__schema' && name.value !== '__type') return;
    context.reportError(new GraphQLError('Introspection is off here.'));
  },
});
