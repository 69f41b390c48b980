/** Gates: decisions that people have to make, each bound to one proposed call and used once. */

import type {
  AgentId,
  GateId,
  MemberId,
  ParkedId,
  PolicyVersionId,
  RunId,
  StepId,
  TokenId,
} from '../schema/ids.ts';
import { mayDo, ROLES } from '../schema/roles.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import {
  type GateStand,
  type GateStatus,
  type GateSubject,
  statusAt,
  subjectText,
} from '../schema/rules/gate.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Database, Row, Statement } from './client.ts';
import { type Charge, fitsSql, writeCharges } from './limits.ts';
import { forOrg, type Org } from './org.ts';
import { announce } from './outbox.ts';
import { type Page, readPage, readPages, type Window } from './page.ts';
import { mayGoOnSql } from './runs.ts';
import { digestText, type MasterKeys, newId } from './seal.ts';
import { countStep } from './steps.ts';
import { openVault, type Shelf, type Vault } from './vault.ts';

/** A gate as it stands; times are Unix milliseconds. */
export interface Gate extends GateStand {
  readonly agentId: AgentId;
  readonly runId: RunId;
  readonly policyVersionId: PolicyVersionId;
  /** The call that proposed it; `null` for one asked about before a local tool runs. */
  readonly stepId: StepId | null;
  readonly parkedId: ParkedId | null;
  /** SHA-256 of what it is bound to, in hex. */
  readonly digest: string;
  /** What people call the rule that asks, or else its path. */
  readonly ruleName: string;
  readonly reason: string;
  /** Approvals that are needed, and those given that count: by who still may approve. */
  readonly approvals: number;
  readonly given: number;
  readonly createdAt: number;
  readonly decidedAt: number | null;
  readonly decidedBy: string | null;
  /** Where the tool's MCP server is, as far as that was declared. */
  readonly server: string | null;
  /** Sealed: see {@link openArgs}. */
  readonly args: string;
}

/** What a gate is opened with. */
export interface NewGate {
  readonly id: GateId;
  readonly subject: GateSubject;
  readonly stepId: StepId | null;
  readonly parkedId: ParkedId | null;
  /** The token of the call: who made it can't decide. */
  readonly tokenId: TokenId;
  readonly rule: string;
  readonly ruleName: string;
  readonly reason: string;
  readonly approvals: number;
  readonly expiresAt: number;
  /** From {@link sealArgs}. */
  readonly args: string;
}

/** The longest arguments that a person can be asked about, in characters: escaped, they still fit. */
export const MAX_ARGS_CHARS = 128 * 1024;

/** The most gates of one agent that may wait at once without an answer parked: each costs nothing. */
export const MAX_OPEN_ASKS = 1_000;

const shelfOf = (gate: GateId): Shelf => ({ table: 'gates', column: 'args', row: gate });

/** Seals the exact text of a gate's arguments; commit the vault's count with it. */
export function sealArgs(vault: Vault, gate: GateId, argsText: string): Promise<string> {
  // As a JSON string: arguments may hold lone surrogates, which are no text.
  return vault.seal(shelfOf(gate), JSON.stringify(argsText));
}

/** The exact text of a gate's arguments, for those who may decide on it. */
export async function openArgs(vault: Vault, gate: Pick<Gate, 'id' | 'args'>): Promise<string> {
  return JSON.parse(await vault.open(shelfOf(gate.id), gate.args)) as string;
}

/**
 * The statements that open a gate, with its step and its event. A gate of a parked answer is
 * opened only if that answer was parked in the same transaction; one without is opened only if
 * none is open for the same digest.
 */
