/** Which run a call belongs to, wherever its caller says so, and how a run ends. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import fc from 'fast-check';
import { closeIdleRuns } from '../db/idle.ts';
import { findOrg } from '../db/orgs.ts';
import { setCeiling } from '../db/runs.ts';
import { makeApp } from '../functions/app.ts';
import { boot, shutDown } from '../functions/boot.ts';
import type { Services } from '../functions/services.ts';
import type { RunId } from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import { type Deployment, deploy, readTrail } from './rungate.ts';
import { ALL_KINDS, type CallOptions, call, KINDS, type Stage, stages } from './runtimes.ts';
import { SCRIPT_HEADER, startUpstream, type Upstream } from './upstream.ts';

const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736';

/** Where a run's name may stand, the first to count first. */
const SOURCES: readonly (readonly [source: string, place: CallOptions, name?: string])[] = [
  ['x-rungate-run-id', { headers: { 'x-rungate-run-id': 'run of x-rungate-run-id' } }],
  ['path', { run: 'run%20of%20path' }],
  ...[
    ...['x-claude-code-session-id', 'session-id', 'session_id', 'thread-id', 'x-session-id'],
    ...['x-session-affinity', 'helicone-session-id', 'x-litellm-session-id', 'x-portkey-trace-id'],
  ].map((header) => [header, { headers: { [header]: `run of ${header}` } }] as const),
  ['traceparent', { headers: { traceparent: `00-${TRACE}-00f067aa0ba902b7-01` } }, TRACE],
  ['metadata.rungate_run_id', metadata('rungate_run_id')],
  ['metadata.session_id', metadata('session_id')],
  ['prompt_cache_key', { members: { prompt_cache_key: 'run of prompt_cache_key' } }],
];

function metadata(member: string): CallOptions {
  return { members: { metadata: { [member]: `run of metadata.${member}` } } };
}

/** A header's value whose bytes are the UTF-8 of a text. */
const bytesOf = (text: string): string => Buffer.from(text).toString('latin1');

/** All of these places in one call. */
function merge(places: readonly CallOptions[]): CallOptions {
  const members = places.map((place) => place.members ?? {});
  const metadata = Object.assign({}, ...members.map((each) => each.metadata ?? {}));
  const run = places.map((place) => place.run).find((each) => each !== undefined);
  return {
    headers: Object.assign({}, ...places.map((place) => place.headers ?? {})),
    members: { ...Object.assign({}, ...members), metadata },
    ...(run && { run }),
  };
}

async function runOf(stage: Stage, options: CallOptions): Promise<string> {
  const response = await call(stage, 'chat', options);
  expect(response.status).toBe(200);
  await response.bytes();
  return decodeURI(response.headers.get('x-rungate-run-id') ?? '');
}

/** Asks one of Rungate's own routes about a run. */
async function askRun({ rungate }: Stage, method: string, path: string, token = rungate.token) {
  const headers = { authorization: `Bearer ${token}` };
  const response = await fetch(`${rungate.url}/v1/runs/${path}`, { method, headers });
  return { status: response.status, body: (await response.json()) as Record<string, unknown> };
}

/** Lets time pass for a run, as far as its idleness goes. */
async function idle({ rungate }: Stage, run: string, ms: number): Promise<void> {
  const database = await rungate.database();
  await database.write([
    { sql: 'update runs set active_at = active_at - ?1 where name = ?2', args: [ms, run] },
  ]);
  database.close();
}

const IDLE_S = 600;
const AGENTS = ['tester', 'other', 'idler', 'stopper', 'person', 'renewer'];

