/** Webhooks over REST: the rotation of a secret, by a program that holds an admin token. */

import type { z } from 'zod';
import { rotateWebhookSecret } from '../db/webhooks.ts';
import { Refusal } from '../schema/errors.ts';
import { isId } from '../schema/ids.ts';
import { MAX_GRACE_S, rotationSchema } from '../schema/webhook.ts';
import { authenticateAdmin } from './admin.ts';
import { respondJson } from './edge.ts';
import { readBody, strictBody } from './proxy/body.ts';
import type { Services } from './services.ts';

const MAX_BODY_BYTES = 4_096;
const GRACE = `graceS must be a whole number of seconds from 0 to ${MAX_GRACE_S}.`;

/**
 * `POST /api/webhooks/{id}/rotate-secret`: makes a new secret and shows it this once; the present
 * one signs too for `graceS` seconds.
 *
 * @returns `{ id, secret, previousUntil }`, the time in RFC 3339 or null.
 * @throws {Refusal} `invalid_token`, `permission_denied`, `invalid_body`, `invalid_request`,
 *   `not_found`.
 */
export async function rotateSecret(
  services: Services,
  request: Request,
  id: string,
): Promise<Response> {
  const { org, actor } = await authenticateAdmin(services, request, 'webhook.rotate_secret', id);
  const { graceS } = await readRotation(services, request);
  const graceMs = graceS * 1_000;
  const rotated = isId('webhook', id)
    ? await rotateWebhookSecret(org, services.master, actor, id, graceMs)
    : undefined;
  if (!rotated) throw new Refusal('not_found', 'There is no webhook with that id.');
  const { previousUntil } = rotated;
  const until = previousUntil === null ? null : new Date(previousUntil).toISOString();
  return respondJson({ ...rotated, previousUntil: until }, 200, { 'cache-control': 'no-store' });
}

async function readRotation(
  { stopping }: Services,
  request: Request,
): Promise<z.output<typeof rotationSchema>> {
  const limits = { maxEncodedBytes: MAX_BODY_BYTES, maxDecodedBytes: MAX_BODY_BYTES };
  const bytes = await readBody(request, limits, stopping.signal);
  if (bytes.length === 0) return rotationSchema.parse({});
  const parsed = rotationSchema.safeParse(strictBody(bytes, new Set(['graceS'])).value);
  if (parsed.success) return parsed.data;
  throw new Refusal('invalid_request', GRACE, { field: 'graceS' });
}
