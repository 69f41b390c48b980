/** Export: an archive that any tar reads, complete, checked by its manifest, and without secrets. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import type { Database } from '../db/client.ts';
import { exportTables } from '../db/export.ts';
import { tenantTables } from '../db/tables.ts';
import type { OrgId } from '../schema/ids.ts';
import { TAR_END, tarHeader, tarPadding } from '../schema/tar.ts';
import { makeGround } from './orgs.ts';
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

describe('what is exported', () => {
  test('has no column whose name is that of a secret, in any table', async () => {
    const ground = await makeGround();
    const harmless =
      /^(audit_entries\.(hash|prev_hash)|reports\.(key|digest)|gates\.(token_id|digest)|responses\.provider_key|.*\.(step_count|request_digest))$/;
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
