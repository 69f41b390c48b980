/** Money under concurrency: no ceiling is passed at any instant, and the trail is the ledger. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { createAgent } from '../db/agents.ts';
import { type Database, openDatabase } from '../db/client.ts';
import { reserve } from '../db/holds.ts';
import { migrate } from '../db/migrate.ts';
import { forOrg, type Org } from '../db/org.ts';
import { findOrg } from '../db/orgs.ts';
import { addPolicyVersion } from '../db/policies.ts';
import { deletePrice, setPrice } from '../db/prices.ts';
import { findRun, openRun, type Run, readRun } from '../db/runs.ts';
import { newId, newMasterKey } from '../db/seal.ts';
import { type Hold, leaseRenewal, settle, settlement } from '../db/settlements.ts';
import { expireHolds } from '../db/system.ts';
import { makeApp } from '../functions/app.ts';
import { boot, shutDown } from '../functions/boot.ts';
import { findEndpoint } from '../functions/providers/endpoints.ts';
import type { AgentId, PolicyVersionId, RunId, StepId, TokenId } from '../schema/ids.ts';
import { formatDollars, type Nanos } from '../schema/money.ts';
import type { PolicyDocument } from '../schema/policy.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import { findRates, overrideRates } from '../schema/rules/catalogue.ts';
import { worstCaseOf } from '../schema/rules/price.ts';
import { start } from './process.ts';
import { type Deployment, deploy, readTrail, type Wanted } from './rungate.ts';
import { startSqld } from './sqld.ts';
import {
  SCRIPT_HEADER,
  type Script,
  startUpstream,
  UPSTREAM_KEY,
  type Upstream,
} from './upstream.ts';

setDefaultTimeout(60_000);

const CHAT = '/v1/chat/completions';
const OUTPUT_TOKENS = 50;
const OUTPUT_PRICE = 4_000;
const RATES = overrideRates({
  inputNanosPerMillion: 1_000_000_000,
  outputNanosPerMillion: 4_000_000_000,
});

/** What every call of these tests really consumes, and what that costs at the tests' prices. */
const USAGE = { prompt_tokens: 100, completion_tokens: 10, total_tokens: 110 };
const COST = 100 * 1_000 + 10 * OUTPUT_PRICE;

const bodyOf = (members: object = {}): string =>
  JSON.stringify({
    model: 'test-model',
    max_tokens: OUTPUT_TOKENS,
    messages: [{ role: 'user', content: 'hello' }],
    ...members,
  });

/** The most that a call may cost, by the rules themselves. */
function worstOf(body: string, path = CHAT): number {
  const { endpoint } = findEndpoint('POST', path)!;
  return worstCaseOf(endpoint.bound(JSON.parse(body), Buffer.byteLength(body), RATES), RATES);
}

const WORST = worstOf(bodyOf());

/** A call: who makes it, and what it says. */
interface Ask {
  readonly token: string;
  readonly run?: string;
  readonly path?: string;
  readonly body?: string;
  readonly script?: object;
}

function requestOf(url: string, ask: Ask): Request {
  const headers = new Headers({
    'content-type': 'application/json',
    authorization: `Bearer ${ask.token}`,
    [SCRIPT_HEADER]: JSON.stringify({ usage: USAGE, ...ask.script }),
  });
  if (ask.run !== undefined) headers.set('x-rungate-run-id', ask.run);
  if (ask.path?.endsWith('/messages')) headers.set('anthropic-version', '2023-06-01');
  const body = ask.body ?? bodyOf();
  return new Request(`${url}${ask.path ?? CHAT}`, { method: 'POST', headers, body });
}

/** What a refusal tells a machine. */
interface Told {
  readonly error: {
    readonly type: string;
    readonly code?: string;
    readonly rungate: Readonly<Record<string, unknown>>;
  };
}

const dollars = (nanos: number): string => formatDollars(nanos);

/** Watches a database from a process of its own, as fast as it can. */
async function watch(url: string) {
  const client = fileURLToPath(new URL('../db/client.ts', import.meta.url));
  const script = `
    import { openDatabase } from '${client}';
    const db = await openDatabase({ url: ${JSON.stringify(url)} });
    const seen = { samples: 0, overNanos: -1, mismatches: 0 };
    let isOver = false;
    process.stdin.once('data', () => { isOver = true; });
    console.log('watching');
    while (!isOver) {
      const row = await db.first(${JSON.stringify(SNAPSHOT)}, []);
      seen.samples++;
      seen.overNanos = Math.max(seen.overNanos, row.over_nanos);
      seen.mismatches += row.mismatches;
      await new Promise((resolve) => setImmediate(resolve));
    }
    console.log('seen ' + JSON.stringify(seen));
    process.exit();`;
  const child = await start([process.execPath, '-e', script], { ready: /watching/ });
  return async (): Promise<{ samples: number; overNanos: number; mismatches: number }> => {
    child.send('stop');
    const [, seen = ''] = await child.next(/seen (\{.*\})/);
    await child.exit;
    return JSON.parse(seen);
  };
}

/** One statement, so one snapshot: by how much a ceiling is passed, and whether a sum is off. */
const SNAPSHOT = `
  select
    coalesce(max(r.spent_nanos + r.held_nanos - r.ceiling_nanos), 0) as over_nanos,
    coalesce(sum(
      r.spent_nanos <> (select sum(spent_nanos) from steps s where s.run_id = r.id)
      or r.held_nanos <> (select sum(iif(settled_at is null, held_nanos, 0)) from steps s
        where s.run_id = r.id)
    ), 0) as mismatches
  from runs r where r.step_count > 0`;

/** Calls from many callers at once; those told to wait do so until they are told yes or no. */
async function flood(deployment: Deployment, calls: number, callers: number) {
  const statuses = new Map<number, number>();
  let next = 0;
  const call = async (): Promise<void> => {
    for (let at = next++; at < calls; at = next++) {
      const url = deployment.urls[at % deployment.urls.length]!;
      const ask = { token: deployment.token, run: 'flood', script: { delayMs: 5 } };
      for (let isWaiting = true; isWaiting; ) {
        const response = await fetch(requestOf(url, ask));
        await response.text();
        statuses.set(response.status, (statuses.get(response.status) ?? 0) + 1);
        isWaiting = response.status === 429;
        if (isWaiting) await Bun.sleep(25);
      }
    }
  };
  await Promise.all(Array.from({ length: callers }, call));
  return statuses;
}

