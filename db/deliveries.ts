/** Deliveries: what is due to endpoints, leased to one process at a time, and what came of it. */

import { Refusal } from '../schema/errors.ts';
import { type EventType, exampleOf, formatEnvelope } from '../schema/events.ts';
import type { DeliveryId, EventId, OrgId, WebhookId } from '../schema/ids.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Database, Row, Statement, Value } from './client.ts';
import { forOrg, type Org } from './org.ts';
import { announce } from './outbox.ts';
import { type Listing, type Page, readPage, readPages, type Window } from './page.ts';
import { newId, type Sealed, type WrappedKey } from './seal.ts';
import {
  abandonDeliveries,
  abandonRest,
  BATCH,
  findWebhook,
  pause,
  type Webhook,
} from './webhooks.ts';

/** At most this many deliveries to one endpoint are under way at once, over all processes. */
const PER_WEBHOOK = 4;
/** And to one that nothing has got through to for {@link SLOWED_MS}. */
const PER_FAILING_WEBHOOK = 1;
const SLOWED_MS = 60_000;
/** An org with this many under way gets one for each endpoint: slow ones leave room for the rest. */
const CROWDED = 32;
/** At most this many deliveries of one org are under way at once, so that others find room. */
export const PER_ORG = 2 * CROWDED;
/** An endpoint that nothing has got through to for this long is disabled at the next dead letter. */
const FAILING_MS = 5 * 86_400_000;
/** The most events that one replay sends again. */
export const MAX_REPLAYED = 10_000;

/** A delivery that this process alone may send until the lease ends. */
export interface Due {
  readonly id: DeliveryId;
  readonly orgId: OrgId;
  readonly webhookId: WebhookId;
  readonly eventId: EventId;
  /** The attempt that is due, counted from 1. */
  readonly attempt: number;
  readonly leasedBy: string;
  /** Unix milliseconds, as are all times here. */
  readonly leasedUntil: number;
  readonly url: string;
  /** Who gave the URL, and so reads what is sent there, as `actorName` calls him; if it was noted. */
  readonly urlBy: string | null;
  readonly eventType: EventType;
  readonly body: string;
  readonly orgKey: WrappedKey;
  /** The current secret, then the one before it while it still signs. */
  readonly secrets: readonly Sealed[];
}

/** Who claims, and for how long. */
export interface Claim {
  readonly by: string;
  readonly now: number;
  readonly leaseMs: number;
  /** The most deliveries to claim. */
  readonly limit: number;
}

/** How many deliveries to the endpoint `w` are under way, and how many of its org. */
const BUSY = `(
  select count(*) from deliveries l
  where l.webhook_id = w.id and l.leased_by is not null and l.next_at > ?1
)`;
const BUSY_OF_ORG = `(
  select count(*) from webhooks o
  join deliveries l indexed by deliveries_leased on l.webhook_id = o.id and l.leased_by is not null
  where o.org_id = w.org_id and l.next_at > ?1
)`;
const roomOf = (busyOfOrg: string) => `case ${busyOfOrg} / ${CROWDED}
  when 0 then iif(w.failing_since <= ?1 - ${SLOWED_MS}, ${PER_FAILING_WEBHOOK}, ${PER_WEBHOOK})
  when 1 then 1
  else 0
end`;

/**
 * What is due, each with its place among those of its endpoint, then of its org: what is under way
 * comes before it. An endpoint's own few rows are looked up one endpoint at a time, so that no
 * backlog is read over.
 */
