/** Globs as policies write them: `*` stands for any characters, everything else for itself. */

import { fold } from '../json.ts';

/** The longest pattern a policy may hold, in characters. */
export const MAX_GLOB_LENGTH = 256;

/**
 * Whether a text matches a glob as a whole. Takes at most `pattern × text` steps and keeps no
 * stack, so that no pattern can stall a call.
 */
export function matchesGlob(pattern: string, text: string): boolean {
  let at = 0;
  let read = 0;
  let star = -1;
  let resume = 0;
  while (read < text.length) {
    if (pattern[at] === '*') {
      star = at++;
      resume = read;
    } else if (at < pattern.length && pattern[at] === text[read]) {
      at++;
      read++;
    } else if (star >= 0) {
      at = star + 1;
      read = ++resume;
    } else {
      return false;
    }
  }
  while (pattern[at] === '*') at++;
  return at === pattern.length;
}

/** The first glob of a list that matches, or `undefined`. */
export function findGlob(patterns: readonly string[], text: string): string | undefined {
  return patterns.find((pattern) => matchesGlob(pattern, text));
}

/** A name as lenient readers take it: clients may trim it, and hosts ignore what can't be seen. */
export function foldName(name: string): string {
  if (PLAIN.test(name)) return name.toLowerCase();
  return fold(name.replace(/[\s\p{Cc}\p{Default_Ignorable_Code_Point}]/gu, ''));
}

/** Nearly every name: only its case is folded. */
const PLAIN = /^[\x21-\x7e]*$/;
