/** Addresses: which ones are public, what a CIDR range holds, and which hosts an operator allows. */
import ipaddr from 'ipaddr.js';

type Parsed = ReturnType<typeof ipaddr.parse>;

/** A range of addresses. The network is masked, and v4-mapped ranges are the IPv4 ones. */
export interface Cidr {
  readonly network: Parsed;
  /** Leading bits that an address must share: 0 to 32 for IPv4, 0 to 128 for IPv6. */
  readonly prefixBits: number;
}

/** Hosts that an operator lets Rungate reach although they are not public or not on https. */
export interface AllowList {
  /** `host` or `host:port`, as a URL writes them: lower case, punycode, IPv6 in brackets. */
  readonly hosts: ReadonlySet<string>;
  readonly cidrs: readonly Cidr[];
}

const MAX_LIST_ENTRIES = 1000;
const MAX_ENTRY_CHARS = 300;

/** Public by the registries, yet answered by the cloud's own host: Azure's WireServer. */
const METADATA_ADDRESSES = new Set(['168.63.129.16']);

/**
 * Whether an address is one that anybody on the internet may reach.
 *
 * Only unicast of the IANA registries counts: private, loopback, link-local, CGNAT, metadata,
 * multicast, documentation and reserved ranges don't, nor do the ranges that carry an IPv4 address
 * inside (v4-mapped, 6to4, NAT64, Teredo). Anything but four-part decimal IPv4 and IPv6 without a
 * zone is not public, whatever it would mean to a resolver.
 *
 * @param text An address without brackets and port.
 */
export function isPublicAddress(text: string): boolean {
  if (METADATA_ADDRESSES.has(text)) return false;
  const address = parseStrict(text);
  if (address === undefined || address.range() !== 'unicast') return false;
  return address instanceof ipaddr.IPv4 || isGlobalUnicast(address);
}

/** RFC 4291 section 2.4: of IPv6, the registries have given out 2000::/3 alone. */
function isGlobalUnicast(address: InstanceType<typeof ipaddr.IPv6>): boolean {
  return ((address.parts[0] ?? 0) & 0xe000) === 0x2000 && address.zoneId === undefined;
}

/**
 * The one spelling of an address: dotted IPv4 (v4-mapped too), RFC 5952 IPv6 without its zone.
 *
 * @param text An address, possibly in brackets.
 * @returns undefined when it is not an address.
 */
export function canonicalAddress(text: string): string | undefined {
  const address = parseCanonical(unwrap(text));
  return address === undefined ? undefined : print(address);
}

/**
 * What a limit per address counts by: an IPv4 address, or the /64 that a subscriber has of IPv6.
 *
 * @param address As {@link canonicalAddress} gives it.
 */
export function addressBlock(address: string): string {
  if (!address.includes(':')) return address;
  return formatCidr(maskCidr(ipaddr.parse(address), 64));
}

/**
 * Reads a range such as `10.0.0.0/8`, `2001:db8::/32`, or a lone address; bits after the prefix
 * are dropped.
 *
 * @throws {RangeError} for anything else.
 */
export function parseCidr(text: string): Cidr {
  const slash = text.indexOf('/');
  const address = parseStrict(slash < 0 ? text : text.slice(0, slash));
  const written = slash < 0 ? undefined : text.slice(slash + 1);
  if (address === undefined || (written !== undefined && !/^(0|[1-9]\d{0,2})$/.test(written))) {
    throw new RangeError(`not an address range such as 10.0.0.0/8: ${text.slice(0, 60)}`);
  }
  const bits = address.toByteArray().length * 8;
  const prefixBits = written === undefined ? bits : Number(written);
  if (prefixBits > bits) {
    throw new RangeError(`a prefix of ${prefixBits} bits is too long for ${text.slice(0, 60)}`);
  }
  return maskCidr(address, prefixBits);
}

/** Writes a range as {@link parseCidr} reads it. */
export function formatCidr(cidr: Cidr): string {
  return `${print(cidr.network)}/${cidr.prefixBits}`;
}

/**
 * Whether any of the ranges holds an address.
 *
 * @param text An address in any spelling that {@link canonicalAddress} takes; a v4-mapped address
 *   is looked for in IPv4 ranges. What is not an address is in no range.
 */
export function inCidrs(text: string, cidrs: readonly Cidr[]): boolean {
  const address = cidrs.length === 0 ? undefined : parseCanonical(unwrap(text));
  if (address === undefined) return false;
  return cidrs.some(
    ({ network, prefixBits }) =>
      network.kind() === address.kind() && address.match(network, prefixBits),
  );
}

/**
 * Reads a comma list of hosts, `host:port`, addresses and ranges; spaces around entries are free.
 *
 * @throws {RangeError} that names the first entry that is none of these.
 */
