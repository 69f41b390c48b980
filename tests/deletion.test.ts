/** Leaving: an org that is deleted is gone from every table and file, and no backup brings it back. */

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
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { auditEntry, MAX_ERASED } from '../db/audit.ts';
import { compactFile, type Database, openDatabase, type Value } from '../db/client.ts';
import { deleteOrg, deleteRows } from '../db/deletion.ts';
import { acceptInvitation, invite } from '../db/invitations.ts';
import { appendLedgerFile, readLedgerFile } from '../db/ledger.ts';
import { removeMember } from '../db/members.ts';
import { forOrg, type Org } from '../db/org.ts';
import {
  cancelDeletion,
  DELETION_DELAY_MS,
  findOrg,
  readAccount,
  requestDeletion,
} from '../db/orgs.ts';
import {
  createProviderKey,
  holdsSecret,
  readProviderKeys,
  secretContext,
} from '../db/provider-keys.ts';
import { type MasterKeys, open, openMasterKeys, type SealError } from '../db/seal.ts';
import { openShares } from '../db/shares.ts';
import { rotateOrgKeys } from '../db/system.ts';
import { tenantTables } from '../db/tables.ts';
import { boot, shutDown } from '../functions/boot.ts';
import { ConfigError, readConfig } from '../functions/config.ts';
import { type EraseParts, eraseLeaving, replayDeletions } from '../functions/jobs/erase.ts';
import { openKeys } from '../functions/keys.ts';
import { makeLog } from '../functions/log.ts';
import { PLATFORM_CHAIN } from '../schema/audit.ts';
import { addMember, as, type Ground, type Made, makeGround, makeOrg } from './orgs.ts';
import { finish } from './process.ts';
import { type Deployment, deploy } from './rungate.ts';

setDefaultTimeout(60_000);

const CANARY = 'canary-of-an-org-that-leaves';
const LONG_MS = 30_000;

let ground: Ground;
beforeEach(async () => {
  ground = await makeGround();
});
afterEach(() => ground.clear());

const partsOf = ({ url, db, master }: Ground, env: Record<string, string> = {}): EraseParts => ({
  config: readConfig({ RUNGATE_DATABASE_URL: url, ...env }),
  log: makeLog('silent'),
  now: () => Date.now() + DELETION_DELAY_MS + 1,
  ...{ db, master },
});

async function leave({ org, owner, slug }: Made): Promise<void> {
  await requestDeletion(org, as(owner), slug, Date.now());
}

/** Rows by table that name an org anywhere. */
async function traces(db: Database, text: string): Promise<Record<string, number>> {
  const columns = await db.read(
    `select m.name as name, c.name as column from sqlite_master m join pragma_table_xinfo(m.name) c
     where m.type = 'table' and m.name not like 'sqlite_%'`,
    [],
  );
  const found: Record<string, number> = {};
  for (const { name, column } of columns) {
    const sql = `select count(*) as count from "${name}" where instr("${column}", ?1) > 0`;
    const count = Number((await db.first(sql, [text]))?.count);
    if (count > 0) found[String(name)] = (found[String(name)] ?? 0) + count;
  }
  return found;
}

/** Puts rows of an org into each of its tables, whatever they hold. */
async function fill({ url }: Ground, org: Org, rows = 1, text = CANARY): Promise<string[]> {
  const db = await openDatabase({ url, synchronous: 'normal' });
  await db.read('pragma foreign_keys = off', []);
  await db.read('pragma ignore_check_constraints = on', []);
  const columns = (await db.read(
    `select m.name as "table", c.name, c.type from sqlite_master m join pragma_table_info(m.name) c
     where m.type = 'table'`,
    [],
  )) as unknown as readonly Column[];
  const tables = columns.filter(({ name }) => name === 'org_id').map(({ table }) => table);
  for (const table of tables) {
    const own = columns.filter((column) => column.table === table);
    const sql = `insert or ignore into "${table}" (${own.map(({ name }) => `"${name}"`)})
      values (${own.map((_, at) => `?${at + 1}`)})`;
    const row = (_: unknown, at: number) => ({
      sql,
      args: own.map((column) => filling(column, org, at, text)),
    });
    await db.write(Array.from({ length: rows }, row));
  }
  await db.close();
  return tables;
}

