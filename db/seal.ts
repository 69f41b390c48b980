/** Hashing, random values, and sealing, so that a copied database gives no secret away. */

import { createHash, createHmac, hash, randomFillSync, timingSafeEqual } from 'node:crypto';
import { concat } from '../schema/bytes.ts';
import { formatId, ID_ENTROPY_BYTES, type Id, type Noun, type OrgId } from '../schema/ids.ts';
import { formatToken, TOKEN_ENTROPY_BYTES, type TokenKind } from '../schema/token.ts';

type Bytes = Uint8Array<ArrayBuffer>;

const VERSION = 'v1';
const KEY_BYTES = 32;
const SECRET_BYTES = 32;
const SALT_BYTES = 32;
const COMMITMENT_BYTES = 32;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const BOX_OVERHEAD_BYTES = SALT_BYTES + COMMITMENT_BYTES + NONCE_BYTES + TAG_BYTES;
const WRAPPED_KEY_BYTES = BOX_OVERHEAD_BYTES + KEY_BYTES;
/** Of an org key that is wrapped under a share of its own, too. */
const SHARED_KEY_BYTES = BOX_OVERHEAD_BYTES + WRAPPED_KEY_BYTES;
const KEY_ID = /^[A-Za-z0-9_-]{1,32}$/;
const ORG_KEY_ID_BYTES = 12;
const POOLED_IDS = 512;

/** The most master keys that a deployment may list at once. */
export const MAX_MASTER_KEYS = 16;
/** The longest secret that can be sealed, in bytes of UTF-8. */
export const MAX_SECRET_BYTES = 1024 * 1024;
/** The longest field of a {@link SealContext}, in bytes of UTF-8. */
export const MAX_FIELD_BYTES = 1024;
/** How often one org key may seal; far below the 2^32 of NIST SP 800-38D, section 8.3. */
export const MAX_SEALS = 2 ** 30;
/** The most opened secrets that are remembered. */
export const MAX_OPENED = 1000;
/** How long an opened secret is remembered. */
export const OPENED_MS = 60_000;
const MAX_OPENED_CHARS = 16 * 1024;
const MAX_BLOB_CHARS = 2 * MAX_SECRET_BYTES;

/**
 * Why a value could not be sealed or opened:
 * - `invalid_master_keys`: the list of master keys is not usable as it stands.
 * - `invalid_input`: a secret or a field of its context is too long or not well-formed text.
 * - `unknown_key`: the value names a key that isn't there (a master key removed too early).
 * - `wrong_key`: the key has the right name but did not make this value, or the value was altered.
 * - `not_authentic`: the value was altered, or belongs to another org, row, column or host.
 * - `corrupt`: the value is not a sealed value at all.
 * - `exhausted`: the org key has sealed as often as it may.
 */
export type SealErrorCode =
  | 'invalid_master_keys'
  | 'invalid_input'
  | 'unknown_key'
  | 'wrong_key'
  | 'not_authentic'
  | 'corrupt'
  | 'exhausted';

/** A failure to seal or open. Its message never holds a key, a secret or a sealed value. */
export class SealError extends Error {
  override readonly name = 'SealError';
  readonly code: SealErrorCode;

  constructor(code: SealErrorCode, message: string) {
    super(message);
    this.code = code;
  }
}

/** The deployment's keys by id, none of them extractable; `current` wraps, all of them unwrap. */
export interface MasterKeys {
  readonly current: string;
  readonly keys: ReadonlyMap<string, Promise<CryptoKey>>;
  /** Where every org has a random secret beside the database, without which its key won't open. */
  readonly shares?: KeyShares;
}

/** Secrets of 32 bytes, one per org, that no backup of the database holds. */
export interface KeyShares {
  read(org: OrgId): Promise<Bytes | undefined>;
  /** The orgs that have one. @throws when they can't be listed. */
  list(): Promise<ReadonlySet<string>>;
  /** Keeps a secret, unless the org has one. @returns the one that is kept. */
  keep(org: OrgId, share: Bytes): Promise<Bytes>;
  /** Destroys the org's secret; one that isn't there is no error. */
  destroy(org: OrgId): Promise<void>;
}

/** An org's key under a master key: `v1.<master key id>.<base64url of org key id and box>`. */
export type WrappedKey = string;

/** A secret under an org's key: `v1.<org key id>.<base64url of wrapped data key and box>`. */
export type Sealed = string;

