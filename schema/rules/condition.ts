/** Conditions on the arguments of a tool call, in CEL, at a cost that is bounded. */

import type { ASTNode } from '@marcbachmann/cel-js';
import { fold, type Json, type JsonObject } from '../json.ts';
import { isFaithful } from '../numbers.ts';
import { environment, LOOPS, makeStrict, nodesIn, type Program } from './cel.ts';
import { type Budget, CHARS_PER_STEP, MAX_STEPS, spend, spendFrom } from './steps.ts';

/** What a condition reads, as `tool.name`, `tool.args` and `args`. */
export interface Subject {
  /** What follows a slash in it is a name, too: see {@link namesOf}. */
  readonly name: string;
  readonly args: JsonObject;
  /** The JSON text that `args` was read from, where there is one. */
  readonly argsText?: string;
}

/** One decision, in which arguments are read once, and all conditions take from one budget. */
export class Inquiry implements Budget {
  left = MAX_STEPS;
  readonly readings = new Map<JsonObject, Reading | undefined>();
}

/**
 * A compiled condition.
 *
 * @returns Whether it holds for some name of the tool; undefined where that can't be told: a missing
 *   or unsuitable argument, a number that a double can't hold, or arguments that would cost too much
 *   to look at.
 */
export type Condition = (subject: Subject, inquiry?: Inquiry) => boolean | undefined;

/** The longest condition, in characters (code points). */
export const MAX_CONDITION_LENGTH = 2_000;

/** A condition that can't be used; the message says why, in a clause. */
export class InvalidCondition extends Error {
  override readonly name = 'InvalidCondition';
}

/** A loop over a list in a loop over a list, and no deeper. */
const MAX_LOOPS = 2;
const MAX_ARGS_DEPTH = 64;
const MAX_VALUES = 20_000;
/** To see what a reader that ignores case calls a key. */
const STEPS_PER_KEY = 8;

/**
 * What may be called. Left out: regular expressions, which can take exponential time; what makes
 * large values of small ones (`join`, `split`, `cel.bind`); and what depends on the host's locale.
 */
const FUNCTIONS = new Set([
  ...['has', 'size', 'type', 'dyn', 'int', 'uint', 'double', 'string', 'bool'],
  ...['timestamp', 'duration', 'contains', 'startsWith', 'endsWith', 'indexOf', 'lastIndexOf'],
  ...['substring', 'lowerAscii', 'upperAscii', 'trim'],
  ...LOOPS,
]);

/**
 * Compiles a condition, such as `args.amount_usd > 500` (Common Expression Language).
 *
 * @throws {InvalidCondition} for what can't be parsed, is not of type bool, names anything but
 *   `args`, `tool.name` and `tool.args`, or has no bound on its cost.
 */
export function compileCondition(source: string): Condition {
  // Of characters that take two units each, as many as there may be.
  if ([...source.slice(0, 2 * MAX_CONDITION_LENGTH + 1)].length > MAX_CONDITION_LENGTH) {
    throw new InvalidCondition(`is longer than ${MAX_CONDITION_LENGTH} characters`);
  }
  const { ast, check } = parse(source);
  const keys = keysOf(ast);
  const { valid, type, error } = check();
  if (!valid) throw new InvalidCondition(`is not valid CEL: ${summarize(error)}`);
  if (type !== 'bool' && type !== 'dyn') {
    throw new InvalidCondition(`must be true or false, but is of type ${type}`);
  }
  const program = makeStrict(ast);
  const readsTool = source.includes('tool');
  return (subject, inquiry = new Inquiry()) => {
    const names = readsTool ? namesOf(subject.name) : [subject.name];
    const results = spendFrom(inquiry, () => {
      const args = argsFor(subject, keys, inquiry);
      return args && names.map((name) => run(program, name, args));
    });
    if (!results || inquiry.left < 0) return undefined;
    if (results.includes(true)) return true;
    return results.includes(undefined) ? undefined : false;
  };
}

/** All names of a tool: a label that callers choose may stand before its own, and a slash. */
function namesOf(name: string): readonly string[] {
  const parts = name.split('/');
  return parts.map((_, at) => parts.slice(at).join('/'));
}

function run(program: Program, name: string, args: Args): boolean | undefined {
  const tool = new Map<string, unknown>([
    ['name', name],
    ['args', args],
  ]);
  try {
    const result = program({ args, tool });
    return typeof result === 'boolean' ? result : undefined;
  } catch {
    return undefined;
  }
}

function parse(source: string) {
  try {
    return environment.parse(source);
  } catch (error) {
    throw new InvalidCondition(`is not valid CEL: ${summarize(error)}`);
  }
}

/** The library's reason in one line, without the excerpt that it adds. */
function summarize(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  return (message.split('\n', 1)[0] ?? '').slice(0, 300);
}

/** Keys as they are written, by what a reader that ignores case calls them. */
type Keys = Map<string, Set<string>>;

