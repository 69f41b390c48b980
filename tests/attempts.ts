/** Attempts of one org on another: every operation with ids that are foreign, and what must not come of it. */

import { getNamedType, isObjectType } from 'graphql';
import type { Noun } from '../schema/ids.ts';
import {
  documentOf,
  type IdPlace,
  idPlaces,
  makeArguments,
  missingId,
  OPERATIONS,
  type Operation,
  selectionOf,
} from './graphql.ts';
import { ACTS, type Act } from './scene.ts';
import { bearer, type Credential, type Side, type World } from './world.ts';

/** The ids that an org has, by noun. */
export type Ids = ReadonlyMap<Noun, readonly string[]>;

/** Both sides as they are when nothing has been tried yet. */
export interface Scene {
  readonly world: World;
  readonly own: Ids;
  readonly foreign: Ids;
  /** Finds what only the foreign org has: ids and names. */
  readonly marks: RegExp;
  /** Finds its ids alone: a name may well be the same in two orgs. */
  readonly idMarks: RegExp;
  /** How long it took to answer for a foreign and for a missing id, ms. */
  readonly timings: { readonly foreign: number[]; readonly missing: number[] };
  /** The foreign org's rows. */
  readonly rows: ReadonlyMap<string, string>;
}

/** Something that is tried. */
export interface Attempt {
  readonly name: string;
  /** @returns what went wrong; nothing, when the foreign org stayed apart. */
  run(scene: Scene): Promise<readonly string[]>;
}

const NOUNS: Readonly<Record<string, Noun>> = {
  ...{ agt: 'agent', aud: 'audit', dlv: 'delivery', evt: 'event', gate: 'gate', inv: 'invitation' },
  ...{ mem: 'member', org: 'org', pol: 'policy', polv: 'policyVersion', key: 'providerKey' },
  ...{ run: 'run', ses: 'session', stp: 'step', tok: 'token', usr: 'user', whk: 'webhook' },
  ...{ alr: 'alertRule' as Noun },
};
const ID = /"(?:id|user_id)":"(([a-z]+)_[0-9a-hjkmnp-tv-z]{26})"/g;

/** The ids in an org's rows. */
export function idsOf(rows: ReadonlyMap<string, string>): Ids {
  const found = new Map<Noun, string[]>();
  for (const [, id = '', prefix = ''] of [...rows.values()].join('').matchAll(ID)) {
    const noun = NOUNS[prefix] ?? (prefix as Noun);
    found.set(noun, [...(found.get(noun) ?? []), id]);
  }
  return found;
}

/** Takes in both sides. */
export async function setScene(world: World): Promise<Scene> {
  const rows = await world.dump(world.foreign.org);
  const foreign = idsOf(rows);
  const { slug, name } = world.foreign;
  const ids = [...foreign.values()].flat();
  const own = idsOf(await world.dump(world.own.org));
  const timings = { foreign: [], missing: [] };
  const marks = new RegExp([slug, name, ...ids].join('|'));
  return { world, own, foreign, marks, idMarks: new RegExp(ids.join('|')), rows, timings };
}

/** What else than reading a statement does; nothing that only reads can have changed a row. */
const WRITES = /\b(?:insert|update|delete|replace)\b/i;

/** Runs an attempt with an eye on what is read and on the foreign org's rows; then all is as before. */
async function watched(
  { world, marks, rows }: Scene,
  act: () => Promise<readonly string[]>,
  isForeign: RegExp = marks,
): Promise<string[]> {
  const read = new Set<string>();
  let hasWritten = false;
  const before = world.watch.seen;
  world.watch.seen = (statement, found) => {
    before?.(statement, found);
    const { sql } = statement;
    hasWritten ||= WRITES.test(sql);
    if (found.length > 0 && isForeign.test(JSON.stringify(found))) read.add(sql.slice(0, 120));
  };
  const problems = [...(await act())];
  world.watch.seen = before;
  const now = hasWritten ? await world.dump(world.foreign.org) : rows;
  const changed = [...now].filter(([table, text]) => rows.get(table) !== text);
  for (const sql of read) problems.push(`read a foreign row: ${sql}`);
  for (const [table] of changed) problems.push(`changed foreign rows of ${table}`);
  if (changed.length > 0) await world.restore();
  return problems;
}

