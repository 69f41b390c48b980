/** Headers: those that frame a message are set here and by nobody else. */

/** Headers that describe this connection or this framing, which are not the caller's to set. */
const FRAMING = new Set([
  'host',
  'connection',
  'keep-alive',
  'content-length',
  'transfer-encoding',
  'upgrade',
  'expect',
]);

/** Asks for identity unless told otherwise, or a runtime would ask for what it can decode. */
export function frameHeaders(headers: Readonly<Record<string, string>>): Record<string, string> {
  const kept: Record<string, string> = { 'accept-encoding': 'identity' };
  for (const name in headers) {
    const lower = name.toLowerCase();
    if (!FRAMING.has(lower)) kept[lower] = headers[name]!;
  }
  return kept;
}
