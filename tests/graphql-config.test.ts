/** Agents, tokens, policies, provider keys, prices and the org over GraphQL. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import fc from 'fast-check';
import { createAgent } from '../db/agents.ts';
import { addPolicyVersion } from '../db/policies.ts';
import { newId } from '../db/seal.ts';
import { formatDollars, type Nanos } from '../schema/money.ts';
import { policySchema } from '../schema/policy.ts';
import { AGENT_ACTIONS, actionsOf } from '../schema/roles.ts';
import { decideModel } from '../schema/rules/decide.ts';
import { type Recorded, simulate } from '../schema/rules/simulate.ts';
import { type Deployment, deploy } from './rungate.ts';
import { bearer, makeWorld, type Watch } from './world.ts';

setDefaultTimeout(60_000);

let rungate: Deployment;

beforeAll(async () => {
  rungate = await deploy({ policy: { tools: { deny: ['drop_*'] } } });
});
afterAll(() => rungate.stop());

// biome-ignore lint/suspicious/noExplicitAny: what an answer holds is known to the query alone.
type Json = Record<string, any>;

/** Sends a document as the owner, or with another token. */
async function send(query: string, variables: object = {}, token = rungate.adminToken) {
  const response = await fetch(`${rungate.url}/graphql`, {
    method: 'POST',
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    body: JSON.stringify({ query, variables }),
  });
  return (await response.json()) as { data?: Json; errors?: Json[] };
}

/** Reads, and has no errors. */
async function read(query: string, variables: object = {}, token?: string): Promise<Json> {
  const { data, errors } = await send(query, variables, token);
  expect(errors).toBeUndefined();
  return data!;
}

const ERRORS = 'errors { code field message }';

/** Runs a mutation by its name; gives its payload. */
async function run(name: string, input: object, fields: string, token?: string): Promise<Json> {
  const type = `${name[0]!.toUpperCase()}${name.slice(1)}Input`;
  const query = `mutation ($input: ${type}!) { ${name}(input: $input) { ${fields} ${ERRORS} } }`;
  return (await read(query, { input }, token))[name];
}

/** Runs a mutation that must do what it says. */
async function succeed(name: string, input: object, fields: string, token?: string): Promise<Json> {
  const payload = await run(name, input, fields, token);
  expect(payload.errors).toEqual([]);
  return payload;
}

/** Runs a mutation that must not; gives its errors as code and field. */
async function fail(name: string, input: object, token?: string): Promise<[string, string][]> {
  const { errors } = await run(name, input, '', token);
  return errors.map(({ code, field }: Json) => [code, field.join('.')]);
}

let count = 0;
const unique = (stem: string) => `${stem}-${++count}`;

async function makePolicy(document: object = {}): Promise<string> {
  const input = { name: unique('policy'), document };
  return (await succeed('policyCreate', input, 'policy { id }')).policy.id;
}

async function makeAgent(terms: object = {}): Promise<{ id: string; secret: string }> {
  const policyId = await makePolicy();
  const input = { name: unique('agent'), policyId, ...terms };
  const { agent, secret } = await succeed('agentCreate', input, 'agent { id } secret');
  return { id: agent.id, secret };
}

/** Calls the built-in model as an agent. */
async function call(secret: string, headers: Record<string, string> = {}) {
  const response = await fetch(`${rungate.url}/v1/chat/completions`, {
    method: 'POST',
    headers: { authorization: `Bearer ${secret}`, 'content-type': 'application/json', ...headers },
    body: JSON.stringify({ model: 'demo/demo-small', messages: [{ role: 'user', content: 'Hi' }] }),
  });
  await response.text();
  return response.status;
}

/** Entries of the audit trail by action, as the database has them. */
async function audited(action: string, target: string): Promise<Json[]> {
  const db = await rungate.database();
  try {
    const rows = await db.read(
      'select outcome, payload from audit_entries where action = ?1 and target = ?2 order by seq',
      [action, target],
    );
    return rows.map(({ outcome, payload }) => ({ outcome, ...JSON.parse(String(payload)) }));
  } finally {
    await db.close();
  }
}

describe('the viewer and the org', () => {
  test('are told with the member, the token and all that it may do', async () => {
    const { me, org } = await read(`{
      me { via memberId email actions token { name kind lastFour } org { slug } }
      org { id slug name plan createdAt suspendedAt deletionRequestedAt deletesAt }
    }`);
    expect(me).toMatchObject({ via: 'TOKEN', email: 'owner@example.com', org: { slug: 'acme' } });
    expect(me.actions).toEqual([...actionsOf('owner')]);
    expect(me.token).toMatchObject({ name: 'init', kind: 'ADMIN' });
    expect(rungate.adminToken.endsWith(me.token.lastFour)).toBe(true);
    expect(org).toMatchObject({ slug: 'acme', name: 'Acme', suspendedAt: null, deletesAt: null });
  });

  test('is renamed to any name on one line, and to nothing else', async () => {
    const name = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 120 });
    const property = fc.asyncProperty(name, async (text) => {
      const isFine = /^[^\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]{1,100}$/u.test(text.trim());
      const { org, errors } = await run('orgUpdate', { name: text }, 'org { name }');
      if (isFine) expect(org.name).toBe(text.trim());
      else expect(errors).toMatchObject([{ code: 'INVALID', field: ['name'] }]);
    });
    await fc.assert(property, {
      numRuns: 40,
      examples: [['Acme'], ['a\nb'], [' '], ['x'.repeat(101)]],
    });
  });
});

