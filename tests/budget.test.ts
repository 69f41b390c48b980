/** The rules of the ceiling: room, the scope that binds, windows, and what output still fits. */

import { describe, expect, test } from 'bun:test';
import fc from 'fast-check';
import { findEndpoint } from '../functions/providers/endpoints.ts';
import { mostOutput } from '../functions/proxy/reserve.ts';
import { MAX_NANOS, type Nanos } from '../schema/money.ts';
import { policySchema } from '../schema/policy.ts';
import { type Bound, NO_COST } from '../schema/rules/bound.ts';
import { roomOf, type Scope, tightest, windowsOf } from '../schema/rules/budget.ts';
import { overrideRates } from '../schema/rules/catalogue.ts';
import { acceptedOutput, outputUnset } from '../schema/rules/output.ts';
import { fitOutput, worstCaseOf } from '../schema/rules/price.ts';

const amount = fc.integer({ min: 0, max: MAX_NANOS }).map((nanos) => nanos as Nanos);

const scope: fc.Arbitrary<Scope> = fc.record({
  name: fc.constantFrom('run', 'agent_per_day', 'agent_per_month', 'org_per_month'),
  ceilingNanos: amount,
  spentNanos: amount,
  heldNanos: amount,
});

describe('the room of a scope', () => {
  test('is what neither is spent nor held, and nothing where that is more than the ceiling', () => {
    fc.assert(
      fc.property(scope, (each) => {
        const taken = each.spentNanos + each.heldNanos;
        const room = roomOf(each);
        expect(room).toBe(Math.max(0, each.ceilingNanos - taken) as Nanos);
        expect(room + Math.min(taken, each.ceilingNanos)).toBe(each.ceilingNanos);
      }),
    );
  });

  test('shrinks with what is spent or held and never grows with it', () => {
    fc.assert(
      fc.property(scope, fc.nat(1_000_000), fc.boolean(), (each, more, isHeld) => {
        const key = isHeld ? 'heldNanos' : 'spentNanos';
        const fuller = { ...each, [key]: each[key] + more };
        expect(roomOf(fuller)).toBe(Math.max(0, roomOf(each) - more) as Nanos);
      }),
      { examples: [[{ ...free('run'), ceilingNanos: 5 as Nanos }, 5, true]] },
    );
  });
});

function free(name: Scope['name']): Scope {
  return { name, ceilingNanos: MAX_NANOS as Nanos, spentNanos: 0, heldNanos: 0 };
}

describe('the tightest scope', () => {
  test('is one of them, and none has less room', () => {
    fc.assert(
      fc.property(fc.array(scope, { minLength: 1, maxLength: 4 }), (scopes) => {
        const found = tightest(scopes);
        expect(scopes).toContain(found!);
        expect(roomOf(found!)).toBe(Math.min(...scopes.map(roomOf)) as Nanos);
      }),
    );
  });

  test('is the first of equals: the run before the windows', () => {
    expect(tightest([free('run'), free('agent_per_day')])?.name).toBe('run');
  });

  test('is none where no ceiling applies', () => expect(tightest([])).toBeUndefined());
});

const moment = fc.date({
  min: new Date('2000-01-01T00:00:00Z'),
  max: new Date('2099-12-31T23:59:59.999Z'),
  noInvalidDate: true,
});

describe('the windows of a moment', () => {
  test('hold it, and end where the next ones begin', () => {
    fc.assert(
      fc.property(moment, (date) => {
        const now = date.getTime();
        const windows = windowsOf(now);
        expect(date.toISOString()).toStartWith(windows.day);
        expect(windows.day).toStartWith(`${windows.month}-`);
        expect(windows.dayEnds).toBeGreaterThan(now);
        expect(windows.monthEnds).toBeGreaterThanOrEqual(windows.dayEnds);
        for (const end of [windows.dayEnds, windows.monthEnds]) {
          expect(new Date(end).toISOString()).toEndWith('T00:00:00.000Z');
        }
        expect(windowsOf(windows.dayEnds - 1)).toEqual(windows);
        expect(windowsOf(windows.dayEnds).day > windows.day).toBe(true);
        expect(windowsOf(windows.monthEnds - 1).month).toBe(windows.month);
        expect(new Date(windows.monthEnds).getUTCDate()).toBe(1);
      }),
    );
  });

  test.each([
    ['2028-02-28T23:59:59.999Z', '2028-02-28', '2028-02-29', '2028-03-01'],
    ['2028-02-29T00:00:00Z', '2028-02-29', '2028-03-01', '2028-03-01'],
    ['2026-12-31T23:59:59Z', '2026-12-31', '2027-01-01', '2027-01-01'],
    ['2026-12-31T23:59:59-08:00', '2027-01-01', '2027-01-02', '2027-02-01'],
  ])('of %s are the day %s until %s and the month until %s', (at, day, dayEnds, monthEnds) => {
    const month = day.slice(0, 7);
    const windows = windowsOf(Date.parse(at));
    expect(windows).toEqual({
      ...{ day, month },
      dayEnds: Date.parse(dayEnds),
      monthEnds: Date.parse(monthEnds),
    });
  });
});