describe.each(stages({ agents: AGENTS, policy: { run: { idleTimeoutS: IDLE_S } } }))(
  'on $runtime',
  (stage) => {
    const tokenOf = (agent: string) => stage.rungate.tokens[agent] ?? '';

    describe('the name of a run', () => {
      for (const [at, [source, , name = `run of ${source}`]] of SOURCES.entries()) {
        test(`stands in ${source} unless a nearer place has one`, async () => {
          const places = SOURCES.slice(at).map(([, place]) => place);
          expect(await runOf(stage, merge(places))).toBe(name);
          const { body } = await askRun(stage, 'GET', encodeURIComponent(name));
          expect(body).toMatchObject({ name, source, status: 'open' });
        });

        test(`in ${source} alone is enough, and joins the same run again`, async () => {
          const place = SOURCES[at]?.[1] ?? {};
          const first = await runOf(stage, place);
          const steps = (await readTrail(stage.rungate, first)).length;
          expect(first).toBe(name);
          expect(await runOf(stage, place)).toBe(name);
          expect(await readTrail(stage.rungate, first)).toBeArrayOfSize(steps + 1);
        });
      }

      test('is never a person', async () => {
        const token = tokenOf('person');
        const window = await runOf(stage, { token });
        expect(window).toMatch(/^run_\w{26}$/);
        const people = [
          { user: 'u-1', safety_identifier: 's-1' },
          { user: 'u-2', safety_identifier: 's-2', metadata: { user_id: 'm-2' } },
        ];
        for (const members of people) expect(await runOf(stage, { token, members })).toBe(window);
      });

      for (const traceparent of [
        ...['00-zz-1-01', `00-${'0'.repeat(32)}-00f067aa0ba902b7-01`, 'x'],
        ...[`ff-${TRACE}-00f067aa0ba902b7-01`, `00-${TRACE}-${'0'.repeat(16)}-01`],
        ...[`00-${TRACE}-00f067aa0ba902b7-01-x`, `00-${TRACE}-00f067aa0ba902b7-01x`],
        ...[`cc-${TRACE}-00f067aa0ba902b7-01x`, `00-${TRACE.toUpperCase()}-00f067aa0ba902b7-01`],
      ]) {
        test(`is not taken from the broken traceparent ${traceparent}`, async () => {
          const token = tokenOf('person');
          expect(await runOf(stage, { token, headers: { traceparent } })).toMatch(/^run_/);
        });
      }

      for (const more of ['', '-', '-more']) {
        const traceparent = `cc-${TRACE}-00f067aa0ba902b7-01${more}`;
        test(`is taken from the traceparent of a later version ${traceparent}`, async () => {
          expect(await runOf(stage, { headers: { traceparent } })).toBe(TRACE);
        });
      }

      test('may hold characters of any script, told back in percent-encoding', async () => {
        const response = await call(stage, 'chat', { run: encodeURIComponent('Lauf № 7 é') });
        expect(response.headers.get('x-rungate-run-id')).toBe(encodeURI('Lauf № 7 é'));
        expect(await readTrail(stage.rungate, 'Lauf № 7 é')).toBeArrayOfSize(1);
      });

      for (const run of ['%ff', '%0a', 'x'.repeat(257)]) {
        test(`is refused as ${run.slice(0, 5)}`, async () => {
          const response = await call(stage, 'chat', { run });
          expect(response.status).toBe(400);
        });
      }

      for (const name of ['.', '..']) {
        test(`is refused as ${name}, which no path can say`, async () => {
          for (const [source, place] of SOURCES) {
            if (source === 'path' || source === 'traceparent') continue;
            const told = JSON.stringify(place).replaceAll(`run of ${source}`, name);
            const response = await call(stage, 'chat', JSON.parse(told));
            expect([source, response.status]).toEqual([source, 400]);
            expect(await response.text()).toContain(`The run id in ${source} must`);
          }
        });
      }

      test('is the same however its place writes it, and as it is told back', async () => {
        const named = (name: string) => ({ metadata: { session_id: name } });
        const text = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 20 });
        const mixed = fc.oneof(
          text,
          fc.constantFrom('Lauf № 7 é', 'é', 'Ã©', '50%', '%25', 'a%20b', 'a/b?c#d&e', '%C3%A9'),
        );
        const promise = fc.asyncProperty(mixed, async (name) => {
          fc.pre(name.isWellFormed() && !/^\.{1,2}$|\p{Cc}/u.test(name));
          const told = await call(stage, 'chat', { members: named(name) });
          expect(told.status).toBe(200);
          await told.bytes();
          const shown = told.headers.get('x-rungate-run-id')!;
          const isPlain = name.trim() === name && !name.includes('%');
          const places: CallOptions[] = [
            { headers: { 'x-rungate-run-id': shown } },
            { headers: { 'x-rungate-run-id': encodeURIComponent(name) } },
            { run: encodeURIComponent(name) },
            // The bytes of its UTF-8, as clients send them.
            ...(isPlain ? [{ headers: { 'x-rungate-run-id': bytesOf(name) } }] : []),
            ...(name.trim() === name ? [{ headers: { 'session-id': bytesOf(name) } }] : []),
          ];
          for (const place of places) expect(await runOf(stage, place)).toBe(name);
        });
        await fc.assert(promise, { numRuns: 40 });
      });

      test('in bytes that are not UTF-8 is what they are in Latin-1', async () => {
        expect(await runOf(stage, { headers: { 'session-id': 'caf\xe9' } })).toBe('café');
      });

      test('may be the id that Rungate gave a run of the agent, wherever it stands', async () => {
        await runOf(stage, { run: 'big' });
        const id = String((await askRun(stage, 'GET', 'big')).body.id);
        const places = SOURCES.filter(([source]) => source !== 'traceparent').map(
          ([source, place]) =>
            JSON.parse(
              JSON.stringify(place).replaceAll(
                source === 'path' ? 'run%20of%20path' : `run of ${source}`,
                id,
              ),
            ),
        );
        for (const place of places) expect(await runOf(stage, place)).toBe('big');
        expect(await readTrail(stage.rungate, id)).toBeArrayOfSize(places.length + 1);
        const token = tokenOf('other');
        expect(await runOf(stage, { run: id, token })).toBe(id);
        expect(await readTrail(stage.rungate, id, token)).toBeArrayOfSize(1);
        expect((await askRun(stage, 'GET', id)).body).toMatchObject({ id, name: 'big' });
      });

      test('belongs to one agent: the same name of another is another run', async () => {
        const headers = { 'x-rungate-run-id': 'shared' };
        await runOf(stage, { headers });
        await runOf(stage, { headers, token: tokenOf('other') });
        await runOf(stage, { headers, token: tokenOf('other') });
        expect(await readTrail(stage.rungate, 'shared')).toBeArrayOfSize(1);
        expect(await readTrail(stage.rungate, 'shared', tokenOf('other'))).toBeArrayOfSize(2);
      });
    });

    describe('the idle window', () => {
      test('holds calls without a name that follow each other closely enough', async () => {
        const token = tokenOf('idler');
        const first = await runOf(stage, { token });
        expect(await runOf(stage, { token })).toBe(first);
        await idle(stage, first, (IDLE_S - 60) * 1_000);
        expect(await runOf(stage, { token })).toBe(first);
        await idle(stage, first, (IDLE_S + 60) * 1_000);
        const second = await runOf(stage, { token });
        expect(second).not.toBe(first);
        expect(second).toMatch(/^run_\w{26}$/);
        const { body } = await askRun(stage, 'GET', first, token);
        expect(body).toMatchObject({ status: 'completed', closedReason: 'idle' });
      });

      test('is closed by x-rungate-new-run', async () => {
        const token = tokenOf('renewer');
        const first = await runOf(stage, { token });
        const second = await runOf(stage, { token, headers: { 'x-rungate-new-run': 'true' } });
        expect(second).not.toBe(first);
        expect(await runOf(stage, { token })).toBe(second);
        const { body } = await askRun(stage, 'GET', first, token);
        expect(body).toMatchObject({ status: 'completed', stepCount: 1 });
      });

      test('is one run for calls that come at once', async () => {
        const token = tokenOf('stopper');
        const runs = await Promise.all(Array.from({ length: 8 }, () => runOf(stage, { token })));
        expect(new Set(runs).size).toBe(1);
      });
    });

    describe('a path', () => {
      for (const kind of ALL_KINDS) {
        for (const version of ['', '/v1', '/v1/v1']) {
          for (const run of [undefined, 'by path']) {
            const path = `${version}${KINDS[kind].path.slice(3)}`;
            const from = run ? `/r/${encodeURIComponent(run)}` : '';
            test(`may be ${from}${path}`, async () => {
              const token = stage.rungate.token;
              const response = await fetch(`${stage.rungate.url}${from}${path}`, {
                method: 'POST',
                headers: { authorization: `Bearer ${token}`, ...KINDS[kind].headers },
                body: JSON.stringify(KINDS[kind].body),
              });
              expect(response.status).toBe(200);
              await response.bytes();
              expect(stage.upstream.requests.at(-1)?.path).toBe(KINDS[kind].path);
              const named = response.headers.get('x-rungate-run-id') ?? '';
              expect(named).toMatch(run ? /^by%20path$/ : /^run_/);
            });
          }
        }
      }

      test("keeps of its query what has a meaning upstream, such as the Anthropic SDK's ?beta=true", async () => {
        const response = await fetch(`${stage.rungate.url}/v1/messages?beta=true&key=sk-other`, {
          method: 'POST',
          headers: { 'x-api-key': stage.rungate.token, ...KINDS.messages.headers },
          body: JSON.stringify(KINDS.messages.body),
        });
        expect(response.status).toBe(200);
        expect(stage.upstream.requests.at(-1)?.path).toBe('/v1/messages?beta=true');
      });

      for (const path of [
        ...['/v1/v1/v1/chat/completions', '/v1//chat/completions', '/v1/chat/completions/'],
        ...['/v1/chat%2Fcompletions', '/v2/chat/completions', '/v1/files', '/v1/messages/batches'],
        ...['/v1/realtime', '/v1/conversations', '/v1/containers', '/v1/vector_stores', '/'],
      ]) {
        test(`that is not known is denied: ${path}`, async () => {
          const seen = stage.upstream.requests.length;
          const response = await fetch(`${stage.rungate.url}${path}`, {
            method: 'POST',
            headers: { authorization: `Bearer ${stage.rungate.token}` },
            body: JSON.stringify(KINDS.chat.body),
          });
          expect(response.status).toBe(403);
          const { error } = (await response.json()) as { error: { code: string } };
          expect(error.code).toBe('rungate_permission_route');
          expect(stage.upstream.requests).toBeArrayOfSize(seen);
        });
      }

      test('that asks for a WebSocket is denied', async () => {
        const headers = {
          ...{ authorization: `Bearer ${stage.rungate.token}`, connection: 'Upgrade' },
          ...{ upgrade: 'websocket', 'sec-websocket-version': '13' },
          'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
        };
        const response = await fetch(`${stage.rungate.url}/v1/responses`, { headers });
        expect(response.status).toBe(403);
      });
    });

    describe('a page of a trail', () => {
      test('goes on after the last step of the page before, and says where the next one does', async () => {
        for (let count = 0; count < 3; count++) await runOf(stage, { run: 'paged' });
        const ids = (await readTrail(stage.rungate, 'paged')).map(({ id }) => id);
        const idsOf = ({ body }: Awaited<ReturnType<typeof askRun>>) =>
          (body.steps as { id: string }[]).map(({ id }) => id);
        const first = await askRun(stage, 'GET', 'paged/steps?limit=2');
        const last = await askRun(stage, 'GET', `paged/steps?limit=2&after=${first.body.next}`);
        expect([first.body.next, last.body.next]).toEqual([idsOf(first)[1], null]);
        expect([...idsOf(first), ...idsOf(last)].sort()).toEqual(ids.sort());
      });

      for (const [field, value] of [
        ...['zzz', 'stp_', `stp_${'0'.repeat(25)}u`, 'a'.repeat(65)].map((text) => ['after', text]),
        ...['0', '201', '1.5', ''].map((text) => ['limit', text]),
      ]) {
        test(`is none for ${field}=${value!.slice(0, 40)}, which is told by its name`, async () => {
          await runOf(stage, { run: 'unpaged' });
          const { status, body } = await askRun(stage, 'GET', `unpaged/steps?${field}=${value}`);
          expect([status, (body.error as { param: unknown }).param]).toEqual([400, field]);
        });
      }
    });

    describe('completing a run', () => {
      test('may be done twice, and ends it for good', async () => {
        await runOf(stage, { run: 'done' });
        const first = await askRun(stage, 'POST', 'done/complete');
        expect(first).toMatchObject({ status: 200, body: { status: 'completed', name: 'done' } });
        const second = await askRun(stage, 'POST', 'done/complete');
        expect(second).toEqual(first);
        for (const kind of ALL_KINDS) {
          const response = await call(stage, kind, { run: 'done' });
          expect(response.status).toBe(403);
          expect(await response.text()).toContain('is completed; use a new run id.');
        }
        const steps = await readTrail(stage.rungate, 'done');
        expect(steps.map(({ kind, outcome }) => [kind, outcome])).toEqual([
          ['model_call', 'ok'],
          ...ALL_KINDS.map(() => ['denial', 'run_closed']),
        ]);
      });

      for (const [status, reason, until] of [
        ...[['open', null, null] as const, ['completed', 'idle', null] as const],
        ...[
          ['blocked', 'budget.run', null] as const,
          ['blocked', 'budget.agent_per_day', 1] as const,
        ],
        ['blocked', 'loop', null] as const,
      ]) {
        test(`that is ${status}, ${reason}, ${until}, is final too: nothing opens it again`, async () => {
          const name = `over ${status} ${reason}`;
          await runOf(stage, { run: encodeURIComponent(name) });
          const database = await stage.rungate.database();
          await database.write([
            {
              sql: `update runs set status = ?1, closed_reason = ?2, closed_at = iif(?2 is null, null, 1),
                  blocked_until = ?3, ceiling_nanos = spent_nanos
                where name = ?4`,
              args: [status, reason, until, name],
            },
          ]);
          const path = `${encodeURIComponent(name)}/complete`;
          const first = await askRun(stage, 'POST', path);
          expect(first.body).toMatchObject({
            ...{ status: 'completed', blockedUntil: null },
            closedReason: status === 'blocked' ? reason : 'completed',
          });
          expect(await askRun(stage, 'POST', path)).toEqual(first);
          const org = (await findOrg(database, 'acme'))!;
          await setCeiling(org, 'operator', first.body.id as RunId, 1_000_000_000_000 as Nanos);
          const events = await org.read(
            `select type from events where org_id = ?1 and data ->> '$.runId' = ?2
               and data ->> '$.reason' = 'completed'`,
            String(first.body.id),
          );
          database.close();
          expect(events).toEqual([{ type: 'run.completed' }]);
          const refused = await call(stage, 'chat', { run: encodeURIComponent(name) });
          expect(refused.status).toBe(403);
          expect(await refused.text()).toContain('is completed; use a new run id.');
        });
      }

      test('of a window lets the next call open another', async () => {
        const token = tokenOf('renewer');
        const first = await runOf(stage, { token });
        expect((await askRun(stage, 'POST', `${first}/complete`, token)).status).toBe(200);
        expect(await runOf(stage, { token })).not.toBe(first);
      });

      test("is not possible for another agent's run, nor is reading it", async () => {
        await runOf(stage, { run: 'private' });
        const { body } = await askRun(stage, 'GET', 'private');
        for (const id of ['private', String(body.id)]) {
          const token = tokenOf('other');
          expect((await askRun(stage, 'GET', id, token)).status).toBe(404);
          expect((await askRun(stage, 'GET', `${id}/steps`, token)).status).toBe(404);
          expect((await askRun(stage, 'POST', `${id}/complete`, token)).status).toBe(404);
        }
        expect((await askRun(stage, 'GET', 'private')).body.status).toBe('open');
      });
    });
  },
);

