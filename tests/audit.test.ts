/** The audit chain: what it records, that it can't be changed unseen, and what may be taken away. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import {
  type AuditFilter,
  auditEntry,
  entriesOf,
  erasePayloads,
  listAudit,
  type Principal,
  readChain,
} from '../db/audit.ts';
import { commit } from '../db/chain.ts';
import { pruneAudit, signHead, verifyOrg } from '../db/checkpoints.ts';
import { type Database, openDatabase } from '../db/client.ts';
import { migrate } from '../db/migrate.ts';
import { forOrg, type Org } from '../db/org.ts';
import { createOrg, renameOrg } from '../db/orgs.ts';
import { digestText, newId, newMasterKey, openMasterKeys } from '../db/seal.ts';
import { openSigner, type PublicKey, readPublicKeys, type Signer } from '../db/signing.ts';
import { rotateOrgKeys } from '../db/system.ts';
import {
  type AuditEntry,
  ChainCheck,
  type Checkpoint,
  canonicalEntry,
  ERASURE,
  GENESIS,
  MAX_PAYLOAD_CHARS,
} from '../schema/audit.ts';
import { formatCsvRow } from '../schema/csv.ts';
import { type Ground, makeGround, makeOrg } from './orgs.ts';
import { finish } from './process.ts';
import { startSqld } from './sqld.ts';

setDefaultTimeout(60_000);

let ground: Ground;
let signer: Signer;
let keys: PublicKey[];

beforeAll(async () => {
  ground = await makeGround();
  signer = await openSigner(ground.db, ground.master);
  keys = await readPublicKeys(ground.db, ground.master);
});
afterAll(() => ground.clear());

const MAIN = join(import.meta.dir, '../web/cli/main.ts');

const person: Principal = {
  kind: 'user',
  id: 'usr_someone',
  address: '192.0.2.7',
  userAgent: 'Browser/1.0',
  requestId: 'req_1',
};

async function makeChain(length: number): Promise<Org> {
  const { org } = await makeOrg(ground);
  for (let count = 2; count <= length; count++) {
    await org.write(auditEntry(org, person, 'agent.update', `agt_${count}`, { count }));
  }
  return org;
}

async function entries(org: Org): Promise<AuditEntry[]> {
  const all: AuditEntry[] = [];
  for await (const entry of readChain(org)) all.push(entry);
  return all;
}

/** Changes the file as somebody would who has it: without triggers. */
async function tamper(db: Database, ...statements: [string, ...(string | number | null)[]][]) {
  const [trigger] = await db.read(
    `select sql from sqlite_master where name = 'audit_entries_are_immutable'`,
    [],
  );
  await db.write([
    { sql: 'drop trigger audit_entries_are_immutable', args: [] },
    ...statements.map(([sql, ...args]) => ({ sql, args })),
    { sql: String(trigger!.sql), args: [] },
  ]);
}

const LENGTH = 8;

