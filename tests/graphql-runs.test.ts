/** Runs, steps, gates, limits, usage, analytics and alerts over GraphQL. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { createAgent } from '../db/agents.ts';
import { listAudit } from '../db/audit.ts';
import type { Database } from '../db/client.ts';
import { forOrg, type Org } from '../db/org.ts';
import { createOrg, findOrg } from '../db/orgs.ts';
import { announce } from '../db/outbox.ts';
import { addPolicyVersion } from '../db/policies.ts';
import { newId, newMasterKey, openMasterKeys } from '../db/seal.ts';
import { createAdminToken } from '../db/tokens.ts';
import { boot } from '../functions/boot.ts';
import { makeGraphql } from '../functions/graphql.ts';
import type { Services } from '../functions/services.ts';
import type { AgentId, MemberId } from '../schema/ids.ts';
import type { PolicyDocument } from '../schema/policy.ts';
import { actionsOf, type Role } from '../schema/roles.ts';
import { addMember, type Ground } from './orgs.ts';
import { type Deployment, deploy, readSettled } from './rungate.ts';
import { startUpstream, type Upstream } from './upstream.ts';

setDefaultTimeout(60_000);

// biome-ignore lint/suspicious/noExplicitAny: what comes back is what the query asks for
type Data = any;

interface Answer {
  readonly data: Data;
  readonly errors?: readonly { message: string; path: string[]; extensions: { code: string } }[];
}

type Send = (request: Request) => Promise<Response>;

async function ask(send: Send, token: string, query: string, variables: object = {}) {
  const response = await send(
    new Request('http://localhost/graphql', {
      method: 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      body: JSON.stringify({ query, variables }),
    }),
  );
  return (await response.json()) as Answer;
}

const DAY_MS = 86_400_000;
const MODELS = ['gpt-5', 'claude', null] as const;

describe('a store of generated runs', () => {
  let folder: string;
  let services: Services;
  let db: Database;
  let org: Org;
  let token: string;
  let agents: AgentId[];
  let versions: { id: string; policyId: string }[];
  let statements = 0;
  let send: Send;

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'rungate-graphql-'));
    services = await boot({
      RUNGATE_DATABASE_URL: `file:${folder}/rungate.db`,
      RUNGATE_MASTER_KEYS: newMasterKey('test'),
      RUNGATE_LOG: 'error',
    });
    db = services.db;
    const counting: Database = {
      ...db,
      read(...args) {
        statements++;
        return db.read(...args);
      },
      first(...args) {
        statements++;
        return db.first(...args);
      },
      write(written) {
        statements += written.length;
        return db.write(written);
      },
    };
    send = makeGraphql({ ...services, db: counting });
    const made = await createOrg(db, services.master, 'operator', 'Acme', 'owner@example.com');
    token = made.adminToken;
    org = forOrg(db, made.id);
    const policies = [];
    for (const name of ['one', 'two']) {
      policies.push((await addPolicyVersion(org, 'operator', name, '{}')).id);
    }
    const rows = await org.read('select id, policy_id from policy_versions where org_id = ?1');
    versions = rows.map(({ id, policy_id }) => ({ id: String(id), policyId: String(policy_id) }));
    agents = [];
    for (const name of ['a', 'b', 'c']) {
      agents.push((await createAgent(org, 'operator', name, policies[0]!)).id);
    }
    await ask(send, token, '{ me { role } }');
  });
  afterAll(async () => {
    await services.deliveries.stop(0);
    await db.close();
    rmSync(folder, { recursive: true, force: true });
  });

  interface NewRun {
    readonly agent: number;
    readonly version: number;
    readonly status: string;
    readonly openedAt: number;
    readonly name: string;
    readonly steps: readonly NewStep[];
  }

  interface NewStep {
    readonly kind: 'model_call' | 'tool_call' | 'denial';
    readonly model: number;
    readonly day: number;
    readonly spent: number;
    readonly latencyMs: number;
    readonly rule: string;
    readonly estimate: number | null;
  }

  const BASE = Date.UTC(2026, 0, 10);
  const dayOf = (day: number) => new Date(BASE + day * DAY_MS).toISOString().slice(0, 10);

  /** Writes a run with its trail, as calls would: held, then settled. */
  async function seed(run: NewRun): Promise<string> {
    const id = newId('run');
    const agent = agents[run.agent]!;
    await org.write(
      org.statement(
        `insert into runs (org_id, id, agent_id, name, source, policy_version_id, status,
           opened_at, active_at)
         values (?1, ?2, ?3, ?4, 'header', ?5, ?6, ?7, ?7)`,
        ...[id, agent, `${run.name}${id}`, versions[run.version]!.id, run.status, run.openedAt],
      ),
    );
    for (const step of run.steps) await seedStep(id, agent, step);
    return id;
  }

  async function seedStep(run: string, agent: AgentId, step: NewStep): Promise<void> {
    const id = newId('step');
    const model = MODELS[step.model]!;
    const isDenial = step.kind === 'denial';
    const asked = {
      ...{ endpoint: 'chat.completions', tokenId: 'tok_x' },
      ...(model !== null && step.kind === 'model_call' ? { providerKey: 'openai', model } : {}),
    };
    const settle = (spent: number, outcome: string, answered: object) =>
      org.statement(
        `update steps set settled_at = 1, spent_nanos = ?4, outcome = ?5, answered = ?6
         where org_id = ?1 and run_id = ?2 and id = ?3`,
        ...[run, id, spent, outcome, JSON.stringify(answered)],
      );
    const answered = isDenial ? { detail: { rule: step.rule } } : { latencyMs: step.latencyMs };
    await org.write(
      org.statement(
        `insert into steps (org_id, id, run_id, agent_id, kind, day, started_at, asked)
         values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)`,
        ...[id, run, agent, step.kind, dayOf(step.day), BASE, JSON.stringify(asked)],
      ),
      ...(step.estimate === null || isDenial
        ? []
        : [settle(step.estimate, 'lease_expired', { estimated: true })]),
      settle(isDenial ? 0 : step.spent, isDenial ? 'permission_denied' : 'ok', answered),
    );
  }

  const step = fc.record<NewStep>({
    kind: fc.constantFrom('model_call', 'tool_call', 'denial'),
    model: fc.nat({ max: 1 }),
    day: fc.nat({ max: 3 }),
    spent: fc.nat({ max: 1_000_000 }),
    latencyMs: fc.integer({ min: 1, max: 100_000 }),
    rule: fc.constantFrom('models.deny[0]', 'tools.deny[1]'),
    estimate: fc.option(fc.nat({ max: 1_000_000 }), { freq: 5 }),
  });
  const run = fc.record<NewRun>({
    agent: fc.nat({ max: 2 }),
    version: fc.nat({ max: 1 }),
    status: fc.constantFrom('open', 'completed', 'blocked', 'cancelled'),
    openedAt: fc.integer({ min: BASE, max: BASE + 5 }),
    name: fc.constantFrom('nightly-', 'daily-', 'x'),
    steps: fc.array(step, { maxLength: 6 }),
  });

  const empty = async () => {
    const tables = ['steps', 'runs', 'spend', 'call_totals'];
    await org.write(
      ...tables.map((table) => org.statement(`delete from ${table} where org_id = ?1`)),
    );
  };

  const TRAIL = `query Trail($runs: Int!, $steps: Int!) {
    runs(first: $runs) {
      edges { cursor node {
        id name status stepCount openedAt spent { dollars nanos } ceiling { dollars }
        agent { id name } policyVersion { id label number }
        steps(first: $steps) { edges { node {
          id kind model outcome spent { dollars } latencyMs usage { inputTokens } detail
        } } }
        gates(first: 1) { edges { node { id args decisions { decider } } } }
      } }
      pageInfo { hasNextPage endCursor }
    }
  }`;

  test('a page of runs with their trails costs as many statements whatever its size', async () => {
    const steps = fc.sample(step, { numRuns: 20, seed: 7 });
    const runs = fc.sample(run, { numRuns: 50, seed: 7 });
    for (const one of runs) await seed({ ...one, steps });
    const costs = new Set<number>();
    for (const [first, trail] of [
      [50, 20],
      [1, 1],
      [7, 20],
      [50, 1],
      [50, 20],
    ] as const) {
      statements = 0;
      const { data, errors } = await ask(send, token, TRAIL, { runs: first, steps: trail });
      expect(errors).toBeUndefined();
      expect(data.runs.edges.length).toBe(first);
      for (const { node } of data.runs.edges) {
        expect(node.steps.edges.length).toBe(trail);
        expect(node.agent.name).toBeTruthy();
        expect(node.policyVersion.label).toMatch(/^(one|two)\/v1$/);
      }
      costs.add(statements);
    }
    expect([...costs]).toHaveLength(1);
    expect(Math.max(...costs)).toBeLessThanOrEqual(8);
  });

  const PAGE = `query Runs($filter: RunFilter, $orderBy: RunOrder, $first: Int, $last: Int,
             $after: String, $before: String) {
            runs(filter: $filter, orderBy: $orderBy, first: $first, last: $last, after: $after,
              before: $before) {
              edges { node { id } }
              pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
            }
          }`;

  /** The ids of all pages of a list, read from either end. */
  async function walk(variables: object, size: number, isBackward: boolean): Promise<string[]> {
    const found: string[] = [];
    for (let cursor: string | null = null; ; ) {
      const page = isBackward ? { last: size, before: cursor } : { first: size, after: cursor };
      const { data, errors } = await ask(send, token, PAGE, { ...variables, ...page });
      expect(errors).toBeUndefined();
      const { edges, pageInfo } = data.runs;
      const ids = edges.map(({ node }: Data) => node.id);
      found.splice(isBackward ? 0 : found.length, 0, ...ids);
      cursor = isBackward ? pageInfo.startCursor : pageInfo.endCursor;
      if (!(isBackward ? pageInfo.hasPreviousPage : pageInfo.hasNextPage)) break;
    }
    return found;
  }

  /** Every run as the filter of a list sees it. */
  async function listAll() {
    return (await org.read('select * from runs where org_id = ?1')).map((row) => ({
      id: String(row.id),
      status: String(row.status).toUpperCase(),
      agentId: String(row.agent_id),
      policyId: versions.find(({ id }) => id === row.policy_version_id)!.policyId,
      name: String(row.name),
      openedAt: Number(row.opened_at),
      keys: { OPENED_AT: row.opened_at, ACTIVE_AT: row.active_at, SPENT: row.spent_nanos },
    }));
  }

  test('runs are found, ordered and paged as a plain filter finds them', async () => {
    await empty();
    const seeded = fc.sample(run, { numRuns: 40, seed: 11 });
    for (const one of seeded) await seed(one);
    const all = await listAll();
    const some = <T>(arbitrary: fc.Arbitrary<T>) =>
      fc.option(arbitrary, { nil: undefined, freq: 1 });
    const moment = fc.integer({ min: BASE - 1, max: BASE + 6 });
    const query = fc.record({
      status: some(fc.constantFrom('OPEN', 'COMPLETED', 'BLOCKED', 'CANCELLED')),
      agentId: some(fc.constantFrom(...agents)),
      policyId: some(fc.constantFrom(...versions.map(({ policyId }) => policyId))),
      openedAfter: some(moment),
      openedBefore: some(moment),
      name: some(fc.constantFrom('DAILY', 'run_', 'none', '%')),
      field: fc.constantFrom('OPENED_AT', 'ACTIVE_AT', 'SPENT'),
      direction: fc.constantFrom('ASC', 'DESC'),
      size: fc.integer({ min: 1, max: 15 }),
      isBackward: fc.boolean(),
    });
    const property = fc.asyncProperty(query, async ({ field, direction, size, ...wanted }) => {
      const { isBackward, openedAfter, openedBefore, ...filter } = wanted;
      const sign = direction === 'ASC' ? 1 : -1;
      const key = (one: (typeof all)[number]) => Number(one.keys[field as 'SPENT']);
      const expected = all
        .filter((one) => filter.status === undefined || one.status === filter.status)
        .filter((one) => filter.agentId === undefined || one.agentId === filter.agentId)
        .filter((one) => filter.policyId === undefined || one.policyId === filter.policyId)
        .filter(
          (one) =>
            filter.name === undefined || one.name.toLowerCase().includes(filter.name.toLowerCase()),
        )
        .filter((one) => openedAfter === undefined || one.openedAt >= openedAfter)
        .filter((one) => openedBefore === undefined || one.openedAt < openedBefore)
        .sort((a, b) => sign * (key(a) - key(b) || (a.id < b.id ? -1 : 1)))
        .map(({ id }) => id);
      const iso = (millis?: number) => millis && new Date(millis).toISOString();
      const variables = {
        filter: { ...filter, openedAfter: iso(openedAfter), openedBefore: iso(openedBefore) },
        orderBy: { field, direction },
      };
      const found = await walk(variables, size, isBackward);
      expect(found).toEqual(expected);
    });
    await fc.assert(property, { numRuns: 60 });
  });

  const SUMS = `query Sums($from: DateTime!, $to: DateTime!) {
            analytics(from: $from, to: $to) {
              day: spend(by: DAY) { day calls spent { nanos } }
              agent: spend(by: AGENT) { agent { id } calls spent { nanos } }
              model: spend(by: MODEL) { model calls spent { nanos } }
              policy: spend(by: POLICY) { policy { id } calls spent { nanos } }
              refused { rule code count }
              latencies { model calls p50Ms p95Ms p99Ms }
            }
            usage(from: $from, to: $to) { month steps spent { nanos } held { nanos } }
          }`;

  type Settled = NewStep & { readonly run: NewRun };

  const modelOf = ({ kind, model }: NewStep) =>
    kind === 'model_call' ? `openai/${MODELS[model]}` : null;
  const alike = (a: object[], b: object[]) =>
    expect(a.map((x) => JSON.stringify(x)).sort()).toEqual(b.map((x) => JSON.stringify(x)).sort());

  function expectShares(analytics: Data, calls: readonly Settled[]): void {
    const sums = (key: (step: Settled) => string | null) =>
      [...Map.groupBy(calls, key)].map(([name, group]) => ({
        name,
        calls: group.length,
        nanos: group.reduce((total, { spent }) => total + spent, 0),
      }));
    const shown = (rows: Data[], name: (row: Data) => string | null) =>
      rows.map((row) => ({ name: name(row), calls: row.calls, nanos: row.spent.nanos }));
    alike(
      shown(analytics.day, (row) => row.day),
      sums(({ day }) => dayOf(day)),
    );
    alike(
      shown(analytics.agent, (row) => row.agent.id),
      sums((s) => agents[s.run.agent]!),
    );
    alike(
      shown(analytics.model, (row) => row.model),
      sums(modelOf),
    );
    alike(
      shown(analytics.policy, (row) => row.policy.id),
      sums((s) => versions[s.run.version]!.policyId),
    );
  }

  function expectLatencies(latencies: readonly Data[], calls: readonly Settled[]): void {
    for (const { model, p50Ms, p95Ms, p99Ms, calls: count } of latencies) {
      // A call whose lease had run out is counted, but its latency was not known in time.
      const known = calls.filter((s) => modelOf(s) === model && s.estimate === null);
      const sorted = known.map(({ latencyMs }) => latencyMs).sort((a, b) => a - b);
      expect(count).toBe(sorted.length);
      for (const [share, got] of [
        [0.5, p50Ms],
        [0.95, p95Ms],
        [0.99, p99Ms],
      ] as const) {
        const exact = sorted[Math.ceil(share * sorted.length) - 1]!;
        expect(Math.abs(got - exact) / exact).toBeLessThanOrEqual(0.051);
      }
    }
  }

  test('analytics and usage are the sums of the trail', async () => {
    const runs = fc.array(run, { minLength: 1, maxLength: 6 });
    const property = fc.asyncProperty(
      runs,
      fc.nat({ max: 3 }),
      fc.nat({ max: 3 }),
      async (seeded, one, other) => {
        await empty();
        for (const each of seeded) await seed(each);
        const [first, last] = [Math.min(one, other), Math.max(one, other)];
        const steps = seeded.flatMap((each) => each.steps.map((s) => ({ ...s, run: each })));
        const within = steps.filter(({ day }) => day >= first && day <= last);
        const calls = within.filter(({ kind }) => kind !== 'denial');
        const { data, errors } = await ask(send, token, SUMS, {
          from: new Date(BASE + first * DAY_MS).toISOString(),
          to: new Date(BASE + (last + 1) * DAY_MS).toISOString(),
        });
        expect(errors).toBeUndefined();
        const { analytics, usage } = data;
        expectShares(analytics, calls);
        const denied = within.filter(({ kind }) => kind === 'denial');
        alike(
          analytics.refused,
          [...Map.groupBy(denied, ({ rule }) => rule)].map(([rule, group]) => ({
            ...{ rule, code: 'permission_denied', count: group.length },
          })),
        );
        expectLatencies(analytics.latencies, calls);
        const all = { steps: steps.length, spent: 0 };
        for (const { kind, spent } of steps) if (kind !== 'denial') all.spent += spent;
        expect(usage).toEqual(
          steps.length === 0
            ? []
            : [
                {
                  month: '2026-01',
                  steps: all.steps,
                  spent: { nanos: all.spent },
                  held: { nanos: 0 },
                },
              ],
        );
      },
    );
    await fc.assert(property, { numRuns: 25 });
  });

  test('a range that is empty, backward or too long is refused by its field', async () => {
    const query = `query Sums($from: DateTime!, $to: DateTime!) {
      analytics(from: $from, to: $to) { refused { count } }
    }`;
    for (const days of [-400, -1, 0, 367, 10_000]) {
      const [from, to] = [new Date(BASE), new Date(BASE + days * DAY_MS)];
      const { data, errors } = await ask(send, token, query, { from, to });
      expect(data.analytics).toBeNull();
      expect(errors?.[0]?.extensions).toMatchObject({ code: 'INVALID', field: ['to'] });
    }
  });
});