interface Column {
  readonly table: string;
  readonly name: string;
  readonly type: string;
}

function filling({ name, type }: Column, { id }: Org, row: number, text: string): Value {
  if (name === 'org_id') return id;
  if (name === 'events' || name === 'asked') return '[]';
  if (/^(answered|charged)$/.test(name)) return null;
  if (type !== 'TEXT') return row + 1;
  return /data|document|actions|payload|headers/.test(name)
    ? JSON.stringify({ canary: text })
    : `${text}-${id}-${row}`;
}

describe('the tables of orgs', () => {
  test('are found by their column, and their rows without a look at those of others', async () => {
    const tables = await tenantTables(ground.db);
    const rows = await ground.db.read(
      `select name from sqlite_master where type = 'table' and sql like '%org_id%'`,
      [],
    );
    expect(tables.map(({ name }) => name).toSorted()).toEqual(
      rows.map(({ name }) => String(name)).toSorted(),
    );
    for (const { name, key } of tables) {
      const sql = `explain query plan select ${key} from "${name}" where org_id = ?1 limit 9`;
      const plan = (await ground.db.read(sql, [''])).map(({ detail }) => String(detail));
      expect([name, plan.filter((line) => !line.startsWith('SEARCH'))]).toEqual([name, []]);
    }
  });

  test('refer to each other by columns that an index finds', async () => {
    const references = await ground.db.read(
      `select m.name as name, f."from" as column from sqlite_master m
       join pragma_foreign_key_list(m.name) f where m.type = 'table'`,
      [],
    );
    expect(references.length).toBeGreaterThan(20);
    for (const { name, column } of references) {
      const sql = `explain query plan select 1 as found from "${name}" where "${column}" = ?1`;
      const [plan] = await ground.db.read(sql, ['']);
      expect([name, column, String(plan?.detail)]).toEqual([
        name,
        column,
        expect.stringMatching(/^SEARCH/),
      ]);
    }
  });
});

