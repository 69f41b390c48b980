/** The body of a response, read chunk by chunk while somebody waits for one. */

import type { IncomingMessage } from 'node:http';
import { Readable } from 'node:stream';
import type { Valve } from './agent.ts';
import type { Deadline } from './deadline.ts';
import { EgressError } from './exchange.ts';

/** Where the chunks of a body come from. */
interface Source {
  next(): Promise<{ readonly done?: boolean | undefined; readonly value?: Uint8Array | undefined }>;
  stop(): void;
}

/** The chunks of a body, as they come or decoded; `body` is where they come from. */
export function openSource(
  chunks: ReadableStream<Uint8Array> | Readable,
  body: ReadableStream<Uint8Array> | IncomingMessage,
  valve: Valve | undefined,
): Source {
  if (chunks instanceof Readable) {
    return readNode(chunks, body instanceof Readable ? body : undefined, valve);
  }
  const reader = chunks.getReader();
  return { next: () => reader.read(), stop: () => void reader.cancel().catch(() => {}) };
}

/** Reads the connection only while somebody waits; one that is back in the pool is let alone. */
function readNode(
  chunks: Readable,
  message: IncomingMessage | undefined,
  valve: Valve | undefined,
): Source {
  let ours = valve;
  const letGo = () => {
    ours?.open();
    ours = undefined;
  };
  message?.once('end', letGo).once('close', letGo);
  ours?.shut();
  const iterator = chunks[Symbol.asyncIterator]();
  return {
    async next() {
      if (chunks.readableLength === 0) ours?.open();
      const chunk = await iterator.next();
      ours?.shut();
      return chunk;
    },
    stop: () => void chunks.destroy(),
  };
}

/**
 * A stream of a body that is read no faster than it is taken, and that errors at `maxBytes`.
 *
 * @param idleMs The longest that a chunk may be waited for.
 */
export function streamBody(
  source: Source,
  deadline: Deadline,
  idleMs: number,
  maxBytes: number,
): ReadableStream<Uint8Array> {
  let readBytes = 0;
  return new ReadableStream<Uint8Array>(
    {
      start: (controller) => deadline.onEnd((reason) => controller.error(reason)),
      async pull(controller) {
        deadline.expect('timeout_idle', idleMs);
        try {
          const { done, value } = await source.next();
          if (deadline.reason !== undefined) return;
          if (done || value === undefined) {
            deadline.close();
            return controller.close();
          }
          deadline.rest();
          readBytes += value.byteLength;
          if (readBytes > maxBytes) throw new EgressError('too_large', TOO_LARGE);
          controller.enqueue(value);
        } catch (error) {
          source.stop();
          throw deadline.fail(error, 'broken');
        }
      },
      cancel() {
        deadline.abandon();
        source.stop();
      },
    },
    { highWaterMark: 0 },
  );
}

const TOO_LARGE = 'The compressed body decodes to more than is allowed.';
