/** The official SDKs work unchanged through Rungate, on both runtimes, and leave a true trail. */

import { describe, expect, test } from 'bun:test';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';
import { type Ask, CLIENTS, langchainEmbeddings } from './clients.ts';
import { ANSWER, anthropic, LOOPS, openai } from './loops.ts';
import { readTrail } from './rungate.ts';
import { stages } from './runtimes.ts';

/** What the upstream reports of each call, in every dialect's words. */
const USAGE = {
  ...{ prompt_tokens: 1_000, completion_tokens: 100, total_tokens: 1_100 },
  ...{ input_tokens: 1_000, output_tokens: 100 },
};
/** At $1 and $4 per million. */
const COST_NANOS = 1_000 * 1_000 + 100 * 4_000;

const slug = (name: string) => name.replaceAll(/\W+/g, '-');

describe.each(stages({}))('on $runtime', (stage) => {
  /** What an SDK is given: a run of its own in the base URL, and the token. */
  const askIn = (run: string): Ask => {
    stage.witness.exchanges.length = 0;
    return { base: `${stage.witness.url}/r/${run}`, token: stage.rungate.token };
  };

  const expectExchanges = (run: string, count: number) => {
    expect(stage.witness.exchanges.map(({ status }) => status)).toEqual(Array(count).fill(200));
    for (const { headers } of stage.witness.exchanges) {
      expect(headers.get('x-rungate-run-id')).toBe(run);
      expect(headers.get('x-request-id')).toMatch(/^req_\w{26}$/);
      expect(headers.get('request-id')).toBe(headers.get('x-request-id'));
    }
  };

  for (const { name, endpoint, ask } of CLIENTS) {
    test(`${name}: the answer arrives, and the trail has its usage and cost`, async () => {
      const run = slug(name);
      const isEmbedding = endpoint === 'embeddings';
      const usage = isEmbedding ? { prompt_tokens: 1_400, total_tokens: 1_400 } : USAGE;
      stage.upstream.script({ usage, startUsage: { input_tokens: 1_000, output_tokens: 1 } });
      const answer = await ask(askIn(run));
      expect(answer).toBe(isEmbedding ? '256' : 'demo-small heard you say: "hello".');
      expectExchanges(run, 1);
      expect(await readTrail(stage.rungate, run)).toMatchObject([
        {
          ...{ kind: 'model_call', endpoint, model: 'test-model', servedModel: 'test-model' },
          ...{ outcome: 'ok', httpStatus: 200, estimated: false, spentNanos: COST_NANOS },
          ...{ heldNanos: 0, settledAt: expect.any(Number) },
          usage: isEmbedding ? { inputTokens: 1_400 } : { inputTokens: 1_000, outputTokens: 100 },
        },
      ]);
    });
  }

  for (const [name, loop] of Object.entries(LOOPS)) {
    test(`${name}: a tool is proposed, run, and its result read, in one run`, async () => {
      const run = `tools-${slug(name)}`;
      expect(await loop(askIn(run))).toBe(ANSWER);
      expectExchanges(run, 2);
      const steps = await readTrail(stage.rungate, run);
      expect(steps.map(({ outcome, estimated }) => ({ outcome, estimated }))).toEqual([
        { outcome: 'ok', estimated: false },
        { outcome: 'ok', estimated: false },
      ]);
      for (const { spentNanos } of steps) expect(spentNanos).toBeGreaterThan(0);
    });
  }

  test('a background response is fetched with its answer and charged once', async () => {
    const run = 'background';
    const { responses } = openai(askIn(run));
    stage.upstream.script({ usage: USAGE });
    const asked = { model: 'test-model', input: 'hello', max_output_tokens: 100 };
    let response = await responses.create({ ...asked, background: true });
    expect(response.status).toBe('queued');
    const seen: (string | undefined)[] = [];
    while (response.status === 'queued' || response.status === 'in_progress') {
      response = await responses.retrieve(response.id);
      seen.push(response.status);
    }
    expect(seen).toEqual(['in_progress', 'completed']);
    expect(response.output_text).toBe('demo-small heard you say: "hello".');
    expectExchanges(run, 3);
    const steps = await readTrail(stage.rungate, run);
    expect(steps.map(({ endpoint }) => endpoint)).toEqual([
      'responses.create',
      'responses.get',
      'responses.get',
    ]);
    expect(steps.map(({ spentNanos }) => spentNanos)).toEqual([COST_NANOS, 0, 0]);
    expect(steps[0]).toMatchObject({ outcome: 'ok', estimated: false, model: 'test-model' });
  });

  test('models are listed to both dialects, free of charge', async () => {
    const ask = askIn('models');
    const names: string[] = [];
    for await (const { id } of openai(ask).models.list()) names.push(id);
    for await (const { id } of anthropic(ask).models.list()) names.push(id);
    expect(names).toEqual(['demo-small', 'demo-large', 'demo-small', 'demo-large']);
    const steps = await readTrail(stage.rungate, 'models');
    expect(steps.map(({ spentNanos, outcome }) => [spentNanos, outcome])).toEqual([
      [0, 'ok'],
      [0, 'ok'],
    ]);
  });

  test('tokens of a message are counted, free of charge', async () => {
    const messages = [{ role: 'user' as const, content: 'hello' }];
    const client = anthropic(askIn('count'));
    const counted = await client.messages.countTokens({ model: 'test-model', messages });
    expect(counted.input_tokens).toBeGreaterThan(0);
    expect(await readTrail(stage.rungate, 'count')).toMatchObject([
      { endpoint: 'messages.count_tokens', spentNanos: 0, outcome: 'ok' },
    ]);
  });

  test('a list of texts is embedded in one call', async () => {
    const embeddings = langchainEmbeddings(askIn('documents'));
    const vectors = await embeddings.embedDocuments(['one', 'two', 'three']);
    expect(vectors.map((vector) => vector.length)).toEqual([256, 256, 256]);
    expectExchanges('documents', 1);
  });

  test('a run that the SDKs name by a header of their own is that run', async () => {
    const headers = { 'x-rungate-run-id': 'by-header' };
    const options = { apiKey: stage.rungate.token, defaultHeaders: headers };
    stage.witness.exchanges.length = 0;
    const messages = [{ role: 'user' as const, content: 'hello' }];
    const asked = { model: 'test-model', max_tokens: 20, messages };
    await new OpenAI({ ...options, baseURL: stage.witness.url }).chat.completions.create(asked);
    await new Anthropic({ ...options, baseURL: `${stage.witness.url}/v1` }).messages.create(asked);
    expectExchanges('by-header', 2);
  });
});
