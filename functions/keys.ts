/** The master keys of this process, with the shares of org keys where there are any. */

import type { Database } from '../db/client.ts';
import { type MasterKeys, openMasterKeys, SealError } from '../db/seal.ts';
import { openShares } from '../db/shares.ts';
import { missingMasterKeys, missingShares } from '../db/system.ts';
import { type Config, ConfigError, developmentKeyPath, masterKeysOf, unusable } from './config.ts';
import type { Log } from './log.ts';

const SHARES = 'RUNGATE_KEY_SHARES';

/**
 * Opens what the configuration names; in development the keys of the key file.
 *
 * @throws {ConfigError} that says where the keys are from and which of them is malformed or weak, or
 *   that shares can't be read there.
 */
export async function openKeys(config: Config, log: Log): Promise<MasterKeys> {
  const { keyShares } = config;
  const shares = keyShares === undefined ? undefined : openShares(keyShares);
  await shares?.list().catch(unusable(SHARES, keyShares ?? ''));
  const keys = await masterKeysOf(config, log);
  try {
    return openMasterKeys(keys, shares);
  } catch (error) {
    if (!(error instanceof SealError)) throw error;
    const isSet = config.masterKeys !== undefined;
    const source = isSet ? 'RUNGATE_MASTER_KEYS' : developmentKeyPath(config.database.url);
    throw new ConfigError([`${source}: ${error.message}`]);
  }
}

/**
 * Without a master key that it needs, a process would serve some orgs and fail others.
 *
 * @throws {ConfigError}
 */
export async function refuseMissingKeys(db: Database, master: MasterKeys): Promise<void> {
  const missing = await missingMasterKeys(db, master);
  if (missing.length === 0) return;
  throw new ConfigError(
    missing.map((id) => `RUNGATE_MASTER_KEYS lacks the key "${id}", by which keys are wrapped.`),
  );
}

/**
 * As {@link refuseMissingKeys} of shares: without them, the folder is another one or gone, and new
 * shares may not be kept there. Call it once deleted orgs are gone, which have none.
 *
 * @throws {ConfigError}
 */
export async function refuseMissingShares(
  db: Database,
  master: MasterKeys,
  { keyShares }: Config,
): Promise<void> {
  const [first, ...others] = await missingShares(db, master);
  if (first === undefined) return;
  const given = keyShares === undefined ? 'not set' : JSON.stringify(keyShares);
  const orgs = others.length > 0 ? `${first} and ${others.length} more` : first;
  throw new ConfigError([
    `${SHARES} is ${given}; wanted: the folder that has the shares of ${orgs}, whose sealed data opens with them alone.`,
  ]);
}
