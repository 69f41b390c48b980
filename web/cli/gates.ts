/** `rungate gates`: the tool calls that wait for a person, and decisions on them. */

import type { Command } from 'commander';
import { agentNames } from '../../db/agents.ts';
import {
  type Decided,
  decideGate,
  type Gate,
  listGates,
  openArgs,
  readGate,
  type Verdict,
} from '../../db/gates.ts';
import { findMember } from '../../db/members.ts';
import type { Org } from '../../db/org.ts';
import { readRun } from '../../db/runs.ts';
import { openVault, type Vault } from '../../db/vault.ts';
import { signLink } from '../../functions/links.ts';
import { EMAIL } from '../../schema/email.ts';
import { type GateId, isId, type MemberId } from '../../schema/ids.ts';
import { indentJson } from '../../schema/indent.ts';
import { InvalidJson, type JsonObject, parseStrict } from '../../schema/json.ts';
import { mayDo } from '../../schema/roles.ts';
import { statusAt } from '../../schema/rules/gate.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { addGroup, addOrgCommand, integerBetween, parseName } from './options.ts';
import { type OutputOptions, printNote, printResult } from './output.ts';
import { OPERATOR, readMasterKeys, type Session, withOrg } from './session.ts';
import { alignTable, type Column } from './table.ts';

interface GateOptions extends OutputOptions {
  readonly org: string;
}

interface ListOptions extends GateOptions {
  readonly all?: boolean;
  readonly limit: number;
}

interface DecideOptions extends GateOptions {
  readonly as?: string;
  readonly reason?: string;
}

const MAX_GATES = 1_000;
const DEFAULT_GATES = 100;

/** Adds `gates list`, `gates show`, `gates approve` and `gates reject`. */
export function addGateCommands(program: Command): void {
  const gates = addGroup(program, 'gates', 'tool calls that wait for approval');
  addOrgCommand(gates, 'list', 'print the gates that wait for a decision, the newest first')
    .option('--all', 'those that are decided or expired, too')
    .option('--limit <gates>', 'the most gates', integerBetween(1, MAX_GATES), DEFAULT_GATES)
    .action(list);
  addOrgCommand(gates, 'show', 'print a gate, its arguments and a link to decide on it once')
    .argument('<id>', 'the gate', parseName)
    .action(show);
  const add = (name: 'approve' | 'reject', description: string) =>
    addOrgCommand(gates, name, description)
      .argument('<id>', 'the gate', parseName)
      .option('--as <email>', 'the member in whose name this is decided', parseName)
      .option('--reason <text>', 'why, for the record', parseName)
      .action((id: string, options: DecideOptions) => decide(name, id, options));
  add('approve', 'let the call pass, once');
  add('reject', 'refuse the call');
}

async function list(options: ListOptions): Promise<void> {
  const gates = await withOrg(options.org, async (org, session) => {
    const now = Date.now();
    const found = await listGates(org, { all: options.all ?? false, limit: options.limit }, now);
    if (found.length === 0) return [];
    const vault = await openVault(org, await readMasterKeys(session.config));
    return await Promise.all(found.map((gate) => describeGate(org, vault, gate, now)));
  });
  printResult(gates, alignTable(COLUMNS, gates.map(gateCells)), options);
}

type GateView = Awaited<ReturnType<typeof describeGate>>;

/** A gate as people and programs read it: names for ids, ISO times, arguments as an object. */
async function describeGate(org: Org, vault: Vault, gate: Gate, now: number) {
  const [argsText, run] = await Promise.all([openArgs(vault, gate), readRun(org, gate.runId)]);
  return {
    id: gate.id,
    status: statusAt(gate, now),
    tool: gate.tool,
    args: argsOf(argsText),
    rule: gate.rule,
    ruleName: gate.ruleName,
    runId: run?.name ?? gate.runId,
    agentId: gate.agentId,
    stepId: gate.stepId,
    reason: gate.reason,
    digest: gate.digest,
    approvals: gate.approvals,
    given: gate.given,
    createdAt: new Date(gate.createdAt).toISOString(),
    expiresAt: new Date(gate.expiresAt).toISOString(),
    decidedAt: gate.decidedAt === null ? null : new Date(gate.decidedAt).toISOString(),
    decidedBy: gate.decidedBy,
    argsText,
  };
}

/** Arguments that two readers could read as two things stay the text that they are. */
function argsOf(text: string): JsonObject | string {
  try {
    return parseStrict(new TextEncoder().encode(text), new Set()).value;
  } catch (error) {
    if (error instanceof InvalidJson) return text;
    throw error;
  }
}