const DUE = `with busy as materialized (
  select webhook_id, org_id, count(*) as count from deliveries indexed by deliveries_leased
  where leased_by is not null and next_at > ?1 group by webhook_id
), busy_orgs as materialized (
  select org_id, sum(count) as count from busy group by org_id
), free as materialized (
  select w.id, w.org_id, coalesce(b.count, 0) as busy, coalesce(o.count, 0) as busy_of_org,
    ${roomOf('coalesce(o.count, 0)')} as room
  from webhooks w left join busy b on b.webhook_id = w.id left join busy_orgs o using (org_id)
  where w.status = 'enabled' and busy < room
), due as (
  select d.id, f.org_id, d.next_at, f.busy_of_org, f.room,
    f.busy + row_number() over (partition by f.id order by d.next_at) as place
  from free f cross join deliveries d on d.id in (
    select id from deliveries
    where webhook_id = f.id and status = 'pending' and next_at <= ?1
    order by next_at limit ${PER_WEBHOOK}
  )
), placed as (
  select id, next_at,
    busy_of_org + row_number() over (partition by org_id order by place, next_at) as place
  from due where place <= room
)`;

/**
 * Claims what is due: first for orgs and endpoints that have the fewest under way, then the longest
 * due, and no more per org and per endpoint than may be under way at once. A lease that has run out
 * is due again: its process is gone.
 */
export async function claimDeliveries(db: Database, claim: Claim): Promise<Due[]> {
  const { now, limit } = claim;
  const rows = await db.read(
    `${DUE}
     select d.id, d.org_id, d.webhook_id, d.next_at, d.attempts,
       w.url, w.url_by, w.secret, iif(w.previous_until > ?1, w.previous_secret, null) as previous_secret,
       k.wrapped, e.id as event_id, e.type, e.data, e.created_at, e.only_webhook_id
     from (
       select id, place from placed where place <= ${PER_ORG} order by place, next_at limit ?2
     ) p
     cross join deliveries d on d.id = p.id
     cross join webhooks w on w.id = d.webhook_id
     cross join events e on e.id = d.event_id
     cross join org_keys k on k.org_id = d.org_id
     order by p.place, d.next_at`,
    [now, limit],
  );
  if (rows.length === 0) return [];
  const results = await db.write(rows.map((row) => leaseStatement(row, claim)));
  return rows.filter((_, at) => results[at]!.changes > 0).map((row) => toDue(row, claim));
}

/** Takes the lease unless another process was faster, or the endpoint or its org has become busy. */
function leaseStatement(row: Row, { by, now, leaseMs }: Claim): Statement {
  return {
    sql: `update deliveries set leased_by = ?4, next_at = ?5
      where org_id = ?3 and id = ?2 and status = 'pending' and next_at = ?6 and exists (
        select 1 from webhooks w
        where w.id = deliveries.webhook_id and w.status = 'enabled'
          and ${BUSY} < ${roomOf(BUSY_OF_ORG)}
      )`,
    args: [now, row.id!, row.org_id!, by, now + leaseMs, row.next_at!],
  };
}

function toDue(row: Row, { by, now, leaseMs }: Claim): Due {
  const previous = row.previous_secret === null ? [] : [String(row.previous_secret)];
  return {
    id: row.id as DeliveryId,
    orgId: row.org_id as OrgId,
    webhookId: row.webhook_id as WebhookId,
    eventId: row.event_id as EventId,
    attempt: Number(row.attempts) + 1,
    leasedBy: by,
    leasedUntil: now + leaseMs,
    url: String(row.url),
    urlBy: row.url_by as string | null,
    eventType: row.type as EventType,
    body: bodyOf(row),
    orgKey: String(row.wrapped),
    secrets: [String(row.secret), ...previous],
  };
}

function bodyOf(row: Row): string {
  return formatEnvelope({
    id: String(row.event_id),
    type: row.type as EventType,
    orgId: String(row.org_id),
    createdAt: Number(row.created_at),
    data: String(row.data),
    isTest: row.only_webhook_id !== null,
  });
}

/** What came of one attempt. */
export interface Attempt {
  readonly startedAt: number;
  readonly durationMs: number;
  /** `delivered`, `http_<status>`, or why there was no answer. */
  readonly outcome: string;
  readonly requestHeaders: Readonly<Record<string, string>>;
  readonly responseStatus: number | null;
  readonly responseHeaders: Readonly<Record<string, string>> | null;
  /** The beginning of it. */
  readonly responseBody: string | null;
}

