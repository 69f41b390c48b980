/** Answers that propose tool calls, of every dialect and kind, whole and as streams. */

import type { CallKind } from '../functions/providers/contract.ts';
import type { PolicyDocument } from '../schema/policy.ts';

/** A call to be proposed; `args` is the text of a JSON object. */
export interface Told {
  readonly id: string;
  readonly name: string;
  readonly args: string;
}

/** One event of a stream and the calls, by their number, that it tells anything of. */
export interface Frame {
  readonly text: string;
  readonly calls: readonly number[];
}

/** A way for calls to stand in answers. */
export interface Form {
  readonly endpoint: 'chat.completions' | 'responses.create' | 'messages';
  readonly label: string;
  readonly kind: CallKind;
  /** The names that a policy sees for a call. */
  readonly names: (name: string) => readonly string[];
  /** The text of its arguments that a policy sees. */
  readonly argsText: (args: string) => string;
  /** What else the arguments of a stream are to some clients. */
  readonly alsoStreamed?: readonly string[];
  readonly id: (call: Told) => string;
  /** The events of a call at an index, or the whole of it. */
  readonly events: (call: Told, index: number) => readonly string[];
  readonly item: (call: Told) => string;
}

const json = JSON.stringify;
const data = (value: string) => `data: ${value}\n\n`;
const named = (type: string, members: string) =>
  `event: ${type}\n${data(`{"type":${json(type)},${members}}`)}`;

/** A text in pieces of a few characters. */
export function pieces(text: string, length = 7): string[] {
  return text.match(new RegExp(`[^]{1,${length}}`, 'gu')) ?? [];
}

// Chat completions

const chunk = (delta: string, choice = 0, finish = 'null') =>
  data(
    `{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m",` +
      `"choices":[{"index":${choice},"delta":${delta},"finish_reason":${finish}}]}`,
  );
const toolDelta = (index: number, members: string) =>
  chunk(`{"tool_calls":[{"index":${index},${members}}]}`);

const chat = { endpoint: 'chat.completions', id: ({ id }: Told) => id } as const;
const sameName = (name: string) => [name];
const sameText = (text: string) => text;
const wrapped = (text: string) => json({ input: text });

const CHAT_FORMS: readonly Form[] = [
  {
    ...{ ...chat, label: 'function', kind: 'tool_call', names: sameName, argsText: sameText },
    events: ({ id, name, args }, index) => [
      toolDelta(
        index,
        `"id":${json(id)},"type":"function","function":{"name":${json(name)},"arguments":""}`,
      ),
      ...pieces(args).map((part) => toolDelta(index, `"function":{"arguments":${json(part)}}`)),
    ],
    item: ({ id, name, args }) =>
      `{"id":${json(id)},"type":"function","function":{"name":${json(name)},"arguments":${json(args)}}}`,
  },
  {
    ...{ ...chat, label: 'custom', kind: 'tool_call', names: sameName, argsText: wrapped },
    events: ({ id, name, args }, index) => [
      toolDelta(index, `"id":${json(id)},"type":"custom","custom":{"name":${json(name)}}`),
      ...pieces(args).map((part) => toolDelta(index, `"custom":{"input":${json(part)}}`)),
    ],
    item: ({ id, name, args }) =>
      `{"id":${json(id)},"type":"custom","custom":{"name":${json(name)},"input":${json(args)}}}`,
  },
  {
    ...{ ...chat, label: 'former', kind: 'function_call', names: sameName, argsText: sameText },
    id: ({ name }) => name,
    events: ({ name, args }, index) => [
      chunk(`{"content":null,"function_call":{"name":${json(name)},"arguments":""}}`, index),
      ...pieces(args).map((part) => chunk(`{"function_call":{"arguments":${json(part)}}}`, index)),
    ],
    item: ({ name, args }) => `{"name":${json(name)},"arguments":${json(args)}}`,
  },
];

// Responses

const COMMON = '"status":"completed"';
const wholeItem = (type: string, members: (call: Told) => string) => (call: Told) =>
  `{"id":"item_${call.id}","type":${json(type)},"call_id":${json(call.id)},${COMMON},${members(call)}}`;

interface Shape {
  readonly type: string;
  readonly names: Form['names'];
  readonly members: (call: Told) => string;
  /** The member that comes in deltas, and the events that bring it. */
  readonly streamed?: readonly [member: string, event: string];
  readonly argsText?: Form['argsText'];
}

