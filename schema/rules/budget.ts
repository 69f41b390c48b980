/** The hard ceiling: which scopes bound a call, what still fits, and which of them says no. */

import { MAX_NANOS, type Nanos, nanos } from '../money.ts';

/** A sum of money with a ceiling. */
export interface Scope {
  readonly name: 'run' | 'agent_per_day' | 'agent_per_month' | 'org_per_month';
  readonly ceilingNanos: Nanos;
  readonly spentNanos: number;
  readonly heldNanos: number;
}

/** What is left in a scope; never negative. */
export function roomOf(scope: Scope): Nanos {
  const left = scope.ceilingNanos - scope.spentNanos - scope.heldNanos;
  return nanos(Math.min(Math.max(left, 0), MAX_NANOS));
}

/** The scope with the least room, or `undefined` where no ceiling applies. */
export function tightest(scopes: readonly Scope[]): Scope | undefined {
  return scopes.reduce<Scope | undefined>(
    (least, scope) => (least && roomOf(least) <= roomOf(scope) ? least : scope),
    undefined,
  );
}

/** The windows of a moment in UTC: its day `YYYY-MM-DD` and its month `YYYY-MM`. */
export interface Windows {
  readonly day: string;
  readonly month: string;
  /** When the day and the month end, Unix milliseconds. */
  readonly dayEnds: number;
  readonly monthEnds: number;
}

/** The windows that an amount spent at a moment (Unix milliseconds) counts in. */
export function windowsOf(millis: number): Windows {
  const isSame = millis >= last.dayEnds - DAY_MS && millis < last.dayEnds;
  if (!isSame) last = findWindows(millis);
  return last;
}

const DAY_MS = 86_400_000;
/** Those that were asked for last: calls come in the order of time. */
let last = findWindows(0);

function findWindows(millis: number): Windows {
  const moment = new Date(millis);
  const [year, month, date] = [moment.getUTCFullYear(), moment.getUTCMonth(), moment.getUTCDate()];
  const day = moment.toISOString().slice(0, 10);
  return {
    day,
    month: day.slice(0, 7),
    dayEnds: Date.UTC(year, month, date + 1),
    monthEnds: Date.UTC(year, month + 1, 1),
  };
}
