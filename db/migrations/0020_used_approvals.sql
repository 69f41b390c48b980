-- The step that has sent a call to run, of those that people approved: it runs once.
alter table released_calls add column used_by text;
