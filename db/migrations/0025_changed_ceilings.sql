-- A run nears its ceiling by what is spent, and also by the ceiling's coming nearer.
drop trigger run_nears_its_ceiling;

create trigger run_nears_its_ceiling after update of spent_nanos, ceiling_nanos on runs
when new.spent_nanos >= new.ceiling_nanos * new.alert_at
  and (old.spent_nanos < new.ceiling_nanos * new.alert_at
    or new.ceiling_nanos is not old.ceiling_nanos)
begin
  insert into alerts (
    org_id, scope, subject, window, ceiling_nanos, alert_at, created_at,
    run_id, agent_id, spent_nanos
  ) values (
    new.org_id, 'run', new.id, '', new.ceiling_nanos, new.alert_at, new.active_at,
    new.id, new.agent_id, new.spent_nanos
  ) on conflict do nothing;
  update alerts set raised_at = cast(unixepoch('subsec') * 1000 as integer)
    where org_id = new.org_id and subject = new.id and window = ''
      and ceiling_nanos = new.ceiling_nanos and alert_at = new.alert_at and raised_at is null;
end;
