/** The entry for Bun: its server, and how long it keeps connections. */

import http from 'node:http';
import process from 'node:process';
import { isEventStream } from '../schema/sse.ts';
import { makeApp } from './app.ts';
import { failOutside } from './refuse.ts';
import { type Listening, listenBy, serveOrExit } from './serve.ts';
import type { Services } from './services.ts';

/** How long a connection may be idle while a request is read, and once its answer is there. */
const IDLE_S = 10;
/** Any length: whoever reads a body has a limit of its own, and refuses in the caller's dialect. */
const MAX_BODY_BYTES = Number.MAX_SAFE_INTEGER;
const MAX_HEADER_BYTES = 1024 * 1024;
/**
 * Bun makes no more than 256 requests at once unless this says more, and has the next ones wait: for
 * upstreams that think for minutes, and behind them those to a database on a server.
 */
const MAX_REQUESTS = 'BUN_CONFIG_MAX_HTTP_REQUESTS';
const MOST_REQUESTS = '65535';

/** Starts the server. */
export function listen(services: Services): Listening {
  return listenBy(services, () => {
    const server = open(services);
    return {
      port: server.port ?? 0,
      stop: () => server.stop(),
      close: () => server.stop(true),
    };
  });
}

function open(services: Services) {
  const { config } = services;
  const answer = makeApp(services);
  // Bun's server goes by the setting of Node's.
  Object.assign(http, { maxHeaderSize: MAX_HEADER_BYTES });
  return Bun.serve({
    hostname: config.host,
    port: config.port,
    maxRequestBodySize: MAX_BODY_BYTES,
    idleTimeout: IDLE_S,
    // In its own mode of development, Bun writes of each stream that breaks off beside our log.
    development: false,
    async fetch(request, server) {
      let isWaiting = false;
      // A model may think for minutes without sending a byte; the proxy has time-outs of its own.
      const wait = () => {
        isWaiting = true;
        server.timeout(request, 0);
      };
      const { address } = server.requestIP(request) ?? {};
      const response = await answer(request, { address, wait });
      // Only streams wait from here on: anybody else could keep an idle connection for good.
      if (isWaiting && !isEventStream(response.headers)) server.timeout(request, IDLE_S);
      return response;
    },
    error: (error) => failOutside(services, error),
  });
}

/**
 * Lets the process make as many requests at once as it has calls. Bun reads that when it starts and
 * never again, so that the program begins anew in the same process: call it before anything else.
 */
export function makeRoom(): void {
  if (process.env[MAX_REQUESTS] !== undefined || process.platform === 'win32') return;
  const args = [process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  process.execve?.(process.execPath, args, { ...process.env, [MAX_REQUESTS]: MOST_REQUESTS });
}

if (import.meta.main) {
  makeRoom();
  await serveOrExit(listen);
}
