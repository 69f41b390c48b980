/** Leaving: erases orgs whose time has come, and again those that an older backup brought back. */

import { deleteOrg, deleteRows, findLeaving, forgetAccount } from '../../db/deletion.ts';
import {
  appendLedgerFile,
  type Deletions,
  enterAll,
  findPresent,
  readEntries,
  readLedgerFile,
} from '../../db/ledger.ts';
import { forOrg, type Org } from '../../db/org.ts';
import { tenantTables } from '../../db/tables.ts';
import type { OrgId } from '../../schema/ids.ts';
import { unusable } from '../config.ts';
import type { Services } from '../services.ts';
import { BATCH_ROWS, Budget } from './batches.ts';

/** What erasing needs of the process. */
export type EraseParts = Pick<Services, 'config' | 'db' | 'log' | 'master' | 'now'>;

const LEDGER = 'RUNGATE_DELETION_LEDGER';
const ORGS_PER_TICK = 10;
/** Before a process serves, nobody waits for the database. */
const REPLAY_BATCH_ROWS = 1_000;

/** What was erased. */
export interface Erased {
  readonly rows: number;
  readonly orgs: number;
}

/** Goes on erasing the orgs whose time has come, for at most `limitMs`. */
export async function eraseLeaving(parts: EraseParts, limitMs: number): Promise<Erased> {
  const { db, now } = parts;
  const budget = new Budget(limitMs);
  const erased = { rows: 0, orgs: 0 };
  for (const org of await findLeaving(db, now(), ORGS_PER_TICK)) {
    erased.rows += await deleteAll(parts, org, (work) => budget.drain(work));
    if (budget.isSpent) break;
    await finish(parts, org);
    erased.orgs++;
  }
  return erased;
}

async function deleteAll(
  { db }: EraseParts,
  org: Org,
  drain: (work: () => Promise<number>) => Promise<number>,
  limit = BATCH_ROWS,
): Promise<number> {
  let rows = 0;
  for (const table of await tenantTables(db)) {
    rows += await drain(() => deleteRows(org, table, limit));
  }
  return rows;
}

/**
 * In an order in which nothing can come back, or be left, when the process ends midway: while the
 * org is there, all of it is done again. The share of the key and the ledger's file stand outside
 * the database, and go before its last transaction.
 */
async function finish({ config, db, log, master, now }: EraseParts, org: Org): Promise<void> {
  const at = now();
  await forgetAccount(db, org.id);
  await master.shares?.destroy(org.id);
  if (config.deletionLedger !== undefined) {
    await appendLedgerFile(config.deletionLedger, new Map([[org.id, at]]));
  }
  await deleteOrg(db, org, await tenantTables(db), at);
  log.info('deleted an org', { org: org.id });
}

/**
 * Erases every org of the ledger that is there again, since the database came from a backup, and
 * brings the ledger's two copies to agree. Call it before anything is served.
 *
 * @throws {ConfigError} when the ledger's file can't be used.
 */
export async function replayDeletions(parts: EraseParts): Promise<void> {
  const { config, db, log } = parts;
  const path = config.deletionLedger;
  const { stored, filed } = await readLedgers(parts);
  for (const id of await findPresent(db, new Map([...stored, ...filed]))) {
    const org = forOrg(db, id);
    await deleteAll(parts, org, drainAll, REPLAY_BATCH_ROWS);
    await finish(parts, org);
    log.warn('deleted an org again that a backup had brought back', { org: id });
  }
  await enterAll(db, without(filed, stored));
  if (path === undefined) return;
  await appendLedgerFile(path, without(stored, filed)).catch(unusable(LEDGER, path));
}

/**
 * Which orgs {@link replayDeletions} would delete; it takes no keys to know.
 *
 * @throws {ConfigError} when the ledger's file can't be read.
 */
export async function findReturned(parts: Pick<EraseParts, 'config' | 'db'>): Promise<OrgId[]> {
  const { stored, filed } = await readLedgers(parts);
  return await findPresent(parts.db, new Map([...stored, ...filed]));
}

async function readLedgers({ config, db }: Pick<EraseParts, 'config' | 'db'>) {
  const path = config.deletionLedger;
  const [stored, filed] = await Promise.all([
    readEntries(db),
    path === undefined
      ? (new Map() as Deletions)
      : readLedgerFile(path).catch(unusable(LEDGER, path)),
  ]);
  return { stored, filed };
}

async function drainAll(work: () => Promise<number>): Promise<number> {
  let total = 0;
  for (;;) {
    const done = await work();
    if (done === 0) return total;
    total += done;
  }
}

function without(deletions: Deletions, known: Deletions): Deletions {
  return new Map([...deletions].filter(([org]) => !known.has(org)));
}
