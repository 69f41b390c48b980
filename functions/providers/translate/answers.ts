/** Whole answers: a chat completion as a message, and a message as a chat completion. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isGiven, isObject } from '../../../schema/rules/bound.ts';
import { memberOf } from '../reading.ts';
import { toolUseOf } from './chat-request.ts';
import { Untranslatable } from './contract.ts';
import { chatUsage, finishOf, messageUsage, stopReasonOf } from './endings.ts';
import { listOf, noCounterpart, objectOf } from './members.ts';
import { toolCall } from './message-request.ts';
import { joinTexts } from './parts.ts';

/**
 * Says a message over as a chat completion: its text, its calls of tools, its end and its usage.
 * What it thought has no place there.
 *
 * @param message As `readExact` read it.
 * @param createdS Unix seconds, which messages do not tell.
 * @throws {Untranslatable} for a block that chat can't say, and for text after a call.
 */
export function toChatCompletion(message: JsonObject, createdS: number): JsonObject {
  const blocks = listOf(message.content, 'content').filter(isObject);
  const calls = blocks.filter(({ type }) => type === 'tool_use');
  const said = joinTexts(blocks.filter(({ type }) => type === 'text'));
  const alien = blocks.find(({ type }) => !SAID.has(type));
  if (alien) throw new Untranslatable('content[].type', 'has no counterpart in chat');
  refuseLateText(blocks);
  const isSaid = said !== '' || calls.length === 0;
  return {
    id: message.id ?? '',
    object: 'chat.completion',
    created: createdS,
    model: message.model ?? '',
    choices: [
      {
        index: 0,
        message: {
          role: 'assistant',
          content: isSaid ? said : null,
          refusal: null,
          ...(calls.length > 0
            ? { tool_calls: calls.map((use) => toolCall(use, 'content[]')) }
            : {}),
        },
        logprobs: null,
        finish_reason: finishOf(message.stop_reason),
      },
    ],
    usage: chatUsage(memberOf(message, 'usage')),
  };
}

/** Chat has one text, which stands before the calls. */
function refuseLateText(blocks: readonly JsonObject[]): void {
  const firstUse = blocks.findIndex(({ type }) => type === 'tool_use');
  const after = firstUse < 0 ? [] : blocks.slice(firstUse);
  if (joinTexts(after.filter(({ type }) => type === 'text')) !== '') {
    throw new Untranslatable('content[].type', 'is text after the use of a tool');
  }
}

/** The blocks of an answer that chat can say, or that it does not show. */
const SAID: ReadonlySet<Json | undefined> = new Set([
  'text',
  'tool_use',
  'thinking',
  'redacted_thinking',
]);

/**
 * Says a chat completion over as a message: its text, its calls of functions, its end and its
 * usage. A refusal is text too, told apart by the reason of the end.
 *
 * @param completion As `readExact` read it.
 * @throws {Untranslatable} for arguments that are not a JSON object, and other calls than those of
 *   functions in `tool_calls`.
 */
export function toMessage(completion: JsonObject): JsonObject {
  const choice = objectOf(listOf(completion.choices, 'choices')[0], 'choices[0]');
  const message = objectOf(choice.message, 'choices[0].message');
  if (isGiven(message.function_call)) throw noCounterpart('choices[0].message.function_call');
  const refused = isGiven(message.refusal);
  const said = joinTexts(message.content) + joinTexts(message.refusal);
  const calls = listOf(message.tool_calls, 'tool_calls').map(useOf);
  return {
    id: completion.id ?? '',
    type: 'message',
    role: 'assistant',
    model: completion.model ?? '',
    content: [...(said === '' ? [] : [{ type: 'text', text: said }]), ...calls],
    stop_reason: refused ? 'refusal' : stopReasonOf(choice.finish_reason),
    stop_sequence: null,
    usage: messageUsage(memberOf(completion, 'usage')),
  };
}

function useOf(call: Json): JsonObject {
  const field = 'tool_calls[]';
  const value = objectOf(call, field);
  return toolUseOf(value.id, objectOf(value.function, `${field}.function`), field);
}
