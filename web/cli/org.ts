/** `rungate init`, `org` and `compact`: making an org, how long it keeps records, and leaving. */

import { type Command, InvalidArgumentError } from 'commander';
import { z } from 'zod';
import { compactFile, DatabaseError } from '../../db/client.ts';
import { migrate } from '../../db/migrate.ts';
import { cancelDeletion, createOrg, readAccount, requestDeletion } from '../../db/orgs.ts';
import { changeRetention, readRetention } from '../../db/retention.ts';
import { Refusal } from '../../schema/errors.ts';
import { titleSchema } from '../../schema/names.ts';
import { MAX_RETENTION_DAYS } from '../../schema/rules/retention.ts';
import { EXIT_FAILED, EXIT_USAGE, Failure } from './failure.ts';
import { addCommand, addGroup, addOrgCommand, integerBetween, parseName } from './options.ts';
import { type OutputOptions, printJson, printResult } from './output.ts';
import {
  OPERATOR,
  readMasterKeys,
  type Session,
  withDatabase,
  withExistingDatabase,
  withOrg,
} from './session.ts';

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
  addLeavingCommands(addGroup(program, 'org', 'an org: how long it keeps records, and leaving'));
  addCommand(program, 'compact', 'write the database file anew, without what was deleted').action(
    compact,
  );
}

function addLeavingCommands(group: Command): void {
  addOrgCommand(group, 'retention', 'show or change for how many days records are kept')
    .option('--days <days>', 'the days, or "plan" for as long as the plan keeps them', parseDays)
    .action(keepFor);
  addOrgCommand(group, 'delete', 'ask for its deletion in 24 hours; its tokens are refused at once')
    .requiredOption('--confirm <slug>', 'its slug once more', parseName)
    .action(leave);
  addOrgCommand(group, 'keep', 'take a request for its deletion back').action(stay);
}

interface OrgOptions extends OutputOptions {
  readonly org: string;
}

async function keepFor(options: OrgOptions & { readonly days?: number | 'plan' }): Promise<void> {
  const { days } = options;
  const retention = await withOrg(options.org, async (org, { config }) => {
    const { retentionDays } = config;
    if (days === undefined) return await readRetention(org, retentionDays);
    const wanted = days === 'plan' ? null : days;
    return await told(changeRetention(org, OPERATOR, wanted, retentionDays));
  });
  printJson(retention, options);
}

async function leave(options: OrgOptions & { readonly confirm: string }): Promise<void> {
  const account = await withOrg(options.org, async (org) => {
    await told(requestDeletion(org, OPERATOR, options.confirm, Date.now()));
    return await readAccount(org);
  });
  const at = new Date(account?.deletesAt ?? 0).toISOString();
  printResult({ org: account?.slug, deletesAt: at }, [`${account?.slug} goes at ${at}.`], options);
}

async function stay(options: OrgOptions): Promise<void> {
  const isKept = await withOrg(options.org, (org) => cancelDeletion(org, OPERATOR, Date.now()));
  if (!isKept) throw new Failure(EXIT_FAILED, 'There is no request for deletion to take back.');
  printResult({ org: options.org, isKept }, [`${options.org} stays.`], options);
}

async function told<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw error instanceof Refusal ? new Failure(EXIT_USAGE, error.message) : error;
  }
}

/** A server compacts its databases itself. */
async function compact(options: OutputOptions): Promise<void> {
  const { url } = await withExistingDatabase(async ({ config }) => config.database);
  if (!url.startsWith('file:')) {
    throw new Failure(EXIT_USAGE, 'Only a database that is a file can be compacted.');
  }
  await compactFile(url);
  printResult({ compacted: url }, [`Compacted ${url}.`], options);
}

function parseDays(text: string): number | 'plan' {
  return text === 'plan' ? text : integerBetween(1, MAX_RETENTION_DAYS)(text);
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
