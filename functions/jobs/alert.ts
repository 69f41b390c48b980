/** Alerts: looks at the rules of all orgs, and tells by mail or in a chat which of them have fired. */

import {
  findDueRules,
  measure,
  noteTold,
  noteValue,
  openUntold,
  takeUntold,
  type Untold,
} from '../../db/alert-rules.ts';
import { SealError } from '../../db/seal.ts';
import { describeFiring } from '../../schema/alert-rule.ts';
import { EgressError } from '../egress.ts';
import { MailError } from '../mail.ts';
import type { Services } from '../services.ts';
import { Budget } from './batches.ts';

/** How long telling may take: a chat that is slow is tried again later. */
export const TELL_MS = 10_000;
const TIMEOUTS = { connectMs: 5_000, firstByteMs: TELL_MS, idleMs: 2_000 };
const RULES_PER_TICK = 1_000;
const TOLD_PER_TICK = 20;

/** How many rules were found to fire, and how many firings were told. */
export interface Alerted {
  readonly fired: number;
  readonly told: number;
}

/** Looks at every rule, for at most `limitMs`, and tells what has fired. */
export async function checkAlerts(services: Services, limitMs: number): Promise<Alerted> {
  const { db, now } = services;
  const budget = new Budget(limitMs);
  let fired = 0;
  for (const due of await findDueRules(db, now(), RULES_PER_TICK)) {
    if (budget.isSpent) break;
    await budget.take(async () => {
      if (await noteValue(due, await measure(due, now()), now())) fired++;
      return 1;
    });
  }
  const untold = await takeUntold(db, now(), TOLD_PER_TICK);
  const results = await Promise.all(untold.map((each) => tell(services, each)));
  return { fired, told: results.filter((isTold) => isTold).length };
}

/** @returns false when it could not be told; it is tried again, a few times. */
async function tell(services: Services, untold: Untold): Promise<boolean> {
  try {
    const target = await openUntold(untold, services.master);
    await (untold.channel === 'mail' ? mail : chat)(services, untold, target);
    await noteTold(untold, services.now());
    return true;
  } catch (error) {
    const isExpected =
      error instanceof EgressError || error instanceof MailError || error instanceof SealError;
    if (!isExpected) throw error;
    services.log.warn('an alert was not told', { rule: untold.id, error });
    return false;
  }
}

async function mail({ mailer }: Services, untold: Untold, to: string): Promise<void> {
  const text = describeFiring(untold.orgName, untold.firing);
  await mailer.send({ to, subject: `Alert: ${untold.firing.name}`, text: `${text}\n` });
}

/** As Slack's incoming webhooks have it, which other chats take, too: `{"text": …}`. */
async function chat({ egress }: Services, untold: Untold, url: string): Promise<void> {
  const text = describeFiring(untold.orgName, untold.firing);
  const answer = await egress(new URL(url), {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'user-agent': 'Rungate' },
    body: new TextEncoder().encode(JSON.stringify({ text })),
    signal: AbortSignal.timeout(TELL_MS),
    timeouts: TIMEOUTS,
  });
  await answer.body?.cancel();
  if (answer.status < 200 || answer.status > 299) {
    throw new EgressError('broken', `The chat answered ${answer.status}.`);
  }
}
