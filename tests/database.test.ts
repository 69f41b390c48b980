/** The database interface: the same promises for a file and for a libSQL server. */

import { afterAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { mkdtempSync, rmSync } from 'node:fs';
import { chmod, mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import {
  type Database,
  DatabaseError,
  type Merge,
  openDatabase,
  type Statement,
} from '../db/client.ts';
import { Memo } from '../db/memo.ts';
import { migrate, pendingMigrations } from '../db/migrate.ts';
import { forOrg } from '../db/org.ts';
import type { OrgId } from '../schema/ids.ts';
import { startSqld } from './sqld.ts';

setDefaultTimeout(60_000);

const folder = mkdtempSync(join(tmpdir(), 'rungate-database-'));
const ends: (() => Promise<void>)[] = [];
afterAll(async () => {
  for (const end of ends) await end();
  rmSync(folder, { recursive: true, force: true });
});

let files = 0;
const newFile = async () => `file:${folder}/${++files}.db`;

async function newServer(): Promise<string> {
  const sqld = await startSqld();
  ends.push(sqld.stop);
  return sqld.url;
}

async function open(url: string): Promise<Database> {
  const db = await openDatabase({ url });
  ends.unshift(() => db.close());
  return db;
}

const TABLE = sql(`create table things (
  id text primary key, amount integer not null check (amount >= 0)
) strict`);

async function openWithTable(url: string): Promise<Database> {
  const db = await open(url);
  await db.write([TABLE]);
  return db;
}

function sql(text: string, ...args: Statement['args'][number][]): Statement {
  return { sql: text, args };
}

const insert = (id: string, amount: Statement['args'][number] = 1) =>
  sql('insert into things (id, amount) values (?1, ?2)', id, amount);

async function ids(db: Database): Promise<string[]> {
  return (await db.read('select id from things order by id', [])).map(({ id }) => String(id));
}

const ROOT = fileURLToPath(new URL('..', import.meta.url));

/** Runs a script in a process of its own; it finds the URL of the database in `url`. */
async function inProcess(url: string, script: string): Promise<{ out: string; signal: unknown }> {
  const imports = `
    import { openDatabase } from '${ROOT}db/client.ts';
    import { migrate } from '${ROOT}db/migrate.ts';
    const url = ${JSON.stringify(url)};`;
  const child = Bun.spawn([process.execPath, '-e', imports + script], { stderr: 'inherit' });
  const out = await new Response(child.stdout).text();
  await child.exited;
  return { out: out.trim(), signal: child.signalCode };
}

/** What can be wrong with a transaction; each is one statement. */
const FAULTS: Readonly<Record<string, (id: string) => Statement>> = {
  duplicate: () => insert('taken'),
  negative: (id) => insert(id, -1),
  'of the wrong type': (id) => insert(id, 'many'),
  fractional: (id) => insert(id, 1.5),
  'short of an argument': (id) => sql('insert into things (id, amount) values (?1, ?2)', id),
  'on a missing table': (id) => sql('insert into nothing (id) values (?1)', id),
  'not SQL': () => sql('insert in things'),
};

/** A transaction: some inserts, and perhaps a fault after so many of them. */
interface Planned {
  readonly inserts: number;
  readonly fault: string | undefined;
  readonly at: number;
}

const planned: fc.Arbitrary<Planned> = fc.record({
  inserts: fc.integer({ min: 1, max: 4 }),
  fault: fc.option(fc.constantFrom(...Object.keys(FAULTS)), { nil: undefined, freq: 2 }),
  at: fc.nat(4),
});

const rowsOf = ({ inserts }: Planned, index: number) =>
  Array.from({ length: inserts }, (_, at) => `${String(index).padStart(3, '0')}-${at}`);

function statementsOf(plan: Planned, index: number): Statement[] {
  const statements = rowsOf(plan, index).map((id) => insert(id));
  const fault = plan.fault && FAULTS[plan.fault]?.(`${index}-bad`);
  if (fault) statements.splice(plan.at, 0, fault);
  return statements;
}

async function fallApart(db: Database, plans: readonly Planned[]): Promise<void> {
  await db.write([sql('delete from things'), insert('taken')]);
  const outcomes = await Promise.allSettled(
    plans.map((plan, index) => db.write(statementsOf(plan, index))),
  );
  for (const [index, { fault, inserts }] of plans.entries()) {
    const outcome = outcomes[index]!;
    expect(outcome.status).toBe(fault ? 'rejected' : 'fulfilled');
    if (outcome.status === 'fulfilled') {
      expect(outcome.value.map(({ changes }) => changes)).toEqual(Array(inserts).fill(1));
    } else {
      expect(outcome.reason).toBeInstanceOf(DatabaseError);
      expect(outcome.reason.conflict).toBe(fault === 'duplicate');
      expect(outcome.reason.refused).toBe(true);
    }
  }
  const good = plans.flatMap((plan, index) => (plan.fault ? [] : rowsOf(plan, index)));
  expect(await ids(db)).toEqual([...good, 'taken'].sort());
}

describe.each([
  ['file', newFile, 60],
  ['server', newServer, 20],
] as const)('a database on a %s', (_, newUrl, numRuns) => {
  test('commits a transaction whole or not at all, and apart from its neighbours', async () => {
    const db = await openWithTable(await newUrl());
    await fc.assert(
      fc.asyncProperty(fc.array(planned, { minLength: 1, maxLength: 24 }), (plans) =>
        fallApart(db, plans),
      ),
      { numRuns },
    );
  });

  test('has kept what it confirmed when the process is killed in the next instant', async () => {
    const url = await newUrl();
    const db = await openWithTable(url);
    const { signal } = await inProcess(
      url,
      `const db = await openDatabase({ url });
       const insert = 'insert into things (id, amount) values (?1, 1)';
       const write = (at) => db.write([{ sql: insert, args: [String(at)] }]);
       await Promise.all(Array.from({ length: 50 }, (_, at) => write(10 + at)));
       process.kill(process.pid, 'SIGKILL');`,
    );
    expect(signal).toBe('SIGKILL');
    expect(await ids(db)).toEqual(Array.from({ length: 50 }, (_, at) => String(10 + at)));
    const other = await open(url);
    expect(await ids(other)).toEqual(await ids(db));
  });

  test('shows a write that has resolved to every later read, on any connection', async () => {
    const url = await newUrl();
    const [db, other] = [await openWithTable(url), await open(url)];
    for (let at = 0; at < 20; at++) {
      await db.write([insert(String(at), at)]);
      const seen = await other.first('select amount from things where id = ?1', [String(at)]);
      expect(seen).toEqual({ amount: at });
      expect(await db.first('select count(*) as n from things', [])).toEqual({ n: at + 1 });
    }
  });

  test('lets exactly one of many win what only one can have, and tells the others', async () => {
    const url = await newUrl();
    const [db, other] = [await openWithTable(url), await open(url)];
    const tries = Array.from({ length: 30 }, (_, at) => (at % 2 ? db : other));
    const outcomes = await Promise.allSettled(
      tries.map((each, at) => each.write([insert(`own-${at}`), insert('prize', at)])),
    );
    const lost = outcomes.filter((outcome) => outcome.status === 'rejected');
    expect(lost).toHaveLength(29);
    expect(lost.every(({ reason }) => reason instanceof DatabaseError && reason.conflict)).toBe(
      true,
    );
    const winner = outcomes.findIndex(({ status }) => status === 'fulfilled');
    expect(await ids(db)).toEqual([`own-${winner}`, 'prize']);
  });

  test('runs transactions asked for at once in their order, many groups long', async () => {
    const db = await openWithTable(await newUrl());
    await db.write([insert('sum', 0)]);
    const add = sql(`update things set amount = amount + 1 where id = 'sum' returning amount`);
    const results = await Promise.all(Array.from({ length: 600 }, () => db.write([add])));
    const amounts = results.map(([result]) => result?.rows[0]?.amount);
    expect(amounts).toEqual(Array.from({ length: 600 }, (_, at) => at + 1));
  });

  test('commits no more than 256 transactions at once, so that other writers get their turn', async () => {
    const db = await openWithTable(await newUrl());
    const written = Array.from({ length: 600 }, (_, at) => db.write([insert(String(at))]));
    const counted = await Promise.race(
      written.map(async (write) => {
        await write;
        return (await db.first('select count(*) as n from things', []))?.n;
      }),
    );
    expect(counted).toBe(256);
    await Promise.all(written);
  });

  test('keeps integers, text and null as they are', async () => {
    const db = await open(await newUrl());
    await db.write([sql('create table kept (id integer primary key, n integer, t text) strict')]);
    const amount = fc.oneof(fc.maxSafeInteger(), fc.constant(null));
    const text = fc.oneof(fc.string({ unit: 'grapheme' }), fc.constantFrom(null, '', '0', '1.0'));
    let id = 0;
    const promise = fc.asyncProperty(amount, text, async (n, t) => {
      await db.write([sql('insert into kept values (?1, ?2, ?3)', ++id, n, t)]);
      const row = await db.first('select n, t, typeof(n) as kind from kept where id = ?1', [id]);
      expect(row).toEqual({
        n: Object.is(n, -0) ? 0 : n,
        t,
        kind: n === null ? 'null' : 'integer',
      });
    });
    await fc.assert(promise, { numRuns });
  });

  test('waits for the writes under way before it closes', async () => {
    const url = await newUrl();
    const db = await openDatabase({ url });
    const writes = [db.write([TABLE]), db.write([insert('last')])];
    await db.close();
    await Promise.all(writes);
    expect(await ids(await open(url))).toEqual(['last']);
  });

  test('is migrated once by processes that start at the same time', async () => {
    const url = await newUrl();
    const script = `const db = await openDatabase({ url });
      console.log(JSON.stringify(await migrate(db)));
      await db.close();`;
    const all = await Promise.all([1, 2, 3, 4].map(() => inProcess(url, script)));
    const applied = all.flatMap(({ out }) => JSON.parse(out) as string[]);
    const db = await open(url);
    const recorded = await db.read('select name from migrations order by name', []);
    expect(applied.sort()).toEqual(recorded.map(({ name }) => String(name)));
    expect(applied.length).toBeGreaterThan(0);
    expect(await pendingMigrations(db)).toEqual([]);
    expect(await migrate(db)).toEqual([]);
  });

  test('is refused when a newer Rungate has migrated it', async () => {
    const db = await open(await newUrl());
    await migrate(db);
    await db.write([sql(`insert into migrations values ('9999_future.sql', 1)`)]);
    await expect(migrate(db)).rejects.toThrow(/newer Rungate \(9999_future\.sql\)/);
  });
});

/** What things may have in common; those of `away` change another place. */
const KEYS = ['one', 'other', 'away', undefined] as const;

/** A write that may be made as one with others of its key, or something that is not merged. */
interface Mergeable {
  readonly key: (typeof KEYS)[number];
  readonly amount: number;
  readonly fault: string | undefined;
}

const mergeable: fc.Arbitrary<Mergeable> = fc.record({
  key: fc.constantFrom(...KEYS),
  amount: fc.integer({ min: 0, max: 9 }),
  fault: fc.option(fc.constantFrom(...Object.keys(FAULTS)), { nil: undefined, freq: 12 }),
});

interface Numbered extends Mergeable {
  readonly id: string;
}

/** The most that things of one key may amount to together, and each by itself. */
const [TOGETHER, ALONE] = [12, 6];

const insertBelow = (id: string, amount: number, total: number, most: number) =>
  sql('insert into things select ?1, ?2 where ?3 <= ?4', id, amount, total, most);

/** Things with one key: all of them where they are few, else each that is small by itself. */
function merging(groups: string[][]): Merge<Numbered, { id: string; isIn: boolean }> {
  const faultOf = ({ fault, id }: Numbered) => (fault ? [FAULTS[fault]!(id)] : []);
  return {
    placeOf: ({ key }) => (key === 'away' ? 'there' : 'here'),
    isAlike: (one, other) => one.key === other.key,
    together(items) {
      groups.push(items.map(({ id }) => id));
      const total = items.reduce((sum, { amount }) => sum + amount, 0);
      const inserts = items.map(({ id, amount }) => insertBelow(id, amount, total, TOGETHER));
      return [...inserts, ...items.flatMap(faultOf)];
    },
    outcomesOf: (items, results) =>
      results[0]!.changes > 0 ? items.map(({ id }) => ({ id, isIn: true })) : undefined,
    alone: (item) => [insertBelow(item.id, item.amount, item.amount, ALONE), ...faultOf(item)],
    outcomeOf: ({ id }, results) => ({ id, isIn: results[0]!.changes > 0 }),
  };
}

async function mergeAll(db: Database, all: readonly Mergeable[], groups: string[][]) {
  await db.write([sql('delete from things'), insert('taken')]);
  const items = all.map((each, at) => ({ ...each, id: String(at).padStart(3, '0') }));
  const merge = merging(groups);
  const outcomes = await Promise.allSettled(
    items.map((item) => {
      if (item.key) return db.merge(merge, item);
      const [statement, ...others] = merge.alone(item);
      const written = db.write([statement!, ...others]);
      return written.then((results) => merge.outcomeOf(item, results));
    }),
  );
  const present = new Set(await ids(db));
  for (const key of KEYS) {
    const own = items.filter((item) => item.key === key);
    const total = own.reduce((sum, { amount }) => sum + amount, 0);
    const isRefused = all.some(({ fault }) => fault);
    const areTogether = key !== undefined && own.length > 1 && total <= TOGETHER && !isRefused;
    for (const { id, amount, fault } of own) {
      const outcome = outcomes[Number(id)]!;
      expect(outcome.status).toBe(fault ? 'rejected' : 'fulfilled');
      const isIn = !fault && (areTogether || amount <= ALONE);
      if (outcome.status === 'fulfilled') expect(outcome.value).toEqual({ id, isIn });
      else expect(outcome.reason).toMatchObject({ name: 'DatabaseError', refused: true });
      expect(present.has(id)).toBe(isIn);
    }
  }
}

describe.each([
  ['file', newFile, 200],
  ['server', newServer, 20],
] as const)('what can be written as one on a %s', (_, newUrl, numRuns) => {
  test('is written together or apart, and each is told what came of it', async () => {
    const db = await openWithTable(await newUrl());
    const groups: string[][] = [];
    await fc.assert(
      fc.asyncProperty(fc.array(mergeable, { maxLength: 20 }), (all) => mergeAll(db, all, groups)),
      { numRuns },
    );
    expect(groups.length).toBeGreaterThan(numRuns / 10);
    expect(groups.every(({ length }) => length > 1)).toBe(true);
  });

  test('stops nothing that comes after it when it can’t be said what is to be written', async () => {
    const db = await openWithTable(await newUrl());
    const fail = () => {
      throw new TypeError('nobody knows');
    };
    const merge = merging([]);
    const item = { key: 'one', amount: 1, fault: undefined } as const;
    for (const faulty of [{ alone: fail }, { together: fail }, { outcomesOf: fail }]) {
      await db.write([sql('delete from things')]);
      const bad = { ...merge, ...faulty };
      const count = 'alone' in faulty ? 1 : 2;
      const tried = await Promise.allSettled(
        Array.from({ length: count }, (_, at) => db.merge(bad, { ...item, id: String(at) })),
      );
      for (const { status } of tried) expect(status).toBe('rejected');
      expect(await db.merge(merge, { ...item, id: 'next' })).toEqual({ id: 'next', isIn: true });
    }
  });
});

describe('a database on a file', () => {
  test('is for its owner alone, also in a folder that others read, and so is its log', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'rungate-open-'));
    await chmod(folder, 0o755);
    const url = `file:${folder}/new.db`;
    const all = await Promise.all([1, 2, 3].map(() => openDatabase({ url })));
    await all[0]!.write([sql('create table things (id text)')]);
    const files = await readdir(folder);
    expect(files.sort()).toEqual(['new.db', 'new.db-shm', 'new.db-wal']);
    for (const name of files) expect((await stat(join(folder, name))).mode & 0o777).toBe(0o600);
    await Promise.all(all.map((db) => db.close()));
    await rm(folder, { recursive: true });
  });

  test('keeps the mode that its owner has given it', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'rungate-open-'));
    const path = join(folder, 'shared.db');
    await writeFile(path, '');
    await chmod(path, 0o660);
    await (await openDatabase({ url: `file:${path}` })).close();
    expect((await stat(path)).mode & 0o777).toBe(0o660);
    await rm(folder, { recursive: true });
  });

  test('loses nothing of what four processes write at once', async () => {
    const url = await newFile();
    const db = await openWithTable(url);
    await db.write([insert('sum', 0)]);
    const script = `const db = await openDatabase({ url });
      const insert = 'insert into things (id, amount) values (?1, 1)';
      const add = "update things set amount = amount + 1 where id = 'sum'";
      const write = (at) =>
        db.write([{ sql: insert, args: [process.pid + '-' + at] }, { sql: add, args: [] }]);
      for (let at = 200; at < 300; at++) await db.write([{ sql: insert, args: [process.pid + '-' + at] }]);
      for (let round = 0; round < 20; round++) {
        await Promise.all(Array.from({ length: 10 }, (_, at) => write(round * 10 + at)));
      }
      console.log('all confirmed');
      await db.close();`;
    const writers = await Promise.all([1, 2, 3, 4].map(() => inProcess(url, script)));
    expect(writers.map(({ out }) => out)).toEqual(Array(4).fill('all confirmed'));
    expect(await db.first(`select amount from things where id = 'sum'`, [])).toEqual({
      amount: 800,
    });
    expect(await ids(db)).toHaveLength(1_201);
  });

  test.each([
    ['one statement', ['refused']],
    ['several statements', ['refused', 'too']],
  ])('keeps all that it confirms after %s waited in vain for a lock', async (_name, refused) => {
    const url = await newFile();
    const db = await openWithTable(url);
    await db.write([insert('first')]);
    const { default: Libsql } = await import('libsql');
    const other = new Libsql(url.slice('file:'.length));
    other.exec('begin immediate');
    const write = expect(db.write(refused.map((id) => insert(id)))).rejects;
    await write.toMatchObject({ name: 'DatabaseError', refused: false, conflict: false });
    expect(await ids(db)).toEqual(['first']);
    other.exec('rollback');
    other.close();
    const reader = await open(url);
    await db.write([sql(`update things set amount = 5 where id = 'first'`)]);
    expect(await reader.read('select amount from things', [])).toEqual([{ amount: 5 }]);
    await db.write([insert('alone')]);
    await db.write([insert('both'), insert('of them')]);
    const confirmed = ['alone', 'both', 'first', 'of them'];
    expect(await ids(reader)).toEqual(confirmed);
    await expect(db.write([insert('undone'), insert('alone')])).rejects.toThrow(DatabaseError);
    expect(await ids(reader)).toEqual(confirmed);
  });

  test('refuses a text that it could give back only in part', async () => {
    const db = await openWithTable(await newFile());
    await expect(db.write([insert('a\0b')])).rejects.toMatchObject({ refused: true });
    await expect(db.read('select ?1 as text', ['\0'])).rejects.toThrow(DatabaseError);
    expect(await ids(db)).toEqual([]);
  });

  test('never runs a statement with an argument of the call before', async () => {
    const db = await openWithTable(await newFile());
    await db.write([insert('first', 7)]);
    await expect(db.write([sql(insert('').sql, 'second')])).rejects.toThrow(DatabaseError);
    const search = 'select id from things where id = ?1 and amount = ?2';
    expect(await db.read(search, ['first', 7])).toEqual([{ id: 'first' }]);
    await expect(db.read(search, ['first'])).rejects.toThrow(DatabaseError);
    await expect(db.first(search, ['first'])).rejects.toThrow(DatabaseError);
  });
});

