/** The outbox: an event is written in the transaction of what it tells, so neither stands alone. */

import type { EventData, EventType } from '../schema/events.ts';
import type { Database, Statement } from './client.ts';
import type { Org } from './org.ts';
import { newId } from './seal.ts';

/** When an event is written. */
export interface Telling {
  /** Told only once per org and type: a second event with the same key is left out. */
  readonly once?: string;
  /** Only when the statement before this one in the transaction changed a row. */
  readonly ifChanged?: boolean;
}

const insertion = (
  condition: string,
) => `insert into events (org_id, id, type, data, once, created_at)
     select ?1, ?2, ?3, ?4, ?5, ?6 where ${condition}
     on conflict do nothing`;

const ALWAYS = insertion('true');
const IF_CHANGED = insertion('changes() > 0');

/**
 * The statement that announces what happened; put it into the transaction of what it tells. A
 * trigger makes it due to every endpoint that has subscribed, in the same transaction.
 */
export function announce<T extends EventType>(
  org: Org,
  type: T,
  data: EventData<T>,
  now: number,
  { once, ifChanged = false }: Telling = {},
): Statement {
  return org.statement(
    ifChanged ? IF_CHANGED : ALWAYS,
    newId('event', now),
    type,
    JSON.stringify(data),
    once ?? null,
    now,
  );
}

/** What is done about writes that give something to deliver. */
export interface Watcher {
  /** Something was written that is due now. */
  onEvent(): void;
  /** Money was settled, of which a trigger may have raised an alert. Called often: be quick. */
  onSettlement(): void;
}

/** The same database, which also says when it has been given something to deliver. */
export function watchOutbox(db: Database, { onEvent, onSettlement }: Watcher): Database {
  return {
    ...db,
    write(statements) {
      const written = db.write(statements);
      if (statements.some(isSettlement)) written.then(onSettlement, () => {});
      if (statements.some(isDue)) {
        const tell = (results: Awaited<typeof written>) => {
          if (results.some(({ changes }, at) => changes > 0 && isDue(statements[at]!))) {
            onEvent();
          }
        };
        written.then(tell, () => {});
      }
      return written;
    },
    merge(merge, item) {
      const written = db.merge(merge, item);
      written.then(onSettlement, () => {});
      return written;
    },
  };
}

function isSettlement({ sql }: Statement): boolean {
  return sql.startsWith('update steps set settled_at');
}

/** Whether a statement writes an event, or sends one again. */
function isDue({ sql }: Statement): boolean {
  return sql.startsWith('insert into events') || sql.startsWith('insert into deliveries');
}
