/** Alerts: looks at the rules of all orgs, and tells by mail or in a chat which of them have fired. */

import { setTimeout as sleep } from 'node:timers/promises';
import {
  type DueRule,
  findDueRules,
  findOpenRuns,
  measuring,
  noteTold,
  noteValue,
  type OpenRuns,
  openUntold,
  readsSteps,
  takeUntold,
  type Untold,
} from '../../db/alert-rules.ts';
import type { Database } from '../../db/client.ts';
import { SealError } from '../../db/seal.ts';
import { describeFiring } from '../../schema/alert-rule.ts';
import type { AlertRuleId } from '../../schema/ids.ts';
import { EgressError } from '../egress.ts';
import { MailError } from '../mail.ts';
import type { Services } from '../services.ts';
import { Budget } from './batches.ts';

/** How long telling may take: a chat or a mail server that is slow is tried again later. */
export const TELL_MS = 10_000;
const TIMEOUTS = { connectMs: 5_000, firstByteMs: TELL_MS, idleMs: 2_000 };
const RULES_PER_TICK = 1_000;
const TOLD_PER_TICK = 20;

/** How many rules were found to fire, and how many firings were told. */
export interface Alerted {
  readonly fired: number;
  readonly told: number;
}

/** A rule that is being measured, as it was when that began. */
interface Reading {
  readonly due: DueRule;
  readonly parts: AsyncGenerator<void, number>;
}

/** What a tick had no time to finish: the next one of this process goes on with it. */
const unfinished = new WeakMap<Database, ReadonlyMap<AlertRuleId, Reading>>();

/**
 * Looks at every rule that is due, for at most `limitMs`, and tells what has fired.
 *
 * @param tellMs How long that may take.
 */
export async function checkAlerts(
  services: Services,
  limitMs: number,
  tellMs = TELL_MS,
): Promise<Alerted> {
  const { db, now } = services;
  const readings = await beginReadings(services, limitMs);
  const fired = await takeTurns(services, readings, new Budget(limitMs));
  unfinished.set(db, readings);
  const untold = await takeUntold(db, now(), TOLD_PER_TICK);
  const results = await Promise.all(untold.map((each) => tell(services, each, tellMs)));
  return { fired, told: results.filter((isTold) => isTold).length };
}

/** Takes up readings that are unfinished, unless their rule has changed, and begins the others. */
async function beginReadings(
  { db, now }: Services,
  limitMs: number,
): Promise<Map<AlertRuleId, Reading>> {
  const begun = unfinished.get(db);
  // One that fails is begun anew.
  unfinished.delete(db);
  const readings = new Map<AlertRuleId, Reading>();
  const fresh: DueRule[] = [];
  for (const due of await findDueRules(db, now(), RULES_PER_TICK)) {
    const reading = begun?.get(due.rule.id);
    if (reading && isSame(reading.due, due)) readings.set(due.rule.id, reading);
    else fresh.push(due);
  }
  const open = await readOpen(db, fresh, limitMs);
  for (const due of fresh) {
    const parts = measuring(due, now(), open.get(due.org.id) ?? []);
    readings.set(due.rule.id, { due, parts });
  }
  return readings;
}

function isSame(one: DueRule, other: DueRule): boolean {
  return one.checkedAt === other.checkedAt && one.rule.updatedAt === other.rule.updatedAt;
}

/** Reads the open runs that rules are about to read the steps of, however long that takes. */
async function readOpen(
  db: Database,
  dues: readonly DueRule[],
  limitMs: number,
): Promise<OpenRuns> {
  const orgs = new Set(dues.filter(({ rule }) => readsSteps(rule.metric)).map(({ org }) => org.id));
  if (orgs.size === 0) return new Map();
  const pages = findOpenRuns(db, orgs);
  const budget = new Budget(limitMs);
  for (;;) {
    let page: IteratorResult<void, OpenRuns> | undefined;
    await budget.take(async () => {
      page = await pages.next();
      return page.done ? 0 : 1;
    });
    if (page?.done) return page.value;
  }
}

/**
 * Reads a part for each rule in turn: one that takes long holds up no other. What is finished
 * leaves `readings`.
 *
 * @returns how many rules have fired.
 */
async function takeTurns(
  { now }: Services,
  readings: Map<AlertRuleId, Reading>,
  budget: Budget,
): Promise<number> {
  let fired = 0;
  while (readings.size > 0) {
    for (const [id, { due, parts }] of readings) {
      if (budget.isSpent) return fired;
      await budget.take(async () => {
        const part = await parts.next();
        if (!part.done) return 1;
        readings.delete(id);
        if (await noteValue(due, part.value, now())) fired++;
        return 1;
      });
    }
  }
  return fired;
}

/** @returns false when it could not be told; it is tried again, a few times. */
async function tell(services: Services, untold: Untold, limitMs: number): Promise<boolean> {
  try {
    const target = await openUntold(untold, services.master);
    if (untold.channel === 'mail') await mail(services, untold, target, limitMs);
    else await chat(services, untold, target, limitMs);
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

/** A mail server may take longer than the job has its lease; nobody waits for it then. */
async function mail(
  { mailer }: Services,
  untold: Untold,
  to: string,
  limitMs: number,
): Promise<void> {
  const text = describeFiring(untold.orgName, untold.firing);
  const over = new AbortController();
  const sent = mailer.send({ to, subject: `Alert: ${untold.firing.name}`, text: `${text}\n` });
  const late = sleep(limitMs, undefined, { signal: over.signal }).then(() => {
    throw new MailError('The mail server took too long.');
  });
  try {
    await Promise.race([sent, late]);
  } finally {
    late.catch(() => {});
    over.abort();
  }
}

/** As Slack's incoming webhooks have it, which other chats take, too: `{"text": …}`. */
async function chat(
  { egress }: Services,
  untold: Untold,
  url: string,
  limitMs: number,
): Promise<void> {
  const text = describeFiring(untold.orgName, untold.firing);
  const answer = await egress(new URL(url), {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'user-agent': 'Rungate' },
    body: new TextEncoder().encode(JSON.stringify({ text })),
    signal: AbortSignal.timeout(limitMs),
    timeouts: TIMEOUTS,
  });
  await answer.body?.cancel();
  if (answer.status < 200 || answer.status > 299) {
    throw new EgressError('broken', `The chat answered ${answer.status}.`);
  }
}
