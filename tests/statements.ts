/** Statements that have run, run again with the ids of another org: they must not feel that it is there. */

import { copyFileSync, rmSync } from 'node:fs';
import { type Database, filePath, openDatabase, type Statement, type Value } from '../db/client.ts';
import { idsOf } from './attempts.ts';
import type { Watch, World } from './world.ts';

const ANY_ID = /([a-z]+)_[0-9a-hjkmnp-tv-z]{26}/g;
const IS_ID = /^[a-z]+_[0-9a-hjkmnp-tv-z]{26}$/;
/** Columns whose texts people and programs look for. */
const LOOKED_FOR =
  /"(?:name|email|url|model|digest|request_digest|hash|issuer|tool|window|status|role|response_id|wrapped)":"([^"]{1,200})"/g;

/** The most argument lists that are kept of a statement, but for those that lack others. */
const MAX_EACH = 6;

/** Statements on the rows of an org, by their text. */
export type Statements = Map<string, Statement[]>;

/** Which arguments are there: a condition may go by what is not. */
const shapeOf = (args: readonly Value[]): string =>
  args.map((value) => (value === null ? '-' : '+')).join('');

/** Keeps the statements that an org's own id is bound to. */
export function collectStatements(watch: Watch, into: Statements, isOwn: (id: Value) => boolean) {
  watch.seen = ({ sql, args }) => {
    if (!sql.includes('org_id = ?1') || !isOwn(args[0] ?? null)) return;
    const kept = into.get(sql) ?? [];
    const isNew = !kept.some((each) => shapeOf(each.args) === shapeOf(args));
    if (kept.length < MAX_EACH || isNew) into.set(sql, [...kept, { sql, args }]);
  };
}

/** A database file that is put back whenever something was written. */
class Copy {
  readonly #path: string;
  readonly #url: string;
  #db: Database | undefined;

