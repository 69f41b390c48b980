/** Errors of one dialect in the words of the other. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isObject } from '../../../schema/rules/bound.ts';
import { memberOf } from '../reading.ts';

const NO_WORDS = 'The upstream gave no reason.';
/** Names that only one of the dialects has. */
const TO_CHAT: Readonly<Record<string, string>> = {
  api_error: 'server_error',
  overloaded_error: 'server_error',
  timeout_error: 'server_error',
  billing_error: 'insufficient_quota',
};
const TO_MESSAGES: Readonly<Record<string, string>> = {
  server_error: 'api_error',
  insufficient_quota: 'billing_error',
};
/** What Anthropic calls an error of a status. */
const BY_STATUS: Readonly<Record<number, string>> = {
  400: 'invalid_request_error',
  401: 'authentication_error',
  402: 'billing_error',
  403: 'permission_error',
  404: 'not_found_error',
  413: 'request_too_large',
  429: 'rate_limit_error',
  529: 'overloaded_error',
};
const MESSAGE_TYPES = new Set([...Object.values(BY_STATUS), 'api_error', 'timeout_error']);

/** An error of messages, or what stands in for one, as one of chat. */
export function chatError(value: JsonObject): JsonObject {
  const { type, message } = memberOf(value, 'error');
  const name = typeof type === 'string' ? (TO_CHAT[type] ?? type) : 'server_error';
  return { error: { message: wordsOf(message), type: name, param: null, code: null } };
}

/**
 * An error of chat, or what stands in for one, as one of messages.
 *
 * @param status The HTTP status; undefined inside a stream.
 */
export function messageError(value: JsonObject, status?: number): JsonObject {
  const error = isObject(value.error) ? value.error : {};
  const { type, message = value.error } = error;
  const named = typeof type === 'string' ? (TO_MESSAGES[type] ?? type) : '';
  const known = MESSAGE_TYPES.has(named) ? named : 'api_error';
  const name = (status !== undefined && BY_STATUS[status]) || known;
  return { type: 'error', error: { type: name, message: wordsOf(message) } };
}

function wordsOf(message: Json | undefined): string {
  return typeof message === 'string' && message !== '' ? message : NO_WORDS;
}
