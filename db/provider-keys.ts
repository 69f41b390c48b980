/** Provider keys: sealed under the org's key and bound to their provider and host. */

import { isDeepStrictEqual } from 'node:util';
import type { OrgId, ProviderKeyId } from '../schema/ids.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Row, Statement } from './client.ts';
import { Memo } from './memo.ts';
import type { Org } from './org.ts';
import { type Page, readPage, type Window } from './page.ts';
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
  /** The tier of service of calls that ask for none; `default` for the standard one. */
  readonly serviceTier: string;
  /** Sealed. */
  readonly secret: string;
}

/** What a key is made with. */
export interface NewProviderKey {
  readonly name: string;
  readonly provider: string;
  readonly baseUrl: string;
  /** As in {@link ProviderKey}. */
  readonly serviceTier: string;
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
    host: hosts.get(key.baseUrl) ?? hosts.set(key.baseUrl, hostOf(key.baseUrl)),
  };
}

const hosts = new Memo<string>(1_000);

const hostOf = (url: string): string => (url === '' ? '' : new URL(url).host);

const SELECT = 'select id, name, provider, base_url, service_tier, secret from provider_keys';

/** Every key of an org, the oldest first. */
export async function readProviderKeys(org: Org): Promise<ProviderKey[]> {
  const rows = await org.read(`${SELECT} where org_id = ?1 order by created_at, id`);
  return rows.map(toKey);
}

/** The key of an id. */
export async function readProviderKey(
  org: Org,
  id: ProviderKeyId,
): Promise<ProviderKey | undefined> {
  const row = await org.first(`${SELECT} where org_id = ?1 and id = ?2`, id);
  return row && toKey(row);
}

/** The key of this name. */
async function findProviderKey(org: Org, name: string): Promise<ProviderKey | undefined> {
  const row = await org.first(`${SELECT} where org_id = ?1 and name = ?2`, name);
  return row && toKey(row);
}

function toKey(row: Row): ProviderKey {
  return {
    id: row.id as ProviderKeyId,
    name: String(row.name),
    provider: String(row.provider),
    baseUrl: String(row.base_url),
    serviceTier: String(row.service_tier),
    secret: String(row.secret),
  };
}

/** A provider key as people see it: its secret is not among what is read. */
export interface ShownKey extends Omit<ProviderKey, 'secret'> {
  /** The end of its secret; empty for a short one. */
  readonly lastFour: string;
  readonly createdAt: number;
}

const SHOWN =
  'select id, name, provider, base_url, service_tier, last_four, created_at from provider_keys';

/** The provider keys of an org by name. */
export function listProviderKeys(
  org: Org,
  { provider = null }: { readonly provider?: string | null | undefined },
  window: Window,
): Promise<Page<ShownKey>> {
  const sql = `${SHOWN} where org_id = ?1 and (?2 is null or provider = ?2)`;
  return readPage(org, { sql, args: [provider], order: 'name' }, window, toShown);
}

/** The key of an id, without its secret. */
export async function showProviderKey(org: Org, id: ProviderKeyId): Promise<ShownKey | undefined> {
  const row = await org.first(`${SHOWN} where org_id = ?1 and id = ?2`, id);
  return row && toShown(row);
}

/** The key of this name, without its secret. */
export async function findShownKey(org: Org, name: string): Promise<ShownKey | undefined> {
  const row = await org.first(`${SHOWN} where org_id = ?1 and name = ?2`, name);
  return row && toShown(row);
}

