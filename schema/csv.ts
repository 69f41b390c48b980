/** CSV (RFC 4180) that no spreadsheet takes for formulas. */

/** What a spreadsheet would calculate, or what could hide it in front. */
const FORMULA = /^([\t\r\n]|\s*[=+\-@|%＝＋－＠])/;

/**
 * One line of CSV without its line feed: every cell quoted, and a cell that a spreadsheet would
 * take for a formula behind an apostrophe. Numbers stay as they are.
 */
export function formatCsvRow(cells: readonly (string | number | null)[]): string {
  return cells.map(formatCell).join(',');
}

function formatCell(cell: string | number | null): string {
  if (cell === null) return '""';
  if (typeof cell === 'number') return `"${cell}"`;
  const safe = FORMULA.test(cell) ? `'${cell}` : cell;
  return `"${safe.replaceAll('"', '""')}"`;
}
