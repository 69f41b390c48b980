/** Who is calling. */

import { DatabaseError } from '../../db/client.ts';
import { countUse } from '../../db/limits.ts';
import { forOrg, type Org } from '../../db/org.ts';
import { hashToken, newId } from '../../db/seal.ts';
import {
  type Credential,
  type CredentialAgent,
  findCredential,
  isTouched,
  touchToken,
} from '../../db/tokens.ts';
import { addressBlock } from '../../schema/address.ts';
import { type Dialect, Refusal } from '../../schema/errors.ts';
import type { AgentAction } from '../../schema/roles.ts';
import type { Catalogue } from '../../schema/rules/catalogue.ts';
import { type Quota, retryAfterSOf, usedUpStateOf } from '../../schema/rules/limit.ts';
import { readToken } from '../../schema/token.ts';
import { addressOf } from '../edge.ts';
import type { Services } from '../services.ts';

/** A caller whose token is good for what it asks. */
export interface Caller {
  readonly services: Services;
  readonly request: Request;
  readonly requestId: string;
  /** Unix milliseconds. */
  readonly startedAt: number;
  readonly org: Org;
  readonly credential: Credential;
  readonly agent: CredentialAgent;
  /** The prices that are in force when the call comes, by which it is held and settled. */
  readonly catalogue: Catalogue;
  /** Whether the credential was known from an earlier call; see {@link Outdated}. */
  readonly isRemembered: boolean;
}

/**
 * What was remembered no longer holds. Nothing has been refused, recorded or sent on its account:
 * the call is taken up again on facts that are read anew.
 */
export class Outdated extends Error {
  override readonly name = 'Outdated';
}

/** How often facts may change under a call that reads them anew before it gives up. */
const READINGS = 3;

/**
 * Acts on facts, and again on such as are read anew, where they turn out to be outdated.
 *
 * @throws {Refusal} `unavailable` when they change faster than they can be read; and as `act` and
 *   `renew` do.
 */
export async function onFacts<Facts, Outcome>(
  facts: Facts,
  renew: (facts: Facts) => Promise<Facts>,
  act: (facts: Facts) => Promise<Outcome>,
): Promise<Outcome> {
  for (let reading = 0; ; reading++) {
    try {
      return await act(facts);
    } catch (error) {
      if (!(error instanceof Outdated)) throw error;
    }
    if (reading === READINGS) {
      throw new Refusal('unavailable', 'Too much changed meanwhile; try again.');
    }
    facts = await renew(facts);
  }
}

/** The id of a request, which its response and its log lines carry. */
const requestIds = new WeakMap<Request, string>();

/** The id of a request; the same one whenever it is asked for. */
export function requestIdOf(request: Request): string {
  let id = requestIds.get(request);
  if (!id) {
    id = newId('request');
    requestIds.set(request, id);
  }
  return id;
}

/** The error format of a caller whose route doesn't tell: Anthropic's clients send its headers. */
export function dialectOf(request: Request): Dialect {
  const { headers } = request;
  return headers.has('anthropic-version') || headers.has('x-api-key') ? 'anthropic' : 'openai';
}

/**
 * Finds the agent of the token in `Authorization` or `x-api-key`. A token with a wrong checksum is
 * refused without a read. A call that will hold money may go by what is remembered of its token,
 * since that write confirms it; all others read the token anew. Either way a revocation counts at
 * once. An address that fails too often is told to wait; a good token from it is still served.
 *
 * @param mayRemember Whether the caller lets the write that holds its money confirm the token.
 * @throws {Refusal} `invalid_token`, `rate_limited`, `permission_denied`, `agent_suspended`.
 */
