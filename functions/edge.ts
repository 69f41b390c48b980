/** The edge: transport, and the headers that every response carries. */

import { canonicalAddress, inCidrs, LOOPBACK } from '../schema/address.ts';
import { clientAddress } from './config.ts';
import type { Services } from './services.ts';

/** What is known of the connection that a request came by. */
export interface Connection {
  /** The socket's remote address; absent where the host does not tell. */
  readonly address?: string | undefined;
  /** Tells the host that the answer may be long in coming, once the request has been read. */
  readonly wait?: () => void;
}

/** Answers a request. */
export type Fetch = (request: Request, connection: Connection) => Response | Promise<Response>;

const HEADERS: Readonly<Record<string, string>> = {
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
  'referrer-policy': 'strict-origin-when-cross-origin',
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
  'permissions-policy': 'camera=(), geolocation=(), microphone=(), payment=(), usb=()',
  'strict-transport-security': 'max-age=31536000; includeSubDomains',
};

/** Checked once: a plain object would have each response's headers checked again. */
const CHECKED_HEADERS = new Headers(HEADERS);
const EDGE_NAMES: ReadonlySet<string> = new Set(Object.keys(HEADERS));

/** Makes a response with the headers of the edge; every response is made here. */
export function respond(
  body: BodyInit | null,
  status: number,
  headers: Readonly<Record<string, string>> = {},
): Response {
  const large = largeBytes(body);
  const init = { status, headers: CHECKED_HEADERS };
  const response = new Response(large ? inOneChunk(large) : body, init);
  const sent = response.headers;
  for (const name in headers) if (!EDGE_NAMES.has(name)) sent.set(name, headers[name]!);
  if (large) sent.set('content-length', String(large.length));
  return response;
}

/**
 * From this length on, in bytes, Bun hands each part of a response's head to the system by itself:
 * some fifty times for one response, which takes longer than governing it. The head of a stream it
 * hands over at once. Bun sends a stream in chunks and never tells its length; other runtimes do.
 */
const LARGE_BYTES = 15 * 1024;

/** Text is large by its characters: it is rarely so much longer in bytes. */
function largeBytes(body: BodyInit | null): Uint8Array | undefined {
  const isSized = typeof body === 'string' || body instanceof Uint8Array;
  if (!isSized || body.length < LARGE_BYTES) return undefined;
  return typeof body === 'string' ? encoder.encode(body) : body;
}

const encoder = new TextEncoder();

function inOneChunk(bytes: Uint8Array): ReadableStream<Uint8Array> {
  return new ReadableStream({
    pull(controller) {
      controller.enqueue(bytes);
      controller.close();
    },
  });
}

/** Makes a response of JSON; see {@link respond}. */
export function respondJson(
  value: object,
  status = 200,
  headers: Readonly<Record<string, string>> = {},
): Response {
  return respond(JSON.stringify(value), status, { ...headers, 'content-type': 'application/json' });
}

/**
 * Answers only what came over a transport nobody else can read: TLS before a trusted proxy, or the
 * loopback; and probes for health. Anything else is redirected (308) to the public URL, or refused.
 */
export function secure(services: Services, answer: Fetch): Fetch {
  return (received, connection) => {
    const request = probeOf(received) ?? received;
    sockets.set(request, connection.address);
    return (
      misaddressed(request) ??
      redirect(services, request, connection) ??
      answer(request, connection)
    );
  };
}

/** A probe that names no host, as those of HTTP/1.0 do, has a target without one for its URL. */
function probeOf({ method, url, headers }: Request): Request | undefined {
  const isProbing = url === HEALTH && isSafe(method) && !headers.get('host');
  return isProbing ? new Request(`http://localhost${HEALTH}`, { method }) : undefined;
}

const HEALTH = '/healthz';

/** Of the methods that change nothing (RFC 9110, 9.2.1) those that are served here. */
const isSafe = (method: string): boolean => method === 'GET' || method === 'HEAD';

/** The socket's address of each request that is being answered. */
const sockets = new WeakMap<Request, string | undefined>();

/**
 * The address that a request came from: its socket's, or what proxies that are configured tell.
 *
 * @returns the canonical address; `undefined` where the host does not tell.
 */
export function addressOf({ config }: Services, request: Request): string | undefined {
  const socket = sockets.get(request);
  return socket && clientAddress(socket, request.headers, config.trustedProxies);
}

/** A host and perhaps a port, as RFC 9110, 7.2 has them, and nothing that a path could begin with. */
const HOST = /^(?:\[[\da-f:.]+\]|[\w.-]+)(?::\d{0,5})?$/i;

/** A `Host` that is none leaves a URL that two readers could read as two paths (RFC 9112, 3.2). */
function misaddressed(request: Request): Response | undefined {
  if (URL.canParse(request.url) && HOST.test(request.headers.get('host') ?? 'none')) {
    return undefined;
  }
  const error = { type: 'invalid_request_error', message: 'The Host header names no host.' };
  return respondJson({ error }, 400);
}

function redirect(
  { config }: Services,
  request: Request,
  { address }: Connection,
): Response | undefined {
  if (address === undefined || isPrivate(config.trustedProxies, request, address)) return undefined;
  if (isProbe(request)) return undefined;
  if (isSafe(request.method) && config.publicUrl?.startsWith('https:')) {
    const { pathname, search } = new URL(request.url);
    const location = `${config.publicUrl}${pathname}${search}`;
    return respond(null, 308, { location });
  }
  const message =
    'Rungate answers over https only; a token sent over plain http must be rotated. Behind a proxy that ends TLS, set RUNGATE_TRUSTED_PROXIES.';
  return respondJson({ error: { type: 'permission_error', message } }, 403);
}

/** Probes come from anywhere and speak plain http; they bring nothing, and are told nothing else. */
function isProbe({ method, url }: Request): boolean {
  return isSafe(method) && new URL(url).pathname === HEALTH;
}

function isPrivate(
  trustedProxies: Services['config']['trustedProxies'],
  request: Request,
  socketAddress: string,
): boolean {
  if (socketAddress === '127.0.0.1' && trustedProxies.length === 0) return true;
  const address = canonicalAddress(socketAddress);
  if (address === undefined) return false;
  const forwarded = request.headers.get('x-forwarded-proto');
  if (inCidrs(address, trustedProxies) && forwarded !== null) return forwarded === 'https';
  return inCidrs(address, LOOPBACK);
}
