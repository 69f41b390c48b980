/** Webhooks: what happened arrives, signed, whatever happens to endpoints and to processes. */

import {
  afterAll,
  afterEach,
  beforeAll,
  describe,
  expect,
  setDefaultTimeout,
  test,
} from 'bun:test';
import { type Database, openDatabase } from '../db/client.ts';
import {
  claimDeliveries,
  type DeliveryLog,
  type DeliverySearch,
  MAX_REPLAYED,
  PER_ORG,
  pageDeliveries,
  readDelivery,
  redeliver,
  replayEvents,
  sendTestEvent,
} from '../db/deliveries.ts';
import { migrate } from '../db/migrate.ts';
import { forOrg, type Org } from '../db/org.ts';
import { createOrg, findOrg } from '../db/orgs.ts';
import { announce } from '../db/outbox.ts';
import {
  BATCH,
  createWebhook,
  deleteWebhook,
  findWebhook,
  MAX_WEBHOOKS,
  pageWebhooks,
  rotateWebhookSecret,
  updateWebhook,
} from '../db/webhooks.ts';
import { makeApp } from '../functions/app.ts';
import { boot, shutDown } from '../functions/boot.ts';
import { makeEgress } from '../functions/egress.ts';
import { Deliveries } from '../functions/jobs/deliver.ts';
import type { Services } from '../functions/services.ts';
import { judgeUrl, parseAllowList } from '../schema/address.ts';
import { EVENT_TYPES, EVENTS, type EventType, exampleOf, isEventType } from '../schema/events.ts';
import type { WebhookId } from '../schema/ids.ts';
import { JITTER, RETRY_DELAYS_MS } from '../schema/rules/schedule.ts';
import { isGenuine, type Receiver, startReceiver } from './receiver.ts';
import { type Deployment, deploy } from './rungate.ts';
import { startSqld } from './sqld.ts';

setDefaultTimeout(60_000);

const DAY_MS = 86_400_000;
const CHANGE = { change: 'plan' };
const REPORT = { kind: 'tool_call', name: 'search', outcome: 'ok', latencyMs: 1, costUsd: '0.50' };

let deployment: Deployment;
let services: Services;
let org: Org;
let receiver: Receiver;

beforeAll(async () => {
  const budget = { run: '1.00', alertAt: 0.000_001 };
  deployment = await deploy({ processes: 0, policy: { budget } });
  services = await boot({
    RUNGATE_DATABASE_URL: `file:${deployment.folder}/rungate.db`,
    RUNGATE_DATABASE_SYNCHRONOUS: 'normal',
    RUNGATE_EGRESS_ALLOW: '127.0.0.1/32',
    RUNGATE_LOG: 'silent',
  });
  org = (await findOrg(services.db, 'acme'))!;
  receiver = startReceiver();
});

afterAll(async () => {
  await shutDown(services, 0);
  await receiver.stop();
  await deployment.stop();
});

afterEach(async () => {
  for (const { node } of (await pageWebhooks(org, {}, WHOLE)).items) {
    await deleteWebhook(org, 'operator', node.id);
  }
  receiver.received.length = 0;
  receiver.answer = () => new Response('thanks');
  Object.assign(receiver.most, { atOnce: 0, ofOneEvent: 0 });
});

function subscribe(path = '', events: readonly string[] = ['*'], to = receiver) {
  const wanted = { url: `${to.url}/${path}`, events, description: '' };
  return createWebhook(org, services.master, 'operator', wanted);
}

/** An endpoint of another org, which a test deletes by itself. */
async function subscribeOther(name: string, path: string) {
  const { db, master } = services;
  const { id: orgId } = await createOrg(db, master, 'operator', name, `${path}@example.com`);
  const other = forOrg(db, orgId);
  const wanted = { url: `${receiver.url}/${path}`, events: ['*'], description: '' };
  const { id } = await createWebhook(other, master, 'operator', wanted);
  return { other, id };
}

/** Announces that many changes of the account, in one transaction each. */
async function happen(count = 1, now = Date.now()): Promise<void> {
  const one = () => org.write(announce(org, 'account.updated', CHANGE, now));
  await Promise.all(Array.from({ length: count }, one));
}

const WHOLE = { limit: 1_000, after: undefined, before: undefined, isBackward: false };

async function deliveriesOf(webhookId: WebhookId) {
  const { items } = await pageDeliveries(org, { webhookId }, WHOLE);
  return items.map(({ node }) => node);
}

/** Waits until nothing is pending, and returns the deliveries with their logs, the oldest first. */
async function settled(webhookId: WebhookId): Promise<DeliveryLog[]> {
  for (let tries = 1_000; tries > 0; tries--) {
    const all = await deliveriesOf(webhookId);
    if (all.length > 0 && all.every(({ attempts, status }) => attempts > 0 || status === 'dead')) {
      const logs = await Promise.all(all.map(({ id }) => readDelivery(org, id)));
      return logs.map((log) => log!).reverse();
    }
    await Bun.sleep(10);
  }
  throw new Error('deliveries are still pending');
}

