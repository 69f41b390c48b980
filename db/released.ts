/** Released calls: the tool calls that a run was given, and results that answer none of them. */

import type { AgentId, ParkedId, PolicyVersionId, RunId, StepId, TokenId } from '../schema/ids.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import type { Row, Statement } from './client.ts';
import type { Org } from './org.ts';
import { newId } from './seal.ts';

/** The run that calls are released to: by its id, or as that of a parked answer just released. */
export type ReleasedTo = { readonly runId: RunId } | { readonly parkedId: ParkedId };

/** The digests that gates were bound to, by the ids of the calls that people approved by them. */
export type Digests = readonly (readonly [callId: string, digest: string])[];

/** The statements that remember released calls; none where there are none. */
export function releasedCalls(
  org: Org,
  to: ReleasedTo,
  callIds: readonly string[],
  now: number,
  digests: Digests = [],
): Statement[] {
  if (callIds.length === 0) return [];
  const approved = new Map(digests);
  const run =
    'runId' in to
      ? 'select id as run_id from runs where org_id = ?1 and id = ?2'
      : 'select run_id from parked where org_id = ?1 and id = ?2 and ended_at = ?4';
  return [
    org.statement(
      `insert into released_calls (org_id, run_id, call_id, was_released, digest, created_at)
       select ?1, run_id, value ->> 0, 1, value ->> 1, ?4 from (${run}), json_each(?3) where true
       on conflict do update set was_released = 1, digest = coalesce(excluded.digest, digest)`,
      'runId' in to ? to.runId : to.parkedId,
      JSON.stringify(callIds.map((id) => [id, approved.get(id) ?? null])),
      now,
    ),
  ];
}

/** What people were asked about a call, where they were. */
interface AskedAbout {
  /** What they approved; `null` where nobody was asked. */
  readonly digest: string | null;
  /** The tool; `null` where nobody was asked. */
  readonly tool: string | null;
  /** Where its MCP server is; `null` where that is not known. */
  readonly server: string | null;
}

/** From the gates on a call: all that have one digest say the same. */
const ASKED_ABOUT = `c.digest,
  (select tool from gates g where g.org_id = ?1 and g.digest = c.digest) as tool,
  (select server from gates g where g.org_id = ?1 and g.digest = c.digest) as server`;

function toAskedAbout({ digest, tool, server }: Row): AskedAbout {
  return {
    digest: digest as string | null,
    tool: tool as string | null,
    server: server as string | null,
  };
}

/** A call that a run was given. */
export interface ReleasedCall extends AskedAbout {
  /** Whether what they approved has been sent to run. */
  readonly isUsed: boolean;
}

/** Of these ids those of calls that the run was given. */
export async function findReleased(
  org: Org,
  run: RunId,
  callIds: readonly string[],
): Promise<ReadonlyMap<string, ReleasedCall>> {
  const rows = await org.read(
    `select c.call_id, c.used_by, ${ASKED_ABOUT} from released_calls c
     where c.org_id = ?1 and c.run_id = ?2 and c.was_released = 1
       and c.call_id in (select value from json_each(?3))`,
    run,
    JSON.stringify(callIds),
  );
  return new Map(rows.map((row) => [String(row.call_id), toReleased(row)]));
}

function toReleased(row: Row): ReleasedCall {
  return { ...toAskedAbout(row), isUsed: row.used_by !== null };
}

/**
 * Lets a step send calls to run that people approved, each of which runs once.
 *
 * @returns whether all of them were still to be sent; else none of them is the step's.
 */
export async function useApprovals(
  org: Org,
  run: RunId,
  step: StepId,
  callIds: readonly string[],
): Promise<boolean> {
  const free = `org_id = ?1 and run_id = ?2 and used_by is null
    and call_id in (select value from json_each(?4))`;
  const [used] = await org.write(
    org.statement(
      `update released_calls set used_by = ?3
       where ${free} and ?5 = (select count(*) from released_calls where ${free})`,
      run,
      step,
      JSON.stringify(callIds),
      callIds.length,
    ),
  );
  return used!.changes === callIds.length;
}

/** The statement that gives back what a step was to send, and that has not run. */
export function returnApprovals(org: Org, run: RunId, step: StepId): Statement {
  return org.statement(
    'update released_calls set used_by = null where org_id = ?1 and run_id = ?2 and used_by = ?3',
    run,
    step,
  );
}

/** A call that an agent was given, and by which of its runs and under which policy. */
export interface ReleasedBefore extends AskedAbout {
  readonly run: { readonly id: RunId };
  readonly version: { readonly id: PolicyVersionId };
}

/**
 * Of these ids those of calls that any run of an agent was given in a response; of those that people
 * approved only those that were sent to run.
 */
