/** An endpoint of webhooks for tests: notes everything that arrives and answers as it is told. */

import { verifyWebhook, type WebhookEvent } from '../web/sdk/index.ts';

/** A request that arrived. */
export interface Received {
  /** Unix milliseconds. */
  readonly at: number;
  readonly path: string;
  readonly headers: Headers;
  readonly body: string;
  readonly event: WebhookEvent;
}

/** An endpoint that runs. */
export interface Receiver {
  readonly url: string;
  readonly received: Received[];
  /** The most requests that were being answered at once, and for one event. */
  readonly most: { atOnce: number; ofOneEvent: number };
  /** How requests are answered; 200 unless set. */
  answer: (received: Received) => Response | Promise<Response>;
  /** Waits until a condition on what was received holds. */
  until(condition: (received: readonly Received[]) => boolean, timeoutMs?: number): Promise<void>;
  stop(): Promise<void>;
}

const PAUSE_MS = 10;

/** Starts an endpoint on a free port of the loopback interface. */
export function startReceiver(): Receiver {
  const received: Received[] = [];
  const most = { atOnce: 0, ofOneEvent: 0 };
  const active = new Map<string, number>();
  const enter = (key: string, by: number): number => {
    const count = (active.get(key) ?? 0) + by;
    active.set(key, count);
    return count;
  };
  const server = Bun.serve({
    hostname: '127.0.0.1',
    port: 0,
    idleTimeout: 60,
    async fetch(request) {
      const body = await request.text();
      const event = JSON.parse(body) as WebhookEvent;
      const { pathname: path } = new URL(request.url);
      const one = { at: Date.now(), path, headers: request.headers, body, event };
      received.push(one);
      most.atOnce = Math.max(most.atOnce, enter('', 1));
      most.ofOneEvent = Math.max(most.ofOneEvent, enter(event.id, 1));
      try {
        return await receiver.answer(one);
      } finally {
        enter('', -1);
        enter(event.id, -1);
      }
    },
  });
  const receiver: Receiver = {
    url: `http://127.0.0.1:${server.port}`,
    received,
    most,
    answer: () => new Response('thanks'),
    async until(condition, timeoutMs = 10_000) {
      const giveUpAt = Date.now() + timeoutMs;
      while (!condition(received)) {
        if (Date.now() > giveUpAt) throw new Error(`${received.length} requests have arrived`);
        await Bun.sleep(PAUSE_MS);
      }
    },
    stop: () => server.stop(true),
  };
  return receiver;
}

/** Whether the shipped verifier takes a request for genuine, by either scheme alone. */
export async function isGenuine({ headers, body, at }: Received, secret: string) {
  const without = (prefix: string) =>
    Object.fromEntries([...headers].filter(([name]) => !name.startsWith(prefix)));
  const verdicts = ['webhook-', 'x-rungate-'].map((prefix) =>
    verifyWebhook(body, without(prefix), secret, { now: at }).then(
      () => true,
      () => false,
    ),
  );
  return (await Promise.all(verdicts)).every(Boolean);
}
