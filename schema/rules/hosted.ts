/** Tools that run upstream, where no call of them can be decided: they are decided when declared. */

import { fold } from '../json.ts';
import type { Policy } from '../policy.ts';
import type { Denial } from './decide.ts';
import { matchesGlob } from './glob.ts';

/** A tool that runs upstream. */
export interface HostedTool {
  /** As the provider calls its type: `web_search_20250305`, `mcp`. */
  readonly type: string;
  /** What the caller calls an MCP server; any word at all. */
  readonly label?: string;
  /** Where an MCP server is: its URL, or the id of a connector. */
  readonly place?: string;
}

const VERSION = /_20\d{2}(?:\d{4}|_\d{2}_\d{2})$/;
const MAX_SHOWN_CHARS = 200;
const MAX_NAME_LENGTH = 2_048;

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
  const folded = names.map(fold);
  const denied = deny.findIndex((glob) => {
    const pattern = fold(glob);
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

/** A URL as it is called, whatever its case, its default port and its dots. */
function placeOf(place: string): string {
  return URL.canParse(place) ? new URL(place).href : place;
}
