/** Money under faults: whatever breaks, no call is free, no hold stays, and the books agree. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, spyOn, test } from 'bun:test';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { createAgent } from '../db/agents.ts';
import { type Database, DatabaseError, openDatabase } from '../db/client.ts';
import { reserve } from '../db/holds.ts';
import { migrate } from '../db/migrate.ts';
import { forOrg, type Org } from '../db/org.ts';
import { addPolicyVersion } from '../db/policies.ts';
import { blockRun, findRun, openRun, type Run, readRun, reopenRun } from '../db/runs.ts';
import { digest, newId, newMasterKey } from '../db/seal.ts';
import type { Hold } from '../db/settlements.ts';
import { expireHolds } from '../db/system.ts';
import { boot } from '../functions/boot.ts';
import { listen } from '../functions/bun.ts';
import { makeLog } from '../functions/log.ts';
import { Flights, LEASE_MS } from '../functions/proxy/flight.ts';
import type { AgentId, PolicyId, PolicyVersionId, StepId, TokenId } from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import { type Deployment, deploy, type Runtime } from './rungate.ts';
import { type Sqld, startSqld } from './sqld.ts';
import { SCRIPT_HEADER, type Script, startUpstream, type Upstream } from './upstream.ts';

setDefaultTimeout(60_000);

const RUNTIMES = ['bun', 'deno'] as const;
const PATHS = ['/v1/chat/completions', '/v1/messages', '/v1/responses'] as const;
type Path = (typeof PATHS)[number];

/** A call whose bytes go upstream unchanged, so that what arrived there can be found on the trail. */
interface Ask {
  readonly path: Path;
  readonly stream: boolean;
  readonly script: Script;
}

let calls = 0;

function bodyOf({ path, stream }: Ask): string {
  const content = `call ${++calls}`;
  const options = stream ? { stream_options: { include_usage: true } } : {};
  const chat = { messages: [{ role: 'user', content }], max_tokens: 64 };
  const members = {
    '/v1/chat/completions': { ...chat, ...options },
    '/v1/messages': chat,
    '/v1/responses': { input: content, max_output_tokens: 64 },
  }[path];
  return JSON.stringify({ model: 'test-model', stream, ...members });
}

function headersOf(token: string, { path, script }: Ask): Record<string, string> {
  return {
    'content-type': 'application/json',
    authorization: `Bearer ${token}`,
    'x-rungate-run-id': 'faulty',
    [SCRIPT_HEADER]: JSON.stringify(script),
    ...(path === '/v1/messages' ? { 'anthropic-version': '2023-06-01' } : {}),
  };
}

/** Calls, reads to the end, and says what became of it; the status is 0 where none came. */
async function send(
  url: string,
  token: string,
  ask: Ask,
): Promise<{ status: number; text: string }> {
  const init = { method: 'POST', headers: headersOf(token, ask), body: bodyOf(ask) };
  try {
    const response = await fetch(`${url}${ask.path}`, init);
    const text = await response.text().catch(() => 'broken');
    return { status: response.status, text };
  } catch {
    return { status: 0, text: 'broken' };
  }
}

/** Calls over a bare socket and tears it down after so many milliseconds. */
function tear(url: string, token: string, ask: Ask, afterMs: number): Promise<void> {
  const { hostname, port } = new URL(url);
  const body = bodyOf(ask);
  const headers = { host: hostname, 'content-length': body.length, ...headersOf(token, ask) };
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  const { promise, resolve } = Promise.withResolvers<void>();
  const socket = connect(Number(port), hostname, () => {
    socket.write(`POST ${ask.path} HTTP/1.1\r\n${lines.join('')}\r\n${body}`);
    setTimeout(() => socket.destroy(), afterMs);
  });
  socket.on('data', () => {});
  socket.on('error', () => {});
  socket.on('close', () => resolve());
  return promise;
}

/** Waits, with a bound, for what is under way to come to its end. */
async function eventually(isDone: () => Promise<boolean> | boolean): Promise<void> {
  for (let tries = 400; tries > 0; tries--) {
    if (await isDone()) return;
    await Bun.sleep(25);
  }
  throw new Error('it did not come to its end');
}

async function liveHolds(db: Database): Promise<number> {
  const sql = 'select count(*) as n from steps where settled_at is null';
  return Number((await db.first(sql, []))?.n);
}

