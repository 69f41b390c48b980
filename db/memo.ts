/** A bounded memory for facts that can't change: immutable rows, or rows at a known revision. */

/** Remembers the newest `limit` entries. */
export class Memo<V> {
  readonly #entries = new Map<string, V>();
  readonly #limit: number;

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** What is remembered under a key. */
  get(key: string): V | undefined {
    return this.#entries.get(key);
  }

  /** Remembers a value, forgetting the oldest one where there are too many. */
  set(key: string, value: V): V {
    this.#entries.set(key, value);
    if (this.#entries.size > this.#limit) {
      for (const oldest of this.#entries.keys()) {
        this.#entries.delete(oldest);
        break;
      }
    }
    return value;
  }
}