export function gateOpening(org: Org, gate: NewGate, now: number): Statement[] {
  const { subject } = gate;
  return [
    org.statement(
      `insert into gates (
         org_id, id, agent_id, run_id, policy_version_id, step_id, parked_id, token_id, caused_by,
         tool, args, digest, rule, rule_name, reason, approvals, created_at, expires_at, server
       ) select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8,
         coalesce((select created_by from tokens where org_id = ?1 and id = ?8), ''),
         ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18
       where iif(?7 is null, (
         select count(*) from gates where org_id = ?1 and status = 'pending' and agent_id = ?3
           and parked_id is null and expires_at > ?16
       ) < ${MAX_OPEN_ASKS}, exists (select 1 from parked where org_id = ?1 and id = ?7))
       on conflict do nothing`,
      gate.id,
      subject.agentId,
      subject.runId,
      subject.policyVersionId,
      gate.stepId,
      gate.parkedId,
      gate.tokenId,
      subject.tool,
      gate.args,
      digestText(subjectText(subject)),
      gate.rule,
      gate.ruleName,
      gate.reason,
      gate.approvals,
      now,
      gate.expiresAt,
      subject.server,
    ),
    gateStep(org, gate.id, 'approval_pending', now),
    // A run that idles out while a person decides would give the same request another run.
    org.statement(
      `update runs set active_at = max(active_at, ?3) where org_id = ?1 and id = ?2
         and changes() > 0`,
      subject.runId,
      gate.expiresAt,
    ),
    announce(
      org,
      'approval.pending',
      {
        gateId: gate.id,
        runId: subject.runId,
        agentId: subject.agentId,
        tool: subject.tool,
        rule: gate.rule,
        expiresAt: new Date(gate.expiresAt).toISOString(),
      },
      now,
      { ifChanged: true },
    ),
  ];
}

/** The step that tells of a gate, if the statement before it in the transaction changed a row. */
function gateStep(org: Org, gate: GateId, outcome: string, now: number, by?: string): Statement {
  return org.statement(
    `insert into steps (
       org_id, id, run_id, agent_id, kind, day, started_at, settled_at, outcome, asked, answered
     ) select ?1, ?3, run_id, agent_id, 'gate', ?4, ?5, ?5, ?6,
       json_object('endpoint', 'gate', 'tokenId', token_id),
       json_object('detail', json_object(
         'gate', id, 'tool', tool, 'rule', rule, 'ruleName', rule_name, 'step', step_id, 'by', ?7
       ))
     from gates where org_id = ?1 and id = ?2 and changes() > 0`,
    gate,
    newId('step', now),
    windowsOf(now).day,
    now,
    outcome,
    by ?? null,
  );
}

/**
 * Opens a gate for a call asked about before it runs, or finds the one of the same call: while it
 * is open, for good once it is rejected, and a single time after it has expired.
 *
 * @returns undefined where {@link MAX_OPEN_ASKS} of the agent's gates wait already.
 * @throws {SealError} when the arguments can't be sealed.
 */
export async function openAsk(
  org: Org,
  vault: Vault,
  ask: Omit<NewGate, 'id' | 'args' | 'parkedId' | 'stepId'>,
  now: number,
): Promise<Gate | undefined> {
  const digest = digestText(subjectText(ask.subject));
  const present = await findAsk(org, digest);
  const isDue = present !== undefined && statusAt(present, now) === 'expired';
  if (present && !isDue && present.status !== 'released') return present;
  if (isDue && (await tellExpiry(org, present, now))) return { ...present, status: 'expired' };
  const id = newId('gate', now);
  const args = await sealArgs(vault, id, ask.subject.argsText);
  const gate = { ...ask, id, args, parkedId: null, stepId: null };
  await org.write(vault.count(), ...gateOpening(org, gate, now));
  // Another caller may have been first with the same call: then theirs is the gate.
  const found = await findAsk(org, digest);
  return found?.id === present?.id ? undefined : found;
}

/** The newest gate of a call. */
async function findAsk(org: Org, digest: string): Promise<Gate | undefined> {
  const row = await org.first(
    `${SELECT} where g.org_id = ?1 and g.digest = ?2 and g.parked_id is null
     order by g.status in ('pending', 'approved') desc, g.created_at desc, g.id desc limit 1`,
    digest,
  );
  return row && toGate(row);
}

