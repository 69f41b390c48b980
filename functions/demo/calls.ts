/** The tool calls that a user's text asks for: `call NAME {json}`, several joined by ` and `. */

const MAX_CALLS = 32;
/** Characters that are searched for calls: they bound the arguments as well. */
const MAX_ASKED = 65_536;

/** A tool that the caller runs. A custom one takes free text where a function takes JSON. */
export interface Tool {
  readonly name: string;
  readonly custom: boolean;
}

/** A proposed call; `input` is the text of a JSON object, or free text for a custom tool. */
export interface Call extends Tool {
  readonly input: string;
}

const NAME = String.raw`([\w.:/-]{0,127}\w)`;

/** The calls of declared tools that a text asks for, in its order, at most 32. */
export function readCalls(text: string, tools: readonly Tool[]): Call[] {
  const asked = text.slice(0, MAX_ASKED);
  const declared = new Map(tools.map((tool) => [tool.name, tool]));
  const first = new RegExp(String.raw`\b[Cc]all\s{1,9}${NAME}`, 'g');
  const next = new RegExp(String.raw`\s{1,9}and\s{1,9}(?:call\s{1,9})?${NAME}`, 'y');
  const calls: Call[] = [];
  let found = first.exec(asked);
  while (found && calls.length < MAX_CALLS) {
    let end = found.index + found[0].length;
    const tool = declared.get(found[1] ?? '');
    if (tool) {
      const input = readObject(asked, end);
      calls.push({ ...tool, input: input?.text ?? '{}' });
      end = input?.end ?? end;
    }
    next.lastIndex = first.lastIndex = end;
    found = (tool && next.exec(asked)) || first.exec(asked);
  }
  return calls;
}

/** The JSON object that starts after white space at `from`, as it is written. */
function readObject(text: string, from: number): { text: string; end: number } | undefined {
  const start = from + (/^\s{0,9}/.exec(text.slice(from, from + 9))?.[0].length ?? 0);
  if (text[start] !== '{') return undefined;
  let depth = 0;
  let quoted = false;
  for (let at = start; at < text.length; at++) {
    const character = text[at];
    if (quoted && character === '\\') at++;
    else if (character === '"') quoted = !quoted;
    else if (!quoted && character === '{') depth++;
    else if (!quoted && character === '}' && --depth === 0) return objectAt(text, start, at + 1);
  }
  return undefined;
}

function objectAt(text: string, start: number, end: number) {
  try {
    const object = text.slice(start, end);
    JSON.parse(object);
    return { text: object, end };
  } catch {
    return undefined;
  }
}
