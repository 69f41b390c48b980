/** The admin API as its schema tells it: every operation and field, and values for its arguments. */

import {
  type GraphQLField,
  type GraphQLInputType,
  type GraphQLObjectType,
  type GraphQLOutputType,
  getNamedType,
  getNullableType,
  isEnumType,
  isInputObjectType,
  isLeafType,
  isListType,
  isNonNullType,
  isObjectType,
} from 'graphql';
import type { Access } from '../schema/graphql/access.ts';
import { ID_SCALARS } from '../schema/graphql/builder.ts';
import { schema } from '../schema/graphql/index.ts';
import { formatId, type Noun } from '../schema/ids.ts';

type Field = GraphQLField<unknown, unknown>;
type Path = readonly string[];

/** A field of the query or the mutation type. */
export interface Operation {
  readonly kind: 'query' | 'mutation';
  readonly name: string;
  readonly field: Field;
  readonly action: Access;
}

/** What a field takes; every field tells. */
export function actionOf({ extensions }: Field): Access {
  return extensions.action as Access;
}

/** Every operation of the schema. */
export const OPERATIONS: readonly Operation[] = (['query', 'mutation'] as const).flatMap((kind) => {
  const root = kind === 'query' ? schema.getQueryType() : schema.getMutationType();
  return Object.values(root?.getFields() ?? {}).map((field) => {
    return { kind, name: field.name, field, action: actionOf(field) };
  });
});

/** Every object type of the schema but the roots and those of introspection. */
export const OBJECT_TYPES: readonly GraphQLObjectType[] = Object.values(schema.getTypeMap())
  .filter(isObjectType)
  .filter(({ name }) => !name.startsWith('__') && name !== 'Query' && name !== 'Mutation');

/** An argument, or a field of one, that takes an id. */
export interface IdPlace {
  readonly path: Path;
  readonly noun: Noun;
}

const nounOf = (type: GraphQLInputType): Noun | undefined =>
  ID_SCALARS[getNamedType(type).name as keyof typeof ID_SCALARS];

/** Where an operation takes ids. */
export function idPlaces({ args }: Field): IdPlace[] {
  const within = (path: Path, type: GraphQLInputType): IdPlace[] => {
    const noun = nounOf(type);
    if (noun) return [{ path, noun }];
    const named = getNamedType(type);
    if (!isInputObjectType(named) || path.length > 4) return [];
    return Object.values(named.getFields()).flatMap((each) =>
      within([...path, each.name], each.type),
    );
  };
  return args.flatMap(({ name, type }) => within([name], type));
}

/** Values that strings and JSON need to be accepted, by the end of their path. */
const HINTS: readonly (readonly [RegExp, unknown])[] = [
  [/\bactions$/, 'agent.read'],
  [/\b(document|policy)$/, { budget: { run: '1.00' } }],
  [/\bemail$/, 'somebody@example.net'],
  [/\bdomains?$/, 'example.net'],
  [/\bevents?$|\btype$/, 'run.completed'],
  [/\bissuer$/i, 'https://accounts.example.net'],
  [/\b(url|target)$/i, 'https://hooks.example.net/rungate'],
  [/\bmodel$/, 'demo/demo-large'],
  [/\bprovider$/, 'openai'],
  [/\b(jws|checkpoint)$/, 'a.b.c'],
  [/^(after|before)$/, null],
];

const COUNTS: readonly (readonly [RegExp, number])[] = [
  [/^(first|last)$/, 3],
  [/days$/i, 20],
];

/** What an argument's value is made of. */
export interface Making {
  /** An id of a noun, for the place at a path. */
  id(noun: Noun, path: Path): string;
  /** Whether an optional place is filled. */
  fills(path: Path): boolean;
  /** A value that stands before all others. */
  hint?(path: Path): unknown;
}

/** The variables of an operation's arguments. */
export function makeArguments({ args }: Field, making: Making): Record<string, unknown> {
  return Object.fromEntries(
    args
      .filter(({ name, type }) => isNonNullType(type) || making.fills([name]))
      .map(({ name, type }) => [name, makeValue(type, [name], making)]),
  );
}

