/**
 * Signing in through an org's identity provider: OpenID Connect Core 1.0 with the code flow, PKCE
 * (RFC 7636), and the issuer's name in the answer (RFC 9207) where the provider sends it.
 */

import { html } from 'hono/html';
import {
  allowInsecureRequests,
  authorizationCodeGrant,
  buildAuthorizationUrl,
  ClientSecretBasic,
  ClientSecretPost,
  Configuration,
  type CustomFetch,
  calculatePKCECodeChallenge,
  customFetch,
  discovery,
  enableNonRepudiationChecks,
  fetchUserInfo,
  type IDToken,
  randomNonce,
  randomPKCECodeVerifier,
  randomState,
  type ServerMetadata,
} from 'openid-client';
import { type Principal, refuse } from '../../db/audit.ts';
import { acceptInvitationOf } from '../../db/invitations.ts';
import { forOrg, type Org } from '../../db/org.ts';
import { findOrg } from '../../db/orgs.ts';
import {
  ATTEMPT_MS,
  beginOidc,
  identify,
  type OidcAttempt,
  type OidcSettings,
  openOidcSecret,
  readOidc,
  takeOidc,
} from '../../db/signin.ts';
import { judgeUrl } from '../../schema/address.ts';
import { domainOf, normalizeEmail } from '../../schema/email.ts';
import { Refusal } from '../../schema/errors.ts';
import type { MemberId } from '../../schema/ids.ts';
import { seenFrom } from '../admin.ts';
import { baseUrl } from '../links.ts';
import type { Services } from '../services.ts';
import { isFromElsewhere } from '../sites.ts';
import { ATTEMPT_COOKIE, readCookie, writeCookie } from './cookies.ts';
import { countTry, onPage, type Page } from './form.ts';
import { redirectTo, welcome } from './session.ts';

const CALLBACK = '/sign-in/oidc/callback';
const SCOPE = 'openid email';
/** Signatures by a key that the provider alone has: no secret shared with it, and never none. */
const ALGORITHMS = ['RS256', 'PS256', 'ES256', 'ES384', 'ES512', 'EdDSA', 'Ed25519'];
const TIMEOUTS = { connectMs: 5_000, firstByteMs: 10_000, idleMs: 10_000 };
const MAX_ANSWER_BYTES = 512 * 1024;
const TIMEOUT_S = 15;
const MAX_SLUG_CHARS = 60;

/**
 * `GET /sign-in/oidc?org={slug}`: a page with a link to the provider's; a form could not be sent on
 * to another host.
 */
export function showProvider(_services: Services, request: Request): Promise<Response> {
  return onPage(request, async () => {
    const slug = (new URL(request.url).searchParams.get('org') ?? '').trim().toLowerCase();
    if (!isSlug(slug)) {
      throw new Refusal('invalid_request', 'Type the short name of your org.', { field: 'org' });
    }
    return confirmation(slug, `oidc/${slug}`);
  });
}

function confirmation(slug: string, path: string): Page {
  return {
    title: `Sign in to ${slug}`,
    body: html`<p><a href="${path}">Go on to the identity provider of ${slug}</a></p>`,
  };
}

function isSlug(text: string): boolean {
  return text.length <= MAX_SLUG_CHARS && /^[a-z0-9-]+$/.test(text);
}

/** `GET /sign-in/oidc/{slug}`: sends the browser to the org's identity provider. */
export function beginAtProvider(
  services: Services,
  request: Request,
  slug: string,
): Promise<Response> {
  return onPage(request, async () => {
    // Another site must not sign anybody in to an org of its choice.
    if (isFromElsewhere(request.headers)) return confirmation(slug, slug);
    await countTry(services, request);
    const org = isSlug(slug) ? await findOrg(services.db, slug) : undefined;
    const settings = org && (await readOidc(org));
    if (!org || !settings) {
      throw new Refusal('not_found', 'There is no org of that name with an identity provider.');
    }
    const attempt = {
      ...{ state: randomState(), nonce: randomNonce(), verifier: randomPKCECodeVerifier() },
    };
    const url = await reach(services, async () =>
      authorizationUrl(services, await openClient(services, org, settings), attempt),
    );
    const response = redirectTo(url);
    await beginOidc(org, attempt, services.now());
    // Whoever comes back with this state must be the browser that was sent.
    const cookie = [ATTEMPT_COOKIE, attempt.state, ATTEMPT_MS / 1_000] as const;
    writeCookie(services, request, response, cookie);
    return response;
  });
}