/** Where a secret belongs. It opens only in the very same place, for the same destination. */
export interface SealContext {
  readonly org: OrgId;
  readonly table: string;
  readonly column: string;
  readonly row: string;
  readonly provider?: string;
  readonly host?: string;
}

/**
 * SHA-256 (FIPS 180-4) of a token, in lower-case hex: the form in which tokens are stored and
 * looked up. A token has too much entropy to be guessed, so neither salt nor stretching is due.
 */
export function hashToken(token: string): string {
  return hash('sha256', token, 'hex');
}

/** SHA-256 of a whole body, in lower-case hex; for one in pieces there is {@link Digest}. */
export function digest(bytes: Uint8Array): string {
  return hash('sha256', bytes, 'hex');
}

/** SHA-256 of text as UTF-8, in lower-case hex. */
export function digestText(text: string): string {
  return hash('sha256', text, 'hex');
}

/** SHA-256 of a body that arrives in pieces; the same result as {@link digest} over all of them. */
export class Digest {
  readonly #hash = createHash('sha256');

  update(bytes: Uint8Array): void {
    this.#hash.update(bytes);
  }

  /** The digest in lower-case hex. Ends it: a further call of either method throws. */
  end(): string {
    return this.#hash.digest('hex');
  }
}

/** HMAC-SHA-256 (RFC 2104) of a text in UTF-8: 32 bytes. */
export function hmac(key: Uint8Array, text: string): Uint8Array {
  return createHmac('sha256', key).update(text, 'utf8').digest();
}

/** Compares in a time that depends on the lengths only. */
export function constantTimeEqual(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && timingSafeEqual(a, b);
}

/**
 * Fresh bytes from the runtime's cryptographic source.
 *
 * @throws {RangeError} unless `length` is an integer from 0 to 65,536.
 */
export function randomEntropy(length: number): Bytes {
  if (!Number.isInteger(length) || length < 0 || length > 65_536) {
    throw new RangeError(`not a number of bytes from 0 to 65536: ${length}`);
  }
  return crypto.getRandomValues(new Uint8Array(length));
}

/** A new token. Show it once and store its {@link hashToken}. */
export function newToken(kind: TokenKind): string {
  return formatToken(kind, randomEntropy(TOKEN_ENTROPY_BYTES));
}

/** A new secret of 256 bits for a link or a cookie. Show it once and store its {@link hashToken}. */
export function newSecret(): string {
  return encode(randomEntropy(SECRET_BYTES));
}

const pool = new Uint8Array(POOLED_IDS * ID_ENTROPY_BYTES);
let poolAt = pool.length;

/** A new id. Its randomness comes from a pool (ids are no secrets), so that it costs little. */
export function newId<N extends Noun>(kind: N, nowMs: number = Date.now()): Id<N> {
  if (poolAt === pool.length) {
    randomFillSync(pool);
    poolAt = 0;
  }
  const from = poolAt;
  poolAt += ID_ENTROPY_BYTES;
  return formatId(kind, nowMs, pool, from);
}

/** A new random master key as `id:base64`, ready for {@link openMasterKeys}. */
export function newMasterKey(id: string): string {
  if (!KEY_ID.test(id)) throw invalidMasterKey(1, 'needs an id of 1 to 32 of A-Z a-z 0-9 _ -');
  return `${id}:${randomEntropy(KEY_BYTES).toBase64()}`;
}

/**
 * Reads `id:base64[,id:base64…]`, each key 32 bytes in padded base64 (RFC 4648, section 4). The
 * first is current; the others only open what they once wrapped.
 *
 * @param shares Where org keys have shares, if they are to have any.
 * @throws {SealError} `invalid_master_keys`, naming the position of the key that is malformed,
 * short, weak (all bytes equal) or listed twice, never its id or its bytes: they may be swapped.
 */
export function openMasterKeys(text: string, shares?: KeyShares): MasterKeys {
  const entries = text.split(',', MAX_MASTER_KEYS + 1);
  if (entries.length > MAX_MASTER_KEYS) {
    throw new SealError('invalid_master_keys', `More than ${MAX_MASTER_KEYS} master keys.`);
  }
  const parsed = entries.map((entry, index) => parseMasterKey(entry.trim(), index + 1));
  const keys = new Map<string, Promise<CryptoKey>>();
  const seen = new Set<string>();
  for (const [index, { id, bytes }] of parsed.entries()) {
    if (keys.has(id)) throw invalidMasterKey(index + 1, 'has the id of an earlier one');
    const fingerprint = digest(bytes);
    if (seen.has(fingerprint)) {
      throw invalidMasterKey(index + 1, 'repeats the key of an earlier one');
    }
    seen.add(fingerprint);
    keys.set(
      id,
      importKey(bytes).finally(() => bytes.fill(0)),
    );
  }
  return { current: parsed[0]?.id ?? '', keys, ...(shares ? { shares } : {}) };
}

