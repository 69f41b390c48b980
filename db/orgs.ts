/** Orgs: made by the operator, found by their slug. */

import type { OrgId, UserId } from '../schema/ids.ts';
import type { Actor } from './audit.ts';
import { auditEntry } from './audit.ts';
import { type Database, DatabaseError, type Statement } from './client.ts';
import { forOrg, type Org } from './org.ts';
import { type MasterKeys, makeOrgKey, newId } from './seal.ts';
import { mintToken } from './tokens.ts';

/** An org just made, with its first admin token, shown once. */
export interface CreatedOrg {
  readonly id: OrgId;
  readonly slug: string;
  readonly adminToken: string;
}

const MAX_SLUG_LENGTH = 40;
const SLUG_TRIES = 20;

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
  const base = slugOf(name);
  for (let attempt = 1; ; attempt++) {
    const slug = attempt === 1 ? base : `${base}-${attempt}`;
    const org = forOrg(db, newId('org'));
    const minted = mintToken(org, actor, null, null);
    try {
      await org.write(
        ...foundation(org, slug, name, await makeOrgKey(master, org.id)),
        ...ownership(org, ownerEmail),
        minted.statement,
        auditEntry(org, actor, 'org.create', org.id, { slug, name, owner: ownerEmail }),
      );
      return { id: org.id, slug, adminToken: minted.text };
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
function ownership(org: Org, email: string): Statement[] {
  const user: UserId = newId('user');
  return [
    {
      sql: 'insert into users (id, email, created_at) values (?1, ?2, ?3) on conflict do nothing',
      args: [user, email, Date.now()],
    },
    org.statement(
      `insert into members (org_id, id, user_id, role, created_at)
       select ?1, ?2, id, 'owner', ?4 from users where email = ?3`,
      newId('member'),
      email,
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
