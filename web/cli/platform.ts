/** `rungate platform`: tokens of the platform, and accounts. */

import { networkInterfaces } from 'node:os';
import { env } from 'node:process';
import { type Command, InvalidArgumentError } from 'commander';
import {
  createPlatformToken,
  listPlatformTokens,
  openPlatform,
  operatePlatform,
  PLANS,
  type Plan,
  type Platform,
  type PlatformAccount,
  revokePlatformToken,
} from '../../db/platform.ts';
import { type Cidr, parseCidr } from '../../schema/address.ts';
import { normalizeEmail } from '../../schema/email.ts';
import { Refusal } from '../../schema/errors.ts';
import { isId, type TokenId } from '../../schema/ids.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { addCommand, addGroup, parseLife, parseName } from './options.ts';
import { type OutputOptions, printJson, printResult } from './output.ts';
import { readAllKeys, type Session, withCurrentDatabase } from './session.ts';
import { alignTable } from './table.ts';

interface TokenOptions extends OutputOptions {
  readonly name: string;
  readonly allow: readonly Cidr[];
  /** Milliseconds. */
  readonly expires: number;
}

interface AccountOptions extends OutputOptions {
  readonly name: string;
  readonly email: string;
}

/** Adds `platform token …` and `platform account …`. */
export function addPlatformCommands(program: Command): void {
  const platform = addGroup(program, 'platform', 'tokens of the platform, and accounts');
  addTokenCommands(addGroup(platform, 'token', 'tokens of the platform'));
  addAccountCommands(addGroup(platform, 'account', 'the orgs of this deployment as accounts'));
  addCommand(platform, 'audit', "the platform's audit trail, the newest first").action(audit);
}

function addTokenCommands(token: Command): void {
  addCommand(token, 'create', 'print a new token once')
    .requiredOption('--name <name>', 'what it is for', parseName)
    .requiredOption('--allow <range...>', 'addresses that may use it, such as 10.0.0.0/8', addRange)
    .requiredOption('--expires <time>', 'how long it is good for, such as 30d or 12h', parseLife)
    .action(createToken);
  addCommand(token, 'list', 'the tokens, without their text').action(listTokens);
  addCommand(token, 'revoke', 'end a token, from the next request on')
    .argument('<id>', 'the id of the token', parseTokenId)
    .action(revokeToken);
}

function addAccountCommands(account: Command): void {
  addCommand(account, 'list', 'all accounts').action(listAccounts);
  addCommand(account, 'create', 'make an account, whose owner signs in by mail')
    .requiredOption('--name <name>', 'what it is called', parseName)
    .requiredOption('--email <owner>', "the owner's e-mail address", parseEmail)
    .action(createAccount);
  const add = (usage: string, description: string) =>
    addCommand(account, usage, description).argument('<slug>', 'the account', parseName);
  add('suspend', 'refuse all its tokens and sessions').action(suspend);
  add('resume', 'let it work again').action(resume);
  add('plan', 'change its plan').argument('<plan>', PLANS.join(', '), parsePlan).action(changePlan);
  add('delete', 'ask for its deletion in 24 hours').action(requestDeletion);
}

async function createToken({ name, allow, expires, ...options }: TokenOptions): Promise<void> {
  const made = await asOperator(({ db }) =>
    createPlatformToken(db, name, allow, expires, Date.now()),
  );
  printResult(made, [made.token], options);
}

async function listTokens(options: OutputOptions): Promise<void> {
  const tokens = await asOperator(({ db }) => listPlatformTokens(db));
  const columns = ['id', 'name', '…', 'allow', 'expires', 'state'].map(left);
  const rows = tokens.map((token) => [
    token.id,
    token.name,
    token.lastFour,
    token.allow.join(','),
    time(token.expiresAt),
    token.revokedAt === null ? '' : 'revoked',
  ]);
  printResult({ tokens }, alignTable(columns, rows), options);
}

async function revokeToken(id: TokenId, options: OutputOptions): Promise<void> {
  const revoked = await asOperator(({ db }) => revokePlatformToken(db, id, Date.now()));
  if (!revoked) throw new Failure(EXIT_FAILED, 'There is no such token that has not ended.');
  printResult({ id, revoked }, [`${id}: revoked`], options);
}

async function listAccounts(options: OutputOptions): Promise<void> {
  const accounts = await withPlatform(readAccounts);
  const columns = ['slug', 'name', 'plan', 'members', 'agents', 'state'].map(left);
  const rows = accounts.map((account) => [
    account.slug,
    account.name,
    account.plan,
    String(account.members),
    String(account.agents),
    stateOf(account),
  ]);
  printResult({ accounts }, alignTable(columns, rows), options);
}

const PAGE = 500;

async function readAccounts(platform: Platform): Promise<PlatformAccount[]> {
  const all: PlatformAccount[] = [];
  for (;;) {
    const page = await platform.listAccounts(PAGE, all.at(-1)?.id);
    all.push(...page);
    if (page.length < PAGE) return all;
  }
}

