/** Invitations over mail: written to who is invited, and the page where he accepts. */

import { html } from 'hono/html';
import { acceptInvitation, type Invitation, peekInvitation } from '../db/invitations.ts';
import { forOrg, type Org } from '../db/org.ts';
import { readAccount } from '../db/orgs.ts';
import { Refusal } from '../schema/errors.ts';
import { baseUrl } from './links.ts';
import type { Services } from './services.ts';
import { countTry, isSecret, onPage, type Page } from './signin/form.ts';
import { invitationLetter } from './signin/letters.ts';
import { welcome } from './signin/session.ts';
import { readForm } from './sites.ts';

/**
 * Mails an invitation.
 *
 * @param secret Of its link.
 * @returns the link where mail goes to the log of a development server, else null: who invites
 *   must not be able to accept in another's name.
 */
export async function sendInvitation(
  { config, mailer }: Pick<Services, 'config' | 'mailer'>,
  org: Org,
  { email, role, expiresAt }: Invitation,
  secret: string,
): Promise<string | null> {
  const link = `${baseUrl(config)}/invitations/${secret}`;
  const orgName = (await readAccount(org))?.name ?? '';
  mailer.post(invitationLetter(email, { orgName, role, link, expiresAt }));
  return mailer.route === 'log' ? link : null;
}

const DEAD: Page = {
  title: 'This invitation is not valid',
  body: html`<p>It is used, expired or taken back. Ask who invited you for a new one.</p>`,
  status: 404,
};

/** `GET /invitations/{secret}`: what is offered, and a form to accept it. Accepts nothing. */
export function showInvitation(
  { db, now }: Services,
  request: Request,
  secret: string,
): Promise<Response> {
  return onPage(request, async () => {
    const offer = isSecret(secret) ? await peekInvitation(db, secret, now()) : undefined;
    if (!offer) return DEAD;
    return {
      title: `Join ${offer.orgName}`,
      body: html`<p>${offer.email} is invited to join ${offer.orgName} as ${offer.role}.</p>
<form method="post">
<button>Accept and sign in</button>
</form>`,
    };
  });
}

/** `POST /invitations/{secret}`: accepts, once, and signs the new member in. */
export function acceptOffer(
  services: Services,
  request: Request,
  secret: string,
): Promise<Response> {
  return onPage(request, async () => {
    await readForm(services, request, 'sign_in.origin');
    const joined = await accept(services, secret);
    if (!joined) {
      await countTry(services, request);
      return DEAD;
    }
    const org = forOrg(services.db, joined.orgId);
    return await welcome(services, request, org, joined.memberId, 'invitation');
  });
}

async function accept({ db, now }: Services, secret: string) {
  if (!isSecret(secret)) return undefined;
  try {
    return await acceptInvitation(db, secret, now());
  } catch (error) {
    if (error instanceof Refusal && error.code === 'not_found') return undefined;
    throw error;
  }
}
