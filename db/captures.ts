/** Captures: request and response bodies, sealed under the org's key, where a policy keeps them. */

import type { RunId, StepId } from '../schema/ids.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Statement } from './client.ts';
import type { Org } from './org.ts';
import type { MasterKeys } from './seal.ts';
import { openVault, type Shelf, type Vault } from './vault.ts';

/** Which body of a call it is: the caller's own, or the upstream's. */
export type BodyKind = 'request' | 'response';

/** The most of a body that is kept, in bytes. */
export const MAX_CAPTURED_BYTES = 4 * 1024 * 1024;

/** A body, or its beginning. */
export interface Body {
  /** At most {@link MAX_CAPTURED_BYTES}. */
  readonly bytes: Uint8Array;
  /** The length of the whole, in bytes: more than is here where it was cut off. */
  readonly totalBytes: number;
}

/** A body as it is kept: its length or less. */
export function capture(bytes: Uint8Array): Body {
  return { bytes: bytes.subarray(0, MAX_CAPTURED_BYTES), totalBytes: bytes.length };
}

const shelfOf = (step: StepId, kind: BodyKind): Shelf => ({
  ...{ table: 'captures', column: 'sealed', row: `${step}/${kind}` },
});

/**
 * Seals the bodies of a step. Commit the statements with what else settles it.
 *
 * @throws {SealError} when the org's key is gone or has sealed as often as it may.
 */
export async function captureStatements(
  org: Org,
  master: MasterKeys,
  step: { readonly runId: RunId; readonly stepId: StepId },
  bodies: Partial<Readonly<Record<BodyKind, Body>>>,
  now: number,
): Promise<Statement[]> {
  const vault = await openVault(org, master);
  const statements: Statement[] = [];
  for (const kind of ['request', 'response'] as const) {
    const body = bodies[kind];
    if (body) statements.push(...(await sealBody(org, vault, step, kind, body, now)));
  }
  return [vault.count(), ...statements];
}

async function sealBody(
  org: Org,
  vault: Vault,
  { runId, stepId }: { readonly runId: RunId; readonly stepId: StepId },
  kind: BodyKind,
  { bytes, totalBytes }: Body,
  now: number,
): Promise<Statement[]> {
  const parts = await vault.sealBytes(shelfOf(stepId, kind), bytes);
  return parts.map((sealed, number) =>
    org.statement(
      `insert into captures (
         org_id, run_id, step_id, kind, number, sealed, bytes, created_at
       ) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) on conflict do nothing`,
      runId,
      stepId,
      kind,
      number,
      sealed,
      totalBytes,
      now,
    ),
  );
}

/** The bodies of a step, opened; a kind that was not kept is absent. */
export type Bodies = Partial<Readonly<Record<BodyKind, Body>>>;

/**
 * Opens the bodies of a step, for those only who hold `run.body_read`.
 *
 * @throws {SealError} when the org's key is gone, or what is kept was altered.
 */
export async function readBodies(
  org: Org,
  master: MasterKeys,
  run: RunId,
  step: StepId,
): Promise<Bodies> {
  const rows = await org.read(
    `select kind, sealed, bytes from captures
     where org_id = ?1 and run_id = ?2 and step_id = ?3 order by kind, number`,
    run,
    step,
  );
  if (rows.length === 0) return {};
  const vault = await openVault(org, master);
  const bodies: Partial<Record<BodyKind, Body>> = {};
  for (const kind of ['request', 'response'] as const) {
    const parts = rows.filter((row) => row.kind === kind);
    if (parts.length === 0) continue;
    const sealed = parts.map((row) => String(row.sealed));
    const bytes = await new Blob(await vault.openBytes(shelfOf(step, kind), sealed)).bytes();
    bodies[kind] = { bytes, totalBytes: Number(parts[0]?.bytes) };
  }
  return bodies;
}

/**
 * Opens the bodies of a step for someone, and puts that on the audit trail before he sees them.
 *
 * @returns `undefined` where none is kept.
 * @throws {SealError} as {@link readBodies}.
 */
export async function showBodies(
  org: Org,
  actor: Actor,
  master: MasterKeys,
  { runId, stepId }: { readonly runId: RunId; readonly stepId: StepId },
): Promise<Bodies | undefined> {
  const bodies = await readBodies(org, master, runId, stepId);
  if (!bodies.request && !bodies.response) return undefined;
  await org.write(auditEntry(org, actor, 'run.body_read', runId, { stepId }));
  return bodies;
}
