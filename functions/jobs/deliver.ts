/** Delivery: sends what is due to endpoints, a few at a time to each, and writes what came of it. */

import type { Database } from '../../db/client.ts';
import {
  type Attempt,
  claimDeliveries,
  type Due,
  finishDelivery,
  type Next,
  releaseDelivery,
} from '../../db/deliveries.ts';
import { forOrg } from '../../db/org.ts';
import { hmac, type MasterKeys, newId, type OpenedSecrets, SealError } from '../../db/seal.ts';
import { openVault } from '../../db/vault.ts';
import { webhookSecretContext } from '../../db/webhooks.ts';
import { concat } from '../../schema/bytes.ts';
import type { GateId } from '../../schema/ids.ts';
import { readRetryAfter } from '../../schema/rules/retry.ts';
import { retryDelay } from '../../schema/rules/schedule.ts';
import { signatureHeaders } from '../../schema/signature.ts';
import type { Config } from '../config.ts';
import { type Egress, EgressError, type EgressResponse } from '../egress.ts';
import { signLink } from '../links.ts';
import type { Log } from '../log.ts';

/** How long an endpoint may take for its answer, from the look-up of its name to the headers. */
const DELIVERY_TIMEOUT_MS = 10_000;
/** Longer than an attempt with its writing can take, so that no other process sends beside it. */
const DELIVERY_LEASE_MS = DELIVERY_TIMEOUT_MS + 5_000;
/** How much of a lease is left for writing what came of the attempt. */
const WRITE_MS = 2_000;
/** An endpoint that would get less time than this is not asked. */
const MIN_TIMEOUT_MS = 1_000;
const CONNECT_MS = 5_000;
const IDLE_MS = 2_000;
/** How many deliveries a process has under way at once. */
const MAX_ACTIVE = 256;
/** Events of one moment are claimed together. */
const NUDGE_MS = 10;
/** How often it is looked for what became due unseen, however often there is reason to. */
const GLANCE_MS = 500;
/** What is due later than this is found by a tick. */
const MAX_WAKE_MS = 60_000;
const MAX_READ_BYTES = 64 * 1024;
const MAX_KEPT_BYTES = 4 * 1024;
const MAX_HEADERS = 50;
const MAX_HEADER_CHARS = 1_000;

/** What deliveries need of the process. */
export interface DeliveryParts {
  readonly config: Config;
  readonly db: Database;
  readonly master: MasterKeys;
  readonly egress: Egress;
  readonly secrets: OpenedSecrets;
  readonly log: Log;
  /** Unix milliseconds. */
  readonly now: () => number;
}

/** How many attempts ended how. */
export interface DeliveryCounts {
  readonly delivered: number;
  readonly failed: number;
  /** Given up. */
  readonly dead: number;
}

/** An answer of an endpoint, or why there was none. */
interface Answer {
  readonly outcome: string;
  readonly response?: EgressResponse;
  readonly responseBody?: string;
}

/** What the body of an `approval.pending` says of its gate. */
interface PendingBody {
  readonly createdAt: string;
  readonly test?: true;
  readonly data: { readonly gateId: GateId; readonly expiresAt: string };
}

/** The deliveries of this process. */
export class Deliveries {
  readonly #parts: DeliveryParts;
  /** Names this process in its leases. */
  readonly #name = newId('request');
  readonly #active = new Map<Promise<void>, AbortController>();
  readonly #counts = { delivered: 0, failed: 0, dead: 0 };
  #pumping: Promise<void> | undefined;
  /** Something may have become due since the pump looked last. */
  #isDue = false;
  #isStopped = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #wakesAt = Number.POSITIVE_INFINITY;
  #glance: ReturnType<typeof setTimeout> | undefined;
  #glancedAt = Number.NEGATIVE_INFINITY;

  constructor(parts: DeliveryParts) {
    this.#parts = parts;
  }

  /** Something is due: looks in a moment. */
  nudge(): void {
    this.#wake(this.#parts.now() + NUDGE_MS);
  }

  /** Something may have become due: looks in a moment, or half a second after the last glance. */
  glance(): void {
    if (this.#glance !== undefined || this.#isStopped) return;
    const sinceMs = performance.now() - this.#glancedAt;
    this.#glance = setTimeout(
      () => {
        this.#glance = undefined;
        this.#glancedAt = performance.now();
        void this.#pump();
      },
      Math.max(NUDGE_MS, GLANCE_MS - sinceMs),
    );
  }

