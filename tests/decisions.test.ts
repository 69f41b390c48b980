/** Decisions on tools: pure, in CEL where there are conditions, and over declared tools on the wire. */

import { heapStats } from 'bun:jsc';
import { afterAll, beforeAll, describe, expect, spyOn, test } from 'bun:test';
import { join } from 'node:path';
import fc from 'fast-check';
import type { Json, JsonObject } from '../schema/json.ts';
import { type PolicyDocument, policySchema } from '../schema/policy.ts';
import { environment, makeStrict } from '../schema/rules/cel.ts';
import {
  type Condition,
  compileCondition,
  Inquiry,
  InvalidCondition,
} from '../schema/rules/condition.ts';
import { decideModel } from '../schema/rules/decide.ts';
import { decideHosted } from '../schema/rules/hosted.ts';
import { spendFrom } from '../schema/rules/steps.ts';
import { decideTool, denyName, governsTools, judgeName } from '../schema/rules/tools.ts';
import { type Deployment, deploy, readTrail } from './rungate.ts';
import { startUpstream, type Upstream } from './upstream.ts';

type Tools = NonNullable<PolicyDocument['tools']>;

const policyOf = (tools: Tools) => policySchema.parse({ tools });
const effectOf = (tools: Tools, name: string, args?: JsonObject) =>
  decideTool(policyOf(tools), { name, args }).effect;

const names = fc.constantFrom('get', 'get_user', 'issue_refund', 'drop_table', 'DROP_TABLE', 'x');
const globs = fc.constantFrom('*', 'get*', '*_*', 'issue_refund', 'drop_*', 'x');
const when = fc.constantFrom('args.n > 5', 'args.n <= 5', 'has(args.n)', 'args.missing == 1');
const conditional = fc.record({ tool: globs, when }, { requiredKeys: ['tool'] });
const tools = fc.record(
  {
    allow: fc.array(globs, { maxLength: 3 }),
    deny: fc.array(fc.oneof(globs, conditional), { maxLength: 3 }),
    requireApproval: fc.array(conditional, { maxLength: 3 }),
  },
  { requiredKeys: [] },
);
const argsOf = fc.option(fc.record({ n: fc.integer({ min: 0, max: 10 }) }), { nil: undefined });

const LAXITY = { deny: 0, ask: 1, allow: 2 };

describe('a decision', () => {
  test('is a denial wherever a rule denies, whatever the other lists say', () => {
    fc.assert(
      fc.property(tools, names, argsOf, (rules, name, args) => {
        const deny = [...(rules.deny ?? []), name];
        expect(effectOf({ ...rules, deny }, name, args)).toBe('deny');
      }),
    );
  });

  test('never becomes laxer by a further rule that denies or asks', () => {
    fc.assert(
      fc.property(tools, conditional, names, argsOf, (rules, rule, name, args) => {
        const before = LAXITY[effectOf(rules, name, args)];
        const denying = { ...rules, deny: [...(rules.deny ?? []), rule] };
        expect(LAXITY[effectOf(denying, name, args)]).toBeLessThanOrEqual(before);
        if (before === LAXITY.deny) return;
        const asking = { ...rules, requireApproval: [...(rules.requireApproval ?? []), rule] };
        expect(LAXITY[effectOf(asking, name, args)]).toBeLessThanOrEqual(before);
      }),
    );
  });

  test('denies everything that a list of what is allowed leaves out', () => {
    expect(effectOf({ allow: [] }, 'get')).toBe('deny');
    expect(effectOf({ allow: ['get_*'] }, 'Get_user')).toBe('deny');
    expect(effectOf({ allow: ['get_*'] }, 'get_user')).toBe('allow');
    expect(effectOf({ allow: ['get_*'], requireApproval: [{ tool: 'pay' }] }, 'pay')).toBe('ask');
  });

  test('denies what can’t be a name, under any rules', () => {
    const long = fc.constant('x'.repeat(513));
    const wrong = fc.oneof(
      long,
      fc.tuple(names, fc.constant('\0'), names).map((parts) => parts.join('')),
    );
    fc.assert(
      fc.property(tools, wrong, argsOf, (rules, name, args) => {
        const policy = policyOf(rules);
        const denial = { effect: 'deny', rule: 'tools.name' };
        expect(decideTool(policy, { name, args })).toMatchObject(denial);
        expect(denyName(policy, name)).toMatchObject(denial);
        expect(judgeName(policy, name)).toBe('deny');
      }),
    );
  });

  test('is made within one budget, of which all its rules take, and reading arguments once', () => {
    const denying = (times: number, when: string) =>
      policyOf({ deny: Array.from({ length: times }, () => ({ tool: '*', when })) });
    const args = { n: 1, l: Array.from({ length: 15_000 }, () => 0) };
    const call = { name: 'get', args, argsText: JSON.stringify(args) };
    expect(decideTool(denying(400, 'args.n > 5'), call).effect).toBe('allow');
    const dear = 'args.l.exists(x, x > 5)';
    expect(decideTool(denying(1, dear), call).effect).toBe('allow');
    const inquiry = new Inquiry();
    expect(decideTool(denying(400, dear), call, inquiry).effect).toBe('deny');
    expect(inquiry.left).toBeGreaterThan(-100_000);
    // Nothing is left for the other calls of the same answer.
    const small = { name: 'get', args: { n: 1 } };
    expect(decideTool(denying(1, 'args.n > 5'), small, inquiry).effect).toBe('deny');
    expect(decideTool(denying(1, 'args.n > 5'), small).effect).toBe('allow');
  });

  test('agrees with what was judged by the name alone', () => {
    fc.assert(
      fc.property(tools, names, argsOf, (rules, name, args) => {
        const policy = policyOf(rules);
        const { effect } = decideTool(policy, { name, args });
        const judged = judgeName(policy, name);
        if (judged !== 'depends') expect(effect).toBe(judged);
        expect(denyName(policy, name)?.effect).toBe(judged === 'deny' ? 'deny' : undefined);
        if (!governsTools(policy)) expect(effect).toBe('allow');
      }),
      { numRuns: 500 },
    );
  });

  test('says which rule it is, what was asked and what is allowed', () => {
    const policy = policyOf({
      allow: ['*'],
      deny: ['drop_*'],
      requireApproval: [
        { tool: 'pay', approvals: 1 },
        { name: 'large', tool: 'pay', when: 'args.n > 5', approvals: 2, expiresAfterS: 60 },
      ],
    });
    expect(decideTool(policy, { name: 'drop_table', args: {} })).toEqual({
      effect: 'deny',
      rule: 'tools.deny[0]',
      field: 'tool',
      asked: 'drop_table',
      allowed: ['*'],
      reason: 'The policy denies the tool "drop_table" (rule tools.deny[0]).',
    });
    expect(decideTool(policy, { name: 'pay', args: { n: 9 } })).toEqual({
      effect: 'ask',
      rule: 'tools.requireApproval[1]',
      ruleName: 'large',
      field: 'tool',
      asked: 'pay',
      reason:
        'The tool "pay" needs the approval of 2 people (rule tools.requireApproval[1], "large").',
      approvals: 2,
      expiresAfterS: 60,
    });
  });

  const VARIANTS = [
    'DROP_TABLE',
    'Drop_Table',
    ' drop_table',
    'drop_table\u200b',
    'dr\u00adop_table',
    'ｄｒｏｐ＿table',
    'drop\uff3ftable',
    'drop_table\n',
    '\ufeffdrop_table',
    'ⅾrop_table',
  ];
  for (const name of VARIANTS) {
    test(`holds for a variant of the name: ${JSON.stringify(name)}`, () => {
      expect(effectOf({ allow: ['*'], deny: ['drop_*'] }, name)).toBe('deny');
      expect(judgeName(policyOf({ requireApproval: [{ tool: 'Drop_Table' }] }), name)).toBe(
        'depends',
      );
      expect(effectOf({ allow: ['drop_table'] }, name)).toBe('deny');
    });
  }

  test('denies a name of a length that no tool has, in no time', () => {
    expect(effectOf({ allow: ['*'] }, 'a'.repeat(5_000_000))).toBe('deny');
  });
});