async function runOf(db: Database, name: string): Promise<Run> {
  const org = (await findOrg(db, 'acme'))!;
  const row = await org.first('select agent_id from runs where org_id = ?1 and name = ?2', name);
  return (await findRun(org, row?.agent_id as AgentId, name))!;
}

let upstream: Upstream;
beforeAll(async () => {
  upstream = await startUpstream({ record: true });
});
afterAll(() => upstream.stop());

interface Flood extends Wanted {
  readonly calls: number;
  readonly callers: number;
  readonly onServer?: boolean;
}

const FITTING = 40;
const FLOODS: readonly [string, Flood][] = [
  ['500 calls at once on Bun', { calls: 500, callers: 500 }],
  ['200 calls at once on Deno', { calls: 200, callers: 200, runtime: 'deno' }],
  ['500 calls at once over four processes on one file', { calls: 500, callers: 500, processes: 4 }],
  [
    '100 calls over two processes and a server',
    { calls: 100, callers: 8, processes: 2, onServer: true },
  ],
];

describe.each(FLOODS)('%s on a run that pays for forty', (_, wanted) => {
  let sqld: Awaited<ReturnType<typeof startSqld>> | undefined;
  let deployment: Deployment;
  let db: Database;
  beforeAll(async () => {
    if (wanted.onServer) sqld = await startSqld();
    const ceiling = (FITTING - 1) * COST + WORST;
    deployment = await deploy({
      ...wanted,
      upstreamUrl: upstream.url,
      policy: { budget: { run: dollars(ceiling), minOutputTokens: OUTPUT_TOKENS } },
      ...(sqld
        ? { env: { RUNGATE_DATABASE_URL: sqld.url, RUNGATE_MASTER_KEYS: newMasterKey('test') } }
        : {}),
    });
    db = await deployment.database();
  });
  afterAll(async () => {
    // Whatever was set up ends, also where a later part of it failed.
    await db?.close();
    await deployment?.stop();
    await sqld?.stop();
  });

  test('lets exactly those through, and never passes the ceiling', async () => {
    const reached = upstream.requests.length;
    const stopWatching = await watch(sqld?.url ?? `file:${deployment.folder}/rungate.db`);
    const statuses = await flood(deployment, wanted.calls, wanted.callers);
    const seen = await stopWatching();
    expect(seen).toMatchObject({ overNanos: 0, mismatches: 0 });
    expect(seen.samples).toBeGreaterThan(3);
    expect(statuses.get(200)).toBe(FITTING);
    expect(statuses.get(402)).toBe(wanted.calls - FITTING);
    expect([...statuses.keys()].filter((status) => ![200, 402, 429].includes(status))).toEqual([]);
    expect(upstream.requests.length - reached).toBe(FITTING);
    const run = await runOf(db, 'flood');
    expect(run).toMatchObject({ status: 'blocked', heldNanos: 0, spentNanos: FITTING * COST });
    const steps = await db.read(
      `select count(*) as n, sum(spent_nanos) as spent from steps where kind = 'model_call'`,
      [],
    );
    expect(steps).toEqual([{ n: FITTING, spent: FITTING * COST }]);
    const doctor = await deployment.cli('doctor', '--json');
    expect(JSON.parse(doctor.stdout)).toMatchObject({ ok: true, heldNanos: 0, liveHolds: 0 });
  });
});

/** A deployment whose agents and policies are made as a test needs them. */
class Workshop {
  readonly deployment: Deployment;
  readonly db: Database;
  readonly org: Org;
  #count = 0;

  constructor(deployment: Deployment, db: Database, org: Org) {
    this.deployment = deployment;
    this.db = db;
    this.org = org;
  }

  unique(noun: string): string {
    return `${noun}-${++this.#count}`;
  }

  /** Agents under one policy of their own. */
  async agents(budget: PolicyDocument['budget'], count = 1) {
    const document = JSON.stringify({ budget });
    const policy = await addPolicyVersion(this.org, ACTOR, this.unique('policy'), document);
    const version = await this.org.first(
      'select id from policy_versions where org_id = ?1 and policy_id = ?2',
      policy.id,
    );
    const made = [];
    for (let left = count; left > 0; left--) {
      const agent = await createAgent(this.org, ACTOR, this.unique('agent'), policy.id);
      made.push({ ...agent, versionId: version?.id as PolicyVersionId });
    }
    return made;
  }

  async ask(ask: Ask): Promise<{ status: number; headers: Headers; told: Told }> {
    const response = await fetch(requestOf(this.deployment.url, ask));
    const told = (await response.json()) as Told;
    return { status: response.status, headers: response.headers, told };
  }

  /** What the org has spent this month. */
  async orgSpent(): Promise<number> {
    const { month } = windowsOf(Date.now());
    const sql = 'select spent_nanos from spend where org_id = ?1 and subject = ?1 and window = ?2';
    return Number((await this.org.first(sql, month))?.spent_nanos ?? 0);
  }

  async run(agent: AgentId, name: string): Promise<Run> {
    return (await findRun(this.org, agent, name))!;
  }
}

const ACTOR = 'operator';

