/** The plan of `rungate apply`: what of an org differs from a file, and the changes that are due. */

import { isDeepStrictEqual } from 'node:util';
import { formatDollars } from '../../schema/money.ts';
import type { Api } from './api.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { invalidManifest, type Manifest, type WantedKey } from './manifest.ts';
import {
  type PresentAgent,
  type PresentKey,
  type PresentPolicy,
  type PresentPrice,
  type PresentWebhook,
  readPresent,
} from './present.ts';

/** What was changed; never a secret. */
export interface Change {
  readonly kind: 'providerKey' | 'price' | 'policy' | 'agent' | 'webhook';
  readonly name: string;
  readonly action: 'created' | 'updated';
  readonly [detail: string]: string | number;
}

/** What is done for one entry of the file. */
export interface Done {
  readonly change: Change;
  /** The text of a new agent's token, or the secret of a new webhook. */
  readonly secret?: string;
}

/** A change that may be due: nothing happens before it is called, or then if nothing differs. */
export type Due = () => Promise<Done | undefined>;

/** The id and newest version of each policy by name, those that changes make included. */
type Policies = Map<string, { readonly id: string; readonly newest: number }>;

/**
 * Compares everything before anything is changed. Policies come before the agents that need them.
 *
 * @param path Of the file, for what is said of it.
 * @throws {Failure} for a policy that neither the file nor the org has.
 */
export async function planChanges(api: Api, path: string, manifest: Manifest): Promise<Due[]> {
  const present = await readPresent(api, manifest);
  const { keys, prices, agents, webhooks } = present;
  const policies: Policies = new Map(
    [...present.policies].map(([name, { id, newest }]) => [name, { id, newest: newest.number }]),
  );
  checkPolicies(path, policies, manifest);
  const due = [
    ...manifest.providerKeys.map((key) => planKey(api, key, keys.get(key.name))),
    ...manifest.prices.map((price) => planPrice(api, price, prices.get(price.model))),
    ...manifest.policies.map((policy) =>
      planPolicy(api, policies, policy, present.policies.get(policy.name)),
    ),
    ...manifest.agents.map((agent) => planAgent(api, policies, agent, agents.get(agent.name))),
    ...manifest.webhooks.map((webhook) => planWebhook(api, webhook, webhooks.get(webhook.url))),
  ];
  return due.filter((each) => each !== undefined);
}

/** The policies of agents, and the versions that are asked for, are in the file or in the org. */
function checkPolicies(path: string, policies: Policies, manifest: Manifest): void {
  const problems: string[] = [];
  for (const [at, { policy, policyVersion, policies: choices }] of manifest.agents.entries()) {
    const judge = (field: string, name: string, version: number | undefined) => {
      const problem = judgePolicy(policies, manifest, name, version);
      if (problem) problems.push(`agents[${at}].${field}: ${problem}`);
    };
    judge('policy', policy, undefined);
    if (policyVersion !== undefined) judge('policyVersion', policy, policyVersion);
    for (const [index, choice] of choices.entries()) {
      judge(`policies[${index}]`, policyOf(choice), versionOf(choice));
    }
  }
  if (problems.length > 0) throw invalidManifest(path, problems);
}

function judgePolicy(
  policies: Policies,
  manifest: Manifest,
  name: string,
  version: number | undefined,
): string | undefined {
  const isWritten = manifest.policies.some((policy) => policy.name === name);
  const present = policies.get(name);
  if (!present && !isWritten) return `neither the file nor the org has a policy "${name}"`;
  // The file adds one version at most.
  const newest = (present?.newest ?? 0) + (isWritten ? 1 : 0);
  return (version ?? 0) > newest ? `the policy "${name}" has no version ${version}` : undefined;
}

const CREATE_KEY = `mutation CreateKey($input: ProviderKeyCreateInput!) {
  providerKeyCreate(input: $input) { errors { code field message } }
}`;
const UPDATE_KEY = `mutation UpdateKey($input: ProviderKeyUpdateInput!) {
  providerKeyUpdate(input: $input) { changed errors { code field message } }
}`;

/** A secret can't be read back: whether it differs is known once the key is written again. */
function planKey(api: Api, wanted: WantedKey, present: PresentKey | undefined): Due {
  const { name, provider, baseUrl, serviceTier, secret } = wanted;
  const terms = { provider, baseUrl: baseUrl || null, serviceTier, secret: secret || null };
  const change: Change = {
    kind: 'providerKey',
    name,
    action: actionOn(present),
    provider,
    baseUrl,
  };
  return async () => {
    if (!present) {
      await api.run(CREATE_KEY, { input: { name, ...terms } });
      return { change };
    }
    const input = { providerKeyId: present.id, ...terms };
    const { providerKeyUpdate } = await api.run<{ providerKeyUpdate: { changed: boolean } }>(
      UPDATE_KEY,
      { input },
    );
    return providerKeyUpdate.changed ? { change } : undefined;
  };
}

const SET_PRICE = `mutation SetPrice($input: PriceSetInput!) {
  priceSet(input: $input) { errors { code field message } }
}`;

function planPrice(
  api: Api,
  wanted: Manifest['prices'][number],
  present: PresentPrice | undefined,
): Due | undefined {
  const amounts = {
    inputPerMillion: wanted.inputPerMillion,
    outputPerMillion: wanted.outputPerMillion,
    cacheReadPerMillion: wanted.cacheReadPerMillion ?? null,
    cacheWritePerMillion: wanted.cacheWritePerMillion ?? null,
  };
  const { model, contextWindow = null } = wanted;
  if (isDeepStrictEqual(present, { model, contextWindow, ...amounts })) return undefined;
  const texts = Object.entries(amounts).map(([name, amount]) => [
    name,
    amount === null ? null : formatDollars(amount),
  ]);
  return async () => {
    await api.run(SET_PRICE, { input: { model, contextWindow, ...Object.fromEntries(texts) } });
    return { change: { kind: 'price', name: model, action: actionOn(present) } };
  };
}

