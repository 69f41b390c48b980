/** The description of the REST routes (OpenAPI 3.1), made from the schemas that the routes use. */

import { z } from 'zod';
import {
  errorSchema,
  gateSchema,
  reportedSchema,
  rotatedSchema,
  runSchema,
  stepSchema,
  stepsSchema,
  tickSchema,
  verdictSchema,
} from '../schema/api.ts';
import { ERRORS, type ErrorCode } from '../schema/errors.ts';
import { rotationSchema } from '../schema/webhook.ts';
import { stepsQuery } from './api.ts';
import { auditQuery } from './audit.ts';
import { respond } from './edge.ts';
import { exportQuery } from './export.ts';
import type { Services } from './services.ts';
import { asking, reporting } from './tools.ts';

/** What a route answers on success: a schema of JSON, or text of other types. */
type Answer = z.ZodType | { readonly types: readonly string[]; readonly about: string };

/** A route as it is described. */
export interface Operation {
  readonly method: 'get' | 'post';
  /** With its parameters in braces. */
  readonly path: string;
  readonly id: string;
  readonly summary: string;
  /** Whose token it takes, and which action; neither for what is public. */
  readonly by?: 'agent' | 'admin' | 'scheduler';
  readonly action?: string;
  readonly query?: z.ZodObject;
  /** Header fields of the request, by name, with what they mean. */
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: z.ZodType;
  readonly isBodyOptional?: boolean;
  readonly answers: Readonly<Record<number, Answer>>;
  readonly refusals: readonly ErrorCode[];
}

const KNOWN: readonly ErrorCode[] = ['invalid_token', 'permission_denied', 'rate_limited'];
const AGENT: readonly ErrorCode[] = [...KNOWN, 'agent_suspended', 'not_found'];
const BODY: readonly ErrorCode[] = ['invalid_body', 'invalid_request', 'body_too_large'];
const CLOSED: readonly ErrorCode[] = ['run_closed', 'budget_exceeded', 'unavailable'];
const JSON_SCHEMA = { types: ['application/schema+json'], about: 'A JSON Schema (2020-12).' };

