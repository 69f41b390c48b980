/** Configuration: the environment, parsed once, and what follows from it. */
import { randomBytes } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { filePath } from '../db/client.ts';
import { createWhole } from '../db/files.ts';
import {
  type AllowList,
  type Cidr,
  canonicalAddress,
  inCidrs,
  isAllowedHost,
  LOOPBACK,
  parseAllowList,
  parseCidrList,
} from '../schema/address.ts';
import { normalizeEmail } from '../schema/email.ts';
import type { Caps } from '../schema/rules/limit.ts';
import { MAX_RETENTION_DAYS } from '../schema/rules/retention.ts';
import { LOG_LEVELS, type Log, type LogLevel } from './log.ts';

/** Everything that the environment decides. */
export interface Config {
  readonly port: number;
  readonly host: string;
  readonly database: {
    /** `file:`, `http:`, `https:` or `libsql:`. */
    readonly url: string;
    readonly authToken: string | undefined;
    readonly synchronous: 'full' | 'normal';
  };
  /** `id:base64,…` as given; undefined only in development. */
  readonly masterKeys: string | undefined;
  /** Where people reach this deployment, without a trailing slash. */
  readonly publicUrl: string | undefined;
  /** Where weaknesses are reported, as a `mailto:` or `https:` URL. */
  readonly securityContact: string | undefined;
  readonly trustedProxies: readonly Cidr[];
  readonly egressAllow: AllowList;
  /** What a request to tick must present; undefined where requests can't. */
  readonly schedulerSecret: string | undefined;
  /** The operator's caps over all orgs; undefined where there is none. */
  readonly caps: Caps;
  /** How often a minute an admin token or a session may ask the admin API. */
  readonly adminRequestsPerMinute: number;
  /** The mail server, `smtp:` or `smtps:`, and who its letters are from; undefined without one. */
  readonly mail: { readonly smtpUrl: string; readonly from: string } | undefined;
  /** Where newer prices are fetched; undefined where those of this version are kept to. */
  readonly pricesUrl: string | undefined;
  /** For how many days records of the operator's own plan are kept; null is for good. */
  readonly retentionDays: number | null;
  /** The file beside the database that remembers which orgs were deleted; undefined for none. */
  readonly deletionLedger: string | undefined;
  /** The folder of the shares of org keys; undefined where keys have none. */
  readonly keyShares: string | undefined;
  readonly logLevel: LogLevel;
  readonly isDemo: boolean;
  /** Whether GraphQL tells its schema. */
  readonly isIntrospected: boolean;
  readonly isProduction: boolean;
}

/** The environment is wrong; the message names every bad variable and never a secret's value. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(`The configuration is not valid:\n${problems.map((line) => `- ${line}`).join('\n')}`);
    this.problems = problems;
  }
}

/**
 * What to catch with where a file or a folder of the configuration is used.
 *
 * @param name The variable that says where it is, or words that have it.
 * @throws {ConfigError} instead of what the file system said.
 */
export const unusable =
  (name: string, path: string) =>
  (cause: unknown): never => {
    if (cause instanceof ConfigError) throw cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new ConfigError([`${name} is ${JSON.stringify(path)}, which can't be used: ${reason}`]);
  };

const DEFAULT_HOST = '127.0.0.1';
const DEFAULT_DATABASE = 'file:.rungate/rungate.db';
const MISSING_KEYS =
  'RUNGATE_MASTER_KEYS is not set; wanted in production, or when HOST is not loopback: id:base64,….';
const KEY_FILE = 'RUNGATE_MASTER_KEYS is not set, and the file of keys beside RUNGATE_DATABASE_URL';
const MISSING_SENDER =
  'RUNGATE_MAIL_FROM is not set; wanted with RUNGATE_SMTP_URL: whom letters are from.';
const ADMIN_REQUESTS_PER_MINUTE = 3_000;
const PLAIN_PRICES =
  'RUNGATE_PRICES_URL is a URL that starts with "http:"; wanted: https, or a host of RUNGATE_EGRESS_ALLOW.';
