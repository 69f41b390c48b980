/** The beginning of a session, in whichever way a person has proven who he is. */

import type { Org } from '../../db/org.ts';
import { MAX_SESSION_MS, openSession, type SignInMethod } from '../../db/sessions.ts';
import { Refusal } from '../../schema/errors.ts';
import type { MemberId } from '../../schema/ids.ts';
import { addressOf, respond } from '../edge.ts';
import type { Services } from '../services.ts';
import { SESSION_COOKIE, writeCookie } from './cookies.ts';
import { rootOf } from './form.ts';

/**
 * Opens a session and sends the browser to the page that says whose it is.
 *
 * @throws {Refusal} `permission_denied` for who is no member any more.
 */
export async function welcome(
  services: Services,
  request: Request,
  org: Org,
  member: MemberId,
  method: SignInMethod,
): Promise<Response> {
  const address = addressOf(services, request);
  const userAgent = request.headers.get('user-agent') ?? undefined;
  const opened = await openSession(org, member, { method, address, userAgent }, services.now());
  if (!opened) throw new Refusal('permission_denied', 'You are no member of this org any more.');
  const response = redirectTo(`${rootOf(request)}sign-in/me`);
  const maxAgeS = MAX_SESSION_MS / 1_000;
  writeCookie(services, request, response, [SESSION_COOKIE, opened.secret, maxAgeS]);
  return response;
}

/** Sends a browser on, with GET (RFC 9110, 15.4.4). */
export function redirectTo(location: string): Response {
  return respond(null, 303, { location, 'cache-control': 'no-store' });
}
