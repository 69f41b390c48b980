/**
 * A provider for tests: the built-in upstream behind real HTTP, real credentials and scripted
 * faults. `bun tests/upstream.ts --port N` runs it alone.
 */

import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gzipSync } from 'node:zlib';
import { demo } from '../functions/demo.ts';
import type { Dialect } from '../schema/errors.ts';

/** The credential that the upstream accepts unless told otherwise. */
export const UPSTREAM_KEY = 'sk-upstream';

/** A call may carry its script as JSON in this header. */
export const SCRIPT_HEADER = 'x-upstream-script';

/**
 * How one call is answered; everything is optional and combines. A call takes the script of its
 * `x-upstream-script` header, else of its model (`demo-small~NAME`, see {@link PRESETS}), else the
 * next of `upstream.script(…)`, else none.
 */
export interface Script {
  /** Answer with this error in the provider's format. */
  error?: 400 | 401 | 403 | 404 | 429 | 500 | 502 | 503 | 529;
  retryAfterS?: number;
  /** Answer 302 to this location. */
  redirect?: string;
  status?: number;
  headers?: Record<string, string>;
  /** Send this instead of a well-formed answer: a whole body, or raw chunks of a stream. */
  body?: string;
  chunks?: string[];
  /** The model that the answer names. */
  model?: string;
  /** Merged into every usage of the answer; `null` removes it. */
  usage?: Record<string, unknown> | null;
  /** Merged into the usage of `message_start` in place of `usage`. */
  startUsage?: Record<string, unknown>;
  /** Source text that stands where usage would: `{"prompt_tokens":NaN}`. */
  rawUsage?: string;
  /** Send the first event that carries text this often; `endless` repeats it until the end. */
  repeat?: number;
  endless?: boolean;
  /** Comments, `id`, `retry` and an event of an unknown type before each known one. */
  noise?: boolean;
  /** Lines of the stream end with CR LF. */
  crlf?: boolean;
  gzip?: boolean;
  delayMs?: number;
  chunkDelayMs?: number;
  /** Cut the body into chunks of so many bytes, characters divided. */
  chunkBytes?: number;
  /** Destroy the socket, end cleanly, or fall silent after so many bytes or chunks of the body. */
  breakAfterBytes?: number;
  breakAfterChunks?: number;
  endAfterChunks?: number;
  stallAfterChunks?: number;
  /** Let nothing but the end of the connection tell that the body ends. */
  isUnframed?: boolean;
  /** Destroy the socket after the body's last chunk. */
  breaksLate?: boolean;
  /** Keep the connection open after the body's last chunk, or go on with comments without end. */
  lingers?: boolean | 'noisily';
  /** Never answer (`headers`), or destroy the socket without an answer (`socket`). */
  stall?: 'headers' | 'socket';
}

/** Scripts by the name that a model may end with. */
const PRESETS: Readonly<Record<string, Script>> = {
  slow: { chunkDelayMs: 50 },
  break: { breakAfterChunks: 3 },
  cut: { endAfterChunks: 3 },
  endless: { endless: true, chunkDelayMs: 10 },
  stall: { stallAfterChunks: 2 },
  silent: { stall: 'headers' },
  overloaded: { error: 529 },
  limited: { error: 429, retryAfterS: 1 },
  failing: { error: 500 },
  unmetered: { usage: null },
};

/** How a call ended: answered to the end, left by the caller, or broken off by its script. */
export type Outcome = 'finished' | 'cancelled' | 'broken';

/** One call as the upstream received it. */
export interface Received {
  readonly method: string;
  /** Path and query. */
  readonly path: string;
  /** Names and values as sent, in their order and case. */
  readonly headers: readonly (readonly [name: string, value: string])[];
  readonly body: Uint8Array;
  /** Bytes of the answer's body that were handed to the socket. */
  sentBytes: number;
  /** `performance.now()` when the caller left before the end. */
  cancelledAtMs: number | undefined;
  readonly outcome: Promise<Outcome>;
  header(name: string): string | undefined;
  text(): string;
  json(): Record<string, unknown>;
}

