/** Holds and settlements that are written as one: nobody can tell, whatever happens to them. */

import { afterAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { createAgent } from '../db/agents.ts';
import { drawLines } from '../db/alerts.ts';
import { type Database, DatabaseError, openDatabase, type Row } from '../db/client.ts';
import { deleteOrg } from '../db/deletion.ts';
import { reserve } from '../db/holds.ts';
import type { Charge } from '../db/limits.ts';
import { migrate } from '../db/migrate.ts';
import { forOrg, type Org } from '../db/org.ts';
import { addPolicyVersion, readAgentPolicy } from '../db/policies.ts';
import { findRun, openRun } from '../db/runs.ts';
import type { Ceilings } from '../db/scopes.ts';
import { newId } from '../db/seal.ts';
import { type Hold, settle } from '../db/settlements.ts';
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
const newFile = async (): Promise<string> => `file:${folder}/${++files}.db`;

async function newServer(): Promise<string> {
  const sqld = await startSqld();
  ends.push(sqld.stop);
  return sqld.url;
}

const connect = (url: string): Promise<Database> => openDatabase({ url, synchronous: 'normal' });
const onFile = async () => await opened(await connect(await newFile()));
const onServer = async () => await opened(await connect(await newServer()));

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
const KINDS = ['model_call', 'retry', 'failover', 'gate'] as const;
const MODELS = ['one', 'null', 'two words', 'say "x"', null];
const KEYS = ['key', 'key-2'];
const FACTS = ['revoke', 'expire', 'suspend', 'revise', 'close', 'move'] as const;
const IDLE_MS = 60_000;
const EXPIRED_MS = 1_500;

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
  ...{ nanos: fc.nat(40), agoMs: fc.nat(3_000), tokens: fc.integer({ min: 1, max: 60 }) },
  model: fc.nat(MODELS.length - 1),
});
const ending: fc.Arbitrary<Ending> = fc.record({
  ...{ step: fc.nat(20), nanos: fc.nat(40) },
  latencyMs: fc.constantFrom(undefined, 0, 12, 1_249, 1_250),
  usedTokens: fc.option(fc.nat(60), { nil: undefined }),
});
/** Mostly of different steps. */
const endings = fc.oneof(
  { weight: 1, arbitrary: fc.array(ending, { maxLength: 6 }) },
  { weight: 4, arbitrary: fc.uniqueArray(ending, { maxLength: 20, selector: ({ step }) => step }) },
);
const several = <T>(each: fc.Arbitrary<T>) =>
  fc.oneof(
    { weight: 2, arbitrary: fc.constant<T[]>([]) },
    { weight: 4, arbitrary: fc.array(each, { minLength: 2, maxLength: 8 }) },
    { weight: 1, arbitrary: fc.array(each, { minLength: 30, maxLength: 45 }) },
  );
const turn: fc.Arbitrary<Turn> = fc.record({
  afterMs: fc.oneof(fc.constant(0), fc.nat(700), fc.nat(20_000), fc.constant(120_000)),
  ...{ run: fc.nat(RUNS - 1), kind: fc.nat(KINDS.length - 1), isWindow: fc.boolean() },
  limits: fc.oneof(fc.constant([]), fc.subarray([0, 1, 2, 3, 4, 5, 6, 7, 8], { maxLength: 4 })),
  ...{ asking: several(asking), ending: endings },
  expires: fc.boolean(),
  fact: fc.option(fc.constantFrom(...FACTS), { nil: undefined, freq: 12 }),
});

/** Small enough to be reached, or so large that nothing is. */
const room = fc.option(fc.integer({ min: 20, max: 2_000 }), { nil: undefined, freq: 1 });
const rooms = fc.record({ run: room, agentPerDay: room, agentPerMonth: room, orgPerMonth: room });
type Rooms = typeof rooms extends fc.Arbitrary<infer T> ? T : never;

const most = fc.oneof(fc.integer({ min: 1, max: 60 }), fc.constantFrom(2, 10, 100_000));
const bounds = fc.array(most, { minLength: 9, maxLength: 9 });

/** What a settlement has to know. */
interface Step {
  readonly hold: Hold;
}

