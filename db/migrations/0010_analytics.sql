-- What has been used and spent, added up as it happens: a million steps are never read again.

create index runs_of_org on runs (org_id, opened_at);

-- Only what was refused: calls that go out never touch it.
create index denials on steps (org_id, day) where kind = 'denial';

-- Steps of a window, of every kind.
alter table spend add column step_count integer not null default 0;

update spend set step_count = (
  select count(*) from steps
  where steps.org_id = spend.org_id and steps.agent_id = spend.subject
    and steps.day = spend.window
) where length(window) = 10;

update spend set step_count = (
  select count(*) from steps
  where steps.org_id = spend.org_id and steps.day between spend.window and spend.window || '-31'
) where length(window) = 7;

-- As before, and a window counts its steps.
drop trigger step_counts;

create trigger step_counts after insert on steps
begin
  update runs set
    held_nanos = held_nanos + iif(new.settled_at is null, new.held_nanos, 0),
    spent_nanos = spent_nanos + new.spent_nanos,
    step_count = step_count + 1,
    call_count = call_count
      + (new.kind in ('model_call', 'tool_call', 'retry', 'failover')),
    active_at = iif(new.kind = 'denial', active_at, max(active_at, new.started_at))
    where id = new.run_id and org_id = new.org_id;
  insert into spend (org_id, subject, window, held_nanos, spent_nanos, step_count)
    values (
      new.org_id, new.agent_id, new.day,
      iif(new.settled_at is null, new.held_nanos, 0), new.spent_nanos, 1
    )
    on conflict do update set
      held_nanos = held_nanos + excluded.held_nanos,
      spent_nanos = spent_nanos + excluded.spent_nanos,
      step_count = step_count + 1;
  insert into spend (org_id, subject, window, held_nanos, spent_nanos, step_count)
    values (
      new.org_id, new.org_id, substr(new.day, 1, 7),
      iif(new.settled_at is null, new.held_nanos, 0), new.spent_nanos, 1
    )
    on conflict do update set
      held_nanos = held_nanos + excluded.held_nanos,
      spent_nanos = spent_nanos + excluded.spent_nanos,
      step_count = step_count + 1;
end;

-- What was settled of a day: calls, and tools that were reported.
create table call_totals (
  org_id text not null,
  day text not null,
  agent_id text not null,
  policy_version_id text not null,
  -- A JSON array of the provider key and the model; both null for a tool.
  model text not null,
  -- To two digits, so that few rows tell of many calls; 0 where it is not known.
  latency_ms integer not null,
  calls integer not null,
  spent_nanos integer not null,
  primary key (org_id, day, agent_id, policy_version_id, model, latency_ms)
) strict, without rowid;

insert into call_totals
select s.org_id, s.day, s.agent_id, r.policy_version_id,
  json_extract(s.asked, '$.providerKey', '$.model') as model,
  cast(cast(printf('%.1e', s.answered ->> '$.latencyMs') as real) as integer) as latency_ms,
  count(*), sum(s.spent_nanos)
from steps s join runs r on r.id = s.run_id and r.org_id = s.org_id
where s.settled_at is not null and s.kind in ('model_call', 'tool_call', 'retry', 'failover')
group by s.org_id, s.day, s.agent_id, r.policy_version_id, model, latency_ms;

-- What becomes known after a lease ran out replaces the estimate; the call has been counted.
create trigger settled_step_is_added after update of settled_at on steps
when new.settled_at is not null and new.kind in ('model_call', 'tool_call', 'retry', 'failover')
begin
  insert into call_totals
  select new.org_id, new.day, new.agent_id, policy_version_id,
    json_extract(new.asked, '$.providerKey', '$.model'),
    cast(cast(printf('%.1e', new.answered ->> '$.latencyMs') as real) as integer),
    old.settled_at is null, new.spent_nanos - old.spent_nanos
  from runs where id = new.run_id and org_id = new.org_id
  on conflict do update set
    calls = calls + excluded.calls, spent_nanos = spent_nanos + excluded.spent_nanos;
end;