describe('an event', () => {
  test('arrives at once after its commit, signed, in its envelope', async () => {
    const { id, secret } = await subscribe();
    await happen();
    await receiver.until(({ length }) => length === 1);
    const [got] = receiver.received;
    expect(got!.event).toMatchObject({ type: 'account.updated', orgId: org.id, data: CHANGE });
    expect(Object.keys(got!.event)).toEqual(['id', 'type', 'createdAt', 'orgId', 'data']);
    expect(got!.headers.get('x-rungate-event-id')).toBe(got!.event.id);
    expect(got!.headers.get('content-type')).toBe('application/json');
    expect(await isGenuine(got!, secret)).toBe(true);
    const [log] = await settled(id);
    expect(log).toMatchObject({ status: 'delivered', attempts: 1, nextAt: null, body: got!.body });
    expect(log!.log).toMatchObject([
      { number: 1, outcome: 'delivered', responseStatus: 200, responseBody: 'thanks' },
    ]);
  });

  test('that a trigger writes, as money is spent, arrives without a tick too', async () => {
    const app = makeApp(services);
    const call = async (run: string, path: string, body: object) => {
      const headers = { authorization: `Bearer ${deployment.token}`, 'x-rungate-run-id': run };
      const init = { method: 'POST', headers, body: JSON.stringify(body) };
      const request = new Request(`http://127.0.0.1${path}`, init);
      const answer = await app(request, { address: '127.0.0.1' });
      await answer.text();
      return answer.status;
    };
    const chat = (run: string, model: string) =>
      call(run, '/v1/chat/completions', { model, messages: [{ role: 'user', content: 'a' }] });
    for (const [run, spend] of [
      ['calls', () => chat('calls', 'demo/demo-small')],
      ['reports', () => call('reports', '/v1/runs/reports/steps', REPORT)],
    ] as const) {
      const started = await subscribe(run);
      await chat(run, 'demo/none');
      await settled(started.id);
      await deleteWebhook(org, 'operator', started.id);
      receiver.received.length = 0;
      const alerted = await subscribe(run, ['budget.alert']);
      expect(await spend()).toBeLessThan(300);
      await receiver.until(({ length }) => length === 1);
      expect(receiver.received[0]!.event).toMatchObject({ type: 'budget.alert' });
      await deleteWebhook(org, 'operator', alerted.id);
    }
  });

  test('goes to those who subscribe to its type, once to each', async () => {
    const all = await subscribe('all');
    const some = await subscribe('some', ['account.updated', 'run.started']);
    const others = await subscribe(
      'others',
      EVENT_TYPES.filter((type) => type !== 'account.updated'),
    );
    await happen(3);
    for (const { id } of [all, some]) expect(await settled(id)).toHaveLength(3);
    expect(await deliveriesOf(others.id)).toEqual([]);
  });

  test('that is told only once is delivered only once', async () => {
    const { id } = await subscribe();
    const telling = () => announce(org, 'account.updated', CHANGE, Date.now(), { once: 'a' });
    await Promise.all([org.write(telling()), org.write(telling()), org.write(telling())]);
    expect(await settled(id)).toHaveLength(1);
  });

  test('of a change that was rolled back is delivered to nobody', async () => {
    const { id } = await subscribe();
    const bad = org.statement('insert into events (org_id, id) values (?1, ?2)', 'incomplete');
    const lost = announce(org, 'account.updated', { change: 'lost' }, Date.now());
    await expect(org.write(lost, bad)).rejects.toThrow();
    await happen();
    const all = await settled(id);
    expect(all.map(({ body }) => JSON.parse(body).data)).toEqual([CHANGE]);
  });

  test('of a change that changed nothing is told to nobody', async () => {
    const { id } = await subscribe();
    const rename = (name: string) =>
      org.write(
        org.statement(
          'update agents set name = ?2 where org_id = ?1 and name = ?3',
          'renamed',
          name,
        ),
        announce(org, 'account.updated', { change: name }, Date.now(), { ifChanged: true }),
      );
    await rename('nobody');
    await rename('tester');
    const all = await settled(id);
    expect(all.map(({ body }) => JSON.parse(body).data)).toEqual([{ change: 'tester' }]);
  });

  test('of every type has an example that its schema takes', () => {
    for (const type of EVENT_TYPES) expect(EVENTS[type].parse(exampleOf(type))).toBeDefined();
    expect(EVENT_TYPES).toHaveLength(16);
    expect(['toString', '__proto__', 'run'].filter(isEventType)).toEqual([]);
  });
});

test('an approval of a tool with the longest name that is let through keeps to its schema', () => {
  for (const type of EVENT_TYPES.filter((name) => name.startsWith('approval.'))) {
    const isTaken = (length: number) =>
      EVENTS[type].safeParse({ ...exampleOf(type), tool: 'x'.repeat(length) }).success;
    expect([type, isTaken(512), isTaken(513)]).toEqual([type, true, false]);
  }
});

test('the schema of every event is published, each field described', async () => {
  const request = new Request('http://rungate/schemas/events.json');
  const response = await makeApp(services)(request, { address: '127.0.0.1' });
  expect(response.headers.get('content-type')).toBe('application/schema+json');
  const { $defs, oneOf } = (await response.json()) as {
    oneOf: object[];
    $defs: Record<string, { description: string; properties: Record<string, { const?: string }> }>;
  };
  expect(Object.keys($defs)).toEqual([...EVENT_TYPES]);
  expect(oneOf).toHaveLength(EVENT_TYPES.length);
  for (const [type, { description, properties }] of Object.entries($defs)) {
    expect(description).toEndWith('.');
    expect(properties.type!.const).toBe(type);
    const { data } = properties as unknown as { data: { properties: object } };
    for (const field of Object.values(data.properties)) {
      expect(field).toMatchObject({ description: expect.stringMatching(/[.…]$/) });
    }
  }
});