/** Every call that reached the upstream is on the trail and has been charged. */
async function expectCharged(db: Database, upstream: Upstream): Promise<void> {
  const rows = await db.read(
    `select json_extract(asked, '$.requestDigest') as digest, spent_nanos from steps
     where kind = 'model_call'`,
    [],
  );
  const spent = new Map(rows.map((row) => [String(row.digest), Number(row.spent_nanos)]));
  const free = upstream.requests.filter(({ body }) => !((spent.get(digest(body)) ?? 0) > 0));
  expect(free.map((request) => request.text())).toEqual([]);
}

async function expectSound(deployment: Deployment, ...options: string[]): Promise<void> {
  const { stdout } = await deployment.cli('doctor', '--json', ...options);
  const sound = { ok: true, heldNanos: 0, liveHolds: 0, expiredHolds: 0 };
  expect(JSON.parse(stdout)).toMatchObject(sound);
}

/** Puts the clock forward for holds alone: as if their lease had run out. */
async function passLease(db: Database): Promise<void> {
  const sql = 'update steps set lease_expires_at = lease_expires_at - ?1 where settled_at is null';
  await db.write([{ sql, args: [LEASE_MS + 1] }]);
}

/** A deployment with an upstream of its own. */
class Stage {
  readonly upstream: Upstream;
  readonly deployment: Deployment;
  readonly db: Database;

  constructor(upstream: Upstream, deployment: Deployment, db: Database) {
    this.upstream = upstream;
    this.deployment = deployment;
    this.db = db;
  }

  send(ask: Ask, url = this.deployment.url) {
    return send(url, this.deployment.token, ask);
  }

  async close(): Promise<void> {
    await this.db.close();
    await this.deployment.stop();
    await this.upstream.stop();
  }
}

async function setUp(runtime: Runtime, env: Record<string, string> = {}): Promise<Stage> {
  const upstream = await startUpstream();
  const policy = { budget: { run: '1000.00', agentPerDay: '1000.00', orgPerMonth: '1000.00' } };
  const deployment = await deploy({ runtime, upstreamUrl: upstream.url, policy, env });
  return new Stage(upstream, deployment, await deployment.database());
}

describe.each(RUNTIMES)('on %s', (runtime) => {
  let stage: Stage;
  beforeAll(async () => {
    stage = await setUp(runtime);
  });
  afterAll(() => stage?.close());

  test('callers who tear their connection end the upstream call and pay for it', async () => {
    const { deployment, upstream, db } = stage;
    const from = performance.now();
    await stage.send({ path: PATHS[0]!, stream: false, script: {} });
    const tookMs = performance.now() - from;
    const torn = [];
    for (let at = 0; at < 60; at++) {
      const script: Script = at % 2 ? { endless: true, chunkDelayMs: 5 } : { delayMs: 40 };
      const ask = { path: PATHS[at % 3]!, stream: at % 2 === 1, script };
      torn.push(tear(deployment.url, deployment.token, ask, (at * (40 + 10 * tookMs)) / 15));
    }
    await Promise.all(torn);
    await eventually(async () => (await liveHolds(db)) === 0);
    const outcomes = await Promise.all(upstream.requests.map(({ outcome }) => outcome));
    expect(outcomes.length).toBeGreaterThan(10);
    const streams = upstream.requests.filter((request) => request.json().stream === true);
    const ends = await Promise.all(streams.map(({ outcome }) => outcome));
    expect(new Set(ends)).toEqual(new Set(['cancelled']));
    await expectCharged(db, upstream);
    await expectSound(deployment);
  });

  test('an upstream that breaks, lies or babbles at any point is paid for, once', async () => {
    const { deployment, upstream, db } = stage;
    await fc.assert(
      fc.asyncProperty(fc.array(faultyCall, { minLength: 1, maxLength: 8 }), async (asks) => {
        const answers = await Promise.all(asks.map((ask) => stage.send(ask)));
        for (const { status } of answers) expect([0, 200, 502]).toContain(status);
        expect(await liveHolds(db)).toBe(0);
      }),
      { numRuns: 25 },
    );
    await expectCharged(db, upstream);
    await expectSound(deployment);
  });

  test('a server told to stop lets its streams end and settles all of them', async () => {
    const { deployment, db } = stage;
    const running = await deployment.serve();
    const url = running.ready.groups?.url ?? '';
    const script = { repeat: 10, chunkDelayMs: 20 };
    const streams = PATHS.flatMap((path) => [path, path, path]).map(async (path) => {
      const ask = { path, stream: true, script };
      const init = { method: 'POST', headers: headersOf(deployment.token, ask), body: bodyOf(ask) };
      return await fetch(`${url}${path}`, init);
    });
    const begun = await Promise.all(streams);
    const ended = running.stop('SIGTERM', 20_000);
    const texts = await Promise.all(begun.map((response) => response.text()));
    for (const text of texts) expect(text).toMatch(/\[DONE\]|message_stop|response\.completed/);
    // Deno is started by a launcher, which the signal ends too.
    expect(await ended).toMatchObject(runtime === 'bun' ? { code: 0 } : {});
    await expectSound(deployment);
    const { n } = (await db.first(
      `select count(*) as n from steps where outcome in ('shutdown', 'lease_expired')`,
      [],
    ))!;
    expect(n).toBe(0);
  });

  test('a server killed under load leaves holds that are settled within their lease', async () => {
    const { deployment, upstream, db } = stage;
    const victim = await deployment.serve();
    const url = victim.ready.groups?.url ?? '';
    const load = Array.from({ length: 45 }, (_, at) => {
      const script: Script = at % 3 ? { delayMs: 5 * at } : { endless: true, chunkDelayMs: 10 };
      const ask = { path: PATHS[at % 3]!, stream: at % 3 === 0, script };
      return stage.send(ask, url);
    });
    const before = upstream.requests.length;
    await eventually(() => upstream.requests.length >= before + 15);
    await victim.stop('SIGKILL');
    await Promise.all(load);
    const left = await liveHolds(db);
    expect(left).toBeGreaterThan(0);
    const { ends } = (await db.first(
      'select max(lease_expires_at) as ends from steps where settled_at is null',
      [],
    ))!;
    expect(Number(ends)).toBeLessThanOrEqual(Date.now() + LEASE_MS);
    expect((await stage.send({ path: PATHS[0], stream: false, script: {} })).status).toBe(200);
    await passLease(db);
    await expectSound(deployment, '--fix');
    await expectCharged(db, upstream);
    const estimated = await db.read(
      `select spent_nanos - held_nanos as off, json_extract(answered, '$.estimated') as marked
       from steps where outcome = 'lease_expired'`,
      [],
    );
    expect(estimated).toEqual(Array(left).fill({ off: 0, marked: 1 }));
  });
});

