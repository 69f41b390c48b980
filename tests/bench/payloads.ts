/** What is asked and answered in the benchmark: OpenAI chat completions of three sizes. */

/** The answers that are measured. */
export type PayloadName = 'json1k' | 'json100k' | 'sse50';

/** A request and the answer that the upstream has for it. */
export interface Payload {
  readonly name: PayloadName;
  /** The model that is asked for; the upstream chooses its answer by it and by `stream`. */
  readonly model: string;
  readonly requestBody: string;
}

const SSE_CHUNKS = 50;

const USAGE = { prompt_tokens: 42, completion_tokens: 128, total_tokens: 170 };
const PROMPT = 'Summarise what happened to the order, and say in one sentence what to do next.';

/** The three payloads in the order in which they are measured and printed. */
export const PAYLOADS: readonly Payload[] = [
  ask('json1k', 'demo-small', false),
  ask('json100k', 'demo-large', false),
  ask('sse50', 'demo-small', true),
];

function ask(name: PayloadName, model: string, stream: boolean): Payload {
  const messages = [
    { role: 'system', content: 'You answer briefly and never invent an order number.' },
    { role: 'user', content: PROMPT },
  ];
  const options = stream ? { stream, stream_options: { include_usage: true } } : {};
  const requestBody = JSON.stringify({ model, messages, max_tokens: 256, ...options });
  return { name, model, requestBody };
}

/** A whole chat completion whose JSON has exactly `bytes` bytes (at least about 400). */
export function completion(model: string, bytes: number): string {
  const answer = (content: string) =>
    JSON.stringify({
      id: 'chatcmpl-bench0000000000000000',
      object: 'chat.completion',
      created: 1_767_225_600,
      model,
      choices: [{ index: 0, message: { role: 'assistant', content }, finish_reason: 'stop' }],
      usage: USAGE,
    });
  return answer('The order is on its way. '.repeat(bytes).slice(0, bytes - answer('').length));
}

/** The events of a streamed chat completion: fifty, with the usage and `[DONE]`. */
export function chunks(model: string): string[] {
  const event = (choices: object[], more: object = {}) =>
    `data: ${JSON.stringify({
      id: 'chatcmpl-bench0000000000000000',
      object: 'chat.completion.chunk',
      created: 1_767_225_600,
      model,
      choices,
      ...more,
    })}\n\n`;
  const delta = (content: object, finish_reason: string | null = null) =>
    event([{ index: 0, delta: content, finish_reason }]);
  const words = Array.from({ length: SSE_CHUNKS - 4 }, (_, index) =>
    delta({ content: ` word ${index}` }),
  );
  const first = delta({ role: 'assistant', content: '' });
  const last = event([], { usage: USAGE });
  return [first, ...words, delta({}, 'stop'), last, 'data: [DONE]\n\n'];
}
