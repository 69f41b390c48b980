/** Policy documents: what an agent may do, how much of it, and what a person must approve. */

import { z } from 'zod';
import { DOLLARS, parseDollars } from './money.ts';
import { type Problem, problemsOf } from './problems.ts';
import { compileCondition, InvalidCondition, MAX_CONDITION_LENGTH } from './rules/condition.ts';
import { MAX_GLOB_LENGTH } from './rules/glob.ts';

const MAX_LIST = 500;
const DAY_S = 86_400;
const MONTH_S = 31 * DAY_S;

const glob = z
  .string()
  .min(1)
  .max(MAX_GLOB_LENGTH)
  .describe('A glob: * stands for any characters, everything else for itself.');
const globs = z.array(glob).max(MAX_LIST);

/** Dollars as a decimal string in the document, nano-dollars after parsing. */
export const dollars = z
  .string()
  .regex(DOLLARS, 'must be dollars as a string, such as "1.00"')
  .describe('Dollars as a decimal string, such as "1.00"; at most nine decimals.')
  .transform(parseDollars);

const explicitPrice = z.strictObject({ inputPerMillion: dollars, outputPerMillion: dollars });

/** Compiled here, so that no version is ever stored with a condition that can't be asked. */
const condition = z
  .string()
  .min(1)
  .max(MAX_CONDITION_LENGTH)
  .superRefine((source, context) => {
    try {
      compileCondition(source);
    } catch (error) {
      if (!(error instanceof InvalidCondition)) throw error;
      context.addIssue({ code: 'custom', message: error.message });
    }
  })
  .describe(
    'CEL over args, tool.name and tool.args, that compiles and is true or false: args.amount_usd > 500',
  );

const ruleName = z.string().min(1).max(200).describe('What people call the rule.');

const approvalRule = z.strictObject({
  name: ruleName.optional(),
  tool: glob,
  /** Absent for every call of the tool. */
  when: condition.optional(),
  approvals: z.int().min(1).max(20).default(1).describe('How many people must approve.'),
  expiresAfterS: z.int().min(1).max(MONTH_S).default(3_600).describe('Then it is denied; seconds.'),
});

const denyRule = z.union(
  [glob, z.strictObject({ name: ruleName.optional(), tool: glob, when: condition.optional() })],
  { error: 'must be a glob of tools, or {"tool": "…", "when": "…"}' },
);

const windowS = z.int().min(1).max(MONTH_S).describe('Seconds.');
const count = z.int().min(1).max(Number.MAX_SAFE_INTEGER);
const per = z.enum(['token', 'agent', 'policy', 'org']).describe('What the amount is counted for.');

const limit = z.union(
  [
    z.strictObject({ per, requests: count, windowS }),
    z.strictObject({ per, tokens: count, windowS }),
    z.strictObject({ per, concurrent: count }),
  ],
  {
    error:
      'must have "per" and either "requests" and "windowS", "tokens" and "windowS", or "concurrent"',
  },
);

const modelName = z
  .string()
  .regex(/^[^/\s]{1,64}\/\S{1,256}$/u, 'must be written key/model')
  .describe('The name of a provider key and a model: openai/gpt-5.');

const targets = z.array(modelName).min(1).max(8).meta({ uniqueItems: true });

const failover = z
  .array(z.strictObject({ model: modelName, to: targets }))
  .max(MAX_LIST)
  .superRefine((entries, context) => {
    for (const [at, { model, to }] of entries.entries()) {
      if (entries.findIndex((entry) => entry.model === model) < at) {
        context.addIssue({ code: 'custom', path: [at, 'model'], message: `repeats "${model}"` });
      }
      for (const [index, target] of to.entries()) {
        if (target !== model && to.indexOf(target) === index) continue;
        const path = [at, 'to', index];
        context.addIssue({ code: 'custom', path, message: `repeats "${target}"` });
      }
    }
  });

/** The document; every key is optional, and an unknown key is an error, never ignored. */
export const policySchema = z.strictObject({
  models: z
    .strictObject({ allow: globs.optional(), deny: globs.optional() })
    .describe('Models as key/model. A list of what is allowed denies everything else.')
    .optional(),
  hostedTools: z
    .strictObject({ allow: globs.optional(), deny: globs.optional() })
    .describe('Tools that run upstream, by type; MCP servers as mcp/label or mcp/URL.')
    .optional(),
  tools: z
    .strictObject({
      allow: globs.optional(),
      deny: z.array(denyRule).max(MAX_LIST).optional(),
      requireApproval: z.array(approvalRule).max(MAX_LIST).optional(),
      holdS: z.int().min(0).max(240).default(0).describe('How long a call waits for a person.'),
      unreleasedResults: z
        .enum(['flag', 'deny'])
        .default('flag')
        .describe('What becomes of a tool result that answers no released call.'),
    })
    .describe(
      'Tools that the agent or an MCP server runs: first deny, then requireApproval, then allow. A tool of a server is label/name; deny and requireApproval mean what follows a slash, too.',
    )
    .optional(),
  limits: z.array(limit).max(20).optional(),
  budget: z
    .strictObject({
      run: dollars.optional(),
      agentPerDay: dollars.optional(),
      agentPerMonth: dollars.optional(),
      orgPerMonth: dollars.optional(),
      alertAt: z
        .number()
        .gt(0)
        .lte(1)
        .default(0.8)
        .describe('The share at which an alert is raised.'),
      minOutputTokens: z.int().min(1).max(1_000_000).default(16),
      unpriced: z
        .union([z.literal('deny'), explicitPrice], {
          error: 'must be "deny", or {"inputPerMillion": "…", "outputPerMillion": "…"}',
        })
        .default('deny'),
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
  loop: z
    .strictObject({ sameRequest: z.int().min(2).max(1_000), windowS })
    .describe('The same request so often within the window stops the run.')
    .optional(),
  failover: failover
    .describe(
      'Where a call goes when its upstream fails, in order. A model stands once, and not among its own targets.',
    )
    .optional(),
  capture: z
    .enum(['none', 'digest', 'sealed'])
    .default('digest')
    .describe('What is kept of request and response bodies.'),
});

/** A policy as the rules read it. */
export type Policy = Readonly<z.output<typeof policySchema>>;

/** A policy as people write it. */
export type PolicyDocument = z.input<typeof policySchema>;

/** The most characters of a document's JSON: code points, as all characters of the schema are. */
const MAX_POLICY_LENGTH = 100_000;
const policyText = z
  .string()
  .max(MAX_POLICY_LENGTH, `must be at most ${MAX_POLICY_LENGTH} characters`);

/** What is wrong with a document as it is written; empty for one that can be a version. */
export function judgePolicy(document: unknown): Problem[] {
  const { error } = policySchema.safeParse(document);
  if (error) return problemsOf(error.issues);
  return problemsOf(policyText.safeParse(JSON.stringify(document)).error?.issues ?? []);
}

/**
 * The JSON Schema (draft 2020-12) of the document as people write it.
 *
 * @param url Where the schema is published.
 */
export function policyJsonSchema(url: string): object {
  const { $schema, ...schema } = z.toJSONSchema(policySchema, { io: 'input' });
  const title = 'Rungate policy';
  const description = `What an agent may do; as JSON without spaces, at most ${MAX_POLICY_LENGTH} characters.`;
  return { $schema, $id: url, title, description, ...schema };
}
