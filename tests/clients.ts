/** The official SDKs as their users write them, with only base URL and token set. */

import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import Anthropic from '@anthropic-ai/sdk';
import { ChatOpenAI, OpenAIEmbeddings } from '@langchain/openai';
import { Agent, OpenAIProvider, Runner } from '@openai/agents';
import { generateText, type LanguageModel, streamText } from 'ai';
import OpenAI from 'openai';

/** What a client is asked to do. */
export interface Ask {
  /** Base URL without `/v1`. */
  readonly base: string;
  readonly token: string;
  readonly model?: string;
  readonly prompt?: string;
  /** Further members of the body, where the SDK lets its users add some. */
  readonly extra?: Readonly<Record<string, unknown>>;
}

/** One way to call through one SDK. */
export interface Client {
  readonly name: string;
  /** The endpoint as the trail names it. */
  readonly endpoint: string;
  readonly isStream: boolean;
  /** Whether `extra` reaches the body. */
  readonly takesExtra: boolean;
  /** Asks once and returns the text of the answer, or the length of a vector. */
  readonly ask: (ask: Ask) => Promise<string>;
}

/** The most output that a client asks for, in tokens. */
const MAX_TOKENS = 100;

const openai = ({ base, token }: Ask) => new OpenAI({ baseURL: `${base}/v1`, apiKey: token });
const anthropic = ({ base, token }: Ask) => new Anthropic({ baseURL: base, apiKey: token });
const modelOf = ({ model = 'test-model' }: Ask) => model;
const promptOf = ({ prompt = 'hello' }: Ask) => prompt;

async function askChat(ask: Ask): Promise<string> {
  const completion = await openai(ask).chat.completions.create(chatOf(ask));
  return completion.choices[0]?.message.content ?? '';
}

async function askChatStream(ask: Ask): Promise<string> {
  const stream = await openai(ask).chat.completions.create({ ...chatOf(ask), stream: true });
  let text = '';
  // As most examples read it: an event without choices would throw here.
  for await (const chunk of stream) text += chunk.choices[0]!.delta.content ?? '';
  return text;
}

function chatOf(ask: Ask) {
  const messages = [{ role: 'user' as const, content: promptOf(ask) }];
  return { model: modelOf(ask), max_completion_tokens: MAX_TOKENS, messages, ...ask.extra };
}

async function askResponse(ask: Ask): Promise<string> {
  const response = await openai(ask).responses.create(responseOf(ask));
  return response.output_text;
}

async function askResponseStream(ask: Ask): Promise<string> {
  const stream = await openai(ask).responses.create({ ...responseOf(ask), stream: true });
  let text = '';
  for await (const event of stream) {
    if (event.type === 'response.output_text.delta') text += event.delta;
  }
  return text;
}

function responseOf(ask: Ask) {
  return {
    ...{ model: modelOf(ask), max_output_tokens: MAX_TOKENS, input: promptOf(ask) },
    ...ask.extra,
  };
}

async function askEmbedding(ask: Ask): Promise<string> {
  const body = { model: modelOf(ask), input: promptOf(ask), ...ask.extra };
  const { data } = await openai(ask).embeddings.create(body);
  return String(data[0]?.embedding.length);
}

async function askMessage(ask: Ask): Promise<string> {
  const { content } = await anthropic(ask).messages.create(messageOf(ask));
  return content.map((block) => (block.type === 'text' ? block.text : '')).join('');
}

function askMessageStream(ask: Ask): Promise<string> {
  return anthropic(ask).messages.stream(messageOf(ask)).finalText();
}

function messageOf(ask: Ask) {
  const messages = [{ role: 'user' as const, content: promptOf(ask) }];
  return { model: modelOf(ask), max_tokens: MAX_TOKENS, messages, ...ask.extra };
}

/** The AI SDK's three models of a name, each on its own endpoint. */
export const AI_MODELS = {
  responses: (ask: Ask) => aiOpenAI(ask)(modelOf(ask)),
  'chat.completions': (ask: Ask) => aiOpenAI(ask).chat(modelOf(ask)),
  messages: (ask: Ask) => createAnthropic({ baseURL: ask.base, apiKey: ask.token })(modelOf(ask)),
} as const satisfies Record<string, (ask: Ask) => LanguageModel>;

function aiOpenAI({ base, token }: Ask) {
  return createOpenAI({ baseURL: `${base}/v1`, apiKey: token });
}

async function generate(model: LanguageModel, ask: Ask): Promise<string> {
  const { text } = await generateText({
    ...{ model, prompt: promptOf(ask), maxOutputTokens: MAX_TOKENS },
  });
  return text;
}