describe('a budget', () => {
  let shop: Workshop;
  beforeAll(async () => {
    const deployment = await deploy({ upstreamUrl: upstream.url });
    const db = await deployment.database();
    shop = new Workshop(deployment, db, (await findOrg(db, 'acme'))!);
  });
  afterAll(async () => {
    const doctor = await shop.deployment.cli('doctor', '--json');
    await shop?.db.close();
    await shop?.deployment.stop();
    expect(JSON.parse(doctor.stdout)).toMatchObject({ ok: true, heldNanos: 0 });
  });

  describe.each([
    ['run', 'run'],
    ['agentPerDay', 'agent_per_day'],
    ['agentPerMonth', 'agent_per_month'],
    ['orgPerMonth', 'org_per_month'],
  ] as const)('per %s', (key, scope) => {
    const isRun = key === 'run';
    const isOrg = key === 'orgPerMonth';

    test('lets through what it pays for, and stops the next call before it leaves', async () => {
      const base = isOrg ? await shop.orgSpent() : 0;
      const ceiling = base + 2 * COST + WORST;
      const budget = { [key]: dollars(ceiling), minOutputTokens: OUTPUT_TOKENS };
      const [agent, colleague] = await shop.agents(budget, 2);
      const { token } = agent!;
      const name = shop.unique('run');
      // A fresh run each time must not make a window start anew.
      const names = [1, 2, 3, 4].map((at) => (isRun ? name : `${name}-${at}`));
      const statuses = [];
      for (const run of names.slice(0, 3)) statuses.push((await shop.ask({ token, run })).status);
      expect(statuses).toEqual([200, 200, 200]);
      const reached = upstream.requests.length;
      const { status, told } = await shop.ask({ token, run: names[3]! });
      expect(status).toBe(402);
      expect(told.error).toMatchObject({ type: 'insufficient_quota', code: 'insufficient_quota' });
      expect(told.error.rungate).toMatchObject({
        ...{ rule: `budget.${scope}`, scope, ceilingNanos: ceiling, heldNanos: 0 },
        spentNanos: base + 3 * COST,
        runId: names[3]!,
      });
      expect(upstream.requests.length).toBe(reached);
      const { dayEnds, monthEnds } = windowsOf(Date.now());
      const until = { run: null, agentPerDay: dayEnds }[key as string];
      expect(await shop.run(agent!.id, names[3]!)).toMatchObject({
        ...{ status: 'blocked', closedReason: `budget.${scope}` },
        blockedUntil: until === undefined ? monthEnds : until,
      });
      const fresh = await shop.ask({ token, run: shop.unique('run') });
      expect(fresh.status).toBe(isRun ? 200 : 402);
      const other = await shop.ask({ token: colleague!.token, run: name });
      expect(other.status).toBe(isOrg ? 402 : 200);
    });
  });

  test('of a run that it stopped can be raised, and the run goes on', async () => {
    const [agent] = await shop.agents({ run: dollars(WORST), minOutputTokens: OUTPUT_TOKENS });
    const run = shop.unique('run');
    const ask = { token: agent!.token, run };
    expect((await shop.ask(ask)).status).toBe(200);
    expect((await shop.ask(ask)).status).toBe(402);
    expect((await shop.ask(ask)).status).toBe(402);
    expect(await shop.run(agent!.id, run)).toMatchObject({ status: 'blocked', stepCount: 3 });
    const raised = dollars(WORST + COST);
    const cli = await shop.deployment.cli(
      ...['run', 'ceiling', run, '--set', raised, '--org', 'acme', '--json'],
    );
    expect(cli).toMatchObject({ code: 0 });
    expect(await shop.run(agent!.id, run)).toMatchObject({ status: 'open', closedReason: null });
    expect((await shop.ask(ask)).status).toBe(200);
    expect((await shop.ask(ask)).status).toBe(402);
    expect(await shop.run(agent!.id, run)).toMatchObject({ spentNanos: 2 * COST, heldNanos: 0 });
  });

  test('of a run is set no lower than what is spent, which nobody can forbid any more', async () => {
    const [agent] = await shop.agents({ run: dollars(WORST), minOutputTokens: OUTPUT_TOKENS });
    const run = shop.unique('run');
    const ask = { token: agent!.token, run };
    expect((await shop.ask(ask)).status).toBe(200);
    const cli = await shop.deployment.cli(
      ...['run', 'ceiling', run, '--set', '0', '--org', 'acme', '--json'],
    );
    expect(cli).toMatchObject({ code: 0 });
    expect(await shop.run(agent!.id, run)).toMatchObject({ spentNanos: COST, ceilingNanos: COST });
    expect((await shop.ask(ask)).status).toBe(402);
  });

  test('stops in the words of the caller: Anthropic clients read a billing error', async () => {
    const [agent] = await shop.agents({ run: '0.00' });
    const { status, headers, told } = await shop.ask({ token: agent!.token, path: '/v1/messages' });
    expect(status).toBe(402);
    expect(headers.get('x-should-retry')).toBe('false');
    expect(told).toMatchObject({ type: 'error', error: { type: 'billing_error' } });
  });
});

/** Where each dialect keeps the limit of its output. */
const LIMITS = [
  [CHAT, 'max_tokens'],
  [CHAT, 'max_completion_tokens'],
  ['/v1/messages', 'max_tokens'],
  ['/v1/responses', 'max_output_tokens'],
] as const;

const ASKED = 1_000;
const LEAST = 16;

