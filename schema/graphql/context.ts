/** What a resolver may use: the viewer, the door to his org's rows, and the functions of the store. */

import type { Actor } from '../../db/audit.ts';
import type { Invitation } from '../../db/invitations.ts';
import type { Org } from '../../db/org.ts';
import type { MasterKeys } from '../../db/seal.ts';
import type { PublicKey, Signer } from '../../db/signing.ts';
import type { AllowList } from '../address.ts';
import type { MemberId, SessionId, TokenId } from '../ids.ts';
import type { AdminAction, Role } from '../roles.ts';
import type { UserError } from './errors.ts';
import type { Loaders, Store } from './store.ts';

/** Who asks, after authentication. */
export interface Viewer {
  readonly memberId: MemberId | null;
  readonly role: Role | null;
  /** What he may do now: what his role may, and with a token at most what that was given. */
  readonly actions: ReadonlySet<AdminAction>;
  readonly tokenId: TokenId | null;
  readonly sessionId: SessionId | null;
}

/** Keys that are opened when they are needed. */
export interface Signing {
  signer(): Promise<Signer>;
  publicKeys(): Promise<readonly PublicKey[]>;
}

/** What the admin API writes to people. */
export interface Letters {
  /** Whether there is a way for letters: a mail server, or the log of a development server. */
  readonly isOpen: boolean;
  /**
   * Mails an invitation.
   *
   * @param secret Of its link.
   * @returns the link in development where there is no mail server, else null.
   */
  invite(invitation: Invitation, secret: string): Promise<string | null>;
}

/** The context of one request. */
export interface Context {
  readonly viewer: Viewer;
  /** The viewer's org: no resolver can name another. */
  readonly org: Org;
  /** Whoever acts, as the audit trail has him. */
  readonly actor: Actor;
  readonly store: Store;
  /** Batched reads; nothing is remembered between them. */
  readonly loaders: Loaders;
  readonly master: MasterKeys;
  /** The deployment's keys for checkpoints of audit trails. */
  readonly signing: Signing;
  /** Letters to people. */
  readonly letters: Letters;
  /** Hosts that may be named although they are not public. */
  readonly egressAllow: AllowList;
  /** Where people reach this deployment, without a slash at the end. */
  readonly publicUrl: string;
  /** For how many days records of the operator's own plan are kept; null is for good. */
  readonly retentionDays: number | null;
  /** Unix milliseconds at which the request came. */
  readonly now: number;
  /** What went wrong, where it is the input's fault. */
  explain(error: unknown): UserError | undefined;
  /** Mutations that were refused; the audit trail has them before the request is answered. */
  readonly refused: { readonly field: string; readonly action: AdminAction }[];
}
