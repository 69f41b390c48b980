/** Laying out JSON for people: every token as it was written, so that nothing they read is changed. */

const OPENERS = '{[';
const CLOSERS = '}]';
/** What a new line follows. */
const BREAKS = '{[,';
const SPACES = ' \t\r\n';

/**
 * Breaks a JSON text into indented lines. Unlike parsing and printing it anew, this keeps the digits
 * of numbers, the escapes of strings and keys that are repeated.
 *
 * @returns The text itself where it is not JSON.
 */
export function indentJson(text: string): string {
  if (!isJson(text)) return text;
  let out = '';
  let depth = 0;
  let last = '';
  const line = () => `\n${'  '.repeat(depth)}`;
  for (let at = 0; at < text.length; at++) {
    const character = text.charAt(at);
    if (SPACES.includes(character)) continue;
    if (last !== '' && BREAKS.includes(last) && !CLOSERS.includes(character)) out += line();
    if (character === '"') {
      const end = closeOf(text, at);
      out += text.slice(at, end + 1);
      at = end;
    } else if (CLOSERS.includes(character)) {
      depth--;
      out += last !== '' && OPENERS.includes(last) ? character : line() + character;
    } else {
      out += character === ':' ? ': ' : character;
      if (OPENERS.includes(character)) depth++;
    }
    last = character;
  }
  return out;
}

function isJson(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

/** Where the string that begins at `start` has its closing quote. */
function closeOf(text: string, start: number): number {
  let at = start + 1;
  while (text[at] !== '"') at += text[at] === '\\' ? 2 : 1;
  return at;
}
