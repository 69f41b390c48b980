/** The operator's view of all accounts: who they are and on which plan, and nothing they contain. */

import { type Cidr, formatCidr, inCidrs, parseCidrList } from '../schema/address.ts';
import { type AuditEntry, PLATFORM_CHAIN } from '../schema/audit.ts';
import { Refusal } from '../schema/errors.ts';
import type { OrgId, TokenId } from '../schema/ids.ts';
import { lastFour, readToken } from '../schema/token.ts';
import { type Actor, auditEntry, listAudit, refuse } from './audit.ts';
import type { Database, Row, Statement, Value } from './client.ts';
import { forOrg, type Org } from './org.ts';
import { type Account, type CreatedOrg, DELETION_DELAY_MS, openAccount } from './orgs.ts';
import { announce } from './outbox.ts';
import { hashToken, type MasterKeys, newId, newToken } from './seal.ts';

/** The plans of accounts. */
export const PLANS = ['free', 'pro', 'growth', 'enterprise'] as const;

export type Plan = (typeof PLANS)[number];

/** An account as the operator of the platform sees it. */
export interface PlatformAccount extends Account {
  readonly members: number;
  readonly agents: number;
}

const HOUR_MS = 3_600_000;

/**
 * What the operator of the platform can do. It holds no door to an org: each method is one of these
 * queries, and none of them reads runs, policies, keys, logs or anything else of an org's own.
 */
export class Platform {
  readonly #db: Database;
  readonly #actor: Actor;

  /** Use {@link openPlatform} or {@link operatePlatform}. */
  constructor(db: Database, actor: Actor) {
    this.#db = db;
    this.#actor = actor;
  }

  /** Accounts in the order in which they came; `after` is the last id of the page before. */
  async listAccounts(limit: number, after = ''): Promise<PlatformAccount[]> {
    const rows = await this.#db.read(`${ACCOUNTS} where o.id > ?1 order by o.id limit ?2`, [
      after,
      limit,
    ]);
    return rows.map(toAccount);
  }

  /** The account of a slug. */
  async findAccount(slug: string): Promise<PlatformAccount | undefined> {
    const row = await this.#db.first(`${ACCOUNTS} where o.slug = ?1`, [slug]);
    return row && toAccount(row);
  }

  /** Makes an account, whose owner signs in by mail; who makes it gets no token of it. */
  async createAccount(
    master: MasterKeys,
    name: string,
    ownerEmail: string,
  ): Promise<Omit<CreatedOrg, 'adminToken'>> {
    const made = await openAccount(this.#db, master, this.#actor, name, ownerEmail);
    await this.#chain().write(this.#entry('account.create', made.id, { slug: made.slug }));
    return made;
  }

  /** Suspends an account: all of its tokens and sessions are refused. @returns whether it changed. */
  async suspendAccount(id: OrgId, now: number): Promise<boolean> {
    const sql = 'update orgs set suspended_at = ?2 where id = ?1 and suspended_at is null';
    return await this.#change('account.suspend', id, { sql, args: [id, now] }, 'suspended');
  }

  /** Lets a suspended account work again. @returns whether it changed. */
  async resumeAccount(id: OrgId): Promise<boolean> {
    const sql = 'update orgs set suspended_at = null where id = ?1 and suspended_at is not null';
    return await this.#change('account.resume', id, { sql, args: [id] }, 'resumed');
  }

  /** Changes the plan of an account. @returns whether it changed. */
  async changePlan(id: OrgId, plan: Plan): Promise<boolean> {
    const sql = 'update orgs set plan = ?2 where id = ?1 and plan <> ?2';
    return await this.#change('account.plan', id, { sql, args: [id, plan] }, `plan_${plan}`, {
      plan,
    });
  }

  /** Asks for the deletion of an account in 24 hours. @returns whether it changed. */
  async deleteAccount(id: OrgId, now: number): Promise<boolean> {
    const sql = `update orgs set deletion_requested_at = ?2, deletes_at = ?3
      where id = ?1 and deletion_requested_at is null`;
    const args = [id, now, now + DELETION_DELAY_MS];
    return await this.#change('account.delete', id, { sql, args }, 'deletion_requested');
  }

  /** The platform's own audit trail, the newest entries first. */
  async listAudit(limit: number, beforeSeq?: number): Promise<AuditEntry[]> {
    return await listAudit(this.#chain(), {
      limit,
      ...(beforeSeq === undefined ? {} : { beforeSeq }),
    });
  }

  async #change(
    action: string,
    id: OrgId,
    change: Statement,
    what: string,
    after?: object,
  ): Promise<boolean> {
    const org = forOrg(this.#db, id);
    const [changed] = await this.#chain().write(
      change,
      this.#entry(action, id, after, true),
      announce(org, 'account.updated', { change: what }, Date.now(), { ifChanged: true }),
    );
    return changed!.changes > 0;
  }

  #entry(action: string, target: string, after?: object, ifChanged = false): Statement {
    return auditEntry(this.#chain(), this.#actor, action, target, after, { ifChanged });
  }

  #chain(): Org {
    return forOrg(this.#db, PLATFORM_CHAIN);
  }
}