/** A condition, arguments as JSON, and what it says: `undefined` where it can't tell. */
const CONDITIONS: readonly (readonly [string, string, boolean | undefined])[] = [
  ['args.n > 500', '{"n":501}', true],
  ['args.n > 500', '{"n":500.5}', true],
  ['args.n > 500', '{"n":500}', false],
  ['args.n == 500', '{"n":500.0}', true],
  ['args.n >= 500.0', '{"n":500}', true],
  ['args.n * 2 + 1 > 1000', '{"n":500}', true],
  ['tool.args.n > 500 && tool.name == "pay"', '{"n":501}', true],
  ['args.n > 500', '{"n":"501"}', undefined],
  ['args.n > 500', '{}', undefined],
  ['args.n > 500', '{"n":null}', undefined],
  ['args.n', '{"n":1}', undefined],
  ['args.n > 500', '{"n":12345678901234567890}', undefined],
  ['args.n > 500', '{"n":500.00000000000000001}', undefined],
  ['args.n > 500', '{"n":0.30000000000000004}', false],
  ['args.n > 500', '{"n":1e2,"s":"12345678901234567890"}', false],
  ['args.n / args.m > 5', '{"n":60,"m":10}', true],
  ['args.n / args.m > 5', '{"n":0,"m":0}', undefined],
  ['args.n / args.m < 5', '{"n":60,"m":0}', undefined],
  ['args.n / args.m > 5', '{"n":60,"m":-0}', undefined],
  ['args.n / 0 < 5', '{"n":60}', undefined],
  ['args.n * 1e308 - args.n * 1e308 < 5', '{"n":60}', undefined],
  ['args.n + 1e308 + 1e308 < 5', '{"n":60}', undefined],
  ['args.m == 0 || args.n / args.m > 5', '{"n":60,"m":0}', true],
  ['args.missing == 1 || args.n > 5', '{"n":6}', true],
  ['args.missing == 1 || args.n > 5', '{"n":5}', undefined],
  ['has(args.n) && args.n > 5', '{}', false],
  ['args.to.all(a, a.endsWith("@acme.com"))', '{"to":["a@acme.com","b@evil.com"]}', false],
  ['args.items.exists(i, i.parts.exists(p, p.n > 3))', '{"items":[{"parts":[{"n":4}]}]}', true],
  ['args.constructor == "x"', '{"constructor":"x"}', true],
  ['args.n > 5', '{"constructor":"x","n":6}', true],
  ['args["__proto__"] == 1', '{"__proto__":1}', true],
  ['args.toString == 1', '{}', undefined],
  ['args.n == 1', '{"n":"1"}', undefined],
  ['args.force == true', '{"force":"true"}', undefined],
  ['args.force != true', '{"force":1}', undefined],
  ['args.to == "all"', '{"to":["all"]}', undefined],
  ['args.to == null || args.to == "all"', '{"to":null}', true],
  ['args.n in [1, 2]', '{"n":2}', true],
  ['args.n in [1, 2]', '{"n":3}', false],
  ['args.n in [1, 2]', '{"n":"2"}', undefined],
  ['!(args.n in [1, 2])', '{"n":"2"}', undefined],
  ['args.n in ["a", 1]', '{"n":1}', true],
  ['args.n in ["a", 1]', '{"n":2}', undefined],
  ['args.n in [1u, 2.5]', '{"n":1}', true],
  ['args.n in []', '{"n":"1"}', false],
  ['args.n in [null, "a"]', '{"n":null}', true],
  ['args.to in ["all"]', '{"to":["all"]}', undefined],
  ['args.to in [["all"]]', '{"to":["all"]}', true],
  ['args.to in [["all"], ["1"]]', '{"to":[1]}', undefined],
  ['"all" in args.to', '{"to":["a",1]}', undefined],
  ['"all" in args.to', '{"to":["a",1,"all"]}', true],
  ['"all" in args.to', '{"to":"all"}', undefined],
  ['args.n in {"1": true}', '{"n":"1"}', true],
  ['args.n in {"1": true}', '{"n":1}', undefined],
  ['"to" in args', '{"n":1}', false],
  ['args.to.exists(in_, in_ in ["a"])', '{"to":["b","a"]}', true],
  ['args.to.all(same, same in ["a"] && same == "a")', '{"to":["a"]}', true],
  ['args.o == {"a": [1, "x"]}', '{"o":{"a":[1,"x"]}}', true],
  ['args.o == {"a": [1, "x"]}', '{"o":{"a":["1","x"]}}', undefined],
  ['args.o == {"a": [1, "x"]}', '{"o":{"a":["1","y"]}}', false],
  ['args.o != {"a": 1}', '{"o":{"b":1}}', true],
  ['args.l == [1, 2] ? args.n == 1 : false', '{"l":[1,2],"n":"1"}', undefined],
  [
    'timestamp(args.at) in [timestamp("2026-01-01T00:00:00Z")]',
    '{"at":"2026-01-01T00:00:00Z"}',
    true,
  ],
  ['duration("5s") == duration(args.d)', '{"d":"5000ms"}', true],
  ['args.d == duration("5s")', '{"d":5000}', undefined],
  ['type(args.n) == string', '{"n":1}', false],
  ['b"a" == b"a" && args.n == 1', '{"n":1}', true],
  ['args.n - (10 - (4 - 1)) == -6', '{"n":1}', true],
  ['1 + args.n == 2', '{"n":1}', true],
  ['1 + args.n + 1 == 3', '{"n":1}', true],
  ['-(args.n - 1) < 0 && !(args.n != 2)', '{"n":2}', true],
  ['args.n > 5', '{"n":1,"N":6}', undefined],
  ['has(args.to) && args.to == "all"', '{"\\u0054O":"all"}', undefined],
  ['"to" in args && args["to"] == "all"', '{"ｔｏ":"all"}', undefined],
  ['args.n > 5', '{"n":1,"headers":{"A":1,"a":2}}', false],
  ['args.path.lowerAscii().startsWith("/etc")', '{"path":"/ETC/passwd"}', true],
  ['timestamp(args.at) > timestamp("2026-01-01T00:00:00Z")', '{"at":"no"}', undefined],
  ['args.n > 0.0', '{"n":1e-400}', undefined],
  ['args.n > 0.0', '{"n":-1E-400}', undefined],
  ['args.n > 0.0', '{"n":1.6e-323}', undefined],
  ['args.n > 0.0', '{"n":5e-324}', true],
  ['args.n > 0.0', '{"n":1.5e-10}', true],
  ['args.n > 0.0', '{"n":0e5,"m":-0.000,"o":0.00000000000000000000}', false],
  ['int(args.s) + 1 > 500', '{"s":"500"}', true],
  ['args.n > 0.0', '{"n":0.000000012345678}', true],
  ['timestamp(int(args.s)) == timestamp("1970-01-01T00:00:01Z")', '{"s":"1"}', true],
];

