-- Tenants, agents, what governs them, and the trail of what they did.
-- Statements are parted by blank lines. Times are Unix milliseconds, money is nano-dollars.

create table orgs (
  id text primary key,
  slug text not null unique,
  name text not null,
  -- Raised by triggers whenever something that calls are governed by changes; what a process
  -- remembers of an org is good only for the revision it was read at.
  revision integer not null default 1,
  created_at integer not null
) strict, without rowid;

-- One wrapped key per org. Kept apart from the rows it seals, so that it can be left out of backups.
create table org_keys (
  org_id text primary key references orgs (id) on delete cascade,
  wrapped text not null,
  seals integer not null default 0 check (seals >= 0),
  created_at integer not null,
  rotated_at integer
) strict, without rowid;

create table users (
  id text primary key,
  email text not null unique collate nocase,
  created_at integer not null
) strict, without rowid;

create table members (
  id text primary key,
  org_id text not null references orgs (id) on delete cascade,
  user_id text not null references users (id),
  role text not null check (role in ('owner', 'admin', 'member', 'viewer')),
  created_at integer not null,
  unique (org_id, user_id)
) strict, without rowid;

create table policies (
  id text primary key,
  org_id text not null references orgs (id) on delete cascade,
  name text not null,
  created_at integer not null,
  unique (org_id, name)
) strict, without rowid;

-- A version is never changed once it is written.
create table policy_versions (
  id text primary key,
  org_id text not null references orgs (id) on delete cascade,
  policy_id text not null references policies (id) on delete cascade,
  number integer not null check (number > 0),
  document text not null,
  created_at integer not null,
  unique (policy_id, number)
) strict, without rowid;

create trigger policy_versions_are_immutable before update on policy_versions
begin
  select raise(abort, 'a policy version is immutable');
end;

create table agents (
  id text primary key,
  org_id text not null references orgs (id) on delete cascade,
  name text not null,
  policy_id text not null references policies (id),
  -- The run that calls without a run id are grouped into, while it is not idle.
  window_run_id text,
  suspended_at integer,
  created_at integer not null,
  unique (org_id, name)
) strict, without rowid;

create table tokens (
  id text primary key,
  org_id text not null references orgs (id) on delete cascade,
  agent_id text references agents (id) on delete cascade,
  kind text not null check (kind in ('agent', 'admin')),
  hash text not null unique,
  last_four text not null,
  actions text not null,
  created_by text not null,
  created_at integer not null,
  expires_at integer,
  revoked_at integer,
  -- Coarse: written at most once an hour.
  last_used_at integer
) strict, without rowid;

create index tokens_of_agent on tokens (org_id, agent_id);

create table provider_keys (
  id text primary key,
  org_id text not null references orgs (id) on delete cascade,
  name text not null,
  provider text not null,
  base_url text not null,
  secret text not null,
  last_four text not null,
  created_at integer not null,
  unique (org_id, name)
) strict, without rowid;

create table prices (
  org_id text not null references orgs (id) on delete cascade,
  model text not null,
  input_nanos_per_million integer not null check (input_nanos_per_million >= 0),
  output_nanos_per_million integer not null check (output_nanos_per_million >= 0),
  cache_read_nanos_per_million integer check (cache_read_nanos_per_million >= 0),
  cache_write_nanos_per_million integer check (cache_write_nanos_per_million >= 0),
  context_window integer check (context_window > 0),
  created_at integer not null,
  primary key (org_id, model)
) strict, without rowid;

create table runs (
  id text primary key,
  org_id text not null,
  agent_id text not null,
  -- The caller's own string, or the id where the caller gave none.
  name text not null,
  source text not null,
  policy_version_id text not null,
  status text not null default 'open'
    check (status in ('open', 'completed', 'blocked', 'cancelled')),
  ceiling_nanos integer check (ceiling_nanos >= 0),
  spent_nanos integer not null default 0 check (spent_nanos >= 0),
  held_nanos integer not null default 0 check (held_nanos >= 0),
  step_count integer not null default 0,
  opened_at integer not null,
  active_at integer not null,
  closed_at integer,
  closed_reason text,
  -- When a run that a day's or month's ceiling blocked may go on.
  blocked_until integer,
  unique (org_id, agent_id, name)
) strict, without rowid;

create index runs_by_name on runs (org_id, name);

-- The trail. A step with a lease that is not settled is a live hold of held_nanos. What is only
-- read back whole stands in two JSON documents: few columns keep the writing of a step cheap.
create table steps (
  id text not null,
  org_id text not null,
  run_id text not null,
  agent_id text not null,
  kind text not null check (
    kind in ('model_call', 'tool_call', 'retry', 'failover', 'gate', 'denial', 'note')
  ),
  -- The UTC day, YYYY-MM-DD, in whose windows the step's money counts.
  day text not null,
  started_at integer not null,
  held_nanos integer not null default 0 check (held_nanos >= 0),
  lease_expires_at integer,
  settled_at integer,
  spent_nanos integer not null default 0 check (spent_nanos >= 0),
  outcome text,
  asked text not null,
  answered text,
  primary key (org_id, run_id, id)
) strict, without rowid;

