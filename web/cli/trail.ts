/** The trail of a run, as the admin API has it. */

import { type Api, type Connection, PAGE_INFO, readList } from './api.ts';

/** A step as people and programs read it; times are RFC 3339, null is what is not known. */
export interface Step {
  readonly id: string;
  readonly kind: string;
  readonly provider: string | null;
  readonly model: string | null;
  readonly servedModel: string | null;
  readonly outcome: string | null;
  readonly httpStatus: number | null;
  readonly startedAt: string;
  readonly settledAt: string | null;
  readonly heldNanos: number;
  readonly spentNanos: number;
  readonly estimated: boolean;
  /** Counts that are not 0. */
  readonly usage: Readonly<Record<string, number>> | null;
  readonly latencyMs: number | null;
  readonly detail: unknown;
}

interface Listed extends Omit<Step, 'heldNanos' | 'spentNanos' | 'estimated'> {
  readonly isEstimated: boolean;
  readonly held: { readonly nanos: number };
  readonly spent: { readonly nanos: number };
}

const USAGE = `inputTokens cacheReadTokens cacheWriteTokens cacheWrite1hTokens inputAudioTokens
  inputImageTokens outputTokens reasoningTokens outputAudioTokens outputImageTokens webSearches
  fileSearches`;

const STEPS = `query Steps($runId: RunID!, $first: Int, $after: String) {
  run(id: $runId) {
    steps(first: $first, after: $after) {
      nodes {
        id kind tokenId endpoint provider providerKey model servedModel serviceTier outcome
        httpStatus startedAt settledAt held { nanos } spent { nanos } isEstimated usage { ${USAGE} }
        catalogue outputLimit firstByteMs latencyMs requestDigest responseDigest upstreamRequestId
        detail
      }
      ${PAGE_INFO}
    }
  }
}`;

/**
 * Reads the first steps of a run.
 *
 * @param limit The most steps.
 */
export async function readSteps(api: Api, runId: string, limit: number): Promise<Step[]> {
  const listed = await readList(
    api,
    STEPS,
    ({ run }: { run: { steps: Connection<Listed> } }) => run.steps,
    { variables: { runId }, limit },
  );
  const steps = listed.map(({ held, spent, isEstimated, ...step }) => ({
    ...step,
    kind: step.kind.toLowerCase(),
    heldNanos: held.nanos,
    spentNanos: spent.nanos,
    estimated: isEstimated,
    usage: step.usage && withoutZeros(step.usage),
  }));
  // Ids of one millisecond are in no order.
  return steps.sort((a, b) => Date.parse(a.startedAt) - Date.parse(b.startedAt));
}

function withoutZeros(counts: Readonly<Record<string, number>>): Record<string, number> {
  return Object.fromEntries(Object.entries(counts).filter(([, count]) => count > 0));
}
