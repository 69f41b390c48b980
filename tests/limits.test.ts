/** Limits: exact however many call at once over however many processes, and true to their headers. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { type Database, openDatabase } from '../db/client.ts';
import { decideGate } from '../db/gates.ts';
import { reserve } from '../db/holds.ts';
import { type Charge, countUse, pruneSlots } from '../db/limits.ts';
import { migrate } from '../db/migrate.ts';
import { forOrg, type Org } from '../db/org.ts';
import { findOrg } from '../db/orgs.ts';
import { readAgentPolicy } from '../db/policies.ts';
import { findRun, openRun } from '../db/runs.ts';
import { hashToken, newToken } from '../db/seal.ts';
import { settlement } from '../db/settlements.ts';
import { findCredential, mintToken } from '../db/tokens.ts';
import { makeApp } from '../functions/app.ts';
import { boot, shutDown } from '../functions/boot.ts';
import { Flights } from '../functions/proxy/flight.ts';
import type { LimitState } from '../schema/errors.ts';
import type { GateId, StepId } from '../schema/ids.ts';
import { ZERO } from '../schema/money.ts';
import { type PolicyDocument, policySchema } from '../schema/policy.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import {
  fits,
  type Limit,
  limitHeaders,
  limitsOf,
  type Quota,
  type Slot,
  slotOf,
  stateOf,
  tightestFirst,
  usedOf,
  waitMsOf,
} from '../schema/rules/limit.ts';
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
/** Longer than any test: what is used stays used. */
const LONG_S = 3_600;

let upstream: Upstream;
beforeAll(async () => {
  upstream = await startUpstream();
});
afterAll(async () => {
  await upstream.stop();
});

/** Runs a test on a deployment of its own. */
async function within(
  wanted: Omit<Wanted, 'upstreamUrl'>,
  run: (deployment: Deployment) => Promise<void>,
): Promise<void> {
  const deployment = await deploy({ ...wanted, upstreamUrl: upstream.url });
  try {
    await run(deployment);
  } finally {
    await deployment.stop();
  }
}

/** How a call differs from the least one. */
interface Ask {
  readonly token?: string;
  readonly run?: string;
  readonly content?: string;
  readonly maxTokens?: number;
  readonly stream?: boolean;
  readonly script?: Script;
  readonly at?: string;
  readonly signal?: AbortSignal;
}

function call(deployment: Deployment, ask: Ask = {}): Promise<Response> {
  const { token = deployment.token, run = 'a-run', content = 'hello', script = {} } = ask;
  return fetch(`${ask.at ?? deployment.url}${CHAT}`, {
    method: 'POST',
    signal: ask.signal ?? null,
    headers: {
      'content-type': 'application/json',
      authorization: `Bearer ${token}`,
      'x-rungate-run-id': run,
      [SCRIPT_HEADER]: JSON.stringify(script),
    },
    body: JSON.stringify({
      model: 'test-model',
      max_tokens: ask.maxTokens ?? 50,
      ...(ask.stream ? { stream: true } : {}),
      messages: [{ role: 'user', content }],
    }),
  });
}

/** The statuses of many calls at once, spread over the processes, and how often each came. */
async function burst(
  deployment: Deployment,
  count: number,
  askOf: (index: number) => Ask = () => ({}),
): Promise<Record<number, number>> {
  const { urls } = deployment;
  const responses = Array.from({ length: count }, async (_, index) => {
    const response = await call(deployment, { at: urls[index % urls.length]!, ...askOf(index) });
    await response.arrayBuffer();
    return response.status;
  });
  const counts: Record<number, number> = {};
  for (const status of await Promise.all(responses)) counts[status] = (counts[status] ?? 0) + 1;
  return counts;
}

/**
 * Makes calls at once whose upstream never answers, until so many of them are refused; then leaves.
 *
 * @returns how many went upstream, when all of them have been settled.
 */
async function stall(
  deployment: Deployment,
  count: number,
  refusals: number,
  askOf: (index: number) => Ask,
): Promise<number> {
  const before = upstream.requests.length;
  const { urls } = deployment;
  const leaving = new AbortController();
  const refused = Promise.withResolvers<void>();
  let left = refusals;
  const calls = Array.from({ length: count }, async (_, index) => {
    const ask = { at: urls[index % urls.length]!, script: { stall: 'headers' as const } };
    const response = await call(deployment, { ...ask, ...askOf(index), signal: leaving.signal });
    expect(response.status).toBe(429);
    if (--left === 0) refused.resolve();
  });
  await refused.promise;
  await upstream.received(before + count - refusals - 1);
  leaving.abort();
  await Promise.allSettled(calls);
  const db = await deployment.database();
  const live = 'select count(*) as count from steps where settled_at is null';
  while (Number((await db.first(live, []))?.count) > 0) await Bun.sleep(5);
  await db.close();
  return upstream.requests.length - before;
}

interface Told {
  readonly error: {
    readonly message: string;
    readonly code: string;
    readonly rungate: {
      readonly code: string;
      readonly rule: string;
      readonly retryAfterS?: number;
      readonly limits?: readonly LimitState[];
    };
  };
}

const tell = async (response: Response) => ((await response.json()) as Told).error;
const numberOf = (response: Response, name: string) => Number(response.headers.get(name) ?? 'NaN');

// The rule by itself

const moments = fc.array(
  fc.record({ afterMs: fc.integer({ min: 0, max: 900 }), amount: fc.integer({ min: 1, max: 5 }) }),
  { maxLength: 80 },
);
const windows = fc.constantFrom(50, 1_000, 2_000, 60_000);

/** A window as the database keeps it, and beside it a log of every use. */
class Window {
  readonly log: { at: number; amount: number }[] = [];
  readonly #slots = new Map<number, Slot>();
  readonly windowMs: number;

  constructor(windowMs: number) {
    this.windowMs = windowMs;
  }

