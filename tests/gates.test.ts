/** Gates: a call that needs approval is held back, decided by people, and released exactly once. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import type { Actor } from '../db/audit.ts';
import type { Database } from '../db/client.ts';
import {
  decideGate,
  type Gate,
  openArgs,
  openAsk,
  readGate,
  searchGates,
  useGate,
  type Verdict,
} from '../db/gates.ts';
import { changeRole, type Member, removeMember } from '../db/members.ts';
import type { Org } from '../db/org.ts';
import { findOrg } from '../db/orgs.ts';
import { openMasterKeys } from '../db/seal.ts';
import { openVault } from '../db/vault.ts';
import { createWebhook, updateWebhook } from '../db/webhooks.ts';
import { boot } from '../functions/boot.ts';
import { listen } from '../functions/bun.ts';
import { readConfig } from '../functions/config.ts';
import { signLink } from '../functions/links.ts';
import type { GateId, MemberId, TokenId } from '../schema/ids.ts';
import { ANSWER, LOOPS } from './loops.ts';
import { addMember, as } from './orgs.ts';
import { framesOf, usualForm } from './proposals.ts';
import { type Receiver, startReceiver } from './receiver.ts';
import { type Deployment, deploy, readSettled, readTrail } from './rungate.ts';
import { ALL_KINDS, type CallOptions, call, type Kind } from './runtimes.ts';
import { startUpstream, UPSTREAM_KEY, type Upstream } from './upstream.ts';

const ARGS = '{"order":"A-1","amount_usd":900.50}';
const POLICY = {
  tools: {
    requireApproval: [
      {
        name: 'refund over $500',
        tool: 'issue_refund',
        when: 'args.amount_usd > 500',
        expiresAfterS: 3_600,
      },
      { tool: 'add', expiresAfterS: 3_600 },
      { tool: 'wire_money', approvals: 2 },
      { tool: 'soon', expiresAfterS: 1 },
    ],
  },
};
const TOOLS = ['issue_refund', 'wire_money', 'soon', 'look_up'];

/** The tools as each dialect declares them. */
const DECLARED: Readonly<Record<Kind, readonly object[]>> = {
  chat: TOOLS.map((name) => ({ type: 'function', function: { name, parameters: {} } })),
  responses: TOOLS.map((name) => ({ type: 'function', name, parameters: {} })),
  messages: TOOLS.map((name) => ({ name, input_schema: { type: 'object' } })),
};

/** A request of which the upstream proposes what its prompt asks for. */
function asking(kind: Kind, run: string, prompt: string, more: CallOptions = {}, stream = false) {
  const asked = kind === 'responses' ? { input: prompt } : {};
  const messages = kind === 'responses' ? {} : { messages: [{ role: 'user', content: prompt }] };
  const members = { ...asked, ...messages, tools: DECLARED[kind], ...(stream ? { stream } : {}) };
  return { ...more, run, members: { ...members, ...more.members } };
}

const OPERATOR: Verdict = { actor: 'operator', decision: 'approve' };
const slug = (...names: unknown[]) => names.join(' ').replaceAll(/\W+/g, '-');

/** The stage of all tests: one upstream, one deployment, and the tests' own way to the database. */
let upstream: Upstream;
let rungate: Deployment;
/** Whom the org tells of gates. */
let receiver: Receiver;
/** Of two processes on one database: one on Bun, one on Deno. */
let urls: readonly string[];
let db: Database;
let org: Org;

beforeAll(async () => {
  upstream = await startUpstream();
  rungate = await deploy({
    ...{ upstreamUrl: upstream.url, policy: POLICY, agents: ['tester', 'other'] },
    env: {
      ...{ RUNGATE_PUBLIC_URL: 'http://rungate.example', RUNGATE_EGRESS_ALLOW: '127.0.0.1/32' },
    },
  });
  const other = await rungate.serve('deno');
  urls = [rungate.url, other.ready.groups?.url ?? ''];
  db = await rungate.database();
  org = (await findOrg(db, 'acme'))!;
  receiver = startReceiver();
  const wanted = { url: receiver.url, events: ['approval.pending'], description: '' };
  await createWebhook(org, await masterKeys(), 'operator', wanted);
});

const masterKeys = async () =>
  openMasterKeys((await Bun.file(`${rungate.folder}/master-keys`).text()).trim());

afterAll(async () => {
  await db?.close();
  await rungate?.stop();
  await receiver?.stop();
  await upstream?.stop();
}, 20_000);

const ask = (kind: Kind, options: CallOptions, at = 0) =>
  call({ rungate: { ...rungate, url: urls[at]! } }, kind, options);

interface Refused {
  error: {
    code?: string;
    type: string;
    message: string;
    rungate: {
      code: string;
      rule: string;
      gates: { id: GateId; tool: string; rule: string; url: string }[];
    };
  };
}

async function refusedOf(response: Response): Promise<Refused['error']> {
  return ((await response.json()) as Refused).error;
}

/** The error of a stream, in whatever event it comes. */
function errorIn(text: string): Refused['error'] {
  const data = text.split('\n').filter((line) => line.startsWith('data: {'));
  const last = JSON.parse(data.at(-1)!.slice(6)) as Refused;
  return last.error;
}

async function pendingOf(kind: Kind, options: CallOptions, stream: boolean) {
  const response = await ask(kind, options);
  if (!stream) return { status: response.status, error: await refusedOf(response) };
  const text = await response.text();
  expect(text).not.toContain('A-1');
  return { status: response.status, error: errorIn(text) };
}

async function listGates(of: Org, isDecidable: boolean, limit: number): Promise<Gate[]> {
  const window = { limit, after: undefined, before: undefined, isBackward: false };
  const { items } = await searchGates(of, { isDecidable }, Date.now(), window);
  return items.map(({ node }) => node);
}

const gatesOf = async (run: string): Promise<Gate[]> => {
  const gates = await listGates(org, false, 500);
  const rows = await org.read('select id from runs where org_id = ?1 and name = ?2', run);
  return gates.filter(({ runId }) => rows.some(({ id }) => id === runId)).reverse();
};

const decide = (id: GateId, verdict: Verdict = OPERATOR) =>
  decideGate(org, id, verdict, Date.now());
const approveAll = async (run: string) => {
  for (const { id } of await gatesOf(run)) await decide(id);
};

/** Every kind, its answer sent whole and as a stream. */
const WAYS = ALL_KINDS.flatMap((kind) => [
  [kind, 'whole', false] as const,
  [kind, 'as a stream', true] as const,
]);
const REFUND = `call issue_refund ${ARGS}`;