describe('an org is managed from nothing to a governed call', () => {
  test('with a key, a policy and an agent, whose spend is then told', async () => {
    const key = { name: unique('own'), provider: 'demo' };
    await succeed('providerKeyCreate', key, 'providerKey { id }');
    const { id, secret } = await makeAgent();
    expect(await call(secret)).toBe(200);
    const { agent } = await read(
      `query ($id: AgentID!) { agent(id: $id) {
        policy { newest { number } } spentToday { nanos dollars } spentThisMonth { nanos }
      } }`,
      { id },
    );
    expect(agent.policy.newest.number).toBe(1);
    expect(agent.spentToday.nanos).toBeGreaterThan(0);
    expect(agent.spentThisMonth.nanos).toBe(agent.spentToday.nanos);
    expect(agent.spentToday.dollars).toBe(formatDollars(agent.spentToday.nanos));
  });

  test('and everything of it is found by its name, and under no other', async () => {
    const [policy, agent, key] = [unique('p'), unique('a'), unique('k')];
    const made = await succeed('policyCreate', { name: policy, document: {} }, 'policy { id }');
    await succeed('agentCreate', { name: agent, policyId: made.policy.id }, 'agent { id }');
    await succeed('providerKeyCreate', { name: key, provider: 'demo' }, 'providerKey { id }');
    const query = `query ($policy: String!, $agent: String!, $key: String!) {
      policyByName(name: $policy) { name } agentByName(name: $agent) { name }
      providerKeyByName(name: $key) { name baseUrl }
    }`;
    expect(await read(query, { policy, agent, key })).toEqual({
      policyByName: { name: policy },
      agentByName: { name: agent },
      providerKeyByName: { name: key, baseUrl: '' },
    });
    const none = { policyByName: null, agentByName: null, providerKeyByName: null };
    expect(await read(query, { policy: 'x', agent: 'x', key: 'x' })).toEqual(none);
    expect(await fail('policyCreate', { name: policy, document: {} })).toEqual([
      ['CONFLICT', 'input'],
    ]);
    expect(await fail('providerKeyCreate', { name: key, provider: 'demo' })).toEqual([
      ['CONFLICT', 'input'],
    ]);
  });
});

/** Every mutation here that takes ids, with ids that are nobody's, and which field it blames. */
const MISSING: readonly (readonly [string, () => Promise<object>, string])[] = [
  ['policyUpdate', async () => ({ policyId: newId('policy'), document: {} }), 'policyId'],
  ['policyDelete', async () => ({ policyId: newId('policy') }), 'policyId'],
  ['policySimulate', async () => ({ policyId: newId('policy') }), 'policyId'],
  ['policySimulate', async () => ({ document: {}, runIds: [newId('run')] }), 'runIds.0'],
  ['agentCreate', async () => ({ name: 'x', policyId: newId('policy') }), 'policyId'],
  ['agentUpdate', async () => ({ agentId: newId('agent') }), 'agentId'],
  [
    'agentUpdate',
    async () => ({ agentId: (await makeAgent()).id, policyId: newId('policy') }),
    'policyId',
  ],
  [
    'agentUpdate',
    async () => ({ agentId: (await makeAgent()).id, choices: [{ policyId: newId('policy') }] }),
    'choices.0.policyId',
  ],
  ['policyPin', async () => ({ agentId: newId('agent'), version: 1 }), 'agentId'],
  ['agentSuspend', async () => ({ agentId: newId('agent') }), 'agentId'],
  ['agentResume', async () => ({ agentId: newId('agent') }), 'agentId'],
  ['agentDelete', async () => ({ agentId: newId('agent') }), 'agentId'],
  ['agentTokenCreate', async () => ({ agentId: newId('agent') }), 'agentId'],
  ['agentTokensRotate', async () => ({ agentId: newId('agent') }), 'agentId'],
  ['agentTokensRevoke', async () => ({ agentId: newId('agent') }), 'agentId'],
  ['tokenUpdate', async () => ({ tokenId: newId('token'), name: 'x' }), 'tokenId'],
  ['tokenRotate', async () => ({ tokenId: newId('token') }), 'tokenId'],
  ['tokenRevoke', async () => ({ tokenId: newId('token') }), 'tokenId'],
  ['providerKeyUpdate', async () => ({ providerKeyId: newId('providerKey') }), 'providerKeyId'],
  ['providerKeyDelete', async () => ({ providerKeyId: newId('providerKey') }), 'providerKeyId'],
  ['priceDelete', async () => ({ model: 'openai/none' }), 'model'],
];

describe('what is not there is not found, and nothing is said to have changed', () => {
  test.each(MISSING)('by %s with %p, which blames %s', async (name, input, field) => {
    const given = await input();
    expect(await fail(name, given)).toEqual([['NOT_FOUND', field]]);
    const [id] = Object.values(given) as string[];
    const entries = await audited(ACTION_OF[name] ?? '', String(id));
    expect(entries.filter(({ outcome }) => outcome === 'allowed')).toEqual([]);
  });
});

