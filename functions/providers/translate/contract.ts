/** What a translation between two dialects is, and why one may be impossible. */

import type { Stage } from '../../proxy/stream.ts';

/** A call whose upstream speaks another dialect than its caller: what comes back, said over. */
export interface Translation {
  /**
   * Turns a whole JSON answer into the caller's dialect. Bytes, because objects would have lost the
   * digits of large numbers in a tool's arguments.
   *
   * @throws {Untranslatable} for what the caller's dialect can't say.
   */
  answer(bytes: Uint8Array): Uint8Array<ArrayBuffer>;
  /** Turns an error's body, whatever it is, into one of the caller's dialect. */
  error(status: number, bytes: Uint8Array): Uint8Array<ArrayBuffer>;
  /**
   * A stage for one stream of server-sent events, whole events in and out.
   *
   * Its `push` and `end` throw {@link Untranslatable} as `answer` does, and `SseTooLarge`.
   */
  stream(): Stage;
}

/** What one dialect says and the other can't. */
export class Untranslatable extends Error {
  override readonly name = 'Untranslatable';
  /** The member at fault, such as `messages[].content[].type`. */
  readonly field: string;

  /** @param reason A clause after the field's name, such as `has no counterpart`. */
  constructor(field: string, reason: string) {
    super(`${field} ${reason}`);
    this.field = field;
  }
}
