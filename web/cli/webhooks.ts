/** `rungate webhooks`: endpoints, their secrets, and what was delivered to them. */

import { type Command, InvalidArgumentError } from 'commander';
import { MAX_REPLAYED } from '../../db/deliveries.ts';
import { type EventType, isEventType, subscriptionSchema } from '../../schema/events.ts';
import { isId, type WebhookId } from '../../schema/ids.ts';
import { DEFAULT_GRACE_S, judgeEndpoint, MAX_GRACE_S } from '../../schema/webhook.ts';
import { type Api, type ApiOptions, type Connection, PAGE_INFO, readList, withApi } from './api.ts';
import { type Delivery, type DeliveryLog, readDeliveries, readDelivery } from './deliveries.ts';
import { EXIT_FAILED, EXIT_USAGE, Failure } from './failure.ts';
import { addApiCommand, addGroup, integerBetween, parseName } from './options.ts';
import { printNote, printResult } from './output.ts';
import { alignTable, type Column } from './table.ts';

interface AddOptions extends ApiOptions {
  readonly event: readonly string[];
  readonly description: string;
}

interface UpdateOptions extends ApiOptions {
  readonly url?: string;
  readonly event: readonly string[];
  readonly description?: string;
}

interface RotateOptions extends ApiOptions {
  /** Seconds. */
  readonly grace: number;
}

interface TestOptions extends ApiOptions {
  readonly type: EventType;
}

interface ListOptions extends ApiOptions {
  readonly webhook?: string;
  readonly status?: Delivery['status'];
  readonly limit: number;
}

interface ReplayOptions extends ApiOptions {
  /** Unix milliseconds. */
  readonly from: number;
  readonly to?: number;
}

const MAX_LISTED = 1_000;

/** Adds `webhooks list`, `add`, `rotate`, `enable`, `disable`, `remove` … */
export function addWebhookCommands(program: Command): void {
  const webhooks = addGroup(program, 'webhooks', 'webhook endpoints and deliveries');
  addEndpointCommands(webhooks);
  addDeliveryCommands(webhooks);
}

function addOne(parent: Command, name: string, description: string): Command {
  return addApiCommand(parent, name, description).argument(
    '<webhook>',
    'the endpoint: its whk_ id, its URL or its secret',
    parseName,
  );
}

function addEndpointCommands(webhooks: Command): void {
  addApiCommand(webhooks, 'list', 'print the endpoints').action(list);
  addApiCommand(webhooks, 'add', 'add an endpoint and print its secret once')
    .argument('<url>', 'where events go', parseName)
    .option('--event <type>', 'a type of event, or *; may be given again', collect, [])
    .option('--description <text>', 'what it is for', parseName, '')
    .action(add);
  addOne(webhooks, 'update', 'change what is given of an endpoint, and leave the rest')
    .option('--url <url>', 'where events go from now on', parseName)
    .option('--event <type>', 'a type of event, or *; may be given again', collect, [])
    .option('--description <text>', 'what it is for')
    .action(update);
  addOne(webhooks, 'rotate', 'print a new secret once; the present one signs too for a while')
    .option(
      '--grace <seconds>',
      'how long the present secret still signs',
      integerBetween(0, MAX_GRACE_S),
      DEFAULT_GRACE_S,
    )
    .action(rotate);
  addOne(webhooks, 'enable', 'deliver to an endpoint again').action(setStatus('enabled'));
  addOne(webhooks, 'disable', 'deliver no more; what is due is given up').action(
    setStatus('disabled'),
  );
  addOne(webhooks, 'remove', 'delete an endpoint with its deliveries').action(remove);
}

