/** Clients that nobody here wrote manage an org from nothing to a governed call, by what the schema tells. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { type AnyVariables, Client, type DocumentInput, fetchExchange } from '@urql/core';
import {
  buildClientSchema,
  getIntrospectionQuery,
  type IntrospectionQuery,
  lexicographicSortSchema,
  parse,
  printSchema,
  validate,
} from 'graphql';
import { GraphQLClient } from 'graphql-request';
import OpenAI from 'openai';
import { schema } from '../schema/graphql/index.ts';
import { type Deployment, deploy } from './rungate.ts';

let rungate: Deployment;

beforeAll(async () => {
  rungate = await deploy();
});

afterAll(() => rungate?.stop());

/** Asks as a client does. */
type Ask = (document: string, variables?: Record<string, unknown>) => Promise<unknown>;

const headers = () => ({ authorization: `Bearer ${rungate.adminToken}` });

function byGraphqlRequest(): Ask {
  const client = new GraphQLClient(`${rungate.url}/graphql`, { headers });
  return (document, variables) => client.request(document, variables);
}

function byUrql(): Ask {
  const client = new Client({
    url: `${rungate.url}/graphql`,
    exchanges: [fetchExchange],
    preferGetMethod: false,
    fetchOptions: () => ({ headers: headers() }),
  });
  return async (document, variables = {}) => {
    const isMutation = document.startsWith('mutation');
    const input: DocumentInput<unknown, AnyVariables> = document;
    const operation = isMutation
      ? client.mutation(input, variables)
      : client.query(input, variables);
    const { data, error } = await operation.toPromise();
    if (error) throw error;
    return data;
  };
}

function byFetch(): Ask {
  return async (query, variables) => {
    const response = await fetch(`${rungate.url}/graphql`, {
      method: 'POST',
      headers: { ...headers(), 'content-type': 'application/json' },
      body: JSON.stringify({ query, variables }),
    });
    const { data, errors } = (await response.json()) as { data: unknown; errors?: unknown };
    if (errors) throw new Error(JSON.stringify(errors));
    return data;
  };
}

const CLIENTS: readonly (readonly [string, () => Ask])[] = [
  ['graphql-request', byGraphqlRequest],
  ['urql', byUrql],
  ['fetch', byFetch],
];

const POLICY = `mutation ($input: PolicyCreateInput!) {
  policyCreate(input: $input) { policy { id name } errors { code field message } }
}`;
const KEY = `mutation ($input: ProviderKeyCreateInput!) {
  providerKeyCreate(input: $input) { providerKey { id name } errors { code field message } }
}`;
const AGENT = `mutation ($input: AgentCreateInput!) {
  agentCreate(input: $input) { agent { id name } secret errors { code field message } }
}`;
const RUNS = `query ($filter: RunFilter) {
  runs(filter: $filter, first: 5) {
    nodes {
      name status stepCount spent { dollars nanos }
      agent { name } policyVersion { number policy { name } }
      steps(first: 10) { nodes { id kind } pageInfo { hasNextPage } }
    }
  }
}`;

interface Answers {
  readonly policyCreate: { policy: { id: string } | null; errors: unknown[] };
  readonly providerKeyCreate: { providerKey: { id: string } | null; errors: unknown[] };
  readonly agentCreate: { agent: { id: string } | null; secret: string; errors: unknown[] };
  readonly runs: { nodes: { name: string; steps: { nodes: unknown[] } }[] };
}

describe.each(CLIENTS)('%s', (name, connect) => {
  test('goes from a policy to a governed call and its trail', async () => {
    const ask = connect();
    const answer = async <K extends keyof Answers>(
      key: K,
      document: string,
      variables: Record<string, unknown>,
    ) => ((await ask(document, variables)) as Answers)[key];
    const { policy, errors } = await answer('policyCreate', POLICY, {
      input: { name: `policy-${name}`, document: { budget: { run: '0.50' } } },
    });
    expect(errors).toEqual([]);
    const key = await answer('providerKeyCreate', KEY, {
      input: { name: `key-${name}`, provider: 'demo', secret: 'demo' },
    });
    expect(key.errors).toEqual([]);
    const {
      agent,
      secret,
      errors: failures,
    } = await answer('agentCreate', AGENT, {
      input: { name: `agent-${name}`, policyId: policy?.id },
    });
    expect(failures).toEqual([]);
    await callModel(secret, `key-${name}/demo-small`, `run-${name}`);
    const runs = await answer('runs', RUNS, { filter: { agentId: agent?.id } });
    expect(runs.nodes).toMatchObject([
      {
        ...{ name: `run-${name}`, status: 'OPEN', agent: { name: `agent-${name}` } },
        policyVersion: { number: 1, policy: { name: `policy-${name}` } },
        steps: { nodes: [{ kind: 'MODEL_CALL' }], pageInfo: { hasNextPage: false } },
      },
    ]);
  });

  test('is told which field is wrong', async () => {
    const input = { name: `bad-${name}`, document: { budget: { run: 5 } } };
    const { policyCreate } = (await connect()(POLICY, { input })) as Answers;
    expect(policyCreate.policy).toBeNull();
    expect(policyCreate.errors).toMatchObject([
      { code: 'INVALID', field: ['document', 'budget', 'run'] },
    ]);
  });
});

async function callModel(apiKey: string, model: string, run: string): Promise<void> {
  const client = new OpenAI({ apiKey, baseURL: `${rungate.url}/v1`, maxRetries: 0 });
  const { choices } = await client.chat.completions.create(
    { model, messages: [{ role: 'user', content: 'hello' }] },
    { headers: { 'x-rungate-run-id': run } },
  );
  expect(choices).toHaveLength(1);
}

test('plain introspection tells the very schema that is served, and the documents are valid by it', async () => {
  const told = (await byFetch()(getIntrospectionQuery())) as IntrospectionQuery;
  const client = buildClientSchema(told);
  expect(printSchema(lexicographicSortSchema(client))).toBe(
    printSchema(lexicographicSortSchema(schema)),
  );
  for (const document of [POLICY, KEY, AGENT, RUNS]) {
    expect(validate(client, parse(document))).toEqual([]);
  }
});
