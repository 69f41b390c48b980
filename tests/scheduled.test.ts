/** The scheduled function: each job does its work once, whoever ticks and however often. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { findAgent } from '../db/agents.ts';
import type { Statement, Value } from '../db/client.ts';
import { closeIdleRuns } from '../db/idle.ts';
import { takeJob } from '../db/jobs.ts';
import type { Org } from '../db/org.ts';
import { findOrg } from '../db/orgs.ts';
import { readAgentPolicy } from '../db/policies.ts';
import { openRun, searchRuns } from '../db/runs.ts';
import { makeApp } from '../functions/app.ts';
import { boot, shutDown } from '../functions/boot.ts';
import { Budget } from '../functions/jobs/batches.ts';
import { type Job, tick } from '../functions/scheduled.ts';
import type { Services } from '../functions/services.ts';
import { type Receiver, startReceiver } from './receiver.ts';
import { type Deployment, deploy, type Runtime } from './rungate.ts';

setDefaultTimeout(60_000);

const SECRET = 'a-scheduler-secret-of-this-test-0123456789';

let deployment: Deployment;
let services: Services;
let receiver: Receiver;
let org: Org;

beforeAll(async () => {
  deployment = await deploy({ processes: 0, policy: { run: { idleTimeoutS: 60 } } });
  services = await boot({
    RUNGATE_DATABASE_URL: `file:${deployment.folder}/rungate.db`,
    RUNGATE_EGRESS_ALLOW: '127.0.0.1/32',
    RUNGATE_LOG: 'silent',
    RUNGATE_SCHEDULER_SECRET: SECRET,
  });
  org = (await findOrg(services.db, 'acme'))!;
  receiver = startReceiver();
});

afterAll(async () => {
  await shutDown(services, 0);
  await receiver.stop();
  await deployment.stop();
});

/** A job that counts how often it was done. */
function counting(name: string, work: () => Promise<void> = async () => {}) {
  const job = {
    name,
    leaseMs: 10_000,
    done: 0,
    async run() {
      await work();
      job.done++;
      return { done: 1 };
    },
  };
  return job satisfies Job;
}

describe('a tick', () => {
  test('does every job in its order and reports on each', async () => {
    const { jobs } = await tick(services, 0);
    expect(jobs.map(({ name, outcome }) => `${name} ${outcome}`)).toEqual([
      'deliveries done',
      'expired_holds done',
      'expired_gates done',
      'idle_runs done',
      'limit_windows done',
      'retention done',
      'deletions done',
      'trails done',
      'checkpoints done',
      'alert_rules done',
      'price_refresh done',
    ]);
    for (const { name, counts } of jobs) {
      // The org's trail was never signed before.
      const done = Object.values(counts ?? {}).filter((count) => count > 0);
      expect([name, done]).toEqual([name, name === 'checkpoints' ? [1] : []]);
    }
  });

  test('goes on after a job that fails, and the next tick does that one again', async () => {
    let isBroken = true;
    const weak = counting('weak', async () => {
      if (isBroken) throw new RangeError('a secret of the database');
    });
    const strong = counting('strong');
    const first = await tick(services, 0, [weak, strong]);
    expect(first.jobs.slice(1)).toMatchObject([
      { name: 'weak', outcome: 'failed', error: 'RangeError' },
      { name: 'strong', outcome: 'done', counts: { done: 1 } },
    ]);
    isBroken = false;
    const second = await tick(services, 0, [weak, strong]);
    expect(second.jobs.slice(1).map(({ outcome }) => outcome)).toEqual(['done', 'done']);
  });

  test('begins no further job once the process is told to end', async () => {
    const stopping = new AbortController();
    const [first, second] = [counting('first', async () => stopping.abort()), counting('second')];
    const report = await tick({ ...services, stopping }, 0, [first, second]);
    expect(report.jobs.map(({ name }) => name)).toEqual(['deliveries', 'first']);
    expect([first.done, second.done]).toEqual([1, 0]);
  });

  test('leaves a job alone that another one is doing', async () => {
    const slow = counting('slow', () => Bun.sleep(50));
    const ticks = await Promise.all(Array.from({ length: 8 }, () => tick(services, 0, [slow])));
    const outcomes = ticks.map(({ jobs }) => jobs[1]!.outcome).toSorted();
    expect(outcomes).toEqual([...Array(7).fill('busy'), 'done']);
    expect(slow.done).toBe(1);
  });

  test('takes a job over once the lease of a process that is gone has run out', async () => {
    const job = counting('orphan');
    const lease = { name: 'orphan', by: 'gone', leaseMs: 10_000 };
    expect(await takeJob(services.db, { ...lease, now: Date.now() })).toBe(true);
    expect((await tick(services, 0, [job])).jobs[1]!.outcome).toBe('busy');
    const later = { ...services, now: () => Date.now() + 10_001 };
    expect((await tick(later, 0, [job])).jobs[1]!.outcome).toBe('done');
  });
});

