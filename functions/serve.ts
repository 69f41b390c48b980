/** Serving: what both entries do from their start to the last signal, around a runtime's own server. */

import process from 'node:process';
import { DatabaseError } from '../db/client.ts';
import { boot, shutDown } from './boot.ts';
import { ConfigError } from './config.ts';
import { printPlainly } from './log.ts';
import { startTicking } from './scheduled.ts';
import type { Services } from './services.ts';

/** A runtime's server, which listens. */
export interface Server {
  readonly port: number;
  /** Accepts nothing more; settles once everything has been sent. */
  stop(): Promise<unknown>;
  /** Breaks off what is left. */
  close?(): Promise<unknown>;
}

/** A server that listens, and ticks. */
export interface Listening {
  readonly url: string;
  /** Stops accepting, lets calls end for at most `limitMs`, settles the rest, and closes. */
  stop(limitMs: number): Promise<void>;
}

/** The server can't listen where the configuration says. */
export class ListenError extends Error {
  override readonly name = 'ListenError';
}

const SHUTDOWN_LIMIT_MS = 30_000;
const INSIST_MS = 1_000;

/**
 * Starts a runtime's server, and ticks beside it.
 *
 * @param start Opens the server at the configured place.
 * @throws {ListenError}
 */
export function listenBy(services: Services, start: () => Server): Listening {
  const { host, port } = services.config;
  let server: Server;
  try {
    server = start();
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    const message = `The server can't listen on HOST ${host}, PORT ${port}: ${reason}`;
    throw new ListenError(message, { cause: error });
  }
  const stopTicking = startTicking(services);
  return {
    url: `http://${host.includes(':') ? `[${host}]` : host}:${server.port}`,
    async stop(limitMs) {
      services.stopping.abort();
      await shutDown(services, limitMs, Promise.all([server.stop(), stopTicking()]));
      await server.close?.();
    },
  };
}

/**
 * Serves until the process is told to end.
 *
 * @throws {ListenError} when it can't; the services are closed then.
 */
export async function serve(
  services: Services,
  listen: (services: Services) => Listening,
): Promise<Listening> {
  let listening: Listening;
  try {
    listening = listen(services);
  } catch (error) {
    await shutDown(services, 0);
    throw error;
  }
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
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => void stop(signal));
  services.log.info('serving', { url: listening.url });
  return listening;
}

/**
 * Boots and serves, for an entry: what the operator has to mend is told in plain words, and ends the
 * process with 2 for the configuration and 1 for the rest, as it does a command.
 */
export async function serveOrExit(listen: (services: Services) => Listening): Promise<Services> {
  try {
    const services = await boot();
    await serve(services, listen);
    return services;
  } catch (error) {
    const line = explain(error);
    if (line === undefined) throw error;
    printPlainly(line);
    process.exit(error instanceof ConfigError ? 2 : 1);
  }
}

/** @returns undefined for what is nobody's to mend but ours. */
function explain(error: unknown): string | undefined {
  if (error instanceof DatabaseError) return `The database refused: ${error.message}`;
  return error instanceof ConfigError || error instanceof ListenError ? error.message : undefined;
}
