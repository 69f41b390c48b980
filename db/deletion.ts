/** Deletion: takes every row of an org, in tables that the schema itself names, then the org. */

import { PLATFORM_CHAIN } from '../schema/audit.ts';
import type { OrgId } from '../schema/ids.ts';
import { auditEntry, erasePayloads, MAX_ERASED } from './audit.ts';
import type { Database } from './client.ts';
import { enter } from './ledger.ts';
import { forOrg, type Org } from './org.ts';
import type { TenantTable } from './tables.ts';
import { forgetting } from './users.ts';

/** Goes last, with the org itself: until then an interrupted deletion can be taken up again. */
const LAST = 'org_keys';

/** Rows with bodies are large: few of them go at once. */
const MOST: Readonly<Record<string, number>> = { captures: 20, parked: 1, parked_parts: 20 };

/**
 * Deletes some rows of an org from a table; with its members and invitations also the people who
 * are in no other org, and their links to sign in.
 *
 * @param limit The most rows of one transaction.
 * @returns how many; 0 when none is left, and always for the org's key.
 */
export async function deleteRows(org: Org, table: TenantTable, limit: number): Promise<number> {
  const { name, key } = table;
  if (name === LAST) return 0;
  if (name === 'members') return await deleteMembers(org, limit);
  if (name === 'invitations') return await deleteInvitations(org, limit);
  const columns = key.map((column) => `"${column}"`).join(', ');
  const [deleted] = await org.write(
    org.statement(
      `delete from "${name}" where (${columns}) in (
         select ${columns} from "${name}" where org_id = ?1 limit ?2
       )`,
      Math.min(limit, MOST[name] ?? limit),
    ),
  );
  return deleted!.changes;
}

async function deleteMembers(org: Org, limit: number): Promise<number> {
  const rows = await org.read('select user_id from members where org_id = ?1 limit ?2', limit);
  if (rows.length === 0) return 0;
  const users = rows.map((row) => String(row.user_id));
  const [deleted] = await org.write(
    org.statement(
      'delete from members where org_id = ?1 and user_id in (select value from json_each(?2))',
      JSON.stringify(users),
    ),
    ...forgetting('id', users),
  );
  return deleted!.changes;
}

/** Who accepted one too late is known by his address, and in no org. */
async function deleteInvitations(org: Org, limit: number): Promise<number> {
  const rows = await org.read(
    'select id, email from invitations where org_id = ?1 limit ?2',
    limit,
  );
  if (rows.length === 0) return 0;
  const [deleted] = await org.write(
    org.statement(
      'delete from invitations where org_id = ?1 and id in (select value from json_each(?2))',
      JSON.stringify(rows.map((row) => row.id)),
    ),
    ...forgetting(
      'email',
      rows.map((row) => String(row.email)),
    ),
  );
  return deleted!.changes;
}

/**
 * Destroys the org's key, deletes the org and enters it in the ledger; that it was deleted stays on
 * the platform's audit trail, by its id. What was written meanwhile goes in the same transaction.
 *
 * @param tables All of them, those that refer to others before these; hardly a row is left there.
 */
export async function deleteOrg(
  db: Database,
  org: Org,
  tables: readonly TenantTable[],
  now: number,
): Promise<void> {
  const chain = forOrg(db, PLATFORM_CHAIN);
  await chain.write(
    ...tables.map(({ name }) => org.statement(`delete from "${name}" where org_id = ?1`)),
    { sql: 'delete from orgs where id = ?1', args: [org.id] },
    enter(org.id, now),
    auditEntry(chain, 'system', 'account.deleted', org.id),
  );
}

/**
 * Erases what the platform's audit trail says of the org beside its id. Do it while the org is
 * there: afterwards nothing tells that it is still to be done.
 *
 * @returns how many entries.
 */
export async function forgetAccount(db: Database, org: OrgId): Promise<number> {
  const chain = forOrg(db, PLATFORM_CHAIN);
  for (let total = 0; ; ) {
    const rows = await chain.read(
      `select seq from audit_entries
       where org_id = ?1 and target = ?2 and payload is not null order by seq limit ?3`,
      org,
      MAX_ERASED,
    );
    const seqs = rows.map(({ seq }) => Number(seq));
    const erased = seqs.length === 0 ? 0 : await erasePayloads(chain, 'system', seqs);
    if (erased === 0) return total;
    total += erased;
  }
}

/** Orgs whose deletion is due, the longest overdue first. */
export async function findLeaving(db: Database, now: number, limit: number): Promise<Org[]> {
  const rows = await db.read(
    'select id from orgs where deletes_at <= ?1 order by deletes_at limit ?2',
    [now, limit],
  );
  return rows.map((row) => forOrg(db, row.id as OrgId));
}
