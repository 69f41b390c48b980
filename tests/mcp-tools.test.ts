/** Tools of MCP servers that a provider runs: what a policy governs is not run unasked. */

import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test';
import { join } from 'node:path';
import fc from 'fast-check';
import { declaredTools } from '../functions/providers/declared.ts';
import type { JsonObject } from '../schema/json.ts';
import { type PolicyDocument, policySchema } from '../schema/policy.ts';
import { decideUnasked } from '../schema/rules/hosted.ts';
import { decideTool, judgeName } from '../schema/rules/tools.ts';
import { type Deployment, deploy } from './rungate.ts';
import { startUpstream, type Upstream } from './upstream.ts';

type ToolRules = PolicyDocument['tools'];

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
  [approval({ always: names('delete', 'send') }), 'tools.requireApproval[0]'],
  [approval({ always: names('delete'), never: names('find') }), 'tools.deny[1]'],
  [approval({ always: names('delete'), never: names('delete') }), 'tools.deny[0]'],
  [approval({ always: names('delete') }, { allowed_tools: ['delete', 'find'] })],
  [approval({ always: { read_only: false } }), 'tools.deny[0]'],
  [{ ...approval('always'), Require_Approval: 'never' }, 'tools.deny[0]'],
  [{ type: 'MCP', ...approval('never') }, 'tools.deny[0]'],
  [approval('never', { server_label: 'wiki' })],
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
    expect(ruleOf({ deny: ['drop_*'] }, approval('never'))).toBeUndefined();
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
        const unasked = isListed ? { names: [name], except: [] } : { except: [] };
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
});

describe('on the wire', () => {
  let upstream: Upstream;
  let rungate: Deployment;
  beforeAll(async () => {
    upstream = await startUpstream();
    const tools = { deny: ['crm/delete'], requireApproval: [{ tool: 'crm/*' }] };
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

  const ask = (require_approval: string, model = 'openai/test-model', more: object = {}) =>
    fetch(`${rungate.url}/v1/responses`, {
      method: 'POST',
      headers: { authorization: `Bearer ${rungate.token}` },
      body: JSON.stringify({
        ...{ model, input: 'x', max_output_tokens: 16, max_tool_calls: 1 },
        tools: [serverOf({ require_approval, ...more })],
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
    await ask('always', 'grok/test-model', { server_label: 'wiki' });
    expect(upstream.requests.length).toBe(before + 1);
  });

  test('a governed server is not sent on to a provider that asks nobody', async () => {
    const before = upstream.requests.length;
    upstream.script({ error: 503 });
    expect((await ask('always')).status).toBe(503);
    expect(upstream.requests.length - before).toBe(1);
    upstream.script({ error: 503 });
    await ask('always', 'openai/test-model', { server_label: 'wiki' });
    expect(upstream.requests.length - before).toBe(3);
  });
});
