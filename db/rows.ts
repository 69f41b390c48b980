/** Many rows in one statement: of few sizes, so that few statements are prepared. */

const SIZES = [32, 16, 8, 4, 2, 1];

/** Cuts rows into batches for which there are statements. */
export function* inBatches<T>(rows: readonly T[]): Generator<readonly T[]> {
  for (let at = 0; at < rows.length; ) {
    const size = SIZES.find((one) => one <= rows.length - at)!;
    yield rows.slice(at, at + size);
    at += size;
  }
}

/** A statement for each size of a batch, written once. */
export function forSizes(write: (size: number) => string): (size: number) => string {
  const written = new Map<number, string>();
  return (size) => {
    const sql = written.get(size) ?? write(size);
    written.set(size, sql);
    return sql;
  };
}

/**
 * The rows of a `values` clause: `(?4, ?5), (?6, ?7)`.
 *
 * @param first The number of the first parameter.
 */
export function rowsOfParameters(size: number, columns: number, first: number): string {
  const row = (at: number) =>
    Array.from({ length: columns }, (_, column) => `?${first + at * columns + column}`);
  return Array.from({ length: size }, (_, at) => `(${row(at).join(', ')})`).join(', ');
}
