/** Tools that run upstream, where no call of them can be decided: they are decided when declared. */

import { fold } from '../json.ts';
import type { Policy } from '../policy.ts';
import type { Denial } from './decide.ts';
import { foldName, matchesGlob } from './glob.ts';
import { denyName, findRule, governsTools, judgeName } from './tools.ts';

/** A tool that runs upstream. */
export interface HostedTool {
  /** As the provider calls its type: `web_search_20250305`, `mcp`. */
  readonly type: string;
  /** What the caller calls an MCP server; any word at all. */
  readonly label?: string;
  /** Where an MCP server is: its URL, or the id of a connector. */
  readonly place?: string;
  /** The tools of an MCP server of which the provider asks nobody; absent where it asks of all. */
  readonly unasked?: Unasked;
}

/** Tools of an MCP server that the provider runs without asking the caller. */
export interface Unasked {
  /** Absent where it may be any tool of the server. */
  readonly names?: readonly string[];
}

/** Any tool, without a word to the caller. */
export const ANY: Unasked = {};

const VERSION = /_20\d{2}(?:\d{4}|_\d{2}_\d{2})$/;
const MAX_SHOWN_CHARS = 200;
const MAX_NAME_LENGTH = 2_048;
/** The most MCP servers that the tools of one request may be of. */
const MAX_SERVERS = 64;

/**
 * Decides on a hosted tool: a deny list wins; a list of what is allowed denies everything else.
 *
 * A glob may name a type with or without its version, and an MCP server as `mcp/label` or
 * `mcp/https://host/path`. Callers choose labels freely: only a place says what is called.
 */
export function decideHosted(policy: Policy, tool: HostedTool): Denial | undefined {
  const { allow, deny = [] } = policy.hostedTools ?? {};
  const names = namesOf(tool);
  const asked = (names.at(-1) ?? tool.type).slice(0, MAX_SHOWN_CHARS);
  if (names.some((name) => name.length > MAX_NAME_LENGTH)) {
    const reason = `The name of the hosted tool "${asked}" is longer than ${MAX_NAME_LENGTH} characters.`;
    return { effect: 'deny', rule: 'hostedTools', field: 'tools', asked, reason };
  }
  const folded = [...names, ...calledOf(tool)].map(foldName);
  const denied = deny.findIndex((glob) => {
    const pattern = foldName(glob);
    return folded.some((name) => matchesGlob(pattern, name));
  });
  if (denied >= 0) {
    const reason = `The policy denies the hosted tool "${asked}" (rule "${deny[denied]}").`;
    const rule = `hostedTools.deny[${denied}]`;
    return { effect: 'deny', rule, field: 'tools', asked, allowed: allow ?? ['*'], reason };
  }
  if (!allow || allow.some((glob) => names.some((name) => matchesGlob(glob, name)))) {
    return undefined;
  }
  const listed = allow.slice(0, 20).join(', ') || 'none';
  const reason = `The policy does not allow the hosted tool "${asked}"; it allows: ${listed}.`;
  return {
    effect: 'deny',
    rule: 'hostedTools.allow',
    field: 'tools',
    asked,
    allowed: allow,
    reason,
  };
}

/** All that a glob may call a tool by; the last one is the most telling. */
function namesOf({ type, label, place }: HostedTool): readonly string[] {
  const base = type.replace(VERSION, '').replace(/_tool_(?:bm25|regex)$/, '');
  const names = [base.replace(/_preview$/, ''), base, type];
  if (label !== undefined) names.push(`mcp/${label}`);
  if (place !== undefined) names.push(`mcp/${placeOf(place)}`);
  return [...new Set(names)];
}

/** Readers of URLs differ about where the host of one ends that holds these. */
const UNCLEAR = /[^\x21-\x7e]|\\/;

/**
 * A URL as it is called, whatever its case, its default port and its dots; as it is written where
 * whoever calls it may read another host in it.
 */
export function placeOf(place: string): string {
  return UNCLEAR.test(place) ? place : hrefOf(place);
}

function hrefOf(place: string): string {
  return URL.canParse(place) ? new URL(place).href : place;
}

