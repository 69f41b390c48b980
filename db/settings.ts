/** What an org's calls are governed by besides policies: its provider keys, prices and org key. */

import { overrideRates, type Rates } from '../schema/rules/catalogue.ts';
import { Memo } from './memo.ts';
import type { Org } from './org.ts';
import { type Price, readPrices } from './prices.ts';
import { type ProviderKey, readProviderKeys } from './provider-keys.ts';

/** An org's own price of a model. */
export interface OwnPrice {
  readonly rates: Rates;
  /** Whether the org has given the context window too, or it is only assumed. */
  readonly hasWindow: boolean;
}

/** An org's settings at one revision. */
export interface Settings {
  /** The oldest key first. */
  readonly keys: readonly ProviderKey[];
  /** By `key/model`. */
  readonly prices: ReadonlyMap<string, OwnPrice>;
  /** The org's wrapped key; `undefined` once it was destroyed. */
  readonly wrappedKey: string | undefined;
}

const remembered = new Memo<Settings>(1_000);

/**
 * The org's settings. `revision` comes from the org's row, read in the same call, and every change
 * raises it: what is remembered can't be older than that row.
 */
export function readSettings(org: Org, revision: number): Settings | Promise<Settings> {
  const key = `${org.id}/${revision}`;
  return remembered.get(key) ?? loadSettings(org).then((settings) => remembered.set(key, settings));
}

async function loadSettings(org: Org): Promise<Settings> {
  const [keys, prices, orgKey] = await Promise.all([
    readProviderKeys(org),
    readPrices(org),
    org.first('select wrapped from org_keys where org_id = ?1'),
  ]);
  const own = new Map([...prices].map(([name, price]) => [name, ownPrice(name, price)]));
  return { keys, prices: own, wrappedKey: orgKey && String(orgKey.wrapped) };
}

/** @param name As `key/model`; the name of a key has no slash. */
function ownPrice(name: string, price: Price): OwnPrice {
  const model = name.slice(name.indexOf('/') + 1);
  return {
    rates: overrideRates({ ...price, model }),
    hasWindow: price.contextWindow !== undefined,
  };
}