/** What CEL converts to a value that is the same as another, and what it converts to none. */
const CONVERSIONS: Readonly<Record<string, readonly [good: [string, string][], bad: string[]]>> = {
  int: [
    [
      ['"0"', '0'],
      ['"-12"', '-12'],
      ['"+12"', '12'],
      ['"007"', '7'],
      ['1.9', '1'],
      ['-1.9', '-1'],
      ['"9223372036854775807"', '9223372036854775807'],
    ],
    [
      ...['""', '" "', '" 1"', '"1 "', '"1\\n"', '"0b11"', '"0o17"', '"0X1F"', '"0x1F"', '"1_0"'],
      ...['"1.0"', '"1e3"', '"-"', '"--1"', '"１"', '"9223372036854775808"', '1e19', '-1e19'],
      ...['9223372036854775808.0', 'double("1e300")'],
    ],
  ],
  uint: [
    [
      ['"0"', '0u'],
      ['"12"', '12u'],
      ['1.9', '1u'],
    ],
    ['""', '" "', '"-1"', '"-0"', '"+1"', '"0b11"', '"0O7"', '"1.0"', '-1.0', '1e20'],
  ],
  double: [
    [
      ['"0"', '0.0'],
      ['"-1.50"', '-1.5'],
      ['"+1e3"', '1000.0'],
      ['".5"', '0.5'],
      ['"5."', '5.0'],
      ['"1E-2"', '0.01'],
      ['12', '12.0'],
    ],
    [
      ...[
        '""',
        '" "',
        '" 1"',
        '"1 "',
        '"0x1F5"',
        '"0b1"',
        '"0o7"',
        '"1_0"',
        '"1e"',
        '"."',
        '"1,5"',
      ],
      ...['"inf"', '"-Infinity"', '"NaN"', '"1e400"', '"1e-400"', '"500.00000000000000001"'],
    ],
  ],
  timestamp: [
    [
      ['"2028-02-29T00:00:00Z"', 'timestamp(1835395200)'],
      ['"1970-01-01T01:00:00+01:00"', 'timestamp(0)'],
      ['"1970-01-01T00:00:01.000000000Z"', 'timestamp(1)'],
    ],
    [
      ...['"2027-02-30T00:00:00Z"', '"2027-02-29T00:00:00Z"', '"2027-04-31T00:00:00Z"'],
      ...['"2027-13-01T00:00:00Z"', '"2027-01-00T00:00:00Z"', '"2027-01-01T24:00:00Z"'],
      ...['"2027-01-01T00:60:00Z"', '"2027-01-01T00:00:60Z"', '"2027-01-01T00:00:00+24:00"'],
      ...['"2027-01-01T00:00:00"', '"2027-01-01 00:00:00Z"', '"2027-01-01T00:00:00.Z"'],
      ...['"2027-01-01T00:00+01:00"', '"Fri, 01 Jan 2027 00:00:00 GMT"', '"January 1, 2027 00:00"'],
      ...['"+002027-01-01T00:00:00Z"', '"2027-01-01T00:00:00.0001Z"', '"2027-01-01T00:00:00+0100"'],
    ],
  ],
  duration: [
    [
      ['"90s"', 'duration("1m30s")'],
      ['"-1.5h"', 'duration("-90m")'],
      ['".5s"', 'duration("500ms")'],
      ['"1ms2us3ns"', 'duration("1002003ns")'],
    ],
    [
      ...['""', '"s"', '".s"', '"h1m"', '"5"', '"1d"', '" 5s"', '"5s "', '"5 s"', '"1e3s"'],
      ...['"99999999999h"', '"-315576000001s"', '"+-1s"', '"1s-1s"', '"1.2.3s"'],
    ],
  ],
};

/** An expression of numbers, and what it comes to. */
type Sum = readonly [text: string, value: number];

/** Bare where an operator binds tighter, so that nothing but parentheses that count is written. */
function joined([[a, x], operator, [b, y]]: [Sum, string, Sum]): Sum {
  if (operator === '*') return [`(${a}) * (${b})`, x * y];
  return operator === '+' ? [`${a} + ${b}`, x + y] : [`${a} - (${b})`, x - y];
}