  get slots(): Slot[] {
    return [...this.#slots.values()];
  }

  use(at: number, amount: number): void {
    this.log.push({ at, amount });
    const slot = slotOf(at, this.windowMs);
    const { used, lastAt } = this.#slots.get(slot) ?? { used: 0, lastAt: 0 };
    this.#slots.set(slot, { used: used + amount, lastAt: Math.max(lastAt, at) });
  }

  /** What was used in the window that ends at a moment. */
  exact(now: number): number {
    return this.log
      .filter(({ at }) => at > now - this.windowMs && at <= now)
      .reduce((sum, { amount }) => sum + amount, 0);
  }
}

const START = 1_700_000_000_000;

describe('a sliding window of slots', () => {
  test('counts never less than a log of every use, and nothing older than a slot too long', () => {
    fc.assert(
      fc.property(windows, moments, (windowMs, uses) => {
        const window = new Window(windowMs);
        let now = START;
        for (const { afterMs, amount } of uses) {
          now += afterMs;
          window.use(now, amount);
          const counted = usedOf(window.slots, windowMs, now);
          expect(counted).toBeGreaterThanOrEqual(window.exact(now));
          const slotMs = Math.ceil(windowMs / 60);
          const longer = window.log.filter(({ at }) => at > now - windowMs - slotMs);
          expect(counted).toBeLessThanOrEqual(
            longer.reduce((sum, { amount: each }) => sum + each, 0),
          );
        }
      }),
    );
  });

  test('lets in no more than its limit in any window of its length', () => {
    fc.assert(
      fc.property(windows, fc.integer({ min: 1, max: 20 }), moments, (windowMs, most, uses) => {
        const window = new Window(windowMs);
        let now = START;
        for (const { afterMs, amount } of uses) {
          now += afterMs;
          if (usedOf(window.slots, windowMs, now) + amount <= most) window.use(now, amount);
        }
        for (const { at } of window.log) expect(window.exact(at)).toBeLessThanOrEqual(most);
      }),
    );
  });

  test('has room when the wait that it tells is over, not a millisecond before, within a window', () => {
    fc.assert(
      fc.property(windows, fc.integer({ min: 0, max: 20 }), moments, (windowMs, most, uses) => {
        const window = new Window(windowMs);
        let now = START;
        for (const { afterMs, amount } of uses) {
          now += afterMs;
          window.use(now, amount);
        }
        const waitMs = waitMsOf(window.slots, windowMs, now, most);
        expect(waitMs).toBeLessThanOrEqual(windowMs);
        expect(usedOf(window.slots, windowMs, now + waitMs)).toBeLessThanOrEqual(most);
        if (waitMs > 0) {
          expect(usedOf(window.slots, windowMs, now + waitMs - 1)).toBeGreaterThan(most);
        }
      }),
    );
  });

  test('whose limit tells that something remains lets a lone caller in at any later time', () => {
    fc.assert(
      fc.property(
        fc.constantFrom('requests' as const, 'tokens' as const),
        fc.integer({ min: 1, max: 20 }),
        moments,
        fc.integer({ min: 1, max: 1_000 }),
        fc.integer({ min: 0, max: 3_000 }),
        (kind, most, uses, asked, laterMs) => {
          const window = new Window(1_000);
          let now = START;
          for (const { afterMs, amount } of uses) {
            now += afterMs;
            window.use(now, amount);
          }
          const limit = limitOf({ kind, most, windowMs: 1_000 });
          const standing = (at: number) => {
            const slots = window.slots.filter(({ lastAt }) => lastAt > at - 1_000);
            return { slots, used: usedOf(slots, 1_000, at), live: 0 };
          };
          const state = stateOf(limit, standing(now), now)!;
          const wait = state.remaining > 0 ? laterMs : state.resetS * 1_000;
          const amount = kind === 'tokens' ? asked : 1;
          expect(fits(limit, amount, standing(now + wait))).toBe(true);
        },
      ),
    );
  });
});

function limitOf(members: Partial<Limit>): Limit {
  const common = { per: 'agent', rule: 'limits[0]', subject: 'agt_a', windowMs: 60_000 } as const;
  return { ...common, kind: 'requests', most: 10, ...members };
}

describe('the limits of a policy', () => {
  const subjects = {
    ...{ token: 'tok', agent: 'agt', policy: 'pol', org: 'org', run: 'run' },
    requestDigest: 'digest',
  };
  const none = { requestsPerMinute: undefined, concurrentCalls: undefined };

  test('are none where it sets none', () => {
    const empty = limitsOf(policySchema.parse({}), none, subjects);
    expect(empty).toEqual([]);
    expect(limitsOf(policySchema.parse({}), none, subjects)).toBe(empty);
  });

  test('on one counter count a call once, by the lowest', () => {
    const limits = [9, 3, 5].map((requests) => ({ per: 'org' as const, requests, windowS: 60 }));
    const found = limitsOf(policySchema.parse({ limits }), none, subjects);
    expect(found.map(({ most, rule }) => [most, rule])).toEqual([[3, 'limits[1]']]);
  });

  test('know whom they count', () => {
    const limits = (['token', 'agent', 'policy', 'org'] as const).flatMap((per) => [
      { per, requests: 1, windowS: 60 },
      { per, tokens: 1, windowS: 60 },
      { per, concurrent: 1 },
    ]);
    const caps = { requestsPerMinute: 1, concurrentCalls: 1 };
    const found = limitsOf(policySchema.parse({ limits }), caps, subjects);
    expect(found.length).toBe(14);
    for (const { per, subject } of found) {
      expect(subject).toBe(per === 'deployment' ? '*' : subjects[per]);
    }
  });

  test('are those of its caps and of the call, whichever were asked for before', () => {
    const run = { maxSteps: 9 };
    const policy = policySchema.parse({ run, loop: { sameRequest: 3, windowS: 60 } });
    const capped = { requestsPerMinute: 1, concurrentCalls: undefined };
    const subjectsOf = (caps: typeof capped | typeof none, requestDigest: string | null) =>
      limitsOf(policy, caps, { ...subjects, requestDigest }).map(({ subject }) => subject);
    expect(subjectsOf(none, 'one')).toEqual(['run', 'run/one']);
    expect(subjectsOf(capped, 'two')).toEqual(['run', 'run/two', '*']);
    expect(subjectsOf(none, null)).toEqual(['run']);
  });
});

describe('the headers of limits', () => {
  const states = fc.array(
    fc.record({
      name: fc.stringMatching(/^[a-z]+-[a-z]+-\d+s$/),
      unit: fc.constantFrom('requests', 'tokens', 'concurrent-requests'),
      limit: fc.integer({ min: 1 }),
      remaining: fc.nat(),
      resetS: fc.integer({ min: 1 }),
      windowS: fc.integer({ min: 1 }),
    }),
    { minLength: 1, maxLength: 5 },
  );

  test('are lists of structured fields, the tightest first', () => {
    const item = /^"[a-z0-9-]+"(;[a-z]+=(\d+|"[a-z-]+"))+$/;
    fc.assert(
      fc.property(states, (all) => {
        const sorted = tightestFirst(all);
        const headers = limitHeaders(sorted);
        for (const name of ['ratelimit', 'ratelimit-policy']) {
          const items = headers[name]!.split(', ');
          expect(items.length).toBe(all.length);
          for (const each of items) expect(each).toMatch(item);
        }
        const shares = sorted.map(({ remaining, limit }) => remaining / limit);
        expect(shares).toEqual(shares.toSorted((one, other) => one - other));
        expect(headers['x-ratelimit-remaining']).toBe(String(sorted[0]!.remaining));
      }),
    );
  });
});

// The database

describe('slots in the database', () => {
  let folder: string;
  let db: Database;
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'rungate-limits-'));
    db = await openDatabase({ url: `file:${folder}/rungate.db` });
    await migrate(db);
  });
  afterAll(async () => {
    await db.close();
    rmSync(folder, { recursive: true });
  });

  test('count failures as the rule says, and leave nothing when they have ended', async () => {
    const quota: Quota = { kind: 'failures', name: 'test', windowMs: 1_000, most: 3 };
    let address = 0;
    const gaps = fc.array(fc.integer({ min: 0, max: 700 }), { maxLength: 20 });
    await fc.assert(
      fc.asyncProperty(gaps, async (afterMs) => {
        const window = new Window(quota.windowMs);
        const name = `192.0.2.${address++}`;
        let now = START;
        for (const gap of afterMs) {
          now += gap;
          const room = quota.most - 1;
          const expected = waitMsOf(window.slots, quota.windowMs, now, room);
          expect(await countUse(db, name, quota, now)).toBe(expected);
          if (expected === 0) window.use(now, 1);
        }
      }),
      { numRuns: 30 },
    );
    await pruneSlots(db, START + 20 * 700 + 2 * quota.windowMs + 1);
    expect(await db.first('select count(*) as count from limit_slots', [])).toEqual({ count: 0 });
  });

  test('are found by their index, and so are calls in flight', async () => {
    const planOf = async (sql: string) => {
      const rows = await db.read(`explain query plan ${sql}`, []);
      return rows.map(({ detail }) => String(detail)).join('\n');
    };
    const isLive = 'settled_at is null and lease_expires_at';
    const live = `select count(*) from steps indexed by live_steps where ${isLive} > 1`;
    expect(await planOf(`${live} and org_id = 'o' and agent_id = 'a'`)).toContain(
      'live_steps (org_id=? AND agent_id=? AND lease_expires_at>?)',
    );
    const late = `select org_id, run_id, id from steps where ${isLive} < 1 limit 500`;
    for (const sql of [live, `${live} and org_id = 'o'`, late]) {
      expect(await planOf(sql)).toContain('USING COVERING INDEX live_steps');
    }
    const ended = 'select org_id from limit_slots where ends_at < 5';
    expect(await planOf(ended)).toContain('ended_limit_slots');
  });
});

