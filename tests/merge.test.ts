/** Holds and settlements that are written as one: nobody can tell, whatever happens to them. */

import { afterAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { createAgent } from '../db/agents.ts';
import { drawLines } from '../db/alerts.ts';
import { type Database, DatabaseError, openDatabase } from '../db/client.ts';
import { deleteOrg } from '../db/deletion.ts';
import { type Ceilings, type LimitedReservation, reserve, reserveLimited } from '../db/holds.ts';
import type { Charge } from '../db/limits.ts';
import { migrate } from '../db/migrate.ts';
import { forOrg, type Org } from '../db/org.ts';
import { addPolicyVersion, readAgentPolicy } from '../db/policies.ts';
import { findRun, openRun } from '../db/runs.ts';
import { newId } from '../db/seal.ts';
import { type Hold, leaseRenewal, settle } from '../db/settlements.ts';
import { expireHolds } from '../db/system.ts';
import { tenantTables } from '../db/tables.ts';
import type { AgentId, PolicyId, PolicyVersionId, RunId, StepId, TokenId } from '../schema/ids.ts';
import { formatDollars, type Nanos } from '../schema/money.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import type { Limit } from '../schema/rules/limit.ts';
import { startSqld } from './sqld.ts';

setDefaultTimeout(120_000);

const folder = mkdtempSync(join(tmpdir(), 'rungate-merge-'));
const ends: (() => Promise<void>)[] = [];
afterAll(async () => {
  for (const end of ends) await end();
  rmSync(folder, { recursive: true, force: true });
});

let files = 0;
async function onFile(): Promise<Database> {
  const url = `file:${folder}/${++files}.db`;
  return await opened(await openDatabase({ url, synchronous: 'normal' }));
}

async function onServer(): Promise<Database> {
  const sqld = await startSqld();
  ends.push(sqld.stop);
  return await opened(await openDatabase({ url: sqld.url }));
}

async function opened(db: Database): Promise<Database> {
  ends.unshift(() => db.close());
  await migrate(db);
  return db;
}

/** The same database, where every write is by itself. */
const unmerged = (db: Database): Database => ({
  ...db,
  async merge(merge, item) {
    return merge.outcomeOf(item, await db.write(merge.alone(item)));
  },
});

// What happens

const START = Date.parse('2030-01-31T23:58:00Z');
const LEASE_MS = 15_000;
const RUNS = 2;
const KINDS = ['model_call', 'retry', 'gate'] as const;
const MODELS = ['one', 'null', 'two words', 'say "x"', null];
const FACTS = ['revoke', 'expire', 'suspend', 'revise', 'close', 'move'] as const;

/** A call that asks to be let out. */
interface Asking {
  readonly nanos: number;
  /** How long ago it began, in milliseconds. */
  readonly agoMs: number;
  readonly tokens: number;
  readonly model: number;
}

interface Ending {
  readonly step: number;
  readonly nanos: number;
  readonly latencyMs: number | undefined;
  readonly usedTokens: number | undefined;
}

/** What happens at once, some time after what happened before it. */
interface Turn {
  readonly afterMs: number;
  readonly run: number;
  readonly kind: number;
  readonly isWindow: boolean;
  readonly limits: readonly number[];
  readonly asking: readonly Asking[];
  readonly ending: readonly Ending[];
  readonly expires: boolean;
  readonly fact: (typeof FACTS)[number] | undefined;
}

const asking: fc.Arbitrary<Asking> = fc.record({
  ...{ nanos: fc.nat(40), agoMs: fc.nat(1_500), tokens: fc.integer({ min: 1, max: 60 }) },
  model: fc.nat(MODELS.length - 1),
});
const ending: fc.Arbitrary<Ending> = fc.record({
  ...{ step: fc.nat(20), nanos: fc.nat(40) },
  latencyMs: fc.option(fc.nat(2_000), { nil: undefined }),
  usedTokens: fc.option(fc.nat(60), { nil: undefined }),
});
const several = <T>(each: fc.Arbitrary<T>) =>
  fc.oneof(
    { weight: 2, arbitrary: fc.constant<T[]>([]) },
    { weight: 4, arbitrary: fc.array(each, { minLength: 2, maxLength: 8 }) },
    { weight: 1, arbitrary: fc.array(each, { minLength: 30, maxLength: 45 }) },
  );
const turn: fc.Arbitrary<Turn> = fc.record({
  afterMs: fc.oneof(fc.nat(700), fc.nat(20_000), fc.constant(120_000)),
  ...{ run: fc.nat(RUNS - 1), kind: fc.nat(KINDS.length - 1), isWindow: fc.boolean() },
  limits: fc.subarray([0, 1, 2, 3, 4, 5, 6, 7, 8]),
  ...{ asking: several(asking), ending: several(ending) },
  expires: fc.boolean().map((each) => each),
  fact: fc.option(fc.constantFrom(...FACTS), { nil: undefined, freq: 12 }),
});

/** Small enough to be reached, or so large that nothing is. */
const room = fc.option(fc.integer({ min: 20, max: 2_000 }), { nil: undefined });
const rooms = fc.record({ run: room, agentPerDay: room, agentPerMonth: room, orgPerMonth: room });
type Rooms = typeof rooms extends fc.Arbitrary<infer T> ? T : never;

const most = fc.oneof(fc.integer({ min: 1, max: 60 }), fc.constant(100_000));
const bounds = fc.array(most, { minLength: 9, maxLength: 9 });

/** What a settlement has to know. */
interface Step {
  readonly hold: Hold;
  readonly isLimited: boolean;
}

/** An org that things happen to. */
class Side {
  readonly org: Org;
  readonly #db: Database;
  readonly #bounds: readonly number[];
  readonly #names = new Map<string, string>();
  readonly #runs: RunId[] = [];
  readonly #steps: Step[] = [];
  #agent!: AgentId;
  #token!: TokenId;
  #policy!: PolicyId;
  #version!: PolicyVersionId;
  #ceilings!: Ceilings;
  #now = START;

  constructor(db: Database, mosts: readonly number[]) {
    this.#db = db;
    this.#bounds = mosts;
    this.org = forOrg(db, newId('org'));
  }

  async open(limits: Rooms): Promise<void> {
    const { org } = this;
    const made = 'insert into orgs (id, slug, name, created_at) values (?1, ?1, ?1, 0)';
    await this.#db.write([{ sql: made, args: [org.id] }]);
    const { run, ...others } = limits;
    const dollars = Object.entries({ run, ...others }).flatMap(([name, nanos]) =>
      nanos === undefined ? [] : [[name, formatDollars(nanos)]],
    );
    const document = { budget: { alertAt: 0.5, ...Object.fromEntries(dollars) } };
    const policy = await addPolicyVersion(org, 'operator', 'policy', JSON.stringify(document));
    this.#policy = policy.id;
    this.#agent = (await createAgent(org, 'operator', 'agent', policy.id)).id;
    const version = (await readAgentPolicy(org, this.#agent))!;
    this.#version = version.id;
    const { agentPerDay, agentPerMonth, orgPerMonth } = version.policy.budget;
    this.#ceilings = { agentPerDay, agentPerMonth, orgPerMonth };
    const sql = 'select id from tokens where org_id = ?1 and agent_id = ?2';
    this.#token = (await org.first(sql, this.#agent))?.id as TokenId;
    const ceilingNanos = version.policy.budget.run ?? null;
    const run_ = { agentId: this.#agent, ceilingNanos, policyVersionId: version.id, now: START };
    for (let index = 0; index < RUNS; index++) {
      await openRun(org, run_, { name: `run-${index}`, source: 'test' });
      this.#runs.push((await findRun(org, this.#agent, `run-${index}`))!.id);
    }
    await this.#set('update agents set window_run_id = ?2 where org_id = ?1', this.#runs[0]!);
    for (const at of [START, START + 600_000]) {
      await drawLines(org, this.#agent, version, windowsOf(at));
    }
    for (const [at, id] of this.#runs.entries()) this.#names.set(id, `run-${at}`);
    for (const [name, id] of Object.entries({ org: org.id, agent: this.#agent, ...this.#ids() })) {
      this.#names.set(id, name);
    }
  }

  #ids = () => ({ policy: this.#policy, version: this.#version, token: this.#token });

  async #set(sql: string, ...args: (string | number | null)[]): Promise<void> {
    await this.org.write(this.org.statement(sql, ...args));
  }

  /** @returns what those who asked were told. */
  async take(each: Turn): Promise<unknown[]> {
    this.#now += each.afterMs;
    await this.#restore();
    if (each.fact) await this.#change(each.fact, each.run);
    const [told] = await Promise.all([
      Promise.all(each.asking.map((one) => this.#ask(each, one))),
      ...each.ending.map((one) => this.#end(one)),
      ...(each.expires ? [expireHolds(this.#db, this.#now)] : []),
    ]);
    return told;
  }

  async #restore(): Promise<void> {
    await this.#set('update tokens set revoked_at = null, expires_at = null where org_id = ?1');
    const agent = 'update agents set window_run_id = ?2, suspended_at = null where org_id = ?1';
    await this.#set(agent, this.#runs[0]!);
    await this.#set("update runs set status = 'open', closed_at = null where org_id = ?1");
    const revision = 'update orgs set revision = 1 where id = ?1';
    await this.#db.write([{ sql: revision, args: [this.org.id] }]);
  }

  async #change(fact: (typeof FACTS)[number], run: number): Promise<void> {
    const now = this.#now;
    if (fact === 'revoke') await this.#set('update tokens set revoked_at = 1 where org_id = ?1');
    if (fact === 'expire') {
      await this.#set('update tokens set expires_at = ?2 where org_id = ?1', now - 700);
    }
    if (fact === 'suspend') await this.#set('update agents set suspended_at = 1 where org_id = ?1');
    if (fact === 'revise') {
      const args = [this.org.id];
      const sql = 'update orgs set revision = revision + 1 where id = ?1';
      await this.#db.write([{ sql, args }]);
    }
    if (fact === 'close') {
      await this.#set(
        "update runs set status = 'completed', closed_at = ?2 where org_id = ?1 and id = ?3",
        ...[now, this.#runs[run]!],
      );
    }
    if (fact === 'move') {
      await this.#set("update agents set window_run_id = 'run_other' where org_id = ?1");
    }
  }

  #limit(at: number, run: RunId): Limit {
    const common = { rule: `limits[${at}]`, most: this.#bounds[at]! };
    const ofRun = { ...common, per: 'run', subject: run, windowMs: 0 } as const;
    const ofAgent = { ...common, per: 'agent', subject: this.#agent } as const;
    const ofOrg = { ...common, per: 'org', subject: this.org.id } as const;
    const ofPolicy = { ...common, per: 'policy', subject: this.#policy } as const;
    return (
      [
        { ...ofAgent, kind: 'requests', windowMs: 1_000 },
        { ...ofOrg, kind: 'requests', windowMs: 60_000 },
        { ...ofAgent, kind: 'tokens', windowMs: 1_000, most: common.most * 10 },
        { ...ofPolicy, kind: 'tokens', windowMs: 60_000, most: common.most * 10 },
        { ...ofAgent, kind: 'concurrent', windowMs: 0 },
        { ...ofPolicy, kind: 'concurrent', windowMs: 0 },
        { ...ofRun, kind: 'steps' },
        { ...ofRun, kind: 'duration', most: common.most * 10_000 },
        { ...ofRun, kind: 'same_request', subject: `${run}/digest`, windowMs: 2_000 },
      ] as const
    )[at]!;
  }

  async #ask(each: Turn, { nanos, agoMs, tokens, model }: Asking): Promise<unknown> {
    const runId = this.#runs[each.run]!;
    const windows = windowsOf(this.#now);
    const { model: asked, ...key } = { providerKey: 'key', model: MODELS[model] ?? null };
    const tokenId = this.#token;
    const call = {
      ...{ runId, agentId: this.#agent, kind: KINDS[each.kind]!, windows, now: this.#now - agoMs },
      ...{ heldNanos: nanos as Nanos, leaseExpiresAt: this.#now + LEASE_MS - agoMs },
      asked: { endpoint: 'chat', tokenId, ...key, ...(asked === null ? {} : { model: asked }) },
      ceilings: this.#ceilings,
      standing: {
        ...{ tokenId, revision: 1 },
        windowSince: each.isWindow ? this.#now - agoMs - 60_000 : null,
      },
    };
    const charges: Charge[] = each.limits.map((at) => {
      const limit = this.#limit(at, runId);
      const isCounted = each.kind === 0 || !['requests', 'same_request'].includes(limit.kind);
      return { limit, amount: limit.kind === 'tokens' ? tokens : Number(isCounted) };
    });
    const { stepId, standings }: LimitedReservation =
      charges.length > 0
        ? await reserveLimited(this.org, call, charges, this.#now)
        : { stepId: await reserve(this.org, call), standings: [] };
    if (stepId) this.#keep(stepId, each, nanos, asked, windows.day);
    return { isIn: stepId !== undefined, standings };
  }

  #keep(stepId: StepId, each: Turn, nanos: number, model: string | null, day: string): void {
    const hold: Hold = {
      ...{ stepId, runId: this.#runs[each.run]!, agentId: this.#agent, day, model },
      ...{ policyVersionId: this.#version, heldNanos: nanos as Nanos, providerKey: 'key' },
    };
    this.#steps.push({ hold, isLimited: each.limits.length > 0 });
  }

  async #end({ step, nanos, latencyMs, usedTokens }: Ending): Promise<void> {
    const ended = this.#steps.at(-1 - step);
    // A step of a gate is never settled as a call.
    if (!ended) return;
    await settle(this.org, ended.hold, {
      ...{ now: this.#now, spentNanos: nanos as Nanos, outcome: 'ok' },
      answered: {
        ...(latencyMs === undefined ? {} : { latencyMs }),
        ...(usedTokens === undefined ? { estimated: true } : { usage: { inputTokens: usedTokens } }),
      },
    });
  }

  /** All that is known of the org, without what chance and the clock have made. */
  async dump(): Promise<string[]> {
    const rows: string[] = [];
    for (const [table, columns] of Object.entries(DUMPED)) {
      for (const row of await this.org.read(`select ${columns} from ${table} where org_id = ?1`)) {
        rows.push(`${table} ${JSON.stringify(row)}`);
      }
    }
    const named = rows.map((row) =>
      row.replaceAll(/[a-z]+_[0-9a-hjkmnp-tv-z]{26}/g, (id) => this.#names.get(id) ?? id),
    );
    return named.sort();
  }
}

const DUMPED = {
  runs: 'name, status, ceiling_nanos, spent_nanos, held_nanos, step_count, call_count, active_at',
  steps: `run_id, agent_id, kind, day, started_at, held_nanos, lease_expires_at, settled_at,
    spent_nanos, outcome, asked, answered, charged`,
  spend: 'subject, window, spent_nanos, held_nanos, step_count, line_nanos, line_run_id',
  call_totals: 'day, agent_id, policy_version_id, model, latency_ms, calls, spent_nanos',
  limit_slots: 'subject, kind, window_ms, slot, used, last_at, ends_at',
  // A line that several reach together is reached by the sum.
  alerts: 'scope, subject, window, ceiling_nanos, raised_at is not null as is_raised, run_id',
  events: `type, data ->> '$.scope' as scope, data ->> '$.runId' as run, data ->> '$.ceilingNanos' as ceiling`,
};

/** Whether the sums are those of the steps. */
const SUMS = `select
    (select count(*) from runs r where r.org_id = ?1 and (
      r.spent_nanos <> (select coalesce(sum(spent_nanos), 0) from steps s
        where s.org_id = ?1 and s.run_id = r.id)
      or r.held_nanos <> (select coalesce(sum(held_nanos), 0) from steps s
        where s.org_id = ?1 and s.run_id = r.id and s.settled_at is null)
      or r.step_count <> (select count(*) from steps s where s.org_id = ?1 and s.run_id = r.id)
    )) +
    (select count(*) from spend p where p.org_id = ?1 and (
      p.spent_nanos <> (select coalesce(sum(spent_nanos), 0) from steps s where s.org_id = ?1
        and s.day between p.window and p.window || '-31')
      or p.held_nanos <> (select coalesce(sum(held_nanos), 0) from steps s where s.org_id = ?1
        and s.day between p.window and p.window || '-31' and s.settled_at is null)
    )) as wrong`;

describe.each([
  ['file', onFile, 150],
  ['server', onServer, 8],
] as const)('on a %s', (_, open, numRuns) => {
  test('whatever is asked for at once is told and leaves what it would have one by one', async () => {
    const db = await open();
    const promise = fc.asyncProperty(
      rooms,
      bounds,
      fc.array(turn, { minLength: 1, maxLength: 8 }),
      async (limits, mosts, turns) => {
        const sides = [new Side(db, mosts), new Side(unmerged(db), mosts)] as const;
        for (const side of sides) await side.open(limits);
        for (const each of turns) {
          const [merged, apart] = [await sides[0].take(each), await sides[1].take(each)];
          expect(merged).toEqual(apart);
          expect(await sides[0].dump()).toEqual(await sides[1].dump());
          expect(await sides[0].org.first(SUMS)).toEqual({ wrong: 0 });
        }
      },
    );
    await fc.assert(promise, { numRuns, ...JSON.parse(process.env.FCX ?? "{}") });
  });
});