function stateOf({ suspendedAt, deletesAt }: PlatformAccount): string {
  if (deletesAt !== null) return `to be deleted after ${time(deletesAt)}`;
  return suspendedAt === null ? 'active' : 'suspended';
}

async function createAccount({ name, email, ...options }: AccountOptions): Promise<void> {
  const made = await withPlatform(async (platform, session) =>
    platform.createAccount(await readAllKeys(session), name, email),
  );
  printJson(made, options);
}

async function suspend(slug: string, options: OutputOptions): Promise<void> {
  await change(slug, 'suspended', options, (platform, { id }) =>
    platform.suspendAccount(id, Date.now()),
  );
}

async function resume(slug: string, options: OutputOptions): Promise<void> {
  await change(slug, 'active', options, (platform, { id }) => platform.resumeAccount(id));
}

async function changePlan(slug: string, plan: Plan, options: OutputOptions): Promise<void> {
  await change(slug, plan, options, (platform, { id }) => platform.changePlan(id, plan));
}

async function requestDeletion(slug: string, options: OutputOptions): Promise<void> {
  await change(slug, 'to be deleted', options, (platform, { id }) =>
    platform.deleteAccount(id, Date.now()),
  );
}

async function change(
  slug: string,
  state: string,
  options: OutputOptions,
  work: (platform: Platform, account: PlatformAccount) => Promise<boolean>,
): Promise<void> {
  const changed = await withPlatform(async (platform) => {
    const account = await platform.findAccount(slug);
    if (!account) throw new Failure(EXIT_FAILED, `There is no account "${slug}".`);
    return await work(platform, account);
  });
  printResult({ account: slug, state, changed }, [`${slug}: ${state}`], options);
}

async function audit(options: OutputOptions): Promise<void> {
  const entries = await withPlatform((platform) => platform.listAudit(PAGE));
  const columns = ['number', 'time', 'action', 'target', 'outcome'].map(left);
  const rows = entries.map((entry) => [
    String(entry.seq),
    time(entry.at),
    entry.action,
    entry.target,
    entry.outcome,
  ]);
  printResult({ entries }, alignTable(columns, rows), options);
}

/** Works as whose platform token `RUNGATE_TOKEN` holds, else as the operator. */
async function withPlatform<T>(
  work: (platform: Platform, session: Session) => Promise<T>,
): Promise<T> {
  const token = platformToken();
  return await withCurrentDatabase(async (session) => {
    const { db } = session;
    return await work(token === undefined ? operatePlatform(db) : await enter(db, token), session);
  });
}

/** Does what no token of the platform may do: only who is at the command line himself. */
async function asOperator<T>(work: (session: Session) => Promise<T>): Promise<T> {
  if (platformToken() === undefined) return await withCurrentDatabase(work);
  const message = 'A platform token can’t manage platform tokens: unset RUNGATE_TOKEN.';
  throw new Failure(EXIT_FAILED, message);
}

/** Tokens of other kinds are for other commands. */
function platformToken(): string | undefined {
  const token = env.RUNGATE_TOKEN?.trim();
  return token?.startsWith('rg_platform_') ? token : undefined;
}

async function enter(db: Session['db'], token: string): Promise<Platform> {
  const [address = '', ...alsoAt] = ownAddresses();
  try {
    return await openPlatform(db, token, { address, alsoAt, userAgent: 'rungate' }, Date.now());
  } catch (error) {
    throw error instanceof Refusal ? new Failure(EXIT_FAILED, error.message) : error;
  }
}

/** The addresses of this machine, those that others reach first. */
function ownAddresses(): string[] {
  const all = Object.values(networkInterfaces()).flatMap((each) => each ?? []);
  const sorted = all.toSorted((one, other) => Number(one.internal) - Number(other.internal));
  return sorted.map(({ address }) => address);
}

function left(heading: string) {
  return { heading, align: 'left' as const };
}

function time(ms: number): string {
  return new Date(ms).toISOString().slice(0, 16);
}

function addRange(text: string, before: readonly Cidr[] = []): readonly Cidr[] {
  try {
    return [...before, parseCidr(text)];
  } catch (error) {
    throw new InvalidArgumentError(error instanceof Error ? error.message : 'It is no range.');
  }
}

function parseTokenId(text: string): TokenId {
  if (isId('token', text)) return text;
  throw new InvalidArgumentError('It must be the id of a token.');
}

function parsePlan(text: string): Plan {
  const plan = PLANS.find((each) => each === text);
  if (plan) return plan;
  throw new InvalidArgumentError(`It must be one of ${PLANS.join(', ')}.`);
}

function parseEmail(text: string): string {
  const email = normalizeEmail(text);
  if (email !== undefined) return email;
  throw new InvalidArgumentError('It must be an e-mail address.');
}
