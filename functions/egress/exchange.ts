/** One exchange with a host that a user gave: what goes in, what comes out, and how it fails. */

/** Limits of one exchange, in milliseconds. */
export interface EgressTimeouts {
  /** Name resolution, TCP and TLS together. */
  readonly connectMs: number;
  /** From the connection to the response's headers. */
  readonly firstByteMs: number;
  /** Between two chunks of the body, counted only while somebody waits for one. */
  readonly idleMs: number;
}

/** What to send. Headers that frame the message (`host`, `content-length` …) are set here. */
export interface EgressInit {
  readonly method: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Uint8Array<ArrayBuffer> | undefined;
  readonly signal?: AbortSignal | undefined;
  /** In place of `signal`; the exchange aborts it too once it gives up, and makes none of its own. */
  readonly controller?: AbortController | undefined;
  readonly timeouts: EgressTimeouts;
}

/** What came back; the body is decoded, must be read or cancelled, and errors when cut short. */
export interface EgressResponse {
  readonly status: number;
  readonly headers: Headers;
  readonly body: ReadableStream<Uint8Array> | null;
  /** The whole body, in place of `body`; `too_large` beyond `maxBytes`. */
  bytes(maxBytes: number): Promise<Uint8Array<ArrayBuffer>>;
}

/**
 * Sends one request and answers when the response's headers are in; redirects are answered, never
 * followed.
 *
 * @throws {EgressError} also out of the body's stream.
 */
export type Egress = (url: URL, init: EgressInit) => Promise<EgressResponse>;

/** Why an exchange failed; unless it is one of {@link NOT_SENT}, the request may have been acted on. */
export type EgressErrorCode =
  | 'forbidden_url'
  | 'forbidden_address'
  | 'unresolved'
  | 'connect_failed'
  | 'timeout_connect'
  | 'timeout_first_byte'
  | 'timeout_idle'
  | 'aborted'
  | 'too_large'
  | 'broken';

/** Failures before anything was sent. */
export const NOT_SENT: ReadonlySet<EgressErrorCode> = new Set([
  'forbidden_url',
  'forbidden_address',
  'unresolved',
  'connect_failed',
  'timeout_connect',
]);

/** A request that was refused, or that failed on its way; the message names no credential. */
export class EgressError extends Error {
  override readonly name = 'EgressError';
  readonly code: EgressErrorCode;

  constructor(code: EgressErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}
