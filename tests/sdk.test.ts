/** The official SDKs work unchanged through Rungate, on both runtimes, and leave a true trail. */

import { describe, expect, test } from 'bun:test';
import Anthropic from '@anthropic-ai/sdk';
import { tool as langchainTool } from '@langchain/core/tools';
import { Agent, tool as agentTool } from '@openai/agents';
import { generateText, isStepCount, streamText, tool } from 'ai';
import OpenAI from 'openai';
import { z } from 'zod';
import {
  AI_MODELS,
  type Ask,
  agentRunner,
  CLIENTS,
  langchain,
  langchainEmbeddings,
} from './clients.ts';
import { readTrail } from './rungate.ts';
import { stages } from './runtimes.ts';

/** What the upstream reports of each call, in every dialect's words. */
const USAGE = {
  ...{ prompt_tokens: 1_000, completion_tokens: 100, total_tokens: 1_100 },
  ...{ input_tokens: 1_000, output_tokens: 100 },
};
/** At $1 and $4 per million. */
const COST_NANOS = 1_000 * 1_000 + 100 * 4_000;

/** A model whose context window the catalogue knows: it bounds a call that sets no limit. */
const LIMITLESS = 'gpt-4o';
const SUM = 'call add {"a":2,"b":3}';
const ANSWER = 'demo-small read the tool result: "5".';
const ADD = { name: 'add', description: 'Adds two numbers.' };
const numbers = z.object({ a: z.number(), b: z.number() });
const schema = {
  type: 'object' as const,
  properties: { a: { type: 'number' }, b: { type: 'number' } },
  required: ['a', 'b'],
  additionalProperties: false,
};

const add = (input: unknown): string => {
  const { a, b } = numbers.parse(input);
  return String(a + b);
};

const openai = ({ base, token }: Ask) => new OpenAI({ baseURL: `${base}/v1`, apiKey: token });
const anthropic = ({ base, token }: Ask) => new Anthropic({ baseURL: base, apiKey: token });

/** A tool's whole round through an SDK: it is proposed, run, and its result is read. */
type Loop = (ask: Ask) => Promise<string>;

async function loopChat(ask: Ask): Promise<string> {
  const runner = openai(ask).chat.completions.runTools({
    model: LIMITLESS,
    messages: [{ role: 'user', content: SUM }],
    tools: [
      {
        type: 'function',
        function: { ...ADD, parameters: schema, parse: JSON.parse, function: add },
      },
    ],
  });
  return (await runner.finalContent()) ?? '';
}

async function loopChatStream(ask: Ask): Promise<string> {
  const { completions } = openai(ask).chat;
  const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: 'user', content: SUM }];
  const tools = [{ type: 'function' as const, function: { ...ADD, parameters: schema } }];
  const params = { model: LIMITLESS, messages, tools };
  const message = await completions.stream(params).finalMessage();
  const [call] = message.tool_calls ?? [];
  if (call?.type !== 'function') throw new Error('no call');
  const content = add(JSON.parse(call.function.arguments));
  messages.push(message, { role: 'tool', tool_call_id: call.id, content });
  return (await completions.stream(params).finalContent()) ?? '';
}

async function loopResponses(ask: Ask): Promise<string> {
  const { responses } = openai(ask);
  const params = {
    model: LIMITLESS,
    tools: [{ type: 'function' as const, ...ADD, parameters: schema, strict: true }],
  };
  const first = await responses.create({ ...params, input: SUM });
  const [call] = first.output;
  if (call?.type !== 'function_call') throw new Error('no call');
  const output = add(JSON.parse(call.arguments));
  const second = await responses.create({
    ...{ ...params, previous_response_id: first.id },
    input: [{ type: 'function_call_output', call_id: call.call_id, output }],
  });
  return second.output_text;
}

async function loopMessages(ask: Ask, beta = false): Promise<string> {
  const client = anthropic(ask);
  const params = {
    ...{ model: 'test-model', max_tokens: 100 },
    tools: [{ ...ADD, input_schema: schema }],
  };
  const messages: Anthropic.MessageParam[] = [{ role: 'user', content: SUM }];
  const create = () =>
    beta
      ? (client.beta.messages.create({ ...params, messages }) as Promise<Anthropic.Message>)
      : client.messages.stream({ ...params, messages }).finalMessage();
  const first = await create();
  const [use] = first.content;
  if (use?.type !== 'tool_use') throw new Error('no call');
  messages.push(
    { role: 'assistant', content: first.content },
    {
      role: 'user',
      content: [{ type: 'tool_result', tool_use_id: use.id, content: add(use.input) }],
    },
  );
  const [block] = (await create()).content;
  return block?.type === 'text' ? block.text : '';
}

