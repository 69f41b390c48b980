/** Webhooks, deliveries, events and the audit trail over GraphQL. */

import {
  afterAll,
  beforeAll,
  beforeEach,
  describe,
  expect,
  setDefaultTimeout,
  test,
} from 'bun:test';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import type { Database } from '../db/client.ts';
import type { Org } from '../db/org.ts';
import { createOrg, findOrg } from '../db/orgs.ts';
import { announce } from '../db/outbox.ts';
import { newId, newMasterKey, openMasterKeys } from '../db/seal.ts';
import { createWebhook } from '../db/webhooks.ts';
import { EVENT_TYPES, exampleOf } from '../schema/events.ts';
import { isGenuine, type Receiver, startReceiver } from './receiver.ts';
import { type Deployment, deploy } from './rungate.ts';
import { bearer, makeWorld } from './world.ts';

setDefaultTimeout(60_000);

const MASTER = newMasterKey('test');

let rungate: Deployment;
let receiver: Receiver;
let db: Database;
let org: Org;
/** The admin token of another org of the deployment. */
let foreign: string;

beforeAll(async () => {
  receiver = startReceiver();
  rungate = await deploy({ env: { RUNGATE_MASTER_KEYS: MASTER } });
  db = await rungate.database();
  org = (await findOrg(db, 'acme'))!;
  const master = openMasterKeys(MASTER);
  foreign = (await createOrg(db, master, 'operator', 'Other', 'other@example.com')).adminToken;
});
afterAll(async () => {
  await db.close();
  await rungate.stop();
  await receiver.stop();
});
beforeEach(() => {
  receiver.received.length = 0;
  receiver.answer = () => new Response('thanks');
});

interface Answer {
  // biome-ignore lint/suspicious/noExplicitAny: what comes back is what the query asks for
  readonly data: any;
  readonly errors?: readonly { message: string; extensions: { code: string } }[];
}

async function ask(query: string, variables: object = {}, token = rungate.adminToken) {
  const response = await fetch(`${rungate.url}/graphql`, {
    method: 'POST',
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    body: JSON.stringify({ query, variables }),
  });
  return (await response.json()) as Answer;
}

/** Runs a mutation and gives its payload. */
async function run(name: string, input: object, fields: string, token?: string) {
  const type = `${name[0]!.toUpperCase()}${name.slice(1)}Input`;
  const query = `mutation Run($input: ${type}!) {
    ${name}(input: $input) { ${fields} errors { code field message } }
  }`;
  const { data, errors } = await ask(query, { input }, token);
  expect(errors).toBeUndefined();
  return data[name];
}

let paths = 0;

/** A webhook of its own for a test. */
async function add(events: readonly string[] = ['*']) {
  const url = `${receiver.url}/${++paths}`;
  const { webhook, secret, errors } = await run(
    'webhookCreate',
    { url, events, description: 'test' },
    'webhook { id url } secret',
  );
  expect(errors).toEqual([]);
  return { id: webhook.id as string, url, secret: secret as string };
}

const auditOf = async (action: string) =>
  (
    await ask(
      `query Audit($filter: AuditFilter) {
        auditEntries(first: 1, filter: $filter) { nodes { action target outcome before after } }
      }`,
      { filter: { action } },
    )
  ).data.auditEntries.nodes[0];