/** How a delivery goes on after an attempt. */
export type Next =
  | { readonly status: 'delivered' }
  | { readonly status: 'pending'; readonly at: number }
  /** Given up: at the end of the schedule, or because the endpoint said that it is gone. */
  | { readonly status: 'dead'; readonly gone: boolean };

/**
 * Writes what came of an attempt, gives the lease back, and disables an endpoint that is gone or
 * that nothing gets through to. Without effect when the lease has passed to another process.
 *
 * @returns whether it was written.
 */
export async function finishDelivery(
  db: Database,
  due: Due,
  attempt: Attempt,
  next: Next,
): Promise<boolean> {
  const org = forOrg(db, due.orgId);
  const endedAt = attempt.startedAt + attempt.durationMs;
  const [ended, , , , , abandoned] = await org.write(
    endStatement(org, due, attempt, next, endedAt),
    attemptStatement(org, due, attempt),
    healthStatement(org, due, next, endedAt),
    ...(next.status === 'dead' ? disabling(org, due, next.gone, endedAt) : []),
  );
  if (abandoned) await abandonRest(org, due.webhookId, endedAt, abandoned);
  return ended!.changes > 0;
}

function endStatement(org: Org, due: Due, { outcome }: Attempt, next: Next, now: number) {
  return org.statement(
    `update deliveries set status = ?5, attempts = ?6, next_at = coalesce(?7, next_at),
       leased_by = null, reason = ?8, ended_at = ?9
     where org_id = ?1 and id = ?2 and leased_by = ?3 and next_at = ?4`,
    due.id,
    due.leasedBy,
    due.leasedUntil,
    next.status,
    due.attempt,
    next.status === 'pending' ? next.at : null,
    next.status === 'dead' ? outcome : null,
    next.status === 'pending' ? null : now,
  );
}

function attemptStatement(org: Org, due: Due, attempt: Attempt): Statement {
  return org.statement(
    `insert into delivery_attempts (
       org_id, delivery_id, number, started_at, duration_ms, outcome,
       request_headers, response_status, response_headers, response_body
     ) select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10 where changes() > 0`,
    due.id,
    due.attempt,
    attempt.startedAt,
    attempt.durationMs,
    attempt.outcome,
    JSON.stringify(attempt.requestHeaders),
    attempt.responseStatus,
    attempt.responseHeaders && JSON.stringify(attempt.responseHeaders),
    attempt.responseBody,
  );
}

function healthStatement(org: Org, { webhookId }: Due, next: Next, now: number): Statement {
  return org.statement(
    `update webhooks set failing_since = ?3
     where org_id = ?1 and id = ?2 and changes() > 0 and (?3 is null) <> (failing_since is null)`,
    webhookId,
    next.status === 'delivered' ? null : now,
  );
}

/** An answer that the endpoint is gone tells nothing of where it has moved to meanwhile. */
function disabling(org: Org, { webhookId, url }: Due, gone: boolean, now: number): Statement[] {
  const reason = gone ? 'gone' : 'failing';
  return [
    org.statement(
      `update webhooks set status = 'disabled', disabled_reason = ?3, updated_at = ?4
       where org_id = ?1 and id = ?2 and status = 'enabled'
         and iif(?5, url = ?7, failing_since <= ?6)`,
      webhookId,
      reason,
      now,
      gone ? 1 : 0,
      now - FAILING_MS,
      url,
    ),
    announce(org, 'webhook.disabled', { webhookId, reason }, now, { ifChanged: true }),
    abandonDeliveries(org, webhookId, now),
  ];
}

/** Gives a lease back unused: the delivery is due at once, and no attempt is counted. */
export async function releaseDelivery(db: Database, due: Due, now: number): Promise<void> {
  const org = forOrg(db, due.orgId);
  await org.write(
    org.statement(
      `update deliveries set leased_by = null, next_at = ?5
       where org_id = ?1 and id = ?2 and leased_by = ?3 and next_at = ?4`,
      due.id,
      due.leasedBy,
      due.leasedUntil,
      now,
    ),
  );
}

