/** What things may be called: the rules of every way in, checked where input arrives. */

import { z } from 'zod';

/** What agents, policies and provider keys are called: it goes into labels, routes and headers. */
export const nameSchema = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, 'must be 1 to 64 of A-Z a-z 0-9 . _ -');

/** A policy, any version of it, or one: `prod-agents`, `prod-agents/v4`. */
export const choiceSchema = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(?:\/v[1-9]\d{0,8})?$/, 'must be a policy, or policy/v2');

const LINE = /^[^\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]{1,100}$/u;

/** What people call an org or a token of theirs. */
export const titleSchema = z
  .string()
  .trim()
  .regex(LINE, 'must be a name of 1 to 100 characters on one line');

/** A model below the provider key that it is asked for with: `openai/gpt-5`; a glob is none. */
export const modelSchema = z
  .string()
  .max(256)
  .regex(
    /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\/[\x21-\x29\x2b-\x7e]+$/,
    'must be written key/model, and name one model without a *',
  );

/** A word of a caller's own that is kept as it is, so that whoever is shown it sees all of it. */
export const wordSchema = (maxChars: number) =>
  z
    .string()
    .min(1)
    .max(maxChars)
    // biome-ignore lint/suspicious/noControlCharactersInRegex: a schema that is published is read with no flags
    .regex(/^[^\u0000-\u001f\u007f-\u009f]*$/, 'must have no control characters');