/** Notes that who asked has been told of a gate's expiry; only the first time succeeds. */
export async function tellExpiry(org: Org, gate: Gate, now: number): Promise<boolean> {
  if (gate.status !== 'expired') await expireGate(org, gate, now);
  const [result] = await org.write(
    org.statement(
      'update gates set told_at = ?3 where org_id = ?1 and id = ?2 and told_at is null',
      gate.id,
      now,
    ),
  );
  return result!.changes > 0;
}

/**
 * Uses an approved gate that no answer is parked behind; only the first use succeeds, which is a
 * step of its run.
 *
 * @param charges What it takes of its run's bounds: it isn't used where they don't fit.
 */
export async function useGate(
  org: Org,
  { id, runId }: Pick<Gate, 'id' | 'runId'>,
  now: number,
  charges: readonly Charge[] = [],
): Promise<boolean> {
  const [result] = await org.write(
    org.statement(USE_GATE, id, now, runId, writeCharges(charges, now)),
    gateStep(org, id, 'released', now),
    countStep(org, runId),
  );
  return result!.changes > 0;
}

const USE_GATE = `update gates set status = 'released'
  where org_id = ?1 and id = ?2 and parked_id is null and status = 'approved' and expires_at > ?3
    and exists (
      select 1 from runs where org_id = ?1 and id = ?4 and ${fitsSql('?5', '?3', false)}
    )`;

const LINK = 'link';

const APPROVERS = ROLES.filter((role) => mayDo(role, 'gate.approve')).map((role) => `'${role}'`);

/** Whether somebody is a member who may approve. */
const mayApprove = (member: string): string => `exists (
  select 1 from members where org_id = ?1 and id = ${member} and role in (${APPROVERS})
)`;

/**
 * How many approvals of a gate count: those of different people who still may approve. Whoever was
 * removed and has come back is a new member, so that only one of his is a member's.
 */
const approvalsOf = (gate: string): string => `(
  select count(*) from gate_decisions d
  where d.org_id = ?1 and d.gate_id = ${gate} and d.decision = 'approve' and (
    d.decider in ('operator', '${LINK}') or ${mayApprove('d.decider')}
  )
)`;

const SELECT = `select g.*,
    iif(g.status in ('approved', 'released'), g.approvals, ${approvalsOf('g.id')}) as given
  from gates g`;

/** A gate by its id. */
export async function readGate(org: Org, id: GateId): Promise<Gate | undefined> {
  const row = await org.first(`${SELECT} where g.org_id = ?1 and g.id = ?2`, id);
  return row && toGate(row);
}

/** A gate that is waited for. */
export interface AwaitedGate {
  readonly gate: Gate;
  /** Whether its run is no longer open, or who waits for it with this token no longer may. */
  readonly isOver: boolean;
}

/** A gate, and whether there is still anything to wait for. */
export async function readAwaited(
  org: Org,
  id: GateId,
  tokenId: TokenId,
  now: number,
): Promise<AwaitedGate | undefined> {
  const row = await org.first(
    `select g.*, (
         r.status <> 'open' or a.suspended_at is not null or o.suspended_at is not null
         or o.deletion_requested_at is not null or exists (
           select 1 from tokens where org_id = ?1 and id = ?3
             and (revoked_at is not null or expires_at <= ?4)
         )
       ) as is_over
     from (${SELECT} where g.org_id = ?1 and g.id = ?2) g
     join runs r on r.org_id = ?1 and r.id = g.run_id
     join agents a on a.org_id = ?1 and a.id = g.agent_id
     join orgs o on o.id = ?1`,
    id,
    tokenId,
    now,
  );
  return row && { gate: toGate(row), isOver: row.is_over === 1 };
}

