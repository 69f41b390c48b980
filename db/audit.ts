/** Who changed what: an entry is written in the transaction of the change itself. */

import {
  type ActorKind,
  type AuditEntry,
  type AuditOutcome,
  ERASURE,
  MAX_PAYLOAD_CHARS,
  payloadText,
} from '../schema/audit.ts';
import type { Refusal } from '../schema/errors.ts';
import type { MemberId } from '../schema/ids.ts';
import type { AdminAction, Role } from '../schema/roles.ts';
import { ANCHOR, PRUNING } from '../schema/trail.ts';
import { type AuditDraft, commit, UNPLACED } from './chain.ts';
import type { Database, Row } from './client.ts';
import { forOrg, type Org } from './org.ts';
import { type Page, readPage, type Window } from './page.ts';
import { newId, randomEntropy } from './seal.ts';

/** Someone known by a session, a token or a link, and from where the request came. */
export interface Principal {
  readonly kind: Exclude<ActorKind, 'operator' | 'system'>;
  /** The id of the user, the token or the link. */
  readonly id: string;
  /** The member of the org who acts, or whose token it is. */
  readonly memberId?: MemberId;
  readonly role?: Role;
  /** What may be done: the role's actions, or those of the token. */
  readonly actions?: readonly AdminAction[];
  readonly tokenId?: string;
  /** When that token ends, in Unix milliseconds; absent where it doesn't. */
  readonly endsAt?: number;
  readonly address?: string;
  readonly userAgent?: string;
  readonly requestId?: string;
}

/** Who acts: the operator at the command line, Rungate itself, or someone it knows. */
export type Actor = 'operator' | 'system' | Principal;

/** What an actor is called in a column: a person by his member's id, whatever he came with. */
export function actorName(actor: Actor): string {
  return typeof actor === 'string' ? actor : (actor.memberId ?? actor.id);
}

/** Whom the rules of an org bind: everyone but the operator and Rungate itself. */
export function acting(actor: Actor): Principal | undefined {
  return typeof actor === 'string' ? undefined : actor;
}

/** What else an entry says, and when it is written. */
export interface Circumstances {
  /** The state before the change. */
  readonly before?: object | undefined;
  readonly outcome?: AuditOutcome;
  /** Only when the statement before it in the transaction changed a row; then it is the last entry. */
  readonly ifChanged?: boolean;
}

const MAX_TEXT_CHARS = 500;
const SALT_BYTES = 32;

/**
 * The statement that records a change; put it into the change's own transaction, which
 * {@link Org.write} commits.
 *
 * @param target The id of what was changed, or its name where it has none; never a person's name.
 * @param after The state after the change, or what was asked for; secrets are left out.
 */
export function auditEntry(
  org: Org,
  actor: Actor,
  action: string,
  target: string,
  after?: object,
  { before, outcome = 'allowed', ifChanged = false }: Circumstances = {},
): AuditDraft {
  const at = Date.now();
  const payload = {
    salt: randomEntropy(SALT_BYTES).toHex(),
    text: payloadOf(actor, before, after),
  };
  return {
    sql: UNPLACED,
    args: [],
    org: org.id,
    facts: {
      id: newId('audit', at),
      at,
      actorKind: typeof actor === 'string' ? actor : actor.kind,
      action: storable(action),
      target: storable(target),
      outcome,
      commitment: commit(payload),
    },
    payload,
    ifChanged,
  };
}

/**
 * Records an attempt that is refused, and refuses it.
 *
 * @throws {Refusal} the given one, always; {@link DatabaseError} when it can't be recorded.
 */
export async function refuse(
  org: Org,
  actor: Actor,
  action: string,
  target: string,
  refusal: Refusal,
): Promise<never> {
  const { rule, asked } = refusal.detail;
  const said = { code: refusal.code, rule, asked };
  await org.write(auditEntry(org, actor, action, target, said, { outcome: 'refused' }));
  throw refusal;
}

