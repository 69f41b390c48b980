/** Newer prices: fetched once a day by one process, in force in all, and never under a call in flight. */

import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  setDefaultTimeout,
  test,
} from 'bun:test';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { readSource } from '../db/catalogues.ts';
import type { Step } from '../db/steps.ts';
import { makeApp } from '../functions/app.ts';
import { boot, shutDown } from '../functions/boot.ts';
import { Catalogues } from '../functions/catalogues.ts';
import { PriceSourceError, refreshPrices } from '../functions/jobs/price.ts';
import { tick } from '../functions/scheduled.ts';
import type { Services } from '../functions/services.ts';
import { CATALOGUE, PINNED } from '../schema/rules/catalogue.ts';
import { MAX_PUBLISHED_BYTES } from '../schema/rules/published.ts';
import { finish } from './process.ts';
import { type Deployment, deploy, readTrail } from './rungate.ts';
import { startUpstream, type Upstream } from './upstream.ts';

setDefaultTimeout(60_000);

const HOUR_MS = 3_600_000;
const SECRET = 'canary-of-the-query';
const VERSION = /^prices@\d{4}-\d\d-\d\d\.[0-9a-f]{12}$/;
const USAGE = { prompt_tokens: 1_000, completion_tokens: 100, total_tokens: 1_100 };

/** A source of prices that answers as it is told. */
interface Source {
  readonly url: string;
  readonly requests: IncomingMessage[];
  answer: (request: IncomingMessage, response: ServerResponse) => void;
  /** Answers with a list, under an ETag of its own, until it is told otherwise. */
  publish(list: unknown): void;
  stop(): Promise<void>;
}

