/** `rungate audit`: exports, checkpoints and the verifier, which needs no server and no database. */

import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { type Command, InvalidArgumentError } from 'commander';
import { z } from 'zod';
import { verifyChain } from '../../db/checkpoints.ts';
import { InvalidCheckpoint, PUBLIC_KEY, type PublicKey, readCheckpoint } from '../../db/signing.ts';
import { AUDIT_FORMATS, type AuditFormat } from '../../functions/audit.ts';
import {
  AUDIT_ENTRY,
  type AuditEntry,
  type ChainReport,
  type Checkpoint,
} from '../../schema/audit.ts';
import { type ApiOptions, withApi } from './api.ts';
import { EXIT_FAILED, EXIT_USAGE, Failure } from './failure.ts';
import { addApiCommand, addCommand, addGroup, parseName } from './options.ts';
import { type OutputOptions, printJson, printNote, printResult } from './output.ts';

interface ExportOptions extends ApiOptions {
  readonly format: AuditFormat;
}

interface VerifyOptions extends ApiOptions {
  readonly file?: string;
  readonly checkpoint?: string;
}

/** Adds `audit verify`, `audit export` and `audit checkpoint`. */
export function addAuditCommands(program: Command): void {
  const audit = addGroup(program, 'audit', 'the audit trail');
  addCommand(audit, 'verify', 'check the chain of an org or of an export')
    .option('--org <slug>', 'the org; not needed with an admin token', parseName)
    .option('--file <path>', 'an export as jsonl, without a database', parseName)
    .option('--checkpoint <path>', 'a checkpoint that was held elsewhere', parseName)
    .action(verify);
  addApiCommand(audit, 'export', 'print the whole trail, ready to be verified elsewhere')
    .option('--format <format>', 'jsonl, or csv for a spreadsheet', parseFormat, 'jsonl')
    .action(exportTrail);
  addApiCommand(
    audit,
    'checkpoint',
    'sign the trail as it stands: hold the result elsewhere',
  ).action(printCheckpoint);
}

const HELD = z.object({ jws: z.string().max(4_096), publicKey: PUBLIC_KEY });

const SIGN = `mutation Sign {
  auditCheckpointCreate(input: {}) { checkpoint { jws } publicKey errors { code field message } }
}`;

interface Signed {
  readonly auditCheckpointCreate: {
    readonly checkpoint: { readonly jws: string };
    readonly publicKey: PublicKey;
  };
}

async function printCheckpoint(options: ApiOptions): Promise<void> {
  const signed = await withApi(options, (api) => api.run<Signed>(SIGN));
  const { checkpoint, publicKey } = signed.auditCheckpointCreate;
  const { jws } = checkpoint;
  printJson({ ...(await readCheckpoint(jws, [publicKey])), jws, publicKey }, options);
}

async function exportTrail(options: ExportOptions): Promise<void> {
  await withApi(options, async (api) => {
    for await (const chunk of api.readTrail(options.format)) {
      if (!process.stdout.write(chunk)) {
        await new Promise<void>((resolve) => process.stdout.once('drain', resolve));
      }
    }
  });
}

async function verify(options: VerifyOptions): Promise<void> {
  const { org, file } = options;
  if (org !== undefined && file !== undefined) {
    throw new Failure(EXIT_USAGE, 'Give either --org or --file.');
  }
  const held = options.checkpoint === undefined ? undefined : await readHeld(options.checkpoint);
  const report = await (file === undefined ? verifyOrg(options, held) : verifyFile(file, held));
  printReport(report, options);
  if (!report.ok) throw new Failure(EXIT_FAILED, 'The audit trail is not what it was.');
}

interface Held {
  readonly jws: string;
  readonly checkpoint: Checkpoint;
  readonly publicKey: PublicKey;
}

async function readHeld(path: string): Promise<Held> {
  try {
    const { jws, publicKey } = HELD.parse(JSON.parse(await readFile(path, 'utf8')));
    return { jws, checkpoint: await readCheckpoint(jws, [publicKey]), publicKey };
  } catch (error) {
    const why = error instanceof InvalidCheckpoint ? error.message : `${path} is no checkpoint.`;
    throw new Failure(EXIT_USAGE, why);
  }
}

const VERIFY = `mutation Verify($checkpoint: String) {
  auditVerify(input: { checkpoint: $checkpoint }) {
    report { ok entries erased headSeq headHash faults { seq fault message } }
    errors { code field message }
  }
}`;

interface Verified {
  readonly auditVerify: {
    readonly report: Omit<ChainReport, 'head'> & {
      readonly headSeq: number | null;
      readonly headHash: string | null;
    };
  };
}

async function verifyOrg(options: VerifyOptions, held: Held | undefined): Promise<ChainReport> {
  const { auditVerify } = await withApi(options, (api) =>
    api.run<Verified>(VERIFY, { checkpoint: held?.jws ?? null }),
  );
  const { headSeq: seq, headHash: hash, ...report } = auditVerify.report;
  return { ...report, head: seq === null || hash === null ? undefined : { seq, hash } };
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
