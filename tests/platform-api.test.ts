/** Tokens of the platform: good for the command line alone, from their ranges and for their time. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Database } from '../db/client.ts';
import { createPlatformToken, operatePlatform } from '../db/platform.ts';
import { newToken } from '../db/seal.ts';
import { parseCidrList } from '../schema/address.ts';
import { finish } from './process.ts';
import { type Deployment, deploy } from './rungate.ts';

setDefaultTimeout(60_000);

const EVERYWHERE = parseCidrList('0.0.0.0/0, ::/0');
/** Of multicast, so that no machine has an address there. */
const NOWHERE = parseCidrList('233.252.0.0/24');
const DAY_MS = 86_400_000;

let rungate: Deployment;
let db: Database;
beforeAll(async () => {
  rungate = await deploy({
    env: { RUNGATE_SCHEDULER_SECRET: 'a-secret-of-the-scheduler-0123456789' },
  });
  db = await rungate.database();
});
afterAll(async () => {
  await db.close();
  await rungate.stop();
});

const make = (ranges = EVERYWHERE, now = Date.now()) =>
  createPlatformToken(db, 'test', ranges, DAY_MS, now);

/** Every route of the application as its source has it, and some that are the proxy's. */
function routes(): (readonly [method: string, path: string])[] {
  const source = readFileSync(join(import.meta.dir, '../functions/app.ts'), 'utf8');
  const own = [...source.matchAll(/app\.(get|post|all)\(\s*'(\/[^'*]+)'/g)].map(
    ([, method, path]) =>
      [method === 'get' ? 'GET' : 'POST', path!.replaceAll(/:\w+/g, 'x')] as const,
  );
  const proxied = ['/v1/chat/completions', '/v1/messages', '/v1/responses', '/v1/embeddings'];
  return [...own, ...proxied.map((path) => ['POST', path] as const), ['GET', '/v1/models']];
}

/** What a route answers, without what differs from request to request. */
async function answerOf(method: string, path: string, token: string, header: string) {
  const response = await fetch(`${rungate.url}${path}`, {
    method,
    redirect: 'manual',
    headers: {
      [header]: header === 'authorization' ? `Bearer ${token}` : token,
      'content-type': 'application/json',
    },
    ...(method === 'POST' && { body: '{"query":"{ me { role } }"}' }),
  });
  const text = await response.text();
  return { status: response.status, text: text.replaceAll(/req_[0-9a-z]+/g, 'req') };
}

describe('over HTTP a platform token', () => {
  test('is refused by every route like one that is unknown', async () => {
    const { token } = await make();
    const unknown = newToken('platform');
    const seen = routes();
    expect(seen.length).toBeGreaterThan(20);
    let refused = 0;
    for (const [method, path] of seen) {
      for (const header of ['authorization', 'x-api-key']) {
        const [known, other] = [
          await answerOf(method, path, token, header),
          await answerOf(method, path, unknown, header),
        ];
        if (/^\/(healthz|status)/.test(path)) continue;
        expect([method, path, known]).toEqual([method, path, other]);
        if (known.status === 401) refused++;
      }
    }
    expect(refused).toBeGreaterThan(20);
    const [, first] = await operatePlatform(db).listAudit(2);
    expect(first?.action).not.toBe('platform_token.use');
  });
});

async function run(token: string | undefined, ...args: string[]) {
  const main = join(import.meta.dir, '../web/cli/main.ts');
  const child = Bun.spawn([process.execPath, main, 'platform', ...args], {
    cwd: rungate.folder,
    env: {
      PATH: process.env.PATH ?? '',
      RUNGATE_DATABASE_URL: `file:${rungate.folder}/rungate.db`,
      ...(token !== undefined && { RUNGATE_TOKEN: token }),
    },
    stdout: 'pipe',
    stderr: 'pipe',
  });
  return await finish(child);
}

describe('at the command line a platform token', () => {
  test('in RUNGATE_TOKEN acts by its own name on the platform’s trail', async () => {
    const { id, token } = await make();
    const changed = await run(token, 'account', 'plan', 'acme', 'growth', '--json');
    expect([changed.code, changed.stderr]).toEqual([0, '']);
    const listed = JSON.parse((await run(token, 'account', 'list', '--json')).stdout);
    expect(listed.accounts).toMatchObject([{ slug: 'acme', plan: 'growth' }]);
    const [entry] = await operatePlatform(db).listAudit(1);
    expect(entry).toMatchObject({ action: 'account.plan', actorKind: 'platform' });
    expect(entry!.payload!.text).toContain(id);
    expect(JSON.parse((await run(token, 'audit', '--json')).stdout).entries.length).toBeGreaterThan(
      0,
    );
  });

  test('is refused once it has expired or from a machine outside its ranges, and changes nothing', async () => {
    const expired = await make(EVERYWHERE, Date.now() - DAY_MS);
    const elsewhere = await make(NOWHERE);
    const before = await operatePlatform(db).findAccount('acme');
    for (const { token } of [expired, elsewhere, { token: newToken('platform') }]) {
      for (const args of [['account', 'list'], ['account', 'suspend', 'acme'], ['audit']]) {
        const { code, stdout, stderr } = await run(token, ...args);
        expect([code, stdout]).toEqual([1, '']);
        expect(stderr).toContain('token');
        expect(stderr).not.toContain(token);
      }
    }
    expect(await operatePlatform(db).findAccount('acme')).toEqual(before);
    const [entry] = await operatePlatform(db).listAudit(1);
    expect(entry).toMatchObject({ action: 'platform_token.use', outcome: 'refused' });
  });

  test('makes no token and ends none: that is for who holds the database alone', async () => {
    const { id, token } = await make();
    const create = ['token', 'create', '--name', 'x', '--allow', '0.0.0.0/0', '--expires', '1d'];
    for (const args of [create, ['token', 'list'], ['token', 'revoke', id]]) {
      const { code, stderr } = await run(token, ...args);
      expect([code, stderr.includes('RUNGATE_TOKEN')]).toEqual([1, true]);
    }
  });
});
