/** JSON whose numbers keep every digit on their way through objects. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isObject } from '../../../schema/rules/bound.ts';
import { Untranslatable } from './contract.ts';

/** What ECMA-262 (24.5) adds for source texts, which the types do not know yet. */
interface SourceJson {
  parse(
    text: string,
    revive: (this: Json, key: string, value: Json, context: { readonly source?: string }) => Json,
  ): Json;
  rawJSON(text: string): Json;
  isRawJSON(value: Json): boolean;
}

const source = JSON as unknown as SourceJson;
const decoder = new TextDecoder();
const encoder = new TextEncoder();

/**
 * Reads an object. A number that would be written otherwise than it stands, such as
 * `12345678901234567890` or `1.0`, becomes a value that {@link write} writes as it stood.
 *
 * @param field What the text is called where it is at fault.
 * @throws {Untranslatable} for anything but an object, and for keys that repeat: one of their values
 *   would be lost.
 */
export function readExact(said: string | Uint8Array, field: string): JsonObject {
  const text = typeof said === 'string' ? said : decoder.decode(said);
  let value: Json;
  let members = 0;
  try {
    value = source.parse(text, function (this: Json, _key, read, context) {
      if (!Array.isArray(this)) members += 1;
      return keepNumber(read, context);
    });
  } catch {
    throw new Untranslatable(field, 'is not JSON');
  }
  if (!isObject(value) || source.isRawJSON(value)) {
    throw new Untranslatable(field, 'is not a JSON object');
  }
  // The outermost value is a member too, of an object that is nowhere in the text.
  if (countColons(text) >= members) throw new Untranslatable(field, 'has a key that repeats');
  return value;
}

/** The colons outside of strings: one for each member. */
function countColons(text: string): number {
  let count = 0;
  let isString = false;
  for (let at = 0; at < text.length; at += 1) {
    const character = text[at];
    if (character === '"') isString = !isString;
    else if (isString && character === '\\') at += 1;
    else if (!isString && character === ':') count += 1;
  }
  return count;
}

function keepNumber(value: Json, context: { readonly source?: string }): Json {
  const isKept = typeof value !== 'number' || String(value) === context.source;
  return isKept || context.source === undefined ? value : source.rawJSON(context.source);
}

/** The number that was read, as near as a double comes; undefined for any other value. */
export function numberOf(value: Json | undefined): number | undefined {
  if (typeof value === 'number') return value;
  const isRaw = value !== undefined && source.isRawJSON(value);
  return isRaw ? Number((value as JsonObject).rawJSON) : undefined;
}

/** A value as JSON text, numbers as they stood in the text they were read from. */
export function writeText(value: Json): string {
  return JSON.stringify(value);
}

/** A value as JSON in UTF-8. */
export function write(value: Json): Uint8Array<ArrayBuffer> {
  return encoder.encode(writeText(value));
}
