/** OpenAI's stateless endpoints: chat completions, completions, embeddings, models, moderations. */

import type { Edit, Json, JsonObject, StrictBody } from '../../schema/json.ts';
import { setMember } from '../../schema/json.ts';
import {
  type Bound,
  boundText,
  type Contents,
  invalid,
  isGiven,
  isObject,
  NO_COST,
  noContents,
  readChoices,
  readFlag,
  readLimit,
  readList,
  readText,
  visibleTokens,
} from '../../schema/rules/bound.ts';
import type { Rates } from '../../schema/rules/catalogue.ts';
import type { SseEvent } from '../../schema/sse.ts';
import { ifCounted, NO_USAGE, readCount, type Usage } from '../../schema/usage.ts';
import { readChatCalls } from './calls-chat.ts';
import type { Endpoint, Meter, MeterOptions, Reading } from './contract.ts';
import { freeMeter, memberOf, parseEvent, textOf } from './reading.ts';

/**
 * Members by which a host would run something upstream, choose another model or add a fee. None
 * of them has a price in the catalogue.
 */
const UNPRICED_KEYS = [
  'web_search_options',
  'search_parameters',
  'plugins',
  'models',
  'provider',
  'fallbacks',
  'preset',
  'route',
  'compound_custom',
  'transforms',
  'extra_body',
  'mcp_servers',
] as const;

const SHARED_KEYS = ['model', 'stream', 'stream_options', 'service_tier', 'metadata', 'user'];
const CLIENT_TOOLS: ReadonlySet<Json | undefined> = new Set(['function', 'custom']);

/**
 * Tokens of one image at most. A tile model scales to 768 x 2048 pixels, 8 tiles: at most 1,445
 * tokens, at `gpt-4o-mini` 48,169. A patch model of the first kind has 1,536 patches with a factor
 * up to 2.46, of the second 2,500 patches at `high`. Newer ones keep the size by default, one
 * token for about 850 pixels: the cap covers 55 megapixels.
 */
const IMAGE_TOKENS = { small: 4_096, mini: 49_152, low: 3_000, any: 65_536 } as const;
const SMALL_IMAGES =
  /^(?:gpt-4o|gpt-4\.1|gpt-4-turbo|gpt-5(?:-|$)|gpt-5\.[12](?:-|$)|o[134](?:-|$))/;

/** Adds an image part; an image inside the body is not text of it. */
export function addImage(seen: Contents, url: Json | undefined, detail: Json, model: string): void {
  seen.images = true;
  if (typeof url === 'string' && url.startsWith('data:image/')) seen.mediaBytes += url.length;
  if (model.startsWith('gpt-4o-mini')) seen.mediaTokens += IMAGE_TOKENS.mini;
  else if (detail === 'low') seen.mediaTokens += IMAGE_TOKENS.low;
  else if (SMALL_IMAGES.test(model)) seen.mediaTokens += IMAGE_TOKENS.small;
  else seen.mediaTokens += IMAGE_TOKENS.any;
}

function chatPart(seen: Contents, part: Json, model: string): void {
  if (!isObject(part) || part.type === 'text' || part.type === 'refusal') return;
  if (part.type === 'image_url') {
    const image = part.image_url;
    if (isObject(image)) addImage(seen, image.url, image.detail ?? null, model);
    else addImage(seen, image, null, model);
  } else if (part.type === 'input_audio') {
    // Speech has far fewer tokens than its bytes, so audio counts by the length of its base64.
    seen.audio = true;
  } else seen.hidden = 'messages[].content[]';
}

function chatContents(body: JsonObject, model: string): Contents {
  const seen = noContents();
  for (const message of readList(body, 'messages')) {
    seen.messages += 1;
    if (!isObject(message)) continue;
    if (isGiven(message.audio)) seen.hidden = 'messages[].audio';
    const { content } = message;
    // Some hosts take a part that stands alone.
    const parts = Array.isArray(content) ? content : [content ?? null];
    for (const part of parts) chatPart(seen, part, model);
  }
  seen.tools = readList(body, 'functions').length;
  for (const tool of readList(body, 'tools')) {
    seen.tools += 1;
    if (!isObject(tool) || !CLIENT_TOOLS.has(tool.type)) seen.unbounded = 'tools';
  }
  for (const key of UNPRICED_KEYS) if (isGiven(body[key])) seen.unbounded = key;
  return seen;
}

