/** Failures: what went wrong in one line, and the exit code that says whose fault it was. */

import { CommanderError } from 'commander';
import { DatabaseError } from '../../db/client.ts';
import { SealError } from '../../db/seal.ts';
import { ConfigError } from '../../functions/config.ts';
import { visible } from '../../schema/visible.ts';

/** The command did what was asked. */
const EXIT_OK = 0;
/** The command failed, or what it checked is not well. */
export const EXIT_FAILED = 1;
/** The command line, its input file or the configuration is wrong; nothing was done. */
export const EXIT_USAGE = 2;

const MAX_LINE_CHARS = 1_000;

/** A failure that is told to the operator as it stands: one sentence, without a secret. */
export class Failure extends Error {
  override readonly name = 'Failure';
  readonly exitCode: number;

  constructor(exitCode: number, message: string) {
    super(message);
    this.exitCode = exitCode;
  }
}

/** What is told of an error, and the code that the process ends with. */
export interface Explanation {
  /** One line; `undefined` when all has been said, as after `--help`. */
  readonly line: string | undefined;
  readonly exitCode: number;
}

/** Puts any error into one line without control characters, and never a stack. */
export function explain(error: unknown): Explanation {
  if (error instanceof CommanderError) return explainUsage(error);
  if (error instanceof ConfigError) {
    return { line: oneLine(error.problems.join(' ')), exitCode: EXIT_USAGE };
  }
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof Failure) return { line: oneLine(message), exitCode: error.exitCode };
  if (error instanceof SealError) return { line: oneLine(message), exitCode: sealExit(error) };
  if (error instanceof DatabaseError && error.isUnfit) {
    return { line: 'A text holds a NUL character; leave it out.', exitCode: EXIT_USAGE };
  }
  if (error instanceof DatabaseError) {
    return { line: oneLine(`The database refused: ${message}`), exitCode: EXIT_FAILED };
  }
  return { line: oneLine(`Unexpected: ${message}`), exitCode: EXIT_FAILED };
}

function explainUsage(error: CommanderError): Explanation {
  const isHelp = error.code.startsWith('commander.help') || error.code === 'commander.version';
  if (isHelp) return { line: undefined, exitCode: error.exitCode === 0 ? EXIT_OK : EXIT_USAGE };
  return { line: oneLine(error.message.replace(/^error: /, '')), exitCode: EXIT_USAGE };
}

function sealExit(error: SealError): number {
  const isConfigured = error.code === 'invalid_master_keys' || error.code === 'unknown_key';
  return isConfigured ? EXIT_USAGE : EXIT_FAILED;
}

function oneLine(text: string): string {
  const line = visible(text.trim().replace(/\s+/g, ' '));
  return line.length > MAX_LINE_CHARS ? `${line.slice(0, MAX_LINE_CHARS)}…` : line;
}
