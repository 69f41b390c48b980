/** What a provider adapter answers: how a call is bounded and changed, and what it consumed. */

import type { Dialect } from '../../schema/errors.ts';
import type { Edit, JsonObject, StrictBody } from '../../schema/json.ts';
import type { Bound } from '../../schema/rules/bound.ts';
import type { Rates } from '../../schema/rules/catalogue.ts';
import type { SseEvent } from '../../schema/sse.ts';
import type { Usage } from '../../schema/usage.ts';

/** One endpoint of a wire format. */
export interface Endpoint {
  readonly name: string;
  readonly dialect: Dialect;
  readonly method: 'GET' | 'POST' | 'DELETE';
  /** Below the provider's base URL, without a slash in front; `{id}` stands for the parameter. */
  readonly path: string;
  /** Whether a call can cost money: then it needs rates and a hold. */
  readonly spends: boolean;
  /** The providers that have the endpoint on these terms; absent for all of the dialect. */
  readonly providers?: ReadonlySet<string>;
  /** The top-level members of the body that decide what a call may do and cost. */
  readonly readKeys: ReadonlySet<string>;
  /**
   * The most that a call can consume.
   *
   * @param bodyBytes Length of the decoded body in bytes.
   * @throws {Refusal} `invalid_body` for members of the wrong type.
   */
  bound(body: JsonObject, bodyBytes: number, rates: Rates): Bound;
  /**
   * Edits that lower the most output tokens of each choice.
   *
   * @param tokens A non-negative integer.
   * @param limitKey The member that the provider reads, where a body sets none; see `Provider`.
   */
  limitOutput(body: StrictBody, tokens: number, limitKey?: string): Edit[];
  /**
   * Edits that make the upstream report usage in a stream; none where it does by itself.
   *
   * @throws {Refusal} `invalid_body` for members of the wrong type.
   */
  askUsage(body: StrictBody): Edit[];
  meter(options: MeterOptions): Meter;
  /** Reads the tool calls that an answer proposes; absent where no answer proposes any. */
  calls?(asked?: Asked): CallReader;
}

/** What was asked for, as far as it says how an answer is to be read. */
export interface Asked {
  /** The most choices of an answer; 1 unless told otherwise. */
  readonly choices?: number;
  /** Whether a stream goes on in the midst of an answer. */
  readonly isResumed?: boolean;
}

export interface MeterOptions {
  /** Whether the body was edited as {@link Endpoint.askUsage} said. */
  readonly askedUsage: boolean;
}

/** What an answer said about itself, as far as it has been seen. */
export interface Reading {
  readonly model?: string | undefined;
  /** As `costOf` takes it. */
  readonly serviceTier?: string | undefined;
  readonly responseId?: string | undefined;
  /** Ids of the output items of a response that the upstream keeps. */
  readonly itemIds?: readonly string[] | undefined;
  /**
   * Of a stream that breaks: what had been reported until then, which is less than was consumed.
   * Of one that was complete: all of it.
   */
  readonly usage?: Usage | undefined;
  /** The status of a response that has one, such as `in_progress`. */
  readonly status?: string | undefined;
  /** Whether the answer reached its end: the terminal event, or a body that is final. */
  readonly complete: boolean;
}

/** Reads one answer while it passes by. */
export interface Meter {
  /** Takes a whole JSON answer. */
  body(value: JsonObject): void;
  /**
   * Takes one event of a stream.
   *
   * @returns `swallow` for an event that exists only because we asked for usage, `last` for the one
   *   that ends the stream: callers may act on it at once.
   */
  event(event: SseEvent): 'pass' | 'swallow' | 'last';
  reading(): Reading;
}

/** How a call stands in its answer: the type of its item or block, or the member that holds it. */
export type CallKind =
  | 'tool_call'
  | 'tool_use'
  | 'mcp_approval_request'
  | 'function_call'
  | 'custom_tool_call'
  | `${string}_call`
  | `${string}_tool_use`;

/** A tool call that an answer asks the caller to run. */
export interface ProposedCall {
  readonly kind: CallKind;
  /** What the result refers to: the call's id; of a former function call its name. */
  readonly id: string | null;
  /**
   * As the model wrote it. A call without a name has that of its tool (`shell`, `local_shell`,
   * `apply_patch`, `computer`); one of an MCP server is `{server_label}/{name}`.
   */
  readonly name: string;
  /** Undefined where the text is not an object that every reader reads alike. */
  readonly args: JsonObject | undefined;
  /** The JSON text that `args` is read from, as the model wrote it; of free text `{"input":…}`. */
  readonly argsText: string;
  /** Of a call that ran upstream for an approval: the id of the request that was approved. */
  readonly approvalId?: string;
  /** Whether it is another of the calls again, under another id: whoever asks has asked about it. */
  readonly isRepeat?: boolean;
}

/** Reads the tool calls of one answer: one whole body, or one stream event by event. */
export interface CallReader {
  /** Takes a whole answer as it was received and returns {@link calls}. */
  body(bytes: Uint8Array): readonly ProposedCall[];
  /**
   * Takes one event of a stream.
   *
   * @returns Every name that a reader could give to the calls that the event begins or goes on
   *   with; an empty one for a call whose name is not known yet. None for all other events.
   */
  event(event: SseEvent): readonly string[];
  /**
   * The calls so far. Where parts of an answer disagree about a call, each version is one: all of
   * them have to be permitted before any of the answer may go on.
   */
  calls(): readonly ProposedCall[];
  /** Takes the end of a stream and returns {@link calls}; one without a name is a fault then. */
  end(): readonly ProposedCall[];
  /**
   * Why readers could read the answer as different calls, as a clause such as `"an event is not
   * strict JSON"`; undefined while all is well. With one, nothing more may go on.
   */
  readonly fault: string | undefined;
}