/** A run without a server, on which calls are held and settled at moments of the test's choosing. */
async function ledger(deployment: Deployment) {
  const db = await deployment.database();
  const credential = (await findCredential(db, hashToken(deployment.token)))!;
  const org = forOrg(db, credential.orgId);
  const agent = credential.agent!.id;
  const version = (await readAgentPolicy(org, agent))!;
  const opened = { agentId: agent, policyVersionId: version.id, ceilingNanos: null, now: START };
  const name = 'a-run';
  await openRun(org, opened, { name, source: 'test' });
  const { id: runId } = (await findRun(org, agent, name))!;
  const { tokenId, revision } = credential;
  const ceilings = { agentPerDay: undefined, agentPerMonth: undefined, orgPerMonth: undefined };
  const hold = (charge: Charge, now: number) =>
    reserve(
      org,
      {
        ...{ kind: 'model_call', runId, agentId: agent, now, windows: windowsOf(now) },
        ...{ heldNanos: ZERO, ceilings },
        leaseExpiresAt: now + 15_000,
        asked: { endpoint: 'chat.create', tokenId },
        standing: { tokenId, revision, windowSince: null, unparkedSince: null },
      },
      [charge],
      now,
    );
  const settle = (step: StepId, now: number) =>
    org.write(settlement(org, runId, step, { now, spentNanos: ZERO, outcome: 'ok', answered: {} }));
  return { hold, settle, close: () => db.close() };
}

test('what is held agrees with the rule at any moment: let in or not, used, and the wait', async () => {
  await within({ processes: 0 }, async (deployment) => {
    const { hold, settle, close } = await ledger(deployment);
    const gaps = fc.array(fc.integer({ min: 0, max: 700 }), { maxLength: 20 });
    let serial = 0;
    await fc.assert(
      fc.asyncProperty(gaps, fc.integer({ min: 1, max: 5 }), async (afterMs, most) => {
        const limit = limitOf({ subject: `agt_${serial++}`, windowMs: 1_000, most });
        const window = new Window(1_000);
        let now = START;
        for (const gap of afterMs) {
          now += gap;
          const isLetIn = usedOf(window.slots, 1_000, now) < most;
          const waitMs = waitMsOf(window.slots, 1_000, now, most - 1);
          const { stepId, standings } = await hold({ limit, amount: 1 }, now);
          expect(stepId !== undefined).toBe(isLetIn);
          if (isLetIn) window.use(now, 1);
          const { used, slots } = standings[0]!;
          expect(used).toBe(usedOf(window.slots, 1_000, now));
          if (stepId) await settle(stepId, now);
          else expect(waitMsOf(slots, 1_000, now, most - 1)).toBe(waitMs);
        }
      }),
      { numRuns: 30 },
    );
    await close();
  });
});

// Whole deployments

/** Whether two agents with a token each count as one. */
const isShared = (per: string) => per !== 'token' && per !== 'agent';

const BURST = 1_000;
const MOST = 100;

describe.each([1, 4])('a thousand calls at once on %d processes', (processes) => {
  test.each(['token', 'agent', 'policy', 'org'] as const)(
    'against a limit of a hundred requests per %s: exactly a hundred are served',
    async (per) => {
      const policy: PolicyDocument = { limits: [{ per, requests: MOST, windowS: LONG_S }] };
      const agents = ['one', 'two'];
      await within({ processes, policy, agents }, async (deployment) => {
        const { one = '', two = '' } = deployment.tokens;
        const counts = await burst(deployment, BURST, (index) => ({
          run: `run-${index % 7}`,
          token: isShared(per) && index % 2 === 1 ? two : one,
        }));
        expect(counts).toEqual({ 200: MOST, 429: BURST - MOST });
      });
    },
  );

  test('against the operator’s cap: exactly as many are served', async () => {
    const env = { RUNGATE_MAX_REQUESTS_PER_MINUTE: String(MOST) };
    await within({ processes, env, agents: ['one', 'two'] }, async (deployment) => {
      const { one = '', two = '' } = deployment.tokens;
      const askOf = (index: number) => ({ token: index % 2 === 1 ? two : one });
      expect(await burst(deployment, 400, askOf)).toEqual({ 200: MOST, 429: 400 - MOST });
    });
  });

  test.each(['token', 'agent', 'policy', 'org', 'operator'] as const)(
    'never have more in flight than a limit of concurrent calls per %s',
    async (per) => {
      const policy: PolicyDocument =
        per === 'operator' ? {} : { limits: [{ per, concurrent: 20 }] };
      const env = per === 'operator' ? { RUNGATE_MAX_CONCURRENT_CALLS: '20' } : {};
      await within({ processes, policy, env, agents: ['one', 'two'] }, async (deployment) => {
        const { one = '', two = '' } = deployment.tokens;
        const served = await stall(deployment, 200, 180, (index) => ({
          token: isShared(per) && index % 2 === 1 ? two : one,
        }));
        expect(served).toBe(20);
        expect(await burst(deployment, 20)).toEqual({ 200: 20 });
      });
    },
  );

  test('hold no more tokens than their limit allows at their bounds', async () => {
    const policy: PolicyDocument = { limits: [{ per: 'org', tokens: 10_000, windowS: LONG_S }] };
    await within({ processes, policy }, async (deployment) => {
      // A bound is the output asked for, and the bytes sent with a margin of some hundred.
      const served = await stall(deployment, 200, 193, () => ({ maxTokens: 1_000 }));
      expect(served).toBe(7);
    });
  });
});

test('a thousand calls at once on Deno against a limit of a hundred: exactly a hundred are served', async () => {
  const policy: PolicyDocument = { limits: [{ per: 'agent', requests: MOST, windowS: LONG_S }] };
  await within({ runtime: 'deno', policy }, async (deployment) => {
    expect(await burst(deployment, BURST)).toEqual({ 200: MOST, 429: BURST - MOST });
  });
});

test('a thousand calls at once on 4 processes that share a server: exactly a hundred are served', async () => {
  const server = await startSqld();
  try {
    const policy: PolicyDocument = { limits: [{ per: 'org', requests: MOST, windowS: LONG_S }] };
    const env = { RUNGATE_DATABASE_URL: server.url };
    await within({ processes: 4, policy, env }, async (deployment) => {
      expect(await burst(deployment, BURST)).toEqual({ 200: MOST, 429: BURST - MOST });
    });
  } finally {
    await server.stop();
  }
});

