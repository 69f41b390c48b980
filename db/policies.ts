/** Policies and their immutable versions. */

import type { AgentId, PolicyId, PolicyVersionId } from '../schema/ids.ts';
import { type Policy, policySchema } from '../schema/policy.ts';
import { type Actor, auditEntry } from './audit.ts';
import type { Row } from './client.ts';
import { Memo } from './memo.ts';
import type { Org } from './org.ts';
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

/** A policy by name, with its newest document. */
export async function findPolicy(
  org: Org,
  name: string,
): Promise<{ id: PolicyId; number: number; document: string } | undefined> {
  const row = await org.first(
    `select p.id, v.number, v.document
     from policies p join policy_versions v on v.policy_id = p.id and v.org_id = p.org_id
     where p.org_id = ?1 and p.name = ?2 order by v.number desc limit 1`,
    name,
  );
  return (
    row && {
      id: row.id as PolicyId,
      number: Number(row.number),
      document: String(row.document),
    }
  );
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
      `insert into policy_versions (org_id, id, policy_id, number, document, created_at)
       values (?1, ?2, ?3, ?4, ?5, ?6)`,
      newId('policyVersion'),
      id,
      number,
      document,
      now,
    ),
    auditEntry(org, actor, present ? 'policy.update' : 'policy.create', id, { name, number }),
  );
  return { id, number };
}
