/** What browsers send: where they say that it is from, and forms. */

import { Refusal } from '../schema/errors.ts';
import { readBody } from './proxy/body.ts';
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

const FORM_LIMITS = { maxEncodedBytes: 16_384, maxDecodedBytes: 16_384 };

/**
 * Reads a form that a page of this deployment has sent.
 *
 * @param rule What the refusal of another site's is called.
 * @throws {Refusal} `permission_denied` for one of another site, `invalid_request` for another
 *   content type, `body_too_large`.
 */
export async function readForm(
  services: Pick<Services, 'config'>,
  request: Request,
  rule: string,
): Promise<URLSearchParams> {
  refuseOtherSites(services, request, rule);
  const type = request.headers.get('content-type')?.split(';')[0]?.trim().toLowerCase();
  const bytes = await readBody(request, FORM_LIMITS);
  if (bytes.length > 0 && type !== 'application/x-www-form-urlencoded') {
    const message = 'Send the form as application/x-www-form-urlencoded.';
    throw new Refusal('invalid_request', message, { field: 'content-type' });
  }
  return new URLSearchParams(new TextDecoder().decode(bytes));
}
