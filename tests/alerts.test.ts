/** Alerts: told once, in the transaction of what they tell, whoever spends and from where. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import fc from 'fast-check';
import { createAgent } from '../db/agents.ts';
import { drawLines } from '../db/alerts.ts';
import type { Row } from '../db/client.ts';
import { addPolicyVersion, type PolicyVersion, readAgentPolicy } from '../db/policies.ts';
import { recordReport } from '../db/reports.ts';
import { findRun, openRun } from '../db/runs.ts';
import { EVENTS } from '../schema/events.ts';
import { type AgentId, isId, type RunId, type TokenId } from '../schema/ids.ts';
import { nanos } from '../schema/money.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import { type Ground, type Made, makeGround, makeOrg } from './orgs.ts';
import { type Deployment, deploy } from './rungate.ts';
import { startUpstream, type Upstream } from './upstream.ts';

let upstream: Upstream;

beforeAll(async () => {
  upstream = await startUpstream();
});

afterAll(() => upstream.stop());

/** Each costs $0.00401: ten tokens in, a thousand out. */
const USAGE = { usage: { prompt_tokens: 10, completion_tokens: 1000 } };

async function call(rungate: Deployment, run: string, index = 0, model = 'test-model') {
  const response = await fetch(`${rungate.urls[index % rungate.urls.length]}/v1/chat/completions`, {
    method: 'POST',
    headers: { authorization: `Bearer ${rungate.token}`, 'x-rungate-run-id': run },
    body: JSON.stringify({
      model,
      max_tokens: 1000,
      messages: [{ role: 'user', content: 'Hello' }],
    }),
  });
  await response.arrayBuffer();
  return response.status;
}

/** Every event of a type, its data as its schema has it. */
async function eventsOf(rungate: Deployment, type: keyof typeof EVENTS): Promise<Row[]> {
  const db = await rungate.database();
  const rows = await db.read('select id, data from events where type = ?1 order by id', [type]);
  await db.close();
  for (const { id } of rows) expect(isId('event', String(id))).toBe(true);
  return rows.map(({ data }) => EVENTS[type].parse(JSON.parse(String(data))) as Row);
}

describe('spending of many calls at once, over two processes', () => {
  let rungate: Deployment;
  beforeAll(async () => {
    const ceiling = '1.00';
    rungate = await deploy({
      upstreamUrl: upstream.url,
      processes: 2,
      policy: {
        models: { allow: ['*/test-model'] },
        budget: {
          ...{ run: ceiling, agentPerDay: ceiling, agentPerMonth: ceiling, orgPerMonth: ceiling },
          minOutputTokens: 1000,
        },
      },
    });
  });
  afterAll(() => rungate.stop());

  test('raises one alert for each scope, with the call that reaches its share', async () => {
    const [early, last] = [199, 1];
    upstream.script(USAGE, early + last);
    const statuses = await Promise.all(
      Array.from({ length: early }, (_, at) => call(rungate, 'many', at)),
    );
    expect(new Set(statuses)).toEqual(new Set([200]));
    expect(await eventsOf(rungate, 'budget.alert')).toEqual([]);
    expect(await call(rungate, 'many')).toBe(200);
    const alerts = await eventsOf(rungate, 'budget.alert');
    expect(alerts.map(({ scope }) => scope).sort()).toEqual([
      'agent_per_day',
      'agent_per_month',
      'org_per_month',
      'run',
    ]);
    for (const alert of alerts) {
      expect(alert).toMatchObject({
        ...{ spentNanos: 802_000_000, ceilingNanos: 1_000_000_000, alertAt: 0.8 },
      });
      expect(isId('run', String(alert.runId)) && isId('agent', String(alert.agentId))).toBe(true);
    }
  }, 60_000);

  test('raises none again while it goes on', async () => {
    upstream.script(USAGE, 20);
    await Promise.all(Array.from({ length: 20 }, (_, at) => call(rungate, `more-${at}`, at)));
    expect(await eventsOf(rungate, 'budget.alert')).toHaveLength(4);
  }, 60_000);

  test('that is denied raises drift once, however often it is tried', async () => {
    const statuses = await Promise.all(
      Array.from({ length: 50 }, (_, at) => call(rungate, `drift-${at % 5}`, at, 'demo-small')),
    );
    expect(new Set(statuses)).toEqual(new Set([403]));
    const drifts = await eventsOf(rungate, 'policy.drift');
    expect(drifts).toHaveLength(1);
    expect(drifts[0]).toMatchObject({ kind: 'model', rule: 'models.allow', policy: 'test/v1' });
  }, 60_000);
});

describe('a run with a ceiling', () => {
  let rungate: Deployment;
  beforeAll(async () => {
    rungate = await deploy({
      upstreamUrl: upstream.url,
      processes: 2,
      policy: { budget: { run: '0.01', minOutputTokens: 1000 } },
    });
  });
  afterAll(() => rungate.stop());

  test('tells its start, its alert and its stop once, and again for a ceiling that is raised', async () => {
    upstream.script(USAGE, 4);
    for (const round of [1, 2]) {
      for (const status of [200, 200]) expect(await call(rungate, 'raised')).toBe(status);
      const refused = await Promise.all(
        Array.from({ length: 20 }, (_, at) => call(rungate, 'raised', at)),
      );
      expect(new Set(refused)).toEqual(new Set([402]));
      for (const type of ['budget.alert', 'budget.exceeded', 'run.blocked'] as const) {
        expect(await eventsOf(rungate, type)).toHaveLength(round);
      }
      await rungate.cli('run', 'ceiling', 'raised', '--set', '0.02', '--org', 'acme');
    }
    expect(await eventsOf(rungate, 'run.started')).toHaveLength(1);
    const [first, second] = await eventsOf(rungate, 'budget.exceeded');
    expect(first).toMatchObject({ scope: 'run', ceilingNanos: 10_000_000, spentNanos: 8_020_000 });
    expect(second).toMatchObject({ ceilingNanos: 20_000_000, spentNanos: 16_040_000 });
  }, 60_000);
});

