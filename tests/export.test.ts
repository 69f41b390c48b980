/** Export: an archive that any tar reads, complete, checked by its manifest, and without secrets. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import type { Database } from '../db/client.ts';
import { exportTables, readExportPage } from '../db/export.ts';
import { tenantTables } from '../db/tables.ts';
import type { OrgId } from '../schema/ids.ts';
import { ADMIN_ACTIONS } from '../schema/roles.ts';
import { TAR_END, tarHeader, tarPadding } from '../schema/tar.ts';
import { makeGround, makeOrg } from './orgs.ts';
import { finish } from './process.ts';
import { type Deployment, deploy } from './rungate.ts';

setDefaultTimeout(60_000);

interface Manifest {
  readonly org: { readonly id: string; readonly slug: string };
  readonly tables: Readonly<
    Record<
      string,
      {
        readonly rows: number;
        readonly files: readonly {
          readonly path: string;
          readonly rows: number;
          readonly bytes: number;
          readonly sha256: string;
        }[];
      }
    >
  >;
}

let deployment: Deployment;
let db: Database;
let admin: string;

beforeAll(async () => {
  deployment = await deploy({ policy: { capture: 'sealed' } });
  db = await deployment.database();
  const made = await deployment.cli(
    ...['token', 'create', '--org', 'acme', '--member', 'owner@example.com', '--json'],
  );
  admin = (JSON.parse(made.stdout) as { token: string }).token;
  await Promise.all(Array.from({ length: 5 }, (_, at) => call(`run-${at}`)));
  // More than one page, and more than one file, of events.
  const [{ id }] = (await db.read('select id from orgs', [])) as [{ id: OrgId }];
  const rows = Array.from({ length: 1_100 }, (_, at) => ({
    sql: `insert into events (id, org_id, type, data, created_at) values (?1, ?2, 'made', ?3, ?4)`,
    args: [`evt_${at}`, id, JSON.stringify({ text: 'x'.repeat(5_000) }), at % 7],
  }));
  await db.write(rows);
  await Bun.sleep(500);
});

afterAll(async () => {
  await db.close();
  await deployment.stop();
});

async function call(run: string): Promise<void> {
  const response = await fetch(`${deployment.url}/v1/chat/completions`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${deployment.token}`,
      'content-type': 'application/json',
      'x-rungate-run-id': run,
    },
    body: JSON.stringify({
      model: 'demo/demo-small',
      max_tokens: 20,
      messages: [{ role: 'user', content: 'the words that were said' }],
    }),
  });
  expect(response.status).toBe(200);
  await response.text();
}

/** Unpacks an archive with the system's tar and checks it against its manifest. */
function unpack(archive: string) {
  const folder = `${archive}.d`;
  mkdirSync(folder);
  const { exitCode, stderr } = Bun.spawnSync(['tar', '-xf', archive, '-C', folder]);
  expect([exitCode, stderr.toString()]).toEqual([0, '']);
  const manifest = JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8')) as Manifest;
  const tables: Record<string, Record<string, unknown>[]> = {};
  const named = new Set(['manifest.json']);
  for (const [table, { rows, files }] of Object.entries(manifest.tables)) {
    tables[table] = [];
    for (const { path, sha256, bytes, ...file } of files) {
      const content = readFileSync(join(folder, path));
      named.add(path);
      expect(createHash('sha256').update(content).digest('hex')).toBe(sha256);
      expect(content.length).toBe(bytes);
      const lines = content.toString().split('\n').slice(0, -1);
      expect(lines.length).toBe(file.rows);
      tables[table].push(...lines.map((line) => JSON.parse(line) as Record<string, unknown>));
    }
    expect(tables[table].length).toBe(rows);
  }
  expect(readdirSync(folder).toSorted()).toEqual([...named].toSorted());
  return { manifest, tables };
}

