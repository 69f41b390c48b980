/** Policies and their immutable versions. */

import { isDeepStrictEqual } from 'node:util';
import type { AgentId, PolicyId, PolicyVersionId } from '../schema/ids.ts';
import { type Policy, policySchema } from '../schema/policy.ts';
import { type Actor, actorName, auditEntry } from './audit.ts';
import type { Row } from './client.ts';
import { Memo } from './memo.ts';
import type { Org } from './org.ts';
import { type Page, readPage, readPages, type Window } from './page.ts';
import { newId } from './seal.ts';

/** A version of a policy. */
export interface PolicyVersion {
  readonly id: PolicyVersionId;
  readonly policyId: PolicyId;
  /** The policy's name and version, as in `prod-agents/v4`. */
  readonly label: string;
  readonly policy: Policy;
}

const versions = new Memo<PolicyVersion>(1_000);

/** A version by its id. Remembered, since a version never changes. */
export async function readPolicyVersion(
  org: Org,
  id: PolicyVersionId,
): Promise<PolicyVersion | undefined> {
  const key = `${org.id}/${id}`;
  const known = versions.get(key);
  if (known) return known;
  const row = await org.first(
    `select v.id, v.policy_id, v.number, v.document, p.name
     from policy_versions v join policies p on p.id = v.policy_id and p.org_id = v.org_id
     where v.org_id = ?1 and v.id = ?2`,
    id,
  );
  return row && versions.set(key, toVersion(row));
}

/** The version that an agent's runs open with: the one it is pinned to, or its policy's newest. */
export async function readAgentPolicy(
  org: Org,
  agent: AgentId,
): Promise<PolicyVersion | undefined> {
  const row = await org.first(
    `select v.id, v.policy_id, v.number, v.document, p.name
     from agents a
     join policies p on p.id = a.policy_id and p.org_id = a.org_id
     join policy_versions v on v.policy_id = p.id and v.org_id = p.org_id
     where a.org_id = ?1 and a.id = ?2 and v.number = coalesce(a.policy_version, v.number)
     order by v.number desc limit 1`,
    agent,
  );
  return row && toVersion(row);
}

/**
 * The versions that runs open with: the newest of each policy, those that agents are pinned to, and
 * those that their callers may choose.
 */
export async function readUsedPolicies(org: Org): Promise<PolicyVersion[]> {
  const rows = await org.read(
    `select v.id, v.policy_id, v.number, v.document, p.name
     from policy_versions v join policies p on p.id = v.policy_id and p.org_id = v.org_id
     where v.org_id = ?1 and (
       v.number = (select max(number) from policy_versions where org_id = ?1 and policy_id = p.id)
       or exists (
         select 1 from agents a
         where a.org_id = ?1 and a.policy_id = p.id and a.policy_version = v.number
       )
       or exists (
         select 1 from agent_policies c
         where c.org_id = ?1 and c.policy_id = p.id and c.number = v.number
       )
     )`,
  );
  return rows.map(toVersion);
}

/**
 * The versions that an agent's caller may choose to open a run with, beside the agent's own: those
 * named by their number, and the newest of policies that are allowed without one.
 *
 * @returns Labels such as `strict-agents/v2` with the versions' ids.
 */
export async function readChoices(
  org: Org,
  agent: AgentId,
): Promise<ReadonlyMap<string, PolicyVersionId>> {
  const rows = await org.read(
    `select v.id, v.number, p.name
     from agent_policies c
     join policies p on p.id = c.policy_id and p.org_id = c.org_id
     join policy_versions v on v.policy_id = p.id and v.org_id = p.org_id
     where c.org_id = ?1 and c.agent_id = ?2 and v.number = iif(
       c.number > 0, c.number,
       (select max(number) from policy_versions where org_id = ?1 and policy_id = p.id)
     )
     order by p.name, v.number`,
    agent,
  );
  return new Map(rows.map((row) => [labelOf(row), row.id as PolicyVersionId]));
}

