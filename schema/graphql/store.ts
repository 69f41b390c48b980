/** The functions of the store that resolvers call; they are handed in, never imported. */

import type * as agents from '../../db/agents.ts';
import type * as policies from '../../db/policies.ts';
import type { AgentId } from '../ids.ts';

/** Modules of the store, by noun. */
export interface Store {
  readonly agents: typeof agents;
  readonly policies: typeof policies;
}

/** Reads many rows of a kind by id in one statement. */
export interface Loader<K, V> {
  load(key: K): Promise<V | undefined>;
}

/** A loader for every noun that others refer to. */
export interface Loaders {
  readonly agents: Loader<AgentId, agents.Agent>;
}
