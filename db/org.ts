/** The tenant door: the only way to rows that belong to an org. */

import type { OrgId } from '../schema/ids.ts';
import { commitAudited, isDraft } from './chain.ts';
import type { Database, Merge, Result, Row, Statement, Value } from './client.ts';

/** SQL that has passed the check of {@link Org.statement}; statements are constants, so few. */
const scoped = new Set<string>();

/**
 * One org's rows. In every statement `?1` is the org's id, bound here; a statement that does not
 * compare or write it as `org_id` is a programming error and throws.
 */
export class Org {
  readonly id: OrgId;
  readonly #db: Database;

  /** Use {@link forOrg}. */
  constructor(db: Database, id: OrgId) {
    this.#db = db;
    this.id = id;
  }

  /** Reads this org's rows. `args` bind from `?2` on. */
  read(sql: string, ...args: Value[]): Promise<readonly Row[]> {
    const statement = this.statement(sql, ...args);
    return this.#db.read(statement.sql, statement.args);
  }

  /** The first of these rows. `args` bind from `?2` on. */
  first(sql: string, ...args: Value[]): Promise<Row | undefined> {
    const statement = this.statement(sql, ...args);
    return this.#db.first(statement.sql, statement.args);
  }

  /** A statement on this org's rows, for {@link Org.write}. `args` bind from `?2` on. */
  statement(sql: string, ...args: Value[]): Statement {
    if (!scoped.has(sql)) {
      if (!/\borg_id = \?1(?!\d)|\(\?1,|select \?1,/.test(sql)) {
        throw new Error(`a statement on an org's rows must bind org_id to ?1: ${sql}`);
      }
      scoped.add(sql);
    }
    return { sql, args: [this.id, ...args] };
  }

  /** Commits statements as one transaction; audit entries among them take their place in it. */
  write(...statements: Statement[]): Promise<readonly Result[]> {
    return statements.some(isDraft)
      ? commitAudited(this.#db, this.id, statements)
      : this.#db.write(statements);
  }

  /** Writes an item, as one with those of its kind; the merge's statements are of this org. */
  merge<Item, Outcome>(merge: Merge<Item, Outcome>, item: Item): Promise<Outcome> {
    return this.#db.merge(merge, item);
  }
}

/** Opens the door to one org's rows. */
export function forOrg(db: Database, id: OrgId): Org {
  return new Org(db, id);
}