/** A running upstream. */
export interface Upstream {
  /** `http://127.0.0.1:PORT`, without `/v1`. */
  readonly url: string;
  readonly requests: Received[];
  /** Queues a script for the next call, or for as many as said. */
  script(script: Script, times?: number): void;
  /** Drops the scripts that no call has taken. */
  unscript(): void;
  /** The call of this index, when it has arrived whole. */
  received(index: number): Promise<Received>;
  stop(): Promise<void>;
}

interface Options {
  port?: number;
  keys?: readonly string[];
  /** Whether calls are kept in `requests`. */
  record?: boolean;
}

/** What the calls of one upstream share. */
interface State {
  readonly keys: readonly string[];
  readonly queue: Script[];
  readonly stored: Map<string, Stored>;
  serial: number;
}

/** Responses that are kept at most; the oldest goes first. */
const MAX_STORED = 1000;

/** A response of the Responses API that can be fetched again. */
interface Stored {
  readonly members: Record<string, unknown>;
  /** The finished response, as JSON and as events. */
  readonly whole: string;
  readonly events: string;
  /** How many fetches still see it unfinished. */
  pending: number;
}

interface Answer {
  readonly status: number;
  readonly headers: Record<string, string>;
  readonly chunks: Iterable<Uint8Array>;
  /** The whole length where it is known; a stream has none. */
  readonly lengthBytes?: number;
}

/** Starts an upstream on a free port of the loopback interface. */
export async function startUpstream(options: Options = {}): Promise<Upstream> {
  const { port = 0, keys = [UPSTREAM_KEY], record = true } = options;
  const state: State = { keys, queue: [], stored: new Map(), serial: 0 };
  const requests: Received[] = [];
  const arrivals = new EventTarget();
  const server = createServer((incoming, outgoing) => {
    receive(incoming, outgoing).then((received) => {
      if (record) requests.push(received);
      arrivals.dispatchEvent(new Event('request'));
      return serve(received, outgoing, state);
    });
  });
  await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    script: (script, times = 1) => {
      for (let left = times; left > 0; left--) state.queue.push(script);
    },
    unscript: () => {
      state.queue.length = 0;
    },
    received: (index) => nth(requests, index, arrivals),
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function nth(requests: readonly Received[], index: number, arrivals: EventTarget) {
  return new Promise<Received>((resolve) => {
    const look = () => {
      const received = requests[index];
      if (!received) return;
      arrivals.removeEventListener('request', look);
      resolve(received);
    };
    arrivals.addEventListener('request', look);
    look();
  });
}

async function receive(incoming: IncomingMessage, outgoing: ServerResponse): Promise<Received> {
  const { promise: outcome, resolve } = Promise.withResolvers<Outcome>();
  const chunks: Uint8Array[] = [];
  outgoing.on('close', () => {
    if (outgoing.writableFinished) return resolve('finished');
    received.cancelledAtMs = broken.has(outgoing) ? undefined : performance.now();
    resolve(broken.has(outgoing) ? 'broken' : 'cancelled');
  });
  const { method = '', url: path = '', rawHeaders } = incoming;
  const headers = Array.from({ length: rawHeaders.length / 2 }, (_, at) => {
    return [rawHeaders[2 * at] ?? '', rawHeaders[2 * at + 1] ?? ''] as const;
  });
  const body = () => Buffer.concat(chunks);
  const received: Received = {
    ...{ method, path, headers, sentBytes: 0, cancelledAtMs: undefined, outcome },
    get body() {
      return body();
    },
    header: (name) => headers.find(([each]) => each.toLowerCase() === name.toLowerCase())?.[1],
    text: () => body().toString('utf8'),
    json: () => JSON.parse(body().toString('utf8') || '{}'),
  };
  await new Promise<void>((done) => {
    incoming.on('data', (chunk: Uint8Array) => chunks.push(chunk));
    incoming.on('end', done).on('close', done);
  });
  return received;
}

/** Answers whose socket the script destroyed. */
const broken = new WeakSet<ServerResponse>();

/** Bun's `fetch` drops what it has not yet delivered when a connection ends abnormally. */
const LINGER_MS = 20;

async function destroy(outgoing: ServerResponse): Promise<void> {
  await pause(LINGER_MS, outgoing);
  if (!outgoing.destroyed) broken.add(outgoing);
  outgoing.socket?.destroy();
}

async function serve(received: Received, outgoing: ServerResponse, state: State): Promise<void> {
  const script = scriptOf(received, state);
  await pause(script.delayMs, outgoing);
  if (script.stall === 'socket') await destroy(outgoing);
  if (script.stall || outgoing.destroyed) return;
  const answer = await pack(await answerTo(received, script, state), script);
  const length = script.isUnframed ? undefined : answer.lengthBytes;
  if (script.isUnframed) Object.assign(outgoing, UNFRAMED);
  outgoing.writeHead(script.status ?? answer.status, {
    ...answer.headers,
    ...(length !== undefined && { 'content-length': String(length) }),
    ...script.headers,
  });
  outgoing.flushHeaders();
  await send(answer.chunks, script, received, outgoing);
}

function scriptOf(received: Received, state: State): Script {
  const given = received.header(SCRIPT_HEADER);
  if (given) return JSON.parse(given);
  const [, preset] = /"model"\s*:\s*"[^"]*~(\w+)"/.exec(received.text()) ?? [];
  return (preset && PRESETS[preset]) || state.queue.shift() || {};
}