const aiTools = {
  add: tool({
    description: ADD.description,
    inputSchema: numbers,
    execute: async (input) => add(input),
  }),
};

function loopAi(endpoint: keyof typeof AI_MODELS, stream: boolean): Loop {
  return async (ask) => {
    const model = endpoint === 'messages' ? 'test-model' : LIMITLESS;
    const limit = endpoint === 'messages' ? { maxOutputTokens: 100 } : {};
    const options = {
      model: AI_MODELS[endpoint]({ ...ask, model }),
      prompt: SUM,
      tools: aiTools,
      ...limit,
    };
    const stopWhen = isStepCount(3);
    if (stream) return streamText({ ...options, stopWhen }).text;
    return (await generateText({ ...options, stopWhen })).text;
  };
}

async function loopLangchain(ask: Ask): Promise<string> {
  const adder = langchainTool(async (input) => add(input), { ...ADD, schema: numbers });
  const model = langchain(ask).bindTools([adder]);
  const first = await model.invoke(SUM);
  const [call] = first.tool_calls ?? [];
  if (!call) throw new Error('no call');
  const result = await adder.invoke({ ...call, type: 'tool_call' });
  return (await model.invoke([{ role: 'user', content: SUM }, first, result])).text;
}

function loopAgents(useResponses: boolean, stream: boolean): Loop {
  return async (ask) => {
    const execute = async (input: unknown) => add(input);
    const tools = [agentTool({ ...ADD, parameters: numbers, execute })];
    const agent = new Agent({ name: 'adder', model: LIMITLESS, tools });
    const runner = agentRunner(ask, useResponses);
    if (!stream) return (await runner.run(agent, SUM)).finalOutput ?? '';
    const result = await runner.run(agent, SUM, { stream: true });
    await result.completed;
    return result.finalOutput ?? '';
  };
}

const LOOPS: Readonly<Record<string, Loop>> = {
  'openai chat': loopChat,
  'openai chat stream': loopChatStream,
  'openai responses': loopResponses,
  'anthropic messages stream': (ask) => loopMessages(ask),
  'anthropic beta messages': (ask) => loopMessages(ask, true),
  'ai chat': loopAi('chat.completions', false),
  'ai chat stream': loopAi('chat.completions', true),
  'ai responses': loopAi('responses', false),
  'ai responses stream': loopAi('responses', true),
  'ai messages': loopAi('messages', false),
  'ai messages stream': loopAi('messages', true),
  'langchain chat': loopLangchain,
  'agents chat': loopAgents(false, false),
  'agents chat stream': loopAgents(false, true),
  'agents responses': loopAgents(true, false),
  'agents responses stream': loopAgents(true, true),
};

const slug = (name: string) => name.replaceAll(/\W+/g, '-');

