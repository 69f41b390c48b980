/** Who may do what at the admin API: every operation and field by every role and kind of credential. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { join } from 'node:path';
import { getNamedType, isNonNullType, isObjectType } from 'graphql';
import { ADMIN_ACTIONS, type AdminAction, actionsOf, ROLES, type Role } from '../schema/roles.ts';
import {
  actionOf,
  documentOf,
  makeArguments,
  NOTHING,
  OBJECT_TYPES,
  OPERATIONS,
  type Operation,
} from './graphql.ts';
import { finish } from './process.ts';
import {
  type Answer,
  type Asker,
  bearer,
  bySession,
  makeAskers,
  makeWorld,
  tokenOf,
  type World,
} from './world.ts';

let world: World;
let askers: readonly Asker[];
let guarded: readonly Guarded[];

/** How many fields a way may have. */
const MAX_STEPS = 6;

beforeAll(async () => {
  world = await makeWorld();
  askers = await makeAskers(world, world.own);
  guarded = guardedOn(await findWays(bearer(world.own.adminToken)));
  await world.keep();
});

afterAll(() => world?.clear());

/** With ids that nothing has, so that what is allowed changes as little as can be. */
function requestOf(operation: Operation) {
  const given = makeArguments(operation.field, NOTHING);
  const isObject = isObjectType(getNamedType(operation.field.type));
  return [documentOf(operation, given, isObject ? ' { __typename }' : ''), given] as const;
}

const allows = ({ actions }: Asker, { action }: Operation) =>
  action === 'public' || actions.has(action);

/** What the server made of a cell, as the grid has it. */
function verdictOf(answer: Answer, { name }: Operation): string {
  if (answer.status !== 200) return `refused ${answer.status === 429 ? 401 : answer.status}`;
  const refused = answer.errors.find(({ extensions }) => extensions?.code === 'FORBIDDEN');
  if (!refused) return 'allowed';
  expect(refused.path).toEqual([name]);
  expect(answer.data?.[name] ?? null).toBeNull();
  return `forbidden ${refused.extensions?.action}`;
}

function expected(asker: Asker, operation: Operation): string {
  if (asker.kind === 'agent token') return 'refused 403';
  if (asker.role === null) return 'refused 401';
  return allows(asker, operation) ? 'allowed' : `forbidden ${operation.action}`;
}

describe('an operation', () => {
  test('declares an action of the table, or that it is public', () => {
    for (const { name, action } of OPERATIONS) {
      const isKnown = action === 'public' || ADMIN_ACTIONS.includes(action);
      expect({ name, action, isKnown }).toEqual({ name, action, isKnown: true });
    }
  });

  test('that changes something is never allowed to viewers, but for what concerns themselves', () => {
    const theirs = OPERATIONS.filter(({ kind }) => kind === 'mutation')
      .filter(({ action }) => action !== 'public' && actionsOf('viewer').includes(action))
      .map(({ action }) => action);
    expect(theirs.filter((action) => action !== 'policy.simulate')).toEqual([]);
  });

  test.each(OPERATIONS.map((operation) => [operation.name, operation] as const))(
    '%s is allowed to exactly those that the table of roles allows it to',
    async (_, operation) => {
      const [document, given] = requestOf(operation);
      for (const asker of askers) {
        const answer = await world.ask(asker.credential, document, given);
        const who = `${asker.role} by ${asker.kind}`;
        const verdict = verdictOf(answer, operation);
        expect({ who, verdict }).toEqual({ who, verdict: expected(asker, operation) });
      }
      if (operation.kind === 'mutation') await world.restore();
    },
  );

  test('that is refused changes nothing and is on the audit trail, if it would change something', async () => {
    const viewer = askers.find(({ role, kind }) => role === 'viewer' && kind === 'session')!;
    const refused = OPERATIONS.filter(({ kind }) => kind === 'mutation').filter(
      (operation) => !allows(viewer, operation),
    );
    for (const operation of refused) {
      const [document, given] = requestOf(operation);
      const before = await world.dump(world.own.org);
      await world.ask(viewer.credential, document, given);
      const after = await world.dump(world.own.org);
      expect(changesOf(before, after)).toEqual(['audit_entries']);
      const entries = JSON.parse(after.get('audit_entries')!) as Record<string, unknown>[];
      const last = entries.reduce((one, other) =>
        Number(one.seq) > Number(other.seq) ? one : other,
      );
      expect(last).toMatchObject({
        ...{ action: operation.action, target: operation.name, outcome: 'refused' },
      });
    }
    expect(refused.length).toBeGreaterThan(0);
  });
});

