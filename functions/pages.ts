/** The public pages of the edge: what is promised, what is kept, and how it stands. */

import type { Context } from 'hono';
import { accepts } from 'hono/accepts';
import { html } from 'hono/html';
import { DatabaseError } from '../db/client.ts';
import { ping } from '../db/system.ts';
import manifest from '../package.json' with { type: 'json' };
import { Refusal } from '../schema/errors.ts';
import { type Claim, type Kept, RECORDS, TOPICS } from './claims.ts';
import { respond, respondJson } from './edge.ts';
import type { Services } from './services.ts';

/** HTML whose values have been escaped. */
export type Markup = ReturnType<typeof html>;

/** As strict as that of all other answers, but for one stylesheet of our own. */
const PAGE_POLICY =
  "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const CACHED = { 'cache-control': 'public, max-age=3600' };
const DAY_MS = 86_400_000;
/** RFC 9116, 2.5.5 asks for less than a year. */
const CONTACT_DAYS = 180;

const STYLE = `:root {
  color-scheme: light dark;
  --ink: #1b1f24;
  --soft: #57606a;
  --line: #d0d7de;
  --paper: #ffffff;
  --link: #0a58ca;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6edf3;
    --soft: #9da7b3;
    --line: #30363d;
    --paper: #0d1117;
    --link: #79b8ff;
  }
}
* { box-sizing: border-box; }
body {
  max-width: 46rem;
  margin: 0 auto;
  padding: 1.5rem 1rem 3rem;
  background: var(--paper);
  color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif;
  overflow-wrap: anywhere;
}
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: 0 1.25rem; }
nav a { padding: 0.4rem 0; }
nav a[aria-current] { color: inherit; font-weight: 600; text-decoration: none; }
h1 { margin: 1rem 0 0.5rem; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 2rem 0 0.25rem; font-size: 1.2rem; }
ul { margin: 0; padding: 0; list-style: none; }
li, dl.facts > div { padding: 0.75rem 0; border-top: 1px solid var(--line); }
li p { margin: 0; }
dl { margin: 0; }
dt { font-weight: 600; }
dd { margin: 0; }
.proof { color: var(--soft); font-size: 0.875rem; }
code, pre { font: 0.9em ui-monospace, monospace; }
pre { padding: 0.75rem; border: 1px solid var(--line); white-space: pre-wrap; }
form { display: flex; flex-wrap: wrap; gap: 0.5rem; margin-top: 1.5rem; }
form label { flex-basis: 100%; font-weight: 600; }
input, button { padding: 0.5rem 0.75rem; border: 1px solid var(--line); font: inherit; }
input { flex: 1 1 100%; background: var(--paper); color: inherit; }
button { border-color: var(--link); background: var(--paper); color: var(--link); cursor: pointer; }
footer { margin-top: 2.5rem; color: var(--soft); font-size: 0.875rem; }
`;

/** `GET /pages.css`: the stylesheet of the pages. */
export function showStyle(): Response {
  return respond(STYLE, 200, { ...CACHED, 'content-type': 'text/css; charset=utf-8' });
}

/** `GET /security`: every promise that is kept today, with its module and its test. */
export function showSecurity({ config }: Services): Promise<Response> {
  const topics = TOPICS.map(
    ({ title, claims }) => html`<section>
<h2>${title}</h2>
<ul>
${claims.map(claimItem)}</ul>
</section>
`,
  );
  return respondPage(
    'security',
    'Security',
    html`<p>What Rungate promises. Each promise names the module that keeps it and the test that proves it; a test fails when either of them is gone.</p>
${reportLine(config.securityContact)}
${topics}`,
  );
}

function claimItem({ promise, module, testFile, test }: Claim): Markup {
  return html`<li>
<p>${promise}</p>
<p class="proof"><code>${module}</code>, proven in <code>${testFile}</code>: ${test.replaceAll('%s', '…')}</p>
</li>
`;
}

function reportLine(contact: string | undefined): Markup {
  if (contact === undefined) {
    return html`<p>To report a weakness, follow <code>SECURITY.md</code> in the repository.</p>`;
  }
  const shown = contact.replace(/^mailto:/, '');
  return html`<p>To report a weakness, write to <a href="${contact}">${shown}</a>.</p>`;
}

/** `GET /privacy`: everything that is stored, and for how long. */
export function showPrivacy(): Promise<Response> {
  return respondPage(
    'privacy',
    'Privacy',
    html`<p>Rungate stands between agents and the providers of their models. It passes on what agents and models say to each other and keeps none of it: no prompt, no answer, no body of any kind, only their digests and what they cost.</p>
<h2>What is stored</h2>
<dl class="facts">
${RECORDS.map(keptEntry)}</dl>
<p>Rungate deletes none of this by itself: how long it stays is for the operator of this deployment to decide and to tell.</p>
<h2>What is not</h2>
<p>No addresses of the agents that call, no tracking, and no cookie but that of a person who signs in. Log lines hold request ids and errors, never a token, a key or a body.</p>
<h2>Who else gets it</h2>
<p>The provider that a call is meant for, and only with what the call says. Nobody else: no analytics, and nothing that these pages load comes from another host.</p>`,
  );
}

