/** Export: every row of an org, in tables that the schema itself names, without what is secret. */

import type { GateId, ParkedId, RunId, StepId } from '../schema/ids.ts';
import { type Actor, auditEntry } from './audit.ts';
import { type BodyKind, readBodies } from './captures.ts';
import type { Database, Row, Value } from './client.ts';
import { readArgs } from './gates.ts';
import type { Org } from './org.ts';
import { openParked } from './parked.ts';
import type { MasterKeys } from './seal.ts';
import { tenantTables } from './tables.ts';
import { openVault } from './vault.ts';

/** A table as it is exported. */
export interface ExportTable {
  readonly name: string;
  readonly columns: readonly string[];
  /** Columns of the table that stay here, since they are secrets. */
  readonly withheld: readonly string[];
  /** What follows `from`; it has a column `org_id`. */
  readonly from: string;
  /** Columns that order an org's rows, no two of which are equal in all of them. */
  readonly order: readonly string[];
}

/** Columns that never leave: secrets, sealed or hashed, and bodies. */
const WITHHELD: Readonly<Record<string, readonly string[]>> = {
  alert_rules: ['target'],
  captures: ['sealed'],
  gates: ['args'],
  invitations: ['hash'],
  oidc_settings: ['secret'],
  parked_parts: ['sealed'],
  provider_keys: ['secret'],
  sessions: ['hash'],
  tokens: ['hash'],
  webhooks: ['secret', 'secret_hash', 'previous_secret', 'previous_hash'],
};

/** Tables that hold nothing but secrets. */
const SECRET_TABLES = new Set(['org_keys', 'oidc_attempts']);

/** Large tables whose rows an index has in this order, by columns that never change. */
const ORDERS: Readonly<Record<string, readonly string[]>> = {
  runs: ['opened_at', 'id'],
  events: ['created_at', 'id'],
  deliveries: ['webhook_id', 'id'],
  gates: ['run_id', 'id'],
};

/** The org itself, and the people in it. */
const BESIDE: readonly ExportTable[] = [
  {
    name: 'orgs',
    columns: ['id', 'slug', 'name', 'plan', 'created_at', 'suspended_at', 'retention_days'],
    withheld: [],
    from: '(select o.*, o.id as org_id from orgs o)',
    order: [],
  },
  {
    name: 'users',
    columns: ['id', 'email', 'name', 'created_at'],
    withheld: [],
    from: '(select u.*, m.org_id from users u join members m on m.user_id = u.id)',
    order: ['id'],
  },
];

/** Every table of which an org has rows, by name after the org and its people. */
export async function exportTables(db: Database): Promise<ExportTable[]> {
  const tables = (await tenantTables(db)).filter(({ name }) => !SECRET_TABLES.has(name));
  const owned = tables.map(({ name, key, columns }): ExportTable => {
    const withheld = WITHHELD[name] ?? [];
    return {
      name,
      columns: columns.filter((column) => column !== 'org_id' && !withheld.includes(column)),
      withheld,
      from: `"${name}"`,
      order: ORDERS[name] ?? key.filter((column) => column !== 'org_id'),
    };
  });
  return [...BESIDE, ...owned.sort((one, other) => (one.name < other.name ? -1 : 1))];
}

/** Some rows of a table. */
export interface ExportPage {
  readonly rows: readonly Row[];
  /** Where the next page begins; undefined after the last one. */
  readonly next: readonly Value[] | undefined;
}

/**
 * Reads rows in their order.
 *
 * @param after The `next` of the page before.
 * @param limit The most rows.
 */
export async function readExportPage(
  org: Org,
  { columns, from, order }: ExportTable,
  after: readonly Value[] | undefined,
  limit: number,
): Promise<ExportPage> {
  const quoted = (names: readonly string[]) => names.map((name) => `"${name}"`).join(', ');
  const places = order.map((_, at) => `?${at + 3}`).join(', ');
  const beyond = after ? `and (${quoted(order)}) > (${places})` : '';
  const sorted = order.length > 0 ? `order by ${quoted(order)}` : '';
  const rows = await org.read(
    `select ${quoted([...new Set([...columns, ...order])])} from ${from}
     where org_id = ?1 ${beyond} ${sorted} limit ?2`,
    limit,
    ...(after ?? []),
  );
  const last = rows.length === limit ? rows.at(-1) : undefined;
  const isOver = last === undefined || order.length === 0;
  return { rows, next: isOver ? undefined : order.map((column) => last[column] ?? null) };
}

/** How many rows of a table the org has. */
export async function countExport(org: Org, { from }: ExportTable): Promise<number> {
  const row = await org.first(`select count(*) as count from ${from} where org_id = ?1`);
  return Number(row?.count);
}

