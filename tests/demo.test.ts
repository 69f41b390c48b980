/** The built-in upstream satisfies the official SDKs, and its answers follow from the request. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import Anthropic from '@anthropic-ai/sdk';
import { tool as langchainTool } from '@langchain/core/tools';
import { ChatOpenAI, OpenAIEmbeddings } from '@langchain/openai';
import { Agent, tool as agentTool, OpenAIProvider, Runner } from '@openai/agents';
import { generateText, isStepCount, streamText, tool } from 'ai';
import fc from 'fast-check';
import OpenAI from 'openai';
import { z } from 'zod';
import { demo } from '../functions/demo.ts';
import {
  SCRIPT_HEADER,
  type Script,
  startUpstream,
  UPSTREAM_KEY,
  type Upstream,
} from './upstream.ts';

const MODEL = 'demo-small';
const HEARD = 'demo-small heard you say: "hello".';

let server: Bun.Server<undefined>;
let base: string;

beforeAll(() => {
  server = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: demo });
  base = `http://127.0.0.1:${server.port}/demo`;
});
afterAll(() => server.stop(true));

const openai = () => new OpenAI({ apiKey: 'none', baseURL: `${base}/v1`, maxRetries: 0 });
const anthropic = () => new Anthropic({ apiKey: 'none', baseURL: base, maxRetries: 0 });

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

/** What a call fails with; the SDKs' promises start their call only when they are awaited. */
const failure = (call: PromiseLike<unknown>) =>
  call.then(
    () => undefined,
    (error: unknown) => error,
  );

const says = (content: string) => [{ role: 'user' as const, content }];
const parameters = { type: 'object' as const, properties: { city: { type: 'string' } } };
const chatTools = ['weather', 'time'].map((name) => ({
  type: 'function' as const,
  function: { name, parameters },
}));
const BOTH = 'please call weather {"city": "Par{is"} and call time';

