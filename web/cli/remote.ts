/** The admin API over HTTP, with an admin token. */

import { setTimeout as sleep } from 'node:timers/promises';
import type { AuditFormat } from '../../functions/audit.ts';
import { inCidrs, LOOPBACK } from '../../schema/address.ts';
import { EXIT_FAILED, EXIT_USAGE, Failure } from './failure.ts';
import type { Transport } from './transport.ts';

/** Where the API is, and what opens it. */
export interface Remote {
  /** Without a slash at the end. */
  readonly url: string;
  readonly token: string;
}

const ADMIN_TOKEN = /^rg_adm_[A-Za-z0-9]{1,100}$/;
const DEFAULT_URL = 'http://127.0.0.1:8787';
const TIMEOUT_MS = 120_000;
/** A long file of configuration may take longer than a server lets one ask at once. */
const MAX_TRIES = 3;
const MAX_ANSWER_CHARS = 256 * 1024 * 1024;

/**
 * Reads `RUNGATE_TOKEN` and `RUNGATE_URL`.
 *
 * @returns undefined without an admin token: an agent's in the variable opens nothing here.
 * @throws {Failure} for a URL that the token must not be sent to.
 */
export function readRemote(env: Readonly<Record<string, string | undefined>>): Remote | undefined {
  const { RUNGATE_TOKEN: token = '', RUNGATE_URL: url } = env;
  if (!token.startsWith('rg_adm_')) return undefined;
  if (!ADMIN_TOKEN.test(token)) {
    throw new Failure(EXIT_USAGE, 'RUNGATE_TOKEN is not an admin token as Rungate writes them.');
  }
  return { token, url: readUrl(url || DEFAULT_URL) };
}

/** A token in plain text could be read by whoever is between. */
function readUrl(text: string): string {
  const wrong = (why: string) => new Failure(EXIT_USAGE, `RUNGATE_URL ${why}.`);
  if (!/^https?:\/\//.test(text) || !URL.canParse(text)) throw wrong('must be an https URL');
  const url = new URL(text);
  if (url.username !== '' || url.password !== '' || /[?#\s]/.test(text)) {
    throw wrong('must have no user name, password, query or fragment');
  }
  const isNear = url.hostname === 'localhost' || inCidrs(bare(url.hostname), LOOPBACK);
  if (url.protocol !== 'https:' && !isNear) {
    throw wrong('must be https: a token is sent in the clear to this host alone');
  }
  return `${url.origin}${url.pathname.replace(/\/+$/, '')}`;
}

const bare = (hostname: string) => hostname.replace(/^\[(.*)\]$/, '$1');

/** Opens the API of a server. */
export function openRemote(remote: Remote): Transport {
  return {
    isRemote: true,
    egressAllow: undefined,
    async send(query, variables) {
      const body = JSON.stringify({ query, variables });
      return await readAnswer(remote, await call(remote, '/graphql', { method: 'POST', body }));
    },
    readTrail: (format) => readTrail(remote, format),
    signLink: () => Promise.resolve(null),
  };
}

async function call({ url, token }: Remote, path: string, init: RequestInit): Promise<Response> {
  const headers = {
    authorization: `Bearer ${token}`,
    'content-type': 'application/json',
    accept: 'application/json',
  };
  for (let tries = 1; ; tries++) {
    // A document has to be answered in time; the trail may be as long as it is.
    const signal = init.method === 'POST' ? AbortSignal.timeout(TIMEOUT_MS) : null;
    const answered = fetch(`${url}${path}`, { ...init, headers, signal, redirect: 'manual' });
    const response = await answered.catch((error) => Promise.reject(unreachable(url, error)));
    const waitS = tries < MAX_TRIES ? askedToWaitS(response) : undefined;
    if (waitS === undefined) return response;
    await response.body?.cancel();
    await sleep(waitS * 1_000);
  }
}

/** How long to wait for a server that knows the token, but was asked too often by it. */
function askedToWaitS({ status, headers }: Response): number | undefined {
  const isOften = status === 429 && headers.get('ratelimit')?.startsWith('"admin-requests-');
  const text = headers.get('retry-after') ?? '';
  return isOften && /^\d{1,2}$/.test(text) ? Number(text) : undefined;
}

function unreachable(url: string, error: unknown): Failure {
  const { name, code } = error as { name?: string; code?: string };
  const why = name === 'TimeoutError' ? `no answer in ${TIMEOUT_MS / 1_000} s` : (code ?? name);
  return new Failure(EXIT_FAILED, `Rungate can't be reached at ${url} (${why}).`);
}

/** The answer as JSON; what is refused before GraphQL is told in Rungate's own sentence. */
async function readAnswer({ url }: Remote, response: Response): Promise<unknown> {
  checkStatus(url, response);
  const text = await readText(url, response);
  const answer = parseAnswer(text);
  if (answer?.data !== undefined || Array.isArray(answer?.errors)) return answer;
  const message = answer?.error?.message;
  throw new Failure(
    EXIT_FAILED,
    typeof message === 'string'
      ? message
      : `${url} does not answer as Rungate does (HTTP ${response.status}).`,
  );
}

/** To whom a redirect leads, the token is not sent. */
function checkStatus(url: string, { status }: Response): void {
  if (status < 300 || status > 399) return;
  throw new Failure(EXIT_FAILED, `${url} redirects: set RUNGATE_URL to where Rungate itself is.`);
}

interface Answer {
  readonly data?: unknown;
  readonly errors?: unknown;
  readonly error?: { readonly message?: unknown };
}

function parseAnswer(text: string): Answer | null {
  try {
    const answer: unknown = JSON.parse(text);
    return typeof answer === 'object' ? answer : null;
  } catch {
    return null;
  }
}

async function readText(url: string, { body }: Response): Promise<string> {
  const decoder = new TextDecoder();
  let text = '';
  for await (const chunk of readBytes(url, body)) {
    text += decoder.decode(chunk, { stream: true });
    if (text.length > MAX_ANSWER_CHARS) {
      throw new Failure(EXIT_FAILED, `${url} answers with more than can be taken in.`);
    }
  }
  return text + decoder.decode();
}

async function* readBytes(
  url: string,
  body: ReadableStream<Uint8Array> | null,
): AsyncGenerator<Uint8Array> {
  try {
    for await (const chunk of body ?? []) yield chunk;
  } catch (error) {
    throw unreachable(url, error);
  }
}

async function* readTrail(remote: Remote, format: AuditFormat): AsyncGenerator<Uint8Array> {
  const response = await call(remote, `/api/audit/export?format=${format}`, { method: 'GET' });
  if (!response.ok) await readAnswer(remote, response);
  yield* readBytes(remote.url, response.body);
}