/** Which gates of an org are searched for; all of what is given must hold. */
export interface GateFilter {
  /** As it stands at the moment of asking: see {@link statusAt}. */
  readonly status?: GateStatus | null | undefined;
  readonly agentId?: AgentId | null | undefined;
  readonly runId?: RunId | null | undefined;
  /** Only those that can be decided on: they wait, and their run may still use them. */
  readonly isDecidable?: boolean | null | undefined;
}

/** {@link statusAt} of a row, with the moment bound to `?2`. */
const AS_OF_NOW: Readonly<Record<GateStatus, string>> = {
  pending: `g.status = 'pending' and g.expires_at > ?2`,
  approved: `g.status = 'approved' and g.expires_at > ?2`,
  rejected: `g.status = 'rejected'`,
  expired: `(
    g.status = 'expired' or g.status in ('pending', 'approved') and g.expires_at <= ?2
  )`,
  released: `g.status = 'released'`,
};

const ofStatus = (status: GateStatus | null | undefined): string =>
  status ? AS_OF_NOW[status] : '?2 > 0';

/** An org's gates, the newest first. */
export function searchGates(
  org: Org,
  { status, agentId, runId, isDecidable }: GateFilter,
  now: number,
  window: Window,
): Promise<Page<Gate>> {
  const sql = `${SELECT} where g.org_id = ?1 and ${ofStatus(status)}
    and (?3 is null or g.agent_id = ?3) and (?4 is null or g.run_id = ?4)
    and (not ?5 or ${AS_OF_NOW.pending} and exists (
      select 1 from runs r where r.org_id = ?1 and r.id = g.run_id and ${mayGoOnSql('r')}
    ))`;
  const args = [now, agentId ?? null, runId ?? null, isDecidable ? 1 : 0];
  return readPage(org, { sql, args, order: 'id', isDescending: true }, window, toGate);
}

/** The same part of the gates of several runs, the newest first. */
export function listGatesOfRuns(
  org: Org,
  runs: readonly RunId[],
  { status }: Pick<GateFilter, 'status'>,
  now: number,
  window: Window,
): Promise<Map<RunId, Page<Gate>>> {
  const sql = (run: string) => `${SELECT}
    where g.org_id = ?1 and ${ofStatus(status)} and g.run_id = ${run}`;
  const listings = { sql, args: [now], order: 'id', isDescending: true };
  return readPages(org, listings, runs, window, toGate);
}

/** The gates of these ids, found by them as runs are. */
export async function readGates(org: Org, ids: readonly GateId[]): Promise<Gate[]> {
  const rows = await org.read(
    `${SELECT} where +g.org_id = ?1 and g.id in (select value from json_each(?2))`,
    JSON.stringify(ids),
  );
  return rows.map(toGate);
}

/**
 * The exact texts of the arguments of gates, for those who may see them.
 *
 * @throws {SealError} when the org's key is gone, or what is kept was altered.
 */
export async function readArgs(
  org: Org,
  master: MasterKeys,
  ids: readonly GateId[],
): Promise<Map<GateId, string>> {
  const vault = await openVault(org, master);
  const gates = await readGates(org, ids);
  const opened = gates.map(async (gate) => [gate.id, await openArgs(vault, gate)] as const);
  return new Map(await Promise.all(opened));
}

/** What one decider has decided on a gate. */
export interface GateDecision {
  /** A member's id, `operator`, or `link` for whoever holds signed links. */
  readonly decider: string;
  readonly decision: Verdict['decision'];
  readonly reason: string | null;
  /** Unix milliseconds. */
  readonly decidedAt: number;
}

/** The decisions on gates, each gate's in the order of time. */
export async function readDecisions(
  org: Org,
  ids: readonly GateId[],
): Promise<Map<GateId, GateDecision[]>> {
  const rows = await org.read(
    `select * from gate_decisions
     where org_id = ?1 and gate_id in (select value from json_each(?2)) order by decided_at`,
    JSON.stringify(ids),
  );
  const decisions = new Map(ids.map((id): [GateId, GateDecision[]] => [id, []]));
  for (const row of rows) {
    decisions.get(row.gate_id as GateId)?.push({
      decider: String(row.decider),
      decision: row.decision as GateDecision['decision'],
      reason: row.reason as string | null,
      decidedAt: row.decided_at as number,
    });
  }
  return decisions;
}

