/** Anthropic's endpoints: messages, their token count, and models. */

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
import { addUsage, ifCounted, NO_USAGE, readCount, type Usage } from '../../schema/usage.ts';
import { readMessageCalls } from './calls-messages.ts';
import type { Endpoint, Meter } from './contract.ts';
import { freeRow, limitMember } from './openai.ts';
import { memberOf, parseEvent, textOf } from './reading.ts';

/** An image is scaled to at most 4,784 visual tokens; a few more frame it. */
const IMAGE_TOKENS = 5_000;

/** Tools that the caller runs. */
const CLIENT_TOOL = /^(?:custom|(?:bash|text_editor|computer|memory)_\d+)$/;
const TOOLSET = /^(?:browser|computer)_toolset_\d+$/;
/** Tools that run upstream at most `max_uses` times each, at no fee but that of a search. */
const COUNTED_TOOL = /^web_(?:search|fetch)_\d+$/;
const TOOL_SEARCH = /^tool_search_tool_(?:bm25|regex)(?:_\d+)?$/;

/** How often the upstream samples in one request before it pauses the turn. */
const SAMPLING_TURNS = 10;

/** What the schemas of built-in tools cost, in tools of the usual size. */
const BUILT_IN_TOOLS = 16;
const TOOLSET_TOOLS = 80;

/** Members by which other models or servers answer, whose prices are not those of the model. */
const UNPRICED_KEYS = ['fallbacks', 'mcp_servers'] as const;

/** Blocks whose whole content is text in the body. */
const TEXT_BLOCKS: ReadonlySet<Json | undefined> = new Set([
  'text',
  'thinking',
  'redacted_thinking',
  'tool_use',
  'server_tool_use',
  'web_search_tool_result',
  'search_result',
  'tool_reference',
  'compaction',
]);

/** @param rest Lists of blocks still to be looked at. */
function addBlock(seen: Contents, block: Json, rest: (readonly Json[])[]): void {
  if (!isObject(block) || TEXT_BLOCKS.has(block.type)) return;
  const source = memberOf(block, 'source');
  if (block.type === 'tool_result') {
    if (Array.isArray(block.content)) rest.push(block.content);
  } else if (block.type === 'image' && source.type !== 'file') {
    seen.images = true;
    seen.mediaTokens += IMAGE_TOKENS;
    if (source.type === 'base64' && typeof source.data === 'string') {
      seen.mediaBytes += source.data.length;
    }
  } else if (block.type === 'document' && source.type === 'content') {
    if (Array.isArray(source.content)) rest.push(source.content);
  } else if (!(block.type === 'document' && source.type === 'text')) {
    // Pages have no cap that the body shows, and files are not in it.
    seen.hidden = 'messages[].content[]';
  }
}

function contentsOf(body: JsonObject): Contents {
  const seen = noContents();
  const rest: (readonly Json[])[] = [];
  if (Array.isArray(body.system)) rest.push(body.system);
  for (const message of readList(body, 'messages')) {
    seen.messages += 1;
    if (isObject(message) && Array.isArray(message.content)) rest.push(message.content);
  }
  for (let blocks = rest.pop(); blocks !== undefined; blocks = rest.pop()) {
    for (const block of blocks) addBlock(seen, block, rest);
  }
  if (isGiven(body.thread)) seen.hidden = 'thread';
  for (const key of UNPRICED_KEYS) if (isGiven(body[key])) seen.unbounded = key;
  return seen;
}

interface Hosted {
  uses: number;
  webSearches: number;
}

function addTool(seen: Contents, hosted: Hosted, tool: Json): void {
  seen.tools += 1;
  if (!isObject(tool)) return;
  const type = readText(tool, 'type') ?? 'custom';
  if (CLIENT_TOOL.test(type)) seen.tools += type === 'custom' ? 0 : BUILT_IN_TOOLS;
  else if (TOOLSET.test(type)) seen.tools += TOOLSET_TOOLS;
  else if (TOOL_SEARCH.test(type)) hosted.uses += SAMPLING_TURNS;
  else if (COUNTED_TOOL.test(type)) {
    seen.tools += BUILT_IN_TOOLS;
    const uses = readLimit(tool, 'max_uses');
    if (uses === undefined) seen.unbounded ??= 'tools[].max_uses';
    hosted.uses += uses ?? 0;
    if (type.startsWith('web_search')) hosted.webSearches += uses ?? 0;
  } else seen.unbounded = 'tools';
}

