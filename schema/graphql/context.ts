/** What a resolver may use: the viewer, the door to his org's rows, and the functions of the store. */

import type * as agents from '../../db/agents.ts';
import type * as alertRules from '../../db/alert-rules.ts';
import type * as allowances from '../../db/allowances.ts';
import type * as analytics from '../../db/analytics.ts';
import type * as audit from '../../db/audit.ts';
import type { Actor } from '../../db/audit.ts';
import type * as captures from '../../db/captures.ts';
import type * as checkpoints from '../../db/checkpoints.ts';
import type * as deliveries from '../../db/deliveries.ts';
import type * as events from '../../db/events.ts';
import type * as gates from '../../db/gates.ts';
import type * as invitations from '../../db/invitations.ts';
import type { Invitation } from '../../db/invitations.ts';
import type * as members from '../../db/members.ts';
import type { Org } from '../../db/org.ts';
import type * as orgs from '../../db/orgs.ts';
import type { Page, Window } from '../../db/page.ts';
import type * as policies from '../../db/policies.ts';
import type * as prices from '../../db/prices.ts';
import type * as providerKeys from '../../db/provider-keys.ts';
import type * as retention from '../../db/retention.ts';
import type * as runs from '../../db/runs.ts';
import type { MasterKeys } from '../../db/seal.ts';
import type * as sessions from '../../db/sessions.ts';
import type * as signin from '../../db/signin.ts';
import type { PublicKey, Signer } from '../../db/signing.ts';
import type * as simulations from '../../db/simulations.ts';
import type * as steps from '../../db/steps.ts';
import type * as tokens from '../../db/tokens.ts';
import type * as trails from '../../db/trails.ts';
import type * as users from '../../db/users.ts';
import type * as webhooks from '../../db/webhooks.ts';
import type { AllowList } from '../address.ts';
import type {
  AgentId,
  AlertRuleId,
  DeliveryId,
  EventId,
  GateId,
  MemberId,
  PolicyId,
  PolicyVersionId,
  RunId,
  SessionId,
  TokenId,
  WebhookId,
} from '../ids.ts';
import type { AdminAction, Role } from '../roles.ts';
import type { Catalogue } from '../rules/catalogue.ts';
import type { RefusedMutation, UserError } from './errors.ts';

export type { Agent, Choice } from '../../db/agents.ts';
export type { AlertRule } from '../../db/alert-rules.ts';
export type { Allowances } from '../../db/allowances.ts';
export type {
  AskedAbout,
  Days,
  ModelLatency,
  MonthlyUsage,
  Refused,
  SpendKey,
  SpendShare,
} from '../../db/analytics.ts';
export type { Body } from '../../db/captures.ts';
export type { KeptCheckpoint } from '../../db/checkpoints.ts';
export type { Delivery, DeliveryLog } from '../../db/deliveries.ts';
export type { Event } from '../../db/events.ts';
export type { Decided, Gate, GateDecision } from '../../db/gates.ts';
export type { Invitation, SentInvitation } from '../../db/invitations.ts';
export type { Member, OwnershipOffer } from '../../db/members.ts';
export type { Account } from '../../db/orgs.ts';
export type { Page, Window } from '../../db/page.ts';
export type { NamedPolicy, WrittenVersion } from '../../db/policies.ts';
export type { ModelPrice } from '../../db/prices.ts';
export type { ShownKey } from '../../db/provider-keys.ts';
export type { Retention } from '../../db/retention.ts';
export type { Run, RunOrder, RunStatus } from '../../db/runs.ts';
export type { ListedSession } from '../../db/sessions.ts';
export type { OidcSettings } from '../../db/signin.ts';
export type { RecordedStep } from '../../db/simulations.ts';
export type { RunStep, StepKind } from '../../db/steps.ts';
export type { StoredToken } from '../../db/tokens.ts';
export type { Webhook } from '../../db/webhooks.ts';

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
  /** What calls are charged by where the org has no price of its own. */
  readonly catalogue: Catalogue;
  /** For how many days records of the operator's own plan are kept; null is for good. */
  readonly retentionDays: number | null;
  /** Unix milliseconds at which the request came. */
  readonly now: number;
  /** What went wrong, where it is the input's fault. */
  explain(error: unknown): UserError | undefined;
  /** Mutations that were refused; the audit trail has them before the request is answered. */
  readonly refused: RefusedMutation[];
}

