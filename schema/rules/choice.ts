/** Which version of which policy a run may be under: what its agent has and its token permits. */

/** What a run is about to open with; versions go by labels such as `prod-agents/v4`. */
export interface Opening {
  /** The label of the agent's own version. */
  readonly own: string;
  /** Labels of what its callers may choose instead, the newest version of a policy last. */
  readonly choices: readonly string[];
  /** The label or the name of a policy that is asked for; null where none is. */
  readonly asked: string | null;
  /** What the token permits, as {@link permits} has it. */
  readonly permitted: readonly string[] | null;
}

/** The label of the version to open with, or which built-in rule is against it. */
export type Opened =
  | { readonly label: string }
  | { readonly rule: 'agent.policies' | 'token.policies' };

/** Whether a version is meant by a text: its label, or its policy's name for every version. */
export function isNamed(label: string, text: string): boolean {
  return label === text || label.slice(0, label.lastIndexOf('/')) === text;
}

/**
 * Whether a token may have calls on runs under a version.
 *
 * @param permitted Names of policies, any version of which is permitted, and labels of versions;
 *   null permits everything.
 */
export function permits(permitted: readonly string[] | null, label: string): boolean {
  return permitted === null || permitted.some((each) => isNamed(label, each));
}

/**
 * Finds the version that a run opens with: of those that are meant the first that the token
 * permits, the agent's own before others. None is chosen for being as strict: that is the admin's
 * to say.
 */
export function judgeOpening({ own, choices, asked, permitted }: Opening): Opened {
  const meant = asked === null ? [own] : [...choices, own].filter((label) => isNamed(label, asked));
  const label = meant.findLast((each) => permits(permitted, each));
  if (label !== undefined) return { label };
  return { rule: meant.length === 0 ? 'agent.policies' : 'token.policies' };
}

/**
 * What a token may be made to permit, out of what its agent may use.
 *
 * @param wanted Names of policies and labels of versions.
 * @param usable Labels of the versions that the agent may use.
 * @returns the indexes in `wanted` of what means none of them.
 */
export function findUnusable(wanted: readonly string[], usable: readonly string[]): number[] {
  return wanted.flatMap((each, at) => (usable.some((label) => isNamed(label, each)) ? [] : [at]));
}
