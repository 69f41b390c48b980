/** OpenAI's Responses: answers that have an id, and that can be fetched, cancelled and deleted. */

import type { Json, JsonObject } from '../../schema/json.ts';
import {
  type Bound,
  boundText,
  type Contents,
  isGiven,
  isObject,
  noContents,
  readLimit,
  readList,
  readText,
} from '../../schema/rules/bound.ts';
import type { Rates } from '../../schema/rules/catalogue.ts';
import { pricesSearches } from '../../schema/rules/price.ts';
import type { SseEvent } from '../../schema/sse.ts';
import { ifCounted, NO_USAGE, readCount, type Usage } from '../../schema/usage.ts';
import { stringOf } from './calls.ts';
import { readResponseCalls } from './calls-responses.ts';
import type { Endpoint, Meter, Reading } from './contract.ts';
import { addImage, freeRow, limitMember } from './openai.ts';
import { memberOf, parseEvent, textOf } from './reading.ts';

/** Tools that the caller runs. */
const CLIENT_TOOLS: ReadonlySet<Json | undefined> = new Set([
  'function',
  'custom',
  'local_shell',
  'apply_patch',
  'computer',
  'computer-preview',
  'computer_use_preview',
]);

/** Tools that run upstream as often as `max_tool_calls` says, and what each call is charged as. */
const HOSTED_TOOLS: ReadonlyMap<string, 'webSearches' | 'fileSearches' | undefined> = new Map([
  ['web_search', 'webSearches'],
  ['web_search_2025_08_26', 'webSearches'],
  ['file_search', 'fileSearches'],
  ['mcp', undefined],
  ['tool_search', undefined],
]);

/** Items whose whole content stands in the body. */
const TEXT_ITEMS: ReadonlySet<Json> = new Set([
  'message',
  'function_call',
  'function_call_output',
  'custom_tool_call',
  'custom_tool_call_output',
  'local_shell_call',
  'local_shell_call_output',
  'shell_call',
  'shell_call_output',
  'apply_patch_call',
  'apply_patch_call_output',
  'computer_call',
  'computer_call_output',
]);

const TEXT_PARTS: ReadonlySet<Json | undefined> = new Set([
  'input_text',
  'output_text',
  'text',
  'refusal',
  'summary_text',
  'reasoning_text',
]);

/** Members that refer to state the upstream keeps. */
const HIDDEN_KEYS = ['previous_response_id', 'conversation', 'prompt'] as const;

/** Members whose cost nothing in the body bounds. */
const UNPRICED_KEYS = [
  'multi_agent',
  'models',
  'provider',
  'plugins',
  'search_parameters',
  'mcp_servers',
] as const;

/** Statuses after which a response does not change. */
const FINAL = new Set(['completed', 'incomplete', 'failed', 'cancelled']);

const LAST_EVENTS: ReadonlySet<Json | undefined> = new Set([
  'response.completed',
  'response.incomplete',
  'response.failed',
  'response.cancelled',
]);
const READ_EVENTS: ReadonlySet<Json | undefined> = new Set([
  ...['response.created', 'response.queued'],
  ...LAST_EVENTS,
]);

function addPart(seen: Contents, part: Json, model: string): void {
  if (!isObject(part) || TEXT_PARTS.has(part.type)) return;
  if (part.type === 'input_audio') seen.audio = true;
  else if (
    (part.type === 'input_image' || part.type === 'computer_screenshot') &&
    !isGiven(part.file_id)
  ) {
    addImage(seen, part.image_url, part.detail ?? null, model);
  } else seen.hidden = 'input[].content[]';
}

function addItem(seen: Contents, item: Json, model: string): void {
  seen.messages += 1;
  if (!isObject(item)) return;
  const type = item.type ?? 'message';
  const isWhole = TEXT_ITEMS.has(type) || (type === 'reasoning' && hasReasoning(item));
  if (!isWhole) seen.hidden = 'input[]';
  for (const parts of [item.content, item.output]) {
    if (Array.isArray(parts)) for (const part of parts) addPart(seen, part, model);
    else if (isObject(parts)) addPart(seen, parts, model);
  }
}

/** Without its content a reasoning item is a reference to what the upstream stored. */
function hasReasoning(item: JsonObject): boolean {
  return isGiven(item.encrypted_content) || isGiven(item.content);
}