function addDeliveryCommands(webhooks: Command): void {
  addOne(webhooks, 'test', 'send an event that tells of nothing, whatever is subscribed to')
    .option('--type <type>', 'its type', parseType, 'run.started')
    .action(sendTest);
  addApiCommand(webhooks, 'deliveries', 'print deliveries, the newest first')
    .option('--webhook <webhook>', 'those of one endpoint', parseName)
    .option('--status <status>', 'pending, delivered or dead', parseStatus)
    .option('--limit <count>', 'the most to print', integerBetween(1, MAX_LISTED), 50)
    .action(showDeliveries);
  addDelivery(webhooks, 'delivery', 'print a delivery with its attempts').action(showDelivery);
  addDelivery(webhooks, 'redeliver', 'deliver an event to its endpoint again').action(again);
  addOne(webhooks, 'replay', `deliver a window of events again, at most ${MAX_REPLAYED}`)
    .requiredOption('--from <time>', 'the first moment, in RFC 3339', parseTime)
    .option('--to <time>', 'the end, which is not included; now by default', parseTime)
    .action(replay);
}

function addDelivery(parent: Command, name: string, description: string): Command {
  const argument = 'the delivery, by its dlv_ id';
  return addApiCommand(parent, name, description).argument('<delivery>', argument, parseName);
}

function collect(type: string, types: readonly string[]): readonly string[] {
  return [...types, type];
}

function parseType(text: string): EventType {
  if (isEventType(text)) return text;
  throw new InvalidArgumentError('It must be a type of event, such as run.started.');
}

function parseStatus(text: string): Delivery['status'] {
  if (text === 'pending' || text === 'delivered' || text === 'dead') return text;
  throw new InvalidArgumentError('It must be pending, delivered or dead.');
}

function parseTime(text: string): number {
  const isFull = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,3})?(Z|[+-]\d\d:\d\d)$/.test(text);
  const at = isFull ? Date.parse(text) : Number.NaN;
  if (!Number.isNaN(at)) return at;
  throw new InvalidArgumentError('It must be a time such as 2026-03-01T12:00:00Z.');
}

const WEBHOOKS: readonly Column[] = [
  { heading: 'id', align: 'left' },
  { heading: 'status', align: 'left' },
  { heading: 'events', align: 'left' },
  { heading: 'url', align: 'left' },
];

/** An endpoint as the API has it. */
interface Webhook {
  readonly id: WebhookId;
  readonly url: string;
  readonly description: string;
  readonly events: readonly string[];
  readonly status: string;
  readonly disabledReason: string | null;
  readonly failingSince: string | null;
  readonly previousUntil: string | null;
  readonly createdBy: string;
  readonly createdAt: string;
  readonly updatedAt: string;
}

const LIST = `query Webhooks($first: Int, $after: String) {
  webhooks(first: $first, after: $after) {
    nodes {
      id url description events status disabledReason failingSince
      previousUntil: previousSecretUntil createdBy createdAt updatedAt
    }
    ${PAGE_INFO}
  }
}`;

async function list(options: ApiOptions): Promise<void> {
  const listed = await withApi(options, (api) =>
    readList(api, LIST, ({ webhooks }: { webhooks: Connection<Webhook> }) => webhooks),
  );
  const webhooks = listed.map((each) => ({ ...each, status: each.status.toLowerCase() }));
  const cells = webhooks.map(({ id, status, disabledReason, events, url }) => [
    id,
    disabledReason ? `${status} (${disabledReason})` : status,
    events.join(' '),
    url,
  ]);
  printResult(webhooks, alignTable(WEBHOOKS, cells), options);
}

const CREATE = `mutation Create($input: WebhookCreateInput!) {
  webhookCreate(input: $input) { webhook { id } secret errors { code field message } }
}`;

interface Created {
  readonly webhookCreate: { readonly webhook: { readonly id: string }; readonly secret: string };
}

async function add(url: string, options: AddOptions): Promise<void> {
  const events = readEvents(options.event.length > 0 ? options.event : ['*']);
  const input = { url, events, description: options.description };
  const { webhookCreate } = await withApi(options, async (api) => {
    checkUrl(api, url);
    return await api.run<Created>(CREATE, { input });
  });
  const { webhook, secret } = webhookCreate;
  printResult({ id: webhook.id, secret }, [webhook.id, secret], options);
}

function readEvents(types: readonly string[]): readonly string[] {
  const events = subscriptionSchema.safeParse(types);
  if (events.success) return events.data;
  throw new Failure(EXIT_USAGE, `--event ${events.error.issues[0]?.message}.`);
}

