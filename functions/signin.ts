/** Signing in: by a link in a letter, which a person confirms on a page; and signing out again. */

import { html } from 'hono/html';
import { forOrg } from '../db/org.ts';
import { readAccount } from '../db/orgs.ts';
import { endSession, findSession, type Session } from '../db/sessions.ts';
import { LINK_MS, makeLink, peekLink, takeLink } from '../db/signin.ts';
import { type Membership, membershipsOf } from '../db/users.ts';
import { normalizeEmail } from '../schema/email.ts';
import { Refusal } from '../schema/errors.ts';
import { seenFrom, sessionSecret } from './admin.ts';
import { baseUrl } from './links.ts';
import type { Services } from './services.ts';
import { SESSION_COOKIE, writeCookie } from './signin/cookies.ts';
import { countTry, isSecret, onPage, type Page } from './signin/form.ts';
import { signInLetter } from './signin/letters.ts';
import { redirectTo, welcome } from './signin/session.ts';
import { readForm } from './sites.ts';

const MAIL_FORM = html`<form method="post">
<label for="email">E-mail address</label>
<input id="email" name="email" type="email" required maxlength="254" autocomplete="email">
<button>Send me a link</button>
</form>`;

const NO_MAIL = html`<p>This deployment sends no mail, so that it can’t send a link to sign in. Its operator can change that with <code>RUNGATE_SMTP_URL</code>.</p>`;

const PROVIDER_FORM = html`<h2>Through your org’s identity provider</h2>
<form method="get" action="sign-in/oidc">
<label for="org">The org’s short name</label>
<input id="org" name="org" required maxlength="60" autocomplete="organization">
<button>Go on</button>
</form>`;

/** `GET /sign-in`: asks for the address that a link is sent to, or for the org. */
export function showSignIn({ mailer }: Services, request: Request): Promise<Response> {
  const byMail = mailer.route === 'none' ? NO_MAIL : MAIL_FORM;
  return onPage(request, async () => ({
    title: 'Sign in',
    body: html`${byMail}\n${PROVIDER_FORM}`,
  }));
}

/**
 * `POST /sign-in`: mails a link to a member's address. The answer is the same for every address,
 * and waits for no mail server: nobody learns from it who is a member.
 */
export function requestLink(services: Services, request: Request): Promise<Response> {
  return onPage(request, async () => {
    const form = await readForm(services, request, 'sign_in.origin');
    await countTry(services, request);
    if (services.mailer.route === 'none') {
      throw new Refusal('unavailable', 'This deployment sends no mail, so no link either.');
    }
    const email = normalizeEmail(form.get('email') ?? '');
    if (email === undefined) {
      throw new Refusal('invalid_request', 'Type a whole e-mail address.', { field: 'email' });
    }
    await mailLink(services, email);
    return LINK_SENT;
  });
}

const LINK_SENT: Page = {
  title: 'Look into your mail',
  body: html`<p>If this address belongs to a member, a link is on its way. It works once, for ${LINK_MS / 60_000} minutes.</p>`,
};

async function mailLink({ db, mailer, config, now }: Services, email: string): Promise<void> {
  const [secret, memberships] = await Promise.all([
    makeLink(db, email, 'sign_in', now()),
    membershipsOf(db, email),
  ]);
  if (secret === undefined || memberships.length === 0) return;
  mailer.post(signInLetter(email, `${baseUrl(config)}/sign-in/link/${secret}`));
}

const DEAD_LINK: Page = {
  title: 'This link is not valid',
  body: html`<p>It was used, or is too old. <a href="../../sign-in">Ask for a new one.</a></p>`,
  status: 404,
};

/**
 * `GET /sign-in/link/{secret}`: asks whether to sign in, and to which org. It uses nothing up, since
 * scanners of mail open every link.
 */
