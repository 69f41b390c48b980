/** The master keys of this process, with the shares of org keys where there are any. */

import { type MasterKeys, openMasterKeys } from '../db/seal.ts';
import { openShares } from '../db/shares.ts';
import { type Config, masterKeysOf } from './config.ts';
import type { Log } from './log.ts';

/**
 * Opens what the configuration names; in development the keys of the key file.
 *
 * @throws {SealError} `invalid_master_keys`
 */
export async function openKeys(config: Config, log: Log): Promise<MasterKeys> {
  const shares = config.keyShares === undefined ? undefined : openShares(config.keyShares);
  return openMasterKeys(await masterKeysOf(config, log), shares);
}