async function streamAi(model: LanguageModel, ask: Ask): Promise<string> {
  const { fullStream } = streamText({
    ...{ model, prompt: promptOf(ask), maxOutputTokens: MAX_TOKENS },
    // The default prints the error; it also comes as a part of the stream.
    onError: () => {},
  });
  let text = '';
  for await (const part of fullStream) {
    if (part.type === 'error') throw part.error;
    if (part.type === 'text-delta') text += part.text;
  }
  return text;
}

/** LangChain's chat model, on chat completions or on responses. */
export function langchain(ask: Ask, useResponsesApi = false): ChatOpenAI {
  return new ChatOpenAI({
    ...{ model: modelOf(ask), apiKey: ask.token, maxTokens: MAX_TOKENS, useResponsesApi },
    configuration: { baseURL: `${ask.base}/v1` },
    ...(ask.extra && { modelKwargs: ask.extra }),
  });
}

async function invoke(ask: Ask, useResponsesApi: boolean): Promise<string> {
  const message = await langchain(ask, useResponsesApi).invoke(promptOf(ask));
  return message.text;
}

async function streamLangchain(ask: Ask, useResponsesApi: boolean): Promise<string> {
  let text = '';
  const stream = await langchain(ask, useResponsesApi).stream(promptOf(ask));
  for await (const chunk of stream) text += chunk.text;
  return text;
}

/** LangChain's embeddings. */
export function langchainEmbeddings(ask: Ask): OpenAIEmbeddings {
  const configuration = { baseURL: `${ask.base}/v1` };
  return new OpenAIEmbeddings({ model: modelOf(ask), apiKey: ask.token, configuration });
}

/** A runner of @openai/agents that sends no traces anywhere. */
export function agentRunner({ base, token }: Ask, useResponses: boolean): Runner {
  const modelProvider = new OpenAIProvider({
    ...{ apiKey: token, baseURL: `${base}/v1`, useResponses },
  });
  return new Runner({ modelProvider, tracingDisabled: true });
}

async function runAgent(ask: Ask, useResponses: boolean, stream: boolean): Promise<string> {
  const agent = new Agent({
    ...{ name: 'tester', instructions: 'Answer.', model: modelOf(ask) },
    modelSettings: {
      maxTokens: MAX_TOKENS,
      ...(ask.extra && { providerData: { ...ask.extra } }),
    },
  });
  const runner = agentRunner(ask, useResponses);
  if (!stream) return (await runner.run(agent, promptOf(ask))).finalOutput ?? '';
  const result = await runner.run(agent, promptOf(ask), { stream: true });
  for await (const _ of result);
  await result.completed;
  return result.finalOutput ?? '';
}

function client(
  name: string,
  endpoint: string,
  ask: Client['ask'],
  options: Partial<Client> = {},
): Client {
  return { name, endpoint, ask, isStream: name.endsWith('stream'), takesExtra: true, ...options };
}

const CHAT = 'chat.completions';
const RESPONSES = 'responses.create';

/** Every SDK, streaming and not. */
export const CLIENTS: readonly Client[] = [
  client('openai chat', CHAT, askChat),
  client('openai chat stream', CHAT, askChatStream),
  client('openai responses', RESPONSES, askResponse),
  client('openai responses stream', RESPONSES, askResponseStream),
  client('openai embeddings', 'embeddings', askEmbedding),
  client('anthropic messages', 'messages', askMessage),
  client('anthropic messages stream', 'messages', askMessageStream),
  ...Object.entries(AI_MODELS).flatMap(([name, model]) => {
    const endpoint = name === 'responses' ? RESPONSES : name;
    const options = { takesExtra: false };
    return [
      client(`ai ${name}`, endpoint, (ask) => generate(model(ask), ask), options),
      client(`ai ${name} stream`, endpoint, (ask) => streamAi(model(ask), ask), options),
    ];
  }),
  client('langchain chat', CHAT, (ask) => invoke(ask, false)),
  client('langchain chat stream', CHAT, (ask) => streamLangchain(ask, false)),
  client('langchain responses', RESPONSES, (ask) => invoke(ask, true)),
  client('langchain responses stream', RESPONSES, (ask) => streamLangchain(ask, true)),
  client(
    'langchain embeddings',
    'embeddings',
    async (ask) => String((await langchainEmbeddings(ask).embedQuery(promptOf(ask))).length),
    { takesExtra: false },
  ),
  client('agents chat', CHAT, (ask) => runAgent(ask, false, false)),
  client('agents chat stream', CHAT, (ask) => runAgent(ask, false, true)),
  client('agents responses', RESPONSES, (ask) => runAgent(ask, true, false)),
  client('agents responses stream', RESPONSES, (ask) => runAgent(ask, true, true)),
];
