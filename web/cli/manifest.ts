/** The file that `rungate apply` reads: what an org should have, checked before anything is done. */

import { Buffer } from 'node:buffer';
import { createReadStream } from 'node:fs';
import { stdin } from 'node:process';
import { z } from 'zod';
import { MAX_WEBHOOKS } from '../../db/webhooks.ts';
import { type AllowList, judgeUrl } from '../../schema/address.ts';
import { subscriptionSchema } from '../../schema/events.ts';
import { InvalidJson, type JsonObject, parseStrict } from '../../schema/json.ts';
import { choiceSchema, modelSchema, nameSchema } from '../../schema/names.ts';
import { dollars, judgePolicy, type PolicyDocument } from '../../schema/policy.ts';
import { formatPlace, type Problem, problemsOf } from '../../schema/problems.ts';
import { provider as findProvider, PROVIDERS, type Provider } from '../../schema/providers.ts';
import { SERVICE_TIERS } from '../../schema/rules/price.ts';
import { baseUrlOf, judgeBaseUrl, judgeSecret } from '../../schema/rules/provider-key.ts';
import { EXIT_USAGE, Failure } from './failure.ts';

const MAX_FILE_BYTES = 4 * 1024 * 1024;
const MAX_LIST = 1_000;
const MAX_WEBHOOK_URL_CHARS = 2_000;
const MAX_SECRET_CHARS = 4_096;
const MAX_SHOWN_PROBLEMS = 5;

const providerName = z.string().refine((text) => findProvider(text) !== undefined, {
  error: `must be one of ${PROVIDERS.map((row) => row.name).join(', ')}`,
});

const variable = z
  .string()
  .regex(/^[A-Za-z_][A-Za-z0-9_]{0,127}$/, 'must be the name of an environment variable');

const secretSource = z.union(
  [
    z.strictObject({ env: variable }),
    z.strictObject({ value: z.string().min(1).max(MAX_SECRET_CHARS) }),
  ],
  { error: 'must be {"env": "NAME"}, the name of an environment variable, or {"value": "…"}' },
);

const providerKey = z.strictObject({
  name: nameSchema,
  provider: providerName,
  baseUrl: z.string().optional(),
  /** The tier of service that calls get which ask for none. */
  serviceTier: z.enum(SERVICE_TIERS).default('default'),
  secret: secretSource.optional(),
});

const price = z.strictObject({
  model: modelSchema,
  inputPerMillion: dollars,
  outputPerMillion: dollars,
  contextWindow: z.int().min(1).max(100_000_000).optional(),
  cacheReadPerMillion: dollars.optional(),
  cacheWritePerMillion: dollars.optional(),
});

const policy = z.strictObject({
  name: nameSchema,
  document: z.custom<PolicyDocument>().superRefine(checkPolicy),
});

const agent = z.strictObject({
  name: nameSchema,
  policy: nameSchema,
  /** The version to keep to; without it, the newest. */
  policyVersion: z.int().min(1).max(999_999_999).optional(),
  /** What callers may choose instead with `x-rungate-policy`. */
  policies: z.array(choiceSchema).max(50).default([]),
});

const webhook = z.strictObject({
  url: z.string().max(MAX_WEBHOOK_URL_CHARS),
  events: subscriptionSchema.default(['*']),
  description: z.string().max(300).optional(),
});

const manifestSchema = z.strictObject({
  providerKeys: z.array(providerKey).max(MAX_LIST).default([]),
  prices: z.array(price).max(MAX_LIST).default([]),
  policies: z.array(policy).max(MAX_LIST).default([]),
  agents: z.array(agent).max(MAX_LIST).default([]),
  webhooks: z.array(webhook).max(MAX_WEBHOOKS).default([]),
});

type Parsed = z.output<typeof manifestSchema>;
type SecretSource = z.output<typeof secretSource>;

/** A provider key with its default URL filled in and its secret read. */
export interface WantedKey {
  readonly name: string;
  readonly provider: string;
  /** Without a slash at the end; empty for a provider that is built in. */
  readonly baseUrl: string;
  readonly serviceTier: string;
  /** In clear; empty for a provider that takes none. */
  readonly secret: string;
}

/** What an org should have. */
export interface Manifest {
  readonly providerKeys: readonly WantedKey[];
  readonly prices: Parsed['prices'];
  readonly policies: Parsed['policies'];
  readonly agents: Parsed['agents'];
  readonly webhooks: Parsed['webhooks'];
}

/** Where a manifest's secrets come from, and which hosts may be named that are not public. */
export interface Surroundings {
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Undefined where a server will judge which hosts may be named. */
  readonly allow: AllowList | undefined;
}

/**
 * Reads a manifest from a file, or from stdin when the path is `-`.
 *
 * @throws {Failure} when it can't be read, is too large, or is not valid; the message names the
 *   place in the file, and never a value that could be a secret.
 */
