/** `rungate webhooks`: endpoints, their secrets, and what was delivered to them. */

import { type Command, InvalidArgumentError } from 'commander';
import {
  type Delivery,
  listDeliveries,
  MAX_REPLAYED,
  readDelivery,
  redeliver,
  replayEvents,
  sendTestEvent,
} from '../../db/deliveries.ts';
import type { Org } from '../../db/org.ts';
import {
  createWebhook,
  deleteWebhook,
  findWebhook,
  listWebhooks,
  rotateWebhookSecret,
  updateWebhook,
  type Webhook,
} from '../../db/webhooks.ts';
import { Refusal } from '../../schema/errors.ts';
import { type EventType, isEventType, subscriptionSchema } from '../../schema/events.ts';
import { isId } from '../../schema/ids.ts';
import { DEFAULT_GRACE_S, judgeEndpoint, MAX_GRACE_S } from '../../schema/webhook.ts';
import { EXIT_FAILED, EXIT_USAGE, Failure } from './failure.ts';
import { addGroup, addOrgCommand, integerBetween, parseName } from './options.ts';
import { type OutputOptions, printNote, printResult } from './output.ts';
import { OPERATOR, readMasterKeys, type Session, withOrg } from './session.ts';
import { alignTable, type Column } from './table.ts';

interface WebhookOptions extends OutputOptions {
  readonly org: string;
}

interface AddOptions extends WebhookOptions {
  readonly event: readonly string[];
  readonly description: string;
}

interface RotateOptions extends WebhookOptions {
  /** Seconds. */
  readonly grace: number;
}

interface TestOptions extends WebhookOptions {
  readonly type: EventType;
}

interface ListOptions extends WebhookOptions {
  readonly webhook?: string;
  readonly status?: Delivery['status'];
  readonly limit: number;
}

interface ReplayOptions extends WebhookOptions {
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
  return addOrgCommand(parent, name, description).argument(
    '<webhook>',
    'the endpoint: its whk_ id, its URL or its secret',
    parseName,
  );
}

