/** Turns: reads of a file are done at once, and calls must not wait for many of them in a row. */

import type { Database } from '../db/client.ts';

/** Lets whoever waits for the process have their turn. */
export function breathe(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** The same database for one request, whose reads are done one after another, with turns between. */
export function takeTurns(db: Database): Database {
  let last: Promise<unknown> = Promise.resolve();
  const inTurn = <T>(read: () => Promise<T>): Promise<T> => {
    const done = last.then(breathe).then(read);
    last = done.catch(() => {});
    return done;
  };
  return {
    ...db,
    read: (sql, args) => inTurn(() => db.read(sql, args)),
    first: (sql, args) => inTurn(() => db.first(sql, args)),
  };
}