function parseMasterKey(entry: string, position: number): { id: string; bytes: Bytes } {
  const colon = entry.indexOf(':');
  const id = entry.slice(0, Math.max(colon, 0));
  if (!KEY_ID.test(id)) {
    throw invalidMasterKey(position, 'is not id:base64 with an id of 1 to 32 of A-Z a-z 0-9 _ -');
  }
  const bytes = decode(entry.slice(colon + 1), 'base64');
  if (bytes?.length !== KEY_BYTES) throw invalidMasterKey(position, 'is not 32 bytes in base64');
  if (bytes.every((byte) => byte === bytes[0])) {
    throw invalidMasterKey(position, 'is weak: all its bytes are the same');
  }
  return { id, bytes };
}

function invalidMasterKey(position: number, problem: string): SealError {
  return new SealError('invalid_master_keys', `Master key ${position} ${problem}.`);
}

/** Makes a random key for an org and wraps it under the current master key. */
export async function makeOrgKey(master: MasterKeys, org: OrgId): Promise<WrappedKey> {
  const id = randomEntropy(ORG_KEY_ID_BYTES);
  return await wrapOrgKey(master, org, id, randomEntropy(KEY_BYTES));
}

/**
 * Moves an org's key under the current master key, and under a share where there are shares. The
 * key stays the same, so what it sealed still opens.
 *
 * @returns undefined when it is there already: running a rotation again changes nothing.
 * @throws {SealError} `unknown_key`, `wrong_key`, `not_authentic` or `corrupt`.
 */
export async function rewrapOrgKey(
  master: MasterKeys,
  org: OrgId,
  wrapped: WrappedKey,
): Promise<WrappedKey | undefined> {
  const { keyId, payload } = parseBlob(wrapped);
  if (keyId === master.current && isShared(payload) === needsShare(master, org)) return undefined;
  const { idBytes, bytes } = await unwrapOrgKey(master, org, wrapped);
  return await wrapOrgKey(master, org, idBytes, bytes);
}

/** Wraps the key and wipes `bytes`. */
async function wrapOrgKey(
  master: MasterKeys,
  org: OrgId,
  idBytes: Bytes,
  bytes: Bytes,
): Promise<WrappedKey> {
  const keyId = master.current;
  const data = encodeFields([VERSION, keyId, encode(idBytes), org]);
  const inner = needsShare(master, org) ? await wrapInShare(master, org, data, bytes) : bytes;
  const box = await encrypt(await masterKey(master, keyId), 'org key', data, inner);
  bytes.fill(0);
  return formatBlob(keyId, idBytes, box);
}

/** Whether an org's key opens only with the share that it is wrapped under, too. @throws {SealError} */
export function takesShare(wrapped: WrappedKey): boolean {
  return isShared(parseBlob(wrapped).payload);
}

/** The platform itself is never erased. */
function needsShare({ shares }: MasterKeys, org: OrgId): boolean {
  return shares !== undefined && org.startsWith('org_');
}

function isShared(payload: Bytes): boolean {
  return payload.length === ORG_KEY_ID_BYTES + SHARED_KEY_BYTES;
}

async function wrapInShare(
  { shares }: MasterKeys,
  org: OrgId,
  data: Bytes,
  bytes: Bytes,
): Promise<Bytes> {
  const share = await shares!.keep(org, randomEntropy(KEY_BYTES));
  return await encrypt(await importKey(share), 'org key share', data, bytes);
}

async function unwrapFromShare(
  { shares }: MasterKeys,
  org: OrgId,
  data: Bytes,
  box: Bytes,
): Promise<Bytes> {
  const share = await shares?.read(org);
  if (!share) {
    throw new SealError('unknown_key', "The share of the org's key is not there, or destroyed.");
  }
  return await decrypt(await importKey(share), 'org key share', data, box);
}