/** A person's decision on a gate. */
export interface Verdict {
  readonly actor: Actor;
  /** The member in whose name the operator decides. */
  readonly memberId?: MemberId;
  readonly decision: 'approve' | 'reject';
  readonly reason?: string;
}

/**
 * What a decision did:
 * - `decided`: the gate is approved or rejected by it.
 * - `counted`: it counts, but further approvals are needed.
 * - `repeated`: this decider has decided on the gate before; nothing changed.
 * - `own`: the decider caused the call, and so may not decide.
 * - `closed`: the gate is decided or expired, or its run is over.
 * - `missing`: the org has no such gate.
 */
export type Decided = 'decided' | 'counted' | 'repeated' | 'own' | 'closed' | 'missing';

/**
 * Decides on a gate, with its audit entry, its step and its event. A decider counts once: a member
 * with all of his tokens, the operator, or whoever holds signed links. The last approval decides
 * where the earlier ones count by then.
 */
export async function decideGate(
  org: Org,
  id: GateId,
  verdict: Verdict,
  now: number,
): Promise<{ readonly outcome: Decided; readonly gate?: Gate }> {
  const before = await readGate(org, id);
  if (!before) return { outcome: 'missing' };
  const siblings = verdict.decision === 'reject' ? await siblingsOf(org, before) : [];
  const results = await org.write(
    ...decisionOf(org, before, verdict, now),
    ...siblings.flatMap((gate) => rejectionWith(org, before.id, gate, verdict, now)),
    ...(verdict.decision === 'reject' ? [settledActivity(org, before.runId, now)] : []),
  );
  const gate = (await readGate(org, id)) ?? before;
  if (results[2]!.changes > 0) return { outcome: 'decided', gate };
  if (results[0]!.changes > 0) return { outcome: 'counted', gate };
  const outcome = await whyNot(org, id, verdict);
  const asked = { outcome: 'refused' } as const;
  await org.write(
    auditEntry(org, verdict.actor, `gate.${verdict.decision}`, id, { refused: outcome }, asked),
  );
  return { outcome, gate };
}

/**
 * Why a link can reject a gate, but not approve it:
 * - `unnamed`: several people have to. Whoever holds it may give another approval in his own name,
 *   and would count as two.
 * - `unheld`: it doesn't say whom it was made for.
 * - `own`: it was made for who caused the call.
 * - `unfit`: it was made for who may not approve, or not any more.
 */
export type Bar = 'unnamed' | 'unheld' | 'own' | 'unfit';

/** What keeps a link from approving a gate; undefined where nothing does. */
export async function barOf(
  org: Org,
  { id, approvals }: Gate,
  holder: string | null,
): Promise<Bar | undefined> {
  if (approvals > 1) return 'unnamed';
  if (holder === null) return 'unheld';
  // As in {@link namesOf}, the operator goes by nothing.
  const names = holder === 'operator' ? [] : [holder];
  const row = await org.first(
    `select ${IS_OWN} as own, ?3 = 'operator' or ${mayApprove('?3')} as may
     from gates g where g.org_id = ?1 and g.id = ?2`,
    id,
    holder,
    JSON.stringify(names),
  );
  if (row?.own) return 'own';
  return row?.may ? undefined : 'unfit';
}

/**
 * Decides on a gate by a signed link.
 *
 * @param holder Whom it was made for, which may be a {@link Bar} to an approval.
 */