test('a job that never comes to an end of its work leaves the rest to the next tick', async () => {
  // As if there were always more of it.
  const isEndless = /limit_slots|lease_expired|parked_parts/;
  const gate = { org_id: org.id, id: 'gate_1', expires_at: 1, created_at: 1 };
  const db: Services['db'] = Object.assign(Object.create(services.db), {
    read: async (sql: string, args: Value[]) =>
      sql.includes('* from gates')
        ? Array.from({ length: Number(args[1]) }, () => gate)
        : await services.db.read(sql, args),
    write: async (statements: readonly Statement[]) =>
      isEndless.test(statements[0]!.sql)
        ? [{ changes: Number(statements[0]!.args[1]) }]
        : await services.db.write(statements),
  });
  const { jobs } = await tick({ ...services, db }, 0);
  const bounded = ['expired_holds', 'expired_gates', 'limit_windows'];
  for (const job of jobs.filter(({ name }) => bounded.includes(name))) {
    expect([job.name, job.outcome, job.durationMs < 8_000]).toEqual([job.name, 'done', true]);
    expect([job.name, Object.values(job.counts!)[0]! > 40]).toEqual([job.name, true]);
  }
});

test('a batch that took long is followed by a pause that a lease outlasts', async () => {
  const startedMs = performance.now();
  const work = () => Bun.sleep(200).then(() => 1);
  expect(await new Budget(10_000).take(work)).toBe(1);
  // Nine times as long as the batch would be 1,800 ms.
  expect(performance.now() - startedMs).toBeLessThan(1_500);
});

describe('idle runs', () => {
  const open = async (name: string, now: number) => {
    const agent = (await findAgent(org, 'tester'))!;
    const version = (await readAgentPolicy(org, agent.id))!;
    const run = { agentId: agent.id, policyVersionId: version.id, ceilingNanos: null, now };
    await openRun(org, run, { name, source: 'header' });
    return (await searchRuns(org, name))[0]!;
  };

  test('are completed after the time of their policy, told once, and no others are', async () => {
    const now = Date.now();
    const idle = await open('idle', now - 60_000);
    await open('busy', now - 59_000);
    const held = await open('held', now - 60_000);
    await services.db.write([
      { sql: 'update runs set held_nanos = 5 where id = ?1', args: [held.id] },
    ]);
    const fixed = { ...services, now: () => now };
    const [first, second] = [await tick(fixed, 0), await tick(fixed, 0)].map(({ jobs }) =>
      jobs.find(({ name }) => name === 'idle_runs'),
    );
    expect([first!.counts, second!.counts]).toEqual([{ completed: 1 }, { completed: 0 }]);
    const states = await Promise.all(['idle', 'busy', 'held'].map((name) => searchRuns(org, name)));
    expect(states.map(([run]) => `${run!.status} ${run!.closedReason}`)).toEqual([
      'completed idle',
      'open null',
      'open null',
    ]);
    const events = await services.db.read(
      `select data from events where type = 'run.completed' and data like '%' || ?1 || '%'`,
      [idle.id],
    );
    expect(events.map(({ data }) => JSON.parse(String(data)))).toMatchObject([
      { runId: idle.id, run: 'idle', reason: 'idle', policy: 'test/v1', spentNanos: 0 },
    ]);
    // Else a later tick would complete them too, and tell so.
    await services.db.write([
      { sql: `update runs set held_nanos = 0, status = 'completed'`, args: [] },
    ]);
  });

  test('are completed batch by batch, and none is left out', async () => {
    const now = Date.now();
    for (const name of ['one', 'two', 'three']) await open(name, now - 60_000);
    const batch = () => closeIdleRuns(services.db, now, 3_600, 2);
    expect([await batch(), await batch(), await batch()]).toEqual([2, 1, 0]);
  });
});

