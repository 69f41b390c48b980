/** The README: its snippets run as they stand and print what it says; its tables equal the code. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { newMasterKey } from '../db/seal.ts';
import { type Config, readConfig } from '../functions/config.ts';
import { ERRORS } from '../schema/errors.ts';
import { judgePolicy, policySchema } from '../schema/policy.ts';
import { PROVIDERS } from '../schema/providers.ts';
import { ADMIN_ACTIONS } from '../schema/roles.ts';
import { nameRun } from '../schema/rules/identity.ts';
import { finish, type Running, start } from './process.ts';

const ROOT = join(import.meta.dir, '..');
const README = readFile('README.md');
const URL_SHOWN = 'http://127.0.0.1:8787';
const BIN = [dirname(process.execPath), join(ROOT, 'node_modules/.bin')];

const folder = mkdtempSync(join(tmpdir(), 'rungate-readme-'));
let server: Running | undefined;
let url = '';
let token = '';

function readFile(path: string): string {
  return readFileSync(join(ROOT, path), 'utf8');
}

/** The part of the README under a heading, as far as the next one of its level. */
function section(heading: string): string {
  const [, text] = README.split(`\n## ${heading}\n`);
  if (text === undefined) throw new Error(`the README has no section "${heading}"`);
  return text.split('\n## ')[0] ?? '';
}

/** A fenced block, and what the README says that it prints. */
interface Snippet {
  readonly language: string;
  readonly code: string;
  readonly prints: string | undefined;
}

function snippetsOf(text: string): Snippet[] {
  const fences = /^```(\w+)\n([\s\S]*?)^```\n(?:```text\n([\s\S]*?)^```\n)?/gm;
  return [...text.matchAll(fences)].map(([, language = '', code = '', prints]) => ({
    language,
    code,
    prints,
  }));
}

/** The cells of the first table whose heading begins with `first`, without marks of code. */
function tableOf(first: string): string[][] {
  const lines = README.split('\n');
  const at = lines.findIndex((line) => line.replace(/ +/g, ' ').startsWith(`| ${first} |`));
  const rows = lines.slice(at + 2);
  return rows
    .slice(
      0,
      rows.findIndex((line) => !line.startsWith('|')),
    )
    .map((line) => line.split(/(?<!\\)\|/).slice(1, -1))
    .map((cells) => cells.map((cell) => cell.trim().replaceAll('`', '')));
}

/** `…` stands for anything; runs of spaces are as wide as a table needs them. */
function pattern(shown: string): RegExp {
  const parts = shown.trim().split('…');
  const escaped = parts.map((part) =>
    part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&').replace(/ {2,}/g, ' +'),
  );
  return new RegExp(`^${escaped.join('[\\s\\S]*?')}$`);
}

type Env = Readonly<Record<string, string | undefined>>;

const ENV: Env = {
  PATH: [...BIN, process.env.PATH].join(delimiter),
  HOME: folder,
  PORT: '0',
  RUNGATE_DATABASE_URL: `file:${folder}/rungate.db`,
};

/** Runs a script as the README's reader would, but with the port and the token of this server. */
async function run(script: string, env: Env = {}): Promise<string> {
  const text = script
    .replaceAll(URL_SHOWN, url)
    .replaceAll('npx bun', 'bun')
    .replaceAll(' rungate.json', ` ${folder}/rungate.json`);
  const child = Bun.spawn(['sh', '-eu', '-c', text], {
    cwd: ROOT,
    env: { ...ENV, AGENT_TOKEN: token, ...env },
    stdout: 'pipe',
    stderr: 'pipe',
  });
  const { code, stdout, stderr } = await finish(child);
  expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
  return stdout.trim();
}

/** Runs snippets one after the other, each of which must print what the README says. */
async function runAll(snippets: readonly Snippet[], env: Env = {}): Promise<void> {
  for (const { code, prints } of snippets) {
    const stdout = await run(code, env);
    expect(stdout).toMatch(pattern(prints ?? ''));
  }
}

beforeAll(async () => {
  server = await start([process.execPath, join(ROOT, 'web/cli/main.ts'), 'serve'], {
    ready: /run ceiling first-run/,
    env: { ...ENV, NODE_ENV: undefined, RUNGATE_LOG: 'warn' },
  });
  url = /serves on (\S+)/.exec(server.output())?.[1] ?? '';
  token = /rg_agt_\w+/.exec(server.output())?.[0] ?? '';
});

