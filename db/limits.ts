/** What is used of limits: checked and counted in the transaction of the step that uses it. */

import type { RunId, StepId } from '../schema/ids.ts';
import {
  fits,
  type Limit,
  type Quota,
  type Slot,
  type Standing,
  slotOf,
  waitMsOf,
} from '../schema/rules/limit.ts';
import type { Database, Row, Statement } from './client.ts';
import type { Org } from './org.ts';

/** A limit, and how much a call takes of it. */
export interface Charge {
  readonly limit: Limit;
  readonly amount: number;
}

/** Tokens that a call has reserved in each of its windows, until what it uses is known. */
export interface ReservedTokens {
  readonly tokens: number;
  readonly slots: readonly TokenSlot[];
}

type TokenSlot = readonly [subject: string, windowMs: number, slot: number];

/** What charges at a moment reserve of tokens; `undefined` where none is limited. */
export function reservedTokens(
  charges: readonly Charge[],
  nowMillis: number,
): ReservedTokens | undefined {
  if (charges.length === 0) return undefined;
  const charged = charges.filter(({ limit, amount }) => limit.kind === 'tokens' && amount > 0);
  const [first] = charged;
  if (!first) return undefined;
  const slots = charged.map(({ limit: { subject, windowMs } }): TokenSlot => {
    return [subject, windowMs, slotOf(nowMillis, windowMs)];
  });
  return { tokens: first.amount, slots };
}

/** The rows that count for all orgs. */
const EVERYONE = '*';

/** A longer lease is not that of a call in flight, but of a response made in the background. */
const LONGEST_LEASE_MS = 60_000;

/** What the SQL below reads of charges at a moment; see {@link chargesSql} for the members' names. */
export function writeCharges(charges: readonly Charge[], nowMillis: number): string {
  return JSON.stringify(
    charges.map(({ limit: { kind, per, subject, windowMs, most }, amount }) => {
      const at = windowMs > 0 ? slotOf(nowMillis, windowMs) : 0;
      const first = windowMs > 0 ? slotOf(nowMillis - windowMs, windowMs) : 0;
      return [kind, per, subject, windowMs, at, first, amount, most];
    }),
  );
}

const chargesSql = (parameter: string): string => `(
  select key as position, value ->> 0 as kind, value ->> 1 as per, value ->> 2 as subject,
    value ->> 3 as window_ms, value ->> 4 as slot, value ->> 5 as first_slot,
    value ->> 6 as amount, value ->> 7 as most
  from json_each(${parameter}) limit -1
)`;

const slotsSql = (now: string): string => `from limit_slots s
  where s.org_id = iif(c.per = 'deployment', '${EVERYONE}', ?1) and s.subject = c.subject
    and s.kind = c.kind and s.window_ms = c.window_ms and s.slot >= c.first_slot
    and s.last_at > ${now} - c.window_ms`;

/** The calls in flight of a charge's subject: those whose process has lately said that it lives. */
function liveSql(now: string): string {
  // Without statistics the primary key looks as good, by which an org's whole trail is read.
  const live = 'steps indexed by live_steps';
  const isLive = `settled_at is null and lease_expires_at > ${now}
    and lease_expires_at <= ${now} + ${LONGEST_LEASE_MS}`;
  return `case c.per
    when 'token' then (
      select count(*) from ${live}
      where org_id = ?1 and asked ->> '$.tokenId' = c.subject and ${isLive}
    )
    when 'agent' then (
      select count(*) from ${live} where org_id = ?1 and agent_id = c.subject and ${isLive}
    )
    when 'org' then (select count(*) from ${live} where org_id = ?1 and ${isLive})
    when 'policy' then (
      select count(*) from ${live}
      join runs r on r.id = steps.run_id
      join policy_versions v on v.id = r.policy_version_id
      where steps.org_id = ?1 and v.policy_id = c.subject and ${isLive}
    )
    else (select count(*) from ${live} where ${isLive})
  end`;
}

const usedSql = (now: string): string => `case c.kind
  when 'concurrent' then ${liveSql(now)}
  when 'steps' then runs.call_count
  when 'duration' then ${now} - runs.opened_at
  else (select coalesce(sum(s.used), 0) ${slotsSql(now)})
end`;

/**
 * A condition on a row of `runs`: that all charges fit, as {@link fits} has it.
 *
 * @param charges The parameter that {@link writeCharges} is bound to.
 * @param now The parameter that the same moment is bound to.
 * @param isOne Whether they are those of one call, which may be let in because it is alone.
 */
export function fitsSql(charges: string, now: string, isOne: boolean): string {
  const used = usedSql(now);
  const alone = `and not (c.kind = 'tokens' and ${used} < c.most and ${liveSql(now)} = 0)`;
  return `not exists (
    select 1 from ${chargesSql(charges)} c
    where ${used} + c.amount > c.most ${isOne ? alone : ''}
  )`;
}

/** The statement that counts charges once their step has been written in the same transaction. */
export function countCharges(
  org: Org,
  run: RunId,
  step: StepId,
  charges: string,
  nowMillis: number,
): Statement {
  return org.statement(COUNT_CHARGES, run, step, charges, nowMillis);
}

const COUNT_CHARGES = `insert into limit_slots (
    org_id, subject, kind, window_ms, slot, used, last_at, ends_at
  )
  select iif(c.per = 'deployment', '${EVERYONE}', ?1), c.subject, c.kind, c.window_ms, c.slot,
    c.amount, ?5, ?5 + 2 * c.window_ms
  from ${chargesSql('?4')} c
  where c.window_ms > 0 and c.amount > 0
    and exists (select 1 from steps where org_id = ?1 and run_id = ?2 and id = ?3)
  on conflict do update set
    used = used + excluded.used, last_at = max(last_at, excluded.last_at)`;

