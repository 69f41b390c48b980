/** A model that thinks in silence, longer than servers keep a silent request by default, is waited for. */

import { afterAll, beforeAll, expect, test } from 'bun:test';
import { type Deployment, deploy, readTrail } from './rungate.ts';
import { ALL_KINDS, call, type Kind } from './runtimes.ts';
import { startUpstream, type Upstream } from './upstream.ts';

/** Bun ends a request after 10 s in which nothing was sent, and may take some more to notice. */
const SILENCE_MS = 16_000;

const CHUNKS = [
  'data: {"model":"test-model","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',
  'data: [DONE]\n\n',
];

let upstream: Upstream;
let deployments: readonly Deployment[];

beforeAll(async () => {
  upstream = await startUpstream();
  const upstreamUrl = upstream.url;
  deployments = await Promise.all([
    deploy({ runtime: 'bun', upstreamUrl }),
    deploy({ runtime: 'deno', upstreamUrl }),
  ]);
});

afterAll(async () => {
  await Promise.all((deployments ?? []).map((deployment) => deployment.stop()));
  await upstream?.stop();
});

test('silence before the headers and in the middle of a stream ends no call', async () => {
  const waits = deployments.flatMap((rungate) => {
    const ask = async (kind: Kind, stream: boolean, script: object) => {
      const run = `${kind}-${stream}`;
      const members = stream ? { stream, stream_options: { include_usage: true } } : {};
      const headers = { 'x-upstream-script': JSON.stringify(script) };
      const response = await call({ rungate }, kind, { run, members, headers });
      return { run, rungate, status: response.status, text: await response.text() };
    };
    const late = ALL_KINDS.map((kind) => ask(kind, false, { delayMs: SILENCE_MS }));
    return [...late, ask('chat', true, { chunks: CHUNKS, chunkDelayMs: SILENCE_MS })];
  });
  for (const { run, rungate, status, text } of await Promise.all(waits)) {
    expect(status).toBe(200);
    expect(text).toMatch(/heard you say|\[DONE\]\n\n$/);
    expect(await readTrail(rungate, run)).toMatchObject([{ outcome: 'ok', estimated: false }]);
  }
}, 60_000);