describe('an entry', () => {
  test('says who did what from where, before and after', async () => {
    const { org } = await makeOrg(ground);
    await org.write(
      auditEntry(org, person, 'agent.update', 'agt_1', { name: 'b' }, { before: { name: 'a' } }),
    );
    const [entry] = await listAudit(org, { limit: 1 });
    expect(entry).toMatchObject({
      action: 'agent.update',
      actorKind: 'user',
      target: 'agt_1',
      outcome: 'allowed',
    });
    const { kind: _, ...who } = person;
    expect(JSON.parse(entry!.payload!.text)).toEqual({
      actor: who,
      before: { name: 'a' },
      after: { name: 'b' },
    });
  });

  test('is in the transaction of its change: neither stands without the other', async () => {
    const { org } = await makeOrg(ground);
    const before = await entries(org);
    const failing = org.statement(
      'insert into members (org_id, id, user_id, role, created_at) values (?1, null, null, null, 0)',
    );
    const change = org.statement("update tokens set name = 'x' where org_id = ?1");
    await expect(org.write(change, auditEntry(org, person, 'a.b', 'x'), failing)).rejects.toThrow();
    expect(await entries(org)).toEqual(before);
    const row = await org.first('select name from tokens where org_id = ?1');
    expect(row).toEqual({ name: 'init' });
  });

  test('is found by its action, target, actor, outcome and time', async () => {
    const { org } = await makeOrg(ground);
    const from = Date.now();
    await org.write(auditEntry(org, person, 'a.b', 'x', {}, { outcome: 'refused' }));
    const filters: Omit<AuditFilter, 'limit'>[] = [
      { action: 'a.b' },
      { target: 'x' },
      { actor: person.id },
      { outcome: 'refused' },
      { beforeSeq: 3 },
      { from, to: from + 60_000 },
    ];
    for (const filter of filters) {
      const [found] = await listAudit(org, { ...filter, limit: 5 });
      expect([filter, found?.seq]).toEqual([filter, 2]);
    }
    for (const filter of [{ action: 'x' }, { actor: 'x' }, { to: 0 }, { beforeSeq: 1 }]) {
      expect(await listAudit(org, { ...filter, limit: 5 })).toEqual([]);
    }
  });

  test('that may be left out is so when nothing changed, and the chain has no gap', async () => {
    const { org } = await makeOrg(ground);
    for (const name of ['New', 'New', 'Newer', 'Newer']) await renameOrg(org, person, name);
    const renames = await listAudit(org, { limit: 10, action: 'org.update' });
    expect(renames).toHaveLength(2);
    expect((await verifyOrg(org, keys)).ok).toBe(true);
  });

  test('never holds a secret, wherever it stands', async () => {
    const { org } = await makeOrg(ground);
    const token = `rg_adm_${'a1B2'.repeat(9)}`;
    const secrets = ['hunter2hunter2', token, 'sk-live-0123456789', 'whsec_c2VjcmV0c2VjcmV0'];
    const after = {
      password: secrets[0],
      deep: [{ apiKey: secrets[0], client_secret: secrets[0] }],
      text: `see ${secrets.slice(1).join(', ')}`,
      secret: { value: secrets[0] },
    };
    await org.write(auditEntry(org, person, 'a.b', 'x', after, { before: after }));
    const text = (await listAudit(org, { limit: 1 }))[0]!.payload!.text;
    for (const secret of secrets) expect(text).not.toContain(secret);
    expect(text).toContain('[redacted]');
  });

  test('of any size is kept within bounds', async () => {
    const { org } = await makeOrg(ground);
    const after = { text: 'x'.repeat(MAX_PAYLOAD_CHARS) };
    await org.write(auditEntry(org, person, 'a.b', 'x', after));
    const { payload } = (await listAudit(org, { limit: 1 }))[0]!;
    expect(payload!.text.length).toBeLessThan(1_000);
    expect(JSON.parse(payload!.text)).toHaveProperty('omitted');
  });

  test("can't be updated but to erase it, even by SQL", async () => {
    const org = await makeChain(2);
    for (const column of ['seq', 'at', 'action', 'target', 'hash', 'prev_hash', 'commitment']) {
      const sql = `update audit_entries set ${column} = ${column} where org_id = ?1`;
      await expect(ground.db.write([{ sql, args: [org.id] }])).rejects.toThrow('immutable');
    }
  });
});

describe('a clean chain', () => {
  test('verifies, whatever was written', async () => {
    const written = fc.record({
      action: fc.string({ minLength: 1, maxLength: 20, unit: 'grapheme' }),
      target: fc.oneof(
        fc.string({ minLength: 1, maxLength: 20, unit: 'binary' }),
        fc.constantFrom('\u0000', 'a\u0000b', '\ud800', `${'x'.repeat(499)}\u{1f600}`),
      ),
      after: fc.option(fc.object({ maxDepth: 2 }), { nil: undefined }),
    });
    const property = fc.asyncProperty(fc.array(written, { maxLength: 6 }), async (list) => {
      const { org } = await makeOrg(ground);
      for (const { action, target, after } of list) {
        await org.write(auditEntry(org, person, action, target, after));
      }
      expect(await verifyOrg(org, keys)).toMatchObject({ ok: true, entries: list.length + 1 });
    });
    await fc.assert(property, { numRuns: 30 });
  });

  test('has no gap and no fork, however many write over several connections', async () => {
    const { org } = await makeOrg(ground);
    const doors = [org];
    for (let count = 0; count < 3; count++) doors.push(forOrg(await ground.connect(), org.id));
    const writes = Array.from({ length: 80 }, (_, at) => {
      const door = doors[at % doors.length]!;
      return door.write(auditEntry(door, person, 'a.b', `x${at}`));
    });
    await Promise.all(writes);
    expect(await verifyOrg(org, keys)).toMatchObject({ ok: true, entries: 81 });
  });

  test('has none on a libSQL server, either', async () => {
    const sqld = await startSqld();
    const url = sqld.url;
    const dbs = await Promise.all([1, 2, 3].map(() => openDatabase({ url })));
    await migrate(dbs[0]!);
    const { id } = await createOrg(dbs[0]!, ground.master, 'operator', 'A', 'a@example.com');
    const doors = dbs.map((db) => forOrg(db, id));
    const writes = Array.from({ length: 30 }, (_, at) => {
      const door = doors[at % doors.length]!;
      return door.write(auditEntry(door, person, 'a.b', `x${at}`));
    });
    await Promise.all(writes);
    expect(await verifyOrg(doors[0]!, keys)).toMatchObject({ ok: true, entries: 31 });
    for (const db of dbs) await db.close();
    await sqld.stop();
  });

  test('may take several entries in one transaction', async () => {
    const { org } = await makeOrg(ground);
    const drafts = [1, 2, 3].map((n) => auditEntry(org, person, 'a.b', `x${n}`));
    await org.write(...drafts);
    expect(await verifyOrg(org, keys)).toMatchObject({ ok: true, entries: 4 });
  });
});