const UNFRAMED = { useChunkedEncodingByDefault: false, shouldKeepAlive: false };

async function send(
  chunks: Iterable<Uint8Array>,
  script: Script,
  received: Received,
  outgoing: ServerResponse,
): Promise<void> {
  const { breakAfterBytes = Number.POSITIVE_INFINITY } = script;
  let sent = 0;
  for (const chunk of chunks) {
    if (sent === script.stallAfterChunks || outgoing.destroyed) return;
    if (sent === script.endAfterChunks) break;
    if (sent > 0) await pause(script.chunkDelayMs, outgoing);
    const left = breakAfterBytes - received.sentBytes;
    if (sent === script.breakAfterChunks || left <= 0) return destroy(outgoing);
    await write(chunk.subarray(0, left), received, outgoing);
    if (chunk.length > left) return destroy(outgoing);
    sent++;
  }
  if (script.breaksLate) return destroy(outgoing);
  const comment = Buffer.from(': more\n\n');
  while (script.lingers === 'noisily' && !outgoing.destroyed) {
    await write(comment, received, outgoing);
  }
  if (!script.lingers) outgoing.end();
}

/** Ends when the chunk is with the system, so that a break after it does not take it back. */
function write(chunk: Uint8Array, received: Received, outgoing: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    outgoing.once('close', resolve);
    outgoing.write(chunk, () => {
      outgoing.off('close', resolve);
      received.sentBytes += chunk.length;
      resolve();
    });
  });
}

/** Waits, but no longer than the caller does. */
function pause(ms: number | undefined, outgoing: ServerResponse): Promise<void> {
  if (!ms || outgoing.destroyed) return Promise.resolve();
  return new Promise((resolve) => {
    const timer = setTimeout(done, ms);
    function done(): void {
      clearTimeout(timer);
      outgoing.off('close', done);
      resolve();
    }
    outgoing.once('close', done);
  });
}

const STREAM = { 'content-type': 'text/event-stream; charset=utf-8' };
const JSON_TYPE = { 'content-type': 'application/json' };

async function answerTo(received: Received, script: Script, state: State): Promise<Response> {
  const dialect = dialectOf(received);
  const refused = refusal(received, dialect, script, state.keys);
  if (refused) return refused;
  if (script.redirect)
    return new Response('', { status: 302, headers: { location: script.redirect } });
  if (script.chunks) return new Response('', { headers: STREAM });
  if (script.body !== undefined) return new Response(script.body, { headers: JSON_TYPE });
  return stored(received, state) ?? wellFormed(received, script, state);
}

function dialectOf(received: Received): Dialect {
  const anthropic = /\/messages\b/.test(received.path) || received.header('anthropic-version');
  return anthropic ? 'anthropic' : 'openai';
}

const ERROR_TYPES: Readonly<Record<number, readonly [openai: string, anthropic: string]>> = {
  400: ['invalid_request_error', 'invalid_request_error'],
  401: ['invalid_request_error', 'authentication_error'],
  403: ['permission_error', 'permission_error'],
  404: ['invalid_request_error', 'not_found_error'],
  429: ['rate_limit_error', 'rate_limit_error'],
  529: ['server_error', 'overloaded_error'],
};

