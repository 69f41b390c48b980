-- Webhook endpoints, what is due to them, and what came of each attempt; leases of scheduled jobs.

create table webhooks (
  id text primary key,
  org_id text not null references orgs (id) on delete cascade,
  url text not null,
  description text not null,
  -- A JSON array of types of events, or of "*" alone.
  events text not null,
  -- Sealed for signing; the SHA-256 only recognises it, since nothing can be signed with a hash.
  secret text not null,
  secret_hash text not null,
  -- The secret before the last rotation, which signs too until its time is over.
  previous_secret text,
  previous_hash text,
  previous_until integer,
  status text not null default 'enabled' check (status in ('enabled', 'disabled')),
  disabled_reason text,
  -- Since when nothing has got through; null after a success.
  failing_since integer,
  created_by text not null,
  created_at integer not null,
  updated_at integer not null,
  unique (org_id, url)
) strict, without rowid;

-- The one webhook that a test event is for; null for what has happened.
alter table events add column only_webhook_id text;

create table deliveries (
  id text primary key,
  org_id text not null,
  webhook_id text not null references webhooks (id) on delete cascade,
  event_id text not null references events (id) on delete cascade,
  cause text not null check (cause in ('event', 'test', 'redelivery', 'replay')),
  status text not null default 'pending' check (status in ('pending', 'delivered', 'dead')),
  -- Why it is dead: the outcome of the last attempt, or webhook_disabled.
  reason text,
  attempts integer not null default 0,
  -- When it is due; while it is leased, when the lease ends.
  next_at integer not null,
  leased_by text,
  created_at integer not null,
  ended_at integer
) strict, without rowid;

create index deliveries_due on deliveries (webhook_id, next_at) where status = 'pending';

create index deliveries_leased on deliveries (webhook_id) where leased_by is not null;

create index deliveries_of_webhook on deliveries (org_id, webhook_id, id);

create index deliveries_of_event on deliveries (event_id);

create table delivery_attempts (
  org_id text not null,
  delivery_id text not null references deliveries (id) on delete cascade,
  number integer not null check (number > 0),
  started_at integer not null,
  duration_ms integer not null,
  -- delivered, http_<status>, or why there was no answer.
  outcome text not null,
  -- JSON objects of the headers that were sent and that came back.
  request_headers text not null,
  response_status integer,
  response_headers text,
  -- The beginning of it.
  response_body text,
  primary key (delivery_id, number)
) strict, without rowid;

-- An event is due to whoever has subscribed to it by then: exactly once, in its own transaction.
create trigger events_fan_out after insert on events
begin
  insert into deliveries (
    id, org_id, webhook_id, event_id, cause, next_at, created_at
  )
  select
    'dlv_' || substr(new.id, 5, 10) || lower(hex(randomblob(8))),
    new.org_id, w.id, new.id, iif(new.only_webhook_id is null, 'event', 'test'),
    new.created_at, new.created_at
  from webhooks w
  where w.org_id = new.org_id and w.status = 'enabled' and iif(
    new.only_webhook_id is null,
    exists (select 1 from json_each(w.events) where value in ('*', new.type)),
    w.id = new.only_webhook_id
  );
end;

-- Held by whoever runs a job of the scheduled function, so that two ticks don't do it at once.
create table job_leases (
  name text primary key,
  leased_by text,
  leased_until integer not null,
  started_at integer not null,
  ended_at integer,
  -- What the last run reported, as JSON.
  report text
) strict, without rowid;

create index open_runs on runs (opened_at) where status = 'open';