describe('a condition', () => {
  for (const [source, text, expected] of CONDITIONS) {
    test(`${source} of ${text} is ${expected ?? 'not to be told'}`, () => {
      const subject = { name: 'pay', args: JSON.parse(text), argsText: text };
      expect(compileCondition(source)(subject)).toBe(expected);
    });
  }

  for (const [name, [good, bad]] of Object.entries(CONVERSIONS)) {
    const read = (operand: string, other: string) => {
      // The operand comes from the arguments where it is one that JSON can say.
      const isNumber = /^-?[\d.]+$/.test(operand) && name === 'double';
      const isJson = !isNumber && !operand.includes('(');
      const text = isJson ? `{"v":${operand.replaceAll('\\\\', '\\')}}` : '{}';
      const source = `${name}(${isJson ? 'args.v' : operand}) == ${other}`;
      return compileCondition(source)({ name: 'x', args: JSON.parse(text) });
    };

    test.each(good)(`that converts is told what CEL makes of ${name}(%s)`, (operand, value) => {
      expect(read(operand, value)).toBe(true);
    });

    test.each(bad)(`that converts can’t be told what CEL makes of ${name}(%s)`, (operand) => {
      expect(read(operand, good[0]![1])).toBeUndefined();
    });

    test(`that converts a long text by ${name}() is asked in no time`, () => {
      for (const unit of ['1', '1h', '1.', '.', ' ', '-']) {
        const condition = compileCondition(`${name}(args.s) == ${good[0]![1]}`);
        const startedAt = performance.now();
        expect(condition({ name: 'x', args: { s: unit.repeat(1_000) } })).toBeUndefined();
        expect(performance.now() - startedAt).toBeLessThan(100);
      }
    });
  }

  test('may convert as often as it may do anything', () => {
    const times = 40;
    const deep = `${'int('.repeat(times / 2)}args.n${')'.repeat(times / 2)} == 1`;
    const wide = Array.from({ length: times }, () => 'int(args.n) == 1').join(' && ');
    for (const source of [deep, wide]) {
      expect(compileCondition(source)({ name: 'x', args: { n: 1 } })).toBe(true);
      expect(compileCondition(source)({ name: 'x', args: { n: 2 } })).toBe(false);
    }
  });

  test('finds in a list what equals one of its members, and can tell no more than of each', () => {
    const scalar = fc.constantFrom<Json>(...[null, true, false, 0, 1, 1.5, '', '1', 'true', 'a']);
    const value = fc.oneof(scalar, fc.array(scalar, { maxLength: 2 }), fc.record({ k: scalar }));
    const same = compileCondition('args.a == args.b');
    const differs = compileCondition('args.a != args.b');
    const within = compileCondition('args.a in args.l');
    const ask = (condition: Condition, args: JsonObject) => condition({ name: 'x', args });
    fc.assert(
      fc.property(value, fc.array(value, { maxLength: 4 }), (a, l) => {
        const each = l.map((b) => ask(same, { a, b }));
        const expected = each.includes(true) || (each.includes(undefined) ? undefined : false);
        expect(ask(within, { a, l })).toBe(expected);
        expect(ask(same, { a, b: a })).toBe(true);
        for (const b of l) {
          const isSame = ask(same, { a, b });
          expect(ask(same, { a: b, b: a })).toBe(isSame);
          expect(ask(differs, { a, b })).toBe(isSame === undefined ? undefined : !isSame);
          if (isSame) expect(b).toEqual(a);
          if (typeof a !== typeof b && a !== null && b !== null) expect(isSame).toBeUndefined();
        }
      }),
      { numRuns: 2_000 },
    );
  });

  test('computes what it says, however it is put in parentheses', () => {
    const whole = fc.integer({ min: 0, max: 9 });
    const { sum } = fc.letrec<{ sum: Sum }>((tie) => ({
      sum: fc.oneof(
        { depthSize: 'small', maxDepth: 5, withCrossShrink: true },
        whole.map((n): Sum => [String(n), n]),
        whole.map((n): Sum => [`args.l[${n}]`, n * n]),
        fc.tuple(tie('sum'), fc.constantFrom('+', '-', '*'), tie('sum')).map(joined),
        tie('sum').map(([text, n]): Sum => [`-(${text})`, -n]),
        fc
          .tuple(tie('sum'), tie('sum'), tie('sum'))
          .map(([[a, x], [b, y], [c, z]]): Sum => [`(${a} < ${b} ? ${b} : ${c})`, x < y ? y : z]),
      ),
    }));
    const l = Array.from({ length: 10 }, (_, n) => n * n);
    fc.assert(
      fc.property(sum, sum, ([left, x], [right, y]) => {
        fc.pre(left.length + right.length < 150);
        const condition = compileCondition(`args.l[0] + ${left} == ${right}`);
        expect(condition({ name: 'x', args: { l } })).toBe(x === y);
        const holds = compileCondition(`args.l[0] + ${left} in [(${left}) + 0.0]`);
        expect(holds({ name: 'x', args: { l } })).toBe(true);
      }),
    );
  });

  test('that can’t be told asks, or denies, as its rule would', () => {
    const unknown = 'args.amount > 500';
    for (const args of [undefined, {}, { amount: 'x' }, { amount: 2 ** 60 }]) {
      expect(effectOf({ requireApproval: [{ tool: 'pay', when: unknown }] }, 'pay', args)).toBe(
        'ask',
      );
      expect(effectOf({ deny: [{ tool: 'pay', when: unknown }] }, 'pay', args)).toBe('deny');
    }
  });

  test('never throws and never runs long, whatever it is and whatever it is asked about', () => {
    const piece = fc.constantFrom(
      ...[
        'args',
        'args.l',
        'args.s',
        '.exists(x, ',
        '.all(y, ',
        '.map(z, ',
        '.filter(w, ',
        ')',
        'x',
      ],
      ...['y', ' + ', ' == ', ' in ', ' && ', ' || ', '!', '(', '[', ']', '"a"', '1', ' > ', ' ? '],
      ...[
        ' : ',
        '.contains(',
        'size(',
        'string(',
        'has(',
        '{',
        '}',
        ', ',
        'tool.name',
        '.matches(',
      ],
    );
    const args = {
      l: Array.from({ length: 5_000 }, (_, at) => at),
      s: 'a'.repeat(500_000),
      o: { l: [[1], [2]] },
    };
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 14 }), (pieces) => {
        try {
          const result = compileCondition(pieces.join(''))({ name: 'x', args });
          expect([true, false, undefined]).toContain(result);
        } catch (error) {
          expect(error).toBeInstanceOf(InvalidCondition);
        }
      }),
      { numRuns: 3_000 },
    );
  });

  test('that compares what can never be equal is refused when it is saved', () => {
    expect(() => compileCondition('size(args.to) == "3"')).toThrow(InvalidCondition);
  });

  const HOSTILE = [
    'args.l.all(x, args.l.all(y, args.l.all(z, x + y + z > 0)))',
    'args.s.matches("(a+)+$")',
    'cel.bind(a, args.s + args.s, a + a == args.s)',
    'args.s.split("").size() > 1',
    'args.l.join() == ""',
    `${'('.repeat(500)}true${')'.repeat(500)}`,
    `[${Array.from({ length: 200 }, () => 'args.s').join()}].size() > 1`,
    `${'args.s + '.repeat(200)}args.s == ""`,
  ];
  for (const source of HOSTILE) {
    test(`is refused when it is saved: ${source.slice(0, 60)}`, () => {
      expect(() => compileCondition(source)).toThrow(InvalidCondition);
    });
  }

  const DEAR = [
    'args.l.all(x, args.l.all(y, x + y >= 0))',
    'args.l.exists(x, args.s.contains("b"))',
    'args.l.map(x, args.s + args.s).exists(y, y.endsWith("b"))',
    '!(args.l + [0] in args.l.map(x, args.l + [1]))',
    'args.l.map(x, args.l) == args.l.map(y, args.l)',
    `[args.l]${'.map(x, x + x)'.repeat(9)}.all(x, size(x) > 0)`,
    `[args.s]${'.map(x, x + x)'.repeat(9)}.all(x, size(x) > 0)`,
    '!args.s.contains(args.s.substring(size(args.s) / 2) + "c")',
    'args.s.lastIndexOf(args.s.substring(1)) == 1',
    'args.l.filter(x, args[args.s] == x || true) == args.l',
    'args.l.exists(x, x > "a" || x > "b") || true',
  ];
  for (const source of DEAR) {
    test(`can’t be told where it would cost too much: ${source}`, () => {
      const condition = compileCondition(source);
      const dear = { l: Array.from({ length: 9_000 }, (_, at) => at), s: 'a'.repeat(1_000_000) };
      expect(condition({ name: 'x', args: dear })).toBeUndefined();
      expect(condition({ name: 'x', args: { l: [1, 2], s: 'b' } })).toBe(true);
    });
  }

  const CHEAP = [
    'args.l.all(x, args.l.exists(y, x == y))',
    'args.l.all(x, "u7" in args.m)',
    'args.l.map(x, args.l) != args.m.map(x, args.l)',
    'args.o.all(x, x.l.exists(y, y > 5))',
    'args.l.all(x, x + 1 > 0 && args.l.size() == 9000)',
    'args.s.lowerAscii().contains("b") == false',
  ];
  test.each(CHEAP)('is told where it costs no more than it may: %s', (source) => {
    const l = Array.from({ length: 9_000 }, (_, at) => at % 9);
    const o = Array.from({ length: 3_000 }, (_, at) => ({ l: [at, 9] }));
    const args = {
      l,
      m: ['u7'],
      s: 'a'.repeat(100_000),
      ...(source.includes('args.o') && { l: [], o }),
    };
    expect(compileCondition(source)({ name: 'x', args })).toBe(true);
  });

  test('takes no more work than its budget has steps, whatever it builds', () => {
    let told = 0;
    fc.assert(
      fc.property(claims(3, []), fc.integer({ min: 0, max: 20_000 }), (source, steps) => {
        const { ast, check } = environment.parse(source);
        fc.pre(check().valid);
        const run = makeStrict(ast);
        const work = workOf((args) => {
          const result = attempt(() => spendFrom({ left: steps }, () => run({ args })));
          if (typeof result === 'boolean') told += 1;
        });
        // What compares two lists reads both; what has failed still goes to the end of its loops.
        expect(work).toBeLessThanOrEqual(3 * steps + 4 * LARGE.length);
      }),
      { numRuns: 2_000 },
    );
    expect(told).toBeGreaterThan(500);
  });

  test('is taken in whatever depth there is room for', () => {
    for (const source of [`${'!'.repeat(200)}args.b`, `args.b${' && args.b'.repeat(80)}`]) {
      expect(compileCondition(source)({ name: 'x', args: { b: true } })).toBe(true);
    }
    const sum = `args.n${' + 1'.repeat(100)} == 101`;
    expect(compileCondition(sum)({ name: 'x', args: { n: 1 } })).toBe(true);
  });

  test('keeps nothing of what it was asked about', () => {
    const condition = compileCondition('args.l.exists(x, x < 1)');
    const ask = () => {
      const [l] = fc.sample(fc.array(towers, { minLength: 50, maxLength: 50 }), 1);
      expect(condition({ name: 'x', args: { l: l! } })).toBeUndefined();
    };
    ask();
    const before = countObjects();
    for (let times = 0; times < 10; times += 1) ask();
    expect(countObjects() - before).toBeLessThan(10_000);
  });
});