function contentsOf(body: JsonObject, model: string): Contents {
  const seen = noContents();
  if (typeof body.input !== 'string') {
    for (const item of readList(body, 'input')) addItem(seen, item, model);
  }
  for (const key of HIDDEN_KEYS) if (isGiven(body[key])) seen.hidden = key;
  for (const key of UNPRICED_KEYS) if (isGiven(body[key])) seen.unbounded = key;
  const { mode } = memberOf(body, 'reasoning');
  if (isGiven(mode) && mode !== 'standard') seen.unbounded = 'reasoning.mode';
  return seen;
}

interface Hosted {
  count: number;
  webSearches: boolean;
  fileSearches: boolean;
}

function addTool(seen: Contents, hosted: Hosted, tool: Json): void {
  seen.tools += 1;
  if (!isObject(tool)) return;
  const type = textOf(tool, 'type') ?? '';
  if (HOSTED_TOOLS.has(type)) {
    const fee = HOSTED_TOOLS.get(type);
    hosted.count += 1;
    if (fee) hosted[fee] = true;
  } else if (type === 'namespace') {
    for (const nested of Array.isArray(tool.tools) ? tool.tools : []) {
      seen.tools += 1;
      if (!isClientTool(nested)) seen.unbounded = 'tools';
    }
  } else if (!isClientTool(tool)) seen.unbounded = 'tools';
}

function isClientTool(tool: Json): boolean {
  if (!isObject(tool)) return false;
  if (CLIENT_TOOLS.has(tool.type)) return true;
  return tool.type === 'shell' && memberOf(tool, 'environment').type === 'local';
}

/**
 * Hosted tools take turns by themselves, each with the whole context, at most `max_tool_calls`
 * times. A stored prompt may declare any of them. The output limit is one for all turns.
 */
function boundResponse(body: JsonObject, bodyBytes: number, rates: Rates): Bound {
  const seen = contentsOf(body, rates.model);
  const hosted = {
    count: 0,
    webSearches: isGiven(body.prompt),
    fileSearches: isGiven(body.prompt),
  };
  for (const tool of readList(body, 'tools')) addTool(seen, hosted, tool);
  const calls = readLimit(body, 'max_tool_calls');
  const isHosted = hosted.count > 0 || isGiven(body.prompt);
  if (isHosted && calls === undefined) seen.unbounded ??= 'max_tool_calls';
  const most = isHosted ? (calls ?? 0) : 0;
  const fees = {
    webSearches: hosted.webSearches ? most : 0,
    fileSearches: hosted.fileSearches ? most : 0,
  };
  if (!pricesSearches(fees, rates)) seen.unbounded ??= 'tools';
  // Compacting is a turn of its own, with an answer of its own.
  const passes = isGiven(body.context_management) ? 2 : 1;
  const turns = {
    outputTokens: readLimit(body, 'max_output_tokens'),
    outputField: 'max_output_tokens',
    choices: passes,
    turns: (1 + most) * passes,
    serviceTier: readText(body, 'service_tier'),
    ...fees,
  };
  return boundText(seen, turns, bodyBytes, rates.contextWindow);
}

function readUsage(response: JsonObject): Usage | undefined {
  const usage = memberOf(response, 'usage');
  const inputTokens = readCount(usage.input_tokens);
  const output = readCount(usage.output_tokens);
  if (inputTokens === undefined || output === undefined) return undefined;
  const input = memberOf(usage, 'input_tokens_details');
  const outputDetails = memberOf(usage, 'output_tokens_details');
  return ifCounted({
    ...NO_USAGE,
    ...readSearches(response),
    inputTokens,
    cacheReadTokens: readCount(input.cached_tokens) ?? 0,
    cacheWriteTokens: readCount(input.cache_write_tokens) ?? 0,
    inputAudioTokens: readCount(input.audio_tokens) ?? 0,
    inputImageTokens: readCount(input.image_tokens) ?? 0,
    // Some hosts count reasoning in the total alone.
    outputTokens: Math.max(output, (readCount(usage.total_tokens) ?? 0) - inputTokens),
    reasoningTokens: readCount(outputDetails.reasoning_tokens) ?? 0,
  });
}

/** A web search call is charged if it searches: those that open a page, or look into one, are not. */
function readSearches(response: JsonObject): Pick<Usage, 'webSearches' | 'fileSearches'> {
  const items = Array.isArray(response.output) ? response.output.filter(isObject) : [];
  const made = (type: string) => items.filter((item) => item.type === type);
  const isSearch = (item: JsonObject) => (memberOf(item, 'action').type ?? 'search') === 'search';
  const billed = memberOf(memberOf(response, 'tool_usage'), 'web_search').num_requests;
  return {
    webSearches: readCount(billed) ?? made('web_search_call').filter(isSearch).length,
    fileSearches: made('file_search_call').length,
  };
}

