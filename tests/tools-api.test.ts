/** Local tools over HTTP: asked about before they run, and reported with their cost afterwards. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import type { Step } from '../db/steps.ts';
import { type Deployment, deploy, readTrail } from './rungate.ts';

let rungate: Deployment;

const POLICY = {
  tools: {
    allow: ['*'],
    deny: ['drop_*', { tool: 'pay', when: 'args.amount > 1000' }],
    requireApproval: [
      { name: 'refund over $500', tool: 'refund', when: 'args.amount > 500', expiresAfterS: 600 },
      { tool: 'hasty', expiresAfterS: 1 },
      { tool: 'wire', expiresAfterS: 600 },
    ],
  },
  budget: { run: '1.00', agentPerDay: '1000.00', alertAt: 0.5 },
};

beforeAll(async () => {
  rungate = await deploy({ policy: POLICY, agents: ['tester', 'other'], processes: 2 });
});

afterAll(() => rungate.stop());

interface Decided {
  readonly decision: 'allow' | 'deny' | 'ask';
  readonly rule: string | null;
  readonly reason: string | null;
  readonly released?: boolean;
  readonly gate?: { readonly id: string; readonly status: string; readonly url: string };
}

interface Posting {
  readonly agent?: string;
  readonly headers?: Record<string, string>;
  readonly instance?: number;
}

function post(path: string, body: unknown, { agent = 'tester', headers, instance }: Posting = {}) {
  return fetch(`${rungate.urls[instance ?? 0]}${path}`, {
    method: 'POST',
    headers: { authorization: `Bearer ${rungate.tokens[agent]}`, ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });
}

async function ask(run: string, name: string, args: unknown, posting: Posting = {}) {
  const body = args === undefined ? { name } : { name, arguments: args };
  const response = await post(`/v1/runs/${run}/tools`, body, posting);
  expect(response.status).toBe(200);
  return (await response.json()) as Decided;
}

/** What each call comes to; arguments as an object and as their JSON come to the same. */
const GRID: readonly (readonly [string, unknown, Decided['decision'], string | null])[] = [
  ['search', { q: 'x' }, 'allow', null],
  ['search', undefined, 'allow', null],
  ['drop_table', {}, 'deny', 'tools.deny[0]'],
  ['drop_table', undefined, 'deny', 'tools.deny[0]'],
  ['pay', { amount: 1000 }, 'allow', null],
  ['pay', { amount: 1001 }, 'deny', 'tools.deny[1]'],
  ['pay', {}, 'deny', 'tools.deny[1]'],
  ['refund', { amount: 500 }, 'allow', null],
  ['refund', { amount: 501 }, 'ask', 'tools.requireApproval[0]'],
  ['refund', {}, 'ask', 'tools.requireApproval[0]'],
  ['refund', undefined, 'ask', 'tools.requireApproval[0]'],
];

describe('a tool that is asked about', () => {
  for (const [name, args, decision, rule] of GRID) {
    for (const form of args === undefined ? ['absent'] : ['object', 'text']) {
      test(`${name} with ${JSON.stringify(args)} as ${form}: ${decision}`, async () => {
        const given = form === 'text' ? JSON.stringify(args) : args;
        expect(await ask(`grid-${form}`, name, given)).toMatchObject({ decision, rule });
      });
    }
  }

  test('with arguments that are no JSON, or that two readers read as two things, needs a person', async () => {
    for (const text of [
      '{',
      '',
      '[]',
      '{"amount":1,"amount":900}',
      '{"amount":1,"am\\u006funt":9}',
    ]) {
      expect(await ask('unreadable', 'refund', text)).toMatchObject({ decision: 'ask' });
    }
  });

  test('is on the trail with its decision, and denials raise drift once', async () => {
    for (const name of ['search', 'drop_a', 'drop_b']) await ask('on-trail', name, {});
    await ask('on-trail', 'refund', { amount: 502 });
    const steps = await readTrail(rungate, 'on-trail');
    const seen = steps.map(({ kind, outcome }) => `${kind} ${outcome}`).sort();
    expect(seen).toEqual([
      'denial permission_denied',
      'denial permission_denied',
      'gate approval_pending',
      'note tool_allowed',
    ]);
    expect(await countEvents('policy.drift', '$.kind', 'tool')).toBe(1);
  });
});