test('each token of an agent has a limit per token to itself', async () => {
  const policy: PolicyDocument = {
    limits: [
      { per: 'token', requests: 3, windowS: LONG_S },
      { per: 'agent', requests: 5, windowS: LONG_S },
      { per: 'token', concurrent: 2 },
    ],
  };
  await within({ policy }, async (deployment) => {
    const db = await deployment.database();
    const { orgId, agent } = (await findCredential(db, hashToken(deployment.token)))!;
    const other = mintToken(forOrg(db, orgId), 'operator', agent!.id, null);
    await forOrg(db, orgId).write(other.statement);
    await db.close();
    expect(await stall(deployment, 9, 7, () => ({}))).toBe(2);
    expect(await burst(deployment, 9)).toEqual({ 200: 1, 429: 8 });
    // What the agent has left, which is less than the token has.
    expect(await burst(deployment, 9, () => ({ token: other.text }))).toEqual({ 200: 2, 429: 7 });
  });
});

test.each(['requests', 'tokens'] as const)(
  'a limit of %s per org counts the calls of every policy, also of those without a limit',
  async (kind) => {
    const usage = { prompt_tokens: 60, completion_tokens: 40, total_tokens: 100 };
    const limit = kind === 'requests' ? { requests: 4 } : { tokens: 400 };
    await within({}, async (deployment) => {
      const manifest = {
        policies: [
          { name: 'limited', document: { limits: [{ per: 'org', ...limit, windowS: LONG_S }] } },
        ],
        agents: [{ name: 'limited', policy: 'limited' }],
      };
      const file = join(deployment.folder, 'limited.json');
      await Bun.write(file, JSON.stringify(manifest));
      // The server has known the org without it.
      expect((await call(deployment, { script: { usage } })).status).toBe(200);
      const applied = await deployment.cli('apply', file, '--org', 'acme', '--json');
      const [{ token }] = JSON.parse(applied.stdout).tokens;
      for (let turn = 0; turn < 3; turn++) {
        const free = await call(deployment, { script: { usage } });
        expect(free.status).toBe(200);
        expect(free.headers.has('ratelimit')).toBe(false);
      }
      const last = await call(deployment, { token, script: { usage } });
      expect(last.status).toBe(200);
      expect(numberOf(last, 'x-ratelimit-remaining')).toBe(0);
      await last.text();
      expect((await call(deployment, { token, script: { usage } })).status).toBe(429);
      expect((await call(deployment, { script: { usage } })).status).toBe(200);
    });
  },
);

describe('tokens', () => {
  const usage = { prompt_tokens: 300, completion_tokens: 100, total_tokens: 400 };
  const policy: PolicyDocument = {
    limits: [{ per: 'agent', tokens: 1_000, windowS: LONG_S }],
  };

  test('count as they were used once that is known, streamed or not, and not for errors', async () => {
    await within({ policy }, async (deployment) => {
      const asked = { maxTokens: 100_000, script: { usage } };
      expect((await call(deployment, { script: { error: 500 } })).status).toBe(500);
      for (let served = 0; served < 3; served++) {
        // Alone, a call is let in while anything is left.
        const response = await call(deployment, { ...asked, stream: served % 2 === 0 });
        await response.text();
        expect(response.status).toBe(200);
      }
      const refused = await call(deployment, asked);
      expect(refused.status).toBe(429);
      expect(numberOf(refused, 'x-ratelimit-limit')).toBe(1_000);
      expect(numberOf(refused, 'x-ratelimit-remaining')).toBe(0);
      expect(refused.headers.get('ratelimit-policy')).toBe(
        '"agent-tokens-3600s";q=1000;w=3600;qu="tokens"',
      );
      const db = await deployment.database();
      expect(await db.read('select sum(used) as used from limit_slots', [])).toEqual([
        { used: 1_200 },
      ]);
      await db.close();
    });
  });
});

describe('a caller who is alone', () => {
  const WINDOW_S = 2;

  test.each([
    ['requests', { per: 'agent', requests: 5, windowS: WINDOW_S }],
    ['tokens', { per: 'agent', tokens: 1_000, windowS: WINDOW_S }],
  ] as const)('and follows the headers of a limit of %s is never refused', async (_, limit) => {
    await within({ policy: { limits: [limit] } }, async (deployment) => {
      let refused = 0;
      for (let turn = 0; turn < 14; turn++) {
        const usage = { prompt_tokens: 100, completion_tokens: 50, total_tokens: 150 };
        const response = await call(deployment, { run: `run-${turn}`, script: { usage } });
        await response.text();
        if (response.status !== 200) refused++;
        const remaining = numberOf(response, 'x-ratelimit-remaining');
        const resetS = numberOf(response, 'x-ratelimit-reset');
        expect(resetS).toBeWithin(1, WINDOW_S + 1);
        expect(response.headers.get('ratelimit')).toMatch(
          new RegExp(`^"agent-\\w+-${WINDOW_S}s";r=${remaining};t=${resetS}$`),
        );
        if (remaining === 0) await Bun.sleep(resetS * 1_000);
      }
      expect(refused).toBe(0);
    });
  });

  test('gets in after Retry-After, whatever was refused meanwhile', async () => {
    const policy: PolicyDocument = {
      limits: [{ per: 'agent', requests: 3, windowS: WINDOW_S }],
    };
    await within({ policy }, async (deployment) => {
      expect(await burst(deployment, 3)).toEqual({ 200: 3 });
      const first = await call(deployment);
      expect(first.status).toBe(429);
      const told = await tell(first);
      const retryAfterS = numberOf(first, 'retry-after');
      expect(told.rungate).toMatchObject({ code: 'rate_limited', rule: 'limits[0]', retryAfterS });
      expect(told.code).toBe('rate_limit_exceeded');
      expect(told.message).toContain('3 requests per 2 s for this agent');
      expect(retryAfterS).toBeWithin(1, WINDOW_S + 1);
      const until = performance.now() + retryAfterS * 1_000;
      expect(await burst(deployment, 50)).toEqual({ 429: 50 });
      await Bun.sleep(until - performance.now());
      expect((await call(deployment)).status).toBe(200);
    });
  });

  test('is told the longest wait of all limits that are used up, and that nothing is left of each', async () => {
    const limits: PolicyDocument['limits'] = [
      { per: 'agent', requests: 2, windowS: 2 },
      { per: 'org', requests: 2, windowS: 30 },
      { per: 'policy', requests: 9, windowS: 60 },
      { per: 'org', concurrent: 5 },
    ];
    await within({ policy: { limits } }, async (deployment) => {
      for (let time = 0; time < 2; time++) await call(deployment);
      const refused = await call(deployment);
      expect(refused.status).toBe(429);
      expect(numberOf(refused, 'retry-after')).toBeWithin(25, 31);
      expect(numberOf(refused, 'x-ratelimit-reset')).toBe(numberOf(refused, 'retry-after'));
      const { rungate, message } = await tell(refused);
      expect(rungate.rule).toBe('limits[1]');
      expect(message).toContain('2 requests per 30 s for this org');
      expect(rungate.limits!.map(({ name, remaining }) => [name, remaining])).toEqual([
        ['org-requests-30s', 0],
        ['agent-requests-2s', 0],
        ['policy-requests-60s', 7],
        ['org-concurrent', 5],
      ]);
    });
  });

  test('is told to come back within a minute, and of the whole wait beside it', async () => {
    const policy: PolicyDocument = { limits: [{ per: 'agent', requests: 1, windowS: LONG_S }] };
    await within({ policy }, async (deployment) => {
      expect((await call(deployment)).status).toBe(200);
      const refused = await call(deployment);
      expect(numberOf(refused, 'retry-after')).toBe(60);
      expect(numberOf(refused, 'x-ratelimit-reset')).toBeWithin(LONG_S - 60, LONG_S + 1);
    });
  });
});

