/** The rules of the house: direction of imports, purity, names, sizes and pins, checked in code. */

import { describe, expect, test } from 'bun:test';
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { isBuiltin } from 'node:module';
import { posix } from 'node:path';
import {
  isArrowFunction,
  isCallExpression,
  isElementAccessExpression,
  isExportAssignment,
  isExportDeclaration,
  isExternalModuleReference,
  isFunctionDeclaration,
  isFunctionExpression,
  isIdentifier,
  isImportDeclaration,
  isImportTypeNode,
  isInterfaceDeclaration,
  isLiteralTypeNode,
  isNewExpression,
  isNoSubstitutionTemplateLiteral,
  isPropertyAccessExpression,
  isStringLiteral,
  isTemplateExpression,
  isTypeAliasDeclaration,
  isTypeNode,
  isVariableStatement,
  type Node,
  type SourceFile,
  type Statement,
  SyntaxKind,
} from 'typescript/unstable/ast';
import { API } from 'typescript/unstable/async';
import { createVirtualFileSystem } from 'typescript/unstable/fs';

const LAYERS = ['schema', 'db', 'functions', 'web'];
const FUNCTION_LINES_MAX = 60;
const FUNCTION_LINES_P90 = 48;
const FILE_BYTES_MAX = 100_000;
const TOP_LEVEL = new Set(
  `package.json bun.lock bunfig.toml tsconfig.json biome.json README.md LICENSE SECURITY.md
  .gitignore .gitattributes .ci .github schema functions db web tests`.split(/\s+/),
);

interface File {
  readonly path: string;
  readonly text: string;
  /** Only for TypeScript. */
  readonly tree?: SourceFile;
}

type Source = File & { readonly tree: SourceFile };
type Rule = (files: readonly File[]) => string[];

// Parsing

async function parse(files: readonly File[], root = ''): Promise<File[]> {
  const scripts = files.filter(({ path }) => /\.tsx?$/.test(path));
  const config = { compilerOptions: { noLib: true, noResolve: true, types: [], jsx: 'preserve' } };
  const disk = Object.fromEntries(scripts.map(({ path, text }) => [`${root}/${path}`, text]));
  const fs = createVirtualFileSystem({ ...disk, '/tsconfig.json': JSON.stringify(config) });
  const api = new API({ cwd: '/', fs });
  try {
    const snapshot = await api.updateSnapshot({ openProjects: ['/tsconfig.json'] });
    const program = snapshot.getProjects()[0]?.program;
    return await Promise.all(
      files.map(async (file) => {
        const tree = await program?.getSourceFile(`${root}/${file.path}`);
        return tree ? { ...file, tree } : file;
      }),
    );
  } finally {
    await api.close();
  }
}

const layerOf = (path: string) => path.split('/')[0] ?? '';
const isProduct = ({ path }: File) => LAYERS.includes(layerOf(path));
const parsed = (files: readonly File[]) => files.filter((file): file is Source => 'tree' in file);
const product = (files: readonly File[]) => parsed(files).filter(isProduct);

function lineOf(text: string, position: number): number {
  return text.slice(0, position).split('\n').length;
}

function violation({ path, tree }: Source, node: Node, message: string): string {
  return `${path}:${lineOf(tree.text, node.getStart(tree))}: ${message}`;
}

/** Every node below `root` in the order of the text, with the node above it. */
function* nodes(root: Node, skip: (node: Node) => boolean = () => false): Generator<[Node, Node]> {
  const children: Node[] = [];
  root.forEachChild((child) => void children.push(child));
  for (const child of children) {
    if (skip(child)) continue;
    yield [child, root];
    yield* nodes(child, skip);
  }
}

const isTypeLevel = (node: Node) =>
  isTypeNode(node) || isInterfaceDeclaration(node) || isTypeAliasDeclaration(node);

const literal = (node: Node | undefined): string | undefined =>
  node && (isStringLiteral(node) || isNoSubstitutionTemplateLiteral(node)) ? node.text : undefined;

// Imports

interface Import {
  readonly from: Source;
  readonly node: Node;
  /** Absent where it is computed. */
  readonly specifier: string | undefined;
  readonly typeOnly: boolean;
}

