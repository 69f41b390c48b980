/** The tools that a request declares or names, in every dialect, and who runs each of them. */

import { fold, type Json, type JsonObject } from '../../schema/json.ts';
import { isGiven, isObject, readList } from '../../schema/rules/bound.ts';
import { ANY, type HostedTool, placeOf, type Unasked } from '../../schema/rules/hosted.ts';
import { memberOf } from './reading.ts';

/** A tool that a request declares or names. */
export interface Declared {
  /** Where it stands in the body: `tools[2]`. */
  readonly field: string;
  /** The name by which the agent will be asked to run it; absent for a tool that runs upstream. */
  readonly name?: string;
  readonly hosted?: HostedTool;
}

type Reader = (body: JsonObject) => readonly Declared[];

/** Readers by the endpoint's name. */
const READERS: ReadonlyMap<string, Reader> = new Map([
  ['chat.completions', declaredInChat],
  ['responses.create', declaredInResponses],
  ['messages', declaredInMessages],
  ['messages.count_tokens', declaredInMessages],
]);

/** Client tools of the Responses API that have no name: what a call of each is called. */
const NAMELESS: ReadonlyMap<string, string> = new Map([
  ['local_shell', 'local_shell'],
  ['apply_patch', 'apply_patch'],
  ['computer', 'computer'],
  ['computer-preview', 'computer'],
  ['computer_use_preview', 'computer'],
]);

/** Anthropic's tools that the caller runs, whose types have versions. */
const CLIENT_TYPE = /^(?:bash|text_editor|computer|memory|(?:browser|computer)_toolset)_\d+$/;
/** Items of a conversation that bring tools with them. */
const LOADING_ITEMS = new Set(['tool_search_output', 'additional_tools']);

/**
 * The tools of a request, those that its `tool_choice` names included.
 *
 * @param endpoint The endpoint's name; there are none where it takes no tools.
 * @throws {Refusal} `invalid_body` for lists that are none.
 */
export function declaredTools(endpoint: string, body: JsonObject): readonly Declared[] {
  return READERS.get(endpoint)?.(body) ?? [];
}

/**
 * Where the MCP servers of a request are, by their labels: their URLs, or the ids of connectors
 * or tunnels.
 *
 * @throws {Refusal} as {@link declaredTools} does.
 */
export function declaredServers(endpoint: string, body: JsonObject): ReadonlyMap<string, string> {
  const servers = declaredTools(endpoint, body).flatMap(({ hosted }) => {
    const { label, place } = hosted ?? {};
    return label === undefined || place === undefined ? [] : [[label, placeOf(place)] as const];
  });
  return new Map(servers);
}

function declaredInChat(body: JsonObject): Declared[] {
  const search = { field: 'web_search_options', hosted: { type: 'web_search' } };
  return [
    ...readList(body, 'tools').map((tool, at) => chatTool(tool, `tools[${at}]`)),
    ...readList(body, 'functions').map((tool, at) => byName(tool, `functions[${at}]`)),
    ...chosen(body.tool_choice, chatTool),
    ...(isObject(body.function_call) ? [byName(body.function_call, 'function_call')] : []),
    ...(isGiven(body.web_search_options) ? [search] : []),
  ];
}

function chatTool(tool: Json, field: string): Declared {
  if (!isObject(tool)) return { field, name: '' };
  const type = typeOf(tool) ?? 'function';
  if (type === 'function' || type === 'custom') return byName(memberOf(tool, type), field);
  return { field, hosted: { type } };
}

function declaredInResponses(body: JsonObject): Declared[] {
  const items = Array.isArray(body.input) ? body.input : [];
  const loaded = items.flatMap((item, at) => {
    if (!isObject(item) || !LOADING_ITEMS.has(typeOf(item) ?? '')) return [];
    return responseTools(item.tools, `input[${at}].tools`);
  });
  return [
    ...readList(body, 'tools').flatMap((tool, at) => responseTool(tool, `tools[${at}]`)),
    ...loaded,
    ...chosen(body.tool_choice, (tool, field) => responseTool(tool, field)[0]),
  ];
}

function responseTools(tools: Json | undefined, field: string): Declared[] {
  if (!Array.isArray(tools)) return [];
  return tools.flatMap((tool, at) => responseTool(tool, `${field}[${at}]`));
}

function responseTool(tool: Json, field: string): Declared[] {
  if (!isObject(tool)) return [{ field, name: '' }];
  const type = typeOf(tool) ?? 'function';
  if (type === 'function' || type === 'custom') return [byName(tool, field)];
  if (type === 'namespace') return responseTools(tool.tools, `${field}.tools`);
  if (type === 'mcp') return mcpOfResponses(tool, field);
  if (fold(type) === 'mcp') return [{ field, hosted: { type, unasked: ANY } }];
  if (type === 'shell' && memberOf(tool, 'environment').type === 'local') {
    return [{ field, name: 'shell' }];
  }
  const name = NAMELESS.get(type);
  return [name === undefined ? { field, hosted: { type } } : { field, name }];
}

function mcpOfResponses(tool: JsonObject, field: string): Declared[] {
  const unasked = unaskedOf(tool);
  return placesIn(tool, PLACE_KEYS).map((place) => {
    const { hosted } = mcpTool(tool.server_label, place, field);
    return { field, hosted: { ...hosted, ...(unasked ? { unasked } : {}) } };
  });
}

/** Keys that say where an MCP server is. */
const PLACE_KEYS: ReadonlySet<string> = new Set(['server_url', 'connector_id', 'tunnel_id']);
/** Those of an Anthropic request. */
const URL_KEYS: ReadonlySet<string> = new Set(['url']);

