/** Orgs: made by the operator, found by their slug, changed and given up by their owners. */

import { Refusal } from '../schema/errors.ts';
import type { MemberId, OrgId, UserId } from '../schema/ids.ts';
import { actionsOf } from '../schema/roles.ts';
import { type Actor, auditEntry, refuse } from './audit.ts';
import { type Database, DatabaseError, type Statement } from './client.ts';
import { forOrg, type Org } from './org.ts';
import { announce } from './outbox.ts';
import { type MasterKeys, makeOrgKey, newId } from './seal.ts';
import { mintAdminToken } from './tokens.ts';

/** An org just made, with its first admin token, shown once. */
export interface CreatedOrg {
  readonly id: OrgId;
  readonly slug: string;
  readonly adminToken: string;
}

const MAX_SLUG_LENGTH = 40;
const SLUG_TRIES = 20;

/** The owner's first token, which may do all that he may. */
const FIRST_TOKEN = { name: 'init', actions: actionsOf('owner'), expiresAt: null };

/**
 * Makes an org with its sealing key, its owner and an admin token, or nothing at all.
 *
 * @param slugTries How many slugs to try: the name's own, then with `-2`, `-3` … behind it.
 * @throws {DatabaseError} a conflict, when all of them are taken.
 */
export async function createOrg(
  db: Database,
  master: MasterKeys,
  actor: Actor,
  name: string,
  ownerEmail: string,
  slugTries = SLUG_TRIES,
): Promise<CreatedOrg> {
  let adminToken = '';
  const made = await foundOrg(db, master, name, ownerEmail, slugTries, (org, owner, slug) => {
    const minted = mintAdminToken(org, { id: owner, role: 'owner' }, FIRST_TOKEN);
    adminToken = minted.text;
    return [minted.statement, auditEntry(org, actor, 'org.create', org.id, { slug, name, owner })];
  });
  return { ...made, adminToken };
}

/**
 * Makes an org with its sealing key and its owner, who signs in by mail: no token is made, so that
 * who makes it can't enter it.
 *
 * @throws {DatabaseError} a conflict, when all slugs that are tried are taken.
 */
export async function openAccount(
  db: Database,
  master: MasterKeys,
  actor: Actor,
  name: string,
  ownerEmail: string,
): Promise<Omit<CreatedOrg, 'adminToken'>> {
  return await foundOrg(db, master, name, ownerEmail, SLUG_TRIES, (org, owner, slug) => [
    auditEntry(org, actor, 'org.create', org.id, { slug, name, owner }),
  ]);
}

/** @param more What else the same transaction writes. */
async function foundOrg(
  db: Database,
  master: MasterKeys,
  name: string,
  ownerEmail: string,
  slugTries: number,
  more: (org: Org, owner: MemberId, slug: string) => Statement[],
): Promise<Omit<CreatedOrg, 'adminToken'>> {
  const base = slugOf(name);
  for (let attempt = 1; ; attempt++) {
    const slug = attempt === 1 ? base : `${base}-${attempt}`;
    const org = forOrg(db, newId('org'));
    const owner = newId('member');
    try {
      await org.write(
        ...foundation(org, slug, name, await makeOrgKey(master, org.id)),
        ...ownership(org, owner, ownerEmail),
        ...more(org, owner, slug),
      );
      return { id: org.id, slug };
    } catch (error) {
      const taken = error instanceof DatabaseError && error.conflict;
      if (!taken || attempt === slugTries) throw error;
    }
  }
}

/** The org of a slug. */
export async function findOrg(db: Database, slug: string): Promise<Org | undefined> {
  const rows = await db.read('select id from orgs where slug = ?1', [slug]);
  return rows[0] && forOrg(db, rows[0].id as OrgId);
}

/** Whether there is no org yet. */
export async function isEmpty(db: Database): Promise<boolean> {
  return (await db.read('select 1 as found from orgs limit 1', [])).length === 0;
}

function foundation(org: Org, slug: string, name: string, wrapped: string): Statement[] {
  const now = Date.now();
  return [
    {
      sql: 'insert into orgs (id, slug, name, created_at) values (?1, ?2, ?3, ?4)',
      args: [org.id, slug, name, now],
    },
    org.statement(
      'insert into org_keys (org_id, wrapped, created_at) values (?1, ?2, ?3)',
      wrapped,
      now,
    ),
  ];
}

