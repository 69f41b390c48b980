/** Which headers pass in either direction; everything that identifies or routes is ours to set. */

import { Memo } from '../../db/memo.ts';
import { holdsToken } from '../../schema/token.ts';

/** Hop-by-hop headers (RFC 9110, section 7.6.1) and those that frame or encode a message. */
const HOP_BY_HOP = [
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  'content-length',
  'content-encoding',
  'accept-encoding',
];

const CREDENTIALS = ['authorization', 'x-api-key', 'api-key', 'x-goog-api-key'];

/** What a caller may not pass on: credentials, accounts, cookies, and where it came from. */
const NOT_UPSTREAM = new Set([
  ...HOP_BY_HOP,
  'host',
  'expect',
  'cookie',
  'cookie2',
  ...CREDENTIALS,
  'openai-organization',
  'openai-project',
  'forwarded',
  'via',
  'x-real-ip',
  'x-remote-ip',
  'x-remote-addr',
  'x-originating-ip',
  'x-client-ip',
  'client-ip',
  'true-client-ip',
  'x-cluster-client-ip',
  'fastly-client-ip',
  'fly-client-ip',
  'x-azure-clientip',
  'x-azure-socketip',
  'prefer',
  // By these, hosts would serve another route or another host than the one decided on.
  'x-http-method',
  'x-http-method-override',
  'x-method-override',
  'x-rewrite-url',
  'x-host',
]);

/** Gateways take the upstream's host and credential from headers of their own. */
const GATEWAY_PREFIXES = ['x-portkey-', 'helicone-', 'x-litellm-'];

/** What proxies add of where a request came from, and of where it was meant to go. */
const PROXY_PREFIXES = ['x-forwarded', 'x-original-', 'x-envoy-', 'cf-'];

const NOT_UPSTREAM_PREFIXES = ['x-rungate-', ...PROXY_PREFIXES, ...GATEWAY_PREFIXES];

/** What an upstream says to us, not to the caller, nor to a proxy or a browser in between. */
const NOT_DOWNSTREAM = new Set([
  ...HOP_BY_HOP,
  ...CREDENTIALS,
  'set-cookie',
  'set-cookie2',
  'clear-site-data',
  'refresh',
  // By these, proxies answer with a file or a page of their own in place of the body.
  'x-sendfile',
  'x-lighttpd-send-file',
  'x-lighttpd-send-tempfile',
  'x-litespeed-location',
  'x-reproxy-url',
  'x-reproxy-file',
  'x-request-id',
  'request-id',
  'openai-organization',
  'openai-project',
  'anthropic-organization-id',
  'strict-transport-security',
  'alt-svc',
  'location',
  'www-authenticate',
  'x-should-retry',
]);

const NOT_DOWNSTREAM_PREFIXES = ['x-rungate-', 'x-accel-', 'access-control-', 'cf-'];

const MAX_REMEMBERED_NAMES = 1_000;

/** Whether a header passes, by its name; the same few come with every call. */
function passing(
  dropped: ReadonlySet<string>,
  prefixes: readonly string[],
): (name: string) => boolean {
  const known = new Memo<boolean>(MAX_REMEMBERED_NAMES);
  const passes = (name: string) =>
    !dropped.has(name) && !prefixes.some((prefix) => name.startsWith(prefix));
  return (name) => known.get(name) ?? known.set(name, passes(name));
}

const passesUpstream = passing(NOT_UPSTREAM, NOT_UPSTREAM_PREFIXES);
const passesDownstream = passing(NOT_DOWNSTREAM, NOT_DOWNSTREAM_PREFIXES);

/** The headers that go upstream, credentials not yet among them; none that repeats a token of ours. */
export function upstreamHeaders(headers: Headers): Record<string, string> {
  const sent = filtered(headers, passesUpstream);
  for (const name in sent) if (holdsToken(sent[name]!)) delete sent[name];
  sent['accept-encoding'] = 'identity';
  return sent;
}

/** A shorter credential could stand anywhere by chance. */
const MIN_SECRET_CHARS = 8;

/** The upstream's headers that reach the caller; none that repeats the provider's credential. */
export function downstreamHeaders(headers: Headers, secret: string): Record<string, string> {
  const passed = filtered(headers, passesDownstream);
  for (const name in passed) if (holds(passed[name]!, secret)) delete passed[name];
  return passed;
}

/**
 * An error's body without the provider's credential: some upstreams quote what they were sent, and
 * it is not the agent's to read.
 */
export function withoutSecret(
  bytes: Uint8Array<ArrayBuffer>,
  secret: string,
): Uint8Array<ArrayBuffer> {
  const text = new TextDecoder().decode(bytes);
  if (!holds(text, secret)) return bytes;
  return new TextEncoder().encode(text.replaceAll(secret, '[redacted]'));
}

/** The upstream's own id of a request; undefined for one that repeats the provider's credential. */
export function upstreamRequestIdOf(headers: Headers, secret: string): string | undefined {
  const id = headers.get('x-request-id') ?? headers.get('request-id');
  return id === null || holds(id, secret) ? undefined : id;
}

/** Whether a text repeats a credential; one of a few characters is never found. */
function holds(text: string, secret: string): boolean {
  return secret.length >= MIN_SECRET_CHARS && text.includes(secret);
}

/** A plain object: making a `Headers` of each header costs several times as much. */
function filtered(headers: Headers, passes: (name: string) => boolean): Record<string, string> {
  const named = connectionNames(headers.get('connection'));
  const kept: Record<string, string> = Object.create(null);
  headers.forEach((value, name) => {
    if (passes(name) && !named?.has(name)) kept[name] = value;
  });
  return kept;
}

/** Headers that `Connection` names belong to this hop alone. */
function connectionNames(connection: string | null): Set<string> | undefined {
  if (!connection || connection === 'keep-alive') return undefined;
  return new Set(connection.toLowerCase().split(/\s*,\s*/));
}
