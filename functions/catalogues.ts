/** The catalogue in force, kept in memory: calls read it without a look into the database. */

import { readCatalogue, readSource, type SourceState } from '../db/catalogues.ts';
import type { Database } from '../db/client.ts';
import { Memo } from '../db/memo.ts';
import { type Catalogue, PINNED } from '../schema/rules/catalogue.ts';
import { InvalidPrices } from '../schema/rules/published.ts';
import type { Log } from './log.ts';

/** How old a look may be before the next call has another one made beside it. */
const LOOK_MS = 10_000;
/** Catalogues that were in force before and that calls are still settled by. */
const REMEMBERED = 4;

/**
 * The catalogues of a deployment. A process may go by the one before for some seconds, which does
 * no harm: a call is held, settled and recorded by one and the same.
 */
export class Catalogues {
  /** Where newer prices come from, without the query of the URL; undefined for nowhere. */
  readonly source: string | undefined;
  readonly #db: Database;
  readonly #log: Log;
  readonly #remembered = new Memo<Catalogue>(REMEMBERED);
  #current = PINNED;
  #lookedAt = Number.NEGATIVE_INFINITY;

  /** @param url Of the configured source. */
  constructor(db: Database, log: Log, url: string | undefined) {
    this.#db = db;
    this.#log = log;
    this.source = url && withoutQuery(url);
  }

  /** What a call that comes now is charged by. */
  inForce(now: number): Catalogue {
    if (this.source !== undefined && now - this.#lookedAt > LOOK_MS) {
      this.look(now).catch((error: unknown) =>
        this.#log.warn('the price catalogue could not be looked up', { error }),
      );
    }
    return this.#current;
  }

  /**
   * Takes up what is in force by now.
   *
   * @returns how the fetching of the source goes; undefined before the first attempt.
   * @throws {DatabaseError}
   */
  async look(now: number): Promise<SourceState | undefined> {
    if (this.source === undefined) return undefined;
    this.#lookedAt = now;
    const state = await readSource(this.#db, this.source);
    const version = state?.version ?? PINNED.version;
    if (version !== this.#current.version) this.#current = (await this.find(version)) ?? PINNED;
    return state;
  }

  /** The catalogue of a version; undefined for one that is not kept. */
  async find(version: string): Promise<Catalogue | undefined> {
    const known = [this.#current, PINNED].find((each) => each.version === version);
    const remembered = known ?? this.#remembered.get(version);
    if (remembered) return remembered;
    const found = await this.#read(version);
    return found && this.#remembered.set(version, found);
  }

  /** One that another version of Rungate has kept in a format of its own is as good as none. */
  async #read(version: string): Promise<Catalogue | undefined> {
    try {
      return await readCatalogue(this.#db, version);
    } catch (error) {
      if (!(error instanceof InvalidPrices)) throw error;
      this.#log.warn('a price catalogue could not be read', { version, error });
      return undefined;
    }
  }
}

/** The query may hold what lets somebody in. */
function withoutQuery(url: string): string {
  const { origin, pathname } = new URL(url);
  return origin + pathname;
}