describe.each(WAYS)('a gated call in %s, sent %s', (kind, _, stream) => {
  test('is held back, approved, released byte for byte, and charged once', async () => {
    const run = slug('released', kind, stream);
    const options = asking(kind, run, REFUND, {}, stream);
    const before = upstream.requests.length;
    const first = await pendingOf(kind, options, stream);
    expect(first.status).toBe(stream ? 200 : 403);
    expect(first.error.rungate).toMatchObject({
      ...{ code: 'approval_pending', field: 'tool', asked: 'issue_refund' },
      gates: [{ tool: 'issue_refund', rule: 'tools.requireApproval[0]' }],
    });
    const [gate] = first.error.rungate.gates;
    expect(gate!.url).toBe(`http://rungate.example/v1/gates/${gate!.id}`);
    const again = await ask(kind, options, 1);
    expect(again.status).toBe(403);
    expect((await refusedOf(again)).rungate.gates.map(({ id }) => id)).toEqual([gate!.id]);
    expect(await decide(gate!.id)).toMatchObject({ outcome: 'decided' });
    const released = await ask(kind, options, 1);
    expect(released.status).toBe(200);
    expect(released.headers.get('x-rungate-run-id')).toBe(run);
    const text = await released.text();
    expect(text.replaceAll(/\\+"|"|\s/g, '')).toContain(
      stream ? 'A-1' : 'order:A-1,amount_usd:900.5',
    );
    expect(upstream.requests.length - before).toBe(1);
    const trail = await readTrail(rungate, run);
    expect(trail.map(({ kind, outcome }) => `${kind} ${outcome}`)).toEqual([
      'model_call ok',
      'gate approval_pending',
      'gate approved',
      'gate released',
    ]);
    expect(trail.filter(({ spentNanos }) => spentNanos > 0)).toHaveLength(1);
  });

  test('is used once: the same request afterwards is a new call with a new gate', async () => {
    const run = slug('used', kind, stream);
    const options = asking(kind, run, REFUND, {}, stream);
    upstream.script({ chunkBytes: 5, ...(stream ? { noise: true, crlf: true } : {}) });
    await pendingOf(kind, options, stream);
    await approveAll(run);
    expect((await ask(kind, options)).status).toBe(200);
    const before = upstream.requests.length;
    const next = await pendingOf(kind, options, stream);
    expect(next.error.rungate.code).toBe('approval_pending');
    expect(upstream.requests.length - before).toBe(1);
    expect((await gatesOf(run)).map(({ status }) => status)).toEqual(['released', 'pending']);
  });

  test('is refused for the rest of the run once it is rejected', async () => {
    const run = slug('rejected', kind, stream);
    const options = asking(kind, run, REFUND, {}, stream);
    const { error } = await pendingOf(kind, options, stream);
    await decide(error.rungate.gates[0]!.id, { actor: 'operator', decision: 'reject' });
    for (const at of [0, 1]) {
      const refused = await ask(kind, options, at);
      expect(refused.status).toBe(403);
      expect((await refusedOf(refused)).rungate.code).toBe('approval_rejected');
    }
  });

  test('is refused once nobody has decided in time, and asked about anew after that', async () => {
    const run = slug('expired', kind, stream);
    const options = asking(kind, run, 'call soon {"a":"A-1"}', {}, stream);
    const { error } = await pendingOf(kind, options, stream);
    await Bun.sleep(1_050);
    expect(await decide(error.rungate.gates[0]!.id)).toMatchObject({ outcome: 'closed' });
    const refused = await refusedOf(await ask(kind, options));
    expect(refused.rungate.code).toBe('approval_expired');
    const next = await pendingOf(kind, options, stream);
    expect(next.error.rungate.code).toBe('approval_pending');
    expect(next.error.rungate.gates[0]!.id).not.toBe(error.rungate.gates[0]!.id);
  });

  test('is released to a caller who waits for it', async () => {
    const run = slug('waited', kind, stream);
    const headers = { prefer: 'wait=30' };
    const waiting = ask(kind, asking(kind, run, REFUND, { headers }, stream));
    let gates = await gatesOf(run);
    while (gates.length === 0) gates = await Bun.sleep(20).then(() => gatesOf(run));
    await decide(gates[0]!.id);
    const response = await waiting;
    expect(response.status).toBe(200);
    expect(response.headers.get('preference-applied')).toBe('wait=30');
    expect(await response.text()).toContain('A-1');
    expect((await gatesOf(run)).map(({ status }) => status)).toEqual(['released']);
  });

  test('is told as 202 to a caller who prefers that', async () => {
    const run = slug('async', kind, stream);
    const headers = { prefer: 'respond-async' };
    const options = asking(kind, run, REFUND, { headers }, stream);
    const response = await ask(kind, options);
    expect(response.status).toBe(202);
    expect(response.headers.get('retry-after')).toBe('5');
    const [gate] = await gatesOf(run);
    expect(response.headers.get('location')).toEndWith(`/v1/gates/${gate!.id}`);
    expect(await response.text()).not.toContain('A-1');
    expect((await ask(kind, options)).status).toBe(202);
    await decide(gate!.id);
    const released = await ask(kind, options);
    expect(released.status).toBe(200);
    expect(await released.text()).toContain('A-1');
  });

  test('is shared by identical retries under way, in all processes', async () => {
    const run = slug('shared', kind, stream);
    const options = asking(kind, run, REFUND, {}, stream);
    await pendingOf(kind, options, stream);
    const before = upstream.requests.length;
    await approveAll(run);
    const retries = Array.from({ length: 12 }, (_, at) => ask(kind, options, at % 2));
    const answers = await Promise.all(retries);
    expect(answers.map(({ status }) => status)).toEqual(Array(12).fill(200));
    const texts = await Promise.all(answers.map((answer) => answer.text()));
    expect(new Set(texts).size).toBe(1);
    expect(upstream.requests.length).toBe(before);
    const trail = await readTrail(rungate, run);
    expect(trail.filter(({ outcome }) => outcome === 'released')).toHaveLength(1);
  });

  test('ends with the first of several that nobody decides in time, and so do they', async () => {
    const run = slug('first-to-end', kind, stream);
    const prompt = `call issue_refund ${ARGS} and soon {"a":"A-1"}`;
    const options = asking(kind, run, prompt, {}, stream);
    await pendingOf(kind, options, stream);
    const opened = await gatesOf(run);
    expect(opened.map(({ tool }) => tool).sort()).toEqual(['issue_refund', 'soon']);
    const [refund, soon] = opened.sort((one, other) => one.tool.localeCompare(other.tool)) as [
      Gate,
      Gate,
    ];
    await decide(soon.id);
    await Bun.sleep(1_050);
    expect((await listGates(org, true, 500)).map(({ id }) => id)).not.toContain(refund.id);
    expect(await decide(refund.id)).toMatchObject({ outcome: 'closed' });
    for (const at of [0, 1]) await (await ask(kind, options, at)).text();
    await rungate.cli('tick');
    const ended = [refund.id, soon.id];
    const gates = (await gatesOf(run)).filter(({ id }) => ended.includes(id));
    expect(gates.map(({ status }) => status)).toEqual(['expired', 'expired']);
    const told = (await readTrail(rungate, run)).filter(
      ({ kind, outcome, detail }) =>
        kind === 'gate' &&
        outcome === 'approval_expired' &&
        ended.includes((detail as { gate: GateId }).gate),
    );
    expect(told).toHaveLength(2);
    const events = await org.read(
      `select data ->> 'gateId' as gate from events
       where org_id = ?1 and type = 'approval.expired' and gate in (?2, ?3)`,
      ...ended,
    );
    expect(events).toHaveLength(2);
  });

  test('may be one of several: all have to be approved, and one rejection rejects all', async () => {
    for (const [decision, code] of [
      ['approve', undefined],
      ['reject', 'approval_rejected'],
    ] as const) {
      const run = slug('several', kind, stream, decision);
      const prompt = `call issue_refund ${ARGS} and issue_refund {"amount_usd":501,"order":"A-1"}`;
      const options = asking(kind, run, prompt, {}, stream);
      const { error } = await pendingOf(kind, options, stream);
      const [one, two] = error.rungate.gates;
      await decide(one!.id);
      expect((await refusedOf(await ask(kind, options))).rungate.code).toBe('approval_pending');
      await decide(two!.id, { actor: 'operator', decision });
      const answer = await ask(kind, options);
      expect(answer.status).toBe(decision === 'approve' ? 200 : 403);
      if (code) expect((await refusedOf(answer)).rungate.code).toBe(code);
    }
  });
});

