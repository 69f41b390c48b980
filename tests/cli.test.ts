/** The command line: what it prints, what it leaves in the database, and how it fails. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { findAgent } from '../db/agents.ts';
import { type Database, openDatabase } from '../db/client.ts';
import { reserve } from '../db/holds.ts';
import type { Org } from '../db/org.ts';
import { findOrg } from '../db/orgs.ts';
import { readAgentPolicy } from '../db/policies.ts';
import { blockRun, findRun, openRun } from '../db/runs.ts';
import { hashToken, newId, newMasterKey } from '../db/seal.ts';
import { settlement } from '../db/settlements.ts';
import { recordRemark } from '../db/steps.ts';
import { findCredential, mintToken } from '../db/tokens.ts';
import type { AgentId, RunId } from '../schema/ids.ts';
import { nanos } from '../schema/money.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import { alignTable } from '../web/cli/table.ts';
import { finish } from './process.ts';

const MAIN = join(import.meta.dir, '../web/cli/main.ts');
const CANARY = 'sk-canary-5f9d2c7be1';
const NEW_CANARY = 'sk-canary-0a1b2c3d4e';
const OLD_KEY = newMasterKey('old');
const NEW_KEY = newMasterKey('new');
const HIDDEN = [CANARY, NEW_CANARY, OLD_KEY.slice(4), NEW_KEY.slice(4)];
const DAY_MS = 86_400_000;

type Env = Readonly<Record<string, string>>;

interface Ended {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

const folder = mkdtempSync(join(tmpdir(), 'rungate-cli-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Runs the real command in a process; no secret may ever be printed. */
async function rungate(args: readonly string[], env: Env = {}, input = ''): Promise<Ended> {
  const child = Bun.spawn([process.execPath, MAIN, ...args], {
    cwd: folder,
    env: {
      PATH: process.env.PATH ?? '',
      HOME: folder,
      RUNGATE_DATABASE_URL: `file:${join(folder, 'main.db')}`,
      RUNGATE_MASTER_KEYS: OLD_KEY,
      OPENAI_API_KEY: CANARY,
      ...env,
    },
    stdin: new Blob([input]),
    stdout: 'pipe',
    stderr: 'pipe',
  });
  const { code, stdout, stderr } = await finish(child);
  for (const secret of HIDDEN) expect(stdout + stderr).not.toContain(secret);
  return { code, stdout, stderr };
}

/** Runs a command that must succeed and print one line of JSON. */
async function json<T>(args: readonly string[], env: Env = {}, input = ''): Promise<T> {
  const { code, stdout, stderr } = await rungate([...args, '--json'], env, input);
  expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout).toMatch(/^\{.*\}\n$/);
  return JSON.parse(stdout) as T;
}

