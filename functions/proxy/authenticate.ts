/** Step 1: who is calling. */

import { forOrg, type Org } from '../../db/org.ts';
import { newId } from '../../db/seal.ts';
import {
  type Credential,
  type CredentialAgent,
  findCredential,
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
}

/** The id of a request, which its response and its log lines carry. */
const requestIds = new WeakMap<Request, string>();

/** The id of a request; the same one whenever it is asked for. */
export function requestIdOf(request: Request): string {
  let id = requestIds.get(request);
  if (!id) requestIds.set(request, (id = newId('request')));
  return id;
}

/** The error format of a caller whose route doesn't tell: Anthropic's clients send its headers. */
export function dialectOf(request: Request): Dialect {
  const { headers } = request;
  return headers.has('anthropic-version') || headers.has('x-api-key') ? 'anthropic' : 'openai';
}

/**
 * Finds the agent of the token in `Authorization` or `x-api-key`. A token with a wrong checksum is
 * refused without a read; all others are read anew, so that a revocation counts at once.
 *
 * @throws {Refusal} `invalid_token`, `permission_denied`, `agent_suspended`.
 */
export async function authenticate(
  services: Services,
  request: Request,
  action: AgentAction,
): Promise<Caller> {
  const text = tokenOf(request.headers);
  if (!text || !readToken(text)) throw unknownToken();
  const credential = await findCredential(services.db, text);
  const now = services.now();
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
  await touchToken(org, credential, now);
  return {
    services,
    request,
    requestId: requestIdOf(request),
    startedAt: now,
    org,
    credential,
    agent,
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