/** Edits of the context that only clear parts of it are free; others summarize it in a turn. */
function compacts(body: JsonObject): boolean {
  if (isGiven(body.compaction)) return true;
  const { edits } = memberOf(body, 'context_management');
  if (!Array.isArray(edits)) return false;
  return edits.some((edit) => !isObject(edit) || !textOf(edit, 'type')?.startsWith('clear_'));
}

/** Where a region is not asked for, the workspace may have set one, at a surcharge. */
function tierOf(body: JsonObject): string {
  const speed = readText(body, 'speed') ?? 'standard';
  const isGlobal = readText(body, 'inference_geo') === 'global';
  return (speed === 'standard' ? 'standard' : 'fast_mode') + (isGlobal ? '' : '+regional');
}

function boundMessage(body: JsonObject, bodyBytes: number, rates: Rates): Bound {
  const seen = contentsOf(body);
  const hosted = { uses: 0, webSearches: 0 };
  for (const tool of readList(body, 'tools')) addTool(seen, hosted, tool);
  const { webSearches } = hosted;
  if (!pricesSearches({ webSearches, fileSearches: 0 }, rates)) seen.unbounded ??= 'tools';
  // Compacting is a turn of its own, with an answer of its own.
  const passes = compacts(body) ? 2 : 1;
  const turns = {
    outputTokens: readLimit(body, 'max_tokens'),
    outputField: 'max_tokens',
    choices: passes,
    turns: (1 + hosted.uses) * passes,
    webSearches,
    serviceTier: tierOf(body),
  };
  const bound = boundText(seen, turns, bodyBytes, rates.contextWindow);
  const leastOutput = leastOutputOf(body);
  return leastOutput === undefined ? bound : { ...bound, leastOutput };
}

/** Thinking has to leave something of the output limit: its budget is less than `max_tokens`. */
function leastOutputOf({ thinking }: JsonObject): number | undefined {
  if (!isObject(thinking) || thinking.type !== 'enabled') return undefined;
  const budget = readCount(thinking.budget_tokens);
  return budget === undefined ? undefined : budget + 1;
}

/** Counts as reported so far. */
interface Reported {
  input?: number;
  cacheRead?: number;
  cacheWrite?: number;
  cacheWrite5m?: number;
  cacheWrite1h?: number;
  output?: number;
  reasoning?: number;
  webSearches?: number;
  extra?: Usage;
  tier?: string;
  speed?: string;
  geo?: string;
}