/** Runs a command that must fail with one line that says why, and print no result. */
async function failure(args: readonly string[], env: Env = {}, input = ''): Promise<Ended> {
  const ended = await rungate(args, env, input);
  expect(ended.stdout).toBe('');
  expect(ended.stderr).toMatch(/^rungate: [^\n]{10,1100}\n$/);
  expect(ended.stderr).not.toMatch(/Unexpected|\.ts:\d|undefined|\[object/);
  return ended;
}

function writeFile(name: string, content: unknown): string {
  const path = join(folder, name);
  writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
}

/** Opens the database beside the command, for a moment. */
async function inDatabase<T>(work: (db: Database) => Promise<T>, file = 'main.db'): Promise<T> {
  const db = await openDatabase({ url: `file:${join(folder, file)}` });
  try {
    return await work(db);
  } finally {
    await db.close();
  }
}

const inOrg = <T>(slug: string, work: (org: Org, db: Database) => Promise<T>): Promise<T> =>
  inDatabase(async (db) => work((await findOrg(db, slug))!, db));

const stateOf = (token: string) =>
  inDatabase(async (db) => {
    const credential = await findCredential(db, hashToken(token));
    if (credential === undefined) return 'unknown';
    if (credential.revokedAt !== null) return 'revoked';
    return credential.expiresAt === null ? 'live' : 'ending';
  });

interface Init {
  readonly org: { readonly id: string; readonly slug: string };
  readonly owner: { readonly email: string };
  readonly adminToken: string;
}

interface Applied {
  readonly tokens: readonly { readonly agent: string; readonly token: string }[];
  readonly changes: readonly Readonly<Record<string, unknown>>[];
}

const POLICY = { budget: { run: '1.00', agentPerDay: '20.00' }, models: { allow: ['openai/*'] } };
const MANIFEST = {
  providerKeys: [
    { name: 'openai', provider: 'openai', secret: { env: 'OPENAI_API_KEY' } },
    { name: 'demo', provider: 'demo' },
    {
      name: 'local',
      provider: 'openai-compatible',
      baseUrl: 'https://models.example.com/v1/',
      secret: { value: CANARY },
    },
  ],
  prices: [
    { model: 'local/my-model', inputPerMillion: '0.10', outputPerMillion: '0.40' },
    {
      model: 'local/cached',
      inputPerMillion: '1',
      outputPerMillion: '2',
      cacheReadPerMillion: '0',
      cacheWritePerMillion: '1.25',
    },
  ],
  policies: [{ name: 'prod-agents', document: POLICY }],
  agents: [
    { name: 'support', policy: 'prod-agents' },
    { name: 'billing', policy: 'prod-agents' },
  ],
};

let first: Init;
let applied: Applied;
const file = writeFile('manifest.json', MANIFEST);

const apply = (content: unknown, env: Env = {}) =>
  json<Applied>(['apply', '-', '--org', first.org.slug], env, JSON.stringify(content));

beforeAll(async () => {
  first = await json<Init>(['init', '--org', 'Acme Robots', '--email', 'owner@example.com']);
  applied = await json<Applied>(['apply', file, '--org', first.org.slug]);
});

describe('init', () => {
  test('prints the org, its owner and a live admin token, and nothing else', async () => {
    expect(first).toEqual({
      org: { id: expect.stringMatching(/^org_/), slug: 'acme-robots' },
      owner: { email: 'owner@example.com' },
      adminToken: expect.stringMatching(/^rg_adm_/),
    });
    expect(await stateOf(first.adminToken)).toBe('live');
  });

  test('makes a further org of the same name and owner under another slug', async () => {
    const args = ['init', '--org', 'Acme Robots', '--email', 'OWNER@example.com'];
    expect((await json<Init>(args)).org.slug).toBe('acme-robots-2');
    const users = await inDatabase((db) => db.read('select count(*) as n from users', []));
    expect(users).toEqual([{ n: 1 }]);
  });

  test('uses the same generated master keys every time in development', async () => {
    const env = {
      RUNGATE_DATABASE_URL: `file:${join(folder, 'dev/dev.db')}`,
      RUNGATE_MASTER_KEYS: '',
    };
    const made = await rungate(['init', '--org', 'Dev', '--email', 'd@example.com'], env);
    expect({ code: made.code, slug: JSON.parse(made.stdout).org.slug }).toEqual({
      code: 0,
      slug: 'dev',
    });
    await json(['apply', file, '--org', 'dev'], env);
    expect(await json(['doctor'], env)).toMatchObject({ ok: true, sealingFailures: 0 });
    const other = { ...env, RUNGATE_MASTER_KEYS: NEW_KEY };
    const { code, stdout } = await rungate(['doctor', '--json'], other);
    expect({ code, found: JSON.parse(stdout).sealingFailures }).toEqual({ code: 1, found: 3 });
  });
});

describe('migrate', () => {
  test('applies what is missing once', async () => {
    const env = { RUNGATE_DATABASE_URL: `file:${join(folder, 'empty.db')}` };
    const { applied } = await json<{ applied: string[] }>(['migrate'], env);
    expect(applied[0]).toBe('0001_foundation.sql');
    expect(await json(['migrate'], env)).toEqual({ applied: [] });
  });
});

describe('apply', () => {
  test('makes everything that is missing and prints a token of each new agent', async () => {
    expect(applied.tokens.map(({ agent }) => agent)).toEqual(['support', 'billing']);
    for (const { token } of applied.tokens) expect(await stateOf(token)).toBe('live');
    expect(applied.changes.map(({ kind, name, action }) => `${kind} ${name} ${action}`)).toEqual([
      'providerKey openai created',
      'providerKey demo created',
      'providerKey local created',
      'price local/my-model created',
      'price local/cached created',
      'policy prod-agents created',
      'agent support created',
      'agent billing created',
    ]);
  });

  test('changes nothing the second time, whatever the order of the keys', async () => {
    const before = await inDatabase((db) => db.read('select revision from orgs order by id', []));
    const { models, budget } = POLICY;
    const shuffled = {
      ...MANIFEST,
      policies: [{ document: { models, budget }, name: 'prod-agents' }],
    };
    for (const content of [MANIFEST, shuffled, {}]) {
      expect(await apply(content)).toEqual({ tokens: [], changes: [] });
    }
    const after = await inDatabase((db) => db.read('select revision from orgs order by id', []));
    expect(after).toEqual(before);
  });

  const key = MANIFEST.providerKeys[2]!;
  const [price] = MANIFEST.prices;
  const difference: readonly [string, object, object[]][] = [
    [
      'a secret',
      { providerKeys: [{ ...key, secret: { value: NEW_CANARY } }] },
      [{ kind: 'providerKey', name: 'local', action: 'updated' }],
    ],
    [
      "a key's host",
      { providerKeys: [{ ...key, baseUrl: 'https://other.example.com/v1' }] },
      [{ kind: 'providerKey', baseUrl: 'https://other.example.com/v1', action: 'updated' }],
    ],
    [
      'a price',
      { prices: [{ ...price, cacheReadPerMillion: '0.01' }] },
      [{ kind: 'price', name: 'local/my-model', action: 'updated' }],
    ],
    [
      'a policy',
      { policies: [{ name: 'prod-agents', document: { budget: { run: '2.00' } } }] },
      [{ kind: 'policy', name: 'prod-agents', action: 'updated', version: 2 }],
    ],
    [
      "an agent's policy",
      {
        policies: [{ name: 'strict', document: { budget: { run: '0.10' } } }],
        agents: [{ name: 'billing', policy: 'strict' }],
      },
      [
        { kind: 'policy', name: 'strict', action: 'created', version: 1 },
        { kind: 'agent', name: 'billing', action: 'updated', policy: 'strict' },
      ],
    ],
  ];
  for (const [what, content, changes] of difference) {
    test(`updates ${what} where it differs, once, and prints no token`, async () => {
      const done = await apply(content);
      expect(done).toMatchObject({ tokens: [], changes });
      expect(done.changes).toHaveLength(changes.length);
      expect(await apply(content)).toEqual({ tokens: [], changes: [] });
    });
  }

  test('gives an agent a policy that only the org has', async () => {
    const { tokens } = await apply({ agents: [{ name: 'late', policy: 'prod-agents' }] });
    expect(tokens.map(({ agent }) => agent)).toEqual(['late']);
  });

  test('takes a plain or private host only where the operator allows it', async () => {
    const content = (baseUrl: string) =>
      JSON.stringify({ providerKeys: [{ ...key, name: 'near', baseUrl }] });
    const args = ['apply', '-', '--org', first.org.slug];
    for (const url of [
      'http://127.0.0.1:9/v1',
      'https://10.1.2.3/v1',
      'http://models.example/v1',
    ]) {
      expect((await failure(args, {}, content(url))).stderr).toContain('RUNGATE_EGRESS_ALLOW');
      const env = { RUNGATE_EGRESS_ALLOW: '127.0.0.1:9,10.0.0.0/8,models.example' };
      const { changes } = await json<Applied>(args, env, content(url));
      expect(changes).toMatchObject([{ name: 'near', baseUrl: url }]);
    }
  });
});

describe.concurrent('apply refuses', () => {
  const [openai] = MANIFEST.providerKeys;
  const keyed = (change: object) => ({ providerKeys: [{ ...openai, ...change }] });
  const ruled = (document: unknown) => ({ policies: [{ name: 'p', document }] });
  const bad: readonly [name: string, content: unknown, says: string][] = [
    ['an unknown section', { webhook: [] }, 'unrecognized key: "webhook"'],
    ['an unknown key', keyed({ url: 'x' }), 'providerKeys[0]: unrecognized key: "url"'],
    ['a key of a prototype', '{"__proto__": {}}', '__proto__'],
    ['a name with a slash', keyed({ name: 'a/b' }), 'providerKeys[0].name: '],
    [
      'an unknown provider',
      keyed({ provider: CANARY }),
      'providerKeys[0].provider: must be one of',
    ],
    ['a secret that is a string', keyed({ secret: CANARY }), 'providerKeys[0].secret: '],
    ['two sources of a secret', keyed({ secret: { env: 'A', value: CANARY } }), '[0].secret: '],
    ['a secret in place of its name', keyed({ secret: { env: CANARY } }), '[0].secret.env: '],
    ['a secret with a line feed', keyed({ secret: { value: `${CANARY}\n` } }), 'visible ASCII'],
    [
      'a variable not set',
      keyed({ secret: { env: 'NOT_SET' } }),
      'secret.env: the environment has',
    ],
    ['a key without a secret', keyed({ secret: undefined }), '[0].secret: is needed'],
    ['a host with a password', keyed({ baseUrl: `https://a:${CANARY}@x.com` }), '[0].baseUrl: '],
    ['a host with a query', keyed({ baseUrl: `https://x.com/?key=${CANARY}` }), '[0].baseUrl: '],
    ['a host with a fragment', keyed({ baseUrl: 'https://x.com/#a' }), '[0].baseUrl: '],
    ['a metadata address', keyed({ baseUrl: 'https://169.254.169.254' }), '[0].baseUrl: '],
    ['another scheme', keyed({ baseUrl: 'file:///etc/passwd' }), '[0].baseUrl: '],
    ['no host where none is known', keyed({ provider: 'openai-compatible' }), 'baseUrl: is needed'],
    [
      'a host of what is built in',
      { providerKeys: [{ name: 'd', provider: 'demo', baseUrl: 'https://x.com' }] },
      'baseUrl: must be left out',
    ],
    ['a name given twice', { providerKeys: [openai, openai] }, 'providerKeys[1].name: repeats'],
    [
      'a price without its key',
      { prices: [{ model: 'gpt', inputPerMillion: '1', outputPerMillion: '1' }] },
      'prices[0].model: must be written key/model',
    ],
    [
      'a price of all models of a key',
      { prices: [{ model: 'gpt/*', inputPerMillion: '1', outputPerMillion: '1' }] },
      'prices[0].model: must be written key/model, and name one model without a *',
    ],
    [
      'a price that is a number',
      { prices: [{ model: 'a/b', inputPerMillion: 0.1, outputPerMillion: '1' }] },
      'prices[0].inputPerMillion: ',
    ],
    [
      'a negative price',
      { prices: [{ model: 'a/b', inputPerMillion: '-1', outputPerMillion: '1' }] },
      'prices[0].inputPerMillion: must be dollars',
    ],
    ['an unknown rule', ruled({ budgets: {} }), 'policies[0].document: unrecognized key'],
    [
      'a wrong rule',
      ruled({ budget: { run: '1e9' } }),
      'policies[0].document.budget.run: must be dollars',
    ],
    ['a policy of no document', { policies: [{ name: 'p' }] }, 'policies[0].document'],
    [
      'a policy that is too long',
      ruled({
        models: { allow: Array.from({ length: 500 }, (_, at) => `${at}${'x'.repeat(240)}`) },
      }),
      'policies[0].document: must be at most',
    ],
    ['an agent of no policy', { agents: [{ name: 'a', policy: 'nowhere' }] }, 'agents[0].policy: '],
    ['too many agents', { agents: Array(1_001).fill({ name: 'a', policy: 'p' }) }, 'agents: '],
    ['what is not an object', '[]', 'it is not an object'],
    ['what is not JSON', '{"agents": [}', 'at offset'],
    ['a key given twice', '{"agents": [], "agents": []}', 'at offset'],
    ['nothing', '', 'it is not an object'],
    ['too many bytes', ' '.repeat(4 * 1024 * 1024 + 1), 'is larger than'],
  ];

  for (const [name, content, says] of bad) {
    test(`${name}, says where, and changes nothing`, async () => {
      // An entry that is good comes first, so that a check that comes too late would show.
      const good = { agents: [{ name: 'never', policy: 'prod-agents' }] };
      const whole =
        typeof content === 'string' ? content : JSON.stringify({ ...good, ...(content as object) });
      const ended = await failure(['apply', '-', '--org', first.org.slug], {}, whole);
      expect(ended.code).toBe(2);
      expect(ended.stderr).toContain(says);
      expect(await inOrg(first.org.slug, (org) => findAgent(org, 'never'))).toBeUndefined();
    });
  }

  test('a file that is not there, or is a folder', async () => {
    for (const path of [join(folder, 'missing.json'), folder]) {
      expect((await failure(['apply', path, '--org', first.org.slug])).code).toBe(2);
    }
  });
});

describe('agent', () => {
  const token = (name: string) => applied.tokens.find(({ agent }) => agent === name)!.token;
  const at = () => ['--org', first.org.slug];

  test('token rotate prints a new token and ends the old one, at once or after the overlap', async () => {
    const second = await rungate(['agent', 'token', 'rotate', 'support', ...at()]);
    expect(second).toEqual({
      code: 0,
      stdout: expect.stringMatching(/^rg_agt_\w{36}\n$/),
      stderr: '',
    });
    expect(await stateOf(token('support'))).toBe('revoked');
    expect(await stateOf(second.stdout.trim())).toBe('live');
    const args = ['agent', 'token', 'rotate', 'support', ...at(), '--overlap', '60'];
    const third = await json<{ agent: string; token: string }>(args);
    expect(third.agent).toBe('support');
    expect(await stateOf(second.stdout.trim())).toBe('ending');
    expect(await stateOf(third.token)).toBe('live');
  });

  test('token revoke ends all of its tokens and no one else’s', async () => {
    expect(await json(['agent', 'token', 'revoke', 'support', ...at()])).toEqual({
      agent: 'support',
      revoked: 2,
    });
    expect(await stateOf(token('billing'))).toBe('live');
  });

  test('suspend and resume may be repeated', async () => {
    const suspended = () =>
      inOrg(first.org.slug, async (org) => (await findAgent(org, 'billing'))!.suspendedAt);
    for (const _ of [1, 2]) await json(['agent', 'suspend', 'billing', ...at()]);
    expect(await suspended()).toBeNumber();
    for (const _ of [1, 2]) await json(['agent', 'resume', 'billing', ...at()]);
    expect(await suspended()).toBeNull();
  });

  test('every change is on the audit trail, without a token', async () => {
    const entries = await inDatabase((db) =>
      db.read('select actor, action, detail from audit_entries', []),
    );
    const actions = new Set(entries.map(({ action }) => action));
    for (const action of ['token.rotate', 'token.revoke', 'agent.suspend', 'agent.resume']) {
      expect(actions).toContain(action);
    }
    expect(new Set(entries.map(({ actor }) => actor))).toEqual(new Set(['operator']));
    expect(JSON.stringify(entries)).not.toMatch(/rg_(agt|adm)_/);
  });
});

interface Trail {
  readonly run: RunId;
  readonly agent: AgentId;
}

const NOW = Date.UTC(2026, 10, 5, 12);

/** A run with a settled call, an estimated one, one in flight and a denial: $0.30 spent, $0.05 held. */
async function makeRun(org: Org, agentName: string, name: string): Promise<Trail> {
  const agent = (await findAgent(org, agentName))!.id;
  const version = (await readAgentPolicy(org, agent))!;
  const ceilingNanos = nanos(500_000_000);
  const opening = { agentId: agent, policyVersionId: version.id, ceilingNanos, now: NOW };
  await openRun(org, opening, { name, source: 'x-rungate-run-id' });
  const run = (await findRun(org, agent, name))!.id;
  await addCall(org, { run, agent }, NOW, 200_000_000, 100_000_000, false);
  await addCall(org, { run, agent }, NOW + 1, 200_000_000, 200_000_000, true);
  await addCall(org, { run, agent }, NOW + 2, 50_000_000, null, false);
  const windows = windowsOf(NOW);
  await recordRemark(org, {
    ...{ runId: run, windows, now: NOW + 3, kind: 'denial', outcome: 'permission_denied' },
    asked: { endpoint: 'chat/completions', tokenId: newId('token'), model: 'gpt\u001b[31m' },
    answered: { httpStatus: 403, detail: { rule: 'models.allow' } },
  });
  return { run, agent };
}

async function addCall(
  org: Org,
  { run, agent }: Trail,
  now: number,
  heldNanos: number,
  spentNanos: number | null,
  estimated: boolean,
): Promise<void> {
  const ceilings = { agentPerDay: undefined, agentPerMonth: undefined, orgPerMonth: undefined };
  // Earlier tests have ended the agent's tokens.
  const { id: tokenId, statement } = mintToken(org, 'operator', agent, null);
  await org.write(statement);
  const row = await org.first(
    'select o.revision from agents a join orgs o on o.id = a.org_id where a.org_id = ?1',
  );
  const named = { provider: 'openai', providerKey: 'openai', model: 'gpt-5' };
  const { stepId } = await reserve(org, {
    ...{ runId: run, agentId: agent, windows: windowsOf(now), now, kind: 'model_call', ceilings },
    ...{ heldNanos: nanos(heldNanos), leaseExpiresAt: Date.now() + DAY_MS },
    asked: { endpoint: 'chat/completions', tokenId, ...named, requestDigest: 'd' },
    standing: { tokenId, revision: Number(row!.revision), windowSince: null, unparkedSince: null },
  });
  if (spentNanos === null) return;
  const usage = estimated ? { inputTokens: 56 } : { inputTokens: 120, outputTokens: 34 };
  await org.write(
    settlement(org, run, stepId!, {
      ...{ now: now + 10, spentNanos: nanos(spentNanos), outcome: 'ok' },
      answered: {
        ...{ httpStatus: 200, servedModel: 'gpt-5-2026', latencyMs: 812, usage, estimated },
        upstreamRequestId: 'req_1',
      },
    }),
  );
}

interface Shown {
  readonly run: Readonly<Record<string, unknown>>;
  readonly steps: readonly Readonly<Record<string, unknown>>[];
}

describe('run', () => {
  let trail: Trail;
  const at = () => ['--org', first.org.slug];
  beforeAll(async () => {
    trail = await inOrg(first.org.slug, async (org) => {
      await makeRun(org, 'support', 'shared');
      await makeRun(org, 'billing', 'shared');
      return await makeRun(org, 'support', 'task-1');
    });
  });

  test('show prints the run, its money and every step, by its name or its id', async () => {
    const byName = await json<Shown>(['run', 'show', 'task-1', ...at()]);
    expect(byName.run).toMatchObject({
      ...{ id: trail.run, name: 'task-1', agent: 'support', status: 'open', stepCount: 4 },
      ...{ closedReason: null, openedAt: '2026-11-05T12:00:00.000Z', ceiling: '$0.50' },
      policy: expect.stringMatching(/^prod-agents\/v\d+$/),
      ...{ spentNanos: 300_000_000, heldNanos: 50_000_000, ceilingNanos: 500_000_000 },
      ...{ spent: '$0.30', held: '$0.05' },
    });
    expect(byName.steps.map(({ kind, outcome }) => [kind, outcome])).toEqual([
      ['model_call', 'ok'],
      ['model_call', 'ok'],
      ['model_call', null],
      ['denial', 'permission_denied'],
    ]);
    expect(byName.steps[0]).toMatchObject({
      ...{ startedAt: '2026-11-05T12:00:00.000Z', spentNanos: 100_000_000, latencyMs: 812 },
      ...{ usage: { inputTokens: 120, outputTokens: 34 }, upstreamRequestId: 'req_1' },
    });
    expect(byName.steps[3]).toMatchObject({ detail: { rule: 'models.allow' }, httpStatus: 403 });
    expect(await json<Shown>(['run', 'show', trail.run, ...at()])).toEqual(byName);
    const own = ['run', 'show', 'task-1', ...at(), '--agent', 'support'];
    expect(await json<Shown>(own)).toEqual(byName);
  });

  test('show prints an aligned table for people, and no control character of a caller', async () => {
    const { code, stdout } = await rungate(['run', 'show', 'task-1', ...at()]);
    expect(code).toBe(0);
    expect(stdout).not.toContain('\u001b');
    const table = stdout
      .slice(stdout.indexOf('\n\n') + 2)
      .trimEnd()
      .split('\n');
    expect(table[0]).toMatch(/^time +kind +model +tokens +cost +latency +outcome$/);
    expect(table).toHaveLength(5);
    const column = table[0]!.indexOf('outcome');
    for (const line of table) expect(line.slice(column - 2, column)).toBe('  ');
    expect(table[1]).toContain('120+34');
    expect(table[2]).toMatch(/ 56\+0 +~\$0\.20 /);
    expect(table[3]).toContain('($0.05)');
  });

  test('show prints the first steps where fewer are asked for, and says so beside the result', async () => {
    const { stdout, stderr } = await rungate([
      'run',
      'show',
      'task-1',
      ...at(),
      '--limit',
      '2',
      '--json',
    ]);
    expect((JSON.parse(stdout) as Shown).steps).toHaveLength(2);
    expect(stderr).toContain('first 2 of 4 steps');
  });

  test('a name that two agents use has to be told apart', async () => {
    const { code, stderr } = await failure(['run', 'show', 'shared', ...at()]);
    expect(code).toBe(1);
    for (const agent of ['support', 'billing']) {
      expect(stderr).toContain(agent);
      const args = ['run', 'show', 'shared', ...at(), '--agent', agent];
      expect((await json<Shown>(args)).run.agent).toBe(agent);
    }
  });

  test('a run of another org is not there', async () => {
    for (const id of ['task-1', trail.run]) {
      const { code } = await failure(['run', 'show', id, '--org', 'acme-robots-2']);
      expect(code).toBe(1);
    }
  });

  test('ceiling re-opens a run that its ceiling had blocked', async () => {
    const args = ['run', 'ceiling', 'blocked', ...at(), '--set'];
    await inOrg(first.org.slug, async (org) => {
      const { run } = await makeRun(org, 'support', 'blocked');
      const steps = 'update steps set settled_at = ?3 where org_id = ?1 and run_id = ?2';
      await org.write(org.statement(`${steps} and settled_at is null`, run, NOW + 50));
      expect(await blockRun(org, run, 'budget.run', null, NOW + 60)).toBe(true);
    });
    const blocked = await json<Shown>(['run', 'show', 'blocked', ...at()]);
    expect(blocked.run).toMatchObject({ status: 'blocked', closedReason: 'budget.run' });
    const raised = await json<Shown>([...args, '5.00']);
    const expected = { status: 'open', closedReason: null, ceilingNanos: 5_000_000_000 };
    expect(raised.run).toMatchObject(expected);
  });

  test('ceiling never goes below what is spent and held, and says so', async () => {
    const args = ['run', 'ceiling', 'task-1', ...at(), '--set', '0.10', '--json'];
    const { code, stdout, stderr } = await rungate(args);
    expect(code).toBe(0);
    expect((JSON.parse(stdout) as Shown).run.ceilingNanos).toBe(350_000_000);
    expect(stderr).toContain('no lower');
    expect(await json(['doctor'])).toMatchObject({ ok: true, overCeiling: 0 });
  });
});

describe('doctor', () => {
  test('finds nothing wrong with what was made above, and counts what is held', async () => {
    expect(await json(['doctor'])).toEqual({
      ...{ ok: true, integrity: 'ok', pendingMigrations: [], heldNanos: 150_000_000, liveHolds: 3 },
      ...{ expiredHolds: 0, spentMismatches: 0, heldMismatches: 0, windowMismatches: 0 },
      ...{ overCeiling: 0, sealingFailures: 0 },
    });
  });

  const one = (table: string) => `(select max(id) from ${table})`;
  const damages: readonly [counter: string, damage: string, repair: string][] = [
    [
      'spentMismatches',
      `update runs set spent_nanos = spent_nanos + 1 where id = ${one('runs')}`,
      `update runs set spent_nanos = spent_nanos - 1 where id = ${one('runs')}`,
    ],
    [
      'heldMismatches',
      `update runs set held_nanos = held_nanos + 1 where id = ${one('runs')}`,
      `update runs set held_nanos = held_nanos - 1 where id = ${one('runs')}`,
    ],
    [
      'windowMismatches',
      'update spend set spent_nanos = spent_nanos + 1 where subject = org_id',
      'update spend set spent_nanos = spent_nanos - 1 where subject = org_id',
    ],
    [
      'overCeiling',
      `update runs set ceiling_nanos = 1 where name = 'blocked'`,
      `update runs set ceiling_nanos = 5000000000 where name = 'blocked'`,
    ],
    [
      'sealingFailures',
      `update provider_keys set base_url = 'https://evil.example.com' where name = 'openai'`,
      `update provider_keys set base_url = 'https://api.openai.com/v1' where name = 'openai'`,
    ],
    [
      'sealingFailures',
      `update org_keys set wrapped = replace(wrapped, 'v1.old.', 'v1.old.A')
       where org_id in (select id from orgs where slug = 'acme-robots-2')`,
      `update org_keys set wrapped = replace(wrapped, 'v1.old.A', 'v1.old.')
       where org_id in (select id from orgs where slug = 'acme-robots-2')`,
    ],
  ];
  for (const [counter, damage, repair] of damages) {
    test(`ends with 1 and counts one in ${counter} after: ${damage.slice(0, 60)}…`, async () => {
      await inDatabase((db) => db.write([{ sql: damage, args: [] }]));
      const { code, stdout } = await rungate(['doctor', '--json']);
      await inDatabase((db) => db.write([{ sql: repair, args: [] }]));
      expect(code).toBe(1);
      expect(JSON.parse(stdout)).toMatchObject({ ok: false, [counter]: 1 });
      expect(await json(['doctor'])).toMatchObject({ ok: true, [counter]: 0 });
    });
  }

  test('--fix settles the holds of calls that are gone at their most', async () => {
    const expire = 'update steps set lease_expires_at = 1 where settled_at is null';
    await inDatabase((db) => db.write([{ sql: expire, args: [] }]));
    const sick = await rungate(['doctor', '--json']);
    expect(sick.code).toBe(1);
    expect(JSON.parse(sick.stdout)).toMatchObject({ ok: false, expiredHolds: 3 });
    const fixed = { ok: true, expiredHolds: 0, heldNanos: 0, liveHolds: 0, settledHolds: 3 };
    expect(await json(['doctor', '--fix'])).toMatchObject(fixed);
    const { run } = await json<Shown>(['run', 'show', 'task-1', '--org', first.org.slug]);
    expect(run).toMatchObject({ spentNanos: 350_000_000, heldNanos: 0 });
  });

  test('ends with 1 where migrations are missing, and names them', async () => {
    await inDatabase((db) => db.read('select 1', []), 'fresh.db');
    const env = { RUNGATE_DATABASE_URL: `file:${join(folder, 'fresh.db')}` };
    const { code, stdout } = await rungate(['doctor', '--json'], env);
    expect(code).toBe(1);
    expect(JSON.parse(stdout)).toMatchObject({
      ok: false,
      pendingMigrations: expect.arrayContaining(['0001_foundation.sql']),
    });
  });
});

describe('backup', () => {
  const copy = (name: string) => join(folder, name);

  test('copies what is still in the log of a file that others write to, for its owner alone', async () => {
    const insert = (text: string) => ({ sql: 'insert into notes values (?1)', args: [text] });
    const made = await inDatabase(async (db) => {
      await db.write([{ sql: 'create table notes (text text)', args: [] }, insert('before')]);
      expect(statSync(copy('main.db-wal')).size).toBeGreaterThan(0);
      let isOver = false;
      const copying = json(['backup', copy('copy.db')]).finally(() => {
        isOver = true;
      });
      for (; !isOver; await Bun.sleep(1)) await db.write([insert('meanwhile')]);
      await db.write([{ sql: 'drop table notes', args: [] }]);
      return await copying;
    });
    const { size, mode } = statSync(copy('copy.db'));
    expect(made).toEqual({ path: copy('copy.db'), bytes: size });
    expect(mode & 0o777).toBe(0o600);
    expect(readdirSync(folder).filter((name) => /^copy\.db./.test(name))).toEqual([]);
    const env = { RUNGATE_DATABASE_URL: `file:${copy('copy.db')}` };
    expect(await json(['doctor'], env)).toMatchObject({ ok: true, integrity: 'ok' });
    const read = (db: Database) => db.first('select text from notes', []);
    expect(await inDatabase(read, 'copy.db')).toEqual({ text: 'before' });
  });

  test('never writes over a file, and leaves nothing where it fails', async () => {
    const path = writeFile('taken.db', 'mine');
    const { code, stderr } = await failure(['backup', path]);
    expect([code, readFileSync(path, 'utf8')]).toEqual([2, 'mine']);
    expect(stderr).toContain('is there already');
    expect((await failure(['backup', copy('no-folder/a.db')])).stderr).toContain('ENOENT');
    expect(readdirSync(folder).filter((name) => /^taken\.db./.test(name))).toEqual([]);
  });

  test('leaves a database on a server to the means of that server', async () => {
    const env = { RUNGATE_DATABASE_URL: 'http://127.0.0.1:9' };
    const { code, stderr } = await failure(['backup', copy('server.db')], env);
    expect(code).toBe(2);
    expect(stderr).toContain('its own means');
  });

  test('of an empty file is refused, as every command on it, with a word that it is empty', async () => {
    await inDatabase((db) => db.read('select 1', []), 'blank.db');
    const env = { RUNGATE_DATABASE_URL: `file:${copy('blank.db')}` };
    for (const line of [`backup ${copy('b.db')}`, 'run show task-1 --org acme', 'keys rotate']) {
      const { code, stderr } = await failure(line.split(' '), env);
      expect(code).toBe(1);
      expect(stderr).toContain('is empty');
      expect(stderr).not.toContain('rungate migrate');
    }
    expect((await rungate(['doctor'], env)).stderr).toContain('is empty');
    expect(readdirSync(folder)).not.toContain('b.db');
  });
});

describe('keys', () => {
  const both = { RUNGATE_MASTER_KEYS: `${NEW_KEY},${OLD_KEY}` };
  const onlyNew = { RUNGATE_MASTER_KEYS: NEW_KEY };

  test('a server without a key that it needs does not start, and names it', async () => {
    const { code, stderr } = await failure(['serve'], onlyNew);
    expect([code, stderr]).toEqual([2, expect.stringContaining('RUNGATE_MASTER_KEYS lacks')]);
  });

  test('rotate needs the old key', async () => {
    const { code, stderr } = await failure(['keys', 'rotate'], onlyNew);
    expect(code).toBe(2);
    expect(stderr).toContain('"old"');
  });

  test('rotate moves every org once, and then the old key is needed no more', async () => {
    const args = ['keys', 'rotate', '--json'];
    const { code, stdout, stderr } = await rungate(args, both);
    expect({ code, result: JSON.parse(stdout) }).toEqual({
      code: 0,
      result: { total: 2, rewrapped: 2 },
    });
    expect(stderr).toContain('2/2 orgs');
    const again = await rungate(args, both);
    expect(JSON.parse(again.stdout)).toEqual({ total: 2, rewrapped: 0 });
    expect(await json(['doctor'], onlyNew)).toMatchObject({ ok: true, sealingFailures: 0 });
    const { changes } = await apply({ providerKeys: [MANIFEST.providerKeys[0]] }, onlyNew);
    expect(changes).toEqual([]);
    const { code: without } = await rungate(['doctor', '--json']);
    expect(without).toBe(1);
  });

  test('generate prints a key that the configuration takes', async () => {
    const { code, stdout } = await rungate(['keys', 'generate', 'k-2027']);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^k-2027:[A-Za-z0-9+/]{43}=\n$/);
    const env = { RUNGATE_MASTER_KEYS: `${NEW_KEY},${stdout.trim()}` };
    expect(await json(['doctor'], env)).toMatchObject({ ok: true });
    expect((await failure(['keys', 'generate', 'no:colon'])).code).toBe(2);
  });
});

