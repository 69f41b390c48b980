/** `rungate apply`: makes an org match a file, changing only what differs. */

import { env } from 'node:process';
import { isDeepStrictEqual } from 'node:util';
import type { Command } from 'commander';
import {
  type Agent,
  type Assignment,
  type Choice,
  createAgent,
  findAgent,
  readAgentChoices,
  updateAgent,
} from '../../db/agents.ts';
import { DatabaseError } from '../../db/client.ts';
import type { Org } from '../../db/org.ts';
import { addPolicyVersion, findPolicy } from '../../db/policies.ts';
import { findPrice, type Price, setPrice } from '../../db/prices.ts';
import { findProviderKey, holdsSecret, putProviderKey } from '../../db/provider-keys.ts';
import type { MasterKeys } from '../../db/seal.ts';
import { createWebhook, findWebhook, updateWebhook } from '../../db/webhooks.ts';
import type { PolicyId } from '../../schema/ids.ts';
import { EXIT_FAILED, EXIT_USAGE, Failure } from './failure.ts';
import { invalidManifest, type Manifest, readManifest, type WantedKey } from './manifest.ts';
import { addOrgCommand } from './options.ts';
import { type OutputOptions, printJson } from './output.ts';
import { OPERATOR, readMasterKeys, withOrg } from './session.ts';

interface ApplyOptions extends OutputOptions {
  readonly org: string;
}

/** What was changed; never a secret. */
interface Change {
  readonly kind: 'providerKey' | 'price' | 'policy' | 'agent' | 'webhook';
  readonly name: string;
  readonly action: 'created' | 'updated';
  readonly [detail: string]: string | number;
}

/** What is done for one entry of the file. */
interface Done {
  readonly change: Change;
  /** The text of a new agent's token. */
  readonly token?: string;
  /** The secret of a new webhook. */
  readonly secret?: string;
}

/** A change that is due; nothing happens before it is called. */
type Due = () => Promise<Done>;

/** Adds `apply`. */
export function addApplyCommand(program: Command): void {
  addOrgCommand(program, 'apply', 'make an org match a file, changing only what differs')
    .argument('<file>', 'a JSON file, or - for stdin')
    .action(apply);
}

async function apply(path: string, options: ApplyOptions): Promise<void> {
  const done: Done[] = [];
  try {
    await withOrg(options.org, async (org, { config }) => {
      const manifest = await readManifest(path, { env, allow: config.egressAllow });
      await checkPolicies(path, org, manifest);
      const due = await planChanges(org, await readMasterKeys(config), manifest);
      for (const change of due) done.push(await change());
    });
  } catch (error) {
    // A token is told once: those of agents that were made before the failure must not be lost.
    if (done.length > 0) printDone(done, options);
    throw blame(error);
  }
  printDone(done, options);
}

function printDone(done: readonly Done[], options: ApplyOptions): void {
  const tokens = done.flatMap(({ change, token }) =>
    token === undefined ? [] : [{ agent: change.name, token }],
  );
  const webhooks = done.flatMap(({ change, secret }) =>
    secret === undefined ? [] : [{ url: change.name, secret }],
  );
  const secrets = webhooks.length > 0 ? { webhooks } : {};
  printJson({ tokens, ...secrets, changes: done.map(({ change }) => change) }, options);
}

function blame(error: unknown): unknown {
  const isRace = error instanceof DatabaseError && error.conflict;
  if (!isRace) return error;
  return new Failure(EXIT_FAILED, 'The org was changed at the same time: apply the file again.');
}

/** The policies of agents, and the versions that are asked for, are in the file or in the org. */
async function checkPolicies(path: string, org: Org, manifest: Manifest): Promise<void> {
  const problems: string[] = [];
  for (const [at, { policy, policyVersion, policies }] of manifest.agents.entries()) {
    const judge = async (field: string, name: string, version: number | undefined) => {
      const problem = await judgePolicy(org, manifest, name, version);
      if (problem) problems.push(`agents[${at}].${field}: ${problem}`);
    };
    await judge('policy', policy, undefined);
    if (policyVersion !== undefined) await judge('policyVersion', policy, policyVersion);
    for (const [index, choice] of policies.entries()) {
      await judge(`policies[${index}]`, policyOf(choice), versionOf(choice));
    }
  }
  if (problems.length > 0) throw invalidManifest(path, problems);
}

async function judgePolicy(
  org: Org,
  manifest: Manifest,
  name: string,
  version: number | undefined,
): Promise<string | undefined> {
  const isWritten = manifest.policies.some((policy) => policy.name === name);
  const present = await findPolicy(org, name);
  if (!present && !isWritten) return `neither the file nor the org has a policy "${name}"`;
  // The file adds one version at most.
  const newest = (present?.number ?? 0) + (isWritten ? 1 : 0);
  return (version ?? 0) > newest ? `the policy "${name}" has no version ${version}` : undefined;
}

/**
 * Compares everything before anything is changed. Policies come before the agents that need them.
 */
async function planChanges(org: Org, master: MasterKeys, manifest: Manifest): Promise<Due[]> {
  const due: (Due | undefined)[] = [];
  for (const key of manifest.providerKeys) due.push(await planKey(org, master, key));
  for (const price of manifest.prices) due.push(await planPrice(org, price));
  for (const policy of manifest.policies) due.push(await planPolicy(org, policy));
  for (const agent of manifest.agents) due.push(await planAgent(org, agent));
  for (const webhook of manifest.webhooks) due.push(await planWebhook(org, master, webhook));
  return due.filter((each) => each !== undefined);
}

