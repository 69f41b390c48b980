/** Holds: money is held by a step before its call leaves, and settled once it has ended. */

import type { AgentId, StepId, TokenId } from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import type { Limit, Standing as LimitStanding } from '../schema/rules/limit.ts';
import type { Merge, Result, Statement, Value } from './client.ts';
import { inFlightSql } from './idle.ts';
import {
  type Charge,
  countCharges,
  fitsSql,
  type ReservedTokens,
  readStandings,
  reservedTokens,
  showStandings,
  writeCharges,
} from './limits.ts';
import type { Org } from './org.ts';
import { anyParkedSql } from './parked.ts';
import { forSizes, inBatches, rowsOfParameters } from './rows.ts';
import { type Ceilings, SCOPES } from './scopes.ts';
import { newId } from './seal.ts';
import type { Asked, Place, StepKind } from './steps.ts';

/** A call about to leave, and the most it can cost. */
export interface Reservation extends Place {
  readonly agentId: AgentId;
  readonly kind: StepKind;
  readonly heldNanos: Nanos;
  readonly leaseExpiresAt: number;
  readonly asked: Asked;
  readonly ceilings: Ceilings;
  readonly standing: Standing;
}

/** What the decision to let a call out was based on, beside the run. */
export interface Standing {
  readonly tokenId: TokenId;
  /** Of the org's row: its provider keys and prices. */
  readonly revision: number;
  /**
   * For a run that is the agent's window: since when it must have been active, unless a call of it
   * is in flight, Unix milliseconds. `null` for a run with a name.
   */
  readonly windowSince: number | null;
  /**
   * Since when no answer of the run may have waited for people, Unix milliseconds; `null` where that
   * has been looked up, or nobody is asked.
   */
  readonly unparkedSince: number | null;
}

/**
 * Writes the step and holds its money, in one conditional write: only while the run is open,
 * `spent + held + bound <= ceiling` in every scope, and what the decision was based on still
 * stands, and every charge fits its limit. The charges are counted in the same transaction; a call
 * that is not let in counts nothing.
 *
 * @param charges What the call takes of its limits, where it has any.
 * @param nowMillis The moment that windows end at: the present one, since a body may take long.
 */
export function reserve(
  org: Org,
  call: Reservation,
  charges: readonly Charge[] = NO_CHARGES,
  nowMillis = call.now,
): Promise<Reserved> {
  return org.merge(MERGE, { org, id: newId('step'), call, charges, nowMillis });
}

/** Whether what a call was decided on still stands, so that only money or limits can hold it back. */
export async function stands(org: Org, call: Reservation): Promise<boolean> {
  const args = conditionArgs([call]).slice(0, FIRST_CEILING - 2);
  return (await org.first(`select 1 from runs where ${STANDS}`, ...args)) !== undefined;
}

const NO_CHARGES: readonly Charge[] = [];
const NO_STANDINGS: readonly LimitStanding[] = [];

/** What came of a call. */
export interface Reserved {
  /** The step, durable; `undefined` when nothing was written. */
  readonly stepId: StepId | undefined;
  /** How the limits stand: with the call, or as they were when it was not let in. */
  readonly standings: readonly LimitStanding[];
  /** The tokens that it has reserved, where they are limited. */
  readonly tokens: ReservedTokens | undefined;
}

/** What the step keeps of its reserved tokens, for whoever settles it without knowing them. */
function writeTokens(charges: readonly Charge[], nowMillis: number): string | null {
  const tokens = reservedTokens(charges, nowMillis);
  return tokens ? JSON.stringify(tokens) : null;
}

/** A statement by which ceilings apply: what a short one costs is mostly the binding. */
interface Template {
  /** @param next The number of the first parameter that is not one of the condition's. */
  readonly write: (condition: string, next: number) => string;
  readonly written: Map<string, string>;
}

const template = (write: Template['write']): Template => ({ write, written: new Map() });

const FIRST_CEILING = 10;

function sqlFor({ write, written }: Template, { ceilings }: Reservation): string {
  const present = SCOPES.filter(({ name }) => ceilings[name] !== undefined);
  const key = present.map(({ name }) => name).join();
  let sql = written.get(key);
  if (sql === undefined) {
    const rooms = present.map(({ amount }, at) => `and ?5 + ${amount} <= ?${FIRST_CEILING + at}`);
    const condition = [OPEN, ...rooms].join('\n        ');
    sql = write(condition, FIRST_CEILING + present.length);
    written.set(key, sql);
  }
  return sql;
}

/** Whether what calls were decided on still stands: that the run is open, and the {@link Standing}. */
const STANDS = `org_id = ?1 and id = ?2 and status = 'open'
        and exists (
          select 1 from tokens t
          join agents a on a.id = t.agent_id
          join orgs o on o.id = t.org_id
          where t.org_id = ?1 and t.id = ?6 and t.agent_id = runs.agent_id
            and t.revoked_at is null and (t.expires_at is null or t.expires_at > ?4)
            and a.suspended_at is null and o.revision = ?7
            and (?8 is null or a.window_run_id = runs.id
              and (runs.active_at >= ?8 or ${inFlightSql('runs', '?8')}))
        )
        and (?9 is null or not ${anyParkedSql('runs.id', '?9')})`;

