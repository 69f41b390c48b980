/** Chat completions of the built-in upstream, OpenAI's `POST /v1/chat/completions`. */

import { z } from 'zod';
import { isMembers, type Members, objects, readBody, tokenLimit } from './body.ts';
import type { Call, Tool } from './calls.ts';
import { event, stream } from './events.ts';
import {
  type Choice,
  CREATED_S,
  lastAsked,
  type Reply,
  reply,
  requireModel,
  trailing,
} from './reply.ts';
import { countTokens, pieces, textOf } from './text.ts';

const schema = z.looseObject({
  model: z.string(),
  messages: objects(10_000).min(1),
  stream: z.boolean().nullish(),
  stream_options: z.looseObject({ include_usage: z.boolean().nullish() }).nullish(),
  max_tokens: tokenLimit,
  max_completion_tokens: tokenLimit,
  n: z.int().min(1).max(128).nullish(),
  tools: objects(1024).nullish(),
  functions: objects(1024).nullish(),
  parallel_tool_calls: z.boolean().nullish(),
});

type Chat = z.infer<typeof schema>;

/** An answer with what its wire form needs to know of the request. */
interface Completion {
  readonly key: string;
  readonly chat: Chat;
  readonly said: Reply;
  readonly choices: number;
  /** Whether the calls are of the former `functions` kind, one per answer and without an id. */
  readonly legacy: boolean;
}

/**
 * Answers a chat completion, as JSON or as chunks that end with `[DONE]`.
 *
 * @throws {Fault} 400 for a body that does not fit, 404 for an unknown model.
 */
export async function chat(request: Request): Promise<Response> {
  const { members, key } = await readBody(request, schema);
  requireModel(members.model);
  const legacy = Boolean(members.functions?.length) && !members.tools?.length;
  const said = reply(turnOf(members, legacy));
  const completion = { key, chat: members, said, choices: members.n ?? 1, legacy };
  const headers = { 'x-request-id': `req_demo${key}` };
  return members.stream
    ? stream(chunks(completion), headers)
    : Response.json(whole(completion), { headers });
}

function turnOf(body: Chat, legacy: boolean) {
  const results = trailing(body.messages, ({ role }) => role === 'tool' || role === 'function');
  return {
    model: body.model,
    asked: lastAsked(body.messages),
    results: results.map(({ content }) => textOf(content)),
    tools: legacy ? toolsOf(body.functions ?? [], false) : (body.tools ?? []).flatMap(toolOf),
    choice: choiceOf(legacy ? body.function_call : body.tool_choice),
    parallel: !legacy && body.parallel_tool_calls !== false,
    maxTokens: body.max_completion_tokens ?? body.max_tokens ?? undefined,
  };
}

function toolOf(tool: Members): Tool[] {
  const custom = tool.type === 'custom';
  const inner = custom ? tool.custom : tool.function;
  return toolsOf(isMembers(inner) ? [inner] : [], custom);
}

function toolsOf(list: readonly Members[], custom: boolean): Tool[] {
  return list.flatMap(({ name }) => (typeof name === 'string' ? [{ name, custom }] : []));
}

function choiceOf(choice: unknown): Choice {
  if (choice === 'none' || choice === 'required') return choice;
  if (!isMembers(choice)) return 'auto';
  const named = [choice.function, choice.custom, choice].find(isMembers);
  return typeof named?.name === 'string' ? { name: named.name } : 'auto';
}

function head({ key, chat }: Completion, object: string) {
  return {
    id: `chatcmpl-demo${key}`,
    object,
    created: CREATED_S,
    model: chat.model,
    service_tier: 'default',
    system_fingerprint: 'fp_demo',
  };
}

function whole(completion: Completion) {
  const choice = {
    message: messageOf(completion),
    logprobs: null,
    finish_reason: finishReason(completion),
  };
  const choices = Array.from({ length: completion.choices }, (_, index) => ({ index, ...choice }));
  return { ...head(completion, 'chat.completion'), choices, usage: usageOf(completion) };
}

function messageOf({ key, said, legacy }: Completion) {
  const [call] = said.calls;
  const base = { role: 'assistant', refusal: null, annotations: [] };
  if (!call) return { ...base, content: said.text };
  return legacy
    ? { ...base, content: null, function_call: { name: call.name, arguments: call.input } }
    : { ...base, content: null, tool_calls: said.calls.map((each, at) => wire(each, key, at)) };
}

function wire({ name, input, custom }: Call, key: string, at: number) {
  const id = `call_demo${key}${at}`;
  return custom
    ? { id, type: 'custom', custom: { name, input } }
    : { id, type: 'function', function: { name, arguments: input } };
}

function finishReason({ said, legacy }: Completion): string {
  if (said.cut) return 'length';
  if (said.calls.length === 0) return 'stop';
  return legacy ? 'function_call' : 'tool_calls';
}

function usageOf({ chat, said, choices }: Completion) {
  const input = countTokens([chat.messages, chat.tools, chat.functions]);
  const output = said.outputTokens * choices;
  return {
    prompt_tokens: input,
    completion_tokens: output,
    total_tokens: input + output,
    prompt_tokens_details: { cached_tokens: 0, audio_tokens: 0 },
    completion_tokens_details: {
      reasoning_tokens: 0,
      audio_tokens: 0,
      accepted_prediction_tokens: 0,
      rejected_prediction_tokens: 0,
    },
  };
}

function* chunks(completion: Completion): Generator<string> {
  const counted = completion.chat.stream_options?.include_usage === true;
  const base = { ...head(completion, 'chat.completion.chunk'), ...(counted && { usage: null }) };
  const delivered = [...deltas(completion)];
  for (const [delta, finish_reason] of delivered) {
    for (let index = 0; index < completion.choices; index++) {
      yield event({ ...base, choices: [{ index, delta, logprobs: null, finish_reason }] });
    }
  }
  if (counted) yield event({ ...base, choices: [], usage: usageOf(completion) });
  yield event('[DONE]');
}

/** The deltas of one choice, each with its finish reason: the role first, the reason last. */
function* deltas(completion: Completion): Generator<[delta: object, finish: string | null]> {
  const { said, key, legacy } = completion;
  const content = said.calls.length > 0 ? null : '';
  yield [{ role: 'assistant', content, refusal: null }, null];
  for (const piece of said.text ? pieces(said.text, 12) : []) yield [{ content: piece }, null];
  for (const [at, call] of said.calls.entries()) {
    for (const delta of legacy ? functionDeltas(call) : callDeltas(call, key, at)) {
      yield [delta, null];
    }
  }
  yield [{}, finishReason(completion)];
}

function* functionDeltas(call: Call): Generator<object> {
  yield { function_call: { name: call.name, arguments: '' } };
  for (const piece of pieces(call.input, 8)) yield { function_call: { arguments: piece } };
}

function* callDeltas(call: Call, key: string, index: number): Generator<object> {
  yield { tool_calls: [{ index, ...wire({ ...call, input: '' }, key, index) }] };
  for (const piece of pieces(call.input, 8)) {
    const part = call.custom ? { custom: { input: piece } } : { function: { arguments: piece } };
    yield { tool_calls: [{ index, ...part }] };
  }
}
