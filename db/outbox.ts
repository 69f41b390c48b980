/** The outbox: an event is written in the transaction of what it tells, so neither stands alone. */

import type { EventData, EventType } from '../schema/events.ts';
import type { Statement } from './client.ts';
import type { Org } from './org.ts';
import { newId } from './seal.ts';

/** When an event is written. */
export interface Telling {
  /** Told only once per org and type: a second event with the same key is left out. */
  readonly once?: string;
  /** Only when the statement before this one in the transaction changed a row. */
  readonly ifChanged?: boolean;
}

/** The statement that announces what happened; put it into the transaction of what it tells. */
export function announce<T extends EventType>(
  org: Org,
  type: T,
  data: EventData<T>,
  now: number,
  { once, ifChanged = false }: Telling = {},
): Statement {
  return org.statement(
    `insert into events (org_id, id, type, data, once, created_at)
     select ?1, ?2, ?3, ?4, ?5, ?6 where ${ifChanged ? 'changes() > 0' : 'true'}
     on conflict do nothing`,
    newId('event', now),
    type,
    JSON.stringify(data),
    once ?? null,
    now,
  );
}
