/** Tool loops of the official SDKs: a tool is proposed, run here, and its result is read. */

import Anthropic from '@anthropic-ai/sdk';
import { tool as langchainTool } from '@langchain/core/tools';
import { Agent, tool as agentTool } from '@openai/agents';
import { generateText, isStepCount, streamText, tool } from 'ai';
import OpenAI from 'openai';
import { z } from 'zod';
import { AI_MODELS, type Ask, agentRunner, langchain } from './clients.ts';

/** A model whose context window the catalogue knows: it bounds a call that sets no limit. */
const LIMITLESS = 'gpt-4o';
const SUM = 'call add {"a":2,"b":3}';
/** What a loop comes to. */
export const ANSWER = 'demo-small read the tool result: "5".';
const ADD = { name: 'add', description: 'Adds two numbers.' };
const numbers = z.object({ a: z.number(), b: z.number() });
const schema = {
  type: 'object' as const,
  properties: { a: { type: 'number' }, b: { type: 'number' } },
  required: ['a', 'b'],
  additionalProperties: false,
};

/** How often a tool has run here, by the base URL of its loop. */
export const ran = new Map<string, number>();

const add = ({ base }: Ask, input: unknown): string => {
  ran.set(base, (ran.get(base) ?? 0) + 1);
  const { a, b } = numbers.parse(input);
  return String(a + b);
};

/** OpenAI's client. */
export const openai = ({ base, token }: Ask) =>
  new OpenAI({ baseURL: `${base}/v1`, apiKey: token });
/** Anthropic's client. */
export const anthropic = ({ base, token }: Ask) => new Anthropic({ baseURL: base, apiKey: token });

/** A tool's whole round through an SDK: it is proposed, run, and its result is read. */
export type Loop = (ask: Ask) => Promise<string>;

async function loopChat(ask: Ask): Promise<string> {
  const runner = openai(ask).chat.completions.runTools({
    model: LIMITLESS,
    messages: [{ role: 'user', content: SUM }],
    tools: [
      {
        type: 'function',
        function: {
          ...ADD,
          parameters: schema,
          parse: JSON.parse,
          function: (input: object) => add(ask, input),
        },
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
  const content = add(ask, JSON.parse(call.function.arguments));
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
  const output = add(ask, JSON.parse(call.arguments));
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
      content: [{ type: 'tool_result', tool_use_id: use.id, content: add(ask, use.input) }],
    },
  );
  const [block] = (await create()).content;
  return block?.type === 'text' ? block.text : '';
}

const aiTools = (ask: Ask) => ({
  add: tool({
    description: ADD.description,
    inputSchema: numbers,
    execute: async (input) => add(ask, input),
  }),
});

function loopAi(endpoint: keyof typeof AI_MODELS, stream: boolean): Loop {
  return async (ask) => {
    const model = endpoint === 'messages' ? 'test-model' : LIMITLESS;
    const limit = endpoint === 'messages' ? { maxOutputTokens: 100 } : {};
    const options = {
      model: AI_MODELS[endpoint]({ ...ask, model }),
      prompt: SUM,
      tools: aiTools(ask),
      ...limit,
    };
    const stopWhen = isStepCount(3);
    if (!stream) return (await generateText({ ...options, stopWhen })).text;
    // The default prints the error; it also comes as a part of the stream.
    const result = streamText({ ...options, stopWhen, onError: () => {} });
    for await (const part of result.fullStream) if (part.type === 'error') throw part.error;
    return result.text;
  };
}

async function loopLangchain(ask: Ask): Promise<string> {
  const adder = langchainTool(async (input) => add(ask, input), { ...ADD, schema: numbers });
  const model = langchain(ask).bindTools([adder]);
  const first = await model.invoke(SUM);
  const [call] = first.tool_calls ?? [];
  if (!call) throw new Error('no call');
  const result = await adder.invoke({ ...call, type: 'tool_call' });
  return (await model.invoke([{ role: 'user', content: SUM }, first, result])).text;
}

function loopAgents(useResponses: boolean, stream: boolean): Loop {
  return async (ask) => {
    const execute = async (input: unknown) => add(ask, input);
    const tools = [agentTool({ ...ADD, parameters: numbers, execute })];
    const agent = new Agent({ name: 'adder', model: LIMITLESS, tools });
    const runner = agentRunner(ask, useResponses);
    if (!stream) return (await runner.run(agent, SUM)).finalOutput ?? '';
    const result = await runner.run(agent, SUM, { stream: true });
    await result.completed;
    return result.finalOutput ?? '';
  };
}

/** Every loop, streaming and not. */
export const LOOPS: Readonly<Record<string, Loop>> = {
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
