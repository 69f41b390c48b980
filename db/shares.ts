/** Shares of org keys: a file per org in a folder that backups of the database leave out. */

import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isId, type OrgId } from '../schema/ids.ts';
import { createWhole } from './files.ts';
import { type KeyShares, SealError } from './seal.ts';

const SHARE_BYTES = 32;

/**
 * Shares in a folder, each in a file of mode 600 that is named as its org and holds 32 random
 * bytes in base64. They are read anew each time, so that a share that is destroyed is gone.
 *
 * @param folder Made with mode 700 when it is missing.
 */
export function openShares(folder: string): KeyShares {
  const pathOf = (org: OrgId): string => {
    if (!isId('org', org)) throw new SealError('invalid_input', 'This is not the id of an org.');
    return join(folder, org);
  };
  const read = (org: OrgId) => readShare(pathOf(org));
  return {
    read,
    list: async () => new Set((await readdir(folder).catch(none)) ?? []),
    async keep(org, share) {
      await mkdir(folder, { recursive: true, mode: 0o700 });
      // Two processes that keep a share at once end with the same one.
      await createWhole(pathOf(org), (draft) => writeFile(draft, `${share.toBase64()}\n`));
      const kept = await read(org);
      if (!kept)
        throw new SealError('unknown_key', 'The share could not be read once it was kept.');
      return kept;
    },
    destroy: (org) => rm(pathOf(org), { force: true }),
  };
}

async function readShare(path: string): Promise<Uint8Array<ArrayBuffer> | undefined> {
  const text = await readFile(path, 'utf8').catch(none);
  if (text === undefined) return undefined;
  try {
    const share = Uint8Array.fromBase64(text.trim());
    if (share.length === SHARE_BYTES) return share;
  } catch {}
  throw new SealError('corrupt', 'The file of a share does not hold one.');
}

/** What is not there is no error. */
function none(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT') throw error;
}
