/** The path of a call: its steps can neither be left out nor swapped. */

import { afterAll, describe, expect, test } from 'bun:test';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const ROOT = join(import.meta.dir, '..');
const SOURCE = readFileSync(join(ROOT, 'functions/proxy.ts'), 'utf8');

/** A step: the line that takes it, what it gives, its own name, and what it takes. */
interface Step {
  readonly line: string;
  readonly gives: string;
  readonly name: string;
  readonly takes: string;
}

const STEPS: readonly Step[] = [
  ...SOURCE.matchAll(/^ {4}const (\w+) = (?:await )?(\w+)\((\w+)\);.*\n/gm),
].map(([line, gives = '', name = '', takes = '']) => ({ line, gives, name, takes }));

/** Without a step, and what comes after it gets what it would have got. */
function without({ line, gives, takes }: Step): string {
  const [before = '', after = ''] = SOURCE.split(line);
  return before + after.replaceAll(new RegExp(`\\b${gives}\\b`, 'g'), takes);
}

/** Two steps that follow each other in the other order. */
function swapped(first: Step, second: Step): string {
  const early = second.line.replace(`(${second.takes})`, `(${first.takes})`);
  const late = first.line.replace(`(${first.takes})`, `(${second.gives})`);
  return without(first).replace(
    second.line.replace(`(${second.takes})`, `(${first.takes})`),
    `${early}${late}`,
  );
}

const folder = mkdtempSync(join(tmpdir(), 'rungate-path-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** The files in which the compiler finds an error of types. */
function compile(sources: ReadonlyMap<string, string>): Set<string> {
  for (const [name, text] of sources) writeFileSync(join(folder, `${name}.ts`), text);
  const compilerOptions = {
    rootDirs: [join(ROOT, 'functions'), folder],
    typeRoots: [join(ROOT, 'node_modules/@types')],
    noUnusedLocals: false,
  };
  const config = {
    extends: join(ROOT, 'tsconfig.json'),
    compilerOptions,
    include: [`${folder}/*.ts`],
  };
  // Where the copies stand, imports from beside and below functions/ are found too.
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(config));
  const tsc = join(ROOT, 'node_modules/.bin/tsc');
  const { stdout } = Bun.spawnSync([tsc, '--noEmit', '-p', folder, '--pretty', 'false']);
  const found = stdout.toString().matchAll(/(\w+)\.ts\(\d+,\d+\): error/g);
  return new Set([...found].map(([, name = '']) => name));
}

describe('the path of a call', () => {
  const sources = new Map([['whole', SOURCE]]);
  for (const [at, step] of STEPS.entries()) {
    sources.set(`without_${step.name}`, without(step));
    const next = STEPS[at + 1];
    if (next) sources.set(`${next.name}_before_${step.name}`, swapped(step, next));
  }
  for (const [name, text] of sources) {
    const absolute = text.replaceAll(/from '\.\.\/(schema|db)\//g, `from '${ROOT}/$1/`);
    sources.set(name, absolute);
  }

  test('compiles as it is, and with no step left out or swapped', () => {
    expect(STEPS.length).toBeGreaterThan(6);
    const broken = compile(sources);
    expect([...sources.keys()].filter((name) => !broken.has(name))).toEqual(['whole']);
  }, 120_000);
});