afterAll(async () => {
  await server?.stop();
  rmSync(folder, { recursive: true, force: true });
});

describe('the snippets of the README', () => {
  const shellOf = (heading: string) =>
    snippetsOf(section(heading)).filter(({ language }) => language === 'sh');
  const sdk = snippetsOf(section('From an SDK'));
  const [variables] = sdk.filter(({ language }) => language === 'sh');
  const probe = ['python3', '-c', 'import openai, anthropic'];
  const hasPython = Bun.which('python3') !== null && Bun.spawnSync(probe).exitCode === 0;
  const hasCurl = Bun.which('curl') !== null;

  test.skipIf(!hasCurl)(
    'a first call gets its answer, its cost, its trail, and the 402 at the ceiling',
    async () => {
      const snippets = shellOf('A first governed call');
      expect(snippets).toHaveLength(4);
      await runAll(snippets);
    },
  );

  /** Each with the name of a test: what its first line imports. */
  const named = (snippets: readonly Snippet[]): [string, Snippet][] =>
    snippets.map((snippet) => [`"${snippet.code.split('\n')[0]}" and on`, snippet]);

  const typescript = sdk.filter(({ language }) => language === 'ts');
  test('each SDK in TypeScript has a snippet', () => expect(typescript).toHaveLength(2));

  test.each(named(typescript))('%s', async (_, { code, prints }) => {
    const stdout = await run(`${variables?.code}\nexec bun -e "$SNIPPET"`, { SNIPPET: code });
    expect(stdout).toMatch(pattern(prints ?? ''));
  });

  test('those in TypeScript pass the strictest type check', async () => {
    // Where a module finds the packages that it imports; nothing there is kept.
    const draft = mkdtempSync(join(ROOT, 'node_modules', '.readme-'));
    try {
      const files = typescript.map(({ code }, at) => {
        const file = join(draft, `snippet-${at}.ts`);
        writeFileSync(file, code);
        return `./snippet-${at}.ts`;
      });
      const config = { extends: join(ROOT, 'tsconfig.json'), files, include: [] };
      writeFileSync(join(draft, 'tsconfig.json'), JSON.stringify(config));
      expect(await run(`tsc --noEmit -p '${draft}'`)).toBe('');
    } finally {
      rmSync(draft, { recursive: true });
    }
  });

  const python = sdk.filter(({ language }) => language === 'python');
  test('each SDK in Python has a snippet', () => expect(python).toHaveLength(2));

  test.skipIf(!hasPython).each(named(python))('%s', async (_, { code, prints }) => {
    const stdout = await run(`${variables?.code}\nexec python3 -c "$SNIPPET"`, { SNIPPET: code });
    expect(stdout).toMatch(pattern(prints ?? ''));
  });

  test('production: a master key, an org, and a file that is applied', async () => {
    const snippets = snippetsOf(section('Going to production'));
    const manifest = snippets.find(({ language }) => language === 'json');
    writeFileSync(join(folder, 'rungate.json'), manifest?.code ?? '');
    await runAll(
      snippets.filter(({ language }) => language === 'sh'),
      {
        NODE_ENV: 'production',
        RUNGATE_DATABASE_URL: `file:${folder}/production.db`,
        RUNGATE_MASTER_KEYS: newMasterKey('first'),
        OPENAI_API_KEY: 'sk-openai',
        ANTHROPIC_API_KEY: 'sk-anthropic',
        LAB_API_KEY: 'sk-lab',
      },
    );
  });

  test.skipIf(!hasCurl)('governing: what an admin token reads', async () => {
    const made = JSON.parse(
      await run('bun web/cli/main.ts init --org Reader --email r@example.com'),
    );
    await runAll(shellOf('Governing it'), { RUNGATE_TOKEN: made.adminToken });
  });

  test('the policy that is shown is a valid one, with every key that there is', () => {
    const [shown] = snippetsOf(section('Policies')).filter(({ language }) => language === 'json');
    const document = JSON.parse(shown?.code ?? '');
    expect(judgePolicy(document)).toEqual([]);
    expect(Object.keys(document).sort()).toEqual(Object.keys(policySchema.shape).sort());
  });

  test('Deno gets the permissions that its entry asks for', () => {
    const asked = /deno run ([\s\S]*?) functions\/deno\.ts/.exec(
      readFile('functions/deno.ts'),
    )?.[1];
    const shown = /deno run (.*) functions\/deno\.ts/.exec(README)?.[1];
    expect(shown?.split(' ')).toEqual(asked?.split(/[\s*]+/) ?? []);
  });

  test('the commands are scripts of the package', () => {
    const { scripts } = JSON.parse(readFile('package.json'));
    const named = [...README.matchAll(/npx bun (?:run )?(\w+)/g)].map(([, name]) => name);
    for (const name of named) expect(scripts).toHaveProperty(name ?? '');
  });

  test('the command line is called as it works with Node and npm alone, in messages too', async () => {
    const help = await run('bun web/cli/main.ts --help');
    const commands = [...help.matchAll(/^ {2}([a-z]+) .*/gm)].map(([, name]) => name).join('|');
    const bare = new RegExp(`(?<!npx bun run )\\brungate (?:${commands})\\b|web/cli/main`, 'g');
    const sources = ['functions', 'web/cli', 'schema'].flatMap((part) =>
      readdirSync(join(ROOT, part), { recursive: true, encoding: 'utf8' })
        .filter((name) => name.endsWith('.ts'))
        .map((name) => readFile(join(part, name)).replace(/^ *(?:\/\*\*|\*|\/\/).*$/gm, '')),
    );
    for (const text of [README, ...sources]) expect(text.match(bare) ?? []).toEqual([]);
  });
});

