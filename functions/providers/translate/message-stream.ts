/** A stream of a message's events as chat chunks. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isGiven, isObject } from '../../../schema/rules/bound.ts';
import type { SseEvent } from '../../../schema/sse.ts';
import { memberOf, parseEvent } from '../reading.ts';
import { Untranslatable } from './contract.ts';
import { chatUsage, finishOf } from './endings.ts';
import { chatError } from './errors.ts';
import { readExact, writeText } from './exact.ts';
import { callIdOf, nameOf, noCounterpart, present, stringOf } from './members.ts';
import { textIn, textOfPart } from './parts.ts';

/** A block that uses a tool. */
interface Use {
  readonly index: number;
  /** Whether its input stood in the block that it began with. */
  readonly isWhole: boolean;
  hasInput: boolean;
}

/** What the model thought, and where a text was found. */
const UNSHOWN_DELTAS: ReadonlySet<Json | undefined> = new Set([
  ...['thinking_delta', 'signature_delta', 'citations_delta'],
]);

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
        // The input may stand in it whole.
        return this.#open(Number(event.index), memberOf(readExact(data, 'event'), 'content_block'));
      case 'content_block_delta':
        return this.#delta(Number(event.index), memberOf(event, 'delta'));
      case 'content_block_stop':
        return this.#close(Number(event.index));
      case 'message_delta':
        // A count that is null is one that has been told before.
        this.#usage = { ...this.#usage, ...present(memberOf(event, 'usage')) };
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

  #start({ id, model, usage, content }: JsonObject): string {
    if (isGiven(content)) throw noCounterpart('message.content');
    this.#usage = isObject(usage) ? usage : {};
    this.#head = {
      ...{ id: id ?? '', object: 'chat.completion.chunk' },
      ...{ created: this.#createdS, model: model ?? '' },
    };
    return this.#chunk({ role: 'assistant', content: '', refusal: null });
  }

  #open(index: number, block: JsonObject): string {
    if (block.type !== 'tool_use') return this.#text(textOfPart(block, 'content_block'));
    if (this.#uses.has(index)) throw new Untranslatable('index', 'is that of another block');
    const isWhole = isObject(block.input) && Object.keys(block.input).length > 0;
    const use = { index: this.#uses.size, isWhole, hasInput: false };
    this.#uses.set(index, use);
    const [id, name] = [
      callIdOf(block.id, 'content_block.id'),
      nameOf(block.name, 'content_block.name'),
    ];
    const call = { index: use.index, id, type: 'function', function: { name, arguments: '' } };
    const start = this.#chunk({ tool_calls: [call] });
    return isWhole ? start + this.#input(use, writeText(block.input!)) : start;
  }

  #delta(index: number, delta: JsonObject): string {
    if (delta.type === 'text_delta') return this.#text(textIn(delta.text, 'delta.text'));
    if (UNSHOWN_DELTAS.has(delta.type)) return '';
    if (delta.type !== 'input_json_delta') throw noCounterpart('delta.type');
    const use = this.#uses.get(index);
    if (!use) throw new Untranslatable('index', 'is that of no use of a tool');
    if (!isGiven(delta.partial_json)) return '';
    if (use.isWhole)
      throw new Untranslatable('delta.partial_json', 'follows an input that is whole');
    return this.#input(use, stringOf(delta.partial_json, 'delta.partial_json'));
  }

  #close(index: number): string {
    const use = this.#uses.get(index);
    // A tool without arguments has no deltas, and chat's clients parse what they got.
    return use && !use.hasInput ? this.#input(use, '{}') : '';
  }

  #text(text: string): string {
    if (text === '') return '';
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
    const finish = this.#chunk({}, finishOf(this.#reason, this.#uses.size > 0));
    const usage = { ...this.#head, choices: [], usage: chatUsage(this.#usage) };
    return `${finish}${this.#asksUsage ? tell(usage) : ''}data: [DONE]\n\n`;
  }
}

function tell(value: JsonObject): string {
  return `data: ${JSON.stringify(value)}\n\n`;
}
