/** Tool results that a request brings: each has to answer a call that its run was given. */

import { findUnreleased, flagResults } from '../../db/released.ts';
import { governsTools } from '../../schema/rules/tools.ts';
import { toolResults } from '../providers/results.ts';
import { Outdated } from './authenticate.ts';
import type { Permitted } from './decide.ts';
import { deny } from './deny.ts';
import type { Unparked } from './park.ts';

/**
 * Flags results of calls that the run was never given on its trail, once each; or refuses them,
 * where the policy says so. A policy that governs no tools knows no calls, and is passed over.
 *
 * @throws {Refusal} `permission_denied`.
 */
export function checkResults(call: Unparked): Checked | Promise<Checked> {
  const { endpoint, body, version } = call;
  const checked = call as Checked;
  if (!body || !governsTools(version.policy)) return checked;
  const results = toolResults(endpoint, body.value);
  return results.length === 0 ? checked : check(call, results).then(() => checked);
}

declare const checked: unique symbol;

/** A call that brings no results of tools but those that may pass. */
export interface Checked extends Unparked {
  readonly [checked]: true;
}

async function check(call: Permitted, results: ReturnType<typeof toolResults>): Promise<void> {
  const { org, run, version, credential, services } = call;
  const ids = [...new Set(results.map(({ id }) => id))];
  const unreleased = await findUnreleased(org, run.id, ids);
  const [first] = unreleased;
  if (!first) return;
  if (version.policy.tools?.unreleasedResults === 'deny') {
    const { id, field } = results.find((result) => result.id === first.callId)!;
    const message = `This run was given no tool call "${id.slice(0, 100)}" through Rungate; leave its result out.`;
    const detail = { rule: 'tools.unreleasedResults', field, asked: id.slice(0, 256) };
    return deny(call, 'permission_denied', message, detail);
  }
  const unknown = unreleased.filter(({ isKnown }) => !isKnown).map(({ callId }) => callId);
  if (unknown.length === 0) return;
  if (call.isRemembered) throw new Outdated();
  await flagResults(org, run.id, credential.tokenId, unknown, services.now());
}