describe.each(LIMITS)('an output limit of %s in %s', (path, member) => {
  const worstWith = (tokens: number) =>
    worstOf(JSON.stringify({ ...JSON.parse(bodyOf()), input: '', [member]: tokens }), path);
  const worstToken = worstWith(ASKED + 1) - worstWith(ASKED);
  let shop: Workshop;
  let agent: { id: AgentId; token: string; versionId: PolicyVersionId };
  beforeAll(async () => {
    const deployment = await deploy({ upstreamUrl: upstream.url });
    const db = await deployment.database();
    shop = new Workshop(deployment, db, (await findOrg(db, 'acme'))!);
    agent = (await shop.agents({ minOutputTokens: LEAST }))[0]!;
  });
  afterAll(async () => {
    await shop?.db.close();
    await shop?.deployment.stop();
  });

  /** Calls on a run whose ceiling pays for the input and so many tokens of output. */
  async function askWithRoomFor(tokens: number, asked: number, more: object = {}) {
    const content = [{ role: 'user', content: 'hello' }];
    const input = path === '/v1/responses' ? { input: 'hello' } : { messages: content };
    const body = JSON.stringify({ model: 'test-model', ...input, ...more, [member]: asked });
    const ceiling = worstOf(body, path) + (tokens - asked) * worstToken;
    const name = shop.unique('run');
    const run = { agentId: agent.id, policyVersionId: agent.versionId, now: Date.now() };
    const opened = { ...run, ceilingNanos: ceiling as Nanos };
    await openRun(shop.org, opened, { name, source: 'x-rungate-run-id' });
    const reached = upstream.requests.length;
    const script = { usage: {} };
    const answer = await shop.ask({ token: agent.token, run: name, path, body, script });
    return { ...answer, body, sent: upstream.requests[reached], name };
  }

  test.each([
    ...[LEAST, LEAST + 1, 500, ASKED - 1].map((room) => [room, room] as const),
    ...[ASKED, ASKED + 1].map((room) => [room, null] as const),
  ])('where %d tokens fit is lowered to %p, and the caller is told', async (room, limit) => {
    const { status, headers, body, sent, name } = await askWithRoomFor(room, ASKED);
    expect(status).toBe(200);
    expect(headers.get('x-rungate-output-limit')).toBe(limit === null ? null : String(limit));
    const expected = limit === null ? body : body.replace(`:${ASKED}`, `:${limit}`);
    expect(sent?.text()).toBe(expected);
    const step = await shop.db.first(
      'select asked, held_nanos from steps where run_id = ?1 and held_nanos > 0',
      [(await shop.run(agent.id, name)).id],
    );
    expect(JSON.parse(String(step?.asked)).outputLimit ?? null).toBe(limit);
    expect(step?.held_nanos).toBe(worstOf(body, path) - (ASKED - (limit ?? ASKED)) * worstToken);
  });

  test.each([
    [LEAST - 1, ASKED],
    [0, ASKED],
    [-1, ASKED],
    [LEAST - 2, LEAST - 1],
  ])('is not lowered to %d of %d: that is less than a useful call', async (room, asked) => {
    const { status, sent, name } = await askWithRoomFor(room, asked);
    expect(status).toBe(402);
    expect(sent).toBeUndefined();
    expect(await shop.run(agent.id, name)).toMatchObject({ status: 'blocked', spentNanos: 0 });
  });

  test.skipIf(path !== '/v1/messages')('leaves thinking more than its budget', async () => {
    const more = { thinking: { type: 'enabled', budget_tokens: 500 } };
    const enough = await askWithRoomFor(501, ASKED, more);
    expect([enough.status, enough.headers.get('x-rungate-output-limit')]).toEqual([200, '501']);
    expect((await askWithRoomFor(500, ASKED, more)).status).toBe(402);
  });

  test('below the least is kept where it is what the caller asked for', async () => {
    const { status, sent, body } = await askWithRoomFor(LEAST - 1, LEAST - 1);
    expect(status).toBe(200);
    expect(sent?.text()).toBe(body);
  });
});

/** What the models take at most, as their provider's list has it, or half of a small window. */
const ACCEPTED = {
  'gpt-4o': 16_384,
  'gpt-4o-mini': 16_384,
  'gpt-4o-2024-05-13': 4_096,
  'gpt-4.1': 32_768,
  'gpt-4.1-mini': 32_768,
  o3: 100_000,
  'gpt-5-mini': 128_000,
  'gpt-4-turbo': 4_096,
  'gpt-4': 4_096,
  'test-model': 4_096,
} as const;

describe.each([
  [CHAT, 'max_completion_tokens', { messages: [{ role: 'user', content: 'hello' }] }],
  ['/v1/responses', 'max_output_tokens', { input: 'hello' }],
] as const)('an output limit that a caller of %s leaves to the model', (path, member, input) => {
  let shop: Workshop;
  let agent: { id: AgentId; token: string; versionId: PolicyVersionId };
  let roomy: typeof agent;
  beforeAll(async () => {
    const deployment = await deploy({ upstreamUrl: upstream.url });
    const db = await deployment.database();
    shop = new Workshop(deployment, db, (await findOrg(db, 'acme'))!);
    agent = (await shop.agents({}))[0]!;
    roomy = (await shop.agents({ minOutputTokens: 10_000 }))[0]!;
  });
  afterAll(async () => {
    await shop?.db.close();
    await shop?.deployment.stop();
  });

  /** Calls on a run that pays for so many tokens of output, or for nearly the whole window. */
  async function askWithRoomFor(model: string, tokens?: number, caller = agent) {
    const body = JSON.stringify({ model, ...input });
    const rates = findRates('openai', model, Date.now()) ?? RATES;
    const bound = findEndpoint('POST', path)!.endpoint.bound(JSON.parse(body), body.length, rates);
    const worstWith = (outputTokens: number) => worstCaseOf({ ...bound, outputTokens }, rates);
    const ceiling = worstWith(tokens ?? bound.outputTokens - 1);
    const name = shop.unique('run');
    const run = { agentId: caller.id, policyVersionId: caller.versionId, now: Date.now() };
    const opened = { ...run, ceilingNanos: ceiling as Nanos };
    await openRun(shop.org, opened, { name, source: 'x-rungate-run-id' });
    const { status, headers } = await shop.ask({ token: caller.token, run: name, path, body });
    const { id } = await shop.run(caller.id, name);
    const [step] = await shop.db.read(
      `select held_nanos from steps where run_id = ?1 and kind = 'model_call'`,
      [id],
    );
    const limit = Number(headers.get('x-rungate-output-limit'));
    const sent = upstream.requests.at(-1)?.json();
    return { status, limit, sent, heldNanos: step?.held_nanos, worstWith };
  }

  for (const [model, most] of Object.entries(ACCEPTED)) {
    test(`is lowered to no more than ${model} accepts, and no more than that is held`, async () => {
      for (const tokens of [undefined, most, 1_000]) {
        const answer = await askWithRoomFor(model, tokens);
        const limit = Math.min(most, tokens ?? most);
        expect(answer).toMatchObject({ status: 200, limit, heldNanos: answer.worstWith(limit) });
        expect(answer.sent).toEqual({ model, ...input, [member]: limit });
      }
    });
  }

  test('is not set where the whole window fits', async () => {
    const { sent, limit } = await askWithRoomFor('gpt-4o', 1_000_000);
    expect([sent, limit]).toEqual([{ model: 'gpt-4o', ...input }, 0]);
  });

  test('is lowered to no less than the policy asks for, unless the model takes no more', async () => {
    expect((await askWithRoomFor('test-model', undefined, roomy)).limit).toBe(10_000);
    expect((await askWithRoomFor('gpt-4-turbo', undefined, roomy)).limit).toBe(4_096);
    expect((await askWithRoomFor('test-model', 9_999, roomy)).status).toBe(402);
  });
});

