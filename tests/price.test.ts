/** Prices: exact integers, exact ids, and a worst case that no usage within the bound exceeds. */

import { describe, expect, test } from 'bun:test';
import { readFileSync } from 'node:fs';
import { calcPrice, findProvider } from '@pydantic/genai-prices';
import fc from 'fast-check';
import { MAX_NANOS, nanos } from '../schema/money.ts';
import { type Bound, NO_COST } from '../schema/rules/bound.ts';
import { CATALOGUE, findRates, overrideRates, type Rates } from '../schema/rules/catalogue.ts';
import { costOf, fitOutput, pricesSearches, worstCaseOf } from '../schema/rules/price.ts';
import { addUsage, NO_USAGE, readCount, type Usage } from '../schema/usage.ts';

const NOW = Date.UTC(2026, 10, 23, 12);

function rates(provider: string, model: string, atMillis = NOW): Rates {
  const found = findRates(provider, model, atMillis);
  if (!found) throw new Error(`no price for ${provider}/${model}`);
  return found;
}

const RATES: readonly Rates[] = [
  rates('demo', 'demo-small'),
  rates('openai', 'gpt-4o-mini'),
  rates('openai', 'gpt-5.4'),
  rates('openai', 'gpt-6-astra'),
  rates('openai', 'gpt-audio'),
  rates('anthropic', 'claude-sonnet-4-5'),
  rates('anthropic', 'claude-opus-5'),
  overrideRates({ inputNanosPerMillion: 1, outputNanosPerMillion: 3 }),
];

/** Whose larger inputs are the cheaper ones, so that a whole bound may cost less than a part of it. */
const FALLING: Rates = {
  ...rates('openai', 'gpt-4o-mini'),
  input: {
    base: 150_000_000,
    tiers: [
      { aboveTokens: 1_000, nanosPerMillion: 3_000_000_000 },
      { aboveTokens: 100_000, nanosPerMillion: 1_000_000 },
    ],
  },
};

const TIERS = [undefined, 'default', 'flex', 'priority', 'ultrafast', 'fast_mode+regional', 'new'];

const tokens = fc.oneof(fc.nat(2_000), fc.nat(1_000_000), fc.nat(2 ** 31 - 1));

/** Usages whose parts are within their wholes. */
const usages: fc.Arbitrary<Usage> = fc
  .tuple(tokens, tokens, fc.array(fc.nat(100), { minLength: 5, maxLength: 5 }), fc.nat(9))
  .map(([input, output, shares, webSearches]) => {
    const part = (whole: number, share = 0) => Math.floor((whole * share) / 300);
    return {
      ...NO_USAGE,
      inputTokens: input,
      cacheReadTokens: part(input, shares[0]),
      cacheWriteTokens: part(input, shares[1]),
      cacheWrite1hTokens: part(input, shares[2]),
      outputTokens: output,
      reasoningTokens: part(output, shares[3]),
      outputAudioTokens: part(output, shares[4]),
      webSearches,
    };
  });

