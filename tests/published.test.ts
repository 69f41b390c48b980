/** Published prices: read strictly, and taken over so that no list makes calls much cheaper. */

import { describe, expect, test } from 'bun:test';
import { findProvider } from '@pydantic/genai-prices';
import fc from 'fast-check';
import { PROVIDERS } from '../schema/providers.ts';
import {
  type Catalogue,
  findRates,
  type Listing,
  makeCatalogue,
  PINNED,
  type Rates,
  type TokenPrice,
} from '../schema/rules/catalogue.ts';
import { priceAt } from '../schema/rules/price.ts';
import {
  InvalidPrices,
  MAX_PUBLISHED_BYTES,
  readListings,
  readPublished,
} from '../schema/rules/published.ts';
import { takeOver } from '../schema/rules/refresh.ts';

const NOW = Date.UTC(2026, 10, 23, 12, 34, 56);
const DAY_MS = 86_400_000;
const PRICED = PROVIDERS.flatMap(({ catalogue }) =>
  catalogue && catalogue !== 'demo' ? [catalogue] : [],
);

const utf8 = (text: string) => new TextEncoder().encode(text);
const encode = (value: unknown) => utf8(JSON.stringify(value));

/** A document with one model of OpenAI's. */
const one = (model: object) => [
  { id: 'openai', models: [{ id: 'm', match: { equals: 'm' }, ...model }] },
];

function inForce(listings: readonly Listing[], version = 'v1'): Catalogue {
  return makeCatalogue({ version, source: 'made', fetchedAt: NOW }, listings);
}

/** What the package holds, as its repository publishes it. */
function original(): object[] {
  return PRICED.map((providerId) => {
    const { id, name, api_pattern, models } = findProvider({ providerId })!;
    return { id, name, api_pattern, models: models.map(unnamed) };
  });
}

/** The published format names no types of constraints. */
function unnamed({ prices, ...model }: { prices: unknown }): object {
  if (!Array.isArray(prices)) return { ...model, prices };
  const offers = prices as { constraint?: Record<string, unknown> }[];
  return {
    ...model,
    prices: offers.map(({ constraint, ...offer }) => {
      const { type: _, ...limit } = constraint ?? {};
      return constraint ? { constraint: limit, ...offer } : offer;
    }),
  };
}

const unlabelled = (rates: Rates | undefined) => rates && { ...rates, catalogue: '' };

