/** Calls that people have approved for a run: of this tool, with these arguments, by this id. */

import { findReleased } from '../../db/released.ts';
import { digestText } from '../../db/seal.ts';
import type { JsonObject } from '../../schema/json.ts';
import { type GateSubject, subjectText } from '../../schema/rules/gate.ts';
import { judgeName } from '../../schema/rules/tools.ts';
import type { ProposedCall } from '../providers/contract.ts';
import { declaredServers } from '../providers/declared.ts';
import type { Permitted } from './decide.ts';

/** The call that a run is on, as far as gates are bound to it. */
interface Place extends Pick<Permitted, 'org' | 'agent'> {
  readonly run: Pick<Permitted['run'], 'id'>;
  readonly version: Pick<Permitted['version'], 'id'>;
}

/** A call, and the MCP server that it is of. */
type OfServer = Pick<ProposedCall, 'name' | 'argsText'> & Pick<GateSubject, 'server'>;

/** What a gate on a proposed call is bound to. */
export function subjectOf(
  { org, agent, run, version }: Place,
  { name, argsText, server }: OfServer,
): GateSubject {
  return {
    ...{ orgId: org.id, agentId: agent.id, runId: run.id, policyVersionId: version.id },
    ...{ tool: name, argsText, server },
  };
}

/** The digest that such a gate has. */
export function digestOf(place: Place, call: OfServer): string {
  return digestText(subjectText(subjectOf(place, call)));
}

/** Where the MCP servers of a request are, by their labels, as they are shown and kept. */
export function serversOf(endpoint: string, body: JsonObject): ReadonlyMap<string, string> {
  const places = [...declaredServers(endpoint, body)];
  return new Map(places.map(([label, place]) => [label, shownPlace(place)]));
}

/** Ids of connectors and tunnels. */
const ID = /^[\w.-]{1,100}$/;

/**
 * A place of an MCP server as people are shown it, and as no other one is shown: more of a URL than
 * its host may be a credential, and stands for itself by its SHA-256 alone.
 */
function shownPlace(place: string): string {
  if (ID.test(place)) return place;
  const { origin, href } = URL.canParse(place) ? new URL(place) : { origin: 'null', href: '' };
  if (href === place && href === `${origin}/`) return href;
  const host = origin === 'null' || href !== place ? '' : `${origin}/… `;
  return `${host}sha256:${digestText(place)}`;
}

/**
 * Where the MCP server of a tool is, which is called `label/name`; `null` where neither the request
 * nor that of the kept response which it fetches has declared the label.
 */
export function serverOf(
  { endpoint, body, kept }: Pick<Permitted, 'endpoint' | 'body' | 'kept'>,
  tool: string,
): string | null {
  const servers = body ? serversOf(endpoint.name, body.value) : kept?.servers;
  return servers?.get(tool.slice(0, tool.indexOf('/'))) ?? null;
}

/** What a caller is told who would have an approved call run a second time. */
export function usedUp(id: string): string {
  return `The call "${id.slice(0, 100)}" was sent to run when people had approved it, and that is good for once; let it be proposed again.`;
}

/**
 * Of the calls of an answer those that ran upstream as people had approved them: each names the
 * request that its run was given, and has the tool and the arguments of that.
 */
export async function findApproved(
  place: Pick<Permitted, 'org' | 'agent' | 'run' | 'version'>,
  calls: readonly ProposedCall[],
): Promise<ReadonlySet<ProposedCall>> {
  const { policy } = place.version;
  const asking = calls.filter(
    ({ name, approvalId }) => approvalId !== undefined && judgeName(policy, name) === 'depends',
  );
  if (asking.length === 0) return NONE;
  const ids = [...new Set(asking.map(({ approvalId }) => approvalId!))];
  const released = await findReleased(place.org, place.run.id, ids);
  return new Set(
    asking.filter((call) => {
      const { digest, server = null } = released.get(call.approvalId!) ?? {};
      return digest === digestOf(place, { ...call, server });
    }),
  );
}

const NONE: ReadonlySet<ProposedCall> = new Set();