/** Usage that no provider should send. */
const NONSENSE = [
  '{"prompt_tokens":-1,"completion_tokens":-1,"input_tokens":-1,"output_tokens":-1}',
  '{"prompt_tokens":1e308,"completion_tokens":1e308,"input_tokens":1e308,"output_tokens":1e308}',
  '{"prompt_tokens":"5","completion_tokens":"5","input_tokens":"5","output_tokens":"5"}',
  '{"prompt_tokens":1.5,"completion_tokens":0.1,"input_tokens":1.5,"output_tokens":0.1}',
  '{"prompt_tokens":9007199254740993,"input_tokens":9007199254740993,"output_tokens":[]}',
  '{}',
  '[]',
  '7',
  'null',
  'NaN',
];

/** Faults after which the upstream may have done the work, and charges for it. */
const fault: fc.Arbitrary<Script> = fc.oneof(
  fc.record({ breakAfterBytes: fc.integer({ min: 1, max: 2_000 }) }),
  fc.record({ breakAfterChunks: fc.nat(6), chunkBytes: fc.integer({ min: 1, max: 400 }) }),
  fc.record({ endAfterChunks: fc.nat(6), chunkBytes: fc.integer({ min: 1, max: 400 }) }),
  fc.record({ rawUsage: fc.constantFrom(...NONSENSE) }),
  fc.record({ usage: fc.constant(null) }),
  fc.record({ model: fc.constantFrom('another-model', '', 'x'.repeat(10_000)) }),
  fc.record({ body: fc.constantFrom('', '{', '[]', '"text"', '{"usage":{}}', '\0'.repeat(9)) }),
  fc.record({ chunks: fc.constant<string[]>(['data: {"usage":7}\n\n', 'data: [DONE]\n\n']) }),
  fc.record({ stall: fc.constant('socket' as const) }),
);

const faultyCall: fc.Arbitrary<Ask> = fc
  .record({
    path: fc.constantFrom(...PATHS),
    stream: fc.boolean(),
    script: fault,
  })
  .filter(({ stream, script }) => stream || script.endAfterChunks === undefined);

