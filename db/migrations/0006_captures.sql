-- Kept bodies, and how much spending in a run or window people are told of.

-- Bodies of calls and answers, sealed in parts; those of a policy that asks for it.
create table captures (
  org_id text not null,
  run_id text not null,
  step_id text not null,
  kind text not null check (kind in ('request', 'response')),
  number integer not null check (number >= 0),
  sealed text not null,
  -- Of the whole body: more than is kept where that was cut off.
  bytes integer not null check (bytes >= 0),
  created_at integer not null,
  primary key (org_id, run_id, step_id, kind, number)
) strict, without rowid;

-- Tool calls that were reported under a key of the caller's, so that a repeated report adds nothing.
create table reports (
  org_id text not null,
  run_id text not null,
  key text not null,
  step_id text not null,
  -- SHA-256 of what was reported.
  digest text not null,
  primary key (org_id, run_id, key)
) strict, without rowid;

-- The share of a run's ceiling at which an alert is raised.
alter table runs add column alert_at real not null default 0.8;

-- An amount of spending that is told once when it is reached: alert_at of ceiling_nanos. A window's
-- stands here from the first call under its ceiling on, a run's once it was reached.
create table alerts (
  org_id text not null,
  scope text not null
    check (scope in ('run', 'agent_per_day', 'agent_per_month', 'org_per_month')),
  -- The id of the run, the agent or the org.
  subject text not null,
  -- YYYY-MM-DD or YYYY-MM; empty for a run.
  window text not null,
  ceiling_nanos integer not null check (ceiling_nanos >= 0),
  alert_at real not null,
  created_at integer not null,
  raised_at integer,
  -- The run that reached it.
  run_id text,
  agent_id text,
  spent_nanos integer,
  primary key (org_id, subject, window, ceiling_nanos, alert_at)
) strict, without rowid;

create index raised_alerts on alerts (org_id, raised_at) where raised_at is not null;

-- The lowest amount of a window that is still to be told: it spares a look at alerts. An agent's
-- month has no row of its own, so that its days are always looked at: 0.
alter table spend add column line_nanos real;

-- The run that reached it.
alter table spend add column line_run_id text;

create trigger alert_is_raised after update of raised_at on alerts
when old.raised_at is null and new.raised_at is not null
begin
  insert into events (org_id, id, type, data, created_at) values (
    new.org_id,
    -- The layout of every id: 10 digits of the time, 16 of chance.
    'evt_' || (
      select group_concat(
        substr('0123456789abcdefghjkmnpqrstvwxyz', ((new.raised_at >> value) & 31) + 1, 1), ''
      ) from json_each('[45,40,35,30,25,20,15,10,5,0]')
    ) || (
      select group_concat(
        substr('0123456789abcdefghjkmnpqrstvwxyz', (random() & 31) + 1, 1), ''
      ) from json_each('[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]')
    ),
    'budget.alert',
    json_object(
      'scope', new.scope, 'runId', new.run_id, 'agentId', new.agent_id,
      'spentNanos', new.spent_nanos, 'ceilingNanos', new.ceiling_nanos, 'alertAt', new.alert_at
    ),
    new.raised_at
  );
end;

create trigger run_nears_its_ceiling after update of spent_nanos on runs
when new.spent_nanos >= new.ceiling_nanos * new.alert_at
  and old.spent_nanos < new.ceiling_nanos * new.alert_at
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

drop trigger step_settles;

-- As before, and a window knows which run reached its line.
create trigger step_settles after update of settled_at, spent_nanos, held_nanos on steps
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

create trigger window_reaches_its_line after update of spent_nanos on spend
when new.spent_nanos >= new.line_nanos
begin
  update alerts set
    raised_at = cast(unixepoch('subsec') * 1000 as integer),
    run_id = new.line_run_id,
    agent_id = (select agent_id from runs where id = new.line_run_id and org_id = new.org_id),
    spent_nanos = (
      select sum(spent_nanos) from spend
      where org_id = new.org_id and subject = new.subject
        and window between alerts.window and alerts.window || '-31'
    )
    where org_id = new.org_id and subject = new.subject
      and window in (new.window, substr(new.window, 1, 7)) and raised_at is null
      and ceiling_nanos * alert_at <= (
        select sum(spent_nanos) from spend
        where org_id = new.org_id and subject = new.subject
          and window between alerts.window and alerts.window || '-31'
      );
  update spend set line_nanos = (
      select min(iif(alerts.window = new.window, ceiling_nanos * alert_at, 0)) from alerts
      where org_id = new.org_id and subject = new.subject
        and alerts.window in (new.window, substr(new.window, 1, 7)) and raised_at is null
    )
    where org_id = new.org_id and subject = new.subject and window = new.window;
end;