const bound: fc.Arbitrary<Bound> = fc
  .record({
    inputTokens: fc.nat(1_000_000),
    perChoice: fc.nat(100_000),
    choices: fc.integer({ min: 1, max: 16 }),
    serviceTier: fc.constantFrom('default', 'priority', 'nobody-knows'),
  })
  .map(({ perChoice, ...rest }) => ({
    ...NO_COST,
    ...rest,
    outputTokens: perChoice * rest.choices,
  }));

const rates = fc
  .record({
    inputNanosPerMillion: fc.nat(100_000_000_000),
    outputNanosPerMillion: fc.nat(100_000_000_000),
  })
  .map((prices) => overrideRates({ model: 'm', ...prices }));

describe('the output that fits an amount', () => {
  test('costs no more than the amount, and one token more would use it up', () => {
    fc.assert(
      fc.property(bound, rates, fc.nat(2_000_000_000), (call, prices, room) => {
        const fits = fitOutput(call, prices, room as Nanos);
        const most = call.outputTokens / call.choices;
        const costOf = (tokens: number) =>
          worstCaseOf({ ...call, outputTokens: tokens * call.choices }, prices);
        if (fits < 0) return expect(costOf(0)).toBeGreaterThan(room);
        expect(costOf(fits)).toBeLessThanOrEqual(room);
        expect(fits).toBeLessThanOrEqual(most);
        if (fits < most) expect(costOf(fits + 1)).toBeGreaterThanOrEqual(room);
      }),
      { numRuns: 1_000 },
    );
  });
});

describe('the output limit of a caller who set none', () => {
  test('is what the model accepts, whoever serves it and however it was tuned', () => {
    for (const [model, tokens] of Object.entries({
      'gpt-4o-2024-11-20': 16_384,
      'gpt-4o-2024-05-13': 4_096,
      'openai/gpt-4o-mini': 16_384,
      'ft:gpt-4.1-2025-04-14:acme::1': 32_768,
      'gpt-5.1-chat-latest': 16_384,
      'gpt-5.2-codex': 128_000,
      'gpt-4-1106-preview': 4_096,
      'o1-2024-12-17': 100_000,
      'o4-mini': 100_000,
      'claude-3-5-haiku-latest': 8_192,
      'claude-opus-4-20250514': 32_000,
      'claude-opus-4-5': 64_000,
      'claude-sonnet-5': 64_000,
    })) {
      expect([model, acceptedOutput(model)]).toEqual([model, tokens]);
    }
    for (const model of ['gpt-4', 'my-gpt-4o', 'llama-3.3-70b', 'o30', '']) {
      expect([model, acceptedOutput(model)]).toEqual([model, undefined]);
    }
  });

  test('leaves half of the window to the input, and is at least a token', () => {
    const model = fc.constantFrom('gpt-4o', 'o3', 'anything');
    fc.assert(
      fc.property(model, fc.nat(2_000_000), fc.nat(1_000_000), (name, window, least) => {
        const limit = outputUnset(name, window, least);
        const most = acceptedOutput(name) ?? Math.max(4_096, least);
        expect(limit).toBe(Math.max(1, Math.min(most, Math.floor(window / 2))));
        expect(outputUnset(name, undefined, least)).toBe(most);
      }),
    );
  });
});

test('a completion that sets no limit is lowered to no more than it gets at OpenAI', () => {
  const { endpoint } = findEndpoint('POST', '/v1/completions', 'openai')!;
  const version = { policy: policySchema.parse({ budget: { minOutputTokens: 1_000 } }) };
  const call = { endpoint, model: 'gpt-3.5-turbo-instruct', rates: null, version };
  for (const outputTokens of [4, 16, 4_000]) {
    const unset = { ...NO_COST, outputTokens, isOutputUnset: true as const };
    expect(mostOutput(call as never, unset)).toBe(Math.min(outputTokens, 16));
    expect(mostOutput(call as never, { ...NO_COST, outputTokens })).toBe(outputTokens);
  }
});