const ACTION_OF: Record<string, string> = {
  policyDelete: 'policy.delete',
  agentSuspend: 'agent.suspend',
  agentResume: 'agent.resume',
  agentDelete: 'agent.delete',
  tokenRevoke: 'token.revoke',
  providerKeyDelete: 'provider_key.delete',
};

describe('a policy', () => {
  test('gets a version for each document that says something else, and for no other', async () => {
    const budget = fc.record({
      budget: fc.record({
        run: fc.constantFrom('1.00', '2.00'),
        alertAt: fc.constantFrom(0.5, 0.8),
      }),
      capture: fc.constantFrom('none', 'digest'),
    });
    const property = fc.asyncProperty(
      fc.array(budget, { minLength: 1, maxLength: 8 }),
      async (documents) => {
        const policyId = await makePolicy({});
        let [newest, number] = ['{}', 1];
        for (const document of documents) {
          const shuffled = Object.fromEntries(Object.entries(document).reverse());
          const input = { policyId, document: shuffled };
          const fields = 'changed policy { newest { number document label createdBy } }';
          const { changed, policy } = await succeed('policyUpdate', input, fields);
          expect(changed).toBe(JSON.stringify(document) !== newest);
          if (changed) number++;
          newest = JSON.stringify(document);
          expect(policy.newest).toMatchObject({ number, document });
          expect(policy.newest.createdBy).toStartWith('mem_');
        }
      },
    );
    await fc.assert(property, { numRuns: 10 });
  });

  test('is refused with the place of every fault', async () => {
    const document = {
      models: { allow: [7] },
      tools: { requireApproval: [{ tool: 'pay', when: 'args.amount >' }] },
      unknown: true,
    };
    const wrong = await fail('policyCreate', { name: unique('p'), document });
    expect(wrong).toContainEqual(['INVALID', 'document.models.allow.0']);
    expect(wrong).toContainEqual(['INVALID', 'document.tools.requireApproval.0.when']);
    expect(wrong.every(([code]) => code === 'INVALID')).toBe(true);
    const large = {
      models: { allow: Array.from({ length: 500 }, (_, at) => `${at}`.padEnd(250, 'x')) },
    };
    expect(await fail('policyCreate', { name: unique('p'), document: large })).toEqual([
      ['INVALID', 'document'],
    ]);
    for (const other of [null, 7, 'x', []]) {
      const { data, errors } = await send(
        'mutation ($input: PolicyCreateInput!) { policyCreate(input: $input) { errors { code } } }',
        { input: { name: unique('p'), document: other } },
      );
      const [first] = data?.policyCreate.errors ?? errors;
      expect(first).toBeDefined();
    }
  });

  test('pages its versions both ways without a gap or a repeat', async () => {
    const policyId = await makePolicy({});
    for (let steps = 1; steps <= 6; steps++) {
      await succeed(
        'policyUpdate',
        { policyId, document: { run: { maxSteps: steps } } },
        'changed',
      );
    }
    const query = `query ($id: PolicyID!, $first: Int, $last: Int, $after: String, $before: String) {
      policy(id: $id) { versions(first: $first, last: $last, after: $after, before: $before) {
        nodes { number } pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
      } }
    }`;
    const seen: number[] = [];
    for (let after: string | null = null; ; ) {
      const { policy } = await read(query, { id: policyId, first: 2, after });
      seen.push(...policy.versions.nodes.map(({ number }: Json) => number));
      if (!policy.versions.pageInfo.hasNextPage) break;
      after = policy.versions.pageInfo.endCursor;
    }
    expect(seen).toEqual([7, 6, 5, 4, 3, 2, 1]);
    const { policy } = await read(query, { id: policyId, last: 3 });
    expect(policy.versions.nodes.map(({ number }: Json) => number)).toEqual([3, 2, 1]);
    expect(policy.versions.pageInfo).toMatchObject({ hasPreviousPage: true, hasNextPage: false });
  });

  test('is deleted only when no agent has it or may choose it, and no kept run was opened with it', async () => {
    const [own, chosen, ran] = [await makePolicy(), await makePolicy(), await makePolicy()];
    const { id, secret } = await makeAgent({ policyId: ran, choices: [{ policyId: chosen }] });
    expect(await call(secret)).toBe(200);
    await succeed('agentUpdate', { agentId: id, policyId: own }, 'changed');
    for (const policyId of [own, chosen, ran]) {
      expect(await fail('policyDelete', { policyId })).toEqual([['CONFLICT', 'policyId']]);
    }
    await succeed('agentUpdate', { agentId: id, choices: [] }, 'changed');
    expect(await succeed('policyDelete', { policyId: chosen }, 'deletedId')).toMatchObject({
      deletedId: chosen,
    });
    expect(
      await read('query ($id: PolicyID!) { policy(id: $id) { name } }', { id: chosen }),
    ).toEqual({
      policy: null,
    });
    const [entry] = await audited('policy.delete', chosen);
    expect(entry).toMatchObject({ outcome: 'allowed', before: { name: expect.any(String) } });
  });
});

