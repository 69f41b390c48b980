/** `rungate audit`: exports, checkpoints and the verifier, which needs no server and no database. */

import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { type Command, InvalidArgumentError } from 'commander';
import { z } from 'zod';
import { signHead, verifyChain, verifyOrg } from '../../db/checkpoints.ts';
import {
  InvalidCheckpoint,
  openSigner,
  PUBLIC_KEY,
  type PublicKey,
  readCheckpoint,
  readPublicKeys,
  type Signer,
} from '../../db/signing.ts';
import { AUDIT_FORMATS, type AuditFormat, auditLines } from '../../functions/audit.ts';
import {
  AUDIT_ENTRY,
  type AuditEntry,
  type ChainReport,
  type Checkpoint,
} from '../../schema/audit.ts';
import { EXIT_FAILED, EXIT_USAGE, Failure } from './failure.ts';
import { addCommand, addGroup, addOrgCommand, parseName } from './options.ts';
import { type OutputOptions, printJson, printNote, printResult } from './output.ts';
import { readMasterKeys, type Session, withOrg } from './session.ts';

interface OrgOptions extends OutputOptions {
  readonly org: string;
}

interface ExportOptions extends OrgOptions {
  readonly format: AuditFormat;
}

interface VerifyOptions extends OutputOptions {
  readonly org?: string;
  readonly file?: string;
  readonly checkpoint?: string;
}

/** Adds `audit verify`, `audit export` and `audit checkpoint`. */
export function addAuditCommands(program: Command): void {
  const audit = addGroup(program, 'audit', 'the audit trail');
  addCommand(audit, 'verify', 'check the chain of an org or of an export')
    .option('--org <slug>', 'the org, in the database', parseName)
    .option('--file <path>', 'an export as jsonl, without a database', parseName)
    .option('--checkpoint <path>', 'a checkpoint that was held elsewhere', parseName)
    .action(verify);
  addOrgCommand(audit, 'export', 'print the whole trail, ready to be verified elsewhere')
    .option('--format <format>', 'jsonl, or csv for a spreadsheet', parseFormat, 'jsonl')
    .action(exportTrail);
  addOrgCommand(
    audit,
    'checkpoint',
    'sign the trail as it stands: hold the result elsewhere',
  ).action(printCheckpoint);
}

const HELD = z.object({ jws: z.string().max(4_096), publicKey: PUBLIC_KEY });

async function printCheckpoint(options: OrgOptions): Promise<void> {
  const held = await withOrg(options.org, async (org, session) => {
    const signer = await signerOf(session);
    const signed = await signHead(org, signer, Date.now());
    if (!signed) throw new Failure(EXIT_FAILED, 'The audit trail has no entry yet.');
    return { ...signed.checkpoint, jws: signed.jws, publicKey: signer.publicKey };
  });
  printJson(held, options);
}

async function signerOf({ config, db }: Session): Promise<Signer> {
  return await openSigner(db, await readMasterKeys(config));
}

async function exportTrail({ org: slug, format }: ExportOptions): Promise<void> {
  await withOrg(slug, async (org, { config, db }) => {
    const keys = { db, master: await readMasterKeys(config) };
    for await (const line of auditLines(keys, org, format)) {
      if (!process.stdout.write(`${line}\n`)) {
        await new Promise<void>((resolve) => process.stdout.once('drain', resolve));
      }
    }
  });
}

async function verify(options: VerifyOptions): Promise<void> {
  const { org, file } = options;
  if ((org === undefined) === (file === undefined)) {
    throw new Failure(EXIT_USAGE, 'Give either --org or --file.');
  }
  const held = options.checkpoint === undefined ? undefined : await readHeld(options.checkpoint);
  const report =
    file === undefined ? await verifyDatabase(org ?? '', held) : await verifyFile(file, held);
  printReport(report, options);
  if (!report.ok) throw new Failure(EXIT_FAILED, 'The audit trail is not what it was.');
}

interface Held {
  readonly checkpoint: Checkpoint;
  readonly publicKey: PublicKey;
}

async function readHeld(path: string): Promise<Held> {
  try {
    const { jws, publicKey } = HELD.parse(JSON.parse(await readFile(path, 'utf8')));
    return { checkpoint: await readCheckpoint(jws, [publicKey]), publicKey };
  } catch (error) {
    const why = error instanceof InvalidCheckpoint ? error.message : `${path} is no checkpoint.`;
    throw new Failure(EXIT_USAGE, why);
  }
}

async function verifyDatabase(slug: string, held: Held | undefined): Promise<ChainReport> {
  return await withOrg(slug, async (org, { config, db }) => {
    const keys = await readPublicKeys(db, await readMasterKeys(config));
    return await verifyOrg(org, keys, held?.checkpoint);
  });
}

const HEADER = z.object({
  type: z.literal('rungate.audit'),
  version: z.literal(1),
  org: z.string().min(1).max(100),
  publicKeys: z.array(PUBLIC_KEY).max(100),
  checkpoints: z.array(z.string().max(4_096)).max(100_000),
});

/** Keys in a file prove nothing by themselves: what was held elsewhere says which one to trust. */
async function verifyFile(path: string, held: Held | undefined): Promise<ChainReport> {
  const lines = createInterface({ input: createReadStream(path), crlfDelay: Infinity })[
    Symbol.asyncIterator
  ]();
  const header = parseLine(HEADER, path, 1, (await lines.next()).value);
  if (!held) printNote("Without --checkpoint, the export's own keys are taken at their word.");
  const { org, checkpoints, publicKeys } = header;
  const keys = held ? [held.publicKey] : publicKeys;
  const entries = readEntries(path, lines);
  return await verifyChain({ org, entries, checkpoints, held: held?.checkpoint }, keys);
}

async function* readEntries(
  path: string,
  lines: AsyncIterator<string>,
): AsyncGenerator<AuditEntry> {
  for (let number = 2; ; number++) {
    const line = await lines.next();
    if (line.done) return;
    yield parseLine(AUDIT_ENTRY, path, number, line.value);
  }
}

function parseLine<T>(schema: z.ZodType<T>, path: string, number: number, line: unknown): T {
  try {
    return schema.parse(JSON.parse(String(line)));
  } catch {
    throw new Failure(EXIT_FAILED, `${path}: line ${number} is not one of an export.`);
  }
}

function printReport(report: ChainReport, options: OutputOptions): void {
  const { ok, entries, erased, faults } = report;
  const found = faults.map(({ seq, fault, message }) => `entry ${seq}: ${fault}: ${message}`);
  const sum = `${entries} entries, ${erased} erased: ${ok ? 'all as they were written' : 'not sound'}`;
  printResult(report, [...found, sum], options);
}

function parseFormat(text: string): AuditFormat {
  const format = AUDIT_FORMATS.find((each) => each === text);
  if (format) return format;
  throw new InvalidArgumentError('It must be jsonl or csv.');
}