test('a memory forgets what was set longest ago, and counts what is set anew as new', () => {
  const memo = new Memo<number>(2);
  for (const [key, value] of [
    ['often', 1],
    ['once', 2],
    ['often', 3],
    ['late', 4],
  ] as const) {
    memo.set(key, value);
  }
  expect(['often', 'once', 'late'].map((key) => memo.get(key))).toEqual([3, undefined, 4]);
});

describe('the door to an org', () => {
  const org = forOrg({} as Database, 'org_1' as OrgId);

  test.each([
    'select * from runs',
    'select * from runs where id = ?2',
    'select * from runs where org_id = ?2',
    'select * from runs where org_id = ?10 and id = ?2',
    'select * from runs where org_id <> ?1',
    `select * from runs where org_id = 'org_1'`,
    'select * from runs where other_org_id = ?1',
    `update runs set status = 'open' where id = ?2`,
    'delete from steps where run_id = ?1',
    'insert into runs (id, org_id) values (?2, ?1)',
    'insert into runs (org_id, id) values (?10, ?2)',
    'insert into runs (org_id, id) select ?2, ?3',
    'insert into runs (org_id, id) select ?11, ?3',
  ])('is closed to %s', (text) => {
    expect(() => org.statement(text)).toThrow(/must bind org_id to \?1/);
    expect(() => org.read(text)).toThrow(/must bind org_id to \?1/);
  });

  test.each([
    'select * from runs where org_id = ?1 and id = ?2',
    'update runs set status = ?2 where org_id = ?1',
    'delete from steps where org_id = ?1',
    'insert into runs (org_id, id) values (?1, ?2)',
    'insert into runs (org_id, id) select ?1, ?2',
  ])('is open to %s, with the org bound first', (text) => {
    expect(org.statement(text, 'x')).toEqual({ sql: text, args: [org.id, 'x'] });
  });
});