describe('the price of a model', () => {
  let shop: Workshop;
  beforeAll(async () => {
    const deployment = await deploy({ upstreamUrl: upstream.url });
    const db = await deployment.database();
    shop = new Workshop(deployment, db, (await findOrg(db, 'acme'))!);
  });
  afterAll(async () => {
    await shop?.db.close();
    await shop?.deployment.stop();
  });

  async function spentBy(
    agent: { id: AgentId; token: string },
    model: string,
    script: Script = {},
  ): Promise<number> {
    const run = shop.unique('run');
    const body = bodyOf({ model });
    const { status } = await shop.ask({ token: agent.token, run, body, script });
    expect(status).toBe(200);
    return (await shop.run(agent.id, run)).spentNanos;
  }

  test('that nobody knows refuses the call before it leaves, until the org sets one', async () => {
    const [agent] = await shop.agents({});
    const reached = upstream.requests.length;
    const refused = await shop.ask({ token: agent!.token, body: bodyOf({ model: 'openai/own' }) });
    expect(refused.status).toBe(403);
    expect(refused.told.error.rungate).toMatchObject({
      code: 'unpriced_model',
      asked: 'openai/own',
    });
    expect(upstream.requests.length).toBe(reached);
    const price = { inputNanosPerMillion: 3e9 as Nanos, outputNanosPerMillion: 5e9 as Nanos };
    await setPrice(shop.org, ACTOR, 'openai/own', price);
    expect(await spentBy(agent!, 'openai/own')).toBe(100 * 3_000 + 10 * 5_000);
    await setPrice(shop.org, ACTOR, 'openai/own', { ...price, inputNanosPerMillion: 7 as Nanos });
    // 100 x 7 nanos per million tokens is under a nano: it rounds up, never down.
    expect(await spentBy(agent!, 'openai/own')).toBe(10 * 5_000 + 1);
  });

  test('that the policy sets counts where nobody else knows one, and only there', async () => {
    const explicit = { inputPerMillion: '2.00', outputPerMillion: '8.00' };
    const [agent] = await shop.agents({ unpriced: explicit });
    expect(await spentBy(agent!, 'openai/nobody-knows-it')).toBe(100 * 2_000 + 10 * 8_000);
    expect(await spentBy(agent!, 'openai/test-model')).toBe(COST);
  });

  test('that the policy sets does not count for another one with a price that answers', async () => {
    const explicit = { inputPerMillion: '2.00', outputPerMillion: '8.00' };
    const [agent] = await shop.agents({ unpriced: explicit });
    const served = (model: string) => spentBy(agent!, 'openai/nobody-knows-it', { model });
    expect(await served('test-model')).toBe(COST);
    expect(await served('gpt-4o-mini')).toBe(100 * 150 + 10 * 600);
    expect(await served('nobody-knows-this-either')).toBe(100 * 2_000 + 10 * 8_000);
  });

  test('that the org sets goes before the catalogue', async () => {
    const [agent] = await shop.agents({});
    const catalogued = await spentBy(agent!, 'openai/gpt-4o');
    expect(catalogued).toBe(100 * 2_500 + 10 * 10_000);
    const price = { inputNanosPerMillion: 1e9 as Nanos, outputNanosPerMillion: 1e9 as Nanos };
    await setPrice(shop.org, ACTOR, 'openai/gpt-4o', price);
    expect(await spentBy(agent!, 'openai/gpt-4o')).toBe(110 * 1_000);
  });
});

const IN_BACKGROUND = {
  'a price of the policy': { asked: 'nobody-knows-it', perToken: [2_000, 8_000] },
  'a price of the policy, by another name of its model': {
    ...{ asked: 'nobody-knows-it', served: 'nobody-knows-it-2026-01-01', perToken: [2_000, 8_000] },
  },
  'a price of the org': { asked: 'own', own: true, perToken: [3_000, 5_000] },
  'a price of the org, by a snapshot of its model': {
    ...{ asked: 'gpt-4.1', served: 'gpt-4.1-2025-04-14', own: true, perToken: [3_000, 5_000] },
  },
  'a listed price': { asked: 'gpt-4o-mini', perToken: [150, 600] },
  'a listed price, by a snapshot of its model': {
    ...{ asked: 'gpt-4o-mini', served: 'gpt-4o-mini-2024-07-18', perToken: [150, 600] },
  },
} as const;

describe('a tier of service that a provider gives by itself', () => {
  const ASKED = [undefined, null, 'auto', 'default', 'priority'];
  const PERCENT: Readonly<Record<string, number>> = { default: 100, priority: 250, ultrafast: 600 };

  test.each(Object.keys(PERCENT))('is held for where the key says %s', async (tier) => {
    const wanted = tier === 'default' ? {} : { serviceTier: tier };
    const deployment = await deploy({ upstreamUrl: upstream.url, ...wanted });
    const db = await deployment.database();
    try {
      for (const asked of ASKED) {
        const isOpen = (asked ?? 'auto') === 'auto';
        const percent = PERCENT[isOpen ? tier : asked!]!;
        const body = bodyOf(asked === undefined ? {} : { service_tier: asked });
        const served = isOpen ? tier : asked;
        const answer = { id: 'c', object: 'chat.completion', model: 'test-model', choices: [] };
        const script = {
          body: JSON.stringify({ ...answer, usage: USAGE, service_tier: served }),
        };
        const run = `asks-${asked}`;
        const ask = { token: deployment.token, run, body, script };
        expect((await fetch(requestOf(deployment.url, ask))).status).toBe(200);
        const [step] = await db.read(
          `select steps.held_nanos, steps.spent_nanos from steps join runs on runs.id = steps.run_id
           where runs.name = ?1`,
          [run],
        );
        const { bound } = findEndpoint('POST', CHAT, 'openai')!.endpoint;
        const { serviceTier: _, ...inputs } = bound(JSON.parse(body), body.length, RATES);
        const heldNanos = (worstCaseOf(inputs, RATES) * percent) / 100;
        expect(step).toEqual({ held_nanos: heldNanos, spent_nanos: (COST * percent) / 100 });
      }
    } finally {
      await db.close();
      await deployment.stop();
    }
  });
});