const mcpName = (name: string) => [`crm/${name}`];
const withArguments = ({ name, args }: Told) => `"name":${json(name)},"arguments":${json(args)}`;
const SHAPES: readonly Shape[] = [
  {
    ...{ type: 'function_call', names: sameName, members: withArguments },
    streamed: ['arguments', 'response.function_call_arguments'],
  },
  {
    ...{ type: 'custom_tool_call', names: sameName, argsText: wrapped },
    members: ({ name, args }) => `"name":${json(name)},"input":${json(args)}`,
    streamed: ['input', 'response.custom_tool_call_input'],
  },
  {
    ...{ type: 'mcp_call', names: mcpName, streamed: ['arguments', 'response.mcp_call_arguments'] },
    members: (call) => `"server_label":"crm",${withArguments(call)}`,
  },
  {
    ...{ type: 'mcp_approval_request', names: mcpName },
    members: (call) => `"server_label":"crm",${withArguments(call)}`,
  },
  {
    ...{ type: 'shell_call', names: () => ['shell'] },
    members: ({ args }) => `"action": ${args}`,
  },
  {
    ...{ type: 'local_shell_call', names: () => ['local_shell'] },
    members: ({ args }) => `"action":${args}`,
  },
  {
    ...{ type: 'apply_patch_call', names: () => ['apply_patch'] },
    members: ({ args }) => `"operation":${args}`,
  },
  {
    ...{ type: 'computer_call', names: () => ['computer'] },
    ...{ members: ({ args }) => `"action":${args},"actions":[${args}]` },
    argsText: (args) => `{"action":${args},"actions":[${args}]}`,
  },
  {
    ...{ type: 'browser_call', names: (name) => ['browser', name] },
    members: ({ name, args }) => `"name":${json(name)},"arguments":${json(args)}`,
  },
];

const place = (call: Told, index: number) => `"output_index":${index},"item_id":"item_${call.id}"`;

function responseEvents({ type, members, streamed }: Shape, call: Told, index: number): string[] {
  const item = wholeItem(type, members);
  const begun = streamed ? item({ ...call, args: '' }) : item(call);
  const [member, event] = streamed ?? [];
  return [
    named(
      'response.output_item.added',
      `"output_index":${index},"item":${begun.replace('completed', 'in_progress')}`,
    ),
    ...(streamed ? pieces(call.args) : []).map((part) =>
      named(`${event}.delta`, `${place(call, index)},"delta":${json(part)}`),
    ),
    ...(streamed
      ? [named(`${event}.done`, `${place(call, index)},"${member}":${json(call.args)}`)]
      : []),
    named('response.output_item.done', `"output_index":${index},"item":${item(call)}`),
  ];
}

const RESPONSE_FORMS: readonly Form[] = SHAPES.map((shape) => ({
  ...{ endpoint: 'responses.create', label: shape.type, kind: shape.type as CallKind },
  ...{ names: shape.names, argsText: shape.argsText ?? sameText },
  id: ({ id }) => id,
  events: (call, index) => responseEvents(shape, call, index),
  item: wholeItem(shape.type, shape.members),
}));

// Messages

const block = ({ id, name }: Told, input: string) =>
  `{"type":"tool_use","id":${json(id)},"name":${json(name)},"input":${input}}`;
const start = (index: number, content: string) =>
  named('content_block_start', `"index":${index},"content_block":${content}`);
const stop = (index: number) => named('content_block_stop', `"index":${index}`);
const messages: Omit<Form, 'label' | 'events'> = {
  ...{ endpoint: 'messages', kind: 'tool_use', names: sameName, argsText: sameText },
  id: ({ id }) => id,
  item: (call) => block(call, call.args),
};

const MESSAGE_FORMS: readonly Form[] = [
  {
    ...{ ...messages, label: 'tool_use' },
    events: (call, index) => [
      start(index, block(call, '{}')),
      ...['', ...pieces(call.args)].map((part) =>
        named(
          'content_block_delta',
          `"index":${index},"delta":{"type":"input_json_delta","partial_json":${json(part)}}`,
        ),
      ),
      stop(index),
    ],
  },
  {
    ...{ ...messages, label: 'tool_use begun whole', alsoStreamed: ['{}'] },
    events: (call, index) => [start(index, block(call, call.args)), stop(index)],
  },
];

/** Every way for calls to stand in answers. */
export const FORMS: readonly Form[] = [...CHAT_FORMS, ...RESPONSE_FORMS, ...MESSAGE_FORMS];

/** The forms of one endpoint's usual call. */
export function usualForm(endpoint: Form['endpoint'], label: string): Form {
  const isUsual = (form: Form) => form.endpoint === endpoint && form.label === label;
  return FORMS.find(isUsual) ?? FORMS.find((form) => form.endpoint === endpoint)!;
}

export type Proposal = readonly [form: Form, call: Told];

const SAID = 'Hold on — “é😀”, I look: ';

/** A stream that says something and then proposes calls, one after the other. */
export function framesOf(endpoint: Form['endpoint'], proposals: readonly Proposal[]): Frame[] {
  const first = endpoint === 'chat.completions' ? 0 : 1;
  const told = proposals.flatMap(([form, call], number) =>
    form.events(call, first + number).map((text) => ({ text, calls: [number] })),
  );
  const all = proposals.map((_, number) => number);
  const [before, after] = SURROUNDINGS[endpoint](proposals);
  return [
    ...before.map((text) => ({ text, calls: [] })),
    ...told,
    ...after.map(([text, repeats]) => ({ text, calls: repeats ? all : [] })),
  ];
}

type Surroundings = readonly [
  before: readonly string[],
  after: readonly (readonly [text: string, repeatsCalls: boolean])[],
];