/** Every route that is described. */
export const OPERATIONS: readonly Operation[] = [
  {
    ...{ method: 'get', path: '/v1/runs/{id}', id: 'showRun', by: 'agent', action: 'run.read' },
    summary: 'A run of the calling agent: its state and its money.',
    answers: { 200: runSchema },
    refusals: AGENT,
  },
  {
    ...{ method: 'get', path: '/v1/runs/{id}/steps', id: 'showSteps' },
    ...{ by: 'agent', action: 'run.read', query: stepsQuery },
    summary:
      'A page of a run’s trail, in the order that its steps began in; while calls go on side by side, one may yet be written ahead of the last.',
    answers: { 200: stepsSchema },
    refusals: [...AGENT, 'invalid_request'],
  },
  {
    ...{ method: 'post', path: '/v1/runs/{id}/steps', id: 'reportTool' },
    ...{ by: 'agent', action: 'step.report', body: reporting },
    summary: 'Reports what came of a tool that the agent ran itself; its cost counts.',
    headers: { 'Idempotency-Key': 'A report with the same key is the same report.' },
    answers: { 200: reportedSchema, 201: reportedSchema },
    refusals: [...AGENT, ...BODY, ...CLOSED],
  },
  {
    ...{ method: 'post', path: '/v1/runs/{id}/tools', id: 'askTool' },
    ...{ by: 'agent', action: 'tool.ask', body: asking },
    summary: 'Asks whether a tool may be run with these arguments.',
    headers: { Prefer: 'wait=N waits for a person’s decision, for N seconds at most.' },
    answers: { 200: verdictSchema },
    refusals: [...AGENT, ...BODY, ...CLOSED],
  },
  {
    ...{ method: 'post', path: '/v1/runs/{id}/complete', id: 'finishRun' },
    ...{ by: 'agent', action: 'run.complete' },
    summary: 'Completes a run for good; doing it again changes nothing and answers the same.',
    answers: { 200: runSchema },
    refusals: AGENT,
  },
  {
    ...{ method: 'get', path: '/v1/gates/{id}', id: 'showGate', by: 'agent', action: 'gate.read' },
    summary: 'How a gate of the calling agent stands.',
    answers: { 200: gateSchema },
    refusals: AGENT,
  },
  {
    ...{ method: 'post', path: '/api/webhooks/{id}/rotate-secret', id: 'rotateSecret' },
    ...{ by: 'admin', action: 'webhook.rotate_secret', body: rotationSchema },
    isBodyOptional: true,
    summary: 'Makes a new secret and shows it this once; the present one signs too for a while.',
    answers: { 200: rotatedSchema },
    refusals: [...KNOWN, ...BODY, 'not_found'],
  },
  {
    ...{ method: 'get', path: '/api/audit/export', id: 'exportAudit' },
    ...{ by: 'admin', action: 'audit.export', query: auditQuery },
    summary: 'The whole audit trail of the org, streamed.',
    answers: {
      200: {
        types: ['application/jsonl', 'text/csv'],
        about: 'A header with keys and checkpoints and then an entry per line; or rows.',
      },
    },
    refusals: [...KNOWN, 'invalid_request'],
  },
  {
    ...{ method: 'get', path: '/api/export', id: 'exportOrg' },
    ...{ by: 'admin', action: 'org.export', query: exportQuery },
    summary: 'Everything that the org owns, streamed.',
    answers: {
      200: {
        types: ['application/x-tar'],
        about: 'JSON lines per table, and at the end a manifest with checksums.',
      },
    },
    refusals: [...KNOWN, 'invalid_request'],
  },
  {
    ...{ method: 'post', path: '/scheduled/tick', id: 'tick', by: 'scheduler' },
    summary: 'Does what is due, once, and reports it.',
    answers: { 200: tickSchema },
    refusals: ['invalid_token', 'not_found'],
  },
  {
    ...{ method: 'get', path: '/schemas/policy.json', id: 'showPolicySchema' },
    summary: 'The schema of a policy’s document.',
    answers: { 200: JSON_SCHEMA },
    refusals: [],
  },
  {
    ...{ method: 'get', path: '/schemas/events.json', id: 'showEventsSchema' },
    summary: 'The schema of every event that webhooks deliver.',
    answers: { 200: JSON_SCHEMA },
    refusals: [],
  },
  {
    ...{ method: 'get', path: '/openapi.json', id: 'showOpenapi' },
    summary: 'This description.',
    answers: { 200: { types: ['application/json'], about: 'OpenAPI 3.1.' } },
    refusals: [],
  },
];

/** Schemas that several routes refer to, by their names. */
const SHARED: Readonly<Record<string, z.ZodType>> = {
  Error: errorSchema,
  Gate: gateSchema,
  Reported: reportedSchema,
  Rotated: rotatedSchema,
  Run: runSchema,
  Step: stepSchema,
  Steps: stepsSchema,
  Tick: tickSchema,
  Verdict: verdictSchema,
};

const refTo = (name: string) => `#/components/schemas/${name}`;

/** The shared schemas as JSON Schema, each referring to the others by name. */
function describeShared(): object {
  const registry = z.registry<{ id: string }>();
  for (const [name, schema] of Object.entries(SHARED)) registry.add(schema, { id: name });
  const { schemas } = z.toJSONSchema(registry, { uri: refTo });
  return Object.fromEntries(Object.entries(schemas).map(([name, schema]) => [name, bare(schema)]));
}

function bare({ $schema: _, $id: __, '~standard': ___, ...schema }: Record<string, unknown>) {
  return schema;
}

/** A schema of what is sent to us. */
function describeInput(schema: z.ZodType): object {
  return bare(z.toJSONSchema(schema, { io: 'input' }));
}