const CAP_WANTED = 'a whole number from 1 to 999999999';
const MAX_VALUE_CHARS = 65_536;
const MAX_SHOWN_CHARS = 80;
const MAX_CONTACT_CHARS = 512;
const MAX_URL_CHARS = 2_048;
const MAX_HOPS = 32;
const MAX_KEY_FILE_BYTES = 4096;

/** A variable: what it becomes, and what is said when it can't. */
function variable<T>(wanted: string, parse: (text: string) => T | undefined) {
  return z.string().transform((text, context) => {
    const value = text.length > MAX_VALUE_CHARS ? undefined : attempt(() => parse(text));
    if (value !== undefined) return value;
    context.addIssue({ code: 'custom', message: wanted });
    return z.NEVER;
  });
}

function attempt<T>(act: () => T): T | undefined {
  try {
    return act();
  } catch {
    return undefined;
  }
}

const oneOf = <const T extends readonly string[]>(names: T) =>
  variable<T[number]>(`one of ${names.join(', ')}`, (text) => names.find((name) => name === text));

const matching = (pattern: RegExp, wanted: string) =>
  variable(wanted, (text) => (pattern.test(text) ? text : undefined));

const ENVIRONMENT = z.object({
  PORT: variable('a port from 0 to 65535', parsePort).optional(),
  HOST: matching(/^[\w.:-]{1,253}$/, 'an address or a host name to listen on').optional(),
  RUNGATE_DATABASE_URL: variable(
    'a URL that starts with file: (and has no query), http://, https:// or libsql://',
    parseDatabaseUrl,
  ).optional(),
  RUNGATE_DATABASE_AUTH_TOKEN: matching(/^[\x21-\x7e]+$/, 'a token without spaces').optional(),
  RUNGATE_DATABASE_SYNCHRONOUS: oneOf(['full', 'normal']).optional(),
  RUNGATE_MASTER_KEYS: matching(
    /^[\w-]{1,32}:[A-Za-z0-9+/]{43}=(,[\w-]{1,32}:[A-Za-z0-9+/]{43}=)*$/,
    'id:key pairs, separated by commas, each key 32 bytes in base64',
  ).optional(),
  RUNGATE_PUBLIC_URL: variable('an http or https URL without a query', parsePublicUrl).optional(),
  RUNGATE_SECURITY_CONTACT: variable(
    'a mailto: or https: URL of at most 512 characters',
    parseContact,
  ).optional(),
  RUNGATE_TRUSTED_PROXIES: variable(
    'address ranges such as 10.0.0.0/8, separated by commas',
    parseCidrList,
  ).optional(),
  RUNGATE_EGRESS_ALLOW: variable(
    'hosts, host:port or address ranges, separated by commas',
    parseAllowList,
  ).optional(),
  RUNGATE_MAX_REQUESTS_PER_MINUTE: variable(CAP_WANTED, parseCap).optional(),
  RUNGATE_MAX_CONCURRENT_CALLS: variable(CAP_WANTED, parseCap).optional(),
  RUNGATE_MAX_ADMIN_REQUESTS_PER_MINUTE: variable(CAP_WANTED, parseCap).optional(),
  RUNGATE_SCHEDULER_SECRET: matching(
    /^[\x21-\x7e]{32,512}$/,
    '32 to 512 visible ASCII characters, such as openssl rand -hex 32 prints',
  ).optional(),
  RUNGATE_SMTP_URL: variable('a URL that starts with smtp:// or smtps://', parseSmtpUrl).optional(),
  RUNGATE_MAIL_FROM: variable(
    'an address, or a name and an address: Rungate <rungate@example.com>',
    parseSender,
  ).optional(),
  RUNGATE_PRICES_URL: variable(
    'an http or https URL without a user name and of at most 2048 characters',
    parsePricesUrl,
  ).optional(),
  RUNGATE_RETENTION_DAYS: variable('a whole number from 1 to 3650', parseDays).optional(),
  RUNGATE_DELETION_LEDGER: matching(/^[^\p{Cc}]{1,1024}$/u, 'the path of a file').optional(),
  RUNGATE_KEY_SHARES: matching(/^[^\p{Cc}]{1,1024}$/u, 'the path of a folder').optional(),
  RUNGATE_LOG: oneOf(LOG_LEVELS).optional(),
  RUNGATE_DEMO: oneOf(['on', 'off']).optional(),
  RUNGATE_INTROSPECTION: oneOf(['on', 'off']).optional(),
  NODE_ENV: matching(/^[\w-]{1,40}$/, 'a word such as production or development').optional(),
});