function checkUrl({ egressAllow }: Api, url: string): void {
  const wrong = egressAllow && judgeEndpoint(url, egressAllow);
  if (wrong) throw new Failure(EXIT_USAGE, `The URL ${wrong}.`);
}

const UPDATE = `mutation Update($input: WebhookUpdateInput!) {
  webhookUpdate(input: $input) {
    webhook { id url events description } errors { code field message }
  }
}`;

interface Updated {
  readonly webhookUpdate: {
    readonly webhook: Pick<Webhook, 'id' | 'url' | 'events' | 'description'>;
  };
}

async function update(text: string, options: UpdateOptions): Promise<void> {
  const { url, event, description } = options;
  const events = event.length > 0 ? readEvents(event) : undefined;
  if (url === undefined && events === undefined && description === undefined) {
    throw new Failure(EXIT_USAGE, 'Give what is to change: --url, --event or --description.');
  }
  const { webhookUpdate } = await withWebhook(text, options, async (api, webhookId) => {
    if (url !== undefined) checkUrl(api, url);
    return await api.run<Updated>(UPDATE, { input: { webhookId, url, events, description } });
  });
  const { webhook } = webhookUpdate;
  const lines = [webhook.id, webhook.url, webhook.events.join(' '), webhook.description];
  printResult(webhook, lines.filter(Boolean), options);
}

const ROTATE = `mutation Rotate($webhookId: WebhookID!, $graceS: Count) {
  webhookRotateSecret(input: { webhookId: $webhookId, graceS: $graceS }) {
    secret previousUntil errors { code field message }
  }
}`;

interface Rotated {
  readonly webhookRotateSecret: { readonly secret: string; readonly previousUntil: string | null };
}

async function rotate(text: string, options: RotateOptions): Promise<void> {
  const { grace: graceS } = options;
  const rotated = await withWebhook(text, options, async (api, id) => {
    const { webhookRotateSecret } = await api.run<Rotated>(ROTATE, { webhookId: id, graceS });
    const { secret, previousUntil } = webhookRotateSecret;
    return { id, secret, previousUntil };
  });
  printResult(rotated, [rotated.secret], options);
}

const SET_STATUS = `mutation SetStatus($webhookId: WebhookID!, $status: WebhookStatus!) {
  webhookUpdate(input: { webhookId: $webhookId, status: $status }) {
    errors { code field message }
  }
}`;

function setStatus(status: 'enabled' | 'disabled') {
  return async (text: string, options: ApiOptions): Promise<void> => {
    const id = await withWebhook(text, options, async (api, webhookId) => {
      await api.run(SET_STATUS, { webhookId, status: status.toUpperCase() });
      return webhookId;
    });
    printResult({ id, status }, [`${id}: ${status}`], options);
  };
}

const REMOVE = `mutation Remove($webhookId: WebhookID!) {
  webhookDelete(input: { webhookId: $webhookId }) { errors { code field message } }
}`;

async function remove(text: string, options: ApiOptions): Promise<void> {
  const id = await withWebhook(text, options, async (api, webhookId) => {
    await api.run(REMOVE, { webhookId });
    return webhookId;
  });
  printResult({ id, removed: true }, [`${id}: removed`], options);
}

const TEST = `mutation Test($webhookId: WebhookID!, $type: String!) {
  webhookTest(input: { webhookId: $webhookId, type: $type }) {
    event { id } errors { code field message }
  }
}`;

async function sendTest(text: string, options: TestOptions): Promise<void> {
  const { type } = options;
  const { webhookTest } = await withWebhook(text, options, (api, webhookId) =>
    api.run<{ webhookTest: { event: { id: string } } }>(TEST, { webhookId, type }),
  );
  const { id: eventId } = webhookTest.event;
  printResult({ eventId }, [eventId], options);
}

const DELIVERIES: readonly Column[] = [
  { heading: 'id', align: 'left' },
  { heading: 'time', align: 'left' },
  { heading: 'event', align: 'left' },
  { heading: 'attempts', align: 'right' },
  { heading: 'status', align: 'left' },
];