describe('after its grace an org', () => {
  test('has no row in any table, and no trace in any file once that is compacted', async () => {
    const [gone, other] = [await makeOrg(ground), await makeOrg(ground)];
    await leave(gone);
    const names = await fill(ground, gone.org, 120);
    await fill(ground, other.org, 1, 'another');
    const before = await traces(ground.db, other.org.id);
    for (const name of names) expect([name, before[name]]).toEqual([name, expect.any(Number)]);
    const erased = await eraseLeaving(partsOf(ground), LONG_MS);
    expect(erased.orgs).toBe(1);
    // Its id alone stays: in the ledger, and on the trail of the platform.
    expect(await traces(ground.db, gone.org.id)).toEqual({ deleted_orgs: 1, audit_entries: 1 });
    expect(await traces(ground.db, gone.slug)).toEqual({});
    expect(await traces(ground.db, gone.owner.email)).toEqual({});
    expect(await traces(ground.db, other.org.id)).toEqual(before);
    await compactFile(ground.url);
    const files = readdirSync(ground.folder).filter((file) => file.startsWith('rungate.db'));
    for (const file of files) {
      const bytes = readFileSync(join(ground.folder, file));
      expect([file, bytes.includes(CANARY)]).toEqual([file, false]);
    }
  });

  test('is deleted in the end, however often that is interrupted', async () => {
    const made = await makeOrg(ground);
    await leave(made);
    await fill(ground, made.org, 70);
    let ticks = 0;
    for (let orgs = 0; orgs === 0; ticks++) {
      ({ orgs } = await eraseLeaving(partsOf(ground), 25));
    }
    expect(ticks).toBeGreaterThan(1);
    expect(await traces(ground.db, made.org.id)).toEqual({ deleted_orgs: 1, audit_entries: 1 });
  });

  test('takes along what was written while it was deleted', async () => {
    const made = await makeOrg(ground);
    await fill(ground, made.org, 2);
    await deleteOrg(ground.db, made.org, await tenantTables(ground.db), 1);
    expect(await traces(ground.db, made.org.id)).toEqual({ deleted_orgs: 1, audit_entries: 1 });
  });

  test('takes along whom it knew by an invitation alone', async () => {
    const { org, owner, slug, ...made } = await makeOrg(ground);
    const inviter = await addMember(ground, org, 'admin');
    const email = 'too-late@example.com';
    const { secret } = await invite(org, as(inviter), email, 'viewer', Date.now());
    await removeMember(org, as(owner), inviter.id);
    await acceptInvitation(ground.db, secret, Date.now()).catch(() => {});
    expect(await traces(ground.db, email)).toMatchObject({ users: 1, invitations: 1 });
    await leave({ org, owner, slug, ...made });
    await eraseLeaving(partsOf(ground), LONG_MS);
    for (const known of [email, inviter.email]) {
      expect([known, await traces(ground.db, known)]).toEqual([known, {}]);
    }
  });

  test('has no name on the trail of the platform, however much that said and whenever it ends', async () => {
    const made = await makeOrg(ground);
    const chain = forOrg(ground.db, PLATFORM_CHAIN);
    const entry = () =>
      auditEntry(chain, 'operator', 'account.read', made.org.id, { is: made.slug });
    await chain.write(...Array.from({ length: MAX_ERASED + 100 }, entry));
    expect((await traces(ground.db, made.slug)).audit_entries).toBeGreaterThan(MAX_ERASED);
    await leave(made);
    await expect(
      eraseLeaving({ ...partsOf(ground), db: endingWith(ground.db, 'delete from orgs') }, LONG_MS),
    ).rejects.toThrow('ended');
    expect(await traces(ground.db, made.slug)).toEqual({});
    expect(await eraseLeaving(partsOf(ground), LONG_MS)).toEqual({ rows: 0, orgs: 0 });
  });

  test('can no more be kept, and before it everything is still there', async () => {
    const { org, owner, slug } = await makeOrg(ground);
    const now = Date.now();
    await requestDeletion(org, as(owner), slug, now);
    const early = { ...partsOf(ground), now: () => now + DELETION_DELAY_MS - 1 };
    expect(await eraseLeaving(early, LONG_MS)).toEqual({ rows: 0, orgs: 0 });
    expect(await cancelDeletion(org, as(owner), now + DELETION_DELAY_MS)).toBe(false);
    expect(await cancelDeletion(org, as(owner), now + DELETION_DELAY_MS - 1)).toBe(true);
    expect((await eraseLeaving(partsOf(ground), LONG_MS)).orgs).toBe(0);
    expect(await readAccount(org)).toMatchObject({ deletesAt: null });
  });

  test('leaves people alone who are in another org', async () => {
    const [one, two] = [await makeOrg(ground), await makeOrg(ground)];
    await ground.db.write([
      {
        sql: `insert into members (id, org_id, user_id, role, created_at)
          values ('mem_shared', ?1, ?2, 'viewer', 1)`,
        args: [one.org.id, two.owner.userId],
      },
    ]);
    const table = (await tenantTables(ground.db)).find(({ name }) => name === 'members')!;
    expect(await deleteRows(one.org, table, 10)).toBe(2);
    const users = await ground.db.read('select id from users where id in (?1, ?2)', [
      one.owner.userId,
      two.owner.userId,
    ]);
    expect(users.map(({ id }) => String(id))).toEqual([two.owner.userId]);
  });
});