type Variables = z.output<typeof ENVIRONMENT>;

const SECRETS = new Set([
  'RUNGATE_MASTER_KEYS',
  'RUNGATE_DATABASE_AUTH_TOKEN',
  'RUNGATE_SCHEDULER_SECRET',
]);

/**
 * Reads the configuration; variables that are empty count as not set.
 *
 * @throws {ConfigError} that lists every variable which is not valid, or missing in production.
 */
export function readConfig(env: Record<string, string | undefined>): Config {
  const given: Record<string, string> = {};
  for (const name of Object.keys(ENVIRONMENT.shape)) {
    const value = env[name]?.trim();
    if (value) given[name] = value;
  }
  const parsed = ENVIRONMENT.safeParse(given);
  const problems = (parsed.error?.issues ?? []).map((issue) => explain(issue, given));
  const isProduction = given.NODE_ENV === 'production' || !isLoopback(given.HOST ?? DEFAULT_HOST);
  if (isProduction && given.RUNGATE_MASTER_KEYS === undefined) problems.push(MISSING_KEYS);
  if (given.RUNGATE_SMTP_URL && !given.RUNGATE_MAIL_FROM) problems.push(MISSING_SENDER);
  if (parsed.success && !isPricesAllowed(parsed.data)) problems.push(PLAIN_PRICES);
  if (!parsed.success || problems.length > 0) throw new ConfigError(problems);
  return applyDefaults(parsed.data, isProduction);
}

function explain(issue: z.core.$ZodIssue, env: Record<string, string>): string {
  const name = String(issue.path[0]);
  const given = SECRETS.has(name) ? 'a value that is not shown' : show(env[name] ?? '', name);
  return `${name} is ${given}; wanted: ${issue.message}.`;
}

/** A URL may hold a password or a token, so that only its scheme is told. */
function show(value: string, name: string): string {
  if (name.endsWith('_URL')) return `a URL that starts with "${value.slice(0, 8).split('/')[0]}"`;
  return JSON.stringify(value.slice(0, MAX_SHOWN_CHARS));
}

function applyDefaults(env: Variables, isProduction: boolean): Config {
  return {
    port: env.PORT ?? 8787,
    host: env.HOST ?? DEFAULT_HOST,
    database: {
      url: env.RUNGATE_DATABASE_URL ?? DEFAULT_DATABASE,
      authToken: env.RUNGATE_DATABASE_AUTH_TOKEN,
      synchronous: env.RUNGATE_DATABASE_SYNCHRONOUS ?? 'full',
    },
    masterKeys: env.RUNGATE_MASTER_KEYS,
    publicUrl: env.RUNGATE_PUBLIC_URL,
    securityContact: env.RUNGATE_SECURITY_CONTACT,
    trustedProxies: env.RUNGATE_TRUSTED_PROXIES ?? [],
    egressAllow: env.RUNGATE_EGRESS_ALLOW ?? { hosts: new Set(), cidrs: [] },
    caps: {
      requestsPerMinute: env.RUNGATE_MAX_REQUESTS_PER_MINUTE,
      concurrentCalls: env.RUNGATE_MAX_CONCURRENT_CALLS,
    },
    adminRequestsPerMinute: env.RUNGATE_MAX_ADMIN_REQUESTS_PER_MINUTE ?? ADMIN_REQUESTS_PER_MINUTE,
    schedulerSecret: env.RUNGATE_SCHEDULER_SECRET,
    mail: mailOf(env),
    pricesUrl: env.RUNGATE_PRICES_URL,
    retentionDays: env.RUNGATE_RETENTION_DAYS ?? null,
    deletionLedger: env.RUNGATE_DELETION_LEDGER ?? ledgerBeside(env.RUNGATE_DATABASE_URL),
    keyShares: env.RUNGATE_KEY_SHARES,
    logLevel: env.RUNGATE_LOG ?? 'info',
    isDemo: env.RUNGATE_DEMO === undefined ? !isProduction : env.RUNGATE_DEMO === 'on',
    isIntrospected: (env.RUNGATE_INTROSPECTION ?? (isProduction ? 'off' : 'on')) === 'on',
    isProduction,
  };
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || inCidrs(host, LOOPBACK);
}

