/** The entry for Bun: listens, and shuts down without losing a call. */

import http from 'node:http';
import process from 'node:process';
import { isEventStream } from '../schema/sse.ts';
import { makeApp } from './app.ts';
import { bootOrExit, shutDown } from './boot.ts';
import { failOutside } from './refuse.ts';
import { startTicking } from './scheduled.ts';
import type { Services } from './services.ts';

/** A server that listens. */
export interface Listening {
  readonly url: string;
  /** Stops accepting, lets calls end for at most `limitMs`, settles the rest, and closes. */
  stop(limitMs: number): Promise<void>;
}

const SHUTDOWN_LIMIT_MS = 30_000;
const INSIST_MS = 1_000;
/** How long a connection may be idle while a request is read, and once its answer is there. */
const IDLE_S = 10;
/** Any length: whoever reads a body has a limit of its own, and refuses in the caller's dialect. */
const MAX_BODY_BYTES = Number.MAX_SAFE_INTEGER;
const MAX_HEADER_BYTES = 1024 * 1024;

/** Starts the server. */
export function listen(services: Services): Listening {
  const { config } = services;
  const answer = makeApp(services);
  // Bun's server goes by the setting of Node's.
  Object.assign(http, { maxHeaderSize: MAX_HEADER_BYTES });
  const server = Bun.serve({
    hostname: config.host,
    port: config.port,
    maxRequestBodySize: MAX_BODY_BYTES,
    idleTimeout: IDLE_S,
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
  const stopTicking = startTicking(services);
  return {
    url: String(server.url).replace(/\/$/, ''),
    async stop(limitMs) {
      await stopTicking();
      await shutDown(services, limitMs, server.stop());
      await server.stop(true);
    },
  };
}

/** Serves until the process is told to end. */
export function serve(services: Services): Listening {
  const listening = listen(services);
  let stoppedAt: number | undefined;
  const stop = async (signal: string) => {
    // Package runners pass a signal on that the whole group has had already: only a later one insists.
    const isInsisting = stoppedAt !== undefined && Date.now() - stoppedAt > INSIST_MS;
    if (isInsisting) process.exit(1);
    if (stoppedAt !== undefined) return;
    stoppedAt = Date.now();
    services.log.info('stopping; calls in flight may end', { signal });
    await listening.stop(SHUTDOWN_LIMIT_MS);
    process.exit(0);
  };
  process.on('SIGTERM', () => void stop('SIGTERM'));
  process.on('SIGINT', () => void stop('SIGINT'));
  services.log.info('serving', { url: listening.url });
  return listening;
}

if (import.meta.main) serve(await bootOrExit());
