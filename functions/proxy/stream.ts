/** Relaying a body chunk by chunk, with the caller's own back-pressure. */

/** What watches a body pass by. */
export interface Tap {
  /** Takes a chunk; returns what of it, and of what was kept back, goes on now. */
  chunk(bytes: Uint8Array): Uint8Array | undefined;
  /**
   * The body has ended; returns what was kept back. Awaited before the caller sees the end; when
   * it throws, the caller sees a broken connection instead of an end.
   */
  end(): Promise<Uint8Array | undefined>;
  /** The body broke, or the caller left. */
  broken(error: unknown): Promise<void>;
}

/**
 * Relays a body. It is read only as fast as the caller reads; a caller that leaves cancels it; an
 * error in it, or a tap's, breaks the caller's connection rather than ending it cleanly.
 */
export function relay(body: ReadableStream<Uint8Array>, tap: Tap): ReadableStream<Uint8Array> {
  const reader = body.getReader();
  const step = async (
    controller: ReadableStreamDefaultController<Uint8Array>,
  ): Promise<boolean> => {
    const { done, value } = await reader.read();
    const passed = done ? await tap.end() : tap.chunk(value);
    if (passed && passed.length > 0) controller.enqueue(passed);
    if (done) controller.close();
    return done || (passed !== undefined && passed.length > 0);
  };
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      try {
        // A chunk of which nothing goes on would leave the caller waiting without another pull.
        while (!(await step(controller)));
      } catch (error) {
        await tap.broken(error);
        await reader.cancel(error).catch(() => {});
        throw error;
      }
    },
    async cancel(reason) {
      // The upstream must not wait for our books.
      const cancelled = reader.cancel(reason).catch(() => {});
      await tap.broken(reason);
      await cancelled;
    },
  });
}