describe('a webhook', () => {
  test('is made, read, changed, disabled, enabled and deleted, each time on the trail', async () => {
    const { id, url, secret } = await add(['run.started', 'run.blocked']);
    expect(secret).toStartWith('whsec_');
    const READ = `query Read($id: WebhookID!) {
      webhook(id: $id) { id url description events status disabledReason createdBy }
    }`;
    const read = async () => (await ask(READ, { id })).data.webhook;
    expect(await read()).toMatchObject({
      ...{ id, url, description: 'test', status: 'ENABLED', disabledReason: null },
      events: ['run.blocked', 'run.started'],
    });
    expect(JSON.stringify(await ask('{ webhooks { nodes { url } } }'))).not.toContain(secret);
    for (const [change, seen] of [
      [
        { description: 'other', events: ['*'] },
        { description: 'other', events: ['*'] },
      ],
      [{ url: `${url}/moved` }, { url: `${url}/moved` }],
      [{ status: 'DISABLED' }, { status: 'DISABLED', disabledReason: 'by_hand' }],
      [{ status: 'ENABLED' }, { status: 'ENABLED', disabledReason: null }],
    ]) {
      const updated = await run('webhookUpdate', { webhookId: id, ...change }, 'webhook { id }');
      expect(updated).toEqual({ webhook: { id }, errors: [] });
      expect(await read()).toMatchObject(seen!);
      expect(await auditOf('webhook.update')).toMatchObject({ target: id, outcome: 'ALLOWED' });
    }
    const deleted = await run('webhookDelete', { webhookId: id }, 'deletedWebhookId');
    expect(deleted).toEqual({ deletedWebhookId: id, errors: [] });
    expect(await read()).toBeNull();
    const entry = await auditOf('webhook.delete');
    expect(entry).toMatchObject({ target: id, before: { url: `${url}/moved` }, after: null });
  });

  test('that another could not be told from says so, as does every wrong value, by its field', async () => {
    const { id, url } = await add();
    const create = (input: object) => run('webhookCreate', input, 'webhook { id } secret');
    const refused = async (outcome: Promise<{ errors: { code: string; field: string[] }[] }>) => {
      const { errors, ...rest } = await outcome;
      expect(Object.values(rest).every((value) => value === null)).toBe(true);
      return errors.map(({ code, field }) => [code, field[0]]);
    };
    expect(await refused(create({ url }))).toEqual([['INVALID', 'url']]);
    for (const wrong of [
      'ftp://x.example',
      'http://10.0.0.1/',
      'x',
      `https://a.example/${'x'.repeat(2_000)}`,
    ]) {
      expect([wrong, await refused(create({ url: wrong }))]).toEqual([wrong, [['INVALID', 'url']]]);
    }
    const good = 'https://hooks.example.com/wrong';
    const events = await refused(create({ url: good, events: ['run.none'] }));
    expect(events).toEqual([['INVALID', 'events']]);
    expect(await refused(create({ url: good, events: [] }))).toEqual([['INVALID', 'events']]);
    const description = 'x'.repeat(501);
    expect(await refused(create({ url: good, description }))).toEqual([['INVALID', 'description']]);
    const rotate = run('webhookRotateSecret', { webhookId: id, graceS: 604_801 }, 'secret');
    expect(await refused(rotate)).toEqual([['INVALID', 'graceS']]);
    const type = { webhookId: id, type: 'run.none' };
    expect(await refused(run('webhookTest', type, 'event { id }'))).toEqual([['INVALID', 'type']]);
  });

  test('has its secret rotated over GraphQL and REST alike: the new one and the old one sign', async () => {
    const { id, secret } = await add();
    const graph = await run('webhookRotateSecret', { webhookId: id }, 'secret previousUntil');
    expect(Date.parse(graph.previousUntil)).toBeGreaterThan(Date.now());
    await run('webhookTest', { webhookId: id }, 'event { id isTest }');
    await receiver.until(({ length }) => length === 1);
    for (const good of [secret, graph.secret]) {
      expect(await isGenuine(receiver.received[0]!, good)).toBe(true);
    }
    const response = await fetch(`${rungate.url}/api/webhooks/${id}/rotate-secret`, {
      method: 'POST',
      headers: { authorization: `Bearer ${rungate.adminToken}` },
      body: JSON.stringify({ graceS: 0 }),
    });
    const rest = (await response.json()) as { secret: string; previousUntil: null };
    expect(rest.previousUntil).toBeNull();
    await run('webhookTest', { webhookId: id, type: 'run.blocked' }, 'event { id }');
    await receiver.until(({ length }) => length === 2);
    const last = receiver.received[1]!;
    expect(await isGenuine(last, rest.secret)).toBe(true);
    expect(await isGenuine(last, graph.secret)).toBe(false);
    const entry = await auditOf('webhook.rotate_secret');
    expect(entry).toMatchObject({ target: id, after: { previousUntil: null } });
  });
});

