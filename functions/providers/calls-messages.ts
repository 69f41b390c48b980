/** Tool calls of Anthropic's messages: `tool_use` blocks and the deltas of their input. */

import type { JsonObject } from '../../schema/json.ts';
import { isGiven, isObject } from '../../schema/rules/bound.ts';
import {
  type Gatherer,
  MAX_ARGS_CHARS,
  objectsOf,
  type Passage,
  parseArgs,
  plainIndex,
  plainText,
  refuseVariants,
  StrictReader,
  typeOf,
  Unreadable,
  Ways,
} from './calls.ts';
import type { CallKind, CallReader, ProposedCall } from './contract.ts';
import { memberOf } from './reading.ts';

/** Blocks of calls. */
const USE = /tool_use$/i;
/** Blocks of tools that run upstream: what a request may declare decides on those. */
const HOSTED = new Set(['server_tool_use', 'mcp_tool_use']);

interface Block {
  readonly type: string;
  readonly id: string | null;
  readonly name: string;
  /** The input as it stood in the block. */
  readonly input: string;
  readonly isStreamed: boolean;
  deltas: string;
}

/** A block of a stream. */
interface Streamed {
  /** Undefined for one that is no call of the caller's. */
  readonly block: Block | undefined;
  /** Whether it uses a tool, whoever runs that. */
  readonly isUse: boolean;
  isOpen: boolean;
}

/**
 * A reader of messages, whole or streamed.
 *
 * Clients put blocks in the order of their starts, and deltas where their index says: a stream in
 * which the two differ can't be read.
 */
export function readMessageCalls(): CallReader {
  return new StrictReader(new MessageGatherer());
}

class MessageGatherer implements Gatherer {
  readonly hint =
    /tool_use|partial_json|input_json|content_block_st(?:art|op)|message_st(?:art|op)/i;
  readonly #blocks: Block[] = [];
  /** By index. */
  readonly #streamed = new Map<number, Streamed>();
  #last: Streamed | undefined;
  readonly #ways = new Ways();
  /** Whether the message may still begin, is being told, or was told to its end. */
  #phase: 'ahead' | 'open' | 'over' = 'ahead';
  /** Whether blocks stand in the message that a stream begins with. */
  #isPrefilled = false;
  #started = 0;
  /** What is wrong with the order, which counts where a call of the caller's stands in it. */
  #disorder: string | undefined;
  #chars = 0;

  take(passage: Passage): string[] {
    const { value } = passage;
    const type = typeOf(passage);
    const message = memberOf(value, 'message');
    refuseVariants(message);
    const blocks = [...blocksOf(value), ...blocksOf(message)];
    const names = blocks.flatMap((block) => this.#see(block, passage)?.name ?? []);
    if (type === 'message_start') this.#begin(isGiven(message.content));
    if (isGiven(value.content_block)) names.push(...this.#start(type, passage));
    else if (type === 'content_block_start') this.#disorder ??= 'a block begins as nothing';
    if (type === 'content_block_stop') this.#stop(passage);
    const delta = memberOf(value, 'delta');
    refuseVariants(delta);
    const isInput = /json/i.test(plainText(delta, 'type')) || 'partial_json' in delta;
    if (isInput) names.push(...this.#continue(type, delta, passage));
    if (type === 'message_stop') this.#phase = 'over';
    if (this.#disorder !== undefined && this.#blocks.length > 0) {
      throw new Unreadable(this.#disorder);
    }
    return names;
  }

  calls(): ProposedCall[] {
    return this.#blocks.flatMap(versionsOf);
  }

  #begin(isPrefilled: boolean): void {
    if (this.#phase !== 'ahead') this.#disorder ??= 'its message begins twice';
    this.#phase = 'open';
    this.#isPrefilled ||= isPrefilled;
  }

  #see(block: JsonObject, passage: Passage): Block | undefined {
    refuseVariants(block);
    const type = plainText(block, 'type');
    if (!USE.test(type) || HOSTED.has(type)) return undefined;
    const input = block.input ?? '';
    if (input !== '' && typeof input !== 'object') throw new Unreadable('an input is no object');
    const seen = {
      type,
      id: plainText(block, 'id') || null,
      name: plainText(block, 'name'),
      input: input === '' ? '' : passage.source(input),
      isStreamed: block === passage.value.content_block,
      deltas: '',
    };
    this.#blocks.push(seen);
    return seen;
  }

  #start(type: string, passage: Passage): string[] {
    const { value } = passage;
    const { content_block: block, index } = value;
    if (type !== 'content_block_start' || !isObject(block)) {
      throw new Unreadable('a block begins in another way than blocks do');
    }
    const isUse = USE.test(plainText(block, 'type'));
    const seen = this.#see(block, passage);
    const isInOrder = index === this.#started++;
    // Text alone reads the same in any order.
    if (isUse || this.#hasUse()) {
      this.#require(passage);
      if (!isInOrder) this.#disorder ??= 'the indexes of its blocks are not in order';
    }
    this.#last = { block: seen, isUse, isOpen: true };
    if (typeof index === 'number') this.#streamed.set(index, this.#last);
    return seen ? [seen.name] : [];
  }

  #hasUse(): boolean {
    return this.#blocks.length > 0 || [...this.#streamed.values()].some(({ isUse }) => isUse);
  }

  /** An event of a call: its message goes on, and all clients look at it, or none does. */
  #require(passage: Passage): number | undefined {
    if (this.#phase === 'over' || this.#isPrefilled) {
      throw new Unreadable('blocks come where its message has them already');
    }
    this.#ways.require('events', passage.event === undefined);
    return plainIndex(passage, passage.value);
  }

  #stop(passage: Passage): void {
    if (!this.#hasUse()) return;
    const index = this.#require(passage);
    const streamed = index === undefined ? undefined : this.#streamed.get(index);
    if (streamed) streamed.isOpen = false;
    // Some clients run the last block as it is then, whichever it is that ends.
    if (this.#last) this.#last.isOpen = false;
  }

  #continue(type: string, delta: JsonObject, passage: Passage): string[] {
    const index = this.#require(passage);
    const streamed = index === undefined ? undefined : this.#streamed.get(index);
    const isPlain = type === 'content_block_delta' && delta.type === 'input_json_delta';
    if (!isPlain || !streamed?.isUse || !streamed.isOpen) {
      throw new Unreadable('an input goes on where no call is open');
    }
    const text = plainText(delta, 'partial_json');
    const { block } = streamed;
    if (!block) return [];
    block.deltas += text;
    this.#chars += text.length;
    if (this.#chars > MAX_ARGS_CHARS) throw new Unreadable('its calls are too long');
    return [block.name];
  }
}

/** The blocks of a message; clients may find them in what is no list too. */
function blocksOf({ content = null }: JsonObject): JsonObject[] {
  if (isObject(content)) throw new Unreadable('its blocks are no list');
  return objectsOf(content);
}

/**
 * A client takes the deltas, where there are any, or else what the block began with; some know an
 * input from deltas alone, and run the call without one.
 */
function versionsOf({ type, id, name, input, isStreamed, deltas }: Block): ProposedCall[] {
  const isBegun = !isEmpty(input);
  const told = deltas === '' && isBegun && isStreamed ? '{}' : deltas;
  const texts = [...(told === '' ? [] : [told]), ...(isBegun || told === '' ? [input] : [])];
  return texts.map((argsText) => {
    return { kind: type as CallKind, id, name, args: parseArgs(argsText), argsText };
  });
}

function isEmpty(input: string): boolean {
  return input === '' || /^\{\s*\}$/.test(input);
}