describe('a tick by request', () => {
  const ask = async (authorization: string | undefined, on = services) => {
    const headers: Record<string, string> = authorization ? { authorization } : {};
    const request = new Request('http://rungate/scheduled/tick', { method: 'POST', headers });
    return await makeApp(on)(request, { address: '127.0.0.1' });
  };

  test('needs the secret', async () => {
    const wrong = [undefined, 'Bearer ', `Bearer ${SECRET}x`, `Bearer ${SECRET.slice(1)}`, SECRET];
    for (const each of wrong) expect([each, (await ask(each)).status]).toEqual([each, 401]);
    const response = await ask(`Bearer ${SECRET}`);
    expect(response.status).toBe(200);
    expect(((await response.json()) as { jobs: object[] }).jobs.length).toBeGreaterThan(3);
  });

  test('has its connection wait for the answer, once the secret was right', async () => {
    let waits = 0;
    const wait = () => waits++;
    const askWaiting = async (secret: string) => {
      const headers = { authorization: `Bearer ${secret}` };
      const request = new Request('http://rungate/scheduled/tick', { method: 'POST', headers });
      await makeApp(services)(request, { address: '127.0.0.1', wait });
      return waits;
    };
    expect(await askWaiting('wrong')).toBe(0);
    expect(await askWaiting(SECRET)).toBe(1);
  });

  test('is not there without a secret in the configuration', async () => {
    const config = { ...services.config, schedulerSecret: undefined };
    expect((await ask(`Bearer ${SECRET}`, { ...services, config })).status).toBe(404);
  });
});

const addWebhook = async (path: string) => {
  const url = `${receiver.url}/${path}`;
  const { stdout, code } = await deployment.cli('webhooks', 'add', url, '--org', 'acme', '--json');
  expect(code).toBe(0);
  return JSON.parse(stdout) as { id: string; secret: string };
};

const sendTest = async (id: string) => {
  const { stdout } = await deployment.cli('webhooks', 'test', id, '--org', 'acme', '--json');
  return (JSON.parse(stdout) as { eventId: string }).eventId;
};

test('a tick at the command line delivers and says so', async () => {
  const { id } = await addWebhook('cli');
  const event = await sendTest(id);
  const { code, stdout } = await deployment.cli('tick', '--json');
  expect(code).toBe(0);
  expect(JSON.parse(stdout).jobs[0]).toMatchObject({ outcome: 'done', counts: { delivered: 1 } });
  expect(receiver.received.map(({ headers }) => headers.get('webhook-id'))).toContain(event);
  const listed = await deployment.cli('webhooks', 'deliveries', '--webhook', id, '--org', 'acme');
  expect(listed.stdout).toContain('delivered');
});

test.each<Runtime>(['bun', 'deno'])('a server on %s ticks by itself', async (runtime) => {
  const { id } = await addWebhook(runtime);
  const other = await deploy({
    runtime,
    processes: 0,
    env: { RUNGATE_DATABASE_URL: `file:${deployment.folder}/${runtime}.db` },
  });
  try {
    const url = `${receiver.url}/${runtime}`;
    await other.cli('webhooks', 'add', url, '--org', 'acme');
    await other.cli('webhooks', 'test', url, '--org', 'acme');
    await other.serve();
    await receiver.until((all) => all.some(({ path }) => path === `/${runtime}`));
  } finally {
    await other.stop();
    await deployment.cli('webhooks', 'remove', id, '--org', 'acme');
  }
});