describe('a parked answer', () => {
  test('answers no other request, run, agent or route', async () => {
    const options = asking('chat', 'parked', REFUND);
    await pendingOf('chat', options, false);
    await approveAll('parked');
    const token = rungate.tokens.other!;
    const others: [Kind, CallOptions][] = [
      ['chat', asking('chat', 'parked', `${REFUND}!`)],
      ['chat', asking('chat', 'parked-2', REFUND)],
      ['chat', { ...options, token }],
      ['messages', { ...asking('messages', 'parked', REFUND) }],
    ];
    const before = upstream.requests.length;
    for (const [kind, other] of others) {
      const refused = await refusedOf(await ask(kind, other));
      expect(refused.rungate.code).toBe('approval_pending');
    }
    expect(upstream.requests.length - before).toBe(others.length);
    expect((await ask('chat', options)).status).toBe(200);
  });

  test('is nowhere in the database in clear, and neither are the arguments', async () => {
    const order = 'canary-order-7';
    const prompt = `call issue_refund {"amount_usd":900,"order":"${order}"}`;
    await pendingOf('chat', asking('chat', 'sealed', prompt), false);
    const files = ['rungate.db', 'rungate.db-wal'].map((name) => `${rungate.folder}/${name}`);
    for (const file of files) expect(await Bun.file(file).text()).not.toContain(order);
    expect(rungate.logs()).not.toContain(order);
  });
});

describe('two identical first calls at once', () => {
  test.each(WAYS)('share one gate in %s, sent %s', async (kind, _, stream) => {
    const run = slug('first', kind, stream);
    const options = asking(kind, run, REFUND, {}, stream);
    const both = await Promise.all([0, 1].map(() => pendingOf(kind, options, stream)));
    const [one, two] = both.map(({ error }) => error.rungate.gates.map(({ id }) => id));
    expect(one).toEqual(two!);
    expect(await gatesOf(run)).toHaveLength(1);
    await approveAll(run);
    expect((await ask(kind, options)).status).toBe(200);
  });
});

describe('a caller who waits and leaves', () => {
  test.each(WAYS)('leaves the gate open in %s, sent %s', async (kind, _, stream) => {
    const run = slug('left', kind, stream);
    const leaving = new AbortController();
    const headers = { prefer: 'wait=60' };
    const more = { headers, signal: leaving.signal };
    const waiting = ask(kind, asking(kind, run, REFUND, more, stream), kind === 'chat' ? 1 : 0)
      .then((response) => response.text())
      .catch(() => 'left');
    let gates = await gatesOf(run);
    while (gates.length === 0) gates = await Bun.sleep(20).then(() => gatesOf(run));
    leaving.abort();
    expect(await waiting).toBe('left');
    const before = upstream.requests.length;
    await decide(gates[0]!.id);
    await Bun.sleep(500);
    expect((await gatesOf(run))[0]!.status).toBe('approved');
    const released = await ask(kind, asking(kind, run, REFUND, {}, stream), 1);
    expect(released.status).toBe(200);
    expect(upstream.requests.length).toBe(before);
  });
});

describe('a caller who waits', () => {
  const suspended = (at: string) => `update agents set suspended_at = ${at} where id = (
    select agent_id from runs where name = ?1
  )`;
  const revoked = (at: string) => `update tokens set revoked_at = ${at} where id in (
    select token_id from gates where run_id = (select id from runs where name = ?1)
  )`;
  const ends = {
    run_closed: ["update runs set status = 'cancelled' where name = ?1"],
    agent_suspended: [suspended('1'), suspended('null')],
    invalid_token: [revoked('1'), revoked('null')],
  };
  const expired = (at: string) => revoked(at).replace('revoked_at', 'expires_at');
  const left = (column: string) => (at: string) =>
    `update orgs set ${column} = ${at} where id = (
    select org_id from runs where name = ?1
  )`;
  const ways = [
    ...Object.entries(ends),
    ['invalid_token', [expired('1'), expired('null')]] as const,
    ...['suspended_at', 'deletion_requested_at'].map((column) => {
      return ['agent_suspended', [left(column)('1'), left(column)('null')]] as const;
    }),
  ];
  for (const [at, [code, [sql, undo]]] of ways.entries()) {
    test.each(WAYS)(
      `is told ${code} for ${sql!.split('\n')[0]}, in %s, sent %s`,
      async (kind, _, stream) => {
        const run = slug('over', at, kind, stream);
        const token = rungate.tokens.other!;
        const more = { headers: { prefer: 'wait=60' }, token };
        const waiting = pendingOf(kind, asking(kind, run, REFUND, more, stream), stream);
        let gates = await gatesOf(run);
        while (gates.length === 0) gates = await Bun.sleep(20).then(() => gatesOf(run));
        await db.write([{ sql: sql!, args: [run] }]);
        expect((await waiting).error.rungate.code).toBe(code);
        if (undo) await db.write([{ sql: undo, args: [run] }]);
        const outcome = code === 'run_closed' ? 'closed' : 'decided';
        expect(await decide(gates[0]!.id)).toMatchObject({ outcome });
      },
    );
  }
});

