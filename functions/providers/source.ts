/** Where the parts of a JSON text stand, so that they can be shown as they were written. */

import type { Json, JsonObject } from '../../schema/json.ts';

const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/**
 * The source text of every object and array of a value.
 *
 * @param text Strict JSON: keys do not repeat, and the depth is limited.
 * @param value What `text` parses to.
 */
export function sourcesOf(text: string, value: JsonObject): ReadonlyMap<Json, string> {
  const sources = new Map<Json, string>();
  new Walk(text, sources).value(value);
  return sources;
}

/** One pass over a text along with the value that it parses to. */
class Walk {
  readonly #text: string;
  readonly #sources: Map<Json, string>;
  #at = 0;

  constructor(text: string, sources: Map<Json, string>) {
    this.#text = text;
    this.#sources = sources;
  }

  value(value: Json): void {
    this.#skipTo(/[^\s,:]/g);
    if (typeof value === 'string') this.#string();
    else if (typeof value !== 'object' || value === null) this.#skipTo(/[\s,\]}]|$/g);
    else this.#container(value);
  }

  #container(value: Json[] | JsonObject): void {
    const start = this.#at++;
    if (Array.isArray(value)) for (const element of value) this.value(element);
    else this.#members(value);
    this.#skipTo(/[\]}]/g);
    this.#at++;
    this.#sources.set(value, this.#text.slice(start, this.#at));
  }

  #members(value: JsonObject): void {
    // The text's own order, which is not that of the object where keys look like numbers.
    for (let left = Object.keys(value).length; left > 0; left--) {
      this.#skipTo(/"/g);
      const start = this.#at;
      this.#string();
      this.value(value[JSON.parse(this.#text.slice(start, this.#at))]!);
    }
  }

  /** Passes a string, from its opening quote. */
  #string(): void {
    const text = this.#text;
    for (let at = this.#at + 1; ; at++) {
      const code = text.charCodeAt(at);
      if (code === BACKSLASH) at++;
      else if (code === QUOTE || Number.isNaN(code)) {
        this.#at = at + 1;
        return;
      }
    }
  }

  #skipTo(pattern: RegExp): void {
    pattern.lastIndex = this.#at;
    this.#at = pattern.exec(this.#text)?.index ?? this.#text.length;
  }
}
