/** CEL as conditions have it: arithmetic over JSON's numbers, and an equality that never guesses. */

import { type ASTNode, Environment } from '@marcbachmann/cel-js';
import { isExact } from '../numbers.ts';

/** What one expression may be made of. */
const LIMITS = {
  maxAstNodes: 250,
  maxDepth: 32,
  maxListElements: 100,
  maxMapEntries: 50,
  maxCallArguments: 4,
} as const;

/** The parentheses that are written around every operation count as depth, and calls are added. */
const WRITTEN_LIMITS = {
  ...LIMITS,
  maxAstNodes: 2 * LIMITS.maxAstNodes,
  maxDepth: 4 * LIMITS.maxDepth,
} as const;

type Calculate = (left: number, right: number) => number;

/**
 * CEL reads JSON's numbers as doubles, and has no arithmetic between those and whole literals. What
 * comes of it is typed `dyn`, so that it can be compared with either.
 */
const ARITHMETIC: Readonly<Record<string, Calculate>> = {
  '+': (left, right) => left + right,
  '-': (left, right) => left - right,
  '*': (left, right) => left * right,
  '/': (left, right) => left / right,
};

function makeEnvironment(limits: typeof LIMITS | typeof WRITTEN_LIMITS): Environment {
  const made = new Environment({ homogeneousAggregateLiterals: false, limits });
  for (const [operator, calculate] of Object.entries(ARITHMETIC)) {
    const mixed = (left: number | bigint, right: number | bigint) =>
      calculate(Number(left), Number(right));
    made.registerOperator(`double ${operator} int: dyn`, mixed);
    made.registerOperator(`int ${operator} double: dyn`, mixed);
  }
  return made.registerVariable('args', 'map').registerVariable('tool', 'map');
}

/** In which conditions are parsed and their types checked, by the rules of CEL. */
export const environment = makeEnvironment(LIMITS);

/** No text of a number or a moment that CEL knows is longer. */
const MAX_CONVERTED_CHARS = 64;

/**
 * What each conversion takes by CEL. The library takes more, such as `int("")` and the 30th of
 * February, and looks through long texts for longer than any call may take.
 */
const CONVERTIBLE: Readonly<Record<string, (value: string | number) => boolean>> = {
  int: (value) =>
    typeof value === 'number' ? Math.abs(value) < 2 ** 63 : /^[+-]?[0-9]+$/.test(value),
  uint: (value) => typeof value === 'number' || /^[0-9]+$/.test(value),
  double: (value) => typeof value === 'number' || isNumber(value),
  timestamp: (value) => typeof value === 'string' && isTimestamp(value),
  duration: (value) => typeof value === 'string' && isDuration(value),
};

/** Whether a text is a finite number that a double holds as it is written. */
function isNumber(text: string): boolean {
  const isDecimal = /^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?$/i.test(text);
  return isDecimal && Number.isFinite(Number(text)) && isExact(text);
}

/** By RFC 3339, and no finer than the milliseconds that are kept. */
const TIMESTAMP =
  /^(\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)(?:\.\d{1,3}0*)?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)$/;

function isTimestamp(text: string): boolean {
  const local = TIMESTAMP.exec(text)?.[1];
  if (local === undefined) return false;
  const moment = new Date(`${local}Z`);
  return !Number.isNaN(moment.getTime()) && moment.toISOString().startsWith(local);
}

const DURATION = /^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|ms|s|m|h))+$/;
const DURATION_PART = /([\d.]+)(ns|us|µs|ms|s|m|h)/g;
const UNIT_S: Readonly<Record<string, number>> = {
  ...{ h: 3_600, m: 60, s: 1, ms: 1e-3, us: 1e-6, µs: 1e-6, ns: 1e-9 },
};
/** About ten thousand years. */
const MAX_DURATION_S = 315_576_000_000;

function isDuration(text: string): boolean {
  if (!DURATION.test(text)) return false;
  const parts = [...text.matchAll(DURATION_PART)];
  const seconds = parts.reduce(
    (sum, [, count, unit = '']) => sum + Number(count) * UNIT_S[unit]!,
    0,
  );
  return seconds <= MAX_DURATION_S;
}

/** The value itself where it may be converted; what is neither text nor double, the library knows. */
function convertible(name: string, value: unknown): unknown {
  if (typeof value !== 'string' && typeof value !== 'number') return value;
  const isShort = typeof value === 'number' || value.length <= MAX_CONVERTED_CHARS;
  if (isShort && CONVERTIBLE[name]!(value)) return value;
  throw new Error(`${name}() takes no such value`);
}

/** In which they run: `==`, `!=` and `in` are calls of our own, and conversions ask one first. */
const strict = makeEnvironment(WRITTEN_LIMITS)
  .registerFunction('same(dyn, dyn): bool', (left: unknown, right: unknown) =>
    certain(isSame(left, right)),
  )
  .registerFunction('within(dyn, dyn): bool', (value: unknown, whole: unknown) =>
    certain(isWithin(value, whole)),
  )
  .registerFunction('convertible(string, dyn): dyn', convertible);

