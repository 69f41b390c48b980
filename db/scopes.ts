/** Scopes: the sums of money that have a ceiling, beside a run's own. */

import type { AgentId } from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import type { Scope } from '../schema/rules/budget.ts';
import type { Org } from './org.ts';
import type { Place } from './steps.ts';

/** The ceilings of a policy beside the run's own; `undefined` where there is none. */
export interface Ceilings {
  readonly agentPerDay: Nanos | undefined;
  readonly agentPerMonth: Nanos | undefined;
  readonly orgPerMonth: Nanos | undefined;
}

/**
 * The scopes beside the run, and the amount that counts against each one's ceiling, for a statement
 * on `runs` whose ?3 is the day. A month is all of its days: a call that began before midnight may
 * reserve after one of the next day.
 */
export const SCOPES = [
  {
    name: 'agentPerDay',
    amount: `coalesce((select spent_nanos + held_nanos from spend
      where org_id = ?1 and subject = runs.agent_id and window = ?3), 0)`,
  },
  {
    name: 'agentPerMonth',
    amount: `(select coalesce(sum(spent_nanos + held_nanos), 0) from spend
      where org_id = ?1 and subject = runs.agent_id
        and window between substr(?3, 1, 7) and substr(?3, 1, 7) || '-31')`,
  },
  {
    name: 'orgPerMonth',
    amount: `coalesce((select spent_nanos + held_nanos from spend
      where org_id = ?1 and subject = ?1 and window = substr(?3, 1, 7)), 0)`,
  },
] as const;

/** The scopes of a run that have a ceiling, as they stand. */
export async function readScopes(
  org: Org,
  place: Pick<Place, 'runId' | 'windows'> & { readonly agentId: AgentId },
  ceilings: Ceilings,
): Promise<Scope[]> {
  const { day, month } = place.windows;
  const rows = await org.read(
    `select 'run' as name, ceiling_nanos, spent_nanos, held_nanos
       from runs where org_id = ?1 and id = ?2
     union all select 'agent_per_day', ?6, coalesce(sum(spent_nanos), 0), coalesce(sum(held_nanos), 0)
       from spend where org_id = ?1 and subject = ?3 and window = ?4
     union all select 'agent_per_month', ?7, coalesce(sum(spent_nanos), 0), coalesce(sum(held_nanos), 0)
       from spend where org_id = ?1 and subject = ?3 and window between ?5 and ?5 || '-31'
     union all select 'org_per_month', ?8, coalesce(sum(spent_nanos), 0), coalesce(sum(held_nanos), 0)
       from spend where org_id = ?1 and subject = ?1 and window = ?5`,
    place.runId,
    place.agentId,
    day,
    month,
    ceilings.agentPerDay ?? null,
    ceilings.agentPerMonth ?? null,
    ceilings.orgPerMonth ?? null,
  );
  return rows
    .filter((row) => row.ceiling_nanos !== null)
    .map((row) => ({
      name: row.name as Scope['name'],
      ceilingNanos: Number(row.ceiling_nanos) as Nanos,
      spentNanos: Number(row.spent_nanos),
      heldNanos: Number(row.held_nanos),
    }));
}