/** A database whose process ends right after a transaction in which such a statement is. */
function endingWith(db: Database, sql: string): Database {
  let isOver = false;
  const go = <T>(work: () => T): T => {
    if (isOver) throw new Error('ended');
    return work();
  };
  return {
    read: (...asked) => go(() => db.read(...asked)),
    first: (...asked) => go(() => db.first(...asked)),
    merge: (...asked) => go(() => db.merge(...asked)),
    close: () => db.close(),
    async write(statements) {
      const results = await go(() => db.write(statements));
      isOver = statements.some((statement) => statement.sql.includes(sql));
      return go(() => results);
    },
  };
}

describe('a backup from before', () => {
  test('holds sealed secrets that open no more, once the share of their key is destroyed', async () => {
    const home = await makeGround();
    const master = openMasterKeys(home.masterText, openShares(join(home.folder, 'shares')));
    const made = await makeOrg({ ...home, master });
    await createProviderKey(made.org, master, 'operator', {
      ...{ name: 'openai', provider: 'openai', baseUrl: 'https://api.example.com/v1' },
      ...{ serviceTier: 'default', secret: 'sk-secret-of-a-provider' },
    });
    await compactFile(home.url);
    const backup = join(home.folder, 'backup.db');
    copyFileSync(home.url.slice('file:'.length), backup);
    const restored = await openDatabase({ url: `file:${backup}` });
    const tryOpening = async (keys: MasterKeys) => {
      const [key] = await readProviderKeys(forOrg(restored, made.org.id));
      const row = await restored.first('select wrapped from org_keys', []);
      const context = secretContext(made.org.id, key!);
      return await open(keys, String(row?.wrapped), context, key!.secret).catch(
        (error: SealError) => error.code,
      );
    };
    expect(await tryOpening(master)).toBe('sk-secret-of-a-provider');
    expect(await tryOpening(home.master)).toBe('unknown_key');
    await leave(made);
    await eraseLeaving({ ...partsOf(home), master }, LONG_MS);
    expect(await tryOpening(master)).toBe('unknown_key');
    expect(readdirSync(join(home.folder, 'shares'))).toEqual([]);
    await restored.close();
    await home.clear();
  });

  test('has keys with shares after a rotation, which does nothing the second time', async () => {
    const home = await makeGround();
    const { org } = await makeOrg(home);
    const id = await createProviderKey(org, home.master, 'operator', {
      ...{ name: 'openai', provider: 'openai', baseUrl: 'https://api.example.com/v1' },
      ...{ serviceTier: 'default', secret: 'sk-secret-of-a-provider' },
    });
    const master = openMasterKeys(home.masterText, openShares(join(home.folder, 'shares')));
    const counts = [];
    for (let times = 0; times < 2; times++) {
      counts.push((await rotateOrgKeys(home.db, master, () => {})).rewrapped);
    }
    expect(counts).toEqual([1, 0]);
    const key = (await readProviderKeys(org)).find((each) => each.id === id)!;
    expect(await holdsSecret(org, master, key, 'sk-secret-of-a-provider')).toBe(true);
    await home.clear();
  });

  test('is erased again before anything is served, by the ledger beside the database', async () => {
    const home = await makeGround();
    const backup = join(home.folder, 'backup.db');
    const made = await makeOrg(home);
    await compactFile(home.url);
    copyFileSync(home.url.slice('file:'.length), backup);
    await leave(made);
    await eraseLeaving(partsOf(home), LONG_MS);
    const ledger = await readLedgerFile(join(home.folder, 'deleted-orgs.jsonl'));
    expect([...ledger.keys()]).toEqual([made.org.id]);
    const restored = await openDatabase({ url: `file:${backup}` });
    expect(Object.keys(await traces(restored, made.org.id)).length).toBeGreaterThan(3);
    await replayDeletions({ ...partsOf(home), db: restored });
    expect(await traces(restored, made.org.id)).toEqual({ deleted_orgs: 1, audit_entries: 1 });
    await replayDeletions({ ...partsOf(home), db: restored });
    expect((await readLedgerFile(join(home.folder, 'deleted-orgs.jsonl'))).size).toBe(1);
    await restored.close();
    await home.clear();
  });
});