/** A person is one user in all orgs; membership is per org. */
function ownership(org: Org, owner: MemberId, email: string): Statement[] {
  const user: UserId = newId('user');
  return [
    {
      sql: 'insert into users (id, email, created_at) values (?1, ?2, ?3) on conflict do nothing',
      args: [user, email.toLowerCase(), Date.now()],
    },
    org.statement(
      `insert into members (org_id, id, user_id, role, created_at)
       select ?1, ?2, id, 'owner', ?4 from users where email = ?3`,
      owner,
      email.toLowerCase(),
      Date.now(),
    ),
  ];
}

function slugOf(name: string): string {
  const slug = name
    .normalize('NFKD')
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-+|-+$/g, '')
    .slice(0, MAX_SLUG_LENGTH);
  return slug || 'org';
}

/** An org as its members see it. Times in Unix milliseconds. */
export interface Account {
  readonly id: OrgId;
  readonly slug: string;
  readonly name: string;
  readonly plan: string;
  readonly createdAt: number;
  readonly suspendedAt: number | null;
  readonly deletionRequestedAt: number | null;
  /** From when on it may be deleted. */
  readonly deletesAt: number | null;
}

/** The org itself, whose row alone has the org's id for its own. */
export async function readAccount(org: Org): Promise<Account | undefined> {
  const row = await org.first(
    `select o.id, o.slug, o.name, o.plan, o.created_at, o.suspended_at, o.deletion_requested_at,
       o.deletes_at from (select ?1 as org_id) t join orgs o on o.id = t.org_id
     where t.org_id = ?1`,
  );
  return (
    row && {
      id: row.id as OrgId,
      slug: String(row.slug),
      name: String(row.name),
      plan: String(row.plan),
      createdAt: Number(row.created_at),
      suspendedAt: row.suspended_at as number | null,
      deletionRequestedAt: row.deletion_requested_at as number | null,
      deletesAt: row.deletes_at as number | null,
    }
  );
}

/** Renames an org; its slug stays. */
export async function renameOrg(org: Org, actor: Actor, name: string): Promise<void> {
  const before = await readAccount(org);
  await changeAccount(
    org,
    { sql: 'update orgs set name = ?2 where id = ?1 and name <> ?2', args: [org.id, name] },
    auditEntry(org, actor, 'org.update', org.id, { name }, changed({ name: before?.name })),
    'renamed',
  );
}

/** How long a request for deletion may be taken back. */
export const DELETION_DELAY_MS = 86_400_000;

/**
 * Asks for the deletion of an org, which may be taken back for 24 hours; its tokens are suspended.
 *
 * @param confirmation The org's slug, typed by who asks.
 * @throws {Refusal} `invalid_request` when it is not the slug.
 */
export async function requestDeletion(
  org: Org,
  actor: Actor,
  confirmation: string,
  now: number,
): Promise<void> {
  await confirmSlug(org, actor, 'org.delete', confirmation);
  await changeAccount(
    org,
    {
      sql: `update orgs set deletion_requested_at = ?2, deletes_at = ?3
        where id = ?1 and deletion_requested_at is null`,
      args: [org.id, now, now + DELETION_DELAY_MS],
    },
    auditEntry(org, actor, 'org.delete', org.id, { deletesAt: now + DELETION_DELAY_MS }, changed()),
    'deletion_requested',
  );
}

/** Takes a request for deletion back. @returns false when there is none, or its time has come. */
export async function cancelDeletion(org: Org, actor: Actor, now: number): Promise<boolean> {
  return await changeAccount(
    org,
    {
      sql: `update orgs set deletion_requested_at = null, deletes_at = null
        where id = ?1 and deletion_requested_at is not null and deletes_at > ?2`,
      args: [org.id, now],
    },
    auditEntry(org, actor, 'org.cancel_deletion', org.id, undefined, changed()),
    'deletion_cancelled',
  );
}

/**
 * Checks that the org's slug was typed.
 *
 * @throws {Refusal} `invalid_request` when it is something else.
 */
export async function confirmSlug(
  org: Org,
  actor: Actor,
  action: string,
  confirmation: string,
): Promise<void> {
  const slug = (await readAccount(org))?.slug;
  if (slug !== undefined && confirmation === slug) return;
  const refusal = new Refusal('invalid_request', "Type the org's slug to confirm.", {
    field: 'confirmation',
  });
  await refuse(org, actor, action, org.id, refusal);
}

function changed(before?: object) {
  return { before, ifChanged: true };
}

async function changeAccount(
  org: Org,
  change: Statement,
  entry: Statement,
  what: string,
): Promise<boolean> {
  const [result] = await org.write(
    change,
    entry,
    announce(org, 'account.updated', { change: what }, Date.now(), { ifChanged: true }),
  );
  return result!.changes > 0;
}
