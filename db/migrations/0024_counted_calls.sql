-- The limits of a policy count the calls of others too: whoever governs calls has to know of them.
create trigger policy_versions_added after insert on policy_versions
begin
  update orgs set revision = revision + 1 where id = new.org_id;
end;

create trigger agents_pinned after update of policy_id, policy_version on agents
when new.policy_id is not old.policy_id or new.policy_version is not old.policy_version
begin
  update orgs set revision = revision + 1 where id = new.org_id;
end;

-- New agents may be pinned from the start.
create trigger agents_added after insert on agents when new.policy_version is not null
begin
  update orgs set revision = revision + 1 where id = new.org_id;
end;

-- So may callers choose a version.
create trigger agent_policies_added after insert on agent_policies
begin
  update orgs set revision = revision + 1 where id = new.org_id;
end;

create trigger agent_policies_removed after delete on agent_policies
begin
  update orgs set revision = revision + 1 where id = old.org_id;
end;