export async function findReleasedBefore(
  org: Org,
  agent: AgentId,
  callIds: readonly string[],
): Promise<ReadonlyMap<string, ReleasedBefore>> {
  const rows = await org.read(
    `select c.call_id, r.id as run_id, r.policy_version_id, ${ASKED_ABOUT}
     from json_each(?3)
     join responses p on p.org_id = ?1 and p.agent_id = ?2 and p.response_id = value
     join runs r on r.org_id = ?1 and r.id = p.run_id
     join released_calls c
       on c.org_id = ?1 and c.run_id = r.id and c.call_id = value and c.was_released = 1
       and (c.digest is null or c.used_by is not null)`,
    agent,
    JSON.stringify(callIds),
  );
  return new Map(rows.map((row) => [String(row.call_id), toReleasedBefore(row)]));
}

function toReleasedBefore(row: Row): ReleasedBefore {
  return {
    run: { id: row.run_id as RunId },
    version: { id: row.policy_version_id as PolicyVersionId },
    ...toAskedAbout(row),
  };
}

/** A call that ran upstream since people had approved it. */
export interface ApprovedCall {
  readonly callId: string | null;
  readonly tool: string;
  /** The id of the request that they approved. */
  readonly approvalId: string;
}

/** The statement that notes on the trail which calls ran as people had approved them. */
export function approvedCalls(
  org: Org,
  run: RunId,
  tokenId: TokenId,
  calls: readonly ApprovedCall[],
  now: number,
): Statement {
  return org.statement(
    `insert into steps (
       org_id, id, run_id, agent_id, kind, day, started_at, settled_at, outcome, asked, answered
     ) select ?1, ?3, id, agent_id, 'note', ?4, ?5, ?5, 'approved_call',
       json_object('endpoint', 'tool_calls', 'tokenId', ?6),
       json_object('detail', json_object('calls', json(?7)))
     from runs where org_id = ?1 and id = ?2`,
    run,
    newId('step', now),
    windowsOf(now).day,
    now,
    tokenId,
    JSON.stringify(calls),
  );
}

/** A result that a run sent, though it was never given the call. */
export interface UnreleasedResult {
  readonly callId: string;
  /** Whether it has been flagged before. */
  readonly isKnown: boolean;
}

/** Which of these ids are of no call that the run was given. */
export async function findUnreleased(
  org: Org,
  run: RunId,
  callIds: readonly string[],
): Promise<UnreleasedResult[]> {
  const rows = await org.read(
    `select distinct value as id, c.was_released from json_each(?3)
     left join released_calls c on c.org_id = ?1 and c.run_id = ?2 and c.call_id = value
     where coalesce(c.was_released, 0) = 0`,
    run,
    JSON.stringify(callIds),
  );
  return rows.map((row) => ({ callId: String(row.id), isKnown: row.was_released !== null }));
}

/** What became of a run's calls of a tool, as far as Rungate was asked about them. */
export interface Passage {
  /** Whether one may be made: it was allowed, approved, or given to the run under the very id. */
  readonly isLet: boolean;
  /** Whether one was denied, or people were asked about it. */
  readonly isStopped: boolean;
}

/** What became of the calls of a tool in a run. */
export async function readPassage(
  org: Org,
  run: RunId,
  tool: string,
  callId: string | undefined,
): Promise<Passage> {
  const told = `select 1 from steps
    where org_id = ?1 and run_id = ?2 and answered ->> '$.detail.tool' = ?3`;
  const asked = 'select 1 from gates where org_id = ?1 and run_id = ?2 and tool = ?3';
  const row = await org.first(
    `select exists (${told} and outcome = 'tool_allowed')
         or exists (${asked} and status in ('approved', 'released'))
         or exists (
           select 1 from released_calls
           where org_id = ?1 and run_id = ?2 and call_id = ?4 and was_released = 1
         ) as is_let,
       exists (${told} and kind = 'denial') or exists (${asked}) as is_stopped`,
    run,
    tool,
    callId ?? null,
  );
  return { isLet: row?.is_let === 1, isStopped: row?.is_stopped === 1 };
}

/** Flags results on the trail, each once per run. */
export async function flagResults(
  org: Org,
  run: RunId,
  tokenId: TokenId,
  callIds: readonly string[],
  now: number,
): Promise<void> {
  await org.write(
    org.statement(
      `insert into released_calls (org_id, run_id, call_id, was_released, created_at)
       select ?1, ?2, value, 0, ?4 from json_each(?3) where true on conflict do nothing`,
      run,
      JSON.stringify(callIds),
      now,
    ),
    org.statement(
      `insert into steps (
         org_id, id, run_id, agent_id, kind, day, started_at, settled_at, outcome, asked, answered
       ) select ?1, ?3, id, agent_id, 'note', ?4, ?5, ?5, 'unreleased_result',
         json_object('endpoint', 'tool_results', 'tokenId', ?6),
         json_object('detail', json_object('callIds', json(?7)))
       from runs where org_id = ?1 and id = ?2 and changes() > 0`,
      run,
      newId('step', now),
      windowsOf(now).day,
      now,
      tokenId,
      JSON.stringify(callIds),
    ),
  );
}
