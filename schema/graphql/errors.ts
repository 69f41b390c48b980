/** Errors of the admin API: what a caller got wrong, and what he may not do. */

import { GraphQLError, type GraphQLResolveInfo } from 'graphql';
import type { AdminAction } from '../roles.ts';

/** Why a mutation did nothing; the closed set of `UserError.code`. */
export const USER_ERROR_CODES = {
  INVALID: 'A value is not valid.',
  NOT_FOUND: 'There is no such object in this org.',
  CONFLICT: 'A name is taken, or the object was changed at the same time.',
  FORBIDDEN: 'What is asked is more than the viewer may do.',
} as const;

/** A reason to refuse a mutation. */
export type UserErrorCode = keyof typeof USER_ERROR_CODES;

/** A mutation's input can't be acted on; told in its payload, with the field. */
export class UserError extends Error {
  override readonly name = 'UserError';
  readonly code: UserErrorCode;
  /** The path of the field in the input. */
  readonly field: readonly string[];

  /** @param message One sentence a person can act on. */
  constructor(code: UserErrorCode, field: readonly string[], message: string) {
    super(message);
    this.code = code;
    this.field = field;
  }
}

/** Several faults of one input; the first of them speaks where only one can be told. */
export class UserErrors extends UserError {
  readonly all: readonly UserError[];

  /** @param all At least one. */
  constructor(all: readonly UserError[]) {
    const { code, field, message } = all[0]!;
    super(code, field, message);
    this.all = all;
  }
}

/** The error of something that isn't there, or is another org's: both answer the same. */
export function notFound(...field: readonly string[]): UserError {
  return new UserError('NOT_FOUND', field, 'There is no such object in this org.');
}

/** A mutation that the viewer's actions don't cover. */
export interface RefusedMutation {
  readonly field: string;
  readonly action: AdminAction;
}

/** The error of a field that the viewer's actions don't cover; a mutation's is noted for the audit. */
export function forbidden(
  context: { readonly refused: RefusedMutation[] },
  info: GraphQLResolveInfo,
): GraphQLError {
  const { fieldName: field, parentType } = info;
  const action = parentType.getFields()[field]?.extensions.action as AdminAction;
  if (parentType.name === 'Mutation') context.refused.push({ field, action });
  return new GraphQLError(`This takes the action ${action}, which the viewer may not do.`, {
    extensions: { code: 'FORBIDDEN', action },
  });
}