describe('an id of another org', () => {
  const ids = [
    ...[
      'webhookUpdate',
      'webhookDelete',
      'webhookRotateSecret',
      'webhookTest',
      'webhookReplay',
    ].map((name) => [name, 'webhookId'] as const),
    ['deliveryRedeliver', 'deliveryId'] as const,
  ];

  test('answers as one that is none, changes nothing and leaves no entry of a change', async () => {
    const { id: webhookId } = await add();
    await run('webhookTest', { webhookId }, 'event { id }');
    await receiver.until(({ length }) => length > 0);
    const own = await ask('{ deliveries(first: 1) { nodes { id } } }');
    const known = { webhookId, deliveryId: own.data.deliveries.nodes[0].id as string };
    const none = { webhookId: newId('webhook'), deliveryId: newId('delivery') };
    const entries = () => ask('{ auditEntries(first: 1) { nodes { id } } }', {}, foreign);
    const before = await entries();
    for (const [name, field] of ids) {
      const more = name === 'webhookReplay' ? { from: '2026-01-01T00:00:00Z' } : {};
      const [missing, theirs] = await Promise.all(
        [none, known].map((each) =>
          run(name, { [field]: each[field], ...more }, '__typename', foreign),
        ),
      );
      expect(theirs).toEqual(missing);
      expect(theirs.errors).toMatchObject([{ code: 'NOT_FOUND', field: [field] }]);
    }
    expect(await entries()).toEqual(before);
    const QUERY = `query One($webhook: WebhookID!, $delivery: DeliveryID!) {
      webhook(id: $webhook) { id } delivery(id: $delivery) { id }
    }`;
    const sought = { webhook: known.webhookId, delivery: known.deliveryId };
    expect((await ask(QUERY, sought, foreign)).data).toEqual({ webhook: null, delivery: null });
    expect((await ask(QUERY, sought)).data.webhook).toEqual({ id: webhookId });
  });
});

describe('deliveries', () => {
  test('show every attempt with what was answered, and go out again on their own', async () => {
    const { id: webhookId } = await add();
    const statuses = [500, 200, 200];
    receiver.answer = () => new Response('seen', { status: statuses.shift() ?? 200 });
    const { event } = await run('webhookTest', { webhookId }, 'event { id type isTest data }');
    expect(event).toMatchObject({ type: 'run.started', isTest: true });
    await receiver.until(({ length }) => length === 1);
    const READ = `query Deliveries($filter: DeliveryFilter) {
      deliveries(filter: $filter) { nodes {
        id status cause reason attemptCount nextAt eventType event { id }
        attempts { number status outcome durationMs responseBody responseHeaders requestHeaders }
      } }
    }`;
    const read = async (filter: object) =>
      (await ask(READ, { filter })).data.deliveries.nodes as Record<string, unknown>[];
    const settled = async () => {
      for (;;) {
        const [one] = await read({ webhookId, eventId: event.id, cause: 'TEST' });
        if (one?.attemptCount === 1) return one;
        await Bun.sleep(10);
      }
    };
    const failed = await settled();
    expect(failed).toMatchObject({
      ...{ status: 'PENDING', cause: 'TEST', eventType: 'run.started', event: { id: event.id } },
      attempts: [{ number: 1, status: 500, outcome: 'http_500', responseBody: 'seen' }],
    });
    expect(failed.nextAt).not.toBeNull();
    const again = await run(
      'deliveryRedeliver',
      { deliveryId: failed.id },
      'delivery { id cause }',
    );
    expect(again.delivery).toMatchObject({ cause: 'REDELIVERY' });
    await receiver.until(({ length }) => length === 2);
    expect(receiver.received[1]!.event.id).toBe(event.id);
    expect(await read({ webhookId, cause: 'REDELIVERY' })).toHaveLength(1);
    expect(await read({ webhookId, eventType: 'run.blocked' })).toEqual([]);
    const replay = { webhookId, from: new Date(Date.now() - 60_000).toISOString() };
    const replayed = await run('webhookReplay', replay, 'replayed hasMore nextFrom');
    expect(replayed).toMatchObject({ hasMore: false, nextFrom: null, errors: [] });
  });

  test('of a disabled webhook are neither tried nor sent again', async () => {
    const { id: webhookId } = await add();
    await run('webhookUpdate', { webhookId, status: 'DISABLED' }, 'webhook { id }');
    for (const [name, input] of [
      ['webhookTest', { webhookId }],
      ['webhookReplay', { webhookId, from: '2026-01-01T00:00:00Z' }],
    ] as const) {
      const { errors } = await run(name, input, '__typename');
      expect(errors).toMatchObject([{ code: 'INVALID' }]);
    }
  });

  test('below many webhooks are pages of their own, however they are cut', async () => {
    const webhooks = [await add(['run.completed']), await add(['run.completed'])];
    const now = Date.now();
    const data = exampleOf('run.completed');
    for (let at = 0; at < 7; at++) {
      await org.write(announce(org, 'run.completed', data, now + at));
    }
    const QUERY = `query Nested($after: String, $last: Int, $first: Int) {
      webhooks(first: 100) { nodes { id
        deliveries(first: $first, last: $last, after: $after) {
          nodes { id event { id } attempts { number } } pageInfo { hasNextPage endCursor }
        }
      } }
    }`;
    const flat = async (webhookId: string) => {
      const query = `query Flat($filter: DeliveryFilter) {
        deliveries(first: 100, filter: $filter) { nodes { id } }
      }`;
      const { data } = await ask(query, { filter: { webhookId } });
      return (data.deliveries.nodes as { id: string }[]).map(({ id }) => id);
    };
    const nested = await ask(QUERY, { first: 3 });
    for (const { id } of webhooks) {
      const found = nested.data.webhooks.nodes.find((each: { id: string }) => each.id === id);
      const all = await flat(id);
      expect(all).toHaveLength(7);
      const { nodes, pageInfo } = found.deliveries;
      expect(nodes.map((node: { id: string }) => node.id)).toEqual(all.slice(0, 3));
      expect(pageInfo.hasNextPage).toBe(true);
      const rest = await ask(QUERY, { first: 10, after: pageInfo.endCursor });
      const same = rest.data.webhooks.nodes.find((each: { id: string }) => each.id === id);
      const ids = same.deliveries.nodes.map((node: { id: string }) => node.id);
      expect(ids).toEqual(all.slice(3));
    }
  });
});

