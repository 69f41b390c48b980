/** CEL as conditions have it: arithmetic over JSON's numbers, certain equality, counted steps. */

import { type ASTNode, Environment } from '@marcbachmann/cel-js';
import { convertible, isConversion } from './conversion.ts';
import { isSame, isWithin, type Verdict } from './same.ts';
import { CHARS_PER_STEP, spend } from './steps.ts';

/** What one expression may be made of. */
const LIMITS = {
  maxAstNodes: 250,
  maxDepth: 32,
  maxListElements: 100,
  maxMapEntries: 50,
  maxCallArguments: 4,
} as const;

/** No more than is written for so many nodes, which may all stand inside each other. */
const WRITTEN_LIMITS = {
  ...LIMITS,
  maxAstNodes: 16 * LIMITS.maxAstNodes,
  maxDepth: 4 * LIMITS.maxAstNodes,
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

/** Loops over the members of a list or the keys of a map. */
export const LOOPS: ReadonlySet<string> = new Set(['all', 'exists', 'exists_one', 'filter', 'map']);

/** Functions that look for a text in another. */
const SEARCHES = new Set(['contains', 'indexOf', 'lastIndexOf']);
const STEPS_PER_SEARCH = 10;
/** Functions that go through a text character by character, and how many of them take a step. */
const SPELLING = new Set(['size', 'lowerAscii', 'upperAscii']);
const SPELLED_CHARS_PER_STEP = 8;

/** Making an error takes longer than most that can be done with it; it tells its place in the text. */
const STEPS_PER_ERROR = 80;
const STEPS_PER_ERROR_CHAR = 0.2;

const UNCERTAIN = new Error('the kinds differ');

function certain(verdict: Verdict): boolean {
  if (verdict === undefined) throw UNCERTAIN;
  return verdict;
}

/** A value that the library reads: a text as a whole, of a list the types of first members. */
function readBy(charsPerStep: number): (value: unknown) => unknown {
  return (value) => {
    if (typeof value === 'string' || value instanceof Uint8Array) {
      spend(value.length / charsPerStep);
    }
    for (let first = value; Array.isArray(first); first = first[0]) spend(1);
    return value;
  };
}

const read = readBy(CHARS_PER_STEP);

/** A value that is copied into another. */
function copied(value: unknown): unknown {
  if (Array.isArray(value) || value instanceof Uint8Array) spend(value.length);
  return read(value);
}

const NO_NUMBER = new Error('no number comes of it');

/** What comes of arithmetic: neither infinite nor NaN, of which all comparisons but `!=` are false. */
function finite(value: unknown): unknown {
  if (typeof value === 'number' && !Number.isFinite(value)) throw NO_NUMBER;
  return value;
}

/** A value that is gone through by turns, which count by themselves: of a map, the keys are copied. */
function turned(value: unknown): unknown {
  if (value instanceof Map) spend(value.size);
  return value;
}

/** A text and what is looked for in it, which an engine may compare wherever it could begin. */
function sought(operands: readonly unknown[]): readonly unknown[] {
  const [text, part] = operands;
  spend(STEPS_PER_SEARCH);
  if (typeof text === 'string' && typeof part === 'string') {
    spend((text.length * Math.max(part.length, 1)) / CHARS_PER_STEP);
  }
  return operands;
}

/** An operation on expressions: the library asks for its type, then for its value. */
interface Macro {
  typeCheck(checker: Checker, macro: Macro, scope: unknown): unknown;
  evaluate(evaluator: Evaluator, macro: Macro, scope: unknown): unknown;
}

interface Checker {
  check(node: ASTNode, scope: unknown): unknown;
  getType(name: string): unknown;
}

interface Evaluator {
  run(node: ASTNode, scope: unknown): unknown;
}

interface Call {
  readonly ast: ASTNode;
  readonly args: readonly ASTNode[];
}

/**
 * An operation on values, of the type of its last operand where none is given. It is not chosen by
 * the types of its values, which the library would look for in each of them.
 */
function operation(work: (...operands: never[]) => unknown, type?: string) {
  return ({ args }: Call): Macro => ({
    typeCheck(checker, _, scope) {
      const types = args.map((node) => checker.check(node, scope));
      return type === undefined ? types.at(-1) : checker.getType(type);
    },
    evaluate: (evaluator, _, scope) =>
      work(...(args.map((node) => evaluator.run(node, scope)) as never[])),
  });
}

/** What is taken so many steps for, and may fail without being the end. */
function tried({ ast, args: [steps, body] }: Call): Macro {
  const triedSteps = Number(steps?.args);
  const failedSteps = STEPS_PER_ERROR + ast.input.length * STEPS_PER_ERROR_CHAR;
  return {
    typeCheck: (checker, _, scope) => checker.check(body!, scope),
    evaluate(evaluator, _, scope) {
      spend(triedSteps);
      try {
        return evaluator.run(body!, scope);
      } catch (error) {
        spend(failedSteps);
        throw error;
      }
    },
  };
}

/** In which they run: `==`, `!=` and `in` are calls of our own, and others first ask for steps. */
const strict = makeEnvironment(WRITTEN_LIMITS)
  .registerFunction(
    'same(ast, ast): bool',
    operation((left: unknown, right: unknown) => certain(isSame(left, right)), 'bool'),
  )
  .registerFunction(
    'within(ast, ast): bool',
    operation((value: unknown, all: unknown) => certain(isWithin(value, all)), 'bool'),
  )
  .registerFunction('convertible(ast, ast): dyn', operation(convertible))
  .registerFunction('read(ast): dyn', operation(read))
  .registerFunction('spelled(ast): dyn', operation(readBy(SPELLED_CHARS_PER_STEP)))
  .registerFunction('copied(ast): dyn', operation(copied))
  .registerFunction('finite(ast): dyn', operation(finite))
  .registerFunction('turned(ast): dyn', operation(turned))
  .registerFunction('sought(ast): dyn', operation(sought))
  .registerFunction('tried(ast, ast): dyn', tried);

/** An expression that is ready to run, within a budget. @throws whatever keeps it from a value. */
export type Program = (variables: Readonly<Record<string, unknown>>) => unknown;

/**
 * Makes an expression that has been checked ready to run, in which values of different kinds can't
 * be told to be equal or not: by CEL `"1" == 1` is false, but `"1"` may do to a tool what 1 does.
 */
export function makeStrict(ast: ASTNode): Program {
  const program = strict.parse(writeBare(ast));
  program.check();
  const steps = countNodes(ast);
  return (variables) => {
    spend(steps);
    return program(variables);
  };
}

function countNodes(node: ASTNode): number {
  return nodesIn(node.args).reduce((sum, each) => sum + countNodes(each), 1);
}

/** The nodes among a node's arguments, which the library nests in arrays. */
export function nodesIn(args: unknown): ASTNode[] {
  if (Array.isArray(args)) return args.flatMap(nodesIn);
  return typeof args === 'object' && args !== null && 'op' in args ? [args as ASTNode] : [];
}

/** What needs no parentheses. */
const CLOSED = new Set(['id', '.', '.?', '[]', '[?]', 'call', 'rcall', 'list', 'map']);

function write(node: ASTNode): string {
  return CLOSED.has(node.op) ? writeBare(node) : `(${writeBare(node)})`;
}

/** The expression as text, with calls in place of comparisons, and around what takes steps. */
function writeBare(node: ASTNode): string {
  switch (node.op) {
    case 'value':
      return node.input.slice(node.start, node.end);
    case 'id':
      return node.args;
    case '.':
    case '.?':
      return `${write(node.args[0])}${node.op}${node.args[1]}`;
    case '[]':
      return `${write(node.args[0])}[${operand(node.args[1])}]`;
    case '[?]':
      return `${write(node.args[0])}[?${operand(node.args[1])}]`;
    case 'call':
      return writeCall(node.args[0], node.args[1]);
    case 'rcall':
      return writeMethod(node.args[0], node.args[1], node.args[2]);
    case 'list':
      return `[${writeAll(node.args)}]`;
    case 'map':
      return `{${node.args.map(([key, value]) => `${operand(key)}: ${writeBare(value)}`).join(', ')}}`;
    default:
      return writeOperation(node);
  }
}

function writeAll(nodes: readonly ASTNode[]): string {
  return nodes.map(writeBare).join(', ');
}

/** What an operation works on, within the call that asks for its steps. */
function operand(node: ASTNode, asking = 'read'): string {
  return node.op === 'value' ? write(node) : `${asking}(${writeBare(node)})`;
}

function writeCall(name: string, operands: readonly ASTNode[]): string {
  if (name === 'has') return `has(${writeAll(operands)})`;
  if (isConversion(name)) return `${name}(convertible("${name}", ${writeAll(operands)}))`;
  const asking = SPELLING.has(name) ? 'spelled' : 'read';
  return `${name}(${operands.map((each) => operand(each, asking)).join(', ')})`;
}

function writeMethod(name: string, receiver: ASTNode, operands: readonly ASTNode[]): string {
  if (LOOPS.has(name)) {
    const [variable, ...bodies] = operands;
    const turns = bodies.map((body) => `tried(${countNodes(body)}, ${writeBare(body)})`);
    return `turned(${writeBare(receiver)}).${name}(${[write(variable!), ...turns].join(', ')})`;
  }
  if (SEARCHES.has(name)) {
    // One list of all, so that each is evaluated once, and before the steps are known.
    const others = operands.map((_, at) => `x[${at + 1}]`).join(', ');
    return `[[${writeAll([receiver, ...operands])}]].map(x, sought(x)[0].${name}(${others}))[0]`;
  }
  const others = operands.map((each) => operand(each)).join(', ');
  return `${operand(receiver, SPELLING.has(name) ? 'spelled' : 'read')}.${name}(${others})`;
}

function writeOperation(node: ASTNode): string {
  if (node.op === '!_') return `!${operand(node.args)}`;
  if (node.op === '-_') return `-${operand(node.args)}`;
  const operands = node.args as ASTNode[];
  const [first, second, third] = operands;
  switch (node.op) {
    case '==':
      return `same(${writeAll(operands)})`;
    case '!=':
      return `!same(${writeAll(operands)})`;
    case 'in':
      return `within(${writeAll(operands)})`;
    case '?:':
      return `${write(first!)} ? ${write(second!)} : ${write(third!)}`;
    case '&&':
    case '||':
      return `tried(0, ${writeBare(first!)}) ${node.op} ${write(second!)}`;
    case '+':
      return `finite(${operand(first!, 'copied')} + ${operand(second!, 'copied')})`;
    case '-':
    case '*':
    case '/':
      return `finite(${operand(first!)} ${node.op} ${operand(second!)})`;
    default:
      return `${operand(first!)} ${node.op} ${operand(second!)}`;
  }
}
