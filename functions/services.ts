/** What every request needs, made once per process; what a request leaves in it saves only reads. */

import type { Database } from '../db/client.ts';
import type { Memo } from '../db/memo.ts';
import type { PolicyVersion } from '../db/policies.ts';
import type { MasterKeys, OpenedSecrets } from '../db/seal.ts';
import type { Credential } from '../db/tokens.ts';
import type { RunId } from '../schema/ids.ts';
import type { Catalogues } from './catalogues.ts';
import type { Config } from './config.ts';
import type { Egress } from './egress.ts';
import type { Deliveries } from './jobs/deliver.ts';
import type { Log } from './log.ts';
import type { Mailer } from './mail.ts';
import type { Flights } from './proxy/flight.ts';

/**
 * What calls before this one found out. It saves reads, never a check: the write that holds a
 * call's money confirms it, and when it doesn't, everything is read anew.
 */
export interface Memory {
  /** By the token's hash. */
  readonly credentials: Memo<Credential>;
  /** The run of an agent's name, or of its window. */
  readonly runs: Memo<KnownRun>;
  /** Whether any answer of a run was parked when that was looked up last, by the run's id. */
  readonly parked: Memo<boolean>;
  /** Until when an address has failed to sign in too often, Unix milliseconds. */
  readonly failures: Memo<number>;
  /** Until when a token or a session has asked the admin API too often, by its id, likewise. */
  readonly admins: Memo<number>;
}

/** What of a run never changes. */
export interface KnownRun {
  readonly id: RunId;
  readonly name: string;
  /** Unix milliseconds. */
  readonly openedAt: number;
  readonly version: PolicyVersion;
}

/** The process's dependencies, passed explicitly to whatever uses them. */
export interface Services {
  readonly config: Config;
  readonly log: Log;
  readonly db: Database;
  readonly master: MasterKeys;
  readonly secrets: OpenedSecrets;
  readonly egress: Egress;
  readonly flights: Flights;
  readonly deliveries: Deliveries;
  readonly mailer: Mailer;
  readonly memory: Memory;
  readonly catalogues: Catalogues;
  /** Aborts when the process is told to end: nobody is kept waiting for a person any longer. */
  readonly stopping: AbortController;
  /** Unix milliseconds. */
  readonly now: () => number;
}
