/** `rungate tick`: does what is due once, for hosts where something else keeps the time. */

import process from 'node:process';
import type { Command } from 'commander';
import { EXIT_FAILED } from './failure.ts';
import { addCommand, integerBetween } from './options.ts';
import { type OutputOptions, printJson } from './output.ts';
import { withCurrentDatabase } from './session.ts';

interface TickOptions extends OutputOptions {
  /** Seconds. */
  readonly wait: number;
}

const MAX_WAIT_S = 3_600;

/** Adds `tick`. */
export function addTickCommand(program: Command): void {
  addCommand(
    program,
    'tick',
    'do what is due once: deliveries, holds, gates, limits, retention, deletions, alerts, prices',
  )
    .option(
      '--wait <seconds>',
      'how long to wait for deliveries under way',
      integerBetween(0, MAX_WAIT_S),
      20,
    )
    .action(tickOnce);
}

/** The modules are loaded here, as those of the server are: few commands need them. */
async function tickOnce(options: TickOptions): Promise<void> {
  const [{ boot, shutDown }, { tick }] = await Promise.all([
    import('../../functions/boot.ts'),
    import('../../functions/scheduled.ts'),
    withCurrentDatabase(async () => {}),
  ]);
  const services = await boot();
  try {
    const report = await tick(services, options.wait * 1_000);
    printJson(report, options);
    if (report.jobs.some(({ outcome }) => outcome === 'failed')) process.exitCode = EXIT_FAILED;
  } finally {
    await shutDown(services, 0);
  }
}
