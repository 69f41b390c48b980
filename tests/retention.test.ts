/** Retention: what is older than the org keeps it goes, nothing else does, and the sums still hold. */

import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from 'bun:test';
import fc from 'fast-check';
import { verifyOrg } from '../db/checkpoints.ts';
import type { Statement } from '../db/client.ts';
import { diagnose } from '../db/doctor.ts';
import type { Org } from '../db/org.ts';
import { changeRetention, findOverdue, pruneRecords, readRetention } from '../db/retention.ts';
import { readPublicKeys } from '../db/signing.ts';
import { readConfig } from '../functions/config.ts';
import { retain } from '../functions/jobs/retain.ts';
import type { Services } from '../functions/services.ts';
import { Refusal } from '../schema/errors.ts';
import { formatId } from '../schema/ids.ts';
import { judgeDays, keptDays, planDays } from '../schema/rules/retention.ts';
import { as, type Ground, makeGround, makeOrg } from './orgs.ts';

setDefaultTimeout(60_000);

const DAY_MS = 86_400_000;
const NOW = Date.UTC(2026, 10, 15, 12);
const LONG_MS = 30_000;

let ground: Ground;
beforeEach(async () => {
  ground = await makeGround();
});
afterEach(() => ground.clear());

function servicesOf(days: number | null, now = NOW): Services {
  const env = days === null ? {} : { RUNGATE_RETENTION_DAYS: String(days) };
  const { db, master } = ground;
  return { ...{ db, master, config: readConfig(env), now: () => now } } as Services;
}

/** A run with steps of some ages, in days. */
interface Told {
  readonly isOpen: boolean;
  readonly closedAge: number;
  readonly steps: readonly { readonly age: number; readonly spent: number }[];
}

let made = 0;

function idAt(kind: 'step' | 'run' | 'gate' | 'event', at: number): string {
  const entropy = new Uint8Array(10);
  new DataView(entropy.buffer).setUint32(6, ++made);
  return formatId(kind, at, entropy);
}

/** Writes runs as the proxy leaves them, with something in each table that belongs to them. */
async function write(org: Org, runs: readonly Told[]): Promise<string[]> {
  const ids: string[] = [];
  for (const { isOpen, closedAge, steps } of runs) {
    const oldest = Math.max(closedAge, ...steps.map(({ age }) => age));
    const id = idAt('run', NOW - oldest * DAY_MS);
    ids.push(id);
    await ground.db.write([
      {
        sql: `insert into runs (
            id, org_id, agent_id, name, source, policy_version_id, status, opened_at, active_at,
            closed_at
          ) values (?1, ?2, 'agt_1', ?1, 'header', 'polv_1', ?3, ?4, ?4, ?5)`,
        args: [
          ...[id, org.id, isOpen ? 'open' : 'completed', NOW - oldest * DAY_MS],
          isOpen ? null : NOW - closedAge * DAY_MS,
        ],
      },
      ...steps.flatMap(({ age, spent }) => {
        const at = NOW - age * DAY_MS;
        const step = idAt('step', at);
        const day = new Date(at).toISOString().slice(0, 10);
        return [
          {
            sql: `insert into steps (
                org_id, id, run_id, agent_id, kind, day, started_at, settled_at, spent_nanos,
                outcome, asked
              ) values (?1, ?2, ?3, 'agt_1', 'model_call', ?4, ?5, ?5, ?6, 'ok', '{}')`,
            args: [org.id, step, id, day, at, spent],
          },
          {
            sql: `insert into captures (
                org_id, run_id, step_id, kind, number, sealed, bytes, created_at
              ) values (?1, ?2, ?3, 'request', 0, 'x', 1, ?4)`,
            args: [org.id, id, step, at],
          },
        ];
      }),
      {
        sql: `insert into released_calls (org_id, run_id, call_id, was_released, created_at)
          values (?1, ?2, 'c', 1, 1)`,
        args: [org.id, id],
      },
    ]);
  }
  return ids;
}

async function count(org: Org, table: string, condition = 'true'): Promise<number> {
  const row = await org.first(
    `select count(*) as n from ${table} where org_id = ?1 and ${condition}`,
  );
  return Number(row?.n);
}

