/** The one place that opens libSQL: a file through prepared statements, a server through its client. */

import { closeSync, mkdirSync, openSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createWhole } from './files.ts';

/** What a column can hold. */
export type Value = string | number | null;

/** A row by column name. */
export type Row = Readonly<Record<string, Value>>;

/** SQL with positional parameters (`?1`, `?2` …). */
export interface Statement {
  readonly sql: string;
  readonly args: readonly Value[];
}

/** What a statement of a transaction did. */
export interface Result {
  readonly rows: readonly Row[];
  readonly changes: number;
}

/** Writes of one kind that can often be made as one, at a fraction of the cost. */
export interface Merge<Item, Outcome> {
  /** What it changes: items of one place may be alike, those of two never are. */
  placeOf(item: Item): string;
  /** Whether two items of a place can be written as one; what is alike to one is alike to all. */
  isAlike(one: Item, other: Item): boolean;
  /** Writes all the items or none of them. */
  together(items: readonly Item[]): readonly Statement[];
  /** What came of each item; `undefined` when none was written, and each has to be by itself. */
  outcomesOf(items: readonly Item[], results: readonly Result[]): readonly Outcome[] | undefined;
  /** Writes one item, or nothing. */
  alone(item: Item): readonly Statement[];
  outcomeOf(item: Item, results: readonly Result[]): Outcome;
}

/** A libSQL database, wherever it is. */
export interface Database {
  /** Reads rows, seeing everything whose {@link Database.write} has resolved. */
  read(sql: string, args: readonly Value[]): Promise<readonly Row[]>;
  /** The first of these rows, at about half the cost. */
  first(sql: string, args: readonly Value[]): Promise<Row | undefined>;
  /**
   * Runs statements as one transaction and resolves once it is durable. Transactions that are
   * asked for at the same time are committed together, but fail apart.
   *
   * @throws {DatabaseError} and changes nothing, if a statement fails.
   */
  write(statements: readonly Statement[]): Promise<readonly Result[]>;
  /**
   * Writes an item, as one with those of its kind that are asked for at the same time.
   *
   * @returns what came of it, durably.
   * @throws {DatabaseError} and changes nothing, if a statement fails.
   */
  merge<Item, Outcome>(merge: Merge<Item, Outcome>, item: Item): Promise<Outcome>;
  /** Waits for the writes under way and closes. */
  close(): Promise<void>;
}

/** Codes of SQLite and of servers; 3091, a value of the wrong type, is one the driver can't name. */
const REFUSALS = /^(SQLITE_(?!BUSY|LOCKED|IOERR|FULL)|SQL_|ARGS_|UNKNOWN_SQLITE_ERROR_3091$)/;
const MISSING = 'ARGS_INVALID';
const NUL = 'ARGS_NUL';

/** A statement that the database refused, or a database that can't be reached. */
export class DatabaseError extends Error {
  override readonly name = 'DatabaseError';
  /** Whether a unique constraint refused the write. */
  readonly conflict: boolean;
  /**
   * Whether the statements themselves were refused, so that nothing was written. When false, the
   * database was busy or out of reach, and what a server made of a write is not known.
   */
  readonly refused: boolean;
  /** Whether a text held a NUL, which is its author's fault. */
  readonly isUnfit: boolean;

  constructor(cause: unknown) {
    const message = cause instanceof Error ? cause.message : String(cause);
    super(message, { cause });
    const code = String((cause as { code?: unknown } | null)?.code ?? '');
    this.conflict = /UNIQUE constraint failed/i.test(message);
    this.refused = REFUSALS.test(code);
    this.isUnfit = code === NUL;
  }
}

/** Where the database is and how durable its commits are. */
export interface DatabaseOptions {
  /** `file:path`, `http(s)://…` or `libsql://…`. */
  readonly url: string;
  readonly authToken?: string | undefined;
  /** For files: `full` survives loss of power, `normal` survives the end of the process. */
  readonly synchronous?: 'full' | 'normal';
}