/** Under what a run lets calls out that hold ?5 together. */
const OPEN = `${STANDS}
        and (ceiling_nanos is null or spent_nanos + held_nanos + ?5 <= ceiling_nanos)`;

/** What the condition binds: as strict as the strictest of the calls, which are alike. */
function conditionArgs(calls: readonly Reservation[]): Value[] {
  const [{ runId, windows, standing, ceilings }] = calls as [Reservation, ...Reservation[]];
  return [
    runId,
    windows.day,
    Math.max(...calls.map(({ now }) => now)),
    calls.reduce((total, { heldNanos }) => total + heldNanos, 0),
    standing.tokenId,
    standing.revision,
    standing.windowSince === null
      ? null
      : Math.max(...calls.map((call) => call.standing.windowSince!)),
    standing.unparkedSince === null
      ? null
      : Math.min(...calls.map((call) => call.standing.unparkedSince!)),
    ...SCOPES.flatMap(({ name }) => ceilings[name] ?? []),
  ];
}

interface Item {
  readonly org: Org;
  readonly id: StepId;
  readonly call: Reservation;
  /** What the call takes of its limits, where it has any. */
  readonly charges: readonly Charge[];
  readonly nowMillis: number;
}

/**
 * Calls on one run that go by the same facts: let out together if there is room for all of them,
 * since then there is room for each. The sums are written once for all.
 */
const MERGE: Merge<Item, Reserved> = {
  // Each request has its own count of how often it was sent, so that few of a run are alike then.
  placeOf: ({ call, charges }) =>
    charges.find(({ limit }) => limit.kind === 'same_request')?.limit.subject ?? call.runId,
  isAlike: (one, other) =>
    one.org.id === other.org.id &&
    one.call.kind === other.call.kind &&
    one.call.windows.day === other.call.windows.day &&
    isSameStanding(one.call.standing, other.call.standing) &&
    isSameCeilings(one.call.ceilings, other.call.ceilings) &&
    one.charges.length === other.charges.length &&
    one.charges.every(({ limit }, nth) => isSameLimit(limit, other.charges[nth]!.limit)),

  alone(item) {
    const { org, id, call, charges, nowMillis } = item;
    const { kind, leaseExpiresAt, asked } = call;
    const args = [...conditionArgs([call]), id, kind, leaseExpiresAt, JSON.stringify(asked)];
    if (charges.length === 0) return [org.statement(sqlFor(ALONE, call), ...args)];
    const written = writeCharges(charges, nowMillis);
    const tokens = writeTokens(charges, nowMillis);
    return [
      org.statement(sqlFor(ALONE_LIMITED, call), ...args, tokens, written, nowMillis),
      ...limitStatements(item, written, nowMillis),
    ];
  },

  outcomeOf: ({ id, charges, nowMillis }, results) => ({
    stepId: results[0]!.changes > 0 ? id : undefined,
    standings: standingsIn(results),
    tokens: reservedTokens(charges, nowMillis),
  }),

  together(items) {
    const [first] = items as [Item, ...Item[]];
    const { org, call } = first;
    const args = [...conditionArgs(items.map((item) => item.call)), items.length, call.kind];
    const heldNanos = items.reduce((total, item) => total + item.call.heldNanos, 0);
    const inWindow = (subject: string, window: string) =>
      org.statement(HOLD_IN_WINDOW, subject, window, heldNanos, items.length);
    const nowMillis = latestOf(items);
    const isLimited = first.charges.length > 0;
    const written = isLimited ? writeCharges(chargesOf(items), nowMillis) : '';
    return [
      isLimited
        ? org.statement(sqlFor(HOLD_LIMITED, call), ...args, written, nowMillis)
        : org.statement(sqlFor(HOLD_IN_RUN, call), ...args),
      ...insertions(items, nowMillis),
      inWindow(call.agentId, call.windows.day),
      inWindow(org.id, call.windows.month),
      ...(isLimited ? limitStatements(first, written, nowMillis) : []),
    ];
  },

  outcomesOf(items, results) {
    if (results[0]!.changes === 0) return undefined;
    if (items[0]!.charges.length === 0) {
      return items.map(({ id }) => ({ stepId: id, standings: NO_STANDINGS, tokens: undefined }));
    }
    const nowMillis = latestOf(items);
    // Each is told how its limits stood before those that came after it.
    const left = standingsIn(results);
    const outcomes = items.toReversed().map(({ id, charges }) => {
      const standings = left.slice();
      for (const [nth, { limit, amount }] of charges.entries()) {
        if (limit.kind !== 'duration') left[nth] = without(left[nth]!, amount);
      }
      return { stepId: id, standings, tokens: reservedTokens(charges, nowMillis) };
    });
    return outcomes.reverse();
  },
};