export async function authenticate(
  services: Services,
  request: Request,
  action: AgentAction,
  mayRemember = false,
): Promise<Caller> {
  const text = tokenOf(request.headers);
  if (!text || !readToken(text)) return refuseToken(services, request);
  const hash = hashToken(text);
  const now = services.now();
  const known = mayRemember ? services.memory.credentials.get(hash) : undefined;
  const isRemembered = known !== undefined && isTouched(known, now);
  const credential = isRemembered ? known : await findCredential(services.db, hash);
  if (!credential || credential.revokedAt !== null || expired(credential, now)) {
    return refuseToken(services, request);
  }
  refuseSuspended(credential);
  const { agent } = credential;
  if (!agent || !credential.actions.includes(action)) {
    throw new Refusal('permission_denied', `This token does not permit ${action}.`, {
      rule: 'token.actions',
      asked: action,
      allowed: credential.actions,
    });
  }
  if (agent.suspendedAt !== null) {
    throw new Refusal('agent_suspended', `The agent "${agent.name}" is suspended.`, {
      rule: 'agent.suspended',
    });
  }
  const org = forOrg(services.db, credential.orgId);
  if (!isRemembered) {
    services.memory.credentials.set(hash, { ...credential, lastUsedAt: now });
    await touchToken(org, credential, now);
  }
  return {
    services,
    request,
    requestId: requestIdOf(request),
    startedAt: now,
    org,
    credential,
    agent,
    catalogue: services.catalogues.inForce(now),
    isRemembered,
  };
}

/**
 * The token of a request. Some clients send a provider's key beside the Rungate token: only what
 * looks like ours counts, and two different ones are refused rather than chosen from.
 */
function tokenOf(headers: Headers): string | undefined {
  const bearer = /^bearer +(.*)$/i.exec(headers.get('authorization') ?? '')?.[1]?.trim();
  const apiKey = headers.get('x-api-key')?.trim();
  const tokens = [bearer, apiKey].filter((text) => text?.startsWith('rg_'));
  return tokens.length === 2 && tokens[0] !== tokens[1] ? undefined : tokens[0];
}

function expired(credential: Credential, now: number): boolean {
  return credential.expiresAt !== null && credential.expiresAt <= now;
}

/** How often an address may fail before it is told to wait. */
const FAILURES: Quota = {
  ...{ kind: 'failures', name: 'address-failures-60s' },
  ...{ windowMs: 60_000, most: 120 },
};

/**
 * Counts the failure against its address.
 *
 * @throws {Refusal} `invalid_token`, or `rate_limited` for an address that has failed too often.
 */
async function refuseToken(services: Services, request: Request): Promise<never> {
  const waitMs = await failureWaitMs(services, request);
  if (waitMs === 0) {
    throw new Refusal(
      'invalid_token',
      'The Rungate token is missing, mistyped, expired or revoked; send a valid rg_agt_… token as the API key.',
    );
  }
  const state = usedUpStateOf(FAILURES, waitMs);
  throw new Refusal(
    'rate_limited',
    `Too many requests from this address had no valid token; try again in ${state.resetS} s.`,
    { rule: 'address.failures', limits: [state], retryAfterS: retryAfterSOf(state) },
  );
}

/** How long the caller's address has to wait; 0 for a failure that was counted or names nobody. */
async function failureWaitMs(services: Services, request: Request): Promise<number> {
  const { headers } = request;
  const hasTried = headers.has('authorization') || headers.has('x-api-key');
  if (!hasTried) return 0;
  const { failures } = services.memory;
  const address = addressOf(services, request);
  const block = address === undefined ? 'unknown' : addressBlock(address);
  const now = services.now();
  const until = failures.get(block) ?? 0;
  if (until > now) return until - now;
  const waitMs = await countUse(services.db, block, FAILURES, now).catch(uncounted);
  if (waitMs > 0) failures.set(block, now + waitMs);
  return waitMs;
}

/** What is refused by its form alone is refused without a database too. */
function uncounted(error: unknown): 0 {
  if (error instanceof DatabaseError) return 0;
  throw error;
}

/**
 * The credential of a request's token, of whatever kind, read anew.
 *
 * @throws {Refusal} `invalid_token`, `rate_limited`, `permission_denied` of a suspended org.
 */
export async function readCredential(services: Services, request: Request): Promise<Credential> {
  const text = tokenOf(request.headers);
  const isOurs = text !== undefined && readToken(text) !== undefined;
  const credential = isOurs ? await findCredential(services.db, hashToken(text)) : undefined;
  const isGood = credential?.revokedAt === null && !expired(credential, services.now());
  if (!isGood) return await refuseToken(services, request);
  refuseSuspended(credential);
  return credential;
}

/** @throws {Refusal} `permission_denied` when the operator of the platform has suspended the org. */
function refuseSuspended({ orgSuspendedAt }: Credential): void {
  if (orgSuspendedAt === null) return;
  throw new Refusal('permission_denied', 'The org of this token is suspended.', {
    rule: 'org.suspended',
  });
}
