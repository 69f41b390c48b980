/**
 * The entry for Deno: `deno run --allow-net --allow-env --allow-ffi --allow-sys --allow-read
 * --allow-write functions/deno.ts`.
 */

import { makeApp } from './app.ts';
import { failOutside } from './refuse.ts';
import { tick } from './scheduled.ts';
import { type Listening, listenBy, serveOrExit } from './serve.ts';
import type { Services } from './services.ts';

function listen(services: Services): Listening {
  const { host: hostname, port } = services.config;
  const answer = makeApp(services);
  return listenBy(services, () => {
    const server = Deno.serve(
      { hostname, port, onError: (error) => failOutside(services, error), onListen() {} },
      (request, { remoteAddr }) =>
        answer(request, { address: 'hostname' in remoteAddr ? remoteAddr.hostname : undefined }),
    );
    return { port: server.addr.port, stop: () => server.shutdown() };
  });
}

const services = await serveOrExit(listen);

// Where the host has cron, it also wakes a process that it had put to sleep.
const { cron } = Deno as { readonly cron?: typeof Deno.cron };
cron?.('rungate-tick', '* * * * *', async () => void (await tick(services, 0)));
