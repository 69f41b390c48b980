/** `rungate serve`, `migrate` and `doctor`: the server and the soundness of its database. */

import process from 'node:process';
import type { Command } from 'commander';
import { type Diagnosis, diagnose } from '../../db/doctor.ts';
import { hasSchema, migrate, pendingMigrations } from '../../db/migrate.ts';
import { expireHolds } from '../../db/system.ts';
import type { Services } from '../../functions/services.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { addCommand } from './options.ts';
import { type OutputOptions, printJson, printNote, printResult } from './output.ts';
import { type PriceReport, reportPrices } from './prices.ts';
import {
  emptyNote,
  readMasterKeys,
  type Session,
  withDatabase,
  withExistingDatabase,
} from './session.ts';
import { returnLines, seedDemo, welcomeLines } from './welcome.ts';

interface DoctorOptions extends OutputOptions {
  readonly fix?: boolean;
}

/** What `doctor` prints; without the diagnosis where the schema is too old to be examined. */
interface Report extends Partial<Diagnosis> {
  readonly ok: boolean;
  readonly pendingMigrations: readonly string[];
  /** With `--fix`: how many holds of calls that are gone were settled before the examination. */
  readonly settledHolds?: number;
  /** Where newer prices are fetched: how that goes. It makes nothing unwell by itself. */
  readonly prices?: PriceReport;
}

/** Adds `serve`, `migrate` and `doctor`. */
export function addServerCommands(program: Command): void {
  addCommand(program, 'serve', 'bring the database up to date and serve').action(serve);
  addCommand(program, 'migrate', 'bring the database up to date').action(runMigrations);
  addCommand(program, 'doctor', 'check the money, the sealing and the database; exit 1 if not well')
    .option('--fix', 'first settle the holds of calls that are gone')
    .action(doctor);
}

/** The modules are loaded here alone: no other command needs them, nor the runtime they are for. */
async function serve(options: OutputOptions): Promise<void> {
  const [{ boot }, server, { listen, makeRoom }] = await Promise.all([
    import('../../functions/boot.ts'),
    import('../../functions/serve.ts'),
    import('../../functions/bun.ts'),
  ]);
  makeRoom();
  const services = await boot();
  const listening = await server.serve(services, listen).catch((error: unknown) => {
    throw error instanceof server.ListenError ? new Failure(EXIT_FAILED, error.message) : error;
  });
  try {
    await greet(services, listening.url, options);
  } catch (error) {
    await listening.stop(0);
    throw error;
  }
}

/** Only once it listens: a port that is taken must not use up the first start and its token. */
async function greet(services: Services, url: string, options: OutputOptions): Promise<void> {
  const demo = await seedDemo(services);
  const lines = demo ? welcomeLines(url, demo) : await returnLines(url, services.db);
  printResult({ url, ...(demo ? { demo } : {}) }, lines, options);
}

async function runMigrations(options: OutputOptions): Promise<void> {
  const applied = await withDatabase(({ db }) => migrate(db));
  printJson({ applied }, options);
}

async function doctor(options: DoctorOptions): Promise<void> {
  const report = await withExistingDatabase((session) => examine(session, options.fix ?? false));
  printJson(report, options);
  if (!report.ok) process.exitCode = EXIT_FAILED;
}

async function examine(session: Session, fix: boolean): Promise<Report> {
  const { config, db } = session;
  const pending = await pendingMigrations(db);
  if (pending.length > 0) {
    if (!(await hasSchema(db))) printNote(emptyNote(config));
    return { ok: false, pendingMigrations: pending };
  }
  const fixed = fix ? { settledHolds: await expireHolds(db, Date.now()) } : {};
  const diagnosis = await diagnose(db, await readMasterKeys(config), Date.now());
  const prices = config.pricesUrl === undefined ? {} : { prices: await reportPrices(session) };
  return { ...diagnosis, pendingMigrations: pending, ...fixed, ...prices };
}
