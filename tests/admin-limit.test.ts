/** The limit of the admin API: exact for each token and each session, and no dearer when it refuses. */

import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'bun:test';
import { join } from 'node:path';
import fc from 'fast-check';
import { type Database, DatabaseError } from '../db/client.ts';
import { createAdminToken } from '../db/tokens.ts';
import { makeApp } from '../functions/app.ts';
import type { Services } from '../functions/services.ts';
import { enrol, HERE, makeTown, type Place, settle, signIn, type Town } from './people.ts';
import { finish } from './process.ts';
import { type Deployment, deploy } from './rungate.ts';

const MOST = 20;
const LIMIT = { RUNGATE_MAX_ADMIN_REQUESTS_PER_MINUTE: String(MOST) };
const WINDOW_MS = 60_000;
/** A use may count for as long as its slot besides. */
const SLOT_MS = 1_000;
const QUESTION = JSON.stringify({ query: '{ me { role } }' });

const asking = (token: string): RequestInit => ({
  method: 'POST',
  headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
  body: QUESTION,
});

describe('in one process', () => {
  let town: Town;
  let place: Place;
  let services: Services;
  let now: number;
  let writes: number;
  let isDown: boolean;

  beforeAll(async () => {
    town = await makeTown(LIMIT);
  });
  afterAll(() => town?.clear());

  beforeEach(async () => {
    place = await settle(town);
    [now, writes, isDown] = [Date.now() + 3_600_000, 0, false];
    services = { ...town.services, db: watched(town.services.db), now: () => now };
  });

  function watched(db: Database): Database {
    return {
      ...db,
      write(statements) {
        writes++;
        if (isDown) throw new DatabaseError('The disk is gone.');
        return db.write(statements);
      },
    };
  }

  const send = async (path: string, init: RequestInit) =>
    await makeApp(services)(new Request(`${HERE}${path}`, init), { address: '127.0.0.1' });
  const ask = (token = place.adminToken) => send('/graphql', asking(token));
  const useUp = async (token = place.adminToken) => {
    for (let left = MOST; left > 0; left--) expect((await ask(token)).status).toBe(200);
  };

  test('GraphQL hears of it as GraphQL tells errors, with when to come back', async () => {
    await useUp();
    const answer = await ask();
    expect(answer.status).toBe(429);
    const { errors, ...rest } = (await answer.json()) as { errors: object[] };
    expect(rest).toEqual({});
    expect(errors).toEqual([
      {
        message: 'This token asks too often; try again in 60 s.',
        extensions: { code: 'RATE_LIMITED', rule: 'admin.requests', retryAfterS: 60 },
      },
    ]);
    expect(Object.fromEntries(answer.headers)).toMatchObject({
      'retry-after': '60',
      'x-ratelimit-limit': String(MOST),
      'x-ratelimit-remaining': '0',
      'x-ratelimit-reset': '60',
      ratelimit: '"admin-requests-60s";r=0;t=60',
      'ratelimit-policy': `"admin-requests-60s";q=${MOST};w=60`,
    });
    expect(answer.headers.get('x-request-id')).toStartWith('req_');
  });

  test.each([
    ['GET', '/api/export'],
    ['GET', '/api/audit/export'],
    ['POST', '/api/webhooks/whk_0/rotate-secret'],
  ])('%s %s counts, and refuses in the format of REST', async (method, path) => {
    const init = { method, headers: { authorization: `Bearer ${place.adminToken}` } };
    for (let left = MOST; left > 0; left--) {
      const { status, body } = await send(path, init);
      await body?.cancel();
      expect(status).not.toBe(429);
    }
    expect((await ask()).status).toBe(429);
    const answer = await send(path, init);
    expect(answer.status).toBe(429);
    expect(answer.headers.get('retry-after')).toBe('60');
    expect(answer.headers.get('ratelimit')).toBe('"admin-requests-60s";r=0;t=60');
    const { error } = (await answer.json()) as { error: { rungate: { code: string } } };
    expect(error.rungate.code).toBe('rate_limited');
  });

  test('each token and each session has its own', async () => {
    const { memberId } = await enrol(town, place.org, 'admin');
    const actions = ['member.read'] as const;
    const wanted = { name: 'other', actions, expiresAt: null };
    const other = await createAdminToken(place.org, 'operator', memberId, wanted);
    const member = await enrol(town, place.org, 'viewer');
    const browsers = [
      await signIn({ ...town, services }, place.org, member.email),
      await signIn({ ...town, services }, place.org, member.email),
    ];
    await useUp();
    await useUp(other.token);
    const init = { ...asking(''), headers: { 'content-type': 'application/json' } };
    for (const browser of browsers) {
      for (let left = MOST; left > 0; left--) {
        expect((await browser.ask(`${HERE}/graphql`, init)).status).toBe(200);
      }
      const refused = await browser.ask(`${HERE}/graphql`, init);
      expect(refused.status).toBe(429);
      expect(await refused.text()).toContain('This session asks too often');
    }
    expect([(await ask()).status, (await ask(other.token)).status]).toEqual([429, 429]);
  });

  test('what is refused lengthens no wait, and is let in when it was told to come back', async () => {
    const pauses = fc.array(fc.integer({ min: 0, max: 20_000 }), { minLength: 1, maxLength: 40 });
    await fc.assert(
      fc.asyncProperty(pauses, fc.nat(9_000), async (each, spreadMs) => {
        place = await settle(town);
        const used: number[] = [];
        for (let left = MOST; left > 0; left--, now += spreadMs) {
          if ((await ask()).status === 200) used.push(now);
        }
        for (const pause of each) {
          const answer = await ask();
          if (answer.status === 200) used.push(now);
          else {
            const waitS = Number(answer.headers.get('x-ratelimit-reset'));
            const inWindow = used.filter((at) => at > now - WINDOW_MS - SLOT_MS);
            expect(inWindow.length).toBeGreaterThanOrEqual(MOST);
            expect(now + waitS * 1_000).toBeLessThanOrEqual(
              inWindow.at(-MOST)! + WINDOW_MS + 2 * SLOT_MS,
            );
          }
          expect(used.filter((at) => at > now - WINDOW_MS).length).toBeLessThanOrEqual(MOST);
          now += pause;
        }
        const last = await ask();
        if (last.status === 429) {
          now += Number(last.headers.get('x-ratelimit-reset')) * 1_000;
          expect((await ask()).status).toBe(200);
        }
      }),
      { numRuns: 12 },
    );
  });

  test('a flood that is refused writes nothing', async () => {
    await useUp();
    expect((await ask()).status).toBe(429);
    writes = 0;
    for (let left = 200; left > 0; left--) expect((await ask()).status).toBe(429);
    expect(writes).toBe(0);
  });

  test('a process that can’t count lets nobody in', async () => {
    expect((await ask()).status).toBe(200);
    isDown = true;
    expect((await ask()).status).toBe(503);
  });

  test('a token that is revoked or unknown is refused as such, and counts against no other', async () => {
    const unknown = `${place.adminToken.slice(0, -1)}${place.adminToken.endsWith('0') ? 1 : 0}`;
    for (let left = 2 * MOST; left > 0; left--) expect((await ask(unknown)).status).toBe(401);
    await useUp();
  });
});