function boundChat(body: JsonObject, bodyBytes: number, rates: Rates): Bound {
  const completion = readLimit(body, 'max_completion_tokens');
  const legacy = readLimit(body, 'max_tokens');
  const turns = {
    // A host may read the one or the other.
    outputTokens: completion === undefined ? legacy : Math.max(completion, legacy ?? 0),
    outputField: 'max_completion_tokens',
    choices: readChoices(body, 'n') ?? 1,
    turns: 1,
    serviceTier: readText(body, 'service_tier'),
  };
  return boundText(chatContents(body, rates.model), turns, bodyBytes, rates.contextWindow);
}

function boundCompletion(body: JsonObject, bodyBytes: number, rates: Rates): Bound {
  const { prompt } = body;
  const prompts = Array.isArray(prompt) && typeof prompt[0] !== 'number' ? prompt.length : 1;
  const answers = Math.max(readChoices(body, 'n') ?? 1, readChoices(body, 'best_of') ?? 1);
  const seen = { ...noContents(), messages: prompts };
  for (const key of UNPRICED_KEYS) if (isGiven(body[key])) seen.unbounded = key;
  const turns = {
    outputTokens: readLimit(body, 'max_tokens'),
    outputField: 'max_tokens',
    choices: Math.max(1, prompts) * answers,
    turns: 1,
    serviceTier: readText(body, 'service_tier'),
  };
  const bound = boundText(seen, turns, bodyBytes, rates.contextWindow);
  // Each prompt has the window for itself.
  return prompts > 1 ? { ...bound, inputTokens: visibleTokens(seen, bodyBytes) } : bound;
}

function boundEmbeddings(body: JsonObject, bodyBytes: number): Bound {
  const { input } = body;
  const parts = Array.isArray(input) ? input : [];
  const seen = { ...noContents(), messages: parts.length };
  const bound = { ...NO_COST, inputTokens: visibleTokens(seen, bodyBytes) };
  const isText = parts.every((part) => !isObject(part)) && !isObject(input);
  return isText ? bound : { ...bound, unbounded: 'input' };
}

/** A host that reads `max_tokens` alone may ignore the other one, which every host reads. */
function limitChat(body: StrictBody, tokens: number, limitKey = 'max_completion_tokens'): Edit[] {
  const keys = ['max_completion_tokens', 'max_tokens'];
  const given = keys.filter((key) => isGiven(body.value[key]));
  const lowered = given.filter((key) => Number(body.value[key]) > tokens);
  const isRead = given.includes(limitKey) || (given.length > 0 && limitKey !== 'max_tokens');
  const edited = isRead ? lowered : [...lowered, limitKey];
  return edited.map((key) => setMember(body, [key], tokens));
}

/** Edits that lower one member, or set it where it is absent. */
export function limitMember(body: StrictBody, key: string, tokens: number): Edit[] {
  const given = body.value[key];
  if (typeof given === 'number' && given <= tokens) return [];
  return [setMember(body, [key], tokens)];
}

function askStreamUsage(body: StrictBody): Edit[] {
  const { value } = body;
  if (!readFlag(value, 'stream')) return [];
  const options = value.stream_options ?? {};
  if (!isObject(options)) throw invalid('stream_options', 'must be an object');
  if (readFlag(options, 'include_usage')) return [];
  return [setMember(body, ['stream_options', 'include_usage'], true)];
}

/**
 * Reads the `usage` of a chat completion, a completion or an embedding.
 *
 * @returns undefined where the counts that decide the price are missing, or none is above zero.
 */
function readChatUsage(value: Json | undefined, hasOutput: boolean): Usage | undefined {
  if (!isObject(value)) return undefined;
  const inputTokens = readCount(value.prompt_tokens);
  const completion = readCount(value.completion_tokens);
  if (inputTokens === undefined || (hasOutput && completion === undefined)) return undefined;
  const input = memberOf(value, 'prompt_tokens_details');
  const output = memberOf(value, 'completion_tokens_details');
  // Some hosts leave reasoning out of the completion and count it in the total alone.
  const beyondInput = hasOutput ? (readCount(value.total_tokens) ?? 0) - inputTokens : 0;
  return ifCounted({
    ...NO_USAGE,
    inputTokens,
    cacheReadTokens:
      readCount(input.cached_tokens) ?? readCount(value.prompt_cache_hit_tokens) ?? 0,
    cacheWriteTokens: readCount(input.cache_write_tokens) ?? 0,
    inputAudioTokens: readCount(input.audio_tokens) ?? 0,
    inputImageTokens: readCount(input.image_tokens) ?? 0,
    outputTokens: Math.max(completion ?? 0, beyondInput),
    reasoningTokens: readCount(output.reasoning_tokens) ?? 0,
    outputAudioTokens: readCount(output.audio_tokens) ?? 0,
  });
}

