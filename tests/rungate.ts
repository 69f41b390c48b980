/** A whole deployment for a test: a database in a folder of its own, set up by the CLI, and served. */

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Database, openDatabase } from '../db/client.ts';
import type { Step } from '../db/steps.ts';
import type { PolicyDocument } from '../schema/policy.ts';
import { finish, type Running, start } from './process.ts';
import { UPSTREAM_KEY } from './upstream.ts';

export type Runtime = 'bun' | 'deno';

/** What a model costs, in dollars per million tokens; the model is written `key/model`. */
interface Price {
  readonly model: string;
  readonly inputPerMillion: string;
  readonly outputPerMillion: string;
  readonly cacheReadPerMillion?: string;
  readonly cacheWritePerMillion?: string;
}

/** What a test wants to be set up. */
export interface Wanted {
  readonly runtime?: Runtime;
  /** Base URL of the test upstream, without `/v1`; the org's keys `openai` and `anthropic` go there. */
  readonly upstreamUrl?: string;
  readonly policy?: PolicyDocument;
  /** Names of agents; each gets the policy. */
  readonly agents?: readonly string[];
  /** Prices beside those of `test-model`, as a manifest has them. */
  readonly prices?: readonly Price[];
  /** The tier of service that calls with its keys get which ask for none. */
  readonly serviceTier?: string;
  readonly env?: Readonly<Record<string, string>>;
  /** How many processes serve the same database. */
  readonly processes?: number;
}

/** A deployment that serves. */
export interface Deployment {
  /** Where the first process listens, without a path. */
  readonly url: string;
  readonly urls: readonly string[];
  /** The first agent's token, and all of them by name. */
  readonly token: string;
  readonly tokens: Readonly<Record<string, string>>;
  /** The owner's admin token, which may do everything. */
  readonly adminToken: string;
  readonly folder: string;
  readonly servers: readonly Running[];
  /** Runs the CLI on the deployment's database. */
  cli(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }>;
  /** A connection of the test's own to the database. */
  database(): Promise<Database>;
  /** Starts a further process on the same database, on the same runtime unless told otherwise. */
  serve(runtime?: Runtime): Promise<Running>;
  /** Everything that the processes have written. */
  logs(): string;
  stop(): Promise<void>;
}

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const BIN = join(ROOT, 'node_modules', '.bin');

/** What Deno may do for a server: what its entry's header says, and nothing more. */
const DENO_PERMISSIONS = [
  '--allow-net',
  '--allow-env',
  '--allow-ffi',
  '--allow-sys',
  '--allow-read',
  '--allow-write',
];

/** What starts the server on each runtime. */
export const COMMANDS: Readonly<Record<Runtime, readonly string[]>> = {
  bun: [process.execPath, join(ROOT, 'functions/bun.ts')],
  deno: [join(BIN, 'deno'), 'run', ...DENO_PERMISSIONS, join(ROOT, 'functions/deno.ts')],
};

/** What a server logs once it listens, with its URL. */
export const SERVING = /"message":"serving".*"url":"(?<url>[^"]+)"/;

/** Prices of models that the tests ask for under the keys `openai` and `anthropic`. */
const TEST_PRICES: readonly Price[] = ['openai/test-model', 'anthropic/test-model'].map(
  (model) => ({
    model,
    inputPerMillion: '1.00',
    outputPerMillion: '4.00',
  }),
);

