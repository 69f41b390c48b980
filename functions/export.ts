/** Export: everything that an org owns, as JSON lines in a tar archive that is made as it is sent. */

import { z } from 'zod';
import {
  countExport,
  type ExportTable,
  exportArgs,
  exportBodies,
  exportParked,
  exportTables,
  listAsked,
  listCaptured,
  listParked,
  noteExport,
  readExportPage,
} from '../db/export.ts';
import type { Org } from '../db/org.ts';
import { readAccount } from '../db/orgs.ts';
import { digest } from '../db/seal.ts';
import { Refusal } from '../schema/errors.ts';
import { TAR_END, tarHeader, tarPadding } from '../schema/tar.ts';
import { authenticateAdmin } from './admin.ts';
import { respond } from './edge.ts';
import type { Services } from './services.ts';
import { breathe } from './turns.ts';

/** What is exported, and of what. */
export interface Exporting {
  readonly services: Pick<Services, 'db' | 'master' | 'now'>;
  readonly org: Org;
  /** Whether kept bodies, arguments of gates and parked answers are opened and exported, too. */
  readonly hasBodies: boolean;
  /** Told how many rows have been read since it was told last. */
  readonly onRows?: (count: number) => void;
}

/** A file of the archive. */
interface ExportedFile {
  readonly path: string;
  readonly rows: number;
  readonly bytes: number;
  readonly sha256: string;
}

type Bytes = Uint8Array<ArrayBuffer>;

const PAGE_ROWS = 200;
const BODIES_PER_PAGE = 4;
const ARGS_PER_PAGE = 20;
/** The headers of tar tell how long a file is, so that each is made whole before it is sent. */
const FILE_CHARS = 4 * 1024 * 1024;

/** How many rows there are to export, without bodies. */
export async function countRows({ services, org }: Exporting): Promise<number> {
  let rows = 0;
  for (const table of await exportTables(services.db)) rows += await countExport(org, table);
  return rows;
}

/**
 * The archive, piece by piece: `TABLE.jsonl`, `TABLE-2.jsonl` … with a row as a JSON object per
 * line, what is sealed in files of its own where that is wanted (see {@link OPENED}), and at the
 * end `manifest.json` with the rows and files of each table and the SHA-256 of each file.
 */
export async function* writeArchive(exporting: Exporting): AsyncGenerator<Bytes> {
  const { services, org, hasBodies } = exporting;
  const at = services.now();
  const tables = await exportTables(services.db);
  const described: Record<string, object> = {};
  for (const table of tables) {
    const lines = rowLines(exporting, table);
    described[table.name] = yield* writeTable(table.name, lines, at, table.withheld);
  }
  for (const [name, lines] of hasBodies ? Object.entries(OPENED) : []) {
    described[name] = yield* writeTable(name, lines(exporting), at, []);
  }
  const account = await readAccount(org);
  const manifest = {
    ...{ format: 'rungate.export', version: 1, createdAt: new Date(at).toISOString() },
    org: { id: org.id, slug: account?.slug, name: account?.name },
    hasBodies,
    tables: described,
  };
  yield* writeFile('manifest.json', encode(`${JSON.stringify(manifest, null, 2)}\n`), at);
  yield TAR_END;
}

/** Cuts the lines of a table into files. @returns what the manifest says of it. */
async function* writeTable(
  name: string,
  lines: AsyncIterable<string>,
  at: number,
  withheld: readonly string[],
): AsyncGenerator<Bytes, object> {
  const files: ExportedFile[] = [];
  let text = '';
  let rows = 0;
  async function* flush() {
    const path = files.length === 0 ? `${name}.jsonl` : `${name}-${files.length + 1}.jsonl`;
    const content = encode(text);
    files.push({ path, rows, bytes: content.length, sha256: digest(content) });
    [text, rows] = ['', 0];
    yield* writeFile(path, content, at);
  }
  for await (const line of lines) {
    text += `${line}\n`;
    rows++;
    if (text.length >= FILE_CHARS) yield* flush();
  }
  if (rows > 0 || files.length === 0) yield* flush();
  const total = files.reduce((sum, file) => sum + file.rows, 0);
  return { rows: total, withheld, files };
}