describe('an endpoint', () => {
  test('that is slow holds up no other, and gets only four at a time', async () => {
    const { promise: asleep, resolve: wake } = Promise.withResolvers<void>();
    receiver.answer = async ({ path }) => {
      if (path === '/slow') await asleep;
      return new Response();
    };
    const slow = await subscribe('slow');
    const fast = await subscribe('fast');
    await happen(20);
    expect(await settled(fast.id)).toHaveLength(20);
    expect(receiver.received.filter(({ path }) => path === '/slow')).toHaveLength(4);
    wake();
    expect(await settled(slow.id)).toHaveLength(20);
  });

  test('that is slow, as are all seventy of its org, holds up no other org', async () => {
    const { promise: asleep, resolve: wake } = Promise.withResolvers<void>();
    receiver.answer = async ({ path }) => {
      if (path.startsWith('/slow')) await asleep;
      return new Response();
    };
    for (let at = 0; at < 70; at++) await subscribe(`slow-${at}`);
    const { other, id } = await subscribeOther('Patient', 'fast');
    try {
      await happen(4);
      await receiver.until(({ length }) => length >= PER_ORG);
      await other.write(announce(other, 'account.updated', CHANGE, Date.now()));
      await receiver.until((all) => all.some(({ path }) => path === '/fast'), 5_000);
      expect(receiver.received.filter(({ path }) => path !== '/fast')).toHaveLength(PER_ORG);
    } finally {
      wake();
      await deleteWebhook(other, 'operator', id);
    }
  });

  test('that is slow, as are fifteen more of its org, leaves room to the next one', async () => {
    const { promise: asleep, resolve: wake } = Promise.withResolvers<void>();
    receiver.answer = async ({ path }) => {
      if (path.startsWith('/slow')) await asleep;
      return new Response();
    };
    for (let at = 0; at < 16; at++) await subscribe(`slow-${at}`);
    try {
      await happen(4);
      await receiver.until(({ length }) => length >= PER_ORG / 2);
      const { id } = await subscribe('fast');
      await happen(4);
      await receiver.until((all) => all.filter(({ path }) => path === '/fast').length === 4, 5_000);
      expect(await settled(id)).toHaveLength(4);
    } finally {
      wake();
    }
  });

  test('or an org with fewer deliveries under way gets the next one', async () => {
    const { other, id } = await subscribeOther('Fair', 'other');
    const first = await subscribe('first');
    const second = await subscribe('second');
    const start = Date.now() + 120 * DAY_MS;
    await happen(6, start);
    await other.write(announce(other, 'account.updated', CHANGE, start + 1_000));
    const claim = async (limit: number) => {
      const asked = { by: 'test', now: start + 2_000, leaseMs: 15_000, limit };
      return (await claimDeliveries(services.db, asked)).map(({ webhookId }) => webhookId);
    };
    const [one, next] = await claim(2);
    expect(next).toBe(id);
    const [another] = await claim(1);
    expect([one!, another!].sort()).toEqual([first.id, second.id].sort());
    expect(await claim(100)).toHaveLength(6);
    await deleteWebhook(other, 'operator', id);
  });

  test('that has moved is not disabled by a 410 from where it was', async () => {
    const { id } = await subscribe('old');
    receiver.answer = async ({ path }) => {
      if (path !== '/old') return new Response();
      await updateWebhook(org, 'operator', id, { url: `${receiver.url}/new` });
      return new Response(null, { status: 410 });
    };
    await happen();
    await settled(id);
    expect(await findWebhook(org, id)).toMatchObject({ status: 'enabled', disabledReason: null });
    await happen();
    await receiver.until((all) => all.some(({ path }) => path === '/new'));
  });

  test('keeps what two changes at once make of it', async () => {
    const { id } = await subscribe('before');
    const url = `${receiver.url}/after`;
    await Promise.all([
      updateWebhook(org, 'operator', id, { url }),
      updateWebhook(org, 'operator', id, { events: ['run.started'] }),
      updateWebhook(org, 'operator', id, { description: 'both' }),
    ]);
    const changed = { url, events: ['run.started'], description: 'both', status: 'enabled' };
    expect(await findWebhook(org, id)).toMatchObject(changed);
  });

  test('is not enabled by a new description when it was disabled meanwhile', async () => {
    const { id } = await subscribe();
    await Promise.all([
      updateWebhook(org, 'operator', id, { status: 'disabled' }),
      updateWebhook(org, 'operator', id, { description: 'new' }),
    ]);
    const disabled = { status: 'disabled', disabledReason: 'by_hand', description: 'new' };
    expect(await findWebhook(org, id)).toMatchObject(disabled);
  });

  test('beyond the hundredth of an org is refused, also when many are made at once', async () => {
    for (let at = 0; at < MAX_WEBHOOKS - 2; at++) await subscribe(String(at));
    const made = await Promise.allSettled(['a', 'b', 'c', 'd', 'e'].map((path) => subscribe(path)));
    const refused = made.filter(({ status }) => status === 'rejected');
    expect(refused.map((each) => String((each as PromiseRejectedResult).reason))).toEqual(
      Array(3).fill(expect.stringContaining(`at most ${MAX_WEBHOOKS} webhooks`)),
    );
    expect((await pageWebhooks(org, {}, WHOLE)).items).toHaveLength(MAX_WEBHOOKS);
  });

  test('that answers 410 is disabled, what is due is given up, and others are told', async () => {
    receiver.answer = ({ path }) => new Response(null, { status: path === '/gone' ? 410 : 200 });
    const gone = await subscribe('gone');
    const other = await subscribe('other');
    await happen();
    await receiver.until((all) => all.some(({ event }) => event.type === 'webhook.disabled'));
    const told = receiver.received.filter(({ event }) => event.type === 'webhook.disabled');
    expect(told.map(({ path, event }) => [path, event.data])).toEqual([
      ['/other', { webhookId: gone.id, reason: 'gone' }],
    ]);
    expect(await findWebhook(org, gone.id)).toMatchObject({
      status: 'disabled',
      disabledReason: 'gone',
    });
    await happen();
    await settled(other.id);
    expect(await deliveriesOf(gone.id)).toMatchObject([{ status: 'dead', reason: 'http_410' }]);
    await updateWebhook(org, 'operator', gone.id, { status: 'enabled' });
    expect(await findWebhook(org, gone.id)).toMatchObject({
      status: 'enabled',
      disabledReason: null,
      failingSince: null,
    });
  });

  test('that redirects is not followed', async () => {
    receiver.answer = () => Response.redirect(`${receiver.url}/elsewhere`, 307);
    const { id } = await subscribe('here');
    await happen();
    const [log] = await settled(id);
    expect(log).toMatchObject({ status: 'pending', attempts: 1, log: [{ outcome: 'http_307' }] });
    expect(receiver.received.map(({ path }) => path)).toEqual(['/here']);
  });

  test('that asks for time gets it, within bounds', async () => {
    const waits = ['3600', '99999999', '1', 'soon'];
    receiver.answer = ({ path }) =>
      new Response(null, {
        status: 503,
        headers: { 'retry-after': waits[Number(path.slice(1))]! },
      });
    const delays: number[] = [];
    for (const at of waits.keys()) {
      const { id } = await subscribe(String(at));
      await happen();
      const [{ nextAt, log } = {}] = await settled(id);
      delays.push(Math.round((nextAt! - log![0]!.startedAt) / 1_000));
      await deleteWebhook(org, 'operator', id);
    }
    expect(delays[0]).toBe(3_600);
    expect(delays[1]).toBe(86_400);
    for (const delay of delays.slice(2)) expect([4, 5, 6]).toContain(delay);
  });

  test('may say a lot: the beginning is kept, without its cookies', async () => {
    receiver.answer = () =>
      new Response('é'.repeat(200_000), { headers: { 'set-cookie': 'a=b', 'x-odd': 'yes' } });
    const { id } = await subscribe();
    await happen();
    const [{ log: [attempt] = [] } = {}] = await settled(id);
    expect(attempt!.responseBody!.length).toBe(2_048);
    expect(attempt!.responseHeaders).toMatchObject({ 'x-odd': 'yes' });
    expect(Object.keys(attempt!.responseHeaders!)).not.toContain('set-cookie');
  });

  test('of a URL that the org has already is refused', async () => {
    await subscribe('twice');
    await expect(subscribe('twice')).rejects.toThrow(
      'This org has a webhook with that URL already.',
    );
  });
});