function toShown(row: Row): ShownKey {
  return {
    id: row.id as ProviderKeyId,
    name: String(row.name),
    provider: String(row.provider),
    baseUrl: String(row.base_url),
    serviceTier: String(row.service_tier),
    lastFour: String(row.last_four),
    createdAt: Number(row.created_at),
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
 * Adds a key.
 *
 * @throws {SealError} when the org's key is gone, or has sealed as often as it may.
 * @throws {DatabaseError} a conflict, when the name is taken.
 */
export async function createProviderKey(
  org: Org,
  master: MasterKeys,
  actor: Actor,
  key: NewProviderKey,
): Promise<ProviderKeyId> {
  const id = newId('providerKey');
  const { name, provider, baseUrl, serviceTier, secret } = key;
  const sealed = await sealFor(org, master, { ...key, id });
  await org.write(
    sealCount(org),
    org.statement(
      `insert into provider_keys (
         org_id, id, name, provider, base_url, service_tier, secret, last_four, created_at
       ) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)`,
      id,
      name,
      provider,
      baseUrl,
      serviceTier,
      sealed,
      lastFourOf(secret),
      Date.now(),
    ),
    auditEntry(org, actor, 'provider_key.create', id, { name, ...termsOf(key) }),
  );
  return id;
}

/**
 * Replaces a key's provider, URL, tier and secret together, so that a stored secret never goes to
 * another host. Nothing is written when all of them are the same.
 *
 * @returns whether there was anything to change.
 * @throws {SealError} as {@link createProviderKey}.
 */
export async function replaceProviderKey(
  org: Org,
  master: MasterKeys,
  actor: Actor,
  present: ProviderKey,
  wanted: Omit<NewProviderKey, 'name'>,
): Promise<boolean> {
  const { id, name } = present;
  const { secret } = wanted;
  const [before, after] = [termsOf(present), termsOf(wanted)];
  const isSame = isDeepStrictEqual(before, after);
  if (isSame && (await holdsSecret(org, master, present, secret))) return false;
  const sealed = await sealFor(org, master, { ...wanted, id, name });
  const [, replaced] = await org.write(
    sealCount(org),
    org.statement(
      `update provider_keys
       set provider = ?3, base_url = ?4, secret = ?5, last_four = ?6, service_tier = ?7
       where org_id = ?1 and id = ?2`,
      id,
      after.provider,
      after.baseUrl,
      sealed,
      lastFourOf(secret),
      after.serviceTier,
    ),
    auditEntry(
      org,
      actor,
      'provider_key.update',
      id,
      { name, ...after },
      { before, ifChanged: true },
    ),
  );
  return replaced!.changes > 0;
}

/** Adds a key, or replaces the one of the same name; as {@link replaceProviderKey}. */
export async function putProviderKey(
  org: Org,
  master: MasterKeys,
  actor: Actor,
  key: NewProviderKey,
): Promise<ProviderKeyId> {
  const present = await findProviderKey(org, key.name);
  if (!present) return await createProviderKey(org, master, actor, key);
  await replaceProviderKey(org, master, actor, present, key);
  return present.id;
}

/** Deletes a key: calls to its models are refused from then on. @returns false without such a key. */
export async function deleteProviderKey(org: Org, actor: Actor, key: ShownKey): Promise<boolean> {
  const { id, name } = key;
  const [deleted] = await org.write(
    org.statement('delete from provider_keys where org_id = ?1 and id = ?2', id),
    auditEntry(org, actor, 'provider_key.delete', id, undefined, {
      before: { name, ...termsOf(key) },
      ifChanged: true,
    }),
  );
  return deleted!.changes > 0;
}

/** What a key is but for its name and its secret, as the audit trail tells it. */
function termsOf({
  provider,
  baseUrl,
  serviceTier,
}: Pick<ProviderKey, 'provider' | 'baseUrl' | 'serviceTier'>) {
  return { provider, baseUrl, serviceTier };
}

async function sealFor(
  org: Org,
  master: MasterKeys,
  key: NewProviderKey & { readonly id: ProviderKeyId },
): Promise<string> {
  const orgKey = await org.first('select wrapped, seals from org_keys where org_id = ?1');
  checkSeals(Number(orgKey?.seals ?? Number.NaN));
  return await seal(master, String(orgKey?.wrapped), secretContext(org.id, key), key.secret);
}

function sealCount(org: Org): Statement {
  return org.statement('update org_keys set seals = seals + 1 where org_id = ?1');
}

/** Four characters help people tell keys apart, but would give much of a short one away. */
function lastFourOf(secret: string): string {
  return secret.length >= 20 ? secret.slice(-4) : '';
}
