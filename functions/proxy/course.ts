/** The course of a stream: metered as the upstream sent it, translated, and its calls held back. */

import { MAX_PARKED_BYTES } from '../../db/parked.ts';
import { concat } from '../../schema/bytes.ts';
import type { Policy } from '../../schema/policy.ts';
import { asksPeople } from '../../schema/rules/gate.ts';
import { judgeName } from '../../schema/rules/tools.ts';
import type { CallReader, Meter, ProposedCall } from '../providers/contract.ts';
import { Copy } from './capture.ts';
import type { Proposals, Verdict } from './gate.ts';
import { StreamMeter } from './meter.ts';
import { Screen } from './screen.ts';
import type { Stage } from './stream.ts';

/** What a stream passes through besides its meter. */
export interface CourseStages {
  /** Whether what comes from upstream is copied. */
  readonly copies: boolean;
  readonly translator?: Stage;
  /** Both together, where the policy governs tools. */
  readonly policy?: Policy;
  readonly reader?: CallReader;
}

const EMPTY = new Uint8Array(0);

/** One stream on its way from the upstream to the caller. */
export class Course {
  readonly #meter: StreamMeter;
  /** What came from upstream, where that is wanted. */
  readonly copy: Copy | undefined;
  readonly #translator: Stage | undefined;
  readonly #screen: Screen | undefined;
  /** The whole stream as the caller would get it, where it may have to be parked. */
  readonly #kept: Uint8Array[] = [];
  readonly #keeps: boolean;
  #keptBytes = 0;
  #passedBytes = 0;
  #calls: readonly ProposedCall[] = [];
  /** What a person or a verdict has to let go first; there once the stream has ended. */
  withheld: Uint8Array = EMPTY;

  constructor(meter: Meter, { copies, translator, policy, reader }: CourseStages) {
    this.copy = copies ? new Copy() : undefined;
    this.#meter = new StreamMeter(meter);
    this.#translator = translator;
    this.#screen = policy && reader && new Screen(reader, (name) => judgeName(policy, name));
    this.#keeps = policy !== undefined && asksPeople(policy);
  }

  /** Whether the upstream has told the end of the stream, so that the caller still waits for it. */
  get isOver(): boolean {
    return this.#meter.isOver;
  }

  /** Bytes that came from upstream. */
  get receivedBytes(): number {
    return this.#meter.bytes;
  }

  /**
   * Takes a chunk; returns what may go on now.
   *
   * @throws {SseTooLarge} and what the other stages throw.
   */
  push(chunk: Uint8Array): Uint8Array {
    this.copy?.push(chunk);
    const metered = this.#meter.push(chunk);
    const said = this.#translator ? this.#translator.push(metered) : metered;
    return this.#screen ? this.#pass(this.#screen, said) : said;
  }

  /** Takes the end; returns what may go on whatever the verdict is. */
  end(): Uint8Array {
    const metered = this.#meter.end();
    const translator = this.#translator;
    const said = translator ? concat([translator.push(metered), translator.end()]) : metered;
    if (!this.#screen) return said;
    const passed = this.#pass(this.#screen, said);
    const { withheld, calls } = this.#screen.end();
    this.withheld = withheld;
    this.#calls = calls;
    return passed;
  }

  #pass(screen: Screen, said: Uint8Array): Uint8Array {
    this.#keep(said);
    const passed = screen.push(said);
    this.#passedBytes += passed.length;
    return passed;
  }

  /** One that grows too long to be parked is not kept at all. */
  #keep(said: Uint8Array): void {
    if (!this.#keeps) return;
    this.#keptBytes += said.length;
    if (this.#keptBytes <= MAX_PARKED_BYTES) this.#kept.push(said);
    else this.#kept.length = 0;
  }

  /** What has to be decided on, where the policy governs tools; there once the stream has ended. */
  proposals(): Proposals | undefined {
    if (!this.#screen) return undefined;
    return { calls: this.#calls, fault: this.#screen.fault, lengthBytes: this.#keptBytes };
  }

  /** What may be said of a stream that ends before its time: the calls that have gone out. */
  passedVerdict(): Extract<Verdict, { effect: 'allow' }> {
    const calls = this.#screen?.passedCalls() ?? [];
    return { effect: 'allow', callIds: calls.flatMap(({ id }) => id ?? []), approved: [] };
  }

  /** The whole stream, where people may be asked about it and it could be kept. */
  whole(): Uint8Array<ArrayBuffer> {
    return new Uint8Array(concat(this.#kept));
  }

  /** The part of it that the caller has got at once. */
  passed(): Uint8Array {
    return this.whole().subarray(0, this.#passedBytes);
  }

  /** SHA-256 of what came from upstream. Ends the meter. */
  digest(): string {
    return this.#meter.digest();
  }
}