describe('a response made in the background', () => {
  let shop: Workshop;
  beforeAll(async () => {
    const deployment = await deploy({ upstreamUrl: upstream.url });
    const db = await deployment.database();
    shop = new Workshop(deployment, db, (await findOrg(db, 'acme'))!);
  });
  afterAll(async () => {
    await shop?.db.close();
    await shop?.deployment.stop();
  });

  const costing = (dollars: number) => (model: string) => {
    const inputNanosPerMillion = (dollars * 3e9) as Nanos;
    const outputNanosPerMillion = (dollars * 5e9) as Nanos;
    return setPrice(shop.org, ACTOR, model, { inputNanosPerMillion, outputNanosPerMillion });
  };
  const CHANGES = {
    'is what it was': () => Promise.resolve(),
    'has become dearer': costing(1_000),
    'has become cheaper': costing(0.001),
    'is gone': (model: string) => deletePrice(shop.org, ACTOR, model),
    'was in a list that is not kept': () =>
      editAsked(`json_set(asked, '$.terms.catalogue', 'old')`),
  };
  /** Of what is in flight, as another version of Rungate would have left it. */
  const editAsked = (asked: string) =>
    shop.db.write([
      { sql: `update steps set asked = ${asked} where settled_at is null`, args: [] },
    ]);

  /** Makes a response on a run of its own and fetches it until it is final. */
  async function fetchAfter(change: () => Promise<unknown>, asked: string, script: Script) {
    const unpriced = { inputPerMillion: '2.00', outputPerMillion: '8.00' };
    const [agent] = await shop.agents({ run: '0.10', unpriced });
    const { id: agentId, token } = agent!;
    const run = shop.unique('run');
    const members = { model: asked, input: 'hello', max_output_tokens: 500, background: true };
    const body = JSON.stringify(members);
    const { told } = await shop.ask({ token, run, path: '/v1/responses', body, script });
    const { heldNanos } = await shop.run(agentId, run);
    await change();
    const { id } = told as unknown as { id: string };
    const path = `${shop.deployment.url}/r/${run}/v1/responses/${id}`;
    const headers = { authorization: `Bearer ${token}` };
    for (let turn = 0; turn < 3; turn++) await (await fetch(path, { headers })).bytes();
    const [step] = await readTrail(shop.deployment, run, token);
    return { step, heldNanos, run: await shop.run(agentId, run) };
  }

  for (const [what, { asked, perToken, ...more }] of Object.entries(IN_BACKGROUND)) {
    for (const [how, change] of Object.entries(CHANGES)) {
      test(`at ${what} is charged by it where the model's own price ${how} by the fetch`, async () => {
        const { served = asked, own = false } = more as { served?: string; own?: boolean };
        const model = `openai/${asked}`;
        await (own ? costing(1) : CHANGES['is gone'])(model);
        const usage = { input_tokens: 1_000, output_tokens: 100, total_tokens: 1_100 };
        const script = { usage, model: served };
        const { step, run } = await fetchAfter(() => change(model), model, script);
        const spentNanos = 1_000 * perToken[0] + 100 * perToken[1];
        expect(step).toMatchObject({ spentNanos, estimated: false, outcome: 'ok' });
        expect(run).toMatchObject({ heldNanos: 0, spentNanos });
      });
    }
  }

  test('by a version that kept no terms is charged today’s price, and no more than was held', async () => {
    const asked = 'openai/made-before';
    const script = { usage: { input_tokens: 1_000, output_tokens: 100, total_tokens: 1_100 } };
    for (const [today, spent] of [
      [1, 3_500_000],
      [0.5, 1_750_000],
      [1_000, undefined],
    ] as const) {
      await costing(1)(asked);
      const change = async () => {
        await editAsked(`json_remove(asked, '$.terms')`);
        await costing(today)(asked);
      };
      const { step, heldNanos, run } = await fetchAfter(change, asked, script);
      const spentNanos = spent ?? heldNanos;
      expect(step).toMatchObject({ spentNanos, outcome: 'ok' });
      expect(run).toMatchObject({ heldNanos: 0, spentNanos });
    }
  });
});

test('a call whose sending fails within Rungate is charged its bound: it may have been sent', async () => {
  const deployment = await deploy({ upstreamUrl: upstream.url, processes: 0 });
  const services = await boot(environmentOf(deployment));
  const egress = () => Promise.reject(new TypeError('not of the upstream'));
  const app = makeApp({ ...services, egress });
  try {
    const ask = requestOf('http://rungate', { token: deployment.token, run: 'internal' });
    expect((await app(ask, { address: '127.0.0.1' })).status).toBe(500);
    const steps = await services.db.read('select outcome, spent_nanos from steps', []);
    expect(steps).toEqual([{ outcome: 'internal', spent_nanos: WORST }]);
  } finally {
    await shutDown(services, 0);
    await deployment.stop();
  }
});

/** The environment of a server in this process. */
const environmentOf = ({ folder }: Deployment) => ({
  RUNGATE_DATABASE_URL: `file:${folder}/rungate.db`,
  RUNGATE_EGRESS_ALLOW: '127.0.0.1/32',
  RUNGATE_LOG: 'silent',
  UPSTREAM_KEY,
});

describe('a run that a window has stopped', () => {
  test.each([
    ['agentPerDay', '2030-01-30T12:00:00Z', '2030-01-31T00:00:00Z'],
    ['agentPerMonth', '2030-01-30T12:00:00Z', '2030-02-01T00:00:00Z'],
    ['orgPerMonth', '2031-12-31T23:00:00Z', '2032-01-01T00:00:00Z'],
  ] as const)('by %s goes on when the window has passed, and not before', async (key, at, ends) => {
    const budget = { [key]: dollars(WORST), minOutputTokens: OUTPUT_TOKENS };
    const deployment = await deploy({
      upstreamUrl: upstream.url,
      policy: { budget },
      processes: 0,
    });
    let now = Date.parse(at);
    const services = await boot(environmentOf(deployment));
    const app = makeApp({ ...services, now: () => now });
    const statusAt = async (millis: number): Promise<number> => {
      now = millis;
      const ask = requestOf('http://rungate', { token: deployment.token, run: 'windowed' });
      const response = await app(ask, { address: '127.0.0.1' });
      await response.text();
      return response.status;
    };
    try {
      const end = Date.parse(ends);
      const moments = [now, now + 1, end - 1, end, end + 1];
      const statuses = [];
      for (const moment of moments) statuses.push(await statusAt(moment));
      expect(statuses).toEqual([200, 402, 402, 200, 402]);
    } finally {
      await shutDown(services, 0);
      await deployment.stop();
    }
  });
});