const CREATE_POLICY = `mutation CreatePolicy($input: PolicyCreateInput!) {
  written: policyCreate(input: $input) {
    policy { id newest { number } } errors { code field message }
  }
}`;
const UPDATE_POLICY = `mutation UpdatePolicy($input: PolicyUpdateInput!) {
  written: policyUpdate(input: $input) {
    policy { id newest { number } } errors { code field message }
  }
}`;

interface Written {
  readonly written: { readonly policy: { id: string; newest: { number: number } } };
}

function planPolicy(
  api: Api,
  policies: Policies,
  { name, document }: Manifest['policies'][number],
  present: PresentPolicy | undefined,
): Due | undefined {
  // Parsed, so that neither the order of keys nor spaces make a new version.
  const isSame =
    present && isDeepStrictEqual(present.newest.document, JSON.parse(JSON.stringify(document)));
  if (isSame) return undefined;
  return async () => {
    const { written } = present
      ? await api.run<Written>(UPDATE_POLICY, { input: { policyId: present.id, document } })
      : await api.run<Written>(CREATE_POLICY, { input: { name, document } });
    const { id, newest } = written.policy;
    policies.set(name, { id, newest: newest.number });
    const action = actionOn(present);
    return { change: { kind: 'policy', name, action, version: newest.number } };
  };
}

const CREATE_AGENT = `mutation CreateAgent($input: AgentCreateInput!) {
  agentCreate(input: $input) { secret errors { code field message } }
}`;
const UPDATE_AGENT = `mutation UpdateAgent($input: AgentUpdateInput!) {
  agentUpdate(input: $input) { errors { code field message } }
}`;

function planAgent(
  api: Api,
  policies: Policies,
  wanted: Manifest['agents'][number],
  present: PresentAgent | undefined,
): Due | undefined {
  const { name, policy } = wanted;
  if (present && isAssigned(present, wanted)) return undefined;
  const change: Change = { kind: 'agent', name, action: actionOn(present), policy };
  return async () => {
    const terms = termsOf(policies, wanted);
    if (present) {
      await api.run(UPDATE_AGENT, { input: { agentId: present.id, ...terms } });
      return { change };
    }
    const { agentCreate } = await api.run<{ agentCreate: { secret: string } }>(CREATE_AGENT, {
      input: { name, ...terms },
    });
    return { change, secret: agentCreate.secret };
  };
}

/** By names: what an earlier change of the file makes has no id yet. */
function isAssigned(present: PresentAgent, wanted: Manifest['agents'][number]): boolean {
  const chosen = present.choices.map(({ policy, version }) => labelOf(policy.name, version));
  const isSame =
    present.policy.name === wanted.policy &&
    present.pinnedVersion === (wanted.policyVersion ?? null);
  return isSame && isDeepStrictEqual(new Set(chosen), new Set(wanted.policies));
}

function labelOf(policy: string, version: number | null): string {
  return version === null ? policy : `${policy}/v${version}`;
}

/** What the file wants of an agent, once all its policies are there. */
function termsOf(
  policies: Policies,
  { policy, policyVersion, policies: choices }: Manifest['agents'][number],
) {
  return {
    policyId: idOf(policies, policy),
    pinnedVersion: policyVersion ?? null,
    choices: choices.map((choice) => ({
      policyId: idOf(policies, policyOf(choice)),
      version: versionOf(choice) ?? null,
    })),
  };
}

function idOf(policies: Policies, name: string): string {
  const policy = policies.get(name);
  if (policy) return policy.id;
  throw new Failure(EXIT_FAILED, `The policy "${name}" is gone: apply again.`);
}

/** The policy of a choice such as `strict-agents/v2`. */
function policyOf(choice: string): string {
  return choice.replace(/\/v\d+$/, '');
}

/** The version of a choice such as `strict-agents/v2`; undefined for the newest. */
function versionOf(choice: string): number | undefined {
  const digits = /\/v(\d+)$/.exec(choice)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

const CREATE_WEBHOOK = `mutation CreateWebhook($input: WebhookCreateInput!) {
  webhookCreate(input: $input) { secret errors { code field message } }
}`;
const UPDATE_WEBHOOK = `mutation UpdateWebhook($input: WebhookUpdateInput!) {
  webhookUpdate(input: $input) { errors { code field message } }
}`;

/** An endpoint is known by its URL; whether it is enabled is not the file's to say. */
function planWebhook(
  api: Api,
  { url, events, description }: Manifest['webhooks'][number],
  present: PresentWebhook | undefined,
): Due | undefined {
  const wanted = { events, description: description ?? present?.description ?? '' };
  const change: Change = { kind: 'webhook', name: url, action: actionOn(present) };
  if (!present) {
    return async () => {
      const { webhookCreate } = await api.run<{ webhookCreate: { secret: string } }>(
        CREATE_WEBHOOK,
        { input: { url, ...wanted } },
      );
      return { change, secret: webhookCreate.secret };
    };
  }
  const { events: told, description: said } = present;
  if (isDeepStrictEqual({ events: told, description: said }, wanted)) return undefined;
  return async () => {
    await api.run(UPDATE_WEBHOOK, { input: { webhookId: present.id, ...wanted } });
    return { change };
  };
}

function actionOn(present: object | undefined): Change['action'] {
  return present ? 'updated' : 'created';
}