function parsePort(text: string): number | undefined {
  return /^\d{1,5}$/.test(text) && Number(text) <= 65535 ? Number(text) : undefined;
}

function parseCap(text: string): number | undefined {
  return /^[1-9]\d{0,8}$/.test(text) ? Number(text) : undefined;
}

function parseDays(text: string): number | undefined {
  const days = /^[1-9]\d{0,3}$/.test(text) ? Number(text) : undefined;
  return days !== undefined && days <= MAX_RETENTION_DAYS ? days : undefined;
}

/** A database that is a file has its ledger in the same folder, unless told otherwise. */
function ledgerBeside(databaseUrl = DEFAULT_DATABASE): string | undefined {
  const path = fileOf(databaseUrl);
  return path === undefined ? undefined : join(dirname(path), 'deleted-orgs.jsonl');
}

/**
 * What a start warns of: beside a server of databases there is no place for a ledger of its own,
 * and without one a restored backup brings deleted orgs back.
 */
export function ledgerWarning({ deletionLedger, isProduction }: Config): string | undefined {
  if (!isProduction || deletionLedger !== undefined) return undefined;
  return (
    'RUNGATE_DELETION_LEDGER is not set, and a database on a server has no ledger of deleted orgs ' +
    'unless it is: a backup that is restored would bring such orgs back.'
  );
}

