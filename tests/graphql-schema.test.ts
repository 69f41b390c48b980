/** The printed schema: committed as it is served, documented throughout, and shaped alike everywhere. */

import { describe, expect, test } from 'bun:test';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  getNamedType,
  getNullableType,
  isEnumType,
  isInputObjectType,
  isInterfaceType,
  isListType,
  isNonNullType,
  isObjectType,
  isScalarType,
  printSchema,
} from 'graphql';
import { ID_SCALARS } from '../schema/graphql/builder.ts';
import { schema } from '../schema/graphql/index.ts';
import { actionOf, isConnection, OBJECT_TYPES, OPERATIONS } from './graphql.ts';
import { finish } from './process.ts';

const PRINTED = join(import.meta.dir, '../schema/graphql/schema.graphql');
const HOW = 'print it anew: bun run --silent rungate schema > schema/graphql/schema.graphql';
const BUILT_IN = new Set(['String', 'Int', 'Float', 'Boolean', 'ID']);

const types = Object.values(schema.getTypeMap()).filter(({ name }) => !name.startsWith('__'));

/** Everything that can be described, by its place. */
function* described(): Generator<readonly [string, string | null | undefined]> {
  for (const type of types) {
    if (isScalarType(type) && BUILT_IN.has(type.name)) continue;
    yield [type.name, type.description];
    if (isEnumType(type)) {
      for (const value of type.getValues()) yield [`${type.name}.${value.name}`, value.description];
    }
    if (isInputObjectType(type)) {
      for (const field of Object.values(type.getFields())) {
        yield [`${type.name}.${field.name}`, field.description];
      }
    }
    if (!isObjectType(type) && !isInterfaceType(type)) continue;
    for (const field of Object.values(type.getFields())) {
      yield [`${type.name}.${field.name}`, field.description];
      for (const arg of field.args) {
        yield [`${type.name}.${field.name}(${arg.name})`, arg.description];
      }
    }
  }
}

const fields = OBJECT_TYPES.flatMap((type) =>
  Object.values(type.getFields()).map((field) => ({ type, field })),
);
const mutations = OPERATIONS.filter(({ kind }) => kind === 'mutation');

describe('the schema', () => {
  test('is committed as it is served', () => {
    const committed = existsSync(PRINTED) ? readFileSync(PRINTED, 'utf8') : '';
    const isSame = committed.trim() === printSchema(schema).trim();
    expect(isSame ? '' : `schema.graphql is not what is served; ${HOW}`).toBe('');
  });

  test('is printed by a command', async () => {
    const main = join(import.meta.dir, '../web/cli/main.ts');
    const run = Bun.spawn([process.execPath, main, 'schema'], { stdout: 'pipe', stderr: 'pipe' });
    const { code, stdout, stderr } = await finish(run);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout.trim()).toBe(printSchema(schema).trim());
  });

  test('describes every type, field, argument, value and input field', () => {
    const bare = [...described()].filter(([, text]) => !text || text.trim().length < 3);
    expect(bare.map(([place]) => place)).toEqual([]);
  });

  test('has an action, or none needed, on every field', () => {
    const bare = fields.filter(({ field }) => actionOf(field) === undefined);
    expect(bare.map(({ type, field }) => `${type.name}.${field.name}`)).toEqual([]);
  });

  test('types every id that is named after its noun', () => {
    const untyped = fields.flatMap(({ type, field }) => {
      const noun = /^(.*)Ids?$/.exec(field.name)?.[1] ?? '';
      const scalar = `${noun.charAt(0).toUpperCase()}${noun.slice(1)}ID`;
      const isTyped =
        !Object.hasOwn(ID_SCALARS, scalar) || getNamedType(field.type).name === scalar;
      return isTyped ? [] : [`${type.name}.${field.name}`];
    });
    expect(untyped).toEqual([]);
  });

  test('has no interface, union or subscription, whose fields no action would guard', () => {
    const others = types.filter((type) => 'getTypes' in type || isInterfaceType(type));
    expect(others.map(({ name }) => name)).toEqual([]);
    expect(schema.getSubscriptionType()).toBeFalsy();
  });
});

