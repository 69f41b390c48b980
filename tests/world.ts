/** A deployment in the test's own process: two orgs alike, and a database that can be watched. */

import { copyFileSync, rmSync } from 'node:fs';
import { createAgent, suspendAgent } from '../db/agents.ts';
import { signHead } from '../db/checkpoints.ts';
import {
  type Database,
  filePath,
  type Merge,
  openDatabase,
  type Row,
  type Statement,
} from '../db/client.ts';
import { decideGate, gateOpening, sealArgs } from '../db/gates.ts';
import { reserve } from '../db/holds.ts';
import { invite } from '../db/invitations.ts';
import { type Member, offerOwnership } from '../db/members.ts';
import type { Org } from '../db/org.ts';
import { renameOrg } from '../db/orgs.ts';
import { newParkedId, parking, release } from '../db/parked.ts';
import { createPlatformToken } from '../db/platform.ts';
import { addPolicyVersion } from '../db/policies.ts';
import { setPrice } from '../db/prices.ts';
import { putProviderKey } from '../db/provider-keys.ts';
import { releasedCalls } from '../db/released.ts';
import { recordReport } from '../db/reports.ts';
import { newId, newToken } from '../db/seal.ts';
import { openSession } from '../db/sessions.ts';
import { beginOidc, identify, putOidc } from '../db/signin.ts';
import { openSigner } from '../db/signing.ts';
import { createAdminToken } from '../db/tokens.ts';
import { openVault } from '../db/vault.ts';
import { createWebhook } from '../db/webhooks.ts';
import { makeApp } from '../functions/app.ts';
import { boot, emptyMemory } from '../functions/boot.ts';
import { Deliveries } from '../functions/jobs/deliver.ts';
import { Flights } from '../functions/proxy/flight.ts';
import type { Services } from '../functions/services.ts';
import { parseCidrList } from '../schema/address.ts';
import type {
  AgentId,
  GateId,
  PolicyId,
  PolicyVersionId,
  RunId,
  StepId,
  TokenId,
} from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import { type AdminAction, actionsOf, ROLES, type Role } from '../schema/roles.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import { documentOf, makeArguments, NOTHING, OPERATIONS } from './graphql.ts';
import { addMember, type Ground, makeGround, makeOrg } from './orgs.ts';

/** What a test sees of every statement, and may make of it. */
export interface Watch {
  /** Another text for a statement. */
  rewrite?: ((sql: string) => string) | undefined;
  /** Called with what each statement read. */
  seen?: ((statement: Statement, rows: readonly Row[]) => void) | undefined;
}

/** An org with one of everything. */
export interface Side {
  readonly org: Org;
  readonly slug: string;
  readonly owner: Member;
  readonly members: Readonly<Record<Role, Member>>;
  readonly adminToken: string;
  readonly agentToken: string;
  /** What its agents call their run, and what its names begin with. */
  readonly name: string;
}

/** What a request is sent with. */
export type Credential = Readonly<Record<string, string>>;

/** An answer of the admin API. */
export interface Answer {
  readonly status: number;
  readonly text: string;
  readonly data: Readonly<Record<string, unknown>> | null;
  readonly errors: readonly {
    readonly message: string;
    readonly path?: readonly (string | number)[];
    readonly extensions?: Readonly<Record<string, unknown>>;
  }[];
}

/** Both orgs, and ways to them. */
export interface World {
  readonly ground: Ground;
  readonly own: Side;
  readonly foreign: Side;
  readonly watch: Watch;
  /** The services of the server as it runs now. */
  readonly services: Services;
  /** Sends a request to the server, from an address of its own. */
  send(path: string, init?: RequestInit): Promise<Response>;
  /** Asks the admin API. */
  ask(credential: Credential, query: string, variables?: object): Promise<Answer>;
  /** Every row of an org, as text by table. */
  dump(org: Org, db?: Database): Promise<ReadonlyMap<string, string>>;
  /** Puts the database back to how it was when the world was made, or last kept. */
  restore(): Promise<void>;
  /** Keeps the database as it is for {@link World.restore}. */
  keep(): Promise<void>;
  clear(): Promise<void>;
}

