/** Checkpoints of an org's audit chain: taken, kept, and what lets old entries be pruned. */

import {
  type AuditEntry,
  ChainCheck,
  type ChainFault,
  type ChainPoint,
  type ChainReport,
  type Checkpoint,
  PLATFORM_CHAIN,
} from '../schema/audit.ts';
import { Refusal } from '../schema/errors.ts';
import type { OrgId } from '../schema/ids.ts';
import { type Actor, auditEntry, readChain } from './audit.ts';
import type { Database, Statement } from './client.ts';
import type { Org } from './org.ts';
import { type Page, readPage, type Window } from './page.ts';
import { digestText } from './seal.ts';
import { InvalidCheckpoint, type PublicKey, readCheckpoint, type Signer } from './signing.ts';

/** A checkpoint with its signature, as it is held elsewhere. */
export interface SignedCheckpoint {
  readonly checkpoint: Checkpoint;
  readonly jws: string;
}

/** A checkpoint as it is listed. */
export interface KeptCheckpoint extends Pick<Checkpoint, 'seq' | 'at' | 'purpose'> {
  readonly jws: string;
}

/**
 * Signs the chain as it stands and keeps the checkpoint.
 *
 * @param asked Who asks for it and what for, for the trail; nobody where it is routine.
 * @returns undefined for a chain without entries.
 */
export async function signHead(
  org: Org,
  signer: Signer,
  now: number,
  asked?: { readonly actor: Actor; readonly note?: string | undefined },
): Promise<SignedCheckpoint | undefined> {
  const row = await org.first(
    'select seq, hash from audit_entries where org_id = ?1 order by seq desc limit 1',
  );
  if (!row) return undefined;
  const point = { seq: Number(row.seq), hash: String(row.hash) };
  const signed = await signPoint(org, signer, point, 'head', now);
  const told = asked && { ...point, note: asked.note };
  const entries = asked ? [auditEntry(org, asked.actor, 'audit.checkpoint', 'audit', told)] : [];
  await org.write(keep(org, signed), ...entries);
  return signed;
}

/**
 * Deletes the oldest entries made before a time, except the newest of all, behind a signed
 * checkpoint from which the rest still verifies.
 *
 * @param beforeMs Unix milliseconds.
 * @param limit The most entries that are deleted.
 * @returns how many were deleted.
 */
export async function pruneAudit(
  org: Org,
  signer: Signer,
  beforeMs: number,
  now: number,
  limit = Number.MAX_SAFE_INTEGER,
): Promise<number> {
  const row = await org.first(
    `select seq, hash from audit_entries
     where org_id = ?1 and seq < min(
       coalesce(
         (select min(seq) from audit_entries where org_id = ?1 and at >= ?2),
         (select max(seq) from audit_entries where org_id = ?1)
       ),
       (select min(seq) from audit_entries where org_id = ?1) + ?3
     )
     order by seq desc limit 1`,
    beforeMs,
    limit,
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

/** Orgs whose chain has grown since it was signed, and where the search goes on. */
export interface UnsignedPage {
  readonly orgs: readonly OrgId[];
  /** The last org that was looked at; undefined once that was the last of all. */
  readonly next: OrgId | undefined;
}

const ORGS_PER_PAGE = 200;

/** Finds chains that have grown since a checkpoint from before a time, in pages of orgs. */
export async function findUnsigned(
  db: Database,
  signedBeforeMs: number,
  after = '',
): Promise<UnsignedPage> {
  const rows = await db.read(
    `select id, coalesce((select max(seq) from audit_entries where org_id = o.id), 0) > coalesce(
         (select max(seq) from audit_checkpoints where org_id = o.id and purpose = 'head'), 0
       ) and coalesce(
         (select max(at) from audit_checkpoints where org_id = o.id and purpose = 'head'), 0
       ) < ?1 as is_due
     from (
       select id from (select '${PLATFORM_CHAIN}' as id union all select id from orgs)
       where id > ?2 order by id limit ${ORGS_PER_PAGE}
     ) o order by id`,
    [signedBeforeMs, after],
  );
  const due = rows.filter((row) => row.is_due === 1).map(({ id }) => id as OrgId);
  const isWhole = rows.length === ORGS_PER_PAGE;
  return { orgs: due, next: isWhole ? (rows.at(-1)?.id as OrgId) : undefined };
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

/** A page of the checkpoints that are kept, the newest first. */
export function pageCheckpoints(org: Org, window: Window): Promise<Page<KeptCheckpoint>> {
  const sql = `select seq, purpose, purpose as id, jws, at from audit_checkpoints
    where org_id = ?1`;
  const listing = { sql, args: [], order: 'seq', isDescending: true };
  return readPage(org, listing, window, (row) => ({
    seq: Number(row.seq),
    purpose: row.purpose as Checkpoint['purpose'],
    at: Number(row.at),
    jws: String(row.jws),
  }));
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

/**
 * As {@link verifyOrg}, on the trail itself.
 *
 * @param held A checkpoint that was held elsewhere, as JWS.
 * @throws {Refusal} `invalid_request` for a checkpoint that none of the keys has signed.
 */
export async function verifyAs(
  org: Org,
  actor: Actor,
  keys: readonly PublicKey[],
  held?: string,
): Promise<ChainReport> {
  const report = await verifyOrg(org, keys, held === undefined ? held : await hold(held, keys));
  const { ok, entries, head } = report;
  await org.write(auditEntry(org, actor, 'audit.verify', 'audit', { ok, entries, head }));
  return report;
}

async function hold(jws: string, keys: readonly PublicKey[]): Promise<Checkpoint> {
  try {
    return await readCheckpoint(jws, keys);
  } catch (error) {
    if (!(error instanceof InvalidCheckpoint)) throw error;
    throw new Refusal('invalid_request', error.message, { field: 'checkpoint' });
  }
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
