/** Signing in: links by mail, and an org's own identity provider (OpenID Connect). */

import { Refusal } from '../schema/errors.ts';
import type { MemberId, OrgId } from '../schema/ids.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Database } from './client.ts';
import type { Org } from './org.ts';
import {
  checkSeals,
  hashToken,
  type MasterKeys,
  newSecret,
  open,
  type SealContext,
  seal,
} from './seal.ts';

/** What a link by mail is good for, and for nothing else. */
export type LinkPurpose = 'sign_in' | 'confirm_email';

/** How long a link by mail can be used. */
export const LINK_MS = 15 * 60_000;
/** The most links to one address within that time. */
export const MAX_LINKS = 5;

/**
 * Makes a link for an address, whether or not anybody has it: who asks must not learn that.
 *
 * @param email In its one spelling.
 * @returns the link's secret, shown once; undefined when the address has had too many.
 */
export async function makeLink(
  db: Database,
  email: string,
  purpose: LinkPurpose,
  now: number,
): Promise<string | undefined> {
  const secret = newSecret();
  const [, made] = await db.write([
    { sql: 'delete from sign_in_links where created_at <= ?1', args: [now - LINK_MS] },
    {
      sql: `insert into sign_in_links (hash, email, purpose, created_at, expires_at)
        select ?1, ?2, ?3, ?4, ?5
        where (select count(*) from sign_in_links where email = ?2) < ${MAX_LINKS}`,
      args: [hashToken(secret), email, purpose, now, now + LINK_MS],
    },
  ]);
  return made!.changes > 0 ? secret : undefined;
}

/**
 * Uses a link, which is used up by it; so are the other links of its address for that purpose.
 *
 * @returns the address that it was sent to; undefined for one that is unknown, expired, used, or
 *   for another purpose.
 */
export async function takeLink(
  db: Database,
  secret: string,
  purpose: LinkPurpose,
  now: number,
): Promise<string | undefined> {
  const [, taken] = await db.write([
    {
      sql: `update sign_in_links set expires_at = ?3
        where purpose = ?2 and hash <> ?1 and email = (
          select email from sign_in_links where hash = ?1 and purpose = ?2 and expires_at > ?3
        )`,
      args: [hashToken(secret), purpose, now],
    },
    {
      sql: `delete from sign_in_links where hash = ?1 and purpose = ?2 and expires_at > ?3
        returning email`,
      args: [hashToken(secret), purpose, now],
    },
  ]);
  return taken!.rows[0] && String(taken!.rows[0].email);
}

/** The address that a link which can still be used was sent to; it is not used up. */
export async function peekLink(
  db: Database,
  secret: string,
  purpose: LinkPurpose,
  now: number,
): Promise<string | undefined> {
  const row = await db.first(
    'select email from sign_in_links where hash = ?1 and purpose = ?2 and expires_at > ?3',
    [hashToken(secret), purpose, now],
  );
  return row && String(row.email);
}

/** How an org signs in through its identity provider. */
export interface OidcSettings {
  readonly issuer: string;
  readonly clientId: string;
  /** Sealed. */
  readonly secret: string;
  /** The only domains of e-mail addresses that the provider may speak for, in lower case. */
  readonly domains: readonly string[];
}

/** Settings to be set; without a secret, that of the same issuer is kept. */
export type NewOidcSettings = Omit<OidcSettings, 'secret'> & {
  readonly secret?: string | undefined;
};

function secretPlace(org: OrgId, issuer: string): SealContext {
  return {
    ...{ org, table: 'oidc_settings', column: 'secret', row: org },
    host: new URL(issuer).host,
  };
}

/**
 * Sets how an org signs in. The secret goes with the issuer: another issuer needs it again.
 *
 * @param settings `secret` in clear; undefined keeps the one that the same issuer has.
 * @throws {Refusal} `invalid_request` when there is no secret to keep.
 * @throws {SealError} when the org's key is gone, or has sealed as often as it may.
 */
export async function putOidc(
  org: Org,
  master: MasterKeys,
  actor: Actor,
  { issuer, clientId, secret: given, domains }: NewOidcSettings,
  now: number,
): Promise<void> {
  const before = await readOidc(org);
  const secret = given ?? (await keptSecret(org, master, issuer, before));
  const key = await org.first('select wrapped, seals from org_keys where org_id = ?1');
  checkSeals(Number(key?.seals ?? Number.NaN));
  const sealed = await seal(master, String(key?.wrapped), secretPlace(org.id, issuer), secret);
  await org.write(
    org.statement('update org_keys set seals = seals + 1 where org_id = ?1'),
    org.statement(
      `insert into oidc_settings (
         org_id, issuer, client_id, secret, domains, created_at, updated_at
       ) values (?1, ?2, ?3, ?4, ?5, ?6, ?6)
       on conflict do update set issuer = excluded.issuer, client_id = excluded.client_id,
         secret = excluded.secret, domains = excluded.domains, updated_at = excluded.updated_at`,
      issuer,
      clientId,
      sealed,
      JSON.stringify(domains),
      now,
    ),
    auditEntry(
      org,
      actor,
      'sign_in.update',
      org.id,
      { issuer, clientId, domains, secret: given === undefined ? 'kept' : 'replaced' },
      { before: shown(before) },
    ),
  );
}

