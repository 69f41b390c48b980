/** Step 3: the run that a call belongs to, and the policy version it opened with. */

import { type PolicyVersion, readAgentPolicy, readPolicyVersion } from '../../db/policies.ts';
import {
  findRun,
  type NewRun,
  openRun,
  openWindow,
  type Run,
  readRun,
  readWindow,
  reopenRun,
} from '../../db/runs.ts';
import { Refusal } from '../../schema/errors.ts';
import type { RunName } from '../../schema/rules/identity.ts';
import type { Call } from './call.ts';
import { deny, type Governed } from './deny.ts';

/** Callers that open a window at once settle on one in a turn each; more turns mean a fault. */
const WINDOW_TRIES = 20;

/**
 * Joins the run that the call names, or opens it; without a name, the agent's window.
 *
 * @throws {Refusal} `run_closed`, `budget_exceeded` for a run that is no longer open.
 */
export async function resolveRun(call: Call): Promise<Governed> {
  const key = `${call.agent.id}/${call.runName?.name ?? ''}`;
  const { runs } = call.services.memory;
  const known = call.isRemembered && !isNewWanted(call) ? runs.get(key) : undefined;
  if (known) return onRun(call, known, known.version);
  const run = call.runName ? await joinNamed(call, call.runName) : await joinWindow(call);
  const version = await readPolicyVersion(call.org, run.policyVersionId);
  if (!version) throw new Refusal('internal', 'The policy version of this run is missing.');
  const governed = onRun(call, run, version);
  if (run.status !== 'open') await refuseOrReopen(governed, run);
  runs.set(key, { id: run.id, name: run.name, version });
  return governed;
}

function onRun(call: Call, run: Governed['run'], version: PolicyVersion): Governed {
  const windowSince = call.runName ? null : call.startedAt - idleMsOf(version);
  return { ...call, run, version, windowSince };
}

function isNewWanted({ request, runName }: Call): boolean {
  return !runName && request.headers.get('x-rungate-new-run') === 'true';
}

function idleMsOf({ policy }: PolicyVersion): number {
  return policy.run.idleTimeoutS * 1_000;
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

/** A blocked or cancelled window refuses until it has idled out: a fresh run is no way around it. */
async function isCurrent(call: Call, run: Run): Promise<boolean> {
  if (run.status === 'completed') return false;
  const version = await readPolicyVersion(call.org, run.policyVersionId);
  return version !== undefined && call.startedAt - run.activeAt <= idleMsOf(version);
}

async function newRun(call: Call): Promise<NewRun> {
  const version = await readAgentPolicy(call.org, call.agent.id);
  if (!version) throw new Refusal('internal', 'The policy of this agent has no version.');
  return {
    agentId: call.agent.id,
    policyVersionId: version.id,
    ceilingNanos: version.policy.budget.run ?? null,
    now: call.startedAt,
  };
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
  return deny(call, 'run_closed', `The run "${run.name}" is ${run.status}; use a new run id.`, {
    rule: 'run.status',
    asked: run.name,
    allowed: 'open',
  });
}

function existing(run: Run | undefined): Run {
  if (!run) throw new Refusal('unavailable', 'The run could not be opened; try again.');
  return run;
}
