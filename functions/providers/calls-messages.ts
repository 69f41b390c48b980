/** Tool calls of Anthropic's messages: `tool_use` blocks and the deltas of their input. */

import type { JsonObject } from '../../schema/json.ts';
import { isObject } from '../../schema/rules/bound.ts';
import {
  type Gatherer,
  MAX_ARGS_CHARS,
  objectsOf,
  type Passage,
  parseArgs,
  refuseVariants,
  StrictReader,
  stringOf,
  typeOf,
  Unreadable,
} from './calls.ts';
import type { CallKind, CallReader, ProposedCall } from './contract.ts';
import { memberOf } from './reading.ts';

/** Blocks of tools that run upstream: what a request may declare decides on those. */
const HOSTED = new Set(['server_tool_use', 'mcp_tool_use']);

interface Block {
  readonly type: string;
  readonly id: string | null;
  readonly name: string;
  /** The input as it stood in the block. */
  readonly input: string;
  deltas: string;
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
  readonly hint = /tool_use|partial_json|input_json|content_block_start/i;
  readonly #blocks: Block[] = [];
  /** By index; undefined for a block that is no call of the caller's. */
  readonly #streamed = new Map<number, Block | undefined>();
  #started = 0;
  #chars = 0;

  take(passage: Passage): string[] {
    const { value } = passage;
    const type = typeOf(passage);
    const message = memberOf(value, 'message');
    refuseVariants(message);
    const names = [...objectsOf(value.content), ...objectsOf(message.content)]
      .map((block) => this.#see(block, passage)?.name)
      .filter((name) => name !== undefined);
    if (isObject(value.content_block)) names.push(...this.#start(value.content_block, passage));
    const delta = memberOf(value, 'delta');
    refuseVariants(delta);
    const isInput = type === 'content_block_delta' && /json/i.test(stringOf(delta, 'type'));
    if (isInput || 'partial_json' in delta) names.push(...this.#continue(value, delta));
    return names;
  }

  calls(): ProposedCall[] {
    return this.#blocks.flatMap(versionsOf);
  }

  #see(block: JsonObject, passage: Passage): Block | undefined {
    refuseVariants(block);
    const type = stringOf(block, 'type');
    if (!/tool_use$/i.test(type) || HOSTED.has(type)) return undefined;
    const { input } = block;
    const seen = {
      type,
      id: stringOf(block, 'id') || null,
      name: stringOf(block, 'name'),
      input: typeof input === 'object' && input !== null ? passage.source(input) : '',
      deltas: '',
    };
    this.#blocks.push(seen);
    return seen;
  }

  #start(block: JsonObject, passage: Passage): string[] {
    const seen = this.#see(block, passage);
    const { index } = passage.value;
    const isInOrder = index === this.#started++;
    if (typeof index === 'number') this.#streamed.set(index, seen);
    if (!seen) return [];
    // Text alone reads the same in any order.
    if (!isInOrder) throw new Unreadable('the indexes of its blocks are not in order');
    return [seen.name];
  }

  #continue({ index }: JsonObject, delta: JsonObject): string[] {
    if (typeof index !== 'number' || !this.#streamed.has(index)) return [''];
    const block = this.#streamed.get(index);
    if (!block) return [];
    const text = stringOf(delta, 'partial_json');
    block.deltas += text;
    this.#chars += text.length;
    if (this.#chars > MAX_ARGS_CHARS) throw new Unreadable('its calls are too long');
    return [block.name];
  }
}

/** A client takes the deltas, where there are any, or else what the block began with. */
function versionsOf({ type, id, name, input, deltas }: Block): ProposedCall[] {
  const isWhole = deltas === '' || !isEmpty(input);
  const texts = [...(deltas === '' ? [] : [deltas]), ...(isWhole ? [input] : [])];
  return texts.map((argsText) => {
    return { kind: type as CallKind, id, name, args: parseArgs(argsText), argsText };
  });
}

function isEmpty(input: string): boolean {
  return input === '' || /^\{\s*\}$/.test(input);
}
