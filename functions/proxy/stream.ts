/** Relaying a body chunk by chunk, with the caller's own back-pressure. */

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

/**
 * Relays a body. It is read only as fast as the caller reads; a caller that leaves cancels it; an
 * error in it, or a tap's, breaks the caller's connection rather than ending it cleanly.
 */
export function relay(body: ReadableStream<Uint8Array>, tap: Tap): Relayed {
  const reader = body.getReader();
  let rest: AsyncGenerator<Uint8Array, void, void> | undefined;
  const next = async (): Promise<Uint8Array | undefined> => {
    if (!rest) {
      const { done, value } = await reader.read();
      if (!done) return tap.chunk(value);
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
        if (!last) throw error;
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
