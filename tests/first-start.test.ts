/** The first start: what it makes, what it prints, and that what it prints works as it is pasted. */

import { afterAll, describe, expect, test } from 'bun:test';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { openDatabase } from '../db/client.ts';
import { newMasterKey } from '../db/seal.ts';
import { finish, type Running, start } from './process.ts';
import { COMMANDS, SERVING } from './rungate.ts';

const MAIN = join(import.meta.dir, '../web/cli/main.ts');
const TOKEN = /rg_agt_[A-Za-z0-9]+/g;
const hasCurl = Bun.which('curl') !== null;
const hasIpv6 = networkInterfaces().lo?.some(({ family }) => family === 'IPv6') ?? false;
/** The last line of each thing that a start may say. */
const SAID = /run ceiling first-run|^A new token|^Make an org|^\{"url"/;

const folders: string[] = [];
const servers: Running[] = [];

afterAll(async () => {
  await Promise.all(servers.map((server) => server.stop()));
  for (const folder of folders) await rm(folder, { recursive: true, force: true });
});

type Env = Readonly<Record<string, string | undefined>>;

const CLEAN: Env = {
  ...Object.fromEntries(
    Object.keys(process.env)
      .filter((name) => name.startsWith('RUNGATE_') || name === 'HOST')
      .map((name) => [name, undefined]),
  ),
  NODE_ENV: undefined,
  PORT: '0',
};

async function makeFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'rungate-first-'));
  folders.push(folder);
  return folder;
}

interface Started {
  readonly url: string;
  readonly stdout: string;
  readonly tokens: readonly string[];
  readonly server: Running;
}

/** Serves from a folder as its user would; what it logs goes to a file there. */
async function serve(folder: string, env: Env = {}, ...options: string[]): Promise<Started> {
  const shell = ['sh', '-c', 'exec "$0" "$@" 2>>stderr.log'];
  const command = [...shell, process.execPath, MAIN, 'serve', ...options];
  const server = await start(command, { ready: SAID, cwd: folder, env: { ...CLEAN, ...env } });
  servers.push(server);
  const stdout = server.output();
  const url = /http:\/\/[\w.:[\]]+/.exec(stdout)?.[0] ?? '';
  return { url, stdout, tokens: [...new Set(stdout.match(TOKEN))], server };
}

/** Runs a script in a shell and returns what it prints. */
async function shell(script: string, folder: string): Promise<string> {
  const options = { cwd: folder, env: cleanEnv(), stdout: 'pipe', stderr: 'ignore' } as const;
  const child = Bun.spawn(['sh', '-euc', script], options);
  const [text, code] = await Promise.all([new Response(child.stdout).text(), child.exited]);
  expect(code).toBe(0);
  return text;
}

function cleanEnv(): Record<string, string> {
  const env = Object.entries({ ...process.env, ...CLEAN });
  return Object.fromEntries(env.flatMap(([name, value]) => (value ? [[name, value]] : [])));
}

/** The indented commands of a text, each with the lines that it goes on in. */
function commandsOf(text: string): string[] {
  const commands = text.match(/^ +(?:curl|export|npx) (?:.*\\\n)*.*$/gm) ?? [];
  return commands.map((command) => command.trim());
}

/** A printed command of the CLI, without what fetches Bun and finds the script. */
const local = (command: string) =>
  command.replace('npx bun run rungate', `'${process.execPath}' '${MAIN}'`);

async function count(folder: string, table: string): Promise<number> {
  const db = await openDatabase({ url: `file:${folder}/.rungate/rungate.db` });
  try {
    const rows = await db.read(`select count(*) as rows from ${table}`, []);
    return Number(rows[0]?.rows);
  } finally {
    await db.close();
  }
}

async function statusOf({ url }: Started, token: string): Promise<number> {
  const headers = { authorization: `Bearer ${token}` };
  return (await fetch(`${url}/v1/models`, { headers })).status;
}

