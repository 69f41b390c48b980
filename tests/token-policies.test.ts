/** What policies a token permits: at opening and joining runs, when it is made, and after rotation. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { join } from 'node:path';
import fc from 'fast-check';
import type { Database } from '../db/client.ts';
import { forOrg, type Org } from '../db/org.ts';
import { mintToken, revokeToken } from '../db/tokens.ts';
import type { AgentId, OrgId, TokenId } from '../schema/ids.ts';
import { AGENT_ACTIONS, type AgentAction } from '../schema/roles.ts';
import { judgeOpening, permits } from '../schema/rules/choice.ts';
import { type Deployment, deploy, readTrail } from './rungate.ts';

setDefaultTimeout(120_000);

let rungate: Deployment;
let db: Database;
let org: Org;

/** Every agent here has `lax` for its own, which is at v2, and may choose these instead. */
const OWN = 'lax/v2';
const CHOICES = ['lax/v1', 'strict/v1', 'strict/v3'];
const AGENT = { policy: 'lax', policies: ['lax/v1', 'strict/v1', 'strict'] };
const VERSIONS = { lax: 2, strict: 3, other: 1 };

beforeAll(async () => {
  rungate = await deploy({ processes: 2 });
  db = await rungate.database();
  const [row] = await db.read('select id from orgs', []);
  org = forOrg(db, row?.id as OrgId);
  for (const number of [1, 2, 3]) {
    const due = Object.entries(VERSIONS).filter(([, newest]) => newest >= number);
    await apply({
      policies: due.map(([name]) => ({ name, document: { run: { maxSteps: 1_000 * number } } })),
    });
  }
});
afterAll(async () => {
  await db?.close();
  await rungate?.stop();
});

async function apply(manifest: object): Promise<{ tokens: { token: string }[] }> {
  const path = join(rungate.folder, 'next.json');
  await Bun.write(path, JSON.stringify(manifest));
  const { code, stdout, stderr } = await rungate.cli('apply', path, '--org', 'acme', '--json');
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout);
}

let count = 0;
const unique = (stem: string) => `${stem}-${++count}`;

/** Makes an agent; gives its id and a token that permits everything. */
async function makeAgent(): Promise<{ id: AgentId; wide: string }> {
  const name = unique('agent');
  const { tokens } = await apply({ agents: [{ name, ...AGENT }] });
  const row = await org.first('select id from agents where org_id = ?1 and name = ?2', name);
  return { id: row?.id as AgentId, wide: tokens[0]?.token ?? '' };
}

type List = readonly string[] | null;

/** Makes a token that permits a list, be it of use to the agent or not. */
async function mint(agent: AgentId, list: List): Promise<{ id: TokenId; text: string }> {
  const minted = mintToken(org, 'operator', agent, null, AGENT_ACTIONS, list);
  await org.write(minted.statement);
  return minted;
}

/** What a call asks for beside its body. */
interface Asking {
  /** The name of its run; without one, the agent's window. */
  readonly run?: string | undefined;
  readonly policy?: string | null;
  readonly isNew?: boolean;
  readonly isAnthropic?: boolean;
  readonly url?: string;
}

/** What came of a call. */
interface Told {
  readonly status: number;
  readonly run: string;
  readonly type?: string;
  readonly rungate?: Readonly<Record<string, unknown>>;
}

const ASK = {
  max_tokens: 5,
  messages: [{ role: 'user', content: 'Hi' }],
  model: 'demo/demo-small',
};

async function call(token: string, asking: Asking = {}): Promise<Told> {
  const { run, policy = null, isNew = false, isAnthropic = false, url = rungate.url } = asking;
  const response = await fetch(`${url}/v1/${isAnthropic ? 'messages' : 'chat/completions'}`, {
    method: 'POST',
    headers: {
      ...(isAnthropic ? { 'x-api-key': token } : { authorization: `Bearer ${token}` }),
      ...(run === undefined ? {} : { 'x-rungate-run-id': run }),
      ...(policy === null ? {} : { 'x-rungate-policy': policy }),
      ...(isNew ? { 'x-rungate-new-run': 'true' } : {}),
    },
    body: JSON.stringify(ASK),
  });
  const body = (await response.json()) as { error?: Pick<Told, 'type' | 'rungate'> };
  const told = { status: response.status, run: response.headers.get('x-rungate-run-id') ?? '' };
  return { ...told, ...body.error };
}