describe('openai', () => {
  test('a chat completion quotes the user', async () => {
    const answer = await openai().chat.completions.create({
      model: MODEL,
      messages: says('hello'),
      n: 2,
    });
    expect(answer.choices.map(({ message }) => message.content)).toEqual([HEARD, HEARD]);
    expect(answer.usage?.completion_tokens).toBe(2 * Math.ceil(HEARD.length / 4));
  });

  test('a streamed chat completion starts with the role and ends with the usage', async () => {
    const chunks = await collect(
      await openai().chat.completions.create({
        model: MODEL,
        messages: says('hello'),
        stream: true,
        stream_options: { include_usage: true },
      }),
    );
    expect(chunks[0]?.choices[0]?.delta.role).toBe('assistant');
    expect(chunks.map(({ choices }) => choices[0]?.delta.content ?? '').join('')).toBe(HEARD);
    expect(chunks.at(-2)?.choices[0]?.finish_reason).toBe('stop');
    expect(chunks.at(-1)?.choices).toEqual([]);
    expect(chunks.at(-1)?.usage?.total_tokens).toBeGreaterThan(0);
  });

  test('chat tools are called in parallel, streamed or not, and their results are read', async () => {
    const body = { model: MODEL, tools: chatTools, messages: says(BOTH) };
    const { choices } = await openai().chat.completions.create(body);
    const message = choices[0]?.message;
    const streamed = await openai().chat.completions.stream(body).finalChatCompletion();
    const called = [message, streamed.choices[0]?.message].map((each) =>
      each?.tool_calls?.map((call) => call.type === 'function' && call.function.arguments),
    );
    expect(called).toEqual([
      ['{"city": "Par{is"}', '{}'],
      ['{"city": "Par{is"}', '{}'],
    ]);
    const results = (message?.tool_calls ?? []).map(({ id }, at) => {
      return { role: 'tool' as const, tool_call_id: id, content: `result ${at}` };
    });
    const messages = [...body.messages, message!, ...results];
    const final = await openai().chat.completions.create({ ...body, messages });
    expect(final.choices[0]?.message.content).toContain('"result 0", "result 1"');
  });

  test('former functions are called one at a time', async () => {
    const functions = chatTools.map((each) => each.function);
    const body = { model: MODEL, functions, messages: says(BOTH) };
    const { choices } = await openai().chat.completions.create(body);
    expect(choices[0]?.finish_reason).toBe('function_call');
    expect(choices[0]?.message.function_call?.name).toBe('weather');
    const streamed = await openai().chat.completions.stream(body).finalChatCompletion();
    expect(streamed.choices[0]?.message.function_call?.arguments).toBe('{"city": "Par{is"}');
  });

  test('a response quotes the user, streamed or not', async () => {
    const body = { model: MODEL, input: 'hello' };
    const answer = await openai().responses.create(body);
    expect([answer.status, answer.output_text]).toEqual(['completed', HEARD]);
    const streamed = await openai().responses.stream(body).finalResponse();
    expect(streamed.output_text).toBe(HEARD);
    expect(streamed.usage).toEqual(answer.usage!);
  });

  test('a streamed response has its events in order', async () => {
    const body = { model: MODEL, input: 'hello', stream: true as const };
    const events = await collect(await openai().responses.create(body));
    expect(events.map((each) => each.sequence_number)).toEqual(events.map((_, at) => at));
    const types = events.map(({ type }) => type.replace('response.', ''));
    expect(types.filter((type, at) => type !== types[at - 1])).toEqual([
      ...['created', 'in_progress', 'output_item.added', 'content_part.added'],
      ...['output_text.delta', 'output_text.done', 'content_part.done', 'output_item.done'],
      'completed',
    ]);
  });

  test('a response calls functions and custom tools and reads their results', async () => {
    const tools = [
      { type: 'function' as const, name: 'weather', parameters, strict: false },
      { type: 'custom' as const, name: 'time' },
    ];
    const body = { model: MODEL, tools, input: BOTH };
    const { output } = await openai().responses.create(body);
    const streamed = await openai().responses.stream(body).finalResponse();
    for (const items of [output, streamed.output]) {
      expect(items.map(({ type }) => type)).toEqual(['function_call', 'custom_tool_call']);
    }
    expect(output[0]).toMatchObject({ name: 'weather', arguments: '{"city": "Par{is"}' });
    const results = [{ type: 'function_call_output' as const, call_id: 'x', output: '21 degrees' }];
    const final = await openai().responses.create({ ...body, input: results });
    expect(final.output_text).toContain('"21 degrees"');
  });

  test('a response over its output limit is incomplete', async () => {
    const body = { model: MODEL, input: 'hello', max_output_tokens: 2 };
    const answer = await openai().responses.create(body);
    expect([answer.status, answer.usage?.output_tokens]).toEqual(['incomplete', 2]);
    const events = await collect(await openai().responses.create({ ...body, stream: true }));
    expect(events.at(-1)).toMatchObject({
      type: 'response.incomplete',
      response: { incomplete_details: { reason: 'max_output_tokens' } },
    });
  });

  test('embeddings are unit vectors, nearer for texts that share words', async () => {
    const input = ['a red fox runs', 'a red fox sleeps', 'quarterly tax statement'];
    const { data } = await openai().embeddings.create({ model: MODEL, input });
    const [fox, other, tax] = data.map(({ embedding }) => embedding);
    const dot = (a: number[], b: number[]) => a.reduce((sum, x, at) => sum + x * b[at]!, 0);
    expect(dot(fox!, fox!)).toBeCloseTo(1, 5);
    expect(dot(fox!, other!)).toBeGreaterThan(dot(fox!, tax!));
  });

  test('the models are listed and found', async () => {
    const ids = (await collect(openai().models.list())).map(({ id }) => id);
    expect(ids).toEqual(['demo-small', 'demo-large']);
    expect((await openai().models.retrieve('demo-large')).object).toBe('model');
  });

  test('errors are those of the SDK', async () => {
    const { chat, responses } = openai();
    const messages = says('x');
    expect(await failure(chat.completions.create({ model: 'gpt-0', messages }))).toMatchObject({
      status: 404,
      code: 'model_not_found',
    });
    const empty = chat.completions.create({ model: MODEL, messages: [] });
    expect(await failure(empty)).toMatchObject({ status: 400, param: 'messages' });
    expect(await failure(responses.retrieve('resp_x'))).toBeInstanceOf(OpenAI.NotFoundError);
    const later = responses.create({ model: MODEL, input: 'x', background: true });
    expect(await failure(later)).toMatchObject({ status: 400, param: 'background' });
  });
});

