/** The tables that hold rows of orgs, as the schema of the database itself tells. */

import type { Database } from './client.ts';

/** A table with rows of orgs. */
export interface TenantTable {
  readonly name: string;
  readonly columns: readonly string[];
  /** Columns of its primary key. */
  readonly key: readonly string[];
}

/** Every table that has a column `org_id`, those that refer to others before these. */
export async function tenantTables(db: Database): Promise<TenantTable[]> {
  const [columns, references] = await Promise.all([
    db.read(
      `select m.name as name, c.name as column, c.pk as pk
       from sqlite_master m join pragma_table_info(m.name) c
       where m.type = 'table' order by m.name, c.pk`,
      [],
    ),
    db.read(
      `select m.name as name, f."table" as target
       from sqlite_master m join pragma_foreign_key_list(m.name) f where m.type = 'table'`,
      [],
    ),
  ]);
  const owned = columns.filter(({ column }) => column === 'org_id').map(({ name }) => String(name));
  const isBefore = (name: string, other: string) =>
    references.some((row) => row.name === name && row.target === other);
  return inOrder(owned, isBefore).map((name) => ({
    name,
    columns: columns.filter((row) => row.name === name).map(({ column }) => String(column)),
    key: columns
      .filter((row) => row.name === name && Number(row.pk) > 0)
      .map(({ column }) => String(column)),
  }));
}

/** @throws {Error} when tables refer to each other in a circle. */
function inOrder(names: readonly string[], isBefore: (one: string, other: string) => boolean) {
  const left = new Set(names);
  const ordered: string[] = [];
  while (left.size > 0) {
    const free = [...left].filter((name) =>
      [...left].every((other) => other === name || !isBefore(other, name)),
    );
    if (free.length === 0) throw new Error('The tables refer to each other in a circle.');
    for (const name of free) left.delete(name);
    ordered.push(...free);
  }
  return ordered;
}