describe('an agent', () => {
  test('is what the last changes made of it, and a change of nothing changes nothing', async () => {
    const policies = [await makePolicy(), await makePolicy()];
    for (const policyId of policies) {
      await succeed('policyUpdate', { policyId, document: { run: { maxSteps: 5 } } }, 'changed');
    }
    const policyId = fc.constantFrom(...policies);
    const version = fc.constantFrom(null, 1, 2);
    const change = fc.record(
      {
        policyId,
        pinnedVersion: version,
        choices: fc.uniqueArray(fc.record({ policyId, version }), {
          maxLength: 3,
          selector: (choice) => JSON.stringify(choice),
        }),
      },
      { requiredKeys: [] },
    );
    const property = fc.asyncProperty(fc.array(change, { maxLength: 6 }), async (changes) => {
      const { id } = await makeAgent({ policyId: policies[0] });
      let model: Json = { policyId: policies[0], pinnedVersion: null, choices: [] };
      for (const wanted of changes) {
        const isMoved = (wanted.policyId ?? model.policyId) !== model.policyId;
        const next = { ...model, ...(isMoved ? { pinnedVersion: null } : {}), ...wanted };
        const fields =
          'changed agent { policy { id } pinnedVersion choices { policy { id } version } }';
        const { changed, agent } = await succeed('agentUpdate', { agentId: id, ...wanted }, fields);
        expect(changed).toBe(shape(next) !== shape(model));
        model = next;
        expect(
          shape({
            ...{ policyId: agent.policy.id, pinnedVersion: agent.pinnedVersion },
            choices: agent.choices.map(({ policy, version }: Json) => ({
              policyId: policy.id,
              version,
            })),
          }),
        ).toBe(shape(model));
      }
    });
    await fc.assert(property, { numRuns: 12 });
  });

  const shape = ({ policyId, pinnedVersion, choices }: Json) =>
    JSON.stringify([
      policyId,
      pinnedVersion,
      choices.map((choice: Json) => `${choice.policyId}/${choice.version}`).sort(),
    ]);

  test('is not pinned to a version that is not there, nor by who may not pin', async () => {
    const policyId = await makePolicy();
    for (const version of [0, -1, 2, 999]) {
      const input = { name: unique('a'), policyId, pinnedVersion: version };
      expect(await fail('agentCreate', input)).toEqual([['INVALID', 'pinnedVersion']]);
      const { id } = await makeAgent({ policyId });
      expect(await fail('policyPin', { agentId: id, version })).toEqual([['INVALID', 'version']]);
    }
    const actions = ['agent.create', 'agent.update', 'agent.read', 'policy.read'];
    const { secret } = await succeed('tokenCreate', { name: 't', actions }, 'secret');
    const input = { name: unique('a'), policyId, pinnedVersion: 1 };
    expect(await fail('agentCreate', input, secret)).toEqual([['FORBIDDEN', 'pinnedVersion']]);
    const { id } = await makeAgent({ policyId });
    const pin = { agentId: id, pinnedVersion: 1 };
    expect(await fail('agentUpdate', pin, secret)).toEqual([['FORBIDDEN', 'pinnedVersion']]);
    const { agent } = await succeed(
      'policyPin',
      { agentId: id, version: 1 },
      'agent { pinnedVersion }',
    );
    expect(agent.pinnedVersion).toBe(1);
  });

  test('that is suspended calls nothing until it is resumed, and each is recorded once', async () => {
    const { id, secret } = await makeAgent();
    for (const [name, isSuspended, status] of [
      ['agentSuspend', true, 403],
      ['agentResume', false, 200],
    ] as const) {
      for (let time = 0; time < 2; time++) {
        const { agent } = await succeed(name, { agentId: id }, 'agent { suspendedAt }');
        expect(agent.suspendedAt !== null).toBe(isSuspended);
      }
      expect(await call(secret)).toBe(status);
    }
    expect(await audited('agent.suspend', id)).toHaveLength(1);
    expect(await audited('agent.resume', id)).toHaveLength(1);
  });

  test('is deleted with its tokens once no run of it is open, and its trail stays', async () => {
    const { id, secret } = await makeAgent();
    expect(await call(secret, { 'x-rungate-run-id': 'last' })).toBe(200);
    expect(await fail('agentDelete', { agentId: id })).toEqual([['CONFLICT', 'agentId']]);
    const headers = { authorization: `Bearer ${secret}` };
    await fetch(`${rungate.url}/v1/runs/last/complete`, { method: 'POST', headers });
    expect(await succeed('agentDelete', { agentId: id }, 'deletedId')).toMatchObject({
      deletedId: id,
    });
    expect(await call(secret)).toBe(401);
    const db = await rungate.database();
    const runs = await db.read('select spent_nanos from runs where agent_id = ?1', [id]);
    await db.close();
    expect(Number(runs[0]?.spent_nanos)).toBeGreaterThan(0);
  });

  test('is listed by a filter in either order, and with its policy and tokens', async () => {
    const stem = unique('listed');
    const policyId = await makePolicy();
    const names = ['b', 'a', 'c'].map((end) => `${stem}-${end}`);
    for (const name of names) await succeed('agentCreate', { name, policyId }, 'agent { id }');
    const list = async (field: string, direction: string) => {
      const { agents } = await read(
        `query ($name: String, $orderBy: AgentOrder) {
          agents(first: 10, filter: { name: $name, isSuspended: false }, orderBy: $orderBy) { nodes {
            name policy { id agents(first: 5) { nodes { name } } } tokens(first: 5) { nodes { kind actions agent { name } } }
          } }
        }`,
        { name: stem.toUpperCase(), orderBy: { field, direction } },
      );
      return agents.nodes;
    };
    const sorted = names.toSorted();
    const nodes = await list('NAME', 'ASC');
    expect(nodes.map(({ name }: Json) => name)).toEqual(sorted);
    for (const { name, policy, tokens } of nodes) {
      expect(policy).toEqual({
        id: policyId,
        agents: { nodes: sorted.map((each) => ({ name: each })) },
      });
      expect(tokens.nodes).toEqual([
        { kind: 'AGENT', actions: [...AGENT_ACTIONS], agent: { name } },
      ]);
    }
    expect((await list('NAME', 'DESC')).map(({ name }: Json) => name)).toEqual(sorted.toReversed());
    const byAge = (await list('CREATED_AT', 'DESC')).map(({ name }: Json) => name);
    expect(byAge.toSorted()).toEqual(sorted);
  });
});

