/** A stream of chat chunks as the events of a message. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isGiven, isObject } from '../../../schema/rules/bound.ts';
import type { SseEvent } from '../../../schema/sse.ts';
import { memberOf, parseEvent } from '../reading.ts';
import { argumentsOf, type StreamedCall, StreamedCalls } from './chat-calls.ts';
import { Untranslatable } from './contract.ts';
import { messageUsage, stopReasonOf } from './endings.ts';
import { messageError } from './errors.ts';
import { listOf, objectOf } from './members.ts';
import { refuseOtherOutput, textIn } from './parts.ts';

/** The most characters of arguments that wait for the calls before theirs. */
const MAX_WAITING = 32 * 1024 * 1024;

/**
 * Says chunks over as they come. Blocks of a message follow one another, while calls in chunks may
 * come in turns: the first goes out as it comes, the others wait for the end.
 */
export class ChatToMessageEvents {
  readonly #calls = new StreamedCalls();
  #started = false;
  #ended = false;
  /** The index of the block that is open, and what it is. */
  #block = -1;
  #open: 'text' | StreamedCall | undefined;
  #usage: JsonObject = {};
  #finish: Json | undefined;
  #isRefused = false;
  #waiting = 0;

  /** The text of the events that one event becomes. @throws {Untranslatable} */
  event({ data }: SseEvent): string {
    if (this.#ended) return '';
    if (data === '[DONE]') return this.#end();
    const chunk = parseEvent(data);
    if (!chunk) return '';
    if (isGiven(chunk.error)) return tell(messageError(chunk));
    if (isObject(chunk.usage)) this.#usage = chunk.usage;
    return this.#start(chunk) + this.#choice(chunk);
  }

  #start({ id, model }: JsonObject): string {
    if (this.#started) return '';
    this.#started = true;
    const message = {
      ...{ id: id ?? '', type: 'message', role: 'assistant', model: model ?? '', content: [] },
      ...{ stop_reason: null, stop_sequence: null, usage: messageUsage({}) },
    };
    return tell({ type: 'message_start', message });
  }

  #choice({ choices }: JsonObject): string {
    const [first, second] = listOf(choices, 'choices');
    if (first === undefined) return '';
    const choice = objectOf(first, 'choices[0]');
    if (second !== undefined || (isGiven(choice.index) && choice.index !== 0)) {
      throw new Untranslatable('choices', 'are more than one');
    }
    if (isGiven(choice.finish_reason)) this.#finish ??= choice.finish_reason;
    return this.#said(memberOf(choice, 'delta'), 'choices[0].delta');
  }

  #said(delta: JsonObject, field: string): string {
    refuseOtherOutput(delta, field);
    if (isGiven(delta.refusal)) this.#isRefused = true;
    const calls = listOf(delta.tool_calls, `${field}.tool_calls`);
    return [
      this.#text(textIn(delta.content, `${field}.content`)),
      this.#text(textIn(delta.refusal, `${field}.refusal`)),
      ...calls.map((call) => this.#call(objectOf(call, `${field}.tool_calls[]`))),
    ].join('');
  }

  #text(text: string): string {
    if (text === '') return '';
    const opening = this.#open === 'text' ? '' : this.#opening({ type: 'text', text: '' }, 'text');
    return opening + this.#delta({ type: 'text_delta', text });
  }

  #call(part: JsonObject): string {
    const call = this.#calls.take(part);
    if (call === this.#open) return this.#tellWaiting(call);
    if (this.#told.has(call)) return this.#requireNothing(call);
    const isBusy = this.#open !== undefined && this.#open !== 'text';
    return isBusy ? this.#wait(part) : this.#opening(useOf(call), call) + this.#tellWaiting(call);
  }

  /** A block that has ended takes nothing more. */
  #requireNothing({ waiting }: StreamedCall): string {
    if (waiting === '') return '';
    throw new Untranslatable(ARGUMENTS, 'go on after other content');
  }

  /** A sign of life, since nothing of this goes out yet. */
  #wait(part: JsonObject): string {
    this.#waiting += argumentsOf(part).length;
    if (this.#waiting > MAX_WAITING) {
      throw new Untranslatable(ARGUMENTS, 'are too long to wait their turn');
    }
    return tell({ type: 'ping' });
  }

  #tellWaiting(call: StreamedCall): string {
    const { waiting } = call;
    call.waiting = '';
    return waiting === '' ? '' : this.#delta({ type: 'input_json_delta', partial_json: waiting });
  }

  #opening(block: JsonObject, open: 'text' | StreamedCall): string {
    const closing = this.#closing();
    this.#open = open;
    this.#block += 1;
    return (
      closing + tell({ type: 'content_block_start', index: this.#block, content_block: block })
    );
  }

  #delta(delta: JsonObject): string {
    return tell({ type: 'content_block_delta', index: this.#block, delta });
  }

  #closing(): string {
    if (this.#open === undefined) return '';
    if (this.#open !== 'text') this.#told.add(this.#open);
    this.#open = undefined;
    return tell({ type: 'content_block_stop', index: this.#block });
  }

  readonly #told = new Set<StreamedCall>();

  #end(): string {
    this.#ended = true;
    const told = [this.#start({}), this.#closing()];
    for (const call of this.#calls.all) {
      if (this.#told.has(call)) continue;
      told.push(this.#opening(useOf(call), call), this.#tellWaiting(call), this.#closing());
    }
    const ended = stopReasonOf(this.#finish, this.#calls.all.length > 0);
    const delta = { stop_reason: this.#isRefused ? 'refusal' : ended, stop_sequence: null };
    told.push(tell({ type: 'message_delta', delta, usage: messageUsage(this.#usage) }));
    told.push(tell({ type: 'message_stop' }));
    return told.join('');
  }
}

const ARGUMENTS = 'tool_calls[].function.arguments';

function useOf({ id, name }: StreamedCall): JsonObject {
  return { type: 'tool_use', id, name, input: {} };
}

function tell(value: JsonObject): string {
  return `event: ${value.type}\ndata: ${JSON.stringify(value)}\n\n`;
}
