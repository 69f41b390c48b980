/** What an org has of everything that a file can name; a file's other sections are not read. */

import { type Api, type Connection, PAGE_INFO, readList } from './api.ts';
import type { Manifest } from './manifest.ts';

/** A provider key, but for its secret. */
export interface PresentKey {
  readonly id: string;
  readonly name: string;
}

/** A price in nano-dollars; null is the price of input, or a context window that is not set. */
export interface PresentPrice {
  readonly model: string;
  readonly inputPerMillion: number;
  readonly outputPerMillion: number;
  readonly cacheReadPerMillion: number | null;
  readonly cacheWritePerMillion: number | null;
  readonly contextWindow: number | null;
}

/** A policy with its newest version. */
export interface PresentPolicy {
  readonly id: string;
  readonly name: string;
  readonly newest: { readonly number: number; readonly document: unknown };
}

/** An agent with what its runs may open with. */
export interface PresentAgent {
  readonly id: string;
  readonly name: string;
  readonly policy: { readonly name: string };
  readonly pinnedVersion: number | null;
  readonly choices: readonly {
    readonly policy: { readonly name: string };
    readonly version: number | null;
  }[];
}

/** A webhook, but for its secret. */
export interface PresentWebhook {
  readonly id: string;
  readonly url: string;
  readonly events: readonly string[];
  readonly description: string;
}

/** What an org has, each by its name. */
export interface Present {
  readonly keys: ReadonlyMap<string, PresentKey>;
  readonly prices: ReadonlyMap<string, PresentPrice>;
  readonly policies: ReadonlyMap<string, PresentPolicy>;
  readonly agents: ReadonlyMap<string, PresentAgent>;
  readonly webhooks: ReadonlyMap<string, PresentWebhook>;
}

/**
 * Reads what a file is compared with.
 *
 * @throws {Refused} where the viewer may not read it.
 */
export async function readPresent(api: Api, manifest: Manifest): Promise<Present> {
  const { providerKeys, prices, policies, agents, webhooks } = manifest;
  const hasPolicies = policies.length + agents.length > 0;
  return {
    keys: byName(providerKeys.length > 0 ? await readAll<PresentKey>(api, KEYS) : []),
    prices: new Map(
      prices.length > 0 ? (await readPrices(api)).map((price) => [price.model, price]) : [],
    ),
    policies: byName(hasPolicies ? await readAll<PresentPolicy>(api, POLICIES) : []),
    agents: byName(agents.length > 0 ? await readAll<PresentAgent>(api, AGENTS) : []),
    webhooks: new Map(
      webhooks.length > 0
        ? (await readAll<PresentWebhook>(api, WEBHOOKS)).map((webhook) => [webhook.url, webhook])
        : [],
    ),
  };
}

function byName<T extends { readonly name: string }>(all: readonly T[]): Map<string, T> {
  return new Map(all.map((each) => [each.name, each]));
}

const listing = (name: string, nodes: string) => `query List($first: Int, $after: String) {
  all: ${name}(first: $first, after: $after) { nodes { ${nodes} } ${PAGE_INFO} }
}`;

const KEYS = listing('providerKeys', 'id name');
const PRICES = listing(
  'prices',
  `model contextWindow inputPerMillion { nanos } outputPerMillion { nanos }
   cacheReadPerMillion { nanos } cacheWritePerMillion { nanos }`,
);
const POLICIES = listing('policies', 'id name newest { number document }');
const AGENTS = listing(
  'agents',
  'id name pinnedVersion policy { name } choices { version policy { name } }',
);
const WEBHOOKS = listing('webhooks', 'id url events description');

function readAll<T>(api: Api, document: string): Promise<T[]> {
  return readList(api, document, ({ all }: { all: Connection<T> }) => all);
}

type Amount = { readonly nanos: number };

interface ListedPrice {
  readonly model: string;
  readonly contextWindow: number | null;
  readonly inputPerMillion: Amount;
  readonly outputPerMillion: Amount;
  readonly cacheReadPerMillion: Amount | null;
  readonly cacheWritePerMillion: Amount | null;
}

async function readPrices(api: Api): Promise<PresentPrice[]> {
  const listed = await readAll<ListedPrice>(api, PRICES);
  return listed.map((price) => ({
    ...{ model: price.model, contextWindow: price.contextWindow },
    inputPerMillion: price.inputPerMillion.nanos,
    outputPerMillion: price.outputPerMillion.nanos,
    cacheReadPerMillion: price.cacheReadPerMillion?.nanos ?? null,
    cacheWritePerMillion: price.cacheWritePerMillion?.nanos ?? null,
  }));
}
