-- An answer ends with the first of its gates: those that are open are due then, too.
update gates set expires_at = (
  select min(o.expires_at) from gates o where o.org_id = gates.org_id and o.parked_id = gates.parked_id
)
where parked_id is not null and status in ('pending', 'approved');
