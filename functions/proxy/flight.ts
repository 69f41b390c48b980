/** Calls in flight in this process: their leases are kept, and each is settled exactly once. */

import { type Database, DatabaseError, type Statement } from '../../db/client.ts';
import type { Org } from '../../db/org.ts';
import { blockRun } from '../../db/runs.ts';
import {
  type Hold,
  leaseRenewal,
  type Settlement,
  settle,
  settlement,
} from '../../db/settlements.ts';
import { type EndReason, findEnded } from '../../db/system.ts';
import type { RunId, TokenId } from '../../schema/ids.ts';
import type { StopReason } from '../../schema/rules/limit.ts';
import type { Log } from '../log.ts';

/** How long a hold outlives its process, and how often a living process says it is there. */
export const LEASE_MS = 15_000;
const RENEW_MS = 5_000;
/** How often calls in flight are looked up, so that one that is stopped ends within two of these. */
const LOOK_MS = 500;
/** How long a call may take before its caller is listened to. */
const LISTEN_MS = 200;

const SETTLE_TRIES = 3;
const SETTLE_PAUSE_MS = 250;

/** Why a call was ended from outside. */
export type AbortReason = 'client_left' | 'shutdown' | 'run_overdue' | EndReason;

/** What ends a call in flight, beside its run. */
export interface Ties {
  /** The token that it came with: it ends when that is revoked. */
  readonly tokenId: TokenId | null;
  /** When its run has lasted as long as it may, Unix milliseconds. */
  readonly deadline: number;
}

const NO_TIES: Ties = { tokenId: null, deadline: Number.POSITIVE_INFINITY };
const OVERDUE: StopReason = 'run.max_duration';

/** A call between its hold and its settlement. */
export class Flight {
  /** Ends the upstream call; the exchange aborts it too when it gives up. */
  readonly controller = new AbortController();
  readonly #flights: Flights;
  readonly #org: Org;
  readonly #hold: Hold;
  readonly #ties: Ties;
  #settled: Promise<void> | undefined;
  #ended: AbortReason | undefined;
  #leaseEndsAt: number;
  /** The caller's request until it is listened to, and from then on what ends the listening. */
  #caller: Request | undefined;
  #unlisten: (() => void) | undefined;

  /** Use {@link Flights.start}. */
  constructor(flights: Flights, org: Org, hold: Hold, leaseEndsAt: number, ties: Ties) {
    this.#flights = flights;
    this.#org = org;
    this.#hold = hold;
    this.#leaseEndsAt = leaseEndsAt;
    this.#ties = ties;
  }

  get runId(): RunId {
    return this.#hold.runId;
  }