describe('a page of agents', () => {
  test('with policies, versions, choices, spend and tokens costs as many statements whatever its size', async () => {
    const watch: Watch = {};
    const world = await makeWorld({}, watch);
    try {
      const { org, adminToken } = world.own;
      for (let at = 0; at < 20; at++) {
        const policy = await addPolicyVersion(org, 'operator', `p-${at}`, '{}');
        const choices = [{ policyId: policy.id, number: null }];
        await createAgent(org, 'operator', `a-${at}`, policy.id, { pinned: 1, choices });
      }
      const query = `query ($first: Int!) { agents(first: $first) { nodes {
        policy { newest { number policy { name } } version(number: 1) { label } versions(first: 2) { nodes { label } } }
        choices { policy { name } } spentToday { nanos } spentThisMonth { nanos }
        tokens(first: 2) { nodes { agent { name } } }
      } } }`;
      const costs: number[] = [];
      for (const first of [1, 2, 10, 20]) {
        let statements = 0;
        watch.seen = () => statements++;
        const { data, errors } = await world.ask(bearer(adminToken), query, { first });
        expect(errors).toEqual([]);
        expect((data as Json).agents.nodes).toHaveLength(first);
        costs.push(statements);
      }
      expect(new Set(costs).size).toBe(1);
    } finally {
      await world.clear();
    }
  });
});

