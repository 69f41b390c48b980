/** Events as they are read again: what happened in an org, the newest first. */

import type { EventType } from '../schema/events.ts';
import type { EventId } from '../schema/ids.ts';
import type { Row } from './client.ts';
import type { Org } from './org.ts';
import { type Page, readPage, type Window } from './page.ts';

/** Something that happened. */
export interface Event {
  readonly id: EventId;
  readonly type: EventType;
  /** As the schema of its type has it. */
  readonly data: object;
  /** Whether it tells of nothing and was made to try an endpoint. */
  readonly isTest: boolean;
  /** Unix milliseconds. */
  readonly createdAt: number;
}

/** Which events are listed; all of what is given must hold. */
export interface EventFilter {
  readonly types?: readonly EventType[] | null | undefined;
  /** Unix milliseconds, the first included and the last not. */
  readonly from?: number | null | undefined;
  readonly to?: number | null | undefined;
  /** Whether test events are listed too; they are not unless this is set. */
  readonly hasTests?: boolean | null | undefined;
}

/** A page of what happened in an org, the newest first. */
export function listEvents(org: Org, filter: EventFilter, window: Window): Promise<Page<Event>> {
  const { types = null, from = null, to = null, hasTests } = filter;
  const sql = `select * from events where org_id = ?1
    and (?2 is null or type in (select value from json_each(?2)))
    and (?3 is null or created_at >= ?3) and (?4 is null or created_at < ?4)
    and (?5 or only_webhook_id is null)`;
  const args = [types && JSON.stringify(types), from, to, hasTests ? 1 : 0];
  const listing = { sql, args, order: 'created_at', isDescending: true };
  return readPage(org, listing, window, toEvent);
}

/** The events of these ids, found by them as runs are. */
export async function readEvents(org: Org, ids: readonly EventId[]): Promise<Event[]> {
  const rows = await org.read(
    'select * from events where +org_id = ?1 and id in (select value from json_each(?2))',
    JSON.stringify(ids),
  );
  return rows.map(toEvent);
}

function toEvent(row: Row): Event {
  return {
    id: row.id as EventId,
    type: row.type as EventType,
    data: JSON.parse(String(row.data)) as object,
    isTest: row.only_webhook_id !== null,
    createdAt: Number(row.created_at),
  };
}
