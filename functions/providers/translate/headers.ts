/** What a request's headers ask for that only one of the dialects has. */

import { Untranslatable } from './contract.ts';

/** Hints for the upstream's own cache, and on how arguments are cut in a stream. */
const HINT = /^(?:prompt-caching|extended-cache-ttl|fine-grained-tool-streaming)-/;

/**
 * Refuses betas that change what a call does.
 *
 * @throws {Untranslatable}
 */
export function refuseBetas(headers: Headers): void {
  const betas = (headers.get('anthropic-beta') ?? '').split(',').map((name) => name.trim());
  const asked = betas.find((name) => name !== '' && !HINT.test(name));
  if (asked === undefined) return;
  const reason = `asks for "${asked.slice(0, 100)}", which has no counterpart in the other dialect`;
  throw new Untranslatable('anthropic-beta', reason);
}
