/** The benchmark: `bun run bench [--quick] [--only json1k] [--connections 64] [--json]`. */

import { parseArgs } from 'node:util';
import { type Running, start } from '../process.ts';
import { allowedCores, describeCores, pin, shareCores } from './cores.ts';
import type { Job, Outcome } from './load.ts';
import { PAYLOADS, type Payload } from './payloads.ts';
import { compare, type Row, table } from './report.ts';
import { bun, LISTENING, type Started, TARGETS, YARDSTICK } from './targets.ts';

const PATH = '/v1/chat/completions';
const CONNECTIONS = [1, 16, 64];
const FULL = { rounds: 5, budgetMs: 190_000, sliceMs: 1_000, heatingMs: 2_000 };
const QUICK = { rounds: 3, budgetMs: 40_000, sliceMs: 300, heatingMs: 1_000 };
/** The part of a slice that runs before anything is counted. */
const WARMUP_SHARE = 0.2;
/** At which the hot code of every target is compiled before the first round. */
const HEATING_CONNECTIONS = 64;

/** Whether the processes may end now. */
let finished = false;

/** One payload at one number of connections. */
interface Cell {
  readonly payload: Payload;
  readonly connections: number;
}

interface Contestant extends Started {
  readonly name: string;
  /** Bytes of the answer to each payload, found by asking once. */
  readonly expectedBytes: ReadonlyMap<string, number>;
}

function readOptions() {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
      only: { type: 'string', multiple: true, default: [] },
      connections: { type: 'string', multiple: true, default: [] },
      target: { type: 'string', multiple: true, default: [] },
      'server-cores': { type: 'string', default: '2' },
    },
  });
  const among = <T>(all: readonly T[], wanted: readonly string[], name: (one: T) => string) =>
    wanted.length === 0 ? all : all.filter((one) => wanted.includes(name(one)));
  const serverCores = Number(values['server-cores']);
  if (!(serverCores >= 1)) throw new RangeError('--server-cores needs a number from 1');
  return {
    json: values.json,
    pace: values.quick ? QUICK : FULL,
    payloads: among(PAYLOADS, values.only, ({ name }) => name),
    connections: values.connections.length > 0 ? values.connections.map(Number) : CONNECTIONS,
    targets: TARGETS.filter(
      ({ name }) =>
        values.target.length === 0 || name === YARDSTICK || values.target.includes(name),
    ),
    serverCores,
  };
}

/** Asks once, checks that the answer is whole and right, and gives its length in bytes. */
async function probe({ url, headers }: Started, { name, requestBody }: Payload): Promise<number> {
  const response = await fetch(url + PATH, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: requestBody,
    signal: AbortSignal.timeout(5_000),
  });
  const text = await response.text();
  const whole = name === 'sse50' ? text.endsWith('data: [DONE]\n\n') : text.endsWith('}');
  if (response.status !== 200 || !whole || !text.includes('"usage"')) {
    throw new Error(`${url} answers ${name} with ${response.status}: ${text.slice(0, 500)}`);
  }
  return Buffer.byteLength(text);
}

async function measure(load: Running, to: Contestant, cell: Cell, time: Times): Promise<Outcome> {
  const job: Job = {
    url: to.url + PATH,
    headers: to.headers,
    body: cell.payload.requestBody,
    connections: cell.connections,
    expectedBytes: to.expectedBytes.get(cell.payload.name) ?? 0,
    ...time,
  };
  load.send(JSON.stringify(job));
  const [, outcome = ''] = await load.next(/^outcome (.*)$/);
  return JSON.parse(outcome);
}

type Times = Pick<Job, 'warmupMs' | 'durationMs'>;

/** How long each measurement takes so that all of them together stay within the budget. */
function times({ rounds, budgetMs, sliceMs }: typeof FULL, cells: number, targets: number): Times {
  const slice = Math.min(sliceMs, budgetMs / (rounds * cells * targets));
  return { warmupMs: slice * WARMUP_SHARE, durationMs: slice * (1 - WARMUP_SHARE) };
}