async function authorizationUrl(
  { config }: Services,
  client: Configuration,
  { state, nonce, verifier }: OidcAttempt,
): Promise<string> {
  const url = buildAuthorizationUrl(client, {
    ...{ redirect_uri: baseUrl(config) + CALLBACK, scope: SCOPE, state, nonce },
    code_challenge: await calculatePKCECodeChallenge(verifier),
    code_challenge_method: 'S256',
  });
  if (judgeUrl(url.href, config.egressAllow) === undefined) return url.href;
  throw new Refusal('upstream_failed', 'The identity provider names a page that is not public.');
}

/** What goes wrong with the provider is told as its failure, and logged with its cause. */
async function reach<T>({ log }: Services, act: () => Promise<T>): Promise<T> {
  try {
    return await act();
  } catch (error) {
    if (error instanceof Refusal) throw error;
    log.info('an identity provider failed', { error });
    const message = 'The identity provider could not be reached, or is not set up as its org says.';
    throw new Refusal('upstream_failed', message, { rule: 'sign_in.provider' });
  }
}

/** The provider as it describes itself, held to our algorithms. */
async function openClient(
  services: Services,
  org: Org,
  settings: OidcSettings,
): Promise<Configuration> {
  const { issuer, clientId } = settings;
  const secret = await openOidcSecret(org, services.master, settings);
  const fetchThrough = throughEgress(services);
  // The egress lets http through only to hosts that the operator has allowed.
  const execute = new URL(issuer).protocol === 'http:' ? [allowInsecureRequests] : [];
  const options = { [customFetch]: fetchThrough, timeout: TIMEOUT_S, execute };
  const found = await discovery(new URL(issuer), clientId, secret, undefined, options);
  const { supportsPKCE: _, ...server } = found.serverMetadata();
  const offered = server.id_token_signing_alg_values_supported ?? ['RS256'];
  const client = new Configuration(
    {
      ...server,
      id_token_signing_alg_values_supported: offered.filter((name) => ALGORITHMS.includes(name)),
    },
    clientId,
    secret,
    authenticationAt(server)(secret),
  );
  client[customFetch] = fetchThrough;
  client.timeout = TIMEOUT_S;
  // The signature is checked although the token comes straight from the provider.
  for (const apply of [enableNonRepudiationChecks, ...execute]) apply(client);
  return client;
}

/** How the client proves itself: OpenID Connect Discovery 1.0, 3 has basic for the default. */
function authenticationAt({ token_endpoint_auth_methods_supported: methods }: ServerMetadata) {
  const isBasic = methods?.includes('client_secret_basic') ?? true;
  return isBasic ? ClientSecretBasic : ClientSecretPost;
}

/** The issuer, and every URL that it names, is given by a user. */
function throughEgress({ egress }: Services): CustomFetch {
  return async (url, { method, headers, body, signal }) => {
    const bytes = body ? await new Response(body as BodyInit).bytes() : undefined;
    const init = { method, headers, body: bytes, signal, timeouts: TIMEOUTS };
    const answer = await egress(new URL(url), init);
    const content = await answer.bytes(MAX_ANSWER_BYTES);
    const { status } = answer;
    return new Response(content.length === 0 ? null : content, { status, headers: answer.headers });
  };
}

/** `GET /sign-in/oidc/callback`: takes the provider's answer and signs its subject in. */
export function returnFromProvider(services: Services, request: Request): Promise<Response> {
  return onPage(request, async () => {
    const attempt = await takeAttempt(services, request);
    const org = forOrg(services.db, attempt.orgId);
    const member = await recognize(services, request, org, attempt).catch((error: unknown) =>
      refuseSignIn(services, request, org, error),
    );
    const response = await welcome(services, request, org, member, 'oidc');
    writeCookie(services, request, response, [ATTEMPT_COOKIE, '', 0]);
    return response;
  });
}

