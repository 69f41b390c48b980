/** The run that a call belongs to, and the policy version it opened with. */

import {
  type PolicyVersion,
  readAgentPolicy,
  readChoices,
  readPolicyVersion,
} from '../../db/policies.ts';
import {
  findRun,
  isActiveSince,
  type NewRun,
  openRun,
  openWindow,
  type Run,
  readRun,
  readWindow,
  reopenRun,
} from '../../db/runs.ts';
import { Refusal } from '../../schema/errors.ts';
import type { PolicyVersionId } from '../../schema/ids.ts';
import { isNamed, judgeOpening, permits } from '../../schema/rules/choice.ts';
import type { RunName } from '../../schema/rules/identity.ts';
import { stopSentence } from '../../schema/rules/limit.ts';
import { Outdated } from './authenticate.ts';
import type { Call } from './call.ts';
import { deny, type Governed } from './deny.ts';

/** Callers that open a window at once settle on one in a turn each; more turns mean a fault. */
const WINDOW_TRIES = 20;

const POLICY_HEADER = 'x-rungate-policy';
const MAX_LABEL_LENGTH = 100;

/**
 * Joins the run that the call names, or opens it; without a name, the agent's window.
 *
 * @throws {Refusal} `permission_denied` for a version that the agent or the token may not use,
 *   `run_closed`, `budget_exceeded` for a run that is no longer open.
 */
export async function resolveRun(call: Call): Promise<Governed> {
  const key = `${call.agent.id}/${call.runName?.name ?? ''}`;
  const { runs } = call.services.memory;
  const known = call.isRemembered && !isNewWanted(call) ? runs.get(key) : undefined;
  if (known) return keepChoice(onRun(call, known, known.version));
  const run = call.runName ? await joinNamed(call, call.runName) : await joinWindow(call);
  const version = await readPolicyVersion(call.org, run.policyVersionId);
  if (!version) throw new Refusal('internal', 'The policy version of this run is missing.');
  const governed = await keepChoice(onRun(call, run, version));
  if (run.status !== 'open') await refuseOrReopen(governed, run);
  const { id, name, openedAt } = run;
  runs.set(key, { id, name, openedAt, version });
  return governed;
}

/** A copy, which is given up where the facts turn out to be outdated: the call is read only once. */
function onRun(call: Call, run: Governed['run'], version: PolicyVersion): Governed {
  return { ...call, run, version, windowSince: call.runName ? null : windowSince(call, version) };
}

/** A run keeps the version that it opened with: whoever asks for another one gets neither. */
function keepChoice(call: Governed): Governed | Promise<never> {
  const refused = refuseUnpermitted(call);
  if (refused) return refused;
  const asked = call.request.headers.get(POLICY_HEADER);
  const { label } = call.version;
  if (asked === null || isNamed(label, asked)) return call;
  const message = `The run "${call.run.name}" is under ${label} and keeps it; choose a policy with a new run id.`;
  return deny(call, 'permission_denied', message, {
    rule: 'run.policy',
    field: POLICY_HEADER,
    asked: asked.slice(0, MAX_LABEL_LENGTH),
    allowed: [label],
  });
}

/**
 * Refuses a call on a run whose version the call's token does not permit: else a narrow token
 * could join what a wider one of the same agent has opened.
 *
 * @returns undefined where the token permits it.
 */
export function refuseUnpermitted(call: Governed): Promise<never> | undefined {
  const { policies } = call.credential;
  const { label } = call.version;
  if (policies === null || permits(policies, label)) return undefined;
  const message = `The run "${call.run.name}" is under ${label}, which this token does not permit; use a new run id with ${POLICY_HEADER} set to one of: ${policies.join(', ')}.`;
  return deny(call, 'permission_denied', message, {
    rule: 'token.policies',
    field: POLICY_HEADER,
    asked: label,
    allowed: policies,
  });
}

function isNewWanted({ request, runName }: Call): boolean {
  return !runName && request.headers.get('x-rungate-new-run') === 'true';
}

/** Since when the agent's window must have been active for the call to belong to it. */
function windowSince(call: Call, { policy }: PolicyVersion): number {
  return call.startedAt - policy.run.idleTimeoutS * 1_000;
}

async function joinNamed(call: Call, name: RunName): Promise<Run> {
  const { org, agent } = call;
  const present = await findRun(org, agent.id, name.name);
  if (present) return present;
  await openRun(org, await newRun(call), name);
  return existing(await findRun(org, agent.id, name.name));
}

