/** `rungate backup`: a copy of the database file, taken while it is served. */

import { stat } from 'node:fs/promises';
import { env } from 'node:process';
import type { Command } from 'commander';
import { backUpFile } from '../../db/client.ts';
import { readConfig } from '../../functions/config.ts';
import { EXIT_FAILED, EXIT_USAGE, Failure } from './failure.ts';
import { addCommand, parseName } from './options.ts';
import { type OutputOptions, printResult } from './output.ts';
import { withFilledDatabase } from './session.ts';

/** Adds `backup`. */
export function addBackupCommand(program: Command): void {
  addCommand(program, 'backup', 'copy the database file, also while it is served')
    .argument('<file>', 'the copy, which must not be there yet', parseName)
    .action(backUp);
}

async function backUp(path: string, options: OutputOptions): Promise<void> {
  const { url } = readConfig(env).database;
  if (!url.startsWith('file:')) {
    throw new Failure(EXIT_USAGE, 'Only a file can be copied: back a server up by its own means.');
  }
  const isMade = await withFilledDatabase(() => backUpFile(url, path)).catch((error) =>
    explainFile(path, error),
  );
  if (!isMade) throw new Failure(EXIT_USAGE, `${path} is there already: name a file that is not.`);
  const { size } = await stat(path);
  printResult({ path, bytes: size }, [`${size} bytes: ${path}`], options);
}

function explainFile(path: string, error: unknown): never {
  const { code } = error as NodeJS.ErrnoException;
  if (code === undefined || !/^E[A-Z]+$/.test(code)) throw error;
  throw new Failure(EXIT_FAILED, `${path} can't be written (${code}).`);
}
