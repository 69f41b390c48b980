-- Retention, alert rules, and leaving: what makes deletion quick, and which orgs are gone.

-- For how many days the org wants its records kept; null for as long as its plan keeps them.
alter table orgs add column retention_days integer check (retention_days > 0);

-- A request for deletion counts for the very next call: what is remembered of tokens is outdated.
create trigger orgs_leaving after update of deletion_requested_at on orgs
when old.deletion_requested_at is not new.deletion_requested_at
begin
  update orgs set revision = revision + 1 where id = new.id;
end;

-- What was spent by steps that retention has deleted since: part of spent_nanos, for good.
alter table runs add column pruned_nanos integer not null default 0 check (pruned_nanos >= 0);

alter table spend add column pruned_nanos integer not null default 0 check (pruned_nanos >= 0);

create trigger step_is_pruned after delete on steps
begin
  update runs set pruned_nanos = pruned_nanos + old.spent_nanos
    where id = old.run_id and org_id = old.org_id;
  update spend set pruned_nanos = pruned_nanos + old.spent_nanos
    where org_id = old.org_id and subject = old.agent_id and window = old.day;
  update spend set pruned_nanos = pruned_nanos + old.spent_nanos
    where org_id = old.org_id and subject = old.org_id and window = substr(old.day, 1, 7);
end;

-- Finds what retention deletes. None of them changes when a step is written.
create index closed_runs on runs (org_id, closed_at) where closed_at is not null;

create index gates_of_run on gates (org_id, run_id);

create index responses_by_age on responses (org_id, created_at);

-- Finds an org's rows in tables that are keyed otherwise, to export and to delete them.
create index policy_versions_of_org on policy_versions (org_id);

create index invitations_of_org on invitations (org_id);

create index oidc_attempts_of_org on oidc_attempts (org_id);

create index delivery_attempts_of_org on delivery_attempts (org_id);

create index audit_history_of_org on audit_history (org_id);

-- A row can be deleted without a look at every row that might refer to it.
create index agents_of_policy on agents (policy_id);

create index choices_of_agent on agent_policies (agent_id);

create index choices_of_policy on agent_policies (policy_id);

create index tokens_by_agent on tokens (agent_id);

create index sessions_by_member on sessions (member_id);

create index identities_by_member on identities (member_id);

create index offers_by_maker on ownership_offers (from_member);

create index offers_by_taker on ownership_offers (to_member);

create index members_of_user on members (user_id);

create index deliveries_by_webhook on deliveries (webhook_id);

create index parts_of_parked on parked_parts (parked_id);

create index decisions_of_gate on gate_decisions (gate_id);

create table alert_rules (
  id text primary key,
  org_id text not null references orgs (id) on delete cascade,
  name text not null,
  metric text not null
    check (metric in ('spend', 'blocked_runs', 'pending_gates', 'error_rate')),
  -- Nano-dollars, a number of runs or gates, or a percentage of calls.
  threshold integer not null check (threshold > 0),
  window_s integer not null check (window_s > 0),
  channel text not null check (channel in ('event', 'mail', 'chat')),
  -- An e-mail address, or the sealed URL of a chat; null for an event alone.
  target text,
  -- What is shown of it: the address, or the host of the chat.
  target_shown text,
  enabled integer not null check (enabled in (0, 1)),
  -- Whether the value was at the threshold or above it when it was looked at last.
  is_over integer not null default 0 check (is_over in (0, 1)),
  checked_at integer not null default 0,
  fired_at integer,
  fired_value integer,
  -- How often it was tried to tell the last firing, and when that succeeded.
  tries integer not null default 0,
  told_at integer,
  created_by text not null,
  created_at integer not null,
  updated_at integer not null,
  unique (org_id, name)
) strict, without rowid;

create index due_alert_rules on alert_rules (checked_at) where enabled = 1;

create index untold_alert_rules on alert_rules (fired_at)
  where fired_at is not null and told_at is null;

-- Orgs that were deleted, by nothing but their ids: an older backup must not bring them back.
create table deleted_orgs (
  id text primary key,
  deleted_at integer not null
) strict, without rowid;
