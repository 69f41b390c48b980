/** What is asked; the body is read once, strictly, and is the body that is sent. */

import { digest } from '../../db/seal.ts';
import { Refusal } from '../../schema/errors.ts';
import type { StrictBody } from '../../schema/json.ts';
import { nameFromBody, nameRun, type RunName } from '../../schema/rules/identity.ts';
import type { Endpoint } from '../providers/contract.ts';
import { findEndpoint } from '../providers/endpoints.ts';
import { refuseVariants } from '../providers/variants.ts';
import { type Caller, dialectOf } from './authenticate.ts';
import { readBody, strictBody } from './body.ts';

/** A call that has been read. */
export interface Call extends Caller {
  readonly path: string;
  readonly query: string;
  /** `undefined` for a route that Rungate doesn't forward; it is denied once the run is known. */
  readonly endpoint: Endpoint | undefined;
  /** The id in the path of a kept response or a model. */
  readonly resourceId: string | undefined;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly body: StrictBody | undefined;
  readonly requestDigest: string | null;
  readonly runName: RunName | undefined;
}

/** Bodies larger than this are refused, before and after decompression. */
const BODY_LIMITS = { maxEncodedBytes: 32 * 1024 * 1024, maxDecodedBytes: 64 * 1024 * 1024 };

const NO_BYTES = new Uint8Array(0);

/**
 * Reads the route, the body and the run's name.
 *
 * @throws {Refusal} `invalid_body`, `invalid_request`, `body_too_large`, `unavailable`.
 */
export async function readCall(caller: Caller): Promise<Call> {
  const { request, services } = caller;
  const { path, query, run } = splitUrl(request.url);
  const named = nameRun(request.headers, run && decodeRun(run), undefined);
  const found = findEndpoint(request.method, path, dialectOf(request));
  const endpoint = found?.endpoint;
  let bytes: Call['bytes'] = NO_BYTES;
  let body: StrictBody | undefined;
  try {
    refuseLong(request.headers);
    if (takesBody(endpoint)) {
      bytes = await readBody(request, BODY_LIMITS, services.stopping.signal);
      body = parseBody(bytes, endpoint);
    }
  } catch (error) {
    throw ofRun(error, named);
  }
  return extend(caller, {
    path,
    query,
    endpoint,
    resourceId: found?.params.id,
    bytes,
    body,
    requestDigest: body ? digest(bytes) : null,
    runName: named ?? (body && nameFromBody(body.value)),
  });
}

/** An error that, if it is a refusal and doesn't say so itself, tells the run that its caller named. */
export function ofRun(error: unknown, named: RunName | undefined): unknown {
  if (!named || !(error instanceof Refusal) || error.detail.runId !== undefined) return error;
  return new Refusal(error.code, error.message, { ...error.detail, runId: named.name });
}

/**
 * Adds to a call what a step has found out. The call itself grows: to copy some forty properties at
 * each step would cost more than most steps do. Whoever needs it as it was copies it before.
 */
export function extend<C extends object, F extends object>(call: C, found: F): C & F {
  return Object.assign(call, found);
}

/** Far above what any client sends, and below what servers behind us take. */
const MAX_HEADERS_CHARS = 32 * 1024;

function refuseLong(headers: Headers): void {
  let chars = 0;
  headers.forEach((value, name) => {
    chars += name.length + value.length;
  });
  if (chars <= MAX_HEADERS_CHARS) return;
  const message = `The headers of a call may have ${MAX_HEADERS_CHARS} characters in all.`;
  throw new Refusal('invalid_request', message, { field: 'headers', asked: chars });
}

/**
 * Splits a URL without re-encoding it: the path that is matched is the path that was sent. `run` is
 * the segment of `/r/{run}/…`, still encoded, and `path` what follows it.
 */
export function splitUrl(url: string): { path: string; query: string; run?: string } {
  const start = url.indexOf('/', url.indexOf('://') + 3);
  const mark = url.indexOf('?', start);
  const path = url.slice(start, mark < 0 ? undefined : mark);
  const query = mark < 0 ? '' : url.slice(mark);
  const match = /^\/r\/([^/]+)(\/.*)$/.exec(path);
  return match ? { path: match[2]!, query, run: match[1]! } : { path, query };
}

function decodeRun(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    throw new Refusal('invalid_request', 'The run in the path is not valid percent-encoding.', {
      field: 'path',
    });
  }
}

/** Cancelling a kept response is a POST that says everything in its path. */
function takesBody(endpoint: Endpoint | undefined): endpoint is Endpoint {
  return endpoint?.method === 'POST' && !endpoint.path.includes('{id}');
}

function parseBody(bytes: Uint8Array, endpoint: Endpoint): StrictBody {
  const body = strictBody(bytes, endpoint.readKeys);
  refuseVariants(endpoint, body.value);
  return body;
}
