/** `rungate gates`: the tool calls that wait for a person, and decisions on them. */

import type { Command } from 'commander';
import { type GateId, isId } from '../../schema/ids.ts';
import { indentJson } from '../../schema/indent.ts';
import { InvalidJson, type JsonObject, parseStrict } from '../../schema/json.ts';
import { isFaithful } from '../../schema/numbers.ts';
import { type Api, type ApiOptions, type Connection, PAGE_INFO, readList, withApi } from './api.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { addApiCommand, addGroup, integerBetween, parseName } from './options.ts';
import { printNote, printResult } from './output.ts';
import { alignTable, type Column } from './table.ts';

interface ListOptions extends ApiOptions {
  readonly all?: boolean;
  readonly limit: number;
}

interface DecideOptions extends ApiOptions {
  readonly as?: string;
  readonly reason?: string;
}

const MAX_GATES = 1_000;
const DEFAULT_GATES = 100;

/** Adds `gates list`, `gates show`, `gates approve` and `gates reject`. */
export function addGateCommands(program: Command): void {
  const gates = addGroup(program, 'gates', 'tool calls that wait for approval');
  addApiCommand(gates, 'list', 'print the gates that wait for a decision, the newest first')
    .option('--all', 'those that are decided or expired, too')
    .option('--limit <gates>', 'the most gates', integerBetween(1, MAX_GATES), DEFAULT_GATES)
    .action(list);
  addApiCommand(gates, 'show', 'print a gate, its arguments and a link to decide on it once')
    .argument('<id>', 'the gate', parseName)
    .action(show);
  const add = (name: 'approve' | 'reject', description: string) =>
    addApiCommand(gates, name, description)
      .argument('<id>', 'the gate', parseName)
      .option('--as <email>', 'the member in whose name the operator decides', parseName)
      .option('--reason <text>', 'why, for the record', parseName)
      .action((id: string, options: DecideOptions) => decide(name, id, options));
  add('approve', 'let the call pass, once');
  add('reject', 'refuse the call');
}

/** A gate as the API has it. */
interface Gate {
  readonly id: GateId;
  readonly status: string;
  readonly tool: string;
  readonly server: string | null;
  readonly args: string;
  readonly rule: string;
  readonly ruleName: string;
  readonly reason: string;
  readonly digest: string;
  readonly approvalsNeeded: number;
  readonly approvalsGiven: number;
  readonly createdAt: string;
  readonly expiresAt: string;
  readonly decidedAt: string | null;
  readonly decidedBy: string | null;
  readonly run: { readonly id: string; readonly name: string } | null;
  readonly agent: { readonly id: string; readonly name: string } | null;
  readonly step: { readonly id: string } | null;
}

const GATE = `id status tool server args rule ruleName reason digest approvalsNeeded approvalsGiven
  createdAt expiresAt decidedAt decidedBy run { id name } agent { id name } step { id }`;

const LIST = `query Gates($filter: GateFilter, $first: Int, $after: String) {
  gates(filter: $filter, first: $first, after: $after) {
    nodes { id status tool args rule expiresAt run { name } } ${PAGE_INFO}
  }
}`;

/** A gate as a list has it. */
type Listed = Pick<Gate, 'id' | 'status' | 'tool' | 'args' | 'rule' | 'expiresAt'> & {
  readonly run: { readonly name: string } | null;
};

async function list(options: ListOptions): Promise<void> {
  const { limit, all } = options;
  // One more than is printed tells whether there are more.
  const wanted = {
    variables: { filter: { isDecidable: !all } },
    limit: limit + 1,
    isPartial: true,
  };
  const found = await withApi(options, (api) =>
    readList(api, LIST, ({ gates }: { gates: Connection<Listed> }) => gates, wanted),
  );
  const gates = found.slice(0, limit);
  printResult(gates.map(entryOf), alignTable(COLUMNS, gates.map(gateCells)), options);
  if (found.length > limit) {
    printNote(`these are the newest ${limit} gates, and there are more; see --limit.`);
  }
}

/** What programs read of a gate in a list. */
function entryOf({ id, status, tool, args, rule, run, expiresAt }: Listed) {
  const runId = run?.name ?? '-';
  return { id, status: status.toLowerCase(), tool, args: argsOf(args), rule, runId, expiresAt };
}

