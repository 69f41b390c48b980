/** One deployment per runtime for a file of tests, and plain calls to it. */

import { afterAll, beforeAll } from 'bun:test';
import { type Deployment, deploy, type Runtime, type Wanted } from './rungate.ts';
import { startUpstream, type Upstream } from './upstream.ts';
import { type Witness, watch } from './witness.ts';

/** What the tests of one runtime share; there once they run. */
export interface Stage {
  readonly runtime: Runtime;
  readonly upstream: Upstream;
  readonly rungate: Deployment;
  /** In front of the deployment. */
  readonly witness: Witness;
}

/** Longer than a process that does not end by itself is given. */
const STOP_LIMIT_MS = 20_000;

const RUNTIMES: readonly Runtime[] = ['bun', 'deno'];

/**
 * A stage per runtime for the file that asks; their members are there once its tests run. All are
 * stopped when the file's tests have ended.
 */
export function stages(wanted: Omit<Wanted, 'runtime' | 'upstreamUrl'>): readonly Stage[] {
  const all = RUNTIMES.map((runtime) => ({ runtime }) as Mutable<Stage>);
  beforeAll(async () => {
    await Promise.all(all.map((stage) => furnish(stage, wanted)));
  });
  afterAll(async () => {
    await Promise.all(all.map(dismantle));
  }, STOP_LIMIT_MS);
  return all;
}

type Mutable<T> = { -readonly [key in keyof T]: T[key] };

async function dismantle({ witness, rungate, upstream }: Partial<Stage>): Promise<void> {
  await witness?.stop();
  await rungate?.stop();
  await upstream?.stop();
}

async function furnish(stage: Mutable<Stage>, wanted: Wanted): Promise<void> {
  stage.upstream = await startUpstream();
  const { runtime } = stage;
  stage.rungate = await deploy({ ...wanted, runtime, upstreamUrl: stage.upstream.url });
  stage.witness = await watch(stage.rungate.url);
}

/** The endpoints that generate text: where they are, and the least that they take. */
export const KINDS = {
  chat: {
    path: '/v1/chat/completions',
    headers: {},
    body: {
      ...{ model: 'test-model', max_tokens: 50 },
      messages: [{ role: 'user', content: 'hello' }],
    },
  },
  responses: {
    path: '/v1/responses',
    headers: {},
    body: { model: 'test-model', max_output_tokens: 50, input: 'hello' },
  },
  messages: {
    path: '/v1/messages',
    headers: { 'anthropic-version': '2023-06-01' },
    body: {
      ...{ model: 'test-model', max_tokens: 50 },
      messages: [{ role: 'user', content: 'hello' }],
    },
  },
} as const;

export type Kind = keyof typeof KINDS;

/** The names of {@link KINDS}. */
export const ALL_KINDS = Object.keys(KINDS) as Kind[];

/** How a call differs from the least one. */
export interface CallOptions {
  readonly run?: string;
  readonly token?: string;
  /** Merged into the body. */
  readonly members?: Readonly<Record<string, unknown>>;
  /** The whole body, in place of one made of members. */
  readonly body?: string | Uint8Array<ArrayBuffer>;
  readonly headers?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
}

/** Makes one call with nothing in between that could change it. */
export function call(
  { rungate }: Pick<Stage, 'rungate'>,
  kind: Kind,
  options: CallOptions = {},
): Promise<Response> {
  const { path, headers, body } = KINDS[kind];
  const { run, token = rungate.token, members, signal } = options;
  return fetch(`${rungate.url}${run ? `/r/${run}` : ''}${path}`, {
    method: 'POST',
    headers: {
      ...{ authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      ...headers,
      ...options.headers,
    },
    body: options.body ?? JSON.stringify({ ...body, ...members }),
    redirect: 'manual',
    ...(signal && { signal }),
  });
}
