/** Child processes of the tests: started, awaited until they say they are ready, always stopped. */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';

const OUTPUT_CHARS_MAX = 200_000;

/** How a process is started. */
export interface StartOptions {
  /** What a line of stdout or stderr looks like once the process can be used. */
  readonly ready: RegExp;
  /** Added to the environment of this process; `undefined` takes a variable away. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly cwd?: string;
  /** How long it may take to be ready: 20 s unless said otherwise. */
  readonly timeoutMs?: number;
}

/** A process that runs. */
export interface Running {
  readonly pid: number;
  /** What `ready` matched, with its groups. */
  readonly ready: RegExpExecArray;
  /** Everything it has printed so far, stdout and stderr in the order of arrival. */
  output(): string;
  /** Writes a line to its stdin. */
  send(line: string): void;
  /** The next line of output that matches, from those after the last one returned. */
  next(pattern: RegExp, timeoutMs?: number): Promise<RegExpExecArray>;
  /** Ends it and its children: SIGTERM (or another signal), after `graceMs` SIGKILL. */
  stop(signal?: NodeJS.Signals, graceMs?: number): Promise<Exit>;
  /** Settles when it has ended, by itself or not. */
  readonly exit: Promise<Exit>;
}

/** How a process ended: by a code or by a signal. */
export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

const alive = new Set<ChildProcess>();

process.on('exit', () => {
  for (const child of alive) signalGroup(child, 'SIGKILL');
});
// A group of its own gets no Ctrl-C from the terminal, and these signals skip the exit handlers.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, () => process.exit(1));

/**
 * Starts a process in its own group and waits until it prints that it is ready.
 *
 * @param command The program and its arguments; no shell in between.
 * @throws {Error} with its output when it ends or `timeoutMs` pass before that; it is ended then.
 */
export async function start(command: readonly string[], options: StartOptions): Promise<Running> {
  const [program = '', ...rest] = command;
  const env = { ...process.env, ...options.env };
  const cwd = options.cwd ?? process.cwd();
  const child = spawn(program, rest, { env, cwd, detached: true, stdio: 'pipe' });
  alive.add(child);
  const exit = ended(child);
  const output = new Output(child);
  const stop = (signal?: NodeJS.Signals, graceMs?: number) => end(child, exit, signal, graceMs);
  const next = (pattern: RegExp, timeoutMs = 20_000) => output.next(pattern, timeoutMs, exit);
  try {
    const ready = await next(options.ready, options.timeoutMs);
    const send = (line: string) => void child.stdin.write(`${line}\n`);
    return { pid: child.pid ?? 0, ready, output: () => output.text(), send, next, stop, exit };
  } catch (error) {
    await stop('SIGKILL');
    throw error;
  }
}

/** What a process that runs to its end has printed, and its exit code. */
export async function finish(
  child: Bun.Subprocess<Bun.SpawnOptions.Writable, 'pipe', 'pipe'>,
): Promise<{ code: number; stdout: string; stderr: string }> {
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, stdout, stderr };
}

/** A TCP port of 127.0.0.1 that was free a moment ago; prefer port 0 where the server allows it. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('no port was assigned');
  return address.port;
}

function ended(child: ChildProcess): Promise<Exit> {
  return new Promise((resolve) => {
    const settle = (exit: Exit) => {
      alive.delete(child);
      resolve(exit);
    };
    child.once('close', (code, signal) => settle({ code, signal }));
    child.once('error', () => settle({ code: null, signal: null }));
  });
}

async function end(
  child: ChildProcess,
  exit: Promise<Exit>,
  signal: NodeJS.Signals = 'SIGTERM',
  graceMs = 5_000,
): Promise<Exit> {
  if (alive.has(child)) signalGroup(child, signal);
  const kill = setTimeout(() => signalGroup(child, 'SIGKILL'), graceMs);
  const how = await exit;
  clearTimeout(kill);
  return how;
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, signal);
  } catch {
    // The group is gone already, which is what was wanted.
  }
}

/** What a child prints: the last part of it, read line by line. */
class Output {
  #text = '';
  /** Where the first line begins that no one has asked for yet. */
  #read = 0;
  #wake = () => {};

  constructor(child: ChildProcess) {
    child.stdout?.setEncoding('utf8').on('data', (chunk: string) => this.#add(chunk));
    child.stderr?.setEncoding('utf8').on('data', (chunk: string) => this.#add(chunk));
  }

  text(): string {
    return this.#text;
  }

  /** The first line from here on that matches. Rejects when the time is over or the child ends. */
  async next(pattern: RegExp, timeoutMs: number, exit: Promise<Exit>): Promise<RegExpExecArray> {
    const { promise, resolve, reject } = Promise.withResolvers<RegExpExecArray>();
    const fail = (why: string) =>
      reject(new Error(`${why} before ${pattern}\n${this.#text.slice(-4_000)}`));
    this.#wake = () => {
      const match = this.#take(pattern);
      if (match) resolve(match);
    };
    const late = setTimeout(fail, timeoutMs, `nothing in ${timeoutMs} ms`);
    this.#wake();
    void exit.then(({ code, signal }) => fail(`ended with ${code ?? signal}`));
    try {
      return await promise;
    } finally {
      clearTimeout(late);
    }
  }

  #add(chunk: string): void {
    this.#text += chunk;
    const over = Math.max(0, this.#text.length - OUTPUT_CHARS_MAX);
    this.#text = this.#text.slice(over);
    this.#read = Math.max(0, this.#read - over);
    this.#wake();
  }

  #take(pattern: RegExp): RegExpExecArray | undefined {
    for (let end = this.#end(); end >= 0; end = this.#end()) {
      const match = pattern.exec(this.#text.slice(this.#read, end));
      this.#read = end + 1;
      if (!match) continue;
      this.#wake = () => {};
      return match;
    }
    return undefined;
  }

  #end(): number {
    return this.#text.indexOf('\n', this.#read);
  }
}
