/** What carries documents to the admin API and answers back, without knowing what is in them. */

import type { AuditFormat } from '../../functions/audit.ts';
import type { AllowList } from '../../schema/address.ts';
import type { GateId } from '../../schema/ids.ts';

/** A way to the admin API of one org; good until the command ends. */
export interface Transport {
  /** Whether it acts in the name of an admin token; else it is the operator's own. */
  readonly isRemote: boolean;
  /** Hosts that may be named although they are not public; undefined where the server judges. */
  readonly egressAllow: AllowList | undefined;
  /**
   * Runs one GraphQL document.
   *
   * @returns the answer as JSON has it.
   * @throws {Failure} when there is none.
   */
  send(document: string, variables: Record<string, unknown>): Promise<unknown>;
  /** The whole audit trail, ready to be written as it comes. */
  readTrail(format: AuditFormat): AsyncIterable<string | Uint8Array>;
  /** A link that decides on a gate once; null for all but the operator. */
  signLink(gate: { readonly id: GateId; readonly expiresAt: string }): Promise<string | null>;
}
