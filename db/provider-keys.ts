/** Provider keys: sealed under the org's key and bound to their provider and host. */

import type { OrgId, ProviderKeyId } from '../schema/ids.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Row } from './client.ts';
import type { Org } from './org.ts';
import {
  checkSeals,
  type MasterKeys,
  newId,
  open,
  type SealContext,
  SealError,
  seal,
} from './seal.ts';

/** A provider key as it is configured. */
export interface ProviderKey {
  readonly id: ProviderKeyId;
  readonly name: string;
  readonly provider: string;
  readonly baseUrl: string;
  /** Sealed. */
  readonly secret: string;
}

/** What a key is made with. */
export interface NewProviderKey {
  readonly name: string;
  readonly provider: string;
  readonly baseUrl: string;
  /** The provider's own credential, in clear. */
  readonly secret: string;
}

/** What a key's secret is bound to: moved to another row, org, provider or host it won't open. */
export function secretContext(
  org: OrgId,
  key: Pick<ProviderKey, 'id' | 'provider' | 'baseUrl'>,
): SealContext {
  return {
    org,
    table: 'provider_keys',
    column: 'secret',
    row: key.id,
    provider: key.provider,
    host: key.baseUrl === '' ? '' : new URL(key.baseUrl).host,
  };
}

/** Every key of an org, the oldest first. */
export async function readProviderKeys(org: Org): Promise<ProviderKey[]> {
  const rows = await org.read(
    `select id, name, provider, base_url, secret from provider_keys
     where org_id = ?1 order by created_at, id`,
  );
  return rows.map(toKey);
}

/** The key of this name. */
export async function findProviderKey(org: Org, name: string): Promise<ProviderKey | undefined> {
  const row = await org.first(
    'select id, name, provider, base_url, secret from provider_keys where org_id = ?1 and name = ?2',
    name,
  );
  return row && toKey(row);
}

function toKey(row: Row): ProviderKey {
  return {
    id: row.id as ProviderKeyId,
    name: String(row.name),
    provider: String(row.provider),
    baseUrl: String(row.base_url),
    secret: String(row.secret),
  };
}

/** Whether a key holds this very secret; `false` for one whose stored secret can't be opened. */
export async function holdsSecret(
  org: Org,
  master: MasterKeys,
  key: ProviderKey,
  secret: string,
): Promise<boolean> {
  const orgKey = await org.first('select wrapped from org_keys where org_id = ?1');
  try {
    const context = secretContext(org.id, key);
    return (await open(master, String(orgKey?.wrapped), context, key.secret)) === secret;
  } catch (error) {
    if (error instanceof SealError) return false;
    throw error;
  }
}

/**
 * Adds a key, or replaces the one of the same name: its provider, URL and secret together, so that
 * a stored secret never goes to another host.
 *
 * @throws {SealError} when the org's key is gone, or has sealed as often as it may.
 */
export async function putProviderKey(
  org: Org,
  master: MasterKeys,
  actor: Actor,
  key: NewProviderKey,
): Promise<ProviderKeyId> {
  const present = await findProviderKey(org, key.name);
  const id = present?.id ?? newId('providerKey');
  const orgKey = await org.first('select wrapped, seals from org_keys where org_id = ?1');
  checkSeals(Number(orgKey?.seals ?? Number.NaN));
  const context = secretContext(org.id, { ...key, id });
  const sealed = await seal(master, String(orgKey?.wrapped), context, key.secret);
  await org.write(
    org.statement('update org_keys set seals = seals + 1 where org_id = ?1'),
    org.statement(
      `insert into provider_keys (
         org_id, id, name, provider, base_url, secret, last_four, created_at
       ) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
       on conflict (id) do update set
         provider = excluded.provider, base_url = excluded.base_url,
         secret = excluded.secret, last_four = excluded.last_four`,
      id,
      key.name,
      key.provider,
      key.baseUrl,
      sealed,
      lastFourOf(key.secret),
      Date.now(),
    ),
    auditEntry(org, actor, present ? 'provider_key.update' : 'provider_key.create', id, {
      name: key.name,
      provider: key.provider,
      baseUrl: key.baseUrl,
    }),
  );
  return id;
}

/** Four characters help people tell keys apart, but would give much of a short one away. */
function lastFourOf(secret: string): string {
  return secret.length >= 20 ? secret.slice(-4) : '';
}