describe('an archive', () => {
  test('of the CLI has every row of every table, and tells how far it has come', async () => {
    const out = join(deployment.folder, 'all.tar');
    const run = await deployment.cli('export', '--org', 'acme', '--out', out, '--json');
    expect([run.code, run.stderr]).toEqual([0, expect.stringMatching(/\d+\/\d+ rows/)]);
    const { manifest, tables } = unpack(out);
    expect(manifest.tables.events?.files.length).toBeGreaterThan(1);
    const names = (await tenantTables(db)).map(({ name }) => name);
    for (const name of names.filter((table) => !/^(org_keys|oidc_attempts)$/.test(table))) {
      // What the running server keeps changing.
      if (name === 'audit_checkpoints') continue;
      const row = await db.first(`select count(*) as n from "${name}" where org_id = ?1`, [
        manifest.org.id,
      ]);
      expect([name, tables[name]?.length]).toEqual([name, Number(row?.n)]);
    }
    const ids = tables.events!.map(({ id }) => id);
    expect(new Set(ids).size).toBe(ids.length);
    expect(tables.users).toMatchObject([{ email: 'owner@example.com' }]);
    expect(tables.orgs).toMatchObject([{ slug: 'acme' }]);
    expect(tables.audit_entries?.at(-1)).toMatchObject({ action: 'org.export' });
  });

  test('over HTTP is the same, and has bodies only where they are asked for', async () => {
    const get = async (query: string, token = admin) =>
      fetch(`${deployment.url}/api/export${query}`, {
        headers: { authorization: `Bearer ${token}` },
      });
    const save = async (query: string, name: string) => {
      const response = await get(query);
      expect([response.status, response.headers.get('content-type')]).toEqual([
        200,
        'application/x-tar',
      ]);
      const path = join(deployment.folder, name);
      await Bun.write(path, await response.bytes());
      return { ...unpack(path), text: readFileSync(path, 'latin1') };
    };
    const plain = await save('', 'plain.tar');
    expect(plain.tables.bodies).toBeUndefined();
    expect(plain.tables.captures?.length).toBe(10);
    // Sealed values begin so.
    expect(plain.text).not.toMatch(/"v1\.[\w-]+\.[\w-]{40}/);
    for (const secret of ['the words that were said', admin, deployment.token]) {
      expect(plain.text.includes(secret)).toBe(false);
    }
    const opened = await save('?bodies=open', 'opened.tar');
    const said = opened.tables.bodies!.map(({ body }) =>
      Buffer.from(String(body), 'base64').toString(),
    );
    expect(said.filter((text) => text.includes('the words that were said')).length).toBe(10);
    expect((await get('?bodies=all')).status).toBe(400);
    expect((await get('', deployment.token)).status).toBe(403);
    expect((await get('', 'nothing')).status).toBe(401);
  });
});

describe('what people are asked about', () => {
  let asking: Deployment;
  beforeAll(async () => {
    const tools = { requireApproval: [{ tool: 'weather' }] };
    asking = await deploy({ policy: { tools }, agents: ['tester', 'other'] });
    await fetch(`${asking.url}/v1/chat/completions`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${asking.token}`,
        'content-type': 'application/json',
        prefer: 'wait=0',
      },
      body: JSON.stringify({
        model: 'demo-small',
        messages: [{ role: 'user', content: 'call weather {"city":"Oslo"}' }],
        tools: [{ type: 'function', function: { name: 'weather', parameters: CITY } }],
      }),
    }).then((response) => response.text());
  });
  afterAll(() => asking.stop());

  test('is in an archive with bodies: the exact arguments, and the answers that are parked', async () => {
    const save = async (name: string, ...options: string[]) => {
      const path = join(asking.folder, name);
      const run = await asking.cli('export', '--org', 'acme', '--out', path, ...options);
      expect(run.code).toBe(0);
      return unpack(path).tables;
    };
    const plain = await save('plain.tar');
    expect(plain.gates).toMatchObject([{ tool: 'weather' }]);
    expect([plain.gate_args, plain.parked_answers]).toEqual([undefined, undefined]);
    const opened = await save('opened.tar', '--bodies');
    const [gate] = opened.gates!;
    expect(opened.gate_args).toEqual([
      { gate_id: gate!.id, run_id: gate!.run_id, args: '{"city":"Oslo"}' },
    ]);
    const [answer, ...others] = opened.parked_answers!;
    expect([answer, others]).toMatchObject([{ parked_id: gate!.parked_id, status: 200 }, []]);
    const text = Buffer.from(String(answer!.body), 'base64').toString();
    const { choices } = JSON.parse(text) as { choices: { message: { tool_calls: object[] } }[] };
    expect(choices[0]?.message.tool_calls).toMatchObject([{ function: { name: 'weather' } }]);
    expect(opened.audit_entries?.at(-1)?.payload).toContain('"bodies":true');
  });

  test('opens for no token that may not see it elsewhere', async () => {
    const db = await asking.database();
    const without = async (action: string, query: string) => {
      const actions = ADMIN_ACTIONS.filter((each) => each !== action);
      await db.write([
        {
          sql: `update tokens set actions = ?1 where kind = 'admin'`,
          args: [actions.join(' ')],
        },
      ]);
      const headers = { authorization: `Bearer ${asking.adminToken}` };
      const response = await fetch(`${asking.url}/api/export${query}`, { headers });
      await response.bytes();
      return response.status;
    };
    expect(await without('run.body_read', '?bodies=open')).toBe(403);
    expect(await without('gate.read', '?bodies=open')).toBe(403);
    expect(await without('gate.read', '')).toBe(200);
    await db.close();
  });
});

const CITY = { type: 'object', properties: { city: { type: 'string' } } };

test('a gate that is decided during an export is told once', async () => {
  const ground = await makeGround();
  const { org } = await makeOrg(ground);
  const row = (id: string) =>
    org.statement(
      `insert into gates (
         org_id, id, agent_id, run_id, policy_version_id, token_id, caused_by, tool, args, digest,
         rule, rule_name, reason, approvals, created_at, expires_at
       ) values (?1, ?2, '', 'run_' || ?2, '', '', '', '', '', ?2, '', '', '', 1, 1, 1)`,
      id,
    );
  const ids = ['gate_1', 'gate_2', 'gate_3', 'gate_4'];
  await org.write(...ids.map(row));
  const decide = (id: string, status: string) =>
    org.write(
      org.statement('update gates set status = ?3 where org_id = ?1 and id = ?2', id, status),
    );
  await decide('gate_4', 'approved');
  const gates = (await exportTables(ground.db)).find(({ name }) => name === 'gates')!;
  const first = await readExportPage(org, gates, undefined, 2);
  await decide('gate_1', 'rejected');
  await decide('gate_3', 'approved');
  await decide('gate_4', 'released');
  const rest = await readExportPage(org, gates, first.next, 3);
  expect([...first.rows, ...rest.rows].map(({ id }) => String(id)).toSorted()).toEqual(ids);
  await ground.clear();
});

describe('with an admin token the command line', () => {
  /** Runs an export with a database that isn't there, and never will be. */
  const exportFrom = async (url: string, out: string, ...options: string[]) => {
    const missing = join(deployment.folder, 'never', 'none.db');
    const main = join(import.meta.dir, '../web/cli/main.ts');
    const child = Bun.spawn(
      [process.execPath, main, 'export', '--out', out, '--json', ...options],
      {
        env: {
          ...{ PATH: process.env.PATH ?? '', RUNGATE_DATABASE_URL: `file:${missing}` },
          ...{ RUNGATE_URL: url, RUNGATE_TOKEN: deployment.adminToken },
        },
        ...{ stdout: 'pipe', stderr: 'pipe' },
      },
    );
    const ended = await finish(child);
    expect([existsSync(missing), existsSync(`${out}.part`)]).toEqual([false, false]);
    return ended;
  };

  test('fetches the archive of its org from the server', async () => {
    const out = join(deployment.folder, 'fetched.tar');
    const plain = await exportFrom(deployment.url, out, '--org', 'acme');
    expect([plain.code, plain.stderr]).toEqual([0, '']);
    expect(JSON.parse(plain.stdout)).toEqual({ path: out, bytes: Bun.file(out).size });
    expect(unpack(out).tables.bodies).toBeUndefined();
    const opened = join(deployment.folder, 'fetched-open.tar');
    expect((await exportFrom(deployment.url, opened, '--bodies')).code).toBe(0);
    expect(unpack(opened).tables.bodies?.length).toBe(10);
    const foreign = join(deployment.folder, 'foreign.tar');
    expect((await exportFrom(deployment.url, foreign, '--org', 'other')).code).toBe(2);
    expect(existsSync(foreign)).toBe(false);
  });

  test('leaves nothing of an archive that is refused or cut off', async () => {
    const whole = await fetch(`${deployment.url}/api/export`, {
      headers: { authorization: `Bearer ${deployment.adminToken}` },
    }).then((response) => response.bytes());
    const answers: (() => Response)[] = [
      () => Response.json({ error: { message: 'Not now.' } }, { status: 403 }),
      () => new Response(whole.subarray(0, 40_960)),
      () => new Response('', { status: 302, headers: { location: deployment.url } }),
    ];
    for (const answer of answers) {
      const server = Bun.serve({ hostname: '127.0.0.1', port: 0, fetch: answer });
      const out = join(deployment.folder, 'cut.tar');
      const ended = await exportFrom(server.url.href, out);
      expect([ended.code, ended.stdout, existsSync(out)]).toEqual([1, '', false]);
      expect(ended.stderr).toMatch(/^rungate: (Not now|The archive could not|\S+ does not answer)/);
      await server.stop(true);
    }
  });
});

describe('what is exported', () => {
  test('has no column whose name is that of a secret, in any table', async () => {
    const ground = await makeGround();
    const harmless =
      /^(audit_entries\.(hash|prev_hash)|reports\.(key|digest)|gates\.(token_id|digest)|released_calls\.digest|responses\.provider_key|.*\.(step_count|request_digest))$/;
    const suspicious = /secret|hash|token|nonce|verifier|sealed|wrapped|key|args|digest|target$/;
    const found = (await exportTables(ground.db)).flatMap(({ name, columns }) =>
      columns
        .map((column) => `${name}.${column}`)
        .filter((column) => suspicious.test(column.split('.')[1]!) && !harmless.test(column)),
    );
    expect(found.filter((column) => !/^audit_.*\.target$/.test(column))).toEqual([]);
    await ground.clear();
  });
});

test('a tar of any files is read back by the system’s tar', async () => {
  const name = fc.stringMatching(/^[a-z0-9_-]{1,96}$/);
  const files = fc.uniqueArray(fc.tuple(name, fc.uint8Array({ maxLength: 2_000 })), {
    maxLength: 5,
    minLength: 1,
    selector: ([path]) => path,
  });
  let count = 0;
  await fc.assert(
    fc.asyncProperty(files, fc.nat(2 ** 31 - 1), async (wanted, atS) => {
      const path = join(deployment.folder, `any-${count++}.tar`);
      const parts = wanted.flatMap(([each, bytes]) => [
        ...[tarHeader(`f${each}`, bytes.length, atS), bytes, tarPadding(bytes.length)],
      ]);
      await Bun.write(path, new Blob([...parts, TAR_END] as BlobPart[]));
      for (const [each, bytes] of wanted) {
        const { stdout, exitCode } = Bun.spawnSync(['tar', '-xOf', path, '--', `f${each}`]);
        expect([exitCode, Buffer.from(bytes).equals(stdout)]).toEqual([0, true]);
      }
    }),
    { numRuns: 20 },
  );
  for (const bad of ['', 'ä', 'a b', 'x'.repeat(101)]) {
    expect(() => tarHeader(bad, 1, 1)).toThrow(RangeError);
  }
  expect(() => tarHeader('a', 8 ** 11, 1)).toThrow(RangeError);
});
