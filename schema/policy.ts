/** Policy documents: what an agent may call, and how much it may spend. */

import { z } from 'zod';
import { type Nanos, parseDollars } from './money.ts';
import { MAX_GLOB_LENGTH } from './rules/glob.ts';

const MAX_LIST = 500;
const DAY_S = 86_400;

const glob = z.string().min(1).max(MAX_GLOB_LENGTH);
const globs = z.array(glob).max(MAX_LIST);

/** Dollars as a decimal string in the document, nano-dollars after parsing. */
export const dollars = z.string().transform((text, context): Nanos => {
  try {
    return parseDollars(text);
  } catch {
    context.addIssue({ code: 'custom', message: 'must be dollars as a string, such as "1.00"' });
    return z.NEVER;
  }
});

const explicitPrice = z.strictObject({ inputPerMillion: dollars, outputPerMillion: dollars });

/** The document; every key is optional, and an unknown key is an error, never ignored. */
export const policySchema = z.strictObject({
  models: z.strictObject({ allow: globs.optional(), deny: globs.optional() }).optional(),
  budget: z
    .strictObject({
      run: dollars.optional(),
      agentPerDay: dollars.optional(),
      agentPerMonth: dollars.optional(),
      orgPerMonth: dollars.optional(),
      minOutputTokens: z.int().min(1).max(1_000_000).default(16),
      unpriced: z.union([z.literal('deny'), explicitPrice]).default('deny'),
    })
    .prefault({}),
  run: z
    .strictObject({
      idleTimeoutS: z
        .int()
        .min(1)
        .max(30 * DAY_S)
        .default(900),
    })
    .prefault({}),
});

/** A policy as the rules read it. */
export type Policy = Readonly<z.output<typeof policySchema>>;

/** A policy as people write it. */
export type PolicyDocument = z.input<typeof policySchema>;

/** The most characters of a document's JSON. */
export const MAX_POLICY_LENGTH = 100_000;
