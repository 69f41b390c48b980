/** The calls of MCP servers that a request lets run upstream, and what it shows of them. */

import type { Json, JsonObject } from '../../schema/json.ts';
import { invalid, isGiven, isObject } from '../../schema/rules/bound.ts';
import { foldName } from '../../schema/rules/glob.ts';
import type { ToolCall } from '../../schema/rules/tools.ts';
import { parseArgs, stringOf } from './calls.ts';
import type { Endpoint } from './contract.ts';

/** A call that stands in a request. */
export interface ShownCall extends ToolCall {
  /** The id that it is approved by; empty where not every reader would find it by that. */
  readonly id: string;
  /** Where it stands: `input[2]`. */
  readonly field: string;
}

/** A word of the caller to run a call that the upstream asked about. */
export interface Approval {
  /** The id of what the upstream asked; empty where there is none. */
  readonly id: string;
  /** Where it stands: `input[3].approval_request_id`. */
  readonly field: string;
  /** What the request shows under the id: the upstream may go by any of it. */
  readonly calls: readonly ShownCall[];
  /** Whether the upstream may go by what it has kept under the id. */
  readonly isReferring: boolean;
  /** Whether the request tells that the call has run, so that it is not to run again. */
  readonly hasRun: boolean;
}

/** The member by which an approval names its call. */
const NAMES = 'approval_request_id';
const REQUEST = 'mcp_approval_request';
/** Types of items that name a call, or are one, and approve none. */
const SHOWN: ReadonlySet<Json | undefined> = new Set([REQUEST, 'mcp_call']);
/** Statuses of a call that is over; hosts may leave it out. */
const OVER: ReadonlySet<Json | undefined> = new Set([
  undefined,
  null,
  'completed',
  'incomplete',
  'failed',
]);

/** Whether a request may hold approvals: a quick look, for most don't. */
export function mayApprove({ name }: Endpoint, { input }: JsonObject): boolean {
  if (name !== 'responses.create' || !Array.isArray(input)) return false;
  return input.some((item) => isObject(item) && NAMES in item);
}

/**
 * The approvals of a request, each id once and rejections left out.
 *
 * @param body One that {@link mayApprove}.
 * @throws {Refusal} `invalid_body` where readers could read an item as two things.
 */
export function givenApprovals(body: JsonObject): readonly Approval[] {
  const items = placedItems(body.input);
  for (const placed of items) refuseAmbiguous(placed);
  const given = new Map<string, number>();
  for (const { item, at } of items) if (approves(item)) given.set(stringOf(item, NAMES), at);
  if (given.size === 0) return [];
  const isContinued = isGiven(body.previous_response_id);
  const shown = shownById(items);
  return [...given].map(([id, at]) => {
    const under = shown.get(foldName(id)) ?? [];
    // Of ids that differ in case only, what is shown is looked at once.
    shown.delete(foldName(id));
    return {
      ...{ id, field: `${fieldOf(at)}.${NAMES}` },
      calls: under.filter(({ item }) => showsCall(item)).map((placed) => shownCall(placed, id)),
      isReferring: isContinued || !isWhole(under, id),
      hasRun: hasRun(under, id, at),
    };
  });
}

/** Whether what is approved stands in a request, and nothing that could be something else. */
function isWhole(items: readonly Placed[], id: string): boolean {
  return (
    items.some(({ item }) => isRequest(item, id)) && items.every(({ item }) => isPlain(item, id))
  );
}

/** An item of the input, and its place there. */
interface Placed {
  readonly item: JsonObject;
  readonly at: number;
}

function placedItems(input: Json | undefined): readonly Placed[] {
  const list = Array.isArray(input) ? input : [];
  return list.flatMap((item, at) => (isObject(item) ? [{ item, at }] : []));
}

const fieldOf = (at: number) => `input[${at}]`;

/** Some decoders make a text of what is none. */
function refuseAmbiguous({ item, at }: Placed): void {
  for (const key of ['id', NAMES]) {
    if (isGiven(item[key]) && typeof item[key] !== 'string') {
      throw invalid(`${fieldOf(at)}.${key}`, 'must be a string');
    }
  }
}

/** Whatever else an item is called that names a call, some reader may take it for an approval. */
function approves(item: JsonObject): boolean {
  return NAMES in item && item.approve !== false && !SHOWN.has(item.type);
}

/** Items by the ids that they have or name, as lenient readers compare them. */
function shownById(items: readonly Placed[]): Map<string, Placed[]> {
  const shown = new Map<string, Placed[]>();
  for (const placed of items) {
    const { item } = placed;
    if (item.type === 'mcp_approval_response') continue;
    for (const id of new Set([foldName(stringOf(item, 'id')), foldName(stringOf(item, NAMES))])) {
      const known = shown.get(id);
      if (known) known.push(placed);
      else if (id !== '') shown.set(id, [placed]);
    }
  }
  return shown;
}

/** Whether an item says anything of its call; else it only refers to what is kept. */
function showsCall({ type, name, arguments: args, server_label: label }: JsonObject): boolean {
  return type !== 'item_reference' && [name, args, label].some(isGiven);
}

function isRequest(item: JsonObject, id: string): boolean {
  return item.type === REQUEST && item.id === id;
}

/** Whether an item can be read in one way only: as a request, or as the call that came of it. */
function isPlain(item: JsonObject, id: string): boolean {
  return (isRequest(item, id) || isCall(item, id)) && showsCall(item);
}

function isCall(item: JsonObject, id: string): boolean {
  return item.type === 'mcp_call' && item[NAMES] === id;
}

/** Whether the call that came of an approval is shown after it, and is over. */
function hasRun(items: readonly Placed[], id: string, approvedAt: number): boolean {
  const calls = items.filter(({ item }) => isCall(item, id));
  const isOver = ({ item, at }: Placed) => at > approvedAt && OVER.has(item.status);
  return calls.length > 0 && calls.every(isOver);
}

function shownCall({ item, at }: Placed, approvalId: string): ShownCall {
  const { arguments: text } = item;
  const field = fieldOf(at);
  // Of a call that is named by half, no rule could tell what it is.
  for (const key of ['server_label', 'name']) {
    if (stringOf(item, key) === '') throw invalid(`${field}.${key}`, 'must be a text');
  }
  const name = `${stringOf(item, 'server_label')}/${stringOf(item, 'name')}`;
  const id = isPlain(item, approvalId) ? approvalId : '';
  if (typeof text !== 'string') return { id, field, name, args: undefined };
  return { id, field, name, args: parseArgs(text), argsText: text };
}
