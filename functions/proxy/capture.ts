/** Keeping bodies, where the policy says so: collected while they pass, sealed as the call settles. */

import { type Body, capture, captureStatements, MAX_CAPTURED_BYTES } from '../../db/captures.ts';
import type { Statement } from '../../db/client.ts';
import { concat } from '../../schema/bytes.ts';
import type { RunId, StepId } from '../../schema/ids.ts';
import type { Policy } from '../../schema/policy.ts';
import type { Call } from './call.ts';

/** Whether the bodies of calls under a policy are kept. */
export function keepsBodies(policy: Policy): boolean {
  return policy.capture === 'sealed';
}

/** Whether the trail may say which bodies were sent, by their digests. */
export function keepsDigests(policy: Policy): boolean {
  return policy.capture !== 'none';
}

/** A copy of a stream's beginning. */
export class Copy {
  readonly #chunks: Uint8Array[] = [];
  #bytes = 0;

  /** Takes a chunk; of what is over the cap only the length is kept. */
  push(chunk: Uint8Array): void {
    const room = MAX_CAPTURED_BYTES - this.#bytes;
    // A slice, since whoever reads the stream may use its buffers again.
    if (room > 0) this.#chunks.push(chunk.slice(0, room));
    this.#bytes += chunk.length;
  }

  /** What has come so far. */
  body(): Body {
    return { bytes: concat(this.#chunks), totalBytes: this.#bytes };
  }
}

/** A call that has its step. */
export interface Captive extends Pick<Call, 'org' | 'services' | 'bytes'> {
  readonly run: { readonly id: RunId };
  readonly stepId: StepId;
}

/**
 * The statements that keep the bodies of a call whose policy says so. The call settles without them
 * where they can't be had: its money is worth more.
 */
export async function captured(call: Captive, response: Body | undefined): Promise<Statement[]> {
  const { org, services, run, stepId, bytes } = call;
  const request = bytes.length > 0 ? { request: capture(bytes) } : {};
  const bodies = { ...request, ...(response ? { response } : {}) };
  try {
    const step = { runId: run.id, stepId };
    return await captureStatements(org, services.master, step, bodies, services.now());
  } catch (error) {
    services.log.error('the bodies of a call could not be kept', { step: stepId, error });
    return [];
  }
}
