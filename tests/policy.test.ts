/** Policy documents: what is accepted, where a fault is told, and the schema that is published. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { join } from 'node:path';
import fc from 'fast-check';
import { MAX_NANOS } from '../schema/money.ts';
import {
  judgePolicy,
  type PolicyDocument,
  policyJsonSchema,
  policySchema,
} from '../schema/policy.ts';
import { formatPlace, type Problem, problemsOf } from '../schema/problems.ts';
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
  readonly description?: string;
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
  readonly pattern?: string;
  readonly uniqueItems?: boolean;
}

/** Whether a value is valid, by the keywords that the published schema uses. */
function isValid(schema: Schema, value: unknown): boolean {
  if (schema.anyOf) return schema.anyOf.some((form) => isValid(form, value));
  if (schema.enum && !schema.enum.includes(value)) return false;
  if (schema.const !== undefined && schema.const !== value) return false;
  if (schema.type === 'object') return isValidObject(schema, value);
  if (schema.type === 'array') return isValidArray(schema, value);
  if (schema.type === 'string') {
    if (typeof value !== 'string' || !new RegExp(schema.pattern ?? '', 'u').test(value))
      return false;
    return isWithin(schema.minLength, schema.maxLength, [...value].length);
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

function isValidArray(schema: Schema, value: unknown): boolean {
  const { items, minItems, maxItems, uniqueItems } = schema;
  if (!Array.isArray(value) || !isWithin(minItems, maxItems, value.length)) return false;
  if (uniqueItems && new Set(value.map((item) => JSON.stringify(item))).size < value.length) {
    return false;
  }
  return value.every((element) => items !== undefined && isValid(items, element));
}

function isWithin(least = -Infinity, most = Infinity, value: number): boolean {
  return value >= least && value <= most;
}

/** What is said of a place, and of those above it. */
function descriptionAt(schema: Schema, [key, ...rest]: readonly PropertyKey[]): string {
  const { description = '', properties = {}, items, anyOf = [] } = schema;
  const below = [items, properties[String(key)], ...anyOf].filter((each) => each !== undefined);
  if (key === undefined) return description;
  const path = anyOf.length > 0 ? [key, ...rest] : rest;
  return [description, ...below.map((each) => descriptionAt(each, path))].join(' ');
}

function objectsIn(schema: Schema): Schema[] {
  const inside = [...Object.values(schema.properties ?? {}), ...(schema.anyOf ?? [])];
  if (schema.items) inside.push(schema.items);
  return [...(schema.type === 'object' ? [schema] : []), ...inside.flatMap(objectsIn)];
}

/** As the example, in other forms. */
const OTHER = {
  ...EXAMPLE,
  tools: { deny: [{ tool: 'rm' }], requireApproval: [{ tool: '*' }], unreleasedResults: 'deny' },
  budget: { run: '0', unpriced: { inputPerMillion: '0.000000001', outputPerMillion: '4500000' } },
  capture: 'none',
} satisfies PolicyDocument;

/** The paths of all members of a value, itself left out. */
function membersOf(value: unknown, path: Path = []): Path[] {
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([key, member]) => {
    const place = [...path, Array.isArray(value) ? Number(key) : key];
    return [place, ...membersOf(member, place)];
  });
}

/** What stands in the place of a member; among others what other members are. */
const SPOILS: readonly unknown[] = [
  ...[{}, [], 'x', '', 1, 0, -1, 0.5, 1e9, null, true, { stranger: 1 }, [{}], [1], ['x']],
  ...['lots', '-5', '+1', '1e3', '1.', '.5', '01', '1.0000000000', '9999999', '1,00', ' 1', '1\n'],
  ...['4500000', '4500000.00', '4500000.01', '4499999.999999999', '4400000', '0.1', '12345678'],
  ...['a/b', 'a/b c', 'a b/c', '/b', 'a/', 'a/b/c', `${'k'.repeat(65)}/m`, ['a/b', 'a/b']],
  ...['deny', 'x'.repeat(257), ['a/b', 'a/c'], [{ model: 'a/b', to: ['a/c', 'a/c'] }]],
];

/** Documents like the examples, with some members spoiled, at whatever depth. */
const documents = fc
  .tuple(fc.constantFrom<object>(EXAMPLE, OTHER), fc.array(fc.nat(), { maxLength: 2 }))
  .chain(([example, places]) => {
    const paths = membersOf(example);
    return fc
      .tuple(...places.map(() => fc.constantFrom(...SPOILS)))
      .map((spoils) =>
        places.reduce<unknown>(
          (document, place, at) => withMember(document, paths[place % paths.length]!, spoils[at]),
          example,
        ),
      );
  });

/** A copy in which a member is another; the same where it is no more. */
function withMember(value: unknown, [key, ...rest]: Path, member: unknown): unknown {
  if (key === undefined) return member;
  if (typeof value !== 'object' || value === null || !(key in value)) return value;
  const inner = withMember((value as Record<string | number, unknown>)[key], rest, member);
  if (!Array.isArray(value)) return { ...value, [key]: inner };
  return value.map((each: unknown, at) => (at === key ? inner : each));
}

/** What no JSON Schema can say: what CEL is, that a model is named in two places, the whole length. */
const BEYOND_SCHEMA: readonly (readonly [told: string, document: unknown])[] = [
  ['that compiles', asking('args.')],
  ['is true or false', { tools: { deny: [{ tool: 'x', when: '5' }] } }],
  ['not among its own targets', { failover: [{ model: 'a/b', to: ['a/b'] }] }],
  [
    'A model stands once',
    { failover: ['c', 'd'].map((to) => ({ model: 'a/b', to: [`a/${to}`] })) },
  ],
  ['at most 100000 characters', { models: { allow: Array(400).fill('x'.repeat(256)) } }],
];

function isBeyondSchema({ path, message }: Problem): boolean {
  if (path.at(-1) === 'when') return !message.startsWith('too');
  return path.length === 0
    ? message.startsWith('must be at most')
    : path[0] === 'failover' && message.startsWith('repeats');
}

/** Texts of about as many characters as there may be, some of which take two units in UTF-16. */
const texts = fc
  .tuple(
    fc.constantFrom('k', '😀', '\ud83d', '\u3000'),
    fc.constantFrom(...[64, 200, 256, 2_000].flatMap((most) => [1, most - 1, most, most + 1])),
  )
  .map(([character, count]) => character.repeat(count));

const TEXT_PLACES: readonly ((text: string) => object)[] = [
  (text) => ({ models: { allow: [text] } }),
  (text) => ({ hostedTools: { deny: [text] } }),
  (text) => ({ tools: { allow: [text] } }),
  (text) => ({ tools: { deny: [text] } }),
  (tool) => ({ tools: { deny: [{ tool }] } }),
  (name) => ({ tools: { deny: [{ tool: 'x', name }] } }),
  (text) => ({ tools: { deny: [{ tool: 'x', when: toCondition(text) }] } }),
  (tool) => ({ tools: { requireApproval: [{ tool }] } }),
  (name) => ({ tools: { requireApproval: [{ tool: 'x', name }] } }),
  (text) => asking(toCondition(text)),
  (key) => ({ failover: [{ model: `${key}/m`, to: ['a/b'] }] }),
  (model) => ({ failover: [{ model: `k/${model}`, to: ['a/b'] }] }),
  (key) => ({ failover: [{ model: 'a/b', to: [`${key}/m`] }] }),
  (model) => ({ failover: [{ model: 'a/b', to: [`k/${model}`] }] }),
];

/** A condition of as many characters as a text has. */
function toCondition(text: string): string {
  const around = 'args.s == ""';
  return `args.s == "${[...text].slice(around.length).join('')}"`;
}

/** Whether a text is an amount of whole nanos, and no more of them than there may be. */
function isAmount(text: string): boolean {
  const [, whole, fraction = ''] = /^(0|[1-9]\d*)(?:\.(\d{1,9}))?$/.exec(text) ?? [];
  return whole !== undefined && BigInt(whole + fraction.padEnd(9, '0')) <= BigInt(MAX_NANOS);
}

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
    for (const example of [EXAMPLE, OTHER]) {
      expect(isValid(schema, example)).toBe(true);
      expect(faultOf(example)).toBe('');
    }
    let refused = 0;
    fc.assert(
      fc.property(documents, (document) => {
        const problems = judgePolicy(document);
        const isTaken = isValid(schema, document);
        if (!isTaken) refused += 1;
        if (isTaken) expect(problems.filter((each) => !isBeyondSchema(each))).toEqual([]);
        else expect(problems).not.toEqual([]);
      }),
      { numRuns: 3_000 },
    );
    expect(refused).toBeGreaterThan(1_000);
  });

  test('takes the same amounts as Rungate, wherever there is one', () => {
    const digits = fc.string({ unit: fc.constantFrom(...'0123459.- e'), maxLength: 9 });
    const most = fc.integer({ min: 4_499_990, max: 4_500_010 }).map(String);
    const amount = fc.oneof(
      digits,
      most,
      fc.tuple(most, digits).map((parts) => parts.join('.')),
    );
    const PLACES: readonly ((text: string) => object)[] = [
      ...['run', 'agentPerDay', 'agentPerMonth', 'orgPerMonth'].map((key) => (text: string) => ({
        [key]: text,
      })),
      (text) => ({ unpriced: { inputPerMillion: text, outputPerMillion: '1' } }),
      (text) => ({ unpriced: { inputPerMillion: '1', outputPerMillion: text } }),
    ];
    fc.assert(
      fc.property(amount, fc.constantFrom(...PLACES), (text, place) => {
        const document = { budget: place(text) };
        expect(isValid(schema, document)).toBe(isAmount(text));
        expect(policySchema.safeParse(document).success).toBe(isAmount(text));
      }),
      { numRuns: 2_000 },
    );
  });

  test('counts the characters of a text as Rungate does, wherever there is one', () => {
    let taken = 0;
    fc.assert(
      fc.property(texts, fc.constantFrom(...TEXT_PLACES), (text, place) => {
        const document = place(text);
        const isTaken = isValid(schema, document);
        if (isTaken) taken += 1;
        expect(judgePolicy(document).length === 0).toBe(isTaken);
      }),
      { numRuns: 2_000 },
    );
    expect(taken).toBeGreaterThan(500);
  });

  test.each(BEYOND_SCHEMA)('says in words what else Rungate refuses: %s', (told, document) => {
    const problems = judgePolicy(document);
    expect(problems).not.toEqual([]);
    expect(problems.filter((each) => !isBeyondSchema(each))).toEqual([]);
    expect(isValid(schema, document)).toBe(true);
    expect(problems.map(({ path }) => descriptionAt(schema, path))).toContainEqual(
      expect.stringContaining(told),
    );
  });

  test('takes no target of a failover twice', () => {
    const failover = [{ model: 'a/b', to: ['a/c', 'a/c'] }];
    expect(isValid(schema, { failover })).toBe(false);
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
