/** The closed set of reasons for which Rungate refuses, and how each one looks on the wire. */

/** The error formats that callers understand. */
export type Dialect = 'openai' | 'anthropic';

interface WireError {
  readonly status: number;
  readonly openai: { readonly type: string; readonly code: string };
  readonly anthropic: string;
}

const wire = (status: number, type: string, code: string, anthropic: string): WireError => ({
  status,
  openai: { type, code },
  anthropic,
});

/**
 * Every code with its HTTP status and its name in each dialect. Stops by governance are 400, 401,
 * 402 or 403 because only these are never retried by any of the common SDKs, as is an answer that
 * was paid and can't be handed on; 429, 502 and 503 are used where a retry may succeed.
 */
export const ERRORS = {
  invalid_body: wire(400, 'invalid_request_error', 'rungate_invalid_body', 'invalid_request_error'),
  invalid_request: wire(
    400,
    'invalid_request_error',
    'rungate_invalid_request',
    'invalid_request_error',
  ),
  not_translatable: wire(
    400,
    'invalid_request_error',
    'rungate_not_translatable',
    'invalid_request_error',
  ),
  invalid_token: wire(401, 'invalid_request_error', 'invalid_api_key', 'authentication_error'),
  budget_exceeded: wire(402, 'insufficient_quota', 'insufficient_quota', 'billing_error'),
  permission_denied: wire(403, 'permission_error', 'rungate_permission_denied', 'permission_error'),
  route_denied: wire(403, 'permission_error', 'rungate_permission_route', 'permission_error'),
  run_closed: wire(403, 'permission_error', 'rungate_permission_run_closed', 'permission_error'),
  agent_suspended: wire(
    403,
    'permission_error',
    'rungate_permission_agent_suspended',
    'permission_error',
  ),
  unpriced_model: wire(
    403,
    'permission_error',
    'rungate_permission_unpriced_model',
    'permission_error',
  ),
  approval_pending: wire(403, 'permission_error', 'rungate_permission_pending', 'permission_error'),
  approval_rejected: wire(
    403,
    'permission_error',
    'rungate_permission_rejected',
    'permission_error',
  ),
  approval_expired: wire(403, 'permission_error', 'rungate_permission_expired', 'permission_error'),
  not_found: wire(404, 'invalid_request_error', 'rungate_not_found', 'not_found_error'),
  body_too_large: wire(413, 'invalid_request_error', 'rungate_body_too_large', 'request_too_large'),
  money_held: wire(429, 'rate_limit_error', 'rate_limit_exceeded', 'rate_limit_error'),
  rate_limited: wire(429, 'rate_limit_error', 'rate_limit_exceeded', 'rate_limit_error'),
  upstream_failed: wire(502, 'server_error', 'rungate_upstream_failed', 'api_error'),
  unavailable: wire(503, 'server_error', 'rungate_unavailable', 'api_error'),
  internal: wire(500, 'server_error', 'rungate_internal', 'api_error'),
} as const satisfies Record<string, WireError>;

/** A reason to refuse. */
export type ErrorCode = keyof typeof ERRORS;

/** How a limit stands, as callers are told. */
export interface LimitState {
  /** Whom and what it counts, and over which window: `agent-requests-60s`. */
  readonly name: string;
  /** What is counted, a quota unit of the IETF draft on RateLimit fields, `tokens` or `nanodollars`. */
  readonly unit: string;
  readonly limit: number;
  readonly remaining: number;
  /** Seconds until more remains, rounded up. */
  readonly resetS: number;
  /** Absent for a limit of concurrent calls. */
  readonly windowS?: number;
}

/** What a machine can read about a refusal; sent as the `rungate` object of the error. */
export interface RefusalDetail {
  /** The rule that decided, as a path in the policy document or a name of a built-in rule. */
  readonly rule?: string;
  readonly policy?: string;
  readonly field?: string;
  readonly asked?: unknown;
  readonly allowed?: unknown;
  readonly runId?: string;
  readonly scope?: string;
  readonly spentNanos?: number;
  readonly heldNanos?: number;
  readonly ceilingNanos?: number;
  readonly retryAfterS?: number;
  /** The limits that apply, the one that refused first; told in headers too. */
  readonly limits?: readonly LimitState[];
  /** The gates that a person has to decide, and where. */
  readonly gates?: readonly {
    readonly id: string;
    readonly tool: string;
    readonly rule: string;
    readonly url?: string;
  }[];
}

/** A decision not to serve a call. Thrown by any step; turned into a response in one place. */
export class Refusal extends Error {
  override readonly name = 'Refusal';
  readonly code: ErrorCode;
  readonly detail: RefusalDetail;

  /** @param message One sentence a person can act on; it is shown to the caller as it stands. */
  constructor(code: ErrorCode, message: string, detail: RefusalDetail = {}) {
    super(message);
    this.code = code;
    this.detail = detail;
  }

  get status(): number {
    return ERRORS[this.code].status;
  }
}

/** The JSON body of a refusal in a dialect; `detail` reaches the caller as `error.rungate`. */
export function errorBody(refusal: Refusal, dialect: Dialect, requestId: string): object {
  const rungate = { code: refusal.code, ...refusal.detail };
  const { openai, anthropic } = ERRORS[refusal.code];
  return dialect === 'openai'
    ? {
        error: {
          message: refusal.message,
          type: openai.type,
          param: refusal.detail.field ?? null,
          code: openai.code,
          rungate,
        },
      }
    : {
        type: 'error',
        error: { type: anthropic, message: refusal.message, rungate },
        request_id: requestId,
      };
}
