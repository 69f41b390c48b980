/** Admins: who calls the admin routes, by token or by session, and whether he may do what is asked. */

import { type Principal, refuse } from '../db/audit.ts';
import { countUse } from '../db/limits.ts';
import { forOrg, type Org } from '../db/org.ts';
import { findSession } from '../db/sessions.ts';
import { isTouched, touchToken } from '../db/tokens.ts';
import { Refusal } from '../schema/errors.ts';
import type { Viewer } from '../schema/graphql/context.ts';
import { type AdminAction, actionsOf, isAdminAction } from '../schema/roles.ts';
import { type Quota, retryAfterSOf, usedUpStateOf } from '../schema/rules/limit.ts';
import { addressOf } from './edge.ts';
import { readCredential, requestIdOf } from './proxy/authenticate.ts';
import type { Services } from './services.ts';
import { readCookie, SESSION_COOKIE } from './signin/cookies.ts';
import { refuseOtherSites } from './sites.ts';

/** An admin: his org, who he is on the audit trail, and what he may do. */
export interface Admin {
  readonly org: Org;
  readonly actor: Principal;
  readonly viewer: Viewer;
}

/**
 * Finds who calls: the admin token in `Authorization: Bearer rg_adm_…`, else the session of the
 * cookie; both are read anew. What changes anything by a cookie comes from a page of Rungate's own.
 * The request counts against the limit of the token or session, over all processes.
 *
 * @throws {Refusal} `invalid_token`, `rate_limited`, `permission_denied`.
 */
export async function identifyAdmin(services: Services, request: Request): Promise<Admin> {
  const secret = sessionSecret(services, request);
  const admin =
    secret === undefined
      ? await identifyByToken(services, request)
      : await identifyBySession(services, request, secret);
  await countRequest(services, admin.viewer);
  return admin;
}

/** @throws {Refusal} `rate_limited` for a token or session that has asked too often. */
async function countRequest(services: Services, { tokenId, sessionId }: Viewer): Promise<void> {
  const quota: Quota = {
    ...{ kind: 'admin_requests', name: 'admin-requests-60s', windowMs: 60_000 },
    most: services.config.adminRequestsPerMinute,
  };
  const waitMs = await requestWaitMs(services, String(tokenId ?? sessionId), quota);
  if (waitMs === 0) return;
  const state = usedUpStateOf(quota, waitMs);
  const who = tokenId === null ? 'This session' : 'This token';
  throw new Refusal('rate_limited', `${who} asks too often; try again in ${state.resetS} s.`, {
    ...{ rule: 'admin.requests', limits: [state], retryAfterS: retryAfterSOf(state) },
  });
}

/** What a flood is refused by is remembered, so that it writes nothing. */
async function requestWaitMs(
  { db, memory, now }: Services,
  subject: string,
  quota: Quota,
): Promise<number> {
  const [at, until = 0] = [now(), memory.admins.get(subject)];
  if (until > at) return until - at;
  const waitMs = await countUse(db, subject, quota, at);
  if (waitMs > 0) memory.admins.set(subject, at + waitMs);
  return waitMs;
}

/**
 * Finds who calls, and refuses and records what he may not do.
 *
 * @param target What the action is on, for the record.
 * @throws {Refusal} as {@link identifyAdmin}.
 */
export async function authenticateAdmin(
  services: Services,
  request: Request,
  action: AdminAction,
  target: string,
): Promise<Admin> {
  const admin = await identifyAdmin(services, request);
  if (admin.viewer.actions.has(action)) return admin;
  return await refuse(admin.org, admin.actor, action, target, notPermitted(action));
}

async function identifyByToken(services: Services, request: Request): Promise<Admin> {
  const credential = await readCredential(services, request);
  const org = forOrg(services.db, credential.orgId);
  if (credential.kind !== 'admin') {
    const message = "This token is an agent's; use an rg_adm_… token.";
    throw new Refusal('permission_denied', message, { rule: 'token.kind' });
  }
  const { expiresAt, tokenId, member } = credential;
  const actions = credential.actions.filter(isAdminAction);
  const now = services.now();
  if (!isTouched(credential, now)) await touchToken(org, credential, now);
  return {
    org,
    actor: {
      ...{ kind: 'token', id: tokenId, tokenId, actions },
      ...(member && { memberId: member.id, role: member.role }),
      ...(expiresAt === null ? {} : { endsAt: expiresAt }),
      ...seenFrom(services, request),
    },
    viewer: {
      ...{ tokenId, sessionId: null, actions: new Set(actions) },
      ...{ memberId: member?.id ?? null, role: member?.role ?? null },
    },
  };
}

async function identifyBySession(
  services: Services,
  request: Request,
  secret: string,
): Promise<Admin> {
  if (request.method !== 'GET') refuseOtherSites(services, request, 'session.origin');
  const session = await findSession(services.db, secret, services.now());
  if (!session) throw new Refusal('invalid_token', 'The session has ended; sign in again.');
  if (session.orgSuspendedAt !== null) {
    throw new Refusal('permission_denied', 'The org is suspended.', { rule: 'org.suspended' });
  }
  const { memberId, role, userId } = session;
  const actions = actionsOf(role);
  return {
    org: forOrg(services.db, session.orgId),
    actor: { kind: 'user', id: userId, memberId, role, actions, ...seenFrom(services, request) },
    viewer: { memberId, role, actions: new Set(actions), tokenId: null, sessionId: session.id },
  };
}

/** What the audit trail keeps of where a request came from. */
export function seenFrom(services: Services, request: Request) {
  const address = addressOf(services, request);
  const userAgent = request.headers.get('user-agent');
  return {
    requestId: requestIdOf(request),
    ...(address === undefined ? {} : { address }),
    ...(userAgent === null ? {} : { userAgent }),
  };
}

/** The session's secret from the cookie, if there is one and no token comes before it. */
export function sessionSecret(services: Services, request: Request): string | undefined {
  if (request.headers.has('authorization')) return undefined;
  return readCookie(services, request, SESSION_COOKIE);
}

function notPermitted(action: AdminAction): Refusal {
  const message = `This token does not permit ${action}; use an rg_adm_… token that does.`;
  return new Refusal('permission_denied', message, { rule: 'token.actions', asked: action });
}
