/** A server that is measured, as a process: `--stage <name> --upstream <url>`. */

import { parseArgs } from 'node:util';
import { GATED, governed, LIMITED } from './governed.ts';
import type { Stage, StageOptions } from './stage.ts';
import { writesAlone } from './writes.ts';

/**
 * How much of a governed call runs, by name. `bare` is the yardstick: the request goes upstream
 * and the answer comes back as it is, body as a stream.
 */
const STAGES: Readonly<Record<string, (options: StageOptions) => Stage | Promise<Stage>>> = {
  bare: ({ upstream }) => ({
    fetch(request) {
      const { pathname, search } = new URL(request.url);
      const headers = new Headers(request.headers);
      headers.delete('host');
      return fetch(new URL(pathname + search, upstream), {
        method: request.method,
        headers,
        body: request.body,
        redirect: 'manual',
        decompress: false,
      });
    },
  }),
  writes: writesAlone,
  edge: governed('edge'),
  authenticate: governed('authenticate'),
  read: governed('read'),
  run: governed('run'),
  decide: governed('decide'),
  gate: governed('gate', GATED),
  hold: governed('hold'),
  forward: governed('forward'),
  limit: governed('hold', LIMITED),
  rungate: governed('whole'),
  limited: governed('whole', LIMITED),
  gated: governed('whole', GATED),
};

const { values } = parseArgs({
  options: {
    stage: { type: 'string' },
    upstream: { type: 'string' },
    synchronous: { type: 'string', default: 'full' },
  },
});
const start = STAGES[values.stage ?? ''];
if (!start || !values.upstream) {
  console.error(`--upstream and --stage are needed; stages: ${Object.keys(STAGES).join(', ')}`);
  process.exit(2);
}
const synchronous = values.synchronous === 'normal' ? 'normal' : 'full';
const stage = await start({ upstream: new URL(values.upstream), synchronous });
const server = Bun.serve({
  port: 0,
  hostname: '127.0.0.1',
  idleTimeout: 0,
  fetch: (request, server) => stage.fetch(request, { address: server.requestIP(request)?.address }),
});

async function close(): Promise<void> {
  await stage.close?.();
  process.exit();
}

process.on('SIGTERM', close);
process.stdin.on('end', close).resume();
console.log(`listening on ${server.url.origin} ${JSON.stringify(stage.headers ?? {})}`);