async function decide(verb: 'approve' | 'reject', gate: string | undefined): Promise<void> {
  const done = await rungate.cli('gates', verb, gate ?? '', '--org', 'acme');
  expect(done.stderr + done.code).toBe('0');
}

describe('a gate of a tool', () => {
  test('is the same one for the same question, on every instance', async () => {
    const asked = await Promise.all(
      Array.from({ length: 20 }, (_, at) =>
        ask('same', 'refund', { amount: 600 }, { instance: at % 2 }),
      ),
    );
    expect(new Set(asked.map(({ gate }) => gate?.id)).size).toBe(1);
    const other = await ask('same', 'refund', { amount: 601 });
    expect(other.gate?.id).not.toBe(asked[0]?.gate?.id);
    const elsewhere = await ask('same', 'refund', { amount: 600 }, { agent: 'other' });
    expect(elsewhere.gate?.id).not.toBe(asked[0]?.gate?.id);
  });

  test('allows one call once it is approved, however many ask at once', async () => {
    const { gate } = await ask('once', 'refund', { amount: 700 });
    await decide('approve', gate?.id);
    const asked = await Promise.all(
      Array.from({ length: 10 }, (_, at) =>
        ask('once', 'refund', { amount: 700 }, { instance: at % 2 }),
      ),
    );
    const allowed = asked.filter(({ decision }) => decision === 'allow');
    expect(allowed).toHaveLength(1);
    expect(allowed[0]).toMatchObject({
      released: true,
      gate: { id: gate?.id, status: 'released' },
    });
    const rest = new Set(
      asked.filter((each) => each.decision === 'ask').map((each) => each.gate?.id),
    );
    expect(rest.size).toBe(1);
    expect(rest.has(gate?.id)).toBe(false);
  });

  test('denies for the rest of the run once it is rejected', async () => {
    const { gate } = await ask('rejected', 'refund', { amount: 800 });
    await decide('reject', gate?.id);
    for (let time = 0; time < 2; time++) {
      const again = await ask('rejected', 'refund', { amount: 800 });
      expect(again).toMatchObject({ decision: 'deny', gate: { id: gate?.id, status: 'rejected' } });
    }
  });

  test('that nobody decides in time denies, and then may be asked anew', async () => {
    const { gate } = await ask('expired', 'hasty', {});
    const waited = await ask('expired', 'hasty', {}, { headers: { prefer: 'wait=20' } });
    expect(waited).toMatchObject({ decision: 'deny', gate: { id: gate?.id, status: 'expired' } });
    const anew = await ask('expired', 'hasty', {});
    expect(anew.decision).toBe('ask');
    expect(anew.gate?.id).not.toBe(gate?.id);
  });

  test('is waited for as long as the caller prefers', async () => {
    const { gate } = await ask('waiting', 'refund', { amount: 900 });
    const waits = { headers: { prefer: 'wait=60' }, instance: 1 };
    const waiting = ask('waiting', 'refund', { amount: 900 }, waits);
    await decide('approve', gate?.id);
    expect(await waiting).toMatchObject({ decision: 'allow', released: true });
  });

  test('is one of so many that may wait at once for an agent', async () => {
    const { gate } = await ask('many', 'refund', { amount: 1 + 500 });
    const db = await rungate.database();
    const [columns] = await db.read(
      `select group_concat(name) as names from pragma_table_info('gates')
       where name not in ('id', 'digest')`,
      [],
    );
    const copy = `insert into gates (id, digest, ${columns?.names})
      with recursive n (at) as (select 1 union all select at + 1 from n where at < 2000)
      select id || '-' || at, digest || at, ${columns?.names} from gates, n where id = ?1`;
    await db.write([{ sql: copy, args: [gate!.id] }]);
    const more = { name: 'refund', arguments: { amount: 777 } };
    const refused = await post('/v1/runs/many/tools', more);
    expect(refused.status).toBe(429);
    expect(refused.headers.get('retry-after')).toBe('60');
    expect((await post('/v1/runs/many/tools', more, { agent: 'other' })).status).toBe(200);
    expect((await ask('many', 'refund', { amount: 501 })).gate?.id).toBe(gate!.id);
    await db.write([{ sql: "delete from gates where id like ?1 || '-%'", args: [gate!.id] }]);
    await db.close();
    expect((await ask('many', 'refund', { amount: 777 })).decision).toBe('ask');
  });

  const ENDS = [
    ['its run is cancelled', 'runs', "status = 'cancelled'", 'run_closed'],
    ['its run is blocked', 'runs', "status = 'blocked'", 'run_closed'],
    ['its run is completed', 'runs', "status = 'completed'", 'run_closed'],
    ['its agent is suspended', 'agents', 'suspended_at = 1', 'agent_suspended'],
    ['its token is revoked', 'tokens', 'revoked_at = 1', 'invalid_api_key'],
    ['its token expires', 'tokens', 'expires_at = 1', 'invalid_api_key'],
    ['its org is suspended', 'orgs', 'suspended_at = 1', 'org.suspended'],
  ] as const;
  test.each(ENDS)('is not waited for any longer once %s', async (_, table, change, code) => {
    const run = `ended-${ENDS.findIndex((end) => end[2] === change)}`;
    const asked = { name: 'refund', arguments: { amount: 902 } };
    const headers = { prefer: 'wait=240' };
    const waiting = post(`/v1/runs/${run}/tools`, asked, { agent: 'other', headers, instance: 1 });
    const db = await rungate.database();
    const opened = `select id from gates where run_id = (select id from runs where name = ?1)`;
    let gate = await db.first(opened, [run]);
    while (!gate) gate = await Bun.sleep(20).then(() => db.first(opened, [run]));
    const ids = {
      runs: 'select run_id from gates where id = ?1',
      agents: 'select agent_id from gates where id = ?1',
      tokens: 'select token_id from gates where id = ?1',
      orgs: 'select org_id from gates where id = ?1',
    };
    const [column] = change.split(' = ');
    const where = `where id = (${ids[table]})`;
    const before = await db.first(`select ${column} as value from ${table} ${where}`, [gate.id!]);
    await db.write([{ sql: `update ${table} set ${change} ${where}`, args: [gate.id!] }]);
    const refused = await waiting;
    expect(refused.status).toBeWithin(401, 404);
    expect(await refused.text()).toContain(code);
    const undo = `update ${table} set ${column} = ?2 ${where}`;
    await db.write([{ sql: undo, args: [gate.id!, before!.value!] }]);
    await db.close();
  });

  test('of a run that is cancelled meanwhile is refused', async () => {
    const { gate } = await ask('cancelled', 'refund', { amount: 901 });
    await rungate.cli('run', 'cancel', 'cancelled', '--org', 'acme');
    const response = await post('/v1/runs/cancelled/tools', {
      name: 'refund',
      arguments: { amount: 901 },
    });
    expect(response.status).toBe(403);
    expect(await response.text()).toContain('run_closed');
    expect(gate?.status).toBe('pending');
  });
});

