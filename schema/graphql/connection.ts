/** Connections as Relay's specification has them, over the store's pages. */

import type { Page, Window } from './context.ts';
import { UserError } from './errors.ts';

/** The most nodes of one page, and how many it has unless told otherwise. */
const MAX_PAGE = 100;
const DEFAULT_PAGE = 25;

/** The arguments of every connection. */
export interface PageArguments {
  readonly first?: number | null | undefined;
  readonly last?: number | null | undefined;
  readonly after?: string | null | undefined;
  readonly before?: string | null | undefined;
}

/** What a connection adds to the cost of a query: itself, and each node it may have. */
export function costOf({ first, last }: PageArguments) {
  return { field: 1, multiplier: Math.min(Math.max(first ?? last ?? DEFAULT_PAGE, 1), MAX_PAGE) };
}

/**
 * Resolves a connection.
 *
 * @param read Reads a part of the list.
 * @throws {UserError} `INVALID` for a page size out of bounds, or both directions at once.
 */
export async function connect<T>(page: PageArguments, read: (window: Window) => Promise<Page<T>>) {
  const window = windowOf(page);
  const { items, hasMore } = await read(window);
  const { isBackward, after, before } = window;
  return {
    edges: items.map(({ cursor, node }) => ({ cursor, node })),
    pageInfo: {
      hasNextPage: isBackward ? before !== undefined : hasMore,
      hasPreviousPage: isBackward ? hasMore : after !== undefined,
      startCursor: items[0]?.cursor ?? null,
      endCursor: items.at(-1)?.cursor ?? null,
    },
  };
}

/** The part of a list that a page's arguments name. */
export function windowOf({ first, last, after, before }: PageArguments): Window {
  if (typeof first === 'number' && typeof last === 'number') {
    throw new UserError('INVALID', ['last'], 'Ask for the first or the last, not for both.');
  }
  const limit = first ?? last ?? DEFAULT_PAGE;
  if (limit < 1 || limit > MAX_PAGE) {
    const field = typeof last === 'number' ? 'last' : 'first';
    throw new UserError('INVALID', [field], `A page has 1 to ${MAX_PAGE} nodes.`);
  }
  return {
    limit,
    after: after ?? undefined,
    before: before ?? undefined,
    isBackward: typeof last === 'number',
  };
}
