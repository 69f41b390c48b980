/** Trails: the steps of a run that has ended are proven complete, with and without a database. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { createAgent } from '../db/agents.ts';
import { readChain } from '../db/audit.ts';
import { verifyOrg } from '../db/checkpoints.ts';
import { type Database, openDatabase, type Value } from '../db/client.ts';
import { reserve } from '../db/holds.ts';
import { migrate } from '../db/migrate.ts';
import { forOrg, type Org } from '../db/org.ts';
import { addPolicyVersion, readAgentPolicy } from '../db/policies.ts';
import { cancelRun, completeRun, findRun, openRun, reopenRun } from '../db/runs.ts';
import { newId } from '../db/seal.ts';
import { settle, settlement } from '../db/settlements.ts';
import { recordRemark } from '../db/steps.ts';
import { expireHolds } from '../db/system.ts';
import {
  ANCHOR_AFTER_MS,
  anchorRuns,
  checkTrail,
  findUnanchored,
  readTrail,
  TrailAudit,
} from '../db/trails.ts';
import type { AgentId, PolicyVersionId, RunId, StepId, TokenId } from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import { ANCHOR, type TrailStep } from '../schema/trail.ts';
import { deploy } from './rungate.ts';

setDefaultTimeout(60_000);

const START = Date.UTC(2030, 0, 1);
const HOUR_MS = 3_600_000;
const LATER = START + 3 * HOUR_MS;
const HELD = 1_000 as Nanos;
const UNLIMITED = { agentPerDay: undefined, agentPerMonth: undefined, orgPerMonth: undefined };

let folder: string;
let db: Database;
let org: Org;
let agentId: AgentId;
let tokenId: TokenId;
let policyVersionId: PolicyVersionId;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'rungate-trails-'));
  db = await openDatabase({ url: `file:${folder}/trails.db`, synchronous: 'normal' });
  await migrate(db);
  org = forOrg(db, newId('org'));
  const made = 'insert into orgs (id, slug, name, created_at) values (?1, ?1, ?1, 0)';
  await db.write([{ sql: made, args: [org.id] }]);
  const policy = await addPolicyVersion(org, 'operator', 'policy', '{}');
  agentId = (await createAgent(org, 'operator', 'agent', policy.id)).id;
  tokenId = (await org.first('select id from tokens where org_id = ?1'))!.id as TokenId;
  policyVersionId = (await readAgentPolicy(org, agentId))!.id;
});
afterAll(async () => {
  await db.close();
  rmSync(folder, { recursive: true, force: true });
});

async function open(): Promise<RunId> {
  const name = newId('request');
  await openRun(
    org,
    { agentId, policyVersionId, ceilingNanos: null, now: START },
    { name, source: 'test' },
  );
  return (await findRun(org, agentId, name))!.id;
}

const placeOf = (runId: RunId, now: number) => ({ runId, windows: windowsOf(now), now });

async function hold(runId: RunId, now = START): Promise<StepId> {
  const step = await reserve(org, {
    ...{ ...placeOf(runId, now), agentId, kind: 'model_call', heldNanos: HELD },
    ...{ leaseExpiresAt: now + 15_000, asked: { endpoint: 'chat', tokenId }, ceilings: UNLIMITED },
    standing: { tokenId, revision: 1, windowSince: null },
  });
  return step!;
}

async function call(runId: RunId, spentNanos: number, now = START): Promise<StepId> {
  const stepId = await hold(runId, now);
  const counted = { day: windowsOf(now).day, heldNanos: HELD, providerKey: null, model: null };
  const end = { now, spentNanos: spentNanos as Nanos, outcome: 'ok', answered: { latencyMs: 1 } };
  await settle(org, { runId, stepId, agentId, policyVersionId, ...counted }, end);
  return stepId;
}

const deny = (runId: RunId, now: number) =>
  recordRemark(org, {
    ...{ ...placeOf(runId, now), kind: 'denial', outcome: 'run_closed' },
    ...{ asked: { endpoint: 'chat', tokenId }, answered: {} },
  });

/** A run with as many calls, closed. */
async function ended(calls: number): Promise<RunId> {
  const runId = await open();
  for (let at = 0; at < calls; at++) await call(runId, at);
  await completeRun(org, runId, START);
  return runId;
}

const anchorAll = async (now = LATER) => {
  while ((await anchorRuns(org, now)) > 0);
  // What comes later has a later id, as it has when a run is anchored minutes after its end.
  await Bun.sleep(2);
};

const stateOf = async (run: RunId) => (await checkTrail(org, run))?.state;

/** What an export of the org as it stands says of a run. */
async function offline(run: RunId): Promise<string | undefined> {
  const audit = new TrailAudit(org.id);
  for await (const entry of readChain(org)) audit.addEntry(entry);
  for await (const step of readTrail(org, run)) audit.addStep(step);
  return audit.report().get(run)?.state;
}

const change = (sql: string, ...args: Value[]) => org.write(org.statement(sql, ...args));

