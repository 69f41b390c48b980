/** Halves of characters in JSON: what a stream leaves where it cuts a surrogate pair in two. */

import type { Json } from '../../schema/json.ts';

/** Any escape, pairs as one; the group is half of a pair that stands alone. */
const ESCAPE =
  /\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)/gs;
const HALF = /\p{Surrogate}/u;

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

/**
 * The same JSON with U+FFFD for each escape of half a character; undefined where there are none,
 * where it is no JSON, and where one stands elsewhere than in a text of whose key `mayHold` is true.
 *
 * @param mayHold Also asked for the elements of a list, with the key of the list.
 */
export function mendHalves(
  bytes: Uint8Array,
  mayHold: (key: string) => boolean,
): Uint8Array<ArrayBuffer> | undefined {
  try {
    const text = decoder.decode(bytes);
    const mended = text.replace(ESCAPE, (one, half) => (half ? '\\ufffd' : one));
    const isPlain = mended !== text && isMendable(JSON.parse(text) as Json, '', mayHold);
    return isPlain ? encoder.encode(mended) : undefined;
  } catch {
    return undefined;
  }
}

function isMendable(value: Json, key: string, mayHold: (key: string) => boolean): boolean {
  if (typeof value === 'string') return !HALF.test(value) || mayHold(key);
  if (typeof value !== 'object' || value === null) return true;
  if (Array.isArray(value)) return value.every((element) => isMendable(element, key, mayHold));
  return Object.entries(value).every(
    ([name, member]) => !HALF.test(name) && isMendable(member, name, mayHold),
  );
}
