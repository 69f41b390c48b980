/** Rules of alerts: what they watch, where they tell it, and what people read when they fire. */

import { z } from 'zod';
import { type AllowList, judgeUrl } from './address.ts';
import { normalizeEmail } from './email.ts';
import { formatDollars, type Nanos } from './money.ts';

/** What a rule can watch, and the unit of its threshold. */
const METRICS = {
  spend: 'Nano-dollars that were spent in the window.',
  blocked_runs: 'Runs that were blocked in the window.',
  pending_gates: 'Gates that wait for a decision now.',
  error_rate: 'Percentage of the calls that were settled in the window and have failed.',
} as const;

export type Metric = keyof typeof METRICS;

/** Where a rule tells that it has fired, beside the event: nowhere, by mail, or in a chat. */
const CHANNELS = ['event', 'mail', 'chat'] as const;

export type Channel = (typeof CHANNELS)[number];

const MIN_WINDOW_S = 60;
const MAX_WINDOW_S = 30 * 86_400;
const MAX_TARGET_CHARS = 2_000;
const NAME = /^[^\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]{1,100}$/u;

/** What a rule is made with. */
export interface AlertRuleInput {
  readonly name: string;
  readonly metric: Metric;
  readonly threshold: number;
  /** Seconds. */
  readonly windowS: number;
  readonly channel: Channel;
  /** An e-mail address, or the URL of a chat's webhook; null for an event alone. */
  readonly target: string | null;
  readonly isEnabled: boolean;
}

/** A rule, with its target in its one spelling. */
export function alertRuleSchema(allow: AllowList): z.ZodType<AlertRuleInput> {
  return z
    .strictObject({
      name: z.string().regex(NAME, 'must be a name of 1 to 100 characters on one line'),
      metric: z.enum(Object.keys(METRICS) as Metric[]),
      threshold: z.int().min(1),
      windowS: z.int().min(MIN_WINDOW_S).max(MAX_WINDOW_S),
      channel: z.enum(CHANNELS),
      target: z.string().max(MAX_TARGET_CHARS).nullable(),
      isEnabled: z.boolean(),
    })
    .superRefine((rule, context) => {
      for (const [path, message] of faultsOf(rule, allow)) {
        context.addIssue({ code: 'custom', path: [path], message });
      }
    })
    .transform((rule) =>
      rule.channel === 'mail'
        ? { ...rule, target: normalizeEmail(rule.target ?? '') ?? null }
        : rule,
    );
}

function* faultsOf(rule: AlertRuleInput, allow: AllowList): Generator<[string, string]> {
  const { metric, threshold, channel, target } = rule;
  if (metric === 'error_rate' && threshold > 100) yield ['threshold', 'must be a percentage'];
  if (channel === 'event' && target !== null) {
    yield ['target', 'must not be there for an event alone'];
  }
  if (channel === 'mail' && normalizeEmail(target ?? '') === undefined) {
    yield ['target', 'must be an e-mail address'];
  }
  const wrong = channel === 'chat' ? judgeUrl(target ?? '', allow) : undefined;
  if (wrong) yield ['target', wrong];
}

/** What may be shown of a target: the URL of a chat is a secret, its host is not. */
export function shownTarget({ channel, target }: AlertRuleInput): string | null {
  return channel === 'chat' && target !== null ? new URL(target).host : target;
}

/** What a rule came to when it fired. */
export interface Firing {
  readonly name: string;
  readonly metric: Metric;
  readonly value: number;
  readonly threshold: number;
  readonly windowS: number;
}

/** A firing in a sentence. */
export function describeFiring(org: string, firing: Firing): string {
  const { name, value, threshold, windowS } = firing;
  const amounts = `${amount(firing, value)} (threshold ${amount(firing, threshold)})`;
  return `${org}: ${name}: ${amounts}, looking back ${span(windowS)}.`;
}

function amount({ metric }: Firing, value: number): string {
  if (metric === 'spend') return `$${formatDollars(value as Nanos)} spent`;
  if (metric === 'error_rate') return `${value} % of calls failed`;
  return `${value} ${metric === 'blocked_runs' ? 'runs blocked' : 'gates waiting'}`;
}

function span(windowS: number): string {
  const [unit, size] =
    windowS % 3_600 === 0 ? (['hours', 3_600] as const) : (['minutes', 60] as const);
  return `${Math.round((windowS / size) * 10) / 10} ${unit}`;
}
