/** What the run's policy says of the call, and which upstream it goes to. */

import type { ProviderKey } from '../../db/provider-keys.ts';
import { findForeignId, findResponse, type KeptResponse } from '../../db/responses.ts';
import { readSettings, type Settings } from '../../db/settings.ts';
import type { JsonObject } from '../../schema/json.ts';
import type { Policy } from '../../schema/policy.ts';
import { provider as findProvider, type Provider } from '../../schema/providers.ts';
import { invalid, isGiven } from '../../schema/rules/bound.ts';
import {
  type Catalogue,
  findRates,
  MAX_MODEL_LENGTH,
  overrideRates,
  type Rates,
} from '../../schema/rules/catalogue.ts';
import { type Denial, decideModel } from '../../schema/rules/decide.ts';
import { decideHosted, decideLabel, decideUnasked } from '../../schema/rules/hosted.ts';
import { denyName, governsTools } from '../../schema/rules/tools.ts';
import type { Endpoint } from '../providers/contract.ts';
import { type Declared, declaredTools } from '../providers/declared.ts';
import { ENDPOINTS } from '../providers/endpoints.ts';
import { referredItems } from '../providers/responses.ts';
import { extend } from './call.ts';
import type { Governed } from './deny.ts';
import { denyRequest } from './stop.ts';

/** A call that the policy lets through, and where it goes. */
export interface Permitted extends Governed {
  readonly endpoint: Endpoint;
  readonly settings: Settings;
  readonly key: ProviderKey;
  readonly provider: Provider;
  /** The model as the upstream knows it; `null` for a call that names none. */
  readonly model: string | null;
  /** What the call costs; `null` for a call that costs nothing. */
  readonly rates: Rates | null;
  /** The kept response that the call is about. */
  readonly kept: KeptResponse | undefined;
  /** Where else the call may go, in the order of trying; empty unless the policy names some. */
  readonly fallbacks: readonly Target[];
  /** What the next attempt is on the trail; absent for the first one, a model call. */
  readonly stepKind?: 'model_call' | 'retry' | 'failover';
}

/** Where a call goes. */
export interface Target {
  readonly endpoint: Endpoint;
  readonly key: ProviderKey;
  readonly provider: Provider;
  /** As the upstream knows it; `null` for a call that names none. */
  readonly model: string | null;
  /** What the call costs there; `null` for a call that costs nothing. */
  readonly rates: Rates | null;
}

/**
 * Checks route, state and model against the policy and finds the upstream and its price.
 *
 * @throws {Refusal} `route_denied`, `permission_denied`, `unpriced_model`, `not_found`,
 *   `invalid_body`; `run_closed` as {@link denyRequest} stops a run that repeats itself.
 */
export async function decide(call: Governed): Promise<Permitted> {
  const { endpoint } = call;
  if (!endpoint) return denyRoute(call);
  const settings = await readSettings(call.org, call.credential.revision);
  const kept = await findKept(call);
  const target = await findTarget(call, endpoint, settings, kept);
  const denial = judgeTools(call, endpoint, target.provider);
  if (denial) return denyByPolicy(call, denial);
  const rates = endpoint.spends ? await priceOf(call, target, settings) : null;
  const fallbacks = kept ? [] : findFallbacks(call, { ...target, rates }, settings);
  return extend(call, { settings, ...target, rates, kept, fallbacks });
}

/** The first tool that the request declares and the policy never lets through to a provider. */
function judgeTools(
  { version, body: checked }: Governed,
  endpoint: Endpoint,
  provider: Provider,
): Denial | undefined {
  const { policy } = version;
  const body = checked?.value;
  const isGoverned = governsTools(policy);
  if (!body || (!isGoverned && !policy.hostedTools)) return undefined;
  if (isGiven(body.prompt) && endpoint.name === 'responses.create') {
    return denyPrompt(isGoverned ? 'tools' : 'hostedTools');
  }
  const places = new Map<string, string>();
  for (const tool of declaredTools(endpoint.name, body)) {
    const denial = judgeDeclared(policy, tool, provider, isGoverned ? places : undefined);
    if (denial) return denial;
  }
  return undefined;
}

function judgeDeclared(
  policy: Policy,
  { field, name, hosted }: Declared,
  { asksApproval = false }: Provider,
  places: Map<string, string> | undefined,
): Denial | undefined {
  const denial = hosted ? decideHosted(policy, hosted) : denyName(policy, name ?? '');
  if (denial) return { ...denial, field };
  if (!hosted) return undefined;
  const unclear = places && decideLabel(hosted, places);
  const refused = unclear ?? decideUnasked(policy, hosted, asksApproval);
  return refused && { ...refused, field: `${field}.${refused.field}` };
}

/** A stored prompt may declare any tool, and nobody here can read it. */
function denyPrompt(rule: string): Denial {
  return {
    effect: 'deny',
    rule,
    field: 'prompt',
    asked: 'prompt',
    reason:
      'The policy governs tools, and a stored prompt can declare tools that are not seen here; send its content instead.',
  };
}