async function unwrapOrgKey(
  master: MasterKeys,
  org: OrgId,
  wrapped: WrappedKey,
): Promise<{ idBytes: Bytes; bytes: Bytes }> {
  const { keyId, payload } = parseBlob(wrapped);
  if (!isShared(payload) && payload.length !== ORG_KEY_ID_BYTES + WRAPPED_KEY_BYTES) {
    throw corrupt();
  }
  const idBytes = payload.slice(0, ORG_KEY_ID_BYTES);
  const data = encodeFields([VERSION, keyId, encode(idBytes), org]);
  const key = await masterKey(master, keyId);
  const inner = await decrypt(key, 'org key', data, payload.subarray(ORG_KEY_ID_BYTES));
  if (!isShared(payload)) return { idBytes, bytes: inner };
  return { idBytes, bytes: await unwrapFromShare(master, org, data, inner) };
}

async function openOrgKey(
  master: MasterKeys,
  org: OrgId,
  wrapped: WrappedKey,
): Promise<{ id: string; key: CryptoKey }> {
  const { idBytes, bytes } = await unwrapOrgKey(master, org, wrapped);
  const key = await importKey(bytes);
  bytes.fill(0);
  return { id: encode(idBytes), key };
}

async function masterKey(master: MasterKeys, id: string): Promise<CryptoKey> {
  const key = master.keys.get(id);
  if (!key) throw new SealError('unknown_key', `The master key "${id}" is not configured.`);
  return await key;
}

/**
 * Refuses a further seal under an org key that has sealed {@link MAX_SEALS} times. Call it with
 * the count stored beside the key, and add one in the transaction that stores the sealed value.
 *
 * @throws {SealError} `exhausted`, also for a count that isn't a whole number of seals.
 */
export function checkSeals(count: number): void {
  if (Number.isInteger(count) && count >= 0 && count < MAX_SEALS) return;
  throw new SealError('exhausted', 'This org key has sealed as many values as it may.');
}

/**
 * Seals a secret under a data key of its own, and that under the org's key, both with AES-256-GCM
 * (NIST SP 800-38D) and bound to the context.
 *
 * @param plaintext At most {@link MAX_SECRET_BYTES} of UTF-8.
 * @throws {SealError} `invalid_input`, or what opening the org's key throws.
 */
export async function seal(
  master: MasterKeys,
  wrappedOrgKey: WrappedKey,
  context: SealContext,
  plaintext: string,
): Promise<Sealed> {
  const secret = encodeText(plaintext, MAX_SECRET_BYTES);
  const orgKey = await openOrgKey(master, context.org, wrappedOrgKey);
  const data = encodeContext(orgKey.id, context);
  const dataKey = randomEntropy(KEY_BYTES);
  const wrapped = await encrypt(orgKey.key, 'data key', data, dataKey);
  const box = await encrypt(await importKey(dataKey), 'secret', data, secret);
  dataKey.fill(0);
  return formatBlob(orgKey.id, wrapped, box);
}

/**
 * Opens what {@link seal} made, in the same context. Takes some tenths of a millisecond: where the
 * same secret is opened over and over see {@link keepOpened}.
 *
 * @throws {SealError} `unknown_key`, `wrong_key`, `not_authentic`, `corrupt` or `invalid_input`.
 */
export async function open(
  master: MasterKeys,
  wrappedOrgKey: WrappedKey,
  context: SealContext,
  sealed: Sealed,
): Promise<string> {
  const { keyId, payload } = parseBlob(sealed);
  if (payload.length < WRAPPED_KEY_BYTES + BOX_OVERHEAD_BYTES) throw corrupt();
  const orgKey = await openOrgKey(master, context.org, wrappedOrgKey);
  if (orgKey.id !== keyId) {
    throw new SealError('unknown_key', 'The value was sealed under another org key.');
  }
  const data = encodeContext(keyId, context);
  const wrapped = payload.subarray(0, WRAPPED_KEY_BYTES);
  const dataKey = await decrypt(orgKey.key, 'data key', data, wrapped);
  const key = await importKey(dataKey);
  dataKey.fill(0);
  return decodeText(await decrypt(key, 'secret', data, payload.subarray(WRAPPED_KEY_BYTES)));
}

/**
 * An org's secret for one use beside sealing, by HKDF-SHA-256 (RFC 5869) from the org's key: the
 * same for as long as the org has that key, whatever master key wraps it.
 *
 * @param use What it is for; two uses share no secret.
 * @returns 32 bytes.
 * @throws {SealError} what opening the org's key throws.
 */