function changesOf(before: ReadonlyMap<string, string>, after: ReadonlyMap<string, string>) {
  return [...after.keys()].filter((table) => before.get(table) !== after.get(table));
}

/** The fields on the way from the query type to an object of a type, with the actions they take. */
interface Way {
  readonly head: string;
  readonly tail: string;
  readonly actions: readonly AdminAction[];
  readonly path: readonly string[];
}

const isBare = ({ args }: Operation['field']) =>
  args.every((arg) => !isNonNullType(arg.type) || arg.defaultValue !== undefined);

/** The ways onwards from a type: by each of its fields that leads to objects without being asked. */
function waysOnwards(name: string, way: Way): (readonly [string, Way])[] {
  const fields =
    name === 'Query'
      ? OPERATIONS.filter(({ kind }) => kind === 'query').map(({ field }) => field)
      : Object.values(OBJECT_TYPES.find((type) => type.name === name)?.getFields() ?? {});
  return fields
    .filter((field) => isObjectType(getNamedType(field.type)) && isBare(field))
    .map((field) => {
      const action = actionOf(field);
      const onwards = {
        head: `${way.head} ${field.name} {`,
        tail: `} ${way.tail}`,
        actions: action === 'public' ? way.actions : [...way.actions, action],
        path: [...way.path, field.name],
      };
      return [getNamedType(field.type).name, onwards] as const;
    });
}

/** A way to each type, to an object that is there if any way leads to one. */
async function findWays(credential: Asker['credential']): Promise<Map<string, Way>> {
  const ways = new Map<string, Way>();
  const found = new Set<string>();
  const queue: (readonly [string, Way])[] = [
    ['Query', { head: '{', tail: '}', actions: [], path: [] }],
  ];
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
    for (const [name, way] of waysOnwards(...next)) {
      if (found.has(name) || way.path.length > MAX_STEPS) continue;
      const { data } = await world.ask(credential, `${way.head} __typename ${way.tail}`);
      const isThere = valuesAt(data, way.path).some((value) => value !== null);
      if (!isThere && ways.has(name)) continue;
      ways.set(name, way);
      if (isThere) {
        found.add(name);
        queue.push([name, way]);
      }
    }
  }
  return ways;
}

/** Every value at a path, through lists. */
function valuesAt(value: unknown, path: readonly string[]): unknown[] {
  if (Array.isArray(value)) return value.flatMap((each) => valuesAt(each, path));
  const [name, ...rest] = path;
  if (name === undefined) return [value];
  if (typeof value !== 'object' || value === null) return [];
  return valuesAt((value as Record<string, unknown>)[name], rest);
}

/** A guarded field of an object that a query can reach, which takes no argument that must be given. */
interface Guarded {
  readonly type: (typeof OBJECT_TYPES)[number];
  readonly field: Operation['field'];
  readonly action: AdminAction;
  readonly way: Way;
}

function guardedOn(ways: ReadonlyMap<string, Way>): Guarded[] {
  return OBJECT_TYPES.flatMap((type) =>
    Object.values(type.getFields())
      .filter((field) => actionOf(field) !== 'public' && isBare(field) && ways.has(type.name))
      .map((field) => {
        return { type, field, action: actionOf(field) as AdminAction, way: ways.get(type.name)! };
      }),
  );
}

async function readField(credential: Asker['credential'], cell: Guarded) {
  const { field, way } = cell;
  const inside = isObjectType(getNamedType(field.type)) ? ' { __typename }' : '';
  const answer = await world.ask(credential, `${way.head} ${field.name}${inside} ${way.tail}`);
  const place = [...way.path, field.name].join('.');
  const named = (path: readonly (string | number)[] = []) =>
    path.filter((part) => typeof part === 'string').join('.');
  const isRefused = answer.errors.some(
    (error) => error.extensions?.code === 'FORBIDDEN' && named(error.path) === place,
  );
  return { answer, isRefused, values: valuesAt(answer.data, [...way.path, field.name]) };
}

