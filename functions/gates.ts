/** Gates over HTTP: how one stands, for its agent, and the pages where holders of a link decide. */

import { html } from 'hono/html';
import { agentNames } from '../db/agents.ts';
import {
  type Bar,
  barOf,
  type Decided,
  decideByLink,
  type Gate,
  openArgs,
  readGate,
} from '../db/gates.ts';
import { readRun } from '../db/runs.ts';
import { Refusal } from '../schema/errors.ts';
import { isId } from '../schema/ids.ts';
import { indentJson } from '../schema/indent.ts';
import { statusAt } from '../schema/rules/gate.ts';
import { visible } from '../schema/visible.ts';
import { respondJson } from './edge.ts';
import { type Link, LinkError, openLink } from './links.ts';
import { type Markup, respondForm } from './pages.ts';
import { authenticate } from './proxy/authenticate.ts';
import type { Services } from './services.ts';
import { readForm } from './sites.ts';

/** A gate of the calling agent: how it stands, but not what it holds back. */
export async function showGate(
  services: Services,
  request: Request,
  id: string,
): Promise<Response> {
  const { org, agent } = await authenticate(services, request, 'gate.read');
  const gate = isId('gate', id) ? await readGate(org, id) : undefined;
  // Another agent's gate answers like one that doesn't exist.
  if (gate?.agentId !== agent.id) {
    throw new Refusal('not_found', 'This agent has no gate with that id.');
  }
  const run = await readRun(org, gate.runId);
  const { tool, rule, ruleName, approvals, given, stepId } = gate;
  return respondJson({
    ...{ id: gate.id, status: statusAt(gate, services.now()), tool, rule, ruleName },
    ...{ approvals, given, stepId, runId: run?.name ?? gate.runId },
    createdAt: isoTime(gate.createdAt),
    expiresAt: isoTime(gate.expiresAt),
    decidedAt: gate.decidedAt === null ? null : isoTime(gate.decidedAt),
  });
}

const isoTime = (millis: number): string => new Date(millis).toISOString();

/** Says of a link that can't be used why not, on a page. */
async function onLink(
  services: Services,
  token: string,
  answer: (link: Link, gate: Gate) => Promise<Response>,
): Promise<Response> {
  try {
    const link = await openLink(services, token);
    const gate = await readGate(link.org, link.gateId);
    if (!gate) throw new LinkError('invalid', 'This link is not valid.');
    return await answer(link, gate);
  } catch (error) {
    if (!(error instanceof LinkError)) throw error;
    const isExpired = error.code === 'expired';
    const title = isExpired ? 'This link has expired' : 'This link is not valid';
    const advice = isExpired ? 'What it asked for was not decided in time.' : 'Ask for a new one.';
    return respondForm(title, html`<p>${advice}</p>`, isExpired ? 410 : 404);
  }
}

/** `GET /approvals/{token}`: what a gate holds back, and a form to decide on it. Decides nothing. */
export function showApproval(services: Services, token: string): Promise<Response> {
  return onLink(services, token, async (link, gate) => {
    const status = statusAt(gate, services.now());
    const form =
      status === 'pending'
        ? formOf(gate, await barOf(link.org, gate, link.holder))
        : html`<p>This gate is ${status}.</p>`;
    const facts = await factsOf(link, gate, status);
    return respondForm('A tool call needs approval', html`${facts}\n${form}`);
  });
}

async function factsOf({ org, vault }: Link, gate: Gate, status: string): Promise<Markup> {
  const [names, run, args] = await Promise.all([
    agentNames(org),
    readRun(org, gate.runId),
    openArgs(vault, gate),
  ]);
  const entries = [
    ['Tool', gate.tool],
    ...(gate.server === null ? [] : [['Server', gate.server]]),
    ['Agent', names.get(gate.agentId) ?? gate.agentId],
    ['Run', run?.name ?? gate.runId],
    ['Rule', gate.ruleName === gate.rule ? gate.rule : `${gate.ruleName} (${gate.rule})`],
    ['Why', gate.reason],
    ['Status', `${status}, ${gate.given} of ${gate.approvals} approvals`],
    ['Expires', isoTime(gate.expiresAt)],
  ];
  return html`<dl class="facts">
${entries.map(([name, value]) => html`<div><dt>${name}</dt><dd>${visible(value ?? '')}</dd></div>\n`)}</dl>
<h2>Arguments</h2>
<pre>${indentJson(args).split('\n').map(visible).join('\n')}</pre>`;
}