describe('the trail of a run', () => {
  test('that has ended is anchored once nothing can change it any more, by one entry for many', async () => {
    const runs = [await ended(3), await ended(0)];
    const open1 = await open();
    expect(await findUnanchored(db, START + HOUR_MS / 2)).toEqual([]);
    expect(await anchorRuns(org, START + ANCHOR_AFTER_MS)).toBe(0);
    expect(await findUnanchored(db, LATER)).toEqual([org.id]);
    await anchorAll();
    expect(await findUnanchored(db, LATER)).toEqual([]);
    expect(await Promise.all([...runs, open1].map(stateOf))).toEqual([
      'anchored',
      'anchored',
      'unanchored',
    ]);
    const anchors = await org.read(
      'select id from audit_entries where org_id = ?1 and action = ?2',
      ANCHOR,
    );
    expect(anchors).toHaveLength(1);
    expect((await verifyOrg(org, [])).ok).toBe(true);
  });

  test('is found changed, whichever single value of whichever step was edited', async () => {
    const columns = Object.keys((await readAll(await ended(1)))[0]!).filter(
      (name) => name !== 'run_id',
    );
    expect(columns).toHaveLength(11);
    const others: Record<string, (value: Value) => Value> = {
      id: (value) => `${value}0`,
      kind: () => 'retry',
      settled_at: (value) => Number(value) + 1,
      outcome: () => 'broken',
    };
    const promise = fc.asyncProperty(
      ...([fc.integer({ min: 1, max: 4 }), fc.nat(), fc.constantFrom(...columns)] as const),
      async (calls, nth, column) => {
        const run = await ended(calls);
        await anchorAll();
        expect(await stateOf(run)).toBe('anchored');
        const steps = await readAll(run);
        const step = steps[nth % steps.length]!;
        const value = step[column as keyof TrailStep];
        const edit =
          others[column] ?? ((old: Value) => (typeof old === 'number' ? old + 1 : `${old} `));
        await change(
          `update steps set ${column} = ?4, tallies = tallies + 1 where org_id = ?1 and run_id = ?2 and id = ?3`,
          ...[run, step.id, edit(value)],
        );
        expect([column, await stateOf(run), await offline(run)]).toEqual([
          column,
          'broken',
          'broken',
        ]);
      },
    );
    await fc.assert(promise, { numRuns: 60 });
  });

  test('is found changed when a step is taken out, put in, or cut off, though the row says otherwise', async () => {
    const copy = (id: string) => `insert into steps (
        org_id, id, run_id, agent_id, kind, day, started_at, settled_at, asked, tallies
      ) select org_id, ${id}, run_id, agent_id, kind, day, started_at, settled_at, asked, 1
      from steps where org_id = ?1 and run_id = ?2 and id = ?3`;
    const remove = 'delete from steps where org_id = ?1 and run_id = ?2 and id = ?3';
    for (const [at, sql] of [
      [0, remove],
      [1, remove],
      [2, remove],
      [1, copy(`id || '0'`)],
      [0, copy(`'a'`)],
    ] as const) {
      const run = await ended(3);
      await anchorAll();
      const { id } = (await readAll(run))[at]!;
      await change(sql, run, id);
      await change(
        'update runs set anchored_at = null, anchored_head = null, anchored_last = null, anchored_steps = 0 where org_id = ?1 and id = ?2',
        run,
      );
      expect([sql, await stateOf(run), await offline(run)]).toEqual([sql, 'broken', 'broken']);
      // Also once what was made of it has been anchored anew.
      await anchorAll();
      expect(await stateOf(run)).toBe('broken');
    }
  });

  test('may grow by denials and by going on, and is anchored on from where it was', async () => {
    const run = await ended(2);
    await anchorAll();
    await deny(run, LATER);
    expect([await stateOf(run), await offline(run)]).toEqual(['grown', 'grown']);
    expect(await anchorRuns(org, LATER + ANCHOR_AFTER_MS - 1)).toBe(0);
    await anchorAll(LATER + HOUR_MS);
    expect([await stateOf(run), await offline(run)]).toEqual(['anchored', 'anchored']);
    await change(
      "update runs set status = 'blocked', blocked_until = 0 where org_id = ?1 and id = ?2",
      run,
    );
    expect(await reopenRun(org, run, LATER)).toBe(true);
    await call(run, 7, LATER);
    expect(await stateOf(run)).toBe('grown');
    await cancelRun(org, 'operator', run, LATER);
    await anchorAll(LATER + 3 * HOUR_MS);
    expect([await stateOf(run), await offline(run)]).toEqual(['anchored', 'anchored']);
    const [first] = await readAll(run);
    await change(
      "update steps set outcome = 'x' where org_id = ?1 and run_id = ?2 and id = ?3",
      run,
      first!.id,
    );
    expect([await stateOf(run), await offline(run)]).toEqual(['broken', 'broken']);
  });

  test('waits for a call that has not ended, and is not rewritten by one that ends too late', async () => {
    const run = await open();
    const step = await hold(run);
    await change(
      "update runs set status = 'cancelled', closed_at = ?3 where org_id = ?1 and id = ?2",
      run,
      START,
    );
    await anchorAll();
    expect(await stateOf(run)).toBe('unanchored');
    await expireHolds(db, LATER);
    await anchorAll();
    expect(await stateOf(run)).toBe('anchored');
    const late = { now: LATER, spentNanos: 1 as Nanos, outcome: 'ok', answered: {} };
    await org.write(settlement(org, run, step, late));
    expect(await stateOf(run)).toBe('anchored');
  });

  test('that is long is hashed in parts, and anchored as a whole', async () => {
    const run = await ended(1);
    const sql = `insert into steps (
        org_id, id, run_id, agent_id, kind, day, started_at, settled_at, asked
      ) select ?1, 'stp_z' || printf('%05d', value), ?2, ?3, 'note', '2030-01-01', ?4, ?4, '{}'
      from generate_series where 1`;
    const rows = Array.from({ length: 11_000 }, (_, at) => String(at).padStart(5, '0'));
    await change(
      sql.replace('generate_series where 1', 'json_each(?5)'),
      ...[run, agentId, START, JSON.stringify(rows)],
    );
    expect(await anchorRuns(org, LATER)).toBe(1);
    expect(await stateOf(run)).toBe('unanchored');
    await anchorAll();
    expect(await checkTrail(org, run)).toMatchObject({ state: 'anchored', steps: 11_001 });
  });
});

