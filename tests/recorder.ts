/** A recorder in front of a server: passes requests on and keeps the bodies of both ways. */

/** One request and its answer, whole. */
export interface Exchange {
  readonly path: string;
  readonly request: string;
  readonly status: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** A recorder that is running. */
export interface Recorder {
  readonly url: string;
  /** Where requests go, without a path; it may change between them. */
  target: string;
  /** In the order in which they ended. */
  readonly exchanges: Exchange[];
  stop(): Promise<void>;
}

/** Starts a recorder in front of a server's URL on a free port of the loopback interface. */
export function record(target: string): Recorder {
  const exchanges: Exchange[] = [];
  const server = Bun.serve({
    ...{ port: 0, hostname: '127.0.0.1', idleTimeout: 0 },
    async fetch({ url, method, headers, body }) {
      const { pathname, search } = new URL(url);
      const request = await new Response(body).text();
      const sent = method === 'GET' ? {} : { body: request };
      const init = { method, headers, redirect: 'manual', ...sent } as const;
      const answer = await fetch(recorder.target + pathname + search, init);
      const bytes = await answer.bytes();
      exchanges.push({ path: pathname, request, status: answer.status, bytes });
      return new Response(bytes, answer);
    },
  });
  const recorder: Recorder = {
    ...{ url: server.url.origin, target, exchanges },
    stop: () => server.stop(true),
  };
  return recorder;
}
