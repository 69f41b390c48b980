/** The calls in a stream of chat chunks: which part belongs to which. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isGiven } from '../../../schema/rules/bound.ts';
import { memberOf } from '../reading.ts';
import { Untranslatable } from './contract.ts';
import { callIdOf, nameOf, stringOf } from './members.ts';

/** A call whose arguments are still coming. */
export interface StreamedCall {
  readonly id: string;
  readonly name: string;
  /** Fragments that no event has carried yet. */
  waiting: string;
}

const FIELD = 'tool_calls[]';

/** What a part adds to the arguments of its call. @throws {Untranslatable} */
export function argumentsOf(part: JsonObject): string {
  const { arguments: added } = memberOf(part, 'function');
  return isGiven(added) ? stringOf(added, `${FIELD}.function.arguments`) : '';
}

/**
 * Puts parts together as the screening of calls does: a part without an id, or with that of the
 * last call at its index, goes on with it; another id begins another call, for some hosts give all
 * calls one index, or none. What clients could put together in several ways is refused.
 */
export class StreamedCalls {
  /** In the order of their beginnings. */
  readonly all: StreamedCall[] = [];
  readonly #last = new Map<number | undefined, StreamedCall>();
  readonly #begun = new Set<string>();
  #isIndexed: boolean | undefined;

  /** The call that a part begins or goes on with; its arguments wait there. @throws {Untranslatable} */
  take(part: JsonObject): StreamedCall {
    const index = typeof part.index === 'number' ? part.index : undefined;
    this.#requireOneWay(index !== undefined);
    const called = memberOf(part, 'function');
    const last = this.#last.get(index);
    const isSame = last !== undefined && (!isGiven(part.id) || part.id === last.id);
    const call = isSame ? last : this.#begin(index, part.id, called.name);
    if (isGiven(called.name) && called.name !== call.name) {
      throw new Untranslatable(`${FIELD}.function.name`, 'comes in pieces');
    }
    call.waiting += argumentsOf(part);
    return call;
  }

  #requireOneWay(isIndexed: boolean): void {
    this.#isIndexed ??= isIndexed;
    if (this.#isIndexed !== isIndexed) {
      throw new Untranslatable(`${FIELD}.index`, 'is there for some parts and not for others');
    }
  }

  #begin(index: number | undefined, id: Json | undefined, name: Json | undefined): StreamedCall {
    const call = {
      id: callIdOf(id, `${FIELD}.id`),
      name: nameOf(name, `${FIELD}.function.name`),
      waiting: '',
    };
    const key = `${index} ${call.id}`;
    if (this.#begun.has(key)) throw new Untranslatable(`${FIELD}.id`, 'comes back after another');
    this.#begun.add(key);
    this.#last.set(index, call);
    this.all.push(call);
    return call;
  }
}