const BUSY_TIMEOUT_MS = 5_000;
const REMOTE_TIMEOUT_MS = 15_000;
const WAL_TRIES = 100;
const WAL_PAUSE_MS = 20;
/**
 * How far the log of a file grows before it is written back, in pages of 4 KB. A page that many
 * groups have changed is written back once, so that four times SQLite's own 1,000 save a twentieth
 * of all time under load; the pause is short enough not to show.
 */
const CHECKPOINT_PAGES = 4_000;
/** Bounds how long a group holds the writer's lock. */
const MAX_GROUP = 256;

/**
 * Opens a database; a file and its folder are made when missing.
 *
 * @throws {DatabaseError} when it can't be opened.
 */
export async function openDatabase(options: DatabaseOptions): Promise<Database> {
  try {
    const driver = options.url.startsWith('file:')
      ? await openFile(options)
      : await openServer(options);
    return groupWrites(driver);
  } catch (error) {
    throw new DatabaseError(error);
  }
}

/** What differs between a file and a server. */
interface Driver {
  read(sql: string, args: readonly Value[]): Promise<readonly Row[]> | readonly Row[];
  first(sql: string, args: readonly Value[]): Promise<Row | undefined> | Row | undefined;
  /** Commits the statements as one transaction; on a failure rolls back and throws. */
  commit(statements: readonly Statement[]): Promise<readonly Result[]> | readonly Result[];
  close(): void;
}

/** The path of a `file:` URL, relative paths included. */
export function filePath(url: string): string {
  return url.startsWith('file://') ? fileURLToPath(url) : url.slice('file:'.length);
}

async function openFile(options: DatabaseOptions): Promise<Driver> {
  const { default: Libsql } = await import('libsql');
  const path = filePath(options.url);
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  createPrivate(path);
  const connect = (): FileDatabase => {
    const db = new Libsql(path, { timeout: BUSY_TIMEOUT_MS });
    db.exec(`pragma synchronous = ${options.synchronous ?? 'full'}`);
    db.exec('pragma foreign_keys = on');
    db.exec(`pragma wal_autocheckpoint = ${CHECKPOINT_PAGES}`);
    return db;
  };
  const db = connect();
  await useWal(db);
  return fileDriver(db, connect);
}

/** SQLite would let everybody read a new file; the log's files get the mode of the file itself. */
function createPrivate(path: string): void {
  try {
    closeSync(openSync(path, 'wx', 0o600));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
}

/**
 * Writes a file anew without what was deleted from it, and empties its log: until then, deleted
 * rows can be found in free pages. Nobody can write meanwhile.
 *
 * @throws {DatabaseError} when others keep the file busy.
 */
export async function compactFile(url: string): Promise<void> {
  const { default: Libsql } = await import('libsql');
  const db = new Libsql(filePath(url), { timeout: BUSY_TIMEOUT_MS });
  try {
    db.exec('vacuum');
    const { busy } = db.prepare('pragma wal_checkpoint(truncate)').get() as { busy: number };
    if (busy !== 0) throw new Error('others read from the database; try again');
  } catch (error) {
    throw new DatabaseError(error);
  } finally {
    db.close();
  }
}

/**
 * Copies a file as it stands, its log included, into a new file that only its owner reads. Others
 * may go on to read and write meanwhile.
 *
 * @param path Of the copy, which is there whole or not at all.
 * @returns whether it was made; false where the path is taken.
 * @throws {DatabaseError} when the copy can't be made; otherwise as the file system does.
 */
export async function backUpFile(url: string, path: string): Promise<boolean> {
  const { default: Libsql } = await import('libsql');
  return createWhole(path, (draft) => {
    const db = new Libsql(filePath(url), { timeout: BUSY_TIMEOUT_MS });
    try {
      // SQLite fills an empty file, which keeps the mode that it was made with.
      db.prepare('vacuum into ?').run(draft);
    } catch (error) {
      throw new DatabaseError(error);
    } finally {
      db.close();
    }
  });
}

/** A new file is turned to WAL without waiting for another process that is just doing the same. */
async function useWal(db: FileDatabase): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      db.exec('pragma journal_mode = wal');
      return;
    } catch (error) {
      if (attempt === WAL_TRIES || new DatabaseError(error).refused) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, WAL_PAUSE_MS));
  }
}

