/** The store's functions and batched reads, as the admin API's resolvers get them. */

import DataLoader from 'dataloader';
import * as agents from '../db/agents.ts';
import type { Org } from '../db/org.ts';
import * as policies from '../db/policies.ts';
import type { Loader, Loaders, Store } from '../schema/graphql/store.ts';

/** Every module that resolvers call. */
export const store: Store = { agents, policies };

/** Loaders of an org's rows, for one request. */
export function loadersFor(org: Org): Loaders {
  return {
    agents: byId((ids) => agents.readAgents(org, ids)),
  };
}

/** A loader that asks for all ids of a turn at once. */
function byId<K extends string, V extends { readonly id: K }>(
  read: (ids: readonly K[]) => Promise<readonly V[]>,
): Loader<K, V> {
  return new DataLoader<K, V | undefined>(async (ids) => {
    const found = new Map((await read(ids)).map((node) => [node.id, node]));
    return ids.map((id) => found.get(id));
  });
}
