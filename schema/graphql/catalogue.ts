/** What calls are charged by: the price list in force, and the price of each model. */

import { type Nanos, nanos } from '../money.ts';
import { provider as findProvider } from '../providers.ts';
import { type Edition, findRates, overrideRates, type Rates } from '../rules/catalogue.ts';
import { builder } from './builder.ts';
import type { Context } from './context.ts';
import { MODEL } from './prices.ts';
import { Money } from './scalars.ts';

const READ = { action: 'price.read', nullable: true } as const;

/** What a call to a model is charged by. */
interface Charged {
  readonly model: string;
  readonly rates: Rates;
}

const ChargedType = builder.objectRef<Charged>('ModelPrice');

builder.objectType(ChargedType, {
  description: 'What calls to a model are charged by now, per million tokens; the lowest tier.',
  fields: (t) => ({
    model: t.exposeString('model', { ...READ, description: MODEL.description }),
    source: t.field({
      ...{ ...READ, type: 'String' },
      description: "override for the org's own price, else the catalogue with its version.",
      resolve: ({ rates }) => rates.catalogue,
    }),
    inputPerMillion: t.field({
      ...{ ...READ, type: Money },
      description: 'Of a million input tokens.',
      resolve: ({ rates }) => toMoney(rates.input.base),
    }),
    outputPerMillion: t.field({
      ...{ ...READ, type: Money },
      description: 'Of a million output tokens.',
      resolve: ({ rates }) => toMoney(rates.output.base),
    }),
    cacheReadPerMillion: t.field({
      ...{ ...READ, type: Money },
      description: 'Of a million tokens read from a cache.',
      resolve: ({ rates }) => toMoney(rates.cacheRead.base),
    }),
    cacheWritePerMillion: t.field({
      ...{ ...READ, type: Money },
      description: 'Of a million tokens written to a cache.',
      resolve: ({ rates }) => toMoney(rates.cacheWrite.base),
    }),
    contextWindow: t.field({
      ...{ ...READ, type: 'Count' },
      description: 'The most tokens that the model takes, where it is known.',
      resolve: ({ rates }) => rates.contextWindow,
    }),
  }),
});

/** The catalogue's amounts are whole nanos, not larger than money can be. */
function toMoney(amount: number): Nanos {
  return nanos(amount);
}

const CatalogueType = builder.objectRef<Edition>('Catalogue');

builder.objectType(CatalogueType, {
  description: 'The price list that calls are charged by where the org has no price of its own.',
  fields: (t) => ({
    version: t.exposeString('version', {
      ...READ,
      description: 'As it stands with each step.',
    }),
    source: t.exposeString('source', {
      ...READ,
      description: 'The package that it comes with, or where it was fetched.',
    }),
    fetchedAt: t.field({
      ...{ ...READ, type: 'DateTime' },
      description: 'When it was fetched; null for the one that Rungate comes with.',
      resolve: ({ fetchedAt }) => fetchedAt,
    }),
  }),
});

builder.queryFields((t) => ({
  catalogue: t.field({
    ...{ ...READ, type: CatalogueType },
    description:
      "The price list in force; a model that it doesn't list has the price that Rungate comes with.",
    resolve: (_root, _args, { catalogue }) => catalogue,
  }),
  priceOf: t.field({
    ...{ ...READ, type: ChargedType },
    description:
      "What calls to a model are charged by now: the org's own price, else the catalogue's; null where none is known.",
    args: { model: t.arg.string(MODEL) },
    resolve: (_root, { model }, context) => chargeOf(context, model),
  }),
}));

async function chargeOf(
  { org, store, now, catalogue: inForce }: Context,
  text: string,
): Promise<Charged | undefined> {
  const model = text.slice(text.indexOf('/') + 1);
  const [own, key] = await Promise.all([
    store.prices.findPrice(org, text),
    store.providerKeys.findShownKey(org, text.slice(0, text.indexOf('/'))),
  ]);
  const catalogue = key && findProvider(key.provider)?.catalogue;
  const listed = catalogue === undefined ? undefined : findRates(catalogue, model, now, inForce);
  const contextWindow = own?.contextWindow ?? listed?.contextWindow;
  const rates = own ? overrideRates({ ...own, model, contextWindow }) : listed;
  return rates && { model: text, rates };
}
