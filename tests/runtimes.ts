/** One deployment per runtime for a file of tests, and plain calls to it. */

import { afterAll, beforeAll, describe } from 'bun:test';
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

const RUNTIMES: readonly Runtime[] = ['bun', 'deno'];

/** Defines the same tests for every runtime, each on a deployment that is stopped in the end. */
export function onEachRuntime(
  wanted: Omit<Wanted, 'runtime' | 'upstreamUrl'>,
  define: (stage: Stage) => void,
): void {
  for (const runtime of RUNTIMES) {
    describe(`on ${runtime}`, () => {
      const stage = { runtime } as { -readonly [key in keyof Stage]: Stage[key] };
      beforeAll(async () => {
        stage.upstream = await startUpstream();
        stage.rungate = await deploy({ ...wanted, runtime, upstreamUrl: stage.upstream.url });
        stage.witness = await watch(stage.rungate.url);
      });
      afterAll(async () => {
        await stage.witness?.stop();
        await stage.rungate?.stop();
        await stage.upstream?.stop();
      });
      define(stage);
    });
  }
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
