-- What has been used of limits.
-- A window is cut into slots; a slot counts until the last of what it holds has left the window.
-- The rows of '*' belong to no org: they count calls of all orgs, and failed sign-ins by address.
create table limit_slots (
  org_id text not null,
  subject text not null,
  kind text not null,
  window_ms integer not null check (window_ms > 0),
  slot integer not null,
  used integer not null check (used >= 0),
  last_at integer not null,
  -- Never before the slot has left its window, and set once, so that the index is seldom written.
  ends_at integer not null,
  primary key (org_id, subject, kind, window_ms, slot)
) strict, without rowid;

create index ended_limit_slots on limit_slots (ends_at);

-- Where a call has reserved tokens, and how many, until what it really used is known:
-- {"tokens": 450, "slots": [["agt_…", 60000, 29000000]]}
alter table steps add column charged text;

-- Once per step, as it is settled; an answer whose usage nobody knows keeps what was reserved.
create trigger step_uses_tokens after update of answered on steps
when new.charged is not null and new.settled_at is not null
  and (old.settled_at is null or old.outcome = 'lease_expired')
  and (new.answered ->> '$.estimated' is null or new.answered -> '$.usage' is not null)
begin
  update limit_slots set
    used = max(0, used - (new.charged ->> '$.tokens')
      + coalesce(new.answered ->> '$.usage.inputTokens', 0)
      + coalesce(new.answered ->> '$.usage.outputTokens', 0))
    where org_id = new.org_id and kind = 'tokens'
      -- Column by column for the primary key, and together for the rows that are meant.
      and subject in (select value ->> 0 from json_each(new.charged, '$.slots'))
      and window_ms in (select value ->> 1 from json_each(new.charged, '$.slots'))
      and slot in (select value ->> 2 from json_each(new.charged, '$.slots'))
      and (subject, window_ms, slot) in (
        select value ->> 0, value ->> 1, value ->> 2 from json_each(new.charged, '$.slots')
      );
end;

-- Finds the holds whose lease has run out, and counts the calls in flight of an agent or an org.
drop index live_holds;

create index live_steps on steps (org_id, agent_id, lease_expires_at, settled_at)
  where settled_at is null;

-- The steps that a run's policy limits: what went out, not what was refused or remarked.
alter table runs add column call_count integer not null default 0;

update runs set call_count = (
  select count(*) from steps
  where steps.org_id = runs.org_id and steps.run_id = runs.id
    and kind in ('model_call', 'tool_call', 'retry', 'failover')
);

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
