/** Bytes: the one way to join them. */

/** Joins parts into one array of their own; a part that stands alone is returned as it is. */
export function concat<B extends Uint8Array>(parts: readonly B[]): B | Uint8Array<ArrayBuffer> {
  if (parts.length === 1) return parts[0]!;
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
