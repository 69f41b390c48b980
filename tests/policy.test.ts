/** Policy documents: what is accepted, where a fault is told, and the schema that is published. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { join } from 'node:path';
import fc from 'fast-check';
import { type PolicyDocument, policyJsonSchema, policySchema } from '../schema/policy.ts';
import { formatPlace, problemsOf } from '../schema/problems.ts';
import { type Deployment, deploy } from './rungate.ts';
import { startUpstream, type Upstream } from './upstream.ts';

const EXAMPLE = {
  models: { allow: ['openai/gpt-5*', 'anthropic/*'], deny: [] },
  hostedTools: { allow: ['web_search'], deny: ['mcp/*'] },
  tools: {
    allow: ['*'],
    deny: ['drop_*', { name: 'no dirt', tool: 'rm', when: 'args.path.startsWith("/")' }],
    requireApproval: [
      {
        name: 'refund over $500',
        tool: 'issue_refund',
        when: 'args.amount_usd > 500',
        approvals: 1,
        expiresAfterS: 3600,
      },
    ],
    holdS: 0,
    unreleasedResults: 'flag',
  },
  limits: [
    { per: 'agent', requests: 60, windowS: 60 },
    { per: 'policy', tokens: 100_000, windowS: 60 },
    { per: 'org', concurrent: 50 },
  ],
  budget: {
    run: '1.00',
    agentPerDay: '20.00',
    agentPerMonth: '300.00',
    orgPerMonth: '5000.00',
    alertAt: 0.8,
    minOutputTokens: 16,
    unpriced: 'deny',
  },
  run: { idleTimeoutS: 900, maxSteps: 500, maxDurationS: 86_400 },
  loop: { sameRequest: 5, windowS: 60 },
  failover: [{ model: 'openai/gpt-5', to: ['openai-backup/gpt-5', 'anthropic/claude-sonnet-5'] }],
  capture: 'digest',
} satisfies PolicyDocument;

/** The first fault of a document, as it is told. */
function faultOf(document: unknown): string {
  const [problem] = problemsOf(policySchema.safeParse(document).error?.issues ?? []);
  return problem ? `${formatPlace(problem.path)}: ${problem.message}` : '';
}

const asking = (when: unknown) => ({ tools: { requireApproval: [{ tool: 'x', when }] } });

/** Documents with one fault each, and how it is told. */
const FAULTS: readonly (readonly [document: unknown, told: string])[] = [
  [[], ': must be object, not array'],
  [{ budgets: {} }, ': unrecognized key: "budgets"'],
  [{ models: { allow: 'x' } }, 'models.allow: must be array, not string'],
  [{ models: { allow: [''] } }, 'models.allow[0]: too small'],
  [{ models: { alow: [] } }, 'models: unrecognized key: "alow"'],
  [{ hostedTools: { deny: [1] } }, 'hostedTools.deny[0]: must be string, not number'],
  [{ tools: { deny: [5] } }, 'tools.deny[0]: must be a glob of tools, or {"tool"'],
  [{ tools: { deny: [{ tool: 1 }] } }, 'tools.deny[0].tool: must be string, not number'],
  [{ tools: { deny: ['a', { tool: 'x', when: '(' }] } }, 'tools.deny[1].when: is not valid CEL'],
  [{ tools: { requireApproval: [{}] } }, 'tools.requireApproval[0].tool: is missing; wanted'],
  [asking('args.'), 'tools.requireApproval[0].when: is not valid CEL: '],
  [asking('amount > 5'), 'tools.requireApproval[0].when: is not valid CEL: Unknown variable'],
  [asking('1 + "a" == 2'), 'tools.requireApproval[0].when: is not valid CEL: no such overload'],
  [asking('5'), 'tools.requireApproval[0].when: must be true or false, but is of type int'],
  [asking('tool.nam == "x"'), 'tools.requireApproval[0].when: names tool.nam'],
  [asking('args.x.matches("(a+)+$")'), 'tools.requireApproval[0].when: may not call matches()'],
  [asking('cel.bind(a, args.x, a)'), 'tools.requireApproval[0].when: may not call bind()'],
  [asking('x'.repeat(2_001)), 'tools.requireApproval[0].when: too big'],
  [asking(`${'!'.repeat(1_500)}args.x`), 'tools.requireApproval[0].when: is not valid CEL'],
  [{ limits: [{ per: 'agent', requests: 1 }] }, 'limits[0].windowS: is missing; wanted: number'],
  [{ limits: [{ per: 'x', concurrent: 1 }] }, 'limits[0].per: must be one of "token"'],
  [
    { limits: [{ per: 'org', concurrent: 1, windowS: 2 }] },
    'limits[0]: unrecognized key: "windowS"',
  ],
  [{ limits: [{ per: 'org' }] }, 'limits[0]: must have "per" and either "requests"'],
  [{ limits: [{ per: 'org', concurrent: 0.5 }] }, 'limits[0].concurrent: must be int, not number'],
  [{ budget: { run: 1 } }, 'budget.run: must be string, not number'],
  [{ budget: { run: '1e3' } }, 'budget.run: must be dollars as a string'],
  [{ budget: { unpriced: 'free' } }, 'budget.unpriced: must be "deny", or {"inputPerMillion"'],
  [
    { budget: { unpriced: { inputPerMillion: '1.00' } } },
    'budget.unpriced.outputPerMillion: is missing',
  ],
  [{ budget: { alertAt: 0 } }, 'budget.alertAt: too small'],
  [{ run: { maxSteps: 0 } }, 'run.maxSteps: too small'],
  [{ loop: { sameRequest: 1, windowS: 60 } }, 'loop.sameRequest: too small'],
  [{ failover: [{ model: 'gpt-5', to: ['a/b'] }] }, 'failover[0].model: must be written key/model'],
  [{ failover: [{ model: 'a/b', to: ['a/b'] }] }, 'failover[0].to[0]: repeats "a/b"'],
  [{ capture: 'all' }, 'capture: must be one of "none"|"digest"|"sealed"'],
];