async function startSource(): Promise<Source> {
  const requests: IncomingMessage[] = [];
  const server = createServer((request, response) => {
    requests.push(request);
    source.answer(request, response);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const source: Source = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    answer: (_, response) => void response.writeHead(404).end(),
    publish(list) {
      const body = JSON.stringify(list);
      const etag = `"${Bun.hash(body)}"`;
      source.answer = (request, response) => {
        const isSame = request.headers['if-none-match'] === etag;
        response.writeHead(isSame ? 304 : 200, { etag }).end(isSame ? undefined : body);
      };
    },
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
  return source;
}

/** A list of OpenAI's models: dollars per million input tokens, output at four times as much. */
function listOf(prices: Readonly<Record<string, number>>) {
  const models = Object.entries(prices).map(([id, dollars]) => ({
    ...{ id, match: { equals: id }, context_window: 100_000 },
    prices: { input_mtok: dollars, output_mtok: 4 * dollars },
  }));
  return [{ id: 'openai', name: 'OpenAI', api_pattern: 'x', models }];
}

/** What 1,000 tokens in and 100 out cost at dollars per million. */
const costAt = (dollars: number) => 1_000 * dollars * 1_000 + 100 * 4 * dollars * 1_000;

let upstream: Upstream;
let source: Source;
/** Before the upstream: lets calls through once the gate is open. */
let door: ReturnType<typeof Bun.serve>;
let gate: Promise<void> | undefined;
let knocks = 0;
let deployment: Deployment;
let env: Record<string, string>;
let services: Services;

beforeAll(async () => {
  upstream = await startUpstream();
  source = await startSource();
  door = Bun.serve({
    hostname: '127.0.0.1',
    port: 0,
    async fetch(request) {
      knocks++;
      await gate;
      const { pathname, search } = new URL(request.url);
      const { method, headers } = request;
      const body = method === 'GET' ? {} : { body: await request.bytes() };
      return await fetch(upstream.url + pathname + search, { method, headers, ...body });
    },
  });
  deployment = await deploy({ processes: 0, upstreamUrl: `http://127.0.0.1:${door.port}` });
});

afterAll(async () => {
  await deployment?.stop();
  await door?.stop(true);
  await source?.stop();
  await upstream?.stop();
});

let sources = 0;

/** Each test has a source of its own in the database, and a process that goes by it. */
beforeEach(async () => {
  env = {
    RUNGATE_DATABASE_URL: `file:${deployment.folder}/rungate.db`,
    RUNGATE_EGRESS_ALLOW: '127.0.0.1/32',
    RUNGATE_LOG: 'silent',
    RUNGATE_PRICES_URL: `${source.url}/${++sources}/prices.json?key=${SECRET}`,
  };
  source.requests.length = 0;
  gate = undefined;
  services = await boot(env);
});

afterEach(() => shutDown(services, 0));

/** Another process on the same database, or the same one after a restart. */
async function inAnother<T>(
  work: (other: Services) => Promise<T>,
  more: Readonly<Record<string, string | undefined>> = {},
): Promise<T> {
  const other = await boot({ ...env, ...more });
  try {
    return await work(other);
  } finally {
    await shutDown(other, 0);
  }
}

let runs = 0;

async function send(on: Services, method: string, path: string, run: string, body?: object) {
  const headers = {
    authorization: `Bearer ${deployment.token}`,
    'content-type': 'application/json',
    'x-rungate-run-id': run,
  };
  const init = { method, headers, ...(body ? { body: JSON.stringify(body) } : {}) };
  const request = new Request(`http://rungate${path}`, init);
  return await makeApp(on)(request, { address: '127.0.0.1' });
}

/** Asks a model in a run of its own. */
function ask(on: Services, model: string, run = `prices-${++runs}`): Promise<Response> {
  const messages = [{ role: 'user', content: 'hello' }];
  const body = { model: `openai/${model}`, max_tokens: 200, messages };
  return send(on, 'POST', '/v1/chat/completions', run, body);
}

/** Asks a model, which uses 1,000 tokens and 100; gives the step. */
async function charge(on: Services, model: string): Promise<Step | undefined> {
  const run = `prices-${++runs}`;
  upstream.script({ usage: USAGE });
  const response = await ask(on, model, run);
  const text = await response.text();
  expect([response.status, text]).toEqual([200, expect.stringContaining('choices')]);
  return (await stepsOf(on, run))[0];
}

async function stepsOf(on: Services, run: string): Promise<Step[]> {
  const response = await send(on, 'GET', `/v1/runs/${run}/steps?limit=100`, run);
  return ((await response.json()) as { steps: Step[] }).steps;
}

/** Whether a model has no price, so that a call to it is refused. */
async function isUnpriced(on: Services, model: string): Promise<boolean> {
  const response = await ask(on, model);
  const text = await response.text();
  if (response.status === 200) return false;
  expect([response.status, text]).toEqual([403, expect.stringContaining('has no known price')]);
  return true;
}

const refresh = (on = services) => refreshPrices(on, { isUrgent: true });
const versionOf = (on: Services) => on.catalogues.inForce(on.now()).version;
const stateOf = (on: Services) => readSource(on.db, on.catalogues.source!);
/** The same process some time later. */
const after = (hours: number): Services => ({
  ...{ ...services, now: () => Date.now() + hours * HOUR_MS },
});

describe('without a source', () => {
  test('nothing is fetched and calls go by the prices that Rungate comes with', async () => {
    await inAnother(
      async (plain) => {
        expect(await refreshPrices(plain)).toBeUndefined();
        expect((await charge(plain, 'gpt-4o'))?.catalogue).toBe(CATALOGUE);
        const first = () => Promise.reject(new Error('was read'));
        const catalogues = new Catalogues({ ...plain.db, first }, plain.log, undefined);
        await catalogues.look(0);
        expect(catalogues.inForce(HOUR_MS)).toBe(PINNED);
      },
      { RUNGATE_PRICES_URL: undefined },
    );
    expect(source.requests).toEqual([]);
  });

  test('those of one that was taken away are in force no more', async () => {
    source.publish(listOf({ 'new-model': 2 }));
    await refresh();
    expect(await isUnpriced(services, 'new-model')).toBe(false);
    await inAnother(async (plain) => expect(await isUnpriced(plain, 'new-model')).toBe(true), {
      RUNGATE_PRICES_URL: undefined,
    });
  });
});

describe('a list that is published', () => {
  test('prices a new model, and each step names its version', async () => {
    expect(await isUnpriced(services, 'new-model')).toBe(true);
    source.publish(listOf({ 'new-model': 2, 'gpt-4o': 3 }));
    expect(await refreshPrices(services)).toEqual({ added: 1, changed: 1, kept: 0, heldBack: 0 });
    const version = versionOf(services);
    expect(version).toMatch(VERSION);
    const step = await charge(services, 'new-model');
    expect(step).toMatchObject({ catalogue: version, spentNanos: costAt(2), estimated: false });
    // Dearer at once; and what it does not list goes by the prices that Rungate comes with.
    expect(await charge(services, 'gpt-4o')).toMatchObject({ spentNanos: costAt(3) });
    expect((await charge(services, 'gpt-4o-mini'))?.catalogue).toBe(CATALOGUE);
  });

  test('is taken up by another process in the background, once its last look is old', async () => {
    await inAnother(async (other) => {
      source.publish(listOf({ 'new-model': 2 }));
      await refresh();
      expect(versionOf(other)).toBe(CATALOGUE);
      const reads: string[] = [];
      const first: typeof other.db.first = (sql, args) => {
        reads.push(sql);
        return other.db.first(sql, args);
      };
      const catalogues = new Catalogues({ ...other.db, first }, other.log, env.RUNGATE_PRICES_URL);
      const later = Date.now() + HOUR_MS;
      for (let at = 0; at < 100; at++) catalogues.inForce(later + at);
      expect(reads).toBeArrayOfSize(1);
      while (catalogues.inForce(later).version === CATALOGUE) await Bun.sleep(1);
      expect(catalogues.inForce(later).version).toBe(versionOf(services));
      expect(reads).toBeArrayOfSize(2);
    });
  });

  test('is in force after a restart, with the source gone', async () => {
    source.publish(listOf({ 'new-model': 2 }));
    await refresh();
    source.answer = (request) => void request.socket.destroy();
    await inAnother(async (again) => {
      expect(versionOf(again)).toBe(versionOf(services));
      expect(await charge(again, 'new-model')).toMatchObject({ spentNanos: costAt(2) });
      await expect(refresh(again)).rejects.toThrow(PriceSourceError);
      expect(await charge(again, 'new-model')).toMatchObject({ spentNanos: costAt(2) });
    });
  });

  test('is fetched once a day, and then only if it has changed', async () => {
    source.publish(listOf({ 'new-model': 2 }));
    const requested = () => source.requests.map(({ headers }) => headers['if-none-match'] ?? '');
    await refreshPrices(services);
    await refreshPrices(services);
    await refreshPrices(after(23));
    expect(requested()).toEqual(['']);
    const version = versionOf(services);
    const before = await stateOf(services);
    expect(await refreshPrices(after(25))).toBeUndefined();
    expect(requested()).toEqual(['', before!.etag!]);
    expect(versionOf(services)).toBe(version);
    expect((await stateOf(services))!.nextAt).toBeGreaterThan(before!.nextAt);
    // The same list under another ETag is no other version.
    source.answer = (_, response) =>
      void response.writeHead(200).end(JSON.stringify(listOf({ 'new-model': 2 }), null, 1));
    expect(await refreshPrices(after(50))).toEqual({ added: 0, changed: 0, kept: 0, heldBack: 0 });
    expect(versionOf(services)).toBe(version);
    source.publish(listOf({ 'new-model': 4 }));
    expect(await refreshPrices(after(75))).toMatchObject({ changed: 1 });
    expect(versionOf(services)).not.toBe(version);
  });

  test('is fetched by one process of many that tick at once', async () => {
    source.publish(listOf({ 'new-model': 2 }));
    const others = await Promise.all(Array.from({ length: 3 }, () => boot(env)));
    try {
      const reports = await Promise.all([services, ...others].map((each) => tick(each, 0)));
      const jobs = reports.map((report) =>
        report.jobs.find(({ name }) => name === 'price_refresh'),
      );
      const done = jobs.filter((job) => Object.keys(job?.counts ?? {}).length > 0);
      expect(done.map((job) => job?.counts)).toEqual([
        { added: 1, changed: 0, kept: 0, heldBack: 0 },
      ]);
      expect(jobs.every((job) => job?.outcome !== 'failed')).toBe(true);
      expect(source.requests).toBeArrayOfSize(1);
    } finally {
      await Promise.all(others.map((other) => shutDown(other, 0)));
    }
  });

  test('undoes nothing that another process has put in force meanwhile', async () => {
    await inAnother(async (other) => {
      let answered = 0;
      source.answer = async (_, response) => {
        const isFirst = answered++ === 0;
        if (isFirst) await refresh(other);
        response.writeHead(200).end(JSON.stringify(listOf(isFirst ? { slow: 2 } : { fast: 2 })));
      };
      await refresh();
      expect(answered).toBe(2);
      expect(versionOf(other)).toMatch(VERSION);
      await services.catalogues.look(Date.now());
      expect(versionOf(services)).toBe(versionOf(other));
      expect(await isUnpriced(services, 'fast')).toBe(false);
    });
  });
});

describe('a call in flight', () => {
  /** Holds calls back before the upstream while something is done. */
  async function during(pending: () => Promise<Response>, work: () => Promise<void>) {
    const seen = knocks;
    let open = () => {};
    gate = new Promise((resolve) => {
      open = resolve;
    });
    const answer = pending();
    while (knocks === seen) await Bun.sleep(1);
    await work();
    open();
    const response = await answer;
    expect(response.status).toBe(200);
    await response.bytes();
  }

  test.each([
    ['its own model', undefined],
    ['another model, which served it', 'other-model'],
  ] as const)(
    'is charged by the prices that its hold was made by, those of %s',
    async (_, served) => {
      source.publish(listOf({ 'new-model': 2, 'other-model': 1 }));
      await refresh();
      const [old, run] = [versionOf(services), `flight-${++runs}`];
      upstream.script({ usage: USAGE, ...(served ? { model: served } : {}) });
      await during(
        () => ask(services, 'new-model', run),
        async () => {
          source.publish(listOf({ 'new-model': 200, 'other-model': 100 }));
          await refresh();
          expect(versionOf(services)).not.toBe(old);
        },
      );
      expect(await stepsOf(services, run)).toMatchObject([
        { catalogue: old, spentNanos: costAt(served ? 1 : 2), estimated: false },
      ]);
      expect(await charge(services, 'new-model')).toMatchObject({ spentNanos: costAt(200) });
    },
  );

  for (const [what, prices, forget] of [
    ['by the prices that its hold was made by', { 'new-model': 2 }, false],
    ['by those that Rungate comes with, if its hold was', {}, false],
    [
      'by the prices that its hold was made by, though no list has them any more',
      { 'new-model': 2 },
      true,
    ],
  ] as const) {
    test(`that runs in the background is charged ${what}`, async () => {
      const model = 'new-model' in prices ? 'new-model' : 'gpt-4o';
      source.publish(listOf({ ...prices, unrelated: 1 }));
      await refresh();
      const run = `background-${++runs}`;
      upstream.script({ usage: { input_tokens: 1_000, output_tokens: 100, total_tokens: 1_100 } });
      const body = {
        model: `openai/${model}`,
        input: 'x',
        max_output_tokens: 500,
        background: true,
      };
      const made = await send(services, 'POST', '/v1/responses', run, body);
      const { id } = (await made.json()) as { id: string };
      const [held] = await stepsOf(services, run);
      source.publish(listOf({ [model]: 500, unrelated: 1 }));
      await refresh();
      if (forget) {
        const sql = `delete from catalogues where version = '${held?.catalogue}'`;
        await services.db.write([{ sql, args: [] }]);
      }
      // Another process knows it from the database alone.
      await inAnother(async (other) => {
        for (let turn = 0; turn < 3; turn++) {
          await (await send(other, 'GET', `/v1/responses/${id}`, run)).bytes();
        }
      });
      const [step] = await stepsOf(services, run);
      expect(step?.catalogue).toBe(held!.catalogue);
      expect(step?.estimated).toBe(false);
      expect(step).toMatchObject({ spentNanos: model === 'gpt-4o' ? 3_500_000 : costAt(2) });
      expect(step!.spentNanos).toBeLessThanOrEqual(held!.heldNanos!);
    });
  }
});

describe('a price that falls', () => {
  test('by more than a half is held back and told, until a person accepts it', async () => {
    source.publish(listOf({ 'new-model': 10, steady: 10 }));
    await refresh();
    source.publish(listOf({ 'new-model': 4.9, steady: 5 }));
    expect(await refresh()).toEqual({ added: 0, changed: 1, kept: 0, heldBack: 1 });
    expect(await charge(services, 'new-model')).toMatchObject({ spentNanos: costAt(10) });
    expect(await charge(services, 'steady')).toMatchObject({ spentNanos: costAt(5) });
    const doctor = await cli('doctor', '--json');
    expect(JSON.parse(doctor.stdout)).toMatchObject({
      ok: true,
      prices: { version: versionOf(services), heldBackCount: 1, heldBack: ['openai/new-model'] },
    });
    const shown = await cli('prices', 'show');
    expect(shown.stdout).toContain('1 lower prices were not taken over:\n  openai/new-model\n');
    const accepted = await cli('prices', 'refresh', '--accept', '--json');
    expect(JSON.parse(accepted.stdout)).toMatchObject({
      ...{ changed: 1, heldBack: [], heldBackCount: 0, failure: null },
      version: expect.stringMatching(VERSION),
    });
    await services.catalogues.look(Date.now());
    expect(await charge(services, 'new-model')).toMatchObject({ spentNanos: costAt(4.9) });
    expect(await refresh()).toBeUndefined();
    expect(await charge(services, 'new-model')).toMatchObject({ spentNanos: costAt(4.9) });
  });

  test('is kept where the list has the model no more', async () => {
    source.publish(listOf({ 'new-model': 10 }));
    await refresh();
    source.publish(listOf({ other: 1 }));
    expect(await refresh()).toEqual({ added: 1, changed: 0, kept: 1, heldBack: 0 });
    expect(await charge(services, 'new-model')).toMatchObject({ spentNanos: costAt(10) });
  });
});

const LIST = JSON.stringify(listOf({ 'new-model': 1, 'gpt-4o': 100 }));
const PRICE = '"input_mtok":100';
const page = (body: string, status = 200, headers = {}) => ({ body, status, headers });

/** What a source may answer that must change nothing. */
const BAD: Readonly<Record<string, Partial<ReturnType<typeof page>> & { breaks?: boolean }>> = {
  'a list that is cut short': page(LIST.slice(0, -20)),
  'a list whose connection breaks': { ...page(LIST), breaks: true },
  'a list that is too large': page(LIST + ' '.repeat(MAX_PUBLISHED_BYTES)),
  'a price that is not a number': page(LIST.replace(PRICE, '"input_mtok":NaN')),
  'a price beyond all numbers': page(LIST.replace(PRICE, '"input_mtok":1e309')),
  'a price below zero': page(LIST.replace(PRICE, '"input_mtok":-1')),
  'a price for everything that there is': page(LIST.replace(PRICE, '"__proto__":{"x":1}')),
  'a redirect': page('', 302, { location: '/elsewhere' }),
  'a page': page('<!doctype html>Sign in', 200, { 'content-type': 'text/html' }),
  'an error': page(LIST, 500),
  'a refusal': page('', 403),
  'that nothing has changed, though nobody asked': page('', 304),
  'a body in a code that nobody knows': page(LIST, 200, { 'content-encoding': 'x' }),
  nothing: { breaks: true },
};

describe('a source that answers with', () => {
  for (const [what, { body = '', status = 200, headers = {}, breaks }] of Object.entries(BAD)) {
    test(`${what} changes nothing, is reported, and asked again in a while`, async () => {
      source.answer = (_, response) => {
        if (!breaks) return void response.writeHead(status, headers).end(body);
        if (body === '') return void response.destroy();
        response.writeHead(status, { 'content-length': body.length });
        response.write(body.slice(0, -20), () => response.destroy());
      };
      const { jobs } = await tick(services, 0);
      expect(jobs.at(-1)).toMatchObject({
        ...{ name: 'price_refresh', outcome: 'failed', error: 'PriceSourceError' },
      });
      expect(jobs.slice(0, -1).every(({ outcome }) => outcome === 'done')).toBe(true);
      expect(versionOf(services)).toBe(CATALOGUE);
      expect(await isUnpriced(services, 'new-model')).toBe(true);
      expect(await charge(services, 'gpt-4o')).toMatchObject({ spentNanos: 3_500_000 });
      const state = await stateOf(services);
      expect(state?.version).toBeNull();
      expect(state?.failure).toMatch(/^The (price list|source of prices) .*\.$/);
      expect(state!.failure).not.toContain(SECRET);
      // A runtime may ask again by itself where a connection has broken.
      expect(source.requests.length).toBeLessThanOrEqual(breaks ? 2 : 1);
      source.publish(listOf({ 'new-model': 1 }));
      expect(await refreshPrices(after(0.1))).toBeUndefined();
      expect(await refreshPrices(after(0.5))).toMatchObject({ added: 1 });
      expect(await stateOf(services)).toMatchObject({ failure: null });
    });
  }

  test('a fetch that the end of the process breaks off is not held against the source', async () => {
    const stopping = new AbortController();
    source.answer = () => stopping.abort();
    const name = services.catalogues.source!;
    await expect(refreshPrices({ ...services, stopping })).rejects.toThrow(PriceSourceError);
    expect(await readSource(services.db, name)).toBeUndefined();
    source.publish(listOf({ 'gpt-5': 1 }));
    expect(await refreshPrices(services)).toBeDefined();
  });

  test('a list without end is given up, and the tick goes on', async () => {
    const dripping = new Set<ReturnType<typeof setInterval>>();
    source.answer = (_, response) => {
      response.writeHead(200).write('[');
      const drip = setInterval(() => response.write(' '), 20);
      dripping.add(drip);
      response.on('close', () => clearInterval(drip));
    };
    try {
      await expect(refresh()).rejects.toThrow(PriceSourceError);
    } finally {
      for (const drip of dripping) clearInterval(drip);
    }
    expect(versionOf(services)).toBe(CATALOGUE);
  });

  test('an address that is not allowed is not asked', async () => {
    const url = env.RUNGATE_PRICES_URL!.replace('http:', 'https:');
    await inAnother(
      async (other) => {
        await expect(refresh(other)).rejects.toThrow(PriceSourceError);
        expect((await stateOf(other))?.failure).toContain('forbidden address');
      },
      { RUNGATE_EGRESS_ALLOW: undefined, RUNGATE_PRICES_URL: url },
    );
  });
});

describe('what is kept', () => {
  test('of a list that was replaced is deleted after a month, and not before', async () => {
    source.publish(listOf({ a: 1 }));
    await refresh();
    const first = versionOf(services);
    for (const [days, isKept] of [
      [1, true],
      [30, true],
      [32, false],
    ] as const) {
      source.publish(listOf({ a: days + 1 }));
      await refreshPrices(after(24 * days), { isUrgent: true });
      const kept = await services.db.read('select version from catalogues', []);
      expect(kept.some(({ version }) => version === first)).toBe(isKept);
      expect(kept.some(({ version }) => version === versionOf(services))).toBe(true);
    }
  });

  test('and told names the source without what lets one in', async () => {
    source.publish(listOf({ a: 1 }));
    await refresh();
    const { origin, pathname } = new URL(env.RUNGATE_PRICES_URL!);
    const outputs = await Promise.all([
      ...[cli('doctor', '--json'), cli('prices', 'show'), cli('prices', 'refresh')],
      cli('org', 'show', '--org', 'acme', '--json'),
    ]);
    for (const { stdout, stderr } of outputs) expect(stdout + stderr).not.toContain(SECRET);
    expect(outputs[1]!.stdout).toContain(`, from ${origin}${pathname}, fetched `);
    const rows = await services.db.read('select * from price_sources', []);
    expect(JSON.stringify(rows)).not.toContain(SECRET);
    expect(source.requests[0]!.url).toContain(SECRET);
  });

  test('that cannot be read is as if there were none', async () => {
    source.publish(listOf({ a: 1 }));
    await refresh();
    await services.db.write([
      { sql: 'update catalogues set document = ?1', args: ['[{"format":"of tomorrow"}]'] },
    ]);
    await inAnother(async (other) => expect(versionOf(other)).toBe(CATALOGUE));
  });

  test('is told over GraphQL, with the price of a model by it', async () => {
    source.publish(listOf({ 'new-model': 2 }));
    await refresh();
    const query = `{
      catalogue { version source fetchedAt }
      priceOf(model: "openai/new-model") { source outputPerMillion { dollars } }
    }`;
    const request = new Request('http://rungate/graphql', {
      method: 'POST',
      headers: {
        authorization: `Bearer ${deployment.adminToken}`,
        'content-type': 'application/json',
      },
      body: JSON.stringify({ query }),
    });
    const response = await makeApp(services)(request, { address: '127.0.0.1' });
    const { data } = (await response.json()) as { data: object };
    const { origin, pathname } = new URL(env.RUNGATE_PRICES_URL!);
    expect(data).toEqual({
      catalogue: {
        ...{ version: versionOf(services), source: origin + pathname },
        fetchedAt: expect.stringMatching(/^20\d\d-/),
      },
      priceOf: { source: versionOf(services), outputPerMillion: { dollars: '8.00' } },
    });
    const shown = await cli('prices', 'show', 'openai/new-model');
    expect(shown.stdout).toContain('input $2.00, output $8.00');
    const bare = await cli('prices', 'show', 'new-model');
    expect([bare.code, bare.stderr]).toEqual([1, expect.stringContaining('below its provider')]);
  });
});

/** Runs the CLI as one more process of the same deployment. */
async function cli(...args: string[]) {
  const child = Bun.spawn([process.execPath, 'web/cli/main.ts', ...args], {
    cwd: `${import.meta.dir}/..`,
    env: { ...process.env, ...env },
    stdout: 'pipe',
    stderr: 'pipe',
  });
  return await finish(child);
}

describe.each(['bun', 'deno'] as const)('on %s', (runtime) => {
  test('serving processes take a new list up by themselves, each of them', async () => {
    source.publish(listOf({ 'new-model': 2 }));
    const served = await deploy({
      ...{ runtime, processes: 2, upstreamUrl: upstream.url },
      env: { RUNGATE_PRICES_URL: `${source.url}/${runtime}.json` },
    });
    const versionAt = async (url: string): Promise<string> => {
      const response = await fetch(`${url}/v1/chat/completions`, {
        method: 'POST',
        headers: {
          authorization: `Bearer ${served.token}`,
          'content-type': 'application/json',
          'x-rungate-run-id': 'served',
        },
        body: JSON.stringify({
          ...{ model: 'openai/new-model', max_tokens: 20 },
          messages: [{ role: 'user', content: 'hello' }],
        }),
      });
      await response.bytes();
      const steps = await readTrail(served, 'served').catch(() => []);
      return response.status === 200 ? (steps.at(-1)?.catalogue ?? '') : '';
    };
    const until = async (isNew: (version: string) => boolean) => {
      const found: string[] = [];
      for (const url of served.urls) {
        let version = await versionAt(url);
        while (!isNew(version)) {
          await Bun.sleep(100);
          version = await versionAt(url);
        }
        found.push(version);
      }
      expect(new Set(found).size).toBe(1);
      return found[0]!;
    };
    try {
      const first = await until((version) => VERSION.test(version));
      source.publish(listOf({ 'new-model': 6 }));
      const { stdout } = await served.cli('prices', 'refresh', '--json');
      expect(JSON.parse(stdout)).toMatchObject({ changed: 1 });
      const second = await until((version) => version !== first);
      expect(second).toBe((JSON.parse(stdout) as { version: string }).version);
    } finally {
      await served.stop();
    }
  });
});
