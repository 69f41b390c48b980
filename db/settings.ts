/** What an org's calls are governed by besides their policy: keys, prices, windows of others. */

import { overrideRates, type Rates } from '../schema/rules/catalogue.ts';
import { type Counter, countersOf } from '../schema/rules/limit.ts';
import { Memo } from './memo.ts';
import type { Org } from './org.ts';
import { readUsedPolicies } from './policies.ts';
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
  /** The windows that its policies limit, each of which counts the calls of all policies. */
  readonly counters: readonly Counter[];
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
  const [keys, prices, policies, orgKey] = await Promise.all([
    readProviderKeys(org),
    readPrices(org),
    readUsedPolicies(org),
    org.first('select wrapped from org_keys where org_id = ?1'),
  ]);
  const own = new Map([...prices].map(([name, price]) => [name, ownPrice(name, price)]));
  const counters = policies.flatMap(({ policyId, policy }) => countersOf(policyId, policy));
  return { keys, prices: own, counters, wrappedKey: orgKey && String(orgKey.wrapped) };
}

/** @param name As `key/model`; the name of a key has no slash. */
function ownPrice(name: string, price: Price): OwnPrice {
  const model = name.slice(name.indexOf('/') + 1);
  return {
    rates: overrideRates({ ...price, model }),
    hasWindow: price.contextWindow !== undefined,
  };
}
