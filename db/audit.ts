/** Who changed what: an entry is written in the transaction of the change itself. */

import type { Statement } from './client.ts';
import type { Org } from './org.ts';
import { newId } from './seal.ts';

/** Who acts: the operator at the command line, or a token. */
export type Actor = string;

/** The statement that records a change; put it into the change's own transaction. */
export function auditEntry(
  org: Org,
  actor: Actor,
  action: string,
  target: string,
  detail?: object,
): Statement {
  return org.statement(
    `insert into audit_entries (org_id, id, actor, action, target, detail, created_at)
     values (?1, ?2, ?3, ?4, ?5, ?6, ?7)`,
    newId('audit'),
    actor,
    action,
    target,
    detail ? JSON.stringify(detail) : null,
    Date.now(),
  );
}
