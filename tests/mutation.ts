/**
 * Looks whether each statement that has run keeps to its org, whatever ids and names it is given;
 * then takes away each org predicate of db/ in turn and looks whether a statement betrays it:
 * `bun tests/mutation.ts [--sample N] [--seed S]`. Prints each one that nothing notices; exit code
 * 1 when a statement goes astray, or when more than one in twenty of those that are run goes unnoticed.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { Statement } from '../db/client.ts';
import type { Stage as StageType, Statements } from './statements.ts';
import type { Watch, World } from './world.ts';

/** A place in the source where a statement names its org. */
interface Predicate {
  readonly number: number;
  /** File and line. */
  readonly place: string;
  readonly text: string;
}

const PREDICATE = /\b(?:\w+\.)?org_id = \?1(?!\d)/g;
const FOLDER = join(import.meta.dir, '../db');

/** Marks every predicate with its number, in a comment of SQL's, so that a running one is known. */
function markPredicates(): { sources: Map<string, string>; predicates: Predicate[] } {
  const predicates: Predicate[] = [];
  const mark = (file: string, line: string, at: number): string => {
    if (/^\s*(\*|\/\/|\/\*)|throw new Error|\.test\(/.test(line)) return line;
    return line.replace(PREDICATE, (text) => {
      const number = predicates.length;
      predicates.push({ number, place: `db/${file}:${at + 1}`, text: line.trim() });
      return `${text} /*#${number}*/`;
    });
  };
  const files = readdirSync(FOLDER).filter((name) => name.endsWith('.ts'));
  const sources = new Map(
    files.map((file) => {
      const lines = readFileSync(join(FOLDER, file), 'utf8').split('\n');
      return [join(FOLDER, file), lines.map((line, at) => mark(file, line, at)).join('\n')];
    }),
  );
  return { sources, predicates };
}

/** A second predicate, or another column that holds the org's id. */
const DOUBLED = /\/\*#[\s\S]*\/\*#|subject = \?1|select \?1 as org_id/;

/**
 * Statements on what stands for a moment only: holds, leases, lines, answers that are kept back;
 * and quotas, which no two orgs come near.
 */
const MOMENTARY =
  /set settled_at|leased_by|failing_since|raised_at is null|window_run_id|request_digest = |checked_at = |active_at = \?|status = 'blocked' and|actor = \?2|\) < \d+/;

const { sources, predicates } = markPredicates();

Bun.plugin({
  name: 'marked predicates',
  setup(build) {
    build.onLoad({ filter: /\/db\/[\w-]+\.ts$/ }, ({ path }) => {
      return { contents: sources.get(path) ?? readFileSync(path, 'utf8'), loader: 'ts' };
    });
  },
});

// Only modules that are loaded from here on are marked.
const { ATTEMPTS, setScene } = await import('./attempts.ts');
const { collectStatements, Stage } = await import('./statements.ts');
const { makeWorld } = await import('./world.ts');
const { tick } = await import('../functions/scheduled.ts');

/** The share of those that are run and not exempt, above which the check fails. */
const MOST_UNNOTICED = 0.05;

const withoutMark = ({ number }: Predicate) => {
  const pattern = new RegExp(`\\b(?:\\w+\\.)?org_id = \\?1 /\\*#${number}\\*/`, 'g');
  return (sql: string) => sql.replace(pattern, '?1 is not null');
};

/** The statements of everything that is tried. */
async function gather(): Promise<{ world: World; statements: Statements }> {
  const statements: Statements = new Map();
  const watch: Watch = {};
  collectStatements(watch, statements, () => true);
  const world = await makeWorld({}, watch);
  // Those of the other org are the same, and its ids would have no counterpart.
  for (const [sql, each] of statements) {
    statements.set(
      sql,
      each.filter(({ args }) => args[0] === world.own.org.id),
    );
  }
  collectStatements(watch, statements, (id) => id === world.own.org.id);
  const scene = await setScene(world);
  for (const attempt of ATTEMPTS) await attempt.run(scene);
  for (const laterMs of [2 * 3_600_000, 800 * 86_400_000]) {
    await tick({ ...world.services, now: () => Date.now() + laterMs }, 0);
  }
  await world.restore();
  watch.seen = undefined;
  return { world, statements };
}

/** Whether any statement that has the predicate betrays that it is gone. */
async function isNoticed(stage: StageType, predicate: Predicate, run: readonly Statement[]) {
  for (const statement of run) {
    if ((await stage.judge(statement, withoutMark(predicate))).length > 0) return true;
  }
  return false;
}

/** Numbers that follow from a seed: a linear congruential generator, modulo 2^32. */
function* numbersOf(seed: number): Generator<number> {
  for (let state = seed >>> 0; ; ) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    yield state;
  }
}

function sampleOf(seed: number, size: number): readonly Predicate[] {
  const numbers = numbersOf(seed);
  const keyed = predicates.map((each) => [Number(numbers.next().value), each] as const);
  const ordered = keyed.sort(([one], [other]) => one - other).map(([, each]) => each);
  return ordered.slice(0, size);
}

const { values } = parseArgs({
  options: { sample: { type: 'string' }, seed: { type: 'string', default: '1' } },
});
const chosen = values.sample ? sampleOf(Number(values.seed), Number(values.sample)) : predicates;

const { world, statements } = await gather();
const stage = await Stage.set(world);
const astray: string[] = [];
for (const [first] of statements.values()) {
  if (first) astray.push(...(await stage.judge(first)).map((each) => `${first.sql}: ${each}`));
}
const unnoticed: Predicate[] = [];
const exempt: Predicate[] = [];
const unreached: Predicate[] = [];
for (const predicate of chosen) {
  const mark = `/*#${predicate.number}*/`;
  const run = [...statements.values()].flat().filter(({ sql }) => sql.includes(mark));
  if (run.length === 0) unreached.push(predicate);
  else if (await isNoticed(stage, predicate, run)) continue;
  // Where a statement names its org again, what one of them keeps out the other may keep out too.
  else if (run.every(({ sql }) => DOUBLED.test(sql) || MOMENTARY.test(sql))) exempt.push(predicate);
  else unnoticed.push(predicate);
}
await stage.close();
await world.clear();

for (const each of astray) console.log(`astray     ${each}`);
for (const { place, text } of unnoticed) console.log(`unnoticed  ${place}: ${text}`);
for (const { place, text } of exempt) console.log(`exempt     ${place}: ${text}`);
for (const { place, text } of unreached) console.log(`not run    ${place}: ${text}`);
const noticed = chosen.length - unnoticed.length - exempt.length - unreached.length;
console.log(
  `${statements.size} statements; ${noticed} of ${chosen.length} predicates noticed (of ${predicates.length}), ${unnoticed.length} unnoticed, ${exempt.length} exempt, ${unreached.length} not run; seed ${values.seed}`,
);
process.exit(astray.length > 0 || unnoticed.length > noticed * MOST_UNNOTICED ? 1 : 0);
