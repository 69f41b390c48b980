-- Whether an answer of a run waits, or has ended since: asked by each hold of a run whose policy asks people.
create index parked_of_run on parked (org_id, run_id, ended_at);
