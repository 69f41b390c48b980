/** An org's own prices of models. */

import { type Nanos, nanos } from '../schema/money.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Row } from './client.ts';
import type { Org } from './org.ts';

/** An org's own price of a model; money per million tokens. */
export interface Price {
  readonly inputNanosPerMillion: Nanos;
  readonly outputNanosPerMillion: Nanos;
  readonly cacheReadNanosPerMillion?: Nanos;
  readonly cacheWriteNanosPerMillion?: Nanos;
  /** Tokens. */
  readonly contextWindow?: number;
}

/** Every price of an org, by `key/model`. */
export async function readPrices(org: Org): Promise<Map<string, Price>> {
  const rows = await org.read('select * from prices where org_id = ?1');
  return new Map(rows.map((row) => [String(row.model), toPrice(row)]));
}

/** The price of a model, written `key/model`. */
export async function findPrice(org: Org, model: string): Promise<Price | undefined> {
  const row = await org.first('select * from prices where org_id = ?1 and model = ?2', model);
  return row && toPrice(row);
}

/** Sets the price of a model, written `key/model`. */
export async function setPrice(org: Org, actor: Actor, model: string, price: Price): Promise<void> {
  await org.write(
    org.statement(
      `insert into prices (
         org_id, model, input_nanos_per_million, output_nanos_per_million,
         cache_read_nanos_per_million, cache_write_nanos_per_million, context_window, created_at
       ) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
       on conflict do update set
         input_nanos_per_million = excluded.input_nanos_per_million,
         output_nanos_per_million = excluded.output_nanos_per_million,
         cache_read_nanos_per_million = excluded.cache_read_nanos_per_million,
         cache_write_nanos_per_million = excluded.cache_write_nanos_per_million,
         context_window = excluded.context_window`,
      model,
      price.inputNanosPerMillion,
      price.outputNanosPerMillion,
      price.cacheReadNanosPerMillion ?? null,
      price.cacheWriteNanosPerMillion ?? null,
      price.contextWindow ?? null,
      Date.now(),
    ),
    auditEntry(org, actor, 'price.set', model, price),
  );
}

function toPrice(row: Row): Price {
  const amount = (column: string) => nanos(Number(row[column]));
  return {
    inputNanosPerMillion: amount('input_nanos_per_million'),
    outputNanosPerMillion: amount('output_nanos_per_million'),
    ...(row.cache_read_nanos_per_million === null
      ? {}
      : { cacheReadNanosPerMillion: amount('cache_read_nanos_per_million') }),
    ...(row.cache_write_nanos_per_million === null
      ? {}
      : { cacheWriteNanosPerMillion: amount('cache_write_nanos_per_million') }),
    ...(row.context_window === null ? {} : { contextWindow: Number(row.context_window) }),
  };
}
