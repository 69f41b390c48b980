/** What an endpoint of webhooks is made with: the rules for its URL, its text and its rotation. */

import { z } from 'zod';
import { type AllowList, judgeUrl } from './address.ts';

const MAX_URL_CHARS = 2_000;
const MAX_DESCRIPTION_CHARS = 500;

/** The longest that an old secret can sign beside a new one, in seconds. */
export const MAX_GRACE_S = 7 * 86_400;
/** How long it does so unless told otherwise, in seconds. */
export const DEFAULT_GRACE_S = 86_400;

/** What an endpoint is for. */
export const descriptionSchema = z
  .string()
  .max(MAX_DESCRIPTION_CHARS, `must have at most ${MAX_DESCRIPTION_CHARS} characters`);

const GRACE = `must be a whole number of seconds from 0 to ${MAX_GRACE_S}`;

/** How a secret is rotated. */
export const rotationSchema = z.strictObject({
  graceS: z
    .int(GRACE)
    .min(0, GRACE)
    .max(MAX_GRACE_S, GRACE)
    .default(DEFAULT_GRACE_S)
    .describe('For how many seconds the present secret signs too.'),
});

/** What is wrong with the URL of an endpoint, as a clause; undefined for one that may be called. */
export function judgeEndpoint(url: string, allow: AllowList): string | undefined {
  return url.length > MAX_URL_CHARS ? 'is too long' : judgeUrl(url, allow);
}