const COMMANDS = [
  'serve',
  'migrate',
  'init',
  'apply',
  'agent token rotate',
  'agent token revoke',
  'agent suspend',
  'agent resume',
  'run show',
  'run ceiling',
  'keys rotate',
  'keys generate',
  'doctor',
  'backup',
].map((command) => command.split(' '));

describe('every command', () => {
  test('has a help that names --json and the exit codes', async () => {
    const helps = await Promise.all(COMMANDS.map((command) => rungate([...command, '--help'])));
    for (const { code, stdout, stderr } of helps) {
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      expect(stdout).toMatch(/^Usage: rungate /);
      expect(stdout).toContain('--json');
      expect(stdout).toContain('Exit codes:');
    }
  });

  test('refuses an option it does not know', async () => {
    const ended = await Promise.all(COMMANDS.map((command) => failure([...command, '--nope'])));
    expect(ended.map(({ code }) => code)).toEqual(COMMANDS.map(() => 2));
  });

  test('refuses a configuration that is wrong, without showing a secret', async () => {
    const args: Readonly<Record<string, string>> = {
      init: 'init --org A --email a@example.com',
      apply: `apply ${file} --org a`,
      rotate: 'agent token rotate a --org a',
      show: 'run show a --org a',
    };
    const commands = ['migrate', 'doctor', 'keys rotate', 'serve', ...Object.values(args)];
    const env = { RUNGATE_MASTER_KEYS: `bad:${CANARY}`, PORT: 'many' };
    const ended = await Promise.all(commands.map((line) => failure(line.split(' '), env)));
    for (const { code, stderr } of ended) {
      expect(code).toBe(2);
      expect(stderr).toContain('RUNGATE_MASTER_KEYS');
      expect(stderr).toContain('PORT');
    }
  });

  test('says what to do where there is no database, and makes none', async () => {
    const url = `file:${join(folder, 'nowhere/none.db')}`;
    const args = ['doctor', 'keys rotate', 'run show a --org a', `apply ${file} --org a`];
    for (const line of args) {
      const { code, stderr } = await failure(line.split(' '), { RUNGATE_DATABASE_URL: url });
      expect(code).toBe(1);
      expect(stderr).toContain('`npx bun run rungate init --org NAME --email OWNER`');
    }
    expect(readdirSync(folder)).not.toContain('nowhere');
  });
});

