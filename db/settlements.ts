/** Settlements: a hold is replaced by the real cost, once. */

import type { AgentId, PolicyVersionId, RunId, StepId } from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import type { Merge, Statement, Value } from './client.ts';
import type { ReservedTokens } from './limits.ts';
import type { Org } from './org.ts';
import { forSizes, inBatches, rowsOfParameters } from './rows.ts';
import type { Answered } from './steps.ts';

/** A step that holds money, and what it counts as once it is settled. */
export interface Hold {
  readonly runId: RunId;
  readonly stepId: StepId;
  readonly agentId: AgentId;
  readonly policyVersionId: PolicyVersionId;
  /** The UTC day in whose windows it counts, `YYYY-MM-DD`. */
  readonly day: string;
  readonly heldNanos: Nanos;
  readonly providerKey: string | null;
  readonly model: string | null;
  /** The tokens that it has reserved, where they are limited. */
  readonly tokens: ReservedTokens | undefined;
}

/** How a call ended. */
export interface Settlement {
  readonly now: number;
  readonly spentNanos: Nanos;
  /** `ok`, or what went wrong. */
  readonly outcome: string;
  readonly answered: Answered;
}

/**
 * Replaces a hold by the real cost, durably. A step that has been settled stays as it is, unless
 * its lease had run out while the call was still going: then what is known now replaces the estimate,
 * until the trail is anchored.
 */
export function settle(org: Org, hold: Hold, end: Settlement): Promise<void> {
  return org.merge(MERGE, { org, hold, end });
}

/** What {@link settle} writes, for a transaction that holds more; the sums follow by triggers. */
export function settlement(org: Org, run: RunId, step: StepId, end: Settlement): Statement {
  return org.statement(
    `update steps set settled_at = ?4, spent_nanos = ?5, outcome = ?6, answered = ?7
     where org_id = ?1 and run_id = ?2 and id = ?3
       and (settled_at is null or outcome = 'lease_expired' and not exists (
         select 1 from runs where org_id = ?1 and id = ?2 and anchored_last >= ?3
       ))`,
    run,
    step,
    end.now,
    end.spentNanos,
    end.outcome,
    JSON.stringify(end.answered),
  );
}

interface Item {
  readonly org: Org;
  readonly hold: Hold;
  readonly end: Settlement;
}

/** Settlements of one run and day add to the same sums, which need to be written once for all. */
const MERGE: Merge<Item, void> = {
  placeOf: ({ hold }) => hold.runId,
  isAlike: (one, other) => one.org.id === other.org.id && one.hold.day === other.hold.day,
  alone: ({ org, hold, end }) => [settlement(org, hold.runId, hold.stepId, end)],
  outcomeOf: () => {},
  outcomesOf: (items) => items.map(() => undefined),
  together(items) {
    const { org, hold } = items[0]!;
    const heldNanos = sum(items, (item) => item.hold.heldNanos);
    const spentNanos = sum(items, (item) => item.end.spentNanos);
    const endedAt = Math.max(...items.map(({ end }) => end.now));
    const month = hold.day.slice(0, 7);
    const [statements, written] = updates(items);
    const inWindow = (subject: string, window: string) =>
      org.statement(SETTLE_WINDOW, subject, window, heldNanos, spentNanos, hold.runId);
    statements.push(
      org.statement(SETTLE_RUN, hold.runId, heldNanos, spentNanos, written, endedAt),
      inWindow(hold.agentId, hold.day),
      inWindow(org.id, month),
    );
    addTotals(items, statements);
    addTokens(items, statements);
    return statements;
  },
};

const sum = (items: readonly Item[], of: (item: Item) => number): number =>
  items.reduce((total, item) => total + of(item), 0);

/**
 * Each statement only after the one before it has settled all that it was to settle.
 *
 * @returns the statements, and how many steps the last one has to settle.
 */
function updates(items: readonly Item[]): [Statement[], number] {
  const [{ org, hold }] = items as [Item, ...Item[]];
  const statements: Statement[] = [];
  let before = 0;
  for (const rows of inBatches(items)) {
    const args: Value[] = [hold.runId, before];
    for (const { hold, end } of rows) {
      const { now, spentNanos, outcome, answered } = end;
      args.push(hold.stepId, now, spentNanos, outcome, JSON.stringify(answered));
    }
    statements.push(org.statement(settlingSql(rows.length), ...args));
    before = rows.length;
  }
  return [statements, before];
}

