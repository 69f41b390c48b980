/** Output limits: the most that a model accepts, for answers whose callers set none themselves. */

/**
 * The largest output limit that a model takes: OpenAI answers 400 to a larger one, as other hosts
 * do. From the providers' lists of models; the first name that matches counts. A newer model of a
 * line takes no less than the ones before it.
 */
const ACCEPTED: readonly (readonly [names: RegExp, tokens: number])[] = [
  [/^gpt-3\.5-turbo/, 4_096],
  [/^gpt-4-(?:turbo|vision|\d{4}-preview)/, 4_096],
  [/^gpt-4o-2024-05-13$/, 4_096],
  [/^(?:chat)?gpt-(?:4o|4\.5|audio)/, 16_384],
  [/^gpt-4\.1/, 32_768],
  [/^gpt-(?:\d[.\d]*-)?chat-/, 16_384],
  [/^gpt-[5-9]/, 128_000],
  [/^o1-preview/, 32_768],
  [/^o1-mini/, 65_536],
  [/^(?:o[134](?:-|$)|codex-mini)/, 100_000],
  [/^claude-(?:[12]|instant|v1|3-(?:haiku|opus|sonnet))/, 4_096],
  [/^claude-3[-.]5/, 8_192],
  [/^claude-opus-4(?:$|[-.][01](?:-|$)|-20)/, 32_000],
  [/^claude-/, 64_000],
  [/^gemini-(?:1\.|2\.0)/, 8_192],
  [/^gemini-[2-9]/, 65_536],
  [/^deepseek-chat/, 8_192],
  [/^deepseek-reasoner/, 65_536],
];

/** What every model takes that generates text: one that is asked for more may take no call at all. */
const UNKNOWN_TOKENS = 4_096;

/**
 * The largest output limit that a model is known to accept.
 *
 * @param model As the upstream knows it; what stands before a slash is whose it is.
 * @returns undefined for a model that isn't known.
 */
export function acceptedOutput(model: string): number | undefined {
  const name = model.slice(model.lastIndexOf('/') + 1).replace(/^ft:/, '');
  return ACCEPTED.find(([names]) => names.test(name))?.[1];
}

/**
 * The most that is asked for where a caller set no limit and one has to be sent. A limit that is
 * too low may cut an answer that would have been longer; one that is too high makes every call
 * fail. Half of the window at most, since the input shares it.
 *
 * @param windowTokens The model's context window, where it is known.
 * @param leastTokens What the policy says an answer needs to be of use.
 */
export function outputUnset(
  model: string,
  windowTokens: number | undefined,
  leastTokens: number,
): number {
  const most = acceptedOutput(model) ?? Math.max(UNKNOWN_TOKENS, leastTokens);
  return Math.max(1, Math.min(most, Math.floor((windowTokens ?? most * 2) / 2)));
}