describe('a document', () => {
  test('may say everything at once, or nothing', () => {
    expect(policySchema.parse(EXAMPLE)).toMatchObject({ capture: 'digest', run: EXAMPLE.run });
    expect(faultOf({})).toBe('');
  });

  for (const [document, told] of FAULTS) {
    test(`is refused with its place: ${told.slice(0, 90)}`, () => {
      expect(faultOf(document)).toStartWith(told);
    });
  }

  test('takes no key that it does not know, at any level', () => {
    for (const path of pathsOf(EXAMPLE)) {
      const place = path.at(-1) === 'deny' && path.length > 2 ? path.slice(0, -1) : path;
      expect(faultOf(withStranger(place))).toContain('stranger');
    }
  });
});

type Path = readonly (string | number)[];

/** The paths of all objects in a value. */
function pathsOf(value: unknown, path: Path = []): Path[] {
  if (typeof value !== 'object' || value === null) return [];
  const inside = Object.entries(value).flatMap(([key, member]) =>
    pathsOf(member, [...path, Array.isArray(value) ? Number(key) : key]),
  );
  // Where there are several forms, a stranger makes none of them the one that was meant.
  const isForm = path[0] === 'limits' || path[1] === 'deny';
  return Array.isArray(value) || isForm ? inside : [path, ...inside];
}

function withStranger(path: Path): unknown {
  const copy = structuredClone(EXAMPLE) as unknown;
  let at = copy as Record<string | number, unknown>;
  for (const key of path) at = at[key] as typeof at;
  at.stranger = 1;
  return copy;
}

/** A part of a JSON Schema, as far as it is looked at here. */
interface Schema {
  readonly type?: string;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly additionalProperties?: boolean;
  readonly required?: readonly string[];
  readonly items?: Schema;
  readonly anyOf?: readonly Schema[];
  readonly enum?: readonly unknown[];
  readonly const?: unknown;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly exclusiveMinimum?: number;
  readonly maxItems?: number;
  readonly minItems?: number;
  readonly minLength?: number;
  readonly maxLength?: number;
}

