/** Webhook endpoints: where an org is told of events, and the secrets that prove who tells it. */

import { Refusal } from '../schema/errors.ts';
import type { OrgId, WebhookId } from '../schema/ids.ts';
import { formatSecret, SECRET_BYTES } from '../schema/signature.ts';
import { type Actor, actorName, auditEntry } from './audit.ts';
import { DatabaseError, type Result, type Row, type Statement } from './client.ts';
import type { Org } from './org.ts';
import { type Page, readPage, type Window } from './page.ts';
import {
  checkSeals,
  hashToken,
  type MasterKeys,
  newId,
  randomEntropy,
  type SealContext,
  type Sealed,
  seal,
} from './seal.ts';

/** An endpoint as it stands, without its secrets. */
export interface Webhook {
  readonly id: WebhookId;
  readonly url: string;
  readonly description: string;
  /** Types of events, or `*` alone. */
  readonly events: readonly string[];
  readonly status: 'enabled' | 'disabled';
  /** `gone`, `failing` or `by_hand`. */
  readonly disabledReason: string | null;
  /** Since when nothing has got through; null after a success. Unix milliseconds, as all times. */
  readonly failingSince: number | null;
  /** Until when the secret before the present one signs too. */
  readonly previousUntil: number | null;
  readonly createdBy: string;
  readonly createdAt: number;
  readonly updatedAt: number;
}

/** What an endpoint is made with; its URL has been judged and its events validated. */
export interface NewWebhook {
  readonly url: string;
  readonly events: readonly string[];
  readonly description: string;
}

/** What can be changed of an endpoint. */
export type WebhookChange = Partial<NewWebhook> & { readonly status?: Webhook['status'] };

/** An endpoint's secret, to be shown once. */
export interface ShownSecret {
  readonly id: WebhookId;
  /** `whsec_` and the base64 of the 32 bytes of the HMAC's key. */
  readonly secret: string;
}

/** The most endpoints of an org. */
export const MAX_WEBHOOKS = 100;
/** The most deliveries of one transaction: it takes a few milliseconds, in which no call can go on. */
export const BATCH = 200;

/** Where a webhook's secrets belong; both columns share it, since one moves to the other. */
export function webhookSecretContext(org: OrgId, id: WebhookId): SealContext {
  return { org, table: 'webhooks', column: 'secret', row: id };
}

/** Which endpoints of an org are listed. */
export interface WebhookFilter {
  readonly status?: Webhook['status'] | null | undefined;
  /** Those that get events of this type. */
  readonly event?: string | null | undefined;
}

/** A page of an org's endpoints, the oldest first. */
export function pageWebhooks(
  org: Org,
  { status = null, event = null }: WebhookFilter,
  window: Window,
): Promise<Page<Webhook>> {
  const sql = `select * from webhooks where org_id = ?1 and (?2 is null or status = ?2)
    and (?3 is null or exists (select 1 from json_each(events) where value in ('*', ?3)))`;
  return readPage(org, { sql, args: [status, event], order: 'created_at' }, window, toWebhook);
}

/** The endpoints of these ids. */
export async function readWebhooks(org: Org, ids: readonly WebhookId[]): Promise<Webhook[]> {
  const rows = await org.read(
    'select * from webhooks where org_id = ?1 and id in (select value from json_each(?2))',
    JSON.stringify(ids),
  );
  return rows.map(toWebhook);
}

/** The endpoint that has this id, this URL, or this secret, be it the one before a rotation. */
export async function findWebhook(org: Org, text: string): Promise<Webhook | undefined> {
  const row = await org.first(
    `select * from webhooks where org_id = ?1
       and (id = ?2 or url = ?2 or secret_hash = ?3 or previous_hash = ?3)`,
    text,
    hashToken(text),
  );
  return row && toWebhook(row);
}

/**
 * Makes an endpoint.
 *
 * @throws {Refusal} `invalid_request` when the org has one of this URL, or too many.
 * @throws {SealError} when the org's key is gone, or has sealed as often as it may.
 */