export function parseAllowList(text: string): AllowList {
  const hosts = new Set<string>();
  const cidrs: Cidr[] = [];
  for (const entry of splitList(text)) {
    if (entry.includes('/') || canonicalAddress(entry)) cidrs.push(parseCidr(unwrap(entry)));
    else hosts.add(parseHost(entry));
  }
  return { hosts, cidrs };
}

/**
 * Reads a comma list of ranges.
 *
 * @throws {RangeError} that names the first entry that is not one.
 */
export function parseCidrList(text: string): Cidr[] {
  return splitList(text).map(parseCidr);
}

/** The addresses of the host itself. */
export const LOOPBACK: readonly Cidr[] = parseCidrList('127.0.0.0/8, ::1');

/**
 * Whether the operator allows this very URL's host: by its name, by name and port, or because the
 * host is an address in an allowed range. A name that only resolves into a range is not allowed.
 */
export function isAllowedHost(url: URL, allow: AllowList): boolean {
  const port = url.port || (url.protocol === 'http:' ? '80' : '443');
  return (
    allow.hosts.has(url.hostname) ||
    allow.hosts.has(`${url.hostname}:${port}`) ||
    inCidrs(url.hostname, allow.cidrs)
  );
}

/**
 * What is wrong with a URL that a user gives for Rungate to call, as far as it can be told without
 * a look-up: it must be https and public, or the operator must allow its host.
 *
 * @returns undefined for one that may be called, else what it must be.
 */
export function judgeUrl(text: string, allow: AllowList): string | undefined {
  if (!/^https?:\/\/[^/?#\s\\]/.test(text) || !URL.canParse(text)) return 'must be an https URL';
  const url = new URL(text);
  if (url.username !== '' || url.password !== '') return 'must not carry a user name or password';
  if (/[#\s\\]/.test(text)) return 'must not have a fragment, a backslash or spaces';
  if (isAllowedHost(url, allow)) return undefined;
  const address = literalAddress(url);
  const isOpen = url.protocol === 'https:' && (address === undefined || isPublicAddress(address));
  return isOpen ? undefined : 'must be https and public, unless RUNGATE_EGRESS_ALLOW has its host';
}

/** The host of a URL when it is an address literal, without brackets; else undefined. */
export function literalAddress(url: URL): string | undefined {
  const { hostname } = url;
  if (hostname.startsWith('[')) return unwrap(hostname);
  return parseStrict(hostname) === undefined ? undefined : hostname;
}

function splitList(text: string): string[] {
  const entries = text.split(',').map((entry) => entry.trim());
  if (entries.length > MAX_LIST_ENTRIES) {
    throw new RangeError(`more than ${MAX_LIST_ENTRIES} entries`);
  }
  return entries.filter((entry) => entry !== '');
}

const HOST_ENTRY = /^(?<host>[^\s/?#@\\*:[\]]+|\[[\da-fA-F:.]+\])(?::(?<port>\d{1,5}))?$/;

/** The URL parser decides how a host is written, so that both sides of a comparison agree. */
function parseHost(entry: string): string {
  const { host, port } = HOST_ENTRY.exec(entry)?.groups ?? {};
  const url = `http://${host}/`;
  const isLong = entry.length > MAX_ENTRY_CHARS;
  if (host === undefined || isLong || !URL.canParse(url) || Number(port ?? 0) > 65535) {
    throw new RangeError(`not a host, host:port or address range: ${entry.slice(0, 60)}`);
  }
  const { hostname } = new URL(url);
  return port === undefined ? hostname : `${hostname}:${Number(port)}`;
}

function parseStrict(text: string): Parsed | undefined {
  if (text.includes(':')) return ipaddr.IPv6.isValid(text) ? ipaddr.IPv6.parse(text) : undefined;
  return ipaddr.IPv4.isValidFourPartDecimal(text) ? ipaddr.IPv4.parse(text) : undefined;
}

function parseCanonical(text: string): Parsed | undefined {
  const address = parseStrict(text);
  const mapped = address instanceof ipaddr.IPv6 && address.isIPv4MappedAddress();
  return mapped ? address.toIPv4Address() : address;
}

function maskCidr(address: Parsed, prefixBits: number): Cidr {
  const bytes = address.toByteArray().map((byte, at) => {
    const kept = Math.min(8, Math.max(0, prefixBits - at * 8));
    return byte & (0xff << (8 - kept)) & 0xff;
  });
  const network = ipaddr.fromByteArray(bytes);
  const mapped = network instanceof ipaddr.IPv6 && network.isIPv4MappedAddress();
  return mapped && prefixBits >= 96
    ? { network: network.toIPv4Address(), prefixBits: prefixBits - 96 }
    : { network, prefixBits };
}

/** ipaddr.js prints a zone and, for v4-mapped, hexadecimal: neither compares well. */
function print(address: Parsed): string {
  if (address instanceof ipaddr.IPv4) return address.toString();
  return new ipaddr.IPv6(address.parts).toRFC5952String();
}

function unwrap(text: string): string {
  return text.startsWith('[') && text.endsWith(']') ? text.slice(1, -1) : text;
}
