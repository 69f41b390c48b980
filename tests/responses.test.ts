/** Responses that an upstream keeps belong to the agent that made them, and are charged once. */

import { describe, expect, test } from 'bun:test';
import { readSettled, readTrail } from './rungate.ts';
import { type CallOptions, call, type Stage, stages } from './runtimes.ts';

const USAGE = { input_tokens: 1_000, output_tokens: 100, total_tokens: 1_100 };
/** At $1 and $4 per million. */
const COST_NANOS = 1_000 * 1_000 + 100 * 4_000;

/** Counts that no call can have. */
const IMPOSSIBLE = {
  'more input': { input_tokens: 1e12 },
  'more output': { output_tokens: 1e12 },
};

/** A model whose context window is known, which bounds what an earlier response holds. */
const MODEL = 'gpt-4o';

/** What can be done with a kept response besides continuing it. */
const WAYS = [
  ['GET', ''],
  ['GET', '?stream=true'],
  ['GET', '/input_items'],
  ['POST', '/cancel'],
  ['DELETE', ''],
] as const;

interface Kept {
  readonly id: string;
  readonly status: string;
}

/** Makes a response and returns what the answer says of it. */
async function make(
  stage: Stage,
  run: string,
  members: CallOptions['members'] = {},
  token?: string,
): Promise<Kept> {
  const response = await call(stage, 'responses', { run, members, ...(token && { token }) });
  expect(response.status).toBe(200);
  const text = await response.text();
  const [, event = text] = /^event: response\.completed\ndata: (.*)$/m.exec(text) ?? [];
  const value = JSON.parse(event) as Kept & { response?: Kept };
  return value.response ?? value;
}

/** Acts on a kept response. */
function act(
  { rungate }: Stage,
  method: string,
  path: string,
  run = 'acts',
  token = rungate.token,
) {
  const headers = { authorization: `Bearer ${token}` };
  return fetch(`${rungate.url}/r/${run}/v1/responses/${path}`, { method, headers });
}

async function moneyOf({ rungate }: Stage, run: string) {
  const headers = { authorization: `Bearer ${rungate.token}` };
  const response = await fetch(`${rungate.url}/v1/runs/${run}`, { headers });
  const { heldNanos, spentNanos } = (await response.json()) as Record<string, number>;
  return { heldNanos, spentNanos };
}

/** Fetches until the response is final. */
async function finish(stage: Stage, id: string): Promise<void> {
  for (let turn = 0; turn < 3; turn++) {
    const fetched = (await (await act(stage, 'GET', id)).json()) as Kept;
    if (fetched.status === 'completed') return;
  }
  throw new Error(`${id} is not completed`);
}

