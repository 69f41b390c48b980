/** `rungate run`: a run with its money, its trail and its bodies, its ceiling, and its end. */

import type { Command } from 'commander';
import { isId } from '../../schema/ids.ts';
import { formatDollars, type Nanos } from '../../schema/money.ts';
import type { TrailReport, TrailState } from '../../schema/trail.ts';
import { findAgent } from './agent.ts';
import { type Api, type ApiOptions, Refused, withApi } from './api.ts';
import { type Bodies, readKept } from './bodies.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { addApiCommand, addGroup, integerBetween, parseAmount, parseName } from './options.ts';
import { printNote, printResult } from './output.ts';
import { alignTable, type Column } from './table.ts';
import { readSteps, type Step } from './trail.ts';

interface RunOptions extends ApiOptions {
  readonly agent?: string;
}

interface ShowOptions extends RunOptions {
  readonly limit: number;
  readonly bodies?: boolean;
}

interface CeilingOptions extends RunOptions {
  readonly set: Nanos;
}

const MAX_STEPS = 1_000_000;
const DEFAULT_STEPS = 10_000;

/** Adds `run show`, `run verify`, `run cancel` and `run ceiling`. */
export function addRunCommands(program: Command): void {
  const run = addGroup(program, 'run', 'runs and their trails');
  const add = (name: string, description: string) =>
    addApiCommand(run, name, description)
      .argument('<id>', "the run: the caller's own name of it, or its run_ id", parseName)
      .option('--agent <name>', 'the agent, where runs of several go by this name', parseName);
  add('show', 'print a run, its money and its steps')
    .option('--limit <steps>', 'the most steps', integerBetween(0, MAX_STEPS), DEFAULT_STEPS)
    .option('--bodies', 'the kept bodies of calls and answers, too; the audit trail says so')
    .action(show);
  add('verify', 'check that the steps of a run that has ended are what they were').action(verify);
  add('cancel', 'end a run for good, with its calls in flight').action(cancel);
  add('ceiling', 'set the most that a run may spend; a run that it had blocked re-opens')
    .requiredOption('--set <dollars>', 'the ceiling, such as 5.00', parseAmount)
    .action(setCeiling);
}

async function show(id: string, options: ShowOptions): Promise<void> {
  const { run, steps, bodies } = await withApi(options, async (api) => {
    const run = await findRun(api, id, options.agent);
    const steps = await readSteps(api, run.id, options.limit);
    return { run, steps, bodies: options.bodies ? await readKept(api, run.id, steps) : undefined };
  });
  const table = alignTable(COLUMNS, steps.map(stepCells));
  const lines = [...runLines(run), '', ...table, ...(bodies ? bodyLines(bodies) : [])];
  const shown = steps.map((step) => ({
    ...{ ...step, spent: dollars(step.spentNanos) },
    ...bodies?.get(step.id),
  }));
  printResult({ run, steps: shown }, lines, options);
  if (steps.length < run.stepCount) {
    printNote(`these are the first ${steps.length} of ${run.stepCount} steps; see --limit.`);
  }
}

const VERIFY = 'query Verify($id: RunID!) { runTrail(id: $id) { state message steps head } }';

interface Verified {
  readonly runTrail: Omit<TrailReport, 'state'> & { readonly state: Uppercase<TrailState> };
}

async function verify(id: string, options: RunOptions): Promise<void> {
  const report = await withApi(options, async (api) => {
    const run = await findRun(api, id, options.agent);
    const { runTrail } = await api.run<Verified>(VERIFY, { id: run.id });
    return { runId: run.id, ...runTrail, state: runTrail.state.toLowerCase() };
  });
  printResult(report, [report.message], options);
  if (report.state === 'broken') throw new Failure(EXIT_FAILED, 'The trail is not what it was.');
}

function bodyLines(bodies: Bodies): string[] {
  return [...bodies].flatMap(([step, kinds]) =>
    Object.entries(kinds).flatMap(([kind, { text, base64, totalBytes, truncated }]) => [
      '',
      `${step} ${kind}, ${totalBytes} bytes${truncated ? ', of which the first are kept' : ''}`,
      ...(text ?? base64 ?? '').split('\n'),
    ]),
  );
}

/** Names for ids, and money in both units. */
interface RunView {
  readonly id: string;
  readonly name: string;
  readonly agent: string;
  readonly policy: string;
  readonly source: string;
  readonly status: string;
  readonly closedReason: string | null;
  readonly openedAt: string;
  readonly activeAt: string;
  readonly closedAt: string | null;
  readonly blockedUntil: string | null;
  readonly stepCount: number;
  readonly spentNanos: number;
  readonly heldNanos: number;
  readonly ceilingNanos: number | null;
  readonly spent: string;
  readonly held: string;
  readonly ceiling: string | null;
}

/** A run as the API has it. */
interface Run
  extends Omit<
    RunView,
    'agent' | 'policy' | 'spent' | 'held' | 'ceiling' | `${'spent' | 'held' | 'ceiling'}Nanos`
  > {
  readonly agent: { readonly name: string } | null;
  readonly policyVersion: { readonly label: string } | null;
  readonly spent: { readonly nanos: number };
  readonly held: { readonly nanos: number };
  readonly ceiling: { readonly nanos: number } | null;
}