/** What an id is put into, and what stands in the other places. */
export function requestWith(
  { own }: Scene,
  operation: Operation,
  place: IdPlace | undefined,
  id: string,
): readonly [string, Record<string, unknown>] {
  const spot = place?.path.join('.');
  const given = makeArguments(operation.field, {
    id: (noun, path) => (path.join('.') === spot ? id : (own.get(noun)?.[0] ?? missingId(noun))),
    fills: (path) => spot?.startsWith(path.join('.')) ?? false,
  });
  const isObject = isObjectType(getNamedType(operation.field.type));
  const selection = isObject ? selectionOf(operation.field.type, { depth: 2, first: 2 }) : '';
  return [documentOf(operation, given, selection), given];
}

/** The errors of a mutation's payload. */
function payloadErrors(data: unknown, name: string): readonly { code: string }[] {
  const payload = (data as Record<string, { errors?: { code: string }[] } | null> | null)?.[name];
  return payload?.errors ?? [];
}

async function timed<T>(into: number[], act: () => Promise<T>): Promise<T> {
  const from = performance.now();
  const result = await act();
  into.push(performance.now() - from);
  return result;
}

/** Tries a foreign id where one is taken, and one that nothing has: both must be answered alike. */
export async function compare(
  scene: Scene,
  credential: Credential,
  operation: Operation,
  place: IdPlace,
  at = 0,
): Promise<readonly string[]> {
  const ids = scene.foreign.get(place.noun) ?? [];
  const foreign = ids[at % ids.length];
  if (foreign === undefined) return [`the scene has no ${place.noun}`];
  const missing = missingId(place.noun, at);
  const [document, given] = requestWith(scene, operation, place, foreign);
  return await watched(scene, async () => {
    const text = JSON.stringify(given).replaceAll(foreign, missing);
    const askFor = (kind: 'foreign' | 'missing') =>
      timed(scene.timings[kind], () =>
        scene.world.ask(credential, document, kind === 'foreign' ? given : JSON.parse(text)),
      );
    // Whichever comes second finds the caches warm.
    const isFirst = at % 2 === 0;
    const early = await askFor(isFirst ? 'foreign' : 'missing');
    const late = await askFor(isFirst ? 'missing' : 'foreign');
    const [one, other] = isFirst ? [early, late] : [late, early];
    const [left, right] = [
      one.text.replaceAll(foreign, 'ID'),
      other.text.replaceAll(missing, 'ID'),
    ];
    const problems: string[] = [];
    if (one.status !== other.status || left !== right) problems.push(`differs: ${left} | ${right}`);
    if (scene.marks.test(left)) problems.push(`shows what is foreign: ${left}`);
    const isDone = one.status === 200 && one.errors.length === 0;
    const succeeded = isDone && payloadErrors(one.data, operation.name).length === 0;
    if (operation.kind === 'mutation' && succeeded) problems.push(`succeeds: ${left}`);
    return problems;
  });
}

/** Runs an operation on the caller's own rows: what is foreign must not come along. */
async function runOwn(scene: Scene, operation: Operation, place?: IdPlace): Promise<string[]> {
  const { world, own, marks } = scene;
  const ids = place ? (own.get(place.noun) ?? []) : [''];
  const problems: string[] = [];
  for (const id of ids) {
    const [document, given] = requestWith(scene, operation, place, id);
    const act = async () => {
      const { text } = await world.ask(bearer(world.own.adminToken), document, given);
      return marks.test(text) ? [`shows what is foreign: ${text.slice(0, 300)}`] : [];
    };
    problems.push(...(await watched(scene, act)));
    if (operation.kind === 'mutation') await world.restore();
  }
  return problems;
}

/** Every operation that takes ids, by each of them. */
export const TARGETS: readonly (readonly [Operation, IdPlace])[] = OPERATIONS.flatMap((operation) =>
  idPlaces(operation.field).map((place) => [operation, place] as const),
);

const onGraphql: readonly Attempt[] = [
  ...OPERATIONS.map((operation) => ({
    name: `${operation.name} on one's own`,
    run: (scene: Scene) => runOwn(scene, operation),
  })),
  ...TARGETS.map(([operation, place]) => ({
    name: `${operation.name} with a foreign ${place.path.join('.')}`,
    run: async (scene: Scene) => {
      const credential = bearer(scene.world.own.adminToken);
      const problems = await compare(scene, credential, operation, place);
      if (operation.kind === 'mutation') await scene.world.restore();
      return problems;
    },
  })),
  ...TARGETS.map(([operation, place]) => ({
    name: `${operation.name} with an own ${place.path.join('.')}`,
    run: (scene: Scene) => runOwn(scene, operation, place),
  })),
];

interface Call {
  readonly method?: string;
  readonly path: string;
  readonly body?: object;
  readonly headers?: Readonly<Record<string, string>>;
  /** Whether it takes an admin token instead of an agent's. */
  readonly isAdmin?: boolean;
}