/** The moment that windows end at for calls that are let in together. */
const latestOf = (items: readonly Item[]): number =>
  Math.max(...items.map(({ nowMillis }) => nowMillis));

const isSameStanding = (one: Standing, other: Standing): boolean =>
  one.tokenId === other.tokenId &&
  one.revision === other.revision &&
  (one.windowSince === null) === (other.windowSince === null) &&
  (one.unparkedSince === null) === (other.unparkedSince === null);

const isSameCeilings = (one: Ceilings, other: Ceilings): boolean =>
  SCOPES.every(({ name }) => one[name] === other[name]);

const isSameLimit = (one: Limit, other: Limit): boolean =>
  one.kind === other.kind &&
  one.per === other.per &&
  one.subject === other.subject &&
  one.windowMs === other.windowMs &&
  one.most === other.most;

const sum = (amounts: readonly number[]): number =>
  amounts.reduce((total, amount) => total + amount, 0);

/** What calls with the same limits take of them together; time passes for all of them at once. */
function chargesOf(items: readonly Item[]): Charge[] {
  return items[0]!.charges.map(({ limit, amount }, nth) => {
    if (limit.kind === 'duration') return { limit, amount };
    return { limit, amount: sum(items.map((item) => item.charges[nth]!.amount)) };
  });
}

/** A standing as it was before so much more was taken. */
function without(standing: LimitStanding, amount: number): LimitStanding {
  const used = standing.used - amount;
  return { ...standing, used, slots: standing.slots.map((slot) => ({ ...slot, used })) };
}

/** After a call's step, or the first of several, has been written in the same transaction. */
function limitStatements({ org, id, call }: Item, written: string, nowMillis: number): Statement[] {
  return [
    countCharges(org, call.runId, id, written, nowMillis),
    showStandings(org, call.runId, id, written, nowMillis),
  ];
}

/** The last statement shows them, where there are limits. */
const standingsIn = (results: readonly Result[]): LimitStanding[] =>
  readStandings(results.at(-1)!.rows);

const insertSql = (condition: string, next: number, columns = '', values = ''): string =>
  `insert into steps (
      org_id, run_id, agent_id, day, started_at, held_nanos, id, kind, lease_expires_at, asked${columns}
    )
    select ?1, id, agent_id, ?3, ?4, ?5, ?${next}, ?${next + 1}, ?${next + 2}, ?${next + 3}${values}
    from runs
    where ${condition}`;

/** Writes a step and holds its money; the sums follow by triggers. */
const ALONE = template((condition, next) => insertSql(condition, next));

const ALONE_LIMITED = template((condition, next) => {
  const fits = fitsSql(`?${next + 5}`, `?${next + 6}`, true);
  return insertSql(`${condition} and ${fits}`, next, ', charged', `, ?${next + 4}`);
});

const HOLD_IN_RUN = template(
  (condition, next) => `update runs set
      held_nanos = held_nanos + ?5, step_count = step_count + ?${next},
      call_count = call_count
        + iif(?${next + 1} in ('model_call', 'tool_call', 'retry', 'failover'), ?${next}, 0),
      active_at = max(active_at, ?4)
    where ${condition}`,
);

const HOLD_LIMITED = template((condition, next) => {
  const fits = fitsSql(`?${next + 2}`, `?${next + 3}`, false);
  return HOLD_IN_RUN.write(`${condition} and ${fits}`, next);
});

const HOLD_IN_WINDOW = `insert into spend (org_id, subject, window, held_nanos, step_count)
  select ?1, ?2, ?3, ?4, ?5 where changes() > 0
  on conflict do update set
    held_nanos = held_nanos + excluded.held_nanos, step_count = step_count + excluded.step_count`;

/** Only after the statement before them has held the money. */
function insertions(items: readonly Item[], nowMillis: number): Statement[] {
  const [{ org, call }] = items as [Item, ...Item[]];
  const statements: Statement[] = [];
  for (const rows of inBatches(items)) {
    const args: Value[] = [call.runId, call.agentId, call.kind, call.windows.day];
    for (const { id, call, charges } of rows) {
      const { now, heldNanos, leaseExpiresAt, asked } = call;
      const tokens = writeTokens(charges, nowMillis);
      args.push(id, now, heldNanos, leaseExpiresAt, JSON.stringify(asked), tokens);
    }
    statements.push(org.statement(insertingSql(rows.length), ...args));
  }
  return statements;
}

const insertingSql = forSizes(
  (size) => `insert into steps (
      org_id, run_id, agent_id, kind, day, tallies,
      id, started_at, held_nanos, lease_expires_at, asked, charged
    )
    select ?1, ?2, ?3, ?4, ?5, 1, column1, column2, column3, column4, column5, column6
    from (values ${rowsOfParameters(size, 6, 6)}) where changes() > 0`,
);