const POLICY = {
  tools: { requireApproval: [{ tool: 'refund', expiresAfterS: 86_400 }], deny: ['forbidden'] },
  limits: [{ per: 'agent', requests: 100_000, windowS: 3_600 }],
  budget: { run: '1.00', agentPerDay: '100.00', alertAt: 0.000_001 },
  capture: 'sealed',
};

/** Makes both orgs. Always clear it. */
export async function makeWorld(
  env: Readonly<Record<string, string>> = {},
  watch: Watch = {},
): Promise<World> {
  const bare = await makeGround();
  const server = new Server(bare.url, await makeServices(bare, env), watch);
  await bare.db.close();
  await server.open();
  const send: World['send'] = (path, init) => server.send(path, init);
  const world = {
    ...{ watch, send, ground: { ...bare, db: server.watched } },
    get services() {
      return server.services;
    },
    ask: (credential: Credential, query: string, variables: object = {}) =>
      ask(send, credential, query, variables),
    dump: (org: Org, from = server.db) => dump(from, org),
    keep: () => server.reopen((path) => copyFileSync(path, `${path}.kept`)),
    restore: () => server.reopen((path) => copyFileSync(`${path}.kept`, path)),
    async clear() {
      await server.close();
      await bare.clear();
    },
  };
  try {
    const own = await makeSide(world, 'own');
    const foreign = await makeSide(world, 'foreign');
    await lengthen(foreign);
    await world.keep();
    return Object.assign(world, { own, foreign }) as World;
  } catch (error) {
    await world.clear();
    throw error;
  }
}

/** A server in this process, whose database file can be exchanged under it. */
class Server {
  readonly #url: string;
  readonly #base: Services;
  readonly watched: Database;
  #db: Database | undefined;
  #running: ReturnType<Server['start']> | undefined;
  #requests = 0;

  constructor(url: string, base: Services, watch: Watch) {
    this.#url = url;
    this.#base = base;
    this.watched = watchDatabase(() => this.db, watch);
  }

  get db(): Database {
    return this.#db!;
  }

  get services(): Services {
    return this.#running!.services;
  }

  async open(): Promise<void> {
    this.#db = await openDatabase({ url: this.#url, synchronous: 'normal' });
    this.#running = this.start();
  }

