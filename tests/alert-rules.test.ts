/** Rules of alerts: they fire once when a threshold is reached, and tell it where they should. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import fc from 'fast-check';
import { createAgent } from '../db/agents.ts';
import {
  createAlertRule,
  type DueRule,
  findDueRules,
  measuring,
  noteValue,
  readAlertRules,
  updateAlertRule,
} from '../db/alert-rules.ts';
import type { Value } from '../db/client.ts';
import { forOrg, type Org } from '../db/org.ts';
import { findOrg } from '../db/orgs.ts';
import { addPolicyVersion } from '../db/policies.ts';
import { boot, shutDown } from '../functions/boot.ts';
import { checkAlerts } from '../functions/jobs/alert.ts';
import type { Letter } from '../functions/mail.ts';
import type { Services } from '../functions/services.ts';
import { type AlertRuleInput, alertRuleSchema } from '../schema/alert-rule.ts';
import { type AlertRuleId, formatId } from '../schema/ids.ts';
import { measure } from './measure.ts';
import { type Ground, makeGround, makeOrg } from './orgs.ts';
import { type Deployment, deploy } from './rungate.ts';

setDefaultTimeout(60_000);

let deployment: Deployment;
let services: Services;
let org: Org;
let admin: string;
const letters: Letter[] = [];
const posts: { path: string; body: unknown }[] = [];
let status = 200;
const chat = Bun.serve({
  port: 0,
  hostname: '127.0.0.1',
  async fetch(request) {
    posts.push({ path: new URL(request.url).pathname, body: await request.json() });
    return new Response('ok', { status });
  },
});

beforeAll(async () => {
  deployment = await deploy();
  const booted = await boot({
    RUNGATE_DATABASE_URL: `file:${deployment.folder}/rungate.db`,
    RUNGATE_EGRESS_ALLOW: '127.0.0.1/32',
    RUNGATE_LOG: 'silent',
  });
  const mailer = {
    send: async (letter: Letter) => void letters.push(letter),
    drain: async () => {},
  };
  services = { ...booted, mailer: mailer as unknown as Services['mailer'] };
  org = (await findOrg(services.db, 'acme'))!;
  const made = await deployment.cli(
    ...['token', 'create', '--org', 'acme', '--member', 'owner@example.com', '--json'],
  );
  admin = (JSON.parse(made.stdout) as { token: string }).token;
  await Promise.all(deployment.servers.map((server) => server.stop()));
});

afterAll(async () => {
  await chat.stop(true);
  await shutDown(services, 0);
  await deployment.stop();
});

const RULE: AlertRuleInput = {
  name: 'a rule',
  metric: 'blocked_runs',
  threshold: 2,
  windowS: 3_600,
  channel: 'event',
  target: null,
  isEnabled: true,
};

let runs = 0;

async function block(count: number, at: number): Promise<void> {
  await services.db.write(
    Array.from({ length: count }, () => ({
      sql: `insert into runs (
          id, org_id, agent_id, name, source, policy_version_id, status, opened_at, active_at,
          closed_at
        ) values (?1, ?2, 'agt', ?1, 'header', 'polv', 'blocked', ?3, ?3, ?3)`,
      args: [`run_${++runs}`, org.id, at],
    })),
  );
}

async function fired(name: string): Promise<number> {
  const row = await services.db.first(
    `select count(*) as n from events where type = 'alert.fired' and data ->> '$.name' = ?1`,
    [name],
  );
  return Number(row?.n);
}

describe('a rule', () => {
  test('fires at most once per window, and once while the value stays, over any course', async () => {
    let made = 0;
    const course = fc.array(
      fc.record({ afterS: fc.integer({ min: 1, max: 90 }), value: fc.integer({ min: 0, max: 4 }) }),
      { minLength: 1, maxLength: 25 },
    );
    await fc.assert(
      fc.asyncProperty(course, async (looks) => {
        const name = `course ${++made}`;
        const rule = { ...RULE, name, windowS: 60 };
        const id = await createAlertRule(org, services.master, 'operator', rule);
        let now = Date.now();
        let [wanted, lastMs, wasTold] = [0, Number.NEGATIVE_INFINITY, false];
        for (const { afterS, value } of looks) {
          now += afterS * 1_000;
          const due = (await findDueRules(services.db, now + 1, 1_000)).find(
            (each) => each.rule.id === id,
          )!;
          await Promise.all([noteValue(due, value, now), noteValue(due, value, now)]);
          const isOver = value >= 2;
          if (isOver && !wasTold && now - lastMs >= 60_000) {
            [wanted, lastMs, wasTold] = [wanted + 1, now, true];
          }
          if (!isOver) wasTold = false;
        }
        expect(await fired(name)).toBe(wanted);
        await services.db.write([{ sql: 'delete from alert_rules', args: [] }]);
      }),
      { numRuns: 30 },
    );
  });

  test('measures blocked runs, gates, spend and errors of its window, and of its org', async () => {
    const now = Date.now();
    await block(3, now - 30_000);
    await block(5, now - 120_000);
    const [{ id: run }] = (await services.db.read(
      `select id from runs where closed_at = ?1 limit 1`,
      [now - 30_000],
    )) as [{ id: string }];
    const { newId } = await import('../db/seal.ts');
    const step = (agoMs: number, outcome: string, spent: number) => ({
      sql: `insert into steps (
          org_id, id, run_id, agent_id, kind, day, started_at, settled_at, spent_nanos, outcome,
          asked
        ) values (?1, ?2, ?3, 'agt', 'model_call', '2026-01-01', 1, 1, ?5, ?4, '{}')`,
      args: [org.id, newId('step', now - agoMs), run, outcome, spent],
    });
    await services.db.write([
      step(10_000, 'ok', 100),
      step(10_000, 'upstream_500', 20),
      step(10_000, 'client_left', 3),
      step(10_000, 'timeout_idle', 0),
      step(70_000, 'upstream_500', 5_000),
      {
        sql: `insert into gates (
            org_id, id, agent_id, run_id, policy_version_id, token_id, caused_by, tool, args,
            digest, rule, rule_name, reason, approvals, created_at, expires_at
          ) values (?1, 'gate_1', 'a', 'r', 'p', 't', 'c', 't', 'a', 'd', 'r', 'n', 'w', 1, 1, ?2)`,
        args: [org.id, now + 1e6],
      },
    ]);
    const values: Record<string, number> = {};
    for (const metric of ['spend', 'blocked_runs', 'pending_gates', 'error_rate'] as const) {
      const rule = { ...RULE, name: metric, metric, windowS: 60 };
      await createAlertRule(org, services.master, 'operator', rule);
    }
    for (const due of await findDueRules(services.db, now + 1, 10)) {
      values[due.rule.metric] = await measure(services.db, due, now);
    }
    expect(values).toEqual({ spend: 123, blocked_runs: 3, pending_gates: 1, error_rate: 50 });
    await services.db.write([{ sql: 'delete from alert_rules', args: [] }]);
  });

  test('tells by mail and in a chat, tries again when that fails, and keeps the URL sealed', async () => {
    const url = `http://127.0.0.1:${chat.port}/hook-that-is-secret`;
    const make = (rule: Partial<AlertRuleInput>) =>
      createAlertRule(org, services.master, 'operator', { ...RULE, ...rule });
    const mailed = await make({ name: 'mail', channel: 'mail', target: 'a@example.com' });
    const chatted = await make({ name: 'chat', channel: 'chat', target: url });
    await make({ name: 'off', isEnabled: false });
    const now = Date.now();
    await block(2, now);
    status = 500;
    expect(await checkAlerts({ ...services, now: () => now }, 5_000)).toEqual({
      fired: 2,
      told: 1,
    });
    expect(letters).toMatchObject([
      {
        to: 'a@example.com',
        subject: 'Alert: mail',
        text: expect.stringContaining('runs blocked'),
      },
    ]);
    status = 200;
    // Not at once again.
    expect(await checkAlerts({ ...services, now: () => now }, 5_000)).toEqual({
      fired: 0,
      told: 0,
    });
    const later = { ...services, now: () => now + 40_000 };
    expect(await checkAlerts(later, 5_000)).toEqual({ fired: 0, told: 1 });
    expect(await checkAlerts(later, 5_000)).toEqual({ fired: 0, told: 0 });
    expect(posts).toMatchObject([
      { path: '/hook-that-is-secret' },
      { body: { text: expect.stringContaining('threshold 2 runs blocked') } },
    ]);
    const rules = await readAlertRules(org, [mailed, chatted]);
    expect(rules.map(({ target, toldAt }) => [target, toldAt !== null]).toSorted()).toEqual([
      [`127.0.0.1:${chat.port}`, true],
      ['a@example.com', true],
    ]);
    for (const table of ['alert_rules', 'audit_entries', 'events']) {
      const rows = await services.db.read(`select * from ${table}`, []);
      expect(JSON.stringify(rows)).not.toContain('hook-that-is-secret');
    }
    expect([await fired('mail'), await fired('chat'), await fired('off')]).toEqual([1, 1, 0]);
  });

  test('is told by mail no longer than the job has time, and tried again', async () => {
    await services.db.write([{ sql: 'delete from alert_rules', args: [] }]);
    const rule = { ...RULE, name: 'slow', channel: 'mail' as const, target: 'a@example.com' };
    await createAlertRule(org, services.master, 'operator', rule);
    const now = Date.now();
    await block(2, now);
    const send = () => Bun.sleep(5_000);
    const slow = { ...services, mailer: { send } as unknown as Services['mailer'] };
    const startedMs = performance.now();
    expect(await checkAlerts({ ...slow, now: () => now }, 5_000, 50)).toEqual({
      ...{ fired: 1, told: 0 },
    });
    expect(performance.now() - startedMs).toBeLessThan(2_000);
    const later = { ...services, now: () => now + 40_000 };
    expect(await checkAlerts(later, 5_000)).toEqual({ fired: 0, told: 1 });
    await services.db.write([{ sql: 'delete from alert_rules', args: [] }]);
  });

  test('is refused with a threshold, window or target that makes no sense', () => {
    const schema = alertRuleSchema(services.config.egressAllow);
    const bad: Partial<AlertRuleInput>[] = [
      ...[0, -1, 1.5, Number.NaN].map((threshold) => ({ threshold })),
      { metric: 'error_rate', threshold: 101 },
      ...[59, 86_400 * 31].map((windowS) => ({ windowS })),
      ...['', 'a\nb', 'x'.repeat(101)].map((name) => ({ name })),
      { target: 'a@example.com' },
      ...[null, 'a', 'http://a'].map((target) => ({ channel: 'mail' as const, target })),
      ...[
        null,
        'a@example.com',
        'http://example.com',
        'https://10.0.0.1/',
        'https://u:p@example.com',
      ].map((target) => ({ channel: 'chat' as const, target })),
    ];
    for (const each of bad) {
      expect([each, schema.safeParse({ ...RULE, ...each }).success]).toEqual([each, false]);
    }
    expect(schema.parse({ ...RULE, channel: 'mail', target: ' A@Example.com ' }).target).toBe(
      'a@example.com',
    );
  });
});

describe('a rule on steps', () => {
  const DAY_MS = 86_400_000;
  const NOW = Date.UTC(2026, 10, 15, 12);

  interface Step {
    readonly agoMs: number;
    readonly spent: number;
    readonly isOk: boolean;
  }

  let ground: Ground;
  beforeAll(async () => {
    ground = await makeGround();
  });
  afterAll(() => ground.clear());

  /** An org of which a rule can be measured. */
  async function found() {
    const { org } = await makeOrg(ground);
    const policy = await addPolicyVersion(org, 'operator', 'policy', '{}');
    const { id } = await createAgent(org, 'operator', 'agent', policy.id);
    return { org, agent: id };
  }

  let made = 0;

  /** Writes a run, and its steps in one statement, as the proxy leaves them. */
  async function write(on: { org: Org; agent: string }, steps: readonly Step[], isOpen: boolean) {
    const run = `run_${++made}`;
    const oldest = Math.max(0, ...steps.map(({ agoMs }) => agoMs));
    const newest = Math.min(oldest, ...steps.map(({ agoMs }) => agoMs));
    const rows = steps.map(({ agoMs, spent, isOk }, index) => {
      const entropy = new Uint8Array(10);
      new DataView(entropy.buffer).setUint32(6, index);
      const at = NOW - agoMs;
      const day = new Date(at).toISOString().slice(0, 10);
      return [formatId('step', at, entropy), day, at, spent, isOk ? 'ok' : 'upstream_500'];
    });
    await ground.db.write([
      {
        sql: `insert into runs (
            id, org_id, agent_id, name, source, policy_version_id, status, opened_at, active_at,
            closed_at
          ) values (?1, ?2, ?3, ?1, 'header', 'polv', ?4, ?5, ?5, ?6)`,
        args: [
          ...[run, on.org.id, on.agent, isOpen ? 'open' : 'completed', NOW - oldest],
          isOpen ? null : NOW - newest,
        ],
      },
      {
        sql: `insert into steps (
            org_id, run_id, agent_id, kind, asked, id, day, started_at, settled_at, spent_nanos,
            outcome
          ) select ?1, ?2, ?3, 'model_call', '{}', value ->> 0, value ->> 1, value ->> 2,
            value ->> 2, value ->> 3, value ->> 4 from json_each(?4)`,
        args: [on.org.id, run, on.agent, JSON.stringify(rows)],
      },
    ]);
    return run;
  }

  const dueOf = (org: Org, metric: 'spend' | 'error_rate', windowS: number) =>
    ({ org, rule: { metric, windowS } }) as DueRule;

  const step: fc.Arbitrary<Step> = fc.record({
    agoMs: fc.oneof(fc.nat(5 * DAY_MS), fc.nat(DAY_MS)),
    spent: fc.nat(1_000),
    isOk: fc.boolean(),
  });

  test('comes to the nano to what the steps of its window do, over any course of days', async () => {
    const history = fc.array(
      fc.record({ steps: fc.array(step, { maxLength: 12 }), isOpen: fc.boolean() }),
      { maxLength: 8 },
    );
    await fc.assert(
      fc.asyncProperty(history, fc.integer({ min: 60, max: 450_000 }), async (runs, windowS) => {
        const on = await found();
        for (const { steps, isOpen } of runs) await write(on, steps, isOpen);
        const inside = runs
          .flatMap(({ steps }) => steps)
          .filter(({ agoMs }) => agoMs <= windowS * 1_000);
        const failed = inside.filter(({ isOk }) => !isOk).length;
        const wanted = {
          spend: inside.reduce((sum, { spent }) => sum + spent, 0),
          error_rate: inside.length === 0 ? 0 : Math.floor((100 * failed) / inside.length),
        };
        for (const metric of ['spend', 'error_rate'] as const) {
          expect(await measure(ground.db, dueOf(on.org, metric, windowS), NOW)).toBe(
            wanted[metric],
          );
        }
      }),
      { numRuns: 40 },
    );
  });

  const many = (count: number, apartMs: number) =>
    Array.from({ length: count }, (_, at) => ({ agoMs: at * apartMs, spent: 1, isOk: at % 4 > 0 }));

  test('is read in parts, so that many steps hold no call up', async () => {
    const on = await found();
    await write(on, many(9_001, 10), true);
    for (let run = 0; run < 3; run++) await write(on, many(3_000, 10), false);
    for (const [metric, wanted] of [
      ['spend', 18_001],
      ['error_rate', 25],
    ] as const) {
      const rows = await on.org.read("select * from runs where org_id = ?1 and status = 'open'");
      const open = rows.map(({ id }) => ({ id: String(id), stepCount: 9_001, openedAt: 0 }));
      const reading = measuring(dueOf(on.org, metric, 600), NOW, open);
      let parts = 0;
      let part = await reading.next();
      for (; !part.done; parts++) part = await reading.next();
      expect(part.value).toBe(wanted);
      expect(parts).toBeGreaterThan(5);
    }
  });

  test('takes the money of whole days from their sums, not from their steps', async () => {
    const on = await found();
    const run = await write(on, many(40, DAY_MS / 10), true);
    await ground.db.write([
      {
        sql: `delete from steps where run_id = ?1 and day > '2026-11-12'`,
        args: [run],
      },
    ]);
    // Of the twelfth, twelve hours are in the window.
    expect(await measure(ground.db, dueOf(on.org, 'spend', 3 * 86_400), NOW)).toBe(31);
  });

  test('finds runs by their end and steps by their run, however many the org has', async () => {
    const on = await found();
    await write(on, many(9_001, 10), true);
    await write(on, many(10, 10), false);
    const statements: [sql: string, args: readonly Value[]][] = [];
    const spied = Object.assign(Object.create(ground.db), {
      read: async (sql: string, args: readonly Value[]) => {
        statements.push([sql, args]);
        return await ground.db.read(sql, args);
      },
      first: async (sql: string, args: readonly Value[]) => {
        statements.push([sql, args]);
        return await ground.db.first(sql, args);
      },
    });
    for (const metric of ['spend', 'error_rate'] as const) {
      await measure(spied, dueOf(forOrg(spied, on.org.id), metric, 600), NOW);
    }
    expect(statements.length).toBeGreaterThan(6);
    for (const [sql, args] of statements) {
      const plan = await ground.db.read(`explain query plan ${sql}`, args);
      const details = plan.map(({ detail }) => String(detail)).join('; ');
      expect(details).not.toMatch(
        /PRIMARY KEY \(org_id=\?\)|SCAN (s|steps)\b|SCAN runs(?! USING INDEX open_runs)/,
      );
    }
  });

  const servicesOf = (now: number) =>
    ({ ...services, db: ground.db, master: ground.master, now: () => now }) as Services;

  test('is measured over several ticks where one has no time for it, and fires then', async () => {
    const on = await found();
    for (let run = 0; run < 9; run++) await write(on, many(3_000, 10), run % 2 === 0);
    const rule = { ...RULE, metric: 'spend' as const, threshold: 27_000, windowS: 600 };
    await createAlertRule(on.org, ground.master, 'operator', rule);
    let [ticks, fired] = [0, 0];
    for (; fired === 0 && ticks < 500; ticks++) {
      fired = (await checkAlerts(servicesOf(NOW), 3)).fired;
    }
    expect(fired).toBe(1);
    expect(ticks).toBeGreaterThan(1);
    expect((await checkAlerts(servicesOf(NOW), 5_000)).fired).toBe(0);
    await ground.db.write([{ sql: 'delete from alert_rules', args: [] }]);
  });

  test('is looked at the more rarely the longer its window, but at once when it was changed', async () => {
    const { org } = await found();
    const windows = [60, 3_600, 86_400, 30 * 86_400];
    for (const windowS of windows) {
      const rule = { ...RULE, name: `${windowS}`, metric: 'spend' as const, windowS };
      await createAlertRule(org, ground.master, 'operator', rule);
    }
    const dueAt = async (now: number) => {
      const dues = await findDueRules(ground.db, now, 10);
      return dues.map(({ rule }) => rule.windowS).toSorted((one, other) => one - other);
    };
    await checkAlerts(servicesOf(NOW), 5_000);
    expect(await dueAt(NOW + 5_000)).toEqual([60]);
    expect(await dueAt(NOW + 61_000)).toEqual([60, 3_600, 86_400]);
    expect(await dueAt(NOW + 1_799_000)).toEqual([60, 3_600, 86_400]);
    expect(await dueAt(NOW + 1_801_000)).toEqual(windows);
    const [{ id }] = (await org.read(
      `select id from alert_rules where org_id = ?1 and name = '2592000'`,
    )) as [{ id: AlertRuleId }];
    await updateAlertRule(org, ground.master, 'operator', id, { threshold: 1 }, (rule) => rule);
    expect(await dueAt(NOW + 5_000)).toEqual([60, 30 * 86_400]);
    await ground.db.write([{ sql: 'delete from alert_rules', args: [] }]);
  });
});