describe.each(stages({}))('on $runtime', (stage) => {
  /** What an SDK is given: a run of its own in the base URL, and the token. */
  const askIn = (run: string): Ask => {
    stage.witness.exchanges.length = 0;
    return { base: `${stage.witness.url}/r/${run}`, token: stage.rungate.token };
  };

  const expectExchanges = (run: string, count: number) => {
    expect(stage.witness.exchanges.map(({ status }) => status)).toEqual(Array(count).fill(200));
    for (const { headers } of stage.witness.exchanges) {
      expect(headers.get('x-rungate-run-id')).toBe(run);
      expect(headers.get('x-request-id')).toMatch(/^req_\w{26}$/);
      expect(headers.get('request-id')).toBe(headers.get('x-request-id'));
    }
  };

  for (const { name, endpoint, ask } of CLIENTS) {
    test(`${name}: the answer arrives, and the trail has its usage and cost`, async () => {
      const run = slug(name);
      const isEmbedding = endpoint === 'embeddings';
      const usage = isEmbedding ? { prompt_tokens: 1_400, total_tokens: 1_400 } : USAGE;
      stage.upstream.script({ usage, startUsage: { input_tokens: 1_000, output_tokens: 1 } });
      const answer = await ask(askIn(run));
      expect(answer).toBe(isEmbedding ? '256' : 'demo-small heard you say: "hello".');
      expectExchanges(run, 1);
      expect(await readTrail(stage.rungate, run)).toMatchObject([
        {
          ...{ kind: 'model_call', endpoint, model: 'test-model', servedModel: 'test-model' },
          ...{ outcome: 'ok', httpStatus: 200, estimated: false, spentNanos: COST_NANOS },
          ...{ heldNanos: 0, settledAt: expect.any(Number) },
          usage: isEmbedding ? { inputTokens: 1_400 } : { inputTokens: 1_000, outputTokens: 100 },
        },
      ]);
    });
  }

  for (const [name, loop] of Object.entries(LOOPS)) {
    test(`${name}: a tool is proposed, run, and its result read, in one run`, async () => {
      const run = `tools-${slug(name)}`;
      expect(await loop(askIn(run))).toBe(ANSWER);
      expectExchanges(run, 2);
      const steps = await readTrail(stage.rungate, run);
      expect(steps.map(({ outcome, estimated }) => ({ outcome, estimated }))).toEqual([
        { outcome: 'ok', estimated: false },
        { outcome: 'ok', estimated: false },
      ]);
      for (const { spentNanos } of steps) expect(spentNanos).toBeGreaterThan(0);
    });
  }

  test('a background response is fetched with its answer and charged once', async () => {
    const run = 'background';
    const { responses } = openai(askIn(run));
    stage.upstream.script({ usage: USAGE });
    const asked = { model: 'test-model', input: 'hello', max_output_tokens: 100 };
    let response = await responses.create({ ...asked, background: true });
    expect(response.status).toBe('queued');
    const seen: (string | undefined)[] = [];
    while (response.status === 'queued' || response.status === 'in_progress') {
      response = await responses.retrieve(response.id);
      seen.push(response.status);
    }
    expect(seen).toEqual(['in_progress', 'completed']);
    expect(response.output_text).toBe('demo-small heard you say: "hello".');
    expectExchanges(run, 3);
    const steps = await readTrail(stage.rungate, run);
    expect(steps.map(({ endpoint }) => endpoint)).toEqual([
      'responses.create',
      'responses.get',
      'responses.get',
    ]);
    expect(steps.map(({ spentNanos }) => spentNanos)).toEqual([COST_NANOS, 0, 0]);
    expect(steps[0]).toMatchObject({ outcome: 'ok', estimated: false, model: 'test-model' });
  });

  test('models are listed to both dialects, free of charge', async () => {
    const ask = askIn('models');
    const names: string[] = [];
    for await (const { id } of openai(ask).models.list()) names.push(id);
    for await (const { id } of anthropic(ask).models.list()) names.push(id);
    expect(names).toEqual(['demo-small', 'demo-large', 'demo-small', 'demo-large']);
    const steps = await readTrail(stage.rungate, 'models');
    expect(steps.map(({ spentNanos, outcome }) => [spentNanos, outcome])).toEqual([
      [0, 'ok'],
      [0, 'ok'],
    ]);
  });

  test('tokens of a message are counted, free of charge', async () => {
    const messages = [{ role: 'user' as const, content: 'hello' }];
    const client = anthropic(askIn('count'));
    const counted = await client.messages.countTokens({ model: 'test-model', messages });
    expect(counted.input_tokens).toBeGreaterThan(0);
    expect(await readTrail(stage.rungate, 'count')).toMatchObject([
      { endpoint: 'messages.count_tokens', spentNanos: 0, outcome: 'ok' },
    ]);
  });

  test('a list of texts is embedded in one call', async () => {
    const embeddings = langchainEmbeddings(askIn('documents'));
    const vectors = await embeddings.embedDocuments(['one', 'two', 'three']);
    expect(vectors.map((vector) => vector.length)).toEqual([256, 256, 256]);
    expectExchanges('documents', 1);
  });

  test('a run that the SDKs name by a header of their own is that run', async () => {
    const headers = { 'x-rungate-run-id': 'by-header' };
    const options = { apiKey: stage.rungate.token, defaultHeaders: headers };
    stage.witness.exchanges.length = 0;
    const messages = [{ role: 'user' as const, content: 'hello' }];
    const asked = { model: 'test-model', max_tokens: 20, messages };
    await new OpenAI({ ...options, baseURL: stage.witness.url }).chat.completions.create(asked);
    await new Anthropic({ ...options, baseURL: `${stage.witness.url}/v1` }).messages.create(asked);
    expectExchanges('by-header', 2);
  });
});
