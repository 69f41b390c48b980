/** Orgs stay apart: whatever is foreign answers like what is missing, is never read and never changed. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { join } from 'node:path';
import { ID_SCALARS } from '../schema/graphql/builder.ts';
import { ATTEMPTS, compare, requestWith, type Scene, setScene, TARGETS } from './attempts.ts';
import { finish } from './process.ts';
import { type Asker, bearer, makeAskers, makeWorld, type World } from './world.ts';

/** About how many requests are made for foreign and missing ids. */
const ATTEMPTS_MADE = 20_000;

const startMutation = () =>
  Bun.spawn([process.execPath, join(import.meta.dir, 'mutation.ts')], {
    ...{ stdout: 'pipe' as const, stderr: 'pipe' as const },
  });

/** Takes as long as all the rest, and so runs beside it. */
let mutation: ReturnType<typeof startMutation>;
let world: World;
let scene: Scene;
let askers: readonly Asker[];

beforeAll(async () => {
  mutation = startMutation();
  world = await makeWorld();
  askers = await makeAskers(world, world.own);
  await world.keep();
  scene = await setScene(world);
});

afterAll(async () => {
  mutation.kill();
  await world?.clear();
});

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
  }, 300_000);
});

const medianOf = (values: readonly number[]): number =>
  values.toSorted((one, other) => one - other)[values.length >> 1] ?? Number.NaN;

describe('a statement', () => {
  test('that has run keeps to its org, and betrays each org predicate that is taken away', async () => {
    const { code, stdout, stderr } = await finish(mutation);
    console.log(stdout.trim().split('\n').at(-1));
    const told = code === 0 ? '' : stdout;
    expect({ code, told, stderr }).toEqual({ code: 0, told: '', stderr: '' });
  }, 300_000);
});