describe('a call that is not let in', () => {
  test('for want of money uses up no requests', async () => {
    const policy: PolicyDocument = {
      limits: [{ per: 'agent', requests: 2, windowS: LONG_S }],
      budget: { run: '0.00001' },
    };
    await within({ policy }, async (deployment) => {
      for (let turn = 0; turn < 4; turn++) {
        expect((await call(deployment, { run: `poor-${turn}` })).status).toBe(402);
      }
      const db = await deployment.database();
      expect(await db.read('select * from limit_slots', [])).toEqual([]);
      await db.close();
    });
  });

  test.each([
    ['run', 'budget-run'],
    ['agentPerDay', 'budget-agent-per-day'],
    ['orgPerMonth', 'budget-org-per-month'],
  ] as const)(
    'while others hold the money of %s is told of that and when to come back',
    async (budget, name) => {
      await within({ policy: { budget: { [budget]: '0.001' } } }, async (deployment) => {
        const leaving = new AbortController();
        const before = upstream.requests.length;
        const script: Script = { stall: 'headers' };
        const held = call(deployment, { maxTokens: 1_000_000, script, signal: leaving.signal });
        await upstream.received(before);
        const refused = await call(deployment);
        leaving.abort();
        await held.catch(() => {});
        expect(refused.status).toBe(429);
        const resetS = numberOf(refused, 'retry-after');
        expect(Object.fromEntries(refused.headers)).toMatchObject({
          'x-ratelimit-limit': '1000000',
          'x-ratelimit-remaining': '0',
          'x-ratelimit-reset': String(resetS),
          ratelimit: `"${name}";r=0;t=${resetS}`,
          'ratelimit-policy': `"${name}";q=1000000;qu="nanodollars"`,
        });
        expect(await refused.json()).toMatchObject({ error: { rungate: { code: 'money_held' } } });
      });
    },
  );

  test('is a denial on the trail, and of a policy without limits no header tells', async () => {
    const policy: PolicyDocument = { limits: [{ per: 'agent', requests: 1, windowS: LONG_S }] };
    await within({ policy }, async (deployment) => {
      expect(await burst(deployment, 2)).toEqual({ 200: 1, 429: 1 });
      const kinds = (await readTrail(deployment, 'a-run')).map(({ kind, outcome }) => [
        kind,
        outcome,
      ]);
      expect(kinds.toSorted()).toEqual([
        ['denial', 'rate_limited'],
        ['model_call', 'ok'],
      ]);
    });
    await within({}, async (deployment) => {
      const { headers } = await call(deployment);
      for (const name of ['ratelimit', 'ratelimit-policy', 'x-ratelimit-limit', 'retry-after']) {
        expect(headers.has(name)).toBe(false);
      }
    });
  });
});

describe('a process that is killed', () => {
  test('frees its concurrent calls when their leases have run out', async () => {
    const policy: PolicyDocument = { limits: [{ per: 'org', concurrent: 3 }] };
    await within({ processes: 2, policy }, async (deployment) => {
      const [first, second] = deployment.urls;
      const before = upstream.requests.length;
      const lost = Array.from({ length: 3 }, () =>
        call(deployment, { at: first!, script: { stall: 'headers' } }).catch(() => undefined),
      );
      await upstream.received(before + 2);
      expect((await call(deployment, { at: second! })).status).toBe(429);
      await deployment.servers[0]!.stop('SIGKILL');
      await Promise.all(lost);
      const db = await deployment.database();
      const leases = await db.first('select max(lease_expires_at) as last from steps', []);
      await db.close();
      expect((await call(deployment, { at: second! })).status).toBe(429);
      await Bun.sleep(Number(leases?.last) - Date.now() + 1);
      const freed = Array.from({ length: 3 }, () => call(deployment, { at: second! }));
      expect((await Promise.all(freed)).map(({ status }) => status)).toEqual([200, 200, 200]);
    });
  });
});

describe('a run', () => {
  const cases = [
    {
      name: 'that repeats a request too often',
      policy: { loop: { sameRequest: 5, windowS: LONG_S } },
      served: 4,
      rule: 'loop.sameRequest',
      reason: 'loop.same_request',
      sentence: 'repeated the same request too often',
    },
    {
      name: 'that takes too many steps',
      policy: { run: { maxSteps: 6 } },
      served: 6,
      rule: 'run.maxSteps',
      reason: 'run.max_steps',
      sentence: 'as many steps as its policy allows',
    },
  ] as const;

  test.each(cases)('$name is blocked exactly there and says why', async (each) => {
    await within({ processes: 2, policy: each.policy }, async (deployment) => {
      const counts = await burst(deployment, 60);
      expect(counts).toEqual({ 200: each.served, 403: 60 - each.served });
      const told = await tell(await call(deployment));
      expect(told.message).toContain(each.sentence);
      expect(told.code).toStartWith('rungate_permission');
      const db = await deployment.database();
      const rows = await db.read('select status, closed_reason, blocked_until from runs', []);
      expect(rows).toEqual([
        { status: 'blocked', closed_reason: each.reason, blocked_until: null },
      ]);
      await db.close();
      const refusals = (await readTrail(deployment, 'a-run')).map(({ detail }) => detail);
      expect(JSON.stringify(refusals)).toContain(`"rule":"${each.rule}"`);
      expect((await call(deployment, { run: 'another' })).status).toBe(200);
    });
  });

  test('that lasts too long is blocked and says why', async () => {
    await within({ policy: { run: { maxDurationS: 1 } } }, async (deployment) => {
      expect((await call(deployment)).status).toBe(200);
      await Bun.sleep(1_000);
      const refused = await call(deployment);
      expect(refused.status).toBe(403);
      const told = await tell(refused);
      expect(told.rungate).toMatchObject({ code: 'run_closed', rule: 'run.maxDurationS' });
      expect(told.message).toContain('as long as its policy allows');
    });
  });

  test('that lasts too long is blocked when it asks about a tool of its own, too', async () => {
    await within({ policy: { run: { maxDurationS: 1 } } }, async ({ url, token }) => {
      const ask = () =>
        fetch(`${url}/v1/runs/a-run/tools`, {
          ...{ method: 'POST', headers: { authorization: `Bearer ${token}` } },
          body: JSON.stringify({ name: 'search' }),
        });
      expect((await ask()).status).toBe(200);
      await Bun.sleep(1_000);
      for (const _ of [1, 2]) {
        const refused = await ask();
        expect(refused.status).toBe(403);
        expect((await tell(refused)).message).toContain('as long as its policy allows');
      }
    });
  });

  test('that sends different requests is not taken for a loop', async () => {
    await within({ policy: { loop: { sameRequest: 2, windowS: LONG_S } } }, async (deployment) => {
      const askOf = (index: number) => ({ content: `question ${index}` });
      expect(await burst(deployment, 30, askOf)).toEqual({ 200: 30 });
      expect((await call(deployment, { content: 'question 7' })).status).toBe(403);
    });
  });

  test('may repeat a request when its window has passed', async () => {
    await within({ policy: { loop: { sameRequest: 2, windowS: 1 } } }, async (deployment) => {
      for (let turn = 0; turn < 3; turn++) {
        expect((await call(deployment)).status).toBe(200);
        await Bun.sleep(1_050);
      }
    });
  });
});

