/** Events: what other systems are told, one schema each, and the envelope that all of them have. */

import { z } from 'zod';

const id = z.string().min(1).max(300);
const name = z.string().max(300);
/** As long as the rules for tools let one be. */
const tool = z.string().max(512);
const at = z.iso.datetime();

const RUN_ID = 'run_01j9z0c4m2n8v5x7b3k6w1q0ta';
const AGENT_ID = 'agt_01j9z0c4m2n8v5x7b3k6w1q0tb';
const GATE_ID = 'gate_01j9z0c4m2n8v5x7b3k6w1q0tc';

const nanos = z.int().min(0).describe('Nano-dollars: 1,000,000,000 of them are one dollar.');
const runId = id.describe('The run, by its run_ id.').meta({ examples: [RUN_ID] });
const agentId = id.describe('The agent whose run it is.').meta({ examples: [AGENT_ID] });
const policy = name
  .describe('The policy and the version that the run keeps, such as prod-agents/v4.')
  .meta({ examples: ['prod-agents/v4'] });

const run = z.object({
  runId,
  run: name
    .describe('The name that the caller gave the run, or its id where it gave none.')
    .meta({ examples: ['nightly-report-17'] }),
  agentId,
  policy,
});
const ended = run.extend({
  reason: name.describe('Why: completed, idle, or the rule that stopped it.').meta({
    examples: ['completed'],
  }),
  spentNanos: nanos.describe('What the run has spent, in nano-dollars.').meta({
    examples: [412_000_000],
  }),
});
const gate = z.object({
  gateId: id.describe('The gate that waits for a decision.').meta({ examples: [GATE_ID] }),
  runId,
  agentId,
  tool: tool.describe('The tool that the agent wants to call.').meta({
    examples: ['issue_refund'],
  }),
  rule: z
    .string()
    .max(1_000)
    .describe('The rule that asks for a person.')
    .meta({
      examples: ['refund over $500'],
    }),
  expiresAt: at.describe('When the gate closes by itself, which counts as a denial.').meta({
    examples: ['2026-03-01T12:00:00.000Z'],
  }),
});
const decided = gate.extend({
  decidedBy: name
    .describe('Who decided it.')
    .meta({ examples: ['usr_01j9z0c4m2n8v5x7b3k6w1q0td'] }),
});
const money = z.object({
  scope: z
    .enum(['run', 'agent_per_day', 'agent_per_month', 'org_per_month'])
    .describe('Whose ceiling it is.')
    .meta({ examples: ['run'] }),
  runId,
  agentId,
  spentNanos: nanos.describe('What was spent in the scope, in nano-dollars.').meta({
    examples: [800_000_000],
  }),
  ceilingNanos: nanos.describe('The most that may be spent, in nano-dollars.').meta({
    examples: [1_000_000_000],
  }),
});

/** The data of every type of event. */
export const EVENTS = {
  'run.started': run.describe('A run has opened with its first call.'),
  'run.completed': ended.describe('A run has been completed, or was idle for too long.'),
  'run.blocked': ended.describe('A run was stopped; its further calls are refused.'),
  'step.failed_over': z
    .object({
      runId,
      stepId: id.describe('The step that failed.').meta({
        examples: ['stp_01j9z0c4m2n8v5x7b3k6w1q0te'],
      }),
      from: name.describe('The model that failed, as key/model.').meta({
        examples: ['openai/gpt-5'],
      }),
      to: name.describe('The model that is tried next.').meta({
        examples: ['anthropic/claude-sonnet-5'],
      }),
    })
    .describe('A call went to another upstream because the one before it had failed.'),
  'approval.pending': gate
    .extend({
      url: z
        .url()
        .optional()
        .describe('Where a person can see and decide it.')
        .meta({
          examples: ['https://gate.example.com/gates/decide'],
        }),
    })
    .describe('A tool call waits for a person.'),
  'approval.approved': decided.describe('A tool call was approved.'),
  'approval.rejected': decided.describe('A tool call was rejected.'),
  'approval.expired': gate.describe('Nobody decided on a tool call in time.'),
  'budget.alert': money
    .extend({
      alertAt: z
        .number()
        .describe('The share of the ceiling that was reached.')
        .meta({
          examples: [0.8],
        }),
    })
    .describe('Spending has reached the share of a ceiling at which the policy warns.'),
  'budget.exceeded': money.describe('A ceiling does not leave enough for a further call.'),
  'alert.fired': z
    .object({
      ruleId: id.describe('The rule of alerts, by its id.').meta({
        examples: ['alr_01j9z0c4m2n8v5x7b3k6w1q0th'],
      }),
      name: name.describe('What the rule is called.').meta({ examples: ['Errors of an hour'] }),
      metric: z
        .enum(['spend', 'blocked_runs', 'pending_gates', 'error_rate'])
        .describe('What the rule watches.')
        .meta({ examples: ['error_rate'] }),
      value: z
        .int()
        .min(0)
        .describe('What it came to: nano-dollars, a count, or a percentage of calls.')
        .meta({ examples: [12] }),
      threshold: z
        .int()
        .min(1)
        .describe('From which value on the rule fires.')
        .meta({
          examples: [10],
        }),
      windowS: z
        .int()
        .min(1)
        .describe('Over how many seconds it looks back.')
        .meta({
          examples: [3_600],
        }),
    })
    .describe('A rule of alerts has fired: what it watches has reached its threshold.'),
  'policy.drift': z
    .object({
      runId,
      agentId,
      policy,
      kind: name.describe('What the agent tried: a model, a tool …').meta({ examples: ['tool'] }),
      rule: z
        .string()
        .max(1_000)
        .describe('The rule that denied it.')
        .meta({
          examples: ['tools.deny[0]'],
        }),
      asked: z
        .string()
        .max(10_000)
        .describe('What it asked for.')
        .meta({
          examples: ['drop_table'],
        }),
    })
    .describe('An agent tried what its policy denies; told once per kind and window.'),
  'account.updated': z
    .object({
      change: name.describe('What changed of the org itself.').meta({ examples: ['plan'] }),
    })
    .describe('The account of the org has changed.'),
  'admin_token.created': z
    .object({
      tokenId: id.describe('The token, by its id.').meta({
        examples: ['tok_01j9z0c4m2n8v5x7b3k6w1q0tf'],
      }),
      actions: z
        .array(z.string())
        .describe('What the token permits.')
        .meta({
          examples: [['run.read']],
        }),
    })
    .describe('A token for the admin API was made.'),
  'agent.created': z
    .object({
      agentId: id.describe('The agent.').meta({ examples: [AGENT_ID] }),
      name: name.describe('What it is called.').meta({ examples: ['support'] }),
    })
    .describe('An agent was made.'),
  'webhook.disabled': z
    .object({
      webhookId: id.describe('The endpoint that gets nothing more.').meta({
        examples: ['whk_01j9z0c4m2n8v5x7b3k6w1q0tg'],
      }),
      reason: name.describe('gone: it answered 410; failing: nothing got through for days.').meta({
        examples: ['gone'],
      }),
    })
    .describe('An endpoint was disabled because of its answers, or for want of any.'),
} as const;