function toVersion(row: Row): PolicyVersion {
  return {
    id: row.id as PolicyVersionId,
    policyId: row.policy_id as PolicyId,
    label: labelOf(row),
    policy: policySchema.parse(JSON.parse(String(row.document))),
  };
}

function labelOf({ name, number }: Row): string {
  return `${name}/v${number}`;
}

/** A policy without its versions. */
export interface NamedPolicy {
  readonly id: PolicyId;
  readonly name: string;
  readonly createdAt: number;
}

/** A version as it was written. */
export interface WrittenVersion {
  readonly id: PolicyVersionId;
  readonly policyId: PolicyId;
  readonly number: number;
  /** The policy's name and version, as in `prod-agents/v4`. */
  readonly label: string;
  readonly document: unknown;
  readonly createdAt: number;
  /** A member's id, or who else acted; null where it was not noted. */
  readonly createdBy: string | null;
}

/** The policies of an org by name, or those whose name contains a text. */
export function listPolicies(
  org: Org,
  { name = null }: { readonly name?: string | null | undefined },
  window: Window,
): Promise<Page<NamedPolicy>> {
  const sql = `select * from policies where org_id = ?1
    and (?2 is null or instr(lower(name), lower(?2)) > 0)`;
  return readPage(org, { sql, args: [name], order: 'name' }, window, toNamed);
}

/** The policies of these ids. */
export async function readPolicies(org: Org, ids: readonly PolicyId[]): Promise<NamedPolicy[]> {
  const rows = await org.read(
    'select * from policies where org_id = ?1 and id in (select value from json_each(?2))',
    JSON.stringify(ids),
  );
  return rows.map(toNamed);
}

/** The policy of this name, without its versions. */
export async function findNamedPolicy(org: Org, name: string): Promise<NamedPolicy | undefined> {
  const row = await org.first('select * from policies where org_id = ?1 and name = ?2', name);
  return row && toNamed(row);
}

function toNamed(row: Row): NamedPolicy {
  return {
    id: row.id as PolicyId,
    name: String(row.name),
    createdAt: Number(row.created_at),
  };
}

const WRITTEN = `
  select v.*, p.name from policy_versions v
  join policies p on p.id = v.policy_id and p.org_id = v.org_id`;

/** The versions of policies, the newest first. */
export function listVersions(
  org: Org,
  policies: readonly PolicyId[],
  window: Window,
): Promise<Map<PolicyId, Page<WrittenVersion>>> {
  const listings = {
    sql: (policy: string) => `${WRITTEN} where v.org_id = ?1 and v.policy_id = ${policy}`,
    ...{ args: [], order: 'number', isDescending: true },
  };
  return readPages(org, listings, policies, window, toWritten);
}

/** The newest version of each of these policies. */
export async function readNewestVersions(
  org: Org,
  policies: readonly PolicyId[],
): Promise<WrittenVersion[]> {
  const rows = await org.read(
    `${WRITTEN} where v.org_id = ?1 and v.policy_id in (select value from json_each(?2))
       and v.number = (
         select max(number) from policy_versions where org_id = ?1 and policy_id = v.policy_id
       )`,
    JSON.stringify(policies),
  );
  return rows.map(toWritten);
}

/** The versions of these ids. */
export async function readVersions(
  org: Org,
  ids: readonly PolicyVersionId[],
): Promise<WrittenVersion[]> {
  const rows = await org.read(
    `${WRITTEN} where v.org_id = ?1 and v.id in (select value from json_each(?2))`,
    JSON.stringify(ids),
  );
  return rows.map(toWritten);
}

/** A version by its policy and number: `pol_…/4`. */
export type VersionKey = `${PolicyId}/${number}`;

