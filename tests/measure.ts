/** An alert rule measured in one go; the job does the same in parts, with pauses between them. */

import { type DueRule, findOpenRuns, measuring } from '../db/alert-rules.ts';
import type { Database } from '../db/client.ts';

/** What a rule comes to. */
export async function measure(
  db: Database,
  due: Pick<DueRule, 'org' | 'rule'>,
  now: number,
): Promise<number> {
  const open = await finish(findOpenRuns(db, new Set([due.org.id])));
  return await finish(measuring(due, now, open.get(due.org.id) ?? []));
}

/** Takes all parts of a work that pauses between them; returns what it comes to. */
export async function finish<T>(parts: AsyncGenerator<void, T>): Promise<T> {
  for (;;) {
    const part = await parts.next();
    if (part.done) return part.value;
  }
}