/** Text that a column gives back as it was given: bounded, without control characters. */
function storable(text: string): string {
  return text
    .slice(0, MAX_TEXT_CHARS)
    .toWellFormed()
    .replace(/\p{Cc}/gu, '\u{fffd}');
}

/** What may be erased: who acted, from where, and the states. */
function payloadOf(actor: Actor, before?: object, after?: object): string {
  const who = describe(actor);
  const text = payloadText({ actor: who, before, after });
  if (text.length <= MAX_PAYLOAD_CHARS) return text;
  return payloadText({ actor: who, omitted: `${text.length} characters` });
}

function describe(actor: Actor): object {
  if (typeof actor === 'string') return { id: actor };
  const { id, memberId, role, tokenId, address, userAgent, requestId } = actor;
  const seen = { address, userAgent: userAgent?.slice(0, MAX_TEXT_CHARS), requestId };
  return { id, memberId, role, tokenId, ...seen };
}

/** Which entries are asked for; all of what is given must hold. */
export interface AuditSearch {
  readonly action?: string | null | undefined;
  readonly target?: string | null | undefined;
  /** The id of the user, token or link, or `operator` or `system`. */
  readonly actor?: string | null | undefined;
  readonly outcome?: AuditOutcome | null | undefined;
  /** Unix milliseconds, the first included and the last not. */
  readonly from?: number | null | undefined;
  readonly to?: number | null | undefined;
}

/** As {@link AuditSearch}, and how many entries. */
export interface AuditFilter extends AuditSearch {
  /** Only entries with smaller numbers: the last of the page before. */
  readonly beforeSeq?: number;
  readonly limit: number;
}

const COLUMNS = `org_id, seq, id, at, actor_kind, action, target, outcome, commitment, salt, payload,
  prev_hash, hash`;

/** Entries of an org, the newest first. */
export async function listAudit(org: Org, filter: AuditFilter): Promise<AuditEntry[]> {
  const { action, target, actor, outcome, from, to, beforeSeq, limit } = filter;
  const rows = await org.read(
    `select ${COLUMNS} from audit_entries
     where org_id = ?1 and seq < ?2
       and (?3 is null or action = ?3) and (?4 is null or target = ?4)
       and (?5 is null or actor = ?5) and (?6 is null or outcome = ?6)
       and (?8 is null or at >= ?8) and (?9 is null or at < ?9)
     order by seq desc limit ?7`,
    beforeSeq ?? Number.MAX_SAFE_INTEGER,
    action ?? null,
    target ?? null,
    actor ?? null,
    outcome ?? null,
    limit,
    from ?? null,
    to ?? null,
  );
  return rows.map(toEntry);
}

/** A page of an org's entries, the newest first. */
export function pageAudit(
  org: Org,
  { action, target, actor, outcome, from, to }: AuditSearch,
  window: Window,
): Promise<Page<AuditEntry>> {
  const sql = `select ${COLUMNS} from audit_entries
    where org_id = ?1 and (?2 is null or action = ?2) and (?3 is null or target = ?3)
      and (?4 is null or actor = ?4) and (?5 is null or outcome = ?5)
      and (?6 is null or at >= ?6) and (?7 is null or at < ?7)`;
  const args = [action, target, actor, outcome, from, to].map((value) => value ?? null);
  return readPage(org, { sql, args, order: 'seq', isDescending: true }, window, toEntry);
}

/** The entry of an id. */
export async function readAuditEntry(org: Org, id: string): Promise<AuditEntry | undefined> {
  const row = await org.first(
    `select ${COLUMNS} from audit_entries where org_id = ?1 and id = ?2`,
    id,
  );
  return row && toEntry(row);
}

const PAGE = 500;

/** Every entry of a chain in its order, read in pages. */
export async function* readChain(org: Org): AsyncGenerator<AuditEntry> {
  for (let seq = 0; ; ) {
    const rows = await org.read(
      `select ${COLUMNS} from audit_entries
       where org_id = ?1 and seq > ?2 order by seq limit ?3`,
      seq,
      PAGE,
    );
    yield* rows.map(toEntry);
    if (rows.length < PAGE) return;
    seq = Number(rows.at(-1)?.seq);
  }
}

