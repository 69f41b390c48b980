/** Users: a person is one user in all orgs, known by his e-mail address. */

import type { MemberId, OrgId, UserId } from '../schema/ids.ts';
import type { Role } from '../schema/roles.ts';
import type { Database, Statement } from './client.ts';
import { newId } from './seal.ts';

/** A person. */
export interface User {
  readonly id: UserId;
  readonly email: string;
  readonly name: string | null;
}

/** A person's place in an org. */
export interface Membership {
  readonly orgId: OrgId;
  readonly slug: string;
  readonly orgName: string;
  readonly memberId: MemberId;
  readonly role: Role;
}

/** The longest name of a person, in characters. */
export const MAX_USER_NAME_CHARS = 100;

/** The statement that makes the user of an address, if there is none. */
export function userStatement(email: string, now: number): Statement {
  return {
    sql: 'insert into users (id, email, created_at) values (?1, ?2, ?3) on conflict do nothing',
    args: [newId('user', now), email, now],
  };
}

/** The user of an address in its one spelling. */
export async function findUser(db: Database, email: string): Promise<User | undefined> {
  const row = await db.first('select id, email, name from users where email = ?1', [email]);
  return (
    row && {
      id: row.id as UserId,
      email: String(row.email),
      name: row.name as string | null,
    }
  );
}

/** Changes what a person is called, by that person alone. */
export async function renameUser(db: Database, id: UserId, name: string): Promise<void> {
  const text = name.trim().slice(0, MAX_USER_NAME_CHARS);
  await db.write([{ sql: 'update users set name = ?2 where id = ?1', args: [id, text] }]);
}

/**
 * The orgs of the person of an address, by name. Only for who has proven to be that person.
 */
export async function membershipsOf(db: Database, email: string): Promise<Membership[]> {
  const rows = await db.read(
    `select o.id, o.slug, o.name, m.id as member_id, m.role
     from users u join members m on m.user_id = u.id join orgs o on o.id = m.org_id
     where u.email = ?1 order by o.name, o.id`,
    [email],
  );
  return rows.map((row) => ({
    orgId: row.id as OrgId,
    slug: String(row.slug),
    orgName: String(row.name),
    memberId: row.member_id as MemberId,
    role: row.role as Role,
  }));
}