function parseDatabaseUrl(text: string): string | undefined {
  if (text.startsWith('file:')) {
    // SQLite keeps the one in memory alone, and reads the other as a URL of its own.
    const isElsewhere = /^(?::memory:$|file:)/.test(filePath(text));
    return /^file:[^?#\s][^?#]*$/.test(text) && !isElsewhere ? text : undefined;
  }
  return /^(https?|libsql):\/\/[^/\s]/.test(text) && URL.canParse(text) ? text : undefined;
}

function mailOf({ RUNGATE_SMTP_URL: smtpUrl, RUNGATE_MAIL_FROM: from }: Variables) {
  return smtpUrl !== undefined && from !== undefined ? { smtpUrl, from } : undefined;
}

function parseSmtpUrl(text: string): string | undefined {
  const { protocol, hostname, pathname, hash } = new URL(text);
  const isPlain = (pathname === '' || pathname === '/') && hash === '';
  return /^smtps?:$/.test(protocol) && hostname !== '' && isPlain ? text : undefined;
}

function parsePricesUrl(text: string): string | undefined {
  const { protocol, username, password, hash, href } = new URL(text);
  const isPlain = username === '' && password === '' && hash === '' && text.length <= MAX_URL_CHARS;
  return /^https?:$/.test(protocol) && isPlain ? href : undefined;
}

/** Whoever can change prices on their way can make calls cheap. */
function isPricesAllowed({ RUNGATE_PRICES_URL: url, RUNGATE_EGRESS_ALLOW: allow }: Variables) {
  if (url === undefined || url.startsWith('https:')) return true;
  return allow !== undefined && isAllowedHost(new URL(url), allow);
}

/** One line, so that it can't add a header of its own. */
function parseSender(text: string): string | undefined {
  const found = /^(?:[^<>"\p{Cc}]{1,100} <(?<named>[^<>]+)>|(?<bare>[^<>]+))$/u.exec(text)?.groups;
  return normalizeEmail(found?.named ?? found?.bare ?? '') && text;
}

function parsePublicUrl(text: string): string | undefined {
  const { protocol, search, hash, username, password, href } = new URL(text);
  const isPlain = search === '' && hash === '' && username === '' && password === '';
  return /^https?:$/.test(protocol) && isPlain ? href.replace(/\/+$/, '') : undefined;
}

/** A URL that can stand on a line of its own: RFC 9116, 2.5.3 wants the scheme and forbids http. */
function parseContact(text: string): string | undefined {
  if (text.length > MAX_CONTACT_CHARS || !/^[\x21-\x7e]+$/.test(text)) return undefined;
  if (/^mailto:[^@?#,;<>]+@[^@?#,;<>]+$/.test(text)) return text;
  const { username, password, href } = new URL(text);
  return /^https:\/\//.test(text) && username === '' && password === '' ? href : undefined;
}

/** Where development keeps its master keys: beside the database file, or in `.rungate`. */
export function developmentKeyPath(databaseUrl: string): string {
  const file = fileOf(databaseUrl);
  return join(file === undefined ? '.rungate' : dirname(file), 'master-keys');
}

function fileOf(databaseUrl: string): string | undefined {
  return databaseUrl.startsWith('file:') ? filePath(databaseUrl) : undefined;
}

/**
 * The master keys of a development deployment: read from the file, or made with mode 600 and said
 * so in the log. Processes that start at once end with the same keys.
 *
 * @param path As {@link developmentKeyPath} gives it.
 * @returns `id:base64` with a 32-byte key.
 * @throws when the folder can't be written.
 */
export async function developmentMasterKeys(path: string, log: Log): Promise<string> {
  const found = await readKeys(path);
  if (found !== undefined) return found;
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  const made = `dev:${randomBytes(32).toString('base64')}\n`;
  const isMine = await createWhole(path, (draft) => writeFile(draft, made));
  if (isMine)
    log.warn('Made master keys for development; set RUNGATE_MASTER_KEYS instead.', { path });
  const keys = await readKeys(path);
  if (keys === undefined) throw new ConfigError([`${path} could not be read after it was made.`]);
  return keys;
}

/**
 * The configured master keys, or in development those of the key file.
 *
 * @throws {ConfigError} when that file can't be used.
 */
export async function masterKeysOf(config: Config, log: Log): Promise<string> {
  if (config.masterKeys !== undefined) return config.masterKeys;
  const path = developmentKeyPath(config.database.url);
  return await developmentMasterKeys(path, log).catch(unusable(KEY_FILE, path));
}

async function readKeys(path: string): Promise<string | undefined> {
  try {
    const text = await readFile(path, 'utf8');
    if (text.length > MAX_KEY_FILE_BYTES || text.trim() === '') {
      throw new ConfigError([`${path} does not hold master keys; wanted: id:base64,…`]);
    }
    return text.trim();
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw error;
  }
}

/**
 * The address a request came from: the socket's, or the right-most one in `X-Forwarded-For` that
 * is not a trusted proxy's, if the socket is one.
 *
 * @param socketAddress As the runtime gives it.
 * @returns The canonical address, v4-mapped as IPv4; undefined when the socket has none.
 */
export function clientAddress(
  socketAddress: string,
  headers: Headers,
  trustedProxies: readonly Cidr[],
): string | undefined {
  let client = canonicalAddress(socketAddress);
  if (client === undefined || !inCidrs(client, trustedProxies)) return client;
  const hops = (headers.get('x-forwarded-for') ?? '').split(',').slice(-MAX_HOPS);
  for (const hop of hops.reverse()) {
    const before = canonicalAddress(withoutPort(hop.trim()));
    if (before === undefined) return client;
    client = before;
    if (!inCidrs(client, trustedProxies)) return client;
  }
  return client;
}

/** Some proxies write `192.0.2.1:4711` or `[2001:db8::1]:4711`. */
function withoutPort(hop: string): string {
  return /^(?<host>\[[^\]]+\]|[\d.]+):\d{1,5}$/.exec(hop)?.groups?.host ?? hop;
}
