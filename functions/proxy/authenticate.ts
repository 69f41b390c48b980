/** Step 1: who is calling. */

import { forOrg, type Org } from '../../db/org.ts';
import { hashToken, newId } from '../../db/seal.ts';
import {
  type Credential,
  type CredentialAgent,
  findCredential,
  isTouched,
  touchToken,
} from '../../db/tokens.ts';
import { type Dialect, Refusal } from '../../schema/errors.ts';
import type { AgentAction } from '../../schema/roles.ts';
import { readToken } from '../../schema/token.ts';
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
 * once.
 *
 * @param mayRemember Whether the caller lets the write that holds its money confirm the token.
 * @throws {Refusal} `invalid_token`, `permission_denied`, `agent_suspended`.
 */
export async function authenticate(
  services: Services,
  request: Request,
  action: AgentAction,
  mayRemember = false,
): Promise<Caller> {
  const text = tokenOf(request.headers);
  if (!text || !readToken(text)) throw unknownToken();
  const hash = hashToken(text);
  const now = services.now();
  const known = mayRemember ? services.memory.credentials.get(hash) : undefined;
  const isRemembered = known !== undefined && isTouched(known, now);
  const credential = isRemembered ? known : await findCredential(services.db, hash);
  if (!credential || credential.revokedAt !== null || expired(credential, now))
    throw unknownToken();
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

function unknownToken(): Refusal {
  return new Refusal(
    'invalid_token',
    'The Rungate token is missing, mistyped, expired or revoked; send a valid rg_agt_… token as the API key.',
  );
}
