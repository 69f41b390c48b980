-- The audit chain: numbered per org, each entry hashed over the one before.
-- What came before the chain is taken into it when the database is migrated.
alter table audit_entries rename to audit_history;

create table audit_entries (
  -- '*' is the platform's own chain.
  org_id text not null,
  seq integer not null check (seq > 0),
  id text not null unique,
  at integer not null,
  actor_kind text not null,
  action text not null,
  target text not null,
  outcome text not null check (outcome in ('allowed', 'refused')),
  -- SHA-256 over salt and payload; both may be erased, and the chain still verifies.
  commitment text not null,
  salt text,
  payload text,
  prev_hash text not null,
  hash text not null,
  actor text generated always as (json_extract(payload, '$.actor.id')) virtual,
  detail text generated always as (json_extract(payload, '$.after')) virtual,
  primary key (org_id, seq)
) strict, without rowid;

create index audit_by_target on audit_entries (org_id, target, seq);

create index audit_by_action on audit_entries (org_id, action, seq);

create trigger audit_entries_are_immutable before update of
  org_id, seq, id, at, actor_kind, action, target, outcome, commitment, prev_hash, hash
  on audit_entries
begin
  select raise(abort, 'an audit entry is immutable');
end;

-- States of a chain that were signed, as compact JWS.
create table audit_checkpoints (
  org_id text not null,
  seq integer not null check (seq > 0),
  purpose text not null check (purpose in ('head', 'pruned')),
  jws text not null,
  at integer not null,
  primary key (org_id, seq, purpose)
) strict, without rowid;

-- The deployment's keys for checkpoints; the newest signs, all of them verify.
create table signing_keys (
  id text primary key,
  public_key text not null,
  wrapped text not null,
  secret text not null,
  created_at integer not null
) strict, without rowid;
