/** Server-sent events of the built-in upstream, made as fast as the reader takes them. */

/** One event: `event:` where the format names its events, then one line of data. */
export function event(data: object | string, name?: string): string {
  const line = typeof data === 'string' ? data : JSON.stringify(data);
  return `${name === undefined ? '' : `event: ${name}\n`}data: ${line}\n\n`;
}

/** A response that streams events (`text/event-stream`), one chunk each. */
export function stream(events: Iterator<string>, headers: Record<string, string>): Response {
  const encoder = new TextEncoder();
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      const next = events.next();
      if (next.done) controller.close();
      else controller.enqueue(encoder.encode(next.value));
    },
  });
  const type = { 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-cache' };
  return new Response(body, { headers: { ...type, ...headers } });
}