/** A step whose bodies are kept. */
export interface CapturedStep {
  readonly runId: RunId;
  readonly stepId: StepId;
}

/** Steps with bodies, in pages. */
export async function listCaptured(
  org: Org,
  after: CapturedStep | undefined,
  limit: number,
): Promise<CapturedStep[]> {
  const rows = await org.read(
    `select distinct run_id, step_id from captures
     where org_id = ?1 and (run_id, step_id) > (?2, ?3) order by run_id, step_id limit ?4`,
    after?.runId ?? '',
    after?.stepId ?? '',
    limit,
  );
  return rows.map((row) => ({ runId: row.run_id as RunId, stepId: row.step_id as StepId }));
}

/** A body as it is exported. */
export interface ExportedBody {
  readonly run_id: RunId;
  readonly step_id: StepId;
  readonly kind: BodyKind;
  /** Of the whole body; more than is there where it was cut off. */
  readonly total_bytes: number;
  /** Base64 (RFC 4648, section 4). */
  readonly body: string;
}

/** The bodies of a step, opened. @throws {SealError} */
export async function exportBodies(
  org: Org,
  master: MasterKeys,
  { runId, stepId }: CapturedStep,
): Promise<ExportedBody[]> {
  const bodies = await readBodies(org, master, runId, stepId);
  return Object.entries(bodies).map(([kind, { bytes, totalBytes }]) => ({
    ...{ run_id: runId, step_id: stepId, kind: kind as BodyKind },
    total_bytes: totalBytes,
    body: new Uint8Array(bytes).toBase64(),
  }));
}

/** A gate whose arguments are exported. */
export interface ExportedGate {
  readonly runId: RunId;
  readonly gateId: GateId;
}

/** Gates, in pages and in the order of their table's export. */
export async function listAsked(
  org: Org,
  after: ExportedGate | undefined,
  limit: number,
): Promise<ExportedGate[]> {
  const rows = await org.read(
    `select run_id, id from gates
     where org_id = ?1 and (run_id, id) > (?2, ?3) order by run_id, id limit ?4`,
    after?.runId ?? '',
    after?.gateId ?? '',
    limit,
  );
  return rows.map((row) => ({ runId: row.run_id as RunId, gateId: row.id as GateId }));
}

/** What people were asked about, as it is exported. */
export interface ExportedArgs {
  readonly gate_id: GateId;
  readonly run_id: RunId;
  /** The exact text of the arguments. */
  readonly args: string;
}

/** The arguments of gates, opened; without those of gates that are gone by now. @throws {SealError} */
export async function exportArgs(
  org: Org,
  master: MasterKeys,
  gates: readonly ExportedGate[],
): Promise<ExportedArgs[]> {
  if (gates.length === 0) return [];
  const opened = await readArgs(
    org,
    master,
    gates.map(({ gateId }) => gateId),
  );
  return gates.flatMap(({ runId, gateId }) => {
    const args = opened.get(gateId);
    return args === undefined ? [] : [{ gate_id: gateId, run_id: runId, args }];
  });
}

/** The first part of a parked answer: those after it are never without it. */
const FIRST_PART = 'select parked_id from parked_parts where org_id = ?1 and number = 0';

/** Parked answers whose bytes are kept, in pages. */
export async function listParked(
  org: Org,
  after: ParkedId | undefined,
  limit: number,
): Promise<ParkedId[]> {
  const rows = await org.read(
    `${FIRST_PART} and parked_id > ?2 order by parked_id limit ?3`,
    after ?? '',
    limit,
  );
  return rows.map((row) => row.parked_id as ParkedId);
}

/** A parked answer as it is exported. */
export interface ExportedAnswer {
  readonly parked_id: ParkedId;
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  /** Base64 (RFC 4648, section 4). */
  readonly body: string;
}

/**
 * A parked answer, opened.
 *
 * @returns undefined for one that has been pruned since it was listed.
 * @throws {SealError}
 */
export async function exportParked(
  org: Org,
  master: MasterKeys,
  id: ParkedId,
): Promise<ExportedAnswer | undefined> {
  try {
    const { status, headers, bytes } = await openParked(org, await openVault(org, master), id);
    return { parked_id: id, status, headers, body: bytes.toBase64() };
  } catch (error) {
    if (await org.first(`${FIRST_PART} and parked_id = ?2`, id)) throw error;
    return undefined;
  }
}

/** Puts on the audit trail that everything is exported, before it is. */
export async function noteExport(org: Org, actor: Actor, hasBodies: boolean): Promise<void> {
  await org.write(auditEntry(org, actor, 'org.export', org.id, { bodies: hasBodies }));
}