describe('how long records are kept', () => {
  const days = fc.option(fc.integer({ min: 1, max: 3_650 }));
  const plan = fc.constantFrom('free', 'pro', 'growth', 'enterprise');

  test('is what the org wants, but never longer than its plan says', () => {
    fc.assert(
      fc.property(plan, days, days, (name, operator, wanted) => {
        const most = planDays(operator)[name as 'free'];
        const kept = keptDays(most, wanted);
        if (most !== null) expect(kept).toBeLessThanOrEqual(most);
        if (wanted !== null) expect(kept).toBeLessThanOrEqual(wanted);
        expect([most, wanted]).toContain(kept);
        if (wanted !== null && judgeDays(wanted, most) === undefined) expect(kept).toBe(wanted);
      }),
    );
    expect(planDays(null)).toEqual({ free: 30, pro: 90, growth: 365, enterprise: null });
  });

  test('is asked of the database as the rule has it, for every plan and wish', async () => {
    const { org } = await makeOrg(ground);
    await write(org, [{ isOpen: false, closedAge: 20, steps: [] }]);
    await fc.assert(
      fc.asyncProperty(plan, days, days, async (name, operator, wanted) => {
        await ground.db.write([
          {
            sql: 'update orgs set plan = ?2, retention_days = ?3 where id = ?1',
            args: [org.id, name, wanted],
          },
        ]);
        const kept = keptDays(planDays(operator)[name as 'free'], wanted);
        const { overdue } = await findOverdue(ground.db, operator, NOW);
        expect(await readRetention(org, operator)).toMatchObject({ days: kept });
        expect(overdue.map(({ beforeMs }) => beforeMs)).toEqual(
          kept !== null && kept < 20 ? [NOW - kept * DAY_MS] : [],
        );
      }),
    );
  });

  test('is changed within the plan only, and that is on the audit trail', async () => {
    const { org, owner } = await makeOrg(ground);
    expect(await changeRetention(org, as(owner), 10, 30)).toMatchObject({ days: 10, planDays: 30 });
    for (const bad of [0, 31, 1.5, -1]) {
      expect(changeRetention(org, as(owner), bad, 30)).rejects.toBeInstanceOf(Refusal);
    }
    expect(await changeRetention(org, as(owner), null, 30)).toMatchObject({ days: 30 });
    expect(await count(org, 'audit_entries', `action = 'retention.update'`)).toBe(2);
    expect(await count(org, 'events', `type = 'account.updated'`)).toBe(2);
  });
});

