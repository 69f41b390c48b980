/** The audit trail as a download: ready to be verified elsewhere, or for a spreadsheet. */

import { z } from 'zod';
import { auditEntry, readChain } from '../db/audit.ts';
import { listCheckpoints, signHead } from '../db/checkpoints.ts';
import type { Org } from '../db/org.ts';
import { openSigner, readPublicKeys } from '../db/signing.ts';
import { formatCsvRow } from '../schema/csv.ts';
import { Refusal } from '../schema/errors.ts';
import { authenticateAdmin } from './admin.ts';
import { respond } from './edge.ts';
import { requestIdOf } from './proxy/authenticate.ts';
import type { Services } from './services.ts';

/** The forms in which the trail can be had. */
export const AUDIT_FORMATS = ['jsonl', 'csv'] as const;

export type AuditFormat = (typeof AUDIT_FORMATS)[number];

/** The query of the download. */
export const auditQuery = z.object({
  format: z
    .enum(AUDIT_FORMATS)
    .default('jsonl')
    .describe(
      'jsonl: what `npx bun run rungate audit verify --file` checks; csv: for a spreadsheet.',
    ),
});

const CONTENT_TYPES: Readonly<Record<AuditFormat, string>> = {
  jsonl: 'application/jsonl',
  csv: 'text/csv; charset=utf-8',
};

/**
 * `GET /api/audit/export?format=jsonl|csv`: the whole trail of the org, streamed. The export is
 * itself on the trail, and in a `jsonl` signed checkpoints come first.
 *
 * @throws {Refusal} `invalid_token`, `permission_denied`, `invalid_request`.
 */
export async function exportAudit(services: Services, request: Request): Promise<Response> {
  const { org, actor } = await authenticateAdmin(services, request, 'audit.export', 'audit');
  const query = auditQuery.safeParse(Object.fromEntries(new URL(request.url).searchParams));
  if (!query.success) {
    throw new Refusal('invalid_request', 'format must be jsonl or csv.', { field: 'format' });
  }
  const { format } = query.data;
  await org.write(auditEntry(org, actor, 'audit.export', 'audit', { format }));
  return respond(streamLines(auditLines(services, org, format)), 200, {
    'content-type': CONTENT_TYPES[format],
    'content-disposition': `attachment; filename="audit-${org.id}.${format}"`,
    'cache-control': 'no-store',
    'x-request-id': requestIdOf(request),
  });
}

/** What signs: the deployment's keys, sealed in its database. */
type Keys = Pick<Services, 'db' | 'master'>;

/** The whole trail of an org, line by line, without line feeds. */
export function auditLines(keys: Keys, org: Org, format: AuditFormat): AsyncGenerator<string> {
  return format === 'csv' ? csvLines(org) : jsonLines(keys, org);
}

/** A header with the public keys and the checkpoints, then an entry per line. */
async function* jsonLines({ db, master }: Keys, org: Org): AsyncGenerator<string> {
  await signHead(org, await openSigner(db, master), Date.now());
  const publicKeys = await readPublicKeys(db, master);
  const checkpoints = await listCheckpoints(org);
  const header = { type: 'rungate.audit', version: 1, org: org.id, publicKeys, checkpoints };
  yield JSON.stringify(header);
  for await (const entry of readChain(org)) yield JSON.stringify(entry);
}

const CSV_COLUMNS = [
  ...['seq', 'id', 'at', 'actorKind', 'action', 'target', 'outcome'],
  ...['payload', 'commitment', 'prevHash', 'hash'],
];

async function* csvLines(org: Org): AsyncGenerator<string> {
  yield formatCsvRow(CSV_COLUMNS);
  for await (const entry of readChain(org)) {
    const { seq, id, at, actorKind, action, target, outcome, payload } = entry;
    const said = [seq, id, new Date(at).toISOString(), actorKind, action, target, outcome];
    const proof = [payload?.text ?? null, entry.commitment, entry.prevHash, entry.hash];
    yield formatCsvRow([...said, ...proof]);
  }
}

/** About how much is sent at once. */
const CHUNK_CHARS = 65_536;

/** Reads no further than its reader asks for, and ends with him. */
function streamLines(lines: AsyncGenerator<string>): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const { text, isLast } = await gather(lines);
        if (text !== '') controller.enqueue(encoder.encode(text));
        if (isLast) controller.close();
      },
      async cancel() {
        await lines.return(undefined);
      },
    },
    { highWaterMark: 1 },
  );
}

async function gather(lines: AsyncGenerator<string>): Promise<{ text: string; isLast: boolean }> {
  let text = '';
  while (text.length < CHUNK_CHARS) {
    const next = await lines.next();
    if (next.done) return { text, isLast: true };
    text += `${next.value}\n`;
  }
  return { text, isLast: false };
}
