/** A witness in front of a server: passes TCP bytes both ways as they are and counts what it sees. */

import type { AddressInfo } from 'node:net';
import { connect, createServer, type Socket } from 'node:net';

/** One request as it passed, and the head of its response once that has passed too. */
export interface Exchange {
  /** Method and path, such as `POST /v1/messages`. */
  readonly request: string;
  readonly status: number;
  readonly headers: Headers;
}

/** A forwarder that is running. */
export interface Witness {
  readonly url: string;
  /** Every request that has passed, the answered ones with their answer; it may be emptied. */
  readonly exchanges: Exchange[];
  stop(): Promise<void>;
}

/** What a request looks like until it is answered. */
const UNANSWERED = { status: 0, headers: new Headers() };

const REQUEST_LINE = /([A-Z]+ \S+) HTTP\/1\.1\r\n/g;
const RESPONSE_HEAD = /HTTP\/1\.1 (\d{3})[^\r]*\r\n([\s\S]*?)\r\n\r\n/g;
/** The longest line or head that is looked for, in characters. */
const MAX_HEAD_CHARS = 16_384;

/** Starts a forwarder to a server's URL on a free port of the loopback interface. */
export async function watch(target: string): Promise<Witness> {
  const { hostname, port } = new URL(target);
  const exchanges: Exchange[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(Number(port), hostname);
    join(near, far, exchanges);
    for (const socket of [near, far]) {
      sockets.add(socket.once('close', () => sockets.delete(socket)));
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    exchanges,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        for (const socket of sockets) socket.destroy();
      }),
  };
}

function join(near: Socket, far: Socket, exchanges: Exchange[]): void {
  const open: number[] = [];
  const asked = scan(REQUEST_LINE, ([, request = '']) => {
    open.push(exchanges.push({ request, ...UNANSWERED }) - 1);
  });
  const answered = scan(RESPONSE_HEAD, ([, status, lines = '']) => {
    const at = open.shift() ?? -1;
    const seen = exchanges[at];
    if (seen) exchanges[at] = { ...seen, status: Number(status), headers: readHeaders(lines) };
  });
  near.on('data', asked).on('error', () => far.destroy());
  far.on('data', answered).on('error', () => near.destroy());
  near.pipe(far).pipe(near);
}

/** Finds a pattern in a stream of bytes, each occurrence once, wherever the stream is cut. */
function scan(pattern: RegExp, found: (match: RegExpExecArray) => void) {
  let rest = '';
  return (chunk: Uint8Array) => {
    const text = rest + Buffer.from(chunk).toString('latin1');
    let end = 0;
    for (const match of text.matchAll(pattern)) {
      found(match);
      end = match.index + match[0].length;
    }
    rest = text.slice(Math.max(end, text.length - MAX_HEAD_CHARS));
  };
}

function readHeaders(lines: string): Headers {
  const pairs = lines.split('\r\n').map((line): [string, string] => {
    const colon = line.indexOf(':');
    return [line.slice(0, colon), line.slice(colon + 1).trim()];
  });
  return new Headers(pairs);
}
