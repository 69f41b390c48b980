/** What Rungate's own REST routes answer, as schemas: the routes promise them, and they are published. */

import { z } from 'zod';
import { ERRORS, type ErrorCode } from './errors.ts';
import { NO_USAGE } from './usage.ts';

const id = z.string().min(1).max(300);
const millis = z.int().min(0).describe('Unix milliseconds.');
const time = z.iso.datetime();
const nanos = z.int().min(0).describe('Nano-dollars: 1,000,000,000 of them are one dollar.');
const dollars = z
  .string()
  .regex(/^\d+(\.\d+)?$/)
  .describe('Dollars as a decimal string.');
const text = z.string();

/** A run as its agent sees it. */
export const runSchema = z
  .strictObject({
    id: id.describe('The run, by its run_ id.'),
    name: text.describe('The name that the caller gave it, or its id where it gave none.'),
    source: text.describe('Where the name was found, such as x-rungate-run-id.'),
    status: z.enum(['open', 'completed', 'blocked', 'cancelled']),
    agent: text.describe('The name of the agent.'),
    policy: text.nullable().describe('The policy and the version that it keeps.'),
    ceilingNanos: nanos.nullable().describe('The most that it may spend; null for no ceiling.'),
    spentNanos: nanos,
    heldNanos: nanos.describe('What calls in flight may still cost.'),
    ceiling: dollars.nullable(),
    spent: dollars,
    held: dollars,
    stepCount: z.int().min(0),
    openedAt: millis,
    activeAt: millis,
    closedAt: millis.nullable(),
    closedReason: text
      .nullable()
      .describe('completed, idle, cancelled, or the rule that stopped it.'),
    blockedUntil: millis.nullable().describe('When it may go on; null where it may not.'),
  })
  .describe('A run of the calling agent: its state and its money.');

const counts = Object.keys(NO_USAGE).map((name) => [name, z.int().min(0).optional()]);

/** A step of a run's trail. */
export const stepSchema = z
  .strictObject({
    id: id.describe('The step, by its stp_ id.'),
    kind: z.enum(['model_call', 'tool_call', 'retry', 'failover', 'gate', 'denial', 'note']),
    tokenId: id,
    endpoint: text,
    provider: text.nullable(),
    providerKey: text.nullable(),
    model: text.nullable().describe('As the upstream was asked for it.'),
    servedModel: text.nullable(),
    serviceTier: text.nullable(),
    outcome: text.nullable().describe('ok, or why not; null while it is under way.'),
    httpStatus: z.int().nullable(),
    startedAt: millis,
    settledAt: millis.nullable().describe('When its cost was settled; null before.'),
    heldNanos: nanos,
    spentNanos: nanos,
    estimated: z.boolean().describe('Whether the cost is an upper estimate.'),
    usage: z
      .strictObject(Object.fromEntries(counts) as Record<string, z.ZodOptional<z.ZodInt>>)
      .nullable()
      .describe('Counts that are not zero; null where none are known.'),
    catalogue: text.nullable().describe('The version of the price catalogue.'),
    outputLimit: z.int().nullable().describe('The output limit sent upstream where lowered.'),
    firstByteMs: z.number().min(0).nullable(),
    latencyMs: z.number().min(0).nullable(),
    requestDigest: text.nullable(),
    responseDigest: text.nullable(),
    upstreamRequestId: text.nullable(),
    detail: z.looseObject({}).nullable().describe('More of it, by its kind.'),
  })
  .describe('A step of a run’s trail; null where a part of it is not known.');

/** A page of a run's trail. */
export const stepsSchema = z
  .strictObject({
    runId: text.describe('The name of the run.'),
    steps: z.array(stepSchema),
    next: id.nullable().describe('The `after` of the next page; null on the last one.'),
  })
  .describe('A page of a run’s trail in the order of time.');

/** What came of a report. */
export const reportedSchema = z
  .strictObject({ runId: text.describe('The name of the run.'), step: stepSchema })
  .describe('The step that stands for the report.');

const gateStatus = z.enum(['pending', 'approved', 'rejected', 'expired', 'released']);

/** How a gate stands. */
export const gateSchema = z
  .strictObject({
    id: id.describe('The gate, by its gate_ id.'),
    status: gateStatus,
    tool: text,
    rule: text.describe('The rule that asks, as a path in the policy.'),
    ruleName: text,
    approvals: z.int().min(1).describe('How many approvals it takes.'),
    given: z.int().min(0).describe('How many it has.'),
    stepId: id.nullable(),
    runId: text.describe('The name of the run.'),
    createdAt: time,
    expiresAt: time.describe('When it closes by itself, which counts as a denial.'),
    decidedAt: time.nullable(),
  })
  .describe('A tool call that a person has to decide on: how it stands.');

/** Whether a tool may be run. */
export const verdictSchema = z
  .strictObject({
    decision: z.enum(['allow', 'ask', 'deny']),
    released: z.literal(true).optional().describe('There when a person has approved this call.'),
    rule: text.nullable().describe('The rule that decided, as a path in the policy.'),
    reason: text.nullable().describe('Why, in a sentence.'),
    gate: z
      .strictObject({ id, status: gateStatus, url: z.url().optional(), expiresAt: time })
      .optional()
      .describe('The gate that a person decides; its status may be asked for.'),
    runId: text.describe('The name of the run.'),
    policy: text.describe('The policy and its version.'),
  })
  .describe('Whether a tool may be run with these arguments.');

/** A webhook's new secret. */
export const rotatedSchema = z
  .strictObject({
    id: id.describe('The webhook, by its whk_ id.'),
    secret: z.string().startsWith('whsec_').describe('The new secret; it is not shown again.'),
    previousUntil: time.nullable().describe('Until when the secret before it signs too.'),
  })
  .describe('A webhook’s new secret.');

/** What a tick did. */
export const tickSchema = z
  .strictObject({
    jobs: z.array(
      z.strictObject({
        name: text,
        outcome: z.enum(['done', 'failed', 'busy']),
        durationMs: z.int().min(0),
        counts: z.record(z.string(), z.number()).optional(),
        error: text.optional(),
      }),
    ),
  })
  .describe('What a tick of the scheduled jobs did.');

const rungate = z
  .looseObject({ code: z.enum(Object.keys(ERRORS) as [ErrorCode, ...ErrorCode[]]) })
  .describe('What a machine can read: the code, and what decided.');

/** A refusal, in the form of either family of clients. */
export const errorSchema = z
  .union([
    z.strictObject({
      error: z.strictObject({
        message: text.describe('Why, in a sentence.'),
        type: text,
        param: text.nullable(),
        code: text,
        rungate,
      }),
    }),
    z.strictObject({
      type: z.literal('error'),
      error: z.strictObject({ type: text, message: text, rungate }),
      request_id: text,
    }),
  ])
  .describe('A refusal: as OpenAI’s clients read it, or Anthropic’s where their headers are sent.');