export async function deriveSecret(
  master: MasterKeys,
  org: OrgId,
  wrappedOrgKey: WrappedKey,
  use: string,
): Promise<Bytes> {
  const { key } = await openOrgKey(master, org, wrappedOrgKey);
  const info = new TextEncoder().encode(`rungate ${VERSION} ${use}`);
  const algorithm = { name: 'HKDF', hash: 'SHA-256', salt: new Uint8Array(SALT_BYTES), info };
  return new Uint8Array(await crypto.subtle.deriveBits(algorithm, key, KEY_BYTES * 8));
}

/** Opens secrets, remembering some. */
export interface OpenedSecrets {
  /** Like {@link open}, but answers at once, without a promise, when it remembers the secret. */
  open(wrappedOrgKey: WrappedKey, context: SealContext, sealed: Sealed): string | Promise<string>;
  /** Forgets what is due; every `open` does so too, so only an idle process needs to call it. */
  forgetOld(): void;
}

interface Opened {
  readonly wrappedOrgKey: WrappedKey;
  readonly context: SealContext;
  readonly plaintext: string;
  readonly openedMs: number;
}

/**
 * Remembers opened secrets in memory: at most {@link MAX_OPENED}, each for {@link OPENED_MS},
 * oldest out first, long ones and failures never. It can't serve a stale secret: it only answers
 * for the very blobs and context that it opened, which the caller has just read from the database;
 * a secret that was replaced, re-wrapped or erased is no longer asked for.
 *
 * @param nowMs A clock in milliseconds; one that never goes back is best.
 */
export function keepOpened(master: MasterKeys, nowMs: () => number): OpenedSecrets {
  const kept = new Map<Sealed, Opened>();
  const isDue = (entry: Opened, now: number): boolean => {
    const ageMs = now - entry.openedMs;
    return !(ageMs >= 0 && ageMs < OPENED_MS);
  };
  const forgetOld = (now: number): void => {
    for (const [sealed, entry] of kept) {
      if (!isDue(entry, now) && kept.size <= MAX_OPENED) return;
      kept.delete(sealed);
    }
  };
  const openAndKeep = async (wrappedOrgKey: WrappedKey, context: SealContext, sealed: Sealed) => {
    const place = { ...context };
    const plaintext = await open(master, wrappedOrgKey, place, sealed);
    if (sealed.length > MAX_OPENED_CHARS) return plaintext;
    const openedMs = nowMs();
    kept.delete(sealed);
    kept.set(sealed, { wrappedOrgKey, context: place, plaintext, openedMs });
    forgetOld(openedMs);
    return plaintext;
  };
  return {
    open(wrappedOrgKey, context, sealed) {
      forgetOld(nowMs());
      const entry = kept.get(sealed);
      const known = entry?.wrappedOrgKey === wrappedOrgKey && isSame(entry.context, context);
      return known ? entry.plaintext : openAndKeep(wrappedOrgKey, context, sealed);
    },
    forgetOld: () => forgetOld(nowMs()),
  };
}

function isSame(a: SealContext, b: SealContext): boolean {
  return (
    a.org === b.org &&
    a.table === b.table &&
    a.column === b.column &&
    a.row === b.row &&
    a.provider === b.provider &&
    a.host === b.host
  );
}

/** Encrypts under a key derived for this box alone, with a commitment to the key in front. */
async function encrypt(key: CryptoKey, use: string, data: Bytes, plain: Bytes): Promise<Bytes> {
  const salt = randomEntropy(SALT_BYTES);
  const nonce = randomEntropy(NONCE_BYTES);
  const { cipher, commitment } = await derive(key, use, salt);
  const algorithm = { name: 'AES-GCM', iv: nonce, additionalData: data };
  const ciphertext = await crypto.subtle.encrypt(algorithm, cipher, plain);
  return concat([salt, commitment, nonce, new Uint8Array(ciphertext)]);
}