describe('a run whose ceiling is changed', () => {
  test('tells that it nears it at once where its share is spent, and once for each ceiling', async () => {
    const rungate = await deploy({
      upstreamUrl: upstream.url,
      policy: { budget: { run: '1.00' } },
    });
    try {
      const set = (dollars: string) =>
        rungate.cli('run', 'ceiling', 'changed', '--set', dollars, '--org', 'acme');
      const ceilings = async () =>
        (await eventsOf(rungate, 'budget.alert')).map(({ ceilingNanos }) => ceilingNanos);
      upstream.script(USAGE);
      expect(await call(rungate, 'changed')).toBe(200);
      await set('0.0051');
      expect(await ceilings()).toEqual([]);
      for (const dollars of ['0.005', '0.005', '0.5', '0.005']) await set(dollars);
      expect(await ceilings()).toEqual([5_000_000]);
      await set('0.0045');
      expect(await ceilings()).toEqual([5_000_000, 4_500_000]);
    } finally {
      await rungate.stop();
    }
  }, 60_000);
});

/** Days around the turn of a month. */
const DAYS = ['2026-10-31', '2026-11-01', '2026-11-02'].map((day) => Date.parse(`${day}T12:00Z`));
const CEILINGS = { agentPerDay: 1_000, agentPerMonth: 1_500, orgPerMonth: 2_500 } as const;

interface Spending {
  readonly agent: number;
  readonly day: number;
  readonly amount: number;
}

describe('the lines of windows', () => {
  let ground: Ground;
  beforeAll(async () => {
    ground = await makeGround();
  });
  afterAll(() => ground.clear());

  test('are told at the very step that reaches them, in any order of days and agents', async () => {
    const spending = fc.record({
      ...{
        agent: fc.nat(1),
        day: fc.nat(2),
        amount: fc.oneof({ weight: 8, arbitrary: fc.constant(400) }, fc.nat(600)),
      },
    });
    await fc.assert(
      fc.asyncProperty(fc.array(spending, { maxLength: 15 }), async (spendings) => {
        const made = await makeOrg(ground);
        const spent = await spend(made, spendings);
        const alerts = await made.org.read(
          'select * from alerts where org_id = ?1 and raised_at is not null',
        );
        const seen = alerts.map(
          ({ scope, subject, window, run_id }) => `${scope} ${subject} ${window} ${run_id}`,
        );
        expect(seen.sort()).toEqual(spent.expected.sort());
      }),
      { numRuns: 40 },
    );
  }, 60_000);
});

/** Spends in an org of two agents; expects an alert wherever a sum reaches its share. */
async function spend({ org }: Made, spendings: readonly Spending[]) {
  const document = JSON.stringify({
    budget: Object.fromEntries(
      Object.entries(CEILINGS).map(([key, amount]) => [
        key,
        `0.${String(amount).padStart(9, '0')}`,
      ]),
    ),
  });
  const policy = await addPolicyVersion(org, 'operator', 'lines', document);
  const agents = [];
  for (const name of ['one', 'two']) {
    const { id } = await createAgent(org, 'operator', name, policy.id);
    agents.push({ id, version: (await readAgentPolicy(org, id))! });
  }
  const sums = new Map<string, number>();
  const expected: string[] = [];
  for (const [at, { agent, day, amount }] of spendings.entries()) {
    const spender = agents[agent]!;
    const { runId, windows } = await spendOnce(org, spender, `run-${at}`, DAYS[day]!, amount);
    const scopes = [
      [`agent_per_day ${spender.id} ${windows.day}`, CEILINGS.agentPerDay],
      [`agent_per_month ${spender.id} ${windows.month}`, CEILINGS.agentPerMonth],
      [`org_per_month ${org.id} ${windows.month}`, CEILINGS.orgPerMonth],
    ] as const;
    for (const [scope, ceiling] of scopes) {
      const before = sums.get(scope) ?? 0;
      sums.set(scope, before + amount);
      const line = ceiling * 0.8;
      if (before < line && before + amount >= line) expected.push(`${scope} ${runId}`);
    }
  }
  return { expected };
}

async function spendOnce(
  org: Made['org'],
  { id: agentId, version }: { id: AgentId; version: PolicyVersion },
  name: string,
  now: number,
  amount: number,
) {
  const windows = windowsOf(now);
  const run = { agentId, policyVersionId: version.id, ceilingNanos: null, now };
  await openRun(org, run, { name, source: 'test' });
  const { id: runId } = (await findRun(org, agentId, name))!;
  await drawLines(org, agentId, version, windows);
  await recordReport(org, {
    ...{ runId: runId as RunId, windows, now, startedAt: now, latencyMs: 1, outcome: 'ok' },
    ...{ tokenId: 'tok' as TokenId, key: null, spentNanos: nanos(amount), detail: {} },
  });
  return { runId, windows };
}
