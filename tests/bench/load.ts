/** The load generator, a process: reads a job as a line of JSON, answers with a line of JSON. */

import { createInterface } from 'node:readline';
import type { Socket } from 'bun';
import { type Answer, ResponseReader } from './framing.ts';

/** What to send, to whom and for how long. */
export interface Job {
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
  readonly connections: number;
  /** Runs before anything is counted. */
  readonly warmupMs: number;
  readonly durationMs: number;
  /** What every answer must have; anything else is an error. */
  readonly expectedBytes: number;
}

/** What came of it. Latencies run from the write of a request to the last byte of its answer. */
export interface Outcome {
  readonly requests: number;
  readonly errors: number;
  /** The first thing that went wrong. */
  readonly error?: string;
  readonly seconds: number;
  readonly p50Micros: number;
  readonly p99Micros: number;
}

interface Connection {
  readonly reader: ResponseReader;
  sentAtNanos: number;
  waiting: boolean;
  /** What the socket has not taken yet of a request. */
  unsent: Buffer | undefined;
}

type Client = Socket<Connection>;

const LATENCIES_MAX = 1 << 20;
const MICRO = 1_000;
const MILLI = 1_000_000;
/** How long answers under way may take after the end before they count as errors. */
const DRAIN_MS = 2_000;

const latenciesNanos = new Float64Array(LATENCIES_MAX);

/** One run of a job: its clock, its counters and its connections. */
class Run {
  readonly #job: Job;
  readonly #request: Buffer;
  readonly #sockets: Client[] = [];
  readonly #finished = Promise.withResolvers<void>();
  #open = 0;
  #requests = 0;
  #errors = 0;
  #error: string | undefined;
  #fromNanos = 0;
  #untilNanos = 0;

  constructor(job: Job) {
    this.#job = job;
    this.#request = requestBytes(job);
  }

  async measure(): Promise<Outcome> {
    const { connections, warmupMs, durationMs } = this.#job;
    await Promise.all(Array.from({ length: connections }, () => this.#connect()));
    this.#fromNanos = Bun.nanoseconds() + warmupMs * MILLI;
    this.#untilNanos = this.#fromNanos + durationMs * MILLI;
    this.#open = this.#sockets.length;
    for (const socket of this.#sockets) this.#send(socket);
    const late = setTimeout(() => this.#giveUp(), warmupMs + durationMs + DRAIN_MS);
    await this.#finished.promise;
    clearTimeout(late);
    for (const socket of this.#sockets) socket.terminate();
    return this.#outcome(durationMs / 1_000);
  }

  async #connect(): Promise<void> {
    const { hostname, port } = new URL(this.#job.url);
    const socket = await Bun.connect<Connection>({
      hostname,
      port: Number(port),
      data: { reader: new ResponseReader(), sentAtNanos: 0, waiting: false, unsent: undefined },
      socket: {
        data: (client, data) => this.#receive(client, data),
        drain: (client) => this.#flush(client),
        close: (client) => this.#fail(client, 'the connection was closed'),
        error: (client, error) => this.#fail(client, error.message),
      },
    });
    socket.setNoDelay(true);
    this.#sockets.push(socket);
  }

  #send(socket: Client): void {
    socket.data.waiting = true;
    socket.data.unsent = this.#request;
    socket.data.sentAtNanos = Bun.nanoseconds();
    this.#flush(socket);
  }

  #flush(socket: Client): void {
    const { unsent } = socket.data;
    if (!unsent) return;
    const taken = socket.write(unsent);
    socket.data.unsent = taken < unsent.length ? unsent.subarray(Math.max(0, taken)) : undefined;
  }

  #receive(socket: Client, data: Buffer): void {
    try {
      socket.data.reader.push(data, (answer) => this.#record(socket, answer));
    } catch (error) {
      this.#fail(socket, error instanceof Error ? error.message : String(error));
    }
  }

  #record(socket: Client, answer: Answer): void {
    const now = Bun.nanoseconds();
    const { status, bytes, keepAlive } = answer;
    if (status !== 200 || bytes !== this.#job.expectedBytes || !keepAlive) {
      this.#fail(socket, `status ${status}, ${bytes} bytes, keep-alive ${keepAlive}`);
      return;
    }
    if (now >= this.#fromNanos && now < this.#untilNanos && this.#requests < LATENCIES_MAX) {
      latenciesNanos[this.#requests++] = now - socket.data.sentAtNanos;
    }
    if (now < this.#untilNanos) this.#send(socket);
    else this.#rest(socket);
  }

  #fail(socket: Client, why: string): void {
    if (!socket.data.waiting) return;
    this.#errors++;
    this.#error ??= why;
    this.#rest(socket);
    socket.terminate();
  }

  #rest(socket: Client): void {
    socket.data.waiting = false;
    this.#open--;
    if (this.#open === 0) this.#finished.resolve();
  }

  #giveUp(): void {
    for (const socket of this.#sockets) this.#fail(socket, `no answer within ${DRAIN_MS} ms`);
  }

  #outcome(seconds: number): Outcome {
    if (this.#requests === 0 && this.#errors === 0) {
      this.#errors = 1;
      this.#error = `nothing was answered in ${seconds} s`;
    }
    const sorted = latenciesNanos.subarray(0, this.#requests).sort();
    const at = (share: number) => (sorted[Math.floor(sorted.length * share)] ?? 0) / MICRO;
    return {
      requests: this.#requests,
      errors: this.#errors,
      ...(this.#error !== undefined && { error: this.#error }),
      seconds,
      p50Micros: at(0.5),
      p99Micros: at(0.99),
    };
  }
}

function requestBytes({ url, headers, body }: Job): Buffer {
  const { host, pathname } = new URL(url);
  const lines = Object.entries({
    host,
    'content-type': 'application/json',
    'content-length': String(Buffer.byteLength(body)),
    accept: '*/*',
    ...headers,
  }).map(([name, value]) => `${name}: ${value}`);
  return Buffer.from([`POST ${pathname} HTTP/1.1`, ...lines, '', body].join('\r\n'));
}

console.log('ready for jobs');
for await (const line of createInterface({ input: process.stdin })) {
  console.log(`outcome ${JSON.stringify(await new Run(JSON.parse(line)).measure())}`);
}
