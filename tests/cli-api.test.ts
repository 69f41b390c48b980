/** The command line through the admin API: with an admin token, without a database. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { acceptInvitation, invite } from '../db/invitations.ts';
import { findOrg } from '../db/orgs.ts';
import { readRemote } from '../web/cli/remote.ts';
import { finish } from './process.ts';
import { type Deployment, deploy } from './rungate.ts';

const MAIN = join(import.meta.dir, '../web/cli/main.ts');
const NEVER = 'never/none.db';

interface Ended {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

type Env = Readonly<Record<string, string>>;

let rungate: Deployment;
/** An admin token of a member who may only read. */
let viewer: string;

beforeAll(async () => {
  const tools = { requireApproval: [{ tool: 'weather' }] };
  rungate = await deploy({ policy: { capture: 'sealed', tools }, agents: ['tester', 'other'] });
  viewer = await tokenOfViewer();
});

afterAll(() => rungate?.stop());

/** Runs a command with an admin token and a database that isn't there, and never will be. */
async function remote(args: readonly string[], env: Env = {}, input = ''): Promise<Ended> {
  const missing = join(rungate.folder, NEVER);
  const child = Bun.spawn([process.execPath, MAIN, ...args], {
    cwd: rungate.folder,
    env: {
      PATH: process.env.PATH ?? '',
      RUNGATE_DATABASE_URL: `file:${missing}`,
      RUNGATE_URL: rungate.url,
      RUNGATE_TOKEN: rungate.adminToken,
      SECRET: 'sk-of-a-provider-0123456789',
      ...env,
    },
    stdin: new Blob([input]),
    stdout: 'pipe',
    stderr: 'pipe',
  });
  const ended = await finish(child);
  expect(existsSync(missing)).toBe(false);
  return ended;
}

async function json<T>(args: readonly string[], env: Env = {}, input = ''): Promise<T> {
  const { code, stdout, stderr } = await remote([...args, '--json'], env, input);
  expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout) as T;
}

/** The same command as the operator runs it, in the process and on the database. */
async function local(args: readonly string[]): Promise<unknown> {
  const { code, stdout, stderr } = await rungate.cli(...args, '--org', 'acme', '--json');
  expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout);
}

