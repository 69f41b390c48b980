/** What every mutation answers with: what it changed, or why it changed nothing. */

import type { OutputType, ShapeFromTypeParam } from '@pothos/core';
import { builder } from './builder.ts';
import type { Context } from './context.ts';
import { USER_ERROR_CODES, type UserError, type UserErrorCode, UserErrors } from './errors.ts';

const UserErrorCodeType = builder.enumType('UserErrorCode', {
  description: 'Why a mutation did nothing.',
  values: Object.fromEntries(
    Object.entries(USER_ERROR_CODES).map(([code, description]) => [code, { description }]),
  ) as Record<UserErrorCode, { description: string }>,
});

/** A reason why a mutation did nothing, as its payload tells it: an `Error` would be thrown. */
export type ToldError = Pick<UserError, 'code' | 'field' | 'message'>;

/** A reason why a mutation did nothing. */
export const UserErrorType = builder.objectRef<ToldError>('UserError');

builder.objectType(UserErrorType, {
  description: 'A reason why a mutation did nothing.',
  fields: (t) => ({
    code: t.field({
      ...{ type: UserErrorCodeType, action: 'public', nullable: false },
      description: 'The kind of error.',
      resolve: ({ code }) => code,
    }),
    field: t.field({
      ...{ type: ['String'], action: 'public', nullable: false },
      description: 'The path of the field in the input.',
      resolve: ({ field }) => field,
    }),
    message: t.exposeString('message', {
      ...{ action: 'public', nullable: false },
      description: 'One sentence a person can act on.',
    }),
  }),
});

/** What a mutation brought about: all of `T`, or errors. */
export type Outcome<T> = { readonly [K in keyof T]?: T[K] | undefined } & {
  readonly errors: readonly ToldError[];
};

/** Runs a mutation; what its input can't be acted on for becomes part of the outcome. */
export async function attempt<T extends object>(
  context: Context,
  act: () => Promise<T>,
): Promise<Outcome<T>> {
  try {
    return { ...(await act()), errors: [] };
  } catch (error) {
    const explained = context.explain(error);
    if (!explained) throw error;
    const all = explained instanceof UserErrors ? explained.all : [explained];
    const errors = all.map(({ code, field, message }) => ({ code, field, message }));
    return { errors } as unknown as Outcome<T>;
  }
}

type PayloadFields<T extends object> = PothosSchemaTypes.ObjectFieldBuilder<Types, Outcome<T>>;
type Types = typeof builder extends PothosSchemaTypes.SchemaBuilder<infer T> ? T : never;

/** The field that every payload has. */
export function errorsField<T extends object>(t: PayloadFields<T>) {
  return t.field({
    ...{ type: [UserErrorType], action: 'public', nullable: false },
    description: 'Why nothing was changed; empty when everything was.',
    resolve: ({ errors }) => errors,
  });
}

/**
 * The payload of a mutation that answers with one thing, and with why nothing was changed.
 *
 * @param mutation The mutation's name.
 * @param key The field, and the member of what the mutation brought about.
 */
export function payloadOf<K extends string, T extends OutputType<Types>>(
  mutation: string,
  key: K,
  type: T,
  description: string,
) {
  type Made = Record<K, ShapeFromTypeParam<Types, T, false>>;
  return {
    description: `What ${mutation} brought about.`,
    outputFields: (t: PayloadFields<Made>) => ({
      [key]: t.field({
        ...{ type, action: 'public', nullable: true, description },
        // TypeScript can't tell what stands for nothing of a type that is still open.
        resolve: (outcome) => outcome[key] as never,
      }),
      errors: errorsField(t),
    }),
  };
}