async function showDeliveries(options: ListOptions): Promise<void> {
  const { webhook, status, limit } = options;
  const deliveries = await withApi(options, async (api) => {
    const webhookId = webhook === undefined ? null : await findWebhook(api, webhook);
    return await readDeliveries(api, { webhookId, status: status?.toUpperCase() ?? null }, limit);
  });
  const cells = deliveries.map((each) => [
    each.id,
    each.createdAt,
    each.eventType,
    String(each.attempts),
    statusOf(each),
  ]);
  printResult(deliveries, alignTable(DELIVERIES, cells), options);
}

async function showDelivery(id: string, options: ApiOptions): Promise<void> {
  const found = await withApi(options, async (api) =>
    isId('delivery', id) ? await readDelivery(api, id) : undefined,
  );
  if (!found) throw missingDelivery(id);
  printResult(found, deliveryLines(found), options);
}

function deliveryLines(delivery: DeliveryLog): string[] {
  const { webhookId, nextAt, body, log } = delivery;
  const next = nextAt === null ? [] : [`next      ${nextAt}`];
  const attempts = log.flatMap(({ number, startedAt, durationMs, outcome, ...response }) => {
    const { responseStatus, responseBody } = response;
    const told = outcome === 'delivered' ? `${outcome}, HTTP ${responseStatus}` : outcome;
    const line = `${number}. ${startedAt} ${told}, ${durationMs} ms`;
    const said = (responseBody ?? '').split(/\r?\n/).filter(Boolean);
    return [line, ...said.map((text) => `   ${text}`)];
  });
  return [`endpoint  ${webhookId}`, `status    ${statusOf(delivery)}`, ...next, body, ...attempts];
}

const statusOf = ({ status, reason }: Delivery) => (reason ? `${status} (${reason})` : status);

const missingDelivery = (id: string) =>
  new Failure(EXIT_FAILED, `There is no delivery "${id}" here.`);

const REDELIVER = `mutation Redeliver($deliveryId: DeliveryID!) {
  deliveryRedeliver(input: { deliveryId: $deliveryId }) {
    delivery { id } errors { code field message }
  }
}`;

async function again(id: string, options: ApiOptions): Promise<void> {
  const { deliveryRedeliver } = await withApi(options, async (api) => {
    if (!isId('delivery', id)) throw missingDelivery(id);
    return await api.run<{ deliveryRedeliver: { delivery: { id: string } } }>(REDELIVER, {
      deliveryId: id,
    });
  });
  const { id: made } = deliveryRedeliver.delivery;
  printResult({ id: made }, [made], options);
}

const REPLAY = `mutation Replay($webhookId: WebhookID!, $from: DateTime!, $to: DateTime) {
  webhookReplay(input: { webhookId: $webhookId, from: $from, to: $to }) {
    replayed nextFrom errors { code field message }
  }
}`;

interface Replayed {
  readonly webhookReplay: { readonly replayed: number; readonly nextFrom: string | null };
}

async function replay(text: string, options: ReplayOptions): Promise<void> {
  const from = new Date(options.from).toISOString();
  const to = options.to === undefined ? null : new Date(options.to).toISOString();
  const { webhookReplay } = await withWebhook(text, options, (api, webhookId) =>
    api.run<Replayed>(REPLAY, { webhookId, from, to }),
  );
  const { replayed, nextFrom } = webhookReplay;
  printResult({ replayed, nextFrom }, [`${replayed} event(s) are due again`], options);
  if (nextFrom) printNote(`there may be more: replay the rest with --from ${nextFrom}.`);
}

async function withWebhook<T>(
  text: string,
  options: ApiOptions,
  work: (api: Api, webhook: WebhookId) => Promise<T>,
): Promise<T> {
  return await withApi(options, async (api) => await work(api, await findWebhook(api, text)));
}

const FIND = 'query Find($reference: String!) { webhookBy(reference: $reference) { id } }';

async function findWebhook(api: Api, reference: string): Promise<WebhookId> {
  const { webhookBy } = await api.run<{ webhookBy: { id: WebhookId } | null }>(FIND, { reference });
  if (webhookBy) return webhookBy.id;
  // The text may be a secret, so it is not repeated.
  const shown = isId('webhook', reference) ? ` "${reference}"` : ' of that URL or secret';
  throw new Failure(EXIT_FAILED, `There is no webhook${shown} here.`);
}