function refusal(
  received: Received,
  dialect: Dialect,
  { error, retryAfterS }: Script,
  keys: readonly string[],
): Response | undefined {
  if (error) return errorOf(error, `Scripted ${error}.`, dialect, retryAfterS);
  const bearer = /^Bearer (.+)$/.exec(received.header('authorization') ?? '')?.[1];
  const key = dialect === 'anthropic' ? (received.header('x-api-key') ?? bearer) : bearer;
  if (!keys.includes(key ?? '')) return errorOf(401, 'Incorrect API key provided.', dialect);
  return dialect === 'anthropic' && !received.header('anthropic-version')
    ? errorOf(400, 'anthropic-version: header is required', dialect)
    : undefined;
}

function errorOf(status: number, message: string, dialect: Dialect, retryAfterS?: number) {
  const [openai, anthropic] = ERROR_TYPES[status] ?? ['server_error', 'api_error'];
  const code = status === 401 ? 'invalid_api_key' : null;
  const body =
    dialect === 'openai'
      ? { error: { message, type: openai, param: null, code } }
      : { type: 'error', error: { type: anthropic, message }, request_id: 'req_upstream' };
  const headers = retryAfterS === undefined ? {} : { 'retry-after': String(retryAfterS) };
  return Response.json(body, { status, headers });
}

/** Answers `/v1/responses/{id}` and below from what was kept. */
function stored({ method, path }: Received, state: State): Response | undefined {
  const { pathname, searchParams } = new URL(path, 'http://upstream');
  const [, id = '', action] = /\/responses\/([^/]+)(?:\/(\w+))?$/.exec(pathname) ?? [];
  const kept = state.stored.get(id);
  if (!kept) return undefined;
  if (method === 'DELETE') {
    state.stored.delete(id);
    return Response.json({ id, object: 'response', deleted: true });
  }
  if (action === 'input_items') return Response.json({ object: 'list', data: [], has_more: false });
  if (searchParams.get('stream') === 'true') {
    return new Response(kept.events, { headers: STREAM });
  }
  if (action === 'cancel') {
    const whole = JSON.stringify(unfinished(kept.members, 'cancelled'));
    state.stored.set(id, { ...kept, whole, pending: 0 });
    return new Response(whole, { headers: JSON_TYPE });
  }
  if (kept.pending-- > 0) return Response.json(unfinished(kept.members, 'in_progress'));
  return new Response(kept.whole, { headers: JSON_TYPE });
}

function unfinished(members: Record<string, unknown>, status: string) {
  return { ...members, status, output: [], usage: null };
}

/** The built-in upstream's answer to any model, with an id of its own and dressed by the script. */
async function wellFormed(received: Received, script: Script, state: State): Promise<Response> {
  const body = membersOf(received);
  if (typeof body?.model !== 'string') return demo(forward(received, received.body));
  const { background, ...members } = body;
  const dress = dresser(received, script, body.model, ++state.serial);
  const answer = await dress(members);
  if (!answer.ok || !/\/responses$/.test(received.path) || body.store === false) return answer;
  const plain = dresser(received, {}, body.model, state.serial);
  const inform = (text: string) =>
    text.replaceAll('"background":false', `"background":${background === true}`);
  const kept = {
    members: JSON.parse(inform(await (await plain({ ...members, stream: false })).text())),
    whole: inform(await (await dress({ ...members, stream: false })).text()),
    events: inform(await (await dress({ ...members, stream: true })).text()),
    pending: background ? 1 : 0,
  };
  state.stored.set(kept.members.id, kept);
  const [oldest = ''] = state.stored.size > MAX_STORED ? state.stored.keys() : [];
  state.stored.delete(oldest);
  return background && !members.stream ? Response.json(unfinished(kept.members, 'queued')) : answer;
}

/** Asks the built-in upstream and dresses what it answers; the serial number makes ids unique. */
function dresser(received: Received, script: Script, asked: string, serial: number) {
  const model = script.model ?? asked.replace(/~\w+$/, '');
  return async (members: object): Promise<Response> => {
    const body = new TextEncoder().encode(JSON.stringify({ ...members, model: 'demo-small' }));
    const response = await demo(forward(received, body));
    const text = (await response.text()).replaceAll(/demo[0-9a-f]{16}/g, `demo${serial}x`);
    const dressed = isStream(response)
      ? dressEvents(text, model, script)
      : dressJson(text, model, script);
    const { status } = response;
    return new Response(dressed, { status, headers: { 'content-type': typeOf(response) } });
  };
}