describe('pruning', () => {
  const step = fc.record({
    age: fc.integer({ min: 0, max: 12 }),
    spent: fc.integer({ min: 0, max: 1_000 }),
  });
  const run = fc.record({
    isOpen: fc.boolean(),
    closedAge: fc.integer({ min: 0, max: 12 }),
    steps: fc.array(step, { maxLength: 8 }),
  });

  test('deletes exactly the ended runs and the open runs’ steps that are too old', async () => {
    const { org: other } = await makeOrg(ground);
    await fc.assert(
      fc.asyncProperty(
        fc.array(run, { maxLength: 30 }),
        fc.integer({ min: 1, max: 12 }),
        async (runs, days) => {
          const { org } = await makeOrg(ground);
          // Nothing is exactly at the border.
          const shifted = { ...servicesOf(days), now: () => NOW + 1_000 };
          await write(other, runs.slice(0, 2));
          const others = await count(other, 'steps');
          const ids = await write(org, runs);
          await ground.db.write([
            { sql: 'update orgs set retention_days = 3650 where id = ?1', args: [other.id] },
            { sql: `update orgs set plan = 'enterprise'`, args: [] },
          ]);
          await ground.db.write([
            { sql: 'update orgs set retention_days = ?2 where id = ?1', args: [org.id, days] },
          ]);
          await retain({ ...shifted, config: readConfig({}) } as Services, LONG_MS);
          for (const [at, told] of runs.entries()) {
            const isGone = !told.isOpen && told.closedAge >= days;
            const left = told.isOpen ? told.steps.filter(({ age }) => age < days) : told.steps;
            const id = ids[at]!;
            expect(await count(org, 'runs', `id = '${id}'`)).toBe(isGone ? 0 : 1);
            for (const table of ['steps', 'captures']) {
              expect([table, await count(org, table, `run_id = '${id}'`)]).toEqual([
                table,
                isGone ? 0 : left.length,
              ]);
            }
            expect(await count(org, 'released_calls', `run_id = '${id}'`)).toBe(isGone ? 0 : 1);
          }
          expect(await count(other, 'steps')).toBe(others);
          expect(await diagnose(ground.db, ground.master, NOW)).toMatchObject({
            ...{ ok: true, spentMismatches: 0, windowMismatches: 0 },
          });
        },
      ),
      { numRuns: 12, endOnFailure: true },
    );
  });

  test('leaves no event, delivery, attempt, response or decided gate that is too old', async () => {
    const { org } = await makeOrg(ground);
    await ground.db.write([{ sql: 'delete from events', args: [] }]);
    const sql = (table: string, columns: string, values: string) => ({
      sql: `insert into ${table} (org_id, ${columns}) values (?1, ${values})`,
      args: [org.id],
    });
    await ground.db.write([
      sql(
        'webhooks',
        'id, url, description, events, secret, secret_hash, created_by, created_at, updated_at',
        `'whk_1', 'u', '', '["*"]', 's', 'h', 'x', 1, 1`,
      ),
    ]);
    for (let age = 0; age < 60; age += 2) {
      const at = NOW - age * DAY_MS;
      await ground.db.write([
        sql('events', 'id, type, data, created_at', `'evt_${age}', 'run.started', '{}', ${at}`),
        sql(
          'responses',
          'agent_id, response_id, run_id, step_id, provider_key, created_at',
          `'a', 'r${age}', 'r', 's', 'k', ${at}`,
        ),
        sql(
          'gates',
          'id, agent_id, run_id, policy_version_id, token_id, caused_by, tool, args, digest, rule, rule_name, reason, approvals, status, created_at, expires_at',
          `'${idAt('gate', at)}', 'a', 'r', 'p', 't', 'c', 't', 'a', 'd${age}', 'r', 'n', 'w', 1, '${age % 4 === 0 ? 'rejected' : 'pending'}', ${at}, ${at}`,
        ),
      ]);
      await ground.db.write([
        {
          sql: `update deliveries set status = 'delivered' where event_id = ?1`,
          args: [`evt_${age}`],
        },
        {
          sql: `insert into delivery_attempts (org_id, delivery_id, number, started_at, duration_ms, outcome, request_headers) select org_id, id, 1, 1, 1, 'delivered', '{}' from deliveries where event_id = ?1`,
          args: [`evt_${age}`],
        },
      ]);
    }
    // Still to be delivered.
    await ground.db.write([
      { sql: `update deliveries set status = 'pending' where event_id = 'evt_58'`, args: [] },
    ]);
    await retain({ ...servicesOf(29), now: () => NOW + 1 } as Services, LONG_MS);
    for (const table of ['events', 'deliveries', 'delivery_attempts']) {
      expect([table, await count(org, table)]).toEqual([table, 16]);
    }
    expect(await count(org, 'responses')).toBe(15);
    expect(await count(org, 'gates', `status = 'rejected'`)).toBe(8);
    expect(await count(org, 'gates', `status = 'pending'`)).toBe(15);
  });

  test('takes no more of anything at once than a batch, and counts all of it', async () => {
    const { org } = await makeOrg(ground);
    await ground.db.write([{ sql: 'delete from events', args: [] }]);
    const numbers = 'select value from json_each(?2)';
    const upTo = (most: number) => JSON.stringify(Array.from({ length: most }, (_, at) => at + 1));
    const statements = [
      `insert into webhooks (
         org_id, id, url, description, events, secret, secret_hash, created_by, created_at,
         updated_at
       ) select ?1, 'whk_1', 'u', '', '[]', 's', 'h', 'x', 1, 1 where ?2 > ''`,
      `insert into events (org_id, id, type, data, created_at)
       select ?1, 'evt_' || n.value, 'run.started', '{}', 1 from (${numbers}) n`,
      `insert into deliveries (
         org_id, id, webhook_id, event_id, cause, status, next_at, created_at
       ) select ?1, e.id || '/' || n.value, 'whk_1', e.id, 'replay', 'dead', 1, 1
       from events e, (${numbers}) n where e.org_id = ?1 and n.value <= 10`,
      `insert into delivery_attempts (
         org_id, delivery_id, number, started_at, duration_ms, outcome, request_headers
       ) select ?1, d.id, n.value, 1, 1, 'dead', '{}'
       from deliveries d, (${numbers}) n where d.org_id = ?1 and n.value <= 5`,
    ];
    await ground.db.write(statements.map((sql) => ({ sql, args: [org.id, upTo(12)] })));
    const tables = ['events', 'deliveries', 'delivery_attempts'];
    const countAll = () => Promise.all(tables.map((table) => count(org, table)));
    let before = await countAll();
    expect(before).toEqual([12, 120, 600]);
    let total = 0;
    for (let done = 1; done > 0; total += done) {
      done = await pruneRecords(org, NOW, 40);
      const left = await countAll();
      for (const [at, each] of left.entries()) expect(before[at]! - each).toBeLessThanOrEqual(40);
      before = left;
    }
    expect([before, total]).toEqual([[0, 0, 0], 732]);
  });

  test('looks at the runs that it deletes, and at no others of their org', async () => {
    const { org } = await makeOrg(ground);
    await write(org, [{ isOpen: false, closedAge: 40, steps: [{ age: 41, spent: 1 }] }]);
    await write(org, [{ isOpen: true, closedAge: 0, steps: [{ age: 41, spent: 1 }] }]);
    await ground.db.write([{ sql: `update runs set anchored_head = 'x'`, args: [] }]);
    const plans = new Set<string>();
    const explaining = await ground.connect();
    const explain = async ({ sql, args }: Statement) => {
      if (!/^(select r\.id|update runs|delete from runs)/.test(sql)) return;
      const steps = await explaining.read(`explain query plan ${sql}`, args);
      const first = steps.find(({ detail }) => /^(SEARCH|SCAN) (runs|r) /.test(String(detail)));
      plans.add(String(first?.detail));
    };
    const db: typeof ground.db = {
      ...ground.db,
      async read(sql, args) {
        await explain({ sql, args });
        return await ground.db.read(sql, args);
      },
      async write(statements) {
        for (const statement of statements) await explain(statement);
        return await ground.db.write(statements);
      },
    };
    await retain({ ...servicesOf(30), db }, LONG_MS);
    expect([...plans].sort()).toEqual([
      'SEARCH r USING INDEX open_runs (opened_at<?)',
      'SEARCH runs USING PRIMARY KEY (id=?)',
    ]);
  });

  test('takes old audit entries once a day, and the trail still verifies', async () => {
    const { org, owner } = await makeOrg(ground);
    for (let days = 1; days <= 700; days++) await changeRetention(org, as(owner), days, null);
    await changeRetention(org, as(owner), 5, null);
    const total = await count(org, 'audit_entries');
    const later = Date.now() + 6 * DAY_MS;
    const { audit } = await retain(servicesOf(null, later), LONG_MS);
    expect([total - 1, total]).toContain(audit);
    const keys = await readPublicKeys(ground.db, ground.master);
    expect(await verifyOrg(org, keys)).toMatchObject({ ok: true });
    const again = await Promise.all(
      [1, 2, 3].map((at) => retain(servicesOf(null, later + at), LONG_MS)),
    );
    expect(again.map(({ audit }) => audit)).toEqual([0, 0, 0]);
    expect((await retain(servicesOf(null, later + 8 * DAY_MS), LONG_MS)).audit).toBeGreaterThan(0);
    expect(await verifyOrg(org, keys)).toMatchObject({ ok: true });
  });

  test('goes on where it was interrupted, and one large org does not hold up another', async () => {
    const [large, small] = [await makeOrg(ground), await makeOrg(ground)];
    const steps = Array.from({ length: 400 }, () => ({ age: 50, spent: 1 }));
    await write(large.org, [{ isOpen: false, closedAge: 50, steps }]);
    await write(small.org, [{ isOpen: false, closedAge: 50, steps: steps.slice(0, 3) }]);
    let ticks = 0;
    let smallDone = 0;
    for (; (await count(large.org, 'runs')) > 0; ticks++) {
      await retain(servicesOf(30), 20);
      if ((await count(small.org, 'runs')) > 0) smallDone = ticks + 1;
    }
    expect(smallDone).toBeLessThan(ticks);
    expect(await count(large.org, 'steps')).toBe(0);
    expect(await diagnose(ground.db, ground.master, NOW)).toMatchObject({ ok: true });
  });
});
