/** Prices that an org has set for models itself. */

import { z } from 'zod';
import type { Nanos } from '../money.ts';
import { modelSchema } from '../names.ts';
import { builder } from './builder.ts';
import { connect, costOf } from './connection.ts';
import type { Context, ModelPrice } from './context.ts';
import { notFound } from './errors.ts';
import { parseInput } from './input.ts';
import { attempt, payloadOf } from './payload.ts';
import { Money } from './scalars.ts';

const READ = { action: 'price.read', nullable: true } as const;

/** How an input names a model. */
export const MODEL = {
  required: true,
  description: 'The model below its provider key: openai/gpt-5.',
} as const;

/** An org's own price of a model. */
const PriceType = builder.objectRef<ModelPrice>('Price');

builder.objectType(PriceType, {
  description: "The org's own price of a model, per million tokens.",
  fields: (t) => ({
    model: t.exposeString('model', { ...READ, description: MODEL.description }),
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

const PriceFilter = builder.inputType('PriceFilter', {
  description: 'Which prices are listed.',
  fields: (t) => ({
    model: t.string({ description: 'Whose model contains this, in any case.' }),
  }),
});

builder.queryFields((t) => ({
  prices: t.connection({
    type: PriceType,
    action: 'price.read',
    description: "The org's own prices, by model.",
    complexity: costOf,
    args: { filter: t.arg({ type: PriceFilter, description: 'Which of them.' }) },
    resolve: (_root, { filter, ...page }, { org, store }) =>
      connect(page, (window) => store.prices.listPrices(org, filter ?? {}, window)),
  }),
  price: t.field({
    ...{ ...READ, type: PriceType },
    description: "The org's own price of a model; null where it has none.",
    args: { model: t.arg.string(MODEL) },
    resolve: (_root, { model }, context) => present(context, model),
  }),
}));

async function present({ org, store }: Context, model: string): Promise<ModelPrice | undefined> {
  const price = await store.prices.findPrice(org, model);
  return price && { model, ...price };
}

const windowSchema = z.int().min(1).max(100_000_000);

builder.relayMutationField(
  'priceSet',
  {
    inputFields: (t) => ({
      model: t.string(MODEL),
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
      attempt(context, async ({ org, actor, store }) => {
        const model = parseInput(modelSchema, input.model, 'model');
        const changed = await store.prices.setPrice(org, actor, model, priceOf(input));
        return { price: await present(context, model), changed };
      }),
  },
  payloadOf('priceSet', {
    price: [PriceType, 'The price as it is now.'],
    changed: ['Boolean', 'Whether it was another one before.'],
  }),
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
    inputFields: (t) => ({ model: t.string(MODEL) }),
  },
  {
    action: 'price.delete',
    description: "Goes back to the catalogue's price of a model.",
    resolve: (_root, { input: { model } }, context) =>
      attempt(context, async ({ org, actor, store }) => {
        if (!(await store.prices.deletePrice(org, actor, model))) throw notFound('model');
        return { deletedModel: model };
      }),
  },
  payloadOf('priceDelete', {
    deletedModel: ['String', 'The model whose price was deleted.'],
  }),
);