  /**
   * Begins to send what is due, and goes on until nothing is.
   *
   * @param limitMs How long to wait for that.
   * @returns what ended in this process meanwhile.
   */
  async run(limitMs: number): Promise<DeliveryCounts> {
    const before = { ...this.#counts };
    const until = performance.now() + limitMs;
    await this.#pump();
    while (this.#active.size > 0 || this.#pumping) {
      const leftMs = until - performance.now();
      if (leftMs <= 0) break;
      await settleWithin([this.#pumping, ...this.#active.keys()], leftMs);
    }
    const { delivered, failed, dead } = this.#counts;
    return {
      delivered: delivered - before.delivered,
      failed: failed - before.failed,
      dead: dead - before.dead,
    };
  }

  /** Claims nothing more, lets what is under way end for at most `limitMs`, and gives back the rest. */
  async stop(limitMs: number): Promise<void> {
    this.#isStopped = true;
    clearTimeout(this.#timer);
    clearTimeout(this.#glance);
    await this.#pumping;
    await settleWithin([Promise.all(this.#active.keys())], limitMs);
    for (const controller of this.#active.values()) controller.abort();
    await Promise.all(this.#active.keys());
  }

  #wake(at: number): void {
    if (this.#isStopped || at >= this.#wakesAt) return;
    const delayMs = Math.max(0, at - this.#parts.now());
    if (delayMs > MAX_WAKE_MS) return;
    clearTimeout(this.#timer);
    this.#wakesAt = at;
    this.#timer = setTimeout(() => {
      this.#wakesAt = Number.POSITIVE_INFINITY;
      void this.#pump();
    }, delayMs);
  }

  #pump(): Promise<void> {
    this.#isDue = true;
    this.#pumping ??= this.#claimAll().finally(() => {
      this.#pumping = undefined;
    });
    return this.#pumping;
  }

  async #claimAll(): Promise<void> {
    const { db, now, log } = this.#parts;
    try {
      while (this.#isDue && !this.#isStopped && this.#active.size < MAX_ACTIVE) {
        this.#isDue = false;
        const limit = MAX_ACTIVE - this.#active.size;
        const claim = { by: this.#name, now: now(), leaseMs: DELIVERY_LEASE_MS, limit };
        const claimed = await claimDeliveries(db, claim);
        if (claimed.length > 0) this.#isDue = true;
        for (const due of claimed) this.#start(due);
      }
    } catch (error) {
      log.error('deliveries could not be claimed', { error });
    }
  }

  #start(due: Due): void {
    const controller = new AbortController();
    const delivery = this.#deliver(due, controller)
      .catch((error: unknown) => {
        // The lease runs out, and the delivery is due again.
        this.#parts.log.error('a delivery could not be recorded', { delivery: due.id, error });
      })
      .finally(() => {
        this.#active.delete(delivery);
        if (!this.#isStopped) void this.#pump();
      });
    this.#active.set(delivery, controller);
  }

  async #deliver(due: Due, controller: AbortController): Promise<void> {
    const { db, now } = this.#parts;
    const startedAt = now();
    const startedMs = performance.now();
    const { headers, answer } = await this.#attempt(due, controller, startedAt);
    if (answer === undefined) return await releaseDelivery(db, due, now());
    const { outcome, response, responseBody = null } = answer;
    const attempt: Attempt = {
      startedAt,
      durationMs: Math.round(performance.now() - startedMs),
      outcome,
      requestHeaders: headers,
      responseStatus: response?.status ?? null,
      responseHeaders: response ? keptHeaders(response.headers) : null,
      responseBody,
    };
    const next = nextOf(due, response, now());
    if (!(await finishDelivery(db, due, attempt, next))) return;
    this.#counts[next.status === 'pending' ? 'failed' : next.status]++;
    if (next.status === 'pending') this.#wake(next.at);
  }

  /** @returns no answer when this process is about to end, or the lease is. */
  async #attempt(due: Due, controller: AbortController, startedAt: number) {
    let headers: Record<string, string> = {};
    try {
      const body = await this.#bodyOf(due);
      headers = await this.#headersOf(due, body, startedAt);
      const timeoutMs = timeoutOf(due, this.#parts.now());
      if (timeoutMs < MIN_TIMEOUT_MS) return { headers, answer: undefined };
      const answer = await this.#send(due.url, body, headers, controller, timeoutMs);
      const isOurs = answer.outcome === 'aborted' && this.#isStopped;
      return { headers, answer: isOurs ? undefined : answer };
    } catch (error) {
      if (!(error instanceof SealError)) throw error;
      this.#parts.log.error('the secret of a webhook could not be opened', {
        webhook: due.webhookId,
        error,
      });
      return { headers, answer: { outcome: 'secret_unreadable' } };
    }
  }

  /** The link of a gate is stored nowhere: who reads the database could decide with it. */
  async #bodyOf({ body, eventId, eventType, orgId, urlBy }: Due): Promise<string> {
    if (eventType !== 'approval.pending') return body;
    const { config, db, master } = this.#parts;
    const { data, test, ...head } = JSON.parse(body) as PendingBody;
    if (test) return body;
    const { gateId, expiresAt, ...rest } = data;
    const org = forOrg(db, orgId);
    const gate = { id: gateId, expiresAt: Date.parse(expiresAt) };
    // All that it is made of is the event's own, so that each delivery has the same bytes.
    const id = eventId.replace('evt_', 'lnk_');
    const vault = await openVault(org, master);
    const at = Date.parse(head.createdAt);
    const url = await signLink(config, org, vault, gate, urlBy, at, id);
    return JSON.stringify({ ...head, data: { gateId, ...rest, expiresAt, url } });
  }

  async #headersOf(due: Due, body: string, startedAt: number): Promise<Record<string, string>> {
    const context = webhookSecretContext(due.orgId, due.webhookId);
    const secrets = await Promise.all(
      due.secrets.map((sealed) => this.#parts.secrets.open(due.orgKey, context, sealed)),
    );
    const timestampS = Math.floor(startedAt / 1_000);
    const signed = { eventId: due.eventId, timestampS, body, secrets };
    return {
      'content-type': 'application/json',
      'user-agent': 'Rungate',
      'x-rungate-delivery-id': due.id,
      ...signatureHeaders(signed, hmac),
    };
  }

  async #send(
    url: string,
    body: string,
    headers: Readonly<Record<string, string>>,
    controller: AbortController,
    timeoutMs: number,
  ): Promise<Answer> {
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      controller.abort();
    }, timeoutMs);
    try {
      const response = await this.#parts.egress(new URL(url), {
        method: 'POST',
        headers,
        body: new TextEncoder().encode(body),
        signal: controller.signal,
        timeouts: { connectMs: CONNECT_MS, firstByteMs: timeoutMs, idleMs: IDLE_MS },
      });
      const responseBody = await readBeginning(response.body);
      const outcome = isSuccess(response) ? 'delivered' : `http_${response.status}`;
      return { outcome, response, responseBody };
    } catch (error) {
      if (!(error instanceof EgressError)) throw error;
      return { outcome: isLate ? 'timeout' : error.code };
    } finally {
      clearTimeout(timer);
    }
  }
}

