/** The forms of people who sign in: shown, read, and limited by the address they come from. */

import { html } from 'hono/html';
import { countUse } from '../../db/limits.ts';
import { addressBlock } from '../../schema/address.ts';
import { Refusal } from '../../schema/errors.ts';
import { type Quota, retryAfterSOf, usedUpStateOf } from '../../schema/rules/limit.ts';
import { addressOf } from '../edge.ts';
import { type Markup, respondForm } from '../pages.ts';
import type { Services } from '../services.ts';

/** A page: its heading and what is below it. */
export interface Page {
  readonly title: string;
  readonly body: Markup;
  readonly status?: number;
}

/** The way from a request's path to the root, relative: a proxy may serve under a path of its own. */
export function rootOf({ url }: Request): string {
  return '../'.repeat(new URL(url).pathname.split('/').length - 2);
}

/** Answers with a page; a refusal becomes one, too. */
export async function onPage(
  request: Request,
  act: () => Promise<Page | Response>,
): Promise<Response> {
  try {
    const page = await act();
    return page instanceof Response ? page : await show(request, page);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return await showRefusal(request, error);
  }
}

function show(request: Request, { title, body, status = 200 }: Page): Promise<Response> {
  return respondForm(title, body, status, rootOf(request));
}

async function showRefusal(request: Request, refusal: Refusal): Promise<Response> {
  const body = html`<p>${refusal.message}</p>`;
  const response = await show(request, {
    title: 'That did not work',
    body,
    status: refusal.status,
  });
  const { retryAfterS } = refusal.detail;
  if (retryAfterS !== undefined) response.headers.set('retry-after', String(retryAfterS));
  return response;
}

/** How often an address may ask to sign in, or fail to. */
const TRIES: Quota = {
  ...{ kind: 'failures', name: 'sign-in-address-60s' },
  ...{ windowMs: 60_000, most: 30 },
};

/**
 * Counts a try to sign in against its address.
 *
 * @throws {Refusal} `rate_limited`.
 */
export async function countTry(services: Services, request: Request): Promise<void> {
  const address = addressOf(services, request);
  const block = address === undefined ? 'unknown' : addressBlock(address);
  const waitMs = await countUse(services.db, `sign-in ${block}`, TRIES, services.now());
  if (waitMs === 0) return;
  const state = usedUpStateOf(TRIES, waitMs);
  throw new Refusal(
    'rate_limited',
    `Too many tries to sign in from this address; try again in ${state.resetS} s.`,
    { rule: 'sign_in.address', limits: [state], retryAfterS: retryAfterSOf(state) },
  );
}

/** Whether text has the shape of a secret of ours: 256 bits in base64url. */
export function isSecret(text: string): boolean {
  return /^[\w-]{43}$/.test(text);
}
