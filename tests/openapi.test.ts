/** The description of the REST routes: it is what they are, and what they answer. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { describeApi, OPERATIONS } from '../functions/openapi.ts';
import { type Receiver, startReceiver } from './receiver.ts';
import { type Deployment, deploy } from './rungate.ts';

setDefaultTimeout(60_000);

const SCHEDULER_SECRET = 'a-secret-of-the-scheduler-0123456789';
const POLICY = {
  tools: {
    deny: ['drop_table'],
    requireApproval: [{ tool: 'issue_refund', expiresAfterS: 3_600 }],
  },
};

interface Described {
  readonly security: readonly Record<string, readonly string[]>[];
  readonly parameters: readonly { name: string; in: string; required: boolean }[];
  readonly requestBody?: { content: Record<string, { schema: object }> };
  readonly responses: Record<string, { content: Record<string, { schema: object }> }>;
}

interface Document {
  readonly openapi: string;
  readonly servers: readonly { url: string }[];
  readonly paths: Record<string, Record<string, Described>>;
  readonly components: { schemas: Record<string, object>; securitySchemes: object };
}

let rungate: Deployment;
let receiver: Receiver;
let described: Document;
beforeAll(async () => {
  receiver = startReceiver();
  rungate = await deploy({
    policy: POLICY,
    env: { RUNGATE_SCHEDULER_SECRET: SCHEDULER_SECRET },
  });
  described = (await (await fetch(`${rungate.url}/openapi.json`)).json()) as Document;
});
afterAll(async () => {
  await rungate.stop();
  await receiver.stop();
});

const TOKENS = {
  agent: () => rungate.token,
  admin: () => rungate.adminToken,
  scheduler: () => SCHEDULER_SECRET,
};

/** A schema of the document as one that checks, with what it refers to. */
function checker(schema: object): z.ZodType {
  const $defs = described.components.schemas;
  const text = JSON.stringify({ ...schema, $defs });
  return z.fromJSONSchema(JSON.parse(text.replaceAll('#/components/schemas/', '#/$defs/')));
}

const nameOf = (method: string, path: string) => `${method} ${path}`;

interface Asked {
  readonly id?: string;
  readonly query?: string;
  readonly body?: unknown;
  readonly headers?: Record<string, string>;
  readonly token?: string;
}

/** Calls a route as the document has it, and holds the answer against the document. */
async function ask(method: 'get' | 'post', path: string, asked: Asked = {}) {
  const operation = described.paths[path]![method]!;
  const by = Object.keys(operation.security[0] ?? {})[0] as keyof typeof TOKENS | undefined;
  const token = asked.token ?? (by && TOKENS[by]());
  const to = `${path.replace('{id}', encodeURIComponent(asked.id ?? ''))}${asked.query ?? ''}`;
  const response = await fetch(`${rungate.url}${to}`, {
    method: method.toUpperCase(),
    headers: { ...(token && { authorization: `Bearer ${token}` }), ...asked.headers },
    ...(asked.body !== undefined && { body: JSON.stringify(asked.body) }),
  });
  const answer = operation.responses[response.status];
  const type = response.headers.get('content-type')?.split(';')[0] ?? '';
  expect([nameOf(method, path), response.status, Object.keys(answer?.content ?? {})]).toEqual([
    nameOf(method, path),
    response.status,
    expect.arrayContaining([type]),
  ]);
  const text = await response.text();
  if (type !== 'application/json') return { status: response.status, value: text as unknown };
  const value = JSON.parse(text) as Record<string, unknown>;
  const { schema } = answer!.content[type]!;
  if (!('type' in schema)) checker(schema).parse(value);
  return { status: response.status, value };
}

