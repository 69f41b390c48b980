/** What is wrong with a document, each fault at its place and in words for whoever wrote it. */

import type { z } from 'zod';

/** One fault of a document. */
export interface Problem {
  /** Keys and indexes from the top. */
  readonly path: readonly PropertyKey[];
  /** A clause after the place, such as `is missing; wanted: string`. */
  readonly message: string;
}

/** Zod's own words, and ours. */
const WORDING: readonly (readonly [RegExp, string])[] = [
  [/^Invalid input: expected (.*), received undefined$/, 'is missing; wanted: $1'],
  [/^Invalid input: expected (.*), received (.*)$/, 'must be $1, not $2'],
  [/^Invalid option: expected (.*)$/, 'must be $1'],
];

/**
 * The faults that a schema has found. Where there are several forms to choose from, those of the
 * form that was meant, if it can be told by its keys; else what the forms are.
 */
export function problemsOf(issues: readonly z.core.$ZodIssue[]): Problem[] {
  return issues.flatMap((issue) => explain(issue, []));
}

/** Writes a place as JavaScript would: `policies[0].document.budget.run`. */
export function formatPlace(path: readonly PropertyKey[]): string {
  const steps = path.map((key) => (typeof key === 'number' ? `[${key}]` : `.${String(key)}`));
  return steps.join('').replace(/^\./, '');
}

function explain(issue: z.core.$ZodIssue, above: readonly PropertyKey[]): Problem[] {
  const path = [...above, ...issue.path];
  if (issue.code === 'invalid_union') {
    const forms = issue.errors.filter((errors) => errors.every((each) => each.path.length > 0));
    const [meant, other] = forms;
    if (meant && !other) return meant.flatMap((each) => explain(each, path));
  }
  return [{ path, message: reword(issue.message) }];
}

function reword(message: string): string {
  const known = WORDING.find(([pattern]) => pattern.test(message));
  const text = known ? message.replace(...known) : message;
  return text.replace(/^[A-Z]/, (letter) => letter.toLowerCase());
}
