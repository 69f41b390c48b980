-- A run is active until its last call has ended, not only when that began: it idles from there on.
drop trigger step_settles;

create trigger step_settles after update of settled_at, spent_nanos, held_nanos on steps
when new.tallies = old.tallies
begin
  update runs set
    held_nanos = held_nanos
      - iif(old.settled_at is null, old.held_nanos, 0)
      + iif(new.settled_at is null, new.held_nanos, 0),
    spent_nanos = spent_nanos + new.spent_nanos - old.spent_nanos,
    -- Of a call whose process is gone, its lease is the last sign.
    active_at = max(active_at, coalesce(
      iif(new.outcome = 'lease_expired', new.lease_expires_at, new.settled_at), 0
    ))
    where id = new.run_id and org_id = new.org_id;
  update spend set
    line_run_id = iif(
      spent_nanos + new.spent_nanos - old.spent_nanos >= line_nanos, new.run_id, line_run_id
    ),
    held_nanos = held_nanos
      - iif(old.settled_at is null, old.held_nanos, 0)
      + iif(new.settled_at is null, new.held_nanos, 0),
    spent_nanos = spent_nanos + new.spent_nanos - old.spent_nanos
    where org_id = new.org_id and subject = new.agent_id and window = new.day;
  update spend set
    line_run_id = iif(
      spent_nanos + new.spent_nanos - old.spent_nanos >= line_nanos, new.run_id, line_run_id
    ),
    held_nanos = held_nanos
      - iif(old.settled_at is null, old.held_nanos, 0)
      + iif(new.settled_at is null, new.held_nanos, 0),
    spent_nanos = spent_nanos + new.spent_nanos - old.spent_nanos
    where org_id = new.org_id and subject = new.org_id and window = substr(new.day, 1, 7);
end;

-- A call whose estimate was charged when its lease ran out may have cost less after all: runs that
-- were stopped since, for money that it counted against, may go on. Their next call is measured.
create trigger estimate_was_too_high after update of spent_nanos on steps
when old.outcome = 'lease_expired' and new.spent_nanos < old.spent_nanos
begin
  update runs set blocked_until = new.settled_at
    where org_id = new.org_id and closed_at >= old.settled_at and status = 'blocked' and (
      closed_reason = 'budget.run' and id = new.run_id
      or closed_reason in ('budget.agent_per_day', 'budget.agent_per_month')
        and agent_id = new.agent_id
      or closed_reason = 'budget.org_per_month'
    );
end;