function importOf(node: Node): Omit<Import, 'from' | 'node'> | undefined {
  if (isImportDeclaration(node)) {
    const typeOnly = node.importClause?.phaseModifier === SyntaxKind.TypeKeyword;
    return { specifier: literal(node.moduleSpecifier), typeOnly };
  }
  if (isExportDeclaration(node) && node.moduleSpecifier) {
    return { specifier: literal(node.moduleSpecifier), typeOnly: node.isTypeOnly };
  }
  if (isImportTypeNode(node)) {
    const { argument } = node;
    const specifier = isLiteralTypeNode(argument) ? literal(argument.literal) : undefined;
    return { specifier, typeOnly: true };
  }
  if (isExternalModuleReference(node)) {
    return { specifier: literal(node.expression), typeOnly: false };
  }
  if (isCallExpression(node) && isLoader(node.expression)) {
    return { specifier: literal(node.arguments[0]), typeOnly: false };
  }
  return undefined;
}

const isLoader = (callee: Node) =>
  callee.kind === SyntaxKind.ImportKeyword || (isIdentifier(callee) && callee.text === 'require');

function importsOf(from: Source): Import[] {
  const found: Import[] = [];
  for (const [node] of nodes(from.tree)) {
    const what = importOf(node);
    if (what) found.push({ from, node, ...what });
  }
  return found;
}

const isRelative = (specifier: string) => /^\.\.?(\/|$)/.test(specifier);

function targetOf({ from, specifier }: Import): string | undefined {
  if (specifier === undefined || !isRelative(specifier)) return undefined;
  return posix.join(posix.dirname(from.path), specifier);
}

