/** E-mail addresses: one spelling for each, so that a person is one user. */

import { z } from 'zod';

/** An address, trimmed and in lower case; only of ASCII, to which the case of some others folds. */
export const EMAIL = z
  .string()
  .trim()
  .max(254)
  .regex(/^[\x21-\x7e]*$/, 'must be of ASCII characters')
  .toLowerCase()
  .pipe(z.email());

/** The one spelling of an address. @returns undefined for what is none. */
export function normalizeEmail(text: string): string | undefined {
  return EMAIL.safeParse(text).data;
}

/** The domain of an address in its one spelling. */
export function domainOf(email: string): string {
  return email.slice(email.lastIndexOf('@') + 1);
}
