/** `rungate export`: everything that an org owns, in an archive. */

import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import type { Command } from 'commander';
import { noteExport } from '../../db/export.ts';
import { countRows, type Exporting, writeArchive } from '../../functions/export.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { addOrgCommand, parseName } from './options.ts';
import { type OutputOptions, printResult } from './output.ts';
import { showProgress } from './progress.ts';
import { OPERATOR, readMasterKeys, withOrg } from './session.ts';

interface ExportOptions extends OutputOptions {
  readonly org: string;
  readonly out: string;
  readonly bodies?: boolean;
}

/** Adds `export`. */
export function addExportCommand(program: Command): void {
  addOrgCommand(program, 'export', 'write everything that an org owns into a tar archive')
    .requiredOption('--out <path>', 'the archive', parseName)
    .option('--bodies', 'with the kept bodies of calls and answers, opened')
    .action(exportOrg);
}

async function exportOrg(options: ExportOptions): Promise<void> {
  const { out } = options;
  const written = await withOrg(options.org, async (org, { config, db }) => {
    const services = { db, master: await readMasterKeys(config), now: Date.now };
    const hasBodies = options.bodies ?? false;
    await noteExport(org, OPERATOR, hasBodies);
    return await writeWhole({ services, org, hasBodies }, out);
  });
  const { rows, bytes } = written;
  printResult({ path: out, rows, bytes }, [`${rows} rows, ${bytes} bytes: ${out}`], options);
}

/** Under another name until it is whole, so that nobody takes a part for all of it. */
async function writeWhole(exporting: Exporting, path: string) {
  const draft = `${path}.part`;
  const total = await countRows(exporting);
  const progress = showProgress('rows');
  try {
    let rows = 0;
    const onRows = (count: number) => {
      rows += count;
      progress.show(Math.min(rows, total), total);
    };
    const bytes = await writeParts(writeArchive({ ...exporting, onRows }), draft);
    await rename(draft, path);
    return { rows, bytes };
  } catch (error) {
    await rm(draft, { force: true });
    const { code } = error as NodeJS.ErrnoException;
    if (code === undefined || !/^E[A-Z]+$/.test(code)) throw error;
    throw new Failure(EXIT_FAILED, `${path} can't be written (${code}).`);
  } finally {
    progress.stop();
  }
}

async function writeParts(parts: AsyncIterable<Uint8Array>, path: string): Promise<number> {
  const file = createWriteStream(path, { mode: 0o600, flush: true });
  await once(file, 'open');
  let bytes = 0;
  for await (const part of parts) {
    bytes += part.length;
    if (!file.write(part)) await once(file, 'drain');
  }
  file.end();
  await once(file, 'close');
  return bytes;
}
