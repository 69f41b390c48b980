/** What is measured: the rows of the benchmark, each a server in a process of its own. */

import { fileURLToPath } from 'node:url';
import { start } from '../process.ts';

/** Where the processes of a benchmark are and may be. */
export interface Surroundings {
  /** Origin of the upstream. */
  readonly upstream: string;
  /** What goes before a command so that it runs on the cores of the measured server. */
  readonly pin: readonly string[];
}

/** A server that is ready to be measured. */
export interface Started {
  /** Its origin. */
  readonly url: string;
  /** What every request to it must carry. */
  readonly headers: Readonly<Record<string, string>>;
  stop(): Promise<unknown>;
}

/** A row of the benchmark. */
export interface Target {
  readonly name: string;
  start(surroundings: Surroundings): Promise<Started>;
}

/** The name of the row that every other one is compared with. */
export const YARDSTICK = 'bare';

/**
 * The rows in the order in which they are printed. `direct` is the upstream without anything in
 * between: as long as it is well above the rest, neither it nor the load generator is the limit.
 */
export const TARGETS: readonly Target[] = [
  { name: 'direct', start: async ({ upstream }) => ({ url: upstream, headers: {}, stop: rest }) },
  stage(YARDSTICK, 'bare'),
  stage('two writes alone (normal)', 'writes', 'normal'),
  stage('two writes alone (full)', 'writes'),
  stage('+ edge', 'edge'),
  stage('+ authenticate', 'authenticate'),
  stage('+ read body', 'read'),
  stage('+ run', 'run'),
  stage('+ policy', 'decide'),
  stage('+ gates (normal)', 'gate', 'normal'),
  stage('+ hold, settle (normal)', 'hold', 'normal'),
  stage('+ forward (normal)', 'forward', 'normal'),
  stage('+ limits (normal)', 'limit', 'normal'),
  stage('rungate (normal)', 'rungate', 'normal'),
  stage('rungate, limits (normal)', 'limited', 'normal'),
  stage('rungate, limits, gates (normal)', 'gated', 'normal'),
  stage('rungate (full)', 'rungate', 'full'),
];

async function rest(): Promise<void> {}

/**
 * A row that runs a stage of `server.ts`.
 *
 * @param synchronous SQLite's setting, for stages that write.
 */
export function stage(
  name: string,
  stageName: string,
  synchronous: 'full' | 'normal' = 'full',
): Target {
  return {
    name,
    async start({ upstream, pin }) {
      const server = [...pin, ...bun('server.ts')];
      const options = ['--stage', stageName, '--synchronous', synchronous, '--upstream', upstream];
      const running = await start([...server, ...options], { ready: LISTENING });
      const [, url = '', headers = '{}'] = running.ready;
      return { url, headers: JSON.parse(headers), stop: () => running.stop() };
    },
  };
}

/** What the servers of the benchmark print when they are ready: their origin, headers to send. */
export const LISTENING = /^listening on (\S+)(?: (\{.*\}))?$/;

/** The command that runs a file of this folder with the Bun that runs this one. */
export function bun(file: string): string[] {
  return [process.execPath, fileURLToPath(new URL(file, import.meta.url))];
}
