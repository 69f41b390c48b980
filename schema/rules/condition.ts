/** Conditions on the arguments of a tool call, in CEL, at a cost that is known before they run. */

import type { ASTNode } from '@marcbachmann/cel-js';
import { fold, type Json, type JsonObject } from '../json.ts';
import { isFaithful } from '../numbers.ts';
import { environment, makeStrict, type Program } from './cel.ts';

/** What a condition reads, as `tool.name`, `tool.args` and `args`. */
export interface Subject {
  /** What follows a slash in it is a name, too: see {@link namesOf}. */
  readonly name: string;
  readonly args: JsonObject;
  /** The JSON text that `args` was read from, where there is one. */
  readonly argsText?: string;
}

/**
 * A compiled condition.
 *
 * @returns Whether it holds for some name of the tool; undefined where that can't be told: a missing
 *   or unsuitable argument, a number that a double can't hold, or arguments that would cost too much
 *   to look at.
 */
export type Condition = (subject: Subject) => boolean | undefined;

/** The longest condition, in characters. */
export const MAX_CONDITION_LENGTH = 2_000;

/** A condition that can't be used; the message says why, in a clause. */
export class InvalidCondition extends Error {
  override readonly name = 'InvalidCondition';
}

/** A loop over a list in a loop over a list, and no deeper. */
const MAX_LOOPS = 2;
/** Each one turn of a node, the reading of one value or of 64 characters: about 50 ns. */
const MAX_STEPS = 1_000_000;
const CHARS_PER_STEP = 64;
const MAX_ARGS_DEPTH = 64;
const MAX_VALUES = 20_000;

