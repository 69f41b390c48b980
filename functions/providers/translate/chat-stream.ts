/** A stream of chat chunks as the events of a message. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isGiven, isObject } from '../../../schema/rules/bound.ts';
import type { SseEvent } from '../../../schema/sse.ts';
import { memberOf, parseEvent } from '../reading.ts';
import { Untranslatable } from './contract.ts';
import { messageUsage, stopReasonOf } from './endings.ts';
import { messageError } from './errors.ts';
import { callIdOf, listOf, nameOf, noCounterpart } from './members.ts';

/** The most characters of arguments that wait for the calls before theirs. */
const MAX_WAITING = 32 * 1024 * 1024;

/** A call whose arguments are still coming. */
interface Call {
  readonly block: JsonObject;
  /** Fragments that no event has carried yet. */
  waiting: string;
}

/**
 * Says chunks over as they come. Blocks of a message follow one another, while calls in chunks may
 * come in turns: the first goes out as it comes, the others wait for the end.
 */
export class ChatToMessageEvents {
  readonly #calls = new Map<number, Call>();
  #started = false;
  #ended = false;
  /** The index of the block that is open, and what it is. */
  #block = -1;
  #open: 'text' | Call | undefined;
  #usage: JsonObject = {};
  #reason: string | undefined;
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
    const choice = Array.isArray(choices) ? choices.find(isObject) : undefined;
    if (!choice) return '';
    const delta = memberOf(choice, 'delta');
    if (isGiven(delta.refusal)) this.#reason = 'refusal';
    if (isGiven(choice.finish_reason)) this.#reason ??= stopReasonOf(choice.finish_reason);
    if (isGiven(delta.function_call)) throw noCounterpart('choices[0].delta.function_call');
    const calls = listOf(delta.tool_calls, 'choices[0].delta.tool_calls').filter(isObject);
    const told = [this.#text(delta.content), this.#text(delta.refusal)];
    for (const call of calls) told.push(this.#call(call));
    return told.join('');
  }

  #text(text: Json | undefined): string {
    if (typeof text !== 'string' || text === '') return '';
    const opening = this.#open === 'text' ? '' : this.#opening({ type: 'text', text: '' }, 'text');
    return opening + this.#delta({ type: 'text_delta', text });
  }

  #call(part: JsonObject): string {
    const index = typeof part.index === 'number' ? part.index : 0;
    const called = memberOf(part, 'function');
    const known = this.#calls.get(index);
    const call = known ?? callOf(part, called);
    this.#calls.set(index, call);
    if (typeof called.arguments === 'string') call.waiting += called.arguments;
    if (known) return this.#open === call ? this.#tellWaiting(call) : this.#wait(called);
    const isBusy = this.#open !== undefined && this.#open !== 'text';
    return isBusy ? this.#wait(called) : this.#opening(call.block, call) + this.#tellWaiting(call);
  }

  /** A sign of life, since nothing of this goes out yet. */
  #wait({ arguments: text }: JsonObject): string {
    this.#waiting += typeof text === 'string' ? text.length : 0;
    if (this.#waiting > MAX_WAITING) {
      throw new Untranslatable(
        'tool_calls[].function.arguments',
        'are too long to wait their turn',
      );
    }
    return tell({ type: 'ping' });
  }

  #tellWaiting(call: Call): string {
    const { waiting } = call;
    call.waiting = '';
    return waiting === '' ? '' : this.#delta({ type: 'input_json_delta', partial_json: waiting });
  }

  #opening(block: JsonObject, open: 'text' | Call): string {
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

  readonly #told = new Set<Call>();

  #end(): string {
    this.#ended = true;
    const told = [this.#start({}), this.#closing()];
    for (const call of this.#calls.values()) {
      if (this.#told.has(call)) continue;
      told.push(this.#opening(call.block, call), this.#tellWaiting(call), this.#closing());
    }
    const delta = { stop_reason: this.#reason ?? 'end_turn', stop_sequence: null };
    told.push(tell({ type: 'message_delta', delta, usage: messageUsage(this.#usage) }));
    told.push(tell({ type: 'message_stop' }));
    return told.join('');
  }
}

function callOf({ id }: JsonObject, { name }: JsonObject): Call {
  const field = 'tool_calls[]';
  const members = { id: callIdOf(id, `${field}.id`), name: nameOf(name, `${field}.function.name`) };
  return { block: { type: 'tool_use', ...members, input: {} }, waiting: '' };
}

function tell(value: JsonObject): string {
  return `event: ${value.type}\ndata: ${JSON.stringify(value)}\n\n`;
}