/** Deliveries whose clock a test moves, all attempts of which fail. */
function failing(): { run: (now: number) => Promise<void>; stop: () => Promise<void> } {
  let time = 0;
  const deliveries = new Deliveries({ ...services, now: () => time });
  return {
    async run(now) {
      time = now;
      await deliveries.run(10_000);
    },
    stop: () => deliveries.stop(0),
  };
}

describe('a delivery that fails', () => {
  test('is tried again with the same bytes, the link of a gate among them', async () => {
    receiver.answer = () => new Response('no', { status: 500 });
    const { id, secret } = await subscribe('pending', ['approval.pending']);
    const { run, stop } = failing();
    const start = Date.now() + 30 * DAY_MS;
    const { url: _, ...data } = exampleOf('approval.pending');
    await org.write(announce(org, 'approval.pending', data, start));
    const [{ id: delivery } = {}] = await deliveriesOf(id);
    for (let tries = 0; tries < 3; tries++) {
      await run((await readDelivery(org, delivery!))!.nextAt!);
    }
    await stop();
    const bodies = receiver.received.map(({ body }) => body);
    expect([bodies.length, new Set(bodies).size]).toEqual([3, 1]);
    const { event } = receiver.received[0]!;
    expect(event.data).toEqual({ ...data, url: expect.stringContaining('/approvals/') });
    expect((await readDelivery(org, delivery!))!.body).not.toContain('/approvals/');
    for (const got of receiver.received) {
      const at = Number(got.headers.get('x-rungate-timestamp')) * 1_000;
      expect(await isGenuine({ ...got, at }, secret)).toBe(true);
    }
  });

  test('is tried again by the schedule with its jitter, then given up', async () => {
    receiver.answer = () => new Response('no', { status: 500 });
    const { id } = await subscribe();
    const { run, stop } = failing();
    // In the future: the clock of the process itself finds nothing due.
    const start = Date.now() + 30 * DAY_MS;
    await happen(1, start);
    const [{ id: delivery } = {}] = await deliveriesOf(id);
    for (let now: number | null = start; now !== null; ) {
      await run(now);
      const made = (await readDelivery(org, delivery!))!;
      await run(now + 1);
      expect((await readDelivery(org, delivery!))!.attempts).toBe(made.attempts);
      now = made.nextAt;
    }
    await stop();
    const { log, ...end } = (await readDelivery(org, delivery!))!;
    expect(end).toMatchObject({ status: 'dead', reason: 'http_500', nextAt: null });
    expect(log.map(({ number }) => number)).toEqual(
      [...RETRY_DELAYS_MS.keys(), 10].map((n) => n + 1),
    );
    for (const [at, delayMs] of RETRY_DELAYS_MS.entries()) {
      const gapMs = log[at + 1]!.startedAt - log[at]!.startedAt;
      expect(gapMs).toBeGreaterThanOrEqual(Math.floor(delayMs * (1 - JITTER)));
      expect(gapMs).toBeLessThanOrEqual(Math.ceil(delayMs * (1 + JITTER)) + 1_000);
    }
    const { status, failingSince } = (await findWebhook(org, id))!;
    expect([status, failingSince! - start < 1_000]).toEqual(['enabled', true]);
  });

  test('at the end of its schedule disables an endpoint that has failed for days', async () => {
    receiver.answer = () => new Response('no', { status: 500 });
    const { id } = await subscribe('failing', ['account.updated']);
    const start = Date.now() + 60 * DAY_MS;
    const { run, stop } = failing();
    for (const at of [start, start + 4 * DAY_MS]) {
      await happen(1, at);
      for (let step = 0, now: number | null = at; now !== null && step < 20; step++) {
        await run(now);
        [{ nextAt: now } = { nextAt: null }] = await deliveriesOf(id);
      }
    }
    await stop();
    expect(await findWebhook(org, id)).toMatchObject({
      status: 'disabled',
      disabledReason: 'failing',
    });
    const told = await services.db.read(
      `select data from events where type = 'webhook.disabled' order by id desc limit 1`,
      [],
    );
    expect(JSON.parse(String(told[0]!.data))).toEqual({ webhookId: id, reason: 'failing' });
  });

  test('is forgotten by the next success', async () => {
    receiver.answer = () => new Response(null, { status: 500 });
    const { id } = await subscribe();
    await happen();
    await settled(id);
    expect((await findWebhook(org, id))!.failingSince).not.toBeNull();
    receiver.answer = () => new Response();
    const [{ id: delivery } = {}] = await deliveriesOf(id);
    await redeliver(org, 'operator', delivery!);
    services.deliveries.nudge();
    await receiver.until(({ length }) => length === 2);
    await settled(id);
    expect((await findWebhook(org, id))!.failingSince).toBeNull();
  });
});