describe('the command line', () => {
  test('hands out no org that a restored backup has brought back, also before a server starts', async () => {
    const deployment = await deploy({ processes: 0 });
    const file = join(deployment.folder, 'rungate.db');
    const backup = join(deployment.folder, 'backup.db');
    expect((await deployment.cli('compact')).code).toBe(0);
    copyFileSync(file, backup);
    await deployment.cli('org', 'delete', '--org', 'acme', '--confirm', 'acme');
    const db = await deployment.database();
    const config = readConfig({ RUNGATE_DATABASE_URL: `file:${file}` });
    const log = makeLog('silent');
    const parts = { ...partsOf(ground), config, db, master: await openKeys(config, log) };
    expect((await eraseLeaving(parts, LONG_MS)).orgs).toBe(1);
    await db.close();
    for (const end of ['-wal', '-shm']) rmSync(`${file}${end}`, { force: true });
    copyFileSync(backup, file);
    const out = join(deployment.folder, 'gone.tar');
    const run = await deployment.cli('export', '--org', 'acme', '--bodies', '--out', out);
    expect([run.code, run.stderr]).toEqual([1, expect.stringContaining('There is no org "acme"')]);
    expect(existsSync(out)).toBe(false);
    await deployment.stop();
  });

  test('with an admin token changes the org of that token, and none of the database here', async () => {
    const [there, here] = await Promise.all([deploy(), deploy({ processes: 0 })]);
    const run = async (...args: string[]) => {
      const env = { RUNGATE_URL: there.url, RUNGATE_TOKEN: there.adminToken };
      const { code, stdout, stderr } = await runHere(here, env, [...args, '--json']);
      const said: unknown = code === 0 ? JSON.parse(stdout) : stderr;
      return { code, said };
    };
    expect(await run('org', 'retention', '--days', '30')).toMatchObject({
      ...{ code: 0, said: { days: 30, wantedDays: 30 } },
    });
    expect((await run('org', 'delete', '--confirm', 'other')).code).toBe(2);
    expect((await run('org', 'delete', '--org', 'other', '--confirm', 'acme')).code).toBe(2);
    expect(await run('org', 'delete', '--org', 'acme', '--confirm', 'acme')).toMatchObject({
      ...{ code: 0, said: { org: 'acme', deletesAt: expect.any(String) } },
    });
    const state = async ({ database }: Deployment) => {
      const db = await database();
      const row = await db.first(
        'select retention_days as days, deletes_at is not null as leaves from orgs',
        [],
      );
      await db.close();
      return { ...row };
    };
    expect(await state(here)).toEqual({ days: null, leaves: 0 });
    expect(await state(there)).toEqual({ days: 30, leaves: 1 });
    expect(await run('org', 'keep')).toMatchObject({
      code: 0,
      said: { org: 'acme', isKept: true },
    });
    expect(await state(there)).toEqual({ days: 30, leaves: 0 });
    await Promise.all([there.stop(), here.stop()]);
  });
});

/** Runs the CLI beside a deployment's database, in an environment that names a server, too. */
async function runHere({ folder }: Deployment, env: Record<string, string>, args: string[]) {
  const command = [process.execPath, join(import.meta.dir, '../web/cli/main.ts'), ...args];
  const child = Bun.spawn(command, {
    env: {
      PATH: process.env.PATH ?? '',
      RUNGATE_DATABASE_URL: `file:${folder}/rungate.db`,
      ...env,
    },
    ...{ stdout: 'pipe', stderr: 'pipe' },
  });
  return await finish(child);
}