describe('a token', () => {
  test('of an admin does what it was granted and nothing more, and grants no more', async () => {
    const all = fc.subarray([...actionsOf('owner')], { minLength: 1, maxLength: 12 });
    const property = fc.asyncProperty(all, all, async (granted, asked) => {
      const input = { name: 'granted', actions: ['token.create', 'token.read', ...granted] };
      const { secret, token } = await succeed(
        'tokenCreate',
        input,
        'secret token { effectiveActions }',
      );
      expect(new Set(token.effectiveActions)).toEqual(new Set(input.actions));
      const { me } = await read('{ me { actions } }', {}, secret);
      expect(new Set(me.actions)).toEqual(new Set(input.actions));
      const isWithin = asked.every((action) => input.actions.includes(action));
      const { errors } = await run('tokenCreate', { name: 'x', actions: asked }, '', secret);
      expect(errors.map(({ code }: Json) => code)).toEqual(isWithin ? [] : ['FORBIDDEN']);
    });
    await fc.assert(property, { numRuns: 15 });
  });

  test('is refused with unknown actions, with none, and with an end that has passed', async () => {
    const actions = ['agent.read'];
    const past = '2020-01-01T00:00:00Z';
    expect(await fail('tokenCreate', { name: 'x', actions: ['agent.fly'] })).toEqual([
      ['INVALID', 'actions.0'],
    ]);
    expect(await fail('tokenCreate', { name: 'x', actions: [] })).toEqual([['INVALID', 'actions']]);
    expect(await fail('tokenCreate', { name: 'a\nb', actions })).toEqual([['INVALID', 'name']]);
    expect(await fail('tokenCreate', { name: 'x', actions, expiresAt: past })).toEqual([
      ['INVALID', 'expiresAt'],
    ]);
    const { id } = await makeAgent();
    expect(await fail('agentTokenCreate', { agentId: id, expiresAt: past })).toEqual([
      ['INVALID', 'expiresAt'],
    ]);
    expect(await fail('agentTokenCreate', { agentId: id, actions: ['org.read'] })).toEqual([
      ['INVALID', 'actions.0'],
    ]);
  });

  test('is renamed and narrowed, and the next request feels it', async () => {
    const input = { name: 'wide', actions: ['agent.read', 'org.read'] };
    const { secret, token } = await succeed('tokenCreate', input, 'secret token { id }');
    const change = { tokenId: token.id, name: 'narrow', actions: ['org.read'] };
    const changed = await succeed('tokenUpdate', change, 'token { name actions }');
    expect(changed.token).toEqual({ name: 'narrow', actions: ['org.read'] });
    const { data, errors } = await send('{ org { slug } agents { nodes { id } } }', {}, secret);
    expect(data).toMatchObject({ org: { slug: 'acme' }, agents: null });
    expect(errors?.map(({ extensions }) => extensions.code)).toEqual(['FORBIDDEN']);
  });

  test('of either kind is replaced by one that can do the same, at once or after an overlap', async () => {
    const asAdmin = async (secret: string) =>
      (await send('{ org { slug } }', {}, secret)).data ? 200 : 401;
    const makers = [
      [
        async () =>
          succeed('tokenCreate', { name: 't', actions: ['org.read'] }, 'secret token { id }'),
        asAdmin,
      ],
      [
        async () =>
          succeed('agentTokenCreate', { agentId: (await makeAgent()).id }, 'secret token { id }'),
        (secret: string) => call(secret),
      ],
    ] as const;
    for (const [make, use] of makers) {
      for (const overlapS of [0, 60]) {
        const old = await make();
        const rotation = { tokenId: old.token.id, overlapS };
        const made = await succeed('tokenRotate', rotation, 'secret token { id actions }');
        expect(made.token.id).not.toBe(old.token.id);
        expect([await use(old.secret), await use(made.secret)]).toEqual([
          overlapS > 0 ? 200 : 401,
          200,
        ]);
        await succeed('tokenRevoke', { tokenId: made.token.id }, 'token { revokedAt }');
        expect(await use(made.secret)).toBe(401);
        expect(await fail('tokenRotate', { tokenId: made.token.id })).toEqual([
          ['NOT_FOUND', 'tokenId'],
        ]);
      }
    }
    const { token } = await makers[0][0]();
    expect(await fail('tokenRotate', { tokenId: token.id, overlapS: -1 })).toEqual([
      ['INVALID', 'overlapS'],
    ]);
  });

  test('of an agent is replaced with all others by one that can do what they could together', async () => {
    const { id, secret } = await makeAgent();
    await succeed('agentTokensRevoke', { agentId: id }, 'revoked');
    expect(await call(secret)).toBe(401);
    for (const actions of [['call.create'], ['run.read']]) {
      await succeed('agentTokenCreate', { agentId: id, actions }, 'token { id }');
    }
    const rotated = await succeed(
      'agentTokensRotate',
      { agentId: id },
      'secret token { actions expiresAt }',
    );
    expect(rotated.token).toEqual({ actions: ['call.create', 'run.read'], expiresAt: null });
    expect(await call(rotated.secret)).toBe(200);
    expect(await succeed('agentTokensRevoke', { agentId: id }, 'revoked')).toMatchObject({
      revoked: 1,
    });
    expect(await call(rotated.secret)).toBe(401);
  });

  test('is never shown again, nor is a secret of a provider', async () => {
    const { secret } = await makeAgent();
    const admin = await succeed('tokenCreate', { name: 't', actions: ['org.read'] }, 'secret');
    const own = 'sk-a-very-secret-key-of-the-provider';
    const key = { name: unique('k'), provider: 'openai', secret: own };
    await succeed('providerKeyCreate', key, 'providerKey { id lastFour }');
    const everything = JSON.stringify(
      await read(`{
        tokens(first: 100) { nodes { id name lastFour actions effectiveActions createdBy } }
        providerKeys(first: 100) { nodes { id name provider baseUrl lastFour createdAt } }
      }`),
    );
    for (const text of [secret, admin.secret, own]) expect(everything).not.toContain(text);
    expect(everything).toContain(own.slice(-4));
  });
});

describe('a provider key', () => {
  test('goes nowhere that is not public, unless the operator allows it', async () => {
    const secret = 'sk-1';
    const wrong = [
      'http://example.com',
      'https://10.0.0.1/v1',
      'https://u:p@example.com',
      'https://example.com/?a=1',
      'ftp://x',
      '',
    ];
    for (const baseUrl of wrong) {
      const input = { name: unique('k'), provider: 'openai-compatible', baseUrl, secret };
      expect(await fail('providerKeyCreate', input)).toEqual([['INVALID', 'baseUrl']]);
    }
    const local = {
      name: unique('k'),
      provider: 'openai-compatible',
      baseUrl: 'http://127.0.0.1:9/v1/',
      secret,
    };
    const { providerKey } = await succeed('providerKeyCreate', local, 'providerKey { baseUrl }');
    expect(providerKey.baseUrl).toBe('http://127.0.0.1:9/v1');
    for (const [input, field] of [
      [{ provider: 'openai-compatible', secret }, 'baseUrl'],
      [{ provider: 'openai' }, 'secret'],
      [{ provider: 'openai', secret: 'a b' }, 'secret'],
      [{ provider: 'nobody', secret }, 'provider'],
      [{ provider: 'demo', baseUrl: 'https://example.com' }, 'baseUrl'],
    ] as const) {
      expect(await fail('providerKeyCreate', { name: unique('k'), ...input })).toEqual([
        ['INVALID', field],
      ]);
    }
    expect(await fail('providerKeyCreate', { name: 'a/b', provider: 'demo' })).toEqual([
      ['INVALID', 'name'],
    ]);
  });

  test('is replaced only with its secret, and the same secret changes nothing', async () => {
    const input = { name: unique('k'), provider: 'openai', secret: 'sk-1' };
    const { providerKey } = await succeed('providerKeyCreate', input, 'providerKey { id }');
    const { id } = providerKey;
    const update = async (terms: object) => {
      const fields = 'changed providerKey { baseUrl provider }';
      return await succeed('providerKeyUpdate', { providerKeyId: id, ...terms }, fields);
    };
    const baseUrl = 'https://example.com/v1';
    expect(await fail('providerKeyUpdate', { providerKeyId: id, baseUrl })).toEqual([
      ['INVALID', 'secret'],
    ]);
    expect(await update({ secret: 'sk-1' })).toMatchObject({ changed: false });
    expect(await update({ secret: 'sk-1', baseUrl })).toMatchObject({
      changed: true,
      providerKey: { baseUrl },
    });
    expect(await update({ secret: 'sk-1', baseUrl })).toMatchObject({ changed: false });
    expect(await update({ secret: 'sk-2' })).toMatchObject({
      changed: true,
      providerKey: { baseUrl },
    });
    expect(await update({ secret: 'sk-2', provider: 'groq' })).toMatchObject({
      providerKey: { provider: 'groq', baseUrl: 'https://api.groq.com/openai/v1' },
    });
    const entries = JSON.stringify(await audited('provider_key.update', id));
    expect(entries).not.toContain('sk-');
    await succeed('providerKeyDelete', { providerKeyId: id }, 'deletedId');
    expect(await fail('providerKeyDelete', { providerKeyId: id })).toEqual([
      ['NOT_FOUND', 'providerKeyId'],
    ]);
  });
});

