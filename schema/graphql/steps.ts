/** Steps: the trail of a run, with what each call used and, for those who may, its kept bodies. */

import type { Nanos } from '../money.ts';
import { NO_USAGE, type Usage } from '../usage.ts';
import { builder } from './builder.ts';
import type { Body, RunStep, StepKind } from './context.ts';
import './scalars.ts';
import { Money } from './scalars.ts';

/** What stands in a step's own row costs nothing more to read. */
const READ = { action: 'run.read', nullable: true, complexity: 0 } as const;

/** One row of the trail. */
export const StepType = builder.objectRef<RunStep>('Step');

const KINDS = {
  MODEL_CALL: { value: 'model_call', description: 'A call to a model.' },
  TOOL_CALL: { value: 'tool_call', description: 'A tool that the agent ran and reported.' },
  RETRY: { value: 'retry', description: 'A further attempt at the same upstream.' },
  FAILOVER: { value: 'failover', description: 'An attempt at another upstream.' },
  GATE: { value: 'gate', description: 'A gate was opened, decided, used or expired.' },
  DENIAL: { value: 'denial', description: 'A call that was refused.' },
  NOTE: { value: 'note', description: 'A remark on a call that went on.' },
} as const satisfies Record<string, { value: StepKind; description: string }>;

/** The kinds of steps. */
export const StepKindType = builder.enumType('StepKind', {
  description: 'What a step tells of.',
  values: KINDS,
});

const COUNTS: Readonly<Record<keyof Usage, string>> = {
  inputTokens: 'All input tokens, those of caches included.',
  cacheReadTokens: 'Input tokens that were read from a cache.',
  cacheWriteTokens: 'Input tokens that were written to a cache of the usual lifetime.',
  cacheWrite1hTokens: 'Input tokens that were written to a cache for an hour.',
  inputAudioTokens: 'Input tokens of audio.',
  inputImageTokens: 'Input tokens of images.',
  outputTokens: 'All output tokens, reasoning included.',
  reasoningTokens: 'Output tokens of reasoning.',
  outputAudioTokens: 'Output tokens of audio.',
  outputImageTokens: 'Output tokens of images.',
  webSearches: 'Web searches that the upstream ran.',
  fileSearches: 'Searches in stored files that the upstream ran.',
};

const UsageType = builder.objectRef<Partial<Usage>>('StepUsage');

builder.objectType(UsageType, {
  description: 'What a call consumed, in counts that mean the same for every provider.',
});

for (const name of Object.keys(NO_USAGE) as (keyof Usage)[]) {
  builder.objectField(UsageType, name, (t) =>
    t.field({
      ...{ ...READ, type: 'Count' },
      description: COUNTS[name],
      resolve: (usage) => usage[name] ?? 0,
    }),
  );
}

const BODY = { action: 'run.body_read', nullable: true } as const;

const BodyType = builder.objectRef<Body>('Body');

builder.objectType(BodyType, {
  description: 'A kept body, or its beginning.',
  fields: (t) => ({
    text: t.string({
      ...BODY,
      description: 'It as UTF-8; null where it is none.',
      resolve: ({ bytes }) => textOf(bytes),
    }),
    base64: t.string({
      ...BODY,
      description: 'Its bytes.',
      resolve: ({ bytes }) => bytes.toBase64(),
    }),
    totalBytes: t.expose('totalBytes', {
      ...{ ...BODY, type: 'Count' },
      description: 'The length of the whole, in bytes.',
    }),
    isTruncated: t.boolean({
      ...BODY,
      description: 'Whether only its beginning is kept.',
      resolve: ({ bytes, totalBytes }) => bytes.length < totalBytes,
    }),
  }),
});

/** The last character of a body that was cut off may be half there. */
function textOf(bytes: Uint8Array): string | null {
  const text = new TextDecoder().decode(bytes);
  return text.slice(0, -1).includes('\ufffd') ? null : text;
}

const StepBody = builder.objectRef<{ readonly request?: Body; readonly response?: Body }>(
  'StepBody',
);

builder.objectType(StepBody, {
  description: 'The kept bodies of a call.',
  fields: (t) => ({
    request: t.field({
      ...{ ...BODY, type: BodyType },
      description: 'What the agent sent.',
      resolve: ({ request }) => request,
    }),
    response: t.field({
      ...{ ...BODY, type: BodyType },
      description: 'What the upstream answered.',
      resolve: ({ response }) => response,
    }),
  }),
});