describe('a published list', () => {
  test('charges as the package does from which it is made, under its own version', () => {
    const listings = readPublished(encode(original()));
    const catalogue = inForce(readListings(JSON.stringify(listings)));
    let priced = 0;
    for (const { provider, ids } of listings) {
      for (const id of ids) {
        for (const atMillis of [NOW, Date.UTC(2025, 1, 3, 2), Date.UTC(2027, 5, 1, 17)]) {
          const rates = findRates(provider, id, atMillis, catalogue);
          expect(unlabelled(rates)).toEqual(unlabelled(findRates(provider, id, atMillis)));
          if (rates) priced++;
          if (rates) expect(rates.catalogue).toBe('v1');
        }
      }
    }
    expect(priced).toBeGreaterThan(1_000);
    expect(takeOver(PINNED, listings, NOW, false)).toMatchObject({
      ...{ added: 0, changed: 0, kept: 0, heldBack: [] },
      listings,
    });
  });

  test('is the same in any order of its providers and models', () => {
    const models = ['a', 'b', 'c'].map((id) => ({
      ...{ id, match: { equals: id } },
      prices: { input_mtok: 1 },
    }));
    const orders = fc.tuple(
      fc.shuffledSubarray(models, { minLength: 3 }),
      fc.shuffledSubarray(['openai', 'groq'], { minLength: 2 }),
    );
    const expected = readPublished(encode(['groq', 'openai'].map((id) => ({ id, models }))));
    fc.assert(
      fc.property(orders, ([shuffled, ids]) => {
        const document = ids.map((id) => ({ id, models: shuffled }));
        expect(readPublished(encode(document))).toEqual(expected);
      }),
    );
  });

  test('prices in whole nanos, rounded up', () => {
    const prices = '{"input_mtok":1.2345678901e-3,"output_mtok":1e-12,"cache_read_mtok":-0}';
    const document = JSON.stringify(one({ prices: {} })).replace('{}', prices);
    const rates = findRates('openai', 'm', NOW, inForce(readPublished(utf8(document))));
    expect(rates).toMatchObject({
      ...{ input: { base: 1_234_568 }, output: { base: 1 }, cacheRead: { base: 0 } },
    });
  });

  const amounts = ['NaN', 'Infinity', '1e309', '-1', '-1e-9', '1000001', '"1"', 'true', '01', '{}'];
  const shapes: readonly (readonly [string, string])[] = [
    ...amounts.map((amount) => [`a price of ${amount}`, `{"input_mtok":${amount}}`] as const),
    ['a tier without a price', '{"input_mtok":{"base":1,"tiers":[{"start":1}]}}'],
    ['a tier of half a token', '{"input_mtok":{"base":1,"tiers":[{"start":0.5,"price":1}]}}'],
    ['nine tiers', tiers(9)],
    ['a kind of price that is written twice', '{"input_mtok":1,"input_mtok":0}'],
    [
      'a kind of price that is written twice, once escaped',
      '{"input_mtok":1,"input\\u005fmtok":0}',
    ],
    ['a kind of price that is named __proto__', '{"__proto__":{"input_mtok":0}}'],
    ['a kind of price that is named constructor()', '{"constructor()":1}'],
    ['forty-one kinds of prices', kinds(41)],
    ['no entry at all', '[]'],
    ['nine entries', JSON.stringify(Array(9).fill({ prices: {} }))],
    ['an entry from no day', entry('{"start_date":"2026-02-30"}')],
    [
      'an entry from a day and a time',
      entry('{"start_date":"2026-02-01","start_time":"00:00:00Z"}'),
    ],
    ['an entry from no time', entry('{"start_time":"24:00:00Z","end_time":"01:00:00Z"}')],
    ['an entry under a condition nobody knows', entry('{"region":"eu"}')],
    ['an entry under a condition of another type', entry('{"start_date":"2026-02-01","type":"x"}')],
    ['null', 'null'],
  ];

  function tiers(count: number): string {
    const tier = { start: 1, price: 1 };
    return JSON.stringify({ input_mtok: { base: 1, tiers: Array(count).fill(tier) } });
  }

  function kinds(count: number): string {
    const names = Array.from({ length: count }, (_, at) => [`kind_${at}`, 1]);
    return JSON.stringify(Object.fromEntries(names));
  }

  function entry(constraint: string): string {
    return `[{"constraint":${constraint},"prices":{"input_mtok":1}}]`;
  }

  test.each(shapes)('is refused for %s', (_, prices) => {
    const model = `{"id":"m","match":{"equals":"m"},"prices":${prices}}`;
    expect(() => readPublished(utf8(`[{"id":"openai","models":[${model}]}]`))).toThrow(
      InvalidPrices,
    );
    expect(({} as Record<string, unknown>).input_mtok).toBeUndefined();
  });

  const good = JSON.stringify(one({ prices: { input_mtok: 1, output_mtok: 2 } }));
  const documents: readonly (readonly [string, Uint8Array])[] = [
    ['nothing', utf8('')],
    ['a page', utf8('<!doctype html><p>Sign in')],
    ['an object', utf8(`{"providers":${good}}`)],
    ['two lists', utf8(`${good},"list":${good}`)],
    ['a list that is closed twice', utf8(`${good}}`)],
    ['a list and something else', utf8(`${good},"other":1`)],
    ['a byte order mark', new Uint8Array([0xef, 0xbb, 0xbf, ...utf8(good)])],
    ['bytes that are not text', new Uint8Array([...utf8(good.slice(0, -1)), 0xff, 0x5d])],
    ['no provider', utf8('[]')],
    ['providers that no call goes to', utf8(good.replace('openai', 'demo'))],
    ['a model without an id', utf8(good.replace('"id":"m",', ''))],
    ['an id with a control character', utf8(good.replaceAll('"m"', '"a\\u0000b"'))],
    ['an id of 257 characters', utf8(good.replaceAll('"m"', `"${'m'.repeat(257)}"`))],
    ['a rule without a meaning', utf8(good.replace('"equals"', '"sounds_like"'))],
    ['rules in rules without end', utf8(good.replace('{"equals":"m"}', nested(10_000)))],
    ['a window of no tokens', encode(one({ context_window: 0, prices: {} }))],
    ['more bytes than are read', utf8(good + ' '.repeat(MAX_PUBLISHED_BYTES))],
    ['more models than there are', encode([{ id: 'openai', models: many(5_001) }])],
    [
      'more ids than there are',
      encode(PRICED.slice(0, 5).map((id) => ({ id, models: many(5_000) }))),
    ],
  ];

  function nested(depth: number): string {
    return `${'{"or":['.repeat(depth)}${']}'.repeat(depth)}`;
  }

  function many(count: number): object[] {
    const numbers = Array.from({ length: count }, (_, at) => `m${at}`);
    return numbers.map((id) => ({ id, match: { equals: id }, prices: {} }));
  }

  test.each(documents)('is refused where it is %s', (_, bytes) => {
    expect(() => readPublished(bytes)).toThrow(InvalidPrices);
  });

  test('is refused wherever it is cut short', () => {
    const whole = utf8(good);
    expect(readPublished(whole)).toBeArrayOfSize(1);
    for (let length = 0; length < whole.length; length++) {
      expect(() => readPublished(whole.subarray(0, length))).toThrow(InvalidPrices);
    }
  });
});

