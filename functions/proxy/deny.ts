/** Refusing a call whose run is known: the denial goes on the run's trail first. */

import { driftEvents } from '../../db/alerts.ts';
import type { Charge } from '../../db/limits.ts';
import type { PolicyVersion } from '../../db/policies.ts';
import type { Run } from '../../db/runs.ts';
import { type Remark, recordRemark } from '../../db/steps.ts';
import { ERRORS, type ErrorCode, Refusal, type RefusalDetail } from '../../schema/errors.ts';
import { windowsOf } from '../../schema/rules/budget.ts';
import { MAX_MODEL_LENGTH } from '../../schema/rules/catalogue.ts';
import { Outdated } from './authenticate.ts';
import type { Call } from './call.ts';
import { keepsDigests } from './capture.ts';

/** A call on a run. */
export interface Governed extends Call {
  readonly run: Pick<Run, 'id' | 'name' | 'openedAt'>;
  /** The policy version that the run opened with. */
  readonly version: PolicyVersion;
  /** As {@link Standing} has it: since when the run must have been active, if it is the window. */
  readonly windowSince: number | null;
}

/**
 * Records a denial and refuses.
 *
 * @param message One sentence a person can act on.
 * @throws {Refusal} always; but {@link Outdated} for a call that goes by remembered facts, which
 *   are good enough to let a call out, never to refuse one.
 */
export async function deny(
  call: Governed,
  code: ErrorCode,
  message: string,
  detail: RefusalDetail,
): Promise<never> {
  await recordDenial(call, code, message, detail);
  throw refusalOf(call, code, message, detail);
}

/** A refusal, and on whose account. */
export function refusalOf(
  call: Governed,
  code: ErrorCode,
  message: string,
  detail: RefusalDetail,
): Refusal {
  return new Refusal(code, message, tell(call, detail));
}

function tell({ version, run }: Governed, detail: RefusalDetail): RefusalDetail {
  return { policy: version.label, runId: run.name, ...detail };
}

/**
 * Puts a denial on the run's trail.
 *
 * @param charges What it counts against; where they don't fit, nothing is recorded.
 * @returns whether it was recorded.
 * @throws {Outdated} for a call that goes by remembered facts.
 */
export async function recordDenial(
  call: Governed,
  code: ErrorCode,
  message: string,
  detail: RefusalDetail,
  charges: readonly Charge[] = [],
): Promise<boolean> {
  if (call.isRemembered) throw new Outdated();
  const { run, services } = call;
  const now = services.now();
  const remark: Remark = {
    kind: 'denial',
    runId: run.id,
    windows: windowsOf(now),
    now,
    outcome: code,
    asked: {
      endpoint: call.endpoint?.name ?? `${call.request.method} ${call.path.slice(0, 200)}`,
      tokenId: call.credential.tokenId,
      ...askedModel(call),
      ...askedDigest(call),
    },
    answered: { httpStatus: ERRORS[code].status, detail: { message, ...tell(call, detail) } },
    charges,
  };
  const stepId = await recordRemark(call.org, remark, ...driftOf(call, code, detail, now));
  return stepId !== undefined;
}

/** The event of a denial by what the policy lets agents use; none for other refusals. */
function driftOf(call: Governed, code: ErrorCode, { rule, asked }: RefusalDetail, now: number) {
  if (code !== 'permission_denied' || rule === undefined) return [];
  const { run, agent, version } = call;
  const drift = { runId: run.id, agentId: agent.id, policy: version.label, rule, asked, now };
  return driftEvents(call.org, drift);
}

function askedDigest({ requestDigest, version }: Governed): { requestDigest?: string } {
  return requestDigest !== null && keepsDigests(version.policy) ? { requestDigest } : {};
}

function askedModel(call: Governed): { model?: string } {
  const model = call.body?.value.model;
  // What is longer is no model's name, and may be anything.
  return typeof model === 'string' && model.length <= MAX_MODEL_LENGTH ? { model } : {};
}
