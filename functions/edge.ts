/** The edge: transport, and the headers that every response carries. */

import { canonicalAddress, inCidrs, parseCidrList } from '../schema/address.ts';
import type { Services } from './services.ts';

/** What is known of the connection that a request came by. */
export interface Connection {
  /** The socket's remote address; absent where the host does not tell. */
  readonly address?: string | undefined;
}

/** Answers a request. */
export type Fetch = (request: Request, connection: Connection) => Response | Promise<Response>;

const LOOPBACK = parseCidrList('127.0.0.0/8, ::1');

const HEADERS = Object.entries({
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
  'referrer-policy': 'strict-origin-when-cross-origin',
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
  'permissions-policy': 'camera=(), geolocation=(), microphone=(), payment=(), usb=()',
  'strict-transport-security': 'max-age=31536000; includeSubDomains',
});

/**
 * Answers only what came over a transport nobody else can read: TLS before a trusted proxy, or the
 * loopback. Anything else is redirected (308) to the public URL, or refused.
 */
export function secure(services: Services, answer: Fetch): Fetch {
  return async (request, connection) => {
    const response = redirect(services, request, connection) ?? (await answer(request, connection));
    for (const [name, value] of HEADERS) response.headers.set(name, value);
    return response;
  };
}

function redirect(
  { config }: Services,
  request: Request,
  { address }: Connection,
): Response | undefined {
  if (address === undefined || isPrivate(config.trustedProxies, request, address)) return undefined;
  const isSafe = request.method === 'GET' || request.method === 'HEAD';
  if (isSafe && config.publicUrl?.startsWith('https:')) {
    const { pathname, search } = new URL(request.url);
    const location = `${config.publicUrl}${pathname}${search}`;
    return new Response(null, { status: 308, headers: { location } });
  }
  const message =
    'Rungate answers over https only; a token sent over plain http must be rotated. Behind a proxy that ends TLS, set RUNGATE_TRUSTED_PROXIES.';
  return Response.json({ error: { type: 'permission_error', message } }, { status: 403 });
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