/** The name of a type of event. */
export type EventType = keyof typeof EVENTS;

/** The data of an event. */
export type EventData<T extends EventType> = z.output<(typeof EVENTS)[T]>;

/** All types of events, in the order in which they are documented. */
export const EVENT_TYPES = Object.keys(EVENTS) as EventType[];

/** Whether a text is the name of a type of event. */
export function isEventType(text: string): text is EventType {
  return Object.hasOwn(EVENTS, text);
}

/** An event as it is delivered. */
export interface Envelope<T extends EventType = EventType> {
  /** The same in every delivery of this event: by it, a receiver knows what it has had. */
  readonly id: string;
  readonly type: T;
  /** RFC 3339, in UTC. */
  readonly createdAt: string;
  readonly orgId: string;
  readonly data: EventData<T>;
  /** Only in an event that tells of nothing, sent to try an endpoint. */
  readonly test?: true;
}

/** An event as it is stored. */
export interface StoredEvent {
  readonly id: string;
  readonly type: EventType;
  readonly orgId: string;
  /** Unix milliseconds. */
  readonly createdAt: number;
  /** JSON, taken over as it stands. */
  readonly data: string;
  readonly isTest: boolean;
}

/** The JSON of an {@link Envelope}: the same bytes whenever the event is delivered. */
export function formatEnvelope(event: StoredEvent): string {
  const createdAt = new Date(event.createdAt).toISOString();
  const head = JSON.stringify({ id: event.id, type: event.type, createdAt, orgId: event.orgId });
  return `${head.slice(0, -1)},"data":${event.data}${event.isTest ? ',"test":true' : ''}}`;
}

/** The schema of what is delivered for one type of event. */
function envelopeSchema(type: EventType) {
  return z
    .object({
      id: id.describe('The event, the same in every delivery of it.'),
      type: z.literal(type),
      createdAt: at.describe('When it happened, as RFC 3339 in UTC.'),
      orgId: id.describe('The org in which it happened.'),
      data: EVENTS[type],
      test: z.literal(true).optional().describe('There in a test event, which tells of nothing.'),
    })
    .describe(EVENTS[type].description ?? '');
}

/**
 * The JSON Schema (draft 2020-12) of everything that is delivered: `oneOf` the envelopes, each
 * under its type in `$defs`.
 *
 * @param url Where it is published.
 */
export function eventsJsonSchema(url: string): object {
  const defs = EVENT_TYPES.map((type) => {
    const { $schema: _, ...schema } = z.toJSONSchema(envelopeSchema(type));
    return [type, schema] as const;
  });
  return {
    $schema: 'https://json-schema.org/draft/2020-12/schema',
    $id: url,
    title: 'Events of Rungate',
    oneOf: EVENT_TYPES.map((type) => ({ $ref: `#/$defs/${type}` })),
    $defs: Object.fromEntries(defs),
  };
}

/** Data for a test event of a type, from the examples of its schema. */
export function exampleOf<T extends EventType>(type: T): EventData<T> {
  const fields = Object.entries<z.ZodType>(EVENTS[type].shape);
  const data = fields.map(([field, schema]) => [field, firstExample(schema)]);
  return EVENTS[type].parse(Object.fromEntries(data)) as EventData<T>;
}

function firstExample(schema: z.ZodType): unknown {
  const { examples } = schema.meta() ?? {};
  return Array.isArray(examples) ? examples[0] : undefined;
}

const MAX_SUBSCRIBED = 100;

/** What an endpoint subscribes to: `["*"]`, or some types, each once. */
export const subscriptionSchema = z
  .array(z.string())
  .min(1, 'must name at least one type of event, or "*"')
  .max(MAX_SUBSCRIBED)
  .superRefine((types, context) => {
    for (const [index, type] of types.entries()) {
      if (type === '*' || isEventType(type)) continue;
      const message = `must be "*" or one of ${EVENT_TYPES.join(', ')}`;
      context.addIssue({ code: 'custom', path: [index], message });
    }
  })
  .transform((types) => (types.includes('*') ? ['*'] : [...new Set(types)].sort()));