function membersOf(received: Received): Record<string, unknown> | undefined {
  try {
    return received.json();
  } catch {
    return undefined;
  }
}

function typeOf(response: Response): string {
  return response.headers.get('content-type') ?? 'application/octet-stream';
}

function isStream(response: Response): boolean {
  return typeOf(response).startsWith('text/event-stream');
}

function forward({ method, path, headers }: Received, body: Uint8Array): Request {
  const version = headers.filter(([name]) => name.toLowerCase() === 'anthropic-version');
  return new Request(new URL(path, 'http://upstream'), {
    method,
    headers: version.map(([name, value]): [string, string] => [name, value]),
    ...(method === 'POST' && { body: new Uint8Array(body) }),
  });
}

function dressEvents(text: string, model: string, script: Script): string {
  const unknown = 'event: upstream.unknown\ndata: {"type":"upstream.unknown"}\n\n';
  const noise = script.noise ? `: a comment\n\nid: 7\nretry: 1000\n${unknown}` : '';
  return eventsOf(text)
    .map((each) =>
      each.replace(/^data: (\{.*)$/m, (_, json) => `data: ${dressJson(json, model, script)}`),
    )
    .map((each) => noise + each)
    .join('');
}

function eventsOf(text: string): string[] {
  return text.split(/(?<=\n\n)/);
}

function dressJson(json: string, model: string, script: Script): string {
  const members = JSON.parse(json);
  for (const holder of [members, members.response, members.message]) {
    if (typeof holder !== 'object' || holder === null) continue;
    if ('model' in holder) holder.model = model;
    if (holder.usage) dressUsage(holder, holder === members.message, script);
  }
  return JSON.stringify(members).replaceAll('"RAW_USAGE"', script.rawUsage ?? '');
}

function dressUsage(
  holder: { usage?: unknown },
  starting: boolean,
  { usage, startUsage, rawUsage }: Script,
): void {
  if (rawUsage !== undefined) holder.usage = 'RAW_USAGE';
  else if (usage === null) delete holder.usage;
  else Object.assign(holder.usage ?? {}, starting ? (startUsage ?? usage) : usage);
}

/** An answer as chunks: one per event of a stream, unless the script cuts it otherwise. */
async function pack(response: Response, script: Script): Promise<Answer> {
  const text = await response.text();
  const parts = script.chunks ?? (isStream(response) ? eventsOf(text) : [text]);
  const encode = new TextEncoder();
  const repeated = response.ok ? repeat(parts, script) : parts;
  const lines = map(repeated, (part) => (script.crlf ? part.replaceAll('\n', '\r\n') : part));
  const bytes = map(lines, (part) => encode.encode(part));
  const whole = script.gzip ? [gzipSync(Buffer.concat([...bytes]))] : bytes;
  const chunks = script.chunkBytes ? slice(whole, script.chunkBytes) : whole;
  const headers = { ...Object.fromEntries(response.headers), ...(script.gzip && GZIP) };
  const { status } = response;
  if (isStream(response)) return { status, headers, chunks };
  const all = [...chunks];
  return { status, headers, chunks: all, lengthBytes: Buffer.concat(all).length };
}

const GZIP = { 'content-encoding': 'gzip' };

function* map<A, B>(list: Iterable<A>, change: (each: A) => B): Generator<B> {
  for (const each of list) yield change(each);
}

/** Repeats the first event that carries a piece of text. */
function* repeat(parts: readonly string[], script: Script): Generator<string> {
  const times = script.endless ? Number.POSITIVE_INFINITY : (script.repeat ?? 1);
  const at = parts.findIndex((part) => /"(?:content|delta|text|arguments)":"[^"]/.test(part));
  for (const [index, part] of parts.entries()) {
    for (let left = index === at ? times : 1; left > 0; left--) yield part;
  }
}

function* slice(list: Iterable<Uint8Array>, bytes: number): Generator<Uint8Array> {
  for (const chunk of list) {
    for (let at = 0; at < chunk.length; at += bytes) yield chunk.subarray(at, at + bytes);
  }
}

if (import.meta.main) {
  const port = Number(process.argv[process.argv.indexOf('--port') + 1]) || 0;
  const upstream = await startUpstream({ port, record: false });
  console.log(upstream.url);
}
