/** Checks what must always hold of the money and the sealing, across all orgs. */

import type { OrgId, ProviderKeyId } from '../schema/ids.ts';
import type { Database, Row } from './client.ts';
import { type ProviderKey, secretContext } from './provider-keys.ts';
import { type MasterKeys, open, type SealContext, seal } from './seal.ts';

/** What the doctor found. Amounts in nano-dollars; counts of what is wrong are 0 when all is well. */
export interface Diagnosis {
  readonly ok: boolean;
  /** What runs say they hold, and how many holds are live. */
  readonly heldNanos: number;
  readonly liveHolds: number;
  /** Live holds whose lease ran out a while ago and that no process has settled since. */
  readonly expiredHolds: number;
  /**
   * Runs whose `spent` is not the sum of their steps and of those that retention has deleted, or
   * whose `held` not that of their holds.
   */
  readonly spentMismatches: number;
  readonly heldMismatches: number;
  /** Days of agents and months of orgs that don't agree with the steps. */
  readonly windowMismatches: number;
  /** Runs with `spent + held` over their ceiling. */
  readonly overCeiling: number;
  /** Sealed values that can't be opened with the configured master keys. */
  readonly sealingFailures: number;
  /** Whether the database file itself is sound. */
  readonly integrity: string;
}

/** Examines the database; changes nothing. */
export async function diagnose(db: Database, master: MasterKeys, now: number): Promise<Diagnosis> {
  const [ledger, windows, integrity, sealingFailures] = await Promise.all([
    db.read(LEDGER, [now - SWEEP_MS]),
    db.read(WINDOWS, []),
    db.read('pragma quick_check(1)', []),
    countSealingFailures(db, master),
  ]);
  const found = {
    expiredHolds: number(ledger[0], 'expired_holds'),
    spentMismatches: number(ledger[0], 'spent_mismatches'),
    heldMismatches: number(ledger[0], 'held_mismatches'),
    windowMismatches: number(windows[0], 'mismatches'),
    overCeiling: number(ledger[0], 'over_ceiling'),
    sealingFailures,
  };
  const sound = String(Object.values(integrity[0] ?? {})[0] ?? 'unknown');
  return {
    ok: sound === 'ok' && Object.values(found).every((count) => count === 0),
    heldNanos: number(ledger[0], 'held_nanos'),
    liveHolds: number(ledger[0], 'live_holds'),
    ...found,
    integrity: sound,
  };
}

/** Within this time a process that serves settles what has expired. */
const SWEEP_MS = 10_000;

/** What agents report of their tools is spent by then, and may pass a ceiling; so may what is pruned. */
const LEDGER = `
  with trail as (
    select run_id, org_id,
      sum(spent_nanos) as spent,
      sum(iif(kind = 'tool_call', spent_nanos, 0)) as reported,
      sum(iif(settled_at is null, held_nanos, 0)) as held,
      sum(settled_at is null and lease_expires_at is not null) as live,
      sum(settled_at is null and lease_expires_at < ?1) as expired
    from steps group by org_id, run_id
  )
  select
    coalesce(sum(r.held_nanos), 0) as held_nanos,
    coalesce(sum(t.live), 0) as live_holds,
    coalesce(sum(t.expired), 0) as expired_holds,
    coalesce(sum(r.spent_nanos <> coalesce(t.spent, 0) + r.pruned_nanos), 0) as spent_mismatches,
    coalesce(sum(r.held_nanos <> coalesce(t.held, 0)), 0) as held_mismatches,
    coalesce(sum(
      r.spent_nanos - r.pruned_nanos - coalesce(t.reported, 0) + r.held_nanos > r.ceiling_nanos
    ), 0) as over_ceiling
  from runs r left join trail t on t.run_id = r.id and t.org_id = r.org_id`;

const WINDOWS = `
  with trail as (
    select org_id, agent_id as subject, day as window,
      sum(spent_nanos) as spent, sum(iif(settled_at is null, held_nanos, 0)) as held
    from steps group by 1, 2, 3
    union all
    select org_id, org_id, substr(day, 1, 7),
      sum(spent_nanos), sum(iif(settled_at is null, held_nanos, 0))
    from steps group by 1, 2, 3
  )
  select coalesce(sum(
    coalesce(s.spent_nanos - s.pruned_nanos, 0) <> coalesce(t.spent, 0)
    or coalesce(s.held_nanos, 0) <> coalesce(t.held, 0)
  ), 0) as mismatches
  from trail t full outer join spend s
    on s.org_id = t.org_id and s.subject = t.subject and s.window = t.window`;

/** Every secret is tried; the key of an org that has none is tried by itself. */
async function countSealingFailures(db: Database, master: MasterKeys): Promise<number> {
  const keys = await db.read(
    `select coalesce(k.org_id, o.org_id) as org_id, k.id, k.provider, k.base_url, k.secret, o.wrapped
     from org_keys o full outer join provider_keys k on k.org_id = o.org_id`,
    [],
  );
  const opened = await Promise.all(keys.map((row) => opens(master, row)));
  return opened.filter((ok) => !ok).length;
}

async function opens(master: MasterKeys, row: Row): Promise<boolean> {
  const org = row.org_id as OrgId;
  const wrapped = String(row.wrapped);
  try {
    if (row.id === null) await seal(master, wrapped, probe(org), '');
    else await open(master, wrapped, secretContext(org, keyOf(row)), String(row.secret));
    return true;
  } catch {
    return false;
  }
}

/** Sealing anything opens the org's key; nothing is kept of it. */
function probe(org: OrgId): SealContext {
  return { org, table: 'org_keys', column: 'wrapped', row: org };
}

function keyOf(row: Row): Pick<ProviderKey, 'id' | 'provider' | 'baseUrl'> {
  return {
    id: row.id as ProviderKeyId,
    provider: String(row.provider),
    baseUrl: String(row.base_url),
  };
}

function number(row: Row | undefined, column: string): number {
  return Number(row?.[column] ?? 0);
}