/** Entries of a price list: one price, or several by day and by time of the day. */
const amount = fc.constantFrom(0, 0.1, 0.4, 0.5, 1, 2, 3, 10);
const tokenPrice = fc.oneof(
  amount,
  fc.record({
    base: amount,
    tiers: fc.array(fc.record({ start: fc.constantFrom(100, 200), price: amount }), {
      maxLength: 2,
    }),
  }),
);
const priceList = fc.record(
  { input_mtok: tokenPrice, output_mtok: tokenPrice, cache_read_mtok: amount },
  { requiredKeys: ['input_mtok'] },
);
const days = fc.integer({ min: -2, max: 3 }).map((day) => NOW - (NOW % DAY_MS) + day * DAY_MS);
const times = fc.constantFrom('00:00:00Z', '06:30:00Z', '12:34:56Z', '23:00:00+02:00');
const constraints = fc.oneof(
  days.map((day) => ({ start_date: new Date(day).toISOString().slice(0, 10) })),
  fc.record({ start_time: times, end_time: times }),
);
const entries = fc.oneof(
  priceList,
  fc
    .tuple(
      priceList,
      fc.array(fc.record({ constraint: constraints, prices: priceList }), { maxLength: 3 }),
    )
    .map(([prices, more]) => [{ prices }, ...more]),
);
const windows = fc.constantFrom(1_000, 2_000, 10_000);
const models = fc.record(
  { prices: entries, context_window: windows },
  { requiredKeys: ['prices'] },
);
const moments = fc.integer({ min: 0, max: 4 * DAY_MS }).map((after) => NOW + after);

const KINDS = ['input', 'cacheRead', 'cacheWrite', 'output', 'reasoning', 'inputAudio'] as const;

function listingsOf(model: object): Listing[] {
  return readPublished(encode(one(model)));
}

function costsLess(rates: Rates, mark: Rates, size: number): boolean {
  const isLess = (price: TokenPrice, other: TokenPrice) =>
    priceAt(price, size) * 2 < priceAt(other, size);
  return KINDS.some((kind) => isLess(rates[kind], mark[kind]));
}