describe('the first start', () => {
  test.skipIf(!hasCurl)(
    'prints calls that work as they are pasted, up to the ceiling',
    async () => {
      const folder = await makeFolder();
      const { stdout, tokens } = await serve(folder);
      expect(tokens).toHaveLength(1);
      const [call = '', show = '', read = ''] = commandsOf(stdout);
      const raise = commandsOf(stdout).at(-1) ?? '';
      const answer = JSON.parse(await shell(call, folder));
      expect(answer.choices[0].message.content).toStartWith('demo-large heard you say: "Hello');
      expect(JSON.parse(await shell(read, folder))).toMatchObject({
        name: 'first-run',
        status: 'open',
        stepCount: 1,
        ceiling: '0.01',
        spent: expect.stringMatching(/^0\.0+[1-9]/),
      });
      expect(await shell(local(show), folder)).toMatch(/model_call +demo-large .* ok 200/);
      for (let nth = 2; nth <= 8; nth++) {
        expect(JSON.parse(await shell(call, folder))).toHaveProperty('choices');
      }
      expect(JSON.parse(await shell(call, folder)).error.code).toBe('insufficient_quota');
      expect(await shell(local(show), folder)).toMatch(/denial .* budget_exceeded 402/);
      await shell(local(raise), folder);
      expect(JSON.parse(await shell(call, folder))).toHaveProperty('choices');
    },
  );

  test.skipIf(!hasCurl)('prints the variables that lead an SDK here', async () => {
    const folder = await makeFolder();
    const { stdout } = await serve(folder);
    const exports = commandsOf(stdout).filter((command) => command.startsWith('export'));
    const probe = `
      curl -s -H "authorization: Bearer $OPENAI_API_KEY" "$OPENAI_BASE_URL/models"
      curl -s -H "x-api-key: $ANTHROPIC_API_KEY" -H 'anthropic-version: 2023-06-01' \\
        "$ANTHROPIC_BASE_URL/v1/models/demo-small"`;
    const text = await shell(`${exports.join('\n')}\n${probe}`, folder);
    expect(text).toContain('"id":"demo-large"');
    expect(text).toContain('"display_name":"demo-small"');
  });

  test('lets the built-in model call a tool within the ceiling', async () => {
    const { url, tokens } = await serve(await makeFolder());
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${tokens[0]}`, 'content-type': 'application/json' },
      body: JSON.stringify({
        model: 'demo-small',
        messages: [{ role: 'user', content: 'call weather {"city":"Oslo"}' }],
        tools: [{ type: 'function', function: { name: 'weather' } }],
      }),
    });
    expect(await response.text()).toContain('"name":"weather"');
  });

  test('gives programs one line of JSON, and keeps the log on stderr', async () => {
    const folder = await makeFolder();
    const first = await serve(folder, {}, '--json');
    const { url, demo } = JSON.parse(first.stdout);
    expect(first.stdout).toBe(`${JSON.stringify({ url, demo })}\n`);
    expect(demo).toEqual({ org: 'demo', agent: 'demo-agent', token: first.tokens[0] });
    expect(await statusOf(first, demo.token)).toBe(200);
    const second = await serve(folder, {}, '--json');
    expect(second.stdout).toBe(`{"url":"${second.url}"}\n`);
    const log = await readFile(join(folder, 'stderr.log'), 'utf8');
    for (const line of log.trim().split('\n')) expect(JSON.parse(line)).toHaveProperty('level');
    expect(log).not.toMatch(TOKEN);
  });

  test('ends at once and with 0 when it is told to', async () => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      const { server } = await serve(await makeFolder());
      expect(await server.stop(signal)).toEqual({ code: 0, signal: null });
    }
  });

  test('is not used up by a port that is taken', async () => {
    const folder = await makeFolder();
    const taken = createServer();
    const port = await new Promise<number>((resolve) => {
      taken.listen(0, '127.0.0.1', () => resolve((taken.address() as { port: number }).port));
    });
    await expect(serve(folder, { PORT: String(port) })).rejects.toThrow('ended with 1');
    taken.close();
    expect((await serve(folder)).tokens).toHaveLength(1);
  });

  test('makes one org where several processes start at once', async () => {
    const folder = await makeFolder();
    const all = await Promise.all(Array.from({ length: 4 }, () => serve(folder)));
    const [token = '', ...others] = all.flatMap(({ tokens }) => tokens);
    expect(others).toEqual([]);
    for (const table of ['orgs', 'agents', 'policies', 'provider_keys', 'policy_versions']) {
      expect([table, await count(folder, table)]).toEqual([table, 1]);
    }
    for (const started of all) expect(await statusOf(started, token)).toBe(200);
  });
});

describe('a later start', () => {
  test('says in two lines where it serves and how to get a token, which works', async () => {
    const folder = await makeFolder();
    const first = await serve(folder);
    await first.server.stop();
    const second = await serve(folder);
    const [serves, rotate = '', ...rest] = second.stdout.trimEnd().split('\n');
    expect(serves).toBe(`Rungate serves on ${second.url}`);
    expect(rest).toEqual([]);
    expect(second.tokens).toEqual([]);
    expect(await count(folder, 'orgs')).toBe(1);
    expect(await statusOf(second, first.tokens[0] ?? '')).toBe(200);
    expect(rotate).toStartWith('A new token: npx bun run rungate agent token rotate demo-agent');
    const token = await shell(local(rotate.replace('A new token: ', '')), folder);
    expect(await statusOf(second, token.trim())).toBe(200);
    expect(await statusOf(second, first.tokens[0] ?? '')).toBe(401);
  });

  test('adds nothing to a database that has an org already', async () => {
    const folder = await makeFolder();
    await shell(`'${process.execPath}' '${MAIN}' init --org Acme --email o@example.com`, folder);
    const { stdout, tokens } = await serve(folder);
    expect(tokens).toEqual([]);
    expect(stdout).toContain('agent token rotate AGENT --org ORG');
    expect([await count(folder, 'orgs'), await count(folder, 'agents')]).toEqual([1, 0]);
  });
});

/** Values of variables that are well-formed, and lead to nothing that can be used. */
const UNUSABLE: readonly [name: string, value: string][] = [
  ['RUNGATE_DATABASE_URL', 'file://otherhost/tmp/x.db'],
  ['RUNGATE_DATABASE_URL', 'file:a-file/x.db'],
  ['RUNGATE_DATABASE_URL', 'file:/proc/x/x.db'],
  ['RUNGATE_DATABASE_URL', 'file::memory:'],
  ['RUNGATE_DELETION_LEDGER', 'a-folder'],
  ['RUNGATE_DELETION_LEDGER', 'a-file'],
  ['RUNGATE_DELETION_LEDGER', 'a-file/ledger.jsonl'],
  ['RUNGATE_KEY_SHARES', 'a-file'],
  ['RUNGATE_KEY_SHARES', 'a-file/shares'],
];

/** Runs a command in a folder that has a file and a folder. */
async function misled(command: string[], name: string, value: string) {
  const cwd = await makeFolder();
  await writeFile(join(cwd, 'a-file'), 'not a ledger');
  await mkdir(join(cwd, 'a-folder'));
  const env = { ...process.env, ...CLEAN, RUNGATE_LOG: 'error', [name]: value };
  return await finish(Bun.spawn(command, { cwd, env, stdout: 'pipe', stderr: 'pipe' }));
}

test.each(UNUSABLE)(
  'the command line names %s where it can’t be used, as %s',
  async (name, value) => {
    const command = [process.execPath, MAIN, 'serve'];
    const { code, stdout, stderr } = await misled(command, name, value);
    expect([code, stdout]).toEqual([2, '']);
    expect(stderr.trim().split('\n')).toEqual([expect.stringContaining(name)]);
  },
);

describe.each(Object.entries(COMMANDS))('the entry for %s', (_, command) => {
  const KEYS = newMasterKey('first');
  const ending = async (env: Env) => {
    const options = { cwd: await makeFolder(), env: { ...process.env, ...CLEAN, ...env } };
    return await finish(Bun.spawn([...command], { ...options, stdout: 'pipe', stderr: 'pipe' }));
  };

  test('says in plain words what of the configuration is wrong, and ends with 2', async () => {
    const { code, stdout, stderr } = await ending({ PORT: 'many', HOST: '0.0.0.0' });
    expect([code, stdout]).toEqual([2, '']);
    expect(stderr).toStartWith('rungate: The configuration is not valid:\n- PORT is "many"');
    expect(stderr.trim().split('\n')).toHaveLength(3);
  });

  test.each([
    ['weak', `first:${Buffer.alloc(32).toString('base64')}`, 'Master key 1 is weak'],
    ['listed twice', `${KEYS},${KEYS}`, 'Master key 2 has the id of an earlier one'],
  ])('names the variable of a master key that is %s, but not the key', async (_, keys, problem) => {
    const { code, stdout, stderr } = await ending({ RUNGATE_MASTER_KEYS: keys });
    expect([code, stdout]).toEqual([2, '']);
    expect(stderr).toContain(`\n- RUNGATE_MASTER_KEYS: ${problem}`);
    expect(stderr).not.toContain(keys.slice('first:'.length, 40));
    expect(stderr.trim().split('\n')).toHaveLength(2);
  });

  test.each(UNUSABLE)(
    'names %s where it can’t be used, as %s, and ends with 2',
    async (name, value) => {
      const { code, stdout, stderr } = await misled([...command], name, value);
      expect([code, stdout]).toEqual([2, '']);
      const [head, problem, ...rest] = stderr.trim().split('\n');
      expect([head, rest]).toEqual(['rungate: The configuration is not valid:', []]);
      expect(problem).toContain(name);
    },
  );

  test('says so of a database that can’t be opened, and ends with 1', async () => {
    const { code, stdout, stderr } = await ending({
      ...{ RUNGATE_DATABASE_URL: 'file:.', RUNGATE_LOG: 'error' },
    });
    expect([code, stdout]).toEqual([1, '']);
    expect(stderr).toMatch(/^rungate: The database refused: [^\n]+\n$/);
  });

  test('says so of a place where it can’t listen, and ends with 1', async () => {
    const taken = createServer().listen(0, '127.0.0.1');
    await once(taken, 'listening');
    const places: Env[] = [
      { PORT: String((taken.address() as AddressInfo).port) },
      // Of a range for documentation: no machine has it (RFC 5737).
      { HOST: '192.0.2.1', RUNGATE_MASTER_KEYS: KEYS },
    ];
    for (const place of places) {
      const { code, stdout, stderr } = await ending({ RUNGATE_LOG: 'silent', ...place });
      expect([code, stdout]).toEqual([1, '']);
      const { HOST = '127.0.0.1', PORT = '0' } = place;
      const said = `rungate: The server can't listen on HOST ${HOST}, PORT ${PORT}: `;
      expect([stderr.slice(0, said.length), stderr.split('\n').length]).toEqual([said, 2]);
    }
    taken.close();
  });

  test.skipIf(!hasIpv6)('tells a URL that can be called, of an IPv6 address too', async () => {
    const options = { cwd: await makeFolder(), env: { ...CLEAN, HOST: '::1' } };
    const server = await start(command, { ready: SERVING, ...options });
    servers.push(server);
    expect((await fetch(`${server.ready.groups?.url}/healthz`)).status).toBe(200);
  });
});

describe('in production', () => {
  const RUNGATE_MASTER_KEYS = newMasterKey('first');

  test.each<[string, Env, number]>([
    ['nothing is made', { NODE_ENV: 'production', RUNGATE_MASTER_KEYS }, 0],
    [
      'the demo is made if it is asked for',
      { NODE_ENV: 'production', RUNGATE_MASTER_KEYS, RUNGATE_DEMO: 'on' },
      1,
    ],
    ['as in development, RUNGATE_DEMO=off makes nothing', { RUNGATE_DEMO: 'off' }, 0],
  ])('%s', async (_, env, orgs) => {
    const folder = await makeFolder();
    const { stdout, tokens } = await serve(folder, env);
    expect(tokens).toHaveLength(orgs);
    expect(await count(folder, 'orgs')).toBe(orgs);
    if (orgs === 0) expect(stdout).toContain('\nMake an org: npx bun run rungate init');
  });
});