/** A delivery as the log shows it. */
export interface Delivery {
  readonly id: DeliveryId;
  readonly webhookId: WebhookId;
  readonly eventId: EventId;
  readonly eventType: EventType;
  readonly cause: 'event' | 'test' | 'redelivery' | 'replay';
  readonly status: 'pending' | 'delivered' | 'dead';
  /** Why it is dead: the outcome of the last attempt, or `webhook_disabled`. */
  readonly reason: string | null;
  readonly attempts: number;
  /** When the next attempt is due; null when there is none. */
  readonly nextAt: number | null;
  readonly createdAt: number;
  readonly endedAt: number | null;
}

const DELIVERY = `select d.*, e.type, e.data, e.created_at as event_at, e.only_webhook_id
  from deliveries d join events e on e.id = d.event_id and e.org_id = d.org_id`;

/** Which deliveries a page is of; all of what is given must hold. */
export interface DeliverySearch {
  readonly webhookId?: WebhookId | null | undefined;
  readonly eventId?: EventId | null | undefined;
  readonly eventType?: EventType | null | undefined;
  readonly status?: Delivery['status'] | null | undefined;
  readonly cause?: Delivery['cause'] | null | undefined;
  /** Unix milliseconds at which it became due, the first included and the last not. */
  readonly from?: number | null | undefined;
  readonly to?: number | null | undefined;
}

/** A page of an org's deliveries, the newest first. */
export function pageDeliveries(
  org: Org,
  search: DeliverySearch,
  window: Window,
): Promise<Page<Delivery>> {
  const { webhookId = null } = search;
  const of = webhookId === null ? '?2 is null' : 'd.webhook_id = ?2';
  return readPage(org, listingOf(search, of, [webhookId]), window, toDelivery);
}

/** Pages of the deliveries of several endpoints, each the newest first, in one statement. */
export function pageDeliveriesOf(
  org: Org,
  webhookIds: readonly WebhookId[],
  search: Omit<DeliverySearch, 'webhookId'>,
  window: Window,
): Promise<Map<WebhookId, Page<Delivery>>> {
  const listing = listingOf(search, '?2 is null', [null]);
  const sql = (parent: string) => `${listing.sql} and d.webhook_id = ${parent}`;
  return readPages(org, { ...listing, sql }, webhookIds, window, toDelivery);
}

/** The list of what is searched for, beside a condition on the endpoint that `args` are for. */
function listingOf(search: Omit<DeliverySearch, 'webhookId'>, of: string, args: Value[]): Listing {
  const { eventId, eventType, status, cause, from, to } = search;
  const sought = [eventId, eventType, status, cause, from, to].map((value) => value ?? null);
  const sql = `${DELIVERY} where d.org_id = ?1 and ${of}
    and (?3 is null or d.event_id = ?3) and (?4 is null or e.type = ?4)
    and (?5 is null or d.status = ?5) and (?6 is null or d.cause = ?6)
    and (?7 is null or d.created_at >= ?7) and (?8 is null or d.created_at < ?8)`;
  return { sql, args: [...args, ...sought], order: 'id', isDescending: true };
}

/** The deliveries of these ids. */
export async function readDeliveries(org: Org, ids: readonly DeliveryId[]): Promise<Delivery[]> {
  const rows = await org.read(
    `${DELIVERY} where d.org_id = ?1 and d.id in (select value from json_each(?2))`,
    JSON.stringify(ids),
  );
  return rows.map(toDelivery);
}

