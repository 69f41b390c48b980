/** Output: results go to stdout and nothing else does; what people should know goes to stderr. */

import { stderr, stdout } from 'node:process';
import { pipeline } from 'node:stream/promises';
import { visible } from '../../schema/visible.ts';

/** What every command understands. */
export interface OutputOptions {
  /** Whether a program reads along: then stdout is one line of JSON. */
  readonly json?: boolean;
}

/** Prints a result as JSON: one line for programs, indented for people. */
export function printJson(result: object, { json }: OutputOptions): void {
  stdout.write(`${JSON.stringify(result, null, json ? undefined : 2)}\n`);
}

/** Prints a result: as JSON for programs, as lines for people, in which strangers' text is only text. */
export function printResult(
  result: object,
  lines: readonly string[],
  options: OutputOptions,
): void {
  if (options.json) printJson(result, options);
  else stdout.write(lines.map((line) => `${visible(line)}\n`).join(''));
}

/** Prints a result as it comes, no faster than it is read, and stops once nobody reads any more. */
export async function printParts(parts: AsyncIterable<string | Uint8Array>): Promise<void> {
  try {
    await pipeline(parts, stdout, { end: false });
  } catch (error) {
    // What becomes of the output itself is told in one place, for every command.
    if ((error as NodeJS.ErrnoException).syscall !== 'write') throw error;
  }
}

/** Tells people something without touching the result. */
export function printNote(text: string): void {
  stderr.write(`rungate: ${text}\n`);
}