/** What happens to an agent's window, so long after what happened before. */
const moments = fc.array(
  fc.record({
    afterMs: fc.oneof(fc.constantFrom(0, 2_000, 2_001), fc.nat(3_000)),
    act: fc.constantFrom('call', 'begin', 'end', 'tick'),
    isFree: fc.boolean(),
  }),
  { minLength: 2, maxLength: 6 },
);
const WINDOW_MS = 2_000;

/** An agent without run ids, whose clock is the test's. */
class Windowed {
  now = Date.UTC(2030, 0, 1);
  readonly #services: Services;
  readonly #app: ReturnType<typeof makeApp>;
  readonly #token: string;
  #inFlight: ReadableStream[] = [];
  /** The run of the last call, and since when nothing has happened in it. */
  #run: string | undefined;
  #activeAt = 0;

  constructor(services: Services, token: string) {
    this.#services = { ...services, now: () => this.now };
    this.#app = makeApp(this.#services);
    this.#token = token;
  }

  /** @returns whether a call got the run that it should. */
  async take(act: 'call' | 'begin' | 'end' | 'tick', isFree: boolean): Promise<boolean> {
    if (act === 'tick') return await this.#tick();
    if (act === 'end') return await this.#end();
    const isKept = this.#inFlight.length > 0 || this.now - this.#activeAt <= WINDOW_MS;
    const response = await this.#ask(act, isFree);
    const run = response.headers.get('x-rungate-run-id')!;
    const isRight = response.status === 200 && (run === this.#run) === (isKept && !!this.#run);
    this.#run = run;
    this.#activeAt = this.now;
    if (act === 'begin') this.#inFlight.push(response.body!);
    else await response.bytes();
    return isRight;
  }

  /** So much later, with nothing in flight. */
  async rest(): Promise<void> {
    while (this.#inFlight.length > 0) await this.#end();
    this.now += 86_400_000;
  }

  async #tick(): Promise<boolean> {
    const isIdle = this.#inFlight.length === 0 && this.now - this.#activeAt >= WINDOW_MS;
    const closed = await closeIdleRuns(this.#services.db, this.now, 900, 10);
    if (!isIdle) return closed === 0;
    this.#run = undefined;
    return true;
  }

  async #end(): Promise<boolean> {
    const body = this.#inFlight.shift();
    if (!body) return true;
    await body.cancel();
    const sql = 'select count(*) as n from steps where settled_at is null';
    const left = async () => Number((await this.#services.db.read(sql, []))[0]!.n);
    while ((await left()) > this.#inFlight.length) await Bun.sleep(2);
    this.#activeAt = this.now;
    return true;
  }

  async #ask(act: 'call' | 'begin', isFree: boolean): Promise<Response> {
    const stalled = { [SCRIPT_HEADER]: JSON.stringify({ stallAfterChunks: 1 }) };
    const request = new Request(`http://rungate${KINDS.chat.path}`, {
      method: 'POST',
      headers: {
        ...{ authorization: `Bearer ${this.#token}`, 'content-type': 'application/json' },
        ...(act === 'begin' ? stalled : {}),
      },
      body: JSON.stringify({
        ...KINDS.chat.body,
        ...{ model: isFree ? 'free-model' : 'test-model', stream: act === 'begin' },
      }),
    });
    return await this.#app(request, { address: '127.0.0.1' });
  }
}

describe('at any moment', () => {
  let upstream: Upstream;
  let deployment: Deployment;
  let services: Services;
  beforeAll(async () => {
    upstream = await startUpstream();
    deployment = await deploy({
      ...{ processes: 0, upstreamUrl: upstream.url },
      policy: { run: { idleTimeoutS: WINDOW_MS / 1_000 } },
      prices: [{ model: 'openai/free-model', inputPerMillion: '0', outputPerMillion: '0' }],
    });
    services = await boot({
      RUNGATE_DATABASE_URL: `file:${deployment.folder}/rungate.db`,
      RUNGATE_EGRESS_ALLOW: '127.0.0.1/32',
      RUNGATE_LOG: 'silent',
    });
  });
  afterAll(async () => {
    await shutDown(services, 0);
    await deployment.stop();
    await upstream.stop();
  });

  test('a run goes on while a call of it is in flight, and idles from the end of its last', async () => {
    const agent = new Windowed(services, deployment.token);
    const promise = fc.asyncProperty(moments, async (all) => {
      const told: boolean[] = [];
      for (const { afterMs, act, isFree } of all) {
        agent.now += afterMs;
        told.push(await agent.take(act, isFree));
      }
      await agent.rest();
      expect(told).toEqual(all.map(() => true));
    });
    await fc.assert(promise, { numRuns: 100 });
  });
});
