/** The scheduled function: one tick does what is due, job by job, and reports what it did. */

import { expireGates } from '../db/gates.ts';
import { closeIdleRuns } from '../db/idle.ts';
import { endJob, takeJob } from '../db/jobs.ts';
import { pruneSlots } from '../db/limits.ts';
import { pruneParked } from '../db/parked.ts';
import { constantTimeEqual, hashToken, newId } from '../db/seal.ts';
import { purgeSessions } from '../db/sessions.ts';
import { expireSomeHolds } from '../db/system.ts';
import { Refusal } from '../schema/errors.ts';
import { policySchema } from '../schema/policy.ts';
import { type Connection, respondJson } from './edge.ts';
import { checkAlerts, TELL_MS } from './jobs/alert.ts';
import { anchorTrails } from './jobs/anchor.ts';
import { BATCH_ROWS, Budget } from './jobs/batches.ts';
import { eraseLeaving } from './jobs/erase.ts';
import { FETCH_MS, refreshPrices } from './jobs/price.ts';
import { retain } from './jobs/retain.ts';
import { signTrails } from './jobs/sign.ts';
import type { Services } from './services.ts';

/** What a job counted. */
export type Counts = Readonly<Record<string, number>>;

/** How a job went. */
export interface JobReport {
  readonly name: string;
  /** `busy`: another process has the job. */
  readonly outcome: 'done' | 'failed' | 'busy';
  readonly durationMs: number;
  readonly counts?: Counts;
  readonly error?: string;
}

/** How a tick went, its jobs in their order. */
export interface TickReport {
  readonly jobs: readonly JobReport[];
}

/** A piece of work that is safe to be done again, and bounded. */
export interface Job {
  readonly name: string;
  /** How long another process keeps away from it; 0 where its rows are leased one by one. */
  readonly leaseMs: number;
  run(services: Services): Promise<Counts>;
}

/** How often a serving process ticks. */
const TICK_MS = 5_000;
/** Jobs are quick; a process that dies in one holds it up for no longer than this. */
const LEASE_MS = 10_000;
/** How long a job with much to do takes of a tick; the next one goes on with it. */
const LONG_MS = 2_000;
/** How long a tick that was asked for waits for deliveries. */
const WAIT_MS = 20_000;

/** Of a policy that says nothing. */
const IDLE_S = policySchema.parse({}).run.idleTimeoutS;

/** Does work batch by batch for a part of the lease: what is left goes to the next tick. */
const drain = (work: () => Promise<number>) => new Budget(LONG_MS).drain(work);

/** Jobs in their order, after the deliveries. */
const JOBS: readonly Job[] = [
  {
    name: 'expired_holds',
    leaseMs: LEASE_MS,
    run: async ({ db, now }) => ({
      settled: await drain(() => expireSomeHolds(db, now(), BATCH_ROWS)),
    }),
  },
  {
    name: 'expired_gates',
    leaseMs: LEASE_MS,
    run: async ({ db, now }) => ({
      expired: await drain(() => expireGates(db, now(), BATCH_ROWS)),
      pruned: await drain(() => pruneParked(db, now(), BATCH_ROWS)),
    }),
  },
  {
    name: 'idle_runs',
    leaseMs: LEASE_MS,
    run: async ({ db, now }) => ({
      completed: await drain(() => closeIdleRuns(db, now(), IDLE_S, BATCH_ROWS)),
    }),
  },
  {
    name: 'limit_windows',
    leaseMs: LEASE_MS,
    run: async ({ db, now }) => ({
      pruned: await drain(() => pruneSlots(db, now())),
      sessions: await drain(() => purgeSessions(db, now(), BATCH_ROWS)),
    }),
  },
  {
    name: 'retention',
    leaseMs: LEASE_MS,
    run: async (services) => ({ ...(await retain(services, LONG_MS)) }),
  },
  {
    name: 'deletions',
    leaseMs: LEASE_MS,
    run: async (services) => ({ ...(await eraseLeaving(services, LONG_MS)) }),
  },
  {
    name: 'trails',
    leaseMs: LEASE_MS,
    run: async (services) => ({ anchored: await anchorTrails(services, LONG_MS) }),
  },
  {
    name: 'checkpoints',
    leaseMs: LEASE_MS,
    run: async (services) => ({ signed: await signTrails(services, LONG_MS) }),
  },
  {
    name: 'alert_rules',
    leaseMs: LEASE_MS + TELL_MS,
    run: async (services) => ({ ...(await checkAlerts(services, LONG_MS)) }),
  },
  {
    name: 'price_refresh',
    leaseMs: LEASE_MS + FETCH_MS,
    run: async (services) => ({ ...(await refreshPrices(services)) }),
  },
];