const ACCOUNTS = `
  select o.id, o.slug, o.name, o.plan, o.created_at, o.suspended_at, o.deletion_requested_at,
    o.deletes_at,
    (select count(*) from members m where m.org_id = o.id) as members,
    (select count(*) from agents a where a.org_id = o.id) as agents
  from orgs o`;

function toAccount(row: Row): PlatformAccount {
  return {
    id: row.id as OrgId,
    slug: String(row.slug),
    name: String(row.name),
    plan: String(row.plan),
    createdAt: Number(row.created_at),
    suspendedAt: row.suspended_at as number | null,
    deletionRequestedAt: row.deletion_requested_at as number | null,
    deletesAt: row.deletes_at as number | null,
    members: Number(row.members),
    agents: Number(row.agents),
  };
}

/** The platform for who is at the command line. */
export function operatePlatform(db: Database): Platform {
  return new Platform(db, 'operator');
}

/** The longest life of a platform token. */
export const MAX_PLATFORM_TOKEN_MS = 366 * 86_400_000;

/** A platform token as people see it. */
export interface PlatformToken {
  readonly id: TokenId;
  readonly name: string;
  readonly lastFour: string;
  /** The ranges from which it may be used, canonical. */
  readonly allow: readonly string[];
  readonly createdAt: number;
  readonly expiresAt: number;
  readonly revokedAt: number | null;
  readonly lastUsedAt: number | null;
}

/**
 * Makes a token of the platform.
 *
 * @param allow The ranges of addresses from which it may be used; at least one.
 * @param lifeMs How long it is good for, at most {@link MAX_PLATFORM_TOKEN_MS}.
 * @returns the token's id and its text, shown once.
 * @throws {RangeError} without a range or with a life out of bounds.
 */
export async function createPlatformToken(
  db: Database,
  name: string,
  allow: readonly Cidr[],
  lifeMs: number,
  now: number,
): Promise<{ id: TokenId; token: string }> {
  if (allow.length === 0) throw new RangeError('A platform token needs ranges to be used from.');
  if (!(lifeMs > 0 && lifeMs <= MAX_PLATFORM_TOKEN_MS)) {
    throw new RangeError('A platform token lives for at most 366 days.');
  }
  const text = newToken('platform');
  const id = newId('token', now);
  const ranges = allow.map(formatCidr);
  const chain = forOrg(db, PLATFORM_CHAIN);
  const expiresAt = now + lifeMs;
  await chain.write(
    {
      sql: `insert into platform_tokens (id, name, hash, last_four, allow, created_at, expires_at)
        values (?1, ?2, ?3, ?4, ?5, ?6, ?7)`,
      args: [id, name, hashToken(text), lastFour(text), ranges.join(','), now, expiresAt],
    },
    auditEntry(chain, 'operator', 'platform_token.create', id, { name, allow: ranges, expiresAt }),
  );
  return { id, token: text };
}

