/**
 * The verifier of Rungate's webhooks: one file without dependencies, for browsers, Node, Bun and
 * Deno. It checks Rungate's own scheme and that of Standard Webhooks, with the same secrets.
 */

type Bytes = Uint8Array<ArrayBuffer>;

/**
 * Why a request is not to be trusted:
 * - `missing_header`: it has not all headers of either scheme.
 * - `invalid_header`: a header is too long, or holds no signature of a known version.
 * - `invalid_timestamp`: the timestamp is not a whole number of seconds.
 * - `timestamp_out_of_range`: it was signed too long ago, or in the future.
 * - `invalid_signature`: no signature fits any of the secrets.
 * - `invalid_body`: it is neither text nor bytes, or is signed but not JSON in UTF-8.
 * - `event_id_mismatch`: the event id of the header is not that of the body.
 *
 * And what is wrong with the call itself:
 * - `invalid_secret`: a secret is missing, malformed, too short or has no randomness.
 * - `invalid_option`: an option is out of its range.
 */
export type WebhookErrorCode =
  | 'missing_header'
  | 'invalid_header'
  | 'invalid_timestamp'
  | 'timestamp_out_of_range'
  | 'invalid_signature'
  | 'invalid_body'
  | 'event_id_mismatch'
  | 'invalid_secret'
  | 'invalid_option';

/** A webhook that is not to be trusted. Its message holds neither a secret nor a signature. */
export class WebhookError extends Error {
  override readonly name = 'WebhookError';
  readonly code: WebhookErrorCode;

  constructor(code: WebhookErrorCode, message: string) {
    super(message);
    this.code = code;
  }
}

/** An event as Rungate delivers it; `/schemas/events.json` has the data of each type. */
export interface WebhookEvent {
  /** The same in every delivery of the event. */
  readonly id: string;
  readonly type: string;
  /** RFC 3339, in UTC. */
  readonly createdAt: string;
  readonly orgId: string;
  readonly data: Readonly<Record<string, unknown>>;
  /** Only in an event that tells of nothing, sent to try an endpoint. */
  readonly test?: true;
}

/** Headers as `fetch`, Node and most frameworks have them; names in any case. */
export type WebhookHeaders =
  | Iterable<readonly [string, string]>
  | Readonly<Record<string, string | readonly string[] | undefined>>;

/** How strictly a request is verified. */
export interface VerifyOptions {
  /** The time in Unix milliseconds; by default that of the clock. */
  readonly now?: number;
  /** How far the timestamp may be off, either way: 1 to 300 seconds, 300 by default. */
  readonly toleranceS?: number;
}

const MAX_TOLERANCE_S = 300;
const MAX_HEADER_CHARS = 4_096;
const MAX_SIGNATURES = 16;
const MAX_SECRETS = 16;
const MIN_KEY_BYTES = 24;
const MAX_KEY_BYTES = 64;
const MIN_DISTINCT_BYTES = 8;
const SIGNATURE_BYTES = 32;

/** What a request says that it is signed with. */
interface Claim {
  readonly timestamp: string;
  /** What stands before the body in the signed text. */
  readonly prefix: string;
  readonly signatures: readonly Bytes[];
}

/**
 * Verifies a webhook and returns its event.
 *
 * The key of the HMAC-SHA-256 is what the base64 behind `whsec_` decodes to. What is signed is
 * `timestamp.body` for `x-rungate-signature` (hexadecimal), which is checked if it is there, and
 * `id.timestamp.body` for `webhook-signature` (base64; https://www.standardwebhooks.com).
 *
 * @param rawBody The body as it came, not parsed and written again.
 * @param secrets One secret or several, such as those before and after a rotation.
 * @throws {WebhookError} with a stable `code`; nothing of the request may be used then.
 */