export async function createWebhook(
  org: Org,
  master: MasterKeys,
  actor: Actor,
  wanted: NewWebhook,
): Promise<ShownSecret> {
  const id = newId('webhook');
  const { secret, sealed, count } = await newSecret(org, master, id);
  const { url, events, description } = wanted;
  const now = Date.now();
  const insertion = org.statement(
    `insert into webhooks (
       org_id, id, url, description, events, secret, secret_hash, created_by, url_by, created_at,
       updated_at
     ) select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8, ?9, ?9
     where (select count(*) from webhooks where org_id = ?1) < ${MAX_WEBHOOKS}`,
    id,
    url,
    description,
    JSON.stringify(events),
    sealed,
    hashToken(secret),
    actorName(actor),
    now,
  );
  const circumstances = { ifChanged: true };
  const entry = auditEntry(org, actor, 'webhook.create', id, { url, events }, circumstances);
  const [, inserted] = await writeUnique(org, count, insertion, entry);
  if (inserted!.changes > 0) return { id, secret };
  throw new Refusal('invalid_request', `An org can have at most ${MAX_WEBHOOKS} webhooks.`);
}

/**
 * Changes what is given of an endpoint and leaves the rest as it is by then; enabling it again
 * forgets its failures.
 *
 * @returns whether there is such an endpoint.
 * @throws {Refusal} `invalid_request` when another endpoint has the URL.
 */
export async function updateWebhook(
  org: Org,
  actor: Actor,
  id: WebhookId,
  change: WebhookChange,
): Promise<boolean> {
  const present = await findWebhook(org, id);
  if (!present) return false;
  const { status } = change;
  const now = Date.now();
  // What was due when it was disabled is given up by now, even if the process that did so has ended.
  if (status === 'enabled') await abandonRest(org, id, now);
  const before = Object.fromEntries(
    Object.keys(change).map((key) => [key, present[key as keyof WebhookChange]]),
  );
  const circumstances = { before, ifChanged: true };
  const entry = auditEntry(org, actor, 'webhook.update', id, change, circumstances);
  const ended = status === 'disabled' ? [abandonDeliveries(org, id, now)] : [];
  const update = updateStatement(org, actor, id, change, now);
  const [updated, , abandoned] = await writeUnique(org, update, entry, ...ended);
  if (abandoned) await abandonRest(org, id, now, abandoned);
  return updated!.changes > 0;
}

function updateStatement(
  org: Org,
  actor: Actor,
  id: WebhookId,
  change: WebhookChange,
  now: number,
): Statement {
  const { url = null, events, description = null, status = null } = change;
  return org.statement(
    `update webhooks set url_by = iif(?3 <> url, ?8, url_by),
       url = coalesce(?3, url), events = coalesce(?4, events),
       description = coalesce(?5, description), status = coalesce(?6, status), updated_at = ?7,
       disabled_reason = case
         when ?6 = 'enabled' then null
         when ?6 = 'disabled' and status = 'enabled' then 'by_hand'
         else disabled_reason
       end,
       failing_since = iif(status = 'disabled' and ?6 = 'enabled', null, failing_since)
     where org_id = ?1 and id = ?2`,
    id,
    url,
    events ? JSON.stringify(events) : null,
    description,
    status,
    now,
    actorName(actor),
  );
}

/** The statement by which what is due to a disabled endpoint is given up, as far as it fits. */
export function abandonDeliveries(org: Org, id: WebhookId, now: number): Statement {
  return org.statement(
    `update deliveries set
       status = 'dead', reason = 'webhook_disabled', leased_by = null, ended_at = ?3
     where org_id = ?1 and id in (
       select id from deliveries where webhook_id = ?2 and status = 'pending' limit ${BATCH}
     ) and exists (select 1 from webhooks where org_id = ?1 and id = ?2 and status = 'disabled')`,
    id,
    now,
  );
}

/** Gives up what did not fit, in further transactions; none of it is sent meanwhile. */
export async function abandonRest(
  org: Org,
  id: WebhookId,
  now: number,
  before: Pick<Result, 'changes'> = { changes: BATCH },
): Promise<void> {
  for (let { changes } = before; changes === BATCH; ) {
    await pause();
    const [abandoned] = await org.write(abandonDeliveries(org, id, now));
    changes = abandoned!.changes;
  }
}

/** Lets what waits go on between two transactions of long work. */
export function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

/**
 * Deletes an endpoint with everything that was delivered to it. The deliveries go first, many at a
 * time, while nothing more is sent to it; the rest goes in the transaction that it ends with.
 *
 * @returns whether it was there.
 */