/** Once the lease has ended another process sends, so that no attempt may last until then. */
function timeoutOf({ leasedUntil }: Due, now: number): number {
  return Math.min(DELIVERY_TIMEOUT_MS, leasedUntil - now - WRITE_MS);
}

function isSuccess({ status }: EgressResponse): boolean {
  return status >= 200 && status < 300;
}

function nextOf(due: Due, response: EgressResponse | undefined, now: number): Next {
  if (response && isSuccess(response)) return { status: 'delivered' };
  if (response?.status === 410) return { status: 'dead', gone: true };
  const retryAfterMs = response && readRetryAfter(response.headers, now);
  const delayMs = retryDelay({ attempt: due.attempt, retryAfterMs, random: Math.random() });
  return delayMs === undefined
    ? { status: 'dead', gone: false }
    : { status: 'pending', at: now + delayMs };
}

/**
 * The beginning of a body as text. A little more is read and dropped, so that the connection can
 * be used again; the status has been told, so a body that breaks changes nothing.
 */
async function readBeginning(body: ReadableStream<Uint8Array> | null): Promise<string> {
  const parts: Uint8Array[] = [];
  let length = 0;
  try {
    for await (const part of body ?? []) {
      if (length < MAX_KEPT_BYTES) parts.push(part.subarray(0, MAX_KEPT_BYTES - length));
      length += part.length;
      if (length > MAX_READ_BYTES) break;
    }
  } catch (error) {
    if (!(error instanceof EgressError)) throw error;
  }
  return new TextDecoder().decode(concat(parts));
}

function keptHeaders(headers: Headers): Record<string, string> {
  const kept = [...headers]
    .filter(([name]) => name !== 'set-cookie')
    .slice(0, MAX_HEADERS)
    .map(([name, value]) => [name, value.slice(0, MAX_HEADER_CHARS)] as const);
  return Object.fromEntries(kept);
}

/** Waits until one of the promises has settled, but for at most `limitMs`. */
async function settleWithin(
  promises: readonly (Promise<unknown> | undefined)[],
  limitMs: number,
): Promise<void> {
  const pending = promises.filter((promise) => promise !== undefined);
  if (pending.length === 0) return;
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, limitMs);
    void Promise.race(pending).finally(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}