describe('a mutation', () => {
  test('is named after its noun and takes one input', () => {
    for (const { name, field } of mutations) {
      expect(name).toMatch(/^[a-z]+([A-Z][a-z]+)+$/);
      const args = field.args.map((arg) => `${arg.name} ${isNonNullType(arg.type)}`);
      expect({ name, args: args.filter((arg) => arg !== 'input true') }).toEqual({
        name,
        args: [],
      });
    }
  });

  test('answers with a payload of its own that has errors', () => {
    for (const { name, field } of mutations) {
      const payload = getNamedType(field.type);
      const errors = isObjectType(payload) ? String(payload.getFields().errors?.type) : '';
      expect({ name, errors }).toEqual({ name, errors: '[UserError!]!' });
      expect(payload.name.toLowerCase()).toBe(`${name}payload`.toLowerCase());
    }
  });
});

/** The sessions of one member: there are never more than twenty. */
const BOUNDED = new Set(['Member.sessions', 'Viewer.sessions']);

describe('a list', () => {
  test('of rows is a connection', () => {
    const rows = new Set(
      OPERATIONS.filter(({ field }) => isConnection(field.type)).map(({ field }) =>
        nodeOf(getNamedType(field.type).name),
      ),
    );
    const bare = [
      ...fields.map(({ type, field }) => ({ place: `${type.name}.${field.name}`, field })),
    ]
      .filter(({ field }) => isListType(getNullableType(field.type)))
      .filter(({ place }) => !/(Connection\.(nodes|edges))$/.test(place))
      .filter(({ field }) => rows.has(getNamedType(field.type).name));
    expect(bare.map(({ place }) => place).filter((place) => !BOUNDED.has(place))).toEqual([]);
  });

  test('that is a connection takes first, after, last and before', () => {
    const names = [...fields, ...OPERATIONS]
      .filter(({ field }) => isConnection(field.type))
      .map(({ field }) => field.args.map(({ name }) => name));
    for (const args of names)
      expect(args).toEqual(expect.arrayContaining(['first', 'after', 'last', 'before']));
  });
});

const nodeOf = (connection: string): string => {
  const edges = OBJECT_TYPES.find(({ name }) => name === connection)?.getFields().edges;
  const edge = edges && getNamedType(edges.type);
  const node = edge && isObjectType(edge) ? edge.getFields().node : undefined;
  return node ? getNamedType(node.type).name : '';
};

/** What other systems call theirs, and what may be any of several nouns. */
const FOREIGN_IDS = /clientId$|[rR]equestId$|^AuditActor\./;

test('an id is a scalar of its noun, never any text', () => {
  const places = [...fields, ...OPERATIONS.map(({ field }) => ({ type: { name: '' }, field }))]
    .filter(({ field }) => /^id$|[a-z]Ids?$/.test(field.name))
    .filter(({ field }) => ['String', 'ID'].includes(getNamedType(field.type).name))
    .map(({ type, field }) => `${type.name}.${field.name}`);
  const inputs = types.filter(isInputObjectType).flatMap((type) =>
    Object.values(type.getFields())
      .filter(({ name }) => /^id$|[a-z]Ids?$/.test(name))
      .filter((field) => ['String', 'ID'].includes(getNamedType(field.type).name))
      .map(({ name }) => `${type.name}.${name}`),
  );
  expect([...places, ...inputs].filter((place) => !FOREIGN_IDS.test(place))).toEqual([]);
});

test('money is never a number of dollars', () => {
  const odd = fields
    .filter(({ field }) => ['Float', 'Int'].includes(getNamedType(field.type).name))
    .filter(({ field }) => /dollar|usd|cost|spen[dt]|ceiling|price/i.test(field.name));
  expect(odd.map(({ type, field }) => `${type.name}.${field.name}`)).toEqual([]);
});

test('what is yes or no is asked as a question', () => {
  const odd = fields
    .filter(({ field }) => getNamedType(field.type).name === 'Boolean')
    .filter(({ field }) => !/^(is|has|was|may|can|did|ok$|changed$|differs$)/.test(field.name))
    .filter(({ type }) => type.name !== 'PageInfo');
  expect(odd.map(({ type, field }) => `${type.name}.${field.name}`)).toEqual([]);
});