function describeAnswer(answer: Answer): object {
  if (!(answer instanceof z.ZodType)) {
    const content = answer.types.map((type) => [type, { schema: { type: 'string' } }]);
    return { description: answer.about, content: Object.fromEntries(content) };
  }
  const name = Object.keys(SHARED).find((each) => SHARED[each] === answer);
  const schema = { $ref: refTo(name ?? '') };
  return { description: answer.description ?? '', content: { 'application/json': { schema } } };
}

/** The refusals of a route, those of one status together. */
function describeRefusals(codes: readonly ErrorCode[]): object {
  const byStatus = Map.groupBy(codes, (code) => ERRORS[code].status);
  const content = { 'application/json': { schema: { $ref: refTo('Error') } } };
  return Object.fromEntries(
    [...byStatus].map(([status, of]) => [status, { description: of.join(', '), content }]),
  );
}

function describeParameters({ path, query, headers = {} }: Operation): object[] {
  const names = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name);
  const inPath = names.map((name) => ({
    ...{ name, in: 'path', required: true, schema: { type: 'string' } },
    description: path.includes('/runs/') ? 'The run, by its name or its id.' : 'Its id.',
  }));
  const shape = query ? (describeInput(query) as { properties: Record<string, object> }) : null;
  const inQuery = Object.entries(shape?.properties ?? {}).map(([name, schema]) => ({
    ...{ name, in: 'query', required: false, schema },
  }));
  const inHeader = Object.entries(headers).map(([name, description]) => ({
    ...{ name, in: 'header', required: false, schema: { type: 'string' }, description },
  }));
  return [...inPath, ...inQuery, ...inHeader];
}

function describeOperation(operation: Operation): object {
  const { id, summary, by, action, body, isBodyOptional = false, answers, refusals } = operation;
  const succeeded = Object.entries(answers).map(([status, answer]) => [
    status,
    describeAnswer(answer),
  ]);
  return {
    ...{ operationId: id, summary },
    ...(action && { description: `Takes a token with the action \`${action}\`.` }),
    security: by ? [{ [by]: [] }] : [],
    parameters: describeParameters(operation),
    ...(body && {
      requestBody: {
        required: !isBodyOptional,
        content: { 'application/json': { schema: describeInput(body) } },
      },
    }),
    responses: { ...Object.fromEntries(succeeded), ...describeRefusals(refusals) },
  };
}

const bearer = (description: string) => ({ type: 'http', scheme: 'bearer', description });

/**
 * The document that describes {@link OPERATIONS}.
 *
 * @param url Where the deployment is reached; relative to the document itself where it isn't known.
 */
export function describeApi(url: string | undefined): object {
  const byPath = Map.groupBy(OPERATIONS, ({ path }) => path);
  const paths = [...byPath].map(([path, operations]) => [
    path,
    Object.fromEntries(operations.map((each) => [each.method, describeOperation(each)])),
  ]);
  return {
    openapi: '3.1.1',
    info: {
      title: 'Rungate',
      version: '1',
      description:
        'Rungate’s own REST routes. The routes of providers are served as they describe them, and everything an org owns is managed through GraphQL at /graphql.',
    },
    servers: [{ url: url ?? '/' }],
    paths: Object.fromEntries(paths),
    components: {
      schemas: describeShared(),
      securitySchemes: {
        agent: bearer('An agent’s token, rg_agt_…; x-api-key is taken too.'),
        admin: bearer('An admin’s token, rg_adm_…'),
        scheduler: bearer('The secret in RUNGATE_SCHEDULER_SECRET.'),
      },
    },
  };
}

const HEADERS = {
  'content-type': 'application/json',
  'cache-control': 'public, max-age=3600',
  'access-control-allow-origin': '*',
};

const written = new Map<string | undefined, string>();

/** `GET /openapi.json`: made once, since it changes only with the program. */
export function showOpenapi({ config: { publicUrl } }: Services): Response {
  const text = written.get(publicUrl) ?? JSON.stringify(describeApi(publicUrl));
  written.set(publicUrl, text);
  return respond(text, 200, HEADERS);
}