/** A body is opened from its seal, noted on the audit trail, and long. */
const BODY_COMPLEXITY = 1_000;

builder.objectType(StepType, {
  description: 'One row of the trail of a run: a call, a refusal, a decision, a remark.',
  fields: (t) => ({
    id: t.expose('id', {
      ...{ type: 'StepID', action: 'public', nullable: false, complexity: 0 },
      description: 'Its id; steps of a run follow one another in its order.',
    }),
    kind: t.expose('kind', { ...READ, type: StepKindType, description: 'What it tells of.' }),
    tokenId: t.expose('tokenId', {
      ...{ ...READ, type: 'TokenID' },
      description: 'The token that the call came with.',
    }),
    endpoint: t.exposeString('endpoint', { ...READ, description: 'The endpoint called.' }),
    provider: t.exposeString('provider', { ...READ, description: 'The provider asked.' }),
    providerKey: t.exposeString('providerKey', {
      ...READ,
      description: 'The name of the provider key that the call went out with.',
    }),
    model: t.exposeString('model', { ...READ, description: 'The model asked for.' }),
    servedModel: t.exposeString('servedModel', {
      ...READ,
      description: 'The model that answered, as the upstream names it.',
    }),
    serviceTier: t.exposeString('serviceTier', {
      ...READ,
      description: 'The tier of service that the upstream reports.',
    }),
    outcome: t.exposeString('outcome', {
      ...READ,
      description: 'ok, or what went wrong; null while the call is in flight.',
    }),
    httpStatus: t.exposeInt('httpStatus', { ...READ, description: 'The HTTP status answered.' }),
  }),
});

builder.objectFields(StepType, (t) => ({
  startedAt: t.expose('startedAt', {
    ...{ ...READ, type: 'DateTime' },
    description: 'When it began.',
  }),
  settledAt: t.expose('settledAt', {
    ...{ ...READ, type: 'DateTime' },
    description: 'When its cost was settled; null while it is in flight.',
  }),
  held: t.field({
    ...{ ...READ, type: Money },
    description: 'What is held for it while it is in flight.',
    resolve: ({ heldNanos }) => heldNanos as Nanos,
  }),
  spent: t.field({
    ...{ ...READ, type: Money },
    description: 'What it cost.',
    resolve: ({ spentNanos }) => spentNanos as Nanos,
  }),
  isEstimated: t.exposeBoolean('estimated', {
    ...READ,
    description: 'Whether the cost is an upper estimate, since its usage is not known.',
  }),
  usage: t.expose('usage', {
    ...{ ...READ, type: UsageType },
    description: 'What it consumed; null where that is not known.',
  }),
}));

builder.objectFields(StepType, (t) => ({
  catalogue: t.exposeString('catalogue', {
    ...READ,
    description: 'The version of the price catalogue that it was charged by.',
  }),
  outputLimit: t.expose('outputLimit', {
    ...{ ...READ, type: 'Count' },
    description: 'The output limit sent upstream, in tokens, where the budget lowered it.',
  }),
  firstByteMs: t.expose('firstByteMs', {
    ...{ ...READ, type: 'Count' },
    description: 'Milliseconds until the first byte of the answer.',
  }),
  latencyMs: t.expose('latencyMs', {
    ...{ ...READ, type: 'Count' },
    description: 'Milliseconds until the end of the answer.',
  }),
  requestDigest: t.exposeString('requestDigest', {
    ...READ,
    description: 'SHA-256 of the request’s body, in hex.',
  }),
  responseDigest: t.exposeString('responseDigest', {
    ...READ,
    description: 'SHA-256 of the answer’s body, in hex.',
  }),
  upstreamRequestId: t.exposeString('upstreamRequestId', {
    ...READ,
    description: 'What the upstream calls the request.',
  }),
  detail: t.expose('detail', {
    ...{ ...READ, type: 'JSON' },
    description: 'What was decided and why, of a refusal, gate or remark; what a tool reported.',
  }),
  body: t.field({
    ...{ ...BODY, type: StepBody, complexity: BODY_COMPLEXITY },
    description: 'The bodies, where the policy keeps them; reading them is audited.',
    resolve: (step, _args, { org, actor, master, store }) =>
      store.captures.showBodies(org, actor, master, { runId: step.runId, stepId: step.id }),
  }),
}));