function misdirection(found: Import): string | undefined {
  const { from, specifier, typeOnly } = found;
  if (specifier === undefined) return 'imports something computed';
  const target = targetOf(found);
  if (target === undefined)
    return /^[/#]|^\w+:\/\//.test(specifier) ? 'imports by path' : undefined;
  if (!/\.\w+$/.test(specifier)) return `imports ${specifier} without its extension`;
  if (target.startsWith('..')) return `imports ${specifier} from outside`;
  const [here, there] = [layerOf(from.path), layerOf(target)];
  if (!LAYERS.includes(here) || !(LAYERS.includes(there) || there === 'tests')) return undefined;
  if (from.path === 'schema/graphql/context.ts' && there === 'db' && typeOnly) return undefined;
  const leftwards = there !== 'tests' && LAYERS.indexOf(there) <= LAYERS.indexOf(here);
  return leftwards ? undefined : `${here} imports ${target}`;
}

const leftwardImports: Rule = (files) =>
  parsed(files)
    .flatMap(importsOf)
    .flatMap((found) => {
      const message = misdirection(found);
      return message ? [violation(found.from, found.node, message)] : [];
    });

const acyclicImports: Rule = (files) => {
  const edges = new Map(
    parsed(files).map((file) => [file.path, importsOf(file).map((found) => targetOf(found) ?? '')]),
  );
  const done = new Set<string>();
  const cycles: string[] = [];
  const visit = (path: string, trail: readonly string[]): void => {
    if (trail.includes(path)) cycles.push([...trail.slice(trail.indexOf(path)), path].join(' → '));
    if (done.has(path) || trail.includes(path)) return;
    for (const next of edges.get(path) ?? []) visit(next, [...trail, path]);
    done.add(path);
  };
  for (const path of edges.keys()) visit(path, []);
  return cycles;
};

// What a file may name

const IMPURE_GLOBALS = new Set(
  `process crypto fetch console performance globalThis self window global navigator location
  localStorage sessionStorage indexedDB setTimeout setInterval setImmediate queueMicrotask
  requestAnimationFrame clearTimeout clearInterval WebSocket EventSource XMLHttpRequest Worker
  MessageChannel BroadcastChannel AbortSignal Bun Deno Buffer eval Function require`.split(/\s+/),
);
const PURE_DATE = new Set(['UTC', 'parse', 'prototype']);

/** Whether an identifier only labels a member: `a.name`, `{ name: 1 }`, `name() {}`. */
function isLabel(node: Node, parent: Node): boolean {
  if (parent.kind === SyntaxKind.ShorthandPropertyAssignment) return false;
  if ('propertyName' in parent && parent.propertyName === node) return true;
  const labelled = [
    SyntaxKind.PropertyAccessExpression,
    SyntaxKind.PropertyAssignment,
    SyntaxKind.PropertyDeclaration,
    SyntaxKind.MethodDeclaration,
    SyntaxKind.GetAccessor,
    SyntaxKind.SetAccessor,
    // `declare global` adds to types, and runs nothing.
    SyntaxKind.ModuleDeclaration,
  ];
  return labelled.includes(parent.kind) && 'name' in parent && parent.name === node;
}

const BINDINGS = new Set([
  SyntaxKind.Parameter,
  SyntaxKind.VariableDeclaration,
  SyntaxKind.BindingElement,
  SyntaxKind.FunctionDeclaration,
  SyntaxKind.ClassDeclaration,
  SyntaxKind.ImportSpecifier,
]);

/** The names that a file binds itself, which are therefore not the global ones. */
function namesBound(file: Source): ReadonlySet<string> {
  const names = [...nodes(file.tree)]
    .filter(([, parent]) => BINDINGS.has(parent.kind))
    .filter(([node, parent]) => 'name' in parent && parent.name === node)
    .map(([node]) => node.getText(file.tree));
  return new Set(names);
}

function impurity(node: Node, parent: Node, bound: ReadonlySet<string>): string | undefined {
  if (node.kind === SyntaxKind.MetaProperty) return 'names import.meta';
  if (!isIdentifier(node) || isLabel(node, parent) || bound.has(node.text)) return undefined;
  if (IMPURE_GLOBALS.has(node.text)) return `names ${node.text}`;
  const member = isPropertyAccessExpression(parent) ? parent.name.text : undefined;
  if (node.text === 'Math') {
    return member === undefined || member === 'random' ? 'uses Math.random' : undefined;
  }
  if (node.text !== 'Date') return undefined;
  const given = isNewExpression(parent) && (parent.arguments?.length ?? 0) > 0;
  const compared = parent.kind === SyntaxKind.BinaryExpression;
  return given || compared || PURE_DATE.has(member ?? '') ? undefined : 'reads the clock';
}

const pureSchema: Rule = (files) =>
  product(files)
    .filter(({ path }) => layerOf(path) === 'schema')
    .flatMap((file) => {
      const platform = importsOf(file)
        .filter(
          ({ specifier = '' }) => isBuiltin(specifier) || /^(bun|node|npm|jsr)\b/.test(specifier),
        )
        .map(({ node, specifier }) => violation(file, node, `imports ${specifier}`));
      const bound = namesBound(file);
      const uses = [...nodes(file.tree, isTypeLevel)].flatMap(([node, parent]) => {
        const message = impurity(node, parent, bound);
        return message ? [violation(file, node, message)] : [];
      });
      return [...platform, ...uses];
    });

/** The name that a node uses as a value, be it `name`, `x.name`, `x['name']` or `{ name } = x`. */
function nameUsed(node: Node, parent: Node): string | undefined {
  if (isElementAccessExpression(parent) && parent.argumentExpression === node) return literal(node);
  if (!isIdentifier(node)) return undefined;
  if (parent.kind === SyntaxKind.PropertyAssignment && isLabel(node, parent)) return undefined;
  return node.text;
}

function onlyIn(places: RegExp, message: string, names: ReadonlySet<string>): Rule {
  return (files) =>
    product(files)
      .filter(({ path }) => !places.test(path))
      .flatMap((file) =>
        [...nodes(file.tree, isTypeLevel)]
          .filter(([node, parent]) => names.has(nameUsed(node, parent) ?? ''))
          .map(([node]) => violation(file, node, message)),
      );
}

/** The SDK is copied into other programs, where there is no db/seal.ts. */
const sealedCrypto = onlyIn(
  /^(db\/seal\.ts$|web\/sdk\/)/,
  'touches crypto.subtle',
  new Set(['subtle']),
);
const portable = onlyIn(/^functions\/(bun|deno)\.ts$/, 'names a runtime', new Set(['Bun', 'Deno']));
const quiet = onlyIn(/^(functions\/log\.ts$|web\/)/, 'prints', new Set(['console']));

const portableImports: Rule = (files) =>
  product(files)
    .flatMap(importsOf)
    .filter(({ specifier = '' }) => /^(bun$|bun:|npm:|jsr:)/.test(specifier))
    .map(({ from, node, specifier }) => violation(from, node, `imports ${specifier}`));

function* strings(root: Node): Generator<[Node, string]> {
  for (const [node] of nodes(root)) {
    const text = isTemplateExpression(node)
      ? [node.head, ...node.templateSpans.map((span) => span.literal)].map((n) => n.text).join('?')
      : literal(node);
    if (text !== undefined) yield [node, text];
  }
}

function stringsOutside(place: RegExp, pattern: RegExp, message: string): Rule {
  return (files) =>
    product(files)
      .filter(({ path }) => !place.test(path))
      .flatMap((file) =>
        [...strings(file.tree)]
          .filter(([, text]) => pattern.test(text))
          .map(([node]) => violation(file, node, message)),
      );
}

const oneDatabaseDoor = stringsOutside(
  /^db\/client\.ts$/,
  /^(npm:)?(@libsql\/|libsql(\/|@|$))/,
  'names libSQL',
);

const STATEMENTS = [
  'select\\s+(\\*|1\\b|distinct\\b|count\\(|.*\\sfrom\\s)',
  'insert\\s+(or\\s+\\w+\\s+)?into\\s',
  'update\\s+\\S+\\s+set\\s',
  'delete\\s+from\\s',
  '(create|drop|alter)\\s+((unique|temp|virtual)\\s+)?(table|index|trigger|view)\\s',
  'with\\s+\\w+\\s+as\\s*\\(',
  '(pragma|begin|savepoint)\\s+\\w+',
  '(select|insert into|replace into|delete from)\\s*$',
].join('|');
// Sentences begin with one capital; statements are written in lower case or in capitals.
const SQL = new RegExp(`^\\s*(${STATEMENTS}|${STATEMENTS.replace(/(?<!\\)[a-z]/g, upper)})`, 's');

function upper(letter: string): string {
  return letter.toUpperCase();
}

const sqlInOnePlace = stringsOutside(/^db\//, SQL, 'holds SQL');

// How a file reads

/** The comment at the very top, without its marks, and where it ends. */
function header(text: string): { readonly says: string; readonly end: number } | undefined {
  const start = /^#!.*\n/.exec(text)?.[0].length ?? 0;
  const comment = /^(\/\*\*?[\s\S]*?\*\/|(\/\/.*\n?)+)/.exec(text.slice(start))?.[0];
  if (comment === undefined) return undefined;
  const says = comment.replace(/^\s*(\/\*\*?|\/\/|\*(?!\/))|\*\/$/gm, ' ').replace(/\s+/g, ' ');
  return { says: says.trim(), end: start + comment.length };
}

const headed: Rule = (files) =>
  parsed(files)
    .filter(({ text }) => {
      const top = header(text);
      if (!top || !/^[A-Z0-9`].{10,}[.:?!]/.test(top.says)) return true;
      return !/^(\s*\n\s*\n|\s*(import|export \*)\b|\s*$)/.test(text.slice(top.end));
    })
    .map(({ path }) => `${path}:1: does not begin with a sentence about the file`);

const isExported = (node: Statement) =>
  'modifiers' in node &&
  Array.isArray(node.modifiers) &&
  node.modifiers.some(({ kind }: Node) => kind === SyntaxKind.ExportKeyword);

const isFunctionValue = (node: Node | undefined) =>
  node !== undefined && (isArrowFunction(node) || isFunctionExpression(node));

function exportedFunction(node: Statement): string | undefined {
  if (isExportAssignment(node)) return isFunctionValue(node.expression) ? 'default' : undefined;
  if (!isExported(node)) return undefined;
  if (isFunctionDeclaration(node)) return node.name?.text ?? 'default';
  if (!isVariableStatement(node)) return undefined;
  const [first] = node.declarationList.declarations;
  return first && isFunctionValue(first.initializer) ? first.name.getText() : undefined;
}

const documented: Rule = (files) =>
  parsed(files)
    .filter(({ path }) => !path.endsWith('.test.ts'))
    .flatMap((file) => {
      const top = header(file.text)?.end ?? 0;
      const missing = new Map<string, Node>();
      const present = new Set<string>();
      for (const statement of file.tree.statements) {
        const name = exportedFunction(statement);
        if (name === undefined) continue;
        if (statement.jsDoc?.some((comment) => comment.pos >= top)) present.add(name);
        else missing.set(name, statement);
      }
      return [...missing]
        .filter(([name]) => !present.has(name))
        .map(([name, node]) => violation(file, node, `exports ${name} without a docstring`));
    });

const FUNCTIONS = new Set([
  SyntaxKind.FunctionDeclaration,
  SyntaxKind.FunctionExpression,
  SyntaxKind.ArrowFunction,
  SyntaxKind.MethodDeclaration,
  SyntaxKind.Constructor,
  SyntaxKind.GetAccessor,
  SyntaxKind.SetAccessor,
]);

const isSuite = (parent: Node) =>
  isCallExpression(parent) && /^describe\b/.test(parent.expression.getText());

function functionLines(file: Source): { readonly node: Node; readonly lines: number }[] {
  return [...nodes(file.tree)]
    .filter(([node, parent]) => FUNCTIONS.has(node.kind) && !isSuite(parent))
    .map(([node]) => {
      const first = lineOf(file.tree.text, node.getStart(file.tree));
      return { node, lines: lineOf(file.tree.text, node.end) - first + 1 };
    });
}

const shortFunctions: Rule = (files) =>
  parsed(files).flatMap((file) =>
    functionLines(file)
      .filter(({ lines }) => lines > FUNCTION_LINES_MAX)
      .map(({ node, lines }) => violation(file, node, `a function of ${lines} lines`)),
  );

const mostlyShortFunctions: Rule = (files) => {
  const lines = product(files)
    .flatMap((file) => functionLines(file).map((found) => found.lines))
    .sort((a, b) => a - b);
  const p90 = lines[Math.floor(lines.length * 0.9)] ?? 0;
  return p90 < FUNCTION_LINES_P90 ? [] : [`nine functions in ten have up to ${p90} lines`];
};

// Files, pins and leftovers

const named: Rule = (files) =>
  files
    .filter(({ path }) => /manager|helper|util|common|misc/i.test(path))
    .map(({ path }) => `${path}: a name that says nothing`);

const inPlace: Rule = (files) =>
  files.filter(({ path }) => !TOP_LEVEL.has(layerOf(path))).map(({ path }) => `${path}: no place`);

const small: Rule = (files) =>
  files
    .filter(({ text }) => Buffer.byteLength(text) > FILE_BYTES_MAX)
    .map(({ path }) => `${path}: over ${FILE_BYTES_MAX} bytes`);

/** Joined here so that this file doesn't hold them. */
const LEFTOVERS = [
  ['TO', 'DO'],
  ['FIX', 'ME'],
  ['../sha', 'red'],
  ['/work', '/'],
].map((parts) => parts.join(''));

const finished: Rule = (files) =>
  files.flatMap(({ path, text }) =>
    LEFTOVERS.filter((word) => text.includes(word)).map(
      (word) => `${path}:${lineOf(text, text.indexOf(word))}: holds ${word}`,
    ),
  );

const lockWithoutUrl: Rule = (files) =>
  files
    .filter(({ path, text }) => path === 'bun.lock' && /https?:\/\//.test(text))
    .map(({ path }) => `${path}: holds a URL`);

const exactVersions: Rule = (files) =>
  files
    .filter(({ path }) => path === 'package.json')
    .flatMap(({ text }) => {
      const { dependencies, devDependencies } = JSON.parse(text);
      return Object.entries<string>({ ...dependencies, ...devDependencies });
    })
    .filter(([, version]) => !/^\d+\.\d+\.\d+(-[\w.]+)?$/.test(version))
    .map(([name, version]) => `package.json: ${name} is not pinned by ${version}`);

const pinnedActions: Rule = (files) =>
  files
    .filter(({ path }) => path.startsWith('.github/workflows/'))
    .flatMap(({ path, text }) =>
      [...text.matchAll(/^[\s-]*uses:\s*(.*)$/gm)]
        .filter(([, action = '']) => !/^[\w./-]+@[0-9a-f]{40} # v\d/.test(action))
        .map(([, action]) => `${path}: ${action} is not pinned to a commit and its version`),
    );

// Each rule with what it must find and what it must let pass

interface Case {
  readonly promise: string;
  readonly rule: Rule;
  readonly bad: readonly (readonly [path: string, text: string])[];
  readonly good: readonly (readonly [path: string, text: string])[];
}

const CASES: readonly Case[] = [
  {
    promise: 'imports point only leftwards in schema ← db ← functions ← web',
    rule: leftwardImports,
    bad: [
      ['schema/a.ts', `import { b } from '../db/b.ts';`],
      ['schema/a.ts', `import type { b } from '../db/b.ts';`],
      ['schema/graphql/context.ts', `import { b } from '../../db/b.ts';`],
      ['db/a.ts', `export * from '../functions/b.ts';`],
      ['db/a.ts', `export type { b } from '../functions/b.ts';`],
      ['db/a/b.ts', `const c = async () => await import('../../web/c.ts');`],
      ['db/a.ts', `type B = import('../functions/b.ts').B;`],
      ['db/a.ts', `const b = require('../functions/b.ts');`],
      ['db/a.ts', `import b = require('../functions/b.ts');`],
      ['functions/a.ts', `const b = (name: string) => import(name);`],
      ['web/a.ts', `import '../tests/b.ts';`],
      ['web/a.ts', `import b from '../../b.ts';`],
      ['web/a.tsx', `import b from '/etc/b.ts';`],
      ['web/a.ts', `import b from './b';`],
    ],
    good: [
      ['web/a.ts', `import '../schema/b.ts'; import '../db/c.ts'; import '../functions/d.ts';`],
      ['db/a.ts', `import './b.ts'; import { z } from 'zod'; import '../package.json';`],
      ['schema/graphql/context.ts', `import type { b } from '../../db/b.ts';`],
      ['tests/a.ts', `import '../web/b.ts';`],
      ['db/a.ts', `const text = "import '../web/b.ts'"; // import '../web/b.ts'`],
    ],
  },
  {
    promise: 'the schema is pure',
    rule: pureSchema,
    bad: [
      ...[
        `import { hash } from 'node:crypto';`,
        `import fs from 'fs';`,
        `import { file } from 'bun';`,
        'export const a = Date.now();',
        'export const a = new Date();',
        'export const a = new Date;',
        'export const a = Date();',
        'const { now } = Date;',
        `export const a = Date['now']();`,
        'export const a = Math.random();',
        'const { random } = Math;',
        `export const a = Math['random']();`,
        'export const a = process.env.A;',
        'export const a = import.meta.env;',
        'export const a = crypto.randomUUID();',
        'export const a = () => fetch(url);',
        'export const a = { fetch };',
        'console.log(1);',
        'setTimeout(() => {}, 1);',
        'export const a = globalThis.crypto;',
        `export const a = globalThis['Date'].now();`,
        'export const a = AbortSignal.timeout(5);',
        `export const a = eval('1');`,
      ].map((text) => ['schema/a.ts', text] as const),
    ],
    good: [
      [
        'schema/a.ts',
        `export const a = new Date(0); const b = Date.UTC(2026, 1); x instanceof Date;`,
      ],
      ['schema/a.ts', `export const a = Math.max(1, 2); // Math.random() and process`],
      ['schema/a.ts', `export const a = { fetch: 1, process: 2 }; a.fetch; a.process;`],
      [
        'schema/a.ts',
        `export interface A { fetch: typeof fetch; at: Date } type B = Date | Buffer;`,
      ],
      [
        'schema/a.ts',
        'export const a = (window: number) => { const self = window; return self; };',
      ],
      ['schema/a.ts', `import { z } from 'zod'; export const a = 'Date.now()';`],
      ['db/a.ts', `import 'node:fs'; export const a = Date.now();`],
    ],
  },
  {
    promise: 'only db/seal.ts touches crypto.subtle',
    rule: sealedCrypto,
    bad: [
      ['db/a.ts', 'crypto.subtle.digest(a, b);'],
      ['db/a.ts', `crypto['subtle'].digest(a, b);`],
      ['web/a.ts', 'const { subtle } = globalThis.crypto;'],
      ['web/a.ts', 'const { subtle: seal } = crypto;'],
      ['functions/a.ts', `import { subtle } from 'node:crypto';`],
    ],
    good: [
      ['db/seal.ts', 'crypto.subtle.digest(a, b);'],
      ['web/sdk/a.ts', 'crypto.subtle.digest(a, b);'],
      ['db/a.ts', `const a = 'subtle'; // crypto.subtle`],
    ],
  },
  {
    promise: 'only db/client.ts names libSQL',
    rule: oneDatabaseDoor,
    bad: [
      ['db/a.ts', `import Database from 'libsql';`],
      ['functions/a.ts', `import type { Client } from '@libsql/client';`],
      ['functions/a.ts', `const a = load('@libsql/client/web');`],
    ],
    good: [
      ['db/client.ts', `import Database from 'libsql';`],
      ['functions/a.ts', `const a = 'A libsql file'; // libsql`],
    ],
  },
  {
    promise: 'SQL stands only under db/',
    rule: sqlInOnePlace,
    bad: [
      ...[
        `'select * from runs'`,
        `'SELECT id, name FROM runs where id = ?'`,
        '`\n  select id\n  from runs`',
        `\`select \${columns} from runs where id = \${id}\``,
        `'insert into runs values (?)'`,
        `'INSERT OR IGNORE INTO runs values (?)'`,
        `'update runs set a = 1'`,
        `'delete from runs'`,
        `'create unique index a on runs (b)'`,
        `'CREATE TABLE a (b)'`,
        `'pragma journal_mode'`,
        `'begin immediate'`,
        `'with a as (select 1) select 2'`,
        `'select ' + columns`,
      ].map((text) => ['functions/a.ts', `run(${text});`] as const),
    ],
    good: [
      ['db/a.ts', `run('select * from runs');`],
      [
        'web/a.ts',
        `say('Select a model from the list.', 'Update the policy', 'Delete it from here');`,
      ],
      ['functions/a.ts', `say('selected', 'created', 'update', 'delete'); // select * from runs`],
    ],
  },
  {
    promise: 'only the entry files name a runtime',
    rule: (files) => [...portable(files), ...portableImports(files)],
    bad: [
      ['functions/a.ts', 'Bun.serve({});'],
      ['web/a.ts', 'globalThis.Deno.exit();'],
      ['web/a.ts', `globalThis['Deno'].exit();`],
      ['web/a.ts', 'const { Bun: b } = globalThis;'],
      ['functions/a.ts', `import { serve } from 'bun';`],
      ['functions/a.ts', `import { Database } from 'bun:sqlite';`],
    ],
    good: [
      ['functions/bun.ts', 'Bun.serve({});'],
      ['functions/deno.ts', 'Deno.serve({});'],
      ['functions/a.ts', `const a = 'Bun.serve'; // Deno`],
      ['tests/a.ts', 'Bun.serve({});'],
    ],
  },
  {
    promise: 'only the log and web/ print',
    rule: quiet,
    bad: [['functions/a.ts', 'console.log(1);']],
    good: [
      ['functions/log.ts', 'console.log(1);'],
      ['web/cli/a.ts', 'console.log(1);'],
    ],
  },
  {
    promise: 'every file begins with a sentence about it',
    rule: headed,
    bad: [
      ['db/a.ts', 'export const a = 1;\n'],
      ['db/a.ts', '/** */\n\nexport const a = 1;\n'],
      ['db/a.ts', '/** the docstring of a. */\nexport const a = 1;\n'],
      ['db/a.ts', '/** The docstring of the constant. */\nexport const a = 1;\n'],
      ['db/a.ts', '// biome-ignore lint\n\nexport const a = 1;\n'],
    ],
    good: [
      ['db/a.ts', '/** Runs: how they are remembered. */\n\nexport const a = 1;\n'],
      ['db/a.ts', `#!/usr/bin/env bun\n// Runs are remembered here.\nimport 'b';\n`],
      ['db/a.ts', '/**\n * Runs are remembered\n * here.\n */\n\nexport const a = 1;\n'],
    ],
  },
  {
    promise: 'every exported function has a docstring',
    rule: documented,
    bad: [
      ['db/a.ts', '/** The header of it. */\n\nexport function a() {}'],
      ['db/a.ts', '// A comment.\nexport const a = () => 1;'],
      ['db/a.ts', 'const b = 1;\nexport default function () {}'],
      ['db/a.ts', 'export default () => 1;'],
    ],
    good: [
      [
        'db/a.ts',
        '/** The header. */\n\n/** What it does. */\nexport function a() {}\nfunction b() {}',
      ],
      [
        'db/a.ts',
        '/** The header. */\n\n/** What it does. */\nexport const a = () => 1;\nexport const b = 1;',
      ],
      [
        'db/a.ts',
        '/** The header. */\n\n/** Both. */\nexport function a(b: 1): 1;\nexport function a(b: 2): 2;\nexport function a(b: number) { return b; }',
      ],
    ],
  },
  {
    promise: `no function is longer than ${FUNCTION_LINES_MAX} lines`,
    rule: shortFunctions,
    bad: [
      ['db/a.ts', `function a() {${'\n'.repeat(60)}}`],
      ['tests/a.test.ts', `test('a', () => {${'\n'.repeat(60)}});`],
      ['db/a.ts', `class A { b() {${'\n'.repeat(60)}} }`],
    ],
    good: [
      ['db/a.ts', `/**${'\n'.repeat(99)}*/function a() {${'\n'.repeat(59)}}`],
      ['tests/a.test.ts', `describe('a', () => {${'\n'.repeat(99)}});`],
    ],
  },
  {
    promise: `nine functions in ten are shorter than ${FUNCTION_LINES_P90} lines`,
    rule: mostlyShortFunctions,
    bad: [
      ['db/a.ts', `function a() {${'\n'.repeat(50)}}\n`.repeat(2) + 'function b() {}\n'.repeat(8)],
    ],
    good: [['db/a.ts', `function a() {${'\n'.repeat(50)}}\n${'function b() {}\n'.repeat(19)}`]],
  },
  {
    promise: 'names say what is in a file',
    rule: named,
    bad: ['helpers', 'stringUtils', 'run-manager', 'common/a', 'misc'].map(
      (name) => [`db/${name}.ts`, ''] as const,
    ),
    good: [['db/runs.ts', '']],
  },
  {
    promise: 'every file is in one of the known places',
    rule: inPlace,
    bad: ['src/a.ts', 'Makefile', 'docs/a.md', '.env'].map((path) => [path, ''] as const),
    good: ['db/a.ts', 'README.md', '.ci/run'].map((path) => [path, ''] as const),
  },
  {
    promise: 'no file is larger than 100 kB',
    rule: small,
    bad: [['db/a.sql', 'é'.repeat(50_001)]],
    good: [['db/a.sql', 'é'.repeat(50_000)]],
  },
  {
    promise: 'nothing is left to do',
    rule: finished,
    bad: LEFTOVERS.map((word) => ['db/a.ts', `// ${word}`] as const),
    good: [['db/a.ts', '// Todos are a noun here.']],
  },
  {
    promise: 'the lockfile holds no URL',
    rule: lockWithoutUrl,
    bad: [['bun.lock', '["a@1.0.0", "https://registry.example/a.tgz", {}]']],
    good: [['bun.lock', '["a@1.0.0", "", {}, "sha512-a"]']],
  },
  {
    promise: 'every dependency is pinned exactly',
    rule: exactVersions,
    bad: ['^1.0.0', '~1.0.0', '1.x', '*', 'latest', '>=1.0.0', 'github:a/b', '1.0'].map(
      (version) => ['package.json', JSON.stringify({ devDependencies: { a: version } })] as const,
    ),
    good: [
      ['package.json', '{"dependencies":{"a":"1.2.3"},"devDependencies":{"b":"1.0.0-pre.4"}}'],
    ],
  },
  {
    promise: 'workflows pin every action to a commit',
    rule: pinnedActions,
    bad: ['actions/a@v4', 'actions/a@main', `actions/a@${'a'.repeat(39)} # v4`, './local'].map(
      (action) => ['.github/workflows/a.yml', `    steps:\n      - uses: ${action}\n`] as const,
    ),
    good: [['.github/workflows/a.yml', `      - uses: actions/a@${'a1'.repeat(20)} # v4.0.0\n`]],
  },
];

// The repository

function walk(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => posix.join(entry.parentPath, entry.name))
    .filter((path) => !/(^|\/)(node_modules|dist)\//.test(path));
}

/** What is committed; without git, nothing. */
function committed(): string[] {
  try {
    const listed = execFileSync('git', ['ls-files', '-z'], { stdio: ['ignore', 'pipe', 'ignore'] });
    return listed
      .toString()
      .split('\0')
      .filter((path) => path !== '' && existsSync(path));
  } catch {
    return [];
  }
}

const FOLDERS = [...LAYERS, 'tests', '.ci', '.github'];

function readRepository(): File[] {
  const loose = ['package.json', 'bun.lock', 'README.md', 'SECURITY.md'].filter(existsSync);
  const paths = new Set([...committed(), ...FOLDERS.flatMap(walk), ...loose]);
  return [...paths].sort().map((path) => ({ path, text: readFileSync(path, 'utf8') }));
}

const label = (text: string) => JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text);

describe('tidy', async () => {
  const snippets = CASES.flatMap(({ bad, good }) => [...bad, ...good]);
  const files = snippets.map(([path, text], index) => ({ path: `${index}/${path}`, text }));
  const trees = (await parse(files)).map((file) => file.tree);
  const repository = await parse(readRepository());

  test('reads every TypeScript file', () => {
    const scripts = repository.filter(({ path }) => /\.tsx?$/.test(path));
    expect(scripts.filter(({ tree }) => tree === undefined)).toEqual([]);
    expect(scripts.map(({ path }) => path)).toContain('schema/money.ts');
  });

  describe('imports make no cycle', () => {
    const cycle = async (...texts: string[]) =>
      acyclicImports(await parse(texts.map((text, index) => ({ path: `db/${index}.ts`, text }))));

    test('finds a file that imports itself', async () => {
      expect(await cycle(`import './0.ts';`)).toEqual(['db/0.ts → db/0.ts']);
    });
    test('finds three files in a ring, types included', async () => {
      const ring = [
        `import './1.ts';`,
        `import type { a } from './2.ts';`,
        `export * from './0.ts';`,
      ];
      expect(await cycle(...ring)).toEqual(['db/0.ts → db/1.ts → db/2.ts → db/0.ts']);
    });
    test('lets pass two ways to one file', async () => {
      expect(await cycle(`import './1.ts'; import './2.ts';`, `import './2.ts';`, '')).toEqual([]);
    });
    test('holds here', () => expect(acyclicImports(repository)).toEqual([]));
  });

  let next = 0;
  for (const { promise, rule, bad, good } of CASES) {
    const run = ([path, text]: readonly [string, string]) => {
      const tree = trees[next++];
      return { path, text, ...(tree && { tree }) };
    };
    const [mustFind, mustPass] = [bad.map(run), good.map(run)];
    describe(promise, () => {
      for (const file of mustFind) {
        test(`finds ${file.path} ${label(file.text)}`, () => expect(rule([file])).not.toEqual([]));
      }
      for (const file of mustPass) {
        test(`lets pass ${file.path} ${label(file.text)}`, () => expect(rule([file])).toEqual([]));
      }
      test('holds here', () => expect(rule(repository)).toEqual([]));
    });
  }
});