describe('a price', () => {
  const FIELDS = `model inputPerMillion { dollars nanos } outputPerMillion { dollars }
    cacheReadPerMillion { dollars } cacheWritePerMillion { dollars } contextWindow`;

  test('is read as it was set, and setting it again changes nothing', async () => {
    const dollars = fc.integer({ min: 0, max: 10 ** 12 }).map(formatDollars);
    const some = fc.option(dollars);
    const price = fc.record({
      ...{ inputPerMillion: dollars, outputPerMillion: dollars },
      ...{ cacheReadPerMillion: some, cacheWritePerMillion: some },
      contextWindow: fc.option(fc.integer({ min: 1, max: 100_000_000 })),
    });
    const money = (text: string | null) => text && expect.objectContaining({ dollars: text });
    const property = fc.asyncProperty(price, async (wanted) => {
      const model = `openai/${unique('model')}`;
      const set = async () =>
        await succeed('priceSet', { model, ...wanted }, `changed price { ${FIELDS} }`);
      const expected = {
        ...{ model, contextWindow: wanted.contextWindow },
        ...{
          inputPerMillion: money(wanted.inputPerMillion),
          outputPerMillion: money(wanted.outputPerMillion),
        },
        ...{
          cacheReadPerMillion: money(wanted.cacheReadPerMillion),
          cacheWritePerMillion: money(wanted.cacheWritePerMillion),
        },
      };
      expect(await set()).toMatchObject({ changed: true, price: expected });
      expect(await set()).toMatchObject({ changed: false, price: expected });
      expect(await audited('price.update', model)).toHaveLength(1);
    });
    await fc.assert(property, { numRuns: 15 });
  });

  test('of the org comes before that of the catalogue, and is gone with it', async () => {
    const key = unique('k');
    await succeed(
      'providerKeyCreate',
      { name: key, provider: 'openai', secret: 'sk-1' },
      'providerKey { id }',
    );
    const model = `${key}/gpt-4o`;
    const priceOf = async (asked = model) =>
      (
        await read(
          'query ($model: String!) { priceOf(model: $model) { source inputPerMillion { dollars } } }',
          { model: asked },
        )
      ).priceOf;
    const listed = await priceOf();
    expect(listed.source).toStartWith('genai-prices@');
    await succeed(
      'priceSet',
      { model, inputPerMillion: '7.00', outputPerMillion: '8.00' },
      'changed',
    );
    expect(await priceOf()).toEqual({ source: 'override', inputPerMillion: { dollars: '7.00' } });
    await succeed('priceDelete', { model }, 'deletedModel');
    expect(await priceOf()).toEqual(listed);
    for (const unknown of ['gpt-4o', 'nokey/gpt-4o', `${key}/none`, ''])
      expect(await priceOf(unknown)).toBeNull();
  });

  test('is refused for what is no model and no window', async () => {
    const price = { inputPerMillion: '1.00', outputPerMillion: '1.00' };
    for (const model of ['gpt', '/gpt', 'openai/*', 'a b/gpt', `a/${'x'.repeat(300)}`]) {
      expect(await fail('priceSet', { model, ...price })).toEqual([['INVALID', 'model']]);
    }
    const input = { model: 'openai/x', ...price, contextWindow: 0 };
    expect(await fail('priceSet', input)).toEqual([['INVALID', 'contextWindow']]);
  });
});

