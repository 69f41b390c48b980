/** Export: every row of an org, in tables that the schema itself names, without what is secret. */

import type { RunId, StepId } from '../schema/ids.ts';
import { type Actor, auditEntry } from './audit.ts';
import { type BodyKind, readBodies } from './captures.ts';
import type { Database, Row, Value } from './client.ts';
import type { Org } from './org.ts';
import type { MasterKeys } from './seal.ts';
import { tenantTables } from './tables.ts';

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

/** Large tables whose rows an index has in this order. */
const ORDERS: Readonly<Record<string, readonly string[]>> = {
  runs: ['opened_at', 'id'],
  events: ['created_at', 'id'],
  deliveries: ['webhook_id', 'id'],
  gates: ['status', 'id'],
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

/** Puts on the audit trail that everything is exported, before it is. */
export async function noteExport(org: Org, actor: Actor, hasBodies: boolean): Promise<void> {
  await org.write(auditEntry(org, actor, 'org.export', org.id, { bodies: hasBodies }));
}
