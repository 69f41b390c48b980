/** What a provider key may be: its URL, its secret, and what is filled in. */

import { type AllowList, judgeUrl } from '../address.ts';
import { authHeaders, type Provider } from '../providers.ts';
import { SERVICE_TIERS } from './price.ts';

const MAX_URL_CHARS = 1_000;
const MAX_SECRET_CHARS = 4_096;

/**
 * Judges the base URL that a key is given.
 *
 * @param text `undefined` for the provider's own.
 * @returns what is wrong, as a clause after the field's name; undefined when nothing is.
 */
export function judgeBaseUrl(
  provider: Provider,
  text: string | undefined,
  allow: AllowList,
): string | undefined {
  if (provider.auth === 'none') return text === undefined ? undefined : 'must be left out';
  if (text === undefined) return provider.baseUrl ? undefined : 'is needed for this provider';
  if (text.length > MAX_URL_CHARS) return `must be at most ${MAX_URL_CHARS} characters`;
  const isPlain = !/[?#\s\\]/.test(text);
  return judgeUrl(text, allow) ?? (isPlain ? undefined : 'must not have a query');
}

/** The base URL of a key, without a slash at the end; empty for a provider that is built in. */
export function baseUrlOf(provider: Provider | undefined, text: string | undefined): string {
  return (text ?? provider?.baseUrl ?? '').replace(/\/+$/, '');
}

/**
 * Judges the tier of service that calls with a key get which ask for none.
 *
 * @returns what is wrong, as a clause after the field's name; undefined when nothing is.
 */
export function judgeServiceTier(tier: string): string | undefined {
  return SERVICE_TIERS.includes(tier) ? undefined : `must be one of ${SERVICE_TIERS.join(', ')}`;
}

/**
 * Judges the secret that a key is given.
 *
 * @param secret In clear; `undefined` for none.
 * @returns what is wrong, as a clause after the field's name; undefined when nothing is.
 */
export function judgeSecret(provider: Provider, secret: string | undefined): string | undefined {
  if (provider.auth === 'none') {
    const isFine = (secret ?? '').length <= MAX_SECRET_CHARS;
    return isFine ? undefined : `must be at most ${MAX_SECRET_CHARS} characters`;
  }
  if (secret === undefined) return 'is needed for this provider';
  try {
    authHeaders(provider, secret);
    return undefined;
  } catch {
    return 'must be 1 to 4096 visible ASCII characters';
  }
}
