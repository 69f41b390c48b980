/** `rungate export`: everything that an org owns, in an archive. */

import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import { env } from 'node:process';
import type { Command } from 'commander';
import { noteExport } from '../../db/export.ts';
import { countRows, type Exporting, writeArchive } from '../../functions/export.ts';
import { TAR_END } from '../../schema/tar.ts';
import { type ApiOptions, withApi } from './api.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { addApiCommand, parseName } from './options.ts';
import { printResult } from './output.ts';
import { showProgress } from './progress.ts';
import { type Remote, readRemote } from './remote.ts';
import { OPERATOR, readMasterKeys, withOrg } from './session.ts';

interface ExportOptions extends ApiOptions {
  readonly out: string;
  readonly bodies?: boolean;
}

/** Adds `export`. */
export function addExportCommand(program: Command): void {
  addApiCommand(program, 'export', 'write everything that an org owns into a tar archive')
    .requiredOption('--out <path>', 'the archive', parseName)
    .option('--bodies', 'with kept bodies, arguments of gates and parked answers, opened')
    .action(exportOrg);
}

async function exportOrg(options: ExportOptions): Promise<void> {
  const { org, out } = options;
  const remote = readRemote(env);
  // Without a token and an org, the API says what it needs.
  const written =
    remote === undefined && org !== undefined
      ? await exportHere(org, options)
      : await withApi(options, () => writeWhole(out, (draft) => fetchTo(draft, remote!, options)));
  const { rows, bytes } = written;
  const told = rows === undefined ? '' : `${rows} rows, `;
  printResult({ path: out, rows, bytes }, [`${told}${bytes} bytes: ${out}`], options);
}

/** What was written; how many rows are in an archive of a server, its manifest says. */
interface Written {
  readonly rows?: number;
  readonly bytes: number;
}

async function exportHere(slug: string, { out, bodies = false }: ExportOptions): Promise<Written> {
  return await withOrg(slug, async (org, { config, db }) => {
    const services = { db, master: await readMasterKeys(config), now: Date.now };
    await noteExport(org, OPERATOR, bodies);
    return await writeWhole(out, (draft) => writeTo(draft, { services, org, hasBodies: bodies }));
  });
}

async function writeTo(path: string, exporting: Exporting): Promise<Written> {
  const total = await countRows(exporting);
  const progress = showProgress('rows');
  try {
    let rows = 0;
    const onRows = (count: number) => {
      rows += count;
      progress.show(Math.min(rows, total), total);
    };
    const bytes = await writeParts(writeArchive({ ...exporting, onRows }), path);
    return { rows, bytes };
  } finally {
    progress.stop();
  }
}

async function fetchTo(
  path: string,
  { url, token }: Remote,
  { bodies = false }: ExportOptions,
): Promise<Written> {
  const response = await fetch(`${url}/api/export${bodies ? '?bodies=open' : ''}`, {
    headers: { authorization: `Bearer ${token}` },
    // To whom a redirect leads, the token is not sent.
    redirect: 'manual',
  }).catch(() => unreachable(url));
  if (response.status !== 200) throw new Failure(EXIT_FAILED, await refusalOf(url, response));
  return { bytes: await writeParts(partsOf(url, response), path) };
}

async function refusalOf(url: string, response: Response): Promise<string> {
  const answer = (await response.json().catch(() => null)) as Refusing | null;
  const message = answer?.error?.message;
  if (typeof message === 'string') return message;
  return `${url} does not answer as Rungate does (HTTP ${response.status}).`;
}

interface Refusing {
  readonly error?: { readonly message?: unknown };
}

/** @throws {Failure} when the archive ends before its end: a part must not be taken for it. */
async function* partsOf(url: string, { body }: Response): AsyncGenerator<Uint8Array> {
  let end: Uint8Array = new Uint8Array();
  try {
    for await (const part of body ?? []) {
      yield part;
      end = Buffer.concat([end, part]).subarray(-TAR_END.length);
    }
  } catch {
    unreachable(url);
  }
  if (!Buffer.from(TAR_END).equals(end)) unreachable(url);
}

function unreachable(url: string): never {
  throw new Failure(EXIT_FAILED, `The archive could not be fetched whole from ${url}.`);
}

/** Under another name until it is whole, so that nobody takes a part for all of it. */
async function writeWhole(
  path: string,
  write: (draft: string) => Promise<Written>,
): Promise<Written> {
  const draft = `${path}.part`;
  try {
    const written = await write(draft);
    await rename(draft, path);
    return written;
  } catch (error) {
    await rm(draft, { force: true });
    const { code } = error as NodeJS.ErrnoException;
    if (code === undefined || !/^E[A-Z]+$/.test(code)) throw error;
    throw new Failure(EXIT_FAILED, `${path} can't be written (${code}).`);
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