/** An org that things happen to. */
class Side {
  org: Org;
  readonly #db: Database;
  readonly #bounds: readonly number[];
  readonly #names = new Map<string, string>();
  #runs: RunId[] = [];
  readonly steps: Step[] = [];
  #agent!: AgentId;
  #token!: TokenId;
  #policy!: PolicyId;
  #version!: PolicyVersionId;
  #ceilings!: Ceilings;
  #now = START;
  /** Whether nothing costs more than was held for it, as with calls. */
  #isCapped = false;

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
    // As expired holds are come by.
    this.#runs.sort();
    for (const at of [START, START + 600_000]) {
      await drawLines(org, this.#agent, version, windowsOf(at));
    }
    for (const [at, id] of this.#runs.entries()) this.#names.set(id, `run-${at}`);
    for (const [name, id] of Object.entries({ org: org.id, agent: this.#agent, ...this.#ids() })) {
      this.#names.set(id, name);
    }
  }

  /** Goes on with what another has opened. */
  join(other: Side): void {
    this.org = forOrg(this.#db, other.org.id);
    this.#runs = other.#runs;
    this.#agent = other.#agent;
    this.#token = other.#token;
    this.#policy = other.#policy;
    this.#version = other.#version;
    this.#ceilings = other.#ceilings;
  }

  stepIds(): StepId[] {
    return this.steps.map(({ hold }) => hold.stepId);
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
    if (each.expires) await expireHolds(this.#db, this.#now);
    // What depends on the order of both is for other tests.
    const told = await Promise.all(each.asking.map((one) => this.ask(each, one)));
    await Promise.all(each.ending.map((one) => this.#end(each.run, one)));
    return told;
  }

  /** All of it at once. */
  async rush(each: Turn): Promise<void> {
    this.#now += each.afterMs;
    this.#isCapped = true;
    const ended = each.ending.map((one) => this.#end(each.run, one));
    const expired = each.expires ? [expireHolds(this.#db, this.#now)] : [];
    await Promise.all([...each.asking.map((one) => this.ask(each, one)), ...ended, ...expired]);
  }

  /** How many scopes hold more than they should. */
  async over(limits: Rooms): Promise<number> {
    const row = await this.org.first(
      `select
         (select count(*) from runs where org_id = ?1 and held_nanos + spent_nanos > ?2
           and held_nanos > 0) +
         (select count(*) from spend where org_id = ?1 and held_nanos + spent_nanos >
           iif(subject = ?1, ?4, ?3) and held_nanos > 0) as n`,
      limits.run ?? null,
      limits.agentPerDay ?? null,
      limits.orgPerMonth ?? null,
    );
    return Number(row?.n);
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
      await this.#set('update tokens set expires_at = ?2 where org_id = ?1', now - EXPIRED_MS);
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

  async ask(each: Turn, { nanos, agoMs, tokens, model }: Asking): Promise<unknown> {
    const runId = this.#runs[each.run]!;
    const windows = windowsOf(this.#now);
    const asked = MODELS[model] ?? null;
    const key = { providerKey: KEYS[tokens % KEYS.length]! };
    const tokenId = this.#token;
    const call = {
      ...{ runId, agentId: this.#agent, kind: KINDS[each.kind]!, windows, now: this.#now - agoMs },
      ...{ heldNanos: nanos as Nanos, leaseExpiresAt: this.#now + LEASE_MS - agoMs },
      asked: { endpoint: 'chat', tokenId, ...key, ...(asked === null ? {} : { model: asked }) },
      ceilings: this.#ceilings,
      standing: {
        ...{ tokenId, revision: 1 },
        windowSince: each.isWindow ? this.#now - agoMs - IDLE_MS : null,
        unparkedSince: null,
      },
    };
    // What is no call is not limited.
    const limits = KINDS[each.kind] === 'gate' ? [] : each.limits;
    const charges: Charge[] = limits.map((at) => {
      const limit = this.#limit(at, runId);
      const isCounted = each.kind === 0 || !['requests', 'same_request'].includes(limit.kind);
      return { limit, amount: limit.kind === 'tokens' ? tokens : Number(isCounted) };
    });
    const { stepId, standings, tokens: kept } = await reserve(this.org, call, charges, this.#now);
    // A gate is not settled as a call is.
    if (stepId && KINDS[each.kind] !== 'gate')
      this.#keep(stepId, each, nanos, { ...key, model: asked, tokens: kept }, windows.day);
    return { isIn: stepId !== undefined, standings };
  }

  #keep(
    stepId: StepId,
    each: Turn,
    nanos: number,
    asked: Pick<Hold, 'providerKey' | 'model' | 'tokens'>,
    day: string,
  ): void {
    const hold: Hold = {
      ...{ stepId, runId: this.#runs[each.run]!, agentId: this.#agent, day, ...asked },
      ...{ policyVersionId: this.#version, heldNanos: nanos as Nanos },
    };
    this.steps.push({ hold });
  }

  async #end(run: number, { step, nanos, latencyMs, usedTokens }: Ending): Promise<void> {
    const ended = this.steps.filter(({ hold }) => hold.runId === this.#runs[run]).at(-1 - step);
    if (!ended) return;
    const spentNanos = (this.#isCapped ? Math.min(nanos, ended.hold.heldNanos) : nanos) as Nanos;
    await settle(this.org, ended.hold, {
      ...{ now: this.#now, spentNanos, outcome: 'ok' },
      answered: {
        ...(latencyMs === undefined ? {} : { latencyMs }),
        ...(usedTokens === undefined
          ? { estimated: true }
          : { usage: { inputTokens: usedTokens } }),
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
  runs: 'id, status, ceiling_nanos, spent_nanos, held_nanos, step_count, call_count, active_at',
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
  ['file', onFile, 300],
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
    await fc.assert(promise, { numRuns });
  });
});

/** An org with so many calls in flight, held as one. */
async function inFlight(db: Database, count: number): Promise<{ side: Side; steps: Step[] }> {
  const side = new Side(db, Array(9).fill(100_000));
  await side.open({
    ...{ run: undefined, agentPerDay: undefined, agentPerMonth: undefined, orgPerMonth: undefined },
  });
  const asked = { nanos: 5, agoMs: 0, tokens: 1 };
  await side.take({
    ...{ afterMs: 0, run: 0, kind: 0, isWindow: false, limits: [], expires: false },
    ...{ ending: [], fact: undefined },
    asking: Array.from({ length: count }, (_, at) => ({ ...asked, model: at % MODELS.length })),
  });
  return { side, steps: side.steps };
}

const endOf = (spentNanos: number) =>
  ({ now: START, spentNanos: spentNanos as Nanos, outcome: 'ok', answered: {} }) as const;

/** What a call goes by, each of which is as it was read or not. */
const traits = fc.record({
  run: fc.constantFrom('open', 'other', 'asking', 'closed', 'suspended'),
  token: fc.constantFrom('good', 'ending', 'revoked', 'foreign'),
  ...{ kind: fc.constantFrom(...KINDS), revision: fc.constantFrom(1, 2) },
  ...{
    agoMs: fc.constantFrom(5, 2_000),
    day: fc.constantFrom(0, 1),
    nanos: fc.integer({ min: 1, max: 9 }),
  },
  window: fc.constantFrom('none', 'current', 'idle'),
  ceiling: fc.constantFrom('none', 'agentPerDay', 'agentPerMonth', 'orgPerMonth'),
  kindOfLimit: fc.constantFrom('none', 'requests', 'tokens', 'concurrent'),
  ...{
    per: fc.constantFrom('org', 'agent', 'deployment'),
    windowMs: fc.constantFrom(1_000, 60_000),
  },
  ...{
    subject: fc.constantFrom('one', 'two'),
    isLimitLow: fc.boolean(),
    isCeilingLow: fc.boolean(),
    isUnparked: fc.boolean(),
  },
});
type Traits = typeof traits extends fc.Arbitrary<infer T> ? T : never;

const ALL_SOUND: Traits = {
  ...{ run: 'open', token: 'good', kind: 'model_call', revision: 1, agoMs: 5, day: 0, nanos: 5 },
  ...{ window: 'none', ceiling: 'none', kindOfLimit: 'none', per: 'org', windowMs: 1_000 },
  ...{ subject: 'one', isLimitLow: false, isCeilingLow: false, isUnparked: true },
};

/** Calls that share all but a few traits: these each has as it happens. */
const mixed = fc
  .tuple(
    traits,
    fc.subarray(['run', 'token', 'revision', 'window'] as (keyof Traits)[], { minLength: 2 }),
    fc.subarray(Object.keys(ALL_SOUND) as (keyof Traits)[], { maxLength: 4 }),
    fc.array(traits, { minLength: 2, maxLength: 6 }),
  )
  .map(([shared, sound, differing, each]) =>
    each.map((own): Traits => {
      const differs = Object.fromEntries(differing.map((name) => [name, own[name]]));
      const isSound = Object.fromEntries(sound.map((name) => [name, ALL_SOUND[name]]));
      return { ...shared, ...isSound, ...differs };
    }),
  );

/** Calls that differ in nothing but what they know of answers that are parked in their runs. */
const askedAbout = fc.array(
  fc
    .record({
      run: fc.constantFrom('open', 'other', 'asking'),
      agoMs: fc.constantFrom(5, 2_000),
      isUnparked: fc.boolean(),
    })
    .map((own): Traits => ({ ...ALL_SOUND, ...own })),
  { minLength: 2, maxLength: 6 },
);

/** Whether a call may leave, by its own facts alone. */
function isSound({ run, token, revision, window, agoMs, ...each }: Traits): boolean {
  return (
    (run === 'open' || run === 'other' || run === 'asking') &&
    !(each.isUnparked && (run === 'asking' || (run === 'other' && agoMs === 2_000))) &&
    (token === 'good' || (token === 'ending' && agoMs === 2_000)) &&
    revision === 1 &&
    (window === 'none' || (window === 'current' && run === 'open')) &&
    !(each.ceiling !== 'none' && each.isCeilingLow) &&
    !(each.kindOfLimit !== 'none' && each.isLimitLow)
  );
}

const AMPLE = 1_000_000_000;
const OPENED = START - 5_000;

/** An org with runs, and with tokens that are good for them or not, by their traits. */
class Ground {
  readonly org: Org;
  readonly #agents = new Map<string, AgentId>();
  readonly #runs = new Map<string, RunId>();
  readonly #tokens = new Map<string, TokenId>();

  constructor(org: Org) {
    this.org = org;
  }

  async make(db: Database): Promise<void> {
    const made = 'insert into orgs (id, slug, name, created_at) values (?1, ?1, ?1, 0)';
    await db.write([{ sql: made, args: [this.org.id] }]);
    const policy = await addPolicyVersion(this.org, 'operator', 'policy', '{}');
    for (const name of ['good', 'ending', 'revoked', 'foreign', 'suspended']) {
      await this.#addAgent(name, policy.id);
    }
    for (const name of ['open', 'other', 'asking', 'closed', 'suspended']) await this.#addRun(name);
    await this.org.write(this.#park('asking', null), this.#park('other', START - 1_000));
    const own = this.#agents.get('good')!;
    const change = (table: string, set: string, id: string, value: string | number = 1) =>
      this.org.statement(
        `update ${table} set ${set} = ?3 where org_id = ?1 and id = ?2`,
        id,
        value,
      );
    await this.org.write(
      change('tokens', 'agent_id', this.#tokens.get('ending')!, own),
      change('tokens', 'agent_id', this.#tokens.get('revoked')!, own),
      change('tokens', 'expires_at', this.#tokens.get('ending')!, START - 1_000),
      change('tokens', 'revoked_at', this.#tokens.get('revoked')!),
      change('agents', 'suspended_at', this.#agents.get('suspended')!),
      change('agents', 'window_run_id', own, this.#runs.get('open')!),
      change('runs', 'status', this.#runs.get('closed')!, 'completed'),
    );
    await db.write([{ sql: 'update orgs set revision = 1 where id = ?1', args: [this.org.id] }]);
  }

  async #addAgent(name: string, policy: PolicyId): Promise<void> {
    const { id } = await createAgent(this.org, 'operator', name, policy);
    const sql = 'select id from tokens where org_id = ?1 and agent_id = ?2';
    this.#agents.set(name, id);
    this.#tokens.set(name, (await this.org.first(sql, id))?.id as TokenId);
  }

  async #addRun(name: string): Promise<void> {
    const agentId = this.#agents.get(name === 'suspended' ? name : 'good')!;
    const run = { agentId, ceilingNanos: null, now: OPENED };
    const policyVersionId = newId('policyVersion');
    await openRun(this.org, { ...run, policyVersionId }, { name, source: 'test' });
    this.#runs.set(name, (await findRun(this.org, agentId, name))!.id);
  }

  #park(run: string, endedAt: number | null) {
    return this.org.statement(
      `insert into parked (
         org_id, id, agent_id, run_id, step_id, request_digest, head_parts, created_at, expires_at,
         ended_at
       ) values (?1, ?2, ?3, ?4, 'step', 'digest', 1, 0, 0, ?5)`,
      ...[newId('parked'), this.#agents.get('good')!, this.#runs.get(run)!, endedAt],
    );
  }

  /** Whether a call is let in that counts against one limit at a moment. */
  async use(limit: Limit, nowMillis: number): Promise<boolean> {
    const [agentId, tokenId] = [this.#agents.get('good')!, this.#tokens.get('good')!];
    const call = {
      ...({ runId: this.#runs.get('open')!, agentId, kind: 'model_call', now: START } as const),
      ...{ windows: windowsOf(START), heldNanos: 0 as Nanos, ceilings: NO_CEILINGS },
      ...{ leaseExpiresAt: START + LEASE_MS, asked: { endpoint: 'chat', tokenId } },
      standing: { tokenId, revision: 1, windowSince: null, unparkedSince: null },
    };
    const charges = [{ limit, amount: 1 }];
    return (await reserve(this.org, call, charges, nowMillis)).stepId !== undefined;
  }

  /** @returns the step as it must be written; its id where it was. */
  async ask(each: Traits): Promise<{ id: StepId | undefined; step: object }> {
    const { run, token, kind, revision, agoMs, window, nanos, isCeilingLow } = each;
    const [runId, now] = [this.#runs.get(run)!, START - agoMs];
    const agentId = this.#agents.get(run === 'suspended' ? run : 'good')!;
    const tokenId = this.#tokens.get(run === 'suspended' ? run : token)!;
    const windows = windowsOf(START + each.day * 86_400_000);
    const since = { none: null, current: OPENED - agoMs, idle: START + AMPLE - agoMs }[window];
    const ceiling = (isCeilingLow ? nanos - 1 : AMPLE) as Nanos;
    const call = {
      ...{ runId, agentId, kind, windows, now, heldNanos: nanos as Nanos },
      ...{ leaseExpiresAt: START + LEASE_MS, asked: { endpoint: 'chat', tokenId } },
      ceilings: { ...NO_CEILINGS, ...(each.ceiling === 'none' ? {} : { [each.ceiling]: ceiling }) },
      standing: {
        ...{ tokenId, revision, windowSince: since },
        unparkedSince: each.isUnparked ? now : null,
      },
    };
    const charges = chargesOf(each);
    const { stepId: id } = await reserve(this.org, call, charges, START);
    const step = { run_id: runId, kind, day: windows.day, started_at: now, held_nanos: nanos };
    return { id, step: { id, ...step } };
  }
}

const NO_CEILINGS = { agentPerDay: undefined, agentPerMonth: undefined, orgPerMonth: undefined };

function chargesOf({ kindOfLimit: kind, per, windowMs, subject, isLimitLow }: Traits): Charge[] {
  if (kind === 'none') return [];
  const counted = { kind, per, subject, windowMs: kind === 'concurrent' ? 0 : windowMs };
  return [{ limit: { ...counted, rule: 'limits[0]', most: isLimitLow ? 0 : AMPLE }, amount: 1 }];
}

const counterOf = ({ org_id: org, kind, subject, window_ms: windowMs }: Row): string =>
  [org, kind, subject, windowMs].join();

/** How often each counter of a window is used by these. */
function usedBy(calls: readonly Traits[], org: string): Record<string, number> {
  const used: Record<string, number> = {};
  for (const each of calls) {
    for (const { limit } of chargesOf(each)) {
      if (limit.windowMs === 0) continue;
      const of = limit.per === 'deployment' ? '*' : org;
      const counter = [of, limit.kind, limit.subject, limit.windowMs].join();
      used[counter] = (used[counter] ?? 0) + 1;
    }
  }
  return used;
}

describe('calls at once', () => {
  test('are each let in by their own facts, whatever those beside them go by', async () => {
    const db = await onFile();
    const ground = new Ground(forOrg(db, newId('org')));
    await ground.make(db);
    const promise = fc.asyncProperty(fc.oneof(mixed, askedAbout), async (calls) => {
      const told = await Promise.all(calls.map((each) => ground.ask(each)));
      expect(told.map(({ id }) => id !== undefined)).toEqual(calls.map(isSound));
      const held = told.filter(({ id }) => id !== undefined);
      const rows = await ground.org.read(
        `select id, run_id, kind, day, started_at, held_nanos from steps where org_id = ?1
         and id in (select value from json_each(?2)) order by id`,
        JSON.stringify(held.map(({ id }) => id)),
      );
      const steps = held.toSorted((one, other) => (one.id! < other.id! ? -1 : 1));
      expect(rows).toEqual(steps.map(({ step }) => step) as typeof rows);
      const counted = await db.read('delete from limit_slots returning *', []);
      expect(Object.fromEntries(counted.map((row) => [counterOf(row), row.used]))).toEqual(
        usedBy(calls.filter(isSound), ground.org.id),
      );
    });
    await fc.assert(promise, { numRuns: 1_000 });
    expect(await ground.org.first(SUMS)).toEqual({ wrong: 0 });
  });

  test('count from the moment of the latest of them', async () => {
    const db = await onFile();
    const ground = new Ground(forOrg(db, newId('org')));
    await ground.make(db);
    let serial = 0;
    const agos = fc.array(fc.nat(900), { minLength: 2, maxLength: 5 });
    const promise = fc.asyncProperty(agos, fc.integer({ min: 1, max: 999 }), async (all, after) => {
      const counter = { kind: 'requests', per: 'agent', subject: `agt_${serial++}` } as const;
      const limit: Limit = { ...counter, rule: 'limits[0]', windowMs: 1_000, most: all.length };
      const told = await Promise.all(all.map((ago) => ground.use(limit, START - ago)));
      expect(told).toEqual(all.map(() => true));
      const latest = START - Math.min(...all);
      expect(await ground.use(limit, latest + after)).toBe(false);
      expect(await ground.use(limit, latest + 1_000)).toBe(true);
    });
    await fc.assert(promise, { numRuns: 100 });
  });
});

describe('settlements at once', () => {
  test('leave nothing of an org that was deleted meanwhile', async () => {
    const db = await onFile();
    const { side, steps } = await inFlight(db, 3);
    const tables = await tenantTables(db);
    await deleteOrg(db, side.org, tables, START);
    await Promise.all(steps.map(({ hold }) => settle(side.org, hold, endOf(7))));
    for (const { name } of tables) {
      const rows = await side.org.read(`select count(*) as n from "${name}" where org_id = ?1`);
      expect([name, rows]).toEqual([name, [{ n: 0 }]]);
    }
  });

  test.each(['runs', 'spend'])(
    'change no sum when their steps and rows of %s are gone',
    async (table) => {
      const db = await onFile();
      const { side, steps } = await inFlight(db, 3);
      const { org } = side;
      await org.write(
        org.statement('delete from steps where org_id = ?1'),
        org.statement(`delete from ${table} where org_id = ?1`),
      );
      const before = await side.dump();
      await Promise.all(steps.map(({ hold }) => settle(org, hold, endOf(7))));
      expect(await side.dump()).toEqual(before);
    },
  );
});

describe.each([
  ['file', newFile, 100],
  ['server', newServer, 10],
] as const)('two processes on a %s', (_, newUrl, numRuns) => {
  test('hold no more than every ceiling, whatever they write at once', async () => {
    const url = await newUrl();
    const [db, other] = [await opened(await connect(url)), await connect(url)];
    ends.unshift(() => other.close());
    const waves = fc.array(fc.tuple(turn, turn, fc.boolean()), { minLength: 1, maxLength: 5 });
    const promise = fc.asyncProperty(rooms, bounds, waves, async (limits, mosts, all) => {
      const sides = [new Side(db, mosts), new Side(other, mosts)] as const;
      await sides[0].open(limits);
      sides[1].join(sides[0]);
      for (const [one, two, expires] of all) {
        const took = [sides[0].rush({ ...one, expires }), sides[1].rush(two)];
        await Promise.all(took);
        expect(await sides[0].org.first(SUMS)).toEqual({ wrong: 0 });
        expect(await sides[0].over(limits)).toBe(0);
      }
    });
    await fc.assert(promise, { numRuns });
  });
});

/** A server of which answers and requests get lost. */
async function onShakyServer() {
  const sqld = await startSqld();
  const losses: ('request' | 'answer' | 'none')[] = [];
  const proxy = Bun.serve({
    ...{ port: 0, hostname: '127.0.0.1', idleTimeout: 0 },
    async fetch(request) {
      const loss = request.method === 'POST' ? losses.shift() : undefined;
      const lost = new Response('lost', { status: 502 });
      if (loss === 'request') return lost;
      const { pathname } = new URL(request.url);
      const body = request.method === 'POST' ? await request.arrayBuffer() : null;
      const answer = await fetch(sqld.url + pathname, { method: request.method, body });
      const headers = { 'content-type': 'application/json' };
      const whole = new Response(await answer.arrayBuffer(), { status: answer.status, headers });
      return loss === 'answer' ? lost : whole;
    },
  });
  ends.push(sqld.stop, () => proxy.stop(true));
  const shaky = await openDatabase({ url: `http://127.0.0.1:${proxy.port}` });
  ends.unshift(() => shaky.close());
  const sound = await opened(await openDatabase({ url: sqld.url }));
  return { shaky, sound, losses };
}

/** As a call settles: what is not known to be written is tried again. */
async function settleAtLast(org: Org, hold: Hold, spentNanos: number): Promise<void> {
  for (;;) {
    try {
      return await settle(org, hold, endOf(spentNanos));
    } catch (error) {
      if (!(error instanceof DatabaseError) || error.refused) throw error;
    }
  }
}

const losing = fc.array(fc.constantFrom('request', 'answer', 'none', 'none'), { maxLength: 12 });

describe('a server of which requests and answers get lost', () => {
  test('holds no more than its ceilings, and takes each settlement once', async () => {
    const { shaky, sound, losses } = await onShakyServer();
    const promise = fc.asyncProperty(losing, losing, fc.nat(30), async (early, late, extra) => {
      const side = new Side(sound, Array(9).fill(100_000));
      const ceiling = 40 + extra;
      await side.open({ run: ceiling, agentPerDay: ceiling, agentPerMonth: 500, orgPerMonth: 500 });
      const told = new Side(shaky, []);
      told.join(side);
      losses.splice(0, losses.length, ...early);
      const asked = { nanos: 7, agoMs: 0, tokens: 1, model: 0 };
      const nothing = { afterMs: 0, limits: [], expires: false, ending: [], fact: undefined };
      await Promise.all(
        Array.from({ length: 10 }, (_, at) =>
          told
            .ask({ ...nothing, run: at % 2, kind: 0, isWindow: false, asking: [] }, asked)
            .catch((error) =>
              expect(error).toMatchObject({ name: 'DatabaseError', refused: false }),
            ),
        ),
      );
      losses.splice(0, losses.length, ...late);
      await Promise.all(told.steps.map(({ hold }) => settleAtLast(told.org, hold, 3)));
      losses.length = 0;
      expect(await side.org.first(SUMS)).toEqual({ wrong: 0 });
      const { own } = (await side.org.first(TAKEN, JSON.stringify(told.stepIds())))!;
      expect(own).toBe(told.steps.length);
      const over =
        'select count(*) as n from runs where org_id = ?1 and spent_nanos + held_nanos > ?2';
      expect(await side.org.first(over, ceiling)).toEqual({ n: 0 });
      // What nobody was told of is left to its lease.
      await expireHolds(sound, START + LEASE_MS + 1);
      expect(await side.org.first(SUMS)).toEqual({ wrong: 0 });
    });
    await fc.assert(promise, { numRuns: 25 });
  });
});

test('writes are not tried again when nobody knows what became of them', async () => {
  const { shaky, sound, losses } = await onShakyServer();
  await sound.write([{ sql: 'create table sums (amount integer)', args: [] }]);
  await sound.write([{ sql: 'insert into sums values (0)', args: [] }]);
  const add = { sql: 'update sums set amount = amount + 1', args: [] };
  for (const [loss, amount] of [
    ['request', 0],
    ['answer', 3],
  ] as const) {
    losses.push(loss);
    const tried = await Promise.allSettled([1, 2, 3].map(() => shaky.write([add])));
    for (const each of tried) {
      expect(each).toMatchObject({ reason: { name: 'DatabaseError', refused: false } });
    }
    expect(await sound.first('select amount from sums', [])).toEqual({ amount });
  }
});

/** How many of these steps are settled at what they cost. */
const TAKEN = `select count(*) as own from steps where org_id = ?1 and spent_nanos = 3
  and outcome = 'ok' and id in (select value from json_each(?2))`;
