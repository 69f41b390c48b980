/** Leases of scheduled jobs: of several processes that tick, one at a time does each job. */

import type { Database } from './client.ts';

/** Who takes a job, and for how long. */
export interface JobLease {
  readonly name: string;
  readonly by: string;
  /** Unix milliseconds. */
  readonly now: number;
  readonly leaseMs: number;
}

/** Takes a job, unless another process has it. @returns whether it is ours. */
export async function takeJob(db: Database, { name, by, now, leaseMs }: JobLease) {
  const [taken] = await db.write([
    {
      sql: `insert into job_leases (name, leased_by, leased_until, started_at)
        values (?1, ?2, ?3, ?4)
        on conflict (name) do update set
          leased_by = excluded.leased_by, leased_until = excluded.leased_until,
          started_at = excluded.started_at
        where job_leases.leased_by is null or job_leases.leased_until <= ?4`,
      args: [name, by, now + leaseMs, now],
    },
  ]);
  return taken!.changes > 0;
}

/** Gives a job back with its report. */
export async function endJob(
  db: Database,
  { name, by }: Pick<JobLease, 'name' | 'by'>,
  report: object,
  now: number,
): Promise<void> {
  await db.write([
    {
      sql: `update job_leases set leased_by = null, ended_at = ?3, report = ?4
        where name = ?1 and leased_by = ?2`,
      args: [name, by, now, JSON.stringify(report)],
    },
  ]);
}
