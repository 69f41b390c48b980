/** Which run a call belongs to, as the caller says it. */

import { Refusal } from '../errors.ts';
import type { JsonObject } from '../json.ts';

/** A run's name and where the caller gave it. */
export interface RunName {
  readonly name: string;
  readonly source: string;
}

/** The longest name of a run, in characters. */
const MAX_RUN_NAME_LENGTH = 256;

const FIRST_HEADER = 'x-rungate-run-id';

/** Session headers of agents and gateways, the closest to the run first. */
const SESSION_HEADERS = [
  'x-claude-code-session-id',
  'session-id',
  'session_id',
  'thread-id',
  'x-session-id',
  'x-session-affinity',
  'helicone-session-id',
  'x-litellm-session-id',
  'x-portkey-trace-id',
] as const;

/**
 * The run a call names, the first of: Rungate's header, the path, session headers, the trace-id of
 * `traceparent` (W3C Trace Context), the body. `undefined` when it names none, and the agent's
 * idle window decides. People (`user`, `safety_identifier`, `metadata.user_id`) never name a run.
 *
 * @throws {Refusal} `invalid_request` for a name that is too long, holds control characters, or
 *   can't stand in a path.
 */
export function nameRun(
  headers: Headers,
  pathRun: string | undefined,
  body: JsonObject | undefined,
): RunName | undefined {
  const first = headers.get(FIRST_HEADER);
  if (first) return checked(unescaped(decoded(first)), FIRST_HEADER);
  if (pathRun) return checked(pathRun, 'path');
  for (const header of SESSION_HEADERS) {
    const value = headers.get(header);
    if (value) return checked(decoded(value), header);
  }
  const trace = traceId(headers.get('traceparent'));
  if (trace) return { name: trace, source: 'traceparent' };
  return body && nameFromBody(body);
}

/**
 * The run that a body names, for a call that names none beside it.
 *
 * @throws {Refusal} as {@link nameRun} does.
 */
export function nameFromBody(body: JsonObject): RunName | undefined {
  const { metadata, prompt_cache_key: cacheKey } = body;
  if (typeof metadata === 'object' && metadata !== null && !Array.isArray(metadata)) {
    for (const member of ['rungate_run_id', 'session_id'] as const) {
      const value = metadata[member];
      if (typeof value === 'string' && value !== '') return checked(value, `metadata.${member}`);
    }
  }
  if (typeof cacheKey === 'string' && cacheKey !== '') return checked(cacheKey, 'prompt_cache_key');
  return undefined;
}

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** A header's text: runtimes read its bytes as Latin-1, while clients send UTF-8. */
function decoded(value: string): string {
  if (!/[\x80-\xff]/.test(value)) return value;
  try {
    return UTF8.decode(Uint8Array.from(value, (char) => char.charCodeAt(0)));
  } catch {
    return value;
  }
}

/** Without the percent-encoding in which answers name a run. */
function unescaped(name: string): string {
  if (!name.includes('%')) return name;
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}

const TRACEPARENT = /^([\da-f]{2})-([\da-f]{32})-([\da-f]{16})-[\da-f]{2}(-.*)?$/;

/** The trace-id of a `traceparent`; an invalid one is ignored, as its specification asks. */
function traceId(traceparent: string | null): string | undefined {
  const match = traceparent && TRACEPARENT.exec(traceparent);
  if (!match) return undefined;
  const [, version, trace, parent, more] = match;
  // Later versions may have more, this one has not.
  if (version === 'ff' || (version === '00' && more !== undefined)) return undefined;
  return /^0+$/.test(trace!) || /^0+$/.test(parent!) ? undefined : trace;
}

function checked(name: string, source: string): RunName {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
  if (name.length > MAX_RUN_NAME_LENGTH || /[\u0000-\u001f\u007f]/.test(name)) {
    throw new Refusal(
      'invalid_request',
      `The run id in ${source} must have at most ${MAX_RUN_NAME_LENGTH} characters and no control characters.`,
      { field: source },
    );
  }
  if (name === '.' || name === '..') {
    const message = `The run id in ${source} must not be "${name}": a path with it leads elsewhere.`;
    throw new Refusal('invalid_request', message, { field: source });
  }
  return { name, source };
}