describe('a lease', () => {
  /** Deliveries whose clock goes on by so much as soon as they have claimed something. */
  const late = (byMs: number, parts: Partial<Services> = {}) => {
    const start = Date.now() + 150 * DAY_MS;
    let readings = 0;
    const now = () => (readings++ === 0 ? start : start + byMs);
    return { start, deliveries: new Deliveries({ ...services, ...parts, now }) };
  };

  test('that has ended before the request leaves sends nothing, so that the next one is alone', async () => {
    const { id } = await subscribe();
    const { start, deliveries } = late(20_000);
    await happen(1, start);
    await deliveries.run(10_000);
    await deliveries.stop(0);
    expect(receiver.received).toHaveLength(1);
    expect(await deliveriesOf(id)).toMatchObject([{ status: 'delivered', attempts: 1 }]);
  });

  test('that is almost over leaves the endpoint only what is left of it', async () => {
    await subscribe();
    const allowed: number[] = [];
    const egress: Services['egress'] = (url, request) => {
      allowed.push(request.timeouts.firstByteMs);
      return services.egress(url, request);
    };
    const { start, deliveries } = late(10_000, { egress });
    await happen(1, start);
    await deliveries.run(10_000);
    await deliveries.stop(0);
    expect(allowed).toEqual([3_000]);
  });
});

test('deliveries are listed by an index, of the whole org as of one endpoint', async () => {
  const db = await deployment.database();
  let listing: Parameters<Database['read']> | undefined;
  const read: Database['read'] = (...asked) => {
    listing = asked;
    return db.read(...asked);
  };
  const watched = forOrg({ ...db, read }, org.id);
  const planOf = async (search: DeliverySearch) => {
    await pageDeliveries(watched, search, { ...WHOLE, limit: 50 });
    const [sql, args] = listing!;
    const steps = await db.read(`explain query plan ${sql}`, args);
    return steps.map(({ detail }) => String(detail)).join('\n');
  };
  const { id: webhookId } = await subscribe();
  for (const [search, index] of [
    [{}, 'deliveries_of_org'],
    [{ status: 'dead' }, 'deliveries_of_org'],
    [{ webhookId }, 'deliveries_of_webhook'],
  ] as const) {
    const plan = await planOf(search);
    expect(plan).toContain(index);
    expect(plan).not.toContain('TEMP B-TREE FOR ORDER BY');
  }
  await db.close();
});

