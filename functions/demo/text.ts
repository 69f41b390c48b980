/** Text of the built-in upstream: what a model reads of it, what it costs, and how it is cut. */

import { isMembers } from './body.ts';

const MAX_QUOTE = 200;
const BYTES_PER_TOKEN = 4;

/** Members whose text is media or data rather than words that a model reads. */
const MEDIA = new Set(['data', 'file', 'file_data', 'image_url', 'input_audio', 'source']);

/** Tokens of everything in a JSON value that a model would read: a quarter of its UTF-8 bytes. */
export function countTokens(value: unknown): number {
  let bytes = 0;
  const rest: unknown[] = [value];
  while (rest.length > 0) {
    const next = rest.pop();
    if (typeof next === 'string') bytes += byteLength(next);
    else if (Array.isArray(next)) for (const entry of next) rest.push(entry);
    else if (isMembers(next)) {
      for (const [name, member] of Object.entries(next)) {
        if (!MEDIA.has(name)) rest.push(name, member);
      }
    } else bytes += 1;
  }
  return tokensOf(bytes);
}

/** The words of a content: a string, or the `text` of each part, by lines. */
export function textOf(content: unknown): string {
  if (typeof content === 'string') return content;
  const parts = Array.isArray(content) ? content.filter(isMembers) : [];
  return parts.flatMap(({ text }) => (typeof text === 'string' ? [text] : [])).join('\n');
}

/** A text in quotation marks, shortened to 200 characters. */
export function quote(text: string): string {
  const characters = [...text.slice(0, 2 * MAX_QUOTE)];
  const whole = characters.length <= MAX_QUOTE && text.length <= 2 * MAX_QUOTE;
  return `"${characters.slice(0, MAX_QUOTE).join('')}${whole ? '' : '…'}"`;
}

/** The start of a text that costs at most `limit` tokens, no character divided. */
export function cutText(text: string, limit: number): string {
  let bytes = 0;
  let kept = '';
  for (const character of text) {
    bytes += byteLength(character);
    if (bytes > limit * BYTES_PER_TOKEN) break;
    kept += character;
  }
  return kept;
}

/** A text in pieces of up to `size` characters, no character divided, at least one piece. */
export function pieces(text: string, size: number): string[] {
  const characters = [...text];
  const cut: string[] = [];
  for (let at = 0; at < characters.length; at += size) {
    cut.push(characters.slice(at, at + size).join(''));
  }
  return cut.length > 0 ? cut : [''];
}

/** Tokens of UTF-8 text of so many bytes. */
export function tokensOf(bytes: number): number {
  return Math.ceil(bytes / BYTES_PER_TOKEN);
}

/** The length of a text in bytes of UTF-8. */
export function byteLength(text: string): number {
  return new TextEncoder().encode(text).length;
}
