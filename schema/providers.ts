/** The providers: where each one lives, how it takes a credential, and whose prices are its. */

import type { Dialect } from './errors.ts';

/** An upstream that speaks a known dialect. */
export interface Provider {
  readonly name: string;
  readonly dialects: readonly Dialect[];
  /** With its version, without a slash at the end; absent where each key brings its own. */
  readonly baseUrl?: string;
  readonly auth: 'bearer' | 'x-api-key' | 'none';
  /** The id under which the catalogue prices it; absent where only overrides do. */
  readonly catalogue?: string;
  /** The member that limits a chat's output where the caller sets none. */
  readonly limitKey: 'max_completion_tokens' | 'max_tokens';
  /** Whether streams report usage unasked, and asking is an error or has no effect. */
  readonly streamsUsage: boolean;
  /** Whether it asks before it runs a tool of an MCP server; others may not look at what they are told. */
  readonly asksApproval?: boolean;
}

const host = (name: string, baseUrl: string, more: Partial<Provider> = {}): Provider => ({
  name,
  baseUrl,
  dialects: ['openai'],
  auth: 'bearer',
  catalogue: name,
  limitKey: 'max_tokens',
  streamsUsage: false,
  ...more,
});

const compatible: Provider = {
  name: 'openai-compatible',
  dialects: ['openai'],
  auth: 'bearer',
  limitKey: 'max_tokens',
  streamsUsage: false,
};

const demo: Provider = {
  name: 'demo',
  dialects: ['openai', 'anthropic'],
  auth: 'none',
  catalogue: 'demo',
  limitKey: 'max_completion_tokens',
  streamsUsage: false,
};

/** Every provider; a host that speaks OpenAI's dialect is one row. */
export const PROVIDERS: readonly Provider[] = [
  host('openai', 'https://api.openai.com/v1', {
    limitKey: 'max_completion_tokens',
    asksApproval: true,
  }),
  host('anthropic', 'https://api.anthropic.com/v1', {
    dialects: ['anthropic'],
    auth: 'x-api-key',
    streamsUsage: true,
  }),
  compatible,
  demo,
  host('groq', 'https://api.groq.com/openai/v1', { limitKey: 'max_completion_tokens' }),
  // Refuses stream_options, and sends usage with the last chunk of every stream.
  host('mistral', 'https://api.mistral.ai/v1', { streamsUsage: true }),
  host('deepseek', 'https://api.deepseek.com/v1'),
  host('together', 'https://api.together.xyz/v1'),
  host('fireworks', 'https://api.fireworks.ai/inference/v1'),
  host('openrouter', 'https://openrouter.ai/api/v1'),
  host('x-ai', 'https://api.x.ai/v1', { limitKey: 'max_completion_tokens' }),
  host('google', 'https://generativelanguage.googleapis.com/v1beta/openai'),
  host('cerebras', 'https://api.cerebras.ai/v1', { limitKey: 'max_completion_tokens' }),
];

const byName: ReadonlyMap<string, Provider> = new Map(PROVIDERS.map((row) => [row.name, row]));

/** The provider of that name, undefined where there is none. */
export function provider(name: string): Provider | undefined {
  return byName.get(name);
}

/**
 * The headers that carry a credential to a provider.
 *
 * @param secret The provider's own key, as it was given to us.
 * @returns Pairs of name and value; none for a provider that takes no credential.
 * @throws {RangeError} for a secret that no header can hold (RFC 9110, 5.5).
 */
export function authHeaders(
  provider: Provider,
  secret: string,
): readonly (readonly [name: string, value: string])[] {
  if (provider.auth === 'none') return [];
  if (!/^[\x21-\x7e]{1,4096}$/.test(secret)) {
    throw new RangeError('a provider key is 1 to 4096 visible ASCII characters');
  }
  return provider.auth === 'bearer'
    ? [['authorization', `Bearer ${secret}`]]
    : [['x-api-key', secret]];
}
