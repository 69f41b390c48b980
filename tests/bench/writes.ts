/** The least that two durable writes cost: a pass-through that holds and settles, and no more. */

import { createHash } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Libsql from 'libsql';
import type { Stage, StageOptions } from './stage.ts';

const TABLES = `
  create table tokens (hash text primary key, run_id text not null) without rowid;
  create table runs (id text primary key, ceiling int, spent int, held int) without rowid;
  create table steps (run_id text, id integer, held int, spent int, asked text, answered text,
    primary key (run_id, id)) without rowid;
  insert into runs values ('run', ${2 ** 52}, 0, 0);
`;
const TOKEN = 'token';
const HELD = 1_000;
const SPENT = 500;

/**
 * Reads the token, holds money under the run's ceiling with a step, passes the call on, and settles
 * both: each write durable before what comes after it, and grouped with those that arrive with it.
 */
export async function writesAlone(options: StageOptions): Promise<Stage> {
  const folder = await mkdtemp(join(tmpdir(), 'rungate-bench-'));
  const db = new Libsql(join(folder, 'writes.db'));
  db.exec(`pragma journal_mode = wal; pragma synchronous = ${options.synchronous}`);
  db.exec(`${TABLES} insert into tokens values ('${sha256(TOKEN)}', 'run')`);
  const find = db.prepare('select run_id from tokens where hash = ?').raw();
  const hold = db.prepare(
    'update runs set held = held + ?1 where id = ?2 and spent + held + ?1 <= ceiling',
  );
  const step = db.prepare('insert into steps (run_id, id, held, asked) values (?, ?, ?, ?)');
  const end = db.prepare(
    'update steps set spent = ?3, answered = ?4 where run_id = ?1 and id = ?2',
  );
  const settle = db.prepare('update runs set held = held - ?2, spent = spent + ?3 where id = ?1');
  const write = grouped(db);
  let steps = 0;
  return {
    headers: { authorization: `Bearer ${TOKEN}` },
    async fetch(request) {
      const token = request.headers.get('authorization')?.slice('Bearer '.length) ?? '';
      const [run] = find.get([sha256(token)]) as [string];
      const body = await request.bytes();
      const { model } = JSON.parse(new TextDecoder().decode(body));
      const id = steps++;
      const asked = JSON.stringify({ model, digest: sha256(body) });
      await write(() => {
        if (hold.run([HELD, run]).changes === 0) throw new Error('the ceiling is reached');
        step.run([run, id, HELD, asked]);
      });
      const close = (answered: object) =>
        write(() => {
          end.run([run, id, SPENT, JSON.stringify(answered)]);
          settle.run([run, HELD, SPENT]);
        });
      const response = await pass(request, body, options.upstream);
      const headers = { 'content-type': response.headers.get('content-type') ?? '' };
      if (headers['content-type'].startsWith('text/event-stream')) {
        return new Response(relayed(response.body!, close), { headers });
      }
      const answer = await response.bytes();
      const { usage } = JSON.parse(new TextDecoder().decode(answer));
      await close({ usage, digest: sha256(answer) });
      return new Response(answer, { headers });
    },
    async close() {
      db.close();
      await rm(folder, { recursive: true });
    },
  };
}

/** A stream as it comes, and before its end what is known of it then. */
function relayed(
  body: ReadableStream<Uint8Array>,
  close: (answered: object) => Promise<void>,
): ReadableStream<Uint8Array> {
  const hash = createHash('sha256');
  const transform = new TransformStream<Uint8Array, Uint8Array>({
    transform(chunk, controller) {
      hash.update(chunk);
      controller.enqueue(chunk);
    },
    flush: () => close({ digest: hash.digest('hex') }),
  });
  return body.pipeThrough(transform);
}

const sha256 = (text: string | Uint8Array): string =>
  createHash('sha256').update(text).digest('hex');

/** What arrives in one turn of the event loop is committed together, and answered after that. */
function grouped(db: Libsql.Database): (work: () => void) => Promise<void> {
  let group: { work: () => void; done: () => void }[] = [];
  const commit = () => {
    const taken = group;
    group = [];
    db.exec('begin immediate');
    for (const { work } of taken) work();
    db.exec('commit');
    for (const { done } of taken) done();
  };
  return (work) =>
    new Promise((done) => {
      if (group.length === 0) setImmediate(commit);
      group.push({ work, done });
    });
}

function pass(request: Request, body: Uint8Array<ArrayBuffer>, upstream: URL): Promise<Response> {
  const { pathname, search } = new URL(request.url);
  const headers = new Headers(request.headers);
  headers.delete('host');
  headers.set('authorization', 'Bearer upstream-key');
  const url = new URL(pathname + search, upstream);
  return fetch(url, { method: request.method, headers, body, decompress: false });
}