export async function readManifest(path: string, surroundings: Surroundings): Promise<Manifest> {
  const parsed = manifestSchema.safeParse(parseFile(path, await readBytes(path)));
  if (!parsed.success) {
    throw invalidManifest(path, problemsOf(parsed.error.issues).map(formatProblem));
  }
  const problems = findRepeats(parsed.data);
  const providerKeys = parsed.data.providerKeys.map((key, at) =>
    completeKey(key, surroundings, (problem) => problems.push(`providerKeys[${at}]${problem}`)),
  );
  for (const [at, { url }] of parsed.data.webhooks.entries()) {
    const problem = judgeUrl(url, surroundings.allow ?? allowHostOf(url));
    if (problem) problems.push(`webhooks[${at}].url: ${problem}`);
  }
  if (problems.length > 0) throw invalidManifest(path, problems);
  return { ...parsed.data, providerKeys };
}

/** The failure that tells what is wrong in a manifest, the first few problems of it. */
export function invalidManifest(path: string, problems: readonly string[]): Failure {
  const shown = problems.slice(0, MAX_SHOWN_PROBLEMS).join('; ');
  const more = problems.length - MAX_SHOWN_PROBLEMS;
  const rest = more > 0 ? `; and ${more} more` : '';
  return new Failure(EXIT_USAGE, `${titleOf(path)} is not valid: ${shown}${rest}.`);
}

function titleOf(path: string): string {
  return path === '-' ? 'The input' : path;
}

async function readBytes(path: string): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  try {
    for await (const chunk of path === '-' ? stdin : createReadStream(path)) {
      chunks.push(chunk);
      length += chunk.length;
      if (length > MAX_FILE_BYTES) break;
    }
  } catch (error) {
    const { code = 'an error' } = error as { code?: string };
    throw new Failure(EXIT_USAGE, `${titleOf(path)} can't be read (${code}).`);
  }
  if (length > MAX_FILE_BYTES) {
    throw new Failure(EXIT_USAGE, `${titleOf(path)} is larger than ${MAX_FILE_BYTES} bytes.`);
  }
  return Buffer.concat(chunks);
}

function parseFile(path: string, bytes: Uint8Array): JsonObject {
  try {
    return parseStrict(bytes, new Set()).value;
  } catch (error) {
    if (!(error instanceof InvalidJson)) throw error;
    throw new Failure(EXIT_USAGE, error.message.replace('The body', titleOf(path)));
  }
}

/** The document is kept as it is written; what the schema makes of it is made again on reading. */
function checkPolicy(document: unknown, context: z.core.$RefinementCtx): void {
  for (const { path, message } of judgePolicy(document)) {
    context.addIssue({ code: 'custom', path: [...path], message });
  }
}

function formatProblem({ path, message }: Problem): string {
  return `${formatPlace(path) || 'the file'}: ${message}`;
}

function findRepeats(manifest: Parsed): string[] {
  const names: [string, string, string[]][] = [
    ['providerKeys', 'name', manifest.providerKeys.map((each) => each.name)],
    ['prices', 'model', manifest.prices.map((each) => each.model)],
    ['policies', 'name', manifest.policies.map((each) => each.name)],
    ['agents', 'name', manifest.agents.map((each) => each.name)],
    ['webhooks', 'url', manifest.webhooks.map((each) => each.url)],
  ];
  return names.flatMap(([section, field, values]) =>
    values.flatMap((value, at) =>
      values.indexOf(value) < at ? [`${section}[${at}].${field}: repeats "${value}"`] : [],
    ),
  );
}

/** `report` takes what is wrong, beginning with the field's path within the key. */
function completeKey(
  key: Parsed['providerKeys'][number],
  { env, allow }: Surroundings,
  report: (problem: string) => void,
): WantedKey {
  const provider = findProvider(key.provider);
  const allowed = allow ?? allowHostOf(key.baseUrl ?? '');
  const urlProblem = provider && judgeBaseUrl(provider, key.baseUrl, allowed);
  if (urlProblem) report(`.baseUrl: ${urlProblem}`);
  const secret = readSecret(key.secret, env);
  const secretProblem = provider && judgeSource(provider, key.secret, secret);
  if (secretProblem) report(`.secret${secretProblem}`);
  const baseUrl = baseUrlOf(provider, key.baseUrl);
  return { ...key, baseUrl, secret: secret ?? '' };
}

function allowHostOf(url: string): AllowList {
  return { hosts: new Set(URL.canParse(url) ? [new URL(url).hostname] : []), cidrs: [] };
}

function readSecret(
  source: SecretSource | undefined,
  env: Surroundings['env'],
): string | undefined {
  if (source === undefined) return undefined;
  return 'env' in source ? env[source.env] || undefined : source.value;
}

function judgeSource(
  provider: Provider,
  source: SecretSource | undefined,
  secret: string | undefined,
): string | undefined {
  if (source === undefined) {
    return provider.auth === 'none' ? undefined : ': is needed for this provider';
  }
  if (secret === undefined) {
    return 'env' in source ? `.env: the environment has no ${source.env}` : ': is empty';
  }
  const problem = judgeSecret(provider, secret);
  return problem && `: ${problem}`;
}