const APPROVE = html`<button name="decision" value="approve">Approve</button>\n`;
const DECIDES_ONCE = 'This link decides once. Whoever holds it can use it.';

function formOf({ approvals }: Gate, bar: Bar | undefined): Markup {
  return html`<form method="post">
<label for="reason">Reason (optional)</label>
<input id="reason" name="reason" maxlength="500" autocomplete="off">
${bar ? '' : APPROVE}<button name="decision" value="reject">Reject</button>
</form>
<p class="proof">${bar ? explainBar(bar, approvals) : DECIDES_ONCE}</p>`;
}

function explainBar(bar: Bar, approvals: number): string {
  const whys: Readonly<Record<Bar, string>> = {
    unnamed: `This call needs the approval of ${approvals} different people, which a link can’t tell apart: sign in or use the command line to approve it.`,
    unheld:
      'This link doesn’t say whom it was made for: sign in or use the command line to approve the call.',
    unfit:
      'This link was made for somebody who may not approve: ask another to sign in or use the command line.',
    own: 'This link was made for who caused the call, who can’t approve it: ask another to sign in or use the command line.',
  };
  return `${whys[bar]} The link can reject it, once.`;
}

const MAX_REASON_CHARS = 500;

/**
 * `POST /approvals/{token}`: decides on a gate, once per link.
 *
 * @throws {Refusal} `invalid_request` for a form that decides nothing, `permission_denied` for one
 *   that another site sent.
 */
export function decideApproval(
  services: Services,
  request: Request,
  token: string,
): Promise<Response> {
  return onLink(services, token, async (link, gate) => {
    const form = await readForm(services, request, 'approvals.origin');
    const { decision, reason } = readDecision(form);
    const actor = { kind: 'link', id: link.id } as const;
    const verdict = { actor, decision, ...(reason === '' ? {} : { reason }) };
    const decided = await decideByLink(link.org, gate, verdict, link.holder, services.now());
    return respondDecided(decided.outcome, decided.gate ?? gate, decision);
  });
}

function readDecision(form: URLSearchParams) {
  const [decision, ...others] = form.getAll('decision');
  const reason = (form.get('reason') ?? '').trim();
  const isOne = others.length === 0 && (decision === 'approve' || decision === 'reject');
  if (isOne && reason.length <= MAX_REASON_CHARS) return { decision, reason } as const;
  throw new Refusal(
    'invalid_request',
    `Send one of decision=approve and decision=reject, and a reason of at most ${MAX_REASON_CHARS} characters.`,
    { field: 'decision' },
  );
}

const CLOSED = {
  repeated: [409, 'This link, or another one to this gate, has been used before.'],
  closed: [410, 'This gate is decided or expired already.'],
  missing: [404, 'There is no such gate.'],
} as const;

function isClosed(outcome: Decided | Bar): outcome is keyof typeof CLOSED {
  return outcome in CLOSED;
}

function respondDecided(outcome: Decided | Bar, gate: Gate, decision: string): Promise<Response> {
  if (outcome === 'decided' || outcome === 'counted') {
    const title = decision === 'approve' ? 'Approved' : 'Rejected';
    return respondForm(title, html`<p>The call of ${visible(gate.tool)} is ${gate.status}.</p>`);
  }
  const [status, message] = isClosed(outcome)
    ? CLOSED[outcome]
    : [403, explainBar(outcome, gate.approvals)];
  return respondForm('Nothing was decided', html`<p>${message}</p>`, status);
}
