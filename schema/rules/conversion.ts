/** What CEL converts. The library takes more, and looks through long texts for longer than may be. */

import { isExact } from '../numbers.ts';
import { spend } from './steps.ts';

/** No text of a number or a moment that CEL knows is longer. */
const MAX_CONVERTED_CHARS = 64;

/** Of a duration, which is the dearest. */
const STEPS_PER_CHAR = 5;

/** What each conversion takes by CEL. The library takes `int("")` too, and the 30th of February. */
const CONVERTIBLE: Readonly<Record<string, (value: string | number) => boolean>> = {
  int: (value) =>
    typeof value === 'number' ? Math.abs(value) < 2 ** 63 : /^[+-]?[0-9]+$/.test(value),
  uint: (value) => typeof value === 'number' || /^[0-9]+$/.test(value),
  double: (value) => typeof value === 'number' || isNumber(value),
  timestamp: (value) => typeof value === 'string' && isTimestamp(value),
  duration: (value) => typeof value === 'string' && isDuration(value),
};

/** Whether a text is a finite number that a double holds as it is written. */
function isNumber(text: string): boolean {
  const isDecimal = /^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?$/i.test(text);
  return isDecimal && Number.isFinite(Number(text)) && isExact(text);
}

/** By RFC 3339, and no finer than the milliseconds that are kept. */
const TIMESTAMP =
  /^(\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)(?:\.\d{1,3}0*)?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)$/;

function isTimestamp(text: string): boolean {
  const local = TIMESTAMP.exec(text)?.[1];
  if (local === undefined) return false;
  const moment = new Date(`${local}Z`);
  return !Number.isNaN(moment.getTime()) && moment.toISOString().startsWith(local);
}

const DURATION = /^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|ms|s|m|h))+$/;
const DURATION_PART = /([\d.]+)(ns|us|µs|ms|s|m|h)/g;
const UNIT_S: Readonly<Record<string, number>> = {
  ...{ h: 3_600, m: 60, s: 1, ms: 1e-3, us: 1e-6, µs: 1e-6, ns: 1e-9 },
};
/** About ten thousand years. */
const MAX_DURATION_S = 315_576_000_000;

function isDuration(text: string): boolean {
  if (!DURATION.test(text)) return false;
  const parts = [...text.matchAll(DURATION_PART)];
  const seconds = parts.reduce(
    (sum, [, count, unit = '']) => sum + Number(count) * UNIT_S[unit]!,
    0,
  );
  return seconds <= MAX_DURATION_S;
}

const NOT_CONVERTIBLE = new Error('no conversion takes such a value');

/** Whether a function converts, and not every value. */
export function isConversion(name: string): boolean {
  return Object.hasOwn(CONVERTIBLE, name);
}

/** The value itself where it may be converted; what is neither text nor double, the library knows. */
export function convertible(name: string, value: unknown): unknown {
  if (typeof value !== 'string' && typeof value !== 'number') return value;
  const { length } = String(value);
  if (length > MAX_CONVERTED_CHARS) throw NOT_CONVERTIBLE;
  spend(length * STEPS_PER_CHAR);
  if (!CONVERTIBLE[name]!(value)) throw NOT_CONVERTIBLE;
  return value;
}