function toEntry(row: Row): AuditEntry {
  const { salt, payload } = row;
  const erased = salt === null || payload === null;
  return {
    org: String(row.org_id),
    seq: Number(row.seq),
    id: String(row.id),
    at: Number(row.at),
    actorKind: row.actor_kind as ActorKind,
    action: String(row.action),
    target: String(row.target),
    outcome: row.outcome as AuditOutcome,
    commitment: String(row.commitment),
    prevHash: String(row.prev_hash),
    hash: String(row.hash),
    ...(erased ? {} : { payload: { salt: String(salt), text: String(payload) } }),
  };
}

/** What proves something and tells of nobody: it is never erased. */
const PROOFS = `'${ERASURE}', '${ANCHOR}', '${PRUNING}'`;

/** The most payloads that one erasure takes away. */
export const MAX_ERASED = 1_000;

/**
 * Erases what entries say about who acted and what changed; that they were there, what they were
 * about and that they are erased stays, and the chain still verifies.
 *
 * @param seqs At most {@link MAX_ERASED} numbers of entries.
 * @returns how many were erased.
 */
export async function erasePayloads(
  org: Org,
  actor: Actor,
  seqs: readonly number[],
): Promise<number> {
  if (seqs.length > MAX_ERASED) throw new RangeError(`more than ${MAX_ERASED} entries`);
  const [erased] = await org.write(
    org.statement(
      `update audit_entries set salt = null, payload = null
       where org_id = ?1 and payload is not null and action not in (${PROOFS})
         and seq in (select value from json_each(?2))`,
      JSON.stringify(seqs),
    ),
    auditEntry(org, actor, ERASURE, 'audit', { seqs }, { ifChanged: true }),
  );
  return erased!.changes;
}

/**
 * Erases what the oldest entries in which someone acted say, at most {@link MAX_ERASED} of them.
 *
 * @param actorId The id of the user, token or link.
 * @returns how many were erased; as many as can be at once when there may be more.
 */
export async function eraseActor(org: Org, actor: Actor, actorId: string): Promise<number> {
  const seqs = await entriesOf(org, actorId);
  return seqs.length === 0 ? 0 : await erasePayloads(org, actor, seqs);
}

/** The numbers of the entries in which a person acted, at most {@link MAX_ERASED}, oldest first. */
export async function entriesOf(org: Org, actorId: string): Promise<number[]> {
  const rows = await org.read(
    `select seq from audit_entries
     where org_id = ?1 and actor = ?2 and action not in (${PROOFS}) order by seq limit ?3`,
    actorId,
    MAX_ERASED,
  );
  return rows.map(({ seq }) => Number(seq));
}

/**
 * Takes what was recorded before there was a chain into it, in the order of time.
 *
 * @returns how many entries.
 */
export async function chainHistory(db: Database): Promise<number> {
  for (let total = 0; ; ) {
    const rows = await db.read(
      `select id, org_id, actor, action, target, detail, created_at from audit_history
       order by org_id, created_at, id limit ${PAGE}`,
      [],
    );
    if (!rows[0]) return total;
    const org = forOrg(db, rows[0].org_id as Org['id']);
    const page = rows.filter((row) => row.org_id === org.id);
    await org.write(
      org.statement(
        `delete from audit_history
         where org_id = ?1 and id in (select value from json_each(?2))`,
        JSON.stringify(page.map(({ id }) => id)),
      ),
      ...page.map((row) => recall(org, row)),
    );
    total += page.length;
  }
}

function recall(org: Org, row: Row): AuditDraft {
  const detail = row.detail === null ? undefined : (JSON.parse(String(row.detail)) as object);
  const made = auditEntry(org, 'operator', String(row.action), String(row.target), detail);
  return { ...made, facts: { ...made.facts, id: String(row.id), at: Number(row.created_at) } };
}
