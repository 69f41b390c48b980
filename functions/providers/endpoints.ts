/** The table of endpoints, and the way from a request line to its row. */

import type { Dialect } from '../../schema/errors.ts';
import { ANTHROPIC_ENDPOINTS } from './anthropic.ts';
import type { Endpoint } from './contract.ts';
import { OPENAI_ENDPOINTS } from './openai.ts';
import { RESPONSES_ENDPOINTS } from './responses.ts';

/** Every endpoint that is served; what has no row here is denied. */
export const ENDPOINTS: readonly Endpoint[] = [
  ...OPENAI_ENDPOINTS,
  ...RESPONSES_ENDPOINTS,
  ...ANTHROPIC_ENDPOINTS,
];

/** An endpoint and what the path said beyond its name. */
export interface Route {
  readonly endpoint: Endpoint;
  readonly params: { readonly id?: string };
}

/** Clients append their path to base URLs that end with and without `/v1`. */
const PREFIXES = ['', '/v1', '/v1/v1'] as const;
const MAX_PATH_LENGTH = 400;
const ID = /^(?!\.{1,2}$)[A-Za-z0-9._:-]{1,256}$/;

const exact = new Map<string, Route[]>();
for (const endpoint of ENDPOINTS.filter(({ path }) => !path.includes('{id}'))) {
  for (const prefix of PREFIXES) {
    const path = `${prefix}/${endpoint.path}`;
    exact.set(path, [...(exact.get(path) ?? []), { endpoint, params: {} }]);
  }
}

const withId = ENDPOINTS.filter(({ path }) => path.includes('{id}')).map((endpoint) => {
  const [before = '', after = ''] = endpoint.path.split('{id}');
  return { endpoint, before: `/${before}`, after };
});

/**
 * Finds the endpoint that a request names.
 *
 * Paths are compared as they stand: escapes, empty or dotted segments, a slash at the end and
 * everything else that two servers could read as two paths find nothing.
 *
 * @param path The path alone, such as `/v1/chat/completions`; with none, one or two `/v1`.
 * @param dialect Whose endpoint it is where both have one of that name, as with `/v1/models`.
 */
export function findEndpoint(
  method: string,
  path: string,
  dialect: Dialect = 'openai',
): Route | undefined {
  if (path.length > MAX_PATH_LENGTH) return undefined;
  const routes = exact.get(path) ?? findWithId(path);
  const found = routes.filter(({ endpoint }) => endpoint.method === method);
  return found.find(({ endpoint }) => endpoint.dialect === dialect) ?? found[0];
}

function findWithId(path: string): readonly Route[] {
  const bare = path.replace(/^(?:\/v1){1,2}(?=\/)/, '');
  const routes: Route[] = [];
  for (const { endpoint, before, after } of withId) {
    if (!bare.startsWith(before) || !bare.endsWith(after)) continue;
    const id = bare.slice(before.length, bare.length - after.length);
    if (ID.test(id)) routes.push({ endpoint, params: { id } });
  }
  return routes;
}

/**
 * The path of a call below the provider's base URL, without a slash in front.
 *
 * @param params As {@link findEndpoint} gave them.
 */
export function upstreamPath({ endpoint, params }: Route): string {
  return endpoint.path.replace('{id}', () => params.id ?? '');
}