const COLUMNS: readonly Column[] = [
  { heading: 'gate', align: 'left' },
  { heading: 'status', align: 'left' },
  { heading: 'tool', align: 'left' },
  { heading: 'arguments', align: 'left' },
  { heading: 'run', align: 'left' },
  { heading: 'expires', align: 'left' },
];

function gateCells({ id, status, tool, argsText, runId, expiresAt }: GateView): string[] {
  return [id, status, tool, argsText, runId, expiresAt];
}

async function show(id: string, options: GateOptions): Promise<void> {
  const gate = await withOrg(options.org, async (org, session) => {
    const { found, vault } = await findGate(org, session, id);
    const now = Date.now();
    const names = await agentNames(org);
    const view = await describeGate(org, vault, found, now);
    const url =
      view.status === 'pending' ? await signLink(session.config, org, vault, found, now) : null;
    return { ...view, agent: names.get(found.agentId) ?? found.agentId, url };
  });
  printResult({ gate }, gateLines(gate), options);
}

function gateLines(gate: GateView & { agent: string; url: string | null }): string[] {
  const fields = [
    ['gate', gate.id],
    ['status', `${gate.status}, ${gate.given} of ${gate.approvals} approvals`],
    ['agent', gate.agent],
    ['run', gate.runId],
    ['tool', gate.tool],
    ['rule', gate.ruleName === gate.rule ? gate.rule : `${gate.ruleName} (${gate.rule})`],
    ['expires', gate.expiresAt],
    ...(gate.decidedBy === null ? [] : [['decided', `${gate.decidedAt} by ${gate.decidedBy}`]]),
    ...(gate.url === null ? [] : [['link', gate.url]]),
  ];
  const lines = fields.map(([label = '', text = '']) => `${label.padEnd(9)}${text}`);
  return [...lines, '', ...indentJson(gate.argsText).split('\n')];
}

async function findGate(org: Org, session: Session, id: string) {
  const found = isId('gate', id) ? await readGate(org, id) : undefined;
  if (!found) throw missing(id);
  return { found, vault: await openVault(org, await readMasterKeys(session.config)) };
}

const missing = (id: string) => new Failure(EXIT_FAILED, `There is no gate "${id}" here.`);

async function decide(
  decision: 'approve' | 'reject',
  id: string,
  options: DecideOptions,
): Promise<void> {
  const { as: email, reason } = options;
  const gate = await withOrg(options.org, async (org) => {
    if (!isId('gate', id)) throw missing(id);
    const memberId = email === undefined ? undefined : await memberOf(org, email, decision);
    const verdict: Verdict = {
      ...{ actor: OPERATOR, decision },
      ...(memberId === undefined ? {} : { memberId }),
      ...(reason === undefined ? {} : { reason }),
    };
    return await decided(org, id, verdict);
  });
  const result = {
    ...{ id: gate.id, status: gate.status },
    ...{ approvals: gate.approvals, given: gate.given, decidedBy: gate.decidedBy },
  };
  printResult({ gate: result }, [`${gate.id}: ${gate.status}`], options);
  if (gate.status === 'pending') {
    printNote(`${gate.given} of ${gate.approvals} approvals are given.`);
  }
}

async function memberOf(
  org: Org,
  email: string,
  decision: 'approve' | 'reject',
): Promise<MemberId> {
  const address = EMAIL.safeParse(email);
  const member = address.success ? await findMember(org, address.data) : undefined;
  if (!member) throw new Failure(EXIT_FAILED, `${email} is no member of this org.`);
  if (mayDo(member.role, `gate.${decision}`)) return member.id;
  throw new Failure(EXIT_FAILED, `${email} is a ${member.role}, who may not ${decision} calls.`);
}

const REFUSALS: Readonly<Record<Exclude<Decided, 'decided' | 'counted' | 'missing'>, string>> = {
  repeated: 'this decider has decided on it before; name another member with --as',
  own: 'who caused the call may not decide on it',
  closed: 'it is decided or expired already, or its run is over',
};

async function decided(org: Org, id: GateId, verdict: Verdict): Promise<Gate> {
  const { outcome, gate } = await decideGate(org, id, verdict, Date.now());
  if (!gate || outcome === 'missing') throw missing(id);
  if (outcome === 'decided' || outcome === 'counted') return gate;
  throw new Failure(EXIT_FAILED, `Nothing was decided on ${id}: ${REFUSALS[outcome]}.`);
}
