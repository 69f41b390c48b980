/** Responses of the built-in upstream, OpenAI's `POST /v1/responses`. Nothing is stored. */

import { z } from 'zod';
import { isMembers, type Members, objects, readBody, tokenLimit } from './body.ts';
import type { Call, Tool } from './calls.ts';
import { event, stream } from './events.ts';
import { Fault } from './fault.ts';
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
  input: z.union([z.string(), objects(10_000)]),
  stream: z.boolean().nullish(),
  background: z.boolean().nullish(),
  max_output_tokens: tokenLimit,
  tools: objects(1024).nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  previous_response_id: z.string().nullish(),
  conversation: z.null().optional(),
  prompt: z.null().optional(),
});

type Asked = z.infer<typeof schema>;

/** One item of the output with the events that build it, without their common members. */
interface Item {
  readonly id: string;
  readonly started: object;
  readonly done: object;
  readonly building: readonly { readonly type: string; readonly [member: string]: unknown }[];
}

const ID_PREFIX = 'resp_demo';

/**
 * Answers a response, as JSON or as events from `response.created` to `response.completed` (or
 * `response.incomplete` when the output limit was met). An earlier response that
 * `previous_response_id` names adds nothing, for it was not kept.
 *
 * @throws {Fault} 400 for a body that does not fit, for a background response and for an earlier
 *   response that is not of this upstream; 404 for an unknown model.
 */
export async function responses(request: Request): Promise<Response> {
  const { members, key } = await readBody(request, schema);
  requireModel(members.model);
  requireStateless(members);
  const items = typeof members.input === 'string' ? [] : members.input;
  const said = reply(turnOf(members, items));
  const headers = { 'x-request-id': `req_demo${key}` };
  return members.stream
    ? stream(events(members, key, said), headers)
    : Response.json(ended(members, key, said), { headers });
}

/**
 * Turns away what needs a stored response (`/v1/responses/{id}` and below).
 *
 * @throws {Fault} 404, always.
 */
export function storedResponse(id: string): never {
  throw new Fault(404, `Response with id '${id.slice(0, 100)}' not found: the demo stores none.`);
}

function requireStateless({ background, previous_response_id: earlier }: Asked): void {
  if (background) throw new Fault(400, 'The demo has no background responses.', 'background');
  if (typeof earlier === 'string' && !earlier.startsWith(ID_PREFIX)) {
    throw new Fault(
      400,
      `Previous response with id '${earlier.slice(0, 100)}' not found.`,
      'previous_response_id',
      'previous_response_not_found',
    );
  }
}

function turnOf(body: Asked, items: readonly Members[]) {
  const results = trailing(
    items,
    ({ type }) => typeof type === 'string' && type.endsWith('_output'),
  );
  return {
    model: body.model,
    asked: typeof body.input === 'string' ? body.input : lastAsked(items),
    results: results.map(({ output }) => textOf(output)),
    tools: (body.tools ?? []).flatMap(toolOf),
    choice: choiceOf(body.tool_choice),
    parallel: body.parallel_tool_calls !== false,
    maxTokens: body.max_output_tokens ?? undefined,
  };
}

function toolOf({ type, name }: Members): Tool[] {
  const local = type === 'function' || type === 'custom';
  return local && typeof name === 'string' ? [{ name, custom: type === 'custom' }] : [];
}

function choiceOf(choice: unknown): Choice {
  if (choice === 'none' || choice === 'required') return choice;
  return isMembers(choice) && typeof choice.name === 'string' ? { name: choice.name } : 'auto';
}

