/** Analytics: what was spent, refused and asked, and how long calls took, by UTC days. */

import type { AgentId, PolicyId } from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import type { Row } from './client.ts';
import type { Org } from './org.ts';

/** Days `YYYY-MM-DD`, both included. */
export interface Days {
  readonly first: string;
  readonly last: string;
}

/** What spending is summed by. */
export type SpendKey = 'day' | 'agent' | 'model' | 'policy';

/** The spending of one day, agent, model or policy. */
export interface SpendShare {
  readonly day: string | null;
  readonly agentId: AgentId | null;
  readonly policyId: PolicyId | null;
  /** As `key/model`; null for tools and where the sum is by something else. */
  readonly model: string | null;
  /** Calls and reported tools that were settled. */
  readonly calls: number;
  readonly spentNanos: Nanos;
}

/** The most rows of an answer. */
const MOST = 500;

/** Sums that would leave the safe integers stay at the largest. */
const sum = (column: string): string => `min(sum(${column}), ${Number.MAX_SAFE_INTEGER})`;

const MODEL = `(model ->> 0) || '/' || (model ->> 1)`;
const SUMS = `${sum('calls')} as calls, ${sum('spent_nanos')} as spent_nanos`;

const SPEND: Readonly<Record<SpendKey, string>> = {
  day: `select day, ${SUMS} from call_totals
    where org_id = ?1 and day between ?2 and ?3
    group by day order by day limit ?4`,
  agent: `select agent_id, ${SUMS} from call_totals
    where org_id = ?1 and day between ?2 and ?3
    group by agent_id order by spent_nanos desc, agent_id limit ?4`,
  model: `select ${MODEL} as model, ${SUMS} from call_totals t
    where org_id = ?1 and day between ?2 and ?3
    group by t.model order by spent_nanos desc, t.model limit ?4`,
  policy: `select v.policy_id, ${SUMS} from call_totals t
    left join policy_versions v on v.org_id = ?1 and v.id = t.policy_version_id
    where t.org_id = ?1 and day between ?2 and ?3
    group by v.policy_id order by spent_nanos desc, v.policy_id limit ?4`,
};

/** The spending of an org: its days in their order, or the largest spenders first; at most 500. */
export async function readSpend(org: Org, by: SpendKey, days: Days): Promise<SpendShare[]> {
  const rows = await org.read(SPEND[by], days.first, days.last, MOST);
  return rows.map((row) => ({
    day: text(row, 'day'),
    agentId: text<AgentId>(row, 'agent_id'),
    policyId: text<PolicyId>(row, 'policy_id'),
    model: text(row, 'model'),
    calls: Number(row.calls),
    spentNanos: Number(row.spent_nanos) as Nanos,
  }));
}

function text<T extends string = string>(row: Row, column: string): T | null {
  return (row[column] ?? null) as T | null;
}

/** Calls that a rule refused. */
export interface Refused {
  /** A path in the policy document or a built-in rule; the reason where no rule was named. */
  readonly rule: string;
  readonly code: string;
  readonly count: number;
}

/** The calls that were refused, by rule; the most frequent first, at most 500. */
export async function readRefused(org: Org, { first, last }: Days): Promise<Refused[]> {
  const rows = await org.read(
    `select coalesce(answered ->> '$.detail.rule', outcome) as rule, outcome, count(*) as count
     from steps indexed by denials
     where org_id = ?1 and kind = 'denial' and day between ?2 and ?3
     group by 1, 2 order by count desc, 1, 2 limit ?4`,
    first,
    last,
    MOST,
  );
  return rows.map(({ rule, outcome, count }) => ({
    rule: String(rule),
    code: String(outcome),
    count: Number(count),
  }));
}

/** Calls that a rule asked a person about, and what came of it. */
export interface AskedAbout {
  readonly rule: string;
  readonly ruleName: string;
  readonly asked: number;
  readonly approved: number;
  readonly rejected: number;
  readonly expired: number;
}

/**
 * The calls that people were asked about, by rule; the most frequent first, at most 500.
 *
 * @param now Unix milliseconds: what waits and has expired by then counts as expired.
 */
export async function readAskedAbout(org: Org, days: Days, now: number): Promise<AskedAbout[]> {
  const rows = await org.read(
    `select rule, rule_name, count(*) as asked,
       sum(status = 'released' or status = 'approved' and expires_at > ?4) as approved,
       sum(status = 'rejected') as rejected,
       sum(status = 'expired' or status in ('pending', 'approved') and expires_at <= ?4) as expired
     from gates
     where org_id = ?1 and created_at >= unixepoch(?2) * 1000
       and created_at < unixepoch(?3, '+1 day') * 1000
     group by rule, rule_name order by asked desc, rule, rule_name limit ?5`,
    days.first,
    days.last,
    now,
    MOST,
  );
  return rows.map((row) => ({
    rule: String(row.rule),
    ruleName: String(row.rule_name),
    asked: Number(row.asked),
    approved: Number(row.approved),
    rejected: Number(row.rejected),
    expired: Number(row.expired),
  }));
}

/** How long the calls of a model took; to two digits. */
export interface ModelLatency {
  /** As `key/model`. */
  readonly model: string;
  /** Those whose latency is known. */
  readonly calls: number;
  readonly p50Ms: number;
  readonly p95Ms: number;
  readonly p99Ms: number;
}

const percentile = (share: number): string =>
  `min(iif(reached >= calls * ${share}, latency_ms, null))`;

/** The latencies of calls by model; the most used first, at most 500. */
export async function readLatencies(org: Org, { first, last }: Days): Promise<ModelLatency[]> {
  const rows = await org.read(
    `select ${MODEL} as name, calls, ${percentile(0.5)} as p50, ${percentile(0.95)} as p95,
       ${percentile(0.99)} as p99
     from (
       select model, latency_ms, sum(calls) over (partition by model) as calls,
         sum(calls) over (partition by model order by latency_ms) as reached
       from (
         select model, latency_ms, sum(calls) as calls from call_totals
         where org_id = ?1 and day between ?2 and ?3 and latency_ms > 0
           and model not like '%,null]'
         group by model, latency_ms having sum(calls) > 0
       )
     )
     group by model order by calls desc, model limit ?4`,
    first,
    last,
    MOST,
  );
  return rows.map((row) => ({
    model: String(row.name),
    calls: Number(row.calls),
    p50Ms: Number(row.p50),
    p95Ms: Number(row.p95),
    p99Ms: Number(row.p99),
  }));
}

/** What an org used in a UTC month. */
export interface MonthlyUsage {
  /** `YYYY-MM`. */
  readonly month: string;
  /** Steps of every kind. */
  readonly steps: number;
  readonly spentNanos: Nanos;
  readonly heldNanos: Nanos;
}

/** What an org used, by month from `first` to `last` (`YYYY-MM`), in their order. */
export async function readUsage(org: Org, first: string, last: string): Promise<MonthlyUsage[]> {
  const rows = await org.read(
    `select window, step_count, spent_nanos, held_nanos from spend
     where org_id = ?1 and subject = ?1 and window between ?2 and ?3 order by window limit ?4`,
    first,
    last,
    MOST,
  );
  return rows.map((row) => ({
    month: String(row.window),
    steps: Number(row.step_count),
    spentNanos: Number(row.spent_nanos) as Nanos,
    heldNanos: Number(row.held_nanos) as Nanos,
  }));
}