/**
 * Does everything that is due, once. Deliveries begin first and go on beside the other jobs. A job
 * that fails is reported and logged, stops no other, and is done again by the next tick. Once the
 * process is told to end, no further job begins.
 *
 * @param waitMs How long to wait for deliveries that are under way; 0 where the process goes on.
 * @param jobs What is done beside the deliveries.
 */
export async function tick(
  services: Services,
  waitMs: number,
  jobs: readonly Job[] = JOBS,
): Promise<TickReport> {
  const deliveries: Job = {
    name: 'deliveries',
    leaseMs: 0,
    run: async () => ({ ...(await services.deliveries.run(waitMs)) }),
  };
  const delivering = runJob(services, deliveries);
  const reports: JobReport[] = [];
  for (const job of jobs) {
    if (services.stopping.signal.aborted) break;
    reports.push(await runJob(services, job));
  }
  return { jobs: [await delivering, ...reports] };
}

async function runJob(services: Services, job: Job): Promise<JobReport> {
  const { name } = job;
  const startedMs = performance.now();
  const durationMs = () => Math.round(performance.now() - startedMs);
  try {
    const counts = await runLeased(services, job);
    if (counts === undefined) return { name, outcome: 'busy', durationMs: durationMs() };
    if (Object.values(counts).some((count) => count > 0)) {
      services.log.info('did a scheduled job', { job: name, ...counts });
    }
    return { name, outcome: 'done', durationMs: durationMs(), counts };
  } catch (error) {
    services.log.error('a scheduled job failed', { job: name, error });
    const reason = error instanceof Error ? error.name : 'an error';
    return { name, outcome: 'failed', durationMs: durationMs(), error: reason };
  }
}

/** @returns undefined when another process has the job. */
async function runLeased(services: Services, job: Job): Promise<Counts | undefined> {
  if (job.leaseMs === 0) return await job.run(services);
  const { db, now } = services;
  const lease = { name: job.name, by: newId('request'), leaseMs: job.leaseMs, now: now() };
  if (!(await takeJob(db, lease))) return undefined;
  let report: object = { failed: true };
  try {
    const counts = await job.run(services);
    report = counts;
    return counts;
  } finally {
    await endJob(db, lease, report, now());
  }
}

/** Ticks every {@link TICK_MS} until it is told to stop; a tick that takes longer delays the next. */
export function startTicking(services: Services): () => Promise<void> {
  let ticking: Promise<unknown> | undefined;
  const begin = () => {
    ticking ??= tick(services, 0).finally(() => {
      ticking = undefined;
    });
  };
  const timer = setInterval(begin, TICK_MS);
  begin();
  return async () => {
    clearInterval(timer);
    await ticking;
  };
}

/**
 * `POST /scheduled/tick`, for hosts that have a scheduler but no timers: a tick that waits for its
 * deliveries, answered with its report.
 *
 * @throws {Refusal} `not_found` where no `RUNGATE_SCHEDULER_SECRET` is set; `invalid_token`
 *   without that secret as the bearer token.
 */
export async function tickOnRequest(
  services: Services,
  request: Request,
  connection: Connection,
): Promise<Response> {
  const { schedulerSecret } = services.config;
  if (schedulerSecret === undefined) {
    throw new Refusal('not_found', 'This deployment is not ticked by requests.');
  }
  const given = /^bearer +(.*)$/i.exec(request.headers.get('authorization') ?? '')?.[1] ?? '';
  if (!isSame(given.trim(), schedulerSecret)) {
    throw new Refusal('invalid_token', 'Send the scheduler secret as the bearer token.');
  }
  connection.wait?.();
  return respondJson(await tick(services, WAIT_MS));
}

/** Hashed first, so that not even the length shows in the time it takes. */
function isSame(one: string, other: string): boolean {
  const bytes = (text: string) => new TextEncoder().encode(hashToken(text));
  return constantTimeEqual(bytes(one), bytes(other));
}
