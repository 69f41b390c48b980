/** Parts that meters share: parsing an event, and members of a sane type. */

import type { Json, JsonObject } from '../../schema/json.ts';
import { isObject } from '../../schema/rules/bound.ts';
import type { Meter } from './contract.ts';

/** An event's data as an object; undefined for anything else, which is the caller's to read. */
export function parseEvent(data: string): JsonObject | undefined {
  try {
    const value = JSON.parse(data) as Json;
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** A member that is an object; an empty object where it is not. */
export function memberOf(value: JsonObject, key: string): JsonObject {
  const member = value[key];
  return isObject(member) ? member : {};
}

/** A member that is a string of a sane length. */
export function textOf(value: JsonObject, key: string): string | undefined {
  const member = value[key];
  return typeof member === 'string' && member.length <= 512 ? member : undefined;
}

/** For answers that cost nothing. */
export function freeMeter(): Meter {
  return {
    body() {},
    event: () => 'pass',
    reading: () => ({ complete: true }),
  };
}
