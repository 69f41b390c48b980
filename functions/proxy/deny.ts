/** Refusing a call whose run is known: the denial goes on the run's trail first. */

import type { PolicyVersion } from '../../db/policies.ts';
import type { Run } from '../../db/runs.ts';
import { recordRemark } from '../../db/steps.ts';
import { ERRORS, type ErrorCode, Refusal, type RefusalDetail } from '../../schema/errors.ts';
import { windowsOf } from '../../schema/rules/budget.ts';
import type { Call } from './call.ts';

/** A call on a run. */
export interface Governed extends Call {
  readonly run: Run;
  /** The policy version that the run opened with. */
  readonly version: PolicyVersion;
}

/**
 * Records a denial and refuses.
 *
 * @param message One sentence a person can act on.
 * @throws {Refusal} always.
 */
export async function deny(
  call: Governed,
  code: ErrorCode,
  message: string,
  detail: RefusalDetail,
): Promise<never> {
  const { run, services } = call;
  const told = { policy: call.version.label, runId: run.name, ...detail };
  const now = services.now();
  await recordRemark(call.org, {
    kind: 'denial',
    runId: run.id,
    agentId: call.agent.id,
    tokenId: call.credential.tokenId,
    windows: windowsOf(now),
    now,
    model: askedModel(call),
    outcome: code,
    asked: {
      endpoint: call.endpoint?.name ?? `${call.request.method} ${call.path.slice(0, 200)}`,
      ...(call.requestDigest === null ? {} : { requestDigest: call.requestDigest }),
    },
    answered: { httpStatus: ERRORS[code].status, detail: { message, ...told } },
  });
  throw new Refusal(code, message, told);
}

function askedModel(call: Governed): string | null {
  const model = call.body?.value.model;
  return typeof model === 'string' ? model.slice(0, 256) : null;
}