/** Each way to tamper with entry `seq` of a chain of {@link LENGTH}. */
const TAMPERINGS: Readonly<
  Record<string, (org: Org, seq: number, all: readonly AuditEntry[]) => Promise<void>>
> = {
  ...Object.fromEntries(
    [
      'id',
      'action',
      'target',
      'actor_kind',
      'commitment',
      'prev_hash',
      'hash',
      'salt',
      'payload',
    ].map((column) => [
      `editing ${column}`,
      (org: Org, seq: number) =>
        tamper(ground.db, [
          `update audit_entries set ${column} = ${column} || ' ' where org_id = ?1 and seq = ?2`,
          org.id,
          seq,
        ]),
    ]),
  ),
  'editing at': (org, seq) =>
    tamper(ground.db, [
      'update audit_entries set at = at - 1 where org_id = ?1 and seq = ?2',
      org.id,
      seq,
    ]),
  'turning refused into allowed': (org, seq) =>
    tamper(ground.db, [
      `update audit_entries set outcome = iif(outcome = 'allowed', 'refused', 'allowed')
       where org_id = ?1 and seq = ?2`,
      org.id,
      seq,
    ]),
  deleting: (org, seq) =>
    tamper(ground.db, ['delete from audit_entries where org_id = ?1 and seq = ?2', org.id, seq]),
  'deleting and closing the gap': (org, seq) =>
    tamper(
      ground.db,
      ['delete from audit_entries where org_id = ?1 and seq = ?2', org.id, seq],
      ['update audit_entries set seq = seq + 1000 where org_id = ?1 and seq > ?2', org.id, seq],
      ['update audit_entries set seq = seq - 1001 where org_id = ?1 and seq > 1000', org.id],
    ),
  'deleting the beginning': (org, seq) =>
    tamper(ground.db, ['delete from audit_entries where org_id = ?1 and seq <= ?2', org.id, seq]),
  truncating: (org, seq) =>
    tamper(ground.db, ['delete from audit_entries where org_id = ?1 and seq >= ?2', org.id, seq]),
  'swapping with another': (org, seq) =>
    tamper(
      ground.db,
      ['update audit_entries set seq = 9999 where org_id = ?1 and seq = ?2', org.id, seq],
      [
        'update audit_entries set seq = ?2 where org_id = ?1 and seq = ?3',
        org.id,
        seq,
        (seq % LENGTH) + 1,
      ],
      [
        'update audit_entries set seq = ?2 where org_id = ?1 and seq = 9999',
        org.id,
        (seq % LENGTH) + 1,
      ],
    ),
  'erasing the payload unsaid': (org, seq) =>
    tamper(ground.db, [
      'update audit_entries set salt = null, payload = null where org_id = ?1 and seq = ?2',
      org.id,
      seq,
    ]),
  'rewriting the rest with sound hashes': (org, seq, all) => rewrite(org, seq, all),
};

/** What somebody does who knows the rule of the chain, and has no key. */
async function rewrite(org: Org, from: number, all: readonly AuditEntry[]): Promise<void> {
  let prevHash = all[from - 1]!.prevHash;
  for (const entry of all.slice(from - 1)) {
    const payload = { salt: entry.payload!.salt, text: '{"actor":{"id":"nobody"}}' };
    const facts = { ...entry, commitment: commit(payload) };
    const hash = digestText(canonicalEntry({ org: org.id, seq: entry.seq, prevHash }, facts));
    await tamper(ground.db, [
      `update audit_entries set payload = ?3, commitment = ?4, prev_hash = ?5, hash = ?6
       where org_id = ?1 and seq = ?2`,
      ...[org.id, entry.seq, payload.text, facts.commitment, prevHash, hash],
    ]);
    prevHash = hash;
  }
}

