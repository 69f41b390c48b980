/** `rungate run`: a run with its money, its trail and its bodies, its ceiling, and its end. */

import type { Command } from 'commander';
import { agentNames, findAgent } from '../../db/agents.ts';
import { type Body, type BodyKind, noteReading, readBodies } from '../../db/captures.ts';
import type { Org } from '../../db/org.ts';
import { readPolicyVersion } from '../../db/policies.ts';
import { cancelRun, findRun, type Run, readRun, searchRuns, setCeiling } from '../../db/runs.ts';
import { listSteps, type Step } from '../../db/steps.ts';
import { isId } from '../../schema/ids.ts';
import { formatDollars, type Nanos } from '../../schema/money.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { addGroup, addOrgCommand, integerBetween, parseAmount, parseName } from './options.ts';
import { type OutputOptions, printNote, printResult } from './output.ts';
import { OPERATOR, readMasterKeys, type Session, withOrg } from './session.ts';
import { alignTable, type Column } from './table.ts';

interface RunOptions extends OutputOptions {
  readonly org: string;
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
const PAGE = 500;

/** Adds `run show`, `run cancel` and `run ceiling`. */
export function addRunCommands(program: Command): void {
  const run = addGroup(program, 'run', 'runs and their trails');
  const add = (name: string, description: string) =>
    addOrgCommand(run, name, description)
      .argument('<id>', "the run: the caller's own name of it, or its run_ id", parseName)
      .option('--agent <name>', 'the agent, where runs of several go by this name', parseName);
  add('show', 'print a run, its money and its steps')
    .option('--limit <steps>', 'the most steps', integerBetween(0, MAX_STEPS), DEFAULT_STEPS)
    .option('--bodies', 'the kept bodies of calls and answers, too; the audit trail says so')
    .action(show);
  add('cancel', 'end a run for good, with its calls in flight').action(cancel);
  add('ceiling', 'set the most that a run may spend; a run that it had blocked re-opens')
    .requiredOption('--set <dollars>', 'the ceiling, such as 5.00', parseAmount)
    .action(setRunCeiling);
}

async function show(id: string, options: ShowOptions): Promise<void> {
  const { run, steps, bodies } = await withOrg(options.org, async (org, session) => {
    const found = await findOneRun(org, id, options.agent);
    const steps = await readSteps(org, found, options.limit);
    const bodies = options.bodies ? await readKept(org, session, found, steps) : undefined;
    return { run: await describeRun(org, found), steps, bodies };
  });
  const table = alignTable(COLUMNS, steps.map(stepCells));
  const lines = [...runLines(run), '', ...table, ...(bodies ? bodyLines(bodies) : [])];
  const described = steps.map((step) => ({ ...describeStep(step), ...bodies?.get(step.id) }));
  printResult({ run, steps: described }, lines, options);
  if (steps.length < run.stepCount) {
    printNote(`these are the first ${steps.length} of ${run.stepCount} steps; see --limit.`);
  }
}

/** A body as it is shown: text, or base64 of what is none. */
interface ShownBody {
  readonly text?: string;
  readonly base64?: string;
  /** Of the whole body, also where only its beginning is kept. */
  readonly totalBytes: number;
  readonly truncated: boolean;
}

type ShownBodies = ReadonlyMap<string, Partial<Readonly<Record<BodyKind, ShownBody>>>>;

async function readKept(
  org: Org,
  { config }: Session,
  run: Run,
  steps: readonly Step[],
): Promise<ShownBodies> {
  const master = await readMasterKeys(config);
  await noteReading(org, OPERATOR, run.id);
  const shown = new Map<string, Partial<Record<BodyKind, ShownBody>>>();
  for (const { id } of steps) {
    const bodies = Object.entries(await readBodies(org, master, run.id, id));
    if (bodies.length === 0) continue;
    shown.set(id, Object.fromEntries(bodies.map(([kind, body]) => [kind, showBody(body)])));
  }
  return shown;
}

function showBody({ bytes, totalBytes }: Body): ShownBody {
  const facts = { totalBytes, truncated: bytes.length < totalBytes };
  const text = new TextDecoder().decode(bytes);
  // The last character of a body that was cut off may be half there.
  const isText = !text.slice(0, -1).includes('\ufffd');
  return isText ? { text, ...facts } : { base64: bytes.toBase64(), ...facts };
}

function bodyLines(bodies: ShownBodies): string[] {
  return [...bodies].flatMap(([step, kinds]) =>
    Object.entries(kinds).flatMap(([kind, { text, base64, totalBytes, truncated }]) => [
      '',
      `${step} ${kind}, ${totalBytes} bytes${truncated ? ', of which the first are kept' : ''}`,
      printable(text ?? base64 ?? ''),
    ]),
  );
}

/** Bodies are strangers' text: what a terminal would obey is shown as what it is. */
function printable(text: string): string {
  return text.replace(/(?![\n\t])\p{Cc}/gu, (character) => {
    return `\\u{${character.codePointAt(0)!.toString(16)}}`;
  });
}

async function cancel(id: string, options: RunOptions): Promise<void> {
  const run = await withOrg(options.org, async (org) => {
    const found = await findOneRun(org, id, options.agent);
    await cancelRun(org, OPERATOR, found.id);
    return await describeRun(org, (await readRun(org, found.id)) ?? found);
  });
  printResult({ run }, runLines(run), options);
  if (run.status !== 'cancelled') printNote(`the run is ${run.status} already: it stays so.`);
}

async function setRunCeiling(id: string, options: CeilingOptions): Promise<void> {
  const run = await withOrg(options.org, async (org) => {
    const found = await findOneRun(org, id, options.agent);
    await setCeiling(org, OPERATOR, found.id, options.set);
    return await describeRun(org, (await readRun(org, found.id)) ?? found);
  });
  printResult({ run }, runLines(run), options);
  if (run.ceilingNanos !== options.set) {
    printNote('the ceiling is what the run has spent and holds already: it can be no lower.');
  }
}

/** The one run that is meant; a name may be used by several agents, but once by each. */
async function findOneRun(org: Org, id: string, agent: string | undefined): Promise<Run> {
  const runs = agent === undefined ? await searchRuns(org, id) : await runsOf(org, id, agent);
  const [run, ...others] = runs;
  if (!run) throw new Failure(EXIT_FAILED, `There is no run "${id}" here.`);
  if (others.length === 0) return run;
  const names = await agentNames(org);
  const owners = runs.map(({ agentId }) => names.get(agentId) ?? agentId).join(', ');
  throw new Failure(EXIT_FAILED, `"${id}" is a run of ${owners}: choose one with --agent.`);
}

async function runsOf(org: Org, id: string, name: string): Promise<Run[]> {
  const agent = await findAgent(org, name);
  if (!agent) throw new Failure(EXIT_FAILED, `There is no agent "${name}" in this org.`);
  const own = isId('run', id) ? await readRun(org, id) : undefined;
  if (own?.agentId === agent.id) return [own];
  const named = await findRun(org, agent.id, id);
  return named ? [named] : [];
}

async function readSteps(org: Org, run: Run, limit: number): Promise<Step[]> {
  const steps: Step[] = [];
  while (steps.length < limit) {
    const most = Math.min(PAGE, limit - steps.length);
    const page = await listSteps(org, run.id, most, steps.at(-1)?.id ?? '');
    steps.push(...page);
    if (page.length < most) break;
  }
  // Ids of one millisecond are in no order.
  return steps.sort((a, b) => a.startedAt - b.startedAt);
}

type RunView = Awaited<ReturnType<typeof describeRun>>;

/** A run as people and programs read it: names for ids, ISO times, money in both units. */
async function describeRun(org: Org, run: Run) {
  const [names, version] = await Promise.all([
    agentNames(org),
    readPolicyVersion(org, run.policyVersionId),
  ]);
  return {
    id: run.id,
    name: run.name,
    agent: names.get(run.agentId) ?? run.agentId,
    policy: version?.label ?? run.policyVersionId,
    source: run.source,
    status: run.status,
    closedReason: run.closedReason,
    openedAt: isoTime(run.openedAt),
    activeAt: isoTime(run.activeAt),
    closedAt: isoTime(run.closedAt),
    blockedUntil: isoTime(run.blockedUntil),
    stepCount: run.stepCount,
    spentNanos: run.spentNanos,
    heldNanos: run.heldNanos,
    ceilingNanos: run.ceilingNanos,
    spent: dollars(run.spentNanos),
    held: dollars(run.heldNanos),
    ceiling: run.ceilingNanos === null ? null : dollars(run.ceilingNanos),
  };
}

function describeStep(step: Step): object {
  return {
    ...step,
    startedAt: isoTime(step.startedAt),
    settledAt: isoTime(step.settledAt),
    spent: dollars(step.spentNanos),
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
    ['opened', run.openedAt ?? ''],
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
    isoTime(step.startedAt) ?? '',
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

function isoTime(millis: number): string;
function isoTime(millis: number | null): string | null;
function isoTime(millis: number | null): string | null {
  return millis === null ? null : new Date(millis).toISOString();
}

function dollars(nanos: number): string {
  return `$${formatDollars(nanos)}`;
}
