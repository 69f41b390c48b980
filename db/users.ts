/** Users: a person is one user in all orgs, known by his e-mail address. */

import type { MemberId, OrgId, UserId } from '../schema/ids.ts';
import type { Role } from '../schema/roles.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Database, Statement } from './client.ts';
import type { Org } from './org.ts';
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

/** The statement that makes the user of an address, if there is none. */
export function userStatement(email: string, now: number): Statement {
  return {
    sql: 'insert into users (id, email, created_at) values (?1, ?2, ?3) on conflict do nothing',
    args: [newId('user', now), email, now],
  };
}

/**
 * The statements that forget people who are in no org any more, and their links to sign in. They
 * leave alone whoever is a member, so that they may follow a change that came to nothing.
 *
 * @param by What the values are: ids, or addresses in their one spelling.
 */
export function forgetting(by: 'id' | 'email', values: readonly string[]): Statement[] {
  const alone = `users where ${by} in (select value from json_each(?1))
    and not exists (select 1 from members m where m.user_id = users.id)`;
  const args = [JSON.stringify(values)];
  return [
    { sql: `delete from sign_in_links where email in (select email from ${alone})`, args },
    { sql: `delete from ${alone}`, args },
  ];
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

/**
 * Changes what a person is called in all his orgs, by that person alone, signed in to one of them.
 *
 * @param name On one line.
 * @returns false for who acts by a token, or is nobody of the org.
 */
export async function renameUser(org: Org, actor: Actor, name: string): Promise<boolean> {
  if (typeof actor === 'string' || actor.kind !== 'user' || !actor.memberId) return false;
  const [renamed] = await org.write(
    org.statement(
      `update users set name = ?3
       where id = (select user_id from members where org_id = ?1 and id = ?2)`,
      actor.memberId,
      name,
    ),
    auditEntry(org, actor, 'user.rename', actor.id, { name }, { ifChanged: true }),
  );
  return renamed!.changes > 0;
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
