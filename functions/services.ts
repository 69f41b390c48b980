/** What every request needs, made once per process and holding nothing that a request leaves. */

import type { Database } from '../db/client.ts';
import type { MasterKeys, OpenedSecrets } from '../db/seal.ts';
import type { Config } from './config.ts';
import type { Egress } from './egress.ts';
import type { Log } from './log.ts';
import type { Flights } from './proxy/flight.ts';

/** The process's dependencies, passed explicitly to whatever uses them. */
export interface Services {
  readonly config: Config;
  readonly log: Log;
  readonly db: Database;
  readonly master: MasterKeys;
  readonly secrets: OpenedSecrets;
  readonly egress: Egress;
  readonly flights: Flights;
  /** Unix milliseconds. */
  readonly now: () => number;
}