describe.each(RUNTIMES)('a server on %s that is told to stop', (runtime) => {
  let upstream: Upstream;
  let deployment: Deployment;
  /** A source of prices that never answers. */
  let source: Server;
  const sockets = new Set<Socket>();

  beforeAll(async () => {
    source = createServer((socket) => {
      sockets.add(socket.on('error', () => {}));
    }).listen(0, '127.0.0.1');
    await once(source, 'listening');
    upstream = await startUpstream();
    const { port } = source.address() as AddressInfo;
    const env = { RUNGATE_PRICES_URL: `http://127.0.0.1:${port}/prices.json` };
    deployment = await deploy({ ...{ runtime, env, processes: 0 }, upstreamUrl: upstream.url });
  });
  afterAll(async () => {
    await deployment?.stop();
    for (const socket of sockets) socket.destroy();
    source?.close();
    await upstream?.stop();
  });

  test('accepts nobody any more and ends soon, also while a tick is under way', async () => {
    const asked = once(source, 'connection');
    const running = await deployment.serve();
    const url = running.ready.groups?.url ?? '';
    await asked;
    const toldMs = performance.now();
    const ended = running.stop('SIGTERM', 20_000);
    await running.next(/"message":"stopping/);
    await eventually(() =>
      fetch(`${url}/healthz`).then(
        () => false,
        () => true,
      ),
    );
    const refusedMs = performance.now();
    expect(await ended).toMatchObject(runtime === 'bun' ? { code: 0 } : {});
    expect(refusedMs - toldMs).toBeLessThan(2_000);
    expect(performance.now() - toldMs).toBeLessThan(4_000);
  });

  test('does so once, and at once when it is told again a while later', async () => {
    const running = await deployment.serve();
    const url = running.ready.groups?.url ?? '';
    const ask = { path: PATHS[0], stream: true, script: { endless: true, chunkDelayMs: 20 } };
    const before = upstream.requests.length;
    const call = send(url, deployment.token, ask);
    await eventually(() => upstream.requests.length > before);
    void running.stop('SIGINT', 20_000);
    void running.stop('SIGTERM', 20_000);
    await Bun.sleep(1_300);
    const toldMs = performance.now();
    expect(await running.stop('SIGINT', 20_000)).toMatchObject(
      runtime === 'bun' ? { code: 1 } : {},
    );
    expect(performance.now() - toldMs).toBeLessThan(2_000);
    expect(running.output().match(/"message":"stopping/g)).toHaveLength(1);
    await call;
  });

  test('serves a caller who is still sending, or tells him to come back', async () => {
    const running = await deployment.serve();
    const url = running.ready.groups?.url ?? '';
    const ask = { path: PATHS[0], stream: false, script: {} };
    const body = bodyOf(ask);
    const { hostname, port } = new URL(url);
    const headers = { host: hostname, 'content-length': body.length, connection: 'close' };
    const lines = Object.entries({ ...headers, ...headersOf(deployment.token, ask) });
    const socket = connect(Number(port), hostname).setEncoding('utf8');
    socket.write(`POST ${ask.path} HTTP/1.1\r\n`);
    socket.write(`${lines.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`);
    socket.write(body.slice(0, 20));
    await Bun.sleep(300);
    const ended = running.stop('SIGTERM', 20_000);
    await running.next(/"message":"stopping/);
    await Bun.sleep(200);
    socket.write(body.slice(20));
    const answer = (await socket.toArray()).join('');
    expect(answer).toMatch(/^HTTP\/1.1 (?:200 |503 [\s\S]*"rungate_unavailable")/);
    await ended;
  });
});

describe('a server that is told to stop and whose callers do not let it', () => {
  test('ends their streams when its patience is over, and charges them', async () => {
    const upstream = await startUpstream();
    const deployment = await deploy({ upstreamUrl: upstream.url, processes: 0 });
    const services = await boot({
      HOST: '127.0.0.1',
      PORT: '0',
      RUNGATE_DATABASE_URL: `file:${deployment.folder}/rungate.db`,
      RUNGATE_EGRESS_ALLOW: '127.0.0.1/32',
      RUNGATE_LOG: 'silent',
    });
    const listening = listen(services);
    const reading = { path: PATHS[0], stream: true, script: { endless: true, chunkDelayMs: 5 } };
    const flooding = { path: PATHS[1], stream: true, script: { endless: true } };
    const patient = send(listening.url, deployment.token, reading).catch(() => ({
      text: 'broken',
    }));
    // Nobody reads this one: its bytes fill every buffer on the way, and then it stands still.
    const init = { method: 'POST', headers: headersOf(deployment.token, flooding) };
    const unread = await fetch(`${listening.url}${flooding.path}`, {
      ...init,
      body: bodyOf(flooding),
    });
    await upstream.received(1);
    await listening.stop(200);
    expect((await patient).text).toBe('broken');
    await unread.body?.cancel().catch(() => {});
    const db = await deployment.database();
    const ends = await db.read('select outcome, spent_nanos > 0 as paid from steps', []);
    expect(ends).toEqual(Array(2).fill({ outcome: 'shutdown', paid: 1 }));
    await db.close();
    await expectSound(deployment);
    await deployment.stop();
    await upstream.stop();
  });
});

/** What a refusal for want of a database looks like to each caller. */
const UNAVAILABLE = {
  '/v1/chat/completions': { error: { type: 'server_error', code: 'rungate_unavailable' } },
  '/v1/messages': { type: 'error', error: { type: 'api_error' } },
  '/v1/responses': { error: { type: 'server_error', code: 'rungate_unavailable' } },
};

async function expectUnavailable(stage: Stage, paths: readonly Path[] = PATHS): Promise<void> {
  const reached = stage.upstream.requests.length;
  const answers = await Promise.all(
    paths.map(async (path) => ({
      path,
      ...(await stage.send({ path, stream: true, script: {} })),
    })),
  );
  for (const { path, status, text } of answers) {
    expect(status).toBe(503);
    expect(JSON.parse(text)).toMatchObject(UNAVAILABLE[path]);
    expect(text).not.toMatch(/sqlite|locked|constraint|insert|127\.0\.0\.1/i);
  }
  expect(stage.upstream.requests.length).toBe(reached);
}

async function expectAvailable(stage: Stage): Promise<void> {
  for (const path of PATHS) {
    expect((await stage.send({ path, stream: false, script: {} })).status).toBe(200);
  }
}

describe('a database', () => {
  let stage: Stage;
  beforeAll(async () => {
    stage = await setUp('bun');
  });
  afterAll(() => stage?.close());

  test('that another process has locked is waited for, then answered for with 503', async () => {
    const { default: Libsql } = await import('libsql');
    const locker = new Libsql(join(stage.deployment.folder, 'rungate.db'), { timeout: 5_000 });
    await expectAvailable(stage);
    locker.exec('begin immediate');
    await expectUnavailable(stage, ['/v1/messages']);
    locker.exec('rollback');
    locker.close();
    await expectAvailable(stage);
    await expectSound(stage.deployment);
    await expectCharged(stage.db, stage.upstream);
  });

  test('that takes no more steps refuses every call, and serves again when it does', async () => {
    const trigger = `create trigger full before insert on steps
      begin select raise(abort, 'no more'); end`;
    await stage.db.write([{ sql: trigger, args: [] }]);
    await expectUnavailable(stage);
    await stage.db.write([{ sql: 'drop trigger full', args: [] }]);
    await expectAvailable(stage);
    await expectSound(stage.deployment);
  });

  test('that takes no settlement leaves the hold to its lease, which charges the bound', async () => {
    const { db, deployment, upstream } = stage;
    const trigger = `create trigger stuck before update on steps
      begin select raise(abort, 'not now'); end`;
    await db.write([{ sql: trigger, args: [] }]);
    await expectAvailable(stage);
    expect(await liveHolds(db)).toBe(PATHS.length);
    await db.write([{ sql: 'drop trigger stuck', args: [] }]);
    await passLease(db);
    await expectSound(deployment, '--fix');
    await expectCharged(db, upstream);
  });
});

describe('a database server', () => {
  let sqld: Sqld;
  let stage: Stage;
  beforeAll(async () => {
    sqld = await startSqld();
    const env = { RUNGATE_DATABASE_URL: sqld.url, RUNGATE_MASTER_KEYS: newMasterKey('test') };
    stage = await setUp('bun', env);
  });
  afterAll(async () => {
    await stage?.close();
    await sqld.stop();
  });

  test('that is killed is answered for with 503, and used again once it is back', async () => {
    await expectAvailable(stage);
    await sqld.kill();
    await expectUnavailable(stage);
    await sqld.restart();
    await expectAvailable(stage);
    await expectSound(stage.deployment);
  });

  test('that is killed during calls loses none of their money', async () => {
    const { db, deployment, upstream } = stage;
    const before = upstream.requests.length;
    const script = { repeat: 5, chunkDelayMs: 20 };
    const streams = PATHS.map((path) => stage.send({ path, stream: true, script }));
    await eventually(() => upstream.requests.length === before + PATHS.length);
    await sqld.kill();
    const ends = await Promise.all(streams);
    await sqld.restart();
    for (const { status } of ends) expect(status).toBe(200);
    await expectAvailable(stage);
    await passLease(db);
    await expectSound(deployment, '--fix');
    await expectCharged(db, upstream);
  });
});

const HELD = 1_000 as Nanos;
const SPENT = 10 as Nanos;
const ACTOR = 'operator';
const SILENT = makeLog('silent');

describe('a call in flight', () => {
  const folder = mkdtempSync(join(tmpdir(), 'rungate-faults-'));
  let db: Database;
  let org: Org;
  let run: Run;
  let policyId: PolicyId;
  let tokenId: TokenId;
  beforeAll(async () => {
    db = await openDatabase({ url: `file:${folder}/flights.db`, synchronous: 'normal' });
    await migrate(db);
    org = forOrg(db, newId('org'));
    const made = 'insert into orgs (id, slug, name, created_at) values (?1, ?1, ?1, 0)';
    await db.write([{ sql: made, args: [org.id] }]);
    policyId = (await addPolicyVersion(org, ACTOR, 'policy', '{}')).id;
    const { id: agentId } = await createAgent(org, ACTOR, 'agent', policyId);
    await db.write([{ sql: 'update orgs set revision = 1', args: [] }]);
    run = await openedRun(agentId);
    tokenId = (await org.first('select id from tokens where org_id = ?1'))?.id as TokenId;
  });
  afterAll(async () => {
    await db.close();
    rmSync(folder, { recursive: true, force: true });
  });

  async function openedRun(agentId: AgentId, name = 'run'): Promise<Run> {
    const policyVersionId = 'polv_x' as PolicyVersionId;
    const opened = { agentId, policyVersionId, ceilingNanos: null, now: 0 };
    await openRun(org, opened, { name, source: 'test' });
    return (await findRun(org, agentId, name))!;
  }

  async function hold(now: number): Promise<StepId> {
    const { stepId } = await reserve(org, {
      ...{ kind: 'model_call', runId: run.id, agentId: run.agentId, windows: windowsOf(now), now },
      ...{ heldNanos: HELD, leaseExpiresAt: now + LEASE_MS, asked: { endpoint: 'x', tokenId } },
      ceilings: { agentPerDay: undefined, agentPerMonth: undefined, orgPerMonth: undefined },
      standing: { tokenId, revision: 1, windowSince: null, unparkedSince: null },
    });
    return stepId!;
  }

  const holdOf = (stepId: StepId, now: number): Hold => ({
    ...{ runId: run.id, stepId, agentId: run.agentId, policyVersionId: run.policyVersionId },
    ...{ day: windowsOf(now).day, heldNanos: HELD, providerKey: null, model: null },
    tokens: undefined,
  });

  const stateOf = async (step: StepId) =>
    await org.first(
      'select outcome, spent_nanos, settled_at from steps where org_id = ?1 and id = ?2',
      step,
    );

  const endAt = (now: number) => ({ now, spentNanos: SPENT, outcome: 'ok', answered: {} });

  /** Flights whose clock and whose timer are the test's. */
  function flightsAt(clock: () => number) {
    const timers = spyOn(globalThis, 'setInterval');
    const flights = new Flights(db, SILENT, clock);
    const [renew, look] = timers.mock.calls.map(([callback]) => callback as () => void) as [
      () => void,
      () => void,
    ];
    timers.mockRestore();
    const tick = async () => {
      renew();
      // The renewal is a write of the same database: one after it resolves after it.
      await db.write([{ sql: 'update steps set held_nanos = held_nanos where 0', args: [] }]);
    };
    return { flights, tick, look };
  }

  test('keeps its hold however long it takes, as long as its process is there', async () => {
    const gaps = fc.array(fc.integer({ min: 1, max: 12_000 }), { minLength: 1, maxLength: 60 });
    const promise = fc.asyncProperty(gaps, async (gapsMs) => {
      let now = Date.UTC(2030, 0, 1);
      const { flights, tick } = flightsAt(() => now);
      const step = await hold(now);
      const flight = flights.start(org, holdOf(step, now), now + LEASE_MS);
      for (const gapMs of gapsMs) {
        now += gapMs;
        expect(await expireHolds(db, now)).toBe(0);
        await tick();
      }
      await flight.settle(endAt(now));
      expect(await stateOf(step)).toEqual({ outcome: 'ok', spent_nanos: SPENT, settled_at: now });
      await flights.drain(0);
    });
    await fc.assert(promise, { numRuns: 30 });
  });

  test('is waited for by all who drain, however often that is', async () => {
    const now = Date.now();
    const { flights } = flightsAt(() => now);
    const step = await hold(now);
    const flight = flights.start(org, holdOf(step, now), now + LEASE_MS);
    const drained = Promise.all([flights.drain(60_000), flights.drain(60_000)]);
    await flight.settle(endAt(now));
    await drained;
    await flights.drain(60_000);
  });

  test('is told the first reason for which it was ended, whatever ends it after that', async () => {
    const now = Date.now();
    const { flights } = flightsAt(() => now);
    const step = await hold(now);
    const flight = flights.start(org, holdOf(step, now), now + LEASE_MS);
    flight.abort('run_cancelled');
    flight.abort('shutdown');
    await flight.settle(endAt(now));
    await flights.drain(0);
    expect([flight.ended, flight.signal.reason]).toEqual(['run_cancelled', 'run_cancelled']);
  });

  test('whose process was away too long is charged its bound, until the truth is known', async () => {
    let now = Date.UTC(2031, 0, 1);
    const { flights, tick } = flightsAt(() => now);
    const step = await hold(now);
    const flight = flights.start(org, holdOf(step, now), now + LEASE_MS);
    now += LEASE_MS + 1;
    expect(await expireHolds(db, now)).toBe(1);
    await tick();
    const expired = { outcome: 'lease_expired', spent_nanos: HELD, settled_at: now };
    expect(await stateOf(step)).toEqual(expired);
    const activeAt = async () => (await findRun(org, run.agentId, 'run'))?.activeAt;
    // Its lease is the last that was heard of it.
    expect(await activeAt()).toBe(now - 1);
    await flight.settle(endAt(now + 1));
    const settled = { outcome: 'ok', spent_nanos: SPENT, settled_at: now + 1 };
    expect(await stateOf(step)).toEqual(settled);
    expect(await activeAt()).toBe(now + 1);
    await flights.drain(0);
  });

  test('is ended once its run has lasted as long as it may, not a millisecond before, and the run is blocked', async () => {
    let serial = 0;
    const offsets = fc.array(fc.integer({ min: -3, max: 3 }), { minLength: 1, maxLength: 6 });
    const promise = fc.asyncProperty(offsets, async (offsetsMs) => {
      const now = Date.UTC(2036, 0, 1);
      const { flights, look } = flightsAt(() => now);
      const flown = offsetsMs.map(async (offsetMs) => {
        const opened = await openedRun(run.agentId, `run-${serial++}`);
        // Two of each run: it is blocked once.
        const ties = { tokenId: null, deadline: now + offsetMs };
        const both = [newId('step'), newId('step')].map((stepId) => {
          const held = { ...holdOf(stepId, now), runId: opened.id };
          return flights.start(org, held, now + LEASE_MS, ties);
        });
        return { offsetMs, opened, both };
      });
      const all = await Promise.all(flown);
      const overdue = all.filter(({ offsetMs }) => offsetMs <= 0).flatMap(({ both }) => both);
      const ends = overdue.map(({ signal }) => once(signal, 'abort'));
      look();
      await Promise.all(ends);
      for (const { offsetMs, opened, both } of all) {
        const reason = offsetMs <= 0 ? 'run_overdue' : undefined;
        expect(both.map(({ ended }) => ended)).toEqual([reason, reason]);
        const stopped = { status: 'blocked', closedReason: 'run.max_duration' } as const;
        const open = { status: 'open', closedReason: null } as const;
        expect(await readRun(org, opened.id)).toMatchObject(reason ? stopped : open);
        for (const flight of both) await flight.settle(endAt(now));
      }
      await flights.drain(0);
    });
    await fc.assert(promise, { numRuns: 20 });
  });

  /** What stops a run of whom, and whether a call of `run` that cost less than its estimate frees it. */
  const STOPS = ['run', 'agent_per_day', 'agent_per_month', 'org_per_month', 'loop'].flatMap(
    (stop) =>
      ['its run', 'a run of its agent', 'a run of another agent'].map((whose) => {
        const isIts = whose === 'its run' || (whose === 'a run of its agent' && stop !== 'run');
        return [stop, whose, stop !== 'loop' && (isIts || stop === 'org_per_month')] as const;
      }),
  );

  test.each(STOPS)(
    'whose estimate was too high, where the budget %s stopped %s, lets it go on: %p',
    async (stop, whose, isFreed) => {
      const from = Date.UTC(
        2040,
        STOPS.findIndex((each) => each[0] === stop && each[1] === whose),
      );
      const colleague = () => createAgent(org, ACTOR, `colleague-${from}`, policyId);
      const owner = whose.endsWith('another agent') ? (await colleague()).id : run.agentId;
      const name = whose === 'its run' ? 'run' : `stopped-${from}`;
      const stopped = await openedRun(owner, name);
      const earlier = await openedRun(owner, `earlier-${from}`);
      const reason = stop === 'loop' ? stop : `budget.${stop}`;
      const block = async ({ id }: Run, at: number) =>
        expect(await blockRun(org, id, reason, null, at)).toBe(true);
      const { flights } = flightsAt(() => from);
      const step = await hold(from);
      const flight = flights.start(org, holdOf(step, from), from + LEASE_MS);
      await block(earlier, from);
      expect(await expireHolds(db, from + LEASE_MS + 1)).toBe(1);
      await block(stopped, from + LEASE_MS + 1);
      const endedAt = from + LEASE_MS + 2;
      expect(await reopenRun(org, stopped.id, endedAt)).toBe(false);
      await flight.settle(endAt(endedAt));
      expect(await reopenRun(org, stopped.id, endedAt)).toBe(isFreed);
      // What was stopped before the estimate was charged was not stopped by it.
      expect(await reopenRun(org, earlier.id, endedAt)).toBe(false);
      await org.write(org.statement("update runs set status = 'open' where org_id = ?1"));
      await flights.drain(0);
    },
  );

  test('keeps its run from being stopped, since it may give money back', async () => {
    const now = Date.UTC(2034, 0, 1);
    const step = await hold(now);
    expect(await blockRun(org, run.id, 'budget.run', null, now)).toBe(false);
    const { flights } = flightsAt(() => now);
    await flights.start(org, holdOf(step, now), now + LEASE_MS).settle(endAt(now));
    expect((await findRun(org, run.agentId, 'run'))?.status).toBe('open');
    await flights.drain(0);
  });

  test('is settled as soon as a database that was out of reach is back', async () => {
    const now = Date.UTC(2035, 0, 1);
    let failures = 2;
    const merge: Database['merge'] = async (...args) => {
      if (failures-- > 0) throw new DatabaseError(new Error('out of reach'));
      return await db.merge(...args);
    };
    const { flights } = flightsAt(() => now);
    const step = await hold(now);
    const shaky = forOrg({ ...db, merge }, org.id);
    await flights.start(shaky, holdOf(step, now), now + LEASE_MS).settle(endAt(now));
    expect(await stateOf(step)).toEqual({ outcome: 'ok', spent_nanos: SPENT, settled_at: now });
    await flights.drain(0);
  });

  test('is settled once, by whoever is first, however many try', async () => {
    const now = Date.UTC(2032, 0, 1);
    const { flights } = flightsAt(() => now);
    const step = await hold(now);
    const flight = flights.start(org, holdOf(step, now), now + LEASE_MS);
    const others = { ...endAt(now + 1), spentNanos: 999 as Nanos, outcome: 'broken' };
    await Promise.all([flight.settle(endAt(now)), flight.settle(others), flight.settle(others)]);
    expect(await stateOf(step)).toEqual({ outcome: 'ok', spent_nanos: SPENT, settled_at: now });
    expect(flight.renewal(now + LEASE_MS)).toBeUndefined();
    await flights.drain(0);
  });

  test('is aborted when a shutdown has waited long enough, and waited for until it is settled', async () => {
    const now = Date.UTC(2033, 0, 1);
    const { flights } = flightsAt(() => now);
    const step = await hold(now);
    const flight = flights.start(org, holdOf(step, now), now + LEASE_MS);
    flight.signal.addEventListener('abort', () => {
      void flight.settle({ ...endAt(now), outcome: String(flight.signal.reason) });
    });
    await flights.drain(0);
    expect(await stateOf(step)).toMatchObject({ outcome: 'shutdown', spent_nanos: SPENT });
  });
});
