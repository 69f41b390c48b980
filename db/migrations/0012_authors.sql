-- Who wrote a version of a policy: a member's id, or who else acted. Null where it was not noted.
alter table policy_versions add column created_by text;