/** The label of the version that a run is under. */
async function labelOf(agent: AgentId, run: string): Promise<string> {
  const row = await org.first(
    `select p.name || '/v' || v.number as label from runs r
     join policy_versions v on v.id = r.policy_version_id join policies p on p.id = v.policy_id
     where r.org_id = ?1 and r.agent_id = ?2 and r.name = ?3`,
    agent,
    run,
  );
  return String(row?.label);
}

async function complete(token: string, run: string): Promise<void> {
  const url = `${rungate.url}/v1/runs/${run}/complete`;
  await fetch(url, { method: 'POST', headers: { authorization: `Bearer ${token}` } });
}

const nameOf = (label: string) => label.split('/')[0];
const isMeant = (label: string, text: string) => text === label || text === nameOf(label);
const isPermitted = (list: List, label: string) =>
  list === null || list.some((each) => isMeant(label, each));

/** What must come of a call: the version of its run, or the rule that is against it. */
function expected(list: List, asked: string | null, present: string | null): string {
  if (present !== null) {
    if (!isPermitted(list, present)) return 'token.policies';
    return asked === null || isMeant(present, asked) ? present : 'run.policy';
  }
  const meant = [...CHOICES, OWN].filter((label) => asked === null || isMeant(label, asked));
  if (meant.length === 0) return 'agent.policies';
  const good = meant.filter((label) => isPermitted(list, label));
  return (asked === null ? good.find((label) => label === OWN) : good.at(-1)) ?? 'token.policies';
}

const LISTS: readonly List[] = [
  null,
  ['lax'],
  ['lax/v2'],
  ['lax/v1'],
  ['strict'],
  ['strict/v1'],
  ['strict/v3', 'lax/v1'],
  ['other', 'la', 'lax/v'],
];
const ASKED = [null, 'lax', 'lax/v2', 'strict', 'strict/v1', 'strict/v2', 'other', ''];
const PRESENT = [null, OWN, 'strict/v1', 'strict/v3'];

describe('the rule', () => {
  test('is the same as when it is said plainly, over every list and choice', () => {
    for (const permitted of LISTS) {
      for (const asked of ASKED) {
        const opened = judgeOpening({ own: OWN, choices: CHOICES, asked, permitted });
        const told = 'rule' in opened ? opened.rule : opened.label;
        expect([permitted, asked, told]).toEqual([
          permitted,
          asked,
          expected(permitted, asked, null),
        ]);
        if ('label' in opened) expect(permits(permitted, opened.label)).toBe(true);
      }
    }
  });

  test('never permits more by a shorter list, nor a version by the beginning of its name', () => {
    const label = fc
      .tuple(fc.constantFrom('a', 'a.b', 'ab', 'a-v1', 'v1'), fc.integer({ min: 1, max: 12 }))
      .map(([name, number]) => `${name}/v${number}`);
    const entry = fc.oneof(
      label,
      label.map((text) => nameOf(text) ?? ''),
    );
    const property = fc.property(fc.array(entry), fc.array(entry), label, (some, more, version) => {
      expect(permits(null, version)).toBe(true);
      expect(permits([], version)).toBe(false);
      if (permits(some, version)) expect(permits([...some, ...more], version)).toBe(true);
      expect(permits(some, version)).toBe(isPermitted(some, version));
    });
    fc.assert(property);
  });
});