/** @throws {Refusal} `permission_denied` for an answer to what this browser did not ask. */
async function takeAttempt(services: Services, request: Request) {
  const state = new URL(request.url).searchParams.get('state') ?? '';
  const isOurs = state !== '' && readCookie(services, request, ATTEMPT_COOKIE) === state;
  const attempt = isOurs ? await takeOidc(services.db, state, services.now()) : undefined;
  if (attempt) return attempt;
  await countTry(services, request);
  const message =
    'This sign-in was not begun in this browser, is used, or took too long; begin anew.';
  throw new Refusal('permission_denied', message, { rule: 'sign_in.state' });
}

/** Refusals of a known org are on its audit trail before the person hears of them. */
async function refuseSignIn(
  services: Services,
  request: Request,
  org: Org,
  error: unknown,
): Promise<never> {
  if (!(error instanceof Refusal)) throw error;
  const actor: Principal = { kind: 'link', id: 'oidc', ...seenFrom(services, request) };
  return await refuse(org, actor, 'session.create', org.id, error);
}

/** The member that the provider vouches for. */
async function recognize(
  services: Services,
  request: Request,
  org: Org,
  attempt: OidcAttempt,
): Promise<MemberId> {
  const settings = await readOidc(org);
  if (!settings) throw denied('provider', 'The org has no identity provider any more.');
  const claims = await redeem(services, request, org, settings, attempt);
  const email = vouchedEmail(claims, settings);
  const now = services.now();
  const known = await identify(org, claims.iss, claims.sub, email, now);
  if (known) return known;
  const joined = await acceptInvitationOf(services.db, org, email, now);
  if (!joined) throw denied('member', 'You are no member of this org; ask for an invitation.');
  await identify(org, claims.iss, claims.sub, email, now);
  return joined.memberId;
}

function denied(rule: string, message: string): Refusal {
  return new Refusal('permission_denied', message, { rule: `sign_in.${rule}` });
}

/** What the provider says of its subject. */
type Claims = Pick<IDToken, 'iss' | 'sub'> & {
  readonly email?: unknown;
  readonly email_verified?: unknown;
};

/** Redeems the code; issuer, audience, expiry, nonce and signature of the ID token are checked. */
async function redeem(
  services: Services,
  request: Request,
  org: Org,
  settings: OidcSettings,
  { state, nonce, verifier }: OidcAttempt,
): Promise<Claims> {
  const client = await reach(services, () => openClient(services, org, settings));
  const current = new URL(baseUrl(services.config) + CALLBACK + new URL(request.url).search);
  try {
    const checks = { expectedState: state, expectedNonce: nonce, pkceCodeVerifier: verifier };
    const tokens = await authorizationCodeGrant(client, current, checks);
    const claims = tokens.claims();
    if (!claims) throw new TypeError('no ID token');
    const { iss, sub } = claims;
    const isWhole = claims.email !== undefined || !client.serverMetadata().userinfo_endpoint;
    return isWhole
      ? claims
      : { ...(await fetchUserInfo(client, tokens.access_token, sub)), iss, sub };
  } catch (error) {
    services.log.info('an identity provider’s answer was refused', { error });
    throw denied('token', 'The identity provider’s answer is not valid; begin anew.');
  }
}

/** @returns the address in its one spelling, for which the provider may speak. */
function vouchedEmail(claims: Claims, { domains }: OidcSettings): string {
  const email = typeof claims.email === 'string' ? normalizeEmail(claims.email) : undefined;
  if (email === undefined || claims.email_verified !== true) {
    throw denied('email_verified', 'The identity provider has not verified your e-mail address.');
  }
  if (!domains.includes(domainOf(email))) {
    throw denied('domain', 'The identity provider may not speak for addresses of your domain.');
  }
  return email;
}
