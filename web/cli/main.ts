/** The command line: `rungate COMMAND`, exit code 0 (done), 1 (failed) or 2 (usage). */

import process from 'node:process';
import { Command } from 'commander';
import manifest from '../../package.json' with { type: 'json' };
import { addAgentCommands } from './agent.ts';
import { addApplyCommand } from './apply.ts';
import { addAuditCommands } from './audit.ts';
import { addBackupCommand } from './backup.ts';
import { addExportCommand } from './export.ts';
import { EXIT_FAILED, explain, Failure } from './failure.ts';
import { addGateCommands } from './gates.ts';
import { addKeyCommands } from './keys.ts';
import { addOrgCommands } from './org.ts';
import { printNote } from './output.ts';
import { addPlatformCommands } from './platform.ts';
import { addPriceCommands } from './prices.ts';
import { addRolesCommand } from './roles.ts';
import { addRunCommands } from './run.ts';
import { addSchemaCommand } from './schema.ts';
import { addServerCommands } from './server.ts';
import { addTickCommand } from './tick.ts';
import { addTokenCommands } from './token.ts';
import { addWebhookCommands } from './webhooks.ts';

const ENVIRONMENT = `
Commands on an org go to the API at RUNGATE_URL (http://127.0.0.1:8787 unless set) with an admin
token in RUNGATE_TOKEN; without one, to the org of --org in the configured database.`;

const EXIT_CODES = `
Exit codes:
  0  done
  1  failed, or what was checked is not well
  2  the command line, its file or the configuration is wrong`;

function makeProgram(): Command {
  const program = new Command('rungate')
    .description(manifest.description)
    .version(manifest.version)
    .addHelpText('after', ENVIRONMENT)
    .addHelpText('afterAll', EXIT_CODES)
    .exitOverride()
    // Errors are told in one place, below.
    .configureOutput({ outputError() {} });
  addServerCommands(program);
  addBackupCommand(program);
  addTickCommand(program);
  addWebhookCommands(program);
  addOrgCommands(program);
  addExportCommand(program);
  addApplyCommand(program);
  addAgentCommands(program);
  addRunCommands(program);
  addGateCommands(program);
  addKeyCommands(program);
  addAuditCommands(program);
  addPlatformCommands(program);
  addTokenCommands(program);
  addPriceCommands(program);
  addRolesCommand(program);
  addSchemaCommand(program);
  return program;
}

function fail(error: unknown): void {
  const { line, exitCode } = explain(error);
  if (line !== undefined) printNote(line);
  process.exitCode = exitCode;
}

process.stdout.on('error', ({ code }: NodeJS.ErrnoException) => {
  // Whoever reads the result, such as `head`, may have read enough.
  if (code === 'EPIPE') return;
  fail(new Failure(EXIT_FAILED, `The result can't be written (${code ?? 'an error'}).`));
});

await makeProgram().parseAsync().catch(fail);
