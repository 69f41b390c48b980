-- What people approved of a call that a run was given: the digest that its gate was bound to. Null
-- for calls that nobody was asked about.
alter table released_calls add column digest text;