export function showLink(services: Services, request: Request, secret: string): Promise<Response> {
  return onPage(request, async () => {
    const found = await readLink(services, secret);
    if (!found) return DEAD_LINK;
    const { email, memberships } = found;
    const buttons = memberships.map(
      ({ orgId, orgName }) =>
        html`<button name="org" value="${orgId}">Sign in to ${orgName}</button>\n`,
    );
    return {
      title: 'Sign in',
      body: html`<p>You are about to sign in as ${email}.</p>
<form method="post">
${buttons}</form>`,
    };
  });
}

async function readLink(
  { db, now }: Services,
  secret: string,
): Promise<{ email: string; memberships: Membership[] } | undefined> {
  const email = isSecret(secret) ? await peekLink(db, secret, 'sign_in', now()) : undefined;
  if (email === undefined) return undefined;
  const memberships = await membershipsOf(db, email);
  return memberships.length === 0 ? undefined : { email, memberships };
}

/**
 * `POST /sign-in/link/{secret}`: uses the link up and opens a session in the org that the form
 * names; it may name none where there is but one.
 */
export function useLink(services: Services, request: Request, secret: string): Promise<Response> {
  return onPage(request, async () => {
    const form = await readForm(services, request, 'sign_in.origin');
    const found = await readLink(services, secret);
    const chosen = found && choose(found.memberships, form.get('org'));
    const isTaken = found && (await takeLink(services.db, secret, 'sign_in', services.now()));
    if (!chosen || isTaken === undefined) {
      await countTry(services, request);
      return DEAD_LINK;
    }
    const { orgId, memberId } = chosen;
    return await welcome(services, request, forOrg(services.db, orgId), memberId, 'link');
  });
}

/** @throws {Refusal} `invalid_request`, before the link is used up. */
function choose(memberships: readonly Membership[], org: string | null): Membership {
  const chosen = memberships.find(({ orgId }) => orgId === org);
  const only = org === null && memberships.length === 1 ? memberships[0] : undefined;
  if (chosen ?? only) return (chosen ?? only)!;
  throw new Refusal('invalid_request', 'Choose one of your orgs.', { field: 'org' });
}

async function currentSession(services: Services, request: Request): Promise<Session | undefined> {
  const secret = sessionSecret(services, request);
  return secret === undefined ? undefined : await findSession(services.db, secret, services.now());
}

/** `GET /sign-in/me`: who is signed in, to which org, and how to sign out. */
export function showSelf(services: Services, request: Request): Promise<Response> {
  return onPage(request, async () => {
    const session = await currentSession(services, request);
    if (!session) return redirectTo('../sign-in');
    const account = await readAccount(forOrg(services.db, session.orgId));
    const suspended = session.orgSuspendedAt === null ? '' : ' (suspended)';
    return {
      title: 'You are signed in',
      body: html`<dl class="facts">
<div><dt>As</dt><dd>${session.email}</dd></div>
<div><dt>Org</dt><dd>${account?.name}${suspended}</dd></div>
<div><dt>Role</dt><dd>${session.role}</dd></div>
</dl>
<form method="post" action="../sign-out">
<button>Sign out</button>
</form>`,
    };
  });
}

/** `POST /sign-out`: ends the session, from the next request on, and takes its cookie away. */
export function signOut(services: Services, request: Request): Promise<Response> {
  return onPage(request, async () => {
    await readForm(services, request, 'sign_in.origin');
    const session = await currentSession(services, request);
    if (session) await endOwn(services, request, session);
    const response = redirectTo('sign-in');
    writeCookie(services, request, response, [SESSION_COOKIE, '', 0]);
    return response;
  });
}

async function endOwn(services: Services, request: Request, session: Session): Promise<void> {
  const { id, orgId, memberId, userId, role } = session;
  const seen = seenFrom(services, request);
  const actor = { kind: 'user', id: userId, memberId, role, ...seen } as const;
  await endSession(forOrg(services.db, orgId), actor, id, memberId);
}
