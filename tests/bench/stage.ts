/** What a measured server is made of: the contract between `server.ts` and its stages. */

import type { Connection } from '../../functions/edge.ts';

/** What a stage is started with. */
export interface StageOptions {
  readonly upstream: URL;
  /** SQLite's `synchronous`, for stages that write. */
  readonly synchronous: 'full' | 'normal';
}

/** A stage that has been set up. */
export interface Stage {
  fetch(request: Request, connection: Connection): Response | Promise<Response>;
  /** What a caller must send, such as a token. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Takes away what the stage has put on disk. */
  close?(): Promise<void>;
}
