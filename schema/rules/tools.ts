/** What a policy says of a tool call: it may pass, it may not, or a person is asked. */

import type { JsonObject } from '../json.ts';
import type { Policy } from '../policy.ts';
import { type Condition, compileCondition, Inquiry } from './condition.ts';
import type { Denial } from './decide.ts';
import { findGlob, foldName, matchesGlob } from './glob.ts';

/** A call that a model proposes, or that an agent wants to make. */
export interface ToolCall {
  readonly name: string;
  /** `undefined`: absent, or not to be parsed strictly. */
  readonly args: JsonObject | undefined;
  /** The JSON text of `args`, where there is one: it tells numbers that a double can't hold. */
  readonly argsText?: string;
}

/** A call that a person has to approve. */
export interface Ask {
  readonly effect: 'ask';
  /** The rule that asks, as a path in the policy document: `tools.requireApproval[0]`. */
  readonly rule: string;
  /** What the rule is called, or else its path. */
  readonly ruleName: string;
  readonly field: string;
  readonly asked: unknown;
  readonly allowed?: unknown;
  /** One sentence a person can act on. */
  readonly reason: string;
  /** How many people have to approve. */
  readonly approvals: number;
  readonly expiresAfterS: number;
}

/** What a policy says of a tool call. */
export type ToolDecision = { readonly effect: 'allow' } | Denial | Ask;

/** What a policy says of a name, whatever the arguments will be. */
export type NameJudgement = 'allow' | 'deny' | 'depends';

/** Names are longer at no provider; no glob is tried on what is. */
const MAX_NAME_LENGTH = 512;
/** In no name at any provider; what shows a name may show only what comes before one. */
const NUL = '\0';
/** How many judgements are remembered per policy. */
const MAX_REMEMBERED = 1_000;
const MAX_SHOWN_CHARS = 200;

const ALLOW = { effect: 'allow' } as const;

/**
 * Whether a policy says anything of tools that the agent runs: if not, answers need no look. Which
 * results answer no released call is known only of answers that were looked at.
 */
export function governsTools({ tools }: Policy): boolean {
  if (!tools) return false;
  const { allow, deny, requireApproval, unreleasedResults } = tools;
  const hasRules = allow !== undefined || Boolean(deny?.length || requireApproval?.length);
  return hasRules || unreleasedResults === 'deny';
}

/**
 * Decides on a tool call. The first that applies: a rule that denies, a rule that asks, a list of
 * what is allowed, which denies everything else. A condition that can't be told makes its rule
 * apply.
 *
 * @param inquiry What looking at arguments may take, of this call and of others at once.
 */
export function decideTool(
  policy: Policy,
  call: ToolCall,
  inquiry: Inquiry = new Inquiry(),
): ToolDecision {
  const rules = rulesOf(policy);
  if (isNoName(call.name)) return denyNoName(call);
  const name = foldName(call.name);
  const isMeant = (rule: Rule) => covers(rule, call.name, name) && applies(rule, call, inquiry);
  const denial = rules.deny.find(isMeant);
  if (denial) return denyByRule(policy, denial, call);
  const asking = rules.ask.filter(isMeant);
  // Where several rules ask, all must be content.
  const [strictest] = asking.sort((one, other) => other.approvals - one.approvals);
  if (strictest) return ask(strictest, call);
  return isAllowed(policy, call.name) ? ALLOW : denyUnlisted(policy, call);
}

/** The denial of a tool that no call could pass for, whatever its arguments: see {@link judgeName}. */
export function denyName(policy: Policy, name: string): Denial | undefined {
  if (judgeName(policy, name) !== 'deny') return undefined;
  const call = { name, args: undefined };
  if (isNoName(name)) return denyNoName(call);
  const folded = foldName(name);
  const rule = rulesOf(policy).deny.find((each) => !each.condition && covers(each, name, folded));
  return rule ? denyByRule(policy, rule, call) : denyUnlisted(policy, call);
}

/** The rule that speaks of a name, as a path: the first that denies, else the first that asks. */
export function findRule(policy: Policy, name: string): string | undefined {
  const { deny, ask } = rulesOf(policy);
  const folded = foldName(name);
  return [...deny, ...ask].find((rule) => covers(rule, name, folded))?.path;
}

/** What a policy says of a call whose arguments are not known. */
export interface NameDecision {
  readonly decision: ToolDecision;
  /** Whether no arguments would let it pass unasked. */
  readonly isSure: boolean;
}

/** Decides on a call of which only the name is told. */
export function decideName(policy: Policy, name: string): NameDecision {
  const denial = denyName(policy, name);
  if (denial) return { decision: denial, isSure: true };
  const folded = foldName(name);
  const isSure = rulesOf(policy).ask.some((rule) => {
    return !rule.condition && covers(rule, name, folded);
  });
  return { decision: decideTool(policy, { name, args: undefined }), isSure };
}

/**
 * Judges by name alone: `allow` is never denied nor asked about, whatever the arguments; `deny` is
 * denied whatever they are; `depends` has to wait for them, as does a name that is still empty.
 */
export function judgeName(policy: Policy, name: string): NameJudgement {
  const { judged } = rulesOf(policy);
  const known = judged.get(name);
  if (known) return known;
  if (isNoName(name)) return 'deny';
  if (judged.size >= MAX_REMEMBERED) judged.clear();
  const judgement = judge(policy, name);
  judged.set(name, judgement);
  return judgement;
}