describe('a call', () => {
  /** Calls by every token, under every version, asking for everything; twice, the second time known. */
  async function checkGrid(isNamed: boolean): Promise<void> {
    const { id, wide } = await makeAgent();
    for (const [at, list] of LISTS.entries()) {
      for (const present of PRESENT) {
        for (const asked of ASKED) {
          const run = isNamed ? unique('run') : undefined;
          const opened = await prepare(wide, run, present);
          const { text } = await mint(id, list);
          let under = present;
          for (const isKnown of [false, true]) {
            const told = await call(text, { run, policy: asked, isAnthropic: at % 2 === 1 });
            const due = expected(list, asked, under);
            const is = told.status === 200 ? await labelOf(id, told.run) : told.rungate?.rule;
            expect({ list, present, asked, isNamed, isKnown, is }).toEqual({
              ...{ list, present, asked, isNamed, isKnown, is: due },
            });
            if (told.status !== 200) checkRefusal(told, list, asked, under);
            else if (under !== null && !isNamed) expect(opened).toBeOneOf([told.run, '']);
            if (told.status === 200) under = due;
          }
        }
      }
    }
  }

  /** Opens the run, or the window, under a version; or makes sure that there is none. */
  async function prepare(wide: string, run: string | undefined, present: string | null) {
    if (present !== null) {
      const told = await call(wide, { run, policy: present, isNew: run === undefined });
      expect(told.status).toBe(200);
      return told.run;
    }
    if (run === undefined) await complete(wide, (await call(wide, { isNew: true })).run);
    return '';
  }

  /** Governance is 403 with everything that a machine needs to ask better. */
  function checkRefusal(
    { status, type, rungate: detail }: Told,
    ...[list, asked, under]: [List, string | null, string | null]
  ) {
    expect({ status, type }).toEqual({ status: 403, type: 'permission_error' });
    expect(detail).toMatchObject({ code: 'permission_denied', field: 'x-rungate-policy' });
    if (detail?.rule !== 'token.policies') return;
    expect(detail).toMatchObject({ asked: under ?? asked ?? OWN, allowed: list });
  }

  test('opens and joins a named run under what its token permits, and no other', () =>
    checkGrid(true));

  test('opens and joins the window under what its token permits, and no other', () =>
    checkGrid(false));

  test('closes a window that it may not join with a new one that it may', async () => {
    const { id, wide } = await makeAgent();
    const { text } = await mint(id, ['strict']);
    const window = await call(wide);
    expect((await call(text)).rungate).toMatchObject({ rule: 'token.policies', asked: OWN });
    expect((await call(text, { isNew: true })).rungate).toMatchObject({ rule: 'token.policies' });
    expect((await call(wide)).run).toBe(window.run);
    const opened = await call(text, { isNew: true, policy: 'strict' });
    expect(await labelOf(id, opened.run)).toBe('strict/v3');
    expect((await call(text)).run).toBe(opened.run);
  });

  test('joins a run under an older version of a policy that is permitted by its name', async () => {
    const name = unique('rolling');
    const write = (maxSteps: number) =>
      apply({ policies: [{ name, document: { run: { maxSteps } } }] });
    await write(100);
    const agent = unique('agent');
    await apply({ agents: [{ name: agent, policy: name }] });
    const row = await org.first('select id from agents where org_id = ?1 and name = ?2', agent);
    const id = row?.id as AgentId;
    const [byName, byLabel] = [await mint(id, [name]), await mint(id, [`${name}/v1`])];
    for (const { text } of [byName, byLabel])
      expect((await call(text, { run: 'old' })).status).toBe(200);
    await write(200);
    for (const { text } of [byName, byLabel])
      expect((await call(text, { run: 'old' })).status).toBe(200);
    expect((await call(byName.text, { run: 'new' })).status).toBe(200);
    const refused = { rule: 'token.policies', asked: `${name}/v2`, allowed: [`${name}/v1`] };
    for (const run of ['new', 'newer']) {
      expect((await call(byLabel.text, { run })).rungate).toMatchObject(refused);
    }
  });

  test('of a narrow token is on no lax run, however they race for it over two processes', async () => {
    const { id, wide } = await makeAgent();
    const { text } = await mint(id, ['strict']);
    const outcomes = new Set<string>();
    for (let turn = 0; turn < 12; turn++) {
      const run = unique('race');
      const narrow = rungate.urls.map((url) => call(text, { run, url, policy: 'strict' }));
      const racing = [...narrow, ...rungate.urls.map((url) => call(wide, { run, url }))];
      if (turn % 2) racing.reverse();
      await Promise.all(racing);
      const label = await labelOf(id, run);
      const isStrict = label === 'strict/v3';
      for (const told of await Promise.all(narrow)) expect(told.status).toBe(isStrict ? 200 : 403);
      outcomes.add(label);
    }
    expect([OWN, 'strict/v3']).toEqual(expect.arrayContaining([...outcomes]));
  });

  test('by a token that has ended is told so, whatever it asks for', async () => {
    const { id, wide } = await makeAgent();
    expect((await call(wide, { run: 'lax' })).status).toBe(200);
    const { text, id: token } = await mint(id, ['strict']);
    expect((await call(text, { run: 'known', policy: 'strict' })).status).toBe(200);
    await revokeToken(org, 'operator', token);
    for (const run of ['known', 'lax', 'fresh'])
      expect((await call(text, { run })).status).toBe(401);
  });

  test('about a tool is bound alike, and the denial is on the trail', async () => {
    const { id, wide } = await makeAgent();
    expect((await call(wide, { run: 'tools' })).status).toBe(200);
    const { text } = await mint(id, ['strict']);
    const headers = { authorization: `Bearer ${text}` };
    const report = { kind: 'tool_call', name: 'get', outcome: 'ok', latencyMs: 1, costUsd: '1' };
    for (const [path, body] of [
      ['tools', { name: 'get' }],
      ['steps', report],
    ] as const) {
      for (const run of ['tools', 'none-yet']) {
        const url = `${rungate.url}/v1/runs/${run}/${path}`;
        const response = await fetch(url, { method: 'POST', headers, body: JSON.stringify(body) });
        const { error } = (await response.json()) as { error: Told };
        expect(response.status).toBe(403);
        expect(error.rungate).toMatchObject({ rule: 'token.policies', asked: OWN });
      }
    }
    const denials = (await readTrail(rungate, 'tools', wide)).filter(
      ({ kind }) => kind === 'denial',
    );
    const rules = denials.map(({ detail }) => (detail as { rule: string }).rule);
    expect(rules).toEqual(['token.policies', 'token.policies']);
  });
});

