/** What the built-in models say: one answer for one turn, whatever the wire format. */

import type { Members } from './body.ts';
import { type Call, readCalls, type Tool } from './calls.ts';
import { Fault } from './fault.ts';
import { byteLength, cutText, quote, textOf, tokensOf } from './text.ts';

/** The built-in models. */
export const MODELS = ['demo-small', 'demo-large'] as const;

/** A time for everything that needs one: the same request gives the same bytes. 1 July 2025. */
export const CREATED_S = 1_751_328_000;

const MAX_QUOTED = 32;

/** Whether tools may, must or must not be called; an object names the one that must be. */
export type Choice = 'auto' | 'none' | 'required' | { readonly name: string };

/** A conversation up to now, as far as the answer depends on it. */
export interface Turn {
  readonly model: string;
  /** The text of the last message of the user. */
  readonly asked: string;
  /** The tool results that the conversation ends with. */
  readonly results: readonly string[];
  readonly tools: readonly Tool[];
  readonly choice: Choice;
  /** Whether one answer may hold several calls. */
  readonly parallel: boolean;
  readonly maxTokens: number | undefined;
}

/** An answer: text or calls. `cut` says that the output limit left something out. */
export interface Reply {
  readonly text: string;
  readonly calls: readonly Call[];
  readonly cut: boolean;
  readonly outputTokens: number;
}

/**
 * Answers a turn: with calls where the user asks `call NAME {json}` (several joined by ` and `) or
 * a tool is forced, else with a sentence that quotes the tool results or the user.
 */
export function reply(turn: Turn): Reply {
  const limit = turn.maxTokens ?? Number.POSITIVE_INFINITY;
  const calls = turn.results.length > 0 ? [] : chooseCalls(turn);
  return calls.length > 0 ? propose(calls, limit) : speak(sentence(turn), limit);
}

function sentence({ model, asked, results }: Turn): string {
  return results.length > 0
    ? `${model} read the tool result: ${results.slice(0, MAX_QUOTED).map(quote).join(', ')}.`
    : `${model} heard you say: ${quote(asked)}.`;
}

function speak(whole: string, limit: number): Reply {
  const text = cutText(whole, limit);
  return { text, calls: [], cut: text !== whole, outputTokens: tokensOf(byteLength(text)) };
}

function propose(wanted: readonly Call[], limit: number): Reply {
  const calls: Call[] = [];
  let outputTokens = 0;
  for (const call of wanted) {
    const tokens = tokensOf(byteLength(call.name) + byteLength(call.input));
    if (outputTokens + tokens > limit) break;
    outputTokens += tokens;
    calls.push(call);
  }
  return { text: '', calls, cut: calls.length < wanted.length, outputTokens };
}

function chooseCalls({ asked, tools, choice, parallel }: Turn): Call[] {
  if (choice === 'none') return [];
  const named = typeof choice === 'object' ? tools.filter((tool) => tool.name === choice.name) : [];
  const calls = readCalls(asked, named.length > 0 ? named : tools);
  const [forced] = named.length > 0 ? named : tools;
  if (calls.length === 0 && choice !== 'auto' && forced) return [{ ...forced, input: '{}' }];
  return parallel ? calls : calls.slice(0, 1);
}

/** The text of the last message whose role is `user`, or an empty one. */
export function lastAsked(messages: readonly Members[]): string {
  return textOf(messages.findLast(({ role }) => role === 'user')?.content);
}

/** The entries at the end of a list that pass a test, in the list's order. */
export function trailing<T>(list: readonly T[], test: (entry: T) => boolean): readonly T[] {
  return list.slice(list.findLastIndex((entry) => !test(entry)) + 1);
}

/**
 * Checks that a model is one of the built-in ones.
 *
 * @throws {Fault} 404 as the providers answer for an unknown model.
 */
export function requireModel(model: string): void {
  if (MODELS.some((known) => known === model)) return;
  throw new Fault(
    404,
    `The model '${model.slice(0, 100)}' does not exist: the demo has ${MODELS.join(' and ')}.`,
    'model',
    'model_not_found',
  );
}
