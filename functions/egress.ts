/** Egress: the one function through which anything leaves for a host that a user gave. */
import { lookup as lookupAll } from 'node:dns/promises';
import type { ClientRequest, IncomingMessage } from 'node:http';
import { Agent, type AgentOptions, request as openRequest } from 'node:https';
import { connect as connectTcp, isIPv6, type LookupFunction, type Socket } from 'node:net';
import { Duplex, pipeline, Readable } from 'node:stream';
import type { ReadableStream as NodeWebStream } from 'node:stream/web';
import { connect as connectTls } from 'node:tls';
import {
  createBrotliDecompress,
  createGunzip,
  createInflate,
  createZstdDecompress,
} from 'node:zlib';
import {
  type AllowList,
  inCidrs,
  isAllowedHost,
  isPublicAddress,
  literalAddress,
} from '../schema/address.ts';
import { concat } from '../schema/bytes.ts';

/** Limits of one exchange, in milliseconds. */
export interface EgressTimeouts {
  /** Name resolution, TCP and TLS together. */
  readonly connectMs: number;
  /** From the connection to the response's headers. */
  readonly firstByteMs: number;
  /** Between two chunks of the body, counted only while somebody waits for one. */
  readonly idleMs: number;
}

/** What to send. Headers that frame the message (`host`, `content-length` …) are set here. */
export interface EgressInit {
  readonly method: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Uint8Array<ArrayBuffer> | undefined;
  readonly signal?: AbortSignal | undefined;
  /** In place of `signal`; the exchange aborts it too once it gives up, and makes none of its own. */
  readonly controller?: AbortController | undefined;
  readonly timeouts: EgressTimeouts;
}

/** What came back; the body is decoded, must be read or cancelled, and errors when cut short. */
export interface EgressResponse {
  readonly status: number;
  readonly headers: Headers;
  readonly body: ReadableStream<Uint8Array> | null;
  /** The whole body, in place of `body`; `too_large` beyond `maxBytes`. */
  bytes(maxBytes: number): Promise<Uint8Array<ArrayBuffer>>;
}

/**
 * Sends one request and answers when the response's headers are in; redirects are answered, never
 * followed.
 *
 * @throws {EgressError} also out of the body's stream.
 */
export type Egress = (url: URL, init: EgressInit) => Promise<EgressResponse>;

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

/**
 * Why an exchange failed. Before `timeout_first_byte` in this list, nothing was sent; from there on
 * the request may have been acted on.
 */
export type EgressErrorCode =
  | 'forbidden_url'
  | 'forbidden_address'
  | 'unresolved'
  | 'connect_failed'
  | 'timeout_connect'
  | 'timeout_first_byte'
  | 'timeout_idle'
  | 'aborted'
  | 'too_large'
  | 'broken';

/** A request that was refused, or that failed on its way; the message names no credential. */
export class EgressError extends Error {
  override readonly name = 'EgressError';
  readonly code: EgressErrorCode;