export async function verifyWebhook<Event = WebhookEvent>(
  rawBody: Uint8Array | string,
  headers: WebhookHeaders,
  secrets: string | readonly string[],
  options: VerifyOptions = {},
): Promise<Event> {
  const keys = readSecrets(secrets);
  const find = readHeaders(headers);
  const claim = ownClaim(find) ?? standardClaim(find);
  checkTimestamp(claim.timestamp, options);
  const body = readRawBody(rawBody);
  if (!(await isSigned(claim, body, keys))) {
    throw new WebhookError('invalid_signature', 'No signature fits the secret and the body.');
  }
  const event = parseBody(body);
  checkEventId(find('x-rungate-event-id'), event);
  return event as Event;
}

/** A body that was parsed and is given as an object is no longer what was signed. */
function readRawBody(rawBody: Uint8Array | string): Uint8Array {
  if (typeof rawBody === 'string') return new TextEncoder().encode(rawBody);
  if (ArrayBuffer.isView(rawBody)) return rawBody;
  throw new WebhookError('invalid_body', 'Give the body as it came: text or a Uint8Array.');
}

/** A variable that is not set comes as no secret at all. */
function readSecrets(secrets: string | readonly string[] | undefined): Bytes[] {
  const given = typeof secrets === 'string' ? [secrets] : [...(secrets ?? [])];
  if (given.length === 0 || given.length > MAX_SECRETS) {
    throw new WebhookError('invalid_secret', `Give 1 to ${MAX_SECRETS} secrets.`);
  }
  return given.map(readSecret);
}

function readSecret(secret: string): Bytes {
  const key = decodeBase64(String(secret).replace(/^whsec_/, ''));
  if (key === undefined) {
    throw new WebhookError('invalid_secret', 'A secret must be whsec_ and base64.');
  }
  if (key.length < MIN_KEY_BYTES || key.length > MAX_KEY_BYTES) {
    const message = `A secret must hold ${MIN_KEY_BYTES} to ${MAX_KEY_BYTES} bytes.`;
    throw new WebhookError('invalid_secret', message);
  }
  if (new Set(key).size < MIN_DISTINCT_BYTES) {
    throw new WebhookError('invalid_secret', 'A secret must be random.');
  }
  return key;
}

/** A look-up by lower-case name; a header that is there twice is none to trust. */
function readHeaders(headers: WebhookHeaders): (name: string) => string | undefined {
  const isPairs = Symbol.iterator in headers;
  const pairs = isPairs ? [...headers] : Object.entries(headers);
  const values = new Map<string, string>();
  for (const [name, value] of pairs) {
    if (value === undefined) continue;
    const key = name.toLowerCase();
    const text = typeof value === 'string' ? value : value.join(', ');
    values.set(key, values.has(key) ? `${values.get(key)}, ${text}` : text);
  }
  return (name) => values.get(name)?.slice(0, MAX_HEADER_CHARS + 1);
}

type Find = ReturnType<typeof readHeaders>;

function ownClaim(find: Find): Claim | undefined {
  const signature = find('x-rungate-signature');
  const timestamp = find('x-rungate-timestamp');
  if (signature === undefined || timestamp === undefined) return undefined;
  const signatures = splitSignatures(signature, ',', 'v1=', decodeHex);
  return { timestamp, prefix: `${timestamp}.`, signatures };
}

function standardClaim(find: Find): Claim {
  const id = find('webhook-id');
  const signature = find('webhook-signature');
  const timestamp = find('webhook-timestamp');
  if (id === undefined || signature === undefined || timestamp === undefined) {
    const message = 'The headers x-rungate-timestamp and x-rungate-signature are missing.';
    throw new WebhookError('missing_header', message);
  }
  const signatures = splitSignatures(signature, ' ', 'v1,', decodeBase64);
  return { timestamp, prefix: `${id}.${timestamp}.`, signatures };
}

