/** The platform: tokens from certain addresses for a time, accounts, and no way to their content. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { verifyOrg } from '../db/checkpoints.ts';
import type { Database } from '../db/client.ts';
import { forOrg } from '../db/org.ts';
import {
  createPlatformToken,
  listPlatformTokens,
  MAX_PLATFORM_TOKEN_MS,
  openPlatform,
  operatePlatform,
  Platform,
  revokePlatformToken,
} from '../db/platform.ts';
import { hashToken, newToken } from '../db/seal.ts';
import { findSession, openSession } from '../db/sessions.ts';
import { findCredential } from '../db/tokens.ts';
import { parseCidrList } from '../schema/address.ts';
import { PLATFORM_CHAIN } from '../schema/audit.ts';
import { Refusal } from '../schema/errors.ts';
import type { OrgId } from '../schema/ids.ts';
import { type Ground, makeGround, makeOrg } from './orgs.ts';
import { finish } from './process.ts';
import { deploy } from './rungate.ts';

setDefaultTimeout(60_000);

let ground: Ground;
beforeAll(async () => {
  ground = await makeGround();
});
afterAll(() => ground.clear());

const NOW = Date.UTC(2026, 10, 5, 12);
const DAY_MS = 86_400_000;

async function codeOf(attempt: Promise<unknown>): Promise<string> {
  try {
    await attempt;
    return 'done';
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return error.code;
  }
}

const make = (ranges: string, lifeMs = DAY_MS) =>
  createPlatformToken(ground.db, 'test', parseCidrList(ranges), lifeMs, NOW);

describe('a platform token', () => {
  test('is good from its ranges only, in any spelling of an address', async () => {
    const { token } = await make('10.1.0.0/16, 2001:db8::/32');
    const use = (address: string) => codeOf(openPlatform(ground.db, token, { address }, NOW));
    for (const address of ['10.1.2.3', '::ffff:10.1.2.3', '2001:db8:1::1', '2001:0DB8::0001']) {
      expect([address, await use(address)]).toEqual([address, 'done']);
    }
    for (const address of [
      '10.2.0.1',
      '::ffff:10.2.0.1',
      '2001:db9::1',
      '',
      'localhost',
      '127.0.0.1',
    ]) {
      expect([address, await use(address)]).toEqual([address, 'permission_denied']);
    }
  });

  test('needs a range and a life of at most 366 days', async () => {
    await expect(make('')).rejects.toThrow(RangeError);
    for (const lifeMs of [0, -1, Number.NaN, MAX_PLATFORM_TOKEN_MS + 1, Number.POSITIVE_INFINITY]) {
      await expect(make('10.0.0.0/8', lifeMs)).rejects.toThrow(RangeError);
    }
  });

  test('ends when it expires or is revoked; another kind of token is none', async () => {
    const { id, token } = await make('10.0.0.0/8');
    const use = (text: string, now = NOW) =>
      codeOf(openPlatform(ground.db, text, { address: '10.0.0.1' }, now));
    expect(await use(token, NOW + DAY_MS - 1)).toBe('done');
    expect(await use(token, NOW + DAY_MS)).toBe('invalid_token');
    expect(await revokePlatformToken(ground.db, id, NOW)).toBe(true);
    expect(await use(token)).toBe('invalid_token');
    const { adminToken } = await makeOrg(ground);
    for (const text of [adminToken, newToken('platform'), 'x']) {
      expect(await use(text)).toBe('invalid_token');
    }
  });

  test('is listed without its text, and its use from a wrong address is on the trail', async () => {
    const { id, token } = await make('10.0.0.0/8');
    await codeOf(openPlatform(ground.db, token, { address: '192.0.2.1' }, NOW));
    expect(JSON.stringify(await listPlatformTokens(ground.db))).not.toContain(token);
    const [entry] = await operatePlatform(ground.db).listAudit(1);
    expect(entry).toMatchObject({
      action: 'platform_token.use',
      outcome: 'refused',
      target: id,
      actorKind: 'platform',
    });
    expect((await verifyOrg(forOrg(ground.db, PLATFORM_CHAIN), [])).ok).toBe(true);
  });
});

describe('an account', () => {
  test('that is suspended has no working token and says so, until it is resumed', async () => {
    const { org, adminToken } = await makeOrg(ground);
    const platform = operatePlatform(ground.db);
    const read = async () => (await findCredential(ground.db, hashToken(adminToken)))!;
    const before = await read();
    expect(await platform.suspendAccount(org.id, NOW)).toBe(true);
    expect(await platform.suspendAccount(org.id, NOW)).toBe(false);
    const suspended = await read();
    expect(suspended.orgSuspendedAt).toBe(NOW);
    // What a process remembers of a token is good for its revision only.
    expect(suspended.revision).toBeGreaterThan(before.revision);
    expect(await platform.resumeAccount(org.id)).toBe(true);
    expect((await read()).orgSuspendedAt).toBeNull();
  });

  test('that is suspended tells its sessions', async () => {
    const { org, owner } = await makeOrg(ground);
    const { secret } = (await openSession(org, owner.id, { method: 'link' }, NOW))!;
    await operatePlatform(ground.db).suspendAccount(org.id, NOW);
    expect(await findSession(ground.db, secret, NOW)).toMatchObject({ orgSuspendedAt: NOW });
  });

  test('is made without a token for who makes it', async () => {
    const platform = operatePlatform(ground.db);
    const made = await platform.createAccount(ground.master, 'New', 'new@example.com');
    const tokens = await ground.db.read('select 1 from tokens where org_id = ?1', [made.id]);
    expect({ made, tokens }).toEqual({ made: { id: made.id, slug: 'new' }, tokens: [] });
    expect(await platform.findAccount('new')).toMatchObject({ members: 1, agents: 0 });
  });

  test('has a plan and a deletion that are told to the org’s webhooks and on the platform’s trail', async () => {
    const { org } = await makeOrg(ground);
    const platform = operatePlatform(ground.db);
    await platform.changePlan(org.id, 'pro');
    await platform.deleteAccount(org.id, NOW);
    const events = await org.read(
      "select data from events where org_id = ?1 and type = 'account.updated' order by id",
    );
    expect(events.map(({ data }) => JSON.parse(String(data)).change)).toEqual(
      expect.arrayContaining(['plan_pro', 'deletion_requested']),
    );
    const actions = (await platform.listAudit(2)).map(({ action }) => action);
    expect(actions).toEqual(['account.delete', 'account.plan']);
  });

  test('that is none changes nothing and leaves no entry', async () => {
    const platform = operatePlatform(ground.db);
    const before = await platform.listAudit(1);
    expect(await platform.suspendAccount('org_missing' as OrgId, NOW)).toBe(false);
    expect(await platform.listAudit(1)).toEqual(before);
  });
});

test('the calls of a suspended account are refused from the next one on, and served once resumed', async () => {
  const deployment = await deploy();
  try {
    const call = async () => {
      const response = await fetch(`${deployment.url}/v1/chat/completions`, {
        method: 'POST',
        headers: {
          authorization: `Bearer ${deployment.token}`,
          'content-type': 'application/json',
        },
        body: JSON.stringify({
          model: 'demo-small',
          messages: [{ role: 'user', content: 'Hello' }],
          max_tokens: 5,
        }),
      });
      const body = (await response.json()) as { error?: { rungate: { rule: string } } };
      return [response.status, body.error?.rungate.rule];
    };
    expect(await call()).toEqual([200, undefined]);
    expect(await call()).toEqual([200, undefined]);
    await deployment.cli('platform', 'account', 'suspend', 'acme');
    expect(await call()).toEqual([403, 'org.suspended']);
    await deployment.cli('platform', 'account', 'resume', 'acme');
    expect(await call()).toEqual([200, undefined]);
  } finally {
    await deployment.stop();
  }
});

describe('the handle of the platform', () => {
  const CONTENT =
    /\b(runs|steps|spend|policies|policy_versions|provider_keys|prices|responses|gates|captures|events|webhooks|deliveries|sessions|tokens|invitations|org_keys|users)\b/;

  test('has these methods and no other, and gives its database to nobody', () => {
    const methods = Object.getOwnPropertyNames(Platform.prototype).sort();
    expect(methods).toEqual([
      ...['changePlan', 'constructor', 'createAccount', 'deleteAccount', 'findAccount'],
      ...['listAccounts', 'listAudit', 'resumeAccount', 'suspendAccount'],
    ]);
    expect(Reflect.ownKeys(operatePlatform(ground.db))).toEqual([]);
  });

  test('has no statement that names what an account contains', () => {
    const source = readFileSync(join(import.meta.dir, '../db/platform.ts'), 'utf8');
    const statements = [...source.matchAll(/(`|')\s*((select|insert|update|delete)\b.*?)\1/gs)];
    expect(statements.length).toBeGreaterThan(8);
    for (const [, , sql] of statements) expect(sql).not.toMatch(CONTENT);
  });

  test('reads nothing else while each of its methods runs', async () => {
    const { org, slug } = await makeOrg(ground);
    const seen: string[] = [];
    const watched: Database = {
      ...ground.db,
      read: (sql, args) => {
        seen.push(sql);
        return ground.db.read(sql, args);
      },
      first: (sql, args) => {
        seen.push(sql);
        return ground.db.first(sql, args);
      },
    };
    const platform = new Platform(watched, 'operator');
    await platform.listAccounts(10);
    await platform.findAccount(slug);
    await platform.createAccount(ground.master, 'Watched', 'w@example.com');
    await platform.suspendAccount(org.id, NOW);
    await platform.resumeAccount(org.id);
    await platform.changePlan(org.id, 'free');
    await platform.deleteAccount(org.id, NOW);
    await platform.listAudit(10);
    expect(seen.length).toBeGreaterThan(7);
    for (const sql of seen) expect(sql).not.toMatch(CONTENT);
    for (const sql of seen.filter((each) => each.includes('audit_entries'))) {
      expect(sql).toContain('org_id = ?1');
    }
  });
});

describe('the command line', () => {
  const rungate = async (...args: string[]) => {
    const main = join(import.meta.dir, '../web/cli/main.ts');
    const child = Bun.spawn([process.execPath, main, 'platform', ...args], {
      cwd: ground.folder,
      env: {
        PATH: process.env.PATH ?? '',
        RUNGATE_DATABASE_URL: ground.url,
        RUNGATE_MASTER_KEYS: ground.masterText,
      },
      stdout: 'pipe',
      stderr: 'pipe',
    });
    return await finish(child);
  };

  test('makes, lists and revokes tokens, which need ranges and an end', async () => {
    const name = ['--name', 'ops'];
    const allow = ['--allow', '10.0.0.0/8', '192.0.2.1'];
    const made = await rungate('token', 'create', ...name, ...allow, '--expires', '30d', '--json');
    const { id, token } = JSON.parse(made.stdout);
    expect(token).toMatch(/^rg_platform_/);
    const list = await rungate('token', 'list');
    expect(list.stdout).toContain('10.0.0.0/8,192.0.2.1/32');
    expect((await rungate('token', 'revoke', id)).code).toBe(0);
    for (const wrong of [
      [...name, '--expires', '30d'],
      [...name, ...allow],
      [...name, ...allow, '--expires', '367d'],
      [...name, '--allow', 'anywhere', '--expires', '30d'],
    ]) {
      expect((await rungate('token', 'create', ...wrong)).code).toBe(2);
    }
  });

  test('makes, suspends, resumes, re-plans and gives up accounts', async () => {
    const create = ['account', 'create', '--name', 'By CLI', '--email', 'Cli@example.com'];
    expect(JSON.parse((await rungate(...create, '--json')).stdout).slug).toBe('by-cli');
    for (const [verb, ...more] of [['suspend'], ['resume'], ['plan', 'pro'], ['delete']]) {
      const { code, stdout } = await rungate('account', verb!, 'by-cli', ...more, '--json');
      expect({ code, ...JSON.parse(stdout) }).toMatchObject({ code: 0, changed: true });
    }
    expect((await rungate('account', 'list')).stdout).toMatch(/by-cli.*pro.*to be deleted after/);
    expect((await rungate('account', 'suspend', 'missing')).code).toBe(1);
    expect((await rungate('audit')).stdout).toContain('account.suspend');
  });
});