describe('an answer that is no success', () => {
  const call = { id: 'c1', type: 'function', function: { name: 'issue_refund', arguments: ARGS } };
  const proposing = JSON.stringify({ choices: [{ index: 0, message: { tool_calls: [call] } }] });
  const plain = '{"error":{"message":"tool_calls[0]: invalid"}}';

  test.each([203, 300, 400, 404, 500])('of status %d gives out no call either', async (status) => {
    const run = slug('status', status);
    upstream.script({ status, body: proposing });
    const response = await ask('chat', asking('chat', run, 'hello'));
    expect(response.status).toBe(403);
    const text = await response.text();
    expect(text).toContain('approval_pending');
    expect(text).not.toContain('A-1');
  });

  test.each([400, 404, 500])('of status %d is passed on where it has none', async (status) => {
    upstream.script({ status, body: plain });
    const response = await ask('chat', asking('chat', 'plain-errors', 'hello'));
    expect([response.status, await response.text()]).toEqual([status, plain]);
    const page = '\ufeff\n<p>tool_calls</p>';
    upstream.script({ status, body: page, headers: { 'content-type': 'text/html' } });
    const other = await ask('chat', asking('chat', 'plain-errors', 'hello'));
    expect([other.status, Buffer.from(await other.arrayBuffer()).toString()]).toEqual([
      status,
      page,
    ]);
  });

  test.each([300, 404, 500])(
    'of status %d is judged though it is said to be a page',
    async (status) => {
      upstream.script({ status, body: proposing, headers: { 'content-type': 'text/html' } });
      const response = await ask('chat', asking('chat', slug('page', status), 'hello'));
      expect(response.status).toBe(403);
      expect(await response.text()).not.toContain('A-1');
    },
  );
});

describe('who decides', () => {
  const open = async (run: string, prompt = REFUND): Promise<GateId> => {
    await pendingOf('chat', asking('chat', run, prompt), false);
    return (await gatesOf(run))[0]!.id;
  };
  const join = (email?: string) => addMember({ db }, org, 'member', email);
  const by = (member: Member): Verdict => ({ actor: as(member), decision: 'approve' });

  test('several people are several: one who approves twice counts once', async () => {
    const [a, b, c] = [await join(), await join(), await join()];
    const options = asking('chat', 'n-of-m', 'call wire_money {"to":"A-1"}');
    await pendingOf('chat', options, false);
    const [{ id }] = (await gatesOf('n-of-m')) as [Gate];
    expect(await decide(id, by(a))).toMatchObject({ outcome: 'counted' });
    expect(await decide(id, by(a))).toMatchObject({ outcome: 'repeated' });
    expect((await ask('chat', options)).status).toBe(403);
    const both = await Promise.all([decide(id, by(b)), decide(id, by(c))]);
    expect(both.map(({ outcome }) => outcome).sort()).toEqual(['closed', 'decided']);
    expect((await ask('chat', options)).status).toBe(200);
  });

  /** What may become of who approved first, and how many approvals are his by then. */
  const CHANGES: Readonly<Record<string, (first: Member, id: GateId) => Promise<void>>> = {
    'who was removed': ({ id }) => removeMember(org, 'operator', id),
    'who may only read by now': ({ id }) => changeRole(org, 'operator', id, 'viewer'),
    async 'who was removed, invited again and approves again, but for the last one'(first, id) {
      await removeMember(org, 'operator', first.id);
      const again = await join(first.email);
      expect(again.id).not.toBe(first.id);
      expect(await decide(id, by(again))).toMatchObject({ outcome: 'counted', gate: { given: 1 } });
      await removeMember(org, 'operator', again.id);
    },
  };

  test.each(Object.entries(CHANGES))('several people are not one %s', async (what, change) => {
    const run = slug(what);
    const options = asking('chat', run, 'call wire_money {"to":"A-1"}');
    await pendingOf('chat', options, false);
    const [{ id }] = (await gatesOf(run)) as [Gate];
    const [first, second, third] = [await join(), await join(), await join()];
    expect(await decide(id, by(first))).toMatchObject({ outcome: 'counted', gate: { given: 1 } });
    await change(first, id);
    expect(await readGate(org, id)).toMatchObject({ status: 'pending', given: 0 });
    expect(await decide(id, by(second))).toMatchObject({ outcome: 'counted', gate: { given: 1 } });
    expect((await ask('chat', options)).status).toBe(403);
    expect(await decide(id, by(third))).toMatchObject({ outcome: 'decided', gate: { given: 2 } });
    expect((await ask('chat', options)).status).toBe(200);
  });

  test('who caused the call can not', async () => {
    const id = await open('self');
    await db.write([{ sql: "update gates set caused_by = 'mem_maker' where id = ?1", args: [id] }]);
    const [token] = await org.read(
      'select id from tokens where org_id = ?1 and agent_id is not null',
    );
    const gate = (await gatesOf('self'))[0]!;
    const causes: Verdict['actor'][] = [
      { kind: 'user', id: 'usr_x', memberId: 'mem_maker' as MemberId },
      { kind: 'token', id: String(token!.id) },
      { kind: 'token', id: gate.agentId },
    ];
    for (const actor of causes) {
      expect(await decide(id, { actor, decision: 'approve' })).toMatchObject({ outcome: 'own' });
    }
    expect(
      await decide(id, {
        actor: 'operator',
        decision: 'approve',
        memberId: 'mem_maker' as MemberId,
      }),
    ).toMatchObject({ outcome: 'own' });
    expect((await gatesOf('self'))[0]!.status).toBe('pending');
  });

  test('an agent reads its own gate, without the arguments; another’s is missing', async () => {
    const id = await open('own-gate');
    const read = (token: string) =>
      fetch(`${rungate.url}/v1/gates/${id}`, { headers: { authorization: `Bearer ${token}` } });
    const own = await read(rungate.tokens.tester!);
    expect(await own.json()).toMatchObject({ id, status: 'pending', tool: 'issue_refund' });
    const text = await (await read(rungate.tokens.tester!)).text();
    expect(text).not.toContain('A-1');
    const foreign = await read(rungate.tokens.other!);
    const none = await fetch(`${rungate.url}/v1/gates/gate_${'0'.repeat(26)}`, {
      headers: { authorization: `Bearer ${rungate.tokens.other}` },
    });
    expect([foreign.status, none.status]).toEqual([404, 404]);
  });

  test('the command line lists, shows and decides', async () => {
    const id = await open('by-cli');
    const listed = await rungate.cli('gates', 'list', '--org', 'acme', '--json');
    const gates = JSON.parse(listed.stdout) as Record<string, unknown>[];
    expect(gates.find((gate) => gate.id === id)).toMatchObject({
      ...{ id, status: 'pending', tool: 'issue_refund', rule: 'tools.requireApproval[0]' },
      ...{ args: { order: 'A-1', amount_usd: 900.5 }, runId: 'by-cli' },
      expiresAt: expect.stringMatching(/Z$/),
    });
    const shown = await rungate.cli('gates', 'show', id, '--org', 'acme');
    expect(shown.stdout).toContain('900.50');
    expect(shown.stdout).toMatch(/http:\/\/rungate\.example\/approvals\/\S+/);
    const as = ['--as', 'owner@example.com', '--reason', 'fine'];
    const approved = await rungate.cli('gates', 'approve', id, '--org', 'acme', ...as);
    expect(approved).toMatchObject({ code: 0, stdout: `${id}: approved\n` });
    const again = await rungate.cli('gates', 'reject', id, '--org', 'acme');
    expect(again.code).toBe(1);
    const stranger = await rungate.cli('gates', 'approve', id, '--org', 'acme', '--as', 'x@y.zz');
    expect(stranger).toMatchObject({ code: 1 });
    expect((await ask('chat', asking('chat', 'by-cli', REFUND))).status).toBe(200);
  });
});

