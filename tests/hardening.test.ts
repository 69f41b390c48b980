/** The admin API under abuse: what is too much or meant to mislead is refused early and says nothing. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { gzipSync } from 'node:zlib';
import SchemaBuilder from '@pothos/core';
import ScopeAuthPlugin from '@pothos/plugin-scope-auth';
import { graphql as execute, getNamedType, isNonNullType, isObjectType } from 'graphql';
import type { Statement } from '../db/client.ts';
import { readEvents } from '../db/events.ts';
import { readGates } from '../db/gates.ts';
import { readRuns } from '../db/runs.ts';
import {
  documentOf,
  isConnection,
  makeArguments,
  NOTHING,
  OPERATIONS,
  selectionOf,
} from './graphql.ts';
import { bearer, bySession, type Credential, fill, makeWorld, type World } from './world.ts';

let world: World;
let owner: Credential;
let closed: World;

beforeAll(async () => {
  world = await makeWorld();
  closed = await makeWorld({ RUNGATE_INTROSPECTION: 'off' });
  owner = bearer(world.own.adminToken);
  await fill(world, world.own, 10);
});

afterAll(async () => {
  await world?.clear();
  await closed?.clear();
});

/** Words that only the inside knows. */
const INTERNAL =
  /sqlite|select \*|insert into|update |org_id|libsql|node_modules|\.ts\b|\bat \S+ \(|stack|pothos|armor|limit of \d|\d{2,} (tokens|aliases|levels)|exceed/i;

async function post(body: string | Uint8Array<ArrayBuffer>, headers: Record<string, string> = {}) {
  const init = {
    method: 'POST',
    body,
    headers: { 'content-type': 'application/json', ...owner, ...headers },
  };
  const response = await world.send('/graphql', init);
  return { status: response.status, text: await response.text() };
}

/** Asks, and counts the statements that it took beside those that find the caller. */
async function statementsOf(query: string, variables: object = {}, of = world) {
  const credential = bearer(of.own.adminToken);
  const idle = await count(of, () => of.ask(credential, '{ me { role } }'));
  const asked = await count(of, () => of.ask(credential, query, variables));
  return { statements: asked.statements - idle.statements, answer: asked.result };
}

async function count<T>({ watch }: World, act: () => Promise<T>) {
  let statements = 0;
  watch.seen = () => {
    statements++;
  };
  const result = await act();
  watch.seen = undefined;
  return { statements, result };
}

const nest = (depth: number) => {
  const [open, close] = ['agents { nodes { policy { agents { nodes { id ', '} } } } } '];
  return `{ ${open.repeat(depth)}${close.repeat(depth)} }`;
};
const repeat = (times: number, make: (at: number) => string) =>
  Array.from({ length: times }, (_, at) => make(at)).join(' ');

test('a text with a NUL is told to be its author’s fault, wherever it is looked up or kept', async () => {
  const asking = [
    'query ($text: String!) { agentByName(name: $text) { id } }',
    'query ($text: String!) { policyByName(name: $text) { id } }',
    'query ($text: String!) { providerKeyByName(name: $text) { id } }',
    'mutation ($text: String!) { webhookCreate(input: { url: "https://hooks.example.com", events: ["run.started"], description: $text }) { errors { code } } }',
  ];
  for (const query of asking) {
    const { status, text } = await post(JSON.stringify({ query, variables: { text: 'a\0b' } }));
    expect([status, text]).toEqual([200, expect.stringContaining('"code":"INVALID"')]);
    expect(text).not.toMatch(/INTERNAL|"id":/);
  }
});

test('what is looked up by ids is found by them, whatever else its org has', async () => {
  const { org } = world.own;
  const looked: Statement[] = [];
  world.watch.seen = (statement) => void looked.push(statement);
  await Promise.all([readRuns(org, []), readEvents(org, []), readGates(org, [])]);
  world.watch.seen = undefined;
  const explaining = await world.ground.connect();
  const plans: string[] = [];
  for (const { sql, args } of looked) {
    const [first] = await explaining.read(`explain query plan ${sql}`, args);
    plans.push(String(first?.detail));
  }
  expect(plans.sort()).toEqual([
    'SEARCH events USING PRIMARY KEY (id=?)',
    'SEARCH g USING PRIMARY KEY (id=?)',
    'SEARCH runs USING PRIMARY KEY (id=?)',
  ]);
});

/** Documents that are too much, by what of them is. */
const ABUSES: Readonly<Record<string, string>> = {
  deep: nest(12),
  'deep through a fragment':
    `${nest(1)} fragment F on Agent { ${'policy { agents { nodes { '.repeat(10)} id ${'} } } '.repeat(10)} }`.replace(
      ' id ',
      ' ...F ',
    ),
  wide: `{ ${repeat(400, (at) => `a${at}: agents { nodes { id } }`)} }`,
  aliased: `{ ${repeat(60, (at) => `a${at}: me { role }`)} }`,
  'of repeated fields': `{ me { ${repeat(500, () => 'role')} } }`,
  'of repeated roots': `{ ${repeat(300, () => 'me { role }')} }`,
  'of repeated fields in fragments': `{ me { ${repeat(60, () => '...F')} } } fragment F on Viewer { ${repeat(15, () => 'role')} }`,
  huge: `{ me { role } } # ${'x'.repeat(100)}\n${'query A { me { role } } '.repeat(1_000)}`,
  'of directives': `{ me { role ${'@include(if: true) '.repeat(60)} } }`,
  'of unknown directives': `{ me { role ${'@x '.repeat(200)} } }`,
  'of a fragment that contains itself': '{ me { ...A } } fragment A on Viewer { ...A }',
  'of fragments that contain each other':
    '{ me { ...A } } fragment A on Viewer { ...B } fragment B on Viewer { ...A }',
  'of many lists to sort': `{ ${repeat(12, (at) => `a${at}: runs(first: 5, orderBy: { field: SPENT, direction: DESC }) { nodes { id } }`)} }`,
  'of many nodes':
    '{ agents(first: 100) { nodes { tokens(first: 100) { nodes { id } } policy { agents(first: 100) { nodes { id } } } } } }',
};

describe('a query that is', () => {
  test.each(Object.entries(ABUSES))('%s is refused without a read', async (name, query) => {
    const { statements, answer } = await statementsOf(query);
    const data = Object.values(answer.data ?? {}).filter((value) => value !== null);
    expect({ name, data, statements }).toEqual({ name, data: [], statements: 0 });
    expect(answer.errors.length).toBeGreaterThan(0);
    expect(answer.errors.length).toBeLessThan(60);
    expect(answer.text).not.toMatch(INTERNAL);
  });

  test('of many lists has calls take their turn between its reads', async () => {
    const query = `{ ${repeat(9, (at) => `a${at}: runs(first: ${at + 1}) { nodes { id } }`)} }`;
    let turn = 0;
    let isOver = false;
    const pass = () => {
      turn++;
      if (!isOver) setImmediate(pass);
    };
    pass();
    const turns: number[] = [];
    world.watch.seen = ({ sql }) => void (/ from runs /.test(sql) && turns.push(turn));
    const { errors } = await world.ask(owner, query);
    world.watch.seen = undefined;
    isOver = true;
    expect(errors).toEqual([]);
    expect(turns.length).toBe(9);
    expect(new Set(turns).size).toBe(9);
  });

  test('nested once too deeply is refused, and no deeper ones cost more', async () => {
    for (const depth of [6, 50, 120]) {
      const { answer } = await statementsOf(nest(depth));
      expect(answer.data).toBeNull();
    }
  });

  test('of variables that are bombs is refused', async () => {
    let bomb: unknown = 'x';
    for (let at = 0; at < 20_000; at++) bomb = [bomb];
    const query =
      'query ($input: PolicyCreateInput!) { policyCreate(input: $input) { errors { code } } }';
    const text = `{"query":${JSON.stringify(query)},"variables":{"input":{"name":"x","document":${'['.repeat(20_000)}${']'.repeat(20_000)}}}}`;
    const { status, text: answer } = await post(text);
    expect(status).toBeLessThan(500);
    expect(answer).not.toMatch(INTERNAL);
    expect(answer).not.toContain('"errors":[]');
  });
});

/** Ways to ask that browsers have for other sites, or that are no JSON. */
const QUERY = '{ me { role } }';
const FORM = { 'content-type': 'application/x-www-form-urlencoded' };

describe('a request', () => {
  test.each([
    ['GET', { method: 'GET' }, `?query=${encodeURIComponent(QUERY)}`],
    [
      'GET with a mutation',
      { method: 'GET' },
      `?query=${encodeURIComponent('mutation { orgDelete }')}`,
    ],
    ['HEAD', { method: 'HEAD' }, `?query=${encodeURIComponent(QUERY)}`],
    ['PUT', { method: 'PUT', body: JSON.stringify({ query: QUERY }) }, ''],
    ['a form', { method: 'POST', headers: FORM, body: `query=${encodeURIComponent(QUERY)}` }, ''],
    [
      'text',
      {
        method: 'POST',
        headers: { 'content-type': 'text/plain' },
        body: JSON.stringify({ query: QUERY }),
      },
      '',
    ],
    [
      'GraphQL itself',
      { method: 'POST', headers: { 'content-type': 'application/graphql' }, body: QUERY },
      '',
    ],
    [
      'multipart',
      {
        method: 'POST',
        headers: { 'content-type': 'multipart/form-data; boundary=x' },
        body: `--x\r\ncontent-disposition: form-data; name="operations"\r\n\r\n${JSON.stringify({ query: QUERY })}\r\n--x--`,
      },
      '',
    ],
    [
      'no type',
      { method: 'POST', headers: { 'content-type': '' }, body: JSON.stringify({ query: QUERY }) },
      '',
    ],
    [
      'a type that only begins like JSON',
      {
        method: 'POST',
        headers: { 'content-type': 'application/jsonx' },
        body: JSON.stringify({ query: QUERY }),
      },
      '',
    ],
  ] as const)('by %s is refused', async (_, init, search) => {
    const session = (await bySession(world.own, 'owner')).credential;
    for (const credential of [owner, session]) {
      const headers = { ...('headers' in init ? init.headers : {}), ...credential };
      const response = await world.send(`/graphql${search}`, { ...init, headers });
      expect([400, 404, 405, 415]).toContain(response.status);
      expect(await response.text()).not.toContain('"role"');
    }
  });

  test.each([
    ['is no JSON', '{"query":'],
    ['is empty', ''],
    ['is null', 'null'],
    ['is a number', '7'],
    ['is text', '"{ me { role } }"'],
    ['is a batch', JSON.stringify([{ query: QUERY }, { query: QUERY }])],
    ['repeats a key', `{"query":"{ me { role } }","query":${JSON.stringify(QUERY)}}`],
    [
      'repeats a key of a variable',
      `{"query":${JSON.stringify(QUERY)},"variables":{"d":{"a":1,"a":2}}}`,
    ],
    ['has a key in another case', `{"query":${JSON.stringify(QUERY)},"Variables":{}}`],
    ['has no query', '{}'],
    ['has a query that is no text', '{"query":{"a":1}}'],
    ['has a query that is empty', '{"query":""}'],
    ['has variables that are text', JSON.stringify({ query: QUERY, variables: 'x' })],
    ['has variables that are a list', JSON.stringify({ query: QUERY, variables: [1] })],
    ['has an operation name that is no text', JSON.stringify({ query: QUERY, operationName: {} })],
    [
      'names no operation of two',
      JSON.stringify({ query: 'query A { me { role } } query B { me { role } }' }),
    ],
    [
      'names an operation that is not there',
      JSON.stringify({ query: `query A ${QUERY}`, operationName: 'B' }),
    ],
    [
      'names one of the prototype',
      JSON.stringify({ query: `query A ${QUERY}`, operationName: '__proto__' }),
    ],
    ['subscribes', JSON.stringify({ query: 'subscription { me { role } }' })],
    [
      'is more than is read',
      JSON.stringify({ query: QUERY, variables: { x: 'x'.repeat(300_000) } }),
    ],
    [
      'asks for a field of the prototype',
      JSON.stringify({ query: '{ __proto__ { x } constructor toString hasOwnProperty }' }),
    ],
  ])('that %s is refused', async (_, body) => {
    const { status, text } = await post(body);
    expect(status).toBeGreaterThanOrEqual(200);
    expect(status).toBeLessThan(500);
    expect(text).not.toContain('"role"');
    expect(text).toMatch(/"errors?"/);
    expect(text).not.toMatch(INTERNAL);
  });

  test('that is small packed and large unpacked is refused', async () => {
    const packed = gzipSync(JSON.stringify({ query: QUERY, x: 'x'.repeat(5_000_000) }));
    const { status, text } = await post(new Uint8Array(packed), { 'content-encoding': 'gzip' });
    expect(status).toBeGreaterThanOrEqual(400);
    expect(status).toBeLessThan(500);
    expect(text).not.toContain('"role"');
  });

  test('whose variables are named like a prototype changes no object', async () => {
    const body = `{"query":"query ($a: String) { agents(name: $a) { nodes { id } } }","variables":{"__proto__":{"polluted":1},"a":"x","constructor":{"prototype":{"polluted":1}}}}`;
    const { status } = await post(body);
    expect(status).toBe(200);
    expect(({} as Record<string, unknown>).polluted).toBeUndefined();
  });
});

describe('an error', () => {
  test('suggests no field, argument or type', async () => {
    for (const query of [
      '{ agentz { nodes { id } } }',
      '{ agents(nam: "x") { nodes { id } } }',
      '{ agents { nodes { nam } } }',
      'mutation ($i: AgentSuspendInpu!) { agentSuspend(input: $i) { errors { code } } }',
      '{ me { ... on Viewe { role } } }',
    ]) {
      const { text } = await world.ask(owner, query);
      expect(text).toContain('"errors"');
      expect(text).not.toMatch(/did you mean/i);
      expect(text).not.toContain('agentSuspend"');
    }
  });

  test('of the database names nothing of the inside', async () => {
    world.watch.rewrite = (sql) =>
      /from agents/.test(sql) ? 'select * from no_such_table_here' : sql;
    const { text, errors } = await world.ask(owner, '{ agents { nodes { name } } }');
    world.watch.rewrite = undefined;
    expect(errors[0]?.extensions?.code).toBe('INTERNAL');
    expect(text).not.toMatch(/no_such_table|sqlite|SQL/i);
  });
});

describe('introspection', () => {
  const FULL = '{ __schema { types { name fields { name } } } }';
  test('is answered when it is on', async () => {
    const { data } = await world.ask(owner, FULL);
    expect(data).not.toBeNull();
  });

  test.each([
    FULL,
    '{ __type(name: "Agent") { name } }',
    '{ me { role } x: __schema { types { name } } }',
    'query { ...F } fragment F on Query { __schema { types { name } } }',
    '{ ... { __type(name: "Agent") { name } } }',
  ])('is refused when it is off: %s', async (query) => {
    const { data, text } = await closed.ask(bearer(closed.own.adminToken), query);
    expect(data).toBeNull();
    expect(text).not.toContain('"types"');
  });

  test('leaves __typename when it is off', async () => {
    const { data } = await closed.ask(
      bearer(closed.own.adminToken),
      '{ __typename me { __typename } }',
    );
    expect(data).toEqual({ __typename: 'Query', me: { __typename: 'Viewer' } });
  });
});

describe('the guard of fields', () => {
  test('does not let a field be built that declares nothing', async () => {
    const { builder } = await import('../schema/graphql/builder.ts');
    const Broken = builder.objectRef<object>('Broken');
    const declare = (options: object) => {
      builder.objectType(Broken, {
        fields: (t) => ({ bare: t.string({ resolve: () => 'open', ...options } as never) }),
      });
      return () => builder.toSchema();
    };
    expect(declare({ description: 'x' })).toThrow('declares no action');
  });

  test('runs nothing of a mutation that is refused, nor of the ones after it', async () => {
    const viewer = (await bySession(world.own, 'viewer')).credential;
    const before = await world.dump(world.own.org);
    const name = 'never-made';
    const query =
      'mutation ($input: PolicyCreateInput!) { a: policyCreate(input: $input) { policy { id } errors { code } } b: policyCreate(input: $input) { policy { id } errors { code } } }';
    const { data, errors } = await world.ask(viewer, query, { input: { name, document: {} } });
    expect([data, errors.length]).toEqual([{ a: null, b: null }, 2]);
    const after = await world.dump(world.own.org);
    const changed = [...after.keys()].filter((table) => before.get(table) !== after.get(table));
    expect(changed).toEqual(['audit_entries']);
  });

  test('refuses a field under an alias, in a fragment, behind a directive and beside __typename', async () => {
    const viewer = (await bySession(world.own, 'viewer')).credential;
    for (const query of [
      '{ x: tokens { nodes { id } } }',
      '{ ...F } fragment F on Query { tokens { nodes { id } } }',
      '{ ... on Query { tokens { nodes { id } } } }',
      '{ tokens @include(if: true) { nodes { id } } }',
      '{ tokens { __typename } }',
      'query A { tokens { edges { __typename } } }',
    ]) {
      const { data, errors } = await world.ask(viewer, query);
      expect(Object.values(data ?? { none: null })).toEqual([null]);
      expect(errors[0]?.extensions?.code).toBe('FORBIDDEN');
    }
  });
});

/** What the authorization plugin does by itself: why each field declares its action here. */
describe('the authorization plugin by itself', () => {
  async function resultOf(
    scopes: object | undefined,
    strategy: 'all' | 'any',
    scope: () => unknown = () => false,
  ) {
    const builder = new SchemaBuilder<{ AuthScopes: { may: string }; DefaultAuthStrategy: 'all' }>({
      plugins: [ScopeAuthPlugin],
      scopeAuth: {
        defaultStrategy: strategy as 'all',
        treatErrorsAsUnauthorized: true,
        authScopes: () => ({ may: scope as () => boolean }),
      },
    });
    builder.queryType({
      fields: (t) => ({
        x: t.string({
          nullable: true,
          ...(scopes ? { authScopes: scopes } : {}),
          resolve: () => 'open',
        } as never),
      }),
    });
    const { data } = await execute({
      schema: builder.toSchema(),
      source: '{ x }',
      contextValue: {},
    });
    return data?.x;
  }

  test('leaves a field without scopes open, and one with none of them too', async () => {
    expect(await resultOf(undefined, 'all')).toBe('open');
    expect(await resultOf({}, 'all')).toBe('open');
  });

  test('refuses where a scope is asked for, be its answer false, undefined or an error', async () => {
    const fail = () => {
      throw new Error('x');
    };
    for (const scope of [() => false, () => undefined, fail]) {
      expect(await resultOf({ may: 'x' }, 'all', scope)).toBeNull();
    }
  });
});

/** Each one's reading is an entry of its own on the audit trail, and counts as much in a query. */
const AUDITED = new Set(['StepBody']);

describe('reading a list', () => {
  const connections = OPERATIONS.filter(
    ({ kind, field }) => kind === 'query' && isConnection(field.type),
  );

  test.each(connections.map((operation) => [operation.name, operation] as const))(
    'of %s takes as many statements for many rows as for two',
    async (_, operation) => {
      const given = makeArguments(operation.field, NOTHING);
      const ask = async (first: number, depth: number) => {
        const reach = { depth, first: 2, without: AUDITED };
        const selection = selectionOf(operation.field.type, reach);
        const variables = { ...given, first };
        return await statementsOf(documentOf(operation, variables, selection), variables);
      };
      const isTooLarge = (await ask(12, 2)).answer.text.includes('QUERY_TOO_LARGE');
      const depth = isTooLarge ? 1 : 2;
      const [few, many] = [await ask(4, depth), await ask(12, depth)];
      expect([few.answer.errors, many.answer.errors]).toEqual([[], []]);
      // What a node refers to is read together, and not at all where nothing is referred to.
      expect(many.statements).toBeLessThanOrEqual(few.statements + 2);
      expect(many.statements).toBeLessThanOrEqual(20);
    },
  );

  test('needs no argument that has to be given', () => {
    for (const { field } of connections) {
      expect(
        field.args
          .filter(({ type, defaultValue }) => isNonNullType(type) && defaultValue === undefined)
          .map(({ name }) => name),
      ).toEqual([]);
      expect(isObjectType(getNamedType(field.type))).toBe(true);
    }
  });
});