describe('taking a list over', () => {
  test('never makes a call cost less than half at any time, of any kind, at any size', () => {
    let taken = 0;
    fc.assert(
      fc.property(models, models, moments, fc.constantFrom(0, 101, 201), (old, next, at, size) => {
        const before = inForce(listingsOf(old));
        const { listings, changed } = takeOver(before, listingsOf(next), NOW, false);
        const after = inForce(listings, 'v2');
        taken += changed;
        const [rates, mark] = [after, before].map((each) => findRates('openai', 'm', at, each)!);
        expect(costsLess(rates!, mark!, size)).toBe(false);
        expect((rates!.contextWindow ?? 1e9) * 2).toBeGreaterThanOrEqual(mark!.contextWindow ?? 0);
      }),
      { numRuns: 2_000 },
    );
    expect(taken).toBeGreaterThan(50);
  });

  test('takes every list over that costs no less, and every one that a person accepts', () => {
    const factors = fc.constantFrom(0.5, 0.75, 1, 3, 1_000);
    fc.assert(
      fc.property(entries, entries, factors, (old, other, factor) => {
        const before = inForce(listingsOf({ prices: old }));
        const dearer = listingsOf({ prices: scale(old, factor) });
        expect(takeOver(before, dearer, NOW, false)).toMatchObject({
          heldBack: [],
          listings: dearer,
        });
        const accepted = listingsOf({ prices: other });
        expect(takeOver(before, accepted, NOW, true)).toMatchObject({
          ...{ heldBack: [], listings: accepted },
        });
      }),
    );
  });

  function scale(value: unknown, factor: number): unknown {
    return JSON.parse(JSON.stringify(value), (key, part: unknown) =>
      typeof part === 'number' && key !== 'start' ? part * factor : part,
    );
  }

  test('holds back what it held back before, and changes nothing the second time', () => {
    fc.assert(
      fc.property(entries, entries, (old, next) => {
        const before = inForce(listingsOf({ prices: old }));
        const list = listingsOf({ prices: next });
        const first = takeOver(before, list, NOW, false);
        const second = takeOver(inForce(first.listings, 'v2'), list, NOW, false);
        expect(second).toEqual({ ...first, added: 0, changed: 0 });
      }),
    );
  });

  test('leaves a price that was accepted where it is', () => {
    const model = { id: 'gpt-4o', match: { equals: 'gpt-4o' }, prices: { input_mtok: 0.1 } };
    const cheap = readPublished(encode([{ id: 'openai', models: [model] }]));
    expect(takeOver(PINNED, cheap, NOW, false).heldBack).toEqual(['openai/gpt-4o']);
    const accepted = inForce(takeOver(PINNED, cheap, NOW, true).listings);
    expect(takeOver(accepted, cheap, NOW, false).heldBack).toEqual([]);
  });

  test('never goes below half of a pinned price, not step by step either', () => {
    let catalogue = PINNED;
    const pinned = findRates('openai', 'gpt-4o', NOW)!.output.base;
    for (let dollars = 10; dollars > 0.01; dollars *= 0.8) {
      const prices = { input_mtok: 2.5, cache_read_mtok: 1.25, output_mtok: dollars };
      const list = readPublished(
        encode([{ id: 'openai', models: [{ id: 'gpt-4o', match: { equals: 'gpt-4o' }, prices }] }]),
      );
      catalogue = inForce(takeOver(catalogue, list, NOW, false).listings);
      const { output } = findRates('openai', 'gpt-4o', NOW, catalogue)!;
      expect(output.base * 2).toBeGreaterThanOrEqual(pinned);
    }
  });

  test('never goes below half of an earlier price step by step, of a model that is not pinned', () => {
    const listOf = (dollars: number) =>
      listingsOf({ prices: { input_mtok: 1, output_mtok: dollars } });
    const earlier = inForce(takeOver(PINNED, listOf(10), NOW, false).listings);
    const first = findRates('openai', 'm', NOW, earlier)!.output.base;
    let catalogue = earlier;
    for (let dollars = 10; dollars > 0.01; dollars *= 0.8) {
      const { listings } = takeOver(catalogue, listOf(dollars), NOW, false, earlier);
      catalogue = inForce(listings);
      const { output } = findRates('openai', 'm', NOW, catalogue)!;
      expect(output.base * 2).toBeGreaterThanOrEqual(first);
    }
    expect(findRates('openai', 'm', NOW, catalogue)!.output.base).toBeLessThan(first);
  });

  test('gives a model without a price none that is zero, but for one that is named free', () => {
    const zero = { prices: { input_mtok: 0, output_mtok: 0 } };
    const { listings, heldBack } = takeOver(PINNED, listingsOf(zero), NOW, false);
    expect([listings, heldBack]).toEqual([[], ['openai/m']]);
    const free = {
      id: 'openrouter',
      models: [{ id: 'm:free', match: { equals: 'm:free' }, ...zero }],
    };
    expect(takeOver(PINNED, readPublished(encode([free])), NOW, false)).toMatchObject({
      ...{ heldBack: [], added: 1 },
    });
    // By its date it is a model that has a price.
    const id = 'gpt-4o-2099-01-31';
    const dated = { id: 'openai', models: [{ id, match: { equals: id }, ...zero }] };
    expect(takeOver(PINNED, readPublished(encode([dated])), NOW, false).heldBack).toEqual([
      `openai/${id}`,
    ]);
  });

  test('keeps the price of a model that the list has no more', () => {
    const before = inForce(listingsOf({ prices: { input_mtok: 1 } }));
    const other = readPublished(
      encode([
        { id: 'groq', models: [{ id: 'g', match: { equals: 'g' }, prices: { input_mtok: 1 } }] },
      ]),
    );
    const { listings, kept, added } = takeOver(before, other, NOW, false);
    const after = inForce(listings, 'v2');
    expect({ kept, added }).toEqual({ kept: 1, added: 1 });
    expect(findRates('openai', 'm', NOW, after)?.input.base).toBe(1_000_000_000);
    expect(findRates('openai', 'gpt-4o', NOW, after)).toEqual(findRates('openai', 'gpt-4o', NOW));
  });

  test('takes the price from a model that bills by what nobody here can count', () => {
    const before = inForce(listingsOf({ prices: { input_mtok: 1 } }));
    const { listings } = takeOver(
      before,
      listingsOf({ prices: { input_mtok: 1, requests_kcount: 9 } }),
      ...([NOW, false] as const),
    );
    expect(findRates('openai', 'm', NOW, inForce(listings))).toBeUndefined();
  });
});
