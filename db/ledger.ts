/** The deletion ledger: which orgs are gone for good, in the database and in a file outside of it. */

import { appendFile, mkdir, readFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { isId, type OrgId } from '../schema/ids.ts';
import type { Database, Statement } from './client.ts';

/** Orgs that were deleted, with the time of it in Unix milliseconds. */
export type Deletions = ReadonlyMap<OrgId, number>;

/** The statement that enters an org; commit it with the last of its rows. */
export function enter(org: OrgId, now: number): Statement {
  return {
    sql: 'insert into deleted_orgs (id, deleted_at) values (?1, ?2) on conflict do nothing',
    args: [org, now],
  };
}

/** What the database itself knows of. */
export async function readEntries(db: Database): Promise<Deletions> {
  const rows = await db.read('select id, deleted_at from deleted_orgs order by deleted_at, id', []);
  return new Map(rows.map((row) => [row.id as OrgId, Number(row.deleted_at)]));
}

/** Which of these orgs are there. */
export async function findPresent(db: Database, deletions: Deletions): Promise<OrgId[]> {
  const rows = await db.read('select id from orgs where id in (select value from json_each(?1))', [
    JSON.stringify([...deletions.keys()]),
  ]);
  return rows.map((row) => row.id as OrgId);
}

/** Enters in the database what it lacks: what was deleted after the backup that it came from. */
export async function enterAll(db: Database, deletions: Deletions): Promise<void> {
  if (deletions.size > 0) await db.write([...deletions].map(([org, at]) => enter(org, at)));
}

/**
 * The ledger's file: a line `{"org":"org_…","deletedAt":"2026-01-31T12:00:00.000Z"}` each.
 *
 * @returns nothing for a file that is not there.
 * @throws {Error} for a line that is none: an org must not come back because of a damaged file.
 */
export async function readLedgerFile(path: string): Promise<Deletions> {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw error;
  });
  const lines = text.split('\n');
  return new Map(lines.flatMap((line, at) => (line.trim() === '' ? [] : [readLine(line, at)])));
}

function readLine(line: string, at: number): [OrgId, number] {
  try {
    const { org, deletedAt } = JSON.parse(line) as { org?: unknown; deletedAt?: unknown };
    const deleted = Date.parse(String(deletedAt));
    if (typeof org === 'string' && isId('org', org) && !Number.isNaN(deleted))
      return [org, deleted];
  } catch {}
  throw new Error(`Line ${at + 1} of the deletion ledger is not one of a ledger.`);
}

/** Adds lines to the ledger's file, durably; the file is made with mode 600 when it is missing. */
export async function appendLedgerFile(path: string, deletions: Deletions): Promise<void> {
  if (deletions.size === 0) return;
  const lines = [...deletions].map(
    ([org, at]) => `${JSON.stringify({ org, deletedAt: new Date(at).toISOString() })}\n`,
  );
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  // One write, so that the lines of two processes don't mix; a torn one before it ends here.
  await appendFile(path, lines.join(''), { mode: 0o600, flush: true });
}