/** The reverse. GCM alone can accept one ciphertext under two keys: hence `wrong_key` first. */
async function decrypt(key: CryptoKey, use: string, data: Bytes, box: Bytes): Promise<Bytes> {
  const nonceAt = SALT_BYTES + COMMITMENT_BYTES;
  const { cipher, commitment } = await derive(key, use, box.subarray(0, SALT_BYTES));
  if (!constantTimeEqual(commitment, box.subarray(SALT_BYTES, nonceAt))) {
    throw new SealError('wrong_key', 'The key with this id did not make this value.');
  }
  const nonce = box.subarray(nonceAt, nonceAt + NONCE_BYTES);
  const algorithm = { name: 'AES-GCM', iv: nonce, additionalData: data };
  try {
    const ciphertext = box.subarray(nonceAt + NONCE_BYTES);
    return new Uint8Array(await crypto.subtle.decrypt(algorithm, cipher, ciphertext));
  } catch {
    throw new SealError('not_authentic', 'The value was altered, or belongs to another place.');
  }
}

/** HKDF-SHA-256 (RFC 5869) into an AES-256 key and a 32-byte commitment to the key it came from. */
async function derive(
  key: CryptoKey,
  use: string,
  salt: Bytes,
): Promise<{ cipher: CryptoKey; commitment: Bytes }> {
  const info = new TextEncoder().encode(`rungate ${VERSION} ${use}`);
  const algorithm = { name: 'HKDF', hash: 'SHA-256', salt, info };
  const bits = await crypto.subtle.deriveBits(algorithm, key, (KEY_BYTES + COMMITMENT_BYTES) * 8);
  const derived = new Uint8Array(bits);
  const cipherBytes = derived.subarray(0, KEY_BYTES);
  const uses: KeyUsage[] = ['encrypt', 'decrypt'];
  const cipher = await crypto.subtle.importKey('raw', cipherBytes, 'AES-GCM', false, uses);
  cipherBytes.fill(0);
  return { cipher, commitment: derived.subarray(KEY_BYTES) };
}

/** A key to derive from; it can't be read back. */
function importKey(bytes: Bytes): Promise<CryptoKey> {
  return crypto.subtle.importKey('raw', bytes, 'HKDF', false, ['deriveBits']);
}

function formatBlob(keyId: string, ...parts: Bytes[]): string {
  return `${VERSION}.${keyId}.${encode(concat(parts))}`;
}

function parseBlob(blob: string): { keyId: string; payload: Bytes } {
  if (blob.length > MAX_BLOB_CHARS) throw corrupt();
  const [version, keyId, text, ...more] = blob.split('.', 4);
  if (version !== VERSION || text === undefined || more.length > 0) throw corrupt();
  if (keyId === undefined || !KEY_ID.test(keyId)) throw corrupt();
  const payload = decode(text, 'base64url');
  if (!payload) throw corrupt();
  return { keyId, payload };
}

function corrupt(): SealError {
  return new SealError('corrupt', 'This is not a sealed value of a known version.');
}

function encodeContext(keyId: string, context: SealContext): Bytes {
  const { org, table, column, row, provider, host } = context;
  return encodeFields([VERSION, keyId, org, table, column, row, provider, host]);
}

/** Each field behind its length in four bytes; an absent one has a length that no text can have. */
function encodeFields(fields: readonly (string | undefined)[]): Bytes {
  const parts = fields.flatMap((field) => {
    const text = field === undefined ? undefined : encodeText(field, MAX_FIELD_BYTES);
    const length = new Uint8Array(4);
    new DataView(length.buffer).setUint32(0, text?.length ?? 0xffffffff);
    return text ? [length, text] : [length];
  });
  return concat(parts);
}

/** UTF-8 of text that has one: lone surrogates would all become the same three bytes. */
function encodeText(text: string, boundBytes: number): Bytes {
  if (text.length <= boundBytes && text.isWellFormed()) {
    const bytes = new TextEncoder().encode(text);
    if (bytes.length <= boundBytes) return bytes;
  }
  throw new SealError('invalid_input', `Not well-formed text of at most ${boundBytes} bytes.`);
}

function decodeText(bytes: Bytes): string {
  return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
}

function encode(bytes: Bytes): string {
  return bytes.toBase64({ alphabet: 'base64url', omitPadding: true });
}

/** Decodes the one canonical form only, so that no two texts stand for the same bytes. */
function decode(text: string, alphabet: 'base64' | 'base64url'): Bytes | undefined {
  try {
    const bytes = Uint8Array.fromBase64(text, { alphabet });
    const canonical = bytes.toBase64({ alphabet, omitPadding: alphabet === 'base64url' });
    return canonical === text ? bytes : undefined;
  } catch {
    return undefined;
  }
}