describe('events', () => {
  test('are listed by type and time, the newest first, whatever pages they are read in', async () => {
    const now = Date.now() + 3_600_000;
    const types = EVENT_TYPES.slice(0, 6);
    const told = fc.sample(fc.constantFrom(...types), 40);
    await org.write(...told.map((type, at) => announce(org, type, exampleOf(type), now + at)));
    const QUERY = `query Events($filter: EventFilter, $first: Int, $after: String) {
      events(filter: $filter, first: $first, after: $after) {
        nodes { id type data createdAt } pageInfo { hasNextPage endCursor }
      }
    }`;
    const page = fc.record({
      first: fc.integer({ min: 1, max: 100 }),
      wanted: fc.option(fc.uniqueArray(fc.constantFrom(...types), { minLength: 1 })),
      from: fc.integer({ min: 0, max: 40 }),
      to: fc.integer({ min: 0, max: 40 }),
    });
    const collect = async (filter: object, first: number) => {
      const seen: string[] = [];
      for (let after: string | null = null; ; ) {
        const { data } = await ask(QUERY, { filter, first, after });
        const { nodes, pageInfo } = data.events;
        seen.push(...nodes.map(({ type }: { type: string }) => type));
        if (!pageInfo.hasNextPage) return seen;
        after = pageInfo.endCursor;
      }
    };
    await fc.assert(
      fc.asyncProperty(page, async ({ first, wanted, from, to }) => {
        const time = (at: number) => new Date(now + at).toISOString();
        const filter = { types: wanted, from: time(from), to: time(to) };
        const expected = told.filter(
          (type, at) => at >= from && at < to && (wanted === null || wanted.includes(type)),
        );
        expect(await collect(filter, Math.max(first, 5))).toEqual(expected.reverse());
      }),
      { numRuns: 25 },
    );
    const one = (await ask(QUERY, { first: 1 })).data.events.nodes[0];
    const BY_ID = 'query One($id: EventID!) { event(id: $id) { id type data createdAt } }';
    expect((await ask(BY_ID, { id: one.id })).data.event).toEqual(one);
    expect((await ask(BY_ID, { id: one.id }, foreign)).data.event).toBeNull();
    const wrong = await ask(QUERY, { filter: { types: ['run.none'] } });
    expect(wrong.errors![0]!.extensions).toMatchObject({ code: 'INVALID', field: ['types'] });
  });
});

test('the link of a gate is told to its webhooks and to no reader of events or deliveries', async () => {
  const { id: webhookId } = await add(['approval.pending']);
  const data = exampleOf('approval.pending');
  expect(data.url).toBeString();
  await org.write(announce(org, 'approval.pending', data, Date.now()));
  const QUERY = `query Read($events: EventFilter, $deliveries: DeliveryFilter) {
    events(filter: $events) { nodes { data } }
    deliveries(filter: $deliveries) { nodes { body event { data } } }
  }`;
  const filters = { events: { types: ['approval.pending'] }, deliveries: { webhookId } };
  const answer = await ask(QUERY, filters);
  expect(answer.data.events.nodes[0].data.gateId).toBe(data.gateId);
  expect(JSON.parse(answer.data.deliveries.nodes[0].body).data.gateId).toBe(data.gateId);
  expect(JSON.stringify(answer)).not.toContain(data.url!);
});

