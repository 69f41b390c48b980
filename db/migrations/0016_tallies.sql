-- How often a write of several steps has counted this one in its sums; triggers count what is
-- written by itself.
alter table steps add column tallies integer not null default 0;

drop trigger step_counts;

create trigger step_counts after insert on steps
when new.tallies = 0
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

drop trigger step_settles;

create trigger step_settles after update of settled_at, spent_nanos, held_nanos on steps
when new.tallies = old.tallies
begin
  update runs set
    held_nanos = held_nanos
      - iif(old.settled_at is null, old.held_nanos, 0)
      + iif(new.settled_at is null, new.held_nanos, 0),
    spent_nanos = spent_nanos + new.spent_nanos - old.spent_nanos
    where id = new.run_id and org_id = new.org_id;
  update spend set
    line_run_id = iif(
      spent_nanos + new.spent_nanos - old.spent_nanos >= line_nanos, new.run_id, line_run_id
    ),
    held_nanos = held_nanos
      - iif(old.settled_at is null, old.held_nanos, 0)
      + iif(new.settled_at is null, new.held_nanos, 0),
    spent_nanos = spent_nanos + new.spent_nanos - old.spent_nanos
    where org_id = new.org_id and subject = new.agent_id and window = new.day;
  update spend set
    line_run_id = iif(
      spent_nanos + new.spent_nanos - old.spent_nanos >= line_nanos, new.run_id, line_run_id
    ),
    held_nanos = held_nanos
      - iif(old.settled_at is null, old.held_nanos, 0)
      + iif(new.settled_at is null, new.held_nanos, 0),
    spent_nanos = spent_nanos + new.spent_nanos - old.spent_nanos
    where org_id = new.org_id and subject = new.org_id and window = substr(new.day, 1, 7);
end;

drop trigger settled_step_is_added;

create trigger settled_step_is_added after update of settled_at on steps
when new.tallies = old.tallies and new.settled_at is not null
  and new.kind in ('model_call', 'tool_call', 'retry', 'failover')
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