export async function decideByLink(
  org: Org,
  gate: Gate,
  verdict: Verdict,
  holder: string | null,
  now: number,
): Promise<{ readonly outcome: Decided | Bar; readonly gate?: Gate }> {
  const { actor, decision } = verdict;
  const mayBeBarred = decision === 'approve' && statusAt(gate, now) === 'pending';
  const bar = mayBeBarred ? await barOf(org, gate, holder) : undefined;
  if (!bar) return decideGate(org, gate.id, verdict, now);
  const states = { refused: bar, holder };
  await org.write(
    auditEntry(org, actor, `gate.${decision}`, gate.id, states, { outcome: 'refused' }),
  );
  return { outcome: bar, gate };
}

/** Each statement goes by whether the one before it changed a row. */
function decisionOf(org: Org, gate: Gate, verdict: Verdict, now: number): Statement[] {
  const { actor, decision, reason } = verdict;
  const status = decision === 'approve' ? 'approved' : 'rejected';
  const decider = deciderOf(verdict);
  const states = { by: decider, ...(reason === undefined ? {} : { reason }) };
  return [
    vote(org, gate.id, verdict, now),
    auditEntry(org, actor, `gate.${decision}`, gate.id, states, { ifChanged: true }),
    org.statement(
      `update gates set status = ?3, decided_at = ?4, decided_by = ?5
       where org_id = ?1 and id = ?2 and status = 'pending' and changes() > 0
         and (?3 = 'rejected' or approvals <= ${approvalsOf('?2')})`,
      gate.id,
      status,
      now,
      decider,
    ),
    gateStep(org, gate.id, status, now, decider),
    announce(org, `approval.${status}`, { ...eventOf(gate), decidedBy: decider }, now, {
      ifChanged: true,
    }),
  ];
}

/** The other open gates of the same answer: with one call of it rejected, none can pass. */
async function siblingsOf(org: Org, { id, parkedId }: Gate): Promise<Gate[]> {
  const rows = await org.read(
    `${SELECT} where g.org_id = ?1 and g.parked_id = ?2 and g.id <> ?3
       and g.status in ('pending', 'approved')`,
    parkedId,
    id,
  );
  return rows.map(toGate);
}

function rejectionWith(
  org: Org,
  rejected: GateId,
  gate: Gate,
  verdict: Verdict,
  now: number,
): Statement[] {
  const decider = deciderOf(verdict);
  return [
    org.statement(
      `update gates set status = 'rejected', decided_at = ?4, decided_by = ?5
       where org_id = ?1 and id = ?2 and status in ('pending', 'approved') and exists (
         select 1 from gates where org_id = ?1 and id = ?3 and status = 'rejected'
       )`,
      gate.id,
      rejected,
      now,
      decider,
    ),
    gateStep(org, gate.id, 'rejected', now, decider),
    announce(org, 'approval.rejected', { ...eventOf(gate), decidedBy: decider }, now, {
      ifChanged: true,
    }),
  ];
}

/** A run was held active while people decided: from now on it idles like any other. */
export function settledActivity(org: Org, run: RunId, now: number): Statement {
  return org.statement(
    `update runs set active_at = coalesce((
       select max(expires_at) from gates
       where org_id = ?1 and run_id = ?2 and status in ('pending', 'approved')
     ), ?3)
     where org_id = ?1 and id = ?2 and active_at > ?3`,
    run,
    now,
  );
}

/** The decision itself, while the gate is open and the decider is not who caused the call. */
function vote(org: Org, id: GateId, verdict: Verdict, now: number): Statement {
  return org.statement(
    `insert into gate_decisions (org_id, gate_id, decider, decision, reason, decided_at)
     select ?1, g.id, ?3, ?5, ?6, ?7 from gates g join runs r on r.id = g.run_id and r.org_id = ?1
     where g.org_id = ?1 and g.id = ?2 and g.status = 'pending' and g.expires_at > ?7
       and ${mayGoOnSql('r')} and not ${IS_OWN}
       and not (?3 = '${LINK}' and ?5 = 'approve' and g.approvals > 1)
     on conflict do nothing`,
    id,
    deciderOf(verdict),
    JSON.stringify(namesOf(verdict)),
    verdict.decision,
    verdict.reason ?? null,
    now,
  );
}