type FileDatabase = import('libsql').Database;
type Prepared = import('libsql').Statement;

/** A statement that is ready to run, and what its rows are called. */
interface Ready {
  readonly statement: Prepared;
  /** Empty for a statement that returns no rows. */
  readonly columns: readonly string[];
  /** How many arguments it takes. */
  readonly parameters: number;
}

/** An open file and the statements that were prepared on it. */
interface Connection {
  readonly current: () => FileDatabase;
  prepare(sql: string, args: readonly Value[]): Ready;
  /** Closes the file, to be opened anew when it is next used. */
  lose(): void;
  close(): void;
}

/** Statements are prepared once: preparing each time costs about four times as much. */
function connection(db: FileDatabase, reconnect: () => FileDatabase): Connection {
  const cache = new Map<string, Ready>();
  let isLost = false;
  const current = (): FileDatabase => {
    if (isLost) db = reconnect();
    isLost = false;
    return db;
  };
  return {
    current,
    prepare(sql, args) {
      let ready = cache.get(sql);
      if (!ready) {
        ready = readyStatement(current(), sql);
        cache.set(sql, ready);
      }
      // A statement would run with what was bound to it before.
      if (args.length < ready.parameters) throw unbindable(MISSING, 'arguments are missing', sql);
      // Of such a text the driver gives back what comes before the NUL, as if that were all.
      if (args.some(holdsNul)) throw unbindable(NUL, 'an argument holds a NUL', sql);
      return ready;
    },
    // Statements of a closed connection go on to work, and nobody is told, so that none may be left;
    // to ask a closed one whether it is `inTransaction` ends the process.
    lose() {
      db.close();
      cache.clear();
      isLost = true;
    },
    close: () => void db.close(),
  };
}

/** @param reconnect Opens the same file anew. */
function fileDriver(db: FileDatabase, reconnect: () => FileDatabase): Driver {
  const { current, prepare, lose, close } = connection(db, reconnect);
  const rowsOf = ({ statement, columns }: Ready, args: readonly Value[]): Row[] =>
    (statement.all(args as Value[]) as Value[][]).map((values) => toRow(columns, values));
  const run = ({ sql, args }: Statement): Result => {
    const ready = prepare(sql, args);
    if (ready.columns.length === 0) {
      return { rows: [], changes: ready.statement.run(args as Value[]).changes };
    }
    const rows = rowsOf(ready, args);
    return { rows, changes: rows.length };
  };
  /** A statement is a transaction of its own, which saves a lone call a tenth of all it costs. */
  const runAlone = (statement: Statement): Result => {
    try {
      return run(statement);
    } catch (error) {
      // One that was refused a lock stays under way, and what is run after it would only look as if
      // it were committed.
      if (!new DatabaseError(error).refused) lose();
      throw error;
    }
  };
  const runTogether = (statements: readonly Statement[]): Result[] => {
    const db = current();
    // Only this can find the database locked, and is not prepared, so that it doesn't stay under way.
    db.exec('begin immediate');
    try {
      const results = statements.map(run);
      db.exec('commit');
      return results;
    } catch (error) {
      if (db.inTransaction) db.exec('rollback');
      throw error;
    }
  };
  return {
    read: (sql, args) => rowsOf(prepare(sql, args), args),
    first(sql, args) {
      const { statement, columns } = prepare(sql, args);
      const values = statement.get(args as Value[]) as Value[] | undefined;
      return values && toRow(columns, values);
    },
    commit: (statements) =>
      statements.length === 1 ? [runAlone(statements[0]!)] : runTogether(statements),
    close,
  };
}