function addEndpointCommands(webhooks: Command): void {
  addOrgCommand(webhooks, 'list', 'print the endpoints').action(list);
  addOrgCommand(webhooks, 'add', 'add an endpoint and print its secret once')
    .argument('<url>', 'where events go', parseName)
    .option('--event <type>', 'a type of event, or *; may be given again', collect, [])
    .option('--description <text>', 'what it is for', parseName, '')
    .action(add);
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
  addOrgCommand(webhooks, 'deliveries', 'print deliveries, the newest first')
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
  return addOrgCommand(parent, name, description).argument('<delivery>', argument, parseName);
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

async function list(options: WebhookOptions): Promise<void> {
  const webhooks = await withOrg(options.org, (org) => listWebhooks(org));
  const cells = webhooks.map(({ id, status, disabledReason, events, url }) => [
    id,
    disabledReason ? `${status} (${disabledReason})` : status,
    events.join(' '),
    url,
  ]);
  printResult(webhooks.map(describeWebhook), alignTable(WEBHOOKS, cells), options);
}

async function add(url: string, options: AddOptions): Promise<void> {
  const events = subscriptionSchema.safeParse(options.event.length > 0 ? options.event : ['*']);
  const problem = events.error?.issues[0]?.message;
  if (!events.success) throw new Failure(EXIT_USAGE, `--event ${problem}.`);
  const wanted = { url, events: events.data, description: options.description };
  const made = await withWebhooks(options, async (org, { config }) => {
    const wrong = judgeEndpoint(url, config.egressAllow);
    if (wrong) throw new Failure(EXIT_USAGE, `The URL ${wrong}.`);
    return await createWebhook(org, await readMasterKeys(config), OPERATOR, wanted);
  });
  printResult(made, [made.id, made.secret], options);
}

async function rotate(text: string, options: RotateOptions): Promise<void> {
  const rotated = await withWebhook(text, options, async (org, webhook, { config }) => {
    const master = await readMasterKeys(config);
    return await rotateWebhookSecret(org, master, OPERATOR, webhook.id, options.grace * 1_000);
  });
  if (!rotated) throw missing(text);
  const previousUntil = isoTime(rotated.previousUntil);
  printResult({ ...rotated, previousUntil }, [rotated.secret], options);
}

function setStatus(status: Webhook['status']) {
  return async (text: string, options: WebhookOptions): Promise<void> => {
    const { id } = await withWebhook(text, options, async (org, webhook) => {
      await updateWebhook(org, OPERATOR, webhook.id, { status });
      return webhook;
    });
    printResult({ id, status }, [`${id}: ${status}`], options);
  };
}

async function remove(text: string, options: WebhookOptions): Promise<void> {
  const { id } = await withWebhook(text, options, async (org, webhook) => {
    await deleteWebhook(org, OPERATOR, webhook.id);
    return webhook;
  });
  printResult({ id, removed: true }, [`${id}: removed`], options);
}

async function sendTest(text: string, options: TestOptions): Promise<void> {
  const eventId = await withWebhook(text, options, (org, webhook) =>
    sendTestEvent(org, OPERATOR, webhook, options.type),
  );
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
  const deliveries = await withWebhooks(options, async (org) => {
    const found = webhook === undefined ? undefined : await findWebhook(org, webhook);
    if (webhook !== undefined && !found) throw missing(webhook);
    return await listDeliveries(org, { webhookId: found?.id, status, limit });
  });
  const cells = deliveries.map((each) => [
    each.id,
    isoTime(each.createdAt),
    each.eventType,
    String(each.attempts),
    each.reason ? `${each.status} (${each.reason})` : each.status,
  ]);
  printResult(deliveries.map(describeDelivery), alignTable(DELIVERIES, cells), options);
}

async function showDelivery(id: string, options: WebhookOptions): Promise<void> {
  const found = await withWebhooks(options, (org) =>
    isId('delivery', id) ? readDelivery(org, id) : Promise.resolve(undefined),
  );
  if (!found) throw new Failure(EXIT_FAILED, `There is no delivery "${id}" here.`);
  const lines = found.log.map(({ number, startedAt, durationMs, outcome }) => {
    return `${number}. ${isoTime(startedAt)} ${outcome}, ${durationMs} ms`;
  });
  const log = found.log.map((each) => ({ ...each, startedAt: isoTime(each.startedAt) }));
  printResult({ ...found, ...describeDelivery(found), log }, [found.body, ...lines], options);
}

async function again(id: string, options: WebhookOptions): Promise<void> {
  const made = await withWebhooks(options, (org) =>
    isId('delivery', id) ? redeliver(org, OPERATOR, id) : Promise.resolve(undefined),
  );
  if (!made) throw new Failure(EXIT_FAILED, `There is no delivery "${id}" here.`);
  printResult({ id: made }, [made], options);
}

async function replay(text: string, options: ReplayOptions): Promise<void> {
  const { from, to = Date.now() } = options;
  const replayed = await withWebhook(text, options, (org, webhook) =>
    replayEvents(org, OPERATOR, webhook, { from, to }),
  );
  printResult({ replayed }, [`${replayed} event(s) are due again`], options);
  if (replayed === MAX_REPLAYED) printNote('there may be more: replay the rest of the window too.');
}

async function withWebhook<T>(
  text: string,
  options: WebhookOptions,
  work: (org: Org, webhook: Webhook, session: Session) => Promise<T>,
): Promise<T> {
  return await withWebhooks(options, async (org, session) => {
    const webhook = await findWebhook(org, text);
    if (!webhook) throw missing(text);
    return await work(org, webhook, session);
  });
}

/** What the database's functions refuse is told as a failure of the command. */
async function withWebhooks<T>(
  { org: slug }: WebhookOptions,
  work: (org: Org, session: Session) => Promise<T>,
): Promise<T> {
  try {
    return await withOrg(slug, work);
  } catch (error) {
    if (error instanceof Refusal) throw new Failure(EXIT_FAILED, error.message);
    throw error;
  }
}

/** The text may be a secret, so it is not repeated. */
function missing(text: string): Failure {
  const shown = isId('webhook', text) ? ` "${text}"` : ' of that URL or secret';
  return new Failure(EXIT_FAILED, `There is no webhook${shown} here.`);
}

function describeWebhook(webhook: Webhook): object {
  return {
    ...webhook,
    failingSince: isoTime(webhook.failingSince),
    previousUntil: isoTime(webhook.previousUntil),
    createdAt: isoTime(webhook.createdAt),
    updatedAt: isoTime(webhook.updatedAt),
  };
}

function describeDelivery(delivery: Delivery): object {
  const { id, webhookId, eventId, eventType, cause, status, reason, attempts } = delivery;
  return {
    ...{ id, webhookId, eventId, eventType, cause, status, reason, attempts },
    nextAt: isoTime(delivery.nextAt),
    createdAt: isoTime(delivery.createdAt),
    endedAt: isoTime(delivery.endedAt),
  };
}

function isoTime(millis: number): string;
function isoTime(millis: number | null): string | null;
function isoTime(millis: number | null): string | null {
  return millis === null ? null : new Date(millis).toISOString();
}
