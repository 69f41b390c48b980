/** Ranges of time that sums are asked over. */

import { windowsOf } from '../rules/budget.ts';
import { UserError } from './errors.ts';

const DAY_MS = 86_400_000;
/** The longest range that is summed. */
const MAX_DAYS = 366;

/**
 * The UTC days that a range touches.
 *
 * @param from Unix milliseconds, included; `to` is not.
 * @returns The first and the last of them, as `YYYY-MM-DD`.
 * @throws {UserError} `INVALID` for a range that is empty or longer than 366 days.
 */
export function daysOf(
  from: number,
  to: number,
): { readonly first: string; readonly last: string } {
  if (!(from < to && to - from <= MAX_DAYS * DAY_MS)) {
    const message = `The range must end after it begins, at most ${MAX_DAYS} days later.`;
    throw new UserError('INVALID', ['to'], message);
  }
  return { first: windowsOf(from).day, last: windowsOf(to - 1).day };
}
