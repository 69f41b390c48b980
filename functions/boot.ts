/** Opens what a process needs, from its environment alone. */

import process from 'node:process';
import { openDatabase } from '../db/client.ts';
import { Memo } from '../db/memo.ts';
import { migrate } from '../db/migrate.ts';
import { keepOpened, openMasterKeys } from '../db/seal.ts';
import { masterKeysOf, readConfig } from './config.ts';
import { makeEgress } from './egress.ts';
import { makeLog } from './log.ts';
import { Flights } from './proxy/flight.ts';
import type { Services } from './services.ts';

/** How many tokens and runs a process remembers. */
const MEMORY = 10_000;

/**
 * Reads the environment and opens the database, brought to the newest schema.
 *
 * @throws {ConfigError} naming every variable that is wrong.
 * @throws {DatabaseError} when the database can't be opened.
 */
export async function boot(
  env: Record<string, string | undefined> = process.env,
): Promise<Services> {
  const config = readConfig(env);
  const log = makeLog(config.logLevel);
  const master = openMasterKeys(await masterKeysOf(config, log));
  const db = await openDatabase(config.database);
  const applied = await migrate(db);
  if (applied.length > 0) log.info('migrated the database', { applied });
  return {
    config,
    log,
    db,
    master,
    secrets: keepOpened(master, () => performance.now()),
    egress: makeEgress({ allow: config.egressAllow }),
    flights: new Flights(db, log, Date.now),
    memory: { credentials: new Memo(MEMORY), runs: new Memo(MEMORY) },
    now: Date.now,
  };
}

/** For the last bytes of what has been settled. */
const LINGER_MS = 3_000;

/**
 * Lets calls in flight end, for at most `limitMs`, then settles the rest and closes.
 *
 * @param drained Settles once a server that has stopped listening has sent everything.
 */
export async function shutDown(
  { flights, db }: Services,
  limitMs: number,
  drained?: Promise<unknown>,
): Promise<void> {
  await flights.drain(limitMs);
  if (drained) {
    // A call is settled before its last byte is sent, and holds nothing before it is decided on.
    await within(drained, LINGER_MS);
    await flights.drain(0);
  }
  await db.close();
}

/** Waits for a promise, but for at most `limitMs`. */
function within(promise: Promise<unknown>, limitMs: number): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, limitMs);
    void promise.finally(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}
