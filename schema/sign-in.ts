/** How an org signs in through an identity provider: what its settings may say. */

import { z } from 'zod';

const LABEL = '[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?';
const DOMAIN = new RegExp(`^(?=.{1,253}$)(?:${LABEL}\\.)+${LABEL}$`);

/** The identifier that the provider gave its client. */
export const clientIdSchema = z
  .string()
  .trim()
  .regex(/^[\x21-\x7e]{1,255}$/, 'must be 1 to 255 visible ASCII characters');

/** The secret that the provider gave its client. */
export const clientSecretSchema = z
  .string()
  .regex(/^[\x20-\x7e]{1,1000}$/, 'must be 1 to 1000 ASCII characters');

/** The domains of the addresses that the provider may speak for; subdomains are named apart. */
export const domainsSchema = z
  .array(
    z
      .string()
      .trim()
      .toLowerCase()
      .regex(DOMAIN, 'must be a domain such as example.com, in punycode'),
  )
  .min(1, 'must name a domain')
  .max(50, 'must name at most 50 domains')
  .transform((domains) => [...new Set(domains)]);

/** The longest issuer, in characters. */
export const MAX_ISSUER_CHARS = 500;