describe('a folder of shares', () => {
  let deployment: Deployment;
  let shares: string;
  beforeAll(async () => {
    const folder = mkdtempSync(join(tmpdir(), 'rungate-shares-'));
    shares = join(folder, 'made', 'shares');
    deployment = await deploy({ processes: 0, env: { RUNGATE_KEY_SHARES: shares } });
    await deployment.cli('init', '--org', 'Other', '--email', 'other@example.com');
  });
  afterAll(async () => {
    await deployment?.stop();
    rmSync(join(shares, '../..'), { recursive: true, force: true });
  });

  const envOf = (folder: string | undefined) => ({
    ...{ RUNGATE_DATABASE_URL: `file:${deployment.folder}/rungate.db`, RUNGATE_LOG: 'silent' },
    ...(folder === undefined ? {} : { RUNGATE_KEY_SHARES: folder }),
  });

  /** Why a process does not start; undefined for one that does. */
  async function refusal(folder: string | undefined): Promise<string | undefined> {
    try {
      await shutDown(await boot(envOf(folder)), 0);
      return undefined;
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      return error.problems.join();
    }
  }

  test('is made by the first org that has a share, and from then on has to be there', async () => {
    const orgs = readdirSync(shares);
    expect(orgs).toHaveLength(2);
    const [gone, empty, half] = ['gone', 'empty', 'half'].map((name) => `${shares}-${name}`);
    mkdirSync(empty!);
    mkdirSync(half!);
    copyFileSync(join(shares, orgs[0]!), join(half!, orgs[0]!));
    expect(await refusal(shares)).toBeUndefined();
    for (const folder of [undefined, gone, empty, half]) {
      const given = folder === undefined ? 'not set' : JSON.stringify(folder);
      expect(await refusal(folder)).toStartWith(`RUNGATE_KEY_SHARES is ${given}; wanted: `);
      for (const args of [
        ['init', '--org', 'Third', '--email', 'third@example.com'],
        ['platform', 'account', 'create', '--name', 'Third', '--email', 'third@example.com'],
        ['keys', 'rotate'],
      ]) {
        const { code, stdout, stderr } = await runHere(deployment, envOf(folder), args);
        expect([args[0], code, stdout]).toEqual([args[0], 2, '']);
        expect(stderr).toContain(`RUNGATE_KEY_SHARES is ${given}`);
      }
    }
    const left = [existsSync(gone!), readdirSync(empty!), readdirSync(half!)];
    expect(left).toEqual([false, [], [orgs[0]!]]);
  });

  test('that has lost the share of an org is enough once that org is leaving, or has left', async () => {
    const db = await deployment.database();
    const other = await findOrg(db, 'other');
    await db.close();
    rmSync(join(shares, other!.id));
    expect(await refusal(shares)).toContain(other!.id);
    await deployment.cli('org', 'delete', '--org', 'other', '--confirm', 'other');
    expect(await refusal(shares)).toBeUndefined();
    await deployment.cli('org', 'keep', '--org', 'other');
    expect(await refusal(shares)).toContain(other!.id);
    // As where a backup has brought back an org that was deleted.
    const deletions = new Map([[other!.id, Date.now()]]);
    await appendLedgerFile(join(deployment.folder, 'deleted-orgs.jsonl'), deletions);
    expect(await refusal(shares)).toBeUndefined();
  });
});

test('a start in production warns that a database on a server has no ledger unless it is set', () => {
  const start = (env: Record<string, string>) => {
    const command = [process.execPath, join(import.meta.dir, '../functions/bun.ts')];
    const { exitCode, stderr } = Bun.spawnSync(command, {
      env: {
        ...{ PATH: process.env.PATH ?? '', NODE_ENV: 'production' },
        ...{ RUNGATE_DATABASE_URL: 'http://127.0.0.1:1', RUNGATE_MASTER_KEYS: ground.masterText },
        ...env,
      },
    });
    expect(exitCode).not.toBe(0);
    return stderr.toString();
  };
  const warning = /"level":"warn".*RUNGATE_DELETION_LEDGER is not set/;
  expect(start({})).toMatch(warning);
  expect(start({ RUNGATE_DELETION_LEDGER: `${ground.folder}/ledger.jsonl` })).not.toMatch(warning);
  expect(start({ NODE_ENV: 'development' })).not.toMatch(warning);
});