describe('over GraphQL', () => {
  test('a rule is made, changed, listed and deleted, and a fault is told at its field', async () => {
    const { makeApp } = await import('../functions/app.ts');
    const app = makeApp(services);
    const ask = async (query: string) => {
      const request = new Request('http://localhost/graphql', {
        method: 'POST',
        headers: { authorization: `Bearer ${admin}`, 'content-type': 'application/json' },
        body: JSON.stringify({ query }),
      });
      const response = await app(request, { address: '127.0.0.1' });
      const { data, errors } = (await response.json()) as {
        data: Record<string, Record<string, unknown>>;
        errors?: unknown;
      };
      expect(errors).toBeUndefined();
      return data;
    };
    await services.db.write([{ sql: 'delete from alert_rules', args: [] }]);
    const create = (name: string, threshold: number) =>
      ask(`mutation { alertRuleCreate(input: {
        name: "${name}", metric: ERROR_RATE, threshold: ${threshold}, windowS: 600, channel: CHAT,
        target: "http://127.0.0.1:9/secret"
      }) { alertRule { id name target threshold isEnabled firedAt } errors { code field } } }`);
    expect((await create('one', 200)).alertRuleCreate).toMatchObject({
      ...{ alertRule: null, errors: [{ code: 'INVALID', field: ['threshold'] }] },
    });
    const { alertRule } = (await create('one', 20)).alertRuleCreate as {
      alertRule: { id: string };
    };
    expect(alertRule).toMatchObject({ target: '127.0.0.1:9', isEnabled: true, firedAt: null });
    expect((await create('one', 20)).alertRuleCreate?.errors).toMatchObject([{ code: 'CONFLICT' }]);
    const update = await ask(`mutation { alertRuleUpdate(input: {
      alertRuleId: "${alertRule.id}", threshold: 30
    }) { alertRule { threshold target } errors { code } } }`);
    expect(update.alertRuleUpdate).toEqual({
      ...{ alertRule: { threshold: 30, target: '127.0.0.1:9' }, errors: [] },
    });
    const list = await ask('{ alertRules(first: 5) { nodes { name metric channel } } }');
    expect(list.alertRules?.nodes).toEqual([
      { name: 'one', metric: 'ERROR_RATE', channel: 'CHAT' },
    ]);
    const remove = () =>
      ask(`mutation { alertRuleDelete(input: { alertRuleId: "${alertRule.id}" }) {
        deletedAlertRuleId errors { code } } }`);
    expect((await remove()).alertRuleDelete?.errors).toEqual([]);
    expect((await remove()).alertRuleDelete?.errors).toEqual([{ code: 'NOT_FOUND' }]);
    const kept = await ask(
      'mutation { retentionUpdate(input: { days: 30 }) { retention { days } errors { code } } }',
    );
    expect(kept.retentionUpdate).toEqual({ retention: { days: 30 }, errors: [] });
    expect((await ask('{ retention { days planDays } }')).retention).toEqual({
      ...{ days: 30, planDays: null },
    });
  });
});