describe('@anthropic-ai/sdk', () => {
  const tools = ['weather', 'time'].map((name) => ({ name, input_schema: parameters }));

  test('a message quotes the user, streamed or not', async () => {
    const body = { model: MODEL, max_tokens: 100, messages: says('hello') };
    const answer = await anthropic().messages.create(body);
    expect(answer.content).toMatchObject([{ type: 'text', text: HEARD }]);
    const streamed = await anthropic().messages.stream(body).finalMessage();
    expect<unknown>(streamed.content).toEqual(answer.content);
    expect(streamed.usage.output_tokens).toBe(answer.usage.output_tokens);
  });

  test('a streamed message has its events in order', async () => {
    const body = { model: MODEL, max_tokens: 100, messages: says('hello'), stream: true };
    const text = await (await post('/messages', body)).text();
    const types = [...text.matchAll(/^event: (\w+)$/gm)].map(([, type]) => type);
    expect(types.filter((type, at) => type !== types[at - 1])).toEqual([
      ...['message_start', 'content_block_start', 'ping', 'content_block_delta'],
      ...['content_block_stop', 'message_delta', 'message_stop'],
    ]);
  });

  test('tools are called in parallel, streamed or not, and their results are read', async () => {
    const body = { model: MODEL, max_tokens: 100, tools, messages: says(BOTH) };
    const answer = await anthropic().messages.create(body);
    const streamed = await anthropic().messages.stream(body).finalMessage();
    for (const { stop_reason, content } of [answer, streamed]) {
      expect(stop_reason).toBe('tool_use');
      const inputs = content.map((block) => block.type === 'tool_use' && block.input);
      expect(inputs).toEqual([{ city: 'Par{is' }, {}]);
    }
    const content = answer.content.flatMap((block) =>
      block.type === 'tool_use'
        ? [{ type: 'tool_result' as const, tool_use_id: block.id, content: '21 degrees' }]
        : [],
    );
    const messages = [
      ...body.messages,
      { role: 'assistant' as const, content: answer.content },
      { role: 'user' as const, content },
    ];
    const final = await anthropic().messages.create({ ...body, messages });
    expect(JSON.stringify(final.content)).toContain('21 degrees');
  });

  test('the counted tokens are those that a message reports', async () => {
    const body = { model: MODEL, messages: says('hello'), system: 'Be brief.', tools };
    const { input_tokens } = await anthropic().messages.countTokens(body);
    const { usage } = await anthropic().messages.create({ ...body, max_tokens: 9 });
    expect(usage.input_tokens).toBe(input_tokens);
  });

  test('models and errors are those of the SDK', async () => {
    const ids = (await collect(anthropic().models.list())).map(({ id }) => id);
    expect(ids).toEqual(['demo-small', 'demo-large']);
    const unknown = anthropic().messages.create({ model: 'x', max_tokens: 1, messages: says('x') });
    expect(await failure(unknown)).toBeInstanceOf(Anthropic.NotFoundError);
    const { status, body } = await post('/messages', { model: MODEL, messages: says('x') });
    expect([status, (await new Response(body).json()).error.type]).toEqual([
      400,
      'invalid_request_error',
    ]);
  });
});