describe('a field of an object', () => {
  test('that is guarded may be null, so that a refusal leaves its parent', () => {
    for (const { type, field } of guarded) {
      const isNullable = !isNonNullType(field.type);
      expect({ field: `${type.name}.${field.name}`, isNullable }).toMatchObject({
        isNullable: true,
      });
    }
  });

  test('is null with an error for whom the table does not allow it, and read by everyone else', async () => {
    let cells = 0;
    const unreached = new Set(guarded.map(({ type }) => type.name));
    for (const cell of guarded) {
      for (const asker of askers.filter(({ role }) => role !== null)) {
        if (!cell.way.actions.every((action) => asker.actions.has(action))) continue;
        const { isRefused, values, answer } = await readField(asker.credential, cell);
        const where = `${cell.type.name}.${cell.field.name} for ${asker.role} by ${asker.kind}`;
        const may = asker.actions.has(cell.action);
        if (values.length > 0) unreached.delete(cell.type.name);
        if (values.length > 0)
          expect({ where, isRefused, text: isRefused === may ? answer.text : '' }).toEqual({
            where,
            isRefused: !may,
            text: '',
          });
        if (!may) expect(values.every((value) => value === null)).toBe(true);
        cells++;
      }
    }
    console.log(
      `${cells} cells of ${guarded.length} fields; no object of: ${[...unreached].join(', ') || '-'}`,
    );
    expect(cells).toBeGreaterThan(guarded.length);
  });

  test('is refused to a token of every action but its own', async () => {
    const byAction = new Map<AdminAction, Asker['credential']>();
    for (const cell of guarded.filter(({ action, way }) => !way.actions.includes(action))) {
      const others = ADMIN_ACTIONS.filter((action) => action !== cell.action);
      const credential = byAction.get(cell.action) ?? (await tokenOf(world.own, 'owner', others));
      byAction.set(cell.action, credential);
      const { isRefused, values } = await readField(credential, cell);
      const where = `${cell.type.name}.${cell.field.name}`;
      if (values.length > 0) expect({ where, isRefused }).toEqual({ where, isRefused: true });
    }
  });
});

describe('the printed table', () => {
  test('is what the server does, cell by cell', async () => {
    const main = join(import.meta.dir, '../web/cli/main.ts');
    const run = Bun.spawn([process.execPath, main, 'roles'], { stdout: 'pipe', stderr: 'pipe' });
    const lines = (await finish(run)).stdout.trim().split('\n').slice(1);
    const printed = new Map(
      lines.map((line) => {
        const [action = '', ...cells] = line.split(/ {2,}/);
        return [action, Object.fromEntries(ROLES.map((role, at) => [role, cells[at] === 'yes']))];
      }),
    );
    expect([...printed.keys()]).toEqual([...ADMIN_ACTIONS]);
    for (const role of ROLES) {
      const { credential } = await bySession(world.own, role);
      const { data } = await world.ask(credential, '{ me { actions } }');
      const told = new Set((data as { me: { actions: string[] } }).me.actions);
      const cells = [...printed].map(([action, roles]) => [action, roles[role] ?? null]);
      expect(cells).toEqual([...printed.keys()].map((action) => [action, told.has(action)]));
      await expectServed(role, credential, (action) => printed.get(action)?.[role] ?? false);
    }
  });
});

async function expectServed(
  role: Role,
  credential: Asker['credential'],
  isPrinted: (action: AdminAction) => boolean,
): Promise<void> {
  for (const operation of OPERATIONS.filter(({ kind }) => kind === 'query')) {
    if (operation.action === 'public') continue;
    const verdict = verdictOf(await world.ask(credential, ...requestOf(operation)), operation);
    const { name, action } = operation;
    expect({ role, name, isAllowed: verdict === 'allowed' }).toEqual({
      role,
      name,
      isAllowed: isPrinted(action),
    });
  }
}
