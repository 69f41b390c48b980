-- Tokens that were used are counted by whoever settles several steps at once, as all sums are.
drop trigger step_uses_tokens;

-- Once per step, as it is settled; an answer whose usage nobody knows keeps what was reserved.
create trigger step_uses_tokens after update of answered on steps
when new.charged is not null and new.tallies = old.tallies and new.settled_at is not null
  and (old.settled_at is null or old.outcome = 'lease_expired')
  and (new.answered ->> '$.estimated' is null or new.answered -> '$.usage' is not null)
begin
  update limit_slots set
    used = max(0, used - (new.charged ->> '$.tokens')
      + coalesce(new.answered ->> '$.usage.inputTokens', 0)
      + coalesce(new.answered ->> '$.usage.outputTokens', 0))
    from json_each(new.charged, '$.slots') as reserved
    where org_id = new.org_id and subject = reserved.value ->> 0 and kind = 'tokens'
      and window_ms = reserved.value ->> 1 and slot = reserved.value ->> 2;
end;