describe('ai', () => {
  const connect = () => {
    const settings = { apiKey: 'none', baseURL: `${base}/v1` };
    const provider = createOpenAI(settings);
    return {
      responses: provider(MODEL),
      chat: provider.chat(MODEL),
      messages: createAnthropic(settings)(MODEL),
    };
  };
  const weather = tool({
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `sunny in ${city}`,
  });

  for (const kind of ['responses', 'chat', 'messages'] as const) {
    test(`generateText() and streamText() get the sentence over ${kind}`, async () => {
      const options = { model: connect()[kind], prompt: 'hello', maxOutputTokens: 99 };
      const generated = await generateText(options);
      const streamed = streamText(options);
      expect([generated.text, await streamed.text]).toEqual([HEARD, HEARD]);
      expect((await streamed.usage).outputTokens).toBe(generated.usage.outputTokens!);
    });

    test(`a tool runs and its result is read over ${kind}`, async () => {
      const options = {
        model: connect()[kind],
        prompt: 'call weather {"city":"Oslo"}',
        tools: { weather },
        stopWhen: isStepCount(3),
        maxOutputTokens: 99,
      };
      expect((await generateText(options)).text).toContain('sunny in Oslo');
      expect(await streamText(options).text).toContain('sunny in Oslo');
    });
  }
});

describe('@langchain/openai', () => {
  const connect = () =>
    new ChatOpenAI({
      model: MODEL,
      apiKey: 'none',
      maxRetries: 0,
      configuration: { baseURL: `${base}/v1` },
    });

  test('invoke() and stream() get the sentence', async () => {
    expect((await connect().invoke('hello')).content).toBe(HEARD);
    const chunks = await collect(await connect().stream('hello'));
    expect(chunks.map(({ content }) => content).join('')).toBe(HEARD);
  });

  test('bindTools() gets calls', async () => {
    const weather = langchainTool(async () => 'sunny', {
      name: 'weather',
      schema: z.object({ city: z.string() }),
    });
    const answer = await connect().bindTools([weather]).invoke('call weather {"city":"Oslo"}');
    expect(answer.tool_calls).toMatchObject([{ name: 'weather', args: { city: 'Oslo' } }]);
  });

  test('embedQuery() gets a vector', async () => {
    const configuration = { baseURL: `${base}/v1` };
    const embeddings = new OpenAIEmbeddings({ model: MODEL, apiKey: 'none', configuration });
    expect(await embeddings.embedQuery('hello')).toHaveLength(256);
  });
});

describe('@openai/agents', () => {
  for (const useResponses of [true, false]) {
    test(`an agent runs a tool and reads its result (responses: ${useResponses})`, async () => {
      const weather = agentTool({
        name: 'weather',
        description: 'Tells the weather.',
        parameters: z.object({ city: z.string() }),
        execute: async ({ city }) => `sunny in ${city}`,
      });
      const agent = new Agent({ name: 'Forecaster', model: MODEL, tools: [weather] });
      const modelProvider = new OpenAIProvider({ openAIClient: openai(), useResponses });
      const runner = new Runner({ modelProvider, tracingDisabled: true });
      const { finalOutput } = await runner.run(agent, 'call weather {"city":"Oslo"}');
      expect(finalOutput).toContain('sunny in Oslo');
    });
  }
});

function post(path: string, body: unknown): Promise<Response> {
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  return demo(new Request(`http://demo/demo/v1${path}`, { method: 'POST', body: text }));
}

/** The same question in each dialect's form, with where its answer holds text and tokens. */
const DIALECTS = {
  '/chat/completions': (asked: string, limit: number, stream: boolean) => ({
    ...{ model: MODEL, messages: says(asked), max_completion_tokens: limit, tools: chatTools },
    ...{ stream, stream_options: { include_usage: true } },
  }),
  '/responses': (asked: string, limit: number, stream: boolean) => ({
    ...{ model: MODEL, input: asked, max_output_tokens: limit, stream },
    tools: chatTools.map((each) => ({ type: 'function', ...each.function })),
  }),
  '/messages': (asked: string, limit: number, stream: boolean) => ({
    ...{ model: MODEL, messages: says(asked), max_tokens: limit, stream },
    tools: chatTools.map(({ function: { name } }) => ({ name, input_schema: parameters })),
  }),
};

