/** Where a browser says that a request was sent from. */

import { Refusal } from '../schema/errors.ts';
import type { Services } from './services.ts';

/**
 * Refuses what a browser says that another site has sent; programs that are no browser say nothing.
 *
 * @param rule What the refusal is called.
 * @throws {Refusal} `permission_denied`.
 */
export function refuseOtherSites(
  { config }: Pick<Services, 'config'>,
  { headers, url }: Request,
  rule: string,
): void {
  const origin = headers.get('origin');
  const hosts = [url, config.publicUrl].flatMap((known) => (known ? [new URL(known).host] : []));
  const isForeign = origin !== null && !hosts.includes(URL.parse(origin)?.host ?? '');
  if (isForeign || isFromElsewhere(headers)) {
    throw new Refusal('permission_denied', 'Send this from the page of Rungate itself.', { rule });
  }
}

/** Whether a browser says that another site has sent it here (W3C Fetch Metadata). */
export function isFromElsewhere(headers: Headers): boolean {
  const site = headers.get('sec-fetch-site');
  return site !== null && site !== 'same-origin' && site !== 'none';
}