  constructor(url: string, name: string) {
    this.#path = `${filePath(url)}.${name}`;
    this.#url = `file:${this.#path}`;
    copyFileSync(`${filePath(url)}.kept`, this.#path);
  }

  async open(): Promise<Database> {
    this.#db ??= await openDatabase({ url: this.#url, synchronous: 'normal' });
    return this.#db;
  }

  /** Writes the file as it is now to its own kept copy. */
  async keep(): Promise<void> {
    await this.close();
    copyFileSync(this.#path, `${this.#path}.kept`);
  }

  async restore(): Promise<void> {
    await this.close();
    copyFileSync(`${this.#path}.kept`, this.#path);
  }

  async close(): Promise<void> {
    await this.#db?.read('pragma wal_checkpoint(truncate)', []);
    await this.#db?.close();
    this.#db = undefined;
    for (const end of ['-wal', '-shm']) rmSync(`${this.#path}${end}`, { force: true });
  }
}

/** The same database with both orgs, and with the own one alone. */
export class Stage {
  readonly #world: World;
  readonly #both: Copy;
  readonly #alone: Copy;
  readonly #counterparts: ReadonlyMap<string, string>;
  readonly #own: RegExp;
  /** An id of each noun, by its prefix, and the texts that the other org's rows are found by. */
  readonly #first: ReadonlyMap<string, string>;
  readonly #texts: readonly string[];
  readonly #rows: ReadonlyMap<string, string>;

  private constructor(
    world: World,
    copies: readonly [Copy, Copy],
    counterparts: ReadonlyMap<string, string>,
    rows: ReadonlyMap<string, string>,
  ) {
    this.#world = world;
    [this.#both, this.#alone] = copies;
    this.#counterparts = counterparts;
    this.#own = new RegExp([...counterparts.keys()].join('|'), 'g');
    this.#rows = rows;
    const text = [...rows.values()].join('');
    this.#first = new Map([...text.matchAll(ANY_ID)].map(([id, prefix = '']) => [prefix, id]));
    this.#texts = [...new Set([...text.matchAll(LOOKED_FOR)].map(([, found = '']) => found))];
  }

  /** Makes both copies of what the world keeps. */
  static async set(world: World): Promise<Stage> {
    await world.keep();
    const url = world.ground.url;
    const copies = [new Copy(url, 'both'), new Copy(url, 'alone')] as const;
    const alone = await copies[1].open();
    await alone.write(await deletionOf(alone, world.foreign.org.id));
    for (const copy of copies) await copy.keep();
    const rows = await world.dump(world.foreign.org);
    return new Stage(world, copies, await counterpartsOf(world), rows);
  }

  /** What is wrong with a statement; nothing, when it keeps to its org. */
  async judge({ sql, args }: Statement, rewrite = (text: string) => text): Promise<string[]> {
    const text = rewrite(sql);
    for (const each of this.#variantsOf(args)) {
      const problems = await this.#compare({ sql: text, args: each });
      if (problems.length > 0) return problems;
    }
    return [];
  }

  /** The arguments as they were, with the other org's ids, and with each text that it has. */
  *#variantsOf(args: readonly Value[]): Generator<readonly Value[]> {
    const [org = null, ...rest] = args;
    const exchanged = [org, ...rest.map((value) => this.#exchange(value))];
    yield exchanged;
    // What a statement makes keeps its new id: one that is there already would be refused.
    const known = rest.map((value) => (typeof value === 'string' ? this.#replace(value) : value));
    if (known.some((value, at) => value !== exchanged[at + 1])) yield [org, ...known];
    yield args;
    for (const [at, value] of exchanged.entries()) {
      if (at === 0 || typeof value !== 'string' || IS_ID.test(value)) continue;
      const isList = value.startsWith('["');
      for (const text of this.#texts) {
        yield exchanged.with(at, isList ? JSON.stringify([text]) : text);
      }
    }
  }

  #exchange(value: Value): Value {
    if (typeof value !== 'string') return value;
    const known = this.#replace(value);
    if (known !== value) return known;
    return value.replaceAll(ANY_ID, (id, prefix: string) => this.#first.get(prefix) ?? id);
  }

  #replace(text: string): string {
    return text.replaceAll(this.#own, (own) => this.#counterparts.get(own) ?? own);
  }

  async #compare(statement: Statement): Promise<string[]> {
    const [one, other] = [
      await this.#run(this.#both, statement),
      await this.#run(this.#alone, statement),
    ];
    // Ids and secrets are unique in all orgs, and what a row refers to must be there: that is no reading.
    const isBarred =
      /(UNIQUE|FOREIGN KEY) constraint/.test(one.text + other.text) ||
      (statement.sql.includes('on conflict do nothing') &&
        Number.parseInt(one.text, 10) < Number.parseInt(other.text, 10));
    const problems =
      one.text === other.text || isBarred
        ? []
        : [`${one.text} with the other org, ${other.text} without`];
    if (one.hasWritten) {
      const now = await this.#world.dump(this.#world.foreign.org, await this.#both.open());
      const changed = [...now].filter(([table, text]) => this.#rows.get(table) !== text);
      problems.push(...changed.map(([table]) => `changes foreign rows of ${table}`));
    }
    if (one.hasWritten) await this.#both.restore();
    if (other.hasWritten) await this.#alone.restore();
    return problems;
  }

  /** Follows a statement that changed a row, as those do that ask for `changes()`. */
  async #run(copy: Copy, statement: Statement) {
    const db = await copy.open();
    const isRead = /^\s*(select|with)/i.test(statement.sql);
    const first = {
      sql: 'update orgs set name = name where id = ?1',
      args: [this.#world.own.org.id],
    };
    try {
      if (isRead) {
        const rows = await db.read(statement.sql, statement.args);
        return { text: JSON.stringify(rows), hasWritten: false };
      }
      const [, result] = await db.write([first, statement]);
      return { text: `${result?.changes} changes`, hasWritten: (result?.changes ?? 0) > 0 };
    } catch (error) {
      return { text: String(error), hasWritten: false };
    }
  }

  async close(): Promise<void> {
    await this.#both.close();
    await this.#alone.close();
  }
}

async function deletionOf(db: Database, org: string): Promise<Statement[]> {
  const tables = await db.read(
    `select m.name from sqlite_master m join pragma_table_info(m.name) c
     where m.type = 'table' and c.name = 'org_id'`,
    [],
  );
  // Children go with their parents: whatever is left by then is deleted here.
  return [
    { sql: 'pragma defer_foreign_keys = on', args: [] },
    ...tables.map(({ name }) => ({ sql: `delete from "${name}" where org_id = ?1`, args: [org] })),
    { sql: 'delete from orgs where id = ?1', args: [org] },
  ];
}

/** What stands for what in the other org, which was made in the same way. */
async function counterpartsOf({ dump, own, foreign }: World): Promise<Map<string, string>> {
  const [ours, theirs] = [await dump(own.org), await dump(foreign.org)];
  const pairs = new Map([
    [own.name, foreign.name],
    [own.slug, foreign.slug],
    [own.owner.email, foreign.owner.email],
  ]);
  for (const [table, text] of ours) {
    const there = idsOf(new Map([[table, theirs.get(table) ?? '']]));
    for (const [noun, ids] of idsOf(new Map([[table, text]]))) {
      const others = there.get(noun) ?? [];
      for (const [at, id] of ids.entries()) pairs.set(id, others[at % others.length] ?? id);
    }
  }
  return pairs.set(own.org.id, foreign.org.id);
}
