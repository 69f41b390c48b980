/** Capture: what of a call's bodies is kept, for each dialect, whole and streamed. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { MAX_CAPTURED_BYTES } from '../db/captures.ts';
import { type Deployment, deploy, readSettled } from './rungate.ts';
import { startUpstream, type Upstream } from './upstream.ts';

const PATHS = ['/v1/chat/completions', '/v1/responses', '/v1/messages'] as const;
const KINDS = ['none', 'digest', 'sealed'] as const;
const PROMPT = 'the heron waits at the weir';

let upstream: Upstream;
const deployments = new Map<string, Deployment>();

beforeAll(async () => {
  upstream = await startUpstream();
  for (const capture of KINDS) {
    const policy = { capture, budget: { run: '1000.00' } };
    deployments.set(capture, await deploy({ upstreamUrl: upstream.url, policy }));
  }
});

afterAll(async () => {
  await Promise.all([...deployments.values()].map((each) => each.stop()));
  await upstream.stop();
});

const on = (capture: string): Deployment => deployments.get(capture)!;

async function call(
  rungate: Deployment,
  run: string,
  path: string,
  stream: boolean,
  text = PROMPT,
) {
  const input =
    path === '/v1/responses'
      ? { input: text, max_output_tokens: 50 }
      : { max_tokens: 50, messages: [{ role: 'user', content: text }] };
  const body = JSON.stringify({ model: 'test-model', ...input, stream });
  const response = await fetch(`${rungate.url}${path}`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${rungate.token}`,
      'x-rungate-run-id': run,
      'anthropic-version': '2023-06-01',
    },
    body,
  });
  return { body, status: response.status, text: await response.text() };
}

interface Shown {
  readonly id: string;
  readonly request?: { text: string; totalBytes: number; truncated: boolean };
  readonly response?: { text: string; totalBytes: number; truncated: boolean };
}

async function show(rungate: Deployment, run: string): Promise<Shown[]> {
  const { stdout, stderr } = await rungate.cli(
    'run',
    'show',
    run,
    '--bodies',
    '--org',
    'acme',
    '--json',
  );
  expect(stderr).toBe('');
  return (JSON.parse(stdout) as { steps: Shown[] }).steps;
}

describe('of a call', () => {
  for (const capture of KINDS) {
    for (const path of PATHS) {
      for (const stream of [false, true]) {
        test(`to ${path}, ${stream ? 'streamed' : 'whole'}, ${capture} is kept`, async () => {
          const rungate = on(capture);
          const run = `of${path.replaceAll('/', '-')}-${stream}`;
          const { body, status, text } = await call(rungate, run, path, stream);
          expect(status).toBe(200);
          const [step] = await readSettled(rungate, run);
          expect(step?.requestDigest === null).toBe(capture === 'none');
          expect(step?.responseDigest === null).toBe(capture === 'none');
          const [shown] = await show(rungate, run);
          if (capture !== 'sealed') {
            expect(shown?.request ?? shown?.response).toBeUndefined();
            return;
          }
          expect(shown?.request).toEqual({ text: body, totalBytes: body.length, truncated: false });
          // The chunk that tells the usage is the upstream's answer to us, not to the caller.
          const said = shown?.response?.text ?? '';
          expect(said === text || (stream && said.startsWith(text.slice(0, 200)))).toBe(true);
        });
      }
    }
  }

  test('that is refused, no digest is kept where none is wanted', async () => {
    const rungate = on('none');
    const body = JSON.stringify({ model: 'unknown-model', max_tokens: 1, messages: [] });
    const headers = { authorization: `Bearer ${rungate.token}`, 'x-rungate-run-id': 'refused' };
    const { status } = await fetch(`${rungate.url}/v1/chat/completions`, {
      ...{ method: 'POST', headers, body },
    });
    expect(status).toBe(403);
    expect((await readSettled(rungate, 'refused'))[0]?.requestDigest).toBeNull();
  });

  test('that breaks, what came until then is kept', async () => {
    upstream.script({ breakAfterChunks: 3 });
    await call(on('sealed'), 'broken', PATHS[0], true).catch(() => {});
    await readSettled(on('sealed'), 'broken');
    const [shown] = await show(on('sealed'), 'broken');
    expect(shown?.request?.text).toContain(PROMPT);
    expect(shown?.response?.text).toStartWith('data: {');
  });

  test('with a long body, its beginning is kept, and its length', async () => {
    const long = 'é'.repeat(MAX_CAPTURED_BYTES / 2 + 10);
    const { body } = await call(on('sealed'), 'long', PATHS[0], false, long);
    await readSettled(on('sealed'), 'long');
    const [shown] = await show(on('sealed'), 'long');
    const totalBytes = new TextEncoder().encode(body).length;
    expect(shown?.request).toMatchObject({ totalBytes, truncated: true });
    expect(body.startsWith(shown?.request?.text.slice(0, -1) ?? '-')).toBe(true);
  });
});

test('sealed bodies stand nowhere in the files in clear, open in their own place only, and reading them is noted', async () => {
  const rungate = on('sealed');
  for (const run of ['here', 'there']) {
    await call(rungate, run, PATHS[0], false, `${PROMPT} ${run}`);
    await readSettled(rungate, run);
    await show(rungate, run);
  }
  const db = await rungate.database();
  const files = (await readdir(rungate.folder)).filter((name) => name.startsWith('rungate.db'));
  for (const name of files) {
    expect((await readFile(join(rungate.folder, name))).includes(PROMPT)).toBe(false);
  }
  const noted = await db.read(
    `select count(*) as entries from audit_entries a join runs r on r.id = a.target
     where a.action = 'run.body_read' and r.name in ('here', 'there')`,
    [],
  );
  expect(noted[0]?.entries).toBe(2);
  // A sealed body that is moved to another step opens no more.
  await db.write([
    {
      sql: `update captures set sealed = (
          select c.sealed from captures c join runs r on r.id = c.run_id
          where r.name = 'there' and c.kind = 'request'
        ) where kind = 'request' and run_id = (select id from runs where name = 'here')`,
      args: [],
    },
  ]);
  await db.close();
  const { code } = await rungate.cli('run', 'show', 'here', '--bodies', '--org', 'acme');
  expect(code).toBe(1);
});
