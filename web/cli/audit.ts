/** `rungate audit`: exports, checkpoints and the verifier, which needs no server and no database. */

import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { type Command, InvalidArgumentError } from 'commander';
import { z } from 'zod';
import { verifyChain } from '../../db/checkpoints.ts';
import { InvalidCheckpoint, PUBLIC_KEY, type PublicKey, readCheckpoint } from '../../db/signing.ts';
import { TrailAudit } from '../../db/trails.ts';
import { AUDIT_FORMATS, type AuditFormat } from '../../functions/audit.ts';
import {
  AUDIT_ENTRY,
  type AuditEntry,
  type ChainReport,
  type Checkpoint,
} from '../../schema/audit.ts';
import { TRAIL_STEP, type TrailState } from '../../schema/trail.ts';
import { type ApiOptions, withApi } from './api.ts';
import { EXIT_FAILED, EXIT_USAGE, Failure } from './failure.ts';
import { addApiCommand, addCommand, addGroup, parseName } from './options.ts';
import { type OutputOptions, printJson, printNote, printParts, printResult } from './output.ts';

interface ExportOptions extends ApiOptions {
  readonly format: AuditFormat;
}

interface VerifyOptions extends ApiOptions {
  readonly file?: string;
  readonly checkpoint?: string;
  readonly steps?: readonly string[];
}

/** Adds `audit verify`, `audit export` and `audit checkpoint`. */
export function addAuditCommands(program: Command): void {
  const audit = addGroup(program, 'audit', 'the audit trail');
  addCommand(audit, 'verify', 'check the chain of an org or of an export')
    .option('--org <slug>', 'the org; not needed with an admin token', parseName)
    .option('--file <path>', 'an export as jsonl, without a database', parseName)
    .option('--checkpoint <path>', 'a checkpoint that was held elsewhere', parseName)
    .option(
      '--steps <paths...>',
      'with --file: steps.jsonl of an export of the org, in all its parts',
    )
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
  await withApi(options, (api) => printParts(api.readTrail(options.format)));
}

async function verify(options: VerifyOptions): Promise<void> {
  const { org, file, steps } = options;
  if (org !== undefined && file !== undefined) {
    throw new Failure(EXIT_USAGE, 'Give either --org or --file.');
  }
  if (steps !== undefined && file === undefined) {
    throw new Failure(
      EXIT_USAGE,
      '--steps needs the audit trail that anchors them: give --file, too.',
    );
  }
  const held = options.checkpoint === undefined ? undefined : await readHeld(options.checkpoint);
  const report = await (file === undefined
    ? verifyOrg(options, held)
    : verifyFile(file, held, steps));
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
async function verifyFile(
  path: string,
  held: Held | undefined,
  steps: readonly string[] | undefined,
): Promise<FileReport> {
  const lines = readLines(path);
  const header = parseLine(HEADER, path, 1, (await lines.next()).value);
  if (!held) printNote("Without --checkpoint, the export's own keys are taken at their word.");
  const { org, checkpoints, publicKeys } = header;
  const keys = held ? [held.publicKey] : publicKeys;
  const trails = new TrailAudit(org);
  const entries = readEntries(path, lines, trails);
  const report = await verifyChain({ org, entries, checkpoints, held: held?.checkpoint }, keys);
  if (steps === undefined) return report;
  const told = await verifySteps(steps, trails);
  const isWhole = told.broken.length === 0 && told.absent.length === 0;
  return { ...report, trails: told, ok: report.ok && isWhole };
}

/** The trails of an export's runs, by what was found. */
interface TrailsReport {
  readonly anchored: number;
  readonly grown: number;
  readonly unanchored: number;
  /** Anchored runs without a step in the file, and not by retention. */
  readonly absent: readonly string[];
  readonly broken: readonly { readonly run: string; readonly message: string }[];
}

interface FileReport extends ChainReport {
  readonly trails?: TrailsReport;
}

async function verifySteps(paths: readonly string[], trails: TrailAudit): Promise<TrailsReport> {
  for (const path of paths) {
    let number = 0;
    for await (const line of { [Symbol.asyncIterator]: () => readLines(path) }) {
      trails.addStep(parseLine(TRAIL_STEP, path, ++number, line));
    }
  }
  const found = [...trails.report()].map(([run, report]) => ({ run, ...report }));
  const count = (state: TrailState) => found.filter((each) => each.state === state).length;
  const broken = found.filter(({ state }) => state === 'broken');
  return {
    ...{ anchored: count('anchored'), grown: count('grown'), unanchored: count('unanchored') },
    absent: broken.filter(({ steps }) => steps === 0).map(({ run }) => run),
    broken: broken.filter(({ steps }) => steps > 0).map(({ run, message }) => ({ run, message })),
  };
}

function readLines(path: string): AsyncIterator<string> {
  const lines = createInterface({ input: createReadStream(path), crlfDelay: Infinity });
  return lines[Symbol.asyncIterator]();
}

async function* readEntries(
  path: string,
  lines: AsyncIterator<string>,
  trails: TrailAudit,
): AsyncGenerator<AuditEntry> {
  for (let number = 2; ; number++) {
    const line = await lines.next();
    if (line.done) return;
    const entry = parseLine(AUDIT_ENTRY, path, number, line.value);
    trails.addEntry(entry);
    yield entry;
  }
}

function parseLine<T>(schema: z.ZodType<T>, path: string, number: number, line: unknown): T {
  try {
    return schema.parse(JSON.parse(String(line)));
  } catch {
    throw new Failure(EXIT_FAILED, `${path}: line ${number} is not one of an export.`);
  }
}

function printReport(report: FileReport, options: OutputOptions): void {
  const { ok, entries, erased, faults, trails } = report;
  const found = faults.map(({ seq, fault, message }) => `entry ${seq}: ${fault}: ${message}`);
  if (trails) found.push(...trailLines(trails));
  const sum = `${entries} entries, ${erased} erased: ${ok ? 'all as they were written' : 'not sound'}`;
  printResult(report, [...found, sum], options);
}

function trailLines({ anchored, grown, unanchored, absent, broken }: TrailsReport): string[] {
  return [
    ...broken.map(({ run, message }) => `run ${run}: ${message}`),
    ...absent.map((run) => `run ${run}: it was anchored, and none of its steps is in the file.`),
    `${anchored} trails as they were anchored, ${grown} with steps added since, ${unanchored} not anchored yet`,
  ];
}

function parseFormat(text: string): AuditFormat {
  const format = AUDIT_FORMATS.find((each) => each === text);
  if (format) return format;
  throw new InvalidArgumentError('It must be jsonl or csv.');
}