/** What browsers would call, whom a deny list has in mind too. */
function calledOf({ place }: HostedTool): readonly string[] {
  return place === undefined ? [] : [`mcp/${hrefOf(place)}`];
}

/**
 * Refuses what leaves open which MCP server the name of a tool, `label/name`, is of: a label that
 * holds a slash, or that stands for two places; and more servers than can be kept in mind.
 *
 * @param places Where the servers are that stand before it, by their labels; its own is added.
 */
export function decideLabel(
  { label, place }: HostedTool,
  places: Map<string, string>,
): Denial | undefined {
  if (label === undefined) return undefined;
  const where = placeOf(place ?? '');
  const isOther = where !== '' && (places.get(label) ?? where) !== where;
  if (where !== '') places.set(label, where);
  const why = whyUnclear(label, isOther, places.size);
  if (why === undefined) return undefined;
  const asked = label.slice(0, MAX_SHOWN_CHARS);
  const reason = `The policy governs tools, and the label "${asked}" of an MCP server ${why}: whose tools are called by it has to be plain.`;
  return { effect: 'deny', rule: 'tools', field: 'server_label', asked, reason };
}

function whyUnclear(label: string, isOther: boolean, servers: number): string | undefined {
  if (isOther) return 'stands for two servers';
  if (label.includes('/')) return 'holds a slash';
  return servers > MAX_SERVERS ? `is that of one server too many (${MAX_SERVERS})` : undefined;
}

/**
 * Refuses the tools of an MCP server that a tool rule could speak of, and that the provider would
 * have run before anyone saw their calls. Those that it asks about come back to be decided.
 *
 * @param asks Whether the provider asks where it is told to; one that doesn't may run any tool.
 */
export function decideUnasked(
  policy: Policy,
  { type, label, unasked }: HostedTool,
  asks = true,
): Denial | undefined {
  const running = asks || fold(type) !== 'mcp' ? unasked : ANY;
  if (!running || !governsTools(policy)) return undefined;
  const { names } = running;
  const server = label === undefined ? '' : `${label}/`;
  // A server without a label could come to have any.
  if (!names || label === undefined)
    return refuseUnasked(ruleOfServers(policy, server), `${server}*`, asks);
  const governed = names.find((name) => judgeName(policy, server + name) !== 'allow');
  if (governed === undefined) return undefined;
  return refuseUnasked(ruleOfOne(policy, server + governed), server + governed, asks);
}

function refuseUnasked(rule: string | undefined, name: string, asks: boolean): Denial | undefined {
  if (rule === undefined) return undefined;
  const asked = name.slice(0, MAX_SHOWN_CHARS);
  const governed = `The policy governs the tool "${asked}" (rule ${rule})`;
  if (!asks) {
    const reason = `${governed}, and this provider asks nobody before it runs one: leave the server out.`;
    return { effect: 'deny', rule, field: 'type', asked, reason };
  }
  const reason = `${governed}, which the provider would run unasked: set require_approval to "always" or leave it out, or list in allowed_tools those that no rule governs.`;
  return { effect: 'deny', rule, field: 'require_approval', asked, allowed: ['always'], reason };
}

/** The rule that denies a name, or may ask about it or deny it. */
function ruleOfOne(policy: Policy, name: string): string {
  return denyName(policy, name)?.rule ?? findRule(policy, name) ?? 'tools';
}

/**
 * The rule that could deny or ask about some tool of a server, or does not allow all of them: a
 * server may have a tool of any name, so that every rule that denies or asks could.
 *
 * @param server What the names of its tools begin with; nothing for those of whatever server.
 */
export function ruleOfServers({ tools }: Policy, server = ''): string | undefined {
  const { allow, deny, requireApproval } = tools ?? {};
  if (deny?.length) return 'tools.deny[0]';
  if (requireApproval?.length) return 'tools.requireApproval[0]';
  const isAllowed = allow?.some((glob) => matchesAll(glob, server)) ?? true;
  return isAllowed ? undefined : 'tools.allow';
}

/** Whether a glob matches every text that begins so. */
function matchesAll(glob: string, start: string): boolean {
  return glob.endsWith('*') && matchesGlob(glob, start);
}
