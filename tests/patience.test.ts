/** A model that thinks in silence, longer than servers keep a silent request by default, is waited for. */

import { afterAll, beforeAll, expect, test } from 'bun:test';
import { type ClientRequest, request } from 'node:http';
import { type Deployment, deploy, readTrail } from './rungate.ts';
import { ALL_KINDS, call, KINDS, type Kind } from './runtimes.ts';
import { SCRIPT_HEADER, startUpstream, type Upstream } from './upstream.ts';

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

/** More than the 256 requests that Bun makes at once by itself. */
const MANY = 300;

/** A call that its upstream never answers, by a client that Bun sets no limit. */
function askInVain({ url, token }: Deployment): ClientRequest {
  const { path, body } = KINDS.chat;
  const headers = {
    ...{ authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    [SCRIPT_HEADER]: JSON.stringify({ stall: 'headers' }),
  };
  const asked = request(`${url}${path}`, { method: 'POST', headers, agent: false });
  asked.on('error', () => {});
  asked.end(JSON.stringify(body));
  return asked;
}

test('however many calls wait for a model, the next one is sent', async () => {
  for (const rungate of deployments) {
    const before = upstream.requests.length;
    const waiting = Array.from({ length: MANY }, () => askInVain(rungate));
    await upstream.received(before + MANY - 1);
    expect((await call({ rungate }, 'chat')).status).toBe(200);
    for (const asked of waiting) asked.destroy();
  }
}, 60_000);