describe('by hand', () => {
  test('an event is delivered again, with the same id and body', async () => {
    const { id } = await subscribe();
    await happen();
    const [first] = await settled(id);
    const again = await redeliver(org, 'operator', first!.id);
    services.deliveries.nudge();
    await receiver.until(({ length }) => length === 2);
    const [one, other] = receiver.received;
    expect(other!.body).toBe(one!.body);
    const logs = await settled(id);
    expect(logs.find((log) => log.id === again)).toMatchObject({ cause: 'redelivery' });
  });

  test('a window of events is delivered again to who subscribes to them now', async () => {
    const from = Date.now() + 90 * DAY_MS;
    for (const minute of [0, 1, 2, 3]) await happen(1, from + minute * 60_000);
    const { id } = await subscribe('', ['account.updated', 'agent.created']);
    const webhook = (await findWebhook(org, id))!;
    const window = { from: from + 60_000, to: from + 180_000 };
    expect(await replayEvents(org, 'operator', webhook, window)).toEqual({
      count: 2,
      nextFrom: null,
    });
    expect(await replayEvents(org, 'operator', webhook, window)).toEqual({
      count: 0,
      nextFrom: null,
    });
    services.deliveries.nudge();
    expect((await settled(id)).map(({ cause }) => cause)).toEqual(['replay', 'replay']);
  });

  test('a window of more events than a replay sends is gone on with where it ended', async () => {
    const { db, id } = await subscribeApart();
    const from = Date.now() + 200 * DAY_MS;
    await happenMany(db, MAX_REPLAYED + 50, from);
    const own = forOrg(db, org.id);
    const webhook = (await findWebhook(own, id))!;
    const window = { from, to: from + DAY_MS };
    const first = await replayEvents(own, 'operator', webhook, window);
    expect(first).toEqual({ count: MAX_REPLAYED, nextFrom: from + MAX_REPLAYED });
    const rest = await replayEvents(own, 'operator', webhook, { ...window, from: first.nextFrom! });
    expect(rest).toEqual({ count: 50, nextFrom: null });
    await deleteWebhook(own, 'operator', id);
    await db.close();
  });

  test('many deliveries are made, given up and deleted in short transactions', async () => {
    const { db, id } = await subscribeApart();
    const from = Date.now() + 201 * DAY_MS;
    await happenMany(db, 1_000, from);
    let most = 0;
    const write: Database['write'] = async (statements) => {
      const results = await db.write(statements);
      most = Math.max(most, ...results.map(({ changes }) => changes));
      return results;
    };
    const own = forOrg({ ...db, write }, org.id);
    const webhook = (await findWebhook(own, id))!;
    const steps = [
      () => replayEvents(own, 'operator', webhook, { from, to: from + DAY_MS }),
      () => updateWebhook(own, 'operator', id, { status: 'disabled' }),
      () => deleteWebhook(own, 'operator', id),
    ];
    for (const [step, left] of [1_000, 0, 0].entries()) {
      await steps[step]!();
      const pending = await pageDeliveries(own, { webhookId: id, status: 'pending' }, WHOLE);
      expect([step, pending.items.length, most]).toEqual([step, left, BATCH]);
      most = 0;
    }
    expect(await deliveriesOf(id)).toEqual([]);
    await db.close();
  });

  test('an endpoint is enabled without what was left due when it was disabled', async () => {
    const { id } = await subscribe();
    await happen(1, Date.now() + 210 * DAY_MS);
    const sql = `update webhooks set status = 'disabled' where id = ?1`;
    await services.db.write([{ sql, args: [id] }]);
    await updateWebhook(org, 'operator', id, { status: 'enabled' });
    expect(await deliveriesOf(id)).toMatchObject([{ status: 'dead', reason: 'webhook_disabled' }]);
  });

  /** An endpoint, and a connection by which nothing that is due to it is noticed. */
  async function subscribeApart() {
    const { id } = await subscribe('apart', ['account.updated']);
    return { db: await deployment.database(), id };
  }

  /** Announces changes a millisecond apart that no endpoint is told of. */
  async function happenMany(db: Database, count: number, from: number): Promise<void> {
    const sql = `insert into events (org_id, id, type, data, created_at, only_webhook_id)
      select ?1, 'evt_many' || (?4 + value), 'account.updated', ?3, ?4 + value, 'none'
      from generate_series(0, ?2 - 1)`;
    await db.write([{ sql, args: [org.id, count, JSON.stringify(CHANGE), from] }]);
    const shown = 'update events set only_webhook_id = null where only_webhook_id = ?1';
    await db.write([{ sql: shown, args: ['none'] }]);
  }

  test('a test event goes to one endpoint, of any type, and says that it tells of nothing', async () => {
    const { id, secret } = await subscribe('one', ['run.started']);
    const other = await subscribe('other');
    const webhook = (await findWebhook(org, id))!;
    for (const type of EVENT_TYPES) await sendTestEvent(org, 'operator', webhook, type);
    services.deliveries.nudge();
    expect(await settled(id)).toHaveLength(EVENT_TYPES.length);
    expect(await deliveriesOf(other.id)).toEqual([]);
    for (const got of receiver.received) {
      const { type, data, test } = got.event;
      expect(test).toBe(true);
      expect<unknown>(EVENTS[type as EventType].parse(data)).toEqual(data);
      expect(await isGenuine(got, secret)).toBe(true);
    }
  });

  test('nothing is sent to an endpoint that is disabled', async () => {
    const { id } = await subscribe();
    await happen();
    const [log] = await settled(id);
    await updateWebhook(org, 'operator', id, { status: 'disabled' });
    const webhook = (await findWebhook(org, id))!;
    await expect(redeliver(org, 'operator', log!.id)).rejects.toThrow('disabled');
    await expect(sendTestEvent(org, 'operator', webhook, 'run.started')).rejects.toThrow(
      'disabled',
    );
    await happen();
    expect(await deliveriesOf(id)).toHaveLength(1);
  });
});

