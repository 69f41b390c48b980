/** Anchors: the trails of runs that have ended are anchored, some at a time. */

import { forOrg } from '../../db/org.ts';
import { anchorRuns, findUnanchored } from '../../db/trails.ts';
import type { Services } from '../services.ts';
import { Budget } from './batches.ts';

/** Anchors what is due in all orgs, for at most `limitMs`. @returns how many runs were taken up. */
export async function anchorTrails({ db, now }: Services, limitMs: number): Promise<number> {
  const budget = new Budget(limitMs);
  let anchored = 0;
  for (const id of await findUnanchored(db, now())) {
    anchored += await budget.drain(() => anchorRuns(forOrg(db, id), now()));
  }
  return anchored;
}