function denyRoute(call: Governed): Promise<never> {
  const asked = `${call.request.method} ${call.path.slice(0, 200)}`;
  return denyRequest(
    call,
    'route_denied',
    `Rungate does not forward ${asked}: what it does could not be governed.`,
    { rule: 'routes', field: 'path', asked },
  );
}

/** State that an upstream keeps is open only to the agent that made it. */
function findKept(call: Governed): KeptResponse | undefined | Promise<KeptResponse | undefined> {
  const { endpoint, resourceId, body } = call;
  if (endpoint?.path.startsWith('responses/') && resourceId !== undefined) {
    return findNamed(call, resourceId);
  }
  if (isGiven(body?.value.conversation)) return denyConversation(call);
  const isFirst = (body?.value.previous_response_id ?? null) === null;
  const isReferring = !isFirst || endpoint?.name === 'responses.create';
  return body && isReferring ? findPrevious(call, body.value) : undefined;
}

async function findNamed(call: Governed, id: string): Promise<KeptResponse> {
  const kept = await findResponse(call.org, call.agent.id, id);
  return (
    kept ?? denyRequest(call, 'not_found', 'This agent has made no response with that id.', {})
  );
}

async function findPrevious(call: Governed, body: JsonObject): Promise<KeptResponse | undefined> {
  const { org, agent } = call;
  await checkReferences(call, body);
  const previous = body.previous_response_id;
  if (previous === undefined || previous === null) return undefined;
  if (typeof previous !== 'string') throw invalid('previous_response_id', 'must be a string');
  const kept = await findResponse(org, agent.id, previous);
  return (
    kept ??
    denyRequest(call, 'permission_denied', 'This agent has made no response with that id.', {
      rule: 'responses.owner',
      field: 'previous_response_id',
    })
  );
}

/** An item of another agent's response could hold what this one may not read. */
async function checkReferences(call: Governed, body: JsonObject): Promise<void> {
  if (call.endpoint?.name !== 'responses.create') return;
  const referred = referredItems(body);
  if (referred.length === 0) return;
  const foreign = await findForeignId(call.org, call.agent.id, referred);
  if (foreign === undefined) return;
  await denyRequest(
    call,
    'permission_denied',
    'This agent has made no response item with that id.',
    {
      rule: 'responses.owner',
      field: 'input',
      asked: foreign.slice(0, 256),
    },
  );
}

/** Conversations are not forwarded, so that whoever names one did not make it here. */
function denyConversation(call: Governed): Promise<never> {
  const message = 'This agent has made no conversation; send the items or previous_response_id.';
  return denyRequest(call, 'permission_denied', message, {
    rule: 'responses.owner',
    field: 'conversation',
  });
}

function findTarget(
  call: Governed,
  endpoint: Endpoint,
  settings: Settings,
  kept: KeptResponse | undefined,
): Chosen | Promise<never> {
  const asked = call.body?.value.model;
  const candidates = settings.keys.flatMap((key) => candidate(key, endpoint, kept));
  const isNamed = typeof asked === 'string' && asked.length <= MAX_MODEL_LENGTH;
  if (!isNamed && (endpoint.spends || asked !== undefined)) {
    const message = `The body must name its model as a string of at most ${MAX_MODEL_LENGTH} characters.`;
    return denyRequest(call, 'invalid_body', message, { field: 'model' });
  }
  const target =
    typeof asked === 'string' ? choose(call, candidates, settings, asked) : candidates[0];
  if (!target) return denyKey(call, endpoint, asked, settings);
  if (isOff(call, target)) {
    const message = 'The demo upstream is off; RUNGATE_DEMO=on turns it on.';
    return denyRequest(call, 'permission_denied', message, { rule: 'demo', field: 'model', asked });
  }
  const chosen = { ...target, model: typeof asked === 'string' ? bare(target.key, asked) : null };
  if (chosen.model === null) return chosen;
  const decision = decideModel(call.version.policy, `${chosen.key.name}/${chosen.model}`);
  return decision.effect === 'allow' ? chosen : denyByPolicy(call, decision);
}

/** The built-in upstream is there only where the operator has it. */
function isOff({ services }: Governed, { provider }: Pick<Target, 'provider'>): boolean {
  return provider.name === 'demo' && !services.config.isDemo;
}

type Candidate = Omit<Target, 'model' | 'rates'>;
type Chosen = Omit<Target, 'rates'>;

function candidate(
  key: ProviderKey,
  endpoint: Endpoint,
  kept: KeptResponse | undefined,
): Candidate[] {
  const provider = findProvider(key.provider);
  const isOffered = endpoint.providers?.has(key.provider) ?? true;
  const fits = isOffered && provider?.dialects.includes(endpoint.dialect);
  const isSame = !kept || kept.providerKey === key.name;
  return provider && fits && isSame ? [{ endpoint, key, provider }] : [];
}

/**
 * `key/model` names its key. A bare model goes to the oldest key that has a price for it, or else
 * to the oldest key: keys are in the order of their age.
 */
