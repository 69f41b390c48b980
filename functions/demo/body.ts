/** Reading a request to the built-in upstream: a bounded JSON body, checked, with its own key. */

import { z } from 'zod';
import { concat } from '../../schema/bytes.ts';
import { Fault } from './fault.ts';

const MAX_BODY_BYTES = 32 * 1024 * 1024;
const MAX_DEPTH = 512;

/** An object of unknown members, as JSON has them. */
export type Members = Readonly<Record<string, unknown>>;

/** A body that passed its schema, and 16 hexadecimal digits that stand for its exact bytes. */
export interface Body<T> {
  readonly members: T;
  readonly key: string;
}

/** A list of objects of at most `max` entries. */
export function objects(max: number) {
  return z.array(z.record(z.string(), z.unknown())).max(max);
}

/** A limit on tokens: an integer from 1, or absent. */
export const tokenLimit = z.int().min(1).nullish();

/**
 * Reads a request's JSON body.
 *
 * @throws {Fault} 400 for a body that is not a JSON object or does not fit the schema, 413 for one
 *   of more than 32 MiB.
 */
export async function readBody<T>(request: Request, schema: z.ZodType<T>): Promise<Body<T>> {
  const bytes = await readBytes(request);
  const members = parseObject(bytes);
  const checked = schema.safeParse(members);
  if (!checked.success) throw explain(checked.error.issues[0], members);
  return { members: checked.data, key: keyOf(bytes) };
}

async function readBytes(request: Request): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  const reader = request.body?.getReader();
  for (let read = await reader?.read(); read && !read.done; read = await reader?.read()) {
    length += read.value.length;
    if (length > MAX_BODY_BYTES) {
      await reader?.cancel();
      throw new Fault(413, `The request is larger than ${MAX_BODY_BYTES} bytes.`);
    }
    chunks.push(read.value);
  }
  return concat(chunks);
}

function parseObject(bytes: Uint8Array): Members {
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    const value: unknown = isShallow(bytes) && JSON.parse(text);
    if (isMembers(value)) return value;
  } catch {
    // Whatever is wrong with the bytes, the answer is the one below.
  }
  throw new Fault(400, 'We could not parse the JSON body of your request.');
}

const QUOTE = 0x22;
const ESCAPE = 0x5c;
/** Braces and brackets differ in this bit alone. */
const BRACE = 0x20;
const OPEN = 0x5b;
const CLOSE = 0x5d;

/** Whether nothing nests deeper than 512: more would exhaust the stack when it is written back. */
function isShallow(bytes: Uint8Array): boolean {
  let depth = 0;
  let quoted = false;
  for (let at = 0; at < bytes.length && depth <= MAX_DEPTH; at++) {
    const byte = bytes[at] ?? 0;
    if (quoted && byte === ESCAPE) at++;
    else if (byte === QUOTE) quoted = !quoted;
    else if (!quoted && (byte & ~BRACE) === OPEN) depth++;
    else if (!quoted && (byte & ~BRACE) === CLOSE) depth--;
  }
  return depth <= MAX_DEPTH;
}

/** Whether a value is a JSON object (not null, not an array). */
export function isMembers(value: unknown): value is Members {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function explain(issue: z.core.$ZodIssue | undefined, members: Members): Fault {
  const [first] = issue?.path ?? [];
  const param = issue?.path.join('.') ?? null;
  return issue?.path.length === 1 && !(String(first) in members)
    ? new Fault(400, `Missing required parameter: '${param}'.`, param, 'missing_required_parameter')
    : new Fault(400, `Invalid '${param}': ${issue?.message}.`, param, 'invalid_value');
}

/**
 * Sixteen hexadecimal digits for a sequence of bytes: two rounds of 32-bit FNV-1a from different
 * starts. It names things and keeps nothing safe.
 */
export function keyOf(bytes: Uint8Array): string {
  let low = 0x811c9dc5;
  let high = 0x9e3779b9;
  for (const byte of bytes) {
    low = Math.imul(low ^ byte, 0x01000193);
    high = Math.imul(high ^ byte, 0x01000193) + 0x7f4a7c15;
  }
  return [high, low].map((half) => (half >>> 0).toString(16).padStart(8, '0')).join('');
}