/** The keys that an expression reads. @throws {InvalidCondition} for what may not stand in it. */
function keysOf(root: ASTNode): Keys {
  const keys: Keys = new Map();
  const rest: [node: ASTNode, loops: number][] = [[root, 0]];
  for (let next = rest.pop(); next; next = rest.pop()) {
    const [node, loops] = next;
    refuseUnbounded(node, loops);
    const key = keyOf(node);
    if (key !== undefined) addKey(key, keys);
    for (const child of nodesIn(node.args)) {
      const isBody = isLoop(node) && child !== node.args[1];
      rest.push([child, isBody ? loops + 1 : loops]);
    }
  }
  return keys;
}

function addKey(key: string, keys: Keys): void {
  const folded = fold(key);
  const written = keys.get(folded);
  if (written) written.add(key);
  else keys.set(folded, new Set([key]));
}

/** The key that a node reads: of `args.to`, `args["to"]` or `"to" in args`. */
function keyOf(node: ASTNode): string | undefined {
  if (node.op === '.') return node.args[1];
  const key = node.op === '[]' ? node.args[1] : node.op === 'in' ? node.args[0] : undefined;
  return key?.op === 'value' && typeof key.args === 'string' ? key.args : undefined;
}

function isLoop(node: ASTNode): node is ASTNode & { op: 'rcall' } {
  return node.op === 'rcall' && LOOPS.has(node.args[0]);
}

function refuseUnbounded(node: ASTNode, loops: number): void {
  const called = node.op === 'call' || node.op === 'rcall' ? node.args[0] : undefined;
  if (called !== undefined && !FUNCTIONS.has(called)) {
    throw new InvalidCondition(
      `may not call ${called}(); it may call ${[...FUNCTIONS].join(', ')}`,
    );
  }
  if (isLoop(node) && loops === MAX_LOOPS) {
    throw new InvalidCondition(`has more than ${MAX_LOOPS} loops inside each other`);
  }
  if (node.op !== '.' || node.args[0].op !== 'id' || node.args[0].args !== 'tool') return;
  if (node.args[1] !== 'name' && node.args[1] !== 'args') {
    throw new InvalidCondition(`names tool.${node.args[1]}; there are tool.name and tool.args`);
  }
}

/** Arguments as CEL reads them. */
interface Reading {
  readonly args: Args;
  readonly keys: Keys;
}

/** What a walk over arguments has seen. */
interface Seen {
  values: number;
  hasNumbers: boolean;
  readonly keys: Keys;
  readonly written: Set<string>;
}

/** Thrown within a walk over arguments that no condition can be asked about. */
class Unfit extends Error {}

/** The arguments for a condition that reads some keys; undefined where the answer could be wrong. */
function argsFor(subject: Subject, keys: Keys, { readings }: Inquiry): Args | undefined {
  if (!readings.has(subject.args)) readings.set(subject.args, read(subject));
  const reading = readings.get(subject.args);
  return reading && !haveVariants(keys, reading.keys) ? reading.args : undefined;
}

/** Some readers ignore the case of keys: to them `Amount` is what a condition reads as `amount`. */
function haveVariants(keys: Keys, given: Keys): boolean {
  return [...keys].some(([folded, read]) =>
    [...(given.get(folded) ?? [])].some((key) => !read.has(key)),
  );
}

/** Arguments as CEL reads them; undefined where that would be dear, or a number another. */
function read({ args, argsText = '' }: Subject): Reading | undefined {
  const seen: Seen = { values: 0, hasNumbers: false, keys: new Map(), written: new Set() };
  try {
    const map = toMap(args, seen, 0);
    spend(argsText.length / CHARS_PER_STEP);
    const isExact = !seen.hasNumbers || isFaithful(argsText);
    return isExact ? { args: map, keys: seen.keys } : undefined;
  } catch {
    return undefined;
  }
}

type Args = ReadonlyMap<string, unknown>;

/**
 * An object: maps are none in which a key such as `constructor` would mislead the library. It names
 * the types of first entries, at any depth, and keeps all that it has named: so it is shown none.
 */
class Members extends Map<string, unknown> {
  override entries(): MapIterator<[string, unknown]> {
    return new Map<string, unknown>().entries();
  }
}
Members.prototype.constructor = Map;

function toMap(value: JsonObject, seen: Seen, depth: number): Args {
  const keys = Object.keys(value);
  countMembers(keys.length, seen, depth);
  const map = new Members();
  for (const key of keys) {
    see(key, seen);
    map.set(key, toCel(value[key]!, seen, depth + 1));
  }
  return map;
}

function see(key: string, { keys, written }: Seen): void {
  if (written.has(key)) return;
  written.add(key);
  spend(STEPS_PER_KEY + key.length / CHARS_PER_STEP);
  addKey(key, keys);
}

function toCel(value: Json, seen: Seen, depth: number): unknown {
  if (typeof value === 'number') {
    seen.hasNumbers = true;
    if (Math.abs(value) > Number.MAX_SAFE_INTEGER) throw new Unfit();
  } else if (Array.isArray(value)) {
    countMembers(value.length, seen, depth);
    return value.map((element) => toCel(element, seen, depth + 1));
  } else if (value !== null && typeof value === 'object') return toMap(value, seen, depth);
  return value;
}

function countMembers(count: number, seen: Seen, depth: number): void {
  seen.values += 1 + count;
  spend(1 + count);
  if (depth > MAX_ARGS_DEPTH || seen.values > MAX_VALUES) throw new Unfit();
}
