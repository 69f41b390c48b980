/** Rungate's own routes for agents: a run, its trail, and its end. */

import { z } from 'zod';
import { readPolicyVersion } from '../db/policies.ts';
import { completeRun, findRun, type Run, readRun } from '../db/runs.ts';
import { listSteps } from '../db/steps.ts';
import { Refusal } from '../schema/errors.ts';
import { isId } from '../schema/ids.ts';
import { formatDollars } from '../schema/money.ts';
import { respondJson } from './edge.ts';
import { authenticate, type Caller } from './proxy/authenticate.ts';
import type { Services } from './services.ts';

const MAX_PAGE = 200;

/** The query of a page of a run's trail. */
export const stepsQuery = z.object({
  limit: z.coerce.number().int().min(1).max(MAX_PAGE).default(50),
  after: z
    .string()
    .refine((text) => text === '' || isId('step', text))
    .default(''),
});

const WANTED = {
  limit: `limit must be a whole number from 1 to ${MAX_PAGE}.`,
  after: 'after must be the id of a step, as "next" of the page before names it.',
} as const;

/** A run of the calling agent: its state and its money. */
export async function showRun(
  services: Services,
  request: Request,
  name: string,
): Promise<Response> {
  const caller = await authenticate(services, request, 'run.read');
  return respondJson(await describeRun(caller, await ownRun(caller, name)));
}

/**
 * A page of a run's trail: `?limit=` (1 to 200) and `?after=` the last step of the page before. A
 * position that is none is refused: the empty page that it gave would read as the trail's end.
 */
export async function showSteps(
  services: Services,
  request: Request,
  name: string,
): Promise<Response> {
  const caller = await authenticate(services, request, 'run.read');
  const run = await ownRun(caller, name);
  const query = stepsQuery.safeParse(Object.fromEntries(new URL(request.url).searchParams));
  if (!query.success) {
    const field = query.error.issues[0]?.path[0] === 'after' ? 'after' : 'limit';
    throw new Refusal('invalid_request', WANTED[field], { field });
  }
  const { limit, after } = query.data;
  const steps = await listSteps(caller.org, run.id, limit + 1, after);
  const shown = steps.slice(0, limit);
  const next = steps.length > limit ? (shown.at(-1)?.id ?? null) : null;
  return respondJson({ runId: run.name, steps: shown, next });
}

/** Completes a run for good, also one that is idle or blocked; doing it again changes nothing. */
export async function finishRun(
  services: Services,
  request: Request,
  name: string,
): Promise<Response> {
  const caller = await authenticate(services, request, 'run.complete');
  const run = await ownRun(caller, name);
  await completeRun(caller.org, run.id, services.now());
  const completed = (await readRun(caller.org, run.id)) ?? run;
  return respondJson(await describeRun(caller, completed));
}

/** An agent sees its own runs only; another's answers like one that doesn't exist. */
async function ownRun({ org, agent }: Caller, name: string): Promise<Run> {
  const run = await findRun(org, agent.id, name);
  if (run) return run;
  throw new Refusal('not_found', 'This agent has no run with that id.');
}

async function describeRun({ org, agent }: Caller, run: Run): Promise<object> {
  const version = await readPolicyVersion(org, run.policyVersionId);
  const { agentId: _, policyVersionId: __, callCount: ___, ...shown } = run;
  return {
    ...shown,
    agent: agent.name,
    policy: version?.label ?? null,
    spent: formatDollars(run.spentNanos),
    held: formatDollars(run.heldNanos),
    ceiling: run.ceilingNanos === null ? null : formatDollars(run.ceilingNanos),
  };
}
