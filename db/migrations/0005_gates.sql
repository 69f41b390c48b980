-- Gates, parked answers and released calls.

-- An upstream answer that is kept back, sealed in parts, until people have decided on its calls.
create table parked (
  id text primary key,
  org_id text not null,
  agent_id text not null,
  run_id text not null,
  -- The step that paid for it.
  step_id text not null,
  request_digest text not null,
  -- Parts that hold its status and headers; those of its body follow.
  head_parts integer not null check (head_parts > 0),
  created_at integer not null,
  expires_at integer not null,
  -- When it was released, or its expiry told: requests from then on are new ones.
  ended_at integer
) strict, without rowid;

create unique index parked_requests on parked (org_id, agent_id, run_id, request_digest)
  where ended_at is null;

create index ended_requests on parked (org_id, agent_id, run_id, request_digest, ended_at);

create table parked_parts (
  org_id text not null,
  parked_id text not null references parked (id) on delete cascade,
  number integer not null,
  sealed text not null,
  primary key (org_id, parked_id, number)
) strict, without rowid;

-- A decision that people have to make, bound by its digest to the very call they are shown.
create table gates (
  id text primary key,
  org_id text not null,
  agent_id text not null,
  run_id text not null,
  policy_version_id text not null,
  -- The step of the call that proposed it; null for one asked about before a local tool runs.
  step_id text,
  parked_id text,
  token_id text not null,
  -- Who made that token.
  caused_by text not null,
  tool text not null,
  -- Sealed: the exact text of the arguments.
  args text not null,
  digest text not null,
  rule text not null,
  rule_name text not null,
  reason text not null,
  approvals integer not null check (approvals > 0),
  status text not null default 'pending'
    check (status in ('pending', 'approved', 'rejected', 'expired', 'released')),
  created_at integer not null,
  expires_at integer not null,
  decided_at integer,
  decided_by text,
  -- When who asked was told that it has expired.
  told_at integer
) strict, without rowid;

create index gates_of_org on gates (org_id, status, id);

create index gates_of_parked on gates (org_id, parked_id);

create index gates_of_digest on gates (org_id, digest);

create unique index open_asks on gates (org_id, digest)
  where parked_id is null and status in ('pending', 'approved');

create index gates_until on gates (expires_at) where status in ('pending', 'approved');

-- One decision per gate and decider: a link is a decider, so that it counts once.
create table gate_decisions (
  org_id text not null,
  gate_id text not null references gates (id) on delete cascade,
  decider text not null,
  decision text not null check (decision in ('approve', 'reject')),
  reason text,
  decided_at integer not null,
  primary key (org_id, gate_id, decider)
) strict, without rowid;

-- Tool calls that a run was given, and results it sent that answer none of them.
create table released_calls (
  org_id text not null,
  run_id text not null,
  call_id text not null,
  was_released integer not null check (was_released in (0, 1)),
  created_at integer not null,
  primary key (org_id, run_id, call_id)
) strict, without rowid;
