/** What people are written: links to sign in, and invitations. */

import { LINK_MS } from '../../db/signin.ts';
import type { Role } from '../../schema/roles.ts';
import type { Letter } from '../mail.ts';

/** The letter with a link to sign in. */
export function signInLetter(to: string, link: string): Letter {
  const text = `Open this page to sign in to Rungate:

${link}

It works once, for ${LINK_MS / 60_000} minutes. If you did not ask for it, nothing happens unless you open it.
`;
  return { to, subject: 'Sign in to Rungate', text };
}

/** What an invitation says. */
export interface InvitationText {
  readonly orgName: string;
  readonly role: Role;
  readonly link: string;
  /** Unix milliseconds. */
  readonly expiresAt: number;
}

/** The letter of an invitation. */
export function invitationLetter(
  to: string,
  { orgName, role, link, expiresAt }: InvitationText,
): Letter {
  const day = new Date(expiresAt).toISOString().slice(0, 10);
  const text = `You are invited to join ${oneLine(orgName)} on Rungate, as ${role}.

Open this page to accept:

${link}

It works once, until ${day}. If you expect no invitation, you can ignore this.
`;
  return { to, subject: `Join ${oneLine(orgName)} on Rungate`, text };
}

/** Names are given by people: they must not look like lines of the letter. */
function oneLine(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]+/gu, ' ');
}