async function report(run: string, body: object, posting: Posting = {}) {
  const whole = { kind: 'tool_call', name: 'search', outcome: 'ok', latencyMs: 12, ...body };
  const response = await post(`/v1/runs/${run}/steps`, whole, posting);
  return { status: response.status, body: (await response.json()) as { step: Step } };
}

describe('a tool that is reported', () => {
  test('is a step whose cost counts against the run', async () => {
    const { status, body } = await report('paid', {
      costUsd: '0.25',
      callId: 'call_1',
      detail: { rows: 3 },
    });
    expect(status).toBe(201);
    expect(body.step).toMatchObject({
      kind: 'tool_call',
      outcome: 'ok',
      latencyMs: 12,
      spentNanos: 250_000_000,
      detail: { tool: 'search', callId: 'call_1', detail: { rows: 3 } },
    });
    expect(await showRun('paid')).toMatchObject({ spent: '0.25', status: 'open' });
  });

  test('counts once under its key, however often and wherever it is sent', async () => {
    const posting = { headers: { 'idempotency-key': 'k1' } };
    const sent = await Promise.all(
      Array.from({ length: 10 }, (_, at) =>
        report('repeated', { costUsd: '0.10' }, { ...posting, instance: at % 2 }),
      ),
    );
    expect(sent.map(({ status }) => status).sort()).toEqual([...Array(9).fill(200), 201]);
    expect(new Set(sent.map(({ body }) => body.step.id)).size).toBe(1);
    expect(await showRun('repeated')).toMatchObject({ spent: '0.10' });
    expect((await report('repeated', { costUsd: '0.20' }, posting)).status).toBe(400);
    expect((await report('repeated', { costUsd: '0.20', id: 'k2' })).status).toBe(201);
  });

  test('is recorded beyond the ceiling, and then the run is stopped', async () => {
    expect((await report('beyond', { costUsd: '1.50' })).status).toBe(201);
    expect(await showRun('beyond')).toMatchObject({
      spent: '1.50',
      status: 'blocked',
      closedReason: 'budget.run',
    });
    expect((await report('beyond', { costUsd: '0.50' })).status).toBe(201);
    expect(await showRun('beyond')).toMatchObject({ spent: '2.00' });
    const { id } = (await showRun('beyond')) as { id: string };
    for (const type of ['budget.exceeded', 'run.blocked', 'budget.alert']) {
      expect(await countEvents(type, '$.runId', id)).toBe(1);
    }
    const asked = await post('/v1/runs/beyond/tools', { name: 'search' });
    expect(asked.status).toBe(402);
    const { code, stdout } = await rungate.cli('doctor', '--json');
    expect([code, JSON.parse(stdout)]).toMatchObject([0, { ok: true, overCeiling: 0 }]);
  });

  const DENY = 'tools.deny[0]';
  const REFUND = 'tools.requireApproval[0]';
  const WIRE = 'tools.requireApproval[2]';
  const asking = (name: string, amount: number) => async (run: string) => {
    return (await ask(run, name, { amount })).gate?.id;
  };
  const deciding = (verb: 'approve' | 'reject', isUsed: boolean) => async (run: string) => {
    await decide(verb, await asking('wire', 1)(run));
    if (isUsed) await asking('wire', 1)(run);
  };
  const giving = async (run: string) => {
    await ask(run, 'search', {});
    const db = await rungate.database();
    const sql = `insert into released_calls (org_id, run_id, call_id, was_released, created_at)
      select org_id, id, 'call_1', 1, 1 from runs where name = ?1`;
    await db.write([{ sql, args: [run] }]);
    await db.close();
  };
  /** What was before a report, what it is of, and the rule by which it is marked. */
  const REPORTS: readonly (readonly [
    string,
    ((run: string) => Promise<unknown>) | undefined,
    object,
    string | undefined,
  ])[] = [
    ['a tool that nothing governs', undefined, {}, undefined],
    ['a tool that is denied', undefined, { name: 'drop_table' }, DENY],
    ['a tool that is denied, by a known call', giving, { name: 'Drop_X', callId: 'call_1' }, DENY],
    ['a tool that needs approval', undefined, { name: 'wire' }, WIRE],
    ['a call that waits', asking('wire', 1), { name: 'wire' }, WIRE],
    ['a call that was rejected', deciding('reject', true), { name: 'wire' }, WIRE],
    ['a call that was approved', deciding('approve', false), { name: 'wire' }, undefined],
    ['a call that was released', deciding('approve', true), { name: 'wire' }, undefined],
    ['a call that was given', giving, { name: 'wire', callId: 'call_1' }, undefined],
    ['a call that was not given', giving, { name: 'wire', callId: 'call_2' }, WIRE],
    ['a tool that may need approval', undefined, { name: 'refund' }, undefined],
    ['a tool that did need approval', asking('refund', 600), { name: 'refund' }, REFUND],
    ['a tool that needed none', asking('refund', 400), { name: 'refund' }, undefined],
    ['a tool that may be denied', undefined, { name: 'pay' }, undefined],
    ['a tool that was denied', asking('pay', 1001), { name: 'pay' }, 'tools.deny[1]'],
  ];
  test.each(REPORTS)(
    'is taken, and marked if nothing let it run: %s',
    async (what, act, told, rule) => {
      const run = what.replaceAll(/\W+/g, '-');
      await act?.(run);
      for (const status of [201, 200]) {
        expect(await report(run, { ...told, id: 'k1', costUsd: '0.01' })).toMatchObject({ status });
      }
      const trail = await readTrail(rungate, run);
      const marks = trail.filter(({ outcome }) => outcome === 'unreleased_report');
      const step = trail.find(({ kind }) => kind === 'tool_call')!.id;
      expect(marks).toMatchObject(rule ? [{ kind: 'note', detail: { rule, step } }] : []);
    },
  );

  test('and marked is the same report once its call is approved', async () => {
    await report('late', { name: 'wire', id: 'k1' });
    await deciding('approve', true)('late');
    expect((await report('late', { name: 'wire', id: 'k1' })).status).toBe(200);
  });

  const FAULTS: readonly (readonly [string, object])[] = [
    ['another kind', { kind: 'model_call' }],
    ['no name', { name: '' }],
    ['a name that hides its end', { name: 'look_up\0/wire' }],
    ['a call’s id of two lines', { callId: 'call\n1' }],
    ['an id that hides its end', { id: 'k1\0' }],
    ['a negative cost', { costUsd: '-1' }],
    ['a cost that is a number', { costUsd: 1 }],
    ['a cost that is no number', { costUsd: 'NaN' }],
    ['a latency below zero', { latencyMs: -1 }],
    ['a start in the future', { startedAt: '2999-01-01T00:00:00Z' }],
    ['an unknown member', { cost: '1' }],
    ['too long a detail', { detail: 'x'.repeat(20_000) }],
  ];
  for (const [what, fault] of FAULTS) {
    test(`is refused with ${what}, naming the field`, async () => {
      const { status, body } = await report('faulty', fault);
      expect(status).toBe(400);
      expect(JSON.stringify(body)).toContain('rungate_invalid_request');
    });
  }

  test('of another agent’s run is a run of one’s own', async () => {
    await report('private', { costUsd: '0.10' });
    await report('private', { costUsd: '0.30' }, { agent: 'other' });
    expect(await showRun('private')).toMatchObject({ spent: '0.10' });
    expect(await showRun('private', 'other')).toMatchObject({ spent: '0.30' });
  });

  test('or asked about by a name with a control character is refused', async () => {
    for (const end of ['\0', '\0/pay', '\n', '\u0085']) {
      const name = `look_up${end}`;
      expect((await post('/v1/runs/faulty/tools', { name, arguments: {} })).status).toBe(400);
    }
  });

  test('or asked about in an ambiguous body is refused', async () => {
    for (const path of ['/v1/runs/odd/tools', '/v1/runs/odd/steps']) {
      for (const body of ['{"name":"a","name":"b"}', '{"Name":"a","name":"b"}', '[]', '{']) {
        expect((await post(path, body)).status).toBe(400);
      }
    }
  });
});