/** The attempts of each of these deliveries, the first one first. */
export async function readAttempts(
  org: Org,
  ids: readonly DeliveryId[],
): Promise<Map<DeliveryId, DeliveryLog['log']>> {
  const rows = await org.read(
    `select * from delivery_attempts
     where org_id = ?1 and delivery_id in (select value from json_each(?2)) order by number`,
    JSON.stringify(ids),
  );
  const byDelivery = Map.groupBy(rows, (row) => row.delivery_id as DeliveryId);
  return new Map(ids.map((id) => [id, (byDelivery.get(id) ?? []).map(toAttempt)]));
}

/** A delivery with the body that is sent and all attempts, the oldest first. */
export interface DeliveryLog extends Delivery {
  readonly body: string;
  readonly log: readonly (Attempt & { readonly number: number })[];
}

/** A delivery by its id, with its log. */
export async function readDelivery(org: Org, id: DeliveryId): Promise<DeliveryLog | undefined> {
  const row = await org.first(`${DELIVERY} where d.org_id = ?1 and d.id = ?2`, id);
  if (!row) return undefined;
  const attempts = await org.read(
    'select * from delivery_attempts where org_id = ?1 and delivery_id = ?2 order by number',
    id,
  );
  const body = bodyOf({ ...row, created_at: row.event_at! });
  return { ...toDelivery(row), body, log: attempts.map(toAttempt) };
}

/**
 * Sends an event to its endpoint again, as a delivery of its own.
 *
 * @returns the new delivery; undefined when there is no such delivery.
 * @throws {Refusal} `invalid_request` when the endpoint is disabled.
 */
export async function redeliver(
  org: Org,
  actor: Actor,
  id: DeliveryId,
): Promise<DeliveryId | undefined> {
  const former = await readDelivery(org, id);
  if (!former) return undefined;
  requireEnabled((await findWebhook(org, former.webhookId))?.status);
  const now = Date.now();
  const again = newId('delivery', now);
  await org.write(
    org.statement(
      `insert into deliveries (
         org_id, id, webhook_id, event_id, cause, next_at, created_at
       ) select ?1, ?2, webhook_id, event_id, 'redelivery', ?4, ?4 from deliveries
       where org_id = ?1 and id = ?3`,
      again,
      id,
      now,
    ),
    auditEntry(org, actor, 'webhook.redeliver', id, { delivery: again }),
  );
  return again;
}

/** A stretch of time, its end not included. */
export interface Stretch {
  readonly from: number;
  readonly to: number;
}

/** What a replay has come to. */
export interface Replayed {
  /** How many events are due again. */
  readonly count: number;
  /** From when on to replay the rest of the window; null when there is no more. */
  readonly nextFrom: number | null;
}

/**
 * Sends an endpoint everything again that happened in a window and that it subscribes to, the
 * oldest first and at most {@link MAX_REPLAYED} events, except what is still due to it. This takes
 * many short transactions, between which calls go on; the first has the entry of the audit trail.
 *
 * @throws {Refusal} `invalid_request` when the endpoint is disabled.
 */
export async function replayEvents(
  org: Org,
  actor: Actor,
  { id, status }: Pick<Webhook, 'id' | 'status'>,
  { from, to }: Stretch,
): Promise<Replayed> {
  requireEnabled(status);
  await org.write(auditEntry(org, actor, 'webhook.redeliver', id, { from, to }));
  let count = 0;
  let next: Position | undefined = { at: from, id: '' };
  while (next && count <= MAX_REPLAYED - BATCH) {
    const happened = await readStretch(org, id, next, to);
    const due = happened.slice(0, BATCH).filter((event) => event.is_due === 1);
    if (due.length > 0) count += await replay(org, id, due);
    const rest: Row | undefined = happened[BATCH];
    next = rest && { at: rest.created_at as number, id: rest.id as EventId };
    if (next) await pause();
  }
  return { count, nextFrom: next?.at ?? null };
}

/** Where among an org's events: when the first of the rest happened, and which it is. */
interface Position {
  readonly at: number;
  readonly id: EventId | '';
}

