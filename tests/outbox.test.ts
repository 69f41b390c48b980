/** The outbox under fire: processes are killed while endpoints fail, and everything arrives. */

import { expect, setDefaultTimeout, test } from 'bun:test';
import type { Database } from '../db/client.ts';
import type { Org } from '../db/org.ts';
import { findOrg } from '../db/orgs.ts';
import { announce } from '../db/outbox.ts';
import { openMasterKeys } from '../db/seal.ts';
import { createWebhook } from '../db/webhooks.ts';
import { JITTER, RETRY_DELAYS_MS } from '../schema/rules/schedule.ts';
import { isGenuine, type Receiver, startReceiver } from './receiver.ts';
import { type Deployment, deploy } from './rungate.ts';

/** Set RUNGATE_TEST_EVENTS=10000 for the long version. */
const EVENTS = Number(process.env.RUNGATE_TEST_EVENTS ?? 500);
const KILLS = Math.max(6, Math.round(EVENTS / 100));
const ENDPOINTS = 3;
const MASTER_KEYS = `test:${Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString('base64')}`;

setDefaultTimeout(60_000 + EVENTS * 30);

/** One attempt in four for an event fails, in one of several ways; never two for the same. */
function makeFlaky(receiver: Receiver): void {
  const failed = new Set<string>();
  receiver.answer = async ({ path, event }) => {
    const key = path + event.id;
    if (Math.random() > 0.25 || failed.has(key)) return new Response();
    failed.add(key);
    if (Math.random() < 0.1) await Bun.sleep(1_000);
    return new Response(null, { status: 500 + Math.floor(Math.random() * 4) });
  };
}

/** Announces events, beside changes that are rolled back together with theirs. */
async function makeEvents(org: Org): Promise<number> {
  let lost = 0;
  for (let at = 0; at < EVENTS; at++) {
    await org.write(announce(org, 'account.updated', { change: `change ${at}` }, Date.now()));
    if (at % 10 !== 0) continue;
    const bad = org.statement('insert into events (org_id, id) values (?1, ?2)', 'incomplete');
    const told = announce(org, 'account.updated', { change: 'lost' }, Date.now());
    await org.write(told, bad).catch(() => lost++);
    await Bun.sleep(Math.random() * 50);
  }
  return lost;
}

async function killAtRandom(deployment: Deployment): Promise<void> {
  for (let count = 0; count < KILLS; count++) {
    await Bun.sleep(Math.random() * 400);
    const alive = deployment.servers.slice(-2);
    await alive[Math.floor(Math.random() * alive.length)]!.stop('SIGKILL');
    await deployment.serve();
  }
}

async function untilEmpty(db: Database): Promise<void> {
  for (let left = 6_000 + EVENTS; left > 0; left--) {
    const [row] = await db.read(`select 1 as found from deliveries where status = 'pending'`, []);
    if (!row) return;
    await Bun.sleep(10);
  }
  throw new Error('the outbox does not empty');
}

test(`${EVENTS} events reach flaky endpoints although processes are killed at random`, async () => {
  const env = {
    RUNGATE_MASTER_KEYS: MASTER_KEYS,
    RUNGATE_DATABASE_SYNCHRONOUS: 'normal',
    RUNGATE_LOG: 'info',
  };
  const deployment = await deploy({ processes: 2, env });
  const receiver = startReceiver();
  const db = await deployment.database();
  try {
    makeFlaky(receiver);
    const org = (await findOrg(db, 'acme'))!;
    const master = openMasterKeys(MASTER_KEYS);
    const hooks = await Promise.all(
      Array.from({ length: ENDPOINTS }, (_, at) => {
        const url = `${receiver.url}/${at}`;
        return createWebhook(org, master, 'operator', { url, events: ['*'], description: '' });
      }),
    );
    const [lost] = await Promise.all([makeEvents(org), killAtRandom(deployment)]);
    await untilEmpty(db);
    expect(lost).toBe(Math.ceil(EVENTS / 10));

    const arrived = new Set(
      receiver.received.map(({ path, event }) => `${path} ${event.data.change}`),
    );
    expect(arrived.size).toBe(EVENTS * ENDPOINTS);
    expect([...arrived].filter((text) => text.includes('lost'))).toEqual([]);
    const [counted] = await db.read(
      `select count(*) as every, sum(status = 'delivered') as delivered from deliveries`,
      [],
    );
    expect(counted).toEqual({ every: EVENTS * ENDPOINTS, delivered: EVENTS * ENDPOINTS });
    for (const got of receiver.received.slice(-20)) {
      expect(await isGenuine(got, hooks[Number(got.path.slice(1))]!.secret)).toBe(true);
    }
    await expectSchedule(db);
    expect(receiver.most.ofOneEvent).toBeLessThanOrEqual(ENDPOINTS);
  } finally {
    await db.close();
    await deployment.stop();
    await receiver.stop();
  }
});

/** Attempts that were recorded are as far apart as the schedule says, or further after a kill. */
async function expectSchedule(db: Database): Promise<void> {
  const rows = await db.read(
    `select a.number, b.started_at - a.started_at as gap
     from delivery_attempts a
     join delivery_attempts b on b.delivery_id = a.delivery_id and b.number = a.number + 1`,
    [],
  );
  expect(rows.length).toBeGreaterThan(0);
  for (const { number, gap } of rows) {
    const dueMs = RETRY_DELAYS_MS[Number(number) - 1]! * (1 - JITTER);
    expect(Number(gap)).toBeGreaterThanOrEqual(Math.floor(dueMs));
  }
}