function makeValue(type: GraphQLInputType, path: Path, making: Making): unknown {
  const hint = making.hint?.(path);
  if (hint !== undefined) return hint;
  const bare = getNullableType(type);
  if (isListType(bare)) return [makeValue(bare.ofType, path, making)];
  const noun = nounOf(bare);
  if (noun) return making.id(noun, path);
  if (isEnumType(bare)) return bare.getValues()[0]?.name;
  if (isInputObjectType(bare)) {
    const fields = Object.values(bare.getFields()).filter(
      (each) => isNonNullType(each.type) || making.fills([...path, each.name]),
    );
    return Object.fromEntries(
      fields.map((each) => [each.name, makeValue(each.type, [...path, each.name], making)]),
    );
  }
  return scalarValue(getNamedType(bare).name, path.join('.'), path.at(-1) ?? '');
}

let count = 0;

function scalarValue(scalar: string, path: string, name: string): unknown {
  const hint = HINTS.find(([pattern]) => pattern.test(path));
  if (hint && (scalar === 'String' || scalar === 'JSON')) return hint[1];
  if (scalar === 'String') return `made-${name}-${++count}`;
  if (scalar === 'JSON') return {};
  if (scalar === 'Boolean') return true;
  if (scalar === 'Dollars') return '1.50';
  if (scalar === 'Nanos') return 1_500_000_000;
  if (scalar === 'Float') return 0.5;
  if (scalar === 'DateTime') {
    const isPast = /from|after|since/i.test(name);
    return new Date(Date.now() + (isPast ? -86_400_000 : 86_400_000)).toISOString();
  }
  return COUNTS.find(([pattern]) => pattern.test(name))?.[1] ?? 60;
}

/** An id that no row has. */
export function missingId(noun: Noun, at = 0): string {
  const entropy = Uint8Array.from({ length: 10 }, (_, index) => (at >> (index * 8)) & 255);
  return formatId(noun, 1_700_000_000_000 + at, entropy);
}

/** Values of which no id is anything's. */
export const NOTHING: Making = { id: (noun) => missingId(noun), fills: () => false };

/** A document of one operation, whose arguments are variables of the same names. */
export function documentOf({ kind, field }: Operation, given: object, selection: string): string {
  const args = field.args.filter(({ name }) => name in given);
  const declared = args.map(({ name, type }) => `$${name}: ${type}`).join(', ');
  const passed = args.map(({ name }) => `${name}: $${name}`).join(', ');
  const [head, tail] = args.length > 0 ? [`(${declared})`, `(${passed})`] : ['', ''];
  return `${kind} ${head} { ${field.name}${tail}${selection} }`;
}

/** How far a selection goes, and how many nodes its connections have. */
export interface Reach {
  readonly depth: number;
  readonly first: number;
  /** Types that are left out, by name. */
  readonly without?: ReadonlySet<string>;
}

/** Everything that an output type has, down to some depth, as far as it takes no arguments. */
export function selectionOf(type: GraphQLOutputType, reach: Reach): string {
  const { depth, first, without } = reach;
  const named = getNamedType(type);
  if (isLeafType(named) || !isObjectType(named) || without?.has(named.name)) return '';
  const parts = Object.values(named.getFields()).flatMap((field) => {
    if (field.args.some((arg) => isNonNullType(arg.type) && arg.defaultValue === undefined)) {
      return [];
    }
    const isWrapper = /^(edges|nodes|node|pageInfo)$/.test(field.name);
    if (field.name === 'nodes') return [];
    if (isLeafType(getNamedType(field.type))) return [field.name];
    if (depth === 0 && !isWrapper) return [];
    const inside = selectionOf(field.type, { ...reach, depth: isWrapper ? depth : depth - 1 });
    const pages = field.args.some(({ name }) => name === 'first') ? `(first: ${first})` : '';
    return inside === '' ? [] : [`${field.name}${pages}${inside}`];
  });
  return ` { ${['__typename', ...parts].join(' ')} }`;
}

/** Whether an output type is a connection. */
export const isConnection = (type: GraphQLOutputType): boolean =>
  getNamedType(type).name.endsWith('Connection');
