/** The functions of the store that resolvers call; they are handed in, never imported. */

import type * as agents from '../../db/agents.ts';
import type * as alertRules from '../../db/alert-rules.ts';
import type * as allowances from '../../db/allowances.ts';
import type * as analytics from '../../db/analytics.ts';
import type * as audit from '../../db/audit.ts';
import type * as captures from '../../db/captures.ts';
import type * as checkpoints from '../../db/checkpoints.ts';
import type * as deliveries from '../../db/deliveries.ts';
import type * as events from '../../db/events.ts';
import type * as gates from '../../db/gates.ts';
import type * as invitations from '../../db/invitations.ts';
import type * as members from '../../db/members.ts';
import type * as orgs from '../../db/orgs.ts';
import type { Page, Window } from '../../db/page.ts';
import type * as policies from '../../db/policies.ts';
import type * as prices from '../../db/prices.ts';
import type * as providerKeys from '../../db/provider-keys.ts';
import type * as retention from '../../db/retention.ts';
import type * as runs from '../../db/runs.ts';
import type * as sessions from '../../db/sessions.ts';
import type * as signin from '../../db/signin.ts';
import type * as simulations from '../../db/simulations.ts';
import type * as steps from '../../db/steps.ts';
import type * as tokens from '../../db/tokens.ts';
import type * as users from '../../db/users.ts';
import type * as webhooks from '../../db/webhooks.ts';
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
  TokenId,
  WebhookId,
} from '../ids.ts';

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
