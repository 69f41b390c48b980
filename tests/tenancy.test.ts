/** Orgs stay apart: whatever is foreign answers like what is missing, is never read and never changed. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { join } from 'node:path';
import { ID_SCALARS } from '../schema/graphql/builder.ts';
import { ATTEMPTS, compare, requestWith, type Scene, setScene, TARGETS } from './attempts.ts';
import { finish } from './process.ts';
import { collectStatements, Stage, type Statements } from './statements.ts';
import { type Asker, bearer, makeAskers, makeWorld, type Watch, type World } from './world.ts';

/** About how many requests are made for foreign and missing ids. */
const ATTEMPTS_MADE = 20_000;

let world: World;
let scene: Scene;
let askers: readonly Asker[];

beforeAll(async () => {
  world = await makeWorld();
  askers = await makeAskers(world, world.own);
  await world.keep();
  scene = await setScene(world);
});

afterAll(() => world?.clear());

test('the scene has one of every noun, in both orgs', () => {
  const nouns = [...new Set(TARGETS.map(([, { noun }]) => noun))];
  const lacking = nouns.filter((noun) => !scene.own.has(noun) || !scene.foreign.has(noun));
  expect(lacking).toEqual([]);
  expect(Object.values(ID_SCALARS).length).toBeGreaterThan(0);
});

const NOT_FOUND = /"(NOT_FOUND|INTERNAL|BAD_USER_INPUT|GRAPHQL_\w+)"|Variable "/;

describe('what one asks for of one’s own', () => {
  const places = TARGETS.map(([operation, place]) => {
    return [`${operation.name} by ${place.path.join('.')}`, operation, place] as const;
  });

  test.each(places)('%s is found', async (_, operation, place) => {
    const answers: string[] = [];
    for (const id of scene.own.get(place.noun) ?? []) {
      const [document, given] = requestWith(scene, operation, place, id);
      const answer = await world.ask(bearer(world.own.adminToken), document, given);
      await world.restore();
      if (!NOT_FOUND.test(answer.text)) return;
      answers.push(answer.text);
    }
    expect(answers).toEqual(['an answer that finds it']);
  });
});

describe('an attempt', () => {
  test.each(ATTEMPTS.map((attempt) => [attempt.name, attempt] as const))(
    '%s keeps the orgs apart',
    async (_, attempt) => {
      expect(await attempt.run(scene)).toEqual([]);
    },
  );
});

describe('a foreign id', () => {
  test('answers exactly like a missing one, to everyone, wherever an id is taken', async () => {
    const problems: string[] = [];
    let attempts = 0;
    const variants = Math.ceil(ATTEMPTS_MADE / (2 * TARGETS.length * askers.length));
    for (const [operation, place] of TARGETS) {
      for (const { credential, role, kind } of askers) {
        for (let at = 0; at < variants; at++) {
          const found = await compare(scene, credential, operation, place, at);
          const where = `${operation.name} ${place.path.join('.')} for ${role} by ${kind}`;
          problems.push(...found.map((problem) => `${where}: ${problem}`));
          attempts += 2;
        }
      }
      if (operation.kind === 'mutation') await world.restore();
    }
    const { foreign, missing } = scene.timings;
    const ratio = (medianOf(foreign) / medianOf(missing)).toFixed(3);
    console.log(`${attempts} attempts on ${TARGETS.length} places; foreign/missing: ${ratio}`);
    expect(problems.slice(0, 20)).toEqual([]);
  });
});

const medianOf = (values: readonly number[]): number =>
  values.toSorted((one, other) => one - other)[values.length >> 1] ?? Number.NaN;

describe('an org predicate', () => {
  test('that is taken away from a statement of db/ is noticed, one by one', async () => {
    const script = join(import.meta.dir, 'mutation.ts');
    const run = Bun.spawn([process.execPath, script], { stdout: 'pipe', stderr: 'pipe' });
    const { code, stdout, stderr } = await finish(run);
    console.log(stdout.trim().split('\n').at(-1));
    const told = code === 0 ? '' : stdout;
    expect({ code, told, stderr }).toEqual({ code: 0, told: '', stderr: '' });
  });
});

describe('a statement', () => {
  test('that has run neither reads nor changes the other org, whatever ids and names it is given', async () => {
    const statements: Statements = new Map();
    const watch: Watch = {};
    const isOwn = { id: '' };
    collectStatements(watch, statements, (id) => id === isOwn.id);
    const ground = await makeWorld({}, watch);
    try {
      isOwn.id = ground.own.org.id;
      const there = await setScene(ground);
      for (const attempt of ATTEMPTS) await attempt.run(there);
      watch.seen = undefined;
      const stage = await Stage.set(ground);
      const problems: string[] = [];
      for (const [first] of statements.values()) {
        if (first)
          problems.push(...(await stage.judge(first)).map((each) => `${first.sql}: ${each}`));
      }
      await stage.close();
      console.log(`${statements.size} statements`);
      expect(problems).toEqual([]);
    } finally {
      await ground.clear();
    }
  });
});