/**
 * The statement that tells how the limits of charges stand, after their step was written in the same
 * transaction or was not; {@link readStandings} reads it.
 */
export function showStandings(
  org: Org,
  run: RunId,
  step: StepId,
  charges: string,
  nowMillis: number,
): Statement {
  return org.statement(SHOW_STANDINGS, run, step, charges, nowMillis);
}

// For a call that was let in the oldest slot says when more remains, and listing them all would cost
// more than the rest. Only tokens can be over their limit then, so that more than one has to leave.
const SHOW_STANDINGS = `select c.used,
    iif(c.window_ms > 0, (
      select s.last_at ${slotsSql('?5')} order by s.slot limit 1
    ), null) as first_at,
    iif(c.window_ms > 0 and (c.used > c.most or not c.is_let_in), (
      select json_group_array(json_array(s.last_at, s.used)) ${slotsSql('?5')}
    ), '[]') as slots,
    iif(c.kind = 'tokens' and not c.is_let_in, ${liveSql('?5')}, 0) as live
  from (
    select c.*, ${usedSql('?5')} as used, exists (
        select 1 from steps where org_id = ?1 and run_id = ?2 and id = ?3
      ) as is_let_in
    from ${chargesSql('?4')} c cross join runs
    where runs.org_id = ?1 and runs.id = ?2 limit -1
  ) c
  order by c.position`;

/** Reads the rows of {@link showStandings}, in the order of the charges. */
export function readStandings(rows: readonly Row[]): Standing[] {
  return rows.map((row) => {
    const used = Number(row.used);
    const listed = toSlots(row.slots);
    const isLumped = listed.length === 0 && row.first_at !== null;
    const slots = isLumped ? [{ lastAt: Number(row.first_at), used }] : listed;
    return { used, slots, live: Number(row.live) };
  });
}

function toSlots(json: Row[string] | undefined): Slot[] {
  const pairs = JSON.parse(String(json)) as [lastAt: number, used: number][];
  return pairs.map(([lastAt, used]) => ({ lastAt, used }));
}

/** How limits stand at a moment, without a call; those of a run, which stop it, are not known. */
export async function readLimits(
  org: Org,
  limits: readonly Limit[],
  nowMillis: number,
): Promise<Standing[]> {
  if (limits.length === 0) return [];
  const charges = limits.map((limit) => ({ limit, amount: 0 }));
  const rows = await org.read(READ_LIMITS, writeCharges(charges, nowMillis), nowMillis);
  return readStandings(rows);
}

const READ_LIMITS = `select iif(c.kind = 'concurrent', ${liveSql('?3')}, (
      select coalesce(sum(s.used), 0) ${slotsSql('?3')}
    )) as used,
    null as first_at, 0 as live,
    iif(c.window_ms > 0, (
      select json_group_array(json_array(s.last_at, s.used)) ${slotsSql('?3')}
    ), '[]') as slots
  from ${chargesSql('?2')} c order by c.position`;

/**
 * Counts a use that no call goes by, such as a failed sign-in or a request of an admin, unless its
 * subject has used up its quota. What is refused counts for nothing.
 *
 * @param subject The address, or the id of the token or session, that it counts against.
 * @returns 0 when it was counted, else the milliseconds until the next one would be.
 * @throws {DatabaseError} when it can't be counted.
 */
export async function countUse(
  db: Database,
  subject: string,
  { kind, windowMs, most }: Quota,
  nowMillis: number,
): Promise<number> {
  const first = slotOf(nowMillis - windowMs, windowMs);
  const args = [subject, kind, windowMs, first, nowMillis] as const;
  const [counted, shown] = await db.write([
    { sql: COUNT_USE, args: [...args, slotOf(nowMillis, windowMs), most] },
    { sql: SHOW_USES, args },
  ]);
  if (counted!.changes > 0) return 0;
  const slots = toSlots(shown!.rows[0]!.slots);
  return Math.max(1, waitMsOf(slots, windowMs, nowMillis, most - 1));
}

const USES = `from limit_slots
  where org_id = '${EVERYONE}' and subject = ?1 and kind = ?2 and window_ms = ?3
    and slot >= ?4 and last_at > ?5 - ?3`;

const COUNT_USE = `insert into limit_slots (
    org_id, subject, kind, window_ms, slot, used, last_at, ends_at
  )
  select '${EVERYONE}', ?1, ?2, ?3, ?6, 1, ?5, ?5 + 2 * ?3
  where (select coalesce(sum(used), 0) ${USES}) < ?7
  on conflict do update set
    used = used + excluded.used, last_at = max(last_at, excluded.last_at)`;

const SHOW_USES = `select json_group_array(json_array(last_at, used)) as slots ${USES}`;

/** Slots are small, so that a transaction may remove many. */
const BATCH = 1_000;

/**
 * Removes a batch of slots that count no more.
 *
 * @returns how many were removed; 0 when none is left.
 */
export async function pruneSlots(db: Database, nowMillis: number): Promise<number> {
  const [result] = await db.write([
    {
      sql: `delete from limit_slots where (org_id, subject, kind, window_ms, slot) in (
          select org_id, subject, kind, window_ms, slot from limit_slots
          where ends_at < ?1 limit ?2
        )`,
      args: [nowMillis, BATCH],
    },
  ]);
  return result!.changes;
}
