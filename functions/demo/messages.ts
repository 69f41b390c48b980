/** Messages of the built-in upstream, Anthropic's `POST /v1/messages` and `/count_tokens`. */

import { z } from 'zod';
import { isMembers, type Members, objects, readBody, tokenLimit } from './body.ts';
import type { Call, Tool } from './calls.ts';
import { event, stream } from './events.ts';
import { type Choice, lastAsked, type Reply, reply, requireModel } from './reply.ts';
import { countTokens, pieces, textOf } from './text.ts';

const counted = {
  model: z.string(),
  messages: objects(100_000).min(1),
  tools: objects(1024).nullish(),
};
const countSchema = z.looseObject(counted);
const schema = z.looseObject({
  ...counted,
  max_tokens: tokenLimit.unwrap().unwrap(),
  stream: z.boolean().nullish(),
});

type Message = z.infer<typeof schema>;

/** Tools that the provider would run itself: never proposed to the caller. */
const HOSTED = /^(?:web_search|web_fetch|code_execution|tool_search|mcp_toolset)/;

/**
 * Answers a message, as JSON or as events from `message_start` to `message_stop`.
 *
 * @throws {Fault} 400 for a body that does not fit, 404 for an unknown model.
 */
export async function messages(request: Request): Promise<Response> {
  const { members, key } = await readBody(request, schema);
  requireModel(members.model);
  const said = reply(turnOf(members));
  const inputTokens = tokensIn(members);
  const headers = { 'request-id': `req_demo${key}` };
  if (members.stream) return stream(events(members, key, said, inputTokens), headers);
  const usage = { ...usageOf(inputTokens), output_tokens: said.outputTokens };
  const ending = { stop_reason: stopReason(said), content: contentOf(said, key), usage };
  return Response.json({ ...start(members, key, inputTokens), ...ending }, { headers });
}

/**
 * Counts the tokens of a message's input: `{ input_tokens }`, the number its answer would report.
 *
 * @throws {Fault} 400 for a body that does not fit, 404 for an unknown model.
 */
export async function countMessage(request: Request): Promise<Response> {
  const { members, key } = await readBody(request, countSchema);
  requireModel(members.model);
  const headers = { 'request-id': `req_demo${key}` };
  return Response.json({ input_tokens: tokensIn(members) }, { headers });
}

function tokensIn(body: z.infer<typeof countSchema>): number {
  return countTokens([body.messages, body.system, body.tools]);
}

function turnOf(body: Message) {
  const choice = isMembers(body.tool_choice) ? body.tool_choice : {};
  return {
    model: body.model,
    asked: lastAsked(body.messages),
    results: resultsOf(body.messages.at(-1)),
    tools: (body.tools ?? []).flatMap(toolOf),
    choice: choiceOf(choice),
    parallel: choice.disable_parallel_tool_use !== true,
    maxTokens: body.max_tokens,
  };
}

function resultsOf(last: Members | undefined): string[] {
  const blocks = Array.isArray(last?.content) ? last.content.filter(isMembers) : [];
  return blocks.filter(({ type }) => type === 'tool_result').map(({ content }) => textOf(content));
}

function toolOf({ type, name }: Members): Tool[] {
  const hosted = typeof type === 'string' && HOSTED.test(type);
  return typeof name === 'string' && !hosted ? [{ name, custom: false }] : [];
}

function choiceOf({ type, name }: Members): Choice {
  if (type === 'tool' && typeof name === 'string') return { name };
  if (type === 'any') return 'required';
  return type === 'none' ? 'none' : 'auto';
}

function start(body: Message, key: string, inputTokens: number) {
  return {
    id: `msg_demo${key}`,
    type: 'message',
    role: 'assistant',
    model: body.model,
    content: [],
    stop_reason: null,
    stop_sequence: null,
    usage: { ...usageOf(inputTokens), output_tokens: 1 },
  };
}

function countsOf(inputTokens: number) {
  return {
    input_tokens: inputTokens,
    cache_creation_input_tokens: 0,
    cache_read_input_tokens: 0,
  };
}

function usageOf(inputTokens: number) {
  return {
    ...countsOf(inputTokens),
    cache_creation: { ephemeral_5m_input_tokens: 0, ephemeral_1h_input_tokens: 0 },
    service_tier: 'standard',
  };
}

function stopReason({ calls, cut }: Reply): string {
  if (cut) return 'max_tokens';
  return calls.length > 0 ? 'tool_use' : 'end_turn';
}

function contentOf({ text, calls }: Reply, key: string): object[] {
  const spoken = text === '' ? [] : [{ type: 'text', text }];
  const used = calls.map((call, at) => ({
    ...toolUse(call, key, at),
    input: JSON.parse(call.input),
  }));
  return [...spoken, ...used];
}

function toolUse({ name }: Call, key: string, at: number) {
  return { type: 'tool_use', id: `toolu_demo${key}${at}`, name, input: {} };
}

function* events(body: Message, key: string, said: Reply, inputTokens: number): Generator<string> {
  yield named('message_start', { message: start(body, key, inputTokens) });
  let index = 0;
  for (const [content_block, deltas] of blocks(said, key)) {
    yield named('content_block_start', { index, content_block });
    if (index === 0) yield named('ping', {});
    for (const delta of deltas) yield named('content_block_delta', { index, delta });
    yield named('content_block_stop', { index });
    index++;
  }
  const usage = { ...countsOf(inputTokens), output_tokens: said.outputTokens };
  const delta = { stop_reason: stopReason(said), stop_sequence: null };
  yield named('message_delta', { delta, usage });
  yield named('message_stop', {});
}

function* blocks(
  { text, calls }: Reply,
  key: string,
): Generator<[start: object, deltas: object[]]> {
  if (text !== '') {
    const deltas = pieces(text, 12).map((piece) => ({ type: 'text_delta', text: piece }));
    yield [{ type: 'text', text: '' }, deltas];
  }
  for (const [at, call] of calls.entries()) {
    const parts = ['', ...pieces(call.input, 8)];
    const deltas = parts.map((part) => ({ type: 'input_json_delta', partial_json: part }));
    yield [toolUse(call, key, at), deltas];
  }
}

function named(type: string, members: object): string {
  return event({ type, ...members }, type);
}