async function planKey(org: Org, master: MasterKeys, key: WantedKey): Promise<Due | undefined> {
  const { name, provider, baseUrl, secret } = key;
  const present = await findProviderKey(org, name);
  const isSame =
    present?.provider === provider &&
    present.baseUrl === baseUrl &&
    (await holdsSecret(org, master, present, secret));
  if (isSame) return undefined;
  return async () => {
    await putProviderKey(org, master, OPERATOR, key);
    return { change: { kind: 'providerKey', name, action: actionOn(present), provider, baseUrl } };
  };
}

async function planPrice(org: Org, wanted: Manifest['prices'][number]): Promise<Due | undefined> {
  const { model: name, cacheReadPerMillion: read, cacheWritePerMillion: write } = wanted;
  const price: Price = {
    inputNanosPerMillion: wanted.inputPerMillion,
    outputNanosPerMillion: wanted.outputPerMillion,
    ...(wanted.contextWindow === undefined ? {} : { contextWindow: wanted.contextWindow }),
    ...(read === undefined ? {} : { cacheReadNanosPerMillion: read }),
    ...(write === undefined ? {} : { cacheWriteNanosPerMillion: write }),
  };
  const present = await findPrice(org, name);
  if (isDeepStrictEqual(present, price)) return undefined;
  return async () => {
    await setPrice(org, OPERATOR, name, price);
    return { change: { kind: 'price', name, action: actionOn(present) } };
  };
}

async function planPolicy(
  org: Org,
  { name, document }: Manifest['policies'][number],
): Promise<Due | undefined> {
  const present = await findPolicy(org, name);
  const text = JSON.stringify(document);
  // Parsed, so that neither the order of keys nor spaces make a new version.
  if (present && isDeepStrictEqual(JSON.parse(present.document), JSON.parse(text)))
    return undefined;
  return async () => {
    const { number } = await addPolicyVersion(org, OPERATOR, name, text, present);
    return { change: { kind: 'policy', name, action: actionOn(present), version: number } };
  };
}

async function planAgent(org: Org, wanted: Manifest['agents'][number]): Promise<Due | undefined> {
  const { name, policy } = wanted;
  const present = await findAgent(org, name);
  if (present && (await isAssigned(org, present, wanted))) return undefined;
  return async () => {
    const { policyId, ...terms } = await assignmentOf(org, wanted);
    const change: Change = { kind: 'agent', name, action: actionOn(present), policy };
    if (!present) {
      return { change, token: (await createAgent(org, OPERATOR, name, policyId, terms)).token };
    }
    await updateAgent(org, OPERATOR, present.id, { name, policyId, ...terms });
    return { change };
  };
}

async function isAssigned(
  org: Org,
  present: Agent,
  wanted: Manifest['agents'][number],
): Promise<boolean> {
  const known = await Promise.all(
    [wanted.policy, ...wanted.policies.map(policyOf)].map((name) => findPolicy(org, name)),
  );
  // What an earlier change of the file makes can't be assigned yet.
  if (known.includes(undefined)) return false;
  const { policyId, pinned, choices } = await assignmentOf(org, wanted);
  const chosen = await readAgentChoices(org, present.id);
  const isSame = present.policyId === policyId && present.pinned === pinned;
  return isSame && isDeepStrictEqual(sortChoices(chosen), sortChoices(choices));
}

function sortChoices(choices: readonly Choice[]): string[] {
  return [...new Set(choices.map(({ policyId, number }) => `${policyId}/${number}`))].sort();
}

/** What the file wants of an agent, once all its policies are there. */
async function assignmentOf(
  org: Org,
  { policy, policyVersion, policies }: Manifest['agents'][number],
): Promise<Assignment> {
  const choices: Choice[] = [];
  for (const text of policies) {
    const number = versionOf(text) ?? null;
    choices.push({ policyId: await policyId(org, policyOf(text), number), number });
  }
  const pinned = policyVersion ?? null;
  return { policyId: await policyId(org, policy, pinned), pinned, choices };
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

/** An endpoint is known by its URL; whether it is enabled is not the file's to say. */
async function planWebhook(
  org: Org,
  master: MasterKeys,
  { url, events, description }: Manifest['webhooks'][number],
): Promise<Due | undefined> {
  const present = await findWebhook(org, url);
  const wanted = { url, events, description: description ?? present?.description ?? '' };
  const change: Change = { kind: 'webhook', name: url, action: actionOn(present) };
  if (!present) {
    return async () => {
      const { secret } = await createWebhook(org, master, OPERATOR, wanted);
      return { change, secret };
    };
  }
  const isSame =
    isDeepStrictEqual(present.events, events) && present.description === wanted.description;
  if (isSame) return undefined;
  return async () => {
    await updateWebhook(org, OPERATOR, present.id, wanted);
    return { change };
  };
}

/** The id of a policy that is there, or that an earlier change has made. */
async function policyId(org: Org, name: string, version: number | null): Promise<PolicyId> {
  const policy = await findPolicy(org, name);
  if (!policy) throw new Failure(EXIT_FAILED, `The policy "${name}" is gone: apply again.`);
  if (version === null || version <= policy.number) return policy.id;
  throw new Failure(EXIT_USAGE, `The policy "${name}" has no version ${version}.`);
}

function actionOn(present: object | undefined): Change['action'] {
  return present ? 'updated' : 'created';
}