/** A step as the model knows it. */
interface Held {
  readonly run: number;
  readonly day: string;
  readonly heldNanos: number;
  id: StepId | undefined;
  leaseEndsAt: number;
  isSettled: boolean;
  isExpired: boolean;
  spentNanos: number;
}

/** What may happen; `step` counts among the holds made so far. */
type Event =
  | { readonly kind: 'reserve'; readonly run: number; readonly nanos: number; readonly at: number }
  | { readonly kind: 'settle'; readonly step: number; readonly nanos: number }
  | { readonly kind: 'renew'; readonly step: number; readonly at: number }
  | { readonly kind: 'expire'; readonly at: number };

/** Days and months end between these, and calls that began before may come after. */
const MOMENTS = [
  '2030-01-30T23:59',
  '2030-01-31T12:00',
  '2030-01-31T23:59',
  '2030-02-01T00:00',
].map((text) => Date.parse(`${text}:00Z`));
const AGENTS = 2;
const RUNS = 3;
const MOST = 100;
const LEASE_MS = 15_000;

const moment = fc.nat(MOMENTS.length - 1);
const reservation: fc.Arbitrary<Event> = fc.record({
  ...{ kind: fc.constant('reserve'), run: fc.nat(RUNS - 1), nanos: fc.nat(MOST / 2), at: moment },
});
const ending: fc.Arbitrary<Event> = fc.record({
  ...{ kind: fc.constant('settle'), step: fc.nat(9), nanos: fc.nat(MOST) },
});
const renewal: fc.Arbitrary<Event> = fc.record({
  ...{ kind: fc.constant('renew'), step: fc.nat(9), at: moment },
});
const expiry: fc.Arbitrary<Event> = fc.record({ kind: fc.constant('expire'), at: moment });
const several = (each: fc.Arbitrary<Event>) => fc.array(each, { minLength: 1, maxLength: 12 });
/** What happens at once: what depends on the order happens by itself. */
const turn: fc.Arbitrary<Event[]> = fc.oneof(
  { weight: 3, arbitrary: several(reservation) },
  { weight: 3, arbitrary: several(ending) },
  { weight: 3, arbitrary: several(fc.oneof(reservation, ending)) },
  { weight: 1, arbitrary: fc.oneof(renewal, expiry).map((each) => [each]) },
);

const ceiling = fc.option(
  fc.nat(3 * MOST).map((nanos) => nanos as Nanos),
  { nil: undefined },
);
const ceilings = fc.record({
  ...{ run: fc.option(fc.nat(2 * MOST), { nil: null }) },
  ...{ agentPerDay: ceiling, agentPerMonth: ceiling, orgPerMonth: ceiling },
});
const UNLIMITED = {
  ...{ run: null, agentPerDay: undefined, agentPerMonth: undefined, orgPerMonth: undefined },
};
type Limits = typeof ceilings extends fc.Arbitrary<infer T> ? T : never;

/** An org beside a model of its money; whatever is done to the one is done to the other. */
class Ledger {
  readonly #db: Database;
  readonly #org: Org;
  readonly #limits: Limits;
  readonly #agents: AgentId[] = [];
  readonly #tokens: TokenId[] = [];
  readonly #runs: RunId[] = [];
  readonly #holds: Held[] = [];

  constructor(db: Database, limits: Limits) {
    this.#db = db;
    this.#org = forOrg(db, newId('org'));
    this.#limits = limits;
  }

