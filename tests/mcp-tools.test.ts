/** Tools of MCP servers that a provider runs: what a policy governs is not run unasked. */

import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test';
import { join } from 'node:path';
import fc from 'fast-check';
import { declaredTools } from '../functions/providers/declared.ts';
import type { JsonObject } from '../schema/json.ts';
import { type PolicyDocument, policySchema } from '../schema/policy.ts';
import { foldName, matchesGlob } from '../schema/rules/glob.ts';
import { decideHosted, decideUnasked } from '../schema/rules/hosted.ts';
import { decideTool, judgeName } from '../schema/rules/tools.ts';
import { type Deployment, deploy } from './rungate.ts';
import { startUpstream, type Upstream } from './upstream.ts';

type ToolRules = PolicyDocument['tools'];

const LAXITY = { deny: 0, ask: 1, allow: 2 };

const RULES = {
  deny: ['crm/delete', { tool: 'crm/send', when: 'args.n > 1' }],
  requireApproval: [{ tool: 'crm/pay*' }],
} satisfies ToolRules;

const serverOf = (members: object): JsonObject => ({
  ...{ type: 'mcp', server_label: 'crm', server_url: 'https://crm.example.com' },
  ...members,
});

/** The rule by which a server is refused, of a policy with some rules of tools. */
function ruleOf(tools: ToolRules, members: object): string | undefined {
  const [declared] = declaredTools('responses.create', { tools: [serverOf(members)] });
  return decideUnasked(policySchema.parse({ tools }), declared!.hosted!)?.rule;
}

const names = (...list: string[]) => ({ tool_names: list });
const approval = (require_approval: unknown, more: object = {}) => ({ require_approval, ...more });

/** Members of a declared server, and the rule that refuses it. */
const CASES: readonly (readonly [members: object, rule?: string])[] = [
  [{}],
  [approval(null)],
  [approval('always')],
  [approval('never'), 'tools.deny[0]'],
  [approval('NEVER'), 'tools.deny[0]'],
  [approval(false), 'tools.deny[0]'],
  [approval([]), 'tools.deny[0]'],
  [approval({}), 'tools.deny[0]'],
  [approval('never', { allowed_tools: ['find', 'delete'] }), 'tools.deny[0]'],
  [approval('never', { allowed_tools: ['find', 'DELETE '] }), 'tools.deny[0]'],
  [approval('never', { allowed_tools: ['find', 'send'] }), 'tools.deny[1]'],
  [approval('never', { allowed_tools: ['payOut'] }), 'tools.requireApproval[0]'],
  [approval('never', { allowed_tools: ['find', 'list'] })],
  [approval('never', { allowed_tools: names('find') })],
  [approval('never', { allowed_tools: { ...names('find'), read_only: true } }), 'tools.deny[0]'],
  [approval('never', { allowed_tools: [] }), 'tools.deny[0]'],
  [approval('never', { allowed_tools: ['find', 7] }), 'tools.deny[0]'],
  [approval({ never: names('find') })],
  [approval({ never: names('find', 'delete') }), 'tools.deny[0]'],
  [approval({ never: names('pay') }), 'tools.requireApproval[0]'],
  [approval({ never: { read_only: true } }), 'tools.deny[0]'],
  [approval({ never: names() }), 'tools.deny[0]'],
  [approval({ never: names('find'), Never: names('delete') }), 'tools.deny[0]'],
  // A server may have any tool, one whose name ends like an excepted one included.
  [approval({ always: names('delete', 'send', 'pay') }), 'tools.deny[0]'],
  [approval({ always: names('delete'), never: names('find') }), 'tools.deny[0]'],
  [approval({ always: names('delete'), never: names('delete') }), 'tools.deny[0]'],
  [approval({ always: names('delete') }, { allowed_tools: ['delete', 'find'] })],
  [approval({ always: { read_only: false } }), 'tools.deny[0]'],
  [approval({ Always: names('delete') }, { allowed_tools: ['find'] })],
  [{ ...approval('always'), Require_Approval: 'never' }, 'tools.deny[0]'],
  [{ type: 'MCP', ...approval('never') }, 'tools.deny[0]'],
  [approval('never', { server_label: 'wiki' }), 'tools.deny[0]'],
  [approval('never', { server_label: 'wiki', allowed_tools: ['delete'] })],
  [approval('never', { server_label: 'my', allowed_tools: ['crm/delete'] }), 'tools.deny[0]'],
  ...['Server_URL', 'server_ur\u200bl', 'CONNECTOR_ID', 'connector＿id'].map(
    (key) => [approval('never', { allowed_tools: ['find'], [key]: 'x' }), 'tools.deny[0]'] as const,
  ),
  [approval('never', { server_label: 'CRM' }), 'tools.deny[0]'],
  [approval('never', { server_label: 7, allowed_tools: ['find'] }), 'tools.deny[0]'],
];

