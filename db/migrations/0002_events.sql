-- What happened, written in the transaction of what it tells; deliveries to webhooks follow it.
create table events (
  id text primary key,
  org_id text not null references orgs (id) on delete cascade,
  type text not null,
  -- JSON, as the type's schema has it.
  data text not null,
  -- What may be told only once: the second event of a type with the same key is not written.
  once text,
  created_at integer not null
) strict, without rowid;

create unique index events_told_once on events (org_id, type, once) where once is not null;

create index events_of_org on events (org_id, created_at);
