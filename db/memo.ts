/** A bounded memory of what was read; whoever goes by what may have changed since has that checked. */

/** Remembers the `limit` entries that were set last. */
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

  /** Remembers a value, forgetting the one set longest ago where there are too many. */
  set(key: string, value: V): V {
    // What is set anew would otherwise keep its place, and go first however often it is used.
    this.#entries.delete(key);
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