/** What the audit trail tells of the settings. */
function shown(settings: OidcSettings | undefined): object | undefined {
  if (!settings) return undefined;
  const { issuer, clientId, domains } = settings;
  return { issuer, clientId, domains };
}

async function keptSecret(
  org: Org,
  master: MasterKeys,
  issuer: string,
  before: OidcSettings | undefined,
): Promise<string> {
  if (before?.issuer === issuer) return await openOidcSecret(org, master, before);
  const message = 'Another issuer takes the client’s secret again.';
  throw new Refusal('invalid_request', message, { field: 'clientSecret' });
}

/** How an org signs in; undefined when it has no identity provider. */
export async function readOidc(org: Org): Promise<OidcSettings | undefined> {
  const row = await org.first(
    'select issuer, client_id, secret, domains from oidc_settings where org_id = ?1',
  );
  return (
    row && {
      issuer: String(row.issuer),
      clientId: String(row.client_id),
      secret: String(row.secret),
      domains: JSON.parse(String(row.domains)) as string[],
    }
  );
}

/** The client's secret in clear. @throws {SealError} when it can't be opened. */
export async function openOidcSecret(
  org: Org,
  master: MasterKeys,
  { issuer, secret }: OidcSettings,
): Promise<string> {
  const key = await org.first('select wrapped from org_keys where org_id = ?1');
  return await open(master, String(key?.wrapped), secretPlace(org.id, issuer), secret);
}

/** Takes an org's identity provider away. @returns false when it doesn't have this one. */
export async function deleteOidc(org: Org, actor: Actor, issuer: string): Promise<boolean> {
  const before = shown(await readOidc(org));
  const [deleted] = await org.write(
    org.statement('delete from oidc_settings where org_id = ?1 and issuer = ?2', issuer),
    auditEntry(
      org,
      actor,
      'sign_in.update',
      org.id,
      { removed: true },
      { before, ifChanged: true },
    ),
  );
  return deleted!.changes > 0;
}

/** How long a sign-in at an identity provider may take. */
export const ATTEMPT_MS = 10 * 60_000;

/** What a sign-in under way has to come back with. */
export interface OidcAttempt {
  /** Known to the browser; kept by hash. */
  readonly state: string;
  readonly nonce: string;
  /** The PKCE verifier (RFC 7636). */
  readonly verifier: string;
}

/** Begins a sign-in at an org's identity provider. */
export async function beginOidc(org: Org, attempt: OidcAttempt, now: number): Promise<void> {
  await org.write(
    org.statement('delete from oidc_attempts where org_id = ?1 and expires_at <= ?2', now),
    org.statement(
      `insert into oidc_attempts (org_id, state_hash, nonce, verifier, created_at, expires_at)
       values (?1, ?2, ?3, ?4, ?5, ?6)`,
      hashToken(attempt.state),
      attempt.nonce,
      attempt.verifier,
      now,
      now + ATTEMPT_MS,
    ),
  );
}

/**
 * Ends a sign-in by the state that came back, once. This is how the answer finds its org.
 *
 * @returns undefined for a state that is unknown, expired or used.
 */
export async function takeOidc(
  db: Database,
  state: string,
  now: number,
): Promise<(OidcAttempt & { readonly orgId: OrgId }) | undefined> {
  const [taken] = await db.write([
    {
      sql: `delete from oidc_attempts where state_hash = ?1 and expires_at > ?2
        returning org_id, nonce, verifier`,
      args: [hashToken(state), now],
    },
  ]);
  const row = taken!.rows[0];
  return (
    row && {
      orgId: row.org_id as OrgId,
      state,
      nonce: String(row.nonce),
      verifier: String(row.verifier),
    }
  );
}

/**
 * The member that a subject of the org's identity provider is: the one linked before, or the one
 * with this address, who is linked now.
 *
 * @param email Verified by the provider, in its one spelling, of one of the org's domains; null
 *   otherwise, so that only a link made before counts.
 */
export async function identify(
  org: Org,
  issuer: string,
  subject: string,
  email: string | null,
  now: number,
): Promise<MemberId | undefined> {
  const [, found] = await org.write(
    org.statement(
      `insert into identities (org_id, issuer, subject, member_id, created_at)
       select ?1, ?2, ?3, m.id, ?5 from members m join users u on u.id = m.user_id
       where m.org_id = ?1 and u.email = ?4
       on conflict do nothing`,
      issuer,
      subject,
      email,
      now,
    ),
    org.statement(
      `select member_id from identities where org_id = ?1 and issuer = ?2 and subject = ?3`,
      issuer,
      subject,
    ),
  );
  return found!.rows[0]?.member_id as MemberId | undefined;
}