const RUN = `id name source status closedReason openedAt activeAt closedAt blockedUntil stepCount
  agent { name } policyVersion { label } spent { nanos } held { nanos } ceiling { nanos }`;

const CANCEL = `mutation Cancel($runId: RunID!) {
  runCancel(input: { runId: $runId }) { run { ${RUN} } errors { code field message } }
}`;

async function cancel(id: string, options: RunOptions): Promise<void> {
  const run = await withApi(options, async (api) => {
    const { id: runId } = await findRun(api, id, options.agent);
    try {
      const { runCancel } = await api.run<{ runCancel: { run: Run } }>(CANCEL, { runId }, true);
      return viewOf(runCancel.run);
    } catch (error) {
      if (!(error instanceof Refused && error.code === 'CONFLICT')) throw error;
      return await findRun(api, runId, undefined);
    }
  });
  printResult({ run }, runLines(run), options);
  if (run.status !== 'cancelled') printNote(`the run is ${run.status} already: it stays so.`);
}

const SET_CEILING = `mutation SetCeiling($runId: RunID!, $ceiling: Dollars!) {
  runSetCeiling(input: { runId: $runId, ceiling: $ceiling }) {
    run { ${RUN} } errors { code field message }
  }
}`;

async function setCeiling(id: string, options: CeilingOptions): Promise<void> {
  const run = await withApi(options, async (api) => {
    const { id: runId } = await findRun(api, id, options.agent);
    const variables = { runId, ceiling: formatDollars(options.set) };
    const { runSetCeiling } = await api.run<{ runSetCeiling: { run: Run } }>(
      SET_CEILING,
      variables,
      true,
    );
    return viewOf(runSetCeiling.run);
  });
  printResult({ run }, runLines(run), options);
  if (run.ceilingNanos !== options.set) {
    printNote('the ceiling is what the run has spent and holds already: it can be no lower.');
  }
}

const FIND = `query Runs($name: String!, $agentId: AgentID) {
  runsByName(name: $name, agentId: $agentId) { ${RUN} }
}`;

/** The one run that is meant; a name may be used by several agents, but once by each. */
async function findRun(api: Api, name: string, agent: string | undefined): Promise<RunView> {
  const agentId = agent === undefined ? null : await findAgent(api, agent);
  const { runsByName } = await api.run<{ runsByName: Run[] }>(FIND, { name, agentId }, true);
  const found = runsByName.map(viewOf);
  const run = found.find(({ id }) => isId('run', name) && id === name) ?? found[0];
  if (!run) throw new Failure(EXIT_FAILED, `There is no run "${name}" here.`);
  if (run.id === name || found.length === 1) return run;
  const owners = found.map((each) => each.agent).join(', ');
  throw new Failure(EXIT_FAILED, `"${name}" is a run of ${owners}: choose one with --agent.`);
}

function viewOf({ agent, policyVersion, spent, held, ceiling, ...run }: Run): RunView {
  return {
    ...run,
    agent: agent?.name ?? '-',
    policy: policyVersion?.label ?? '-',
    status: run.status.toLowerCase(),
    spentNanos: spent.nanos,
    heldNanos: held.nanos,
    ceilingNanos: ceiling?.nanos ?? null,
    spent: dollars(spent.nanos),
    held: dollars(held.nanos),
    ceiling: ceiling && dollars(ceiling.nanos),
  };
}

function runLines(run: RunView): string[] {
  const reason = run.closedReason ? ` (${run.closedReason})` : '';
  const ceiling = run.ceiling ?? 'no ceiling';
  const fields = [
    ['run', run.name === run.id ? run.id : `${run.name} (${run.id})`],
    ['agent', run.agent],
    ['policy', run.policy],
    ['status', `${run.status}${reason}`],
    ['opened', run.openedAt],
    ['spent', `${run.spent} of ${ceiling}, ${run.held} held`],
    ['steps', String(run.stepCount)],
  ] as const;
  return fields.map(([label, text]) => `${label.padEnd(8)}${text}`);
}

const COLUMNS: readonly Column[] = [
  { heading: 'time', align: 'left' },
  { heading: 'kind', align: 'left' },
  { heading: 'model', align: 'left' },
  { heading: 'tokens', align: 'right' },
  { heading: 'cost', align: 'right' },
  { heading: 'latency', align: 'right' },
  { heading: 'outcome', align: 'left' },
];

function stepCells(step: Step): string[] {
  const { usage } = step;
  return [
    step.startedAt,
    step.kind,
    step.servedModel ?? step.model ?? '-',
    usage ? `${usage.inputTokens ?? 0}+${usage.outputTokens ?? 0}` : '-',
    costCell(step),
    step.latencyMs === null ? '-' : `${step.latencyMs} ms`,
    outcomeCell(step),
  ];
}

/** A call in flight shows what it holds, and a cost that the upstream did not report its `~`. */
function costCell(step: Step): string {
  if (step.settledAt === null) return `(${dollars(step.heldNanos)})`;
  return `${step.estimated ? '~' : ''}${dollars(step.spentNanos)}`;
}

function outcomeCell({ outcome, httpStatus }: Step): string {
  const status = httpStatus === null ? '' : ` ${httpStatus}`;
  return `${outcome ?? 'in flight'}${status}`;
}

function dollars(nanos: number): string {
  return `$${formatDollars(nanos)}`;
}