/** A command that must fail with one sentence and no result. */
async function failure(args: readonly string[], env: Env = {}, input = ''): Promise<Ended> {
  const ended = await remote(args, env, input);
  expect(ended.stdout).toBe('');
  expect(ended.stderr).toMatch(/^rungate: [^\n]{10,1100}\n$/);
  expect(ended.stderr).not.toMatch(/Unexpected|\.ts:\d|undefined|\[object|rg_adm_\w/);
  return ended;
}

async function tokenOfViewer(): Promise<string> {
  const db = await rungate.database();
  const org = (await findOrg(db, 'acme'))!;
  const email = 'viewer@example.com';
  const { secret } = await invite(org, 'operator', email, 'viewer', Date.now());
  await acceptInvitation(db, secret, Date.now());
  await db.close();
  const made = (await local(['token', 'create', '--member', email])) as { token: string };
  return made.token;
}

/** A governed call that asks for the weather, which a person has to allow. */
async function callWeather(run: string): Promise<void> {
  const parameters = { type: 'object', properties: { city: { type: 'string' } } };
  await fetch(`${rungate.url}/v1/chat/completions`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${rungate.token}`,
      'content-type': 'application/json',
      'x-rungate-run-id': run,
      prefer: 'wait=0',
    },
    body: JSON.stringify({
      model: 'demo-small',
      messages: [{ role: 'user', content: 'call weather {"city":"Oslo"}' }],
      tools: [{ type: 'function', function: { name: 'weather', parameters } }],
    }),
  }).then((response) => response.text());
}

/** Asks for the weather as an agent does before it runs a tool of its own. */
async function askWeather(run: string, args: string): Promise<void> {
  const response = await fetch(`${rungate.url}/v1/runs/${run}/tools`, {
    method: 'POST',
    headers: { authorization: `Bearer ${rungate.token}`, 'content-type': 'application/json' },
    body: `{"name":"weather","arguments":${args}}`,
  });
  expect(await response.json()).toMatchObject({ decision: 'ask' });
}

interface Gate {
  readonly id: string;
  readonly runId: string;
  readonly status: string;
}

const gatesOf = async (run: string) =>
  (await json<Gate[]>(['gates', 'list'])).filter(({ runId }) => runId === run);

interface Applied {
  readonly tokens: readonly { readonly agent: string; readonly token: string }[];
  readonly webhooks?: readonly { readonly url: string; readonly secret: string }[];
  readonly changes: readonly Readonly<Record<string, unknown>>[];
}

const MANIFEST = {
  providerKeys: [
    { name: 'openai', provider: 'openai', secret: { env: 'SECRET' } },
    { name: 'play', provider: 'demo' },
  ],
  prices: [{ model: 'openai/mine', inputPerMillion: '0.10', outputPerMillion: '0.4' }],
  policies: [
    { name: 'calm', document: { budget: { run: '1.00' } } },
    { name: 'strict', document: { budget: { run: '0.10' } } },
  ],
  agents: [
    { name: 'remote', policy: 'calm', policyVersion: 1, policies: ['strict', 'strict/v1'] },
    { name: 'plain', policy: 'strict' },
  ],
  webhooks: [{ url: 'https://hooks.example.com/in', events: ['run.blocked'] }],
};

const apply = (content: unknown, env: Env = {}) =>
  json<Applied>(['apply', '-'], env, JSON.stringify(content));

describe('apply with an admin token', () => {
  test('makes what is missing, tells tokens and secrets once, and then changes nothing', async () => {
    const first = await apply(MANIFEST);
    expect(first.changes.map(({ kind, name, action }) => `${kind} ${name} ${action}`)).toEqual([
      'providerKey openai created',
      'providerKey play created',
      'price openai/mine created',
      'policy calm created',
      'policy strict created',
      'agent remote created',
      'agent plain created',
      'webhook https://hooks.example.com/in created',
    ]);
    expect(first.tokens).toEqual([
      { agent: 'remote', token: expect.stringMatching(/^rg_agt_/) },
      { agent: 'plain', token: expect.stringMatching(/^rg_agt_/) },
    ]);
    expect(first.webhooks?.[0]?.secret).toMatch(/^whsec_/);
    expect(await apply(MANIFEST)).toEqual({ tokens: [], changes: [] });
    const path = join(rungate.folder, 'same.json');
    await Bun.write(path, JSON.stringify({ ...MANIFEST, providerKeys: [] }));
    expect(await local(['apply', path])).toEqual({ tokens: [], changes: [] });
  });

  const differences: [string, object, object[]][] = [
    [
      'a secret, though none can be read back',
      {
        providerKeys: [
          { ...MANIFEST.providerKeys[0], secret: { value: 'sk-another-one-9876543210' } },
        ],
      },
      [{ kind: 'providerKey', name: 'openai', action: 'updated' }],
    ],
    [
      'a price',
      { prices: [{ ...MANIFEST.prices[0], cacheReadPerMillion: '0' }] },
      [{ kind: 'price', name: 'openai/mine', action: 'updated' }],
    ],
    [
      'a policy and, to its new version, an agent',
      {
        policies: [{ name: 'calm', document: { budget: { run: '2.00' } } }],
        agents: [{ name: 'remote', policy: 'calm', policyVersion: 2, policies: ['strict'] }],
      },
      [
        { kind: 'policy', name: 'calm', action: 'updated', version: 2 },
        { kind: 'agent', name: 'remote', action: 'updated', policy: 'calm' },
      ],
    ],
    [
      'the events of a webhook',
      { webhooks: [{ url: 'https://hooks.example.com/in' }] },
      [{ kind: 'webhook', name: 'https://hooks.example.com/in', action: 'updated' }],
    ],
  ];
  test.each(differences)('updates %s, once', async (_, content, changes) => {
    expect(await apply(content)).toMatchObject({ tokens: [], changes });
    expect(await apply(content)).toEqual({ tokens: [], changes: [] });
  });

  test('leaves it to the server which hosts may be named', async () => {
    const key = (baseUrl: string) =>
      JSON.stringify({
        providerKeys: [{ name: 'near', provider: 'openai', baseUrl, secret: { env: 'SECRET' } }],
      });
    const { code, stderr } = await failure(['apply', '-'], {}, key('https://10.1.2.3/v1'));
    expect([code, stderr]).toEqual([
      1,
      expect.stringContaining('baseUrl must be https and public'),
    ]);
    // The server of this test may reach its own host.
    const env = { RUNGATE_EGRESS_ALLOW: '' };
    const { changes } = await json<Applied>(['apply', '-'], env, key('http://127.0.0.1:9/v1'));
    expect(changes).toMatchObject([{ name: 'near', action: 'created' }]);
  });

  test('tells the tokens of agents that were made before a failure', async () => {
    const content = {
      agents: [{ name: 'lucky', policy: 'calm' }],
      webhooks: [{ url: 'https://10.0.0.1/' }],
    };
    const { code, stdout, stderr } = await remote(
      ['apply', '-', '--json'],
      {},
      JSON.stringify(content),
    );
    expect(code).toBe(1);
    expect(stderr).toContain('must be https');
    expect(JSON.parse(stdout)).toMatchObject({ tokens: [{ agent: 'lucky' }] });
  });
});

describe('the same in both ways', () => {
  test('runs with their steps and bodies, their ceiling and their end', async () => {
    await callWeather('shown');
    for (const options of [[], ['--bodies'], ['--agent', 'tester'], ['--limit', '1']]) {
      const args = ['run', 'show', 'shown', ...options];
      const shown = await json<{ run: object; steps: object[] }>(args);
      expect(shown).toEqual((await local(args)) as typeof shown);
      expect(shown.run).toMatchObject({ name: 'shown', agent: 'tester', status: 'open' });
    }
    const [step] = (await json<{ steps: object[] }>(['run', 'show', 'shown', '--bodies'])).steps;
    expect(step).toMatchObject({
      request: { text: expect.stringContaining('Oslo'), truncated: false },
      response: { totalBytes: expect.any(Number) },
    });
    const raise = ['run', 'ceiling', 'shown', '--set', '3.50'];
    const raised = await json<{ run: object }>(raise);
    expect(raised.run).toMatchObject({ ceiling: '$3.50', ceilingNanos: 3_500_000_000 });
    expect(raised).toEqual((await local(raise)) as typeof raised);
    const cancelled = await json<{ run: object }>(['run', 'cancel', 'shown']);
    expect(cancelled.run).toMatchObject({ status: 'cancelled' });
    expect(cancelled).toEqual((await local(['run', 'cancel', 'shown'])) as typeof cancelled);
  });

  test('gates, which the member of the token decides on', async () => {
    await callWeather('asked');
    const [gate] = await gatesOf('asked');
    expect(gate).toMatchObject({
      ...{ status: 'pending', tool: 'weather', args: { city: 'Oslo' }, runId: 'asked' },
      rule: 'tools.requireApproval[0]',
    });
    expect(await json<Gate[]>(['gates', 'list'])).toEqual(
      (await local(['gates', 'list'])) as Gate[],
    );
    const show = ['gates', 'show', gate!.id];
    // A link decides in nobody's name: only the operator can make one.
    const { url, ...own } = ((await local(show)) as { gate: { url: string } }).gate;
    expect(url).toContain('/approvals/');
    expect((await json<{ gate: object }>(show)).gate).toEqual({ ...own, url: null });
    const approve = ['gates', 'approve', gate!.id, '--reason', 'fine'];
    const approved = await json<{ gate: object }>(approve);
    expect(approved.gate).toMatchObject({
      ...{ id: gate!.id, status: 'approved', approvals: 1, given: 1 },
      decidedBy: expect.stringMatching(/^mem_/),
    });
    expect(await gatesOf('asked')).toEqual([]);
    expect((await failure(approve)).code).toBe(1);
    const as = await failure([...approve, '--as', 'owner@example.com']);
    expect([as.code, as.stderr]).toEqual([2, expect.stringContaining('its own member')]);
  });

  test('gates in a list, with just what a program decides by, and how to see more', async () => {
    const texts = Array.from({ length: 105 }, (_, nth) => `{"city":"City ${nth}"}`);
    for (const text of texts) await askWeather('many', text);
    const list = ['gates', 'list', '--json'];
    const listed = await remote(list);
    const gates = JSON.parse(listed.stdout) as Gate[];
    expect(gates).toHaveLength(100);
    for (const gate of gates) {
      const keys = ['id', 'status', 'tool', 'args', 'rule', 'runId', 'expiresAt'];
      expect(Object.keys(gate)).toEqual(keys);
    }
    expect(listed.stderr).toContain('the newest 100 gates, and there are more; see --limit.');
    const whole = await remote([...list, '--limit', '1000']);
    const all = JSON.parse(whole.stdout) as Gate[];
    expect(all.filter(({ runId }) => runId === 'many')).toHaveLength(105);
    expect(whole.stderr).toBe('');
    expect((await remote([...list, '--limit', String(all.length)])).stderr).toBe('');
    expect((await remote(['run', 'cancel', 'many'])).code).toBe(0);
  });

  test.each([
    ['{"city":"Oslo","n":12345678901234567890}', false],
    ['{"city":"Oslo","n":[0.10000000000000000001]}', false],
    ['{"city":"Oslo","n":1e-400}', false],
    ['{"city":"12345678901234567890","n":9007199254740992}', true],
  ])('gates, whose arguments are never others: %s', async (text, isHeld) => {
    await askWeather('exact', text);
    const [{ id, args }] = (await gatesOf('exact')) as [Gate & { args: unknown }];
    expect(args).toEqual(isHeld ? JSON.parse(text) : text);
    const { gate } = await json<{ gate: { args: unknown } }>(['gates', 'show', id]);
    expect(gate).toMatchObject({ args, argsText: text });
    await json(['gates', 'reject', id]);
  });

  test('gates are rejected', async () => {
    await callWeather('refused');
    const [gate] = await gatesOf('refused');
    const rejected = await json<{ gate: object }>(['gates', 'reject', gate!.id]);
    expect(rejected.gate).toMatchObject({ status: 'rejected' });
  });

  test('webhooks and their deliveries', async () => {
    const add = ['webhooks', 'add', `${rungate.url}/nowhere`, '--event', 'run.started'];
    const made = await json<{ id: string; secret: string }>(add);
    const rotated = await json<object>(['webhooks', 'rotate', made.secret]);
    expect(rotated).toEqual({
      ...{ id: made.id, secret: expect.stringMatching(/^whsec_/) },
      previousUntil: expect.stringMatching(/Z$/),
    });
    const listed = await json<object[]>(['webhooks', 'list']);
    expect(listed).toEqual((await local(['webhooks', 'list'])) as object[]);
    expect(listed).toMatchObject([{}, { id: made.id, status: 'enabled' }]);
    const { eventId } = await json<{ eventId: string }>(['webhooks', 'test', made.id]);
    const found = await json<{ id: string; eventId: string }[]>([
      ...['webhooks', 'deliveries', '--webhook', made.id],
    ]);
    expect(found.map((delivery) => delivery.eventId)).toEqual([eventId]);
    const again = await json<{ id: string }>(['webhooks', 'redeliver', found[0]!.id]);
    expect(again.id).toStartWith('dlv_');
    const delivery = await json<{ body: string }>(['webhooks', 'delivery', found[0]!.id]);
    expect(JSON.parse(delivery.body)).toMatchObject({ id: eventId, test: true });
    const from = ['--from', '2026-01-01T00:00:00Z'];
    const replayed = await json<{ replayed: number }>(['webhooks', 'replay', made.id, ...from]);
    expect(replayed.replayed).toBeGreaterThan(0);
    for (const [verb, status] of [
      ['disable', 'disabled'],
      ['enable', 'enabled'],
    ] as const) {
      expect(await json<object>(['webhooks', verb, made.id])).toEqual({ id: made.id, status });
    }
    const dead = ['webhooks', 'deliveries', '--status', 'dead', '--limit', '1'];
    expect(await json<object[]>(dead)).toEqual((await local(dead)) as object[]);
    expect(await json<object>(['webhooks', 'remove', made.id])).toEqual({
      id: made.id,
      removed: true,
    });
    expect((await failure(['webhooks', 'remove', made.id])).stderr).toContain(
      'There is no webhook',
    );
  });

  test('changes of a webhook, and what a delivery came to, in words', async () => {
    const add = ['webhooks', 'add', `${rungate.url}/none`, '--description', 'old'];
    const { id } = await json<{ id: string }>(add);
    const url = `${rungate.url}/moved`;
    const update = ['webhooks', 'update', id];
    expect(await json<object>([...update, '--url', url, '--event', 'run.started'])).toEqual({
      ...{ id, url, events: ['run.started'], description: 'old' },
    });
    const said = await json<object>([...update, '--description', 'new']);
    expect(said).toMatchObject({ url, events: ['run.started'], description: 'new' });
    for (const [wrong, told] of [
      [[], 'Give what is to change'],
      [['--event', 'run.none'], '--event must be'],
      [['--url', 'https://10.0.0.1/'], 'must be https'],
    ] as const) {
      expect((await failure([...update, ...wrong])).stderr).toContain(told);
    }
    await json(['webhooks', 'test', id]);
    const attempted = async () => {
      for (;;) {
        const [one] = await json<{ id: string; attempts: number }[]>([
          ...['webhooks', 'deliveries', '--webhook', id],
        ]);
        if (one!.attempts > 0) return one!.id;
      }
    };
    const { stdout } = await remote(['webhooks', 'delivery', await attempted()]);
    expect(stdout).toContain(`endpoint  ${id}\nstatus    pending\nnext      `);
    expect(stdout).toMatch(/\n1\. \S+Z http_401, \d+ ms\n {3}\{"error":/);
    await json(['webhooks', 'remove', id]);
  });

  test('agents and their tokens', async () => {
    for (const verb of ['suspend', 'resume']) {
      const args = ['agent', verb, 'other'];
      expect(await json<object>(args)).toEqual((await local(args)) as object);
    }
    const { token } = await json<{ token: string }>(['agent', 'token', 'rotate', 'other']);
    expect(token).toMatch(/^rg_agt_\w{36}$/);
    const overlap = ['agent', 'token', 'rotate', 'other', '--overlap', '60'];
    expect((await json<{ token: string }>(overlap)).token).not.toBe(token);
    const revoked = await json<object>(['agent', 'token', 'revoke', 'other']);
    expect(revoked).toEqual({ agent: 'other', revoked: 2 });
    expect((await failure(['agent', 'suspend', 'nobody'])).code).toBe(1);
  });

  test('the audit trail, exported and verified elsewhere', async () => {
    const held = join(rungate.folder, 'checkpoint.json');
    const file = join(rungate.folder, 'trail.jsonl');
    await Bun.write(held, JSON.stringify(await json<object>(['audit', 'checkpoint'])));
    const exported = await remote(['audit', 'export']);
    await Bun.write(file, exported.stdout);
    const offline = await remote(['audit', 'verify', '--file', file, '--checkpoint', held], {
      RUNGATE_TOKEN: '',
    });
    expect({ code: offline.code, out: offline.stdout }).toMatchObject({ code: 0 });
    const verified = await json<object>(['audit', 'verify', '--checkpoint', held]);
    expect(verified).toMatchObject({ ok: true, faults: [] });
    expect(await local(['audit', 'verify', '--checkpoint', held])).toMatchObject({ ok: true });
    const { stdout } = await remote(['audit', 'export', '--format', 'csv']);
    expect(stdout).toStartWith('"seq"');
  });

  test('admin tokens, never with more than the token that makes them', async () => {
    const actions = ['--actions', 'run.read,gate.read'];
    const { token } = await json<{ token: string }>(['token', 'create', ...actions]);
    const narrow = { RUNGATE_TOKEN: token };
    expect(await json<Gate[]>(['gates', 'list', '--all'], narrow)).toBeArray();
    const refused = await failure(['agent', 'suspend', 'tester'], narrow);
    expect([refused.code, refused.stderr]).toEqual([1, expect.stringContaining('agent.read')]);
    const member = ['token', 'create', '--member', 'owner@example.com'];
    expect((await failure(member)).code).toBe(2);
  });
});

describe("a viewer's token", () => {
  const commands: [string, ...string[]][] = [
    ['price.update', 'apply', '-'],
    ['agent.suspend', 'agent', 'suspend', 'tester'],
    ['agent.resume', 'agent', 'resume', 'tester'],
    ['token.rotate', 'agent', 'token', 'rotate', 'tester'],
    ['token.revoke', 'agent', 'token', 'revoke', 'tester'],
    ['run.set_ceiling', 'run', 'ceiling', 'for-viewer', '--set', '1'],
    ['run.cancel', 'run', 'cancel', 'for-viewer'],
    ['run.body_read', 'run', 'show', 'for-viewer', '--bodies'],
    ['gate.approve', 'gates', 'approve', 'GATE'],
    ['gate.reject', 'gates', 'reject', 'GATE'],
    ['webhook.read', 'webhooks', 'list'],
    ['webhook.create', 'webhooks', 'add', 'https://a.example.com/'],
    ['delivery.read', 'webhooks', 'deliveries'],
    ['token.create', 'token', 'create'],
    ['audit.verify', 'audit', 'checkpoint'],
    ['audit.verify', 'audit', 'verify'],
    ['audit.export', 'audit', 'export'],
  ];
  const prices = JSON.stringify({ prices: [{ ...MANIFEST.prices[0], model: 'play/x' }] });

  test('is refused with a sentence that names the action, and reads on', async () => {
    await callWeather('for-viewer');
    const [gate] = await gatesOf('for-viewer');
    const env = { RUNGATE_TOKEN: viewer };
    for (const [action, ...args] of commands) {
      const line = args.map((word) => (word === 'GATE' ? gate!.id : word));
      const { code, stderr } = await failure(line, env, prices);
      expect([line.join(' '), code, stderr]).toEqual([
        line.join(' '),
        1,
        expect.stringContaining(action),
      ]);
    }
    expect(await json<object>(['run', 'show', 'for-viewer'], env)).toMatchObject({
      run: { status: 'open' },
    });
    expect(await gatesOf('for-viewer')).toMatchObject([{ status: 'pending' }]);
  });
});

describe('which way a command goes', () => {
  const list = ['webhooks', 'list'];

  test('--org must be that of the token', async () => {
    expect((await remote([...list, '--org', 'acme'])).code).toBe(0);
    const other = await failure([...list, '--org', 'other']);
    expect([other.code, other.stderr]).toEqual([
      2,
      expect.stringContaining('"acme", not of "other"'),
    ]);
  });

  test("without an admin token it takes the database, and an agent's token is none", async () => {
    for (const token of ['', rungate.token]) {
      const env = { RUNGATE_TOKEN: token };
      expect((await failure(list, env)).code).toBe(2);
      const { code, stderr } = await failure([...list, '--org', 'acme'], env);
      expect([code, stderr]).toEqual([1, expect.stringContaining('There is no database')]);
    }
  });

  test('a token that is revoked, unknown or mistyped opens nothing', async () => {
    for (const token of [`${rungate.adminToken.slice(0, -1)}x`, `rg_adm_${'0'.repeat(36)}`]) {
      expect((await failure(list, { RUNGATE_TOKEN: token })).code).toBe(1);
    }
    expect((await failure(list, { RUNGATE_TOKEN: 'rg_adm_\u0001' })).code).toBe(2);
  });

  test('a server that is not there, is another one, or leads elsewhere is told of', async () => {
    const redirecting = Bun.serve({ port: 0, fetch: () => Response.redirect(rungate.url, 307) });
    const stranger = Bun.serve({ port: 0, fetch: () => new Response('<html>', { status: 502 }) });
    const closed = Bun.serve({ port: 0, fetch: () => new Response() });
    const gone = `http://127.0.0.1:${closed.port}`;
    await closed.stop(true);
    const cases: [string, string][] = [
      [gone, `can't be reached at ${gone}`],
      [`http://127.0.0.1:${redirecting.port}`, 'redirects'],
      [`http://127.0.0.1:${stranger.port}/`, 'HTTP 502'],
    ];
    try {
      for (const [url, says] of cases) {
        const { code, stderr } = await failure(list, { RUNGATE_URL: url });
        expect([url, code, stderr]).toEqual([url, 1, expect.stringContaining(says)]);
      }
    } finally {
      await Promise.all([redirecting.stop(true), stranger.stop(true)]);
    }
  });

  const token = `rg_adm_${'a'.repeat(36)}`;
  const remoteOf = (url: string) => readRemote({ RUNGATE_TOKEN: token, RUNGATE_URL: url });

  test('a token is sent in the clear to loopback alone', () => {
    const near = fc.constantFrom('127.0.0.1', '127.9.8.7', 'localhost', '[::1]');
    const far = fc.oneof(
      fc.domain(),
      fc.ipV4().filter((address) => !address.startsWith('127.')),
      fc.constantFrom('localhost.example.com', '127.0.0.1.example.com', '[::2]', '0.0.0.0'),
    );
    fc.assert(
      fc.property(near, far, fc.integer({ min: 1, max: 65_535 }), (here, there, port) => {
        expect(remoteOf(`http://${here}:${port}/`)?.token).toBe(token);
        expect(remoteOf(`https://${there}:${port}`)?.token).toBe(token);
        expect(() => remoteOf(`http://${there}:${port}`)).toThrow('https');
      }),
    );
    for (const url of ['ftp://a.example', 'https://u:p@a.example', 'https://a.example/?x', 'a']) {
      expect(() => remoteOf(url)).toThrow('RUNGATE_URL must');
    }
    expect(remoteOf('https://a.example/rungate/')?.url).toBe('https://a.example/rungate');
    expect(readRemote({ RUNGATE_TOKEN: token })?.url).toBe('http://127.0.0.1:8787');
  });

  test('only the commands of the operator open a database themselves', () => {
    const own = [
      'org',
      'backup',
      'server',
      'tick',
      'keys',
      'platform',
      'prices',
      'export',
      'welcome',
      'session',
      'local',
    ];
    const imports = /from '\.\/session\.ts'|openDatabase/;
    const folder = join(import.meta.dir, '../web/cli');
    const openers = [...new Bun.Glob('*.ts').scanSync(folder)].filter((name) =>
      imports.test(readFileSync(join(folder, name), 'utf8')),
    );
    expect(openers.map((name) => name.replace('.ts', '')).sort()).toEqual(own.sort());
  });
});
