-- An answer ends with the first of its gates: those that are open are due then, too.
update gates set expires_at = (
  select min(o.expires_at) from gates o where o.org_id = gates.org_id and o.parked_id = gates.parked_id
)
where parked_id is not null and status in ('pending', 'approved');

-- Who gave the URL, and so reads what is delivered there: the links to approve are made for him.
alter table webhooks add column url_by text;

update webhooks set url_by = coalesce((
  select coalesce(payload ->> '$.actor.memberId', payload ->> '$.actor.id') from audit_entries a
  where a.org_id = webhooks.org_id and a.target = webhooks.id
    and a.action = 'webhook.update' and a.outcome = 'allowed'
    and payload ->> '$.after.url' <> payload ->> '$.before.url'
  order by a.seq desc limit 1
), created_by);
