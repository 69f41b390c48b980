/** Retention: deletes what is older than its org keeps it, a little at a time, org by org in turn. */

import { pruneAudit } from '../../db/checkpoints.ts';
import type { Org } from '../../db/org.ts';
import {
  findOverdue,
  type Overdue,
  pruneEndedRuns,
  pruneOpenRuns,
  pruneRecords,
} from '../../db/retention.ts';
import { openSigner, type Signer } from '../../db/signing.ts';
import type { OrgId } from '../../schema/ids.ts';
import type { Services } from '../services.ts';
import { BATCH_ROWS, Budget } from './batches.ts';

/** Entries of an audit trail go in larger batches, since each of these is signed. */
const AUDIT_BATCH = 500;

/** How many rows were deleted: of runs, of what stands for itself, and of audit trails. */
export interface Pruned {
  readonly runs: number;
  readonly records: number;
  readonly audit: number;
}

/** One kind of work on one org, done batch by batch. */
interface Task {
  readonly kind: keyof Pruned;
  /** @returns how much was done; 0 when there is nothing more. */
  work(): Promise<number>;
}

/** Deletes what is overdue in all orgs, for at most `limitMs`. */
export async function retain(services: Services, limitMs: number): Promise<Pruned> {
  const { db, config, now } = services;
  const budget = new Budget(limitMs);
  const total = { runs: 0, records: 0, audit: 0 };
  let after: OrgId | undefined;
  do {
    const page = await findOverdue(db, config.retentionDays, now(), after);
    await takeTurns(budget, await tasksOf(services, page.overdue), total);
    after = page.next;
  } while (after !== undefined && !budget.isSpent);
  return total;
}

async function tasksOf(
  { db, master, now }: Services,
  overdue: readonly Overdue[],
): Promise<Task[]> {
  if (overdue.length === 0) return [];
  const signer = await openSigner(db, master);
  return overdue.flatMap(({ org, beforeMs, isAuditDue }): Task[] => [
    { kind: 'runs', work: () => pruneEndedRuns(org, beforeMs, BATCH_ROWS) },
    { kind: 'runs', work: () => pruneOpenRuns(org, beforeMs, BATCH_ROWS) },
    { kind: 'records', work: () => pruneRecords(org, beforeMs, BATCH_ROWS) },
    ...(isAuditDue ? [auditTask(org, beforeMs, signer, now)] : []),
  ]);
}

/** Each batch leaves an entry, so that one that was not full is the last. */
function auditTask(org: Org, beforeMs: number, signer: Signer, now: () => number): Task {
  let isOver = false;
  return {
    kind: 'audit',
    async work() {
      if (isOver) return 0;
      const pruned = await pruneAudit(org, signer, beforeMs, now(), AUDIT_BATCH);
      isOver = pruned < AUDIT_BATCH;
      return pruned;
    },
  };
}

/** A batch of each in turn: an org with much to delete holds up no other. */
async function takeTurns(
  budget: Budget,
  tasks: readonly Task[],
  total: Record<keyof Pruned, number>,
): Promise<void> {
  for (let waiting = tasks; waiting.length > 0; ) {
    const unfinished: Task[] = [];
    for (const task of waiting) {
      if (budget.isSpent) return;
      const done = await budget.take(() => task.work());
      total[task.kind] += done;
      if (done > 0) unfinished.push(task);
    }
    waiting = unfinished;
  }
}
