/** Policy documents: what an agent may do, how much of it, and what a person must approve. */

import { z } from 'zod';
import { type Nanos, parseDollars } from './money.ts';
import { MAX_GLOB_LENGTH } from './rules/glob.ts';

const MAX_LIST = 500;
const DAY_S = 86_400;
const MONTH_S = 31 * DAY_S;

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

const approvalRule = z.strictObject({
  name: z.string().min(1).max(200).optional(),
  tool: glob,
  /** A CEL expression over `args`; absent for every call of the tool. */
  when: z.string().min(1).max(2_000).optional(),
  approvals: z.int().min(1).max(20).default(1),
  expiresAfterS: z.int().min(1).max(MONTH_S).default(3_600),
});

const denyRule = z.union([
  glob,
  z.strictObject({
    name: z.string().min(1).max(200).optional(),
    tool: glob,
    when: z.string().min(1).max(2_000).optional(),
  }),
]);

const windowS = z.int().min(1).max(MONTH_S);
const count = z.int().min(1).max(Number.MAX_SAFE_INTEGER);
const per = z.enum(['agent', 'policy', 'org']);

const limit = z.union([
  z.strictObject({ per, requests: count, windowS }),
  z.strictObject({ per, tokens: count, windowS }),
  z.strictObject({ per, concurrent: count }),
]);

const modelName = z.string().regex(/^[^/\s]{1,64}\/\S{1,256}$/, 'must be written key/model');

/** The document; every key is optional, and an unknown key is an error, never ignored. */
export const policySchema = z.strictObject({
  models: z.strictObject({ allow: globs.optional(), deny: globs.optional() }).optional(),
  hostedTools: z.strictObject({ allow: globs.optional(), deny: globs.optional() }).optional(),
  tools: z
    .strictObject({
      allow: globs.optional(),
      deny: z.array(denyRule).max(MAX_LIST).optional(),
      requireApproval: z.array(approvalRule).max(MAX_LIST).optional(),
      /** How long a call waits for a person by itself, seconds. */
      holdS: z.int().min(0).max(240).default(0),
      unreleasedResults: z.enum(['flag', 'deny']).default('flag'),
    })
    .optional(),
  limits: z.array(limit).max(20).optional(),
  budget: z
    .strictObject({
      run: dollars.optional(),
      agentPerDay: dollars.optional(),
      agentPerMonth: dollars.optional(),
      orgPerMonth: dollars.optional(),
      /** The share of a ceiling at which an alert is raised. */
      alertAt: z.number().gt(0).lte(1).default(0.8),
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
      maxSteps: z.int().min(1).max(1_000_000).optional(),
      maxDurationS: z
        .int()
        .min(1)
        .max(365 * DAY_S)
        .optional(),
    })
    .prefault({}),
  loop: z.strictObject({ sameRequest: z.int().min(2).max(1_000), windowS }).optional(),
  failover: z
    .array(z.strictObject({ model: modelName, to: z.array(modelName).min(1).max(8) }))
    .max(MAX_LIST)
    .optional(),
  capture: z.enum(['none', 'digest', 'sealed']).default('digest'),
});

/** A policy as the rules read it. */
export type Policy = Readonly<z.output<typeof policySchema>>;

/** A policy as people write it. */
export type PolicyDocument = z.input<typeof policySchema>;

/** The most characters of a document's JSON. */
export const MAX_POLICY_LENGTH = 100_000;
