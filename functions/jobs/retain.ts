/** Retention: deletes what is older than its org keeps it, a little at a time, org by org in turn. */

import { pruneAudit } from '../../db/checkpoints.ts';
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

/** Deletes what is overdue in all orgs, for at most `limitMs`. */
export async function retain(services: Services, limitMs: number): Promise<Pruned> {
  const { db, config, now } = services;
  const budget = new Budget(limitMs);
  const total = { runs: 0, records: 0, audit: 0 };
  let after: OrgId | undefined;
  do {
    const page = await findOverdue(db, config.retentionDays, now(), after);
    await takeTurns(services, budget, page.overdue, total);
    after = page.next;
  } while (after !== undefined && !budget.isSpent);
  return total;
}

/** An org with much to delete holds up no other. */
async function takeTurns(
  services: Services,
  budget: Budget,
  overdue: readonly Overdue[],
  total: { runs: number; records: number; audit: number },
): Promise<void> {
  if (overdue.length === 0) return;
  const signer = await openSigner(services.db, services.master);
  for (let waiting = [...overdue]; waiting.length > 0 && !budget.isSpent; ) {
    const unfinished: Overdue[] = [];
    for (const each of waiting) {
      if (budget.isSpent) return;
      const done = await pruneOrg(services, budget, each, signer);
      total.runs += done.runs;
      total.records += done.records;
      total.audit += done.audit;
      if (done.runs + done.records + done.audit > 0) unfinished.push(each);
    }
    waiting = unfinished;
  }
}

/** One batch of each kind. */
async function pruneOrg(
  { now }: Services,
  budget: Budget,
  { org, beforeMs, isAuditDue }: Overdue,
  signer: Signer,
): Promise<Pruned> {
  const ended = await budget.take(() => pruneEndedRuns(org, beforeMs, BATCH_ROWS));
  const open = await budget.take(() => pruneOpenRuns(org, beforeMs, BATCH_ROWS));
  const records = await budget.take(() => pruneRecords(org, beforeMs, BATCH_ROWS));
  const audit = isAuditDue
    ? await budget.take(() => pruneAudit(org, signer, beforeMs, now(), AUDIT_BATCH))
    : 0;
  return { runs: ended + open, records, audit };
}