const SURROUNDINGS: Readonly<
  Record<Form['endpoint'], (proposals: readonly Proposal[]) => Surroundings>
> = {
  'chat.completions': () => [
    [chunk('{"role":"assistant","content":""}'), ...pieces(SAID).map(saidInChat)],
    [
      [chunk('{}', 0, '"stop"'), false],
      [data('[DONE]'), false],
    ],
  ],
  'responses.create': (proposals) => [
    [
      named('response.created', `"response":${responseOf([], 'in_progress')}`),
      named('response.output_item.added', `"output_index":0,"item":${messageItem('')}`),
      ...pieces(SAID).map((part) =>
        named(
          'response.output_text.delta',
          `"output_index":0,"item_id":"m1","content_index":0,"delta":${json(part)}`,
        ),
      ),
      named('response.output_item.done', `"output_index":0,"item":${messageItem(SAID)}`),
    ],
    [[named('response.completed', `"response":${responseOf(proposals, 'completed')}`), true]],
  ],
  messages: () => [
    [
      named('message_start', `"message":${messageOf('', 'null')}`),
      start(0, '{"type":"text","text":""}'),
      'event: ping\ndata: {"type": "ping"}\n\n',
      ...pieces(SAID).map((part) =>
        named(
          'content_block_delta',
          `"index":0,"delta":{"type":"text_delta","text":${json(part)}}`,
        ),
      ),
      stop(0),
    ],
    [
      [
        named(
          'message_delta',
          '"delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":5}',
        ),
        false,
      ],
      [named('message_stop', '"usage":null'), false],
    ],
  ],
};

function saidInChat(part: string): string {
  return chunk(`{"content":${json(part)}}`);
}

function messageItem(text: string): string {
  const part = `{"type":"output_text","annotations":[],"text":${json(text)}}`;
  return `{"id":"m1","type":"message","role":"assistant","content":[${text ? part : ''}]}`;
}

function responseOf(proposals: readonly Proposal[], status: string): string {
  const items = proposals.map(([form, call]) => form.item(call));
  const output = status === 'completed' ? [messageItem(SAID), ...items] : [];
  return (
    `{"id":"resp_1","object":"response","status":"${status}","parallel_tool_calls":true,` +
    `"tools":[{"type":"function","name":"drop_table","parameters":{}}],"output":[${output}]}`
  );
}

function messageOf(content: string, stopReason: string): string {
  return (
    `{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[${content}],` +
    `"stop_reason":${stopReason},"usage":{"input_tokens":1,"output_tokens":1}}`
  );
}

/** The same answer in one piece. */
export function bodyOf(endpoint: Form['endpoint'], proposals: readonly Proposal[]): string {
  if (endpoint === 'responses.create') return responseOf(proposals, 'completed');
  const items = proposals.map(([form, call]) => form.item(call));
  if (endpoint === 'messages') {
    return messageOf([`{"type":"text","text":${json(SAID)}}`, ...items].join(), '"tool_use"');
  }
  const isFormer = proposals.some(([form]) => form.label === 'former');
  const choices = isFormer
    ? items.map((item, index) => `{"index":${index},"message":{"function_call":${item}}}`)
    : [`{"index":0,"message":{"content":${json(SAID)},"tool_calls":[${items}]}}`];
  return `{"id":"c1","object":"chat.completion","choices":[${choices}]}`;
}

/** What a policy with one word on some names says of them. */
export const RULES: Readonly<
  Record<
    string,
    readonly [
      effect: 'allow' | 'deny' | 'ask',
      (names: readonly string[]) => NonNullable<PolicyDocument['tools']>,
    ]
  >
> = {
  'allowed by a list': ['allow', (names) => ({ allow: ['lookup', ...names] })],
  'allowed by its arguments': ['allow', asking('has(args.n) && args.n > 9')],
  'denied by a rule': ['deny', (names) => ({ deny: [...names] })],
  'denied by its arguments': [
    'deny',
    (names) => ({ deny: names.map((tool) => ({ tool, when: 'args.n > 1' })) }),
  ],
  'not on the list': ['deny', () => ({ allow: ['lookup'] })],
  'asked about': ['ask', asking()],
  // Free text has no arguments that a condition could read, which makes it apply.
  'asked about by its arguments': ['ask', asking('args.n > 1')],
};

function asking(when?: string) {
  return (names: readonly string[]) => ({
    requireApproval: names.map((tool) => ({ tool, ...(when ? { when } : {}) })),
  });
}

const ARGS = '{"n": 2,  "sql":"DROP “TABLE” é😀 \\u0041","big":1.50}';

/** A form's call `drop_table` among others of the dialect's usual kind, which are allowed. */
export function proposalsOf(form: Form, count: number, at: number): Proposal[] {
  const usual = usualForm(form.endpoint, form.label === 'former' ? 'former' : 'function');
  return Array.from({ length: count }, (_, number): Proposal => {
    const id = `call_${number}`;
    if (number === at) return [form, { id, name: 'drop_table', args: ARGS }];
    return [usual, { id, name: 'lookup', args: `{"q":${number}}` }];
  });
}
