/** The screen of a stream: text passes, and from the first call not plainly allowed on, nothing. */

import { concat } from '../../schema/bytes.ts';
import type { NameJudgement } from '../../schema/rules/tools.ts';
import { SseParser, SseTooLarge } from '../../schema/sse.ts';
import type { CallReader, ProposedCall } from '../providers/contract.ts';

/** The longest event of a stream, in bytes. */
const MAX_EVENT_BYTES = 32 * 1024 * 1024;

/** The most that is held back, in bytes. */
const MAX_WITHHELD_BYTES = 32 * 1024 * 1024;

/** Lets whole events pass until one belongs to a call that has to be decided on first. */
export class Screen {
  readonly #reader: CallReader;
  readonly #judgeName: (name: string) => NameJudgement;
  readonly #parser = new SseParser(MAX_EVENT_BYTES);
  #kept: Uint8Array = new Uint8Array(0);
  #keptAt = 0;
  #isHolding = false;

  constructor(reader: CallReader, judge: (name: string) => NameJudgement) {
    this.#reader = reader;
    this.#judgeName = judge;
  }

  /** Whether everything is held back until the end. */
  get isHolding(): boolean {
    return this.#isHolding;
  }

  /** Takes a chunk; returns what may go on now. @throws {SseTooLarge} */
  push(chunk: Uint8Array): Uint8Array {
    this.#kept = this.#kept.length > 0 ? concat([this.#kept, chunk]) : chunk;
    let until = 0;
    for (const event of this.#parser.push(chunk)) {
      const names = this.#reader.event(event);
      const isPlain = names.every((name) => name !== '' && this.#judgeName(name) === 'allow');
      if (!isPlain || this.#reader.fault !== undefined) this.#isHolding = true;
      if (!this.#isHolding) until = event.end - this.#keptAt;
    }
    const passed = this.#kept.subarray(0, until);
    this.#kept = this.#kept.subarray(until);
    this.#keptAt += until;
    if (this.#kept.length > MAX_WITHHELD_BYTES) {
      throw new SseTooLarge([], this.#keptAt, MAX_WITHHELD_BYTES);
    }
    return passed;
  }

  /** Takes the end; returns what was held back and the calls to decide on. */
  end(): { withheld: Uint8Array; calls: readonly ProposedCall[] } {
    for (const event of this.#parser.end()) this.#reader.event(event);
    return { withheld: this.#kept, calls: this.#reader.calls() };
  }
}