/** Settles so many steps; `changes()` is what the statement before it has settled. */
const settlingSql = forSizes(
  (size) => `with ends (id, settled_at, spent_nanos, outcome, answered) as (
      values ${rowsOfParameters(size, 5, 4)}
    )
    update steps set settled_at = ends.settled_at, spent_nanos = ends.spent_nanos,
      outcome = ends.outcome, answered = ends.answered, tallies = tallies + 1
    from ends
    where steps.org_id = ?1 and steps.run_id = ?2 and steps.id = ends.id
      and steps.settled_at is null and (?3 = 0 or changes() = ?3)`,
);

/**
 * This and what follows is refused, by a constraint, unless the statement before it has changed
 * what it was to change: where a step is settled already, or a sum is gone, nothing is written
 * together.
 */
const SETTLE_RUN = `update runs set
    held_nanos = iif(changes() = ?5, held_nanos - ?3, null), spent_nanos = spent_nanos + ?4,
    active_at = max(active_at, ?6)
  where org_id = ?1 and id = ?2`;

const SETTLE_WINDOW = `update spend set
    line_run_id = iif(spent_nanos + ?5 >= line_nanos, ?6, line_run_id),
    held_nanos = iif(changes() > 0, held_nanos - ?4, null), spent_nanos = spent_nanos + ?5
  where org_id = ?1 and subject = ?2 and window = ?3`;

/** What analytics is told: one row for all that are alike. */
function addTotals(items: readonly Item[], statements: Statement[]): void {
  const [{ org, hold }] = items as [Item, ...Item[]];
  for (const alike of alikeOf(items)) {
    const { model, latencyMs, calls, spentNanos } = alike;
    const { day, agentId, policyVersionId } = hold;
    statements.push(
      org.statement(ADD_TOTALS, day, agentId, policyVersionId, model, latencyMs, calls, spentNanos),
    );
  }
}

interface Total {
  /** A JSON array of the provider key and the model. */
  readonly model: string;
  /** To two digits, as the rows of totals have it. */
  readonly latencyMs: number;
  calls: number;
  spentNanos: number;
}

function alikeOf(items: readonly Item[]): Iterable<Total> {
  const totals = new Map<string, Total>();
  for (const { hold, end } of items) {
    const { providerKey, model } = hold;
    const latencyMs = twoDigits(end.answered.latencyMs ?? 0);
    // The name of a key is never empty and holds no space; that of a model may be anything.
    const named = model === null ? '' : `=${model}`;
    const key = `${latencyMs} ${providerKey ?? ''} ${named}`;
    let total = totals.get(key);
    if (!total) {
      const pair = JSON.stringify([providerKey, model]);
      total = { model: pair, latencyMs, calls: 0, spentNanos: 0 };
      totals.set(key, total);
    }
    total.calls += 1;
    total.spentNanos += end.spentNanos;
  }
  return totals.values();
}

function twoDigits(latencyMs: number): number {
  return Math.abs(latencyMs) < 100 && Number.isInteger(latencyMs)
    ? latencyMs
    : Number(latencyMs.toExponential(1));
}

const ADD_TOTALS = `insert into call_totals (
    org_id, day, agent_id, policy_version_id, model, latency_ms, calls, spent_nanos
  ) values (?1, ?2, ?3, ?4, ?5, ?6, iif(changes() > 0, ?7, null), ?8)
  on conflict do update set
    calls = calls + excluded.calls, spent_nanos = spent_nanos + excluded.spent_nanos`;

/** What was used of limited tokens replaces what was reserved; unknown usage keeps that. */
function addTokens(items: readonly Item[], statements: Statement[]): void {
  const slots = new Map<string, [subject: string, windowMs: number, slot: number, more: number]>();
  for (const { hold, end } of items) {
    const { usage, estimated } = end.answered;
    if (!hold.tokens || (estimated !== undefined && !usage)) continue;
    const used = (usage?.inputTokens ?? 0) + (usage?.outputTokens ?? 0);
    const more = used - hold.tokens.tokens;
    for (const [subject, windowMs, slot] of hold.tokens.slots) {
      const key = `${subject} ${windowMs} ${slot}`;
      const added = slots.get(key);
      if (added) added[3] += more;
      else slots.set(key, [subject, windowMs, slot, more]);
    }
  }
  const { org } = items[0]!;
  for (const changed of slots.values()) statements.push(org.statement(USE_TOKENS, ...changed));
}

const USE_TOKENS = `update limit_slots set used = max(0, used + ?5)
  where org_id = ?1 and subject = ?2 and kind = 'tokens' and window_ms = ?3 and slot = ?4`;

/** Keeps a hold alive. */
export function leaseRenewal(org: Org, run: RunId, step: StepId, expiresAt: number): Statement {
  return org.statement(
    `update steps set lease_expires_at = ?4
     where org_id = ?1 and run_id = ?2 and id = ?3 and settled_at is null`,
    run,
    step,
    expiresAt,
  );
}