/** Whether a value is valid, by the keywords that the published schema uses. */
function isValid(schema: Schema, value: unknown): boolean {
  if (schema.anyOf) return schema.anyOf.some((form) => isValid(form, value));
  if (schema.enum && !schema.enum.includes(value)) return false;
  if (schema.const !== undefined && schema.const !== value) return false;
  if (schema.type === 'object') return isValidObject(schema, value);
  if (schema.type === 'array') return isValidArray(schema, value);
  if (schema.type === 'string') {
    return typeof value === 'string' && isWithin(schema.minLength, schema.maxLength, value.length);
  }
  if (typeof value !== 'number') return false;
  if (schema.exclusiveMinimum !== undefined && value <= schema.exclusiveMinimum) return false;
  const isKind = schema.type !== 'integer' || Number.isInteger(value);
  return isKind && isWithin(schema.minimum, schema.maximum, value);
}

function isValidObject({ properties = {}, required = [] }: Schema, value: unknown): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  const isComplete = required.every((key) => key in value);
  return (
    isComplete &&
    Object.entries(value).every(([key, member]) => {
      const schema = properties[key];
      return schema !== undefined && isValid(schema, member);
    })
  );
}

function isValidArray({ items, minItems, maxItems }: Schema, value: unknown): boolean {
  if (!Array.isArray(value) || !isWithin(minItems, maxItems, value.length)) return false;
  return value.every((element) => items !== undefined && isValid(items, element));
}

function isWithin(least = -Infinity, most = Infinity, value: number): boolean {
  return value >= least && value <= most;
}

function objectsIn(schema: Schema): Schema[] {
  const inside = [...Object.values(schema.properties ?? {}), ...(schema.anyOf ?? [])];
  if (schema.items) inside.push(schema.items);
  return [...(schema.type === 'object' ? [schema] : []), ...inside.flatMap(objectsIn)];
}

/** Documents made of the example's parts, some of them spoiled. */
const documents = fc.record(
  Object.fromEntries(
    Object.entries(EXAMPLE).map(([key, value]) => [
      key,
      fc.oneof(
        { weight: 6, arbitrary: fc.constant(value as unknown) },
        fc.constantFrom<unknown>({}, [], 'x', 1, null, { stranger: 1 }, [{}], [1]),
      ),
    ]),
  ),
  { requiredKeys: [] },
);

describe('the published schema', () => {
  const schema = policyJsonSchema('https://rungate.example/schemas/policy.json') as Schema;

  test('names itself, its draft and what it is', () => {
    expect(schema).toMatchObject({
      $schema: 'https://json-schema.org/draft/2020-12/schema',
      $id: 'https://rungate.example/schemas/policy.json',
      title: 'Rungate policy',
      type: 'object',
    });
  });

  test('closes every object', () => {
    const objects = objectsIn(schema);
    expect(objects.length).toBeGreaterThan(12);
    expect(objects.filter((each) => each.additionalProperties !== false)).toEqual([]);
  });

  test('takes what Rungate takes, and refuses what Rungate refuses', () => {
    expect(isValid(schema, EXAMPLE)).toBe(true);
    fc.assert(
      fc.property(documents, (document) => {
        expect(isValid(schema, document)).toBe(policySchema.safeParse(document).success);
      }),
      { numRuns: 500 },
    );
  });
});

describe('a deployment', () => {
  let upstream: Upstream;
  let rungate: Deployment;
  beforeAll(async () => {
    upstream = await startUpstream();
    rungate = await deploy({ upstreamUrl: upstream.url });
  });
  afterAll(async () => {
    await rungate.stop();
    await upstream.stop();
  });

  test('publishes the schema to anyone', async () => {
    const response = await fetch(`${rungate.url}/schemas/policy.json`);
    expect(response.status).toBe(200);
    expect(response.headers.get('content-type')).toBe('application/schema+json');
    const { $id, ...published } = (await response.json()) as { $id: string };
    expect($id).toEndWith('/schemas/policy.json');
    const { $id: _, ...expected } = policyJsonSchema('') as { $id: string };
    expect(published).toEqual(expected);
  });

  test('tells the place of a fault in a file', async () => {
    const path = join(rungate.folder, 'bad.json');
    const document = asking('args.amount_usd >');
    await Bun.write(path, JSON.stringify({ policies: [{ name: 'bad', document }] }));
    const { code, stderr } = await rungate.cli('apply', path, '--org', 'acme');
    expect(code).toBe(2);
    const place = 'policies[0].document.tools.requireApproval[0].when';
    expect(stderr).toContain(`${place}: is not valid CEL: Unexpected token`);
  });
});