/** Boxes in boxes, of which hardly two are alike. */
const towers = fc
  .array(fc.boolean(), { minLength: 50, maxLength: 50 })
  .map((kinds) => kinds.reduce<Json>((inner, isList) => (isList ? [inner] : { inner }), 1));

function countObjects(): number {
  Bun.gc(true);
  return heapStats().objectCount;
}

function attempt(work: () => unknown): unknown {
  try {
    return work();
  } catch (error) {
    return error;
  }
}

const LARGE = Array.from({ length: 300 }, (_, at) => [at, [at]]);

/** Expressions of lists, grown by whatever lets them grow. */
function lists(depth: number, bound: readonly string[]): fc.Arbitrary<string> {
  const given = fc.constantFrom('args.l', 'args.m', ...bound);
  if (depth === 0) return given;
  const [list, name] = [lists(depth - 1, bound), `v${depth}`];
  const body = values(depth - 1, [...bound, name]);
  return fc.oneof(
    given,
    fc.tuple(list, list).map(([left, right]) => `(${left} + ${right})`),
    fc.tuple(list, body).map(([l, made]) => `${l}.map(${name}, ${made})`),
    fc.tuple(list, body).map(([l, made]) => `${l}.map(${name}, [${made}, ${name}, ${name}])`),
    fc.tuple(list, list).map(([l, other]) => `[${l}, ${other}].map(${name}, ${name} + ${name})`),
    fc
      .tuple(list, claims(depth - 1, [...bound, name]))
      .map(([l, test]) => `${l}.filter(${name}, ${test})`),
  );
}

