/** `rungate keys`: new master keys, and the rotation of what they wrap. */

import type { Command } from 'commander';
import { newMasterKey, SealError } from '../../db/seal.ts';
import { rotateOrgKeys } from '../../db/system.ts';
import { EXIT_USAGE, Failure } from './failure.ts';
import { addCommand, addGroup } from './options.ts';
import { type OutputOptions, printJson, printResult } from './output.ts';
import { showProgress } from './progress.ts';
import { readAllKeys, withCurrentDatabase } from './session.ts';

/** Adds `keys rotate` and `keys generate`. */
export function addKeyCommands(program: Command): void {
  const keys = addGroup(program, 'keys', 'master keys');
  addCommand(keys, 'rotate', 'wrap the key of every org under the first master key').action(rotate);
  addCommand(keys, 'generate', 'print a new master key as id:base64')
    .argument('<id>', 'the id of the key: 1 to 32 of A-Z a-z 0-9 _ -')
    .action(generate);
}

async function rotate(options: OutputOptions): Promise<void> {
  const { total, rewrapped } = await withCurrentDatabase(async (session) => {
    const master = await readAllKeys(session);
    const progress = showProgress('orgs');
    try {
      return await rotateOrgKeys(session.db, master, ({ done, total }) =>
        progress.show(done, total),
      );
    } finally {
      progress.stop();
    }
  });
  printJson({ total, rewrapped }, options);
}

function generate(id: string, options: OutputOptions): void {
  const masterKey = makeKey(id);
  printResult({ id, masterKey }, [masterKey], options);
}

function makeKey(id: string): string {
  try {
    return newMasterKey(id);
  } catch (error) {
    if (!(error instanceof SealError)) throw error;
    throw new Failure(EXIT_USAGE, "A master key's id is 1 to 32 of A-Z a-z 0-9 _ -.");
  }
}