/** Whether an event may say more than the one before: not if its usage is absent or null. */
function mayHoldUsage(data: string): boolean {
  if (data.includes('\\u')) return true;
  for (let at = data.indexOf('"usage"'); at >= 0; at = data.indexOf('"usage"', at + 7)) {
    if (!data.startsWith(':null', at + 7) && !data.startsWith(': null', at + 7)) return true;
  }
  return false;
}

type Seen = Pick<Reading, 'model' | 'serviceTier' | 'responseId' | 'usage'>;

function meterChat(hasOutput: boolean, options: MeterOptions): Meter {
  let seen: Seen = {};
  let complete = false;
  let isFirst = true;
  return {
    body(value) {
      seen = readChat(value, hasOutput);
      complete = true;
    },
    event({ data }: SseEvent) {
      if (data === '[DONE]') {
        complete = true;
        return 'last';
      }
      if (isFirst || mayHoldUsage(data)) {
        const value = parseEvent(data);
        if (!value) return 'pass';
        isFirst = false;
        seen = newest(seen, readChat(value, hasOutput));
        if (options.askedUsage && isUsageOnly(value)) return 'swallow';
      }
      return 'pass';
    },
    reading: () => ({ ...seen, complete }),
  };
}

function readChat(value: JsonObject, hasOutput: boolean): Seen {
  return {
    model: textOf(value, 'model'),
    serviceTier: textOf(value, 'service_tier'),
    responseId: textOf(value, 'id'),
    usage:
      readChatUsage(value.usage, hasOutput) ??
      readChatUsage(memberOf(value, 'x_groq').usage, hasOutput),
  };
}

/** What a chunk doesn't say stays as those before it said. */
function newest(before: Seen, now: Seen): Seen {
  return {
    model: now.model ?? before.model,
    serviceTier: now.serviceTier ?? before.serviceTier,
    responseId: now.responseId ?? before.responseId,
    usage: now.usage ?? before.usage,
  };
}

function isUsageOnly(value: JsonObject): boolean {
  return isObject(value.usage) && Array.isArray(value.choices) && value.choices.length === 0;
}

/** A row for an endpoint whose calls cost nothing. */
export function freeRow(
  row: Pick<Endpoint, 'name' | 'dialect' | 'method' | 'path'> & Partial<Endpoint>,
): Endpoint {
  return {
    spends: false,
    readKeys: new Set<string>(),
    bound: () => NO_COST,
    limitOutput: () => [],
    askUsage: () => [],
    meter: freeMeter,
    ...row,
  };
}

const openai = { dialect: 'openai', method: 'POST', spends: true } as const;

/** The rows of the table. */
export const OPENAI_ENDPOINTS: readonly Endpoint[] = [
  {
    ...openai,
    name: 'chat.completions',
    path: 'chat/completions',
    readKeys: new Set([
      ...SHARED_KEYS,
      ...UNPRICED_KEYS,
      'messages',
      'tools',
      'tool_choice',
      'functions',
      'function_call',
      'parallel_tool_calls',
      'max_completion_tokens',
      'max_tokens',
      'n',
      'audio',
      'modalities',
      'prompt_cache_key',
      'safety_identifier',
      'store',
    ]),
    bound: boundChat,
    limitOutput: limitChat,
    askUsage: askStreamUsage,
    meter: (options) => meterChat(true, options),
    calls: readChatCalls,
  },
  {
    ...openai,
    name: 'completions',
    path: 'completions',
    readKeys: new Set([
      ...SHARED_KEYS,
      ...UNPRICED_KEYS,
      'prompt',
      'suffix',
      'max_tokens',
      'n',
      'best_of',
    ]),
    bound: boundCompletion,
    limitOutput: (body, tokens) => limitMember(body, 'max_tokens', tokens),
    askUsage: askStreamUsage,
    meter: (options) => meterChat(true, options),
  },
  {
    ...openai,
    name: 'embeddings',
    path: 'embeddings',
    readKeys: new Set([...SHARED_KEYS, 'input']),
    bound: boundEmbeddings,
    limitOutput: () => [],
    askUsage: () => [],
    meter: (options) => meterChat(false, options),
  },
  freeRow({ name: 'models.list', dialect: 'openai', method: 'GET', path: 'models' }),
  freeRow({ name: 'models.get', dialect: 'openai', method: 'GET', path: 'models/{id}' }),
  freeRow({
    name: 'moderations',
    dialect: 'openai',
    method: 'POST',
    path: 'moderations',
    // Free at OpenAI only.
    providers: new Set(['openai']),
    readKeys: new Set(['model', 'input', 'metadata']),
  }),
];
