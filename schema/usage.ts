/** What a call consumed, in counts that mean the same whichever provider reported them. */

/** Non-negative safe integers; tokens unless the name says otherwise. */
export interface Usage {
  /** All input, cache reads and cache writes included. */
  readonly inputTokens: number;
  readonly cacheReadTokens: number;
  /** Written to a cache of the provider's usual lifetime (5 minutes at Anthropic). */
  readonly cacheWriteTokens: number;
  readonly cacheWrite1hTokens: number;
  readonly inputAudioTokens: number;
  readonly inputImageTokens: number;
  /** All output, reasoning included. */
  readonly outputTokens: number;
  readonly reasoningTokens: number;
  readonly outputAudioTokens: number;
  readonly outputImageTokens: number;
  /** Web searches that the upstream ran. */
  readonly webSearches: number;
  /** Searches in stored files that the upstream ran. */
  readonly fileSearches: number;
}

export const NO_USAGE: Usage = {
  inputTokens: 0,
  cacheReadTokens: 0,
  cacheWriteTokens: 0,
  cacheWrite1hTokens: 0,
  inputAudioTokens: 0,
  inputImageTokens: 0,
  outputTokens: 0,
  reasoningTokens: 0,
  outputAudioTokens: 0,
  outputImageTokens: 0,
  webSearches: 0,
  fileSearches: 0,
};

/**
 * Reads a count that an upstream reported. Strings, fractions, negatives and numbers beyond 2^53
 * are absent, so that no report can earn credit.
 *
 * @returns A non-negative safe integer, or undefined.
 */
export function readCount(value: unknown): number | undefined {
  return Number.isSafeInteger(value) && (value as number) >= 0 ? (value as number) + 0 : undefined;
}

/**
 * A report as it is, unless it has no tokens at all: every call that costs anything has read some,
 * so whoever says that has not counted.
 */
export function ifCounted(usage: Usage): Usage | undefined {
  return usage.inputTokens + usage.outputTokens === 0 ? undefined : usage;
}

/** The sum of two usages, each count at most the largest safe integer. */
export function addUsage(one: Usage, other: Usage): Usage {
  const sum = (key: keyof Usage) => Math.min(one[key] + other[key], Number.MAX_SAFE_INTEGER);
  return {
    inputTokens: sum('inputTokens'),
    cacheReadTokens: sum('cacheReadTokens'),
    cacheWriteTokens: sum('cacheWriteTokens'),
    cacheWrite1hTokens: sum('cacheWrite1hTokens'),
    inputAudioTokens: sum('inputAudioTokens'),
    inputImageTokens: sum('inputImageTokens'),
    outputTokens: sum('outputTokens'),
    reasoningTokens: sum('reasoningTokens'),
    outputAudioTokens: sum('outputAudioTokens'),
    outputImageTokens: sum('outputImageTokens'),
    webSearches: sum('webSearches'),
    fileSearches: sum('fileSearches'),
  };
}
