/** Tables: columns of text, aligned for a terminal. */

import { visible } from '../../schema/visible.ts';

/** A column: its heading, and on which side its cells end. */
export interface Column {
  readonly heading: string;
  readonly align: 'left' | 'right';
}

const GAP = '  ';
const MAX_CELL_CHARS = 60;

/**
 * Aligns rows under their headings.
 *
 * @param rows A cell per column; longer ones than 60 characters are cut.
 * @returns The heading's line and one for each row, without line feeds.
 */
export function alignTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): string[] {
  const lines = [columns.map((column) => column.heading), ...rows.map((row) => row.map(cut))];
  const widths = columns.map((_, at) =>
    lines.reduce((width, line) => Math.max(width, line[at]?.length ?? 0), 0),
  );
  return lines.map((line) =>
    columns
      .map(({ align }, at) => pad(line[at] ?? '', widths[at] ?? 0, align))
      .join(GAP)
      .trimEnd(),
  );
}

function cut(cell: string): string {
  const shown = visible(cell);
  if (shown.length <= MAX_CELL_CHARS) return shown;
  return `${shown.slice(0, MAX_CELL_CHARS - 1).toWellFormed()}…`;
}

function pad(cell: string, width: number, align: Column['align']): string {
  return align === 'left' ? cell.padEnd(width) : cell.padStart(width);
}