const LOOPS = new Set(['all', 'exists', 'exists_one', 'filter', 'map']);

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
  if (source.length > MAX_CONDITION_LENGTH) {
    throw new InvalidCondition(`is longer than ${MAX_CONDITION_LENGTH} characters`);
  }
  const { ast, check } = parse(source);
  const weight = weigh(ast);
  const { valid, type, error } = check();
  if (!valid) throw new InvalidCondition(`is not valid CEL: ${summarize(error)}`);
  if (type !== 'bool' && type !== 'dyn') {
    throw new InvalidCondition(`must be true or false, but is of type ${type}`);
  }
  const program = makeStrict(ast);
  const readsTool = source.includes('tool');
  return (subject) => {
    const names = readsTool ? namesOf(subject.name) : [subject.name];
    const args = readArgs(subject, weight, names.length);
    if (!args) return undefined;
    const results = names.map((name) => run(program, name, args));
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

/** What an operation reads: no more than a value, one text, or all that there is. */
type Reach = 'value' | 'text' | 'whole';

/** What an expression can cost, whatever it is asked about. */
interface Weight {
  /** How many nodes of each reach stand in no loop, in one, and in a loop within a loop. */
  readonly nodes: Record<Reach, number>[];
  /** Elements of the longest list that stands in the expression. */
  longest: number;
  /** How many times its largest argument a value can get by being added to others. */
  growth: number;
  /** The keys that it reads, as they are written, by what a reader that ignores case calls them. */
  readonly keys: Map<string, Set<string>>;
}

const WHOLE = new Set(['==', '!=', 'in', '+']);
const VALUE = new Set(['id', 'value', '.', '[]', 'list', 'map', '?:', '&&', '||', '!_', '-_']);

function reachOf(node: ASTNode): Reach {
  if (WHOLE.has(node.op)) return 'whole';
  return VALUE.has(node.op) || isLoop(node) ? 'value' : 'text';
}

function weigh(root: ASTNode): Weight {
  const nodes = Array.from({ length: MAX_LOOPS + 1 }, () => ({ value: 0, text: 0, whole: 0 }));
  const weight = { nodes, longest: 1, growth: 1, keys: new Map<string, Set<string>>() };
  const rest: [node: ASTNode, loops: number][] = [[root, 0]];
  for (let next = rest.pop(); next; next = rest.pop()) {
    const [node, loops] = next;
    refuseUnbounded(node, loops);
    nodes[loops]![reachOf(node)] += 1;
    if (node.op === 'list') weight.longest = Math.max(weight.longest, node.args.length);
    if (node.op === '+') weight.growth += 1;
    const key = keyOf(node);
    if (key !== undefined) {
      weight.keys.set(fold(key), (weight.keys.get(fold(key)) ?? new Set()).add(key));
    }
    for (const child of nodesIn(node.args)) {
      const isBody = isLoop(node) && child !== node.args[1];
      rest.push([child, isBody ? loops + 1 : loops]);
    }
  }
  return weight;
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

/** The nodes among a node's arguments, which the library nests in arrays. */
function nodesIn(args: unknown): ASTNode[] {
  if (Array.isArray(args)) return args.flatMap(nodesIn);
  return typeof args === 'object' && args !== null && 'op' in args ? [args as ASTNode] : [];
}

/** What a walk over arguments has seen. */
interface Size {
  values: number;
  chars: number;
  /** Members of the largest list or object. */
  longest: number;
  longestText: number;
  hasNumbers: boolean;
  /** As in {@link Weight}. */
  readonly keys: Weight['keys'];
}

/** Thrown within a walk over arguments that no condition can be asked about. */
class Unfit extends Error {}

/**
 * The arguments as CEL reads them; undefined where asking would be dear, or the answer wrong.
 *
 * @param times How often they are asked about.
 */
function readArgs({ args, argsText }: Subject, weight: Weight, times: number): Args | undefined {
  const { keys } = weight;
  const size: Size = { values: 0, chars: 0, longest: 1, longestText: 0, hasNumbers: false, keys };
  try {
    const map = toMap(args, size, 0);
    if (stepsOf(size, weight) * times > MAX_STEPS) return undefined;
    return size.hasNumbers && argsText && !isFaithful(argsText) ? undefined : map;
  } catch (error) {
    if (error instanceof Unfit) return undefined;
    throw error;
  }
}

/** Every node works as often as the loops around it turn, on at most what it can reach. */
function stepsOf({ values, chars, longest, longestText }: Size, weight: Weight): number {
  const { growth } = weight;
  const text = 1 + (longestText * growth) / CHARS_PER_STEP;
  const whole = (values + chars / CHARS_PER_STEP) * growth;
  const turns = Math.max(longest * growth, weight.longest);
  return weight.nodes.reduce((sum, nodes, loops) => {
    const once = nodes.value + nodes.text * text + nodes.whole * Math.max(text, whole);
    return sum + once * turns ** loops;
  }, 0);
}

type Args = ReadonlyMap<string, unknown>;

/** Maps in place of objects, in which a key such as `constructor` would mislead the library. */
function toMap(value: JsonObject, size: Size, depth: number): Args {
  const keys = Object.keys(value);
  countMembers(keys.length, size, depth);
  const map = new Map<string, unknown>();
  for (const key of keys) {
    countChars(key, size);
    refuseVariant(key, size);
    map.set(key, toCel(value[key]!, size, depth + 1));
  }
  return map;
}

/** Some readers ignore the case of keys: to them `Amount` is what a condition reads as `amount`. */
function refuseVariant(key: string, { keys }: Size): void {
  const read = keys.get(fold(key));
  if (read && !read.has(key)) throw new Unfit();
}

function toCel(value: Json, size: Size, depth: number): unknown {
  if (typeof value === 'string') countChars(value, size);
  else if (typeof value === 'number') {
    size.hasNumbers = true;
    if (Math.abs(value) > Number.MAX_SAFE_INTEGER) throw new Unfit();
  } else if (Array.isArray(value)) {
    countMembers(value.length, size, depth);
    return value.map((element) => toCel(element, size, depth + 1));
  } else if (value !== null && typeof value === 'object') return toMap(value, size, depth);
  return value;
}

function countMembers(count: number, size: Size, depth: number): void {
  size.values += 1 + count;
  size.longest = Math.max(size.longest, count);
  if (depth > MAX_ARGS_DEPTH || size.values > MAX_VALUES) throw new Unfit();
}

function countChars({ length }: string, size: Size): void {
  size.chars += length;
  if (length > size.longestText) size.longestText = length;
}