describe.concurrent('bad input', () => {
  const org = ['--org', 'acme-robots'];
  const bad: readonly [code: number, args: readonly string[]][] = [
    [2, ['frobnicate']],
    [2, ['agent', 'frobnicate']],
    [2, ['init']],
    [2, ['init', '--org', 'A']],
    [2, ['init', '--org', '', '--email', 'a@example.com']],
    [2, ['init', '--org', 'A\nB', '--email', 'a@example.com']],
    [2, ['init', '--org', 'x'.repeat(101), '--email', 'a@example.com']],
    [2, ['init', '--org', 'A', '--email', 'example.com']],
    [2, ['init', '--org', 'A', '--email', `${'a'.repeat(300)}@example.com`]],
    [2, ['apply', ...org]],
    [2, ['apply', 'manifest.json']],
    [1, ['apply', 'manifest.json', '--org', 'nobody']],
    [1, ['agent', 'token', 'rotate', 'nobody', ...org]],
    [2, ['agent', 'token', 'rotate', 'support', ...org, '--overlap', '-1']],
    [2, ['agent', 'token', 'rotate', 'support', ...org, '--overlap', '1.5']],
    [2, ['agent', 'token', 'rotate', 'support', ...org, '--overlap', '99999999999']],
    [2, ['agent', 'token', 'rotate', 'support', 'billing', ...org]],
    [1, ['agent', 'token', 'revoke', 'nobody', ...org]],
    [1, ['agent', 'suspend', 'nobody', ...org]],
    [1, ['run', 'show', 'nothing', ...org]],
    [1, ['run', 'show', 'task-1', ...org, '--agent', 'nobody']],
    [1, ['run', 'show', `run_${'0'.repeat(26)}`, ...org]],
    [2, ['run', 'show', 'x'.repeat(301), ...org]],
    [2, ['run', 'show', 'task-1', ...org, '--limit', 'all']],
    [2, ['run', 'ceiling', 'task-1', ...org]],
    [2, ['run', 'ceiling', 'task-1', ...org, '--set', 'NaN']],
    [2, ['run', 'ceiling', 'task-1', ...org, '--set', '-5']],
    [2, ['run', 'ceiling', 'task-1', ...org, '--set', '1e3']],
    [1, ['run', 'ceiling', 'nothing', ...org, '--set', '5']],
    [2, ['keys', 'generate']],
    [2, ['keys', 'generate', 'x'.repeat(33)]],
  ];
  for (const [code, args] of bad) {
    test(`ends with ${code} and one line: rungate ${JSON.stringify(args.join(' ').slice(0, 60))}`, async () => {
      expect((await failure(args)).code).toBe(code);
    });
  }

  test('a group without a command prints its help beside the result and ends with 2', async () => {
    for (const args of [[], ['agent'], ['agent', 'token'], ['run'], ['keys']]) {
      const { code, stdout, stderr } = await rungate(args);
      expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
      expect(stderr).toStartWith('Usage: rungate');
    }
  });
});

describe('what people see', () => {
  test('stands in columns of one width', () => {
    const cell = fc.stringMatching(/^[!-~\u202e\u2800]{1,80}$/);
    fc.assert(
      fc.property(fc.array(fc.tuple(cell, cell), { maxLength: 8 }), (rows) => {
        const columns = [
          { heading: 'a', align: 'right' },
          { heading: 'b', align: 'left' },
        ] as const;
        const starts = alignTable(columns, rows).map((line) => line.lastIndexOf('  '));
        expect(new Set(starts).size).toBe(1);
      }),
    );
  });
});

test('no file of the database holds a secret or a token', () => {
  const files = readdirSync(folder).filter((name) => name.startsWith('main.db'));
  expect(files.length).toBeGreaterThan(0);
  const bytes = files.map((name) => readFileSync(join(folder, name), 'latin1')).join('');
  expect(bytes).toContain('prod-agents');
  const tokens = [first.adminToken, ...applied.tokens.map(({ token }) => token)];
  for (const secret of [...HIDDEN, ...tokens]) expect(bytes).not.toContain(secret);
});