function readReported(usage: JsonObject): Reported {
  const created = memberOf(usage, 'cache_creation');
  const all = {
    input: readCount(usage.input_tokens),
    cacheRead: readCount(usage.cache_read_input_tokens),
    cacheWrite: readCount(usage.cache_creation_input_tokens),
    cacheWrite5m: readCount(created.ephemeral_5m_input_tokens),
    cacheWrite1h: readCount(created.ephemeral_1h_input_tokens),
    output: readCount(usage.output_tokens),
    reasoning: readCount(memberOf(usage, 'output_tokens_details').thinking_tokens),
    webSearches: readCount(memberOf(usage, 'server_tool_use').web_search_requests),
    extra: readIterations(usage.iterations),
    tier: textOf(usage, 'service_tier'),
    speed: textOf(usage, 'speed'),
    geo: textOf(usage, 'inference_geo'),
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
}

/** Passes that the totals leave out: compaction, and models that the main one consulted. */
function readIterations(iterations: Json | undefined): Usage | undefined {
  if (!Array.isArray(iterations)) return undefined;
  return iterations
    .filter(isObject)
    .filter((iteration) => iteration.type !== 'message')
    .map((iteration) => toUsage(readReported({ ...iteration, iterations: null })))
    .reduce<Usage>((sum, usage) => addUsage(sum, usage ?? NO_USAGE), NO_USAGE);
}

/** Anthropic's input excludes what its cache read and wrote; ours includes it. */
function toUsage(reported: Reported): Usage | undefined {
  if (reported.input === undefined || reported.output === undefined) return undefined;
  const { cacheWrite5m = 0, cacheWrite1h = 0, cacheRead = 0 } = reported;
  const written = Math.max(reported.cacheWrite ?? 0, cacheWrite5m + cacheWrite1h);
  // Totals may grow after the breakdown was sent: the rest counts as the dearer kind in use.
  const hour = cacheWrite1h > 0 ? written - cacheWrite5m : 0;
  const usage = {
    ...NO_USAGE,
    inputTokens: reported.input + cacheRead + written,
    cacheReadTokens: cacheRead,
    cacheWriteTokens: written - hour,
    cacheWrite1hTokens: hour,
    outputTokens: reported.output,
    reasoningTokens: reported.reasoning ?? 0,
    webSearches: reported.webSearches ?? 0,
  };
  return ifCounted(addUsage(usage, reported.extra ?? NO_USAGE));
}

/** Names of `costOf`: priority capacity is paid for ahead, so it costs what standard does. */
function tierServed({ tier, speed, geo }: Reported): string | undefined {
  const names = [tier === 'priority' ? 'committed' : tier];
  if (speed === 'fast') names.push('fast_mode');
  if (geo !== undefined && geo !== 'global' && geo !== 'not_available') names.push('regional');
  const known = names.filter((name) => name !== undefined);
  return known.length === 0 ? undefined : known.join('+');
}

/** A later event overwrites, since each one is cumulative; so none that counted counts zero again. */
function renew(before: Reported, now: Reported): Reported {
  const said = Object.entries(now).filter(
    ([name, value]) => value !== 0 || !before[name as keyof Reported],
  );
  return { ...before, ...Object.fromEntries(said) };
}

const READ_EVENTS = new Set(['message_start', 'message_delta', 'message_stop']);

function mayHoldUsage({ event, data }: SseEvent): boolean {
  if (READ_EVENTS.has(event)) return true;
  if (event !== '' && event !== 'message') return false;
  return data.includes('"message_') || data.includes('\\u');
}

function meterMessage(): Meter {
  let reported: Reported = {};
  let named: { model?: string | undefined; responseId?: string | undefined } = {};
  let complete = false;
  const take = (message: JsonObject) => {
    named = { model: textOf(message, 'model'), responseId: textOf(message, 'id') };
    reported = renew(reported, readReported(memberOf(message, 'usage')));
  };
  return {
    body(value) {
      take(value);
      complete = true;
    },
    event(event) {
      const value = mayHoldUsage(event) ? parseEvent(event.data) : undefined;
      if (value?.type === 'message_start') take(memberOf(value, 'message'));
      if (value?.type === 'message_delta') {
        reported = renew(reported, readReported(memberOf(value, 'usage')));
      }
      if (value?.type !== 'message_stop') return 'pass';
      complete = true;
      return 'last';
    },
    reading: () => ({
      ...named,
      ...{ serviceTier: tierServed(reported), usage: toUsage(reported), complete },
    }),
  };
}

const anthropic = { dialect: 'anthropic' } as const;

/** The rows of the table. */
export const ANTHROPIC_ENDPOINTS: readonly Endpoint[] = [
  {
    ...anthropic,
    name: 'messages',
    method: 'POST',
    path: 'messages',
    spends: true,
    readKeys: new Set([
      ...UNPRICED_KEYS,
      'model',
      'messages',
      'system',
      'tools',
      'tool_choice',
      'max_tokens',
      'stream',
      'thinking',
      'speed',
      'inference_geo',
      'service_tier',
      'context_management',
      'compaction',
      'container',
      'thread',
      'metadata',
      'cache_control',
    ]),
    bound: boundMessage,
    limitOutput: (body, tokens) => limitMember(body, 'max_tokens', tokens),
    askUsage: () => [],
    meter: meterMessage,
    calls: readMessageCalls,
  },
  freeRow({
    ...anthropic,
    name: 'messages.count_tokens',
    method: 'POST',
    path: 'messages/count_tokens',
    readKeys: new Set([
      ...UNPRICED_KEYS,
      'model',
      'messages',
      'system',
      'tools',
      'tool_choice',
      'thinking',
    ]),
  }),
  freeRow({ ...anthropic, name: 'models.list', method: 'GET', path: 'models' }),
  freeRow({ ...anthropic, name: 'models.get', method: 'GET', path: 'models/{id}' }),
];