describe('while its deletion can be taken back', () => {
  test('its tokens are refused, but for an owner who takes it back', async () => {
    const deployment = await deploy();
    const { url, token } = deployment;
    const made = await deployment.cli(
      ...['token', 'create', '--org', 'acme', '--member', 'owner@example.com'],
      ...['--name', 'all', '--json'],
    );
    const admin = (JSON.parse(made.stdout) as { token: string }).token;
    const call = async () => {
      const response = await fetch(`${url}/v1/chat/completions`, {
        method: 'POST',
        headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
        body: JSON.stringify({
          model: 'demo/demo-small',
          max_tokens: 5,
          messages: [{ role: 'user', content: 'hi' }],
        }),
      });
      await response.body?.cancel();
      return response.status;
    };
    const ask = async (query: string) => {
      const response = await fetch(`${url}/graphql`, {
        method: 'POST',
        headers: { authorization: `Bearer ${admin}`, 'content-type': 'application/json' },
        body: JSON.stringify({ query }),
      });
      return (await response.json()) as {
        data?: Record<string, { errors?: object[]; deletion?: object } | null>;
        errors?: { extensions: { code: string } }[];
      };
    };
    const remove = (slug: string) =>
      ask(`mutation { orgDelete(input: { confirmation: "${slug}" }) {
        deletion { requestedAt deletesAt } errors { code field } } }`);
    expect(await call()).toBe(200);
    expect((await remove('other')).data?.orgDelete?.errors).toEqual([
      { code: 'INVALID', field: ['confirmation'] },
    ]);
    expect(await call()).toBe(200);
    expect((await remove('acme')).data?.orgDelete?.errors).toEqual([]);
    expect(await call()).toBe(403);
    const refused = await ask('{ agents { nodes { name } } }');
    expect(refused.errors?.[0]?.extensions.code).toBe('FORBIDDEN');
    const archive = await fetch(`${url}/api/export`, {
      headers: { authorization: `Bearer ${admin}` },
    });
    expect(archive.status).toBe(403);
    expect((await ask('{ orgDeletion { deletesAt } }')).data?.orgDeletion).toBeTruthy();
    const back = await ask(
      'mutation { orgDeletionCancel(input: { confirmation: "acme" }) { isCancelled errors { code } } }',
    );
    expect(back.data?.orgDeletionCancel).toEqual({ isCancelled: true, errors: [] } as object);
    expect(await call()).toBe(200);
    expect((await ask('{ agents { nodes { name } } }')).errors).toBeUndefined();
    await deployment.stop();
  });
});

test('the operator deletes, keeps and compacts at the command line', async () => {
  const deployment = await deploy({ processes: 0 });
  const run = async (...args: string[]) => {
    const { code, stdout, stderr } = await deployment.cli(...args, '--json');
    const said: unknown = code === 0 ? JSON.parse(stdout) : stderr;
    return { code, said };
  };
  const org = ['--org', 'acme'];
  expect(await run('org', 'delete', ...org, '--confirm', 'other')).toEqual({
    ...{ code: 2, said: expect.stringContaining('slug') },
  });
  expect(await run('org', 'delete', ...org, '--confirm', 'acme')).toMatchObject({
    ...{ code: 0, said: { org: 'acme', deletesAt: expect.any(String) } },
  });
  expect(await run('org', 'keep', ...org)).toMatchObject({
    ...{ code: 0, said: { isKept: true } },
  });
  expect((await run('org', 'keep', ...org)).code).toBe(1);
  expect(await run('org', 'retention', ...org, '--days', '30')).toMatchObject({
    ...{ code: 0, said: { days: 30, planDays: null, wantedDays: 30 } },
  });
  expect(await run('org', 'retention', ...org, '--days', 'plan')).toMatchObject({
    ...{ code: 0, said: { days: null, planDays: null, wantedDays: null } },
  });
  expect((await run('org', 'retention', ...org, '--days', '0')).code).toBe(2);
  expect((await run('compact')).code).toBe(0);
  await deployment.stop();
});
