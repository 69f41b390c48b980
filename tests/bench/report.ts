/** From the rounds of a benchmark to its rows, as a table or as JSON. */

import type { Outcome } from './load.ts';

/** A number over several rounds. */
export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/** One target under one load, compared with the yardstick of the same rounds. */
export interface Row {
  readonly payload: string;
  readonly connections: number;
  readonly target: string;
  readonly requestsPerSecond: Spread;
  /** Requests per second in relation to the yardstick. */
  readonly ratio: Spread;
  /** What the target adds to the yardstick's latency; below zero where it is faster. */
  readonly addedP50Micros: Spread;
  readonly addedP99Micros: Spread;
  /** Latency in relation to the yardstick's. */
  readonly p50Ratio: Spread;
  readonly p99Ratio: Spread;
  readonly errors: number;
}

/** The median of some numbers with the smallest and the largest; NaN for none. */
export function spread(numbers: readonly number[]): Spread {
  const sorted = numbers.toSorted((a, b) => a - b);
  const at = (index: number) => sorted[index] ?? Number.NaN;
  const [low, high] = [Math.floor((sorted.length - 1) / 2), Math.ceil((sorted.length - 1) / 2)];
  return { median: (at(low) + at(high)) / 2, min: at(0), max: at(sorted.length - 1) };
}

/**
 * Compares the outcomes of a target with those of the yardstick, round by round.
 *
 * @param outcomes One per round; `yardstick` has as many, from the same rounds.
 */
export function compare(
  what: Pick<Row, 'payload' | 'connections' | 'target'>,
  outcomes: readonly Outcome[],
  yardstick: readonly Outcome[],
): Row {
  const rate = ({ requests, seconds }: Outcome) => requests / seconds;
  const pairs = outcomes.flatMap((own, round) => {
    const bare = yardstick[round];
    return bare ? [{ own, bare }] : [];
  });
  return {
    ...what,
    requestsPerSecond: spread(outcomes.map(rate)),
    ratio: spread(pairs.map(({ own, bare }) => rate(own) / rate(bare))),
    addedP50Micros: spread(pairs.map(({ own, bare }) => own.p50Micros - bare.p50Micros)),
    addedP99Micros: spread(pairs.map(({ own, bare }) => own.p99Micros - bare.p99Micros)),
    p50Ratio: spread(pairs.map(({ own, bare }) => own.p50Micros / bare.p50Micros)),
    p99Ratio: spread(pairs.map(({ own, bare }) => own.p99Micros / bare.p99Micros)),
    errors: outcomes.reduce((sum, { errors }) => sum + errors, 0),
  };
}

const HEADINGS = [
  ...['payload', 'conn', 'target', 'req/s', 'ratio'],
  ...['+p50 µs', 'p50 ratio', '+p99 µs', 'p99 ratio', 'errors'],
];

/** Rows as an aligned table: each number is a median, with the smallest and largest of a round. */
export function table(rows: readonly Row[]): string {
  const lines = [HEADINGS, ...rows.map(cells)];
  const widths = HEADINGS.map((_, column) =>
    Math.max(...lines.map((line) => line[column]?.length ?? 0)),
  );
  return lines
    .map((line) =>
      line
        .map((cell, column) => pad(cell, widths[column] ?? 0, column))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

function pad(cell: string, width: number, column: number): string {
  return column === 0 || column === 2 ? cell.padEnd(width) : cell.padStart(width);
}

function cells(row: Row): string[] {
  return [
    row.payload,
    String(row.connections),
    row.target,
    show(row.requestsPerSecond, 0),
    show(row.ratio, 2),
    show(row.addedP50Micros, 0),
    row.p50Ratio.median.toFixed(2),
    show(row.addedP99Micros, 0),
    row.p99Ratio.median.toFixed(2),
    String(row.errors),
  ];
}

function show({ median, min, max }: Spread, digits: number): string {
  const [middle, least, most] = [median, min, max].map((number) => number.toFixed(digits));
  return `${middle} (${least}…${most})`;
}
