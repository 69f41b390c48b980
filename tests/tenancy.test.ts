/** Orgs stay apart: whatever is foreign answers like what is missing, is never read and never changed. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { ID_SCALARS } from '../schema/graphql/builder.ts';
import { ATTEMPTS, compare, requestWith, type Scene, setScene, TARGETS } from './attempts.ts';
import { type Asker, bearer, makeAskers, makeWorld, type World } from './world.ts';

/** How many foreign and missing ids each place is tried with, by each asker. */
const VARIANTS = 12;

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
    for (const [operation, place] of TARGETS) {
      for (const { credential, role, kind } of askers) {
        for (let at = 0; at < VARIANTS; at++) {
          const found = await compare(scene, credential, operation, place, at);
          const where = `${operation.name} ${place.path.join('.')} for ${role} by ${kind}`;
          problems.push(...found.map((problem) => `${where}: ${problem}`));
          attempts += 2;
        }
      }
      if (operation.kind === 'mutation') await world.restore();
    }
    console.log(`${attempts} attempts on ${TARGETS.length} places`);
    expect(problems.slice(0, 20)).toEqual([]);
  });
});