/** The next events, whether or not they are to be sent, and the one after them. */
function readStretch(org: Org, id: WebhookId, from: Position, to: number) {
  return org.read(
    `select e.id, e.created_at,
       e.only_webhook_id is null
         and exists (select 1 from json_each(w.events) where value in ('*', e.type))
         and not exists (
           select 1 from deliveries p indexed by deliveries_of_event
           where p.event_id = e.id and p.webhook_id = w.id and p.status = 'pending'
         ) as is_due
     from webhooks w join events e on e.org_id = w.org_id
     where w.org_id = ?1 and w.id = ?2 and e.created_at >= ?3 and e.created_at < ?5
       and (e.created_at > ?3 or e.id >= ?4)
     order by e.created_at, e.id limit ${BATCH + 1}`,
    id,
    from.at,
    from.id,
    to,
  );
}

/** Has events sent again, unless another replay was faster. @returns how many. */
async function replay(org: Org, id: WebhookId, events: readonly Row[]): Promise<number> {
  const now = Date.now();
  const [inserted] = await org.write(
    org.statement(
      `insert into deliveries (org_id, id, webhook_id, event_id, cause, next_at, created_at)
       select ?1, 'dlv_' || ?3 || lower(hex(randomblob(8))), w.id, e.value, 'replay', ?4, ?4
       from webhooks w, json_each(?5) e
       where w.org_id = ?1 and w.id = ?2 and w.status = 'enabled' and not exists (
         select 1 from deliveries p indexed by deliveries_of_event
         where p.event_id = e.value and p.webhook_id = w.id and p.status = 'pending'
       )`,
      id,
      timeDigits(newId('delivery', now)),
      now,
      JSON.stringify(events.map((event) => event.id)),
    ),
  );
  return inserted!.changes;
}

/** The digits of an id that tell its time. */
function timeDigits(id: DeliveryId): string {
  return id.slice('dlv_'.length, 'dlv_'.length + 10);
}

/**
 * Sends an endpoint an event of a type that tells of nothing and says so, whatever it subscribes to.
 *
 * @throws {Refusal} `invalid_request` when the endpoint is disabled.
 */
export async function sendTestEvent(
  org: Org,
  actor: Actor,
  webhook: Webhook,
  type: EventType,
): Promise<EventId> {
  requireEnabled(webhook.status);
  const now = Date.now();
  const id = newId('event', now);
  await org.write(
    org.statement(
      `insert into events (org_id, id, type, data, created_at, only_webhook_id)
       values (?1, ?2, ?3, ?4, ?5, ?6)`,
      id,
      type,
      JSON.stringify(exampleOf(type)),
      now,
      webhook.id,
    ),
    auditEntry(org, actor, 'webhook.test', webhook.id, { event: id, type }),
  );
  return id;
}

function requireEnabled(status: Webhook['status'] | undefined): void {
  if (status === 'enabled') return;
  throw new Refusal('invalid_request', 'The webhook is disabled: enable it first.');
}

function toDelivery(row: Row): Delivery {
  return {
    id: row.id as DeliveryId,
    webhookId: row.webhook_id as WebhookId,
    eventId: row.event_id as EventId,
    eventType: row.type as EventType,
    cause: row.cause as Delivery['cause'],
    status: row.status as Delivery['status'],
    reason: row.reason as string | null,
    attempts: row.attempts as number,
    nextAt: row.status === 'pending' ? (row.next_at as number) : null,
    createdAt: row.created_at as number,
    endedAt: row.ended_at as number | null,
  };
}

function toAttempt(row: Row): DeliveryLog['log'][number] {
  const headers = (text: Row[string]) => JSON.parse(String(text)) as Record<string, string>;
  return {
    number: row.number as number,
    startedAt: row.started_at as number,
    durationMs: row.duration_ms as number,
    outcome: String(row.outcome),
    requestHeaders: headers(row.request_headers!),
    responseStatus: row.response_status as number | null,
    responseHeaders: row.response_headers === null ? null : headers(row.response_headers!),
    responseBody: row.response_body as string | null,
  };
}
