/** Writes audit entries as a hash chain per org, in the very transaction of what they record. */

import {
  type AuditFacts,
  type AuditPayload,
  type ChainPoint,
  canonicalEntry,
  commitmentOf,
  GENESIS,
} from '../schema/audit.ts';
import { type Database, DatabaseError, type Result, type Statement } from './client.ts';
import { digestText } from './seal.ts';

/**
 * An entry that takes its place in the chain when its transaction is committed. SQL can't hash, so
 * the head is read first and the entry's number is unique: of two writers that read the same head
 * one fails as a whole, and tries again. Hashing after the commit would leave a moment in which a
 * change stands without its link.
 */
export interface AuditDraft extends Statement {
  /** Whose chain it is for. */
  readonly org: string;
  readonly facts: AuditFacts;
  readonly payload: AuditPayload;
  /** Written only when the statement before it changed a row. */
  readonly ifChanged: boolean;
}

/** What a draft's SQL is until it has its place: running it as it stands is an error. */
export const UNPLACED = 'an audit entry is committed through its chain only';

/** Whether a statement of a transaction is an audit entry that needs a place. */
export function isDraft(statement: Statement): statement is AuditDraft {
  return statement.sql === UNPLACED;
}

const TRIES = 200;
const MAX_PAUSE_MS = 20;

/**
 * Commits statements, audit entries among them, as one transaction: all of it stands, or nothing.
 * Exact under any number of writers in any number of processes.
 *
 * @param org The id of the org whose chain it is; `*` for the platform's own.
 * @throws {DatabaseError} what the statements themselves are refused for, or a conflict when
 *   others were always faster.
 * @throws {Error} when an entry is another org's, or follows one that may be left out.
 */
export function commitAudited(
  db: Database,
  org: string,
  statements: readonly Statement[],
): Promise<readonly Result[]> {
  return inTurn(db, org, async () => {
    for (let left = TRIES; ; left--) {
      const head = await readHead(db, org);
      try {
        return await db.write(linkDrafts(org, head, statements));
      } catch (error) {
        if (left === 0 || !isPlaceTaken(error)) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, Math.random() * MAX_PAUSE_MS));
    }
  });
}

/** The newest entry of a chain, which pruning always leaves; number 0 when there is none yet. */
async function readHead(db: Database, org: string): Promise<ChainPoint> {
  const row = await db.first(
    'select seq, hash from audit_entries where org_id = ?1 order by seq desc limit 1',
    [org],
  );
  return row ? { seq: Number(row.seq), hash: String(row.hash) } : { seq: 0, hash: GENESIS };
}

function linkDrafts(org: string, head: ChainPoint, statements: readonly Statement[]): Statement[] {
  let { seq, hash } = head;
  let mayBeMissing = false;
  return statements.map((statement) => {
    if (!isDraft(statement)) return statement;
    if (statement.org !== org) throw new Error('an audit entry is for the chain of another org');
    if (mayBeMissing) throw new Error('an audit entry follows one that may be left out');
    mayBeMissing = statement.ifChanged;
    const link = { org, seq: seq + 1, prevHash: hash };
    seq = link.seq;
    hash = digestText(canonicalEntry(link, statement.facts));
    return placed(link.org, link.seq, link.prevHash, hash, statement);
  });
}

function placed(
  org: string,
  seq: number,
  prevHash: string,
  hash: string,
  { facts, payload, ifChanged }: AuditDraft,
): Statement {
  return {
    sql: `insert into audit_entries (
        org_id, seq, id, at, actor_kind, action, target, outcome, commitment, salt, payload,
        prev_hash, hash
      ) select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13
      where ${ifChanged ? 'changes() > 0' : 'true'}`,
    args: [
      ...[org, seq, facts.id, facts.at, facts.actorKind, facts.action, facts.target],
      ...[facts.outcome, facts.commitment, payload.salt, payload.text, prevHash, hash],
    ],
  };
}

/** A payload's commitment with the deployment's own hash. */
export function commit(payload: AuditPayload): string {
  return commitmentOf(payload, digestText);
}

function isPlaceTaken(error: unknown): boolean {
  return (
    error instanceof DatabaseError && error.conflict && /audit_entries\.seq/.test(error.message)
  );
}

/** The last transaction of each chain in this process: waiting for it costs less than losing. */
const turns = new WeakMap<Database, Map<string, Promise<unknown>>>();

async function inTurn<T>(db: Database, org: string, work: () => Promise<T>): Promise<T> {
  const ofDatabase = turns.get(db) ?? new Map<string, Promise<unknown>>();
  turns.set(db, ofDatabase);
  const before = ofDatabase.get(org) ?? Promise.resolve();
  const mine = before.then(work, work);
  ofDatabase.set(org, mine);
  try {
    return await mine;
  } finally {
    if (ofDatabase.get(org) === mine) ofDatabase.delete(org);
  }
}
