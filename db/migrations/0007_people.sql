-- People: invitations, sessions, sign-in, and what the operator of the platform does to orgs.
alter table users add column name text;

-- Accounts. An operator of his own deployment has no quotas to keep.
alter table orgs add column plan text not null default 'enterprise'
  check (plan in ('free', 'pro', 'growth', 'enterprise'));

alter table orgs add column suspended_at integer;

-- When its deletion was asked for, and from when on it may be carried out.
alter table orgs add column deletion_requested_at integer;

alter table orgs add column deletes_at integer;

-- What is remembered of an org's tokens is good for its revision only.
create trigger orgs_suspended after update of suspended_at on orgs
when old.suspended_at is not new.suspended_at
begin
  update orgs set revision = revision + 1 where id = new.id;
end;

alter table tokens add column name text;

-- An admin token belongs to a member and can never do more than he can.
update tokens set created_by = coalesce(
  (
    select id from members
    where members.org_id = tokens.org_id and role = 'owner' order by created_at, id limit 1
  ),
  created_by
) where kind = 'admin';

-- The tokens of agents had every action that there was.
update tokens set actions = 'call.create run.read run.complete tool.ask step.report gate.read'
where kind = 'agent' and actions = 'call.create run.read run.complete';

create index tokens_of_maker on tokens (org_id, created_by);

create table invitations (
  id text primary key,
  org_id text not null references orgs (id) on delete cascade,
  email text not null,
  role text not null check (role in ('owner', 'admin', 'member', 'viewer')),
  hash text not null unique,
  invited_by text not null,
  created_at integer not null,
  expires_at integer not null,
  accepted_at integer,
  revoked_at integer
) strict, without rowid;

create unique index open_invitations on invitations (org_id, email)
  where accepted_at is null and revoked_at is null;

-- A session speaks for one member of one org.
create table sessions (
  id text primary key,
  org_id text not null references orgs (id) on delete cascade,
  member_id text not null references members (id) on delete cascade,
  hash text not null unique,
  -- The role that it was opened with: with another one it is over.
  role text not null,
  method text not null check (method in ('link', 'oidc', 'invitation')),
  address text,
  user_agent text,
  created_at integer not null,
  -- Coarse: written at most every five minutes.
  active_at integer not null,
  expires_at integer not null
) strict, without rowid;

create index sessions_of_member on sessions (org_id, member_id);

create table ownership_offers (
  org_id text primary key references orgs (id) on delete cascade,
  from_member text not null references members (id) on delete cascade,
  to_member text not null references members (id) on delete cascade,
  offered_at integer not null,
  expires_at integer not null
) strict, without rowid;

-- Links to sign in by mail: whose they are is known before any org is.
create table sign_in_links (
  hash text primary key,
  email text not null,
  purpose text not null check (purpose in ('sign_in', 'confirm_email')),
  created_at integer not null,
  expires_at integer not null
) strict, without rowid;

create index sign_in_links_of_email on sign_in_links (email, created_at);

-- How an org signs in through an identity provider of its own.
create table oidc_settings (
  org_id text primary key references orgs (id) on delete cascade,
  issuer text not null,
  client_id text not null,
  secret text not null,
  domains text not null,
  created_at integer not null,
  updated_at integer not null
) strict, without rowid;

-- A sign-in under way: what has to come back, for ten minutes and once.
create table oidc_attempts (
  state_hash text primary key,
  org_id text not null references orgs (id) on delete cascade,
  nonce text not null,
  verifier text not null,
  created_at integer not null,
  expires_at integer not null
) strict, without rowid;

-- Who a subject of an org's identity provider is.
create table identities (
  org_id text not null references orgs (id) on delete cascade,
  issuer text not null,
  subject text not null,
  member_id text not null references members (id) on delete cascade,
  created_at integer not null,
  primary key (org_id, issuer, subject)
) strict, without rowid;

-- The operator's tokens for accounts, good from certain addresses and for a time only.
create table platform_tokens (
  id text primary key,
  name text not null,
  hash text not null unique,
  last_four text not null,
  allow text not null,
  created_at integer not null,
  expires_at integer not null,
  revoked_at integer,
  last_used_at integer
) strict, without rowid;
