/**
 * The entry for Deno: `deno run --allow-net --allow-env --allow-ffi --allow-sys --allow-read
 * --allow-write functions/deno.ts`.
 */

import { makeApp } from './app.ts';
import { bootOrExit, shutDown } from './boot.ts';
import { failOutside } from './refuse.ts';
import { startTicking, tick } from './scheduled.ts';

const SHUTDOWN_LIMIT_MS = 30_000;

const services = await bootOrExit();
const { config, log } = services;
const answer = makeApp(services);
const server = Deno.serve(
  {
    hostname: config.host,
    port: config.port,
    onError: (error) => failOutside(services, error),
    onListen: ({ hostname, port }) => log.info('serving', { url: `http://${hostname}:${port}` }),
  },
  (request, { remoteAddr }) =>
    answer(request, { address: 'hostname' in remoteAddr ? remoteAddr.hostname : undefined }),
);

const stopTicking = startTicking(services);

async function stop(signal: string): Promise<void> {
  log.info('stopping; calls in flight may end', { signal });
  await stopTicking();
  await shutDown(services, SHUTDOWN_LIMIT_MS, server.shutdown());
  Deno.exit(0);
}

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  Deno.addSignalListener(signal, () => void stop(signal));
}

// Where the host has cron, it also wakes a process that it had put to sleep.
const { cron } = Deno as { readonly cron?: typeof Deno.cron };
cron?.('rungate-tick', '* * * * *', async () => void (await tick(services, 0)));