const paths = fc.constantFrom(...(Object.keys(DIALECTS) as (keyof typeof DIALECTS)[]));
const asked = fc.oneof(fc.string({ unit: 'binary', maxLength: 300 }), fc.constant(BOTH));
const limits = fc.integer({ min: 1, max: 150 });

describe('demo()', () => {
  test('gives the same bytes for the same request', () =>
    fc.assert(
      fc.asyncProperty(paths, asked, limits, fc.boolean(), async (path, text, limit, stream) => {
        const body = DIALECTS[path](text, limit, stream);
        const [one, two] = await Promise.all([post(path, body), post(path, body)]);
        expect(one.status).toBe(200);
        expect(await one.text()).toBe(await two.text());
      }),
    ));

  test('never reports more output than the limit, and says when it cut', () =>
    fc.assert(
      fc.asyncProperty(paths, asked, limits, fc.boolean(), async (path, text, limit, stream) => {
        const answer = await (await post(path, DIALECTS[path](text, limit, stream))).text();
        const used = [...answer.matchAll(/"(?:completion|output)_tokens":(\d+)/g)].at(-1)?.[1];
        expect(Number(used)).toBeLessThanOrEqual(limit);
        const whole = await (await post(path, DIALECTS[path](text, 100_000, stream))).text();
        const need = Number(
          [...whole.matchAll(/"(?:completion|output)_tokens":(\d+)/g)].at(-1)?.[1],
        );
        const cut = /"finish_reason":"length"|"stop_reason":"max_tokens"|"status":"incomplete"/;
        expect(cut.test(answer)).toBe(need > limit);
      }),
    ));

  test('answers any body at all, and a malformed one with 400', () =>
    fc.assert(
      fc.asyncProperty(paths, fc.oneof(fc.string(), fc.json()), async (path, body) => {
        expect((await post(path, body)).status).toBe(400);
      }),
    ));

  test('answers a body nested too deep with 400', async () => {
    const deep = '['.repeat(100_000) + ']'.repeat(100_000);
    const { status } = await post(
      '/responses',
      `{"model":"demo-small","input":"x","metadata":${deep}}`,
    );
    expect(status).toBe(400);
  });

  test('calls only tools that are declared and permitted', async () => {
    const body = DIALECTS['/chat/completions'](`call unknown and ${BOTH}`, 100, false);
    const names = async (more: object) => {
      const { choices } = await (await post('/chat/completions', { ...body, ...more })).json();
      const calls = choices[0].message.tool_calls ?? [];
      return calls.map((call: { function: { name: string } }) => call.function.name);
    };
    expect(await names({})).toEqual(['weather', 'time']);
    expect(await names({ tool_choice: 'none' })).toEqual([]);
    expect(await names({ parallel_tool_calls: false })).toEqual(['weather']);
    expect(await names({ tool_choice: { type: 'function', function: { name: 'time' } } })).toEqual([
      'time',
    ]);
    expect(await names({ tool_choice: 'required', messages: says('hello') })).toEqual(['weather']);
  });
});

