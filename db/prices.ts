/** An org's own prices of models. */

import type { Nanos } from '../schema/money.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Org } from './org.ts';
import type { Price } from './settings.ts';

/** The price that the org has set for a model, written `key/model`. */
export async function findPrice(org: Org, model: string): Promise<Price | undefined> {
  const row = await org.first('select * from prices where org_id = ?1 and model = ?2', model);
  if (!row) return undefined;
  const { cache_read_nanos_per_million: read, cache_write_nanos_per_million: write } = row;
  return {
    inputNanosPerMillion: row.input_nanos_per_million as Nanos,
    outputNanosPerMillion: row.output_nanos_per_million as Nanos,
    ...(read == null ? {} : { cacheReadNanosPerMillion: read as Nanos }),
    ...(write == null ? {} : { cacheWriteNanosPerMillion: write as Nanos }),
  };
}

/** Sets the price of a model, written `key/model`. */
export async function setPrice(org: Org, actor: Actor, model: string, price: Price): Promise<void> {
  await org.write(
    org.statement(
      `insert into prices (
         org_id, model, input_nanos_per_million, output_nanos_per_million,
         cache_read_nanos_per_million, cache_write_nanos_per_million, created_at
       ) values (?1, ?2, ?3, ?4, ?5, ?6, ?7)
       on conflict do update set
         input_nanos_per_million = excluded.input_nanos_per_million,
         output_nanos_per_million = excluded.output_nanos_per_million,
         cache_read_nanos_per_million = excluded.cache_read_nanos_per_million,
         cache_write_nanos_per_million = excluded.cache_write_nanos_per_million`,
      model,
      price.inputNanosPerMillion,
      price.outputNanosPerMillion,
      price.cacheReadNanosPerMillion ?? null,
      price.cacheWriteNanosPerMillion ?? null,
      Date.now(),
    ),
    auditEntry(org, actor, 'price.set', model, price),
  );
}