/** An expression that is ready to run. @throws whatever keeps it from a value. */
export type Program = (variables: Readonly<Record<string, unknown>>) => unknown;

/**
 * Makes an expression that has been checked ready to run, in which values of different kinds can't
 * be told to be equal or not: by CEL `"1" == 1` is false, but `"1"` may do to a tool what 1 does.
 */
export function makeStrict(ast: ASTNode): Program {
  return strict.parse(write(ast));
}

/** The expression as text, with calls in place of comparisons. */
function write(node: ASTNode): string {
  switch (node.op) {
    case 'value':
      return `(${node.input.slice(node.start, node.end)})`;
    case 'id':
      return node.args;
    case '.':
    case '.?':
      return `${write(node.args[0])}${node.op}${node.args[1]}`;
    case '[]':
      return `${write(node.args[0])}[${write(node.args[1])}]`;
    case '[?]':
      return `${write(node.args[0])}[?${write(node.args[1])}]`;
    case 'call':
      return writeCall(node.args[0], node.args[1].map(write).join(', '));
    case 'rcall':
      return `${write(node.args[1])}.${node.args[0]}(${node.args[2].map(write).join(', ')})`;
    case 'list':
      return `[${node.args.map(write).join(', ')}]`;
    case 'map':
      return `{${node.args.map((entry) => entry.map(write).join(': ')).join(', ')}}`;
    default:
      return `(${writeOperation(node)})`;
  }
}

function writeCall(name: string, operands: string): string {
  if (!Object.hasOwn(CONVERTIBLE, name)) return `${name}(${operands})`;
  return `${name}(convertible("${name}", ${operands}))`;
}

function writeOperation(node: ASTNode): string {
  if (node.op === '!_') return `!${write(node.args)}`;
  if (node.op === '-_') return `-${write(node.args)}`;
  const [first = '', second = '', third = ''] = (node.args as ASTNode[]).map(write);
  switch (node.op) {
    case '==':
      return `same(${first}, ${second})`;
    case '!=':
      return `!same(${first}, ${second})`;
    case 'in':
      return `within(${first}, ${second})`;
    case '?:':
      return `${first} ? ${second} : ${third}`;
    default:
      return `${first} ${node.op} ${second}`;
  }
}

/** `undefined` where it can't be told. */
type Verdict = boolean | undefined;

function certain(verdict: Verdict): boolean {
  if (verdict === undefined) throw new Error('the kinds differ');
  return verdict;
}

function isSame(left: unknown, right: unknown): Verdict {
  if (left === null || right === null) return left === right;
  const kind = kindOf(left);
  if (kind !== kindOf(right)) return undefined;
  if (kind === 'list') return areSame([...(left as Members)], [...(right as Members)]);
  if (kind === 'map') return haveSame(entriesOf(left), entriesOf(right));
  // biome-ignore lint/suspicious/noDoubleEquals: a whole number is the double that it equals
  return plainOf(left) == plainOf(right);
}

type Members = Iterable<unknown>;

/** What is not of one of CEL's kinds for JSON goes by its class, such as a moment. */
function kindOf(value: unknown): unknown {
  if (typeof value === 'number' || typeof value === 'bigint') return 'number';
  if (typeof value !== 'object' || value === null) return typeof value;
  if (Array.isArray(value) || value instanceof Set || value instanceof Uint8Array) return 'list';
  const isRecord = [Object.prototype, null].includes(Object.getPrototypeOf(value));
  if (value instanceof Map || isRecord) return 'map';
  return typeof plainOf(value) === 'bigint' ? 'number' : value.constructor;
}

/** The number within an object that stands for one, such as a moment or an unsigned integer. */
function plainOf(value: unknown): unknown {
  return value instanceof Object ? value.valueOf() : value;
}

/** All of them; one that differs is enough for a difference. */
function areSame(left: readonly unknown[], right: readonly unknown[]): Verdict {
  if (left.length !== right.length) return false;
  let verdict: Verdict = true;
  for (const [at, member] of left.entries()) {
    const isAlike = isSame(member, right[at]);
    if (isAlike === false) return false;
    verdict &&= isAlike;
  }
  return verdict;
}

type Entries = ReadonlyMap<unknown, unknown>;

function entriesOf(value: unknown): Entries {
  return value instanceof Map ? value : new Map(Object.entries(value as object));
}

function haveSame(left: Entries, right: Entries): Verdict {
  if (left.size !== right.size || [...left.keys()].some((key) => !right.has(key))) return false;
  const keys = [...left.keys()];
  return areSame(
    keys.map((key) => left.get(key)),
    keys.map((key) => right.get(key)),
  );
}

/** Whether a list has a member, or a map a key; one that is the same is enough. */
function isWithin(value: unknown, whole: unknown): Verdict {
  const kind = kindOf(whole);
  if (kind !== 'list' && kind !== 'map') return undefined;
  let verdict: Verdict = false;
  for (const member of kind === 'map' ? entriesOf(whole).keys() : (whole as Members)) {
    const isMember = isSame(value, member);
    if (isMember) return true;
    verdict = verdict === undefined ? undefined : isMember;
  }
  return verdict;
}