describe('an MCP server of a response', () => {
  for (const [members, rule] of CASES) {
    test(`${JSON.stringify(members)} is ${rule ? `refused by ${rule}` : 'let through'}`, () => {
      expect(ruleOf(RULES, members)).toBe(rule);
    });
  }

  test('is asked about each tool that a list does not allow', () => {
    const never = approval('never');
    expect(ruleOf({ allow: ['lookup'] }, never)).toBe('tools.allow');
    expect(ruleOf({ allow: ['crm/find*'] }, never)).toBe('tools.allow');
    expect(ruleOf({ allow: ['crm/find'] }, { ...never, allowed_tools: ['find'] })).toBeUndefined();
    expect(ruleOf({ allow: ['crm/*'] }, never)).toBeUndefined();
    expect(ruleOf({ allow: ['*'] }, never)).toBeUndefined();
  });

  test('without rules of tools may run unasked', () => {
    expect(ruleOf(undefined, approval('never'))).toBeUndefined();
    expect(ruleOf({ unreleasedResults: 'deny' }, approval('never'))).toBeUndefined();
  });

  test('may have any tool that a rule speaks of, unless it is told which ones it has', () => {
    const rules = [{ deny: ['drop_*'] }, { requireApproval: [{ tool: 'drop_table' }] }];
    for (const [at, tools] of rules.entries()) {
      const rule = ['tools.deny[0]', 'tools.requireApproval[0]'][at];
      const listing = (...allowed_tools: string[]) => approval('never', { allowed_tools });
      expect(ruleOf(tools, approval('never'))).toBe(rule);
      expect(ruleOf(tools, approval('always'))).toBeUndefined();
      expect(ruleOf(tools, listing('find', 'undrop_table'))).toBeUndefined();
      expect(ruleOf(tools, listing('find', 'Drop_Table\u200b'))).toBe(rule);
      expect(ruleOf(tools, approval({ never: names('find') }))).toBeUndefined();
    }
  });

  test('is judged at each place that it names, however that is spelled', () => {
    const policy = policySchema.parse({
      hostedTools: { allow: ['mcp/https://crm.example.com/*', 'mcp/connector_crm'] },
    });
    const isAllowed = (members: object) => {
      const tool = { type: 'mcp', server_label: 'crm', ...members };
      const declared = declaredTools('responses.create', { tools: [tool] });
      return declared.every(({ hosted }) => !decideHosted(policy, hosted!));
    };
    const server_url = 'https://crm.example.com/mcp';
    const connector_id = 'connector_crm';
    expect(isAllowed({ server_url })).toBe(true);
    expect(isAllowed({ server_url: null, connector_id })).toBe(true);
    expect(isAllowed({ server_url, connector_id })).toBe(true);
    expect(isAllowed({})).toBe(false);
    for (const other of ['https://evil.example.com/mcp', 'connector_gmail', 7, [server_url]]) {
      expect(isAllowed({ server_url: other, connector_id })).toBe(false);
      expect(isAllowed({ server_url, connector_id: other })).toBe(false);
      expect(isAllowed({ server_url, Server_URL: other })).toBe(false);
      expect(isAllowed({ connector_id, 'connector\u200b_id': other })).toBe(false);
    }
  });

  test('of a message is judged at each place that it names, too', () => {
    const policy = policySchema.parse({
      hostedTools: { allow: ['mcp/https://crm.example.com/*'] },
    });
    const isAllowed = (members: object) => {
      const mcp_servers = [{ type: 'url', name: 'crm', ...members }];
      const declared = declaredTools('messages', { mcp_servers });
      return declared.every(({ hosted }) => !decideHosted(policy, hosted!));
    };
    const url = 'https://crm.example.com/mcp';
    expect(isAllowed({ url })).toBe(true);
    expect(isAllowed({ url, URL: 'https://evil.example.com/mcp' })).toBe(false);
    expect(isAllowed({})).toBe(false);
  });
});