  /** The run and the token that it depends on; undefined for one that is over. */
  get flying() {
    const isOver = this.#settled !== undefined || this.#ended !== undefined;
    return isOver ? undefined : { runId: this.#hold.runId, tokenId: this.#ties.tokenId };
  }

  /** Whether its run has lasted as long as it may while the call goes on. */
  isOverdue(now: number): boolean {
    return now >= this.#ties.deadline && this.flying !== undefined;
  }

  /** Aborts once the call is ended, or its exchange gives up. */
  get signal(): AbortSignal {
    return this.controller.signal;
  }

  /** Why the call was ended from outside, if it was. */
  get ended(): AbortReason | undefined {
    return this.#ended;
  }

  /** Blocks its run, which has lasted as long as it may. */
  async blockRun(now: number): Promise<void> {
    await blockRun(this.#org, this.#hold.runId, OVERDUE, null, now, { whileHeld: true });
  }

  /** Ends the call; whoever reads the upstream sees its stream break and settles. */
  abort(reason: AbortReason): void {
    this.#ended ??= reason;
    this.controller.abort(reason);
  }

  /**
   * Ends the call when its caller leaves, until {@link unwatch}. Listening costs more than the rest
   * of a short call's exchange, so it begins only where a call takes a while.
   */
  watch(caller: Request): void {
    this.#caller = caller;
  }

  /** Begins to listen to a caller who is watched; one who has left meanwhile is noticed. */
  listen(): void {
    if (!this.#caller) return;
    const { signal } = this.#caller;
    const leave = () => this.abort('client_left');
    signal.addEventListener('abort', leave, { once: true });
    this.#caller = undefined;
    this.#unlisten = () => signal.removeEventListener('abort', leave);
    if (signal.aborted) leave();
  }

  /** From here on the response's own stream tells whether the caller is there. */
  unwatch(): void {
    this.#unlisten?.();
    this.#caller = undefined;
    this.#unlisten = undefined;
  }

  /** Writes the real cost, durably; a second call waits for the first and changes nothing. */
  settle(end: Settlement, ...also: Statement[]): Promise<void> {
    const { runId, stepId } = this.#hold;
    this.#settled ??= this.#write(() =>
      also.length === 0
        ? settle(this.#org, this.#hold, end)
        : this.#org.write(settlement(this.#org, runId, stepId, end), ...also),
    );
    return this.#settled;
  }

  /** Leaves the hold to whoever fetches the result later, for at most `leaseMs`. */
  handOver(leaseMs: number, now: number, ...also: Statement[]): Promise<void> {
    const { runId, stepId } = this.#hold;
    const renewal = leaseRenewal(this.#org, runId, stepId, now + leaseMs);
    this.#settled ??= this.#write(() => this.#org.write(renewal, ...also));
    return this.#settled;
  }

  /** The statement that keeps the hold alive, if it is due. */
  renewal(now: number): Statement | undefined {
    if (this.#settled || this.#leaseEndsAt - now > LEASE_MS - RENEW_MS / 2) return undefined;
    this.#leaseEndsAt = now + LEASE_MS;
    const { runId, stepId } = this.#hold;
    return leaseRenewal(this.#org, runId, stepId, this.#leaseEndsAt);
  }

  /** A settlement that can't be written is left to the lease, which charges the bound. */
  async #write(write: () => Promise<unknown>): Promise<void> {
    try {
      for (let attempt = 1; ; attempt++) {
        try {
          await write();
          return;
        } catch (error) {
          const isFinal = !(error instanceof DatabaseError) || error.refused;
          if (isFinal || attempt === SETTLE_TRIES) throw error;
        }
        await new Promise((resolve) => setTimeout(resolve, SETTLE_PAUSE_MS * attempt));
      }
    } catch (error) {
      this.#flights.log.error('a call could not be settled; its lease will settle it', {
        step: this.#hold.stepId,
        error,
      });
    } finally {
      this.#flights.end(this);
    }
  }
}

/** All calls in flight in this process. */
export class Flights {
  readonly log: Log;
  readonly #db: Database;
  readonly #all = new Set<Flight>();
  readonly #timers: readonly ReturnType<typeof setInterval>[];
  /** Those that were in flight at the last look: what is younger is confirmed by its hold. */
  #older: readonly Flight[] = [];
  /** Of those who wait until no call is in flight. */
  #empty: PromiseWithResolvers<void> | undefined;

  constructor(db: Database, log: Log, now: () => number) {
    this.#db = db;
    this.log = log;
    this.#timers = [
      setInterval(() => void this.#tend(now()), RENEW_MS),
      setInterval(() => void this.#look(now()), LOOK_MS),
      setInterval(() => this.#listen(), LISTEN_MS),
    ];
  }

  /** Takes charge of a hold. */
  start(org: Org, hold: Hold, leaseEndsAt: number, ties: Ties = NO_TIES): Flight {
    const flight = new Flight(this, org, hold, leaseEndsAt, ties);
    this.#all.add(flight);
    return flight;
  }

  /** A call is over. */
  end(flight: Flight): void {
    this.#all.delete(flight);
    if (this.#all.size > 0) return;
    this.#empty?.resolve();
    this.#empty = undefined;
  }

  /** Waits until all calls have ended; those that take longer than `limitMs` are aborted. */
  async drain(limitMs: number): Promise<void> {
    if (this.#all.size > 0) this.#empty ??= Promise.withResolvers();
    const cutOff = setTimeout(() => {
      for (const flight of this.#all) flight.abort('shutdown');
    }, limitMs);
    await this.#empty?.promise;
    clearTimeout(cutOff);
    for (const timer of this.#timers) clearInterval(timer);
  }

  #listen(): void {
    for (const flight of this.#all) flight.listen();
  }

  /** Ends the calls that may not go on. */
  async #look(now: number): Promise<void> {
    await Promise.all([this.#endStopped(), this.#endOverdue(now)]);
  }

  /** Those whose run has lasted as long as it may: that needs no look into the database. */
  async #endOverdue(now: number): Promise<void> {
    const overdue = [...this.#all].filter((flight) => flight.isOverdue(now));
    const runs = new Map<RunId, Flight>(overdue.map((flight) => [flight.runId, flight]));
    try {
      await Promise.all([...runs.values()].map((flight) => flight.blockRun(now)));
    } catch (error) {
      this.log.error('runs could not be blocked; their next calls will do it', { error });
    }
    for (const flight of overdue) flight.abort('run_overdue');
  }

  /** Those whose run, agent or token was stopped meanwhile, in whichever process. */
  async #endStopped(): Promise<void> {
    const flights = this.#older.filter((flight) => flight.flying);
    this.#older = [...this.#all];
    if (flights.length === 0) return;
    try {
      const ended = await findEnded(
        this.#db,
        flights.map((flight) => flight.flying!),
      );
      for (const [at, reason] of ended) flights[at]!.abort(reason);
    } catch (error) {
      this.log.error('calls in flight could not be looked up', { count: flights.length, error });
    }
  }

  /** Renews the leases that are ours; those that nobody renews are for a scheduled job to settle. */
  async #tend(now: number): Promise<void> {
    const due = [...this.#all].flatMap((flight) => flight.renewal(now) ?? []);
    if (due.length === 0) return;
    try {
      await this.#db.write(due);
    } catch (error) {
      this.log.error('leases could not be renewed', { count: due.length, error });
    }
  }
}