describe('the audit trail', () => {
  const ENTRIES = `query Entries($filter: AuditFilter, $first: Int, $after: String) {
    auditEntries(filter: $filter, first: $first, after: $after) {
      nodes { id seq at action target outcome before after isErased hash
        actor { kind id memberId role tokenId address userAgent requestId } }
      pageInfo { hasNextPage endCursor }
    }
  }`;

  test('tells who did what from where, and what was before and after, by any filter', async () => {
    const { id, url } = await add();
    await run('webhookUpdate', { webhookId: id, description: 'new' }, 'webhook { id }');
    const read = async (filter: object) =>
      (await ask(ENTRIES, { filter })).data.auditEntries.nodes as {
        actor: { id: string };
        at: string;
      }[];
    const [updated, created] = await read({ target: id });
    expect(updated).toMatchObject({
      ...{ action: 'webhook.update', target: id, outcome: 'ALLOWED', isErased: false },
      ...{ before: { description: 'test' }, after: { description: 'new' } },
      actor: {
        ...{ kind: 'token', address: '127.0.0.1', role: 'owner' },
        userAgent: expect.stringContaining('Bun'),
        requestId: expect.stringMatching(/^req_/),
      },
    });
    expect(created).toMatchObject({ action: 'webhook.create', before: null, after: { url } });
    const { actor, at } = updated!;
    for (const [filter, count] of [
      [{ target: id, actor: actor.id, outcome: 'ALLOWED' }, 2],
      [{ target: id, action: 'webhook.create' }, 1],
      [{ target: id, outcome: 'REFUSED' }, 0],
      [{ target: id, actor: 'nobody' }, 0],
      [{ target: id, from: new Date(Date.parse(at) + 1).toISOString() }, 0],
      [{ target: id, to: new Date(Date.parse(at) + 1).toISOString() }, 2],
    ] as const) {
      expect([filter, await read(filter)]).toEqual([
        filter,
        expect.objectContaining({ length: count }),
      ]);
    }
    const ONE = 'query One($id: AuditEntryID!) { auditEntry(id: $id) { id } }';
    const { id: entry } = updated as unknown as { id: string };
    expect((await ask(ONE, { id: entry })).data.auditEntry).toEqual({ id: entry });
    expect((await ask(ONE, { id: entry }, foreign)).data.auditEntry).toBeNull();
  });

  test('is read in pages without gaps, whatever is written meanwhile', async () => {
    const seqs: number[] = [];
    for (let after: string | null = null; ; ) {
      const { data } = await ask(ENTRIES, { first: 3, after });
      const { nodes, pageInfo } = data.auditEntries;
      seqs.push(...nodes.map(({ seq }: { seq: number }) => seq));
      if (seqs.length === 3) await add();
      if (!pageInfo.hasNextPage) break;
      after = pageInfo.endCursor;
    }
    expect(seqs.length).toBeGreaterThan(5);
    expect(seqs).toEqual(Array.from(seqs, (_, at) => seqs[0]! - at));
    expect(seqs.at(-1)).toBe(1);
  });

  test('is signed, verified against what was held, and found out once it was changed', async () => {
    const signed = await run(
      'auditCheckpointCreate',
      {},
      'checkpoint { seq jws purpose } publicKey',
    );
    expect(signed.checkpoint.purpose).toBe('HEAD');
    const { jws } = signed.checkpoint;
    const listed = await ask('{ auditCheckpoints { nodes { jws } } }');
    expect(listed.data.auditCheckpoints.nodes).toContainEqual({ jws });
    const REPORT = 'report { ok entries headSeq headHash faults { seq fault message } }';
    const verify = (input: object, token?: string) => run('auditVerify', input, REPORT, token);
    expect((await verify({ checkpoint: jws })).report).toMatchObject({ ok: true, faults: [] });
    const wrong = await verify({ checkpoint: `${jws.slice(0, -4)}AAAA` });
    expect(wrong.errors).toMatchObject([{ code: 'INVALID', field: ['checkpoint'] }]);
    expect((await verify({ checkpoint: jws }, foreign)).report.ok).toBe(false);
    const rows = await db.read(
      'select seq, payload from audit_entries where org_id = ?1 and seq = 2',
      [org.id],
    );
    const write = (payload: unknown) =>
      db.write([
        {
          sql: 'update audit_entries set payload = ?2 where org_id = ?1 and seq = 2',
          args: [org.id, String(payload)],
        },
      ]);
    await write('{"actor":{"id":"operator"}}');
    expect((await verify({})).report).toMatchObject({
      ok: false,
      faults: [{ seq: 2, fault: 'payload' }],
    });
    await write(rows[0]!.payload);
    expect((await verify({})).report.ok).toBe(true);
  });

  test('is downloaded whole, by who may, and is what the verifier takes without the server', async () => {
    const download = (format: string, token = rungate.adminToken) =>
      fetch(`${rungate.url}/api/audit/export?format=${format}`, {
        headers: { authorization: `Bearer ${token}` },
      });
    const response = await download('jsonl');
    expect(response.headers.get('content-disposition')).toContain('.jsonl');
    const file = join(rungate.folder, 'trail.jsonl');
    writeFileSync(file, await response.text());
    const verified = await rungate.cli('audit', 'verify', '--file', file, '--json');
    expect([verified.code, verified.stderr]).toEqual([0, expect.any(String)]);
    expect(await auditOf('audit.export')).toMatchObject({ after: { format: 'jsonl' } });
    const csv = (await (await download('csv')).text()).trimEnd().split('\n');
    expect(csv[0]).toStartWith('"seq","id","at"');
    const report = JSON.parse(verified.stdout) as { entries: number };
    expect(csv.length).toBeGreaterThan(report.entries);
    expect((await download('xml')).status).toBe(400);
    expect((await download('csv', rungate.token)).status).toBe(403);
    const other = await (await download('jsonl', foreign)).text();
    expect(other).not.toContain(org.id);
  });

  test('forgets a person on request and still verifies', async () => {
    const { data } = await ask(ENTRIES, { filter: { actor: 'operator' }, first: 100 });
    const count = data.auditEntries.nodes.length as number;
    expect(count).toBeGreaterThan(0);
    const erased = await run('auditErase', { actor: 'operator' }, 'erased hasMore');
    expect(erased).toEqual({ erased: count, hasMore: false, errors: [] });
    const again = await ask(ENTRIES, { filter: { actor: 'operator' } });
    expect(again.data.auditEntries.nodes).toEqual([]);
    const { report } = await run('auditVerify', {}, 'report { ok erased }');
    expect(report).toEqual({ ok: true, erased: count });
  });
});