// A few letters, some of which fold into others, so that names and globs meet.
const letter = fc.constantFrom('a', 'A', 'b', '/', 'ａ', '\u200b', 'ß', 'Σ', ' ', '\u0301');
const word = fc.string({ unit: letter, minLength: 1, maxLength: 4 });
const glob = fc.string({
  unit: fc.oneof(letter, fc.constantFrom('*', '/')),
  minLength: 1,
  maxLength: 6,
});
const toolRules = fc.record(
  {
    allow: fc.array(glob, { maxLength: 2 }),
    deny: fc.array(
      fc.oneof(
        glob,
        glob.map((tool) => ({ tool, when: 'args.n > 1' })),
      ),
      { maxLength: 2 },
    ),
    requireApproval: fc.array(
      glob.map((tool) => ({ tool })),
      { maxLength: 2 },
    ),
  },
  { requiredKeys: [] },
);

describe('whatever the rules,', () => {
  test('no tool of a server that is let through unasked is ever denied or asked about', () => {
    let letThrough = 0;
    fc.assert(
      fc.property(toolRules, word, word, fc.boolean(), (tools, label, name, isListed) => {
        const policy = policySchema.parse({ tools });
        const unasked = isListed ? { names: [name] } : {};
        if (decideUnasked(policy, { type: 'mcp', label, unasked })) return;
        letThrough += 1;
        const call = { name: `${label}/${name}`, args: { n: 2 } };
        expect(judgeName(policy, call.name)).toBe('allow');
        expect(decideTool(policy, call).effect).toBe('allow');
      }),
      { numRuns: 1_000 },
    );
    expect(letThrough).toBeGreaterThan(50);
  });

  const effectOf = (tools: ToolRules, name: string) =>
    decideTool(policySchema.parse({ tools }), { name, args: { n: 2 } }).effect;

  test('a tool of a server is governed as a tool of its bare name is, under any label', () => {
    let governed = 0;
    fc.assert(
      fc.property(toolRules, word, word, ({ allow: _, ...tools }, label, name) => {
        const [bare, called] = [effectOf(tools, name), effectOf(tools, `${label}/${name}`)];
        if (bare !== 'allow') governed += 1;
        expect(LAXITY[called]).toBeLessThanOrEqual(LAXITY[bare]);
        const judged = judgeName(policySchema.parse({ tools }), `${label}/${name}`);
        if (judged !== 'depends') expect(called).toBe(judged);
      }),
      { numRuns: 1_000 },
    );
    expect(governed).toBeGreaterThan(50);
  });

  test('nothing but its name and what follows a slash in it makes a rule mean a tool', () => {
    const meant = fc.constantFrom('a', 'a/b', 'b/a', 'a/a', 'ab/a', 'a/ab', 'b/a/a', '/a', 'a/');
    fc.assert(
      fc.property(glob, meant, (pattern, name) => {
        const parts = name.split('/');
        const names = parts.map((_, at) => parts.slice(at).join('/'));
        const isMeant = names.some((each) => matchesGlob(foldName(pattern), each));
        expect(effectOf({ deny: [pattern] }, name)).toBe(isMeant ? 'deny' : 'allow');
      }),
      { numRuns: 1_000 },
    );
  });

  test('a bare name that is allowed lets no tool of a server through', () => {
    expect(effectOf({ allow: ['find'] }, 'find')).toBe('allow');
    expect(effectOf({ allow: ['find'] }, 'crm/find')).toBe('deny');
    expect(effectOf({ allow: ['crm/find'] }, 'crm/find')).toBe('allow');
  });

  test('a condition on the name is asked of the whole name and of what follows a slash', () => {
    const saying = (when: string, name: string) =>
      effectOf({ deny: [{ tool: '*', when }] }, name) === 'deny';
    for (const name of ['drop', 'crm/drop', 'a/b/drop', 'drop/drop']) {
      expect(saying('tool.name == "drop"', name)).toBe(true);
      expect(saying('tool["name"].startsWith("dr")', name)).toBe(true);
      expect(saying('tool.name == "other"', name)).toBe(false);
      expect(saying('args.n > 5', name)).toBe(false);
    }
    expect(saying('tool.name == "crm/drop"', 'crm/drop')).toBe(true);
    expect(saying('tool.name == "crm"', 'crm/drop')).toBe(false);
    expect(saying('tool.name != "drop"', 'crm/drop')).toBe(true);
  });

  test('a name full of slashes is decided on in no time', () => {
    const deny = Array.from({ length: 500 }, (_, at) => `${'*a/'.repeat(80)}${at}`);
    const when = 'args.l.all(x, args.l.all(y, tool.name != "x"))';
    const requireApproval = [{ tool: '*', when }];
    const policy = policySchema.parse({ tools: { deny, requireApproval } });
    const args = { l: Array.from({ length: 50 }, (_, at) => at) };
    const startedAt = performance.now();
    expect(decideTool(policy, { name: 'a/'.repeat(256), args }).effect).toBe('ask');
    expect(performance.now() - startedAt).toBeLessThan(2_000);
  });
});

