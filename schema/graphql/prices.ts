/** Prices of models: an org's own, and what a call is charged by. */

import { z } from 'zod';
import { type Nanos, nanos } from '../money.ts';
import { modelSchema } from '../names.ts';
import { provider as findProvider } from '../providers.ts';
import { type Edition, findRates, overrideRates, type Rates } from '../rules/catalogue.ts';
import { builder } from './builder.ts';
import { connect, sizeOf } from './connection.ts';
import type { Context, ModelPrice } from './context.ts';
import { notFound } from './errors.ts';
import { parseInput } from './input.ts';
import { attempt, errorsField } from './payload.ts';
import { Money } from './scalars.ts';

const READ = { action: 'price.read', nullable: true } as const;

/** An org's own price of a model. */
const PriceType = builder.objectRef<ModelPrice>('Price');

builder.objectType(PriceType, {
  description: "The org's own price of a model, per million tokens.",
  fields: (t) => ({
    model: t.exposeString('model', {
      ...READ,
      description: 'The model below its provider key: openai/gpt-5.',
    }),
    inputPerMillion: t.expose('inputNanosPerMillion', {
      ...{ ...READ, type: Money },
      description: 'Of a million input tokens.',
    }),
    outputPerMillion: t.expose('outputNanosPerMillion', {
      ...{ ...READ, type: Money },
      description: 'Of a million output tokens.',
    }),
    cacheReadPerMillion: t.field({
      ...{ ...READ, type: Money },
      description: 'Of a million tokens read from a cache; that of input where it is null.',
      resolve: ({ cacheReadNanosPerMillion }) => cacheReadNanosPerMillion,
    }),
    cacheWritePerMillion: t.field({
      ...{ ...READ, type: Money },
      description: 'Of a million tokens written to a cache; that of input where it is null.',
      resolve: ({ cacheWriteNanosPerMillion }) => cacheWriteNanosPerMillion,
    }),
    contextWindow: t.field({
      ...{ ...READ, type: 'Count' },
      description: 'The most tokens that the model takes, where it is set.',
      resolve: ({ contextWindow }) => contextWindow,
    }),
  }),
});

/** What a call to a model is charged by. */
interface Charged {
  readonly model: string;
  readonly rates: Rates;
}

const ChargedType = builder.objectRef<Charged>('ModelPrice');

builder.objectType(ChargedType, {
  description: 'What calls to a model are charged by now, per million tokens; the lowest tier.',
  fields: (t) => ({
    model: t.exposeString('model', {
      ...READ,
      description: 'The model below its provider key: openai/gpt-5.',
    }),
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

const PriceFilter = builder.inputType('PriceFilter', {
  description: 'Which prices are listed.',
  fields: (t) => ({
    model: t.string({ description: 'Whose model contains this, in any case.' }),
  }),
});

const modelArgument = 'The model below its provider key: openai/gpt-5.';

builder.queryFields((t) => ({
  prices: t.connection({
    type: PriceType,
    action: 'price.read',
    description: "The org's own prices, by model.",
    complexity: (page) => ({ field: 1, multiplier: sizeOf(page) }),
    args: { filter: t.arg({ type: PriceFilter, description: 'Which of them.' }) },
    resolve: (_root, { filter, ...page }, { org, store }) =>
      connect(page, (window) => store.prices.listPrices(org, filter ?? {}, window)),
  }),
  price: t.field({
    ...{ ...READ, type: PriceType },
    description: "The org's own price of a model; null where it has none.",
    args: { model: t.arg.string({ required: true, description: modelArgument }) },
    resolve: (_root, { model }, context) => present(context, model),
  }),
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
    args: { model: t.arg.string({ required: true, description: modelArgument }) },
    resolve: (_root, { model }, context) => chargeOf(context, model),
  }),
}));

async function present({ org, store }: Context, model: string): Promise<ModelPrice | undefined> {
  const price = await store.prices.findPrice(org, model);
  return price && { model, ...price };
}

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

const windowSchema = z.int().min(1).max(100_000_000);

builder.relayMutationField(
  'priceSet',
  {
    inputFields: (t) => ({
      model: t.string({ required: true, description: modelArgument }),
      inputPerMillion: t.field({
        ...{ type: 'Dollars', required: true },
        description: 'Of a million input tokens.',
      }),
      outputPerMillion: t.field({
        ...{ type: 'Dollars', required: true },
        description: 'Of a million output tokens.',
      }),
      cacheReadPerMillion: t.field({
        type: 'Dollars',
        description: 'Of a million tokens read from a cache; that of input unless given.',
      }),
      cacheWritePerMillion: t.field({
        type: 'Dollars',
        description: 'Of a million tokens written to a cache; that of input unless given.',
      }),
      contextWindow: t.field({
        type: 'Count',
        description: "The most tokens that the model takes; the catalogue's unless given.",
      }),
    }),
  },
  {
    action: 'price.update',
    description: 'Sets the price of a model, in whole; calls from then on are charged by it.',
    resolve: (_root, { input }, context) =>
      attempt(context, async () => {
        const { org, actor, store } = context;
        const model = parseInput(modelSchema, input.model, 'model');
        const changed = await store.prices.setPrice(org, actor, model, priceOf(input));
        return { price: await present(context, model), changed };
      }),
  },
  {
    description: 'What priceSet brought about.',
    outputFields: (t) => ({
      price: t.field({
        ...{ type: PriceType, action: 'public', nullable: true },
        description: 'The price as it is now.',
        resolve: ({ price }) => price,
      }),
      changed: t.boolean({
        ...{ action: 'public', nullable: true },
        description: 'Whether it was another one before.',
        resolve: ({ changed }) => changed,
      }),
      errors: errorsField(t),
    }),
  },
);

/** A price as the input of a mutation has it. */
interface Wanted {
  readonly inputPerMillion: Nanos;
  readonly outputPerMillion: Nanos;
  readonly cacheReadPerMillion?: Nanos | null | undefined;
  readonly cacheWritePerMillion?: Nanos | null | undefined;
  readonly contextWindow?: number | null | undefined;
}

function priceOf(wanted: Wanted) {
  const { cacheReadPerMillion: read, cacheWritePerMillion: write, contextWindow } = wanted;
  return {
    inputNanosPerMillion: wanted.inputPerMillion,
    outputNanosPerMillion: wanted.outputPerMillion,
    ...(typeof read === 'number' ? { cacheReadNanosPerMillion: read } : {}),
    ...(typeof write === 'number' ? { cacheWriteNanosPerMillion: write } : {}),
    ...(typeof contextWindow === 'number'
      ? { contextWindow: parseInput(windowSchema, contextWindow, 'contextWindow') }
      : {}),
  };
}

builder.relayMutationField(
  'priceDelete',
  {
    inputFields: (t) => ({ model: t.string({ required: true, description: modelArgument }) }),
  },
  {
    action: 'price.delete',
    description: "Goes back to the catalogue's price of a model.",
    resolve: (_root, { input: { model } }, context) =>
      attempt(context, async () => {
        const { org, actor, store } = context;
        if (!(await store.prices.deletePrice(org, actor, model))) throw notFound('model');
        return { deletedModel: model };
      }),
  },
  {
    description: 'What priceDelete brought about.',
    outputFields: (t) => ({
      deletedModel: t.string({
        ...{ action: 'public', nullable: true },
        description: 'The model whose price was deleted.',
        resolve: ({ deletedModel }) => deletedModel,
      }),
      errors: errorsField(t),
    }),
  },
);
