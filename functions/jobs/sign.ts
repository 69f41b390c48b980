/** Checkpoints: signs each audit trail that has grown, once a day. */

import { findUnsigned, signHead } from '../../db/checkpoints.ts';
import { forOrg } from '../../db/org.ts';
import { openSigner } from '../../db/signing.ts';
import type { OrgId } from '../../schema/ids.ts';
import type { Services } from '../services.ts';
import { Budget } from './batches.ts';

const DAY_MS = 86_400_000;

/** Signs what is due in all orgs, for at most `limitMs`. @returns how many chains were signed. */
export async function signTrails(services: Services, limitMs: number): Promise<number> {
  const { db, master, now } = services;
  const budget = new Budget(limitMs);
  let signed = 0;
  let after: OrgId | undefined;
  do {
    const page = await findUnsigned(db, now() - DAY_MS, after);
    const signer = page.orgs.length > 0 ? await openSigner(db, master) : undefined;
    for (const org of page.orgs) {
      if (budget.isSpent || !signer) break;
      signed += await budget.take(async () =>
        (await signHead(forOrg(db, org), signer, now())) ? 1 : 0,
      );
    }
    after = page.next;
  } while (after !== undefined && !budget.isSpent);
  return signed;
}
