/** Whole answers: a chat completion as a message, and a message as a chat completion. */

import type { JsonObject } from '../../../schema/json.ts';
import { isGiven } from '../../../schema/rules/bound.ts';
import { memberOf } from '../reading.ts';
import { toolUseOf } from './chat-request.ts';
import { Untranslatable } from './contract.ts';
import { chatUsage, finishOf, messageUsage, stopReasonOf } from './endings.ts';
import { listOf, objectOf } from './members.ts';
import { toolCall } from './message-request.ts';
import { refuseOtherOutput, textIn } from './parts.ts';

/**
 * Says a message over as a chat completion: its text, its calls of tools, its end and its usage.
 *
 * @param message As `readExact` read it.
 * @param createdS Unix seconds, which messages do not tell.
 * @throws {Untranslatable} for what is no message, a block that chat can't say, and text after a
 *   call.
 */
export function toChatCompletion(message: JsonObject, createdS: number): JsonObject {
  const blocks = blocksOf(message);
  const calls = blocks.filter(isUse);
  const said = textIn(blocks.filter(isNoUse), 'content');
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
        finish_reason: finishOf(message.stop_reason, calls.length > 0),
      },
    ],
    usage: chatUsage(memberOf(message, 'usage')),
  };
}

const isUse = ({ type }: JsonObject) => type === 'tool_use';
const isNoUse = (block: JsonObject) => !isUse(block);

/** The blocks of a message: some upstreams answer 200 with an error. */
function blocksOf({ type = 'message', content }: JsonObject): JsonObject[] {
  if (type !== 'message') throw new Untranslatable('type', 'is not that of a message');
  if (!Array.isArray(content)) throw new Untranslatable('content', 'is not a list');
  return content.map((block) => objectOf(block, 'content[]'));
}

/** Chat has one text, which stands before the calls. */
function refuseLateText(blocks: readonly JsonObject[]): void {
  const firstUse = blocks.findIndex(isUse);
  const after = firstUse < 0 ? [] : blocks.slice(firstUse);
  if (textIn(after.filter(isNoUse), 'content') !== '') {
    throw new Untranslatable('content[].type', 'is text after the use of a tool');
  }
}

/**
 * Says a chat completion over as a message: its text, its calls of functions, its end and its
 * usage. A refusal is text too, told apart by the reason of the end. A call that the limit of the
 * output cut has no arguments that anyone could run it with: the end tells of it.
 *
 * @param completion As `readExact` read it.
 * @throws {Untranslatable} for other arguments that are not a JSON object, other calls than those of
 *   functions in `tool_calls`, and what else than text messages can't say.
 */
export function toMessage(completion: JsonObject): JsonObject {
  const [first, second] = listOf(completion.choices, 'choices');
  if (second !== undefined) throw new Untranslatable('choices', 'are more than one');
  const choice = objectOf(first, 'choices[0]');
  const field = 'choices[0].message';
  const message = objectOf(choice.message, field);
  refuseOtherOutput(message, field);
  const refused = isGiven(message.refusal);
  const said =
    textIn(message.content, `${field}.content`) + textIn(message.refusal, `${field}.refusal`);
  const calls = callsOf(message, choice.finish_reason === 'length');
  const ended = stopReasonOf(choice.finish_reason, calls.length > 0);
  return {
    id: completion.id ?? '',
    type: 'message',
    role: 'assistant',
    model: completion.model ?? '',
    content: [...(said === '' ? [] : [{ type: 'text', text: said }]), ...calls],
    stop_reason: refused ? 'refusal' : ended,
    stop_sequence: null,
    usage: messageUsage(memberOf(completion, 'usage')),
  };
}

function callsOf(message: JsonObject, isCut: boolean): JsonObject[] {
  const calls = listOf(message.tool_calls, 'tool_calls').map((call) => objectOf(call, CALL));
  const last = calls.at(-1);
  const isLastCut = isCut && last !== undefined && !isWhole(memberOf(last, 'function'));
  return (isLastCut ? calls.slice(0, -1) : calls).map(useOf);
}

/** Whether arguments are JSON: the beginning of an object never is. */
function isWhole({ arguments: text }: JsonObject): boolean {
  try {
    JSON.parse(typeof text === 'string' ? text : '{}');
    return true;
  } catch {
    return false;
  }
}

const CALL = 'tool_calls[]';

function useOf(value: JsonObject): JsonObject {
  return toolUseOf(value.id, objectOf(value.function, `${CALL}.function`), CALL);
}