/** Measures every target in every cell, round after round, beginning with another target each. */
async function race(
  load: Running,
  contestants: readonly Contestant[],
  cells: readonly Cell[],
  pace: typeof FULL,
): Promise<Row[]> {
  const time = times(pace, cells.length, contestants.length);
  const outcomes = new Map<string, Outcome[]>();
  const key = ({ payload, connections }: Cell, name: string) =>
    [payload.name, connections, name].join(' ');
  for (let round = 0; round < pace.rounds; round++) {
    for (const cell of cells) {
      for (let index = 0; index < contestants.length; index++) {
        const contestant = contestants[(index + round) % contestants.length];
        if (!contestant) continue;
        const outcome = await measure(load, contestant, cell, time);
        if (outcome.error) console.error(`${key(cell, contestant.name)}: ${outcome.error}`);
        const sofar = outcomes.get(key(cell, contestant.name)) ?? [];
        outcomes.set(key(cell, contestant.name), [...sofar, outcome]);
      }
    }
  }
  return cells.flatMap((cell) =>
    contestants.map(({ name }) => {
      const { payload, connections } = cell;
      const of = (target: string) => outcomes.get(key(cell, target)) ?? [];
      return compare({ payload: payload.name, connections, target: name }, of(name), of(YARDSTICK));
    }),
  );
}

async function main(): Promise<void> {
  const { json, pace, payloads, connections, targets, serverCores } = readOptions();
  const cells = payloads.flatMap((payload) =>
    connections.map((count) => ({ payload, connections: count })),
  );
  const cores = shareCores(allowedCores(), serverCores);
  const upstream = await start([...pin(cores.upstream), ...bun('upstream.ts')], {
    ready: LISTENING,
  });
  const load = await start([...pin(cores.load), ...bun('load.ts')], { ready: /^ready/ });
  reportDeath('upstream', upstream);
  reportDeath('load generator', load);
  const surroundings = { upstream: upstream.ready[1] ?? '', pin: pin(cores.server) };
  const contestants: Contestant[] = [];
  for (const { name, start: startTarget } of targets) {
    const started = await startTarget(surroundings);
    const lengths = payloads.map(async (one) => [one.name, await probe(started, one)] as const);
    const contestant = { name, ...started, expectedBytes: new Map(await Promise.all(lengths)) };
    contestants.push(contestant);
    for (const payload of payloads) {
      const heating = { warmupMs: 0, durationMs: pace.heatingMs };
      await measure(load, contestant, { payload, connections: HEATING_CONNECTIONS }, heating);
    }
  }
  const rows = await race(load, contestants, cells, pace);
  finished = true;
  await Promise.all([...contestants, upstream, load].map((each) => each.stop()));
  print(json, describeCores(cores), rows, pace.rounds);
  if (rows.some(({ errors }) => errors > 0)) process.exitCode = 1;
}

/** A process that dies takes every number after it along, so it is said how, and what it said. */
function reportDeath(name: string, { exit, output }: Running): void {
  void exit.then(({ code, signal }) => {
    if (!finished) console.error(`the ${name} ended with ${code ?? signal}: ${output()}`);
  });
}

/** Whether the upstream or the load generator is near its own limit, which flatters slow rows. */
function isTight({ target, ratio }: Row): boolean {
  return target === 'direct' && ratio.median < 1.5;
}

function print(json: boolean, machine: string, rows: readonly Row[], rounds: number): void {
  if (json) {
    console.log(JSON.stringify({ machine, runtime: `Bun ${Bun.version}`, rounds, rows }, null, 2));
    return;
  }
  console.log(`Bun ${Bun.version}; ${machine}`);
  console.log(`Medians of ${rounds} interleaved rounds (smallest…largest); compared with`);
  console.log(`"${YARDSTICK}" of the same round. The load is a closed loop: only one connection`);
  console.log('shows what is added to a call, the others include the wait for a turn.\n');
  console.log(table(rows));
  for (const { payload, connections, ratio } of rows.filter(isTight)) {
    const room = `direct is only ${ratio.median.toFixed(2)} times the yardstick`;
    console.log(`${payload} at ${connections}: ${room}, so the upstream holds faster rows back`);
  }
}

await main();
