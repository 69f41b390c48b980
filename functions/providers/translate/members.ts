/** Reading members one by one, so that none is lost without a word. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isGiven, isObject } from '../../../schema/rules/bound.ts';
import { Untranslatable } from './contract.ts';

/** The refusal of a member that the other dialect has nothing for. */
export function noCounterpart(field: string): Untranslatable {
  return new Untranslatable(field, 'has no counterpart in the other dialect');
}

/**
 * Checks that an object says nothing beyond what is known; absent, null, false and empty members
 * say nothing.
 *
 * @param path What stands before the member's name in the refusal, such as `messages[].`.
 * @throws {Untranslatable}
 */
export function allowOnly(value: JsonObject, known: ReadonlySet<string>, path = ''): void {
  for (const key in value) {
    if (!known.has(key) && isGiven(value[key])) throw noCounterpart(`${path}${key.slice(0, 100)}`);
  }
}

/** A member that must be an object. @throws {Untranslatable} */
export function objectOf(value: Json | undefined, field: string): JsonObject {
  if (isObject(value)) return value;
  throw new Untranslatable(field, 'is not an object');
}

/** A member that must be a string. @throws {Untranslatable} */
export function stringOf(value: Json | undefined, field: string): string {
  if (typeof value === 'string') return value;
  throw new Untranslatable(field, 'is not a string');
}

/** A member that may be a flag; false where it is absent or null. @throws {Untranslatable} */
export function flagOf(value: Json | undefined, field: string): boolean {
  if (value === undefined || value === null) return false;
  if (typeof value === 'boolean') return value;
  throw new Untranslatable(field, 'is neither true nor false');
}

/** A member that may be a list; an empty one where it is absent or null. @throws {Untranslatable} */
export function listOf(value: Json | undefined, field: string): readonly Json[] {
  if (value === undefined || value === null) return [];
  if (Array.isArray(value)) return value;
  throw new Untranslatable(field, 'is not a list');
}

/** Those of the members that are there: neither absent nor null. */
export function present(members: { readonly [key: string]: Json | undefined }): JsonObject {
  const given = Object.entries(members).filter(([, value]) => value !== undefined);
  return Object.fromEntries(given.filter(([, value]) => value !== null)) as JsonObject;
}

const NAME = /^[A-Za-z0-9_-]{1,64}$/;
const ID = /^[A-Za-z0-9_-]{1,512}$/;

/** The name of a tool that both dialects take. @throws {Untranslatable} */
export function nameOf(value: Json | undefined, field: string): string {
  const name = stringOf(value, field);
  if (NAME.test(name)) return name;
  throw new Untranslatable(field, 'is not a name that both dialects take');
}

/** The id of a tool call that both dialects take. @throws {Untranslatable} */
export function callIdOf(value: Json | undefined, field: string): string {
  const id = stringOf(value, field);
  if (ID.test(id)) return id;
  throw new Untranslatable(field, 'is not an id that both dialects take');
}
