/** The audit chain: what an entry's hash is made of, what is kept out of it, and how it is checked. */

import { z } from 'zod';
import type { OrgId } from './ids.ts';

/** What stands for the org in the platform's own chain. */
export const PLATFORM_CHAIN = '*' as OrgId;

/** Who did something: kinds of actors. */
const ACTOR_KINDS = ['operator', 'user', 'token', 'platform', 'system', 'link'] as const;

export type ActorKind = (typeof ACTOR_KINDS)[number];

/** The longest payload, in characters; a longer one is left out and says so. */
export const MAX_PAYLOAD_CHARS = 65_536;

/** Whether what was asked for was done. */
export type AuditOutcome = 'allowed' | 'refused';

/** What an entry says for ever: it stands in the chain. */
export interface AuditFacts {
  readonly id: string;
  /** Unix milliseconds. */
  readonly at: number;
  readonly actorKind: ActorKind;
  readonly action: string;
  /** An id or a name, never a person's. */
  readonly target: string;
  readonly outcome: AuditOutcome;
  /** The {@link commitmentOf} its payload. */
  readonly commitment: string;
}

/** An entry's place in the chain of its org. */
export interface AuditLink {
  readonly org: string;
  /** From 1, without gaps. */
  readonly seq: number;
  /** The hash of the entry before; {@link GENESIS} for the first. */
  readonly prevHash: string;
}

/** What an entry says until it is erased: JSON, and the salt that keeps it from being guessed. */
export interface AuditPayload {
  readonly salt: string;
  readonly text: string;
}

/** An entry as it is stored and exported. */
export interface AuditEntry extends AuditFacts, AuditLink {
  readonly hash: string;
  /** Absent once erased. */
  readonly payload?: AuditPayload | undefined;
}

const text = z.string().max(4_096);
const hex = z.string().regex(/^[0-9a-f]{64}$/);

/** An entry as a line of an export has it. */
export const AUDIT_ENTRY = z.object({
  org: text,
  seq: z.int().positive(),
  id: text,
  at: z.int(),
  actorKind: z.enum(ACTOR_KINDS),
  action: text,
  target: text,
  outcome: z.enum(['allowed', 'refused']),
  commitment: hex,
  prevHash: hex,
  hash: hex,
  payload: z.object({ salt: text, text: z.string().max(MAX_PAYLOAD_CHARS) }).optional(),
});

/** SHA-256 of text as UTF-8, in lower-case hex. */
export type Sha256 = (text: string) => string;

/** What stands before the first entry. */
export const GENESIS = '0'.repeat(64);

/** The action of an entry that tells which payloads were erased, as `seqs` in its payload. */
export const ERASURE = 'audit.erase';

/**
 * The text whose hash is an entry's: a JSON array of strings and whole numbers, for which
 * `JSON.stringify` writes the one form of RFC 8785.
 */
export function canonicalEntry(link: AuditLink, facts: AuditFacts): string {
  return JSON.stringify([
    'rungate.audit.v1',
    link.org,
    link.seq,
    link.prevHash,
    facts.id,
    facts.at,
    facts.actorKind,
    facts.action,
    facts.target,
    facts.outcome,
    facts.commitment,
  ]);
}

/**
 * What the chain holds of a payload. Once salt and text are erased, it tells nothing about them,
 * and the chain still verifies.
 */
export function commitmentOf({ salt, text }: AuditPayload, sha256: Sha256): string {
  return sha256(JSON.stringify(['rungate.audit.payload.v1', salt, text]));
}

/** Who acted, as a payload has him. */
export interface AuditActor {
  /** The id of the user, token or link, or `operator` or `system`. */
  readonly id: string;
  readonly memberId?: string;
  readonly role?: string;
  readonly tokenId?: string;
  readonly address?: string;
  readonly userAgent?: string;
  readonly requestId?: string;
}

/** What a payload says. */
export interface AuditStory {
  readonly actor: AuditActor;
  /** The states around the change, as far as there are any. */
  readonly before?: unknown;
  readonly after?: unknown;
  /** How long the states were that were too long to be kept. */
  readonly omitted?: string;
}

/** What an entry says beside its facts; undefined once it is erased. */
export function storyOf({ payload }: AuditEntry): AuditStory | undefined {
  return payload && (JSON.parse(payload.text) as AuditStory);
}

const SECRET_KEYS =
  /^(secret|secrets|password|passphrase|hash|api_?key|private_?key|authorization|cookie|verifier|code_?verifier|nonce|credential|client_?secret|signing_?secret|master_?keys?)$/i;
const SECRET_VALUES =
  /\b(rg_(agt|adm|platform)_[A-Za-z0-9]{8,}|whsec_[A-Za-z0-9+/=_-]{8,}|sk-[A-Za-z0-9_-]{8,})|\bBearer\s+\S+/g;
const REDACTED = '[redacted]';

/** JSON for a payload: members that are secrets by their name, and text that is one, left out. */
export function payloadText(value: object): string {
  const text = JSON.stringify(value, (key, member: unknown) => {
    if (SECRET_KEYS.test(key) && member !== null) return REDACTED;
    return typeof member === 'string' ? member.replace(SECRET_VALUES, REDACTED) : member;
  });
  return text;
}

/** A state of the chain to hold against it later. */
export interface ChainPoint {
  readonly seq: number;
  readonly hash: string;
}