/** A gate as people and programs read it: the run by its name, arguments as an object. */
function viewOf({ run, agent, step, approvalsNeeded, approvalsGiven, ...gate }: Gate) {
  return {
    ...gate,
    status: gate.status.toLowerCase(),
    args: argsOf(gate.args),
    argsText: gate.args,
    runId: run?.name ?? '-',
    agentId: agent?.id ?? null,
    stepId: step?.id ?? null,
    approvals: approvalsNeeded,
    given: approvalsGiven,
  };
}

/** Arguments that readers could read as different things stay the text that they are. */
function argsOf(text: string): JsonObject | string {
  if (!isFaithful(text)) return text;
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

function gateCells({ id, status, tool, args, run, expiresAt }: Listed): string[] {
  return [id, status.toLowerCase(), tool, args, run?.name ?? '-', expiresAt];
}

const FIND = `query Gate($id: GateID!) { gate(id: $id) { ${GATE} } }`;

async function show(id: string, options: ApiOptions): Promise<void> {
  const gate = await withApi(options, async (api) => {
    const found = await findGate(api, id);
    const view = viewOf(found);
    const url = view.status === 'pending' ? await api.signLink(found) : null;
    return { ...view, agent: found.agent?.name ?? '-', url };
  });
  printResult({ gate }, gateLines(gate), options);
}

async function findGate(api: Api, id: string): Promise<Gate> {
  const { gate } = await api.run<{ gate: Gate | null }>(FIND, { id: checkId(id) }, true);
  if (gate) return gate;
  throw missing(id);
}

function checkId(id: string): GateId {
  if (isId('gate', id)) return id;
  throw missing(id);
}

const missing = (id: string) => new Failure(EXIT_FAILED, `There is no gate "${id}" here.`);

type Shown = ReturnType<typeof viewOf> & { agent: string; url: string | null };

function gateLines(gate: Shown): string[] {
  const fields = [
    ['gate', gate.id],
    ['status', `${gate.status}, ${gate.given} of ${gate.approvals} approvals`],
    ['agent', gate.agent],
    ['run', gate.runId],
    ['tool', gate.tool],
    ...(gate.server === null ? [] : [['server', gate.server]]),
    ['rule', gate.ruleName === gate.rule ? gate.rule : `${gate.ruleName} (${gate.rule})`],
    ['expires', gate.expiresAt],
    ...(gate.decidedBy === null ? [] : [['decided', `${gate.decidedAt} by ${gate.decidedBy}`]]),
    ...(gate.url === null ? [] : [['link', gate.url]]),
  ];
  const lines = fields.map(([label = '', text = '']) => `${label.padEnd(9)}${text}`);
  return [...lines, '', ...indentJson(gate.argsText).split('\n')];
}

const decisionOf = (mutation: string) => `mutation Decide($gateId: GateID!, $reason: String) {
  decided: ${mutation}(input: { gateId: $gateId, reason: $reason }) {
    gate { id status approvalsNeeded approvalsGiven decidedBy } errors { code field message }
  }
}`;

const DECISIONS = { approve: decisionOf('gateApprove'), reject: decisionOf('gateReject') };

type Decided = Pick<Gate, 'id' | 'status' | 'approvalsNeeded' | 'approvalsGiven' | 'decidedBy'>;

async function decide(
  decision: 'approve' | 'reject',
  id: string,
  options: DecideOptions,
): Promise<void> {
  const { as: deputy, reason = null } = options;
  const run = async (api: Api) => {
    const { id: gateId } = await findGate(api, id);
    return await api.run<{ decided: { gate: Decided } }>(DECISIONS[decision], { gateId, reason });
  };
  const { gate } = (await withApi(options, run, deputy)).decided;
  const { approvalsNeeded: approvals, approvalsGiven: given, decidedBy } = gate;
  const status = gate.status.toLowerCase();
  const result = { id: gate.id, status, approvals, given, decidedBy };
  printResult({ gate: result }, [`${gate.id}: ${status}`], options);
  if (status === 'pending') printNote(`${given} of ${approvals} approvals are given.`);
}
