/** `rungate init`, `org` and `compact`: making an org, how long it keeps records, and leaving. */

import { type Command, InvalidArgumentError } from 'commander';
import { z } from 'zod';
import { compactFile, DatabaseError } from '../../db/client.ts';
import { migrate } from '../../db/migrate.ts';
import { createOrg } from '../../db/orgs.ts';
import { titleSchema } from '../../schema/names.ts';
import { MAX_RETENTION_DAYS } from '../../schema/rules/retention.ts';
import { type ApiOptions, Refused, withApi } from './api.ts';
import { EXIT_FAILED, EXIT_USAGE, Failure } from './failure.ts';
import { addApiCommand, addCommand, addGroup, integerBetween, parseName } from './options.ts';
import { type OutputOptions, printJson, printResult } from './output.ts';
import {
  OPERATOR,
  readAllKeys,
  type Session,
  withDatabase,
  withExistingDatabase,
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
  addApiCommand(group, 'retention', 'show or change for how many days records are kept')
    .option('--days <days>', 'the days, or "plan" for as long as the plan keeps them', parseDays)
    .action(keepFor);
  addApiCommand(group, 'delete', 'ask for its deletion in 24 hours; its tokens are refused at once')
    .requiredOption('--confirm <slug>', 'its slug once more', parseName)
    .action(leave);
  addApiCommand(group, 'keep', 'take a request for its deletion back').action(stay);
}

const RETENTION = 'days planDays wantedDays';
const READ = `query Retention { retention { ${RETENTION} } }`;
const KEEP_FOR = `mutation KeepFor($days: Int) {
  retentionUpdate(input: { days: $days }) {
    retention { ${RETENTION} } errors { code field message }
  }
}`;

async function keepFor(options: ApiOptions & { readonly days?: number | 'plan' }): Promise<void> {
  const { days } = options;
  const retention = await withApi(options, async (api) => {
    if (days === undefined) return (await api.run<{ retention: object }>(READ)).retention;
    const wanted = { days: days === 'plan' ? null : days };
    const changed = api.run<{ retentionUpdate: { retention: object } }>(KEEP_FOR, wanted);
    return (await told(changed)).retentionUpdate.retention;
  });
  printJson(retention, options);
}

const LEAVE = `mutation Leave($slug: String!) {
  orgDelete(input: { confirmation: $slug }) {
    deletion { deletesAt } errors { code field message }
  }
}`;

interface Leaving {
  readonly orgDelete: { readonly deletion: { readonly deletesAt: string } };
}

async function leave(options: ApiOptions & { readonly confirm: string }): Promise<void> {
  const { confirm: slug } = options;
  const left = await withApi(options, (api) => told(api.run<Leaving>(LEAVE, { slug })));
  const { deletesAt } = left.orgDelete.deletion;
  printResult({ org: slug, deletesAt }, [`${slug} goes at ${deletesAt}.`], options);
}

const STAY = `mutation Stay($slug: String!) {
  orgDeletionCancel(input: { confirmation: $slug }) { isCancelled errors { code field message } }
}`;

async function stay(options: ApiOptions): Promise<void> {
  const slug = await withApi(options, async (api) => {
    const { org } = await api.run<{ org: { slug: string } }>('query Org { org { slug } }');
    await api.run(STAY, { slug: org.slug });
    return org.slug;
  });
  printResult({ org: slug, isKept: true }, [`${slug} stays.`], options);
}

/** What is refused for how it was typed is for the caller to mend, and nothing was done. */
async function told<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    const isTyped = error instanceof Refused && error.code === 'INVALID';
    throw isTyped ? new Failure(EXIT_USAGE, error.message) : error;
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

async function create(session: Session, name: string, email: string) {
  try {
    return await createOrg(session.db, await readAllKeys(session), OPERATOR, name, email);
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
