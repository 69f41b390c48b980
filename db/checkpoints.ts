/** Checkpoints of an org's audit chain: taken, kept, and what lets old entries be pruned. */

import {
  type AuditEntry,
  ChainCheck,
  type ChainFault,
  type ChainPoint,
  type ChainReport,
  type Checkpoint,
} from '../schema/audit.ts';
import { auditEntry, readChain } from './audit.ts';
import type { Statement } from './client.ts';
import type { Org } from './org.ts';
import { digestText } from './seal.ts';
import { InvalidCheckpoint, type PublicKey, readCheckpoint, type Signer } from './signing.ts';

/** A checkpoint with its signature, as it is held elsewhere. */
export interface SignedCheckpoint {
  readonly checkpoint: Checkpoint;
  readonly jws: string;
}

/**
 * Signs the chain as it stands and keeps the checkpoint.
 *
 * @returns undefined for a chain without entries.
 */
export async function signHead(
  org: Org,
  signer: Signer,
  now: number,
): Promise<SignedCheckpoint | undefined> {
  const row = await org.first(
    'select seq, hash from audit_entries where org_id = ?1 order by seq desc limit 1',
  );
  if (!row) return undefined;
  const point = { seq: Number(row.seq), hash: String(row.hash) };
  const signed = await signPoint(org, signer, point, 'head', now);
  await org.write(keep(org, signed));
  return signed;
}

/**
 * Deletes the entries made before a time, except the newest of all, behind a signed checkpoint
 * from which the rest still verifies.
 *
 * @param beforeMs Unix milliseconds.
 * @returns how many were deleted.
 */
export async function pruneAudit(
  org: Org,
  signer: Signer,
  beforeMs: number,
  now: number,
): Promise<number> {
  const row = await org.first(
    `select seq, hash from audit_entries
     where org_id = ?1 and seq < coalesce(
       (select min(seq) from audit_entries where org_id = ?1 and at >= ?2),
       (select max(seq) from audit_entries where org_id = ?1)
     )
     order by seq desc limit 1`,
    beforeMs,
  );
  if (!row) return 0;
  const point = { seq: Number(row.seq), hash: String(row.hash) };
  const signed = await signPoint(org, signer, point, 'pruned', now);
  const [pruned] = await org.write(
    org.statement('delete from audit_entries where org_id = ?1 and seq <= ?2', point.seq),
    org.statement('delete from audit_checkpoints where org_id = ?1 and seq < ?2', point.seq),
    keep(org, signed),
    auditEntry(org, 'system', 'audit.prune', 'audit', { untilSeq: point.seq }),
  );
  return pruned!.changes;
}

async function signPoint(
  org: Org,
  signer: Signer,
  point: ChainPoint,
  purpose: Checkpoint['purpose'],
  at: number,
): Promise<SignedCheckpoint> {
  const checkpoint = { org: org.id, ...point, at, purpose };
  return { checkpoint, jws: await signer.sign(checkpoint) };
}

function keep(org: Org, { checkpoint, jws }: SignedCheckpoint): Statement {
  return org.statement(
    `insert into audit_checkpoints (org_id, seq, purpose, jws, at) values (?1, ?2, ?3, ?4, ?5)
     on conflict do update set jws = excluded.jws, at = excluded.at`,
    checkpoint.seq,
    checkpoint.purpose,
    jws,
    checkpoint.at,
  );
}

/** Every checkpoint that is kept, as JWS, the oldest first. */
export async function listCheckpoints(org: Org): Promise<string[]> {
  const rows = await org.read('select jws from audit_checkpoints where org_id = ?1 order by seq');
  return rows.map(({ jws }) => String(jws));
}

/** What is checked: a chain with the checkpoints that came along, wherever it is from. */
export interface Evidence {
  readonly org: string;
  readonly entries: AsyncIterable<AuditEntry>;
  /** As JWS. */
  readonly checkpoints: readonly string[];
  /** A checkpoint that was held elsewhere, already read. */
  readonly held?: Checkpoint | undefined;
}

/**
 * Verifies a chain with its checkpoints.
 *
 * @param keys The keys that are trusted.
 */
export async function verifyChain(
  { org, entries, checkpoints, held }: Evidence,
  keys: readonly PublicKey[],
): Promise<ChainReport> {
  const { signed, faults } = await readAll(org, checkpoints, keys);
  const pruned = signed.filter(({ purpose }) => purpose === 'pruned').at(-1);
  const check = new ChainCheck(org, digestText, pruned, held ? [...signed, held] : signed);
  for await (const entry of entries) check.add(entry);
  const report = check.report();
  const all = [...faults, ...foreign(org, held), ...report.faults];
  return { ...report, ok: all.length === 0, faults: all };
}

/** Verifies an org's chain as it stands in the database. */
export async function verifyOrg(
  org: Org,
  keys: readonly PublicKey[],
  held?: Checkpoint,
): Promise<ChainReport> {
  const checkpoints = await listCheckpoints(org);
  return await verifyChain({ org: org.id, entries: readChain(org), checkpoints, held }, keys);
}

async function readAll(
  org: string,
  checkpoints: readonly string[],
  keys: readonly PublicKey[],
): Promise<{ signed: Checkpoint[]; faults: ChainFault[] }> {
  const signed: Checkpoint[] = [];
  const faults: ChainFault[] = [];
  for (const jws of checkpoints) {
    try {
      const checkpoint = await readCheckpoint(jws, keys);
      if (checkpoint.org === org) signed.push(checkpoint);
      else faults.push(...foreign(org, checkpoint));
    } catch (error) {
      if (!(error instanceof InvalidCheckpoint)) throw error;
      faults.push({ seq: 0, fault: 'signature', message: error.message });
    }
  }
  return { signed: signed.sort((one, other) => one.seq - other.seq), faults };
}

function foreign(org: string, checkpoint: Checkpoint | undefined): ChainFault[] {
  if (!checkpoint || checkpoint.org === org) return [];
  const { seq } = checkpoint;
  return [{ seq, fault: 'signature', message: 'the checkpoint is that of another org' }];
}
