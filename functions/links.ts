/** Signed links: whoever holds one may decide on one gate, once, until the gate expires. */

import { errors, jwtVerify, SignJWT } from 'jose';
import type { Database } from '../db/client.ts';
import { forOrg, type Org } from '../db/org.ts';
import { type MasterKeys, newId, SealError } from '../db/seal.ts';
import { openVault, type Vault } from '../db/vault.ts';
import { type GateId, isId, type OrgId } from '../schema/ids.ts';
import type { Config } from './config.ts';

const ALGORITHM = 'HS256';
const TYPE = 'rungate-approval+jwt';
const ISSUER = 'rungate';
/** What the signing secret is derived for, and what a link is good for. */
const USE = 'approval link';
const MAX_LINK_CHARS = 2_000;

/** Where people reach this deployment, without a trailing slash. */
export function baseUrl({ publicUrl, host, port }: Config): string {
  return publicUrl ?? `http://${host.includes(':') ? `[${host}]` : host}:${port}`;
}

/**
 * Signs a link to decide on a gate: a JWT (RFC 7519) under a secret of the org.
 *
 * @param gate Its id, and when it expires in Unix milliseconds.
 * @param holder Whom it is made for: a member's id, or `operator`; null where that isn't known.
 * @param id The link's own id; links that differ in nothing are the same text.
 */
export async function signLink(
  config: Config,
  org: Org,
  vault: Vault,
  gate: { readonly id: GateId; readonly expiresAt: number },
  holder: string | null,
  now: number,
  id: string = newId('link', now),
): Promise<string> {
  const token = await new SignJWT({ org: org.id, holder })
    .setProtectedHeader({ alg: ALGORITHM, typ: TYPE })
    .setIssuer(ISSUER)
    .setAudience(USE)
    .setSubject(gate.id)
    .setJti(id)
    .setIssuedAt(Math.floor(now / 1_000))
    .setExpirationTime(Math.ceil(gate.expiresAt / 1_000))
    .sign(await vault.secret(USE));
  return `${baseUrl(config)}/approvals/${token}`;
}

/** What it takes to verify a link. */
export interface LinkParts {
  readonly db: Database;
  readonly master: MasterKeys;
  /** Unix milliseconds. */
  readonly now: () => number;
}

/** What a link lets its holder decide on. */
export interface Link {
  readonly org: Org;
  readonly vault: Vault;
  readonly gateId: GateId;
  /** Its own id, which goes for the decider's. */
  readonly id: string;
  /** Whom it was made for; null where that isn't known, as of links of earlier versions. */
  readonly holder: string | null;
}

/** Why a link can't be used. */
export class LinkError extends Error {
  override readonly name = 'LinkError';
  readonly code: 'invalid' | 'expired';

  constructor(code: LinkError['code'], message: string) {
    super(message);
    this.code = code;
  }
}

/**
 * Verifies the token of a link.
 *
 * @throws {LinkError} for one that is altered, of another use, or too old.
 */
export async function openLink({ db, master, now }: LinkParts, token: string): Promise<Link> {
  const org = forOrg(db, orgOf(token));
  try {
    const vault = await openVault(org, master);
    const { payload } = await jwtVerify(token, await vault.secret(USE), {
      algorithms: [ALGORITHM],
      typ: TYPE,
      issuer: ISSUER,
      audience: USE,
      requiredClaims: ['sub', 'jti', 'exp', 'iat'],
      currentDate: new Date(now()),
    });
    const { sub = '', jti = '', holder } = payload;
    if (payload.org !== org.id || !isId('gate', sub)) throw invalid();
    return {
      org,
      vault,
      gateId: sub,
      id: jti,
      holder: typeof holder === 'string' ? holder : null,
    };
  } catch (error) {
    if (error instanceof LinkError) throw error;
    if (error instanceof errors.JWTExpired) {
      throw new LinkError('expired', 'This link has expired.');
    }
    throw error instanceof errors.JOSEError || error instanceof SealError ? invalid() : error;
  }
}

/** The org that a token says it is of; nothing is believed of it until its signature is checked. */
function orgOf(token: string): OrgId {
  try {
    if (token.length > MAX_LINK_CHARS) throw invalid();
    const [, payload = ''] = token.split('.');
    const text = new TextDecoder().decode(
      Uint8Array.fromBase64(payload, { alphabet: 'base64url' }),
    );
    const { org } = JSON.parse(text) as { org?: unknown };
    if (typeof org === 'string' && isId('org', org)) return org;
  } catch {
    // Told like any other token that nobody signed.
  }
  throw invalid();
}

function invalid(): LinkError {
  return new LinkError('invalid', 'This link is not valid.');
}
