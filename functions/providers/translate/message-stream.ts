/** A stream of a message's events as chat chunks. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isObject } from '../../../schema/rules/bound.ts';
import type { SseEvent } from '../../../schema/sse.ts';
import { memberOf, parseEvent } from '../reading.ts';
import { Untranslatable } from './contract.ts';
import { chatUsage, finishOf } from './endings.ts';
import { chatError } from './errors.ts';
import { writeText } from './exact.ts';
import { callIdOf, nameOf } from './members.ts';

/** A block that uses a tool. */
interface Use {
  readonly index: number;
  hasInput: boolean;
}

/** Blocks that have no place in chat: what the model thought. */
const UNSHOWN: ReadonlySet<Json | undefined> = new Set(['thinking', 'redacted_thinking']);

/** Says events over as they come; usage goes out only where the caller asked for it. */
export class MessageToChatChunks {
  readonly #createdS: number;
  readonly #asksUsage: boolean;
  readonly #uses = new Map<number, Use>();
  #head: JsonObject = {};
  #usage: JsonObject = {};
  #reason: Json | undefined;

  constructor(createdS: number, asksUsage: boolean) {
    this.#createdS = createdS;
    this.#asksUsage = asksUsage;
  }

  /** The text of the events that one event becomes. @throws {Untranslatable} */
  event({ data }: SseEvent): string {
    const event = parseEvent(data);
    switch (event?.type) {
      case 'message_start':
        return this.#start(memberOf(event, 'message'));
      case 'content_block_start':
        return this.#open(Number(event.index), memberOf(event, 'content_block'));
      case 'content_block_delta':
        return this.#delta(Number(event.index), memberOf(event, 'delta'));
      case 'content_block_stop':
        return this.#close(Number(event.index));
      case 'message_delta':
        this.#usage = { ...this.#usage, ...memberOf(event, 'usage') };
        this.#reason = memberOf(event, 'delta').stop_reason;
        return '';
      case 'message_stop':
        return this.#end();
      case 'error':
        return tell(chatError(event));
      case 'ping':
        // Chat's clients would take an event for a chunk.
        return ': ping\n\n';
      default:
        return '';
    }
  }

  #start({ id, model, usage }: JsonObject): string {
    this.#usage = isObject(usage) ? usage : {};
    this.#head = {
      ...{ id: id ?? '', object: 'chat.completion.chunk' },
      ...{ created: this.#createdS, model: model ?? '' },
    };
    return this.#chunk({ role: 'assistant', content: '', refusal: null });
  }

  #open(index: number, block: JsonObject): string {
    if (block.type === 'text') return this.#text(block.text);
    if (UNSHOWN.has(block.type)) return '';
    if (block.type !== 'tool_use') {
      throw new Untranslatable('content_block.type', 'has no counterpart in chat');
    }
    const use = { index: this.#uses.size, hasInput: false };
    this.#uses.set(index, use);
    const [id, name] = [
      callIdOf(block.id, 'content_block.id'),
      nameOf(block.name, 'content_block.name'),
    ];
    const call = { index: use.index, id, type: 'function', function: { name, arguments: '' } };
    const input = isObject(block.input) && Object.keys(block.input).length > 0;
    return (
      this.#chunk({ tool_calls: [call] }) + (input ? this.#input(use, writeText(block.input!)) : '')
    );
  }

  #delta(index: number, delta: JsonObject): string {
    if (delta.type === 'text_delta') return this.#text(delta.text);
    const use = this.#uses.get(index);
    if (delta.type !== 'input_json_delta' || !use) return '';
    return typeof delta.partial_json === 'string' ? this.#input(use, delta.partial_json) : '';
  }

  #close(index: number): string {
    const use = this.#uses.get(index);
    // A tool without arguments has no deltas, and chat's clients parse what they got.
    return use && !use.hasInput ? this.#input(use, '{}') : '';
  }

  #text(text: Json | undefined): string {
    if (typeof text !== 'string' || text === '') return '';
    // Chat's clients would join it to the text before the calls.
    if (this.#uses.size > 0) {
      throw new Untranslatable('content_block.type', 'is text after the use of a tool');
    }
    return this.#chunk({ content: text });
  }

  #input(use: Use, text: string): string {
    if (text === '') return '';
    use.hasInput = true;
    return this.#chunk({ tool_calls: [{ index: use.index, function: { arguments: text } }] });
  }

  #chunk(delta: JsonObject, finish: string | null = null): string {
    const choice = { index: 0, delta, logprobs: null, finish_reason: finish };
    const usage = this.#asksUsage ? { usage: null } : {};
    return tell({ ...this.#head, choices: [choice], ...usage });
  }

  #end(): string {
    const finish = this.#chunk({}, finishOf(this.#reason));
    const usage = { ...this.#head, choices: [], usage: chatUsage(this.#usage) };
    return `${finish}${this.#asksUsage ? tell(usage) : ''}data: [DONE]\n\n`;
  }
}

function tell(value: JsonObject): string {
  return `data: ${JSON.stringify(value)}\n\n`;
}
