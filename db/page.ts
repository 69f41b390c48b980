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
  { sql, args, order, isDescending = false }: Listing,
  { limit, after, before, isBackward }: Window,
  toNode: (row: Row) => T,
): Promise<Page<T>> {
  const bounds: Value[] = [];
  const beyond = (cursor: string | undefined, isLater: boolean): string => {
    if (cursor === undefined) return '';
    bounds.push(...decodeCursor(cursor));
    const first = args.length + bounds.length;
    return `and (${order}, id) ${isLater !== isDescending ? '>' : '<'} (?${first}, ?${first + 1})`;
  };
  const within = `${beyond(after, true)} ${beyond(before, false)}`;
  const direction = isBackward !== isDescending ? 'desc' : 'asc';
  const rows = await org.read(
    `select * from (${sql}) where true ${within}
     order by ${order} ${direction}, id ${direction} limit ?${args.length + bounds.length + 2}`,
    ...args,
    ...bounds,
    limit + 1,
  );
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
