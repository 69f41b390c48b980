/** Brings a database to the newest schema by append-only migrations. */

import { readFileSync } from 'node:fs';
import { chainHistory } from './audit.ts';
import type { Database } from './client.ts';
import { DatabaseError } from './client.ts';

/** The migrations in their order; a published one is never changed, only followed. */
const MIGRATIONS = [
  '0001_foundation.sql',
  '0002_events.sql',
  '0003_policies.sql',
  '0004_limits.sql',
  '0005_gates.sql',
  '0006_captures.sql',
  '0007_people.sql',
  '0008_audit.sql',
  '0009_webhooks.sql',
  '0010_analytics.sql',
  '0011_leaving.sql',
  '0012_authors.sql',
  '0013_token_policies.sql',
  '0014_price_catalogue.sql',
  '0015_delivery_lists.sql',
  '0016_tallies.sql',
  '0017_trails.sql',
  '0018_approved_calls.sql',
  '0019_used_tokens.sql',
  '0020_used_approvals.sql',
  '0021_parked_runs.sql',
  '0022_approvers.sql',
  '0023_ended_calls.sql',
  '0024_counted_calls.sql',
  '0025_changed_ceilings.sql',
  '0026_approved_servers.sql',
  '0027_key_tiers.sql',
] as const;

/**
 * Applies what is missing, each migration in a transaction of its own. Safe to run from several
 * processes at once.
 *
 * @returns the names of the migrations that this call applied.
 * @throws {DatabaseError} when the database holds migrations that this version does not know.
 */
export async function migrate(db: Database): Promise<string[]> {
  await db.write([
    {
      sql: `create table if not exists migrations (
        name text primary key, applied_at integer not null
      ) strict, without rowid`,
      args: [],
    },
  ]);
  const known = new Set<string>(MIGRATIONS);
  const present = await appliedNames(db);
  const unknown = [...present].filter((name) => !known.has(name));
  if (unknown.length > 0) {
    throw new DatabaseError(
      new Error(`the database was migrated by a newer Rungate (${unknown.join(', ')})`),
    );
  }
  const applied: string[] = [];
  for (const name of MIGRATIONS) {
    if (!present.has(name) && (await apply(db, name))) applied.push(name);
  }
  await chainHistory(db);
  return applied;
}

/** Whether the database was ever migrated; one that was not holds nothing of ours. */
export async function hasSchema(db: Database): Promise<boolean> {
  const table = await db.first(
    `select 1 as found from sqlite_master where type = 'table' and name = 'migrations'`,
    [],
  );
  return table !== undefined;
}

/** Which migrations are missing; empty when the schema is up to date. */
export async function pendingMigrations(db: Database): Promise<string[]> {
  if (!(await hasSchema(db))) return [...MIGRATIONS];
  const present = await appliedNames(db);
  return MIGRATIONS.filter((name) => !present.has(name));
}

async function appliedNames(db: Database): Promise<Set<string>> {
  const rows = await db.read('select name from migrations', []);
  return new Set(rows.map((row) => String(row.name)));
}

async function apply(db: Database, name: string): Promise<boolean> {
  const script = readFileSync(new URL(`./migrations/${name}`, import.meta.url), 'utf8');
  try {
    await db.write([
      {
        sql: 'insert into migrations (name, applied_at) values (?1, ?2)',
        args: [name, Date.now()],
      },
      ...statementsOf(script).map((sql) => ({ sql, args: [] })),
    ]);
    return true;
  } catch (error) {
    // Another process was faster: its transaction wrote the name first.
    if (error instanceof DatabaseError && error.conflict) return false;
    throw error;
  }
}

/** Statements stand apart by blank lines, since a trigger's body holds semicolons of its own. */
function statementsOf(script: string): string[] {
  return script
    .split(/\n\s*\n/)
    .map((part) => part.replace(/^\s*--.*$/gm, '').trim())
    .filter((part) => part !== '');
}