describe('a simulation', () => {
  const recorded = fc.record({
    runId: fc.constantFrom('run_1', 'run_2'),
    isCall: fc.boolean(),
    happened: fc.constantFrom('allow', 'deny', 'ask'),
    model: fc.option(fc.constantFrom('openai/a', 'openai/b', 'anthropic/a')),
    tool: fc.option(fc.constantFrom('read', 'pay', 'drop_all')),
    startedAt: fc.integer({ min: 1_000, max: 16_500 }),
    runOpenedAt: fc.constant(1_000),
    spentNanos: fc
      .constantFrom(0, 0, 0, 0, 1, 400_000_000, 700_000_000)
      .map((amount) => amount as Nanos),
  }) as fc.Arbitrary<Recorded>;

  test('of no rules denies nothing, and knows of every step but those that it can not judge', () => {
    const policy = policySchema.parse({});
    fc.assert(
      fc.property(fc.array(recorded), (steps) => {
        const known = steps.map(
          ({ isCall, model, tool }) => isCall || model !== null || tool !== null,
        );
        const effects = simulate(policy, steps).map(({ effect }) => effect);
        expect(effects).toEqual(known.map((isKnown) => (isKnown ? 'allow' : null)));
      }),
    );
  });

  test('lets a run spend no more than its ceiling, and take no more steps than its most', () => {
    const policy = policySchema.parse({
      budget: { run: '1.00' },
      run: { maxSteps: 4, maxDurationS: 15 },
    });
    fc.assert(
      fc.property(fc.array(recorded, { minLength: 10, maxLength: 30 }), (steps) => {
        const verdicts = simulate(policy, steps);
        for (const runId of ['run_1', 'run_2']) {
          const let_in = steps.filter(
            (step, at) => step.runId === runId && step.isCall && verdicts[at]?.effect === 'allow',
          );
          expect(let_in.length).toBeLessThanOrEqual(4);
          expect(let_in.reduce((sum, { spentNanos }) => sum + spentNanos, 0)).toBeLessThanOrEqual(
            10 ** 9,
          );
          for (const { startedAt } of let_in) expect(startedAt - 1_000).toBeLessThanOrEqual(15_000);
        }
      }),
    );
  });

  test('decides on models and tools as a call would be decided on', () => {
    const policy = policySchema.parse({
      models: { allow: ['openai/*'], deny: ['openai/b'] },
      tools: { deny: ['drop_*'], requireApproval: [{ tool: 'pay', when: 'args.amount > 5' }] },
    });
    const tools = { read: 'allow', pay: 'ask', drop_all: 'deny' };
    fc.assert(
      fc.property(recorded, (step) => {
        const [verdict] = simulate(policy, [step]);
        if (step.tool)
          expect(verdict?.effect).toBe(tools[step.tool as keyof typeof tools] as 'allow');
        else if (step.model) expect(verdict?.effect).toBe(decideModel(policy, step.model).effect);
      }),
    );
  });

  test('tells of recorded runs what a draft would have refused, and changes nothing', async () => {
    const { id, secret } = await makeAgent({
      policyId: await makePolicy({ tools: { deny: ['drop_*'] } }),
    });
    const run = unique('simulated');
    expect(await call(secret, { 'x-rungate-run-id': run })).toBe(200);
    for (const name of ['read_file', 'drop_table']) {
      await fetch(`${rungate.url}/v1/runs/${run}/tools`, {
        method: 'POST',
        headers: { authorization: `Bearer ${secret}`, 'content-type': 'application/json' },
        body: JSON.stringify({ name, arguments: {} }),
      });
    }
    const db = await rungate.database();
    const [row] = await db.read('select id from runs where agent_id = ?1', [id]);
    const before = await db.read('select count(*) as rows from steps', []);
    const found = async (terms: object) => {
      const fields = `simulation { runIds allowed denied asked unknown differing isTruncated
        steps { runId model tool happened would differs rule reason } }`;
      return (await succeed('policySimulate', terms, fields)).simulation;
    };
    const draft = {
      models: { deny: ['demo/*'] },
      tools: { requireApproval: [{ tool: 'drop_*' }] },
    };
    const simulation = await found({ document: draft, runIds: [row?.id] });
    expect(simulation).toMatchObject({
      allowed: 1,
      denied: 1,
      asked: 1,
      unknown: 0,
      differing: 2,
      isTruncated: false,
    });
    expect(simulation.steps).toMatchObject([
      {
        model: 'demo/demo-small',
        happened: 'ALLOW',
        would: 'DENY',
        differs: true,
        rule: 'models.deny',
      },
      { tool: 'read_file', happened: 'ALLOW', would: 'ALLOW', differs: false, rule: null },
      { tool: 'drop_table', happened: 'DENY', would: 'ASK', differs: true },
    ]);
    expect(await found({ document: draft, lastRuns: 1 })).toEqual(simulation);
    const policyId = await makePolicy(draft);
    expect(await found({ policyId, version: 1, runIds: [row?.id] })).toEqual(simulation);
    expect(await db.read('select count(*) as rows from steps', [])).toEqual(before);
    await db.close();
  });

  test('is refused without a policy, with two, and for too many runs', async () => {
    const policyId = await makePolicy();
    expect(await fail('policySimulate', {})).toEqual([['INVALID', 'document']]);
    expect(await fail('policySimulate', { policyId, document: {} })).toEqual([
      ['INVALID', 'document'],
    ]);
    expect(await fail('policySimulate', { policyId, version: 2 })).toEqual([
      ['INVALID', 'version'],
    ]);
    expect(await fail('policySimulate', { policyId, lastRuns: 51 })).toEqual([
      ['INVALID', 'lastRuns'],
    ]);
    expect(await fail('policySimulate', { policyId, runIds: [] })).toEqual([['INVALID', 'runIds']]);
  });
});