/** Every token of the platform, the newest first. */
export async function listPlatformTokens(db: Database): Promise<PlatformToken[]> {
  const rows = await db.read(
    `select id, name, last_four, allow, created_at, expires_at, revoked_at, last_used_at
     from platform_tokens order by id desc`,
    [],
  );
  return rows.map((row) => ({
    id: row.id as TokenId,
    name: String(row.name),
    lastFour: String(row.last_four),
    allow: String(row.allow).split(','),
    createdAt: Number(row.created_at),
    expiresAt: Number(row.expires_at),
    revokedAt: row.revoked_at as number | null,
    lastUsedAt: row.last_used_at as number | null,
  }));
}

/** Ends a token of the platform, from the next request on. @returns false when it had ended. */
export async function revokePlatformToken(
  db: Database,
  id: TokenId,
  now: number,
): Promise<boolean> {
  const chain = forOrg(db, PLATFORM_CHAIN);
  const [ended] = await chain.write(
    {
      sql: 'update platform_tokens set revoked_at = ?2 where id = ?1 and revoked_at is null',
      args: [id, now],
    },
    auditEntry(chain, 'operator', 'platform_token.revoke', id, undefined, { ifChanged: true }),
  );
  return ended!.changes > 0;
}

/** Where a request with a platform token comes from. */
export interface PlatformCaller {
  /** The client's address, from the socket or a configured proxy. */
  readonly address: string;
  /** Further addresses of a machine that speaks for itself; one of them all has to be in range. */
  readonly alsoAt?: readonly string[];
  readonly userAgent?: string;
  readonly requestId?: string;
}

/**
 * Opens the platform with a token of it.
 *
 * @throws {Refusal} `invalid_token` for one that is mistyped, unknown, expired or revoked;
 *   `permission_denied`, recorded, from an address outside its ranges.
 */
export async function openPlatform(
  db: Database,
  text: string,
  caller: PlatformCaller,
  now: number,
): Promise<Platform> {
  const row = await findPlatformToken(db, text, now);
  if (!row) {
    throw new Refusal('invalid_token', 'The platform token is mistyped, expired or revoked.');
  }
  const id = String(row.id);
  const { alsoAt = [], ...from } = caller;
  const allow = parseCidrList(String(row.allow));
  const address = [from.address, ...alsoAt].find((each) => inCidrs(each, allow));
  const seen = { ...from, address: address ?? from.address };
  const actor: Actor = { kind: 'platform', id, tokenId: id, ...seen };
  if (address === undefined) {
    const refusal = new Refusal('permission_denied', 'The token is not good from this address.', {
      rule: 'platform_token.allow',
      asked: caller.address,
    });
    await refuse(forOrg(db, PLATFORM_CHAIN), actor, 'platform_token.use', id, refusal);
  }
  await touch(db, row, now);
  return new Platform(db, actor);
}

async function findPlatformToken(
  db: Database,
  text: string,
  now: number,
): Promise<Row | undefined> {
  if (readToken(text)?.kind !== 'platform') return undefined;
  return await db.first(
    `select id, allow, last_used_at from platform_tokens
     where hash = ?1 and revoked_at is null and expires_at > ?2`,
    [hashToken(text), now],
  );
}

/** Notes that a token is in use, to the hour. */
async function touch(db: Database, { id, last_used_at: used }: Row, now: number): Promise<void> {
  const hour = now - (now % HOUR_MS);
  if (Number(used ?? 0) >= hour) return;
  const args: Value[] = [id!, hour];
  await db.write([{ sql: 'update platform_tokens set last_used_at = ?2 where id = ?1', args }]);
}
