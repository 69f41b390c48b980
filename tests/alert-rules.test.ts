/** Rules of alerts: they fire once when a threshold is reached, and tell it where they should. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import fc from 'fast-check';
import {
  createAlertRule,
  findDueRules,
  measure,
  noteValue,
  readAlertRules,
} from '../db/alert-rules.ts';
import type { Org } from '../db/org.ts';
import { findOrg } from '../db/orgs.ts';
import { boot, shutDown } from '../functions/boot.ts';
import { checkAlerts } from '../functions/jobs/alert.ts';
import type { Letter } from '../functions/mail.ts';
import type { Services } from '../functions/services.ts';
import { type AlertRuleInput, alertRuleSchema } from '../schema/alert-rule.ts';
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
      values[due.rule.metric] = await measure(due, now);
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
