/** People for tests: orgs in a process of this one, browsers that come to it, and their letters. */

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { acceptInvitation, invite } from '../db/invitations.ts';
import { changeRole } from '../db/members.ts';
import { forOrg, type Org } from '../db/org.ts';
import { createOrg } from '../db/orgs.ts';
import { makeApp } from '../functions/app.ts';
import { boot, shutDown } from '../functions/boot.ts';
import type { Services } from '../functions/services.ts';
import type { MemberId } from '../schema/ids.ts';
import type { Role } from '../schema/roles.ts';
import { Browser } from './browser.ts';
import { type Mailbox, startMailbox } from './mailbox.ts';

/** Where the process believes to be reached. */
export const HERE = 'http://127.0.0.1:8787';

/** A process with a mail server beside it. */
export interface Town {
  readonly services: Services;
  readonly mailbox: Mailbox;
  clear(): Promise<void>;
}

/** Boots a process on a database of its own. Always clear it. */
export async function makeTown(env: Readonly<Record<string, string>> = {}): Promise<Town> {
  const folder = await mkdtemp(join(tmpdir(), 'rungate-town-'));
  const mailbox = await startMailbox();
  const services = await boot({
    RUNGATE_DATABASE_URL: `file:${folder}/rungate.db`,
    RUNGATE_DATABASE_SYNCHRONOUS: 'normal',
    RUNGATE_SMTP_URL: mailbox.url,
    RUNGATE_MAIL_FROM: 'Rungate <rungate@example.com>',
    RUNGATE_LOG: 'silent',
    ...env,
  });
  const clear = async () => {
    await shutDown(services, 0);
    await mailbox.stop();
    await rm(folder, { recursive: true, force: true });
  };
  return { services, mailbox, clear };
}

let count = 0;

/** An address that nobody has. */
export function newEmail(): string {
  return `person${++count}@example.com`;
}

/** A browser at an address of its own, so that no test uses up the limit of another. */
export function visit(services: Services): Browser {
  const address = `127.${(++count >> 8) & 255}.${count & 255}.9`;
  const app = makeApp(services);
  return new Browser((request) => app(request, { address }));
}

/** An org and whose it is. */
export interface Place {
  readonly org: Org;
  readonly slug: string;
  readonly name: string;
  readonly owner: string;
  readonly adminToken: string;
}

/** Makes an org whose owner has this address. */
export async function settle({ services }: Town, owner = newEmail()): Promise<Place> {
  const name = `Org <${++count}> & Co`;
  const made = await createOrg(services.db, services.master, 'operator', name, owner);
  const { id, slug, adminToken } = made;
  return { org: forOrg(services.db, id), slug, name, owner, adminToken };
}

/** Lets a person join an org. */
export async function enrol({ services }: Town, org: Org, role: Role, email = newEmail()) {
  const now = Date.now();
  const first = role === 'owner' ? 'admin' : role;
  const { secret } = await invite(org, 'operator', email, first, now);
  const { memberId, userId } = await acceptInvitation(services.db, secret, now);
  if (first !== role) await changeRole(org, 'operator', memberId, role);
  return { email, memberId: memberId as MemberId, userId };
}

/** Asks for a link to sign in and takes it from the letter. */
export async function linkFor({ mailbox }: Town, browser: Browser, email: string): Promise<string> {
  const before = mailbox.received.length;
  const answer = await browser.submit(`${HERE}/sign-in`, { email });
  if (!answer.ok) throw new Error(`no link: ${await answer.text()}`);
  const letter = await mailbox.next(email, before);
  return HERE + /\/sign-in\/link\/[\w-]{43}\b/.exec(letter.text)![0];
}

/** Signs a person in to an org. */
export async function signIn(town: Town, org: Org, email: string): Promise<Browser> {
  const browser = visit(town.services);
  const link = await linkFor(town, browser, email);
  const answer = await browser.submit(link, { org: org.id });
  if (!answer.ok) throw new Error(`not signed in: ${await answer.text()}`);
  return browser;
}

/** What the page about oneself says; it is that of signing in for who isn't. */
export async function pageOf(browser: Browser): Promise<string> {
  return await (await browser.open(`${HERE}/sign-in/me`)).text();
}

/** Asks the admin API as a page of the deployment does. */
export async function query<T = Record<string, never>>(
  browser: Browser,
  text: string,
  variables: object = {},
  headers: Readonly<Record<string, string>> = {},
): Promise<{ status: number; data: T; errors?: { message: string }[] }> {
  const response = await browser.ask(`${HERE}/graphql`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify({ query: text, variables }),
  });
  return { status: response.status, ...(await response.json()) };
}
