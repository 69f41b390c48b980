/** Relaying a body chunk by chunk, with the caller's own back-pressure. */

import { pause } from '../waiting.ts';

/** What a stream's bytes pass through on their way to the caller. */
export interface Stage {
  /** Takes a chunk; returns what may go on now. */
  push(chunk: Uint8Array): Uint8Array;
  /** Takes the end; returns what was kept back. */
  end(): Uint8Array;
}

/** What watches a body pass by. */
export interface Tap {
  /** Takes a chunk; returns what of it, and of what was kept back, goes on now. */
  chunk(bytes: Uint8Array): Uint8Array;
  /** Whether the body has told its end, so that only the end of its transport is missing. */
  isOver(): boolean;
  /**
   * The body has ended; yields what was kept back, which may take its time. When it throws, the
   * caller sees a broken connection instead of an end.
   */
  end(): AsyncGenerator<Uint8Array, void, void>;
  /**
   * The body broke, or the caller left.
   *
   * @returns last bytes before an end that looks clean; none where the connection has to break.
   */
  broken(error: unknown): Promise<Uint8Array | undefined>;
}

/** A body on its way to the caller. */
export interface Relayed {
  readonly stream: ReadableStream<Uint8Array>;
  /** Ends the source; the stream sees it end, and its tap whether that was too early. */
  stop(): void;
}

/** How long the transport of a body that has told its end may take to end too. */
const LINGER_MS = 100;

/** What has been enqueued is lost on Bun, the head too, where the stream fails in the same turn. */
const BREAK_MS = 5;

/**
 * Reads a body chunk by chunk to its end. One that has told its end is read on for a moment and is
 * then left, since some hosts keep the connection open; it is whole, even where that breaks then.
 *
 * @param isOver Whether it has told its end.
 * @returns a function that reads the next chunk; `undefined` from the end on.
 */
export function chunksOf(
  reader: ReadableStreamDefaultReader<Uint8Array>,
  isOver: () => boolean,
): () => Promise<Uint8Array | undefined> {
  const ended = new AbortController();
  let lingered: Promise<void> | undefined;
  let isLate = false;
  const rest = async () => {
    lingered ??= pause(LINGER_MS, ended.signal).then(() => {
      isLate = true;
    });
    // A body that never pauses would win every race.
    const read = isLate ? undefined : reader.read().catch(() => undefined);
    const next = await Promise.race([read, lingered]);
    if (next?.value) return next.value;
    ended.abort();
    await reader.cancel().catch(() => {});
    return undefined;
  };
  return async () => (isOver() ? rest() : (await reader.read()).value);
}

/**
 * Relays a body. It is read only as fast as the caller reads; a caller that leaves cancels it; an
 * error in it, or a tap's, breaks the caller's connection rather than ending it cleanly.
 */
export function relay(body: ReadableStream<Uint8Array>, tap: Tap): Relayed {
  const reader = body.getReader();
  const nextChunk = chunksOf(reader, tap.isOver);
  let rest: AsyncGenerator<Uint8Array, void, void> | undefined;
  const next = async (): Promise<Uint8Array | undefined> => {
    if (!rest) {
      const chunk = await nextChunk();
      if (chunk) return tap.chunk(chunk);
      rest = tap.end();
    }
    return (await rest.next()).value ?? undefined;
  };
  const stream = new ReadableStream<Uint8Array>({
    async pull(controller) {
      try {
        // A chunk of which nothing goes on would leave the caller waiting without another pull.
        let passed = await next();
        while (passed?.length === 0) passed = await next();
        if (passed) controller.enqueue(passed);
        else controller.close();
      } catch (error) {
        const last = await tap.broken(error);
        await reader.cancel(error).catch(() => {});
        if (!last) {
          await new Promise((resolve) => setTimeout(resolve, BREAK_MS));
          throw error;
        }
        controller.enqueue(last);
        controller.close();
      }
    },
    async cancel(reason) {
      // The upstream must not wait for our books.
      const cancelled = reader.cancel(reason).catch(() => {});
      await tap.broken(reason);
      await cancelled;
    },
  });
  return { stream, stop: () => void reader.cancel().catch(() => {}) };
}
