/** Bounds: the most that a call can consume, in linear time and without a tokenizer. */

import { Refusal } from '../errors.ts';
import type { Json, JsonObject } from '../json.ts';
import type { Usage } from '../usage.ts';

/** The most that a call can consume. Whole numbers; a call that consumes more is not possible. */
export interface Bound {
  /** All input, over every turn that the upstream takes by itself. */
  readonly inputTokens: number;
  /** All output, over every choice and turn. */
  readonly outputTokens: number;
  /** That the body sets no output limit, so that the upstream sets its own. */
  readonly isOutputUnset?: true;
  /** How many times the output limit counts: at least 1. */
  readonly choices: number;
  /** The least that the output limit may be lowered to; absent where the body says nothing of it. */
  readonly leastOutput?: number;
  readonly webSearches: number;
  readonly fileSearches: number;
  /** Whether some of the input may be audio. */
  readonly audio: boolean;
  /** Whether some of the input may be images. */
  readonly images: boolean;
  /** What the caller asked for, names joined by `+`. */
  readonly serviceTier?: string;
  /** The member of the body for which nothing bounds the cost: the call must be refused. */
  readonly unbounded?: string;
}

/** What a call consumes that costs nothing. */
export const NO_COST: Bound = {
  inputTokens: 0,
  outputTokens: 0,
  choices: 1,
  webSearches: 0,
  fileSearches: 0,
  audio: false,
  images: false,
};

/** What a body says about its input besides text, gathered while walking it. */
export interface Contents {
  messages: number;
  tools: number;
  /** Tokens that all media parts can cost at most. */
  mediaTokens: number;
  /** Bytes of the body that are media, and so are not read as text. */
  mediaBytes: number;
  audio: boolean;
  images: boolean;
  /** The member that refers to input which is not in the body. */
  hidden?: string;
  unbounded?: string;
}

/** The shape of a call's output and of the turns that the upstream takes by itself. */
export interface Turns {
  /** Output tokens per choice; undefined where the body sets no limit. */
  readonly outputTokens: number | undefined;
  /** The member that would limit the output, named when there is no limit at all. */
  readonly outputField: string;
  readonly choices: number;
  /** At least 1; each one reads the whole context again. */
  readonly turns: number;
  readonly webSearches?: number;
  readonly fileSearches?: number;
  readonly serviceTier?: string | undefined;
}

/** Tokens that an upstream adds by itself: hidden system text, and that which explains tools. */
const CALL_TOKENS = 256;
const TOOLS_TOKENS = 1_024;
const MESSAGE_TOKENS = 16;
const TOOL_TOKENS = 64;

/** The window of a model that nobody has told it of: as large as that of the largest ones. */
export const LARGEST_WINDOW_TOKENS = 1_048_576;
/** More searches than a host runs of its own accord. */
const UNASKED_SEARCHES = 100;

/** The catalogue rounds windows down (1,000,000 for 1,047,576): a sixteenth covers it. */
const WINDOW_SLACK = 16;

const MOST_TOKENS = Number.MAX_SAFE_INTEGER;
/** Far above what any model writes; amounts of money beyond it would be absurd. */
const MOST_OUTPUT_TOKENS = 10_000_000;
const MOST_CHOICES = 100_000;

/** A walk's start: nothing seen yet. */
export function noContents(): Contents {
  return { messages: 0, tools: 0, mediaTokens: 0, mediaBytes: 0, audio: false, images: false };
}

/**
 * Puts together the bound of a call that generates text.
 *
 * A byte-level tokenizer makes at most one token of a byte, so the bytes of the body bound its
 * text; what the upstream adds is a constant per call, message and tool. Input is never more than
 * the context window; hidden input, and every turn after the first, is taken to fill it.
 *
 * @param bodyBytes Length of the decoded body in bytes.
 * @param windowTokens The model's context window, where it is known.
 */
export function boundText(
  contents: Contents,
  turns: Turns,
  bodyBytes: number,
  windowTokens: number | undefined,
): Bound {
  const window = windowTokens === undefined ? undefined : widen(windowTokens);
  // What is asked for beyond the window can't come, but would be held.
  const asked = turns.outputTokens ?? window;
  const output = turns.turns > 1 ? asked : asked && Math.min(asked, window ?? asked);
  const full = contents.hidden ?? (turns.turns > 1 ? 'tools' : undefined);
  const once = full === undefined ? visibleTokens(contents, bodyBytes) : window;
  const unbounded =
    contents.unbounded ??
    (once === undefined ? full : undefined) ??
    (output === undefined ? turns.outputField : undefined);
  const { serviceTier } = turns;
  return {
    inputTokens: most(turns.turns * Math.min(once ?? 0, window ?? MOST_TOKENS)),
    outputTokens: most(turns.choices * (output ?? 0)),
    ...(turns.outputTokens === undefined ? { isOutputUnset: true } : {}),
    choices: turns.choices,
    webSearches: turns.webSearches ?? 0,
    fileSearches: turns.fileSearches ?? 0,
    audio: contents.audio || contents.hidden !== undefined,
    images: contents.images || contents.hidden !== undefined,
    ...(serviceTier === undefined ? {} : { serviceTier }),
    ...(unbounded === undefined ? {} : { unbounded }),
  };
}