/** Sets up an org `acme` with a policy `test` and serves it. Always stop it. */
export async function deploy(wanted: Wanted = {}): Promise<Deployment> {
  const folder = await mkdtemp(join(tmpdir(), 'rungate-test-'));
  const databaseUrl = wanted.env?.RUNGATE_DATABASE_URL ?? `file:${folder}/rungate.db`;
  const env = {
    HOST: '127.0.0.1',
    PORT: '0',
    RUNGATE_DATABASE_URL: databaseUrl,
    RUNGATE_EGRESS_ALLOW: '127.0.0.1/32',
    RUNGATE_LOG: 'info',
    UPSTREAM_KEY,
    ...wanted.env,
  };
  const servers: Running[] = [];
  const serve = async (runtime = wanted.runtime ?? 'bun') => {
    const running = await start(COMMANDS[runtime], {
      ready: SERVING,
      env,
      cwd: ROOT,
    });
    servers.push(running);
    return running;
  };
  const cli = (...args: string[]) => runCli(args, env);
  const stop = async () => {
    await Promise.all(servers.map((server) => server.stop()));
    await rm(folder, { recursive: true, force: true });
  };
  try {
    const { tokens, adminToken } = await furnish(cli, folder, wanted);
    for (let count = 0; count < (wanted.processes ?? 1); count++) await serve();
    const urls = servers.map(({ ready }) => ready.groups?.url ?? '');
    return {
      url: urls[0] ?? '',
      urls,
      token: Object.values(tokens)[0] ?? '',
      tokens,
      adminToken,
      folder,
      servers,
      cli,
      database: () => openDatabase({ url: databaseUrl }),
      serve,
      logs: () => servers.map((server) => server.output()).join('\n'),
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

/**
 * The trail of a run in the order of time, as its agent reads it.
 *
 * @param token The token of the run's agent; that of the first one by default.
 */
export async function readTrail(
  { url, token: first }: Deployment,
  run: string,
  token = first,
): Promise<Step[]> {
  const path = `/v1/runs/${encodeURIComponent(run)}/steps?limit=200`;
  const response = await fetch(`${url}${path}`, { headers: { authorization: `Bearer ${token}` } });
  if (!response.ok) throw new Error(`no trail of ${run}: ${await response.text()}`);
  const { steps } = (await response.json()) as { steps: Step[] };
  return steps.sort((one, other) => one.startedAt - other.startedAt);
}

const SETTLE_TRIES = 200;
const SETTLE_PAUSE_MS = 10;

/** The trail of a run once it has this many steps and each of them is settled. */
export async function readSettled(deployment: Deployment, run: string, count = 1): Promise<Step[]> {
  for (let left = SETTLE_TRIES; left > 0; left--) {
    const steps = await readTrail(deployment, run).catch(() => []);
    if (steps.length >= count && steps.every((step) => step.settledAt !== null)) return steps;
    await Bun.sleep(SETTLE_PAUSE_MS);
  }
  throw new Error(`${run} has not settled: ${deployment.logs().slice(-2_000)}`);
}

async function furnish(
  cli: Deployment['cli'],
  folder: string,
  { upstreamUrl, policy = {}, agents = ['tester'], prices = [], serviceTier }: Wanted,
): Promise<Pick<Deployment, 'tokens' | 'adminToken'>> {
  const key = (name: string, provider: string) => ({
    name,
    provider,
    baseUrl: `${upstreamUrl}/v1`,
    ...(serviceTier === undefined ? {} : { serviceTier }),
    secret: { env: 'UPSTREAM_KEY' },
  });
  const keys = upstreamUrl ? [key('openai', 'openai'), key('anthropic', 'anthropic')] : [];
  const demo = { name: 'demo', provider: 'demo', secret: { value: 'demo' } };
  const manifest = {
    providerKeys: [...keys, demo],
    prices: upstreamUrl ? [...TEST_PRICES, ...prices] : [],
    policies: [{ name: 'test', document: policy }],
    agents: agents.map((name) => ({ name, policy: 'test' })),
  };
  const path = join(folder, 'rungate.json');
  await Bun.write(path, JSON.stringify(manifest));
  const first = await succeed(
    cli('init', '--org', 'Acme', '--email', 'owner@example.com', '--json'),
  );
  const { adminToken } = JSON.parse(first) as { adminToken: string };
  const applied = await succeed(cli('apply', path, '--org', 'acme', '--json'));
  const made = JSON.parse(applied) as { tokens: { agent: string; token: string }[] };
  const tokens = Object.fromEntries(made.tokens.map(({ agent, token }) => [agent, token]));
  return { tokens, adminToken };
}

async function succeed(run: ReturnType<Deployment['cli']>): Promise<string> {
  const { code, stdout, stderr } = await run;
  if (code !== 0) throw new Error(`the CLI failed (${code}): ${stderr}`);
  return stdout;
}

async function runCli(args: readonly string[], env: Readonly<Record<string, string>>) {
  const command = [process.execPath, join(ROOT, 'web/cli/main.ts'), ...args];
  const child = Bun.spawn(command, {
    cwd: ROOT,
    env: { ...process.env, RUNGATE_TOKEN: undefined, RUNGATE_URL: undefined, ...env },
    stdout: 'pipe',
    stderr: 'pipe',
  });
  return finish(child);
}
