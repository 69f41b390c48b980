/** A session: the configuration, the database and the org that one command works with. */

import { existsSync } from 'node:fs';
import { env } from 'node:process';
import { type Database, filePath, openDatabase } from '../../db/client.ts';
import { hasSchema, pendingMigrations } from '../../db/migrate.ts';
import type { Org } from '../../db/org.ts';
import { findOrg } from '../../db/orgs.ts';
import type { MasterKeys } from '../../db/seal.ts';
import { type Config, readConfig } from '../../functions/config.ts';
import { findReturned, replayDeletions } from '../../functions/jobs/erase.ts';
import { openKeys, refuseMissingShares } from '../../functions/keys.ts';
import { makeLog } from '../../functions/log.ts';
import { EXIT_FAILED, Failure } from './failure.ts';

/** What the audit trail calls whoever is at the command line. */
export const OPERATOR = 'operator';

const INIT = 'npx bun run rungate init --org NAME --email OWNER';
const MIGRATE = 'npx bun run rungate migrate';

/** What a command works with; good until the command ends. */
export interface Session {
  readonly config: Config;
  readonly db: Database;
}

/**
 * Opens the configured database for a piece of work and closes it afterwards. A file is made when
 * it is missing, but no schema.
 *
 * @throws {ConfigError} when the environment is wrong.
 * @throws {DatabaseError} when the database can't be opened.
 */
export async function withDatabase<T>(work: (session: Session) => Promise<T>): Promise<T> {
  const config = readConfig(env);
  const db = await openDatabase(config.database);
  try {
    return await work({ config, db });
  } finally {
    await db.close();
  }
}

/**
 * Opens a database that is there already.
 *
 * @throws {Failure} when its file is missing.
 */
export async function withExistingDatabase<T>(work: (session: Session) => Promise<T>): Promise<T> {
  const { url } = readConfig(env).database;
  if (url.startsWith('file:') && !existsSync(filePath(url))) {
    throw new Failure(EXIT_FAILED, `There is no database at ${url}: make one with \`${INIT}\`.`);
  }
  return await withDatabase(work);
}

/**
 * Opens a database that holds a schema, be it an older one.
 *
 * @throws {Failure} when it is empty, as a copy of the file without its log is.
 */
export async function withFilledDatabase<T>(work: (session: Session) => Promise<T>): Promise<T> {
  return await withExistingDatabase(async (session) => {
    if (!(await hasSchema(session.db))) throw new Failure(EXIT_FAILED, emptyNote(session.config));
    return await work(session);
  });
}

/** What is told of a database without a schema: to fill it would hide that something is lost. */
export function emptyNote({ database: { url } }: Config): string {
  const where = url.startsWith('file:') ? url : 'RUNGATE_DATABASE_URL';
  return (
    `The database at ${where} is empty. If it should not be, look whether it is the right one, or ` +
    `a copy that was made without its -wal file; a new one is made with \`${INIT}\`.`
  );
}

/**
 * Opens a database whose schema is up to date, without orgs that were deleted: one that comes from
 * a backup may not have been served since.
 *
 * @throws {Failure} when it is not up to date.
 * @throws {ConfigError} when the deletion ledger can't be read.
 */
export async function withCurrentDatabase<T>(work: (session: Session) => Promise<T>): Promise<T> {
  return await withFilledDatabase(async (session) => {
    const pending = await pendingMigrations(session.db);
    if (pending.length > 0) {
      throw new Failure(EXIT_FAILED, `The database is not up to date: run \`${MIGRATE}\` first.`);
    }
    await deleteAgain(session);
    return await work(session);
  });
}

async function deleteAgain({ config, db }: Session): Promise<void> {
  if ((await findReturned({ config, db })).length === 0) return;
  const log = makeLog(config.logLevel);
  const master = await readMasterKeys(config);
  await replayDeletions({ config, db, log, master, now: Date.now });
}

/**
 * Opens the database and the org of a slug.
 *
 * @throws {Failure} when there is no such org.
 */
export async function withOrg<T>(
  slug: string,
  work: (org: Org, session: Session) => Promise<T>,
): Promise<T> {
  return await withCurrentDatabase(async (session) => {
    const org = await findOrg(session.db, slug);
    if (!org) throw new Failure(EXIT_FAILED, `There is no org "${slug}".`);
    return await work(org, session);
  });
}

/**
 * The configured master keys; in development those that the server makes and uses, too.
 *
 * @throws {ConfigError}
 */
export async function readMasterKeys(config: Config): Promise<MasterKeys> {
  return await openKeys(config, makeLog(config.logLevel));
}

/**
 * As {@link readMasterKeys}, for who makes keys of orgs or moves them.
 *
 * @throws {ConfigError} also where shares are missing, so that no new ones are kept elsewhere.
 */
export async function readAllKeys({ config, db }: Session): Promise<MasterKeys> {
  const master = await readMasterKeys(config);
  await refuseMissingShares(db, master, config);
  return master;
}