describe('the document', () => {
  test('describes every REST route of the application, and no other', () => {
    const source = readFileSync(join(import.meta.dir, '../functions/app.ts'), 'utf8');
    const routes = [...source.matchAll(/app\.(get|post)\(\s*'(\/[^']+)'/g)]
      .map(([, method, path]) => nameOf(method!, path!.replaceAll(/:(\w+)/g, '{$1}')))
      .filter((route) => / \/(v1|api|schemas|scheduled|openapi)[/.]/.test(route));
    expect(routes.length).toBeGreaterThan(10);
    const documented = OPERATIONS.map(({ method, path }) => nameOf(method, path));
    expect(documented.toSorted()).toEqual(routes.toSorted());
    const paths = Object.entries(described.paths);
    const published = paths.flatMap(([path, by]) =>
      Object.keys(by).map((method) => nameOf(method, path)),
    );
    expect(published.toSorted()).toEqual(routes.toSorted());
  });

  test('is OpenAPI 3.1 in which every reference leads somewhere and every parameter is declared', () => {
    expect(described.openapi).toStartWith('3.1.');
    const references = [...JSON.stringify(described).matchAll(/"\$ref":"([^"]+)"/g)];
    expect(references.length).toBeGreaterThan(20);
    for (const [, reference] of references) {
      const steps = reference!.replace(/^#\//, '').split('/');
      let at: unknown = described;
      for (const step of steps) at = (at as Record<string, unknown>)?.[step];
      expect([reference, typeof at]).toEqual([reference, 'object']);
    }
    const ids = Object.values(described.paths).flatMap((by) => Object.values(by));
    const operationIds = ids.map(
      (each) => (each as unknown as { operationId: string }).operationId,
    );
    expect(new Set(operationIds).size).toBe(operationIds.length);
    for (const [path, by] of Object.entries(described.paths)) {
      for (const { parameters } of Object.values(by)) {
        const inPath = parameters.filter((each) => each.in === 'path' && each.required);
        expect(inPath.map(({ name }) => `{${name}}`)).toEqual(path.match(/\{\w+\}/g) ?? []);
      }
    }
  });

  test('names where the deployment is reached', () => {
    const { servers } = describeApi('https://gate.example.com') as Document;
    expect(servers).toEqual([{ url: 'https://gate.example.com' }]);
    expect(described.servers).toEqual([{ url: '/' }]);
  });

  test('has a body’s schema that takes what the route takes, and no more', () => {
    const bodies = Object.entries(described.paths).flatMap(([path, by]) =>
      Object.values(by).flatMap(({ requestBody }) => (requestBody ? [{ path, requestBody }] : [])),
    );
    const good: Record<string, object> = {
      '/v1/runs/{id}/steps': { kind: 'tool_call', name: 'f', outcome: 'ok', latencyMs: 3 },
      '/v1/runs/{id}/tools': { name: 'f', arguments: { a: 1 } },
      '/api/webhooks/{id}/rotate-secret': { graceS: 60 },
    };
    expect(bodies.map(({ path }) => path).toSorted()).toEqual(Object.keys(good).toSorted());
    for (const { path, requestBody } of bodies) {
      const schema = checker(requestBody.content['application/json']!.schema);
      expect(schema.safeParse(good[path]).success).toBe(true);
      expect(schema.safeParse({ ...good[path], other: 1 }).success).toBe(false);
    }
  });
});

describe('what the routes answer is what the document says', () => {
  const report = { kind: 'tool_call', name: 'search', outcome: 'ok', latencyMs: 12 };

  test('for a run, its trail and its end', async () => {
    const headers = { authorization: `Bearer ${rungate.token}`, 'x-rungate-run-id': 'told' };
    const model = { model: 'demo-small', messages: [{ role: 'user', content: 'Hi' }] };
    const init = { method: 'POST', body: JSON.stringify({ ...model, max_tokens: 5 }) };
    await (
      await fetch(`${rungate.url}/v1/chat/completions`, {
        ...init,
        headers: { ...headers, 'content-type': 'application/json' },
      })
    ).text();
    const reported = { id: 'told', body: { ...report, costUsd: '0.01', detail: { hits: 3 } } };
    const keyed = { ...reported, headers: { 'idempotency-key': 'one' } };
    expect((await ask('post', '/v1/runs/{id}/steps', keyed)).status).toBe(201);
    expect((await ask('post', '/v1/runs/{id}/steps', keyed)).status).toBe(200);
    expect((await ask('get', '/v1/runs/{id}', { id: 'told' })).value).toMatchObject({
      status: 'open',
    });
    const paged = await ask('get', '/v1/runs/{id}/steps', { id: 'told', query: '?limit=1' });
    expect((paged.value as { next: string }).next).toStartWith('stp_');
    const done = await ask('post', '/v1/runs/{id}/complete', { id: 'told' });
    expect(done.value).toMatchObject({ status: 'completed' });
    await ask('get', '/v1/runs/{id}/steps', { id: 'told' });
  });

  test('for questions about tools, and their gates', async () => {
    for (const [name, decision] of [
      ['search', 'allow'],
      ['drop_table', 'deny'],
      ['issue_refund', 'ask'],
    ]) {
      const body = { name, arguments: { amount: 5 } };
      const { value } = await ask('post', '/v1/runs/{id}/tools', { id: 'asked', body });
      const { gate, ...verdict } = value as { decision: string; gate?: { id: string } };
      expect(verdict.decision).toBe(decision!);
      if (gate) await ask('get', '/v1/gates/{id}', { id: gate.id });
    }
    await ask('get', '/v1/runs/{id}/steps', { id: 'asked' });
  });

  test('for a secret that is rotated, the audit trail, a tick and the schemas', async () => {
    const added = await rungate.cli(
      'webhooks',
      'add',
      `${receiver.url}/`,
      '--org',
      'acme',
      '--json',
    );
    const { id } = JSON.parse(added.stdout) as { id: string };
    for (const body of [undefined, { graceS: 0 }]) {
      await ask('post', '/api/webhooks/{id}/rotate-secret', { id, body });
    }
    for (const query of ['', '?format=jsonl', '?format=csv']) {
      expect((await ask('get', '/api/audit/export', { query })).status).toBe(200);
    }
    await ask('get', '/api/export');
    await ask('post', '/scheduled/tick');
    for (const path of ['/schemas/policy.json', '/schemas/events.json', '/openapi.json']) {
      expect((await ask('get', path)).status).toBe(200);
    }
  });

  test('for refusals of every route, in either form', async () => {
    const dialects = [{}, { 'anthropic-version': '2023-06-01' }];
    for (const { method, path, by, body, query } of OPERATIONS) {
      if (!by) continue;
      for (const headers of dialects) {
        const refused = await ask(method, path, { id: 'none', token: 'rg_none', headers });
        expect([path, refused.status]).toEqual([path, 401]);
        if (by === 'agent') {
          const other = { id: 'none', token: rungate.adminToken, headers };
          expect([path, (await ask(method, path, other)).status]).toEqual([path, 403]);
        }
        if (body) {
          const wrong = { id: 'none', body: { graceS: 'x' }, headers };
          expect([path, (await ask(method, path, wrong)).status]).toEqual([path, 400]);
        }
        const mistaken = { id: 'none', query: '?limit=x&format=x&bodies=x', headers };
        if (query)
          expect((await ask(method, path, mistaken)).status).toBe(path.includes('{') ? 404 : 400);
      }
    }
  });
});
