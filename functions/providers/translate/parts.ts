/** Text and images, as chat calls them parts and messages blocks. */

import type { Json, JsonObject } from '../../../schema/json.ts';
import { isGiven } from '../../../schema/rules/bound.ts';
import { Untranslatable } from './contract.ts';
import { allowOnly, listOf, noCounterpart, objectOf, stringOf } from './members.ts';

const TEXT_PART = new Set(['type', 'text']);
/** `cache_control` says what the upstream may keep ready, and nothing of the answer. */
const TEXT_BLOCK = new Set(['type', 'text', 'cache_control']);
const IMAGE_PART = new Set(['type', 'image_url']);
const IMAGE_URL = new Set(['url', 'detail']);
const IMAGE_BLOCK = new Set(['type', 'source', 'cache_control']);
const BASE64 = new Set(['type', 'media_type', 'data']);
const URL_SOURCE = new Set(['type', 'url']);

/** The kinds of images that Anthropic reads. */
const MEDIA_TYPE = /^image\/(?:jpeg|png|gif|webp)$/;
const DATA_URL = /^data:([^;,]{1,64});base64,/;
const HTTPS = /^https:\/\//;

/** A chat part as a block. @throws {Untranslatable} */
export function blockOf(part: Json, field: string, texts = false): JsonObject {
  const { type, ...rest } = objectOf(part, field);
  if (type === 'text') return textOf({ type, ...rest }, TEXT_PART, field);
  if (type !== 'image_url' || texts) throw noCounterpart(`${field}.type`);
  allowOnly(rest, IMAGE_PART, `${field}.`);
  const image = objectOf(rest.image_url, `${field}.image_url`);
  allowOnly(image, IMAGE_URL, `${field}.image_url.`);
  if (isGiven(image.detail) && image.detail !== 'auto') {
    throw noCounterpart(`${field}.image_url.detail`);
  }
  const url = stringOf(image.url, `${field}.image_url.url`);
  return { type: 'image', source: sourceOf(url, `${field}.image_url.url`) };
}

function sourceOf(url: string, field: string): JsonObject {
  if (HTTPS.test(url)) return { type: 'url', url };
  const [start = '', mediaType = ''] = DATA_URL.exec(url) ?? [];
  if (!MEDIA_TYPE.test(mediaType)) throw noCounterpart(field);
  return { type: 'base64', media_type: mediaType, data: url.slice(start.length) };
}

/** A block as a chat part. @param texts Whether only text may be said here. @throws {Untranslatable} */
export function partOf(block: Json, field: string, texts = false): JsonObject {
  const { type, ...rest } = objectOf(block, field);
  if (type === 'text') return textOf({ type, ...rest }, TEXT_BLOCK, field);
  if (type !== 'image' || texts) throw noCounterpart(`${field}.type`);
  allowOnly(rest, IMAGE_BLOCK, `${field}.`);
  const url = urlOf(objectOf(rest.source, `${field}.source`), `${field}.source`);
  return { type: 'image_url', image_url: { url } };
}

function urlOf(source: JsonObject, field: string): string {
  if (source.type === 'url') {
    allowOnly(source, URL_SOURCE, `${field}.`);
    const url = stringOf(source.url, `${field}.url`);
    if (HTTPS.test(url)) return url;
    throw noCounterpart(`${field}.url`);
  }
  if (source.type !== 'base64') throw noCounterpart(`${field}.type`);
  allowOnly(source, BASE64, `${field}.`);
  const mediaType = stringOf(source.media_type, `${field}.media_type`);
  if (!MEDIA_TYPE.test(mediaType)) throw noCounterpart(`${field}.media_type`);
  return `data:${mediaType};base64,${stringOf(source.data, `${field}.data`)}`;
}

function textOf(part: JsonObject, known: ReadonlySet<string>, field: string): JsonObject {
  allowOnly(part, known, `${field}.`);
  const text = stringOf(part.text, `${field}.text`);
  // A prompt of nothing is an error at Anthropic's.
  if (text === '') throw new Untranslatable(`${field}.text`, 'is empty');
  return { type: 'text', text };
}

/** What a model thought has no place in the other dialect. */
const UNSHOWN: ReadonlySet<Json | undefined> = new Set(['thinking', 'redacted_thinking']);

/**
 * What an answer says in its text parts or blocks, or in a text alone. Where a text was found is
 * left out, as is what the model thought.
 *
 * @throws {Untranslatable} for whatever else is in it.
 */
export function textIn(content: Json | undefined, field: string): string {
  if (!isGiven(content)) return '';
  if (typeof content === 'string') return content;
  return listOf(content, field)
    .map((part) => textOfPart(objectOf(part, `${field}[]`), `${field}[]`))
    .join('');
}

/** What one part or block of an answer says, as {@link textIn} reads it. @throws {Untranslatable} */
export function textOfPart({ type, text }: JsonObject, field: string): string {
  if (UNSHOWN.has(type)) return '';
  if (type !== 'text') throw noCounterpart(`${field}.type`);
  return stringOf(text ?? '', `${field}.text`);
}

/** What a message of chat may hold besides its text and its calls. */
const OTHER_OUTPUT = ['function_call', 'audio', 'images'];

/** Refuses what only chat can say in an answer. @throws {Untranslatable} */
export function refuseOtherOutput(said: JsonObject, field: string): void {
  const other = OTHER_OUTPUT.find((key) => isGiven(said[key]));
  if (other !== undefined) throw noCounterpart(`${field}.${other}`);
}
