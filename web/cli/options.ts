/** Options that several commands share, and the checks of their values. */

import { type Command, InvalidArgumentError } from 'commander';
import { type Nanos, parseDollars } from '../../schema/money.ts';

const MAX_NAME_CHARS = 300;

/** Adds a command that can be asked for JSON. `usage` is its name with its arguments. */
export function addCommand(parent: Command, usage: string, description: string): Command {
  return parent
    .command(usage)
    .description(description)
    .option('--json', 'print the result as one line of JSON');
}

/** Adds a command whose only work is to hold others. */
export function addGroup(parent: Command, name: string, description: string): Command {
  return parent.command(name).description(description);
}

/** Adds a command of the admin API, where an admin token can stand for the org. */
export function addApiCommand(parent: Command, usage: string, description: string): Command {
  return addCommand(parent, usage, description).option(
    '--org <slug>',
    'the org, by its slug; needed unless RUNGATE_TOKEN has an admin token',
    parseName,
  );
}

/**
 * A name or an id as the command line gives it.
 *
 * @throws {InvalidArgumentError} when it is empty, too long or not text.
 */
export function parseName(text: string): string {
  if (text.trim() !== '' && text.length <= MAX_NAME_CHARS && text.isWellFormed()) return text;
  throw new InvalidArgumentError(`It must be text of 1 to ${MAX_NAME_CHARS} characters.`);
}

/** Makes a check for whole numbers in a range, both ends included. */
export function integerBetween(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
    if (value >= least && value <= most) return value;
    throw new InvalidArgumentError(`It must be a whole number from ${least} to ${most}.`);
  };
}

/**
 * An amount of dollars such as `5.00`.
 *
 * @throws {InvalidArgumentError} for anything else.
 */
export function parseAmount(text: string): Nanos {
  try {
    return parseDollars(text);
  } catch {
    throw new InvalidArgumentError('It must be an amount in dollars, such as 5.00.');
  }
}

const LIFE = /^([1-9]\d{0,3})([dh])$/;
const MAX_LIFE_HOURS = 366 * 24;

/**
 * A time such as `12h` or `30d`, at most 366 days, in milliseconds.
 *
 * @throws {InvalidArgumentError} for anything else.
 */
export function parseLife(text: string): number {
  const [, count, unit] = LIFE.exec(text) ?? [];
  const hours = Number(count) * (unit === 'd' ? 24 : 1);
  if (hours <= MAX_LIFE_HOURS) return hours * 3_600_000;
  throw new InvalidArgumentError('It must be hours or days such as 12h or 30d, at most 366d.');
}
