/** An org's own prices of models. */

import { type Nanos, nanos } from '../schema/money.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Row } from './client.ts';
import type { Org } from './org.ts';
import { type Page, readPage, type Window } from './page.ts';

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

/** A price, and the model it is of, written `key/model`. */
export interface ModelPrice extends Price {
  readonly model: string;
}

/** The prices of an org by model, or those whose model contains a text. */
export function listPrices(
  org: Org,
  { model = null }: { readonly model?: string | null | undefined },
  window: Window,
): Promise<Page<ModelPrice>> {
  const sql = `select *, model as id from prices where org_id = ?1
    and (?2 is null or instr(lower(model), lower(?2)) > 0)`;
  const toNode = (row: Row) => ({ model: String(row.model), ...toPrice(row) });
  return readPage(org, { sql, args: [model], order: 'model' }, window, toNode);
}

/** The price of a model, written `key/model`. */
export async function findPrice(org: Org, model: string): Promise<Price | undefined> {
  const row = await org.first('select * from prices where org_id = ?1 and model = ?2', model);
  return row && toPrice(row);
}

/** Sets the price of a model, written `key/model`. @returns whether it was another one before. */
export async function setPrice(
  org: Org,
  actor: Actor,
  model: string,
  price: Price,
): Promise<boolean> {
  const before = await findPrice(org, model);
  if (before && FACTS.every((fact) => before[fact] === price[fact])) return false;
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
    auditEntry(org, actor, 'price.update', model, price, { before }),
  );
  return true;
}

/** Goes back to the published price of a model. @returns false when it had none of its own. */
export async function deletePrice(org: Org, actor: Actor, model: string): Promise<boolean> {
  const before = await findPrice(org, model);
  const [deleted] = await org.write(
    org.statement('delete from prices where org_id = ?1 and model = ?2', model),
    auditEntry(org, actor, 'price.delete', model, undefined, { before, ifChanged: true }),
  );
  return deleted!.changes > 0;
}

const FACTS = [
  'inputNanosPerMillion',
  'outputNanosPerMillion',
  'cacheReadNanosPerMillion',
  'cacheWriteNanosPerMillion',
  'contextWindow',
] as const satisfies readonly (keyof Price)[];

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