function judge(policy: Policy, raw: string): NameJudgement {
  if (raw === '') return 'depends';
  const rules = rulesOf(policy);
  const name = foldName(raw);
  const denials = rules.deny.filter((rule) => covers(rule, raw, name));
  if (denials.some((rule) => !rule.condition)) return 'deny';
  if (rules.ask.some((rule) => covers(rule, raw, name))) return 'depends';
  if (!isAllowed(policy, raw)) return 'deny';
  return denials.length > 0 ? 'depends' : 'allow';
}

/** A rule of the document, ready to be asked. */
interface Rule {
  readonly path: string;
  readonly label: string;
  readonly globs: readonly string[];
  readonly folded: readonly string[];
  readonly condition: Condition | undefined;
}

interface AskingRule extends Rule {
  readonly approvals: number;
  readonly expiresAfterS: number;
}

interface Rules {
  readonly deny: readonly Rule[];
  readonly ask: readonly AskingRule[];
  readonly judged: Map<string, NameJudgement>;
}

const compiled = new WeakMap<Policy, Rules>();

function rulesOf(policy: Policy): Rules {
  let rules = compiled.get(policy);
  if (!rules) {
    const { deny = [], requireApproval = [] } = policy.tools ?? {};
    rules = {
      deny: deny.map((rule, at) =>
        compileRule(typeof rule === 'string' ? { tool: rule } : rule, `tools.deny[${at}]`),
      ),
      ask: requireApproval.map((rule, at) => ({
        ...compileRule(rule, `tools.requireApproval[${at}]`),
        approvals: rule.approvals,
        expiresAfterS: rule.expiresAfterS,
      })),
      judged: new Map(),
    };
    compiled.set(policy, rules);
  }
  return rules;
}

interface WrittenRule {
  readonly tool: string;
  readonly name?: string | undefined;
  readonly when?: string | undefined;
}

/**
 * A tool of a server is called by a label, `/` and its name. The label is the caller's own word, so
 * that a rule means what follows a slash, too.
 */
function compileRule({ tool, name, when }: WrittenRule, path: string): Rule {
  const globs = [tool, `*/${tool}`];
  return {
    path,
    // As whoever is asked is shown it; see NUL.
    label: (name ?? path).replaceAll(NUL, '\ufffd'),
    globs,
    folded: globs.map(foldName),
    condition: when === undefined ? undefined : compileCondition(when),
  };
}

function covers({ globs, folded }: Rule, raw: string, name: string): boolean {
  return (
    folded.some((glob) => matchesGlob(glob, name)) || globs.some((glob) => matchesGlob(glob, raw))
  );
}

function applies({ condition }: Rule, call: ToolCall, inquiry: Inquiry): boolean {
  const { name, args, argsText } = call;
  if (!condition) return true;
  if (!args) return true;
  const subject = { name, args, ...(argsText === undefined ? {} : { argsText }) };
  return condition(subject, inquiry) ?? true;
}

function isAllowed({ tools }: Policy, name: string): boolean {
  return tools?.allow === undefined || findGlob(tools.allow, name) !== undefined;
}

function ask(rule: AskingRule, call: ToolCall): Ask {
  const { path, label, approvals, expiresAfterS } = rule;
  const people = approvals === 1 ? 'a person' : `${approvals} people`;
  const called = label === path ? path : `${path}, "${label}"`;
  return {
    effect: 'ask',
    rule: path,
    ruleName: label,
    field: 'tool',
    asked: shown(call.name),
    reason: `The tool "${shown(call.name)}" needs the approval of ${people} (rule ${called}).`,
    approvals,
    expiresAfterS,
  };
}

function denyByRule(policy: Policy, { path, label }: Rule, call: ToolCall): Denial {
  const called = label === path ? path : `${path}, "${label}"`;
  return {
    effect: 'deny',
    rule: path,
    field: 'tool',
    asked: shown(call.name),
    allowed: policy.tools?.allow ?? ['*'],
    reason: `The policy denies the tool "${shown(call.name)}" (rule ${called}).`,
  };
}

function denyUnlisted({ tools }: Policy, call: ToolCall): Denial {
  const allowed = tools?.allow ?? [];
  const listed = allowed.slice(0, 20).join(', ') || 'none';
  return {
    effect: 'deny',
    rule: 'tools.allow',
    field: 'tool',
    asked: shown(call.name),
    allowed,
    reason: `The policy does not allow the tool "${shown(call.name)}"; it allows: ${listed}.`,
  };
}

function isNoName(name: string): boolean {
  return name.length > MAX_NAME_LENGTH || name.includes(NUL);
}

function denyNoName({ name }: ToolCall): Denial {
  const allowed = `at most ${MAX_NAME_LENGTH} characters, none of which is a NUL`;
  return {
    effect: 'deny',
    rule: 'tools.name',
    field: 'tool',
    asked: shown(name),
    allowed,
    reason: `No tool can have the name "${shown(name)}"; a name has ${allowed}.`,
  };
}

function shown(name: string): string {
  return name.length > MAX_SHOWN_CHARS ? `${name.slice(0, MAX_SHOWN_CHARS)}…` : name;
}