describe.each(stages({ agents: ['maker', 'other'] }))('on $runtime', (stage) => {
  const other = () => stage.rungate.tokens.other ?? '';

  describe('a kept response', () => {
    for (const stream of [false, true]) {
      test(`made with stream ${stream} is open to its own agent in every way`, async () => {
        const { id } = await make(stage, `own-${stream}`, { stream });
        for (const [method, path] of WAYS) {
          const response = await act(stage, method, id + path);
          expect(response.status).toBe(200);
          await response.bytes();
          const received = stage.upstream.requests.at(-1);
          expect(`${received?.method} ${received?.path}`).toBe(
            `${method} /v1/responses/${id}${path}`,
          );
        }
        expect((await act(stage, 'GET', id)).status).toBe(404);
      });

      test(`made with stream ${stream} is not there for another agent`, async () => {
        const { id } = await make(stage, `foreign-${stream}`, { stream });
        const seen = stage.upstream.requests.length;
        for (const [method, path] of WAYS) {
          const response = await act(stage, method, id + path, 'spying', other());
          expect(response.status).toBe(404);
          expect(await response.text()).toContain('This agent has made no response with that id.');
        }
        expect(stage.upstream.requests).toBeArrayOfSize(seen);
        const trail = await readTrail(stage.rungate, 'spying', other());
        expect(trail.slice(-WAYS.length).map(({ kind, outcome }) => [kind, outcome])).toEqual(
          WAYS.map(() => ['denial', 'not_found']),
        );
      });
    }

    test('can be continued by its own agent, and by no other', async () => {
      const { id } = await make(stage, 'continued', { model: MODEL });
      const members = { model: MODEL, previous_response_id: id };
      const next = await make(stage, 'continued', members);
      expect(next.id).not.toBe(id);
      const seen = stage.upstream.requests.length;
      const options = { run: 'continuing', members };
      const foreign = await call(stage, 'responses', { ...options, token: other() });
      expect(foreign.status).toBe(403);
      const { error } = (await foreign.json()) as { error: Record<string, unknown> };
      expect(error).toMatchObject({ type: 'permission_error', param: 'previous_response_id' });
      const unknown = { model: MODEL, previous_response_id: 'resp_unknown' };
      const made = await call(stage, 'responses', { ...options, members: unknown });
      expect(made.status).toBe(403);
      expect(stage.upstream.requests).toBeArrayOfSize(seen);
    });

    test('stays its own where the other agent names its id after making one', async () => {
      const mine = await make(stage, 'mine');
      const theirs = await make(stage, 'theirs', {}, other());
      expect(theirs.id).not.toBe(mine.id);
      expect((await act(stage, 'GET', mine.id, 'mine', other())).status).toBe(404);
      expect((await act(stage, 'GET', theirs.id, 'theirs')).status).toBe(404);
    });

    test('is free to be read again', async () => {
      stage.upstream.script({ usage: USAGE });
      const { id } = await make(stage, 'again');
      for (let turn = 0; turn < 3; turn++) {
        await (await act(stage, 'GET', id, 'again')).bytes();
      }
      expect(await moneyOf(stage, 'again')).toEqual({ heldNanos: 0, spentNanos: COST_NANOS });
    });
  });

  describe('a background response', () => {
    test('holds its money until it is fetched, and is charged once however often', async () => {
      const run = 'background';
      stage.upstream.script({ usage: USAGE });
      const { id, status } = await make(stage, run, { background: true });
      expect(status).toBe('queued');
      const { heldNanos } = await moneyOf(stage, run);
      expect(heldNanos).toBeGreaterThan(200_000);
      const pending = (await (await act(stage, 'GET', id)).json()) as Kept;
      expect(pending.status).toBe('in_progress');
      expect(await moneyOf(stage, run)).toEqual({ heldNanos, spentNanos: 0 });
      for (let turn = 0; turn < 3; turn++) {
        await finish(stage, id);
        expect(await moneyOf(stage, run)).toEqual({ heldNanos: 0, spentNanos: COST_NANOS });
      }
      const [step] = await readTrail(stage.rungate, run);
      expect(step).toMatchObject({
        ...{ endpoint: 'responses.create', outcome: 'ok', estimated: false },
        usage: { inputTokens: 1_000, outputTokens: 100 },
      });
    });

    test('that is fetched many times at once is charged once', async () => {
      const run = 'at-once';
      stage.upstream.script({ usage: USAGE });
      const { id } = await make(stage, run, { background: true });
      await Promise.all(Array.from({ length: 8 }, () => act(stage, 'GET', id)));
      await finish(stage, id);
      expect(await moneyOf(stage, run)).toEqual({ heldNanos: 0, spentNanos: COST_NANOS });
    });

    test('that is fetched as a stream is charged by its last event', async () => {
      const run = 'as-stream';
      stage.upstream.script({ usage: USAGE });
      const { id } = await make(stage, run, { background: true });
      const response = await act(stage, 'GET', `${id}?stream=true`, run);
      expect(await response.text()).toContain('event: response.completed');
      expect(await moneyOf(stage, run)).toEqual({ heldNanos: 0, spentNanos: COST_NANOS });
    });

    test('that streams to its end is charged at once, and not again when fetched', async () => {
      const run = 'streamed';
      stage.upstream.script({ usage: USAGE });
      const { id } = await make(stage, run, { background: true, stream: true });
      expect(await moneyOf(stage, run)).toEqual({ heldNanos: 0, spentNanos: COST_NANOS });
      await finish(stage, id);
      expect(await moneyOf(stage, run)).toEqual({ heldNanos: 0, spentNanos: COST_NANOS });
    });

    test('whose stream breaks is still held, and charged when fetched', async () => {
      const run = 'resumed';
      stage.upstream.script({ usage: USAGE, breakAfterChunks: 3, chunkDelayMs: 5 });
      const members = { background: true, stream: true };
      const response = await call(stage, 'responses', { run, members });
      const reader = response.body!.getReader();
      let text = '';
      const read = async () => {
        for (let part = await reader.read(); !part.done; part = await reader.read()) {
          text += new TextDecoder().decode(part.value);
        }
      };
      await expect(read()).rejects.toThrow();
      expect((await moneyOf(stage, run)).heldNanos).toBeGreaterThan(0);
      await finish(stage, /"id":"(resp_\w+)"/.exec(text)?.[1] ?? '');
      expect(await moneyOf(stage, run)).toEqual({ heldNanos: 0, spentNanos: COST_NANOS });
    });

    test('that is cancelled without a usage is charged at its bound, estimated', async () => {
      const run = 'cancelled';
      const { id } = await make(stage, run, { background: true });
      const { heldNanos } = await moneyOf(stage, run);
      const cancelled = (await (await act(stage, 'POST', `${id}/cancel`)).json()) as Kept;
      expect(cancelled.status).toBe('cancelled');
      expect(await moneyOf(stage, run)).toEqual({ heldNanos: 0, spentNanos: heldNanos });
      const [step] = await readTrail(stage.rungate, run);
      expect(step?.estimated).toBe(true);
    });

    for (const [what, more] of Object.entries(IMPOSSIBLE)) {
      test(`that tells of ${what} than it can have used is charged at its bound`, async () => {
        const run = `impossible-${what.replaceAll(' ', '-')}`;
        stage.upstream.script({ usage: { ...USAGE, ...more } });
        const { id } = await make(stage, run, { background: true });
        const { heldNanos } = await moneyOf(stage, run);
        await finish(stage, id);
        expect(await moneyOf(stage, run)).toEqual({ heldNanos: 0, spentNanos: heldNanos });
        const [step] = await readTrail(stage.rungate, run);
        expect(step).toMatchObject({ estimated: true, usage: null });
      });
    }

    test('that can’t be settled when it is fetched is told of in the log, and settled by the next fetch', async () => {
      const run = 'unreadable';
      stage.upstream.script({ usage: USAGE });
      const { id } = await make(stage, run, { background: true });
      const { heldNanos } = await moneyOf(stage, run);
      const [{ id: step } = { id: '' }] = await readTrail(stage.rungate, run);
      const db = await stage.rungate.database();
      const spoil = `update steps set asked = 'spoilt' || asked where id = ?1`;
      await db.write([{ sql: spoil, args: [step] }]);
      await finish(stage, id);
      expect(await moneyOf(stage, run)).toEqual({ heldNanos, spentNanos: 0 });
      expect(await readSettled(stage.rungate, 'acts')).not.toBeEmpty();
      const warning = new RegExp(`"level":"warn","message":"a background response .*"${step}"`);
      expect(stage.rungate.logs()).toMatch(warning);
      const mend = `update steps set asked = substr(asked, 7) where id = ?1`;
      await db.write([{ sql: mend, args: [step] }]);
      await db.close();
      await finish(stage, id);
      expect(await moneyOf(stage, run)).toEqual({ heldNanos: 0, spentNanos: COST_NANOS });
    });

    test('is not settled by another agent that asks for it', async () => {
      const run = 'unsettled';
      const { id } = await make(stage, run, { background: true });
      const before = await moneyOf(stage, run);
      for (const path of [id, `${id}/cancel`]) {
        await act(stage, path === id ? 'GET' : 'POST', path, run, other());
      }
      expect(await moneyOf(stage, run)).toEqual(before);
    });
  });
});