describe('a rotation', () => {
  test('has both secrets sign until its grace is over', async () => {
    const { id, secret: old } = await subscribe();
    const rotated = await rotateWebhookSecret(org, services.master, 'operator', id, 3_600_000);
    await happen();
    await receiver.until(({ length }) => length === 1);
    const [during] = receiver.received;
    expect(during!.headers.get('x-rungate-signature')).toMatch(/^v1=[0-9a-f]{64},v1=[0-9a-f]{64}$/);
    expect(await Promise.all([old, rotated!.secret].map((one) => isGenuine(during!, one)))).toEqual(
      [true, true],
    );
    const ended = await rotateWebhookSecret(org, services.master, 'operator', id, 0);
    await happen();
    await receiver.until(({ length }) => length === 2);
    const after = receiver.received[1]!;
    const secrets = [old, rotated!.secret, ended!.secret];
    expect(await Promise.all(secrets.map((one) => isGenuine(after, one)))).toEqual([
      false,
      false,
      true,
    ]);
    expect(await findWebhook(org, ended!.secret)).toMatchObject({ id, previousUntil: null });
    expect(await findWebhook(org, old)).toBeUndefined();
  });

  const rotate = async (id: string, token: string, body?: string) => {
    const headers = { authorization: `Bearer ${token}` };
    const request = new Request(`http://rungate/api/webhooks/${id}/rotate-secret`, {
      method: 'POST',
      headers,
      ...(body === undefined ? {} : { body }),
    });
    const response = await makeApp(services)(request, { address: '127.0.0.1' });
    return { status: response.status, body: await response.json() };
  };

  test('over REST needs an admin token, and shows the secret once', async () => {
    const { id } = await subscribe();
    const { stdout } = await deployment.cli(
      'init',
      '--org',
      'Beta',
      '--email',
      'b@example.com',
      '--json',
    );
    const made = JSON.parse(stdout) as { adminToken: string };
    const beta = (await findOrg(services.db, 'beta'))!;
    const wanted = { url: `${receiver.url}/beta`, events: ['*'], description: '' };
    const own = await createWebhook(beta, services.master, 'operator', wanted);
    const { status, body } = await rotate(own.id, made.adminToken, '{"graceS":60}');
    expect([status, body.id]).toEqual([200, own.id]);
    expect(body.secret).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/);
    expect(Date.parse(body.previousUntil)).toBeGreaterThan(Date.now());
    expect((await rotate(own.id, made.adminToken)).status).toBe(200);
    const foreign = await rotate(id, made.adminToken);
    const missing = await rotate(
      id.replace(/.$/, (last) => (last === '0' ? '1' : '0')),
      made.adminToken,
    );
    expect([foreign.status, foreign.body]).toEqual([404, missing.body]);
    for (const body of [
      '{"graceS":604801}',
      '{"graceS":-1}',
      '{"graceS":1.5}',
      '{"grace":1}',
      '[]',
      '{',
    ]) {
      expect([body, (await rotate(own.id, made.adminToken, body)).status]).toEqual([body, 400]);
    }
    expect((await rotate(own.id, deployment.token)).status).toBe(403);
    expect((await rotate(own.id, 'rg_adm_nonsense')).status).toBe(401);
  });
});

describe('where deliveries go', () => {
  const REFUSED = [
    ...['127.0.0.1', '127.1', '2130706433', '0x7f.1', '0177.0.0.1', '0.0.0.0', '10.0.0.1'],
    ...['172.16.0.1', '192.168.1.1', '169.254.169.254', '100.64.0.1', '224.0.0.1', '168.63.129.16'],
    ...['[::1]', '[::]', '[::ffff:127.0.0.1]', '[::ffff:7f00:1]', '[64:ff9b::7f00:1]'],
    ...['[2002:7f00:1::]', '[fc00::1]', '[fe80::1]', '[ff02::1]', '[2001:db8::1]'],
  ].map((host) => `https://${host}/hook`);
  const nowhere = parseAllowList('');

  test.each([
    ...REFUSED,
    'http://example.com/hook',
    'https://user:pass@example.com/',
    'https://example.com/#a',
    'ftp://example.com',
    'https:example.com',
    'https://exa mple.com',
  ])('%s is refused before it is stored', (url) => expect(judgeUrl(url, nowhere)).toBeString());

  test('is judged by the address that a name resolves to, too', async () => {
    const { db, now } = services;
    for (const address of ['127.0.0.1', '10.0.0.1', '::1', '::ffff:10.0.0.1', '169.254.169.254']) {
      const egress = makeEgress({ allow: nowhere, resolve: async () => [address] });
      const deliveries = new Deliveries({ ...services, db, egress, now });
      const wanted = { url: 'https://hook.example.test/', events: ['*'], description: '' };
      const { id } = await createWebhook(org, services.master, 'operator', wanted);
      await openDatabaseAndHappen();
      await deliveries.run(10_000);
      await deliveries.stop(0);
      const [first] = await settled(id);
      expect([address, first!.log[0]!.outcome]).toEqual([address, 'forbidden_address']);
      await deleteWebhook(org, 'operator', id);
    }
  });

  /** Through another connection, so that the process under test is not the one that is nudged. */
  async function openDatabaseAndHappen(): Promise<void> {
    const db = await openDatabase({ url: `file:${deployment.folder}/rungate.db` });
    const other = (await findOrg(db, 'acme'))!;
    await other.write(announce(other, 'account.updated', CHANGE, Date.now()));
    await db.close();
  }
});