const MOST_ITEMS = 1_024;

function readItemIds({ output }: JsonObject): string[] {
  const items = Array.isArray(output) ? output.slice(0, MOST_ITEMS) : [];
  return items.flatMap((item) => (isObject(item) ? (textOf(item, 'id') ?? []) : []));
}

/** Ids of kept items that a body refers to in place of their content; empty where one is none. */
export function referredItems({ input }: JsonObject): string[] {
  const items = Array.isArray(input) ? input : [];
  return items.flatMap((item) => {
    if (!isObject(item)) return [];
    const isReference = item.type === 'item_reference' || (!isGiven(item.type) && !item.role);
    return isReference ? [stringOf(item, 'id')] : [];
  });
}

function readResponse(response: JsonObject): Omit<Reading, 'complete'> {
  const usage = readUsage(response);
  const model = textOf(response, 'model');
  const serviceTier = textOf(response, 'service_tier');
  const responseId = textOf(response, 'id');
  const status = textOf(response, 'status');
  const itemIds = readItemIds(response);
  return {
    ...(model === undefined ? {} : { model }),
    ...(serviceTier === undefined ? {} : { serviceTier }),
    ...(responseId === undefined ? {} : { responseId }),
    ...(status === undefined ? {} : { status }),
    ...(itemIds.length === 0 ? {} : { itemIds }),
    ...(usage === undefined ? {} : { usage }),
  };
}

/** Whether an event carries the response itself. */
function mayHoldResponse({ event, data }: SseEvent): boolean {
  if (READ_EVENTS.has(event)) return true;
  if (event !== '' && event !== 'message') return false;
  return data.includes('"response"') || data.includes('\\u');
}

function meterResponse(): Meter {
  let seen: Omit<Reading, 'complete'> = {};
  const take = (response: JsonObject) => {
    seen = { ...seen, ...readResponse(response) };
  };
  return {
    body: take,
    event(event) {
      const value = mayHoldResponse(event) ? parseEvent(event.data) : undefined;
      if (!value || !READ_EVENTS.has(value.type) || !isObject(value.response)) return 'pass';
      take(value.response);
      return LAST_EVENTS.has(value.type) ? 'last' : 'pass';
    },
    reading: () => ({ ...seen, complete: FINAL.has(seen.status ?? '') }),
  };
}

const openai = { dialect: 'openai' } as const;

/** The rows of the table. Reading a response again costs nothing, but may settle one that ran. */
export const RESPONSES_ENDPOINTS: readonly Endpoint[] = [
  {
    ...openai,
    name: 'responses.create',
    method: 'POST',
    path: 'responses',
    spends: true,
    readKeys: new Set([
      ...HIDDEN_KEYS,
      ...UNPRICED_KEYS,
      'model',
      'input',
      'instructions',
      'tools',
      'tool_choice',
      'parallel_tool_calls',
      'max_output_tokens',
      'max_tool_calls',
      'reasoning',
      'stream',
      'stream_options',
      'background',
      'store',
      'include',
      'service_tier',
      'context_management',
      'metadata',
      'prompt_cache_key',
      'safety_identifier',
      'user',
    ]),
    bound: boundResponse,
    limitOutput: (body, tokens) => limitMember(body, 'max_output_tokens', tokens),
    askUsage: () => [],
    meter: meterResponse,
    calls: readResponseCalls,
  },
  freeRow({
    ...openai,
    name: 'responses.get',
    method: 'GET',
    path: 'responses/{id}',
    meter: meterResponse,
    calls: readResponseCalls,
  }),
  freeRow({
    ...openai,
    name: 'responses.delete',
    method: 'DELETE',
    path: 'responses/{id}',
    calls: readResponseCalls,
  }),
  freeRow({
    ...openai,
    name: 'responses.cancel',
    method: 'POST',
    path: 'responses/{id}/cancel',
    meter: meterResponse,
    calls: readResponseCalls,
  }),
  freeRow({
    ...openai,
    name: 'responses.input_items',
    method: 'GET',
    path: 'responses/{id}/input_items',
    // A list says nothing of how its response ended, and so settles nothing.
    meter: meterResponse,
    calls: readResponseCalls,
  }),
];