// One process within the test, by the test's clock

/** What a test has of a process whose clock it sets. */
interface Clocked {
  readonly deployment: Deployment;
  readonly db: Database;
  readonly org: Org;
  advance(byMs: number): void;
  post(path: string, body: object, headers?: Record<string, string>): Promise<Response>;
  /** Approves every gate that waits, once there is one. */
  approve(): Promise<void>;
}

async function clocked(
  policy: PolicyDocument,
  play: (clocked: Clocked) => Promise<void>,
): Promise<void> {
  await within({ processes: 0, policy }, async (deployment) => {
    const booted = await boot({
      RUNGATE_DATABASE_URL: `file:${deployment.folder}/rungate.db`,
      RUNGATE_EGRESS_ALLOW: '127.0.0.1/32',
      RUNGATE_LOG: 'silent',
      UPSTREAM_KEY,
    });
    let now = Date.now();
    const { db, log } = booted;
    const clock = () => now;
    const services = { ...booted, now: clock, flights: new Flights(db, log, clock) };
    const app = makeApp(services);
    const org = (await findOrg(db, 'acme'))!;
    const waiting = "select id from gates where org_id = ?1 and status = 'pending'";
    try {
      await play({
        ...{ deployment, db, org },
        advance(byMs) {
          now += byMs;
        },
        async post(path, body, headers = {}) {
          const request = new Request(`http://rungate${path}`, {
            method: 'POST',
            headers: {
              authorization: `Bearer ${deployment.token}`,
              'content-type': 'application/json',
              ...headers,
            },
            body: JSON.stringify(body),
          });
          return await app(request, { address: '127.0.0.1' });
        },
        async approve() {
          let gates = await org.read(waiting);
          while (gates.length === 0) gates = await Bun.sleep(20).then(() => org.read(waiting));
          for (const { id } of gates) {
            const approval = { actor: 'operator', decision: 'approve' } as const;
            await decideGate(org, id as GateId, approval, now);
          }
        },
      });
    } finally {
      await booted.flights.drain(0);
      await shutDown(services, 0);
    }
  });
}

const runOf = (db: Database, name: string) =>
  db.first('select status, closed_reason, held_nanos from runs where name = ?1', [name]);

