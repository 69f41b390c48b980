/** `rungate prices`: what calls are charged by, and the list that newer prices are fetched from. */

import type { Command } from 'commander';
import { readSource } from '../../db/catalogues.ts';
import { makeLog } from '../../functions/log.ts';
import { formatDollars } from '../../schema/money.ts';
import type { Rates } from '../../schema/rules/catalogue.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { addCommand, addGroup, parseName } from './options.ts';
import { type OutputOptions, printResult } from './output.ts';
import { type Session, withCurrentDatabase } from './session.ts';

interface RefreshOptions extends OutputOptions {
  readonly accept?: boolean;
}

/** How the fetching of prices goes, as far as an operator wants to know. */
export interface PriceReport {
  readonly version: string;
  readonly source: string;
  /** RFC 3339; null for the catalogue that Rungate comes with. */
  readonly fetchedAt: string | null;
  readonly nextAt: string | null;
  /** How many lower prices were not taken over, and the first of their models. */
  readonly heldBackCount: number;
  readonly heldBack: readonly string[];
  /** Why the last attempt came to nothing. */
  readonly failure: string | null;
}

/** Adds `prices`. */
export function addPriceCommands(program: Command): void {
  const prices = addGroup(
    program,
    'prices',
    'what calls are charged by, and where prices are from',
  );
  addCommand(prices, 'show', 'show the price list in force, or what it says of a model')
    .argument('[model]', 'a model below its provider, such as openai/gpt-5', parseName)
    .action(show);
  addCommand(prices, 'refresh', 'fetch the list of RUNGATE_PRICES_URL now')
    .option('--accept', 'take over prices that fall by more than a half, too')
    .action(refresh);
}

/** What `doctor` and `prices show` tell of the price list in force. */
export async function reportPrices(session: Session): Promise<PriceReport> {
  return (await open(session)).report;
}

/** The catalogue is loaded here, since few commands need it and it is large. */
async function open({ config, db }: Session) {
  const { Catalogues } = await import('../../functions/catalogues.ts');
  const catalogues = new Catalogues(db, makeLog(config.logLevel), config.pricesUrl);
  const now = Date.now();
  await catalogues.look(now);
  const catalogue = catalogues.inForce(now);
  const { source } = catalogues;
  const state = source === undefined ? undefined : await readSource(db, source);
  const report: PriceReport = {
    version: catalogue.version,
    source: catalogue.source,
    fetchedAt: catalogue.fetchedAt === null ? null : new Date(catalogue.fetchedAt).toISOString(),
    nextAt: state ? new Date(state.nextAt).toISOString() : null,
    heldBackCount: state?.heldBackCount ?? 0,
    heldBack: state?.heldBack ?? [],
    failure: state?.failure ?? null,
  };
  return { catalogue, report };
}

async function show(model: string | undefined, options: OutputOptions): Promise<void> {
  const { catalogue, report } = await withCurrentDatabase(open);
  if (model === undefined) return printResult(report, describeReport(report), options);
  const { findRates } = await import('../../schema/rules/catalogue.ts');
  const [, provider = '', id = ''] = /^([^/]*)\/(.*)$/.exec(model) ?? [];
  const rates = findRates(provider, id, Date.now(), catalogue);
  if (!rates) {
    const hint = provider === '' ? ' Name it below its provider, such as openai/gpt-5.' : '';
    throw new Failure(EXIT_FAILED, `"${model}" has no known price.${hint}`);
  }
  printResult({ model, rates }, describeRates(model, rates), options);
}

function describeReport(report: PriceReport): string[] {
  const { version, source, fetchedAt, nextAt, heldBackCount, heldBack, failure } = report;
  return [
    `${version}, from ${source}${fetchedAt === null ? '' : `, fetched ${fetchedAt}`}`,
    ...(nextAt === null ? [] : [`fetched next after ${nextAt}`]),
    ...(failure === null ? [] : [`the last attempt failed: ${failure}`]),
    ...(heldBackCount === 0 ? [] : [`${heldBackCount} lower prices were not taken over:`]),
    ...heldBack.map((id) => `  ${id}`),
  ];
}

function describeRates(model: string, rates: Rates): string[] {
  const { input, cacheRead, cacheWrite, output } = rates;
  const money = (nanos: number) => `$${formatDollars(nanos)}`;
  return [
    `${model}, by ${rates.catalogue}, per million tokens:`,
    `  input ${money(input.base)}, output ${money(output.base)}`,
    `  cache reads ${money(cacheRead.base)}, cache writes ${money(cacheWrite.base)}`,
  ];
}

/** The modules are loaded here, as those of the server are: few commands need them. */
async function refresh({ accept = false, ...options }: RefreshOptions): Promise<void> {
  const [{ boot, shutDown }, { refreshPrices, PriceSourceError }] = await Promise.all([
    import('../../functions/boot.ts'),
    import('../../functions/jobs/price.ts'),
    withCurrentDatabase(async () => {}),
  ]);
  const services = await boot();
  try {
    if (services.catalogues.source === undefined) {
      throw new Failure(EXIT_FAILED, 'RUNGATE_PRICES_URL is not set: there is nothing to fetch.');
    }
    const refreshed = await refreshPrices(services, { isUrgent: true, isAccepted: accept });
    const report = await reportPrices(services);
    const counts = refreshed ?? { added: 0, changed: 0, kept: 0, heldBack: report.heldBackCount };
    printResult({ ...counts, ...report }, [summarize(counts), ...describeReport(report)], options);
  } catch (error) {
    if (error instanceof PriceSourceError) throw new Failure(EXIT_FAILED, error.message);
    throw error;
  } finally {
    await shutDown(services, 0);
  }
}

function summarize({ added, changed }: { readonly added: number; readonly changed: number }) {
  return `${added} models have a price now that had none, ${changed} another one than before`;
}