// Comes last: after it the month has no room for what others report.
test('costs that no sum could hold exactly are refused, with a key or without, and leave nothing', async () => {
  const spent = Number(((await showRun('paid')) as { spentNanos: number }).spentNanos);
  expect((await report('vast', { costUsd: '4499000' })).status).toBe(201);
  for (const run of ['vast', 'vast-2']) {
    for (const more of [{}, { id: 'k1' }]) {
      const { status, body } = await report(run, { costUsd: '4499000', ...more });
      expect(status).toBe(400);
      expect(JSON.stringify(body)).toContain('costUsd');
    }
    expect((await report(run, { costUsd: '0.01', id: 'k1' })).status).toBe(201);
  }
  expect(await showRun('vast')).toMatchObject({ spent: '4499000.01' });
  expect(await showRun('paid')).toMatchObject({ spentNanos: spent });
});

async function showRun(run: string, agent = 'tester') {
  const headers = { authorization: `Bearer ${rungate.tokens[agent]}` };
  return (await fetch(`${rungate.url}/v1/runs/${run}`, { headers })).json();
}

async function countEvents(type: string, path: string, value: string): Promise<unknown> {
  const db = await rungate.database();
  const [row] = await db.read(
    'select count(*) as events from events where type = ?1 and data ->> ?2 = ?3',
    [type, path, value],
  );
  await db.close();
  return row?.events;
}