  constructor(code: EgressErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

const MAX_DECODED_BYTES = 64 * 1024 * 1024;
const MAX_ADDRESSES = 16;
const MAX_REMEMBERED_ORIGINS = 1000;
/** Short of the five seconds after which common servers close an idle connection. */
const KEEP_IDLE_SOCKET_MS = 4000;
const MAX_IDLE_SOCKETS_PER_HOST = 64;
const MAX_TIMER_MS = 2 ** 31 - 1;

/**
 * Makes the function through which everything leaves for a user-given host.
 *
 * Hosts that the operator allows by name, or as a literal in an allowed range, are called with
 * `fetch`, over http too. All others need https, and their connection is opened to an address that
 * was checked: every address of the name must be public or in an allowed range.
 */
export function makeEgress(options: EgressOptions): Egress {
  const { allow, resolve = resolveName, maxDecodedBytes = MAX_DECODED_BYTES } = options;
  const isAllowed = rememberAllowed(allow);
  const isPermitted = (address: string) =>
    isPublicAddress(address) || inCidrs(address, allow.cidrs);
  const lookup = makeCheckedLookup(resolve, isPermitted);
  const agent = new PinnedAgent(lookup, options.ca);
  const sendChecked: Egress = async (url, init) => {
    checkUrl(url, isPermitted);
    return sendPinned(url, init, agent, maxDecodedBytes);
  };
  return (url, init) =>
    isAllowed(url) ? sendDirect(url, init, maxDecodedBytes) : sendChecked(url, init);
}

/** Allowed origins are few and their answer never changes, so that a call costs one map look-up. */
function rememberAllowed(allow: AllowList): (url: URL) => boolean {
  const origins = new Set<string>();
  return (url) => {
    const { origin } = url;
    if (hasUser(url)) return false;
    if (origins.has(origin)) return true;
    const isWeb = url.protocol === 'https:' || url.protocol === 'http:';
    if (!isWeb || !isAllowedHost(url, allow)) return false;
    if (origins.size < MAX_REMEMBERED_ORIGINS) origins.add(origin);
    return true;
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

function forbiddenAddress(host: string): EgressError {
  const message = `${host} is, or resolves to, an address that is not public.`;
  return new EgressError('forbidden_address', message);
}

async function resolveName(host: string): Promise<string[]> {
  const found = await lookupAll(host, { all: true, verbatim: true });
  return found.map(({ address }) => address);
}

/** Runs when a connection is opened and at no other time: what was checked is what is dialled. */
function makeCheckedLookup(
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

/** Stops and restarts the reading of a connection. */
interface Gate {
  hold(): void;
  release(): void;
}

/** Opens connections to checked addresses only, and keeps them for calls to the same name. */
class PinnedAgent extends Agent {
  readonly gates = new WeakMap<object, Gate>();
  readonly #lookup: LookupFunction;
  readonly #ca: string | undefined;

  constructor(lookup: LookupFunction, ca: string | undefined) {
    super({
      keepAlive: true,
      timeout: KEEP_IDLE_SOCKET_MS,
      maxFreeSockets: MAX_IDLE_SOCKETS_PER_HOST,
      scheduling: 'lifo',
    });
    this.#lookup = lookup;
    this.#ca = ca;
  }

  /** The certificate is checked for the name; the address is whatever the look-up let through. */
  override createConnection({ host, port, servername }: AgentOptions & { host?: string }): Duplex {
    const peer = { host: host ?? '', port: Number(port) };
    const raw = connectTcp({ ...peer, lookup: this.#lookup, autoSelectFamily: true });
    raw.setNoDelay(true);
    const { socket, gate } = gateSocket(raw);
    const secure = connectTls({
      socket,
      host: peer.host,
      servername: servername ?? '',
      ALPNProtocols: ['http/1.1'],
      ...(this.#ca === undefined ? {} : { ca: this.#ca }),
    });
    for (const layer of [raw, socket]) layer.on('error', (error) => secure.destroy(error));
    // A kept connection that the peer leaves must go at once, or the next call would be lost on it.
    secure.once('end', () => queueMicrotask(() => secure.destroy()));
    secure.once('close', () => raw.destroy());
    this.gates.set(secure, gate);
    return secure;
  }
}

/** Pausing a TLS socket doesn't stop every runtime from reading; pausing what is beneath it does. */
function gateSocket(raw: Socket): { socket: Duplex; gate: Gate } {
  let held = false;
  const socket = new Duplex({
    read: () => void (held || raw.resume()),
    write: (chunk, _encoding, done) => void raw.write(chunk, done),
    final: (done) => void raw.end(done),
    destroy: (error, done) => {
      raw.destroy();
      done(error);
    },
  });
  raw.on('data', (chunk) => void (socket.push(chunk) || raw.pause()));
  raw.once('end', () => socket.push(null));
  raw.once('close', () => socket.push(null));
  const hold = () => {
    held = true;
    raw.pause();
  };
  const release = () => {
    held = false;
    raw.resume();
  };
  return { socket, gate: { hold, release } };
}

/** The one timer of an exchange, moved forward from phase to phase, and the way to end it early. */
class Deadline {
  reason: EgressError | undefined;
  readonly #stops: ((reason: EgressError) => void)[] = [];
  readonly #caller: AbortSignal | undefined;
  #code: EgressErrorCode = 'timeout_connect';
  #dueMs = Number.POSITIVE_INFINITY;
  #timerDueMs = Number.POSITIVE_INFINITY;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(caller: AbortSignal | undefined) {
    if (caller?.aborted) throw new EgressError('aborted', 'The caller gave up.');
    this.#caller = caller;
    caller?.addEventListener('abort', this.abandon);
  }

  /** Gives the exchange this long until the next call; a running timer is kept if it fits. */
  expect(code: EgressErrorCode, timeoutMs: number): void {
    this.#code = code;
    this.#dueMs = performance.now() + Math.min(timeoutMs, MAX_TIMER_MS);
    if (this.#dueMs < this.#timerDueMs) this.#schedule();
  }

  /** Lets time pass uncounted until the next {@link expect}. */
  rest(): void {
    this.#dueMs = Number.POSITIVE_INFINITY;
  }

  onEnd(stop: (reason: EgressError) => void): void {
    this.#stops.push(stop);
  }

  /** Ends the exchange early; the first reason is the one that counts. */
  end(code: EgressErrorCode, message: string): void {
    if (this.reason !== undefined) return;
    this.reason = new EgressError(code, message);
    this.close();
    for (const stop of this.#stops) stop(this.reason);
  }

  readonly abandon = (): void => this.end('aborted', 'The caller gave up.');

  /** The exchange is over: nothing is left to time or to listen to. */
  close(): void {
    clearTimeout(this.#timer);
    this.#dueMs = Number.POSITIVE_INFINITY;
    this.#timerDueMs = Number.NEGATIVE_INFINITY;
    this.#caller?.removeEventListener('abort', this.abandon);
  }

  /** Closes, and says why: a runtime's own error only counts when there was no reason of ours. */
  fail(error: unknown, code: EgressErrorCode): EgressError {
    this.close();
    if (this.reason !== undefined) return this.reason;
    if (error instanceof EgressError) return error;
    const message = error instanceof Error ? error.message : String(error);
    return new EgressError(code, message, { cause: error });
  }

  #schedule(): void {
    clearTimeout(this.#timer);
    this.#timerDueMs = this.#dueMs;
    this.#timer = setTimeout(() => this.#fire(), Math.max(0, this.#dueMs - performance.now()));
  }

  #fire(): void {
    this.#timerDueMs = Number.POSITIVE_INFINITY;
    if (this.#dueMs - performance.now() < 1) {
      this.end(this.#code, `Gave up waiting: ${this.#code.replace('timeout_', '')} time-out.`);
    } else if (Number.isFinite(this.#dueMs)) this.#schedule();
  }
}

/** A response of either transport, before its body is made ready. */
interface Received {
  readonly status: number;
  readonly headers: Headers;
  readonly body: ReadableStream<Uint8Array> | IncomingMessage | null;
  readonly gate?: Gate | undefined;
}

/** By what the caller ends the exchange. */
function callerOf({ controller, signal }: EgressInit): AbortSignal | undefined {
  return controller?.signal ?? signal;
}

/** `fetch` tells no phase from another, so that connecting and the first byte share their time. */
async function sendDirect(url: URL, init: EgressInit, maxBytes: number): Promise<EgressResponse> {
  const deadline = new Deadline(callerOf(init));
  const controller = init.controller ?? new AbortController();
  deadline.onEnd((reason) => controller.abort(reason));
  deadline.expect('timeout_first_byte', init.timeouts.connectMs + init.timeouts.firstByteMs);
  try {
    const response = await fetch(url, {
      method: init.method,
      headers: frameHeaders(init.headers),
      body: init.body ?? null,
      signal: controller.signal,
      redirect: 'manual',
      decompress: false,
    });
    return answer(response, deadline, init.timeouts, maxBytes, () => response.bytes());
  } catch (error) {
    // First, or the abort of our own making would count as the caller's.
    const failure = deadline.fail(error, isUnsent(error) ? 'connect_failed' : 'broken');
    controller.abort(failure);
    throw failure;
  }
}

const UNSENT_CODES =
  /^(ConnectionRefused|FailedToOpenSocket|ECONNREFUSED|ENOTFOUND|EAI_\w+|E(HOST|NET)UNREACH|UNABLE_TO_\w+|\w*CERT\w*)$/;

/** Bun says by a code, Deno only in the words of the cause, that `fetch` got no connection. */
function isUnsent(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const code = 'code' in error ? String(error.code) : '';
  const cause = error.cause instanceof Error ? error.cause.message : '';
  return UNSENT_CODES.test(code) || cause.includes('client error (Connect)');
}

/** Sends over a connection of the agent's. */
function sendPinned(
  url: URL,
  init: EgressInit,
  agent: PinnedAgent,
  maxBytes: number,
): Promise<EgressResponse> {
  const deadline = new Deadline(callerOf(init));
  deadline.expect('timeout_connect', init.timeouts.connectMs);
  return new Promise((resolve, reject) => {
    let isConnected = false;
    const request = openPinned(url, init, agent);
    deadline.onEnd((reason) => request.destroy(reason));
    onceConnected(request, () => {
      isConnected = true;
      deadline.expect('timeout_first_byte', init.timeouts.firstByteMs);
    });
    request.on('error', (error) =>
      reject(deadline.fail(error, isConnected ? 'broken' : 'connect_failed')),
    );
    request.once('response', (message) => {
      try {
        const gate = message.socket && agent.gates.get(message.socket);
        const received = receive(message, init.method, gate);
        resolve(answer(received, deadline, init.timeouts, maxBytes));
      } catch (error) {
        request.destroy();
        reject(deadline.fail(error, 'broken'));
      }
    });
    request.end(init.body);
  });
}

function openPinned(url: URL, init: EgressInit, agent: PinnedAgent): ClientRequest {
  const literal = literalAddress(url);
  const request = openRequest({
    agent,
    host: literal ?? url.hostname,
    servername: literal === undefined ? url.hostname : '',
    port: url.port || 443,
    path: url.pathname + url.search,
    method: init.method,
    setDefaultHeaders: false,
  });
  request.setHeader('host', url.host);
  for (const [name, value] of Object.entries(frameHeaders(init.headers))) {
    request.setHeader(name, value);
  }
  if (init.body !== undefined) request.setHeader('content-length', init.body.byteLength);
  return request;
}

function onceConnected(request: ClientRequest, act: () => void): void {
  request.once('socket', (socket) => {
    if (request.reusedSocket) act();
    else socket.once('secureConnect', act);
  });
}

function receive(message: IncomingMessage, method: string, gate: Gate | undefined): Received {
  const headers = new Headers();
  const { rawHeaders, statusCode: status = 0 } = message;
  for (let at = 0; at + 1 < rawHeaders.length; at += 2) {
    headers.append(rawHeaders[at] ?? '', rawHeaders[at + 1] ?? '');
  }
  const isEmpty = method === 'HEAD' || status === 204 || status === 304;
  if (isEmpty) message.resume();
  return { status, headers, body: isEmpty ? null : message, gate };
}

/** Headers that describe this connection or this framing, which are not the caller's to set. */
const FRAMING = new Set([
  'host',
  'connection',
  'keep-alive',
  'content-length',
  'transfer-encoding',
  'upgrade',
  'expect',
]);

/** Asks for identity unless told otherwise, or a runtime would ask for what it can decode. */
function frameHeaders(headers: Readonly<Record<string, string>>): Record<string, string> {
  const kept: Record<string, string> = { 'accept-encoding': 'identity' };
  for (const name in headers) {
    const lower = name.toLowerCase();
    if (!FRAMING.has(lower)) kept[lower] = headers[name]!;
  }
  return kept;
}

const DECODERS = new Map<string, () => Duplex>([
  ['gzip', createGunzip],
  ['x-gzip', createGunzip],
  ['deflate', createInflate],
  ['br', createBrotliDecompress],
  ['zstd', createZstdDecompress],
]);

/** Where the chunks of a body come from. */
interface Source {
  next(): Promise<{ readonly done?: boolean | undefined; readonly value?: Uint8Array | undefined }>;
  stop(): void;
}

/**
 * Makes the body ready: decoded, timed between chunks, and an error when it is cut short.
 *
 * @param readPlain The transport's own way to the whole of a plain body, where it has one.
 */
function answer(
  { status, headers, body, gate }: Received,
  deadline: Deadline,
  timeouts: EgressTimeouts,
  maxDecodedBytes: number,
  readPlain?: () => Promise<Uint8Array<ArrayBuffer>>,
): EgressResponse {
  if (body === null) {
    deadline.close();
    return { status, headers, body, bytes: async () => new Uint8Array(0) };
  }
  const encoding = (headers.get('content-encoding') ?? 'identity').trim().toLowerCase();
  const isPlain = encoding === 'identity' || encoding === '';
  if (!isPlain && !DECODERS.has(encoding)) {
    throw new EgressError('broken', `The content-encoding ${encoding.slice(0, 40)} is not known.`);
  }
  deadline.rest();
  const maxBytes = isPlain ? Number.POSITIVE_INFINITY : maxDecodedBytes;
  let stream: ReadableStream<Uint8Array> | undefined;
  const open = () => {
    const source = openSource(isPlain ? body : decode(body, encoding), body, gate);
    return streamBody(source, deadline, timeouts.idleMs, maxBytes);
  };
  return {
    status,
    headers: isPlain ? headers : withoutEncoding(headers),
    get body() {
      stream ??= open();
      return stream;
    },
    bytes(limit) {
      const isShort = readPlain && isPlain && declaredBytes(headers) <= limit;
      return isShort ? readAtOnce(readPlain, deadline, timeouts) : readAll(open(), limit);
    },
  };
}

/** The length that the transport holds the body to; more than any limit where it isn't told. */
function declaredBytes(headers: Headers): number {
  const length = headers.get('content-length');
  return length === null ? Number.POSITIVE_INFINITY : Number(length);
}

/** A stream of chunks costs more than the rest of a call; a short body is read without one. */
async function readAtOnce(
  read: () => Promise<Uint8Array<ArrayBuffer>>,
  deadline: Deadline,
  { idleMs }: EgressTimeouts,
): Promise<Uint8Array<ArrayBuffer>> {
  deadline.expect('timeout_idle', idleMs);
  try {
    const bytes = await read();
    deadline.close();
    return bytes;
  } catch (error) {
    throw deadline.fail(error, 'broken');
  }
}

async function readAll(
  body: ReadableStream<Uint8Array>,
  maxBytes: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  let length = 0;
  for await (const part of body as ReadableStream<Uint8Array<ArrayBuffer>>) {
    length += part.byteLength;
    if (length > maxBytes) throw new EgressError('too_large', 'The answer is too large.');
    parts.push(part);
  }
  return concat(parts);
}

/** The header names what is no longer so: RFC 9110 sections 8.4 and 8.6. */
function withoutEncoding(headers: Headers): Headers {
  const decoded = new Headers(headers);
  decoded.delete('content-encoding');
  decoded.delete('content-length');
  return decoded;
}

function decode(body: ReadableStream<Uint8Array> | IncomingMessage, encoding: string): Readable {
  const decoder = DECODERS.get(encoding)!();
  const input =
    body instanceof Readable ? body : Readable.fromWeb(body as unknown as NodeWebStream);
  return pipeline(input, decoder, () => {});
}

function openSource(
  chunks: ReadableStream<Uint8Array> | Readable,
  body: ReadableStream<Uint8Array> | IncomingMessage,
  gate: Gate | undefined,
): Source {
  if (chunks instanceof Readable) {
    return readNode(chunks, body instanceof Readable ? body : undefined, gate);
  }
  const reader = chunks.getReader();
  return { next: () => reader.read(), stop: () => void reader.cancel().catch(() => {}) };
}

/** Reads the connection only while somebody waits; one that is back in the pool is let alone. */
function readNode(
  chunks: Readable,
  message: IncomingMessage | undefined,
  gate: Gate | undefined,
): Source {
  let open = gate;
  const letGo = () => {
    open?.release();
    open = undefined;
  };
  message?.once('end', letGo).once('close', letGo);
  open?.hold();
  const iterator = chunks[Symbol.asyncIterator]();
  return {
    async next() {
      if (chunks.readableLength === 0) open?.release();
      const chunk = await iterator.next();
      open?.hold();
      return chunk;
    },
    stop: () => void chunks.destroy(),
  };
}

function streamBody(
  source: Source,
  deadline: Deadline,
  idleMs: number,
  maxBytes: number,
): ReadableStream<Uint8Array> {
  let readBytes = 0;
  return new ReadableStream<Uint8Array>(
    {
      start: (controller) => deadline.onEnd((reason) => controller.error(reason)),
      async pull(controller) {
        deadline.expect('timeout_idle', idleMs);
        try {
          const { done, value } = await source.next();
          if (deadline.reason !== undefined) return;
          if (done || value === undefined) {
            deadline.close();
            return controller.close();
          }
          deadline.rest();
          readBytes += value.byteLength;
          if (readBytes > maxBytes) throw new EgressError('too_large', TOO_LARGE);
          controller.enqueue(value);
        } catch (error) {
          source.stop();
          throw deadline.fail(error, 'broken');
        }
      },
      cancel() {
        deadline.abandon();
        source.stop();
      },
    },
    { highWaterMark: 0 },
  );
}

const TOO_LARGE = 'The compressed body decodes to more than is allowed.';