/** Rows are fetched as arrays, which costs half as much as having the driver name each value. */
function readyStatement(db: FileDatabase, sql: string): Ready {
  const statement = db.prepare(sql);
  const parameters = Math.max(0, ...Array.from(sql.matchAll(/\?(\d+)/g), ([, n]) => Number(n)));
  if (!statement.reader) return { statement, columns: [], parameters };
  const columns = statement.columns().map(({ name }) => name);
  return { statement: statement.raw(), columns, parameters };
}

const holdsNul = (value: Value): boolean => typeof value === 'string' && value.includes('\0');

function unbindable(code: typeof MISSING | typeof NUL, problem: string, sql: string): Error {
  return Object.assign(new RangeError(`${problem} for: ${sql}`), { code });
}

function toRow(columns: readonly string[], values: readonly Value[]): Row {
  const row: Record<string, Value> = {};
  for (let at = 0; at < columns.length; at++) row[columns[at]!] = values[at] ?? null;
  return row;
}

async function openServer(options: DatabaseOptions): Promise<Driver> {
  // The web client has no native part, so that this path also runs where no file can be opened.
  const { createClient } = await import('@libsql/client/web');
  const client = createClient({
    url: options.url,
    ...(options.authToken ? { authToken: options.authToken } : {}),
    fetch: (request: Request) => fetch(request, { signal: AbortSignal.timeout(REMOTE_TIMEOUT_MS) }),
  });
  const plain = (result: ServerResult): Result => ({
    rows: result.rows.map((row) =>
      Object.fromEntries(result.columns.map((column, at) => [column, row[at] as Value])),
    ),
    changes: result.columns.length > 0 ? result.rows.length : result.rowsAffected,
  });
  const read = async (sql: string, args: readonly Value[]) =>
    plain(await client.execute({ sql, args: [...args] })).rows;
  return {
    read,
    first: async (sql, args) => (await read(sql, args))[0],
    async commit(statements) {
      const batch = statements.map(({ sql, args }) => ({ sql, args: [...args] }));
      return (await client.batch(batch, 'write')).map(plain);
    },
    close: () => client.close(),
  };
}

type ServerResult = import('@libsql/client/web').ResultSet;

/** A write that waits for its turn. */
interface Pending {
  readonly write: readonly Statement[] | Merging;
  /** Takes the results of a write; of one that may be merged, its outcome. */
  readonly resolve: (outcome: unknown) => void;
  readonly reject: (error: DatabaseError) => void;
}

/** What may be merged with others of its kind. */
interface Merging {
  readonly merge: Merge<unknown, unknown>;
  readonly item: unknown;
}

/** Writes that are committed together: one, or several that were merged. */
interface Part {
  readonly statements: readonly Statement[];
  readonly pending: readonly Pending[];
}

/**
 * Commits whatever arrived together as one transaction, one group at a time: the cost of a commit
 * is shared, nobody is answered before the commit, and a server never sees two writers of ours.
 */
function groupWrites(driver: Driver): Database {
  const queue: Pending[] = [];
  let flushing: Promise<void> | undefined;

  const flush = async (): Promise<void> => {
    // The group is what arrives in this turn of the event loop; no timer, so a lone call waits for none.
    await new Promise((resolve) => setImmediate(resolve));
    while (queue.length > 0) await commitGroup(driver, queue.splice(0, MAX_GROUP));
    flushing = undefined;
  };
  const enqueue = <T>(write: Pending['write']) =>
    new Promise<T>((resolve, reject) => {
      queue.push({ write, resolve: resolve as Pending['resolve'], reject });
      flushing ??= flush();
    });

  return {
    async read(sql, args) {
      try {
        return await driver.read(sql, args);
      } catch (error) {
        throw new DatabaseError(error);
      }
    },
    async first(sql, args) {
      try {
        return await driver.first(sql, args);
      } catch (error) {
        throw new DatabaseError(error);
      }
    },
    write: (statements) => enqueue(statements),
    merge<Item, Outcome>(merge: Merge<Item, Outcome>, item: Item) {
      return enqueue<Outcome>({ merge: merge as Merge<unknown, unknown>, item });
    },
    async close() {
      await flushing;
      driver.close();
    },
  };
}

