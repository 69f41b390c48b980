-- Which versions of which policies an agent's runs may open with.

-- The version of its policy that the agent is pinned to; without one it follows the newest.
alter table agents add column policy_version integer check (policy_version > 0);

-- Policies that a caller may choose beside the agent's own. Without a number, the newest version.
create table agent_policies (
  org_id text not null references orgs (id) on delete cascade,
  agent_id text not null references agents (id) on delete cascade,
  policy_id text not null references policies (id),
  -- Zero stands for the newest version, whichever that is.
  number integer not null check (number >= 0),
  created_at integer not null,
  primary key (org_id, agent_id, policy_id, number)
) strict, without rowid;
