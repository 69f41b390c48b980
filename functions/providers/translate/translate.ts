/** Between chat completions and messages: what can be said over, and what then comes back. */

import {
  JSON_LIMITS,
  type JsonObject,
  parseStrict,
  type StrictBody,
} from '../../../schema/json.ts';
import { isObject } from '../../../schema/rules/bound.ts';
import { type SseEvent, SseParser } from '../../../schema/sse.ts';
import type { Stage } from '../../proxy/stream.ts';
import type { Endpoint } from '../contract.ts';
import { toChatCompletion, toMessage } from './answers.ts';
import { toMessagesRequest } from './chat-request.ts';
import { ChatToMessageEvents } from './chat-stream.ts';
import { type Translation, Untranslatable } from './contract.ts';
import { chatError, messageError } from './errors.ts';
import { readExact, write } from './exact.ts';
import { type ChatWishes, toChatRequest } from './message-request.ts';
import { MessageToChatChunks } from './message-stream.ts';

/** Where a translated request goes. */
export interface Destination extends ChatWishes {
  readonly endpoint: Endpoint;
  readonly model: string;
  /** The output limit where the caller sets none, tokens. */
  readonly maxTokens: number;
  /** When the answer is made, Unix seconds. */
  readonly createdS: number;
}

/** A request in another dialect, and the way back. */
export interface Translated {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly body: StrictBody;
  readonly translation: Translation;
}

/** The longest event of a stream, in bytes. */
const MAX_EVENT_BYTES = 32 * 1024 * 1024;

/**
 * Says a request over in the dialect of another endpoint, losing nothing but what says nothing of
 * the answer: labels, and hints for the upstream's own cache.
 *
 * @param from The endpoint that the caller called.
 * @throws {Untranslatable} for any other pair of endpoints, and for whatever the other one lacks.
 */
export function translate(from: Endpoint, body: StrictBody, to: Destination): Translated {
  const route = `${from.name} → ${to.endpoint.name}`;
  const asked = readExact(body.text, 'body');
  if (route === 'chat.completions → messages') {
    const said = toMessagesRequest(asked, to.model, to.maxTokens);
    return translated(said, to.endpoint, fromMessages(to.createdS, asksUsage(asked)));
  }
  if (route === 'messages → chat.completions') {
    return translated(toChatRequest(asked, to.model, to), to.endpoint, FROM_CHAT);
  }
  throw new Untranslatable(from.name, `calls can't be said over as ${to.endpoint.name}`);
}

function translated(said: JsonObject, endpoint: Endpoint, translation: Translation): Translated {
  const bytes = write(said);
  return { bytes, body: parseStrict(bytes, endpoint.readKeys, JSON_LIMITS), translation };
}

function asksUsage({ stream_options: options }: JsonObject): boolean {
  return isObject(options) && options.include_usage === true;
}

function fromMessages(createdS: number, isUsageAsked: boolean): Translation {
  return {
    answer: (bytes) => write(toChatCompletion(readExact(bytes, 'answer'), createdS)),
    error: (_status, bytes) => write(chatError(readError(bytes))),
    stream: () => new Events(new MessageToChatChunks(createdS, isUsageAsked)),
  };
}

const FROM_CHAT: Translation = {
  answer: (bytes) => write(toMessage(readExact(bytes, 'answer'))),
  error: (status, bytes) => write(messageError(readError(bytes), status)),
  stream: () => new Events(new ChatToMessageEvents()),
};

function readError(bytes: Uint8Array): JsonObject {
  try {
    return readExact(bytes, 'error');
  } catch {
    return {};
  }
}

const encoder = new TextEncoder();

/** Cuts a stream into its events, has each said over, and puts them together again. */
class Events implements Stage {
  readonly #parser = new SseParser(MAX_EVENT_BYTES);
  readonly #speaker: { event(event: SseEvent): string };

  constructor(speaker: { event(event: SseEvent): string }) {
    this.#speaker = speaker;
  }

  push(chunk: Uint8Array): Uint8Array {
    return this.#say(this.#parser.push(chunk));
  }

  end(): Uint8Array {
    return this.#say(this.#parser.end());
  }

  #say(events: readonly SseEvent[]): Uint8Array {
    return encoder.encode(events.map((event) => this.#speaker.event(event)).join(''));
  }
}