function choose(
  { catalogue, startedAt }: Governed,
  candidates: readonly Candidate[],
  settings: Settings,
  asked: string,
): Candidate | undefined {
  const named = candidates.find(({ key }) => asked.startsWith(`${key.name}/`));
  if (named || candidates.length === 1) return named ?? candidates[0];
  const isPriced = ({ key, provider }: Candidate) =>
    ratesOf(catalogue, settings, provider, key, asked, startedAt) !== undefined;
  return candidates.find(isPriced) ?? candidates[0];
}

function bare(key: ProviderKey, asked: string): string {
  const prefix = `${key.name}/`;
  return asked.startsWith(prefix) ? asked.slice(prefix.length) : asked;
}

function denyKey(
  call: Governed,
  endpoint: Endpoint,
  asked: unknown,
  settings: Settings,
): Promise<never> {
  return denyRequest(
    call,
    'permission_denied',
    `The org has no provider key for ${endpoint.dialect} calls; an admin can add one.`,
    { rule: 'provider_keys', field: 'model', asked, allowed: settings.keys.map((key) => key.name) },
  );
}

function denyByPolicy(call: Governed, denial: Denial): Promise<never> {
  const { rule, field, asked, allowed } = denial;
  return denyRequest(call, 'permission_denied', denial.reason, { rule, field, asked, allowed });
}

/** What a model costs: the org's own price, else the catalogue's; `undefined` when unknown. */
function ratesOf(
  catalogue: Catalogue,
  settings: Settings,
  provider: Provider,
  key: ProviderKey,
  model: string,
  atMillis: number,
): Rates | undefined {
  const own = settings.prices.get(`${key.name}/${model}`);
  if (own?.hasWindow) return own.rates;
  const listed = provider.catalogue
    ? findRates(provider.catalogue, model, atMillis, catalogue)
    : undefined;
  if (!own) return listed;
  const contextWindow = listed?.contextWindow;
  return contextWindow === undefined ? own.rates : { ...own.rates, contextWindow };
}

/** As {@link ratesOf}, or else the explicit price that the policy has for models without one. */
function tariffOf(
  call: Governed,
  settings: Settings,
  provider: Provider,
  key: ProviderKey,
  model: string,
): Rates | undefined {
  const { unpriced } = call.version.policy.budget;
  const rates = ratesOf(call.catalogue, settings, provider, key, model, call.startedAt);
  if (rates || unpriced === 'deny') return rates;
  const { inputPerMillion, outputPerMillion } = unpriced;
  return overrideRates({
    model,
    inputNanosPerMillion: inputPerMillion,
    outputNanosPerMillion: outputPerMillion,
  });
}

/** What the call costs; a model without a price has the policy's explicit one, or is refused. */
function priceOf(call: Governed, target: Chosen, settings: Settings): Rates | Promise<never> {
  const { key, provider } = target;
  const model = target.model ?? '';
  const rates = tariffOf(call, settings, provider, key, model);
  if (rates) return rates;
  const name = `${key.name}/${model}`;
  return denyRequest(
    call,
    'unpriced_model',
    `The model "${name}" has no known price; an admin can set one for it.`,
    { rule: 'budget.unpriced', field: 'model', asked: name },
  );
}

/** Endpoints that a call can be said over to, where an upstream speaks another dialect. */
const COUNTERPARTS: ReadonlyMap<string, string> = new Map([
  ['chat.completions', 'messages'],
  ['messages', 'chat.completions'],
]);

/**
 * Where else the policy lets the call go. What is denied, is off, has no price or speaks another
 * dialect that the call can't be said over to is left out, as is a key that the org doesn't have.
 */
function findFallbacks(call: Governed, first: Target, settings: Settings): readonly Target[] {
  const { failover } = call.version.policy;
  if (!failover || !first.rates) return NO_TARGETS;
  const name = `${first.key.name}/${first.model}`;
  const entry = failover.find(({ model }) => model === name);
  if (!entry) return NO_TARGETS;
  return entry.to.flatMap((model) => fallback(call, first.endpoint, settings, model) ?? []);
}

const NO_TARGETS: readonly Target[] = [];

/** @param name The model as `key/model`. */
function fallback(
  call: Governed,
  asked: Endpoint,
  settings: Settings,
  name: string,
): Target | undefined {
  const key = settings.keys.find((each) => name.startsWith(`${each.name}/`));
  const provider = key && findProvider(key.provider);
  if (!provider || isOff(call, { provider })) return undefined;
  if (decideModel(call.version.policy, name).effect === 'deny') return undefined;
  if (judgeTools(call, asked, provider)) return undefined;
  const endpoint = endpointAt(provider, asked);
  const model = bare(key, name);
  const rates = tariffOf(call, settings, provider, key, model);
  return endpoint && rates && { endpoint, key, provider, model, rates };
}

/** The endpoint itself, or its counterpart at a provider of the other dialect. */
function endpointAt(provider: Provider, asked: Endpoint): Endpoint | undefined {
  const named = COUNTERPARTS.get(asked.name);
  const endpoint = provider.dialects.includes(asked.dialect)
    ? asked
    : ENDPOINTS.find(({ name }) => name === named);
  const isOffered = endpoint?.providers?.has(provider.name) ?? true;
  return endpoint && isOffered && provider.dialects.includes(endpoint.dialect)
    ? endpoint
    : undefined;
}
