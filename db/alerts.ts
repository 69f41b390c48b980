/** Alerts: spending that nears a ceiling, ceilings that stopped a run, and what agents try in vain. */

import type { AgentId, RunId } from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import { type Scope, type Windows, windowsOf } from '../schema/rules/budget.ts';
import type { Statement } from './client.ts';
import { Memo } from './memo.ts';
import type { Org } from './org.ts';
import { announce } from './outbox.ts';
import type { PolicyVersion } from './policies.ts';

/** Lines that are drawn stay drawn, so that each is written once per process. */
const drawn = new Memo<true>(10_000);

/**
 * Sees to it that the windows of a moment raise an alert when they reach their share of a ceiling.
 * A trigger does so in the transaction of the step that reaches it, so that a call costs no further
 * statement. Call it before anything is held.
 *
 * @returns nothing to wait for where the lines are drawn already, or no window has a ceiling.
 */
export function drawLines(
  org: Org,
  agent: AgentId,
  version: PolicyVersion,
  windows: Windows,
): Promise<void> | undefined {
  const { agentPerDay, agentPerMonth, orgPerMonth } = version.policy.budget;
  if ((agentPerDay ?? agentPerMonth ?? orgPerMonth) === undefined) return undefined;
  const key = `${agent}/${version.id}/${windows.day}`;
  return drawn.get(key) ? undefined : draw(org, agent, version, windows, key);
}

async function draw(
  org: Org,
  agent: AgentId,
  { policy }: PolicyVersion,
  { day, month }: Windows,
  key: string,
): Promise<void> {
  const { budget } = policy;
  const lines = [
    ['agent_per_day', agent, day, budget.agentPerDay],
    ['agent_per_month', agent, month, budget.agentPerMonth],
    ['org_per_month', org.id, month, budget.orgPerMonth],
  ] as const;
  const drawings = lines.flatMap(([scope, subject, window, ceiling]) =>
    ceiling === undefined ? [] : [line(org, scope, subject, window, ceiling, budget.alertAt)],
  );
  await org.write(...drawings, lowestLine(org, agent, day), lowestLine(org, org.id, month));
  drawn.set(key, true);
}

function line(
  org: Org,
  scope: Scope['name'],
  subject: string,
  window: string,
  ceiling: Nanos,
  alertAt: number,
): Statement {
  return org.statement(
    `insert into alerts (org_id, scope, subject, window, ceiling_nanos, alert_at, created_at)
     values (?1, ?2, ?3, ?4, ?5, ?6, ?7) on conflict do nothing`,
    scope,
    subject,
    window,
    ceiling,
    alertAt,
    Date.now(),
  );
}

/** As the trigger draws it; an agent's month is looked at on each of its days. */
function lowestLine(org: Org, subject: string, window: string): Statement {
  return org.statement(
    `insert into spend (org_id, subject, window, line_nanos)
     select ?1, ?2, ?3, min(iif(window = ?3, ceiling_nanos * alert_at, 0)) from alerts
     where org_id = ?1 and subject = ?2 and window in (?3, substr(?3, 1, 7)) and raised_at is null
     on conflict do update set line_nanos = excluded.line_nanos`,
    subject,
    window,
  );
}

/**
 * The statement that tells that a ceiling stopped a run: once for each scope, window and ceiling,
 * and only where the statement before it changed a row.
 *
 * @param now Unix milliseconds.
 */
export function exceededEvent(
  org: Org,
  run: { readonly id: RunId; readonly agentId: AgentId },
  scope: Scope,
  now: number,
): Statement {
  const { id: runId, agentId } = run;
  const { day, month } = windowsOf(now);
  const [subject, window] = {
    run: [runId, ''],
    agent_per_day: [agentId, day],
    agent_per_month: [agentId, month],
    org_per_month: [org.id, month],
  }[scope.name];
  const { name, spentNanos, ceilingNanos } = scope;
  const data = { scope: name, runId, agentId, spentNanos, ceilingNanos };
  const once = `${name}/${subject}/${window}/${ceilingNanos}`;
  return announce(org, 'budget.exceeded', data, now, { once, ifChanged: true });
}

/** What an agent tried that its policy denies. */
export interface Drift {
  readonly runId: RunId;
  readonly agentId: AgentId;
  /** The policy's name and version, as in `prod-agents/v4`. */
  readonly policy: string;
  /** The rule that denied it, as a path in the policy document. */
  readonly rule: string;
  readonly asked: unknown;
  /** Unix milliseconds. */
  readonly now: number;
}

/** What can be tried in vain, by the section of the policy that denies it. */
const KINDS: ReadonlyMap<string, string> = new Map([
  ['models', 'model'],
  ['tools', 'tool'],
  ['hostedTools', 'hosted_tool'],
]);

const MAX_ASKED_CHARS = 500;

/**
 * The statements that tell of an attempt that the policy denies: one event per agent, kind and UTC
 * day. None for a rule that says how much an agent may do rather than what.
 */
export function driftEvents(org: Org, { asked, now, ...drift }: Drift): Statement[] {
  const kind = KINDS.get(drift.rule.split(/[.[]/, 1)[0] ?? '');
  if (kind === undefined) return [];
  const text = typeof asked === 'string' ? asked : (JSON.stringify(asked) ?? '');
  const data = { ...drift, kind, asked: text.slice(0, MAX_ASKED_CHARS) };
  const once = `${drift.agentId}/${kind}/${windowsOf(now).day}`;
  return [announce(org, 'policy.drift', data, now, { once })];
}