/** The versions of these policies and numbers. */
export async function readNumberedVersions(
  org: Org,
  keys: readonly VersionKey[],
): Promise<Map<VersionKey, WrittenVersion>> {
  const rows = await org.read(
    `${WRITTEN} where v.org_id = ?1
       and v.policy_id || '/' || v.number in (select value from json_each(?2))
       and v.policy_id in (select substr(value, 1, instr(value, '/') - 1) from json_each(?2))`,
    JSON.stringify(keys),
  );
  return new Map(
    rows.map(toWritten).map((version) => [`${version.policyId}/${version.number}`, version]),
  );
}

function toWritten(row: Row): WrittenVersion {
  return {
    id: row.id as PolicyVersionId,
    policyId: row.policy_id as PolicyId,
    number: Number(row.number),
    label: labelOf(row),
    document: JSON.parse(String(row.document)),
    createdAt: Number(row.created_at),
    createdBy: row.created_by as string | null,
  };
}

/**
 * Writes a version of a policy, and the policy itself where it is new.
 *
 * @param document The document as JSON, already validated.
 * @throws {DatabaseError} a conflict, when another writer made the same version first.
 */
export async function addPolicyVersion(
  org: Org,
  actor: Actor,
  name: string,
  document: string,
  present?: { id: PolicyId; number: number },
): Promise<{ id: PolicyId; number: number }> {
  const id = present?.id ?? newId('policy');
  const number = (present?.number ?? 0) + 1;
  const now = Date.now();
  const policy = org.statement(
    'insert into policies (org_id, id, name, created_at) values (?1, ?2, ?3, ?4)',
    id,
    name,
    now,
  );
  await org.write(
    ...(present ? [] : [policy]),
    org.statement(
      `insert into policy_versions (
         org_id, id, policy_id, number, document, created_at, created_by
       ) values (?1, ?2, ?3, ?4, ?5, ?6, ?7)`,
      newId('policyVersion'),
      id,
      number,
      document,
      now,
      actorName(actor),
    ),
    auditEntry(
      org,
      actor,
      present ? 'policy.update' : 'policy.create',
      id,
      { name, number },
      { before: present && { name, number: present.number } },
    ),
  );
  return { id, number };
}

/**
 * Writes a new version of a policy, unless its newest says the same; neither the order of keys nor
 * spaces make a difference.
 *
 * @param document The document as JSON, already validated.
 * @returns whether a version was written.
 * @throws {DatabaseError} a conflict, when another writer made the same version first.
 */
export async function publishVersion(
  org: Org,
  actor: Actor,
  id: PolicyId,
  name: string,
  document: string,
): Promise<boolean> {
  const [newest] = await readNewestVersions(org, [id]);
  if (newest && isDeepStrictEqual(newest.document, JSON.parse(document))) return false;
  await addPolicyVersion(org, actor, name, document, { id, number: newest?.number ?? 0 });
  return true;
}

/**
 * Deletes a policy with its versions, unless an agent has it or may choose it, a token that is good
 * permits it, or a run that is kept was opened with it: another policy of its name must not take
 * its place in a token, and what governed a run stays on record as long as the run.
 *
 * @returns whether it was deleted.
 */
export async function deletePolicy(org: Org, actor: Actor, policy: NamedPolicy): Promise<boolean> {
  const [deleted] = await org.write(
    org.statement(
      `delete from policies where org_id = ?1 and id = ?2
         and not exists (select 1 from agents where org_id = ?1 and policy_id = ?2)
         and not exists (select 1 from agent_policies where org_id = ?1 and policy_id = ?2)
         and not exists (
           select 1 from tokens where org_id = ?1
             and instr(replace(' ' || policies || ' ', '/', ' /'), ' ' || ?3 || ' ') > 0
             and revoked_at is null and coalesce(expires_at, ?4 + 1) > ?4
         )
         and not exists (
           select 1 from runs where org_id = ?1 and policy_version_id in (
             select id from policy_versions where org_id = ?1 and policy_id = ?2
           )
         )`,
      policy.id,
      policy.name,
      Date.now(),
    ),
    auditEntry(org, actor, 'policy.delete', policy.id, undefined, {
      before: { name: policy.name },
      ifChanged: true,
    }),
  );
  return deleted!.changes > 0;
}