function begun(body: Asked, key: string) {
  return {
    id: ID_PREFIX + key,
    object: 'response',
    created_at: CREATED_S,
    status: 'in_progress',
    background: false,
    error: null,
    incomplete_details: null,
    instructions: body.instructions ?? null,
    max_output_tokens: body.max_output_tokens ?? null,
    metadata: body.metadata ?? {},
    model: body.model,
    output: [] as object[],
    parallel_tool_calls: body.parallel_tool_calls ?? true,
    previous_response_id: body.previous_response_id ?? null,
    reasoning: { effort: null, summary: null },
    service_tier: 'default',
    store: false,
    temperature: body.temperature ?? 1,
    text: { format: { type: 'text' } },
    tool_choice: body.tool_choice ?? 'auto',
    tools: body.tools ?? [],
    top_p: body.top_p ?? 1,
    truncation: 'disabled',
    usage: null,
  };
}

function ended(body: Asked, key: string, said: Reply) {
  return {
    ...begun(body, key),
    status: statusOf(said),
    incomplete_details: said.cut ? { reason: 'max_output_tokens' } : null,
    output: itemsOf(said, key).map(({ done }) => done),
    usage: usageOf(body, said),
  };
}

function statusOf({ cut }: Reply) {
  return cut ? 'incomplete' : 'completed';
}

function usageOf(body: Asked, said: Reply) {
  const input = countTokens([body.input, body.instructions, body.tools]);
  return {
    input_tokens: input,
    input_tokens_details: { cached_tokens: 0 },
    output_tokens: said.outputTokens,
    output_tokens_details: { reasoning_tokens: 0 },
    total_tokens: input + said.outputTokens,
  };
}

function itemsOf(said: Reply, key: string): Item[] {
  return said.calls.length > 0
    ? said.calls.map((call, at) => callItem(call, key, at))
    : [textItem(said, key)];
}

function textItem(said: Reply, key: string): Item {
  const { text } = said;
  const common = { id: `msg_demo${key}`, type: 'message', role: 'assistant' };
  const started = { ...common, status: 'in_progress', content: [] };
  const part = { type: 'output_text', annotations: [], logprobs: [], text };
  const at = { content_index: 0 };
  const deltas = (text ? pieces(text, 12) : []).map((delta) => ({
    type: 'response.output_text.delta',
    ...at,
    delta,
    logprobs: [],
  }));
  const building = [
    { type: 'response.content_part.added', ...at, part: { ...part, text: '' } },
    ...deltas,
    { type: 'response.output_text.done', ...at, text, logprobs: [] },
    { type: 'response.content_part.done', ...at, part },
  ];
  const done = { ...common, status: statusOf(said), content: [part] };
  return { id: common.id, started, done, building };
}

function callItem({ name, input, custom }: Call, key: string, at: number): Item {
  const member = custom ? 'input' : 'arguments';
  const type = custom ? 'custom_tool_call' : 'function_call';
  const id = `${custom ? 'ctc' : 'fc'}_demo${key}${at}`;
  const common = { id, type, call_id: `call_demo${key}${at}`, name };
  const building = `response.${custom ? 'custom_tool_call_input' : 'function_call_arguments'}`;
  return {
    id,
    started: { ...common, status: 'in_progress', [member]: '' },
    done: { ...common, status: 'completed', [member]: input },
    building: [
      ...pieces(input, 8).map((delta) => ({ type: `${building}.delta`, delta })),
      { type: `${building}.done`, [member]: input },
    ],
  };
}

function* events(body: Asked, key: string, said: Reply): Generator<string> {
  let sequence_number = 0;
  for (const { type, ...members } of timeline(body, key, said)) {
    yield event({ type, sequence_number, ...members }, type);
    sequence_number++;
  }
}

function* timeline(body: Asked, key: string, said: Reply): Generator<Item['building'][number]> {
  yield { type: 'response.created', response: begun(body, key) };
  yield { type: 'response.in_progress', response: begun(body, key) };
  for (const [output_index, item] of itemsOf(said, key).entries()) {
    const { id: item_id, started, done, building } = item;
    yield { type: 'response.output_item.added', output_index, item: started };
    for (const { type, ...members } of building) yield { type, item_id, output_index, ...members };
    yield { type: 'response.output_item.done', output_index, item: done };
  }
  yield { type: `response.${statusOf(said)}`, response: ended(body, key, said) };
}
