/** The kept bodies of a run's calls, as the admin API opens and records them. */

import type { Api } from './api.ts';

/** A body as it is shown: text, or base64 of what is none. */
export interface ShownBody {
  readonly text?: string;
  readonly base64?: string;
  /** Of the whole body, also where only its beginning is kept. */
  readonly totalBytes: number;
  readonly truncated: boolean;
}

/** By the step's id, then `request` or `response`. */
export type Bodies = ReadonlyMap<string, Readonly<Record<string, ShownBody>>>;

interface Body {
  readonly text: string | null;
  readonly totalBytes: number;
  readonly isTruncated: boolean;
}

interface Opened {
  readonly run: {
    readonly step: { readonly body: Readonly<Record<string, Body | null>> | null } | null;
  };
}

interface Encoded {
  readonly run: {
    readonly step: {
      readonly body: Readonly<Record<string, { readonly base64: string } | null>>;
    };
  };
}

/** One step at a time: a body has up to some megabytes. */
const OPEN = `query Bodies($runId: RunID!, $stepId: StepID!) {
  run(id: $runId) {
    step(id: $stepId) {
      body {
        request { text totalBytes isTruncated }
        response { text totalBytes isTruncated }
      }
    }
  }
}`;

const ENCODED = `query Encoded($runId: RunID!, $stepId: StepID!) {
  run(id: $runId) { step(id: $stepId) { body { request { base64 } response { base64 } } } }
}`;

/** Reads what is kept of steps; steps without bodies are left out. */
export async function readKept(
  api: Api,
  runId: string,
  steps: readonly { readonly id: string }[],
): Promise<Bodies> {
  const bodies = new Map<string, Record<string, ShownBody>>();
  for (const { id: stepId } of steps) {
    const { run } = await api.run<Opened>(OPEN, { runId, stepId });
    const kinds = Object.entries(run.step?.body ?? {});
    const shown: Record<string, ShownBody> = {};
    for (const [kind, body] of kinds) {
      if (body) shown[kind] = await showBody(api, { runId, stepId, kind }, body);
    }
    if (kinds.length > 0) bodies.set(stepId, shown);
  }
  return bodies;
}

async function showBody(
  api: Api,
  { kind, ...step }: { runId: string; stepId: string; kind: string },
  { text, totalBytes, isTruncated: truncated }: Body,
): Promise<ShownBody> {
  if (text !== null) return { text, totalBytes, truncated };
  const { run } = await api.run<Encoded>(ENCODED, step);
  return { base64: run.step.body[kind]?.base64 ?? '', totalBytes, truncated };
}