describe('tampering with the database file is found', () => {
  test.each(Object.entries(TAMPERINGS))(
    '%s, at any entry, against a checkpoint that was held',
    async (_, spoil) => {
      for (let seq = 1; seq <= LENGTH; seq++) {
        const org = await makeChain(LENGTH);
        const held = (await signHead(org, signer, Date.now()))!.checkpoint;
        // Who has the file would take away the checkpoints in it, too.
        await ground.db.write([
          { sql: 'delete from audit_checkpoints where org_id = ?1', args: [org.id] },
        ]);
        expect((await verifyOrg(org, keys, held)).ok).toBe(true);
        await spoil(org, seq, await entries(org));
        const { ok, faults } = await verifyOrg(org, keys, held);
        expect({ seq, ok }).toEqual({ seq, ok: false });
        expect(faults.length).toBeGreaterThan(0);
      }
    },
  );

  test('with a checkpoint of its own making, or another org’s', async () => {
    const [org, other] = [await makeChain(3), await makeChain(5)];
    const foreign = openMasterKeys(newMasterKey('foreign'));
    const strange = await makeGround();
    const forger = await openSigner(strange.db, foreign);
    await signHead(org, forger, Date.now());
    expect((await verifyOrg(org, keys)).faults).toMatchObject([{ fault: 'signature' }]);
    await strange.clear();
    const held = (await signHead(other, signer, Date.now()))!.checkpoint;
    const third = await makeChain(5);
    expect((await verifyOrg(third, keys, held)).ok).toBe(false);
  });

  test('with a public key of its own in the database', async () => {
    const forger = await makeGround();
    const own = await openSigner(forger.db, forger.master);
    await ground.db.write([
      {
        sql: `insert into signing_keys (id, public_key, wrapped, secret, created_at)
          select ?1, ?2, wrapped, secret, 0 from signing_keys limit 1`,
        args: [own.publicKey.kid, JSON.stringify(own.publicKey)],
      },
    ]);
    await expect(readPublicKeys(ground.db, ground.master)).rejects.toThrow();
    await ground.db.write([
      { sql: 'delete from signing_keys where id = ?1', args: [own.publicKey.kid] },
    ]);
    await forger.clear();
  });
});

describe('what may be taken away', () => {
  test('pruning at any time leaves a chain that verifies, and its newest entry', async () => {
    for (let until = 0; until <= LENGTH + 1; until++) {
      const org = await makeChain(LENGTH);
      await spread(org);
      const pruned = await pruneAudit(org, signer, until * 1_000 + 500, Date.now());
      expect(pruned).toBe(Math.min(until, LENGTH - 1));
      const report = await verifyOrg(org, keys);
      expect(report).toMatchObject({ ok: true, faults: [] });
      await org.write(auditEntry(org, person, 'a.b', 'x'));
      expect((await verifyOrg(org, keys)).ok).toBe(true);
    }
  });

  /** Gives each entry a time of its own, seconds from 1970 on, by writing the chain anew. */
  async function spread(org: Org): Promise<void> {
    const all = await entries(org);
    let prevHash = all[0]!.prevHash;
    for (const entry of all) {
      const at = entry.seq * 1_000;
      const link = { org: org.id, seq: entry.seq, prevHash };
      const hash = digestText(canonicalEntry(link, { ...entry, at }));
      await tamper(ground.db, [
        'update audit_entries set at = ?3, prev_hash = ?4, hash = ?5 where org_id = ?1 and seq = ?2',
        ...[org.id, entry.seq, at, prevHash, hash],
      ]);
      prevHash = hash;
    }
  }

  test('a chain that was cut without a signed pruning does not verify', async () => {
    const org = await makeChain(LENGTH);
    await signHead(org, signer, Date.now());
    await tamper(ground.db, ['delete from audit_entries where org_id = ?1 and seq < 4', org.id]);
    expect((await verifyOrg(org, keys)).ok).toBe(false);
  });

  test('erasing a person leaves nothing of him, and a chain that verifies', async () => {
    const org = await makeChain(LENGTH);
    const seqs = await entriesOf(org, person.id);
    expect(seqs).toHaveLength(LENGTH - 1);
    expect(await erasePayloads(org, 'operator', seqs)).toBe(LENGTH - 1);
    expect(await verifyOrg(org, keys)).toMatchObject({ ok: true, erased: LENGTH - 1 });
    const rest = JSON.stringify(await entries(org));
    for (const trace of [person.id, person.address!, person.userAgent!]) {
      expect(rest).not.toContain(trace);
    }
  });

  test('neither takes the other’s proof away: pruning after erasing', async () => {
    const org = await makeChain(LENGTH);
    await erasePayloads(org, 'operator', [2, 5, 7]);
    await spread(org);
    await pruneAudit(org, signer, 4_500, Date.now());
    expect(await verifyOrg(org, keys)).toMatchObject({ ok: true, erased: 2 });
  });
});