function texts(depth: number): fc.Arbitrary<string> {
  const given = fc.constantFrom('args.s', 'args.t', '"ab"');
  if (depth === 0) return given;
  const text = texts(depth - 1);
  return fc.oneof(
    given,
    fc.tuple(text, text).map(([left, right]) => `(${left} + ${right})`),
    fc
      .tuple(text, fc.constantFrom('lowerAscii()', 'upperAscii()', 'trim()', 'substring(1)'))
      .map(([t, call]) => `${t}.${call}`),
    text.map((t) => `[${t}].map(t, t + t).map(t, t + t)[0]`),
  );
}

function values(depth: number, bound: readonly string[]): fc.Arbitrary<string> {
  return fc.oneof(lists(depth, bound), texts(depth), fc.constantFrom('args', '{"a": args.l}'));
}

/** Expressions that are true or false, or fail. */
function claims(depth: number, bound: readonly string[]): fc.Arbitrary<string> {
  const given = fc.constantFrom(
    'true',
    'false',
    'args.none',
    ...bound.map((name) => `${name} > 1`),
  );
  if (depth === 0) return given;
  const [list, text, value] = [lists(depth - 1, bound), texts(depth), values(depth - 1, bound)];
  const [test, name] = [claims(depth - 1, bound), `w${depth}`];
  return fc.oneof(
    fc
      .tuple(value, fc.constantFrom('==', '!='), value)
      .map(([left, operator, right]) => `${left} ${operator} ${right}`),
    fc.tuple(value, list).map(([member, l]) => `${member} in ${l}`),
    fc.tuple(text, text).map(([t, part]) => `${t}.contains(${part})`),
    fc.tuple(text, text).map(([t, part]) => `${t}.lastIndexOf(${part}) > size(${part})`),
    fc.tuple(text, text).map(([left, right]) => `${left} < ${right}`),
    fc
      .tuple(test, fc.constantFrom('&&', '||'), test)
      .map(([left, operator, right]) => `(${left} ${operator} ${right})`),
    fc
      .tuple(
        list,
        fc.constantFrom('all', 'exists', 'exists_one'),
        claims(depth - 1, [...bound, name]),
      )
      .map(([l, loop, body]) => `${l}.${loop}(${name}, ${body})`),
  );
}

/**
 * How much of large arguments is looked at: members read, and characters that a text's methods go
 * through, 64 of which are as one member.
 */
function workOf(done: (args: unknown) => void): number {
  let work = 0;
  const watched = (value: unknown): unknown =>
    Array.isArray(value)
      ? new Proxy(value.map(watched), {
          get(members, key) {
            if (typeof key === 'string' && /^\d/.test(key)) work += 1;
            return Reflect.get(members, key);
          },
        })
      : value;
  const spies = TEXT_METHODS.map((name) => {
    const method = String.prototype[name] as (...operands: unknown[]) => unknown;
    return spyOn(String.prototype, name).mockImplementation(function (
      this: string,
      ...operands: unknown[]
    ) {
      const [part] = operands;
      const times = typeof part === 'string' && isSearch(name) ? Math.max(part.length, 1) : 1;
      work += (this.length * times) / 64;
      return method.apply(this, operands) as never;
    });
  });
  try {
    const [l, m] = [watched(LARGE), watched(LARGE.slice(0, 7))];
    done(new Map(Object.entries({ l, m, s: 'ab'.repeat(3_000), t: 'b'.repeat(2_000) })));
  } finally {
    for (const spy of spies) spy.mockRestore();
  }
  return work;
}

const TEXT_METHODS = [
  ...(['includes', 'indexOf', 'lastIndexOf', 'toLowerCase', 'toUpperCase', 'trim'] as const),
] as const;

const isSearch = (name: string) => ['includes', 'indexOf', 'lastIndexOf'].includes(name);

describe('a model', () => {
  const effectOf = (models: PolicyDocument['models'], model: string) =>
    decideModel(policySchema.parse({ models }), model).effect;

  const VARIANTS = [
    'openai/gpt-5-pro',
    'OpenAI/GPT-5-Pro',
    'openai/gpt-5-pro ',
    'openai/gpt-5-pro\t',
    ' openai/gpt-5-\npro',
    'openai/gpt-5-pro\u200b',
    'openai/gpt-5-p\u00adro',
    'openai/gpt-5-ｐｒｏ',
    'openai/gpt-5－pro',
    '\ufeffopenai／gpt-5-pro\0',
  ];
  test.each(VARIANTS)(
    'is denied in whatever form its host may take it for another: %j',
    (model) => {
      for (const glob of ['*-pro', 'openai/gpt-5-pro', '*-PRO', '*－pro', 'openai/*-pro ']) {
        expect(effectOf({ deny: [glob] }, model)).toBe('deny');
      }
      expect(effectOf({ deny: ['*-mini', 'openai/gpt-5'] }, model)).toBe('allow');
    },
  );

  test('is allowed only as it is written', () => {
    expect(effectOf({ allow: ['openai/*-pro'] }, 'openai/gpt-5-pro')).toBe('allow');
    for (const model of VARIANTS.slice(1)) {
      expect(effectOf({ allow: ['openai/gpt-5-pro'] }, model)).toBe('deny');
    }
  });
});