describe('a gate without a parked answer', () => {
  test('is one per call while it is open, used once, and opened anew after its end', async () => {
    await ask('chat', { run: 'asks' });
    const run = (await org.first("select * from runs where org_id = ?1 and name = 'asks'"))!;
    const token = await org.first(
      'select id from tokens where org_id = ?1 and agent_id = ?2',
      run.agent_id!,
    );
    const vault = await openVault(org, await masterKeys());
    const subject = {
      ...{
        orgId: org.id,
        agentId: run.agent_id as Gate['agentId'],
        runId: run.id as Gate['runId'],
      },
      policyVersionId: run.policy_version_id as Gate['policyVersionId'],
      ...{ tool: 'issue_refund', argsText: '{"a":"\\ud800"}', server: null },
    };
    const now = Date.now();
    const rule = { rule: 'tools.requireApproval[0]', ruleName: 'refund', reason: 'Ask.' };
    const wanted = { subject, ...rule, approvals: 1, expiresAt: now + 1_000 };
    const open = async (at: number, argsText = subject.argsText) => {
      const tokenId = token!.id as TokenId;
      const asked = {
        ...wanted,
        tokenId,
        subject: { ...subject, argsText },
        expiresAt: at + 1_000,
      };
      const gate = await openAsk(org, vault, asked, at);
      return gate!;
    };
    const both = await Promise.all([open(now), open(now)]);
    expect(both[0]!.id).toBe(both[1]!.id);
    expect(await openArgs(vault, both[0]!)).toBe(subject.argsText);
    expect((await open(now, '{"a":1}')).id).not.toBe(both[0]!.id);
    expect(await useGate(org, both[0]!, now)).toBe(false);
    await decideGate(org, both[0]!.id, OPERATOR, now);
    const uses = [0, 1, 2].map(() => useGate(org, both[0]!, now));
    expect((await Promise.all(uses)).filter(Boolean)).toHaveLength(1);
    const unused = await open(now, '{"a":2}');
    await decideGate(org, unused.id, OPERATOR, now);
    expect(await useGate(org, unused, unused.expiresAt)).toBe(false);
    const second = await open(now);
    expect(second.id).not.toBe(both[0]!.id);
    const late = now + 2_000;
    expect(await open(late)).toMatchObject({ id: second.id, status: 'expired' });
    const third = await open(late);
    expect(third.id).not.toBe(second.id);
    await decideGate(org, third.id, { actor: 'operator', decision: 'reject' }, late);
    for (const at of [late, late + 9_000]) {
      expect(await open(at)).toMatchObject({ id: third.id, status: 'rejected' });
    }
    expect((await readGate(org, second.id))!.status).toBe('expired');
  });
});