test('what a token permits never changes, not even in the database', async () => {
  const { id } = await makeAgent();
  for (const list of [null, ['strict']]) {
    const { id: token } = await mint(id, list);
    for (const other of ['lax', null]) {
      if (other === list) continue;
      const update = org.statement(
        'update tokens set policies = ?3 where org_id = ?1 and id = ?2',
        token,
        other,
      );
      await expect(org.write(update)).rejects.toThrow();
    }
  }
});

// biome-ignore lint/suspicious/noExplicitAny: what an answer holds is known to the query alone.
type Json = Record<string, any>;

/** Runs a mutation by its name; gives its payload. */
async function mutate(name: string, input: object, fields: string): Promise<Json> {
  const type = `${name[0]!.toUpperCase()}${name.slice(1)}Input`;
  const query = `mutation ($input: ${type}!) { ${name}(input: $input) { ${fields} errors { code field message } } }`;
  const response = await fetch(`${rungate.url}/graphql`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${rungate.adminToken}`,
      'content-type': 'application/json',
    },
    body: JSON.stringify({ query, variables: { input } }),
  });
  const { data, errors } = (await response.json()) as Json;
  expect(errors).toBeUndefined();
  return data[name];
}

const MADE = 'secret token { id policies }';

async function succeed(name: string, input: object, fields = MADE): Promise<Json> {
  const payload = await mutate(name, input, fields);
  expect(payload.errors).toEqual([]);
  return payload;
}

/** Runs a mutation that must not succeed; gives its errors as code and field. */
async function fail(name: string, input: object): Promise<[string, string][]> {
  const { errors } = await mutate(name, input, '');
  return errors.map(({ code, field }: Json) => [code, field.join('.')]);
}

describe('a token is made', () => {
  test('with any list of what its agent may use, which it shows and goes by', async () => {
    const { id } = await makeAgent();
    const entry = fc.constantFrom('lax', 'strict', OWN, ...CHOICES);
    const list = fc.option(fc.array(entry, { minLength: 1, maxLength: 4 }), { nil: undefined });
    const property = fc.asyncProperty(list, async (policies) => {
      const made = await succeed('agentTokenCreate', { agentId: id, policies });
      const kept = policies === undefined ? null : [...new Set(policies)];
      expect(made.token.policies).toEqual(kept);
      const told = await call(made.secret, { run: unique('made') });
      expect(told.status).toBe(isPermitted(kept, OWN) ? 200 : 403);
      const entry = await org.first(
        `select payload from audit_entries
         where org_id = ?1 and action = 'token.create' and target = ?2`,
        made.token.id,
      );
      expect(JSON.parse(String(entry?.payload)).after).toMatchObject({ policies: kept });
    });
    await fc.assert(property, { numRuns: 25 });
  });

  test('with nothing else, and each fault is told with its place', async () => {
    const { id } = await makeAgent();
    const bad = ['other', 'nothing', 'strict/v2', 'lax/v3', 'strict/v03', 'STRICT', 'a b', '', '*'];
    for (const text of bad) {
      const input = { agentId: id, policies: ['lax', text] };
      expect([text, await fail('agentTokenCreate', input)]).toEqual([
        text,
        [['INVALID', 'policies.1']],
      ]);
    }
    const two = { agentId: id, policies: ['other', 'lax', 'nothing'] };
    expect(await fail('agentTokenCreate', two)).toEqual([
      ['INVALID', 'policies.0'],
      ['INVALID', 'policies.2'],
    ]);
    for (const policies of [[], new Array(51).fill('lax')]) {
      expect(await fail('agentTokenCreate', { agentId: id, policies })).toEqual([
        ['INVALID', 'policies'],
      ]);
    }
    const missing = { agentId: 'agt_01arz3ndektsv4rrffq69g5fav', policies: ['lax'] };
    expect(await fail('agentTokenCreate', missing)).toEqual([['NOT_FOUND', 'agentId']]);
    const { count } = (await org.first(
      'select count(*) as count from tokens where org_id = ?1 and agent_id = ?2',
      id,
    ))!;
    expect(count).toBe(1);
  });

  test('in place of another with the same list', async () => {
    const { id } = await makeAgent();
    for (const policies of [null, ['strict', 'lax/v1']]) {
      for (const overlapS of [0, 60]) {
        const old = await succeed('agentTokenCreate', { agentId: id, policies });
        const made = await succeed('tokenRotate', { tokenId: old.token.id, overlapS });
        expect(made.token.policies).toEqual(policies);
        const told = await call(made.secret, { run: unique('rotated') });
        expect(told.status).toBe(policies === null ? 200 : 403);
      }
    }
  });

  test('in place of all others with what they permit together, and never with more', async () => {
    const { id } = await makeAgent();
    const terms = fc.record({
      actions: fc.constantFrom<AgentAction[]>(['call.create'], ['run.read', 'call.create']),
      policies: fc.constantFrom(null, ['strict'], ['lax'], ['lax/v1', 'strict']),
    });
    const property = fc.asyncProperty(
      fc.array(terms, { minLength: 1, maxLength: 3 }),
      async (tokens) => {
        await succeed('agentTokensRevoke', { agentId: id }, 'revoked');
        for (const each of tokens) await succeed('agentTokenCreate', { agentId: id, ...each });
        const may = (action: AgentAction, label: string) =>
          tokens.some(
            ({ actions, policies }) => actions.includes(action) && isPermitted(policies, label),
          );
        const payload = await mutate(
          'agentTokensRotate',
          { agentId: id },
          'token { actions policies }',
        );
        if (payload.token === null) {
          expect(payload.errors).toMatchObject([{ code: 'INVALID', field: ['agentId'] }]);
          for (const key of ['actions', 'policies'] as const) {
            expect(new Set(tokens.map((each) => JSON.stringify(each[key]))).size).toBeGreaterThan(
              1,
            );
          }
          return;
        }
        const { actions, policies } = payload.token;
        for (const action of ['call.create', 'run.read'] as const) {
          for (const label of [OWN, ...CHOICES, 'other/v1']) {
            const is = actions.includes(action) && isPermitted(policies, label);
            expect({ tokens, action, label, is }).toEqual({
              tokens,
              action,
              label,
              is: may(action, label),
            });
          }
        }
      },
    );
    await fc.assert(property, { numRuns: 40 });
  });
});

test('a policy stays for as long as a good token names it, and no other does for its name', async () => {
  const stem = unique('kept');
  const names = [stem, `${stem}-2`, `x-${stem}`, 'v1', 'v'];
  const { id } = await makeAgent();
  const idOf = async (name: string) => {
    const { policy } = await succeed('policyCreate', { name, document: {} }, 'policy { id }');
    return policy.id as string;
  };
  const others = await Promise.all(names.slice(1).map(idOf));
  for (const list of [[stem], ['lax', `${stem}/v1`], [`${stem}/v1`, 'strict']]) {
    const policyId = await idOf(stem);
    const { id: tokenId } = await mint(id, list);
    expect(await fail('policyDelete', { policyId })).toEqual([['CONFLICT', 'policyId']]);
    await succeed('tokenRevoke', { tokenId }, 'token { id }');
    await succeed('policyDelete', { policyId }, 'deletedId');
  }
  await mint(id, [stem, `${stem}/v1`]);
  for (const policyId of others) await succeed('policyDelete', { policyId }, 'deletedId');
});
