/** Egress: the one function through which anything leaves for a host that a user gave. */

import {
  type AllowList,
  inCidrs,
  isAllowedHost,
  isPublicAddress,
  literalAddress,
} from '../schema/address.ts';
import { PinnedAgent } from './egress/agent.ts';
import { type Host, sendDirect } from './egress/direct.ts';
import { type Egress, EgressError } from './egress/exchange.ts';
import { forbiddenAddress, makeCheckedLookup, resolveName } from './egress/names.ts';
import { sendPinned } from './egress/pinned.ts';

export {
  type Egress,
  EgressError,
  type EgressErrorCode,
  type EgressInit,
  type EgressResponse,
  NOT_SENT,
} from './egress/exchange.ts';

/** How an egress is made. */
export interface EgressOptions {
  readonly allow: AllowList;
  /** Every address of a name; the system's resolver by default. */
  readonly resolve?: (host: string) => Promise<string[]>;
  /** PEM certificates to trust in place of the runtime's, for names that are not allowed ones. */
  readonly ca?: string;
  /** The most that a compressed body may decode to. */
  readonly maxDecodedBytes?: number;
}

const MAX_DECODED_BYTES = 64 * 1024 * 1024;
const MAX_REMEMBERED_ORIGINS = 1000;

/**
 * Makes the function through which everything leaves for a user-given host.
 *
 * Hosts that the operator allows by name, or as a literal in an allowed range, are called with
 * `fetch`, over http too. All others need https, and their connection is opened to an address that
 * was checked: every address of the name must be public or in an allowed range.
 */
export function makeEgress(options: EgressOptions): Egress {
  const { allow, resolve = resolveName, maxDecodedBytes = MAX_DECODED_BYTES } = options;
  const findAllowed = rememberAllowed(allow);
  const isPermitted = (address: string) =>
    isPublicAddress(address) || inCidrs(address, allow.cidrs);
  const lookup = makeCheckedLookup(resolve, isPermitted);
  const agent = new PinnedAgent(lookup, options.ca);
  const sendChecked: Egress = async (url, init) => {
    checkUrl(url, isPermitted);
    return sendPinned(url, init, agent, maxDecodedBytes);
  };
  return (url, init) => {
    const host = findAllowed(url);
    return host ? sendDirect(url, init, maxDecodedBytes, host) : sendChecked(url, init);
  };
}

/** Allowed origins are few and their answer never changes, so that a call costs one map look-up. */
function rememberAllowed(allow: AllowList): (url: URL) => Host | undefined {
  const hosts = new Map<string, Host>();
  return (url) => {
    const { origin } = url;
    if (hasUser(url)) return undefined;
    const known = hosts.get(origin);
    if (known) return known;
    const isWeb = url.protocol === 'https:' || url.protocol === 'http:';
    if (!isWeb || !isAllowedHost(url, allow)) return undefined;
    const host: Host = { answeredAt: Number.NEGATIVE_INFINITY };
    if (hosts.size < MAX_REMEMBERED_ORIGINS) hosts.set(origin, host);
    return host;
  };
}

function hasUser({ username, password }: URL): boolean {
  return username !== '' || password !== '';
}

function checkUrl(url: URL, isPermitted: (address: string) => boolean): void {
  if (hasUser(url)) {
    throw new EgressError('forbidden_url', 'A URL must not carry a user name or password.');
  }
  if (url.protocol !== 'https:') {
    const message = `${url.protocol}//${url.host} must be https, or allowed by the operator by name.`;
    throw new EgressError('forbidden_url', message);
  }
  const literal = literalAddress(url);
  if (literal !== undefined && !isPermitted(literal)) throw forbiddenAddress(url.hostname);
}
