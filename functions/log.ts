/** The log: one JSON object per line on stderr, which never holds a token, a key or a secret. */
import { stderr } from 'node:process';

/** How much is written: each level includes those before it. */
export const LOG_LEVELS = ['silent', 'error', 'warn', 'info', 'debug'] as const;

/** One of {@link LOG_LEVELS}. */
export type LogLevel = (typeof LOG_LEVELS)[number];

/** What a line says besides its message; never a request's or a response's body. */
export type LogFields = Readonly<Record<string, unknown>>;

/** Writes a line at a level, or nothing if the level is not enabled. */
export type LogLine = (message: string, fields?: LogFields) => void;

/** A log with one function per level. */
export type Log = Readonly<Record<Exclude<LogLevel, 'silent'>, LogLine>>;

/** What stands where a secret was. */
export const REDACTED = '[redacted]';

const MAX_DEPTH = 6;
const MAX_ITEMS = 100;
const MAX_CHARS = 4096;
const RESERVED = new Set(['time', 'level', 'message']);

/** Names whose value is a secret, whatever it looks like. */
const SECRET_NAME =
  /^(?:proxy-?)?authorization$|cookie|api-?key|secret|password|passwd|credential|private-?key|master-?keys?$|(?:^|-)(?:token|signature|key)$|^body$/;

/** Shapes of secrets inside any text: ours, the providers', and anything that follows its name. */
const SECRET_TEXT = [
  /rg_[a-z]{2,12}_[A-Za-z0-9]+|\brg_[A-Za-z0-9_-]{4,}/g,
  /[A-Za-z0-9+/]{43}=/g,
  /(?<![A-Za-z0-9])(?:sk|pk|rk|whsec|gsk|xai|ghp|gho|github_pat|glpat|xox[a-z])[-_][A-Za-z0-9_-]{6,}[=]{0,2}/g,
  /\bAIza[A-Za-z0-9_-]{10,}/g,
  /\bA[KS]IA[A-Z0-9]{12,}/g,
  /\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?/g,
  /-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)/g,
];
const SECRET_AFTER = [
  /\b((?:bearer|basic)[\s:=]+)[^\s"',;]+/gi,
  /((?:api[-_]?key|authorization|secret|password|access[-_]?token|auth[-_]?token|set-cookie|cookie)[\\"']*\s*[:=]\s*[\\"']*)(?!(?:bearer|basic)\b)[^\s"',;&]+/gi,
  /([?&](?:key|token|sig|signature|code)=)[^\s"'&#]+/gi,
  /([a-z][a-z0-9+.-]*:\/\/)[^\s/@"']+(?=@)/gi,
];

/**
 * Makes a log.
 *
 * @param write Takes one line with its line feed; stderr by default.
 * @param now The time in Unix milliseconds.
 */
export function makeLog(
  level: LogLevel,
  write: (line: string) => void = (line) => void stderr.write(line),
  now: () => number = Date.now,
): Log {
  const enabled = LOG_LEVELS.indexOf(level);
  const lineAt = (name: LogLevel): LogLine => {
    if (LOG_LEVELS.indexOf(name) > enabled) return () => {};
    return (message, fields) => write(formatLine(name, now(), message, fields));
  };
  return {
    error: lineAt('error'),
    warn: lineAt('warn'),
    info: lineAt('info'),
    debug: lineAt('debug'),
  };
}

/** Tells the operator in plain words what he has to mend before there is anything to log. */
export function printPlainly(text: string): void {
  stderr.write(`rungate: ${redactText(text)}\n`);
}

/** Logging must never be what fails, so that a value that can't be read is left out. */
function formatLine(level: LogLevel, millis: number, message: string, fields?: LogFields): string {
  const head = { time: new Date(millis).toISOString(), level, message: redactText(message) };
  try {
    const extra = Object.entries(redact(fields ?? {}) as object);
    const rest = Object.fromEntries(extra.filter(([name]) => !RESERVED.has(name)));
    return `${JSON.stringify({ ...head, ...rest })}\n`;
  } catch {
    return `${JSON.stringify({ ...head, fields: 'unreadable' })}\n`;
  }
}

/**
 * A copy of any value that is safe to write: secrets are replaced wherever they are, by the name
 * of their field or by their shape; errors become objects; depth, width and length are limited.
 */
export function redact(value: unknown): unknown {
  return redactValue(value, 0);
}

function redactValue(value: unknown, depth: number): unknown {
  if (typeof value === 'string') return redactText(value);
  if (typeof value === 'bigint' || typeof value === 'symbol') return redactText(String(value));
  if (typeof value === 'function') return '[function]';
  if (typeof value !== 'object' || value === null) return value;
  if (depth >= MAX_DEPTH) return '[deep]';
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) return '[bytes]';
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? null : value.toISOString();
  if (value instanceof URL) return redactText(value.href);
  if (value instanceof Error) return redactError(value, depth);
  if (value instanceof Map || value instanceof Headers) {
    return redactEntries([...value].slice(0, MAX_ITEMS), depth);
  }
  if (Array.isArray(value) || value instanceof Set) {
    return redactItems([...value].slice(0, MAX_ITEMS), depth);
  }
  return redactEntries(Object.entries(value).slice(0, MAX_ITEMS), depth);
}

/** Headers and arguments are often written as pairs, so that a name can stand beside its value. */
function redactItems(items: unknown[], depth: number): unknown[] {
  const [name] = items;
  if (items.length === 2 && typeof name === 'string' && isSecretName(name)) {
    return [redactText(name), REDACTED];
  }
  return items.map((item) => redactValue(item, depth + 1));
}

function redactEntries(entries: [unknown, unknown][], depth: number): Record<string, unknown> {
  const copy: [string, unknown][] = entries.map(([key, value]) => {
    const name = String(key);
    const isSecret = isSecretName(name) && value !== undefined && value !== null;
    return [redactText(name), isSecret ? REDACTED : redactValue(value, depth + 1)];
  });
  return Object.fromEntries(copy);
}

function redactError(error: Error, depth: number): Record<string, unknown> {
  const { name, message, stack, cause } = error;
  const own = Object.entries(error).filter(([key]) => key !== 'cause');
  const known = { name, message, stack, ...Object.fromEntries(own) };
  const all = cause === undefined ? known : { ...known, cause };
  return redactEntries(Object.entries(all).slice(0, MAX_ITEMS), depth);
}

function isSecretName(name: string): boolean {
  if (name.length > 100) return true;
  return SECRET_NAME.test(
    name
      .replace(/([a-z])([A-Z])/g, '$1-$2')
      .replaceAll('_', '-')
      .toLowerCase(),
  );
}

/** Cut at a space, so that no pattern sees megabytes and no half of a secret is left over. */
function redactText(text: string): string {
  let clean = text.length > MAX_CHARS ? text.slice(0, MAX_CHARS).replace(/\S*$/, '…') : text;
  for (const shape of SECRET_TEXT) clean = clean.replace(shape, REDACTED);
  for (const shape of SECRET_AFTER) clean = clean.replace(shape, `$1${REDACTED}`);
  return clean;
}