create index live_holds on steps (lease_expires_at) where settled_at is null;

-- What has been spent and is held in a window: an agent's day (YYYY-MM-DD) or an org's month
-- (YYYY-MM). An agent's month is the sum of its days.
create table spend (
  org_id text not null,
  subject text not null,
  window text not null,
  spent_nanos integer not null default 0 check (spent_nanos >= 0),
  held_nanos integer not null default 0 check (held_nanos >= 0),
  primary key (org_id, subject, window)
) strict, without rowid;

-- Money follows the trail by these two triggers alone, so that spent is the sum of the settled
-- steps and held the sum of the live holds, in every scope, whoever writes a step.
create trigger step_counts after insert on steps
begin
  update runs set
    held_nanos = held_nanos + iif(new.settled_at is null, new.held_nanos, 0),
    spent_nanos = spent_nanos + new.spent_nanos,
    step_count = step_count + 1,
    active_at = iif(new.kind = 'denial', active_at, max(active_at, new.started_at))
    where id = new.run_id and org_id = new.org_id;
  insert into spend (org_id, subject, window, held_nanos, spent_nanos)
    values (
      new.org_id, new.agent_id, new.day,
      iif(new.settled_at is null, new.held_nanos, 0), new.spent_nanos
    )
    on conflict do update set
      held_nanos = held_nanos + excluded.held_nanos,
      spent_nanos = spent_nanos + excluded.spent_nanos;
  insert into spend (org_id, subject, window, held_nanos, spent_nanos)
    values (
      new.org_id, new.org_id, substr(new.day, 1, 7),
      iif(new.settled_at is null, new.held_nanos, 0), new.spent_nanos
    )
    on conflict do update set
      held_nanos = held_nanos + excluded.held_nanos,
      spent_nanos = spent_nanos + excluded.spent_nanos;
end;

create trigger step_settles after update of settled_at, spent_nanos, held_nanos on steps
begin
  update runs set
    held_nanos = held_nanos
      - iif(old.settled_at is null, old.held_nanos, 0)
      + iif(new.settled_at is null, new.held_nanos, 0),
    spent_nanos = spent_nanos + new.spent_nanos - old.spent_nanos
    where id = new.run_id and org_id = new.org_id;
  update spend set
    held_nanos = held_nanos
      - iif(old.settled_at is null, old.held_nanos, 0)
      + iif(new.settled_at is null, new.held_nanos, 0),
    spent_nanos = spent_nanos + new.spent_nanos - old.spent_nanos
    where org_id = new.org_id and subject = new.agent_id and window = new.day;
  update spend set
    held_nanos = held_nanos
      - iif(old.settled_at is null, old.held_nanos, 0)
      + iif(new.settled_at is null, new.held_nanos, 0),
    spent_nanos = spent_nanos + new.spent_nanos - old.spent_nanos
    where org_id = new.org_id and subject = new.org_id and window = substr(new.day, 1, 7);
end;

-- Responses that an upstream keeps: only the agent that made one may name it again.
create table responses (
  org_id text not null,
  agent_id text not null,
  response_id text not null,
  run_id text not null,
  step_id text not null,
  provider_key text not null,
  created_at integer not null,
  primary key (org_id, agent_id, response_id)
) strict, without rowid;

create table audit_entries (
  id text primary key,
  org_id text not null,
  actor text not null,
  action text not null,
  target text not null,
  detail text,
  created_at integer not null
) strict, without rowid;

create trigger provider_keys_added after insert on provider_keys
begin
  update orgs set revision = revision + 1 where id = new.org_id;
end;

create trigger provider_keys_changed after update on provider_keys
begin
  update orgs set revision = revision + 1 where id = new.org_id;
end;

create trigger provider_keys_removed after delete on provider_keys
begin
  update orgs set revision = revision + 1 where id = old.org_id;
end;

create trigger prices_added after insert on prices
begin
  update orgs set revision = revision + 1 where id = new.org_id;
end;

create trigger prices_changed after update on prices
begin
  update orgs set revision = revision + 1 where id = new.org_id;
end;

create trigger prices_removed after delete on prices
begin
  update orgs set revision = revision + 1 where id = old.org_id;
end;

create trigger org_keys_rewrapped after update of wrapped on org_keys
begin
  update orgs set revision = revision + 1 where id = new.org_id;
end;

create trigger org_keys_destroyed after delete on org_keys
begin
  update orgs set revision = revision + 1 where id = old.org_id;
end;