describe('a hosted tool', () => {
  const judge = (
    hostedTools: PolicyDocument['hostedTools'],
    tool: Parameters<typeof decideHosted>[1],
  ) => decideHosted(policySchema.parse({ hostedTools }), tool)?.rule;

  test('goes by its type with and without version', () => {
    for (const type of ['web_search', 'web_search_20250305', 'web_search_preview_2025_03_11']) {
      expect(judge({ allow: ['web_search'] }, { type })).toBeUndefined();
      expect(judge({ allow: ['file_*'] }, { type })).toBe('hostedTools.allow');
      expect(judge({ deny: ['Web_Search'] }, { type })).toBe('hostedTools.deny[0]');
    }
    expect(judge({ allow: ['web_search_20250305'] }, { type: 'web_search_20260101' })).toBe(
      'hostedTools.allow',
    );
  });

  test('is denied in whatever form a provider may take it for another', () => {
    for (const type of [
      'WEB_search',
      'web_search ',
      'web\u200b_search',
      'ｗeb_search',
      'web_search\t',
    ]) {
      expect(judge({ deny: ['web_search'] }, { type })).toBe('hostedTools.deny[0]');
    }
  });

  test('of an MCP server goes by its label or its place', () => {
    const server = { type: 'mcp', label: 'crm', place: 'https://MCP.example.com/sse' };
    for (const glob of ['mcp', 'mcp/*', 'mcp/crm', 'mcp/https://mcp.example.com/*']) {
      expect(judge({ allow: [glob] }, server)).toBeUndefined();
      expect(judge({ allow: ['*'], deny: [glob] }, server)).toBe('hostedTools.deny[0]');
    }
    expect(
      judge(
        { allow: ['mcp/https://mcp.example.com/*'] },
        { ...server, place: 'https://mcp.example.com.evil/' },
      ),
    ).toBe('hostedTools.allow');
  });

  test('of an MCP server is not allowed by a host that only some readers find in its URL', () => {
    const glob = 'mcp/https://crm.example.com/*';
    for (const place of [
      'https://crm.example.com\\@evil.example.com/..',
      'https://crm.example.com\t/',
      'https://crm.example\u3002com/',
    ]) {
      const server = { type: 'mcp', label: 'crm', place };
      expect(judge({ allow: [glob] }, server)).toBe('hostedTools.allow');
      expect(judge({ allow: ['*'], deny: [glob] }, server)).toBe('hostedTools.deny[0]');
    }
  });
});

const POLICY = {
  tools: {
    allow: ['safe_*', 'shell'],
    deny: [{ tool: 'safe_rm', when: 'args.path != "/tmp"' }, 'safe_drop'],
  },
  hostedTools: { allow: ['web_search', 'mcp/crm'] },
} satisfies PolicyDocument;

const chat = {
  path: 'chat/completions',
  limit: { max_tokens: 5 },
  ask: { messages: [{ role: 'user', content: 'x' }] },
};
const responses = {
  path: 'responses',
  limit: { max_output_tokens: 16, max_tool_calls: 1 },
  ask: { input: 'x' },
};
const messages = { ...chat, path: 'messages' };

/** Requests of each dialect, the member at fault, and the rule: no member where it is let through. */
const DECLARED: readonly (readonly [typeof chat | typeof responses, object, string?, string?])[] = [
  ...['safe_get', 'safe_rm', 'other', 'SAFE_DROP'].flatMap((name) => {
    const fault =
      name === 'other' ? 'tools.allow' : name === 'SAFE_DROP' ? 'tools.deny[1]' : undefined;
    const at = (field: string) => (fault === undefined ? [] : [field, fault]) as [string?, string?];
    const parameters = { type: 'object' };
    const fine = { type: 'function', name: 'safe_get', parameters };
    const input_schema = parameters;
    return [
      [chat, { tools: [{ type: 'function', function: { name, parameters } }] }, ...at('tools[0]')],
      [chat, { tools: [{ type: 'custom', custom: { name } }] }, ...at('tools[0]')],
      [chat, { functions: [{ name: 'safe_get' }, { name }] }, ...at('functions[1]')],
      [chat, { tool_choice: { type: 'function', function: { name } } }, ...at('tool_choice')],
      [responses, { tools: [fine, { type: 'function', name, parameters }] }, ...at('tools[1]')],
      [responses, { tools: [{ type: 'custom', name }] }, ...at('tools[0]')],
      [
        responses,
        { tools: [{ type: 'namespace', name: 'n', tools: [fine, { ...fine, name }] }] },
        ...at('tools[0].tools[1]'),
      ],
      [
        responses,
        {
          tools: [fine],
          tool_choice: { type: 'allowed_tools', tools: [{ type: 'function', name }] },
        },
        ...at('tool_choice'),
      ],
      [messages, { tools: [{ name, input_schema }] }, ...at('tools[0]')],
      [messages, { tools: [{ type: 'custom', name, input_schema }] }, ...at('tools[0]')],
      [
        messages,
        { tools: [{ name: 'safe_get', input_schema }], tool_choice: { type: 'tool', name } },
        ...at('tool_choice'),
      ],
    ] as [typeof chat, object, string?, string?][];
  }),
  [responses, { tools: [{ type: 'shell', environment: { type: 'local' } }] }],
  [responses, { tools: [{ type: 'local_shell' }] }, 'tools[0]', 'tools.allow'],
  [responses, { tools: [{ type: 'apply_patch' }] }, 'tools[0]', 'tools.allow'],
  [
    responses,
    { tools: [{ type: 'file_search', vector_store_ids: ['v'] }] },
    'tools[0]',
    'hostedTools.allow',
  ],
  [
    responses,
    { tools: [{ type: 'code_interpreter', container: { type: 'auto' } }] },
    'tools[0]',
    'hostedTools.allow',
  ],
  [
    responses,
    { tools: [{ type: 'mcp', server_label: 'crm', server_url: 'https://crm.example.com' }] },
  ],
  [
    responses,
    { tools: [{ type: 'mcp', server_label: 'evil', connector_id: 'connector_gmail' }] },
    'tools[0]',
    'hostedTools.allow',
  ],
  [responses, { prompt: { id: 'pmpt_1' } }, 'prompt', 'tools'],
  [
    responses,
    { input: [{ type: 'tool_search_output', tools: [{ type: 'function', name: 'other' }] }] },
    'input[0].tools[0]',
    'tools.allow',
  ],
  [messages, { tools: [{ type: 'bash_20250124', name: 'bash' }] }, 'tools[0]', 'tools.allow'],
  [messages, { tools: [{ type: 'text_editor_20250728', name: 'safe_edit' }] }],
  [
    messages,
    { tools: [{ type: 'web_fetch_20250910', name: 'web_fetch', max_uses: 1 }] },
    'tools[0]',
    'hostedTools.allow',
  ],
  [
    messages,
    { mcp_servers: [{ type: 'url', name: 'evil', url: 'https://evil.example.com' }] },
    'mcp_servers[0]',
    'hostedTools.allow',
  ],
];

