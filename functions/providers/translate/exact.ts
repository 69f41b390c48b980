/** JSON whose numbers keep every digit on their way through objects. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isObject } from '../../../schema/rules/bound.ts';
import { Untranslatable } from './contract.ts';

/** What ECMA-262 (24.5) adds for source texts, which the types do not know yet. */
interface SourceJson {
  parse(
    text: string,
    revive: (key: string, value: Json, context: { readonly source?: string }) => Json,
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
 * @throws {Untranslatable} for anything but an object.
 */
export function readExact(text: string | Uint8Array, field: string): JsonObject {
  let value: Json;
  try {
    value = source.parse(typeof text === 'string' ? text : decoder.decode(text), keepNumber);
  } catch {
    throw new Untranslatable(field, 'is not JSON');
  }
  if (!isObject(value) || source.isRawJSON(value)) {
    throw new Untranslatable(field, 'is not a JSON object');
  }
  return value;
}

function keepNumber(_key: string, value: Json, context: { readonly source?: string }): Json {
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
