/** Pages of long lists: keyset pagination, whose cursors stay true while rows come and go. */

import { Buffer } from 'node:buffer';
import type { Row, Value } from './client.ts';
import type { Org } from './org.ts';

/** Which part of a list is wanted. */
export interface Window {
  /** The most rows, at least 1. */
  readonly limit: number;
  /** Cursors of rows that the part lies after and before. */
  readonly after?: string | undefined;
  readonly before?: string | undefined;
  /** Whether the last rows of the part are wanted instead of the first. */
  readonly isBackward: boolean;
}

/** A part of a list, in the list's order. */
export interface Page<T> {
  readonly items: readonly { readonly cursor: string; readonly node: T }[];
  /** Whether the part goes on beyond the rows that were read, in the direction of reading. */
  readonly hasMore: boolean;
}

/** A list: its rows and their order. */
export interface Listing {
  /** A select of an org's rows with a column `id`; `?1` is the org. */
  readonly sql: string;
  /** Bound from `?2` on. */
  readonly args: readonly Value[];
  /** A column of the select that is never null; rows that are equal in it follow their ids. */
  readonly order: string;
  readonly isDescending?: boolean;
}

/** A cursor that this list has not made. */
export class InvalidCursor extends Error {
  override readonly name = 'InvalidCursor';
}

/**
 * Reads a part of a list in one statement.
 *
 * @throws {InvalidCursor}
 */
export async function readPage<T>(
  org: Org,
  listing: Listing,
  window: Window,
  toNode: (row: Row) => T,
): Promise<Page<T>> {
  const part = partOf(listing, window);
  return toPage(await org.read(part.cut(listing.sql), ...part.args), listing, window, toNode);
}

/** Lists of one kind, each below another parent. */
export interface Listings extends Omit<Listing, 'sql'> {
  /** The {@link Listing.sql} of one of them; `parent` stands for the id of its parent. */
  readonly sql: (parent: string) => string;
}

/**
 * Reads the same part of the lists of several parents in one statement, which looks at no more
 * rows than it gives.
 *
 * @returns the parts by parent.
 * @throws {InvalidCursor}
 */
export async function readPages<P extends string, T>(
  org: Org,
  listings: Listings,
  parents: readonly P[],
  window: Window,
  toNode: (row: Row) => T,
): Promise<Map<P, Page<T>>> {
  const part = partOf(listings, window);
  const cuts = parents.map((_, at) => {
    const parent = `?${part.args.length + 2 + at}`;
    return `select * from (select *, ${at} as parent_at from (${part.cut(listings.sql(parent))}))`;
  });
  const rows = await org.read(cuts.join(' union all '), ...part.args, ...parents);
  const byParent = Map.groupBy(rows, (row) => Number(row.parent_at));
  return new Map(
    parents.map((parent, at) => [parent, toPage(byParent.get(at) ?? [], listings, window, toNode)]),
  );
}

/** How a list is cut to a part of it, and with which values, bound from `?2` on. */
interface Part {
  readonly cut: (sql: string) => string;
  readonly args: readonly Value[];
}

function partOf(listing: Omit<Listing, 'sql'>, window: Window): Part {
  const { args, order, isDescending = false } = listing;
  const { limit, after, before, isBackward } = window;
  const bound: Value[] = [...args];
  const beyond = (cursor: string | undefined, isLater: boolean): string => {
    if (cursor === undefined) return '';
    bound.push(...decodeCursor(cursor));
    const first = bound.length;
    return `and (${order}, id) ${isLater !== isDescending ? '>' : '<'} (?${first}, ?${first + 1})`;
  };
  const within = `${beyond(after, true)} ${beyond(before, false)}`;
  const direction = isBackward !== isDescending ? 'desc' : 'asc';
  bound.push(limit + 1);
  const cut = (sql: string) => `select * from (${sql}) where true ${within}
    order by ${order} ${direction}, id ${direction} limit ?${bound.length + 1}`;
  return { cut, args: bound };
}

function toPage<T>(
  rows: readonly Row[],
  { order }: Omit<Listing, 'sql'>,
  { limit, isBackward }: Window,
  toNode: (row: Row) => T,
): Page<T> {
  const items = rows.slice(0, limit).map((row) => ({
    cursor: encodeCursor(row[order] as Value, String(row.id)),
    node: toNode(row),
  }));
  return { items: isBackward ? items.reverse() : items, hasMore: rows.length > limit };
}

function encodeCursor(value: Value, id: string): string {
  return Buffer.from(JSON.stringify([value, id])).toString('base64url');
}

const MAX_CURSOR_CHARS = 1_000;

function decodeCursor(cursor: string): [string | number, string] {
  try {
    if (cursor.length > MAX_CURSOR_CHARS) throw new InvalidCursor();
    const [value, id, ...rest] = JSON.parse(Buffer.from(cursor, 'base64url').toString());
    const isKey = typeof value === 'string' || Number.isFinite(value);
    if (isKey && typeof id === 'string' && rest.length === 0) return [value, id];
  } catch {}
  throw new InvalidCursor('The cursor is none that this list has given.');
}
