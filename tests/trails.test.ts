/** Trails: the steps of a run that has ended are proven complete, with and without a database. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { createAgent } from '../db/agents.ts';
import { eraseActor, readChain } from '../db/audit.ts';
import { verifyOrg } from '../db/checkpoints.ts';
import { type Database, openDatabase, type Value } from '../db/client.ts';
import { reserve } from '../db/holds.ts';
import { migrate } from '../db/migrate.ts';
import { forOrg, type Org } from '../db/org.ts';
import { addPolicyVersion, readAgentPolicy } from '../db/policies.ts';
import { pruneEndedRuns, pruneOpenRuns } from '../db/retention.ts';
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
  STEP_AGE_MS,
  TrailAudit,
} from '../db/trails.ts';
import type { AgentId, PolicyVersionId, RunId, StepId, TokenId } from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import { ANCHOR, type TrailStep } from '../schema/trail.ts';
import { type Deployment, deploy } from './rungate.ts';

setDefaultTimeout(60_000);

const START = Date.UTC(2030, 0, 1);
const HOUR_MS = 3_600_000;
const YEAR_MS = 366 * 24 * HOUR_MS;
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
  await db.write([{ sql: 'update orgs set revision = 1', args: [] }]);
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
  const { stepId } = await reserve(org, {
    ...{ ...placeOf(runId, now), agentId, kind: 'model_call', heldNanos: HELD },
    ...{ leaseExpiresAt: now + 15_000, asked: { endpoint: 'chat', tokenId }, ceilings: UNLIMITED },
    standing: { tokenId, revision: 1, windowSince: null, unparkedSince: null },
  });
  return stepId!;
}

async function call(runId: RunId, spentNanos: number, now = START): Promise<StepId> {
  const stepId = await hold(runId, now);
  const counted = { day: windowsOf(now).day, heldNanos: HELD, providerKey: null, model: null };
  const end = { now, spentNanos: spentNanos as Nanos, outcome: 'ok', answered: { latencyMs: 1 } };
  await settle(
    org,
    { runId, stepId, agentId, policyVersionId, tokens: undefined, ...counted },
    end,
  );
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

  test('is not found broken by a step that was made before another and written after it', async () => {
    const run = await ended(1);
    const now = Date.now();
    const late = newId('step', now - 10);
    await deny(run, now);
    await change(
      'update runs set closed_at = ?3 where org_id = ?1 and id = ?2',
      run,
      START - 10 * YEAR_MS,
    );
    expect(await anchorRuns(org, now)).toBe(0);
    await change(
      `insert into steps (
         org_id, id, run_id, agent_id, kind, day, started_at, settled_at, asked
       ) values (?1, ?3, ?2, ?4, 'note', '2030-01-01', 0, 0, '{}')`,
      ...[run, late, agentId],
    );
    await anchorAll(now + 2 * STEP_AGE_MS);
    expect(await stateOf(run)).toBe('anchored');
  });

  test('that never stops growing is anchored up to what is young', async () => {
    const run = await ended(2);
    const now = Date.now() + 2 * HOUR_MS;
    await change(
      `insert into steps (
         org_id, id, run_id, agent_id, kind, day, started_at, settled_at, asked
       ) values (?1, ?3, ?2, ?4, 'note', '2030-01-01', 0, 0, '{}')`,
      ...[run, newId('step', now), agentId],
    );
    await change(
      'update runs set closed_at = ?3 where org_id = ?1 and id = ?2',
      run,
      START - 10 * YEAR_MS,
    );
    while ((await anchorRuns(org, now)) > 0);
    expect(await stateOf(run)).toBe('grown');
    await anchorAll(now + 2 * HOUR_MS);
    expect(await stateOf(run)).toBe('anchored');
  });

  test('stays proven when what Rungate did is erased from the audit trail', async () => {
    const run = await ended(1);
    await anchorAll();
    await eraseActor(org, 'operator', 'system');
    expect(await stateOf(run)).toBe('anchored');
  });

  test('is anchored with what a late answer said, or that answer comes too late', async () => {
    const run = await open();
    const step = await hold(run);
    await expireHolds(db, START + HOUR_MS);
    await completeRun(org, run, START);
    const late = { now: LATER, spentNanos: 1 as Nanos, outcome: 'ok', answered: {} };
    // Written between the reading of the steps and the writing of the anchor.
    const write = org.write.bind(org);
    const slow = Object.assign(Object.create(org) as Org, {
      id: org.id,
      read: org.read.bind(org),
      statement: org.statement.bind(org),
      write: async (...statements: Parameters<Org['write']>) => {
        await write(settlement(org, run, step, late));
        return await write(...statements);
      },
    });
    await expect(anchorRuns(slow, LATER)).rejects.toThrow('NOT NULL');
    expect(await stateOf(run)).toBe('unanchored');
    await anchorAll();
    expect(await stateOf(run)).toBe('anchored');
  });

  test('is not found broken by retention, which tells what it deletes', async () => {
    const closed = await ended(5);
    await anchorAll();
    const again = await ended(3);
    await anchorAll();
    await change(
      "update runs set status = 'blocked', blocked_until = 0 where org_id = ?1 and id = ?2",
      again,
    );
    expect(await reopenRun(org, again, LATER)).toBe(true);
    await change('delete from runs where org_id = ?1 and id not in (?2, ?3)', closed, again);
    expect(await pruneEndedRuns(org, LATER, 2)).toBe(2);
    expect([await stateOf(closed), await offline(closed)]).toEqual(['unanchored', 'unanchored']);
    expect(await pruneOpenRuns(org, LATER, 2)).toBe(2);
    expect([await stateOf(again), await offline(again)]).toEqual(['unanchored', 'unanchored']);
    await cancelRun(org, 'operator', again, LATER);
    await anchorAll(LATER + 3 * HOUR_MS);
    expect([await stateOf(again), await offline(again)]).toEqual(['anchored', 'anchored']);
    while ((await pruneEndedRuns(org, LATER + 9 * HOUR_MS, 50)) > 0);
    expect([await stateOf(closed), await offline(closed)]).toEqual([undefined, undefined]);
    expect((await verifyOrg(org, [])).ok).toBe(true);
  });

  test('that is long is hashed in parts, and anchored as a whole', async () => {
    const run = await ended(1);
    const sql = `insert into steps (
        org_id, id, run_id, agent_id, kind, day, started_at, settled_at, asked
      ) select ?1, 'stp_0' || printf('%05d', value), ?2, ?3, 'note', '2030-01-01', ?4, ?4, '{}'
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

/** A run of two calls, from its first call to its end. */
async function runThrough({ url, token }: Deployment, name: string): Promise<void> {
  const headers = { authorization: `Bearer ${token}`, 'x-rungate-run-id': name };
  const asked = { model: 'demo/demo-small', messages: [{ role: 'user', content: 'hello' }] };
  const body = JSON.stringify({ ...asked, max_tokens: 20 });
  for (const path of [
    '/v1/chat/completions',
    '/v1/chat/completions',
    `/v1/runs/${name}/complete`,
  ]) {
    const response = await fetch(`${url}${path}`, { method: 'POST', headers, body });
    expect(response.status).toBe(200);
  }
}

/** As if all runs had ended at a time, and their steps been made long before. */
const makeOlder = (closedAt: number) => [
  { sql: 'update runs set closed_at = ?1', args: [closedAt] },
  { sql: "update steps set id = 'stp_00' || substr(id, 7)", args: [] },
];

test('the command line proves trails by the database, and by an export alone', async () => {
  const deployment = await deploy({});
  try {
    for (const name of ['one', 'two']) await runThrough(deployment, name);
    const database = await deployment.database();
    const old = Date.now() - 2 * HOUR_MS;
    await database.write(makeOlder(old));
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
    const { run_id: gone } = JSON.parse(lines[0]!) as TrailStep;
    writeFileSync(steps, lines.filter((line) => !line.includes(gone)).join('\n'));
    const absent = await check();
    expect([absent.code, JSON.parse(absent.stdout).trails.absent]).toEqual([1, [gone]]);

    await database.write([{ sql: "update steps set outcome = 'made up'", args: [] }]);
    const found = await verify('two');
    expect(found.code).toBe(1);
    expect(found.stdout).toContain('are not what they were');
    await database.close();
  } finally {
    await deployment.stop();
  }
});
