/** What an org's calls are governed by besides policies: its provider keys, prices and org key. */

import type { ProviderKeyId } from '../schema/ids.ts';
import { Memo } from './memo.ts';
import type { Org } from './org.ts';
import { type Price, readPrices } from './prices.ts';

/** A provider key, sealed. */
export interface ProviderKey {
  readonly id: ProviderKeyId;
  readonly name: string;
  readonly provider: string;
  readonly baseUrl: string;
  readonly secret: string;
}

/** An org's settings at one revision. */
export interface Settings {
  /** The oldest key first. */
  readonly keys: readonly ProviderKey[];
  /** By `key/model`. */
  readonly prices: ReadonlyMap<string, Price>;
  /** The org's wrapped key; `undefined` once it was destroyed. */
  readonly wrappedKey: string | undefined;
}

const remembered = new Memo<Settings>(1_000);

/**
 * The org's settings. `revision` comes from the org's row, read in the same call, and every change
 * raises it: what is remembered can't be older than that row.
 */
export async function readSettings(org: Org, revision: number): Promise<Settings> {
  const key = `${org.id}/${revision}`;
  return remembered.get(key) ?? remembered.set(key, await loadSettings(org));
}

async function loadSettings(org: Org): Promise<Settings> {
  const [keys, prices, orgKeys] = await Promise.all([
    org.read(
      `select id, name, provider, base_url, secret from provider_keys
       where org_id = ?1 order by created_at, id`,
    ),
    readPrices(org),
    org.read('select wrapped from org_keys where org_id = ?1'),
  ]);
  return {
    keys: keys.map((row) => ({
      id: row.id as ProviderKeyId,
      name: String(row.name),
      provider: String(row.provider),
      baseUrl: String(row.base_url),
      secret: String(row.secret),
    })),
    prices,
    wrappedKey: orgKeys[0] ? String(orgKeys[0].wrapped) : undefined,
  };
}