test('a forged entry about erasing, whatever it says, excuses nothing and stops no check', async () => {
  const payloads = fc.oneof(
    fc.json(),
    fc.string(),
    fc.constantFrom('null', '{"after":null}', '{"after":{"seqs":{}}}', '{"after":{"seqs":["1"]}}'),
  );
  const property = fc.asyncProperty(payloads, async (text) => {
    const link = { org: 'org_forged', seq: 1, prevHash: GENESIS };
    const said = { at: 0, actorKind: 'operator', target: 'audit', outcome: 'allowed' } as const;
    const salt = '00';
    const first = { ...said, id: 'aud_1', action: 'agent.create', commitment: '0'.repeat(64) };
    const hash = digestText(canonicalEntry(link, first));
    const payload = { salt, text };
    const second = { ...said, id: 'aud_2', action: ERASURE, commitment: commit(payload) };
    const next = { ...link, seq: 2, prevHash: hash };
    const check = new ChainCheck(link.org, digestText);
    check.add({ ...link, ...first, hash });
    check.add({ ...next, ...second, payload, hash: digestText(canonicalEntry(next, second)) });
    expect(check.report()).toMatchObject({ ok: false, faults: [{ seq: 1, fault: 'erased' }] });
  });
  await fc.assert(property);
});

test('what was recorded before there was a chain is taken into it, in its order', async () => {
  const { org } = await makeOrg(ground);
  const ids = [5, 3, 9].map((at) => ({ id: newId('audit', at), at }));
  await ground.db.write(
    ids.map(({ id, at }) => ({
      sql: `insert into audit_history (id, org_id, actor, action, target, detail, created_at)
        values (?1, ?2, 'operator', 'agent.create', 'agt_1', '{"name":"a"}', ?3)`,
      args: [id, org.id, at],
    })),
  );
  await migrate(ground.db);
  const taken = (await entries(org)).slice(1);
  expect(taken.map(({ at }) => at)).toEqual([3, 5, 9]);
  expect((await verifyOrg(org, keys)).ok).toBe(true);
  expect(await ground.db.read('select 1 from audit_history', [])).toEqual([]);
});

test('the signing key is the same after master keys are rotated, and needs the old no more', async () => {
  const moved = await makeGround();
  const before = await openSigner(moved.db, moved.master);
  const text = newMasterKey('new');
  await rotateOrgKeys(moved.db, openMasterKeys(`${text},${moved.masterText}`), () => {});
  const after = await openSigner(moved.db, openMasterKeys(text));
  expect(after.publicKey).toEqual(before.publicKey);
  await moved.clear();
});

test('of processes that make the first signing key at once, all sign with the same', async () => {
  const fresh = await makeGround();
  const doors = [fresh.db, await fresh.connect(), await fresh.connect()];
  const signers = await Promise.all(doors.map((db) => openSigner(db, fresh.master)));
  expect(new Set(signers.map(({ publicKey }) => publicKey.kid)).size).toBe(1);
  await fresh.clear();
});

