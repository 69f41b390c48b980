/** The store's functions and batched reads, as the admin API's resolvers get them. */

import DataLoader from 'dataloader';
import * as agents from '../db/agents.ts';
import * as alertRules from '../db/alert-rules.ts';
import * as allowances from '../db/allowances.ts';
import * as analytics from '../db/analytics.ts';
import * as audit from '../db/audit.ts';
import * as captures from '../db/captures.ts';
import * as checkpoints from '../db/checkpoints.ts';
import * as deliveries from '../db/deliveries.ts';
import * as events from '../db/events.ts';
import * as gates from '../db/gates.ts';
import * as invitations from '../db/invitations.ts';
import * as members from '../db/members.ts';
import type { Org } from '../db/org.ts';
import * as orgs from '../db/orgs.ts';
import type { Page, Window } from '../db/page.ts';
import * as policies from '../db/policies.ts';
import * as prices from '../db/prices.ts';
import * as providerKeys from '../db/provider-keys.ts';
import * as retention from '../db/retention.ts';
import * as runs from '../db/runs.ts';
import type { MasterKeys } from '../db/seal.ts';
import * as sessions from '../db/sessions.ts';
import * as signin from '../db/signin.ts';
import * as simulations from '../db/simulations.ts';
import * as steps from '../db/steps.ts';
import * as tokens from '../db/tokens.ts';
import * as trails from '../db/trails.ts';
import * as users from '../db/users.ts';
import * as webhooks from '../db/webhooks.ts';
import type {
  ListLoader,
  Loader,
  Loaders,
  SearchLoader,
  Store,
} from '../schema/graphql/context.ts';
import type { GateId, RunId } from '../schema/ids.ts';
import { windowsOf } from '../schema/rules/budget.ts';

/** Every module that resolvers call. */
export const store: Store = {
  ...{ alertRules, retention },
  ...{ invitations, members, sessions, signin, users },
  ...{ agents, audit, checkpoints, deliveries, events, policies, prices, providerKeys, tokens },
  ...{ orgs, simulations },
  ...{ allowances, analytics, captures, gates, runs, steps, trails },
  webhooks,
};

/**
 * Loaders of an org's rows, for one request. They batch but remember nothing, so that what a
 * mutation has changed is read anew.
 *
 * @param now Unix milliseconds at which the request came.
 */
export function loadersFor(org: Org, master: MasterKeys, now: number): Loaders {
  const windows = windowsOf(now);
  return {
    ...trailLoaders(org, master, now),
    agents: byId((ids) => agents.readAgents(org, ids)),
    agentsOfPolicy: listsOf((ids, window) => agents.listAgentsOfPolicies(org, ids, window)),
    agentSpend: byKey((ids) => agents.readAgentSpend(org, ids, windows)),
    alertRules: byId((ids) => alertRules.readAlertRules(org, ids)),
    attempts: byKey((ids) => deliveries.readAttempts(org, ids)),
    choicesOfAgent: byKey((ids) => agents.readChoicesOfAgents(org, ids)),
    deliveries: byId((ids) => deliveries.readDeliveries(org, ids)),
    deliveriesOf: searchesOf((ids, search, window) =>
      deliveries.pageDeliveriesOf(org, ids, search, window),
    ),
    events: byId((ids) => events.readEvents(org, ids)),
    members: byId((ids) => members.readMembers(org, ids)),
    sessionsOfMember: byKey((ids) => sessions.sessionsOf(org, ids, now)),
    policies: byId((ids) => policies.readPolicies(org, ids)),
    policyVersions: byId((ids) => policies.readVersions(org, ids)),
    newestVersions: byKey(async (ids) => {
      const newest = await policies.readNewestVersions(org, ids);
      return new Map(newest.map((version) => [version.policyId, version]));
    }),
    versionsByNumber: byKey((keys) => policies.readNumberedVersions(org, keys)),
    versionsOfPolicy: listsOf((ids, window) => policies.listVersions(org, ids, window)),
    tokens: byId((ids) => tokens.readTokens(org, ids)),
    tokensOfAgent: listsOf((ids, window) => tokens.listTokensOfAgents(org, ids, window)),
    webhooks: byId((ids) => webhooks.readWebhooks(org, ids)),
  };
}

/** What runs did, and what people are asked about them. */
function trailLoaders(org: Org, master: MasterKeys, now: number) {
  return {
    gates: byId((ids: readonly GateId[]) => gates.readGates(org, ids)),
    gateArgs: byKey((ids: readonly GateId[]) => gates.readArgs(org, master, ids)),
    decisionsOfGate: byKey((ids: readonly GateId[]) => gates.readDecisions(org, ids)),
    gatesOfRun: searchesOf(
      (ids: readonly RunId[], filter: Pick<gates.GateFilter, 'status'>, window) =>
        gates.listGatesOfRuns(org, ids, filter, now, window),
    ),
    runs: byId((ids: readonly RunId[]) => runs.readRuns(org, ids)),
    steps: byKey((keys: readonly steps.StepKey[]) => steps.readSteps(org, keys)),
    stepsOfRun: searchesOf((ids: readonly RunId[], filter: steps.StepFilter, window) =>
      steps.listStepsOfRuns(org, ids, filter, window),
    ),
  };
}

/** A loader that asks for all ids of a turn at once. */
function byId<K extends string, V extends { readonly id: K }>(
  read: (ids: readonly K[]) => Promise<readonly V[]>,
): Loader<K, V> {
  return byKey(async (ids) => new Map((await read(ids)).map((node) => [node.id, node])));
}

/** As {@link byId}, for what is found by something else than its own id. */
function byKey<K extends string, V>(
  read: (keys: readonly K[]) => Promise<ReadonlyMap<K, V>>,
): Loader<K, V> {
  return new DataLoader<K, V | undefined>(
    async (keys) => {
      const found = await read([...new Set(keys)]);
      return keys.map((key) => found.get(key));
    },
    { cache: false },
  );
}

/** A loader that asks for the lists of all parents of a turn at once, per part that is wanted. */
function listsOf<P extends string, V>(
  read: (parents: readonly P[], window: Window) => Promise<ReadonlyMap<P, Page<V>>>,
): ListLoader<P, V> {
  const byWindow = new Map<string, Loader<P, Page<V>>>();
  return {
    async load(parent, window) {
      const part = JSON.stringify(window);
      const loader = byWindow.get(part) ?? byKey<P, Page<V>>((ids) => read(ids, window));
      byWindow.set(part, loader);
      return (await loader.load(parent)) ?? { items: [], hasMore: false };
    },
  };
}

/** As {@link listsOf}, once per filter. */
function searchesOf<P extends string, F, V>(
  read: (parents: readonly P[], filter: F, window: Window) => Promise<ReadonlyMap<P, Page<V>>>,
): SearchLoader<P, F, V> {
  const byFilter = new Map<string, ListLoader<P, V>>();
  return {
    load(parent, filter, window) {
      const sought = JSON.stringify(filter);
      const loader = byFilter.get(sought) ?? listsOf<P, V>((ids, part) => read(ids, filter, part));
      byFilter.set(sought, loader);
      return loader.load(parent, window);
    },
  };
}