interface Told {
  readonly error?: { readonly message: string; readonly rungate: Record<string, unknown> };
}

describe('on the wire', () => {
  let upstream: Upstream;
  let rungate: Deployment;
  beforeAll(async () => {
    upstream = await startUpstream();
    rungate = await deploy({ upstreamUrl: upstream.url, policy: POLICY });
  });
  afterAll(async () => {
    await rungate.stop();
    await upstream.stop();
  });

  const call = (path: string, body: object, headers: object) =>
    fetch(`${rungate.url}/v1/${path}`, {
      method: 'POST',
      headers: { authorization: `Bearer ${rungate.token}`, ...headers },
      body: JSON.stringify({ model: 'test-model', ...body }),
    });

  test('every declared tool is decided, in every dialect, before anything is sent', async () => {
    for (const [at, [{ path, limit, ask }, body, field, rule]] of DECLARED.entries()) {
      const before = upstream.requests.length;
      const run = `declared-${at}`;
      const response = await call(path, { ...limit, ...ask, ...body }, { 'x-rungate-run-id': run });
      const told = (await response.json()) as Told;
      const what = `${path} ${JSON.stringify(body)}: ${told.error?.message}`;
      if (field === undefined) {
        // An upstream that doesn't know the tool may say so: what counts is that it was asked.
        expect({ what, sent: upstream.requests.length - before }).toEqual({ what, sent: 1 });
        continue;
      }
      expect({ what, status: response.status }).toEqual({ what, status: 403 });
      expect(told.error?.rungate).toMatchObject({
        code: 'permission_denied',
        field,
        rule,
        policy: 'test/v1',
      });
      expect(upstream.requests.length).toBe(before);
      const [step] = await readTrail(rungate, run);
      expect(step).toMatchObject({ kind: 'denial', detail: { rule, field } });
    }
  });

  test('drift is told once per kind and day', async () => {
    const database = await rungate.database();
    const rows = await database.read(`select data from events where type = 'policy.drift'`, []);
    await database.close();
    const kinds = rows.map(({ data }) => (JSON.parse(String(data)) as { kind: string }).kind);
    expect(kinds.sort()).toEqual(['hosted_tool', 'tool']);
  });
});

describe('x-rungate-policy', () => {
  let upstream: Upstream;
  let rungate: Deployment;
  const apply = async (manifest: object) => {
    const path = join(rungate.folder, 'next.json');
    await Bun.write(path, JSON.stringify(manifest));
    const { code, stdout, stderr } = await rungate.cli('apply', path, '--org', 'acme', '--json');
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    return JSON.parse(stdout) as { tokens: { token: string }[]; changes: object[] };
  };
  beforeAll(async () => {
    upstream = await startUpstream();
    rungate = await deploy({ upstreamUrl: upstream.url });
    for (const maxSteps of [1, 2, 3]) {
      const policies = ['strict', 'other'].map((name) => ({
        name,
        document: { run: { maxSteps: 100 * maxSteps } },
      }));
      await apply({ policies });
    }
  });
  afterAll(async () => {
    await rungate.stop();
    await upstream.stop();
  });

  async function ask(token: string, run: string, policy?: string): Promise<string> {
    const response = await fetch(`${rungate.url}/v1/chat/completions`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${token}`,
        'x-rungate-run-id': run,
        ...(policy === undefined ? {} : { 'x-rungate-policy': policy }),
      },
      body: JSON.stringify({ model: 'test-model', max_tokens: 5, ...chat.ask }),
    });
    const told = (await response.json()) as Told;
    if (!response.ok) return `${response.status} ${told.error?.rungate.rule}`;
    const url = `${rungate.url}/v1/runs/${run}`;
    const shown = await fetch(url, { headers: { authorization: `Bearer ${token}` } });
    return ((await shown.json()) as { policy: string }).policy;
  }

  test('chooses what the agent was allowed, and nothing else', async () => {
    const agent = {
      name: 'chooser',
      policy: 'strict',
      policyVersion: 2,
      policies: ['other', 'other/v1'],
    };
    const made = await apply({ agents: [agent] });
    const token = made.tokens[0]?.token ?? '';
    expect((await apply({ agents: [agent] })).changes).toEqual([]);
    const asked = [
      undefined,
      'strict',
      'strict/v2',
      'strict/v3',
      'strict/v1',
      'other',
      'other/v1',
      'other/v2',
      'other/v3',
      'test',
      'nothing',
      '',
      'strict/v02',
    ];
    const told = await Promise.all(asked.map((policy, at) => ask(token, `choice-${at}`, policy)));
    const refused = '403 agent.policies';
    expect(told).toEqual([
      'strict/v2',
      'strict/v2',
      'strict/v2',
      refused,
      refused,
      'other/v3',
      'other/v1',
      refused,
      'other/v3',
      refused,
      refused,
      refused,
      refused,
    ]);
  });

  test('is kept by a run: another choice is refused, and a new version changes nothing', async () => {
    const { tokens } = await apply({
      agents: [{ name: 'keeper', policy: 'strict', policies: ['other'] }],
    });
    const token = tokens[0]?.token ?? '';
    expect(await ask(token, 'kept')).toBe('strict/v3');
    await apply({ policies: [{ name: 'strict', document: { run: { maxSteps: 400 } } }] });
    expect(await ask(token, 'kept')).toBe('strict/v3');
    expect(await ask(token, 'kept', 'strict')).toBe('strict/v3');
    expect(await ask(token, 'kept', 'strict/v4')).toBe('403 run.policy');
    expect(await ask(token, 'kept', 'other')).toBe('403 run.policy');
    expect(await ask(token, 'fresh')).toBe('strict/v4');
  });

  test('and pins name versions that are there', async () => {
    const path = join(rungate.folder, 'bad.json');
    const agents = [
      { name: 'a', policy: 'strict', policyVersion: 99, policies: ['nothing', 'other/v99'] },
    ];
    await Bun.write(path, JSON.stringify({ agents }));
    const { code, stderr } = await rungate.cli('apply', path, '--org', 'acme');
    expect(code).toBe(2);
    expect(stderr).toContain('agents[0].policyVersion: the policy "strict" has no version 99');
    expect(stderr).toContain('agents[0].policies[0]: neither the file nor the org');
    expect(stderr).toContain('agents[0].policies[1]: the policy "other" has no version 99');
  });
});
