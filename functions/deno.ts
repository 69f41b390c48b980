/**
 * The entry for Deno: `deno run --allow-net --allow-env --allow-ffi --allow-sys --allow-read
 * --allow-write functions/deno.ts`.
 */

import { makeApp } from './app.ts';
import { boot, shutDown, within } from './boot.ts';

const SHUTDOWN_LIMIT_MS = 30_000;
/** For the last bytes of what has been settled. */
const LINGER_MS = 3_000;

const services = await boot();
const { config, log } = services;
const answer = makeApp(services);
const server = Deno.serve(
  {
    hostname: config.host,
    port: config.port,
    onListen: ({ hostname, port }) => log.info('serving', { url: `http://${hostname}:${port}` }),
  },
  (request, { remoteAddr }) =>
    answer(request, { address: 'hostname' in remoteAddr ? remoteAddr.hostname : undefined }),
);

async function stop(signal: string): Promise<void> {
  log.info('stopping; calls in flight may end', { signal });
  // A call is settled before its last byte is sent, and holds nothing before it is decided on.
  const drained = server.shutdown();
  await services.flights.drain(SHUTDOWN_LIMIT_MS);
  await within(drained, LINGER_MS);
  await shutDown(services, 0);
  Deno.exit(0);
}

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  Deno.addSignalListener(signal, () => void stop(signal));
}
