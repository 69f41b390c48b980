/** Cookies of people who sign in: RFC 6265bis, with the prefix that no other host can set. */

import type { Services } from '../services.ts';

/** The cookie of a session, and that of a sign-in at an identity provider which is under way. */
export const SESSION_COOKIE = 'rungate';
export const ATTEMPT_COOKIE = 'rungate-oidc';

/** The prefix says: set over https, by this very host, for all of it. */
const PREFIX = '__Host-';

/** A development server on plain http, where browsers take no cookie with the prefix. */
function isPlain({ config }: Pick<Services, 'config'>, { headers }: Request): boolean {
  const isSecure = config.isProduction || config.publicUrl?.startsWith('https:');
  return !isSecure && headers.get('x-forwarded-proto') !== 'https';
}

/** The value of a cookie that was set by {@link writeCookie}, if it came along. */
export function readCookie(
  services: Pick<Services, 'config'>,
  request: Request,
  name: string,
): string | undefined {
  const cookies = (request.headers.get('cookie') ?? '').split(/;\s*/);
  const names = isPlain(services, request) ? [PREFIX + name, name] : [PREFIX + name];
  for (const each of names) {
    const cookie = cookies.find((text) => text.startsWith(`${each}=`));
    if (cookie) return cookie.slice(each.length + 1);
  }
  return undefined;
}

/**
 * Sets a cookie that scripts can't read and that other sites' forms don't bring along.
 *
 * @param value Base64url; empty, with `maxAgeS` 0, to take the cookie away.
 */
export function writeCookie(
  services: Pick<Services, 'config'>,
  request: Request,
  response: Response,
  [name, value, maxAgeS]: readonly [name: string, value: string, maxAgeS: number],
): void {
  const attributes = `Path=/; Max-Age=${maxAgeS}; HttpOnly; SameSite=Lax`;
  const cookie = isPlain(services, request)
    ? `${name}=${value}; ${attributes}`
    : `${PREFIX}${name}=${value}; ${attributes}; Secure`;
  response.headers.append('set-cookie', cookie);
}