/** A state of the chain that was signed. */
export interface Checkpoint extends ChainPoint {
  readonly org: string;
  /** Unix milliseconds. */
  readonly at: number;
  /** `head`: the chain was at this entry. `pruned`: all up to this entry was rightly deleted. */
  readonly purpose: 'head' | 'pruned';
}

/** What is wrong with a chain. */
export interface ChainFault {
  /** Where it shows. */
  readonly seq: number;
  readonly fault:
    | 'sequence'
    | 'link'
    | 'content'
    | 'payload'
    | 'erased'
    | 'checkpoint'
    | 'truncated'
    | 'signature';
  /** One sentence. */
  readonly message: string;
}

/** What a check has found. */
export interface ChainReport {
  readonly ok: boolean;
  readonly entries: number;
  /** Payloads that were erased, and said to be. */
  readonly erased: number;
  readonly head: ChainPoint | undefined;
  readonly faults: readonly ChainFault[];
}

const MAX_FAULTS = 100;

/**
 * Checks a chain entry by entry, in the order of their numbers. What was signed or held is checked
 * against it, so that a rewritten or shortened chain is found too.
 */
export class ChainCheck {
  readonly #org: string;
  readonly #sha256: Sha256;
  readonly #points: readonly ChainPoint[];
  readonly #faults: ChainFault[] = [];
  /** Payloads that are gone and that no entry has yet said to be erased. */
  readonly #missing = new Set<number>();
  #head: ChainPoint;
  #entries = 0;
  #erased = 0;

  /**
   * @param start The state that the first entry must follow: that of a signed pruning, or none.
   * @param points States that the chain must have gone through, such as held checkpoints.
   */
  constructor(
    org: string,
    sha256: Sha256,
    start: ChainPoint = { seq: 0, hash: GENESIS },
    points: readonly ChainPoint[] = [],
  ) {
    this.#org = org;
    this.#sha256 = sha256;
    this.#head = start;
    // Of what was pruned only the end can be compared.
    this.#points = points.filter(({ seq }) => seq >= start.seq);
    this.#comparePoints(start);
  }

  /** Takes the next entry. */
  add(entry: AuditEntry): void {
    this.#entries++;
    this.#checkPlace(entry);
    this.#checkContent(entry);
    this.#checkPayload(entry);
    this.#head = { seq: entry.seq, hash: entry.hash };
    this.#comparePoints(this.#head);
  }

  /** Ends the check. */
  report(): ChainReport {
    for (const { seq } of this.#points) {
      if (seq > this.#head.seq) {
        this.#fail(seq, 'truncated', `the chain ends at ${this.#head.seq}, before what was signed`);
      }
    }
    for (const seq of this.#missing) {
      this.#fail(seq, 'erased', 'the payload is gone and no entry says that it was erased');
    }
    const faults = this.#faults;
    const head = this.#head.seq > 0 ? this.#head : undefined;
    return {
      ok: faults.length === 0,
      entries: this.#entries,
      erased: this.#erased,
      head,
      faults,
    };
  }

  #checkPlace(entry: AuditEntry): void {
    const { seq, hash } = this.#head;
    if (entry.seq !== seq + 1) {
      this.#fail(entry.seq, 'sequence', `entry ${seq + 1} is due, and ${entry.seq} stands there`);
    }
    if (entry.prevHash !== hash) {
      this.#fail(entry.seq, 'link', 'it does not follow the entry before it');
    }
    if (entry.org !== this.#org) this.#fail(entry.seq, 'content', 'it belongs to another org');
  }

  #checkContent(entry: AuditEntry): void {
    if (this.#sha256(canonicalEntry(entry, entry)) !== entry.hash) {
      this.#fail(entry.seq, 'content', 'it is not what was hashed');
    }
  }

  #checkPayload(entry: AuditEntry): void {
    const { payload, seq } = entry;
    if (!payload) {
      this.#missing.add(seq);
      return;
    }
    if (commitmentOf(payload, this.#sha256) !== entry.commitment) {
      this.#fail(seq, 'payload', 'its payload is not what was committed to');
      return;
    }
    if (entry.action === ERASURE && entry.outcome === 'allowed') this.#excuse(payload);
  }

  #excuse(payload: AuditPayload): void {
    for (const seq of erasedSeqs(payload)) {
      if (this.#missing.delete(seq)) this.#erased++;
    }
  }

  #comparePoints({ seq, hash }: ChainPoint): void {
    for (const point of this.#points) {
      if (point.seq === seq && point.hash !== hash) {
        this.#fail(seq, 'checkpoint', 'it is another entry than the one that was signed');
      }
    }
  }

  #fail(seq: number, fault: ChainFault['fault'], message: string): void {
    if (this.#faults.length < MAX_FAULTS) this.#faults.push({ seq, fault, message });
  }
}

/** A forged chain may hold any text: what tells of no entries excuses none. */
function erasedSeqs({ text }: AuditPayload): readonly number[] {
  try {
    const story = JSON.parse(text) as { after?: { seqs?: unknown } | null } | null;
    const seqs = story?.after?.seqs;
    return Array.isArray(seqs) ? seqs.filter((seq) => Number.isSafeInteger(seq)) : [];
  } catch {
    return [];
  }
}