async function readAll(run: RunId): Promise<TrailStep[]> {
  return await Array.fromAsync(readTrail(org, run));
}

test('a call writes nothing for the anchor of its run', async () => {
  const run = await open();
  await change('update runs set anchored_at = 1 where org_id = ?1 and id = ?2', run);
  await Promise.all([call(run, 1), call(run, 2), call(run, 3)]);
  await call(run, 4);
  const row = await org.first(
    'select anchored_at, grown_at from runs where org_id = ?1 and id = ?2',
    run,
  );
  expect(row).toEqual({ anchored_at: 1, grown_at: null });
});

test('the command line proves trails by the database, and by an export alone', async () => {
  const deployment = await deploy({});
  try {
    for (const name of ['one', 'two']) {
      const headers = {
        ...{ authorization: `Bearer ${deployment.token}`, 'content-type': 'application/json' },
        'x-rungate-run-id': name,
      };
      const body = JSON.stringify({
        ...{ model: 'demo/demo-small', max_tokens: 20 },
        messages: [{ role: 'user', content: 'hello' }],
      });
      for (let at = 0; at < 2; at++) {
        const url = `${deployment.url}/v1/chat/completions`;
        expect((await fetch(url, { method: 'POST', headers, body })).status).toBe(200);
      }
      const complete = `${deployment.url}/v1/runs/${name}/complete`;
      expect((await fetch(complete, { method: 'POST', headers })).status).toBe(200);
    }
    const database = await deployment.database();
    const old = Date.now() - 2 * HOUR_MS;
    await database.write([{ sql: 'update runs set closed_at = ?1', args: [old] }]);
    const verify = (name: string) => deployment.cli('run', 'verify', name, '--org', 'acme');
    // Two ticks at once anchor once.
    await Promise.all([deployment.cli('tick'), deployment.cli('tick')]);
    const anchored = async () => (await verify('one')).stdout.includes('as they were anchored');
    while (!(await anchored())) await Bun.sleep(100);
    const entries = await database.read('select id from audit_entries where action = ?1', [ANCHOR]);
    expect(entries).toHaveLength(1);

    const out = join(deployment.folder, 'all.tar');
    expect((await deployment.cli('export', '--org', 'acme', '--out', out)).code).toBe(0);
    Bun.spawnSync(['tar', '-xf', out, '-C', deployment.folder, 'steps.jsonl']);
    const steps = join(deployment.folder, 'steps.jsonl');
    const trail = join(deployment.folder, 'audit.jsonl');
    writeFileSync(trail, (await deployment.cli('audit', 'export', '--org', 'acme')).stdout);
    const check = () =>
      deployment.cli('audit', 'verify', '--file', trail, '--steps', steps, '--json');
    const whole = await check();
    expect([whole.code, JSON.parse(whole.stdout).trails]).toEqual([
      0,
      { anchored: 2, grown: 0, unanchored: 0, absent: [], broken: [] },
    ]);
    const lines = readFileSync(steps, 'utf8').trimEnd().split('\n');
    writeFileSync(steps, `${lines.toSpliced(1, 1).join('\n')}\n`);
    const short = await check();
    expect(short.code).toBe(1);
    expect(JSON.parse(short.stdout).trails.broken).toHaveLength(1);

    await database.write([{ sql: "update steps set outcome = 'made up'", args: [] }]);
    const found = await verify('two');
    expect(found.code).toBe(1);
    expect(found.stdout).toContain('are not what they were');
    await database.close();
  } finally {
    await deployment.stop();
  }
});