describe('in several processes', () => {
  let rungate: Deployment;

  beforeAll(async () => {
    rungate = await deploy({ env: LIMIT, processes: 2 });
  });
  afterAll(() => rungate?.stop());

  test('of many who ask at once exactly as many are answered as may be', async () => {
    await rungate.serve('deno');
    const urls = rungate.servers.map(({ ready }) => ready.groups?.url);
    const answers = await Promise.all(
      Array.from({ length: 10 * MOST }, async (_, at) => {
        const answer = await fetch(`${urls[at % urls.length]}/graphql`, asking(rungate.adminToken));
        await answer.text();
        return answer.status;
      }),
    );
    const counts = Object.groupBy(answers, String);
    expect(counts['200']?.length).toBe(MOST);
    expect(counts['429']?.length).toBe(9 * MOST);
  });
});

describe('the command line', () => {
  const often = { ratelimit: '"admin-requests-60s";r=0;t=1', 'retry-after': '0' };
  const MAIN = join(import.meta.dir, '../web/cli/main.ts');

  /** Lists gates at a server that first answers with these headers so many times. */
  async function listGates(times: number, headers: Record<string, string>) {
    let asked = 0;
    const page = { nodes: [], pageInfo: { hasNextPage: false, endCursor: null } };
    const server = Bun.serve({
      ...{ port: 0, hostname: '127.0.0.1' },
      fetch: () =>
        ++asked <= times
          ? Response.json({ errors: [{ message: 'Too often.' }] }, { status: 429, headers })
          : Response.json({ data: { gates: page } }),
    });
    const child = Bun.spawn([process.execPath, MAIN, 'gates', 'list', '--json'], {
      env: {
        PATH: process.env.PATH ?? '',
        RUNGATE_URL: server.url.origin,
        RUNGATE_TOKEN: `rg_adm_${'a'.repeat(36)}`,
      },
      ...{ stdout: 'pipe' as const, stderr: 'pipe' as const },
    });
    const { code, stderr } = await finish(child);
    await server.stop(true);
    return { asked, code, stderr };
  }

  test('comes back when it was told to', async () => {
    expect(await listGates(2, often)).toEqual({ asked: 3, code: 0, stderr: '' });
  });

  test('gives up in the end, and at once where its token is not known', async () => {
    const gone = await listGates(9, often);
    expect({ ...gone, stderr: '' }).toEqual({ asked: 3, code: 1, stderr: '' });
    expect(gone.stderr).toContain('Too often.');
    const unknown = { ...often, ratelimit: '"address-failures-60s";r=0;t=1' };
    expect((await listGates(9, unknown)).asked).toBe(1);
  });
});