describe('the catalogue', () => {
  test('is named with the version that is installed', () => {
    const installed = new URL(
      '../node_modules/@pydantic/genai-prices/package.json',
      import.meta.url,
    );
    const { version } = JSON.parse(readFileSync(installed, 'utf8')) as { version: string };
    expect(CATALOGUE).toBe(`genai-prices@${version}`);
    expect(rates('openai', 'gpt-4o').catalogue).toBe(CATALOGUE);
  });

  test('prices a known model in whole nanos per million tokens', () => {
    const found = rates('openai', 'gpt-4o-mini');
    expect([found.input.base, found.cacheRead.base, found.output.base]).toEqual([
      150_000_000, 75_000_000, 600_000_000,
    ]);
    expect(rates('deepseek', 'deepseek-v4-pro', Date.UTC(2026, 5, 1)).cacheRead.base).toBe(
      3_625_000,
    );
  });

  test('finds every id that an `equals` clause names, and that id followed by a date', () => {
    for (const id of ['gpt-4o-2024-08-06', 'gpt-4.1', 'gpt-4.1-2099-01-31', 'gpt-4.1-20990131']) {
      expect(findRates('openai', id, NOW)).toBeDefined();
    }
    expect(rates('anthropic', 'claude-opus-4-5-20251101').model).toBe('claude-opus-4-5');
    expect(rates('openai', 'gpt-4o-2024-05-13').input.base).toBe(5_000_000_000);
  });

  test('never guesses: prefixes, suffixes, case and other providers find no price', () => {
    const guesses = [
      'gpt-4o-turbo',
      'gpt-4.1-2',
      'GPT-4o',
      ' gpt-4o',
      'gpt-4o ',
      'gpt-4o-2024',
      '',
    ];
    for (const id of guesses) expect(findRates('openai', id, NOW)).toBeUndefined();
    expect(findRates('anthropic', 'claude-sonnet-5-nova', NOW)).toBeUndefined();
    expect(findRates('my-openai-host', 'gpt-4o', NOW)).toBeUndefined();
    expect(findRates('anthropic', 'gpt-4o', NOW)).toBeUndefined();
    const known = new Set(
      findProvider({ providerId: 'openai' })!.models.flatMap(({ id, match }) => [
        id,
        ...[...JSON.stringify(match).matchAll(/"equals":"([^"]*)"/g)].map(([, name]) => name!),
      ]),
    );
    fc.assert(
      fc.property(fc.constantFrom(...known), fc.stringMatching(/^[a-z0-9.-]{1,8}$/), (id, more) => {
        const name = id + more;
        if (known.has(name) || known.has(name.replace(/-20\d\d(-\d\d-\d\d|\d{4})$/, ''))) return;
        expect(findRates('openai', name, NOW)).toBeUndefined();
      }),
    );
  });

  test('does not price what it cannot meter: audio by the hour, pages, searches by the call', () => {
    for (const id of ['whisper-1', 'gpt-4o-audio-preview', 'gpt-4o-search-preview', 'moderation']) {
      expect(findRates('openai', id, NOW)).toBeUndefined();
    }
    expect(findRates('mistral', 'mistral-ocr-latest', NOW)).toBeUndefined();
    expect(findRates('perplexity', 'sonar', NOW)).toBeUndefined();
  });

  test('takes the price that was in force at the time', () => {
    expect(rates('openai', 'o3', Date.UTC(2025, 5, 9, 23, 59)).input.base).toBe(10_000_000_000);
    expect(rates('openai', 'o3', Date.UTC(2025, 5, 10)).input.base).toBe(2_000_000_000);
    const peak = (hour: number, minute: number) =>
      rates('deepseek', 'deepseek-chat', Date.UTC(2026, 1, 3, hour, minute)).input.base;
    expect([peak(0, 29), peak(0, 30), peak(16, 29), peak(16, 30)]).toEqual([
      135_000_000, 270_000_000, 270_000_000, 135_000_000,
    ]);
  });

  test("agrees with the catalogue's own arithmetic for every model that we price", () => {
    const timestamp = new Date(NOW);
    let priced = 0;
    for (const providerId of [
      'openai',
      'anthropic',
      'groq',
      'mistral',
      'deepseek',
      'x-ai',
      'google',
    ]) {
      for (const { id } of findProvider({ providerId })!.models) {
        const found = findRates(providerId, id, NOW);
        for (const [inputTokens, cacheReadTokens] of [
          [1_000, 400] as const,
          [300_000, 9] as const,
        ]) {
          const usage = { input_tokens: inputTokens, cache_read_tokens: cacheReadTokens };
          const theirs = calcPrice({ ...usage, output_tokens: 77 }, id, { providerId, timestamp });
          // An id by which the catalogue itself finds another entry is no id on the wire.
          if (!found || theirs?.model.id !== id || !theirs.model_price.output_mtok) continue;
          const ours = costOf(
            { ...NO_USAGE, inputTokens, cacheReadTokens, outputTokens: 77 },
            found,
          );
          expect(Math.abs(ours - theirs.total_price * 1e9)).toBeLessThan(1.001);
          priced += 1;
        }
      }
    }
    expect(priced).toBeGreaterThan(200);
  });

  test('has the two demo models at their fixed prices', () => {
    const [small, large] = [rates('demo', 'demo-small'), rates('demo', 'demo-large')];
    expect([small.input.base, small.output.base]).toEqual([1_000_000_000, 4_000_000_000]);
    expect([large.input.base, large.output.base]).toEqual([10_000_000_000, 40_000_000_000]);
  });
});