const CHAT = { model: 'demo/demo-small', messages: [{ role: 'user', content: 'hello' }] };

/** Routes beside GraphQL, with the id or name of something that may be another org's. */
const ROUTES: readonly (readonly [string, (ids: Ids, side: Side) => Call])[] = [
  ['a run', (ids) => ({ path: `/v1/runs/${ids.get('run')?.[0]}` })],
  ['an export', () => ({ path: '/api/export', isAdmin: true })],
  [
    'an export of the audit trail',
    () => ({ path: '/api/audit/export?format=jsonl', isAdmin: true }),
  ],
  [
    'a rotation',
    (ids) => ({
      method: 'POST',
      path: `/api/webhooks/${ids.get('webhook')?.[0]}/rotate-secret`,
      body: {},
      isAdmin: true,
    }),
  ],
  ['a run by name', (_, { name }) => ({ path: `/v1/runs/${name}` })],
  ['the steps of a run', (ids) => ({ path: `/v1/runs/${ids.get('run')?.[0]}/steps` })],
  ['the steps of a run by name', (_, { name }) => ({ path: `/v1/runs/${name}/steps` })],
  [
    'the end of a run',
    (_, { name }) => ({ method: 'POST', path: `/v1/runs/${name}/complete`, body: {} }),
  ],
  [
    'the end of a run by id',
    (ids) => ({ method: 'POST', path: `/v1/runs/${ids.get('run')?.[0]}/complete`, body: {} }),
  ],
  [
    'a tool',
    (_, { name }) => ({
      method: 'POST',
      path: `/v1/runs/${name}/tools`,
      body: { name: 'refund', arguments: { of: 1 } },
    }),
  ],
  ['a gate', (ids) => ({ path: `/v1/gates/${ids.get('gate')?.[0]}` })],
  [
    'a call in a run',
    (_, { name }) => ({
      method: 'POST',
      path: '/v1/chat/completions',
      body: CHAT,
      headers: { 'x-rungate-run-id': name },
    }),
  ],
  [
    'a call with a policy',
    (_, { name }) => ({
      method: 'POST',
      path: '/v1/chat/completions',
      body: CHAT,
      headers: { 'x-rungate-policy': `${name}-spare` },
    }),
  ],
];

const withoutTimes = (text: string) => text.replaceAll(/req_[0-9a-z]{26}/g, 'REQUEST');

async function sendRoute(
  { world }: Scene,
  token: string,
  { path, method = 'GET', body, headers }: Call,
) {
  const response = await world.send(path, {
    method,
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json', ...headers },
    ...(body ? { body: JSON.stringify(body) } : {}),
  });
  return { status: response.status, text: withoutTimes(await response.text()) };
}

/** Sends a call with the own org's token; what it says of ids that it was not sent, is foreign. */
async function tryRoute(scene: Scene, call: Call): Promise<string[]> {
  const { world, idMarks } = scene;
  const sent = JSON.stringify(call);
  const act = async () => {
    const { text, status } = await sendRoute(
      scene,
      call.isAdmin ? world.own.adminToken : world.own.agentToken,
      call,
    );
    const shown = idMarks.exec(text)?.[0];
    if (status >= 500) return [`fails: ${text.slice(0, 200)}`];
    return shown !== undefined && !sent.includes(shown) ? [`shows ${shown}`] : [];
  };
  const problems = await watched(scene, act, idMarks);
  await world.restore();
  return problems;
}

const onRoutes: readonly Attempt[] = ROUTES.flatMap(([what, make]) => [
  {
    name: `${what} of another org`,
    run: (scene: Scene) => tryRoute(scene, make(scene.foreign, scene.world.foreign)),
  },
  {
    name: `${what} of one's own`,
    run: (scene: Scene) => tryRoute(scene, make(scene.own, scene.world.own)),
  },
]);

/** Does something to the own org's rows; what goes through all orgs' is not held against it. */
async function perform(scene: Scene, act: Act): Promise<string[]> {
  const { world, idMarks } = scene;
  const run = async () => {
    await act.run(world, world.own.org);
    return [];
  };
  const problems = act.isOfAll ? await run() : await watched(scene, run, idMarks);
  await world.restore();
  return problems;
}

const onDatabase: readonly Attempt[] = ACTS.map((act) => ({
  name: act.name,
  run: (scene) => perform(scene, act),
}));

/** Everything that is tried once; each leaves the database as it was. */
export const ATTEMPTS: readonly Attempt[] = [...onGraphql, ...onRoutes, ...onDatabase];