function* writeFile(path: string, content: Bytes, at: number): Generator<Bytes> {
  yield tarHeader(path, content.length, at / 1_000);
  // A stream has no use for empty pieces.
  yield* [content, tarPadding(content.length)].filter((piece) => piece.length > 0);
}

async function* rowLines(exporting: Exporting, table: ExportTable): AsyncGenerator<string> {
  let after: Parameters<typeof readExportPage>[2];
  do {
    const page = await readExportPage(exporting.org, table, after, PAGE_ROWS);
    yield* page.rows.map((row) => JSON.stringify(row));
    exporting.onRows?.(page.rows.length);
    after = page.next;
    await breathe();
  } while (after);
}

async function* bodyLines({ services, org }: Exporting): AsyncGenerator<string> {
  for await (const steps of pages(listCaptured, org, BODIES_PER_PAGE)) {
    for (const step of steps) {
      const bodies = await exportBodies(org, services.master, step);
      yield* bodies.map((body) => JSON.stringify(body));
    }
  }
}

async function* argLines({ services, org }: Exporting): AsyncGenerator<string> {
  for await (const gates of pages(listAsked, org, ARGS_PER_PAGE)) {
    const args = await exportArgs(org, services.master, gates);
    yield* args.map((each) => JSON.stringify(each));
  }
}

/** One at a time: an answer may be long. */
async function* answerLines({ services, org }: Exporting): AsyncGenerator<string> {
  for await (const ids of pages(listParked, org, 1)) {
    for (const id of ids) {
      const answer = await exportParked(org, services.master, id);
      if (answer) yield JSON.stringify(answer);
    }
  }
}

/** What a list tells page by page, each after the last of the page before. */
async function* pages<T>(
  list: (org: Org, after: T | undefined, limit: number) => Promise<readonly T[]>,
  org: Org,
  limit: number,
): AsyncGenerator<readonly T[]> {
  for (let after: T | undefined; ; ) {
    const page = await list(org, after, limit);
    yield page;
    if (page.length < limit) return;
    after = page.at(-1);
    await breathe();
  }
}

/** What tables hold sealed, by the name of the file that has it opened. */
const OPENED: Readonly<Record<string, (exporting: Exporting) => AsyncGenerator<string>>> = {
  bodies: bodyLines,
  gate_args: argLines,
  parked_answers: answerLines,
};

function encode(text: string): Bytes {
  return new TextEncoder().encode(text);
}

/** The query of the archive. */
export const exportQuery = z.object({
  bodies: z
    .literal('open')
    .optional()
    .describe(
      'Kept bodies, arguments of gates and parked answers come along, opened; this takes the ' +
        'actions run.body_read and gate.read too.',
    ),
});

/** What `?bodies=open` takes: the actions by which the same is read elsewhere. */
const OPENING = ['run.body_read', 'gate.read'] as const;

/**
 * `GET /api/export`: the archive, streamed no faster than it is read. With `?bodies=open` it has
 * what is sealed, too, but for secrets.
 *
 * @throws {Refusal} `invalid_token`, `permission_denied`, `invalid_request`.
 */
export async function exportOrg(services: Services, request: Request): Promise<Response> {
  const { org, actor, viewer } = await authenticateAdmin(services, request, 'org.export', 'org');
  const query = exportQuery.safeParse(Object.fromEntries(new URL(request.url).searchParams));
  if (!query.success) {
    throw new Refusal('invalid_request', 'bodies can only be "open".', { field: 'bodies' });
  }
  const hasBodies = query.data.bodies === 'open';
  const lacking = OPENING.find((action) => !viewer.actions.has(action));
  if (hasBodies && lacking) {
    throw new Refusal('permission_denied', `bodies=open takes the action ${lacking}.`, {
      ...{ rule: 'token.actions', asked: lacking },
    });
  }
  await noteExport(org, actor, hasBodies);
  const slug = (await readAccount(org))?.slug ?? 'org';
  return respond(streamOf(writeArchive({ services, org, hasBodies })), 200, {
    'content-type': 'application/x-tar',
    'content-disposition': `attachment; filename="rungate-${slug}.tar"`,
    'cache-control': 'no-store',
  });
}

function streamOf(parts: AsyncGenerator<Bytes>): ReadableStream<Bytes> {
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await parts.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    async cancel() {
      await parts.return(undefined);
    },
  });
}
