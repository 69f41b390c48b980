/** `rungate init`: makes an org with its owner and its first admin token. */

import { type Command, InvalidArgumentError } from 'commander';
import { z } from 'zod';
import { DatabaseError } from '../../db/client.ts';
import { migrate } from '../../db/migrate.ts';
import { createOrg } from '../../db/orgs.ts';
import { titleSchema } from '../../schema/names.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { addCommand } from './options.ts';
import { type OutputOptions, printJson } from './output.ts';
import { OPERATOR, readMasterKeys, type Session, withDatabase } from './session.ts';

interface InitOptions extends OutputOptions {
  readonly org: string;
  readonly email: string;
}

const EMAIL = z.email().max(254);

/** Adds `init`. */
export function addOrgCommands(program: Command): void {
  addCommand(program, 'init', 'make an org, its owner and its first admin token')
    .requiredOption('--org <name>', 'what the org is called', parseOrgName)
    .requiredOption('--email <owner>', "the owner's e-mail address", parseEmail)
    .action(init);
}

async function init(options: InitOptions): Promise<void> {
  const { org, email } = options;
  const { id, slug, adminToken } = await withDatabase(async (session) => {
    await migrate(session.db);
    return await create(session, org, email);
  });
  printJson({ org: { id, slug }, owner: { email }, adminToken }, options);
}

async function create({ db, config }: Session, name: string, email: string) {
  try {
    return await createOrg(db, await readMasterKeys(config), OPERATOR, name, email);
  } catch (error) {
    if (!(error instanceof DatabaseError && error.conflict)) throw error;
    throw new Failure(EXIT_FAILED, `Too many orgs are called "${name}": choose another name.`);
  }
}

function parseOrgName(text: string): string {
  const name = titleSchema.safeParse(text);
  if (name.success) return name.data;
  throw new InvalidArgumentError('It must be a name of 1 to 100 characters on one line.');
}

function parseEmail(text: string): string {
  const email = EMAIL.safeParse(text.trim());
  if (email.success) return email.data;
  throw new InvalidArgumentError('It must be an e-mail address.');
}
