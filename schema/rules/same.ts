/** An equality that never guesses: values of different kinds can't be told to be equal or not. */

import { CHARS_PER_STEP, spend } from './steps.ts';

/** `undefined` where it can't be told. */
export type Verdict = boolean | undefined;

type Members = readonly unknown[] | Uint8Array;
type Entries = ReadonlyMap<unknown, unknown>;

/** Whether two values are the same, at any depth. */
export function isSame(left: unknown, right: unknown): Verdict {
  spend(1);
  if (left === null || right === null) return left === right;
  const kind = kindOf(left);
  if (kind !== kindOf(right)) return undefined;
  if (kind === 'list') return areSame(left as Members, right as Members);
  if (kind === 'map') return haveSame(entriesOf(left), entriesOf(right));
  if (typeof left === 'string') {
    spend(Math.min(left.length, (right as string).length) / CHARS_PER_STEP);
  }
  // biome-ignore lint/suspicious/noDoubleEquals: a whole number is the double that it equals
  return plainOf(left) == plainOf(right);
}

/** Whether a list has a member, or a map a key; one that is the same is enough. */
export function isWithin(value: unknown, whole: unknown): Verdict {
  const kind = kindOf(whole);
  if (kind !== 'list' && kind !== 'map') return undefined;
  let verdict: Verdict = false;
  for (const member of kind === 'map' ? entriesOf(whole).keys() : (whole as Members)) {
    const isMember = isSame(value, member);
    if (isMember) return true;
    verdict = verdict === undefined ? undefined : isMember;
  }
  return verdict;
}

/** What is not of one of CEL's kinds for JSON goes by its class, such as a moment. */
function kindOf(value: unknown): unknown {
  if (typeof value === 'number' || typeof value === 'bigint') return 'number';
  if (typeof value !== 'object' || value === null) return typeof value;
  if (Array.isArray(value) || value instanceof Uint8Array) return 'list';
  const isRecord = [Object.prototype, null].includes(Object.getPrototypeOf(value));
  if (value instanceof Map || isRecord) return 'map';
  return typeof plainOf(value) === 'bigint' ? 'number' : value.constructor;
}

/** The number within an object that stands for one, such as a moment or an unsigned integer. */
function plainOf(value: unknown): unknown {
  return value instanceof Object ? value.valueOf() : value;
}

/** All of them; one that differs is enough for a difference. */
function areSame(left: Members, right: Members): Verdict {
  if (left.length !== right.length) return false;
  let verdict: Verdict = true;
  for (const [at, member] of left.entries()) {
    const isAlike = isSame(member, right[at]);
    if (isAlike === false) return false;
    verdict &&= isAlike;
  }
  return verdict;
}

function entriesOf(value: unknown): Entries {
  if (value instanceof Map) return value;
  const entries = Object.entries(value as object);
  spend(entries.length);
  return new Map(entries);
}

function haveSame(left: Entries, right: Entries): Verdict {
  if (left.size !== right.size) return false;
  const keys = [...left.keys()];
  spend(keys.length);
  if (keys.some((key) => !right.has(key))) return false;
  return areSame(
    keys.map((key) => left.get(key)),
    keys.map((key) => right.get(key)),
  );
}