/** The agent's window: the run of calls without a name that follow each other closely enough. */
async function joinWindow(call: Call): Promise<Run> {
  const { org, agent } = call;
  let mustBeNew = isNewWanted(call);
  // What is remembered of the agent may name an older window than the one to be closed.
  let current = mustBeNew ? await readWindow(org, agent.id) : agent.windowRunId;
  for (let attempt = 0; attempt < WINDOW_TRIES; attempt++) {
    const run = current && !mustBeNew ? await readRun(org, current) : undefined;
    if (run && (await isCurrent(call, run))) return run;
    const opened = await openWindow(org, await newRun(call), current);
    if (opened) return existing(await readRun(org, opened));
    current = await readWindow(org, agent.id);
    // Whoever was first has closed the window before: theirs is as new as the one we wanted.
    mustBeNew = false;
  }
  throw new Refusal('unavailable', 'The run could not be opened; try again.');
}

/** A window that was stopped or cancelled refuses until it has idled out, completed or not. */
async function isCurrent(call: Call, run: Run): Promise<boolean> {
  if (run.closedReason === 'completed' || run.closedReason === 'idle') return false;
  const version = await readPolicyVersion(call.org, run.policyVersionId);
  return version !== undefined && isActiveSince(call.org, run, windowSince(call, version));
}

async function newRun(call: Call): Promise<NewRun> {
  const version = await openingVersion(call);
  return {
    agentId: call.agent.id,
    policyVersionId: version.id,
    ceilingNanos: version.policy.budget.run ?? null,
    now: call.startedAt,
  };
}

/** An agent goes with its tokens; who is still known by one is asked for it again. */
function refuseDeleted({ isRemembered }: Call): never {
  throw isRemembered
    ? new Outdated()
    : new Refusal('invalid_token', 'The agent of this token was deleted.');
}

/**
 * The version that a run opens with: the agent's own, or with `x-rungate-policy` another one that
 * was allowed for the agent; either way one that the token permits.
 */
async function openingVersion(call: Call): Promise<PolicyVersion> {
  const { org, agent, request } = call;
  const own = (await readAgentPolicy(org, agent.id)) ?? refuseDeleted(call);
  const asked = request.headers.get(POLICY_HEADER);
  const permitted = call.credential.policies;
  const isPlain = asked === null || (isNamed(own.label, asked) && permits(permitted, own.label));
  const choices = isPlain ? NO_CHOICES : await readChoices(org, agent.id);
  const labels = [...choices.keys()];
  const opened = judgeOpening({ own: own.label, choices: labels, asked, permitted });
  if ('rule' in opened) return refuseOpening(call, opened.rule, own.label, labels);
  if (opened.label === own.label) return own;
  const chosen = await readPolicyVersion(org, choices.get(opened.label)!);
  return chosen ?? refuseOpening(call, 'agent.policies', own.label, labels);
}

const NO_CHOICES: ReadonlyMap<string, PolicyVersionId> = new Map();

/** Refuses to open a run, on facts that are read anew. */
function refuseOpening(
  call: Call,
  rule: 'agent.policies' | 'token.policies',
  own: string,
  choices: readonly string[],
): never {
  if (call.isRemembered) throw new Outdated();
  const permitted = call.credential.policies;
  const asked = (call.request.headers.get(POLICY_HEADER) ?? own).slice(0, MAX_LABEL_LENGTH);
  const usable = [own, ...choices].filter((label) => permits(permitted, label));
  const allowed = rule === 'token.policies' && permitted !== null ? permitted : usable;
  const list = allowed.join(', ');
  const message =
    rule === 'token.policies'
      ? `This token does not permit the policy "${asked}"; set ${POLICY_HEADER} to what it permits: ${list}.`
      : `This agent may not choose the policy "${asked}"; it may choose: ${list || 'none that the token permits'}.`;
  throw new Refusal('permission_denied', message, { rule, field: POLICY_HEADER, asked, allowed });
}

async function refuseOrReopen(call: Governed, run: Run): Promise<void> {
  if (!(await reopenRun(call.org, run.id, call.startedAt))) await refuseClosed(call, run);
}

/** Refuses a call on a run that is not open, saying why it isn't. */
export function refuseClosed(call: Governed, run: Run): Promise<never> {
  if (run.status === 'blocked' && run.closedReason?.startsWith('budget.')) {
    const message =
      run.closedReason === 'budget.run'
        ? `The run "${run.name}" has used up its budget; raise its ceiling or start a new run.`
        : `The run "${run.name}" is stopped: the budget ${run.closedReason.slice(7)} is used up.`;
    return deny(call, 'budget_exceeded', message, {
      rule: run.closedReason,
      spentNanos: run.spentNanos,
      heldNanos: run.heldNanos,
      ...(run.ceilingNanos === null ? {} : { ceilingNanos: run.ceilingNanos }),
    });
  }
  const stopped = run.status === 'blocked' ? stopSentence(run.name, run.closedReason) : undefined;
  const message = stopped ?? `The run "${run.name}" is ${run.status}; use a new run id.`;
  return deny(call, 'run_closed', message, {
    rule: 'run.status',
    asked: run.name,
    allowed: 'open',
  });
}

function existing(run: Run | undefined): Run {
  if (!run) throw new Refusal('unavailable', 'The run could not be opened; try again.');
  return run;
}