describe('the tables of the README', () => {
  test('of the environment names every variable and its default', () => {
    const config = readConfig({});
    const defaults: Record<string, string> = {
      PORT: String(config.port),
      HOST: config.host,
      RUNGATE_DATABASE_URL: config.database.url,
      RUNGATE_DATABASE_SYNCHRONOUS: config.database.synchronous,
      RUNGATE_MAX_ADMIN_REQUESTS_PER_MINUTE: String(config.adminRequestsPerMinute),
      RUNGATE_LOG: config.logLevel,
      RUNGATE_DEMO: config.isDemo ? 'on' : 'off',
      RUNGATE_INTROSPECTION: config.isIntrospected ? 'on' : 'off',
    };
    const read = [...readFile('functions/config.ts').matchAll(/^ {2}([A-Z_]+): (?!z\.)\w/gm)];
    const wanted = read.map(([, name = '']) => [name, defaults[name] ?? 'none']);
    expect(wanted.length).toBeGreaterThan(5);
    expect(tableOf('variable').map((cells) => cells.slice(0, 2))).toEqual(wanted);
  });

  test('of the environment says none only where nothing is set', () => {
    const unset = (config: Config) => [
      config.database.authToken,
      config.masterKeys,
      config.publicUrl,
      config.trustedProxies.length,
      config.egressAllow.hosts.size + config.egressAllow.cidrs.length,
    ];
    expect(unset(readConfig({})).filter(Boolean)).toEqual([]);
  });

  test('of the refusals equals the codes', () => {
    const wanted = Object.entries(ERRORS).map(([code, { status, openai, anthropic }]) => [
      code,
      String(status),
      openai.type,
      openai.code,
      anthropic,
    ]);
    expect(tableOf('`rungate.code`')).toEqual(wanted);
  });

  test('of the names of a run is in the order that counts', () => {
    const trace = '0af7651916cd43dd8448eb211c80319c';
    const rows = tableOf('source').map(([sources = '']) => sources.split(', '));
    const [own = [], , headers = [], traceparent = [], members = []] = rows;
    expect([rows.length, own, traceparent]).toEqual([6, ['x-rungate-run-id'], ['traceparent']]);
    const value = (name: string) =>
      name === 'traceparent' ? `00-${trace}-b7ad6b7169203331-01` : name;
    const names = [...own, ...headers, ...traceparent];
    const given = new Headers(names.map((name) => [name, value(name)]));
    const body = { metadata: { rungate_run_id: 'r', session_id: 's' }, prompt_cache_key: 'c' };
    for (const name of names) {
      expect(nameRun(given, undefined, body)?.source).toBe(name);
      given.delete(name);
    }
    const found = [body, { ...body, metadata: { session_id: 's' } }, { prompt_cache_key: 'c' }];
    expect(found.map((part) => nameRun(given, undefined, part)?.source)).toEqual(members);
  });

  test('of the steps equals the path of a call', () => {
    const source = readFile('functions/proxy.ts');
    const imports = [...source.matchAll(/^import \{(.*)\} from '\.\/proxy\//gm)];
    const steps = new Set(imports.flatMap(([, names = '']) => names.match(/\b[a-z]\w+/g) ?? []));
    const called = [...source.matchAll(/(?:await|return|=) (\w+)\(.*\);/g)].map(
      ([, name = '']) => name,
    );
    const path = new Set(called.filter((name) => steps.has(name)));
    expect(tableOf('step').map(([name]) => name)).toEqual([...path]);
  });

  test('of the steps tells where each may stop a call, as the path does', () => {
    const source = readFile('functions/proxy.ts');
    const steps = [
      ...source.matchAll(/(?:await|return|=) (\w+)\(.*\); \/\/ +((?:\d{3}(?:, )?)*)/g),
    ];
    const wanted = steps.map(([, name, statuses]) => [name, statuses]);
    expect(tableOf('step').map(([name, , statuses]) => [name, statuses])).toEqual(wanted);
    const known = new Set(['202', ...Object.values(ERRORS).map(({ status }) => String(status))]);
    const told = wanted.flatMap(([, statuses = '']) => statuses.match(/\d+/g) ?? []);
    expect(told.filter((status) => !known.has(status))).toEqual([]);
  });

  test('of the folders names all of them', () => {
    const folders = readdirSync(ROOT, { withFileTypes: true })
      .filter((entry) => entry.isDirectory() && /^[a-z]+$/.test(entry.name))
      .map(({ name }) => `${name}/`);
    expect(tableOf('folder').map(([name]) => name)).toEqual(expect.arrayContaining(folders));
  });

  test('of the commands names every command', async () => {
    const shown = tableOf('command').map(([command]) => command?.replace('\\', ''));
    const help = await run('bun web/cli/main.ts --help');
    for (const [, name = ''] of help.matchAll(/^ {2}([a-z]+) .*/gm)) {
      if (name !== 'help') expect(shown.join(' ')).toContain(name);
    }
  });

  test('of the limits equals the constants', () => {
    const limits: [shown: string, path: string, constant: RegExp][] = [
      ['32 MiB as sent', 'functions/proxy/call.ts', /maxEncodedBytes: 32 \* 1024 \* 1024/],
      ['64 MiB decoded', 'functions/proxy/call.ts', /maxDecodedBytes: 64 \* 1024 \* 1024/],
      ['32 KiB in all', 'functions/proxy/call.ts', /MAX_HEADERS_CHARS = 32 \* 1024/],
      ['| 64 MiB |', 'functions/proxy/settle.ts', /MAX_ANSWER_BYTES = 64 \* 1024 \* 1024/],
      ['| 32 MiB |', 'functions/proxy/meter.ts', /MAX_EVENT_BYTES = 32 \* 1024 \* 1024/],
      ['10 s, 600 s, 300 s', 'functions/proxy/attempt.ts', /10_000, .*600_000, .*300_000/],
      ['4 MiB, 100,000 characters', 'schema/policy.ts', /MAX_POLICY_LENGTH = 100_000/],
      ['4 MiB, 100,000 characters', 'web/cli/manifest.ts', /MAX_FILE_BYTES = 4 \* 1024 \* 1024/],
      ['200 steps', 'functions/api.ts', /MAX_PAGE = 200/],
      ['lease of 15 seconds', 'functions/proxy/flight.ts', /LEASE_MS = 15_000/],
      ['up to 30 seconds', 'functions/serve.ts', /SHUTDOWN_LIMIT_MS = 30_000/],
      ['up to 256 characters', 'schema/rules/identity.ts', /MAX_RUN_NAME_LENGTH = 256/],
    ];
    for (const [shown, path, constant] of limits) {
      expect(README.replace(/ +/g, ' ')).toContain(shown);
      expect(readFile(path)).toMatch(constant);
    }
  });

  test('the providers are those that there are', () => {
    const [, listed = ''] = /Providers: (.*)\./.exec(README) ?? [];
    const shown = listed.replace(' and ', ', ').split(', ');
    expect(shown.map((name) => name.replaceAll('`', '')).sort()).toEqual(
      PROVIDERS.map(({ name }) => name).sort(),
    );
  });

  test('it has fewer than 550 lines', () => {
    expect(README.split('\n').length).toBeLessThan(550);
  });
});

test('the README tells of as many actions as there are', () => {
  const [, told] = /which of the (\d+) actions/.exec(README) ?? [];
  expect(Number(told)).toBe(ADMIN_ACTIONS.length);
});