function keptEntry({ what, detail, until }: Kept): Markup {
  return html`<div>
<dt>${what}</dt>
<dd>${detail}</dd>
<dd class="proof">Kept ${until}.</dd>
</div>
`;
}

/**
 * `GET /status`: whether the database can be reached, and the version; as JSON where that is what
 * the caller accepts most, else as a page. 503 while the database can't be reached.
 */
export async function showStatus(services: Services, context: Context): Promise<Response> {
  const type = accepts(context, {
    header: 'Accept',
    supports: ['text/html', 'application/json'],
    default: 'text/html',
  });
  const isUp = await isReachable(services);
  const code = isUp ? 200 : 503;
  const database = isUp ? 'reachable' : 'unreachable';
  const { version } = manifest;
  const headers = { 'cache-control': 'no-store', vary: 'accept' };
  if (type === 'application/json') {
    return respondJson({ status: isUp ? 'ok' : 'unavailable', database, version }, code, headers);
  }
  return respondPage(
    'status',
    isUp ? 'Rungate is up' : 'Rungate is down',
    html`<dl class="facts">
<div><dt>Database</dt><dd>${database}</dd></div>
<div><dt>Version</dt><dd>${version}</dd></div>
</dl>`,
    code,
    headers,
  );
}

async function isReachable({ db, log }: Services): Promise<boolean> {
  try {
    await ping(db);
    return true;
  } catch (error) {
    if (!(error instanceof DatabaseError)) throw error;
    log.error('the database failed', { error });
    return false;
  }
}

/**
 * `GET /.well-known/security.txt` (RFC 9116). Links need an https `RUNGATE_PUBLIC_URL`; what the
 * request says of its host is not believed.
 *
 * @throws {Refusal} `not_found` where no contact is configured.
 */
export function tellContact({ config, now }: Services): Response {
  const { securityContact, publicUrl } = config;
  if (securityContact === undefined) {
    throw new Refusal('not_found', 'This deployment names no contact for security.');
  }
  const isLinked = publicUrl?.startsWith('https:');
  const lines = [
    `Contact: ${securityContact}`,
    `Expires: ${formatDay(now() + CONTACT_DAYS * DAY_MS)}`,
    'Preferred-Languages: en',
    ...(isLinked ? [`Canonical: ${publicUrl}/.well-known/security.txt`] : []),
    ...(isLinked ? [`Policy: ${publicUrl}/security`] : []),
  ];
  const text = lines.map((line) => `${line}\n`).join('');
  return respond(text, 200, { ...CACHED, 'content-type': 'text/plain; charset=utf-8' });
}

/** The beginning of a UTC day in RFC 3339, so that the text is the same for a day. */
function formatDay(atMillis: number): string {
  return `${new Date(atMillis).toISOString().slice(0, 10)}T00:00:00Z`;
}

const PAGES = ['security', 'privacy', 'status'] as const;

/** Links are relative: a proxy may serve Rungate under a path of its own. */
async function respondPage(
  here: (typeof PAGES)[number],
  title: string,
  body: Markup,
  status = 200,
  headers: Readonly<Record<string, string>> = CACHED,
): Promise<Response> {
  const links = PAGES.map(
    (page) => html`<a href="${page}"${page === here ? html` aria-current="page"` : ''}>${page}</a>
`,
  );
  const header = html`<header><nav aria-label="Pages">
${links}</nav></header>
`;
  return respondDocument({ title, header, body, root: '', policy: PAGE_POLICY }, status, headers);
}

/** As {@link PAGE_POLICY}, but forms may be sent to where they came from. */
const FORM_POLICY = PAGE_POLICY.replace("form-action 'none'", "form-action 'self'");

/**
 * A page that may hold a form, and that nobody keeps: its address may be a secret.
 *
 * @param root The way to the root, relative.
 */
export async function respondForm(
  title: string,
  body: Markup,
  status = 200,
  root = '../',
): Promise<Response> {
  const page = { title, header: html``, body, root, policy: FORM_POLICY };
  const response = await respondDocument(page, status, { 'cache-control': 'no-store' });
  response.headers.set('referrer-policy', 'same-origin');
  return response;
}

interface Document {
  readonly title: string;
  readonly header: Markup;
  readonly body: Markup;
  /** The way to the root, relative. */
  readonly root: string;
  /** The content security policy. */
  readonly policy: string;
}

async function respondDocument(
  { title, header, body, root, policy }: Document,
  status: number,
  headers: Readonly<Record<string, string>>,
): Promise<Response> {
  const page = await html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title} · Rungate</title>
<link rel="stylesheet" href="${root}pages.css">
</head>
<body>
${header}<main>
<h1>${title}</h1>
${body}
</main>
<footer>Rungate ${manifest.version}</footer>
</body>
</html>
`;
  const type = { 'content-type': 'text/html; charset=utf-8' };
  const response = respond(String(page), status, { ...headers, ...type });
  // The policy of all other answers forbids even a stylesheet of our own.
  response.headers.set('content-security-policy', policy);
  return response;
}