/**
 * Who counts as one decider. One person may hold all links to a gate: they are one together, and
 * none beside people who are known, see {@link decideByLink}.
 */
function deciderOf({ actor, memberId }: Verdict): string {
  if (typeof actor === 'string') return memberId ?? actor;
  return actor.kind === LINK ? LINK : (actor.memberId ?? actor.id);
}

/**
 * Everything that a decider goes by. The operator makes tokens in an org's name and answers for no
 * call, so that he goes by nothing.
 */
function namesOf({ actor, memberId }: Verdict): string[] {
  const names =
    typeof actor === 'string' ? [memberId] : [actor.id, actor.memberId, actor.tokenId, memberId];
  return names.filter((name) => name !== undefined);
}

/** The agent and its tokens, the person who made the token, as a user and as a member. */
const IS_OWN = `exists (
  select 1 from json_each(?4) where value in (g.agent_id, g.caused_by)
    or value in (select id from tokens where org_id = ?1 and agent_id = g.agent_id)
    or value in (select id from members where org_id = ?1 and user_id = g.caused_by)
)`;

async function whyNot(org: Org, id: GateId, verdict: Verdict): Promise<Decided> {
  const row = await org.first(
    `select ${IS_OWN} as own, exists (
       select 1 from gate_decisions where org_id = ?1 and gate_id = ?2 and decider = ?3
     ) as repeated from gates g where g.org_id = ?1 and g.id = ?2`,
    id,
    deciderOf(verdict),
    JSON.stringify(namesOf(verdict)),
  );
  if (row?.own) return 'own';
  return row?.repeated ? 'repeated' : 'closed';
}

/**
 * Ends gates that nobody has used in time, in every org.
 *
 * @returns how many, at most `limit`; 0 when none is left.
 */
export async function expireGates(db: Database, now: number, limit: number): Promise<number> {
  const rows = await db.read(
    `select * from gates where status in ('pending', 'approved') and expires_at <= ?1
     order by expires_at limit ?2`,
    [now, limit],
  );
  for (const row of rows) {
    await expireGate(forOrg(db, row.org_id as Org['id']), toGate({ ...row, given: 0 }), now);
  }
  return rows.length;
}

/** Ends a gate that nobody has used in time; one that has ended already stays as it is. */
export async function expireGate(org: Org, gate: Gate, now: number): Promise<void> {
  await org.write(
    org.statement(
      `update gates set status = 'expired'
       where org_id = ?1 and id = ?2 and status in ('pending', 'approved') and expires_at <= ?3`,
      gate.id,
      now,
    ),
    gateStep(org, gate.id, 'approval_expired', now),
    announce(org, 'approval.expired', eventOf(gate), now, { ifChanged: true }),
  );
}

function eventOf(gate: Gate) {
  return {
    gateId: gate.id,
    runId: gate.runId,
    agentId: gate.agentId,
    tool: gate.tool,
    rule: gate.rule,
    expiresAt: new Date(gate.expiresAt).toISOString(),
  };
}

function toGate(row: Row): Gate {
  return {
    id: row.id as GateId,
    agentId: row.agent_id as AgentId,
    runId: row.run_id as RunId,
    policyVersionId: row.policy_version_id as PolicyVersionId,
    stepId: row.step_id as StepId | null,
    parkedId: row.parked_id as ParkedId | null,
    tool: String(row.tool),
    digest: String(row.digest),
    rule: String(row.rule),
    ruleName: String(row.rule_name),
    reason: String(row.reason),
    approvals: row.approvals as number,
    given: row.given as number,
    status: row.status as GateStatus,
    createdAt: row.created_at as number,
    expiresAt: row.expires_at as number,
    decidedAt: row.decided_at as number | null,
    decidedBy: row.decided_by as string | null,
    args: String(row.args),
    server: row.server as string | null,
  };
}
