/** Scalars: an id of each noun, times, money and counts, checked at the edge. */

import { GraphQLError } from 'graphql';
import { isId } from '../ids.ts';
import { formatDollars, type Nanos, parseDollars } from '../money.ts';
import { builder, ID_SCALARS } from './builder.ts';

function invalid(wanted: string): GraphQLError {
  return new GraphQLError(`The value must be ${wanted}.`, {
    extensions: { code: 'BAD_USER_INPUT' },
  });
}

for (const [name, noun] of Object.entries(ID_SCALARS)) {
  builder.scalarType(name as keyof typeof ID_SCALARS, {
    description: `The id of one ${noun.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`)}.`,
    serialize: (value) => value,
    parseValue(value) {
      if (typeof value === 'string' && isId(noun, value)) return value as never;
      throw invalid(`an id that starts as those of one ${noun} do`);
    },
  });
}

builder.scalarType('DateTime', {
  description: 'A moment as RFC 3339 has it, such as 2026-01-31T12:00:00.000Z.',
  serialize: (value) => new Date(value as number).toISOString(),
  parseValue(value) {
    const isWhole =
      typeof value === 'string' && /^\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)$/.test(value);
    const millis = isWhole ? Date.parse(value) : Number.NaN;
    if (Number.isNaN(millis)) throw invalid('a moment such as 2026-01-31T12:00:00Z');
    return millis;
  },
});

builder.scalarType('Dollars', {
  description: 'Dollars as a decimal string, such as "1.50"; at most nine digits after the point.',
  serialize: (value) => formatDollars(value as number),
  parseValue(value) {
    try {
      if (typeof value === 'string') return parseDollars(value);
    } catch {}
    throw invalid('dollars as a string, such as "1.50"');
  },
});

function parseCount(value: unknown): number {
  if (Number.isSafeInteger(value) && (value as number) >= 0) return value as number;
  throw invalid('an integer of at least 0');
}

builder.scalarType('Nanos', {
  description: 'Integer nano-dollars: a dollar is 1000000000.',
  serialize: (value) => value,
  parseValue: (value) => parseCount(value) as Nanos,
});

builder.scalarType('Count', {
  description: 'An integer from 0 to 2^53.',
  serialize: (value) => value,
  parseValue: parseCount,
});

builder.scalarType('JSON', {
  description: 'Any JSON value.',
  serialize: (value) => value,
  parseValue: (value) => value,
});

/** An amount of money, both ways that people and machines want it. */
export const Money = builder.objectRef<Nanos>('Money');

builder.objectType(Money, {
  description: 'An amount of money.',
  fields: (t) => ({
    dollars: t.field({
      ...{ type: 'Dollars', action: 'public', nullable: false },
      description: 'As a decimal string of dollars.',
      resolve: (amount) => amount,
    }),
    nanos: t.field({
      ...{ type: 'Nanos', action: 'public', nullable: false },
      description: 'As integer nano-dollars.',
      resolve: (amount) => amount,
    }),
  }),
});