/** Tokens of what a body shows: its text by bytes, its media by their caps, and the overhead. */
export function visibleTokens(contents: Contents, bodyBytes: number): number {
  const text = Math.max(0, bodyBytes - contents.mediaBytes);
  const tools = contents.tools === 0 ? 0 : TOOLS_TOKENS + contents.tools * TOOL_TOKENS;
  const overhead = CALL_TOKENS + contents.messages * MESSAGE_TOKENS + tools;
  return most(text + contents.mediaTokens + overhead);
}

/**
 * Whether a call can have consumed what a host reports. It may be more than the bound: hosts add
 * prompts of their own, count images their own way and overlook limits, and that is paid. But no
 * model takes in or writes more than its window in a turn, and none that is known has a much larger
 * one than {@link LARGEST_WINDOW_TOKENS}; the bound counts the turns. The line is at twice that, for
 * each kind of tokens: what is beyond it is a defect of the host, and would use up everyone's budget.
 *
 * @param windowTokens The model's context window, where it is known.
 */
export function isPossible(usage: Usage, bound: Bound, windowTokens = 0): boolean {
  const { webSearches, fileSearches, ...tokens } = usage;
  const { inputTokens, outputTokens } = bound;
  const most = Math.max(inputTokens, outputTokens, windowTokens, LARGEST_WINDOW_TOKENS);
  const searches = Math.max(bound.webSearches, bound.fileSearches, UNASKED_SEARCHES);
  const isWithin = Math.max(...Object.values(tokens)) <= 2 * most;
  return isWithin && Math.max(webSearches, fileSearches) <= 2 * searches;
}

/**
 * Reads a limit that the caller set.
 *
 * @returns A whole number up to 10,000,000; undefined where it is absent or null.
 * @throws {Refusal} `invalid_body` for anything else: two readers could take it for two numbers.
 */
export function readLimit(body: JsonObject, field: string): number | undefined {
  const value = body[field];
  if (value === undefined || value === null) return undefined;
  const isWhole = typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
  if (isWhole && value <= MOST_OUTPUT_TOKENS) return value + 0;
  throw invalid(field, `must be a whole number from 0 to ${MOST_OUTPUT_TOKENS}`);
}

/**
 * Reads how many answers the caller wants.
 *
 * @returns At least 1; undefined where it is absent or null.
 * @throws {Refusal} `invalid_body` for anything that is not a whole number up to 100,000.
 */
export function readChoices(body: JsonObject, field: string): number | undefined {
  const choices = readLimit(body, field);
  if (choices === undefined) return undefined;
  if (choices > MOST_CHOICES) throw invalid(field, `must be at most ${MOST_CHOICES}`);
  return Math.max(1, choices);
}

/**
 * Reads a member that is true or false.
 *
 * @throws {Refusal} `invalid_body` for anything but a boolean or null.
 */
export function readFlag(body: JsonObject, field: string): boolean {
  const value = body[field];
  if (value === undefined || value === null) return false;
  if (typeof value === 'boolean') return value;
  throw invalid(field, 'must be true or false');
}

/**
 * Reads a member that is a string.
 *
 * @throws {Refusal} `invalid_body` for anything but a string or null.
 */
export function readText(body: JsonObject, field: string): string | undefined {
  const value = body[field];
  if (value === undefined || value === null) return undefined;
  if (typeof value === 'string') return value;
  throw invalid(field, 'must be a string');
}

/**
 * Reads a member that is an array.
 *
 * @throws {Refusal} `invalid_body` for anything but an array or null.
 */
export function readList(body: JsonObject, field: string): readonly Json[] {
  const value = body[field];
  if (value === undefined || value === null) return [];
  if (Array.isArray(value)) return value;
  throw invalid(field, 'must be an array');
}

/** Whether a value is an object, and not an array or null. */
export function isObject(value: Json | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Whether a member says something: absent, null, false and empty say nothing. */
export function isGiven(value: Json | undefined): boolean {
  if (value === undefined || value === null || value === false || value === '') return false;
  return !Array.isArray(value) || value.length > 0;
}

/** The refusal of a body because of one member. */
export function invalid(field: string, must: string): Refusal {
  return new Refusal('invalid_body', `The member ${field} of the body ${must}.`, { field });
}

function widen(windowTokens: number): number {
  return most(windowTokens + Math.ceil(windowTokens / WINDOW_SLACK));
}

/** Keeps sums and products of counts inside the safe integers. */
function most(tokens: number): number {
  return Math.min(tokens, MOST_TOKENS);
}