describe('the command line', () => {
  const env = () => ({
    PATH: process.env.PATH ?? '',
    RUNGATE_DATABASE_URL: ground.url,
    RUNGATE_MASTER_KEYS: ground.masterText,
  });
  const rungate = async (...args: string[]) => {
    const child = Bun.spawn([process.execPath, MAIN, 'audit', ...args], {
      cwd: ground.folder,
      env: env(),
      stdout: 'pipe',
      stderr: 'pipe',
    });
    return await finish(child);
  };

  test('ends quietly and at once when whoever reads an export has read enough', async () => {
    const { org, slug } = await makeOrg(ground);
    const entry = (at: number) => auditEntry(org, person, 'a.b', `${at}`.padStart(200));
    await org.write(...Array.from({ length: 2_000 }, (_, at) => entry(at)));
    const script = '{ "$0" "$@"; echo "ended with $?" >&2; } | head -n 1';
    const command = [process.execPath, MAIN, 'audit', 'export', '--org', slug];
    const child = Bun.spawn(['timeout', '30', 'sh', '-c', script, ...command], {
      env: env(),
      stdout: 'pipe',
      stderr: 'pipe',
    });
    const { stdout, stderr } = await finish(child);
    expect(stdout).toStartWith('{"type":"rungate.audit"');
    expect(stderr).toBe('ended with 0\n');
  });

  test('says once that an export can’t be written', async () => {
    const { slug } = await makeOrg(ground);
    const script = 'exec "$0" "$@" > /dev/full';
    const command = ['sh', '-c', script, process.execPath, MAIN, 'audit', 'export', '--org', slug];
    const child = Bun.spawn(command, { env: env(), stdout: 'pipe', stderr: 'pipe' });
    const { code, stderr } = await finish(child);
    expect([code, stderr]).toEqual([1, "rungate: The result can't be written (ENOSPC).\n"]);
  });

  test('exports what it verifies without a database, and finds every changed line', async () => {
    const { org, slug } = await makeOrg(ground);
    for (let at = 0; at < 4; at++) await org.write(auditEntry(org, person, 'a.b', `x${at}`));
    const checkpoint = join(ground.folder, 'checkpoint.json');
    const file = join(ground.folder, 'export.jsonl');
    const held = await rungate('checkpoint', '--org', slug);
    writeFileSync(checkpoint, held.stdout);
    const exported = (await rungate('export', '--org', slug)).stdout;
    const lines = exported.trim().split('\n');
    expect(lines).toHaveLength(7);
    const check = async (text: string) => {
      writeFileSync(file, text);
      return (await rungate('verify', '--file', file, '--checkpoint', checkpoint)).code;
    };
    expect(await check(exported)).toBe(0);
    expect((await rungate('verify', '--org', slug, '--checkpoint', checkpoint)).code).toBe(0);
    for (const spoiled of spoil(lines)) expect(await check(`${spoiled.join('\n')}\n`)).toBe(1);
  });

  /** Lines changed, left out, swapped or cut off. */
  function spoil(lines: readonly string[]): string[][] {
    const without = lines.toSpliced(3, 1);
    const swapped = lines.with(2, lines[3]!).with(3, lines[2]!);
    const edited = lines.with(3, lines[3]!.replace('a.b', 'a.c'));
    return [without, swapped, edited, lines.slice(0, -1), lines.slice(0, 1)];
  }

  test('refuses a checkpoint that somebody else has signed', async () => {
    const { org, slug } = await makeOrg(ground);
    const path = join(ground.folder, 'forged.json');
    const stranger = await makeGround();
    const forger = await openSigner(stranger.db, stranger.master);
    const point: Checkpoint = { org: org.id, seq: 1, hash: '0'.repeat(64), at: 0, purpose: 'head' };
    const jws = await forger.sign(point);
    writeFileSync(path, JSON.stringify({ jws, publicKey: signer.publicKey }));
    const { code, stderr } = await rungate('verify', '--org', slug, '--checkpoint', path);
    expect(code).toBe(2);
    expect(stderr).toContain('unknown key');
    await stranger.clear();
  });

  test('writes CSV that holds no formula, and a line per entry', async () => {
    const { org, slug } = await makeOrg(ground);
    await org.write(auditEntry(org, person, 'a.b', '=1+1", "x'));
    const { stdout } = await rungate('export', '--org', slug, '--format', 'csv');
    const lines = stdout.trim().split('\n');
    expect(lines).toHaveLength(3);
    expect(lines[2]).toContain(`"'=1+1"", ""x"`);
  });
});

test('no cell of CSV begins like a formula, and every one reads back as it was', () => {
  const property = fc.property(
    fc.array(fc.string({ unit: 'binary' }), { minLength: 1 }),
    (cells) => {
      const read = parseCsvRow(formatCsvRow(cells));
      expect(read.map((cell, at) => (cell === `'${cells[at]}` ? cells[at]! : cell))).toEqual(cells);
      for (const cell of read) expect(cell).not.toMatch(/^[=+\-@\t\r\n|%]/);
    },
  );
  fc.assert(property, { numRuns: 500 });
});

function parseCsvRow(line: string): string[] {
  return Array.from(line.matchAll(/"((?:[^"]|"")*)"(?:,|$)/g), ([, cell]) =>
    cell!.replaceAll('""', '"'),
  );
}
