/** Opens what a process needs, from its environment alone. */

import process from 'node:process';
import { openDatabase } from '../db/client.ts';
import { Memo } from '../db/memo.ts';
import { migrate } from '../db/migrate.ts';
import { watchOutbox } from '../db/outbox.ts';
import { keepOpened } from '../db/seal.ts';
import { Catalogues } from './catalogues.ts';
import { ledgerWarning, readConfig } from './config.ts';
import { makeEgress } from './egress.ts';
import { Deliveries } from './jobs/deliver.ts';
import { replayDeletions } from './jobs/erase.ts';
import { openKeys, refuseMissingKeys, refuseMissingShares } from './keys.ts';
import { makeLog } from './log.ts';
import { Mailer } from './mail.ts';
import { Flights } from './proxy/flight.ts';
import type { Memory, Services } from './services.ts';

/** How many tokens and runs a process remembers. */
const MEMORY = 10_000;

/** Nothing remembered yet. */
export function emptyMemory(): Memory {
  return {
    ...{ credentials: new Memo(MEMORY), runs: new Memo(MEMORY), parked: new Memo(MEMORY) },
    ...{ failures: new Memo(MEMORY), admins: new Memo(MEMORY) },
  };
}

/**
 * Reads the environment and opens the database, brought to the newest schema.
 *
 * @throws {ConfigError} naming every variable that is wrong, or a key or a share that is missing.
 * @throws {DatabaseError} when the database can't be opened.
 */
export async function boot(
  env: Record<string, string | undefined> = process.env,
): Promise<Services> {
  const config = readConfig(env);
  const log = makeLog(config.logLevel);
  const warning = ledgerWarning(config);
  if (warning !== undefined) log.warn(warning);
  const master = await openKeys(config, log);
  const opened = await openDatabase(config.database);
  const applied = await migrate(opened);
  if (applied.length > 0) log.info('migrated the database', { applied });
  try {
    await refuseMissingKeys(opened, master);
    await replayDeletions({ config, log, db: opened, master, now: Date.now });
    await refuseMissingShares(opened, master, config);
  } catch (error) {
    await opened.close();
    throw error;
  }
  const secrets = keepOpened(master, () => performance.now());
  const egress = makeEgress({ allow: config.egressAllow });
  const deliveries = new Deliveries({
    ...{ config, db: opened, master, egress, secrets, log },
    now: Date.now,
  });
  const db = watchOutbox(opened, {
    onEvent: () => deliveries.nudge(),
    onSettlement: () => deliveries.glance(),
  });
  const catalogues = new Catalogues(db, log, config.pricesUrl);
  await catalogues.look(Date.now());
  return {
    config,
    log,
    db,
    master,
    secrets,
    egress,
    flights: new Flights(db, log, Date.now),
    deliveries,
    mailer: new Mailer(config, log),
    memory: emptyMemory(),
    catalogues,
    stopping: new AbortController(),
    now: Date.now,
  };
}

/** For the last bytes of what has been settled. */
const LINGER_MS = 3_000;

/**
 * Lets calls in flight end, for at most `limitMs`, then settles the rest and closes.
 *
 * @param drained Settles once a server that has stopped listening has sent everything, and no tick
 *   is under way.
 */
export async function shutDown(
  { flights, deliveries, mailer, stopping, db }: Services,
  limitMs: number,
  drained?: Promise<unknown>,
): Promise<void> {
  stopping.abort();
  await flights.drain(limitMs);
  if (drained) {
    // A call is settled before its last byte is sent, and holds nothing before it is decided on.
    await within(drained, LINGER_MS);
    await flights.drain(0);
  }
  await deliveries.stop(Math.min(limitMs, LINGER_MS));
  await within(mailer.drain(), Math.min(limitMs, LINGER_MS));
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