describe('on the wire', () => {
  let upstream: Upstream;
  let rungate: Deployment;
  beforeAll(async () => {
    upstream = await startUpstream();
    const tools = {
      deny: ['crm/delete', 'delete_repo'],
      requireApproval: [{ tool: 'crm/*' }, { tool: 'pay' }],
    };
    const failover = [{ model: 'openai/test-model', to: ['grok/test-model'] }];
    rungate = await deploy({ upstreamUrl: upstream.url, policy: { tools, failover } });
    const [inputPerMillion, outputPerMillion] = ['1.00', '4.00'];
    const manifest = {
      providerKeys: [
        {
          ...{ name: 'grok', provider: 'x-ai', baseUrl: `${upstream.url}/v1` },
          secret: { env: 'UPSTREAM_KEY' },
        },
      ],
      prices: [{ model: 'grok/test-model', inputPerMillion, outputPerMillion }],
    };
    const path = join(rungate.folder, 'grok.json');
    await Bun.write(path, JSON.stringify(manifest));
    expect((await rungate.cli('apply', path, '--org', 'acme')).code).toBe(0);
  });
  afterEach(() => upstream.unscript());
  afterAll(async () => {
    await rungate.stop();
    await upstream.stop();
  });

  const ask = (
    require_approval: string,
    model = 'openai/test-model',
    more: object = {},
    members: object = {},
  ) =>
    fetch(`${rungate.url}/v1/responses`, {
      method: 'POST',
      headers: { authorization: `Bearer ${rungate.token}` },
      body: JSON.stringify({
        ...{ model, input: 'x', max_output_tokens: 16, max_tool_calls: 1 },
        tools: [serverOf({ require_approval, ...more })],
        ...members,
      }),
    });

  test('a governed server that would not ask is refused before anything is sent', async () => {
    const refused = await ask('never');
    expect(refused.status).toBe(403);
    const { error } = (await refused.json()) as { error: { rungate: object } };
    expect(error.rungate).toMatchObject({
      code: 'permission_denied',
      rule: 'tools.deny[0]',
      field: 'tools[0].require_approval',
      asked: 'crm/*',
      allowed: ['always'],
    });
    expect(upstream.requests.length).toBe(0);
    await ask('always');
    expect(upstream.requests.length).toBe(1);
  });

  test('a governed server is refused where the provider asks nobody', async () => {
    const before = upstream.requests.length;
    const refused = await ask('always', 'grok/test-model');
    expect(refused.status).toBe(403);
    const { error } = (await refused.json()) as { error: { rungate: object } };
    expect(error.rungate).toMatchObject({
      ...{ code: 'permission_denied', rule: 'tools.deny[0]', asked: 'crm/*' },
      field: 'tools[0].type',
    });
    const governed = await ask('always', 'grok/test-model', { allowed_tools: ['find'] });
    expect(governed.status).toBe(403);
    expect(upstream.requests.length).toBe(before);
    const called = await ask('always', 'grok/test-model', { server_label: 'wiki' });
    expect(called.status).toBe(403);
    expect(upstream.requests.length).toBe(before);
  });

  test('a governed server is not sent on to a provider that asks nobody', async () => {
    const before = upstream.requests.length;
    upstream.script({ error: 503 });
    expect((await ask('always')).status).toBe(503);
    expect(upstream.requests.length - before).toBe(1);
    upstream.script({ error: 503 });
    await ask('always', 'openai/test-model', { type: 'function', name: 'find' });
    expect(upstream.requests.length - before).toBe(3);
  });

  describe.each([
    ['denies', 'delete_repo', 'rungate_permission_denied'],
    ['asks about', 'pay', 'rungate_permission_pending'],
  ])('a tool that a rule %s by its bare name', (_, name, code) => {
    const servers = ['gh', 'gh2', 'GH', 'a.b', 'delete_repo'].map((server_label) => ({
      ...{ server_label, server_url: 'https://gh.example.com/mcp' },
    }));

    test.each(servers)('is not run unasked for %j', async (server) => {
      const before = upstream.requests.length;
      for (const more of [{ allowed_tools: [name] }, { allowed_tools: ['find', name] }, {}]) {
        expect((await ask('never', 'openai/test-model', { ...server, ...more })).status).toBe(403);
      }
      expect(upstream.requests.length).toBe(before);
      const found = await ask('never', 'openai/test-model', { ...server, allowed_tools: ['find'] });
      expect(found.status).toBe(200);
    });

    test.each(servers)('is handed to no agent to approve for %j', async ({ server_label }) => {
      const call = { server_label, name, arguments: '{}' };
      const request = { id: `mcpr_${server_label}`, type: 'mcp_approval_request', ...call };
      const usage = { input_tokens: 5, output_tokens: 5, total_tokens: 10 };
      const response = { id: `resp_${server_label}`, object: 'response', model: 'test-model' };
      const body = { ...response, status: 'completed', usage, output: [request] };
      upstream.script({ body: JSON.stringify(body) });
      const proposed = await ask('always', 'openai/test-model', { server_label });
      expect(proposed.status).toBe(403);
      expect(((await proposed.json()) as { error: { code: string } }).error.code).toBe(code);
      const before = upstream.requests.length;
      const approval_request_id = request.id;
      const approves = { type: 'mcp_approval_response', approval_request_id, approve: true };
      for (const input of [[request, approves], [approves]]) {
        const approved = await ask('always', 'openai/test-model', { server_label }, { input });
        expect(approved.status).toBe(403);
      }
      expect(upstream.requests.length).toBe(before);
    });
  });
});