/** Modules of the store, by noun. */
export interface Store {
  readonly agents: typeof agents;
  readonly alertRules: typeof alertRules;
  readonly allowances: typeof allowances;
  readonly analytics: typeof analytics;
  readonly audit: typeof audit;
  readonly captures: typeof captures;
  readonly checkpoints: typeof checkpoints;
  readonly deliveries: typeof deliveries;
  readonly events: typeof events;
  readonly gates: typeof gates;
  readonly orgs: typeof orgs;
  readonly invitations: typeof invitations;
  readonly members: typeof members;
  readonly policies: typeof policies;
  readonly prices: typeof prices;
  readonly providerKeys: typeof providerKeys;
  readonly retention: typeof retention;
  readonly runs: typeof runs;
  readonly simulations: typeof simulations;
  readonly sessions: typeof sessions;
  readonly signin: typeof signin;
  readonly steps: typeof steps;
  readonly tokens: typeof tokens;
  readonly trails: typeof trails;
  readonly users: typeof users;
  readonly webhooks: typeof webhooks;
}

/** Reads many rows of a kind by id in one statement. */
export interface Loader<K, V> {
  load(key: K): Promise<V | undefined>;
}

/** Reads the same part of the lists of many parents in one statement. */
export interface ListLoader<P, V> {
  load(parent: P, window: Window): Promise<Page<V>>;
}

/** Reads the same part of the lists of many parents, as far as a filter lets through. */
export interface SearchLoader<P, F, V> {
  load(parent: P, filter: F, window: Window): Promise<Page<V>>;
}

/** A loader for every noun that others refer to. */
export interface Loaders {
  readonly agents: Loader<AgentId, agents.Agent>;
  readonly alertRules: Loader<AlertRuleId, alertRules.AlertRule>;
  readonly attempts: Loader<DeliveryId, deliveries.DeliveryLog['log']>;
  readonly deliveries: Loader<DeliveryId, deliveries.Delivery>;
  readonly deliveriesOf: SearchLoader<WebhookId, deliveries.DeliverySearch, deliveries.Delivery>;
  readonly events: Loader<EventId, events.Event>;
  readonly gates: Loader<GateId, gates.Gate>;
  readonly gateArgs: Loader<GateId, string>;
  readonly decisionsOfGate: Loader<GateId, readonly gates.GateDecision[]>;
  readonly gatesOfRun: SearchLoader<RunId, Pick<gates.GateFilter, 'status'>, gates.Gate>;
  readonly runs: Loader<RunId, runs.Run>;
  readonly steps: Loader<steps.StepKey, steps.RunStep>;
  readonly stepsOfRun: SearchLoader<RunId, steps.StepFilter, steps.RunStep>;
  readonly webhooks: Loader<WebhookId, webhooks.Webhook>;
  readonly agentsOfPolicy: ListLoader<PolicyId, agents.Agent>;
  readonly agentSpend: Loader<AgentId, agents.AgentSpend>;
  readonly choicesOfAgent: Loader<AgentId, readonly agents.Choice[]>;
  readonly members: Loader<MemberId, members.Member>;
  readonly sessionsOfMember: Loader<MemberId, readonly sessions.ListedSession[]>;
  readonly policies: Loader<PolicyId, policies.NamedPolicy>;
  readonly policyVersions: Loader<PolicyVersionId, policies.WrittenVersion>;
  readonly newestVersions: Loader<PolicyId, policies.WrittenVersion>;
  readonly versionsByNumber: Loader<policies.VersionKey, policies.WrittenVersion>;
  readonly versionsOfPolicy: ListLoader<PolicyId, policies.WrittenVersion>;
  readonly tokens: Loader<TokenId, tokens.StoredToken>;
  readonly tokensOfAgent: ListLoader<AgentId, tokens.StoredToken>;
}