/** A merge that throws must not stop the writes that come after it. */
async function commitGroup(driver: Driver, group: readonly Pending[]): Promise<void> {
  try {
    await commitParts(driver, mergeParts(group));
  } catch (error) {
    for (const { reject } of group) reject(new DatabaseError(error));
  }
}

function apart(pending: Pending): Part {
  const { write } = pending;
  const statements = 'merge' in write ? write.merge.alone(write.item) : write;
  return { statements, pending: [pending] };
}

/** Merges what can be merged; all others stay as they are. */
function mergeParts(group: readonly Pending[]): Part[] {
  const parts: Pending[][] = [];
  const places = new Map<string, Pending[][]>();
  for (const pending of group) {
    const there = 'merge' in pending.write ? partsAt(places, pending.write) : [];
    const alike = there.find(([first]) => areAlike(first!.write, pending.write));
    if (alike) {
      alike.push(pending);
      continue;
    }
    const part = [pending];
    there.push(part);
    parts.push(part);
  }
  return parts.map(mergePart);
}

function partsAt(places: Map<string, Pending[][]>, { merge, item }: Merging): Pending[][] {
  const place = merge.placeOf(item);
  const there = places.get(place) ?? [];
  if (there.length === 0) places.set(place, there);
  return there;
}

function areAlike(one: Pending['write'], other: Pending['write']): boolean {
  if (!('merge' in one && 'merge' in other) || one.merge !== other.merge) return false;
  return one.merge.isAlike(one.item, other.item);
}

function mergePart(pending: readonly Pending[]): Part {
  const [{ write }] = pending as [Pending, ...Pending[]];
  if (pending.length === 1 || !('merge' in write)) return apart(pending[0]!);
  return { statements: write.merge.together(itemsOf(pending)), pending };
}

async function commitParts(driver: Driver, parts: readonly Part[]): Promise<void> {
  let results: readonly Result[];
  try {
    results = await driver.commit(parts.flatMap(({ statements }) => statements));
  } catch (error) {
    await commitApart(driver, parts, new DatabaseError(error));
    return;
  }
  const unwritten: Part[] = [];
  let at = 0;
  for (const { statements, pending } of parts) {
    const done = results.slice(at, at + statements.length);
    at += statements.length;
    const outcomes = outcomesOf(pending, done);
    if (outcomes) for (const [nth, { resolve }] of pending.entries()) resolve(outcomes[nth]);
    else unwritten.push(...pending.map(apart));
  }
  if (unwritten.length > 0) await commitParts(driver, unwritten);
}

function outcomesOf(
  pending: readonly Pending[],
  results: readonly Result[],
): readonly unknown[] | undefined {
  const [{ write }] = pending as [Pending, ...Pending[]];
  if (!('merge' in write)) return [results];
  const { merge, item } = write;
  if (pending.length === 1) return [merge.outcomeOf(item, results)];
  return merge.outcomesOf(itemsOf(pending), results);
}

const itemsOf = (pending: readonly Pending[]): unknown[] =>
  pending.map(({ write }) => (write as Merging).item);

/**
 * One bad transaction must not fail its neighbours: each is tried again by itself. Where the
 * outcome is unknown, a second try could write twice.
 */
async function commitApart(
  driver: Driver,
  parts: readonly Part[],
  failure: DatabaseError,
): Promise<void> {
  const pending = parts.flatMap((part) => part.pending);
  if (pending.length > 1 && failure.refused) {
    for (const one of pending) await commitParts(driver, [apart(one)]);
  } else {
    for (const { reject } of pending) reject(failure);
  }
}