/** Signatures of other versions are passed over: a later Rungate may send them beside. */
function splitSignatures(
  header: string,
  separator: string,
  version: string,
  decode: (text: string) => Bytes | undefined,
): Bytes[] {
  const isLong = header.length > MAX_HEADER_CHARS;
  const parts = isLong ? [] : header.split(separator, MAX_SIGNATURES + 1);
  const signatures = parts
    .map((part) => part.trim())
    .filter((part) => part.startsWith(version))
    .map((part) => decode(part.slice(version.length)))
    .filter((bytes) => bytes?.length === SIGNATURE_BYTES)
    .filter((bytes) => bytes !== undefined);
  if (signatures.length > 0 && parts.length <= MAX_SIGNATURES) return signatures;
  throw new WebhookError('invalid_header', `The header holds no signature of version 1.`);
}

function checkTimestamp(text: string, { now = Date.now(), toleranceS }: VerifyOptions): void {
  const tolerance = toleranceS ?? MAX_TOLERANCE_S;
  if (!Number.isInteger(tolerance) || tolerance < 1 || tolerance > MAX_TOLERANCE_S) {
    const message = `toleranceS must be a whole number from 1 to ${MAX_TOLERANCE_S}.`;
    throw new WebhookError('invalid_option', message);
  }
  if (!Number.isFinite(now)) {
    throw new WebhookError('invalid_option', 'now must be a time in Unix milliseconds.');
  }
  if (!/^(0|[1-9]\d{0,11})$/.test(text)) {
    throw new WebhookError('invalid_timestamp', 'The timestamp must be whole Unix seconds.');
  }
  if (Math.abs(Math.floor(now / 1_000) - Number(text)) <= tolerance) return;
  const message = `The timestamp is more than ${tolerance} seconds off.`;
  throw new WebhookError('timestamp_out_of_range', message);
}

/** Every signature is compared with every secret, whichever fits, so that the time tells nothing. */
async function isSigned(claim: Claim, body: Uint8Array, keys: readonly Bytes[]): Promise<boolean> {
  const prefix = new TextEncoder().encode(claim.prefix);
  const signed = new Uint8Array(prefix.length + body.length);
  signed.set(prefix);
  signed.set(body, prefix.length);
  let fits = 0;
  for (const key of keys) {
    const due = await sign(key, signed);
    for (const given of claim.signatures) fits |= isEqual(due, given);
  }
  return fits === 1;
}

async function sign(keyBytes: Bytes, signed: Bytes): Promise<Bytes> {
  const algorithm = { name: 'HMAC', hash: 'SHA-256' };
  const key = await crypto.subtle.importKey('raw', keyBytes, algorithm, false, ['sign']);
  return new Uint8Array(await crypto.subtle.sign('HMAC', key, signed));
}

/** 1 when all bytes are the same, in a time that does not depend on them, else 0. */
function isEqual(due: Bytes, given: Bytes): number {
  let difference = 0;
  for (let at = 0; at < SIGNATURE_BYTES; at++) difference |= (due[at] ?? 0) ^ (given[at] ?? 256);
  return difference === 0 ? 1 : 0;
}

function parseBody(body: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(body));
  } catch {
    throw new WebhookError('invalid_body', 'The body is signed, but is not JSON in UTF-8.');
  }
}

/** The header alone is not signed in Rungate's own scheme; the id in the body is. */
function checkEventId(header: string | undefined, event: unknown): void {
  const isObject = typeof event === 'object' && event !== null;
  const id = isObject && 'id' in event ? event.id : undefined;
  if (header === undefined || header === id) return;
  throw new WebhookError(
    'event_id_mismatch',
    'The event id of the header is not that of the body.',
  );
}

/** Decodes the one canonical form only; older runtimes have no `Uint8Array.fromBase64`. */
function decodeBase64(text: string): Bytes | undefined {
  if (text.length > MAX_HEADER_CHARS || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) return undefined;
  try {
    const binary = atob(text);
    if (btoa(binary).replace(/=+$/, '') !== text.replace(/=+$/, '')) return undefined;
    return Uint8Array.from(binary, (character) => character.charCodeAt(0));
  } catch {
    return undefined;
  }
}

function decodeHex(text: string): Bytes | undefined {
  if (!/^([0-9a-f]{2})+$/.test(text)) return undefined;
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}
