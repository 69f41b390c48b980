/**
 * Signatures of webhooks: what is signed, with which bytes, and how it is written into headers.
 *
 * A secret is written `whsec_` and the base64 of 32 bytes; the key of the HMAC is these 32 bytes,
 * not the text. Rungate's own scheme signs `timestamp.body`; Standard Webhooks
 * (https://www.standardwebhooks.com) signs `id.timestamp.body`. Both use the same key.
 */

/** How a secret begins. */
const SECRET_PREFIX = 'whsec_';
/** The length of a secret's key. */
export const SECRET_BYTES = 32;

/** HMAC-SHA-256 (RFC 2104) of a text in UTF-8. */
export type Hmac = (key: Uint8Array, text: string) => Uint8Array;

/** Writes a secret. */
export function formatSecret(key: Uint8Array<ArrayBuffer>): string {
  return SECRET_PREFIX + key.toBase64();
}

/**
 * The key of a secret that {@link formatSecret} wrote.
 *
 * @throws {RangeError} for any other text; it does not repeat it.
 */
export function secretKey(secret: string): Uint8Array {
  const text = secret.startsWith(SECRET_PREFIX) ? secret.slice(SECRET_PREFIX.length) : '';
  const key = /^[A-Za-z0-9+/]{43}=$/.test(text) ? Uint8Array.fromBase64(text) : undefined;
  if (key?.length !== SECRET_BYTES) throw new RangeError('not the secret of a webhook');
  return key;
}

/** What one attempt to deliver signs. */
export interface Signed {
  readonly eventId: string;
  /** Unix seconds of this attempt. */
  readonly timestampS: number;
  readonly body: string;
  /** The current secret first; during a rotation's grace the one before it too. */
  readonly secrets: readonly string[];
}

/**
 * The headers that prove a delivery's origin. Several signatures are parted by a comma in
 * `x-rungate-signature` (`v1=<hex>,v1=<hex>`) and by a space in `webhook-signature`
 * (`v1,<base64> v1,<base64>`), the current secret's first.
 */
export function signatureHeaders(signed: Signed, hmac: Hmac): Record<string, string> {
  const { eventId, timestampS, body } = signed;
  const keys = signed.secrets.map(secretKey);
  const own = keys.map((key) => `v1=${hmac(key, `${timestampS}.${body}`).toHex()}`);
  const standard = keys.map((key) => {
    return `v1,${hmac(key, `${eventId}.${timestampS}.${body}`).toBase64()}`;
  });
  return {
    'x-rungate-event-id': eventId,
    'x-rungate-timestamp': String(timestampS),
    'x-rungate-signature': own.join(','),
    'webhook-id': eventId,
    'webhook-timestamp': String(timestampS),
    'webhook-signature': standard.join(' '),
  };
}