/** The ways of calling a model, and how each tells an error in its stream. */
const ROUTES = [
  { kind: 'chat', path: CHAT, error: /^data: \{"error":/m },
  { kind: 'responses', path: '/v1/responses', error: /^event: error\ndata: /m },
  { kind: 'messages', path: '/v1/messages', error: /^event: error\ndata: /m },
] as const;

/** A request of which the built-in models propose what its prompt asks for. */
function bodyOf({ kind }: (typeof ROUTES)[number], model: string, prompt: string, stream: boolean) {
  const tool = { name: 'refund', parameters: { type: 'object' } };
  const common = { model, stream };
  if (kind === 'responses') {
    return { ...common, input: prompt, tools: [{ type: 'function', ...tool }] };
  }
  const tools =
    kind === 'chat'
      ? [{ type: 'function', function: tool }]
      : [{ name: 'refund', input_schema: tool.parameters }];
  return { ...common, max_tokens: 50, messages: [{ role: 'user', content: prompt }], tools };
}

const ASKING = { requireApproval: [{ tool: 'refund', expiresAfterS: 2 * LONG_S }] };
const LASTS_MS = LONG_S * 1_000;
const REFUND = { name: 'refund', arguments: { amount: 1 } };
const WAITS = { prefer: 'wait=240' };

describe('a run that has lasted as long as it may', () => {
  const policy: PolicyDocument = {
    run: { maxDurationS: LONG_S },
    tools: ASKING,
    budget: { unpriced: { inputPerMillion: '1', outputPerMillion: '4' } },
  };
  const ways = ROUTES.flatMap((route) => [true, false].map((stream) => ({ ...route, stream })));

  test('ends its calls in flight with an error that says so, pays for what was seen, and is blocked', async () => {
    await clocked(policy, async ({ db, advance, post }) => {
      const headers = { 'x-rungate-run-id': 'long', 'anthropic-version': '2023-06-01' };
      const begun = ways.map(async (way) => {
        const model = way.stream ? 'demo-small~endless' : 'demo-small~silent';
        const answer = post(way.path, bodyOf(way, model, 'Hello', way.stream), headers);
        if (!way.stream) return { way, answer, text: '' };
        const reader = (await answer).body!.getReader();
        const { value } = await reader.read();
        return { way, answer, reader, text: new TextDecoder().decode(value) };
      });
      const calls = await Promise.all(begun);
      const live = 'select count(*) as count from steps where settled_at is null';
      while (Number((await db.first(live, []))?.count) < ways.length) await Bun.sleep(5);
      advance(LASTS_MS);
      for (const { way, answer, reader, text: first } of calls) {
        let text = first;
        for (let read = await reader?.read(); read && !read.done; read = await reader?.read()) {
          text += new TextDecoder().decode(read.value);
        }
        if (!reader) {
          expect((await answer).status).toBe(403);
          text = await (await answer).text();
        }
        if (way.stream) expect(text).toMatch(way.error);
        expect(text).toContain('"code":"run_closed"');
        expect(text).toContain('"rule":"run.maxDurationS"');
        expect(text).toContain('as long as its policy allows');
      }
      const stopped = { status: 'blocked', closed_reason: 'run.max_duration', held_nanos: 0 };
      expect(await runOf(db, 'long')).toEqual(stopped);
      const steps = await db.read(
        "select outcome, spent_nanos > 0 as paid, answered ->> '$.estimated' as estimated from steps",
        [],
      );
      const ended = { outcome: 'run_overdue', paid: 1, estimated: 1 };
      expect(steps).toEqual(Array(ways.length).fill(ended));
      const events = "select count(*) as count from events where type = 'run.blocked'";
      expect(await db.first(events, [])).toEqual({ count: 1 });
      const next = await post(CHAT, bodyOf(ways[0]!, 'demo-small', 'Hello', false), headers);
      expect((await tell(next)).message).toContain('as long as its policy allows');
    });
  });

  test.each([0, 1])('answers no question that waited past it, approved or not (%d)', async (at) => {
    await clocked(policy, async ({ db, advance, post, approve }) => {
      const waiting = post('/v1/runs/long/tools', REFUND, WAITS);
      while ((await db.read('select id from gates', [])).length === 0) await Bun.sleep(5);
      advance(LASTS_MS);
      if (at === 1) await approve();
      const refused = await waiting;
      expect(refused.status).toBe(403);
      expect((await tell(refused)).rungate).toMatchObject({
        ...{ code: 'run_closed', rule: 'run.maxDurationS' },
      });
      const stopped = { status: 'blocked', closed_reason: 'run.max_duration' };
      expect(await runOf(db, 'long')).toMatchObject(stopped);
      const released = "select count(*) as count from gates where status = 'released'";
      expect(await db.first(released, [])).toEqual({ count: 0 });
    });
  });

  test.each(ways)(
    'releases no answer to a call of $kind that waited past it, streamed $stream',
    async (way) => {
      await clocked(policy, async ({ db, advance, post, approve }) => {
        const headers = { 'x-rungate-run-id': 'long', ...WAITS };
        const prompt = 'call refund {"amount":900}';
        const body = bodyOf(way, 'demo-small', prompt, way.stream);
        const waiting = post(way.path, body, headers).then((response) => response.text());
        while ((await db.read('select id from gates', [])).length === 0) await Bun.sleep(5);
        advance(LASTS_MS);
        await approve();
        const text = await waiting;
        expect(text).toContain('run_closed');
        expect(text).toContain('as long as its policy allows');
        expect(text).not.toContain('900');
        const stopped = { status: 'blocked', closed_reason: 'run.max_duration' };
        expect(await runOf(db, 'long')).toMatchObject(stopped);
        const released = "select count(*) as count from gates where status = 'released'";
        expect(await db.first(released, [])).toEqual({ count: 0 });
      });
    },
  );
});

describe('the steps of a run', () => {
  const MAX_STEPS = 4;
  const policy: PolicyDocument = {
    run: { maxSteps: MAX_STEPS },
    tools: { ...ASKING, deny: ['drop'] },
  };
  const report = { kind: 'tool_call', name: 'search', outcome: 'ok', latencyMs: 1 };
  const chat = bodyOf(ROUTES[0], 'demo-small', 'Hello', false);
  const ask = ({ post }: Clocked, run: string, name: string) =>
    post(`/v1/runs/${run}/tools`, { name, arguments: { at: serial++ } });
  let serial = 0;

  /** What counts as a step, and what doesn't. */
  const STEPS: Readonly<Record<string, (clocked: Clocked, run: string) => Promise<Response>>> = {
    call: ({ post }, run) => post(CHAT, chat, { 'x-rungate-run-id': run }),
    report: ({ post }, run) => post(`/v1/runs/${run}/steps`, report),
    'allowed question': (clocked, run) => ask(clocked, run, 'search'),
    async 'approved question'(clocked, run) {
      const path = `/v1/runs/${run}/tools`;
      const question = { name: 'refund', arguments: { at: serial++ } };
      expect((await clocked.post(path, question)).status).toBe(200);
      await clocked.approve();
      return await clocked.post(path, question);
    },
  };
  const OTHERS: typeof STEPS = {
    'denied question': (clocked, run) => ask(clocked, run, 'drop'),
    'open question': (clocked, run) => ask(clocked, run, 'refund'),
  };
  const kinds = fc.constantFrom(...Object.keys(STEPS));
  const others = fc.array(fc.constantFrom(...Object.keys(OTHERS)), { maxLength: 3 });

  test('are its calls, its reports and its questions that were allowed; with the most of them it is blocked by whatever comes next but a report', async () => {
    await clocked(policy, async (clocked) => {
      const nexts = ['call', 'allowed question', 'denied question', 'open question'] as const;
      const taken = fc.array(kinds, { minLength: MAX_STEPS, maxLength: MAX_STEPS });
      const promise = fc.asyncProperty(
        ...([taken, others, fc.constantFrom(...nexts)] as const),
        async (steps, between, next) => {
          const run = `stepping-${serial++}`;
          for (const [at, kind] of steps.entries()) {
            const other = between[at];
            if (other) expect((await OTHERS[other]!(clocked, run)).status).toBe(200);
            const response = await STEPS[kind]!(clocked, run);
            expect(response.status).toBeWithin(200, 202);
            if (kind.endsWith('question')) {
              expect(await response.json()).toMatchObject({ decision: 'allow' });
            }
          }
          expect(await runOf(clocked.db, run)).toMatchObject({ status: 'open' });
          const refused = await { ...STEPS, ...OTHERS }[next]!(clocked, run);
          expect(refused.status).toBe(403);
          const told = await tell(refused);
          expect(told.rungate).toMatchObject({ code: 'run_closed', rule: 'run.maxSteps' });
          expect(told.message).toContain('as many steps as its policy allows');
          const stopped = { status: 'blocked', closed_reason: 'run.max_steps' };
          expect(await runOf(clocked.db, run)).toMatchObject(stopped);
          expect((await STEPS.report!(clocked, run)).status).toBe(201);
        },
      );
      await fc.assert(promise, { numRuns: 15 });
    });
  });

  test('are never more than it may have, however many questions come at once to two processes', async () => {
    await within({ processes: 2, policy }, async ({ urls, token, database }) => {
      const db = await database();
      const asked = Array.from({ length: 40 }, async (_, at) => {
        const response = await fetch(`${urls[at % 2]}/v1/runs/busy/tools`, {
          ...{ method: 'POST', headers: { authorization: `Bearer ${token}` } },
          body: JSON.stringify({ name: 'search', arguments: { at } }),
        });
        return response.status;
      });
      const statuses = await Promise.all(asked);
      expect(statuses.filter((status) => status === 200)).toHaveLength(MAX_STEPS);
      expect(statuses.filter((status) => status === 403)).toHaveLength(40 - MAX_STEPS);
      const allowed = "select count(*) as count from steps where outcome = 'tool_allowed'";
      expect(await db.first(allowed, [])).toEqual({ count: MAX_STEPS });
      await db.close();
    });
  });
});

describe('a loop of refused requests', () => {
  const SAME = 4;
  const tools = [{ type: 'function', function: { name: 'drop', parameters: {} } }];
  const prompt = { messages: [{ role: 'user', content: 'hello' }], max_tokens: 5 };
  /** Bodies that the policy refuses, each in its own way. */
  const REFUSED: Readonly<Record<string, object>> = {
    'permission_denied models.deny': { ...prompt, model: 'test-model-pro' },
    'permission_denied tools.deny[0]': { ...prompt, model: 'test-model', tools },
    'unpriced_model budget.unpriced': { ...prompt, model: 'openai/none' },
    'permission_denied tools.unreleasedResults': {
      ...{ ...prompt, model: 'test-model' },
      messages: [...prompt.messages, { role: 'tool', tool_call_id: 'none', content: 'x' }],
    },
  };
  const policy: PolicyDocument = {
    loop: { sameRequest: SAME, windowS: LONG_S },
    models: { deny: ['*-pro'] },
    tools: { ...ASKING, deny: ['drop'], unreleasedResults: 'deny' },
    limits: [{ per: 'agent', requests: 1_000, windowS: LONG_S }],
  };
  const STOPPED = { status: 'blocked', closed_reason: 'loop.same_request' };

  test('stops its run with the request that is once too many, whatever refused the others', async () => {
    await clocked(policy, async ({ db, post, advance }) => {
      for (const [why, body] of Object.entries(REFUSED)) {
        const [code, rule] = why.split(' ') as [string, string];
        const ask = () => post(CHAT, body, { 'x-rungate-run-id': why });
        for (let time = 1; time < SAME; time++) {
          expect((await tell(await ask())).rungate).toMatchObject({ code, rule });
          advance(1_000);
        }
        expect(await runOf(db, why)).toMatchObject({ status: 'open' });
        for (const isFirst of [true, false]) {
          const told = await tell(await ask());
          const stopping = isFirst ? { rule: 'loop.sameRequest', allowed: SAME - 1 } : {};
          expect(told.rungate).toMatchObject({ code: 'run_closed', ...stopping });
          expect(told.message).toContain('repeated the same request too often');
        }
        expect(await runOf(db, why)).toMatchObject(STOPPED);
      }
      // What was refused has used up nothing else.
      expect(await db.read('select distinct kind from limit_slots', [])).toEqual([
        { kind: 'same_request' },
      ]);
    });
  });

  test('is stopped exactly there however many come at once to two processes', async () => {
    await within({ processes: 2, policy }, async (deployment) => {
      const sent = Array.from({ length: 30 }, async (_, at) => {
        const response = await fetch(`${deployment.urls[at % 2]}${CHAT}`, {
          method: 'POST',
          headers: {
            authorization: `Bearer ${deployment.token}`,
            'content-type': 'application/json',
            'x-rungate-run-id': 'a-run',
          },
          body: JSON.stringify(REFUSED['permission_denied tools.deny[0]']),
        });
        return (await tell(response)).rungate.code;
      });
      const codes = await Promise.all(sent);
      expect(codes.filter((code) => code === 'permission_denied')).toHaveLength(SAME - 1);
      expect(codes.filter((code) => code === 'run_closed')).toHaveLength(30 - SAME + 1);
    });
  });

  test('is one of questions about a tool that are denied, too, but not of those that are allowed', async () => {
    await clocked(policy, async ({ db, post }) => {
      const ask = (name: string) => post(`/v1/runs/asking/tools`, { name, arguments: {} });
      for (let time = 1; time <= SAME; time++) {
        expect(await (await ask('search')).json()).toMatchObject({ decision: 'allow' });
      }
      for (let time = 1; time < SAME; time++) {
        expect(await (await ask('drop')).json()).toMatchObject({ decision: 'deny' });
      }
      const refused = await ask('drop');
      expect(refused.status).toBe(403);
      expect((await tell(refused)).rungate).toMatchObject({ rule: 'loop.sameRequest' });
      expect(await runOf(db, 'asking')).toMatchObject(STOPPED);
    });
  });

  test('is none where the same request waits for people, or has passed its window, or is told to come back', async () => {
    const limits: PolicyDocument['limits'] = [{ per: 'agent', requests: 1, windowS: 1 }];
    await clocked({ ...policy, limits }, async ({ db, post, advance, approve }) => {
      const headers = { 'x-rungate-run-id': 'patient' };
      const waiting = bodyOf(ROUTES[0], 'demo-small', 'call refund {"amount":900}', false);
      for (let time = 0; time < 2 * SAME; time++) {
        expect((await tell(await post(CHAT, waiting, headers))).rungate.code).toBe(
          'approval_pending',
        );
      }
      await approve();
      expect((await post(CHAT, waiting, headers)).status).toBe(200);
      const hasty = bodyOf(ROUTES[0], 'demo-small', 'Hello', false);
      for (let time = 0; time < 2 * SAME; time++) {
        expect((await post(CHAT, hasty, headers)).status).toBe(429);
      }
      const refused = REFUSED['permission_denied models.deny']!;
      for (let time = 0; time < 2 * SAME; time++) {
        const told = await tell(await post(CHAT, refused, headers));
        expect(told.rungate.code).toBe('permission_denied');
        advance(LASTS_MS / (SAME - 2));
      }
      expect(await runOf(db, 'patient')).toMatchObject({ status: 'open' });
    });
  });
});

describe('requests without a valid token', () => {
  const MOST_FAILURES = 120;

  test('from one address are told to wait, exactly from the limit on; valid ones are served', async () => {
    await within({ processes: 2 }, async (deployment) => {
      const askOf = (index: number) => ({
        token: index % 2 === 0 ? newToken('agent') : `rg_agt_${index}`,
      });
      expect(await burst(deployment, 300, askOf)).toEqual({
        401: MOST_FAILURES,
        429: 300 - MOST_FAILURES,
      });
      const refused = await call(deployment, { token: newToken('agent') });
      expect(refused.status).toBe(429);
      expect(numberOf(refused, 'retry-after')).toBeWithin(1, 61);
      expect(numberOf(refused, 'x-ratelimit-remaining')).toBe(0);
      expect((await call(deployment)).status).toBe(200);
    });
  });

  test('count by the address that a trusted proxy tells, and by nobody else’s word', async () => {
    const env = { RUNGATE_TRUSTED_PROXIES: '127.0.0.1/32' };
    const fail = async (url: string, forwarded: string) => {
      const headers = {
        authorization: 'Bearer rg_agt_wrong',
        'x-forwarded-for': forwarded,
        'x-forwarded-proto': 'https',
      };
      return (await fetch(`${url}/v1/models`, { headers })).status;
    };
    await within({ env }, async ({ url }) => {
      const from = (address: string) =>
        Promise.all(Array.from({ length: MOST_FAILURES }, () => fail(url, address)));
      expect(new Set(await from('2001:db8:1:2::7'))).toEqual(new Set([401]));
      expect(await fail(url, '2001:db8:1:2:ffff::9')).toBe(429);
      expect(await fail(url, '2001:db8:1:3::7')).toBe(401);
      expect(await fail(url, '192.0.2.1')).toBe(401);
    });
    await within({}, async ({ url }) => {
      const each = (_: unknown, at: number) => fail(url, `192.0.2.${at}`);
      await Promise.all(Array.from({ length: MOST_FAILURES }, each));
      expect(await fail(url, '192.0.2.200')).toBe(429);
    });
  });
});

test('a call that goes on to another upstream is one request, and its attempts are steps', async () => {
  const policy: PolicyDocument = {
    limits: [{ per: 'agent', requests: 5, windowS: LONG_S }],
    loop: { sameRequest: 3, windowS: LONG_S },
    failover: [{ model: 'openai/test-model', to: ['openai/other-model'] }],
  };
  const price = { model: 'openai/other-model', inputPerMillion: '1.00', outputPerMillion: '4.00' };
  await within({ policy, prices: [price] }, async (deployment) => {
    upstream.script({ error: 503 });
    const headers = { authorization: `Bearer ${deployment.token}`, 'x-rungate-run-id': 'a-run' };
    const body = { model: 'openai/test-model', max_tokens: 5, messages: [] };
    const response = await fetch(`${deployment.url}${CHAT}`, {
      ...{ method: 'POST', headers: { ...headers, 'content-type': 'application/json' } },
      body: JSON.stringify({ ...body, messages: [{ role: 'user', content: 'hello' }] }),
    });
    upstream.unscript();
    expect(response.status).toBe(200);
    expect(numberOf(response, 'x-ratelimit-remaining')).toBe(4);
    const kinds = (await readTrail(deployment, 'a-run')).map(({ kind }) => kind);
    expect(kinds.length).toBeGreaterThan(1);
    const db = await deployment.database();
    const used = await db.read('select kind, sum(used) as used from limit_slots group by kind', []);
    expect(used).toEqual([
      { kind: 'requests', used: 1 },
      { kind: 'same_request', used: 1 },
    ]);
    await db.close();
  });
});