describe('at the command line', () => {
  const run = async (...args: string[]) => {
    const { code, stdout, stderr } = await deployment.cli(...args, '--org', 'acme', '--json');
    return { code, stderr, out: stdout ? JSON.parse(stdout) : undefined };
  };

  test('a file makes webhooks, tells their secrets once, and changes only what differs', async () => {
    const path = `${deployment.folder}/webhooks.json`;
    const apply = async (webhooks: object[]) => {
      await Bun.write(path, JSON.stringify({ webhooks }));
      return await run('apply', path);
    };
    const url = `${receiver.url}/applied?team=a`;
    const first = await apply([{ url, events: ['run.started', 'agent.created'] }]);
    expect(first.out).toMatchObject({
      webhooks: [{ url }],
      changes: [{ kind: 'webhook', name: url, action: 'created' }],
    });
    const [{ secret }] = first.out.webhooks;
    expect(secret).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/);
    const same = await apply([{ url, events: ['agent.created', 'run.started'] }]);
    expect(same.out).toEqual({ tokens: [], changes: [] });
    const more = await apply([{ url }]);
    expect(more.out).toEqual({
      tokens: [],
      changes: [{ kind: 'webhook', name: url, action: 'updated' }],
    });
    expect(await findWebhook(org, secret)).toMatchObject({ events: ['*'] });
    const bad: [object[], string][] = [
      [[{ url, events: ['run.begun'] }], 'webhooks[0].events[0]: must be'],
      [[{ url, events: [] }], 'webhooks[0].events: must name'],
      [[{ url: 'https://10.0.0.1/' }], 'webhooks[0].url: must be https and public'],
      [[{ url }, { url }], 'webhooks[1].url: repeats'],
    ];
    for (const [webhooks, told] of bad) {
      const { code, stderr } = await apply(webhooks);
      expect([code, stderr]).toEqual([2, expect.stringContaining(told)]);
    }
  });

  test('endpoints are managed, and none of their secrets is told again', async () => {
    const { out: made } = await run(
      'webhooks',
      'add',
      `${receiver.url}/cli`,
      '--event',
      'run.started',
    );
    const { out: rotated } = await run('webhooks', 'rotate', made.secret, '--grace', '60');
    expect([rotated.id, rotated.secret === made.secret]).toEqual([made.id, false]);
    const { out: listed } = await run('webhooks', 'list');
    expect(listed).toMatchObject([{ id: made.id, events: ['run.started'], status: 'enabled' }]);
    for (const { secret } of [made, rotated]) expect(JSON.stringify(listed)).not.toContain(secret);
    expect((await run('webhooks', 'disable', made.id)).out).toEqual({
      id: made.id,
      status: 'disabled',
    });
    const refused = await run('webhooks', 'test', made.id);
    expect([refused.code, refused.stderr]).toEqual([1, expect.stringContaining('disabled')]);
    expect((await run('webhooks', 'enable', made.id)).code).toBe(0);
    await run('webhooks', 'test', made.id, '--type', 'agent.created');
    services.deliveries.nudge();
    const [{ id }] = (await settled(made.id)) as [DeliveryLog];
    const { out: delivery } = await run('webhooks', 'delivery', id);
    expect(delivery).toMatchObject({ cause: 'test', status: 'delivered', log: [{ number: 1 }] });
    const shown = await deployment.cli('webhooks', 'delivery', id, '--org', 'acme');
    expect(shown.stdout).toMatch(
      /\nstatus {4}delivered\n(.*\n)+.*delivered, HTTP 200, \d+ ms\n {3}thanks\n/,
    );
    const again = await run('webhooks', 'redeliver', id);
    expect(again.out.id).toStartWith('dlv_');
    expect((await run('webhooks', 'remove', made.id)).code).toBe(0);
    expect((await run('webhooks', 'rotate', made.id)).code).toBe(1);
    const wrong = await run('webhooks', 'add', 'https://127.0.0.2/', '--event', '*');
    expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringContaining('must be https')]);
    const trail = await services.db.read(
      `select action, coalesce(payload, '') as payload from audit_entries where target = ?1`,
      [made.id],
    );
    const actions = trail.map(({ action }) => action);
    expect(actions).toContain('webhook.rotate_secret');
    expect(actions).toContain('webhook.delete');
    for (const { secret } of [made, rotated]) {
      expect(JSON.stringify(trail)).not.toContain(secret.slice(6));
    }
  });
});

test('a database on a server is delivered from like a file', async () => {
  const sqld = await startSqld();
  const db = await openDatabase({ url: sqld.url });
  const { egress, now, master } = services;
  const deliveries = new Deliveries({ ...services, db, egress, now });
  try {
    await migrate(db);
    const { id } = await createOrg(db, master, 'operator', 'Remote', 'r@example.com');
    const remote = forOrg(db, id);
    const wanted = { url: `${receiver.url}/remote`, events: ['*'], description: '' };
    const { secret } = await createWebhook(remote, master, 'operator', wanted);
    const gone = { ...wanted, url: `${receiver.url}/gone` };
    await createWebhook(remote, master, 'operator', gone);
    receiver.answer = ({ path }) => new Response(null, { status: path === '/gone' ? 410 : 200 });
    await remote.write(announce(remote, 'account.updated', CHANGE, now()));
    expect(await deliveries.run(20_000)).toEqual({ delivered: 2, failed: 0, dead: 1 });
    const told = receiver.received.filter(({ path }) => path === '/remote');
    expect(told.map(({ event }) => event.type)).toEqual(['account.updated', 'webhook.disabled']);
    for (const got of told) expect(await isGenuine(got, secret)).toBe(true);
  } finally {
    await deliveries.stop(0);
    await db.close();
    await sqld.stop();
  }
});

test('two processes share what is due, and none sends what another is sending', async () => {
  const url = `file:${deployment.folder}/rungate.db`;
  const databases = await Promise.all([openDatabase({ url }), openDatabase({ url })]);
  const { egress, now } = services;
  const all = databases.map((db) => new Deliveries({ ...services, db, egress, now }));
  receiver.answer = async () => {
    await Bun.sleep(2);
    return new Response();
  };
  const hooks = await Promise.all(['a', 'b', 'c'].map((path) => subscribe(path)));
  await databases[0]!.write(
    Array.from({ length: 100 }, () => {
      const { sql, args } = announce(org, 'account.updated', CHANGE, now());
      return { sql, args };
    }),
  );
  await Promise.all(all.map((deliveries) => deliveries.run(30_000)));
  // One event at a time leaves room at every endpoint, so that only its lease keeps it apart.
  for (let count = 0; count < 20; count++) {
    const { sql, args } = announce(org, 'account.updated', CHANGE, now());
    await databases[0]!.write([{ sql, args }]);
    await Promise.all(all.map((deliveries) => deliveries.run(30_000)));
  }
  for (const { id } of hooks) {
    const states = (await deliveriesOf(id)).map(({ status, attempts }) => `${status} ${attempts}`);
    expect(states).toEqual(Array(120).fill('delivered 1'));
  }
  expect(receiver.received).toHaveLength(360);
  expect(receiver.most.atOnce).toBeLessThanOrEqual(12);
  expect(receiver.most.ofOneEvent).toBeLessThanOrEqual(3);
  await Promise.all(all.map((deliveries) => deliveries.stop(0)));
  await Promise.all(databases.map((db) => db.close()));
});