describe('upstream', () => {
  let upstream: Upstream;
  beforeAll(async () => {
    upstream = await startUpstream();
  });
  afterAll(() => upstream.stop());

  const CHAT = DIALECTS['/chat/completions']('hello', 100, false);
  const STREAM = DIALECTS['/chat/completions']('é🎉', 100, true);

  /** Calls with a script; what was received is the last of `upstream.requests`. */
  function call(script: Script, body: object = CHAT, path = '/chat/completions', init = {}) {
    return fetch(`${upstream.url}/v1${path}`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${UPSTREAM_KEY}`,
        'anthropic-version': path === '/messages' ? '2023-06-01' : '',
        [SCRIPT_HEADER]: JSON.stringify(script),
      },
      body: JSON.stringify(body),
      redirect: 'manual',
      ...init,
    });
  }

  test('records what it was sent, byte for byte', async () => {
    const body = '{"model":"demo-small","n":12345678901234567890}';
    await call({}, CHAT, '/chat/completions?a=b', { body });
    const received = upstream.requests.at(-1)!;
    expect([received.method, received.path]).toEqual(['POST', '/v1/chat/completions?a=b']);
    expect(received.text()).toBe(body);
    expect(received.header('Authorization')).toBe(`Bearer ${UPSTREAM_KEY}`);
    expect(await received.outcome).toBe('finished');
  });

  test('wants its credential in the way of each provider', async () => {
    const status = async (path: string, headers: Record<string, string>) =>
      (await call({}, CHAT, path, { headers })).status;
    expect(await status('/chat/completions', {})).toBe(401);
    expect(await status('/chat/completions', { 'x-api-key': UPSTREAM_KEY })).toBe(401);
    expect(await status('/messages', { 'x-api-key': 'other' })).toBe(401);
    expect(await status('/messages', { 'x-api-key': UPSTREAM_KEY })).toBe(400);
  });

  test('answers under any model name, with ids that never repeat', async () => {
    const answers = await Promise.all(
      [1, 2].map(async () => (await call({}, { ...CHAT, model: 'gpt-x' })).json()),
    );
    expect(answers.map(({ model }) => model)).toEqual(['gpt-x', 'gpt-x']);
    expect(answers[0].id).not.toBe(answers[1].id);
    expect((await (await call({ model: 'other' })).json()).model).toBe('other');
  });

  test('takes queued scripts in their order, and presets by the model', async () => {
    const headers = { authorization: `Bearer ${UPSTREAM_KEY}` };
    upstream.script({ error: 500 }, 2);
    upstream.script({ error: 429, retryAfterS: 7 });
    const plain = () => call({}, CHAT, '/chat/completions', { headers });
    const answers = [await plain(), await plain(), await plain(), await plain()];
    expect(answers.map(({ status }) => status)).toEqual([500, 500, 429, 200]);
    expect(answers[2]?.headers.get('retry-after')).toBe('7');
    const body = JSON.stringify({ ...CHAT, model: 'demo-small~overloaded' });
    expect((await call({}, CHAT, '/chat/completions', { headers, body })).status).toBe(529);
  });

  test('changes, spoils or leaves out the usage of every dialect', async () => {
    for (const path of Object.keys(DIALECTS) as (keyof typeof DIALECTS)[]) {
      for (const stream of [true, false]) {
        const body = DIALECTS[path]('hello', 100, stream);
        const text = async (script: Script) => (await call(script, body, path)).text();
        expect(await text({ usage: null })).not.toContain('"usage":{');
        expect(await text({ usage: { output_tokens: -1 } })).toContain('"output_tokens":-1');
        expect(await text({ rawUsage: '{"x":NaN}' })).toContain('"usage":{"x":NaN}');
      }
    }
  });

  test('sends streams whole, whatever the lines and the cuts', async () => {
    const plain = await (await call({}, STREAM)).text();
    const same = (text: string) =>
      text.replaceAll('\r\n', '\n').replace(/demo\d+x/g, '') === plain.replace(/demo\d+x/g, '');
    for (const script of [{ chunkBytes: 1 }, { crlf: true }, { gzip: true }]) {
      expect(same(await (await call(script, STREAM)).text())).toBe(true);
    }
    const noisy = await (await call({ noise: true }, STREAM)).text();
    expect(noisy).toContain(': a comment');
    expect(noisy).toContain('event: upstream.unknown');
    const long = await (await call({ repeat: 50 }, STREAM)).text();
    expect(long.match(/^data:/gm)!.length).toBe(plain.match(/^data:/gm)!.length + 49);
  });

  test('breaks off so that the caller sees it, after exactly what was asked', async () => {
    const cases: [Script, object, number | undefined][] = [
      [{ breakAfterChunks: 2 }, STREAM, undefined],
      [{ breakAfterBytes: 100 }, STREAM, 100],
      [{ breakAfterBytes: 10 }, CHAT, 10],
      [{ breakAfterBytes: 0 }, CHAT, 0],
    ];
    for (const [script, body, bytes] of cases) {
      let seen = 0;
      const error = await failure(
        call(script, body).then(async (response) => {
          for await (const chunk of response.body!) seen += chunk.length;
        }),
      );
      expect(error).toBeInstanceOf(Error);
      if (bytes !== undefined) expect(seen).toBe(bytes);
      expect(await upstream.requests.at(-1)?.outcome).toBe('broken');
    }
    expect(await failure(call({ stall: 'socket' }))).toBeInstanceOf(Error);
  });

  test('ends early and cleanly when asked', async () => {
    const text = await (await call({ endAfterChunks: 2 }, STREAM)).text();
    expect(text.match(/^data:/gm)).toHaveLength(2);
  });

  for (const script of [
    { endless: true },
    { endless: true, chunkDelayMs: 5 },
    { stallAfterChunks: 0 },
    { stallAfterChunks: 1 },
    { stall: 'headers' as const },
    { delayMs: 60_000 },
  ]) {
    test(`notices that the caller leaves: ${JSON.stringify(script)}`, async () => {
      const left = new AbortController();
      const index = upstream.requests.length;
      const path = '/chat/completions';
      const answer = failure(
        call(script, STREAM, path, { signal: left.signal }).then(async ({ body }) => {
          for await (const chunk of body!) if (chunk.length > 0) left.abort();
        }),
      );
      const received = await upstream.received(index);
      if (!('endless' in script)) left.abort();
      expect(await received.outcome).toBe('cancelled');
      expect(received.cancelledAtMs).toBeNumber();
      expect(await answer).toBeInstanceOf(Error);
    });
  }

  /** Far less than an unhindered sender puts out between two looks. */
  const STALLED_BYTES = 65_536;

  test('stops sending to a caller that does not read', async () => {
    const index = upstream.requests.length;
    const left = new AbortController();
    const script = { endless: true };
    await call(script, STREAM, '/chat/completions', { signal: left.signal });
    const received = await upstream.received(index);
    for (let before = -STALLED_BYTES; received.sentBytes - before >= STALLED_BYTES; ) {
      before = received.sentBytes;
      await Bun.sleep(100);
    }
    left.abort();
    expect(await received.outcome).toBe('cancelled');
  });

  test('redirects, and sends raw bodies and raw chunks', async () => {
    const moved = await call({ redirect: 'http://127.0.0.1:1/' });
    expect([moved.status, moved.headers.get('location')]).toEqual([302, 'http://127.0.0.1:1/']);
    const raw = await call({ status: 418, body: '{', headers: { 'x-a': 'b' } });
    expect([raw.status, raw.headers.get('x-a'), await raw.text()]).toEqual([418, 'b', '{']);
    expect(await (await call({ chunks: ['a\n', 'b\n'] })).text()).toBe('a\nb\n');
  });

  test('runs responses in the background and keeps them', async () => {
    const client = new OpenAI({ apiKey: UPSTREAM_KEY, baseURL: `${upstream.url}/v1` });
    const { id, status } = await client.responses.create({
      ...{ model: MODEL, input: 'hello', background: true },
    });
    const seen = [status];
    for (let round = 0; round < 3; round++) seen.push((await client.responses.retrieve(id)).status);
    expect(seen).toEqual(['queued', 'in_progress', 'completed', 'completed']);
    const stream = await client.responses.retrieve(id, { stream: true });
    expect((await collect(stream)).at(-1)).toMatchObject({ response: { id } });
    expect((await client.responses.cancel(id)).status).toBe('cancelled');
    expect((await client.responses.retrieve(id)).status).toBe('cancelled');
    await client.responses.delete(id);
    expect(await failure(client.responses.retrieve(id))).toBeInstanceOf(OpenAI.NotFoundError);
  });
});