  /** Nothing is remembered of what the file held before. */
  start() {
    const [base, db] = [this.#base, this.watched];
    const flights = new Flights(db, base.log, Date.now);
    const deliveries = new Deliveries({ ...base, db });
    const services: Services = { ...base, db, memory: emptyMemory(), flights, deliveries };
    return { services, answer: makeApp(services) };
  }

  /** Sends a request from an address that no other has had. */
  async send(path: string, init: RequestInit = {}): Promise<Response> {
    const at = ++this.#requests;
    const address = `127.${1 + (at >> 16)}.${(at >> 8) & 255}.${at & 255}`;
    const request = new Request(`http://localhost${path}`, init);
    return await this.#running!.answer(request, { address });
  }

  async reopen(change: (path: string) => void): Promise<void> {
    await this.close();
    change(filePath(this.#url));
    await this.open();
  }

  async close(): Promise<void> {
    await this.services.deliveries.stop(0);
    // The copy is of the one file: what its log still holds would be lost, or come back.
    await this.db.read('pragma wal_checkpoint(truncate)', []);
    await this.db.close();
    for (const end of ['-wal', '-shm']) rmSync(`${filePath(this.#url)}${end}`, { force: true });
  }
}

async function makeServices(
  { url, masterText }: Ground,
  env: Readonly<Record<string, string>>,
): Promise<Services> {
  const services = await boot({
    RUNGATE_DATABASE_URL: url,
    RUNGATE_MASTER_KEYS: masterText,
    RUNGATE_EGRESS_ALLOW: '127.0.0.1/32',
    RUNGATE_LOG: 'silent',
    ...env,
  });
  await services.db.close();
  return services;
}

/** A database whose statements a test sees and may change. */
function watchDatabase(current: () => Database, watch: Watch): Database {
  const text = (sql: string) => watch.rewrite?.(sql) ?? sql;
  const merges = new WeakMap<object, Merge<never, never>>();
  return {
    async read(sql, args) {
      const rows = await current().read(text(sql), args);
      watch.seen?.({ sql, args }, rows);
      return rows;
    },
    async first(sql, args) {
      const row = await current().first(text(sql), args);
      watch.seen?.({ sql, args }, row ? [row] : []);
      return row;
    },
    async write(statements: readonly Statement[]) {
      const results = await current().write(
        watch.rewrite ? statements.map(({ sql, args }) => ({ sql: text(sql), args })) : statements,
      );
      for (const [at, each] of statements.entries()) watch.seen?.(each, results[at]?.rows ?? []);
      return results;
    },
    merge<Item, Outcome>(merge: Merge<Item, Outcome>, item: Item) {
      const known = merges.get(merge) as Merge<Item, Outcome> | undefined;
      const watched = known ?? watchMerge(merge, text, watch);
      merges.set(merge, watched as Merge<never, never>);
      return current().merge(watched, item);
    },
    close: () => current().close(),
  };
}

/** A merge whose statements a test sees and may change. */
function watchMerge<Item, Outcome>(
  merge: Merge<Item, Outcome>,
  text: (sql: string) => string,
  watch: Watch,
): Merge<Item, Outcome> {
  const seen = (statement: Statement): Statement => {
    watch.seen?.(statement, []);
    return { ...statement, sql: text(statement.sql) };
  };
  return {
    ...merge,
    alone: (item) => merge.alone(item).map(seen),
    together: (items) => merge.together(items).map(seen),
  };
}

async function ask(
  send: World['send'],
  credential: Credential,
  query: string,
  variables: object,
): Promise<Answer> {
  const response = await send('/graphql', {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...credential },
    body: JSON.stringify({ query, variables }),
  });
  const text = await response.text();
  const { data = null, errors = [] } = JSON.parse(text) as Partial<Answer>;
  return { status: response.status, text, data, errors };
}

/** Tables with an org's rows; the org's own row goes by its id. */
async function dump(db: Database, org: Org): Promise<ReadonlyMap<string, string>> {
  const tables = await db.read(
    `select m.name from sqlite_master m join pragma_table_info(m.name) c
     where m.type = 'table' and c.name = 'org_id' order by m.name`,
    [],
  );
  const rowsOf = async (sql: string) => JSON.stringify(await db.read(sql, [org.id]));
  const entries: [string, string][] = [];
  for (const { name } of tables) {
    entries.push([String(name), await rowsOf(`select * from "${name}" where org_id = ?1`)]);
  }
  entries.push(['orgs', await rowsOf('select * from orgs where id = ?1')]);
  return new Map(entries);
}

/** The credential of an admin's or agent's token. */
export const bearer = (token: string): Credential => ({ authorization: `Bearer ${token}` });

type Making = Pick<World, 'ground' | 'send' | 'services'>;

async function makeSide(world: Making, kind: string): Promise<Side> {
  const { ground } = world;
  const { org, slug, owner, adminToken } = await makeOrg(ground);
  await signHead(org, await openSigner(ground.db, ground.master), Date.now());
  const others = await Promise.all(
    ROLES.slice(1).map(async (role) => [role, await addMember(ground, org, role)] as const),
  );
  const members = { owner, ...Object.fromEntries(others) } as Side['members'];
  const name = `${kind}-${slug}`;
  const side = { org, slug, owner, members, adminToken, name };
  const agentToken = await furnish(ground, side);
  await live(world, { ...side, agentToken });
  await decide(side);
  await park(ground, side);
  await leave(side);
  await create(world, adminToken, ['alertRuleCreate', 'auditCheckpointCreate']);
  return { ...side, agentToken };
}

/** What is configured in an org. */
async function furnish(
  { master }: Ground,
  { org, owner, members, name }: Omit<Side, 'agentToken'>,
): Promise<string> {
  const now = Date.now();
  const baseUrl = 'http://demo/v1';
  await putProviderKey(org, master, 'operator', {
    name: 'demo',
    provider: 'demo',
    baseUrl,
    serviceTier: 'default',
    secret: name,
  });
  const document = JSON.stringify(POLICY);
  const policy = await addPolicyVersion(org, 'operator', `${name}-policy`, document);
  await addPolicyVersion(org, 'operator', `${name}-policy`, document, policy);
  await addPolicyVersion(org, 'operator', `${name}-spare`, document);
  const { token } = await createAgent(org, 'operator', `${name}-agent`, policy.id);
  const price = 1_000_000_000 as Nanos;
  const rates = { inputNanosPerMillion: price, outputNanosPerMillion: price };
  await setPrice(org, 'operator', 'demo/demo-small', rates);
  await invite(org, 'operator', `${name}@invited.example`, 'viewer', now);
  const oidc = { issuer: `https://${name}.example`, clientId: name, secret: name, domains: [] };
  await putOidc(org, master, 'operator', oidc, now);
  await offerOwnership(org, 'operator', owner.id, members.admin.id, now);
  const past = now - 30 * 86_400_000;
  await invite(org, 'operator', `${name}@late.example`, 'viewer', past);
  for (const role of ROLES) {
    await openSession(org, members[role].id, { method: 'link' }, now);
    await tokenOf({ org, members }, role, ['agent.read']);
  }
  const url = `http://127.0.0.1:9/${name}`;
  await createWebhook(org, master, 'operator', { url, events: ['*'], description: name });
  return token;
}

/** What happens in an org: calls, a gate, a report, deliveries. */
async function live({ send, services }: Making, { agentToken, name }: Side): Promise<void> {
  await call(send, agentToken, name);
  await call(send, agentToken, `${name}-done`);
  await call(send, agentToken, `${name}-open`);
  const headers = { ...bearer(agentToken), 'content-type': 'application/json' };
  const post = (path: string, body: object, more: Credential = {}) =>
    send(path, { method: 'POST', headers: { ...headers, ...more }, body: JSON.stringify(body) });
  await post(`/v1/runs/${name}/tools`, { name: 'forbidden', arguments: {} });
  await post(`/v1/runs/${name}-done/complete`, {});
  const messages = [{ role: 'user', content: name }];
  // Without a name the call belongs to the run of its window; this model is not there.
  await post('/v1/chat/completions', { model: 'demo/demo-small', messages });
  await post('/v1/chat/completions', { model: 'demo/none', messages });
  await services.deliveries.run(2_000);
}

/** What people have decided in an org. */
async function decide({ org, name }: Omit<Side, 'agentToken'>): Promise<void> {
  const rows = await org.read('select id from gates where org_id = ?1 order by id');
  const now = Date.now();
  const reject = { actor: 'operator', decision: 'reject', reason: name } as const;
  for (const { id } of rows.slice(0, 2)) await decideGate(org, id as GateId, reject, now);
  const [policy] = await org.read(
    'select id from policies where org_id = ?1 and name = ?2',
    `${name}-spare`,
  );
  const policyId = policy?.id as PolicyId;
  const choices = [{ policyId, number: null }];
  const { id } = await createAgent(org, 'operator', `${name}-idle`, policyId, {
    pinned: 1,
    choices,
  });
  await suspendAgent(org, 'operator', id);
}

/** The same in both orgs. */
const LONG_AGO = 1_700_000_000_000;

/** Two answers that wait, the gates of one approved; and a call asked about that may be made. */
async function park({ master }: Ground, { org }: Omit<Side, 'agentToken'>): Promise<void> {
  const asked = await org.first(
    `select g.*, (select id from steps where org_id = ?1 and run_id = g.run_id limit 1) as step
     from gates g join runs r on r.id = g.run_id
     where g.org_id = ?1 and r.status = 'open' limit 1`,
  );
  const [agentId, runId, stepId] = [
    asked!.agent_id as AgentId,
    asked!.run_id as RunId,
    asked!.step as StepId,
  ];
  const rule = { rule: 'tools.requireApproval.0', ruleName: 'refund', reason: 'made' };
  const from = Date.now();
  const expiresAt = from + 86_400_000;
  for (const [at, tools] of [
    ['approved'],
    ['first', 'second'],
    ['alone'],
    ['released'],
  ].entries()) {
    // Ids go by time: in both orgs they have the same order.
    const now = from + 10 * at;
    const vault = await openVault(org, master);
    const parkedId = tools[0] === 'alone' ? null : newParkedId(now);
    const answer = { status: 200, headers: {}, bytes: new Uint8Array(8), callIds: ['call_1'] };
    const place = { agentId, runId, stepId, expiresAt, requestDigest: `digest of ${tools}` };
    const parked = parkedId ? await parking(org, vault, parkedId, place, answer, now) : [];
    const gates = tools.map((tool, nth) => {
      const policyVersionId = asked!.policy_version_id as PolicyVersionId;
      const place = { orgId: org.id, agentId, runId, policyVersionId };
      const subject = { ...place, tool, argsText: '{}', server: null };
      const tokenId = asked!.token_id as TokenId;
      const id = newId('gate', now + nth);
      return { ...rule, id, subject, stepId, parkedId, tokenId, approvals: 1, expiresAt };
    });
    const sealed = await Promise.all(
      gates.map(async (gate) => ({ ...gate, args: await sealArgs(vault, gate.id, '{}') })),
    );
    const opened = sealed.flatMap((gate) => gateOpening(org, gate, now));
    await org.write(vault.count(), ...parked, ...opened);
    const approve = { actor: 'operator', decision: 'approve' } as const;
    if (tools.length === 1) await decideGate(org, gates[0]!.id, approve, now);
    if (parkedId && tools[0] === 'released') {
      await release(org, { id: parkedId, runId }, ['call_9'], LONG_AGO);
    }
  }
  await org.write(...releasedCalls(org, { runId }, ['call_0'], from));
  await fly(org, runId, agentId, asked!.token_id as TokenId);
}

/** A call under way, and a tool that was reported under a key. */
async function fly(org: Org, runId: RunId, agentId: AgentId, tokenId: TokenId): Promise<void> {
  // In a millisecond of its own, so that ids are ordered alike in both orgs.
  await Bun.sleep(2);
  const now = Date.now();
  const place = { runId, windows: windowsOf(now), now };
  const { revision } = (await org.first(
    'select o.revision from orgs o join runs r on r.org_id = o.id where r.org_id = ?1 limit 1',
  ))!;
  const ceilings = { agentPerDay: undefined, agentPerMonth: undefined, orgPerMonth: undefined };
  const { stepId } = await reserve(org, {
    ...{ ...place, agentId, kind: 'model_call', heldNanos: 1 as Nanos },
    leaseExpiresAt: now + 86_400_000,
    ...{ asked: { endpoint: 'made', tokenId }, ceilings },
    standing: { tokenId, revision: Number(revision), windowSince: null, unparkedSince: null },
  });
  if (!stepId) throw new Error('nothing was reserved');
  await Bun.sleep(2);
  await recordReport(org, {
    ...{ ...place, tokenId, key: 'made', outcome: 'ok', startedAt: now, latencyMs: 1 },
    ...{ spentNanos: 1 as Nanos, detail: {} },
  });
}

/** What earlier versions have left, and a rule that has fired without being told. */
async function leave({ org, owner, name }: Omit<Side, 'agentToken'>): Promise<void> {
  const now = Date.now();
  await beginOidc(org, { state: name, nonce: name, verifier: name }, now - 86_400_000);
  await identify(org, `https://${name}.example`, name, owner.email, now);
  await org.write(
    org.statement(
      `insert into audit_history (org_id, id, actor, action, target, created_at)
       values (?1, ?2, 'operator', 'org.create', ?1, ?3)`,
      newId('audit', now),
      now,
    ),
    org.statement(
      `insert into alert_rules (
         org_id, id, name, metric, threshold, window_s, channel, target, target_shown, enabled,
         fired_at, fired_value, created_by, created_at, updated_at
       ) values (?1, ?2, 'fired', 'spend', 1, 60, 'mail', 'a@b.example', 'a@b.example', 1, ?3, 1, '', ?3, ?3)`,
      newId('alertRule', now),
      LONG_AGO,
    ),
  );
}

/** Two calls of a run, a tool that is asked about, and one that is reported. */
async function call(send: World['send'], token: string, name: string): Promise<void> {
  const headers = {
    ...bearer(token),
    ...{ 'content-type': 'application/json', 'x-rungate-run-id': name },
  };
  const post = async (path: string, body: object) => {
    const response = await send(path, { method: 'POST', headers, body: JSON.stringify(body) });
    const text = await response.text();
    if (!response.ok) throw new Error(`${path}: ${response.status} ${text}`);
  };
  const messages = [{ role: 'user', content: `hello from ${name}` }];
  await post('/v1/chat/completions', { model: 'demo/demo-small', messages });
  await post('/v1/responses', { model: 'demo/demo-small', input: `hello from ${name}` });
  await post(`/v1/runs/${name}/tools`, { name: 'refund', arguments: { of: name } });
  const report = { kind: 'tool_call', name: 'search', outcome: 'ok', latencyMs: 1 };
  await post(`/v1/runs/${name}/steps`, report);
}

/** Makes the rest through the admin API itself, with values that its schema leads to. */
async function create(world: Making, adminToken: string, names: readonly string[]): Promise<void> {
  for (const operation of OPERATIONS.filter(({ name }) => names.includes(name))) {
    const fills = (path: readonly string[]) => path.at(-1) === 'target';
    const given = makeArguments(operation.field, { ...NOTHING, fills });
    const document = documentOf(operation, given, ' { errors { field message } }');
    const { text } = await ask(world.send, bearer(adminToken), document, given);
    if (!text.includes('"errors":[]')) throw new Error(`${operation.name}: ${text}`);
  }
}

/** Makes the foreign org's history the longer one: no head of the own one is then the highest. */
async function lengthen({ org }: Side): Promise<void> {
  for (let at = 0; at < 60; at++) await renameOrg(org, 'operator', `Foreign ${at}`);
}

/** Makes more of what an org has, so that a page of it is full. */
export async function fill({ ground, send }: World, side: Side, times: number): Promise<void> {
  const { org, members, name } = side;
  const { master } = ground;
  for (let at = 0; at < times; at++) {
    const more = `${name}-more-${at}`;
    const policy = await addPolicyVersion(org, 'operator', more, JSON.stringify(POLICY));
    const { token } = await createAgent(org, 'operator', more, policy.id);
    const url = `http://127.0.0.1:9/${more}`;
    await createWebhook(org, master, 'operator', { url, events: ['*'], description: more });
    await invite(org, 'operator', `${more}@invited.example`, 'viewer', Date.now());
    await openSession(org, members.member.id, { method: 'link' }, Date.now());
    await call(send, token, more);
  }
}

/** Whoever asks, and what he may do by the table of roles. */
export interface Asker {
  readonly role: Role | null;
  readonly kind: string;
  readonly credential: Credential;
  readonly actions: ReadonlySet<AdminAction>;
}

/** Everyone who may ask: each role by session and by tokens of all, and of parts of its actions. */
export async function makeAskers(world: World, side: Side): Promise<Asker[]> {
  const askers: Asker[] = [];
  for (const role of ROLES) {
    const all = actionsOf(role);
    askers.push(await bySession(side, role));
    const parts = [all, all.filter((_, at) => at % 2 === 0), all.filter((_, at) => at % 2 === 1)];
    for (const [at, actions] of parts.entries()) {
      const credential = await tokenOf(side, role, actions);
      const kind = ['token of all', 'token of even', 'token of odd'][at]!;
      askers.push({ role, kind, credential, actions: new Set(actions) });
    }
  }
  const nothing = { role: null, actions: new Set<AdminAction>() };
  const now = Date.now();
  const loopback = parseCidrList('127.0.0.0/8');
  const { token } = await createPlatformToken(world.ground.db, 'p', loopback, 3_600_000, now);
  return [
    ...askers,
    { ...nothing, kind: 'agent token', credential: bearer(side.agentToken) },
    { ...nothing, kind: 'platform token', credential: bearer(token) },
    { ...nothing, kind: 'unknown token', credential: bearer(newToken('admin')) },
    { ...nothing, kind: 'unknown session', credential: { cookie: `rungate=${newToken('admin')}` } },
    { ...nothing, kind: 'nothing', credential: {} },
  ];
}

/** A member with a session of his own. */
export async function bySession(side: Side, role: Role): Promise<Asker> {
  const { id } = side.members[role];
  const session = await openSession(side.org, id, { method: 'link' }, Date.now());
  const credential = { cookie: `rungate=${session!.secret}` };
  return { role, kind: 'session', credential, actions: new Set(actionsOf(role)) };
}

/** An admin token of a member with some actions. */
export async function tokenOf(
  { org, members }: Pick<Side, 'org' | 'members'>,
  role: Role,
  actions: readonly AdminAction[],
): Promise<Credential> {
  const wanted = { name: 'asker', actions, expiresAt: null };
  return bearer((await createAdminToken(org, 'operator', members[role].id, wanted)).token);
}