  async open(): Promise<void> {
    const made = 'insert into orgs (id, slug, name, created_at) values (?1, ?1, ?1, 0)';
    await this.#db.write([{ sql: made, args: [this.#org.id] }]);
    const policy = await addPolicyVersion(this.#org, ACTOR, 'policy', '{}');
    for (let index = 0; index < AGENTS; index++) {
      const { id } = await createAgent(this.#org, ACTOR, `agent-${index}`, policy.id);
      const sql = 'select id from tokens where org_id = ?1 and agent_id = ?2';
      this.#agents.push(id);
      this.#tokens.push((await this.#org.first(sql, id))?.id as TokenId);
    }
    await this.#db.write([{ sql: 'update orgs set revision = 1', args: [] }]);
    for (let index = 0; index < RUNS; index++) {
      const agentId = this.#agents[index % AGENTS]!;
      const ceilingNanos = this.#limits.run as Nanos | null;
      const run = { agentId, ceilingNanos, policyVersionId: newId('policyVersion'), now: 0 };
      await openRun(this.#org, run, { name: `run-${index}`, source: 'test' });
      this.#runs.push((await findRun(this.#org, agentId, `run-${index}`))!.id);
    }
  }

  /** Does these at once; of several that can't all be had, nobody says which are. */
  async apply(events: readonly Event[]): Promise<void> {
    const tried = await Promise.all(events.map((each) => this.#do(each)));
    const holds = tried.filter((each) => each !== undefined);
    const admitted = holds.filter(({ id }) => id !== undefined);
    this.#holds.push(...admitted);
    for (const hold of admitted) {
      if (!events.some(({ kind }) => kind === 'settle'))
        expect(this.#isFitting(hold, 0)).toBe(true);
    }
    for (const hold of holds) {
      const isRefused = hold.id === undefined && holds.length === events.length;
      if (isRefused) expect(this.#isFitting(hold, hold.heldNanos)).toBe(false);
    }
    await this.#compare();
  }

  /** Whether a hold's scopes have room for so much more. */
  #isFitting(hold: Held, nanos: number): boolean {
    return this.#scopes(hold).every(
      ({ limit, holds }) => limit === null || takenBy(holds) + nanos <= limit,
    );
  }

  async #do(each: Event): Promise<Held | undefined> {
    if (each.kind === 'reserve') return await this.#reserve(each);
    if (each.kind === 'expire') await this.#expire(MOMENTS[each.at]!);
    else await this.#end(each);
    return undefined;
  }

  #end(each: Event & { kind: 'settle' | 'renew' }): Promise<unknown> {
    const hold = this.#holds.filter(({ id }) => id)[each.step];
    if (!hold?.id) return Promise.resolve();
    const run = this.#runs[hold.run]!;
    if (each.kind === 'settle') {
      const end = { now: 1, spentNanos: each.nanos as Nanos, outcome: 'ok', answered: {} };
      const isChanged = !hold.isSettled || hold.isExpired;
      if (isChanged) {
        Object.assign(hold, { isSettled: true, isExpired: false, spentNanos: each.nanos });
      }
      // Some by themselves, some as calls do it: as one with others.
      return each.step % 2 === 0
        ? this.#org.write(settlement(this.#org, run, hold.id, end))
        : settle(this.#org, this.#keptBy(hold, hold.id), end);
    }
    const leaseEndsAt = MOMENTS[each.at]! + LEASE_MS;
    if (!hold.isSettled) hold.leaseEndsAt = leaseEndsAt;
    return this.#org.write(leaseRenewal(this.#org, run, hold.id, leaseEndsAt));
  }

  #keptBy({ run, day, heldNanos }: Held, stepId: StepId): Hold {
    return {
      ...{ runId: this.#runs[run]!, stepId, agentId: this.#agents[run % AGENTS]!, day },
      ...{ policyVersionId: newId('policyVersion'), providerKey: 'key', model: 'model' },
      ...{ heldNanos: heldNanos as Nanos, tokens: undefined },
    };
  }

  async #reserve({ run, nanos, at }: Event & { kind: 'reserve' }): Promise<Held> {
    const now = MOMENTS[at]!;
    const windows = windowsOf(now);
    const leaseExpiresAt = now + LEASE_MS;
    const hold: Held = {
      ...{ run, day: windows.day, heldNanos: nanos, id: undefined, leaseEndsAt: leaseExpiresAt },
      ...{ isSettled: false, isExpired: false, spentNanos: 0 },
    };
    const tokenId = this.#tokens[run % AGENTS]!;
    const { stepId } = await reserve(this.#org, {
      ...{ kind: 'model_call', runId: this.#runs[run]!, agentId: this.#agents[run % AGENTS]! },
      ...{ windows, now, leaseExpiresAt },
      ...{ heldNanos: nanos as Nanos, ceilings: this.#limits },
      standing: { tokenId, revision: 1, windowSince: null, unparkedSince: null },
      asked: { endpoint: 'chat', tokenId },
    });
    hold.id = stepId;
    return hold;
  }

  async #expire(now: number): Promise<void> {
    for (const hold of this.#holds) {
      if (hold.isSettled || hold.leaseEndsAt >= now) continue;
      Object.assign(hold, { isSettled: true, isExpired: true, spentNanos: hold.heldNanos });
    }
    await expireHolds(this.#db, now);
  }

  /** The scopes that a hold counts in, with their ceilings and all that counts there. */
  #scopes({ run, day }: Pick<Held, 'run' | 'day'>) {
    const { agentPerDay = null, agentPerMonth = null, orgPerMonth = null } = this.#limits;
    const ofMonth = this.#holds.filter((hold) => hold.day.slice(0, 7) === day.slice(0, 7));
    const ofAgent = ofMonth.filter((hold) => hold.run % AGENTS === run % AGENTS);
    return [
      { limit: this.#limits.run, holds: this.#holds.filter((hold) => hold.run === run) },
      { limit: agentPerDay, holds: ofAgent.filter((hold) => hold.day === day) },
      { limit: agentPerMonth, holds: ofAgent },
      { limit: orgPerMonth, holds: ofMonth },
    ];
  }

  async #compare(): Promise<void> {
    for (const [run, id] of this.#runs.entries()) {
      const own = this.#holds.filter((hold) => hold.run === run);
      expect(await readRun(this.#org, id)).toMatchObject({ ...sumOf(own), stepCount: own.length });
    }
    const windows = new Map<string, Held[]>();
    for (const hold of this.#holds) {
      const agentDay = `${this.#agents[hold.run % AGENTS]} ${hold.day}`;
      for (const key of [agentDay, `${this.#org.id} ${hold.day.slice(0, 7)}`]) {
        windows.set(key, [...(windows.get(key) ?? []), hold]);
      }
    }
    const rows = await this.#org.read('select * from spend where org_id = ?1');
    const found = rows.map(({ subject, window, spent_nanos, held_nanos }) => [
      `${subject} ${window}`,
      { spentNanos: spent_nanos, heldNanos: held_nanos },
    ]);
    const expected = [...windows].map(([key, holds]) => [key, sumOf(holds)]);
    expect(Object.fromEntries(found)).toEqual(Object.fromEntries(expected));
  }
}

function sumOf(holds: readonly Held[]): { spentNanos: number; heldNanos: number } {
  const sums = { spentNanos: 0, heldNanos: 0 };
  for (const hold of holds) {
    sums.spentNanos += hold.spentNanos;
    sums.heldNanos += hold.isSettled ? 0 : hold.heldNanos;
  }
  return sums;
}

function takenBy(holds: readonly Held[]): number {
  const { spentNanos, heldNanos } = sumOf(holds);
  return spentNanos + heldNanos;
}

describe('holds and settlements, however they interleave', () => {
  const folder = mkdtempSync(join(tmpdir(), 'rungate-money-'));
  let db: Database;
  beforeAll(async () => {
    db = await openDatabase({ url: `file:${folder}/ledger.db`, synchronous: 'normal' });
    await migrate(db);
  });
  afterAll(async () => {
    await db.close();
    rmSync(folder, { recursive: true, force: true });
  });

  test('keep in every scope spent the sum of the settled and held the sum of the live', async () => {
    const turns = fc.array(turn, { maxLength: 12 });
    const late: Event[][] = [
      [{ kind: 'reserve', run: 0, nanos: 1, at: 2 }],
      [{ kind: 'reserve', run: 0, nanos: 8, at: 0 }],
    ];
    const promise = fc.asyncProperty(ceilings, turns, async (limits, events) => {
      const ledger = new Ledger(db, limits);
      await ledger.open();
      for (const atOnce of events) await ledger.apply(atOnce);
    });
    await fc.assert(promise, {
      numRuns: 300,
      examples: [[{ ...UNLIMITED, agentPerMonth: 8 as Nanos }, late]],
    });
  });
});