export async function deleteWebhook(org: Org, actor: Actor, id: WebhookId): Promise<boolean> {
  const present = await findWebhook(org, id);
  if (!present) return false;
  const { url, events } = present;
  const before = { url, events };
  await org.write(
    org.statement(
      `update webhooks set status = 'disabled', disabled_reason = 'by_hand'
       where org_id = ?1 and id = ?2 and status = 'enabled'`,
      id,
    ),
  );
  while (await deleteSome(org, id)) await pause();
  const [, , deleted] = await org.write(
    ...deletion(org, id, -1),
    org.statement('delete from webhooks where org_id = ?1 and id = ?2', id),
    auditEntry(org, actor, 'webhook.delete', id, undefined, { before, ifChanged: true }),
  );
  return deleted!.changes > 0;
}

/** Deletes deliveries of an endpoint. @returns whether there may be more. */
async function deleteSome(org: Org, id: WebhookId): Promise<boolean> {
  const [, deleted] = await org.write(...deletion(org, id, BATCH));
  return deleted!.changes === BATCH;
}

/** @param limit The most deliveries; -1 for all. */
function deletion(org: Org, id: WebhookId, limit: number): Statement[] {
  const some = `select id from deliveries
    where org_id = ?1 and webhook_id = ?2 order by id limit ?3`;
  return [
    `delete from delivery_attempts where org_id = ?1 and delivery_id in (${some})`,
    `delete from deliveries where org_id = ?1 and id in (${some})`,
  ].map((sql) => org.statement(sql, id, limit));
}

/** A secret just rotated. */
export interface RotatedSecret extends ShownSecret {
  /** Until when the secret before it signs too; null when it no longer does. */
  readonly previousUntil: number | null;
}

/**
 * Gives an endpoint a new secret; the present one signs too for `graceMs`, and any older one no
 * longer.
 *
 * @param graceMs 0 to seven days.
 * @returns undefined when there is no such endpoint.
 * @throws {SealError} when the org's key is gone, or has sealed as often as it may.
 */
export async function rotateWebhookSecret(
  org: Org,
  master: MasterKeys,
  actor: Actor,
  id: WebhookId,
  graceMs: number,
): Promise<RotatedSecret | undefined> {
  const present = await findWebhook(org, id);
  if (!present) return undefined;
  const { secret, sealed, count } = await newSecret(org, master, present.id);
  const now = Date.now();
  const previousUntil = graceMs > 0 ? now + graceMs : null;
  const [, rotated] = await org.write(
    count,
    org.statement(
      `update webhooks set
         previous_secret = iif(?5 is null, null, secret),
         previous_hash = iif(?5 is null, null, secret_hash),
         previous_until = ?5, secret = ?3, secret_hash = ?4, updated_at = ?6
       where org_id = ?1 and id = ?2`,
      present.id,
      sealed,
      hashToken(secret),
      previousUntil,
      now,
    ),
    auditEntry(...([org, actor, 'webhook.rotate_secret', present.id, { previousUntil }] as const), {
      ifChanged: true,
    }),
  );
  return rotated!.changes > 0 ? { id: present.id, secret, previousUntil } : undefined;
}

interface NewSecret {
  readonly secret: string;
  readonly sealed: Sealed;
  /** The statement that counts the seal. */
  readonly count: Statement;
}

async function newSecret(org: Org, master: MasterKeys, id: WebhookId): Promise<NewSecret> {
  const secret = formatSecret(randomEntropy(SECRET_BYTES));
  const orgKey = await org.first('select wrapped, seals from org_keys where org_id = ?1');
  checkSeals(Number(orgKey?.seals ?? Number.NaN));
  const context = webhookSecretContext(org.id, id);
  const sealed = await seal(master, String(orgKey?.wrapped), context, secret);
  const count = org.statement('update org_keys set seals = seals + 1 where org_id = ?1');
  return { secret, sealed, count };
}

async function writeUnique(org: Org, ...statements: Statement[]): Promise<readonly Result[]> {
  try {
    return await org.write(...statements);
  } catch (error) {
    if (!(error instanceof DatabaseError && error.conflict)) throw error;
    const message = 'This org has a webhook with that URL already.';
    throw new Refusal('invalid_request', message, { field: 'url' });
  }
}

function toWebhook(row: Row): Webhook {
  return {
    id: row.id as WebhookId,
    url: String(row.url),
    description: String(row.description),
    events: JSON.parse(String(row.events)) as string[],
    status: row.status as Webhook['status'],
    disabledReason: row.disabled_reason as string | null,
    failingSince: row.failing_since as number | null,
    previousUntil: row.previous_until as number | null,
    createdBy: String(row.created_by),
    createdAt: row.created_at as number,
    updatedAt: row.updated_at as number,
  };
}
