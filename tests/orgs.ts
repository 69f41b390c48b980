/** Orgs for tests of the database: a file of their own, members in any role, and who they act as. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Actor, Principal } from '../db/audit.ts';
import { type Database, openDatabase } from '../db/client.ts';
import { acceptInvitation, invite } from '../db/invitations.ts';
import { changeRole, findMember, type Member, readMember } from '../db/members.ts';
import { migrate } from '../db/migrate.ts';
import { forOrg, type Org } from '../db/org.ts';
import { createOrg } from '../db/orgs.ts';
import { type MasterKeys, newMasterKey, openMasterKeys } from '../db/seal.ts';
import type { OrgId } from '../schema/ids.ts';
import { actionsOf, type Role } from '../schema/roles.ts';

/** A database in a folder of its own, with master keys of its own. */
export interface Ground {
  readonly db: Database;
  readonly master: MasterKeys;
  readonly masterText: string;
  readonly url: string;
  readonly folder: string;
  /** A further connection, as another process would have. */
  connect(): Promise<Database>;
  clear(): Promise<void>;
}

/** Makes a migrated database. Always clear it. */
export async function makeGround(): Promise<Ground> {
  const folder = mkdtempSync(join(tmpdir(), 'rungate-orgs-'));
  const url = `file:${folder}/rungate.db`;
  const open: Database[] = [];
  const connect = async () => {
    const db = await openDatabase({ url, synchronous: 'normal' });
    open.push(db);
    return db;
  };
  const db = await connect();
  await migrate(db);
  const masterText = newMasterKey('test');
  const clear = async () => {
    for (const each of open) await each.close();
    rmSync(folder, { recursive: true, force: true });
  };
  const master = openMasterKeys(masterText);
  return { db, master, masterText, url, folder, connect, clear };
}

let count = 0;

/** An org just made, with its owner. */
export interface Made {
  readonly org: Org;
  readonly slug: string;
  readonly owner: Member;
  readonly adminToken: string;
}

/** Makes an org with an owner. */
export async function makeOrg({ db, master }: Ground): Promise<Made> {
  const email = `owner${++count}@example.com`;
  const { id, slug, adminToken } = await createOrg(db, master, 'operator', `Org ${count}`, email);
  const org = forOrg(db, id as OrgId);
  return { org, slug, adminToken, owner: (await findMember(org, email))! };
}

/** Lets a person join in a role. */
export async function addMember(
  { db }: Pick<Ground, 'db'>,
  org: Org,
  role: Role,
  email = `member${++count}@example.com`,
): Promise<Member> {
  const first = role === 'owner' ? 'admin' : role;
  const now = Date.now();
  const { secret } = await invite(org, 'operator', email, first, now);
  const { memberId } = await acceptInvitation(db, secret, now);
  if (first !== role) await changeRole(org, 'operator', memberId, role);
  return (await readMember(org, memberId))!;
}

/** A member who acts through a session. */
export function as({ id, userId, role }: Member): Principal & Exclude<Actor, string> {
  return { kind: 'user', id: userId, memberId: id, role, actions: actionsOf(role) };
}
