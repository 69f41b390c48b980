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
const UserErrorType = builder.objectRef<ToldError>('UserError');

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
export type Outcome<T> =
  | (T & { readonly errors: readonly [] })
  | ({ readonly [K in keyof T]?: undefined } & { readonly errors: readonly ToldError[] });

/** Runs a mutation; what its input can't be acted on for becomes part of the outcome. */
export async function attempt<T extends object>(
  context: Context,
  act: (context: Context) => Promise<T>,
): Promise<Outcome<T>> {
  try {
    return { ...(await act(context)), errors: [] };
  } catch (error) {
    const explained = context.explain(error);
    if (!explained) throw error;
    const all = explained instanceof UserErrors ? explained.all : [explained];
    const errors = all.map(({ code, field, message }) => ({ code, field, message }));
    return { errors } as Outcome<T>;
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

/** What a payload tells besides errors, by field: its type and its description. */
type Told = Readonly<Record<string, readonly [type: OutputType<Types>, description: string]>>;

/** What a mutation must bring about for its payload to tell it. */
type Made<F extends Told> = { readonly [K in keyof F]: ShapeFromTypeParam<Types, F[K][0], true> };

/**
 * The payload of a mutation: members of what it brought about, or why nothing was changed.
 *
 * @param mutation The mutation's name.
 * @param told The type and the description of each field, by the member that it tells; all of them
 *   are null where there are errors.
 * @returns the last argument of `builder.relayMutationField`.
 */
export function payloadOf<const F extends Told>(mutation: string, told: F) {
  return {
    description: `What ${mutation} brought about.`,
    outputFields: (t: PayloadFields<Made<F>>) => ({
      ...Object.fromEntries(
        Object.entries(told).map(([key, [type, description]]) => [
          key,
          t.field({
            ...{ type, action: 'public', nullable: true, description },
            // TypeScript can't tell what stands for nothing of a type that is still open.
            resolve: (outcome) => outcome[key as keyof F] as never,
          }),
        ]),
      ),
      errors: errorsField(t),
    }),
  };
}