describe('a cost', () => {
  test('is exact to the nano and rounds up once', () => {
    const one = overrideRates({ inputNanosPerMillion: 1, outputNanosPerMillion: 1 });
    expect(costOf({ ...NO_USAGE, inputTokens: 1, outputTokens: 1 }, one)).toBe(nanos(1));
    expect(costOf({ ...NO_USAGE, inputTokens: 500_000, outputTokens: 500_001 }, one)).toBe(
      nanos(2),
    );
    const usage = { ...NO_USAGE, inputTokens: 1000, cacheReadTokens: 400, outputTokens: 50 };
    // 600 x $0.15 + 400 x $0.075 + 50 x $0.60 per million.
    expect(costOf(usage, rates('openai', 'gpt-4o-mini'))).toBe(nanos(150_000));
  });

  test('equals the same sum in big integers, whatever the size', () => {
    fc.assert(
      fc.property(tokens, tokens, fc.nat(2 ** 31 - 1), fc.nat(2 ** 31 - 1), (a, b, p, q) => {
        const flat = overrideRates({ inputNanosPerMillion: p, outputNanosPerMillion: q });
        const exact = BigInt(a) * BigInt(p) + BigInt(b) * BigInt(q);
        const dollars = (exact + 999_999n) / 1_000_000n;
        const expected = dollars > BigInt(MAX_NANOS) ? MAX_NANOS : Number(dollars);
        expect<number>(costOf({ ...NO_USAGE, inputTokens: a, outputTokens: b }, flat)).toBe(
          expected,
        );
      }),
    );
  });

  test('is charged at the dearer tier as a whole once the input is over the threshold', () => {
    const tiered = rates('anthropic', 'claude-sonnet-4-5');
    const cost = (inputTokens: number) =>
      Number(costOf({ ...NO_USAGE, inputTokens, outputTokens: 10 }, tiered));
    expect(cost(200_000)).toBe(200_000 * 3000 + 10 * 15_000);
    expect(cost(200_001)).toBe(200_001 * 6000 + 10 * 22_500);
  });

  test('charges cache writes of an hour, cache writes and web searches their own prices', () => {
    const opus = rates('anthropic', 'claude-opus-5');
    const usage = {
      ...NO_USAGE,
      inputTokens: 30,
      cacheReadTokens: 10,
      cacheWriteTokens: 10,
      cacheWrite1hTokens: 10,
      webSearches: 3,
    };
    expect<number>(costOf(usage, opus)).toBe(10 * 500 + 10 * 6250 + 10 * 10_000 + 3 * 10_000_000);
  });

  test('never falls when a count grows', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...RATES),
        usages,
        fc.constantFrom<keyof Usage>('inputTokens', 'outputTokens', 'webSearches'),
        (price, usage, key) => {
          const more = { ...usage, [key]: usage[key] + 1 };
          expect<number>(costOf(more, price)).toBeGreaterThanOrEqual(costOf(usage, price));
        },
      ),
    );
  });

  test('takes contradicting counts as no credit', () => {
    const price = rates('openai', 'gpt-4o-mini');
    const lied = { ...NO_USAGE, inputTokens: 100, cacheReadTokens: 1_000, outputTokens: 1 };
    expect<number>(costOf(lied, price)).toBe(1_000 * 75 + 600);
    expect(costOf({ ...lied, reasoningTokens: 50 }, price)).toBeGreaterThan(costOf(lied, price));
  });

  test('does not overflow: the most absurd usage costs the largest amount', () => {
    const most = Number.MAX_SAFE_INTEGER;
    const absurd = addUsage({ ...NO_USAGE, inputTokens: most, outputTokens: most }, NO_USAGE);
    for (const price of RATES.slice(0, -1))
      expect(costOf(absurd, price, 'new')).toBe(nanos(MAX_NANOS));
  });

  test('is never lower in a service tier that lists dearer, nor in one nobody knows', () => {
    const usage = { ...NO_USAGE, inputTokens: 1000, outputTokens: 1000 };
    const price = rates('openai', 'gpt-5.4');
    const standard = costOf(usage, price);
    expect(costOf(usage, price, 'flex')).toBe(standard);
    expect<number>(costOf(usage, price, 'priority')).toBe(2.5 * standard);
    expect<number>(costOf(usage, price, 'ultrafast')).toBe(6 * standard);
    expect<number>(costOf(usage, price, 'no-such-tier')).toBe(6 * standard);
    expect<number>(costOf(usage, price, 'standard+regional')).toBe(1.1 * standard);
  });
});

