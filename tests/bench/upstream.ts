/** The provider of the benchmark, a process of its own: constant answers, as fast as Bun serves. */

import { chunks, completion } from './payloads.ts';

const JSON_TYPE = { 'content-type': 'application/json' };
const SSE_TYPE = {
  'content-type': 'text/event-stream; charset=utf-8',
  'cache-control': 'no-cache',
};

const encode = (text: string) => new TextEncoder().encode(text);
const small = encode(completion('demo-small', 1_000));
const large = encode(completion('demo-large', 100_000));
/** Five events at a time: sending each alone would make this process, not a proxy, the limit. */
const EVENTS_PER_WRITE = 5;
const events = chunks('demo-small');
const writes = Array.from({ length: events.length / EVENTS_PER_WRITE }, (_, index) =>
  encode(events.slice(index * EVENTS_PER_WRITE, (index + 1) * EVENTS_PER_WRITE).join('')),
);

/** What waits for the next turn of the event loop; every open stream writes once a turn. */
let waiting: (() => void)[] = [];

function turn(): Promise<void> {
  if (waiting.length === 0) setImmediate(wake);
  return new Promise((resolve) => waiting.push(resolve));
}

function wake(): void {
  const ready = waiting;
  waiting = [];
  for (const resolve of ready) resolve();
}

/** The parts go out one by one, so that a proxy has to read and to pass on each of them. */
function stream(): Response {
  const source = {
    type: 'direct',
    async pull(controller: ReadableStreamDirectController) {
      for (const bytes of writes) {
        controller.write(bytes);
        await controller.flush();
        await turn();
      }
      controller.close();
    },
  };
  return new Response(new ReadableStream(source as unknown as UnderlyingDefaultSource), {
    headers: SSE_TYPE,
  });
}

const server = Bun.serve({
  port: 0,
  hostname: '127.0.0.1',
  idleTimeout: 0,
  async fetch(request) {
    const asked = await request.text();
    if (asked.includes('"stream":true')) return stream();
    return new Response(asked.includes('"demo-large"') ? large : small, { headers: JSON_TYPE });
  },
});

process.stdin.on('end', () => process.exit()).resume();
console.log(`listening on ${server.url.origin}`);
