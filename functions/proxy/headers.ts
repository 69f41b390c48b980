/** Which headers pass in either direction; everything that identifies or routes is ours to set. */

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

/** What a caller may not pass on: credentials, accounts, cookies, and where it came from. */
const NOT_UPSTREAM = new Set([
  ...HOP_BY_HOP,
  'host',
  'expect',
  'cookie',
  'authorization',
  'x-api-key',
  'api-key',
  'x-goog-api-key',
  'openai-organization',
  'openai-project',
  'forwarded',
  'via',
  'x-real-ip',
  'true-client-ip',
  'cf-connecting-ip',
  'prefer',
]);

const NOT_UPSTREAM_PREFIXES = ['x-rungate-', 'x-forwarded-', 'cf-'];

/** What an upstream says to us, not to the caller. */
const NOT_DOWNSTREAM = new Set([
  ...HOP_BY_HOP,
  'set-cookie',
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

const NOT_DOWNSTREAM_PREFIXES = ['x-rungate-', 'access-control-', 'cf-'];

/** The headers that go upstream, credentials not yet among them. */
export function upstreamHeaders(headers: Headers): Headers {
  const sent = filtered(headers, NOT_UPSTREAM, NOT_UPSTREAM_PREFIXES);
  sent.set('accept-encoding', 'identity');
  return sent;
}

/** The upstream's headers that reach the caller. */
export function downstreamHeaders(headers: Headers): Headers {
  return filtered(headers, NOT_DOWNSTREAM, NOT_DOWNSTREAM_PREFIXES);
}

function filtered(headers: Headers, dropped: ReadonlySet<string>, prefixes: readonly string[]) {
  const named = connectionNames(headers.get('connection'));
  const kept = new Headers();
  headers.forEach((value, name) => {
    if (dropped.has(name) || named?.has(name)) return;
    if (prefixes.some((prefix) => name.startsWith(prefix))) return;
    kept.append(name, value);
  });
  return kept;
}

/** Headers that `Connection` names belong to this hop alone. */
function connectionNames(connection: string | null): Set<string> | undefined {
  if (!connection || connection === 'keep-alive') return undefined;
  return new Set(connection.toLowerCase().split(/\s*,\s*/));
}