describe('a signed link', () => {
  const linkTo = async (run: string, prompt = REFUND): Promise<{ path: string; id: GateId }> => {
    await pendingOf('chat', asking('chat', run, prompt), false);
    const [{ id }] = (await gatesOf(run)) as [Gate];
    const toldOf = () => receiver.received.find(({ event }) => event.data.gateId === id);
    await receiver.until(() => toldOf() !== undefined);
    const { origin, pathname } = new URL(String(toldOf()!.event.data.url));
    expect(origin).toBe('http://rungate.example');
    return { path: pathname, id };
  };
  const post = (path: string, decision: string, headers = {}) =>
    fetch(rungate.url + path, { method: 'POST', headers, body: new URLSearchParams({ decision }) });

  test('shows what it decides on, and decides nothing by being read', async () => {
    const { path, id } = await linkTo('link-get');
    for (const method of ['GET', 'HEAD']) await fetch(rungate.url + path, { method });
    const page = await fetch(rungate.url + path);
    expect(page.status).toBe(200);
    expect(page.headers.get('content-security-policy')).toContain("default-src 'none'");
    expect(page.headers.get('cache-control')).toBe('no-store');
    const text = await page.text();
    for (const shown of ['issue_refund', '900.50', 'tester', 'refund over $500', 'Approve']) {
      expect(text).toContain(shown);
    }
    expect(await org.first('select status from gates where org_id = ?1 and id = ?2', id)).toEqual({
      status: 'pending',
    });
  });

  test('shows markup and hidden characters as what they are', async () => {
    const hidden = ['\u202e', '\u{e0141}', '\u3164', '\u2800', '\ufe0f', '\u034f', '\u00a0'];
    const args = `{"amount_usd":900,"note":"<script>x</script>${hidden.join('-')}A-1"}`;
    const { path, id } = await linkTo('link-markup', `call issue_refund ${args}`);
    const text = await (await fetch(rungate.url + path)).text();
    const shown = await rungate.cli('gates', 'show', id, '--org', 'acme');
    expect(text).toContain('&lt;script&gt;');
    expect(text).not.toContain('<script');
    for (const page of [text, shown.stdout]) {
      expect(page).toMatch(/\n {2}(&quot;|")amount_usd/);
      for (const character of hidden) {
        expect(page).not.toContain(character);
        expect(page).toContain(`\\u{${character.codePointAt(0)!.toString(16)}}`);
      }
    }
  });

  test('decides nothing for a reason that holds a NUL', async () => {
    const { path, id } = await linkTo('link-nul');
    const body = new URLSearchParams('decision=reject&reason=a%00b');
    expect((await fetch(rungate.url + path, { method: 'POST', body })).status).toBe(400);
    expect(await org.first('select status from gates where org_id = ?1 and id = ?2', id)).toEqual({
      status: 'pending',
    });
  });

  test('decides nothing by a form that says both', async () => {
    const { path, id } = await linkTo('link-both');
    for (const both of [
      'approve&decision=reject',
      'reject&decision=approve',
      'approve&decision=',
    ]) {
      const body = new URLSearchParams(`decision=${both}`);
      expect((await fetch(rungate.url + path, { method: 'POST', body })).status).toBe(400);
    }
    expect(await org.first('select status from gates where org_id = ?1 and id = ?2', id)).toEqual({
      status: 'pending',
    });
  });

  test('decides once', async () => {
    const { path } = await linkTo('link-once');
    expect((await post(path, 'approve')).status).toBe(200);
    expect((await post(path, 'reject')).status).toBe(409);
    expect((await ask('chat', asking('chat', 'link-once', REFUND))).status).toBe(200);
  });

  test('gives none of several approvals, so that nobody counts twice, but can reject', async () => {
    const run = 'link-twice';
    const { path, id } = await linkTo(run, 'call wire_money {"to":"A-1"}');
    const page = await (await fetch(rungate.url + path)).text();
    expect(page).toContain('sign in or use the command line to approve it');
    expect(page).not.toContain('value="approve"');
    expect(await decide(id)).toMatchObject({ outcome: 'counted' });
    const refused = await post(path, 'approve');
    expect(refused.status).toBe(403);
    expect(await refused.text()).toContain('needs the approval of 2 different people');
    const link: Verdict = { actor: { kind: 'link', id: 'link_x' }, decision: 'approve' };
    await decide(id, link);
    expect(await readGate(org, id)).toMatchObject({ status: 'pending', given: 1 });
    const [tried] = await org.read(
      `select outcome, actor_kind from audit_entries
       where org_id = ?1 and target = ?2 and action = 'gate.approve' and actor_kind = 'link'`,
      id,
    );
    expect(tried).toMatchObject({ outcome: 'refused' });
    expect((await post(path, 'reject')).status).toBe(200);
    expect(await readGate(org, id)).toMatchObject({ status: 'rejected' });
    expect((await post(path, 'approve')).status).toBe(409);
  });

  /** Who may be told of the gates of a call that `maker` caused, and what keeps his link from approving. */
  const HOLDERS: Readonly<Record<string, (maker: Member, url: string) => Promise<unknown>>> = {
    'made for who caused the call': async (maker, url) => tell(as(maker), url),
    async 'to the URL that who caused the call gave to another’s webhook'(maker, url) {
      const { id } = await tell(as(await addMember({ db }, org, 'admin')), `${url}?of=another`);
      await updateWebhook(org, as(maker), id, { url });
    },
  };
  const tell = async (actor: Actor, url: string) =>
    createWebhook(org, await masterKeys(), actor, {
      ...{ url, events: ['approval.pending'], description: '' },
    });
  /** A gate of a call that `maker` caused, and the link to it that `own` gets. */
  const causedBy = async (run: string, maker: Member, own: Receiver) => {
    await db.write([
      {
        sql: `update tokens set created_by = ?1 where org_id = ?2 and agent_id = (
          select id from agents where org_id = ?2 and name = 'other'
        )`,
        args: [maker.id, org.id],
      },
    ]);
    const options = asking('chat', run, REFUND, { token: rungate.tokens.other! });
    await pendingOf('chat', options, false);
    const [gate] = (await gatesOf(run)) as [Gate];
    const toldOf = () => own.received.find(({ event }) => event.data.gateId === gate.id);
    await own.until(() => toldOf() !== undefined);
    return { gate, path: new URL(String(toldOf()!.event.data.url)).pathname };
  };

  test.each(Object.entries(HOLDERS))('%s can reject, but not approve', async (what, add) => {
    const own = startReceiver();
    try {
      const maker = await addMember({ db }, org, 'admin');
      await add(maker, own.url);
      const { gate, path } = await causedBy(slug(what), maker, own);
      const page = await (await fetch(rungate.url + path)).text();
      expect(page).toContain('made for who caused the call');
      expect(page).not.toContain('value="approve"');
      expect((await post(path, 'approve')).status).toBe(403);
      expect(await readGate(org, gate.id)).toMatchObject({ status: 'pending' });
      expect((await post(path, 'reject')).status).toBe(200);
      expect(await readGate(org, gate.id)).toMatchObject({ status: 'rejected' });
    } finally {
      await own.stop();
    }
  });

  test('made for another than who caused the call can approve', async () => {
    const own = startReceiver();
    try {
      await tell(as(await addMember({ db }, org, 'admin')), own.url);
      const maker = await addMember({ db }, org, 'admin');
      const { gate, path } = await causedBy('link-of-another', maker, own);
      expect((await post(path, 'approve')).status).toBe(200);
      expect(await readGate(org, gate.id)).toMatchObject({ status: 'approved' });
    } finally {
      await own.stop();
    }
  });

  test.each([
    ['who has been removed', (id: MemberId) => removeMember(org, 'operator', id)],
    ['who may only look by now', (id: MemberId) => changeRole(org, 'operator', id, 'viewer')],
  ] as const)('made for somebody %s can reject, but not approve', async (what, change) => {
    const own = startReceiver();
    try {
      const holder = await addMember({ db }, org, 'admin');
      await tell(as(holder), own.url);
      const maker = await addMember({ db }, org, 'admin');
      const { gate, path } = await causedBy(slug(what), maker, own);
      await change(holder.id);
      expect(await (await fetch(rungate.url + path)).text()).not.toContain('value="approve"');
      expect((await post(path, 'approve')).status).toBe(403);
      expect(await readGate(org, gate.id)).toMatchObject({ status: 'pending' });
      expect((await post(path, 'reject')).status).toBe(200);
    } finally {
      await own.stop();
    }
  });

  test('that doesn’t say whom it was made for can reject, but not approve', async () => {
    const { id } = await linkTo('link-unheld');
    const vault = await openVault(org, await masterKeys());
    const config = readConfig({ RUNGATE_PUBLIC_URL: rungate.url });
    const gate = (await readGate(org, id))!;
    const { pathname } = new URL(await signLink(config, org, vault, gate, null, Date.now()));
    expect(await (await fetch(rungate.url + pathname)).text()).not.toContain('value="approve"');
    expect((await post(pathname, 'approve')).status).toBe(403);
    expect((await post(pathname, 'reject')).status).toBe(200);
  });

  test('decides nothing when altered, forged, of another site, or without a decision', async () => {
    const { path, id } = await linkTo('link-bad');
    const token = path.split('/').at(-1)!;
    const [head, payload, signature] = token.split('.') as [string, string, string];
    const none = btoa('{"alg":"none","typ":"rungate-approval+jwt"}').replace(/=+$/, '');
    const bad = [
      `${head}.${payload}.${signature.slice(0, -2)}AA`,
      `${none}.${payload}.`,
      `${head}.${payload}x.${signature}`,
      `${token}.x`,
      'x',
      'a'.repeat(5_000),
    ];
    for (const one of bad) expect((await post(`/approvals/${one}`, 'approve')).status).toBe(404);
    expect((await post(path, 'maybe')).status).toBe(400);
    const foreign = { origin: 'https://evil.example' };
    expect((await post(path, 'approve', foreign)).status).toBe(403);
    expect((await post(path, 'approve', { 'sec-fetch-site': 'cross-site' })).status).toBe(403);
    expect((await gatesOf('link-bad')).find((gate) => gate.id === id)!.status).toBe('pending');
  });

  test('is stored nowhere, so that nobody decides by reading the database', async () => {
    const { path } = await linkTo('link-stored');
    const [, , secret = ''] = path.split('/');
    const tables = await db.read("select name from sqlite_schema where type = 'table'", []);
    for (const { name } of tables) {
      const rows = await db.read(`select * from "${name}"`, []);
      expect(JSON.stringify(rows)).not.toContain('/approvals/');
      expect(JSON.stringify(rows)).not.toContain(secret);
    }
  });

  test('is good for no longer than its gate', async () => {
    const { path } = await linkTo('link-late', 'call soon {"a":"A-1"}');
    await Bun.sleep(2_100);
    expect((await post(path, 'approve')).status).toBe(410);
  });

  test('is nowhere in what the agent is told', async () => {
    const options = asking('chat', 'link-secret', REFUND);
    const response = await ask('chat', options);
    const told = (await response.text()) + JSON.stringify([...response.headers]);
    expect(told).not.toContain('/approvals/');
  });
});

describe('a result of a call that the run was never given', () => {
  test('is flagged on the trail, once', async () => {
    const messages = [
      { role: 'user', content: 'hello' },
      {
        role: 'assistant',
        tool_calls: [
          { id: 'call_x', type: 'function', function: { name: 'look_up', arguments: '{}' } },
        ],
      },
      { role: 'tool', tool_call_id: 'call_x', content: '5' },
    ];
    const options = { run: 'flagged', members: { messages, tools: DECLARED.chat } };
    for (const at of [0, 1, 0]) expect((await ask('chat', options, at)).status).toBe(200);
    const trail = await readTrail(rungate, 'flagged');
    const flags = trail.filter(({ outcome }) => outcome === 'unreleased_result');
    expect(flags).toMatchObject([{ kind: 'note', detail: { callIds: ['call_x'] } }]);
  });
});

describe('a policy that refuses such results', () => {
  test('refuses them, and lets those of released calls pass', async () => {
    const tools = { ...POLICY.tools, unreleasedResults: 'deny' as const };
    const own = await deploy({ upstreamUrl: upstream.url, policy: { tools } });
    const connection = await own.database();
    try {
      const acme = (await findOrg(connection, 'acme'))!;
      for (const [name, loop] of Object.entries(LOOPS).filter((_, at) => at % 3 === 0)) {
        const at = { base: `${own.url}/r/${slug(name)}`, token: own.token };
        await loop(at).catch(() => {});
        const [gate] = await listGates(acme, true, 1);
        await decideGate(acme, gate!.id, OPERATOR, Date.now());
        expect(await loop(at)).toBe(ANSWER);
      }
      const messages = [{ role: 'tool', tool_call_id: 'call_x', content: '5' }];
      const options = { run: 'refused', members: { messages, tools: DECLARED.chat } };
      const refused = await call({ rungate: own }, 'chat', options);
      expect(refused.status).toBe(403);
      expect((await refusedOf(refused)).rungate).toMatchObject({ rule: 'tools.unreleasedResults' });
    } finally {
      await connection.close();
      await own.stop();
    }
  });
});

test('a rule whose name holds a NUL asks and settles as any other', async () => {
  const requireApproval = [{ tool: 'look_up', name: 'look\0up' }];
  const own = await deploy({ upstreamUrl: upstream.url, policy: { tools: { requireApproval } } });
  try {
    const refused = await call({ rungate: own }, 'chat', asking('chat', 'nul', 'call look_up {}'));
    expect((await refusedOf(refused)).rungate).toMatchObject({ code: 'approval_pending' });
    const [step] = await readTrail(own, 'nul');
    expect(step).toMatchObject({ outcome: 'ok', estimated: false });
    const asked = await fetch(`${own.url}/v1/runs/nul/tools`, {
      method: 'POST',
      headers: { authorization: `Bearer ${own.token}` },
      body: JSON.stringify({ name: 'look_up', arguments: {} }),
    });
    expect(await asked.json()).toMatchObject({ decision: 'ask' });
  } finally {
    await own.stop();
  }
});

describe('a policy that does nothing but refuse such results', () => {
  /** How each dialect sends the result of a call. */
  const RESULTS: Readonly<Record<Kind, (id: string) => Record<string, unknown>>> = {
    chat: (id) => ({ messages: [{ role: 'tool', tool_call_id: id, content: '5' }] }),
    responses: (id) => ({ input: [{ type: 'function_call_output', call_id: id, output: '5' }] }),
    messages: (id) => ({
      messages: [{ role: 'user', content: [{ type: 'tool_result', tool_use_id: id }] }],
    }),
  };
  const ENDPOINTS = {
    chat: 'chat.completions',
    responses: 'responses.create',
    messages: 'messages',
  } as const;
  let own: Deployment;
  beforeAll(async () => {
    const tools = { unreleasedResults: 'deny' as const };
    own = await deploy({ upstreamUrl: upstream.url, policy: { tools } });
  });
  afterAll(() => own.stop());

  const resultOf = async (kind: Kind, run: string, id: string) => {
    const { status } = await call({ rungate: own }, kind, { run, members: RESULTS[kind](id) });
    return status;
  };
  /** The events of an answer that proposes one call, but for the last. */
  const openFrames = (kind: Kind, id: string) => {
    const endpoint = ENDPOINTS[kind];
    const form = usualForm(endpoint, kind === 'messages' ? 'tool_use' : 'function');
    const frames = framesOf(endpoint, [[form, { id, name: 'look_up', args: '{"q":1}' }]]);
    return frames.slice(0, -1).map(({ text }) => text);
  };

  test.each(ALL_KINDS)('refuses one in %s whose id holds a NUL', async (kind) => {
    for (const id of ['call_x\0', '\0', 'call\0x']) {
      expect(await resultOf(kind, slug('nul', kind), id)).toBe(400);
    }
  });

  test.each(ALL_KINDS)('refuses a forged one in %s', async (kind) => {
    expect(await resultOf(kind, slug('forged', kind), 'call_x')).toBe(403);
  });

  test.each(ALL_KINDS)('knows a call of a %s stream that broke after it', async (kind) => {
    const run = slug('broke', kind);
    const chunks = openFrames(kind, 'call_a');
    upstream.script({ chunks: [...chunks, 'x'], breakAfterChunks: chunks.length });
    const response = await call({ rungate: own }, kind, { run, members: { stream: true } });
    await expect(response.text()).rejects.toThrow();
    expect((await readSettled(own, run))[0]).toMatchObject({ outcome: 'broken' });
    expect(await resultOf(kind, run, 'call_a')).toBe(200);
    expect(await resultOf(kind, run, 'call_b')).toBe(403);
  });

  test.each(ALL_KINDS)('knows a call of a %s stream whose caller left after it', async (kind) => {
    const run = slug('stopped', kind);
    const chunks = openFrames(kind, 'call_a');
    upstream.script({ chunks: [...chunks, 'x'], stallAfterChunks: chunks.length });
    const response = await call({ rungate: own }, kind, { run, members: { stream: true } });
    const reader = response.body!.getReader();
    let text = '';
    while (text.length < chunks.join('').length) {
      text += new TextDecoder('latin1').decode((await reader.read()).value);
    }
    await reader.cancel();
    expect((await readSettled(own, run))[0]).toMatchObject({ outcome: 'client_left' });
    expect(await resultOf(kind, run, 'call_a')).toBe(200);
  });
});

describe('an answer of another upstream', () => {
  test.each([
    ['chat', 'anthropic'],
    ['messages', 'openai'],
  ] as const)('is held back in the dialect of the caller: %s by %s', async (kind, to) => {
    const from = to === 'openai' ? 'anthropic' : 'openai';
    const failover = [{ model: `${from}/test-model`, to: [`${to}/test-model`] }];
    const own = await deploy({ upstreamUrl: upstream.url, policy: { ...POLICY, failover } });
    const connection = await own.database();
    try {
      const acme = (await findOrg(connection, 'acme'))!;
      for (const stream of [false, true]) {
        const run = slug('failover', kind, stream);
        const options = asking(kind, run, REFUND, {}, stream);
        upstream.script({ error: 503 }, 1);
        const first = await call({ rungate: own }, kind, options);
        const told = await first.text();
        expect(told).toContain('approval_pending');
        expect(told).not.toContain('A-1');
        const [gate] = await listGates(acme, true, 1);
        await decideGate(acme, gate!.id, OPERATOR, Date.now());
        const released = await call({ rungate: own }, kind, options);
        const text = await released.text();
        expect(released.status).toBe(200);
        expect(text).toContain(kind === 'chat' ? 'tool_calls' : 'tool_use');
        expect(text).toContain('A-1');
      }
    } finally {
      await connection.close();
      await own.stop();
    }
  });
});

describe('a run with an answer that waits', () => {
  test('lets its other calls out at their first write, as any run does', async () => {
    const own = await deploy({ upstreamUrl: upstream.url, policy: POLICY, processes: 0 });
    const services = await boot({
      ...{ HOST: '127.0.0.1', PORT: '0', RUNGATE_LOG: 'silent', UPSTREAM_KEY },
      RUNGATE_DATABASE_URL: `file:${own.folder}/rungate.db`,
      RUNGATE_EGRESS_ALLOW: '127.0.0.1/32',
    });
    const written: boolean[] = [];
    const counting: Database = {
      ...services.db,
      async merge(merge, item) {
        const outcome = await services.db.merge(merge, item);
        const isHold = typeof outcome === 'object' && outcome !== null && 'stepId' in outcome;
        if (isHold) written.push(outcome.stepId !== undefined);
        return outcome;
      },
    };
    const server = listen({ ...services, db: counting });
    const at = { rungate: { ...own, url: server.url } };
    const statusOf = async (run: string, prompt: string): Promise<number> => {
      const response = await call(at, 'chat', asking('chat', run, prompt));
      await response.text();
      return response.status;
    };
    try {
      for (const run of ['waits', 'waits not']) expect(await statusOf(run, 'hello')).toBe(200);
      expect(await statusOf('waits', REFUND)).toBe(403);
      for (let nth = 0; nth < 5; nth++) {
        expect(await statusOf('waits', `hello ${nth}`)).toBe(200);
        expect(await statusOf('waits not', `hello ${nth}`)).toBe(200);
        expect(await statusOf('waits', REFUND)).toBe(403);
      }
      // One of the run that waits found out that it does.
      expect(written.filter((isWritten) => !isWritten).length).toBe(1);
      expect(written.length).toBe(14);
    } finally {
      await server.stop(1_000);
      await own.stop();
    }
  });
});

describe('a stream that waits', () => {
  test('says so in comments, then ends with the released bytes or a readable error', async () => {
    const run = 'comments';
    const headers = { prefer: 'wait=6' };
    const response = await ask('chat', asking('chat', run, REFUND, { headers }, true), 1);
    const text = await response.text();
    expect(text).toContain(': waiting\n\n');
    expect(errorIn(text).rungate.code).toBe('approval_pending');
    const replay = ask('chat', asking('chat', run, REFUND, { headers }, true));
    await Bun.sleep(100);
    await approveAll(run);
    expect(await (await replay).text()).toContain('A-1');
  });
});

describe('a process that ends', () => {
  test('leaves gates that another one goes on with, killed or told to stop', async () => {
    const own = await deploy({ upstreamUrl: upstream.url, policy: POLICY });
    const connection = await own.database();
    try {
      const acme = (await findOrg(connection, 'acme'))!;
      for (const [signal, run] of [
        ['SIGKILL', 'killed'],
        ['SIGTERM', 'stopped'],
      ] as const) {
        const server = await own.serve();
        const at = { rungate: { ...own, url: server.ready.groups?.url ?? '' } };
        const headers = { prefer: 'wait=60' };
        const waiting = call(at, 'chat', asking('chat', run, REFUND, { headers })).then(
          (response) => response.status,
          () => 0,
        );
        let gates: Gate[] = [];
        while (gates.length === 0) {
          gates = await listGates(acme, true, 1);
          await Bun.sleep(10);
        }
        const before = upstream.requests.length;
        await server.stop(signal);
        expect(await waiting).toBe(signal === 'SIGKILL' ? 0 : 403);
        const options = asking('chat', run, REFUND);
        expect((await call({ rungate: own }, 'chat', options)).status).toBe(403);
        await decideGate(acme, gates[0]!.id, OPERATOR, Date.now());
        expect((await call({ rungate: own }, 'chat', options)).status).toBe(200);
        expect(upstream.requests.length).toBe(before);
        await readSettled(own, run);
      }
    } finally {
      await connection.close();
      await own.stop();
    }
  }, 60_000);
});
