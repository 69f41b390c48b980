/** Input that scalars alone can't check: parsed with the schema that every other edge uses. */

import type { z } from 'zod';
import { formatPlace, type Problem, problemsOf } from '../problems.ts';
import { UserError, UserErrors } from './errors.ts';

/**
 * Parses a value of a mutation's input.
 *
 * @param field What the input calls it.
 * @throws {UserError} `INVALID` with every fault and its place, each in a sentence.
 */
export function parseInput<T>(schema: z.ZodType<T>, value: unknown, field: string): T {
  const parsed = schema.safeParse(value);
  if (!parsed.success) rejectProblems(problemsOf(parsed.error.issues), field);
  return parsed.data as T;
}

/**
 * Refuses a value of a mutation's input that has faults.
 *
 * @param field What the input calls it.
 * @throws {UserError} `INVALID` as {@link parseInput}, unless there are none.
 */
export function rejectProblems(problems: readonly Problem[], field: string): void {
  const errors = problems.slice(0, MAX_TOLD).map(({ path, message }) => {
    const place = [field, ...path];
    return new UserError('INVALID', place.map(String), `${formatPlace(place)} ${message}.`);
  });
  if (errors.length > 0) throw new UserErrors(errors);
}

const MAX_TOLD = 20;
