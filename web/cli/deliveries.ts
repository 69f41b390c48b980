/** Deliveries to webhooks, as the admin API has them. */

import { type Api, type Connection, PAGE_INFO, readList } from './api.ts';

/** A delivery as people and programs read it; times are RFC 3339. */
export interface Delivery {
  readonly id: string;
  readonly webhookId: string;
  readonly eventId: string;
  readonly eventType: string;
  readonly cause: string;
  readonly status: 'pending' | 'delivered' | 'dead';
  readonly reason: string | null;
  readonly attempts: number;
  readonly nextAt: string | null;
  readonly createdAt: string;
  readonly endedAt: string | null;
}

/** A delivery with the body that is sent and all attempts, the oldest first. */
export interface DeliveryLog extends Delivery {
  readonly body: string;
  readonly log: readonly {
    readonly number: number;
    readonly startedAt: string;
    readonly durationMs: number;
    readonly outcome: string;
    readonly responseStatus: number | null;
    /** The beginning of it. */
    readonly responseBody: string | null;
  }[];
}

/** Which deliveries are wanted; null is any. */
export interface DeliveryFilter {
  readonly webhookId: string | null;
  /** As the API writes it. */
  readonly status: string | null;
}

const DELIVERY = `id webhookId eventId eventType cause status reason attempts: attemptCount
  nextAt createdAt endedAt`;

const LIST = `query Deliveries($filter: DeliveryFilter, $first: Int, $after: String) {
  deliveries(filter: $filter, first: $first, after: $after) { nodes { ${DELIVERY} } ${PAGE_INFO} }
}`;

/** Reads deliveries, the newest first; at most `limit`. */
export async function readDeliveries(
  api: Api,
  filter: DeliveryFilter,
  limit: number,
): Promise<Delivery[]> {
  const listed = await readList(
    api,
    LIST,
    ({ deliveries }: { deliveries: Connection<Delivery> }) => deliveries,
    { variables: { filter }, limit },
  );
  return listed.map(named);
}

const SHOW = `query Delivery($id: DeliveryID!) {
  delivery(id: $id) {
    ${DELIVERY} body
    log: attempts {
      number startedAt: at durationMs outcome requestHeaders responseStatus: status
      responseHeaders responseBody
    }
  }
}`;

/** Reads a delivery with its log; undefined when there is none. */
export async function readDelivery(api: Api, id: string): Promise<DeliveryLog | undefined> {
  const { delivery } = await api.run<{ delivery: DeliveryLog | null }>(SHOW, { id });
  return delivery ? named(delivery) : undefined;
}

/** Names as they are stored and sent, where the API has them in capitals. */
function named<T extends Delivery>(delivery: T): T {
  const { cause, status } = delivery;
  return { ...delivery, cause: cause.toLowerCase(), status: status.toLowerCase() };
}
