/** Names: each of a host's addresses is checked before a connection to any of them is opened. */

import { lookup as lookupAll } from 'node:dns/promises';
import { isIPv6, type LookupFunction } from 'node:net';
import { EgressError } from './exchange.ts';

const MAX_ADDRESSES = 16;

/** The refusal of a host for its address. */
export function forbiddenAddress(host: string): EgressError {
  const message = `${host} is, or resolves to, an address that is not public.`;
  return new EgressError('forbidden_address', message);
}

/** Every address of a name, by the system's resolver. */
export async function resolveName(host: string): Promise<string[]> {
  const found = await lookupAll(host, { all: true, verbatim: true });
  return found.map(({ address }) => address);
}

/** Runs when a connection is opened and at no other time: what was checked is what is dialled. */
export function makeCheckedLookup(
  resolve: (host: string) => Promise<string[]>,
  isPermitted: (address: string) => boolean,
): LookupFunction {
  return (host, options, callback) => {
    resolveChecked(host, resolve, isPermitted).then(
      (addresses) => {
        const [first = ''] = addresses;
        if (options.all) callback(null, addresses.map(withFamily));
        else callback(null, first, withFamily(first).family);
      },
      (error: NodeJS.ErrnoException) => callback(error, '', 0),
    );
  };
}

const withFamily = (address: string) => ({ address, family: isIPv6(address) ? 6 : 4 });

async function resolveChecked(
  host: string,
  resolve: (host: string) => Promise<string[]>,
  isPermitted: (address: string) => boolean,
): Promise<string[]> {
  const addresses = await resolve(host).catch((cause: unknown) => {
    throw new EgressError('unresolved', `${host} could not be resolved.`, { cause });
  });
  if (addresses.length === 0) throw new EgressError('unresolved', `${host} has no address.`);
  if (!addresses.every(isPermitted)) throw forbiddenAddress(host);
  return addresses.slice(0, MAX_ADDRESSES);
}