test('everything here takes an action, and a token without it is told which', async () => {
  const ACTIONS = {
    webhooks: ['webhook.read', '{ webhooks { nodes { id } } }'],
    deliveries: ['delivery.read', '{ deliveries { nodes { id } } }'],
    events: ['event.read', '{ events { nodes { id } } }'],
    auditEntries: ['audit.read', '{ auditEntries { nodes { id } } }'],
    auditCheckpoints: ['audit.read', '{ auditCheckpoints { nodes { seq } } }'],
  } as const;
  const made = await rungate.cli(
    ...[
      'token',
      'create',
      '--org',
      'acme',
      '--member',
      'owner@example.com',
      '--actions',
      'org.read',
      '--json',
    ],
  );
  const { token } = JSON.parse(made.stdout) as { token: string };
  for (const [field, [action, query]] of Object.entries(ACTIONS)) {
    const { data, errors } = await ask(query, {}, token);
    expect([field, data[field]]).toEqual([field, null]);
    expect(errors![0]!.extensions).toEqual({ code: 'FORBIDDEN', action } as never);
  }
});

test('a page of webhooks with deliveries, attempts and events costs as many statements for one as for ten', async () => {
  const world = await makeWorld();
  try {
    const { own, watch, ground } = world;
    const QUERY = `{ webhooks { nodes { url
      deliveries(first: 5) { nodes { attempts { outcome } event { data } } }
    } } }`;
    const count = async () => {
      let statements = 0;
      watch.seen = () => void statements++;
      const { data, errors } = await world.ask(bearer(own.adminToken), QUERY);
      watch.seen = undefined;
      expect(errors).toEqual([]);
      return { statements, text: JSON.stringify(data) };
    };
    const tell = () => own.org.write(announce(own.org, 'run.started', exampleOf('run.started'), 1));
    await tell();
    const few = await count();
    for (let at = 0; at < 9; at++) {
      const url = `https://hooks.example.com/${at}`;
      const wanted = { url, events: ['*'], description: '' };
      await createWebhook(own.org, ground.master, 'operator', wanted);
    }
    await tell();
    await tell();
    const many = await count();
    expect(many.statements).toBe(few.statements);
    expect(many.text.length).toBeGreaterThan(few.text.length * 3);
  } finally {
    await world.clear();
  }
});