describe('a server with an upstream', () => {
  const POLICY: PolicyDocument = {
    models: { deny: ['openai/forbidden*'] },
    tools: {
      requireApproval: [{ tool: 'refund' }, { tool: 'wire', approvals: 2 }],
    },
    limits: [
      { per: 'agent', requests: 1_000, windowS: 3_600 },
      { per: 'org', tokens: 1_000_000, windowS: 3_600 },
      { per: 'policy', concurrent: 7 },
    ],
    budget: { run: '1.00', agentPerDay: '20.00', orgPerMonth: '500.00' },
    capture: 'sealed',
  };

  let upstream: Upstream;
  let rungate: Deployment;
  let db: Database;
  let org: Org;
  let foreign: string;

  beforeAll(async () => {
    upstream = await startUpstream();
    const master = newMasterKey('test');
    rungate = await deploy({
      ...{ upstreamUrl: upstream.url, policy: POLICY },
      env: { RUNGATE_MASTER_KEYS: master },
    });
    db = await rungate.database();
    org = (await findOrg(db, 'acme'))!;
    const keys = openMasterKeys(master);
    foreign = (await createOrg(db, keys, 'operator', 'Other', 'other@example.com')).adminToken;
  });
  afterAll(async () => {
    await db.close();
    await rungate.stop();
    await upstream.stop();
  });

  const query = (text: string, variables: object = {}, token = rungate.adminToken) => {
    const send: Send = (request) =>
      fetch(new Request(`${rungate.url}/graphql`, request as unknown as RequestInit));
    return ask(send, token, text, variables);
  };

  /** Runs a mutation and gives its payload. */
  async function mutate(name: string, input: object, fields: string, token?: string) {
    const type = `${name[0]!.toUpperCase()}${name.slice(1)}Input`;
    const text = `mutation Run($input: ${type}!) {
      ${name}(input: $input) { ${fields} errors { code field message } }
    }`;
    const { data, errors } = await query(text, { input }, token);
    expect(errors).toBeUndefined();
    return data[name];
  }

  const send = (path: string, body: object) =>
    fetch(`${rungate.url}${path}`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${rungate.token}`,
        'content-type': 'application/json',
      },
      body: JSON.stringify(body),
    });

  const call = (run: string, model = 'test-model') =>
    send(`/r/${run}/v1/chat/completions`, {
      model,
      messages: [{ role: 'user', content: `hello from ${run}` }],
    });

  /** Makes a call on a run, and gives the run's id. */
  async function open(name: string): Promise<string> {
    const response = await call(name);
    expect(response.status).toBe(200);
    await response.text();
    await readSettled(rungate, name);
    const { data } = await query(
      'query Find($name: String) { runs(filter: { name: $name }) { edges { node { id } } } }',
      { name },
    );
    return data.runs.edges[0].node.id;
  }

  /** Asks about a tool, and gives the gate that was opened. */
  async function askAbout(run: string, tool: string): Promise<string> {
    const response = await send(`/v1/runs/${run}/tools`, { name: tool, arguments: { to: run } });
    const { decision, gate } = (await response.json()) as Data;
    expect(decision).toBe('ask');
    return gate.id;
  }

  /** A token of a member in a role of his own, with all that the role holds. */
  async function tokenOf(role: Role): Promise<{ token: string; id: MemberId }> {
    const { id } = await addMember({ db } as Ground, org, role);
    const actions = actionsOf(role);
    const expiresAt = Date.now() + DAY_MS;
    const wanted = { name: role, actions, expiresAt };
    return { id, token: (await createAdminToken(org, 'operator', id, wanted)).token };
  }

  const entries = (action: string) => listAudit(org, { action, limit: 100 });

  test('a kept body opens for those who may read it, and each reading is on the trail', async () => {
    const id = await open('kept');
    const BODIES = `query Bodies($id: RunID!) { run(id: $id) {
      name
      steps(first: 5, kinds: [MODEL_CALL]) { edges { node {
        id spent { nanos } usage { inputTokens outputTokens }
        body { request { text base64 totalBytes isTruncated } response { text isTruncated } }
      } } }
    } }`;
    const viewer = await tokenOf('viewer');
    const refused = await query(BODIES, { id }, viewer.token);
    expect(refused.errors?.[0]?.extensions).toMatchObject({
      ...{ code: 'FORBIDDEN', action: 'run.body_read' },
    });
    expect(refused.data.run.steps.edges[0].node).toMatchObject({ body: null });
    expect(await entries('run.body_read')).toEqual([]);
    const member = await tokenOf('member');
    const { data, errors } = await query(BODIES, { id }, member.token);
    expect(errors).toBeUndefined();
    const { node } = data.run.steps.edges[0];
    expect(node.spent.nanos).toBeGreaterThan(0);
    expect(node.usage.inputTokens).toBeGreaterThan(0);
    const { request, response } = node.body;
    expect(JSON.parse(request.text).messages[0].content).toBe('hello from kept');
    expect(atob(request.base64)).toBe(request.text);
    expect(request).toMatchObject({ totalBytes: request.text.length, isTruncated: false });
    expect(JSON.parse(response.text).object).toBe('chat.completion');
    const [entry, ...others] = await entries('run.body_read');
    expect(others).toEqual([]);
    expect(entry).toMatchObject({ target: id, outcome: 'allowed' });
    expect(entry?.payload?.text).toContain(node.id);
    expect(entry?.payload?.text).toContain(member.id);
  });

  test('a run is cancelled once, and given a ceiling that re-opens it', async () => {
    const id = await open('ended');
    const fields = 'run { id status ceiling { dollars } }';
    await org.write(
      org.statement(
        `update runs set status = 'blocked', closed_reason = 'budget.run', closed_at = 1
         where org_id = ?1 and id = ?2`,
        id,
      ),
    );
    const input = { runId: id, ceiling: '2.50' };
    expect(await mutate('runSetCeiling', input, fields)).toEqual({
      ...{ run: { id, status: 'OPEN', ceiling: { dollars: '2.50' } }, errors: [] },
    });
    const [entry] = await entries('run.set_ceiling');
    expect(JSON.parse(entry!.payload!.text)).toMatchObject({
      before: { ceilingNanos: 1_000_000_000, status: 'blocked' },
      after: { ceilingNanos: 2_500_000_000 },
    });
    const cancelled = await mutate('runCancel', { runId: id }, fields);
    expect(cancelled).toMatchObject({ run: { status: 'CANCELLED' }, errors: [] });
    expect((await call('ended')).status).toBe(403);
    const again = await mutate('runCancel', { runId: id }, fields);
    expect(again).toMatchObject({ run: null, errors: [{ code: 'CONFLICT', field: ['runId'] }] });
    expect(await entries('run.cancel')).toHaveLength(1);
  });

  test('another org’s run or gate answers like one that isn’t there, and nothing is noted', async () => {
    const runId = await open('own');
    const gateId = await askAbout('own', 'refund');
    const before = (await db.first('select count(*) as count from audit_entries', []))?.count;
    const missing = { runId: newId('run'), gateId: newId('gate') };
    const actions = [
      ['runCancel', 'runId', {}, 'run { id }'],
      ['runSetCeiling', 'runId', { ceiling: '9.00' }, 'run { id }'],
      ['gateApprove', 'gateId', { reason: 'x' }, 'gate { id }'],
      ['gateReject', 'gateId', {}, 'gate { id }'],
    ] as const;
    for (const [name, field, more, fields] of actions) {
      const answers = [];
      for (const id of [{ runId, gateId }[field], missing[field]]) {
        answers.push(await mutate(name, { [field]: id, ...more }, fields, foreign));
      }
      expect(answers[0]).toEqual(answers[1]);
      expect(answers[0].errors).toMatchObject([{ code: 'NOT_FOUND', field: [field] }]);
    }
    for (const id of [runId, missing.runId]) {
      const { data } = await query('query R($id: RunID!) { run(id: $id) { id } }', { id }, foreign);
      expect(data.run).toBeNull();
    }
    const after = (await db.first('select count(*) as count from audit_entries', []))?.count;
    expect(after).toBe(before!);
  });

  const GATE = `id status tool args rule approvalsNeeded approvalsGiven decidedBy
    run { name } agent { name } policyVersion { label } step { id }
    decisions { decider decision reason }`;

  test('a gate is shown with its exact arguments, approved, and used once', async () => {
    await open('asks');
    const id = await askAbout('asks', 'refund');
    const { data } = await query(
      `{ gates(filter: { status: PENDING }) { edges { node { ${GATE} } } } }`,
    );
    const shown = data.gates.edges.map(({ node }: Data) => node).find((g: Data) => g.id === id);
    expect(shown).toMatchObject({
      ...{ status: 'PENDING', tool: 'refund', args: '{"to":"asks"}', approvalsNeeded: 1 },
      ...{ run: { name: 'asks' }, agent: { name: 'tester' }, policyVersion: { label: 'test/v1' } },
      ...{ rule: 'tools.requireApproval[0]', approvalsGiven: 0, decisions: [], step: null },
    });
    const member = await tokenOf('member');
    const input = { gateId: id, reason: 'fine' };
    const { gate, errors } = await mutate('gateApprove', input, `gate { ${GATE} }`, member.token);
    expect(errors).toEqual([]);
    expect(gate).toMatchObject({
      ...{ status: 'APPROVED', approvalsGiven: 1, decidedBy: member.id },
      decisions: [{ decider: member.id, decision: 'APPROVE', reason: 'fine' }],
    });
    const released = await send('/v1/runs/asks/tools', {
      name: 'refund',
      arguments: { to: 'asks' },
    });
    expect(await released.json()).toMatchObject({ decision: 'allow' });
    const read = await query('query G($id: GateID!) { gate(id: $id) { status } }', { id });
    expect(read.data.gate.status).toBe('RELEASED');
    const listed = async (filter: string) => {
      const found = await query(`{ gates(first: 100${filter}) { edges { node { id status } } } }`);
      return found.data.gates.edges.map(({ node }: Data) => node) as {
        id: string;
        status: string;
      }[];
    };
    const all = await listed('');
    for (const status of ['PENDING', 'APPROVED', 'REJECTED', 'EXPIRED', 'RELEASED']) {
      expect(await listed(`, filter: { status: ${status} }`)).toEqual(
        all.filter((each) => each.status === status),
      );
    }
  });

  test('two people are two, one is one, and nobody decides on his own call', async () => {
    await open('wires');
    const id = await askAbout('wires', 'wire');
    const [one, other, maker] = [
      await tokenOf('member'),
      await tokenOf('admin'),
      await tokenOf('admin'),
    ];
    await org.write(
      org.statement(
        'update gates set caused_by = ?3 where org_id = ?1 and id = ?2',
        ...[id, maker.id],
      ),
    );
    const approve = (token: string) =>
      mutate('gateApprove', { gateId: id }, 'gate { status approvalsGiven }', token);
    const refusals = [
      [await approve(maker.token), 'FORBIDDEN'],
      [await approve(one.token), undefined],
      [await approve(one.token), 'CONFLICT'],
      [await approve(other.token), undefined],
      [await approve(other.token), 'CONFLICT'],
    ];
    expect(refusals.map(([{ errors }]) => errors[0]?.code)).toEqual(
      refusals.map(([, code]) => code),
    );
    const given = refusals.map(([{ gate }]) => gate && [gate.status, gate.approvalsGiven]);
    expect(given).toEqual([null, ['PENDING', 1], null, ['APPROVED', 2], null]);
    const viewer = await tokenOf('viewer');
    const { errors } = await query(
      `mutation A($id: GateID!) { gateReject(input: { gateId: $id }) { errors { code } } }`,
      { id },
      viewer.token,
    );
    expect(errors?.[0]?.extensions.code).toBe('FORBIDDEN');
    const long = { gateId: id, reason: 'x'.repeat(501) };
    expect((await mutate('gateReject', long, 'gate { id }')).errors).toMatchObject([
      { code: 'INVALID', field: ['reason'] },
    ]);
  });

  test('limits tell what is used and left, as the proxy counts it', async () => {
    const found = await query('{ agents { edges { node { id } } } }');
    const agentId = found.data.agents.edges[0].node.id;
    const read = async () => {
      const { data, errors } = await query(
        `query Limits($agentId: AgentID!) { limits(agentId: $agentId) {
          agent { name } policyVersion { label }
          rates { name rule per kind limit used remaining windowS resetsAt }
          budgets { scope ceiling { dollars } spent { nanos } held { nanos } remaining { nanos } resetsAt }
        } }`,
        { agentId },
      );
      expect(errors).toBeUndefined();
      return data.limits;
    };
    const before = await read();
    await open('counted');
    const after = await read();
    expect(after).toMatchObject({ agent: { name: 'tester' }, policyVersion: { label: 'test/v1' } });
    const rate = (limits: Data, name: string) =>
      limits.rates.find((each: Data) => each.name === name);
    const requests = 'agent-requests-3600s';
    expect(rate(after, requests).used).toBe(rate(before, requests).used + 1);
    expect(rate(after, 'org-tokens-3600s').used).toBeGreaterThan(
      rate(before, 'org-tokens-3600s').used,
    );
    expect(rate(after, 'policy-concurrent')).toMatchObject({
      ...{ limit: 7, used: 0, remaining: 7, windowS: null, resetsAt: null },
    });
    for (const { limit, used, remaining } of after.rates) expect(used + remaining).toBe(limit);
    const spent = (limits: Data) => limits.budgets.map((each: Data) => each.spent.nanos);
    expect(after.budgets.map(({ scope }: Data) => scope)).toEqual([
      'agent_per_day',
      'org_per_month',
    ]);
    const [now, then] = [spent(after), spent(before)];
    for (const at of now.keys()) expect(now[at]).toBeGreaterThan(then[at]);
    const foreignRead = await query(
      'query L($id: AgentID!) { limits(agentId: $id) { rates { name } } }',
      { id: agentId },
      foreign,
    );
    expect(foreignRead.data.limits).toBeNull();
  });

  test('a rule that fired is an alert, of no run, with what it came to', async () => {
    const made = await query(
      `mutation { alertRuleCreate(input: {
        name: "Waiting", metric: PENDING_GATES, threshold: 3, windowS: 60, channel: EVENT
      }) { alertRule { id } errors { message } } }`,
    );
    const { id: ruleId } = made.data.alertRuleCreate.alertRule;
    const rule = { ruleId, name: 'Waiting', metric: 'pending_gates', windowS: 60 } as const;
    const fired = { ...rule, value: 5, threshold: 3 };
    await org.write(announce(org, 'alert.fired', fired, Date.now()));
    const read = async (kinds: string) => {
      const { data, errors } = await query(
        `{ alerts(first: 1${kinds}) { nodes {
          kind value threshold alertRule { id name } run { id } agent { id } spent { nanos } rule
        } } }`,
      );
      expect(errors).toBeUndefined();
      return data.alerts.nodes;
    };
    const told = {
      ...{
        kind: 'ALERT_FIRED',
        value: 5,
        threshold: 3,
        alertRule: { id: ruleId, name: 'Waiting' },
      },
      ...{ run: null, agent: null, spent: null, rule: null },
    };
    expect(await read(', kinds: [ALERT_FIRED]')).toEqual([told]);
    expect(await read('')).toEqual([told]);
  });

  test('what was tried in vain is an alert, and counted by its rule', async () => {
    await open('drifts');
    expect((await call('drifts', 'forbidden-model')).status).toBe(403);
    const now = Date.now();
    const { data, errors } = await query(
      `query Alerts($from: DateTime!, $to: DateTime!) {
        alerts(kinds: [POLICY_DRIFT]) { edges { node {
          id kind at run { name } agent { name } policy rule asked scope spent { nanos }
        } } }
        analytics(from: $from, to: $to) {
          refused { rule code count } asked { rule ruleName asked approved rejected expired }
        }
      }`,
      { from: new Date(now - 1_000), to: new Date(now + 60_000) },
    );
    expect(errors).toBeUndefined();
    expect(data.alerts.edges[0].node).toMatchObject({
      ...{ kind: 'POLICY_DRIFT', run: { name: 'drifts' }, agent: { name: 'tester' } },
      ...{ policy: 'test/v1', rule: 'models.deny', asked: 'openai/forbidden-model' },
      ...{ scope: null, spent: null },
    });
    expect(data.analytics.refused).toContainEqual({
      ...{ rule: 'models.deny', code: 'permission_denied', count: 1 },
    });
    const gates = await org.read('select rule, status from gates where org_id = ?1');
    for (const { rule, asked, approved, rejected, expired } of data.analytics.asked) {
      const own = gates.filter((gate) => gate.rule === rule);
      const count = (...statuses: string[]) =>
        own.filter(({ status }) => statuses.includes(String(status))).length;
      expect({ asked, approved, rejected, expired }).toEqual({
        asked: own.length,
        approved: count('approved', 'released'),
        rejected: count('rejected'),
        expired: 0,
      });
    }
  });
});