describe('a worst case', () => {
  const bounds = fc.record({
    inputTokens: tokens,
    outputTokens: tokens,
    choices: fc.integer({ min: 1, max: 8 }),
    webSearches: fc.nat(9),
    serviceTier: fc.constantFrom(...TIERS),
    audio: fc.boolean(),
  });
  const boundOf = (
    drawn: {
      serviceTier: string | undefined;
    } & Omit<Bound, 'serviceTier' | 'fileSearches' | 'images'>,
  ): Bound => {
    const { serviceTier, ...rest } = drawn;
    return { ...NO_COST, ...rest, ...(serviceTier === undefined ? {} : { serviceTier }) };
  };

  test('is never less than the cost of any usage within the bound', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...RATES),
        usages,
        fc.constantFrom(...TIERS),
        fc.record({ inputTokens: tokens, outputTokens: tokens }),
        (price, u, tier, unused) => {
          const { inputTokens, outputTokens } = addUsage(u, { ...NO_USAGE, ...unused });
          for (const most of [{}, { inputTokens, outputTokens }]) {
            const drawn = { ...NO_COST, ...u, ...most, choices: 1, serviceTier: tier };
            const worst = worstCaseOf(boundOf(drawn), price);
            expect<number>(worst).toBeGreaterThanOrEqual(costOf(u, price, tier));
          }
        },
      ),
      { numRuns: 500 },
    );
  });

  test('is that of the dearest size within the bound, where larger inputs are cheaper', () => {
    const bound = { ...NO_COST, inputTokens: 200_000 };
    const usage = { ...NO_USAGE, inputTokens: 100_000 };
    const worst = worstCaseOf(bound, FALLING);
    expect<number>(worst).toBeGreaterThanOrEqual(costOf(usage, FALLING));
  });

  test('assumes the dearest kind of input: the whole prompt written to the cache for an hour', () => {
    const bound = { ...NO_COST, inputTokens: 1000, outputTokens: 0 };
    expect<number>(worstCaseOf(bound, rates('anthropic', 'claude-opus-5'))).toBe(1000 * 10_000);
  });

  test('does not exist for a call without a bound', () => {
    expect(() => worstCaseOf({ ...NO_COST, unbounded: 'tools' }, RATES[0]!)).toThrow(RangeError);
  });

  test('fits an amount with the output that `fitOutput` allows, and one token more uses it up', () => {
    fc.assert(
      fc.property(fc.constantFrom(...RATES), bounds, fc.nat(2 ** 31 - 1), (price, drawn, left) => {
        const bound = boundOf(drawn);
        const fit = fitOutput(bound, price, nanos(left));
        const withOutput = (perChoice: number) =>
          worstCaseOf({ ...bound, outputTokens: perChoice * bound.choices }, price);
        const most = Math.floor(bound.outputTokens / bound.choices);
        if (fit < 0) expect(withOutput(0)).toBeGreaterThan(left);
        else {
          expect(withOutput(fit)).toBeLessThanOrEqual(left);
          expect(fit).toBeLessThanOrEqual(most);
          if (fit < most) expect(withOutput(fit + 1)).toBeGreaterThanOrEqual(left);
        }
      }),
    );
  });
});

test('a search without a price is known to be without one', () => {
  const demo = rates('demo', 'demo-small');
  expect(pricesSearches({ webSearches: 0, fileSearches: 0 }, demo)).toBe(true);
  expect(pricesSearches({ webSearches: 1, fileSearches: 0 }, demo)).toBe(false);
  expect(pricesSearches({ webSearches: 1, fileSearches: 1 }, rates('openai', 'gpt-5'))).toBe(true);
});

test('a count is a non-negative safe integer or nothing', () => {
  for (const bad of [-1, 0.5, Number.NaN, Infinity, 2 ** 53, '7', null, undefined, true, {}, 7n]) {
    expect(readCount(bad)).toBeUndefined();
  }
  for (const good of [0, 7, Number.MAX_SAFE_INTEGER]) expect(readCount(good)).toBe(good);
  expect(Object.is(readCount(-0), 0)).toBe(true);
});
