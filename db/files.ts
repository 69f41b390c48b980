/** Files that are there whole or not at all. */

import { randomBytes } from 'node:crypto';
import { link, open, rm, writeFile } from 'node:fs/promises';

/**
 * Makes a file that only its owner reads, and that survives loss of power; one that is there already
 * stays as it is, so that of several processes that make it at once all find the same.
 *
 * @param fill Fills the draft that becomes the file: it is there, and empty.
 * @returns whether this made it.
 * @throws as the file system does, or `fill`.
 */
export async function createWhole(
  path: string,
  fill: (draft: string) => Promise<void> | void,
): Promise<boolean> {
  const draft = `${path}.${randomBytes(8).toString('hex')}`;
  try {
    await writeFile(draft, '', { flag: 'wx', mode: 0o600 });
    await fill(draft);
    await flush(draft);
    // A rename would replace what is there.
    await link(draft, path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  } finally {
    await rm(draft, { force: true });
  }
}

async function flush(path: string): Promise<void> {
  const file = await open(path, 'r+');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}
