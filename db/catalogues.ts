/** Price lists that were fetched: which is in force for a source, and how fetching it goes. */

import { z } from 'zod';
import { type Catalogue, type Listing, makeCatalogue } from '../schema/rules/catalogue.ts';
import { readListings } from '../schema/rules/published.ts';
import type { Database, Row, Statement } from './client.ts';
import { digestText } from './seal.ts';

/** How the fetching of a source goes. */
export interface SourceState {
  /** What is in force; null until something was fetched. */
  readonly version: string | null;
  readonly etag: string | null;
  /** When it is due, Unix milliseconds. */
  readonly nextAt: number;
  /** How many lower prices were not taken over, and the first of their ids, as `provider/id`. */
  readonly heldBackCount: number;
  readonly heldBack: readonly string[];
  /** Why the last attempt came to nothing. */
  readonly failure: string | null;
}

/** What is put in force for a source. */
export interface Replacement {
  readonly source: string;
  /** The version that it was made from: if another one is in force by now, nothing changes. */
  readonly replaces: string | null;
  readonly listings: readonly Listing[];
  readonly heldBack: readonly string[];
  readonly etag: string | null;
  /** Unix milliseconds. */
  readonly now: number;
  readonly nextAt: number;
}

/** For longer than any hold lives: then nothing is left to be settled by it. */
const KEEP_REPLACED_MS = 30 * 86_400_000;
const MAX_NAMED = 100;
const VERSION_DIGITS = 12;

const HELD_BACK = z.array(z.string());

/** How the fetching of a source goes; undefined for one that was never tried. */
export async function readSource(db: Database, source: string): Promise<SourceState | undefined> {
  const row = await db.first('select * from price_sources where source = ?1', [source]);
  if (!row) return undefined;
  const text = (value: unknown) => (value === null ? null : String(value));
  return {
    version: text(row.version),
    etag: text(row.etag),
    nextAt: Number(row.next_at),
    heldBackCount: Number(row.held_back_count),
    heldBack: HELD_BACK.parse(JSON.parse(String(row.held_back))),
    failure: text(row.failure),
  };
}

/**
 * A catalogue of a version; undefined for one that is not kept.
 *
 * @throws {InvalidPrices} for a row that nobody here wrote.
 */
export async function readCatalogue(db: Database, version: string): Promise<Catalogue | undefined> {
  const row = await db.first('select * from catalogues where version = ?1', [version]);
  return row && toCatalogue(row);
}

/** The version of the oldest catalogue of a source that is kept, some weeks old. */
export async function readOldest(db: Database, source: string): Promise<string | undefined> {
  const sql = 'select version from catalogues where source = ?1 order by fetched_at limit 1';
  const row = await db.first(sql, [source]);
  return row && String(row.version);
}

function toCatalogue({ version, source, fetched_at, document }: Row): Catalogue {
  const edition = {
    version: String(version),
    source: String(source),
    fetchedAt: Number(fetched_at),
  };
  return makeCatalogue(edition, readListings(String(document)));
}

/**
 * Keeps listings and puts them in force for a source, those that are in force already under the
 * version that they have. Catalogues that were replaced long ago are deleted.
 *
 * @returns The version in force; undefined when another process has put another one in force.
 */
export async function replaceCatalogue(
  db: Database,
  replacement: Replacement,
): Promise<string | undefined> {
  const { source, replaces, heldBack, etag, now, nextAt } = replacement;
  const document = JSON.stringify(replacement.listings);
  const version = versionOf(document, replaces, now);
  const [, taken] = await db.write([
    {
      sql: `insert into catalogues (version, source, fetched_at, document) values (?1, ?2, ?3, ?4)
        on conflict (version) do update set
          source = excluded.source, document = excluded.document, replaced_at = null`,
      args: [version, source, now, document],
    },
    {
      sql: `insert into price_sources (
          source, version, etag, next_at, held_back_count, held_back
        ) values (?1, ?2, ?3, ?4, ?5, ?6)
        on conflict (source) do update set
          version = excluded.version, etag = excluded.etag, next_at = excluded.next_at,
          held_back_count = excluded.held_back_count, held_back = excluded.held_back,
          failure = null
        where price_sources.version is ?7`,
      args: [
        ...[source, version, etag, nextAt, heldBack.length],
        ...[JSON.stringify(heldBack.slice(0, MAX_NAMED)), replaces],
      ],
    },
    ...retirement(now),
  ]);
  return taken!.changes > 0 ? version : undefined;
}

/** The name tells the day and the content; the same content is no new version. */
function versionOf(document: string, replaces: string | null, now: number): string {
  const digits = digestText(document).slice(0, VERSION_DIGITS);
  if (replaces?.endsWith(`.${digits}`)) return replaces;
  return `prices@${new Date(now).toISOString().slice(0, 10)}.${digits}`;
}

function retirement(now: number): Statement[] {
  return [
    {
      sql: `update catalogues set replaced_at = ?1 where replaced_at is null and version not in (
          select version from price_sources where version is not null
        )`,
      args: [now],
    },
    { sql: 'delete from catalogues where replaced_at < ?1', args: [now - KEEP_REPLACED_MS] },
  ];
}

/**
 * Notes an attempt that left in force what was.
 *
 * @param failure Why it came to nothing; null where the source says that nothing has changed.
 * @param nextAt When the source is due, Unix milliseconds.
 */
export async function noteAttempt(
  db: Database,
  source: string,
  failure: string | null,
  nextAt: number,
): Promise<void> {
  await db.write([
    {
      sql: `insert into price_sources (source, next_at, failure) values (?1, ?2, ?3)
        on conflict (source) do update set next_at = excluded.next_at, failure = excluded.failure`,
      args: [source, nextAt, failure],
    },
  ]);
}
