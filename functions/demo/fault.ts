/** What the built-in upstream answers when it cannot serve a request, in either provider's format. */

import type { Dialect } from '../../schema/errors.ts';

/** A request that the built-in upstream turns away. */
export class Fault extends Error {
  override readonly name = 'Fault';
  readonly status: 400 | 404 | 405 | 413;
  readonly param: string | null;
  readonly code: string | null;

  /**
   * @param param The member of the body that is wrong, if it is one.
   * @param code OpenAI's error code, where it has one for the case.
   */
  constructor(
    status: Fault['status'],
    message: string,
    param: string | null = null,
    code: string | null = null,
  ) {
    super(message);
    this.status = status;
    this.param = param;
    this.code = code;
  }
}

const ANTHROPIC_TYPES = {
  400: 'invalid_request_error',
  404: 'not_found_error',
  405: 'invalid_request_error',
  413: 'request_too_large',
} as const;

/** The response for a fault: status and JSON body as the dialect's provider sends them. */
export function refuse(fault: Fault, dialect: Dialect): Response {
  const { status, message, param, code } = fault;
  return dialect === 'openai'
    ? Response.json(
        { error: { message, type: 'invalid_request_error', param, code } },
        { status, headers: { 'x-request-id': 'req_demo' } },
      )
    : Response.json(
        {
          type: 'error',
          error: { type: ANTHROPIC_TYPES[status], message },
          request_id: 'req_demo',
        },
        { status, headers: { 'request-id': 'req_demo' } },
      );
}
