/** The JSON Schemas that Rungate publishes. */

import { eventsJsonSchema } from '../schema/events.ts';
import { policyJsonSchema } from '../schema/policy.ts';
import { respond } from './edge.ts';
import type { Services } from './services.ts';

const HEADERS = {
  'content-type': 'application/schema+json',
  'cache-control': 'public, max-age=3600',
  'access-control-allow-origin': '*',
};

const written = new Map<string, string>();

/** `GET /schemas/policy.json`: the schema of a policy's document, for editors and validators. */
export function showPolicySchema({ config }: Services): Response {
  const path = '/schemas/policy.json';
  return respond(write(`${config.publicUrl ?? ''}${path}`, policyJsonSchema), 200, HEADERS);
}

/** `GET /schemas/events.json`: the schema of every event that webhooks deliver. */
export function showEventsSchema({ config }: Services): Response {
  const path = '/schemas/events.json';
  return respond(write(`${config.publicUrl ?? ''}${path}`, eventsJsonSchema), 200, HEADERS);
}

/** Each schema is made once: it changes only with the program. */
function write(url: string, make: (url: string) => object): string {
  const text = written.get(url) ?? JSON.stringify(make(url), null, 2);
  written.set(url, text);
  return text;
}
