/** Money: whole nano-dollars in a safe integer, never a float. $1 is 1,000,000,000 nanos. */

declare const money: unique symbol;

/** An amount of nano-dollars: an integer from 0 to {@link MAX_NANOS}. */
export type Nanos = number & { readonly [money]: 'nanos' };

const NANOS_PER_DOLLAR = 1_000_000_000;

/** The largest amount: nine million dollars, which leaves sums of two inside the safe integers. */
export const MAX_NANOS = (9_000_000 * NANOS_PER_DOLLAR) / 2;

export const ZERO = 0 as Nanos;

/**
 * Checks that a number is an amount of money.
 *
 * @throws {RangeError} for NaN, infinities, fractions, negatives and amounts over {@link MAX_NANOS}.
 */
export function nanos(value: number): Nanos {
  if (!Number.isSafeInteger(value) || value < 0 || value > MAX_NANOS || Object.is(value, -0)) {
    throw new RangeError(`not an amount of nano-dollars from 0 to ${MAX_NANOS}: ${value}`);
  }
  return value as Nanos;
}

/** An amount up to {@link MAX_NANOS} as people write it, also where JSON Schema is read. */
export const DOLLARS =
  /^(?:(?:0|[1-9][0-9]{0,5}|[1-3][0-9]{6}|4[0-4][0-9]{5})(?:\.[0-9]{1,9})?|4500000(?:\.0{1,9})?)$/;

/**
 * Reads a decimal string of dollars such as `"1.00"` or `"0.000000001"`, exactly.
 *
 * @throws {RangeError} for anything else, exponents, signs and more than nine decimals included.
 */
export function parseDollars(text: string): Nanos {
  if (!DOLLARS.test(text))
    throw new RangeError(`not an amount in dollars such as "1.00": ${text.slice(0, 40)}`);
  const [whole, fraction = ''] = text.split('.');
  return nanos(Number(whole) * NANOS_PER_DOLLAR + Number(fraction.padEnd(9, '0')));
}

/** Writes an amount as dollars with at least two decimals and no digit lost: `"0.0000125"`. */
export function formatDollars(amount: number): string {
  const sign = amount < 0 ? '-' : '';
  const digits = String(Math.abs(amount)).padStart(10, '0');
  const fraction = digits.slice(-9).replace(/0{1,7}$/, '');
  return `${sign}${digits.slice(0, -9)}.${fraction}`;
}
