-- How far the trail of a run that has ended is anchored; it may be anchored again after it has grown.
alter table runs add column anchored_at integer;

alter table runs add column anchored_steps integer not null default 0;

alter table runs add column anchored_head text;

-- The last step that is anchored: it and those before it never change again.
alter table runs add column anchored_last text;

alter table runs add column grown_at integer;

-- Not touched by calls: they change neither a run's status nor what is anchored of it.
create index unanchored_runs on runs (org_id, closed_at)
  where status <> 'open' and anchored_at is null;

-- Denials and reports are added to a run that has ended too; a call's own step is not settled yet.
create trigger anchored_run_grows after insert on steps
when new.settled_at is not null or new.kind = 'tool_call'
begin
  update runs set anchored_at = null, grown_at = new.started_at
    where id = new.run_id and org_id = new.org_id and anchored_at is not null;
end;

create trigger anchored_run_reopens after update of status on runs
when new.status = 'open' and new.anchored_at is not null
begin
  update runs set anchored_at = null where id = new.id and org_id = new.org_id;
end;