/** All places that some reader could take for that of a server; one that is unknown without any. */
function placesIn(server: JsonObject, keys: ReadonlySet<string>): readonly (Json | undefined)[] {
  const given = Object.keys(server).filter((key) => keys.has(fold(key)) && isGiven(server[key]));
  return given.length === 0 ? [undefined] : given.map((key) => server[key]);
}

/** Keys of an MCP server that say what it is and which of its tools run without a word to the caller. */
const MCP_KEYS: ReadonlySet<string> = new Set([
  ...['server_label', 'allowed_tools', 'require_approval'],
  ...PLACE_KEYS,
]);
const APPROVAL_KEYS: ReadonlySet<string> = new Set(['always', 'never']);
const FILTER_KEYS: ReadonlySet<string> = new Set(['tool_names']);

/**
 * The tools of a server that the upstream runs without asking; undefined where it asks about each,
 * as it does unless told otherwise. What is not plain to read leaves every tool unasked.
 */
function unaskedOf(tool: JsonObject): Unasked | undefined {
  if (Object.keys(tool).some((key) => !MCP_KEYS.has(key) && MCP_KEYS.has(fold(key)))) return ANY;
  const approval = tool.require_approval ?? 'always';
  if (approval === 'always') return undefined;
  const { names, except = [] } = isObject(approval) ? unaskedBy(approval) : NEVER;
  if (names) return { names };
  const allowed = namesIn(tool.allowed_tools);
  return allowed ? { names: allowed.filter((name) => !except.includes(name)) } : ANY;
}

/** What an approval says of the tools that run unasked: which ones, or else which ones don't. */
interface Terms {
  readonly names?: readonly string[];
  readonly except?: readonly string[];
}

/** Of no tool anyone is asked. */
const NEVER: Terms = {};

/**
 * With `never` alone, the upstream asks about what that does not name. With `always` given, nobody
 * says what becomes of the tools that neither names.
 */
function unaskedBy(approval: JsonObject): Terms {
  const isPlain = Object.keys(approval).every((key) => APPROVAL_KEYS.has(key));
  const { always = null, never = null } = approval;
  const unasked = never === null ? [] : namesIn(never);
  if (!isPlain || !unasked) return NEVER;
  if (always === null) return unasked.length > 0 ? { names: unasked } : NEVER;
  const asked = namesIn(always) ?? [];
  return { except: asked.filter((name) => !unasked.includes(name)) };
}

/** The names of a list or of a filter; undefined where it may pick others than those it names. */
function namesIn(filter: Json | undefined): readonly string[] | undefined {
  const isPlain = isObject(filter) && Object.keys(filter).every((key) => FILTER_KEYS.has(key));
  const list = isPlain ? filter.tool_names : filter;
  if (!Array.isArray(list) || list.length === 0) return undefined;
  return list.every((name) => typeof name === 'string') ? list : undefined;
}

function declaredInMessages(body: JsonObject): Declared[] {
  const servers = readList(body, 'mcp_servers');
  return [
    ...readList(body, 'tools').map((tool, at) => messageTool(tool, servers, `tools[${at}]`)),
    ...servers.flatMap((server, at) => mcpServer(server, `mcp_servers[${at}]`)),
    ...chosen(body.tool_choice, byName),
  ];
}

function mcpServer(server: Json, field: string): Declared[] {
  const read = isObject(server) ? server : {};
  return placesIn(read, URL_KEYS).map((place) => mcpTool(read.name, place, field));
}

function messageTool(tool: Json, servers: readonly Json[], field: string): Declared {
  if (!isObject(tool)) return { field, name: '' };
  const type = typeOf(tool) ?? 'custom';
  if (type === 'custom') return byName(tool, field);
  if (type === 'mcp_toolset') {
    const label = tool.mcp_server_name;
    const server = servers.find((each) => isObject(each) && each.name === label);
    return mcpTool(label, isObject(server) ? server.url : undefined, field);
  }
  if (!CLIENT_TYPE.test(type)) return { field, hosted: { type } };
  return isGiven(tool.name) ? byName(tool, field) : { field, name: type.replace(/_\d+$/, '') };
}

function byName(tool: Json, field: string): Declared {
  const name = isObject(tool) ? tool.name : undefined;
  return { field, name: typeof name === 'string' ? name : '' };
}

function mcpTool(label: Json | undefined, place: Json | undefined, field: string) {
  const hosted: HostedTool = {
    type: 'mcp',
    ...(typeof label === 'string' ? { label } : {}),
    ...(typeof place === 'string' ? { place } : {}),
  };
  return { field, hosted };
}

/**
 * The tools that a `tool_choice` names: one, or those of a list of allowed ones. Those that run
 * upstream it can only choose from what is declared.
 *
 * @param read Reads one tool as it is named in the dialect.
 */
function chosen(
  choice: Json | undefined,
  read: (tool: JsonObject, field: string) => Declared | undefined,
): Declared[] {
  if (!isObject(choice)) return [];
  const list = choice.tools ?? memberOf(choice, 'allowed_tools').tools;
  const named = Array.isArray(list) ? list : [choice];
  return named.flatMap((tool) => {
    const isNamed =
      isObject(tool) && ['name', 'function', 'custom'].some((key) => isGiven(tool[key]));
    const declared = isNamed ? read(tool, 'tool_choice') : undefined;
    return declared?.name === undefined ? [] : [declared];
  });
}

function typeOf(tool: JsonObject): string | undefined {
  return typeof tool.type === 'string' ? tool.type : undefined;
}
