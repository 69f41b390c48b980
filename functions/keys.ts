/** The master keys of this process, with the shares of org keys where there are any. */

import { type MasterKeys, openMasterKeys, SealError } from '../db/seal.ts';
import { openShares } from '../db/shares.ts';
import { type Config, ConfigError, developmentKeyPath, masterKeysOf } from './config.ts';
import type { Log } from './log.ts';

/**
 * Opens what the configuration names; in development the keys of the key file.
 *
 * @throws {ConfigError} that says where the keys are from and which of them is malformed or weak.
 */
export async function openKeys(config: Config, log: Log): Promise<MasterKeys> {
  const shares = config.keyShares === undefined ? undefined : openShares(config.keyShares);
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
